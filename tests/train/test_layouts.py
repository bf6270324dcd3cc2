"""Every parallel layout must give the loss and the gradients of one device."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout
from gewu.train.optim import Optimiser
from gewu.train.precision import Precision
from gewu.train.spec import flat
from gewu.train.step import Trainer

V, ROWS, LENGTH = 64, 8, 32
SMALL = {"vocab": V, "width": 32, "layers": 2, "heads": 4, "length": 64}
MODELS = {
    "llama": ModelConfig(**SMALL, kv_heads=2, qk_norm=True, window=20),
    "gpt": ModelConfig(**SMALL, norm="layer", activation="gelu", positions="learned", bias=True, tied=False),
    "experts": ModelConfig(**SMALL, kv_heads=2, experts=8, expert_hidden=32, shared_hidden=32, capacity=0, balance=0.5),
    "buffers": ModelConfig(**SMALL, kv_heads=2, experts=8, expert_hidden=32, capacity=8, router="sigmoid", balance=0.5),
    "deep": ModelConfig(**(SMALL | {"layers": 8}), kv_heads=2),
}
FAST = [
    ("llama", "dp=8"),
    ("llama", "fsdp=2 tp=2 sp cp=2"),
    ("llama", "dp=2 fsdp=2 tp=2 micro=2 remat=layer scan"),
    ("gpt", "fsdp=4 tp=2 sp scan"),
    ("gpt", "cp=4 dp=2"),
    ("gpt", "tp=4 dp=2 micro=2"),
    ("experts", "fsdp=2 ep=2 tp=2"),
    ("buffers", "ep=2 tp=2 sp dp=2"),
    ("deep", "pp=2 micro=2 dp=2"),
    ("deep", "pp=2 interleave=2 micro=4"),
]
SLOW = [
    ("llama", "micro=2"),
    ("llama", "fsdp=8"),
    ("llama", "tp=2"),
    ("llama", "tp=2 sp"),
    ("llama", "cp=2"),
    ("llama", "fsdp=4 tp=2 scan remat=layer"),
    ("gpt", "dp=8"),
    ("gpt", "dp=2 fsdp=2 cp=2"),
    ("experts", "ep=8"),
    ("experts", "scan remat=layer ep=2 cp=2"),
    ("buffers", "fsdp=2 ep=4"),
    ("buffers", "ep=2 cp=2 tp=2"),
    ("deep", "pp=4 micro=8"),
    ("deep", "pp=2 micro=2 tp=2 sp"),
    ("deep", "pp=2 micro=2 fsdp=2 tp=2"),
    ("deep", "pp=2 interleave=4 micro=4 dp=2 tp=2"),
]


@functools.cache
def batch() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, V, (ROWS, LENGTH + 1)).astype(np.int32)
    targets = tokens[:, 1:].copy()
    targets[:, ::7] = -1  # tokens that do not count, so that devices have unequal shares
    targets[0] = -1
    segments = np.sort(draw.integers(1, 4, (ROWS, LENGTH)), 1).astype(np.int32)
    return {"tokens": tokens[:, :-1], "targets": targets, "segments": segments}


def whole(tree: Any, c: ModelConfig) -> dict[str, np.ndarray[Any, Any]]:
    """Return gradients by name with layers stacked, however the layout keeps them."""
    leaves = {name: np.asarray(leaf) for name, leaf in flat(tree).items()}
    for name in [name for name in leaves if name.startswith("layers/0/")]:
        short = name.removeprefix("layers/0/")
        leaves[f"layers/{short}"] = np.stack([leaves.pop(f"layers/{i}/{short}") for i in range(c.layers)])
    return leaves


def computed(model: str, layout: str) -> tuple[float, dict[str, Any], dict[str, float]]:
    c, at = MODELS[model], Layout.of(layout)
    trainer = Trainer(c, at, Optimiser(), Precision.of("fp32"))
    state = trainer.init(3)
    ready = trainer.prepare(batch())
    value, grads = trainer.gradients(state.params, ready)
    leaves = whole(grads, c)
    if at.interleave > 1:
        from gewu.train.pipeline import order

        back = np.argsort(order(c.layers, at))
        leaves |= {name: leaf[back] for name, leaf in leaves.items() if name.startswith("layers/")}
    _, metrics = trainer.step(state, ready)
    return float(value), leaves, {name: float(x) for name, x in metrics.items()}


@functools.cache
def reference(model: str) -> Any:
    return computed(model, "")


def check(model: str, layout: str) -> None:
    loss, grads, metrics = computed(model, layout)
    loss1, grads1, metrics1 = reference(model)
    # float32 sums in another order: a few units in the last place of the largest number of each array
    assert loss == pytest.approx(loss1, rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(metrics1["grad_norm"], rel=1e-5)
    assert metrics["tokens"] == metrics1["tokens"]
    assert metrics["dropped"] == 0
    assert grads.keys() == grads1.keys()
    for name, grad in grads1.items():
        np.testing.assert_allclose(grads[name], grad, rtol=0, atol=1e-5 * np.abs(grad).max(), err_msg=name)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("model", "layout"), FAST)
def test_layout_gives_the_loss_and_gradients_of_one_device(model: str, layout: str) -> None:
    check(model, layout)


@pytest.mark.slow
@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("model", "layout"), SLOW)
def test_more_layouts_give_the_loss_and_gradients_of_one_device(model: str, layout: str) -> None:
    check(model, layout)


def test_gradients_are_not_all_alike() -> None:
    """The comparison would pass for arrays of zeros: these are none."""
    _, grads, _ = reference("llama")
    assert all(np.abs(grad).max() > 1e-6 for grad in grads.values())


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("layout", "word"),
    [
        ("tp=3", "does not divide"),
        ("ep=2", "no experts"),
        ("pp=2", "pipeline"),
        ("dp=16", "more devices"),
        ("cp=2 up=3", "no such word"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(layout: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        Trainer(MODELS["llama"], Layout.of(layout), Optimiser(), Precision.of("fp32"))


def test_bad_batches_are_refused() -> None:
    trainer = Trainer(MODELS["llama"], Layout(), Optimiser(), Precision.of("fp32"))
    good = batch()
    with pytest.raises(InputError, match="vocabulary"):
        trainer.prepare(good | {"tokens": np.full((ROWS, LENGTH), V)})
    with pytest.raises(InputError, match="longer"):
        trainer.prepare({"tokens": np.zeros((ROWS, 128), np.int32), "targets": np.zeros((ROWS, 128), np.int32)})


def test_a_step_that_is_not_finite_leaves_the_state_and_is_found() -> None:
    trainer = Trainer(MODELS["llama"], Layout(), Optimiser(), Precision.of("fp32"))
    state = trainer.init(0)
    state.params["layers"][1]["norm2"] = jnp.full_like(state.params["layers"][1]["norm2"], jnp.nan)
    before = {name: np.array(leaf) for name, leaf in flat(state.params).items()}
    ready = trainer.prepare(batch())
    state, metrics = trainer.step(state, ready)
    assert metrics["finite"] == 0
    assert int(state.step) == 1
    for name, leaf in flat(state.params).items():
        np.testing.assert_array_equal(leaf, before[name])
    assert trainer.diagnose(state.params, ready) == {"layer": 1, "where": "layer", "name": ""}


def test_diagnose_finds_the_embedding() -> None:
    trainer = Trainer(MODELS["gpt"], Layout(), Optimiser(), Precision.of("fp32"))
    state = trainer.init(0)
    ready = trainer.prepare(batch())
    assert trainer.diagnose(state.params, ready)["where"] == "nowhere"
    state.params["embed"] = state.params["embed"].at[int(batch()["tokens"][0, 0])].set(jnp.inf)
    assert trainer.diagnose(state.params, ready)["where"] == "embedding"
