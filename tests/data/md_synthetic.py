"""One small system in the formats of AMBER, GROMACS and LAMMPS: a chain C-C-C-O, and (not in LAMMPS) one TIP4P-Ew water.

Values are made up, but chosen exactly in AMBER's units, so that all three files mean the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

KCAL = 4.184
NAMES = ["C1", "C2", "C3", "O1", "O", "H1", "H2", "EP"]
CHARGE = [0.1, -0.05, 0.25, -0.3, 0.0, 0.52422, 0.52422, -1.04844]
MASS = [12.011, 12.011, 12.011, 15.999, 15.999, 1.008, 1.008, 0.0]
KIND = [1, 1, 1, 2, 2, 3, 3, 3]  # C, O, nothing
SIGMA, EPSILON = [3.4, 3.0, 0.0], [0.1, 0.2, 0.0]  # angstrom, kcal/mol
BONDS = [(0, 1, 310.0, 1.526), (1, 2, 310.0, 1.526), (2, 3, 320.0, 1.41)]
ANGLES = [(0, 1, 2, 40.0, 109.5), (1, 2, 3, 50.0, 108.5)]
DIHEDRALS = [(0.18, 3, 0.0), (0.25, 2, 180.0)]
POSITION = [
    [1.0, 1.0, 1.0], [2.5, 1.1, 1.2], [3.0, 2.5, 1.3], [4.3, 2.6, 1.9],
    [8.0, 8.0, 8.0], [8.9572, 8.0, 8.0], [7.7600, 8.9266, 8.0], [8.0765, 8.0987, 8.0],
]  # fmt: skip
BOX = [20.0, 21.0, 22.0]


def mixed(rule: str = "lorentz-berthelot") -> list[tuple[float, float]]:
    """Return (sigma, epsilon) of the pairs 11, 12, 22, 13, 23, 33."""
    out = []
    for j in range(3):
        for i in range(j + 1):
            zero = EPSILON[i] * EPSILON[j] == 0
            s = (SIGMA[i] + SIGMA[j]) / 2 if rule == "lorentz-berthelot" else (SIGMA[i] * SIGMA[j]) ** 0.5
            out.append((0.0, 0.0) if zero else (s, (EPSILON[i] * EPSILON[j]) ** 0.5))
    return out


def section(flag: str, form: str, values: Sequence[object]) -> str:
    """Return a section of a prmtop."""
    count = {"20a4": 20, "10I8": 10, "5E16.8": 5, "8(F9.5)": 8}[form]
    texts = [format(v, {"20a4": "<4", "10I8": "8d", "5E16.8": "16.8E", "8(F9.5)": "9.5f"}[form]) for v in values]
    rows = ["".join(texts[at : at + count]) for at in range(0, len(texts), count)] or [""]
    return "\n".join([f"%FLAG {flag}", f"%FORMAT({form})", *rows]) + "\n"


def prmtop_sections(extra: Mapping[str, tuple[str, Sequence[object]]] | None = None) -> dict[str, tuple[str, Sequence[object]]]:
    pointers = [8, 3, 4, 3, 0, 2, 0, 2, 0, 0, 13, 2, 3, 2, 2, 5, 2, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 1, 4, 0, 1]
    pairs = mixed()
    bonds = [6, 7, 2, 12, 15, 3, 12, 18, 3, 15, 18, 4, 12, 21, 5]
    found: dict[str, tuple[str, Sequence[object]]] = {
        "TITLE": ("20a4", ["test"]),
        "POINTERS": ("10I8", pointers),
        "ATOM_NAME": ("20a4", NAMES),
        "CHARGE": ("5E16.8", [q * 18.2223 for q in CHARGE]),
        "MASS": ("5E16.8", MASS),
        "ATOM_TYPE_INDEX": ("10I8", KIND),
        "NUMBER_EXCLUDED_ATOMS": ("10I8", [3, 2, 1, 1, 3, 2, 1, 0]),
        "NONBONDED_PARM_INDEX": ("10I8", [1, 2, 4, 2, 3, 5, 4, 5, 6]),
        "RESIDUE_LABEL": ("20a4", ["CHN", "WAT"]),
        "RESIDUE_POINTER": ("10I8", [1, 5]),
        "BOND_FORCE_CONSTANT": ("5E16.8", [310.0, 320.0, 553.0, 553.0, 600.0]),
        "BOND_EQUIL_VALUE": ("5E16.8", [1.526, 1.41, 0.9572, 1.5139006545, 0.125]),
        "ANGLE_FORCE_CONSTANT": ("5E16.8", [40.0, 50.0]),
        "ANGLE_EQUIL_VALUE": ("5E16.8", [109.5 * 0.017453292519943295, 108.5 * 0.017453292519943295]),
        "DIHEDRAL_FORCE_CONSTANT": ("5E16.8", [0.18, 0.25]),
        "DIHEDRAL_PERIODICITY": ("5E16.8", [3.0, 2.0]),
        "DIHEDRAL_PHASE": ("5E16.8", [0.0, 3.141592653589793]),
        "SCEE_SCALE_FACTOR": ("5E16.8", [1.25, 1.25]),
        "SCNB_SCALE_FACTOR": ("5E16.8", [2.5, 2.5]),
        "LENNARD_JONES_ACOEF": ("5E16.8", [4 * e * s**12 for s, e in pairs]),
        "LENNARD_JONES_BCOEF": ("5E16.8", [4 * e * s**6 for s, e in pairs]),
        "BONDS_INC_HYDROGEN": ("10I8", bonds[3:]),
        "BONDS_WITHOUT_HYDROGEN": ("10I8", [0, 3, 1, 3, 6, 1, 6, 9, 2]),
        "ANGLES_INC_HYDROGEN": ("10I8", []),
        "ANGLES_WITHOUT_HYDROGEN": ("10I8", [0, 3, 6, 1, 3, 6, 9, 2]),
        "DIHEDRALS_INC_HYDROGEN": ("10I8", []),
        "DIHEDRALS_WITHOUT_HYDROGEN": ("10I8", [0, 3, 6, 9, 1, 0, 3, -6, 9, 2]),
        "EXCLUDED_ATOMS_LIST": ("10I8", [2, 3, 4, 3, 4, 4, 0, 6, 7, 8, 7, 8, 8]),
        "AMBER_ATOM_TYPE": ("20a4", ["CT", "CT", "CT", "OH", "OW", "HW", "HW", "EP"]),
        "ATOMIC_NUMBER": ("10I8", [6, 6, 6, 8, 8, 1, 1, 0]),
        "BOX_DIMENSIONS": ("5E16.8", [90.0, *BOX]),
    }
    return found | dict(extra or {})


def prmtop_text(extra: Mapping[str, tuple[str, Sequence[object]]] | None = None, without: Sequence[str] = ()) -> str:
    """Return a prmtop; `extra` replaces or adds sections, `without` leaves some out."""
    sections = prmtop_sections(extra)
    head = "%VERSION  VERSION_STAMP = V0001.000  DATE = 01/01/00  00:00:00\n"
    return head + "".join(section(flag, *content) for flag, content in sections.items() if flag not in without)


def inpcrd_text(velocities: bool = False, box: bool = True) -> str:
    """Return the coordinates, perhaps velocities (AMBER's units: the coordinates divided by 100), perhaps the box."""
    values = [x for row in POSITION for x in row]
    blocks = [values, *([[x / 100 for x in values]] if velocities else []), *([[*BOX, 90.0, 90.0, 90.0]] if box else [])]
    rows = ["".join(f"{x:12.7f}" for x in block[at : at + 6]) for block in blocks for at in range(0, len(block), 6)]
    return "\n".join(["test", f"{len(POSITION):5d}  0.1000000E+01", *rows]) + "\n"


def top_text() -> str:
    """Return a GROMACS topology with an include, a macro, types with wildcards and virtual sites."""
    area = 2 * KCAL * 100
    return f"""; test
#include "chain.itp"
[ moleculetype ]
WAT 2
[ atoms ]
1 OW 1 WAT O  1  0.0      15.999
2 HW 1 WAT H1 1  0.52422   1.008
3 HW 1 WAT H2 1  0.52422   1.008
4 MW 1 WAT EP 1 -1.04844   0.0
#ifdef FLEXIBLE
[ bonds ]
1 2 1 0.09572 {553 * area:.8f}
1 3 1 0.09572 {553 * area:.8f}
2 3 1 0.15139006545 {553 * area:.8f}
#else
[ settles ]
1 1 0.09572 0.15139006545
#endif
[ virtual_sites3 ]
4 1 2 3 1 W W
[ exclusions ]
1 2 3 4
2 3 4
3 4
[ system ]
test
[ molecules ]
CHN 1
WAT 1
"""


def itp_text() -> str:
    """Return what `top_text` includes: the force field and the chain."""
    area, square = 2 * KCAL * 100, 2 * KCAL
    kinds = "\n".join(
        f"{name} {number} {mass} 0.0 A {s / 10} {e * KCAL}"
        for name, number, mass, s, e in (
            ("CT", 6, 12.011, 3.4, 0.1), ("OH", 8, 15.999, 3.0, 0.2), ("OW", 8, 15.999, 3.0, 0.2), ("HW", 1, 1.008, 0, 0),
        )
    )  # fmt: skip
    return f"""[ defaults ]
1 2 yes 0.4 0.8
#define W 0.10667672080
#define gb_co 0.141 {320 * area:.8f}
[ atomtypes ]
{kinds}
MW 0 0.0 0.0 D 0.0 0.0
[ bondtypes ]
CT CT 1 0.1526 {310 * area:.8f} ; a comment
[ angletypes ]
CT CT CT 1 109.5 {40 * square:.8f}
OH CT CT 1 108.5 {50 * square:.8f}
[ dihedraltypes ]
X CT CT X 9 0.0 99.0 1
X CT CT OH 9 0.0 {0.18 * KCAL:.8f} 3
X CT CT OH 9 180.0 \\
 {0.25 * KCAL:.8f} 2
[ moleculetype ]
CHN 3
[ atoms ]
1 CT 1 CHN C1 1  0.1
2 CT 1 CHN C2 1 -0.05
3 CT 1 CHN C3 1  0.25
4 OH 1 CHN O1 1 -0.3 15.999
[ bonds ]
1 2 1
2 3 1
3 4 1 gb_co
[ pairs ]
1 4 1
[ angles ]
1 2 3 1
2 3 4 1
[ dihedrals ]
1 2 3 4 9
"""


def gro_text() -> str:
    rows = [
        f"{1 + (at > 3):5d}{'CHN' if at < 4 else 'WAT':<5s}{name:>5s}{at + 1:5d}"
        + "".join(f"{x / 10:9.4f}" for x in POSITION[at])
        for at, name in enumerate(NAMES)
    ]
    return "\n".join(["test", f"{len(NAMES)}", *rows, " ".join(f"{x / 10:.5f}" for x in BOX)]) + "\n"


def lammps_text() -> str:
    """Return the chain as a LAMMPS data file (units real), atoms in another order."""
    atoms = "\n".join(
        f"{k + 1} 1 {KIND[k]} {CHARGE[k]} {POSITION[k][0] - 20 * (k == 2)} {POSITION[k][1]} {POSITION[k][2]} {int(k == 2)} 0 0"
        for k in (2, 0, 3, 1)
    )
    return f"""chain

4 atoms
3 bonds
2 angles
2 dihedrals
2 atom types
2 bond types
2 angle types
2 dihedral types
0.0 20.0 xlo xhi
0.0 21.0 ylo yhi
0.0 22.0 zlo zhi

Masses

1 12.011
2 15.999

Pair Coeffs # lj/cut/coul/long

1 0.1 3.4
2 0.2 3.0

Bond Coeffs # harmonic

1 310.0 1.526
2 320.0 1.41

Angle Coeffs # harmonic

1 40.0 109.5
2 50.0 108.5

Dihedral Coeffs # charmm

1 0.18 3 0 0.0
2 0.25 2 180 0.0

Atoms # full

{atoms}

Velocities

3 0.001 0.002 0.003
1 0.0 0.0 0.0
2 0.0 0.0 0.0
4 0.0 0.0 0.0

Bonds

1 1 1 2
2 1 2 3
3 2 3 4

Angles

1 1 1 2 3
2 2 2 3 4

Dihedrals

1 1 1 2 3 4
2 2 1 2 3 4
"""


PDB_TEXT = """TITLE     two residues
CRYST1   20.000   21.000   22.000  90.00  90.00  90.00 P 1           1
MODEL        1
ATOM      1  N   ALA A   1       1.000   1.000   1.000  1.00  0.00           N
ATOM      2  CA AALA A   1       2.400   1.100   1.200  0.60  0.00           C
ATOM      3  CA BALA A   1       2.500   1.100   1.200  0.40  0.00           C
ATOM      4 HG21 ALA A   1       3.000   2.500   1.300  1.00  0.00
HETATM    5 CA    CA A   2       9.000   9.000   9.000  1.00  0.00
HETATM    6  O   HOH A   3A      5.000  -5.000   5.000  1.00  0.00           O
ENDMDL
MODEL        2
ATOM      1  N   ALA A   1       7.000   1.000   1.000  1.00  0.00           N
ENDMDL
END
"""

MMCIF_TEXT = """data_TEST
_cell.length_a 20.0
_cell.length_b 21.0
_cell.length_c 22.0
_cell.angle_alpha 90
_cell.angle_beta 90
_cell.angle_gamma 90
loop_
_atom_site.group_PDB
_atom_site.id
_atom_site.type_symbol
_atom_site.label_atom_id
_atom_site.label_alt_id
_atom_site.label_comp_id
_atom_site.label_asym_id
_atom_site.label_seq_id
_atom_site.auth_seq_id
_atom_site.pdbx_PDB_ins_code
_atom_site.Cartn_x
_atom_site.Cartn_y
_atom_site.Cartn_z
_atom_site.pdbx_PDB_model_num
ATOM 1 N N . ALA A 1 1 ? 1.0 1.0 1.0 1
ATOM 2 C CA A ALA A 1 1 ? 2.4 1.1 1.2 1
ATOM 3 C CA B ALA A 1 1 ? 2.5 1.1 1.2 1
ATOM 4 H HG21 . ALA A 1 1 ? 3.0 2.5 1.3 1
HETATM 5 CA CA . CA A . 2 ? 9.0 9.0 9.0 1
HETATM 6 O O . HOH A . 3 A 5.0 -5.0 5.0 1
ATOM 7 N N . ALA A 1 1 ? 7.0 1.0 1.0 2
"""
