"""Millions of small files: made, read as pieces, dropped from the page cache, removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = 1000
"""Files of one folder."""
LEAST, MOST, MEAN, SIGMA = 200, 4096, 1200, 0.55
"""Sizes are log-normal, in bytes."""


def sizes_of(folder: int, count: int) -> np.ndarray:
    """Return the sizes in bytes of the files of one folder."""
    sizes = np.random.default_rng([20261128, folder]).lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, count)
    return np.clip(sizes, LEAST, MOST).astype(np.int64)


def _words(folder: int) -> bytes:
    """Return 64 kB of text out of which the files of a folder are cut."""
    generator = np.random.default_rng([1, folder])
    words = [bytes(w) for w in generator.integers(97, 123, (500, 9), np.uint8)]
    lengths, picks = generator.integers(2, 9, 12000), generator.zipf(1.3, 12000) % 500
    return b" ".join(words[k][:n] for k, n in zip(picks, lengths, strict=True))[: 1 << 16]


def _make(job: tuple[str, int, int]) -> int:
    root, number, count = job
    path = f"{root}/{number:05d}"
    os.mkdir(path)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    text = _words(number)
    sizes = sizes_of(number, count)
    starts = np.random.default_rng([2, number]).integers(0, len(text) - MOST, count)
    for j, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        file = os.open(f"{j:03d}.txt", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
        os.write(file, text[start : start + size])
        os.close(file)
    os.close(folder)
    return int(sizes.sum())


def generate(root: Path, count: int, workers: int = 2) -> int:
    """Make `count` files in folders of 1000 below a new folder, the same ones each time; return their bytes."""
    root.mkdir(parents=True)
    jobs = [(str(root), k, min(FOLDER, count - k * FOLDER)) for k in range(-(-count // FOLDER))]
    with ProcessPoolExecutor(workers) as pool:
        return sum(pool.map(_make, jobs, chunksize=8))


def remove(root: Path) -> None:
    """Remove the files, two folders at a time."""
    if root.exists():
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(shutil.rmtree, [entry.path for entry in os.scandir(root)], chunksize=8))
        shutil.rmtree(root)


def drop_from_cache(root: Path) -> None:
    """Ask the system to forget the content of all files below a folder (`posix_fadvise`); names and sizes stay known."""
    os.sync()  # only what is on the disk can be forgotten
    for folder in os.scandir(root):
        for name in os.listdir(folder.path) if folder.is_dir() else ():
            file = os.open(f"{folder.path}/{name}", os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


@dataclass(frozen=True)
class FilesPiece:
    """Some folders of `generate` as one piece: samples are `name` and `data`."""

    root: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"files-{self.start:05d}"

    def samples(self) -> Iterator[dict[str, Any]]:
        for number in range(self.start, self.stop):
            path = f"{self.root}/{number:05d}/"
            for name in sorted(os.listdir(path)):
                file = os.open(path + name, os.O_RDONLY)
                data = os.read(file, 1 << 16)
                os.close(file)
                yield {"name": f"{number:05d}/{name}", "data": data}
