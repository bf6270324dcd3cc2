"""k points side by side: shared out over ranks, and over the threads of each.

With several k points each is computed by one thread and BLAS keeps to one thread (`blas_threads`), so the bits do not depend
on how many threads or ranks there are. With a single k point the threads go to BLAS and the transforms instead, and the last
bits may follow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from gewu.core.machine import one_blas_thread
from gewu.core.ranks import Ranks

T = TypeVar("T")


def threads() -> int:
    """Return the number of threads this process may use (OMP_NUM_THREADS, which `gewu.core.machine.set_threads` sets)."""
    return max(1, int(os.environ.get("OMP_NUM_THREADS", "1") or 1))


def blas_threads(k_points: int) -> AbstractContextManager[None]:
    """Hold BLAS to one thread while several k points are computed side by side."""
    return one_blas_thread() if k_points > 1 else nullcontext()


def mine(count: int, ranks: Ranks) -> list[int]:
    """Return the indices of this rank's k points."""
    return list(range(ranks.rank, count, ranks.size))


def on_threads(work: Callable[[int], T], items: list[int], workers: int, done: Callable[[], None] = lambda: None) -> list[T]:
    """Return [work(i) for i in items], computed on `workers` threads.

    `done` is called on the calling thread after each, and may raise to stop.
    """
    if min(workers, len(items)) <= 1:
        results = []
        for item in items:
            results.append(work(item))
            done()
        return results
    pool = ThreadPoolExecutor(min(workers, len(items)))
    try:
        futures = [pool.submit(work, item) for item in items]
        results = []
        for future in futures:
            results.append(future.result())
            done()
        return results
    finally:
        pool.shutdown(cancel_futures=True)


def in_order(by_rank: list[list[T]]) -> list[T]:
    """Interleave what round-robin ranks hold back into the order of the k points."""
    total = sum(len(rows) for rows in by_rank)
    return [by_rank[i % len(by_rank)][i // len(by_rank)] for i in range(total)]


def for_each_k(
    work: Callable[[int], T], count: int, ranks: Ranks, workers: int, done: Callable[[], None] = lambda: None
) -> list[T]:
    """Return [work(i) for i in range(count)] on every rank, computed by all; every rank calls `done` equally often."""
    own = mine(count, ranks)
    results = on_threads(work, own, workers, done)
    for _ in range(-(-count // ranks.size) - len(own)):
        done()
    return in_order(ranks.allgather(results))
