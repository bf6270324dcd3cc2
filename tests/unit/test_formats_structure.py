"""Structures: what `Structure` refuses, and the CIF, POSCAR, extxyz and cube formats."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import spglib

from gewu.core.errors import InputError
from gewu.core.units import BOHR_ANGSTROM
from gewu.formats import Structure, read_structure
from gewu.formats.cif import read_cif
from gewu.formats.cube import cube_bytes
from gewu.formats.elements import ATOMIC_NUMBER, COVALENT_RADIUS_ANGSTROM, MASS_U, SYMBOLS, symbol_of
from gewu.formats.extxyz import extxyz_bytes, read_extxyz
from gewu.formats.poscar import read_poscar
from gewu.formats.symmetry import find_setting, operations_of_setting, parse_operation, quiet_spglib

FCC = 2.715 * np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
SILICON = Structure(FCC, ("Si", "Si"), np.array([[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]]), "silicon")


def group_of(structure: Structure) -> int:
    numbers = [ATOMIC_NUMBER[symbol] for symbol in structure.symbols]
    with quiet_spglib():
        found = spglib.get_symmetry_dataset((structure.cell_angstrom, structure.frac_n3, numbers), symprec=1e-5)
    assert found is not None
    return int(found.number)


def write(tmp_path: Path, text: str, name: str) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_elements_table() -> None:
    assert (len(SYMBOLS), ATOMIC_NUMBER["Si"], ATOMIC_NUMBER["Rn"], ATOMIC_NUMBER["Og"]) == (118, 14, 86, 118)
    assert MASS_U["Si"] == 28.085
    assert MASS_U["Au"] == 196.97
    assert COVALENT_RADIUS_ANGSTROM["Cm"] == 1.69  # the last of Cordero's table: none was skipped
    inversions = sum(MASS_U[a] > MASS_U[b] for a, b in pairwise(SYMBOLS[:94]))
    assert inversions == 5  # Ar-K, Co-Ni, Te-I, Th-Pa, U-Np: where mass falls as the number grows


@pytest.mark.parametrize(
    ("label", "known", "element"),
    [
        ("Si1", (), "Si"),
        ("O2A", (), "O"),
        ("FE", (), None),
        ("FE", ("Fe",), "Fe"),
        ("ZN1", (), "Zn"),
        ("CO1", (), None),
        ("CO1", ("C", "O"), "C"),
        ("CO1", ("Co",), "Co"),
        ("Cm1", ("C", "H"), "C"),
        ("Xx", (), None),
        ("1", (), None),
        ("", (), None),
    ],
)
def test_element_of_a_label(label: str, known: tuple[str, ...], element: str | None) -> None:
    assert symbol_of(label, known) == element


STRUCTURE_REFUSALS = [
    ({"cell_angstrom": FCC[[1, 0, 2]]}, "left-handed"),
    ({"cell_angstrom": np.ones((3, 3))}, "no volume"),
    ({"cell_angstrom": FCC * np.nan}, "not finite|out of range"),
    ({"cell_angstrom": FCC[:2]}, "wrong shape"),
    ({"cell_angstrom": FCC * 1e6}, "out of range"),
    ({"frac_n3": [[0, 0, 0], [np.nan, 0, 0]]}, r"atom 2 \(Si\)"),
    ({"frac_n3": [[0, 0, 0], [np.inf, 0, 0]]}, r"atom 2 \(Si\)"),
    ({"frac_n3": [[0, 0, 0]]}, "wrong shape"),
    ({"frac_n3": [["a", 0, 0], [0, 0, 0]]}, "not arrays of numbers"),
    ({"symbols": ("Si", "Xx")}, "unknown element of atom 2"),
    ({"symbols": (), "frac_n3": np.zeros((0, 3))}, "number of atoms"),
    ({"frac_n3": [[0.5, 0, 0], [0.5, 0.01, 0]]}, r"1 \(Si\) and 2 \(Si\) overlap"),
    ({"frac_n3": [[0, 0, 0], [0.999, 0.001, 0]]}, "overlap"),
    ({"frac_n3": [[0, 0, 0], [-3.0, 5.0, 1.0]]}, "overlap"),
    ({"cell_angstrom": np.diag([5.0, 5.0, 0.2])}, r"1 \(Si\) and 1 \(Si\) overlap"),
]


@pytest.mark.parametrize(("change", "message"), STRUCTURE_REFUSALS)
def test_structure_refuses(change: dict[str, object], message: str) -> None:
    parts = {"cell_angstrom": FCC, "symbols": ("Si", "Si"), "frac_n3": [[0, 0, 0], [0.25, 0.25, 0.25]], "file": "a.cif"}
    with pytest.raises(InputError, match=message) as caught:
        Structure(**(parts | change))  # type: ignore[arg-type]
    assert caught.value.file == "a.cif"


def test_structure_distances_agree_with_a_plain_search() -> None:
    """Random flat cells: refused exactly when some periodic distance, by brute force, is below the limit."""
    rng = np.random.default_rng(2)
    refused = 0
    for _ in range(60):
        cell = np.diag([0.5, 3.0, 4.0]) + rng.uniform(-0.4, 0.4, (3, 3))
        frac = rng.uniform(-2.0, 2.0, (3, 3))
        steps = np.stack(np.meshgrid(*[np.arange(-7, 8)] * 3, indexing="ij"), -1).reshape(-1, 3)
        pairs = frac[:, None] - frac[None]
        vectors = (pairs - np.round(pairs))[:, :, None] + steps
        distances = np.linalg.norm(vectors @ cell, axis=-1)
        distances[np.arange(3), np.arange(3), len(steps) // 2] = np.inf
        if np.linalg.det(cell) < 1e-3 or abs(distances.min() - 0.3) < 1e-9:
            continue
        if distances.min() < 0.3:
            refused += 1
            with pytest.raises(InputError, match="overlap"):
                Structure(cell, ("H", "H", "H"), frac)
        else:
            Structure(cell, ("H", "H", "H"), frac)
    assert 5 < refused < 55  # both outcomes were met


def test_structure_is_what_it_says() -> None:
    assert SILICON.formula == "Si2"
    assert SILICON.volume_angstrom3 == pytest.approx(2 * 2.715**3, rel=1e-14)  # two units of a^3/8 x 8
    np.testing.assert_allclose(SILICON.positions_angstrom[1], 2.715 / 2 * np.ones(3), rtol=1e-15)
    with pytest.raises(ValueError, match="read-only"):
        SILICON.frac_n3[0, 0] = 1.0


RUTILE = """#------ a comment
data_unrelated
_journal_name_full 'Acta # not a comment'
data_rutile
_chemical_name_mineral Rutile
_chemical_formula_sum 'O2 Ti'
_publ_section_title
;
 A text field with 'quotes', loop_ and
 # no comment
;
_cell_length_a 4.5937(2)
_cell_length_b 4.5937(2)
_cell_length_c 2.9587
_cell_angle_alpha 90.
_cell_angle_beta  90
_cell_angle_gamma 90.000(1)
SYMMETRY
loop_
  _atom_site_label
  _atom_site_type_symbol
  _atom_site_occupancy
  _atom_site_fract_x _atom_site_fract_y _atom_site_fract_z
  Ti1 Ti4+ 1.0 0 0 0.0
  O1  O2-  .   0.3048(3)  0.3048(3) -0.0   # on the mirror plane
loop_
  _atom_site_aniso_label
  _atom_site_aniso_U_11
  Ti1 0.0068
  O1  0.0051
"""
OPERATIONS = """loop_
_symmetry_equiv_pos_site_id
_symmetry_equiv_pos_as_xyz
1 x,y,z
2 -x,-y,z
3 '1/2-y, 1/2+x, z+1/2'
4 y+0.5,-x+.5,1/2+z
5 1/2-x,1/2+y,1/2-z
6 1/2+x,1/2-y,1/2-z
7 Y,X,-Z
8 -y,-x,-z
9 -x,-y,-z
10 x,y,-z
11 y+1/2,-x+1/2,-z+1/2
12 -y+1/2,x+1/2,-z+1/2
13 x+1/2,-y+1/2,z+1/2
14 -x+1/2,y+1/2,z+1/2
15 -y,-x,z
16 y,x,z
"""
RUTILE_CIF = RUTILE.replace("SYMMETRY", OPERATIONS)


@pytest.mark.parametrize(
    "symmetry",
    [
        OPERATIONS,
        OPERATIONS.replace("_symmetry_equiv_pos_as_xyz", "_space_group_symop.operation_xyz"),
        "_symmetry_space_group_name_H-M 'P 42/m n m'",
        "_space_group_name_H-M_alt 'P 4_2/m n m'",
        "_space_group_name_Hall '-P 4n 2n'",
        "_space_group_IT_number 136",
        "_symmetry_Int_Tables_number 136\n_symmetry_space_group_name_H-M ?",
    ],
)
def test_cif_rutile_by_every_way_of_stating_the_group(tmp_path: Path, symmetry: str) -> None:
    rutile = read_structure(write(tmp_path, RUTILE.replace("SYMMETRY", symmetry), "rutile.cif"))
    assert rutile.formula == "Ti2O4"
    assert rutile.title == "Rutile"
    assert group_of(rutile) == 136
    np.testing.assert_allclose(rutile.cell_angstrom, np.diag([4.5937, 4.5937, 2.9587]), rtol=1e-15, atol=1e-15)
    oxygen = {tuple(np.round(row, 4)) for row in rutile.frac_n3[2:]}
    assert oxygen == {(0.3048, 0.3048, 0.0), (0.6952, 0.6952, 0.0), (0.1952, 0.8048, 0.5), (0.8048, 0.1952, 0.5)}


def test_cif_forgives_what_does_not_touch_the_structure(tmp_path: Path) -> None:
    """A quote that is not closed ends with its line; a last line without its end is accepted when no number stands there."""
    text = (
        RUTILE_CIF.replace("'O2 Ti'", "'O2 Ti").replace("data_rutile", "data_rutile\n_author 'M. O'Keeffe'")
        + "_journal_year 1999"
    )
    assert read_cif(write(tmp_path, text, "a.cif")).formula == "Ti2O4"
    text = RUTILE_CIF.partition("loop_\n  _atom_site_aniso")[0].rstrip()
    with pytest.raises(InputError, match="last line does not end"):
        read_cif(write(tmp_path, text[: text.index("   # on the mirror")], "b.cif"))


def cif(cell: str, symmetry: str, sites: str) -> str:
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    items = "".join(f"_cell_{name} {value}\n" for name, value in zip(names, cell.split(), strict=True))
    columns = "".join(f"_atom_site_{name}\n" for name in ("label", "fract_x", "fract_y", "fract_z"))
    return f"data_x\n{items}{symmetry}\nloop_\n{columns}{sites}\n"


def test_cif_rounded_special_positions_become_exact(tmp_path: Path) -> None:
    text = cif("3.209 3.209 5.211 90 90 120", "_space_group_name_H-M_alt 'P 63/m m c'", "Mg1 0.333 0.667 0.25")
    magnesium = read_cif(write(tmp_path, text, "mg.cif"))
    expected = sorted([[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]])
    np.testing.assert_allclose(sorted(magnesium.frac_n3.tolist()), expected, atol=1e-14)  # 1/3, though the file says 0.333
    assert group_of(magnesium) == 194


@pytest.mark.parametrize(("name", "atoms"), [("F d -3 m :1", 8), ("F d -3 m S", 8), ("F d -3 m :2", 16)])
def test_cif_two_origins(tmp_path: Path, name: str, atoms: int) -> None:
    """(0,0,0) is a site of multiplicity 8 with origin 1 and of multiplicity 16 with origin 2 (International Tables, 227)."""
    text = cif("5.43 5.43 5.43 90 90 90", f"_symmetry_space_group_name_H-M '{name}'", "Si 0 0 0")
    assert len(read_cif(write(tmp_path, text, "si.cif")).symbols) == atoms


def test_cif_rhombohedral_settings_are_told_apart_by_the_cell(tmp_path: Path) -> None:
    name = "_symmetry_space_group_name_H-M 'R -3 m'"
    hexagonal = read_cif(write(tmp_path, cif("4.546 4.546 11.863 90 90 120", name, "Bi1 0 0 0.2339"), "h.cif"))
    rhombohedral = read_cif(
        write(tmp_path, cif("4.7458 4.7458 4.7458 57.23 57.23 57.23", name, "Bi1 .2339 .2339 .2339"), "r.cif")
    )
    assert (hexagonal.formula, rhombohedral.formula) == ("Bi6", "Bi2")
    assert group_of(hexagonal) == group_of(rhombohedral) == 166
    assert hexagonal.volume_angstrom3 == pytest.approx(3 * rhombohedral.volume_angstrom3, rel=1e-3)  # the printed cells' rounding


def test_cif_triclinic_cell_has_the_lengths_and_angles_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, cif("5.1 6.2 7.3 81 95 107", "_space_group_IT_number 1", "C1 .1 .2 .3"), "p1.cif")
    cell = read_cif(path).cell_angstrom
    lengths = np.linalg.norm(cell, axis=1)
    np.testing.assert_allclose(lengths, [5.1, 6.2, 7.3], rtol=1e-14)
    cosines = [(cell @ cell.T)[i, j] / (lengths[i] * lengths[j]) for i, j in ((1, 2), (0, 2), (0, 1))]
    np.testing.assert_allclose(np.degrees(np.arccos(cosines)), [81, 95, 107], rtol=1e-13)
    assert cell[0, 1] == cell[0, 2] == cell[1, 2] == 0.0  # a along x, b in the xy plane


CIF_REFUSALS = [
    (".   0.3048(3)", "0.5   0.3048(3)", "partial occupancy"),
    ("0.3048(3)  0.3048(3)", "? 0.3048(3)", "position of an atom is unknown"),
    ("0.3048(3)  0.3048(3)", "nan 0.3048(3)", "not a finite number"),
    ("0.3048(3)  0.3048(3)", "0.01 0.01", "overlap|special|formula"),
    ("0.3048(3)  0.3048(3)", "300 300", "out of range"),
    ("Ti1 Ti4+", "Ti1 Xy4+", "element unknown"),
    ("4.5937(2)", "-4.5937(2)", "out of range"),
    ("4.5937(2)", "?", "length or angle missing"),
    ("4.5937(2)", "4.9", "does not fit the lengths"),
    ("90.000(1)", "185", "out of range"),
    ("90.000(1)", "120", "does not fit the lengths"),
    ("-x,-y,z", "-x,y,z", "not a group"),
    ("-x,-y,z", "-x,-y,q", "not a symmetry operation"),
    ("-x,-y,z", "-x,-x,z", "not a symmetry operation"),
    ("-x,-y,z", "x,y,z", "stands twice"),
    ("16 y,x,z\n", "", "not a group"),
    ("'O2 Ti'", "'O3 Ti'", "make up the formula"),
    ("'O2 Ti'", "'O2 Ti H'", "make up the formula"),
    (";\n_cell_length_a", "_cell_length_a", "text field does not end"),
    ("  O1  O2- ", "  O1 ", "loop is not complete"),
    ("data_rutile", "data_rutile _cell_length_a 1 ", "stands twice"),
    ("data_rutile", "data_rutile loop_ loop_ ", "loop is not complete"),
    ("data_rutile", "save_rutile", "not supported"),
    ("data_unrelated", "", "before the first data block"),
    ("_cell_angle_beta  90", "_cell_angle_beta", "value without an item|has no value"),
]


@pytest.mark.parametrize(("old", "new", "message"), CIF_REFUSALS)
def test_cif_refuses(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in RUTILE_CIF
    path = write(tmp_path, RUTILE_CIF.replace(old, new, 1), "rutile.cif")
    with pytest.raises(InputError, match=message) as caught:
        read_cif(path)
    assert str(caught.value.file) == str(path)


@pytest.mark.parametrize(
    ("symmetry", "message"),
    [
        ("", "no symmetry given"),
        ("_symmetry_space_group_name_H-M 'F d -3 m'", "two origins"),
        ("_symmetry_space_group_name_H-M 'F d -3 m :9'", "setting not recognised"),
        ("_symmetry_space_group_name_H-M 'Q 1'", "not recognised"),
        ("_space_group_name_Hall 'P 2yb (x,y,z+1/4)'", "change of basis"),
        ("_space_group_IT_number 231", "no symmetry given"),
        ("_space_group_IT_number 2.5", "not an integer"),
        ("_space_group_IT_number 194", "does not fit"),
    ],
)
def test_cif_refuses_unclear_symmetry(tmp_path: Path, symmetry: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_cif(write(tmp_path, cif("5.43 5.43 5.43 90 90 90", symmetry, "Si 0 0 0"), "si.cif"))


def test_every_setting_of_the_database_is_found_by_its_hall_symbol_and_is_a_group() -> None:
    for hall_number in range(1, 531, 7):
        with quiet_spglib():
            kind = spglib.get_spacegroup_type(hall_number)
        assert find_setting(kind.hall_symbol, None, None, False, "f") == hall_number
        rotations, shifts = operations_of_setting(hall_number)
        assert len(rotations) == len(shifts) > 0
    assert find_setting(None, "P 21/n", None, False, "f") == find_setting(None, "P 1 21/n 1", None, False, "f") == 82


@pytest.mark.parametrize(
    ("text", "rotation", "shift"),
    [
        ("x,y,z", [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [0, 0, 0]),
        ("-y, x-y, z+1/3", [[0, -1, 0], [1, -1, 0], [0, 0, 1]], [0, 0, 1 / 3]),
        ("1/2+X,-Y+.25,0.6667-Z", [[1, 0, 0], [0, -1, 0], [0, 0, -1]], [0.5, 0.25, 2 / 3]),
    ],
)
def test_operations_are_read(text: str, rotation: list[list[int]], shift: list[float]) -> None:
    assert parse_operation(text) == (rotation, shift)


@pytest.mark.parametrize("text", ["", "x,y", "x,y,z,x", "x,y,2", "x,y,1/0+z", "x,y,zz", "x,y,x+", "x y z", "x,y,z+1/2/3", "x,,z"])
def test_operations_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_operation(text)


POSCAR = """rock salt
   1.0
   5.64 0.0 0.0
   0.0 5.64 0.0
   0.0 0.0 5.64
   Na_pv Cl
   1 1
Selective dynamics
Direct
   0.0 0.0 0.0 T T F
   0.5 0.5 0.5 F F F
"""


def test_poscar_scale_volume_and_cartesian_agree(tmp_path: Path) -> None:
    direct = read_structure(write(tmp_path, POSCAR, "POSCAR"))
    assert (direct.symbols, direct.title) == (("Na", "Cl"), "rock salt")
    np.testing.assert_array_equal(direct.frac_n3, [[0, 0, 0], [0.5, 0.5, 0.5]])
    unit = POSCAR.replace("5.64", "1.0").replace("   1.0\n   1.0 0.0", f"{-(5.64**3)!r}\n   1.0 0.0", 1)
    by_volume = read_poscar(write(tmp_path, unit, "b.vasp"))
    np.testing.assert_allclose(by_volume.cell_angstrom, direct.cell_angstrom, rtol=1e-14, atol=1e-14)
    scaled = POSCAR.replace("   1.0\n", "   2.0\n", 1).replace("5.64", "2.82").replace("Direct", "Cartesian")
    cartesian = read_poscar(write(tmp_path, scaled.replace("0.5 0.5 0.5", "1.41 1.41 1.41"), "c.vasp"))
    np.testing.assert_allclose(cartesian.frac_n3, direct.frac_n3, atol=1e-15)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("   1.0\n", "   0.0\n", 2),
        ("   1.0\n", "   1.0 1.0\n", 2),
        ("0.0 5.64 0.0", "0.0 5.64", 4),
        ("0.0 5.64 0.0", "0.0 inf 0.0", 4),
        ("   Na_pv Cl\n", "", 6),
        ("Na_pv", "Nx", 6),
        ("   1 1\n", "   1\n", 7),
        ("   1 1\n", "   1 -1\n", 7),
        ("   1 1\n", "   1 2\n", 12),
        ("   1 1\n", "   1 99999999\n", 7),
        ("Direct", "Other", 9),
        ("F F F", "F F", 11),
        ("0.5 0.5 0.5", "0.5 0.5 1_0", 11),
    ],
)
def test_poscar_refuses_and_names_the_line(tmp_path: Path, old: str, new: str, line: int) -> None:
    with pytest.raises(InputError) as caught:
        read_poscar(write(tmp_path, POSCAR.replace(old, new, 1), "POSCAR"))
    assert caught.value.line == line


def test_extxyz_reads_back_what_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    other = Structure(FCC + rng.uniform(-0.1, 0.1, (3, 3)), ("Ga", "As"), [[0.01, -0.3, 0.2], [0.3, 0.22, 1.7]], 'a "title"')
    data = extxyz_bytes([SILICON, other], [{"energy_ev": -1.5}, {}], [{"forces": np.ones((2, 3))}, {}])
    path = tmp_path / "a.extxyz"
    path.write_bytes(data)
    frames = read_extxyz(path)
    for frame, true in zip(frames, [SILICON, other], strict=True):
        assert frame.symbols == true.symbols
        np.testing.assert_array_equal(frame.cell_angstrom, true.cell_angstrom)
        # one rounding each in frac -> Cartesian -> frac, on numbers of order one
        np.testing.assert_allclose(frame.frac_n3, true.frac_n3, atol=2e-15)
    assert b"energy_ev=-1.5" in data
    assert read_structure(path).symbols == ("Ga", "As")


EXTXYZ = """2
Lattice="4 0 0 0 4 0 0 0 4" Properties=id:I:1:species:S:1:pos:R:3:magmom:R:1 pbc="T T T" energy=-1.0 flag
1 Na 0.0 0.0 0.0 0.5
2 Cl 2.0 2.0 2.0 0.0
"""


def test_extxyz_finds_its_columns(tmp_path: Path) -> None:
    structure = read_structure(write(tmp_path, EXTXYZ, "a.xyz"))
    assert structure.symbols == ("Na", "Cl")
    np.testing.assert_array_equal(structure.frac_n3, [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("2\nLattice", "3\nLattice", 1),
        ("2\nLattice", "-2\nLattice", 1),
        ("2\nLattice", "two\nLattice", 1),
        ("0 4 0 ", "0 4 ", 2),
        ("0 4 0 ", "0 nan 0 ", 2),
        ("Lattice", "Lettuce", 2),
        ('pbc="T T T"', 'pbc="T T F"', 2),
        ("pos:R:3", "pos:R:2", 2),
        ("energy=-1.0", 'energy="-1.0', 2),
        ("energy=-1.0", "energy=1 energy=2", 2),
        ("Na 0.0", "Nx 0.0", 3),
        ("2.0 2.0 2.0", "2.0 2.0 x", 4),
        ("2.0 2.0 2.0", "2.0 2.0", 4),
        ("2.0 2.0 2.0 0.0\n", "2.0 2.0 2.0 0.0\njunk\n", 5),
    ],
)
def test_extxyz_refuses_and_names_the_line(tmp_path: Path, old: str, new: str, line: int) -> None:
    assert old in EXTXYZ
    with pytest.raises(InputError) as caught:
        read_extxyz(write(tmp_path, EXTXYZ.replace(old, new, 1), "a.xyz"))
    assert caught.value.line == line


def test_cube_holds_the_cell_in_bohr_and_the_field_with_the_last_index_fastest() -> None:
    field = np.arange(2 * 3 * 7, dtype=float).reshape(2, 3, 7) / 7.0
    lines = cube_bytes(SILICON, field, "density", "electrons/bohr^3").decode().split("\n")
    assert lines[:2] == ["density", "values in electrons/bohr^3"]
    head = [line.split() for line in lines[2:8]]
    assert [int(row[0]) for row in head] == [2, 2, 3, 7, 14, 14]
    voxel = np.array([row[1:4] for row in head[1:4]], dtype=float)
    np.testing.assert_allclose(voxel * [[2], [3], [7]] * BOHR_ANGSTROM, FCC, atol=1e-5)  # six decimals times at most seven
    np.testing.assert_allclose(np.array(head[5][2:], dtype=float) * BOHR_ANGSTROM, SILICON.positions_angstrom[1], atol=1e-6)
    values = np.array(" ".join(lines[8:]).split(), dtype=float).reshape(field.shape)
    np.testing.assert_allclose(values, field, rtol=1e-5)  # six digits printed
    with pytest.raises(InputError):
        cube_bytes(SILICON, field * np.nan, "density", "1")


def test_read_structure_refuses_names_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not recognised"):
        read_structure(write(tmp_path, POSCAR, "structure.txt"))
    with pytest.raises(InputError, match="no such file"):
        read_structure(tmp_path / "absent.cif")
