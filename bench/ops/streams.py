"""Classes that stream over arrays: elementwise, reductions, scans and normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.ops.case import Arguments, Geometry, Operator, Shape, Style, blocks, empty, ints, line, normal

HALF, BF16 = 1e-3, 8e-3
"""Units in the last place of the storage formats."""
STREAM = ((203,), (1 << 18,), (1 << 21,), (1 << 24,))
ROWS = ((5, 37), (512, 512), (2048, 1024), (16384, 1024))


def f64(x: np.ndarray) -> np.ndarray:
    """Return an array in float64."""
    return np.asarray(x, np.float64)


def _each(shape: Shape) -> Geometry:
    return line(shape[0])


def _fours(shape: Shape) -> Geometry:
    return line(shape[0] // 4, 128)


def _strided(shape: Shape) -> Geometry:
    return blocks(min(2048, -(-shape[0] // 512)), 128)


def erf(x: np.ndarray) -> np.ndarray:
    """Return the error function: its series near 0, the continued fraction of erfc beyond 2.5."""
    near, far = np.minimum(np.abs(x), 2.5), np.maximum(np.abs(x), 2.5)
    term, total = near, near.copy()
    for k in range(1, 50):
        term = -term * near * near / k
        total += term / (2 * k + 1)
    fraction = far.copy()
    for k in range(60, 0, -1):
        fraction = far + k / 2 / fraction
    beyond = 1 - np.exp(-far * far) / fraction / math.sqrt(math.pi)
    return np.sign(x) * np.where(np.abs(x) < 2.5, total * 2 / math.sqrt(math.pi), beyond)


def activation(
    name: str, formula: Callable[[np.ndarray], np.ndarray], flops: int, *more: Style, positive: bool = False
) -> Operator:
    """Return the class of y = formula(x)."""

    def inputs(rng: np.random.Generator, shape: Shape) -> Arguments:
        x = 3 * normal(rng, *shape)
        return [np.abs(x) + np.float32(1e-3) if positive else x, empty(*shape), *ints(*shape)]

    styles = (Style("naive", _each), *more, Style("stride", _strided), Style("float4", _fours, tiny=(204,)))
    return Operator(
        name, "elementwise.cu", STREAM, inputs, (1,), lambda x, y, n: (formula(f64(x)),), styles, lambda s: flops * s[0]
    )


def _gelu_tanh(x: np.ndarray, *_: Any) -> tuple[np.ndarray]:
    x = f64(x)
    return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)


def _axpy(dtype: Any) -> Callable[[np.random.Generator, Shape], Arguments]:
    return lambda rng, s: [
        normal(rng, *s).astype(dtype),
        normal(rng, *s).astype(dtype),
        empty(*s, dtype=dtype),
        np.float32(1.5),
        *ints(*s),
    ]


def _cast(dtype: Any) -> Callable[[np.random.Generator, Shape], Arguments]:
    return lambda rng, s: [normal(rng, *s), empty(*s, dtype=dtype), *ints(*s)]


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Return the four words of Philox4x32-10 for each counter (its first word; the others are 0)."""
    low = np.uint64(0xFFFFFFFF)
    c = [counter.astype(np.uint64), *(np.zeros(counter.shape, np.uint64) for _ in range(3))]
    k0, k1 = key
    for _ in range(10):
        x, z = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        shift = np.uint64(32)
        c = [(z >> shift) ^ c[1] ^ np.uint64(k0), z & low, (x >> shift) ^ c[3] ^ np.uint64(k1), x & low]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=-1).astype(np.uint32)


def _dropout(x: np.ndarray, y: np.ndarray, rate: np.float32, low: np.uint32, high: np.uint32, n: np.int32) -> tuple[np.ndarray]:
    words = philox(np.arange(-(-int(n) // 4)), (int(low), int(high))).reshape(-1)[: int(n)]
    return (np.where((words >> 8) * 2.0**-24 >= np.float64(rate), f64(x) / (1 - np.float64(rate)), 0.0),)


ELEMENTWISE = (
    Operator(
        "elementwise",
        "elementwise.cu",
        STREAM,
        _axpy(np.float32),
        (2,),
        lambda a, b, c, alpha, n: (alpha * f64(a) + f64(b),),
        (
            Style("naive", _each),
            Style("stride", _strided),
            Style("half2", lambda s: line(s[0] // 2), tiny=(202,), inputs=_axpy(np.float16), precision=HALF),
            Style("float4", _fours, tiny=(204,)),
        ),
        lambda s: 2 * s[0],
    ),
    Operator(
        "cast",
        "elementwise.cu",
        STREAM,
        _cast(np.float16),
        (1,),
        lambda x, y, n: (f64(x),),
        (
            Style("naive", _each, precision=HALF),
            Style("bf16", _each, inputs=_cast(np.uint16), precision=BF16),
            Style("float4", _fours, tiny=(204,), precision=HALF),
        ),
        lambda s: s[0],
    ),
    activation("relu", lambda x: np.maximum(x, 0), 1),
    activation("gelu", lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))), 20, Style("tanh", _strided, reference=_gelu_tanh)),
    activation("silu", lambda x: x / (1 + np.exp(-x)), 12),
    activation("tanh", np.tanh, 15),
    activation("sigmoid", lambda x: 1 / (1 + np.exp(-x)), 12),
    activation("exp", np.exp, 10),
    activation("log", np.log, 12, positive=True),
    Operator(
        "clamp",
        "elementwise.cu",
        STREAM,
        lambda rng, s: [normal(rng, *s), empty(*s), np.float32(-0.7), np.float32(0.9), *ints(*s)],
        (1,),
        lambda x, y, low, high, n: (np.clip(f64(x), low, high),),
        (Style("naive", _each), Style("float4", _fours, tiny=(204,))),
        lambda s: 2 * s[0],
    ),
    Operator(
        "select",
        "elementwise.cu",
        STREAM,
        lambda rng, s: [rng.integers(0, 2, s, np.uint8), normal(rng, *s), normal(rng, *s), empty(*s), *ints(*s)],
        (3,),
        lambda mask, a, b, y, n: (f64(np.where(mask, a, b)),),
        (Style("naive", _each), Style("float4", _fours, tiny=(204,))),
        lambda s: s[0],
    ),
    Operator(
        "dropout",
        "elementwise.cu",
        STREAM,
        lambda rng, s: [normal(rng, *s), empty(*s), np.float32(0.25), np.uint32(0x12345678), np.uint32(0x9ABCDEF0), *ints(*s)],
        (1,),
        _dropout,
        (Style("naive", _each), Style("float4", lambda s: blocks(min(4096, -(-s[0] // 512)), 128), tiny=(204,))),
        lambda s: 20 * s[0],
    ),
)


def _row_threads(shape: Shape) -> Geometry:
    return line(shape[0], 64)


def _row_blocks(shape: Shape) -> Geometry:
    return blocks(shape[0], 128)


def _row_warps(shape: Shape) -> Geometry:
    return blocks(-(-shape[0] // 4), 128)


def _to_column(dtype: Any = np.float32) -> Callable[[np.random.Generator, Shape], Arguments]:
    return lambda rng, s: [normal(rng, *s), empty(s[0], dtype=dtype), *ints(*s)]


def _logsumexp(x: np.ndarray, *_: Any) -> tuple[np.ndarray]:
    most = f64(x).max(1)
    return (most + np.log(np.exp(f64(x) - most[:, None]).sum(1)),)


def reduction(name: str, reference: Callable[..., tuple[np.ndarray]], flops: int, *styles: Style, sums: bool = True) -> Operator:
    """Return a class that makes one number of each row."""
    inputs = _to_column(np.int32 if name == "argmax" else np.float32)
    length = (lambda s: s[1]) if sums else (lambda s: 1)
    work = (Style("naive", _row_threads), *styles)
    return Operator(name, "reduce.cu", ROWS, inputs, (1,), reference, work, lambda s: flops * s[0] * s[1], length)


REDUCTIONS = (
    reduction(
        "sum",
        lambda x, y, rows, n: (f64(x).sum(1),),
        1,
        Style("shared", lambda s: blocks(s[0], 256)),
        Style("warp", _row_blocks, tiny=(5, 36)),
    ),
    reduction("max", lambda x, y, rows, n: (f64(x).max(1),), 1, Style("warp", _row_blocks), sums=False),
    reduction("argmax", lambda x, y, rows, n: (x.argmax(1).astype(np.int32),), 1, Style("warp", _row_warps), sums=False),
    reduction("norm", lambda x, y, rows, n: (np.sqrt((f64(x) ** 2).sum(1)),), 2, Style("warp", _row_blocks, tiny=(5, 36))),
    reduction("logsumexp", _logsumexp, 12, Style("warp", _row_blocks)),
    Operator(
        "scan",
        "reduce.cu",
        ROWS,
        lambda rng, s: [normal(rng, *s), empty(*s), *ints(*s)],
        (1,),
        lambda x, y, rows, n: (f64(x).cumsum(1),),
        (
            Style("naive", _row_threads),
            Style("shared", lambda s: blocks(s[0], 256), tiny=(1, 300)),
            Style("warp", _row_blocks, tiny=(2, 150)),
        ),
        lambda s: s[0] * s[1],
        lambda s: s[1],
    ),
)


def softmax(x: np.ndarray, *_: Any) -> tuple[np.ndarray]:
    """Return the softmax of each row."""
    values = (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x
    e = np.exp(f64(values) - f64(values).max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True),)


def bf16(x: np.ndarray) -> np.ndarray:
    """Return float32 numbers cut to bfloat16, as uint16."""
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def _softmax_bf16(rng: np.random.Generator, s: Shape) -> Arguments:
    return [bf16(normal(rng, *s)), empty(*s, dtype=np.uint16), *ints(*s)]


def _standardised(x: np.ndarray, eps: np.float32, axes: tuple[int, ...]) -> np.ndarray:
    d = f64(x) - f64(x).mean(axes, keepdims=True)
    return d / np.sqrt((d * d).mean(axes, keepdims=True) + np.float64(eps))


def _layernorm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray, y: np.ndarray, eps: np.float32, *_: Any) -> tuple[np.ndarray]:
    return (_standardised(x, eps, (1,)) * gain + bias,)


def _rmsnorm(x: np.ndarray, gain: np.ndarray, y: np.ndarray, eps: np.float32, *_: Any) -> tuple[np.ndarray]:
    return (f64(x) / np.sqrt((f64(x) ** 2).mean(1, keepdims=True) + np.float64(eps)) * gain,)


def _batchnorm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray, y: np.ndarray, eps: np.float32, *_: Any) -> tuple[np.ndarray]:
    return (_standardised(x, eps, (0, 2)) * gain[:, None] + bias[:, None],)


def _groupnorm(
    x: np.ndarray, gain: np.ndarray, bias: np.ndarray, y: np.ndarray, eps: np.float32, *sizes: np.int32
) -> tuple[np.ndarray]:
    batch, channels, places, width = (int(v) for v in sizes)
    whole = _standardised(x.reshape(batch, channels // width, width * places), eps, (2,))
    return (whole.reshape(x.shape) * gain[:, None] + bias[:, None],)


def _scaled(x: tuple[int, ...], channels: int, rng: np.random.Generator, sizes: Shape) -> Arguments:
    gain, bias = 1 + normal(rng, channels) / 4, normal(rng, channels)
    return [normal(rng, *x), gain, bias, empty(*x), np.float32(1e-5), *ints(*sizes)]


NORMALISATIONS = (
    Operator(
        "softmax",
        "normalise.cu",
        ROWS,
        lambda rng, s: [normal(rng, *s), empty(*s), *ints(*s)],
        (1,),
        softmax,
        (
            Style("naive", _row_threads),
            Style("shared", lambda s: blocks(s[0], 128, 4 * s[1])),
            Style("online", _row_threads),
            Style("bf16", _row_blocks, inputs=_softmax_bf16, precision=BF16),
            Style("warp", _row_warps),
        ),
        lambda s: 14 * s[0] * s[1],
        lambda s: s[1],
    ),
    Operator(
        "layernorm",
        "normalise.cu",
        ROWS,
        lambda rng, s: _scaled(s, s[1], rng, s),
        (3,),
        _layernorm,
        (Style("naive", _row_threads), Style("warp", _row_blocks)),
        lambda s: 8 * s[0] * s[1],
        lambda s: s[1],
    ),
    Operator(
        "rmsnorm",
        "normalise.cu",
        ROWS,
        lambda rng, s: [normal(rng, *s), 1 + normal(rng, s[1]) / 4, empty(*s), np.float32(1e-5), *ints(*s)],
        (2,),
        _rmsnorm,
        (Style("naive", _row_threads), Style("warp", _row_warps, tiny=(5, 36))),
        lambda s: 4 * s[0] * s[1],
        lambda s: s[1],
    ),
    Operator(
        "batchnorm",
        "normalise.cu",
        ((2, 3, 35), (8, 32, 1024), (16, 64, 3136), (32, 64, 12544)),
        lambda rng, s: _scaled(s, s[1], rng, s),
        (3,),
        _batchnorm,
        (Style("naive", lambda s: line(s[1], 32)), Style("block", lambda s: blocks(s[1], 128))),
        lambda s: 6 * math.prod(s),
        lambda s: s[0] * s[2],
    ),
    Operator(
        "groupnorm",
        "normalise.cu",
        ((2, 6, 35, 3), (8, 32, 1024, 8), (16, 64, 3136, 8), (32, 64, 12544, 8)),
        lambda rng, s: _scaled(s[:3], s[1], rng, s),
        (3,),
        _groupnorm,
        (
            Style("naive", lambda s: line(s[0] * s[1] // s[3], 32)),
            Style("block", lambda s: ((s[1] // s[3], s[0], 1), (128, 1, 1), 0)),
        ),
        lambda s: 6 * math.prod(s[:3]),
        lambda s: s[2] * s[3],
    ),
)

OPERATORS = ELEMENTWISE + REDUCTIONS + NORMALISATIONS
