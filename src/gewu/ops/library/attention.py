"""Attention over heads, plain, causal and with grouped keys; rotary embedding.

    y[h, i] = sum over j of p[h, i, j] v[h, j],   p[h, i, j] = e^(scale q[h, i] . k[h, j]) / sum over j of the same

Queries are taken in blocks whose scores stay in cache; a causal block multiplies only the keys that it sees.  The program of the
whole formula is `attention_program`, which is what GPUs and JAX get.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from gewu.ops.library.call import Array, executable, fits, floats, launch, narrowed, real, result, symbols, widened, working
from gewu.ops.library.linear import contract, contraction
from gewu.ops.library.normalise import softmax, softmax_gradient
from gewu.ops.pool import THREADS, run_ranges
from gewu.ops.python import Axis, Value, assign, axes, exp, index, largest, program, scalar, sizes, total, where
from gewu.ops.sizes import Size
from gewu.ops.tensor import Program

BLOCK: Final = 128
"""Queries taken at a time."""


def attention_program(kinds: Sequence[str], causal: bool = False, group: int = 1) -> Program:
    """Build attention of q (h group, n, d) over k and v (h, n, d)."""
    h, n, d = sizes("h n d")
    a, g, i, j, c, s = axes(a=h, g=group, i=n, j=n, c=d, s=d)
    q, k, v, y = symbols(kinds, (h, group, n, d), (h, n, d), (h, n, d), (h, group, n, d))
    score = total(q[a, g, i, s] * k[a, j, s], over=s) * scalar(4, real(*kinds))
    if causal:
        score = where(index(i) >= index(j), score, float("-inf"))
    weight = exp(score - largest(score, over=j))
    return program("attention", assign(y[a, g, i, c], total(weight * v[a, j, c], over=j) / total(weight, over=j)))


def _weights_program(kinds: Sequence[str], causal: bool) -> Program:
    """Build weights e^(scale (score - largest)) in place, and one over their sums; causal: i sees up to first + i."""
    m, n, first = sizes("m n first")
    i, j, k = axes(i=m, j=n, k=n)
    score, rest = symbols(kinds, (m, n), (m,))
    scale = scalar(2, kinds[0])

    def seen(a: Axis) -> Value:
        return where(index(i + first) >= index(a), score[i, a] * scale, float("-inf")) if causal else score[i, a] * scale

    most = largest(seen(k), over=k)
    whole = total(exp(seen(k) - most), over=k)
    return program("weights", assign(score[i, j], exp(seen(j) - most)), assign(rest[i], 1 / whole))


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
    wide, y = [widened(a) for a in (q, k, v)], working(out)
    weights = executable(_weights_program, (y.dtype, y.dtype), (causal,), 1)
    scores, values = (executable(contraction, (y.dtype,) * 3, (formula,), 1) for formula in ("ik,jk->ij", "ik,kj->ij"))
    blocks = -(-n // BLOCK)

    def part(lo: int, hi: int) -> None:
        for item in range(hi - 1, lo - 1, -1):
            head, first = item // blocks, item % blocks * BLOCK
            last = min(first + BLOCK, n)
            keys = last if causal else n
            score = np.empty((last - first, keys), y.dtype)
            seen = wide[1][head // group, :keys], wide[2][head // group, :keys]
            scores((wide[0][head, first:last], seen[0], score), {"i": last - first, "j": keys, "k": d})
            rest = np.empty(last - first, y.dtype)
            weights((score, rest, factor), {"m": last - first, "n": keys, "first": first})
            target = y[head, first:last]
            values((score, seen[1], target), {"i": last - first, "j": d, "k": keys})
            target *= rest[:, None]

    count = heads * blocks
    if heads * n * n * d < 1 << 20 or THREADS == 1:
        part(0, count)
    else:
        step = -(-count // (4 * THREADS))
        run_ranges(part, [(lo, min(lo + step, count)) for lo in range(0, count, step)], THREADS)
    return narrowed(y, out)


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


def _rotate(x: Any, cosine: Any, sine: Any, back: bool, out: Array | None) -> Array:
    x, cosine, sine = floats("rotary", "x", x, 3), floats("rotary", "cosine", cosine, 2), floats("rotary", "sine", sine, 2)
    shapes = "x (n, heads, d), cosine and sine (n, d / 2)"
    fits("rotary", shapes, cosine.shape == sine.shape == (len(x), x.shape[2] // 2) and x.shape[2] % 2 == 0, x, cosine, sine)
    out = result("rotary", out, x.shape, x.dtype)
    launch(rotation, (x, cosine, sine, out), {"n": len(x), "h": x.shape[1], "d": x.shape[2] // 2}, (back,))
    return out


def rotary(x: Any, cosine: Any, sine: Any, out: Array | None = None) -> Array:
    """Return x (n, heads, d) with pairs (2 i, 2 i + 1) turned by the angles of their position: cosine and sine (n, d / 2)."""
    return _rotate(x, cosine, sine, False, out)


def rotary_gradient(dy: Any, x: Any, cosine: Any, sine: Any) -> tuple[Array]:
    """Return the cotangent of x: turned back."""
    return (_rotate(dy, cosine, sine, True, None),)
