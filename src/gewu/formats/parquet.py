"""Tables in Parquet files, small: each column in the encoding that suits its values, with its extremes beside it.

Values of which many are equal become numbers into a dictionary; other numbers have their bytes split by place
(BYTE_STREAM_SPLIT), other texts leave out what they share with the one before (DELTA_BYTE_ARRAY); all is compressed by zstd.
Columns that nothing can shrink, such as hashes, are named and stay as they are.
Source: Apache Parquet format 2.6, https://parquet.apache.org/docs/file-format. Needs pyarrow.
"""

from __future__ import annotations

import io
from collections.abc import Container, Mapping
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError

TYPES: Final = "text, bool, int8 to int64, uint8 to uint64, float32, float64"
_ARROW: Final = {"text": "string", "float16": "float32", "bfloat16": "float32"}
_TRIAL, _FEW, _ROW_GROUP = 1 << 16, 1 << 12, 1 << 17
_MOST_VALUES, _LONGEST_VALUE = 16, 64


def column(name: str, values: Any, kind: str = "") -> Any:
    """Return an array or list as an Arrow array of one of TYPES.

    Args:
        name: for messages.
        values: numbers, texts or bools; None stands for an absent value.
        kind: the type, by default what the values ask for (a list: text, bool, int64 or float64); a `?` at its end is ignored.

    Raises:
        InputError: the values are not of the type, or of none that is stored.
    """
    import pyarrow as pa

    kind = _ARROW.get(kind.rstrip("?"), kind.rstrip("?"))
    try:
        wanted = pa.type_for_alias(kind) if kind else None
        array = pa.array(values, wanted) if isinstance(values, list) else pa.array(np.asarray(values))
        found = str(wanted or {"large_string": "string", "null": "string", "halffloat": "float"}.get(str(array.type), array.type))
        if found.startswith(("string", "bool", "int", "uint", "float", "double")):
            return array.cast(pa.type_for_alias(found))
        reason = f"{found} is not a type that a column can have"
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        reason = f"cannot be stored: {str(error).splitlines()[0]}"
    raise InputError(reason, key=name, value=kind or None, allowed=TYPES)


def extremes(array: Any) -> dict[str, Any]:
    """Return a column's Arrow type, and all values of a text that has few, else the least and the greatest; None when unknown.

    NaN is the greatest of all numbers, as in DuckDB.
    """
    kind, array = str(array.type), array.drop_null()
    if kind == "string":
        values = array.unique().to_pylist()
        few = len(values) <= _MOST_VALUES and all(len(value.encode()) <= _LONGEST_VALUE for value in values)
        return {"type": kind, "values": sorted(values) if few else None}
    numbers = array.to_numpy(zero_copy_only=False)
    low, high = (np.fmin.reduce, np.maximum.reduce) if numbers.dtype.kind == "f" else (np.min, np.max)
    bounds = (low(numbers).item(), high(numbers).item()) if len(numbers) else (None, None)
    return {"type": kind, "min": bounds[0], "max": bounds[1]}


def packed(arrays: Mapping[str, Any], plain: Container[str] = (), meanings: Mapping[str, str] | None = None) -> io.BytesIO:
    """Return a table as a Parquet file.

    Args:
        arrays: Arrow arrays of one length by name; also lists of text.
        plain: columns that nothing can shrink.
        meanings: sentences on columns, kept in the file.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    notes = {name: {"meaning": meanings[name]} for name in arrays if meanings and name in meanings}
    schema = pa.schema([pa.field(name, array.type, metadata=notes.get(name)) for name, array in arrays.items()])
    few, encoding, bounded, sink = [], {}, [], io.BytesIO()
    for name, array in arrays.items():
        kind = str(array.type)
        if kind.startswith("list"):
            few.append(f"{name}.list.element")
        elif name not in plain and (kind == "bool" or pc.count_distinct(array[:_TRIAL]).as_py() < _FEW):
            few.append(name)
        else:
            encoding[name] = "PLAIN" if name in plain else "DELTA_BYTE_ARRAY" if kind == "string" else "BYTE_STREAM_SPLIT"
        # Parquet's own extremes leave NaN out, and DuckDB would leave out its rows
        if name not in plain and not (kind in ("float", "double") and pc.any(pc.is_nan(array)).as_py()):
            bounded.append(name)
    compression = {name: "none" if name in plain else "zstd" for name in arrays}
    options = {"use_dictionary": few, "column_encoding": encoding, "compression": compression, "write_statistics": bounded}
    pq.write_table(pa.table(list(arrays.values()), schema=schema), sink, _ROW_GROUP, **options)
    return sink
