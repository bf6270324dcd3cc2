"""The page of the shard format, checked: a short reader, written from `docs/data-format.md` alone, reads what `Shard` reads.

Plain Python without NumPy and without anything of gewu; zstd is the only thing that it takes from elsewhere.
"""

from __future__ import annotations

import json
import math
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.data import Schema, Shard
from gewu.data.shard import ShardWriter
from tests.data.test_shard import a_type, a_value

# ---- the reader

LETTER = {"bool": "?", "int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint8": "B", "uint16": "H", "uint32": "I"}
LETTER |= {"uint64": "Q", "float16": "e", "bfloat16": "H", "float32": "f", "float64": "d", "complex64": "ff", "complex128": "dd"}
TABLE = list(range(256))
for _ in range(8):
    TABLE = [n >> 1 ^ 0x82F63B78 * (n & 1) for n in TABLE]  # 0x1EDC6F41 with its bits in reverse order


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def up(at: int, m: int) -> int:
    return -(-at // m) * m


def split(kind: str) -> tuple[str, int, list[str]]:
    """Return the name of an array's numbers ("" if it is none), the bytes of one, and the axes."""
    name, _, axes = kind.rstrip("]").partition("[")
    name = name if name in LETTER and not kind.endswith("?") else ""
    return name, struct.calcsize("<" + LETTER.get(name, "")), axes.split(",") if axes else []


def width(kind: str) -> int:
    """Return the bytes of a value, -1 if they vary."""
    name, one, axes = split(kind)
    return one * math.prod(map(int, axes)) if name and "*" not in axes else -1


def align(kind: str) -> int:
    return min(8, split(kind)[1]) if width(kind) >= 0 else 1 if kind in ("bytes", "text", "image") else 8


def nest(flat: Any, shape: list[int]) -> Any:
    return [nest(flat, shape[1:]) for _ in range(shape[0])] if shape else next(flat)


def value(data: bytes, at: int, end: int, kind: str) -> Any:
    """Return the value at `at`, aligned, of a sample."""
    if kind in ("bytes", "text", "image"):
        return data[at:end].decode() if kind == "text" else data[at:end]
    name, one, axes = split(kind)
    if name:
        free = iter(struct.unpack_from(f"<{axes.count('*')}I", data, at))
        shape = [next(free) if axis == "*" else int(axis) for axis in axes]
        at = up(at + 4 * axes.count("*"), min(8, one))
        flat: Any = struct.unpack_from("<" + LETTER[name] * math.prod(shape), data, at)
        flat = map(complex, flat[::2], flat[1::2]) if name.startswith("complex") else flat
        flat = (struct.unpack("<f", struct.pack("<I", n << 16))[0] for n in flat) if name == "bfloat16" else flat
        return nest(iter(flat), shape)
    item, (count,) = kind[5:-1] if kind.endswith("]") else kind[:-1], struct.unpack_from("<I", data, at)
    ends = [up(at + 4, align(item)) + width(item) * k for k in range(count + 1)]
    if width(item) < 0:
        ends = [at + 4 + 4 * count, *(at + end for end in struct.unpack_from(f"<{count}I", data, at + 4))]
    found = [value(data, up(begin, align(item)), end, item) for begin, end in pairwise(ends)]
    return found if kind.endswith("]") else found[0] if found else None


def sample(data: bytes, fields: list[tuple[str, str]]) -> dict[str, Any]:
    assert crc32c(data[4:]) == struct.unpack_from("<I", data)[0]
    ends = iter(struct.unpack_from(f"<{sum(width(kind) < 0 for _, kind in fields)}I", data, 4))
    found, at = {name: None for name, _ in fields}, 4 + 4 * sum(width(kind) < 0 for _, kind in fields)
    for name, kind in sorted(fields, key=lambda field: width(field[1]) < 0):  # fixed ones first
        at = up(at, align(kind))
        end = at + width(kind) if width(kind) >= 0 else next(ends)
        found[name], at = value(data, at, end, kind), end
    return found


def read(path: Path, unzip: Any = None) -> list[dict[str, Any]]:
    file = path.read_bytes()
    footer, n, b, text, total, _, compression = struct.unpack_from("<QQQQIII", file, len(file) - 64)
    assert file[:8] == file[-8:] == b"\x89GWS\r\n\x1a\n" and crc32c(file[footer:-64]) == total
    assert struct.pack("<II", crc32c(file[:60]), crc32c(file[-64:-12])) == file[60:64] + file[-12:-8]
    offsets, at, data = struct.unpack_from(f"<{n + 1}Q", file, footer), footer + 8 * (n + 1), file
    if compression:
        place, raw, sums = (struct.unpack_from(f"<{b + 1 - k // 2}{'QQI'[k]}", file, at + 8 * (b + 1) * k) for k in range(3))
        blocks, at = [file[begin:end] for begin, end in pairwise(place)], at + 16 * (b + 1) + 4 * b
        assert tuple(map(crc32c, blocks)) == sums
        data = bytes(64) + b"".join(map(unzip, blocks, (end - begin for begin, end in pairwise(raw))))
    fields = [(row["name"], row["type"]) for row in json.loads(file[at : at + text])["fields"]]
    return [sample(data[begin:end], fields) for begin, end in pairwise(offsets)]


# ---- the check


def plain(found: Any) -> Any:
    """Return a value without NumPy."""
    if isinstance(found, np.ndarray):
        return found.astype(np.float64).tolist() if found.dtype.name == "bfloat16" else found.tolist()
    return [plain(item) for item in found] if isinstance(found, list) else found


@pytest.mark.parametrize("seed", range(60))
def test_a_reader_written_from_the_page_reads_every_sample(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    schema = Schema.of({f"f{k}": a_type(rng) for k in range(rng.integers(1, 7))})
    samples = [{field.name: a_value(rng, field.type) for field in schema} for _ in range(rng.integers(0, 9))]
    compression = "none" if seed < 40 else str(rng.choice(["sample", "block"]))
    unzip = None
    if compression != "none":
        arrow = pytest.importorskip("pyarrow")
        unzip = lambda data, size: arrow.Codec("zstd").decompress(data, size, asbytes=True)  # noqa: E731
    with ShardWriter(tmp_path / "a.gws", schema, compression=compression, block_bytes=200) as writer:
        for one in samples:
            writer.add(one)
    shard = Shard(tmp_path / "a.gws")
    expected = [{name: plain(found) for name, found in shard[k].items()} for k in range(len(shard))]
    assert read(tmp_path / "a.gws", unzip) == expected
    assert len(expected) == len(samples)
