"""Where a step's time goes on CPUs: `python -m bench.train.profile [17m] [bf16]`.

Calls of gewu's own kernels inside XLA are timed in a run of the benchmark's model; the rest of the step is XLA's. Products are
then done alone, operands as the step has them but warm, as a bound of what they could reach in it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from typing import Any

import numpy as np

from bench.train import gpt
from gewu.ops import attend, ffi, product, product_kernel, rows

WARM, STEPS = 3, 8
_taken: dict[Any, list[float]] = defaultdict(list)
_works: dict[Any, Any] = {}


def _timed(name: str, work: Any) -> str:
    """Register the kernel as always, with a clock around it."""

    def clocked(arguments: Any, results: Any) -> None:
        begin = time.perf_counter()
        work(arguments, results)
        shapes = (name, *(tuple(shape) for _, shape in (*arguments, *results)))
        _taken[shapes].append(time.perf_counter() - begin)
        _works.setdefault(shapes, work)

    return ffi.raw_target(name, clocked)


def _flops(shapes: Any) -> float:
    a, (m, n) = shapes[1], shapes[-1]
    return 2.0 * m * n * (a[0] * a[1] // m)


def _alone(shapes: Any, size: int) -> float:
    """Return the seconds of a product alone, the median of some."""
    arrays = [np.ones(shape, np.float32 if size == 4 else np.uint16) for shape in shapes[1:3]]
    out = np.ones(shapes[-1], np.float32)
    given, made = [(array.ctypes.data, array.shape) for array in arrays], [(out.ctypes.data, out.shape)]
    times = []
    for _ in range(9):
        begin = time.perf_counter()
        _works[shapes](given, made)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    """Train a few steps and print a line for each kernel, the longest first."""
    size, precision = (sys.argv[1:] + ["17m", "bf16"][len(sys.argv) - 1 :])[:2]
    for module in (product, rows, attend):
        module.raw_target = _timed  # type: ignore[attr-defined]
    from bench.train import ours

    engine, whole = ours.Engine(gpt.SIZES[size], precision, "gewu"), []
    for number in range(WARM + STEPS):
        if number == WARM:
            _taken.clear()
        begin = time.perf_counter()
        engine.step(gpt.batch(gpt.SIZES[size], number))
        whole.append(time.perf_counter() - begin)
    step, names = statistics.median(whole[WARM:]), defaultdict(float)
    flops = alone = 0.0
    for shapes, times in sorted(_taken.items(), key=lambda item: -sum(item[1])):
        spent, name = sum(times) / STEPS, shapes[0]
        names[name] += spent
        more = ""
        if name == "product":
            count, bound = len(times) / STEPS, _alone(shapes, 4 if precision == "fp32" else 2)
            flops, alone = flops + count * _flops(shapes), alone + count * bound
            more = f"  {count * _flops(shapes) / spent / 1e9:.0f} Gflop/s, alone {_flops(shapes) / bound / 1e9:.0f}"
        print(f"{1e3 * spent:7.1f} ms  {len(times) / STEPS:4.0f} x {name} {shapes[1:]}{more}")
    print(f"\nstep {1e3 * step:.0f} ms by {product_kernel.ways()[0]}, XLA's {1e3 * (step - sum(names.values())):.0f}:", end=" ")
    print(", ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in names.items()))
    if alone:
        print(f"products: {flops / names['product'] / 1e9:.0f} Gflop/s in the step, {flops / alone / 1e9:.0f} alone")


if __name__ == "__main__":
    main()
