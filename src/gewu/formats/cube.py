"""Write Gaussian cube files: a scalar field on the grid of the cell, for VESTA, VMD, XCrySDen and others. Lengths in bohr.

Grid point (i, j, k) of (n1, n2, n3) stands at i/n1 a + j/n2 b + k/n3 c; the last index runs fastest; six numbers a line.
Reference: Gaussian, "cubegen" documentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gewu.core.errors import InputError
from gewu.core.units import BOHR_ANGSTROM
from gewu.formats.elements import ATOMIC_NUMBER
from gewu.formats.structure import Structure

if TYPE_CHECKING:
    from numpy.typing import NDArray


def cube_bytes(structure: Structure, field_ijk: NDArray[np.float64], title: str, unit: str) -> bytes:
    """Return a field on the grid of the cell as a cube file.

    Args:
        structure: the cell and its atoms.
        field_ijk: (n1, n2, n3) values, periodic, in `unit`.
        title: first line, for people.
        unit: unit of the values, written on the second line.

    Returns:
        ASCII text; values carry six significant digits.

    Raises:
        InputError: when the field is not a three-dimensional array of finite numbers.
    """
    field = np.asarray(field_ijk, dtype=np.float64)
    if field.ndim != 3 or field.size == 0 or not np.isfinite(field).all():
        raise InputError("cube field must be a 3-dimensional array of finite numbers", key=title, value=field.shape)
    cell = structure.cell_angstrom / BOHR_ANGSTROM
    wrapped = structure.frac_n3 - np.floor(structure.frac_n3)
    lines = [" ".join(title.split()) or "field", f"values in {unit}", _row(len(structure.symbols), np.zeros(3))]
    lines += [_row(n, vector / n) for n, vector in zip(field.shape, cell, strict=True)]
    for symbol, position in zip(structure.symbols, wrapped @ cell, strict=True):
        z = ATOMIC_NUMBER[symbol]
        lines.append(f"{z:5d}{float(z):12.6f}" + "".join(f"{x:12.6f}" for x in position))
    n3 = field.shape[2]
    pattern = "\n".join("%13.5E" * min(6, n3 - start) for start in range(0, n3, 6))
    lines += [pattern % tuple(column) for column in field.reshape(-1, n3)]
    return ("\n".join(lines) + "\n").encode("ascii", "replace")


def _row(count: int, vector: NDArray[np.float64]) -> str:
    """Return a header line: a count and a vector."""
    return f"{count:5d}" + "".join(f"{x:12.6f}" for x in vector)
