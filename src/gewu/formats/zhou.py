"""The embedded-atom potentials of Zhou, Johnson and Wadley for close-packed metals and their alloys, from their formulas.

    f(r)      = f_e exp[-beta (r/r_e - 1)] / (1 + (r/r_e - lambda)^20)
    phi_aa(r) = A exp[-alpha (r/r_e - 1)] / (1 + (r/r_e - kappa)^20) - B exp[-beta (r/r_e - 1)] / (1 + (r/r_e - lambda)^20)
    phi_ab(r) = 1/2 [f_b/f_a phi_aa + f_a/f_b phi_bb]
    F(rho)    = sum_k F_nk (rho/rho_n - 1)^k below rho_n = 0.85 rho_e; sum_k F_k (rho/rho_e - 1)^k up to rho_0 = 1.15 rho_e;
                F_e [1 - ln (rho/rho_s)^eta] (rho/rho_s)^eta above

Reference: Zhou, Johnson & Wadley, Phys. Rev. B 69, 144113 (2004), Table III; the formulas are also in Zhou et al., Acta Mater.
49, 4005 (2001).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gewu.core.errors import InputError
from gewu.formats.eam import Array, EamTables


class Metal(NamedTuple):
    """Parameters of one metal, in eV and angstrom; names as in the paper."""

    mass: float
    r_e: float
    f_e: float
    rho_e: float
    rho_s: float
    alpha: float
    beta: float
    a: float
    b: float
    kappa: float
    lam: float
    f_n: tuple[float, float, float, float]
    f: tuple[float, float, float, float]
    eta: float
    f_end: float


METALS = {
    "Cu": Metal(
        *(63.546, 2.556162, 1.554485, 21.175871, 21.175395, 8.127620, 4.334731, 0.396620, 0.548085, 0.308782, 0.756515),
        *((-2.170269, -0.263788, 1.088878, -0.817603), (-2.19, 0.0, 0.561830, -2.100595), 0.310490, -2.186568),
    ),
    "Ag": Metal(
        *(107.8682, 2.891814, 1.106232, 14.604100, 14.604144, 9.132010, 4.870405, 0.277758, 0.419611, 0.339710, 0.750758),
        *((-1.729364, -0.255882, 0.912050, -0.561432), (-1.75, 0.0, 0.744561, -1.150650), 0.783924, -1.748423),
    ),
    "Au": Metal(
        *(196.96657, 2.885034, 1.529021, 19.991632, 19.991509, 9.516052, 5.075228, 0.229762, 0.356666, 0.356570, 0.748798),
        *((-2.937772, -0.500288, 1.601954, -0.835530), (-2.98, 0.0, 1.706587, -1.134778), 1.021095, -2.978815),
    ),
    "Ni": Metal(
        *(58.6934, 2.488746, 2.007018, 27.562015, 27.930410, 8.383453, 4.471175, 0.429046, 0.633531, 0.443599, 0.820658),
        *((-2.693513, -0.076445, 0.241442, -2.375626), (-2.70, 0.0, 0.265390, -0.152856), 0.469000, -2.699486),
    ),
    "Al": Metal(
        *(26.981539, 2.863924, 1.403115, 20.418205, 23.195740, 6.613165, 3.527021, 0.314873, 0.365551, 0.379846, 0.759692),
        *((-2.807602, -0.301435, 1.258562, -1.247604), (-2.83, 0.0, 0.622245, -2.488244), 0.785902, -2.824528),
    ),
}


def _decay(metal: Metal, r: Array, strength: float, steepness: float, edge: float) -> Array:
    s = r / metal.r_e
    return np.asarray(strength * np.exp(-steepness * (s - 1.0)) / (1.0 + (s - edge) ** 20))


def _density(metal: Metal, r: Array) -> Array:
    return _decay(metal, r, metal.f_e, metal.beta, metal.lam)


def _pair(metal: Metal, r: Array) -> Array:
    return _decay(metal, r, metal.a, metal.alpha, metal.kappa) - _decay(metal, r, metal.b, metal.beta, metal.lam)


def _embedding(metal: Metal, rho: Array) -> Array:
    low, middle = rho / (0.85 * metal.rho_e) - 1.0, rho / metal.rho_e - 1.0
    power = np.maximum(rho, 1e-10) / metal.rho_s
    high = metal.f_end * (1.0 - metal.eta * np.log(power)) * power**metal.eta
    parts = [sum(c * x**k for k, c in enumerate(series)) for series, x in ((metal.f_n, low), (metal.f, middle))]
    return np.asarray(np.where(low < 0.0, parts[0], np.where(rho < 1.15 * metal.rho_e, parts[1], high)))


def zhou_tables(elements: Sequence[str], *, points: int = 4001) -> EamTables:
    """Tabulate the potential for some of the metals Cu, Ag, Au, Ni, Al.

    Args:
        elements: different chemical symbols.
        points: points of each table.

    Returns:
        Tables whose cutoff is sqrt(10)/2 lattice constants of the largest metal, where the pair terms have decayed to 1e-6 eV.

    Raises:
        InputError: an element without verified parameters here.
    """
    for name in elements:
        if name not in METALS:
            raise InputError("no Zhou potential for this element", key="eam", value=name, allowed=", ".join(METALS))
    metals = [METALS[name] for name in elements]
    cutoff = float(max(np.sqrt(5.0) * metal.r_e for metal in metals))
    rho_max = 2.0 * max(metal.rho_e for metal in metals) * 2.0
    r, rho = np.linspace(0.0, cutoff, points), np.linspace(0.0, rho_max, points)
    density = np.array([_density(metal, r) for metal in metals])
    pair = np.array([_pair(metal, r) for metal in metals])
    mixed = 0.5 * (density[None] / density[:, None] * pair[:, None] + density[:, None] / density[None] * pair[None])
    return EamTables(
        elements=tuple(elements),
        mass_e=np.array([metal.mass for metal in metals]),
        d_rho=float(rho[1]),
        d_r=float(r[1]),
        cutoff=cutoff,
        embedding_ex=np.array([_embedding(metal, rho) for metal in metals]),
        density_eex=np.repeat(density[:, None], len(metals), axis=1),
        r_phi_eex=r * mixed,
        source="Zhou, Johnson & Wadley 2004",
    )
