"""Coulomb energies of SPC/E water against the tables of the NIST Standard Reference Simulation Website.

`../shared/data/md/nist_spce_reference.json` holds them, with settings and the constants NIST used; without it the tests are
skipped.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.physics.md.pme import Pme
from gewu.physics.md.state import State, Topology, new_state
from gewu.physics.md.units import COULOMB
from tests.mdreference import Ewald, real_space

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "md"
TABLE = DATA / "nist_spce_reference.json"

pytestmark = pytest.mark.skipif(not TABLE.exists(), reason="no ../shared/data/md")


def read(path: Path) -> tuple[Topology, State]:
    """Read molecules O, H, H and the box of one of the two kinds of files."""
    lines = path.read_text().splitlines()
    n, fields = int(lines[0]), [line.split() for line in lines[2:]]
    if "Lattice" in lines[1]:
        box = np.array(lines[1].split('"')[1].split(), float).reshape(3, 3)
    else:
        box = np.diag(np.array(lines[1].split()[1:4], float))
    position = np.array([row[1:4] for row in fields[:n]], float)
    pairs = (np.array([[0, 1], [0, 2], [1, 2]], np.int32) + 3 * np.arange(n // 3, dtype=np.int32)[:, None, None]).reshape(-1, 2)
    one = np.ones((1, 1))
    topology = Topology(
        mass_n=np.ones(n),
        charge_n=np.tile([-0.8476, 0.4238, 0.4238], n // 3),
        type_n=np.zeros(n, np.int32),
        type_names=("X",),
        element=("O", "H", "H") * (n // 3),
        sigma_tt=one,
        epsilon_tt=one,
        exclusions=pairs,
    )
    return topology, new_state(topology, 0.1 * position, 0.1 * box)


def in_kelvin(energy: float, constants: dict[str, float]) -> float:
    """Return E/kB in K with NIST's constants, from kJ/mol with ours."""
    coulomb_k_nm = constants["e_C"] ** 2 / (4 * math.pi * constants["eps0_F_m"]) / constants["kB_J_K"] * 1e9
    return energy / COULOMB * coulomb_k_nm


def printed(value: float) -> Any:
    """Return what agrees with a number of six printed digits, to one unit in the last."""
    return pytest.approx(value, abs=10.0 ** (math.floor(math.log10(abs(value))) - 5), rel=0)


@pytest.mark.parametrize(("kind", "configuration"), [("cuboid", 1), *(("non_cuboid", k) for k in (1, 2, 3, 4))])
def test_terms_of_the_ewald_sum(kind: str, configuration: int) -> None:
    reference = json.loads(TABLE.read_text())
    part = reference[kind]
    topology, state = read(DATA / part["files"][str(configuration)])
    row = {name: column[configuration - 1] for name, column in part["table"].items()}
    assert len(topology) == 3 * row["molecules"]
    edges = np.diag(state.box_33)
    if kind == "cuboid":  # alpha = 5.6/L, n^2 < 27
        alpha, kmax, cutoff = 5.6 / edges[0], 5, 2 * math.pi * math.sqrt(26.5) / edges[0]
    else:
        alpha, kmax, cutoff = 2.85, 7, 2 * math.pi * 7 / edges.min() * (1 + 1e-12)
    parts = Ewald(topology, alpha, (kmax, kmax, kmax), cutoff).parts(state)
    real, _, _ = real_space(state, alpha, 1.0, topology.exclusions)
    for name, energy in (
        ("E_fourier", parts["reciprocal"]),
        ("E_self", parts["self"]),
        ("E_intra", parts["excluded"]),
        ("E_real", real),
    ):
        assert in_kelvin(energy, reference["constants"]) == printed(row[name]), name
    assert parts["background"] == pytest.approx(0.0, abs=1e-15)


def test_pme_of_the_equilibrated_box() -> None:
    # PME on a fine mesh against the Fourier, self and intramolecular terms stored for 512 molecules.  Those were cut at n^2 = 38,
    # where exp(-pi^2 38/5.6^2) = 6e-6 leaves some 1e-5 of 5e3 K; the splines of order 6 leave less.
    reference = json.loads(TABLE.read_text())
    stored = reference["equilibrated_512"]
    topology, state = read(DATA / stored["file"])
    alpha, terms = 5.6 / state.box_33[0, 0], stored["terms_recomputed_K"]
    evaluation = Pme(topology, alpha, (48, 48, 48), order=6, precision="double").compute(state, True)
    assert evaluation is not None
    expected = terms["E_fourier"] + terms["E_self"] + terms["E_intra"]
    assert in_kelvin(evaluation.potential, reference["constants"]) == pytest.approx(expected, abs=1.0)
