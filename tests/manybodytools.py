"""Crystals, published parameters and one evaluation, for the tests of many-body potentials."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from gewu.formats.eam import EamTables
from gewu.formats.potentials import STILLINGER_WEBER, TERSOFF, Triplets
from gewu.formats.zhou import zhou_tables
from gewu.physics.md.state import State

FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
DIAMOND = np.concatenate([FCC, FCC + 0.25])
SHEAR = np.array([[1.0, 0, 0], [0.11, 0.98, 0], [-0.07, 0.06, 1.03]])
SKIN = 0.05
# Stillinger & Weber 1985, Tables I and the text; epsilon for a cohesive energy of 4.3366 eV
SW_SILICON = Triplets(
    STILLINGER_WEBER,
    {("Si", "Si", "Si"): (2.1683, 2.0951, 1.80, 21.0, 1.20, -1 / 3, 7.049556277, 0.6022245584, 4.0, 0.0, 0.0)},
)


def two_kinds_of_silicon() -> Triplets:
    """Return parameters in which every triplet has numbers of its own, as far as the formula allows."""
    entries = {}
    for a in ("Si", "Ge"):
        for b in ("Si", "Ge"):
            for c in ("Si", "Ge"):
                numbers = np.array(SW_SILICON.entries["Si", "Si", "Si"])
                numbers[[0, 1, 2, 6, 7, 8, 9]] *= 1 + 0.01 * [a, b].count("Ge") if b == c else 1.004  # one bond from both ends
                numbers[[3, 4, 5]] *= 1 + 0.02 * (a == "Ge") + 0.01 * [b, c].count("Ge")
                entries[a, b, c] = tuple(float(x) for x in numbers)
    return Triplets(STILLINGER_WEBER, entries)


SW_PAIR = two_kinds_of_silicon()
# Tersoff 1989, Table I: A, B, lambda, mu, beta, n, c, d, h, R, S; chi of the mixed pair
T89 = {
    "C": (1.3936e3, 3.4674e2, 3.4879, 2.2119, 1.5724e-7, 7.2751e-1, 3.8049e4, 4.3484, -5.7058e-1, 1.8, 2.1),
    "Si": (1.8308e3, 4.7118e2, 2.4799, 1.7322, 1.1000e-6, 7.8734e-1, 1.0039e5, 1.6217e1, -5.9825e-1, 2.7, 3.0),
}
CHI = 0.9776


def tersoff_1989(*names: str, lambda3: float = 0.0, m: float = 3.0) -> Triplets:
    """Mix the elements as the paper does."""
    entries = {}
    for i in names:
        for j in names:
            for k in names:
                a, b, q = T89[i], T89[j], T89[k]
                chi = 1.0 if i == j else CHI
                r, s = np.sqrt(a[9] * q[9]), np.sqrt(a[10] * q[10])
                own = (m, 1.0, lambda3, a[6], a[7], a[8], a[5], a[4])
                pair = (0.5 * (a[3] + b[3]), chi * np.sqrt(a[1] * b[1])), (0.5 * (a[2] + b[2]), np.sqrt(a[0] * b[0]))
                entries[i, j, k] = tuple(float(x) for x in (*own, *pair[0], 0.5 * (s + r), 0.5 * (s - r), *pair[1]))
    return Triplets(TERSOFF, entries)


def finnis_sinclair_like() -> EamTables:
    """Return tables in which the density depends on both atoms."""
    tables = zhou_tables(("Cu", "Ni"), points=2001)
    factor = np.array([[1.0, 1.1], [0.9, 1.05]])[..., None]
    return dataclasses.replace(tables, density_eex=tables.density_eex * factor)


def crystal(basis: np.ndarray, a: float, cells: int, *, rattle: float = 0.0, types: int = 1, sheared: bool = False) -> State:
    grid = np.stack(np.meshgrid(*[np.arange(cells)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    x = (grid + basis).reshape(-1, 3) * a
    box = np.eye(3) * a * cells
    if sheared:
        x, box = x @ SHEAR, box @ SHEAR
    n, generator = len(x), np.random.default_rng(5)
    x = x + generator.normal(0, rattle, x.shape) if rattle else x
    type_n = generator.integers(0, types, n).astype(np.int32)
    return State(x, np.zeros((n, 3)), np.zeros((n, 3)), np.ones(n), np.zeros(n), type_n, np.arange(n), box, True, n)


def evaluate(term: Any, state: State, position: np.ndarray | None = None, box: np.ndarray | None = None) -> Any:
    """Return forces and evaluation, at other positions and in another box where given."""
    old = state.position_n3, state.box_33
    state.position_n3, state.box_33 = old[0] if position is None else position, old[1] if box is None else box
    state.force_n3 = np.zeros_like(state.position_n3)
    evaluation = term.compute(state, True)
    state.position_n3, state.box_33 = old
    return state.force_n3, evaluation
