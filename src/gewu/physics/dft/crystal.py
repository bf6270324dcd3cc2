"""The crystal: a periodic cell and the atoms in it, in atomic units."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gewu.core.units import BOHR_ANGSTROM
from gewu.formats.structure import Structure

Floats = np.ndarray


@dataclass(frozen=True, eq=False)
class Crystal:
    """A periodic cell with atoms.

    Args:
        lattice: (3, 3) lattice vectors as rows, bohr, right-handed.
        symbols: element of each atom.
        frac: (n, 3) positions as fractions of the lattice vectors.
    """

    lattice: Floats
    symbols: tuple[str, ...]
    frac: Floats

    @classmethod
    def from_structure(cls, structure: Structure) -> Crystal:
        """Return the crystal of a structure file (which has been checked on reading)."""
        return cls(np.asarray(structure.cell_angstrom) / BOHR_ANGSTROM, structure.symbols, np.asarray(structure.frac_n3, float))

    def to_structure(self, title: str = "") -> Structure:
        """Return the same atoms in angstrom, for writers."""
        return Structure(self.lattice * BOHR_ANGSTROM, self.symbols, self.frac, title)

    @cached_property
    def volume(self) -> float:
        """Volume of the cell, bohr^3."""
        return float(abs(np.linalg.det(self.lattice)))

    @cached_property
    def reciprocal(self) -> Floats:
        """(3, 3) reciprocal lattice vectors as rows, 1/bohr, with a_i . b_j = 2 pi delta_ij."""
        return 2 * np.pi * np.linalg.inv(self.lattice).T

    @cached_property
    def species(self) -> dict[str, list[int]]:
        """Indices of the atoms of each element, in order of first appearance."""
        out: dict[str, list[int]] = {}
        for index, symbol in enumerate(self.symbols):
            out.setdefault(symbol, []).append(index)
        return out

    def __len__(self) -> int:
        return len(self.symbols)
