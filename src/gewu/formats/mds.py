"""MDS, the format of MosaicML's streaming library: `index.json` (version 2) beside shards of samples.

A shard is u32 n, u32 offsets[n + 1] (from the begin of the file), a JSON of the columns, and the samples; a sample is the u32
size of each column of variable size, then the columns, all in the order of `column_names`. Numbers are little-endian.
Encodings read: bytes, str, str_*, json (as text), int, int8 ... float64, ndarray, jpeg, png and lists of these. A pickled column
is refused, for unpickling runs code. Compressed shards (zstd, gz, br, snappy) are unpacked one at a time; hashes that hashlib
knows are checked. Reference: mosaicml-streaming 0.13, streaming/base/format/mds.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import read_capped
from gewu.formats.packed import LIMITS, Record, pyarrow

INDEX: Final = "index.json"
INDEX_BYTES: Final = 256 << 20
NUMBERS: Final = {8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32", 34: "float32",
                  64: "uint64", 65: "int64", 66: "float64"}  # fmt: skip
_CODECS: Final = {"zstd": "zstd", "gz": "gzip", "br": "brotli", "snappy": "snappy"}
Entry = dict[str, Any]


def _ndarray(data: bytes, dtype: str, shape: tuple[int, ...]) -> Any:
    at = 0
    if not dtype:
        dtype, at = NUMBERS[data[0]], 1
    if not shape:
        axes, width = data[at] >> 2, 1 << (data[at] & 3)
        shape = tuple(np.frombuffer(data, f"<u{width}", axes, at + 1).tolist())
        at += 1 + axes * width
    return np.frombuffer(data, f"<{np.dtype(dtype).str[1:]}", -1, at).reshape(shape)


def _images(data: bytes, at: int) -> list[bytes]:
    (count,) = struct.unpack_from("<I", data, at)
    ends = list(accumulate(struct.unpack_from(f"<{count}I", data, at + 4), initial=at + 4 + 4 * count))
    if ends[-1] != len(data):
        raise ValueError("sizes of images do not add up")
    return [data[a:b] for a, b in pairwise(ends)]


def _decoder(encoding: str, column: str, file: str) -> Callable[[bytes], Any]:
    name, _, config = encoding.partition(":")
    dtype, _, shape = config.partition(":")
    if name == "ndarray" and (not dtype or dtype in NUMBERS.values()):
        axes = tuple(map(int, shape.split(","))) if shape else ()
        return lambda data: _ndarray(data, dtype, axes)
    if name == "int" or name in NUMBERS.values():
        return lambda data: np.frombuffer(data, "<i8" if name == "int" else name)[0]
    plain: dict[str, Callable[[bytes], Any]] = dict.fromkeys(("bytes", "jpeg", "png"), bytes)
    plain |= dict.fromkeys(("str", "str_int", "str_float", "str_decimal", "json"), bytes.decode)
    plain |= dict.fromkeys(("list[jpeg]", "list[png]"), lambda data: _images(data, 4))
    plain |= dict.fromkeys(("jpeg_array", "jpegarray"), lambda data: _images(data, 0))
    if name not in plain:
        hint = "pickled columns are never unpickled" if name == "pkl" else "convert this column with the streaming library first"
        allowed = ", ".join((*plain, "int", "ndarray", *NUMBERS.values()))
        raise InputError("encoding cannot be read", file=file, key=column, value=encoding, allowed=allowed, hint=hint)
    return plain[name]


def read_index(folder: str) -> list[tuple[str, Entry]]:
    """Return the shards that `index.json` of a folder names, each with its entry.

    Raises:
        InputError: it is no index, names a file outside the folder, or a column that cannot be read.
    """
    path, shards = os.path.join(folder, INDEX), []
    try:
        index = json.loads(read_capped(path, INDEX_BYTES))
        if index["version"] != 2:
            raise InputError("version cannot be read", file=path, key="version", value=index["version"], allowed="2")
        for number, entry in enumerate(index["shards"]):
            name = os.path.normpath((entry["zip_data"] or entry["raw_data"])["basename"])
            if entry["format"] != "mds" or os.path.isabs(name) or name.startswith(".."):
                raise InputError("names no shard of this folder", file=path, key=f"shard {number}", value=name)
            for column, encoding in zip(entry["column_names"], entry["column_encodings"], strict=True):
                _decoder(encoding, column, path)
            shards.append((os.path.join(folder, name), entry))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"is not an index of MDS: {error!r}", file=path) from None
    return shards


def _content(path: str, entry: Entry) -> Any:
    """Return the bytes of a shard, unpacked, after its hashes were found right."""
    with open(path, "rb") as file:
        data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for algorithm, expected in (entry["zip_data"] or entry["raw_data"])["hashes"].items():
        if algorithm in hashlib.algorithms_available and hashlib.new(algorithm, data).hexdigest() != expected:
            raise InputError(f"does not match its {algorithm} in {INDEX}", file=path)
    if not entry["zip_data"]:
        return data
    codec = pyarrow().Codec(_CODECS[entry["compression"].partition(":")[0]])
    LIMITS.check(entry["raw_data"]["bytes"], len(data))
    return codec.decompress(data, entry["raw_data"]["bytes"], asbytes=True)


def records(path: str, entry_json: str) -> Iterator[Record]:
    """Yield the samples of one shard; "damaged-sample" for one whose sizes do not fit.

    Args:
        path: the shard.
        entry_json: its entry in the index.
    """
    entry = json.loads(entry_json)
    columns = list(zip(entry["column_names"], entry["column_sizes"], entry["column_encodings"], strict=True))
    decoders = [(name, size, _decoder(encoding, name, path)) for name, size, encoding in columns]
    free = struct.Struct(f"<{sum(not size for _, size, _ in columns)}I")
    data, count = _content(path, entry), entry["samples"]
    offsets = np.frombuffer(data, "<u4", count + 1, 4).tolist()
    for number, (begin, end) in enumerate(pairwise(offsets)):
        body, sample, at = data[begin:end], {}, free.size
        try:
            sizes = iter(free.unpack_from(body))
            for name, size, decode in decoders:
                start, at = at, at + (size or next(sizes))
                if at > len(body):
                    raise ValueError("is cut short")
                sample[name] = decode(body[start:at])
        except (ValueError, LookupError, TypeError, struct.error) as error:
            yield f"{path}: sample {number}: {error}", "damaged-sample"
            continue
        yield f"{path}: sample {number}", sample


def encoded(value: Any, dtype: str = "", fixed: bool = True) -> bytes:
    """Return a text, bytes, a number, or an array of a dtype that the encoding names, with or without its shape.

    Raises:
        InputError: an empty array of free shape, which the streaming library cannot read.
    """
    if not dtype:
        return value.encode() if isinstance(value, str) else bytes(value)
    array = np.asarray(value, f"<{np.dtype(dtype).str[1:]}")
    if fixed:
        return array.tobytes()
    if not array.size:
        raise InputError("MDS holds no empty array", value=array.shape)
    code = next(code for code in range(4) if max(array.shape) < 1 << (8 << code))
    return bytes([array.ndim << 2 | code]) + np.array(array.shape, f"<u{1 << code}").tobytes() + array.tobytes()


def entry_of(columns: dict[str, tuple[str, int | None]], shard_bytes: int) -> Entry:
    """Return what is common to the entries of all shards, from the encoding and the size (None when it varies) of each column."""
    names = sorted(columns)
    return {"version": 2, "format": "mds", "compression": None, "hashes": ["sha256"], "size_limit": shard_bytes, "zip_data": None,
            "column_names": names, "column_encodings": [columns[name][0] for name in names],
            "column_sizes": [columns[name][1] for name in names]}  # fmt: skip


def sample_bytes(parts: dict[str, bytes], entry: Entry) -> bytes:
    """Return one sample of encoded columns."""
    ordered = [parts[name] for name in entry["column_names"]]
    head = [len(part) for part, size in zip(ordered, entry["column_sizes"], strict=True) if size is None]
    return struct.pack(f"<{len(head)}I", *head) + b"".join(ordered)


def shard_bytes(samples: list[bytes], entry: Entry) -> bytes:
    """Return a shard of samples."""
    config = json.dumps(entry, sort_keys=True).encode()
    offsets = accumulate(map(len, samples), initial=8 + 4 * len(samples) + len(config))
    return b"".join((struct.pack(f"<{len(samples) + 2}I", len(samples), *offsets), config, *samples))
