"""Where the time of a benchmark case goes: `python -m bench.ops.profile migrate/source/gelu ...`; without names, all below 0.8.

The worker of the benchmark runs the case at the size of its smallest ratio for some seconds while `perf` samples its instruction
pointers.  Samples are shared out between our machine code, libraries, the kernel of the system and Python; the machine code is
read from the memory of the process and disassembled around the samples, and the innermost loop that holds most of them is counted
by kinds of instruction, each weighted by its samples.  The recorded time and ratio, the bytes of the arguments and the cores kept
busy stand beside it.  Needs `perf` and `objdump`; writes `bench/ops/profile.json`, which tools/make_operators.py shows.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.ops.bench import KINDS, WORK, Process
from bench.ops.build import build
from bench.ops.cases import quoted
from bench.ops.peers import find
from bench.ops.worker import READERS, made

RECORDS: Final = Path(__file__).resolve().parent / "latest.json"
PROFILES: Final = Path(__file__).resolve().parent / "profile.json"
RATE: Final = 1997
CODE: Final = "generated code"
BAR: Final = 0.8
_KINDS: Final = {
    "gather or scatter": r"vp?(gather|scatter)",
    "division or root": r"v?(div|sqrt)|vrcp|vrsqrt|idiv",
    "conversion": r"v?p?cvt|vpmov",
    "mask or comparison": r"v?(u?comi|cmp)|vp?(cmp|test|blend)|k(mov|and|or|not|xor|test|unpck|shift)|test|cmp|set",
    "shuffle": r"v?p?(perm|shuf|unpck|align|broadcast|insert|extract|compress|expand)",
    "float arithmetic": r"vfn?m|v?(add|sub|mul|min|max)[sp][sdh]|v(rndscale|scalef|reduce|range|getexp|getmant|fixup)",
    "vector integer": r"vp",
    "call or branch": r"j|call|ret",
}
_MOVE: Final = re.compile(r"v?mov|lea|push|pop|prefetch")


def kind_of(mnemonic: str, operands: str) -> str:
    """Return what an instruction (of objdump, AT&T order) does."""
    for kind, pattern in _KINDS.items():
        if re.match(pattern, mnemonic):
            return kind
    if _MOVE.match(mnemonic) and "(" in operands:
        return "store" if operands.rstrip().endswith(")") else "load"
    return "scalar and address"


def sampled(process: Process, seconds: float, folder: Path) -> list[tuple[int, str]]:
    """Return the sampled addresses with the file each belongs to."""
    assert process.process is not None
    data = folder / "perf.data"
    command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(RATE), "-o", str(data), "-p", str(process.process.pid)]
    recorder = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.2)
    process.ask(do="time", seconds=seconds)
    recorder.send_signal(signal.SIGINT)
    recorder.wait()
    text = subprocess.run(["perf", "script", "-i", str(data), "-F", "ip,dso"], capture_output=True, text=True, check=True).stdout
    rows = (re.fullmatch(r"\s*([0-9a-f]+)\s+\((.*)\)", line) for line in text.splitlines())
    return [(int(row[1], 16), row[2]) for row in rows if row]


def owner(dso: str) -> str:
    """Return who a sample belongs to."""
    if dso in ("[unknown]", "//anon") or re.search(r"perf-\d+\.map$", dso):
        return CODE
    if dso.startswith("[kernel") or dso == "[vdso]":
        return "system"
    name = Path(dso).name
    return "Python" if name.startswith(("python", "libpython")) else name.split(".")[0].split("-")[0]


def hot_loop(process: Process, places: list[int], folder: Path) -> dict[str, Any]:
    """Return the innermost loop with most samples: its share, length, and shares of kinds of instruction in it."""
    assert process.process is not None
    counts = collections.Counter(places)
    best: tuple[int, list[tuple[int, str, str]]] = (0, [])
    ordered = sorted(counts)
    groups: list[list[int]] = [[ordered[0]]]
    for place in ordered[1:]:
        if place - groups[-1][-1] > 4096:
            groups.append([])
        groups[-1].append(place)
    with open(f"/proc/{process.process.pid}/mem", "rb", buffering=0) as memory:
        for group in groups:
            memory.seek(group[0])
            code = memory.read(group[-1] - group[0] + 64)
            lines = disassembled(code, group[0], folder)
            closed = loops(lines)
            for low, high in closed:
                inner = [(a, b) for a, b in closed if low <= a and b <= high and (a, b) != (low, high)]
                here = [place for place in group if low <= place <= high and not any(a <= place <= b for a, b in inner)]
                inside = sum(counts[place] for place in here)
                if inside > best[0]:
                    best = inside, [line for line in lines if low <= line[0] <= high]
    if not best[1]:
        return {}
    shares: collections.Counter[str] = collections.Counter()
    for place, mnemonic, operands in best[1]:
        shares[kind_of(mnemonic, operands)] += counts.get(place, 0)
    kinds = collections.Counter(kind_of(mnemonic, operands) for _, mnemonic, operands in best[1])
    total = max(sum(shares.values()), 1)
    return {
        "share": round(best[0] / len(places), 3),
        "instructions": len(best[1]),
        "width": max((512 * ("%zmm" in o) or 256 * ("%ymm" in o) or 128 * ("%xmm" in o) for _, _, o in best[1]), default=0),
        "kinds": {kind: [kinds[kind], round(n / total, 3)] for kind, n in shares.most_common()},
    }


def disassembled(code: bytes, start: int, folder: Path) -> list[tuple[int, str, str]]:
    """Return address, mnemonic and operands of x86-64 code that begins with an instruction."""
    raw = folder / "code.bin"
    raw.write_bytes(code)
    command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", f"--adjust-vma={start:#x}", "--no-show-raw-insn", str(raw)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = (re.match(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)", line) for line in text.splitlines())
    return [(int(row[1], 16), row[2], row[3]) for row in rows if row]


def loops(lines: list[tuple[int, str, str]]) -> list[tuple[int, int]]:
    """Return first and last address of what a jump backwards closes."""
    found = []
    for place, mnemonic, operands in lines:
        target = re.match(r"(0x)?([0-9a-f]+)$", operands.split(" ")[0]) if mnemonic.startswith("j") else None
        if target and lines[0][0] <= int(target[2], 16) < place:
            found.append((int(target[2], 16), place))
    return found


def profile(record: dict[str, Any], folders: dict[str, Path], peers: Path, seconds: float, folder: Path) -> dict[str, Any]:
    """Return what was seen of one case."""
    kind, _, cls = record["case"].rpartition("/")
    size = min(record["ratios"], key=lambda s: record["ratios"][s])
    engine = KINDS[kind]
    launch, _ = made(quoted(cls), size)
    with tempfile.TemporaryDirectory(prefix="gewu-profile-") as cache:
        process = Process(engine, Path(sys.executable), folders.get(engine, WORK), cache, peers.parents[1])
        try:
            answer = process.ask(do="prepare", cls=cls, size=size)
            if "missing" in answer:
                raise RuntimeError(answer["missing"])
            process.ask(do="time", seconds=0.2)
            samples = sampled(process, seconds, folder)
            shares = collections.Counter(owner(dso) for _, dso in samples)
            own = [place for place, dso in samples if owner(dso) == CODE]
            loop = hot_loop(process, own, folder) if len(own) > 20 else {}
        finally:
            process.stop()
    return {
        "case": record["case"],
        "size": size,
        "status": record["status"],
        "ratio": record["ratio"],
        "best": record["best"],
        "seconds": record["times"][size][engine],
        "bytes": sum(a.nbytes for a in launch.args if isinstance(a, np.ndarray)),
        "busy": round(len(samples) / RATE / seconds, 2),
        "shares": {name: round(n / max(len(samples), 1), 3) for name, n in shares.most_common(4)},
        "loop": loop,
    }


def main() -> int:
    """Profile the cases asked for, or all below the bar; keep what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*")
    parser.add_argument("--peers", type=Path, default=WORK / "peers")
    parser.add_argument("--seconds", type=float, default=1.0)
    given = parser.parse_args()
    missing = [tool for tool in ("perf", "objdump", "nvcc") if shutil.which(tool) is None]
    peers = find(given.peers.resolve())
    if missing or peers is None:
        print(f"skipped, missing: {', '.join(missing) or 'PyTorch (python -m bench.ops.peers FOLDER)'}", file=sys.stderr)
        return 1
    records = json.loads(RECORDS.read_text())
    wanted = [r for r in records if (r["case"] in given.case if given.case else 0 < r["ratio"] < BAR)]
    folders = {name: path for name, path in build(WORK / "built").items() if name in READERS}
    found = []
    with tempfile.TemporaryDirectory(prefix="gewu-profile-") as folder:
        for record in wanted:
            try:
                found.append(profile(record, folders, peers, given.seconds, Path(folder)))
            except (RuntimeError, KeyError, OSError) as error:
                print(f"{record['case']}: {error}", file=sys.stderr)
                continue
            print(json.dumps(found[-1]), flush=True)
    if not given.case:
        PROFILES.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
