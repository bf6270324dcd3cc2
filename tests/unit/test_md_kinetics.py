"""Kinetic tensor, temperature and drawn velocities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from gewu.core.random import philox_three_normals
from gewu.physics.md.kinetics import (
    ROWS,
    kinetic_energy,
    kinetic_tensor,
    maxwell_boltzmann,
    remove_drift,
    temperature,
)
from gewu.physics.md.state import State, Topology, new_state
from gewu.physics.md.units import BOLTZMANN


def particles(n: int, mass_n: Any = None) -> State:
    one = np.ones((1, 1))
    mass_n = np.random.default_rng(1).uniform(1.0, 40.0, n) if mass_n is None else mass_n
    topology = Topology(mass_n, np.zeros(n), np.zeros(n, np.int32), ("A",), ("Ar",) * n, one, one)
    random = np.random.default_rng(2)
    return new_state(topology, random.uniform(0, 1, (n, 3)), np.eye(3), velocity_n3=random.standard_normal((n, 3)))


@pytest.mark.parametrize("n", [1, ROWS, ROWS + 1, 1000])
def test_kinetic_tensor_is_the_sum_over_owned_atoms(n: int) -> None:
    state = particles(n)
    state.owned = n - n // 3  # the rest are ghosts
    m, v = state.mass_n[: state.owned], state.velocity_n3[: state.owned]
    expected = np.einsum("n,na,nb->ab", m, v, v)
    # sums of up to 1000 numbers in another order: 1e-13 of the sum of their sizes
    np.testing.assert_allclose(kinetic_tensor(state), expected, rtol=0, atol=1e-13 * np.trace(expected))
    assert np.isclose(kinetic_energy(state), np.trace(expected) / 2, rtol=1e-13)
    assert np.isclose(temperature(expected, 3 * n) * 3 * n * BOLTZMANN, np.trace(expected), rtol=1e-14)


def test_no_degrees_of_freedom_have_no_temperature() -> None:
    assert temperature(np.eye(3), 0) == 0.0


class Halves:
    """Two ranks that hold the same atoms: sums double."""

    rank, size, is_root = 0, 2, True

    def allreduce(self, value: Any, op: str = "sum") -> Any:
        return value + value


def test_sums_go_over_ranks() -> None:
    state, ranks = particles(50), Halves()
    np.testing.assert_array_equal(kinetic_tensor(state, ranks), 2 * kinetic_tensor(state))  # type: ignore[arg-type]
    remove_drift(state, ranks)  # type: ignore[arg-type]
    assert np.abs(state.mass_n @ state.velocity_n3).max() < 1e-12


def test_drawn_velocities_are_maxwells() -> None:
    n, t = 20000, 300.0
    state = particles(n)
    state.step = 7
    maxwell_boltzmann(state, t, 42, 3 * n - 3, exact=False)
    scaled = state.velocity_n3 * np.sqrt(state.mass_n / (BOLTZMANN * t))[:, None]
    for k in range(3):
        assert stats.kstest(scaled[:, k], "norm").pvalue > 0.01  # the seed is fixed: no chance is involved
    assert np.abs(np.corrcoef(scaled.T) - np.eye(3)).max() < 4 / np.sqrt(n)
    assert np.abs(state.mass_n @ state.velocity_n3).max() < 1e-9 * state.mass_n.sum()
    fluctuation = temperature(kinetic_tensor(state), 3 * n - 3) / t - 1
    assert 0 < abs(fluctuation) < 4 * np.sqrt(2 / (3 * n))
    first = state.velocity_n3.copy()
    maxwell_boltzmann(state, t, 42, 3 * n - 3)
    assert abs(temperature(kinetic_tensor(state), 3 * n - 3) - t) < 1e-10 * t
    np.testing.assert_allclose(state.velocity_n3 * np.sqrt(1 + fluctuation), first, rtol=1e-12, atol=1e-14)
    state.step = 8
    maxwell_boltzmann(state, t, 42, 3 * n - 3)
    assert not np.isclose(state.velocity_n3, first).any(axis=1).all()


def test_an_atom_draws_by_its_tag_and_a_site_without_mass_draws_nothing() -> None:
    mass_n = np.array([1.0, 0.0, 16.0, 40.0])
    state = particles(4, mass_n)
    maxwell_boltzmann(state, 300.0, 5, 6)
    order = np.array([2, 3, 0, 1])
    other = particles(4, mass_n[order])
    other.tag_n[:] = order
    maxwell_boltzmann(other, 300.0, 5, 6)
    np.testing.assert_allclose(other.velocity_n3, state.velocity_n3[order], rtol=1e-13)
    cold = particles(4, mass_n)
    maxwell_boltzmann(cold, 0.0, 5, 6)
    assert not cold.velocity_n3.any()


class Still:
    """A constraint that forbids motion along x."""

    def velocities(self, state: State) -> None:
        state.velocity_n3[:, 0] = 0.0


def test_velocities_obey_the_constraints_at_the_temperature() -> None:
    state = particles(100)
    maxwell_boltzmann(state, 300.0, 5, 197, Still())
    assert not state.velocity_n3[:, 0].any()
    assert np.isclose(temperature(kinetic_tensor(state), 197), 300.0, rtol=1e-12)


def test_normals_are_finite_at_the_ends_of_the_words() -> None:
    """The smallest and the largest word must not give log(0)."""
    samples = np.array([philox_three_normals(1, 2, i) for i in range(300)])
    assert np.isfinite(samples).all() and abs(samples.mean()) < 4 / np.sqrt(samples.size)
    assert -2.0 * np.log((0 + 0.5) * 2.0**-32) < 6.8**2 and -2.0 * np.log((2.0**32 - 1 + 0.5) * 2.0**-32) > 0.0
