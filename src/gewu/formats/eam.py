"""Embedded-atom tables in the three DYNAMO formats: funcfl (`.eam`), setfl (`.eam.alloy`) and Finnis-Sinclair (`.eam.fs`).

    setfl:    3 comment lines; number of elements and their symbols; n_rho d_rho n_r d_r cutoff; then for each element a line
              "atomic number, mass, lattice constant, lattice", n_rho values F(rho), n_r values rho(r); then r phi(r) for the
              pairs 11, 21, 22, 31 ...
    fs:       the same with one rho(r) for every element at which the density of this one acts
    funcfl:   comment; "atomic number, mass, lattice constant, lattice"; n_rho d_rho n_r d_r cutoff; F(rho), Z(r), rho(r);
              r phi = 27.2 * 0.529 Z_a Z_b eV A, with just these rounded constants

Units: eV and angstrom.  Reference: Foiles, Baskes & Daw, Phys. Rev. B 33, 7983 (1986); DYNAMO.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.core.files import write_atomic
from gewu.formats.elements import ATOMIC_NUMBER
from gewu.formats.numbers import integer, read_whole_text, real, reals

Array = NDArray[np.float64]

LIMIT_BYTES = 100_000_000
FUNCFL_EV_ANGSTROM = 27.2 * 0.529
_MOST_ELEMENTS = 32
_MOST_POINTS = 1_000_000


@dataclass(frozen=True, eq=False)
class EamTables:
    """An embedded-atom potential on regular grids that start at 0, for e elements.

    Args:
        elements: chemical symbols.
        mass_e: masses in u.
        d_rho, d_r: steps of the grids, arbitrary density unit and angstrom.
        cutoff: angstrom.
        embedding_ex: (e, n_rho) F(rho) in eV.
        density_eex: (e, e, n_r) density that an atom of the first element makes at one of the second.
        r_phi_eex: (e, e, n_r) r phi(r) in eV angstrom, symmetric.
        source: where it comes from.
    """

    elements: tuple[str, ...]
    mass_e: Array
    d_rho: float
    d_r: float
    cutoff: float
    embedding_ex: Array
    density_eex: Array
    r_phi_eex: Array
    source: str = ""


class _Lines:
    """Lines of a file, taken one after the other, and blocks of numbers that fill whole lines."""

    def __init__(self, path: str | Path) -> None:
        self.path, self.rows, self.at = path, read_whole_text(path, LIMIT_BYTES).splitlines(), 0

    def refuse(self, message: str, key: str, value: object = None, allowed: str | None = None) -> InputError:
        return InputError(message, file=self.path, line=max(self.at, 1), key=key, value=value, allowed=allowed)

    def words(self, what: str, least: int) -> list[str]:
        """Take the next line as at least `least` words."""
        if self.at >= len(self.rows):
            raise self.refuse("file ends too early", what)
        self.at += 1
        words = self.rows[self.at - 1].split()
        if len(words) < least:
            raise self.refuse(f"expected at least {least} words", what, self.rows[self.at - 1].strip())
        return words

    def number(self, word: str, what: str, low: float, high: float) -> float:
        """Return the number that `word` spells, within (low, high]."""
        value = real(word, file=self.path, line=self.at, key=what)
        if not low < value <= high:
            raise self.refuse("out of range", what, value, f"above {low:g}, at most {high:g}")
        return value

    def count(self, word: str, what: str, low: int, high: int) -> int:
        """Return the integer that `word` spells, within [low, high]."""
        value = integer(word, file=self.path, line=self.at, key=what)
        if not low <= value <= high:
            raise self.refuse("out of range", what, value, f"{low} to {high}")
        return value

    def block(self, n: int, what: str) -> Array:
        """Take the next `n` numbers, which end with a line."""
        first, parts, have = self.at + 1, [], 0
        while have < n:
            if self.at >= len(self.rows):
                raise self.refuse(f"file ends after {have} of {n} numbers", what)
            parts.append(self.rows[self.at])
            have += len(self.rows[self.at].split())
            self.at += 1
        values = reals("\n".join(parts), file=self.path, line=first, key=what)
        if len(values) != n:
            raise self.refuse(f"the table does not end with a line after {n} numbers", what, len(values))
        return values

    def finish(self) -> None:
        """Refuse text after the last table."""
        while self.at < len(self.rows):
            self.at += 1
            if self.rows[self.at - 1].strip():
                raise self.refuse("more text than the header announces", "end", self.rows[self.at - 1].strip())


def _grid(lines: _Lines) -> tuple[int, float, int, float, float]:
    words = lines.words("grid", 5)
    n_rho, n_r = (lines.count(words[k], key, 5, _MOST_POINTS) for k, key in ((0, "n_rho"), (2, "n_r")))
    d_rho, d_r = lines.number(words[1], "d_rho", 0.0, 1e6), lines.number(words[3], "d_r", 0.0, 10.0)
    cutoff = lines.number(words[4], "cutoff", 0.0, 50.0)
    if cutoff > n_r * d_r * (1 + 1e-6):
        raise lines.refuse("the tables end before the cutoff", "cutoff", cutoff, f"at most n_r d_r = {n_r * d_r:g}")
    return n_rho, d_rho, n_r, d_r, cutoff


def _mass(lines: _Lines) -> tuple[int, float]:
    words = lines.words("element", 2)
    return lines.count(words[0], "atomic number", 0, 118), lines.number(words[1], "mass", 0.0, 1000.0)


def _read_set(path: str | Path, finnis_sinclair: bool) -> EamTables:
    lines = _Lines(path)
    for _ in range(3):
        lines.words("comment", 0)
    words = lines.words("elements", 2)
    e = lines.count(words[0], "number of elements", 1, _MOST_ELEMENTS)
    names = tuple(words[1:])
    if len(names) != e or len(set(names)) != e or any(name not in ATOMIC_NUMBER for name in names):
        raise lines.refuse("expected that many different chemical symbols", "elements", " ".join(names), f"{e} symbols")
    n_rho, d_rho, n_r, d_r, cutoff = _grid(lines)
    mass_e, embedding = np.zeros(e), np.zeros((e, n_rho))
    density, r_phi = np.zeros((e, e, n_r)), np.zeros((e, e, n_r))
    for a, name in enumerate(names):
        mass_e[a] = _mass(lines)[1]
        embedding[a] = lines.block(n_rho, f"F of {name}")
        if finnis_sinclair:
            for b in range(e):
                density[a, b] = lines.block(n_r, f"density of {name} at {names[b]}")
        else:
            density[a, :] = lines.block(n_r, f"density of {name}")
    for a in range(e):
        for b in range(a + 1):
            r_phi[a, b] = r_phi[b, a] = lines.block(n_r, f"r phi of {names[a]} {names[b]}")
    lines.finish()
    return EamTables(names, mass_e, d_rho, d_r, cutoff, embedding, density, r_phi, str(path))


def read_setfl(path: str | Path) -> EamTables:
    """Read an `.eam.alloy` file.

    Raises:
        InputError: with file and line, when it is not one, is cut short, or holds more than it announces.
    """
    return _read_set(path, False)


def read_finnis_sinclair(path: str | Path) -> EamTables:
    """Read an `.eam.fs` file.

    Raises:
        InputError: as `read_setfl`.
    """
    return _read_set(path, True)


def _lagrange(y: Array, x: Array) -> Array:
    """Interpolate y, given at 0, 1, 2 ..., at x by the cubic through the four nearest points."""
    k = np.clip(x.astype(np.int64), 1, len(y) - 3)
    p = np.minimum(x - k, 2.0)
    weights = (-p * (p - 1) * (p - 2) / 6, (p * p - 1) * (p - 2) / 2, -p * (p + 1) * (p - 2) / 2, p * (p * p - 1) / 6)
    return np.asarray(sum(w * y[k + shift] for w, shift in zip(weights, (-1, 0, 1, 2), strict=True)))


def read_funcfl(*paths: str | Path) -> EamTables:
    """Read one `.eam` file per element.

    Several files are brought to one grid, the coarsest step and the longest reach of them, by cubic Lagrange interpolation; a
    shorter table keeps its last value.

    Raises:
        InputError: with file and line, as `read_setfl`; two files for one element.
    """
    names, masses, grids, tables = [], [], [], []
    for path in paths:
        lines = _Lines(path)
        lines.words("comment", 0)
        number, mass = _mass(lines)
        name = next((symbol for symbol, z in ATOMIC_NUMBER.items() if z == number), None)
        if name is None or name in names:
            raise lines.refuse("expected the atomic number of another element", "atomic number", number)
        grid = _grid(lines)
        parts = [lines.block(n, f"{what} of {name}") for n, what in ((grid[0], "F"), (grid[2], "Z"), (grid[2], "density"))]
        lines.finish()
        names.append(name)
        masses.append(mass)
        grids.append(grid)
        tables.append(parts)
    if not names:
        raise InputError("no file given", key="eam", allowed="one .eam file per element")
    d_rho, d_r, cutoff = max(g[1] for g in grids), max(g[3] for g in grids), max(g[4] for g in grids)
    # DYNAMO's number of points: the last one of the longest table is left out
    n_rho = int(max((g[0] - 1) * g[1] for g in grids) / d_rho + 0.5)
    n_r = int(max((g[2] - 1) * g[3] for g in grids) / d_r + 0.5)
    rho: Array = np.arange(n_rho, dtype=np.float64) * d_rho
    r: Array = np.arange(n_r, dtype=np.float64) * d_r
    e = len(names)
    embedding = np.array([_lagrange(t[0], np.divide(rho, g[1])) for t, g in zip(tables, grids, strict=True)])
    charge = np.array([_lagrange(t[1], np.divide(r, g[3])) for t, g in zip(tables, grids, strict=True)])
    density = np.array([_lagrange(t[2], np.divide(r, g[3])) for t, g in zip(tables, grids, strict=True)])
    r_phi = FUNCFL_EV_ANGSTROM * charge[:, None] * charge[None, :]
    spread = np.repeat(density[:, None], e, axis=1)
    source = ", ".join(str(path) for path in paths)
    return EamTables(tuple(names), np.array(masses), d_rho, d_r, cutoff, embedding, spread, r_phi, source)


def read_eam(path: str | Path) -> EamTables:
    """Read one file of any of the three formats, told apart by its name: `.eam.alloy`, `.eam.fs`, `.eam`.

    Raises:
        InputError: another name, or as the reader of the format.
    """
    name = Path(path).name.lower()
    if name.endswith((".eam.alloy", ".setfl", ".alloy")):
        return read_setfl(path)
    if name.endswith((".eam.fs", ".fs")):
        return read_finnis_sinclair(path)
    if name.endswith((".eam", ".funcfl")):
        return read_funcfl(path)
    raise InputError("format of the EAM file not recognised by name", file=path, value=name, allowed=".eam.alloy, .eam.fs, .eam")


def write_setfl(path: str | Path, tables: EamTables, comment: str = "") -> None:
    """Write tables as `.eam.alloy`, or as `.eam.fs` where a density depends on the atom it acts on.

    Raises:
        StoreError, ResourceError: when it cannot be written.
    """
    e = len(tables.elements)
    several = not np.array_equal(tables.density_eex, np.repeat(tables.density_eex[:, :1], e, axis=1))

    def block(values: Array) -> list[str]:
        return [" ".join(f"{x:.16e}" for x in values[k : k + 5]) for k in range(0, len(values), 5)]

    n_rho, n_r = tables.embedding_ex.shape[1], tables.r_phi_eex.shape[2]
    text = [*[*comment.splitlines(), "", "", ""][:3], f"{e} " + " ".join(tables.elements)]
    text.append(f"{n_rho} {tables.d_rho:.17g} {n_r} {tables.d_r:.17g} {tables.cutoff:.17g}")
    for a, name in enumerate(tables.elements):
        text.append(f"{ATOMIC_NUMBER[name]} {tables.mass_e[a]:.17g} 0.0 none")
        text += block(tables.embedding_ex[a])
        for b in range(e if several else 1):
            text += block(tables.density_eex[a, b])
    for a in range(e):
        for b in range(a + 1):
            text += block(tables.r_phi_eex[a, b])
    write_atomic(path, ("\n".join(text) + "\n").encode("ascii"))
