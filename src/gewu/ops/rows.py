"""What is done with the rows of a matrix between products, for JAX on CPUs, each in one pass over memory.

    normed      (x - mean) / sqrt(var + eps) gain + bias, or x / sqrt(mean x² + eps) gain
    activated   gelu(h + bias) with tanh, or silu(h_0 + bias_0) (h_1 + bias_1)
    biased      h + bias
    judged      the loss of rows of logits and its gradient: softmax(logits) - 1 at the label, times a weight

XLA makes several passes of these, sums columns on one thread and emulates bfloat16 number by number. Rows are float32 or
bfloat16, sums float32; the gradient of gains and biases is summed over PARTS parts in a fixed order: it does not depend on the
threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from gewu.ops.ffi import raw_target
from gewu.ops.lean import compiled, exp, narrow, view, wide
from gewu.ops.pool import THREADS, run_ranges

PARTS: Final = 8
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
def _act_back(h: Any, bias: Any, g: Any, gated: bool, dh: Any, sums: Any, lo: int, hi: int) -> None:
    for i in range(lo, hi):
        for j in range(g.shape[1]):
            x, given = wide(h[i, 0, j]) + bias[0, j], wide(g[i, j])
            if gated:
                other = wide(h[i, 1, j]) + bias[1, j]
                s = _ONE / (_ONE + exp(-x))
                second = given * x * s
                first = given * other * s * (_ONE + x * (_ONE - s))
                dh[i, 1, j] = narrow(second, dh[i, 1, j])
                sums[1, j] += second
            else:
                s = _ONE / (_ONE + exp(-_SLOPE * (x + _CUBE * x * x * x)))
                first = given * s * (_ONE + x * (_ONE - s) * _SLOPE * (_ONE + _THREE * x * x))
            dh[i, 0, j] = narrow(first, dh[i, 0, j])
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
            top = max(top, logits[i, j])
        for j in range(logits.shape[1]):
            total += exp(logits[i, j] - top)
        scale = weight[i] / total
        for j in range(logits.shape[1]):
            g[i, j] = narrow(exp(logits[i, j] - top) * scale, g[i, j])
        at = label[i] if label[i] >= 0 else 0
        loss[i] = np.log(total) - (logits[i, at] - top)
        g[i, at] = narrow(exp(logits[i, at] - top) * scale - weight[i], g[i, at])


def _spread(work: Callable[[int, int], None], rows: int) -> None:
    size = -(-rows // PARTS)
    ranges = [(lo, min(lo + size, rows)) for lo in range(0, rows, size)]
    run_ranges(work, ranges, THREADS)


def _summed(work: Callable[[Any, int, int], None], rows: int, out: list[Any]) -> None:
    """Let `work` add what its rows give to columns, and write the sums to `out`, one a row of its sums."""
    sums = np.zeros((PARTS, len(out), out[0].size), np.float32)
    size = max(1, -(-rows // PARTS))
    _spread(lambda lo, hi: work(sums[lo // size], lo, hi), rows)
    for row, target in enumerate(out):
        target[...] = sums[:, row].sum(0).reshape(target.shape)


@cache
def _target(name: str, kind: str, flag: bool, eps: float = 0.0) -> str:
    """Return XLA's name of one of these on rows of a type."""
    f32, small = partial(view, kind="float32"), np.float32(eps)

    def norm(a: Any, r: Any) -> None:
        (x, shape), gain, bias = a[0], f32(*a[1]), f32(*a[2])
        x, y = view(x, shape, kind), view(*r[0], kind)
        _spread(lambda lo, hi: _norm(x, gain, bias, small, flag, y, lo, hi), shape[0])

    def norm_back(a: Any, r: Any) -> None:
        x, gain, g, dx = view(*a[0], kind), f32(*a[1]), view(*a[2], kind), view(*r[0], kind)
        out = [f32(*r[1]), f32(*r[2])]
        _summed(lambda sums, lo, hi: _norm_back(x, gain, g, small, flag, dx, sums, lo, hi), x.shape[0], out)

    def act(a: Any, r: Any) -> None:
        h, bias, y = view(*a[0], kind), f32(*a[1]), view(*r[0], kind)
        _spread(lambda lo, hi: _act(h, bias, flag, y, lo, hi), h.shape[0])

    def act_back(a: Any, r: Any) -> None:
        h, bias, g, dh, out = view(*a[0], kind), f32(*a[1]), view(*a[2], kind), view(*r[0], kind), f32(*r[1])
        _summed(lambda sums, lo, hi: _act_back(h, bias, g, flag, dh, sums, lo, hi), h.shape[0], list(out))

    def columns(a: Any, r: Any) -> None:
        g, out = view(*a[0], kind), f32(*r[0])
        _summed(lambda sums, lo, hi: _columns(g, sums, lo, hi), g.shape[0], [out])

    def judge(a: Any, r: Any) -> None:
        logits, label, weight = f32(*a[0]), view(*a[1], "int32"), f32(*a[2])
        loss, g = f32(*r[0]), view(*r[1], kind)
        _spread(lambda lo, hi: _judge(logits, label, weight, loss, g, lo, hi), logits.shape[0])

    works = {"norm": norm, "norm_back": norm_back, "act": act, "act_back": act_back, "columns": columns, "judge": judge}
    return raw_target(name, works[name])


def _call(name: str, like: Any, *arrays: Any, kind: Any, flag: bool = False, eps: float = 0.0) -> Any:
    target = _target(name, jnp.dtype(kind).name, flag, eps)
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
def activated(h: Any, bias: Any) -> Any:
    """Return the activation of rows: gelu (one gate) or silu of the first times the second (two).

    Args:
        h: (n, gates, F) float32 or bfloat16.
        bias: (gates, F) float32, added first.

    Returns:
        (n, F) in the type of h.
    """
    like = jax.ShapeDtypeStruct((h.shape[0], h.shape[2]), h.dtype)
    return _call("act", like, h, bias, kind=h.dtype, flag=h.shape[1] == 2)


def _activated_back(kept: Any, g: Any) -> Any:
    h, bias = kept
    like = (jax.ShapeDtypeStruct(h.shape, h.dtype), _f32(*bias.shape))
    return tuple(_call("act_back", like, h, bias, g, kind=h.dtype, flag=h.shape[1] == 2))


activated.defvjp(lambda h, bias: (activated(h, bias), (h, bias)), _activated_back)


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
