"""Mixture of experts: each token goes to the `top_k` of E small MLPs that a router likes best for it.

    softmax   p = softmax(x R), the top_k of p, weights p over their sum           (Jiang et al., arXiv:2401.04088)
    sigmoid   s = sigmoid(x R), the top_k of s, weights s over their sum, p = s over the sum of all   (arXiv:2412.19437)
    balance · E · sum_e f_e mean(p_e)    loss that evens the load; f_e is the share of choices, over all tokens of the step's part
                                                                                    (Fedus et al., arXiv:2101.03961)

Tokens are dealt to the experts of all devices of ep through buffers of fixed size: each expert has `places` for the tokens of
each device. What finds no place is left out of that expert's sum and counted ("dropped"); first choices come before second ones,
then earlier tokens before later. With capacity = 0 nothing is ever dropped: without ep and sp tokens are sorted by expert and
multiplied in groups, else there is a place for every token at every expert, E · n · D numbers. Dispatch sorts expert
numbers and gathers rows; no array of tokens × experts × places exists.

With sp each device of tp routes its own tokens; the buffers are gathered over tp before the experts, whose inner width is cut.
"""

from __future__ import annotations

import math
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from gewu.ops import product as products
from gewu.ops.product import matmul
from gewu.train.config import ModelConfig
from gewu.train.layers import Weights
from gewu.train.mesh import DATA, Layout, copy_to, exchange, gather, reduce_from, scatter, total

BLOCK: Final = 128
"""Most rows of one product of an expert on CPUs."""


def moe(x: Any, w: Weights, c: ModelConfig, at: Layout, p: Any) -> tuple[Any, Weights]:
    """Return what the experts make of tokens.

    Args:
        x: (n, D) this device's tokens (with sp, its share of tp).
        w: router (D, E), experts_up (E / ep, D, gates, F / tp), experts_down (E / ep, F / tp, D).

    Returns:
        (n, D), and {"aux": contribution to the balance loss, "dropped": choices of this device that found no place}.
    """
    n = x.shape[0]
    weight, chosen, shares = route(x, w["router"], c)
    count = jnp.zeros(c.experts, jnp.float32).at[chosen.reshape(-1)].add(1.0)
    axes = (*DATA, "tp") if at.sp else DATA
    tokens = n * at.size(*axes)
    often = lax.stop_gradient(total(count, at, *axes)) / (tokens * c.top_k)
    aux = c.balance * c.experts * (often * shares.sum(0)).sum() / tokens
    if c.capacity == 0 and at.ep == 1 and not (at.sp and at.tp > 1):
        return _ragged(x, weight, chosen, w, c, at, p), {"aux": aux, "dropped": jnp.float32(0)}
    places = min(n, math.ceil(n * c.top_k / c.experts * c.capacity)) if c.capacity else n
    y, served = _buffered(x, weight, chosen, places, w, c, at, p)
    return y, {"aux": aux, "dropped": n * c.top_k - served}


def route(x: Any, router: Any, c: ModelConfig) -> tuple[Any, Any, Any]:
    """Return of tokens (n, D) the weights (n, top_k), numbers (n, top_k) of their experts, and shares (n, E), float32."""
    logits = jnp.dot(x.astype(jnp.float32), router, preferred_element_type=jnp.float32)
    scores = jax.nn.softmax(logits) if c.router == "softmax" else jax.nn.sigmoid(logits)
    best, chosen = lax.top_k(scores, c.top_k)
    shares = scores if c.router == "softmax" else scores / scores.sum(-1, keepdims=True)
    return best / best.sum(-1, keepdims=True), chosen, shares


def _sorted(chosen: Any, experts: int) -> tuple[Any, Any, Any, Any]:
    """Return choice · n + token in order of expert, choice, token; the expert of each; and each expert's first and number."""
    flat = chosen.T.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    expert = flat[order]
    first = jnp.searchsorted(expert, jnp.arange(experts + 1))
    return order, expert, first[:-1], first[1:] - first[:-1]


def _act(h: Any, c: ModelConfig) -> Any:
    """Return the activation of (..., gates, F)."""
    return jax.nn.silu(h[..., 0, :]) * h[..., 1, :] if c.activation == "swiglu" else jax.nn.gelu(h[..., 0, :], approximate=True)


def _buffered(x: Any, weight: Any, chosen: Any, places: int, w: Weights, c: ModelConfig, at: Layout, p: Any) -> tuple[Any, Any]:
    """Return the sum over the experts of each token that found a place, and how many choices did."""
    (n, D), E = x.shape, c.experts
    order, expert, first, number = _sorted(chosen, E)
    place = jnp.arange(n * c.top_k) - first[expert]
    slot = jnp.where(place < places, expert * places + place, E * places)
    slots = jnp.zeros_like(slot).at[order].set(slot).reshape(c.top_k, n)
    source = first[:, None] + jnp.arange(places)[None]
    full = jnp.arange(places)[None] < number[:, None]
    token = jnp.where(full, order[jnp.minimum(source, n * c.top_k - 1)] % n, n)
    sent = x.astype(p.compute).at[token].get(mode="fill", fill_value=0)  # (E, places, D)
    made = _experts(sent, w, c, at).reshape(E * places, D)
    y = jnp.zeros((n, D), jnp.float32)
    for choice in range(c.top_k):
        y = y + weight[:, choice, None] * made.at[slots[choice]].get(mode="fill", fill_value=0).astype(jnp.float32)
    return y.astype(x.dtype), jnp.minimum(number, places).sum().astype(jnp.float32)


def _experts(sent: Any, w: Weights, c: ModelConfig, at: Layout) -> Any:
    """Return what the experts, wherever they are, make of buffers (E, places, D)."""
    E, places, D = sent.shape
    mine = E // at.ep
    x = exchange(sent.reshape(at.ep, mine, places, D), at, "ep", 0, 0)  # (sender, expert, places, D)
    x = x.swapaxes(0, 1).reshape(mine, at.ep * places, D)
    x = gather(x, at, "tp", 1) if at.sp else copy_to(x, at, "tp")
    up, down = w["experts_up"], w["experts_down"]
    h = _batched(x, up.reshape(mine, D, -1)).reshape(*x.shape[:2], *up.shape[2:])
    y = _batched(_act(h, c), down)
    y = scatter(y, at, "tp", 1) if at.sp else reduce_from(y, at, "tp")
    y = y.reshape(mine, at.ep, places, D).swapaxes(0, 1)
    return exchange(y, at, "ep", 0, 0).reshape(E, places, D)


def _batched(a: Any, b: Any) -> Any:
    """Return the products of each expert, summed in float32."""
    return lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32).astype(a.dtype)


def _ragged(x: Any, weight: Any, chosen: Any, w: Weights, c: ModelConfig, at: Layout, p: Any) -> Any:
    """Return the sum over the experts of every token, multiplied in groups of unequal size.

    On CPUs each group is filled up to whole blocks of rows, with one expert for a block: XLA's own ragged product goes through
    all rows for each expert there.
    """
    (n, D), (E, F) = x.shape, w["experts_down"].shape[:2]
    order, expert, first, number = _sorted(chosen, E)
    size = 1 if not products.usable() else min(BLOCK, max(8, n * c.top_k // E))
    number = -(-number // size)  # blocks of each expert
    until = jnp.cumsum(number)
    blocks = n * c.top_k // size + (E if size > 1 else 0)
    row = (until - number)[expert] * size + jnp.arange(n * c.top_k) - first[expert]
    token = jnp.full(blocks * size, n).at[row].set(order % n)
    rows = copy_to(x.astype(p.compute), at, "tp").at[token].get(mode="fill", fill_value=0)
    of = jnp.minimum(jnp.searchsorted(until, jnp.arange(blocks), side="right"), E - 1).astype(jnp.int32)

    def times(a: Any, b: Any) -> Any:
        if size > 1:
            return _blocked(a.reshape(blocks, size, -1), b, of).reshape(blocks * size, -1)
        return lax.ragged_dot(a, b, number.astype(jnp.int32), preferred_element_type=jnp.float32).astype(a.dtype)

    h = _act(times(rows, w["experts_up"].reshape(E, D, -1)).reshape(-1, c.gates, F), c)
    made, weight = times(h, w["experts_down"]), copy_to(weight, at, "tp")  # the sum over tp is taken once for a token
    back = jnp.zeros_like(order).at[order].set(row).reshape(c.top_k, n)
    y = sum(weight[:, choice, None] * made[back[choice]].astype(jnp.float32) for choice in range(c.top_k))
    return reduce_from(jnp.asarray(y).astype(x.dtype), at, "tp")


@jax.custom_vjp
def _blocked(a: Any, b: Any, of: Any) -> Any:
    """Return the products (blocks, rows, O) of a (blocks, rows, I), each with the matrix of b (E, I, O) of its number."""
    return lax.map(lambda block: matmul(block[0], b[block[1]]), (a, of))


def _blocked_back(saved: Any, g: Any) -> tuple[Any, Any, None]:
    a, b, of = saved

    def one(sums: Any, block: Any) -> tuple[Any, Any]:
        a, g, e = block
        return sums.at[e].add(matmul(a.T, g).astype(jnp.float32)), matmul(g, b[e].T)

    sums, grads = lax.scan(one, jnp.zeros(b.shape, jnp.float32), (a, g, of))
    return grads, sums.astype(b.dtype), None


_blocked.defvjp(lambda a, b, of: (_blocked(a, b, of), (a, b, of)), _blocked_back)
