"""The pipeline: its schedule holds and is as idle as published, and its gradients are those of the plain model."""

from __future__ import annotations

import numpy as np
import pytest

from gewu.train.mesh import Layout
from gewu.train.pipeline import NONE, Parts, Schedule, gradients, order

SIZES = [(2, 2, 1), (2, 5, 1), (4, 4, 1), (4, 9, 1), (8, 16, 1), (2, 4, 2), (2, 3, 2), (4, 8, 2), (4, 6, 3)]


def done(table):
    """Tick of each (stage, micro-batch, chunk) of a table."""
    return {(s, *entry): t for t, row in enumerate(table.tolist()) for s, entry in enumerate(row) if entry[0] != NONE}


@pytest.mark.parametrize(("pp", "micro", "v"), SIZES)
def test_schedule_does_everything_once_and_in_time(pp, micro, v):
    plan = Schedule(pp, micro, v)
    forward, backward = done(plan.forward), done(plan.backward)
    everything = {(s, m, j) for s in range(pp) for m in range(micro) for j in range(v)}
    assert set(forward) == set(backward) == everything
    for s, m, j in everything:
        after = (s + 1, m, j) if s + 1 < pp else (0, m, j + 1) if j + 1 < v else None
        if after:  # passed on in the tick it is made, used in the next
            assert forward[after] == forward[s, m, j] + 1
            assert backward[s, m, j] == backward[after] + 1
        else:
            assert backward[s, m, j] == forward[s, m, j]


@pytest.mark.parametrize(("pp", "micro", "v"), SIZES)
def test_a_kept_input_is_not_overwritten(pp, micro, v):
    plan = Schedule(pp, micro, v)
    write, read, depth = plan.slots
    for s in range(pp):
        kept = [None] * depth
        for t in range(plan.ticks):
            if write[t, s] != NONE:
                kept[write[t, s]] = tuple(plan.forward[t, s])
            if read[t, s] != NONE:
                assert kept[read[t, s]] == tuple(plan.backward[t, s])
        needed = {(m, j) for m in range(micro) for j in range(v) if s or j}
        assert (read[:, s] != NONE).sum() == len(needed)


def test_kept_inputs_do_not_grow_with_micro_batches():
    for pp, v in ((2, 1), (4, 1), (8, 1), (2, 2), (4, 3), (8, 4)):
        assert Schedule(pp, 4 * pp, v).slots[2] == Schedule(pp, 16 * pp, v).slots[2] == pp * (v + 1) - 3


@pytest.mark.parametrize(("pp", "micro", "v"), [(2, 4, 1), (4, 8, 1), (8, 32, 1), (4, 8, 2), (4, 16, 4)])
def test_idle_time_is_the_published_one(pp, micro, v):
    assert Schedule(pp, micro, v).bubble == pytest.approx((pp - 1) / (v * micro), rel=1e-12)


def test_order_of_interleaved_layers():
    assert order(8, Layout(pp=2, micro=2)).tolist() == list(range(8))
    assert order(8, Layout(pp=2, micro=2, interleave=2)).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert order(12, Layout(pp=2, micro=2, interleave=3)).tolist() == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]


def tanh_parts():
    import jax
    import jax.numpy as jnp

    def first(outside, part):
        return part["x"] @ outside["in"]

    def chunk(layers, x, part):
        def body(carry, w):
            x, value = carry
            x = jnp.tanh(x @ w["w"]) + x
            return (x, value + 0.1 * (x * x).mean()), None

        (x, value), _ = jax.lax.scan(body, (x, jnp.float32(0)), layers)
        return (x, value), {"aux": value, "calls": jnp.float32(1)}

    def last(outside, x, part):
        value = ((x @ outside["out"] - part["y"]) ** 2).sum() + (outside["in"] ** 2).sum()  # as a tied embedding does
        return value, {"loss": value}

    return Parts(first, chunk, last)


@pytest.mark.parametrize(
    "layout",
    [
        *("pp=2 micro=5", "pp=4 micro=4", "pp=8 micro=16", "pp=4 micro=6 interleave=2", "pp=2 dp=2 micro=3"),
        *("pp=2 cp=2 micro=2 interleave=4", "pp=2 dp=2 micro=4 interleave=2", "pp=4 dp=2 micro=5"),
    ],
)
def test_gradients_are_those_of_the_plain_model(layout, eight):
    import jax
    from jax.sharding import PartitionSpec as P

    at, rng, D, L = Layout.of(layout), np.random.default_rng(1), 6, 8
    params = {
        "layers": {"w": rng.normal(size=(L, D, D)).astype("f4") / 3},
        "in": rng.normal(size=(3, D)).astype("f4"),
        "out": rng.normal(size=(D, 2)).astype("f4"),
    }
    batch = {
        "x": rng.normal(size=(at.micro, 2 * at.dp, 3)).astype("f4"),
        "y": rng.normal(size=(at.micro, 2 * at.dp, 2)).astype("f4"),
    }
    parts = tanh_parts()  # cp does the same twice here, as stages that work when they are idle must

    def plain(params):
        value = 0.0
        for m in range(at.micro):
            for row in range(at.dp):
                part = {name: array[m, 2 * row : 2 * row + 2] for name, array in batch.items()}
                (x, more), _ = parts.chunk(params["layers"], parts.first(params, part), part)
                value = value + more + parts.last(params, x, part)[0]
        return value

    rows, cut = order(L, at), {"layers": {"w": P("pp")}, "in": P(), "out": P()}

    def run(params, batch):
        sums, grads = gradients(params, batch, parts, at)
        grads["layers"] = jax.lax.psum(grads["layers"], "dp")
        grads = grads | {name: jax.lax.psum(grads[name], ("pp", "dp")) for name in ("in", "out")}
        return jax.lax.psum(sums, ("pp", "dp")), grads

    run = jax.shard_map(run, mesh=at.mesh(eight), in_specs=(cut, P(None, "dp")), out_specs=(P(), cut), check_vma=False)
    sums, grads = jax.jit(run)(params | {"layers": {"w": params["layers"]["w"][rows]}}, batch)
    expected, wanted = jax.jit(jax.value_and_grad(plain))(params)
    assert float(sums["last"]["loss"] + sums["chunk"]["aux"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(sums["chunk"]["calls"]) == at.pp * at.dp * at.micro * at.interleave
    # sums of micro-batches in another order: float32, gradients of size 10
    np.testing.assert_allclose(grads["layers"]["w"], np.asarray(wanted["layers"]["w"])[rows], rtol=2e-4, atol=1e-4)
    for name in ("in", "out"):
        np.testing.assert_allclose(grads[name], wanted[name], rtol=2e-4, atol=1e-4)


DENSE = {"hidden": 64, "tied": True, "bias": True, "norm": "layer", "activation": "gelu", "positions": "learned"}
EXPERTS = {"experts": 8, "expert_hidden": 16, "shared_hidden": 16, "capacity": 0.0, "balance": 0.1, "tied": False}
MODELS = [
    (DENSE, "pp=2 micro=3 interleave=2"),
    pytest.param(DENSE, "pp=2 tp=2 sp micro=4 interleave=2", marks=pytest.mark.slow),
    pytest.param(EXPERTS, "pp=2 ep=2 tp=2 micro=2", marks=pytest.mark.slow),
    pytest.param(DENSE, "pp=4 dp=2 micro=8", marks=pytest.mark.slow),
    pytest.param(DENSE, "pp=2 cp=2 fsdp=2 micro=2", marks=pytest.mark.slow),
    pytest.param(DENSE, "pp=2 cp=2 dp=2 micro=2 interleave=2 remat=layer", marks=pytest.mark.slow),
    pytest.param(EXPERTS, "pp=2 ep=2 tp=2 sp micro=4 interleave=2", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "layout"), MODELS)
def test_a_model_in_stages_is_the_model_of_one_device(kind, layout, eight):
    """Loss, gradients and the sums of experts; the balance loss is one of each micro-batch, so both have equally many."""
    import jax

    from gewu.train.config import ModelConfig
    from gewu.train.optim import Optimiser
    from gewu.train.precision import Precision
    from gewu.train.spec import flat, specs, tree_map
    from gewu.train.step import Trainer

    c, at = ModelConfig(vocab=64, width=32, layers=4, heads=4, kv_heads=2, length=16, **kind), Layout.of(layout)
    rng, rows = np.random.default_rng(0), np.arange(12 if at.micro == 3 else 16)
    batch = {
        "tokens": rng.integers(0, 64, (rows.size, 16), dtype="i4"),
        "targets": rng.integers(-1, 64, (rows.size, 16), dtype="i4"),
    }
    params = tree_map(lambda param: jax.numpy.asarray(rng.normal(size=param.shape) * 0.2, "f4"), specs(c))
    found = []
    for where in (at, Layout(scan=True, micro=at.micro)):
        trainer = Trainer(c, where, Optimiser(), Precision.of("fp32"))
        # micro-batch m of the stages holds the m-th rows of every device: the plain model gets the same rows together
        mixed = rows if where is at else rows.reshape(at.size("dp", "fsdp", "ep"), at.micro, -1).swapaxes(0, 1).reshape(-1)
        stored = jax.device_put(trainer.stored(params), trainer.shardings.params)
        loss, grads = trainer.gradients(stored, trainer.prepare({name: x[mixed] for name, x in batch.items()}))
        grads = jax.tree.map(np.asarray, grads)
        if where.interleave > 1:
            back = np.argsort(order(c.layers, where))
            grads["layers"] = {name: leaf[back] for name, leaf in grads["layers"].items()}
        found.append((float(loss), flat(grads)))
    (loss, grads), (expected, wanted) = found
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, leaf in wanted.items():
        np.testing.assert_allclose(grads[name], leaf, atol=1e-5 * np.abs(leaf).max(), err_msg=name)
