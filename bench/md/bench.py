"""gewu against GROMACS (Debian's build and a native one), LAMMPS and OpenMM: steps/s at the same system, cutoff and time step.

Every program runs in its own process and all take turns within the same minutes, after one untimed run each. Start-up is not
counted. The Lennard-Jones list is that of LAMMPS' in.lj: skin 0.3 sigma, rebuilt every 20 steps whatever happened. GROMACS gets
the same radius without its verlet buffer, and in a second run its own choice of list (`ratio own list`). On two threads GROMACS
runs as one rank with two threads and as two ranks, and the faster way counts. `force error` is the root mean square of the
force's error over that of the force, against a float64 reference of this folder (copper: against LAMMPS), at a fresh list.
Water: all programs hold 300 K (GROMACS and gewu by velocity rescaling, OpenMM by Langevin), and GROMACS chooses its list.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.md import gromacs, lammps, peers
from bench.md import systems as s
from bench.md.reference import rms_relative
from bench.run import compare, versions

REPOSITORY = Path(__file__).resolve().parents[2]
WATER_ALPHA, WATER_GRID = 3.12341 / s.WATER_CUTOFF, 52  # what GROMACS makes of rtol 1e-5 and 0.12 nm


@dataclass(frozen=True)
class Case:
    """One case: the system as `ours.py` names it, threads, peers, and timed steps on one thread of (gewu, each peer)."""

    system: str
    threads: int
    steps: dict[str, int]


@dataclass
class Peer:
    """One program on one case: how to time it (steps/s by label; "" is the compared one), its forces, its version."""

    time: dict[str, Callable[[], float]]
    force_n3: np.ndarray | None
    version: str
    facts: dict[str, float] = field(default_factory=dict)


LJ_STEPS = {"gewu": 1600, "gromacs-debian": 600, "gromacs-native": 1600, "lammps-opt": 300, "openmm-cpu": 200}
CASES = {
    "lj32k-1t": Case("lj", 1, LJ_STEPS),
    "lj32k-2t": Case("lj", 2, LJ_STEPS),
    "lj32k-double-1t": Case("lj-double", 1, {"gewu": 600, "lammps-opt": 300}),
    "eam32k-1t": Case("eam", 1, {"gewu": 400, "lammps-opt": 150}),
    "water-pme-2t": Case("water", 2, {"gewu": 200, "gromacs-debian": 160, "gromacs-native": 300, "openmm-cpu": 40}),
}


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all cases (or those asked for); return the records, none when a peer or the potential is missing."""
    names = options.case or list(CASES)
    found = peers.find(options.peers.resolve())
    missing = sorted({p for name in names for p in CASES[name].steps if p != "gewu" and found[p] is None})
    potential = (options.potentials / "Cu_u3.eam").resolve()
    if any(CASES[name].system == "eam" for name in names) and not potential.is_file():
        missing.append("Cu_u3.eam of LAMMPS (--potentials FOLDER)")
    if missing:
        print(f"md: skipped, missing: {', '.join(missing)} (python -m bench.md.peers FOLDER, --peers FOLDER)", file=sys.stderr)
        return []
    return [record for name in names for record in measure(name, found, potential, options.repeats)]


def measure(name: str, found: dict[str, Any], potential: Path, repeats: int) -> list[dict[str, Any]]:
    """Run all programs on one case in turn; return a record for each peer."""
    case = CASES[name]
    start = {"water": lambda: gromacs.water(found["gromacs-native"]), "eam": s.copper}.get(case.system, s.lennard_jones)()
    rivals = {peer: prepared(peer, found[peer], case, start, potential) for peer in case.steps if peer != "gewu"}
    exact = rivals["lammps-opt"].force_n3 if case.system == "eam" else start.force_n3
    ours(case, 0, potential)
    error = rms_relative(np.load(s.WORK / f"gewu-{case.system}.npy"), exact)
    rates: dict[tuple[str, str], list[float]] = {("gewu", ""): []}
    for turn in range(repeats + 1):
        rate = ours(case, case.steps["gewu"] * case.threads, potential)["steps_per_s"]
        timed = {("gewu", ""): rate, **{(p, label): t() for p, peer in rivals.items() for label, t in peer.time.items()}}
        if turn:  # the first round fills caches
            for key, value in timed.items():
                rates.setdefault(key, []).append(value)
    records = []
    for peer, rival in rivals.items():
        accuracy = {"force_error": error}
        if rival.force_n3 is not None and rival.force_n3 is not exact:
            accuracy["force_error_peer"] = rms_relative(rival.force_n3, exact)
        for label in filter(None, rival.time):
            accuracy[f"ratio_{label}"] = compare(rates["gewu", ""], rates[peer, label], "steps/s")["ratio"]
        records.append(
            {
                "case": name,
                "peer": peer,
                **compare(rates["gewu", ""], rates[peer, ""], "steps/s"),
                "accuracy": {key: float(f"{value:.3g}") for key, value in {**accuracy, **rival.facts}.items()},
                "versions": {**versions("gewu", "numpy", "numba"), peer: rival.version},
            }
        )
        print(f"{name} {peer}: {records[-1]['ratio']} {json.dumps(records[-1]['accuracy'])}", file=sys.stderr, flush=True)
    return records


def ours(case: Case, steps: int, potential: Path) -> dict[str, float]:
    """Run gewu on `case` in its own process and return what it prints; nothing with `steps` 0.

    Raises:
        RuntimeError: it ends with an error.
    """
    command = [sys.executable, "-m", "bench.md.ours", case.system, str(case.threads), str(steps), "--potential", str(potential)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": str(case.threads)}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"gewu failed on {case.system}: {done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1]) if steps else {}
    return found


def prepared(peer: str, path: Path, case: Case, start: s.Start, potential: Path) -> Peer:
    """Return the peer with its inputs written."""
    folder, steps = s.WORK / f"{peer}-{case.system}", case.steps[peer] * case.threads
    if peer == "openmm-cpu":
        return openmm(path, folder, case, start, steps)
    if peer == "lammps-opt":
        copper = case.system == "eam"
        lammps.prepare(folder, start, lammps.COPPER if copper else lammps.LJ)
        given = potential if copper else ""
        forces, version = lammps.forces(path, folder, given), lammps.version(path)
        return Peer({"": lambda: lammps.timed(path, folder, case.threads, steps, given)[0]}, forces, version)
    water = case.system == "water"
    plain, names, text = (
        (gromacs.WATER, ["OW", "HW1", "HW2"], gromacs.WATER_TOP) if water else (gromacs.LJ, ["AR"], gromacs.LJ_TOP)
    )
    own = {**plain, **gromacs.OWN_LIST}
    lists = {"": own} if water else {"": {**plain, **gromacs.same_list(s.LJ_SKIN * s.SIGMA, plain)}, "own_list": own}
    time = {}
    for label, settings in lists.items():
        gromacs.prepare(path, folder / label, start, text, names, settings)
        ways = range(1, case.threads + 1)
        _, ranks = max((gromacs.timed(path, folder / label, case.threads, steps // 4, way)[0], way) for way in ways)
        time[label] = lambda at=folder / label, ranks=ranks: gromacs.timed(path, at, case.threads, steps, ranks)[0]
    return Peer(time, gromacs.forces(path, folder, lists[""]), gromacs.version(path))


def openmm(venv: Path, folder: Path, case: Case, start: s.Start, steps: int) -> Peer:
    """Return OpenMM's CPU platform as a peer; its PME has order 5, its step with a bath is Langevin's."""
    folder.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {
        "mass": [s.MASS],
        "charge": [0.0],
        "sigma": [s.SIGMA],
        "epsilon": [s.EPSILON],
        "constraints": [],
        "pme": None,
        "cutoff": s.LJ_CUTOFF * s.SIGMA,
        "dt": s.LJ_DT * s.TAU,
        "temperature": 0,
    }
    if case.system == "water":
        described = {
            "mass": [s.WATER_MO, s.WATER_MH, s.WATER_MH],
            "charge": [-2 * s.WATER_QH, s.WATER_QH, s.WATER_QH],
            "sigma": [s.WATER_SIGMA, 1.0, 1.0],
            "epsilon": [s.WATER_EPSILON, 0.0, 0.0],
            "constraints": [[0, 1, s.WATER_OH], [0, 2, s.WATER_OH], [1, 2, s.WATER_HH]],
            "pme": [WATER_ALPHA, WATER_GRID, WATER_GRID, WATER_GRID],
            "cutoff": s.WATER_CUTOFF,
            "dt": s.WATER_DT,
            "temperature": s.WATER_TEMPERATURE,
        }
    (folder / "case.json").write_text(json.dumps(described))
    np.savez(folder / "start.npz", x=start.position_n3, v=start.velocity_n3, box=start.box_nm)

    def call(count: int) -> dict[str, Any]:
        script = Path(__file__).with_name("openmm_peer.py")
        command = [venv / "bin" / "python", script, folder, str(case.threads), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"OpenMM failed in {folder}: {done.stderr[-3000:]}")
        printed: dict[str, Any] = json.loads(done.stdout) if count else {}
        return printed

    call(0)
    return Peer({"": lambda: call(steps)["steps_per_s"]}, np.load(folder / "forces.npy"), call(20)["version"])
