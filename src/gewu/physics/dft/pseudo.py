"""Pseudopotentials as form factors: what an ion looks like to plane waves.

An ion of valence Z acts through a local potential v(q), separable projectors beta_i(q) with strengths D_ij, and, when the
file has them, an atomic valence density (for the starting guess) and a core density (for the exchange-correlation energy):

    v(q)      = 4 pi int r^2 v(r) sin(qr)/(qr) dr          (Ha bohr^3; the 4 pi Z / q^2 divergence is left out at q = 0)
    beta_i(q) = 4 pi int r^2 beta_i(r) j_l(qr) dr
    rho(q)    = 4 pi int r^2 rho(r) sin(qr)/(qr) dr         (electrons)

Gaussian (GTH) pseudopotentials have closed forms (Goedecker, Teter, Hutter, PRB 54, 1703, 1996; Hartwigsen, Goedecker, Hutter,
PRB 58, 3641, 1998). Tabulated ones (UPF, psp8) are integrated by Simpson's rule up to 10 bohr, as Quantum ESPRESSO does, on a
uniform q mesh of 0.01 / bohr, and evaluated from a quintic spline (interpolation error below 1e-10 relative).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import make_interp_spline
from scipy.special import erf, eval_genlaguerre, factorial, gamma, spherical_jn

from gewu.core.units import BOHR_ANGSTROM
from gewu.formats.elements import COVALENT_RADIUS_ANGSTROM
from gewu.formats.pseudopotential import GthPseudo, RadialPseudo

Radial = Callable[[np.ndarray], np.ndarray]
R_CUT_BOHR = 10.0
Q_STEP = 0.01


@dataclass(frozen=True, eq=False)
class Ion:
    """Form factors of one element.

    `local`, `density` and `core` map |q| (n,) in 1/bohr to (n,); `projectors` holds (l, beta(q)) pairs and `d_ij` (p, p) their
    strengths in Ha, zero between different l. `core` is None without a core correction.
    """

    symbol: str
    valence: float
    local: Radial
    projectors: tuple[tuple[int, Radial], ...]
    d_ij: np.ndarray
    density: Radial
    core: Radial | None
    source: str


def make_ion(pseudo: RadialPseudo | GthPseudo, q_max: float) -> Ion:
    """Return the form factors of a pseudopotential, valid for 0 <= q <= q_max (1/bohr)."""
    return _gth_ion(pseudo) if isinstance(pseudo, GthPseudo) else _radial_ion(pseudo, q_max)


def gaussian_density(symbol: str, valence: float) -> Radial:
    """Return a Gaussian valence density whose width follows the covalent radius: the guess for ions that carry none."""
    width = 0.5 * COVALENT_RADIUS_ANGSTROM.get(symbol, 1.5) / BOHR_ANGSTROM
    return lambda q: valence * np.exp(-0.5 * (q * width) ** 2)


def _gth_ion(p: GthPseudo) -> Ion:
    r, z = p.r_loc, float(p.z_valence)
    c = np.zeros(4)
    c[: len(p.c_loc)] = p.c_loc

    def local(q: np.ndarray) -> np.ndarray:
        x2 = (q * r) ** 2
        poly = c[0] + c[1] * (3 - x2) + c[2] * (15 - 10 * x2 + x2**2) + c[3] * (105 - 105 * x2 + 21 * x2**2 - x2**3)
        safe = np.where(q > 1e-9, q, 1.0)
        coulomb = np.where(q > 1e-9, -4 * np.pi * z / safe**2 * np.exp(-x2 / 2), 2 * np.pi * z * r**2)
        return coulomb + np.sqrt(8 * np.pi**3) * r**3 * np.exp(-x2 / 2) * poly

    projectors: list[tuple[int, Radial]] = []
    d_ij = np.zeros((sum(len(ch.h_ij) for ch in p.channels),) * 2)
    for channel in p.channels:
        first, count = len(projectors), len(channel.h_ij)
        d_ij[first : first + count, first : first + count] = channel.h_ij
        projectors += [(channel.l, _gth_projector(channel.l, i, channel.r_l)) for i in range(count)]
    return Ion(p.element, z, local, tuple(projectors), d_ij, gaussian_density(p.element, z), None, p.name)


def _gth_projector(l: int, i: int, a: float) -> Radial:
    """Transform of sqrt(2) r^(l+2i) exp(-r^2/2a^2) / (a^(l+2i+3/2) sqrt(Gamma(l+2i+3/2))), i = 0, 1, 2."""
    norm = np.sqrt(2.0) / (a ** (l + 2 * i + 1.5) * np.sqrt(gamma(l + 2 * i + 1.5)))
    scale = 4 * np.pi * norm * np.sqrt(np.pi / 2) * 2**i * factorial(i) * a ** (2 * i + 2 * l + 3)
    return lambda q: scale * q**l * np.exp(-((q * a) ** 2) / 2) * eval_genlaguerre(i, l + 0.5, (q * a) ** 2 / 2)


def _radial_ion(p: RadialPseudo, q_max: float) -> Ion:
    n = _mesh_end(p.r)
    r, w = p.r[:n], simpson_weights(p.rab[:n])
    q = np.arange(0.0, q_max + 6 * Q_STEP, Q_STEP)
    sinc = np.sinc(np.outer(q, r) / np.pi)
    short = _spline(q, sinc @ (w * r * (r * p.vloc_ha[:n] + p.z_valence * erf(r))))
    # the q -> 0 limit of  -4 pi Z exp(-q^2/4)/q^2  without its divergence is  +pi Z
    z = p.z_valence

    def local(x: np.ndarray) -> np.ndarray:
        safe = np.where(x > 1e-9, x, 1.0)
        return short(x) + np.where(x > 1e-9, -4 * np.pi * z / safe**2 * np.exp(-(x**2) / 4), np.pi * z)

    reach = max((len(pr.rbeta) for pr in p.projectors), default=0)
    bessel = {l: spherical_jn(l, np.outer(q, p.r[:reach])) for l in {pr.l for pr in p.projectors}}
    table = tuple((pr.l, _projector(q, p, pr.rbeta, bessel[pr.l])) for pr in p.projectors)
    density = (
        gaussian_density(p.element, z)
        if p.rho_atom is None
        else _normalised(_spline(q, sinc @ (w * p.rho_atom[:n]) / (4 * np.pi)), z)
    )
    core = None if p.core_density is None else _spline(q, sinc @ (w * r**2 * p.core_density[:n]))
    return Ion(p.element, z, local, table, np.asarray(p.d_ij_ha), density, core, p.source)


def _projector(q: np.ndarray, p: RadialPseudo, rbeta: np.ndarray, bessel: np.ndarray) -> Radial:
    m = len(rbeta)
    return _spline(q, bessel[:, :m] @ (simpson_weights(p.rab[:m]) * p.r[:m] * rbeta))


def _spline(q: np.ndarray, f: np.ndarray) -> Radial:
    curve = make_interp_spline(q, 4 * np.pi * f, k=5)
    return lambda x: np.asarray(curve(x))


def _normalised(density: Radial, charge: float) -> Radial:
    total = float(density(np.zeros(1))[0])
    return lambda q: density(q) * (charge / total)


def _mesh_end(r: np.ndarray) -> int:
    beyond = int(np.searchsorted(r, R_CUT_BOHR, side="right")) + 1
    odd = 2 * ((beyond + 1) // 2) - 1
    return min(odd, len(r))


def simpson_weights(rab: Any) -> np.ndarray:
    """Return weights w with sum(w f) = int f dr by Simpson's rule on a mesh with dr = rab; a last odd interval is trapezoidal."""
    n = len(rab)
    odd = n - 1 + n % 2
    w = np.zeros(n)
    w[:odd] = 2.0
    w[1:odd:2] = 4.0
    w[0] = w[odd - 1] = 1.0
    w /= 3.0
    if odd < n:
        w[n - 2] += 0.5
        w[n - 1] += 0.5
    return w * np.asarray(rab)
