"""The `[dft]` table of a job: every key with its default, unit, bounds and meaning."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gewu.core.errors import InputError
from gewu.core.schema import field
from gewu.physics.dft.occupation import SMEARINGS
from gewu.physics.dft.xc import FUNCTIONALS

MAX_KPOINTS = 1_000_000


@dataclass(frozen=True)
class Config:
    """The `[dft]` table of a job."""

    structure: str = field(file=True, meaning="Crystal structure: CIF, POSCAR or extended xyz")
    cell: str = field(
        "as-given", choices=("as-given", "primitive"), meaning="Compute the cell of the file, or its primitive cell"
    )
    functional: str = field("pbe", choices=tuple(FUNCTIONALS), meaning="Exchange-correlation functional")
    pseudo: str | dict[str, str] = field(
        "gth",
        file=True,
        builtin_prefixes=("gth",),
        meaning="Pseudopotentials: gth (shipped table), gth-q4 (one valence), a UPF or psp8 file, or a table by element",
    )
    cutoff_ha: float = field(
        0.0, unit="Ha", minimum=0.0, maximum=1e6, meaning="Largest kinetic energy of a plane wave; 0 follows the GTH table"
    )
    kpoints: tuple[int, int, int] = field(
        (0, 0, 0), minimum=0, meaning="k points along each reciprocal vector; 0 0 0 is automatic"
    )
    kshift: tuple[float, float, float] = field(
        (0.0, 0.0, 0.0), choices=(0.0, 0.5), meaning="Shift of the k mesh in units of its step"
    )
    smearing: str = field("none", choices=SMEARINGS, meaning="Smearing of the occupations: needed for metals")
    smearing_width_ha: float = field(0.005, unit="Ha", exclusive_minimum=0.0, maximum=1.0, meaning="Width of the smearing")
    bands: int = field(0, minimum=0, meaning="Number of bands; 0 adds some empty ones to those filled")
    path: str = field("auto", meaning="Path of the band structure: auto, none, or points such as L G X, K G")
    path_points: int = field(100, minimum=2, maximum=10_000, meaning="k points along the path", expert=True)
    dos_kpoints: tuple[int, int, int] = field(
        (0, 0, 0), minimum=0, meaning="k mesh of the density of states; 0 0 0 takes kpoints"
    )
    dos_width_ev: float = field(
        0.05, unit="eV", minimum=0.005, maximum=10.0, meaning="Gaussian smoothing of the density of states", expert=True
    )
    energy_tolerance_ha: float = field(
        1e-9, unit="Ha", minimum=1e-13, maximum=1e-3, meaning="Accuracy of the self-consistent energy"
    )
    max_iterations: int = field(60, minimum=1, meaning="Self-consistency iterations before giving up", expert=True)
    fft_grid: tuple[int, int, int] = field((0, 0, 0), minimum=0, meaning="FFT grid; 0 0 0 is the smallest exact one", expert=True)
    seed: int = field(0, minimum=0, meaning="Seed of the noise in the start vectors", expert=True)

    def check(self) -> None:
        """Refuse k meshes and grids that are only partly automatic, and k meshes so large that counting them takes all memory."""
        for key in ("kpoints", "dos_kpoints", "fft_grid"):
            value = getattr(self, key)
            if min(value) == 0 < max(value):
                raise InputError("is 0 along one axis only", key=key, value=value, allowed="three numbers above 0, or 0 0 0")
            if key != "fft_grid" and math.prod(value) > MAX_KPOINTS:
                raise InputError("too many k points", key=key, value=value, allowed=f"at most {MAX_KPOINTS} in all")
