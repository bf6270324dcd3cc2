"""Coulomb energy of the ions in a neutralising background, by Ewald's two rapidly converging sums.

    E = 1/2 sum'_ij,L Z_i Z_j erfc(a r)/r + 2 pi/Omega sum_G exp(-G^2/4a^2)/G^2 |S(G)|^2 - a/sqrt(pi) sum Z^2 - pi Q^2/(2 Omega
    a^2)

Both sums are cut where their terms fall below 1e-17 of the leading one, so the result does not depend on `a` to 1e-12.
Reference: Ewald, Ann. Phys. 369, 253 (1921); Martin, Electronic Structure, appendix F.
"""

from __future__ import annotations

import numpy as np
from scipy.special import erfc

from gewu.physics.dft.crystal import Crystal

REACH = 6.2  # erfc(6.2) and exp(-6.2^2) are below 2e-17


def ewald_energy(crystal: Crystal, charges: np.ndarray, splitting: float | None = None) -> float:
    """Return the ion-ion energy in Ha.

    Args:
        crystal: cell and positions.
        charges: (n,) valence charges.
        splitting: Ewald's parameter in 1/bohr; by default balances both sums.
    """
    n, volume = len(crystal), crystal.volume
    a = splitting or np.sqrt(np.pi) * (n / volume**2) ** (1 / 6)
    cells = _lattice_points(crystal.reciprocal, REACH / a) @ crystal.lattice
    real = 0.0
    for i in range(n):
        separation = (crystal.frac - crystal.frac[i] - np.round(crystal.frac - crystal.frac[i])) @ crystal.lattice
        r = np.linalg.norm(separation[:, None] + cells, axis=-1)
        r[i, np.argmin(r[i])] = np.inf
        real += 0.5 * charges[i] * float((charges[:, None] * erfc(a * r) / r).sum())
    g_int = _lattice_points(crystal.lattice, 2 * a * REACH)
    g2 = ((g_int @ crystal.reciprocal) ** 2).sum(-1)
    keep = (g2 > 1e-12) & (g2 <= (2 * a * REACH) ** 2)
    structure = np.exp(2j * np.pi * (g_int[keep] @ crystal.frac.T)) @ charges
    reciprocal = 2 * np.pi / volume * float((np.exp(-g2[keep] / (4 * a * a)) / g2[keep] * np.abs(structure) ** 2).sum())
    self_energy = a / np.sqrt(np.pi) * float((charges**2).sum())
    background = np.pi * float(charges.sum()) ** 2 / (2 * volume * a * a)
    return real + reciprocal - self_energy - background


def _lattice_points(dual: np.ndarray, radius: float) -> np.ndarray:
    """Integer vectors that include every lattice point within `radius` of the origin; `dual` is the reciprocal basis."""
    reach = np.ceil(radius * np.linalg.norm(dual, axis=1) / (2 * np.pi)).astype(int) + 1
    return np.stack(np.meshgrid(*[np.arange(-m, m + 1) for m in reach], indexing="ij"), -1).reshape(-1, 3)
