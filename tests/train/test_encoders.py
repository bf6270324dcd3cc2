"""Encoders against plain NumPy loops, their derivative, and missing values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.train.config import Input, ModelConfig
from gewu.train.encoders import encode, patches
from gewu.train.precision import Precision
from gewu.train.spec import initial, specs

FP32 = Precision.of("fp32")
PICTURE = Input("picture", "patches", (4, 6, 2), 2)
SERIES = Input("series", "series", (8, 3), 4)
TABLE = Input("table", "table", (5,))
MODEL = ModelConfig(width=16, layers=1, heads=2, inputs=(PICTURE, SERIES, TABLE), classes=2)


def data(seed=0):
    rng = np.random.default_rng(seed)
    return {item.name: rng.normal(size=(3, *item.shape)).astype(np.float32) for item in MODEL.inputs}


def weights():
    w = jax.tree.map(np.asarray, initial(specs(MODEL), 1)["inputs"])
    return w | {"table": w["table"] | {"bias": w["table"]["bias"] + 0.5}}  # biases begin at zero


def test_a_patch_is_the_square_of_the_picture():
    x = data()["picture"]
    found = np.asarray(patches(x, PICTURE))
    assert found.shape == (3, 6, 8)
    for row in range(2):
        for column in range(3):
            square = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert (found[:, 3 * row + column] == square.reshape(3, -1)).all()


def test_tokens_are_the_sums_of_their_formula():
    batch, w = data(), weights()
    found = np.asarray(encode(w, batch, MODEL, FP32))
    assert found.shape == (3, MODEL.prefix, 16) and MODEL.prefix == 6 + 2 + 5
    series = batch["series"].reshape(3, 2, 12)
    # sums of at most 12 products of numbers of order 1, in float32
    assert np.allclose(found[:, 6:8], series @ w["series"]["weight"] + w["series"]["position"], atol=2e-6)
    for c in range(5):
        want = batch["table"][:, c, None] * w["table"]["weight"][c] + w["table"]["bias"] + w["table"]["position"][c]
        assert np.allclose(found[:, 8 + c], want, atol=1e-6)


def test_a_missing_value_is_told_from_every_value_that_is_there():
    w, batch = weights(), data()
    batch["table"][0, 1], batch["picture"][0, 0, 0, 0], batch["series"][1, 2, 0] = np.nan, np.nan, np.nan
    found = np.asarray(encode(w, batch, MODEL, FP32))
    assert np.isfinite(found).all()
    assert (found[0, 8 + 1] == w["table"]["position"][1]).all()
    batch["table"][0, 1] = 0.0
    assert abs(np.asarray(encode(w, batch, MODEL, FP32))[0, 9] - found[0, 9]).min() > 0.4


def test_gradients_are_finite_where_values_are_missing_and_agree_with_differences():
    w, batch = weights(), data()
    batch["table"][0, 1] = np.nan
    probe = np.random.default_rng(1).normal(size=(3, MODEL.prefix, 16)).astype(np.float32)

    def value(w):
        return jnp.sum(encode(w, batch, MODEL, FP32) * probe)

    grads = jax.grad(value)(w)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    for name in ("picture", "series", "table"):
        moved = jax.tree.map(np.array, w)
        moved[name]["weight"][1, 2] += 1.0  # the map is linear: a step of 1 has no error but rounding
        assert float(value(moved) - value(w)) == pytest.approx(float(grads[name]["weight"][1, 2]), abs=1e-4)


def test_what_does_not_fit_is_refused_by_name():
    batch, w = data(), weights()
    with pytest.raises(InputError, match="table"):
        encode(w, batch | {"table": batch["table"][:, :4]}, MODEL, FP32)
    with pytest.raises(InputError, match="lacks an input"):
        encode(w, {name: x for name, x in batch.items() if name != "series"}, MODEL, FP32)
    with pytest.raises(InputError, match="multiples of patch = 4"):
        patches(batch["picture"], Input("picture", "patches", (4, 6, 2), 4))
