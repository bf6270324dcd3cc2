"""Mixed precision against double, double against plain sums: forces, and what mixed precision does to the energy in the long run.

The list's coordinates are float32 numbers relative to blocks, but images and blocks are apart by lengths that must be the same
for an atom before and after it is wrapped: with a box rounded to float32 every atom that crosses the boundary would jump by up to
1e-6 sigma, against the force that turned it round, and the fluid would cool (3e-7 epsilon/tau an atom).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from gewu.formats.zhou import zhou_tables
from gewu.physics.md.config import Config
from gewu.physics.md.eam import Eam
from gewu.physics.md.integrate import VelocityRescaling, VelocityVerlet
from gewu.physics.md.minimise import fire
from gewu.physics.md.pairs import NonBonded, Pairs
from gewu.physics.md.pme import Pme
from gewu.physics.md.prepare import prepare
from gewu.physics.md.state import State, new_state
from gewu.physics.md.units import BOLTZMANN
from tests.ljtools import fcc, fluid, run, system
from tests.manybodytools import FCC, crystal
from tests.mdreference import brute_force
from tests.mdtools import evaluate, rms_error

BAR_MIXED = 2e-5  # of the project; seen: 5e-6 (Lennard-Jones), 4e-6 (copper), 7e-6 (water)
BAR_DOUBLE = 1e-12  # of the project; seen: 1e-14


@cache
def liquid() -> State:
    x, edge = fcc(5, 0.8442)
    model, state = system(x, edge, "double", kt=1.44)
    run(VelocityVerlet(0.005), state, model, 200, 200)
    return state


def test_lennard_jones_liquid() -> None:
    state, topology, settings = liquid(), fluid(500), NonBonded(2.5)
    exact = brute_force(state, topology, settings)[1]
    assert rms_error(evaluate(Pairs(topology, settings, 0.3, "double"), state)[1], exact) < BAR_DOUBLE
    assert rms_error(evaluate(Pairs(topology, settings, 0.3, "mixed"), state)[1], exact) < BAR_MIXED


@cache
def water() -> tuple[Any, State]:
    setup = prepare(Config(water="spce", molecules=216, cutoff_nm=0.85, skin_nm=0.05, ensemble="nvt"))
    state = setup.model.adopt(setup.state)
    fire(state, setup.model, 100.0, 200)
    return setup, state


def test_water_with_pme() -> None:
    setup, state = water()
    made: Any = next(term for term in setup.model.terms if isinstance(term, Pme))
    settings: Any = next(term for term in setup.model.terms if isinstance(term, Pairs)).settings
    force = {}
    for precision in ("mixed", "double"):
        mesh = Pme(setup.topology, made.alpha, made.grid, order=made.order, precision=precision)  # type: ignore[arg-type]
        force[precision] = [evaluate(term, state)[1] for term in (Pairs(setup.topology, settings, 0.05, precision), mesh)]
    exact = brute_force(state, setup.topology, settings)[1]
    assert rms_error(force["double"][0], exact) < BAR_DOUBLE
    total = force["double"][0] + force["double"][1]  # the two parts cancel in a molecule: the bar is for their sum
    assert rms_error(force["mixed"][0] + force["mixed"][1], total) < BAR_MIXED


def test_embedded_copper() -> None:
    state, tables = crystal(FCC, 0.3615, 5, rattle=0.015), zhou_tables(("Cu",))
    exact = evaluate(Eam(tables, ("Cu",), precision="double", device="reference"), state)[1]
    assert rms_error(evaluate(Eam(tables, ("Cu",), precision="double"), state)[1], exact) < BAR_DOUBLE
    assert rms_error(evaluate(Eam(tables, ("Cu",), precision="mixed"), state)[1], exact) < BAR_MIXED


@pytest.mark.parametrize("edge", [16 + (409_000 + rest) * 2.0**-19 for rest in (0.3, 0.45, 0.55)])
def test_image_of_an_atom_stands_where_it_should(edge: float) -> None:
    """Pairs across the boundary feel a box that is not a float32 number: its last bits must not be lost in all of them.

    The whole box is one block here, and all atoms are more than 8 from its centre: float32 numbers are 1e-6 apart there.
    """
    side, rng = 16, np.random.default_rng(3)
    y, z = np.meshgrid(np.arange(side) * 3.0, np.arange(side) * 3.0, indexing="ij")
    first = np.stack([edge - rng.uniform(0.2, 0.36, y.size), y.ravel(), z.ravel()], 1)
    second = np.stack([edge + rng.uniform(0.2, 0.36, y.size), y.ravel(), z.ravel()], 1)  # in the next box, not wrapped
    topology = fluid(2 * y.size)
    state = new_state(topology, np.concatenate([first, second]), np.diag([edge, side * 3.0, side * 3.0]))
    settings = NonBonded(2.5)
    exact = brute_force(state, topology, settings)[1][: y.size, 0]
    force = evaluate(Pairs(topology, settings, 0.3, "mixed"), state)[1][: y.size, 0]
    r = second[:, 0] - first[:, 0]
    stiffness = 4 * (156 * r**-14 - 42 * r**-8)
    gap = np.mean((force - exact) / stiffness)  # by how much they seem nearer
    # each rounds to 2^-20, rms 4e-7 a pair: 2.5e-8 for the mean of 256; a stretch of the box to even numbers is 1e-7 at most
    assert abs(gap) < 2e-7  # a rounded box: 9e-7


def drift(precision: str, steps: int, atoms: int) -> tuple[float, float]:
    """Return the slope of the energy per atom and tau, with force and energy zero at the cutoff, and its error."""
    x, edge = fcc(round((atoms / 4) ** (1 / 3)), 0.8442)
    model, state = system(x, edge, precision, lj="force-shift", kt=1.44)
    dt = 0.0025
    run(VelocityRescaling(dt, 0.7 / BOLTZMANN, 0.5, 1), state, model, 4000, 4000)
    total = run(VelocityVerlet(dt), state, model, steps, 50)[:, 2]
    time = 50 * dt * np.arange(len(total))
    t, e = (np.array([part.mean() for part in np.array_split(series, 10)]) for series in (time, total))
    (slope, _), covariance = np.polyfit(t, e, 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


@pytest.mark.slow
def test_mixed_precision_keeps_the_energy() -> None:
    """4,000 atoms, 250 tau.  Seen: 1e-9 +- 2e-9 in mixed, -7e-9 +- 1e-8 in double; -3.2e-7 +- 1e-8 with a rounded box."""
    slope, error = drift("mixed", 100_000, 4000)
    assert error < 2e-8
    assert abs(slope) < 5 * max(error, 5e-9)  # ten blocks: Student's 5 sigma; 5e-9 an atom is 1e-8 of its energy in a tau
