"""One process against two on stages for text: decode, normalise, language, quality, private data masked; documents/s.

`python -m bench.data.pipeline --documents 6000`. The documents are pages of manuals in several languages, or, where the system
has none, made of words. Both runs are processes of their own, started again each time; the start of the workers counts. A core's
speed changes from minute to minute where machines are shared, so they take turns.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.run import compare, versions

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(__file__).resolve().parent / "work" / "pipeline"
DOCUMENTS, PIECES = 20_000, 24


@dataclass(frozen=True)
class Pages:
    """`count` pages from `start` on; when there are no more, from the first one on again."""

    name: str
    start: int
    count: int

    def samples(self) -> Iterator[dict[str, Any]]:
        paths = pages()
        for k in range(self.start, self.start + self.count):
            data = paths[k % len(paths)].read_bytes() if paths else made(k)
            yield {"content": gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data, "path": f"{k}"}


@cache
def pages() -> list[Path]:
    """Return the manual pages and texts of the system, in sorted order."""
    found = [
        *Path("/usr/share/man").rglob("*.gz"),
        *Path("/usr/share/doc").rglob("*.txt"),
        *Path("/usr/share/perl").rglob("*.pod"),
    ]
    return sorted(path for path in found if path.is_file() and 500 < path.stat().st_size < 200_000)


def made(number: int) -> bytes:
    """Return a text of some thousand made-up words."""
    generator = np.random.default_rng([3, number])
    words = ["".join(map(chr, generator.integers(97, 123, n))) for n in generator.integers(2, 10, 400)]
    return " ".join(words[k] + ".\n" * (k % 11 == 0) for k in (generator.zipf(1.4, 800) % 400)).encode()


def ours(workers: int, documents: int, store: Path) -> None:
    """Run the pipeline in this process (and `workers`); print the figures."""
    from gewu.data.fields import Schema
    from gewu.data.piece import Source
    from gewu.data.pii import MaskPII
    from gewu.data.pipeline import Pipeline
    from gewu.data.text import Decode, Language, Normalise, Plain, Quality

    count = documents // PIECES
    pieces = [Pages(f"pages-{k:03d}", k * count, count) for k in range(PIECES)]
    source = Source(Schema.of({"content": "bytes", "path": "text"}), pieces, "pages")
    stages = [Decode(errors="replace"), Plain(), Normalise(), Language(), Quality(), MaskPII()]
    pages()
    begin = time.perf_counter()
    summary = Pipeline(source, stages, store).run(workers, "processes")
    seconds = time.perf_counter() - begin
    print(json.dumps({"rate": summary.samples_in / seconds, "kept": summary.samples_out, "rejects": summary.rejects}))


def turn(workers: int, documents: int) -> dict[str, Any]:
    store = WORK / f"{workers}.store"
    shutil.rmtree(store, ignore_errors=True)
    command = [sys.executable, "-m", "bench.data.pipeline", "--documents", str(documents), "--child", str(workers), str(store)]
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    found = subprocess.run(command, cwd=ROOT, env={**os.environ, **limits}, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(found.stdout)
    return figures


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the record: `ratio` is the speed-up of two processes."""
    documents, repeats = getattr(options, "documents", DOCUMENTS), max(3, options.repeats)
    WORK.mkdir(parents=True, exist_ok=True)
    turn(2, documents // 10)  # compiles what is compiled once
    rates: dict[int, list[float]] = {1: [], 2: []}
    for k in range(repeats):
        for workers in (1, 2)[:: 1 if k % 2 == 0 else -1]:
            figures = turn(workers, documents)
            rates[workers].append(figures["rate"])
            print(f"{workers}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    same = {path.name: path.read_bytes() for path in (WORK / "1.store/shards").iterdir()}
    assert same == {path.name: path.read_bytes() for path in (WORK / "2.store/shards").iterdir()}
    shutil.rmtree(WORK)
    found = compare(rates[2], rates[1], "documents/s")
    facts = {"documents": documents, "kept": figures["kept"], "rejects": figures["rejects"], "pages": len(pages())}
    return [{"case": "pipeline-2p", "peer": "one process", **found, "accuracy": facts, "versions": versions("gewu", "numba")}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        ours(int(options.child[0]), options.documents, Path(options.child[1]))
    else:
        print(json.dumps(run(options), indent=1))


if __name__ == "__main__":
    main()
