"""One store in a process of its own: `python -m bench.data.worker ENGINE KIND FOLDER COUNT` answers requests, one JSON a line.

Requests (`do`): `pack`, `open` (time, memory), `warm` (page cache filled), `check` (digests of given samples by every way to
read), `random` and `batch` (samples per second over the given seconds), `scan`, `decode` (random reads with the JPEG decoded),
`cold` (closed, evicted, opened again, one pass over few indices), `limits` (what gewu cannot beat) and `versions`. The indices
come from a fixed seed, the same for every engine.

Evicted means: flushed to the disk, `posix_fadvise(DONTNEED)` on every file while none is mapped, then asked with `mincore` how
much is still there (`resident`, a share). The disk's own cache, and the host's below a virtual disk, are out of reach.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import itertools
import json
import mmap
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.data.engines import ENGINES
from bench.data.samples import Samples, decode, digest

BATCH = 256
_PAGE = mmap.PAGESIZE


def memory(field: str = "VmRSS") -> float:
    """Return a figure of this process's memory in MB (`RssAnon`: without the pages of mapped files)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def resident(path: Path) -> int:
    """Return how many pages of a file are in the page cache."""
    size = path.stat().st_size
    if not size:
        return 0
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        pages = (ctypes.c_ubyte * -(-size // _PAGE))()
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), pages)
        del view
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
        return int(np.count_nonzero(np.frombuffer(pages, np.uint8) & 1))


def evict(folder: Path) -> float:
    """Drop the files of `folder` from the page cache; return the share of their pages that is still there."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return sum(map(resident, files)) / max(sum(-(-path.stat().st_size // _PAGE) for path in files), 1)


class Worker:
    """Answer requests with one engine on one kind of samples."""

    def __init__(self, engine: str, kind: str, folder: Path, count: int) -> None:
        self.count, self.folder = count, folder / f"{engine}-{kind}"
        self.engine = ENGINES[engine](self.folder)
        self.samples = Samples(kind, count, folder / "pictures")
        self.indices = [int(i) for i in np.random.default_rng(5).integers(0, count, 200_000)]
        self.opened = False

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return what is asked for."""
        result: dict[str, Any] = getattr(self, request.pop("do"))(**request)
        return result

    def pack(self) -> dict[str, Any]:
        """Write all samples anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        started = time.perf_counter()
        self.engine.pack(self.samples)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "bytes": sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())}

    def open(self) -> dict[str, Any]:
        """Open the store and read one sample, twice: at the first time (`start`) libraries are imported and code is loaded."""
        seconds = []
        for _ in range(2):
            self._close()
            gc.collect()
            started = time.perf_counter()
            self.engine.open()
            self.opened = True
            self.engine.one()(0)
            seconds.append(time.perf_counter() - started)
        return {"start": seconds[0], "seconds": seconds[1], "rss_mb": memory("RssAnon")}

    def warm(self) -> dict[str, Any]:
        """Read all files into the page cache, open the store and go through the samples for at most three seconds."""
        for path in self.folder.rglob("*"):
            if path.is_file():
                with open(path, "rb") as stream:
                    while stream.read(1 << 24):
                        pass
        self.open()
        return self.scan(3.0)

    def check(self, indices: list[int]) -> dict[str, Any]:
        """Return the digest of the samples at `indices` as stored, made anew and compared byte for byte with every read."""
        made = [digest(self.samples[i]) for i in indices]
        one = self.engine.one()
        found = {"one": [digest(one(i)) for i in indices]}
        for name, many in self.engine.many().items():
            got = many(indices)
            if isinstance(got, dict):  # columns
                got = [{name: got[name][k] for name in ("image", "text", "features", "label")} for k in range(len(indices))]
            found[name] = [digest(sample) for sample in got]
        wanted = set(indices)
        for name, scan in self.engine.scans().items():
            by_index = {i: digest(sample) for i, sample in enumerate(scan()) if i in wanted}
            found[name] = [by_index[i] for i in indices]
        wrong = sorted(name for name, digests in found.items() if digests != made)
        return {"wrong": wrong, "ways": sorted(found), "digest": b"".join(made).hex()}

    def random(self, seconds: float) -> dict[str, Any]:
        """Time single reads."""
        one, done, started = self.engine.one(), 0, time.perf_counter()
        while (spent := time.perf_counter() - started) < seconds:
            for i in self._next(done, 2048):
                one(i)
            done += 2048
        return {"rates": {"one": done / spent}}

    def batch(self, seconds: float) -> dict[str, Any]:
        """Time reads of 256 at a time, by each way."""
        rates = {}
        for name, many in self.engine.many().items():
            done, started = 0, time.perf_counter()
            while (spent := time.perf_counter() - started) < seconds:
                many(self._next(done, BATCH))
                done += BATCH
            rates[name] = done / spent
        return {"rates": rates}

    def scan(self, seconds: float) -> dict[str, Any]:
        """Time a pass over the samples in order, by each way, until the last one or for the given seconds."""
        rates = {}
        for name, scan in self.engine.scans().items():
            samples, done, started = scan(), 0, time.perf_counter()
            while (spent := time.perf_counter() - started) < seconds:
                taken = sum(1 for _ in itertools.islice(samples, 5000))
                done += taken
                if not taken:
                    break
            rates[name] = done / spent
        return {"rates": rates}

    def decode(self, seconds: float) -> dict[str, Any]:
        """Time single reads with the JPEG decoded to pixels."""
        one, done, started = self.engine.one(), 0, time.perf_counter()
        while (spent := time.perf_counter() - started) < seconds:
            for i in self._next(done, 16):
                decode(one(i)["image"])
            done += 16
        return {"rates": {"one": done / spent}}

    def limits(self, seconds: float) -> dict[str, Any]:
        """Time what bounds gewu, over the same samples in the same order: `views` (checked, nothing copied), `copy` and `crc`.

        `copy` is the time to copy the stored bytes from the map to one buffer, `crc` that to compute their checksum.
        """
        from gewu.core.crc32c import crc32c_at

        store, buffer = self.engine.store, np.empty(1 << 20, np.uint8)
        where = [store.locate(i) for i in self.indices[:4000]]
        shards = {k: store._shard(k) for k, _ in where}
        maps = {k: np.frombuffer(shard.buffer, np.uint8) for k, shard in shards.items()}
        spans = [(k, *map(int, shards[k].offsets[row : row + 2])) for k, row in where]
        ways = {
            "views": lambda n: shards[where[n][0]].raw(where[n][1]),
            "copy": lambda n: np.copyto(buffer[: spans[n][2] - spans[n][1]], maps[spans[n][0]][spans[n][1] : spans[n][2]]),
            "crc": lambda n: crc32c_at(shards[spans[n][0]].address + spans[n][1], spans[n][2] - spans[n][1]),
        }
        rates = {}
        for name, way in ways.items():
            done, started = 0, time.perf_counter()
            while (spent := time.perf_counter() - started) < seconds:
                for n in range(200):
                    way((done + n) % len(where))
                done += 200
            rates[name] = done / spent
        return {"rates": rates}

    def cold(self, count: int, way: str) -> dict[str, Any]:
        """Time one pass over `count` samples that are on the disk only: `one`, `batch` or `scan` (from the first sample on)."""
        self._close()
        share = evict(self.folder)
        self.engine.open()
        self.opened = True
        indices = self.indices[:count]
        started = time.perf_counter()
        if way == "one":
            one = self.engine.one()
            for i in indices:
                one(i)
        elif way == "batch":
            many = next(iter(self.engine.many().values()))
            for start in range(0, count, BATCH):
                many(indices[start : start + BATCH])
        else:
            for _, _ in zip(range(count), next(iter(self.engine.scans().values()))(), strict=False):
                pass
        return {"rates": {way: count / (time.perf_counter() - started)}, "resident": share}

    def versions(self) -> dict[str, Any]:
        """Return the versions of what this engine needs."""
        return {name: importlib.metadata.version(name) for name in (*self.engine.packages, "pillow")}

    def _next(self, done: int, count: int) -> list[int]:
        start = done % (len(self.indices) - count)
        return self.indices[start : start + count]

    def _close(self) -> None:
        if self.opened:
            self.engine.close()
            self.opened = False
            gc.collect()


def main() -> int:
    """Answer the requests on standard input until it ends."""
    engine, kind, folder, count = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    worker = Worker(engine, kind, Path(folder), int(count))
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:  # the asker decides
            answer = {"missing": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    answers.flush()
    os._exit(0)  # some libraries leave threads and shared memory behind that never end


if __name__ == "__main__":
    raise SystemExit(main())
