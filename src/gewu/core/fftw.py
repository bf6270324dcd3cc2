"""Pruned transforms of wavefunctions through FFTW, in place on one buffer per thread.

FFTW chooses its algorithm by timing a few, so two runs can differ in the last bits: the one promise that this path does not keep.
Inside a run all ranks and threads make the same choice, and so does a run that is resumed: `plans` (FFTW's wisdom) goes from the
root to the other ranks and into checkpoints.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyfftw
import scipy.fft

from gewu.core.namespace import Array, Arrays

Shape = tuple[int, int, int]
_PLANNER = threading.Lock()  # FFTW plans one at a time


class _Transform(NamedTuple):
    """A buffer (n1, n2, n3) and the passes over it, each skipping what is zero."""

    buffer: np.ndarray[Any, Any]
    to_grid: tuple[Callable[[], Any], ...]
    to_box: tuple[Callable[[], Any], ...]


class FftwArrays(Arrays):
    """NumPy arrays whose pruned transforms run in FFTW.

    Args:
        threads: threads that one transform may use.
    """

    name = "NumPy, FFTW"

    def __init__(self, threads: int = 1) -> None:
        super().__init__(np, scipy.fft, host=True, threads=threads)
        self._threads = threads
        self._local = threading.local()

    def box_to_grid(self, box: Array, grid: Shape) -> Array:
        """See `Arrays.box_to_grid`; b must be 1, and the result is this thread's buffer."""
        m1, m2, m3 = box.shape[1:]
        transform = self._transform(grid, (m1, m2, m3))
        f = transform.buffer
        f[:m1, :m2, :m3] = box[0]
        f[:m1, :m2, m3:] = 0
        f[:m1, m2:] = 0
        f[m1:] = 0
        for execute in transform.to_grid:
            execute()
        return f[None]

    def grid_to_box(self, f: Array, shape: Shape) -> Array:
        """See `Arrays.grid_to_box`; b must be 1."""
        transform = self._transform(f.shape[1:], shape)
        if not np.may_share_memory(f, transform.buffer):  # not what `box_to_grid` returned on this thread
            transform.buffer[:] = f[0]
        for execute in transform.to_box:
            execute()
        return transform.buffer[None, : shape[0], : shape[1], : shape[2]] * (1.0 / transform.buffer.size)

    def batch(self, grid: Shape) -> int:
        """Return 1: one function at a time stays in the cache."""
        return 1

    def prepare(self, grid: Shape, box: Shape) -> None:
        """Plan now; other threads then find FFTW's choice made."""
        self._transform(grid, box)

    def plans(self) -> list[bytes]:
        """Return FFTW's wisdom."""
        return list(pyfftw.export_wisdom())

    def use_plans(self, kept: list[bytes]) -> None:
        """Take up FFTW's wisdom."""
        if kept:
            pyfftw.import_wisdom(tuple(kept))

    def _transform(self, grid: Shape, box: Shape) -> _Transform:
        known: dict[tuple[Shape, Shape], _Transform] = self._local.__dict__.setdefault("known", {})
        if (grid, box) not in known:
            with _PLANNER:
                known[grid, box] = _plan(grid, box, self._threads)
        return known[grid, box]


def _plan(grid: Shape, box: Shape, threads: int) -> _Transform:
    f = pyfftw.zeros_aligned(grid, dtype=np.complex128)
    parts = ((f[: box[0], : box[1]], 2), (f[: box[0]], 1), (f, 0))

    def passes(direction: str) -> list[Callable[[], Any]]:
        options: dict[str, Any] = {"direction": direction, "flags": ("FFTW_MEASURE",), "threads": threads}
        return [pyfftw.FFTW(part, part, axes=(axis,), **options).execute for part, axis in parts]

    return _Transform(f, tuple(passes("FFTW_BACKWARD")), tuple(reversed(passes("FFTW_FORWARD"))))
