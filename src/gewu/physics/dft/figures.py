"""Figures of a DFT report, drawn from a result on axes that are handed in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gewu.core.figure import Figure


def figures(result: Any) -> Iterator[Figure]:
    """Yield band structure, density of states and convergence, as far as the result has them."""
    zero = result.numbers["fermi_ev"].value if "fermi_ev" in result.numbers else 0.0
    metal = "energy_minus_ts_ha" in result.numbers and result.numbers["energy_minus_ts_ha"].value != 0.0
    reference = "the Fermi level" if metal else "the top of the valence bands"
    if "bands_ev" in result.arrays:
        caption = f"Kohn-Sham energies along the standard path, from {reference}."
        if "gap_ev" in result.numbers and result.numbers["gap_ev"].value > 0:
            gap, direct = result.numbers["gap_ev"].value, result.numbers["gap_direct_ev"].value
            caption += f" Gap {gap:.3f} eV, smallest direct gap {direct:.3f} eV (semilocal functionals underestimate gaps)."
        yield Figure("Band structure", caption, lambda axes: _bands(axes, result, zero))
    if "dos_per_ev" in result.arrays:
        caption = f"Electrons per eV and cell, energies from {reference}; linear tetrahedra."
        yield Figure("Density of states", caption, lambda axes: _dos(axes, result, zero))
    if "scf_history" in result.arrays:
        caption = "Coulomb energy of the density residual, and the largest residual of an occupied band squared, by iteration."
        yield Figure("Convergence", caption, lambda axes: _convergence(axes, result))


def _bands(axes: Any, result: Any, zero: float) -> None:
    x, bands, ticks = result.arrays["band_distance"], result.arrays["bands_ev"] - zero, result.arrays["band_ticks"]
    labels = str(result.arrays.variable("band_ticks").attributes["labels"]).split(" ")
    jumps = np.flatnonzero(np.diff(x) == 0) + 1
    for part in np.split(np.arange(len(x)), jumps):
        axes.plot(x[part], bands[part], color="C0", linewidth=1.5)
    for tick in ticks:
        axes.axvline(tick, color="0.5", linewidth=0.6)
    axes.axhline(0.0, color="C1", linewidth=0.9, linestyle="--")
    axes.set_xticks(ticks, ["|".join("Γ" if p == "G" else p for p in label.split("|")) for label in labels])
    axes.grid(False)
    axes.set_xlim(x[0], x[-1])
    top = float(np.median(bands[:, -1]))
    axes.set_ylim(float(bands.min()) - 0.5, min(top, 12.0))
    axes.set_ylabel("energy (eV)")


def _dos(axes: Any, result: Any, zero: float) -> None:
    energy, dos = result.arrays["dos_energy_ev"] - zero, result.arrays["dos_per_ev"]
    axes.fill_between(energy, dos, color="C0", alpha=0.25, linewidth=0)
    axes.plot(energy, dos, color="C0")
    axes.axvline(0.0, color="C1", linewidth=0.9, linestyle="--")
    axes.set_xlim(energy[0], min(energy[-1], 12.0))
    axes.set_ylim(0, None)
    axes.set_xlabel("energy (eV)")
    axes.set_ylabel("states (1/eV)")


def _convergence(axes: Any, result: Any) -> None:
    history = result.arrays["scf_history"]
    iteration = np.arange(1, len(history) + 1)
    axes.semilogy(iteration, np.maximum(history[:, 1], 1e-18), "o-", markersize=4, label="density error")
    axes.semilogy(iteration, np.maximum(history[:, 2] ** 2, 1e-18), "s-", markersize=4, label="band residual squared")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("iteration")
    axes.set_ylabel("energy (Ha)")
    axes.legend()
