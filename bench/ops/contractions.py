"""Classes with reuse of data: matrix products, convolutions, pooling; and the ones that move elements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bench.ops.case import Arguments, Geometry, Operator, Shape, Style, blocks, empty, ints, line, normal, plane
from bench.ops.streams import HALF, f64


def _gemm_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    m, n, k = s
    return [normal(rng, m, k), normal(rng, k, n), empty(m, n), *ints(m, n, k)]


def _gemm_half(rng: np.random.Generator, s: Shape) -> Arguments:
    a, b, c, *sizes = _gemm_inputs(rng, s)
    return [a.astype(np.float16), b.astype(np.float16), c.astype(np.float16), *sizes]


def _batched(rng: np.random.Generator, s: Shape) -> Arguments:
    z, m, n, k = s
    return [normal(rng, z, m, k), normal(rng, z, k, n), empty(z, m, n), *ints(m, n, k)]


def _product(a: np.ndarray, b: np.ndarray, *_: Any) -> tuple[np.ndarray]:
    return (f64(a) @ f64(b),)


def _int8_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    m, n, k = s
    scale = rng.uniform(0.005, 0.02, n).astype(np.float32)
    return [normal(rng, m, k), rng.integers(-127, 128, (n, k), np.int8), scale, empty(m, n), *ints(m, n, k)]


def _int4_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    m, n, k = s
    scale = rng.uniform(0.1, 0.3, n).astype(np.float32)
    return [normal(rng, m, k), rng.integers(0, 256, (n, k // 2), np.uint8), scale, empty(m, n), *ints(m, n, k)]


def _int8_gemm(x: np.ndarray, w: np.ndarray, scale: np.ndarray, *_: Any) -> tuple[np.ndarray]:
    return ((f64(x) @ f64(w).T) * f64(scale),)


def _int4_gemm(x: np.ndarray, w: np.ndarray, scale: np.ndarray, *_: Any) -> tuple[np.ndarray]:
    unpacked = np.stack((w & 15, w >> 4), axis=-1).reshape(len(w), -1).astype(np.float64) - 8
    return ((f64(x) @ unpacked.T) * f64(scale),)


def _warp_each(s: Shape) -> Geometry:
    return (s[1], -(-s[0] // 4), 1), (32, 4, 1), 0


def _over_result(s: Shape) -> Geometry:
    return plane(s[1], s[0])


WEIGHTS = ((3, 18, 38), (4, 1024, 1024), (8, 4096, 2048), (16, 4096, 4096))
MATRICES = (
    Operator(
        "gemv",
        "matmul.cu",
        ((19, 37), (512, 512), (2048, 2048), (8192, 4096)),
        lambda rng, s: [normal(rng, *s), normal(rng, s[1]), empty(s[0]), *ints(*s)],
        (2,),
        _product,
        (Style("naive", lambda s: line(s[0], 64)), Style("warp", lambda s: blocks(-(-s[0] // 4)), tiny=(19, 36))),
        lambda s: 2 * s[0] * s[1],
        lambda s: s[1],
    ),
    Operator(
        "gemm",
        "matmul.cu",
        ((19, 23, 13), (256, 256, 256), (512, 512, 512), (1536, 1536, 1536)),
        _gemm_inputs,
        (2,),
        _product,
        (
            Style("naive", _over_result),
            Style("tile", _over_result),
            Style("half", _over_result, inputs=_gemm_half, precision=HALF),
            Style("register", lambda s: ((-(-s[1] // 64), -(-s[0] // 64), 1), (16, 16, 1), 0), tiny=(19, 67, 13)),
        ),
        lambda s: 2 * math.prod(s),
        lambda s: s[2],
    ),
    Operator(
        "batched_gemm",
        "matmul.cu",
        ((2, 17, 9, 11), (8, 64, 64, 64), (32, 128, 128, 64), (64, 256, 256, 64)),
        _batched,
        (2,),
        _product,
        (Style("naive", lambda s: plane(s[2], s[1], s[0])), Style("tile", lambda s: plane(s[2], s[1], s[0]))),
        lambda s: 2 * math.prod(s),
        lambda s: s[3],
    ),
    Operator(
        "int8_gemm",
        "matmul.cu",
        WEIGHTS,
        _int8_inputs,
        (3,),
        _int8_gemm,
        (Style("naive", _over_result), Style("warp", _warp_each, tiny=(5, 6, 36))),
        lambda s: 2 * math.prod(s),
        lambda s: s[2],
    ),
    Operator(
        "int4_gemm",
        "matmul.cu",
        WEIGHTS,
        _int4_inputs,
        (3,),
        _int4_gemm,
        (Style("naive", _over_result), Style("warp", _warp_each, tiny=(5, 6, 40))),
        lambda s: 2 * math.prod(s),
        lambda s: s[2],
    ),
    Operator(
        "outer",
        "matmul.cu",
        ((19, 23), (512, 512), (2048, 1024), (4096, 4096)),
        lambda rng, s: [normal(rng, s[0]), normal(rng, s[1]), empty(*s), *ints(*s)],
        (2,),
        lambda a, b, c, m, n: (np.outer(f64(a), f64(b)),),
        (
            Style("naive", _over_result),
            Style("float4", lambda s: ((-(-s[1] // 512), s[0], 1), (128, 1, 1), 0), tiny=(7, 24)),
        ),
        lambda s: s[0] * s[1],
    ),
)


def _zeros_around(x: np.ndarray, padding: int, dims: int) -> np.ndarray:
    return np.pad(f64(x), [(0, 0)] * (x.ndim - dims) + [(padding, padding)] * dims)


def _conv1d(x: np.ndarray, w: np.ndarray, bias: np.ndarray, y: np.ndarray, *sizes: np.int32) -> tuple[np.ndarray]:
    windows = np.lib.stride_tricks.sliding_window_view(_zeros_around(x, int(sizes[4]), 1), w.shape[2], 2)
    return (np.einsum("bcpt,oct->bop", windows, f64(w), optimize=True) + bias[:, None],)


def _conv2d(x: np.ndarray, w: np.ndarray, bias: np.ndarray, y: np.ndarray, *sizes: np.int32) -> tuple[np.ndarray]:
    windows = np.lib.stride_tricks.sliding_window_view(_zeros_around(x, int(sizes[5]), 2), w.shape[2:], (2, 3))
    return (np.einsum("bcpqij,ocij->bopq", windows, f64(w), optimize=True) + bias[:, None, None],)


def _depthwise(x: np.ndarray, w: np.ndarray, y: np.ndarray, *sizes: np.int32) -> tuple[np.ndarray]:
    windows = np.lib.stride_tricks.sliding_window_view(_zeros_around(x, int(sizes[4]), 2), w.shape[1:], (2, 3))
    return (np.einsum("bcpqij,cij->bcpq", windows, f64(w), optimize=True),)


def _transposed(x: np.ndarray, w: np.ndarray, y: np.ndarray, *sizes: np.int32) -> tuple[np.ndarray]:
    _, height, width, outputs, taps, stride, padding = (int(v) for v in sizes)
    whole = np.zeros((len(x), outputs, (height - 1) * stride + taps, (width - 1) * stride + taps))
    for i in range(taps):
        for j in range(taps):
            part = np.einsum("bcrq,co->borq", f64(x), f64(w[:, :, i, j]), optimize=True)
            whole[:, :, i : i + height * stride : stride, j : j + width * stride : stride] += part
    return (whole[:, :, padding : whole.shape[2] - padding, padding : whole.shape[3] - padding],)


def _conv1d_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    b, c, width, o, taps, padding = s
    y = empty(b, o, width + 2 * padding - taps + 1)
    return [normal(rng, b, c, width), normal(rng, o, c, taps), normal(rng, o), y, *ints(*s[1:])]


def _conv2d_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    b, c, height, width, o, taps, padding = s
    rim = 2 * padding - taps + 1
    y = empty(b, o, height + rim, width + rim)
    return [normal(rng, b, c, height, width), normal(rng, o, c, taps, taps), normal(rng, o), y, *ints(*s[1:])]


def _depthwise_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    b, c, height, width, taps, padding = s
    rim = 2 * padding - taps + 1
    return [normal(rng, *s[:4]), normal(rng, c, taps, taps), empty(b, c, height + rim, width + rim), *ints(*s[1:])]


def _transposed_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    b, c, height, width, o, taps, stride, padding = s
    rim = taps - stride - 2 * padding
    y = empty(b, o, height * stride + rim, width * stride + rim)
    return [normal(rng, *s[:4]), normal(rng, c, o, taps, taps), y, *ints(*s[1:])]


def _conv2d_grid(s: Shape) -> Geometry:
    rim = 2 * s[6] - s[5] + 1
    return plane(s[3] + rim, s[2] + rim, s[0] * s[4])


def _depthwise_grid(s: Shape) -> Geometry:
    rim = 2 * s[5] - s[4] + 1
    return plane(s[3] + rim, s[2] + rim, s[0] * s[1])


def _transposed_grid(s: Shape) -> Geometry:
    rim = s[5] - s[6] - 2 * s[7]
    return plane(s[3] * s[6] + rim, s[2] * s[6] + rim, s[0] * s[4])


def _conv1d_grid(s: Shape) -> Geometry:
    return (-(-(s[2] + 2 * s[5] - s[4] + 1) // 128), s[3], s[0]), (128, 1, 1), 0


CONVOLUTIONS = (
    Operator(
        "conv1d",
        "conv.cu",
        ((2, 2, 45, 3, 5, 1), (2, 16, 1024, 16, 5, 2), (8, 32, 4096, 32, 5, 2), (16, 64, 4096, 64, 5, 2)),
        _conv1d_inputs,
        (3,),
        _conv1d,
        (Style("naive", _conv1d_grid), Style("shared", _conv1d_grid, tiny=(1, 2, 141, 2, 5, 1))),
        lambda s: 2 * math.prod(s[:5]),
        lambda s: s[1] * s[4],
    ),
    Operator(
        "conv2d",
        "conv.cu",
        ((2, 2, 7, 19, 2, 3, 1), (1, 16, 32, 32, 16, 3, 1), (4, 32, 56, 56, 64, 3, 1), (16, 64, 56, 56, 64, 3, 1)),
        _conv2d_inputs,
        (3,),
        _conv2d,
        (Style("naive", _conv2d_grid), Style("shared", _conv2d_grid)),
        lambda s: 2 * math.prod(s[:6]) * s[5],
        lambda s: s[1] * s[5] ** 2,
    ),
    Operator(
        "depthwise",
        "conv.cu",
        ((1, 3, 7, 19, 3, 1), (1, 64, 56, 56, 3, 1), (4, 128, 56, 56, 3, 1), (16, 128, 112, 112, 3, 1)),
        _depthwise_inputs,
        (2,),
        _depthwise,
        (Style("naive", _depthwise_grid), Style("shared", _depthwise_grid)),
        lambda s: 2 * math.prod(s[:5]) * s[4],
        lambda s: s[4] ** 2,
    ),
    Operator(
        "transposed_conv",
        "conv.cu",
        ((1, 2, 4, 9, 2, 4, 2, 1), (1, 16, 16, 16, 16, 4, 2, 1), (2, 64, 28, 28, 32, 4, 2, 1), (8, 64, 56, 56, 32, 4, 2, 1)),
        _transposed_inputs,
        (2,),
        _transposed,
        (Style("naive", _transposed_grid), Style("phase", _transposed_grid)),
        lambda s: 2 * math.prod(s[:6]) * s[5],
        lambda s: s[1] * s[5] ** 2,
    ),
)


def _windows(x: np.ndarray, size: np.int32, stride: np.int32) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(f64(x), (size, size), (1, 2))[:, ::stride, ::stride]


def _pool_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    planes, height, width, size, stride = s
    return [normal(rng, *s[:3]), empty(planes, (height - size) // stride + 1, (width - size) // stride + 1), *ints(*s[1:])]


def _pool_grid(s: Shape) -> Geometry:
    return plane((s[2] - s[3]) // s[4] + 1, (s[1] - s[3]) // s[4] + 1, s[0])


def pooling(name: str, reduce: Any) -> Operator:
    """Return the class of a reduction over windows."""
    return Operator(
        name,
        "pool.cu",
        ((2, 9, 21, 3, 2), (64, 56, 56, 2, 2), (256, 112, 112, 2, 2), (512, 224, 224, 2, 2)),
        _pool_inputs,
        (1,),
        lambda x, y, height, width, size, stride: (reduce(_windows(x, size, stride), (3, 4)),),
        (Style("naive", _pool_grid), Style("float4", lambda s: plane(s[2] // 4, s[1] // 2, s[0]), tiny=(2, 9, 20, 2, 2))),
        lambda s: math.prod(s[:3]) * s[3] ** 2 / s[4] ** 2,
        lambda s: s[3] ** 2,
    )


def _im2col(x: np.ndarray, y: np.ndarray, *sizes: np.int32) -> tuple[np.ndarray]:
    taps = int(sizes[3])
    windows = np.lib.stride_tricks.sliding_window_view(_zeros_around(x, int(sizes[4]), 2), (taps, taps), (1, 2))
    return (windows.transpose(0, 3, 4, 1, 2),)


def _resize(
    x: np.ndarray, y: np.ndarray, height: np.int32, width: np.int32, rows: np.int32, columns: np.int32
) -> tuple[np.ndarray]:
    v = np.maximum((np.arange(rows) + 0.5) * height / rows - 0.5, 0)
    u = np.maximum((np.arange(columns) + 0.5) * width / columns - 0.5, 0)
    r, c = v.astype(int), u.astype(int)
    down, right = np.minimum(r + 1, height - 1), np.minimum(c + 1, width - 1)
    part = (u - c)[None, None]
    upper = f64(x)[:, r][:, :, c] * (1 - part) + f64(x)[:, r][:, :, right] * part
    lower = f64(x)[:, down][:, :, c] * (1 - part) + f64(x)[:, down][:, :, right] * part
    part = (v - r)[None, :, None]
    return (upper * (1 - part) + lower * part,)


def _im2col_inputs(rng: np.random.Generator, s: Shape) -> Arguments:
    c, height, width, taps, padding = s
    rim = 2 * padding - taps + 1
    return [normal(rng, c, height, width), empty(c, taps, taps, height + rim, width + rim), *ints(*s)]


def _im2col_count(s: Shape) -> int:
    rim = 2 * s[4] - s[3] + 1
    return s[0] * s[3] ** 2 * (s[1] + rim) * (s[2] + rim)


def _im2col_place(s: Shape) -> Geometry:
    rim = 2 * s[4] - s[3] + 1
    return (-(-(s[2] + rim) // 64), s[1] + rim, s[0]), (64, 1, 1), 0


MOVES = (
    pooling("maxpool", np.max),
    pooling("avgpool", np.mean),
    Operator(
        "transpose",
        "move.cu",
        ((19, 37), (512, 512), (2048, 1024), (4096, 4096)),
        lambda rng, s: [normal(rng, *s), empty(s[1], s[0]), *ints(*s)],
        (1,),
        lambda x, y, rows, columns: (f64(x).T,),
        (
            Style("naive", lambda s: plane(s[1], s[0])),
            Style("shared", lambda s: ((-(-s[1] // 32), -(-s[0] // 32), 1), (32, 8, 1), 0)),
        ),
        lambda s: 0,
    ),
    Operator(
        "concat",
        "move.cu",
        ((5, 13, 22), (512, 256, 256), (2048, 384, 640), (16384, 384, 640)),
        lambda rng, s: [normal(rng, s[0], s[1]), normal(rng, s[0], s[2]), empty(s[0], s[1] + s[2]), *ints(*s)],
        (2,),
        lambda a, b, y, *_: (np.concatenate((f64(a), f64(b)), axis=1),),
        (Style("naive", lambda s: line(s[0] * (s[1] + s[2]))), Style("row", lambda s: blocks(s[0], 128))),
        lambda s: 0,
    ),
    Operator(
        "pad",
        "move.cu",
        ((2, 7, 19, 2), (16, 112, 112, 1), (64, 224, 224, 1), (256, 224, 224, 3)),
        lambda rng, s: [normal(rng, *s[:3]), empty(s[0], s[1] + 2 * s[3], s[2] + 2 * s[3]), np.float32(0.5), *ints(*s[1:])],
        (1,),
        lambda x, y, value, h, w, rim: (np.pad(f64(x), ((0, 0), (rim, rim), (rim, rim)), constant_values=value),),
        (
            Style("naive", lambda s: plane(s[2] + 2 * s[3], s[1] + 2 * s[3], s[0])),
            Style("row", lambda s: ((1, s[1] + 2 * s[3], s[0]), (128, 1, 1), 0)),
        ),
        lambda s: 0,
    ),
    Operator(
        "im2col",
        "move.cu",
        ((2, 6, 9, 3, 1), (16, 56, 56, 3, 1), (64, 112, 112, 3, 1), (128, 128, 128, 3, 1)),
        _im2col_inputs,
        (1,),
        _im2col,
        (Style("naive", lambda s: line(_im2col_count(s))), Style("place", _im2col_place)),
        lambda s: 0,
    ),
    Operator(
        "resize",
        "move.cu",
        ((2, 5, 9, 7, 13), (16, 64, 64, 128, 128), (64, 112, 112, 224, 224), (128, 224, 224, 448, 448)),
        lambda rng, s: [normal(rng, *s[:3]), empty(s[0], s[3], s[4]), *ints(*s[1:])],
        (1,),
        _resize,
        (
            Style("naive", lambda s: plane(s[4], s[3], s[0])),
            Style("double", lambda s: plane(s[2], s[1], s[0]), tiny=(2, 5, 19, 10, 38)),
        ),
        lambda s: 6 * s[0] * s[3] * s[4],
        lambda s: 256,  # the place is computed in single precision: its error times the slope
    ),
)

OPERATORS = MATRICES + CONVOLUTIONS + MOVES
