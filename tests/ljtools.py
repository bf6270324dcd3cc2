"""Lennard-Jones fluids in reduced units: sigma, epsilon and the mass are one; kT is in units of epsilon."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gewu.physics.md.barostat import pressure_tensor
from gewu.physics.md.integrate import Integrator
from gewu.physics.md.kinetics import kinetic_energy, maxwell_boltzmann
from gewu.physics.md.model import Model
from gewu.physics.md.pairs import NonBonded, Pairs
from gewu.physics.md.plain import DispersionCorrection
from gewu.physics.md.state import Evaluation, State, Topology, new_state
from gewu.physics.md.units import BOLTZMANN

FCC = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])


class Thermo(NamedTuple):
    """Temperature, potential and total energy per atom, pressure."""

    temperature: float
    potential: float
    total: float
    pressure: float


def fluid(n: int) -> Topology:
    one = np.ones((1, 1))
    return Topology(np.ones(n), np.zeros(n), np.zeros(n, np.int32), ("A",), ("Ar",) * n, one, one)


def fcc(cells: int, density: float) -> tuple[np.ndarray, float]:
    """Return positions and edge of cells^3 cubes; z runs slowest, the order of LAMMPS."""
    a = (4 / density) ** (1 / 3)
    corner = np.array([(i, j, k) for k in range(cells) for j in range(cells) for i in range(cells)])
    return ((corner[:, None] + FCC) * a).reshape(-1, 3), cells * a


def system(
    x: np.ndarray,
    edge: float,
    precision: str,
    *,
    lj: str = "cut",
    cutoff: float = 2.5,
    skin: float = 0.3,
    tail: bool = False,
    velocity: Any = None,
    kt: float = 0.0,
    seed: int = 1,
    free: bool = False,
) -> tuple[Model, State]:
    """Return model and state, with velocities given or drawn at kT, and forces in place."""
    topology, settings = fluid(len(x)), NonBonded(cutoff, lj)
    more = [DispersionCorrection(topology, settings)] if tail else []
    model = Model(
        topology,
        lambda local: [Pairs(local.topology, settings, skin, precision, local.images), *more],
        cutoff,
        skin,
        free_centre=free,
    )
    state = model.adopt(new_state(topology, x, edge * np.eye(3), velocity_n3=velocity))
    if kt:
        maxwell_boltzmann(state, kt / BOLTZMANN, seed, model.degrees_of_freedom)
    model.compute(state, True)
    return model, state


def thermo(state: State, model: Model, evaluation: Evaluation | None) -> Thermo:
    assert evaluation is not None
    n, kinetic = len(state.mass_n), kinetic_energy(state)
    pressure = float(np.trace(pressure_tensor(state, model, evaluation))) / 3
    return Thermo(
        2 * kinetic / model.degrees_of_freedom, evaluation.potential / n, (evaluation.potential + kinetic) / n, pressure
    )


def run(integrator: Integrator, state: State, model: Model, steps: int, every: int) -> np.ndarray:
    """Return Thermo every so many steps, (samples, 4)."""
    rows = []
    for k in range(1, steps + 1):
        evaluation = integrator.step(state, model, k % every == 0)
        if k % every == 0:
            rows.append(thermo(state, model, evaluation))
    return np.array(rows)


def blocks(sample: Any, count: int = 10) -> tuple[float, float]:
    """Return the mean and its error from block averages."""
    means = np.array([part.mean() for part in np.array_split(np.asarray(sample), count)])
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(count))
