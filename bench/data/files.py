"""Millions of small files: made, dropped from the page cache, removed."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

FOLDER = 1000
"""Files of one folder."""
LEAST, MOST, MEAN, SIGMA = 200, 4096, 1200, 0.55
"""Sizes are log-normal, in bytes."""


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
    text, generator = _words(number), np.random.default_rng([2, number])
    sizes = np.clip(generator.lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA, count), LEAST, MOST).astype(np.int64)
    starts = generator.integers(0, len(text) - MOST, count)
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
    """Remove a folder of folders, two at a time."""
    if root.exists():
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(shutil.rmtree, [entry.path for entry in os.scandir(root) if entry.is_dir()], chunksize=8))
        shutil.rmtree(root)


def forget(root: Path) -> None:
    """Drop the content of the files below a folder from memory; their names and sizes stay known."""
    os.sync()  # only what is on the disk can be forgotten
    for folder in os.scandir(root):
        for name in os.listdir(folder.path):
            file = os.open(f"{folder.path}/{name}", os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
