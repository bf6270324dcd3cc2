"""Pseudopotential files for the tests, made from the closed forms of the GTH silicon potential: no file of others is needed.

`analytic(r)` gives the true numbers, `upf_text` and `psp8_text` print them as the formats want them.
"""

from __future__ import annotations

from math import gamma

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from gewu.formats import builtin_gth

Array = NDArray[np.float64]
Z = 4.0
CORE_WIDTH = 0.5
CORE_HEIGHT = 0.7


def linear_mesh(n: int = 400, step: float = 0.02) -> tuple[Array, Array]:
    """Return r and dr/di of a linear mesh from 0 (7.98 bohr)."""
    return step * np.arange(n), np.full(n, step)


def log_mesh(n: int = 600) -> tuple[Array, Array]:
    """Return r and dr/di of a logarithmic mesh, as Quantum ESPRESSO's ld1.x makes them."""
    step = 0.0185
    r = 2e-4 * np.exp(step * np.arange(n))
    return r, step * r


def projector(l: int, i: int, r_l: float, r: Array) -> Array:
    """Return r times the i-th GTH projector (i = 1, 2), equation 9 of Hartwigsen, Goedecker & Hutter 1998."""
    p = l + (4 * i - 1) / 2
    return np.sqrt(2.0) * r ** (l + 2 * i - 1) * np.exp(-((r / r_l) ** 2) / 2) / (r_l**p * np.sqrt(gamma(p)))


def analytic(r: Array) -> dict[str, Array]:
    """Return vloc_ha, rbeta (4, n) for l = 0 0 1, D (3, 3) in hartree, rho = 4 pi r^2 rho, core density."""
    gth = builtin_gth("Si", "pbe")
    x = np.maximum(r, 1e-12)
    vloc = -Z / x * erf(x / (np.sqrt(2.0) * gth.r_loc)) + np.exp(-((x / gth.r_loc) ** 2) / 2) * gth.c_loc[0]
    s, p = gth.channels
    rbeta = np.array([projector(0, 1, s.r_l, r), projector(0, 2, s.r_l, r), projector(1, 1, p.r_l, r)])
    d = np.zeros((3, 3))
    d[:2, :2], d[2, 2] = s.h_ij, p.h_ij[0, 0]
    a = 3.0
    rho = Z * a**5 / 24 * r**4 * np.exp(-a * r)
    core = CORE_HEIGHT * np.exp(-((r / CORE_WIDTH) ** 2) / 2)
    return {"vloc": vloc, "rbeta": rbeta, "d": d, "rho": rho, "core": core}


def _block(values: Array) -> str:
    rows = [values.ravel()[i : i + 4] for i in range(0, values.size, 4)]
    return "\n" + "\n".join(" ".join(f"{x:20.10E}" for x in row) for row in rows) + "\n"


def _table(tag: str, values: Array, more: str = "") -> str:
    return f'<{tag} type="real" size="{values.size}" columns="4"{more}>{_block(values)}</{tag}>\n'


def upf_text(mesh: tuple[Array, Array] | None = None, core: bool = False) -> str:
    """Return a UPF 2.0.1 file of silicon, in rydberg as the format wants."""
    r, rab = linear_mesh() if mesh is None else mesh
    a, n = analytic(r), len(r)
    cut = int(np.searchsorted(r, 4.5))
    text = '<UPF version="2.0.1">\n<PP_INFO>\n made for a test & not <valid> XML\n</PP_INFO>\n<PP_HEADER\n'
    text += ' generated="GTH" element="Si" pseudo_type="NC" relativistic="scalar" is_ultrasoft="F" is_paw="F" is_coulomb="F"\n'
    text += f' has_so="F" core_correction="{"T" if core else "F"}" functional="PBE" z_valence="    4.00"\n'
    text += f' l_max="1" mesh_size="{n}" number_of_proj="3"/>\n<PP_MESH>\n{_table("PP_R", r)}{_table("PP_RAB", rab)}</PP_MESH>\n'
    text += _table("PP_NLCC", a["core"]) if core else ""
    text += _table("PP_LOCAL", 2 * a["vloc"]) + "<PP_NONLOCAL>\n"
    for i, l in enumerate((0, 0, 1)):
        more = f' index="{i + 1}" angular_momentum="{l}" cutoff_radius_index="{cut}"'
        text += _table(f"PP_BETA.{i + 1}", np.where(np.arange(n) < cut, a["rbeta"][i], 0.0), more)
    return text + _table("PP_DIJ", 2 * a["d"]) + "</PP_NONLOCAL>\n" + _table("PP_RHOATOM", a["rho"]) + "</UPF>\n"


def _psp8_table(r: Array, *columns: Array) -> str:
    rows = enumerate(zip(r, *columns, strict=True), start=1)
    return "".join(f"{i:6d}" + "".join(f"{x:21.13E}".replace("E", "D") for x in row) + "\n" for i, row in rows)


def psp8_text(switch: int = 1, core: bool = True) -> str:
    """Return a psp8 file of silicon with diagonal strengths, core charge and densities times 4 pi."""
    r, _ = linear_mesh(600, 0.01)
    a, n = analytic(r), len(r)
    strengths, rotation = np.linalg.eigh(a["d"][:2, :2])
    s_projectors = rotation.T @ a["rbeta"][:2]
    text = "Si    made for a test\n 14.0 4.0 260101 zatom,zion,pspd\n"
    text += f" 8 11 1 4 {n} 0 pspcod,pspxc,lmax,lloc,mmax,r2well\n 5.99 {1.0 if core else 0.0} 0.0 rchrg fchrg qchrg\n"
    text += f" 2 1 0 0 0 nproj\n {switch} 1 extension_switch\n" + (" 1 nprojso\n" if switch >= 2 else "")
    text += f"0 {strengths[0]:.13E} {strengths[1]:.13E}\n{_psp8_table(r, *s_projectors)}"
    text += f"1 {a['d'][2, 2]:.13E}\n{_psp8_table(r, a['rbeta'][2])}4\n{_psp8_table(r, a['vloc'])}"
    if switch >= 2:
        text += f"1 1.0E-02\n{_psp8_table(r, a['rbeta'][2])}"
    if core:
        b, f = CORE_WIDTH**-2, 4 * np.pi * a["core"]
        slopes = [-b * r * f, (b**2 * r**2 - b) * f, (3 * b**2 * r - b**3 * r**3) * f]
        slopes.append((3 * b**2 - 6 * b**3 * r**2 + b**4 * r**4) * f)
        text += _psp8_table(r, f, *slopes)
    if switch in (1, 3):
        true_core = 10 * 8.0**3 / 2 * np.exp(-8.0 * r)
        valence = Z * 3.0**5 / 24 * r**2 * np.exp(-3.0 * r)
        text += _psp8_table(r, valence, valence, true_core)
    return text + "<INPUT>\n# made for a test\n</INPUT>\n"
