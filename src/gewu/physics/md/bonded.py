"""Bonded interactions: bonds, angles, Urey-Bradley, dihedrals, impropers, CMAP and scaled 1-4 pairs.

    bond, Urey-Bradley   U = k/2 (r - r0)^2
    angle                U = k/2 (theta - theta0)^2,    theta = atan2(|u x v|, u.v)
    dihedral             U = k [1 + cos(n phi - phase)],   Ryckaert-Bellemans  U = sum_m c_m cos^m(phi - pi)
    improper             U = k/2 (xi - xi0)^2, the difference taken modulo 2 pi
    CMAP                 U = bicubic spline through energies on a periodic grid of (phi, psi)
    1-4 pair             U = 4 eps [(sigma/r)^12 - (sigma/r)^6] + q_i q_j / (4 pi eps0 r), no cutoff

phi is IUPAC's: 0 cis, pi trans.  Both kinds of torsion are one Fourier series, summed by recurrence from cos phi and sin phi, so
no trigonometric function is called; torsions that follow each other in the table on the same atoms are merged.

Method: one launch over all terms of all kinds; each writes its forces to places of its own, sorted by atom; a second launch over
the atoms that have terms adds them.  The order is fixed, so the bits do not depend on the number of threads.

Limits.  Where atoms coincide, or an angle is exactly 0 or pi, the direction of the force is undefined and the force is zero
(for theta0 = pi that is the exact value).  Where three atoms of a torsion are collinear (sin < 1e-10) phi is undefined: the
energy is that of phi = 0 and the force zero; near it the force grows as 1/sin, as the model has it.

References: Blondel, Karplus, J. Comput. Chem. 17, 1132 (1996), for the torsion's gradient; MacKerell, Feig, Brooks, J. Comput.
Chem. 25, 1400 (2004), for CMAP; Ryckaert, Bellemans, Faraday Discuss. 66, 95 (1978).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from gewu.core.errors import InputError
from gewu.core.kernel import device, kernel
from gewu.core.splines import periodic_bicubic
from gewu.physics.md.box import box_of, minimum_image
from gewu.physics.md.state import Array, Evaluation, Index, State, Terms, Topology, symmetric
from gewu.physics.md.units import COULOMB

ORDER: Final = 6
"""Highest multiplicity of a dihedral."""
WIDTH: Final = 2 * ORDER + 1
TINY: Final = 1e-150
COLLINEAR: Final = 1e-20
TWO_PI: Final = 2 * math.pi

NAMES: Final = ("bond", "urey_bradley", "angle", "dihedral", "ryckaert", "improper", "cmap", "lennard_jones_14", "coulomb_14")

Torsion = tuple[float, ...]


@device
def _apart(position_n3: Array, p: int, q: int, box: Array) -> tuple[float, float, float]:
    """Return the nearest image of r_p - r_q; within half the box (nearly always) that is the difference itself."""
    x, y, z = position_n3[p, 0] - position_n3[q, 0], position_n3[p, 1] - position_n3[q, 1], position_n3[p, 2] - position_n3[q, 2]
    if abs(x) < 0.5 * box[0, 0] and abs(y) < 0.5 * box[1, 1] and abs(z) < 0.5 * box[2, 2]:
        return x, y, z
    return minimum_image(x, y, z, box)


@device
def _put(part: Array, row: int, x: float, y: float, z: float) -> None:
    part[row, 0], part[row, 1], part[row, 2] = x, y, z


@device
def _add(part: Array, row: int, x: float, y: float, z: float) -> None:
    part[row, 0] += x
    part[row, 1] += y
    part[row, 2] += z


@device
def _virial(virial: Array, i: int, x: float, y: float, z: float, fx: float, fy: float, fz: float) -> None:
    """Add r_a f_b: xx, xy, xz, yy, yz, zz (a bonded term turns with its atoms, so its virial is symmetric)."""
    virial[i, 0] += x * fx
    virial[i, 1] += x * fy
    virial[i, 2] += x * fz
    virial[i, 3] += y * fy
    virial[i, 4] += y * fz
    virial[i, 5] += z * fz


@device
def _torsion(position_n3: Array, box: Array, atom: Index, s: int) -> Torsion:
    """Return cos phi, sin phi, d phi/d r_i, d phi/d r_l, F.G/G^2, H.G/G^2, and F = r_i - r_j, G = r_j - r_k, H = r_l - r_k."""
    fx, fy, fz = _apart(position_n3, atom[s], atom[s + 1], box)
    gx, gy, gz = _apart(position_n3, atom[s + 1], atom[s + 2], box)
    hx, hy, hz = _apart(position_n3, atom[s + 3], atom[s + 2], box)
    ax, ay, az = fy * gz - fz * gy, fz * gx - fx * gz, fx * gy - fy * gx
    bx, by, bz = hy * gz - hz * gy, hz * gx - hx * gz, hx * gy - hy * gx
    a2, b2 = ax * ax + ay * ay + az * az, bx * bx + by * by + bz * bz
    f2, g2, h2 = fx * fx + fy * fy + fz * fz, gx * gx + gy * gy + gz * gz, hx * hx + hy * hy + hz * hz
    if a2 <= COLLINEAR * f2 * g2 or b2 <= COLLINEAR * h2 * g2:
        return 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, fx, fy, fz, gx, gy, gz, hx, hy, hz
    g = math.sqrt(g2)
    x = ax * bx + ay * by + az * bz
    y = -g * (fx * bx + fy * by + fz * bz)  # (B x A).G/|G| = -|G| F.B
    scale, a, b = 1.0 / math.sqrt(x * x + y * y), -g / a2, g / b2
    p, q = (fx * gx + fy * gy + fz * gz) / g2, (hx * gx + hy * gy + hz * gz) / g2
    return x * scale, y * scale, a * ax, a * ay, a * az, b * bx, b * by, b * bz, p, q, fx, fy, fz, gx, gy, gz, hx, hy, hz


@device
def _twist(i: int, s: int, slope: float, t: Torsion, place: Index, want: float, virial: Array, part: Array) -> None:
    """Add the forces of a torsion with dU/dphi = slope, and its virial times `want`."""
    ix, iy, iz = -slope * t[2], -slope * t[3], -slope * t[4]
    lx, ly, lz = -slope * t[5], -slope * t[6], -slope * t[7]
    p, q = t[8], t[9]
    kx, ky, kz = p * ix + (q - 1.0) * lx, p * iy + (q - 1.0) * ly, p * iz + (q - 1.0) * lz
    _add(part, place[s], ix, iy, iz)
    _add(part, place[s + 1], -(ix + kx + lx), -(iy + ky + ly), -(iz + kz + lz))
    _add(part, place[s + 2], kx, ky, kz)
    _add(part, place[s + 3], lx, ly, lz)
    if want != 0.0:  # from r_j: r_i = F, r_k = -G, r_l = H - G
        _virial(virial, i, want * t[10], want * t[11], want * t[12], ix, iy, iz)
        _virial(virial, i, -want * t[13], -want * t[14], -want * t[15], kx + lx, ky + ly, kz + lz)
        _virial(virial, i, want * t[16], want * t[17], want * t[18], lx, ly, lz)


@device
def _fourier(cosine: float, sine: float, parameter: Array, p: int) -> tuple[float, float]:
    """Return U and dU/dphi of U = c0 + sum_n a_n cos(n phi) + b_n sin(n phi)."""
    energy, slope, c, s = parameter[p], 0.0, cosine, sine
    for n in range(1, ORDER + 1):
        a, b = parameter[p + n], parameter[p + ORDER + n]
        energy += a * c + b * s
        slope += n * (b * c - a * s)
        c, s = c * cosine - s * sine, s * cosine + c * sine
    return energy, slope


@device
def _surface(phi: float, psi: float, surface: Array, grid: int) -> tuple[float, float, float]:
    """Return U, dU/dphi and dU/dpsi of a CMAP grid."""
    size = surface.shape[1]
    x, y = (phi + math.pi) / TWO_PI * size, (psi + math.pi) / TWO_PI * size
    i, j = int(x), int(y)  # x, y >= 0
    x, y = x - i, y - j
    i, j = i % size, j % size
    energy, along_x, along_y = 0.0, 0.0, 0.0
    for m in range(3, -1, -1):  # Horner in x of polynomials in y
        c0, c1, c2, c3 = (
            surface[grid, i, j, m, 0],
            surface[grid, i, j, m, 1],
            surface[grid, i, j, m, 2],
            surface[grid, i, j, m, 3],
        )
        row, slope = ((c3 * y + c2) * y + c1) * y + c0, (3.0 * c3 * y + 2.0 * c2) * y + c1
        along_x = along_x * x + energy
        energy = energy * x + row
        along_y = along_y * x + slope
    return energy, along_x * size / TWO_PI, along_y * size / TWO_PI


@device
def _bend(i: int, s: int, k: float, theta0: float, position_n3: Array, box: Array, atom: Index, place: Index, want: float,
          virial: Array, part: Array) -> float:  # fmt: skip
    ux, uy, uz = _apart(position_n3, atom[s], atom[s + 1], box)
    vx, vy, vz = _apart(position_n3, atom[s + 2], atom[s + 1], box)
    nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    n = math.sqrt(nx * nx + ny * ny + nz * nz)
    off = math.atan2(n, ux * vx + uy * vy + uz * vz) - theta0
    u2, v2 = ux * ux + uy * uy + uz * uz, vx * vx + vy * vy + vz * vz
    a, b = -k * off / max(u2 * n, TINY), -k * off / max(v2 * n, TINY)
    ix, iy, iz = a * (uy * nz - uz * ny), a * (uz * nx - ux * nz), a * (ux * ny - uy * nx)
    kx, ky, kz = b * (ny * vz - nz * vy), b * (nz * vx - nx * vz), b * (nx * vy - ny * vx)
    _put(part, place[s], ix, iy, iz)
    _put(part, place[s + 1], -(ix + kx), -(iy + ky), -(iz + kz))
    _put(part, place[s + 2], kx, ky, kz)
    if want != 0.0:
        _virial(virial, i, want * ux, want * uy, want * uz, ix, iy, iz)
        _virial(virial, i, want * vx, want * vy, want * vz, kx, ky, kz)
    return 0.5 * k * off * off


@kernel
def _terms(i: int, position_n3: Array, box: Array, layout: NDArray[np.int64], atom: Index, place: Index, parameter: Array,
           surface: Array, share: Array, wanted: int, energy: Array, virial: Array, part: Array) -> None:  # fmt: skip
    """Write forces of term i, and with `wanted` its energy and virial times its share; `layout` rows: item, slot, parameter."""
    want = share[i] if wanted != 0 else 0.0
    if want != 0.0:
        for c in range(6):
            virial[i, c] = 0.0
    value = 0.0
    if i < layout[1, 0] or i >= layout[5, 0]:
        kind = 0 if i < layout[1, 0] else 5
        k = i - layout[kind, 0]
        s, p = layout[kind, 1] + 2 * k, layout[kind, 2] + (2 if kind == 0 else 3) * k
        x, y, z = _apart(position_n3, atom[s], atom[s + 1], box)
        r2 = max(x * x + y * y + z * z, TINY)
        if kind == 0:
            r = math.sqrt(r2)
            off = r - parameter[p + 1]
            value, f = 0.5 * parameter[p] * off * off, -parameter[p] * off / r
        else:
            r6, coulomb = 1.0 / (r2 * r2 * r2), parameter[p] / math.sqrt(r2)
            repulsion, attraction = parameter[p + 1] * r6 * r6, parameter[p + 2] * r6
            value, f = repulsion - attraction, (12.0 * repulsion - 6.0 * attraction + coulomb) / r2
            if want != 0.0:
                energy[layout[6, 0] + k] = want * coulomb
        _put(part, place[s], f * x, f * y, f * z)
        _put(part, place[s + 1], -f * x, -f * y, -f * z)
        if want != 0.0:
            _virial(virial, i, want * x, want * y, want * z, f * x, f * y, f * z)
    elif i < layout[2, 0]:
        k = i - layout[1, 0]
        s, p = layout[1, 1] + 3 * k, layout[1, 2] + 2 * k
        value = _bend(i, s, parameter[p], parameter[p + 1], position_n3, box, atom, place, want, virial, part)
    else:
        kind = 2 if i < layout[3, 0] else (3 if i < layout[4, 0] else 4)
        size, width = (5 if kind == 4 else 4), (WIDTH if kind == 2 else (2 if kind == 3 else 1))
        k = i - layout[kind, 0]
        s, p = layout[kind, 1] + size * k, layout[kind, 2] + width * k
        for c in range(size):
            _put(part, place[s + c], 0.0, 0.0, 0.0)
        for turn in range(size - 3):
            t = _torsion(position_n3, box, atom, s + turn)
            if kind == 2:
                value, slope = _fourier(t[0], t[1], parameter, p)
            elif kind == 3:
                off = math.atan2(t[1], t[0]) - parameter[p + 1]
                off -= TWO_PI * math.floor(off / TWO_PI + 0.5)
                value, slope = 0.5 * parameter[p] * off * off, parameter[p] * off
            else:
                other = _torsion(position_n3, box, atom, s + 1 - turn)
                phi, psi = math.atan2(t[1], t[0]), math.atan2(other[1], other[0])
                if turn == 0:
                    value, slope, _ = _surface(phi, psi, surface, int(parameter[p]))
                else:
                    value, _, slope = _surface(psi, phi, surface, int(parameter[p]))
            _twist(i, s + turn, slope, t, place, want, virial, part)
    if want != 0.0:
        energy[i] = want * value


@kernel
def _gather(k: int, row: Index, start: Index, part: Array, force_n3: Array) -> None:
    """Add the contributions to atom `row[k]` in their order."""
    x, y, z = 0.0, 0.0, 0.0
    for s in range(start[k], start[k + 1]):
        x += part[s, 0]
        y += part[s, 1]
        z += part[s, 2]
    _add(force_n3, row[k], x, y, z)


class _Tables(NamedTuple):
    """All terms in the order of the kernel: named ranges of items, kinds of code, flat atoms and parameters."""

    ends: list[int]
    layout: NDArray[np.int64]
    atom: Index
    parameter: Array
    size: NDArray[np.int64]


class Bonded:
    """All bonded terms of one rank, as one `Term`.

    Args:
        topology: its index arrays hold rows of the state, owned ones first.
        owned: rows below this are integrated here; all by default.
        total: number of rows; the topology's by default.
        device: see `gewu.core.kernel`.
    Raises:
        InputError: an index out of range, a parameter that is not finite, a multiplicity that is not one of 0..6.
    """

    def __init__(self, topology: Topology, owned: int | None = None, total: int | None = None, *, device: str = "cpu") -> None:
        total = len(topology) if total is None else total
        owned = total if owned is None else owned
        self.device, tables = device, _tables(topology, total)
        self._ends, self._layout, self._atom, self._parameter = tables.ends, tables.layout, tables.atom, tables.parameter
        items, slots = tables.ends[-1], len(tables.atom)
        self._surface = periodic_bicubic(topology.cmap_grids)
        first = np.concatenate([[0], np.cumsum(tables.size)])
        inside = np.concatenate([[0], np.cumsum(tables.atom < owned)])
        self._share = (inside[first[1:]] - inside[first[:-1]]) / np.maximum(tables.size, 1)
        by_atom = csr_array((np.ones(slots, np.int8), tables.atom, np.arange(slots + 1)), shape=(slots, total)).tocsc()
        self._place = np.zeros(slots, np.int32)
        self._place[by_atom.indices] = np.arange(slots, dtype=np.int32)
        self._row = np.flatnonzero(np.diff(by_atom.indptr[: owned + 1])).astype(np.int32)
        self._start = np.append(by_atom.indptr[self._row], by_atom.indptr[owned]).astype(np.int32)
        self._energy = np.zeros(items + len(topology.pairs14.index))
        self._virial, self._part = np.zeros((items, 6)), np.zeros((slots, 3))

    def compute(self, state: State, want: bool) -> Evaluation | None:
        """Add the forces on owned atoms to `state.force_n3`; with `want` return this rank's share of energies and virial."""
        where = (self._layout, self._atom, self._place, self._parameter, self._surface, self._share)
        out = (self._energy, self._virial, self._part)
        _terms.launch(self.device, self._ends[-1], state.position_n3, box_of(state), *where, int(want), *out)
        _gather.launch(self.device, len(self._row), self._row, self._start, self._part, state.force_n3)
        if not want:
            return None
        cuts = [0, *self._ends, len(self._energy)]
        energies = {name: float(self._energy[cuts[m] : cuts[m + 1]].sum()) for m, name in enumerate(NAMES)}
        return Evaluation(energies, symmetric(self._virial.sum(axis=0)))


def _tables(topology: Topology, total: int) -> _Tables:
    """Put all tables behind one another, with parameters as the kernel wants them."""
    for name, terms in topology.tables().items():
        if terms.index.size and not 0 <= terms.index.min() <= terms.index.max() < total:
            raise InputError(f"{name} name atoms that do not exist", value=int(terms.index.max()), allowed=f"0 to {total - 1}")
        if not np.isfinite(terms.parameter).all():
            row = int(np.argwhere(~np.isfinite(terms.parameter))[0, 0])
            raise InputError(
                f"{name} have a parameter that is not finite", key=f"row {row + 1}", value=terms.parameter[row].tolist()
            )
    grid, grids = topology.cmap.parameter, len(topology.cmap_grids)
    if grid.size and not 0 <= grid.min() <= grid.max() < grids:
        raise InputError("cmap names a grid that does not exist", value=float(grid.max()), allowed=f"0 to {grids - 1}")
    charge, sigma, epsilon = topology.pairs14.parameter.T
    pairs = np.stack([COULOMB * charge, 4 * epsilon * sigma**12, 4 * epsilon * sigma**6], axis=1)
    ordered = [
        topology.bonds, topology.urey_bradley, topology.angles, _merged(_fourier_of_dihedrals(topology.dihedrals)),
        _merged(_fourier_of_ryckaert(topology.ryckaert)), topology.impropers, topology.cmap, Terms(topology.pairs14.index, pairs),
    ]  # fmt: skip
    ends = np.cumsum([len(t.index) for t in ordered])
    sizes = [(0, 0, 0), *((len(t.index), t.index.size, t.parameter.size) for t in ordered)]
    before = np.cumsum(np.array(sizes, np.int64), axis=0)
    layout = np.ascontiguousarray(before[[0, 2, 3, 5, 6, 7, 8]])  # one row where the code changes
    return _Tables(
        [int(e) for e in ends],
        layout,
        np.concatenate([t.index.ravel() for t in ordered]).astype(np.int32),
        np.concatenate([t.parameter.ravel() for t in ordered]).astype(np.float64),
        np.concatenate([np.full(len(t.index), t.index.shape[1]) for t in ordered]),
    )


def _fourier_of_dihedrals(terms: Terms) -> Terms:
    """Write k [1 + cos(n phi - phase)] as a row (c0, a_1..a_6, b_1..b_6)."""
    k, phase, order = terms.parameter.T
    bad = np.flatnonzero((order != np.round(order)) | (order < 0) | (order > ORDER))
    if bad.size:
        raise InputError("dihedral with an impossible multiplicity", value=float(order[bad[0]]), allowed=f"0 to {ORDER}")
    series, n, row = np.zeros((len(k), WIDTH)), order.astype(int), np.arange(len(k))
    series[row, n] = k * np.cos(phase)
    series[row, ORDER + n] += np.where(n > 0, k * np.sin(phase), 0.0)
    series[:, 0] += k
    return Terms(terms.index, series)


def _fourier_of_ryckaert(terms: Terms) -> Terms:
    """Write sum_m c_m cos^m(phi - pi) as a Fourier series, by the expansion of powers in Chebyshev polynomials."""
    expansion = np.array([np.pad(np.polynomial.chebyshev.poly2cheb(np.eye(6)[m]), (0, 6))[:6] for m in range(6)])
    series = np.zeros((len(terms.index), WIDTH))
    series[:, :6] = (terms.parameter * (-1.0) ** np.arange(6)) @ expansion
    return Terms(terms.index, series)


def _merged(terms: Terms) -> Terms:
    """Add the rows that follow each other on the same atoms."""
    new = np.flatnonzero(np.append(True, (terms.index[1:] != terms.index[:-1]).any(axis=1))[: len(terms.index)])
    return Terms(terms.index[new], np.add.reduceat(terms.parameter, new) if len(new) else terms.parameter)
