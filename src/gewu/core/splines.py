"""Piecewise polynomials on regular grids: local cubics of tables, periodic bicubic splines, cardinal B-splines."""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial import polynomial
from numpy.typing import NDArray

from gewu.core.device import device
from gewu.core.mesh import row_length

Array = NDArray[np.float64]


def local_cubic(values: Array) -> Array:
    """Return the coefficients (..., n, 4) of 1, p, p^2, p^3 between neighbouring points of a grid, p = 0 to 1.

    Slopes at the points are five-point differences, three-point and one-sided ones at the ends; the last row is a straight line.
    """
    f = np.asarray(values, np.float64)
    slope = np.empty_like(f)
    slope[..., 2:-2] = (f[..., :-4] - f[..., 4:] + 8.0 * (f[..., 3:-1] - f[..., 1:-3])) / 12.0
    slope[..., 1], slope[..., -2] = 0.5 * (f[..., 2] - f[..., 0]), 0.5 * (f[..., -1] - f[..., -3])
    slope[..., 0], slope[..., -1] = f[..., 1] - f[..., 0], f[..., -1] - f[..., -2]
    out = np.zeros((*f.shape, 4))
    rise = f[..., 1:] - f[..., :-1]
    out[..., 0], out[..., 1] = f, slope
    out[..., :-1, 2] = 3.0 * rise - 2.0 * slope[..., :-1] - slope[..., 1:]
    out[..., :-1, 3] = slope[..., :-1] + slope[..., 1:] - 2.0 * rise
    return out


@device
def cubic(table: Array, a: int, b: int, t: float) -> tuple[float, float]:
    """Return value and slope (per interval) of the local cubics table[a, b] at t intervals; constant beyond the end."""
    m = min(int(t), table.shape[2] - 2)
    p = min(t - m, 1.0)
    c1, c2, c3 = table[a, b, m, 1], table[a, b, m, 2], table[a, b, m, 3]
    return table[a, b, m, 0] + p * (c1 + p * (c2 + p * c3)), c1 + p * (2.0 * c2 + p * 3.0 * c3)


def periodic_bicubic(grid_gkk: Array) -> Array:
    """Return the coefficients of the periodic bicubic splines through values on K x K points of a torus.

    Args:
        grid_gkk: (g, K, K) any number of grids.
    Returns:
        (g, K, K, 4, 4): U = sum_mn c_mn x^m y^n with x, y in [0, 1) across the cell.
    """
    f = np.asarray(grid_gkk, np.float64)
    f_x, f_y = _knot_slopes(f, 1), _knot_slopes(f, 2)
    f_xy = _knot_slopes(f_x, 2)
    corners = [np.stack([np.roll(v, -k, 1) for v in (f, f_x) for k in (0, 1)], -1) for f, f_x in ((f, f_x), (f_y, f_xy))]
    values = np.stack([np.roll(c, -k, 2) for c in corners for k in (0, 1)], -1)  # (..., ends and slopes in x, the same in y)
    hermite = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [-3, 3, -2, -1], [2, -2, 1, 1]], np.float64)
    return np.ascontiguousarray(hermite @ values @ hermite.T)


def _knot_slopes(f: Array, axis: int) -> Array:
    """Return the derivatives (per knot) of the periodic cubic spline: d_{i-1} + 4 d_i + d_{i+1} = 3 (f_{i+1} - f_{i-1})."""
    size = f.shape[axis]
    w = 2 * math.pi * np.fft.fftfreq(size)
    symbol = 6j * np.sin(w) / (4 + 2 * np.cos(w))
    shape = [size if a == axis else 1 for a in range(f.ndim)]
    return np.asarray(np.fft.ifft(np.fft.fft(f, axis=axis) * symbol.reshape(shape), axis=axis).real)


def b_spline_table(order: int) -> Array:
    """Return the weights of cardinal B-splines on `order` points around a place, and their derivatives, in powers of u.

    Shape (2 order - 1, row_length(order)); u is the distance from the middle between two points, weight k that of the point
    k behind the one below.
    Row m < order: coefficient of u^m of weight k; row order + m: of its derivative.
    """
    pieces = [np.ones(1)]  # M_n(w + j) for 0 <= w < 1 and piece j, in powers of w
    for n in range(2, order + 1):
        old = [np.zeros(1), *pieces, np.zeros(1)]
        rising = [polynomial.polymul([j, 1.0], old[j + 1]) for j in range(n)]
        falling = [polynomial.polymul([n - j, -1.0], old[j]) for j in range(n)]
        pieces = [polynomial.polyadd(r, f) / (n - 1) for r, f in zip(rising, falling, strict=True)]
    table = np.zeros((2 * order - 1, row_length(order)))
    for k, piece in enumerate(reversed(pieces)):
        centred = np.zeros(order)
        for power, c in enumerate(piece):
            centred[: power + 1] += c * polynomial.polypow([0.5, 1.0], power)
        table[:order, k] = centred
        table[order:, k] = polynomial.polyder(centred)
    return table
