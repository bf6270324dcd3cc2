"""Float arithmetic rounded once: fused products and directed rounding from float64 operations and their exact errors.

A sum or product of float64 numbers is the rounded result plus an error that is itself a float64 number (Knuth, Dekker).  Rounded
to *odd* (where inexact, the neighbour whose last bit is 1), a result can be rounded again to a shorter type, in any direction, as
if once (Boldo and Melquiond, IEEE Trans. Comp. 57, 2008); so is `fma` made.  Numbers whose parts would leave the range of float64
go through exact fractions, one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
_SPLIT: Final = 134217729.0  # 2^27 + 1 cuts 53 bits in two
_LARGE, _SMALL = 2.0**450, 2.0**-450


def sum_error(a: Float64, b: Float64, total: Float64) -> Float64:
    """Return a + b - total exactly, where total is a + b rounded."""
    part = total - a
    return (a - (total - part)) + (b - part)


def _product_error(a: Float64, b: Float64, product: Float64) -> Float64:
    high_a, high_b = a * _SPLIT, b * _SPLIT
    high_a, high_b = high_a - (high_a - a), high_b - (high_b - b)
    low_a, low_b = a - high_a, b - high_b
    return low_a * low_b - (((product - high_a * high_b) - low_a * high_b) - high_a * low_b)


def to_odd(near: Float64, error: Float64) -> Float64:
    """Return near + error rounded to odd; near is that sum rounded to nearest."""
    bits = np.ascontiguousarray(near).view(np.int64)
    away = np.where((error > 0) == (near > 0), 1, -1)
    move = (error != 0) & ~np.isnan(error) & np.isfinite(near) & (bits & 1 == 0)
    return np.where(move, bits + away, bits).view(np.float64)


def sum_to_odd(a: Float64, b: Float64) -> Float64:
    """Return a + b rounded to odd."""
    total = a + b
    return to_odd(total, sum_error(a, b, total))


def nudge(near: Any, error: Any, way: str) -> Any:
    """Return near + error rounded in a direction (`rz rm rp`); near is it rounded to nearest; of error the sign is enough."""
    error = np.where(np.isnan(error), 0, error)  # infinity less infinity: nothing is missing
    toward = near.dtype.type(0) if way == "rz" else near.dtype.type(-np.inf if way == "rm" else np.inf)
    wrong = {"rz": (error != 0) & ((error < 0) == (near > 0)), "rm": error < 0, "rp": error > 0}[way]
    return np.where(wrong & ~np.isnan(near), np.nextafter(near, toward), near)


def _exact(a: float, b: float, c: float) -> tuple[float, float]:
    whole = Fraction(a) * Fraction(b) + Fraction(c)
    if not whole:
        return a * b + c, 0.0
    try:
        near = float(whole)
    except OverflowError:
        near = math.inf if whole > 0 else -math.inf
    rest = (-1 if near > 0 else 1) if math.isinf(near) else whole - Fraction(near)
    return (near or math.copysign(0.0, whole)), float((rest > 0) - (rest < 0))


def fused(a: Float64, b: Float64, c: Float64) -> tuple[Float64, Float64]:
    """Return a b + c rounded to nearest float64, and the sign of what is missing."""
    a, b, c = (np.ascontiguousarray(x, np.float64) for x in np.broadcast_arrays(a, b, c))
    product = a * b
    error = _product_error(a, b, product)
    middle = c + error
    total = product + middle
    rest = sum_to_odd(sum_error(c, error, middle), sum_error(product, middle, total))
    near = total + rest
    missing = sum_error(total, rest, near)
    plain = ~np.isfinite(a) | ~np.isfinite(b) | ~np.isfinite(c) | (a == 0) | (b == 0)
    infinite = np.isinf(c) & np.isfinite(a) & np.isfinite(b)  # the product is finite, though float64 may not hold it
    near = np.where(infinite, c, np.where(plain, product + c, near))
    missing = np.where(plain, 0.0, np.sign(missing))
    unsafe = ~plain & (_outside(a, 1) | _outside(b, 1) | ((c != 0) & _outside(c, 2)))
    for k in np.flatnonzero(unsafe):
        near[k], missing[k] = _exact(float(a[k]), float(b[k]), float(c[k]))
    return near, missing


def _outside(x: Float64, power: int) -> NDArray[np.bool_]:
    size = np.abs(x)
    return (size > _LARGE**power) | (size < _SMALL**power)


def directed(op: str, values: Sequence[Float64], way: str) -> Float64:
    """Return a float64 operation (`add sub mul fma div rcp sqrt`) rounded in a direction."""
    one = np.ones_like(values[0])
    if op == "rcp":
        op, values = "div", (one, values[0])
    if op in ("add", "sub"):
        b = values[1] if op == "add" else -values[1]
        near, missing = fused(values[0], one, b)
        zero = (near == 0) & (values[0] != 0)  # the sum of opposite numbers is -0 when rounding down
        near = np.where(zero, -0.0 if way == "rm" else 0.0, near)
    elif op in ("mul", "fma"):
        near, missing = fused(values[0], values[1], values[2] if op == "fma" else np.copysign(0.0, values[0] * values[1]))
    elif op == "div":
        near = values[0] / values[1]
        missing = _remainder(near, values[1], values[0]) * np.sign(values[1])
    elif op == "sqrt":
        near = np.sqrt(values[0])
        missing = _remainder(near, near, values[0])
    else:
        raise ValueError(f"`{op}` has no directed rounding")
    return np.asarray(nudge(near, missing, way))


def _remainder(quotient: Float64, divisor: Float64, whole: Float64) -> Float64:
    """Return the sign of whole - quotient divisor, 0 where something is not finite."""
    good = np.isfinite(quotient) & np.isfinite(divisor) & np.isfinite(whole)
    rest, sign = fused(-quotient, divisor, whole)
    return np.where(good, np.where(rest != 0, np.sign(rest), sign), 0.0)
