"""Figures of a report of molecular dynamics, drawn from a result on axes that are handed in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gewu.core.figure import Figure

CURVES = (
    ("thermo_temperature_k", "Temperature", "temperature (K)"),
    ("thermo_pressure_bar", "Pressure", "pressure (bar)"),
    ("thermo_density_g_cm3", "Density", "density (g/cm³)"),
    ("thermo_potential_kj_mol", "Potential energy", "energy (kJ/mol)"),
)


def figures(result: Any) -> Iterator[Figure]:
    """Yield time series, conserved quantity, radial distribution and mean square displacement, as far as the result has them."""
    arrays, numbers = result.arrays, result.numbers
    if "thermo_time_ps" not in arrays:
        return
    for name, title, label in CURVES:
        values = arrays[name] if name in arrays else np.zeros(0)
        if len(values) < 2 or np.ptp(values) == 0:
            continue
        stem = name.removeprefix("thermo_")
        yield Figure(title, _caption(numbers, stem), lambda axes, v=values, y=label: _series(axes, result, v, y))
    if len(arrays["thermo_time_ps"]) > 2:
        caption = "Deviation of the conserved quantity of the integrator from its start, per atom"
        if "conserved_drift_kj_mol_ns" in numbers:
            caption += f"; drift {numbers['conserved_drift_kj_mol_ns'].value:.2g} kJ/mol/ns"
        yield Figure("Conserved quantity", caption + ".", lambda axes: _conserved(axes, result))
    if "rdf" in arrays:
        yield Figure("Radial distribution", "Density of atoms around an atom, relative to the mean; bonded pairs included.",
                     lambda axes: _rdf(axes, result))  # fmt: skip
    if "msd_nm2" in arrays:
        yield Figure("Mean square displacement", "Averaged over atoms and time origins; the slope gives the diffusion coefficient.",
                     lambda axes: _msd(axes, result))  # fmt: skip


def _caption(numbers: Any, stem: str) -> str:
    for name in numbers:
        if name.startswith(stem.split("_")[0] + "_mean"):
            error = numbers.get(name.replace("_mean_", "_error_"))
            text = f"Mean {numbers[name].value:.6g}"
            return f"{text} ± {error.value:.2g} {numbers[name].unit}." if error is not None else f"{text} {numbers[name].unit}."
    return "Over the run."


def _series(axes: Any, result: Any, values: Any, label: str) -> None:
    axes.plot(result.arrays["thermo_time_ps"], values, linewidth=1.0)
    axes.set_xlabel("time (ps)")
    axes.set_ylabel(label)


def _conserved(axes: Any, result: Any) -> None:
    conserved = result.arrays["thermo_conserved_kj_mol"]
    axes.plot(result.arrays["thermo_time_ps"], (conserved - conserved[0]) / result.numbers["atoms"].value, linewidth=1.0)
    axes.set_xlabel("time (ps)")
    axes.set_ylabel("deviation (kJ/mol per atom)")


def _rdf(axes: Any, result: Any) -> None:
    labels = str(result.arrays.variable("rdf").attributes["labels"]).split(" ")
    r, g = result.arrays["rdf_r_nm"], result.arrays["rdf"]
    for label, curve in zip(labels, g, strict=True):
        axes.plot(r, curve, label=label, linewidth=1.3)
    outside = r > 0.2
    axes.set_ylim(0, 1.1 * max(2.0, float(g[0, outside].max())) if outside.any() else None)
    axes.axhline(1.0, color="0.6", linewidth=0.6)
    axes.set_xlabel("distance (nm)")
    axes.set_ylabel("g(r)")
    axes.legend()


def _msd(axes: Any, result: Any) -> None:
    labels = str(result.arrays.variable("msd_nm2").attributes["labels"]).split(" ")
    for label, curve in zip(labels, result.arrays["msd_nm2"], strict=True):
        axes.plot(result.arrays["msd_time_ps"], curve, label=label, linewidth=1.3)
    axes.set_xlabel("time difference (ps)")
    axes.set_ylabel("displacement² (nm²)")
    axes.legend()
