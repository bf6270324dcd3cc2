"""The Kohn-Sham Hamiltonian of one k point and the energy of each of its terms.

    H = -1/2 nabla^2 + V_loc(r) + sum_a,ij |beta_i^a> D_ij <beta_j^a|

The kinetic term is diagonal in G, the local potential in r, and the projectors are a thin matrix: applying H to a block of n
bands costs two pruned FFTs a band and two matrix products of n x npw x n_proj.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gewu.core.arrays import Array
from gewu.physics.dft.basis import Basis, Sphere
from gewu.physics.dft.crystal import Crystal
from gewu.physics.dft.pseudo import Ion


class Hamiltonian:
    """H at one k point. Set `potential` (n1, n2, n3), the local potential in Ha, before applying.

    Args:
        basis: grid and transforms.
        sphere: plane waves of the k point.
        ions: form factors by element.
    """

    dtype = np.dtype(complex)

    def __init__(self, basis: Basis, sphere: Sphere, ions: Mapping[str, Ion]) -> None:
        put = basis.arrays.put
        self.basis, self.sphere, self.xp = basis, sphere, basis.arrays.xp
        beta, d = projectors(basis.crystal, sphere, ions)
        self.kinetic, self.index = put(sphere.kinetic), put(sphere.index)
        self.beta, self.d = put(beta), put(d)
        self.beta_dagger = put(np.ascontiguousarray(beta.conj().T))
        self.nonlocal_diagonal = put(
            np.einsum("ig,ij,jg->g", beta.conj(), d, beta, optimize=True).real if len(beta) else 0 * sphere.kinetic
        )
        self.potential: Array = None

    @property
    def npw(self) -> int:
        """Number of plane waves."""
        return len(self.sphere.kinetic)

    def pack(self, c: Array) -> Array:
        """Return orbitals as this class keeps them, from complex coefficients (n, npw)."""
        return c

    def unpack(self, psi: Array) -> Array:
        """Return the complex coefficients (n, npw) of orbitals: the inverse of `pack`."""
        return psi

    def waves(self, count: int) -> np.ndarray:
        """Return the indices of the `count` longest waves."""
        return np.argsort(self.sphere.kinetic, kind="stable")[:count]

    def eigenvectors(self, matrix: np.ndarray) -> np.ndarray:
        """Return eigenvectors (columns, by ascending energy) of H among some waves, given its matrix there."""
        u: np.ndarray = np.linalg.eigh(matrix)[1]
        return u

    def apply(self, psi: Array) -> Array:
        """Return H psi for a block of bands (n, npw)."""
        out = psi * self.kinetic
        self._add_local(psi, out)
        if len(self.d):
            out += ((psi @ self.beta_dagger) @ self.d) @ self.beta
        return out

    def _add_local(self, psi: Array, out: Array) -> None:
        basis, step = self.basis, self.basis.arrays.batch(self.basis.grid)
        for first in range(0, len(psi), step):
            f = basis.wave_to_grid(self.sphere, self.index, psi[first : first + step])
            f *= self.potential
            out[first : first + step] += basis.wave_to_sphere(self.sphere, self.index, f)

    def kinetic_energy(self, psi: Array) -> Array:
        """Return <psi|T|psi> of each band (n,)."""
        return ((psi.real**2 + psi.imag**2) * self.kinetic).sum(-1)

    def nonlocal_energy(self, psi: Array) -> Array:
        """Return <psi|V_nl|psi> of each band (n,)."""
        overlap = psi @ self.beta_dagger
        return ((overlap @ self.d) * overlap.conj()).real.sum(-1)

    def add_density(self, psi: Array, occupation: Array, out: Array) -> None:
        """Add sum_n f_n |psi_n(r)|^2 / Omega to `out` (n1, n2, n3)."""
        basis, step = self.basis, self.basis.arrays.batch(self.basis.grid)
        for first in range(0, len(psi), step):
            f = basis.wave_to_grid(self.sphere, self.index, psi[first : first + step])
            weight = occupation[first : first + step] / basis.crystal.volume
            out += self.xp.tensordot(weight, f.real**2 + f.imag**2, 1)


def projectors(crystal: Crystal, sphere: Sphere, ions: Mapping[str, Ion]) -> tuple[np.ndarray, np.ndarray]:
    """Return all projectors (n_proj, npw) on the plane waves and their strengths D (n_proj, n_proj) in Ha.

    <k+G|beta_alm> = (-i)^l beta_l(|k+G|) Y_lm(k+G) exp(-i (k+G).tau_a) / sqrt(Omega); `beta` holds the rows <k+G|beta>, so that
    V_nl psi = beta^T D (conj(beta) psi) in the layout psi (n, npw).
    """
    q = np.linalg.norm(sphere.kpg, axis=1)
    rows: list[np.ndarray] = []
    blocks: list[np.ndarray] = []
    shapes = {symbol: _angular(ion, q, sphere.kpg, crystal.volume) for symbol, ion in ions.items()}
    for symbol, x in zip(crystal.symbols, crystal.frac, strict=True):
        shape, d = shapes[symbol]
        rows.append(shape * np.exp(-2j * np.pi * ((sphere.g + sphere.k) @ x)))
        blocks.append(d)
    total = sum(len(b) for b in blocks)
    d_all = np.zeros((total, total))
    at = 0
    for block in blocks:
        d_all[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    return np.concatenate(rows) if rows else np.zeros((0, len(q)), complex), d_all


def _angular(ion: Ion, q: np.ndarray, kpg: np.ndarray, volume: float) -> tuple[np.ndarray, np.ndarray]:
    """Projectors of an ion at the origin, one row for each (projector, m), and D expanded over m."""
    rows, label = [], []
    for i, (l, radial) in enumerate(ion.projectors):
        f = (-1j) ** l * radial(q) / np.sqrt(volume)
        for m, y in enumerate(spherical_harmonics(l, kpg)):
            rows.append(f * y)
            label.append((i, m))
    d = np.array(
        [[ion.d_ij[i, j] * (m == n) * (ion.projectors[i][0] == ion.projectors[j][0]) for j, n in label] for i, m in label]
    )
    return np.array(rows).reshape(len(label), len(q)), d.reshape(len(label), len(label))


def spherical_harmonics(l: int, v: np.ndarray) -> list[np.ndarray]:
    """Return the 2l+1 real spherical harmonics of directions v (n, 3), l <= 3; zero for l > 0 at v = 0."""
    r = np.linalg.norm(v, axis=-1)
    x, y, z = (v / np.where(r < 1e-12, 1.0, r)[:, None]).T
    c = np.sqrt((2 * l + 1) / (4 * np.pi))
    if l == 0:
        return [np.full(len(v), c)]
    if l == 1:
        return [c * x, c * y, c * z]
    s3 = np.sqrt(3.0)
    if l == 2:
        terms = [s3 * x * y, s3 * y * z, s3 * z * x, s3 / 2 * (x * x - y * y), (3 * z * z - 1) / 2]
    elif l == 3:
        s15, s6, s10 = np.sqrt(15.0), np.sqrt(6.0), np.sqrt(10.0)
        terms = [
            z * (5 * z * z - 3) / 2,
            s6 / 4 * x * (5 * z * z - 1),
            s6 / 4 * y * (5 * z * z - 1),
            s15 / 2 * z * (x * x - y * y),
            s15 * x * y * z,
            s10 / 4 * x * (x * x - 3 * y * y),
            s10 / 4 * y * (3 * x * x - y * y),
        ]
    else:
        raise ValueError(f"spherical harmonics of l = {l} are not tabulated (l <= 3)")
    return [c * np.where(r < 1e-12, 0.0, t) for t in terms]
