"""Elements moved: transpose, concat, pad, im2col, and bilinear resize."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from gewu.core.errors import InputError
from gewu.ops.library.call import Array, fits, floats, launch, loop, narrowed, real, result, symbols, widened, working
from gewu.ops.library.linear import contract
from gewu.ops.python import assign, axes, program, scalar, sizes
from gewu.ops.sizes import Size
from gewu.ops.tensor import Program


def transposition(kinds: Sequence[str]) -> Program:
    """Build y[z, j, i] = x[z, i, j]."""
    m, n, s = sizes("m n s")
    z, j, i = axes(z=s, j=n, i=m)
    x, y = symbols(kinds, (s, m, n), (s, n, m))
    return program("transpose", assign(y[z, j, i], x[z, i, j]))


def transpose(x: Any, out: Array | None = None) -> Array:
    """Return x with its last two axes exchanged, in new memory."""
    x = floats("transpose", "x", x)
    fits("transpose", "two axes or more", x.ndim >= 2, x)
    *batch, m, n = x.shape
    out = result("transpose", out, (*batch, n, m), x.dtype)
    launch(transposition, (x, out), {"s": prod(batch), "m": m, "n": n})
    return out


def transpose_gradient(dy: Any, x: Any) -> tuple[Array]:
    """Return the cotangent of x."""
    return (transpose(dy),)


def concatenation(kinds: Sequence[str]) -> Program:
    """Build rows of a followed by rows of b."""
    m, n, s = sizes("m n s")
    i, j, k = axes(i=m, j=n, k=s)
    a, b, y = symbols(kinds, (m, n), (m, s), (m, n + s))
    return program("concat", assign(y[i, j], a[i, j]), assign(y[i, k + n], b[i, k]))


@loop
def _join(lo, hi, a, b, y):
    n = a.shape[1]
    for r in range(lo, hi):
        first, second, target, rest = a[r], b[r], y[r, :n], y[r, n:]
        for i in range(len(first)):
            target[i] = first[i]
        for i in range(len(second)):
            rest[i] = second[i]


def concat(a: Any, b: Any, axis: int = -1, out: Array | None = None) -> Array:
    """Return a followed by b along an axis."""
    a, b = floats("concat", "a", a), floats("concat", "b", b)
    alike = a.ndim == b.ndim > 0 and a.dtype == b.dtype and -a.ndim <= axis < a.ndim
    place = axis % max(a.ndim, 1)
    alike = alike and a.shape[:place] + a.shape[place + 1 :] == b.shape[:place] + b.shape[place + 1 :]
    fits("concat", f"equal types, and shapes but for axis {axis}", alike, a, b)
    shape = (*a.shape[:place], a.shape[place] + b.shape[place], *a.shape[place + 1 :])
    out = result("concat", out, shape, a.dtype)
    rows, bits = prod(a.shape[:place]), np.dtype(f"u{a.dtype.itemsize}")
    if out.size:
        _join(rows, out.size, *(v.view(bits).reshape(rows, -1) for v in (a, b, out)))
    return out


def concat_gradient(dy: Any, a: Any, b: Any, axis: int = -1) -> tuple[Array, Array]:
    """Return the cotangents of a and b."""
    parts = np.split(np.asarray(dy), [np.asarray(a).shape[axis]], axis)
    return np.ascontiguousarray(parts[0]), np.ascontiguousarray(parts[1])


def padding(kinds: Sequence[str], before: tuple[int, ...], after: tuple[int, ...]) -> Program:
    """Build x with a rim of value around: the inside is copied, each slab of the rim is filled."""
    rank = len(before)
    extents = sizes(" ".join(f"n{d}" for d in range(rank)))
    whole = tuple(n + Size.of(b + a) for n, b, a in zip(extents, before, after, strict=True))
    x, y = symbols(kinds, extents, whole)
    value = scalar(2, real(*kinds))
    inside = axes(**{f"i{d}": n for d, n in enumerate(extents)})
    found = [assign(y[tuple(i + b for i, b in zip(inside, before, strict=True))], x[inside])]
    for d in range(rank):
        for width, start in ((before[d], Size()), (after[d], extents[d] + Size.of(before[d]))):
            if width:
                spans = (*extents[:d], Size.of(width), *whole[d + 1 :])
                slab = axes(**{f"i{k}": n for k, n in enumerate(spans)})
                shift = (*(Size.of(b) for b in before[:d]), start, *(Size() for _ in whole[d + 1 :]))
                found.append(assign(y[tuple(i + s for i, s in zip(slab, shift, strict=True))], value))
    return program("pad", *found)


def pad(x: Any, width: int | Sequence[tuple[int, int]], value: float = 0.0, out: Array | None = None) -> Array:
    """Return x with `value` around it.

    Args:
        x: any shape.
        width: elements on both sides of the last two axes, or (before, after) for each axis.
        value: what is put around.
        out: where to write.
    """
    x = floats("pad", "x", x)
    pairs = [(0, 0)] * (x.ndim - 2) + [(width, width)] * min(x.ndim, 2) if isinstance(width, int) else [tuple(p) for p in width]
    if len(pairs) != x.ndim or any(len(p) != 2 or min(p) < 0 for p in pairs) or not x.ndim:
        raise InputError(
            "width does not fit", key="pad", value=width, allowed=f"a number, or (before, after) for each of {x.shape}"
        )
    shape = tuple(n + b + a for n, (b, a) in zip(x.shape, pairs, strict=True))
    out = result("pad", out, shape, x.dtype)
    plain = 0  # leading axes without a rim are one
    while plain < x.ndim - 1 and pairs[plain] == (0, 0):
        plain += 1
    joined = (prod(x.shape[:plain]), *x.shape[plain:])
    rims = [(0, 0), *pairs[plain:]]
    static = (tuple(b for b, _ in rims), tuple(a for _, a in rims))
    launch(padding, (x, out), {f"n{d}": n for d, n in enumerate(joined)}, static, (value,))
    return out


def pad_gradient(dy: Any, x: Any, width: int | Sequence[tuple[int, int]], value: float = 0.0) -> tuple[Array]:
    """Return the cotangent of x: the inside of dy."""
    x = np.asarray(x)
    pairs = [(0, 0)] * (x.ndim - 2) + [(width, width)] * min(x.ndim, 2) if isinstance(width, int) else width
    return (np.ascontiguousarray(dy[tuple(slice(b, b + n) for n, (b, _) in zip(x.shape, pairs, strict=True))]),)


def windows_program(kinds: Sequence[str], taps: int, rim: int) -> Program:
    """Build y[c, i, j, p, q] = x[c, p + i - rim, q + j - rim], 0 outside."""
    c, h, w, u, v = sizes("c h w u v")
    d, s, t, p, q = axes(d=c, s=taps, t=taps, p=u, q=v)
    x, y = symbols(kinds, (c, h, w), (c, taps, taps, u, v))
    return program("im2col", assign(y[d, s, t, p, q], x.at(d, p + s - rim, q + t - rim)))


def im2col(x: Any, taps: int, padding: int = 0, out: Array | None = None) -> Array:
    """Return all windows of x (c, h, w) as (c, taps, taps, places, places), zeros outside."""
    x = floats("im2col", "x", x, 3)
    places = [n + 2 * padding - taps + 1 for n in x.shape[1:]]
    if taps < 1 or padding < 0 or min(places) < 1:
        raise InputError("the window does not fit", key="im2col", value=(taps, padding), allowed=f"taps in {x.shape[1:]}")
    out = result("im2col", out, (len(x), taps, taps, *places), x.dtype)
    extents = {"c": len(x), "h": x.shape[1], "w": x.shape[2], "u": places[0], "v": places[1]}
    launch(windows_program, (x, out), extents, (taps, padding))
    return out


def im2col_gradient(dy: Any, x: Any, taps: int, padding: int = 0) -> tuple[Array]:
    """Return the cotangent of x: windows added where they came from."""
    dy, x = np.asarray(dy), np.asarray(x)
    u, v = dy.shape[3:]
    whole = np.zeros((len(x), x.shape[1] + 2 * padding, x.shape[2] + 2 * padding), np.float64)
    for i in range(taps):
        for j in range(taps):
            whole[:, i : i + u, j : j + v] += dy[:, i, j].astype(np.float64)
    return (whole[:, padding : padding + x.shape[1], padding : padding + x.shape[2]].astype(x.dtype),)


@lru_cache(maxsize=64)
def _between(length: int, places: int) -> tuple[Array, Array, Array]:
    """Return for each new place the two old ones around it (centres aligned, edges repeated) and the share of the second."""
    at = np.maximum((np.arange(places) + 0.5) * length / places - 0.5, 0)
    low = np.minimum(at.astype(np.int64), length - 1)
    return low.astype(np.uint32), np.minimum(low + 1, length - 1).astype(np.uint32), at - low


@loop
def _resize(lo, hi, x, y, top, bottom, down, left, right, across):
    rows, width, columns = y.shape[1], x.shape[2], y.shape[2]
    line = np.empty(width, x.dtype)
    for item in range(lo, hi):
        p, r = item // rows, item % rows
        a, b, s, target = x[p, top[r]], x[p, bottom[r]], down[r], y[p, r]
        for c in range(width):
            line[c] = a[c] + s * (b[c] - a[c])
        for c in range(columns):
            first = line[left[c]]
            target[c] = first + across[c] * (line[right[c]] - first)


@loop
def _double(lo, hi, x, y):
    height, width = x.shape[1:]
    near, far = x.dtype.type(0.75), x.dtype.type(0.25)
    line = np.empty(width, x.dtype)
    for item in range(lo, hi):
        p, r = item // (2 * height), item % (2 * height)
        here, other = r // 2, min(max(r // 2 + 2 * (r % 2) - 1, 0), height - 1)
        a, b, target = x[p, here], x[p, other], y[p, r]
        for c in range(width):
            line[c] = near * a[c] + far * b[c]
        target[0], target[2 * width - 1] = line[0], line[width - 1]
        for c in range(width - 1):
            target[2 * c + 1] = near * line[c] + far * line[c + 1]
            target[2 * c + 2] = far * line[c] + near * line[c + 1]


def resize(x: Any, rows: int, columns: int, out: Array | None = None) -> Array:
    """Return images x (..., h, w) at rows × columns places, bilinear between pixel centres, edges repeated."""
    x = floats("resize", "x", x)
    if x.ndim < 2 or not x.size or rows < 1 or columns < 1:
        raise InputError("an image and a size are needed", key="resize", value=(x.shape, rows, columns))
    h, w = x.shape[-2:]
    out = result("resize", out, (*x.shape[:-2], rows, columns), x.dtype)
    images, y = widened(x).reshape(-1, h, w), working(out)
    target = y.reshape(-1, rows, columns)
    if (rows, columns) == (2 * h, 2 * w):
        _double(len(images) * rows, y.size, images, target)
    else:
        (top, bottom, down), (left, right, across) = _between(h, rows), _between(w, columns)
        shares = (down.astype(images.dtype), across.astype(images.dtype))
        _resize(len(images) * rows, y.size, images, target, top, bottom, shares[0], left, right, shares[1])
    return narrowed(y, out)


def resize_gradient(dy: Any, x: Any, rows: int, columns: int) -> tuple[Array]:
    """Return the cotangent of x: the transposed interpolation, as two products."""
    x, dy = floats("resize", "x", x), floats("resize", "dy", dy)
    sides = []
    for length, places in zip(x.shape[-2:], (rows, columns), strict=True):
        low, high, share = _between(length, places)
        side = np.zeros((places, length))
        np.add.at(side, (np.arange(places), low), 1 - share)
        np.add.at(side, (np.arange(places), high), share)
        sides.append(side.astype(x.dtype))
    half = contract("resize", "zpq,ph->zhq", dy.reshape(-1, rows, columns), sides[0])
    return (contract("resize", "zhq,qw->zhw", half, sides[1]).reshape(x.shape),)
