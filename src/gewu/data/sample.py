"""One sample as bytes: the layout that `docs/data-format.md` describes byte by byte.

    u32  CRC-32C of all that follows, padding included
    u32  end of each field of variable size, from the begin of the sample
    fixed fields, each at a multiple of its alignment
    variable fields in order, each at a multiple of its alignment
    zeros up to a multiple of 8

Blobs are slices of the shard, arrays are views of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from ctypes import addressof, c_char
from functools import cache
from itertools import pairwise
from typing import Any, Final

import numpy as np

from gewu.core.crc32c import crc32c_at
from gewu.core.errors import InputError
from gewu.data.fields import BLOBS, Field, Schema, Type

LARGEST: Final = 2**32 - 8
"""Bytes that a sample may have."""
_STRUCT: Final = {
    **{"bool": "?", "int8": "b", "int16": "h", "int32": "i", "int64": "q"},
    **{"uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q", "float16": "e", "float32": "f", "float64": "d"},
}
_U32: Final = struct.Struct("<I")


def aligned(offset: int, multiple: int) -> int:
    """Return the least multiple that is not below `offset`."""
    return -(-offset // multiple) * multiple


class Codec:
    """Writes and reads the samples of one schema.

    Attributes:
        ends: number of variable fields.
        places: offset of each fixed field in the sample.
        head: bytes before the first variable field.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.variable = [field for field in schema if not field.type.fixed]
        self.ends = len(self.variable)
        self.places: dict[str, int] = {}
        self.head = 4 + 4 * self.ends
        for field in schema:
            if field.type.fixed:
                self.places[field.name] = aligned(self.head, field.type.align)
                self.head = self.places[field.name] + field.type.bytes
        self._scalars = [f for f in schema if f.type.scalar and f.type.dtype in _STRUCT]
        self._arrays = [f for f in schema if f.type.fixed and f not in self._scalars]
        layout, at = f"<I{self.ends}I", 4 + 4 * self.ends
        for field in self._scalars:
            layout += "x" * (self.places[field.name] - at) + _STRUCT[field.type.dtype]
            at = self.places[field.name] + field.type.bytes
        self._front = struct.Struct(layout)
        self.decode = self.decoder()

    def encode(self, sample: Mapping[str, Any]) -> bytearray:
        """Return the bytes of a sample, its checksum in front.

        Raises:
            InputError: the sample does not fit the schema (the field is named), or is too large.
        """
        if len(sample) != len(self.schema) or any(name not in sample for name in self.schema.names):
            self._check_names(sample)
        data = bytearray(self.head)
        numbers = [_number(field, sample[field.name]) for field in self._scalars]
        ends = []
        for field in self.variable:
            _append(data, field.name, field.type, sample.get(field.name))
            ends.append(len(data))
        data += bytes(-len(data) % 8)
        if len(data) > LARGEST:
            raise InputError("the sample is too large", value=len(data), allowed=f"{LARGEST} bytes")
        try:
            self._front.pack_into(data, 0, 0, *ends, *numbers)
        except (struct.error, OverflowError) as error:
            raise self._range_error(sample, error) from None
        for field in self._arrays:  # after the front, whose gaps are zeros
            at = self.places[field.name]
            data[at : at + field.type.bytes] = _array(field.name, field.type, sample[field.name]).tobytes()
        _U32.pack_into(data, 0, crc32c_at(addressof(c_char.from_buffer(data)) + 4, len(data) - 4))
        return data

    def _check_names(self, sample: Mapping[str, Any]) -> None:
        for name in sample:
            if name not in self.schema:
                raise self.schema.unknown(name)
        for field in self.schema:
            if field.name not in sample and field.type.kind != "optional":
                raise InputError("is missing in a sample", key=field.name, allowed=str(field.type))

    def _range_error(self, sample: Mapping[str, Any], error: Exception) -> InputError:
        for field in self._scalars:
            try:
                struct.pack("<" + _STRUCT[field.type.dtype], sample[field.name])
            except (struct.error, OverflowError):
                return InputError("does not fit its type", key=field.name, value=sample[field.name], allowed=str(field.type))
        return InputError(f"a sample cannot be written: {error}")

    def decoder(self, fields: Sequence[str] | None = None) -> Callable[[Any, int], dict[str, Any]]:
        """Return `decode(buffer, start)`, which reads the named fields of the sample that begins there, unchecked.

        `buffer` gives bytes when it is sliced (bytes, mmap); arrays are read-only views of it. `core.objects` does the same fast.
        """
        ends = {field.name: 4 + 4 * k for k, field in enumerate(self.variable)}
        wanted = [field for field in self.schema if fields is None or field.name in fields]
        steps = [(field, self.places.get(field.name, 0), ends.get(field.name)) for field in wanted]
        number, head = _U32.unpack_from, self.head

        def decode(buffer: Any, start: int) -> dict[str, Any]:
            sample = {}
            for field, place, end in steps:
                if end is None:
                    sample[field.name] = _fixed(buffer, start + place, field.type)
                else:
                    begin = number(buffer, start + end - 4)[0] if end > 4 else head
                    at = start + aligned(begin, field.type.align)
                    sample[field.name] = _read(buffer, start, at, start + number(buffer, start + end)[0], field.type)
            return sample

        return decode

    def fits(self, buffer: Any, start: int, size: int) -> bool:
        """Tell whether all fields of a sample lie inside of it."""
        marks = [self.head, *self._front.unpack_from(buffer, start)[1 : 1 + self.ends], size]
        return all(a <= b for a, b in pairwise(marks))


@cache
def codec(schema: Schema) -> Codec:
    """Return the codec of a schema, made once."""
    return Codec(schema)


def _number(field: Field, value: Any) -> Any:
    """Return a scalar as `struct` takes it."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    kind = field.type.numpy.kind
    good = isinstance(value, bool) if kind == "b" else isinstance(value, (int, float) if kind == "f" else int)
    if not good or (isinstance(value, bool) and kind != "b"):
        raise InputError("is not of the type of its field", key=field.name, value=value, allowed=str(field.type))
    return value


def _array(name: str, kind: Type, value: Any) -> Any:
    """Return the array to store: same numbers, the dtype of the field; floats may be rounded, nothing else may change."""
    if type(value) is np.ndarray and value.dtype == kind.numpy and value.shape == kind.shape:
        return value
    try:
        array = np.asarray(value)
    except ValueError:
        raise InputError("is not an array", key=name, allowed=str(kind)) from None
    if len(array.shape) != len(kind.shape) or any(b not in (None, a) for a, b in zip(array.shape, kind.shape, strict=True)):
        raise InputError("has another shape", key=name, value=array.shape, allowed=str(kind))
    wanted = kind.numpy
    if array.dtype == wanted:
        return np.ascontiguousarray(array)
    found = array.dtype.kind
    if found in "iub" and wanted.kind in "iu" and found != "b":
        cast = array.astype(wanted)
        if not (cast == array).all() or (found == "i" and wanted.kind == "u" and (array < 0).any()):
            raise InputError("holds a number that does not fit its type", key=name, allowed=str(kind))
        return cast
    rounded = found in "iuf" and (wanted.kind == "f" or wanted.name == "bfloat16")
    if rounded or (found in "iufc" and wanted.kind == "c") or (array.size == 0 and found == "f"):
        with np.errstate(over="ignore"):
            return array.astype(wanted)
    raise InputError("is not of the type of its field", key=name, value=str(array.dtype), allowed=str(kind))


def _blob(name: str, kind: Type, value: Any) -> bytes | bytearray | memoryview:
    if kind.kind == "text":
        if isinstance(value, str):
            try:
                return value.encode()
            except UnicodeEncodeError:
                raise InputError("holds a character that is not Unicode text", key=name) from None
    elif isinstance(value, (bytes, bytearray)):
        return value
    elif isinstance(value, memoryview):
        return value.cast("B")
    raise InputError("is not of the type of its field", key=name, value=type(value).__name__, allowed=str(kind))


def _append(data: bytearray, name: str, kind: Type, value: Any) -> None:
    """Append one value at a multiple of its alignment."""
    if kind.kind in BLOBS:
        data += _blob(name, kind, value)
        return
    data += bytes(-len(data) % kind.align)
    if kind.kind == "array":
        array = _array(name, kind, value)
        for axis, length in zip(kind.shape, array.shape, strict=True):
            if axis is None:
                data += _U32.pack(length)
        data += bytes(-len(data) % min(8, kind.numpy.itemsize))
        data += array.tobytes()
        return
    assert kind.item is not None
    items = ([] if value is None else [value]) if kind.kind == "optional" else value
    if not isinstance(items, (list, tuple)) and not (isinstance(items, np.ndarray) and items.ndim):
        raise InputError("is not a list", key=name, value=type(value).__name__, allowed=str(kind))
    begin = len(data)
    data += _U32.pack(len(items))
    if kind.item.fixed:
        data += bytes(-len(data) % kind.item.align)
        for item in items:
            data += _array(name, kind.item, item).tobytes()
        return
    table = len(data)
    data += bytes(4 * len(items))
    for k, item in enumerate(items):
        _append(data, name, kind.item, item)
        _U32.pack_into(data, table + 4 * k, len(data) - begin)


def _fixed(buffer: Any, at: int, kind: Type) -> Any:
    array = np.ndarray(kind.shape, kind.numpy, buffer, at)  # type: ignore[arg-type]
    if not kind.shape:
        return array.item()
    array.flags.writeable = False
    return array


def _read(buffer: Any, start: int, at: int, end: int, kind: Type) -> Any:
    """Read one variable value that begins at `at`; alignments count from `start`."""
    if kind.kind in BLOBS:
        return buffer[at:end].decode() if kind.kind == "text" else buffer[at:end]
    if kind.kind == "array":
        shape = []
        for axis in kind.shape:
            if axis is None:
                shape.append(_U32.unpack_from(buffer, at)[0])
                at += 4
            else:
                shape.append(axis)
        at = start + aligned(at - start, min(8, kind.numpy.itemsize))
        array: Any = np.ndarray(shape, kind.numpy, buffer, at) if 0 not in shape else np.empty(shape, kind.numpy)
        if array.nbytes > max(end - at, 0):
            raise ValueError("an array is larger than its field")
        array.flags.writeable = False
        return array
    item = kind.item
    assert item is not None
    (count,) = _U32.unpack_from(buffer, at)
    if item.fixed:
        first = start + aligned(at + 4 - start, item.align)
        items = [_fixed(buffer, first + k * item.bytes, item) for k in range(count)]
    else:
        items, first = [], at + 4 + 4 * count
        for end in np.frombuffer(buffer, "<u4", count, at + 4).tolist() if count else ():
            items.append(_read(buffer, start, start + aligned(first - start, item.align), at + end, item))
            first = at + end
    return items if kind.kind == "list" else (items[0] if items else None)
