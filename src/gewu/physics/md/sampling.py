"""What a run measures: the table of thermodynamic quantities, averages with errors, structure and transport."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gewu.core.context import Context
from gewu.core.errors import InputError
from gewu.core.statistics import BlockAverages
from gewu.formats.forcefield.water import U_PER_NM3
from gewu.physics.md.barostat import pressure_tensor
from gewu.physics.md.box import heights
from gewu.physics.md.config import Config
from gewu.physics.md.integrate import Integrator
from gewu.physics.md.kinetics import kinetic_tensor, temperature
from gewu.physics.md.model import Model
from gewu.physics.md.observables import Dielectric, Rdf, TimeCorrelation
from gewu.physics.md.state import Array, Evaluation, State, Topology
from gewu.physics.md.units import BAR

COLUMNS = {
    "time_ps": "ps",
    "potential_kj_mol": "kJ/mol",
    "kinetic_kj_mol": "kJ/mol",
    "conserved_kj_mol": "kJ/mol",
    "temperature_k": "K",
    "pressure_bar": "bar",
    "volume_nm3": "nm3",
    "density_g_cm3": "g/cm3",
}
AVERAGED = ("potential_kj_mol", "temperature_k", "pressure_bar", "volume_nm3", "density_g_cm3")
CM2_S = 1e-2  # one nm^2/ps
MAX_SPECIES = 4
RDF_SAMPLES = 100
MSD_ATOMS = 20_000
SHORTEST_PS, FEWEST = 5.0, 50  # below, a slope is no diffusion coefficient


class Sampler:
    """Takes samples of a run and says at its end what they mean.

    Args:
        config: the job.
        topology: all atoms.
        state: the start.
        samples, sample_ps: how many samples will be averaged, and the time between two.
    """

    def __init__(self, config: Config, topology: Topology, state: State, samples: int, sample_ps: float) -> None:
        self.config, self.topology, self.sample_ps = config, topology, sample_ps
        self.rows: list[list[float]] = []
        self.energies: dict[str, list[float]] = {}
        self.averages = BlockAverages(AVERAGED)
        symbols = np.array([e or "" for e in topology.element])
        kinds = tuple(dict.fromkeys(e for e in topology.element if e))
        self.species = kinds if len(kinds) <= MAX_SPECIES else ()
        self.rdf, self.pairs = self._rdf(symbols, state)
        self.every_rdf = max(1, samples // RDF_SAMPLES)
        self.msd: TimeCorrelation | None = None
        if self.species and len(topology) <= MSD_ATOMS and samples >= 20 and config.ensemble != "npt":
            kind = np.array([self.species.index(e) if e else -1 for e in topology.element])
            self.msd = TimeCorrelation("msd", kind, sample_ps, lags=max(10, samples // 2), origins=20)
        whole = len(topology.molecule_n) > 0 and bool(np.any(topology.charge_n))
        self.dielectric = (
            Dielectric(config.temperature_k) if whole and config.ensemble in ("nvt", "npt") and state.periodic else None
        )
        self.taken, self.left_out = 0, 0

    def _rdf(self, symbols: Any, state: State) -> tuple[Rdf | None, list[tuple[str, str]]]:
        if not self.species or not state.periodic:
            return None, []
        names = [(a, b) for i, a in enumerate(self.species) for b in self.species[i:]]
        known = set(self.species)
        kind = np.array([self.species.index(s) if s in known else len(known) for s in symbols])
        reach = self.config.rdf_nm or self.config.cutoff_nm
        limit = 0.45 * float(heights(state.box_33).min())
        if self.config.rdf_nm > limit:
            message = "the radial distribution reaches beyond half the box"
            raise InputError(message, key="rdf_nm", value=self.config.rdf_nm, allowed=f"at most {limit:.4g}")
        numbers = [(self.species.index(a), self.species.index(b)) for a, b in names]
        return Rdf(kind, numbers, min(reach, limit)), names

    def measure(self, state: State, model: Model, evaluation: Evaluation, integrator: Integrator) -> dict[str, float]:
        """Add a row to the table and return it (collective)."""
        kinetic = kinetic_tensor(state, model.ranks)
        mass = float(np.asarray(self.topology.mass_n).sum())
        pressure = np.trace(pressure_tensor(state, model, evaluation)) / 3 / BAR if state.periodic else 0.0
        volume = state.volume if state.periodic else 0.0
        values = (
            state.time_ps,
            evaluation.potential,
            0.5 * float(np.trace(kinetic)),
            integrator.conserved(state, evaluation),
            temperature(kinetic, model.degrees_of_freedom),
            float(pressure),
            volume,
            mass / volume / U_PER_NM3 if volume else 0.0,
        )
        self.rows.append([float(v) for v in values])
        for name, value in evaluation.energies.items():
            self.energies.setdefault(name, []).append(value)
        return dict(zip(COLUMNS, values, strict=True))

    def average(self, state: State, row: dict[str, float]) -> None:
        """Take one sample of everything that is averaged; `state` holds all atoms, on the root."""
        self.averages.add([row[name] for name in AVERAGED])
        if self.rdf is not None and self.taken % self.every_rdf == 0:
            if 2 * self.rdf.r_max <= float(heights(state.box_33).min()):
                self.rdf.update(state)
            else:  # the box has shrunk
                self.left_out += 1
        if self.msd is not None:
            self.msd.update(state)
        if self.dielectric is not None:
            self.dielectric.update(state)
        self.taken += 1

    def to_state(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        parts = {"rdf": self.rdf, "msd": self.msd, "dielectric": self.dielectric}
        return {
            "rows": np.array(self.rows).reshape(-1, len(COLUMNS)),
            "energies": {name: np.array(values) for name, values in self.energies.items()},
            "averages": self.averages.to_state(),
            "taken": self.taken,
            "left_out": self.left_out,
            **{name: part.to_state() for name, part in parts.items() if part is not None},
        }

    def restore(self, saved: Any) -> None:
        """Go on from `to_state`."""
        self.rows = saved["rows"].tolist()
        self.energies = {name: values.tolist() for name, values in saved["energies"].items()}
        self.averages.restore(saved["averages"])
        self.taken, self.left_out = int(saved["taken"]), int(saved["left_out"])
        for name, part in (("rdf", self.rdf), ("msd", self.msd), ("dielectric", self.dielectric)):
            if part is not None:
                part.restore(saved[name])

    def finish(self, ctx: Context, begin_ps: float) -> None:
        """Save the table and the functions, and record the numbers."""
        table = np.array(self.rows).reshape(-1, len(COLUMNS))
        for column, (name, unit) in enumerate(COLUMNS.items()):
            ctx.save(f"thermo_{name}", table[:, column], ("sample",), unit, long_name=_split(name)[0])
        for name, values in self.energies.items():
            ctx.save(
                f"energy_{name}_kj_mol", np.array(values), ("sample",), "kJ/mol", long_name=f"energy: {name.replace('_', ' ')}"
            )
        self._averages(ctx)
        self._drift(ctx, table[table[:, 0] >= begin_ps - 1e-9])
        if self.taken:
            self._structure(ctx)
            self._transport(ctx)

    def _averages(self, ctx: Context) -> None:
        """Record means and their standard errors, of what varies; a ramp of the temperature has none."""
        if not self.taken or self.config.temperature_end_k:
            return
        skipped = () if self.rows[-1][6] else ("pressure_bar", "volume_nm3", "density_g_cm3")
        if self.config.ensemble != "npt":
            skipped += ("volume_nm3",)
        for name, mean, error in zip(AVERAGED, self.averages.mean(), self.averages.error(), strict=True):
            if name in skipped:
                continue
            stem, suffix = _split(name)
            known = math.isfinite(error) and error > 0
            digits = 1 - math.floor(math.log10(error)) if known else 6  # two digits of the error
            ctx.number(f"{stem}_mean_{suffix}", round(float(mean), digits), COLUMNS[name])
            if known:
                ctx.number(f"{stem}_error_{suffix}", float(f"{error:.2g}"), COLUMNS[name])

    def _drift(self, ctx: Context, table: Array) -> None:
        """Slope of the conserved quantity per atom, by least squares."""
        if len(table) < 3:
            return
        atoms = int(np.count_nonzero(np.asarray(self.topology.mass_n) > 0))
        time, conserved = table[:, 0] - table[0, 0], table[:, 3] - table[0, 3]
        slope = float(np.polyfit(time, conserved, 1)[0])
        ctx.number("conserved_drift_kj_mol_ns", slope / atoms * 1000, "kJ/mol/ns")
        spread = float(np.std(conserved - np.polyval(np.polyfit(time, conserved, 1), time)))
        ctx.number("conserved_spread_kj_mol", spread / atoms, "kJ/mol")

    def _structure(self, ctx: Context) -> None:
        if self.rdf is None:
            return
        if self.left_out:
            ctx.warn(f"The box shrank: g(r) leaves out {self.left_out} configurations. Choose a smaller rdf_nm.")
        labels = " ".join(f"{a}-{b}" for a, b in self.pairs)
        g = self.rdf.g()
        if not g.any():
            return
        ctx.save("rdf_r_nm", self.rdf.r, ("shell",), "nm", long_name="distance")
        ctx.save("rdf", g, ("pair", "shell"), "1", long_name="radial distribution functions", labels=labels)
        count = {name: self.topology.element.count(name) for name in self.species if name != "H" or len(self.species) == 1}
        most = max(count, key=lambda name: count[name])  # the headline: the most abundant element but hydrogen, like with like
        curve, stem = g[self.pairs.index((most, most))], most.lower()
        outside = np.where(self.rdf.r > 0.2, curve, 0.0)
        peak = int(np.clip(np.argmax(outside), 1, len(curve) - 2))
        left, top, right = curve[peak - 1 : peak + 2]
        bend = left - 2 * top + right
        shift = 0.5 * (left - right) / bend if bend < 0 else 0.0  # of the parabola through three shells
        width = self.rdf.r[1] - self.rdf.r[0]
        ctx.number(f"rdf_peak_{stem}_{stem}_nm", round(float(self.rdf.r[peak] + shift * width), 5), "nm")
        ctx.number(f"rdf_height_{stem}_{stem}", round(float(top - 0.25 * (left - right) * shift), 4), "1")

    def _transport(self, ctx: Context) -> None:
        if self.msd is not None and len(self.msd.t) >= 8:
            t = self.msd.t
            ctx.save("msd_time_ps", t, ("lag",), "ps", long_name="time difference")
            ctx.save("msd_nm2", self.msd.values(), ("species", "lag"), "nm2", long_name="mean square displacement",
                     labels=" ".join(self.species))  # fmt: skip
            for name, (value, error) in zip(self.species, self.msd.diffusion(0.2 * t[-1], 0.8 * t[-1]), strict=True):
                if t[-1] < SHORTEST_PS or self.topology.element.count(name) < FEWEST:
                    continue
                ctx.number(f"diffusion_{name.lower()}_cm2_s", float(f"{value * CM2_S:.4g}"), "cm2/s")
                ctx.number(f"diffusion_{name.lower()}_error_cm2_s", float(f"{error * CM2_S:.2g}"), "cm2/s")
        if self.dielectric is not None:
            value, error = self.dielectric.epsilon()
            if math.isfinite(error):
                ctx.number("dielectric_constant", value, "1")
                ctx.number("dielectric_constant_error", error, "1")


def _split(name: str) -> tuple[str, str]:
    """Return quantity and unit of the name of a column."""
    parts = name.split("_")
    words = 2 if name.endswith(("_kj_mol", "_g_cm3")) else 1
    return "_".join(parts[:-words]), "_".join(parts[-words:])
