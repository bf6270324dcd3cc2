"""Look up the parameters of a GROMACS topology by type.

Types of bonded interactions may be X (any) in dihedrals; the entry with the fewest X wins, of these the first. Combination
rules: 1 (C6, C12), 2 (Lorentz-Berthelot), 3 (geometric). Units nm, kJ/mol, e, degrees, as in the file.
Reference: GROMACS manual, chapter "Topologies".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gewu.formats.gromacs import GromacsTop, Interaction, MoleculeType, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_COUNTS = {
    ("bonds", 1): 2, ("bonds", 5): 0, ("bonds", 6): 2, ("angles", 1): 2, ("angles", 5): 4, ("dihedrals", 1): 3,
    ("dihedrals", 2): 2, ("dihedrals", 3): 6, ("dihedrals", 4): 3, ("dihedrals", 5): 4, ("dihedrals", 9): 3,
    ("constraints", 1): 1, ("constraints", 2): 1, ("settles", 1): 2, ("virtual_sites2", 1): 1, ("virtual_sites3", 1): 2,
    ("pairs", 1): 2, ("pairs", 2): 5,
}  # fmt: skip
_TYPES = {"bonds": "bondtypes", "angles": "angletypes", "dihedrals": "dihedraltypes", "constraints": "constrainttypes"}
_WIDTH = {"bondtypes": 2, "angletypes": 3, "dihedraltypes": 4, "constrainttypes": 2, "pairtypes": 2, "cmaptypes": 5}


class AtomType(NamedTuple):
    """An atom type: type for bonded interactions, atomic number (0: not given), particle (A, D, V), two numbers of its pairs."""

    bond_type: str
    number: int
    mass: float
    charge: float
    particle: str
    v: float
    w: float


class Defaults(NamedTuple):
    """Combination rule, whether 1-4 pairs are made from atom types, and their factors."""

    rule: int
    generate: bool
    fudge_lj: float
    fudge_qq: float


@dataclass(eq=False)
class Parameters:
    """The parameters of a topology, ready to be looked up."""

    top: GromacsTop
    defaults: Defaults
    types: dict[str, AtomType]
    rows: dict[str, dict[tuple[str, ...], list[Row]]] = field(default_factory=dict)
    grids: list[Array] = field(default_factory=list)
    grid_number: dict[tuple[str, int], int] = field(default_factory=dict)

    def lennard_jones(self, v: float, w: float, row: Row) -> tuple[float, float]:
        """Return (sigma, epsilon) of a pair of numbers of the file."""
        if self.defaults.rule == 1:
            if v < 0 or w < 0 or (v == 0) != (w == 0):
                raise row.error("C6 and C12 have no sigma and epsilon")
            return ((w / v) ** (1 / 6), v * v / (4 * w)) if v else (0.0, 0.0)
        if v < 0 or w < 0:
            raise row.error("negative sigma or epsilon")
        return v, w


def _defaults(top: GromacsTop) -> Defaults:
    row = top.parameters["defaults"][0]
    row.whole(0, "[ defaults ] nbfunc: Buckingham is not supported", 1, 1)
    rule = row.whole(1, "[ defaults ] comb-rule", 1, 3)
    generate = len(row.words) > 2 and row.words[2].lower() == "yes"
    if len(row.words) > 2 and row.words[2].lower() not in ("yes", "no"):
        raise row.error("gen-pairs is yes or no", key="[ defaults ]")
    fudge = [row.number(k, "[ defaults ] fudge") if len(row.words) > k else 1.0 for k in (3, 4)]
    return Defaults(rule, generate, *fudge)


def _atom_types(top: GromacsTop) -> dict[str, AtomType]:
    """Return the atom types; of name, bonded type and number before the mass the last two may be missing."""
    found = {}
    for row in top.parameters["atomtypes"]:
        n = len(row.words)
        if not 6 <= n <= 8 or row.words[n - 3] not in ("A", "D", "V", "S"):
            raise row.error("atom type needs name, mass, charge, A or V, two numbers", key="[ atomtypes ]")
        spare = row.words[1 : n - 5]
        digits = [word for word in spare if word.lstrip("-").isdecimal()]
        number = int(digits[-1][:6]) if digits and spare[-1] == digits[-1] else 0
        bond_type = spare[0] if spare and (len(spare) == 2 or not digits) else row.words[0]
        values = [row.number(k, "[ atomtypes ]") for k in (n - 5, n - 4, n - 2, n - 1)]
        found[row.words[0]] = AtomType(bond_type, number, values[0], values[1], row.words[n - 3], values[2], values[3])
    return found


def parameters_of(top: GromacsTop) -> Parameters:
    """Sort the rows of parameters by their types and function."""
    found = Parameters(top, _defaults(top), _atom_types(top))
    for section, width in _WIDTH.items():
        table = found.rows.setdefault(section, {})
        for row in top.parameters.get(section, []):
            words = row.words
            if section == "dihedraltypes" and len(words) > 2 and words[2].isdecimal():
                outer = words[2] in ("2", "4")  # two types: of the outer atoms in impropers, else of the inner ones
                words = [words[0], "X", "X", words[1], *words[2:]] if outer else ["X", *words[:2], "X", *words[2:]]
            if len(words) <= width:
                raise row.error("types and a function expected", key=f"[ {section} ]")
            key = (*words[:width], words[width])
            values = Row(words[width + 1 :], row.file, row.line)
            table.setdefault(key, []).append(values)
    return found


def _find(parameters: Parameters, section: str, types: tuple[str, ...], function: int) -> list[Row]:
    """Return the rows for these types, in either direction."""
    table, code = parameters.rows[section], (str(function),)
    for key in (types + code, types[::-1] + code):
        if key in table:
            return table[key]
    if section != "dihedraltypes":
        return []
    masks = sorted(range(1, 16), key=lambda mask: (mask.bit_count(), mask))
    for mask in masks:
        for names in (types, types[::-1]):
            key = tuple("X" if mask >> k & 1 else name for k, name in enumerate(names)) + code
            if key in table:
                return table[key]
    return []


def values_of(parameters: Parameters, kind: MoleculeType, section: str, one: Interaction) -> list[tuple[float, ...]]:
    """Return the parameters of an interaction, from its own row or from its types; several for dihedrals of function 9."""
    count = _COUNTS[section, one.function]
    if len(one.parameters) == count and (count or section == "bonds"):
        return [one.parameters]
    if one.parameters:
        raise one.row.error(f"{count} parameters expected; a second state is not supported", key=f"[ {section} ]")
    types = tuple(parameters.types[kind.atoms[atom].type].bond_type for atom in one.atoms)
    rows = _find(parameters, _TYPES[section], types, one.function) if section in _TYPES else []
    if not rows:
        name = _TYPES.get(section, section)
        raise one.row.error(f"no parameters for {' '.join(types)}, function {one.function}", key=f"[ {name} ]")
    if any(len(row.words) != count for row in rows):
        raise rows[0].error(f"{count} parameters expected", key=f"[ {_TYPES[section]} ]")
    rows = rows if one.function == 9 else rows[:1]
    return [tuple(row.number(k, section) for k in range(count)) for row in rows]


def pair_of(parameters: Parameters, kind: MoleculeType, one: Interaction, charges: Array) -> tuple[float, ...]:
    """Return (q q scaled, sigma, epsilon) of a 1-4 pair."""
    defaults, (i, j) = parameters.defaults, one.atoms
    charge = float(charges[i] * charges[j])
    if one.function == 2:
        if len(one.parameters) != 5:
            raise one.row.error("fudgeQQ, two charges and two numbers expected", key="[ pairs ]")
        fudge, qi, qj, v, w = one.parameters
        return (fudge * qi * qj, *parameters.lennard_jones(v, w, one.row))
    charge *= defaults.fudge_qq
    if len(one.parameters) == 2:
        return (charge, *parameters.lennard_jones(*one.parameters, one.row))
    if one.parameters:
        raise one.row.error("two parameters expected; a second state is not supported", key="[ pairs ]")
    names = (kind.atoms[i].type, kind.atoms[j].type)
    if rows := _find(parameters, "pairtypes", names, 1):
        return (charge, *parameters.lennard_jones(rows[0].number(0, "v"), rows[0].number(1, "w"), rows[0]))
    if not defaults.generate:
        raise one.row.error(f"no parameters for {' '.join(names)}, and gen-pairs is no", key="[ pairtypes ]")
    both = [parameters.lennard_jones(parameters.types[name].v, parameters.types[name].w, one.row) for name in names]
    (s_i, e_i), (s_j, e_j) = both
    sigma = (s_i + s_j) / 2 if defaults.rule == 2 else (s_i * s_j) ** 0.5
    return charge, sigma, (e_i * e_j) ** 0.5 * defaults.fudge_lj


def grid_of(parameters: Parameters, kind: MoleculeType, one: Interaction) -> int:
    """Return the number of the grid for five atoms, reading it the first time; phi is the slow index."""
    types = tuple(parameters.types[kind.atoms[atom].type].bond_type for atom in one.atoms)
    rows = _find(parameters, "cmaptypes", types, one.function)
    if not rows:
        raise one.row.error(f"no parameters for {' '.join(types)}", key="[ cmaptypes ]")
    row, key = rows[0], (rows[0].file, rows[0].line)
    if key not in parameters.grid_number:
        size = row.whole(0, "[ cmaptypes ]", 4, 360)
        row.whole(1, "[ cmaptypes ]", size, size)
        if len(row.words) != 2 + size**2 or (parameters.grids and len(parameters.grids[0]) != size):
            raise row.error(f"{size**2} numbers expected, grids of one size", key="[ cmaptypes ]")
        grid = np.array([row.number(2 + k, "[ cmaptypes ]") for k in range(size**2)]).reshape(size, size)
        parameters.grid_number[key] = len(parameters.grids)
        parameters.grids.append(grid)
    return parameters.grid_number[key]
