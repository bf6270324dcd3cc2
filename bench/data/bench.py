"""gewu's sample store against MosaicML's MDS, Arrow IPC and ArrayRecord, and the figures of the room's other parts.

Every store has a process and an environment of its own, the same samples (digests of what every way of reading returns are
compared) and takes turns with gewu: gewu, peer, gewu, next peer, after one untimed round. All values are turned into Python
objects; gewu checks the CRC-32C of every sample that it reads, the peers as they do by default (ArrayRecord checks a hash of
its own, MDS and Arrow nothing).

`random-1k6` and `random-100k`: samples per second at random. `ratio` compares single reads, against `arrayrecord` the best of
single and batched reads of both sides; `accuracy` has all: `one`, `batch`, `cold` (files dropped from the page cache first), for
pictures `decode` (read and decoded by Pillow) and `limits` (samples per second of only copying their bytes, of only computing
their checksum, and of reading them as views, checked and not copied), and opening: `start_ms` with the import of the libraries,
`open_ms` without, `process_mb` after it. `sequential-1k6`: one pass in order, the faster way of each side. The other cases are
modules of this folder with a `run` of their own; `ingest-5m`, which takes an hour, is measured only when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import select
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.data import peers
from bench.data.samples import COUNTS, make_pictures
from bench.run import compare, record, versions

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(__file__).resolve().parent / "work"
CASES = {"random-1k6": "small", "sequential-1k6": "small", "random-100k": "large"}
PEERS = {"mds": "mds", "arrow-ipc": "arrow", "arrayrecord": "arrayrecord"}
OTHERS = {
    **{"order-1e11": "order", "catalogue": "catalogue", "ingest-5m": "ingest", "dedup-20k": "dedup"},
    **{"pipeline-2p": "pipeline", "loader-1k6": "loader"},
}
LONG = ("ingest-5m",)
REPEATS = 5
SECONDS = 0.4
COLD = {"small": 2048, "large": 1024}
PATIENCE_S = 300.0


class Process:
    """A worker; it is asked and answers in turn."""

    def __init__(self, engine: str, python: Path, kind: str, folder: Path, count: int) -> None:
        command = [str(python), "-W", "ignore", "-m", "bench.data.worker", engine, kind, str(folder), str(count)]
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.engine = engine
        self.process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **limits}, text=True, **pipes)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the worker's answer.

        Raises:
            RuntimeError: it fails, dies or is silent too long.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        line = self.process.stdout.readline() if ready else ""
        answer: dict[str, Any] = json.loads(line or '{"missing": "no answer"}')
        if "missing" in answer:
            raise RuntimeError(f"{self.engine}: {request['do']}: {answer['missing']}")
        return answer

    def stop(self) -> None:
        """End the worker."""
        self.process.kill()
        self.process.wait()


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all cases (or those whose name begins with one asked for); a peer that is missing is named and left out."""
    wanted = [name for name in CASES if _asked(name, options.case)]
    folder = next((f for f in (Path(options.peers), WORK / "peers") if peers.find(f.resolve(), "arrow")), WORK / "peers")
    records = []
    for kind in dict.fromkeys(CASES[name] for name in wanted):
        records += measure(kind, [name for name in wanted if CASES[name] == kind], folder.resolve(), options.repeats)
    order = list(CASES)
    records.sort(key=lambda made: order.index(made["case"]))
    for name, module in OTHERS.items():
        if _asked(name, options.case):
            records += _other(name, module, options)
    return records


def _asked(name: str, asked: Sequence[str]) -> bool:
    return not asked or any(name.startswith(case) or case.startswith(name) for case in asked)


def _other(name: str, module: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run another module; a case of `LONG` only when it is asked for, which records it: else return what was recorded."""
    if importlib.util.find_spec(f"bench.data.{module}") is None:
        print(f"data: {name} skipped, there is no bench/data/{module}.py", file=sys.stderr)
        return []
    path = Path(__file__).with_name(f"{module}.json")
    if name in LONG and name not in options.case:
        print(f"data: {name} as recorded; `python -m bench.run data --case {name}` measures it", file=sys.stderr)
        return json.loads(path.read_text()) if path.exists() else []
    records: list[dict[str, Any]] = importlib.import_module(f"bench.data.{module}").run(options)
    if name in LONG and records:
        record(path, records)
    return records


def measure(kind: str, names: Sequence[str], folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Run gewu and the peers that are there on one kind of samples; return a record for each case and peer."""
    pythons = {peer: peers.find(folder, environment) for peer, environment in PEERS.items()}
    for peer in [peer for peer, python in pythons.items() if python is None]:
        print(f"data: {peer} skipped, not in {folder} (python -m bench.data.peers FOLDER)", file=sys.stderr)
    engines = {"gewu": Path(sys.executable), **{peer: python for peer, python in pythons.items() if python is not None}}
    if len(engines) == 1:
        return []
    if kind == "large":
        make_pictures(WORK / "pictures")
    pack(kind, engines)
    processes = {engine: Process(engine, python, kind, WORK, COUNTS[kind]) for engine, python in engines.items()}
    try:
        opened = {engine: process.ask(do="open") for engine, process in processes.items()}
        check(kind, processes)
        packages = {engine: process.ask(do="versions") for engine, process in processes.items()}
        questions = _questions(kind, names)
        rates = {peer: _turns(processes["gewu"], processes[peer], questions, max(repeats, REPEATS)) for peer in engines}
        del rates["gewu"]
    finally:
        for process in processes.values():
            process.stop()
    records = []
    for name in names:
        for peer, found in rates.items():
            made = _record(name, peer, found, {engine: opened[engine] for engine in ("gewu", peer)})
            records.append({**made, "versions": {**versions("gewu", "numba"), **packages[peer]}})
            print(f"{name} {peer}: {made['ratio']} {json.dumps(made['accuracy'])}", file=sys.stderr, flush=True)
    return records


def pack(kind: str, engines: Iterable[str]) -> None:
    """Write the samples with every engine that has not done so: gewu always, a peer when its store is not there."""
    for engine, python in dict(engines).items():
        stamp = WORK / f"{engine}-{kind}.packed"
        if engine == "gewu" or not stamp.exists() or stamp.read_text() != str(COUNTS[kind]):
            stamp.unlink(missing_ok=True)
            process = Process(engine, python, kind, WORK, COUNTS[kind])
            done = process.ask(do="pack")
            process.stop()
            stamp.write_text(str(COUNTS[kind]))
            print(f"{engine}: {done['bytes'] / 1e6:.0f} MB in {done['seconds']:.1f} s", file=sys.stderr, flush=True)


def check(kind: str, processes: dict[str, Process]) -> None:
    """Compare samples as every way of reading returns them, byte for byte.

    Raises:
        RuntimeError: an engine returns something else than was stored.
    """
    indices = sorted({*range(16), *range(0, COUNTS[kind], COUNTS[kind] // 500), COUNTS[kind] - 1})
    answers = {engine: process.ask(do="check", indices=indices) for engine, process in processes.items()}
    wrong = {engine: answer["wrong"] for engine, answer in answers.items() if answer["wrong"]}
    if wrong or len({answer["digest"] for answer in answers.values()}) != 1:
        raise RuntimeError(f"not the samples that were stored: {wrong or 'the environments make different samples'}")


def _questions(kind: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    if any(name.startswith("random") for name in names):
        found["one"] = {"do": "random", "seconds": SECONDS}
        found["batch"] = {"do": "batch", "seconds": SECONDS}
        found["cold"] = {"do": "cold", "count": COLD[kind], "way": "one"}
        if kind == "large":
            found["decode"] = {"do": "decode", "seconds": SECONDS}
            found["limits"] = {"do": "limits", "seconds": SECONDS / 2}
    if any(name.startswith("sequential") for name in names):
        found["scan"] = {"do": "scan", "seconds": 2 * SECONDS}
        found["cold scan"] = {"do": "cold", "count": COUNTS[kind] // 4, "way": "scan"}
    return found


Rates = dict[str, dict[str, dict[str, list[float]]]]


def _turns(ours: Process, theirs: Process, questions: dict[str, dict[str, Any]], repeats: int) -> Rates:
    """Ask both in turn; return the rates by question, side and way."""
    rates: Rates = {question: {"gewu": {}, "peer": {}} for question in questions}
    if ours is theirs:
        return rates
    for turn in range(repeats + 1):
        for question, request in questions.items():
            for side, process in (("gewu", ours), ("peer", theirs)) if question != "limits" else (("gewu", ours),):
                answer = process.ask(**request)
                if answer.get("resident", 0) > 0.01:
                    raise RuntimeError(f"{process.engine}: {answer['resident']:.0%} of the files stayed in memory")
                for way, rate in answer["rates"].items() if turn else ():  # the first round fills caches
                    rates[question][side].setdefault(way, []).append(rate)
    return rates


def _best(ways: dict[str, list[float]]) -> list[float]:
    return max(ways.values(), key=statistics.median)


def _record(name: str, peer: str, rates: Rates, opened: dict[str, dict[str, Any]]) -> dict[str, Any]:
    def sides(question: str, pick: Callable[[dict[str, list[float]]], list[float]] = _best) -> dict[str, float]:
        medians = {side: statistics.median(pick(ways)) for side, ways in rates[question].items()}
        return {**{side: float(f"{rate:.4g}") for side, rate in medians.items()}, "ratio": _ratio(medians)}

    if name.startswith("sequential"):
        both = {side: _best(ways) for side, ways in rates["scan"].items()}
        accuracy: dict[str, Any] = {"cold": sides("cold scan")}
        accuracy |= {"ways": {f"{s} {w}": _short(r) for s, ways in rates["scan"].items() for w, r in ways.items()}}
    else:
        questions = ("one", "batch") if peer == "arrayrecord" else ("one",)
        both = {side: _best({f"{q} {w}": r for q in questions for w, r in rates[q][side].items()}) for side in ("gewu", "peer")}
        accuracy = {question: sides(question) for question in ("one", "batch", "cold", "decode") if question in rates}
        accuracy |= {"ways": {f"{s} {w}": _short(r) for s, ways in rates["batch"].items() for w, r in ways.items()}}
        accuracy |= {"limits": {w: _short(r) for w, r in rates["limits"]["gewu"].items()}} if "limits" in rates else {}
    named = dict(zip(opened, ("gewu", "peer"), strict=True))
    for key, field, factor in (("start_ms", "start", 1e3), ("open_ms", "seconds", 1e3), ("process_mb", "rss_mb", 1)):
        accuracy[key] = {named[engine]: float(f"{factor * answer[field]:.3g}") for engine, answer in opened.items()}
    return {"case": name, "peer": peer, **compare(both["gewu"], both["peer"], "samples/s"), "accuracy": accuracy}


def _ratio(sides: dict[str, float]) -> float:
    return float(f"{sides['gewu'] / sides['peer']:.3g}")


def _short(rates: list[float]) -> float:
    return float(f"{statistics.median(rates):.4g}")
