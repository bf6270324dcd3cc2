"""Five million small files into a store in one run, beside `tar cf` of the same files on the same disk.

`python -m bench.data.ingest --files 50000` tries it; the folder it works in needs 8 kB a file (40 GB for five million), and is
empty again at the end. Files are log-normal in size (200 to 4096 bytes, mean 1.2 kB), 1000 in a folder. gewu reads them with
two processes, computes a CRC-32C and a hash of each, and writes shards and catalogue; tar has one process. Both flush to the
disk at the end. Five million files do not fit into memory (a page each): both read them as the page cache has them, first gewu,
then tar. `cold`, of 200,000 files, means that the content of all files was dropped from memory before (posix_fadvise).
`accuracy` has MB/s of both, the greatest memory so far of the parent and of a worker after 10, 50 and 100 % of the files, and
bytes of index (offsets, schema, catalogue, manifests, receipts) for each sample. The store is checked: every CRC, and 1000
files byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.data import files as small
from bench.run import compare, versions

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(__file__).resolve().parent / "work" / "ingest"
FILES = 5_000_000
WORKERS = 2
GROUP_FILES = 16_000
FEW = 200_000
"""Files of which the content fits into memory, so that cold and warm can be told apart."""


def memory_mb(pid: int) -> float:
    """Return the greatest memory that a process had so far."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0.0)


def ours(folder: Path, store: Path) -> None:
    """Ingest in this process and its workers; print the figures as JSON."""
    from gewu.data.convert.folders import folder_source
    from gewu.data.pipeline import Pipeline

    begin, marks, most = time.perf_counter(), {}, {"parent": 0.0, "worker": 0.0}
    source = folder_source(str(folder), content="bytes", group_files=GROUP_FILES)
    listed = time.perf_counter() - begin

    def watch(done: int, total: int, **numbers: float) -> None:
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        most["parent"] = memory_mb(os.getpid())
        most["worker"] = max([most["worker"], *(memory_mb(int(pid)) for pid in children)])
        for percent in (10, 50, 100):
            if done * 100 >= percent * total:
                marks.setdefault(f"{percent}%", {key: round(value) for key, value in most.items()})

    summary = Pipeline(source, (), store).run(WORKERS, "processes", progress=watch)
    seconds = time.perf_counter() - begin
    raw = sum(row["raw_bytes"] for row in summary.shards)
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    figures = {"seconds": seconds, "listed_s": listed, "samples": summary.samples_out, "shards": len(summary.shards)}
    print(json.dumps(figures | {"memory_mb": marks, "index_bytes": (size - raw) / max(1, summary.samples_out)}))


def check(folder: Path, store: Path, count: int) -> None:
    """Compare 1000 files, and check every sample."""
    from gewu.data.catalogue import Catalogue

    catalogue = Catalogue(store)
    opened = catalogue.open()
    assert len(opened) == count, (len(opened), count)
    for number in random.Random(1).sample(range(count), min(count, 1000)):
        sample = opened[number]
        assert (folder / sample["path"]).read_bytes() == sample["data"], sample["path"]
    assert catalogue.verify(deep=True) == []


def turn(who: str, folder: Path) -> dict[str, Any]:
    """Let one of both do it once, in a process of its own; return its figures."""
    target = folder.parent / who
    shutil.rmtree(target, ignore_errors=True)
    target.unlink(missing_ok=True)
    if who == "gewu":
        command = [sys.executable, "-m", "bench.data.ingest", "--child", str(folder), str(target)]
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        found = subprocess.run(command, cwd=ROOT, env={**os.environ, **limits}, check=True, capture_output=True, text=True)
        figures: dict[str, Any] = json.loads(found.stdout)
        return figures
    begin = time.perf_counter()
    subprocess.run(["tar", "cf", str(target), "-C", str(folder), "."], check=True)
    with open(target, "rb") as stream:
        os.fsync(stream.fileno())
    return {"seconds": time.perf_counter() - begin}


def measure(count: int, work: Path, rounds: int, kinds: Sequence[str] = ("cold", "warm")) -> dict[str, Any]:
    """Return the record of the case; the last of `kinds` is the one that counts."""
    folder = work / "files"
    begin = time.perf_counter()
    size = small.generate(folder, count)
    print(f"{count} files, {size / 1e6:.0f} MB, made in {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    seconds: dict[tuple[str, str], list[float]] = {}
    last: dict[str, Any] = {}
    for k in range(rounds):
        for kind in kinds:
            for who in ("gewu", "tar")[:: 1 if k % 2 == 0 else -1]:
                if kind == "cold":
                    small.forget(folder)
                figures = turn(who, folder)
                seconds.setdefault((kind, who), []).append(figures["seconds"])
                last = figures if who == "gewu" else last
                print(
                    f"{kind} {who}: {count / figures['seconds']:.0f} files/s {json.dumps(figures)}", file=sys.stderr, flush=True
                )
                os.sync()  # nobody pays for the writing of another
    check(folder, work / "gewu", count)
    rates = {key: [count / s for s in values] for key, values in seconds.items()}
    compared = {kind: compare(rates[kind, "gewu"], rates[kind, "tar"], "files/s") for kind in kinds}
    warm = compared.pop(kinds[-1])
    megabytes = {who: round(warm[who] * size / count / 1e6, 1) for who in ("ours", "theirs")}
    facts = {"files": count, "MB": round(size / 1e6), "MB/s": megabytes}
    facts |= {key: last[key] for key in ("memory_mb", "index_bytes", "shards", "listed_s")}
    facts |= {kind: {key: found[key] for key in ("ratio", "ours", "theirs")} for kind, found in compared.items()}
    return {"case": "ingest-5m", "peer": "tar", **warm, "accuracy": facts, "versions": tar_version()}


def tar_version() -> dict[str, str]:
    first = subprocess.run(["tar", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return versions("gewu", "numba", "pyarrow") | {"tar": first.split()[-1]}


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Make the files, measure, check, remove everything."""
    count, work = getattr(options, "files", FILES), Path(getattr(options, "work", WORK))
    need = 8192 * count
    work.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(work).free < need:
        print(f"data: ingest-5m skipped, {work} has less than {need / 1e9:.0f} GB free", file=sys.stderr)
        return []
    try:
        rounds = getattr(options, "rounds", 1)
        if count <= FEW:
            return [measure(count, work, rounds)]
        few = measure(FEW, work, rounds)["accuracy"]
        small.remove(work / "files")
        made = measure(count, work, rounds, ("as left",))
        made["accuracy"]["cold"] = few["cold"] | {"files": FEW}
        return [made]
    finally:
        small.remove(work / "files")
        shutil.rmtree(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        ours(*options.child)
    else:
        print(json.dumps(run(options), indent=1))


if __name__ == "__main__":
    main()
