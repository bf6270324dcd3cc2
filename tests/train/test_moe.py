"""Mixture of experts: against a loop over tokens, its dropped choices counted, the same on every layout."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest

from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout
from gewu.train.precision import Precision

D, E, F, N = 8, 4, 6, 24
ONE = Layout()


def config(**changes):
    return ModelConfig(vocab=32, width=D, experts=E, expert_hidden=F, balance=0.3).with_(**changes)


def weights(seed=0, experts=E):
    rng = np.random.default_rng(seed)
    return {
        "router": rng.normal(size=(D, experts)).astype("f4"),
        "experts_up": rng.normal(size=(experts, D, 2, F)).astype("f4"),
        "experts_down": rng.normal(size=(experts, F, D)).astype("f4"),
    }


def tokens(seed=1):
    return np.random.default_rng(seed).normal(size=(N, D)).astype("f4")


def loop(x, w, c):
    """Token by token in float64: output, balance loss, dropped choices."""
    x, w = x.astype(float), {name: leaf.astype(float) for name, leaf in w.items()}
    n, experts = len(x), w["router"].shape[1]
    places = min(n, int(np.ceil(n * c.top_k / experts * c.capacity))) if c.capacity else n
    logits = x @ w["router"]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) if c.router == "softmax" else 1 / (1 + np.exp(-logits))
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, : c.top_k]
    y, taken, dropped = np.zeros_like(x), np.zeros(experts, int), 0
    for choice in range(c.top_k):
        for token in range(n):
            e = chosen[token, choice]
            if taken[e] == places:
                dropped += 1
                continue
            taken[e] += 1
            gate, up = (x[token] @ w["experts_up"][e, :, part] for part in (0, 1))
            share = scores[token, e] / scores[token, chosen[token]].sum()
            y[token] += share * ((gate / (1 + np.exp(-gate)) * up) @ w["experts_down"][e])
    often = np.bincount(chosen.reshape(-1), minlength=experts) / (n * c.top_k)
    return y, c.balance * experts * (often * (scores / scores.sum(1, keepdims=True)).mean(0)).sum(), dropped


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("top_k", "capacity"), [(1, 0), (2, 0), (E, 0), (1, 1.0), (2, 0.5), (2, 1.25), (E, 1.0)])
def test_it_is_a_loop_over_tokens(router, top_k, capacity):
    import jax

    from gewu.train.moe import moe

    c, x, w = config(router=router, top_k=top_k, capacity=capacity), tokens(), weights()
    y, aux = jax.jit(lambda x, w: moe(x, w, c, ONE, Precision.of("fp32")))(x, w)
    expected, balance, dropped = loop(x, w, c)
    np.testing.assert_allclose(y, expected, atol=2e-5 * np.abs(expected).max())  # sums of float32
    assert float(aux["aux"]) == pytest.approx(balance, rel=1e-5)
    assert float(aux["dropped"]) == dropped
    assert dropped > 0 or capacity in (0, 1.25) or top_k == E


def test_a_hot_expert():
    """All tokens want expert 2: without capacity it serves all, with it as many as it has places, and the rest is counted."""
    import jax

    from gewu.train.moe import moe

    w, x, p = weights(), tokens(), Precision.of("fp32")
    x[:, 0] = 5.0
    w["router"] = np.zeros((D, E), "f4")
    w["router"][0, 2] = 10.0
    for capacity, served in ((0, N), (1.0, N // E), (2.0, N // 2)):
        c = config(top_k=1, capacity=capacity)
        y, aux = jax.jit(partial(moe, c=c, at=ONE, p=p))(x, w)
        assert float(aux["dropped"]) == N - served
        assert (np.abs(np.asarray(y)).sum(1) > 0).tolist() == [True] * served + [False] * (N - served)
        assert float(aux["aux"]) == pytest.approx(c.balance * E, rel=1e-4)  # the worst there is


def test_even_load_has_the_least_balance_loss():
    from gewu.train.moe import route

    c = config(top_k=E, router="sigmoid")
    weight, chosen, shares = route(tokens(), np.zeros((D, E), "f4"), c)
    np.testing.assert_allclose(weight, 1 / E)
    np.testing.assert_allclose(shares, 1 / E)
    assert sorted(np.asarray(chosen)[0].tolist()) == list(range(E))


@pytest.mark.parametrize("capacity", [0, 1.0])
def test_gradients_are_finite_differences(capacity):
    import jax
    import jax.numpy as jnp

    from gewu.train.moe import moe

    c, x, w, p = config(top_k=2, capacity=capacity), tokens(), weights(), Precision.of("fp32")
    pull = jnp.asarray(np.random.default_rng(5).normal(size=(N, D)))

    def f(x, w):
        y, aux = moe(x, w, c, ONE, p)
        return (y * pull).sum() + aux["aux"]

    def reference(x, w):
        y, balance, _ = loop(x, w, c)
        return (y * np.asarray(pull, float)).sum() + balance

    grads = jax.jit(jax.grad(f, (0, 1)))(x, w)
    rng, step = np.random.default_rng(6), 1e-6  # small against the distance between scores: choices stay
    for name in w:
        way = rng.normal(size=w[name].shape)
        high, low = (reference(x, w | {name: w[name].astype(float) + s * way}) for s in (step, -step))
        assert float((grads[1][name] * way).sum()) == pytest.approx((high - low) / (2 * step), rel=2e-4)
    way = rng.normal(size=x.shape)
    high, low = (reference(x.astype(float) + s * way, w) for s in (step, -step))
    assert float((grads[0] * way).sum()) == pytest.approx((high - low) / (2 * step), rel=2e-4)


@cache
def layer(layout, capacity, skew=0.0):
    """Output, sums and gradients of one layer on a layout, from whole arrays."""
    import jax
    from jax.sharding import PartitionSpec as P

    from gewu.train.mesh import DATA, total
    from gewu.train.moe import moe

    at, c, experts = Layout.of(layout), config(experts=8, top_k=2, capacity=capacity), 8
    x, w = tokens(), weights(experts=experts)
    w["router"][:, 3] += skew
    x = np.concatenate([x, tokens(2)[:8]])  # 32 rows
    rows = P((*DATA, *(["tp"] if at.sp else [])))
    cut = {"router": P(), "experts_up": P("ep", None, None, "tp"), "experts_down": P("ep", "tp")}

    def run(x, w):
        def f(x, w):
            y, aux = moe(x, w, c, at, Precision.of("fp32"))
            return (y * y).sum() + aux["aux"], (y, aux)

        grads, (y, aux) = jax.grad(f, (0, 1), has_aux=True)(x, w)
        others = ("dp", "fsdp", "cp")
        grads[1]["router"] = total(grads[1]["router"], at, *DATA, *(["tp"] if at.sp else []))
        grads[1].update({name: total(grads[1][name], at, *others) for name in ("experts_up", "experts_down")})
        return y, total(aux, at, *DATA, *(["tp"] if at.sp else [])), grads

    if at.devices > 1:
        run = jax.shard_map(
            run, mesh=at.mesh(jax.devices()), in_specs=(rows, cut), out_specs=(rows, P(), (rows, cut)), check_vma=False
        )
    return jax.tree.map(np.asarray, jax.jit(run)(x, w))


LAYOUTS = ["ep=8", "tp=2", "tp=2 sp", "ep=2 tp=2", "ep=2 tp=2 sp", "fsdp=2 ep=2 cp=2"]


@pytest.mark.parametrize(
    ("layout", "capacity", "skew"), [(name, 0, 50.0) for name in LAYOUTS] + [("ep=2", 0, 0.0), ("ep=2 tp=2 sp", 8.0, 0.0)]
)
def test_every_layout_is_one_device(layout, capacity, skew, eight):
    wanted, found = (layer(where, capacity, skew) for where in ("", layout))
    assert float(found[1]["dropped"]) == 0
    import jax

    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1e-6, np.abs(b).max()))


def test_what_overflows_on_each_device_is_counted(eight):
    """Four devices with 8 tokens each and one place an expert for each: what is dropped is counted device by device."""
    c = config(experts=8, top_k=2, capacity=0.5)
    x = np.concatenate([tokens(), tokens(2)[:8]])
    expected = sum(loop(x[i : i + 8], weights(experts=8), c)[2] for i in range(0, 32, 8))
    assert expected > 0
    assert float(layer("ep=4", 0.5)[1]["dropped"]) == expected
