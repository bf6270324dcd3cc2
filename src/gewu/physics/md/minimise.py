"""Relaxation of positions at a fixed box, until the largest force is below a tolerance: FIRE and L-BFGS.

FIRE is molecular dynamics with unit masses in which velocities turn towards the forces, v = (1 - a) v + a |v| f/|f|, time steps
grow while the power f.v is positive, and all stops, half a step back, when it is not (version 2.0); all velocities are scaled
down when an atom would move by more than LARGEST_MOVE, so starts with overlapping atoms come apart.  It runs on any number of
ranks and along rigid bonds: positions are put back onto them, and forces and velocities across them are taken away.
L-BFGS is SciPy's L-BFGS-B without bounds: fewer evaluations on smooth surfaces, one rank, no rigid bonds.  Its moves are not
bounded, so it may end in another valley: take FIRE first where atoms overlap.

References: Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006); Guenole et al., Comput. Mater. Sci. 175, 109584 (2020); Liu and
Nocedal, Math. Program. 45, 503 (1989).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy import optimize

from gewu.core.errors import ConvergenceError, InputError
from gewu.core.kernel import kernel
from gewu.physics.md.integrate import Model
from gewu.physics.md.kinetics import ROWS, machine
from gewu.physics.md.state import Array, State

FIRST: Final = 3e-4  # first time step in ps/u^(1/2): 1 fs for an atom of 12 u
LARGEST_MOVE: Final = 0.01  # nm: a tenth of a bond
MIX, MIX_DECAY, GROW, SHRINK, PATIENCE = 0.25, 0.99, 1.1, 0.5, 20  # the 2.0 paper's parameters
FASTEST, SLOWEST = 10.0 * FIRST, 1e-3 * FIRST  # bounds of the time step


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    Args:
        energy: potential energy in kJ/mol.
        max_force: largest force on an atom in kJ/mol/nm.
        evaluations: how often forces were computed.
        converged: whether `max_force` is below the tolerance.
    """

    energy: float
    max_force: float
    evaluations: int
    converged: bool


@kernel
def _measure(b: int, n: int, mass_n: Any, force_n3: Any, velocity_n3: Any, sum_b5: Any) -> None:
    fv, ff, vv, f_max, v_max = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(b * ROWS, min(n, (b + 1) * ROWS)):
        if mass_n[i] > 0.0:
            f0, f1, f2 = force_n3[i, 0], force_n3[i, 1], force_n3[i, 2]
            v0, v1, v2 = velocity_n3[i, 0], velocity_n3[i, 1], velocity_n3[i, 2]
            f, v = f0 * f0 + f1 * f1 + f2 * f2, v0 * v0 + v1 * v1 + v2 * v2
            fv, ff, vv = fv + (f0 * v0 + f1 * v1 + f2 * v2), ff + f, vv + v
            f_max, v_max = max(f_max, f), max(v_max, v)
    sum_b5[b, 0], sum_b5[b, 1], sum_b5[b, 2], sum_b5[b, 3], sum_b5[b, 4] = fv, ff, vv, f_max, v_max


@kernel
def _steer(
    i: int, back: float, keep: float, pull: float, drift: float, mass_n: Any, force_n3: Any, velocity_n3: Any, position_n3: Any
) -> None:
    if mass_n[i] > 0.0:
        for k in range(3):
            v = keep * velocity_n3[i, k] + pull * force_n3[i, k]
            position_n3[i, k] += drift * v - back * velocity_n3[i, k]
            velocity_n3[i, k] = v


def _sums(state: State, model: Model) -> tuple[float, float, float, float, float]:
    """Return f.v, f.f, v.v over all atoms of all ranks, and the largest |f| and |v| of one atom."""
    blocks = -(-state.owned // ROWS)
    sums = np.zeros((blocks, 5))
    _measure.launch(machine(state), blocks, state.owned, state.mass_n, state.force_n3, state.velocity_n3, sums)
    fv, ff, vv = model.ranks.allreduce(sums[:, :3].sum(axis=0))
    f_max, v_max = model.ranks.allreduce(sums[:, 3:].max(axis=0, initial=0.0), "max")
    return float(fv), float(ff), float(vv), math.sqrt(f_max), math.sqrt(v_max)


def _along_constraints(state: State, model: Model) -> None:
    """Take away velocities and forces that change the lengths of rigid bonds."""
    if model.constraints is None:
        return
    model.constraints.velocities(state)
    velocity, mass_n1 = state.velocity_n3.copy(), state.mass_n[:, None]
    state.velocity_n3[:] = np.divide(state.force_n3, mass_n1, out=np.zeros_like(velocity), where=mass_n1 > 0)
    model.constraints.velocities(state)
    state.force_n3[:] = mass_n1 * state.velocity_n3
    state.velocity_n3[:] = velocity


def _check(*numbers: float, evaluations: int) -> None:
    if not all(math.isfinite(x) for x in numbers):
        message = f"energy or forces are not finite at evaluation {evaluations} of the minimisation"
        raise ConvergenceError(message, hint="look for atoms on top of each other in the start")


def fire(state: State, model: Model, tolerance: float, max_evaluations: int = 2000) -> Minimum:
    """Relax positions by FIRE 2.0; velocities are lost (set to zero).

    Args:
        state: positions are moved; on return, forces are those at the positions.
        model: forces, constraints, ranks.
        tolerance: largest force on an atom, kJ/mol/nm.
        max_evaluations: give up after so many evaluations.
    Returns:
        The minimum; the caller decides what it is worth if it did not converge.
    Raises:
        ConvergenceError: energy or forces are not finite.
    """
    state.velocity_n3[:] = 0.0
    mix, dt, downhill, evaluations, energy, largest = MIX, FIRST, 0, 0, 0.0, math.inf
    while evaluations < max_evaluations:
        evaluation = model.compute(state, True)
        assert evaluation is not None
        evaluations, energy = evaluations + 1, evaluation.potential
        _along_constraints(state, model)
        power, ff, vv, largest, fastest = _sums(state, model)
        _check(energy, ff, evaluations=evaluations)
        if largest < tolerance or evaluations == max_evaluations:
            break
        keep, back = 1.0, 0.0
        if power > 0.0:
            downhill += 1
            if downhill > PATIENCE:
                dt, mix = min(dt * GROW, FASTEST), mix * MIX_DECAY
        elif evaluations > 1:
            downhill, mix = 0, MIX
            dt, keep, back = max(dt * SHRINK, SLOWEST), 0.0, 0.5 * dt
        speed = math.sqrt(max(0.0, keep * (vv + 2.0 * dt * power) + dt * dt * ff))  # after the kick
        keep, pull = keep * (1.0 - mix), (1.0 - mix) * dt + mix * speed / math.sqrt(ff)
        slow = min(1.0, LARGEST_MOVE / (dt * (keep * fastest + pull * largest)))
        _advance(state, model, (back, slow * keep, slow * pull, dt))
    state.velocity_n3[:] = 0.0
    return Minimum(energy, largest, evaluations, largest < tolerance)


def _advance(state: State, model: Model, factors: tuple[float, float, float, float]) -> None:
    before = None if model.constraints is None else state.position_n3.copy()
    arrays = (state.mass_n, state.force_n3, state.velocity_n3, state.position_n3)
    _steer.launch(machine(state), state.owned, *factors, *arrays)
    if before is not None:
        model.constraints.positions(state, before, None)


def lbfgs(state: State, model: Model, tolerance: float, max_evaluations: int = 2000) -> Minimum:
    """Relax positions by L-BFGS (arguments, result and refusals as for `fire`; velocities are kept).

    Raises:
        InputError: several ranks, or rigid bonds.
    """
    if model.ranks.size > 1 or model.constraints is not None:
        what = "several ranks" if model.ranks.size > 1 else "rigid bonds"
        raise InputError(f"L-BFGS does not work with {what}", key="method", value="lbfgs", hint="use fire")
    mobile = np.flatnonzero(state.mass_n > 0.0)
    evaluations, last = 0, (math.inf, math.inf)

    def energy_and_gradient(x: Array) -> tuple[float, Array]:
        nonlocal evaluations, last
        state.position_n3[mobile] = x.reshape(-1, 3)
        evaluation = model.compute(state, True)
        assert evaluation is not None
        force = state.force_n3[mobile]
        evaluations, last = evaluations + 1, (evaluation.potential, math.sqrt(float((force**2).sum(axis=1).max(initial=0.0))))
        _check(*last, evaluations=evaluations)
        return evaluation.potential, -force.ravel()

    def stop(intermediate_result: Any) -> None:
        if last[1] < tolerance or evaluations >= max_evaluations:
            raise StopIteration

    options = {"maxfun": max_evaluations, "maxiter": max_evaluations, "ftol": 0.0, "gtol": tolerance / 2.0, "maxcor": 20}
    start = state.position_n3[mobile].ravel()
    found = optimize.minimize(energy_and_gradient, start, method="L-BFGS-B", jac=True, callback=stop, options=options)
    energy, _ = energy_and_gradient(np.asarray(found.x))
    return Minimum(energy, last[1], evaluations, last[1] < tolerance)
