"""From records to samples: infer the type of each field from the first records, then hold every record to it.

Widening, where the first 1000 records (at most 64 MiB) differ: integers and reals become float64; a value that is absent or null
makes the field optional; axes of different lengths become free, and the first axis always is. Anything else becomes `text` that
holds strings as they are and all other values as JSON: nested objects, values of several types, integers beyond 64 bits. Bytes
that all begin like a picture are `image`. What does not fit afterwards is a `Reject("schema-mismatch")` that names place and
field; nothing is dropped or guessed.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import chain, islice
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import storage_error
from gewu.data.fields import Schema, Type
from gewu.data.piece import Reject, Source
from gewu.data.sample import codec
from gewu.formats import jsonl
from gewu.formats.packed import DAMAGE, Record
from gewu.formats.recognise import PICTURES

SCAN_RECORDS, SCAN_BYTES = 1000, 64 << 20
BYTES, IMAGE, TEXT, NULL, EMPTY, JSON = map(Type, ("bytes", "image", "text", "null", "empty", "json"))
LOOSE: Final = (NULL, EMPTY, JSON)  # types while inferring; each ends as text


def type_of(value: Any) -> Type:
    """Return the type of one value."""
    if isinstance(value, bytes):
        return IMAGE if value.startswith(PICTURES) else BYTES
    if isinstance(value, list) and value:
        try:
            array = np.array(value)
        except (ValueError, OverflowError):  # ragged
            array = np.array("")
        if array.dtype.kind in "bif" and array.size:
            return type_of(array)
        inner = reduce(merged, map(type_of, value))
        return JSON if inner in (NULL, JSON) or any(item is None for item in value) else Type("list", item=inner)
    if isinstance(value, (str, dict, list)) or value is None:
        return NULL if value is None else TEXT if isinstance(value, str) else EMPTY if isinstance(value, list) else JSON
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return JSON
    array = np.asarray(value)
    return Type("array", array.dtype.name, (None, *array.shape[1:])[: array.ndim])


def merged(a: Type, b: Type) -> Type:
    """Return the type that holds values of both."""
    if a == b or b == NULL:
        return a
    if a == NULL or (a == EMPTY and b.item):
        return b
    if EMPTY in (a, b):
        other = a if b == EMPTY else b
        return other if other.item else Type("array", other.dtype, (None, *other.shape[1:])) if other.shape else JSON
    if {a, b} == {BYTES, IMAGE}:
        return BYTES
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


def _prepared(value: Any, kind: Type, loose: bool) -> Any:
    """Return what the codec takes for a raw value, if it takes anything; loose text takes all values as JSON."""
    if kind.item is not None:
        if value is None or kind.kind == "optional":
            return value if value is None else _prepared(value, kind.item, loose)
        return [_prepared(item, kind.item, loose) for item in value] if isinstance(value, list) else value
    if kind == TEXT:
        return jsonl.text(value) if isinstance(value, dict) or (loose and value is not None) else value
    if kind.kind != "array":  # what JSON has for bytes
        return base64.b64decode(value, validate=True) if isinstance(value, str) else value
    return np.empty([n or 0 for n in kind.shape], kind.numpy) if isinstance(value, list) and not value else value


@dataclasses.dataclass(frozen=True)
class RecordPiece:
    """The records that `reader(path, *args)` yields, held to the schema; damage ends them with a `Reject`."""

    name: str
    path: str
    args: tuple[Any, ...] = ()
    reader: Callable[..., Iterator[Record]] = dataclasses.field(kw_only=True, repr=False)
    schema: Schema = dataclasses.field(default=Schema(()), kw_only=True)
    loose: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    fits: bool = dataclasses.field(default=False, kw_only=True)  # the reader makes samples of the schema and nothing else

    def records(self) -> Iterator[Record]:
        """Yield the records; content that cannot be read becomes a last refusal.

        Raises:
            StoreError: the system refused to read (that is no fault of the data, and may pass).
        """
        try:
            yield from self.reader(self.path, *self.args)
        except (*DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise storage_error(error, self.path, "read") from error
            named = isinstance(error, InputError) and error.file
            yield str(error) if named else f"{self.path}: {str(error) or type(error).__name__}", "damaged"

    def samples(self) -> Iterator[dict[str, Any] | Reject]:
        """Yield the samples, each with every field of the schema, or a `Reject` that names the field that does not fit."""
        steps = [(field.name, field.type, field.name in self.loose) for field in self.schema]
        form, known = codec(self.schema), set(self.schema.names)
        for where, record in self.records():
            if isinstance(record, str):
                yield Reject(record, where)
                continue
            if self.fits:
                yield record
                continue
            raw = {field_name(name): value for name, value in record.items()}
            try:
                if not known.issuperset(raw) or len(raw) < len(record):
                    odd = next((name for name in record if field_name(name) not in known), "two names that become one")
                    raise self.schema.unknown(odd)
                packed = form.encode({name: _prepared(raw.get(name), kind, loose) for name, kind, loose in steps})
                sample = form.decode(bytes(packed), 0)  # exactly what the store will give back
            except DAMAGE as error:
                yield Reject("schema-mismatch", f"{where}: {error}")
            else:
                yield sample


def inferred(
    pieces: Sequence[RecordPiece],
    format: str,
    schema: Schema | None = None,
    units: Mapping[str, str] | None = None,
    known: Mapping[str, str] | None = None,
    optional: Collection[str] = (),
) -> Source:
    """Return a source whose schema is given, or inferred from its first records.

    Args:
        pieces: in order.
        format: its name.
        schema: the schema, if it is known.
        units: of fields that may be there.
        known: types of arrays, as far as they have as many axes.
        optional: fields that may be absent though they are not in the first records.

    Raises:
        InputError: not one record can be read; the first reason is named.
    """
    types: dict[str, Type] = {}
    seen: dict[str, int] = {}
    count, room, why = 0, SCAN_BYTES, ""
    for where, record in islice(chain.from_iterable(piece.records() for piece in pieces), 0 if schema else SCAN_RECORDS):
        if isinstance(record, str):
            why = why or f": {record}, {where}"
            continue
        count += 1
        for name, value in record.items():
            types[name] = merged(types.get(name, NULL), type_of(value))
            seen[name] = seen.get(name, 0) + (value is not None)
            room -= len(value) if isinstance(value, (str, bytes, list)) else getattr(value, "nbytes", 8)
        if room < 0:
            break
    types = {name: JSON if "empty" in str(kind) else kind for name, kind in types.items()}
    if schema is None:
        if not types:
            raise InputError(f"holds no sample that can be read{why}", file=pieces[0].path if pieces else None)
        for name, text in (known or {}).items():
            if text and (types.get(name) == JSON or len(types.get(name, NULL).shape) == text.count(",") + 1):
                types[name] = Type.parse(text)
        absent = {name for name in types if name in optional or seen[name] < count}
        texts = {name: ("text" if kind in LOOSE else str(kind)) + "?" * (name in absent) for name, kind in types.items()}
        schema = Schema.of(
            {field_name(name): text for name, text in texts.items()},
            units={field_name(name): unit for name, unit in (units or {}).items() if name in texts},
        )
    loose = tuple(field_name(name) for name, kind in types.items() if kind in LOOSE)
    columns = tuple(field.name for field in schema if (field.type.item or field.type).scalar)
    return Source(schema, [dataclasses.replace(piece, schema=schema, loose=loose) for piece in pieces], format, columns)


def refused(form: str, name: str, kind: Type, allowed: str) -> InputError:
    """Return the error for a field that a format cannot hold."""
    return InputError(
        f"{form} cannot hold this field", key=name, value=str(kind), allowed=allowed, hint="leave it out (`fields`)"
    )
