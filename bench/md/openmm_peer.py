"""OpenMM as a peer. Run by the Python that has OpenMM: `python openmm_peer.py FOLDER THREADS STEPS`; nothing of gewu is imported.

FOLDER holds `case.json` and `start.npz`. STEPS 0 writes the forces at the start to `forces.npy`; else steps/s is printed.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import openmm as mm


def system(case: dict, n: int, box: float) -> mm.System:
    """Return the OpenMM system of `n` atoms; molecules repeat the lists of `case`."""
    made, force = mm.System(), mm.NonbondedForce()
    made.setDefaultPeriodicBoxVectors((box, 0, 0), (0, box, 0), (0, 0, box))
    per = len(case["mass"])
    for i in range(n):
        k = i % per
        made.addParticle(case["mass"][k])
        force.addParticle(case["charge"][k], case["sigma"][k], case["epsilon"][k])
    for first in range(0, n, per):
        for a, b, length in case["constraints"]:
            made.addConstraint(first + a, first + b, length)
            force.addException(first + a, first + b, 0, 1, 0)
    force.setNonbondedMethod(force.PME if case["pme"] else force.CutoffPeriodic)
    force.setCutoffDistance(case["cutoff"])
    force.setUseDispersionCorrection(False)
    if case["pme"]:
        alpha, *grid = case["pme"]
        force.setPMEParameters(alpha, *map(int, grid))
    made.addForce(force)
    return made


def main() -> None:
    """Time the case, or write its forces."""
    folder, threads, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    case, start = json.loads((folder / "case.json").read_text()), np.load(folder / "start.npz")
    made = system(case, len(start["x"]), float(start["box"]))
    dt = case["dt"]
    mover = mm.LangevinMiddleIntegrator(case["temperature"], 1.0, dt) if case["temperature"] else mm.VerletIntegrator(dt)
    context = mm.Context(made, mover, mm.Platform.getPlatformByName("CPU"), {"Threads": threads})
    context.setPositions(start["x"])
    context.setVelocities(start["v"])
    if steps == 0:
        force = context.getState(getForces=True).getForces(asNumpy=True)
        np.save(folder / "forces.npy", force.value_in_unit(mm.unit.kilojoule_per_mole / mm.unit.nanometer))
        return
    mover.step(max(20, steps // 5))
    context.getState(getEnergy=True)
    begin = time.perf_counter()
    mover.step(steps)
    context.getState(getEnergy=True)
    print(json.dumps({"steps_per_s": steps / (time.perf_counter() - begin), "version": mm.version.full_version}))


if __name__ == "__main__":
    main()
