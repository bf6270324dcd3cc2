"""Operators as JAX functions: eager, compiled, mapped, differentiated; errors come back as errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.ops import load
from gewu.ops.ffi import as_jax
from tests.ops.ptxtext import HISTOGRAM, SAXPY, TWICE

jax = pytest.importorskip("jax")

N = 512


@pytest.fixture(autouse=True)
def _folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GEWU_CACHE", str(tmp_path / "cache"))


def saxpy(**options: Any) -> Any:
    return as_jax(load(SAXPY, **options)["saxpy"], 2, 256, outputs={1: 0}, scalars={2: 3.0, 3: N}, updates=(1,))


def vectors() -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    return rng.standard_normal(N).astype(np.float32), rng.standard_normal(N).astype(np.float32)


@pytest.mark.parametrize("use", ["auto", "spmd"])
def test_eager_and_compiled(use: str) -> None:
    x, y = vectors()
    wanted = np.float32(3.0) * x + y
    function = saxpy(use=use)
    for call in (function, jax.jit(function)):
        np.testing.assert_allclose(call(x, y), wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda a, b: 2.0 * function(a, b + 1.0))(x, y), 2.0 * (wanted + 1.0), rtol=1e-5)


def test_inputs_are_not_changed() -> None:
    x, y = (jax.numpy.asarray(v) for v in vectors())
    saxpy()(x, y)
    np.testing.assert_array_equal(y, vectors()[1])


def test_mapped_over_a_batch() -> None:
    x, y = (np.stack([v, 2 * v, -v]) for v in vectors())
    np.testing.assert_allclose(jax.vmap(saxpy())(x, y), np.float32(3.0) * x + y, rtol=1e-5)


def test_the_derivative_is_that_of_the_formula() -> None:
    x, y = vectors()

    def loss(a: Any, b: Any) -> Any:
        return (saxpy()(a, b) ** 2).sum()

    value = np.float32(3.0) * x + y
    dx, dy = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, y)
    np.testing.assert_allclose(dx, 2.0 * 3.0 * value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dy, 2.0 * value, rtol=1e-5, atol=1e-5)


def test_what_is_not_lifted_has_no_derivative() -> None:
    x, y = vectors()
    with pytest.raises(InputError, match="no derivative"):
        jax.grad(lambda a: saxpy(use="spmd")(a, y).sum())(x)


def test_outputs_that_are_only_written_start_as_zeros() -> None:
    operator = load(HISTOGRAM)["histogram"]
    values = np.random.default_rng(1).integers(0, 16, N).astype(np.int32)
    shape = jax.ShapeDtypeStruct((16,), np.int32)
    count = as_jax(operator, lambda v: -(-v.size // 256), 256, outputs={1: shape}, scalars={2: N})
    for _ in range(2):
        np.testing.assert_array_equal(jax.jit(count)(values), np.bincount(values, minlength=16))


def test_another_shape_compiles_another_handler() -> None:
    operator = load(TWICE)["twice"]
    for n in (7, 9):
        function = as_jax(operator, 1, 1, outputs={1: 0}, scalars={2: n})
        np.testing.assert_array_equal(function(np.arange(n, dtype=np.float32)), 2.0 * np.arange(n))


def test_errors_of_the_launch_come_back_with_their_text() -> None:
    function = as_jax(load(SAXPY, checked=True)["saxpy"], 3, 256, outputs={1: 0}, scalars={2: 3.0, 3: 600})
    with pytest.raises(Exception, match="access outside"):
        jax.block_until_ready(function(vectors()[0]))


@pytest.mark.parametrize(
    "options",
    [
        {"outputs": {}},
        {"outputs": {9: 0}},
        {"outputs": {1: 0}, "scalars": {1: 2}},
        {"outputs": {1: 0}, "updates": (0,)},
        {"outputs": {1: 0}, "scalars": {3: 2.5}},
    ],
)
def test_arguments_that_do_not_add_up_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        as_jax(load(SAXPY)["saxpy"], 2, 256, **options)


def test_a_wrong_number_of_arrays_is_refused() -> None:
    with pytest.raises(InputError, match="wrong number of arrays"):
        saxpy()(vectors()[0])
