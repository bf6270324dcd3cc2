"""The functions of a GPU's special function unit on vectors: 2^x, log2, sine, cosine, tanh, in single precision.

Errors against the exact value, measured over the range of normal results: 2^x and log2 2 ulp, sine and cosine 2^-22 absolute for
|x| < 2^15 (beyond that the error grows with x as it does on the device), tanh 2^-20 relative; a GPU's own are 2^-21 to 2^-22.
"""

from __future__ import annotations

import math

from gewu.ops.spmd_emit import Builder, Val, integer, number

_EXP2 = (
    1.535336188319500e-4,
    1.339887440266574e-3,
    9.618437357674640e-3,
    5.550332471162809e-2,
    2.402264791363012e-1,
    6.931472028550421e-1,
)
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2, -0.5)


def polynomial(b: Builder, x: Val, coefficients: tuple[float, ...]) -> Val:
    """Return a polynomial by Horner's rule, highest coefficient first."""
    result = number(x.type, coefficients[0])
    for coefficient in coefficients[1:]:
        result = b.intrinsic("fma", result, x, number(x.type, coefficient))
    return result


def exp2(b: Builder, x: Val, flush: bool = False) -> Val:
    """Return 2^x for float or double; `flush`: zero where the result is subnormal."""
    if x.type == "double":
        return b.intrinsic("exp2", x)
    low, high = number("float", -126.0 if flush else -150.0), number("float", 128.5)
    above = b.compare("fcmp olt", x, low)
    clamped = b.choose(above, low, x)
    clamped = b.choose(b.compare("fcmp ogt", clamped, high), high, clamped)
    magic = number("float", 1.5 * 2.0**23)  # the sum holds the nearest integer in its low bits
    shifted = b.op("fadd", clamped, magic)
    whole = b.op("fsub", shifted, magic)
    power = polynomial(b, b.op("fsub", clamped, whole), (*_EXP2, 1.0))
    bits = b.cast(shifted, "i32")
    if flush:
        scale = b.op("add", b.op("shl", bits, integer("i32", 23)), integer("i32", 127 << 23))
        return b.choose(above, number("float", 0.0), b.op("fmul", power, b.cast(scale, "float")))
    exponent = b.op("sub", bits, integer("i32", 0x4B400000))
    half = b.op("ashr", exponent, integer("i32", 1))  # in two steps, for subnormal results
    for part in (half, b.op("sub", exponent, half)):
        scale = b.op("shl", b.op("add", part, integer("i32", 127)), integer("i32", 23))
        power = b.op("fmul", power, b.cast(scale, "float"))
    return power


def log2(b: Builder, x: Val) -> Val:
    """Return log2(x) for float or double."""
    if x.type == "double":
        return b.intrinsic("log2", x)
    small = b.compare("fcmp olt", x, number("float", 2.0**-126))
    scaled = b.choose(small, b.op("fmul", x, number("float", 2.0**24)), x)
    bits = b.cast(scaled, "i32")
    shifted = b.op("sub", bits, integer("i32", 0x3F3504F3))  # mantissa in [sqrt(1/2), sqrt(2))
    exponent = b.convert("sitofp", b.op("ashr", shifted, integer("i32", 23)), "float")
    exponent = b.op("fsub", exponent, b.choose(small, number("float", 24.0), number("float", 0.0)))
    high = b.op("and", shifted, integer("i32", 0xFF800000))
    mantissa = b.cast(b.op("sub", bits, high), "float")
    one = number("float", 1.0)
    less = b.op("fsub", mantissa, one)
    ratio = b.op("fdiv", less, b.op("fadd", mantissa, one))
    square = b.op("fmul", ratio, ratio)
    series = tuple(2.0 / math.log(2.0) / n for n in (9, 7, 5, 3))
    tail = b.op("fmul", b.op("fmul", polynomial(b, square, series), square), ratio)
    leading = b.op("fmul", ratio, number("float", 2.0 / math.log(2.0)))
    result = b.op("fadd", b.op("fadd", tail, leading), exponent)
    nan, infinity = integer("i32", 0x7FC00000), integer("i32", 0x7F800000)
    positive = b.compare("fcmp ogt", x, number("float", 0.0))
    zero = b.compare("fcmp oeq", x, number("float", 0.0))
    other = b.choose(zero, integer("i32", 0xFF800000), nan)
    result = b.choose(positive, result, b.cast(other, "float"))
    huge = b.compare("fcmp oeq", x, b.cast(infinity, "float"))
    return b.choose(huge, x, result)


def sine(b: Builder, x: Val, cosine: bool) -> Val:
    """Return sin(x) or cos(x) for float or double."""
    if x.type == "double":
        return b.intrinsic("cos" if cosine else "sin", x)
    quarter = b.intrinsic("rint", b.op("fmul", x, number("float", 2.0 / math.pi)))
    rest = x
    for part in (1.5703125, 4.837512969970703e-4, 7.549789948768648e-8):
        rest = b.intrinsic("fma", quarter, number("float", -part), rest)
    square = b.op("fmul", rest, rest)
    odd = b.intrinsic("fma", b.op("fmul", polynomial(b, square, _SIN), square), rest, rest)
    even = b.intrinsic("fma", polynomial(b, square, _COS), square, number("float", 1.0))
    turn = b.intrinsic("fptosi.sat", quarter, result="i32")
    if cosine:
        turn = b.op("add", turn, integer("i32", 1))
    swap = b.compare("icmp ne", b.op("and", turn, integer("i32", 1)), integer("i32", 0))
    sign = b.op("shl", b.op("and", turn, integer("i32", 2)), integer("i32", 30))
    return b.cast(b.op("xor", b.cast(b.choose(swap, even, odd), "i32"), sign), "float")


def tanh(b: Builder, x: Val) -> Val:
    """Return tanh(x) for float or double."""
    if x.type == "double":
        return b.intrinsic("tanh", x)
    size = b.intrinsic("fabs", x)
    power = exp2(b, b.op("fmul", size, number("float", 2.0 / math.log(2.0))))
    one = number("float", 1.0)
    large = b.op("fsub", one, b.op("fdiv", number("float", 2.0), b.op("fadd", power, one)))
    square = b.op("fmul", x, x)
    series = polynomial(b, square, (0.021869488, -0.053968254, 0.13333333, -0.33333333))
    small = b.intrinsic("fma", b.op("fmul", series, square), size, size)
    result = b.choose(b.compare("fcmp olt", size, number("float", 0.25)), small, large)
    return b.intrinsic("copysign", result, x)
