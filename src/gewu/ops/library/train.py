"""Steps of training: cross-entropy, AdamW, and rounding to 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from gewu.ops.library.call import Array, fits, floats, integers, launch, real, result, symbols
from gewu.ops.library.index import inside
from gewu.ops.python import (
    absolute,
    assign,
    axes,
    bits,
    cast,
    equal,
    exp,
    index,
    largest,
    log,
    program,
    scalar,
    sizes,
    sqrt,
    total,
    where,
)
from gewu.ops.tensor import Program


def cross_entropy_rows(kinds: Sequence[str]) -> Program:
    """Build loss[i] = log of the sum over k of e^x[i, k], minus x[i, target[i]]."""
    m, n = sizes("m n")
    i, k = axes(i=m, k=n)
    x, target, loss = symbols(kinds, (m, n), (m,), (m,))
    most = largest(x[i, k], over=k)
    return program("cross_entropy", assign(loss[i], most + log(total(exp(x[i, k] - most), over=k)) - x[i, target[i]]))


def _cross_entropy_slope(kinds: Sequence[str]) -> Program:
    m, n = sizes("m n")
    i, j, k = axes(i=m, j=n, k=n)
    dloss, x, target, dx = symbols(kinds, (m,), (m, n), (m,), (m, n))
    most = largest(x[i, k], over=k)
    share = exp(x[i, j] - most) / total(exp(x[i, k] - most), over=k)
    hit = equal(index(j, target.type), target[i])
    return program("cross_entropy_gradient", assign(dx[i, j], dloss[i] * where(hit, share - 1, share)))


def _classes(x: Any, target: Any) -> tuple[Array, Array]:
    x, target = floats("cross_entropy", "x", x), integers("cross_entropy", "target", target)
    fits("cross_entropy", "x (..., classes), target (...)", x.ndim > 0 and x.shape[:-1] == target.shape and x.size > 0, x, target)
    inside("cross_entropy", target, x.shape[-1])
    return x, target


def cross_entropy(x: Any, target: Any, out: Array | None = None) -> Array:
    """Return minus the logarithm of the softmax of x (..., classes) at the target class, for each row."""
    x, target = _classes(x, target)
    out = result("cross_entropy", out, target.shape, x.dtype)
    launch(cross_entropy_rows, (x, target, out), {"m": target.size, "n": x.shape[-1]})
    return out


def cross_entropy_gradient(dy: Any, x: Any, target: Any) -> tuple[Array]:
    """Return the cotangent of x."""
    x, target = _classes(x, target)
    dx = np.empty_like(x)
    launch(_cross_entropy_slope, (floats("cross_entropy", "dy", dy), x, target, dx), {"m": target.size, "n": x.shape[-1]})
    return (dx,)


def adamw_step(kinds: Sequence[str]) -> Program:
    """Build one step of AdamW on p, m and v, in place."""
    (n,) = sizes("n")
    (i,) = axes(i=n)
    p, g, m, v = symbols(kinds, *[(n,)] * 4)
    t = real(*kinds)
    rate, beta1, beta2, eps, decay, correction1, correction2 = (scalar(4 + k, t) for k in range(7))
    first = beta1 * m[i] + (1 - beta1) * g[i]
    second = beta2 * v[i] + (1 - beta2) * g[i] * g[i]
    change = first / correction1 / (sqrt(second / correction2) + eps) + decay * p[i]
    return program("adamw", assign(p[i], p[i] - rate * change), assign(m[i], first), assign(v[i], second))


def adamw(
    p: Array, g: Any, m: Array, v: Array, step: int, rate: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-8, decay: float = 0.01,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Update parameters p and moments m and v in place by gradient g at step 1, 2, ...; return p, m, v.

    p -= rate (m' / (sqrt(v') + eps) + decay p), m' = m / (1 - beta1^step), v' = v / (1 - beta2^step)
    (Loshchilov and Hutter 2019).  Moments may be of a wider type than parameters.
    """
    g = floats("adamw", "g", g)
    p, m, v = (result("adamw", a, g.shape, getattr(a, "dtype", None)) for a in (p, m, v))
    for name, a in (("p", p), ("m", m), ("v", v)):
        floats("adamw", name, a)
    fits(
        "adamw",
        "moments of one type; float64 throughout or nowhere",
        len({a.dtype == np.float64 for a in (p, g, m, v)}) == 1,
        p,
        g,
        m,
        v,
    )
    scalars = (rate, beta1, beta2, eps, decay, 1 - beta1**step, 1 - beta2**step)
    launch(adamw_step, (p, g, m, v), {"n": p.size}, (), scalars)
    return p, m, v


def quantise_rows(kinds: Sequence[str]) -> Program:
    """Build q[i, j] = round(x[i, j] 127 / largest), scale[i] = largest / 127."""
    m, n = sizes("m n")
    i, j, k = axes(i=m, j=n, k=n)
    x, q, scale = symbols(kinds, (m, n), (m, n), (m,))
    most = largest(absolute(x[i, k]), over=k)
    shifted = x[i, j] * (127 / most) + (1.5 * 2.0**52 if most.type == "f64" else 1.5 * 2.0**23)  # rounds; its low byte is q
    rounded = cast(bits(shifted, "s64" if most.type == "f64" else "s32"), "s8")
    return program("quantise", assign(q[i, j], rounded), assign(scale[i], most * (1 / 127)))


def quantise(x: Any, out: tuple[Array, Array] | None = None) -> tuple[Array, Array]:
    """Return each row of the last axis as int8 and its scale (float32 or float64): x is about q times scale."""
    x = floats("quantise", "x", x)
    fits("quantise", "rows that are not empty", x.ndim > 0 and x.shape[-1] > 0, x)
    q = result("quantise", out[0] if out else None, x.shape, np.int8)
    wide = np.float64 if x.dtype == np.float64 else np.float32
    scale = result("quantise", out[1] if out else None, x.shape[:-1], wide)
    launch(quantise_rows, (x, q, scale), {"m": prod(x.shape[:-1]), "n": x.shape[-1]})
    return q, scale
