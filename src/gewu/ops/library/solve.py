"""Steps of simulations: scan, 7-point stencil, N bodies, one stage of a fast Fourier transform, tridiagonal systems."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.ops.library.call import Array, fits, floats, launch, loop, narrowed, real, result, symbols, widened, working
from gewu.ops.pool import THREADS
from gewu.ops.python import assign, axes, constant, program, rsqrt, scalar, sizes, total
from gewu.ops.tensor import Program

CHUNK: Final = 64
"""Tridiagonal systems solved side by side."""


@loop
def _part_sums(lo, hi, x, sums):
    parts = sums.shape[1]
    n = x.shape[1]
    for item in range(lo, hi):
        r, p = item // parts, item % parts
        piece, whole = x[r, p * n // parts : (p + 1) * n // parts], x.dtype.type(0)
        for i in range(len(piece)):
            whole += piece[i]
        sums[r, p] = whole


@loop
def _scan(lo, hi, x, y, offsets):
    parts, n = offsets.shape[1], x.shape[1]
    for item in range(lo, hi):
        r, p = item // parts, item % parts
        first, last = p * n // parts, (p + 1) * n // parts
        q = (last - first) // 4
        row, target = x[r, first:last], y[r, first:last]
        a = offsets[r, p]
        b, c, d = x.dtype.type(0), x.dtype.type(0), x.dtype.type(0)
        for i in range(q):
            b += row[i]
            c += row[q + i]
            d += row[2 * q + i]
        b += a
        c += b
        d += c
        for i in range(q):
            a += row[i]
            b += row[q + i]
            c += row[2 * q + i]
            d += row[3 * q + i]
            target[i] = a
            target[q + i] = b
            target[2 * q + i] = c
            target[3 * q + i] = d
        for i in range(4 * q, last - first):
            d += row[i]
            target[i] = d


def scan(x: Any, out: Array | None = None) -> Array:
    """Return the running sum along the last axis."""
    x = floats("scan", "x", x)
    fits("scan", "one axis or more", x.ndim > 0, x)
    out = result("scan", out, x.shape, x.dtype)
    if not x.size:
        return out
    rows, y = widened(x).reshape(-1, x.shape[-1]), working(out)
    parts = 1 if len(rows) >= THREADS or rows.size < 1 << 18 else 4 * THREADS
    offsets = np.zeros((len(rows), parts), rows.dtype)
    if parts > 1:
        sums = np.empty_like(offsets)
        _part_sums(sums.size, x.size, rows, sums)
        np.cumsum(sums[:, :-1], axis=1, out=offsets[:, 1:])
    _scan(offsets.size, 2 * x.size, rows, y.reshape(rows.shape), offsets)
    return narrowed(y, out)


def scan_gradient(dy: Any, x: Any) -> tuple[Array]:
    """Return the cotangent of x: the running sum from the end."""
    return (np.ascontiguousarray(scan(np.asarray(dy)[..., ::-1])[..., ::-1]),)


def stencil_program(kinds: Sequence[str]) -> Program:
    """Build y = x + c times the sum of the six neighbours' differences; 0 outside."""
    nz, ny, nx = sizes("nz ny nx")
    k, j, i = axes(k=nz, j=ny, i=nx)
    x, y = symbols(kinds, (nz, ny, nx), (nz, ny, nx))
    sides = x.at(k - 1, j, i) + x.at(k + 1, j, i) + x.at(k, j - 1, i) + x.at(k, j + 1, i) + x.at(k, j, i - 1) + x.at(k, j, i + 1)
    return program("stencil3d", assign(y[k, j, i], x[k, j, i] + scalar(2, real(*kinds)) * (sides - 6 * x[k, j, i])))


def stencil3d(x: Any, c: float, out: Array | None = None) -> Array:
    """Return one explicit step of diffusion: x + c (sum of six neighbours - 6 x) on a grid (nz, ny, nx), 0 outside."""
    x = floats("stencil3d", "x", x, 3)
    out = result("stencil3d", out, x.shape, x.dtype)
    launch(stencil_program, (x, out), dict(zip(("nz", "ny", "nx"), x.shape, strict=True)), (), (c,))
    return out


def stencil3d_gradient(dy: Any, x: Any, c: float) -> tuple[Array]:
    """Return the cotangent of x: the step is its own adjoint."""
    return (stencil3d(dy, c),)


def nbody_program(kinds: Sequence[str]) -> Program:
    """Build the acceleration of each body, planes x, y, z of (4, n), by masses in the fourth plane."""
    (n,) = sizes("n")
    i, j = axes(i=n, j=n)
    body, a = symbols(kinds, (4, n), (n, 4))
    d = [body[place, j] - body[place, i] for place in range(3)]
    near = rsqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2] + scalar(2, real(*kinds)))
    pull = body[3, j] * near * near * near
    found = [assign(a[i, place], total(pull * d[place], over=j)) for place in range(3)]
    return program("nbody", *found, assign(a[i, 3], constant(0, real(*kinds))))


def nbody(body: Any, eps2: float, out: Array | None = None) -> Array:
    """Return the accelerations (n, 4; the fourth is 0) of bodies (n, 4: x, y, z, mass) by softened gravity.

    a_i = sum over j of m_j (r_j - r_i) / (|r_j - r_i|^2 + eps2)^(3/2), with G = 1.
    """
    body = floats("nbody", "body", body, 2)
    fits("nbody", "(n, 4)", body.shape[1] == 4, body)
    out = result("nbody", out, body.shape, body.dtype)
    launch(nbody_program, (np.ascontiguousarray(body.T), out), {"n": len(body)}, (), (eps2,))
    return out


def fft_program(kinds: Sequence[str], back: bool = False) -> Program:
    """Build a stage of (b, 2 t l, 2): butterflies of elements half the length apart; real and imaginary parts last."""
    b, t, l = sizes("b t l")
    z, m, j = axes(z=b, m=t, j=l)
    x, w, y = symbols(kinds, (b, 2, t, l, 2), (l, 2), (b, t, 2, l, 2))
    re, im = x[z, 1, m, j, 0], x[z, 1, m, j, 1]
    turned = (re * w[j, 0] - im * w[j, 1], re * w[j, 1] + im * w[j, 0])
    found = []
    for part in range(2):
        here = x[z, 0, m, j, part]
        found += [assign(y[z, m, 0, j, part], here + turned[part]), assign(y[z, m, 1, j, part], here - turned[part])]
    return program("fft_stage", *found)


@loop
def _fft_stage(lo, hi, x, w, y):
    l = len(w)
    half = x.shape[1] // 2
    for item in range(lo, hi):
        b, m = item // (half // l), item % (half // l) * l
        low, high, first, second = x[b, m:], x[b, m + half :], y[b, 2 * m :], y[b, 2 * m + l :]
        for j in range(l):
            re = high[j, 0] * w[j, 0] - high[j, 1] * w[j, 1]
            im = high[j, 0] * w[j, 1] + high[j, 1] * w[j, 0]
            first[j, 0] = low[j, 0] + re
            first[j, 1] = low[j, 1] + im
            second[j, 0] = low[j, 0] - re
            second[j, 1] = low[j, 1] - im


@lru_cache(maxsize=32)
def _roots(l: int, dtype: Any) -> Array:
    w = np.exp(-1j * np.pi * np.arange(l) / l)
    return np.stack((w.real, w.imag), axis=-1).astype(dtype)


def fft_stage(x: Any, l: int, out: Array | None = None) -> Array:
    """Return one radix-2 stage (Stockham) of Fourier transforms of x (batch, n, 2), real and imaginary parts last.

    With half = n / 2, k = m l + j and w_j = e^(-i pi j / l): y[2 m l + j] = x[k] + w_j x[k + half], y[2 m l + l + j] minus.
    Stages with l = 1, 2, 4, ..., n / 2 in turn are the transform of length n.
    """
    x = floats("fft_stage", "x", x, 3)
    if x.shape[2] != 2 or l < 1 or x.shape[1] % (2 * l):
        raise InputError("the stage does not fit", key="fft_stage", value=(x.shape, l), allowed="x (batch, n, 2), 2 l dividing n")
    out = result("fft_stage", out, x.shape, x.dtype)
    source, y = widened(x), working(out)
    _fft_stage(x.size // (4 * l), 4 * x.size, source, _roots(l, source.dtype), y)
    return narrowed(y, out)


def fft_stage_gradient(dy: Any, x: Any, l: int) -> tuple[Array]:
    """Return the cotangent of x: the butterflies undone, times 2."""
    dy = floats("fft_stage", "dy", dy, 3)
    b, n, _ = dy.shape
    wide = dy.astype(np.float64).reshape(b, n // (2 * l), 2, l, 2)
    z, w = wide[..., 0] + 1j * wide[..., 1], np.exp(1j * np.pi * np.arange(l) / l)
    both = np.stack((z[:, :, 0] + z[:, :, 1], (z[:, :, 0] - z[:, :, 1]) * w), axis=1).reshape(b, n)
    return (np.stack((both.real, both.imag), axis=-1).astype(dy.dtype),)


@loop
def _tridiagonal(lo, hi, lower, diagonal, upper, right, x):
    n, systems = x.shape
    one, work = x.dtype.type(1), np.empty((n, 64), x.dtype)
    for part in range(lo, hi):
        first, last = part * 64, min(systems, part * 64 + 64)
        d, u, r, above, factors = diagonal[0, first:last], upper[0, first:last], right[0, first:last], x[0, first:last], work[0]
        for s in range(last - first):
            inverse = one / d[s]
            factors[s] = u[s] * inverse
            above[s] = r[s] * inverse
        for i in range(1, n):
            l, d, u, r = lower[i, first:last], diagonal[i, first:last], upper[i, first:last], right[i, first:last]
            above, here, before, factors = x[i - 1, first:last], x[i, first:last], work[i - 1], work[i]
            for s in range(last - first):
                inverse = one / (d[s] - l[s] * before[s])
                factors[s] = u[s] * inverse
                here[s] = (r[s] - l[s] * above[s]) * inverse
        for i in range(n - 2, -1, -1):
            below, here, factors = x[i + 1, first:last], x[i, first:last], work[i]
            for s in range(last - first):
                here[s] -= factors[s] * below[s]


def tridiagonal(lower: Any, diagonal: Any, upper: Any, right: Any, out: Array | None = None) -> Array:
    """Return the solutions x of tridiagonal systems, one in each column: all arrays (n, systems) or (n).

    lower[i] x[i - 1] + diagonal[i] x[i] + upper[i] x[i + 1] = right[i]; lower[0] and upper[n - 1] are not used.  Elimination
    without exchanging rows: diagonals should dominate.
    """
    names = ("lower", "diagonal", "upper", "right")
    sides = [floats("tridiagonal", name, a) for name, a in zip(names, (lower, diagonal, upper, right), strict=True)]
    alike = len({(a.shape, a.dtype) for a in sides}) == 1 and sides[0].ndim in (1, 2) and sides[0].size > 0
    fits("tridiagonal", "four alike (n, systems)", alike, *sides)
    out = result("tridiagonal", out, sides[0].shape, sides[0].dtype)
    x = working(out)
    shape = (len(x), x.size // len(x))
    wide = [widened(a).reshape(shape) for a in sides]
    _tridiagonal(-(-shape[1] // CHUNK), 16 * x.size, *wide, x.reshape(shape))
    return narrowed(x, out)


def tridiagonal_gradient(dy: Any, lower: Any, diagonal: Any, upper: Any, right: Any) -> tuple[Array, Array, Array, Array]:
    """Return the cotangents of all four: solutions of the transposed systems, times those of the systems."""
    x = tridiagonal(lower, diagonal, upper, right)
    down, up = np.zeros_like(x), np.zeros_like(x)
    down[1:], up[:-1] = upper[:-1], lower[1:]
    dright = tridiagonal(down, diagonal, up, dy)
    dlower, dupper = np.zeros_like(x), np.zeros_like(x)
    dlower[1:], dupper[:-1] = -dright[1:] * x[:-1], -dright[:-1] * x[1:]
    return dlower, -dright * x, dupper, dright
