"""Generation: the cache gives the numbers of the whole forward pass, and draws follow the distribution that is asked for."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gewu.core.errors import ConvergenceError, InputError
from gewu.train.config import Input, ModelConfig
from gewu.train.generate import Sampling, candidates, choose, generate, program
from gewu.train.mesh import Layout
from gewu.train.optim import Optimiser
from gewu.train.precision import Precision
from gewu.train.spec import flat, unflat
from gewu.train.step import Trainer

V = 40
GROUPED = ModelConfig(vocab=V, width=32, layers=2, heads=4, kv_heads=2, hidden=48, length=64, qk_norm=True)
WINDOW = GROUPED.with_(window=6, qkv_bias=True, qk_norm=False, tied=False)
LEARNED = ModelConfig(
    vocab=V, width=32, layers=2, heads=2, hidden=48, length=64, norm="layer", activation="gelu", positions="learned", bias=True
)
EXPERTS = GROUPED.with_(experts=4, expert_hidden=16, capacity=0.0)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [7], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9]]


@cache
def made(config: ModelConfig, layout: str = "", precision: str = "fp32"):
    trainer = Trainer(config, Layout.of(layout), Optimiser(), Precision.of(precision))
    leaves = flat(trainer.init(3).params)  # larger, so that logits differ
    return trainer, unflat({name: leaf if "norm" in name else leaf * 6 for name, leaf in leaves.items()})


def whole(trainer: Trainer, params, rows) -> np.ndarray:
    return np.asarray(trainer.outputs(params, trainer.prepare({"tokens": np.array(rows, np.int32)}))["logits"])


@pytest.mark.parametrize(
    ("config", "layout"),
    [(GROUPED, ""), (GROUPED, "scan"), (WINDOW, ""), (LEARNED, ""), (EXPERTS, "")],
    ids=["grouped", "stack", "window", "learned", "experts"],
)
def test_the_cache_gives_the_logits_of_the_whole_pass_at_every_place(config, layout):
    trainer, params = made(config, layout)
    rows = np.random.default_rng(0).integers(0, V, (3, 24)).astype(np.int32)
    expected = whole(trainer, params, rows)
    lengths = np.array([1, 5, 11], np.int32)
    prompts = np.where(np.arange(16) < lengths[:, None], rows[:, :16], 0)
    run = program(trainer, Sampling(0.0))
    room = config.window or 24
    _, logits, kept = run.read(params, prompts, lengths, np.uint32(0), room=room)
    for turn in range(13):
        place = lengths + turn
        # float32 sums in another order; logits are of size 10
        np.testing.assert_allclose(logits, expected[np.arange(3), place - 1], rtol=0, atol=2e-5)
        _, logits, kept = run.go_on(params, kept, rows[np.arange(3), place], np.uint32(0), np.int32(turn + 1))
    if config.window:
        assert kept.keys[0].shape[1] == 6


def test_greedy_is_the_largest_logit_and_rows_do_not_know_of_each_other():
    trainer, params = made(GROUPED)
    found = generate(trainer, params, PROMPTS, 8, temperature=0)
    for prompt, said in zip(PROMPTS, found, strict=True):
        assert len(said) == 8
        row = [*prompt, *said]
        largest = whole(trainer, params, [row + [0] * (24 - len(row))])[0].argmax(-1)
        np.testing.assert_array_equal(said, largest[len(prompt) - 1 : len(row) - 1])
        assert generate(trainer, params, [prompt], 8, temperature=0) == [said]


@pytest.mark.parametrize("layout", ["fsdp=2 tp=2 sp", pytest.param("dp=2 fsdp=2 tp=2 scan", marks=pytest.mark.slow)])
def test_layouts_say_the_same(layout, eight):
    one, cut = made(GROUPED), made(GROUPED, layout)
    how = {"temperature": 0.7, "top_p": 0.9, "repetition": 1.2}
    assert generate(*cut, PROMPTS, 5, **how) == generate(*one, PROMPTS, 5, **how)


def test_bfloat16_with_experts_of_small_capacity():
    trainer, params = made(EXPERTS.with_(capacity=0.5), precision="bf16")
    found = generate(trainer, params, PROMPTS, 4, temperature=0)
    assert [len(row) for row in found] == [4, 4, 4]
    assert found[1:2] == generate(trainer, params, PROMPTS[1:2], 4, temperature=0)  # nothing is dropped for a neighbour


def test_the_seed_decides():
    trainer, params = made(GROUPED)
    first = generate(trainer, params, PROMPTS, 8, seed=1)
    assert first == generate(trainer, params, PROMPTS, 8, seed=1)
    assert first != generate(trainer, params, PROMPTS, 8, seed=2)
    twice = generate(trainer, params, [PROMPTS[0]] * 2, 8, seed=1)
    assert twice[0] == first[0] and twice[1] != first[0]  # rows draw for themselves


def test_stop_tokens_and_the_listener():
    trainer, params = made(GROUPED)
    plain = generate(trainer, params, PROMPTS, 8, temperature=0)
    stop = plain[0][3]
    heard = []
    found = generate(trainer, params, PROMPTS, 8, temperature=0, stop=[stop], heard=heard.append)
    for row, said in zip(plain, found, strict=True):
        assert said == (row[: row.index(stop)] if stop in row else row)
    assert [[token for token in row if token is not None] for row in zip(*heard, strict=True)] == found
    assert generate(trainer, params, PROMPTS, 8, temperature=0, heard=lambda _: True) == [row[:1] for row in plain]


P = np.array([0.4, 0.25, 0.2, 0.1, 0.05])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Sampling(), P),
        (Sampling(temperature=0.5), P**2),
        (Sampling(top_k=2), [0.4, 0.25, 0, 0, 0]),
        (Sampling(top_k=9), P),
        (Sampling(top_p=0.64), [0.4, 0.25, 0, 0, 0]),
        (Sampling(top_p=0.66), [0.4, 0.25, 0.2, 0, 0]),
        (Sampling(top_p=0.01), [1, 0, 0, 0, 0]),
        (Sampling(min_p=0.3), [0.4, 0.25, 0.2, 0, 0]),
        (Sampling(top_k=3, top_p=0.5), [0.4, 0.25, 0, 0, 0]),  # 0.4 / 0.85 < 0.5
        (Sampling(top_k=2, min_p=0.63), [1, 0, 0, 0, 0]),
    ],
)
def test_the_distribution_is_exact(how, expected):
    order = np.array([3, 0, 4, 1, 2])  # token t has the probability P[order[t]]
    logp, tokens = candidates(jnp.log(jnp.asarray(P[order], jnp.float32))[None] + 1.5, how)
    found = np.zeros(5)
    found[np.asarray(tokens)[0]] = np.exp(np.asarray(logp)[0])
    expected = np.array(expected) / np.sum(expected)
    np.testing.assert_allclose(found, expected[order], atol=1e-6)


def test_draws_follow_the_distribution():
    n = 20_000
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(P, jnp.float32)), (n, 5))
    drawn = choose(logits, jnp.zeros((n, 0), bool), Sampling(top_k=4), jnp.uint32(5), jnp.arange(n), jnp.int32(1))
    share = np.bincount(drawn, minlength=5) / n
    assert share[4] == 0
    np.testing.assert_allclose(share[:4], P[:4] / 0.95, atol=5 * 0.5 / n**0.5)  # five standard deviations


def test_repetition_is_punished():
    logits, seen = jnp.array([[2.0, 1.9, -1.0], [-0.5, -0.6, -0.7]]), jnp.array([[True, False, False], [True, False, True]])
    rows = jnp.arange(2)
    assert choose(logits, seen, Sampling(0.0, repetition=1.5), jnp.uint32(0), rows, 1).tolist() == [1, 1]
    trainer, params = made(GROUPED)
    assert all(len({*prompt, *said}) == len(set(prompt)) + 8 for prompt, said in zip(
        PROMPTS, generate(trainer, params, PROMPTS, 8, temperature=0, repetition=1e6), strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("prompts", "how", "said"),
    [
        ([[]], {}, "prompt 0: is too long or empty"),
        ([[1], [1] * 60], {}, r"prompt 1.*less 8"),
        ([[V]], {}, r"prompt 0.*vocabulary"),
        ([[1]], {"top_p": 0.0}, "top_p"),
        ([[1]], {"temperature": -1.0}, "temperature"),
    ],
)
def test_bad_input_is_refused(prompts, how, said):
    trainer, params = made(GROUPED)
    with pytest.raises(InputError, match=said):
        generate(trainer, params, prompts, 8, **how)


def test_models_and_layouts_that_do_not_generate_are_refused(eight):
    table = ModelConfig(vocab=V, width=32, layers=2, heads=4, length=64, inputs=(Input("x", "table", (3,)),))
    for config, layout in ((table, ""), (GROUPED.with_(causal=False), ""), (GROUPED, "cp=2")):
        with pytest.raises(InputError, match=r"alone makes text|does not generate"):
            program(Trainer(config, Layout.of(layout), Optimiser(), Precision.of("fp32"), eight), Sampling())


def test_numbers_that_are_not_finite_are_not_text():
    trainer, params = made(GROUPED)
    with pytest.raises(ConvergenceError):
        generate(trainer, jax.tree.map(lambda leaf: leaf * jnp.nan, params), [[1]], 2)
