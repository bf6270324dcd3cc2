"""Memory of processes that train on CPUs, with the GNU C library; elsewhere nothing here does anything.

XLA takes the memory of a step anew every time and frees it behind it. Pages that are new to a process are cleared by the system,
which costs a tenth of the step, or more under a hypervisor.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Final

SPARE: Final = 64 << 20
"""Bytes, untouched at first, below the memory of steps: what is taken meanwhile lies there and not behind it, where it would
keep the next step from taking the same place."""
_BAR: Final = 1 << 20
_TRIM, _MAPS, _MOST = -1, -4, (1 << 31) - 1
_kept: list[bool] = []


def keep() -> None:
    """Let this process keep the memory of a step for the next one; called before JAX starts, by those that do little else.

    Steps are then computed by the thread that asks for them, so that their memory comes and goes in one place, and what they
    free stays with the process. Not with several devices in one process.
    """
    import jax

    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", "") and jax.config.jax_num_cpu_devices < 2:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        _kept[:] = [True]


def settle() -> None:
    """Keep what is freed from now on, once in a process that is to `keep` it."""
    if _kept:
        _kept.clear()
        give_back()
        with suppress(AttributeError, OSError):
            library = ctypes.CDLL(None)
            library.mallopt(_MAPS, 0)
            library.mallopt(_TRIM, _MOST)
            _reserve(library)


def _reserve(library: ctypes.CDLL) -> None:
    """Make SPARE bytes free, with something behind them that stays."""
    library.malloc.restype, library.malloc.argtypes, library.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    spare = library.malloc(SPARE) or 0
    bars = [library.malloc(_BAR) or spare]
    while bars[-1] < spare:
        bars.append(library.malloc(_BAR) or spare)
    for place in (spare, *bars[:-1]):
        library.free(place)


def give_back() -> None:
    """Return memory that is free but held by the C library, such as the compiler's, to the system."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
