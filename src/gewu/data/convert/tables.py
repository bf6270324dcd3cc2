"""Tables: JSON lines, plain or compressed, and Parquet and Arrow files.

A plain JSON-lines file is read in pieces of 64 MiB, each from the first line that begins in it, so one file keeps many processes
busy; a compressed one is one piece. A line beyond the limit is skipped in small steps and never held. NaN and Infinity are read,
and written, as Python's json does. Parquet is read by row groups, Arrow by record batches. Lists of numbers become arrays; nulls
make a field optional; decimals, dates and structures become text. What we write carries its schema, units included: JSON lines in
`NAME.schema.json` (there bytes and images are base64), the others in their metadata, so that reading gives back the same samples.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import AtomicFile, read_capped, write_atomic
from gewu.data.convert.archives import opened
from gewu.data.convert.fit import Raw, RawPiece, field_name, inferred, json_text, refused
from gewu.data.fields import Schema, Type, extra
from gewu.data.piece import Reject, Source

PIECE_BYTES: Final = 64 << 20
LINE_BYTES: Final = 64 << 20
BATCH, BATCH_BYTES = 1024, 32 << 20
SIDE, META = ".schema.json", b"gewu.schema"
ROWS_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class LinesPiece(RawPiece):
    """The lines of a file that begin in [start, stop)."""

    start: int = 0
    stop: int = 1 << 62
    line_bytes: int = LINE_BYTES

    def raw(self) -> Raw:
        """Yield one sample for each line that is not blank."""
        with opened(self.path) as stream:
            at, number = self.start, 0
            if at:
                stream.seek(at - 1)
                at += _to_line_end(stream, self.stop - at + 1) - 1
            while at < self.stop and (line := stream.readline(self.line_bytes + 1)):
                number, at = number + 1, at + len(line)
                where = f"{self.path}:{number}" + (f" (lines counted from byte {self.start})" if self.start else "")
                if len(line) > self.line_bytes:
                    at += 0 if line.endswith(b"\n") else _to_line_end(stream, self.stop - at)
                    yield Reject("line-too-long", f"{where}: more than {self.line_bytes} bytes")
                elif line := line.strip():
                    yield self._parsed(line, where)

    def _parsed(self, line: bytes, where: str) -> tuple[str, dict[str, Any]] | Reject:
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except UnicodeError as error:
            return Reject("invalid-utf8", f"{where}: {error}")
        except RecursionError:
            return Reject("too-deep", f"{where}: nested too deeply")
        except ValueError as error:
            return Reject("not-json", f"{where}: {error}")
        if not isinstance(value, dict):
            return Reject("not-an-object", where)
        return where, {field_name(name): item for name, item in value.items()}


def _to_line_end(stream: Any, most: int) -> int:
    """Read to the end of a line, in small steps and not much beyond `most` bytes; return how many were read."""
    count = 0
    while count < most and (part := stream.readline(ROWS_BYTES)):
        count += len(part)
        if part.endswith(b"\n"):
            break
    return count


def jsonl_source(paths: Sequence[str], schema: Schema | None = None, *, line_bytes: int = LINE_BYTES) -> Source:
    """Return the objects of JSON-lines files; without a schema, it is inferred (see `fit`)."""
    pieces = []
    for number, path in enumerate(paths):
        if schema is None and os.path.exists(side := path.removesuffix(".jsonl") + SIDE):
            schema = Schema.from_json(read_capped(side, ROWS_BYTES))
        with opened(path) as stream:
            size = os.path.getsize(path) if stream.seekable() else 0
        for part, start in enumerate(range(0, max(size, 1), PIECE_BYTES)):
            stop = start + PIECE_BYTES if size else 1 << 62
            pieces.append(LinesPiece(f"jsonl-{number:05d}-{part:05d}", path, start, stop, line_bytes))
    return inferred(pieces, "jsonl", schema)


@dataclass(frozen=True)
class RowsPiece(RawPiece):
    """One row group of a Parquet file, or one record batch of an Arrow file."""

    group: int = 0

    def raw(self) -> Raw:
        """Yield one sample for each row."""
        file, row = _table(self.path), 0
        batches = file.iter_batches(BATCH, [self.group]) if hasattr(file, "iter_batches") else [file.get_batch(self.group)]
        for batch in batches:
            batch.validate(full=True)  # offsets that lie would read elsewhere
            for start in range(0, batch.num_rows, BATCH):
                part = batch.slice(start, BATCH)
                columns = [_values(column) for column in part.columns]
                names = [field_name(name) for name in part.schema.names]
                for values in zip(*columns, strict=True):
                    yield f"{self.path}: group {self.group}, row {row}", dict(zip(names, values, strict=True))
                    row += 1


def _table(path: str) -> Any:
    with open(path, "rb") as file:
        parquet = file.read(4) == b"PAR1"
    pa = extra("pyarrow")
    if parquet:
        return extra("pyarrow.parquet").ParquetFile(path, memory_map=True)
    return pa.ipc.open_file(pa.memory_map(path))


def _kind(arrow: Any) -> str:
    """Return the type of a field of an Arrow type."""
    is_ = extra("pyarrow").types
    if is_.is_dictionary(arrow) or hasattr(arrow, "storage_type"):
        return _kind(arrow.value_type if is_.is_dictionary(arrow) else arrow.storage_type)
    if is_.is_boolean(arrow) or is_.is_integer(arrow) or is_.is_floating(arrow):
        return str(np.dtype(arrow.to_pandas_dtype()).name)
    if is_.is_struct(arrow) and arrow.get_field_index("bytes") >= 0:
        return "image"
    if is_.is_binary(arrow) or is_.is_large_binary(arrow) or is_.is_fixed_size_binary(arrow) or is_.is_binary_view(arrow):
        return "bytes"
    if is_.is_list(arrow) or is_.is_large_list(arrow) or is_.is_fixed_size_list(arrow):
        inner, axis = Type.parse(_kind(arrow.value_type)), str(arrow.list_size) if is_.is_fixed_size_list(arrow) else "*"
        axes = ",".join([axis, *(str(n) for n in inner.shape)])
        return f"{inner.dtype}[{axes}]" if inner.fixed and inner.kind == "array" else f"list[{inner}]"
    return "text"


def _values(column: Any) -> list[Any]:
    """Return a column as raw values: arrays where lists hold numbers."""
    kind = Type.parse(_kind(column.type))
    column = getattr(column, "storage", column)
    if kind.shape:
        return [_array(value, kind) if value.is_valid else None for value in column]
    values: list[Any] = column.to_pylist()
    if kind.kind == "image":
        return [value and value["bytes"] for value in values]
    if kind.kind == "text":
        return [v if v is None or isinstance(v, (str, dict, list)) else str(v) for v in values]
    return values


def _array(value: Any, kind: Type) -> Any:
    numbers = value.values
    while hasattr(numbers, "flatten") and hasattr(numbers.type, "value_type"):
        numbers = numbers.flatten()
    if numbers.null_count:
        return value.as_py()  # a null among numbers: the row will not fit
    return numbers.to_numpy(zero_copy_only=False).reshape([-1 if n is None else n for n in kind.shape])


def table_source(paths: Sequence[str], kind: str, schema: Schema | None = None) -> Source:
    """Return the rows of Parquet or Arrow files of one schema; a column that holds a null in any of them is optional.

    Raises:
        InputError: a file cannot be read, or has other columns than the first.
    """
    pieces: list[RowsPiece] = []
    nulls: set[str] = set()
    first = None
    for number, path in enumerate(paths):
        try:
            file = _table(path)
            arrow = file.schema_arrow if kind == "parquet" else file.schema
            groups = file.num_row_groups if kind == "parquet" else file.num_record_batches
            nulls |= _with_nulls(file, arrow, groups)
        except (ValueError, OSError, LookupError) as error:
            raise InputError(f"cannot be read as {kind}: {error}", file=path) from None
        first = first or arrow
        if arrow.remove_metadata() != first.remove_metadata():
            raise InputError("has other columns than the first file", file=path, value=arrow.names, allowed=str(first.names))
        pieces += [RowsPiece(f"{kind}-{number:05d}-{group:05d}", path, group) for group in range(groups)]
    if schema is None and first is not None:
        types = {field.name: _kind(field.type) + "?" * (field.name in nulls) for field in first}
        schema = Schema.of({field_name(name): text for name, text in types.items()})
        ours = Schema.from_json((first.metadata or {}).get(META, schema.to_json()))
        schema = ours if arrow_schema(ours, kind).types == first.types else schema
    return inferred(pieces, kind, schema)


def _with_nulls(file: Any, arrow: Any, groups: int) -> set[str]:
    """Return the columns with nulls. Parquet's counts take an empty list for a null: there the first row group is looked at."""
    if hasattr(file, "get_batch"):
        return {
            name for k in range(groups) for name, c in zip(arrow.names, file.get_batch(k).columns, strict=True) if c.null_count
        }
    found: set[str] = set()
    for group in range(groups):
        for k in range(file.metadata.num_columns):
            column = file.metadata.row_group(group).column(k)
            path, known = column.path_in_schema, column.statistics
            name = path if path in arrow.names else path.split(".")[0]
            if name in found or not arrow.field(name).nullable or (known and known.has_null_count and not known.null_count):
                continue
            if path == name or (group == 0 and file.read_row_group(0, [name]).column(0).null_count):
                found.add(name)
    return found


def arrow_schema(schema: Schema, form: str) -> Any:
    """Return the Arrow schema of the fields, which carries ours as metadata."""
    pa = extra("pyarrow")

    def of(name: str, kind: Type) -> Any:
        if kind.item is not None:
            inner = of(name, kind.item)
            return inner if kind.kind == "optional" else pa.list_(inner)
        if kind.kind != "array":
            return pa.string() if kind.kind == "text" else pa.binary()
        if kind.numpy.kind not in "biuf" or None in kind.shape[1:] or 0 in kind.shape:
            raise refused(form, name, kind, "arrays of booleans, integers and reals whose first axis alone may be free")
        made = pa.from_numpy_dtype(kind.numpy)
        for axis in reversed(kind.shape):
            made = pa.list_(made, -1 if axis is None else axis)
        return made

    fields = [pa.field(f.name, of(f.name, f.type), nullable=f.type.kind == "optional") for f in schema]
    return pa.schema(fields, metadata={META: schema.to_json()})


class Sink(io.RawIOBase):
    """An `AtomicFile` as a stream of Python."""

    def __init__(self, file: AtomicFile) -> None:
        self._file = file

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._file.tell

    def write(self, data: Any) -> int:
        """Append."""
        return self._file.write(bytes(data))


def export_table(samples: Iterable[dict[str, Any]], schema: Schema, path: str, form: str) -> int:
    """Write samples as a Parquet or Arrow file; return their number."""
    pa, arrow, total = extra("pyarrow"), arrow_schema(schema, form), 0
    with AtomicFile(path) as file:
        make = extra("pyarrow.parquet").ParquetWriter if form == "parquet" else pa.ipc.new_file
        options = {"compression": "zstd"} if form == "parquet" else {}
        with make(Sink(file), arrow, **options) as writer:
            rows = iter(samples)
            while batch := list(islice(rows, BATCH)):
                plain = [[_plain(row[field.name]) for row in batch] for field in arrow]
                columns = [pa.array(c, field.type) for c, field in zip(plain, arrow, strict=True)]
                writer.write_batch(pa.record_batch(columns, schema=arrow))
                total += len(batch)
    return total


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _jsonable(value: Any) -> Any:
    if isinstance(value, (bytes, memoryview)):
        return base64.b64encode(value).decode()
    return [_jsonable(item) for item in value] if isinstance(value, list) else _plain(value)


def export_jsonl(samples: Iterable[dict[str, Any]], schema: Schema, path: str) -> int:
    """Write samples as JSON lines and their schema beside them; return their number."""
    for field in schema:
        if "complex" in str(field.type) or "bfloat16" in str(field.type):
            raise refused("jsonl", field.name, field.type, "every type but complex and bfloat16")
    total = 0
    with AtomicFile(path) as file:
        for total, sample in enumerate(samples, start=1):
            file.write((json_text(_jsonable_row(sample)) + "\n").encode())
    write_atomic(path.removesuffix(".jsonl") + SIDE, schema.to_json().encode())
    return total


def _jsonable_row(sample: dict[str, Any]) -> dict[str, Any]:
    return {name: _jsonable(value) for name, value in sample.items()}
