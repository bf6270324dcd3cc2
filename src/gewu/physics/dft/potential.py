"""The local part of the Kohn-Sham potential and the energies that belong to it.

    V_loc(r) = V_ion(r) + V_H(r) + v_xc(r),   V_H(G) = 4 pi rho(G)/G^2,   E_H = Omega/2 sum_G |rho(G)|^2 4 pi/G^2

The divergent G = 0 terms of the ion, Hartree and Ewald energies cancel in a neutral cell; what remains of the ion's is its
average non-Coulomb part, which `local` form factors carry at q = 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gewu.core.arrays import Array
from gewu.physics.dft.basis import Basis
from gewu.physics.dft.ewald import ewald_energy
from gewu.physics.dft.pseudo import Ion, Radial
from gewu.physics.dft.xc import xc_energy_potential


class DensityEnergies(NamedTuple):
    """Energies in Ha that depend on the density alone."""

    local: float
    hartree: float
    xc: float


class LocalPotential:
    """Potential and energies of a valence density given by its half-sphere coefficients (ng,).

    Args:
        basis: grid and density sphere.
        ions: form factors by element.
        functional: name of the exchange-correlation functional.
    """

    def __init__(self, basis: Basis, ions: Mapping[str, Ion], functional: str) -> None:
        self.basis, self.functional = basis, functional
        crystal, put = basis.crystal, basis.arrays.put
        self.charges = np.array([ions[s].valence for s in crystal.symbols])
        self.ewald = ewald_energy(crystal, self.charges)
        q, shell = np.unique(np.sqrt(basis.g2).round(9), return_inverse=True)
        structure = {s: _structure_factor(basis, atoms) for s, atoms in crystal.species.items()}

        def superpose(form: Mapping[str, Radial]) -> np.ndarray:
            total = np.zeros(len(basis.g2), complex)
            for symbol, radial in form.items():
                total += radial(q)[shell] * structure[symbol]
            return total / crystal.volume

        self.v_ion_g = put(superpose({s: ion.local for s, ion in ions.items()}))
        self.v_ion = basis.to_grid(self.v_ion_g)
        guess = superpose({s: ion.density for s, ion in ions.items()})
        self.rho_guess_g = guess * (self.charges.sum() / (guess[0].real * crystal.volume))
        core = {s: ion.core for s, ion in ions.items() if ion.core is not None}
        self.rho_core = basis.to_grid(put(superpose(core))) if core else 0.0
        safe = np.where(basis.g2 > 1e-12, basis.g2, 1.0)
        self.coulomb = put(np.where(basis.g2 > 1e-12, 4 * np.pi / safe, 0.0))
        self.weight = put(basis.weight)

    def hartree(self, rho_g: Array) -> tuple[float, Array]:
        """Return E_H and V_H (n1, n2, n3) of a density."""
        v_g = self.coulomb * rho_g
        energy = 0.5 * self.basis.crystal.volume * float((self.weight * (v_g.conj() * rho_g).real).sum())
        return energy, self.basis.to_grid(v_g)

    def xc(self, rho_g: Array) -> tuple[float, Array]:
        """Return E_xc and v_xc (n1, n2, n3) of a valence density with the core density added."""
        return xc_energy_potential(self.basis, self.basis.to_grid(rho_g) + self.rho_core, self.functional)

    def ion(self, rho_g: Array) -> float:
        """Return the energy of a density in the ions' local potential."""
        return self.basis.crystal.volume * float((self.weight * (self.v_ion_g.conj() * rho_g).real).sum())

    def __call__(self, rho_g: Array) -> tuple[Array, DensityEnergies]:
        """Return V_loc on the grid and the energies of a density."""
        e_h, v_h = self.hartree(rho_g)
        e_xc, v_xc = self.xc(rho_g)
        return self.v_ion + v_h + v_xc, DensityEnergies(self.ion(rho_g), e_h, e_xc)


def _structure_factor(basis: Basis, atoms: list[int]) -> np.ndarray:
    """sum_a exp(-i G.tau_a) of the atoms of one element, built from one table of phases per axis."""
    total = np.zeros(len(basis.g), complex)
    low, high = basis.g.min(0), basis.g.max(0)
    for x in basis.crystal.frac[atoms]:
        phase = [np.exp(-2j * np.pi * np.arange(low[d], high[d] + 1) * x[d]) for d in range(3)]
        total += phase[0][basis.g[:, 0] - low[0]] * phase[1][basis.g[:, 1] - low[1]] * phase[2][basis.g[:, 2] - low[2]]
    return total
