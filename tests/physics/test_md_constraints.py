"""Rigid bonds, rigid water and virtual sites: two solvers against each other, conservation, the virial of rotating bodies."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from gewu.core.errors import ConvergenceError, InputError
from gewu.physics.md.constraints import Constraints, groups
from gewu.physics.md.state import Array, State, Terms, Topology, new_state
from gewu.physics.md.units import COULOMB
from gewu.physics.md.virtual import VirtualSites

D_OH, D_HH = 0.1, 0.1632980862  # SPC/E
WATER = np.array(
    [[0.0, 0.0, 0.0], [D_HH / 2, -math.sqrt(D_OH**2 - D_HH**2 / 4), 0.0], [-D_HH / 2, -math.sqrt(D_OH**2 - D_HH**2 / 4), 0.0]]
)
MASSES = np.array([15.9994, 1.008, 1.008])
SIDES = ((0, 1, D_OH), (0, 2, D_OH), (1, 2, D_HH))
BOX = 5.0 * np.eye(3)


def made(masses: Array, element: tuple[str, ...] = (), **tables: Terms) -> Topology:
    n, one = len(masses), np.ones((1, 1))
    return Topology(masses, np.zeros(n), np.zeros(n, np.int32), ("A",), element or ("C",) * n, one, one, **tables)


def terms(index: object, parameter: object) -> Terms:
    return Terms(np.array(index, np.int32), np.array(parameter, np.float64))


def rigid_water(n: int, solver: str) -> Topology:
    first = 3 * np.arange(n)
    if solver == "settle":
        return made(np.tile(MASSES, n), settles=terms(first[:, None] + [0, 1, 2], np.tile([D_OH, D_HH], (n, 1))))
    pairs = [([a + i, a + j], [d]) for a in first for i, j, d in SIDES]
    return made(np.tile(MASSES, n), constraints=terms(*zip(*pairs, strict=True)))


def turned(rng: np.random.Generator) -> Array:
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return np.asarray(WATER @ turn)


def waters(n: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return np.concatenate([turned(rng) + rng.normal(scale=3.0, size=3) for _ in range(n)])


def moved(topology: Topology, before: Array, dt: float, scale: float = 1.0, seed: int = 1) -> State:
    """Return thermal velocities and the positions after a free drift."""
    velocity = np.random.default_rng(seed).normal(scale=scale, size=before.shape) / np.sqrt(topology.mass_n)[:, None]
    return new_state(topology, before + dt * velocity, BOX, velocity_n3=velocity, periodic=False)


def worst_length(state: State) -> float:
    r = state.position_n3.reshape(-1, 3, 3)
    return max(float(np.abs(np.linalg.norm(r[:, i] - r[:, j], axis=1) / d - 1).max()) for i, j, d in SIDES)


def worst_rate(state: State, pairs: Array) -> float:
    """Return the largest relative rate of a distance, 1/ps."""
    r, v = (x[pairs[:, 0]] - x[pairs[:, 1]] for x in (state.position_n3, state.velocity_n3))
    return float(np.abs((r * v).sum(-1) / (r * r).sum(-1)).max())


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_settle_is_the_limit_of_shake(device: str) -> None:
    n, dt, before = 20, 0.002, waters(20)
    states, virials = [], []
    for solver, tolerance in (("settle", 1e-10), ("shake", 1e-14)):
        topology = rigid_water(n, solver)
        state, constraints = moved(topology, before, dt, 3.0), Constraints(topology, tolerance=tolerance, device=device)
        constraints.positions(state, before, dt)
        assert worst_length(state) < (1e-13 if solver == "settle" else 3e-14)  # settle: rounding of 5 nm coordinates
        constraints.velocities(state)
        assert constraints.count == 3 * n
        states.append(state)
        virials.append(constraints.virial_33)
    np.testing.assert_allclose(states[0].position_n3, states[1].position_n3, rtol=0, atol=1e-13)  # both solved to rounding
    np.testing.assert_allclose(states[0].velocity_n3, states[1].velocity_n3, rtol=0, atol=1e-10)  # 1e-13 nm / 0.002 ps
    np.testing.assert_allclose(virials[0], virials[1], atol=1e-10 * np.abs(virials[1]).max())
    np.testing.assert_allclose(virials[0], virials[0].T, atol=0)
    pairs = np.array([[3 * m + i, 3 * m + j] for m in range(n) for i, j, _ in SIDES])
    assert worst_rate(states[0], pairs) < 1e-11 and worst_rate(states[1], pairs) < 1e-11  # rounding of 10 nm/ps over 0.1 nm


def test_settle_keeps_momentum_and_angular_momentum() -> None:
    topology, before, dt = rigid_water(5, "settle"), waters(5, 3), 0.002
    free = moved(topology, before, dt, 3.0)
    state = moved(topology, before, dt, 3.0)
    Constraints(topology).positions(state, before, dt)
    kick = (MASSES[:, None] * (state.position_n3 - free.position_n3).reshape(-1, 3, 3)) / dt
    assert np.abs(kick).max() > 0.01
    assert np.abs(kick.sum(axis=1)).max() < 1e-11  # 1e-15 nm x 16 u / 0.002 ps
    assert np.abs(np.cross(before.reshape(-1, 3, 3), kick).sum(axis=1)).max() < 1e-10  # ... x 5 nm
    np.testing.assert_allclose(state.velocity_n3 - free.velocity_n3, (state.position_n3 - free.position_n3) / dt, atol=1e-11)
    # Without a time only positions change; on the manifold nothing changes.
    again = new_state(topology, free.position_n3, BOX, velocity_n3=free.velocity_n3, periodic=False)
    Constraints(topology).positions(again, before, None)
    np.testing.assert_array_equal(again.position_n3, state.position_n3)
    np.testing.assert_array_equal(again.velocity_n3, free.velocity_n3)
    Constraints(topology).positions(again, again.position_n3, None)
    np.testing.assert_allclose(again.position_n3, state.position_n3, atol=1e-14)


def methyls() -> tuple[Topology, Array]:
    """Return a chain C-C-C-C with all bonds rigid, three hydrogens on one end, beside an O-H group of its own."""
    rng = np.random.default_rng(2)
    bonds = [(0, 1), (1, 2), (2, 3), (0, 4), (0, 5), (0, 6), (7, 8)]
    r = rng.normal(scale=0.1, size=(9, 3)) + np.linspace(0, 1, 9)[:, None]
    length = [[float(np.linalg.norm(r[i] - r[j]))] for i, j in bonds]
    order = rng.permutation(len(bonds))
    masses = np.array([12.0, 12.0, 12.0, 12.0, 1.0, 1.0, 1.0, 16.0, 1.0])
    return made(masses, constraints=terms(np.array(bonds)[order], np.array(length)[order])), r


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_clusters_are_solved(device: str) -> None:
    topology, before = methyls()
    constraints, dt = Constraints(topology, device=device), 0.002
    assert constraints.count == 7
    state = moved(topology, before, dt, 1.5)
    momentum = (topology.mass_n[:, None] * state.velocity_n3).sum(axis=0)
    constraints.positions(state, before, dt)
    pairs, length = topology.constraints.index, topology.constraints.parameter[:, 0]
    found = np.linalg.norm(state.position_n3[pairs[:, 0]] - state.position_n3[pairs[:, 1]], axis=1)
    assert np.abs(found / length - 1).max() < 1.001e-10  # the tolerance
    constraints.velocities(state)
    assert worst_rate(state, pairs) < 1.001e-10
    np.testing.assert_allclose((topology.mass_n[:, None] * state.velocity_n3).sum(axis=0), momentum, atol=1e-11)


def test_groups_are_what_hangs_together() -> None:
    order, start = groups(np.array([[4, 5], [0, 1], [5, 6], [2, 3], [1, 7]], np.int32))
    found = {frozenset(order[a:b].tolist()) for a, b in itertools.pairwise(start)}
    assert found == {frozenset({0, 2}), frozenset({1, 4}), frozenset({3})}


@pytest.mark.parametrize("kind", ["settle", "shake", "chain"])
def test_the_constraint_virial_makes_the_pressure_molecular(kind: str) -> None:
    """Compare with -sum s.f - sum m |ds/dt|^2 for rigid bodies, s_i = r_i - R, and with Lagrange multipliers for the chain.

    In a rigid body all |s_i - s_j| are fixed, so d/dt sum m s.ds/dt = sum s.(f + G) + sum m |ds/dt|^2 = 0; with this sum s.G the
    atomic pressure is the molecular one.  In the chain G follows from d^2/dt^2 |r_i - r_j|^2 = 0.
    """
    topology, r = methyls() if kind == "chain" else (rigid_water(4, kind), waters(4, 7))
    state, constraints = moved(topology, r, 0.0), Constraints(topology, tolerance=1e-14)
    constraints.velocities(state)
    mass, v = topology.mass_n[:, None], state.velocity_n3.copy()
    force, dt, virial = np.random.default_rng(8).normal(scale=300.0, size=r.shape), 1e-4, np.zeros((3, 3))
    for sign in (1, -1):
        state.velocity_n3[:] = sign * v + 0.5 * dt * force / mass
        state.position_n3[:] = r + dt * state.velocity_n3
        constraints.positions(state, r, dt)
        virial += 0.5 * constraints.virial_33
    if kind == "chain":
        pairs = topology.constraints.index
        gradient = np.zeros((len(pairs), *r.shape))
        for k, (i, j) in enumerate(pairs):
            gradient[k, i], gradient[k, j] = r[i] - r[j], r[j] - r[i]
        apart = v[pairs[:, 0]] - v[pairs[:, 1]]
        free = (gradient * (force / mass)).sum((1, 2)) + (apart**2).sum(-1)
        multiplier = np.linalg.solve(np.einsum("kia,lia,i->kl", gradient, gradient, 1 / topology.mass_n), -free)
        expected = np.einsum("ia,k,kib->ab", r, multiplier, gradient)
        # The average over v and -v leaves O(dt^2): (10 nm/ps x 1e-4 ps / 0.1 nm)^2 = 1e-4 at the very worst.
        np.testing.assert_allclose(virial, expected, atol=1e-4 * np.abs(expected).max())
    else:
        s, u = (x.reshape(-1, 3, 3) - (MASSES @ x.reshape(-1, 3, 3) / MASSES.sum())[:, None] for x in (r, v))
        expected = -(s * force.reshape(-1, 3, 3)).sum() - (MASSES[:, None] * u**2).sum()
        assert abs(expected) > 1.0
        assert np.trace(virial) == pytest.approx(expected, rel=1e-4)


def molecular_forces(topology: Topology, state: State, charge_n: Array) -> float:
    """Fill in Coulomb between all atoms of different SPC/E waters, Lennard-Jones between oxygens; return the energy."""
    r = state.position_n3
    d = r[:, None] - r[None]
    other = np.arange(len(r))[:, None] // 3 != np.arange(len(r))[None] // 3
    r2 = np.where(other, (d**2).sum(-1), 1.0)
    coulomb = np.where(other, COULOMB * np.outer(charge_n, charge_n) / np.sqrt(r2), 0.0)
    oxygen = topology.mass_n > 10
    s6 = np.where(other & np.outer(oxygen, oxygen), (0.3166**2 / r2) ** 3, 0.0)
    lennard_jones = 4 * 0.650 * (s6**2 - s6)
    slope = (coulomb + 4 * 0.650 * (12 * s6**2 - 6 * s6)) / r2
    state.force_n3[:] = (slope[:, :, None] * d).sum(axis=1)
    return float((coulomb + lennard_jones).sum() / 2)


def worst_energy(dt: float, time: float) -> float:
    """Run six waters by velocity Verlet and return the largest error of the energy."""
    topology, rng = rigid_water(6, "settle"), np.random.default_rng(11)
    corners = 0.29 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1]], np.float64)
    r = np.concatenate([turned(rng) + c for c in corners])
    charge = np.tile([-0.8476, 0.4238, 0.4238], 6)
    state, constraints = moved(topology, r, 0.0, 1.0), Constraints(topology)
    constraints.velocities(state)
    mass, energies = topology.mass_n[:, None], []
    potential = molecular_forces(topology, state, charge)
    for _ in range(round(time / dt)):
        energies.append(potential + 0.5 * float((mass * state.velocity_n3**2).sum()))
        before = state.position_n3.copy()
        state.velocity_n3 += 0.5 * dt * state.force_n3 / mass
        state.position_n3 += dt * state.velocity_n3
        constraints.positions(state, before, dt)
        potential = molecular_forces(topology, state, charge)
        state.velocity_n3 += 0.5 * dt * state.force_n3 / mass
        constraints.velocities(state)
    assert worst_length(state) < 1e-12  # rounding does not add up: each step solves for the lengths anew
    return float(np.abs(np.array(energies) - energies[0]).max())


def test_a_cluster_of_rigid_water_keeps_its_energy_to_second_order() -> None:
    coarse, fine = worst_energy(0.001, 0.1), worst_energy(0.0005, 0.1)
    assert coarse < 0.1 * 18 * 1.25  # well below kT/2 for each degree of freedom
    assert 3.7 < coarse / fine < 4.3  # order 2 quarters it; the next order is (dt x libration)^2, some 1e-2 of it


def test_groups_of_other_ranks_are_left_alone() -> None:
    topology, before, dt = rigid_water(3, "settle"), waters(3), 0.002
    both = replace(topology, constraints=terms([[6, 7]], [[D_OH]]), settles=Terms(*(x[:2] for x in topology.settles)))
    state = moved(topology, before, dt)
    free = state.position_n3.copy()
    constraints = Constraints(both, 3)
    constraints.positions(state, before, dt)
    assert constraints.count == 3
    np.testing.assert_array_equal(state.position_n3[3:], free[3:])
    assert np.abs(state.position_n3[:3] - free[:3]).max() > 1e-6


@pytest.mark.parametrize("solver", ["settle", "shake"])
def test_failures_name_the_atoms(solver: str) -> None:
    topology, before = rigid_water(3, solver), waters(3)
    constraints, state = Constraints(topology), moved(topology, before, 0.0)
    state.position_n3[4] += [0.4, -0.3, 0.5]
    with pytest.raises(ConvergenceError, match=r"atoms 4, 5, 6\b"):
        constraints.positions(state, before, 0.002)
    state = moved(topology, before, 0.0)
    torn = before.copy()
    torn[7, 0] += 5.0
    with pytest.raises(InputError, match=r"torn, atoms 7, 8, 9\b"):
        constraints.positions(state, torn, 0.002)
    state.velocity_n3[1, 2] = np.nan
    with pytest.raises(ConvergenceError, match="atoms 1, 2, 3"):
        constraints.velocities(state)


def test_refusals() -> None:
    water, masses = rigid_water(1, "settle"), np.array([16.0, 1.0, 2.0])
    for topology, what in (
        (replace(water, mass_n=masses), "two different hydrogens"),
        (replace(water, settles=terms([[0, 1, 2]], [[0.1, 0.2]])), "triangle"),
        (replace(water, mass_n=np.array([16.0, 0.0, 0.0])), "without mass"),
        (made(masses, constraints=terms([[0, 1]], [[0.0]])), "without length"),
    ):
        with pytest.raises(InputError, match=what):
            Constraints(topology)


def sites() -> tuple[Topology, State]:
    """Return two TIP4P waters and a fourth body with two sites on the same parents."""
    masses = np.array([16.0, 1.0, 1.0, 0.0, 16.0, 1.0, 1.0, 0.0, 0.0])
    index = [[3, 0, 1, 2], [7, 4, 5, 6], [8, 4, 5, 6]]
    topology = made(masses, virtual_sites=terms(index, [[0.13, 0.13], [0.2, 0.3], [-0.5, 0.4]]))
    rng = np.random.default_rng(9)
    return topology, new_state(topology, rng.normal(size=(9, 3)), BOX, velocity_n3=rng.normal(size=(9, 3)), periodic=False)


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_virtual_sites(device: str) -> None:
    topology, state = sites()
    virtual = VirtualSites(topology, device=device)
    assert len(virtual) == 3
    virtual.place(state)
    for x in (state.position_n3, state.velocity_n3):
        np.testing.assert_allclose(x[3], 0.74 * x[0] + 0.13 * x[1] + 0.13 * x[2], atol=1e-15)
        np.testing.assert_allclose(x[8], 1.1 * x[4] - 0.5 * x[5] + 0.4 * x[6], atol=1e-15)
    state.force_n3[:] = force = np.random.default_rng(10).normal(size=(9, 3))
    virtual.spread(state)
    r, spread = state.position_n3, state.force_n3
    assert np.all(spread[[3, 7, 8]] == 0.0)
    # The same work for every motion of the parents: sum over atoms of f.dr with the sites placed.
    h, where = 1.0, r.copy()
    shift = np.random.default_rng(11).normal(size=(9, 3))
    state.position_n3 += h * shift
    virtual.place(state)
    assert (force * (state.position_n3 - where)).sum() == pytest.approx((spread * h * shift).sum(), abs=1e-13)  # linear: exact
    np.testing.assert_allclose(where.T @ spread, where.T @ force, atol=1e-13)  # virial, and with it torque; rounding
    np.testing.assert_allclose(spread.sum(axis=0), force.sum(axis=0), atol=1e-13)


def test_virtual_sites_that_cannot_be() -> None:
    topology, _ = sites()
    with pytest.raises(InputError, match="has mass"):
        VirtualSites(replace(topology, mass_n=np.ones(9)))
    with pytest.raises(InputError, match="another virtual site"):
        VirtualSites(replace(topology, virtual_sites=terms([[3, 0, 1, 2], [7, 3, 5, 6]], [[0.1, 0.1], [0.1, 0.1]])))
