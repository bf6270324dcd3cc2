"""The array namespace: NumPy or CuPy with the few operations that the two spell differently.

Fourier convention everywhere in gewu: f(r) = sum_G f_G exp(+i G r), so `fft` divides by the length and `ifft` does not.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray
DEPENDENT = 1e-4  # distance of a unit vector from the span of those before it, below which `eigh` refuses the basis


class Arrays:
    """An array namespace with its transforms and factorisations.

    Args:
        xp: the NumPy-like module that makes and computes arrays.
        fft: the SciPy-like module of Fourier transforms on those arrays.
        host: True when arrays live in host memory.
        threads: threads the transforms may use (host only).
    """

    name = "CuPy"

    def __init__(self, xp: ModuleType, fft: ModuleType, *, host: bool, threads: int = 1) -> None:
        self.xp, self._fft, self.host = xp, fft, host
        self._options: dict[str, Any] = {"norm": "forward"} | ({"workers": threads} if host else {})

    def put(self, array: Any) -> Array:
        """Return `array` in the memory of this device."""
        return self.xp.asarray(array)

    def get(self, array: Array) -> np.ndarray[Any, Any]:
        """Return `array` in host memory."""
        return np.asarray(array) if self.host else array.get()

    def fft(self, array: Array, axis: int, n: int | None = None) -> Array:
        """Return the transform to reciprocal space along one axis, divided by its length."""
        return self._fft.fft(array, n, axis=axis, **self._options)

    def ifft(self, array: Array, axis: int, n: int | None = None) -> Array:
        """Return the transform to real space along one axis, zero-padded at its end to `n`."""
        return self._fft.ifft(array, n, axis=axis, **self._options)

    def rfftn(self, array: Array) -> Array:
        """Return the reciprocal half-space coefficients of a real 3-D array."""
        return self._fft.rfftn(array, **self._options)

    def irfftn(self, array: Array, shape: tuple[int, ...]) -> Array:
        """Return the real 3-D array of `shape` from its half-space coefficients."""
        return self._fft.irfftn(array, shape, **self._options)

    def box_to_grid(self, box: Array, grid: tuple[int, int, int]) -> Array:
        """Return functions (b, n1, n2, n3) on a grid from coefficients (b, m1, m2, m3) of the lowest frequencies 0 <= G < m.

        Three passes of 1-D transforms that skip the columns known to be zero. The result may be a buffer that the next call on
        this thread overwrites.
        """
        f = self.ifft(box, 3, grid[2])
        f = self.ifft(f, 2, grid[1])
        return self.ifft(f, 1, grid[0])

    def grid_to_box(self, f: Array, shape: tuple[int, int, int]) -> Array:
        """Return the coefficients (b, m1, m2, m3) of functions (b, n1, n2, n3): `box_to_grid` reversed. May overwrite `f`."""
        f = self.fft(f, 1)[:, : shape[0]]
        f = self.fft(f, 2)[:, :, : shape[1]]
        return self.fft(f, 3)[..., : shape[2]]

    def batch(self, grid: tuple[int, int, int]) -> int:
        """Return how many functions on a grid to transform at once: what stays in the caches of a CPU, what fills a GPU."""
        return 64

    def prepare(self, grid: tuple[int, int, int], box: tuple[int, int, int]) -> None:
        """Do ahead of time whatever `box_to_grid` and `grid_to_box` need for these shapes."""

    def plans(self) -> list[bytes]:
        """Return what a later process needs to choose the same algorithms: kept in checkpoints."""
        return []

    def use_plans(self, kept: list[bytes]) -> None:
        """Choose algorithms as the process did that called `plans`."""

    def eigh(self, a: Array, b: Array, count: int) -> tuple[np.ndarray[Any, Any], Array]:
        """Solve a x = e b x for the lowest `count` pairs; a Hermitian, b Hermitian positive definite.

        Returns:
            eigenvalues (count,) ascending in host memory, and eigenvectors (n, count) on the device, b-orthonormal.

        Raises:
            numpy.linalg.LinAlgError: b is not positive definite, or so nearly singular that half of the digits would be lost.
        """
        low = self.xp.linalg.cholesky(b)
        pivot = float(self.xp.diagonal(low).real.min())  # NumPy raises on failure, CuPy returns NaN
        if not pivot > DEPENDENT:
            raise np.linalg.LinAlgError(f"overlap matrix is nearly singular (pivot {pivot:.1e})")
        inverse = self.xp.linalg.inv(low)
        e, v = self.xp.linalg.eigh(inverse @ a @ inverse.conj().T)
        return self.get(e)[:count], inverse.conj().T @ v[:, :count]
