"""Migrated operators and library operators against the best of PyTorch, NumPy with BLAS and a hand-written loop nest.

Every engine is a process of its own with two threads (OMP, BLAS, Numba; PyTorch by set_num_threads) and the same data; all take
turns within the same seconds. `migrate/source/CLASS` starts from PTX, `migrate/binary/CLASS` from a cubin of sm_90 in a folder
without source or PTX, `library/CLASS` is our own operator. The kernel is the class's optimised one; `styles` tells how each
reader fares with it. At each of three sizes the time is the median over the repeats; `ratio` is the smallest of peer / ours
over the sizes, `ours` and `theirs` the times there. The peer is the fastest that computes the class right, by name in `best`.
`error` is the largest error against NumPy in float64, at the two smaller sizes and the tiny one. 0 in `ratio`: refused, failed
or wrong (`status` says which).
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.ops.build import build, compiler
from bench.ops.case import SIZES
from bench.ops.cases import CASES, CLASSES, quoted
from bench.ops.peers import disassembler, find
from bench.ops.worker import PEERS, READERS
from bench.run import versions

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(__file__).resolve().parent / "work"
SOURCE, BINARY = "ptx", "sm_90"
KINDS = {"migrate/source": SOURCE, "migrate/binary": BINARY, "library": "library"}
THREADS = "2"
SECONDS = 0.03
PATIENCE_S = 300.0
PAUSES = {"torch": 0.25, "numpy": 0.25}
PAUSE = 0.05
"""Seconds after a turn: threads still look for work, up to 200 ms (OpenMP and OpenBLAS by default), ours for 60 us."""


class Process:
    """A worker; started again when it died, which counts as an answer."""

    def __init__(self, engine: str, python: Path, folder: Path, cache: str, peers: Path) -> None:
        self.engine, self.cache, self.peers = engine, cache, peers
        self.command = [str(python), "-m", "bench.ops.worker", engine, str(folder)]
        self.process: subprocess.Popen[str] | None = None

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the worker's answer; `missing` when it dies or is silent too long."""
        if self.process is None or self.process.poll() is not None:
            limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), THREADS)
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            found = disassembler(self.peers)
            tools = {"GEWU_NVDISASM": str(found)} if found and "GEWU_NVDISASM" not in os.environ else {}
            env = {**os.environ, **tools, "GEWU_CACHE": self.cache, **limits}
            self.process = subprocess.Popen(self.command, cwd=ROOT, env=env, text=True, **pipes)
        try:
            assert self.process.stdin is not None and self.process.stdout is not None
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = _line(self.process, PATIENCE_S)
        except BrokenPipeError:
            line = ""
        if not line:
            self.stop()
            return {"missing": f"the process of {self.engine} died or was silent for {PATIENCE_S:.0f} s"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End the worker."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _line(process: subprocess.Popen[str], seconds: float) -> str:
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() if ready and process.stdout is not None else ""


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all cases (or those asked for); return the records, none when nvcc or PyTorch's environment is missing.

    Raises:
        ValueError: a case that does not exist.
    """
    names = options.case or [f"{kind}/{cls}" for kind in KINDS for cls in CLASSES]
    wanted: dict[str, list[str]] = {}
    for name in names:
        kind, _, cls = name.rpartition("/")
        if kind not in KINDS or cls not in CLASSES:
            raise ValueError(f"no case {name}; cases are {', '.join(f'{k}/CLASS' for k in KINDS)}, classes {', '.join(CLASSES)}")
        wanted.setdefault(cls, []).append(kind)
    torch = find(Path(getattr(options, "peers", None) or WORK / "peers").resolve()) or find(WORK / "peers")
    missing = [what for what, there in (("nvcc", compiler()), ("PyTorch (python -m bench.ops.peers FOLDER)", torch)) if not there]
    if missing:
        print(f"ops: skipped, missing: {', '.join(missing)}", file=sys.stderr)
        return []
    folders = build(WORK / "built")
    engines = {"torch": (torch, WORK), **dict.fromkeys(("numpy", "hand", "library"), (Path(sys.executable), WORK))}
    engines |= {reader: (Path(sys.executable), folders[reader]) for reader in READERS}
    with tempfile.TemporaryDirectory(prefix="gewu-bench-") as cache:  # so that the first call is a first call
        processes = {
            engine: Process(engine, python, folder, cache, torch.parents[1]) for engine, (python, folder) in engines.items()
        }
        try:
            return [record for cls, kinds in wanted.items() for record in measure(cls, kinds, processes, options.repeats)]
        finally:
            for process in processes.values():
                process.stop()


def measure(cls: str, kinds: list[str], processes: Mapping[str, Process], repeats: int) -> list[dict[str, Any]]:
    """Time one class at three sizes with all engines in turn; return a record for each kind."""
    ours = [KINDS[kind] for kind in kinds]
    checks = {reader: _checked(cls, processes[reader]) for reader in READERS if any(kind != "library" for kind in kinds)}
    sizes: dict[str, dict[str, Any]] = {}
    for size in SIZES[1:]:
        engines = [*PEERS, *ours]
        found = {engine: processes[engine].ask(do="prepare", cls=cls, size=size) for engine in engines}
        able = [engine for engine in engines if "missing" not in found[engine] and found[engine].get("right", True)]
        times: dict[str, list[float]] = {engine: [] for engine in able}
        for _ in range(repeats):
            for engine in able:
                answer = processes[engine].ask(do="time", seconds=SECONDS)
                time.sleep(PAUSES.get(engine, PAUSE))
                if "seconds" in answer:
                    times[engine].append(answer["seconds"])
        for engine in engines:
            processes[engine].ask(do="drop")
        sizes[size] = {"found": found, "times": {engine: t for engine, t in times.items() if len(t) == repeats}}
    records = [_record(cls, kind, sizes, checks, repeats) for kind in kinds]
    for record in records:
        print(f"{record['case']}: {record['ratio']} ({record['best']}) {record['status']}", file=sys.stderr, flush=True)
    return records


def _checked(cls: str, process: Process) -> dict[str, dict[str, Any]]:
    """Return status and error of the quoted style at the tiny size for one reader; the tests try all styles."""
    return {case.style: process.ask(do="check", kernel=case.kernel) for case in CASES if case == quoted(cls)}


def _record(cls: str, kind: str, sizes: Mapping[str, Any], checks: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    engine, style = KINDS[kind], quoted(cls).style
    answers = [sizes[size]["found"][engine] for size in sizes]
    tiny = checks.get(engine, {}).get(style, {})
    errors = [a["error"] for a in (*answers, tiny) if a.get("error") is not None]
    failed = [a["missing"] for a in answers if "missing" in a]
    wrong = any(a.get("right") is False for a in (*answers, tiny))
    status = "wrong" if wrong else _worst(a.get("status", "failed" if "missing" in a else "") for a in answers)
    ratios: dict[str, tuple[float, str, float, float, float]] = {}
    for size, found in sizes.items():
        times = found["times"]
        rivals = {peer: statistics.median(times[peer]) for peer in PEERS if peer in times}
        if engine in times and rivals:
            best = min(rivals, key=lambda peer: rivals[peer])
            mine = statistics.median(times[engine])
            spread = max((max(t) - min(t)) / statistics.median(t) for t in (times[engine], times[best]))
            ratios[size] = rivals[best] / mine, best, mine, rivals[best], spread
    whole = len(ratios) == len(sizes)
    ratio, best, mine, theirs, spread = min(ratios.values()) if ratios else (0.0, "", 0.0, 0.0, 0.0)
    return {
        "case": f"{kind}/{cls}",
        "peer": "best-of",
        "ratio": round(ratio, 3) if whole and status != "wrong" else 0.0,
        "ours": float(f"{mine:.4g}"),
        "theirs": float(f"{theirs:.4g}"),
        "unit": "s",
        "accuracy": {"error": float(f"{max(errors):.3g}")} if errors else {},
        "repeats": repeats,
        "spread": round(spread, 3),
        "versions": versions("gewu", "numpy", "numba", "llvmlite"),
        "best": best,
        "status": status,
        "reason": (failed or [a.get("reason", "") for a in answers])[0],
        "ratios": {size: round(found[0], 3) for size, found in ratios.items()},
        "times": {
            s: {e: float(f"{statistics.median(t):.4g}") for e, t in f["times"].items() if e in (*PEERS, engine)}
            for s, f in sizes.items()
        },
        "cold": max((a["cold"] for a in answers if "cold" in a), default=None),
        "style": style,
        "styles": {reader: {s: _brief(a) for s, a in found.items()} for reader, found in checks.items()}
        if kind != "library"
        else {},
    }


def _brief(answer: Mapping[str, Any]) -> dict[str, Any]:
    if "missing" in answer:
        return {"status": answer.get("status", "failed"), "reason": answer["missing"]}
    status = answer["status"] if answer.get("right") else "wrong"
    return {"status": status, "error": float(f"{answer['error']:.3g}"), "reason": answer.get("reason", "")}


def _worst(found: Any) -> str:
    order = ("failed", "refused", "reference", "spmd", "lifted", "library", "")
    return min(found, key=order.index, default="")
