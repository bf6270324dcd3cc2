"""From raw values to a schema and back: infer the type of each field from the first samples, then hold every sample to it.

Widening, where the first 1000 samples (at most 64 MiB) differ: integers and reals become float64; a value that is absent or null
makes the field optional; axes of different lengths become free, and the first axis of a list always is. Anything else becomes `text`
that holds strings as they are and all other values as JSON: nested objects, values of several types, integers beyond 64 bits. What
does not fit afterwards is a `Reject("schema-mismatch")` that names place and field; nothing is dropped or guessed.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import lzma
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import chain, islice
from typing import Any, Final, TypeVar

import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import storage_error
from gewu.data.fields import Schema, Type
from gewu.data.piece import Reject, Source
from gewu.data.sample import codec

SCAN_SAMPLES: Final = 1000
SCAN_BYTES: Final = 64 << 20
NULL, EMPTY, JSON = Type("null"), Type("empty"), Type("json")  # types while inferring; each ends as text
DAMAGE: Final = (ValueError, TypeError, LookupError, EOFError, NotImplementedError, MemoryError, RuntimeError, zlib.error,
                 lzma.LZMAError, struct.error)  # fmt: skip
Raw = Iterator[tuple[str, dict[str, Any]] | Reject]
P = TypeVar("P", bound="RawPiece")
T = TypeVar("T")


class Image(bytes):
    """The bytes of an encoded image file: plain bytes whose field is of type `image`."""


_PLAIN: Final = {str: Type("text"), bytes: Type("bytes"), Image: Type("image"), type(None): NULL, dict: JSON}


def type_of(value: Any) -> Type:
    """Return the type of one value."""
    if type(value) in _PLAIN:
        return _PLAIN[type(value)]
    if isinstance(value, list) and value:
        try:
            array = np.array(value)
        except (ValueError, OverflowError):  # ragged
            array = np.array("")
        if array.dtype.kind in "bif" and array.size:
            return type_of(array)
        inner = reduce(merged, map(type_of, value))
        return JSON if inner in (JSON, NULL, EMPTY) or None in value else Type("list", item=inner)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return JSON
    array = np.asarray(value)
    return Type("array", array.dtype.name, (None, *array.shape[1:])[: array.ndim]) if not isinstance(value, list) else EMPTY


def merged(a: Type, b: Type) -> Type:
    """Return the type that holds values of both."""
    if a == b or b == NULL:
        return a
    if a == NULL or (a == EMPTY and (b.shape or b.item)):
        return b
    if b == EMPTY:
        return merged(b, a) if a.shape or a.item else JSON
    if a.kind == b.kind == "array" and len(a.shape) == len(b.shape) and (a.dtype == b.dtype or "bool" not in (a.dtype, b.dtype)):
        shape = tuple(m if m == n else None for m, n in zip(a.shape, b.shape, strict=True))
        return Type("array", a.dtype if a.dtype == b.dtype else np.result_type(a.dtype, b.dtype).name, shape)
    if (a.shape or a.item) and (b.shape or b.item):  # a ragged list of lists met a rectangular one
        inner = merged(*(t.item or Type("array", t.dtype, t.shape[1:]) for t in (a, b)))
        return inner if inner == JSON else Type("list", item=inner)
    return JSON


@lru_cache(4096)
def field_name(text: str) -> str:
    """Return the name that a field of another format gets here: what a schema does not take becomes `_`.

    >>> field_name("first name"), field_name("2nd")
    ('first_name', '_2nd')
    """
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:99]
    return name if re.match("[A-Za-z_]", name) else "_" + name


def json_text(value: Any) -> str:
    """Return a value as compact JSON, strings as they are."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def preparer(kind: Type, loose: bool = False) -> Callable[[Any], Any]:
    """Return the function that makes of a raw value what the codec takes for a field of type `kind`, if anything can.

    Args:
        kind: type of the field.
        loose: whether `text` takes values of any type as JSON.
    """
    if kind.item is not None:
        inner = preparer(kind.item, loose)
        if kind.kind == "optional":
            return lambda value: None if value is None else inner(value)
        return lambda value: [inner(item) for item in value] if isinstance(value, list) else value
    if kind.kind == "text":
        return lambda value: json_text(value) if isinstance(value, dict) or (loose and value is not None) else value
    if kind.kind != "array":  # what JSON has for bytes
        return lambda value: base64.b64decode(value, validate=True) if isinstance(value, str) else value
    empty = np.empty([n or 0 for n in kind.shape], kind.numpy)
    return lambda value: empty if isinstance(value, list) and not value else value


@dataclasses.dataclass(frozen=True)
class RawPiece:
    """A piece whose `raw` reads a file, and whose `samples` are held to the schema; damage ends it with a `Reject`."""

    name: str
    path: str
    schema: Schema | None = dataclasses.field(default=None, kw_only=True)
    loose: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    def raw(self) -> Raw:
        """Yield (where, raw values) or a `Reject`."""
        raise NotImplementedError

    def read(self) -> Raw:
        """Yield what `raw` does; content that cannot be read becomes a last `Reject`.

        Raises:
            StoreError: the system refused to read (that is no fault of the data, and may pass).
        """
        try:
            yield from self.raw()
        except (*DAMAGE, InputError, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise storage_error(error, self.path, "read") from error
            text = str(error) or type(error).__name__
            yield Reject("damaged", text if isinstance(error, InputError) and error.file else f"{self.path}: {text}")

    def samples(self) -> Iterator[dict[str, Any] | Reject]:
        """Yield the samples, each with every field of the schema, or a `Reject` that names the field that does not fit."""
        assert self.schema is not None
        steps = [(field.name, preparer(field.type, field.name in self.loose)) for field in self.schema]
        form, known = codec(self.schema), set(self.schema.names)
        for found in self.read():
            if isinstance(found, Reject):
                yield found
                continue
            where, raw = found
            try:
                if not known.issuperset(raw):
                    raise self.schema.unknown(next(name for name in raw if name not in known))
                packed = form.encode({name: prepare(raw.get(name)) for name, prepare in steps})
                yield form.decode(bytes(packed), 0)  # exactly what the store will give back
            except (*DAMAGE, InputError) as error:
                yield Reject("schema-mismatch", f"{where}: {error}")


def inferred(
    pieces: Sequence[P],
    kind: str,
    schema: Schema | None = None,
    units: Mapping[str, str] | None = None,
    shapes: Mapping[str, str] | None = None,
) -> Source:
    """Return a source whose schema is given, or inferred from its first samples.

    Args:
        pieces: in order.
        kind: name of the format.
        schema: the schema, if it is known.
        units: of fields that may be there.
        shapes: types of fields whose first axis is not free, as far as they have as many axes.

    Raises:
        InputError: not one sample can be read; the first reason is named.
    """
    types: dict[str, Type] = {}
    seen: dict[str, int] = {}
    count, room, why = 0, SCAN_BYTES, ""
    for each in islice(chain.from_iterable(piece.read() for piece in pieces), 0 if schema else SCAN_SAMPLES):
        if isinstance(each, Reject):
            why = why or f": {each.reason}, {each.where}"
            continue
        count += 1
        for name, value in each[1].items():
            types[name] = merged(types.get(name, NULL), type_of(value))
            seen[name] = seen.get(name, 0) + (value is not None)
            room -= len(value) if isinstance(value, (str, bytes, list)) else getattr(value, "nbytes", 8)
        if room < 0:
            break
    if schema is None:
        if not types:
            raise InputError(f"holds no sample that can be read{why}", file=pieces[0].path if pieces else None)
        texts = {name: str(kind if kind not in (NULL, EMPTY, JSON) else "text") for name, kind in types.items()}
        for name, known in (shapes or {}).items():
            if name in texts and texts[name].count(",") == known.count(",") and "[" in texts[name]:
                texts[name] = known
        texts = {name: text + "?" * (seen[name] < count) for name, text in texts.items()}
        schema = Schema.of(texts, units={name: unit for name, unit in (units or {}).items() if name in texts})
    loose = tuple(name for name, type_ in types.items() if type_ in (NULL, EMPTY, JSON))
    columns = tuple(field.name for field in schema if (field.type.item or field.type).scalar)
    return Source(schema, [dataclasses.replace(piece, schema=schema, loose=loose) for piece in pieces], kind, columns)


def refused(form: str, name: str, kind: Type, allowed: str) -> InputError:
    """Return the error for a field that a format cannot hold."""
    return InputError(
        f"{form} cannot hold this field", key=name, value=str(kind), allowed=allowed, hint="leave it out (`fields`)"
    )


def rolled(parts: Iterable[T], limit: int, length: Callable[[T], int] = len) -> Iterator[list[T]]:  # type: ignore[assignment]
    """Yield groups of parts of about `limit` bytes together, at least one part each."""
    group: list[T] = []
    size = 0
    for part in parts:
        size += length(part)
        if group and size > limit:
            yield group
            group, size = [], length(part)
        group.append(part)
    if group:
        yield group
