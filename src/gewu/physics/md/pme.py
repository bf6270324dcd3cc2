"""Smooth particle mesh Ewald: the reciprocal sum by B-splines and FFT, cost n log n.

    E = 1/2 sum_k Q(k) phi(k),    phi = F^-1 [ C(m) |b1(m1) b2(m2) b3(m3)|^2 F[Q] ],    C = K exp(-pi^2 m^2/a^2)/(pi V m^2)

Q is the charge on the mesh (`bspline`), F the real FFT.  Terms at the Nyquist index of an axis are left out: m and -m are one
point there, and in a tilted box no symmetric value exists.  The error falls as (mesh step)^order.  Forces are the exact gradient
of the energy on a fixed mesh; they add up to zero only to the mesh error, as in every PME of this kind (removing the motion of
the centre of mass is the integrator's).

Mixed precision: mesh and transforms in float32; energy and virial summed in float64; self energy, background and correction of
excluded pairs in float64 throughout.  With several ranks each spreads the charges it owns, the meshes are added, and every rank
transforms the sum; the root reports the reciprocal energy and virial.

Reference: Essmann et al., J. Chem. Phys. 103, 8577 (1995).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import scipy.fft

from gewu.core.errors import InputError
from gewu.core.mesh import row_length
from gewu.core.ranks import SERIAL, Ranks
from gewu.core.splines import b_spline_table
from gewu.physics.md import bspline
from gewu.physics.md.ewald import NAME, Exclusions, background_energy, self_energy
from gewu.physics.md.state import Array, Evaluation, State, Topology, symmetric
from gewu.physics.md.units import COULOMB

from numba import get_num_threads, njit, prange  # isort: skip  # `bspline` has set Numba up

Grid = tuple[int, int, int]


def choose_grid(box_33: Array, spacing_nm: float = 0.12) -> Grid:
    """Return mesh sizes with steps of at most `spacing_nm` along the box vectors, even products of 2, 3, 5, 7.

    Examples:
        >>> choose_grid(np.diag([6.2, 6.2, 3.0]), 0.12)
        (54, 54, 28)
    """
    if not spacing_nm > 0.0:
        raise InputError("the mesh step must be positive", key="fourier_spacing_nm", value=spacing_nm, allowed="above 0 nm")
    lengths = np.linalg.norm(box_33, axis=1)
    n1, n2, n3 = (_friendly(math.ceil(length / spacing_nm - 1e-9)) for length in lengths)
    return n1, n2, n3


def _friendly(least: int) -> int:
    n = max(12, least + least % 2)
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 2


@njit(parallel=True, cache=True, error_model="numpy")
def _influence(inverse: Any, factor: float, g: float, b1: Any, b2: Any, b3: Any, out: Any) -> None:
    """Fill `out` with factor exp(-g m^2)/m^2 b1 b2 b3; the Gaussian along a row by its ratios, three exponentials a row."""
    n1, n2, half = out.shape
    c2 = inverse[2, 2] ** 2
    step = math.exp(-2.0 * g * c2)
    for index in prange(n1):
        i = np.int64(index)  # the index of prange is unsigned
        k1 = i if 2 * i < n1 else i - n1
        m1 = k1 * inverse[0, 0]
        for j in range(n2):
            k2 = j if 2 * j < n2 else j - n2
            m2 = k1 * inverse[1, 0] + k2 * inverse[1, 1]
            m3 = k1 * inverse[2, 0] + k2 * inverse[2, 1]
            gauss = math.exp(-g * (m1 * m1 + m2 * m2 + m3 * m3))
            ratio = math.exp(-g * (2.0 * m3 * inverse[2, 2] + c2))
            for k in range(half):
                z = m3 + k * inverse[2, 2]
                square = m1 * m1 + m2 * m2 + z * z
                out[i, j, k] = factor * gauss / square * b1[i] * b2[j] * b3[k] if square > 0.0 else 0.0
                gauss *= ratio
                ratio *= step


@njit(parallel=True, cache=True, error_model="numpy")
def _convolve(spectrum: Any, influence: Any, inverse: Any, g: float, want: bool, planes: Any) -> None:
    """Multiply by the influence function; with `want`, sum energy, xx, xy, xz, yy, yz, zz of each plane into `planes` (n1, 7)."""
    n1, n2, half = spectrum.shape
    for index in prange(n1):
        i = np.int64(index)
        m1 = (i if 2 * i < n1 else i - n1) * inverse[0, 0]
        total, xx, xy, xz, yy, yz, zz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for j in range(n2 if want else 0):
            k1, k2 = i if 2 * i < n1 else i - n1, j if 2 * j < n2 else j - n2
            m2 = k1 * inverse[1, 0] + k2 * inverse[1, 1]
            m3 = k1 * inverse[2, 0] + k2 * inverse[2, 1]
            energy, s, sz, szz = 0.0, 0.0, 0.0, 0.0
            for k in range(half):
                z, c = m3 + k * inverse[2, 2], spectrum[i, j, k]
                re, im = float(c.real), float(c.imag)
                each = (0.5 if k == 0 else 1.0) * influence[i, j, k] * (re * re + im * im)  # k > 0 stands for -k too
                spring = 2.0 * each * (1.0 / max(m1 * m1 + m2 * m2 + z * z, 1e-300) + g)
                energy, s, sz, szz = energy + each, s + spring, sz + spring * z, szz + spring * z * z
            total += energy
            xx, xy, xz = xx + energy - s * m1 * m1, xy - s * m1 * m2, xz - sz * m1
            yy, yz, zz = yy + energy - s * m2 * m2, yz - sz * m2, zz + energy - szz
        if want:
            planes[i, 0], planes[i, 1], planes[i, 2], planes[i, 3] = total, xx, xy, xz
            planes[i, 4], planes[i, 5], planes[i, 6] = yy, yz, zz
        for j in range(n2):
            for k in range(half):
                spectrum[i, j, k] *= influence[i, j, k]


def _moduli(n: int, order: int) -> Array:
    """Return |b(m)|^2 of Essmann's equation 4.4 for m = 0 .. n-1, with 0 at the Nyquist index."""
    table = b_spline_table(order)
    at_knots = sum(table[m] * (-0.5) ** m for m in range(order))  # weights at u = -1/2: the spline at its knots
    assert isinstance(at_knots, np.ndarray)
    waves = np.exp(2j * math.pi * np.outer(np.arange(n), np.arange(order)) / n)
    square = np.abs(waves @ at_knots[:order]) ** 2
    square[n // 2] = math.inf
    return np.asarray(1.0 / square)


class Pme:
    """The reciprocal part of the Coulomb interaction: a Term with the energy "coulomb_reciprocal".

    Args:
        topology: exclusions; charges are read from the state.
        alpha: Ewald's parameter, 1/nm (`choose_alpha`).
        grid: mesh points along a, b, c: even (`choose_grid`).
        order: of the B-splines, 4 to 6.
        precision: "mixed" (float32 mesh) or "double".
        ranks: who shares the atoms.
        device: "cpu", or "reference" and "cuda" for the plain kernels with a mesh in fixed point.
    Raises:
        InputError: order, grid or precision out of range.
    """

    def __init__(
        self,
        topology: Topology,
        alpha: float,
        grid: Grid,
        *,
        order: int = 4,
        precision: Literal["mixed", "double"] = "mixed",
        ranks: Ranks = SERIAL,
        device: str = "cpu",
    ) -> None:
        if order not in (4, 5, 6):
            raise InputError("no B-splines of this order", key="pme_order", value=order, allowed="4, 5, 6")
        if any(n % 2 or n < 2 * order for n in grid):
            raise InputError("unusable mesh for PME", key="grid", value=grid, allowed=f"even, at least {2 * order}")
        if precision not in ("mixed", "double"):
            raise InputError("unknown precision", key="precision", value=precision, allowed="mixed, double")
        if not alpha > 0.0:
            raise InputError("Ewald's parameter must be positive", key="alpha", value=alpha, allowed="above 0 1/nm")
        self.alpha, self.grid, self.order, self._ranks, self._device = alpha, grid, order, ranks, device
        double = precision == "double" or device != "cpu"
        self._real: Any = np.float64 if double else np.float32
        self._exclusions = Exclusions(topology, alpha, 1e-14 if double else 1e-10, device)
        n1, n2, n3 = grid
        self._mesh = np.zeros(grid, self._real)
        self._influence = np.zeros((n1, n2, n3 // 2 + 1), self._real)
        self._moduli = tuple(_moduli(n, order) for n in grid)
        self._table = b_spline_table(order)
        self._flat_table = self._table.astype(self._real).reshape(-1)
        self._meshes = np.zeros((0, n1 + order - 1, n2 + order - 1, n3 + row_length(order)), self._real)
        self._place, self._offset = np.zeros(0, np.int64), np.zeros((0, 3), self._real)
        self._box, self._inverse = np.zeros((3, 3)), np.zeros((3, 3))

    def _follow_box(self, state: State) -> None:
        if np.array_equal(state.box_33, self._box):
            return
        self._box = state.box_33.copy()
        self._inverse = np.asarray(np.linalg.inv(self._box), np.float64)
        g, factor = (math.pi / self.alpha) ** 2, COULOMB / (math.pi * state.volume)
        _influence(self._inverse, factor, g, *self._moduli, self._influence)

    def _spread(self, state: State) -> Array:
        n = state.owned
        position, charge = state.position_n3[:n], state.charge_n[:n]
        if self._device != "cpu":
            fixed = np.zeros(self._mesh.size, np.int64)
            shape = np.array(self.grid, np.int64)
            bspline.spread_fixed.launch(self._device, n, position, charge, self._inverse, self._table, shape, fixed)
            return (fixed / bspline.FIXED_POINT).reshape(self.grid)
        threads = get_num_threads()
        if len(self._meshes) != threads:
            self._meshes = np.zeros((threads, *self._meshes.shape[1:]), self._real)
        if len(self._place) < n:
            self._place, self._offset = np.zeros(n, np.int64), np.zeros((n, 3), self._real)
        width = (0,) * self.order
        work = (self._meshes, self._place, self._offset, self._flat_table, width)
        bspline.spread(position, charge, self._inverse, self._mesh, *work)
        return self._mesh

    def _gather(self, state: State, potential: Any) -> None:
        n = state.owned
        charge, force = state.charge_n[:n], state.force_n3[:n]
        if self._device != "cpu":
            arguments = (state.position_n3[:n], charge, self._inverse, self._table, np.array(self.grid, np.int64))
            bspline.gather_plain.launch(self._device, n, *arguments, np.ascontiguousarray(potential).reshape(-1), force)
            return
        work = (self._meshes, self._place, self._offset, self._flat_table, (0,) * self.order)
        bspline.gather(charge, self._inverse, potential, *work, force)

    def compute(self, state: State, want: bool) -> Evaluation | None:
        """Add the forces on owned atoms; with `want`, return this rank's energy and virial."""
        self._follow_box(state)
        mesh = self._spread(state)
        if self._ranks.size > 1:
            mesh = self._ranks.allreduce(mesh)
        workers = get_num_threads()
        spectrum = scipy.fft.rfftn(mesh, workers=workers)
        planes: Array = np.zeros((self.grid[0], 7))
        mine = want and self._ranks.is_root
        _convolve(spectrum, self._influence, self._inverse, (math.pi / self.alpha) ** 2, mine, planes)
        potential = scipy.fft.irfftn(spectrum, s=self.grid, norm="forward", overwrite_x=True, workers=workers)
        self._gather(state, potential)
        excluded, corrected = self._exclusions.add(state, want)
        if not want:
            return None
        total = planes.sum(axis=0)
        energy = float(total[0]) + excluded + self_energy(state, self.alpha)
        virial = corrected + symmetric(total[1:])
        background = background_energy(state, self.alpha, self._ranks)
        if self._ranks.is_root:
            energy, virial = energy + background, virial + background * np.eye(3)
        return Evaluation({NAME: energy}, virial)
