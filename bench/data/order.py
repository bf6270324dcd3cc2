"""Case `order-1e11`: indices of a shuffled order of 10^11 samples, beside NumPy's permutation of 10^7.

`ours` and `theirs` are ns an index, each program in its own process, in turn: ten pieces of 10^6 indices at random places of the
order, and `numpy.random.Generator.permutation(10**7)` divided by 10^7. NumPy's needs 8 bytes a sample, so 10^11 are out of its
reach; what it would take is not extrapolated here. `accuracy` holds the other bars: ns a shard lookup (400,000 unequal shards,
10^6 random samples), how many of the sampled inverses are exact, chi2 of the histogram of samples over its degrees of freedom
(999), bytes that the orders hold, and what the process grew by while it drew.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.run import compare, versions

REPOSITORY = Path(__file__).resolve().parents[2]
N, PIECE, PIECES, SHARDS, NUMPY_N = 10**11, 10**6, 10, 400_000, 10**7
G = np.array([0x9E3779B97F4A7C15], np.uint64)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure both programs in turn; return the record of the case."""
    turns = [(child("ours"), child("theirs")) for _ in range(options.repeats + 1)][1:]  # the first fills the cache of kernels
    ours, theirs = ([turn[side]["ns_per_index"] for turn in turns] for side in (0, 1))
    facts = {key: median(turn[0][key] for turn in turns) for key in turns[0][0] if key != "ns_per_index"}
    facts["numpy_growth_mib"] = median(turn[1]["growth_mib"] for turn in turns)
    record = {
        "case": "order-1e11",
        "peer": "numpy-permutation",
        **compare(ours, theirs, "ns"),
        "accuracy": {key: float(f"{value:.4g}") for key, value in facts.items()},
        "versions": versions("gewu", "numpy", "numba"),
    }
    print(f"order-1e11 numpy-permutation: {record['ratio']} {json.dumps(record['accuracy'])}", file=sys.stderr, flush=True)
    return [record]


def child(side: str) -> dict[str, float]:
    """Run one side in its own process and return what it prints.

    Raises:
        RuntimeError: it ends with an error.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.data.order", side]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"order-1e11, {side}: {done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def ns(work: Callable[[], object], items: int) -> float:
    """Return the time of one call in ns an item."""
    start = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - start) / items


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def held(make: Callable[[], object]) -> int:
    """Return the bytes that what `make` returns holds."""
    make()
    tracemalloc.start()
    kept = make()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return size


def ours() -> dict[str, float]:
    """Measure gewu's orders."""
    from gewu.data.order import Order, WindowOrder, cumulative, lookup

    rng = np.random.default_rng(0)
    order = Order(N, seed=3)
    order.inverse(order.take(0, 1000))
    starts = rng.integers(0, N - PIECE, PIECES).tolist()
    before = peak_mib()
    found = {"ns_per_index": median(ns(lambda at=at: order.take(at, at + PIECE), PIECE) for at in starts)}
    found["growth_mib"] = peak_mib() - before
    sizes = unequal(rng)
    first, windows = cumulative(sizes), WindowOrder(sizes, seed=3)
    samples = rng.integers(0, N, PIECE).astype(np.uint64)
    lookup(first, windows.inverse(windows.take(0, 1000)))
    found["ns_per_index_batches_of_256"] = ns(lambda: [order.take(at, at + 256) for at in range(0, 256 * 1000, 256)], 256_000)
    found["ns_per_index_windows"] = median(ns(lambda at=at: windows.take(at, at + PIECE), PIECE) for at in starts[:3])
    found["ns_per_shard_lookup"] = median(ns(lambda: lookup(first, samples), PIECE) for _ in range(3))
    positions = rng.integers(0, N, PIECE).astype(np.uint64)
    found["ns_per_inverse"] = ns(lambda: order.inverse(positions), PIECE)
    found["inverse_sampled"] = 2 * PIECE
    found["inverse_exact"] = sum(int((o.inverse(o[positions]) == positions).sum()) for o in (order, windows))
    seen = np.bincount((order.take(0, PIECE) // np.uint64(N // 1000)).astype(np.int64), minlength=1000)
    found["chi2_per_dof"] = float(((seen - PIECE / 1000) ** 2 / (PIECE / 1000)).sum()) / 999
    found["order_bytes"] = held(lambda: Order(N, seed=3))
    found["window_order_bytes"] = held(lambda: WindowOrder(sizes, seed=3))
    found["window_order_build_ms"] = ns(lambda: WindowOrder(sizes, seed=4), 10**6)
    found["lookup_bytes"] = first.nbytes
    return found


def unequal(rng: np.random.Generator) -> np.ndarray:
    """Return 400,000 shard sizes, log-normal with a spread of a factor of two, that add up to 10^11."""
    weight = rng.lognormal(0.0, 0.7, SHARDS)
    sizes = (weight * (N / weight.sum())).astype(np.int64)
    sizes[: N - int(sizes.sum())] += 1
    return sizes


def theirs() -> dict[str, float]:
    """Measure NumPy's permutation."""
    rng = np.random.default_rng(0)
    rng.permutation(1000)
    before = peak_mib()
    times = [ns(lambda: rng.permutation(NUMPY_N), NUMPY_N) for _ in range(3)]
    return {"ns_per_index": median(times), "growth_mib": peak_mib() - before}


def rounds(keys: int = 2 * 10**7) -> dict[str, float]:
    """Return by how many sigma the images of positions 0 and 1 miss uniform pairs, for n = 4^k and several numbers of rounds.

    Chi2 over all n (n - 1) pairs and `keys` keys, as (chi2 - degrees of freedom) / sqrt(2 degrees of freedom); written in NumPy,
    apart from the kernels, so that the number of rounds is free.
    """
    found = {}
    for k in (3, 4):
        n, shift = 4**k, np.uint64(64 - k)
        seen = {count: np.zeros(n * n, np.int64) for count in (4, 6, 8, 10)}
        for start in range(0, keys, PIECE):
            key = mix(np.arange(start, start + PIECE, dtype=np.uint64))[:, None]
            left, right = np.zeros((PIECE, 2), np.uint64), np.zeros((PIECE, 2), np.uint64) + np.arange(2, dtype=np.uint64)
            for i in range(0, 10, 2):
                right ^= mix(left + key) >> shift
                left = (left + (mix(right + key + G) >> shift)) % np.uint64(2**k)
                key += G + G
                if i + 2 in seen:
                    image = left << np.uint64(k) | right
                    seen[i + 2] += np.bincount((image[:, 0] * np.uint64(n) + image[:, 1]).astype(np.int64), minlength=n * n)
        for count, pairs in seen.items():
            cells = n * (n - 1)
            chi2 = float((pairs.astype(float) ** 2).sum()) * cells / keys - keys
            found[f"n={n} rounds={count}"] = round((chi2 - (cells - 1)) / (2 * (cells - 1)) ** 0.5, 1)
    return found


def mix(z: np.ndarray) -> np.ndarray:
    """Return the finaliser of SplitMix64."""
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def spread(batch: int = 256) -> dict[str, float]:
    """Return the variance of a batch's mean of a number that is the same all over a shard, over that of a global shuffle.

    The worst case for windows: 4096 shards of 1000 samples, each shard with a number of its own.
    """
    from gewu.data.order import Order, WindowOrder

    sizes, found = np.full(4096, 1000), {}
    value = np.random.default_rng(1).standard_normal(sizes.size)
    orders = {"global": Order(int(sizes.sum()), 1)}
    orders |= {f"shards={w}": WindowOrder(sizes, 1, window=2**40, shards=w) for w in (1, 4, 16, 64, 256, 1024)}
    for name, order in orders.items():
        means = value[(order.take(0, order.n) // np.uint64(1000)).astype(np.int64)].reshape(-1, batch).mean(axis=1)
        found[name] = round(float(means.var()) * batch / float(value.var()), 2)
    return found


if __name__ == "__main__":
    print(json.dumps({"ours": ours, "theirs": theirs, "rounds": rounds, "spread": spread}[sys.argv[1]]()))
