"""Every layout has the loss and the gradients of one device: data, pieces, tensors, tokens, context, stages, experts; and mixed.

Documents are packed, some targets do not count, queries share keys, an axis of every kind is cut. Differences are those of
float32 sums in another order: at most 1e-5 of the norm of a parameter's gradient.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout
from gewu.train.optim import Optimiser
from gewu.train.precision import Precision
from gewu.train.spec import flat, specs, tree_map, unflat
from gewu.train.step import State, Trainer

SMALL = {"vocab": 64, "width": 32, "layers": 4, "length": 32}
MODELS = {
    "llama": ModelConfig(**SMALL, heads=8, kv_heads=4, hidden=64, qk_norm=True, qkv_bias=True, window=20),
    "gpt": ModelConfig(**SMALL, hidden=64, norm="layer", activation="gelu", positions="learned", bias=True, tied=False),
    "experts": ModelConfig(**SMALL, kv_heads=2, experts=4, expert_hidden=16, shared_hidden=16, capacity=0, balance=0.5),
    "buffers": ModelConfig(
        **SMALL, kv_heads=2, experts=8, expert_hidden=16, capacity=8, router="sigmoid", balance=0.5, tied=False
    ),
}
MODELS["parts"] = MODELS["experts"].with_(
    balance=0.0
)  # the balance of a part of a batch is another number than that of all of it
FAST = [
    ("llama", "micro=4 remat=layer scan"),
    ("llama", "dp=2 fsdp=4 scan"),
    ("llama", "tp=4 sp fsdp=2"),
    ("llama", "cp=4 dp=2 scan"),
    ("llama", "pp=4 micro=4 dp=2"),
    ("llama", "pp=2 interleave=2 micro=2 tp=2 fsdp=2"),
    ("llama", "fsdp=2 cp=2 tp=2 sp micro=2 remat=layer scan"),
    ("gpt", "fsdp=2 cp=2 tp=2 sp scan"),
    ("experts", "ep=4 fsdp=2 scan"),
    ("experts", "ep=2 cp=2 tp=2 sp scan"),
    ("buffers", "ep=2 tp=2 sp dp=2 scan"),
    ("parts", "pp=2 ep=2 tp=2 sp micro=4"),
]
SLOW = [
    *(("llama", layout) for layout in ("dp=8", "fsdp=8", "tp=4 dp=2", "tp=2 sp", "cp=4 tp=2", "scan", "micro=8", "remat=layer")),
    *(("llama", layout) for layout in ("dp=2 fsdp=2 tp=2 sp micro=2 remat=layer", "fsdp=2 cp=4", "dp=2 cp=2 tp=2", "cp=8 scan")),
    *(("llama", layout) for layout in ("pp=2 micro=2", "pp=2 micro=4 dp=2 tp=2", "pp=2 micro=2 cp=2 tp=2 sp", "pp=4 micro=8")),
    *(("llama", layout) for layout in ("pp=2 micro=4 fsdp=2 tp=2 sp remat=layer", "pp=2 interleave=2 micro=4 cp=2 fsdp=2")),
    *(("gpt", layout) for layout in ("dp=8", "tp=4 dp=2 micro=2", "tp=4 sp", "cp=4 fsdp=2", "pp=2 micro=2 tp=2 sp fsdp=2")),
    *(("gpt", layout) for layout in ("pp=4 micro=4 cp=2", "fsdp=4 tp=2 sp", "dp=2 fsdp=2 cp=2")),
    *(("experts", layout) for layout in ("dp=8", "fsdp=4 tp=2", "tp=2 sp", "ep=2 dp=2 tp=2", "ep=4 tp=2 sp", "ep=2 fsdp=2 cp=2")),
    *(("buffers", layout) for layout in ("fsdp=2 ep=4", "ep=8 scan", "ep=2 cp=2 tp=2")),
    *(("parts", layout) for layout in ("micro=4 scan", "ep=2 fsdp=2 tp=2 micro=2 remat=layer", "pp=2 ep=4 micro=2")),
    ("parts", "pp=2 interleave=2 micro=2 ep=2 fsdp=2"),
]


def batch(rows: int = 8, length: int = 32) -> dict[str, Any]:
    """Rows of two or three documents; the last token of each predicts nothing."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 64, (rows, length + 1))
    cuts = np.sort(rng.integers(3, length - 3, (rows, 2)), 1)
    place = np.arange(length)
    segments = 1 + (place >= cuts[:, :1]).astype(np.int32) + (place >= cuts[:, 1:])
    starts = np.where(segments == 1, 0, np.where(segments == 2, cuts[:, :1], cuts[:, 1:]))
    last = np.concatenate([segments[:, 1:] != segments[:, :-1], np.ones((rows, 1), bool)], 1)
    targets = np.where(last, -1, tokens[:, 1:])
    arrays = {"tokens": tokens[:, :-1], "targets": targets, "segments": segments, "positions": place - starts}
    return {name: array.astype(np.int32) for name, array in arrays.items()}


def layers_in_order(tree: Any, at: Layout) -> dict[str, Any]:
    """Return parameters by name, those of layers stacked and in the order of the model."""
    layers = tree["layers"]
    if isinstance(layers, list):
        layers = {name: np.stack([np.asarray(layer[name]) for layer in layers]) for name in layers[0]}
    elif at.interleave > 1:
        from gewu.train.pipeline import order

        back = np.argsort(order(next(iter(layers.values())).shape[0], at))
        layers = {name: np.asarray(leaf)[back] for name, leaf in layers.items()}
    return {name: np.asarray(leaf) for name, leaf in flat(tree | {"layers": layers}).items()}


def parameters(trainer: Trainer) -> Any:
    """Return parameters that are equal on every layout; none is zero or one throughout."""
    rng = np.random.default_rng(11)
    leaves = {name: rng.normal(size=param.shape) for name, param in flat(specs(trainer.config)).items()}
    scale = {name: 0.1 for name in leaves} | {name: 0.05 for name in leaves if "norm" in name}
    whole = unflat({name: (scale[name] * leaf + ("norm" in name)).astype(np.float32) for name, leaf in leaves.items()})
    if isinstance(trainer.specs["layers"], list):
        rows = range(trainer.config.layers)
        whole = whole | {"layers": [{name: leaf[row] for name, leaf in whole["layers"].items()} for row in rows]}
    return jax.device_put(trainer.stored(whole), trainer.shardings.params)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Any:
    """Compile fast: what is compiled here runs once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@cache
def gradients(c: ModelConfig, at: Layout) -> tuple[float, dict[str, Any]]:
    trainer = Trainer(c, at, Optimiser(), Precision())
    loss, grads = trainer.gradients(parameters(trainer), trainer.prepare(batch()))
    return float(loss), layers_in_order(grads, at)


def differs(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, float]:
    assert found.keys() == wanted.keys()
    return {name: float(np.linalg.norm(found[name] - leaf) / np.linalg.norm(leaf)) for name, leaf in wanted.items()}


def check(model: str, layout: str) -> None:
    c, at = MODELS[model], Layout.of(layout)
    wanted_loss, wanted = gradients(c, Layout(scan=model != "llama"))
    loss, found = gradients(c, at)
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    bad = {name: value for name, value in differs(found, wanted).items() if not value < 1e-5}
    assert not bad, f"{layout}: {bad}"


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("model", "layout"), FAST)
def test_a_layout_is_one_device(model: str, layout: str) -> None:
    check(model, layout)


@pytest.mark.slow
@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("model", "layout"), SLOW)
def test_rarer_layouts_are_one_device(model: str, layout: str) -> None:
    check(model, layout)


@pytest.mark.parametrize(
    ("model", "layout", "name"),
    [
        ("llama", "pp=2 fsdp=2 tp=2 sp micro=2", "muon"),
        pytest.param("experts", "ep=2 fsdp=2 tp=2 scan", "adafactor", marks=pytest.mark.slow),
        pytest.param("llama", "cp=2 fsdp=2 tp=2", "adamw", marks=pytest.mark.slow),
    ],
    ids=["muon", "adafactor", "adamw"],
)
@pytest.mark.usefixtures("eight")
def test_two_steps_are_those_of_one_device(model: str, layout: str, name: str) -> None:
    c, ends = MODELS[model], []
    for at in (Layout(scan=True), Layout.of(layout)):
        trainer = Trainer(c, at, Optimiser(name, learning_rate=1e-2), Precision())
        zeros = tree_map(lambda param: np.zeros(param.shape, param.dtype), trainer.optimiser.state(trainer.specs))
        rest = jax.device_put((zeros, np.int32(0), {}, np.uint32(0)), tuple(trainer.shardings[1:]))
        state = State(parameters(trainer), *rest)
        for _ in range(2):
            state, metrics = trainer.step(state, trainer.prepare(batch()))
        ends.append((layers_in_order(state.params, at), {key: float(value) for key, value in metrics.items()}))
    (wanted, numbers), (found, metrics) = ends
    assert numbers["finite"] == 1
    for key in ("loss", "grad_norm", "lr", "tokens"):
        assert metrics[key] == pytest.approx(numbers[key], rel=1e-5), key
    bad = {name: value for name, value in differs(found, wanted).items() if not value < 1e-4}  # steps divide by what is small
    assert not bad, bad


@pytest.mark.usefixtures("eight")
def test_the_state_begins_alike_on_every_layout() -> None:
    c = ModelConfig(vocab=32, width=8, layers=2, heads=2)
    wanted = layers_in_order(Trainer(c, Layout(scan=False), Optimiser(), Precision()).init(5).params, Layout())
    for layout in ("fsdp=2 tp=2 scan", "pp=2 micro=2 tp=2"):
        state = Trainer(c, Layout.of(layout), Optimiser(), Precision()).init(5)
        assert all(np.array_equal(leaf, wanted[key]) for key, leaf in layers_in_order(state.params, Layout()).items())
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.opt))


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
    trainer = Trainer(MODELS["llama"], Layout(scan=False), Optimiser(), Precision.of("fp32"))
    good = batch()
    with pytest.raises(InputError, match="vocabulary"):
        trainer.prepare(good | {"tokens": np.full((8, 32), 64)})
    with pytest.raises(InputError, match="longer"):
        trainer.prepare({"tokens": np.zeros((8, 128), np.int32), "targets": np.zeros((8, 128), np.int32)})


def test_a_step_that_is_not_finite_leaves_the_state_and_is_found() -> None:
    trainer = Trainer(MODELS["llama"], Layout(scan=False), Optimiser(), Precision.of("fp32"))
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
    trainer = Trainer(MODELS["gpt"], Layout(scan=False), Optimiser(), Precision.of("fp32"))
    state = trainer.init(0)
    ready = trainer.prepare(batch())
    assert trainer.diagnose(state.params, ready)["where"] == "nowhere"
    state.params["embed"] = state.params["embed"].at[int(batch()["tokens"][0, 0])].set(jnp.inf)
    assert trainer.diagnose(state.params, ready)["where"] == "embedding"
