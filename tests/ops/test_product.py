"""Products of bfloat16, and of float32 by parts, against float64, on memory and through JAX."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product as combinations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gewu.ops import product as products
from gewu.ops import product_kernel
from gewu.ops.product import multiply, product
from gewu.ops.rows import activated, applied, halved

HALF = ml_dtypes.bfloat16
WAYS = product_kernel.ways()
FORMS = list(combinations((False, True), repeat=2))
SIZES = [(1, 1, 1), (1, 50, 17), (14, 32, 32), (15, 33, 7), (100, 70, 129), (30, 40, 1600), (3, 300, 31)]
EIGHT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from gewu.ops.product import product
r = np.random.default_rng(0)
a = jnp.asarray(r.normal(size=(8 * 96, 80)), jnp.bfloat16)
b = jnp.asarray(r.normal(size=(80, 64)), jnp.bfloat16)
def f(a, b):
    return jax.lax.scan(lambda s, _: (s + jax.lax.psum((product(a, b) ** 2).sum(), "x"), None), jnp.float32(0), None, length=3)[0]
mesh = Mesh(np.array(jax.devices()), "x")
g = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(P("x"), P()), out_specs=P(), check_vma=False))
exact = 3 * float((np.asarray(product(a, b), np.float64) ** 2).sum())
assert len(jax.devices()) == 8 and abs(float(g(a, b)) / exact - 1) < 1e-2, (g(a, b), exact)
"""


TWICE = """
import sys, hashlib, jax, jax.numpy as jnp, numpy as np
from gewu.ops.rows import normed
r = np.random.default_rng(0)
x, g = jnp.asarray(r.normal(size=(64, 384)), jnp.float32), jnp.asarray(r.normal(size=384), jnp.float32)
y, back = jax.vjp(lambda *given: normed(*given, 1e-5, True), x, g, g)
print(hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in (y, *back(x)))).hexdigest())
"""
thirds = pytest.mark.skipif("tiles" not in WAYS, reason="this processor has no AMX")


def operands(m: int, n: int, k: int, ta: bool, tb: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the operands as they lie in memory, and their product in float64."""
    random = np.random.default_rng([m, n, k])
    a, b = random.normal(size=(m, k)).astype(HALF), random.normal(size=(k, n)).astype(HALF)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    return (np.ascontiguousarray(a.T) if ta else a), (np.ascontiguousarray(b.T) if tb else b), exact


def on_memory(a: np.ndarray, b: np.ndarray, ta: bool, tb: bool, *, form: str, way: str, threads: int = 2) -> np.ndarray:
    """Return the product by `multiply`, between guards that must stay."""
    m, k = a.shape[::-1] if ta else a.shape
    n = b.shape[0] if tb else b.shape[1]
    held = np.full(m * n + 64, 7, HALF if form == "bfloat16" else np.float32)
    sa, sb = (1, m) if ta else (k, 1), (1, k) if tb else (n, 1)
    place = held.ctypes.data + 32 * held.itemsize
    multiply(a.ctypes.data, sa, b.ctypes.data, sb, place, (m, n, k), form=form, way=way, threads=threads)
    assert (held[:32] == 7).all() and (held[-32:] == 7).all()
    return held[32:-32].reshape(m, n)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("ta", "tb"), FORMS)
def test_every_form_and_size_is_the_product_in_float64(ta: bool, tb: bool, way: str) -> None:
    for m, n, k in SIZES:
        a, b, exact = operands(m, n, k, ta, tb)
        bound = k * 2.0**-24 * 4 * (np.abs(a.T if ta else a).astype(float) @ np.abs(b.T if tb else b).astype(float)) + 1e-7
        assert (np.abs(on_memory(a, b, ta, tb, form="float32", way=way) - exact) <= bound).all(), (m, n, k)
        if k <= product_kernel.DEPTH:
            found = on_memory(a, b, ta, tb, form="bfloat16", way=way).astype(np.float64)
            assert (np.abs(found - exact) <= bound + 2.0**-8 * np.abs(exact)).all(), (m, n, k)


@pytest.mark.parametrize("way", WAYS)
def test_the_number_of_threads_changes_no_bit(way: str) -> None:
    for m, n, k in ((300, 200, 150), (40, 900, 1600)):
        a, b, _ = operands(m, n, k, False, True)
        one, two, three = (on_memory(a, b, False, True, form="float32", way=way, threads=count) for count in (1, 2, 3))
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize(("ta", "tb"), FORMS)
def test_gradients_are_those_of_the_plain_product(ta: bool, tb: bool) -> None:
    a, b, _ = operands(24, 40, 56, ta, tb)
    weight = jnp.asarray(np.random.default_rng(5).normal(size=(24, 40)), jnp.float32)

    def ours(a: jax.Array, b: jax.Array) -> jax.Array:
        return (product(a, b, ta=ta, tb=tb) * weight).sum()

    def plain(a: jax.Array, b: jax.Array) -> jax.Array:
        return ((a.T if ta else a) @ (b.T if tb else b) * weight).sum()

    found = jax.jit(jax.grad(ours, (0, 1)))(jnp.asarray(a), jnp.asarray(b))
    for mine, exact in zip(found, jax.grad(plain, (0, 1))(*(jnp.asarray(x, jnp.float32) for x in (a, b))), strict=True):
        assert mine.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(mine, np.float32), exact, rtol=0, atol=0.02 * float(jnp.abs(exact).max()))


def test_sums_longer_than_the_registers_are_rounded_once() -> None:
    a, b, exact = operands(8, 16, 5000, False, False)
    found = np.asarray(product(jnp.asarray(a), jnp.asarray(b)), np.float64)
    wide = np.asarray(product(jnp.asarray(a), jnp.asarray(b), out=jnp.float32), np.float64)
    np.testing.assert_allclose(wide, exact, atol=2e-4)
    np.testing.assert_array_equal(found, wide.astype(HALF).astype(np.float64))


def test_empty_products_are_zeros() -> None:
    for m, n, k in ((0, 3, 4), (3, 0, 4), (3, 4, 0)):
        found = product(jnp.ones((m, k), jnp.bfloat16), jnp.ones((k, n), jnp.bfloat16))
        assert found.shape == (m, n) and not np.asarray(found, np.float32).any()


def test_vmap_multiplies_one_by_one() -> None:
    a = jnp.asarray(np.random.default_rng(3).normal(size=(3, 6, 10)), jnp.bfloat16)
    found = jax.vmap(lambda x: product(x, x, tb=True))(a)
    np.testing.assert_array_equal(found, jnp.stack([product(x, x, tb=True) for x in a]))


def test_plain_leaves_the_products_to_xla() -> None:
    assert products.usable()
    with products.plain():
        assert not products.usable()
    assert products.usable()


def test_eight_devices_multiply_at_the_same_time_within_a_loop() -> None:
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", EIGHT], env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("ta", "tb"), FORMS)
def test_a_product_is_added_to_what_is_there(ta: bool, tb: bool) -> None:
    for m, n, k in (*SIZES, (20, 40, 3500)):
        a, b, exact = operands(m, n, k, ta, tb)
        c = np.random.default_rng(9).normal(size=(m, n)).astype(np.float32)
        found = jax.jit(lambda c, a, b: products.added(c, a, b, ta=ta, tb=tb))(jnp.asarray(c), jnp.asarray(a), jnp.asarray(b))
        np.testing.assert_allclose(found, c + exact, rtol=0, atol=1e-5 * np.abs(exact).max() + 1e-6, err_msg=str((m, n, k)))


def test_what_is_added_to_stays_where_it_is_needed_still_and_is_taken_over_in_loops() -> None:
    a, b, exact = (jnp.asarray(x) for x in operands(30, 20, 40, False, False))
    start = jnp.ones((30, 20), jnp.float32)

    def both(c: jax.Array) -> tuple[jax.Array, jax.Array]:
        return c, jax.lax.scan(lambda c, _: (products.added(c, a, b), None), c, None, length=3)[0]

    before, after = jax.jit(both)(start)
    np.testing.assert_array_equal(before, 1)
    np.testing.assert_array_equal(start, 1)
    np.testing.assert_allclose(after, 1 + 3 * exact, atol=1e-3)
    empty = products.added(start, a[:, :0], b[:0])
    np.testing.assert_array_equal(empty, start)


def test_halves_are_numpys_roundings() -> None:
    random = np.random.default_rng(2)
    for shape in ((1, 1), (37, 5), (3, 7, 11), (40, 129)):
        x = (random.normal(size=shape) * 10.0 ** random.integers(-30, 30, shape)).astype(np.float32)
        x.flat[0] = np.inf
        found = halved(jnp.asarray(x))
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(found), x.astype(HALF))


def test_applied_weights_have_gradients_that_are_not_rounded() -> None:
    a, b, _ = operands(24, 40, 56, False, False)
    x, w = jnp.asarray(a), jnp.asarray(b, jnp.float32) + 1e-4
    weight = jnp.asarray(np.random.default_rng(5).normal(size=(24, 40)), jnp.bfloat16)
    y, back = jax.vjp(applied, x, w)
    np.testing.assert_array_equal(y, product(x, w.astype(jnp.bfloat16)))
    dx, dw = back(weight)
    np.testing.assert_array_equal(dx, product(weight, w.astype(jnp.bfloat16), tb=True))
    assert dw.dtype == jnp.float32
    np.testing.assert_allclose(dw, np.asarray(x, float).T @ np.asarray(weight, float), atol=1e-4)


def singles(m: int, n: int, k: int, spread: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return float32 operands over 10^±spread, their product in float64, and that of their magnitudes."""
    random = np.random.default_rng([m, n, k, spread])
    scale = 10.0 ** random.uniform(-spread, spread, (m, 1)), 10.0 ** random.uniform(-spread, spread, (1, n))
    a, b = (random.normal(size=(m, k)) * scale[0]).astype(np.float32), (random.normal(size=(k, n)) * scale[1]).astype(np.float32)
    wide, tall = a.astype(float), b.astype(float)
    return a, b, wide @ tall, np.abs(wide) @ np.abs(tall)


@thirds
@pytest.mark.parametrize("spread", [0, 8])
@pytest.mark.parametrize(("ta", "tb"), FORMS)
def test_products_by_parts_have_the_error_of_float32(ta: bool, tb: bool, spread: int) -> None:
    for m, n, k in (*SIZES, (64, 96, 1100)):
        a, b, exact, size = singles(m, n, k, spread)
        ours = np.ascontiguousarray(a.T) if ta else a, np.ascontiguousarray(b.T) if tb else b
        found = on_memory(*ours, ta, tb, form="float32", way="thirds")
        assert (np.abs(found - exact) <= (k + 1) * 2.0**-24 * size + 1e-30).all(), (m, n, k)
        error, theirs = (np.sqrt(np.mean(((x - exact) / size) ** 2)) for x in (found, a @ b))
        assert error <= 1.2 * theirs + 2.0**-25, (m, n, k, error, theirs)


@thirds
def test_products_by_parts_go_through_jax_with_their_gradients_and_threads_change_no_bit() -> None:
    a, b, exact, _ = singles(100, 70, 1100)
    found, back = jax.vjp(lambda a, b: products.matmul(a, b), jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_array_equal(found, on_memory(a, b, False, False, form="float32", way="thirds", threads=1))
    np.testing.assert_allclose(found, exact, atol=2e-5 * np.abs(exact).max())
    g = np.random.default_rng(4).normal(size=found.shape).astype(np.float32)
    for mine, whole in zip(back(jnp.asarray(g)), (g.astype(float) @ b.T, a.astype(float).T @ g), strict=True):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, whole, atol=2e-6 * np.abs(whole).max())
    a[3, 5] = np.inf
    assert np.isnan(np.asarray(products.matmul(jnp.asarray(a), jnp.asarray(b)))[3]).all()


@pytest.mark.parametrize("gates", [1, 2])
@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16])
def test_activations_that_are_made_again_have_the_plain_gradients(kind: object, gates: int) -> None:
    random = np.random.default_rng(gates)
    h, w = jnp.asarray(random.normal(size=(48, gates * 40)), kind), jnp.asarray(random.normal(size=(40, 24)), jnp.float32)
    bias, g = jnp.asarray(random.normal(size=(gates, 40)), jnp.float32), jnp.asarray(random.normal(size=(48, 24)), kind)

    def plain(h: jax.Array, bias: jax.Array, w: jax.Array) -> jax.Array:
        x = h.astype(jnp.float32).reshape(48, gates, 40) + bias
        return (jax.nn.silu(x[:, 0]) * x[:, 1] if gates == 2 else jax.nn.gelu(x[:, 0], approximate=True)) @ w

    found, back = jax.vjp(activated, h, bias, w)
    exact, there = jax.vjp(plain, h, bias, w)
    close = 2e-6 if kind == jnp.float32 else 2e-2
    for mine, theirs in zip((found, *back(g)), (exact, *there(g.astype(jnp.float32))), strict=True):
        theirs = np.asarray(theirs, np.float32)
        np.testing.assert_allclose(np.asarray(mine, np.float32), theirs, rtol=0, atol=close * np.abs(theirs).max())


def test_loops_just_compiled_and_from_the_cache_give_the_same_bits(tmp_path: object) -> None:
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    runs = [subprocess.run([sys.executable, "-c", TWICE], env=env, capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
