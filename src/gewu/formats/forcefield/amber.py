"""AMBER topologies as a `Topology`.

Conventions of the file: bonds k (r - r0)^2 and angles k (theta - theta0)^2 without a half; kcal/mol and angstrom; Lennard-Jones
A/r^12 - B/r^6 by pairs of types; excluded pairs listed; a dihedral whose third atom is negative gives no 1-4 pair (another one
does, or the ends are closer), a negative fourth atom marks an improper; 1-4 pairs are divided by SCEE (charges) and SCNB.
CHARMM force fields in this format (chamber) bring Urey-Bradley terms, harmonic impropers, CMAP and 1-4 Lennard-Jones tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.formats.amber import AmberCoordinates, Prmtop
from gewu.formats.elements import SYMBOLS
from gewu.formats.forcefield.graph import cell_of, molecules, unique_pairs
from gewu.formats.forcefield.system import System, elements_of, new_system, terms
from gewu.formats.forcefield.topology import ANGSTROM, KCAL, Array, Index, Terms, Topology

SCEE, SCNB = 1.2, 2.0
"""Divisors of 1-4 interactions where the file gives none."""
CHARGE = 18.2223
"""Charges in the file are multiplied by this number, the square root of its Coulomb constant in kcal/mol A."""
_PER_AREA = KCAL / ANGSTROM**2


def _lennard_jones(top: Prmtop, suffix: str) -> tuple[Array, Array]:
    """Return sigma (nm) and epsilon (kJ/mol) of pairs of types from the tables of A and B."""
    section, n = top.section, top.pointers["NTYPES"]
    a, b = section[f"LENNARD_JONES_{suffix}ACOEF"], section[f"LENNARD_JONES_{suffix}BCOEF"]
    number = section["NONBONDED_PARM_INDEX"].reshape(n, n)
    if not np.array_equal(number, number.T):
        raise InputError("table of pairs of types is not symmetric", file=top.file, key="NONBONDED_PARM_INDEX")
    if np.any(a < 0) or np.any(b < 0) or np.any((a == 0) != (b == 0)):
        bad = int(np.flatnonzero((a < 0) | (b < 0) | ((a == 0) != (b == 0)))[0])
        raise InputError(
            f"pair {bad + 1} has no sigma and epsilon", file=top.file, key=f"LENNARD_JONES_{suffix}ACOEF", value=(a[bad], b[bad])
        )
    used = np.where(a > 0, a, 1.0)
    sigma, epsilon = (used / np.where(b > 0, b, 1.0)) ** (1 / 6), b**2 / (4 * used)
    some = (number > 0) & (a > 0)[np.maximum(number - 1, 0)]  # negative: 10-12 pairs, all zero (checked by the reader)
    row = np.maximum(number - 1, 0)
    return np.where(some, sigma[row] * ANGSTROM, 0.0), np.where(some, epsilon[row] * KCAL, 0.0)


def _harmonic(top: Prmtop, kind: str, atoms: int, factor: float, length: float) -> Terms:
    """Return bonds or angles as (2k, equilibrium value)."""
    rows, prefix = top.terms(kind), kind.removesuffix("S")
    which = rows[:, atoms] - 1
    k, at = top.section[f"{prefix}_FORCE_CONSTANT"][which], top.section[f"{prefix}_EQUIL_VALUE"][which]
    return terms(np.abs(rows[:, :atoms]) // 3, np.stack([2 * k * factor, at * length], axis=1), atoms, 2)


def _dihedrals(top: Prmtop) -> tuple[Terms, Index, Array]:
    """Return the dihedrals, and of the 1-4 pairs the atoms and the divisors (SCEE, SCNB)."""
    rows, section = top.terms("DIHEDRALS"), top.section
    which, index = rows[:, 4] - 1, np.abs(rows[:, :4]) // 3
    period = np.abs(section["DIHEDRAL_PERIODICITY"])
    if np.any(period != np.round(period)) or np.any(period > 6):
        raise InputError("periodicity is not a small integer", file=top.file, key="DIHEDRAL_PERIODICITY")
    table = np.stack([section["DIHEDRAL_FORCE_CONSTANT"] * KCAL, section["DIHEDRAL_PHASE"], period], axis=1)
    count = top.pointers["NPTRA"]
    scaling = [section.get("SCEE_SCALE_FACTOR", np.full(count, SCEE)), section.get("SCNB_SCALE_FACTOR", np.full(count, SCNB))]
    ends = (rows[:, 2] >= 0) & (rows[:, 3] >= 0)
    divisors = np.stack(scaling, axis=1)[which[ends]]
    if np.any(divisors <= 0):
        hint = "a dihedral that gives a 1-4 pair needs a divisor above zero"
        raise InputError("1-4 divisor is not positive", file=top.file, key="SCEE_SCALE_FACTOR or SCNB_SCALE_FACTOR", hint=hint)
    acting = table[which, 0] != 0
    pairs, first = np.unique(np.sort(index[ends][:, [0, 3]], axis=1), axis=0, return_index=True)
    return terms(index[acting], table[which[acting]], 4, 3), np.asarray(pairs, np.int32), divisors[first]


def _pairs14(top: Prmtop, index: Index, divisors: Array, charge: Array, kind: Index) -> Terms:
    """Return the 1-4 pairs with scaled products of charges, sigma and scaled epsilon."""
    sigma, epsilon = _lennard_jones(top, "14_" if "LENNARD_JONES_14_ACOEF" in top.section else "")
    i, j = index[:, 0], index[:, 1]
    ti, tj = kind[i], kind[j]
    values = [charge[i] * charge[j] / divisors[:, 0], sigma[ti, tj], epsilon[ti, tj] / divisors[:, 1]]
    return terms(index, np.stack(values, axis=1), 2, 3)


def _exclusions(top: Prmtop) -> Index:
    """Return the listed pairs."""
    counts, listed = top.section["NUMBER_EXCLUDED_ATOMS"], top.section["EXCLUDED_ATOMS_LIST"]
    atom = np.repeat(np.arange(len(counts)), counts)
    return unique_pairs(np.stack([atom, listed - 1], axis=1)[listed > 0])


def _chamber(top: Prmtop, name: str, atoms: int, kinds: int, values: tuple[str, str]) -> tuple[NDArray[Any], Array]:
    """Return (atoms, values) of a CHARMM table: `name` holds atoms from 1 and a type, `values` one number per type."""
    section, n = top.section, top.pointers["NATOM"]
    rows, numbers = section[name], [section.get(flag, np.zeros(0)) for flag in values]
    if rows.dtype.kind != "i" or len(rows) % (atoms + 1) or any(len(x) != kinds or x.dtype.kind != "f" for x in numbers):
        raise InputError("wrong number of values", file=top.file, key=f"{name}, {values[0]} or {values[1]}")
    rows = rows.reshape(-1, atoms + 1)
    if np.any(rows < 1) or np.any(rows[:, :atoms] > n) or np.any(rows[:, atoms] > kinds):
        raise InputError("index out of range", file=top.file, key=name)
    return rows[:, :atoms] - 1, np.stack(numbers, axis=1)[rows[:, atoms] - 1]


def _count(top: Prmtop, flag: str, at: int) -> int:
    """Return a number of a section of counts."""
    values = top.section.get(flag, np.zeros(0))
    if values.dtype.kind != "i" or len(values) <= at or not 0 <= values[at] < 10**9:
        raise InputError("count missing or out of range", file=top.file, key=flag)
    return int(values[at])


def _charmm(top: Prmtop) -> dict[str, Any]:
    """Return the Urey-Bradley terms and the harmonic impropers of a chamber file."""
    tables = {}
    if "CHARMM_UREY_BRADLEY" in top.section:
        kinds = _count(top, "CHARMM_UREY_BRADLEY_COUNT", 1)
        values = ("CHARMM_UREY_BRADLEY_FORCE_CONSTANT", "CHARMM_UREY_BRADLEY_EQUIL_VALUE")
        index, numbers = _chamber(top, "CHARMM_UREY_BRADLEY", 2, kinds, values)
        tables["urey_bradley"] = terms(index, numbers * (2 * _PER_AREA, ANGSTROM), 2, 2)
    if "CHARMM_IMPROPERS" in top.section:
        kinds = _count(top, "CHARMM_NUM_IMPR_TYPES", 0)
        values = ("CHARMM_IMPROPER_FORCE_CONSTANT", "CHARMM_IMPROPER_PHASE")
        index, numbers = _chamber(top, "CHARMM_IMPROPERS", 4, kinds, values)
        tables["impropers"] = terms(index, numbers * (2 * KCAL, 1.0), 4, 2)
    return tables


def _cmap(top: Prmtop) -> dict[str, Any]:
    """Return the table and the grids of CMAP, of ff19SB (CMAP_...) or CHARMM (CHARMM_CMAP_...); phi is the slow index."""
    prefix = next((p for p in ("", "CHARMM_") if f"{p}CMAP_INDEX" in top.section), None)
    if prefix is None:
        return {}
    kinds = _count(top, f"{prefix}CMAP_COUNT", 1)
    sizes = {_count(top, f"{prefix}CMAP_RESOLUTION", at) for at in range(min(kinds, 1000))}
    if len(sizes) != 1 or not 4 <= (size := sizes.pop()) <= 360:
        raise InputError("grids of one size are needed", file=top.file, key=f"{prefix}CMAP_RESOLUTION")
    grids = [top.section.get(f"{prefix}CMAP_PARAMETER_{at:02d}", np.zeros(0)) for at in range(1, kinds + 1)]
    if any(len(grid) != size**2 or grid.dtype.kind != "f" for grid in grids):
        raise InputError("wrong number of values", file=top.file, key=f"{prefix}CMAP_PARAMETER", allowed=f"{size**2}")
    top.section["_CMAP_NUMBER"] = np.arange(kinds, dtype=np.float64)
    index, numbers = _chamber(top, f"{prefix}CMAP_INDEX", 5, kinds, ("_CMAP_NUMBER", "_CMAP_NUMBER"))
    return {"cmap": terms(index, numbers[:, :1], 5, 1), "cmap_grids": np.array(grids).reshape(-1, size, size) * KCAL}


def _virtual_sites(top: Prmtop, mass: Array, bonds: Terms, element: tuple[str, ...]) -> tuple[Terms, NDArray[np.bool_]]:
    """Return the sites of four-point water, and which bonds stay: those to sites give the geometry and no energy."""
    sites = np.flatnonzero(mass == 0)
    index, length = bonds.index, bonds.parameter[:, 1]
    to_site = (mass[index] == 0).any(axis=1)
    rows, weights = [], []
    lengths = {(int(i), int(j)): float(r) for (i, j), r in zip(np.sort(index, axis=1), length, strict=True)} if len(sites) else {}
    starts = np.append(top.section["RESIDUE_POINTER"] - 1, len(mass))
    for site in sites:
        residue = int(np.searchsorted(starts, site, "right")) - 1
        atoms = range(int(starts[residue]), int(starts[residue + 1]))
        if [element[a] for a in atoms if a != site] != ["O", "H", "H"]:
            name = str(top.section["ATOM_NAME"][site])
            hint = "massless sites are supported in four-point water (O, H, H, site)"
            raise InputError("massless atom outside water", file=top.file, key=f"atom {site + 1} {name}", hint=hint)
        o, h1, h2 = (a for a in atoms if a != site)
        ends = ((o, int(site)), (o, h1), (h1, h2))
        d_om, d_oh, d_hh = (lengths.get((min(i, j), max(i, j)), 0.0) for i, j in ends)
        if not (0 < d_om < 2 * d_oh and 0 < d_hh < 2 * d_oh):
            raise InputError("bonds O-site, O-H and H-H of four-point water are missing", file=top.file, key=f"atom {site + 1}")
        rows.append((site, o, h1, h2))
        weights.append([d_om / np.sqrt(4 * d_oh**2 - d_hh**2)] * 2)
    return terms(rows, weights, 4, 2), ~to_site


def from_amber(top: Prmtop, coordinates: AmberCoordinates | None = None) -> System:
    """Return the system of a prmtop and, when given, coordinates.

    Args:
        top: from `gewu.formats.amber.read_prmtop`.
        coordinates: from `read_rst7`; without a box there, the box of the prmtop is used.

    Raises:
        InputError: parameters that the engine cannot represent, naming the section.
    """
    section, n = top.section, top.pointers["NATOM"]
    charge, mass = section["CHARGE"] / CHARGE, section["MASS"].astype(np.float64)
    kind = (section["ATOM_TYPE_INDEX"] - 1).astype(np.int32)
    names = tuple(map(str, section["ATOM_NAME"]))
    bonds = _harmonic(top, "BONDS", 2, _PER_AREA, ANGSTROM)
    number = section.get("ATOMIC_NUMBER")
    if number is None:
        element = elements_of(mass, names, bonds.index)
    else:
        element = tuple(SYMBOLS[z - 1] if 0 < z <= len(SYMBOLS) else "" for z in number.tolist())
    _, first = np.unique(np.append(kind, np.arange(top.pointers["NTYPES"])), return_index=True)
    labels = [str(section["AMBER_ATOM_TYPE"][at]) if at < n else f"type {t + 1}" for t, at in enumerate(first)]
    dihedrals, pairs, divisors = _dihedrals(top)
    sites, real = _virtual_sites(top, mass, bonds, element)
    residue = np.repeat(np.arange(top.pointers["NRES"]), np.diff(np.append(section["RESIDUE_POINTER"], n + 1)))
    sigma, epsilon = _lennard_jones(top, "")
    topology = Topology(
        mass_n=mass, charge_n=charge, type_n=kind, type_names=tuple(labels), element=element,
        sigma_tt=sigma, epsilon_tt=epsilon, atom_name=names,
        residue_name=tuple(map(str, section["RESIDUE_LABEL"][residue])), residue_n=residue.astype(np.int32),
        molecule_n=molecules(bonds.index, n), bonds=Terms(bonds.index[real], bonds.parameter[real]),
        angles=_harmonic(top, "ANGLES", 3, KCAL, 1.0), dihedrals=dihedrals,
        pairs14=_pairs14(top, pairs, divisors, charge, kind),
        exclusions=unique_pairs(np.concatenate([_exclusions(top), pairs])), virtual_sites=sites,
        **_charmm(top), **_cmap(top),
    )  # fmt: skip
    if coordinates is None:
        return System(topology)
    cell = None
    if coordinates.box_lengths is not None:
        cell = cell_of(coordinates.box_lengths, coordinates.box_angles) * ANGSTROM
    elif top.pointers["IFBOX"]:
        box = section.get("BOX_DIMENSIONS", np.zeros(0))
        if len(box) != 4 or box.dtype.kind != "f" or np.any(box <= 0):
            raise InputError("box missing", file=top.file, key="BOX_DIMENSIONS", allowed="an angle and three lengths")
        angles = [box[0]] * 3 if top.pointers["IFBOX"] == 2 else [90.0, box[0], 90.0]
        cell = cell_of(box[1:], angles) * ANGSTROM
    velocity = None if coordinates.velocity_n3 is None else coordinates.velocity_n3 * ANGSTROM
    return new_system(topology, coordinates.position_n3 * ANGSTROM, velocity, cell, top.file)
