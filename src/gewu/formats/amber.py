"""Read AMBER parameter/topology files (prmtop) and coordinates (inpcrd and rst7 text, NetCDF restart).

A prmtop is a sequence of sections: `%FLAG NAME`, `%FORMAT(5E16.8)`, then numbers or names in columns of fixed width. Every known
section is checked against the counts of `POINTERS`; sections with physics that gewu does not
compute are refused by name.
Values stay in AMBER's units (angstrom, kcal/mol, degrees for angles of the box, radians elsewhere, charges times 18.2223).
References: "AMBER file formats", ambermd.org/FileFormats.php; D. S. Cerutti & J. Swails, "prmtop" (2013).
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import read_capped
from gewu.formats.numbers import integer, read_whole_text, real, reals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

LIMIT_BYTES = 2_000_000_000
MAX_ATOMS = 10_000_000
AMBER_VELOCITY = 20.455
"""Velocities in AMBER restarts are in angstrom per 1/20.455 ps."""
_NAMES = """NATOM NTYPES NBONH MBONA NTHETH MTHETA NPHIH MPHIA NHPARM NPARM NNB NRES NBONA NTHETA NPHIA NUMBND NUMANG NPTRA
    NATYP NPHB IFPERT NBPER NGPER NDPER MBPER MGPER MDPER IFBOX NMXRS IFCAP NUMEXTRA"""
_POINTERS = tuple(_NAMES.split())
_FORMAT = re.compile(r"%FORMAT\(\s*(\d{1,3})\s*\(?([aAiIeEfF])\s*(\d{1,2})(?:\.\d{1,2})?\)?\s*\)\s*")
_PROSE = ("TITLE", "CTITLE", "FORCE_FIELD_TYPE")
_DIGITS = re.compile(r"[0-9+\-\s]*", re.ASCII)
_SIZES = {
    "ATOM_NAME": "NATOM", "CHARGE": "NATOM", "MASS": "NATOM", "ATOM_TYPE_INDEX": "NATOM", "NUMBER_EXCLUDED_ATOMS": "NATOM",
    "AMBER_ATOM_TYPE": "NATOM", "RESIDUE_LABEL": "NRES", "RESIDUE_POINTER": "NRES", "EXCLUDED_ATOMS_LIST": "NNB",
    "BOND_FORCE_CONSTANT": "NUMBND", "BOND_EQUIL_VALUE": "NUMBND", "ANGLE_FORCE_CONSTANT": "NUMANG",
    "ANGLE_EQUIL_VALUE": "NUMANG", "DIHEDRAL_FORCE_CONSTANT": "NPTRA", "DIHEDRAL_PERIODICITY": "NPTRA",
    "DIHEDRAL_PHASE": "NPTRA", "NONBONDED_PARM_INDEX": "NTYPES^2", "LENNARD_JONES_ACOEF": "TRIANGLE",
    "LENNARD_JONES_BCOEF": "TRIANGLE", "BONDS_INC_HYDROGEN": "3 NBONH", "BONDS_WITHOUT_HYDROGEN": "3 NBONA",
    "ANGLES_INC_HYDROGEN": "4 NTHETH", "ANGLES_WITHOUT_HYDROGEN": "4 NTHETA", "DIHEDRALS_INC_HYDROGEN": "5 NPHIH",
    "DIHEDRALS_WITHOUT_HYDROGEN": "5 NPHIA",
}  # fmt: skip
_OPTIONAL_SIZES = {
    "ATOMIC_NUMBER": "NATOM", "SCEE_SCALE_FACTOR": "NPTRA", "SCNB_SCALE_FACTOR": "NPTRA", "HBOND_ACOEF": "NPHB",
    "HBOND_BCOEF": "NPHB", "LENNARD_JONES_14_ACOEF": "TRIANGLE", "LENNARD_JONES_14_BCOEF": "TRIANGLE",
}  # fmt: skip
_PHYSICS = {
    "LENNARD_JONES_CCOEF": "the 12-6-4 ion model",
    "LENNARD_JONES_DCOEF": "a modified 12-6-4 model",
    "POLARIZABILITY": "polarisable dipoles",
    "LES_TYPE": "locally enhanced sampling",
    "PERT_BOND_ATOMS": "perturbed (thermodynamic integration) topologies",
    "CAP_INFO": "a solvent cap",
    "AMOEBA_FORCEFIELD": "the AMOEBA force field",
}
_COEFFICIENTS = ("LENNARD_JONES_CCOEF", "LENNARD_JONES_DCOEF", "HBOND_ACOEF", "HBOND_BCOEF", "POLARIZABILITY")
_GROUPS = (("BONDS", 2, "NUMBND"), ("ANGLES", 3, "NUMANG"), ("DIHEDRALS", 4, "NPTRA"))


@dataclass(frozen=True, eq=False)
class Prmtop:
    """A checked parameter/topology file.

    Args:
        file: its name.
        pointers: the counts by name (NATOM ...).
        section: arrays by flag, float64, int64 or text, as the file holds them.
    """

    file: str
    pointers: dict[str, int]
    section: dict[str, NDArray[Any]]

    def terms(self, kind: str) -> NDArray[np.int64]:
        """Return BONDS, ANGLES or DIHEDRALS, with hydrogen first: rows of signed coordinate offsets (3 x atom) and a type."""
        width = {"BONDS": 3, "ANGLES": 4, "DIHEDRALS": 5}[kind]
        both = [self.section[f"{kind}_{what}_HYDROGEN"] for what in ("INC", "WITHOUT")]
        return np.asarray(np.concatenate(both).reshape(-1, width), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class AmberCoordinates:
    """Coordinates of a restart file: angstrom, angstrom/ps, box lengths (angstrom) and angles (degrees) or None."""

    position_n3: Array
    velocity_n3: Array | None
    box_lengths: Array | None
    box_angles: Array | None


def _parse(flag: str, kind: str, width: int, rows: list[str], line: int, file: str) -> NDArray[Any]:
    """Return the values of a section whose data starts at `line`."""
    fields = [row[at : at + width] for row in rows for at in range(0, len(row.rstrip()), width)]
    if kind == "A":
        return np.array([field.strip() for field in fields], dtype=np.str_)
    for offset, row in enumerate(rows):
        if any(not row[at : at + width].strip() for at in range(0, len(row.rstrip()), width)):
            raise InputError("blank column", file=file, line=line + offset, key=flag, value=row)
    text = "\n".join(" ".join(row[at : at + width] for at in range(0, len(row.rstrip()), width)) for row in rows)
    if kind == "E" or kind == "F":
        return reals(text, file=file, line=line, key=flag)
    if _DIGITS.fullmatch(text):
        try:
            return np.array(text.split(), dtype=np.int64)
        except (ValueError, OverflowError):
            pass
    numbered = ((line + offset, word) for offset, row in enumerate(text.split("\n")) for word in row.split())
    return np.array([integer(word, file=file, line=at, key=flag) for at, word in numbered], dtype=np.int64)


def _sections(path: str | Path) -> dict[str, NDArray[Any]]:
    """Split the file into sections and parse them."""
    file, rows = str(path), read_whole_text(path, LIMIT_BYTES).split("\n")
    if not rows[0].startswith("%VERSION"):
        hint = "prmtop files of AMBER 7 and later begin with %VERSION"
        raise InputError("is not a prmtop", file=file, line=1, value=rows[0][:40], hint=hint)
    heads = [n for n, row in enumerate(rows) if row.startswith("%FLAG")] + [len(rows)]
    found: dict[str, NDArray[Any]] = {}
    for begin, end in pairwise(heads):
        flag, at = rows[begin][5:].strip(), begin + 1
        while at < end and rows[at].startswith("%COMMENT"):
            at += 1
        if flag in _PROSE:
            continue
        form = _FORMAT.fullmatch(rows[at].strip()) if at < end else None
        if form is None or int(form.group(3)) == 0:
            raise InputError("%FORMAT expected", file=file, line=at + 1, key=flag, value=rows[at] if at < len(rows) else None)
        if flag in found:
            raise InputError("section stands twice", file=file, line=begin + 1, key=flag)
        data = rows[at + 1 : end]
        while data and not data[-1].strip():
            data.pop()
        found[flag] = _parse(flag, form.group(2).upper(), int(form.group(3)), data, at + 2, file)
    return found


def _pointers(section: dict[str, NDArray[Any]], file: str) -> dict[str, int]:
    """Return the counts by name, plausible ones."""
    values = section.get("POINTERS")
    if values is None or len(values) < 30 or values.dtype != np.int64:
        raise InputError("section missing or too short", file=file, key="POINTERS", allowed="30 integers or more")
    pointers = dict(zip(_POINTERS, map(int, [*values, 0]), strict=False))
    bad = [name for name, value in pointers.items() if not 0 <= value <= 20 * MAX_ATOMS]
    if bad or not 1 <= pointers["NATOM"] <= MAX_ATOMS or not 1 <= pointers["NTYPES"] <= 2000:
        name = bad[0] if bad else "NATOM or NTYPES"
        raise InputError("count out of range", file=file, key=f"POINTERS {name}", value=pointers.get(name, pointers["NATOM"]))
    pointers["NTYPES^2"] = pointers["NTYPES"] ** 2
    pointers["TRIANGLE"] = pointers["NTYPES"] * (pointers["NTYPES"] + 1) // 2
    return pointers


def _check_physics(section: dict[str, NDArray[Any]], pointers: dict[str, int], file: str) -> None:
    """Refuse, by name, sections with physics that would be left out."""
    for flag, what in _PHYSICS.items():
        if flag in section and (flag not in _COEFFICIENTS or np.any(section[flag] != 0)):
            raise InputError("section is not supported", file=file, key=flag, value=what)
    for flag in ("HBOND_ACOEF", "HBOND_BCOEF"):
        if flag in section and np.any(section[flag] != 0):
            raise InputError("10-12 hydrogen bond terms are not supported", file=file, key=flag, allowed="zeros")
    if "IPOL" in section and np.any(section["IPOL"] != 0):
        raise InputError("polarisable force fields are not supported", file=file, key="IPOL", allowed="0")
    for name, what in (("IFPERT", "perturbed topology"), ("IFCAP", "solvent cap"), ("NPARM", "locally enhanced sampling")):
        if pointers[name]:
            raise InputError(f"{what} is not supported", file=file, key=f"POINTERS {name}", value=pointers[name], allowed="0")


def _check_sizes(section: dict[str, NDArray[Any]], pointers: dict[str, int], file: str) -> None:
    """Refuse a section that is missing, or holds another number of values than `POINTERS` says."""
    for flag, size in (_SIZES | _OPTIONAL_SIZES).items():
        factor, _, name = size.rpartition(" ")
        expected = int(factor or 1) * pointers[name]
        if flag not in section:
            if flag in _SIZES:
                raise InputError("section missing", file=file, key=flag, hint="the file may be truncated")
            continue
        if len(section[flag]) != expected and not (section[flag].dtype.kind == "U" and not expected):
            raise InputError("wrong number of values", file=file, key=flag, value=len(section[flag]), allowed=f"{expected}")
        names = flag in ("ATOM_NAME", "AMBER_ATOM_TYPE", "RESIDUE_LABEL")
        whole = flag.endswith(("_INDEX", "_LIST", "_POINTER", "_ATOMS", "HYDROGEN", "ATOMIC_NUMBER"))
        wanted = "U" if names else "i" if whole else "f"
        if section[flag].dtype.kind != wanted:
            allowed = {"U": "names", "i": "integers", "f": "numbers"}[wanted]
            raise InputError("wrong kind of values", file=file, key=flag, allowed=allowed)


def _check_range(values: NDArray[Any], low: int, high: int, flag: str, file: str) -> None:
    """Refuse the first index outside low..high."""
    bad = np.flatnonzero((values < low) | (values > high))
    if bad.size:
        raise InputError(
            f"index {bad[0] + 1} out of range", file=file, key=flag, value=int(values[bad[0]]), allowed=f"{low} to {high}"
        )


def _check_indices(top: Prmtop) -> None:
    """Refuse indices of atoms, types and parameters that point nowhere."""
    section, pointers, file = top.section, top.pointers, top.file
    n, types = pointers["NATOM"], pointers["NTYPES"]
    _check_range(section["ATOM_TYPE_INDEX"], 1, types, "ATOM_TYPE_INDEX", file)
    _check_range(section["NONBONDED_PARM_INDEX"], -pointers["NPHB"], pointers["TRIANGLE"], "NONBONDED_PARM_INDEX", file)
    _check_range(section["EXCLUDED_ATOMS_LIST"], 0, n, "EXCLUDED_ATOMS_LIST", file)
    _check_range(section["NUMBER_EXCLUDED_ATOMS"], 0, n, "NUMBER_EXCLUDED_ATOMS", file)
    if section["NUMBER_EXCLUDED_ATOMS"].sum() != pointers["NNB"]:
        raise InputError("counts do not add up to the length of EXCLUDED_ATOMS_LIST", file=file, key="NUMBER_EXCLUDED_ATOMS")
    first = section["RESIDUE_POINTER"]
    if len(first) == 0 or first[0] != 1 or np.any(np.diff(first) <= 0) or first[-1] > n:
        raise InputError("first atoms of residues do not rise from 1", file=file, key="RESIDUE_POINTER")
    if np.any(section["MASS"] < 0):
        raise InputError("negative mass", file=file, key="MASS", value=float(section["MASS"].min()))
    for kind, atoms, parameters in _GROUPS:
        rows = top.terms(kind)
        offsets = np.abs(rows[:, :atoms])
        _check_range(offsets.ravel(), 0, 3 * n - 3, kind, file)
        _check_range(rows[:, atoms], 1, pointers[parameters], f"{kind}: type", file)
        if np.any(offsets % 3):
            raise InputError("offset of an atom is not a multiple of 3", file=file, key=kind)
        ordered = np.sort(offsets, axis=1)
        if np.any(ordered[:, 1:] == ordered[:, :-1]):
            raise InputError("an atom stands twice in one term", file=file, key=kind)
    if len(rows) and np.any(rows[:, :2] < 0):
        raise InputError("negative offset of the first or second atom", file=file, key="DIHEDRALS")


def read_prmtop(path: str | Path) -> Prmtop:
    """Read an AMBER parameter/topology file.

    Raises:
        InputError: with file and line or section, for damaged files and for physics that is not supported.
    """
    file = str(path)
    section = _sections(path)
    pointers = _pointers(section, file)
    _check_physics(section, pointers, file)
    _check_sizes(section, pointers, file)
    top = Prmtop(file, pointers, section)
    _check_indices(top)
    return top


def _box(values: Array, file: str) -> tuple[Array, Array]:
    """Return lengths and angles, checked."""
    lengths, angles = values[:3], values[3:] if len(values) == 6 else np.full(3, 90.0)
    if not np.isfinite(values).all() or np.any(lengths <= 0) or np.any((angles <= 1) | (angles >= 179)):
        raise InputError("box is not usable", file=file, key="box", value=values.tolist())
    return lengths, angles


def read_rst7(path: str | Path) -> AmberCoordinates:
    """Read an inpcrd or rst7 file, text or NetCDF.

    Raises:
        InputError: with file and line, for damaged files.
    """
    data = read_capped(path, LIMIT_BYTES)
    if data[:3] == b"CDF":
        return _read_netcdf(data, str(path))
    if data[:4] == b"\x89HDF":
        raise InputError("NetCDF-4 restarts are not supported", file=path, hint="AMBER itself writes NetCDF-3 (classic)")
    file, rows = str(path), read_whole_text(path, LIMIT_BYTES).rstrip("\n").split("\n")
    head = rows[1].split() if len(rows) > 1 else []
    if not head:
        raise InputError("number of atoms missing", file=file, line=2, hint="the file may be truncated")
    n = integer(head[0], file=file, line=2, key="number of atoms")
    if not 1 <= n <= MAX_ATOMS:
        raise InputError("number of atoms out of range", file=file, line=2, value=n, allowed=f"1 to {MAX_ATOMS}")
    if len(head) > 1:
        real(head[1], file=file, line=2, key="time")
    values, widths = _fixed_columns(rows[2:], file)
    found = {6 * n: (True, 0), 6 * n + 3: (True, 3), 6 * n + 6: (True, 6)}
    found |= {3 * n: (False, 0), 3 * n + 3: (False, 3), 3 * n + 6: (False, 6)}  # one or two atoms: rather a box than velocities
    if len(values) not in found:
        allowed = f"{3 * n} positions, perhaps {3 * n} velocities, perhaps a box of 3 or 6"
        raise InputError("wrong number of values", file=file, line=len(rows), value=len(values), allowed=allowed)
    moving, sides = found[len(values)]
    blocks = [3 * n] * (1 + moving) + [sides] * (sides > 0)  # each begins a new line
    if widths != [min(6, block - at) for block in blocks for at in range(0, block, 6)]:
        raise InputError("lines do not end where positions, velocities and box do", file=file, key="number of atoms", value=n)
    lengths, angles = _box(values[len(values) - sides :], file) if sides else (None, None)
    velocity = values[3 * n : 6 * n].reshape(-1, 3) * AMBER_VELOCITY if moving else None
    return AmberCoordinates(values[: 3 * n].reshape(-1, 3), velocity, lengths, angles)


def _fixed_columns(rows: list[str], file: str) -> tuple[Array, list[int]]:
    """Return the numbers of rows of six columns, 12 characters each, and how many stand in each row."""
    text = "\n".join(" ".join(row[at : at + 12] for at in range(0, len(row.rstrip()), 12)) for row in rows)
    for number, row in enumerate(rows, start=3):
        if len(row.rstrip()) % 12 or len(row.rstrip()) > 72:
            raise InputError("columns of 12 characters expected", file=file, line=number, value=row)
    return reals(text, file=file, line=3, key="coordinates"), [len(row.rstrip()) // 12 for row in rows]


def _read_netcdf(data: bytes, file: str) -> AmberCoordinates:
    """Read a restart in NetCDF-3 (convention AMBERRESTART); of a trajectory (AMBER), refuse by name."""
    from scipy.io import netcdf_file

    arrays: dict[str, Array] = {}
    try:
        with netcdf_file(io.BytesIO(data), "r", mmap=False) as store:
            convention = bytes(getattr(store, "Conventions", b""))
            for name in ("coordinates", "velocities", "cell_lengths", "cell_angles"):
                if name in store.variables:
                    variable = store.variables[name]
                    factor = float(getattr(variable, "scale_factor", 1.0))
                    arrays[name] = np.array(variable[:], dtype=np.float64) * factor
    except Exception as error:  # the library raises whatever a damaged header leads to
        raise InputError(f"is not a readable NetCDF-3 file: {type(error).__name__}", file=file) from error
    if b"AMBERRESTART" not in convention:
        raise InputError("is not an AMBER restart", file=file, key="Conventions", value=convention, allowed="AMBERRESTART")
    position = arrays.get("coordinates")
    if position is None or position.ndim != 2 or position.shape[1] != 3 or not len(position):
        raise InputError("coordinates missing or of a wrong shape", file=file, key="coordinates")
    velocity = arrays.get("velocities")
    if velocity is not None and velocity.shape != position.shape:
        raise InputError("velocities of a wrong shape", file=file, key="velocities", value=velocity.shape)
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise InputError("not a finite number", file=file, key=name)
    if "cell_lengths" not in arrays:
        return AmberCoordinates(position, velocity, None, None)
    lengths, angles = arrays["cell_lengths"].ravel(), arrays.get("cell_angles", np.full(3, 90.0)).ravel()
    if lengths.shape != (3,) or angles.shape != (3,):
        raise InputError("box of a wrong shape", file=file, key="cell_lengths")
    return AmberCoordinates(position, velocity, *_box(np.concatenate([lengths, angles]), file))
