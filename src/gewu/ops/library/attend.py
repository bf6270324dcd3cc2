"""Attention over heads, plain, causal and with grouped keys; rotary embedding.

    y[h, i] = sum over j of p[h, i, j] v[h, j],   p[h, i, j] = e^(scale q[h, i] . k[h, j]) / sum over j of the same

The emitter keeps the scores of a block of queries in cache.  Causal attention is taken block by block, each over the keys that it
sees only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from gewu.ops.library.call import Array, fits, floats, launch, loop, real, result, symbols, widened
from gewu.ops.library.linear import contract
from gewu.ops.library.normalise import softmax, softmax_gradient
from gewu.ops.python import assign, axes, exp, index, largest, program, scalar, sizes, total, where
from gewu.ops.sizes import Size
from gewu.ops.tensor import Program

BLOCK: Final = 256
"""Queries taken at a time."""


def attention_program(kinds: Sequence[str], causal: bool = False) -> Program:
    """Build attention of m queries from `first` on of q (h, g, n, d) over t keys of k and v (h, n, d); causal: no later key."""
    h, g, n, d, m, t, first = sizes("h g n d m t first")
    a, b, i, j, c, s = axes(a=h, b=g, i=m, j=t, c=d, s=d)
    q, k, v, y = symbols(kinds, (h, g, n, d), (h, n, d), (h, n, d), (h, g, n, d))
    score = total(q[a, b, i + first, s] * k[a, j, s], over=s) * scalar(4, real(*kinds))
    if causal:
        score = where(index(i + first) >= index(j), score, float("-inf"))
    weight = exp(score - largest(score, over=j))
    return program("attention", assign(y[a, b, i + first, c], total(weight * v[a, j, c], over=j) / total(weight, over=j)))


def _attend(operator: str, q: Any, k: Any, v: Any, scale: float | None, causal: bool, out: Array | None) -> Array:
    q, k, v = (floats(operator, name, a) for name, a in (("q", q), ("k", k), ("v", v)))
    alike = (
        q.ndim == k.ndim == v.ndim == 3 and k.shape == v.shape and q.shape[1:] == k.shape[1:] and q.dtype == k.dtype == v.dtype
    )
    fits(operator, "q (heads, n, d), k and v (heads / group, n, d), of one type", alike and len(q) % max(len(k), 1) == 0, q, k, v)
    out = result(operator, out, q.shape, q.dtype)
    if not q.size:
        return out
    heads, n, d = q.shape
    group, factor = heads // len(k), d**-0.5 if scale is None else scale
    for first in range(0, n, BLOCK if causal else n):
        last = min(first + BLOCK, n) if causal else n
        extents = {"h": len(k), "g": group, "n": n, "d": d, "m": last - first, "t": last, "first": first}
        launch(attention_program, (q, k, v, out), extents, (causal,), (factor,))
    return out


def attention(q: Any, k: Any, v: Any, scale: float | None = None, out: Array | None = None) -> Array:
    """Return attention of q over k and v, all (heads, n, d); scale None: one over the root of d."""
    fits("attention", "as many heads in q as in k", np.shape(q)[:1] == np.shape(k)[:1], np.asarray(q), np.asarray(k))
    return _attend("attention", q, k, v, scale, False, out)


def attention_causal(q: Any, k: Any, v: Any, scale: float | None = None, out: Array | None = None) -> Array:
    """Return attention in which query i sees keys 0 to i."""
    return _attend("attention_causal", q, k, v, scale, True, out)


def attention_gqa(q: Any, k: Any, v: Any, scale: float | None = None, out: Array | None = None) -> Array:
    """Return attention of q (heads, n, d) over k and v (heads / group, n, d): each group of heads shares keys."""
    return _attend("attention_gqa", q, k, v, scale, False, out)


def _gradient(operator: str, dy: Any, q: Any, k: Any, v: Any, scale: float | None, causal: bool) -> tuple[Array, Array, Array]:
    arrays = [floats(operator, name, a, 3) for name, a in (("dy", dy), ("q", q), ("k", k), ("v", v))]
    wide = [widened(a) for a in arrays]
    heads, n, d = wide[1].shape
    group, factor = heads // len(wide[2]), wide[1].dtype.type(d**-0.5 if scale is None else scale)
    dy, q, k, v = (a.repeat(group, 0) if place > 1 and group > 1 else a for place, a in enumerate(wide))
    score = contract(operator, "zik,zjk->zij", q, k) * factor
    if causal:
        score = np.where(np.tri(n, dtype=bool), score, score.dtype.type(-np.inf))
    weight = softmax(score)
    (dscore,) = softmax_gradient(contract(operator, "zid,zjd->zij", dy, v), score)
    dscore *= factor
    dq, dk, dv = (contract(operator, f, a, b) for f, a, b in (
        ("zij,zjd->zid", dscore, k), ("zij,zid->zjd", dscore, q), ("zij,zid->zjd", weight, dy)))  # fmt: skip
    if group > 1:
        dk, dv = (a.reshape(-1, group, n, d).sum(1) for a in (dk, dv))
    return tuple(a.astype(arrays[1].dtype, copy=False) for a in (dq, dk, dv))  # type: ignore[return-value]


def attention_gradient(dy: Any, q: Any, k: Any, v: Any, scale: float | None = None) -> tuple[Array, Array, Array]:
    """Return the cotangents of q, k and v."""
    return _gradient("attention", dy, q, k, v, scale, False)


def attention_causal_gradient(dy: Any, q: Any, k: Any, v: Any, scale: float | None = None) -> tuple[Array, Array, Array]:
    """Return the cotangents of q, k and v."""
    return _gradient("attention_causal", dy, q, k, v, scale, True)


def attention_gqa_gradient(dy: Any, q: Any, k: Any, v: Any, scale: float | None = None) -> tuple[Array, Array, Array]:
    """Return the cotangents of q, k and v."""
    return _gradient("attention_gqa", dy, q, k, v, scale, False)


def rotation(kinds: Sequence[str], back: bool = False) -> Program:
    """Build the rotation of pairs (2 i, 2 i + 1) of x (n, heads, 2 d) by angles (n, d)."""
    n, h, d = sizes("n h d")
    p, a, i = axes(p=n, a=h, i=d)
    x, cosine, sine, y = symbols(kinds, (n, h, Size.of(2) * d), (n, d), (n, d), (n, h, Size.of(2) * d))
    even, odd, c = x[p, a, 2 * i], x[p, a, 2 * i + 1], cosine[p, i]
    s = -sine[p, i] if back else sine[p, i]
    return program("rotary", assign(y[p, a, 2 * i], even * c - odd * s), assign(y[p, a, 2 * i + 1], odd * c + even * s))


@loop
def _turn(lo, hi, x, cosine, sine, y):
    for p in range(lo, hi):
        c, s = cosine[p], sine[p]
        for a in range(x.shape[1]):
            source, target = x[p, a], y[p, a]
            for i in range(len(c)):
                target[2 * i] = source[2 * i] * c[i] - source[2 * i + 1] * s[i]
                target[2 * i + 1] = source[2 * i + 1] * c[i] + source[2 * i] * s[i]


def _rotate(x: Any, cosine: Any, sine: Any, back: bool, out: Array | None) -> Array:
    x, cosine, sine = floats("rotary", "x", x, 3), floats("rotary", "cosine", cosine, 2), floats("rotary", "sine", sine, 2)
    shapes = "x (n, heads, d), cosine and sine (n, d / 2)"
    fits("rotary", shapes, cosine.shape == sine.shape == (len(x), x.shape[2] // 2) and x.shape[2] % 2 == 0, x, cosine, sine)
    out = result("rotary", out, x.shape, x.dtype)
    if x.dtype.itemsize == 2 or np.may_share_memory(x, out):
        launch(rotation, (x, cosine, sine, out), {"n": len(x), "h": x.shape[1], "d": x.shape[2] // 2}, (back,))
    else:
        _turn(len(x), x.size, x, cosine, -sine if back else sine, out)
    return out


def rotary(x: Any, cosine: Any, sine: Any, out: Array | None = None) -> Array:
    """Return x (n, heads, d) with pairs (2 i, 2 i + 1) turned by the angles of their position: cosine and sine (n, d / 2)."""
    return _rotate(x, cosine, sine, False, out)


def rotary_gradient(dy: Any, x: Any, cosine: Any, sine: Any) -> tuple[Array]:
    """Return the cotangent of x: turned back."""
    return (_rotate(dy, cosine, sine, True, None),)
