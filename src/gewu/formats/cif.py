"""Read crystal structures from CIF files (Crystallographic Information File 1.1; files of COD, ICSD, the Materials Project ...).

The first data block with atom sites is taken. The cell is filled with the operations the file lists; else with those of its Hall
symbol, Hermann-Mauguin name or group number. A site on a special position is put exactly there (mean of its images that
coincide), and its images are merged. The cell stands with a along x and b in the xy plane; it is not reduced to a primitive one.

Refused: partial occupancy, unknown coordinates, overlapping atoms, and a cell that does not have the composition of
_chemical_formula_sum (atoms that were not located, or a file cut off).
Reference: Hall, Allen & Brown, Acta Cryst. A47, 655 (1991).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import read_text_capped
from gewu.formats.cif_syntax import Block, Value, parse_cif
from gewu.formats.elements import ATOMIC_NUMBER, symbol_of
from gewu.formats.numbers import integer, real
from gewu.formats.structure import MAX_ATOMS, Structure
from gewu.formats.symmetry import check_group, find_setting, operations_of_setting, parse_operation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

LIMIT_BYTES = 20_000_000
MERGE_ANGSTROM = 0.1  # above the rounding of printed coordinates (0.01), below the closest atoms allowed (0.3)
_UNCERTAIN = re.compile(r"(.*\d\.?)\(\d{1,9}\)", re.ASCII)
_COUNT = re.compile(r"([A-Z][a-z]?)(\d*\.?\d*)", re.ASCII)
_OPERATIONS = ("_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz")
_HALL = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
_NAME = ("_space_group_name_h-m_alt", "_symmetry_space_group_name_h-m", "_space_group_name_h-m_full")
_NUMBER = ("_space_group_it_number", "_symmetry_int_tables_number")


def _number(value: Value, file: str, key: str) -> float:
    """Return a number, its standard uncertainty in parentheses left out."""
    found = _UNCERTAIN.fullmatch(value.text) if len(value.text) <= 64 else None
    return real(found.group(1) if found else value.text, file=file, line=value.line, key=key)


def _first(block: Block, tags: tuple[str, ...]) -> str | None:
    """Return the first of several items that has a known value."""
    for tag in tags:
        for value in block.get(tag, [])[:1]:
            if not value.unknown:
                return value.text
    return None


def _cell(block: Block, file: str) -> tuple[Array, bool]:
    """Return the cell from lengths and angles, and whether it is hexagonal."""
    numbers = []
    for name in ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"):
        values = block.get(f"_cell_{name}", [])
        if len(values) != 1 or values[0].unknown:
            raise InputError("cell length or angle missing", file=file, key=f"_cell_{name}")
        number = _number(values[0], file, f"_cell_{name}")
        if not (0.1 <= number <= 1e5 if "length" in name else 1.0 <= number <= 179.0):
            raise InputError("out of range", file=file, line=values[0].line, key=f"_cell_{name}", value=number)
        numbers.append(number)
    a, b, c = numbers[:3]
    alpha, beta, gamma = (0.0 if angle == 90.0 else float(np.cos(np.radians(angle))) for angle in numbers[3:])
    sine = float(np.sqrt(1.0 - gamma**2))
    y = (alpha - beta * gamma) / sine
    z2 = 1.0 - beta**2 - y**2
    if z2 < 1e-8:
        raise InputError("angles of the cell are impossible", file=file, key="_cell_angle", value=numbers[3:])
    cell = np.array([[a, 0.0, 0.0], [b * gamma, b * sine, 0.0], [c * beta, c * y, c * np.sqrt(z2)]])
    return cell, numbers[3:] == [90.0, 90.0, 120.0]


def _operations(block: Block, cell: Array, hexagonal: bool, file: str) -> tuple[NDArray[np.int64], Array]:
    """Return the operations of the block, checked to be a group that fits the cell."""
    for tag in _OPERATIONS:
        values = [value for value in block.get(tag, []) if not value.unknown]
        if values:
            found = [parse_operation(value.text, file=file, line=value.line) for value in values[:200]]
            rotations = np.array([rotation for rotation, _ in found], dtype=np.int64)
            shifts = np.array([shift for _, shift in found])
            break
    else:
        number = _first(block, _NUMBER)
        group = None if number is None else integer(number, file=file, key=_NUMBER[0])
        setting = find_setting(_first(block, _HALL), _first(block, _NAME), group, hexagonal, file)
        rotations, shifts = operations_of_setting(setting)
    check_group(rotations, shifts, cell, file)
    return rotations, shifts


def _formula(block: Block, file: str) -> dict[str, float]:
    """Return the counts of _chemical_formula_sum; empty when it is not given."""
    text = _first(block, ("_chemical_formula_sum",))
    counts: dict[str, float] = {}
    for word in (text or "").replace(",", " ").split():
        found = _COUNT.fullmatch(word)
        element = {"D": "H", "T": "H"}.get(found.group(1), found.group(1)) if found else ""
        if found is None or element not in ATOMIC_NUMBER or found.group(2) == ".":
            raise InputError("formula not understood", file=file, key="_chemical_formula_sum", value=text)
        counts[element] = counts.get(element, 0.0) + float(found.group(2) or 1)
    return counts


def _element(block: Block, row: int, formula: dict[str, float], file: str) -> str:
    """Return the element of an atom site from its type symbol, else from its label and the formula."""
    for tag in ("_atom_site_type_symbol", "_atom_site_label"):
        if tag in block and not block[tag][row].unknown:
            value = block[tag][row]
            bare = value.text.rstrip("0123456789+-")
            if tag.endswith("symbol"):
                symbol = bare.capitalize() if bare.capitalize() in ATOMIC_NUMBER else None
            else:
                symbol = symbol_of(value.text, formula)
            symbol = "H" if bare in ("D", "T") else symbol
            if symbol is None:
                hint = "give _atom_site_type_symbol"
                raise InputError("element unknown or ambiguous", file=file, line=value.line, key=tag, value=value.text, hint=hint)
            return symbol
    raise InputError("atom site has neither type symbol nor label", file=file, key="_atom_site_label")


def _sites(block: Block, file: str) -> list[tuple[str, str, Array]]:
    """Return (label, element, fractional position) of every atom site."""
    columns = [block["_atom_site_fract_" + axis] for axis in "xyz" if "_atom_site_fract_" + axis in block]
    n = len(columns[0])
    if len(columns) != 3 or any(len(values) != n for tag, values in block.items() if tag in _SITE_TAGS):
        raise InputError("atom site columns are incomplete", file=file, line=columns[0][0].line, key="_atom_site_fract")
    formula, sites = _formula(block, file), []
    for row in range(n):
        label = block["_atom_site_label"][row].text if "_atom_site_label" in block else f"site {row + 1}"
        if "_atom_site_calc_flag" in block and block["_atom_site_calc_flag"][row].text == "dum":
            continue
        line = columns[0][row].line
        if any(column[row].unknown for column in columns):
            raise InputError("position of an atom is unknown", file=file, line=line, key=label)
        position = np.array([_number(column[row], file, label) for column in columns])
        if np.abs(position).max() > 100.0:
            raise InputError("fractional coordinate out of range", file=file, line=line, key=label, value=position.tolist())
        if "_atom_site_occupancy" in block and not block["_atom_site_occupancy"][row].unknown:
            value = block["_atom_site_occupancy"][row]
            if abs(_number(value, file, label) - 1.0) > 1e-3:
                hint = "order the structure (one element for each site) first"
                raise InputError(
                    "partial occupancy", file=file, line=value.line, key=label, value=value.text, allowed="1", hint=hint
                )
        sites.append((label, _element(block, row, formula, file), position))
    return sites


_SITE_TAGS = {
    f"_atom_site_{name}" for name in ("label", "type_symbol", "occupancy", "calc_flag", "fract_x", "fract_y", "fract_z")
}


def _orbit(position: Array, rotations: NDArray[np.int64], shifts: Array, cell: Array) -> Array:
    """Return all different images of a position, after putting it on the special position that it is next to."""

    def apart(images: Array, centre: Array) -> tuple[Array, NDArray[np.bool_]]:
        offset = images - centre
        offset -= np.round(offset)
        return offset, np.linalg.norm(offset @ cell, axis=1) < MERGE_ANGSTROM

    images = rotations @ position + shifts
    offset, same = apart(images, position)
    images = rotations @ (position + offset[same].mean(0)) + shifts
    kept: list[Array] = []
    while len(images):
        _, same = apart(images, images[0])
        kept.append(images[0])
        images = images[~same]
    orbit = np.array(kept)
    orbit -= np.floor(orbit)
    orbit[orbit > 1.0 - 1e-12] = 0.0
    return orbit


def _check_last_line(block: Block, last: int, file: str) -> None:
    """Refuse a number of the structure that ends with the file, not with its line: it may have lost digits."""
    for tag, values in block.items():
        if values[-1].line == last and (tag in _SITE_TAGS or tag in _OPERATIONS or tag.startswith("_cell_")):
            hint = "the file may be truncated; if it is not, end it with a newline"
            raise InputError("last line does not end", file=file, line=last, key=tag, value=values[-1].text, hint=hint)


def _check_composition(symbols: list[str], formula: dict[str, float], file: str) -> None:
    """Refuse a cell whose composition is not that of the stated formula."""
    if not formula:
        return
    counts = {symbol: symbols.count(symbol) for symbol in dict.fromkeys(symbols)}
    ratios = [counts.get(element, 0) / count for element, count in formula.items() if count > 0]
    if set(counts) - set(formula) or not ratios or max(ratios) - min(ratios) > 1e-2 * max(ratios):
        shown = " ".join(f"{element}{n}" for element, n in counts.items())
        stated = " ".join(f"{element}{n:g}" for element, n in formula.items())
        hint = "atoms are missing, or correct the formula"
        raise InputError(
            "atoms do not make up the formula", file=file, key="_chemical_formula_sum", value=shown, allowed=stated, hint=hint
        )


def read_cif(path: str | Path) -> Structure:
    """Read the first structure of a CIF file, its cell filled by symmetry.

    Args:
        path: the file, at most 20 MB.

    Returns:
        The conventional cell as the file gives it; atoms in the order of the sites, images within [0, 1).

    Raises:
        InputError: with file and line, for damaged files and for structures that cannot be computed (see above).
    """
    file = str(path)
    text = read_text_capped(path, LIMIT_BYTES)
    blocks = parse_cif(text, file)
    found = [(name, block) for name, block in blocks if "_atom_site_fract_x" in block]
    if not found:
        raise InputError("holds no atom sites with fractional coordinates", file=path, key="_atom_site_fract_x")
    name, block = found[0]
    if not text.endswith("\n"):
        _check_last_line(block, text.count("\n") + 1, file)
    cell, hexagonal = _cell(block, file)
    rotations, shifts = _operations(block, cell, hexagonal, file)
    sites = _sites(block, file)
    if len(sites) * len(rotations) > 4 * MAX_ATOMS:
        raise InputError("too many atoms", file=path, value=len(sites) * len(rotations), allowed=f"{MAX_ATOMS}")
    symbols: list[str] = []
    positions = []
    for _, element, position in sites:
        orbit = _orbit(position, rotations, shifts, cell)
        symbols += [element] * len(orbit)
        positions.append(orbit)
    _check_composition(symbols, _formula(block, file), file)
    title = _first(block, ("_chemical_name_mineral", "_chemical_name_common", "_chemical_formula_sum")) or name
    return Structure(
        cell, tuple(symbols), np.concatenate(positions) if positions else np.zeros((0, 3)), " ".join(title.split()), file
    )
