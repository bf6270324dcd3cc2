"""Lennard-Jones reference calculations of the NIST Standard Reference Simulation Website, in reduced units.

Published: U, the sum of r.F over pairs and the tail of the energy, five digits (configurations 1-4, cutoffs 3 and 4 and the
linear force shift at 3); the triclinic configuration 3 as FEASST's test suite states it.  More digits of the former come from a
double sum over the same coordinates that was written independently.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.physics.md.pairs import NonBonded
from gewu.physics.md.plain import PlainPairs, dispersion_correction
from gewu.physics.md.state import State, Topology, new_state
from tests.mdreference import brute_force

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "md"
SCHEMES = {"rc3": NonBonded(3.0, "cut"), "rc4": NonBonded(4.0, "cut"), "lfs3": NonBonded(3.0, "force-shift")}

pytestmark = pytest.mark.skipif(
    not (DATA / "nist_lj_reference.json").exists(), reason="the reference configurations are not here"
)


def reference() -> dict[str, Any]:
    return dict(json.loads((DATA / "nist_lj_reference.json").read_text()))


def fluid(file: str, box: Any) -> tuple[State, Topology]:
    position = np.loadtxt(DATA / file, skiprows=2, usecols=(1, 2, 3))
    n = len(position)
    topology = Topology(
        mass_n=np.ones(n),
        charge_n=np.zeros(n),
        type_n=np.zeros(n, np.int32),
        type_names=("A",),
        element=("Ar",) * n,
        sigma_tt=np.ones((1, 1)),
        epsilon_tt=np.ones((1, 1)),
    )
    return new_state(topology, position, box), topology


@pytest.mark.parametrize("configuration", ["1", "2", "3", "4"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_cuboid(configuration: str, scheme: str) -> None:
    data, settings = reference(), SCHEMES[scheme]
    case = data["configurations"][configuration]
    state, topology = fluid(case["file"], np.eye(3) * case["L"])
    published, recomputed = case[scheme], data["recomputed_in_double_precision"][configuration][scheme]
    summed, force = brute_force(state, topology, settings)
    listed = PlainPairs(topology, settings).compute(state, True)
    assert listed is not None
    for found in (summed, listed):
        pair = found.energies["lennard_jones"], float(np.trace(found.virial_33))
        assert pair == pytest.approx(published[:2], rel=5e-5)  # the printed digits
        assert pair == pytest.approx(recomputed[:2], rel=1e-10, abs=1e-9)  # both sums in double
    assert np.allclose(state.force_n3, force, rtol=0, atol=1e-12 * np.abs(force).max())
    if scheme != "lfs3":
        tail = dispersion_correction(topology, settings, state.volume)[0]
        assert tail == pytest.approx(published[2], rel=5e-5) and tail == pytest.approx(recomputed[2], rel=1e-12)


def test_triclinic() -> None:
    case = reference()["triclinic"]["3"]
    a, b, c = case["lengths"]
    state, topology = fluid(case["file"], [[a, 0, 0], [case["xy"], b, 0], [case["xz"], case["yz"], c]])
    listed = PlainPairs(topology, SCHEMES["rc3"]).compute(state, True)
    assert listed is not None
    for found in (brute_force(state, topology, SCHEMES["rc3"])[0], listed):
        assert found.energies["lennard_jones"] == pytest.approx(case["rc3"]["U_pair"], rel=1e-12)
    assert dispersion_correction(topology, SCHEMES["rc3"], state.volume)[0] == pytest.approx(case["rc3"]["U_LRC"], rel=1e-12)
