"""Pieces and stages for tests of the pipeline; at the top of a module, so that other processes can import them."""

from __future__ import annotations

import hashlib
import os
import signal
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gewu.core.errors import InputError, ResourceError
from gewu.data.fields import Schema
from gewu.data.piece import Reject, Source
from gewu.data.pipeline import Pipeline

SCHEMA = Schema.of({"number": "int64", "text": "text"})


@dataclass(frozen=True)
class Numbers:
    """`count` samples, their texts made from their numbers; every `bad`-th is refused by the source itself."""

    name: str
    start: int
    count: int
    bad: int = 0

    @property
    def size_bytes(self) -> int:
        return self.count

    def samples(self) -> Iterator[dict[str, Any] | Reject]:
        for number in range(self.start, self.start + self.count):
            if self.bad and number % self.bad == 0:
                yield Reject("unreadable", f"line {number}")
            else:
                yield {"number": number, "text": "word " * (1 + zlib.crc32(b"%d" % number) % 40) + str(number)}


def numbers(pieces: int = 5, count: int = 60, bad: int = 0) -> Source:
    """Return pieces of unequal size."""
    counts = [count + 7 * k for k in range(pieces)]
    starts = [sum(counts[:k]) for k in range(pieces)]
    made = [Numbers(f"part-{k}", start, n, bad) for k, (start, n) in enumerate(zip(starts, counts, strict=True))]
    return Source(SCHEMA, made, "numbers", ("number",))


@dataclass(frozen=True)
class Multiples:
    """Keeps the numbers that a factor divides."""

    of: int = 2
    name: str = "multiples"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any] | Reject:
        return sample if sample["number"] % self.of == 0 else Reject(f"not-of-{self.of}")


@dataclass(frozen=True)
class Words:
    """Cuts a text into pieces of some words: a flat map that changes the schema and yields refusals in between."""

    most: int = 10
    name: str = "words"

    def schema(self, schema: Schema) -> Schema:
        return schema.with_fields({"k": "uint16"})

    def __call__(self, sample: dict[str, Any]) -> Iterator[dict[str, Any] | Reject]:
        words = sample["text"].split()
        for k in range(0, len(words), self.most):
            if k == 3 * self.most:
                yield Reject("too-long")
                return
            yield sample | {"text": " ".join(words[k : k + self.most]), "k": k // self.most}


@dataclass(frozen=True)
class Raises:
    """Raises at one number."""

    at: int
    kind: str = "input"
    name: str = "raises"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        if sample["number"] == self.at:
            if self.kind == "input":
                raise InputError("is an odd one", value=self.at)
            if self.kind == "resource":
                raise ResourceError("no more memory")
            raise KeyError("a bug")
        return sample


@dataclass(frozen=True)
class Killed:
    """Kills its process at one number, as the system does when memory is out: until `marks` holds `times` files."""

    at: int
    marks: str = field(repr=False)
    times: int = field(default=1, repr=False)
    name: str = "killed"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        if sample["number"] == self.at and (n := len(os.listdir(self.marks))) < self.times:
            Path(self.marks, str(n)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return sample


@dataclass(frozen=True)
class Residues:
    """Samples whose numbers have the same residue are duplicates; the first one stays."""

    modulus: int

    def sketch(self, samples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        return {"residue": np.array([sample["number"] % self.modulus for sample in samples], np.int64)}

    def join(self, sketches: Any) -> list[np.ndarray]:
        if not sketches:
            return []
        everything = np.concatenate([sketch["residue"] for sketch in sketches])
        keep = np.zeros(len(everything), bool)
        keep[np.unique(everything, return_index=True)[1]] = True
        return np.split(keep, np.cumsum([len(sketch["residue"]) for sketch in sketches])[:-1])


def files_of(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder by its name."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


RUN = """
import os, signal, sys, threading
from pathlib import Path
from gewu.core.errors import GewuError
from tests.pipelinetools import pipeline

def progress(done, total, **numbers):
    print("done", done, flush=True)
    if action == "wait":
        sys.stdin.readline()
    if action == "interrupt" and done == 1:  # as a terminal does, to all processes of the group
        threading.Timer(0.05, os.killpg, (0, signal.SIGINT)).start()

if __name__ == "__main__":
    root, dedup, count, action = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    print("start", flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a program that was begun in the background ignores it
    try:
        pipeline(root, dedup, count).run(2, "processes", progress=progress)
    except GewuError as error:
        print(error)
        sys.exit(error.exit_code)
"""
"""A program that runs `pipeline` on two processes; the fourth word says what it does at its first piece."""


def pipeline(root: Path, dedup: int, count: int) -> Pipeline:
    """Return a pipeline of eight pieces; `dedup` is the modulus of its duplicates, 0 for none."""
    options: dict[str, Any] = {"columns": ["k"], "dedup": Residues(dedup) if dedup else None, "shard_bytes": 20_000}
    return Pipeline(numbers(8, count, bad=50), (Multiples(2), Words(7)), root, **options)
