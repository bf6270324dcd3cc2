"""The hot loops of the embedded-atom term on CPUs: sixteen neighbours at a time in mixed precision, eight in double.

Double precision evaluates the local cubics of `eam` in r.  Mixed precision tabulates, from the same cubics, rho and phi, and
(d phi / dr) / r and (d rho / dr) / r, on 4096 equal intervals of r^2, as straight lines through the Gauss points of each interval
(error about 1e-6, mean zero), so that a pair needs neither root nor division.  Differences of positions are exact (fixed point),
sums over one atom's neighbours are float32; F, energies and sums over atoms are float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gewu.core.device import load_numba
from gewu.physics.md.state import Array

load_numba()
from numba import njit, prange  # noqa: E402

from gewu.core.lanes import (  # noqa: E402
    LANES,
    as_real,
    at_most,
    coefficients,
    keep,
    neighbours,
    pick,
    real,
    root,
    spread,
    total,
    whole,
)
from gewu.core.vector import stamped  # noqa: E402

INTERVALS = 4096
_GAUSS = 0.5 / math.sqrt(3.0)
_LONG_LANES = 8
_NEAREST = 1e-12  # nm^2: padding, the atom itself


@njit(parallel=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
@stamped
def density_mixed(
    x_n4: Any, own_n: Any, count: Any, items: Any, box: Any, several: bool, table: Any, rho: Any, pair: Any
) -> None:
    """`eam_density` for sixteen neighbours at a time; the fourth column of `x_n4` is the element's place in the table."""
    for i in prange(len(count)):
        if count[i] == 0:
            rho[i], pair[i] = 0.0, 0.0
            continue
        xi, yi, zi = spread(x_n4[i, 0]), spread(x_n4[i, 1]), spread(x_n4[i, 2])
        ax, bx, by, cx, cy, cz = _vectors(box)
        base, last = spread(own_n[i]), spread(np.int32(INTERVALS))
        sum_rho = sum_phi = spread(np.float32(0.0))
        row = items[i]
        for k in range(0, count[i], LANES):
            xj, yj, zj, place = neighbours(x_n4, row, k)
            a, b, c = real(xj - xi), real(yj - yi), real(zj - zi)
            dx, dy, dz = a * ax + b * bx + c * cx, b * by + c * cy, c * cz
            square = dx * dx + dy * dy + dz * dz
            interval = at_most(whole(square), last)
            p = square - real(interval)
            if several:
                interval = interval + base + place
            rho0, rho1, phi0, phi1 = coefficients(table, interval)
            sum_rho = sum_rho + (rho0 + p * rho1)
            sum_phi = sum_phi + (phi0 + p * phi1)
        rho[i] = total(sum_rho)
        pair[i] = 0.5 * total(sum_phi)


@njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _vectors(box: Any) -> Any:
    return spread(box[0, 0]), spread(box[1, 0]), spread(box[1, 1]), spread(box[2, 0]), spread(box[2, 1]), spread(box[2, 2])


@njit(parallel=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
@stamped
def force_mixed(  # type: ignore[no-untyped-def]
    x_n4, slope_n, offset_n, own_n, count, items, box, unit, several, want, table, order, force, virial
):
    """`eam_force` for sixteen neighbours at a time; the fourth column of `x_n4` holds the bits of F' as float32."""
    for i in prange(len(count)):
        if count[i] == 0:
            continue
        xi, yi, zi, slope_i = spread(x_n4[i, 0]), spread(x_n4[i, 1]), spread(x_n4[i, 2]), spread(np.float32(slope_n[i]))
        ax, bx, by, cx, cy, cz = _vectors(box)
        base, across, last = spread(own_n[i]), spread(offset_n[i]), spread(np.int32(INTERVALS))
        fx = fy = fz = xx = yy = zz = yz = xz = xy = spread(np.float32(0.0))
        row = items[i]
        for k in range(0, count[i], LANES):
            xj, yj, zj, bits = neighbours(x_n4, row, k)
            a, b, c = real(xj - xi), real(yj - yi), real(zj - zi)
            dx, dy, dz = a * ax + b * bx + c * cx, b * by + c * cy, c * cz
            square = dx * dx + dy * dy + dz * dz
            interval = at_most(whole(square), last)
            p = square - real(interval)
            if several:
                phi0, phi1, here0, here1 = coefficients(table, interval + base + pick(offset_n, row, k))
                other = coefficients(table, interval + across + pick(own_n, row, k))
                s = (phi0 + p * phi1) + slope_i * (here0 + p * here1) + as_real(bits) * (other[2] + p * other[3])
            else:
                phi0, phi1, here0, here1 = coefficients(table, interval)
                s = (phi0 + p * phi1) + (slope_i + as_real(bits)) * (here0 + p * here1)
            fx, fy, fz = fx + s * dx, fy + s * dy, fz + s * dz
            if want:
                xx, yy, zz = xx + s * dx * dx, yy + s * dy * dy, zz + s * dz * dz
                yz, xz, xy = yz + s * dy * dz, xz + s * dx * dz, xy + s * dx * dy
        at = order[i]
        force[at, 0] += unit * total(fx)
        force[at, 1] += unit * total(fy)
        force[at, 2] += unit * total(fz)
        if want:
            half = -0.5 * unit * unit
            virial[i, 0], virial[i, 1], virial[i, 2] = half * total(xx), half * total(xy), half * total(xz)
            virial[i, 3], virial[i, 4], virial[i, 5] = half * total(yy), half * total(yz), half * total(zz)


@njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _interval(r: Any, per_step: Any, last: Any) -> Any:
    """Return the grid interval of r and the place in it, 0 to 1."""
    t = r * per_step
    m = at_most(whole(t), last)
    return m, at_most(t - real(m), spread(1.0))


@njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _cubic(c: Any, p: Any) -> Any:
    return c[0] + p * (c[1] + p * (c[2] + p * c[3]))


@njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _slope(c: Any, p: Any) -> Any:
    return c[1] + p * (c[2] + c[2] + p * (c[3] * spread(3.0)))


@njit(parallel=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
@stamped
def density_double(  # type: ignore[no-untyped-def]
    x_n4, own_n, count, items, box, cutoff, d_r, n_r, want, density, r_phi, rho, pair
):
    """`eam_density` for eight neighbours at a time, pair energies only where wanted; columns and places as in `density_mixed`."""
    for i in prange(len(count)):
        xi, yi, zi = spread(x_n4[i, 0]), spread(x_n4[i, 1]), spread(x_n4[i, 2])
        ax, bx, by, cx, cy, cz = _vectors(box)
        base, last, per_step = spread(own_n[i]), spread(np.int64(n_r - 2)), spread(1.0 / d_r)
        low, high = spread(_NEAREST), spread(cutoff * cutoff)
        sum_rho = sum_phi = spread(0.0)
        row = items[i]
        for k in range(0, count[i], _LONG_LANES):
            xj, yj, zj, place = neighbours(x_n4, row, k)
            a, b, c = real(xj - xi), real(yj - yi), real(zj - zi)
            dx, dy, dz = a * ax + b * bx + c * cx, b * by + c * cy, c * cz
            square = dx * dx + dy * dy + dz * dz
            r = root(square)
            m, p = _interval(r, per_step, last)
            m = m + base + place
            sum_rho = sum_rho + keep(square, low, high, _cubic(coefficients(density, m), p))
            if want:
                sum_phi = sum_phi + keep(square, low, high, _cubic(coefficients(r_phi, m), p) / r)
        rho[i] = total(sum_rho)
        pair[i] = 0.5 * total(sum_phi)


@njit(parallel=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
@stamped
def force_double(  # type: ignore[no-untyped-def]
    x_n4, slope_n, offset_n, own_n, count, items, box, cutoff, d_r, n_r, several, want, density, r_phi, order, force, virial
):
    """`eam_force` for eight neighbours at a time; the fourth column of `x_n4` holds the bits of F'."""
    for i in prange(len(count)):
        if count[i] == 0:
            continue
        xi, yi, zi, slope_i = spread(x_n4[i, 0]), spread(x_n4[i, 1]), spread(x_n4[i, 2]), spread(slope_n[i])
        ax, bx, by, cx, cy, cz = _vectors(box)
        base, across, last, per_step = spread(own_n[i]), spread(offset_n[i]), spread(np.int64(n_r - 2)), spread(1.0 / d_r)
        low, high, one = spread(_NEAREST), spread(cutoff * cutoff), spread(1.0)
        fx = fy = fz = xx = yy = zz = yz = xz = xy = spread(0.0)
        row = items[i]
        for k in range(0, count[i], _LONG_LANES):
            xj, yj, zj, bits = neighbours(x_n4, row, k)
            a, b, c = real(xj - xi), real(yj - yi), real(zj - zi)
            dx, dy, dz = a * ax + b * bx + c * cx, b * by + c * cy, c * cz
            square = dx * dx + dy * dy + dz * dz
            r = root(square)
            m, p = _interval(r, per_step, last)
            slope_j = as_real(bits)
            if several:
                there = m + across + pick(own_n, row, k)
                m = m + base + pick(offset_n, row, k)
                change = slope_i * _slope(coefficients(density, m), p) + slope_j * _slope(coefficients(density, there), p)
            else:
                change = (slope_i + slope_j) * _slope(coefficients(density, m), p)
            z = coefficients(r_phi, m)
            inverse = one / r
            s = ((_slope(z, p) * inverse + change) * per_step - _cubic(z, p) * inverse * inverse) * inverse
            s = keep(square, low, high, s)
            fx, fy, fz = fx + s * dx, fy + s * dy, fz + s * dz
            if want:
                xx, yy, zz = xx + s * dx * dx, yy + s * dy * dy, zz + s * dz * dz
                yz, xz, xy = yz + s * dy * dz, xz + s * dx * dz, xy + s * dx * dy
        at = order[i]
        force[at, 0] += total(fx)
        force[at, 1] += total(fy)
        force[at, 2] += total(fz)
        if want:
            virial[i, 0], virial[i, 1], virial[i, 2] = -0.5 * total(xx), -0.5 * total(xy), -0.5 * total(xz)
            virial[i, 3], virial[i, 4], virial[i, 5] = -0.5 * total(yy), -0.5 * total(yz), -0.5 * total(zz)


def _lines(value_xg: Array) -> tuple[Array, Array]:
    """Return intercepts and slopes (..., intervals) of the lines through values at the two Gauss points of each interval."""
    slope = (value_xg[..., 1] - value_xg[..., 0]) / (2.0 * _GAUSS)
    return 0.5 * (value_xg[..., 0] + value_xg[..., 1]) - 0.5 * slope, slope


def _evaluate(table: Array, t: Array) -> tuple[Array, Array]:
    """Evaluate every (e, e) curve of local cubics, and its slope per interval, at the places t."""
    m = np.minimum(t.astype(np.int64), table.shape[2] - 2)
    p = np.minimum(t - m, 1.0)
    c = np.moveaxis(table[:, :, m], -1, 0)
    return c[0] + p * (c[1] + p * (c[2] + p * c[3])), c[1] + p * (2.0 * c[2] + p * 3.0 * c[3])


def float_tables(density: Array, r_phi: Array, d_r: float, cutoff: float) -> tuple[Any, Any]:
    """Return the rows (e e (intervals + 1), 4) of the mixed kernels, [own element, neighbour's element, interval].

    Interval 0 (closer than cutoff / 64, where no atoms are) and the one beyond the cutoff are zero: padding and far pairs add
    nothing, without a test.
    """
    e = len(density)
    k = np.arange(INTERVALS)[:, None] + 0.5 + np.array([-_GAUSS, _GAUSS])
    r = cutoff * np.sqrt(k / INTERVALS)
    rho, d_rho = _evaluate(density.swapaxes(0, 1), r / d_r)
    z, d_z = _evaluate(r_phi, r / d_r)
    phi, d_phi = z / r, (d_z / d_r - z / r) / r
    tables = []
    for first, second in ((rho, phi), (d_phi / r, d_rho / d_r / r)):
        rows = np.zeros((e, e, INTERVALS + 1, 4), np.float32)
        rows[:, :, 1:-1] = np.stack((*_lines(first), *_lines(second)), axis=-1)[:, :, 1:]
        tables.append(rows.reshape(-1, 4))
    return tables[0], tables[1]
