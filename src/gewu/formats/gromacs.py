"""Read GROMACS topologies (top, with itp), and read and write its coordinates (gro). Units nm, nm/ps, kJ/mol, degrees.

A topology passes a preprocessor (`#include`, `#define`, `#ifdef` ...); then it is a sequence of sections `[ name ]` of rows. What
comes out are the rows, checked for the kind of function and for the number of atoms; parameters are looked up by
`gewu.formats.gromacs_types`. Sections and functions that are not in the tables below are refused by name, with file and line.
Reference: GROMACS manual, "File formats: top" and "gro"; nothing is read from a GROMACS installation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gewu.core.errors import InputError
from gewu.formats.numbers import integer, read_whole_text, real

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

LIMIT_BYTES = 1_000_000_000
MAX_ATOMS = 10_000_000
_MAX_ROWS = 20_000_000
_MAX_DEPTH = 16
_SECTION = re.compile(r"\[\s*(\w+)\s*\]")
_INCLUDE = re.compile(r"""#include\s+["<]([ -!#-;=?-~]{1,200})[">]""")
HINT_PP = "`gmx grompp -pp all.top` writes a topology in one file"
PARAMETERS: dict[str, tuple[str, ...]] = {
    "defaults": ("start",), "atomtypes": ("start",), "bondtypes": ("start",), "angletypes": ("start",),
    "dihedraltypes": ("start",), "pairtypes": ("start",), "constrainttypes": ("start",), "nonbond_params": ("start",),
    "cmaptypes": ("start",), "moleculetype": ("any",), "system": ("any",), "molecules": ("system",),
}  # fmt: skip
INTERACTIONS: dict[str, tuple[int, frozenset[int]]] = {
    "bonds": (2, frozenset((1, 5, 6))), "pairs": (2, frozenset((1, 2))), "angles": (3, frozenset((1, 5))),
    "dihedrals": (4, frozenset((1, 2, 3, 4, 5, 9))), "cmap": (5, frozenset((1,))), "constraints": (2, frozenset((1, 2))),
    "settles": (1, frozenset((1,))), "virtual_sites2": (3, frozenset((1,))), "virtual_sites3": (4, frozenset((1,))),
}  # fmt: skip
"""Sections of a molecule: the number of atoms of a row and the functions that are supported."""


class Row(NamedTuple):
    """A line of a topology after the preprocessor: its words, and where they stand."""

    words: list[str]
    file: str
    line: int

    def number(self, at: int, key: str) -> float:
        """Return word `at` as a number."""
        if at >= len(self.words):
            raise InputError("value missing", file=self.file, line=self.line, key=key, value=" ".join(self.words))
        return real(self.words[at], file=self.file, line=self.line, key=key)

    def whole(self, at: int, key: str, low: int, high: int) -> int:
        """Return word `at` as an integer between `low` and `high`."""
        if at >= len(self.words):
            raise InputError("value missing", file=self.file, line=self.line, key=key, value=" ".join(self.words))
        value = integer(self.words[at], file=self.file, line=self.line, key=key)
        if not low <= value <= high:
            allowed = f"{low} to {high}"
            raise InputError("out of range", file=self.file, line=self.line, key=key, value=value, allowed=allowed)
        return value

    def error(self, message: str, **where: str) -> InputError:
        """Return an error that shows this row."""
        return InputError(message, file=self.file, line=self.line, value=" ".join(self.words), **where)


class Interaction(NamedTuple):
    """A row of a section of a molecule: atoms from 0, the function, and the parameters that the row itself gives."""

    atoms: tuple[int, ...]
    function: int
    parameters: tuple[float, ...]
    row: Row


class GromacsAtom(NamedTuple):
    """An atom of a molecule; charge and mass are None where the type gives them."""

    type: str
    residue: int
    residue_name: str
    name: str
    charge: float | None
    mass: float | None
    row: Row


@dataclass(eq=False)
class MoleculeType:
    """A kind of molecule: exclusions up to `nrexcl` bonds, atoms, and interactions by section."""

    name: str
    nrexcl: int
    atoms: list[GromacsAtom] = field(default_factory=list)
    interactions: dict[str, list[Interaction]] = field(default_factory=dict)
    exclusions: list[tuple[int, ...]] = field(default_factory=list)


@dataclass(eq=False)
class GromacsTop:
    """A topology: rows of parameters by section, kinds of molecules, and how many of each make the system, in order."""

    file: str
    parameters: dict[str, list[Row]] = field(default_factory=dict)
    kinds: dict[str, MoleculeType] = field(default_factory=dict)
    molecules: list[tuple[str, int]] = field(default_factory=list)


class _Preprocessor:
    """Yields the rows of a file and of what it includes."""

    def __init__(self, defines: Mapping[str, str], folder: Path) -> None:
        self._defines = {name: value.split() for name, value in defines.items()}
        self._folder, self._rows = folder, 0

    def rows(self, path: Path, depth: int = 0, at: tuple[str, int] | None = None) -> Iterator[Row]:
        """Yield the rows of `path`, conditions and macros resolved."""
        if depth > _MAX_DEPTH:
            raise InputError("files include each other too deeply", file=path, allowed=f"{_MAX_DEPTH} levels")
        if at is not None and not (path.is_file() and path.resolve().is_relative_to(self._folder)):
            message = "included file is missing, or outside the folder of the topology"
            raise InputError(message, file=at[0], line=at[1], key="#include", value=str(path), hint=HINT_PP)
        file, conditions, pending = str(path), list[tuple[bool, int]](), ""
        for line, text in enumerate(read_whole_text(path, LIMIT_BYTES).split("\n"), start=1):
            text = pending + text.partition(";")[0].strip()
            pending = ""
            if text.endswith("\\"):
                pending = text[:-1] + " "
                continue
            if text.startswith("#"):
                words = text.split()
                if words[0] in ("#ifdef", "#ifndef", "#else", "#endif"):
                    self._condition(words, conditions, file, line)
                elif all(active for active, _ in conditions):
                    yield from self._directive(text, words, path, line, depth)
            elif text and all(active for active, _ in conditions):
                self._rows += 1
                if self._rows > _MAX_ROWS:
                    raise InputError("too many rows", file=file, line=line, allowed=f"{_MAX_ROWS}")
                yield Row([w for word in text.split() for w in self._defines.get(word, (word,))], file, line)
        if conditions or pending:
            raise InputError("#ifdef without #endif", file=file, line=conditions[-1][1] if conditions else line)

    def _condition(self, words: list[str], conditions: list[tuple[bool, int]], file: str, line: int) -> None:
        if words[0] in ("#ifdef", "#ifndef") and len(words) > 1 and len(conditions) < 1000:
            conditions.append(((words[1] in self._defines) == (words[0] == "#ifdef"), line))
        elif words[0] == "#else" and conditions:
            conditions[-1] = (not conditions[-1][0], conditions[-1][1])
        elif words[0] == "#endif" and conditions:
            conditions.pop()
        else:
            raise InputError("condition not understood", file=file, line=line, value=" ".join(words))

    def _directive(self, text: str, words: list[str], path: Path, line: int, depth: int) -> Iterator[Row]:
        if words[0] == "#define" and len(words) > 1:
            self._defines[words[1]] = words[2:]
        elif words[0] == "#undef" and len(words) > 1:
            self._defines.pop(words[1], None)
        elif found := _INCLUDE.fullmatch(text):
            yield from self.rows(path.parent / found.group(1), depth + 1, (str(path), line))
        else:
            allowed = "#include, #define, #undef, #ifdef, #ifndef, #else, #endif"
            raise InputError("directive not understood", file=path, line=line, value=text, allowed=allowed)


def _atom(row: Row, n: int) -> GromacsAtom:
    """Return an atom; rows are numbered from 1."""
    if len(row.words) < 6:
        raise row.error("atom needs number, type, residue, its name, name, charge group")
    if len(row.words) > 8:
        raise row.error("a second state (typeB, free energy) is not supported")
    row.whole(0, "number of the atom", n + 1, n + 1)
    digits = re.match(r"-?\d+", row.words[2])
    if digits is None:
        raise row.error("number of the residue expected")
    charge = row.number(6, "charge") if len(row.words) > 6 else None
    mass = row.number(7, "mass") if len(row.words) > 7 else None
    return GromacsAtom(row.words[1], int(digits.group()[:9]), row.words[3], row.words[4], charge, mass, row)


def _interaction(section: str, row: Row, n: int) -> Interaction:
    """Return an interaction of `n` atoms at most."""
    width, functions = INTERACTIONS[section]
    atoms = tuple(row.whole(k, f"[ {section} ] atom {k + 1}", 1, n) - 1 for k in range(width))
    if len(set(atoms)) != width:
        raise row.error("an atom stands twice in one row", key=f"[ {section} ]")
    function = row.whole(width, f"[ {section} ] function", 0, 99)
    if function not in functions:
        allowed = ", ".join(map(str, sorted(functions)))
        raise row.error(f"function {function} is not supported", key=f"[ {section} ]", allowed=allowed)
    values = tuple(row.number(k, f"[ {section} ]") for k in range(width + 1, len(row.words)))
    return Interaction(atoms, function, values, row)


def _molecule_row(top: GromacsTop, kind: MoleculeType, section: str, row: Row) -> None:
    """Add a row to the molecule."""
    n = len(kind.atoms)
    if section == "atoms":
        kind.atoms.append(_atom(row, n))
    elif section == "exclusions":
        kind.exclusions.append(tuple(row.whole(k, "[ exclusions ]", 1, n) - 1 for k in range(len(row.words))))
    else:
        kind.interactions.setdefault(section, []).append(_interaction(section, row, n))


def read_top(path: str | Path, *, defines: Mapping[str, str] | None = None) -> GromacsTop:
    """Read a GROMACS topology and the files it includes, found beside the file that includes them.

    Args:
        path: the .top file.
        defines: names for the preprocessor, such as {"FLEXIBLE": ""}.

    Raises:
        InputError: with file and line, for what is damaged, missing or not supported.
    """
    top, section, kind = GromacsTop(str(path)), "", None
    for row in _Preprocessor(defines or {}, Path(path).resolve().parent).rows(Path(path)):
        if row.words and row.words[0].startswith("["):
            found = _SECTION.fullmatch(" ".join(row.words))
            section = found.group(1) if found else ""
            inside = section in INTERACTIONS or section in ("atoms", "exclusions")
            if section not in PARAMETERS and not inside:
                hint = "leave it out if its effect is not wanted"
                raise row.error("section is not supported", hint=hint)
            if inside and kind is None:
                raise row.error("section stands before any [ moleculetype ]")
            if section in ("system", "molecules"):
                kind = None
        elif not section:
            raise row.error("row before the first section")
        elif section == "moleculetype":
            if len(row.words) != 2 or row.words[0] in top.kinds:
                raise row.error("name, new, and number of bonds to exclude expected", key="[ moleculetype ]")
            kind = top.kinds[row.words[0]] = MoleculeType(row.words[0], row.whole(1, "nrexcl", 0, 20))
        elif section == "molecules":
            if len(row.words) != 2 or row.words[0] not in top.kinds:
                allowed = ", ".join(top.kinds)
                raise row.error("name of a molecule and its number expected", key="[ molecules ]", allowed=allowed)
            top.molecules.append((row.words[0], row.whole(1, "[ molecules ]", 0, MAX_ATOMS)))
        elif section in PARAMETERS:
            top.parameters.setdefault(section, []).append(row)
        elif kind is not None and row.words:
            _molecule_row(top, kind, section, row)
    for name in ("defaults", "atomtypes"):
        if not top.parameters.get(name):
            hint = f"a force field is included by the topology, or {HINT_PP}"
            raise InputError("section missing", file=path, key=f"[ {name} ]", hint=hint)
    if not 1 <= sum(number * len(top.kinds[name].atoms) for name, number in top.molecules) <= MAX_ATOMS:
        raise InputError("system has no atoms, or too many", file=path, key="[ molecules ]", hint="the file may be truncated")
    return top


@dataclass(frozen=True, eq=False)
class Gro:
    """A frame of a gro file: names, positions (nm), velocities (nm/ps) or None, box with rows a, b, c (nm) or None."""

    title: str
    residue_n: tuple[int, ...]
    residue_name: tuple[str, ...]
    atom_name: tuple[str, ...]
    position_n3: Array
    velocity_n3: Array | None
    box_33: Array | None


def _gro_numbers(text: str, width: int, count: int, file: str, line: int) -> list[float]:
    """Return `count` numbers in columns of `width` characters."""
    if len(text) < count * width:
        raise InputError("atom line too short", file=file, line=line, value=text, hint="the file may be truncated")
    return [real(text[at * width : (at + 1) * width].strip(), file=file, line=line) for at in range(count)]


def _gro_box(row: str, file: str, line: int) -> Array | None:
    """Return the box; three zeros mean none. The file gives a_x b_y c_z, perhaps a_y a_z b_x b_z c_x c_y."""
    values = [real(word, file=file, line=line, key="box") for word in row.split()]
    if len(values) not in (3, 9):
        raise InputError("three or nine numbers expected", file=file, line=line, key="box", value=row)
    if not any(values):
        return None
    ax, by, cz, ay, az, bx, bz, cx, cy = values if len(values) == 9 else [*values, *[0.0] * 6]
    box = np.array([[ax, ay, az], [bx, by, bz], [cx, cy, cz]])
    if min(ax, by, cz) <= 0 or max(map(abs, values)) > 1e6 or np.linalg.det(box) <= 0:
        raise InputError("box is not usable", file=file, line=line, key="box", value=values)
    return box


def read_gro(path: str | Path) -> Gro:
    """Read a gro file with one frame.

    Raises:
        InputError: with file and line, for damaged files.
    """
    file, rows = str(path), read_whole_text(path, LIMIT_BYTES).split("\n")
    while rows and not rows[-1].strip():
        rows.pop()
    if len(rows) < 4:
        raise InputError("too few lines for a gro file", file=file, line=len(rows), hint="the file may be truncated")
    n = integer(rows[1].strip(), file=file, line=2, key="number of atoms")
    if not 1 <= n <= MAX_ATOMS or len(rows) != n + 3:
        hint = "one frame is expected; the file may be truncated"
        raise InputError("number of lines does not fit", file=file, line=2, key="number of atoms", value=n, hint=hint)
    points = [at for at, letter in enumerate(rows[2][20:]) if letter == "."]
    width = points[1] - points[0] if len(points) > 2 else 0
    if not 5 <= width <= 30:
        raise InputError("columns not understood", file=file, line=3, value=rows[2])
    moving = len(rows[2].rstrip()) > 20 + 3 * width
    residues, residue_names, names, values = [], [], [], np.zeros((n, 6))
    for at in range(n):
        row, line = rows[2 + at], at + 3
        residues.append(integer(row[:5].strip(), file=file, line=line, key="residue"))
        residue_names.append(row[5:10].strip())
        names.append(row[10:15].strip())
        values[at, :3] = _gro_numbers(row[20:], width, 3, file, line)
        if moving:
            values[at, 3:] = _gro_numbers(row[20 + 3 * width :], width, 3, file, line)
    box = _gro_box(rows[n + 2], file, n + 3)
    velocity = values[:, 3:].copy() if moving else None
    return Gro(rows[0].strip(), tuple(residues), tuple(residue_names), tuple(names), values[:, :3].copy(), velocity, box)


def gro_bytes(frame: Gro) -> bytes:
    """Return a frame as a gro file: positions with six decimals, velocities with seven."""
    rows = [re.sub(r"[^ -~]", " ", frame.title) or "gewu", f"{len(frame.atom_name)}"]
    for at, name in enumerate(frame.atom_name):
        head = f"{frame.residue_n[at] % 100000:5d}{frame.residue_name[at][:5]:<5s}{name[:5]:>5s}{(at + 1) % 100000:5d}"
        tail = "".join(f"{x:11.6f}" for x in frame.position_n3[at])
        if frame.velocity_n3 is not None:
            tail += "".join(f"{v:11.7f}" for v in frame.velocity_n3[at])
        rows.append(head + tail)
    box = np.zeros((3, 3)) if frame.box_33 is None else frame.box_33
    order = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))
    shown = order if np.any(box - np.diag(np.diag(box))) else order[:3]
    rows.append(" ".join(f"{box[i, j]:.6f}" for i, j in shown))
    return ("\n".join(rows) + "\n").encode()
