"""The plane-wave basis: which G vectors, on which grid, and the transforms between sphere and grid.

    psi_k(r) = sum_G c_G exp(i (k+G) r) / sqrt(Omega),    |k+G|^2 / 2 <= E_cut
    rho(r)   = sum_G rho_G exp(i G r),                     |G|^2 / 2   <= 4 E_cut

The sphere of each k is stored on a small box, shifted so that all indices start at 0 (the phase of the shift
cancels in rho and in H). A transform then runs over three passes of 1-D transforms and skips the columns that are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gewu.core.arrays import Array, Arrays
from gewu.core.errors import InputError
from gewu.physics.dft.crystal import Crystal
from gewu.physics.dft.kparallel import threads


def grid_shape(crystal: Crystal, cutoff_ha: float, translations: np.ndarray | None = None) -> tuple[int, int, int]:
    """Return the smallest FFT grid that holds the density sphere and maps onto itself under the fractional translations.

    Args:
        crystal: the cell.
        cutoff_ha: wavefunction cutoff.
        translations: (n, 3) fractional translations of the space group.
    """
    radius = 2 * np.sqrt(2 * cutoff_ha)
    shape = []
    for axis in range(3):
        n = int(2 * radius * np.linalg.norm(crystal.lattice[axis]) / (2 * np.pi)) + 1
        step = 1 if translations is None else _denominator(translations[:, axis])
        while n % step or not _smooth(n):
            n += 1
        shape.append(n)
    return tuple(shape)  # type: ignore[return-value]


def _denominator(shifts: np.ndarray) -> int:
    for d in (1, 2, 3, 4, 6, 8, 12):
        if np.allclose(shifts * d, np.round(shifts * d), atol=1e-5):
            return d
    return 1


def _smooth(n: int) -> bool:
    for p in (2, 3, 5):
        while n % p == 0:
            n //= p
    return n == 1


@dataclass(frozen=True, eq=False)
class Sphere:
    """Plane waves of one k point.

    Args:
        k: (3,) fractional coordinates in the reciprocal lattice.
        g: (npw, 3) integer G vectors.
        kpg: (npw, 3) k+G, 1/bohr.
        kinetic: (npw,) |k+G|^2 / 2, Ha.
        box: extent of a box that holds the sphere of any k.
        index: (npw,) flat positions in the box.
    """

    k: np.ndarray
    g: np.ndarray
    kpg: np.ndarray
    kinetic: np.ndarray
    box: tuple[int, int, int]
    index: np.ndarray


@dataclass(frozen=True, eq=False)
class Basis:
    """FFT grid and density sphere of a crystal at a cutoff.

    The density sphere is kept on the half space that a real transform returns: `half` are flat positions in the half grid,
    `g` (ng, 3) the integer vectors, `g2` (ng,) their |G|^2, `weight` (ng,) 2 where -G is implied and 1 elsewhere.
    """

    crystal: Crystal
    cutoff_ha: float
    grid: tuple[int, int, int]
    arrays: Arrays

    def __post_init__(self) -> None:
        needed = grid_shape(self.crystal, self.cutoff_ha)
        largest = 2 * np.sqrt(2 * self.cutoff_ha) * np.linalg.norm(self.crystal.lattice, axis=1) / np.pi
        if any(n < 2 * int(m / 2) + 1 for n, m in zip(self.grid, largest, strict=True)):  # G and -G must be two points
            raise InputError(
                "FFT grid too coarse for the cutoff", key="dft.fft_grid", value=self.grid, allowed=f"at least {needed}"
            )

    @property
    def workers(self) -> int:
        """k points to compute side by side: the threads of a CPU, one at a time on a GPU."""
        return threads() if self.arrays.host else 1

    @property
    def size(self) -> int:
        """Number of grid points."""
        return int(np.prod(self.grid))

    @property
    def dv(self) -> float:
        """Volume of a grid point, bohr^3."""
        return self.crystal.volume / self.size

    @cached_property
    def _half_vectors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        n1, n2, n3 = self.grid
        axes = [np.fft.fftfreq(n1, 1 / n1), np.fft.fftfreq(n2, 1 / n2), np.arange(n3 // 2 + 1)]
        g = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3).round().astype(np.int64)
        g2 = ((g @ self.crystal.reciprocal) ** 2).sum(-1)
        half = np.flatnonzero(g2 <= 8 * self.cutoff_ha * (1 + 1e-12))
        g = g[half]
        weight = np.where(g[:, 2] == 0, 1.0, 2.0)
        return half, g, g2[half], weight

    @property
    def half(self) -> np.ndarray:
        """(ng,) flat positions of the density sphere in the half grid."""
        return self._half_vectors[0]

    @property
    def g(self) -> np.ndarray:
        """(ng, 3) integer G vectors of the density half sphere."""
        return self._half_vectors[1]

    @property
    def g2(self) -> np.ndarray:
        """(ng,) |G|^2 of the density half sphere, 1/bohr^2."""
        return self._half_vectors[2]

    @property
    def weight(self) -> np.ndarray:
        """(ng,) how many vectors of the full sphere each stands for."""
        return self._half_vectors[3]

    @cached_property
    def device_half(self) -> Array:
        """`half` on the device."""
        return self.arrays.put(self.half)

    @cached_property
    def device_g(self) -> Array:
        """(3, ng) Cartesian components of the half sphere's G on the device, 1/bohr."""
        return self.arrays.put(np.ascontiguousarray((self.g @ self.crystal.reciprocal).T))

    def to_grid(self, f_g: Array) -> Array:
        """Return the real function (n1, n2, n3) of half-sphere coefficients (ng,)."""
        n1, n2, n3 = self.grid
        out = self.arrays.xp.zeros(n1 * n2 * (n3 // 2 + 1), dtype=complex)
        out[self.device_half] = f_g
        return self.arrays.irfftn(out.reshape(n1, n2, n3 // 2 + 1), self.grid)

    def to_sphere(self, f: Array) -> Array:
        """Return the half-sphere coefficients (ng,) of a real function (n1, n2, n3)."""
        return self.arrays.rfftn(f).reshape(-1)[self.device_half]

    def sphere(self, k: np.ndarray) -> Sphere:
        """Return the plane waves at fractional k (3,)."""
        return make_sphere(self.crystal, self.cutoff_ha, k)

    def wave_to_grid(self, sphere: Sphere, index: Array, c_bp: Array) -> Array:
        """Return sum_G c_G exp(i (G - shift) r) on the grid.

        Args:
            sphere: the plane waves.
            index: `sphere.index` on the device.
            c_bp: (bands, npw) coefficients.

        Returns:
            (bands, n1, n2, n3) complex.
        """
        m1, m2, m3 = sphere.box
        box = self.arrays.xp.zeros((len(c_bp), m1 * m2 * m3), dtype=c_bp.dtype)
        box[:, index] = c_bp
        return self.arrays.box_to_grid(box.reshape(-1, m1, m2, m3), self.grid)

    def wave_to_sphere(self, sphere: Sphere, index: Array, f: Array) -> Array:
        """Return the coefficients (bands, npw) of functions (bands, n1, n2, n3), which it may overwrite."""
        return self.arrays.grid_to_box(f, sphere.box).reshape(len(f), -1)[:, index]


def make_sphere(crystal: Crystal, cutoff_ha: float, k: np.ndarray) -> Sphere:
    """Return the plane waves with |k+G|^2/2 <= cutoff_ha at fractional k (3,)."""
    k = np.asarray(k, float)
    reach = np.sqrt(2 * cutoff_ha) * np.linalg.norm(crystal.lattice, axis=1) / (2 * np.pi)
    axes = [np.arange(np.ceil(-q - r), np.floor(-q + r) + 1) for q, r in zip(k, reach, strict=True)]
    g = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3).astype(np.int64)
    kinetic = (((g + k) @ crystal.reciprocal) ** 2).sum(-1) / 2
    inside = kinetic <= cutoff_ha * (1 + 1e-12)
    g, kinetic = g[inside], kinetic[inside]
    if not len(g):
        raise InputError("no plane wave below the cutoff", key="dft.cutoff_ha", value=cutoff_ha, hint="raise the cutoff")
    low = g.min(0)
    m1, m2, m3 = (int(x) for x in np.floor(2 * reach) + 1)  # holds the sphere of every k, so that all share one transform
    index = np.ravel_multi_index(tuple((g - low).T), (m1, m2, m3))
    return Sphere(k, g, (g + k) @ crystal.reciprocal, kinetic, (m1, m2, m3), index)
