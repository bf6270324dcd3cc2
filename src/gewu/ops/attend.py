"""Attention of short rows for JAX on CPUs: scores, softmax and values of one head at a time, in the nearest cache.

    out = softmax(q k^T / sqrt(C)) v over the keys that a token may see

Rows of queries are taken BLOCK by BLOCK with the keys before them; products are the packed ones of `product` (bfloat16) and
`gemm` (float32), sums and the softmax float32. The backward pass makes the weights again from the logarithm of their sums
(Dao et al., arXiv:2205.14135) and holds those of one head: length squared numbers, so rows are at most LONGEST long. Heads are
dealt over threads; the result does not depend on how many.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache, partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from gewu.ops import gemm, product, product_kernel
from gewu.ops.cache import Cache, cache_folder
from gewu.ops.ffi import raw_target
from gewu.ops.lean import call, compiled, exp, narrow, view, wide
from gewu.ops.pool import THREADS, run_ranges, scratch

LONGEST: Final = 1024
BLOCK: Final = 128
_NEVER: Final = np.float32(-1e30)
_ZERO: Final = np.float32(0)


@compiled
def _times(code: Any, a: int, si: int, sk: int, b: int, bk: int, bj: int, c: int, ldc: int, sizes: Any, rounded: int) -> None:
    """C = A B by addresses and strides; `code`: pack, multiply, packed, work, rows and columns of a block, whether bfloat16."""
    m, n, k = sizes
    panels, strips = -(-m // code[4]), -(-n // code[5])
    call(code[0], (a, code[2], si, sk, m, k, 0, panels))
    if code[6]:
        call(code[1], (code[2], b, c, code[3], bk, bj, ldc, m, n, k, rounded, 0, panels, 0, strips))
    else:
        call(code[1], (code[2], b, c, code[3], bk, bj, ldc, m, n, k, 0, panels, 0, strips))


@compiled
def _hide(scores: Any, segments: Any, i: int, row: int, lo: int, hi: int) -> None:
    for j in range(lo, hi):
        if segments[j] != segments[row]:
            scores[i, j] = _NEVER


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
                top, total = _NEVER, _ZERO
                for j in range(lo, hi):
                    top = max(top, scores[i, j])
                for j in range(lo, hi):
                    value = exp((scores[i, j] - top) * scale)
                    scores[i, j] = value
                    total += value
                share = np.float32(1) / total
                for j in range(lo, hi):
                    weights[i, j] = narrow(scores[i, j] * share, weights[i, j])
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
                for c in range(C):
                    mean += wide(out[b, row, h, g, c]) * wide(grad[b, row, h, g, c])
                for j in range(lo, hi):
                    value = exp(scores[i, j] * scale - log)
                    weights[row, j] = narrow(value, weights[row, j])
                    changes[row, j] = narrow(value * (slopes[i, j] - mean) * scale, changes[row, j])
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


@cache
def _code(half: bool) -> tuple[int, int, int, int, int]:
    """Return the addresses of pack and multiply, bytes of work, and rows and columns of a block."""
    block = gemm.shape("f32")
    if half:
        pack, run = product.functions(product_kernel.has_pairs())
    else:
        pack, run, _ = gemm.functions("f32", Cache(cache_folder()).objects)
    source = product_kernel if half else gemm
    bytes_ = source.COLUMN_BLOCK * block.columns * source.DEPTH * 4
    address = lambda function: int(ctypes.cast(function, ctypes.c_void_p).value or 0)  # noqa: E731
    return address(pack), address(run), bytes_, block.rows, block.columns


@cache
def _target(kind: str, causal: bool, window: int, back: bool) -> str:
    half = kind == "bfloat16"

    def arrays(name: str, *wanted: tuple[tuple[int, ...], str]) -> tuple[Any, ...]:
        """Return this thread's scratch arrays."""
        bytes_ = [-(-math.prod(shape) * (2 if dtype == "bfloat16" else 4) // 64) * 64 for shape, dtype in wanted]
        place, found = scratch(name, sum(bytes_)).address, []
        for (shape, dtype), count in zip(wanted, bytes_, strict=True):
            found.append(view(place, shape, dtype))
            place += count
        return tuple(found)

    def code(t: int, C: int) -> tuple[int, ...]:
        pack, run, work, rows, columns = _code(half)
        longest = max(t, C)
        packed = (-(-longest // rows) + 1) * rows * (longest + 2) * 4
        return pack, run, scratch("attend-packed", packed).address, scratch("attend-work", work).address, rows, columns, int(half)

    def forward(a: Any, r: Any) -> None:
        qkv, segments, out, sums = view(*a[0], kind), view(*a[1], "int32"), view(*r[0], kind), view(*r[1], "float32")
        t, C = out.shape[1], out.shape[-1]

        def work(lo: int, hi: int) -> None:
            space = arrays("attend", ((BLOCK, t), "float32"), ((BLOCK, t), kind))
            for task in range(lo, hi):
                _forward(qkv, segments, code(t, C), causal, window, out, sums, space, task)

        tasks = out.shape[0] * out.shape[2]
        run_ranges(work, [(i, i + 1) for i in range(tasks)], THREADS)

    def backward(a: Any, r: Any) -> None:
        kinds = (kind, "int32", kind, "float32", kind)
        given = tuple(view(*array, name) for array, name in zip(a, kinds, strict=True))
        out, dqkv = given[2], view(*r[0], kind)
        t, C = out.shape[1], out.shape[-1]
        scores, square = ((BLOCK, t), "float32"), ((t, t), kind)

        def work(lo: int, hi: int) -> None:
            space = arrays("attend", scores, scores, square, square, ((2, t, C), "float32"), ((BLOCK, C), "float32"))
            for task in range(lo, hi):
                _backward(given, code(t, C), causal, window, dqkv, space, task)

        tasks = out.shape[0] * out.shape[2]
        run_ranges(work, [(i, i + 1) for i in range(tasks)], THREADS)

    return raw_target("attend", backward if back else forward)


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
