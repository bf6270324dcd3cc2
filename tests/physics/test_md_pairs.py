"""The 4 x 8 pair kernel and its list against the O(n^2) sum, in both precisions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.physics.md.cells import ClusterList
from gewu.physics.md.pairs import LennardJones, NonBonded, Pairs
from gewu.physics.md.state import new_state
from tests import mdtools
from tests.mdreference import brute_force

RC, SKIN = 0.9, 0.1
KINDS = {
    "cut": ("one", NonBonded(RC)),
    "shift": ("geometric", NonBonded(RC, "shift", "cut")),
    "field": ("lorentz-berthelot", NonBonded(RC, "force-shift", "reaction-field", epsilon_rf=78.0)),
    "ewald": ("lorentz-berthelot", NonBonded(RC, "cut", "ewald", alpha=3.4)),
    "table": ("table", NonBonded(RC, "cut", "ewald", alpha=3.4)),
    "charges": ("none", NonBonded(RC, "cut", "reaction-field")),
}
# A coordinate of 2 nm rounds to 1e-7 nm; at 0.25 nm a force that goes as r^-13 then errs by 13 x 1e-7 / 0.25 = 5e-6.
FORCE_ERROR = {"mixed": 1e-5, "double": 1e-13}
# The tail of erfc is a polynomial good to 1e-14 of its value at 0, which is larger than the real-space force near the cutoff.
ENERGY_ERROR = {"mixed": 1e-5, "double": 1e-12}


@pytest.mark.parametrize(("kind", "precision"), [(kind, "double") for kind in KINDS] + [("cut", "mixed"), ("table", "mixed")])
def test_forces_energies_and_virial_are_those_of_the_sum_over_all_pairs(kind: str, precision: str) -> None:
    mixing, settings = KINDS[kind]
    topology = mdtools.mixture(400, mixing)
    assert LennardJones(topology).kind == mixing
    state = mdtools.shaken(topology)
    wanted, force = brute_force(state, topology, settings)
    pairs = Pairs(topology, settings, SKIN, precision)
    found, forces = mdtools.evaluate(pairs, state)
    assert mdtools.rms_error(forces, force) < FORCE_ERROR[precision]
    scale = sum(abs(e) for e in wanted.energies.values())
    for name, value in wanted.energies.items():
        assert found.energies[name] == pytest.approx(value, abs=ENERGY_ERROR[precision] * scale)
    assert np.abs(found.virial_33 - wanted.virial_33).max() < ENERGY_ERROR[precision] * np.abs(wanted.virial_33).max() * 10
    state.force_n3[:] = 0.0
    assert pairs.compute(state, False) is None
    assert mdtools.rms_error(state.force_n3, forces) < FORCE_ERROR[precision]  # the kernel without energies is another one


def test_many_types_are_looked_up() -> None:
    """Five types, each row of the table different, so a wrong index shows."""
    rng = np.random.default_rng(11)
    sigma, epsilon = 0.2 + 0.1 * rng.random((5, 5)), 0.2 + rng.random((5, 5))
    topology = replace(
        mdtools.mixture(400, "table"),
        type_n=rng.integers(0, 5, 400).astype(np.int32),
        type_names=tuple("ABCDE"),
        sigma_tt=(sigma + sigma.T) / 2,
        epsilon_tt=(epsilon + epsilon.T) / 2,
    )
    state = mdtools.shaken(topology)
    settings = KINDS["table"][1]
    _, force = brute_force(state, topology, settings)
    _, forces = mdtools.evaluate(Pairs(topology, settings, SKIN, "double"), state)
    assert mdtools.rms_error(forces, force) < FORCE_ERROR["double"]


def test_vacuum_needs_no_box() -> None:
    topology = mdtools.mixture(60, "lorentz-berthelot")
    state = mdtools.shaken(topology, periodic=False)
    settings = NonBonded(30.0, "cut", "cut")  # farther than any two atoms
    wanted, force = brute_force(state, topology, settings)
    found, forces = mdtools.evaluate(Pairs(topology, settings, 0.0, "double"), state)
    assert mdtools.rms_error(forces, force) < 1e-12
    assert found.potential == pytest.approx(wanted.potential, rel=1e-12)


def test_the_list_stays_right_while_atoms_and_box_move() -> None:
    mixing, settings = KINDS["ewald"]
    topology = mdtools.mixture(400, mixing)
    state = mdtools.shaken(topology)
    pairs = Pairs(topology, settings, SKIN, "double")
    pairs.rebuild(state)
    rng = np.random.default_rng(5)
    step = rng.normal(size=(400, 3))
    state.position_n3 += 0.48 * SKIN * step / np.linalg.norm(step, axis=1, keepdims=True)
    state.position_n3 *= 0.999
    state.box_33 *= 0.999
    state.force_n3[:] = 0.0
    pairs.compute(state, False)
    _, force = brute_force(state, topology, settings)
    assert mdtools.rms_error(state.force_n3, force) < 1e-13


def test_ghosts_give_this_ranks_share() -> None:
    """Two halves of a box, each with the other as ghosts, add up to the whole."""
    mixing, settings = KINDS["field"]
    topology = replace(mdtools.mixture(300, mixing), exclusions=np.zeros((0, 2), np.int32))
    state = mdtools.shaken(topology)
    whole, force = brute_force(state, topology, settings)
    total, virial, forces = 0.0, np.zeros((3, 3)), np.zeros((300, 3))
    for half in (np.arange(300), np.roll(np.arange(300), 150)):
        part = replace(topology, charge_n=topology.charge_n[half], type_n=topology.type_n[half])
        share = new_state(part, state.position_n3[half], state.box_33)
        share.owned = 150
        found, some = mdtools.evaluate(Pairs(part, settings, SKIN, "double"), share)
        total, virial = total + found.potential, virial + found.virial_33
        forces[half[:150]] = some[:150]
    assert total == pytest.approx(whole.potential, rel=1e-12)
    assert np.abs(virial - whole.virial_33).max() < 1e-11 * np.abs(virial).max()
    assert mdtools.rms_error(forces, force) < 1e-12


def test_virial_is_the_strain_derivative_and_force_the_gradient() -> None:
    topology = mdtools.mixture(300, "lorentz-berthelot")
    state = mdtools.shaken(topology)
    pairs = Pairs(topology, NonBonded(RC, "force-shift", "reaction-field"), SKIN, "double")  # continuous at the cutoff

    def energy(at):  # type: ignore[no-untyped-def]
        return mdtools.evaluate(pairs, at)[0].potential

    found, force = mdtools.evaluate(pairs, state)
    # Central differences of step 1e-5 leave 1e-10 of the third derivative, and 1e-16 / 1e-5 of rounding.
    assert np.abs(found.virial_33 - mdtools.strain_derivative(energy, state)).max() < 1e-6 * np.abs(found.virial_33).max()
    for atom, axis in ((0, 0), (17, 1), (123, 2)):
        ahead, behind = replace(state, position_n3=state.position_n3.copy()), replace(state, position_n3=state.position_n3.copy())
        ahead.position_n3[atom, axis] += 1e-6
        behind.position_n3[atom, axis] -= 1e-6
        slope = (energy(ahead) - energy(behind)) / 2e-6
        assert -slope == pytest.approx(force[atom, axis], abs=1e-5 * np.abs(force).max())


def test_precision_does_not_depend_on_the_size_of_the_box() -> None:
    """Coordinates count from blocks: a box 60 nm long has the error of a small one."""
    grid = np.stack(np.meshgrid(np.arange(180), np.arange(4), np.arange(4), indexing="ij"), -1).reshape(-1, 3)
    topology = mdtools.mixture(len(grid), "one")
    shaken = grid + 0.1 * np.random.default_rng(3).normal(size=grid.shape)
    state = new_state(topology, shaken * [60 / 180, 0.475, 0.475], np.diag([60.0, 1.9, 1.9]))
    _, force = brute_force(state, topology, NonBonded(0.8))
    _, forces = mdtools.evaluate(Pairs(topology, NonBonded(0.8), SKIN, "mixed"), state)
    assert mdtools.rms_error(forces, force) < FORCE_ERROR["mixed"]


def test_buffers_that_overflow_are_grown() -> None:
    topology = mdtools.mixture(400, "one")
    state = mdtools.shaken(topology)
    reference = ClusterList(RC + SKIN, "double", topology.exclusions)
    reference.build(state)
    tight = ClusterList(RC + SKIN, "double", topology.exclusions)
    tight._grow(3, 5)
    tight.build(state)
    assert tight.tiles == reference.tiles > 5 * tight.chunks
    assert tight.j_list.shape[1] > 5
    for i in range(reference.slots // 4):
        assert (tight.row_first[i] == reference.row_first[i]).all()


def test_a_box_smaller_than_twice_the_list_radius_is_refused() -> None:
    topology = mdtools.mixture(50, "one")
    with pytest.raises(InputError, match="too small"):
        Pairs(topology, NonBonded(1.2), 0.1).rebuild(mdtools.shaken(topology))


def test_unknown_treatment_is_refused() -> None:
    with pytest.raises(InputError, match="unknown treatment"):
        Pairs(mdtools.mixture(8, "one"), NonBonded(1.0, lj="switch"), 0.1)
