r"""Pseudopotentials as numbers: tabulated (UPF, psp8) and analytic (GTH).

The non-local operator of both kinds is separable (Kleinman & Bylander, Phys. Rev. Lett. 48, 1425 (1982)):

    V_nl = sum_ij |beta_i> D_ij <beta_j|,    <r|beta_i> = (rbeta_i(r) / r) Y_lm(r/|r|)

`RadialPseudo` tabulates V_loc, r*beta and densities on a radial mesh; `GthPseudo` holds the parameters of the closed forms of
Goedecker, Teter & Hutter, Phys. Rev. B 54, 1703 (1996). Units: hartree and bohr throughout; the readers convert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class Projector:
    """One radial projector: angular momentum `l` and `rbeta` (m,) = r*beta(r), m <= length of the mesh, zero beyond."""

    l: int
    rbeta: Array


@dataclass(frozen=True, eq=False)
class RadialPseudo:
    """A norm-conserving pseudopotential on a radial mesh.

    Attributes:
        element: chemical symbol.
        z_valence: charge of the pseudo-ion in units of e.
        functional: "pbe", "lda", "pbesol", or the file's own words when it is none of these.
        r: (n,) mesh in bohr, increasing from 0 or above.
        rab: (n,) dr/di in bohr, the weight of point i in an integral over the mesh.
        vloc_ha: (n,) local potential in hartree, -z_valence/r far out.
        projectors: the radial projectors, in the order of `d_ij_ha`.
        d_ij_ha: (p, p) symmetric strengths in hartree, zero between different l.
        rho_atom: (n,) 4 pi r^2 rho(r) of the valence electrons of the atom (electrons/bohr), or None.
        core_density: (n,) rho_core(r) in electrons/bohr^3 for the non-linear core correction, or None.
        source: the file it was read from.
        sha256: checksum of that file.
    """

    element: str
    z_valence: float
    functional: str
    r: Array
    rab: Array
    vloc_ha: Array
    projectors: tuple[Projector, ...]
    d_ij_ha: Array
    rho_atom: Array | None
    core_density: Array | None
    source: str
    sha256: str


@dataclass(frozen=True, eq=False)
class Channel:
    """The projectors of one angular momentum of a GTH pseudopotential: radius `r_l` (bohr), `h_ij` (p, p) symmetric (hartree)."""

    l: int
    r_l: float
    h_ij: Array


@dataclass(frozen=True, eq=False)
class GthPseudo:
    """A Goedecker-Teter-Hutter pseudopotential.

    V_loc(r) = -Z/r erf(r / (sqrt(2) r_loc)) + exp(-(r/r_loc)^2/2) sum_k c_loc[k] (r/r_loc)^(2k).

    Attributes:
        element: chemical symbol.
        z_valence: charge of the pseudo-ion in units of e.
        functional: "pbe", "lda", "pbesol" or the name of the family as written in the file.
        name: name of the entry, for example "GTH-PBE-q4".
        r_loc: range of the ion's Gaussian charge in bohr.
        c_loc: up to four coefficients in hartree.
        channels: one per angular momentum that has projectors.
        source: file or publication.
    """

    element: str
    z_valence: int
    functional: str
    name: str
    r_loc: float
    c_loc: tuple[float, ...]
    channels: tuple[Channel, ...]
    source: str
