"""Minimisers against known minima: Lennard-Jones clusters, springs, a rigid dimer in a field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pytest

from gewu.core.errors import ConvergenceError, InputError
from gewu.core.ranks import SERIAL, Ranks
from gewu.physics.md.minimise import LARGEST_MOVE, Minimum, fire, lbfgs
from gewu.physics.md.state import Evaluation, State, Topology, new_state

EPSILON, SIGMA = 0.996, 0.34  # kJ/mol, nm
METHODS = {"fire": fire, "lbfgs": lbfgs}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Tiny systems gain nothing from threads, and lose much on a busy machine."""
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(threads)


@dataclass
class Toy:
    """A model whose forces are a plain NumPy function of positions; it notes the largest move of an atom."""

    forces: Callable[[np.ndarray], tuple[float, np.ndarray]]
    constraints: Any = None
    degrees_of_freedom: int = 1
    ranks: Ranks = SERIAL
    largest_move: float = 0.0
    last: Any = None

    def compute(self, state: State, want: bool) -> Evaluation | None:
        if self.last is not None:
            self.largest_move = max(self.largest_move, float(np.linalg.norm(state.position_n3 - self.last, axis=1).max()))
        self.last = state.position_n3.copy()
        energy, state.force_n3[:] = self.forces(state.position_n3)
        return Evaluation({"toy": energy}, np.zeros((3, 3))) if want else None


def cluster(x: np.ndarray) -> tuple[float, np.ndarray]:
    d = x[:, None] - x[None]
    r2 = (d * d).sum(-1)
    np.fill_diagonal(r2, 1e30)
    s6 = (SIGMA**2 / r2) ** 3
    slope = 24.0 * EPSILON * (2.0 * s6 * s6 - s6) / r2
    return 2.0 * EPSILON * float((s6 * s6 - s6).sum()), (slope[:, :, None] * d).sum(1)


def start(position: Any, mass: Any = 40.0) -> State:
    n = len(position)
    one, mass_n = np.ones((1, 1)), np.full(n, mass) if np.isscalar(mass) else np.array(mass)
    topology = Topology(mass_n, np.zeros(n), np.zeros(n, np.int32), ("A",), ("Ar",) * n, one, one)
    return new_state(topology, position, np.eye(3), periodic=False)


def icosahedron(noise: float) -> np.ndarray:
    g = (1 + 5**0.5) / 2
    corners = [(0, a, b * g) for a in (-1, 1) for b in (-1, 1)]
    points = np.array([np.roll(c, k) for c in corners for k in range(3)] + [(0, 0, 0)])
    return points * 0.36 / np.sqrt(1 + g * g) + np.random.default_rng(2).normal(0.0, noise, (13, 3))


@pytest.mark.parametrize("method", list(METHODS))
def test_thirteen_atoms_find_the_icosahedron(method: str) -> None:
    state = start(icosahedron(0.03))
    state.velocity_n3[:] = 1.0
    model = Toy(cluster)
    found = METHODS[method](state, model, 1e-4, 1500)
    assert found.converged and found.max_force < 1e-4
    # -44.326801 epsilon: Hoare and Pal, Adv. Phys. 20, 161 (1971); the force leaves 1e-4^2 / (2 1000 kJ/mol/nm^2)
    assert abs(found.energy / EPSILON + 44.326801) < 1e-6
    assert found.evaluations < {"fire": 500, "lbfgs": 200}[method]
    energy, force = cluster(state.position_n3)  # the state holds what was returned
    assert energy == found.energy and np.array_equal(force, state.force_n3)
    assert method == "lbfgs" or (model.largest_move < 1.26 * LARGEST_MOVE and not state.velocity_n3.any())


@pytest.mark.parametrize("method", list(METHODS))
def test_atoms_almost_on_top_of_each_other_come_apart(method: str) -> None:
    close = icosahedron(0.0)
    close[1] = close[0] + [0.02, 0.0, 0.0]  # energy 1e15
    found = METHODS[method](start(close), Toy(cluster), 1e-3, 3000)
    assert found.converged and found.energy < -35 * EPSILON


@pytest.mark.parametrize("method", list(METHODS))
def test_stiff_and_soft_springs_and_rows_without_mass(method: str) -> None:
    stiffness = np.array([[1e2], [1e4], [1e5], [0.0]])
    goal = np.random.default_rng(0).uniform(-1, 1, (4, 3))
    state = start(np.zeros((4, 3)), [1.0, 16.0, 40.0, 0.0])

    def forces(x: np.ndarray) -> tuple[float, np.ndarray]:
        return float((0.5 * stiffness * (x - goal) ** 2).sum()), -stiffness * (x - goal)

    found = METHODS[method](state, Toy(forces), 1e-3, 5000)
    assert found.converged
    np.testing.assert_allclose(state.position_n3[:3], goal[:3], atol=1e-3 / 1e2)  # tolerance over the softest spring
    assert not state.position_n3[3].any()


@pytest.mark.parametrize("method", list(METHODS))
def test_giving_up_is_told(method: str) -> None:
    found = METHODS[method](start(icosahedron(0.03)), Toy(cluster), 1e-4, 5)
    assert isinstance(found, Minimum) and not found.converged
    assert found.max_force > 1e-4 and found.evaluations in (5, 6)


@pytest.mark.parametrize("method", list(METHODS))
def test_infinite_energies_are_refused(method: str) -> None:
    same = icosahedron(0.0)
    same[1] = same[0]
    with np.errstate(all="ignore"), pytest.raises(ConvergenceError, match=r"evaluation 1 .*on top of each other"):
        METHODS[method](start(same), Toy(cluster), 1e-4, 10)


class Rod:
    """One rigid bond between two atoms of masses 1 and 3."""

    def positions(self, state: State, before_n3: np.ndarray, dt: float | None) -> None:
        d, d0 = state.position_n3[0] - state.position_n3[1], before_n3[0] - before_n3[1]
        a, b, c = d0 @ d0, d @ d0, d @ d - 0.01
        shift = (np.sqrt(b * b - a * c) - b) / a * d0
        state.position_n3 += np.outer([0.75, -0.25], shift)

    def velocities(self, state: State) -> None:
        d, v = state.position_n3[0] - state.position_n3[1], state.velocity_n3[0] - state.velocity_n3[1]
        state.velocity_n3 -= np.outer([0.75, -0.25], (d @ v) / (d @ d) * d)


def test_fire_turns_a_rigid_rod_along_the_field() -> None:
    state = start([[0.1, 0.0, 0.0], [0.0, 0.0, 0.0]], [1.0, 3.0])
    pull = np.array([[0.0, 0.0, 200.0], [0.0, 0.0, -200.0]])
    model = Toy(lambda x: (-float((pull * x).sum()), pull), Rod())
    found = fire(state, model, 1e-3)
    assert found.converged
    # the force across the rod is 200 sin(angle) times 1/4 and 3/4
    np.testing.assert_allclose(state.position_n3[0] - state.position_n3[1], [0.0, 0.0, 0.1], atol=0.1 * 1e-3 / 150)
    assert abs(found.energy + 20.0) < 1e-9
    with pytest.raises(InputError, match=r"rigid bonds.*fire"):
        lbfgs(state, model, 1e-3)
