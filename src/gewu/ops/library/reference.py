"""Every operator in plain NumPy and float64: what the tests compare with. Same arguments as the operators, without `out`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import special

from gewu.core.random import philox4x32

Array = np.ndarray[Any, Any]


def f64(x: Any) -> Array:
    """Return an array in float64."""
    return np.asarray(x).astype(np.float64)


def elementwise(a: Any, b: Any, alpha: float = 1.0) -> Array:
    """Return alpha a + b."""
    return alpha * f64(a) + f64(b)


def cast(x: Any, dtype: Any = np.float32) -> Array:
    """Return x."""
    return f64(x)


def relu(x: Any) -> Array:
    """Return max(x, 0)."""
    return np.maximum(f64(x), 0)


def gelu(x: Any) -> Array:
    """Return x times the normal distribution function."""
    return 0.5 * f64(x) * (1 + special.erf(f64(x) / math.sqrt(2)))


def silu(x: Any) -> Array:
    """Return x / (1 + e^-x)."""
    return f64(x) * special.expit(f64(x))


def tanh(x: Any) -> Array:
    """Return tanh x."""
    return np.tanh(f64(x))


def sigmoid(x: Any) -> Array:
    """Return 1 / (1 + e^-x)."""
    return special.expit(f64(x))


def exp(x: Any) -> Array:
    """Return e^x."""
    return np.exp(f64(x))


def log(x: Any) -> Array:
    """Return ln x."""
    return np.log(f64(x))


def clamp(x: Any, low: float, high: float) -> Array:
    """Return x kept between low and high."""
    return np.clip(f64(x), low, high)


def select(mask: Any, a: Any, b: Any) -> Array:
    """Return a where mask, else b."""
    return np.where(np.asarray(mask) != 0, f64(a), f64(b))


def dropout(x: Any, rate: float, seed: int) -> Array:
    """Return x / (1 - rate) where word i % 4 of Philox at counter i // 4, cut to 24 bits, is at least rate, else 0."""
    x = f64(x)
    counter = np.zeros((-(-x.size // 4), 4), np.uint32)
    counter[:, 0] = np.arange(len(counter))
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
    chance = (philox4x32(counter, key).reshape(-1)[: x.size].reshape(x.shape) >> 8) * 2.0**-24
    return np.where(chance >= rate, x / (1 - rate), 0)


def sum(x: Any, axis: int | None = -1) -> Array:
    """Return the sum along an axis."""
    return np.sum(f64(x), axis=axis)


def max(x: Any, axis: int | None = -1) -> Array:
    """Return the largest element along an axis."""
    return np.max(f64(x), axis=axis)


def argmax(x: Any, axis: int | None = -1) -> Array:
    """Return the place of the first largest element along an axis."""
    return np.argmax(f64(x), axis=axis)


def norm(x: Any, axis: int | None = -1) -> Array:
    """Return the Euclidean length along an axis."""
    return np.sqrt(np.sum(f64(x) ** 2, axis=axis))


def logsumexp(x: Any, axis: int | None = -1) -> Array:
    """Return the logarithm of the sum of e^x along an axis."""
    return np.asarray(special.logsumexp(f64(x), axis=axis))


def scan(x: Any) -> Array:
    """Return the running sum along the last axis."""
    return np.cumsum(f64(x), axis=-1)


def histogram(x: Any, bins: int) -> Array:
    """Return how often each number occurs."""
    return np.bincount(np.ravel(x), minlength=bins)


def topk(x: Any, k: int) -> tuple[Array, Array]:
    """Return the k largest elements of each row and their places."""
    order = np.argsort(-f64(x), axis=-1, kind="stable")[..., :k]
    return np.take_along_axis(f64(x), order, -1), order


def sort(x: Any) -> Array:
    """Return each row in rising order."""
    return np.sort(f64(x), axis=-1)


def softmax(x: Any, axis: int = -1) -> Array:
    """Return e^x divided by its sum along an axis."""
    return np.asarray(special.softmax(f64(x), axis=axis))


def _unit(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    d = x - x.mean(axes, keepdims=True)
    return d / np.sqrt((d * d).mean(axes, keepdims=True) + eps)


def _along(gain: Any, rank: int) -> Array:
    return f64(gain).reshape(-1, *[1] * (rank - 2))


def layernorm(x: Any, gain: Any, bias: Any, eps: float = 1e-5) -> Array:
    """Return rows with mean 0 and variance 1, times gain, plus bias."""
    return _unit(f64(x), (-1,), eps) * f64(gain) + f64(bias)


def rmsnorm(x: Any, gain: Any, eps: float = 1e-5) -> Array:
    """Return rows divided by the root of their mean square, times gain."""
    x = f64(x)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * f64(gain)


def batchnorm(x: Any, gain: Any, bias: Any, eps: float = 1e-5) -> Array:
    """Return channels with mean 0 and variance 1, times gain, plus bias."""
    x = f64(x)
    return _unit(x, (0, *range(2, x.ndim)), eps) * _along(gain, x.ndim) + _along(bias, x.ndim)


def groupnorm(x: Any, gain: Any, bias: Any, groups: int, eps: float = 1e-5) -> Array:
    """Return groups of channels with mean 0 and variance 1, times gain, plus bias."""
    x = f64(x)
    whole = _unit(x.reshape(len(x), groups, -1), (2,), eps).reshape(x.shape)
    return whole * _along(gain, x.ndim) + _along(bias, x.ndim)


def gemv(a: Any, b: Any) -> Array:
    """Return a matrix times a vector."""
    return f64(a) @ f64(b)


gemm = batched_gemm = gemv


def int8_gemm(x: Any, w: Any, scale: Any) -> Array:
    """Return x times the transpose of w, columns scaled."""
    return f64(x) @ f64(w).T * f64(scale)


def int4_gemm(x: Any, w: Any, scale: Any) -> Array:
    """Return x times the transpose of w of 4 bits, columns scaled."""
    return f64(x) @ (np.stack((w & 15, w >> 4), axis=-1).reshape(len(w), -1) - 8.0).T * f64(scale)


def outer(a: Any, b: Any) -> Array:
    """Return all products of two vectors' elements."""
    return np.outer(f64(a), f64(b))


def _rim(x: Any, padding: int, axes: int) -> Array:
    x = f64(x)
    return np.pad(x, [(0, 0)] * (x.ndim - axes) + [(padding, padding)] * axes)


def conv1d(x: Any, w: Any, bias: Any = 0.0, stride: int = 1, padding: int = 0) -> Array:
    """Return a convolution along one axis."""
    windows = sliding_window_view(_rim(x, padding, 1), w.shape[2], 2)[:, :, ::stride]
    return np.einsum("bcpt,oct->bop", windows, f64(w)) + np.reshape(f64(bias), (-1, 1))


def conv2d(x: Any, w: Any, bias: Any = 0.0, stride: int = 1, padding: int = 0) -> Array:
    """Return a convolution along two axes."""
    windows = sliding_window_view(_rim(x, padding, 2), w.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bcpqij,ocij->bopq", windows, f64(w), optimize=True) + np.reshape(f64(bias), (-1, 1, 1))


def depthwise(x: Any, w: Any, stride: int = 1, padding: int = 0) -> Array:
    """Return a convolution of each channel with its own window."""
    windows = sliding_window_view(_rim(x, padding, 2), w.shape[1:], (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bcpqij,cij->bcpq", windows, f64(w))


def transposed_conv(x: Any, w: Any, stride: int = 1, padding: int = 0) -> Array:
    """Return windows added where they go."""
    (b, _, h, v), (_, o, i, j) = x.shape, w.shape
    whole = np.zeros((b, o, (h - 1) * stride + i, (v - 1) * stride + j))
    for r in range(h):
        for q in range(v):
            place = whole[:, :, r * stride : r * stride + i, q * stride : q * stride + j]
            place += np.einsum("bc,coij->boij", f64(x)[:, :, r, q], f64(w))
    return whole[:, :, padding : whole.shape[2] - padding, padding : whole.shape[3] - padding]


def _pools(x: Any, size: int, stride: int | None) -> Array:
    step = stride or size
    return sliding_window_view(f64(x), (size, size), (-2, -1))[..., ::step, ::step, :, :]


def maxpool(x: Any, size: int, stride: int | None = None) -> Array:
    """Return the largest element of each window."""
    return _pools(x, size, stride).max((-1, -2))


def avgpool(x: Any, size: int, stride: int | None = None) -> Array:
    """Return the mean of each window."""
    return _pools(x, size, stride).mean((-1, -2))


def transpose(x: Any) -> Array:
    """Return the last two axes exchanged."""
    return np.swapaxes(f64(x), -1, -2)


def concat(a: Any, b: Any, axis: int = -1) -> Array:
    """Return a followed by b."""
    return np.concatenate((f64(a), f64(b)), axis)


def pad(x: Any, width: Any, value: float = 0.0) -> Array:
    """Return x with value around."""
    pairs = [(0, 0)] * (x.ndim - 2) + [(width, width)] * 2 if isinstance(width, int) else width
    return np.pad(f64(x), pairs, constant_values=value)


def im2col(x: Any, taps: int, padding: int = 0) -> Array:
    """Return all windows, window before place."""
    return sliding_window_view(_rim(x, padding, 2), (taps, taps), (1, 2)).transpose(0, 3, 4, 1, 2)


def _blend(x: Array, places: int, axis: int) -> Array:
    n = x.shape[axis]
    at = np.maximum((np.arange(places) + 0.5) * n / places - 0.5, 0)
    low = np.floor(at).astype(int)
    share = (at - low).reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))
    return np.take(x, low, axis) * (1 - share) + np.take(x, np.minimum(low + 1, n - 1), axis) * share


def resize(x: Any, rows: int, columns: int) -> Array:
    """Return images at new places, bilinear."""
    return _blend(_blend(f64(x), rows, -2), columns, -1)


def gather(x: Any, places: Any) -> Array:
    """Return x[places]."""
    return f64(x)[places]


def scatter_add(x: Any, places: Any, y: Any) -> Array:
    """Return y with each row of x added where it goes."""
    found = f64(y).copy()
    np.add.at(found, places, f64(x))
    return found


def embedding(table: Any, words: Any) -> Array:
    """Return rows of a table."""
    return f64(table)[words]


def spmv(start: Any, column: Any, value: Any, x: Any) -> Array:
    """Return a matrix in compressed rows times a vector."""
    row = np.repeat(np.arange(len(start) - 1), np.diff(start))
    return np.bincount(row, f64(value) * f64(x)[column], len(start) - 1)


def attention(q: Any, k: Any, v: Any, scale: float | None = None, causal: bool = False) -> Array:
    """Return softmax(scale q k^T) v for each head; keys are repeated for groups of heads."""
    group = len(q) // len(k)
    score = f64(q) @ np.swapaxes(f64(k).repeat(group, 0), 1, 2) * (q.shape[2] ** -0.5 if scale is None else scale)
    if causal:
        score = np.where(np.tri(score.shape[1], dtype=bool), score, -np.inf)
    return softmax(score) @ f64(v).repeat(group, 0)


attention_gqa = attention


def attention_causal(q: Any, k: Any, v: Any, scale: float | None = None) -> Array:
    """Return attention that sees no later key."""
    return attention(q, k, v, scale, True)


def rotary(x: Any, cosine: Any, sine: Any) -> Array:
    """Return pairs turned as complex numbers."""
    x = f64(x)
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * (f64(cosine) + 1j * f64(sine))[:, None]
    return np.stack((turned.real, turned.imag), axis=-1).reshape(x.shape)


def cross_entropy(x: Any, target: Any) -> Array:
    """Return minus the logarithm of the softmax at the target."""
    return logsumexp(x) - np.take_along_axis(f64(x), np.asarray(target)[..., None], -1)[..., 0]


def adamw(
    p: Any, g: Any, m: Any, v: Any, step: int, rate: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-8, decay: float = 0.01,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Return parameters and moments after a step."""
    p, g, m, v = f64(p), f64(g), f64(m), f64(v)
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    unbiased = m / (1 - beta1**step), v / (1 - beta2**step)
    return p - rate * (unbiased[0] / (np.sqrt(unbiased[1]) + eps) + decay * p), m, v


def quantise(x: Any) -> tuple[Array, Array]:
    """Return rows as 8-bit numbers and their scales."""
    most = np.abs(f64(x)).max(-1)
    return np.rint(f64(x) * (127 / most)[..., None]), most / 127


def stencil3d(x: Any, c: float) -> Array:
    """Return one step of diffusion with zeros around."""
    x = f64(x)
    p, inner = np.pad(x, 1), slice(1, -1)
    sides = [p[2:, inner, inner], p[:-2, inner, inner], p[inner, 2:, inner]]
    sides += [p[inner, :-2, inner], p[inner, inner, 2:], p[inner, inner, :-2]]
    return x + c * (np.sum(sides, axis=0) - 6 * x)


def nbody(body: Any, eps2: float) -> Array:
    """Return accelerations by softened gravity."""
    body = f64(body)
    d = body[None, :, :3] - body[:, None, :3]
    pull = body[:, 3] * ((d * d).sum(2) + eps2) ** -1.5
    return np.concatenate((np.einsum("ij,ijk->ik", pull, d), np.zeros((len(body), 1))), axis=1)


def fft_stage(x: Any, l: int) -> Array:
    """Return one radix-2 stage of Fourier transforms."""
    z = f64(x)[..., 0] + 1j * f64(x)[..., 1]
    k = np.arange(z.shape[1] // 2)
    j = k % l
    turned = np.exp(-1j * np.pi * j / l) * z[:, len(k) :]
    out = np.empty_like(z)
    out[:, 2 * (k - j) + j], out[:, 2 * (k - j) + j + l] = z[:, : len(k)] + turned, z[:, : len(k)] - turned
    return np.stack((out.real, out.imag), axis=-1)


def tridiagonal(lower: Any, diagonal: Any, upper: Any, right: Any) -> Array:
    """Return the solutions of dense systems."""
    sides = [f64(a).reshape(len(a), -1) for a in (lower, diagonal, upper, right)]
    found = []
    for a, b, c, r in zip(*(s.T for s in sides), strict=True):
        found.append(np.linalg.solve(np.diag(b) + np.diag(a[1:], -1) + np.diag(c[:-1], 1), r))
    return np.stack(found, axis=1).reshape(np.shape(right))
