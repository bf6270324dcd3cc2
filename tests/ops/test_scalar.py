"""Pure operations of the interpreter against Python's integers, exact fractions and loops over bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from gewu.ops import scalar
from gewu.ops.ir import WIDTH

ONE = 0x3F800000


def apply(name: str, type_: str, mods: str, *args: Any) -> Any:
    return scalar.apply(name, type_, tuple(mods.split()), [np.asarray(a) for a in args])


def edges(width: int) -> list[int]:
    top = 1 << width
    return [0, 1, 2, 3, 7, top // 2 - 1, top // 2, top // 2 + 1, top - 2, top - 1, 0x5A5A5A5A5A5A5A5A % top]


def value(bits: int, type_: str) -> int:
    width = WIDTH[type_]
    return bits - (1 << width) if type_[0] == "s" and bits >> (width - 1) else bits


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


INTEGER: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, w: a + b,
    "sub": lambda a, b, w: a - b,
    "mul": lambda a, b, w: a * b,
    "mulhi": lambda a, b, w: a * b >> w,
    "div": lambda a, b, w: quotient(a, b) if b else -1,
    "rem": lambda a, b, w: a - quotient(a, b) * b if b else a,
    "min": lambda a, b, w: min(a, b),
    "max": lambda a, b, w: max(a, b),
    "and": lambda a, b, w: a & b,
    "or": lambda a, b, w: a | b,
    "xor": lambda a, b, w: a ^ b,
}


@pytest.mark.parametrize("type_", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", [*INTEGER, "mulwide", "shr", "shl"])
def test_integers_are_those_of_python(name: str, type_: str) -> None:
    width, kind = WIDTH[type_], scalar.UNSIGNED[WIDTH[type_]]
    if name == "mulwide" and width == 64:
        return
    if name == "mulhi" and width == 16:
        return
    first, second = edges(width), [0, 1, 5, width - 1, width, 200] if name in ("shr", "shl") else edges(width)
    a, b = (np.array(x, np.uint64) for x in zip(*((x, y) for x in first for y in second), strict=True))
    by = np.uint32 if name in ("shr", "shl") else kind
    got = apply(name, type_, "", a.astype(kind), b.astype(by)).tolist()
    for x, y, found in zip(a.tolist(), b.tolist(), got, strict=True):
        p, q = value(x, type_), y if name in ("shr", "shl") else value(y, type_)
        if name == "mulwide":
            assert found == p * q % (1 << 2 * width)
        elif name in ("shl", "shr"):
            assert found == (p << q if name == "shl" else p >> q) % (1 << width)
        else:
            assert found == INTEGER[name](p, q, width) % (1 << width), (x, y)


def test_bit_operations_are_those_of_a_loop_over_bits() -> None:
    rng = np.random.default_rng(1)
    for width, kind in ((32, np.uint32), (64, np.uint64)):
        a = np.concatenate([np.array(edges(width), kind), rng.integers(0, 2**width, 80, dtype=np.uint64).astype(kind)])
        place, length = (rng.integers(0, 70, len(a)).astype(np.uint32) for _ in range(2))
        base = a[::-1].copy()
        brev, popc, clz = (apply(n, f"b{width}", "", a) for n in ("brev", "popc", "clz"))
        flo, flos, shift = (
            apply("flo", f"u{width}", "", a),
            apply("flo", f"s{width}", "", a),
            apply("flo", f"u{width}", "shiftamt", a),
        )
        field, fields = (apply("bfe", f"{s}{width}", "", a, place, length) for s in "us")
        insert = apply("bfi", f"b{width}", "", a, base, place, length)
        for k, x in enumerate(a.tolist()):
            p, n = int(place[k]), int(length[k])
            assert brev[k] == int(f"{x:0{width}b}"[::-1], 2)
            assert popc[k] == x.bit_count() and clz[k] == width - x.bit_length()
            assert flo[k] == (x.bit_length() - 1) % 2**32
            assert shift[k] == (width - x.bit_length() if x else 0xFFFFFFFF)
            size = x if not x >> (width - 1) else ~x % 2**width
            assert flos[k] == (size.bit_length() - 1) % 2**32
            assert field[k] == (x >> p) % 2**n
            sign = x >> min(p + n - 1, width - 1) & 1 if n else 0
            bits = [(x >> j & 1 if j < width and j < p + n else sign) for j in range(p, p + width)]
            assert fields[k] == sum(bit << j for j, bit in enumerate(bits))
            mask = (2**n - 1) << p
            assert insert[k] == (int(base[k]) & ~mask | x << p & mask) % 2**width


def test_bytes_are_picked_and_multiplied() -> None:
    a, b = np.array([0x33221180], np.uint32), np.array([0x776655F4], np.uint32)
    for selector, want in ((0x3210, 0x33221180), (0x7654, 0x776655F4), (0x0008, 0x808080FF), (0x4440, 0xF4F4F480)):
        assert apply("prmt", "b32", "", a, b, np.array([selector], np.uint32))[0] == want
    c = np.array([5], np.uint32)
    signed = 5 + -128 * -12 + 0x11 * 0x55 + 0x22 * 0x66 + 0x33 * 0x77
    assert apply("dp4a", "s32", "s8 s8", a, b, c)[0] == signed
    assert apply("dp4a", "s32", "u8 s8", a, b, c)[0] == signed - 256 * -12 * -1
    assert apply("sad", "s32", "", np.array([2**32 - 3], np.uint32), np.array([4], np.uint32), c)[0] == 12


def exact_neighbours(exact: Fraction, dtype: Any) -> tuple[float, float]:
    """Return the floats of a type below and above a number."""
    near = dtype(float(exact))
    while Fraction(float(near)) > exact:
        near = np.nextafter(near, dtype(-np.inf))
    while Fraction(float(np.nextafter(near, dtype(np.inf)))) <= exact:
        near = np.nextafter(near, dtype(np.inf))
    return float(near), float(near) if Fraction(float(near)) == exact else float(np.nextafter(near, dtype(np.inf)))


def rounded(exact: Fraction, dtype: Any, way: str) -> float:
    below, above = exact_neighbours(exact, dtype)
    if way == "rn":
        low, high = exact - Fraction(below), Fraction(above) - exact
        even = int(dtype(below).view(f"u{np.dtype(dtype).itemsize}")) % 2 == 0
        return below if low < high or (low == high and even) else above
    return above if way == "rp" or (way == "rz" and exact < 0) else below


def hard_cases(dtype: Any, count: int) -> list[Any]:
    """Return a, b, c of which a b + c cancels to its last bits or lies next to a tie."""
    rng = np.random.default_rng(7)
    a, b, c = ((rng.uniform(1, 2, count) * 2.0 ** rng.integers(-8, 8, count)).astype(dtype) for _ in range(3))
    c[::3] = -(a * b)[::3]
    c[1::3] = (a * b)[1::3] * dtype(2.0 ** (np.finfo(dtype).nmant + 1)) * dtype(1.5)
    b[::2] *= dtype(-1)
    return [a, b, c]


@pytest.mark.parametrize("way", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("type_", ["f32", "f64"])
def test_float_arithmetic_is_rounded_once(type_: str, way: str) -> None:
    dtype = np.float32 if type_ == "f32" else np.float64
    a, b, c = hard_cases(dtype, 300)
    bits = [x.view(scalar.UNSIGNED[WIDTH[type_]]) for x in (a, b, c)]
    exact: dict[str, Callable[[Fraction, Fraction, Fraction], Fraction]] = {
        "add": lambda x, y, z: x + z,
        "sub": lambda x, y, z: x - z,
        "mul": lambda x, y, z: x * y,
        "div": lambda x, y, z: x / y,
        "fma": lambda x, y, z: x * y + z,
    }
    for name, function in exact.items():
        chosen = bits if name == "fma" else [bits[0], bits[2]] if name in ("add", "sub") else bits[:2]
        got = apply(name, type_, way, *chosen).view(dtype)
        for k in range(len(a)):
            want = rounded(function(*(Fraction(float(x[k])) for x in (a, b, c))), dtype, way)
            assert float(got[k]) == want, (name, a[k], b[k], c[k])


def test_fused_products_far_from_one_are_rounded_once() -> None:
    big, small, tiny = 1.7e300, 3.1e-300, 5e-324
    cases = [(big, small, -(big * small)), (small, small, tiny), (big, big, -math.inf), (tiny, 0.5, 0.0), (tiny, 0.5, tiny)]
    for a, b, c in cases:
        got = float(apply("fma", "f64", "rn", *(np.array([x]).view(np.uint64) for x in (a, b, c))).view(np.float64)[0])
        assert got == (c if math.isinf(c) else float(Fraction(a) * Fraction(b) + Fraction(c)))


@pytest.mark.parametrize(("type_", "last"), [("f32", 23), ("f64", 52)])
def test_fused_products_next_to_a_tie_fall_to_their_side(type_: str, last: int) -> None:
    dtype = np.float32 if type_ == "f32" else np.float64
    unit = 2.0**-last
    for sign in (
        1,
        -1,
    ):  # the product is half a unit less than a part in 2^46 (2^104): rounded on the way, a tie would go to even
        a, b, c = (np.array([x], dtype) for x in (sign * (1 + unit), unit / 2 * (1 - unit), sign * (1 + unit)))
        got = apply("fma", type_, "rn", *(x.view(scalar.UNSIGNED[WIDTH[type_]]) for x in (a, b, c))).view(dtype)
        assert float(got[0]) == sign * (1 + unit)


def bf16(x: float) -> np.ndarray:
    return (np.array([x], np.float32).view(np.uint32) >> 16).astype(np.uint16)


def test_bfloat16_is_rounded_once_and_in_each_direction() -> None:
    small = 2.0**-30  # 1 + 2^-8 is a tie: what is added decides, though float32 would lose it
    tie = 2.0**-8
    assert apply("fma", "bf16", "rn", bf16(1), bf16(1 + tie * 2), bf16(tie + 0))[0] == 0x3F82
    assert apply("fma", "bf16", "rn", bf16(tie), bf16(1 + 2**-7), bf16(1))[0] == 0x3F81
    for way, above, below in (("rn", 0x3F80, 0x3F80), ("rz", 0x3F80, 0x3F7F), ("rp", 0x3F81, 0x3F80), ("rm", 0x3F80, 0x3F7F)):
        assert apply("add", "bf16", way, bf16(1), bf16(small))[0] == above
        assert apply("add", "bf16", way, bf16(1), bf16(-small))[0] == below
    exact = np.array([1 + 2.0**-8 + 2.0**-40])
    assert apply("cvt", "bf16", "f64 rn", exact.view(np.uint64))[0] == 0x3F81


def f32(*x: float) -> np.ndarray:
    return np.array(x, np.float32).view(np.uint32)


def test_special_floats() -> None:
    nan, inf = math.nan, math.inf
    assert apply("min", "f32", "", f32(nan, 1, 0, -0.0), f32(1, nan, -0.0, 0)).tolist() == [ONE, ONE, 1 << 31, 1 << 31]
    assert apply("max", "f32", "", f32(nan, -0.0), f32(1, 0)).tolist() == [ONE, 0]
    assert np.isnan(apply("max", "f32", "nan", f32(nan), f32(1)).view(np.float32))[0]
    assert apply("add", "f32", "rn sat", f32(2, -1, nan), f32(1, 0, 0)).tolist() == [ONE, 0, 0]
    relu = apply("fma", "f32", "rn relu", f32(-1, 2, nan), f32(1, 1, 1), f32(0, 0, 0)).view(np.float32)
    assert relu[:2].tolist() == [0, 2] and np.isnan(relu[2])
    assert apply("mul", "f32", "rn ftz", f32(-1e-38), f32(0.5))[0] == 1 << 31
    assert apply("add", "f32", "rz", f32(3e38, -3e38), f32(3e38, -3e38)).view(np.float32).tolist() == [
        np.finfo(np.float32).max,
        -np.finfo(np.float32).max,
    ]
    assert apply("mul", "f32", "rz", f32(-inf), f32(1)).view(np.float32)[0] == -inf
    half = apply("add", "f16x2", "rn", np.array([0x3C004000], np.uint32), np.array([0x3C00C000], np.uint32))
    assert half[0] == 0x40000000


@pytest.mark.parametrize(
    ("how", "less", "equal", "unordered"),
    [("eq", 0, 1, 0), ("ne", 1, 0, 0), ("neu", 1, 0, 1), ("lt", 1, 0, 0), ("geu", 0, 1, 1), ("num", 1, 1, 0), ("nan", 0, 0, 1)],
)
def test_comparisons_know_nan(how: str, less: int, equal: int, unordered: int) -> None:
    got = apply("setp", "f32", how, f32(1, 2, math.nan), f32(2, 2, 2))
    assert got.tolist() == [bool(less), bool(equal), bool(unordered)]


def test_conversions() -> None:
    x = f32(2.5, -2.5, 3e9, -3e9, math.nan, 1e20)
    assert apply("cvt", "s32", "f32 rni", x).view(np.int32).tolist() == [2, -2, 2**31 - 1, -(2**31), 0, 2**31 - 1]
    assert apply("cvt", "u32", "f32 rzi", x).tolist() == [2, 0, 3_000_000_000 // 256 * 256, 0, 0, 2**32 - 1]
    assert apply("cvt", "u64", "f32 rpi", x).tolist() == [
        3,
        0,
        3_000_000_000 // 256 * 256,
        0,
        0,
        2**64 - 1 if 1e20 > 2**64 else 0,
    ]
    assert apply("cvt", "s64", "s8", np.array([0x80], np.uint16)).view(np.int64)[0] == -128
    assert apply("cvt", "u8", "s32 sat", np.array([300, 2**32 - 5], np.uint32)).tolist() == [255, 0]
    assert apply("cvt", "f32", "u64 rz", np.array([2**64 - 1], np.uint64)).view(np.float32)[0] == 2.0**64 - 2.0**40
    both = apply("cvt", "f16x2", "f32 rn", f32(1), f32(2))
    assert both[0] == 0x3C004000
