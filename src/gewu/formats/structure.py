"""Crystals: a cell, the elements in it, where they stand. Every structure reader ends here.

Cell vectors are rows, a right-handed set, in angstrom; positions are fractions of them and are kept as they came (not wrapped).
A structure that cannot be computed with does not come into being: see `Structure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gewu.core.errors import InputError
from gewu.formats.elements import ATOMIC_NUMBER

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

MIN_DISTANCE_ANGSTROM = 0.3
MAX_LENGTH_ANGSTROM = 1e5
MAX_ATOMS = 1_000_000


@dataclass(frozen=True, eq=False)
class Structure:
    """A periodic structure.

    Args:
        cell_angstrom: (3, 3) lattice vectors as rows, right-handed.
        symbols: n element symbols.
        frac_n3: (n, 3) positions in fractions of the lattice vectors.
        title: a line for people.
        file: the file it was read from, named in errors.

    Raises:
        InputError: numbers that are not finite, a cell without volume, a left-handed cell, an unknown element, no atoms, or two
            atoms (of this cell or its images) closer than 0.3 angstrom.

    Example:
        >>> si = Structure(5.43 * np.array([[0, .5, .5], [.5, 0, .5], [.5, .5, 0]]), ("Si", "Si"), [[0, 0, 0], [.25, .25, .25]])
        >>> round(si.volume_angstrom3, 2)
        40.03
    """

    cell_angstrom: Array
    symbols: tuple[str, ...]
    frac_n3: Array
    title: str = ""
    file: str = ""

    def __post_init__(self) -> None:
        try:
            cell, frac = np.array(self.cell_angstrom, dtype=np.float64), np.array(self.frac_n3, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError("cell or positions are not arrays of numbers", file=self.file or None) from error
        cell.flags.writeable = frac.flags.writeable = False
        object.__setattr__(self, "cell_angstrom", cell)
        object.__setattr__(self, "frac_n3", frac)
        object.__setattr__(self, "symbols", tuple(self.symbols))
        self.check(self.file or None)

    @property
    def positions_angstrom(self) -> Array:
        """Return the Cartesian positions, (n, 3) in angstrom."""
        return self.frac_n3 @ self.cell_angstrom

    @property
    def volume_angstrom3(self) -> float:
        """Return the volume of the cell."""
        return float(np.linalg.det(self.cell_angstrom))

    @property
    def formula(self) -> str:
        """Return the content of the cell in the order of first appearance, such as "Si2" or "MgO"."""
        counts = {symbol: self.symbols.count(symbol) for symbol in dict.fromkeys(self.symbols)}
        return "".join(symbol + (str(n) if n > 1 else "") for symbol, n in counts.items())

    def check(self, file: str | Path | None = None) -> None:
        """Refuse what cannot be computed with; the errors name `file`."""
        self._check_shape(file)
        self._check_cell(file)
        self._check_distances(file)

    def _check_shape(self, file: str | Path | None) -> None:
        """Refuse wrong shapes, numbers that are not finite and unknown elements."""
        n = len(self.symbols)
        if not 1 <= n <= MAX_ATOMS:
            raise InputError("number of atoms out of range", file=file, key="atoms", value=n, allowed=f"1 to {MAX_ATOMS}")
        if self.cell_angstrom.shape != (3, 3) or self.frac_n3.shape != (n, 3):
            shapes = (self.cell_angstrom.shape, self.frac_n3.shape)
            raise InputError("wrong shape of cell or positions", file=file, value=shapes, allowed=f"(3, 3) and ({n}, 3)")
        for number, (symbol, row) in enumerate(zip(self.symbols, self.frac_n3, strict=True), start=1):
            if symbol not in ATOMIC_NUMBER:
                raise InputError(f"unknown element of atom {number}", file=file, key="element", value=symbol, allowed="H to Og")
            if not np.isfinite(row).all() or np.abs(row).max() > 1e6:
                raise InputError(f"position of atom {number} ({symbol}) is not a usable number", file=file, value=row.tolist())
        if not np.isfinite(self.cell_angstrom).all():
            raise InputError("cell holds a number that is not finite", file=file, key="cell")

    def _check_cell(self, file: str | Path | None) -> None:
        """Refuse a cell that is degenerate, left-handed or absurdly large."""
        lengths = np.linalg.norm(self.cell_angstrom, axis=1)
        if lengths.max() > MAX_LENGTH_ANGSTROM or lengths.min() < 0.1:
            raise InputError(
                "lattice vector out of range", file=file, key="cell", value=lengths.tolist(), allowed="0.1 to 1e5 angstrom"
            )
        volume = float(np.linalg.det(self.cell_angstrom))
        if abs(volume) < 1e-6 * float(lengths.prod()):
            raise InputError("cell has no volume", file=file, key="cell", value=volume, hint="its vectors lie in one plane")
        if volume < 0.0:
            raise InputError(
                "cell is left-handed",
                file=file,
                key="cell",
                value=volume,
                hint="exchange two lattice vectors and their coordinates",
            )

    def _check_distances(self, file: str | Path | None) -> None:
        """Refuse two atoms, or an atom and an image, closer than `MIN_DISTANCE_ANGSTROM`.

        All atoms are wrapped into the cell and those within the distance of a face are repeated beyond it.
        """
        cell, n = self.cell_angstrom, len(self.symbols)
        margin = MIN_DISTANCE_ANGSTROM * np.linalg.norm(np.linalg.inv(cell), axis=0)
        reach = np.ceil(margin).astype(int)
        if np.prod(2 * reach + 1) * n > 50_000_000:
            raise InputError("cell too flat to search for overlapping atoms", file=file, key="cell")
        frac, owner = self.frac_n3 - np.floor(self.frac_n3), np.arange(n)
        for axis in range(3):
            images = [(frac, owner)]
            for shift in range(-int(reach[axis]), int(reach[axis]) + 1):
                moved = frac[:, axis] + shift
                near = (moved > -margin[axis]) & (moved < 1.0 + margin[axis]) & (shift != 0)
                images.append((frac[near] + shift * np.eye(3)[axis], owner[near]))
            frac, owner = np.concatenate([image[0] for image in images]), np.concatenate([image[1] for image in images])
        from scipy.spatial import cKDTree  # a third of a second that most who import formats need not wait

        for i, j in sorted(cKDTree(frac @ cell).query_pairs(MIN_DISTANCE_ANGSTROM)):
            distance = float(np.linalg.norm((frac[i] - frac[j]) @ cell))
            a, b = sorted((int(owner[i]), int(owner[j])))
            names = f"{a + 1} ({self.symbols[a]}) and {b + 1} ({self.symbols[b]})"
            raise InputError(
                f"atoms {names} overlap",
                file=file,
                value=f"{distance:.4f} angstrom",
                allowed=f"{MIN_DISTANCE_ANGSTROM} angstrom apart",
            )
