"""Losses and gradients of every kind of dense model against a plain float64 reference that shares no code with the model.

The reference loops over rows and heads as the formulas of the papers read. Its central differences, h = 1e-4 (error
about h² ~ 1e-8), check the gradients of some numbers of every parameter.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout
from gewu.train.optim import Optimiser
from gewu.train.precision import Precision
from gewu.train.spec import flat, unflat
from gewu.train.step import Trainer

BASE = {"vocab": 23, "width": 16, "layers": 2, "heads": 4, "hidden": 20, "length": 16}
MODELS = {
    "llama": ModelConfig(**BASE, kv_heads=2, tied=False, rope_theta=100.0),
    "qwen": ModelConfig(**BASE, kv_heads=1, head_width=6, qk_norm=True, qkv_bias=True, eps=1e-6),
    "mistral": ModelConfig(**BASE, kv_heads=2, window=3),
    "gpt2": ModelConfig(**BASE, norm="layer", activation="gelu", positions="learned", bias=True),
    "encoder": ModelConfig(**BASE, causal=False, window=4, positions="none", classes=3, targets=2, bias=True),
}


def norm(x: Any, w: Any, name: str, c: ModelConfig, kind: str = "") -> Any:
    if (kind or c.norm) == "layer":
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.eps) * w[name] + w[f"{name}_bias"]
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.eps) * w[name]


def ready(x: Any, w: Any, name: str, where: Any, c: ModelConfig) -> Any:
    """Queries or keys of one head (t, C), normed and turned, a pair being a complex number."""
    x, half = norm(x, w, name, c, "rms") if c.qk_norm else x, c.C // 2
    if c.positions != "rope":
        return x
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * where[:, None] * c.rope_theta ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag], 1)


def attend(x: Any, w: Any, where: Any, segments: Any, c: ModelConfig) -> Any:
    """What each token of a row gathers: x (t, D) normed, where and segments (t)."""
    t = len(x)
    qkv = np.einsum("td,dkgc->tkgc", x, w["qkv"]) + w.get("qkv_bias", 0)
    ahead = np.arange(t)[:, None] - np.arange(t)
    seen = (segments[:, None] == segments) & ((ahead >= 0) | (not c.causal)) & ((abs(ahead) < c.window) | (not c.window))
    out = np.zeros((t, c.K, c.G * c.C))
    for k in range(c.K):
        key, value = ready(qkv[:, k, c.G], w, "k_norm", where, c), qkv[:, k, c.G + 1]
        for g in range(c.G):
            weight = np.exp(ready(qkv[:, k, g], w, "q_norm", where, c) @ key.T / np.sqrt(c.C)) * seen
            out[:, k, g * c.C : (g + 1) * c.C] = weight @ value / weight.sum(1, keepdims=True)
    return np.einsum("tkc,kcd->td", out, w["out"]) + w.get("out_bias", 0)


def mlp(x: Any, w: Any, c: ModelConfig) -> Any:
    h = np.einsum("td,dgf->gtf", x, w["up"]) + (w["up_bias"][:, None] if c.bias else 0)
    if c.activation == "swiglu":
        a = h[0] / (1 + np.exp(-h[0])) * h[1]
    else:
        a = h[0] / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h[0] + 0.044715 * h[0] ** 3)))
    return a @ w["down"] + w.get("down_bias", 0)


def reference(w: Any, batch: dict[str, Any], c: ModelConfig) -> float:
    """The loss of a batch, float64."""
    text, rows, counted = 0.0, 0.0, (batch["targets"] >= 0).sum()
    for row, tokens in enumerate(batch["tokens"]):
        t = len(tokens)
        where = batch["positions"][row] if "positions" in batch else np.arange(t)
        segments = batch["segments"][row] if "segments" in batch else np.ones(t)
        x = w["embed"][tokens] + (w["positions"][where] if c.positions == "learned" else 0)
        for layer in w["layers"]:
            x = x + attend(norm(x, layer, "norm1", c), layer, where, segments, c)
            x = x + mlp(norm(x, layer, "norm2", c), layer, c)
        x = norm(x, w, "norm", c)
        logits = x @ w["embed" if c.tied else "head"].T
        for s, target in enumerate(batch["targets"][row]):
            text += (np.log(np.exp(logits[s]).sum()) - logits[s, target]) if target >= 0 else 0
        if c.classes:
            scores = x.mean(0) @ w["classes"] + w["classes_bias"]
            rows += np.log(np.exp(scores).sum()) - scores[batch["label"][row]]
            rows += ((x.mean(0) @ w["targets"] + w["targets_bias"] - batch["value"][row]) ** 2).mean()
    return float(text / counted + rows / len(batch["tokens"]))


def problem(c: ModelConfig, documents: bool) -> tuple[Trainer, Any, dict[str, Any]]:
    """A trainer, parameters of which none is zero or one, and a batch; with documents of 5, 4 and 2 tokens, and padding."""
    random, rows, t = np.random.default_rng(len(str(c))), 2, 12
    trainer = Trainer(c, Layout(), Optimiser(), Precision.of("fp32"))
    start = {name: np.asarray(leaf, np.float64) for name, leaf in flat(trainer.init(1).params).items()}
    params = {name: leaf + 0.2 * random.standard_normal(leaf.shape) for name, leaf in start.items()}
    params = {name: leaf.astype(np.float32).astype(np.float64) for name, leaf in params.items()}
    batch = {name: random.integers(0, c.vocab, (rows, t)).astype(np.int32) for name in ("tokens", "targets")}
    batch["targets"][:, 3] = -1
    if documents:
        lengths = [5, 4, 2, 1]
        batch["segments"] = np.tile(np.repeat([1, 2, 3, 0], lengths), (rows, 1)).astype(np.int32)
        batch["positions"] = np.tile(np.concatenate([np.arange(n) for n in lengths]), (rows, 1)).astype(np.int32)
        batch["targets"][:, -1] = -1
    if c.classes:
        batch |= {"label": np.array([2, 0], np.int32), "value": random.standard_normal((rows, 2)).astype(np.float32)}
    return trainer, params, batch


CASES = [("llama", False), ("qwen", True), ("mistral", True), ("gpt2", True), ("encoder", False)]


@pytest.mark.parametrize(("kind", "documents"), CASES, ids=[kind for kind, _ in CASES])
def test_loss_and_gradients_are_those_of_the_formulas(kind: str, documents: bool) -> None:
    c = MODELS[kind]
    trainer, params, batch = problem(c, documents)
    tree = unflat({name: jnp.asarray(leaf, jnp.float32) for name, leaf in params.items()})
    prepared = trainer.prepare(batch)
    expected = reference(unflat(params), batch, c)
    if kind == "llama":  # elsewhere only the value beside the gradients: compiling takes the time
        assert float(trainer.loss(tree, prepared)[0]) == pytest.approx(expected, rel=1e-5)
    value, gradients = trainer.gradients(tree, prepared)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    random, largest = np.random.default_rng(7), max(float(np.abs(leaf).max()) for leaf in flat(gradients).values())
    for name, gradient in flat(gradients).items():
        for _ in range(2):
            at = tuple(int(random.integers(size)) for size in gradient.shape)
            sides = []
            for step in (1e-4, -1e-4):
                moved = params[name].copy()
                moved[at] += step
                sides.append(reference(unflat(params | {name: moved}), batch, c))
            # float32 sums over rows and tokens: 1e-5 of the largest gradient
            assert float(gradient[at]) == pytest.approx((sides[0] - sides[1]) / 2e-4, rel=1e-4, abs=1e-5 * largest), (name, at)
