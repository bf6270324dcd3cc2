"""Bonded terms against formulas written out in NumPy, finite differences, analytic geometries, and the sum over parts."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from gewu.core.errors import InputError
from gewu.physics.md.bonded import NAMES, Bonded
from gewu.physics.md.state import Array, State, Terms, Topology, new_state
from gewu.physics.md.units import COULOMB

BOX = np.array([[1.9, 0.0, 0.0], [0.6, 1.8, 0.0], [-0.5, 0.7, 1.7]])
K = 8
GRID = np.random.default_rng(5).normal(scale=3.0, size=(2, K, K))
# Indices among eight atoms of a crumpled chain, and parameters, of every kind; two dihedrals in a row share their atoms.
TABLES: dict[str, Terms] = {
    name: Terms(np.array(index, np.int32), np.array(parameter, np.float64))
    for name, index, parameter in (
        ("bonds", [[0, 1], [3, 2], [6, 7]], [[900.0, 0.14], [700.0, 0.12], [400.0, 0.17]]),
        ("urey_bradley", [[0, 2], [5, 3]], [[300.0, 0.22], [200.0, 0.28]]),
        ("angles", [[0, 1, 2], [4, 3, 2]], [[60.0, 1.9], [45.0, math.pi]]),
        (
            "dihedrals",
            [[0, 1, 2, 3], [0, 1, 2, 3], [4, 3, 2, 1], [3, 4, 5, 6]],
            [[5.0, 0.0, 3], [3.0, math.pi, 2], [2.0, 0.7, 6], [4.0, -1.1, 1]],
        ),
        ("ryckaert", [[1, 2, 3, 4], [7, 6, 5, 4]], [[9.3, 12.2, -13.1, -3.1, 26.2, -31.5], [1.0, -2.0, 3.0, 4.0, -5.0, 6.0]]),
        ("impropers", [[2, 1, 3, 4], [5, 4, 6, 7]], [[40.0, 3.0], [30.0, -2.9]]),
        ("cmap", [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]], [[1], [0]]),
        ("pairs14", [[0, 3], [5, 1]], [[0.05, 0.25, 0.4], [-0.1, 0.3, 0.2]]),
    )
}


def topology(n: int = 8, **tables: Terms) -> Topology:
    grids = {"cmap_grids": GRID} if "cmap" in tables else {}
    one, kind = np.ones((1, 1)), np.zeros(n, np.int32)
    return Topology(np.ones(n), np.zeros(n), kind, ("A",), ("C",) * n, one, one, **grids, **tables)


def chain(seed: int = 3) -> Array:
    """Return eight atoms some 0.15 nm apart, no three of them near a line."""
    rng, atoms = np.random.default_rng(seed), [np.zeros(3)]
    steps = np.array(list(itertools.islice(itertools.cycle(np.eye(3)), 7))) * np.array([1, 1, -1, 1, -1, 1, 1])[:, None]
    for step in 0.15 * steps + rng.normal(scale=0.03, size=(7, 3)):
        atoms.append(atoms[-1] + step)
    return np.array(atoms)


def scattered(position: Array) -> Array:
    """Return the positions, each atom in another image."""
    return position + np.random.default_rng(4).integers(-2, 3, size=(len(position), 3)) @ BOX


def energy(bonded: Bonded, state: State) -> float:
    evaluation = bonded.compute(state, True)
    assert evaluation is not None
    return evaluation.potential


def phi(r: Array) -> float:
    """Return the dihedral angle of four points by its textbook formula."""
    b1, b2, b3 = r[1] - r[0], r[2] - r[1], r[3] - r[2]
    n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
    return math.atan2(np.linalg.norm(b2) * (b1 @ n2), n1 @ n2)


def surface(grid: Array, x: float, y: float) -> float:
    """Return the tensor product of periodic cubic splines at (phi, psi)."""
    knots = -np.pi + 2 * np.pi * np.arange(K + 1) / K
    along = CubicSpline(knots, np.append(grid, grid[:, :1], axis=1), axis=1, bc_type="periodic")(y)
    return float(CubicSpline(knots, np.append(along, along[:1]), bc_type="periodic")(x))


def formula(name: str, r: Array, p: Array) -> float:
    """Return the energy of one term as `Topology` defines it."""
    if name in ("bonds", "urey_bradley"):
        return 0.5 * p[0] * (np.linalg.norm(r[0] - r[1]) - p[1]) ** 2
    if name == "angles":
        u, v = r[0] - r[1], r[2] - r[1]
        return 0.5 * p[0] * (math.acos(u @ v / np.linalg.norm(u) / np.linalg.norm(v)) - p[1]) ** 2
    if name == "dihedrals":
        return p[0] * (1 + math.cos(p[2] * phi(r) - p[1]))
    if name == "ryckaert":
        return sum(c * math.cos(phi(r) - math.pi) ** m for m, c in enumerate(p))
    if name == "impropers":
        return 0.5 * p[0] * min((phi(r) - p[1] + 2 * math.pi * k) ** 2 for k in (-1, 0, 1))
    if name == "cmap":
        return surface(GRID[int(p[0])], phi(r[:4]), phi(r[1:]))
    d = np.linalg.norm(r[0] - r[1])
    return 4 * p[2] * ((p[1] / d) ** 12 - (p[1] / d) ** 6) + COULOMB * p[0] / d


@pytest.mark.parametrize("name", TABLES)
def test_energies_are_those_of_the_formulas(name: str) -> None:
    r, terms = chain(), TABLES[name]
    expected = sum(formula(name, r[index], p) for index, p in zip(terms.index, terms.parameter, strict=True))
    for position, periodic in ((r, False), (scattered(r), True)):
        found = energy(Bonded(topology(**{name: terms})), new_state(topology(), position, BOX, periodic=periodic))
        assert found == pytest.approx(expected, rel=1e-11)  # some 1e-15 nm of images over bonds of 0.1 nm, stiff terms


@pytest.mark.parametrize("name", TABLES)
def test_forces_and_virial_are_derivatives(name: str) -> None:
    bonded, h = Bonded(topology(**{name: TABLES[name]}), device="reference"), 1e-5
    state = new_state(topology(), scattered(chain()), BOX)
    evaluation = bonded.compute(state, True)
    assert evaluation is not None
    force, start, box = state.force_n3.copy(), state.position_n3.copy(), state.box_33.copy()
    numbers = np.zeros_like(force)
    for i, a in np.ndindex(force.shape):
        for sign in (1, -1):
            state.position_n3[:] = start
            state.position_n3[i, a] += sign * h
            numbers[i, a] -= sign * energy(bonded, state) / (2 * h)
    # Central difference: h^2 f''' / 6 with lengths of 0.1 nm, so 1e-8 of the force; rounding 1e-15 E/h is less.
    np.testing.assert_allclose(force, numbers, atol=1e-6 * np.abs(force).max())
    for a, b in ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)):  # strains that leave the box lower triangular
        slope, strain = 0.0, np.zeros((3, 3))
        for sign in (1, -1):
            strain[a, b] = sign * h
            state.position_n3[:], state.box_33[:] = start + start @ strain, box + box @ strain
            slope += sign * energy(bonded, state) / (2 * h)
        assert evaluation.virial_33[a, b] == pytest.approx(-slope, abs=1e-6 * np.abs(evaluation.virial_33).max())
    np.testing.assert_array_equal(evaluation.virial_33, evaluation.virial_33.T)


def test_rotation_translation_and_the_sums_of_forces() -> None:
    everything = topology(**TABLES)
    bonded, state = Bonded(everything), new_state(everything, chain(), np.zeros((3, 3)), periodic=False)
    before = bonded.compute(state, True)
    force, r = state.force_n3.copy(), state.position_n3.copy()
    scale = np.abs(force).max()
    assert np.abs(force.sum(axis=0)).max() < 1e-13 * scale  # each term's forces cancel but for rounding
    assert np.abs(np.cross(r, force).sum(axis=0)).max() < 1e-12 * scale
    turn, _ = np.linalg.qr(np.random.default_rng(6).normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    moved = new_state(everything, r @ turn + [3.0, -5.0, 8.0], np.zeros((3, 3)), periodic=False)
    after = bonded.compute(moved, True)
    assert before is not None and after is not None and set(after.energies) == set(NAMES)
    for name in NAMES:
        assert after.energies[name] == pytest.approx(before.energies[name], rel=1e-10)  # 1e-15 nm at 8 nm, stiff terms
        assert before.energies[name] != 0.0
    np.testing.assert_allclose(moved.force_n3, force @ turn, atol=1e-10 * scale)
    np.testing.assert_allclose(after.virial_33, turn.T @ before.virial_33 @ turn, atol=1e-10 * np.abs(before.virial_33).max())


@pytest.mark.parametrize("name", sorted(set(TABLES) - {"cmap"}))
def test_a_term_read_backwards_is_the_same(name: str) -> None:
    terms, results = TABLES[name], []
    for index in (terms.index, terms.index[:, ::-1].copy()):
        state = new_state(topology(), chain(), BOX)
        results.append((energy(Bonded(topology(**{name: Terms(index, terms.parameter)})), state), state.force_n3))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-13)
    np.testing.assert_allclose(results[1][1], results[0][1], atol=1e-12 * np.abs(results[0][1]).max())  # rounding


def bent(angle: float, turns: list[float]) -> Array:
    """Return a chain with bonds of 0.1 nm, one angle everywhere, and these dihedral angles."""
    r = [np.zeros(3), np.array([0.1, 0.0, 0.0]), np.array([0.1 - 0.1 * math.cos(angle), 0.1 * math.sin(angle), 0.0])]
    for turn in turns:
        b1, b2 = r[-2] - r[-3], (r[-1] - r[-2]) / np.linalg.norm(r[-1] - r[-2])
        n = np.cross(b1, b2) / np.linalg.norm(np.cross(b1, b2))
        local = np.array([-math.cos(angle), math.sin(angle) * math.cos(turn), math.sin(angle) * math.sin(turn)])
        r.append(r[-1] + 0.1 * local @ np.array([b2, np.cross(n, b2), n]))
    return np.array(r)


def one(name: str, index: list[int], parameter: list[float], position: Array) -> tuple[float, Array]:
    n = len(position)
    terms = Terms(np.array([index], np.int32), np.array([parameter], np.float64))
    state = new_state(topology(n), position, BOX, periodic=False)
    return energy(Bonded(topology(n, **{name: terms})), state), state.force_n3


def test_geometries_made_by_hand() -> None:
    close = {"rel": 1e-12, "abs": 1e-12}  # rounding
    right = np.array([[0.2, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.1, 0.0]])
    value, force = one("bonds", [0, 1], [1000.0, 0.15], right)
    assert value == pytest.approx(1.25, **close)
    np.testing.assert_allclose(force, [[-50, 0, 0], [50, 0, 0], [0, 0, 0]], atol=1e-10)
    value, force = one("angles", [0, 1, 2], [80.0, math.pi / 2 + 0.1], right)  # wants to open: 8 kJ/mol/rad over the arm
    assert value == pytest.approx(0.4, **close)
    np.testing.assert_allclose(force, [[0, -40, 0], [120 - 40, 40, 0], [-80, 0, 0]], atol=1e-10)
    for turn in (0.0, 1.1, -2.0, math.pi):  # cis, gauche of both signs, trans
        assert one("dihedrals", [0, 1, 2, 3], [2.0, 0.3, 1], bent(1.8, [turn]))[0] == pytest.approx(
            2 * (1 + math.cos(turn - 0.3)), **close
        )
    assert one("ryckaert", [0, 1, 2, 3], [1.0, 2, 3, 4, 5, 6], bent(1.8, [math.pi]))[0] == pytest.approx(21.0, **close)  # psi = 0
    # 0.2 rad from xi0, across the seam at pi
    assert one("impropers", [0, 1, 2, 3], [50.0, -math.pi + 0.1], bent(1.8, [math.pi - 0.1]))[0] == pytest.approx(1.0, rel=1e-11)
    minimum = np.array([[0.0, 0.0, 0.0], [0.3 * 2 ** (1 / 6), 0.0, 0.0]])
    value, force = one("pairs14", [0, 1], [0.0, 0.3, 0.7], minimum)
    assert value == pytest.approx(-0.7, **close) and np.abs(force).max() < 1e-11
    assert one("pairs14", [0, 1], [0.5, 0.3, 0.0], minimum)[0] == pytest.approx(COULOMB * 0.5 / minimum[1, 0], **close)


def test_cmap_goes_through_its_grid_and_around_the_circle() -> None:
    knots = -math.pi + 2 * math.pi * np.arange(K) / K

    def value(x: float, y: float) -> float:
        return one("cmap", [0, 1, 2, 3, 4], [1], bent(1.9, [x, y]))[0]

    for i, j in ((0, 0), (0, 3), (5, 0), (2, 6), (7, 7)):
        assert value(knots[i], knots[j]) == pytest.approx(GRID[1, i, j], rel=1e-11, abs=1e-11)  # rounding of angles
    for y in (0.4, math.pi):
        assert value(math.pi - 1e-9, y) == pytest.approx(value(-math.pi + 1e-9, y), abs=1e-6)  # slopes are below 100 per rad
        assert value(y, math.pi - 1e-9) == pytest.approx(value(y, -math.pi + 1e-9), abs=1e-6)


def test_straight_and_coinciding_atoms_give_numbers() -> None:
    line, folded = (
        np.outer(np.arange(5.0), [0.1, 0.0, 0.0]),
        np.array([[0.1, 0, 0], [0, 0, 0], [0.1, 0, 0], [0.3, 0, 0], [0.2, 0, 0]]),
    )
    for name, terms in TABLES.items():
        if name in ("bonds", "urey_bradley", "pairs14"):
            continue
        size = terms.index.shape[1]
        for position in (line, folded):
            value, force = one(name, list(range(size)), terms.parameter[0].tolist(), position)
            assert math.isfinite(value) and np.abs(force).max() == 0.0  # where there is no direction there is no force
    assert one("angles", [0, 1, 2], [60.0, math.pi], line)[0] < 1e-25
    assert one("angles", [0, 1, 2], [60.0, math.pi - 0.2], line)[0] == pytest.approx(1.2, rel=1e-12)
    near = line.copy()
    near[0, 1] = 1e-9
    force = one("angles", [0, 1, 2], [60.0, math.pi - 0.2], near)[1]
    assert force[0, 1] == pytest.approx(60 * 0.2 / 0.1, rel=1e-6)  # 1e-9 nm off the line the direction is known to 1e-8
    value, force = one("bonds", [0, 1], [100.0, 0.1], np.zeros((2, 3)))
    assert value == pytest.approx(0.5) and np.isfinite(force).all()


def test_parts_of_the_atoms_add_up_to_the_whole() -> None:
    whole, r = topology(**TABLES), chain()
    state = new_state(whole, r, BOX)
    total = Bonded(whole).compute(state, True)
    assert total is not None
    energies, virial = dict.fromkeys(NAMES, 0.0), np.zeros((3, 3))
    for mine in ([1, 4, 6], [0, 2, 3, 5, 7]):
        rows = np.array(mine + [i for i in range(8) if i not in mine])
        place = np.argsort(rows)
        local = {}
        for name, terms in TABLES.items():
            here = np.isin(terms.index, mine).any(axis=1)
            local[name] = Terms(place[terms.index[here]].astype(np.int32), terms.parameter[here])
        part = replace(new_state(topology(), r[rows], BOX), owned=len(mine))
        share = Bonded(topology(**local), len(mine), 8).compute(part, True)
        assert share is not None
        energies = {name: energies[name] + share.energies[name] for name in NAMES}
        virial += share.virial_33
        # The same terms in the same order: only atoms of merged or permuted sums could differ, by rounding.
        np.testing.assert_allclose(part.force_n3[: len(mine)], state.force_n3[mine], rtol=1e-13)
        assert np.all(part.force_n3[len(mine) :] == 0.0)
    for name in NAMES:
        assert energies[name] == pytest.approx(total.energies[name], rel=1e-13)
    np.testing.assert_allclose(virial, total.virial_33, atol=1e-12 * np.abs(total.virial_33).max())


def evaluate(device: str) -> tuple[dict[str, float], Array, Array]:
    state = new_state(topology(), scattered(chain()), BOX)
    evaluation = Bonded(topology(**TABLES), device=device).compute(state, True)
    assert evaluation is not None
    return evaluation.energies, evaluation.virial_33, state.force_n3


def check_devices(one: str, other: str) -> None:
    (energies, virial, force), expected = evaluate(one), evaluate(other)
    for name, value in expected[0].items():
        assert energies[name] == pytest.approx(value, rel=1e-12)  # rounding of sums and of atan2
    for found, array in ((virial, expected[1]), (force, expected[2])):
        np.testing.assert_allclose(found, array, atol=1e-12 * np.abs(array).max())


def test_plain_python_gives_the_compiled_numbers() -> None:
    check_devices("reference", "cpu")


def test_the_cuda_simulator_gives_the_numbers_of_plain_python() -> None:
    root = Path(__file__).parents[2]
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")} | {"NUMBA_ENABLE_CUDASIM": "1"}
    env |= {"PYTHONPATH": str(root / "src")}
    done = subprocess.run([sys.executable, "-W", "error", __file__], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_terms_at_all() -> None:
    state = new_state(topology(), chain(), BOX)
    evaluation = Bonded(topology()).compute(state, True)
    assert (
        evaluation is not None
        and evaluation.potential == 0.0
        and np.all(evaluation.virial_33 == 0)
        and np.all(state.force_n3 == 0)
    )
    assert Bonded(topology()).compute(state, False) is None


@pytest.mark.parametrize(
    ("tables", "what"),
    [
        ({"bonds": ([[0, 8]], [[1.0, 0.1]])}, "do not exist"),
        ({"angles": ([[0, -1, 2]], [[1.0, 0.1]])}, "do not exist"),
        ({"impropers": ([[0, 1, 2, 3]], [[1.0, np.nan]])}, "not finite"),
        ({"dihedrals": ([[0, 1, 2, 3]], [[1.0, 0.0, 7]])}, "multiplicity"),
        ({"dihedrals": ([[0, 1, 2, 3]], [[1.0, 0.0, 1.5]])}, "multiplicity"),
        ({"cmap": ([[0, 1, 2, 3, 4]], [[2]])}, "grid"),
    ],
)
def test_refusals(tables: dict[str, Any], what: str) -> None:
    made = {name: Terms(np.array(index, np.int32), np.array(p, np.float64)) for name, (index, p) in tables.items()}
    with pytest.raises(InputError, match=what):
        Bonded(topology(**made))


if __name__ == "__main__":
    check_devices("cuda", "reference")
