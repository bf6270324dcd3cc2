"""AMBER and GROMACS inputs against OpenMM 8.6.1 (Reference platform, double precision), term by term.

The files are those of OpenMM's and AMBER's own tests, read where they are at hand: `../shared/data/md/biomol`.
Sums are plain NumPy over all pairs, so that these tests check what the readers understood and nothing else.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.formats.amber import read_prmtop, read_rst7
from gewu.formats.forcefield import from_amber, from_gromacs, rigid
from gewu.formats.forcefield.system import System
from gewu.formats.gromacs import read_gro, read_top
from gewu.physics.md.bonded import Bonded
from gewu.physics.md.state import new_state
from gewu.physics.md.units import COULOMB

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "md" / "biomol"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the files of OpenMM and AMBER are not at hand")
# OpenMM keeps k and r0 as doubles of the same text; what differs is 18.2223 (charges) and the Coulomb constant, in the 6th digit
ROUND = 1e-9
SYSTEMS = {"vacuum": 0, "explicit": 1, "jac": 2}


@cache
def reference(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "reference_energies.json").read_text())["results"][SYSTEMS[name]]
    return found


@cache
def system(name: str) -> System:
    entry = reference(name)
    return from_amber(read_prmtop(FOLDER / entry["topology"]), read_rst7(FOLDER / entry["coordinates"]))


def bonded_energies(found: System) -> dict[str, float]:
    state = new_state(
        found.topology, found.position_n3, np.eye(3) if found.box_33 is None else found.box_33, periodic=found.box_33 is not None
    )
    evaluation = Bonded(found.topology).compute(state, True)
    assert evaluation is not None
    return evaluation.energies


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_bonded_terms_are_those_of_openmm(name: str) -> None:
    ours, theirs = bonded_energies(system(name)), reference(name)["energy_kJ_mol"]
    assert ours["bond"] == pytest.approx(theirs["HarmonicBondForce"], rel=ROUND)
    assert ours["angle"] == pytest.approx(theirs["HarmonicAngleForce"], rel=ROUND)
    assert ours["dihedral"] == pytest.approx(theirs["PeriodicTorsionForce"], rel=ROUND)


def test_nonbonded_energy_in_vacuum_is_that_of_openmm() -> None:
    found = system("vacuum")
    topology, x = found.topology, found.position_n3
    i, j = np.triu_indices(len(topology), 1)
    excluded = np.zeros((len(topology),) * 2, np.bool_)
    excluded[tuple(topology.exclusions.T)] = True
    i, j = i[~excluded[i, j]], j[~excluded[i, j]]
    r = np.linalg.norm(x[i] - x[j], axis=1)
    s6 = (topology.sigma_tt[topology.type_n[i], topology.type_n[j]] / r) ** 6
    lennard_jones = 4 * topology.epsilon_tt[topology.type_n[i], topology.type_n[j]] * (s6**2 - s6)
    coulomb = COULOMB * topology.charge_n[i] * topology.charge_n[j] / r
    (a, b), (qq, sigma, epsilon) = topology.pairs14.index.T, topology.pairs14.parameter.T
    r14 = np.linalg.norm(x[a] - x[b], axis=1)
    t6 = (sigma / r14) ** 6
    total = lennard_jones.sum() + coulomb.sum() + (4 * epsilon * (t6**2 - t6)).sum() + (COULOMB * qq / r14).sum()
    # OpenMM turns AMBER's charges into e with the same 18.2223 and has 138.93545764 for 1/4 pi eps0, we 138.93545765: 1e-10
    assert total == pytest.approx(reference("vacuum")["energy_kJ_mol"]["NonbondedForce"], rel=1e-7)
    ours = bonded_energies(found)
    assert ours["lennard_jones_14"] == pytest.approx((4 * epsilon * (t6**2 - t6)).sum(), rel=ROUND)
    assert ours["coulomb_14"] == pytest.approx((COULOMB * qq / r14).sum(), rel=ROUND)


@pytest.mark.parametrize("flexible", [True, False])
def test_the_gromacs_topology_is_the_amber_topology(flexible: bool) -> None:
    defines = {"FLEXIBLE": ""} if flexible else {}
    stem = FOLDER / "alanine-dipeptide-explicit"
    gromacs = from_gromacs(read_top(stem.with_suffix(".top"), defines=defines), read_gro(stem.with_suffix(".gro")))
    amber = system("explicit").topology if flexible else rigid(system("explicit").topology)
    topology = gromacs.topology
    for name, table in amber.tables().items():
        assert len(topology.tables()[name].index) == len(table.index), name
    np.testing.assert_array_equal(topology.exclusions, amber.exclusions)
    np.testing.assert_array_equal(topology.molecule_n, amber.molecule_n)
    assert (topology.element, topology.atom_name, topology.residue_name) == (amber.element, amber.atom_name, amber.residue_name)
    np.testing.assert_allclose(topology.charge_n, amber.charge_n, atol=5e-9)  # eight decimals in the top
    same = System(topology, system("explicit").position_n3, None, system("explicit").box_33)  # the gro has three decimals
    ours, theirs = bonded_energies(same), bonded_energies(System(amber, same.position_n3, None, same.box_33))
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-7), name  # nine digits in the top, sums with cancellation


def test_water_of_the_explicit_system_becomes_rigid() -> None:
    topology = rigid(system("explicit").topology, bonds="hydrogens")
    assert len(topology.settles.index) == 749
    np.testing.assert_allclose(topology.settles.parameter[0], [0.09572, 0.15136], atol=1e-9)
    assert len(topology.constraints.index) == 12 and len(topology.bonds.index) == 9
    heavy = rigid(system("jac").topology, bonds="hydrogens")  # hydrogen masses of 3.024 u there, without a list of elements
    assert len(heavy.settles.index) == 7023 and len(heavy.constraints.index) == 1221


def test_coordinates_of_solvated_systems() -> None:
    for name in ("explicit", "jac"):
        found = system(name)
        np.testing.assert_allclose(found.box_33, reference(name)["box_nm"], atol=1e-12)
        i, j = found.topology.bonds.index.T
        assert np.linalg.norm(found.position_n3[i] - found.position_n3[j], axis=1).max() < 0.25  # whole
    velocity, mass = system("jac").velocity_n3, system("jac").topology.mass_n
    free = 3 * len(mass) - 1221 - 3 * 7023
    temperature = (mass[:, None] * velocity**2).sum() / free / 0.00831446
    assert 290 < temperature < 310  # a restart of a run at 300 K: spread 300 sqrt(2/48000) = 2 K
