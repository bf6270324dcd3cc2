"""Read psp8, the format that ONCVPSP writes for ABINIT (pspcod 8): norm-conserving, linear mesh, hartree and bohr.

Conventions of the file: projectors are r*beta(r), D is diagonal (`ekb`), the model core charge and the valence densities carry a
factor 4 pi that is taken out here. extension_switch: 0 nothing more, 1 valence densities, 2 spin-orbit projectors, 3 both. The
spin-orbit projectors are checked and left out: what remains is the complete scalar-relativistic potential.

Limit: as for UPF, see `gewu.formats.radial`.
Reference: ABINIT documentation, "psp8 format"; Hamann, Phys. Rev. B 88, 085117 (2013).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import read_capped
from gewu.formats.elements import ATOMIC_NUMBER, SYMBOLS
from gewu.formats.functionals import functional_of_ixc
from gewu.formats.numbers import integer, real, reals
from gewu.formats.pseudopotential import Projector, RadialPseudo
from gewu.formats.radial import MAX_POINTS, check_radial

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

LIMIT_BYTES = 50_000_000
_MAX_PROJECTORS = 8


class _Rows:
    """The lines of the file, taken one after the other."""

    def __init__(self, text: str, file: str) -> None:
        self.rows, self.file, self.at = text.splitlines(), file, 0

    def words(self, least: int, what: str) -> list[str]:
        """Take the next line, which must hold at least `least` words."""
        if self.at >= len(self.rows):
            raise InputError("file ends too early", file=self.file, line=self.at, key=what, hint="the file may be truncated")
        self.at += 1
        words = self.rows[self.at - 1].split()
        if len(words) < least:
            raise InputError("line too short", file=self.file, line=self.at, key=what, value=self.rows[self.at - 1])
        return words

    def integers(self, count: int, what: str, low: int, high: int) -> list[int]:
        """Take a line that starts with `count` integers between `low` and `high`; text may follow them."""
        values = [integer(word, file=self.file, line=self.at, key=what) for word in self.words(count, what)[:count]]
        if min(values) < low or max(values) > high:
            raise InputError("out of range", file=self.file, line=self.at, key=what, value=values, allowed=f"{low} to {high}")
        return values

    def table(self, n: int, columns: int, what: str) -> Array:
        """Take `n` rows of a number, which counts them, and `columns` reals."""
        first = self.at + 1
        block = self.rows[self.at : self.at + n]
        self.at += len(block)
        if len(block) < n:
            raise InputError("file ends too early", file=self.file, line=self.at, key=what, hint="the file may be truncated")
        for line, row in enumerate(block, start=first):
            if len(row.split()) != columns + 1:
                raise InputError(
                    "wrong number of columns", file=self.file, line=line, key=what, value=row, allowed=str(columns + 1)
                )
        values = reals("\n".join(block), file=self.file, line=first, key=what).reshape(n, columns + 1)
        wrong = values[:, 0] != np.arange(1, n + 1)
        if wrong.any():
            line = first + int(wrong.argmax())
            raise InputError("rows are not numbered in order", file=self.file, line=line, key=what, value=self.rows[line - 1])
        return values[:, 1:]


def _block(rows: _Rows, angular: int, strengths: int, n: int, what: str) -> tuple[list[float], Array]:
    """Take a header (angular momentum, strengths) and its table; return the strengths and the columns (n, 1 + strengths)."""
    words = rows.words(1 + strengths, what)
    if integer(words[0], file=rows.file, line=rows.at, key=what) != angular or len(words) != 1 + strengths:
        raise InputError(
            "unexpected block header", file=rows.file, line=rows.at, key=what, value=" ".join(words), allowed=f"{angular} ..."
        )
    values = [real(word, file=rows.file, line=rows.at, key=what) for word in words[1:]]
    return values, rows.table(n, 1 + max(strengths, 1), what)


def _same_mesh(rows: _Rows, r: Array, table: Array, what: str) -> Array:
    """Return the columns after the mesh, which must be `r` again."""
    wrong = table[:, 0] != r
    if wrong.any():
        line = rows.at - len(r) + 1 + int(wrong.argmax())
        raise InputError("mesh differs from that of the first block", file=rows.file, line=line, key=what)
    return table[:, 1:]


def _core(rows: _Rows, r: Array, fchrg: float) -> Array | None:
    """Take the model core charge with its four derivatives when the header announces one (fchrg > 0)."""
    if fchrg <= 0.0:
        return None
    columns = _same_mesh(rows, r, rows.table(len(r), 6, "core charge"), "core charge")
    slope = np.gradient(columns[:, 0], r)[1:-1]
    if np.abs(slope - columns[1:-1, 1]).max() > 0.05 * max(np.abs(columns[:, 1]).max(), 1e-12):
        raise InputError("core charge and its derivative disagree", file=rows.file, line=rows.at, key="core charge")
    return columns[:, 0] / (4.0 * np.pi)


@dataclass(frozen=True)
class _Header:
    """The first lines of the file."""

    element: str
    z_ion: float
    ixc: int
    l_max: int
    l_loc: int
    n: int
    fchrg: float
    counts: list[int]
    orbit_counts: list[int]
    has_valence: bool


def _header(rows: _Rows) -> _Header:
    """Take the lines up to extension_switch and, with spin-orbit, nprojso."""
    file, title = rows.file, rows.words(1, "title")[0].capitalize()
    words = rows.words(2, "zatom, zion")
    z_atom, z_ion = (real(word, file=file, line=2, key="zatom, zion") for word in words[:2])
    if z_atom != round(z_atom) or not 1 <= z_atom <= len(SYMBOLS):
        raise InputError("no such element", file=file, line=2, key="zatom", value=z_atom)
    element = SYMBOLS[int(z_atom) - 1]
    if title in ATOMIC_NUMBER and title != element:
        raise InputError("title and zatom name different elements", file=file, line=2, key="zatom", value=element, allowed=title)
    pspcod, ixc, l_max, l_loc, n, _ = rows.integers(6, "pspcod pspxc lmax lloc mmax r2well", -999_999_999, 999_999_999)
    if pspcod != 8 or not 0 <= l_max <= 4 or not 0 <= l_loc <= 9 or not 24 <= n <= MAX_POINTS:
        raise InputError("not a psp8 header", file=file, line=3, value=rows.rows[2], allowed="pspcod 8, lmax 0 to 4")
    fchrg = real(rows.words(2, "fchrg")[1], file=file, line=4, key="fchrg")
    counts = rows.integers(l_max + 1, "nproj", 0, _MAX_PROJECTORS)
    switch = rows.integers(1, "extension_switch", 0, 3)[0]
    orbit = [0, *rows.integers(l_max, "nprojso", 0, _MAX_PROJECTORS)] if switch in (2, 3) and l_max else []
    return _Header(element, z_ion, ixc, l_max, l_loc, n, fchrg, counts, orbit, switch in (1, 3))


def _scalar_blocks(rows: _Rows, header: _Header) -> tuple[Array, Array, list[Projector], list[float]]:
    """Take projectors and local potential; return mesh, V_loc, projectors, strengths."""
    r: Array | None = None
    vloc: Array | None = None
    projectors: list[Projector] = []
    strengths: list[float] = []
    for angular in sorted({*range(header.l_max + 1), header.l_loc}):
        count = header.counts[angular] if angular <= header.l_max and angular != header.l_loc else 0
        if count == 0 and angular != header.l_loc:
            continue
        what = f"block of l = {angular}"
        values, table = _block(rows, angular, count, header.n, what)
        r = table[:, 0] if r is None else r
        columns = _same_mesh(rows, r, table, what)
        if angular == header.l_loc:
            vloc = columns[:, 0].copy()
        else:
            strengths += values
            projectors += [Projector(angular, column.copy()) for column in columns.T]
    if r is None or vloc is None:
        raise InputError("holds no local potential", file=rows.file)
    return r.copy(), vloc, projectors, strengths


def _valence(rows: _Rows, r: Array, header: _Header) -> Array:
    """Take the densities; return 4 pi r^2 rho of the valence. The all-electron core must hold zatom - zion electrons."""
    columns = _same_mesh(rows, r, rows.table(header.n, 4, "valence charge"), "valence charge")
    core, expected = float(np.trapezoid(columns[:, 2] * r**2, r)), ATOMIC_NUMBER[header.element] - header.z_ion
    if abs(core - expected) > 0.05 + 0.01 * expected:
        what = "all-electron core does not hold zatom - zion electrons"
        raise InputError(what, file=rows.file, line=rows.at, key="core charge", value=core, allowed=f"{expected:g}")
    return np.asarray(columns[:, 0] * r**2)


def _parse(text: str, source: str, sha256: str) -> RadialPseudo:
    """Build the pseudopotential from the text."""
    rows = _Rows(text, source)
    header = _header(rows)
    r, vloc, projectors, strengths = _scalar_blocks(rows, header)
    for angular, count in enumerate(header.orbit_counts):
        if count:
            _same_mesh(rows, r, _block(rows, angular, count, header.n, "spin-orbit block")[1], "spin-orbit block")
    core = _core(rows, r, header.fchrg)
    rho = _valence(rows, r, header) if header.has_valence else None
    return RadialPseudo(
        element=header.element,
        z_valence=header.z_ion,
        functional=functional_of_ixc(header.ixc),
        r=r,
        rab=np.full(header.n, (r[-1] - r[0]) / (header.n - 1)),
        vloc_ha=vloc,
        projectors=tuple(projectors),
        d_ij_ha=np.diag(strengths) if strengths else np.zeros((0, 0)),
        rho_atom=rho,
        core_density=core,
        source=source,
        sha256=sha256,
    )


def read_psp8(path: str | Path, sha256: str | None = None) -> RadialPseudo:
    """Read a psp8 file.

    Args:
        path: the file, at most 50 MB.
        sha256: hex digest that the file must have; None does not verify.

    Returns:
        The pseudopotential in hartree and bohr.

    Raises:
        InputError: with file and line, when the file is damaged, of another kind, or contradicts itself.
    """
    data = read_capped(path, LIMIT_BYTES)
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise InputError("checksum differs", file=path, key="sha256", value=found, allowed=sha256)
    return check_radial(_parse(data.decode("latin-1"), str(path), found), str(path))
