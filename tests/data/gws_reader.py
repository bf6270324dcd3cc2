"""A reader of shards, written from `docs/data-format.md` alone by somebody who had not seen gewu; standard library only."""

from __future__ import annotations

import json
from functools import reduce
from itertools import pairwise
from math import prod
from pathlib import Path
from struct import calcsize, iter_unpack, pack, unpack, unpack_from
from typing import Any

MAGIC = b"\x89GWS\r\n\x1a\n"
NUMBERS = dict(bool="?", int8="b", int16="h", int32="i", int64="q", uint8="B", uint16="H", uint32="I", uint64="Q", float16="e",
               bfloat16="2s", float32="f", float64="d", complex64="ff", complex128="dd")  # fmt: skip
TABLE = [reduce(lambda crc, _: crc >> 1 ^ 0x82F63B78 * (crc & 1), range(8), byte) for byte in range(256)]


def crc32c(data: bytes) -> int:
    return reduce(lambda crc, byte: crc >> 8 ^ TABLE[(crc ^ byte) & 255], data, 0xFFFFFFFF) ^ 0xFFFFFFFF


def align(at: int, to: int) -> int:
    return -(-at // to) * to


def layout(kind: str) -> tuple[int | None, int, str, list[int]]:
    """Of a type: size (None if variable), alignment; if of fixed size: the struct format of one number, the shape."""
    name, _, axes = kind.removesuffix("]").partition("[")
    if name not in NUMBERS or kind.endswith("?") or "*" in axes:
        return None, 1 if kind in ("bytes", "text", "image") else 8, "", []
    form, shape = "<" + NUMBERS[name], [int(axis) for axis in axes.split(",") if axis]
    return calcsize(form) * prod(shape), min(calcsize(form), 8), form, shape


def nest(flat: Any, shape: list[int]) -> Any:
    return [nest(flat, shape[1:]) for _ in range(shape[0])] if shape else next(flat)


def read_value(data: bytes, kind: str, begin: int, end: int) -> Any:
    if kind in ("bytes", "text", "image"):
        return data[begin:end].decode() if kind == "text" else data[begin:end]
    if kind.endswith("?") or kind.startswith("list["):
        inner, (count,) = kind[:-1] if kind.endswith("?") else kind[5:-1], unpack_from("<I", data, begin)
        assert kind.endswith("]") or count < 2, "more than one value of an optional"
        values = read_many(data, [inner] * count, begin, end)
        return values if kind.endswith("]") else values[0] if values else None
    free = unpack_from(f"<{kind.count('*')}I", data, begin)
    size, to, form, shape = layout(kind.replace("*", "{}").format(*free))  # the type with the lengths put in
    body = data[align(begin + 4 * len(free), to) : end]
    assert len(body) == size, "size of an array"
    items = (unpack("<f", b"\0\0" + v[0]) if form == "<2s" else v for v in iter_unpack(form, body))
    return nest((complex(*v) if len(v) == 2 else v[0] for v in items), shape)


def read_many(data: bytes, kinds: list[str], begin: int, end: int) -> list[Any]:
    """The values of a sample or a list, laid out alike: u32 (CRC or count), ends of the variable, the fixed, the variable."""
    layouts, values = [layout(kind) for kind in kinds], {}
    ends = iter(unpack_from(f"<{sum(size is None for size, *_ in layouts)}I", data, begin + 4))
    at = begin + 4 + 4 * ends.__length_hint__()
    for i, (size, to, *_) in sorted(enumerate(layouts), key=lambda item: item[1][0] is None):
        start = align(at, to)
        at = begin + next(ends) if size is None else start + size
        values[i] = read_value(data, kinds[i], start, at)
    assert align(at, 8) == align(end, 8), "size of a sample or list"
    return [values[i] for i in range(len(kinds))]


def read(path: Path, unzip: Any = None) -> list[dict[str, Any]]:
    file = path.read_bytes()
    mode, (start, n, b, length) = file[12], unpack("<4Q", file[-64:-32])
    head, tail = pack("<8s2I44x", MAGIC, 1, mode), file[-64:-32] + pack("<3I8x", crc32c(file[start:-64]), 1, mode)
    assert file[:64] == head + pack("<I", crc32c(head)) and mode <= 2, "header"
    assert file[-64:] == tail + pack("<I8s", crc32c(tail), MAGIC) and b == (0, n, b)[mode], "trailer or footer"
    form = f"<{n + 1 + (2 * b + 2) * (mode > 0)}Q{b}I"
    table, schema = unpack_from(form, file, start), start + calcsize(form)
    i, j, k = n + 1, n + b + 2, n + 2 * b + 3
    offsets, blocks, raw, crcs = table[:i], table[i:j], table[j:k], table[k:]
    gaps = {(blocks or offsets)[-1]: start, schema + length: len(file) - 64}
    assert all(align(i, 8) == j and not any(file[i:j]) for i, j in gaps.items()), "gaps"
    assert {offsets[0], *blocks[:1], *raw[:1]} == {64} and raw[-1:] in ((), offsets[-1:]), "offsets"
    fields = {field["name"]: field["type"] for field in json.loads(file[schema : schema + length])["fields"]}
    packed = [file[i:j] for i, j in pairwise(blocks)]
    assert [crc32c(block) for block in packed] == [*crcs], "CRC of a block"
    plain = (
        file[:64] + b"".join(unzip(block, j - i) for block, (i, j) in zip(packed, pairwise(raw), strict=True)) if mode else file
    )
    samples = [plain[i:j] for i, j in pairwise(offsets)]
    assert all(pack("<I", crc32c(sample[4:])) == sample[:4] for sample in samples), "CRC of a sample"
    return [dict(zip(fields, read_many(sample, [*fields.values()], 0, len(sample)), strict=True)) for sample in samples]
