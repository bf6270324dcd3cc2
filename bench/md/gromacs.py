"""GROMACS as a peer: inputs, timed runs, forces of one configuration.

A run of 2 n steps resets its counters after n of them, so that start-up is not counted. `same_list`: `rlist` is cutoff plus
skin, rebuilt every `nstlist` steps, without verlet buffer; `OWN_LIST`: GROMACS chooses the list by its tolerance, its default.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.md import systems as s

LJ_TOP = f"""[ defaults ]
1 2 no 1.0 1.0
[ atomtypes ]
AR {s.MASS} 0.0 A {s.SIGMA} {s.EPSILON}
[ moleculetype ]
AR 1
[ atoms ]
1 AR 1 AR AR 1 0.0 {s.MASS}
[ system ]
Lennard-Jones
[ molecules ]
AR %d
"""
WATER_TOP = f"""[ defaults ]
1 2 no 1.0 1.0
[ atomtypes ]
OW {s.WATER_MO} 0.0 A {s.WATER_SIGMA} {s.WATER_EPSILON}
HW {s.WATER_MH} 0.0 A 0.0 0.0
[ moleculetype ]
SOL 2
[ atoms ]
1 OW 1 SOL OW 1 {-2 * s.WATER_QH} {s.WATER_MO}
2 HW 1 SOL HW1 1 {s.WATER_QH} {s.WATER_MH}
3 HW 1 SOL HW2 1 {s.WATER_QH} {s.WATER_MH}
[ settles ]
1 1 {s.WATER_OH} {s.WATER_HH}
[ exclusions ]
1 2 3
2 1 3
3 1 2
[ system ]
SPC/E
[ molecules ]
SOL %d
"""
PLAIN = {"integrator": "md", "cutoff-scheme": "verlet", "nstcalcenergy": 100, "nstenergy": 1000, "nstlog": 0, "nstcomm": 100}
LJ = {
    **PLAIN,
    "dt": f"{s.LJ_DT * s.TAU:.12g}",
    "comm-mode": "none",
    "vdw-modifier": "none",
    "rvdw": s.LJ_CUTOFF * s.SIGMA,
    "rcoulomb": s.LJ_CUTOFF * s.SIGMA,
    "nstlist": s.LJ_EVERY,
}
WATER = {
    **PLAIN,
    "dt": s.WATER_DT,
    "coulombtype": "PME",
    "rcoulomb": s.WATER_CUTOFF,
    "rvdw": s.WATER_CUTOFF,
    "vdw-modifier": "none",
    "fourierspacing": s.WATER_SPACING,
    "pme-order": 4,
    "ewald-rtol": s.WATER_RTOL,
    "nstlist": 20,
    "tcoupl": "v-rescale",
    "tc-grps": "system",
    "tau-t": 1.0,
    "ref-t": s.WATER_TEMPERATURE,
}
OWN_LIST = {"verlet-buffer-tolerance": 0.005}


def same_list(skin_nm: float, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a list with exactly this skin."""
    return {"verlet-buffer-tolerance": -1, "rlist": f"{settings['rvdw'] + skin_nm:.9g}"}


def environment() -> dict[str, str]:
    """Return the environment for gmx: a library path that another GROMACS set would make it load that one's library."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("GMX", "OMP_", "LD_LIBRARY_PATH"))}
    return {**keep, "GMX_MAXBACKUP": "-1"}


def call(gmx: Path, folder: Path, *arguments: str | int) -> str:
    """Run gmx with these arguments in `folder`; return what it printed.

    Raises:
        RuntimeError: gmx ends with an error.
    """
    command = [str(gmx), "-quiet", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed in {folder}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout + done.stderr


def version(gmx: Path) -> str:
    """Return version, SIMD level and FFT library as gmx states them."""
    text = call(gmx, Path.cwd(), "--version")
    found = [re.search(rf"{key}:\s+(\S+)", text) for key in ("GROMACS version", "SIMD instructions", "CPU FFT library")]
    return " ".join(f.group(1) for f in found if f)


def prepare(gmx: Path, folder: Path, start: s.Start, topology: str, names: Sequence[str], settings: dict[str, Any]) -> None:
    """Write start, topology and settings into `folder` and make `topol.tpr` of them. `names` are the atoms of one molecule."""
    folder.mkdir(parents=True, exist_ok=True)
    n, m = len(start.position_n3), len(names)
    lines = ["TITLE", "start", "END"]
    for title, table in (("POSITION", start.position_n3), ("VELOCITY", start.velocity_n3)):
        lines.append(title)
        lines += [
            f"{i // m % 100000:5d} {'MOL':<5s} {names[i % m]:<5s}{(i + 1) % 10000000:7d}{x:15.9f}{y:15.9f}{z:15.9f}"
            for i, (x, y, z) in enumerate(table)
        ]
        lines.append("END")
    lines += ["BOX", "".join(f"{start.box_nm:15.9f}" for _ in range(3)), "END", ""]
    (folder / "start.g96").write_text("\n".join(lines))
    (folder / "topol.top").write_text(topology % (n // m))
    (folder / "run.mdp").write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))
    call(gmx, folder, "grompp", "-f", "run.mdp", "-c", "start.g96", "-p", "topol.top", "-o", "topol.tpr", "-maxwarn", 5)


def timed(gmx: Path, folder: Path, threads: int, steps: int, ranks: int = 1) -> tuple[float, str]:
    """Return steps/s of the second half of 2 `steps` steps, and the log. `ranks` of the threads are thread-MPI ranks."""
    layout = ("-ntmpi", ranks, "-ntomp", threads // ranks, "-pin", "on")
    options = ("-nsteps", 2 * steps, "-resethway", "-noconfout", "-notunepme", "-g", "run.log", "-e", "run.edr", "-o", "run.trr")
    call(gmx, folder, "mdrun", "-s", "topol.tpr", *layout, *options)
    log = (folder / "run.log").read_text()
    wall = re.search(r"^\s+Time:\s+[\d.]+\s+([\d.]+)", log, re.MULTILINE)
    if wall is None:
        raise RuntimeError(f"{folder}/run.log states no time")
    return steps / float(wall.group(1)), log


def facts(log: str) -> dict[str, str]:
    """Return from a log: kernel, list buffers, and the share of the wall time of each part of a step."""
    kernel = re.search(r"Using (SIMD\S* \S+)", log)
    kept = {"kernel": kernel.group(1) if kernel else "plain"}
    kept["lists"] = "; ".join(re.findall(r"(?:outer list: |inner list: )?updated every \d.*", log.split("At tolerance")[0]))
    table = log[log.rindex("C Y C L E") :] if "C Y C L E" in log else ""
    for name, seconds, share in re.findall(r"^ ([A-Z].*?)  .*?([\d.]+) +[\d.]+ +([\d.]+)$", table, re.MULTILINE):
        kept[name] = f"{seconds} s, {share} %"
    return kept


def energies(gmx: Path, folder: Path, threads: int, steps: int) -> np.ndarray:
    """Run `steps` steps in `folder`; return times in ps and total energies in kJ/mol, (samples, 2)."""
    call(
        gmx, folder, "mdrun", "-s", "topol.tpr", "-nsteps", steps, "-noconfout", "-ntmpi", 1, "-ntomp", threads, "-deffnm", "long"
    )
    command = [str(gmx), "-quiet", "energy", "-f", "long.edr", "-o", "long.xvg", "-xvg", "none", "-dp"]
    subprocess.run(command, cwd=folder, env=environment(), input="Total-Energy\n\n", capture_output=True, text=True, check=True)
    return np.loadtxt(folder / "long.xvg")


def forces(gmx: Path, folder: Path, settings: dict[str, Any]) -> np.ndarray:
    """Return the forces in kJ/mol/nm at the start in `folder`, without those of constraints."""
    (folder / "zero.mdp").write_text("".join(f"{k} = {v}\n" for k, v in {**settings, "nstfout": 1, "nsteps": 0}.items()))
    call(gmx, folder, "grompp", "-f", "zero.mdp", "-c", "start.g96", "-p", "topol.top", "-o", "zero.tpr", "-maxwarn", 5)
    call(
        gmx,
        folder,
        "mdrun",
        "-s",
        "zero.tpr",
        "-ntmpi",
        1,
        "-ntomp",
        1,
        "-noconfout",
        "-g",
        "zero.log",
        "-e",
        "zero.edr",
        "-o",
        "zero.trr",
    )
    return read_trr(folder / "zero.trr")["f"]


def read_trr(path: Path, *, last: bool = False) -> dict[str, np.ndarray]:
    """Return the arrays x, v, f that the first (or last) frame of a single-precision .trr file holds, (n, 3) each."""
    data, at, found = path.read_bytes(), 0, {}
    while at < len(data) and (last or not found):
        magic, _, length = struct.unpack_from(">iii", data, at)
        at += 12 + (length + 3) // 4 * 4
        _ir, _e, box, vir, pres, _top, _sym, nx, nv, nf, n, _step, _nre = struct.unpack_from(">13i", data, at)
        if magic != 1993 or max(nx, nv, nf) != 12 * n:
            raise ValueError(f"{path}: not a single-precision .trr file")
        at, found = at + 52 + 8 + box + vir + pres, {}
        for name, size in (("x", nx), ("v", nv), ("f", nf)):
            if size:
                found[name] = np.frombuffer(data, ">f4", 3 * n, at).reshape(n, 3).astype(np.float64)
                at += size
    return found


def whole(position_n3: np.ndarray, box_nm: float) -> np.ndarray:
    """Return three-site molecules made whole, their oxygen in the box, rounded to float32."""
    x = position_n3.reshape(-1, 3, 3)
    oxygen = x[:, :1] - box_nm * np.floor(x[:, :1] / box_nm)
    arm = x - x[:, :1]
    return np.float32(oxygen + arm - box_nm * np.round(arm / box_nm)).astype(np.float64).reshape(-1, 3)


def water(gmx: Path, side: int = 10, copies: int = 2) -> s.Start:
    """Return (`side` `copies`)^3 SPC/E molecules at 300 K: a lattice run for 50 ps, copied, with new velocities 4 ps more."""

    def make() -> s.Start:
        folder, bath = s.WORK / f"water-start-{side}", {"tau-t": 0.1, "nstxout": 0, "nstvout": 0, "gen-vel": "yes"}
        x, box = s.water_lattice(side)
        settings = {**WATER, "integrator": "steep", "nsteps": 300, "emstep": 0.005, "tcoupl": "no"}
        x = _relax(gmx, folder, x, box, settings)
        x = _relax(gmx, folder, x, box, {**WATER, **bath, "dt": 0.001, "gen-seed": 11, "nsteps": 4000})
        x = _relax(gmx, folder, x, box, {**WATER, **bath, "gen-seed": 12, "nsteps": 23000})
        x, box = s.repeated(x, box, copies)
        x = _relax(gmx, folder, x, box, {**WATER, **bath, "gen-seed": 13, "nsteps": 2000, "nstvout": 2000})
        v = read_trr(folder / "relax.trr", last=True)["v"]
        return s.Start(x, v, box, s.water_forces(x, box))

    return s.stored(f"water{3 * (side * copies) ** 3}", make)


def _relax(gmx: Path, folder: Path, x: np.ndarray, box: float, settings: dict[str, Any]) -> np.ndarray:
    settings = {**settings, "nstxout": settings["nsteps"]}
    start = s.Start(x, np.zeros_like(x), box, np.zeros_like(x))
    prepare(gmx, folder, start, WATER_TOP, ["OW", "HW1", "HW2"], settings)
    call(gmx, folder, "mdrun", "-s", "topol.tpr", "-deffnm", "relax", "-ntmpi", 1, "-ntomp", len(os.sched_getaffinity(0)))
    return whole(read_trr(folder / "relax.trr", last=True)["x"], box)
