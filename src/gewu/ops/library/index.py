"""Places that depend on data: gather, scatter-add, embedding, histogram, top-k, sort, sparse matrix times vector.

Every index is checked before or while it is used; one that points outside is an InputError, never an access out of bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gewu.core.errors import InputError
from gewu.ops.library.call import (
    GRAIN,
    Array,
    exact_loop,
    fits,
    floats,
    integers,
    launch,
    loop,
    narrowed,
    result,
    symbols,
    widened,
    working,
)
from gewu.ops.pool import THREADS, run_ranges
from gewu.ops.python import assign, axes, program, sizes
from gewu.ops.tensor import Program


def gathering(kinds: Sequence[str]) -> Program:
    """Build y[i] = x[places[i]]."""
    n, t = sizes("n t")
    (i,) = axes(i=n)
    x, places, y = symbols(kinds, (t,), (n,), (n,))
    return program("gather", assign(y[i], x[places[i]]))


def gather(x: Any, places: Any, out: Array | None = None) -> Array:
    """Return x[places] of a vector x.

    Raises:
        InputError: a place outside of x.
    """
    x, places = floats("gather", "x", x, 1), integers("gather", "places", places)
    out = result("gather", out, places.shape, x.dtype)
    launch(gathering, (x, places, out), {"n": places.size, "t": x.size})
    return out


def gather_gradient(dy: Any, x: Any, places: Any) -> tuple[Array]:
    """Return the cotangent of x."""
    dx = np.zeros_like(floats("gather", "x", x))
    scatter_add(np.asarray(dy).reshape(-1, 1), np.asarray(places).ravel(), dx.reshape(-1, 1))
    return (dx,)


def embedding_rows(kinds: Sequence[str]) -> Program:
    """Build y[i, j] = table[words[i], j]."""
    m, n, t = sizes("m n t")
    i, j = axes(i=m, j=n)
    table, words, y = symbols(kinds, (t, n), (m,), (m, n))
    return program("embedding", assign(y[i, j], table[words[i], j]))


@loop
def _copy_rows(lo, hi, table, words, y):
    width = table.shape[1]
    for i in range(lo, hi):
        source, target = table[words[i]], y[i]
        for j in range(width):
            target[j] = source[j]


def embedding(table: Any, words: Any, out: Array | None = None) -> Array:
    """Return the rows of a table (rows, n) that `words` names.

    Raises:
        InputError: a word outside of the table.
    """
    table, words = floats("embedding", "table", table, 2), integers("embedding", "words", words)
    out = result("embedding", out, (*words.shape, table.shape[1]), table.dtype)
    inside("embedding", words, len(table))
    if out.size:
        bits = np.dtype(f"u{table.dtype.itemsize}")
        _copy_rows(words.size, out.size, table.view(bits), words.ravel(), out.reshape(words.size, -1).view(bits))
    return out


def embedding_gradient(dy: Any, table: Any, words: Any) -> tuple[Array]:
    """Return the cotangent of the table."""
    dtable = np.zeros_like(floats("embedding", "table", table))
    return (scatter_add(np.asarray(dy).reshape(-1, dtable.shape[1]), np.asarray(words).ravel(), dtable),)


def inside(operator: str, places: Array, length: int) -> None:
    """Refuse places outside of 0 to length - 1.

    Raises:
        InputError: one is outside.
    """
    if places.size and (places.min() < 0 or places.max() >= length):
        wrong = places[(places < 0) | (places >= length)].ravel()[0]
        raise InputError("an index points outside", key=operator, value=int(wrong), allowed=f"0 to {length - 1}")


@loop
def _scatter(lo, hi, x, places, y, parts):
    table, width = y.shape
    for part in range(lo, hi):
        first, last = part * table // parts, (part + 1) * table // parts
        for row in range(len(places)):
            target = places[row]
            if first <= target < last:
                source, into = x[row], y[target]
                for i in range(width):
                    into[i] += source[i]


def scatter_add(x: Any, places: Any, y: Array) -> Array:
    """Add each row of x (m, n) to row places[m] of y (t, n), in place and in order; return y.

    Each thread owns a part of y, so the result does not depend on their number. Sums of float16 and bfloat16 are rounded once.

    Raises:
        InputError: a place outside of y.
    """
    x, places = floats("scatter_add", "x", x, 2), integers("scatter_add", "places", places, 1)
    shapes = "x (m, n), places (m), y (t, n) of the type of x"
    alike = (
        isinstance(y, np.ndarray)
        and y.ndim == 2
        and places.shape == x.shape[:1]
        and x.shape[1:] == y.shape[1:]
        and x.dtype == y.dtype
    )
    fits("scatter_add", shapes, alike, x, places, np.asarray(y))
    y = result("scatter_add", y, y.shape, x.dtype)
    inside("scatter_add", places, len(y))
    wide = widened(y)
    parts = THREADS if 4 * x.size > GRAIN and x.shape[1] >= 4 else 1
    _scatter(parts, x.size, widened(x), places, wide, parts, pieces=parts)
    return narrowed(wide, y)


def scatter_add_gradient(dy: Any, x: Any, places: Any, y: Any = None) -> tuple[Array, Array]:
    """Return the cotangents of x and of y as it was before."""
    return embedding(dy, places), np.array(dy)


@loop
def _count(lo, hi, x, counts):
    parts, last, n = counts.shape[0], np.uint32(counts.shape[2] - 1), len(x)
    for part in range(lo, hi):
        a, b, c, d = counts[part, 0], counts[part, 1], counts[part, 2], counts[part, 3]
        mine = x[part * n // parts : (part + 1) * n // parts]
        whole = len(mine) // 4
        for i in range(whole):
            a[min(np.uint32(mine[4 * i]), last)] += 1
            b[min(np.uint32(mine[4 * i + 1]), last)] += 1
            c[min(np.uint32(mine[4 * i + 2]), last)] += 1
            d[min(np.uint32(mine[4 * i + 3]), last)] += 1
        for i in range(4 * whole, len(mine)):
            a[min(np.uint32(mine[i]), last)] += 1


def histogram(x: Any, bins: int, out: Array | None = None) -> Array:
    """Return how often each of 0 to bins - 1 occurs in x (int32 or int64), as int32.

    Raises:
        InputError: a number outside.
    """
    x = integers("histogram", "x", x)
    if x.dtype != np.int32:
        inside("histogram", x, bins)
        x = x.astype(np.int32)
    out = result("histogram", out, (bins,), np.int32)
    parts = 1 if 2 * x.size < GRAIN else 2 * THREADS
    counts = np.zeros((parts, 4, bins + 1), np.int32)  # the last one counts what is outside
    _count(parts, x.size, x.ravel(), counts, pieces=parts)
    if counts[:, :, bins].any():
        inside("histogram", x, bins)
    np.sum(counts[:, :, :bins].reshape(4 * parts, bins), axis=0, out=out)
    return out


@loop
def _topk(lo, hi, x, values, places):
    n, k = x.shape[1], values.shape[1]
    lowest, lane = x.dtype.type(-np.inf), np.empty(64, x.dtype)
    for r in range(lo, hi):
        row, best, at, floor = x[r], values[r], places[r], lowest
        if n >= 256 and k <= 32:  # the k-th largest of 64 partial maxima is a bound from below
            lane[:] = row[:64]
            for base in range(64, n - 63, 64):
                piece = row[base : base + 64]
                for l in range(64):
                    lane[l] = piece[l] if piece[l] > lane[l] else lane[l]
            best[:] = lowest
            for l in range(64):
                j = k
                while j > 0 and lane[l] > best[j - 1]:
                    if j < k:
                        best[j] = best[j - 1]
                    j -= 1
                if j < k:
                    best[j] = lane[l]
            floor = best[k - 1]
        filled, bound = 0, floor > lowest
        for start in range(0, n, 32):
            piece = row[start : min(start + 32, n)]
            if bound:
                hits = np.int32(0)
                for i in range(len(piece)):
                    hits += np.int32(piece[i] >= floor)
                if hits == 0:
                    continue
            for i in range(len(piece)):
                v = piece[i]
                if filled == k:
                    if not v > floor:
                        continue
                elif bound and not v >= floor:
                    continue
                else:
                    filled += 1
                j = filled - 1
                while j > 0 and v == v and not best[j - 1] >= v:
                    best[j], at[j] = best[j - 1], at[j - 1]
                    j -= 1
                best[j], at[j] = v, start + i
                if filled == k:
                    floor = best[k - 1] if best[k - 1] == best[k - 1] else lowest


def topk(x: Any, k: int, out: tuple[Array, Array] | None = None) -> tuple[Array, Array]:
    """Return the k largest elements of each row of the last axis in falling order, and their places (int32).

    Of equal elements the first ones count; NaN is below all.
    """
    x = floats("topk", "x", x)
    if not x.ndim or not 1 <= k <= x.shape[-1]:
        raise InputError("k does not fit", key="topk", value=k, allowed=f"1 to {x.shape[-1] if x.ndim else 0}")
    shape = (*x.shape[:-1], k)
    values = result("topk", out[0] if out else None, shape, x.dtype)
    places = result("topk", out[1] if out else None, shape, np.int32)
    wide, found = widened(x).reshape(-1, x.shape[-1]), working(values)
    _topk(len(wide), 8 * wide.size, wide, found.reshape(-1, k), places.reshape(-1, k))
    return narrowed(found, values), places


def topk_gradient(dy: Any, x: Any, k: int) -> tuple[Array]:
    """Return the cotangent of x, from that of the values."""
    dx = np.zeros_like(floats("topk", "x", x))
    np.put_along_axis(dx, topk(x, k)[1].astype(np.int64), np.asarray(dy), -1)
    return (dx,)


def sort(x: Any, out: Array | None = None) -> Array:
    """Return each row of the last axis in rising order, NaN last."""
    x = floats("sort", "x", x)
    fits("sort", "one axis or more", x.ndim > 0, x)
    out = result("sort", out, x.shape, x.dtype)
    source, found = widened(x), working(out)
    rows, target = source.reshape(-1, x.shape[-1]), found.reshape(-1, x.shape[-1])

    def part(lo: int, hi: int) -> None:
        target[lo:hi] = rows[lo:hi]
        target[lo:hi].sort(axis=1)

    if 5 * x.size > GRAIN and len(rows) > 1:
        step = -(-len(rows) // (4 * THREADS))
        run_ranges(part, [(lo, min(lo + step, len(rows))) for lo in range(0, len(rows), step)], THREADS)
    else:
        part(0, len(rows))
    return narrowed(found, out)


def sort_gradient(dy: Any, x: Any) -> tuple[Array]:
    """Return the cotangent of x."""
    x = floats("sort", "x", x)
    dx = np.empty_like(x)
    np.put_along_axis(dx, np.argsort(widened(x), axis=-1, kind="stable"), np.asarray(dy), -1)
    return (dx,)


@exact_loop
def _spmv(lo, hi, start, column, value, x, y, worst):
    last = np.uint32(len(x) - 1)
    zero, top = value.dtype.type(0), np.uint32(0)
    for row in range(lo, hi):
        a, b, c, d = zero, zero, zero, zero
        places, values = column[start[row] : start[row + 1]], value[start[row] : start[row + 1]]
        whole = len(places) // 4
        for i in range(whole):
            p, q = np.uint32(places[4 * i]), np.uint32(places[4 * i + 1])
            r, s = np.uint32(places[4 * i + 2]), np.uint32(places[4 * i + 3])
            top = max(top, max(max(p, q), max(r, s)))
            a += values[4 * i] * x[min(p, last)]
            b += values[4 * i + 1] * x[min(q, last)]
            c += values[4 * i + 2] * x[min(r, last)]
            d += values[4 * i + 3] * x[min(s, last)]
        for i in range(4 * whole, len(places)):
            p = np.uint32(places[i])
            top = max(top, p)
            a += values[i] * x[min(p, last)]
        y[row] = (a + b) + (c + d)
    if top > last:
        worst[0] = top


def spmv(start: Any, column: Any, value: Any, x: Any, out: Array | None = None) -> Array:
    """Return a sparse matrix times a vector x (columns).

    Args:
        start: (rows + 1) int32, where each row starts in `column` and `value` (compressed rows).
        column: int32 place of each element.
        value: each element.
        x: the vector.
        out: where to write (rows).

    Raises:
        InputError: rows that do not lie in order, or a column outside of x.
    """
    start, column = integers("spmv", "start", start, 1), integers("spmv", "column", column, 1)
    value, x = floats("spmv", "value", value, 1), floats("spmv", "x", x, 1)
    ordered = len(start) > 0 and start[0] == 0 and start[-1] == len(column) == len(value) and not np.any(start[1:] < start[:-1])
    fits(
        "spmv",
        "start (rows + 1) rising from 0 to the number of elements, column and value alike",
        bool(ordered),
        start,
        column,
        value,
    )
    fits("spmv", "x not empty, of the type of value", len(x) > 0 and x.dtype == value.dtype, x, value)
    out = result("spmv", out, (len(start) - 1,), x.dtype)
    y, worst = working(out), np.zeros(1, np.int64)
    _spmv(len(out), 6 * len(value), start, column.astype(np.int32, copy=False), widened(value), widened(x), y, worst)
    if worst[0]:
        inside("spmv", column, len(x))
    return narrowed(y, out)


def spmv_gradient(dy: Any, start: Any, column: Any, value: Any, x: Any) -> tuple[Array, Array]:
    """Return the cotangents of value and x."""
    row = np.repeat(np.arange(len(start) - 1), np.diff(start))
    along, at = np.asarray(dy)[row], np.asarray(column)
    dx = np.zeros(len(x), np.float64)
    np.add.at(dx, at, (value * along).astype(np.float64))
    return (along * np.asarray(x)[at]).astype(value.dtype), dx.astype(x.dtype)
