"""Standing threads that take ranges of a loop one by one; compiled code runs without the interpreter's lock."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Final

import numpy as np

THREADS: Final = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Processors that this process may use."""

_Work = Callable[[int, int], None]
_tasks: SimpleQueue[tuple[_Work, Iterator[tuple[int, int]], SimpleQueue[BaseException | None]]] = SimpleQueue()
_started = 0
_process = 0
_lock = threading.Lock()
_local = threading.local()
_BYTE: Final = ctypes.c_char
KEPT: Final = 64 << 20
"""Bytes of scratch memory that a thread keeps."""


@dataclass(slots=True)
class Memory:
    """Bytes aligned to 64, and what holds them."""

    address: int
    holder: Any


def memory(count: int) -> Memory:
    """Return fresh memory for `count` bytes."""
    held = np.empty(count + 64, np.uint8)
    return Memory(-(-held.ctypes.data // 64) * 64, held)


def address(a: np.ndarray[Any, Any]) -> int:
    """Return where the elements of a contiguous array lie."""
    try:
        return ctypes.addressof(_BYTE.from_buffer(a))  # a quarter of the time of a.ctypes
    except (TypeError, ValueError, BufferError):  # read-only, empty, or of a type that buffers do not know
        return int(a.ctypes.data)


def scratch(name: str, count: int) -> Memory:
    """Return this thread's own memory of a name for `count` bytes; up to KEPT bytes it is kept for the next use."""
    if count > KEPT:
        return memory(count)
    held: Memory | None = getattr(_local, name, None)
    if held is None or held.holder.size < count + 64:
        held = memory(count)
        setattr(_local, name, held)
    return held


def _serve() -> None:
    while True:
        work, ranges, done = _tasks.get()
        done.put(_drain(work, ranges))
        del work, ranges, done


def _drain(work: _Work, ranges: Iterator[tuple[int, int]]) -> BaseException | None:
    try:
        for lo, hi in ranges:
            work(lo, hi)
    except BaseException as error:  # handed to the caller
        return error
    return None


def _start(wanted: int) -> None:
    global _started, _process, _tasks
    with _lock:
        if _process != os.getpid():  # threads do not survive a fork
            _process, _started, _tasks = os.getpid(), 0, SimpleQueue()
        while _started < wanted:
            threading.Thread(target=_serve, name=f"gewu-ops-{_started}", daemon=True).start()
            _started += 1


def run_ranges(work: _Work, ranges: Sequence[tuple[int, int]], threads: int) -> None:
    """Call `work(lo, hi)` for all ranges on this thread and up to `threads - 1` standing ones; return when all are done.

    Raises:
        Exception: the first one that `work` raised.
    """
    helpers = min(threads, len(ranges)) - 1
    if _started < helpers or _process != os.getpid():
        _start(helpers)
    shared, done = iter(ranges), SimpleQueue()
    for _ in range(helpers):
        _tasks.put((work, shared, done))
    first = _drain(work, shared)
    for _ in range(helpers):
        first = done.get() or first
    if first is not None:
        raise first
