"""Count how kernels that nobody here wrote fare: `python -m bench.ops.coverage FOLDER` reads every .cu and .ptx below a folder.

CUDA files that nvcc compiles alone are compiled for sm_80. Each kernel is launched as `gewu.ops.survey` guesses it can be, and
compared with the interpreter. `lifted` and `spmd` were right; `refused` could not be read; `unlaunched` was read, but no launch
was found whose result stands; variables that only the host sets are random numbers; `slow` took more than the patience; `wrong`
differs from the interpreter. Names that occur twice are counted once.
"""

from __future__ import annotations

import argparse
import collections
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gewu.ops as ops
from gewu.core.errors import GewuError
from gewu.ops.survey import Machine, examine, guessed_constants

PATIENCE_S = 15
TOLERANCE = 1e-2


class Slow(Exception):
    """A kernel took longer than the patience."""


def modules(folder: Path, build: Path) -> Iterator[Path]:
    """Yield PTX files: those of the folder, and those made from its CUDA files."""
    yield from sorted(folder.rglob("*.ptx"))
    sources = sorted(folder.rglob("*.cu")) if shutil.which("nvcc") else []
    for number, source in enumerate(sources):
        made = build / f"{number}.ptx"
        command = ["nvcc", "-ptx", "-arch=sm_80", "-O3", "-w", f"-I{source.parent}", f"-I{source.parent.parent}", "-o", str(made)]
        done = subprocess.run([*command, str(source)], capture_output=True, timeout=120, check=False)
        if done.returncode == 0:
            yield made


def fate(module: Any, name: str) -> tuple[str, str]:
    """Return what becomes of one kernel, and why."""
    signal.alarm(PATIENCE_S)
    try:
        found = examine(module, name, [], Machine(1e10, 1e11), size=4096, seed=1)
    except Slow:
        return "slow", f"more than {PATIENCE_S} s"
    finally:
        signal.alarm(0)
    if found.status in ("unlaunched", "refused"):
        return found.status, found.reason
    return (found.status, found.reason) if found.error < TOLERANCE else ("wrong", f"error {found.error:.2g}")


def _stop(*_: Any) -> None:
    raise Slow


def main() -> None:
    """Print one line a kernel on stderr, and the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=1200.0, help="stop after so long")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _stop)
    begin, fates = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as build:
        for path in modules(given.folder, Path(build)):
            try:
                module = ops.load(path, cache=False)
                module = ops.load(path, cache=False, constants=guessed_constants(module, 1))
            except GewuError as error:
                print(f"{path}: {error}", file=sys.stderr)
                continue
            fates.update({name: ("refused", reason) for name, reason in module.refused.items()})
            for name in module.names:
                if name not in fates and time.perf_counter() - begin < given.seconds:
                    fates[name] = fate(module, name)
                    print(f"{name}: {': '.join(fates[name])}", file=sys.stderr)
    print(json.dumps(collections.Counter(state for state, _ in fates.values())))


if __name__ == "__main__":
    main()
