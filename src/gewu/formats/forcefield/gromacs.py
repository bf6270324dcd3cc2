"""GROMACS topologies as a `Topology`: molecules repeated, exclusions counted along bonds.

Parameters are looked up by `gewu.formats.gromacs_types`; units are this folder's but for degrees.
Reference: GROMACS manual, chapters "Interaction function and force fields" and "Topologies".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gewu.formats.elements import SYMBOLS
from gewu.formats.forcefield.graph import molecules, unique_pairs, within_bonds
from gewu.formats.forcefield.system import Mixing, System, elements_of, mix, new_system, terms
from gewu.formats.forcefield.topology import Array, Topology
from gewu.formats.gromacs import Gro, GromacsTop, Interaction, MoleculeType
from gewu.formats.gromacs_types import Parameters, grid_of, pair_of, parameters_of, values_of

_TABLES = {
    "bonds": (2, 2), "angles": (3, 2), "urey_bradley": (2, 2), "dihedrals": (4, 3), "ryckaert": (4, 6), "impropers": (4, 2),
    "cmap": (5, 1), "pairs14": (2, 3), "constraints": (2, 1), "settles": (3, 2), "virtual_sites": (4, 2),
}  # fmt: skip

_Table = tuple[list[tuple[int, ...]], list[tuple[float, ...]]]


def _place(tables: dict[str, _Table], section: str, one: Interaction, values: tuple[float, ...]) -> None:
    """Put an interaction of the file into tables."""
    atoms, function = one.atoms, one.function

    def add(name: str, index: tuple[int, ...], *numbers: float) -> None:
        tables[name][0].append(index)
        tables[name][1].append(numbers)

    if section == "bonds" and function != 5:
        add("bonds", atoms, values[1], values[0])
    elif section == "angles":
        add("angles", atoms, values[1], np.radians(values[0]))
        if function == 5:
            add("urey_bradley", (atoms[0], atoms[2]), values[3], values[2])
    elif section == "dihedrals" and function in (1, 4, 9):
        if not values[2].is_integer() or not 0 <= values[2] <= 6:
            raise one.row.error("multiplicity is not a small integer", key="[ dihedrals ]")
        if values[1]:
            add("dihedrals", atoms, values[1], np.radians(values[0]), values[2])
    elif section == "dihedrals" and function == 2:
        add("impropers", atoms, values[1], np.radians(values[0]))
    elif section == "dihedrals" and function == 3:
        add("ryckaert", atoms, *values)
    elif section == "dihedrals":
        f1, f2, f3, f4 = values
        add("ryckaert", atoms, f2 + (f1 + f3) / 2, (3 * f3 - f1) / 2, 4 * f4 - f2, -2 * f3, -4 * f4, 0.0)
    elif section == "constraints":
        add("constraints", atoms, values[0])
    elif section == "settles":
        add("settles", (atoms[0], atoms[0] + 1, atoms[0] + 2), *values)
    elif section == "virtual_sites2":
        add("virtual_sites", (*atoms, atoms[2]), values[0], 0.0)
    elif section == "virtual_sites3":
        add("virtual_sites", atoms, *values)


@dataclass(eq=False)
class _Molecule:
    """A kind of molecule in these terms, atoms from 0."""

    mass: Array
    charge: Array
    tables: dict[str, _Table]
    exclusions: NDArray[Any]


def _molecule(parameters: Parameters, kind: MoleculeType) -> _Molecule:
    """Look up everything in a kind of molecule."""
    for atom in kind.atoms:
        if atom.type not in parameters.types:
            raise atom.row.error(f"type {atom.type} is not in [ atomtypes ]", key="[ atoms ]")
    types = [parameters.types[atom.type] for atom in kind.atoms]
    mass = np.array([t.mass if a.mass is None else a.mass for a, t in zip(kind.atoms, types, strict=True)])
    mass = np.where([t.particle in "DV" for t in types], 0.0, mass) if types else mass
    charge = np.array([t.charge if a.charge is None else a.charge for a, t in zip(kind.atoms, types, strict=True)])
    tables: dict[str, _Table] = {name: ([], []) for name in _TABLES}
    edges: list[tuple[int, int]] = []
    for section, rows in kind.interactions.items():
        for one in rows:
            if section == "pairs":
                tables["pairs14"][0].append(one.atoms)
                tables["pairs14"][1].append(pair_of(parameters, kind, one, charge))
                continue
            if section == "cmap":
                tables["cmap"][0].append(one.atoms)
                tables["cmap"][1].append((float(grid_of(parameters, kind, one)),))
                continue
            if section == "settles" and one.atoms[0] + 2 >= len(kind.atoms):
                raise one.row.error("two hydrogens after this atom expected", key="[ settles ]")
            for values in values_of(parameters, kind, section, one):
                _place(tables, section, one, values)
            if (section, one.function) in (("bonds", 1), ("bonds", 5), ("constraints", 1)):
                edges.append((one.atoms[0], one.atoms[1]))
            if section == "settles":
                edges += [(one.atoms[0], one.atoms[0] + k) for k in (1, 2)]
    listed = [(row[0], other) for row in kind.exclusions for other in row[1:]]
    near = within_bonds(np.array(edges, np.int64).reshape(-1, 2), max(len(kind.atoms), 1), kind.nrexcl)
    exclusions = unique_pairs(np.concatenate([near, np.array(listed, np.int64).reshape(-1, 2)]))
    return _Molecule(mass, charge, tables, exclusions)


def _type_tables(parameters: Parameters, names: list[str]) -> tuple[Array, Array]:
    """Return sigma and epsilon of all pairs of the types in use."""
    first = parameters.top.parameters["atomtypes"][0]
    single = [parameters.lennard_jones(parameters.types[name].v, parameters.types[name].w, first) for name in names]
    rule: Mixing = "lorentz-berthelot" if parameters.defaults.rule == 2 else "geometric"
    sigma, epsilon = mix([one[0] for one in single], [one[1] for one in single], rule)
    at = {name: number for number, name in enumerate(names)}
    for row in parameters.top.parameters.get("nonbond_params", []):
        row.whole(2, "[ nonbond_params ] function", 1, 1)
        if row.words[0] in at and row.words[1] in at:
            i, j = at[row.words[0]], at[row.words[1]]
            values = parameters.lennard_jones(row.number(3, "v"), row.number(4, "w"), row)
            sigma[i, j], epsilon[i, j] = sigma[j, i], epsilon[j, i] = values
    return sigma, epsilon


def _repeat(parts: list[tuple[Any, int]], width: int, sizes: list[int]) -> NDArray[Any]:
    """Return rows of atoms of each run of molecules, repeated and moved to where the run's molecules stand."""
    start, out = 0, []
    for (index, number), size in zip(parts, sizes, strict=True):
        offset = start + size * np.arange(number)[:, None, None]
        out.append((np.array(index, np.int64).reshape(1, -1, width) + offset).reshape(-1, width))
        start += size * number
    return np.concatenate(out)


def _tables(kinds: list[tuple[_Molecule, int]], sizes: list[int]) -> dict[str, Any]:
    """Return every table of interactions of the whole system, and the exclusions."""
    found: dict[str, Any] = {}
    for name, (width, count) in _TABLES.items():
        index = _repeat([(kind.tables[name][0], number) for kind, number in kinds], width, sizes)
        values = [np.array(kind.tables[name][1]).reshape(-1, count) for kind, _ in kinds]
        tiled = [np.tile(part, (number, 1)) for part, (_, number) in zip(values, kinds, strict=True)]
        found[name] = terms(index, np.concatenate(tiled), width, count)
    exclusions = _repeat([(kind.exclusions, number) for kind, number in kinds], 2, sizes)
    return found | {"exclusions": exclusions.astype(np.int32)}


def _residues(runs: list[tuple[MoleculeType, int]]) -> NDArray[np.int32]:
    """Return the residue of each atom, numbered from 0 through the system."""
    out, start = [], 0
    for kind, number in runs:
        rows = [atom.residue for atom in kind.atoms]
        local = np.cumsum(np.diff(rows, prepend=rows[:1]) != 0)
        step = int(local[-1]) + 1
        out.append((start + local + step * np.arange(number)[:, None]).ravel())
        start += step * number
    return np.concatenate(out).astype(np.int32)


def from_gromacs(top: GromacsTop, frame: Gro | None = None) -> System:
    """Return the system of a GROMACS topology and, when given, coordinates.

    Args:
        top: from `gewu.formats.gromacs.read_top`.
        frame: from `read_gro`.

    Raises:
        InputError: a parameter that is missing (its types are named) or cannot be represented, with file and line.
    """
    parameters = parameters_of(top)
    runs = [(top.kinds[name], number) for name, number in top.molecules if number and top.kinds[name].atoms]
    cache = {kind.name: _molecule(parameters, kind) for kind in {kind.name: kind for kind, _ in runs}.values()}
    kinds = [(cache[kind.name], number) for kind, number in runs]
    mass, charge = (np.concatenate([np.tile(getattr(k, name), n) for k, n in kinds]) for name in ("mass", "charge"))
    atoms = [atom for kind, number in runs for _ in range(number) for atom in kind.atoms]
    type_names = list(dict.fromkeys(atom.type for atom in atoms))
    at = {name: number for number, name in enumerate(type_names)}
    names = tuple(atom.name for atom in atoms)
    tables = _tables(kinds, [len(kind.atoms) for kind, _ in runs])
    rigid, sites = tables["settles"].index, tables["virtual_sites"].index
    bonds = tables["bonds"].index
    guess = elements_of(mass, names, np.concatenate([bonds, tables["constraints"].index]))
    numbers = [parameters.types[atom.type].number for atom in atoms]
    element = tuple(SYMBOLS[z - 1] if 0 < z <= len(SYMBOLS) else by_mass for z, by_mass in zip(numbers, guess, strict=True))
    sigma, epsilon = _type_tables(parameters, type_names)
    edges = np.concatenate([bonds, tables["constraints"].index, rigid[:, :2], rigid[:, [0, 2]], sites[:, :2]])
    if parameters.grids:
        tables["cmap_grids"] = np.array(parameters.grids)
    topology = Topology(
        mass_n=mass, charge_n=charge, type_n=np.array([at[atom.type] for atom in atoms], np.int32),
        type_names=tuple(type_names), element=element, sigma_tt=sigma, epsilon_tt=epsilon, atom_name=names,
        residue_name=tuple(atom.residue_name for atom in atoms), residue_n=_residues(runs),
        molecule_n=molecules(edges, len(mass)), **tables,
    )  # fmt: skip
    if frame is None:
        return System(topology)
    return new_system(topology, frame.position_n3, frame.velocity_n3, frame.box_33, top.file)
