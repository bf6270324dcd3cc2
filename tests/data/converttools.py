"""What the tests of other formats share: samples of every type, reading through pickle, comparison to the last bit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from gewu.data.convert import source
from gewu.data.fields import Schema
from gewu.data.shard import write_shards
from gewu.data.store import Store, open_shards

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
JPEG = b"\xff\xd8\xff" + bytes(20)


def read(path: Path, *args: Any, **options: Any) -> tuple[dict[str, str], list[Any]]:
    """Return the types and all samples of a source, after its pieces went through pickle, as they do to a worker."""
    found = source(path, *args, **options)
    pieces = pickle.loads(pickle.dumps(found.pieces))
    assert len({piece.name for piece in pieces}) == len(pieces)
    samples = [sample for piece in pieces for sample in piece.samples()]
    assert str(samples) == str([sample for piece in pieces for sample in piece.samples()])  # again and again the same
    return {field.name: str(field.type) for field in found.schema}, samples


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and (a == b or (a != a and b != b))


def stored(folder: Path, samples: list[dict[str, Any]], types: dict[str, str], **more: Any) -> Store:
    folder.mkdir()
    write_shards(folder, "s", samples, Schema.of(types, **more), shard_bytes=2000)
    return open_shards(folder)


def random_samples(number: int = 40) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return samples of every type that all formats but extxyz and folders hold."""
    random = np.random.default_rng(7)
    types = {"text": "text", "i": "int64", "u": "uint8", "f": "float32", "vec": "float64[3]", "rows": "float64[*,3]"}
    types |= {"tokens": "int32[*]", "blob": "bytes", "image": "image"}
    samples = []
    for k in range(number):
        samples.append(
            {
                "text": f'häl\0lo "{k}"\n日本' * (k % 3),
                "i": int(random.integers(-(2**63), 2**63 - 1)),
                "u": int(random.integers(256)),
                "f": float(np.float32(random.normal())),
                "vec": random.normal(size=3),
                "rows": random.normal(size=(int(random.integers(1, 5)), 3)),
                "tokens": random.integers(-(2**31), 2**31, int(random.integers(1, 300)), np.int32),
                "blob": random.bytes(int(random.integers(0, 50))),
                "image": (PNG if k % 2 else JPEG) + random.bytes(3),
            }
        )
    return types, samples
