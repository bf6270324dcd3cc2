"""Every operator of the library, in every type, against NumPy in float64; derivatives against finite differences; refusals."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.ops import gpu, library
from gewu.ops.interp import run
from gewu.ops.library import OPERATORS, call
from gewu.ops.library.call import KINDS
from gewu.ops.ptx import read_ptx

TYPES: dict[str, Any] = {"float32": np.float32, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
STEP = {"float32": 6e-8, "float64": 1.2e-16, "bfloat16": 4e-3, "float16": 5e-4}
"""Half a unit in the last place, relative."""

Random = Callable[..., np.ndarray]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def arguments(name: str, dtype: Any, seed: int = 0) -> Arguments:
    """Return small ragged arguments of an operator."""
    rng = np.random.default_rng([seed, *name.encode()])

    def r(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    def i(high: int, *shape: int) -> np.ndarray:
        return rng.integers(0, high, shape).astype(np.int32)

    if name in ("relu", "gelu", "silu", "tanh", "sigmoid", "exp"):
        return (r(5, 41),), {}
    starts = np.concatenate(([0], np.cumsum(rng.integers(0, 5, 13)))).astype(np.int32)
    table: dict[str, Callable[[], Arguments]] = {
        "elementwise": lambda: ((r(203), r(203), 0.75), {}),
        "cast": lambda: ((r(203), np.float32), {}),
        "log": lambda: ((np.abs(r(203)) + np.asarray(0.1, dtype),), {}),
        "clamp": lambda: ((r(203), -0.5, 0.75), {}),
        "select": lambda: ((rng.integers(0, 2, 203).astype(bool), r(203), r(203)), {}),
        "dropout": lambda: ((r(7, 29), 0.25, 0x123456789ABCDEF), {}),
        "sum": lambda: ((r(5, 37, 3),), {"axis": 1}),
        "max": lambda: ((r(5, 37),), {"axis": 0}),
        "argmax": lambda: ((r(5, 37),), {}),
        "norm": lambda: ((r(5, 37),), {}),
        "logsumexp": lambda: ((r(5, 37),), {}),
        "scan": lambda: ((r(3, 23),), {}),
        "histogram": lambda: ((i(11, 203), 11), {}),
        "topk": lambda: ((r(4, 77), 5), {}),
        "sort": lambda: ((r(4, 27),), {}),
        "softmax": lambda: ((3 * r(5, 37),), {}),
        "layernorm": lambda: ((r(5, 37), r(37), r(37)), {}),
        "rmsnorm": lambda: ((r(5, 37), r(37)), {}),
        "batchnorm": lambda: ((r(3, 4, 5, 7), r(4), r(4)), {}),
        "groupnorm": lambda: ((r(3, 6, 5, 7), r(6), r(6), 2), {}),
        "gemv": lambda: ((r(19, 37), r(37)), {}),
        "gemm": lambda: ((r(19, 13), r(13, 23)), {}),
        "batched_gemm": lambda: ((r(2, 5, 7), r(2, 7, 9)), {}),
        "int8_gemm": lambda: ((r(6, 38), rng.integers(-127, 128, (18, 38)).astype(np.int8), np.abs(r(18)) / 64), {}),
        "int4_gemm": lambda: ((r(3, 38), rng.integers(0, 256, (18, 19)).astype(np.uint8), np.abs(r(18)) / 4), {}),
        "outer": lambda: ((r(19), r(23)), {}),
        "conv1d": lambda: ((r(2, 3, 25), r(4, 3, 5), r(4)), {"stride": 2, "padding": 2}),
        "conv2d": lambda: ((r(2, 3, 7, 11), r(4, 3, 3, 3), r(4)), {"stride": 1, "padding": 1}),
        "depthwise": lambda: ((r(2, 3, 7, 11), r(3, 3, 3)), {"stride": 2, "padding": 1}),
        "transposed_conv": lambda: ((r(2, 3, 4, 5), r(3, 2, 4, 4)), {"stride": 2, "padding": 1}),
        "maxpool": lambda: ((r(3, 9, 11), 3), {"stride": 2}),
        "avgpool": lambda: ((r(3, 8, 10), 2), {}),
        "transpose": lambda: ((r(3, 19, 37),), {}),
        "gather": lambda: ((r(50), i(50, 7, 29)), {}),
        "scatter_add": lambda: ((r(11, 19), i(7, 11), r(7, 19)), {}),
        "embedding": lambda: ((r(11, 19), i(11, 2, 5)), {}),
        "concat": lambda: ((r(5, 13, 2), r(5, 4, 2)), {"axis": 1}),
        "pad": lambda: ((r(2, 7, 9), 2), {"value": 0.5}),
        "im2col": lambda: ((r(2, 6, 9), 3), {"padding": 1}),
        "resize": lambda: ((r(2, 5, 9), 7, 13), {}),
        "attention": lambda: ((r(2, 35, 8), r(2, 35, 8), r(2, 35, 8)), {}),
        "attention_causal": lambda: ((r(2, 35, 8), r(2, 35, 8), r(2, 35, 8)), {"scale": 0.5}),
        "attention_gqa": lambda: ((r(4, 19, 8), r(2, 19, 8), r(2, 19, 8)), {}),
        "rotary": lambda: ((r(5, 3, 14), r(5, 7), r(5, 7)), {}),
        "cross_entropy": lambda: ((r(5, 37), i(37, 5)), {}),
        "adamw": lambda: ((r(203), r(203), r(203) / 8, np.abs(r(203)), 3), {"rate": 0.125}),
        "quantise": lambda: ((r(5, 37),), {}),
        "spmv": lambda: ((starts, i(17, int(starts[-1])), r(int(starts[-1])), r(17)), {}),
        "stencil3d": lambda: ((r(4, 5, 19), 0.1), {}),
        "nbody": lambda: ((np.abs(r(45, 4)), 0.25), {}),
        "fft_stage": lambda: ((r(2, 24, 2), 3), {}),
        "tridiagonal": lambda: ((r(13, 5), 4 + np.abs(r(13, 5)), r(13, 5), r(13, 5)), {}),
    }  # fmt: skip
    args, options = table[name]()
    return tuple(a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype.kind not in "iub" else a for a in args), options


def deviation(got: np.ndarray, want: np.ndarray) -> float:
    """Return the largest difference, relative to the element plus the root mean square."""
    wide = got.astype(np.float64)
    assert wide.shape == want.shape
    assert np.array_equal(np.isnan(wide), np.isnan(want))
    return float(np.max(np.abs(wide - want) / (np.abs(want) + np.sqrt(np.mean(want**2)) + 1e-300)))


LONGEST = 60
"""Terms of the longest sum in `arguments`: rounding errors add up to its root, times a few units of functions."""


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name: str, dtype: str) -> None:
    if name == "histogram" and dtype != "float32":
        return
    args, options = arguments(name, TYPES[dtype])
    want = OPERATORS[name].reference(*args, **options)
    got = OPERATORS[name].function(*(a.copy() if isinstance(a, np.ndarray) else a for a in args), **options)
    for found, expected in zip(*((v if isinstance(v, tuple) else (v,)) for v in (got, want)), strict=True):
        if found.dtype.kind in "iu":
            np.testing.assert_array_equal(found, expected)
        else:
            storage = STEP["float64" if found.dtype == np.float64 else "float32"] * (8 + 4 * LONGEST**0.5)
            assert deviation(found, expected) <= storage + (2 * STEP[dtype] if found.dtype.itemsize == 2 else 0)


def test_out_is_written_and_returned() -> None:
    skipped = ("adamw", "scatter_add", "topk", "quantise")
    for name, operator in OPERATORS.items():
        args, options = arguments(name, np.float32)
        if name in skipped:
            continue
        want = operator.function(*args, **options)
        out = np.full_like(want, 7)
        assert operator.function(*args, **options, out=out) is out, name
        np.testing.assert_array_equal(out, want, err_msg=name)
        with pytest.raises(InputError, match="out"):
            operator.function(*args, **options, out=np.empty((3, *want.shape), want.dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_not_a_number(dtype: str) -> None:
    """Where NaN goes is the same for all types and ways of computing."""
    x = np.array([[1, np.nan, np.inf, np.nan], [np.nan] * 4, [-np.inf, -np.inf, -np.inf, 2]]).astype(TYPES[dtype])
    np.testing.assert_array_equal(library.argmax(x), [1, 0, 3])
    np.testing.assert_array_equal(library.argmax(np.ascontiguousarray(x.T), axis=0), [1, 0, 3])
    np.testing.assert_array_equal(library.max(x).astype(np.float32)[[0, 2]], [np.inf, 2])
    np.testing.assert_array_equal(library.topk(x, 2)[1], [[2, 0], [0, 1], [3, 0]])
    np.testing.assert_array_equal(library.sort(x)[2].astype(np.float32), [-np.inf, -np.inf, -np.inf, 2])
    np.testing.assert_array_equal(library.relu(x[:1]).astype(np.float32), [[1, 0, np.inf, 0]])


def test_long_rows_and_many_rows() -> None:
    """Loops cut their work into ranges only when there is much of it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 600_011))
    np.testing.assert_allclose(library.scan(x), np.cumsum(x, axis=1), rtol=0, atol=1e-9)  # 600,000 sums of size 1000
    many = rng.standard_normal((700, 1031)).astype(np.float32)
    for name, options in (("topk", {"k": 8}), ("sort", {}), ("argmax", {}), ("scan", {})):
        got, want = (f(many, **options) for f in (OPERATORS[name].function, OPERATORS[name].reference))
        for found, expected in zip(*((v if isinstance(v, tuple) else (v,)) for v in (got, want)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    words = rng.integers(0, 300, 400_000).astype(np.int32)
    np.testing.assert_array_equal(library.histogram(words, 300), np.bincount(words, minlength=300))
    rows, table = rng.standard_normal((40_000, 16)), np.zeros((300, 16))
    library.scatter_add(rows, words[:40_000], table)
    np.testing.assert_allclose(table, OPERATORS["scatter_add"].reference(rows, words[:40_000], 0 * table), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(library.embedding(rows, words), rows[words])


def scalar(name: str, args: tuple[Any, ...], options: dict[str, Any], weights: list[np.ndarray]) -> float:
    found = OPERATORS[name].reference(*args, **options)
    first = found[0] if name == "topk" else found
    return float(np.sum(first * weights[0]))


@pytest.mark.parametrize("name", [name for name, o in OPERATORS.items() if o.derivative])
def test_derivative(name: str) -> None:
    """Move all float inputs along random directions: the reference changes as the cotangents say."""
    args, options = arguments(name, np.float64, seed=1)
    rng = np.random.default_rng(2)
    y = OPERATORS[name].reference(*args, **options)
    dy = rng.standard_normal((y[0] if isinstance(y, tuple) else y).shape)
    moving = [k for k, a in enumerate(args) if isinstance(a, np.ndarray) and a.dtype == np.float64]
    given = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    cotangents = library.gradient(name)(dy, *given, **options)
    fixed = {"int8_gemm": 1, "int4_gemm": 1, "rotary": 1}.get(name, len(moving))
    assert len(cotangents) == fixed
    for place, cotangent in zip(moving, cotangents, strict=False):
        direction = rng.standard_normal(args[place].shape)
        step = 1e-5
        ends = []
        for sign in (1, -1):
            moved = list(args)
            moved[place] = args[place] + sign * step * direction
            ends.append(scalar(name, tuple(moved), options, [dy]))
        assert cotangent.shape == args[place].shape
        expected = float(np.sum(np.asarray(cotangent, np.float64) * direction))
        # central differences: step^2 = 1e-10 of a curvature, and rounding of 1e-16 / step
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", [name for name, o in OPERATORS.items() if o.derivative])
def test_derivative_in_narrow_types(name: str, dtype: str) -> None:
    args, options = arguments(name, TYPES[dtype], seed=1)
    wide = tuple(a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind not in "iub" else a for a in args)
    y = OPERATORS[name].reference(*args, **options)
    dy = np.random.default_rng(2).standard_normal((y[0] if isinstance(y, tuple) else y).shape).astype(TYPES[dtype])
    want = library.gradient(name)(dy.astype(np.float64), *wide, **options)
    got = library.gradient(name)(dy, *args, **options)
    for found, expected in zip(got, want, strict=True):
        assert found.dtype == TYPES[dtype]
        # intermediate results of some derivatives are stored in the type itself: a few roundings, not one
        assert deviation(found, expected) <= 12 * STEP[dtype] + 60 * STEP["float32"]


BAD: list[tuple[str, tuple[Any, ...], str]] = [
    ("relu", (np.zeros(3, np.int32),), "unsupported type"),
    ("elementwise", (np.zeros(3, np.float32), np.zeros(4, np.float32)), r"\(3,\), \(4,\)"),
    ("sum", (np.zeros((2, 3), np.float32), 2), "no such axis"),
    ("max", (np.zeros((2, 0), np.float32),), "nothing to reduce"),
    ("gemm", (np.zeros((2, 3), np.float32), np.zeros((4, 5), np.float32)), r"\(2, 3\), \(4, 5\)"),
    ("gemm", (np.zeros((2, 3), np.float32), np.zeros((3, 5), np.float64)), "types do not agree"),
    ("conv2d", (np.zeros((1, 2, 5, 5), np.float32), np.zeros((3, 1, 3, 3), np.float32)), "shapes do not fit"),
    ("conv2d", (np.zeros((1, 2, 2, 2), np.float32), np.zeros((3, 2, 3, 3), np.float32)), "window does not fit"),
    ("layernorm", (np.zeros((2, 3), np.float32), np.zeros(2, np.float32), np.zeros(3, np.float32)), "shapes do not fit"),
    ("groupnorm", (np.zeros((2, 6, 3), np.float32), np.zeros(6, np.float32), np.zeros(6, np.float32), 4), "groups"),
    ("dropout", (np.zeros(3, np.float32), 1.0, 0), "rate"),
    ("gather", (np.zeros(3, np.float32), np.array([0, 3])), "outside"),
    ("embedding", (np.zeros((3, 2), np.float32), np.array([-1])), "outside"),
    ("scatter_add", (np.zeros((1, 2), np.float32), np.array([3]), np.zeros((3, 2), np.float32)), "outside"),
    ("histogram", (np.array([0, 5]), 5), "outside"),
    ("cross_entropy", (np.zeros((1, 2), np.float32), np.array([2])), "outside"),
    ("spmv", (np.array([0, 1]), np.array([4]), np.zeros(1, np.float32), np.zeros(4, np.float32)), "outside"),
    ("spmv", (np.array([0, 2, 1]), np.array([0]), np.zeros(1, np.float32), np.zeros(4, np.float32)), "shapes do not fit"),
    ("topk", (np.zeros((2, 3), np.float32), 4), "k does not fit"),
    ("int4_gemm", (np.zeros((2, 3), np.float32), np.zeros((2, 2), np.uint8), np.zeros(2, np.float32)), "shapes do not fit"),
    ("attention_gqa", (np.zeros((3, 5, 4), np.float32), *[np.zeros((2, 5, 4), np.float32)] * 2), "shapes do not fit"),
    ("fft_stage", (np.zeros((1, 6, 2), np.float32), 2), "stage"),
    ("resize", (np.zeros((1, 6, 2), np.float32), 0, 2), "size"),
]


@pytest.mark.parametrize(("name", "args", "message"), BAD, ids=[f"{b[0]}-{k}" for k, b in enumerate(BAD)])
def test_refusals(name: str, args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        getattr(library, name)(*args)


def test_table() -> None:
    assert len(OPERATORS) >= 48
    assert sum("bfloat16" in o.dtypes for o in OPERATORS.values()) >= 20
    assert all(o.summary and o.formula and o.function.__doc__ for o in OPERATORS.values())
    assert all(getattr(library, name) is operator.function for name, operator in OPERATORS.items())
    for unknown in (library.gradient, library.program):
        with pytest.raises(InputError, match="unknown operator"):
            unknown("sotfmax")
    with pytest.raises(InputError, match="derivative"):
        library.gradient("argmax")
    with pytest.raises(InputError, match="loop"):
        library.program("sort")


class _Elsewhere:
    """Stands in place of compiled programs: what the library launches is computed by a function of program, arguments, launch."""

    def __init__(self, compute: Callable[..., dict[int, Any]]) -> None:
        self.compute = compute

    def __call__(self, build: Any, types: Any, static: Any = (), threads: Any = None) -> Any:
        program = build(tuple(KINDS[t] for t in types), *static)

        def run(args: Any, launch: Any) -> None:
            for number, array in self.compute(program, args, launch).items():
                args[number][...] = array

        return run


FORMULAS = [name for name, o in OPERATORS.items() if o.program]
FEW = ("gelu", "softmax", "gemm", "conv2d", "transposed_conv", "attention_causal", "argmax", "cross_entropy", "quantise", "pad")
_SLOW = [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in FORMULAS]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [p for p in _SLOW if p.values[0] != "dropout"])
def test_formulas_in_jax(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of the library give the same numbers as functions of JAX. Dropout needs 64-bit products, which JAX has not."""
    from gewu.ops.jaxform import to_jax

    elsewhere = _Elsewhere(lambda program, args, launch: to_jax(program)(args, launch))
    monkeypatch.setattr(call, "executable", elsewhere)
    test_operator(name, dtype)


@pytest.mark.parametrize("name", ["gelu", "softmax", "layernorm", "gemm", "conv2d", "cross_entropy", "attention"])
def test_derivatives_of_jax(name: str) -> None:
    """What JAX derives from the program is what the library's own derivative computes."""
    import jax

    from gewu.ops.jaxform import to_jax

    args, _ = arguments(name, np.float32)
    program, sizes = library.program(name), {
        "gelu": {"n": 205}, "softmax": {"m": 5, "n": 37, "s": 1}, "layernorm": {"m": 5, "n": 37},
        "gemm": {"i": 19, "k": 13, "j": 23},
        "conv2d": {"b": 2, "c": 3, "o": 4, "h": 7, "w": 11, "u": 7, "v": 11}, "cross_entropy": {"m": 5, "n": 37},
        "attention": {"h": 2, "g": 1, "n": 35, "d": 8, "m": 35, "t": 35, "first": 0},
    }[name]  # fmt: skip
    options = {"conv2d": {"padding": 1}}.get(name, {})
    want = library.OPERATORS[name].function(*args, **options)
    scalars = {"layernorm": (np.float32(1e-5),), "attention": (np.float32(8**-0.5),)}.get(name, ())
    moving = [k for k, a in enumerate(args) if a.dtype == np.float32]

    def formula(*moved: Any) -> Any:
        given: list[Any] = list(args)
        for k, a in zip(moving, moved, strict=True):
            given[k] = a
        return to_jax(program)([*given, want, *scalars], sizes)[len(args)]

    value, pull = jax.vjp(formula, *(args[k] for k in moving))
    assert deviation(np.asarray(value), want.astype(np.float64)) < 1e-5
    dy = np.random.default_rng(3).standard_normal(want.shape).astype(np.float32)
    for ours, theirs in zip(library.gradient(name)(dy, *args, **options), pull(dy), strict=False):
        assert deviation(ours, np.asarray(theirs).astype(np.float64)) < 1e-5


def on_gpu(program: Any, args: Any, launch: Any) -> dict[int, Any]:
    """Compile a program to PTX, read it back, and run its kernels in the interpreter."""
    device = gpu.build(program, "sm_90")
    listing = read_ptx(device.assembly())
    assert not listing.refused
    given = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    whole = device.complete(given, launch)
    for step in device.steps:
        if blocks := step.blocks(launch):
            run(listing.kernels[step.name], (blocks, 1, 1), (gpu.BLOCK, 1, 1), whole)
    return {number: a for number, a in enumerate(given) if isinstance(a, np.ndarray)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", _SLOW)
def test_gpu_kernels(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From formula to PTX and back: without a GPU, the kernels that LLVM makes are run by the reader's interpreter."""
    monkeypatch.setattr(call, "executable", _Elsewhere(on_gpu))
    test_operator(name, dtype)


def test_gpu_source() -> None:
    softmax = gpu.build(library.program("softmax"), "sm_90")
    assert [step.lanes for step in softmax.steps] == [32, 32, 1] and len(softmax.between) == 2
    text = library.gpu_source("softmax", "bfloat16")
    assert ".visible .entry softmax_0" in text and "shfl.sync.bfly" in text
    assert "amdgcn" in library.gpu_source("layernorm", "float16", "gfx942")
    with pytest.raises(InputError, match="not a GPU"):
        library.gpu_source("gelu", target="aarch64")
    ptxas = shutil.which("ptxas")
    if ptxas:
        done = subprocess.run(
            [ptxas, "-arch=sm_90", "-o", os.devnull, "-"], input=text.encode(), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
