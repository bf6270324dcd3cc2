"""Arrays in NetCDF-4 and HDF5 files as records, and records as such files; and result directories of gewu.

A file is one record, or with `along` one for each index of that dimension, with all other arrays repeated. Arrays whose rows vary
are CF's contiguous ragged arrays: `x` holds all rows and `x_size`, over the dimension `sample`, how many belong to each; the
attribute `gewu_type` says what bytes mean (text, bytes, bool, complex). Links to other files and virtual or external arrays are
left out, for they would read what nobody named. Reference: CF conventions 1.11, §9.3.3.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import h5netcdf
import h5py
import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import read_capped, sha256_of
from gewu.formats.packed import Record

MANIFEST, NUMBERS, ARRAYS, SAMPLE = "manifest.json", "numbers.json", "arrays.nc", "sample"
_JSON_BYTES, _ARRAY_BYTES, _BLOCK_BYTES, _BLOCK = 100 << 20, 1 << 30, 64 << 20, 256


def _json(path: str) -> Any:
    return json.loads(read_capped(path, _JSON_BYTES))


def _arrays(root: h5py.File) -> dict[str, Any]:
    """Return the arrays of numbers in a file that are its own, without NetCDF's dimensions that have no values."""
    own = {name: root[name] for name in root if isinstance(root.get(name, getlink=True), h5py.HardLink)}
    return {
        name: data
        for name, data in own.items()
        if isinstance(data, h5py.Dataset) and data.dtype.kind in "biufc" and not (data.external or data.is_virtual)
        and not bytes(data.attrs.get("NAME", b"")).startswith(b"This is a netCDF dimension")
    }  # fmt: skip


def _first_dim(data: Any) -> str:
    return data.dims[0][0].name.rpartition("/")[2] if data.ndim and len(data.dims[0]) else ""


def _value(data: Any, raw: Any) -> Any:
    kind = data.attrs.get("gewu_type", "")
    if kind in ("text", "bytes", "image"):
        return raw.tobytes().decode() if kind == "text" else raw.tobytes()
    if kind == "complex":
        return np.ascontiguousarray(raw).view(np.result_type(raw.dtype, np.complex64))[..., 0]
    return raw.astype(bool) if kind == "bool" else raw


def _rows(data: Any, start: int, stop: int) -> Any:
    """Read some rows, as they stand in the file."""
    wanted = data.nbytes // max(1, len(data)) * (min(stop, len(data)) - start) if data.ndim else data.nbytes
    if wanted > _ARRAY_BYTES:
        raise InputError(
            "array is too large", file=data.file.filename, key=data.name, value=data.shape, allowed=f"{_ARRAY_BYTES} bytes"
        )
    return data[start:stop] if data.ndim else data[()]


def _whole(data: Any) -> Any:
    return _value(data, _rows(data, 0, 1 << 62))


def records(path: str, along: str = "") -> Iterator[Record]:
    """Yield what a result directory, or a NetCDF or HDF5 file, holds.

    Raises:
        InputError: a file does not match its checksum in the manifest, an array is too large, or there is no dimension `along`.
    """
    common: dict[str, Any] = {}
    if os.path.isdir(path):
        files = _json(os.path.join(path, MANIFEST))["files"]
        for name in (name for name in (NUMBERS, ARRAYS) if name in files):
            if sha256_of(os.path.join(path, name)) != files[name]:
                raise InputError(f"does not match its checksum in {MANIFEST}", file=os.path.join(path, name))
        numbers = _json(os.path.join(path, NUMBERS)) if NUMBERS in files else {}
        common = {"result": os.path.basename(os.path.abspath(path))} | {name: float(n["value"]) for name, n in numbers.items()}
        if ARRAYS not in files:
            yield path, common
            return
        path = os.path.join(path, ARRAYS)
    with h5py.File(path, "r") as root:
        arrays = _arrays(root)
        if not along:
            yield path, common | {name: _whole(data) for name, data in arrays.items()}
            return
        yield from _indexed(path, along, arrays, common)


def _indexed(path: str, along: str, arrays: dict[str, Any], common: dict[str, Any]) -> Iterator[Record]:
    edges = {name: np.cumsum([0, *arrays[f"{name}_size"][...]]) for name, data in arrays.items() if data.attrs.get("gewu_ragged")}
    moving = {
        name: data for name, data in arrays.items() if _first_dim(data) == along and name.removesuffix("_size") not in edges
    }
    counts = {*(len(data) for data in moving.values()), *(len(edge) - 1 for edge in edges.values())}
    if len(counts) != 1:
        raise InputError("has no such dimension", file=path, key="along", value=along)
    rest = arrays.keys() - moving - edges.keys() - {f"{name}_size" for name in edges}
    common |= {name: _whole(data) for name, data in arrays.items() if name in rest}
    block = max(1, min([_BLOCK, *(_BLOCK_BYTES * len(data) // max(1, data.nbytes) for data in moving.values())]))
    for start in range(0, max(counts), block):
        parts: dict[str, Any] = {name: _value(data, _rows(data, start, start + block)) for name, data in moving.items()}
        for name, edge in edges.items():
            cuts, data = edge[start : start + block + 1], arrays[name]
            rows = _rows(data, int(cuts[0]), int(cuts[-1]))
            parts[name] = [_value(data, rows[a - cuts[0] : b - cuts[0]]) for a, b in pairwise(cuts)]
        for k in range(len(next(iter(parts.values())))):
            yield f"{path}: index {start + k}", common | {name: part[k] for name, part in parts.items()}


def described(path: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the units of what `records` yields, by name, and the file's attributes that are text; empty when it is damaged."""
    units: dict[str, str] = {}
    try:
        if os.path.isdir(path):
            units = {name: str(entry["unit"]) for name, entry in _json(os.path.join(path, NUMBERS)).items()}
            path = os.path.join(path, ARRAYS)
        with h5py.File(path, "r") as root:
            units |= {name: str(data.attrs.get("units", "1")) for name, data in _arrays(root).items()}
            return {n: u for n, u in units.items() if u != "1"}, {k: v for k, v in root.attrs.items() if isinstance(v, str)}
    except (OSError, InputError, ValueError, LookupError, TypeError, RuntimeError):
        return units, {}


def file_bytes(columns: Mapping[str, tuple[Sequence[Any], str, str]], attributes: Mapping[str, str]) -> bytes:
    """Return a NetCDF-4 file of records.

    Args:
        columns: by name the arrays of all records (text and bytes as uint8), a unit, and what the numbers are: "" for themselves,
            else bool, complex, text, bytes or image. Arrays of bytes, and of different shapes, become ragged.
        attributes: of the file.
    """
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as root:
        root.attrs.update({"Conventions": "CF-1.11"} | dict(attributes))
        for name, (arrays, unit, kind) in columns.items():
            ragged = kind in ("text", "bytes", "image") or len({array.shape for array in arrays}) > 1
            table = np.concatenate(arrays) if ragged else np.stack(arrays)
            dims = [f"{name}_rows" if ragged else SAMPLE, *(f"{name}_{axis}" for axis in range(1, table.ndim))]
            if kind == "complex":
                table, dims = table.view(table.real.dtype).reshape(*table.shape, 2), [*dims, "complex"]
            root.dimensions.update(
                {dim: length for dim, length in zip(dims, table.shape, strict=True) if dim not in root.dimensions}
            )
            made = root.create_variable(name, tuple(dims), data=table.astype(np.int8) if kind == "bool" else table)
            made.attrs.update({"units": unit or "1"} | ({"gewu_type": kind} if kind else {}))
            if ragged:
                root.dimensions.update({} if SAMPLE in root.dimensions else {SAMPLE: len(arrays)})
                made.attrs["gewu_ragged"] = f"{name}_size"
                root.create_variable(f"{name}_size", (SAMPLE,), data=np.array([len(array) for array in arrays], np.int64))
    return buffer.getvalue()
