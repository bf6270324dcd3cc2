"""Rounding that is right in the mean, 8-bit products, and the scale of the loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.train.config import ModelConfig
from gewu.train.precision import E4M3, E5M2, Precision, bits, finite, product8, quantised, stochastic
from gewu.train.spec import flat, specs


def test_names():
    assert [Precision.of(name).compute for name in ("fp32", "bf16", "fp8")] == [jnp.float32, jnp.bfloat16, jnp.bfloat16]
    with pytest.raises(InputError, match=r"precision: .*did you mean 'bf16'"):
        Precision.of("bf61")
    kept = flat(Precision("bf16", master="bfloat16").kept(specs(ModelConfig(vocab=8, width=8, heads=2, layers=1))))
    assert {name: param.dtype for name, param in kept.items() if param.dtype == "float32"}.keys() == {
        "layers/norm1",
        "layers/norm2",
        "norm",
    }


def test_random_bits_are_even_and_depend_on_key_and_place_only():
    n = 1 << 16
    draw = np.asarray(bits((n,), 7))
    ones = ((draw[:, None] >> np.arange(32, dtype=np.uint32)) & 1).mean(0)
    assert np.abs(ones - 0.5).max() < 4.5 * 0.5 / n**0.5  # each of 32 bits; chance of a false alarm 2e-4
    assert len(np.unique(draw)) == n  # the hash is one to one
    top = np.bincount(draw >> 24, minlength=256)
    assert abs(((top - n / 256) ** 2 / (n / 256)).sum() - 255) < 5 * (2 * 255) ** 0.5  # chi-square
    for lag in (1, 2, 256):
        assert abs(np.corrcoef(draw[lag:].astype(float), draw[:-lag].astype(float))[0, 1]) < 4.5 / n**0.5
    other = np.asarray(bits((n,), 8))
    assert abs(np.corrcoef(draw.astype(float), other.astype(float))[0, 1]) < 4.5 / n**0.5
    piece = np.asarray(bits((4, 8), 7, (256, 1), 256 * 16 + 32))
    np.testing.assert_array_equal(piece, draw.reshape(256, 256)[16:20, 32:40])


def test_stochastic_rounding_is_right_in_the_mean():
    x = np.float32([1 + 2**-10, -3.14159, 1e-30, 65504.1, 1.999999])
    draws = 1 << 14
    found = np.asarray(stochastic(jnp.broadcast_to(x, (draws, 5)), bits((draws, 5), 1)), np.float64)
    low, high = found.min(0), found.max(0)
    assert ((low <= x) & (x <= high) & (high - low <= np.abs(x) * 2**-6.99)).all()  # its two neighbours
    spread = np.maximum(found.std(0), (high - low) / draws)
    assert (np.abs(found.mean(0) - x) < 4.5 * spread / draws**0.5).all()


def test_stochastic_rounding_leaves_what_is_exact_and_what_is_no_number():
    x = jnp.float32([1.0, -0.5, 0.0, jnp.inf, -jnp.inf, jnp.nan])
    for key in range(20):
        np.testing.assert_array_equal(np.asarray(stochastic(x, bits((6,), key)), np.float32), x)


@pytest.mark.parametrize("kind", [E4M3, E5M2])
def test_tensors_are_scaled_into_8_bits(kind):
    x = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    largest = float(jnp.finfo(kind).max)
    for size in (1e-6, 1.0, 3e5):
        values, scale = quantised(jnp.asarray(x * size), kind)
        assert values.dtype == kind and float(scale) == 2.0 ** round(np.log2(float(scale)))
        assert largest / 4 < np.abs(np.asarray(values, np.float32)).max() <= largest
        expected = (x * np.float32(size) / np.float32(scale)).astype(
            ml_dtypes.float8_e4m3fn if kind is E4M3 else ml_dtypes.float8_e5m2
        )
        np.testing.assert_array_equal(np.asarray(values, np.float32), expected.astype(np.float32))


def test_zeros_stay_and_bad_numbers_spread():
    values, scale = quantised(jnp.zeros((4, 4)), E4M3)
    assert float(scale) == 1 and not np.asarray(values, np.float32).any()
    for bad in (jnp.inf, jnp.nan):
        x = jnp.ones((4, 4)).at[1, 2].set(bad)
        assert not np.isfinite(np.asarray(product8(x, jnp.ones((4, 4))))).any()


def test_products_in_8_bits_are_exact_where_the_operands_are():
    rng = np.random.default_rng(1)
    x, w, g = (rng.integers(-7, 8, shape).astype(np.float32) for shape in ((16, 32), (32, 8), (16, 8)))
    g = np.clip(g, -3, 3)  # e5m2 has two bits of mantissa
    y, back = jax.vjp(product8, jnp.asarray(x / 64), jnp.asarray(w * 2))
    np.testing.assert_array_equal(y, x @ w / 32)
    dx, dw = back(jnp.asarray(g))
    np.testing.assert_array_equal(dx, g @ w.T * 2)
    np.testing.assert_array_equal(dw, x.T @ g / 64)


def test_products_in_8_bits_are_close_in_bfloat16():
    rng = np.random.default_rng(2)
    x, w, g = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((64, 128), (128, 32), (64, 32)))
    y, back = jax.vjp(product8, x, w)
    exact, back32 = jax.vjp(jnp.matmul, x.astype(jnp.float32), w.astype(jnp.float32))
    for found, wanted, most in zip((y, *back(g)), (exact, *back32(g.astype(jnp.float32))), (0.05, 0.08, 0.08), strict=True):
        assert found.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(found, np.float32) - wanted) / np.linalg.norm(wanted)
        assert 0.01 < error < most  # roundings of 2^-4 at most, 2^-3 of gradients, spread evenly


def test_the_scale_of_the_loss_grows_and_falls():
    p = Precision("bf16", scaling="dynamic", first=8.0, growth=2)
    state = p.scale()
    seen = []
    for good in (True, True, True, False, False, True, True):
        state = p.next_scale(state, jnp.bool_(good))
        seen.append((float(state["scale"]), int(state["good"])))
    assert seen == [(8, 1), (16, 0), (16, 1), (8, 0), (4, 0), (4, 1), (8, 0)]
    assert float(p.next_scale({"scale": jnp.float32(1), "good": jnp.int32(0)}, jnp.bool_(False))["scale"]) == 1
    plain = Precision()
    assert plain.factor(plain.scale()) == 1.0 and plain.next_scale({}, jnp.bool_(True)) == {}


def test_finite():
    assert bool(finite({"a": jnp.ones(3), "b": [jnp.zeros(2)]})) and bool(finite({}))
    assert not bool(finite({"a": jnp.ones(3), "b": [jnp.zeros(2).at[1].set(jnp.nan)]}))


def train(precision: Precision, steps: int = 30) -> tuple[list[float], dict]:
    from gewu.train.mesh import Layout
    from gewu.train.optim import Optimiser
    from gewu.train.step import Trainer

    c = ModelConfig(vocab=32, width=32, heads=4, kv_heads=2, layers=1, length=32)
    trainer = Trainer(c, Layout(), Optimiser(learning_rate=1e-2, moments=precision.master), precision)
    rows = (
        np.arange(8)[:, None] * 3 + np.arange(33)[None] * (1 + np.arange(8)[:, None] % 3)
    ) % 32  # counting in steps of 1, 2, 3
    state, batch, losses = trainer.init(0), trainer.prepare({"tokens": rows[:, :-1], "targets": rows[:, 1:]}), []
    for _ in range(steps):
        state, metrics = trainer.step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def exact():
    return train(Precision())[0]


@pytest.mark.parametrize(
    "precision",
    [Precision("bf16"), Precision("bf16", master="bfloat16", scaling="dynamic"), Precision("fp8")],
    ids=["bf16", "without masters", "fp8"],
)
def test_a_model_learns_in_every_precision(precision, exact):
    losses, state = train(precision)
    assert abs(losses[0] - exact[0]) < 0.01 and losses[-1] < 0.5 * losses[0]
    assert 1e-5 < np.abs(np.array(losses) - exact).max() < 0.35
    kept = {leaf.dtype for name, leaf in flat(state.params).items() if "norm" not in name}
    assert kept == {jnp.dtype(precision.master)}


def test_a_step_whose_loss_overflows_is_skipped_and_the_scale_falls():
    from gewu.train.mesh import Layout
    from gewu.train.optim import Optimiser
    from gewu.train.step import Trainer

    c = ModelConfig(vocab=8, width=8, heads=2, layers=1, length=8)
    trainer = Trainer(c, Layout(), Optimiser(), Precision(scaling="dynamic", first=2.0**127))
    batch = trainer.prepare({"tokens": np.zeros((2, 8), np.int32), "targets": np.arange(16).reshape(2, 8) % 8})
    start = trainer.init(0)
    start.params["norm"] = start.params["norm"] * 64  # gradients beyond 2: times the scale, no float32 holds them
    before = jax.tree.map(np.asarray, start.params)
    after, metrics = trainer.step(start, batch)
    assert float(metrics["finite"]) == 0 and float(after.scale["scale"]) == 2.0**126
    assert jax.tree.all(jax.tree.map(lambda old, new: np.array_equal(old, new), before, after.params))
    good, metrics = trainer.step(after._replace(scale={"scale": jnp.float32(1024), "good": jnp.int32(0)}), batch)
    assert float(metrics["finite"]) == 1 and not np.array_equal(before["embed"], good.params["embed"])


def test_layers_multiply_in_8_bits():
    from gewu.train.layers import dense

    program = str(jax.make_jaxpr(lambda x, w: dense(x, w, Precision.of("fp8")))(jnp.ones((2, 3, 4)), jnp.ones((4, 2, 5))))
    assert program.count("f8_e4m3fn[6,4]") and program.count("f8_e4m3fn[4,10]")
