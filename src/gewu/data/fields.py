"""Fields and schemas: what a sample holds, in words that any language can read.

A sample is a mapping of field names to values; a schema is the ordered list of its fields, each with a type, a unit and a
meaning. Types are written as text, and stand so in every shard:

    bytes  text  image           raw bytes; UTF-8; the bytes of an encoded picture (PNG, JPEG, ...)
    float32  int64  bool  ...    a number
    float64[*,3]                 an array; `*` is an axis whose length each sample chooses
    list[TYPE]                   any number of values, nested as deep as wanted
    TYPE?                        the value or None
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self

import numpy as np

from gewu.core.errors import InputError, StoreError, did_you_mean

NUMBERS: Final = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
)
BLOBS: Final = ("bytes", "text", "image")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
_ARRAY: Final = re.compile(r"([a-z0-9]+)(?:\[((?:\*|\d{1,15})(?:,(?:\*|\d{1,15}))*)\])?")
_DEEPEST: Final = 8
_MOST_FIELDS: Final = 1000


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the little-endian NumPy type of a number by its name in a type text."""
    if name == "bfloat16":
        name = importlib.import_module("ml_dtypes").bfloat16
    return np.dtype(name).newbyteorder("<")


@dataclass(frozen=True)
class Type:
    """One type, parsed.

    Attributes:
        kind: "bytes", "text", "image", "array" (a number is an array without axes), "list" or "optional".
        dtype: name of the numbers of an array.
        shape: lengths of the axes; None for a free one.
        item: type of what a list or an optional value holds.
    """

    kind: str
    dtype: str = ""
    shape: tuple[int | None, ...] = ()
    item: Type | None = None

    @classmethod
    def parse(cls, text: str, depth: int = 0) -> Type:
        """Read the text of a type.

        Raises:
            InputError: it is none.
        """
        text = text.replace(" ", "")
        if depth > _DEEPEST:
            raise InputError("a type is nested too deeply", value=text, allowed=f"{_DEEPEST} levels")
        if text.endswith("?"):
            item = cls.parse(text[:-1], depth + 1)
            if item.kind == "optional":
                raise InputError("not a type of a field", value=text, hint="one `?` is enough")
            return cls("optional", item=item)
        if text in BLOBS:
            return cls(text)
        if text.startswith("list[") and text.endswith("]"):
            return cls("list", item=cls.parse(text[5:-1], depth + 1))
        match = _ARRAY.fullmatch(text)
        if match is None or match[1] not in NUMBERS:
            allowed = ", ".join((*BLOBS, *NUMBERS)) + ", NUMBER[3,*], list[TYPE], TYPE?"
            raise InputError("not a type of a field", value=text, allowed=allowed)
        axes = match[2].split(",") if match[2] else []
        return cls("array", match[1], tuple(None if axis == "*" else int(axis) for axis in axes))

    def __str__(self) -> str:
        if self.item is not None:
            return f"list[{self.item}]" if self.kind == "list" else f"{self.item}?"
        if self.kind != "array":
            return self.kind
        axes = ",".join("*" if axis is None else str(axis) for axis in self.shape)
        return f"{self.dtype}[{axes}]" if axes else self.dtype

    @property
    def fixed(self) -> bool:
        """True when every value takes the same number of bytes."""
        return self.kind == "array" and None not in self.shape

    @property
    def scalar(self) -> bool:
        """True for a single number."""
        return self.kind == "array" and not self.shape

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy type of the numbers of an array."""
        return numpy_dtype(self.dtype)

    @property
    def bytes(self) -> int:
        """Bytes of a fixed value."""
        size: int = self.numpy.itemsize
        for axis in self.shape:
            size *= axis or 0
        return size

    @property
    def align(self) -> int:
        """Multiple of bytes, counted from the begin of the sample, where a value begins."""
        if self.kind in BLOBS:
            return 1
        if self.kind != "array":
            return 8
        return min(8, self.numpy.itemsize) if self.fixed else 8


@dataclass(frozen=True)
class Field:
    """One field of a sample: its name, type, unit and meaning."""

    name: str
    type: Type
    unit: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class Schema:
    """The fields of all samples of a store, in order."""

    fields: tuple[Field, ...]

    @classmethod
    def of(
        cls, types: Mapping[str, str], units: Mapping[str, str] | None = None, meanings: Mapping[str, str] | None = None
    ) -> Self:
        """Make a schema from texts of types by name.

        Raises:
            InputError: a name or type is none, a field has no type, or there are too many.

        Example:
            >>> str(Schema.of({"forces": "float64[*,3]"}, units={"forces": "eV/Å"})["forces"].type)
            'float64[*,3]'
        """
        units, meanings = units or {}, meanings or {}
        if not 0 < len(types) <= _MOST_FIELDS:
            raise InputError("a sample has at least one field", value=len(types), allowed=f"1 to {_MOST_FIELDS}")
        fields = []
        for name, text in types.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                hint = "letters, digits and _ . -, at most 100, not a digit first"
                raise InputError("not a name of a field", value=name, hint=hint)
            try:
                kind = Type.parse(text)
            except InputError as error:
                error.key = name
                raise
            fields.append(Field(name, kind, units.get(name, ""), meanings.get(name, "")))
        for name in (*units, *meanings):
            if name not in types:
                raise InputError("a unit or meaning belongs to no field", key=name, allowed=", ".join(types))
        return cls(tuple(fields))

    @classmethod
    def infer(cls, sample: Mapping[str, Any]) -> Self:
        """Return the schema of one sample: free first axes of arrays, 64-bit numbers, lists by their first entry."""
        return cls.of({name: _inferred(name, value) for name, value in sample.items()})

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the fields."""
        return tuple(field.name for field in self.fields)

    @cached_property
    def _by_name(self) -> dict[str, Field]:
        return {field.name: field for field in self.fields}

    def __getitem__(self, name: str) -> Field:
        try:
            return self._by_name[name]
        except KeyError:
            raise self.unknown(name) from None

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def unknown(self, name: Any) -> InputError:
        """Return the error for a name that is no field."""
        allowed = ", ".join(self.names)
        return InputError("no such field", key=str(name), allowed=allowed, hint=did_you_mean(name, self.names))

    def with_fields(self, types: Mapping[str, str], *, without: tuple[str, ...] = ()) -> Schema:
        """Return this schema with fields added or given another type, and without some."""
        kept = {field.name: field for field in self.fields if field.name not in without}
        kept |= {field.name: field for field in Schema.of(types)} if types else {}
        return Schema(tuple(kept.values()))

    def check(self, sample: Mapping[str, Any]) -> None:
        """Refuse a sample that this schema does not describe.

        Raises:
            InputError: the field is named.
        """
        from gewu.data.sample import codec

        codec(self).encode(sample)

    def to_json(self) -> str:
        """Return the text that shards hold."""
        rows = []
        for field in self.fields:
            row = {"name": field.name, "type": str(field.type), "unit": field.unit, "meaning": field.meaning}
            rows.append({key: value for key, value in row.items() if value})
        return json.dumps({"fields": rows}, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what `to_json` wrote.

        Raises:
            StoreError: it is not that.
        """
        try:
            rows = json.loads(text)["fields"]
            pick = {key: {row["name"]: row[key] for row in rows if key in row} for key in ("type", "unit", "meaning")}
            if len(pick["type"]) != len(rows) or any(not isinstance(v, str) for part in pick.values() for v in part.values()):
                raise ValueError("two fields of one name, or something that is not text")
            return cls.of(pick["type"], pick["unit"], pick["meaning"])
        except (InputError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"the schema cannot be read: {error}") from None


def _inferred(name: str, value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "bytes"
    if isinstance(value, (bool, int, float, complex)):
        return {bool: "bool", int: "int64", float: "float64", complex: "complex128"}[type(value)]
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.name in NUMBERS:
        axes = ["*", *map(str, value.shape[1:])] if value.ndim else []
        return value.dtype.name + (f"[{','.join(axes)}]" if axes else "")
    if isinstance(value, list) and value:
        return f"list[{_inferred(name, value[0])}]"
    raise InputError("its type cannot be inferred", key=name, value=type(value).__name__, hint="give a schema")
