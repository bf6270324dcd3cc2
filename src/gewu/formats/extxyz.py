"""Read and write extended xyz: frames of atoms with the cell and named columns, positions in angstrom.

A frame is a line with the number of atoms, a comment line of key=value pairs (`Lattice` holds the nine numbers of the vectors,
`Properties` names the columns as name:type:width), and one line for each atom. Numbers are written so that they read back equal.
Reference: the extxyz specification (libAtoms), github.com/libAtoms/extxyz.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gewu.core.errors import InputError
from gewu.formats.elements import ATOMIC_NUMBER
from gewu.formats.numbers import integer, read_whole_text, real, reals
from gewu.formats.structure import MAX_ATOMS, Structure

LIMIT_BYTES = 500_000_000
_PAIR = re.compile(r"""\s*([A-Za-z_][\w.\-]*)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|\{([^}]*)\}|([^\s"'{}]+)))?(?=\s|$)""")
_PROPERTIES = re.compile(r"(\w+):([SRIL]):(\d{1,3})(?::|$)", re.ASCII)


def _pairs(row: str, file: str, line: int) -> dict[str, str]:
    """Return the key=value pairs of a comment line, keys in lower case; a bare key means "T"."""
    pairs: dict[str, str] = {}
    at = 0
    row = row.rstrip()
    while at < len(row):
        found = _PAIR.match(row, at)
        if found is None:
            raise InputError("key=value pairs expected", file=file, line=line, value=row[at:])
        key, value = found.group(1).lower(), next((text for text in found.groups()[1:] if text is not None), "T")
        if key in pairs:
            raise InputError("key stands twice", file=file, line=line, key=key)
        pairs[key], at = value, found.end()
    return pairs


def _columns(text: str, file: str, line: int) -> tuple[int, int, int]:
    """Return the columns of species and of the first coordinate, and the number of columns."""
    at, total = 0, 0
    species = position = -1
    while at < len(text):
        found = _PROPERTIES.match(text, at)
        if found is None or int(found.group(3)) < 1:
            raise InputError(
                "columns not understood", file=file, line=line, key="Properties", value=text, allowed="name:type:width"
            )
        shape = (found.group(2), int(found.group(3)))
        if found.group(1) == "species" and shape == ("S", 1):
            species = total
        elif found.group(1) == "pos" and shape == ("R", 3):
            position = total
        total, at = total + int(found.group(3)), found.end()
    if species < 0 or position < 0:
        raise InputError("species:S:1 and pos:R:3 are needed", file=file, line=line, key="Properties", value=text)
    return species, position, total


def _frame(rows: list[str], at: int, file: str) -> tuple[Structure, int]:
    """Return the frame that starts at row `at` (0-based) and the row after it."""
    n = integer(rows[at].strip(), file=file, line=at + 1, key="number of atoms")
    if not 1 <= n <= MAX_ATOMS or at + 2 + n > len(rows):
        hint = "the file may be truncated"
        raise InputError("frame has fewer lines than atoms", file=file, line=at + 1, key="number of atoms", value=n, hint=hint)
    line = at + 2
    pairs = _pairs(rows[at + 1], file, line)
    lattice = reals(pairs.get("lattice", ""), file=file, line=line, key="Lattice")
    if len(lattice) != 9:
        raise InputError("nine numbers expected", file=file, line=line, key="Lattice", value=pairs.get("lattice", ""))
    if any(word.upper() not in ("T", "TRUE", "1") for word in pairs.get("pbc", "T T T").split()):
        raise InputError("structure is not periodic", file=file, line=line, key="pbc", value=pairs["pbc"], allowed="T T T")
    species, position, total = _columns(pairs.get("properties", "species:S:1:pos:R:3"), file, line)
    symbols, positions = [], np.zeros((n, 3))
    for atom in range(n):
        number = at + 2 + atom
        words = rows[number].split()
        if len(words) != total:
            raise InputError("wrong number of columns", file=file, line=number + 1, value=rows[number], allowed=str(total))
        if words[species] not in ATOMIC_NUMBER:
            raise InputError("unknown element", file=file, line=number + 1, value=words[species])
        symbols.append(words[species])
        positions[atom] = [real(word, file=file, line=number + 1, key="pos") for word in words[position : position + 3]]
    cell = lattice.reshape(3, 3)
    if abs(np.linalg.det(cell)) < 1e-12:
        raise InputError("cell has no volume", file=file, line=line, key="Lattice")
    frac = np.asarray(np.linalg.solve(cell.T, positions.T).T, dtype=np.float64)
    return Structure(cell, tuple(symbols), frac, pairs.get("title", ""), file), at + 2 + n


def read_extxyz(path: str | Path) -> list[Structure]:
    """Read every frame of an extended xyz file.

    Args:
        path: the file, at most 500 MB.

    Returns:
        The frames in order, at least one.

    Raises:
        InputError: with file and line, for damaged files and structures that cannot be computed.
    """
    rows = read_whole_text(path, LIMIT_BYTES).split("\n")
    while rows and not rows[-1].strip():
        rows.pop()
    frames, at = [], 0
    while at < len(rows):
        frame, at = _frame(rows, at, str(path))
        frames.append(frame)
    if not frames:
        raise InputError("holds no frame", file=path)
    return frames


def extxyz_bytes(
    frames: Sequence[Structure],
    numbers: Sequence[Mapping[str, float]] = (),
    columns: Sequence[Mapping[str, np.ndarray]] = (),
) -> bytes:
    """Return frames as extended xyz.

    Args:
        frames: the structures.
        numbers: for each frame named numbers for its comment line (such as {"energy_ev": -1.0}), or nothing.
        columns: for each frame named columns (n,) or (n, k) of reals (such as {"forces": ...} in eV/angstrom), or nothing.

    Returns:
        UTF-8 text; positions and cell read back equal to the last digit of a double.
    """
    parts = []
    for index, frame in enumerate(frames):
        extra = {name: np.asarray(table, dtype=np.float64).reshape(len(frame.symbols), -1) for name, table in
                 (columns[index] if columns else {}).items()}  # fmt: skip
        kinds = "".join(f":{name}:R:{table.shape[1]}" for name, table in extra.items())
        lattice = " ".join(repr(float(x)) for x in frame.cell_angstrom.ravel())
        title = re.sub(r"[^ -~]|[\"\\]", " ", frame.title)
        comment = f'Lattice="{lattice}" Properties=species:S:1:pos:R:3{kinds} pbc="T T T"' + (
            f' title="{title}"' if title else ""
        )
        comment += "".join(f" {name}={float(value)!r}" for name, value in (numbers[index] if numbers else {}).items())
        parts += [str(len(frame.symbols)), comment]
        table = np.hstack([frame.positions_angstrom, *extra.values()])
        for symbol, row in zip(frame.symbols, table, strict=True):
            parts.append(" ".join([symbol, *(repr(float(x)) for x in row)]))
    return ("\n".join(parts) + "\n").encode()
