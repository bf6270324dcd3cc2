"""Small systems for the tests of molecular dynamics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gewu.physics.md.state import Array, Evaluation, State, Topology, new_state

TRICLINIC = np.array([[2.5, 0.0, 0.0], [0.9, 2.4, 0.0], [-0.8, 0.7, 2.3]])


def mixture(n: int, mixing: str = "table", *, seed: int = 1) -> Topology:
    """Return n charged atoms of two kinds; every third is excluded from the two that follow it.

    `mixing` is the rule of the Lennard-Jones parameters: "one", "lorentz-berthelot", "geometric", "table" or "none".
    """
    charge = np.random.default_rng(seed).normal(scale=0.3, size=n)
    sigma, epsilon = np.array([0.3, 0.25]), np.array([0.5, 0.2])
    mean = (sigma[:, None] + sigma) / 2 if mixing == "lorentz-berthelot" else np.sqrt(sigma[:, None] * sigma)
    product = np.sqrt(epsilon[:, None] * epsilon)
    if mixing == "table":
        product[0, 1] = product[1, 0] = 0.23
    if mixing == "none":
        product[:] = 0.0
    kinds = 1 if mixing == "one" else 2
    return Topology(
        mass_n=np.ones(n),
        charge_n=charge - charge.mean(),
        type_n=(np.arange(n) % kinds).astype(np.int32),
        type_names=("A", "B")[:kinds],
        element=("Ar",) * n,
        sigma_tt=mean[:kinds, :kinds],
        epsilon_tt=product[:kinds, :kinds],
        exclusions=np.array([(i, i + k) for i in range(0, n - 2, 3) for k in (1, 2)], np.int32),
    )


def shaken(topology: Topology, box: Array = TRICLINIC, *, periodic: bool = True, scatter: float = 0.1, seed: int = 2) -> State:
    """Return a shaken lattice in the box, each atom in an image of its own."""
    n, rng = len(topology), np.random.default_rng(seed)
    side = math.ceil(n ** (1 / 3))
    lattice = np.array(list(itertools.product(range(side), repeat=3)))[:n] / side
    position = (lattice + rng.normal(scale=scatter / side, size=(n, 3))) @ box
    if periodic:
        position += rng.integers(-2, 3, (n, 3)) @ box
    return new_state(topology, position, box, periodic=periodic)


def strained(state: State, strain_33: Array) -> State:
    """Return a copy with positions and box multiplied by 1 + strain, which must keep the box lower triangular."""
    from dataclasses import replace

    deform = np.eye(3) + strain_33
    return replace(
        state, position_n3=state.position_n3 @ deform, box_33=state.box_33 @ deform, force_n3=np.zeros_like(state.force_n3)
    )


def strain_derivative(energy: Callable[[State], float], state: State, step: float = 1e-5) -> Array:
    """Return -dU/d(strain) for the lower triangle by central differences; entries above the diagonal mirror those below."""
    result = np.zeros((3, 3))
    for a, b in itertools.product(range(3), repeat=2):
        if b <= a:
            strain = np.zeros((3, 3))
            strain[a, b] = step
            result[a, b] = -(energy(strained(state, strain)) - energy(strained(state, -strain))) / (2 * step)
            result[b, a] = result[a, b]
    return result


def evaluate(term: Any, state: State) -> tuple[Evaluation, Array]:
    """Return what a term says and the forces it adds."""
    state.force_n3[:] = 0.0
    if hasattr(term, "rebuild"):
        term.rebuild(state)
    result = term.compute(state, True)
    return result, state.force_n3.copy()


def rms_error(value: Array, reference: Array) -> float:
    """Return the root-mean-square error relative to the root mean square of the reference."""
    return float(np.sqrt(((value - reference) ** 2).sum() / (reference**2).sum()))
