"""A toy liquid for many ranks: molecules of three atoms and single ones, springs and Lennard-Jones by brute force.

Every rank works on its owned atoms and all rows of its state; images are taken only along directions that are not cut. The same
functions with one rank are the reference.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gewu.core.ranks import Ranks
from gewu.physics.md.domain import Domain
from gewu.physics.md.localise import fractions, groups
from gewu.physics.md.state import Array, State, Terms, Topology, new_state
from tests.faults.faultlib import child_environment

ROOT = Path(__file__).resolve().parents[1]
CUTOFF, HALO = 0.4, 0.45  # the skin of 0.05 nm is twice what two atoms approach between two reorganisations
DT = 0.002
SIGMA, EPSILON, SPRING, LENGTH = 0.2, 1.0, 5e4, 0.1


def mpirun(n: int, module: str, case: str) -> str:
    """Run `module.case(ranks)` on n ranks with warnings as errors, and return what the root printed; skip without Open MPI."""
    from tests.unit.test_ranks import has_open_mpi  # here, because it asks mpirun for its version, and the ranks need not

    if not has_open_mpi():
        pytest.skip("Open MPI's mpirun or mpi4py is absent")
    code = f"from gewu.core.ranks import world; from {module} import {case}; {case}(world())"
    start = ["mpirun", "-n", str(n), "--oversubscribe", "--allow-run-as-root", "--timeout", "110"]
    python = [sys.executable, "-W", "error", "-m", "mpi4py", "-c", code]  # an error on one rank ends all of them
    environment = child_environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    environment["OMPI_MCA_mpi_yield_when_idle"] = "1"  # more ranks than cores
    environment["PYTHONPATH"] += os.pathsep + str(ROOT)
    done = subprocess.run([*start, *python], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def liquid(cells: tuple[int, int, int], seed: int = 3) -> tuple[Topology, State]:
    """Return molecules (tied by `settles`) and single atoms on a triclinic lattice of 0.38 nm, drifting through the box.

    Springs hold molecules together and tie each site of the lattice to the next along every direction, round the box.

    Every atom is given at an image of its own choice: molecules are cut at the box.
    """
    random = np.random.default_rng(seed)
    box = np.diag(0.38 * np.array(cells))
    box[1, 0], box[2, 0], box[2, 1] = 0.3 * box[1, 1], -0.2 * box[2, 2], 0.25 * box[2, 2]
    position: list[Array] = []
    molecules, at = [], {}
    for cell in np.ndindex(cells):
        at[cell] = len(position)
        centre = ((np.array(cell) + 0.5) / cells) @ box
        if sum(cell) % 2:
            position.append(centre)
            continue
        molecules.append([len(position), len(position) + 1, len(position) + 2])
        frame = np.linalg.qr(random.normal(size=(3, 3)))[0]
        position += [centre, centre + LENGTH * frame[0], centre + LENGTH * (0.5 * frame[0] + 0.75**0.5 * frame[1])]
    n, number = len(position), np.argsort(order := random.permutation(len(position)))  # tags say nothing about places
    three = np.array(molecules, np.int32)
    inside = three[:, [[0, 1], [0, 2], [1, 2]]].reshape(-1, 2)
    along = [(k, at[tuple((np.array(cell) + step) % cells)]) for cell, k in at.items() for step in np.eye(3, dtype=int)]
    aside = np.array([(k + 2, other) for k, other in along if k in three[:, 0]])  # an atom beside a molecule and its third
    aside = aside[distances(position, aside, box) < 0.4]
    springs = np.concatenate([inside, along])
    length = distances(position, springs, box)
    topology = Topology(
        mass_n=random.uniform(10, 30, n),
        charge_n=random.normal(size=n),
        type_n=random.integers(0, 2, n).astype(np.int32),
        type_names=("A", "B"),
        element=("Ar",) * n,
        sigma_tt=np.full((2, 2), SIGMA),
        epsilon_tt=np.full((2, 2), EPSILON),
        molecule_n=np.arange(n, dtype=np.int32)[::-1].copy(),
        bonds=Terms(number[springs].astype(np.int32), np.column_stack([np.full(len(springs), SPRING), length])),
        settles=Terms(number[three].astype(np.int32), np.full((len(three), 2), LENGTH)),
        exclusions=np.sort(number[np.concatenate([inside, aside])], axis=1).astype(np.int32),
    )
    place = np.array(position)[order] + random.integers(-2, 3, (n, 3)) @ box
    velocity = random.normal((2.9, -1.7, 2.3), 0.35, (n, 3))
    return topology, new_state(topology, place, box, velocity_n3=velocity)


def distances(position: list[Array], pairs: NDArray[Any], box_33: Array) -> Array:
    fraction = np.linalg.solve(box_33.T, np.array(position).T).T
    apart = fraction[pairs[:, 0]] - fraction[pairs[:, 1]]
    return np.linalg.norm((apart - np.rint(apart)) @ box_33, axis=1)


def domain_of(ranks: Ranks, topology: Topology, state: State) -> Domain:
    return Domain(ranks, state, groups(topology), HALO)


def apart(domain: Domain, state: State, i: NDArray[Any], j: NDArray[Any]) -> Array:
    """Return r_i - r_j, the image nearest along the directions that are not cut, as it is along the others."""
    fraction = fractions(state.position_n3, state.box_33)
    difference = fraction[i] - fraction[j]
    return (difference - np.rint(difference) * ~np.array(domain.decomposed)) @ state.box_33


def forces(domain: Domain, local: Topology, state: State) -> tuple[float, float]:
    """Fill the forces on owned atoms; return this rank's energies of springs and pairs."""
    index, parameter = local.bonds
    i, j = index.T
    k, length = parameter.T
    d = apart(domain, state, i, j)
    r = np.linalg.norm(d, axis=1)
    pull = (k * (r - length) / r)[:, None] * d
    state.force_n3[:] = 0.0
    np.add.at(state.force_n3, i, -pull)
    np.add.at(state.force_n3, j, pull)
    springs = float((0.5 * k * (r - length) ** 2 * (index < state.owned).mean(axis=1)).sum())

    i, j, d = near(domain, local, state, CUTOFF)
    r2 = (d * d).sum(axis=1)
    s6 = (SIGMA**2 / r2) ** 3
    taper = 1.0 - r2 / CUTOFF**2  # U = LJ (1 - r^2/rc^2)^2: no jump that rounding could move across the cutoff
    lj = 4 * EPSILON * (s6 * s6 - s6)
    slope = 24 * EPSILON * (2 * s6 * s6 - s6) / r2 * taper**2 + lj * 4 * taper / CUTOFF**2
    np.add.at(state.force_n3, i, slope[:, None] * d)
    return springs, 0.5 * float((lj * taper**2).sum())


def near(domain: Domain, local: Topology, state: State, cutoff: float) -> tuple[NDArray[Any], NDArray[Any], Array]:
    """Return all ordered pairs (owned, any row) within the cutoff that are not excluded, and their difference."""
    n = len(state.tag_n)
    i, j = (x.ravel() for x in np.indices((state.owned, n)))
    d = apart(domain, state, i, j)
    found = np.flatnonzero(((d * d).sum(axis=1) < cutoff**2) & (i != j))
    a, b = local.exclusions.T
    found = found[~np.isin(i[found] * n + j[found], np.concatenate([a * n + b, b * n + a]))]
    return i[found], j[found], d[found]


def run(ranks: Ranks, topology: Topology, start: State, steps: int, strain: Array | None = None) -> tuple[Array, Array, Array]:
    """Integrate by velocity Verlet, stretching the box by `strain` each step.

    Returns:
        Energies of springs and pairs at the first and the last step, positions, velocities; the same on every rank.
    """
    domain = domain_of(ranks, topology, start)
    state = domain.distribute(start)
    local = domain.localise(topology, state)
    first = last = forces(domain, local, state)
    for step in range(1, steps + 1):
        own = slice(state.owned)
        state.velocity_n3[own] += 0.5 * DT / state.mass_n[own, None] * state.force_n3[own]
        state.position_n3[own] += DT * state.velocity_n3[own]
        if strain is not None:
            state.box_33 = state.box_33 * strain
            state.position_n3[own] *= strain
        state.step = step
        if step % 5 == 0:
            domain.reorganise(state)
            local = domain.localise(topology, state)
        else:
            domain.exchange(state)
        last = forces(domain, local, state)
        own = slice(state.owned)
        state.velocity_n3[own] += 0.5 * DT / state.mass_n[own, None] * state.force_n3[own]
    position, velocity = domain.gather(state)
    return ranks.allreduce(np.array([*first, *last])), position, velocity
