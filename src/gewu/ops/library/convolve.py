"""Windows: convolutions (cross-correlations, as learning uses them) with zeros around, their transposes, and pooling.

    conv2d           y[b, o, p, q] = bias[o] + sum over c, i, j of w[o, c, i, j] x[b, c, s p + i - pad, s q + j - pad]
    transposed_conv  y[b, o, s r + i - pad, s q + j - pad] += w[c, o, i, j] x[b, c, r, q]

A transposed convolution with stride s is s * s dense ones, one for each phase of the output's place modulo s, so that no zero is
multiplied; the cotangent of x of a convolution is one.  Strides, padding and taps are compiled in.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from gewu.core.errors import InputError
from gewu.ops.library.call import Array, fits, floats, launch, real, result, symbols
from gewu.ops.python import Value, assign, axes, constant, largest, program, sizes, total
from gewu.ops.sizes import Ceil, Size
from gewu.ops.tensor import Program

Pair = tuple[int, int]


def conv1d_program(kinds: Sequence[str], taps: int, stride: int, padding: int) -> Program:
    """Build the convolution of (b, c, w) with (o, c, taps) plus bias."""
    b, c, o, w, v = sizes("b c o w v")
    n, f, p, d, t = axes(n=b, f=o, p=v, d=c, t=taps)
    x, weight, bias, y = symbols(kinds, (b, c, w), (o, c, taps), (o,), (b, o, v))
    found = total(weight[f, d, t] * x.at(n, d, stride * p + t - padding), over=(d, t))
    return program("conv1d", assign(y[n, f, p], found + bias[f]))


def conv2d_program(kinds: Sequence[str], taps: Pair, stride: Pair, padding: Pair) -> Program:
    """Build the convolution of (b, c, h, w) with (o, c, *taps) plus bias."""
    b, c, o, h, w, u, v = sizes("b c o h w u v")
    n, f, p, q, d, s, t = axes(n=b, f=o, p=u, q=v, d=c, s=taps[0], t=taps[1])
    x, weight, bias, y = symbols(kinds, (b, c, h, w), (o, c, *taps), (o,), (b, o, u, v))
    element = x.at(n, d, stride[0] * p + s - padding[0], stride[1] * q + t - padding[1])
    return program("conv2d", assign(y[n, f, p, q], total(weight[f, d, s, t] * element, over=(d, s, t)) + bias[f]))


def weights_program(kinds: Sequence[str], taps: Pair, stride: Pair, padding: Pair, depthwise: bool = False) -> Program:
    """Build dw[o, c, i, j], the sum over b, p, q of dy[b, o, p, q] x[b, c, s p + i - pad, s q + j - pad]; depthwise: o = c."""
    b, c, o, h, w, u, v = sizes("b c o h w u v")
    f, d, s, t, n, p, q = axes(f=o, d=c, s=taps[0], t=taps[1], n=b, p=u, q=v)
    shape = (c, *taps) if depthwise else (o, c, *taps)
    dy, x, dw = symbols(kinds, (b, c if depthwise else o, u, v), (b, c, h, w), shape)
    element = x.at(n, d, stride[0] * p + s - padding[0], stride[1] * q + t - padding[1])
    target = dw[d, s, t] if depthwise else dw[f, d, s, t]
    return program("conv_weights", assign(target, total(dy[n, d if depthwise else f, p, q] * element, over=(n, p, q))))


def depthwise_program(kinds: Sequence[str], taps: Pair, stride: Pair, padding: Pair) -> Program:
    """Build the convolution of each channel of (b, c, h, w) with its own (c, *taps)."""
    b, c, h, w, u, v = sizes("b c h w u v")
    n, d, p, q, s, t = axes(n=b, d=c, p=u, q=v, s=taps[0], t=taps[1])
    x, weight, y = symbols(kinds, (b, c, h, w), (c, *taps), (b, c, u, v))
    element = x.at(n, d, stride[0] * p + s - padding[0], stride[1] * q + t - padding[1])
    return program("depthwise", assign(y[n, d, p, q], total(weight[d, s, t] * element, over=(s, t))))


def spread_program(kinds: Sequence[str], taps: Pair, stride: Pair, padding: Pair, depthwise: bool = False) -> Program:
    """Build the transposed convolution of (b, c, h, w) with (c, o, *taps) into (b, o, u, v); depthwise: (c, *taps), o = c."""
    b, c, o, h, w, u, v = sizes("b c o h w u v")
    outputs = c if depthwise else o
    x, weight, y = symbols(kinds, (b, c, h, w), (c, *taps) if depthwise else (c, o, *taps), (b, outputs, u, v))
    found = []
    for phases in itertools.product(range(stride[0]), range(stride[1])):
        sides = tuple(zip(phases, stride, padding, taps, strict=True))
        first = [-((phase - pad) // step) for phase, step, pad, _ in sides]  # the first place of this phase that is not cut
        start = [step * a + phase - pad for a, (phase, step, pad, _) in zip(first, sides, strict=True)]
        counts = [Size.named(Ceil(n + Size.of(-a), Size.of(step))) for n, a, step in zip((u, v), start, stride, strict=True)]
        inside = [max(0, -(-(extent - phase) // step)) for phase, step, _, extent in sides]
        n, f, p, q, d, s, t = axes(n=b, f=outputs, p=counts[0], q=counts[1], d=c, s=inside[0], t=inside[1])
        target = y[n, f, stride[0] * p + start[0], stride[1] * q + start[1]]
        element = x.at(n, f if depthwise else d, p + first[0] - s, q + first[1] - t)
        window = (stride[0] * s + phases[0], stride[1] * t + phases[1])
        tap = weight[(f, *window)] if depthwise else weight[(d, f, *window)]
        over = (s, t) if depthwise else (d, s, t)
        found.append(assign(target, total(tap * element, over) if min(inside) else constant(0, real(*kinds))))
    return program("transposed_conv", *found)


def _pair(operator: str, name: str, value: int | Pair, least: int) -> Pair:
    found = (value, value) if isinstance(value, int) else tuple(value)
    if len(found) != 2 or not all(isinstance(v, int) and v >= least for v in found):
        raise InputError(f"{name} is wrong", key=operator, value=value, allowed=f"a number or two, at least {least}")
    return found[0], found[1]


def _reach(operator: str, n: int, taps: int, stride: int, padding: int) -> int:
    places = (n + 2 * padding - taps) // stride + 1
    if places < 1 or taps < 1:
        raise InputError("the window does not fit", key=operator, value=f"{taps} taps", allowed=f"1 to {n + 2 * padding}")
    return places


def _extents(x: Array, y: Array) -> dict[str, int]:
    b, c, h, w = x.shape
    return {"b": b, "c": c, "o": y.shape[1], "h": h, "w": w, "u": y.shape[2], "v": y.shape[3]}


def _bias(operator: str, bias: Any, x: Array, outputs: int) -> Array:
    if bias is None:
        return np.zeros(outputs, x.dtype)
    found = floats(operator, "bias", bias, 1)
    fits(operator, f"bias ({outputs})", found.shape == (outputs,), found)
    return found


def conv1d(x: Any, w: Any, bias: Any = None, stride: int = 1, padding: int = 0, out: Array | None = None) -> Array:
    """Return the convolution of x (b, c, n) with w (o, c, taps), plus bias (o)."""
    x, w = floats("conv1d", "x", x, 3), floats("conv1d", "w", w, 3)
    fits("conv1d", "(b, c, n), (o, c, taps)", w.shape[1] == x.shape[1], x, w)
    bias = _bias("conv1d", bias, x, len(w))
    out = result("conv1d", out, (len(x), len(w), _reach("conv1d", x.shape[2], w.shape[2], stride, padding)), x.dtype)
    extents = {"b": len(x), "c": x.shape[1], "o": len(w), "w": x.shape[2], "v": out.shape[2]}
    launch(conv1d_program, (x, w, bias, out), extents, (w.shape[2], stride, padding))
    return out


def conv1d_gradient(dy: Any, x: Any, w: Any, bias: Any = None, stride: int = 1, padding: int = 0) -> tuple[Array, Array, Array]:
    """Return the cotangents of x, w and bias."""
    dy, x, w = floats("conv1d", "dy", dy, 3), floats("conv1d", "x", x, 3), floats("conv1d", "w", w, 3)
    dx, dw, db = conv2d_gradient(dy[:, :, None], x[:, :, None], w[:, :, None], bias, (1, stride), (0, padding))
    return dx.reshape(x.shape), dw.reshape(w.shape), db


def conv2d(x: Any, w: Any, bias: Any = None, stride: int | Pair = 1, padding: int | Pair = 0, out: Array | None = None) -> Array:
    """Return the convolution of x (b, c, h, w) with w (o, c, i, j), plus bias (o)."""
    x, w = floats("conv2d", "x", x, 4), floats("conv2d", "w", w, 4)
    fits("conv2d", "(b, c, h, w), (o, c, i, j)", w.shape[1] == x.shape[1], x, w)
    stride, padding = _pair("conv2d", "stride", stride, 1), _pair("conv2d", "padding", padding, 0)
    bias = _bias("conv2d", bias, x, len(w))
    places = map(_reach, ("conv2d",) * 2, x.shape[2:], w.shape[2:], stride, padding)
    out = result("conv2d", out, (len(x), len(w), *places), x.dtype)
    launch(conv2d_program, (x, w, bias, out), _extents(x, out), (w.shape[2:], stride, padding))
    return out


def conv2d_gradient(
    dy: Any, x: Any, w: Any, bias: Any = None, stride: int | Pair = 1, padding: int | Pair = 0
) -> tuple[Array, Array, Array]:
    """Return the cotangents of x, w and bias."""
    dy, x, w = floats("conv2d", "dy", dy, 4), floats("conv2d", "x", x, 4), floats("conv2d", "w", w, 4)
    static = (w.shape[2:], _pair("conv2d", "stride", stride, 1), _pair("conv2d", "padding", padding, 0))
    dx, dw = np.empty_like(x), np.empty_like(w)
    launch(spread_program, (dy, w, dx), _extents(dy, dx), static)
    launch(weights_program, (dy, x, dw), _extents(x, dy), static)
    return dx, dw, dy.astype(np.float64 if dy.dtype == np.float64 else np.float32).sum((0, 2, 3)).astype(x.dtype)


def depthwise(x: Any, w: Any, stride: int | Pair = 1, padding: int | Pair = 0, out: Array | None = None) -> Array:
    """Return the convolution of each channel of x (b, c, h, w) with its own window of w (c, i, j)."""
    x, w = floats("depthwise", "x", x, 4), floats("depthwise", "w", w, 3)
    fits("depthwise", "(b, c, h, w), (c, i, j)", len(w) == x.shape[1], x, w)
    stride, padding = _pair("depthwise", "stride", stride, 1), _pair("depthwise", "padding", padding, 0)
    places = map(_reach, ("depthwise",) * 2, x.shape[2:], w.shape[1:], stride, padding)
    out = result("depthwise", out, (*x.shape[:2], *places), x.dtype)
    launch(depthwise_program, (x, w, out), _extents(x, out), (w.shape[1:], stride, padding))
    return out


def depthwise_gradient(dy: Any, x: Any, w: Any, stride: int | Pair = 1, padding: int | Pair = 0) -> tuple[Array, Array]:
    """Return the cotangents of x and w."""
    dy, x, w = floats("depthwise", "dy", dy, 4), floats("depthwise", "x", x, 4), floats("depthwise", "w", w, 3)
    static = (w.shape[1:], _pair("depthwise", "stride", stride, 1), _pair("depthwise", "padding", padding, 0), True)
    dx, dw = np.empty_like(x), np.empty_like(w)
    launch(spread_program, (dy, w, dx), _extents(dy, dx), static)
    launch(weights_program, (dy, x, dw), _extents(x, dy), static)
    return dx, dw


def transposed_conv(x: Any, w: Any, stride: int | Pair = 1, padding: int | Pair = 0, out: Array | None = None) -> Array:
    """Return the transposed convolution of x (b, c, h, w) with w (c, o, i, j), `padding` places cut from each side."""
    x, w = floats("transposed_conv", "x", x, 4), floats("transposed_conv", "w", w, 4)
    fits("transposed_conv", "(b, c, h, w), (c, o, i, j)", len(w) == x.shape[1], x, w)
    stride, padding = _pair("transposed_conv", "stride", stride, 1), _pair("transposed_conv", "padding", padding, 0)
    places = [(n - 1) * s + t - 2 * p for n, s, t, p in zip(x.shape[2:], stride, w.shape[2:], padding, strict=True)]
    fits("transposed_conv", "places left after padding is cut", min(places) > 0, x, w)
    out = result("transposed_conv", out, (len(x), w.shape[1], *places), x.dtype)
    launch(spread_program, (x, w, out), _extents(x, out), (w.shape[2:], stride, padding))
    return out


def transposed_conv_gradient(dy: Any, x: Any, w: Any, stride: int | Pair = 1, padding: int | Pair = 0) -> tuple[Array, Array]:
    """Return the cotangents of x and w."""
    dy, x, w = floats("transposed_conv", "dy", dy, 4), floats("transposed_conv", "x", x, 4), floats("transposed_conv", "w", w, 4)
    static = (w.shape[2:], _pair("transposed_conv", "stride", stride, 1), _pair("transposed_conv", "padding", padding, 0))
    dw = np.empty_like(w)
    launch(weights_program, (x, dy, dw), _extents(dy, x), static)
    return conv2d(dy, w, None, static[1], static[2]), dw


def pool_program(kinds: Sequence[str], size: int, stride: int, mean: bool) -> Program:
    """Build the maximum or mean over windows of (n, h, w)."""
    n, h, w, u, v = sizes("n h w u v")
    b, p, q, s, t = axes(b=n, p=u, q=v, s=size, t=size)
    x, y = symbols(kinds, (n, h, w), (n, u, v))
    element: Value = x[b, stride * p + s, stride * q + t]
    found = total(element, over=(s, t)) * (1 / size**2) if mean else largest(element, over=(s, t))
    return program("avgpool" if mean else "maxpool", assign(y[b, p, q], found))


def _pool(operator: str, x: Any, size: int, stride: int | None, out: Array | None) -> Array:
    x, stride = floats(operator, "x", x), size if stride is None else stride
    if x.ndim < 2 or size < 1 or stride < 1:
        raise InputError("windows need an image and a size", key=operator, value=(x.shape, size, stride))
    places = [_reach(operator, n, size, stride, 0) for n in x.shape[-2:]]
    out = result(operator, out, (*x.shape[:-2], *places), x.dtype)
    h, w = x.shape[-2:]
    extents = {"n": x.size // (h * w), "h": h, "w": w, "u": places[0], "v": places[1]}
    launch(pool_program, (x, out), extents, (size, stride, operator == "avgpool"))
    return out


def maxpool(x: Any, size: int, stride: int | None = None, out: Array | None = None) -> Array:
    """Return the largest element of each size × size window of the last two axes, `stride` apart (None: size)."""
    return _pool("maxpool", x, size, stride, out)


def avgpool(x: Any, size: int, stride: int | None = None, out: Array | None = None) -> Array:
    """Return the mean of each size × size window of the last two axes, `stride` apart (None: size)."""
    return _pool("avgpool", x, size, stride, out)


def _windows(a: Array, places: Pair, size: int, step: int) -> list[Array]:
    """Return views of the elements at each place in the windows."""
    rows, columns = ((n - 1) * step + 1 for n in places)
    return [a[..., i : i + rows : step, j : j + columns : step] for i in range(size) for j in range(size)]


def maxpool_gradient(dy: Any, x: Any, size: int, stride: int | None = None) -> tuple[Array]:
    """Return the cotangent of x; equal largest elements share it."""
    dy, x, step = np.asarray(dy), floats("maxpool", "x", x), stride or size
    y, dx = maxpool(x, size, step), np.zeros_like(x)
    hits = [view == y for view in _windows(x, dy.shape[-2:], size, step)]
    each = (dy / np.sum(hits, axis=0)).astype(x.dtype)
    for hit, view in zip(hits, _windows(dx, dy.shape[-2:], size, step), strict=True):
        view += np.where(hit, each, x.dtype.type(0))
    return (dx,)


def avgpool_gradient(dy: Any, x: Any, size: int, stride: int | None = None) -> tuple[Array]:
    """Return the cotangent of x."""
    dy, dx, step = np.asarray(dy), np.zeros_like(floats("avgpool", "x", x)), stride or size
    for view in _windows(dx, dy.shape[-2:], size, step):
        view += (dy * (1 / size**2)).astype(dx.dtype)
    return (dx,)
