"""Arrays of a result as NetCDF-4, readable by xarray, ncview and MATLAB.

Each array is one variable with named dimensions, `units` and `long_name` (CF-1.11). NetCDF knows neither complex numbers nor
truth values: complex arrays get a trailing dimension `complex` of length 2 (real, imaginary), booleans become bytes; the
attribute `gewu_type` remembers which, so that reading gives back the array that was saved, bit for bit.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5netcdf
import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import StoreError

DTYPES = ("f4", "f8", "c8", "c16", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


@dataclass(frozen=True)
class Variable:
    """An array with one name per axis, a unit and CF attributes."""

    array: NDArray[np.generic]
    dims: tuple[str, ...]
    units: str
    attributes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.array.dtype.str[1:] not in DTYPES:
            raise TypeError(f"arrays of type {self.array.dtype} cannot be saved; allowed: {', '.join(DTYPES)}")
        if len(self.dims) != self.array.ndim or len(set(self.dims)) != len(self.dims):
            raise ValueError(f"an array of shape {self.array.shape} needs {self.array.ndim} different dims, got {self.dims}")


def encode(variables: Mapping[str, Variable], *, title: str, source: str) -> bytes:
    """Return the bytes of a NetCDF-4 file that holds `variables`.

    Raises:
        ValueError: one dimension name stands for two lengths.
    """
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as root:
        root.attrs.update({"Conventions": "CF-1.11", "title": title or "untitled", "source": source})
        for name, variable in variables.items():
            _add(root, name, variable)
    return buffer.getvalue()


def _add(root: h5netcdf.File, name: str, variable: Variable) -> None:
    array, dims, kind = variable.array, variable.dims, variable.array.dtype.kind
    if kind == "c":
        pairs = np.ascontiguousarray(array).view(array.real.dtype)
        array, dims = pairs.reshape(*array.shape, 2), (*dims, "complex")
    elif kind == "b":
        array = array.astype(np.int8)
    for dim, length in zip(dims, array.shape, strict=True):
        if dim not in root.dimensions:
            root.dimensions[dim] = length
        elif root.dimensions[dim].size != length:
            raise ValueError(f"array {name}: dimension {dim} has length {length} here and {root.dimensions[dim].size} elsewhere")
    made = root.create_variable(name, dims, data=array)
    made.attrs["units"] = variable.units or "1"
    made.attrs["long_name"] = name.replace("_", " ")
    made.attrs.update(variable.attributes)
    if kind in "cb":
        made.attrs["gewu_type"] = {"c": "complex", "b": "bool"}[kind]


class Arrays(Mapping[str, NDArray[np.generic]]):
    """The arrays of a result by name, each read from the file when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names: list[str] | None = None

    def _open(self) -> h5netcdf.File:
        try:
            return h5netcdf.File(self.path, "r")
        except OSError as error:
            raise StoreError(f"cannot be read as NetCDF: {error}", file=self.path) from error

    def names(self) -> list[str]:
        """Return the names of the arrays, in the order in which they were saved."""
        if self._names is None:
            if not self.path.is_file():
                self._names = []
            else:
                with self._open() as root:
                    self._names = list(root.variables)
        return self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return self.variable(name).array

    def variable(self, name: str) -> Variable:
        """Return one array with its dims, units and attributes.

        Raises:
            KeyError: there is no array of that name.
        """
        if name not in self.names():
            raise KeyError(name)
        with self._open() as root:
            found = root.variables[name]
            array = np.asarray(found[...])
            dims = tuple(str(dim) for dim in found.dimensions)
            attributes = {str(key): str(value) for key, value in found.attrs.items()}
        kind, units = attributes.pop("gewu_type", ""), attributes.pop("units", "1")
        if kind == "complex":
            array, dims = np.ascontiguousarray(array).view(np.result_type(array.dtype, np.complex64))[..., 0], dims[:-1]
        elif kind == "bool":
            array = array.astype(np.bool_)
        return Variable(array, dims, "" if units == "1" else units, attributes)
