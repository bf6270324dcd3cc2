"""gewu against pw.x on five crystals: energy, eigenvalues and the time of the self-consistency loop.

Both programs get the same UPF file, cutoff, k-points and FFT grid, run alone on one thread in their own process, and take
turns within the same minutes after one untimed run each (which fills file and compile caches). Times are pw.x's clock
`electrons` and gewu's `time_scf_s`: the loop without start-up and set-up. Eigenvalues are compared at every k-point of the
mesh (Gamma, X and L are among them) after their occupation-weighted means are aligned; the three highest bands are left out:
neither program converges the last empty bands tightly, and pw.x misses one member of a threefold level of aluminium there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bench.dft import pwx
from bench.dft.systems import SYSTEMS, System
from bench.run import compare, versions

WORK = Path(__file__).parent / "work"
HARTREE_EV = pwx.HARTREE_EV
LOOSE_BANDS = 3


@dataclass(frozen=True)
class GewuResult:
    """What gewu found, read from the result directory with nothing of gewu."""

    numbers: dict[str, float]
    k_frac_k3: np.ndarray
    eigenvalues_ev_kb: np.ndarray


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all cases (or those asked for); return the records, none when a peer or the pseudopotentials are missing."""
    names = options.case or list(SYSTEMS)
    missing = [
        str(options.pseudo / f"{e}.upf")
        for e in {e for name in names for e in SYSTEMS[name].elements}
        if not (options.pseudo / f"{e}.upf").is_file()
    ]
    if missing or pwx.executable() is None:
        why = f"no such file: {', '.join(sorted(missing))}" if missing else "pw.x is not installed"
        print(f"dft: skipped, {why} (SG15 UPF files: --pseudo FOLDER or make bench PSEUDO=FOLDER)", file=sys.stderr)
        return []
    return [measure(SYSTEMS[name], options.pseudo.resolve(), options.repeats) for name in names]


def measure(system: System, pseudo_dir: Path, repeats: int) -> dict[str, Any]:
    """Run both programs on `system` in turn and return one record."""
    folder = WORK / system.name
    shutil.rmtree(folder, ignore_errors=True)
    peer = pwx.run(system, pseudo_dir, folder / "pwx")
    (folder / "structure.poscar").write_text(system.poscar())
    job = folder / "job.toml"
    job.write_text(system.job_toml("structure.poscar", pseudo_dir, peer.fft_grid))
    ours, times = run_gewu(job), ([], [])
    for _ in range(repeats):
        times[1].append(pwx.run(system, pseudo_dir, folder / "pwx").electrons_s)
        times[0].append(run_gewu(job).numbers["time_scf_s"])
    record = {
        "case": system.name,
        "peer": "pw.x",
        **compare(*times),
        "accuracy": accuracy(system, ours, peer),
        "versions": {
            **versions("gewu", "numpy", "scipy", "pyfftw"),
            "pw.x": peer.version,
            "pw.x BLAS": pwx.blas_library(),
            "threads": "1",
        },
    }
    print(f"{system.name}: {json.dumps(record['accuracy'])} time {record['ratio']}", file=sys.stderr, flush=True)
    return record


def run_gewu(job: Path) -> GewuResult:
    """Run `gewu run` on `job` in its own process, with the peer's environment, and read the result directory.

    Raises:
        RuntimeError: gewu ends with an error or does not converge.
    """
    script, out = Path(sys.executable).with_name("gewu"), job.with_suffix(".result")
    shutil.rmtree(out, ignore_errors=True)
    command = [str(script), "run", job.name, "--json", "--out", out.name]
    done = subprocess.run(command, cwd=job.parent, env=pwx.environment(), capture_output=True, text=True, check=False)
    last = json.loads((done.stdout.strip().splitlines() or ["{}"])[-1])
    if done.returncode != 0 or last.get("event") != "done":
        raise RuntimeError(f"gewu failed on {job} (exit {done.returncode}): {last} {done.stderr[-2000:]}")
    numbers = json.loads((out / "numbers.json").read_text())
    with h5py.File(out / "arrays.nc") as arrays:
        k_frac, eigenvalues = arrays["kpoints"][...], arrays["eigenvalues_ha"][...]
    return GewuResult({name: entry["value"] for name, entry in numbers.items()}, k_frac, eigenvalues * HARTREE_EV)


def accuracy(system: System, ours: GewuResult, peer: pwx.PwxResult) -> dict[str, float]:
    """Return the differences gewu - pw.x: energy in µRy/atom, eigenvalues (largest) and their shift in meV, iterations."""
    order = match_kpoints(system, ours.k_frac_k3, peer.k_frac_k3)
    theirs, mine = peer.eigenvalues_ev_kb, ours.eigenvalues_ev_kb[order, : system.bands]
    weights = peer.occupations_kb * peer.k_weights[:, None]
    shift = float(((mine - theirs) * weights).sum() / weights.sum())
    worst = np.abs(mine - theirs - shift)[:, : system.bands - LOOSE_BANDS].max()
    energy = 2 * ours.numbers["energy_ha"] - peer.energy_ry
    found = {
        "energy_uRy_per_atom": round(energy / len(system.symbols) * 1e6, 3),
        "eigenvalues_meV": round(1e3 * float(worst), 4),
        "shift_meV": round(1e3 * shift, 4),
        "iterations_ours": int(ours.numbers["scf_iterations"]),
        "iterations_theirs": peer.iterations,
    }
    if peer.fermi_ev is not None:
        found["fermi_meV"] = round(1e3 * (ours.numbers["fermi_ev"] - peer.fermi_ev), 4)
    return found


def match_kpoints(system: System, ours_k3: np.ndarray, theirs_k3: np.ndarray) -> np.ndarray:
    """Return for each of pw.x's k-points the index of gewu's that the cubic group maps onto it.

    All five crystals have the full cubic group in reciprocal space (time reversal supplies the inversion of zincblende).

    Raises:
        ValueError: a k-point has no partner, so the meshes differ.
    """
    reciprocal = np.linalg.inv(system.cell_bohr).T  # rows, without 2 pi
    signed = [np.diag(s) @ np.eye(3)[list(p)] for p in permutations(range(3)) for s in product((1.0, -1.0), repeat=3)]
    images = np.stack([ours_k3 @ reciprocal @ op @ np.linalg.inv(reciprocal) for op in signed])  # (48, k, 3), crystal units
    order = []
    for k in theirs_k3:
        away = images - k
        near = np.abs(away - np.round(away)).max(axis=2).min(axis=0)  # modulo reciprocal lattice vectors
        if near.min() > 1e-6:  # k-points are multiples of 1/8 or coarser; files hold 12 digits
            raise ValueError(f"{system.name}: gewu has no k-point equivalent to {k}")
        order.append(int(near.argmin()))
    return np.array(order)
