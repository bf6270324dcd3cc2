"""Damaged and unsupported inputs of molecular dynamics: each is refused with an `InputError` that says where and what."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import netcdf_file

from gewu.core.errors import InputError
from gewu.formats.amber import read_prmtop, read_rst7
from gewu.formats.dcd import DcdWriter, read_dcd
from gewu.formats.forcefield import from_amber, from_gromacs, from_lammps
from gewu.formats.gromacs import read_gro, read_top
from gewu.formats.h5md import H5mdWriter, read_h5md
from gewu.formats.lammps import read_lammps
from gewu.formats.pdb import read_mmcif, read_pdb
from gewu.physics.md.state import new_state
from tests.data import md_synthetic as synthetic
from tests.faults.faultlib import Killer, mutations


def _system(found: Any) -> None:
    """Ask of a system what a run asks first."""
    if found.position_n3 is not None:
        box = np.eye(3) if found.box_33 is None else found.box_33
        new_state(found.topology, found.position_n3, box, periodic=found.box_33 is not None)


def _prmtop(path: Path) -> None:
    _system(from_amber(read_prmtop(path)))


def _top(path: Path) -> None:
    (path.parent / "chain.itp").write_text(synthetic.itp_text())
    _system(from_gromacs(read_top(path)))


def _itp(path: Path) -> None:
    (path.parent / "whole.top").write_text(synthetic.top_text())
    path.rename(path.parent / "chain.itp")
    _system(from_gromacs(read_top(path.parent / "whole.top")))


def _lammps(path: Path) -> None:
    _system(from_lammps(read_lammps(path), units="real"))


def _netcdf_bytes(folder: Path) -> bytes:
    with netcdf_file(folder / "made.ncrst", "w", version=2) as store:
        store.Conventions = b"AMBERRESTART"
        store.createDimension("atom", 8)
        store.createDimension("spatial", 3)
        store.createVariable("coordinates", "d", ("atom", "spatial"))[:] = synthetic.POSITION
        store.createVariable("cell_lengths", "d", ("spatial",))[:] = synthetic.BOX
        store.createVariable("cell_angles", "d", ("spatial",))[:] = [90.0, 90.0, 90.0]
    return (folder / "made.ncrst").read_bytes()


def _dcd_bytes(folder: Path) -> bytes:
    with DcdWriter(folder / "made.dcd", 4) as writer:
        for k in range(3):
            writer.append(np.full((4, 3), k + 0.5), np.diag([20.0, 21.0, 22.0]))
    return (folder / "made.dcd").read_bytes()


def _h5md_bytes(folder: Path) -> bytes:
    with H5mdWriter(folder / "made.h5md", ["O"] * 4) as writer:
        for k in range(3):
            writer.append(k, 0.1 * k, np.full((4, 3), k + 0.5), None, np.diag([2.0, 2.1, 2.2]))
    return (folder / "made.h5md").read_bytes()


Make = Callable[[Path], bytes]
FORMATS: dict[str, tuple[Make, Callable[[Path], Any], int]] = {
    "prmtop": (lambda _: synthetic.prmtop_text().encode(), _prmtop, 200),
    "rst7": (lambda _: synthetic.inpcrd_text(velocities=True).encode(), read_rst7, 200),
    "ncrst": (_netcdf_bytes, read_rst7, 200),
    "top": (lambda _: synthetic.top_text().encode(), _top, 200),
    "itp": (lambda _: synthetic.itp_text().encode(), _itp, 200),
    "gro": (lambda _: synthetic.gro_text().encode(), read_gro, 200),
    "data": (lambda _: synthetic.lammps_text().encode(), _lammps, 200),
    "pdb": (lambda _: synthetic.PDB_TEXT.encode(), read_pdb, 200),
    "cif": (lambda _: synthetic.MMCIF_TEXT.encode(), read_mmcif, 200),
    "dcd": (_dcd_bytes, read_dcd, 200),
    "h5md": (_h5md_bytes, read_h5md, 60),  # HDF5 itself parses the file; each opening costs milliseconds
}


def outcome(read: Callable[[Path], Any], path: Path) -> InputError | None:
    """Return the refusal, if it was one; any other exception fails the test."""
    try:
        read(path)
    except InputError as error:
        return error
    return None


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_damaged_files_are_refused_or_valid(kind: str, tmp_path: Path) -> None:
    make, read, count = FORMATS[kind]
    data = make(tmp_path)
    path = tmp_path / f"damaged.{kind}"
    path.write_bytes(data)
    read(path)  # sound as it is
    refused = 0
    for damaged in mutations(data, count, zlib.crc32(kind.encode())):
        path.write_bytes(damaged)
        error = outcome(read, path)
        if error is not None:
            refused += 1
            assert error.file is not None or error.key is not None, str(error)
    assert refused > count // 5  # a quarter are cut short; a flipped digit is often another valid number


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_empty_and_missing_files_are_refused(kind: str, tmp_path: Path) -> None:
    read = FORMATS[kind][1]
    path = tmp_path / f"empty.{kind}"
    for content in (b"", b"\n", b"\x00\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(InputError):
            read(path)
    if kind not in ("itp",):  # the helper renames it
        path.unlink()
        with pytest.raises(InputError):
            read(path)


WRITE = """
import sys
import numpy as np
from gewu.formats.dcd import DcdWriter
from gewu.formats.h5md import H5mdWriter
path, kind = sys.argv[1:]
writer = DcdWriter(path, 500) if kind == "dcd" else H5mdWriter(path, ["O"] * 500)
for k in range(100000):
    frame, box = np.full((500, 3), float(k)), np.eye(3) * (k + 1)
    writer.append(frame, box) if kind == "dcd" else writer.append(k, float(k), frame, None, box)
    print("frame", k, flush=True)
"""


@pytest.mark.parametrize("kind", ["dcd", "h5md"])
def test_a_trajectory_of_a_killed_run_is_cut_back_and_goes_on(kind: str, tmp_path: Path) -> None:
    path, killer = tmp_path / f"a.{kind}", Killer(7, 0.01)
    for _ in range(3):
        killed = killer.strike([sys.executable, "-c", WRITE, str(path), kind], "frame 8")
        assert killed.returncode == -9, killed.errors
        if kind == "dcd":
            with DcdWriter(path, 500, frames=5) as writer:
                writer.append(np.full((500, 3), 5.0), np.eye(3) * 6)
            found = read_dcd(path).position_fn3
        else:
            assert len(read_h5md(path).step_f) >= 9  # readable as the kill left it
            with H5mdWriter(path, ["O"] * 500, frames=5) as store:
                store.append(5, 5.0, np.full((500, 3), 5.0), None, np.eye(3) * 6)
            found = read_h5md(path).position_fn3
        np.testing.assert_array_equal(found, np.arange(6.0)[:, None, None] * np.ones((1, 500, 3)))


def refuse(path: Path, text: str, read: Callable[[Path], Any]) -> InputError:
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read(path)
    return caught.value


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"LENNARD_JONES_CCOEF": ("5E16.8", [1.0] * 6)}, "LENNARD_JONES_CCOEF"),
        ({"IPOL": ("10I8", [1])}, "IPOL"),
        ({"LES_TYPE": ("10I8", [1])}, "LES_TYPE"),
        ({"CAP_INFO": ("10I8", [1])}, "CAP_INFO"),
        ({"LENNARD_JONES_ACOEF": ("5E16.8", [-1.0] * 6)}, "LENNARD_JONES_ACOEF"),
        ({"SCEE_SCALE_FACTOR": ("5E16.8", [0.0, 0.0])}, "SCEE_SCALE_FACTOR"),
        ({"RESIDUE_POINTER": ("10I8", [1, 9])}, "RESIDUE_POINTER"),
        ({"BONDS_WITHOUT_HYDROGEN": ("10I8", [0, 3, 1, 3, 6, 1, 6, 24, 2])}, "BONDS"),
        ({"CHARGE": ("5E16.8", [0.0] * 7)}, "CHARGE"),
        ({"MASS": ("5E16.8", [float("nan")] * 8)}, "MASS"),
        ({"MASS": ("5E16.8", [0.0, *synthetic.MASS[1:]])}, "atom 1 C1"),
        ({"CMAP_INDEX": ("10I8", [1, 2, 3, 4, 5, 1])}, "CMAP_COUNT"),
    ],
)
def test_unsupported_or_wrong_sections_of_a_prmtop_are_named(extra: dict[str, Any], named: str, tmp_path: Path) -> None:
    error = refuse(tmp_path / "a.prmtop", synthetic.prmtop_text(extra), _prmtop)
    assert named in str(error) and "a.prmtop" in str(error)


@pytest.mark.parametrize(("at", "value", "named"), [(20, 1, "IFPERT"), (29, 1, "IFCAP"), (9, 1, "NPARM"), (0, -4, "NATOM")])
def test_pointers_that_mean_other_physics_are_named(at: int, value: int, named: str, tmp_path: Path) -> None:
    pointers = list(synthetic.prmtop_sections()["POINTERS"][1])
    pointers[at] = value
    error = refuse(tmp_path / "a.prmtop", synthetic.prmtop_text({"POINTERS": ("10I8", pointers)}), read_prmtop)
    assert named in str(error)


def test_hydrogen_bond_terms_are_refused_unless_zero(tmp_path: Path) -> None:
    pointers = list(synthetic.prmtop_sections()["POINTERS"][1])
    pointers[19] = 1
    for value in (0.0, 7557.0):
        extra = {"POINTERS": ("10I8", pointers), "HBOND_ACOEF": ("5E16.8", [value]), "HBOND_BCOEF": ("5E16.8", [0.0])}
        extra["NONBONDED_PARM_INDEX"] = ("10I8", [1, -1, 4, -1, 3, 5, 4, 5, 6])
        text = synthetic.prmtop_text(extra)  # type: ignore[arg-type]
        if value:
            assert "10-12" in str(refuse(tmp_path / "a.prmtop", text, read_prmtop))
        else:
            (tmp_path / "a.prmtop").write_text(text)
            assert from_amber(read_prmtop(tmp_path / "a.prmtop")).topology.epsilon_tt[0, 1] == 0.0


@pytest.mark.parametrize("flag", ["MASS", "LENNARD_JONES_BCOEF", "EXCLUDED_ATOMS_LIST", "DIHEDRALS_WITHOUT_HYDROGEN", "POINTERS"])
def test_missing_sections_of_a_prmtop_are_named(flag: str, tmp_path: Path) -> None:
    error = refuse(tmp_path / "a.prmtop", synthetic.prmtop_text(without=[flag]), read_prmtop)
    assert error.key == flag


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("CT CT 1 0.1526", "CT OH 1 0.1526", "no parameters for CT CT, function 1"),
        ("OH CT CT 1 108.5", "OH OH CT 1 108.5", "no parameters for CT CT OH, function 1"),
        ("1 2 3 4 9\n", "1 2 3 4 8\n", "function 8 is not supported"),
        ("1 2 3 1\n", "1 2 3 2\n", "function 2 is not supported"),
        ("[ pairs ]", "[ position_restraints ]", "section is not supported"),
        ("1 2 yes 0.4 0.8", "2 2 yes 0.4 0.8", "Buckingham"),
        ("1 2 yes 0.4 0.8", "1 2 no 0.4 0.8", "gen-pairs is no"),
        ("1 CT 1 CHN C1 1  0.1", "1 CX 1 CHN C1 1  0.1", "type CX is not in [ atomtypes ]"),
        ("2 3 1\n3 4", "2 9 1\n3 4", "out of range"),
        ("2 3 1\n3 4", "2 2 1\n3 4", "twice"),
        ("1  0.1\n", "1  nan\n", "not a finite number"),
        ("3 4 1 gb_co", "3 4 1 gb_cx", "not a finite number"),
        ("[ bonds ]", "#ifdef X\n[ bonds ]", "#endif"),
        ("[ bonds ]", "#if X\n[ bonds ]", "#if X"),
    ],
)
def test_what_a_gromacs_topology_lacks_is_named_with_its_line(old: str, new: str, named: str, tmp_path: Path) -> None:
    text = synthetic.itp_text()
    assert old in text
    error = refuse(tmp_path / "x.itp", text.replace(old, new, 1), _itp)
    assert named in str(error) and error.line is not None and str(error.file).endswith("chain.itp")


@pytest.mark.parametrize("name", ["missing.itp", "../outside.itp", "/etc/hostname", "x.top"])
def test_includes_stay_in_the_folder_and_end(name: str, tmp_path: Path) -> None:
    (tmp_path / "outside.itp").write_text(synthetic.itp_text())
    folder = tmp_path / "job"
    folder.mkdir()
    error = refuse(folder / "x.top", synthetic.top_text().replace("chain.itp", name), read_top)
    assert "include" in str(error)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("Angle Coeffs # harmonic", "Angle Coeffs # cosine", "cosine"),
        ("Angle Coeffs # harmonic", "Angle Coeffs", "style"),
        ("Pair Coeffs # lj/cut/coul/long", "Pair Coeffs # buck", "buck"),
        ("Velocities", "Ellipsoids", "Ellipsoids"),
        ("Atoms # full", "Atoms # sphere", "sphere"),
        ("4 atoms", "5 atoms", "Atoms"),
        ("3 bonds", "2 bonds", "Bonds"),
        ("3 2 3 4", "3 2 3 7", "no such atom"),
        ("0.0 21.0 ylo yhi", "0.0 -1.0 ylo yhi", "bounds"),
        ("0.0 21.0 ylo yhi\n", "", "bounds"),
        ("2 15.999", "2 nan", "not a finite number"),
        ("2 320.0 1.41\n", "", "Bond Coeffs"),
        ("Masses\n\n1 12.011\n2 15.999\n", "", "Masses"),
        ("4 atoms", "4 atoms\n2 ellipsoids", "header line"),
    ],
)
def test_what_a_lammps_file_lacks_is_named(old: str, new: str, named: str, tmp_path: Path) -> None:
    text = synthetic.lammps_text()
    assert old in text
    error = refuse(tmp_path / "a.data", text.replace(old, new, 1), _lammps)
    assert named in str(error) and str(error.file).endswith("a.data")


@pytest.mark.parametrize(
    ("kind", "old", "new", "named"),
    [
        ("gro", "   0.100   0.100", "     nan   0.100", "3"),
        ("gro", "8\n", "9\n", "2"),
        ("pdb", "   1.000   1.000   1.000", "     NaN   1.000   1.000", "4"),
        ("pdb", "ENDMDL\n", "", "model does not end"),
        ("cif", "2.4 1.1 1.2", "2.4 ? 1.2", "24"),
        ("cif", "ATOM 2 C", "ATOM 2 Xx", "unknown element"),
        ("rst7", "   1.0000000", "         NaN", "3"),
        ("rst7", "    8  0.1", "    9  0.1", "lines do not end"),
        ("rst7", "  20.0000000", " -20.0000000", "box"),
    ],
)
def test_wrong_numbers_of_coordinate_files_are_named(kind: str, old: str, new: str, named: str, tmp_path: Path) -> None:
    make, read, _ = FORMATS[kind]
    text = make(tmp_path).decode()
    assert (old if kind != "gro" or "." not in old else "   0.1000   0.1000") in text
    old, new = (old, new) if kind != "gro" or "." not in old else ("   0.1000   0.1000", "      nan   0.1000")
    error = refuse(
        tmp_path / f"a.{kind}", text.replace(old, new) if kind == "pdb" and not new else text.replace(old, new, 1), read
    )
    assert named in str(error)


def test_coordinates_for_another_number_of_atoms_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.prmtop").write_text(synthetic.prmtop_text())
    rows = synthetic.gro_text().split("\n")
    (tmp_path / "a.gro").write_text("\n".join([rows[0], "7", *rows[2:9], *rows[10:]]))
    (tmp_path / "chain.itp").write_text(synthetic.itp_text())
    (tmp_path / "a.top").write_text(synthetic.top_text())
    with pytest.raises(InputError, match="another number of atoms"):
        from_gromacs(read_top(tmp_path / "a.top"), read_gro(tmp_path / "a.gro"))
