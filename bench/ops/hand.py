"""A loop nest written by hand for each class where one can compete: Numba, threaded over rows or chunks; its arguments.

Matrix products and dense convolutions are left to BLAS and oneDNN, which no short loop nest reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, prange

from bench.ops import nests
from bench.ops.case import Launch

loop = njit(parallel=True, fastmath={"contract", "reassoc", "nsz", "arcp", "afn"}, cache=True, error_model="numpy")
inner = njit(fastmath={"contract", "reassoc", "nsz", "arcp", "afn"}, cache=True, error_model="numpy", inline="always")
ONE, HALF = np.float32(1), np.float32(0.5)
LOWEST = np.float32(-np.inf)


@inner
def _exp(x):
    """Return e^x to about 2 units in the last place: x = k ln 2 + r, polynomial in r (coefficients of Cephes)."""
    x = min(max(x, np.float32(-87)), np.float32(88))
    k = np.floor(x * np.float32(1.44269504) + HALF)
    r = x - k * np.float32(0.693359375) + k * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (p * r * r + r + ONE) * power


@loop
def gelu(x, y, n):
    for i in prange(n):
        z = abs(x[i]) * np.float32(0.70710678)
        t = ONE / (ONE + np.float32(0.3275911) * z)  # Abramowitz and Stegun 7.1.26, 1.5e-7
        p = np.float32(1.061405429) * t - np.float32(1.453152027)
        p = p * t + np.float32(1.421413741)
        p = p * t - np.float32(0.284496736)
        p = p * t + np.float32(0.254829592)
        half_tail = HALF * p * t * _exp(-z * z)
        y[i] = x[i] * (half_tail if x[i] < np.float32(0) else ONE - half_tail)


@loop
def elementwise(a, b, c, alpha, n):
    for i in prange(n):
        c[i] = alpha * a[i] + b[i]


@loop
def relu(x, y, n):
    for i in prange(n):
        y[i] = max(x[i], np.float32(0))


@loop
def silu(x, y, n):
    for i in prange(n):
        y[i] = x[i] / (ONE + _exp(-x[i]))


@loop
def tanh(x, y, n):
    for i in prange(n):
        y[i] = ONE - np.float32(2) / (_exp(np.float32(2) * x[i]) + ONE)


@loop
def sigmoid(x, y, n):
    for i in prange(n):
        y[i] = ONE / (ONE + _exp(-x[i]))


@loop
def exp(x, y, n):
    for i in prange(n):
        y[i] = _exp(x[i])


@loop
def log(x, y, n):
    for i in prange(n):
        y[i] = np.log(x[i])


@loop
def clamp(x, y, low, high, n):
    for i in prange(n):
        y[i] = min(max(x[i], low), high)


@loop
def select(mask, a, b, y, n):
    for i in prange(n):
        p, q = a[i], b[i]
        y[i] = p if mask[i] != 0 else q


@inner
def _multiplied(a, b):
    wide = np.uint64(a) * np.uint64(b)
    return np.uint32(wide >> np.uint64(32)), np.uint32(wide)


@loop
def dropout(x, y, rate, low, high, n):
    factor = ONE / (ONE - rate)
    unit = np.float32(2.0**-24)
    for i in prange(n // 4):
        a, b, c, d = np.uint32(i), np.uint32(0), np.uint32(0), np.uint32(0)
        k0, k1 = np.uint32(low), np.uint32(high)
        for _ in range(10):
            high_a, low_a = _multiplied(np.uint32(0xD2511F53), a)
            high_c, low_c = _multiplied(np.uint32(0xCD9E8D57), c)
            a, b, c, d = high_c ^ b ^ k0, low_c, high_a ^ d ^ k1, low_a
            k0, k1 = np.uint32(k0 + np.uint32(0x9E3779B9)), np.uint32(k1 + np.uint32(0xBB67AE85))
        y[4 * i] = x[4 * i] * factor if np.float32(a >> np.uint32(8)) * unit >= rate else np.float32(0)
        y[4 * i + 1] = x[4 * i + 1] * factor if np.float32(b >> np.uint32(8)) * unit >= rate else np.float32(0)
        y[4 * i + 2] = x[4 * i + 2] * factor if np.float32(c >> np.uint32(8)) * unit >= rate else np.float32(0)
        y[4 * i + 3] = x[4 * i + 3] * factor if np.float32(d >> np.uint32(8)) * unit >= rate else np.float32(0)


@loop
def row_sum(x, y, rows, n):
    for row in prange(rows):
        total = np.float32(0)
        for i in range(n):
            total += x[row, i]
        y[row] = total


@inner
def _largest(row, n):
    most = LOWEST
    for i in range(n):
        most = max(most, row[i])
    return most


@loop
def row_max(x, y, rows, n):
    for row in prange(rows):
        y[row] = _largest(x[row], n)


@loop
def argmax(x, y, rows, n):
    for row in prange(rows):
        most = _largest(x[row], n)
        place = 0
        while x[row, place] != most:
            place += 1
        y[row] = place


@loop
def norm(x, y, rows, n):
    for row in prange(rows):
        total = np.float32(0)
        for i in range(n):
            total += x[row, i] * x[row, i]
        y[row] = np.sqrt(total)


@inner
def _exponentials(row, most, n):
    total = np.float32(0)
    for i in range(n):
        total += _exp(row[i] - most)
    return total


@loop
def logsumexp(x, y, rows, n):
    for row in prange(rows):
        most = _largest(x[row], n)
        y[row] = most + np.log(_exponentials(x[row], most, n))


@loop
def cross_entropy(x, target, loss, rows, n):
    for row in prange(rows):
        most = _largest(x[row], n)
        loss[row] = most + np.log(_exponentials(x[row], most, n)) - x[row, target[row]]


@loop
def scan(x, y, rows, n):
    for row in prange(rows):
        total = np.float32(0)
        for i in range(n):
            total += x[row, i]
            y[row, i] = total


@loop
def softmax(x, y, rows, n):
    for row in prange(rows):
        most = _largest(x[row], n)
        total = np.float32(0)
        for i in range(n):
            e = _exp(x[row, i] - most)
            y[row, i] = e
            total += e
        factor = ONE / total
        for i in range(n):
            y[row, i] *= factor


@inner
def _moments(row, n):
    total, squares = np.float32(0), np.float32(0)
    for i in range(n):
        total += row[i]
        squares += row[i] * row[i]
    return total, squares


@loop
def layernorm(x, gain, bias, y, eps, rows, n):
    for row in prange(rows):
        total, squares = _moments(x[row], n)
        mean = total / np.float32(n)
        factor = ONE / np.sqrt(squares / np.float32(n) - mean * mean + eps)
        for i in range(n):
            y[row, i] = (x[row, i] - mean) * factor * gain[i] + bias[i]


@loop
def rmsnorm(x, gain, y, eps, rows, n):
    for row in prange(rows):
        _, squares = _moments(x[row], n)
        factor = ONE / np.sqrt(squares / np.float32(n) + eps)
        for i in range(n):
            y[row, i] = x[row, i] * factor * gain[i]


@loop
def batchnorm(x, gain, bias, y, eps, batch, channels, places):
    for c in prange(channels):
        total, squares = np.float32(0), np.float32(0)
        for b in range(batch):
            t, s = _moments(x[b, c], places)
            total += t
            squares += s
        count = np.float32(batch * places)
        mean = total / count
        scale = gain[c] / np.sqrt(squares / count - mean * mean + eps)
        shift = bias[c] - mean * scale
        for b in range(batch):
            for p in range(places):
                y[b, c, p] = x[b, c, p] * scale + shift


@loop
def groupnorm(x, gain, bias, y, eps, batch, channels, places, width):
    groups = channels // width
    for g in prange(batch * groups):
        b, first = g // groups, g % groups * width
        total, squares = np.float32(0), np.float32(0)
        for c in range(first, first + width):
            t, s = _moments(x[b, c], places)
            total += t
            squares += s
        count = np.float32(width * places)
        mean = total / count
        factor = ONE / np.sqrt(squares / count - mean * mean + eps)
        for c in range(first, first + width):
            scale = gain[c] * factor
            shift = bias[c] - mean * scale
            for p in range(places):
                y[b, c, p] = x[b, c, p] * scale + shift


STREAMS = (elementwise, relu, gelu, silu, tanh, sigmoid, exp, log, clamp, select, dropout, argmax, norm, logsumexp, scan)
ROWS = (softmax, layernorm, rmsnorm, batchnorm, groupnorm, cross_entropy)
LOOPS: dict[str, Any] = {
    **{f.__name__: f for f in STREAMS + ROWS},
    **{"sum": row_sum, "max": row_max},
    **{f.__name__: f for f in vars(nests).values() if hasattr(f, "py_func")},
}


def ways(cls: str, launch: Launch) -> list[Callable[[], Any]]:
    """Return the loop nest of a class on the arguments of a launch, as a list of one; empty where there is none."""
    if cls not in LOOPS:
        return []
    function, args = LOOPS[cls], launch.args
    return [lambda: function(*args)]
