"""safetensors: named arrays in one file, with nothing in it that could be executed.

    8 bytes   n, length of the header, little-endian
    n bytes   JSON: {"__metadata__": {TEXT: TEXT}, NAME: {"dtype", "shape", "data_offsets": [begin, end]}, ...}, then spaces
    the rest  little-endian bytes of the arrays, row-major, without gaps or overlaps

Arrays are read as views of the mapped file: a page is read when it is touched, so a file may be larger than memory. Written are
the same bytes as by the reference implementation: wide types first, then by name, the header filled up to a multiple of 8.

Limits: types of 4 and 6 bits are refused, as is a file with a key twice.
Reference: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError, StoreError
from gewu.core.files import AtomicFile, storage_error

HEADER_BYTES: Final = 100_000_000
"""Largest header, as in the reference implementation."""
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(kind)
    for name, kind in {
        "U64": "<u8", "I64": "<i8", "F64": "<f8", "C64": "<c8", "F32": "<f4", "U32": "<u4", "I32": "<i4",
        "BF16": ml_dtypes.bfloat16, "F16": "<f2", "U16": "<u2", "I16": "<i2", "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "I8": "i1", "U8": "u1", "BOOL": "?",
    }.items()
}  # fmt: skip
"""NumPy's type of each of the format, in the order in which arrays stand in a file."""
NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_RANKS: Final = 32


def read(path: str | Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file by name, as read-only views of the mapped file.

    Raises:
        InputError: there is no such file, or it holds pickled weights.
        StoreError: the file is damaged or cut short.
    """
    return _open(Path(path))[0]


def metadata(path: str | Path) -> dict[str, str]:
    """Return the texts that a file has beside its arrays.

    Raises:
        InputError, StoreError: as `read`.
    """
    return _open(Path(path))[1]


def _open(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    hint = "convert them to safetensors where you trust them"
    if path.suffix.lower() in PICKLES:
        raise InputError("pickled weights are refused", file=path, hint=hint)
    data = mapped(path)
    size = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 2 <= size <= min(HEADER_BYTES, len(data) - 8):
        if data[:2] == b"PK" or data[:1] == b"\x80":
            raise InputError("pickled weights are refused", file=path, hint=hint)
        allowed = f"2 to {min(HEADER_BYTES, max(len(data) - 8, 0))}"
        raise StoreError(
            "is cut short, or no safetensors file", file=path, key="length of the header", value=size, allowed=allowed
        )
    header = _header(data[8 : 8 + size], path)
    texts = header.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise StoreError("holds more than texts", file=path, key="__metadata__")
    found, ends = dict[str, NDArray[Any]](), list[tuple[int, int, str]]()
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(name, entry, path)
        if end - begin != math.prod(shape) * dtype.itemsize or 8 + size + end > len(data):
            raise StoreError("does not fit its place", file=path, key=name, value=entry, allowed=f"{len(data) - 8 - size} bytes")
        ends.append((begin, end, name))
        found[name] = np.frombuffer(data, dtype, math.prod(shape), 8 + size + begin).reshape(shape)
    _refuse_gaps(sorted(ends), len(data) - 8 - size, path)
    return found, texts


def _header(text: bytes, path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a name stands there twice")
        return table

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=once) if text[:1] == b"{" else None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"has a damaged header: {error}", file=path) from None
    if not isinstance(header, dict):
        raise StoreError("has a damaged header: it is no table", file=path)
    return header


def _entry(name: str, entry: Any, path: Path) -> tuple[np.dtype[Any], list[int], int, int]:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str) or entry["dtype"] not in DTYPES:
        raise StoreError("is no array of a known type", file=path, key=name, value=entry, allowed=", ".join(DTYPES))
    shape, place = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(place, list) or len(place) != 2 or len(shape) > _RANKS:
        raise StoreError("has a damaged shape or place", file=path, key=name, value=entry)
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in [*shape, *place]):
        raise StoreError("has a damaged shape or place", file=path, key=name, value=entry)
    return DTYPES[entry["dtype"]], shape, place[0], place[1]


def _refuse_gaps(ends: list[tuple[int, int, str]], size: int, path: Path) -> None:
    place = 0
    for begin, end, name in ends:
        if begin != place:
            raise StoreError("overlaps another array or leaves a gap", file=path, key=name, value=begin, allowed=str(place))
        place = end
    if place != size:
        raise StoreError("is longer than its arrays", file=path, value=size, allowed=f"{place} bytes behind the header")


def mapped(path: Path) -> Any:
    """Return the bytes of a file, mapped and read-only.

    Raises:
        InputError: there is no such file.
        StoreError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise InputError("is not a regular file", file=path)
    try:
        with open(path, "rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(stream.fileno()).st_size else b""
    except FileNotFoundError:
        raise InputError("there is no such file", file=path) from None
    except OSError as error:
        raise storage_error(error, path, "read") from error


def arrange(tensors: Mapping[str, Any], texts: Mapping[str, str] | None = None) -> tuple[bytes, dict[str, int]]:
    """Return what stands before the arrays of a file, and where behind that each array begins, in their order.

    Args:
        tensors: anything with shape, dtype and nbytes, by name.
        texts: metadata.

    Raises:
        InputError: an array of a type that the format has not.
    """
    order = {dtype: place for place, dtype in enumerate(NAMES)}
    for name, array in tensors.items():
        if np.dtype(array.dtype).newbyteorder("<") not in NAMES:
            raise InputError("no such type in the format", key=name, value=str(array.dtype), allowed=", ".join(DTYPES))
    header: dict[str, Any] = {"__metadata__": dict(sorted(texts.items()))} if texts else {}
    places, place = dict[str, int](), 0
    for name in sorted(tensors, key=lambda name: (order[np.dtype(tensors[name].dtype).newbyteorder("<")], name)):
        array, places[name] = tensors[name], place
        kind = NAMES[np.dtype(array.dtype).newbyteorder("<")]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [place, place + array.nbytes]}
        place += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def write(path: str | Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays to a file, which is absent until it is complete; the same arrays give the same bytes.

    Raises:
        InputError: an array of a type that the format has not.
        ResourceError, StoreError: as `core.files.write_atomic`.
    """
    head, places = arrange(tensors, metadata)
    with AtomicFile(path, replace=True) as file:
        file.write(head)
        for name in places:
            array = np.ascontiguousarray(tensors[name])
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data)
