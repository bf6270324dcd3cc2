"""One number of many: sum, max, argmax, norm and logsumexp along one axis, or of all elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from gewu.core.errors import InputError
from gewu.ops.library.call import GRAIN, Array, Builder, floats, launch, result, symbols
from gewu.ops.pool import THREADS, run_ranges
from gewu.ops.python import Array as Symbol
from gewu.ops.python import (
    Axis,
    Value,
    assign,
    axes,
    exp,
    index,
    is_nan,
    largest,
    log,
    program,
    sizes,
    smallest,
    sqrt,
    total,
    where,
)
from gewu.ops.tensor import Program

Row = Callable[[Axis], Value]


def _sum(x: Row, k: Axis) -> Value:
    return total(x(k), over=k)


def _max(x: Row, k: Axis) -> Value:
    return largest(x(k), over=k)


def _argmax(x: Row, k: Axis) -> Value:
    most, end = largest(x(k), over=k), index(0 * k + k.size)
    unordered = smallest(where(is_nan(x(k)), index(k), end), over=k)
    place = smallest(where(x(k) >= most, index(k), index(0 * k + k.size - 1)), over=k)
    return where(unordered < end, unordered, place)


def _norm(x: Row, k: Axis) -> Value:
    return sqrt(total(x(k) * x(k), over=k))


def _logsumexp(x: Row, k: Axis) -> Value:
    most = largest(x(k), over=k)
    return most + log(total(exp(x(k) - most), over=k))


def _sum_slope(x: Row, j: Axis, k: Axis, dy: Value) -> Value:
    return dy


def _max_slope(x: Row, j: Axis, k: Axis, dy: Value) -> Value:
    most = largest(x(k), over=k)
    ties = total(where(x(k) >= most, x(k) * 0 + 1, 0), over=k)
    return where(x(j) >= most, dy / ties, 0)


def _norm_slope(x: Row, j: Axis, k: Axis, dy: Value) -> Value:
    return dy * x(j) / sqrt(total(x(k) * x(k), over=k))


def _logsumexp_slope(x: Row, j: Axis, k: Axis, dy: Value) -> Value:
    most = largest(x(k), over=k)
    return dy * exp(x(j) - most) / total(exp(x(k) - most), over=k)


def rows(operator: str, a: Array, axis: int | None) -> tuple[tuple[int, ...], dict[str, int], bool]:
    """Return the shape without an axis (None: without all), its sizes m, n, s before, along and after it, and whether s > 1.

    Raises:
        InputError: no such axis.
    """
    if axis is None:
        return (), {"m": 1, "n": a.size, "s": 1}, False
    if not -a.ndim <= axis < a.ndim:
        raise InputError("no such axis", key=operator, value=axis, allowed=f"an axis of {a.shape}, or None")
    axis %= a.ndim
    shape = a.shape
    after = prod(shape[axis + 1 :])
    return shape[:axis] + shape[axis + 1 :], {"m": prod(shape[:axis]), "n": shape[axis], "s": after}, after > 1


def lines(kinds: Sequence[str], inner: bool, whole: str) -> tuple[list[Symbol], Axis, Axis, Axis, tuple[Axis, ...]]:
    """Return arrays (m, n, s) where `whole` has "x" and (m, s) where it has "y", axes i, j, k, and those before and after n."""
    m, n, s = sizes("m n s")
    i, j, k, l = axes(i=m, j=n, k=n, l=s)
    full, short = ((m, n, s), (m, s)) if inner else ((m, n), (m,))
    return symbols(kinds, *(full if letter == "x" else short for letter in whole)), i, j, k, (l,) if inner else ()


def reducing(name: str, formula: Callable[[Row, Axis], Value], kinds: Sequence[str], inner: bool) -> Program:
    """Build y[i] = formula over k of x[i, k]."""
    (x, y), i, _, k, after = lines(kinds, inner, "xy")
    return program(name, assign(y[(i, *after)], formula(lambda a: x[(i, a, *after)], k)))


def _reduction(
    name: str, formula: Callable[[Row, Axis], Value], slope: Callable[..., Value] | None, summary: str, dtype: Any = None
) -> tuple[Callable[..., Array], Callable[..., tuple[Array]], Builder]:
    def build(kinds: Sequence[str], inner: bool = False) -> Program:
        return reducing(name, formula, kinds, inner)

    def build_slope(kinds: Sequence[str], inner: bool) -> Program:
        (dy, x, dx), i, j, k, after = lines(kinds, inner, "yxx")
        value = slope(lambda a: x[(i, a, *after)], j, k, dy[(i, *after)])
        return program(f"{name}_gradient", assign(dx[(i, j, *after)], value))

    def function(x: Any, axis: int | None = -1, out: Array | None = None) -> Array:
        x = floats(name, "x", x)
        shape, extents, inner = rows(name, x, axis)
        if not extents["n"]:
            raise InputError("nothing to reduce", key=name, value=x.shape)
        out = result(name, out, shape, dtype or x.dtype)
        launch(build, (x, out), extents, (inner,))
        return out

    def derivative(dy: Any, x: Any, axis: int | None = -1) -> tuple[Array]:
        x = floats(name, "x", x)
        shape, extents, inner = rows(name, x, axis)
        dy = np.ascontiguousarray(np.broadcast_to(floats(name, "dy", dy), shape))
        dx = np.empty_like(x)
        launch(build_slope, (dy, x, dx), extents, (inner,))
        return (dx,)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Return {summary} along an axis (None: of all elements). NaN counts only where nothing else is left."
    derivative.__doc__ = f"Return the cotangent of x of `{name}`."
    return function, derivative, build


sum, sum_gradient, summing = _reduction("sum", _sum, _sum_slope, "the sum")
max, max_gradient, maximising = _reduction("max", _max, _max_slope, "the largest element")
_place, _, placing = _reduction("argmax", _argmax, None, "the place (int32) of the first largest element", np.int32)
norm, norm_gradient, norming = _reduction("norm", _norm, _norm_slope, "the Euclidean length")
logsumexp, logsumexp_gradient, logging = _reduction("logsumexp", _logsumexp, _logsumexp_slope, "the logarithm of the sum of e^x")


def argmax(x: Any, axis: int | None = -1, out: Array | None = None) -> Array:
    """Return the place (int32) of the first largest element along an axis (None: of all elements); a NaN is the largest."""
    x = floats("argmax", "x", x)
    shape, extents, inner = rows("argmax", x, axis)
    if inner or x.dtype.itemsize == 2 or not extents["n"]:
        return _place(x, axis, out)
    out = result("argmax", out, shape, np.int32)
    lines_, places = x.reshape(extents["m"], extents["n"]), out.reshape(extents["m"])

    def part(lo: int, hi: int) -> None:
        places[lo:hi] = np.argmax(lines_[lo:hi], axis=1)  # NumPy's is one pass, a formula needs two

    step = extents["m"] if x.size < GRAIN else -(-extents["m"] // (2 * THREADS))
    run_ranges(part, [(lo, min(lo + step, extents["m"])) for lo in range(0, extents["m"], step or 1)], THREADS)
    return out
