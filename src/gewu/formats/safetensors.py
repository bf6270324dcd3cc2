"""safetensors: named arrays in one file, with nothing in it that could be executed.

    8 bytes   n, length of the header, little-endian
    n bytes   JSON: {NAME: {"dtype", "shape", "data_offsets": [begin, end]}, ..., "__metadata__": {TEXT: TEXT}}
    the rest  little-endian bytes of the arrays, row-major, without gaps or overlaps

Arrays are read as views of the mapped file: a page is read when it is touched.

Reference: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
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
DTYPES: Final[dict[str, Any]] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64,
    "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_NAMES: Final = {np.dtype(kind): name for name, kind in DTYPES.items()}


def read(path: str | Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file by name, as read-only views of the mapped file.

    Raises:
        InputError: no such file, or pickled weights.
        StoreError: the file is damaged or cut short.
    """
    data = _map(Path(path))
    size = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if data[:2] in (b"PK", b"\x80\x02"):
        raise InputError("pickled weights are refused", file=path, hint="convert them to safetensors where you trust them")
    if not 2 <= size <= min(HEADER_BYTES, len(data) - 8):
        raise StoreError("is no safetensors file, or is cut short", file=path, key="length of the header", value=size)
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise StoreError(f"has a damaged header: {error}", file=path) from None
    if not isinstance(header, dict):
        raise StoreError("has a damaged header", file=path)
    header.pop("__metadata__", None)
    start, found, ends = 8 + size, dict[str, NDArray[Any]](), list[tuple[int, int]]()
    for name, entry in header.items():
        kind, shape, begin, end = _entry(name, entry, path)
        count = 1
        for length in shape:
            count *= length
        if end - begin != count * kind.itemsize or start + end > len(data):
            raise StoreError("an array does not fit its place", file=path, key=name, value=[begin, end])
        ends.append((begin, end))
        found[name] = np.frombuffer(data, kind, count, start + begin).reshape(shape)
    place = 0
    for begin, end in sorted(ends):
        if begin != place:
            raise StoreError("arrays overlap or leave a gap", file=path, value=begin, allowed=str(place))
        place = end
    if start + place != len(data):
        raise StoreError("is longer than its arrays", file=path, value=len(data), allowed=f"{start + place} bytes")
    return found


def _entry(name: str, entry: Any, path: str | Path) -> tuple[np.dtype[Any], list[int], int, int]:
    whole = isinstance(entry, dict) and isinstance(entry.get("shape"), list) and isinstance(entry.get("data_offsets"), list)
    if not whole or entry.get("dtype") not in DTYPES:
        raise StoreError("is no array of a known type", file=path, key=name, value=entry, allowed=", ".join(DTYPES))
    numbers = [*entry["shape"], *entry["data_offsets"]]
    if len(entry["data_offsets"]) != 2 or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise StoreError("has a damaged shape or place", file=path, key=name, value=entry)
    return np.dtype(DTYPES[entry["dtype"]]), entry["shape"], *entry["data_offsets"]


def _map(path: Path) -> Any:
    if path.exists() and not path.is_file():
        raise InputError("is not a regular file", file=path)
    try:
        with open(path, "rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(stream.fileno()).st_size else b""
    except FileNotFoundError:
        raise InputError("there is no such file", file=path) from None
    except OSError as error:
        raise storage_error(error, path, "read") from error


def write(path: str | Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays to a file, which is absent until it is complete; the same arrays give the same bytes.

    Raises:
        InputError: an array of a type that the format has not.
        ResourceError, StoreError: as `core.files.write_atomic`.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    # the widest types first, so that every array begins at a multiple of its item
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in names:
        array = tensors[name]
        if array.dtype not in _NAMES:
            raise InputError("no such type in the format", file=path, key=name, value=str(array.dtype), allowed=", ".join(DTYPES))
        entry = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [place, place + array.nbytes]}
        header[name], place = entry, place + array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with AtomicFile(path, replace=True) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
