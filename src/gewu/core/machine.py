"""The machine under a run: cores, memory, devices, threads, and whether its JAX can be trusted.

Limits that a container or a batch system sets (affinity, cgroup quota and memory) count, not what the hardware has. Everything
here is cheap and reads /proc and /sys; what the system does not tell is left out, never guessed.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import math
import os
import platform
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gewu.core.errors import GewuError, InputError, ResourceError

_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMBA_NUM_THREADS")
_BLAS_SETTERS: Final = ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads", "openblas_set_num_threads")


def extra(module: str, name: str = "data") -> Any:
    """Import a module that only an extra of gewu installs.

    Raises:
        ResourceError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ResourceError(f"needs the package {module.split('.')[0]}", hint=f"pip install 'gewu[{name}]'") from error


def describe(*, with_gpus: bool = False) -> dict[str, Any]:
    """Describe this machine for the manifest.

    Args:
        with_gpus: also ask the CUDA driver, which is slow the first time.

    Returns:
        `host`, `platform`, `cpu`, `cores` (usable), `memory_bytes` (available now; None when unknown) and `gpus` (names).
    """
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_bytes": available_memory(),
        "gpus": list(gpus()) if with_gpus else [],
    }


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")) or "", re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def gpus() -> tuple[str, ...]:
    """Return the names of the NVIDIA GPUs that Numba can use; empty without driver or GPU."""
    try:
        from numba import cuda

        if not cuda.is_available():
            return ()
        names = [getattr(device, "name", "simulated device") for device in cuda.gpus]
    except (ImportError, RuntimeError, OSError):
        return ()
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use: its affinity, or less when the control group has a quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _control_groups(root):
        quota = (_text(group / "cpu.max") or "max").split()
        if len(quota) == 2 and quota[0].isdecimal() and int(quota[1]) > 0:
            count = min(count, math.ceil(int(quota[0]) / int(quota[1])))
    return max(1, count)


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that can still be taken without swapping, within the control group's limit; None when unknown."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(root / "proc/meminfo") or "", re.MULTILINE)
    rooms = [int(found.group(1)) * 1024] if found else []
    for group in _control_groups(root):
        limit, used = _text(group / "memory.max") or "", _text(group / "memory.current") or ""
        if limit.strip().isdecimal() and used.strip().isdecimal():
            cached = re.search(r"^inactive_file (\d+)$", _text(group / "memory.stat") or "", re.MULTILINE)
            rooms.append(max(0, int(limit) - int(used) + (int(cached.group(1)) if cached else 0)))
    old = re.search(
        r"^\d+:memory:(/.*)$", _text(root / "proc/self/cgroup") or "", re.MULTILINE
    )  # version 1, as older centres have it
    if old and ".." not in old.group(1):
        group = root / "sys/fs/cgroup/memory" / old.group(1).lstrip("/")
        limit, used = _text(group / "memory.limit_in_bytes") or "", _text(group / "memory.usage_in_bytes") or ""
        if limit.strip().isdecimal() and used.strip().isdecimal():
            rooms.append(max(0, int(limit) - int(used)))
    return min(rooms) if rooms else None


def _control_groups(root: Path) -> list[Path]:
    """Return the folders of the control group (version 2) of this process and of all groups above it."""
    found = re.search(r"^0::/(.*)$", _text(root / "proc/self/cgroup") or "", re.MULTILINE)
    base = root / "sys/fs/cgroup"
    if not found or ".." in found.group(1):
        return [base]
    group = base / found.group(1)
    return [group, *(parent for parent in group.parents if parent.is_relative_to(base))]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def require_memory(nbytes: int, what: str, hint: str) -> None:
    """Refuse work that would not fit into memory, before anything is allocated.

    Args:
        nbytes: estimate of the peak, in bytes, of this process.
        what: what needs it, for the message ("the wavefunctions").
        hint: how the user can need less.

    Raises:
        ResourceError: the estimate is above what is available; the message holds both figures.
    """
    available = available_memory()
    if available is not None and nbytes > available:
        message = f"{what} would need {nbytes / 2**30:.3g} GiB of memory, {available / 2**30:.3g} GiB are available"
        raise ResourceError(message, hint=hint)


def set_threads(count: int) -> int:
    """Set the threads of Numba and of the BLAS in this process.

    Libraries that are not loaded yet read the environment, so call it early; Numba and OpenBLAS follow also when already loaded
    (Numba never above the number it was loaded with).

    Args:
        count: threads; 0 means all usable cores.

    Returns:
        The number set.

    Raises:
        InputError: a negative count.
    """
    if count < 0:
        raise InputError("the number of threads must not be negative", value=count, allowed="0 (all usable cores) or more")
    count = count or cores()
    if "numba" in sys.modules:
        import numba

        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    else:
        os.environ["NUMBA_NUM_THREADS"] = str(count)
    for name in _THREAD_VARIABLES[:-1]:
        os.environ[name] = str(count)
    for setter, _ in _openblas_calls():
        setter(ctypes.c_int(count))
    return count


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold OpenBLAS to one thread inside, for code that brings its own threads or wants the same bits for any number of them."""
    found = [(setter, getter()) for setter, getter in _openblas_calls()]
    for setter, _ in found:
        setter(ctypes.c_int(1))
    try:
        yield
    finally:
        for setter, before in found:
            setter(ctypes.c_int(before))


def _openblas_calls() -> list[tuple[Any, Any]]:
    """Return (set, get) the number of threads, for each OpenBLAS in this process."""
    calls = []
    for library in _loaded_openblas():
        for name in _BLAS_SETTERS:
            if hasattr(library, name):
                calls.append((getattr(library, name), getattr(library, name.replace("_set_", "_get_"))))
                break
    return calls


def _loaded_openblas() -> list[ctypes.CDLL]:
    """Return every OpenBLAS already in this process (NumPy and SciPy each bring their own)."""
    maps = _text(Path("/proc/self/maps")) or ""
    paths = sorted({match.group(1) for match in re.finditer(r"(/\S*openblas\S*\.so\S*)$", maps, re.MULTILINE)})
    return [ctypes.CDLL(path) for path in paths]


@functools.cache
def check_jax() -> None:
    """Compute a sum that some versions of JAX get wrong, once per process, before anything else uses JAX.

    JAX 0.10.2 and 0.11.0 to 0.11.1 compile this pattern on CPU to code that returns wrong last rows without any message.

    Raises:
        GewuError: the installed JAX gives a wrong answer.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    rows = 32769  # wrong only in the rows that remain after the vector blocks
    index = np.arange(rows, dtype=np.float32)
    points = jnp.stack((jnp.asarray(index), jnp.zeros(rows, jnp.float32), jnp.zeros(rows, jnp.float32)), axis=1)
    identity = jnp.eye(3, dtype=jnp.float32)
    squares = np.asarray(jax.jit(jax.vmap(lambda point: jnp.sum((identity @ point) ** 2)))(points))
    # GPUs may multiply with 10-bit mantissas (TF32): 2e-3; the fault is 8e-3.
    if not np.allclose(squares, index * index, rtol=4e-3, atol=0.0):
        allowed = "jax>=0.10.1,!=0.10.2,!=0.11.0,!=0.11.1"
        raise GewuError(
            f"jax {jax.__version__} computes wrong numbers on this machine", allowed=allowed, hint="install jax==0.10.1"
        )
