"""Attention of short rows for JAX on CPUs: scores, softmax and values of one head at a time, in the nearest cache.

    out = softmax(q k^T / sqrt(C)) v over the keys that a token may see

Rows of queries are taken BLOCK by BLOCK with the keys before them; products are the packed ones of `product` (bfloat16) and
`gemm` (float32), sums and the softmax float32. The backward pass makes the weights again from the logarithm of their sums
(Dao et al., arXiv:2205.14135) and holds those of one head: length squared numbers, so rows are at most LONGEST long. Heads are
dealt over threads; the result does not depend on how many.
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from gewu.ops import gemm, product, product_kernel, product_pack
from gewu.ops.cache import Cache, cache_folder
from gewu.ops.ffi import raw_target
from gewu.ops.lean import HALF, INTEGER, SINGLE, at, call, compiled, entry, exp, larger, narrow, wide
from gewu.ops.native import address_of
from gewu.ops.pool import THREADS, scratch
from gewu.ops.product import together

LONGEST: Final = 1024
BLOCK: Final = 128
_NEVER: Final = np.float32(-1e30)
_ZERO: Final = np.float32(0)


@compiled
def _times(code: Any, a: int, si: int, sk: int, b: int, bk: int, bj: int, c: int, ldc: int, sizes: Any, form: int) -> None:
    """C = A B by addresses and strides; `code`: pack, multiply, packed, work, rows and columns of a block, whether bfloat16."""
    m, n, k = sizes
    panels, strips = -(-m // code[4]), -(-n // code[5])
    call(code[0], (a, code[2], si, sk, m, k, 0, panels))
    if code[6]:
        call(code[1], (code[2], b, c, code[3], bk, bj, ldc, m, n, k, form, 0, panels, 0, strips))
    else:
        call(code[1], (code[2], b, c, code[3], bk, bj, ldc, m, n, k, 0, panels, 0, strips))


@compiled
def _hide(scores: Any, segments: Any, i: int, row: int, lo: int, hi: int) -> None:
    for j in range(lo, hi):
        if segments[j] != segments[row]:
            scores[i, j] = _NEVER


@compiled
def _softmax(scores: Any, weights: Any, scale: Any) -> Any:
    """Return the largest score and the sum of the exponentials; slices, from 0, let the loops be taken many at a time."""
    top, total = _NEVER, _ZERO
    for j in range(scores.size):
        top = larger(top, scores[j])
    for j in range(scores.size):
        value = exp((scores[j] - top) * scale)
        scores[j] = value
        total += value
    share = np.float32(1) / total
    for j in range(scores.size):
        weights[j] = narrow(scores[j] * share, weights[j])
    return top, total


@compiled
def _softmax_back(scores: Any, slopes: Any, scale: Any, log: Any, mean: Any, weights: Any, changes: Any) -> None:
    for j in range(scores.size):
        value = exp(scores[j] * scale - log)
        weights[j] = narrow(value, weights[j])
        changes[j] = narrow(value * (slopes[j] - mean) * scale, changes[j])


@compiled
def _forward(qkv: Any, segments: Any, code: Any, causal: bool, window: int, out: Any, sums: Any, space: Any, task: int) -> None:
    """One row of the batch and one head of keys; `space`: scores float32 (BLOCK, t), weights (BLOCK, t)."""
    t, K, G, C = out.shape[1:]
    scores, weights = space
    b, h, size = task // K, task % K, qkv.itemsize
    base, step = qkv.ctypes.data + (b * t * K + h) * (G + 2) * C * size, K * (G + 2) * C
    keys, values = base + G * C * size, base + (G + 1) * C * size
    scale = np.float32(1.0 / math.sqrt(C))
    for g in range(G):
        for r0 in range(0, t, BLOCK):
            r1 = min(r0 + BLOCK, t)
            n = r1 if causal else t
            queries = base + (r0 * step + g * C) * size
            _times(code, queries, step, 1, keys, 1, step, scores.ctypes.data, t, (r1 - r0, n, C), 0)
            for i in range(r1 - r0):
                row = r0 + i
                hi = row + 1 if causal else t
                lo = max(0, row + 1 - window) if window else 0
                if segments.shape[0]:
                    _hide(scores, segments[b], i, row, lo, hi)
                top, total = _softmax(scores[i, lo:hi], weights[i, lo:hi], scale)
                weights[i, :lo] = 0
                weights[i, hi:n] = 0
                sums[b, h, g, row] = top * scale + np.log(total)
            target = out.ctypes.data + (((b * t + r0) * K + h) * G + g) * C * size
            _times(code, weights.ctypes.data, t, 1, values, step, 1, target, K * G * C, (r1 - r0, C, n), 1)


@compiled
def _backward(given: Any, code: Any, causal: bool, window: int, dqkv: Any, space: Any, task: int) -> None:
    """Likewise; `space`: scores, their gradients (BLOCK, t), weights, their gradients (t, t), two sums (2, t, C), a part."""
    qkv, segments, out, sums, grad = given
    t, K, G, C = out.shape[1:]
    scores, slopes, weights, changes, total, part = space
    b, h, size = task // K, task % K, qkv.itemsize
    place, step = (b * t * K + h) * (G + 2) * C * size, K * (G + 2) * C
    base, pull = qkv.ctypes.data + place, grad.ctypes.data + ((b * t * K + h) * G) * C * size
    keys, values, row_step = base + G * C * size, base + (G + 1) * C * size, K * G * C
    scale = np.float32(1.0 / math.sqrt(C))
    total[:] = 0
    for g in range(G):
        for r0 in range(0, t, BLOCK):
            r1 = min(r0 + BLOCK, t)
            n = r1 if causal else t
            queries, pulls = base + (r0 * step + g * C) * size, pull + (r0 * row_step + g * C) * size
            _times(code, queries, step, 1, keys, 1, step, scores.ctypes.data, t, (r1 - r0, n, C), 0)
            _times(code, pulls, row_step, 1, values, 1, step, slopes.ctypes.data, t, (r1 - r0, n, C), 0)
            for i in range(r1 - r0):
                row = r0 + i
                hi = row + 1 if causal else t
                lo = max(0, row + 1 - window) if window else 0
                if segments.shape[0]:
                    _hide(scores, segments[b], i, row, lo, hi)
                mean, log = _ZERO, sums[b, h, g, row]
                ours, theirs = out[b, row, h, g], grad[b, row, h, g]
                for c in range(C):
                    mean += wide(ours[c]) * wide(theirs[c])
                _softmax_back(scores[i, lo:hi], slopes[i, lo:hi], scale, log, mean, weights[row, lo:hi], changes[row, lo:hi])
                for array in (weights, changes):
                    array[row, :lo] = 0
                    array[row, hi:n] = 0
            target = dqkv.ctypes.data + place + (r0 * step + g * C) * size
            _times(code, changes.ctypes.data + r0 * t * size, t, 1, keys, step, 1, target, step, (r1 - r0, C, n), 1)
        for k0 in range(0, t, BLOCK):
            k1 = min(k0 + BLOCK, t)
            first = k0 if causal else 0
            shift = (first * t + k0) * size
            shape = (k1 - k0, C, t - first)
            for which, array, source, along in (
                (0, changes, base + (first * step + g * C) * size, step),
                (1, weights, pull + (first * row_step + g * C) * size, row_step),
            ):
                _times(code, array.ctypes.data + shift, 1, t, source, along, 1, part.ctypes.data, C, shape, 0)
                for i in range(k1 - k0):
                    for c in range(C):
                        total[which, k0 + i, c] += part[i, c]
    for row in range(t):
        for which in range(2):
            for c in range(C):
                dqkv[b, row, h, G + which, c] = narrow(total[which, row, c], dqkv[b, row, h, G + which, c])


@compiled
def _machine(a: Any, place: int) -> Any:
    """Return what `_times` needs, with the scratch of its products at a place."""
    return (a[11], a[12], place, place + a[13], a[15], a[16], a[17])


@compiled
def _forward_part(like: Any, a: Any, lo: int, hi: int) -> None:
    b, t, K, G, C = a[0], a[1], a[2], a[3], a[4]
    place = a[8] + lo // a[10] * a[9]
    code = _machine(a, place)
    place += a[13] + a[14]
    space = (at(place, (BLOCK, t), SINGLE), at(place + 4 * BLOCK * t, (BLOCK, t), like))
    qkv, segments = at(a[18], (b, t, K, G + 2, C), like), at(a[19], (a[7], t), INTEGER)
    out, sums = at(a[20], (b, t, K, G, C), like), at(a[21], (b, K, G, t), SINGLE)
    for task in range(lo, hi):
        _forward(qkv, segments, code, a[5] != 0, a[6], out, sums, space, task)


@compiled
def _backward_part(like: Any, a: Any, lo: int, hi: int) -> None:
    b, t, K, G, C = a[0], a[1], a[2], a[3], a[4]
    place = a[8] + lo // a[10] * a[9]
    code = _machine(a, place)
    place += a[13] + a[14]
    scores, slopes = at(place, (BLOCK, t), SINGLE), at(place + 4 * BLOCK * t, (BLOCK, t), SINGLE)
    place += 8 * BLOCK * t
    total, part = at(place, (2, t, C), SINGLE), at(place + 8 * t * C, (BLOCK, C), SINGLE)
    place += 8 * t * C + 4 * BLOCK * C
    space = (scores, slopes, at(place, (t, t), like), at(place + 4 * t * t, (t, t), like), total, part)
    qkv, segments = at(a[18], (b, t, K, G + 2, C), like), at(a[19], (a[7], t), INTEGER)
    out, sums = at(a[20], (b, t, K, G, C), like), at(a[21], (b, K, G, t), SINGLE)
    given = (qkv, segments, out, sums, at(a[22], out.shape, like))
    for task in range(lo, hi):
        _backward(given, code, a[5] != 0, a[6], at(a[23], qkv.shape, like), space, task)


@cache
def _machine_code(half: bool) -> tuple[int, int, int, int, int]:
    """Return the addresses of pack and multiply, bytes of work, and rows and columns of a block."""
    if half:
        way = product_kernel.ways()[0]
        (pack, run), block, bytes_ = product.functions(way), product_kernel.block(way), product_kernel.work_bytes(way)
    else:
        pack, run, _ = gemm.functions("f32", Cache(cache_folder()).objects)
        block = gemm.shape("f32")
        bytes_ = gemm.COLUMN_BLOCK * block.columns * gemm.DEPTH * 4
    return address_of(pack), address_of(run), bytes_, block.rows, block.columns


@cache
def _target(kind: str, causal: bool, window: int, back: bool) -> str:
    """Return XLA's name of the attention, or its backward pass, of arrays of a type."""
    half = kind == "bfloat16"
    loop = entry(_backward_part if back else _forward_part, HALF if half else SINGLE)

    def work(arguments: Any, results: Any) -> None:
        b, t, K, both, C = arguments[0][1]
        pack, run, bytes_, rows, columns = _machine_code(half)
        longest = max(t, C)
        packed = (-(-longest // rows) + 1) * rows * (longest + product_pack.SQUARE) * 4
        space = 8 * (BLOCK * t + t * C + t * t) + 4 * BLOCK * C if back else 8 * BLOCK * t
        piece = -(-(packed + bytes_ + space) // 64) * 64
        tasks = -(-b * K // (2 * THREADS))
        pieces = -(-b * K // tasks)
        place = scratch("attend", piece * pieces).address
        head = (b, t, K, both - 2, C, int(causal), window, arguments[1][1][0], place, piece, tasks)
        arrays = [address for address, _ in (*arguments, *results)]
        given = (*head, pack, run, packed, bytes_, rows, columns, int(half), *arrays)
        together(loop.address, (loop.code, *given), b * K, pieces, THREADS)

    return raw_target("attend", work)


def usable(t: int, kind: Any) -> bool:
    """Return whether rows of t tokens of this type go through here."""
    return product.usable() and t <= (min(LONGEST, product.longest()) if kind == jnp.bfloat16 else LONGEST)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def attend(qkv: Any, segments: Any, causal: bool, window: int) -> Any:
    """Return what each token gathers.

    Args:
        qkv: (b, t, K, G + 2, C) float32 or bfloat16: of each of K heads G queries, key, value.
        segments: int32 (b, t), tokens see only those of their number; (0, t) for one document.
        causal: a token sees what is not behind it.
        window: and at most so many, itself among them; 0 for all. Only with `causal`.

    Returns:
        (b, t, K, G, C) in the type of qkv.
    """
    return _attend(qkv, segments, causal, window)[0]


def _attend(qkv: Any, segments: Any, causal: bool, window: int) -> tuple[Any, Any]:
    b, t, K, both, C = qkv.shape
    like = (jax.ShapeDtypeStruct((b, t, K, both - 2, C), qkv.dtype), jax.ShapeDtypeStruct((b, K, both - 2, t), jnp.float32))
    target = _target(qkv.dtype.name, causal, window, False)
    return tuple(jax.ffi.ffi_call(target, like, vmap_method="sequential")(qkv, segments))


def _attend_forward(qkv: Any, segments: Any, causal: bool, window: int) -> Any:
    out, sums = _attend(qkv, segments, causal, window)
    return out, (qkv, segments, out, sums)


def _attend_backward(causal: bool, window: int, kept: Any, g: Any) -> Any:
    qkv = kept[0]
    target = _target(qkv.dtype.name, causal, window, True)
    like = jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)
    return jax.ffi.ffi_call(target, like, vmap_method="sequential")(*kept, g), None


attend.defvjp(_attend_forward, _attend_backward)
