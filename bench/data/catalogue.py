"""Case `catalogue`: bytes a sample, scans, a version of a million shards. `catalogue-prune`: a condition that concerns one shard.

`catalogue`: 5 million rows of plausible columns (length, hash, source, licence, language, quality, label) in 20 parts; `ours`
and `theirs` are bytes a sample, of gewu and of pyarrow's writer with zstd and its own choices. `accuracy` holds `plain_zstd` (no
dictionaries), `real_bytes` (the same of this machine's documentation: package, language, suffix, size, hash of the files), rows/s
that DuckDB filters and groups (both through gewu), and for a synthetic version of 10^6 shards of 10^5 samples each, 10^11 in all:
bytes of manifests a shard, seconds and MB of memory to open it, seconds of a condition that no shard meets and of a commit,
`versions_ms` to read the list of versions.

`catalogue-prune`: seconds to find the samples of one day in a store of 1,000 shards, one day each: gewu, and DuckDB over
all parts, which looks into each. Every side runs in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.run import compare, versions

REPOSITORY = Path(__file__).resolve().parents[2]
PARTS, ROWS, SHARDS, SAMPLES, DAYS = 20, 250_000, 1_000_000, 100_000, 1_000
REAL = ("/usr/share/doc", "/usr/share/man", "/usr/share/info")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure; return the records of the two cases."""
    with tempfile.TemporaryDirectory() as folder:
        facts = (
            child("sizes", folder)
            | child("scan", folder)
            | child("million", f"{folder}/million")
            | child("open", f"{folder}/million")
        )
        sizes = {name: facts.pop(f"{name}_bytes") for name in ("ours", "theirs")}
        child("days", f"{folder}/days")
        turns = [(child("ours", f"{folder}/days"), child("theirs", f"{folder}/days")) for _ in range(options.repeats)]
    seconds = [[turn[side]["seconds"] for turn in turns] for side in (0, 1)]
    used = versions("gewu", "numpy", "pyarrow", "duckdb")
    records = [
        {"case": "catalogue", "peer": "pyarrow-zstd", **compare([sizes["ours"]], [sizes["theirs"]], "bytes"), "accuracy": facts},
        {"case": "catalogue-prune", "peer": "duckdb-all-parts", **compare(*seconds, "s"), "accuracy": {"shards": DAYS}},
    ]
    for record in records:
        record["versions"] = used
        print(
            f"{record['case']} {record['peer']}: {record['ratio']} {json.dumps(record['accuracy'])}", file=sys.stderr, flush=True
        )
    return records


def child(side: str, folder: str) -> dict[str, float]:
    """Run one step in its own process and return what it prints.

    Raises:
        RuntimeError: it ends with an error.
    """
    command = [sys.executable, "-m", "bench.data.catalogue", side, folder]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"catalogue, {side}: {done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return {key: float(f"{value:.4g}") for key, value in found.items()}


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def plausible(part: int, rows: int = ROWS) -> dict[str, Any]:
    """Return the columns of one part; sources, as in a crawl, come and go from part to part."""
    rng = np.random.default_rng(part)

    def some(names: list[str], chances: list[float]) -> list[str]:
        return np.array(names, object)[rng.choice(len(names), rows, p=np.array(chances) / sum(chances))].tolist()

    sources = [f"crawl-2026-{part:02d}/{k:03d}" for k in range(40)]
    return {
        "length": np.clip(rng.lognormal(7.5, 0.6, rows), 200, 65535).astype(np.uint32),
        "hash": rng.integers(0, 2**64, rows, dtype=np.uint64),
        "source": some(sources, [0.9**k for k in range(40)]),
        "licence": some(["CC-BY-4.0", "CC0-1.0", "MIT", "GPL-3.0", "unknown"], [5, 2, 1, 1, 1]),
        "language": some(["en", "de", "fr", "zh", "es", "ru"], [5, 1, 1, 1, 1, 1]),
        "quality": rng.integers(0, 256, rows).astype(np.uint8),
        "label": rng.integers(0, 1000, rows).astype(np.uint16),
    }


def real() -> Iterator[tuple[str, str, str, int, int]]:
    """Yield package, language, suffix, size and hash of the documentation files of this machine."""
    for path in (path for folder in REAL for path in sorted(Path(folder).rglob("*")) if path.is_file() and not path.is_symlink()):
        data, above = path.read_bytes(), path.parts[4] if len(path.parts) > 4 else ""
        language = above if "/man/" in str(path) and not above.startswith("man") else "en"
        hashed = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        yield above, language, path.suffix[:6], len(data), hashed


def sizes(folder: Path) -> dict[str, float]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gewu.data import Schema
    from gewu.data.catalogue import Catalogue, part_path, write_part

    catalogue, total, theirs, plain, written = Catalogue(folder / "a.store"), 0, 0, 0, []
    catalogue.commit([], [], Schema.of({"text": "text"}))  # makes the folders
    for part in range(PARTS):
        columns = plausible(part)
        written.append(write_part(part_path(catalogue.root, f"s-{part:04d}.gws"), columns))
        total += written[-1].bytes
        for dictionary in (True, False):
            pq.write_table(pa.table(columns), sink := io.BytesIO(), compression="zstd", use_dictionary=dictionary)
            theirs, plain = theirs + dictionary * sink.tell(), plain + (not dictionary) * sink.tell()
    publish(catalogue, [part.name for part in written], [ROWS] * PARTS, written)
    found = {"ours_bytes": total / (PARTS * ROWS), "theirs_bytes": theirs / (PARTS * ROWS), "plain_zstd": plain / (PARTS * ROWS)}
    if rows := list(real()):
        names = ("source", "language", "suffix", "length", "hash")
        columns = {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
        found["real_bytes"] = write_part(folder / "real.parquet", columns).bytes / len(rows)
        found["real_rows"] = len(rows)
    return found


def publish(catalogue: Any, names: list[str], samples: list[int], parts: list[Any]) -> None:
    """Make a version of shards that are not there: only their catalogue is measured."""
    from gewu.data.catalogue import _manifest
    from gewu.data.shard import ShardInfo

    parent = catalogue.snapshot()
    shas = (hashlib.sha256(name.encode()).hexdigest() for name in names)
    shards = [ShardInfo(n, s, 10**10, 10**10, sha) for n, s, sha in zip(names, samples, shas, strict=True)]
    columns = {name: stats["type"] for name, stats in parts[0].stats.items()}
    catalogue._publish(parent, "", parent.schema, columns, [_manifest(shards, parts, columns)])


def scan(folder: Path) -> dict[str, float]:
    from gewu.data.catalogue import Catalogue

    catalogue = Catalogue(folder / "a.store")
    rows, ask = PARTS * ROWS, "SELECT language, count(*), sum(length) FROM samples WHERE label = 7 AND quality > 200 GROUP BY 1"
    return {
        "filter_rows_per_s": rows / seconds(lambda: catalogue.where("label = 7 and quality > 200")),
        "half_rows_per_s": rows / seconds(lambda: catalogue.where("quality > 127")),
        "group_rows_per_s": rows / seconds(lambda: catalogue.sql(ask)),
    }


def million(folder: Path) -> dict[str, float]:
    from gewu.data import Schema
    from gewu.data.catalogue import Catalogue, PartInfo

    catalogue, rng = Catalogue(folder), np.random.default_rng(0)
    catalogue.commit([], [], Schema.of({"text": "text"}))
    quality, shas = np.sort(rng.random((SHARDS, 2)), 1).astype(np.float32).tolist(), rng.bytes(32 * SHARDS).hex()
    parts = []
    for k, (low, high) in enumerate(quality):
        stats = {
            "length": {"type": "uint32", "min": 64 + k % 100, "max": 60_000 + k % 997},
            "hash": {"type": "uint64"},
            "source": {"type": "string", "values": [f"crawl-{k % 997:03d}"]},
            "language": {"type": "string", "values": ["de", "en", "fr"][k % 2 : k % 2 + 2]},
            "quality": {"type": "float", "min": low, "max": high},
        }
        name = f"crawl-{k // 1000:04d}-{k % 1000:04d}.gws"
        parts.append(PartInfo(name, SAMPLES, 1_400_000 + k % 9973, shas[64 * k : 64 * k + 64], k, stats))
    publish(catalogue, [part.name for part in parts], [SAMPLES] * SHARDS, parts)
    size = sum(path.stat().st_size for path in (folder / "manifests").iterdir())
    return {"manifest_bytes_per_shard": size / SHARDS}


def opened(folder: Path) -> dict[str, float]:
    import duckdb  # noqa: F401  (imports are not timed)
    import pyarrow.parquet  # noqa: F401

    from gewu.data import view  # noqa: F401
    from gewu.data.catalogue import Catalogue

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

    catalogue, before = Catalogue(folder), peak()
    found = {
        "versions_ms": 1e3 * seconds(catalogue.versions),
        "open_1e6_s": seconds(catalogue.open, 1),
        "open_1e6_peak_mb": peak() - before,
    }
    found["none_of_1e6_s"] = seconds(lambda: catalogue.where("quality > 1.5 and language = 'de'"))
    found["all_of_1e6_s"] = seconds(lambda: catalogue.where(None))
    found["commit_on_1e6_s"] = seconds(lambda: catalogue.commit([], [], catalogue.snapshot().schema), 1)
    return found


def days(folder: Path) -> dict[str, float]:
    from gewu.data import Schema
    from gewu.data.catalogue import Catalogue, part_path, write_part

    catalogue = Catalogue(folder)
    catalogue.commit([], [], Schema.of({"text": "text"}))
    rows, parts = 1000, []
    for day in range(DAYS):
        columns = plausible(day, rows) | {"day": np.full(rows, day, np.int32)}
        parts.append(write_part(part_path(folder, f"day-{day:04d}.gws"), columns))
    publish(catalogue, [part.name for part in parts], [rows] * DAYS, parts)
    return {}


def ours(folder: Path) -> dict[str, float]:
    from gewu.data.catalogue import Catalogue

    catalogue = Catalogue(folder)
    assert len(catalogue.where("day = 421")) == 1000
    return {"seconds": seconds(lambda: catalogue.where("day = 421"))}


def theirs(folder: Path) -> dict[str, float]:
    import duckdb

    def ask() -> Any:
        query = "SELECT file_index, file_row_number FROM read_parquet(?) WHERE day = 421"
        return duckdb.connect().execute(query, [f"{folder}/catalogue/*.parquet"]).fetchnumpy()

    assert len(ask()["file_index"]) == 1000
    return {"seconds": seconds(ask)}


if __name__ == "__main__":
    steps = {"sizes": sizes, "scan": scan, "million": million, "open": opened, "days": days, "ours": ours, "theirs": theirs}
    os.makedirs(sys.argv[2], exist_ok=True)
    print(json.dumps(steps[sys.argv[1]](Path(sys.argv[2]))))
