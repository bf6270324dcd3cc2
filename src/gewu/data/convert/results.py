"""Results of gewu, HDF5 and NetCDF files, and extended xyz: simulations as samples (see `gewu.formats.netcdf` and `.extxyz`).

A result directory is one sample, or with `along` one for each index of that dimension; a frame of extended xyz is a sample with
numbers, positions, pbc and, where they stand, cell, energy, forces, stress, ...
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from gewu.core.files import AtomicFile, rolled, write_atomic
from gewu.data.convert.fit import RecordPiece, inferred, refused
from gewu.data.fields import Field, Schema
from gewu.data.piece import Source
from gewu.data.sample import codec
from gewu.formats import extxyz, netcdf

UNITS: Final = {"positions": "Å", "cell": "Å", "energy": "eV", "free_energy": "eV", "forces": "eV/Å", "stress": "eV/Å³",
                "virial": "eV", "dipole": "e·Å", "charges": "e", "magmoms": "µB"}  # fmt: skip
SHAPES: Final = {"pbc": "bool[3]", "cell": "float64[3,3]", "stress": "float64[3,3]", "virial": "float64[3,3]"}
SCHEMA: Final = "gewu_schema"


def extxyz_source(paths: Sequence[str], schema: Schema | None = None) -> Source:
    """Return the frames of files of extended xyz, one piece a file."""
    pieces = [RecordPiece(f"extxyz-{number:05d}", path, reader=extxyz.records) for number, path in enumerate(paths)]
    return inferred(pieces, "extxyz", schema, UNITS, SHAPES)


def export_extxyz(samples: Iterable[dict[str, Any]], schema: Schema, path: str) -> int:
    """Write samples with `numbers` and `positions` as extended xyz; return their number.

    Fields whose first axis is free are columns of the atoms when they have as many rows, others stand in the comment line.
    """
    for name in ("numbers", "positions", *schema.names):
        kind = schema[name].type  # also refuses a schema without the first two
        kind = kind.item if kind.kind == "optional" and kind.item else kind
        texts = kind.item and kind.item.kind == "text"
        if kind.kind in ("bytes", "image") or "complex" in kind.dtype or len(kind.shape) > 2 or (kind.item and not texts):
            raise refused("extxyz", name, kind, "numbers, text, and arrays of at most two axes")
    rows = {f.name for f in schema if "[*" in str(f.type) or "list[" in str(f.type)} - {"numbers", "positions"}
    count = 0
    with AtomicFile(path) as file:
        for sample in samples:
            n = len(sample["numbers"])
            columns = [name for name in schema.names if name in rows and sample[name] is not None and len(sample[name]) == n]
            file.write(extxyz.frame_bytes(sample, columns))
            count += 1
    return count


def results_source(paths: Sequence[str], schema: Schema | None = None, along: str = "") -> Source:
    """Return result directories, or HDF5 and NetCDF files, as samples.

    Args:
        paths: directories or files, one piece each.
        schema: instead of the inferred one.
        along: dimension of which each index is a sample; our own exports have "sample".
    """
    units, attributes = next((found for path in paths if any(found := netcdf.described(path))), ({}, {}))
    if SCHEMA in attributes:
        along, schema = along or netcdf.SAMPLE, schema or Schema.from_json(attributes[SCHEMA])
    pieces = [RecordPiece(f"result-{k:05d}", path, (along,), reader=netcdf.records) for k, path in enumerate(paths)]
    return inferred(pieces, "results", schema, units)


def export_hdf5(samples: Iterable[dict[str, Any]], schema: Schema, folder: str, shard_bytes: int) -> int:
    """Write samples as NetCDF-4 files `00000.nc`, ... of about `shard_bytes`; return their number."""
    for field in schema:
        kind = field.type
        if kind.item or kind.dtype in ("float16", "bfloat16") or None in kind.shape[1:] or field.name.endswith("_size"):
            raise refused("hdf5", field.name, kind, "bytes, text, image, numbers, arrays whose first axis alone may be free")
    encode, count = codec(schema).encode, 0
    for number, group in enumerate(rolled(samples, shard_bytes, lambda sample: len(encode(sample)))):
        columns = {field.name: _column(field, [sample[field.name] for sample in group]) for field in schema}
        write_atomic(os.path.join(folder, f"{number:05d}.nc"), netcdf.file_bytes(columns, {SCHEMA: schema.to_json()}))
        count += len(group)
    return count


def _column(field: Field, values: list[Any]) -> tuple[list[Any], str, str]:
    kind = field.type
    if kind.kind == "array":
        return [np.asarray(v, kind.numpy) for v in values], field.unit, {"c": "complex", "b": "bool"}.get(kind.numpy.kind, "")
    return [np.frombuffer(v.encode() if isinstance(v, str) else v, np.uint8) for v in values], field.unit, kind.kind
