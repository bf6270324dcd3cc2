"""Time steps at constant volume: velocity Verlet, BAOAB Langevin, Nose-Hoover chains, stochastic velocity rescaling.

With B(t): v += t f/m, A(t): x += t v, and h = dt/2, one step of

    VelocityVerlet      B(h) A(dt) | f | B(h)                              order dt^2, reversible, symplectic
    Langevin            B(h) A(h) O(dt) A(h) | f | B(h)                    O: v = c v + sqrt((1 - c^2) kT/m) z, c = exp(-gamma dt)
    NoseHoover          N(h) B(h) A(dt) | f | B(h) N(h)                    N: a chain of thermostats scales v; reversible
    VelocityRescaling   B(h) A(dt) | f | B(h) S(dt)                        S: v scaled: a random walk of the kinetic energy

where | f | is `model.compute`.  BAOAB samples positions of a harmonic well exactly at any stable dt; temperatures read from its
velocities are low by O(dt^2).

Rigid bonds: `C` puts positions back onto the constraints (and corrects velocities by the shift over the drift's time), `R` takes
the velocities along them away (RATTLE).  Verlet: B A C | f | B R.  Langevin: B A C R O R A C | f | B R (the geodesic scheme
with one geodesic a half-step).  Scaling all velocities by one number keeps them along the constraints.

Each integrator keeps `conserved(state, evaluation)`: the total energy for Verlet; the energy less the heat taken from the bath
for the stochastic ones (a measure of the error of the deterministic parts); the extended energy for chains.  Its error is
O(dt^2).  `evaluation` must be that of all ranks.

On entry of a step, `state.force_n3` must hold the forces at `state.position_n3`: the caller evaluates once before the first.
Rows without mass (virtual sites) are neither kicked nor drifted, but stretch with the box.

References: Swope et al., J. Chem. Phys. 76, 637 (1982); Andersen, J. Comput. Phys. 52, 24 (1983); Leimkuhler and Matthews,
J. Chem. Phys. 138, 174102 (2013) and Proc. R. Soc. A 472, 20160138 (2016);
Martyna, Tuckerman, Tobias, Klein, Mol. Phys. 87, 1117 (1996);
Bussi, Donadio, Parrinello, J. Chem. Phys. 126, 014101 (2007).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gewu.core.errors import ConvergenceError
from gewu.core.kernel import kernel
from gewu.core.random import philox_three_normals
from gewu.core.ranks import SERIAL, Ranks
from gewu.physics.md.kinetics import LANGEVIN, RESCALING, STREAMS, kinetic_energy, machine
from gewu.physics.md.state import Array, Evaluation, State
from gewu.physics.md.units import BOLTZMANN

_YOSHIDA = (1.3512071919596578, -1.7024143839193153, 1.3512071919596578)  # 1/(2 - 2^(1/3)) and 1 - 2/(2 - 2^(1/3))


class Model(Protocol):
    """What an integrator asks of a model (see `model.Model`)."""

    constraints: Any
    degrees_of_freedom: int
    ranks: Ranks

    def compute(self, state: State, want: bool) -> Evaluation | None:
        """Fill the forces; return energies and virial of all ranks if wanted.  May replace every array of the state."""


class Integrator(Protocol):
    """The face that all integrators share."""

    dt: float
    ranks: Ranks

    def step(self, state: State, model: Model, want: bool) -> Evaluation | None:
        """Advance one step; return the evaluation at the new positions (always, if `want`)."""

    def conserved(self, state: State, evaluation: Evaluation) -> float:
        """Return the conserved quantity in kJ/mol."""

    def to_state(self) -> dict[str, Any]:
        """Return the extended variables for a checkpoint."""

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take up the extended variables of a checkpoint."""


# Tuples instead of arrays of factors, and no branch for rows without mass: four times as fast, as the loop becomes vector code.
@kernel
def _move(i, keep, kick, stretch, drift, mass_n, force_n3, velocity_n3, position_n3):  # type: ignore[no-untyped-def]
    w, moves = (1.0 / mass_n[i] if mass_n[i] > 0.0 else 0.0), (1.0 if mass_n[i] > 0.0 else 0.0)
    v0 = keep[0] * velocity_n3[i, 0] + kick[0] * (w * force_n3[i, 0])
    v1 = keep[1] * velocity_n3[i, 1] + kick[1] * (w * force_n3[i, 1])
    v2 = keep[2] * velocity_n3[i, 2] + kick[2] * (w * force_n3[i, 2])
    position_n3[i, 0] = stretch[0] * position_n3[i, 0] + drift[0] * (moves * v0)
    position_n3[i, 1] = stretch[1] * position_n3[i, 1] + drift[1] * (moves * v1)
    position_n3[i, 2] = stretch[2] * position_n3[i, 2] + drift[2] * (moves * v2)
    velocity_n3[i, 0], velocity_n3[i, 1], velocity_n3[i, 2] = v0, v1, v2


@kernel
def _kick(i, keep, kick, mass_n, force_n3, velocity_n3):  # type: ignore[no-untyped-def]
    w = 1.0 / mass_n[i] if mass_n[i] > 0.0 else 0.0
    v0 = keep[0] * velocity_n3[i, 0] + kick[0] * (w * force_n3[i, 0])
    v1 = keep[1] * velocity_n3[i, 1] + kick[1] * (w * force_n3[i, 1])
    v2 = keep[2] * velocity_n3[i, 2] + kick[2] * (w * force_n3[i, 2])
    velocity_n3[i, 0], velocity_n3[i, 1], velocity_n3[i, 2] = v0, v1, v2


@kernel
def _baoa(  # type: ignore[no-untyped-def]
    i, kick, drift, keep, kt, seed, stream, tag_n, mass_n, force_n3, velocity_n3, position_n3, heat_n
):
    heat_n[i] = 0.0
    if mass_n[i] > 0.0:
        w = 1.0 / mass_n[i]
        s = math.sqrt((1.0 - keep * keep) * kt * w)
        z0, z1, z2 = philox_three_normals(seed, stream, tag_n[i])
        a0 = velocity_n3[i, 0] + kick * (w * force_n3[i, 0])
        a1 = velocity_n3[i, 1] + kick * (w * force_n3[i, 1])
        a2 = velocity_n3[i, 2] + kick * (w * force_n3[i, 2])
        b0, b1, b2 = keep * a0 + s * z0, keep * a1 + s * z1, keep * a2 + s * z2
        velocity_n3[i, 0], velocity_n3[i, 1], velocity_n3[i, 2] = b0, b1, b2
        position_n3[i, 0] += drift * (a0 + b0)
        position_n3[i, 1] += drift * (a1 + b1)
        position_n3[i, 2] += drift * (a2 + b2)
        heat_n[i] = 0.5 * mass_n[i] * (b0 * b0 - a0 * a0 + b1 * b1 - a1 * a1 + b2 * b2 - a2 * a2)


def _axes(factor: Any) -> tuple[float, float, float]:
    """Return one float per axis of a factor, which is a number or one number per axis."""
    x, y, z = factor if isinstance(factor, np.ndarray) else (factor,) * 3
    return float(x), float(y), float(z)


def move(state: State, keep: Any, kick: Any, stretch: Any, drift: Any) -> None:
    """Set v = keep v + kick f/m and then x = stretch x + drift v, each factor a number or an array of one per axis."""
    arrays = (state.mass_n, state.force_n3, state.velocity_n3, state.position_n3)
    _move.launch(machine(state), state.owned, _axes(keep), _axes(kick), _axes(stretch), _axes(drift), *arrays)


def kick(state: State, keep: Any, kick: Any) -> None:
    """Set v = keep v + kick f/m, each factor a number or an array of one per axis."""
    _kick.launch(machine(state), state.owned, _axes(keep), _axes(kick), state.mass_n, state.force_n3, state.velocity_n3)


def verlet_first(state: State, model: Model, dt: float, keep: float = 1.0) -> None:
    """Scale velocities by `keep`, kick half a step and drift a whole one, along the constraints."""
    before = None if model.constraints is None else state.position_n3.copy()
    move(state, keep, 0.5 * dt, 1.0, dt)
    if before is not None:
        model.constraints.positions(state, before, dt)


def verlet_second(state: State, model: Model, dt: float) -> None:
    """Kick half a step, along the constraints."""
    kick(state, 1.0, 0.5 * dt)
    if model.constraints is not None:
        model.constraints.velocities(state)


def advance_clock(state: State, dt: float, *numbers: float | None) -> None:
    """Count the step.

    Raises:
        ConvergenceError: one of the numbers, the same on all ranks, is not finite (None: not known).
    """
    state.step += 1
    state.time_ps += dt
    if not all(x is None or math.isfinite(x) for x in numbers):
        message = f"energies or velocities are not finite: first non-finite step {state.step}"
        raise ConvergenceError(message, hint="reduce timestep_fs or minimise first")


@dataclass(eq=False)
class VelocityVerlet:
    """Constant energy.

    Args:
        dt: time step in ps.
        ranks: the ranks that share the atoms; taken from the model at the first step.
    """

    dt: float
    ranks: Ranks = SERIAL

    def step(self, state: State, model: Model, want: bool) -> Evaluation | None:
        """Advance one step."""
        self.ranks = model.ranks
        verlet_first(state, model, self.dt)
        evaluation = model.compute(state, want)
        verlet_second(state, model, self.dt)
        known = (evaluation.potential, kinetic_energy(state, self.ranks)) if want and evaluation else ()
        advance_clock(state, self.dt, *known)
        return evaluation

    def conserved(self, state: State, evaluation: Evaluation) -> float:
        """Return the total energy."""
        return evaluation.potential + kinetic_energy(state, self.ranks)

    def to_state(self) -> dict[str, Any]:
        """Return nothing: positions and velocities say all."""
        return {}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take nothing up."""


class _Bath:
    """What integrators with a stochastic bath share: the heat that it gave."""

    ranks: Ranks
    heat: float

    def conserved(self, state: State, evaluation: Evaluation) -> float:
        """Return the total energy less the heat taken from the bath."""
        return evaluation.potential + kinetic_energy(state, self.ranks) - self.heat

    def to_state(self) -> dict[str, Any]:
        """Return the heat."""
        return {"heat": self.heat}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take up the heat."""
        self.heat = float(saved["heat"])


@dataclass(eq=False)
class Langevin(_Bath):
    """Constant temperature by friction and noise on every atom (BAOAB).

    Args:
        dt: time step in ps.
        temperature_k: temperature in K.
        friction: gamma in 1/ps.
        seed: of the noise, which depends on (seed, step, tag) alone.
        ranks: as for `VelocityVerlet`.
    """

    dt: float
    temperature_k: float
    friction: float
    seed: int
    ranks: Ranks = SERIAL
    heat: float = field(default=0.0, init=False)
    _heat_n: Array = field(default_factory=lambda: np.zeros(0), init=False, repr=False)

    def _noise(self, state: State, kick: float, drift: float) -> float:
        """Do B, A, O, A; return the heat that O brought in on this rank."""
        if len(self._heat_n) < state.owned:
            self._heat_n = np.empty(len(state.mass_n))
        keep, stream = math.exp(-self.friction * self.dt), STREAMS * state.step + LANGEVIN
        numbers = (float(kick), float(drift), keep, BOLTZMANN * float(self.temperature_k), self.seed, stream)
        arrays = (state.tag_n, state.mass_n, state.force_n3, state.velocity_n3, state.position_n3, self._heat_n)
        _baoa.launch(machine(state), state.owned, *numbers, *arrays)
        return float(self._heat_n[: state.owned].sum())

    def _constrained(self, state: State, model: Model) -> float:
        """Do B A C R O R A C; return the heat of R O R."""
        h, rigid = 0.5 * self.dt, model.constraints
        before = state.position_n3.copy()
        move(state, 1.0, h, 1.0, h)
        rigid.positions(state, before, h)
        rigid.velocities(state)
        cold = kinetic_energy(state, model.ranks)
        self._noise(state, 0.0, 0.0)
        rigid.velocities(state)
        heat = kinetic_energy(state, model.ranks) - cold
        before[:] = state.position_n3
        move(state, 1.0, 0.0, 1.0, h)
        rigid.positions(state, before, h)
        return heat

    def step(self, state: State, model: Model, want: bool) -> Evaluation | None:
        """Advance one step."""
        self.ranks, h = model.ranks, 0.5 * self.dt
        if model.constraints is None:
            heat = self.ranks.allreduce(self._noise(state, h, h))
        else:
            heat = self._constrained(state, model)
        self.heat += heat
        evaluation = model.compute(state, want)
        verlet_second(state, model, self.dt)
        advance_clock(state, self.dt, heat, evaluation.potential if want and evaluation else None)
        return evaluation


@dataclass(eq=False)
class Chain:
    """Nose-Hoover chain: thermostat 1 acts on the system, thermostat k + 1 on thermostat k; Q_1 = N_f kT tau^2, Q_k = kT tau^2.

    Args:
        kt: k_B T in kJ/mol.
        tau: time constant in ps.
        length: number of thermostats.
    """

    kt: float
    tau: float
    length: int = 3
    eta: list[float] = field(default_factory=list)
    speed: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.eta, self.speed = self.eta or [0.0] * self.length, self.speed or [0.0] * self.length

    def _pull(self, k: int, twice_kinetic: float, dof: int) -> float:
        if k == 0:
            return (twice_kinetic / (dof * self.kt) - 1.0) / self.tau**2
        return (dof if k == 1 else 1) * self.speed[k - 1] ** 2 - 1.0 / self.tau**2  # (Q_(k-1) v_(k-1)^2 - kT) / Q_k

    def advance(self, twice_kinetic: float, dof: int, time: float) -> float:
        """Move the chain by `time` (Suzuki-Yoshida, fourth order) and return the factor by which velocities scale.

        Args:
            twice_kinetic: sum m v^2 of the variables it acts on, kJ/mol.
            dof: their number of degrees of freedom.
            time: in ps; half a time step.
        """
        v, last, factor = self.speed, self.length - 1, 1.0
        for weight in _YOSHIDA:
            d = weight * time
            for k in range(last, -1, -1):
                brake = math.exp(-0.25 * d * v[k + 1]) if k < last else 1.0
                v[k] = (v[k] * brake + 0.5 * d * self._pull(k, twice_kinetic * factor**2, dof)) * brake
            factor *= math.exp(-d * v[0])
            for k in range(self.length):
                self.eta[k] += d * v[k]
            for k in range(self.length):
                brake = math.exp(-0.25 * d * v[k + 1]) if k < last else 1.0
                v[k] = (v[k] * brake + 0.5 * d * self._pull(k, twice_kinetic * factor**2, dof)) * brake
        return factor

    def energy(self, dof: int) -> float:
        """Return kinetic and potential energy of the chain in kJ/mol, for a system of `dof` degrees of freedom."""
        inertia = [self.kt * self.tau**2 * (dof if k == 0 else 1) for k in range(self.length)]
        kinetic = sum(0.5 * q * v * v for q, v in zip(inertia, self.speed, strict=True))
        return kinetic + self.kt * (dof * self.eta[0] + sum(self.eta[1:]))

    def to_state(self) -> dict[str, Any]:
        """Return positions and velocities of the chain."""
        return {"eta": np.array(self.eta), "speed": np.array(self.speed)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take them up."""
        self.eta, self.speed = ([float(x) for x in saved[name]] for name in ("eta", "speed"))


@dataclass(eq=False)
class NoseHoover:
    """Constant temperature by a Nose-Hoover chain on all velocities.

    Args:
        dt: time step in ps.
        temperature_k: temperature in K.
        tau: time constant in ps, some 20 time steps or more.
        ranks: as for `VelocityVerlet`.
    """

    dt: float
    temperature_k: float
    tau: float
    ranks: Ranks = SERIAL
    chain: Chain = field(init=False)
    dof: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.chain = Chain(BOLTZMANN * self.temperature_k, self.tau)

    def step(self, state: State, model: Model, want: bool) -> Evaluation | None:
        """Advance one step."""
        self.ranks, self.dof, h = model.ranks, model.degrees_of_freedom, 0.5 * self.dt
        factor = self.chain.advance(2.0 * kinetic_energy(state, self.ranks), self.dof, h)
        verlet_first(state, model, self.dt, factor)
        evaluation = model.compute(state, want)
        verlet_second(state, model, self.dt)
        kinetic = kinetic_energy(state, self.ranks)
        advance_clock(state, self.dt, kinetic, evaluation.potential if want and evaluation else None)
        kick(state, self.chain.advance(2.0 * kinetic, self.dof, h), 0.0)
        return evaluation

    def conserved(self, state: State, evaluation: Evaluation) -> float:
        """Return the energy of system and chain."""
        return evaluation.potential + kinetic_energy(state, self.ranks) + self.chain.energy(self.dof)

    def to_state(self) -> dict[str, Any]:
        """Return the chain."""
        return {"dof": self.dof, **self.chain.to_state()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take up the chain."""
        self.dof = int(saved["dof"])
        self.chain.restore(saved)


@dataclass(eq=False)
class VelocityRescaling(_Bath):
    """Constant temperature by stochastic rescaling of all velocities: canonical, and gentle on the dynamics.

    Args:
        dt: time step in ps.
        temperature_k: temperature in K.
        tau: time constant in ps.
        seed: of the noise, the same on all ranks.
        ranks: as for `VelocityVerlet`.
    """

    dt: float
    temperature_k: float
    tau: float
    seed: int
    ranks: Ranks = SERIAL
    heat: float = field(default=0.0, init=False)

    def step(self, state: State, model: Model, want: bool) -> Evaluation | None:
        """Advance one step."""
        self.ranks = model.ranks
        verlet_first(state, model, self.dt)
        evaluation = model.compute(state, want)
        verlet_second(state, model, self.dt)
        kinetic = kinetic_energy(state, self.ranks)
        stream = STREAMS * state.step + RESCALING
        advance_clock(state, self.dt, kinetic, evaluation.potential if want and evaluation else None)
        factor = self._factor(kinetic, model.degrees_of_freedom, stream)
        kick(state, factor, 0.0)
        self.heat += (factor * factor - 1.0) * kinetic
        return evaluation

    def _factor(self, kinetic: float, dof: int, stream: int) -> float:
        """Return the factor on velocities (Bussi, Donadio, Parrinello 2007, equations A7 and A8)."""
        if kinetic <= 0.0:
            return 1.0
        random = np.random.Generator(np.random.Philox(key=np.array([self.seed, stream], np.uint64)))
        c, r = math.exp(-self.dt / self.tau), float(random.standard_normal())
        others = 2.0 * float(random.standard_gamma(0.5 * (dof - 1))) if dof > 1 else 0.0  # sum of dof - 1 squared normals
        share = 0.5 * BOLTZMANN * self.temperature_k * (1.0 - c) / kinetic
        square = (math.sqrt(c) + r * math.sqrt(share)) ** 2 + share * others
        return math.copysign(math.sqrt(square), math.sqrt(c) + r * math.sqrt(share))
