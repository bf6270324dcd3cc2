"""Time the pruned transforms of wavefunctions, one thread: `python -m bench.dft.fft` prints the table of docs/decisions/0002.

For each grid n^3 with a box of about n/2 (a sphere of waves inside the density's sphere), one band goes to the grid and back:
by SciPy without pruning, by SciPy's three pruned passes, and by FFTW's (planned ahead) when pyfftw is installed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import scipy.fft

from gewu.core.arrays import Arrays
from gewu.core.hostfft import ScipyArrays
from gewu.core.machine import one_blas_thread

SIZES = (20, 30, 36, 40, 48, 60, 72)
REPEATS = 15


def seconds_per_band(work: Callable[[], object], bands: int) -> float:
    """Return the median time of `work`, which transforms `bands` functions there and back."""
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) / bands


def candidates(n: int) -> dict[str, float]:
    """Return seconds per band there and back, by method, for an n^3 grid."""
    grid, m = (n, n, n), n // 2 + 1
    box = np.random.default_rng(0).standard_normal((1, m, m, m)) + 0j
    out = {}
    fresh = Arrays(np, scipy.fft, host=True)
    kinds: dict[str, Arrays] = {"SciPy, pruned, new arrays": fresh, "SciPy, pruned, reused": ScipyArrays()}
    if find_spec("pyfftw"):
        from gewu.core.fftw import FftwArrays

        kinds["FFTW, pruned, reused"] = FftwArrays()
    padded = np.zeros((1, *grid), complex)
    padded[:, :m, :m, :m] = box
    full = lambda: scipy.fft.fftn(scipy.fft.ifftn(padded, axes=(1, 2, 3)), axes=(1, 2, 3))  # noqa: E731
    out["SciPy, whole"] = seconds_per_band(full, 1)
    for name, arrays in kinds.items():
        arrays.prepare(grid, (m, m, m))
        bands = 1 if arrays is fresh else arrays.batch(grid)
        block = np.repeat(box, bands, axis=0)
        pair = lambda a=arrays, b=block: a.grid_to_box(a.box_to_grid(b, grid), (m, m, m))  # noqa: E731
        out[name] = seconds_per_band(pair, bands)
    return out


def main() -> None:
    """Print a Markdown table of times relative to SciPy's whole transform."""
    rows = {n: candidates(n) for n in SIZES}
    names = list(rows[SIZES[0]])
    print("| grid | " + " | ".join(names) + " |\n| --- |" + " --- |" * len(names))
    for n, row in rows.items():
        print(f"| {n}³ | " + " | ".join(f"{row[name] / row['SciPy, whole']:.2f}" for name in names) + " |")


if __name__ == "__main__":
    with one_blas_thread():
        main()
