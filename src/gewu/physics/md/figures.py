"""Figures of a report of molecular dynamics, drawn from a result on axes that are handed in."""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from gewu.core.errors import GewuError
from gewu.core.figure import Figure
from gewu.formats import read_structure

CURVES = (
    ("temperature_k", "Temperature", "temperature (K)"),
    ("pressure_bar", "Pressure", "pressure (bar)"),
    ("density_g_cm3", "Density", "density (g/cm³)"),
    ("potential_kj_mol", "Potential energy", "energy (kJ/mol)"),
)
PAIRS = 4  # curves of one radial distribution that an eye keeps apart
RARE = 0.02  # share of the atoms below which an element's curves are noise
BONDED_NM = 0.26  # with hydrogen: closer atoms are mostly of one molecule, and their peaks would dwarf all others
WINDOWS = 60  # points of a heating curve


def figures(result: Any) -> Iterator[Figure]:
    """Yield time series, conserved quantity, radial distribution and mean square displacement, as far as the result has them."""
    arrays, numbers = result.arrays, result.numbers
    if "thermo_time_ps" not in arrays:
        return
    settings = tomllib.loads((result.path / "job.toml").read_text(encoding="utf-8"))["md"]
    ramp, begin = settings["temperature_end_k"] > 0, settings["equilibration_ps"]
    for name, title, label in CURVES:
        values = arrays[f"thermo_{name}"]
        if len(values) < 2 or np.ptp(values) == 0:
            continue
        caption = "Over the run." if ramp else _mean(numbers, name)
        yield Figure(title, caption, partial(_series, result=result, values=values, label=label, begin=begin, steady=not ramp))
    if ramp and len(arrays["thermo_time_ps"]) > 2 * WINDOWS:
        caption = "Means over short times against the temperature reached: a jump is a change of phase."
        yield Figure("Heating curve", caption, lambda axes: _ramp(axes, result))
    if len(arrays["thermo_time_ps"]) > 2:
        caption = "Deviation of the conserved quantity of the integrator from its value at the start of the averages, per atom"
        if "conserved_drift_kj_mol_ns" in numbers:
            caption += f"; drift {numbers['conserved_drift_kj_mol_ns'].value:.2g} kJ/mol/ns"
        yield Figure("Conserved quantity", caption + ".", lambda axes: _conserved(axes, result, begin, not ramp))
    common = _common(result)
    if "rdf" in arrays:
        caption = "Density of atoms around an atom, relative to the mean."
        if "H" in common:
            caption += " Peaks beyond the frame are neighbours in the same molecule."
        yield Figure("Radial distribution", caption, lambda axes: _rdf(axes, result, common))
    if "msd_nm2" in arrays:
        caption = "Averaged over atoms and time origins; the slope is six times the diffusion coefficient."
        yield Figure("Mean square displacement", caption, lambda axes: _msd(axes, result, common))


def _mean(numbers: Any, name: str) -> str:
    """Return the mean with its error, to the digits that the error leaves."""
    stem, _, suffix = name.partition("_")
    mean, error = numbers.get(f"{stem}_mean_{suffix}"), numbers.get(f"{stem}_error_{suffix}")
    if mean is None:
        return "Over the run."
    unit = mean.unit.replace("cm3", "cm³")
    if error is None or error.value <= 0:
        return f"Mean {mean.value:.4g} {unit}."
    digits = max(0, 1 - math.floor(math.log10(error.value)))
    return f"Mean {mean.value:.{digits}f} ± {error.value:.{digits}f} {unit} (standard error)."


def _common(result: Any) -> set[str]:
    """Return the elements that are not rare."""
    try:
        counts = Counter(read_structure(result.path / "structure.extxyz").symbols)
    except GewuError:
        return set()
    return {name for name, n in counts.items() if n >= RARE * counts.total()}


def _series(axes: Any, result: Any, values: Any, label: str, begin: float, steady: bool = True) -> None:
    time = result.arrays["thermo_time_ps"]
    axes.plot(time, values, linewidth=1.0)
    _equilibration(axes, time, begin)
    counted = values[time > begin]
    if (
        steady and begin and len(counted) > 10 and np.ptp(counted) > 0
    ):  # the first instants may be far off: the frame is that of the rest
        low, high = counted.min(), counted.max()
        axes.set_ylim(low - 0.4 * (high - low), high + 0.4 * (high - low))
    axes.set_xlabel("time (ps)")
    axes.set_ylabel(label)


def _equilibration(axes: Any, time: Any, begin: float) -> None:
    """Shade what is not averaged."""
    if begin > 0:
        axes.axvspan(0.0, min(begin, float(time[-1])), color="0.5", alpha=0.15, linewidth=0, label="not averaged")
        axes.legend()


def _ramp(axes: Any, result: Any) -> None:
    arrays, atoms = result.arrays, result.numbers["atoms"].value

    def means(name: str) -> Any:
        return np.array([part.mean() for part in np.array_split(arrays[name], WINDOWS)])

    kelvin, density = means("thermo_temperature_k"), means("thermo_density_g_cm3")
    axes.plot(kelvin, means("thermo_potential_kj_mol") / atoms, marker="o", markersize=3, label="potential energy")
    axes.set_xlabel("temperature (K)")
    axes.set_ylabel("energy (kJ/mol per atom)")
    if np.ptp(density) > 0:
        other = axes.twinx()
        (line,) = other.plot(kelvin, density, color="C1", marker="s", markersize=3)
        other.set_ylabel("density (g/cm³)")
        other.grid(False)
        other.spines["right"].set_visible(True)
        axes.legend([axes.lines[0], line], ["potential energy", "density"], loc="center left")


def _conserved(axes: Any, result: Any, begin: float, steady: bool) -> None:
    time, conserved = result.arrays["thermo_time_ps"], result.arrays["thermo_conserved_kj_mol"]
    first = min(int(np.searchsorted(time, begin - 1e-9)), len(time) - 1)
    deviation = (conserved - conserved[first]) / result.numbers["atoms"].value
    _series(axes, result, deviation, "deviation (kJ/mol per atom)", begin, steady)


def _labels(result: Any, name: str) -> list[str]:
    return str(result.arrays.variable(name).attributes["labels"]).split(" ")


def _rdf(axes: Any, result: Any, common: set[str]) -> None:
    r, g = result.arrays["rdf_r_nm"], result.arrays["rdf"]
    pairs = [(label, curve) for label, curve in zip(_labels(result, "rdf"), g, strict=True) if set(label.split("-")) <= common]
    pairs = sorted(pairs, key=lambda pair: pair[0].count("H"))[:PAIRS]  # heavy atoms first: they are what is compared
    outside = r > (BONDED_NM if "H" in common else 0.0)
    for label, curve in pairs:
        axes.plot(r, curve, label=label, linewidth=1.3)
    axes.axhline(1.0, color="0.6", linewidth=0.6)
    axes.set_ylim(0, 1.1 * max((float(curve[outside].max()) for _, curve in pairs if outside.any()), default=2.0))
    axes.set_xlabel("distance (nm)")
    axes.set_ylabel("g(r)")
    axes.legend()


def _msd(axes: Any, result: Any, common: set[str]) -> None:
    for label, curve in zip(_labels(result, "msd_nm2"), result.arrays["msd_nm2"], strict=True):
        if label in common:
            axes.plot(result.arrays["msd_time_ps"], curve, label=label, linewidth=1.3)
    axes.set_xlabel("time difference (ps)")
    axes.set_ylabel("displacement² (nm²)")
    axes.legend()
