"""The systems of the comparison, each made once into `bench/md/work` with a fixed seed and handed to every program.

Units nm, nm/ps, u, kJ/mol, e. Positions are float32 numbers: programs that store them so start from the same point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.md import reference

WORK = Path(__file__).parent / "work"
BOLTZMANN = 8.31446261815324e-3  # kJ/mol/K, CODATA 2018

# Lennard-Jones: argon's sigma and epsilon give the reduced units of LAMMPS' bench/in.lj their size.
SIGMA, EPSILON, MASS = 0.34, 0.996, 39.948
TAU = SIGMA * (MASS / EPSILON) ** 0.5
LJ_DT, LJ_CUTOFF, LJ_SKIN, LJ_EVERY = 0.005, 2.5, 0.3, 20  # in sigma and tau, as in.lj
LJ_DENSITY, LJ_TEMPERATURE = 0.8442, 1.44

# Copper, as LAMMPS' bench/in.eam: 800 K of motion on a perfect lattice would be twice that, hence 1600 K at the start.
CU_A, CU_MASS, CU_TEMPERATURE, CU_CUTOFF, CU_SKIN, CU_DT = 0.3615, 63.55, 1600.0, 0.495, 0.1, 0.005

# SPC/E water (Berendsen, Grigera and Straatsma, J. Phys. Chem. 91, 6269, 1987).
WATER_SIGMA, WATER_EPSILON, WATER_QH = 0.316557, 0.650194, 0.4238
WATER_OH, WATER_HH, WATER_MO, WATER_MH = 0.1, 0.163299316, 15.9994, 1.008
WATER_SIDE, WATER_DENSITY = 10, 33.36  # molecules along an edge of the small box; molecules in a nm^3 (0.998 g/cm^3)
WATER_CUTOFF, WATER_SPACING, WATER_RTOL, WATER_DT, WATER_TEMPERATURE = 0.9, 0.12, 1e-5, 0.002, 300.0
WATER_SKIN = 0.1


@dataclass(frozen=True)
class Start:
    """Where a system starts, and the force on it by a float64 reference (zeros where a peer supplies it)."""

    position_n3: np.ndarray
    velocity_n3: np.ndarray
    box_nm: Any  # one edge, or three
    force_n3: np.ndarray


def stored(name: str, make: Callable[[], Start]) -> Start:
    """Return the start named `name` from the work folder; make it the first time."""
    path = WORK / f"{name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        start = make()
        partial = path.with_suffix(".part.npz")
        np.savez(partial, x=start.position_n3, v=start.velocity_n3, box=start.box_nm, f=start.force_n3)
        partial.replace(path)
    with np.load(path) as data:
        return Start(data["x"], data["v"], float(data["box"]), data["f"])


def single(position_n3: np.ndarray, box_nm: float) -> np.ndarray:
    """Return the positions folded into the box and rounded to float32, as float64."""
    folded = np.float32(position_n3 - box_nm * np.floor(position_n3 / box_nm))
    return np.where(folded >= np.float32(box_nm), np.float32(0), folded).astype(np.float64)


def thermal(mass_n: np.ndarray, temperature_k: float, seed: int) -> np.ndarray:
    """Return random velocities without total momentum at exactly this temperature (3 n - 3 degrees of freedom)."""
    v = np.random.default_rng(seed).standard_normal((len(mass_n), 3)) * np.sqrt(BOLTZMANN * temperature_k / mass_n)[:, None]
    v -= (mass_n[:, None] * v).sum(axis=0) / mass_n.sum()
    now = (mass_n[:, None] * v**2).sum() / ((3 * len(v) - 3) * BOLTZMANN)
    return v * np.sqrt(temperature_k / now)


def fcc(cells: int, a_nm: float) -> tuple[np.ndarray, float]:
    """Return the positions and the edge of `cells`^3 face-centred cubic cells."""
    corner = np.stack(np.meshgrid(*[np.arange(cells)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    basis = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]])
    return ((corner + basis) * a_nm).reshape(-1, 3), cells * a_nm


def lennard_jones(cells: int = 20, steps: int = 200) -> Start:
    """Return 4 `cells`^3 atoms that were a crystal of in.lj's density and temperature `steps` steps ago."""

    def make() -> Start:
        x, box = fcc(cells, (4 / LJ_DENSITY) ** (1 / 3) * SIGMA)
        v = thermal(np.full(len(x), MASS), LJ_TEMPERATURE * EPSILON / BOLTZMANN, 87287)
        rc, dt = LJ_CUTOFF * SIGMA, LJ_DT * TAU
        f = reference.lennard_jones(x, box, rc, SIGMA, EPSILON)
        for _ in range(steps):
            v += dt / (2 * MASS) * f
            x = x + dt * v
            f = reference.lennard_jones(x, box, rc, SIGMA, EPSILON)
            v += dt / (2 * MASS) * f
        x = single(x, box)
        return Start(x, np.float32(v).astype(np.float64), box, reference.lennard_jones(x, box, rc, SIGMA, EPSILON))

    return stored(f"lj{4 * cells**3}", make)


def copper(cells: int = 20) -> Start:
    """Return the hot copper crystal of in.eam; atoms are 2 pm off their sites, so that no force vanishes."""

    def make() -> Start:
        x, box = fcc(cells, CU_A)
        x = single(x + 0.002 * np.random.default_rng(5).standard_normal(x.shape), box)
        v = thermal(np.full(len(x), CU_MASS), CU_TEMPERATURE, 376847)
        return Start(x, np.float32(v).astype(np.float64), box, np.zeros_like(x))

    return stored(f"cu{4 * cells**3}", make)


def water_masses(molecules: int) -> np.ndarray:
    return np.tile([WATER_MO, WATER_MH, WATER_MH], molecules)


def water_charges(molecules: int) -> np.ndarray:
    return np.tile([-2 * WATER_QH, WATER_QH, WATER_QH], molecules)


def water_lattice(side: int = WATER_SIDE, seed: int = 7) -> tuple[np.ndarray, float]:
    """Return `side`^3 rigid molecules, oxygen first, on a simple cubic lattice with random orientations."""
    rng, count = np.random.default_rng(seed), side**3
    box = (count / WATER_DENSITY) ** (1 / 3)
    site = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 1, 3) * box / side
    half = np.arcsin(WATER_HH / (2 * WATER_OH))
    shape = WATER_OH * np.array([[0.0, 0.0, 0.0], [np.sin(half), np.cos(half), 0.0], [-np.sin(half), np.cos(half), 0.0]])
    turn = np.linalg.qr(rng.standard_normal((count, 3, 3)))[0]
    return (site + np.einsum("mab,sb->msa", turn, shape)).reshape(-1, 3), box


def repeated(position_n3: np.ndarray, box_nm: float, times: int) -> tuple[np.ndarray, float]:
    """Return `times`^3 copies side by side; molecules are expected whole and stay so."""
    shift = np.stack(np.meshgrid(*[np.arange(times)] * 3, indexing="ij"), -1).reshape(-1, 1, 3) * box_nm
    return (shift + position_n3).reshape(-1, 3), times * box_nm


def water_forces(position_n3: np.ndarray, box_nm: float) -> np.ndarray:
    """Return the forces of SPC/E with the benchmark's Lennard-Jones cutoff and exact periodic electrostatics."""
    molecules = len(position_n3) // 3
    return reference.water(position_n3, box_nm, water_charges(molecules), WATER_CUTOFF, WATER_SIGMA, WATER_EPSILON)
