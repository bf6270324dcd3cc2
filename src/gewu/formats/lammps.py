"""Read LAMMPS data files (atom styles atomic, charge, molecular, full), in the units of the script that used them.

A header of counts and box bounds is followed by sections. Styles of coefficients are read from the comment after the section's
name (`Bond Coeffs # harmonic`, which write_data writes); atoms are put in the order of their numbers, image flags are applied.
Sections that are not in the tables below are refused by name. Reference: LAMMPS manual, read_data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gewu.core.errors import InputError
from gewu.formats.numbers import integer, read_whole_text, real, reals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Whole = NDArray[np.int64]

LIMIT_BYTES = 2_000_000_000
MAX_ATOMS = 10_000_000
MAX_TYPES = 10_000
STYLES = {
    "atomic": ("type", "x", "y", "z"),
    "charge": ("type", "q", "x", "y", "z"),
    "molecular": ("molecule", "type", "x", "y", "z"),
    "full": ("molecule", "type", "q", "x", "y", "z"),
}
"""Columns of an atom after its number, perhaps followed by three image flags."""
_GROUPS = {"Bonds": ("bonds", "bond types", 2), "Angles": ("angles", "angle types", 3)}
_GROUPS |= {"Dihedrals": ("dihedrals", "dihedral types", 4), "Impropers": ("impropers", "improper types", 4)}
_COEFFS = {
    "Pair Coeffs": "atom types", "PairIJ Coeffs": "", "Bond Coeffs": "bond types", "Angle Coeffs": "angle types",
    "Dihedral Coeffs": "dihedral types", "Improper Coeffs": "improper types",
}  # fmt: skip
_SECTIONS = ("Masses", "Atoms", "Velocities", *_GROUPS, *_COEFFS)
_COUNT = re.compile(r"(\S+)\s+(atoms|bonds|angles|dihedrals|impropers|(?:atom|bond|angle|dihedral|improper) types)")
_BOUNDS = re.compile(r"(\S+)\s+(\S+)\s+([xyz])lo\s+([xyz])hi")
_TILT = re.compile(r"(\S+)\s+(\S+)\s+(\S+)\s+xy\s+xz\s+yz")


class Coefficients(NamedTuple):
    """A section of coefficients: the style its comment names ("" without one), and rows of words with their lines."""

    style: str
    rows: list[tuple[int, list[str]]]


@dataclass(eq=False)
class LammpsData:
    """A data file: lengths, charges, masses and velocities in the units of its script.

    Args:
        file: its name.
        counts: of the header ("atoms", "atom types", "bonds" ...).
        cell: (3, 3) rows a, b, c.
        mass_t: masses of the types.
        type_n, molecule_n: (n,) types from 0, molecules as numbered in the file (0 where the style has none).
        charge_n: (n,) charges, or zeros where the style has none.
        position_n3: relative to the box's corner, image flags applied.
        velocity_n3: or None.
        coefficients: by section.
        groups: "Bonds" ... "Impropers": rows of type (from 0) and atoms (from 0).
    """

    file: str
    counts: dict[str, int] = field(default_factory=dict)
    cell: Array = field(default_factory=lambda: np.zeros((3, 3)))
    mass_t: Array = field(default_factory=lambda: np.zeros(0))
    type_n: Whole = field(default_factory=lambda: np.zeros(0, np.int64))
    molecule_n: Whole = field(default_factory=lambda: np.zeros(0, np.int64))
    charge_n: Array = field(default_factory=lambda: np.zeros(0))
    position_n3: Array = field(default_factory=lambda: np.zeros((0, 3)))
    velocity_n3: Array | None = None
    coefficients: dict[str, Coefficients] = field(default_factory=dict)
    groups: dict[str, Whole] = field(default_factory=dict)


class _Section(NamedTuple):
    name: str
    style: str
    line: int
    rows: list[tuple[int, str]]


def _split(rows: list[str], file: str) -> tuple[list[tuple[int, str]], list[_Section]]:
    """Return the lines of the header and the sections; comments and blank lines are gone."""
    header: list[tuple[int, str]] = []
    sections: list[_Section] = []
    for line, row in enumerate(rows[1:], start=2):
        text, _, comment = row.partition("#")
        text = text.strip()
        if not text:
            continue
        if text[0].isalpha():
            name = " ".join(text.split())
            if name not in _SECTIONS:
                raise InputError("section is not supported", file=file, line=line, value=name, allowed=", ".join(_SECTIONS))
            if any(section.name == name for section in sections):
                raise InputError("section stands twice", file=file, line=line, value=name)
            sections.append(_Section(name, " ".join(comment.split()), line, []))
        elif sections:
            sections[-1].rows.append((line, text))
        else:
            header.append((line, text))
    return header, sections


def _header(data: LammpsData, header: list[tuple[int, str]]) -> Array:
    """Read counts and the box; return its corner."""
    bounds: dict[str, tuple[float, float]] = {}
    tilt = [0.0, 0.0, 0.0]
    for line, text in header:
        where = {"file": data.file, "line": line}
        if found := _COUNT.fullmatch(text):
            value = integer(found.group(1), file=data.file, line=line, key=found.group(2))
            if not 0 <= value <= (MAX_TYPES if found.group(2).endswith("types") else 20 * MAX_ATOMS):
                raise InputError("count out of range", key=found.group(2), value=value, file=data.file, line=line)
            data.counts[found.group(2)] = value
        elif (found := _BOUNDS.fullmatch(text)) and found.group(3) == found.group(4):
            low, high = (real(found.group(k), file=data.file, line=line) for k in (1, 2))
            if not 0 < high - low < 1e7:
                raise InputError("box bounds do not rise", value=text, file=data.file, line=line)
            bounds[found.group(3)] = (low, high)
        elif found := _TILT.fullmatch(text):
            tilt = [real(word, file=data.file, line=line, key="xy xz yz") for word in found.groups()]
        else:
            raise InputError("header line is not supported", value=text, **where)  # type: ignore[arg-type]
    n = data.counts.get("atoms", 0)
    if not 1 <= n <= MAX_ATOMS or not data.counts.get("atom types"):
        raise InputError("number of atoms or of atom types missing or out of range", file=data.file, key="atoms", value=n)
    if len(bounds) != 3:
        raise InputError("box bounds missing", file=data.file, key="xlo xhi, ylo yhi, zlo zhi")
    a, b, c = (bounds[axis][1] - bounds[axis][0] for axis in "xyz")
    xy, xz, yz = tilt
    data.cell = np.array([[a, 0, 0], [xy, b, 0], [xz, yz, c]])
    return np.array([bounds[axis][0] for axis in "xyz"])


def _table(section: _Section, count: int, widths: tuple[int, ...], file: str) -> Array:
    """Return a section of `count` rows of numbers, all of one of the widths."""
    rows = section.rows
    if len(rows) != count:
        hint = "the file may be truncated"
        line = rows[-1][0] if rows else section.line
        raise InputError(
            "wrong number of rows", file=file, line=line, key=section.name, value=len(rows), allowed=str(count), hint=hint
        )
    width = len(rows[0][1].split()) if rows else widths[0]
    for line, text in rows:
        if len(text.split()) != width or width not in widths:
            allowed = " or ".join(map(str, widths))
            raise InputError("wrong number of columns", file=file, line=line, key=section.name, value=text, allowed=allowed)
    joined = [""] * (rows[-1][0] - rows[0][0] + 1) if rows else []
    for line, text in rows:
        joined[line - rows[0][0]] = text
    return reals("\n".join(joined), file=file, line=rows[0][0] if rows else None, key=section.name).reshape(-1, width)


def _indices(column: Array, low: int, high: int, section: _Section, what: str, file: str) -> Whole:
    """Return a column of whole numbers between `low` and `high`."""
    bad = np.flatnonzero((column != np.round(column)) | (column < low) | (column > high))
    if bad.size:
        line, text = section.rows[bad[0]]
        raise InputError(f"{what} out of range", file=file, line=line, key=section.name, value=text, allowed=f"{low} to {high}")
    return np.asarray(column, dtype=np.int64)


def _atoms(data: LammpsData, section: _Section, corner: Array, style: str) -> Whole:
    """Read the atoms; return their numbers, sorted."""
    style = section.style or style
    if style not in STYLES:
        hint = "write the style behind the section's name, as in `Atoms # full`"
        raise InputError(
            "atom style unknown",
            file=data.file,
            line=section.line,
            key="Atoms",
            value=style,
            allowed=", ".join(STYLES),
            hint=hint,
        )
    names, n = STYLES[style], data.counts["atoms"]
    table = _table(section, n, (len(names) + 1, len(names) + 4), data.file)
    number = _indices(table[:, 0], 1, 10**15, section, "number of the atom", data.file)
    order = np.argsort(number, kind="stable")
    twice = np.flatnonzero(np.diff(number[order]) == 0)
    if twice.size:
        line, text = section.rows[order[twice[0] + 1]]
        raise InputError("atom stands twice", file=data.file, line=line, key="Atoms", value=text)
    columns = {name: table[:, k + 1] for k, name in enumerate(names)}
    data.type_n = _indices(columns["type"], 1, data.counts["atom types"], section, "type", data.file)[order] - 1
    molecule = columns.get("molecule", np.zeros(n))
    data.molecule_n = _indices(molecule, 0, 10**15, section, "molecule", data.file)[order]
    data.charge_n = columns.get("q", np.zeros(n))[order]
    images = table[:, len(names) + 1 :] if table.shape[1] > len(names) + 1 else np.zeros((n, 3))
    for axis in range(3):
        _indices(images[:, axis], -(10**6), 10**6, section, "image flag", data.file)
    position = table[:, len(names) - 2 : len(names) + 1] - corner + images @ data.cell
    data.position_n3 = np.ascontiguousarray(position[order])
    return number[order]


def _rows_of_atoms(column: Array, number: Whole, section: _Section, file: str) -> Whole:
    """Return the rows of atoms given by their numbers."""
    at = np.minimum(np.searchsorted(number, column), len(number) - 1)
    bad = np.flatnonzero(number[at] != column)
    if bad.size:
        line, text = section.rows[bad[0]]
        raise InputError("there is no such atom", file=file, line=line, key=section.name, value=text)
    return np.asarray(at, dtype=np.int64)


def _group(data: LammpsData, section: _Section, number: Whole) -> None:
    """Read bonds, angles, dihedrals or impropers."""
    count, types, width = _GROUPS[section.name]
    table = _table(section, data.counts.get(count, 0), (2 + width,), data.file)
    kind = _indices(table[:, 1], 1, data.counts.get(types, 0), section, "type", data.file) - 1
    atoms = [_rows_of_atoms(table[:, 2 + k], number, section, data.file) for k in range(width)]
    rows = np.stack([kind, *atoms], axis=1)
    ordered = np.sort(rows[:, 1:], axis=1)
    bad = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    if bad.size:
        line, text = section.rows[bad[0]]
        raise InputError("an atom stands twice in one row", file=data.file, line=line, key=section.name, value=text)
    data.groups[section.name] = rows


def _coefficients(data: LammpsData, section: _Section) -> None:
    """Keep the rows of a section of coefficients: one for each type, or for each pair of types."""
    types = data.counts["atom types"]
    if section.name == "PairIJ Coeffs":
        wanted = [(i, j) for i in range(1, types + 1) for j in range(i, types + 1)] if types <= 1000 else []
    else:
        wanted = [(i,) for i in range(1, data.counts.get(_COEFFS[section.name], 0) + 1)]  # type: ignore[misc]
    rows = {}
    for line, text in section.rows:
        words = text.split()
        width = len(wanted[0]) if wanted else 1
        rows[tuple(integer(word, file=data.file, line=line, key=section.name) for word in words[:width])] = (line, words[width:])
    if sorted(rows) != wanted or len(section.rows) != len(wanted):
        allowed = f"{len(wanted)}, one for each"
        raise InputError(
            "wrong types or number of rows", file=data.file, line=section.line, key=section.name, value=len(rows), allowed=allowed
        )
    data.coefficients[section.name] = Coefficients(section.style, [rows[key] for key in wanted])


def read_lammps(path: str | Path, *, atom_style: str = "") -> LammpsData:
    """Read a LAMMPS data file.

    Args:
        path: the file.
        atom_style: for files that do not name it behind `Atoms #`.

    Raises:
        InputError: with file and line, for damaged files and sections that are not supported.
    """
    data = LammpsData(str(path))
    header, sections = _split(read_whole_text(path, LIMIT_BYTES).split("\n"), data.file)
    corner = _header(data, header)
    found = {section.name: section for section in sections}
    needed = ["Masses", "Atoms", *(name for name, (count, _, _) in _GROUPS.items() if data.counts.get(count))]
    for name in needed:
        if name not in found:
            raise InputError("section missing", file=path, key=name, hint="the file may be truncated")
    masses = _table(found["Masses"], data.counts["atom types"], (2,), data.file)
    kinds = _indices(masses[:, 0], 1, len(masses), found["Masses"], "type", data.file)
    if len(np.unique(kinds)) != len(kinds) or np.any(masses[:, 1] <= 0):
        raise InputError("masses are above zero, one for each type", file=path, line=found["Masses"].line, key="Masses")
    data.mass_t = masses[np.argsort(kinds), 1]
    number = _atoms(data, found["Atoms"], corner, atom_style)
    for section in sections:
        if section.name in _GROUPS:
            _group(data, section, number)
        elif section.name in _COEFFS:
            _coefficients(data, section)
        elif section.name == "Velocities":
            table = _table(section, len(number), (4,), data.file)
            rows = _rows_of_atoms(table[:, 0], number, section, data.file)
            if len(np.unique(rows)) != len(rows):
                raise InputError("atom stands twice", file=path, line=section.line, key="Velocities")
            data.velocity_n3 = np.zeros((len(number), 3))
            data.velocity_n3[rows] = table[:, 1:]
    return data
