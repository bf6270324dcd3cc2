"""The Hamiltonian at Gamma, where orbitals can be real functions: half the transforms, a quarter of the matrix products.

A real psi(r) has c(-G) = conj(c(G)), so it is known by one half of the sphere. It is kept as npw real numbers

    [ c(0),  sqrt(2) Re c(G) ...,  sqrt(2) Im c(G) ... ]    for the G of the upper half,

in which the scalar product of two orbitals is that of two real vectors. Two orbitals share one complex transform,
psi_1 + i psi_2, and are told apart afterwards by their symmetry.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from gewu.core.arrays import Array
from gewu.physics.dft.basis import Basis, Sphere
from gewu.physics.dft.hamiltonian import Hamiltonian
from gewu.physics.dft.pseudo import Ion

ROOT2 = np.sqrt(2.0)


class GammaHamiltonian(Hamiltonian):
    """H at k = 0 on real orbitals (n, npw) in the layout of this module. Arguments and use as for `Hamiltonian`."""

    dtype = np.dtype(float)

    def __init__(self, basis: Basis, sphere: Sphere, ions: Mapping[str, Ion]) -> None:
        super().__init__(basis, sphere, ions)
        xp, middle = self.xp, self.npw // 2
        self.beta = self.pack(self.beta)
        self.beta_dagger = xp.ascontiguousarray(self.beta.T)
        self.kinetic = xp.concatenate([self.kinetic[middle:], self.kinetic[middle + 1 :]])
        self.nonlocal_diagonal = ((self.d @ self.beta) * self.beta).sum(0)

    def pack(self, c: Array) -> Array:
        """Return the real layout (n, npw) of complex coefficients (n, npw), of the real part of functions that are not real."""
        return pack(self.xp, c)

    def unpack(self, psi: Array) -> Array:
        """Return the complex coefficients (n, npw) of the real layout (n, npw)."""
        return unpack(self.xp, psi)

    def waves(self, count: int) -> np.ndarray:
        """Return the indices of at least `count` longest waves, in order of the sphere; with each G also -G."""
        longest = super().waves(count)
        return np.union1d(longest, self.npw - 1 - longest)

    def eigenvectors(self, matrix: np.ndarray) -> np.ndarray:
        """Return eigenvectors (columns) of H among some waves, chosen to be those of real functions."""
        rows = unpack(np, np.eye(len(matrix)))
        _, u = np.linalg.eigh((rows.conj() @ matrix @ rows.T).real)
        return rows.T @ u

    def _pairs(self, psi: Array) -> Array:
        """Return the complex coefficients of psi_1 + i psi_2 for each pair of orbitals."""
        if len(psi) % 2:
            psi = self.xp.concatenate([psi, self.xp.zeros((1, self.npw))])
        return self.unpack(psi[0::2]) + 1j * self.unpack(psi[1::2])

    def _add_local(self, psi: Array, out: Array) -> None:
        basis, step = self.basis, self.basis.arrays.batch(self.basis.grid)
        middle = self.npw // 2
        pairs = self._pairs(psi)
        for first in range(0, len(pairs), step):
            f = basis.wave_to_grid(self.sphere, self.index, pairs[first : first + step])
            f *= self.potential
            pairs[first : first + step] = basis.wave_to_sphere(self.sphere, self.index, f)
        upper, lower = _halves(pairs)
        zero = pairs[:, middle, None]
        for part, z, centre in ((0, upper + lower, zero.real), (1, -1j * (upper - lower), zero.imag)):
            target = out[part::2]
            n = len(target)
            target += self.xp.concatenate([centre[:n], z[:n].real / ROOT2, z[:n].imag / ROOT2], axis=1)

    def add_density(self, psi: Array, occupation: Array, out: Array) -> None:
        """Add sum_n f_n |psi_n(r)|^2 / Omega to `out` (n1, n2, n3); some smearings make f_n negative."""
        basis, xp, step = self.basis, self.xp, self.basis.arrays.batch(self.basis.grid)
        for sign in (1.0, -1.0):
            chosen = sign * occupation > 0
            scale = xp.sqrt(sign * occupation[chosen] / basis.crystal.volume)
            pairs = self._pairs(psi[chosen] * scale[:, None])
            for first in range(0, len(pairs), step):
                f = basis.wave_to_grid(self.sphere, self.index, pairs[first : first + step])
                out += sign * (f.real**2 + f.imag**2).sum(0)


def pack(xp: ModuleType, c: Array) -> Array:
    """Return the real layout (n, m) of the real part of functions given by coefficients (n, m) on a set closed under G -> -G.

    The set is in mirror order: entry m - 1 - i is -G of entry i, and G = 0 stands in the middle.
    """
    upper, lower = _halves(c)
    z = (upper + lower) / ROOT2
    middle = c.shape[1] // 2
    return xp.concatenate([c[:, middle : middle + 1].real, z.real, z.imag], axis=1)


def unpack(xp: ModuleType, psi: Array) -> Array:
    """Return the complex coefficients (n, m) of the real layout: the inverse of `pack` for real functions."""
    m = psi.shape[1] // 2
    z = (psi[:, 1 : m + 1] + 1j * psi[:, m + 1 :]) / ROOT2
    return xp.concatenate([z.conj()[:, ::-1], psi[:, :1] + 0j, z], axis=1)


def _halves(c: Array) -> tuple[Array, Array]:
    """Return c(G) and conj(c(-G)) over the upper half."""
    middle = c.shape[1] // 2
    return c[:, middle + 1 :], c[:, :middle][:, ::-1].conj()


def hamiltonian_at(basis: Basis, k: np.ndarray, ions: Mapping[str, Ion]) -> Hamiltonian:
    """Return the Hamiltonian at fractional k (3,), on real orbitals at Gamma."""
    kind = GammaHamiltonian if not np.any(k) else Hamiltonian
    return kind(basis, basis.sphere(k), ions)
