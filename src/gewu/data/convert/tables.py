"""Tables: JSON lines (see `gewu.formats.jsonl`), and Parquet and Arrow files (see `gewu.formats.arrow`).

What we write carries its schema, units included, so that reading gives back the same samples: JSON lines in `NAME.schema.json`
(there bytes and images are base64), the others in their metadata.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import AtomicFile, read_capped, write_atomic
from gewu.data.convert.fit import RecordPiece, inferred, refused
from gewu.data.fields import Field, Schema, Type
from gewu.data.piece import Source
from gewu.formats import arrow, jsonl
from gewu.formats.packed import opened, pyarrow
from gewu.formats.recognise import SCHEMA_SUFFIX

PIECE_BYTES: Final = 64 << 20
BATCH: Final = 1024
META, SCHEMA_BYTES = b"gewu.schema", 1 << 20


def jsonl_source(paths: Sequence[str], schema: Schema | None = None, line_bytes: int = jsonl.LINE_BYTES) -> Source:
    """Return the objects of JSON-lines files in pieces of 64 MiB; a compressed file is one piece."""
    pieces = []
    for number, path in enumerate(paths):
        if schema is None and os.path.exists(side := path.removesuffix(".jsonl") + SCHEMA_SUFFIX):
            schema = Schema.from_json(read_capped(side, SCHEMA_BYTES))
        with opened(path) as stream:
            end = os.path.getsize(path) if stream.seekable() else 1  # so the last piece of a file that has grown is another one
        for part, start in enumerate(range(0, end, PIECE_BYTES)):
            args = (start, min(start + PIECE_BYTES, end) if end > 1 else 1 << 62, line_bytes)
            pieces.append(RecordPiece(f"jsonl-{number:05d}-{part:05d}", path, args, reader=jsonl.records))
    return inferred(pieces, "jsonl", schema)


def table_source(paths: Sequence[str], schema: Schema | None = None) -> Source:
    """Return the rows of Parquet or Arrow files of one schema; a column that holds a null in any of them is optional.

    Raises:
        InputError: a file cannot be read, or has other columns than the first.
    """
    tables = [arrow.read_table(path) for path in paths]
    first, pieces = tables[0].schema, []
    for number, (path, table) in enumerate(zip(paths, tables, strict=True)):
        if not table.schema.equals(first):
            raise InputError(
                "has other columns than the first file", file=path, value=table.schema.names, allowed=str(first.names)
            )
        pieces += [RecordPiece(f"table-{number:05d}-{k:05d}", path, (k,), reader=arrow.records) for k in range(table.groups)]
    if schema is None and META in (first.metadata or {}):
        ours = Schema.from_json(first.metadata[META])
        schema = ours if arrow_schema(ours, "arrow").types == first.types else None
    known = {field.name: arrow.array_type(field.type) for field in first}
    return inferred(pieces, "table", schema, known=known, optional=set().union(*(table.nulls for table in tables)))


def arrow_schema(schema: Schema, form: str) -> Any:
    """Return the Arrow schema of the fields, which carries ours as metadata."""
    pa = pyarrow()

    def of(field: Field, kind: Type) -> Any:
        if kind.item is not None:
            return of(field, kind.item) if kind.kind == "optional" else pa.list_(of(field, kind.item))
        if kind.kind != "array":
            return pa.string() if kind.kind == "text" else pa.binary()
        if kind.numpy.kind not in "biuf" or None in kind.shape[1:] or 0 in kind.shape:
            raise refused(form, field.name, kind, "arrays of booleans, integers and reals whose first axis alone may be free")
        made = pa.from_numpy_dtype(kind.numpy)
        for axis in reversed(kind.shape):
            made = pa.list_(made, -1 if axis is None else axis)
        return made

    fields = [pa.field(f.name, of(f, f.type), nullable=f.type.kind == "optional") for f in schema]
    return pa.schema(fields, metadata={META: schema.to_json()})


def _plain(value: Any, binary: bool = True) -> Any:
    if isinstance(value, bytes) and not binary:
        return base64.b64encode(value).decode()
    if isinstance(value, list):
        return [_plain(item, binary) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def export_table(samples: Iterable[dict[str, Any]], schema: Schema, path: str, form: str) -> int:
    """Write samples as a Parquet or Arrow file; return their number."""
    count, rows = 0, iter(samples)

    def groups() -> Iterator[list[dict[str, Any]]]:
        nonlocal count
        while group := [{name: _plain(value) for name, value in row.items()} for row in islice(rows, BATCH)]:
            count += len(group)
            yield group

    arrow.write_table(path, arrow_schema(schema, form), groups(), form == "parquet")
    return count


def export_jsonl(samples: Iterable[dict[str, Any]], schema: Schema, path: str) -> int:
    """Write samples as JSON lines and their schema beside them; return their number."""
    for field in schema:
        if "complex" in str(field.type) or "bfloat16" in str(field.type):
            raise refused("jsonl", field.name, field.type, "every type but complex and bfloat16")
    count = 0
    with AtomicFile(path) as file:
        for sample in samples:
            file.write((jsonl.text({name: _plain(value, binary=False) for name, value in sample.items()}) + "\n").encode())
            count += 1
    write_atomic(path.removesuffix(".jsonl") + SCHEMA_SUFFIX, schema.to_json().encode())
    return count
