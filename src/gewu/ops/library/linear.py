"""Products: matrix with vector and matrix, batches, weights of 8 and 4 bits, outer product. Sums in float32 or float64.

All are sums over repeated letters, y[ij] = sum over k of a[ik] b[kj], and so are their cotangents.  Weights of few bits are
widened a row at a time, which then meets four rows of x at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.ops.library.call import Array, fits, floats, launch, loop, narrowed, result, symbols, widened, working
from gewu.ops.python import assign, axes, cast, einsum, program, sizes, total
from gewu.ops.sizes import Size
from gewu.ops.tensor import Program

MANY: Final = 64
"""Rows of x from which it pays to widen all weights first."""


def contraction(kinds: Sequence[str], formula: str) -> Program:
    """Build a sum of products in the notation of einsum; each letter is an integer of the launch."""
    left, _, right = formula.partition("->")
    *factors, out = symbols(kinds, *(sizes(" ".join(letters)) for letters in (*left.split(","), right)))
    return program("product", einsum(formula, out, *factors))


def contract(operator: str, formula: str, *arrays: Array, out: Array | None = None) -> Array:
    """Return a sum of products of arrays.

    Raises:
        InputError: ranks do not fit the letters, or extents of one letter differ.
    """
    left, _, right = formula.partition("->")
    names, extents = left.split(","), {}
    for letters, a in zip(names, arrays, strict=True):
        fits(operator, formula, a.ndim == len(letters), *arrays)
        for letter, n in zip(letters, a.shape, strict=True):
            fits(operator, formula, extents.setdefault(letter, n) == n, *arrays)
    out = result(operator, out, tuple([extents[letter] for letter in right]), arrays[0].dtype)
    if out.size and not all(extents.values()):
        out[...] = 0
    else:
        launch(contraction, (*arrays, out), extents, (formula,))
    return out


def _bilinear(name: str, formula: str, summary: str) -> tuple[Callable[..., Array], Callable[..., tuple[Array, Array]]]:
    left, _, right = formula.partition("->")
    first, second = left.split(",")

    def function(a: Any, b: Any, out: Array | None = None) -> Array:
        return contract(name, formula, floats(name, "a", a), floats(name, "b", b), out=out)

    def derivative(dy: Any, a: Any, b: Any) -> tuple[Array, Array]:
        dy, a, b = floats(name, "dy", dy), floats(name, "a", a), floats(name, "b", b)
        return contract(name, f"{right},{second}->{first}", dy, b), contract(name, f"{first},{right}->{second}", a, dy)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Return {summary}: {formula}."
    derivative.__doc__ = f"Return the cotangents of both factors of `{name}`."
    return function, derivative


gemv, gemv_gradient = _bilinear("gemv", "ik,k->i", "a matrix times a vector")
gemm, gemm_gradient = _bilinear("gemm", "ik,kj->ij", "the product of two matrices")
batched_gemm, batched_gemm_gradient = _bilinear("batched_gemm", "zik,zkj->zij", "the product of two matrices, for each z")
outer, outer_gradient = _bilinear("outer", "i,j->ij", "all products of two vectors' elements")


def int8_product(kinds: Sequence[str]) -> Program:
    """Build y[i, j] = scale[j] times the sum over k of x[i, k] w[j, k]."""
    m, n, p = sizes("m n p")
    i, j, k = axes(i=m, j=n, k=p)
    x, w, scale, y = symbols(kinds, (m, p), (n, p), (n,), (m, n))
    element = x[i, k]
    return program("int8_gemm", assign(y[i, j], total(element * cast(w[j, k], element.type), over=k) * scale[j]))


def int4_product(kinds: Sequence[str]) -> Program:
    """Build the same of weights of 4 bits, two in a byte: w - 8, the lower half first; `h` bytes in a row."""
    m, n, h = sizes("m n h")
    i, j, k = axes(i=m, j=n, k=h)
    x, w, scale, y = symbols(kinds, (m, Size.of(2) * h), (n, h), (n,), (m, n))
    even, odd = x[i, 2 * k], x[i, 2 * k + 1]
    low, high = (cast(cast(half, "s32"), even.type) - 8 for half in (w[j, k] & 15, w[j, k] >> 4))
    return program("int4_gemm", assign(y[i, j], total(even * low + odd * high, over=k) * scale[j]))


def _narrow(packed: bool) -> Callable[..., None]:
    """Return the loop over rows of weights, of 4 bits if packed."""

    def body(lo, hi, x, w, scale, y):
        m, n = x.shape
        zero, wide = x.dtype.type(0), np.empty(n, x.dtype)
        for j in range(lo, hi):
            row, s = w[j], scale[j]
            if packed:
                for k in range(n // 2):
                    v = np.int32(row[k])
                    wide[2 * k] = (v & np.int32(15)) - np.int32(8)
                    wide[2 * k + 1] = (v >> np.int32(4)) - np.int32(8)
            i = 0
            while i + 4 <= m:
                a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
                p, q, r, t = zero, zero, zero, zero
                for k in range(n):
                    v = wide[k] if packed else x.dtype.type(row[k])
                    p += a[k] * v
                    q += b[k] * v
                    r += c[k] * v
                    t += d[k] * v
                y[i, j], y[i + 1, j], y[i + 2, j], y[i + 3, j] = p * s, q * s, r * s, t * s
                i += 4
            while i < m:
                a, p = x[i], zero
                for k in range(n):
                    p += a[k] * (wide[k] if packed else x.dtype.type(row[k]))
                y[i, j] = p * s
                i += 1

    return body


_bytes, _nibbles = loop(_narrow(False)), loop(_narrow(True))


def _weights(operator: str, x: Any, w: Any, scale: Any, dtype: Any, each: int) -> tuple[Array, Array, Array]:
    x, w, scale = floats(operator, "x", x, 2), np.ascontiguousarray(w), floats(operator, "scale", scale, 1)
    if w.dtype != dtype:
        raise InputError("w has an unsupported type", key=operator, value=str(w.dtype), allowed=np.dtype(dtype).name)
    shapes = f"x (m, k), w (n, k{'' if each == 1 else ' / 2'}), scale (n)"
    fits(operator, shapes, w.ndim == 2 and w.shape[1] * each == x.shape[1] and scale.shape == w.shape[:1], x, w, scale)
    return x, w, scale


def _weighted(x: Array, w: Array, scale: Array, out: Array) -> Array:
    wide, y = widened(x), working(out)
    run = _bytes if w.dtype == np.int8 else _nibbles
    run(len(w), x.size * len(w) // 4, wide, w, widened(scale).astype(wide.dtype, copy=False), y)
    return narrowed(y, out)


def int8_gemm(x: Any, w: Any, scale: Any, out: Array | None = None) -> Array:
    """Return x (m, k) times the transpose of w (n, k) of int8, column j times scale[j]."""
    x, w, scale = _weights("int8_gemm", x, w, scale, np.int8, 1)
    out = result("int8_gemm", out, (len(x), len(w)), x.dtype)
    if len(x) < MANY:
        return _weighted(x, w, scale, out)
    launch(int8_product, (x, w, scale, out), {"m": len(x), "n": len(w), "p": x.shape[1]})
    return out


def int8_gemm_gradient(dy: Any, x: Any, w: Any, scale: Any) -> tuple[Array]:
    """Return the cotangent of x; weights of few bits have none."""
    x, w, scale = _weights("int8_gemm", x, w, scale, np.int8, 1)
    weight = (w.astype(np.float64) * scale.astype(np.float64)[:, None]).astype(x.dtype)
    return (contract("int8_gemm", "ij,jk->ik", floats("int8_gemm", "dy", dy), weight),)


def int4_gemm(x: Any, w: Any, scale: Any, out: Array | None = None) -> Array:
    """Return x (m, k) times the transpose of w (n, k) of 4 bits, column j times scale[j].

    Weights are w - 8, two in a byte of uint8 (n, k / 2), the lower half first.
    """
    x, w, scale = _weights("int4_gemm", x, w, scale, np.uint8, 2)
    out = result("int4_gemm", out, (len(x), len(w)), x.dtype)
    return _weighted(x, w, scale, out)


def unpacked(w: Array) -> Array:
    """Return weights of 4 bits as int8 numbers from -8 to 7."""
    return np.stack((w & 15, w >> 4), axis=-1).reshape(len(w), -1).astype(np.int8) - np.int8(8)


def int4_gemm_gradient(dy: Any, x: Any, w: Any, scale: Any) -> tuple[Array]:
    """Return the cotangent of x; weights of few bits have none."""
    x, w, scale = _weights("int4_gemm", x, w, scale, np.uint8, 2)
    return int8_gemm_gradient(dy, x, unpacked(w), scale)
