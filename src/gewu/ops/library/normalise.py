"""Rows brought to one scale: softmax, layernorm, rmsnorm, batchnorm, groupnorm, and their vector-Jacobian products.

With x' = (x - mean) / sqrt(variance + eps), y = gain x' + bias and g = gain dy, all three normalisations have

    dx = (g - mean(g) - x' mean(g x')) / sqrt(variance + eps),   dgain = sum dy x',   dbias = sum dy,

where means are over what was normalised together.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from gewu.core.errors import InputError
from gewu.ops.library.call import Array, fits, floats, launch, real, result, symbols
from gewu.ops.library.reduce import lines, rows
from gewu.ops.python import Axis, Value, assign, axes, exp, largest, mean, program, rsqrt, scalar, sizes, total
from gewu.ops.tensor import Program


def softmax_rows(kinds: Sequence[str], inner: bool = False) -> Program:
    """Build y[i, j] = e^x[i, j] / sum over k of e^x[i, k]."""
    (x, y), i, j, k, after = lines(kinds, inner, "xx")
    most = largest(x[(i, k, *after)], over=k)

    def e(a: Axis) -> Value:
        return exp(x[(i, a, *after)] - most)

    return program("softmax", assign(y[(i, j, *after)], e(j) / total(e(k), over=k)))


def _softmax_slope(kinds: Sequence[str], inner: bool) -> Program:
    (dy, x, dx), i, j, k, after = lines(kinds, inner, "xxx")
    most = largest(x[(i, k, *after)], over=k)

    def e(a: Axis) -> Value:
        return exp(x[(i, a, *after)] - most)

    whole = total(e(k), over=k)
    average = total(e(k) * dy[(i, k, *after)], over=k) / whole
    return program("softmax_gradient", assign(dx[(i, j, *after)], e(j) / whole * (dy[(i, j, *after)] - average)))


def softmax(x: Any, axis: int = -1, out: Array | None = None) -> Array:
    """Return e^x divided by its sum along an axis."""
    x = floats("softmax", "x", x)
    _, extents, inner = rows("softmax", x, axis)
    out = result("softmax", out, x.shape, x.dtype)
    launch(softmax_rows, (x, out), extents, (inner,))
    return out


def softmax_gradient(dy: Any, x: Any, axis: int = -1) -> tuple[Array]:
    """Return the cotangent of x."""
    dy, x = floats("softmax", "dy", dy), floats("softmax", "x", x)
    _, extents, inner = rows("softmax", x, axis)
    dx = np.empty_like(x)
    launch(_softmax_slope, (dy, x, dx), extents, (inner,))
    return (dx,)


def layernorm_rows(kinds: Sequence[str]) -> Program:
    """Build y[i, j] = gain[j] (x[i, j] - mean) / sqrt(variance + eps) + bias[j]."""
    m, n = sizes("m n")
    i, j, k = axes(i=m, j=n, k=n)
    x, gain, bias, y = symbols(kinds, (m, n), (n,), (n,), (m, n))
    middle = mean(x[i, k], over=k)
    variance = mean((x[i, k] - middle) * (x[i, k] - middle), over=k)
    scaled = (x[i, j] - middle) * rsqrt(variance + scalar(4, real(*kinds)))
    return program("layernorm", assign(y[i, j], scaled * gain[j] + bias[j]))


def layernorm(x: Any, gain: Any, bias: Any, eps: float = 1e-5, out: Array | None = None) -> Array:
    """Return each row of the last axis with mean 0 and variance 1, times gain, plus bias."""
    x = floats("layernorm", "x", x)
    gain, bias = floats("layernorm", "gain", gain, 1), floats("layernorm", "bias", bias, 1)
    fits("layernorm", "(..., n), (n), (n)", x.ndim > 0 and gain.shape == bias.shape == x.shape[-1:], x, gain, bias)
    out = result("layernorm", out, x.shape, x.dtype)
    launch(layernorm_rows, (x, gain, bias, out), {"m": prod(x.shape[:-1]), "n": x.shape[-1]}, (), (eps,))
    return out


def rmsnorm_rows(kinds: Sequence[str]) -> Program:
    """Build y[i, j] = gain[j] x[i, j] / sqrt(mean of squares + eps)."""
    m, n = sizes("m n")
    i, j, k = axes(i=m, j=n, k=n)
    x, gain, y = symbols(kinds, (m, n), (n,), (m, n))
    scale = rsqrt(mean(x[i, k] * x[i, k], over=k) + scalar(3, real(*kinds)))
    return program("rmsnorm", assign(y[i, j], x[i, j] * scale * gain[j]))


def rmsnorm(x: Any, gain: Any, eps: float = 1e-5, out: Array | None = None) -> Array:
    """Return each row of the last axis divided by the root of its mean square, times gain."""
    x, gain = floats("rmsnorm", "x", x), floats("rmsnorm", "gain", gain, 1)
    fits("rmsnorm", "(..., n), (n)", x.ndim > 0 and gain.shape == x.shape[-1:], x, gain)
    out = result("rmsnorm", out, x.shape, x.dtype)
    launch(rmsnorm_rows, (x, gain, out), {"m": prod(x.shape[:-1]), "n": x.shape[-1]}, (), (eps,))
    return out


def _channels(kinds: Sequence[str], grouped: bool) -> Program:
    """Build the normalisation of (batch, channels, places) per channel, or of (batch, groups, width, places) per group."""
    b, c, p, w = sizes("b c p w")
    i, j, r, h, k, u, v = axes(i=b, j=c, r=p, h=w, k=b, u=p, v=w)
    eps = scalar(4, real(*kinds))
    if grouped:
        x, gain, bias, y = symbols(kinds, (b, c, w, p), (c, w), (c, w), (b, c, w, p))
        over, element, at = (v, u), x[i, j, v, u], (i, j, h, r)
    else:
        x, gain, bias, y = symbols(kinds, (b, c, p), (c,), (c,), (b, c, p))
        over, element, at = (k, u), x[k, j, u], (i, j, r)
    middle = mean(element, over)
    scale = rsqrt(mean((element - middle) * (element - middle), over) + eps)
    which = (j, h) if grouped else (j,)
    return program("groupnorm" if grouped else "batchnorm", assign(y[at], (x[at] - middle) * scale * gain[which] + bias[which]))


def batchnorm_channels(kinds: Sequence[str]) -> Program:
    """Build the normalisation of each channel over batch and places."""
    return _channels(kinds, False)


def groupnorm_channels(kinds: Sequence[str]) -> Program:
    """Build the normalisation of each group of channels of each sample."""
    return _channels(kinds, True)


def _images(operator: str, x: Any, gain: Any, bias: Any) -> tuple[Array, Array, Array]:
    x, gain, bias = floats(operator, "x", x), floats(operator, "gain", gain, 1), floats(operator, "bias", bias, 1)
    fits(operator, "(b, c, ...), (c), (c)", x.ndim > 1 and gain.shape == bias.shape == x.shape[1:2], x, gain, bias)
    return x, gain, bias


def batchnorm(x: Any, gain: Any, bias: Any, eps: float = 1e-5, out: Array | None = None) -> Array:
    """Return x (batch, channels, ...) with mean 0 and variance 1 in each channel of the batch, times gain, plus bias."""
    x, gain, bias = _images("batchnorm", x, gain, bias)
    out = result("batchnorm", out, x.shape, x.dtype)
    extents = {"b": x.shape[0], "c": x.shape[1], "p": prod(x.shape[2:])}
    launch(batchnorm_channels, (x, gain, bias, out), extents, (), (eps,))
    return out


def _groups(x: Array, groups: int) -> int:
    if groups < 1 or x.shape[1] % groups:
        raise InputError("groups do not divide the channels", key="groupnorm", value=groups, allowed=f"a divisor of {x.shape[1]}")
    return x.shape[1] // groups


def groupnorm(x: Any, gain: Any, bias: Any, groups: int, eps: float = 1e-5, out: Array | None = None) -> Array:
    """Return x (batch, channels, ...) with mean 0 and variance 1 in each of `groups` groups of channels; gain and bias."""
    x, gain, bias = _images("groupnorm", x, gain, bias)
    out = result("groupnorm", out, x.shape, x.dtype)
    extents = {"b": x.shape[0], "c": groups, "p": prod(x.shape[2:]), "w": _groups(x, groups)}
    launch(groupnorm_channels, (x, gain, bias, out), extents, (), (eps,))
    return out


def _moments(kinds: Sequence[str], centred: bool) -> Program:
    """Build the mean of each row (0 unless centred) and one over its standard deviation."""
    m, n = sizes("m n")
    i, k = axes(i=m, k=n)
    x, middle, scale = symbols(kinds, (m, n), (m,), (m,))
    average = mean(x[i, k], over=k) if centred else x[i, 0] * 0
    variance = mean((x[i, k] - average) * (x[i, k] - average), over=k)
    return program("moments", assign(middle[i], average), assign(scale[i], rsqrt(variance + scalar(3, real(*kinds)))))


def _row_slope(kinds: Sequence[str], centred: bool) -> Program:
    """Build dx of rows that were normalised together; `gain` has one number for each element."""
    m, n = sizes("m n")
    i, j, k = axes(i=m, j=n, k=n)
    dy, x, gain, middle, scale, dx = symbols(kinds, (m, n), (m, n), (n,), (m,), (m,), (m, n))

    def g(a: Axis) -> Value:
        return dy[i, a] * gain[a]

    def unit(a: Axis) -> Value:
        return (x[i, a] - middle[i]) * scale[i]

    found = g(j) - unit(j) * mean(g(k) * unit(k), over=k)
    found = found - mean(g(k), over=k) if centred else found
    return program("row_gradient", assign(dx[i, j], found * scale[i]))


def _column_slope(kinds: Sequence[str]) -> Program:
    """Build dgain and dbias of rows."""
    m, n = sizes("m n")
    j, k = axes(j=n, k=m)
    dy, x, middle, scale, dgain, dbias = symbols(kinds, (m, n), (m, n), (m,), (m,), (n,), (n,))
    return program(
        "column_gradient",
        assign(dgain[j], total(dy[k, j] * (x[k, j] - middle[k]) * scale[k], over=k)),
        assign(dbias[j], total(dy[k, j], over=k)),
    )


def _row_gradients(operator: str, dy: Any, x: Any, gain: Any, eps: float, centred: bool) -> tuple[Array, Array, Array]:
    dy, x, gain = floats(operator, "dy", dy), floats(operator, "x", x), floats(operator, "gain", gain, 1)
    fits(operator, "dy and x alike", dy.shape == x.shape, dy, x)
    extents = {"m": prod(x.shape[:-1]), "n": x.shape[-1]}
    wide = np.float64 if x.dtype == np.float64 else np.float32
    middle, scale, dx = np.empty(extents["m"], wide), np.empty(extents["m"], wide), np.empty_like(x)
    dgain, dbias = np.empty_like(gain), np.empty_like(gain)
    launch(_moments, (x, middle, scale), extents, (centred,), (eps,))
    launch(_row_slope, (dy, x, gain, middle, scale, dx), extents, (centred,))
    launch(_column_slope, (dy, x, middle, scale, dgain, dbias), extents)
    return dx, dgain, dbias


def layernorm_gradient(dy: Any, x: Any, gain: Any, bias: Any, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    """Return the cotangents of x, gain and bias."""
    return _row_gradients("layernorm", dy, x, gain, eps, True)


def rmsnorm_gradient(dy: Any, x: Any, gain: Any, eps: float = 1e-5) -> tuple[Array, Array]:
    """Return the cotangents of x and gain."""
    return _row_gradients("rmsnorm", dy, x, gain, eps, False)[:2]


def _by_rows(dy: Array, x: Array, gain: Array, eps: float, groups: int) -> tuple[Array, Array, Array]:
    """Return the cotangents where each (sample, group) is one row, (batch, groups, width, places)."""
    batch, channels, places = x.shape[0], x.shape[1], prod(x.shape[2:])
    shape = (batch * groups, channels // groups * places)
    wide = np.float64 if x.dtype == np.float64 else np.float32
    middle, scale, dx = np.empty(shape[0], wide), np.empty(shape[0], wide), np.empty(shape, x.dtype)
    extents = {"m": shape[0], "n": shape[1]}
    launch(_moments, (x, middle, scale), extents, (True,), (eps,))
    scaled = (dy.reshape(batch, channels, places) * gain[:, None]).astype(dy.dtype).reshape(shape)
    launch(_row_slope, (scaled, x.reshape(shape), np.ones(shape[1], x.dtype), middle, scale, dx), extents, (True,))
    unit = (x.reshape(shape).astype(wide) - middle[:, None]) * scale[:, None]
    terms = dy.astype(wide).reshape(batch, channels, places)
    dgain = (terms * unit.reshape(terms.shape)).sum((0, 2)).astype(gain.dtype)
    return dx.reshape(x.shape), dgain, terms.sum((0, 2)).astype(gain.dtype)


def groupnorm_gradient(dy: Any, x: Any, gain: Any, bias: Any, groups: int, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    """Return the cotangents of x, gain and bias."""
    x, gain, bias = _images("groupnorm", x, gain, bias)
    _groups(x, groups)
    return _by_rows(floats("groupnorm", "dy", dy), x, gain, eps, groups)


def batchnorm_gradient(dy: Any, x: Any, gain: Any, bias: Any, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    """Return the cotangents of x, gain and bias."""
    x, gain, bias = _images("batchnorm", x, gain, bias)
    dy = floats("batchnorm", "dy", dy)
    swapped = [np.ascontiguousarray(np.moveaxis(a, 1, 0)).reshape(1, a.shape[1], -1) for a in (dy, x)]
    dx, dgain, dbias = _by_rows(*swapped, gain, eps, x.shape[1])
    shape = (x.shape[1], x.shape[0], *x.shape[2:])
    return np.ascontiguousarray(np.moveaxis(dx.reshape(shape), 0, 1)), dgain, dbias
