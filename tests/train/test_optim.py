"""Optimisers against torch and optax (optimisers.json holds their numbers), against themselves on eight devices, and at work."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gewu.core.errors import InputError
from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout
from gewu.train.optim import Optimiser, global_norm, orthogonal
from gewu.train.precision import Precision
from gewu.train.spec import Param, flat, initial, specs, tree_map, unflat, unstacked

ORACLE = json.loads(Path(__file__).with_name("optimisers.json").read_text())
ONE = Layout()
TWO = {"b": Param((5,), ("",), decay=False), "w": Param((6, 4), ("", ""), matrix=(0, 1))}


def zeros(o: Optimiser, tree: dict) -> dict:
    return tree_map(lambda param: jnp.zeros(param.shape, param.dtype), o.state(tree))


def follow(o: Optimiser) -> list[np.ndarray]:
    """Return weight and bias after the gradients of the oracle."""
    params = {"w": jnp.array(ORACLE["weight"]), "b": jnp.array(ORACLE["bias"])}
    state = zeros(o, TWO)
    step = jax.jit(lambda grads, state, params, number: o.update(grads, state, params, number, TWO, ONE)[:2])
    for number, (w, b) in enumerate(ORACLE["gradients"]):
        params, state = step({"w": jnp.array(w), "b": jnp.array(b)}, state, params, number)
    return [np.asarray(params["w"]), np.asarray(params["b"])]


@pytest.mark.parametrize(
    ("key", "optimiser"),
    [
        ("adamw", Optimiser(learning_rate=0.01, clip=0)),
        ("clipped", Optimiser(learning_rate=0.01, clip=1.0)),
        ("muon", Optimiser("muon", learning_rate=0.01, clip=0)),
        ("adafactor", Optimiser("adafactor", learning_rate=0.01, clip=0, weight_decay=0)),
        ("adafactor absolute", Optimiser("adafactor", learning_rate=0.01, clip=0, weight_decay=0, relative=False)),
    ],
)
def test_the_numbers_are_those_of_torch_and_optax(key, optimiser):
    for ours, theirs, start in zip(follow(optimiser), ORACLE[key], (ORACLE["weight"], ORACLE["bias"]), strict=True):
        assert np.abs(np.array(theirs) - np.array(start)).max() > 1e-3
        np.testing.assert_allclose(ours, theirs, atol=3e-6)  # a few roundings of numbers near 1 in each of five steps


def test_the_norm_is_that_of_torch():
    found = [float(global_norm({"w": jnp.array(w), "b": jnp.array(b)}, TWO, ONE)) for w, b in ORACLE["gradients"]]
    np.testing.assert_allclose(found, ORACLE["norms"], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "wsd"])
def test_schedules_are_those_of_optax(schedule):
    o = Optimiser(learning_rate=1.0, schedule=schedule, warmup=10, steps=100)
    found = [float(o.rate(step - 1)) for step in range(1, 101, 9)]
    np.testing.assert_allclose(found, ORACLE["schedules"][schedule], rtol=1e-5)


MOE = ModelConfig(
    vocab=16, width=16, layers=2, heads=4, kv_heads=2, experts=4, expert_hidden=8, shared_hidden=8, bias=True, tied=False
)


def random_tree(tree: dict, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return tree_map(lambda param: rng.standard_normal(param.shape).astype(np.float32), tree)


def two_steps(o: Optimiser, tree: dict, at: Layout, devices=None) -> tuple[dict, dict]:
    """Return whole parameters and state behind two steps, made on the devices of a layout."""
    params, grads = jax.tree.map(jnp.asarray, random_tree(tree, 0)), [random_tree(tree, seed) for seed in (1, 2)]

    def run(params: dict, opt: dict, slopes: dict, step: jax.Array) -> tuple[dict, dict]:
        return o.update(slopes, opt, params, step, tree, at)[:2]

    if devices is not None:
        cut = partial(tree_map, lambda param: param.partition(at))
        cuts = cut(tree), cut(o.state(tree))
        inputs = (*cuts, cuts[0], PartitionSpec())
        run = jax.shard_map(run, mesh=at.mesh(devices), in_specs=inputs, out_specs=cuts, check_vma=False)
    opt, run = zeros(o, tree), jax.jit(run)
    for step, slopes in enumerate(grads):
        params, opt = run(params, opt, slopes, jnp.int32(step))
    return params, opt


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_cut_parameters_follow_as_whole_ones(name, eight):
    """Every cut there is: stages, pieces, experts, heads, inner width, vocabulary; muon and adafactor look across them."""
    o, tree = Optimiser(name, learning_rate=0.1), specs(MOE)
    expected = [flat(part) for part in two_steps(o, tree, ONE)]
    for layout in ("pp=2 fsdp=2 tp=2", "ep=2 fsdp=2 tp=2"):
        at = Layout.of(layout)
        assert {cut for param in flat(tree).values() for cut in param.partition(at)} - {None}
        for found, wanted in zip(two_steps(o, tree, at, eight), expected, strict=True):
            assert list(flat(found)) == list(wanted)
            for key, leaf in flat(found).items():
                np.testing.assert_allclose(leaf, wanted[key], atol=2e-5, err_msg=f"{layout} {key}")  # sums in another order


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_a_stack_of_layers_follows_as_a_list_of_them(name):
    o, tree = Optimiser(name, learning_rate=0.1, clip=0), specs(MOE.with_(experts=0, bias=False))
    stack = two_steps(o, tree, ONE)[0]["layers"]
    params, listed = random_tree(tree, 0), unstacked(tree)
    rows = [{key: jnp.asarray(leaf[row]) for key, leaf in params["layers"].items()} for row in range(2)]
    opt, params = zeros(o, listed), params | {"layers": rows}
    run = jax.jit(lambda slopes, opt, params, step: o.update(slopes, opt, params, step, listed, ONE)[:2])
    for step in range(2):
        slopes = random_tree(tree, step + 1)
        slopes["layers"] = [{key: leaf[row] for key, leaf in slopes["layers"].items()} for row in range(2)]
        params, opt = run(slopes, opt, params, step)
    for key, leaf in stack.items():
        np.testing.assert_allclose(leaf, jnp.stack([layer[key] for layer in params["layers"]]), atol=1e-5, err_msg=key)


def test_moments_in_bfloat16_are_right_in_the_mean_and_the_same_on_every_layout(eight):
    tree = {"w": Param((256, 64), ("", ""), fsdp=0)}
    o = Optimiser(learning_rate=1e-3, clip=0, b2=0.999, moments="bfloat16")
    one, at = two_steps(o, tree, ONE), Layout(fsdp=8)
    cut = two_steps(o, tree, at, eight)
    assert one[1]["v"]["w"].dtype == jnp.bfloat16
    assert (np.asarray(one[1]["v"]["w"]) == np.asarray(cut[1]["v"]["w"])).mean() > 0.999  # a rounding apart here and there
    exact = two_steps(Optimiser(learning_rate=1e-3, clip=0, b2=0.999), tree, ONE)[1]["v"]["w"]
    error = np.asarray(one[1]["v"]["w"], np.float32) / np.asarray(exact) - 1
    assert 5e-4 < np.abs(error).mean() < 4e-3  # half to two units of the last of 8 bits
    assert abs(error.mean()) < 4 * error.std() / error.size**0.5


def test_parameters_in_bfloat16_gather_steps_far_below_their_last_digit():
    tree = {"w": Param((4096,), ("",), dtype="bfloat16", decay=False)}
    params, o = {"w": jnp.ones(4096, jnp.bfloat16)}, Optimiser(learning_rate=1e-4, clip=0, b1=0.0, b2=0.0)
    step = jax.jit(lambda params, state, number: o.update({"w": jnp.ones(4096)}, state, params, number, tree, ONE)[:2])
    state = zeros(o, tree)
    for number in range(100):
        params, state = step(params, state, number)
    mean = float(params["w"].astype(jnp.float32).mean())
    assert abs(mean - 0.99) < 2e-4  # 100 steps of 1e-4, each a fortieth of the last digit; five deviations of the mean


def test_newton_schulz_makes_singular_values_near_one():
    x = np.random.default_rng(0).normal(size=(3, 24, 16)).astype(np.float32)
    for maps in (x, x.swapaxes(1, 2)):
        found = np.asarray(orthogonal(jnp.asarray(maps)))
        u, _, v = np.linalg.svd(maps, full_matrices=False)
        values = np.linalg.svd(found, compute_uv=False)
        assert values.min() > 0.6 and values.max() < 1.25
        inside = np.einsum("nai,nab,njb->nij", u, found, v)  # in the basis of x: diagonal, as only singular values change
        np.testing.assert_allclose(inside * (1 - np.eye(16)), 0, atol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_a_small_problem_is_solved(name):
    """A linear map is found from its products: loss falls to a thousandth."""
    rng = np.random.default_rng(0)
    x, goal = jnp.asarray(rng.normal(size=(64, 6)), jnp.float32), jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    tree = {"w": Param((6, 4), ("", ""), matrix=(0, 1))}
    o = Optimiser(name, 0.2, schedule="linear", steps=150, warmup=5, floor=0.0, weight_decay=0.0, relative=False)
    loss = lambda params: ((x @ (params["w"] - goal)) ** 2).mean()  # noqa: E731

    @jax.jit
    def step(carry: tuple, number: int) -> tuple:
        params, state = carry
        params, state, _ = o.update(jax.grad(loss)(params), state, params, number, tree, ONE)
        return (params, state), None

    start = {"w": jnp.zeros((6, 4))}
    end = jax.lax.scan(step, (start, zeros(o, tree)), jnp.arange(150))[0][0]
    assert float(loss(end)) < 1e-3 * float(loss(start))


def test_decay_acts_where_it_should():
    params = {"w": jnp.ones((6, 4)), "b": jnp.ones(5)}
    nothing, o = jax.tree.map(jnp.zeros_like, params), Optimiser(learning_rate=0.1, weight_decay=0.5)
    found = o.update(nothing, zeros(o, TWO), params, 0, TWO, ONE)[0]
    np.testing.assert_allclose(found["w"], 0.95, rtol=1e-6)
    np.testing.assert_array_equal(found["b"], 1.0)


def test_what_is_kept_is_named_and_small():
    tree = unstacked(specs(MOE))
    kept = flat(Optimiser("adafactor").state(tree))
    sizes = {slot: sum(p.size for name, p in kept.items() if name.startswith(slot)) for slot in ("rows", "columns", "v")}
    assert sizes["rows"] + sizes["columns"] < 0.15 * sum(p.size for p in flat(tree).values())
    assert kept["rows/layers/1/qkv"].shape == (16,) and kept["columns/layers/1/qkv"].shape == (2, 4, 4)
    assert kept["columns/layers/1/experts_up"].axes == ("experts", "", "hidden")
    assert kept["rows/layers/0/experts_up"].fsdp == 1 and kept["columns/layers/0/experts_up"].fsdp == -1
    assert unflat(kept).keys() == Optimiser("adafactor").state(tree).keys()
    params = jax.eval_shape(lambda: initial(tree, 0))
    assert jax.tree.structure(params) == jax.tree.structure(zeros(Optimiser(), tree)["m"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "adam"}, "did you mean 'adamw'"),
        ({"schedule": "cos"}, "constant, cosine, linear, wsd"),
        ({"b1": 1.0}, "b1: .*0 to below 1"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"schedule": "cosine", "warmup": 10, "steps": 10}, "steps: .*more than warmup = 10"),
        ({"moments": "fp8"}, "float32, bfloat16"),
    ],
)
def test_wrong_values_are_refused(change, says):
    with pytest.raises(InputError, match=says):
        Optimiser(**change)


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_a_step_that_is_not_finite_changes_nothing(name, kept):
    o, tree = Optimiser(name, learning_rate=0.1, moments=kept), Precision(master=kept).kept(TWO)
    run = jax.jit(lambda slopes, opt, params, finite: o.update(slopes, opt, params, 1, tree, ONE, finite=finite)[:2])
    params = tree_map(lambda param, leaf: jnp.asarray(leaf, param.dtype), tree, random_tree(tree, 0))
    before = run(random_tree(tree, 1), zeros(o, tree), params, True)
    bad = random_tree(tree, 2)
    bad["w"][1, 2] = np.nan
    after = run(bad, before[1], before[0], False)
    went_on = run(random_tree(tree, 3), before[1], before[0], True)
    for old, new, other in zip(*(jax.tree.leaves(each) for each in (before, after, went_on)), strict=True):
        np.testing.assert_array_equal(old, new)
        assert (np.asarray(old) != np.asarray(other)).any()
