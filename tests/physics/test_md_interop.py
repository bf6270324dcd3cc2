"""Forces from anywhere: callables as terms, ASE's calculators in gewu and gewu's models in ASE."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import ConvergenceError, InputError
from gewu.physics.md.barostat import MartynaTobiasKlein
from gewu.physics.md.integrate import VelocityVerlet
from gewu.physics.md.model import Model
from gewu.physics.md.pairs import NonBonded
from gewu.physics.md.plain import PlainPairs
from gewu.physics.md.potential import CallableTerm
from gewu.physics.md.state import State, Topology, new_state
from gewu.physics.md.units import EV

SIGMA, EPSILON, RC = 0.34, 1.0, 0.85  # nm, kJ/mol


def argon(n: int) -> Topology:
    return Topology(
        mass_n=np.full(n, 39.95),
        charge_n=np.zeros(n),
        type_n=np.zeros(n, np.int32),
        type_names=("Ar",),
        element=("Ar",) * n,
        sigma_tt=np.full((1, 1), SIGMA),
        epsilon_tt=np.full((1, 1), EPSILON),
    )


def crystal() -> Any:
    """Return shaken fcc argon in a sheared cell of general orientation, as ASE's Atoms."""
    build = pytest.importorskip("ase.build")
    atoms = build.bulk("Ar", "fcc", a=5.4, cubic=True).repeat((4, 4, 4))
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    cell = atoms.cell.array @ np.array([[1, 0, 0], [0.7, 1, 0], [-0.2, 0.1, 1]])  # sheared beyond half: has to be reduced
    atoms.set_cell(cell @ turn, scale_atoms=True)
    atoms.rattle(0.15, seed=2)
    return atoms


def lennard_jones() -> Any:
    """Return ASE's own calculator of the same interaction, shifted to zero at the cutoff."""
    return pytest.importorskip("ase.calculators.lj").LennardJones(
        sigma=10 * SIGMA, epsilon=EPSILON / EV, rc=10 * RC, smooth=False
    )


def build(atoms: Any) -> tuple[Model, State]:
    from gewu.physics.md.ase import frame

    position, box, periodic, _ = frame(atoms)
    topology, settings = argon(len(atoms)), NonBonded(RC, "shift")
    state = new_state(topology, position, box, periodic=periodic)
    model = Model(topology, lambda local: [PlainPairs(local.topology, settings, skin=0.05, images=local.images)], RC, 0.05)
    return model, model.adopt(state)


@pytest.mark.parametrize("periodic", [True, False])
def test_a_gewu_model_in_ase_agrees_with_ases_own(periodic: bool) -> None:
    ours, theirs = crystal(), crystal()
    from gewu.physics.md.ase import GewuCalculator

    for atoms, calculator in ((ours, GewuCalculator(build)), (theirs, lennard_jones())):
        atoms.pbc = periodic
        atoms.calc = calculator
    for _ in range(2):  # the second time with moved atoms and the model at hand
        assert ours.get_potential_energy() == pytest.approx(theirs.get_potential_energy(), rel=1e-11)
        assert np.allclose(ours.get_forces(), theirs.get_forces(), rtol=0, atol=1e-11 * np.abs(theirs.get_forces()).max())
        if periodic:
            assert np.allclose(ours.get_stress(), theirs.get_stress(), rtol=0, atol=1e-11 * np.abs(theirs.get_stress()).max())
        for atoms in (ours, theirs):
            atoms.rattle(0.1, seed=3)
            if periodic:
                atoms.set_cell(atoms.cell.array * 0.99, scale_atoms=True)


def test_an_ase_calculator_as_a_term() -> None:
    model, state = build(crystal())
    from gewu.physics.md.ase import from_ase

    expected = model.compute(state, True)
    force = state.force_n3.copy()
    state.force_n3[:] = 0
    found = CallableTerm(from_ase(lennard_jones(), argon(len(force)).element)).compute(state, True)
    assert found is not None and expected is not None
    assert found.energies == {"potential": pytest.approx(expected.potential, rel=1e-11)}
    assert np.allclose(state.force_n3, force, rtol=0, atol=1e-11 * np.abs(force).max())
    assert np.allclose(found.virial_33, expected.virial_33, rtol=0, atol=1e-11 * np.abs(expected.virial_33).max())


def hot_copper() -> Any:
    """Return 32 moving copper atoms with ASE's effective-medium potential, in a turned and sheared cell."""
    atoms = pytest.importorskip("ase.build").bulk("Cu", cubic=True).repeat((2, 2, 2))
    rng = np.random.default_rng(4)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    atoms.set_cell(atoms.cell.array @ np.array([[1, 0, 0], [1.02, 1, 0], [0, 0, 1]]) @ turn)
    atoms.positions[:] = atoms.positions @ turn
    atoms.set_velocities(rng.normal(scale=0.02, size=(len(atoms), 3)))
    atoms.calc = pytest.importorskip("ase.calculators.emt").EMT()
    return atoms


def test_atoms_of_ase_move_as_in_ase() -> None:
    ours, theirs = hot_copper(), hot_copper()
    from ase import units
    from ase.md.verlet import VelocityVerlet as Theirs

    from gewu.physics.md.ase import run_atoms

    Theirs(theirs, timestep=2 * units.fs).run(20)
    rows = run_atoms(ours, 20, VelocityVerlet(0.002), every=5)
    # constants of other years differ by 1e-8
    assert np.allclose(ours.positions, theirs.positions, rtol=0, atol=1e-7)
    assert np.allclose(ours.get_velocities(), theirs.get_velocities(), rtol=0, atol=1e-7)
    assert np.allclose(ours.cell.array, theirs.cell.array, rtol=0, atol=1e-12)
    assert rows[-1, 0] == pytest.approx(0.04) and rows[-1, 1] == pytest.approx(theirs.get_potential_energy(), abs=1e-6)
    assert rows[-1, 2] == pytest.approx(theirs.get_kinetic_energy(), rel=1e-6)
    assert np.ptp(rows[:, 3]) < 1e-2 * np.ptp(rows[:, 1])  # energy goes to and fro, its sum stays: order (omega dt)^2 = 0.5 %


def test_a_barostat_changes_the_cell_of_ase() -> None:
    atoms = hot_copper()
    from gewu.physics.md.ase import run_atoms

    before, volume = atoms.get_scaled_positions(wrap=False), atoms.get_volume()
    angles = atoms.cell.angles()
    rows = run_atoms(atoms, 20, MartynaTobiasKlein(0.002, 300.0, 0.1, 6000.0, 0.1))  # 100 kbar
    assert atoms.get_volume() < 0.995 * volume
    assert np.allclose(atoms.cell.angles(), angles, rtol=0, atol=1e-9)
    assert np.abs(atoms.get_scaled_positions(wrap=False) - before).max() < 0.05  # atoms went with the cell
    assert np.isfinite(rows).all()


def test_atoms_that_cannot_move() -> None:
    atoms = hot_copper()
    from gewu.physics.md.ase import run_atoms

    atoms.set_constraint(pytest.importorskip("ase.constraints").FixAtoms([0]))
    with pytest.raises(InputError, match="FixAtoms"):
        run_atoms(atoms, 1, VelocityVerlet(0.002))
    atoms.set_constraint()
    atoms.calc = None
    with pytest.raises(InputError, match="no calculator"):
        run_atoms(atoms, 1, VelocityVerlet(0.002))


def test_what_ase_allows_and_gewu_does_not() -> None:
    atoms = crystal()
    from gewu.physics.md.ase import GewuCalculator

    atoms.calc = GewuCalculator(build)
    atoms.pbc = (True, True, False)
    with pytest.raises(InputError, match="all directions or in none"):
        atoms.get_potential_energy()
    atoms.pbc = True
    atoms.cell[2] = atoms.cell[1]
    with pytest.raises(InputError, match="three independent"):
        atoms.get_potential_energy()


def spring(state: State) -> tuple[float, Any]:
    """A spring of strength 3 and length 0.5 between two atoms."""
    d = state.position_n3[0] - state.position_n3[1]
    r = float(np.linalg.norm(d))
    f = -3 * (r - 0.5) * d / r
    return 1.5 * (r - 0.5) ** 2, np.stack([f, -f])


def test_a_callable_is_a_term() -> None:
    state = new_state(argon(2), [[0.1, 0.2, 0.3], [0.5, 0.2, 0.0]], np.eye(3), periodic=False)
    term = CallableTerm(spring)
    assert term.compute(state, False) is None  # r = 0.5: at rest
    assert np.all(state.force_n3 == 0)
    state.position_n3[1, 2] = 0.3  # r = 0.4 along x
    found = term.compute(state, True)
    assert found is not None and found.energies == {"potential": pytest.approx(0.015)}
    assert state.force_n3 == pytest.approx(np.array([[-0.3, 0, 0], [0.3, 0, 0]]))
    assert found.virial_33 == pytest.approx(np.diag([0.12, 0, 0]))  # -r dU/dr = 0.4 * 0.3
    state.periodic = True
    unknown = term.compute(state, True)
    assert unknown is not None and np.isnan(unknown.virial_33).all()


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (1.0, InputError, "energy, forces"),
        ((1.0, np.zeros((3, 3))), InputError, "another shape"),
        ((1.0, np.zeros((2, 3)), np.zeros(6)), InputError, "virial"),
        ((math.nan, np.zeros((2, 3))), ConvergenceError, "the energy"),
        ((1.0, np.array([[0, 0, 0], [0, math.inf, 0]])), ConvergenceError, "atom 2"),
    ],
)
def test_answers_that_are_none(answer: Any, error: type[Exception], match: str) -> None:
    state = new_state(argon(2), np.eye(3)[:2], np.eye(3))
    with pytest.raises(error, match=match):
        CallableTerm(lambda _: answer).compute(state, True)
