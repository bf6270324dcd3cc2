"""One engine in its own process: `python -m bench.ops.worker ENGINE FOLDER`, a JSON object a line in, one out.

    {"do": "prepare", "cls": "softmax", "size": "small"} -> {"error", "status", "reason", "cold": s} or {"missing": why}
    {"do": "time", "seconds": 0.05} -> {"seconds": of one call, the median over about that long}
    {"do": "check", "kernel": "softmax_warp"} -> error and status at the tiny size
    {"do": "drop"} -> {}

Engines: `torch`, `numpy`, `hand` compute the job of the class's optimised kernel their own way; `ptx`, `sm_80`, `sm_90` run that
kernel from FOLDER; `library` runs our operator of that name. Anything that raises is reported and ends nothing.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.ops.case import Case, Launch, error
from bench.ops.cases import CASES, quoted

PEERS = ("torch", "numpy", "hand")
READERS = ("ptx", "sm_80", "sm_90")
SUFFIX = {"ptx": "ptx", "sm_80": "sm_80.cubin", "sm_90": "sm_90.cubin"}
RANDOM = ("dropout",)  # peers draw other numbers, so their results are not compared


def made(case: Case, size: str) -> tuple[Launch, tuple[np.ndarray, ...] | None]:
    """Return a launch with the same data in every process, and what it should give; no expectation at the large size."""
    launch = case.make(size, np.random.default_rng(zlib.crc32(f"{case.cls} {size}".encode())))
    return launch, None if size == "large" else case.reference([a.copy() for a in launch.args])


def deviation(launch: Launch, want: tuple[np.ndarray, ...] | None, got: Any = None) -> float | None:
    """Return the largest error of the outputs, or of what a peer returned in their place."""
    if want is None:
        return None
    found = [launch.args[i] for i in launch.outputs]
    if got is not None:
        found = [np.asarray(g) for g in (got if isinstance(got, tuple) else (got,))]
    return max(error(g.reshape(w.shape), w) for g, w in zip(found, want[: len(found)], strict=True))


def judged(case: Case, launch: Launch, deviates: float | None) -> dict[str, Any]:
    """Return an error and whether rounding explains it; nothing is said of an error that is not known."""
    return {} if deviates is None else {"error": deviates, "right": deviates <= case.tolerance(launch)}


class Engine:
    """The functions of one engine on the current class and size; the fastest counts."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.calls: list[Callable[[], Any]] = []
        self.modules: dict[str, Any] = {}

    def prepare(self, cls: str, size: str) -> dict[str, Any]:
        """Make the calls, run each once, return its error; drop those that raise, then all but the fastest."""
        case = quoted(cls)
        launch, want = made(case, size)
        start = time.perf_counter()
        if self.name in READERS:
            return self._ours(case, launch, want)
        found = self._library(case, launch) if self.name == "library" else _peer_ways(self.name, cls, launch)
        results, working = [], []
        failure = "" if found else "no such operator"
        for call in found:
            try:
                got = call()
                results.append(None if cls in RANDOM and self.name in PEERS else deviation(launch, want, got))
                working.append(call)
            except (RuntimeError, NotImplementedError, TypeError, ValueError) as raised:
                failure = f"{type(raised).__name__}: {raised}"[:300]
        if not working:
            return {"missing": failure}
        cold = time.perf_counter() - start
        times = [(timed(call, 0.01), i) for i, call in enumerate(working)] if len(working) > 1 else [(0.0, 0)]
        best = min(times)[1]
        self.calls = [working[best]]
        self.held = launch
        status = {"status": "library"} if self.name == "library" else {}
        return {**judged(case, launch, results[best]), "cold": cold, **status}

    def _ours(self, case: Case, launch: Launch, want: tuple[np.ndarray, ...] | None) -> dict[str, Any]:
        from gewu.core.errors import GewuError

        start = time.perf_counter()
        try:
            operator = self._operator(case)
            place = (launch.grid, launch.block, launch.shared) if launch.shared else (launch.grid, launch.block)
            bound, args = operator[place], launch.args
            bound(*args)
        except GewuError as refused:
            return {"missing": str(refused)[:300], "status": "refused"}
        cold = time.perf_counter() - start
        self.calls, self.held = [lambda: bound(*args)], launch
        found = judged(case, launch, deviation(launch, want))
        return {**found, "cold": cold, "status": operator.status, "reason": operator.reason[:300]}

    def _operator(self, case: Case) -> Any:
        from gewu.ops.launch import load

        path = self.folder / f"{case.file.stem}.{SUFFIX[self.name]}"
        if str(path) not in self.modules:
            self.modules[str(path)] = load(path, threads=2)
        return self.modules[str(path)][case.kernel]

    def _library(self, case: Case, launch: Launch) -> list[Callable[[], Any]]:
        from bench.ops.library_side import ways

        return list(ways(case.cls, launch))

    def check(self, kernel: str) -> dict[str, Any]:
        """Run one kernel at the tiny size; return its error over the tolerance, and its status."""
        case = next(case for case in CASES if case.kernel == kernel)
        launch, want = made(case, "tiny")
        return self._ours(case, launch, want)


def _peer_ways(name: str, cls: str, launch: Launch) -> list[Callable[[], Any]]:
    if name == "torch":
        from bench.ops.torch_peer import ways
    elif name == "numpy":
        from bench.ops.numpy_peer import ways
    else:
        from bench.ops.hand import ways
    return ways(cls, launch)


def timed(call: Callable[[], Any], seconds: float) -> float:
    """Return the time of one call: the median over batches of about two milliseconds, for about so many seconds."""
    start = time.perf_counter()
    call()
    count = max(1, int(2e-3 / max(time.perf_counter() - start, 1e-7)))
    batches: list[float] = []
    end = time.perf_counter() + seconds
    while not batches or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(count):
            call()
        batches.append((time.perf_counter() - start) / count)
    return statistics.median(batches)


def main() -> int:
    """Answer requests until the input ends."""
    engine = Engine(sys.argv[1], Path(sys.argv[2]))
    if engine.name == "torch":
        import torch

        torch.set_num_threads(2)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "prepare":
                engine.calls = []
                reply = engine.prepare(request["cls"], request["size"])
            elif request["do"] == "time":
                reply = {"seconds": timed(engine.calls[0], request["seconds"])}
            elif request["do"] == "check":
                reply = engine.check(request["kernel"])
            else:
                engine.calls, engine.held, reply = [], None, {}
        except Exception as raised:  # a kernel that breaks must not take the others with it
            reply = {"missing": f"{type(raised).__name__}: {raised}"[:300], "status": "failed"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
