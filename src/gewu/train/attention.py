"""Attention: softmax(q · k / sqrt(C)) · v over the keys that a token may see.

A token sees keys at or before its own place in the row (`causal`), at most `window` of them, and only those of its own document
(`segments`). Four ways give the same numbers:

    heads    CPUs, short rows: one head after the other in the cache (`ops.attend`)
    blocks   one device: rows of queries in blocks, each with just the keys it can see; scores of one block are alive at a time
    ring     cp devices: each holds chunks i and 2n - 1 - i of 2n (zigzag, so all work alike); keys and values go around the ring,
             partial sums are joined by their maxima (Liu et al., arXiv:2310.01889; Brandon et al., arXiv:2311.09431)
    cudnn    on NVIDIA GPUs, without documents: the library's fused kernel through `jax.nn.dot_product_attention`

Scores and softmax are float32. Queries come in K groups of G for the K keys (grouped-query attention, arXiv:2305.13245).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gewu.core.errors import InputError
from gewu.ops import attend
from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout, index, shift

BLOCK: Final = 128
"""Rows of queries whose scores are alive at a time."""
KEEP: Final = 1024
"""Tokens of a row above which scores are computed again in the backward pass instead of kept."""
_NEVER: Final = -1e30


class Place(NamedTuple):
    """Where tokens stand.

    Attributes:
        index: int32 (t,): place in the row.
        segments: int32 (b, t) number of the document, or None for one document a row.
    """

    index: Any
    segments: Any = None


def split(qkv: Any) -> tuple[Any, Any, Any]:
    """Return queries (b, t, K, G, C), keys and values (b, t, K, C) of all three side by side."""
    return qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]


def gather_heads(qkv: Any, place: Place, c: ModelConfig, at: Layout) -> Any:
    """Return `attention` of queries, key and value side by side, (b, t, K, G + 2, C)."""
    b, t, K, _, _ = qkv.shape
    if at.cp == 1 and (c.causal or not c.window) and attend.usable(t, qkv.dtype):
        segments = jnp.zeros((0, t), jnp.int32) if place.segments is None else place.segments
        return attend.attend(qkv, segments, c.causal, c.window).reshape(b, t, K, -1)
    return attention(*split(qkv), place, c, at)


def attention(q: Any, k: Any, v: Any, place: Place, c: ModelConfig, at: Layout) -> Any:
    """Return what each token gathers.

    Args:
        q: (b, t, K, G, C); the K heads of this device.
        k, v: (b, t, K, C).
        place: of these t tokens.

    Returns:
        (b, t, K, G·C) in the type of v.
    """
    b, t, K, G, C = q.shape
    q = q * jnp.asarray(C**-0.5, q.dtype)
    if at.cp > 1:
        out = _ring(q, k, v, place, c, at)
    elif jax.default_backend() == "gpu" and place.segments is None and q.dtype == jnp.bfloat16:
        window = (c.window - 1, 0) if c.window else None
        out = jax.nn.dot_product_attention(
            q.reshape(b, t, K * G, C), k, v, scale=1.0, is_causal=c.causal, local_window_size=window, implementation="cudnn"
        )
    else:
        out = _blocks(q, k, v, place, c)
    return out.reshape(b, t, K, G * C)


def _seen(rows: Place, keys: Place, c: ModelConfig) -> Any:
    """Return which keys each row sees, bool (b or 1, 1, 1, rows, keys)."""
    ahead = rows.index[:, None] - keys.index[None, :]
    seen = (ahead >= 0) if c.causal else jnp.ones(ahead.shape, bool)
    if c.window:
        seen = seen & (ahead < c.window) & (ahead > -c.window)
    seen = seen[None]
    if rows.segments is not None:
        seen = seen & (rows.segments[:, :, None] == keys.segments[:, None, :])
    return seen[:, None, None]


def _cut(place: Place, lo: int, hi: int) -> Place:
    return Place(place.index[lo:hi], None if place.segments is None else place.segments[:, lo:hi])


def _scores(q: Any, k: Any, rows: Place, keys: Place, c: ModelConfig) -> Any:
    scores = jnp.einsum("bqkgc,bskc->bkgqs", q, k, preferred_element_type=jnp.float32)
    return jnp.where(_seen(rows, keys, c), scores, _NEVER)


def _blocks(q: Any, k: Any, v: Any, place: Place, c: ModelConfig) -> Any:
    t, out = q.shape[1], []

    def one(q: Any, k: Any, v: Any, rows: Place, keys: Place) -> Any:
        weights = jax.nn.softmax(_scores(q, k, rows, keys, c), -1).astype(v.dtype)
        return jnp.einsum("bkgqs,bskc->bqkgc", weights, v, preferred_element_type=jnp.float32).astype(v.dtype)

    one = jax.checkpoint(one) if t > KEEP else one
    for lo in range(0, t, BLOCK):
        hi = min(lo + BLOCK, t)
        first = max(0, lo - c.window + 1) if c.window else 0
        last = hi if c.causal else min(t, hi + c.window - 1) if c.window else t
        out.append(one(q[:, lo:hi], k[:, first:last], v[:, first:last], _cut(place, lo, hi), _cut(place, first, last)))
    return out[0] if len(out) == 1 else jnp.concatenate(out, 1)


class _Sum(NamedTuple):
    """A softmax over some of the keys: sum of exp(score - top) v, sum of exp(score - top), top."""

    value: Any
    weight: Any
    top: Any


def _part(q: Any, k: Any, v: Any, rows: Place, keys: Place, c: ModelConfig) -> _Sum:
    """Return the softmax over these keys, unfinished: value (b, q, K, G, C), weight and top (b, q, K, G), float32."""
    scores = _scores(q, k, rows, keys, c)
    top = lax.stop_gradient(scores.max(-1))
    weights = jnp.where(scores > _NEVER / 2, jnp.exp(scores - top[..., None]), 0.0)
    value = jnp.einsum("bkgqs,bskc->bqkgc", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return _Sum(value, jnp.moveaxis(weights.sum(-1), 3, 1), jnp.moveaxis(top, 3, 1))


def _join(a: _Sum, b: _Sum) -> _Sum:
    top = jnp.maximum(a.top, b.top)
    at, bt = jnp.exp(a.top - top), jnp.exp(b.top - top)
    return _Sum(a.value * at[..., None] + b.value * bt[..., None], a.weight * at + b.weight * bt, top)


def zigzag(t: int, n: int) -> list[int]:
    """Return the order in which the t tokens of a row lie on n devices of cp.

    Raises:
        InputError: t is no multiple of 2 n.
    """
    if t % (2 * n):
        raise InputError("tokens do not divide over cp", key="length", value=t, allowed=f"a multiple of 2 cp = {2 * n}")
    size = t // (2 * n)
    chunks = [chunk for i in range(n) for chunk in (i, 2 * n - 1 - i)]
    return [token for chunk in chunks for token in range(chunk * size, (chunk + 1) * size)]


def places(t: int, at: Layout) -> Any:
    """Return the places in the row, int32 (t,), of the t tokens that this device of cp holds."""
    if at.cp == 1:
        return jnp.arange(t, dtype=jnp.int32)
    i, half = index(at, "cp"), jnp.arange(t // 2, dtype=jnp.int32)
    return jnp.concatenate([half + i * (t // 2), half + (2 * at.cp - 1 - i) * (t // 2)])


def _ring(q: Any, k: Any, v: Any, place: Place, c: ModelConfig, at: Layout) -> Any:
    """Attend around the ring of cp: in every round but the first each device does two chunk products, whatever its place.

    A chunk sees all of the earlier chunks of causal attention. Of device j's keys, those of a device i > j see chunk j with both
    halves; i < j sees both chunks with its second half. Without causality all four products are done.
    """
    half, me = q.shape[1] // 2, index(at, "cp")
    part = jax.checkpoint(partial(_part, c=c))
    low, high = slice(0, half), slice(half, None)
    rows = (_cut(place, 0, half), _cut(place, half, 2 * half))
    queries = (q[:, low], q[:, high])

    def halves(x: Any, keys: Place) -> Any:
        return (x[:, low], x[:, high]), (_cut(keys, 0, half), _cut(keys, half, 2 * half))

    sums: list[_Sum | None] = [None, None]

    def add(which: int, found: _Sum) -> None:
        old = sums[which]
        sums[which] = found if old is None else _join(old, found)

    keys = place
    for turn in range(at.cp):
        (k1, k2), (p1, p2) = halves(k, keys)
        (v1, v2), _ = halves(v, keys)
        if not c.causal or turn == 0:
            add(0, part(queries[0], k1, v1, rows[0], p1))
            add(1, part(queries[1], k1, v1, rows[1], p1))
            add(1, part(queries[1], k2, v2, rows[1], p2))
            if not c.causal:
                add(0, part(queries[0], k2, v2, rows[0], p2))
        else:
            add(1, part(queries[1], k1, v1, rows[1], p1))
            later = me >= turn  # the keys come from device me - turn, before this one
            pick = partial(jax.tree.map, partial(jnp.where, later))
            found = part(pick(queries[0], queries[1]), pick(k1, k2), pick(v1, v2), pick(rows[0], rows[1]), pick(p1, p2))
            nothing = _Sum(jnp.zeros_like(found.value), jnp.zeros_like(found.weight), jnp.full_like(found.top, _NEVER))
            add(0, pick(found, nothing))
            add(1, pick(nothing, found))
        if turn + 1 < at.cp:
            k, v, keys = shift((k, v, keys), at, "cp")
    value = jnp.concatenate([sums[0].value, sums[1].value], 1)  # type: ignore[union-attr]
    weight = jnp.concatenate([sums[0].weight, sums[1].weight], 1)  # type: ignore[union-attr]
    return (value / jnp.maximum(weight, 1e-37)[..., None]).astype(v.dtype)


def flops(t: int, c: ModelConfig) -> float:
    """Return the floating-point operations of scores and values of one row of t tokens and one layer, forward."""
    seen = t * (t + 1) / 2 if c.causal else float(t * t)
    if c.window and c.window < t:
        seen = c.window * (t - (c.window - 1) / 2) if c.causal else t * (2.0 * c.window - 1)
    return 4.0 * math.prod((c.heads, c.C)) * seen
