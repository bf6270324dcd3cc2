"""What is done with the rows of a matrix between products, for JAX on CPUs, each in one pass over memory.

    normed      (x - mean) / sqrt(var + eps) gain + bias, or x / sqrt(mean x² + eps) gain
    activated   gelu(h + bias) w with tanh, or silu(h_0 + bias_0) (h_1 + bias_1) w
    biased      h + bias
    judged      the loss of rows of logits and its gradient: softmax(logits) - 1 at the label, times a weight
    halved      the same numbers in bfloat16
    applied     rows times float32 weights, multiplied in bfloat16; the gradient of the weights is never rounded

XLA makes several passes of these, sums columns on one thread and emulates bfloat16 number by number. Rows are float32 or
bfloat16, sums float32; the gradient of gains and biases is summed over PARTS parts in a fixed order: it does not depend on the
threads. Activations are not kept for the gradient: the pass that makes their derivative makes them again.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache, partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from gewu.ops.ffi import raw_target
from gewu.ops.lean import HALF, INTEGER, SINGLE, at, compiled, entry, exp, larger, narrow, wide
from gewu.ops.pool import THREADS
from gewu.ops.product import matmul, product, together

PARTS: Final = 16
"""Parts of the rows; columns are summed in each of them first."""
_ONE, _TWO, _HALF, _CUBE, _SLOPE = (np.float32(x) for x in (1.0, 2.0, 0.5, 0.044715, 2 * math.sqrt(2 / math.pi)))
_THREE = np.float32(3 * 0.044715)


@compiled
def _norm(x: Any, gain: Any, bias: Any, eps: Any, centred: bool, y: Any, lo: int, hi: int) -> None:
    D = x.shape[1]
    share = _ONE / np.float32(D)
    for i in range(lo, hi):
        mean, square = np.float32(0), np.float32(0)
        if centred:
            for j in range(D):
                mean += wide(x[i, j])
            mean *= share
        for j in range(D):
            away = wide(x[i, j]) - mean
            square += away * away
        scale = _ONE / np.sqrt(square * share + eps)
        for j in range(D):
            value = (wide(x[i, j]) - mean) * scale * gain[j]
            y[i, j] = narrow(value + bias[j] if centred else value, y[i, j])


@compiled
def _norm_back(x: Any, gain: Any, g: Any, eps: Any, centred: bool, dx: Any, sums: Any, lo: int, hi: int) -> None:
    D = x.shape[1]
    share = _ONE / np.float32(D)
    for i in range(lo, hi):
        mean, square, first, second = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        if centred:
            for j in range(D):
                mean += wide(x[i, j])
            mean *= share
        for j in range(D):
            away = wide(x[i, j]) - mean
            square += away * away
            pull = wide(g[i, j]) * gain[j]
            first += pull
            second += pull * away
        scale = _ONE / np.sqrt(square * share + eps)
        second *= scale * scale * share
        first = first * share if centred else np.float32(0)
        for j in range(D):
            away, given = wide(x[i, j]) - mean, wide(g[i, j])
            dx[i, j] = narrow((given * gain[j] - first - away * second) * scale, dx[i, j])
            sums[0, j] += given * away * scale
            sums[1, j] += given


@compiled
def _act(h: Any, bias: Any, gated: bool, y: Any, lo: int, hi: int) -> None:
    for i in range(lo, hi):
        for j in range(y.shape[1]):
            x = wide(h[i, 0, j]) + bias[0, j]
            if gated:
                value = x / (_ONE + exp(-x)) * (wide(h[i, 1, j]) + bias[1, j])
            else:
                value = x / (_ONE + exp(-_SLOPE * (x + _CUBE * x * x * x)))
            y[i, j] = narrow(value, y[i, j])


@compiled
def _act_back(h: Any, bias: Any, g: Any, gated: bool, dh: Any, y: Any, sums: Any, lo: int, hi: int) -> None:
    for i in range(lo, hi):
        for j in range(g.shape[1]):
            x, given = wide(h[i, 0, j]) + bias[0, j], wide(g[i, j])
            if gated:
                other = wide(h[i, 1, j]) + bias[1, j]
                s = _ONE / (_ONE + exp(-x))
                value, second = x * s * other, given * x * s
                first = given * other * s * (_ONE + x * (_ONE - s))
                dh[i, 1, j] = narrow(second, dh[i, 1, j])
                sums[1, j] += second
            else:
                s = _ONE / (_ONE + exp(-_SLOPE * (x + _CUBE * x * x * x)))
                value = x * s
                first = given * s * (_ONE + x * (_ONE - s) * _SLOPE * (_ONE + _THREE * x * x))
            dh[i, 0, j], y[i, j] = narrow(first, dh[i, 0, j]), narrow(value, y[i, j])
            sums[0, j] += first


@compiled
def _columns(g: Any, sums: Any, lo: int, hi: int) -> None:
    for i in range(lo, hi):
        for j in range(g.shape[1]):
            sums[0, j] += wide(g[i, j])


@compiled
def _judge(logits: Any, label: Any, weight: Any, loss: Any, g: Any, lo: int, hi: int) -> None:
    for i in range(lo, hi):
        top, total = logits[i, 0], np.float32(0)
        for j in range(logits.shape[1]):
            top = larger(top, logits[i, j])
        for j in range(logits.shape[1]):
            total += exp(logits[i, j] - top)
        scale = weight[i] / total
        for j in range(logits.shape[1]):
            g[i, j] = narrow(exp(logits[i, j] - top) * scale, g[i, j])
        y = label[i] if label[i] >= 0 else 0
        loss[i] = np.log(total) - (logits[i, y] - top)
        g[i, y] = narrow(exp(logits[i, y] - top) * scale - weight[i], g[i, y])


@compiled
def _span(n: int, part: int) -> tuple[int, int]:
    size = -(-n // PARTS)
    return min(n, part * size), min(n, (part + 1) * size)


@compiled
def _norm_part(like: Any, a: Any, lo: int, hi: int) -> None:
    n, D, flag = a[0], a[1], a[3] != 0
    x, gain, bias, y = at(a[5], (n, D), like), at(a[6], (D,), SINGLE), at(a[7], (D,), SINGLE), at(a[8], (n, D), like)
    for part in range(lo, hi):
        _norm(x, gain, bias, at(a[4], (1,), SINGLE)[0], flag, y, *_span(n, part))


@compiled
def _norm_back_part(like: Any, a: Any, lo: int, hi: int) -> None:
    n, D, flag = a[0], a[1], a[3] != 0
    x, gain, g, dx = at(a[5], (n, D), like), at(a[6], (D,), SINGLE), at(a[7], (n, D), like), at(a[8], (n, D), like)
    sums = at(a[10], (PARTS, 2, D), SINGLE)
    for part in range(lo, hi):
        _norm_back(x, gain, g, at(a[4], (1,), SINGLE)[0], flag, dx, sums[part], *_span(n, part))


@compiled
def _act_part(like: Any, a: Any, lo: int, hi: int) -> None:
    n, F, gates = a[0], a[1], a[2]
    h, bias, y = at(a[5], (n, gates, F), like), at(a[6], (gates, F), SINGLE), at(a[7], (n, F), like)
    for part in range(lo, hi):
        _act(h, bias, gates == 2, y, *_span(n, part))


@compiled
def _act_back_part(like: Any, a: Any, lo: int, hi: int) -> None:
    n, F, gates = a[0], a[1], a[2]
    h, dh = at(a[5], (n, gates, F), like), at(a[8], (n, gates, F), like)
    bias, g, y = at(a[6], (gates, F), SINGLE), at(a[7], (n, F), like), at(a[9], (n, F), like)
    sums = at(a[10], (PARTS, gates, F), SINGLE)
    for part in range(lo, hi):
        _act_back(h, bias, g, gates == 2, dh, y, sums[part], *_span(n, part))


@compiled
def _columns_part(like: Any, a: Any, lo: int, hi: int) -> None:
    n, D = a[0], a[1]
    g, sums = at(a[5], (n, D), like), at(a[10], (PARTS, 1, D), SINGLE)
    for part in range(lo, hi):
        _columns(g, sums[part], *_span(n, part))


@compiled
def _judge_part(like: Any, a: Any, lo: int, hi: int) -> None:
    n, V = a[0], a[1]
    logits, label, weight = at(a[5], (n, V), SINGLE), at(a[6], (n,), INTEGER), at(a[7], (n,), SINGLE)
    loss, g = at(a[8], (n,), SINGLE), at(a[9], (n, V), like)
    for part in range(lo, hi):
        _judge(logits, label, weight, loss, g, *_span(n, part))


@compiled
def _halve(x: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = narrow(x[i], y[i])


@compiled
def _halve_part(like: Any, a: Any, lo: int, hi: int) -> None:
    count = a[0] * a[1]
    x, y = at(a[5], (count,), SINGLE), at(a[6], (count,), like)
    for part in range(lo, hi):
        first, last = _span(count, part)
        _halve(x[first:last], y[first:last])


_WORKS: Final = {
    "norm": (_norm_part, 0),
    "norm_back": (_norm_back_part, 2),
    "act": (_act_part, 0),
    "act_back": (_act_back_part, 1),
    "columns": (_columns_part, 1),
    "judge": (_judge_part, 0),
    "halve": (_halve_part, 0),
}
"""What is done with parts of the rows, and how many of the results, the last ones, are sums over the rows."""


@cache
def _target(name: str, kind: str, gates: int, flag: bool, eps: float) -> str:
    """Return XLA's name of one of these on rows of a type."""
    function, sums = _WORKS[name]
    loop, small = entry(function, HALF if kind == "bfloat16" else SINGLE), np.array([eps], np.float32)

    def work(arguments: Any, results: Any) -> None:
        n, width = arguments[0][1][0], arguments[0][1][-1] // gates
        added = results[len(results) - sums :]
        arrays = [address for address, _ in (*arguments, *results[: len(results) - sums])]
        held = np.zeros((PARTS, sum(math.prod(shape) for _, shape in added)), np.float32)
        if sums:
            arrays = [*[*arrays, 0, 0, 0, 0][:5], held.ctypes.data]
        together(loop.address, (loop.code, n, width, gates, int(flag), small.ctypes.data, *arrays), PARTS, PARTS, THREADS)
        with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite have sums that are not: the caller's to see
            total = held.sum(0)
        done = 0
        for address, shape in added:
            count = math.prod(shape)
            ctypes.memmove(address, total[done:].ctypes.data, 4 * count)
            done += count

    return raw_target(name, work)


def _call(name: str, like: Any, *arrays: Any, kind: Any, gates: int = 1, flag: bool = False, eps: float = 0.0) -> Any:
    target = _target(name, jnp.dtype(kind).name, gates, flag, eps)
    return jax.ffi.ffi_call(target, like, vmap_method="sequential")(*arrays)


def _f32(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normed(x: Any, gain: Any, bias: Any, eps: float, centred: bool) -> Any:
    """Return rows with mean 0 (`centred`) and mean square 1, times a gain and (`centred`) plus a bias.

    Args:
        x: (n, D) float32 or bfloat16.
        gain, bias: (D,) float32.
        eps: added to the mean square.

    Returns:
        (n, D) in the type of x.
    """
    return _call("norm", jax.ShapeDtypeStruct(x.shape, x.dtype), x, gain, bias, kind=x.dtype, flag=centred, eps=eps)


def _normed_back(eps: float, centred: bool, kept: Any, g: Any) -> Any:
    x, gain = kept
    like = (jax.ShapeDtypeStruct(x.shape, x.dtype), _f32(x.shape[1]), _f32(x.shape[1]))
    dx, dgain, dbias = _call("norm_back", like, x, gain, g, kind=x.dtype, flag=centred, eps=eps)
    return dx, dgain, dbias if centred else jnp.zeros_like(dbias)


normed.defvjp(lambda x, gain, bias, eps, centred: (normed(x, gain, bias, eps, centred), (x, gain)), _normed_back)


@jax.custom_vjp
def activated(h: Any, bias: Any, w: Any) -> Any:
    """Return the activation of rows, gelu (one gate) or silu of the first half times the second (two gates), times weights.

    Args:
        h: (n, gates F) float32 or bfloat16.
        bias: (gates, F) float32, added first.
        w: (F, O) in the type of h, or float32: taken as by `applied`.

    Returns:
        (n, O) in the type of h.
    """
    return _activated(h, bias, w)[0]


def _activated(h: Any, bias: Any, w: Any) -> tuple[Any, Any]:
    like = jax.ShapeDtypeStruct((h.shape[0], bias.shape[1]), h.dtype)
    half = w if w.dtype == h.dtype else halved(w)
    return matmul(_call("act", like, h, bias, kind=h.dtype, gates=bias.shape[0]), half), (h, bias, half, jnp.zeros((), w.dtype))


def _activated_back(kept: Any, g: Any) -> Any:
    h, bias, half, like_w = kept
    dy = matmul(g, half, tb=True)
    like = (jax.ShapeDtypeStruct(h.shape, h.dtype), jax.ShapeDtypeStruct(dy.shape, h.dtype), _f32(*bias.shape))
    dh, y, dbias = _call("act_back", like, h, bias, dy, kind=h.dtype, gates=bias.shape[0])
    return dh, dbias, matmul(y, g, ta=True, out=like_w.dtype)


activated.defvjp(_activated, _activated_back)


@jax.custom_vjp
def biased(h: Any, bias: Any) -> Any:
    """Return rows (n, D) plus a bias (D,) float32, in the type of the rows."""
    return h + bias.astype(h.dtype)


def _biased_back(_: None, g: Any) -> Any:
    return g, _call("columns", _f32(g.shape[1]), g, kind=g.dtype)


biased.defvjp(lambda h, bias: (biased(h, bias), None), _biased_back)


def judged(logits: Any, label: Any, weight: Any, kind: Any) -> tuple[Any, Any]:
    """Return the cross-entropy of rows and `weight` times its gradient.

    Args:
        logits: float32 (n, V).
        label: int32 (n,); negative for any, with weight 0.
        weight: float32 (n,).
        kind: type of the gradient.

    Returns:
        float32 (n,), and (n, V).
    """
    like = (_f32(logits.shape[0]), jax.ShapeDtypeStruct(logits.shape, kind))
    return tuple(_call("judge", like, logits, label, weight, kind=kind))


def halved(x: Any) -> Any:
    """Return a float32 array (n, ...) in bfloat16, by all threads; no derivative."""
    rows = x.reshape(x.shape[0], -1)
    like = jax.ShapeDtypeStruct(rows.shape, jnp.bfloat16)
    return _call("halve", like, rows, kind=jnp.bfloat16).reshape(x.shape)


@jax.custom_vjp
def applied(x: Any, w: Any) -> Any:
    """Return x w, multiplied in bfloat16 and summed in float32.

    Args:
        x: bfloat16 (n, I).
        w: float32 (I, O); its gradient is float32 as summed, where that of a rounded copy would be rounded too.

    Returns:
        bfloat16 (n, O).
    """
    return product(x, halved(w))


def _applied(x: Any, w: Any) -> tuple[Any, Any]:
    half = halved(w)
    return product(x, half), (x, half)


def _applied_back(kept: Any, g: Any) -> tuple[Any, Any]:
    x, half = kept
    return product(g, half, tb=True), product(x, g, ta=True, out=jnp.float32)


applied.defvjp(_applied, _applied_back)
