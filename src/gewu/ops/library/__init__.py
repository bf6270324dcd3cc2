"""Operators of our own, each a formula or a tuned loop, with its NumPy reference and derivative.

    from gewu.ops import library
    y = library.softmax(x, axis=-1, out=y)
    dx, = library.gradient("softmax")(dy, x, axis=-1)
    ptx = library.gpu_source("softmax", "bfloat16")

OPERATORS tells of each one; its functions take NumPy arrays (C order; others are copied) and write into `out` where it is given.
`gradient(name)(dy, *arguments)` returns the cotangents of the float inputs, given that of the output, in the order of the inputs.

Precision: float32 and float64 compute in themselves; float16 and bfloat16 are storage: an operator reads and writes 16 bits,
computes and accumulates in float32 and rounds once at the end.  These mixed-precision primitives are

    products         gemv gemm batched_gemm outer, int8_gemm and int4_gemm (weights of 8 and 4 bits), spmv
    windows          conv1d conv2d depthwise transposed_conv maxpool avgpool im2col resize stencil3d
    normalisations   softmax logsumexp layernorm rmsnorm batchnorm groupnorm
    attention        attention attention_causal attention_gqa rotary
    training         cross_entropy adamw (moments may stay float32) quantise (to int8) dropout scatter_add embedding
    reductions       sum max norm scan; argmax topk sort (exact)
    element by element   cast elementwise relu gelu silu tanh sigmoid exp log clamp select

and all others but histogram, which counts integers.

Files: call (checks, compiled programs, loops); pointwise, reduce, normalise, linear, convolve, move, index, attend, train,
solve (the operators by family); reference (NumPy in float64).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gewu.core.errors import InputError
from gewu.ops.library import attend as _attend
from gewu.ops.library import call as _call
from gewu.ops.library import convolve as _convolve
from gewu.ops.library import index as _index
from gewu.ops.library import linear as _linear
from gewu.ops.library import move as _move
from gewu.ops.library import normalise as _normalise
from gewu.ops.library import pointwise as _pointwise
from gewu.ops.library import reduce as _reduce
from gewu.ops.library import reference as _reference
from gewu.ops.library import solve as _solve
from gewu.ops.library import train as _train
from gewu.ops.library.call import FLOATS
from gewu.ops.tensor import Program

_KINDS: Final = {"float32": "f32", "float64": "f64", "bfloat16": "bf16", "float16": "f16"}


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator.

    Attributes:
        name: as in `library.NAME`.
        summary: what it is.
        formula: what it computes.
        function: on NumPy arrays.
        reference: the same in NumPy and float64.
        derivative: vector-Jacobian product, or None.
        dtypes: types of its float arguments.
        program: its formula as a program for a float type of `ir` (one representative form), or None for what is a loop.
    """

    name: str
    summary: str
    formula: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    derivative: Callable[..., tuple[Any, ...]] | None
    dtypes: tuple[str, ...] = FLOATS
    program: Callable[[str], Program] | None = None


def _row(
    name: str, summary: str, formula: str, family: Any, program: Callable[[str], Program] | None = None, *,
    function: str = "", dtypes: tuple[str, ...] = FLOATS,
) -> Operator:  # fmt: skip
    found = function or name
    derivative = getattr(family, f"{name}_gradient", None)
    return Operator(name, summary, formula, getattr(family, found), getattr(_reference, name), derivative, dtypes, program)


def _unary(name: str, formula: str) -> Operator:
    return _row(name, f"{name} of each element", formula, _pointwise, lambda t: _pointwise.mapping(name)((t, t)))


def _reduction(name: str, summary: str, formula: str, build: Any, out: str = "") -> Operator:
    return _row(name, summary, formula, _reduce, lambda t: build((t, out or t)))


def _product(name: str, summary: str, formula: str) -> Operator:
    return _row(name, summary, formula, _linear, lambda t: _linear.contraction((t, t, t), formula))


_TAPS, _ONE = (3, 3), (1, 1)
_ROWS: Final = (
    _row("elementwise", "scaled sum", "alpha a + b", _pointwise, lambda t: _pointwise.axpy((t, t, t))),
    _row("cast", "conversion between float types", "x", _pointwise,
         lambda t: _call.conversion((t, "f32")), function="cast"),
    _unary("relu", "max(x, 0)"),
    _unary("gelu", "x (1 + erf(x / sqrt 2)) / 2"),
    _unary("silu", "x / (1 + e^-x)"),
    _unary("tanh", "tanh x"),
    _unary("sigmoid", "1 / (1 + e^-x)"),
    _unary("exp", "e^x"),
    _unary("log", "ln x"),
    _row("clamp", "kept between two bounds", "min(max(x, low), high)", _pointwise, lambda t: _pointwise.clamping((t, t))),
    _row("select", "one of two by a mask", "a where mask, else b", _pointwise,
         lambda t: _pointwise.choosing(("u8", t, t, t))),
    _row("dropout", "random zeros, Philox4x32-10 by place", "x / (1 - rate) where u >= rate, else 0", _pointwise,
         lambda t: _pointwise.dropping((t, t))),
    _reduction("sum", "sum along an axis", "sum x", _reduce.summing),
    _reduction("max", "largest along an axis", "max x", _reduce.maximising),
    _reduction("argmax", "place of the largest along an axis", "first k with x[k] = max x", _reduce.placing, "s32"),
    _reduction("norm", "Euclidean length along an axis", "sqrt(sum x^2)", _reduce.norming),
    _reduction("logsumexp", "logarithm of a sum of exponentials", "log(sum e^x)", _reduce.logging),
    _row("scan", "running sum", "y[i] = sum over k <= i of x[k]", _solve),
    _row("histogram", "how often each number occurs", "y[b] = number of i with x[i] = b", _index, dtypes=()),
    _row("topk", "largest k of each row, and places", "x sorted down, cut at k", _index),
    _row("sort", "rows in rising order", "x sorted", _index),
    _row("softmax", "exponentials normalised along an axis", "e^x / sum e^x", _normalise,
         lambda t: _normalise.softmax_rows((t, t))),
    _row("layernorm", "rows with mean 0 and variance 1", "(x - mean) / sqrt(var + eps) gain + bias", _normalise,
         lambda t: _normalise.layernorm_rows((t,) * 4)),
    _row("rmsnorm", "rows with mean square 1", "x / sqrt(mean x^2 + eps) gain", _normalise,
         lambda t: _normalise.rmsnorm_rows((t,) * 3)),
    _row("batchnorm", "channels of a batch with mean 0 and variance 1", "(x - mean) / sqrt(var + eps) gain + bias", _normalise,
         lambda t: _normalise.batchnorm_channels((t,) * 4)),
    _row("groupnorm", "groups of channels with mean 0 and variance 1", "(x - mean) / sqrt(var + eps) gain + bias", _normalise,
         lambda t: _normalise.groupnorm_channels((t,) * 4)),
    _product("gemv", "matrix times vector", "ik,k->i"),
    _product("gemm", "matrix product", "ik,kj->ij"),
    _product("batched_gemm", "matrix products side by side", "zik,zkj->zij"),
    _row("int8_gemm", "product with weights of 8 bits", "scale[j] sum over k of x[i, k] w[j, k]", _linear,
         lambda t: _linear.int8_product((t, "s8", t, t))),
    _row("int4_gemm", "product with weights of 4 bits", "scale[j] sum over k of x[i, k] (w[j, k] - 8)", _linear,
         lambda t: _linear.int4_product((t, "u8", t, t))),
    _product("outer", "outer product", "i,j->ij"),
    _row("conv1d", "convolution along one axis", "sum of w[o, c, t] x[b, c, s p + t - pad], + bias[o]", _convolve,
         lambda t: _convolve.conv1d_program((t,) * 4, 3, 1, 1)),
    _row("conv2d", "convolution along two axes", "sum of w[o, c, i, j] x[b, c, s p + i - pad, s q + j - pad], + bias[o]",
         _convolve, lambda t: _convolve.conv2d_program((t,) * 4, _TAPS, _ONE, _ONE)),
    _row("depthwise", "convolution of each channel by itself", "sum of w[c, i, j] x[b, c, s p + i - pad, s q + j - pad]",
         _convolve, lambda t: _convolve.depthwise_program((t,) * 3, _TAPS, _ONE, _ONE)),
    _row("transposed_conv", "adjoint of a convolution", "y[b, o, s r + i - pad, s q + j - pad] += w[c, o, i, j] x[b, c, r, q]",
         _convolve, lambda t: _convolve.spread_program((t,) * 3, (4, 4), (2, 2), _ONE)),
    _row("maxpool", "largest of each window", "max over i, j of x[s p + i, s q + j]", _convolve,
         lambda t: _convolve.pool_program((t, t), 2, 2, False)),
    _row("avgpool", "mean of each window", "mean over i, j of x[s p + i, s q + j]", _convolve,
         lambda t: _convolve.pool_program((t, t), 2, 2, True)),
    _row("transpose", "last two axes exchanged", "y[j, i] = x[i, j]", _move, lambda t: _move.transposition((t, t))),
    _row("gather", "elements by place", "y[i] = x[places[i]]", _index, lambda t: _index.gathering((t, "s32", t))),
    _row("scatter_add", "rows added by place", "y[places[i], j] += x[i, j]", _index),
    _row("embedding", "rows of a table", "y[i, j] = table[words[i], j]", _index, lambda t: _index.embedding_rows((t, "s32", t))),
    _row("concat", "one after the other", "a, then b", _move, lambda t: _move.concatenation((t,) * 3)),
    _row("pad", "a rim around", "x inside, value outside", _move, lambda t: _move.padding((t, t), (0, 1, 1), (0, 1, 1))),
    _row("im2col", "windows as columns", "y[c, i, j, p, q] = x[c, p + i - pad, q + j - pad]", _move,
         lambda t: _move.windows_program((t, t), 3, 1)),
    _row("resize", "bilinear resize", "x at ((i + 1/2) h / rows - 1/2), linear between", _move),
    _row("attention", "softmax of scores times values", "softmax(scale q k^T) v", _attend,
         lambda t: _attend.attention_program((t,) * 4)),
    _row("attention_causal", "attention without later keys", "softmax(scale q k^T where j <= i) v", _attend,
         lambda t: _attend.attention_program((t,) * 4, True)),
    _row("attention_gqa", "attention with grouped keys", "softmax(scale q k^T) v, keys shared by groups of heads", _attend,
         lambda t: _attend.attention_program((t,) * 4)),
    _row("rotary", "pairs turned by position", "(x[2 i] + i x[2 i + 1]) e^(i angle)", _attend,
         lambda t: _attend.rotation((t,) * 4)),
    _row("cross_entropy", "loss of classes", "log(sum e^x) - x[target]", _train,
         lambda t: _train.cross_entropy_rows((t, "s32", t))),
    _row("adamw", "step of AdamW", "p -= rate (m' / (sqrt v' + eps) + decay p)", _train, lambda t: _train.adamw_step((t,) * 4)),
    _row("quantise", "rows as 8-bit numbers", "round(127 x / max |x|)", _train,
         lambda t: _train.quantise_rows((t, "s8", "f64" if t == "f64" else "f32"))),
    _row("spmv", "sparse matrix times vector", "sum over row of value x[column]", _index),
    _row("stencil3d", "7-point diffusion", "x + c (sum of six neighbours - 6 x)", _solve,
         lambda t: _solve.stencil_program((t, t))),
    _row("nbody", "softened gravity", "sum over j of m[j] (r[j] - r[i]) / (d^2 + eps2)^(3/2)", _solve,
         lambda t: _solve.nbody_program((t, t))),
    _row("fft_stage", "radix-2 stage", "a + w b, a - w b", _solve,
         lambda t: _solve.fft_program((t, "f64" if t == "f64" else "f32", t))),
    _row("tridiagonal", "tridiagonal systems", "l x[i - 1] + d x[i] + u x[i + 1] = r", _solve),
)  # fmt: skip
OPERATORS: Final = {row.name: row for row in _ROWS}
"""All operators by name."""


def __getattr__(name: str) -> Any:
    if name in OPERATORS:
        return OPERATORS[name].function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _known(name: str) -> Operator:
    if name not in OPERATORS:
        raise InputError("unknown operator", value=name, allowed=", ".join(OPERATORS))
    return OPERATORS[name]


def gradient(name: str) -> Callable[..., tuple[Any, ...]]:
    """Return the vector-Jacobian product `(dy, *arguments) -> cotangents` of an operator.

    Raises:
        InputError: an unknown operator, or one without a derivative.
    """
    found = _known(name).derivative
    if found is None:
        raise InputError("has no derivative", key=name, allowed=", ".join(n for n, o in OPERATORS.items() if o.derivative))
    return found


def program(name: str, dtype: str = "float32") -> Program:
    """Return the formula of an operator as a program, in one representative form (last axis, one stride, 3 × 3 windows).

    Raises:
        InputError: an unknown operator or type, or one that is a loop.
    """
    build = _known(name).program
    if build is None:
        raise InputError("is a loop, not a formula", key=name, allowed=", ".join(n for n, o in OPERATORS.items() if o.program))
    if dtype not in _KINDS:
        raise InputError("unknown type", key="dtype", value=dtype, allowed=", ".join(_KINDS))
    return build(_KINDS[dtype])


def gpu_source(name: str, dtype: str = "float32", target: str = "sm_90") -> str:
    """Return an operator's kernels as PTX (NVIDIA targets) or assembly (AMD targets) for a GPU of `llvm.TARGETS`.

    Raises:
        InputError: unknown operator, type or target, or an operator that is a loop.
    """
    from gewu.ops import gpu

    return gpu.build(program(name, dtype), target, name).assembly()


__all__ = ["OPERATORS", "Operator", "gpu_source", "gradient", "program", *OPERATORS]
