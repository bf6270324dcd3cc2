"""Quantum ESPRESSO's pw.x as a peer: write its input, run it alone on one thread, read what it found.

Energies, eigenvalues and the FFT grid come from `data-file-schema.xml` (full precision), times from the clock table that
pw.x prints. The time compared is the line `electrons`, which is the self-consistency loop without set-up.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.dft.systems import CONV_THR_RY, System

HARTREE_EV = 27.211386245988  # CODATA 2018


class PeerError(RuntimeError):
    """pw.x is missing, failed or did not converge."""


@dataclass(frozen=True)
class PwxResult:
    """What pw.x found. Energies in Ry, eigenvalues in eV, k-points in units of the reciprocal lattice vectors, times in s."""

    version: str
    energy_ry: float
    smearing_ry: float
    fermi_ev: float | None
    k_frac_k3: np.ndarray
    k_weights: np.ndarray
    eigenvalues_ev_kb: np.ndarray
    occupations_kb: np.ndarray
    fft_grid: tuple[int, int, int]
    iterations: int
    electrons_s: float
    init_s: float
    plane_waves: tuple[int, ...]


def executable() -> str | None:
    """Return the path of pw.x, or None when it is not installed."""
    return shutil.which("pw.x")


def environment() -> dict[str, str]:
    """Return the environment for pw.x: one thread, and OpenBLAS in front of the reference BLAS where Debian has it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    folders = sorted(str(p.parent) for p in Path("/usr/lib").glob("*/openblas-*/libblas.so.3"))
    if folders:
        env["LD_LIBRARY_PATH"] = os.pathsep.join([*folders, *filter(None, [env.get("LD_LIBRARY_PATH")])])
    return env


def blas_library() -> str:
    """Return the real name of the BLAS that pw.x will load, for the record."""
    path = executable()
    if path is None:
        raise PeerError("pw.x is not installed")
    lines = subprocess.run(["ldd", path], env=environment(), capture_output=True, text=True, check=True).stdout.splitlines()
    found = [line.split("=>")[1].split()[0] for line in lines if "libblas.so" in line and "=>" in line]
    return Path(found[0]).resolve().parent.name if found else "static"


def write_input(system: System, pseudo_dir: Path, outdir: Path) -> str:
    """Return the pw.x input of `system`: explicit cell, tight convergence, no k shift (a mesh of one: real orbitals)."""
    smearing = ""
    if system.smearing_width_ry:
        smearing = f"  occupations='smearing', smearing='marzari-vanderbilt', degauss={system.smearing_width_ry}\n"
    cell = "\n".join(" ".join(f"{x:.12f}" for x in row) for row in system.cell_bohr)
    atoms = "\n".join(
        f"{symbol} " + " ".join(f"{x:.12f}" for x in frac) for symbol, frac in zip(system.symbols, system.frac_n3, strict=True)
    )
    species = "\n".join(f"{element} 1.0 {element}.upf" for element in system.elements)
    return (
        f"&control\n  calculation='scf', prefix='case', outdir='{outdir}', pseudo_dir='{pseudo_dir}'\n"
        "  verbosity='high', disk_io='low'\n/\n"
        f"&system\n  ibrav=0, nat={len(system.symbols)}, ntyp={len(system.elements)}, ecutwfc={system.cutoff_ry}, "
        f"nbnd={system.bands}\n{smearing}/\n&electrons\n  conv_thr={CONV_THR_RY:.0e}\n/\n"
        f"ATOMIC_SPECIES\n{species}\nCELL_PARAMETERS bohr\n{cell}\nATOMIC_POSITIONS crystal\n{atoms}\n"
        + (
            "K_POINTS gamma\n"
            if max(system.kpoints) == 1
            else f"K_POINTS automatic\n{' '.join(map(str, system.kpoints))} 0 0 0\n"
        )
    )


def run(system: System, pseudo_dir: Path, workdir: Path) -> PwxResult:
    """Run pw.x on `system` in `workdir` (made anew) and return what it found.

    Raises:
        PeerError: pw.x is missing, ends with an error, or its self-consistency loop does not converge.
    """
    path = executable()
    if path is None:
        raise PeerError("pw.x is not installed (Debian: apt-get install quantum-espresso libopenblas0-pthread)")
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    (workdir / "case.in").write_text(write_input(system, pseudo_dir.resolve(), Path("out")))
    done = subprocess.run([path, "-in", "case.in"], cwd=workdir, env=environment(), capture_output=True, text=True, check=False)
    (workdir / "case.out").write_text(done.stdout)
    if done.returncode != 0 or "convergence has been achieved" not in done.stdout:
        raise PeerError(f"pw.x failed on {system.name} (exit {done.returncode}): {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return read(system, done.stdout, workdir / "out" / "case.save" / "data-file-schema.xml")


def read(system: System, text: str, xml: Path) -> PwxResult:
    """Return the result written in pw.x's output `text` and its `data-file-schema.xml`."""
    output = ElementTree.parse(xml).getroot().find("output")
    if output is None:
        raise PeerError(f"{xml}: no <output>")
    structure, bands, grid = output.find("atomic_structure"), output.find("band_structure"), output.find("basis_set/fft_grid")
    if structure is None or bands is None or grid is None:
        raise PeerError(f"{xml}: incomplete <output>")
    alat = float(structure.attrib["alat"])
    rows = bands.findall("ks_energies")
    k_cart = np.array([_numbers(row.find("k_point")) for row in rows])  # units of 2 pi / alat
    weights = np.array([float(row.find("k_point").attrib["weight"]) for row in rows])  # type: ignore[union-attr]
    fermi, demet = bands.find("fermi_energy"), output.find("total_energy/demet")
    found = re.search(r"Program PWSCF v\.?(\S+)", text)
    return PwxResult(
        version=found.group(1) if found else "unknown",
        energy_ry=2 * float(_numbers(output.find("total_energy/etot"))[0]),
        smearing_ry=2 * float(_numbers(demet)[0]) if demet is not None else 0.0,
        fermi_ev=HARTREE_EV * float(_numbers(fermi)[0]) if system.smearing_width_ry and fermi is not None else None,
        k_frac_k3=k_cart @ system.cell_bohr.T / alat,
        k_weights=weights / weights.sum(),
        eigenvalues_ev_kb=HARTREE_EV * np.array([_numbers(row.find("eigenvalues")) for row in rows]),
        occupations_kb=np.array([_numbers(row.find("occupations")) for row in rows]),
        fft_grid=(int(grid.attrib["nr1"]), int(grid.attrib["nr2"]), int(grid.attrib["nr3"])),
        iterations=int(_numbers(output.find("convergence_info/scf_conv/n_scf_steps"))[0]),
        electrons_s=clock(text, "electrons"),
        init_s=clock(text, "init_run"),
        plane_waves=tuple(int(_numbers(row.find("npw"))[0]) for row in rows),
    )


def clock(text: str, name: str) -> float:
    """Return the wall time in seconds of the line `name` of pw.x's clock table (`1h 2m`, `1m 2.50s` and `2.50s` occur).

    >>> clock("     electrons    :      1.00s CPU   1m 2.50s WALL (       1 calls)", "electrons")
    62.5
    """
    found = re.search(rf"^\s*{re.escape(name)}\s*:.*CPU\s+(.*?)\s*WALL", text, re.MULTILINE)
    if found is None:
        raise PeerError(f"pw.x printed no clock named {name}")
    parts = re.findall(r"([\d.]+)\s*([hms])", found.group(1))
    return sum(float(value) * {"h": 3600.0, "m": 60.0, "s": 1.0}[unit] for value, unit in parts)


def _numbers(element: ElementTree.Element | None) -> np.ndarray:
    if element is None or element.text is None:
        raise PeerError("pw.x's data file lacks an expected element")
    return np.array(element.text.split(), dtype=float)
