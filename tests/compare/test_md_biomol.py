"""Energies and forces of AMBER and GROMACS inputs, as a job computes them, against OpenMM 8.6.1 (Reference platform, double).

The files are those of OpenMM's and AMBER's own tests, read where they are at hand: `../shared/data/md/biomol`.  OpenMM's records
name its splitting alpha, which `ewald_tolerance` reproduces here, its mesh, and order 5; the reciprocal term is made with those,
so that both sums have the same error and differ by rounding alone (a mesh of order 6 and the same step differs by 2e-8).
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.physics.md.config import Config
from gewu.physics.md.pme import Pme
from gewu.physics.md.prepare import Setup, prepare
from gewu.physics.md.state import Evaluation

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "md" / "biomol"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the files of OpenMM and AMBER are not at hand")
SYSTEMS = ("vacuum", "explicit", "jac")
NONBONDED = ("lennard_jones", "coulomb", "coulomb_reciprocal", "dispersion_correction", "lennard_jones_14", "coulomb_14")
# relative, energy and rms force; OpenMM and gewu differ by 1e-10 in the Coulomb constant, and forces are given to eight digits
LIMITS = {"double": (1e-9, 1e-7), "mixed": (2e-6, 2e-5)}  # mixed: the bar of the precision, rms over all atoms


@cache
def reference(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "reference_energies.json").read_text())["results"][SYSTEMS.index(name)]
    return found


def job(name: str, precision: str, **changes: Any) -> Config:
    entry = reference(name)
    keys: dict[str, Any] = {"topology": str(FOLDER / entry["topology"]), "structure": str(FOLDER / entry["coordinates"])}
    if "pme" in entry:
        cutoff, pme = entry["settings"]["cutoff_nm"], entry["pme"]
        keys |= {"cutoff_nm": cutoff, "ewald_tolerance": math.erfc(pme["alpha_per_nm"] * cutoff)}
    return Config(**{**keys, "constraints": "none", "ensemble": "nve", "precision": precision, **changes})


def evaluate(setup: Setup, name: str, precision: Any) -> tuple[Evaluation, np.ndarray]:
    """Return energies and forces, with the mesh of the record."""
    state, model, pme = setup.model.adopt(setup.state), setup.model, reference(name).get("pme")
    if pme is not None:
        assert any(isinstance(term, Pme) and term.alpha == pytest.approx(pme["alpha_per_nm"], rel=1e-12) for term in model.terms)
        own = Pme(setup.topology, pme["alpha_per_nm"], tuple(pme["grid"]), order=pme["spline_order"], precision=precision)
        model.terms = [own if isinstance(term, Pme) else term for term in model.terms]
    evaluation = model.compute(state, True)
    assert evaluation is not None
    return evaluation, state.force_n3


def check(name: str, precision: str) -> None:
    energy, entry, setup = reference(name)["energy_kJ_mol"], reference(name), prepare(job(name, precision))
    evaluation, force = evaluate(setup, name, precision)
    ours, (energy_limit, force_limit) = evaluation.energies, LIMITS[precision]
    assert len(force) == entry["n_atoms"] and setup.model.constraints is None
    for key, theirs in (("bond", "HarmonicBondForce"), ("angle", "HarmonicAngleForce"), ("dihedral", "PeriodicTorsionForce")):
        assert ours[key] == pytest.approx(energy[theirs], rel=1e-9), key  # in double in both precisions
    assert not any(value for key, value in ours.items() if key not in (*NONBONDED, "bond", "angle", "dihedral"))
    nonbonded = sum(ours.get(key, 0.0) for key in NONBONDED)
    assert nonbonded == pytest.approx(energy["NonbondedForce"], rel=energy_limit)
    assert evaluation.potential == pytest.approx(energy["total"], rel=energy_limit)
    rms = math.sqrt((force**2).sum() / len(force))
    assert rms == pytest.approx(entry["force_rms_kJ_mol_nm"], rel=force_limit)
    error = force[:5] - entry["forces_kJ_mol_nm_first5"]
    assert np.abs(error).max() < force_limit * rms * (1.0 if precision == "double" else 3.0)  # three sigma of fifteen numbers


@pytest.mark.parametrize("precision", LIMITS)
def test_alanine_dipeptide_in_vacuum(precision: str) -> None:
    check("vacuum", precision)


@pytest.mark.parametrize("precision", LIMITS)
def test_alanine_dipeptide_in_water(precision: str) -> None:
    check("explicit", precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", LIMITS)
def test_dihydrofolate_reductase_in_water(precision: str) -> None:
    check("jac", precision)


def test_gromacs_topology_gives_the_energies_of_openmm(tmp_path: Path) -> None:
    """The .gro has three decimals: energies are compared at AMBER's coordinates of the same atoms."""
    stem = FOLDER / "alanine-dipeptide-explicit"
    top = tmp_path / "flexible.top"
    top.write_text("#define FLEXIBLE\n" + stem.with_suffix(".top").read_text())
    setup = prepare(job("explicit", "double", topology=str(top), structure=str(stem.with_suffix(".gro"))))
    amber = prepare(job("explicit", "double"))
    shift = setup.state.position_n3 - amber.state.position_n3
    shift -= np.round(shift @ np.linalg.inv(amber.state.box_33)) @ amber.state.box_33
    assert np.abs(shift).max() < 6e-4  # the same atoms in the same order, rounded
    setup.state.position_n3[:], setup.state.box_33[:] = amber.state.position_n3, amber.state.box_33
    evaluation, force = evaluate(setup, "explicit", "double")
    # eight decimals in charges and nine digits in the others: 1e-8 in each of 2,269 charges of 0.4 to 0.8
    assert evaluation.potential == pytest.approx(reference("explicit")["energy_kJ_mol"]["total"], rel=2e-7)
    theirs = np.array(reference("explicit")["forces_kJ_mol_nm_first5"])
    assert np.abs(force[:5] - theirs).max() < 1e-6 * reference("explicit")["force_rms_kJ_mol_nm"]
