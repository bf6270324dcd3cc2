"""What each pure operation of `ir` does to bits: the reference semantics, as NumPy functions over lanes.

Registers are unsigned integers of their width, predicates booleans; `unpack` gives one half, named by a modifier.  + - * / sqrt
and `fma` are rounded once, in each type and direction (`rounding`).  `ex2`, `lg2`, `sin`, `tanh`, and `rsqrt` of float64 are
rounded from float64, more accurate than the approximations of a GPU.  NaN is whatever the host makes; the payload means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.ops import rounding
from gewu.ops.ir import FLOATS, WIDTH

Bits = NDArray[Any]

UNSIGNED: Final = {1: np.dtype(bool), **{n: np.dtype(f"u{n // 8}") for n in (8, 16, 32, 64)}}
_SIGNED: Final = {8: np.dtype(np.int8), 16: np.dtype(np.int16), 32: np.dtype(np.int32), 64: np.dtype(np.int64)}
_FLOAT: Final = {"f16": np.dtype(np.float16), "f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}
_DIRECTED: Final = frozenset({"rm", "rp", "rz"})


def result_width(op: str, type_: str) -> int:
    """Return the bits of the register that an operation writes."""
    if op == "setp":
        return 1
    if op in ("popc", "clz", "flo"):
        return 32
    if op in ("mulwide", "unpack"):
        return WIDTH[type_] * 2 if op == "mulwide" else WIDTH[type_] // 2
    return WIDTH[type_] if type_ == "pred" else max(16, WIDTH[type_])


def cut(a: Bits, width: int) -> Bits:
    """Return bits cut or zero-extended to a width."""
    want = UNSIGNED[width]
    return a if a.dtype == want else a.astype(want)


def signed(a: Bits, width: int) -> NDArray[Any]:
    """Return bits as two's complement."""
    return cut(a, width).view(_SIGNED[width])


def to_float(a: Bits, type_: str) -> NDArray[Any]:
    """Return bits as floats: bf16 as float32."""
    if type_ == "bf16":
        return (cut(a, 16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return cut(a, WIDTH[type_]).view(_FLOAT[type_])


def from_float(x: NDArray[Any], type_: str, mods: Sequence[str] = ()) -> Bits:
    """Round floats (float64 or longer) to a type, nearest or as `mods` say, and return the bits."""
    if "sat" in mods:
        x = np.where(np.isnan(x), 0.0, np.clip(x, 0.0, 1.0))
    if "relu" in mods:
        x = np.where(x <= 0, 0.0, x)
    way = next((m for m in mods if m in _DIRECTED), None)
    if type_ == "bf16":
        return _to_bf16(x, way)
    y = x.astype(_FLOAT[type_])
    if way is not None:
        y = rounding.nudge(y, x - y.astype(x.dtype), way)
    if "ftz" in mods and type_ == "f32":
        y = np.where(np.abs(y) < np.float32(1.1754944e-38), np.copysign(np.float32(0), y), y)
    return y.view(UNSIGNED[WIDTH[type_]])


def _to_bf16(x: NDArray[Any], way: str | None) -> Bits:
    single = x.astype(np.float32)
    bits = single.view(np.uint32)
    wide = single.astype(x.dtype)
    inexact = (wide != x) & ~np.isnan(x) & (bits & np.uint32(1) == 0)
    odd = np.where(np.abs(wide) > np.abs(x), bits - np.uint32(1), bits + np.uint32(1))
    bits = np.where(inexact, odd, bits)  # rounded to odd, the second rounding is right
    rest, negative = bits & np.uint32(0xFFFF), bits >> np.uint32(31) == 1
    whole = bits >> np.uint32(16)
    up = {
        None: (rest > 0x8000) | ((rest == 0x8000) & (whole & np.uint32(1) == 1)),
        "rz": np.zeros(bits.shape, np.bool_),
        "rm": (rest != 0) & negative,
        "rp": (rest != 0) & ~negative,
    }[way]
    return np.where(np.isnan(single), np.uint16(0x7FFF), (whole + up).astype(np.uint16))


def apply(op: str, type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    """Return the result of a pure operation with one destination.

    Args:
        op, type_, mods: as in `ir`.
        args: bits, all of one shape.

    Raises:
        InputError: no such operation.
    """
    if type_ in ("f16x2", "bf16x2") and op not in ("mov", "select", "cvt"):
        return _by_halves(op, type_, mods, args)
    special = _SPECIAL.get(op)
    if special is not None:
        return special(type_, mods, args)
    if type_ == "pred":
        return _LOGIC[op](*(cut(a, 1) for a in args))
    if type_ in FLOATS and op in _FLOATING:
        return _float(op, type_, mods, args)
    if op in _INTEGER:
        return _INTEGER[op](type_, mods, args)
    raise InputError("no such operation", value=f"{op}.{type_}")


def _by_halves(op: str, type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    half = type_.removesuffix("x2")
    low = apply(op, half, mods, [cut(cut(a, 32) & np.uint32(0xFFFF), 16) for a in args])
    high = apply(op, half, mods, [cut(cut(a, 32) >> np.uint32(16), 16) for a in args])
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))


# floats
_FLOATING: Final[dict[str, Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "fma": None,
    "div": np.divide,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1.0 / np.sqrt(a),
    "rcp": lambda a: 1.0 / a,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "min": None,
    "max": None,
    "neg": None,
    "abs": None,
    "copysign": None,
}


def _float(op: str, type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    width = WIDTH[type_]
    sign = UNSIGNED[width].type(1 << (width - 1))
    if op in ("neg", "abs", "copysign"):
        a = cut(args[0], width)
        if op == "neg":
            return a ^ sign
        return a & ~sign if op == "abs" else (a & sign) | (cut(args[1], width) & ~sign)
    values = [_flush(to_float(a, type_), type_, mods).astype(np.float64) for a in args]
    way = next((m for m in mods if m in _DIRECTED), None)
    with np.errstate(all="ignore"):
        if op in ("min", "max"):
            return from_float(_extreme(op, values, "nan" in mods), type_, mods)
        if type_ == "f64" and way is not None:
            return from_float(rounding.directed(op, values, way), type_, [m for m in mods if m != way])
        if op == "fma":
            return from_float(_fused(type_, values, way), type_, mods)
        if op in ("add", "sub") and (way is not None or type_ == "bf16"):
            return from_float(rounding.sum_to_odd(values[0], values[1] if op == "add" else -values[1]), type_, mods)
        return from_float(_FLOATING[op](*values), type_, mods)


def _fused(type_: str, values: Sequence[NDArray[np.float64]], way: str | None) -> NDArray[np.float64]:
    """Return a b + c so that rounding it to the type rounds once."""
    if type_ == "f64":
        return rounding.fused(*values)[0]
    product = values[0] * values[1]
    total = product + values[2]
    if way is None and type_ == "f32":
        halfway = total.view(np.uint64) & np.uint64(0x1FFFFFFF) == 0x10000000  # only there a second rounding can err
        some = np.flatnonzero(halfway | (np.abs(total) < 2.0**-125))
        if len(some):
            total[some] = rounding.sum_to_odd(product[some], values[2][some])
        return total
    return rounding.sum_to_odd(product, values[2])


def _extreme(op: str, values: Sequence[NDArray[np.float64]], nan: bool) -> NDArray[np.float64]:
    """Return minima or maxima; -0 is less than +0."""
    a, b = values
    minimum = op == "min"
    if nan:
        found = np.minimum(a, b) if minimum else np.maximum(a, b)
    else:
        found = np.fmin(a, b) if minimum else np.fmax(a, b)
    negative = (np.signbit(a) | np.signbit(b)) if minimum else (np.signbit(a) & np.signbit(b))
    return np.where((a == 0) & (b == 0), np.where(negative, -0.0, 0.0), found)


def _flush(x: NDArray[Any], type_: str, mods: Sequence[str]) -> NDArray[Any]:
    if "ftz" in mods and type_ == "f32":
        return np.where(np.abs(x) < np.float32(1.1754944e-38), np.copysign(np.float32(0), x), x)
    return x


def _compare(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    how = mods[0]
    if type_ in FLOATS:
        a, b = (to_float(x, type_) for x in args)
        nan = np.isnan(a) | np.isnan(b)
        if how in ("num", "nan"):
            return nan if how == "nan" else ~nan
        if how == "ne":
            return (a != b) & ~nan
        if how == "neu":
            return a != b
        base = _ORDER[how.removesuffix("u") if len(how) == 3 else how](a, b)
        return base | nan if len(how) == 3 else base
    if type_ == "pred":
        a, b = (cut(x, 1) for x in args)
    elif type_[0] == "s":
        a, b = (signed(x, WIDTH[type_]) for x in args)
    else:
        a, b = (cut(x, WIDTH[type_]) for x in args)
    return np.not_equal(a, b) if how in ("ne", "neu") else _ORDER[how.removesuffix("u") if len(how) == 3 else how](a, b)


_ORDER: Final[dict[str, Callable[..., Any]]] = {
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def _convert(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    source, rest = mods[0], mods[1:]
    if type_ in ("f16x2", "bf16x2"):
        half = type_.removesuffix("x2")
        high, low = (_convert(half, mods, [a]) for a in args)
        return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))
    rounding = next((m for m in rest if m in _WHOLE), None)
    with np.errstate(all="ignore"):
        if source in FLOATS:
            x = _flush(to_float(args[0], source), source, rest).astype(np.float64)
            if rounding:
                x = _WHOLE[rounding](x)
            if type_ in FLOATS:
                return from_float(x, type_, rest)
            return _to_integer(x if rounding else np.trunc(x), type_)
        wide = signed(args[0], WIDTH[source]) if source[0] == "s" else cut(args[0], WIDTH[source])
        if type_ in FLOATS:
            return from_float(wide.astype(np.longdouble if WIDTH[source] == 64 else np.float64), type_, rest)
        if "sat" in rest:
            low, high = _limits(type_)
            wide = np.clip(wide.astype(object), low, high).astype(_SIGNED[64] if low < 0 else np.uint64)
        width = result_width("cvt", type_)
        narrow = wide.astype(_SIGNED[WIDTH[type_]] if type_[0] == "s" else UNSIGNED[WIDTH[type_]])
        return narrow.astype(_SIGNED[width] if type_[0] == "s" else UNSIGNED[width]).view(UNSIGNED[width])


_WHOLE: Final[dict[str, Callable[..., Any]]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _limits(type_: str) -> tuple[int, int]:
    width = WIDTH[type_]
    return (-(1 << (width - 1)), (1 << (width - 1)) - 1) if type_[0] == "s" else (0, (1 << width) - 1)


def _to_integer(x: NDArray[np.float64], type_: str) -> Bits:
    low, high = _limits(type_)
    kind = _SIGNED[WIDTH[type_]] if type_[0] == "s" else UNSIGNED[WIDTH[type_]]
    inside = (x >= float(low)) & (x < float(high) + (1.0 if WIDTH[type_] < 64 else 0.0))
    value = np.where(inside, x, 0.0).astype(kind)
    value = np.where(x < float(low), kind.type(low), np.where(~inside & ~np.isnan(x), kind.type(high), value)).astype(kind)
    width = result_width("cvt", type_)
    return value.astype(_SIGNED[width] if type_[0] == "s" else UNSIGNED[width]).view(UNSIGNED[width])


# integers
def _plain(function: Callable[..., Any]) -> Callable[..., Bits]:
    def run(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
        width = WIDTH[type_]
        values = [signed(a, width) if type_[0] == "s" else cut(a, width) for a in args]
        with np.errstate(all="ignore"):
            return np.asarray(function(*values)).view(UNSIGNED[width])

    return run


def _mulhi(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    width = WIDTH[type_]
    if width == 64:
        return _mulhi_64(cut(args[0], 64), cut(args[1], 64), type_[0] == "s")
    wide = np.int64 if type_[0] == "s" else np.uint64
    a, b = ((signed(x, width) if type_[0] == "s" else cut(x, width)).astype(wide) for x in args)
    return (a * b >> wide(width)).astype(_SIGNED[width] if type_[0] == "s" else UNSIGNED[width]).view(UNSIGNED[width])


def _mulhi_64(a: Bits, b: Bits, is_signed: bool) -> Bits:
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a1, a0, b1, b0 = a >> half, a & low, b >> half, b & low
    middle = a1 * b0 + (a0 * b0 >> half)
    other = a0 * b1 + (middle & low)
    high = a1 * b1 + (middle >> half) + (other >> half)
    if is_signed:
        high = high - np.where(a.view(np.int64) < 0, b, np.uint64(0)) - np.where(b.view(np.int64) < 0, a, np.uint64(0))
    return high


def _mulwide(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    width = 2 * WIDTH[type_]
    kind = _SIGNED[width] if type_[0] == "s" else UNSIGNED[width]
    a, b = ((signed(x, WIDTH[type_]) if type_[0] == "s" else cut(x, WIDTH[type_])).astype(kind) for x in args)
    return (a * b).view(UNSIGNED[width])


def _divide(type_: str, mods: Sequence[str], args: Sequence[Bits], remainder: bool = False) -> Bits:
    width = WIDTH[type_]
    if type_[0] != "s":
        a, b = (cut(x, width) for x in args)
        safe = np.where(b == 0, UNSIGNED[width].type(1), b)
        quotient = np.where(b == 0, UNSIGNED[width].type((1 << width) - 1), a // safe)
        return np.where(b == 0, a, a % safe) if remainder else quotient
    x, y = (signed(v, width) for v in args)
    negative = (x < 0) != (y < 0)
    top = np.where(x < 0, -x, x).view(UNSIGNED[width])
    bottom = np.where(y < 0, -y, y).view(UNSIGNED[width])
    safe = np.where(bottom == 0, UNSIGNED[width].type(1), bottom)
    size = (top % safe if remainder else top // safe).view(_SIGNED[width])
    found = np.where(x < 0 if remainder else negative, -size, size)
    return np.where(y == 0, x if remainder else _SIGNED[width].type(-1), found).view(UNSIGNED[width])


def _shift(left: bool) -> Callable[..., Bits]:
    def run(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
        width = WIDTH[type_]
        n = cut(args[1], 32)
        over = n >= width
        kind = _SIGNED[width] if type_[0] == "s" and not left else UNSIGNED[width]
        a = cut(args[0], width).view(kind)
        by = np.where(over, width - 1, n).astype(kind)
        if left:
            return np.where(over, UNSIGNED[width].type(0), a << by)
        moved = a >> by
        return (moved if type_[0] == "s" else np.where(over, kind.type(0), moved)).view(UNSIGNED[width])

    return run


def _bfe(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    width = WIDTH[type_]
    a = cut(args[0], width).astype(np.uint64)
    place, length = (cut(x, 32).astype(np.uint64) & np.uint64(0xFF) for x in args[1:3])
    top = np.uint64(width)
    inside = np.where(place < 64, a >> np.minimum(place, np.uint64(63)), np.uint64(0))
    mask = np.where(length >= 64, np.uint64(2**64 - 1), (np.uint64(1) << np.minimum(length, np.uint64(63))) - np.uint64(1))
    field = np.where(length == 0, np.uint64(0), inside & mask)
    if type_[0] == "s":
        at = np.minimum(place + length - np.uint64(1), top - np.uint64(1))
        bit = ((a >> np.minimum(at, np.uint64(63))) & np.uint64(1)).astype(bool) & (length > 0)
        have = np.minimum(length, np.where(place < top, top - place, np.uint64(0)))
        high = np.where(have >= 64, np.uint64(0), ~((np.uint64(1) << np.minimum(have, np.uint64(63))) - np.uint64(1)))
        field = np.where(bit, field | high, field)
    return cut(field, width)


def _bfi(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    width = WIDTH[type_]
    field, base = (cut(x, width).astype(np.uint64) for x in args[:2])
    place, length = (cut(x, 32).astype(np.uint64) & np.uint64(0xFF) for x in args[2:4])
    mask = np.where(length >= 64, np.uint64(2**64 - 1), (np.uint64(1) << np.minimum(length, np.uint64(63))) - np.uint64(1))
    at = np.minimum(place, np.uint64(63))
    mask = np.where(place < 64, mask << at, np.uint64(0))
    return cut((base & ~mask) | ((field << at) & mask), width)


def _brev(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    width = WIDTH[type_]
    a = cut(args[0], width).astype(np.uint64)
    result = np.zeros_like(a)
    for _ in range(width):
        result = (result << np.uint64(1)) | (a & np.uint64(1))
        a = a >> np.uint64(1)
    return cut(result, width)


def _highest(a: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the place of the highest bit, -1 where there is none."""
    for shift in (1, 2, 4, 8, 16, 32):
        a = a | (a >> np.uint64(shift))
    return np.bitwise_count(a).astype(np.int64) - 1


def _flo(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    width = WIDTH[type_]
    a = cut(args[0], width)
    if type_[0] == "s":
        a = np.where(signed(a, width) < 0, ~a, a)
    place = _highest(a.astype(np.uint64))
    found = width - 1 - place if "shiftamt" in mods else place
    return np.where(place < 0, 0xFFFFFFFF, found).astype(np.uint32)


def _prmt(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    a, b, selector = (cut(x, 32).astype(np.uint64) for x in args)
    both = a | (b << np.uint64(32))
    result = np.zeros_like(a)
    for k in range(4):
        nibble = (selector >> np.uint64(4 * k)) & np.uint64(15)
        byte = (both >> (np.uint64(8) * (nibble & np.uint64(7)))) & np.uint64(255)
        replicated = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        result |= np.where(nibble & np.uint64(8), replicated, byte) << np.uint64(8 * k)
    return cut(result, 32)


def _dp4a(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    total = cut(args[2], 32).view(np.int32).astype(np.int64)
    parts = []
    for x, kind in zip(args[:2], mods[:2], strict=True):
        byte = np.int8 if kind[0] == "s" else np.uint8
        parts.append(np.ascontiguousarray(cut(x, 32)).view(byte).reshape(-1, 4).astype(np.int64))
    return (total + (parts[0] * parts[1]).sum(axis=1)).astype(np.uint32)


def _sad(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    a, b = ((signed(x, 32) if type_[0] == "s" else cut(x, 32)).astype(np.int64) for x in args[:2])
    return (np.abs(a - b) + cut(args[2], 32).astype(np.int64)).astype(np.uint32)


def _fma_integer(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    a, b, c = (cut(x, WIDTH[type_]) for x in args)
    return a * b + c


_INTEGER: Final[dict[str, Callable[..., Bits]]] = {
    **{"add": _plain(np.add), "sub": _plain(np.subtract), "mul": _plain(np.multiply), "fma": _fma_integer},
    **{"min": _plain(np.minimum), "max": _plain(np.maximum), "neg": _plain(np.negative), "abs": _plain(np.abs)},
    **{"and": _plain(np.bitwise_and), "or": _plain(np.bitwise_or), "xor": _plain(np.bitwise_xor), "not": _plain(np.invert)},
    **{"mulhi": _mulhi, "mulwide": _mulwide, "div": _divide, "rem": lambda t, m, a: _divide(t, m, a, True)},
    **{"shl": _shift(True), "shr": _shift(False), "bfe": _bfe, "bfi": _bfi, "brev": _brev, "flo": _flo, "prmt": _prmt},
    "popc": lambda t, m, a: np.bitwise_count(cut(a[0], WIDTH[t])).astype(np.uint32),
    "clz": lambda t, m, a: (WIDTH[t] - 1 - _highest(cut(a[0], WIDTH[t]).astype(np.uint64))).astype(np.uint32),
    "dp4a": _dp4a,
    "sad": _sad,
}
_LOGIC: Final[dict[str, Callable[..., Bits]]] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "not": np.logical_not,
}


def _select(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    width = WIDTH[type_]
    return np.where(cut(args[2], 1), cut(args[0], width), cut(args[1], width))


def _pack(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    width, half = WIDTH[type_], WIDTH[type_] // 2
    low, high = (cut(a, half).astype(UNSIGNED[width]) for a in args)
    return low | (high << UNSIGNED[width].type(half))


def _unpack(type_: str, mods: Sequence[str], args: Sequence[Bits]) -> Bits:
    width, half = WIDTH[type_], WIDTH[type_] // 2
    whole = cut(args[0], width)
    return cut(whole >> UNSIGNED[width].type(half) if "high" in mods else whole & UNSIGNED[width].type((1 << half) - 1), half)


_SPECIAL: Final[dict[str, Callable[..., Bits]]] = {
    "mov": lambda t, m, a: cut(a[0], WIDTH[t]),
    "select": _select,
    "pack": _pack,
    "unpack": _unpack,
    "setp": _compare,
    "cvt": _convert,
}
