"""Batches for a trainer: gewu's loader against torch's DataLoader over MosaicML's MDS, and tokens per second when packed.

Both shuffle the same samples globally and hand out batches as arrays and lists: `loader-1k6` batches of 256 small samples,
`loader-100k` batches of 32 pictures decoded to pixels. gewu has threads and checks every CRC, DataLoader has processes (its
only kind) and checks nothing. `ratio` is at two workers, `accuracy` has all numbers of workers, the tokens that rows of 2048
receive per second (documents of log-normal length, median 400; `greedy`, and `best-fit` without cutting), and how full they are.

Every figure comes from a process of its own, `python -m bench.data.loader ENGINE KIND FOLDER WORKERS`, which is warm before it
measures; the sides take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
CASES = {"loader-1k6": "small", "loader-100k": "large"}
BATCH = {"small": 256, "large": 32}
WORKERS = {"small": (0, 1, 2), "large": (0, 2)}
SECONDS, WARM, PATIENCE_S = 2.0, 12, 120.0


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run both cases, or those asked for; without the peer nothing is recorded, gewu's figures are printed."""
    from bench.data import peers
    from bench.data.bench import WORK, pack
    from bench.data.samples import make_pictures
    from bench.run import compare, versions

    folders = (Path(options.peers), WORK / "peers")
    theirs = next((python for folder in folders if (python := peers.find(folder.resolve(), "mds"))), None)
    engines = {"gewu": Path(sys.executable), **({"mds": theirs} if theirs else {})}
    make_pictures(WORK / "pictures")
    records = []
    for case, kind in CASES.items():
        if options.case and not any(case.startswith(asked) for asked in options.case):
            continue
        pack(kind, engines)
        rates: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.repeats):
            for workers in WORKERS[kind]:
                for engine, python in engines.items():
                    rates.setdefault((engine, workers), []).append(ask(python, engine, kind, WORK / f"{engine}-{kind}", workers))
        every = {f"{engine} {workers}": round(statistics.median(found)) for (engine, workers), found in rates.items()}
        every |= packing() if kind == "small" else {}
        print(case, json.dumps(every), file=sys.stderr, flush=True)
        if theirs:
            ratio = compare(rates["gewu", 2], rates["mds", 2], "samples/s")
            found = ask(theirs, "mds", kind, WORK, -1)
            records.append({"case": case, "peer": "mds", **ratio, "accuracy": every, "versions": {**versions("gewu"), **found}})
    return records


def ask(python: Path, engine: str, kind: str, folder: Path, workers: int) -> Any:
    """Return what a process of its own says."""
    command = [str(python), "-W", "ignore", "-m", "bench.data.loader", engine, kind, str(folder), str(workers)]
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    own = {"cwd": ROOT, "env": {**os.environ, **limits}, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **own)
    assert process.stdout is not None
    try:  # not until the pipe is closed: DataLoader's workers may outlive their program and keep it open
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
        line = process.stdout.readline() if ready else ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    if not line:
        raise RuntimeError(f"{engine} with {workers} workers gave no figure; run {' '.join(command)}")
    return json.loads(line)


def gewu_batches(folder: Path, kind: str, workers: int) -> Iterator[Any]:
    """Yield batches for ever."""
    from gewu.data import open_shards
    from gewu.data.loader import Loader

    transform = None
    if kind == "large":
        from gewu.data.images import ToArray

        transform = ToArray()
    return Loader(open_shards(folder), BATCH[kind], seed=1, epochs=None, workers=workers, transform=transform)


def mds_batches(folder: Path, kind: str, workers: int) -> Iterator[Any]:
    """Yield batches for ever."""
    from torch.utils.data import DataLoader

    from bench.data.engines import Mds

    options = {"local": str(folder), "shuffle": True, "shuffle_seed": 1, "batch_size": BATCH[kind], "num_canonical_nodes": 1}
    data = Mds._library().StreamingDataset(**options)
    loader = DataLoader(
        data, BATCH[kind], num_workers=workers, collate_fn=_Collated(kind), prefetch_factor=2 if workers else None
    )
    while True:
        yield from loader


class _Collated:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        import io

        from PIL import Image
        from torch.utils.data import default_collate

        batch = default_collate([{name: sample[name] for name in ("text", "features", "label")} for sample in samples])
        images = [sample["image"] for sample in samples]
        if self.kind == "large":
            images = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in images]
        return batch | {"image": images}


def rate(batches: Iterator[Any], size: int) -> float:
    """Return samples per second, after some batches that are not counted."""
    for _ in range(WARM):
        next(batches)
    done, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < SECONDS:
        batch = next(batches)
        assert len(batch["image"]) == len(batch["label"]) == size
        done += size
    return done / spent


def packing() -> dict[str, float]:
    """Return million tokens per second in rows of 2048 from a store of documents, and how full the rows are, by strategy."""
    from gewu.data import Schema, open_shards
    from gewu.data.loader import Loader
    from gewu.data.packing import PackedLoader, Packer
    from gewu.data.shard import write_shards

    rng = np.random.default_rng(3)
    lengths = np.exp(np.log(400) + rng.standard_normal(20_000)).astype(int) + 1
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        samples = ({"tokens": rng.integers(0, 50_000, n, np.uint32)} for n in lengths)
        write_shards(folder, "s", samples, Schema.of({"tokens": "uint32[*]"}))
        for name, packer in (
            ("greedy", Packer(2048, eos=0)),
            ("best-fit", Packer(2048, eos=0, split=False, strategy="best-fit")),
        ):
            with PackedLoader(Loader(open_shards(folder), 1, epochs=None), packer, 32) as rows:
                next(rows)
                tokens, places, started = 0, 0, time.perf_counter()
                while (spent := time.perf_counter() - started) < SECONDS:
                    segments = next(rows)["segments"]
                    tokens, places = tokens + int(np.count_nonzero(segments)), places + segments.size
            found[f"million tokens/s {name}"] = round(tokens / spent / 1e6, 1)
            found[f"full {name}"] = round(tokens / places, 3)
    return found


def main() -> None:
    """Print one figure of one engine, or its versions."""
    engine, kind, folder, workers = sys.argv[1:]
    if int(workers) < 0:
        print(json.dumps({name: importlib.metadata.version(name) for name in ("mosaicml-streaming", "torch", "pillow")}))
    else:
        batches = {"gewu": gewu_batches, "mds": mds_batches}[engine](Path(folder), kind, int(workers))
        print(json.dumps(rate(batches, BATCH[kind])), flush=True)


if __name__ == "__main__":
    main()
