"""Run one benchmark and record it: `python -m bench.run dft` writes `bench/dft/latest.json`.

A topic is a module `bench.<topic>.bench` with `run(options) -> list[dict]`, one entry a case with the keys `case, peer, ratio,
ours, theirs, unit, accuracy, repeats, spread, versions`. The machine and the commit are added here. `ratio` > 1 means
that gewu is faster. `spread` is the larger of both programs' (slowest - fastest) / median. No entry means skipped: nothing
is written, so figures of an earlier run stay.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEYS = ("case", "peer", "ratio", "ours", "theirs", "unit", "accuracy", "repeats", "spread", "machine", "versions", "commit")
EXTRA = ("best", "status", "reason", "ratios", "times", "cold", "style", "styles")
"""Keys that only some topics have."""


def machine() -> str:
    """Return what the figures depend on: processor, cores that may be used, memory, system. No host name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    wide = "AVX-512" if any("avx512f" in line for line in lines) else "AVX2" if any("avx2" in line for line in lines) else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return ", ".join(filter(None, [f"{len(os.sched_getaffinity(0))} × {model}", wide, f"{memory:.0f} GiB", platform.system()]))


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of the installed `packages`."""
    found = {name: metadata.version(name) for name in packages if _installed(name)}
    return {"python": platform.python_version(), **found}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def commit() -> str:
    """Return the commit of this checkout, with `+` when the package differs from it; `unknown` outside a repository."""
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return "unknown"
    status = ["git", "status", "--porcelain", "--", "src", "pyproject.toml"]
    changed = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return head.stdout.strip() + ("+" if changed else "")


def compare(ours: Sequence[float], theirs: Sequence[float], unit: str = "s") -> dict[str, Any]:
    """Return `ratio`, medians, `repeats` and `spread` of two lists of times, or of rates ("steps/s"), measured in turn.

    >>> compare([1.0, 2.0, 1.5], [3.0, 3.0, 3.0])["ratio"]
    2.0
    >>> compare([1.0, 2.0, 1.5], [3.0, 3.0, 3.0], "steps/s")["ratio"]
    0.5
    """
    mid_ours, mid_theirs = statistics.median(ours), statistics.median(theirs)
    spread = max((max(times) - min(times)) / statistics.median(times) for times in (ours, theirs))
    return {
        "ratio": round(mid_ours / mid_theirs if unit.endswith("/s") else mid_theirs / mid_ours, 3),
        "ours": round(mid_ours, 4),
        "theirs": round(mid_theirs, 4),
        "unit": unit,
        "repeats": len(ours),
        "spread": round(spread, 3),
    }


def record(path: Path | None, entries: Sequence[Mapping[str, Any]]) -> None:
    """Complete the records with machine and commit, where they have none of their own, print them and, if there is a path and a
    record, write them there.
    """
    shared = {"machine": machine(), "commit": commit()}
    records = [
        {**{key: {**shared, **entry}[key] for key in KEYS}, **{key: entry[key] for key in EXTRA if key in entry}}
        for entry in entries
    ]
    text = json.dumps(records, indent=1, ensure_ascii=False)
    print(text)
    if records and path is not None:
        path.write_text(text + "\n")
        print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the topic named on the command line and write its `latest.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("topic", help="folder under bench/")
    parser.add_argument("--case", action="append", default=[], help="only this case (may be repeated); prints, records nothing")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pseudo", type=Path, default=Path("pseudo"), help="dft: folder with the SG15 UPF files, El.upf each")
    parser.add_argument("--peers", type=Path, default=Path("bench/md/work/peers"), help="folder that bench.TOPIC.peers made")
    parser.add_argument("--potentials", type=Path, default=Path("eam"), help="md: folder with LAMMPS' Cu_u3.eam")
    options = parser.parse_args(arguments)
    if not (ROOT / "bench" / options.topic / "bench.py").is_file():
        parser.error(f"bench/{options.topic}/bench.py does not exist")
    entries = importlib.import_module(f"bench.{options.topic}.bench").run(options)
    record(None if options.case else ROOT / "bench" / options.topic / "latest.json", entries)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
