"""Rows of Parquet and Arrow files as records, and records as such files.

Lists of numbers become arrays, structures with `bytes` (pictures, as Hugging Face keeps them) those bytes, decimals and dates
text; other structures and maps stay what Python makes of them. A null among numbers leaves a list that is no array.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import AtomicFile
from gewu.formats.packed import Record, pyarrow

_ROWS: Final = 1024


class Table(NamedTuple):
    """What a file says of itself: its Arrow schema, its number of row groups or record batches, and columns that hold nulls."""

    schema: Any
    groups: int
    nulls: set[str]


def _open(path: str) -> Any:
    with open(path, "rb") as file:
        parquet = file.read(4) == b"PAR1"
    pa = pyarrow()
    return pyarrow("pyarrow.parquet").ParquetFile(path, memory_map=True) if parquet else pa.ipc.open_file(pa.memory_map(path))


def read_table(path: str) -> Table:
    """Return the description of a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        file = _open(path)
        if not hasattr(file, "get_batch"):
            return Table(file.schema_arrow, file.num_row_groups, _parquet_nulls(file))
        batches, names = [file.get_batch(k) for k in range(file.num_record_batches)], file.schema.names
        nulls = {name for batch in batches for name, column in zip(names, batch.columns, strict=True) if column.null_count}
        return Table(file.schema, len(batches), nulls)
    except (ValueError, OSError, LookupError, SystemError) as error:
        raise InputError(f"cannot be read as a table: {error}", file=path) from None


def _parquet_nulls(file: Any) -> set[str]:
    """Return the columns with nulls. Parquet's counts take an empty list for a null: there the first row group is looked at."""
    found: set[str] = set()
    for group in range(file.num_row_groups):
        for k in range(file.metadata.num_columns):
            column = file.metadata.row_group(group).column(k)
            path, known = column.path_in_schema, column.statistics
            name = path if path in file.schema_arrow.names else path.split(".")[0]
            if name in found or not file.schema_arrow.field(name).nullable or (known and known.null_count == 0):
                continue
            if path == name or (group == 0 and file.read_row_group(0, [name]).column(0).null_count):
                found.add(name)
    return found


def array_type(arrow: Any) -> str:
    """Return "float64[*,3]" for a list of any number of lists of three numbers, and so on; "" for what is no array."""
    types, shape = pyarrow().types, []
    while types.is_list(arrow) or types.is_large_list(arrow) or types.is_fixed_size_list(arrow):
        shape.append(str(arrow.list_size) if types.is_fixed_size_list(arrow) else "*")
        arrow = arrow.value_type
    number = types.is_boolean(arrow) or types.is_integer(arrow) or types.is_floating(arrow)
    return f"{np.dtype(arrow.to_pandas_dtype()).name}[{','.join(shape)}]" if shape and number and "*" not in shape[1:] else ""


def records(path: str, group: int) -> Iterator[Record]:
    """Yield the rows of one row group or record batch."""
    file, row = _open(path), 0
    batches = [file.get_batch(group)] if hasattr(file, "get_batch") else file.iter_batches(_ROWS, [group])
    for batch in batches:
        batch.validate(full=True)  # offsets that lie would read elsewhere
        for start in range(0, batch.num_rows, _ROWS):
            columns = [_values(column) for column in batch.slice(start, _ROWS).columns]
            for values in zip(*columns, strict=True):
                yield f"{path}: group {group}, row {row}", dict(zip(batch.schema.names, values, strict=True))
                row += 1


def _values(column: Any) -> list[Any]:
    types, arrow = pyarrow().types, column.type
    if array := array_type(arrow):
        shape = [-1 if axis == "*" else int(axis) for axis in array.partition("[")[2][:-1].split(",")]
        return [_array(value, shape) if value.is_valid else None for value in column]
    values: list[Any] = column.to_pylist()
    if types.is_integer(arrow) or types.is_floating(arrow):
        make = np.dtype(arrow.to_pandas_dtype()).type
        return [None if value is None else make(value) for value in values]
    if types.is_struct(arrow) and arrow.get_field_index("bytes") >= 0:
        return [value and value["bytes"] for value in values]
    if types.is_list(arrow) or types.is_large_list(arrow):
        return [value and [np.array(v) if v and array_type(arrow.value_type) else v for v in value] for value in values]
    return [v if v is None or isinstance(v, (str, bytes, bool, dict, list)) else str(v) for v in values]


def _array(value: Any, shape: Sequence[int]) -> Any:
    numbers = value.values
    while hasattr(numbers, "flatten") and hasattr(numbers.type, "value_type"):
        numbers = numbers.flatten()
    if numbers.null_count:
        return value.as_py()
    return numbers.to_numpy(zero_copy_only=False).reshape(shape if numbers else [n if n > 0 else 0 for n in shape])


class _Sink(io.RawIOBase):
    def __init__(self, file: AtomicFile) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell

    def write(self, data: Any) -> int:
        return self._file.write(bytes(data))


def write_table(path: str, schema: Any, rows: Iterable[list[dict[str, Any]]], parquet: bool = True) -> None:
    """Write groups of rows as a Parquet file (zstd), or as an Arrow file."""
    pa = pyarrow()
    with AtomicFile(path) as file:
        sink = _Sink(file)
        writer = (
            pyarrow("pyarrow.parquet").ParquetWriter(sink, schema, compression="zstd")
            if parquet
            else pa.ipc.new_file(sink, schema)
        )
        with writer:
            for group in rows:
                columns = [pa.array([row[field.name] for row in group], field.type) for field in schema]
                writer.write_batch(pa.record_batch(columns, schema=schema))
