"""Lowest eigenpairs of H by block Davidson with locking.

The search space grows by the preconditioned residuals of the bands that are not converged yet; the projected matrices grow by
their rows only, so each step costs one application of H and a few thin products per open band. No basis is orthogonalised: the
projected problem is the generalised one, and a space that has become linearly dependent is collapsed to its Ritz vectors.

A band is converged when |H psi - eps psi| is below its tolerance; the error of eps is then of the order of the square.

References: Davidson, J. Comput. Phys. 17, 87 (1975); preconditioner as in Giannozzi et al., J. Phys. Condens. Matter 21,
395502 (2009).
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np

from gewu.core.arrays import Array
from gewu.core.random import uniform
from gewu.physics.dft.hamiltonian import Hamiltonian

SPACE = 4  # the search space holds at most this many blocks of bands
START_WAVES = 120  # plane waves, at least, in the dense problem that starts a run


class Eigenpairs(NamedTuple):
    """Result of a diagonalisation.

    Attributes:
        eps: (bands,) energies, Ha, ascending, in host memory.
        psi: (bands, npw) orthonormal, on the device.
        residual: (bands,) |H psi - eps psi|, Ha, in host memory.
        applied: number of bands to which H was applied.
    """

    eps: np.ndarray
    psi: Array
    residual: np.ndarray
    applied: int


class SearchSpace:
    """Vectors v (rows), their images H v, and the projected matrices <v|v> and <v|H v>."""

    def __init__(self, h: Hamiltonian, psi: Array) -> None:
        xp, bands = h.xp, len(psi)
        self.h, self.bands = h, bands
        self.capacity = max(min(SPACE * bands, h.npw), bands)
        self.v, self.hv = (xp.empty((self.capacity, h.npw), h.dtype) for _ in range(2))
        self.s_red, self.h_red = (xp.zeros((self.capacity, self.capacity), h.dtype) for _ in range(2))
        self.used = self.applied = 0
        self.add(psi)

    def add(self, new: Array) -> None:
        """Append vectors (n, npw) and apply H to them."""
        self._append(new, self.h.apply(new))
        self.applied += len(new)

    def _append(self, new: Array, h_new: Array) -> None:
        first, last = self.used, self.used + len(new)
        self.v[first:last], self.hv[first:last] = new, h_new
        left = new.conj()
        for reduced, right in ((self.s_red, self.v), (self.h_red, self.hv)):
            rows = left @ right[:last].T
            reduced[first:last, :last] = rows
            reduced[:last, first:last] = rows.conj().T
        self.used = last

    def ritz(self) -> tuple[np.ndarray, Array]:
        """Return the lowest eigenpairs of the projected problem."""
        n = self.used
        return self.h.basis.arrays.eigh(self.h_red[:n, :n], self.s_red[:n, :n], self.bands)

    def expand(self, u: Array) -> tuple[Array, Array]:
        """Return the vectors (m, npw) of coefficients u (used, m), and their images."""
        return u.T @ self.v[: self.used], u.T @ self.hv[: self.used]

    def collapse(self, u: Array) -> None:
        """Replace the space by its Ritz vectors u (used, bands)."""
        psi, h_psi = self.expand(u)
        self.used = 0
        self._append(psi, h_psi)


def davidson(h: Hamiltonian, psi: Array, tolerance: np.ndarray, max_steps: int = 40) -> Eigenpairs:
    """Return the lowest eigenpairs of `h`, starting from `psi`.

    Args:
        h: Hamiltonian with its potential set.
        psi: (bands, npw) start vectors.
        tolerance: (bands,) residual norm below which a band is left alone, Ha.
        max_steps: expansions of the search space before giving up (the residuals returned tell).
    """
    arrays, bands = h.basis.arrays, len(psi)
    if h.npw <= 2 * bands:
        return _dense(h, bands)
    diagonal = h.kinetic + h.nonlocal_diagonal + h.potential.mean()
    every = np.arange(bands)
    space = SearchSpace(h, psi)
    try:
        eps, u = space.ritz()
    except np.linalg.LinAlgError:  # dependent start vectors: QR replaces those by directions of its own
        space = SearchSpace(h, h.xp.linalg.qr(psi.T)[0].T)
        eps, u = space.ritz()
    active = every
    for _ in range(max_steps):
        x, r, size = _residuals(space, eps, u, active)
        unfinished = size > tolerance[active]
        if not unfinished.any():
            if len(active) == bands:
                return Eigenpairs(eps, x, size, space.applied)
            active = every  # all seem converged: look at every band once more before believing it
            continue
        active, r = active[unfinished], r[arrays.put(np.flatnonzero(unfinished))]
        if space.used + len(active) > space.capacity:
            space.collapse(u)
            u = h.xp.eye(bands, dtype=h.dtype)
        space.add(_precondition(h.xp, r, diagonal, arrays.put(eps[active])))
        try:
            eps, u = space.ritz()
        except np.linalg.LinAlgError:  # the new vectors depend on the old ones: drop them and start from the Ritz vectors
            space.used -= len(active)
            if space.used == bands:
                break  # nothing new can be told from rounding: the residuals returned are the best that can be had
            space.collapse(u)
            u = h.xp.eye(bands, dtype=h.dtype)
    x, _, size = _residuals(space, eps, u, every)
    return Eigenpairs(eps, x, size, space.applied)


def start_vectors(h: Hamiltonian, bands: int, seed: int, stream: int) -> Array:
    """Return start vectors (bands, npw): eigenvectors among the longest waves, plus a little counter-based noise.

    The noise breaks symmetries that the few waves would otherwise impose; its key is (seed, stream), so that each k point gets
    the same numbers on any number of ranks.
    """
    arrays, grid = h.basis.arrays, h.basis.grid
    order = h.waves(min(h.npw, max(START_WAVES, 3 * bands)))
    g = h.sphere.g[order]
    v_g = np.fft.fftn(arrays.get(h.potential)) / h.basis.size
    matrix = v_g[tuple(np.moveaxis((g[:, None] - g[None]) % grid, -1, 0))]
    beta = arrays.get(h.unpack(h.beta))[:, order]
    matrix += beta.T @ arrays.get(h.d) @ beta.conj() + np.diag(h.sphere.kinetic[order])
    index = np.arange(bands * h.npw)
    noise = [uniform(seed, 2 * stream + part, index).reshape(bands, h.npw) - 0.5 for part in (0, 1)]
    psi = 0.02 * (noise[0] + 1j * noise[1]) / (1 + h.sphere.kinetic) ** 2
    psi[:, order] += h.eigenvectors(matrix)[:, :bands].T
    return h.pack(arrays.put(psi))


def _dense(h: Hamiltonian, bands: int) -> Eigenpairs:
    """Diagonalise H in the whole of a small basis."""
    xp, arrays = h.xp, h.basis.arrays
    one = xp.eye(h.npw, dtype=h.dtype)
    matrix = h.apply(one)  # row j is H e_j, so H_ij = matrix[j, i]
    eps, u = arrays.eigh(0.5 * (matrix.T + matrix.conj()), one, bands)
    psi = u.T
    r = h.apply(psi) - arrays.put(eps)[:, None] * psi
    return Eigenpairs(eps, psi, np.sqrt(arrays.get(_norm2(r))), h.npw + bands)


def _norm2(r: Array) -> Array:
    return (r.real**2 + r.imag**2 if r.dtype.kind == "c" else r * r).sum(-1)


def _residuals(space: SearchSpace, eps: np.ndarray, u: Array, active: np.ndarray) -> tuple[Array, Array, np.ndarray]:
    arrays = space.h.basis.arrays
    x, hx = space.expand(u if len(active) == space.bands else u[:, arrays.put(active)])
    r = hx - arrays.put(eps[active])[:, None] * x
    return x, r, np.sqrt(arrays.get(_norm2(r)))


def _precondition(xp: ModuleType, r: Array, diagonal: Array, eps: Array) -> Array:
    """Divide by a smooth positive form of (diagonal - eps), which tends to it where it is large, and normalise."""
    x = 2 * (diagonal - eps[:, None])  # in Ry, the scale on which the form was tuned
    new = r / (1 + x + xp.sqrt(1 + (x - 1) ** 2))
    return new / xp.sqrt(_norm2(new))[:, None]
