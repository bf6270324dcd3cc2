"""Read POSCAR and CONTCAR files of VASP 5 and later (with the line of element symbols).

The scale is one positive factor, or minus the volume of the cell in cubic angstrom. Selective dynamics flags are checked and
dropped; velocities and whatever else follows the positions are not read.
Reference: VASP manual, file POSCAR.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gewu.core.errors import InputError
from gewu.formats.elements import ATOMIC_NUMBER
from gewu.formats.numbers import integer, read_whole_text, real
from gewu.formats.structure import MAX_ATOMS, Structure

LIMIT_BYTES = 200_000_000


def _vector(rows: list[str], at: int, file: str, key: str) -> list[float]:
    """Return the first three numbers of line `at` (0-based)."""
    words = rows[at].split() if at < len(rows) else []
    if len(words) < 3:
        hint = "the file may be truncated"
        raise InputError("three numbers expected", file=file, line=at + 1, key=key, value=" ".join(words), hint=hint)
    return [real(word, file=file, line=at + 1, key=key) for word in words[:3]]


def _species(rows: list[str], file: str) -> list[str]:
    """Return the symbol of every atom from the lines of symbols and counts."""
    words = [word.split("_")[0].split("/")[0] for word in rows[5].split()]
    if not words or words[0].isdecimal():
        hint = "VASP 5 format: put the element symbols on the line before the counts"
        raise InputError("element symbols missing", file=file, line=6, value=rows[5].strip(), hint=hint)
    for word in words:
        if word not in ATOMIC_NUMBER:
            raise InputError("unknown element", file=file, line=6, value=word)
    counts = [integer(word, file=file, line=7, key="counts") for word in rows[6].split()]
    if len(counts) != len(words) or min(counts) < 0 or sum(counts) > MAX_ATOMS:
        raise InputError(
            "counts do not fit the symbols", file=file, line=7, value=rows[6].strip(), allowed=f"{len(words)} counts"
        )
    return [word for word, count in zip(words, counts, strict=True) for _ in range(count)]


def read_poscar(path: str | Path) -> Structure:
    """Read a POSCAR or CONTCAR file.

    Args:
        path: the file, at most 200 MB.

    Returns:
        The structure with its atoms in the order of the file.

    Raises:
        InputError: with file and line, for damaged files and structures that cannot be computed.
    """
    file = str(path)
    rows = read_whole_text(path, LIMIT_BYTES).split("\n")
    if len(rows) < 9:
        raise InputError("too few lines for a POSCAR", file=path, line=len(rows), hint="the file may be truncated")
    words = rows[1].split()
    if len(words) != 1:
        raise InputError("one scale factor expected", file=path, line=2, value=rows[1].strip())
    scale = real(words[0], file=path, line=2, key="scale")
    if scale == 0.0:
        raise InputError("scale is zero", file=path, line=2, key="scale")
    cell = np.array([_vector(rows, at, file, "lattice vector") for at in (2, 3, 4)])
    if scale < 0.0:
        volume = abs(float(np.linalg.det(cell)))
        if volume < 1e-12:
            raise InputError("cell has no volume", file=path, line=3, key="lattice vector")
        scale = float(np.cbrt(-scale / volume))
    symbols = _species(rows, file)
    at = 7
    selective = rows[at].strip()[:1].lower() == "s"
    at += selective
    mode = rows[at].strip()[:1].lower() if at < len(rows) else ""
    if mode not in ("d", "c", "k"):
        raise InputError(
            "kind of coordinates missing", file=path, line=at + 1, value=rows[at].strip(), allowed="Direct or Cartesian"
        )
    positions = np.zeros((len(symbols), 3))
    for number in range(len(symbols)):
        line = at + 1 + number
        positions[number] = _vector(rows, line, file, f"position {number + 1}")
        flags = [word.strip(".")[:1].upper() for word in rows[line].split()[3:6]]
        if selective and (len(flags) != 3 or not set(flags) <= {"T", "F"}):
            raise InputError("three flags T or F expected", file=path, line=line + 1, value=rows[line].strip())
    if mode != "d":
        if abs(np.linalg.det(cell)) < 1e-12:
            raise InputError("cell has no volume", file=path, line=3, key="lattice vector")
        positions = np.linalg.solve(cell.T, positions.T).T
    return Structure(cell * scale, tuple(symbols), positions, rows[0].strip(), file)
