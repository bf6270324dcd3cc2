"""Ranges of compiled loops on Numba's threads: no interpreter between waking a thread and the first element.

A standing Python thread takes 20 to 30 us to wake, as long as 100,000 additions; Numba's threads take a third of that.  The
loops are called by address from a small parallel driver, compiled once and kept on disk.  One caller at a time: a second one,
in another Python thread, is told to go another way.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gewu.core.device import load_numba

_busy = threading.Lock()


@dataclass(frozen=True, slots=True)
class Parts:
    """A compiled loop and the ranges (n, 2) in which threads take it."""

    address: int
    ranges: NDArray[np.int64]


def address_of(function: Any) -> int:
    """Return the address of a function that ctypes calls."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@cache
def _drivers() -> tuple[Any, Any]:
    load_numba()
    from gewu.ops import native_loop

    return native_loop.nest, native_loop.blocks


def run_nest(address: int, args: int, sizes: int, parts: NDArray[np.int64]) -> bool:
    """Call `void f(ptr args, ptr sizes, i64 lo, i64 hi)` for each row of `parts`, at once.

    Returns:
        Whether it was done: not when another thread is doing the same.
    """
    if not _busy.acquire(blocking=False):
        return False
    try:
        _drivers()[0](address, args, sizes, parts)
    finally:
        _busy.release()
    return True


def run_blocks(address: int, args: int, grid: tuple[int, int, int], parts: NDArray[np.int64]) -> bool:
    """Call `void f(ptr args, i32 gx, i32 gy, i32 gz, i64 lo, i64 hi)` for each row of `parts`, at once; as `run_nest`."""
    if not _busy.acquire(blocking=False):
        return False
    try:
        _drivers()[1](address, args, *grid, parts)
    finally:
        _busy.release()
    return True
