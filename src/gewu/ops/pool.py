"""Standing threads that take ranges of a loop one by one; compiled code runs without the interpreter's lock."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Final

THREADS: Final = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Processors that this process may use."""

_Work = Callable[[int, int], None]
_tasks: SimpleQueue[tuple[_Work, Iterator[tuple[int, int]], SimpleQueue[BaseException | None]]] = SimpleQueue()
_started = 0
_process = 0
_lock = threading.Lock()


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
