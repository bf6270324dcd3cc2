"""The front end in Python objects makes the programs that formulas mean; the same programs as functions of JAX."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.ops import python as form
from gewu.ops.emit import compile_program
from gewu.ops.ir import Unsupported
from gewu.ops.jaxform import to_jax
from gewu.ops.python import array, assign, axes, cast, einsum, index, largest, maximum, program, scalar, sizes, total, where
from gewu.ops.reference import evaluate
from gewu.ops.sizes import Size
from gewu.ops.tensor import Apply, Gather, Load, Program, Reduce

RNG = np.random.default_rng(0)
M, N, P = sizes("m n p")
LAUNCH = {"m": 5, "n": 7, "p": 3}


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def check(made: Program, args: list[Any], want: np.ndarray) -> None:
    """Compare NumPy's evaluation, compiled code and JAX with what a formula should give in its last array argument."""
    place = max(k for k, a in enumerate(args) if isinstance(a, np.ndarray))
    results = [evaluate(made, args, LAUNCH)[place], np.asarray(to_jax(made)(args, LAUNCH)[place])]
    compiled = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    compile_program(made, threads=1)(compiled, LAUNCH)
    for found in (*results, compiled[place]):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)  # sums of at most 21 float32 terms


def test_matrix_product() -> None:
    i, j, k = axes(i=M, j=N, k=P)
    a, b, c = array(0, "f32", M, P), array(1, "f32", P, N), array(2, "f32", M, N)
    args = [normal(5, 3), normal(3, 7), normal(5, 7)]
    written = program("matmul", assign(c[i, j], total(a[i, k] * b[k, j], over=k)))
    check(written, args, args[0] @ args[1])
    check(program("matmul", einsum("ik,kj->ij", c, a, b)), args, args[0] @ args[1])
    reduced = written.assigns[0].value
    assert isinstance(reduced, Reduce) and isinstance(reduced.body, Apply) and written.assigns[0].axes == (("i", M), ("j", N))


def test_index_arithmetic_and_padding() -> None:
    i, j = axes(i=M, j=N)
    x, y = array(0, "f32", M, N), array(1, "f32", M, N)
    args = [normal(5, 7), normal(5, 7)]
    value = x.at(i - 1, j) + 2 * x.at(i, j + 1, outside=3.0) - x.at(i, 2 * j) + x.at(4 - i, j)
    p = np.pad(args[0], ((1, 0), (0, 0)))[:-1] + 2 * np.pad(args[0], ((0, 0), (0, 1)), constant_values=3)[:, 1:]
    p -= np.pad(args[0], ((0, 0), (0, 7)))[:, ::2] - args[0][::-1]
    check(program("shift", assign(y[i, j], value)), args, p)


def test_bare_axes_need_no_condition() -> None:
    i, j, short = axes(i=M, j=N, short=P)
    x = array(0, "f32", M, N)
    assert x.at(i, j).expression == x[i, j].expression
    load = x.at(i + 1, short).expression
    assert isinstance(load, Load) and len(load.where) == 2  # i + 1 < m, short < n: neither can be negative
    assert isinstance(x.at(i, j - 1, outside=0).expression, Load)


def test_gather() -> None:
    i, j = axes(i=M, j=N)
    table, words, y = array(0, "f32", 11, N), array(1, "s32", M), array(2, "f32", M, N)
    args = [normal(11, 7), RNG.integers(0, 11, 5).astype(np.int32), normal(5, 7)]
    made = program("take", assign(y[i, j], table[words[i], j]))
    assert isinstance(made.assigns[0].value, Gather)
    check(made, args, args[0][args[1]])
    check(program("last", assign(y[i, j], table[words[i], 0] + table[3, j])), args, args[0][args[1]][:, :1] + args[0][3])


def test_functions_and_scalars() -> None:
    i, j, k = axes(i=M, j=N, k=N)
    x, y = array(0, "f32", M, N), array(2, "f32", M, N)
    args = [normal(5, 7), np.float32(0.5), normal(5, 7)]
    most = largest(x[i, k], over=k)
    value = where(x[i, j] > scalar(1, "f32"), form.tanh(x[i, j]), maximum(x[i, j], -1)) + form.exp(x[i, j] - most)
    value = value + cast(index(2 * j + 1), "f32") / index(N, "f32") - form.mean(form.absolute(x[i, k]), over=k)
    a = args[0]
    want = np.where(a > 0.5, np.tanh(a), np.maximum(a, -1)) + np.exp(a - a.max(1, keepdims=True))
    check(program("mixed", assign(y[i, j], value)), args, want + (2 * np.arange(7) + 1) / 7 - np.abs(a).mean(1, keepdims=True))


def test_sums_with_conditions() -> None:
    i, j, k = axes(i=M, j=N, k=N)
    x, y = array(0, "f32", M, N), array(1, "f32", M, N)
    args = [normal(5, 7), normal(5, 7)]
    check(program("scan", assign(y[i, j], total(x[i, k], over=k, inside=(j - k,)))), args, np.cumsum(args[0], axis=1))


def test_narrow_storage() -> None:
    i, k = axes(i=M, k=N)
    x, y = array(0, "bf16", M, N), array(1, "bf16", M)
    args = [normal(5, 7).astype(ml_dtypes.bfloat16), np.zeros(5, ml_dtypes.bfloat16)]
    made = program("sum", assign(y[i], total(x[i, k], over=k)))
    want = args[0].astype(np.float64).sum(1)
    got = [np.asarray(to_jax(made)(args, LAUNCH)[1]), args[1]]
    compile_program(made)(args, LAUNCH)
    for found in got:  # summed in float32, rounded once to 8 bits
        np.testing.assert_allclose(found.astype(np.float64), want, rtol=4e-3, atol=1e-6)


def test_axes_of_a_program_have_different_names() -> None:
    i, j, k = axes(i=M, j=N, k=N)
    x, y, z = array(0, "f32", M, N), array(1, "f32", M), array(2, "f32", M, N)
    twice = total(x[i, k] * total(x[i, k], over=k), over=k)
    made = program("names", assign(y[i], twice), assign(z[i, j], twice))
    names: list[str] = []

    def collect(node: Any) -> None:
        if isinstance(node, Reduce):
            names.extend(axis for axis, _ in node.axes)
            collect(node.body)
        for part in getattr(node, "args", ()):
            collect(part)

    for a in made.assigns:
        names.extend(axis for axis, _ in a.axes)
        collect(a.value)
    assert len(names) == 7 and len(set(names)) == 7
    want = LAUNCH["m"], LAUNCH["n"]
    args = [normal(*want), normal(5), normal(*want)]
    check(made, args, np.repeat((args[0].sum(1) ** 2)[:, None], 7, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda i, x, d: x[i, i] + d[i], "types do not agree"),
        (lambda i, x, d: x[i], "wrong number of indices"),
        (lambda i, x, d: program("p", assign(d[i], d[form.axes(j=N)[0]])), "neither of the output nor reduced"),
        (lambda i, x, d: assign(d[i] + d[i], 1.0), "only an element"),
        (lambda i, x, d: array(0, "f33", M), "unknown type"),
        (lambda i, x, d: einsum("ij,jk->ik", d, x), "letters do not fit"),
        (lambda i, x, d: einsum("ii->i", d, x), "axis i has two extents"),
        (lambda i, x, d: index(i) * 0.5, "whole number"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    (i,) = axes(i=M)
    with pytest.raises(InputError, match=re.escape(message)):
        make(i, array(0, "f32", M, N), array(1, "f64", M))


def test_derivatives_by_finite_differences() -> None:
    import jax
    import jax.numpy as jnp

    i, j, k = axes(i=M, j=N, k=N)
    x, y = array(0, "f32", M, N), array(1, "f32", M, N)
    e = [form.exp(x[i, a] - largest(x[i, k], over=k)) for a in (j, k)]
    softmax = to_jax(program("softmax", assign(y[i, j], e[0] / total(e[1], over=k))))
    shifted = to_jax(program("shift", assign(y[i, j], form.erf(x.at(i - 1, j) * x.at(i, j + 1)))))
    for formula in (softmax, shifted):

        def value(a: Any, formula: Any = formula) -> Any:
            return jnp.sum(jnp.sin(3 * formula([a, np.zeros((5, 7), np.float32)], LAUNCH)[1]))

        at, along = normal(5, 7), normal(5, 7)
        slope = float(jnp.vdot(jax.grad(value)(at), along))
        step = 1e-2  # float32: rounding 1e-7 / step and curvature step^2 are both below 1e-3
        assert (value(at + step * along) - value(at - step * along)) / (2 * step) == pytest.approx(slope, rel=5e-3, abs=5e-3)


def test_jax_traces_arrays_and_scalars() -> None:
    import jax

    (i,) = axes(i=M)
    x, y = array(0, "f32", M), array(2, "f32", M)
    formula = to_jax(program("scale", assign(y[i], scalar(1, "f32") * x[i])))
    a = normal(5)
    run = jax.jit(lambda x, s: formula([x, s, np.zeros(5, np.float32)], LAUNCH)[2])
    np.testing.assert_array_equal(run(a, 2.0), 2 * a)
    assert float(jax.grad(lambda s: run(a, s).sum())(1.5)) == pytest.approx(float(a.sum()), rel=1e-5)


def test_jax_writes_parts_of_arrays() -> None:
    (i,) = axes(i=P)
    x, y = array(0, "f32", P), array(1, "f32", Size.of(2) * P)
    args = [normal(3), normal(6)]
    want = args[1].copy()
    want[1::2] = args[0]
    check(program("odd", assign(y[2 * i + 1], x[i])), args, want)


def test_jax_refuses_what_it_cannot_do() -> None:
    (i,) = axes(i=M)
    wide = program("wide", assign(array(1, "f64", M)[i], array(0, "f64", M)[i]))
    with pytest.raises(InputError, match="jax_enable_x64"):
        to_jax(wide)([np.zeros(5), np.zeros(5)], LAUNCH)
    x = array(0, "u32", M)
    packed = form.Value(Apply("prmt", "b32", (x[i].expression, x[i].expression, x[i].expression)), "u32")
    with pytest.raises(Unsupported, match="no form in JAX"):
        to_jax(program("bytes", assign(array(1, "u32", M)[i], packed)))([np.zeros(5, np.uint32)] * 2, LAUNCH)
    short = program("short", assign(array(1, "f32", M)[i], array(0, "f32", M)[i]))
    with pytest.raises(InputError, match="too small"):
        to_jax(short)([np.zeros(3, np.float32), np.zeros(5, np.float32)], LAUNCH)
