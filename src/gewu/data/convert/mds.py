"""MDS, the format of MosaicML's streaming library: `index.json` (version 2) beside shards of samples.

A shard is u32 n, u32 offsets[n + 1] (from the begin of the file), a JSON of the columns, and the samples; a sample is the u32 size
of each column of variable size, then the columns, all in the order of `column_names`. Integers and reals are little-endian.
Encodings read: bytes, str, str_*, json (as text), int, int8 ... float64, ndarray, jpeg, png and lists of these. A pickled column is
refused, for unpickling runs code. Compressed shards (zstd, gz, br, snappy) are unpacked one at a time; hashes that Python's hashlib
knows are checked. Reference: mosaicml-streaming 0.13, streaming/base/format/mds.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import read_capped, write_atomic
from gewu.data.convert.fit import Image, Raw, RawPiece, field_name, inferred, refused, rolled
from gewu.data.fields import Schema, Type, extra
from gewu.data.piece import Reject, Source

INDEX: Final = "index.json"
INDEX_BYTES: Final = 256 << 20
_CODECS: Final = {"zstd": "zstd", "gz": "gzip", "br": "brotli", "snappy": "snappy"}
_NUMBERS: Final = {8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32", 34: "float32",
                   64: "uint64", 65: "int64", 66: "float64"}  # fmt: skip
_NUMPY: Final = {name: code for code, name in _NUMBERS.items()}


def _ndarray(data: bytes, dtype: str, shape: tuple[int, ...]) -> Any:
    at = 0
    if not dtype:
        dtype, at = _NUMBERS[data[0]], 1
    if not shape:
        axes, width = data[at] >> 2, 1 << (data[at] & 3)
        shape = tuple(np.frombuffer(data, f"<u{width}", axes, at + 1).tolist())
        at += 1 + axes * width
    return np.frombuffer(data, f"<{np.dtype(dtype).str[1:]}", -1, at).reshape(shape)


def _images(data: bytes, at: int) -> list[Image]:
    (count,) = struct.unpack_from("<I", data, at)
    ends = list(accumulate(struct.unpack_from(f"<{count}I", data, at + 4), initial=at + 4 + 4 * count))
    if ends[-1] != len(data):
        raise ValueError("sizes of images do not add up")
    return [Image(data[a:b]) for a, b in pairwise(ends)]


def _decoder(encoding: str, column: str, file: str) -> Callable[[bytes], Any]:
    name, _, config = encoding.partition(":")
    dtype, _, shape = config.partition(":")
    if name == "ndarray" and (not dtype or dtype in _NUMPY):
        axes = tuple(map(int, shape.split(","))) if shape else ()
        return lambda data: _ndarray(data, dtype, axes)
    if name in (*_NUMPY, "int"):
        return lambda data: np.frombuffer(data, "<i8" if name == "int" else name)[0]
    plain: dict[str, Callable[[bytes], Any]] = {"bytes": bytes, "jpeg": Image, "png": Image}
    plain |= dict.fromkeys(("list[jpeg]", "list[png]"), lambda data: _images(data, 4))
    plain |= dict.fromkeys(("jpeg_array", "jpegarray"), lambda data: _images(data, 0))
    plain |= dict.fromkeys(("str", "str_int", "str_float", "str_decimal", "json"), bytes.decode)
    if name not in plain:
        hint = "pickled columns are never unpickled" if name == "pkl" else "convert this column with the streaming library first"
        allowed = ", ".join((*plain, "int", "ndarray", *_NUMPY))
        raise InputError("encoding cannot be read", file=file, key=column, value=encoding, allowed=allowed, hint=hint)
    return plain[name]


@dataclass(frozen=True)
class MdsPiece(RawPiece):
    """One shard, as its entry in the index describes it (JSON text)."""

    entry: str = ""

    def raw(self) -> Raw:
        """Yield its samples in order."""
        entry = json.loads(self.entry)
        columns = list(zip(entry["column_names"], entry["column_sizes"], entry["column_encodings"], strict=True))
        decoders = [(field_name(name), size, _decoder(encoding, name, self.path)) for name, size, encoding in columns]
        free = struct.Struct(f"<{sum(not size for _, size, _ in columns)}I")
        with open(self.path, "rb") as file:
            data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        info = entry["zip_data"] or entry["raw_data"]
        for algorithm, expected in info["hashes"].items():
            if algorithm in hashlib.algorithms_available and hashlib.new(algorithm, data).hexdigest() != expected:
                raise InputError(f"does not match its {algorithm} in {INDEX}", file=self.path)
        if entry["zip_data"]:
            codec = extra("pyarrow").Codec(_CODECS[entry["compression"].partition(":")[0]])
            data = codec.decompress(data, min(entry["raw_data"]["bytes"], 2**32), asbytes=True)
        count = entry["samples"]
        offsets = np.frombuffer(data, "<u4", count + 1, 4).tolist()
        for number in range(count):
            where = f"{self.path}: sample {number}"
            body = data[offsets[number] : offsets[number + 1]]
            sizes = iter(free.unpack_from(body)) if len(body) >= free.size else iter(())
            sample, at = {}, free.size
            try:
                for name, size, decode in decoders:
                    begin, at = at, at + (size or next(sizes))
                    if at > len(body):
                        raise ValueError("is cut short")
                    sample[name] = decode(body[begin:at])
            except (ValueError, LookupError, TypeError, StopIteration, struct.error) as error:
                yield Reject("damaged-sample", f"{where}: {error}")
                continue
            yield where, sample


def mds_source(folder: str, schema: Schema | None = None) -> Source:
    """Return the shards that `index.json` of a folder names.

    Raises:
        InputError: the index is none, names a file outside the folder, or a column that cannot be read.
    """
    path = os.path.join(folder, INDEX)
    try:
        index, pieces, shapes = json.loads(read_capped(path, INDEX_BYTES)), [], {}
        if index["version"] != 2:
            raise InputError("version cannot be read", file=path, key="version", value=index["version"], allowed="2")
        for number, entry in enumerate(index["shards"]):
            info = entry["zip_data"] or entry["raw_data"]
            name = os.path.normpath(info["basename"])
            if entry["format"] != "mds" or os.path.isabs(name) or name.startswith(".."):
                raise InputError("names no shard of this folder", file=path, key=f"shard {number}", value=name)
            for column, encoding in zip(entry["column_names"], entry["column_encodings"], strict=True):
                _decoder(encoding, column, path)
                if encoding.count(":") == 2:
                    shapes[field_name(column)] = "{1}[{2}]".format(*encoding.split(":"))
            pieces.append(MdsPiece(f"mds-{number:05d}", os.path.join(folder, name), json.dumps(entry)))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"is not an index of MDS: {error!r}", file=path) from None
    return inferred(pieces, "mds", schema, shapes=shapes)


def _encoding(name: str, kind: Type, value: Any) -> tuple[str, int | None]:
    """Return the encoding and the size in bytes, None where it varies, of a field."""
    if kind.kind in ("bytes", "text", "image"):
        image = "png" if kind.kind == "image" and value[:4] == b"\x89PNG" else "jpeg"
        return {"bytes": "bytes", "text": "str", "image": image}[kind.kind], None
    if kind.kind != "array" or kind.dtype not in _NUMPY or 0 in kind.shape:
        raise refused("mds", name, kind, "bytes, text, image, integers, reals and arrays of them")
    if not kind.shape:
        return kind.dtype, kind.bytes
    shape = f":{','.join(map(str, kind.shape))}" if kind.fixed else ""
    return f"ndarray:{kind.dtype}{shape}", kind.bytes if kind.fixed else None


def _encoded(name: str, value: Any, kind: Type) -> bytes:
    if kind.kind != "array":
        return value.encode() if kind.kind == "text" else bytes(value)
    array = np.asarray(value, kind.numpy)
    if kind.fixed:
        return array.tobytes()
    if not array.size:
        raise InputError("MDS holds no empty array", key=name, value=array.shape)
    code = next(code for code in range(4) if max(array.shape) < 1 << (8 << code))
    return bytes([array.ndim << 2 | code]) + np.array(array.shape, f"<u{1 << code}").tobytes() + array.tobytes()


def export_mds(samples: Iterable[dict[str, Any]], schema: Schema, folder: str, shard_bytes: int) -> int:
    """Write samples as MDS, readable by streaming's `StreamingDataset`; return their number.

    Raises:
        InputError: a field that MDS cannot hold.
    """
    names, rows = sorted(schema.names), iter(samples)
    shards: list[dict[str, Any]] = []
    first = next(rows, None)
    kinds = [_encoding(name, schema[name].type, first[name] if first else b"") for name in names]
    common = {"version": 2, "format": "mds", "compression": None, "hashes": ["sha256"], "size_limit": shard_bytes,
              "column_names": names, "column_encodings": [k for k, _ in kinds], "column_sizes": [n for _, n in kinds]}  # fmt: skip
    config = json.dumps(common, sort_keys=True).encode()

    def packed() -> Iterator[bytes]:
        for sample in chain([first] if first else [], rows):
            parts = [_encoded(name, sample[name], schema[name].type) for name in names]
            head = [len(part) for part, (_, size) in zip(parts, kinds, strict=True) if size is None]
            yield struct.pack(f"<{len(head)}I", *head) + b"".join(parts)

    for number, group in enumerate(rolled(packed(), shard_bytes)):
        offsets = accumulate(map(len, group), initial=8 + 4 * len(group) + len(config))
        data = b"".join((struct.pack(f"<{len(group) + 2}I", len(group), *offsets), config, *group))
        name = f"shard.{number:05d}.mds"
        raw = {"basename": name, "bytes": len(data), "hashes": {"sha256": write_atomic(os.path.join(folder, name), data)}}
        shards.append(common | {"samples": len(group), "raw_data": raw, "zip_data": None})
    write_atomic(os.path.join(folder, INDEX), json.dumps({"version": 2, "shards": shards}, sort_keys=True).encode())
    return sum(shard["samples"] for shard in shards)
