"""Results of gewu, HDF5 and NetCDF files, and extended xyz: simulations as samples.

A result directory is one sample: its `numbers.json` as float64, its `arrays.nc` as arrays, with units; or, with `along`, one sample
for each index of that dimension (arrays without it are repeated). Files are checked against `manifest.json` first. A frame of extended
xyz is a sample with numbers, positions in Å, pbc and, where they stand, cell, energy, forces, stress, ...; units are those of the format.
What we write as HDF5 is NetCDF-4: dimension `sample`, and fields of varying length as CF's contiguous ragged arrays (`x`, `x_size`).
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import h5netcdf
import h5py
import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import AtomicFile, read_capped, sha256_of, write_atomic
from gewu.data.convert.archives import opened
from gewu.data.convert.fit import Image, Raw, RawPiece, field_name, inferred, refused, rolled
from gewu.data.fields import Schema, Type
from gewu.data.piece import Source
from gewu.data.sample import codec
from gewu.formats.extxyz import frame_bytes, frames

UNITS: Final = {"positions": "Å", "cell": "Å", "energy": "eV", "free_energy": "eV", "forces": "eV/Å", "stress": "eV/Å³", "virial": "eV",
                "dipole": "e·Å", "charges": "e", "magmoms": "µB", "momenta": "√(u·eV)", "masses": "u"}  # fmt: skip
SHAPES: Final = {"pbc": "bool[3]", "cell": "float64[3,3]", "stress": "float64[3,3]", "virial": "float64[3,3]"}
MANIFEST, NUMBERS, ARRAYS, ALONG, SCHEMA = "manifest.json", "numbers.json", "arrays.nc", "sample", "gewu_schema"
JSON_BYTES, ROW_BYTES, BLOCK_BYTES, BLOCK = 100 << 20, 1 << 20, 1 << 30, 256


@dataclass(frozen=True)
class FramesPiece(RawPiece):
    """One file of extended xyz."""

    def raw(self) -> Raw:
        """Yield its frames."""
        with opened(self.path) as stream:
            rows = (row.decode() for row in iter(lambda: stream.readline(ROW_BYTES), b""))
            for line, values in frames(rows, self.path):
                yield f"{self.path}:{line}", {field_name(name): value for name, value in values.items()}


def extxyz_source(paths: Sequence[str], schema: Schema | None = None) -> Source:
    """Return the frames of files of extended xyz."""
    pieces = [FramesPiece(f"extxyz-{number:05d}", path) for number, path in enumerate(paths)]
    return inferred(pieces, "extxyz", schema, UNITS, SHAPES)


def export_extxyz(samples: Iterable[dict[str, Any]], schema: Schema, path: str) -> int:
    """Write samples with `numbers` and `positions` as extended xyz; return their number.

    Fields whose first axis is free are columns of the atoms when they have as many rows, others stand in the comment line.
    """
    for name in ("numbers", "positions", *schema.names):
        kind = schema[name].type  # also refuses a schema without the first two
        kind = kind.item if kind.kind == "optional" and kind.item else kind
        if (
            kind.kind in ("bytes", "image")
            or "complex" in kind.dtype
            or len(kind.shape) > 2
            or (kind.item and kind.item.kind != "text")
        ):
            raise refused("extxyz", name, kind, "numbers, text, and arrays of at most two axes")
    rows = {f.name for f in schema if "*" in str(f.type).split(",")[0] or "list[" in str(f.type)} - {"numbers", "positions"}
    total = 0
    with AtomicFile(path) as file:
        for total, sample in enumerate(samples, start=1):
            n = len(sample["numbers"])
            columns = [name for name in schema.names if name in rows and sample[name] is not None and len(sample[name]) == n]
            file.write(frame_bytes(sample, columns))
    return total


@dataclass(frozen=True)
class ResultPiece(RawPiece):
    """One result directory, or one HDF5 or NetCDF file."""

    along: str = ""

    def raw(self) -> Raw:
        """Yield one sample, or one for each index of `along`."""
        common: dict[str, Any] = {}
        arrays = self.path
        if os.path.isdir(self.path):
            files = _json(os.path.join(self.path, MANIFEST))["files"]
            for name in (n for n in (NUMBERS, ARRAYS) if n in files):
                if sha256_of(os.path.join(self.path, name)) != files[name]:
                    raise InputError(f"does not match its checksum in {MANIFEST}", file=os.path.join(self.path, name))
            numbers = _json(os.path.join(self.path, NUMBERS)) if NUMBERS in files else {}
            common = {"result": os.path.basename(os.path.abspath(self.path))}
            common |= {field_name(name): float(entry["value"]) for name, entry in numbers.items()}
            if ARRAYS not in files:
                yield self.path, common
                return
            arrays = os.path.join(self.path, ARRAYS)
        with h5py.File(arrays, "r") as root:
            yield from self._indexed(_datasets(root), common)

    def _indexed(self, found: dict[str, Any], common: dict[str, Any]) -> Raw:
        moving = {name: data for name, data in found.items() if self.along and _dims(data)[:1] == [self.along]}
        ragged = {name: found[data.attrs["gewu_size"]][...] for name, data in found.items() if "gewu_size" in data.attrs}
        ends = {name: np.cumsum([0, *sizes]) for name, sizes in ragged.items()}
        for size in (data.attrs["gewu_size"] for data in found.values() if "gewu_size" in data.attrs):
            moving.pop(size, None)
        counts = {*(len(data) for data in moving.values()), *(len(sizes) for sizes in ragged.values())}
        if self.along and len(counts) != 1:
            raise InputError("has no such dimension", file=self.path, key="along", value=self.along)
        common |= {field_name(n): _value(d, d[()]) for n, d in found.items() if not self.along and _small(d)}
        common |= {field_name(n): _value(d, d[()]) for n, d in found.items()
                   if self.along and n not in moving and n not in ragged and _dims(d)[:1] != [self.along] and _small(d)}  # fmt: skip
        for start in range(0, max(counts, default=1) if self.along else 1, BLOCK):
            stop = start + BLOCK
            parts = {name: _value(data, data[start:stop]) for name, data in moving.items()}
            for name, edge in ends.items():
                edge = edge[start : stop + 1]
                values = found[name][edge[0] : edge[-1]]
                parts[name] = [_value(found[name], values[a - edge[0] : b - edge[0]]) for a, b in pairwise(edge)]
            for k in range(min([1 if not self.along else BLOCK, *(len(part) for part in parts.values())])):
                yield f"{self.path}: index {start + k}", common | {field_name(n): part[k] for n, part in parts.items()}


def _json(path: str) -> Any:
    return json.loads(read_capped(path, JSON_BYTES))


def _datasets(root: h5py.File) -> dict[str, Any]:
    """Return the arrays in a file, leaving out all that would read another file, and NetCDF's dimensions without values."""
    found = {name: root[name] for name in root if isinstance(root.get(name, getlink=True), h5py.HardLink)}
    return {
        name: data
        for name, data in found.items()
        if isinstance(data, h5py.Dataset) and data.dtype.kind in "biufc" and not (data.external or data.is_virtual)
        and not bytes(data.attrs.get("NAME", b"")).startswith(b"This is a netCDF dimension")
    }  # fmt: skip


def _dims(data: Any) -> list[str]:
    return [axis[0].name.rpartition("/")[2] if len(axis) else "" for axis in data.dims]


def _small(data: Any) -> bool:
    if data.nbytes > BLOCK_BYTES:
        raise InputError("array is too large for a sample", key=data.name, value=data.shape, allowed=f"{BLOCK_BYTES} bytes")
    return True


def _value(data: Any, raw: Any) -> Any:
    kind = data.attrs.get("gewu_type", "")
    if kind in ("text", "bytes", "image"):
        return raw.tobytes().decode() if kind == "text" else (Image if kind == "image" else bytes)(raw.tobytes())
    if kind == "complex":
        return np.ascontiguousarray(raw).view(np.result_type(raw.dtype, np.complex64))[..., 0]
    return raw.astype(bool) if kind == "bool" else raw


def results_source(paths: Sequence[str], schema: Schema | None = None, along: str = "") -> Source:
    """Return result directories, or HDF5 and NetCDF files, as samples.

    Args:
        paths: directories or files.
        schema: instead of the inferred one.
        along: dimension of which each index is a sample; our own exports have "sample".
    """
    units: dict[str, str] = {}
    for path in paths:
        arrays = os.path.join(path, ARRAYS) if os.path.isdir(path) else path
        try:
            with h5py.File(arrays, "r") as root:
                along = along or (ALONG if SCHEMA in root.attrs else "")
                schema = schema or (Schema.from_json(root.attrs[SCHEMA]) if SCHEMA in root.attrs else None)
                units |= {field_name(n): u for n, d in _datasets(root).items() if (u := str(d.attrs.get("units", "1"))) != "1"}
            if os.path.isdir(path):
                units |= {field_name(n): str(entry["unit"]) for n, entry in _json(os.path.join(path, NUMBERS)).items()}
            break
        except (OSError, InputError, ValueError, LookupError, TypeError):
            continue  # its piece will say so
    pieces = [ResultPiece(f"result-{number:05d}", path, along) for number, path in enumerate(paths)]
    return inferred(pieces, "results", schema, units)


def export_hdf5(samples: Iterable[dict[str, Any]], schema: Schema, folder: str, shard_bytes: int) -> int:
    """Write samples as NetCDF-4 files `00000.nc`, ... of about `shard_bytes`; return their number."""
    for field in schema:
        kind = field.type
        if kind.item or kind.dtype in ("float16", "bfloat16") or None in kind.shape[1:] or field.name.endswith("_size"):
            raise refused("hdf5", field.name, kind, "bytes, text, image, numbers, arrays whose first axis alone may be free")
    encode, total = codec(schema).encode, 0
    for number, group in enumerate(rolled(samples, shard_bytes, lambda sample: len(encode(sample)))):
        buffer = io.BytesIO()
        with h5netcdf.File(buffer, "w") as root:
            root.attrs.update({"Conventions": "CF-1.11", SCHEMA: schema.to_json()})
            root.dimensions[ALONG] = len(group)
            for field in schema:
                _add(root, field.name, field.type, field.unit, [sample[field.name] for sample in group])
        write_atomic(os.path.join(folder, f"{number:05d}.nc"), buffer.getvalue())
        total += len(group)
    return total


def _add(root: Any, name: str, kind: Type, unit: str, values: list[Any]) -> None:
    tag, first = kind.kind, ALONG
    if kind.kind == "array":
        arrays = [np.asarray(value, kind.numpy) for value in values]
        tag = {"c": "complex", "b": "bool"}.get(kind.numpy.kind, "")
    else:
        arrays = [np.frombuffer(value.encode() if kind.kind == "text" else value, np.uint8) for value in values]
    if kind.fixed:
        array = np.stack(arrays)
    else:
        array, first = np.concatenate(arrays), f"{name}_rows"
        root.dimensions[first] = len(array)
        root.create_variable(f"{name}_size", (ALONG,), data=np.array([len(part) for part in arrays], np.int64))
    dims = [first, *(f"{name}_{axis}" for axis in range(1, array.ndim))]
    if tag == "complex":
        array, dims = array.view(array.real.dtype).reshape(*array.shape, 2), [*dims, "complex"]
    for dim, length in zip(dims[1:], array.shape[1:], strict=True):
        root.dimensions[dim] = length
    made = root.create_variable(name, tuple(dims), data=array.astype(np.int8) if tag == "bool" else array)
    made.attrs.update(
        {"units": unit or "1"} | ({"gewu_type": tag} if tag else {}) | ({} if kind.fixed else {"gewu_size": f"{name}_size"})
    )
