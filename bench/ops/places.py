"""Classes whose places depend on data, attention, training and the solvers of physics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bench.ops.case import Arguments, Geometry, Operator, Shape, Style, blocks, empty, ints, line, normal, plane
from bench.ops.streams import ROWS, STREAM, _logsumexp, f64, softmax


def _histogram(x: np.ndarray, counts: np.ndarray, bins: np.int32, n: np.int32) -> tuple[np.ndarray]:
    return ((counts + np.bincount(x, minlength=int(bins))).astype(np.int32),)


def _topk(x: np.ndarray, values: np.ndarray, *_: Any) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-x, axis=1, kind="stable")[:, : values.shape[1]]
    return f64(np.take_along_axis(x, order, 1)), order.astype(np.int32)


def _topk_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    rows, n, k = s
    return [normal(rng, rows, n), empty(rows, k), empty(rows, k, dtype=np.int32), *ints(*s)]


def _sort_threads(s: Shape) -> Geometry:
    return blocks(s[0], 1 << max(0, (s[1] - 1).bit_length() - 1))


def _scatter_add(x: np.ndarray, places: np.ndarray, y: np.ndarray, *_: Any) -> tuple[np.ndarray]:
    order = np.argsort(places, kind="stable")
    found, first = np.unique(places[order], return_index=True)
    total = f64(y).copy()
    total[found] += np.add.reduceat(f64(x)[order], first, axis=0)
    return (total,)


def _scatter_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    rows, width, table = s
    return [normal(rng, rows, width), rng.integers(0, table, rows, np.int32), normal(rng, table, width), *ints(rows, width)]


def _embedding_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    rows, width, table = s
    return [normal(rng, table, width), rng.integers(0, table, rows, np.int32), empty(rows, width), *ints(rows, width)]


def _spmv_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    (rows,) = s
    lengths = rng.integers(0, 33, rows)
    start = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    column = rng.integers(0, rows, int(start[-1]), np.int32)
    return [start, column, normal(rng, len(column)), normal(rng, rows), empty(rows), *ints(rows)]


def _spmv(start: np.ndarray, column: np.ndarray, value: np.ndarray, x: np.ndarray, *_: Any) -> tuple[np.ndarray]:
    row = np.repeat(np.arange(len(start) - 1), np.diff(start))
    return (np.bincount(row, f64(value) * x[column], len(start) - 1),)


INDEXED = (
    Operator(
        "histogram",
        "index.cu",
        STREAM,
        lambda rng, s: [rng.integers(0, 256, s, np.int32), np.zeros(256, np.int32), *ints(256, *s)],
        (1,),
        _histogram,
        (Style("naive", lambda s: line(s[0])), Style("shared", lambda s: blocks(min(256, -(-s[0] // 512)), 256))),
        lambda s: 0,
    ),
    Operator(
        "topk",
        "index.cu",
        ((3, 37, 4), (256, 512, 8), (2048, 1024, 8), (8192, 1024, 8)),
        _topk_inputs,
        (1, 2),
        _topk,
        (Style("naive", lambda s: line(s[0], 64)), Style("warp", lambda s: blocks(s[0], 32))),
        lambda s: 0,
    ),
    Operator(
        "sort",
        "index.cu",
        ((2, 13), (256, 512), (2048, 1024), (8192, 1024)),
        lambda rng, s: [normal(rng, *s), empty(*s), *ints(*s)],
        (1,),
        lambda x, y, rows, n: (f64(np.sort(x, axis=1)),),
        (Style("naive", lambda s: ((-(-s[1] // 128), s[0], 1), (128, 1, 1), 0)), Style("bitonic", _sort_threads)),
        lambda s: 0,
    ),
    Operator(
        "gather",
        "index.cu",
        ((203, 50), (1 << 18, 1 << 16), (1 << 21, 1 << 19), (1 << 24, 1 << 22)),
        lambda rng, s: [normal(rng, s[1]), rng.integers(0, s[1], s[0], np.int32), empty(s[0]), *ints(s[0])],
        (2,),
        lambda x, places, y, n: (f64(x[places]),),
        (Style("naive", lambda s: line(s[0])), Style("int4", lambda s: blocks(-(-s[0] // 1024), 128), tiny=(204, 50))),
        lambda s: 0,
    ),
    Operator(
        "scatter_add",
        "index.cu",
        ((11, 19, 7), (4096, 64, 1024), (32768, 64, 8192), (262144, 64, 65536)),
        _scatter_inputs,
        (2,),
        _scatter_add,
        (Style("naive", lambda s: line(s[0] * s[1])), Style("row", lambda s: blocks(s[0], 64))),
        lambda s: s[0] * s[1],
        lambda s: s[0] // s[2],
    ),
    Operator(
        "embedding",
        "index.cu",
        ((5, 19, 11), (1024, 256, 4096), (8192, 512, 16384), (32768, 1024, 16384)),
        _embedding_inputs,
        (2,),
        lambda table, words, y, *_: (f64(table[words]),),
        (Style("naive", lambda s: line(s[0] * s[1])), Style("float4", lambda s: blocks(s[0], 64), tiny=(5, 20, 11))),
        lambda s: 0,
    ),
    Operator(
        "spmv",
        "index.cu",
        ((29,), (8192,), (131072,), (1 << 20,)),
        _spmv_inputs,
        (4,),
        _spmv,
        (Style("naive", lambda s: line(s[0], 64)), Style("warp", lambda s: blocks(-(-s[0] // 4), 128))),
        lambda s: 32 * s[0],
        lambda s: 32,
    ),
)


def _attention_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    _, n, d = s
    q, k, v = (normal(rng, *s) for _ in range(3))
    return [q, k, v, empty(*s), np.float32(d**-0.5), *ints(n, d)]


def _grouped_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    heads, n, d, group = s
    k, v = (normal(rng, heads // group, n, d) for _ in range(2))
    return [normal(rng, heads, n, d), k, v, empty(heads, n, d), np.float32(d**-0.5), *ints(n, d, group)]


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: np.float32, causal: bool) -> tuple[np.ndarray]:
    score = f64(q) @ f64(k).transpose(0, 2, 1) * np.float64(scale)
    if causal:
        score = np.where(np.tri(score.shape[1], dtype=bool), score, -np.inf)
    return (softmax(score)[0] @ f64(v),)


def _one_query(s: Shape) -> Geometry:
    return (s[1], s[0], 1), (64, 1, 1), 4 * s[1]


def _query_tile(s: Shape) -> Geometry:
    return (-(-s[1] // 32), s[0], 1), (32, 1, 1), 0


ATTENTION_STYLES = (Style("naive", _one_query), Style("tile", _query_tile))
HEADS = ((1, 35, 32), (4, 128, 32), (8, 512, 32), (16, 1024, 32))


def _rotary_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    n, _, d = s
    angle = np.arange(n)[:, None] * 10000.0 ** (-2 * np.arange(d // 2) / d)
    return [normal(rng, *s), np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32), empty(*s), *ints(*s)]


def _rotary(x: np.ndarray, cosine: np.ndarray, sine: np.ndarray, y: np.ndarray, *_: Any) -> tuple[np.ndarray]:
    turned = (f64(x[..., ::2]) + 1j * f64(x[..., 1::2])) * (f64(cosine) + 1j * f64(sine))[:, None]
    return (np.stack((turned.real, turned.imag), axis=-1).reshape(x.shape),)


def _adamw_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    moments = [normal(rng, *s) / 10, np.abs(normal(rng, *s)) / 100]
    hyper = (1e-3, 0.9, 0.999, 1e-8, 0.01, 1 - 0.9**7, 1 - 0.999**7)
    return [normal(rng, *s), normal(rng, *s), *moments, *(np.float32(h) for h in hyper), *ints(*s)]


def _adamw_apart(rng: np.random.Generator, s: Shape) -> Arguments:
    args = _adamw_inputs(rng, s)
    return [*args[:4], *(empty(*s) for _ in range(3)), *args[4:]]


def _adamw(p: np.ndarray, g: np.ndarray, m: np.ndarray, v: np.ndarray, *rest: Any) -> tuple[np.ndarray, ...]:
    rate, beta1, beta2, eps, decay, correction1, correction2 = (np.float64(h) for h in rest[:7])
    m = beta1 * f64(m) + (1 - beta1) * f64(g)
    v = beta2 * f64(v) + (1 - beta2) * f64(g) ** 2
    return f64(p) - rate * (m / correction1 / (np.sqrt(v / correction2) + eps) + decay * f64(p)), m, v


def _quantise(x: np.ndarray, *_: Any) -> tuple[np.ndarray, np.ndarray]:
    most = np.abs(x).max(1)
    return np.rint(x * (np.float32(127) / most)[:, None]).astype(np.int8), f64(most) / 127


def _cross_entropy(x: np.ndarray, target: np.ndarray, *_: Any) -> tuple[np.ndarray]:
    return (_logsumexp(x)[0] - f64(x[np.arange(len(x)), target]),)


MODELS = (
    Operator(
        "attention",
        "attention.cu",
        HEADS,
        _attention_inputs,
        (3,),
        lambda q, k, v, y, scale, n, d: _attend(q, k, v, scale, causal=False),
        ATTENTION_STYLES,
        lambda s: 4 * s[0] * s[1] ** 2 * s[2],
        lambda s: s[1],
    ),
    Operator(
        "attention_causal",
        "attention.cu",
        HEADS,
        _attention_inputs,
        (3,),
        lambda q, k, v, y, scale, n, d: _attend(q, k, v, scale, causal=True),
        ATTENTION_STYLES,
        lambda s: 2 * s[0] * s[1] ** 2 * s[2],
        lambda s: s[1],
    ),
    Operator(
        "attention_gqa",
        "attention.cu",
        ((2, 18, 32, 2), (4, 128, 32, 2), (8, 512, 32, 4), (16, 1024, 32, 4)),
        _grouped_inputs,
        (3,),
        lambda q, k, v, y, scale, n, d, group: _attend(q, k.repeat(group, 0), v.repeat(group, 0), scale, causal=False),
        ATTENTION_STYLES,
        lambda s: 4 * s[0] * s[1] ** 2 * s[2],
        lambda s: s[1],
    ),
    Operator(
        "rotary",
        "attention.cu",
        ((5, 3, 14), (256, 8, 64), (2048, 8, 64), (16384, 16, 64)),
        _rotary_inputs,
        (3,),
        _rotary,
        (Style("naive", lambda s: line(math.prod(s))), Style("float2", lambda s: blocks(s[0], 128))),
        lambda s: 3 * math.prod(s),
    ),
    Operator(
        "cross_entropy",
        "train.cu",
        ((5, 37), (256, 1024), (512, 8192), (1024, 32768)),
        lambda rng, s: [normal(rng, *s), rng.integers(0, s[1], s[0], np.int32), empty(s[0]), *ints(*s)],
        (2,),
        _cross_entropy,
        (Style("naive", lambda s: line(s[0], 64)), Style("warp", lambda s: blocks(s[0], 128))),
        lambda s: 12 * s[0] * s[1],
        lambda s: s[1],
    ),
    Operator(
        "adamw",
        "train.cu",
        STREAM,
        _adamw_inputs,
        (0, 2, 3),
        _adamw,
        (
            Style("naive", lambda s: line(s[0])),
            Style(
                "apart",
                lambda s: line(s[0]),
                inputs=_adamw_apart,
                outputs=(4, 5, 6),
                reference=lambda p, g, m, v, *r: _adamw(p, g, m, v, *r[3:]),
            ),
            Style("float4", lambda s: blocks(-(-s[0] // 1024), 128), tiny=(204,)),
        ),
        lambda s: 16 * s[0],
    ),
    Operator(
        "quantise",
        "train.cu",
        ROWS,
        lambda rng, s: [normal(rng, *s), empty(*s, dtype=np.int8), empty(s[0]), *ints(*s)],
        (1, 2),
        _quantise,
        (Style("naive", lambda s: line(s[0], 64)), Style("char4", lambda s: blocks(s[0], 128), tiny=(5, 36))),
        lambda s: 4 * s[0] * s[1],
    ),
)


def _stencil(x: np.ndarray, y: np.ndarray, c: np.float32, *_: Any) -> tuple[np.ndarray]:
    p = np.pad(f64(x), 1)
    inner = slice(1, -1)
    sides = (
        p[2:, inner, inner]
        + p[:-2, inner, inner]
        + p[inner, 2:, inner]
        + p[inner, :-2, inner]
        + p[inner, inner, 2:]
        + p[inner, inner, :-2]
    )
    return (f64(x) + np.float64(c) * (sides - 6 * f64(x)),)


def _nbody_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    body = normal(rng, s[0], 4)
    body[:, 3] = rng.uniform(0.5, 1.5, s[0])
    return [body, empty(s[0], 4), np.float32(0.05), *ints(*s)]


def _nbody(body: np.ndarray, a: np.ndarray, eps2: np.float32, n: np.int32) -> tuple[np.ndarray]:
    total = np.zeros((int(n), 4))
    for first in range(0, int(n), 256):
        d = f64(body)[None, :, :3] - f64(body)[first : first + 256, None, :3]
        factor = body[:, 3] * ((d * d).sum(2) + np.float64(eps2)) ** -1.5
        total[first : first + 256, :3] = np.einsum("ij,ijk->ik", factor, d)
    return (total,)


def _fft_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    batch, n, l = s
    return [normal(rng, batch, n, 2), empty(batch, n, 2), *ints(n, l)]


def _fft_table(rng: np.random.Generator, s: Shape) -> Arguments:
    x, y, n, l = _fft_inputs(rng, s)
    w = np.exp(-1j * np.pi * np.arange(int(l)) / int(l))
    return [x, np.stack((w.real, w.imag), axis=-1).astype(np.float32), y, n, l]


def _fft_stage(x: np.ndarray, y: np.ndarray, n: np.int32, l: np.int32) -> tuple[np.ndarray]:
    half, k = int(n) // 2, np.arange(int(n) // 2)
    j = k % int(l)
    z = f64(x[..., 0]) + 1j * f64(x[..., 1])
    turned = np.exp(-1j * np.pi * j / int(l)) * z[:, half:]
    out = np.empty_like(z)
    out[:, 2 * (k - j) + j] = z[:, :half] + turned
    out[:, 2 * (k - j) + j + int(l)] = z[:, :half] - turned
    return (np.stack((out.real, out.imag), axis=-1),)


def _systems(rng: np.random.Generator, *shape: int) -> Arguments:
    """Rows that are dominated by their diagonals."""
    return [normal(rng, *shape), 4 + np.abs(normal(rng, *shape)), normal(rng, *shape), normal(rng, *shape), empty(*shape)]


def _thomas(lower: np.ndarray, diagonal: np.ndarray, upper: np.ndarray, right: np.ndarray) -> np.ndarray:
    lower, pivot, upper, x = (f64(a).copy() for a in (lower, diagonal, upper, right))
    for i in range(1, len(x)):
        factor = lower[i] / pivot[i - 1]
        pivot[i] -= factor * upper[i - 1]
        x[i] -= factor * x[i - 1]
    x[-1] /= pivot[-1]
    for i in range(len(x) - 2, -1, -1):
        x[i] = (x[i] - upper[i] * x[i + 1]) / pivot[i]
    return x


SOLVERS = (
    Operator(
        "stencil3d",
        "solve.cu",
        ((4, 5, 19), (32, 64, 64), (128, 128, 128), (256, 256, 256)),
        lambda rng, s: [normal(rng, *s), empty(*s), np.float32(0.1), *ints(*s)],
        (1,),
        _stencil,
        (Style("march", lambda s: plane(s[2], s[1])), Style("naive", lambda s: plane(s[2], s[1], s[0], (32, 8)))),
        lambda s: 9 * math.prod(s),
    ),
    Operator(
        "nbody",
        "solve.cu",
        ((45,), (512,), (2048,), (8192,)),
        _nbody_inputs,
        (1,),
        _nbody,
        (Style("naive", lambda s: line(s[0], 64)), Style("tile", lambda s: line(s[0], 128))),
        lambda s: 20 * s[0] ** 2,
        lambda s: s[0],
    ),
    Operator(
        "fft_stage",
        "solve.cu",
        ((2, 24, 3), (16, 4096, 64), (64, 16384, 64), (128, 65536, 64)),
        _fft_inputs,
        (1,),
        _fft_stage,
        (
            Style("naive", lambda s: ((-(-s[1] // 256), s[0], 1), (128, 1, 1), 0)),
            Style(
                "table",
                lambda s: ((-(-s[1] // 256), s[0], 1), (128, 1, 1), 0),
                tiny=(2, 24, 4),
                inputs=_fft_table,
                outputs=(2,),
                reference=lambda x, w, y, n, l: _fft_stage(x, y, n, l),
            ),
        ),
        lambda s: 5 * s[0] * s[1],
    ),
    Operator(
        "tridiagonal",
        "solve.cu",
        ((7, 19), (128, 512), (256, 4096), (512, 16384)),
        lambda rng, s: [*_systems(rng, *s), empty(*s), *ints(*s)],
        (4,),
        lambda lower, diagonal, upper, right, *_: (_thomas(lower, diagonal, upper, right),),
        (
            Style(
                "cyclic",
                lambda s: blocks(s[1], s[0]),
                inputs=lambda rng, s: [*_systems(rng, s[1], s[0]), *ints(*s)],
                reference=lambda lower, diagonal, upper, right, *_: (_thomas(lower.T, diagonal.T, upper.T, right.T).T,),
            ),
            Style("naive", lambda s: line(s[1], 64)),
        ),
        lambda s: 8 * s[0] * s[1],
    ),
)

OPERATORS = INDEXED + MODELS + SOLVERS
