"""Constant pressure: Martyna-Tobias-Klein equations of motion and stochastic cell rescaling.

The box's axes stretch, x_k -> s_k x_k; axes of one group stretch alike:

    isotropic     x = y = z         box shape kept; distribution exp(-(H + P V)/kT) dV
    semi          x = y, z          surfaces and membranes;                      ... dA dLz
    anisotropic   x, y, z           orthorhombic boxes only;                     ... dLx dLy dLz

Pressure tensor: (sum m v v + W + W_c) / V.  The virial W_c of rigid bonds is the mean of those of two trial steps of TRIAL ps
from the present state, forwards and backwards in time: an error O(TRIAL^2), and a function of the present state alone.

MartynaTobiasKlein.  e_k = d ln L_k/dt of the axes, W = (N_f + 3) kT tau_p^2 / 3 an axis, a_k = e_k + sum e / N_f:

    dx/dt = v + e x,   dv/dt = f/m - a v - (chain) v,   W de/dt = V (P_kk - P) + sum m v^2 / N_f - (chain) W e

One step, with h = dt/2, G the kick of e, and N chains on particles and on e:  N(h) G(h) B(h) A(dt) | f | B(h) G(h) N(h), order
dt^2 and reversible; B and A include a and e exactly.  Conserved: H + P V + sum W e^2/2 + both chains.
With rigid bonds the velocities obey r.(v + e r) = 0, as they must. Neglected there: the force in the bonds that keeps
molecules from following the box as its stretching speeds up, so that the box's inertia seems smaller than W by I, the sum of
m r^2 about the molecules' centres (I e^2/2 enters the conserved quantity's error; I/W is .4 % for water and tau_p = 1 ps);
differences between the axes' stretches within one step (relative errors e dt, 1e-5); and the change of W_c between the end of
a step and its rescaled start (so a step is reversible only without rigid bonds). Molecules must be whole.

CellRescaling acts every `interval` steps of another, thermostatted integrator, over the time t = interval dt.  For each group of
n axes with u = ln (product of its lengths)

    u' = u + D t V (P_group - P)/kT + sqrt(2 D t) z,    D = kT n kappa / (3 V tau_p)

(kappa: compressibility); positions stretch, velocities shrink, and forces are evaluated again.  The effective energy, H + P V
less the heat of the inner integrator, gets kT ln of the ratio of the probabilities of the moves there and back: its drift is what
detailed balance fails by.  The error of the volume's distribution is O(t/tau_p).
Neglected with rigid bonds: their lengths are restored after the stretch while angular velocities shrink with the others; the
average of the pressure is right, the effective energy then is no more than a diagnostic.

References: Martyna, Tobias, Klein, J. Chem. Phys. 101, 4177 (1994); Tuckerman et al., J. Phys. A 39, 5629 (2006); Bernetti and
Bussi, J. Chem. Phys. 153, 114107 (2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.core.ranks import SERIAL, Ranks
from gewu.physics.md.integrate import Chain, Integrator, Model, advance_clock, kick, move
from gewu.physics.md.kinetics import CELL, STREAMS, kinetic_energy, kinetic_tensor
from gewu.physics.md.state import Array, Evaluation, State
from gewu.physics.md.units import BOLTZMANN

GROUPS: Final[dict[str, tuple[tuple[int, ...], ...]]] = {
    "isotropic": ((0, 1, 2),),
    "semi": ((0, 1), (2,)),
    "anisotropic": ((0,), (1,), (2,)),
}
TRIAL: Final = 5e-4  # ps: short against the 40 fs of the fastest libration, long enough for solvers exact to 1e-8


def pressure_tensor(state: State, model: Model, evaluation: Evaluation) -> Array:
    """Return the instantaneous pressure tensor, (3, 3) in kJ/mol/nm^3.

    Args:
        state: all ranks call, each with its own.
        model: for constraints and ranks.
        evaluation: energies and virial at the state's positions, of all ranks.
    """
    total = kinetic_tensor(state, model.ranks) + evaluation.virial_33 + constraint_virial(state, model)
    return np.asarray(total / state.volume)


def constraint_virial(state: State, model: Model, rate_3: Any = 0.0) -> Array:
    """Return the virial of rigid bonds, (3, 3) in kJ/mol, when positions move as v + rate x; the state comes back unchanged."""
    total = np.zeros((3, 3))
    if model.constraints is None:
        return total
    position, velocity = state.position_n3.copy(), state.velocity_n3.copy()
    for sign in (1.0, -1.0):
        state.velocity_n3[:] = sign * (velocity + rate_3 * position)
        move(state, 1.0, 0.5 * TRIAL, 1.0, TRIAL)
        model.constraints.positions(state, position, TRIAL)
        total += 0.5 * model.constraints.virial_33
        state.position_n3[:], state.velocity_n3[:] = position, velocity
    return np.asarray(model.ranks.allreduce(total))


def check_box(state: State, coupling: str) -> tuple[tuple[int, ...], ...]:
    """Return the groups of axes of a coupling.

    Raises:
        InputError: unknown coupling, no periodic box, or anisotropic coupling of a box that is not orthorhombic.
    """
    if coupling not in GROUPS:
        raise InputError("unknown coupling of the pressure", key="coupling", value=coupling, allowed=", ".join(GROUPS))
    if not state.periodic:
        raise InputError("constant pressure needs a periodic box", key="periodic", value=False)
    if coupling == "anisotropic" and np.any(state.box_33 != np.diag(np.diag(state.box_33))):
        hint = "use isotropic or semi coupling"
        raise InputError("anisotropic pressure needs an orthorhombic box", key="box", value=state.box_33.tolist(), hint=hint)
    return GROUPS[coupling]


def stretch(state: State, factor_3: Array) -> None:
    """Scale the box along x, y, z, in place."""
    state.box_33 *= factor_3


@dataclass(eq=False)
class MartynaTobiasKlein:
    """Constant temperature and pressure by Nose-Hoover chains on particles and box.

    Args:
        dt: time step in ps.
        temperature_k: temperature in K.
        tau: time constant of the temperature in ps.
        pressure: in kJ/mol/nm^3.
        tau_pressure: time constant of the box in ps, some times `tau`.
        coupling: which axes stretch alike: isotropic, semi or anisotropic.
        ranks: the ranks that share the atoms; taken from the model at the first step.
    """

    dt: float
    temperature_k: float
    tau: float
    pressure: float
    tau_pressure: float
    coupling: str = "isotropic"
    ranks: Ranks = SERIAL
    dof: int = field(default=0, init=False)
    rate_3: Array = field(default_factory=lambda: np.zeros(3), init=False)
    virial_33: Array | None = field(default=None, init=False)
    particles: Chain = field(init=False)
    box: Chain = field(init=False)

    def __post_init__(self) -> None:
        kt = BOLTZMANN * self.temperature_k
        self.particles, self.box = Chain(kt, self.tau), Chain(kt, self.tau_pressure)

    @property
    def _inertia(self) -> float:
        return (self.dof + 3) * self.particles.kt * self.tau_pressure**2 / 3.0

    def _advance_box_chain(self, h: float, groups: int) -> None:
        self.rate_3 = self.rate_3 * self.box.advance(self._inertia * float(self.rate_3 @ self.rate_3), groups, h)

    def _kick_box(self, state: State, kinetic_33: Array, groups: tuple[tuple[int, ...], ...], h: float) -> None:
        assert self.virial_33 is not None
        force_3 = np.diag(kinetic_33 + self.virial_33) - self.pressure * state.volume + np.trace(kinetic_33) / self.dof
        for group in groups:
            force_3[list(group)] = force_3[list(group)].mean()
        self.rate_3 = self.rate_3 + h / self._inertia * force_3

    def _kick(self, h: float) -> tuple[Array, Array]:
        """Return the factors of v and of f/m in B(h)."""
        brake_3 = (self.rate_3 + self.rate_3.sum() / self.dof) * h
        return np.exp(-brake_3), h * np.exp(-0.5 * brake_3) * _sinhc(0.5 * brake_3)

    def step(self, state: State, model: Model, want: bool) -> Evaluation | None:
        """Advance one step; energies and virial are needed, and returned, whatever `want`."""
        groups = check_box(state, self.coupling)
        self.ranks, self.dof, h = model.ranks, model.degrees_of_freedom, 0.5 * self.dt
        if self.virial_33 is None:
            self.virial_33 = _evaluate(state, model).virial_33 + constraint_virial(state, model, self.rate_3)
        kinetic_33 = kinetic_tensor(state, self.ranks)
        self._advance_box_chain(h, len(groups))
        factor = self.particles.advance(float(np.trace(kinetic_33)), self.dof, h)
        self._kick_box(state, factor**2 * kinetic_33, groups, h)
        self._drift(state, model, factor)
        evaluation = _evaluate(state, model)
        kick(state, *self._kick(h))
        if model.constraints is not None:
            state.velocity_n3 += self.rate_3 * state.position_n3
            model.constraints.velocities(state)
            state.velocity_n3 -= self.rate_3 * state.position_n3
        kinetic_33 = kinetic_tensor(state, self.ranks)
        advance_clock(state, self.dt, float(np.trace(kinetic_33)), evaluation.potential, state.volume)
        self.virial_33 = evaluation.virial_33 + constraint_virial(state, model, self.rate_3)
        self._kick_box(state, kinetic_33, groups, h)
        kick(state, self.particles.advance(float(np.trace(kinetic_33)), self.dof, h), 0.0)
        self._advance_box_chain(h, len(groups))
        return evaluation

    def _drift(self, state: State, model: Model, factor: float) -> None:
        """Scale velocities by `factor`, kick half a step, drift a whole one and stretch the box."""
        keep_3, kick_3 = self._kick(0.5 * self.dt)
        half_3 = 0.5 * self.dt * self.rate_3
        drift_3 = self.dt * np.exp(half_3) * _sinhc(half_3)
        before = None if model.constraints is None else state.position_n3.copy()
        move(state, factor * keep_3, kick_3, np.exp(2.0 * half_3), drift_3)
        stretch(state, np.exp(2.0 * half_3))
        if before is not None:
            model.constraints.positions(state, before, float(drift_3.mean()))

    def conserved(self, state: State, evaluation: Evaluation) -> float:
        """Return the enthalpy of system, box and chains."""
        box = 0.5 * self._inertia * float(self.rate_3 @ self.rate_3) + self.pressure * state.volume
        chains = self.particles.energy(self.dof) + self.box.energy(len(GROUPS[self.coupling]))
        return evaluation.potential + kinetic_energy(state, self.ranks) + box + chains

    def to_state(self) -> dict[str, Any]:
        """Return the box's velocity, the chains and the last virial."""
        chains = {"particles": self.particles.to_state(), "box": self.box.to_state()}
        last = {} if self.virial_33 is None else {"virial_33": self.virial_33.copy()}
        return {"dof": self.dof, "rate_3": self.rate_3.copy(), **chains, **last}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take them up."""
        self.dof, self.rate_3 = int(saved["dof"]), np.array(saved["rate_3"], np.float64)
        self.particles.restore(saved["particles"])
        self.box.restore(saved["box"])
        self.virial_33 = np.array(saved["virial_33"], np.float64) if "virial_33" in saved else None


@dataclass(eq=False)
class CellRescaling:
    """Constant pressure by random stretches of the box that know their probability.

    Args:
        inner: integrator that keeps the temperature (`Langevin`, `VelocityRescaling`, `NoseHoover`).
        temperature_k: its temperature in K.
        pressure: in kJ/mol/nm^3.
        tau_pressure: time constant in ps.
        compressibility: isothermal, in nm^3 mol/kJ; a wrong value changes the time constant, not the distribution.
        seed: of the noise, the same on all ranks.
        coupling: which axes stretch alike: isotropic, semi or anisotropic.
        interval: steps between two stretches; each costs one more evaluation of the forces.
    """

    inner: Integrator
    temperature_k: float
    pressure: float
    tau_pressure: float
    compressibility: float
    seed: int
    coupling: str = "isotropic"
    interval: int = 10
    bath: float = field(default=0.0, init=False)

    @property
    def dt(self) -> float:
        """Time step in ps."""
        return self.inner.dt

    @property
    def ranks(self) -> Ranks:
        """The ranks that share the atoms."""
        return self.inner.ranks

    def step(self, state: State, model: Model, want: bool) -> Evaluation | None:
        """Advance one step and, when it is time, stretch the box."""
        groups = check_box(state, self.coupling)
        due = (state.step + 1) % self.interval == 0
        evaluation = self.inner.step(state, model, want or due)
        if due and evaluation is not None:
            evaluation = self._stretch(state, model, evaluation, groups)
        return evaluation

    def _push(self, state: State, model: Model, evaluation: Evaluation, groups: Any) -> tuple[Array, Array]:
        """Return drift and width of the move of every group."""
        kt, time = BOLTZMANN * self.temperature_k, self.interval * self.dt
        excess_3 = np.diag(pressure_tensor(state, model, evaluation)) - self.pressure
        mobility = np.array([len(g) * self.compressibility * time / (3.0 * self.tau_pressure) for g in groups])  # D t V / kT
        drift = mobility * np.array([excess_3[list(g)].mean() for g in groups])
        return drift, np.sqrt(2.0 * kt * mobility / state.volume)

    def _stretch(self, state: State, model: Model, evaluation: Evaluation, groups: Any) -> Evaluation:
        kt, volume = BOLTZMANN * self.temperature_k, state.volume
        key = np.array([self.seed, STREAMS * state.step + CELL], np.uint64)
        z = np.random.Generator(np.random.Philox(key=key)).standard_normal(len(groups))
        drift, width = self._push(state, model, evaluation, groups)
        shift, factor_3 = drift + width * z, np.empty(3)
        for group, u in zip(groups, shift, strict=True):
            factor_3[list(group)] = math.exp(u / len(group))
        move(state, 1.0 / factor_3, 0.0, factor_3, 0.0)
        stretch(state, factor_3)
        if model.constraints is not None:
            model.constraints.positions(state, state.position_n3.copy(), None)
            model.constraints.velocities(state)
        evaluation = _evaluate(state, model)
        back, back_width = self._push(state, model, evaluation, groups)
        advance = 0.5 * (((shift + back) / back_width) ** 2 - z**2) + np.log(back_width / width)
        self.bath += kt * (float(advance.sum()) - math.log(state.volume / volume))
        return evaluation

    def conserved(self, state: State, evaluation: Evaluation) -> float:
        """Return the effective energy."""
        return self.inner.conserved(state, evaluation) + self.pressure * state.volume + self.bath

    def to_state(self) -> dict[str, Any]:
        """Return the balance of the stretches and the inner integrator's variables."""
        return {"bath": self.bath, "inner": self.inner.to_state()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take them up."""
        self.bath = float(saved["bath"])
        self.inner.restore(saved["inner"])


def _sinhc(x_3: Array) -> Array:
    """Return sinh(x)/x, to 1e-16 for |x| < 0.05: boxes stretch by far less in a step."""
    square = x_3 * x_3
    return np.asarray(1.0 + square / 6.0 * (1.0 + square / 20.0 * (1.0 + square / 42.0)))


def _evaluate(state: State, model: Model) -> Evaluation:
    evaluation = model.compute(state, True)
    assert evaluation is not None
    return evaluation
