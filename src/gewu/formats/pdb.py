"""Read atoms of biomolecules from PDB files and mmCIF files (`_atom_site`), and write PDB. Units angstrom.

The first model is taken; where an atom has alternative locations, the first that the residue names. What was left out stands in
`notes`. Bonds (CONECT), symmetry and occupancies are not read: a force field brings its own bonds.
References: PDB file format 3.3, wwPDB (2012); PDBx/mmCIF dictionary, mmcif.wwpdb.org.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gewu.core.errors import InputError
from gewu.formats.cif_syntax import Block, Value, parse_cif
from gewu.formats.elements import ATOMIC_NUMBER
from gewu.formats.numbers import read_whole_text, real

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

LIMIT_BYTES = 1_000_000_000
MAX_ATOMS = 10_000_000
_CELL = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
_BARE = re.compile(r"([A-Za-z]{1,2})[0-9+\-]*", re.ASCII)


@dataclass(frozen=True, eq=False)
class AtomSites:
    """Atoms with their names.

    Args:
        symbols, names, residues, residue_ids, chains: for each atom; residue_ids are texts such as "12" or "12A".
        positions_angstrom: (n, 3).
        cell_angstrom: (3, 3) rows with a along x, b in the xy plane, or None.
        notes: what was left out, for people.
    """

    symbols: tuple[str, ...]
    names: tuple[str, ...]
    residues: tuple[str, ...]
    residue_ids: tuple[str, ...]
    chains: tuple[str, ...]
    positions_angstrom: Array
    cell_angstrom: Array | None
    notes: tuple[str, ...] = ()


class _Site(NamedTuple):
    symbol: str
    name: str
    residue: str
    residue_id: str
    chain: str
    alternative: str
    position: tuple[float, float, float]


def _cell(values: Sequence[float], file: str, line: int | None, key: str) -> Array | None:
    """Return the cell of lengths and angles; the unit cube of structures without one is None."""
    if all(value in (0.0, 1.0) for value in values[:3]):
        return None
    a, b, c = values[:3]
    if min(a, b, c) < 0.1 or max(a, b, c) > 1e5 or not all(1 <= angle <= 179 for angle in values[3:]):
        raise InputError("cell is not usable", file=file, line=line, key=key, value=list(values))
    alpha, beta, gamma = (0.0 if angle == 90.0 else float(np.cos(np.radians(angle))) for angle in values[3:])
    sine = float(np.sqrt(1 - gamma**2))
    y = (alpha - beta * gamma) / sine
    z2 = 1 - beta**2 - y**2
    if z2 < 1e-8:
        raise InputError("angles of the cell are impossible", file=file, line=line, key=key, value=list(values[3:]))
    return np.array([[a, 0, 0], [b * gamma, b * sine, 0], [c * beta, c * y, c * np.sqrt(z2)]])


def _sites(sites: list[_Site], cell: Array | None, notes: list[str], file: str) -> AtomSites:
    """Choose among alternative locations and return the atoms."""
    if not sites:
        raise InputError("holds no atoms", file=file, hint="the file may be truncated")
    chosen: dict[tuple[str, str, str], str] = {}
    kept = []
    for site in sites:
        where = (site.chain, site.residue_id, site.name)
        residue = (site.chain, site.residue_id, "")
        if not site.alternative or chosen.setdefault(residue, site.alternative) == site.alternative or where not in chosen:
            if site.alternative:
                if chosen.get(where) not in (None, site.alternative):
                    continue
                chosen[where] = site.alternative
            kept.append(site)
    if len(kept) < len(sites):
        notes.append(f"{len(sites) - len(kept)} alternative locations left out")
    columns = list(zip(*kept, strict=True))
    position = np.array(columns[6], np.float64)
    if np.abs(position).max() > 1e6:
        bad = int(np.abs(position).max(axis=1).argmax())
        raise InputError("coordinate out of range", file=file, key=f"atom {bad + 1}", value=position[bad].tolist())
    symbols, names, residues, ids, chains = (tuple(map(str, column)) for column in columns[:5])
    return AtomSites(symbols, names, residues, ids, chains, position, cell, tuple(notes))


def _symbol(row: str, file: str, line: int) -> str:
    """Return the element: columns 77-78, else from the name, whose element ends in column 14."""
    found = _BARE.fullmatch(row[76:80].strip())
    if found and found.group(1).capitalize() in ATOMIC_NUMBER:
        return found.group(1).capitalize()
    field = row[12:14]
    if field[:1] in " 0123456789":
        symbol = field[1:2].upper()
    else:
        symbol = "H" if field[0] in "Hh" and len(row[12:16].strip()) == 4 else field.strip().capitalize()
        symbol = symbol if symbol in ATOMIC_NUMBER else symbol[:1]
    if symbol == "D":
        symbol = "H"
    if symbol not in ATOMIC_NUMBER:
        raise InputError("element not recognised", file=file, line=line, value=row[12:16], hint="give it in columns 77-78")
    return symbol


def read_pdb(path: str | Path) -> AtomSites:
    """Read the first model of a PDB file.

    Raises:
        InputError: with file and line, for damaged files.
    """
    file, sites, notes = str(path), list[_Site](), list[str]()
    cell, open_model = None, False
    for line, row in enumerate(read_whole_text(path, LIMIT_BYTES).split("\n"), start=1):
        record = row[:6].rstrip()
        if record in ("ATOM", "HETATM"):
            if len(row) < 54 or len(sites) >= MAX_ATOMS:
                raise InputError("atom line too short, or too many atoms", file=file, line=line, value=row)
            x, y, z = (real(row[at : at + 8].strip(), file=file, line=line, key="coordinates") for at in (30, 38, 46))
            name, residue, chain = row[12:16].strip(), row[17:21].strip(), row[21].strip()
            sites.append(_Site(_symbol(row, file, line), name, residue, row[22:27].strip(), chain, row[16].strip(), (x, y, z)))
        elif record == "CRYST1":
            words = [row[6:15], row[15:24], row[24:33], row[33:40], row[40:47], row[47:54]]
            cell = _cell([real(w.strip(), file=file, line=line, key="CRYST1") for w in words], file, line, "CRYST1")
        elif record == "MODEL":
            open_model = True
        elif record == "ENDMDL" and sites:
            notes.append("first model of several")
            open_model = False
            break
    if open_model:
        raise InputError("model does not end", file=file, key="MODEL", hint="the file may be truncated")
    return _sites(sites, cell, notes, file)


def _column(block: Block, names: Sequence[str], n: int, file: str) -> list[Value]:
    """Return the first column of atom sites with one of the names."""
    for name in names:
        values = block.get(f"_atom_site_{name}")
        if values is not None:
            if len(values) != n:
                raise InputError("atom site columns differ in length", file=file, key=f"_atom_site.{name}")
            return values
    raise InputError("column missing", file=file, key=f"_atom_site.{names[0]}")


def is_mmcif(path: str | Path) -> bool:
    """Tell whether a CIF file is a macromolecular one, with Cartesian positions."""
    with Path(path).open("rb") as file:
        return b"_atom_site.Cartn_x" in file.read(1_000_000)


def read_mmcif(path: str | Path) -> AtomSites:
    """Read the first model of an mmCIF file.

    Raises:
        InputError: with file and line, for damaged files.
    """
    file = str(path)
    blocks = [block for _, block in parse_cif(read_whole_text(path, LIMIT_BYTES), file) if "_atom_site_cartn_x" in block]
    if not blocks:
        raise InputError("holds no atom sites with Cartesian coordinates", file=file, key="_atom_site.Cartn_x")
    block, notes = blocks[0], list[str]()
    n = len(block["_atom_site_cartn_x"])
    x, y, z = (_column(block, (f"cartn_{axis}",), n, file) for axis in "xyz")
    symbol = _column(block, ("type_symbol",), n, file)
    name, residue = (_column(block, (f"auth_{what}", f"label_{what}"), n, file) for what in ("atom_id", "comp_id"))
    number = _column(block, ("auth_seq_id", "label_seq_id"), n, file)
    chain = _column(block, ("auth_asym_id", "label_asym_id"), n, file)
    blank = [Value(".", 0)] * n
    alternative, model, insertion = (
        _column(block, (what,), n, file) if f"_atom_site_{what}" in block else blank
        for what in ("label_alt_id", "pdbx_pdb_model_num", "pdbx_pdb_ins_code")
    )
    sites = []
    for at in range(n):
        if model[at].text != model[0].text:
            notes.append("first model of several")
            break
        element = symbol[at].text.capitalize()
        element = "H" if element == "D" else element
        if element not in ATOMIC_NUMBER:
            raise InputError("unknown element", file=file, line=symbol[at].line, value=symbol[at].text)
        rx, ry, rz = (real(v[at].text, file=file, line=v[at].line, key="_atom_site.Cartn") for v in (x, y, z))
        place = number[at].text + ("" if insertion[at].unknown else insertion[at].text)
        other = "" if alternative[at].unknown else alternative[at].text
        sites.append(_Site(element, name[at].text, residue[at].text, place, chain[at].text, other, (rx, ry, rz)))
    known = [block.get(f"_cell_{what}", blank[:1])[0] for what in _CELL]
    cell = None
    if not any(value.unknown for value in known):
        values = [real(value.text.partition("(")[0], file=file, line=value.line, key="_cell") for value in known]
        cell = _cell(values, file, known[0].line, "_cell")
    return _sites(sites, cell, notes, file)


def pdb_bytes(sites: AtomSites, title: str = "") -> bytes:
    """Return the atoms as a PDB file with three decimals (angstrom), for viewers."""
    rows = [f"TITLE     {re.sub(r'[^ -~]', ' ', title)[:70]}"] if title else []
    if sites.cell_angstrom is not None:
        cell = sites.cell_angstrom
        a, b, c = lengths = np.linalg.norm(cell, axis=1)
        cosines = [cell[i] @ cell[j] / (lengths[i] * lengths[j]) for i, j in ((1, 2), (0, 2), (0, 1))]
        alpha, beta, gamma = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
        rows.append(f"CRYST1{a:9.3f}{b:9.3f}{c:9.3f}{alpha:7.2f}{beta:7.2f}{gamma:7.2f} P 1           1")
    for at, (x, y, z) in enumerate(sites.positions_angstrom):
        name, symbol = sites.names[at][:4], sites.symbols[at]
        field = f"{name:<4s}" if len(name) == 4 or len(symbol) == 2 else f" {name:<3s}"
        residue = f"{sites.residues[at][:3]:>3s} {sites.chains[at][:1] or ' '}{sites.residue_ids[at][-4:]:>4s}"
        place = f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {symbol.upper():>2s}"
        rows.append(f"ATOM  {(at + 1) % 100000:5d} {field} {residue}    {place}")
    return ("\n".join([*rows, "END"]) + "\n").encode()
