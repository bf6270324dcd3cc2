"""LAMMPS data files as a `Topology`.

A data file leaves to the script: its units, the rule for unlike pairs, the weights of 1-4 pairs (`special_bonds`, 1-2 and 1-3 are
excluded). They are arguments here, with LAMMPS' own defaults. Energies there have no half: bonds K (r - r0)^2.
Reference: LAMMPS manual, pages of bond_style, angle_style, dihedral_style, improper_style, pair_style.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.formats.forcefield.graph import molecules, unique_pairs, within_bonds
from gewu.formats.forcefield.system import Mixing, System, elements_of, mix, new_system, terms
from gewu.formats.forcefield.topology import ANGSTROM, EV, KCAL, Array, Index, Terms, Topology
from gewu.formats.lammps import LammpsData
from gewu.formats.numbers import real

Units = Literal["real", "metal"]
_ENERGY = {"real": KCAL, "metal": EV}
_VELOCITY = {"real": ANGSTROM * 1e3, "metal": ANGSTROM}
_ALLOWED = {
    "Bond Coeffs": "harmonic",
    "Angle Coeffs": "harmonic, charmm",
    "Dihedral Coeffs": "harmonic, charmm, charmmfsw, fourier, opls",
    "Improper Coeffs": "harmonic, cvff",
}


class _Entry(NamedTuple):
    """A term of a type: table, columns of the atoms that it takes, parameters."""

    table: str
    columns: tuple[int, ...]
    values: tuple[float, ...]


def _row(words: list[str], line: int, data: LammpsData, section: str, least: int, most: int) -> list[float]:
    """Return the numbers of a row of coefficients."""
    if not least <= len(words) <= most:
        allowed = f"{least}" if least == most else f"{least} to {most}"
        raise InputError(
            "wrong number of coefficients", file=data.file, line=line, key=section, value=" ".join(words), allowed=allowed
        )
    return [real(word, file=data.file, line=line, key=section) for word in words]


def _signed(values: list[float], energy: float, line: int, data: LammpsData, section: str) -> tuple[float, ...]:
    """Return (k, phase, n) of K [1 + d cos(n phi)], d = +1 or -1."""
    k, d, n = values
    if d not in (1.0, -1.0) or not n.is_integer() or not 0 <= n <= 6:
        raise InputError("K, d = 1 or -1, n expected", file=data.file, line=line, key=section, value=values)
    return k * energy, 0.0 if d > 0 else np.pi, n


def _dihedral(style: str, words: list[str], line: int, data: LammpsData, energy: float) -> list[_Entry]:
    """Return the terms of a type of dihedral."""
    section, every = "Dihedral Coeffs", (0, 1, 2, 3)
    if style == "harmonic":
        values = _row(words, line, data, section, 3, 3)
        return [_Entry("dihedrals", every, _signed(values, energy, line, data, section))]
    if style == "opls":
        f1, f2, f3, f4 = (energy * x for x in _row(words, line, data, section, 4, 4))
        ryckaert = (f2 + (f1 + f3) / 2, (3 * f3 - f1) / 2, 4 * f4 - f2, -2 * f3, -4 * f4, 0.0)
        return [_Entry("ryckaert", every, ryckaert)]
    values = _row(words, line, data, section, 4, 40)
    if style == "fourier":
        triples = values[1:]
        good = values[0] * 3 == len(triples)
    else:
        triples, good = values[:3], len(values) == 4
    periods = triples[1::3]
    if not good or any(not n.is_integer() or not 0 <= n <= 6 for n in periods):
        raise InputError("K, n, d expected", file=data.file, line=line, key=section, value=" ".join(words))
    found = [
        _Entry("dihedrals", every, (k * energy, float(np.radians(d)), n))
        for k, n, d in zip(triples[0::3], periods, triples[2::3], strict=True)
    ]
    weight = [_Entry("weight", (0, 3), (values[3],))] if style != "fourier" and values[3] else []
    return found + weight


def _entries(section: str, style: str, words: list[str], line: int, data: LammpsData, energy: float) -> list[_Entry]:
    """Return the terms that a type of bonded interaction stands for."""
    area = 2 * energy / ANGSTROM**2
    if section == "Bond Coeffs" and style == "harmonic":
        k, r = _row(words, line, data, section, 2, 2)
        return [_Entry("bonds", (0, 1), (area * k, r * ANGSTROM))]
    if section == "Angle Coeffs" and style in ("harmonic", "charmm"):
        values = _row(words, line, data, section, *((2, 2) if style == "harmonic" else (4, 4)))
        found = [_Entry("angles", (0, 1, 2), (2 * energy * values[0], float(np.radians(values[1]))))]
        if style == "charmm" and values[2]:
            found.append(_Entry("urey_bradley", (0, 2), (area * values[2], values[3] * ANGSTROM)))
        return found
    if section == "Dihedral Coeffs" and style in _ALLOWED[section].split(", "):
        return _dihedral(style, words, line, data, energy)
    if section == "Improper Coeffs" and style == "harmonic":
        k, angle = _row(words, line, data, section, 2, 2)
        if angle not in (0.0, 180.0):  # LAMMPS takes the angle without its sign there
            raise InputError("angle is 0 or 180 degrees", file=data.file, line=line, key=section, value=angle)
        return [_Entry("impropers", (0, 1, 2, 3), (2 * energy * k, float(np.radians(angle))))]
    if section == "Improper Coeffs" and style == "cvff":
        values = _row(words, line, data, section, 3, 3)
        return [_Entry("dihedrals", (0, 1, 2, 3), _signed(values, energy, line, data, section))]
    hint = f"write the style behind the section's name, as in `{section} # harmonic`"
    raise InputError("style is not supported", file=data.file, key=section, value=style, allowed=_ALLOWED[section], hint=hint)


def _bonded(data: LammpsData, energy: float) -> tuple[dict[str, Any], Index, Array]:
    """Return the tables of bonded terms, and 1-4 pairs with the weights that charmm dihedrals give them."""
    parts: dict[str, tuple[list[Any], list[Any]]] = {}
    for group, rows in data.groups.items():
        section = group.removesuffix("s") + " Coeffs"
        if not len(rows):
            continue
        coefficients = data.coefficients.get(section)
        if coefficients is None:
            raise InputError("section missing", file=data.file, key=section, hint=f"{group} need their coefficients")
        for kind, (line, words) in enumerate(coefficients.rows):
            chosen = rows[rows[:, 0] == kind, 1:]
            for entry in _entries(section, coefficients.style, words, line, data, energy):
                index, values = parts.setdefault(entry.table, ([], []))
                index.append(chosen[:, entry.columns])
                values.append(np.tile(np.array(entry.values), (len(chosen), 1)))
    tables: dict[str, Any] = {
        name: Terms(np.concatenate(i).astype(np.int32), np.concatenate(v)) for name, (i, v) in parts.items()
    }
    weight = tables.pop("weight", terms([], [], 2, 1))
    return tables, weight.index, weight.parameter[:, 0]


def _pair_rows(data: LammpsData, section: str, energy: float) -> tuple[Array, str]:
    """Return (epsilon, sigma, epsilon14, sigma14) for each row of pair coefficients, in this folder's units."""
    coefficients = data.coefficients[section]
    if coefficients.style and not coefficients.style.startswith("lj/"):
        raise InputError(
            "style is not supported", file=data.file, key=section, value=coefficients.style, allowed="lj/cut..., lj/charmm..."
        )
    values = [_row(words, line, data, section, 2, 5) for line, words in coefficients.rows]
    charmm = coefficients.style.startswith("lj/charmm")
    if charmm and any(len(row) != 4 for row in values):
        raise InputError("epsilon, sigma and both for 1-4 pairs expected", file=data.file, key=section)
    full = np.array([row[:4] if charmm else [*row[:2], *row[:2]] for row in values])
    if np.any(full < 0):
        raise InputError("negative coefficient", file=data.file, key=section)
    return full * (energy, ANGSTROM, energy, ANGSTROM), coefficients.style


def _lennard_jones(data: LammpsData, energy: float, mixing: Mixing | None) -> tuple[Array, Array, Array, Array]:
    """Return (sigma, epsilon, sigma14, epsilon14) of all pairs of types."""
    if "PairIJ Coeffs" in data.coefficients:
        rows, _ = _pair_rows(data, "PairIJ Coeffs", energy)
        n = data.counts["atom types"]
        upper = np.triu_indices(n)
        found = []
        for column in (1, 0, 3, 2):
            table = np.zeros((n, n))
            table[upper] = table.T[upper] = rows[:, column]
            found.append(table)
        return found[0], found[1], found[2], found[3]
    if "Pair Coeffs" not in data.coefficients:
        raise InputError("section missing", file=data.file, key="Pair Coeffs", hint="epsilon and sigma of each type")
    rows, style = _pair_rows(data, "Pair Coeffs", energy)
    rule = mixing or ("lorentz-berthelot" if style.startswith("lj/charmm") else "geometric")
    sigma, epsilon = mix(rows[:, 1], rows[:, 0], rule)
    return (sigma, epsilon, *mix(rows[:, 3], rows[:, 2], rule))


def _pairs14(index: NDArray[Any], charge: Array, kind: Index, weight: tuple[Any, Any], sigma: Array, epsilon: Array) -> Terms:
    """Return 1-4 pairs with weights of charges and of Lennard-Jones."""
    i, j = index[:, 0], index[:, 1]
    values = [charge[i] * charge[j] * weight[1], sigma[kind[i], kind[j]], epsilon[kind[i], kind[j]] * weight[0]]
    return terms(index, np.stack(values, axis=1), 2, 3)


def from_lammps(
    data: LammpsData,
    *,
    units: Units,
    mixing: Mixing | None = None,
    special_14: tuple[float, float] = (0.0, 0.0),
) -> System:
    """Return the system of a data file.

    Args:
        data: from `gewu.formats.lammps.read_lammps`.
        units: of the script: "real" (kcal/mol, fs) or "metal" (eV, ps).
        mixing: rule for unlike pairs; None: as LAMMPS, geometric, or Lorentz-Berthelot for lj/charmm styles.
        special_14: weights of Lennard-Jones and of charges in 1-4 pairs (`special_bonds`).

    Raises:
        InputError: coefficients that are missing or whose style is not supported.
    """
    if units not in _ENERGY:
        raise InputError("units not supported", file=data.file, key="units", value=units, allowed=", ".join(_ENERGY))
    energy, kind, n = _ENERGY[units], data.type_n.astype(np.int32), data.counts["atoms"]
    tables, weighted, weight = _bonded(data, energy)
    bonds = tables["bonds"].index if "bonds" in tables else np.zeros((0, 2), np.int32)
    sigma, epsilon, sigma14, epsilon14 = _lennard_jones(data, energy, mixing)
    near, nearer = within_bonds(bonds, n, 3), within_bonds(bonds, n, 2)
    keys, close = near[:, 0].astype(np.int64) * n + near[:, 1], nearer[:, 0].astype(np.int64) * n + nearer[:, 1]
    pairs = near[~np.isin(keys, close)]
    parts = [_pairs14(weighted, data.charge_n, kind, (weight, weight), sigma14, epsilon14)]
    if any(special_14):
        parts.append(_pairs14(pairs, data.charge_n, kind, special_14, sigma, epsilon))
    tables["pairs14"] = Terms(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    mass = data.mass_t[data.type_n]
    topology = Topology(
        mass_n=mass, charge_n=data.charge_n, type_n=kind,
        type_names=tuple(f"{t + 1}" for t in range(data.counts["atom types"])),
        element=elements_of(mass, ("",) * n, bonds), sigma_tt=sigma, epsilon_tt=epsilon,
        residue_n=(np.unique(data.molecule_n, return_inverse=True)[1]).astype(np.int32),
        molecule_n=molecules(bonds, n), exclusions=unique_pairs(np.concatenate([near, weighted])), **tables,
    )  # fmt: skip
    velocity = None if data.velocity_n3 is None else data.velocity_n3 * _VELOCITY[units]
    return new_system(topology, data.position_n3 * ANGSTROM, velocity, data.cell * ANGSTROM, data.file)
