"""What velocities say, and how to draw them: kinetic tensor, temperature, Maxwell-Boltzmann velocities, centre of mass.

The kinetic tensor is K_ab = sum_i m_i v_ia v_ib, so its trace is twice the kinetic energy and T = tr K / (N_f k_B), with N_f the
number of degrees of freedom (three for each atom with mass, less constraints, less three when the centre of mass rests).

Sums: a work item adds ROWS atoms in order, and the items' sums are added in order: the same bits whatever the number of threads.

Random numbers: `philox_three_normals` of (seed, stream, tag).  Streams are STREAMS * step + use.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gewu.core.kernel import kernel
from gewu.core.random import philox_three_normals
from gewu.core.ranks import SERIAL, Ranks
from gewu.physics.md.state import Array, State
from gewu.physics.md.units import BOLTZMANN

ROWS = 128
STREAMS = 8
START, LANGEVIN, RESCALING, CELL = range(4)  # uses of a step's streams


def machine(state: State) -> str:
    """Return the device on which kernels run: where the state's arrays lie."""
    return "cpu" if isinstance(state.position_n3, np.ndarray) else "cuda"


@kernel
def _kinetic(b: int, n: int, mass_n: Any, velocity_n3: Any, sum_b6: Any) -> None:
    xx, yy, zz, yx, zx, zy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(b * ROWS, min(n, (b + 1) * ROWS)):
        m, x, y, z = mass_n[i], velocity_n3[i, 0], velocity_n3[i, 1], velocity_n3[i, 2]
        xx, yy, zz = xx + m * x * x, yy + m * y * y, zz + m * z * z
        yx, zx, zy = yx + m * y * x, zx + m * z * x, zy + m * z * y
    sum_b6[b, 0], sum_b6[b, 1], sum_b6[b, 2] = xx, yy, zz
    sum_b6[b, 3], sum_b6[b, 4], sum_b6[b, 5] = yx, zx, zy


@kernel
def _draw(i: int, seed: int, stream: int, kt: float, mass_n: Any, tag_n: Any, velocity_n3: Any) -> None:
    z0, z1, z2 = philox_three_normals(seed, stream, tag_n[i])
    width = math.sqrt(kt / mass_n[i]) if mass_n[i] > 0.0 else 0.0
    velocity_n3[i, 0], velocity_n3[i, 1], velocity_n3[i, 2] = width * z0, width * z1, width * z2


def kinetic_tensor(state: State, ranks: Ranks = SERIAL) -> Array:
    """Return sum m v_a v_b over all atoms of all ranks, (3, 3) in kJ/mol; its trace is twice the kinetic energy."""
    blocks = -(-state.owned // ROWS)
    sums = np.empty((blocks, 6))
    _kinetic.launch(machine(state), blocks, state.owned, state.mass_n, state.velocity_n3, sums)
    xx, yy, zz, yx, zx, zy = ranks.allreduce(sums.sum(axis=0))
    return np.array([[xx, yx, zx], [yx, yy, zy], [zx, zy, zz]])


def kinetic_energy(state: State, ranks: Ranks = SERIAL) -> float:
    """Return the kinetic energy of all atoms in kJ/mol."""
    return 0.5 * float(np.trace(kinetic_tensor(state, ranks)))


def temperature(kinetic_33: Array, degrees_of_freedom: int) -> float:
    """Return the temperature in K of a kinetic tensor; 0 without degrees of freedom."""
    return float(np.trace(kinetic_33)) / (BOLTZMANN * degrees_of_freedom) if degrees_of_freedom else 0.0


def remove_drift(state: State, ranks: Ranks = SERIAL) -> None:
    """Subtract the velocity of the centre of mass from every atom."""
    mass, velocity = state.mass_n[: state.owned], state.velocity_n3[: state.owned]
    px, py, pz, total = ranks.allreduce(np.append(mass @ velocity, mass.sum()))
    velocity -= np.array([px, py, pz]) / total


def maxwell_boltzmann(
    state: State,
    temperature_k: float,
    seed: int,
    degrees_of_freedom: int,
    constraints: Any = None,
    ranks: Ranks = SERIAL,
    *,
    exact: bool = True,
) -> None:
    """Draw velocities at a temperature, along the constraints, with the centre of mass at rest.

    Args:
        state: its owned velocities are replaced.
        temperature_k: temperature in K.
        seed: of the random numbers; the same seed gives an atom the same velocity on any number of ranks.
        degrees_of_freedom: N_f, for `exact`.
        constraints: object with `velocities(state)`, or None.
        ranks: the ranks that share the atoms.
        exact: scale to this very temperature; otherwise leave its canonical fluctuation.
    """
    stream = STREAMS * state.step + START
    kt = BOLTZMANN * float(temperature_k)
    _draw.launch(machine(state), state.owned, seed, stream, kt, state.mass_n, state.tag_n, state.velocity_n3)
    remove_drift(state, ranks)
    if constraints is not None:
        constraints.velocities(state)
    drawn = temperature(kinetic_tensor(state, ranks), degrees_of_freedom)
    if exact and drawn > 0.0:
        state.velocity_n3[: state.owned] *= math.sqrt(temperature_k / drawn)
