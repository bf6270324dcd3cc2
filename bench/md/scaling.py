"""How gewu's speed changes with atoms and ranks: `python -m bench.md.scaling` writes `bench/md/scaling.json`. No peers.

Lennard-Jones as in in.lj, from a crystal that melts before the clock starts, in mixed precision. `size-N`: atom-steps/s on one
thread with N atoms, against 32,000. `strong-Rr`: 256,000 atoms on R ranks of one thread, against one rank; ideal is R. `weak-Rr`:
32,000 atoms per rank, atom-steps/s per rank against one rank; ideal is 1. `communication` is the largest share of the wall time
that a rank spends in exchanging ghosts and in moving atoms from rank to rank, waiting for others included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.md import systems as s
from bench.run import record, versions

SIZES, RANKS = (10, 20, 40, 63, 100), (1, 2, 4)  # cells of four atoms along an edge
REPOSITORY = Path(__file__).resolve().parents[2]


def crystal(cells: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and edges of a crystal of in.lj's density with so many cells along each direction."""
    position, _ = s.fcc(max(cells), a := (4 / s.LJ_DENSITY) ** (1 / 3) * s.SIGMA)
    edges = np.array(cells) * a
    return position[(position < edges - a / 4).all(axis=1)], edges


def one(cells: Sequence[int], steps: int) -> None:
    """Time `steps` steps in this process (one of several under mpirun); the first rank prints a JSON object."""
    from bench.md.ours import build
    from gewu.core.machine import set_threads

    set_threads(1)
    position, edges = crystal(cells)
    velocity = s.thermal(np.full(len(position), s.MASS), s.LJ_TEMPERATURE * s.EPSILON / s.BOLTZMANN, 87287)
    start = s.Start(position, velocity, edges, np.zeros((0, 3)))
    model, state, integrator = build("lj", start)
    spent = [0.0]

    def clocked(call: Any) -> Any:
        def inner(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            result = call(*arguments, **named)
            spent[0] += time.perf_counter() - begin
            return result

        return inner

    if model.domain is not None:
        for name in ("exchange", "reorganise"):
            setattr(model.domain, name, clocked(getattr(model.domain, name)))
    model.compute(state, True)
    for _ in range(100):
        integrator.step(state, model, False)
    spent[0], begin = 0.0, time.perf_counter()
    for _ in range(steps):
        integrator.step(state, model, False)
    wall = time.perf_counter() - begin
    share = model.ranks.allreduce(spent[0] / wall, "max")
    if model.ranks.rank == 0:
        print(json.dumps({"atoms": len(position), "steps_per_s": steps / wall, "communication": share}))


def call(ranks: int, cells: Sequence[int], steps: int) -> dict[str, float]:
    """Run `one` in its own process or processes; return what it prints.

    Raises:
        RuntimeError: it ends with an error.
    """
    command = [sys.executable, "-m", "bench.md.scaling", "--one", *map(str, cells), "--steps", str(steps)]
    launch = ["mpirun", "-n", str(ranks), "--bind-to", "none"] if ranks > 1 else []
    env = {**os.environ, "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
    done = subprocess.run([*launch, *command], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{ranks} ranks, {cells} cells: {done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def cases() -> dict[str, tuple[int, tuple[int, int, int], str]]:
    """Return ranks, cells and the case to compare with, for each case."""
    sizes = {f"size-{4 * n**3}": (1, (n, n, n), "size-32000") for n in SIZES}
    strong = {f"strong-{r}r": (r, (40, 40, 40), "strong-1r") for r in RANKS}
    return {**sizes, **strong, **{f"weak-{r}r": (r, (20 * r, 20, 20), "weak-1r") for r in RANKS}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all cases in turn and write the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--one", type=int, nargs=3, help="cells: time one crystal in this process")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(arguments)
    if given.one:
        one(given.one, given.steps)
        return
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(given.repeats):
        for case, (ranks, cells, _base) in cases().items():
            steps = max(20, min(2000, 2_000_000_000 // (400 * int(np.prod(cells))) // 20 * 20))  # a few seconds
            found.setdefault(case, []).append(call(ranks, cells, steps))
            print(case, found[case][-1], file=sys.stderr, flush=True)

    def rates(case: str) -> list[float]:
        ranks = cases()[case][0] if case.startswith("weak") else 1
        return [run["steps_per_s"] * (1 if case.startswith("strong") else run["atoms"] / ranks) for run in found[case]]

    entries = []
    for case, (_ranks, _cells, base) in cases().items():
        ours, theirs = statistics.median(rates(case)), statistics.median(rates(base))
        entry = {
            "case": case,
            "peer": f"gewu {base}",
            "ratio": round(ours / theirs, 3),
            "ours": float(f"{ours:.4g}"),
            "theirs": float(f"{theirs:.4g}"),
            "unit": "steps/s" if case.startswith("strong") else "atom-steps/s/rank",
            "accuracy": {"communication": round(statistics.median(run["communication"] for run in found[case]), 3)},
            "repeats": given.repeats,
            "spread": round(max((max(r) - min(r)) / statistics.median(r) for r in (rates(case), rates(base))), 3),
            "versions": versions("gewu", "numpy", "numba", "mpi4py"),
        }
        entries.append(entry)
    record(Path(__file__).with_name("scaling.json"), entries)


if __name__ == "__main__":
    main()
