"""The engine `md`: from a system to trajectories, averages and transport.

The chain is `Config` -> `prepare.prepare` (topology, state, model) -> minimise -> steps of an integrator, sampled -> numbers and
arrays.  Every `_pace` steps the lists are built anew and the state is offered as a checkpoint, so that a run that resumes from it
does what the uninterrupted one does, bit for bit (same ranks, threads and device).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gewu.core.context import Context
from gewu.core.errors import ConvergenceError, InputError
from gewu.core.figure import Figure
from gewu.core.machine import one_blas_thread
from gewu.formats import read_structure
from gewu.formats.extxyz import extxyz_bytes
from gewu.formats.zhou import METALS
from gewu.physics.md import figures as pictures
from gewu.physics.md.barostat import CellRescaling, MartynaTobiasKlein
from gewu.physics.md.config import Config as Config
from gewu.physics.md.integrate import Integrator, Langevin, NoseHoover, VelocityRescaling, VelocityVerlet
from gewu.physics.md.kinetics import maxwell_boltzmann, remove_drift
from gewu.physics.md.minimise import fire
from gewu.physics.md.model import Model
from gewu.physics.md.prepare import Setup, prepare
from gewu.physics.md.references import REFERENCES as REFERENCES
from gewu.physics.md.sampling import Sampler
from gewu.physics.md.state import State
from gewu.physics.md.trajectory import Trajectory, snapshot
from gewu.physics.md.units import BAR

SUMMARY = "Molecular dynamics of metals, liquids and solvated biomolecules"

DRIFT_STEPS = 100  # between two removals of the drift of the centre of mass
PACE = 10_000_000  # atom-steps between two offers of a checkpoint
PLAIN_CELL = 200  # structures of fewer atoms are offered to electronic structure first
FIRST_RUN = {"minimise": 500, "equilibration_ps": 4.0, "time_ps": 8.0}
NOBLE = {"Ne": "0.3051 0.2782", "Ar": "0.9961 0.3405", "Kr": "1.3637 0.3638", "Xe": "1.8373 0.4055"}


def run(config: Config, ctx: Context) -> None:
    """Do what the job says.

    Raises:
        InputError: files and keys that do not fit together.
        ConvergenceError: numbers that are not finite (the step is named), rigid bonds that cannot be kept, a minimisation that
            did not end.
    """
    with ctx.phase("setup"), one_blas_thread():
        setup = prepare(config, ctx.ranks, ctx.device)
        _describe(setup, config, ctx)
        simulation = Simulation(config, setup, ctx)
    with ctx.phase("dynamics"), one_blas_thread():
        finished = simulation.run()
    if finished:
        simulation.finish()


def integrator_of(config: Config) -> Integrator:
    """Return the integrator of a job."""
    dt, kelvin = config.timestep_fs * 1e-3, config.temperature_k
    if config.ensemble == "nve":
        return VelocityVerlet(dt)
    pressure = config.pressure_bar * BAR
    if config.ensemble == "npt" and config.barostat == "mtk":
        return MartynaTobiasKlein(dt, kelvin, config.thermostat_ps, pressure, config.barostat_ps, config.coupling)
    inner: Integrator
    if config.thermostat == "langevin":
        inner = Langevin(dt, kelvin, config.friction_per_ps, config.seed)
    elif config.thermostat == "nose-hoover":
        inner = NoseHoover(dt, kelvin, config.thermostat_ps)
    else:
        inner = VelocityRescaling(dt, kelvin, config.thermostat_ps, config.seed)
    if config.ensemble != "npt":
        return inner
    return CellRescaling(
        inner, kelvin, pressure, config.barostat_ps, config.compressibility_per_bar / BAR, config.seed, config.coupling
    )


class Simulation:
    """A run in progress: state, integrator, samples.

    Args:
        config: the job.
        setup: system and forces.
        ctx: the world; `ctx.restored` is taken up.
    """

    def __init__(self, config: Config, setup: Setup, ctx: Context) -> None:
        self.config, self.setup, self.ctx, self.model = config, setup, ctx, setup.model
        dt = config.timestep_fs * 1e-3
        self.integrator = integrator_of(config)
        length = 0.0 if config.ensemble == "minimise" else config.time_ps
        self.first = 0 if config.ensemble == "minimise" else round(config.equilibration_ps / dt)
        self.steps = self.first + round(length / dt)
        self.sample = max(1, round(config.sample_ps / dt)) if config.sample_ps else max(1, self.steps // 500)
        frame = max(1, round(config.frame_ps / dt)) if config.frame_ps else max(1, self.steps // 100)
        self.frame = max(1, round(frame / self.sample)) * self.sample
        atoms = len(setup.topology)
        self.pace = min(1000, max(10, round(PACE / atoms)))
        samples = (self.steps - self.first) // self.sample
        self.sampler = Sampler(config, setup.topology, setup.state, samples, self.sample * dt)
        self.seconds = 0.0
        self.steps_timed = 0
        restored: Any = ctx.restored
        self.resumed = restored is not None
        state, share = setup.state, None
        if restored is not None:
            state, share = self._restore(restored), restored.get("share")
        saved = restored["trajectory"] if restored is not None else None
        self.trajectory = Trajectory(config.trajectory, setup.topology, ctx, dt, self.frame, state.periodic, saved)
        self.state = self.model.adopt(state, share)

    def _restore(self, saved: Any) -> State:
        self.integrator.restore(saved["integrator"])
        self.sampler.restore(saved["sampler"])
        self.seconds, self.steps_timed = saved["seconds"], saved["steps_timed"]
        arrays = {f"{name}_n3": saved[name].copy() for name in ("position", "velocity") if name in saved}
        return replace(self.setup.state, box_33=saved["box"].copy(), step=saved["step"], time_ps=saved["time_ps"], **arrays)

    def run(self) -> bool:
        """Minimise and move; return False when the run was asked to stop before its end."""
        if not self.resumed:
            self._start()
        if not self._renew():
            return False
        while self.state.step < self.steps:
            begin = time.perf_counter()
            self._step()
            self.seconds += time.perf_counter() - begin
            self.steps_timed += 1
            if self.state.step % self.pace == 0 and self.state.step < self.steps and not self._renew():
                return False
        return True

    def _start(self) -> None:
        config, state, model = self.config, self.state, self.model
        _check_overlap(state, model)
        limit = config.minimise or (10_000 if config.ensemble == "minimise" else 0)
        if limit:
            with self.ctx.phase("minimise"):
                found = fire(state, model, config.max_force_kj_mol_nm, limit)
            self.ctx.log(f"minimised: {found.energy:.6g} kJ/mol, largest force {found.max_force:.4g} kJ/mol/nm")
            if config.ensemble == "minimise":
                self.ctx.number("energy_kj_mol", found.energy, "kJ/mol", converged=found.converged)
                self.ctx.number("max_force_kj_mol_nm", found.max_force, "kJ/mol/nm", converged=found.converged)
            if config.ensemble == "minimise" and not found.converged:
                self._save_structure()
                raise ConvergenceError("the minimisation did not end", key="md.minimise", value=limit, hint="allow more steps")
        given = bool(np.any(self.setup.state.velocity_n3))
        if config.ensemble != "minimise" and (limit or not given):
            args = (config.temperature_k, config.seed, model.degrees_of_freedom, model.constraints, model.ranks)
            maxwell_boltzmann(state, *args, exact=True)

    def _renew(self) -> bool:
        """Build lists anew and offer the state as a checkpoint; return False to stop here."""
        stop = self.ctx.stop_requested
        self.model.refresh(self.state)
        domain = self.model.domain
        mine: dict[str, Any] = {"position": self.state.position_n3, "velocity": self.state.velocity_n3}
        self.ctx.checkpoint(
            {
                **(mine if domain is None else {"share": domain.to_state(self.state)}),
                "box": self.state.box_33.copy(),
                "step": self.state.step,
                "time_ps": self.state.time_ps,
                "integrator": self.integrator.to_state(),
                "sampler": self.sampler.to_state(),
                "trajectory": self.trajectory.to_state(),
                "seconds": self.seconds,
                "steps_timed": self.steps_timed,
            }
        )
        return not stop

    def _whole(self) -> tuple[Any, Any]:
        """Return positions and velocities of all atoms in the order of the input (collective)."""
        if self.model.domain is None:
            return self.state.position_n3, self.state.velocity_n3
        return self.model.domain.gather(self.state)

    def _step(self) -> None:
        state, config = self.state, self.config
        number = state.step + 1
        if config.temperature_end_k:
            fraction = number / max(1, self.steps)
            _set_temperature(self.integrator, config.temperature_k + fraction * (config.temperature_end_k - config.temperature_k))
        want = number % self.sample == 0 or number == self.steps
        evaluation = self.integrator.step(state, self.model, want)
        if number % DRIFT_STEPS == 0 and not isinstance(self.integrator, Langevin) and config.ensemble != "nve":
            remove_drift(state, self.model.ranks)
        if want:
            assert evaluation is not None
            self._sample(evaluation, number)

    def _sample(self, evaluation: Any, number: int) -> None:
        row = self.sampler.measure(self.state, self.model, evaluation, self.integrator)
        frame = number % self.frame == 0 and self.config.trajectory != "none"
        counts = number > self.first and number % self.sample == 0
        if counts or frame:
            position, velocity = self._whole()
            if self.ctx.ranks.is_root:
                whole = self.state if self.model.domain is None else self._full(position, velocity)
                if counts:
                    self.sampler.average(whole, row)
                if frame:
                    self.trajectory.append(whole, position)
        self.ctx.progress(
            number, self.steps, time_ps=row["time_ps"], temperature_k=row["temperature_k"], pressure_bar=row["pressure_bar"],
            potential_kj_mol=row["potential_kj_mol"], ns_per_day=self._speed(),
        )  # fmt: skip

    def _full(self, position: Any, velocity: Any) -> State:
        start = self.setup.state
        step, clock, box = self.state.step, self.state.time_ps, self.state.box_33
        return replace(
            start, position_n3=position, velocity_n3=velocity, box_33=box, step=step, time_ps=clock, owned=len(position)
        )

    def _speed(self) -> float:
        """Return ns/day so far."""
        per_step = self.seconds / self.steps_timed if self.steps_timed else math.inf
        return self.config.timestep_fs * 1e-6 * 86400.0 / per_step if per_step else 0.0

    def finish(self) -> None:
        """Save what was measured."""
        ctx, config = self.ctx, self.config
        self._save_structure()
        self.trajectory.close()
        if config.ensemble != "minimise":
            self.sampler.finish(ctx, self.first * config.timestep_fs * 1e-3)
            ctx.number("steps", self.steps, "1")
            ctx.number("performance_ns_day", self._speed(), "ns/day")
            ctx.number("performance_steps_s", self.steps_timed / self.seconds if self.seconds else 0.0, "1/s")
            ctx.number("rebuilds", self.model.rebuilds, "1")
        ctx.number("atoms", len(self.setup.topology), "1")

    def _save_structure(self) -> None:
        position, velocity = self._whole()
        if self.ctx.ranks.is_root:
            self.ctx.file("structure.extxyz", extxyz_bytes([snapshot(self.setup.topology, position, self.state)]))
        self.ctx.save("position_nm", position, ("atom", "axis"), "nm", long_name="positions at the end, continuous")
        self.ctx.save("velocity_nm_ps", velocity, ("atom", "axis"), "nm ps-1", long_name="velocities at the end")
        self.ctx.save("box_nm", self.state.box_33, ("vector", "axis"), "nm", long_name="box vectors at the end")


def _set_temperature(integrator: Integrator, kelvin: float) -> None:
    for part in (integrator, getattr(integrator, "inner", None)):
        if part is not None:
            part.temperature_k = kelvin  # type: ignore[union-attr]


def _check_overlap(state: State, model: Model) -> None:
    """Refuse a start at which the energy is not a number: atoms on top of each other."""
    evaluation = model.compute(state, True)
    assert evaluation is not None
    largest = model.ranks.allreduce(float(np.nan_to_num(np.abs(state.force_n3[: state.owned]), nan=np.inf).max()), "max")
    if not (math.isfinite(evaluation.potential) and math.isfinite(largest)):
        raise InputError(
            "atoms overlap: the energy of the start is not a finite number", key="md.structure", hint="look at the coordinates"
        )


def _describe(setup: Setup, config: Config, ctx: Context) -> None:
    topology, state = setup.topology, setup.state
    box = " x ".join(f"{x:.4g}" for x in np.linalg.norm(state.box_33, axis=1)) + " nm" if state.periodic else "vacuum"
    counts = {name: len(table.index) for name, table in topology.tables().items() if len(table.index)}
    ctx.log(f"{len(topology)} atoms, {box}; " + (", ".join(f"{n} {name}" for name, n in counts.items()) or "no bonds"))
    for note in setup.notes:
        ctx.log(note)
    ctx.log(f"{config.precision} precision, {ctx.ranks.size} ranks, device {ctx.device}")
    ctx.cite("velocity-verlet", *setup.citations)
    if len(topology.settles.index):
        ctx.cite("settle")
    if len(topology.constraints.index):
        ctx.cite("shake")
    if config.ensemble in ("nvt", "npt"):
        mtk = config.ensemble == "npt" and config.barostat == "mtk"
        ctx.cite("mtk" if mtk else config.thermostat)
        if config.ensemble == "npt" and not mtk:
            ctx.cite("cell-rescaling")
    ctx.file("start.extxyz", extxyz_bytes([snapshot(topology, state.position_n3, state)]))


def recognise(path: Path) -> dict[str, Any] | None:
    """Return the `[md]` table of a sensible first run for a topology or a large structure, or None for other files."""
    suffix = path.suffix.lower()
    if suffix in (".prmtop", ".parm7", ".top"):
        ends = (".gro",) if suffix == ".top" else (".inpcrd", ".rst7", ".ncrst")
        found = [path.with_suffix(end) for end in ends if path.with_suffix(end).is_file()]
        if not found:
            raise InputError("no coordinates beside this topology", file=path, allowed=", ".join(path.stem + end for end in ends))
        return {"topology": str(path), "structure": str(found[0]), **FIRST_RUN}
    if suffix in (".data", ".lmp"):
        return {"topology": str(path), **FIRST_RUN}
    if suffix not in (".cif", ".xyz", ".extxyz", ".vasp", ".poscar"):
        return None
    symbols = read_structure(path).symbols
    if len(symbols) < PLAIN_CELL:
        return None
    kinds = set(symbols)
    if kinds <= set(NOBLE):
        given = {name: NOBLE[name] for name in sorted(kinds)}
        return {"structure": str(path), "lennard_jones": given, "temperature_k": 90.0, "timestep_fs": 5.0, "time_ps": 20.0}
    if kinds == {"O", "H"} and all(symbols[k : k + 3] == ("O", "H", "H") for k in range(0, len(symbols), 3)):
        return {"structure": str(path), "water": "spce", "cutoff_nm": 0.9}
    if kinds <= set(METALS):
        return {"structure": str(path), "eam": "zhou", "timestep_fs": 2.0, "ensemble": "npt", "time_ps": 10.0}
    return None


def figures(result: Any) -> Iterator[Figure]:
    """Yield the figures of a report."""
    return pictures.figures(result)
