"""Exact identities for each operation on integers, bits, predicates and, where they hold for every input, floats.

A rule takes the values, the type, sources and modifiers and returns a simpler value, or None.
"""

from __future__ import annotations

from typing import Final

from gewu.ops.ir import FLOATS, WIDTH, Instruction, Operand
from gewu.ops.simplify import MASK32, MINUS_ZERO, Rule, Values
from gewu.ops.simplify_float import division_check, multiply_add

_INVERSE = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}
_FLOAT_INVERSE = {"eq": "neu", "neu": "eq", "lt": "geu", "geu": "lt", "gt": "leu", "leu": "gt", "le": "gtu", "gtu": "le"}
_FLOAT_INVERSE |= {"ge": "ltu", "ltu": "ge", "equ": "ne", "ne": "equ", "num": "nan", "nan": "num"}
_HALF = {"b64": 32, "b32": 16}


def _add(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    if type_ in FLOATS:
        return _add_float(v, type_, a, b, mods)
    if b == 0:
        return a
    if type_ == "u32":
        if (both := _two_carries(v, a, b)) is not None:
            return both
        for x, y in ((a, b), (b, a)):
            if (found := _carried(v, x, y)) is not None:
                return found
    for x, y in ((a, b), (b, a)):
        if made := v.made_by(y, "neg"):
            return v.build("sub", type_, (x, made.src[0]))
    if isinstance(b, int) and (made := v.made_by(a, "add", type_)) and isinstance(made.src[1], int):
        return v.build("add", type_, (made.src[0], made.src[1] + b & (1 << WIDTH[type_]) - 1))
    return None


def _add_float(v: Values, type_: str, a: Operand, b: Operand, mods: tuple[str, ...]) -> Operand | None:
    plain = mods in ((), ("rn",))
    for x, y in ((a, b), (b, a)):
        if plain and type_ in MINUS_ZERO and y == MINUS_ZERO[type_]:
            return x
    for x, y in ((a, b), (b, a)):
        if (made := v.made_by(y, "neg", type_)) and not (v.made_by(x, "neg", type_) and x == a):
            return v.build("sub", type_, (x, made.src[0]), mods)
    return None


def _two_carries(v: Values, a: Operand, b: Operand) -> Operand | None:
    """Find (hi(w) >= 1) + (hi(w) >= 2): the carry of three words."""
    halves = []
    for operand, test in ((a, (("ne",), 0)), (b, (("ge",), 2))):
        chosen = v.made_by(operand, "select", "b32")
        made = v.made_by(chosen.src[2], "setp", "u32") if chosen and chosen.src[:2] == (1, 0) else None
        if not made or (made.mods, made.src[1]) != test:
            return None
        halves.append(made.src[0])
    half = v.made_by(halves[0], "hi", "b64")
    return halves[0] if half and halves[0] == halves[1] and _leaves(v, half.src[0]) else None


def _carried(v: Values, upper: Operand, carry: Operand) -> Operand | None:
    """Find `upper + hi(w)` where w is a sum or difference of words extended by zeros: the upper half of the 64-bit one."""
    one = 0
    if made := v.made_by(carry, "add", "u32"):
        if made.src[1] != 1 or not v.made_by(made.src[0], "hi"):
            return None
        carry, one = made.src[0], 1
    half = v.made_by(carry, "hi", "b64")
    if not half:
        return None
    if one:
        wide = v.made_by(half.src[0], "sub", "u64")
        return _borrowed(v, upper, wide, carry) if wide else None
    if wide := v.made_by(half.src[0], "sub", "u64"):
        a, b = (v.extended(s) for s in wide.src)
        if a is None or b is None or upper == 0:
            return None
        c, d = upper, 0
        if made := v.made_by(upper, "sub", "u32"):
            c, d = made.src  # type: ignore[assignment]
        return v.high(v.build("sub", "u64", (v.build("pack", "b64", (a, c)), v.build("pack", "b64", (b, d)))))
    if leaves := _leaves(v, half.src[0]):
        return v.high(v.joined_sum(leaves, upper))
    return _multiplied(v, upper, half.src[0])


def _multiplied(v: Values, upper: Operand, product: Operand) -> Operand | None:
    """Find hi(x y + c) + x h: the upper half of x times the pair (y, h), plus c."""
    terms = v.summands(upper, 3)
    whole = v.made_by(product, "add", "u64")
    parts = whole.src if whole else (product,)
    for number, part in enumerate(parts):
        for place, term in enumerate(terms):
            grown = _with_cross_term(v, part, term)
            if grown is None:
                continue
            total = v.build("add", "u64", (grown, parts[1 - number])) if whole else grown
            found = v.high(total)
            for rest in (*terms[:place], *terms[place + 1 :]):
                found = v.build("add", "u32", (rest, found))
            return found
    return None


def _with_cross_term(v: Values, product: Operand, term: Operand) -> Operand | None:
    """Return the 64-bit product x (y, h) when the first is x y and the second x h."""
    made = v.made_by(product, "mulwide", "u32") or v.made_by(product, "mul", "u64")
    cross = v.made_by(term, "mul")
    if not made or not cross or cross.type not in ("u32", "s32"):
        return None
    short = made.op == "mulwide"
    for a, b in ((made.src[0], made.src[1]), (made.src[1], made.src[0])):
        word = b if short else v.extended(b)
        if word is None:
            continue
        form = v.linear(a) if short else v.linear_low(a)
        for x, h in (cross.src, cross.src[::-1]):
            if v.linear(x) == form:
                first = v.build("cvt", "u64", (a,), ("u32",)) if short else a
                return v.build("mul", "u64", (first, v.build("pack", "b64", (word, h))))
    return None


def _borrowed(v: Values, upper: Operand, wide: Instruction, carry: Operand) -> Operand | None:
    """Turn c + not d + (1 - borrow) into c - d - borrow."""
    if any(v.extended(s) is None for s in wide.src):
        return None
    if made := v.made_by(upper, "not", "b32"):
        rest = v.build("sub", "u32", (0, made.src[0]))
    elif (made := v.made_by(upper, "add", "u32")) and (inner := v.made_by(made.src[1], "not", "b32")):
        rest = v.build("sub", "u32", (made.src[0], inner.src[0]))
    elif made and (inner := v.made_by(made.src[0], "not", "b32")):
        rest = v.build("sub", "u32", (made.src[1], inner.src[0]))
    else:
        rest = v.build("add", "u32", (upper, 1))
    return v.build("add", "u32", (rest, carry))


def _leaves(v: Values, wide: Operand) -> list[Operand]:
    """Return the words whose zero-extended sum a 64-bit value is: two or three, else none."""
    made = v.made_by(wide, "add", "u64")
    if not made:
        return []
    found: list[Operand] = []
    for source in made.src:
        word = v.extended(source)
        if word is not None:
            found.append(word)
        elif inner := _leaves(v, source):
            found += inner
        else:
            return []
    return found if len(found) <= 3 else []


def _sub(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    if type_ in FLOATS:
        made = v.made_by(b, "neg", type_)
        return v.build("add", type_, (a, made.src[0]), mods) if made else None
    if a == b:
        return 0
    if isinstance(b, int):
        return v.build("add", type_, (a, -b & (1 << WIDTH[type_]) - 1))
    return None


def _mul(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    if type_ in FLOATS:
        return None
    return 0 if b == 0 else a if b == 1 else None


def _mulwide(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    if b == 0:
        return 0
    if b == 1:
        return v.build("cvt", f"{type_[0]}{2 * WIDTH[type_]}", (a,), (type_,))
    return None


def _shift(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, n = src
    return a if n == 0 or a == 0 else None


def _and(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    ones = (1 << WIDTH[type_]) - 1
    if b == 0 or a == b or b == ones:
        return 0 if b == 0 else a
    if isinstance(b, int) and (made := v.made_by(a, "and", type_)) and isinstance(made.src[1], int):
        return v.build("and", type_, (made.src[0], made.src[1] & b))
    return None


def _or(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    ones = (1 << WIDTH[type_]) - 1
    if b == 0 or a == b:
        return a
    if b == ones:
        return ones
    return _wide_comparison(v, a, b) if type_ == "pred" else None


def _wide_comparison(v: Values, a: Operand, b: Operand) -> Operand | None:
    """Find hi(x) < hi(y) or (hi(x) = hi(y) and lo(x) < lo(y)): a comparison of 64-bit numbers."""
    strict, both = v.made_by(a, "setp"), v.made_by(b, "and", "pred")
    if not strict or not both or strict.type not in ("u32", "s32") or strict.mods not in (("lt",), ("gt",)):
        return None
    for first, second in (both.src, both.src[::-1]):
        equal, below = v.made_by(first, "setp"), v.made_by(second, "setp", "u32")
        if not equal or not below or equal.mods != ("eq",) or not _same_pair(equal.src, strict.src):
            continue
        if below.mods[0][0] != strict.mods[0][0]:
            continue
        pairs = [v.build("pack", "b64", (low, high)) for low, high in zip(below.src, strict.src, strict=True)]
        return v.build("setp", strict.type[0] + "64", (pairs[0], pairs[1]), below.mods)
    return None


def _same_pair(a: tuple[Operand, ...], b: tuple[Operand, ...]) -> bool:
    return a in (b, b[::-1])


def _xor(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    if b == 0:
        return a
    if a == b:
        return 0
    if b == (1 << WIDTH[type_]) - 1:
        return v.build("not", type_, (a,))
    for x, y in ((a, b), (b, a)):
        chosen = v.made_by(x, "and", "b32")
        both = v.made_by(chosen.src[0], "xor", "b32") if chosen and chosen.src[1] == 1 << 31 else None
        if both and y in both.src:
            return v.build("copysign", "f32", (both.src[0] if both.src[1] == y else both.src[1], y))
    return None


def _not(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    if made := v.made_by(src[0], "not", type_):
        return made.src[0]
    if type_ == "pred" and (made := v.made_by(src[0], "setp")):
        table = _FLOAT_INVERSE if made.type in FLOATS else _INVERSE
        if made.mods[0] in table:
            return v.build("setp", made.type, made.src, (table[made.mods[0]], *made.mods[1:]))
    return None


def _neg(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    made = v.made_by(src[0], "neg", type_)
    return made.src[0] if made else None


def _select(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b, p = src
    if isinstance(p, int):
        return a if p else b
    if a == b:
        return a
    if made := v.made_by(p, "not", "pred"):
        return v.build("select", type_, (b, a, made.src[0]))
    if type_ == "pred" and isinstance(a, int) and isinstance(b, int):
        return p if a else v.build("not", "pred", (p,))
    if (made := v.made_by(a, "select", type_)) and made.src[2] == p:
        return v.build("select", type_, (made.src[0], b, p))
    if (made := v.made_by(b, "select", type_)) and made.src[2] == p:
        return v.build("select", type_, (a, made.src[1], p))
    if (
        (a, b) == (1, 0)
        and type_ == "b32"
        and (made := v.made_by(p, "setp", "u32"))
        and (half := v.made_by(made.src[0], "hi", "b64"))
    ):
        if made.mods == ("ne",) and made.src[1] == 0 and len(_leaves(v, half.src[0])) == 2:
            return made.src[0]
        wide = v.made_by(half.src[0], "sub", "u64")
        if made.mods == ("eq",) and made.src[1] == 0 and wide and all(v.extended(s) is not None for s in wide.src):
            return v.build("add", "u32", (made.src[0], 1))
    return None


def _pack(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    low, high = src
    half = _HALF[type_]
    if isinstance(low, int) and isinstance(high, int):
        return low & (1 << half) - 1 | (high & (1 << half) - 1) << half
    if (a := v.made_by(low, "lo", type_)) and (b := v.made_by(high, "hi", type_)) and a.src[0] == b.src[0]:
        return a.src[0]
    return v.paired(low, high) if type_ == "b64" else None


def _lo(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    value, half = src[0], _HALF[type_]
    if isinstance(value, int):
        return value & (1 << half) - 1
    made = v.defs.get(value)
    if made is None:
        return None
    if made.op == "pack":
        return made.src[0]
    if made.op == "cvt" and made.type in ("u64", "s64") and made.mods in (("u32",), ("s32",)):
        return made.src[0]
    if not v.one_sided(value, "lo"):
        return None
    if type_ == "b32":
        return _narrow_half(v, made)
    if made.op in ("add", "sub", "mul") and made.type in ("u64", "s64"):
        return v.build(made.op, "u32", (v.low(made.src[0]), v.low(made.src[1])))
    if made.op == "shl" and isinstance(made.src[1], int) and made.src[1] < 32:
        return v.build("shl", "b32", (v.low(made.src[0]), made.src[1]))
    if made.op == "mulwide" and WIDTH[made.type] == 32:
        return v.build("mul", "u32", made.src)
    return None


def _narrow_half(v: Values, made: Instruction) -> Operand | None:
    if made.type in ("f16x2", "bf16x2") and made.op in ("add", "sub", "mul", "fma", "min", "max"):
        lows = tuple(v.build("lo", "b32", (s,), (), "b16") for s in made.src)
        return v.build(made.op, made.type[:-2], lows, made.mods)
    if made.type in ("f16x2", "bf16x2") and made.op == "cvt" and len(made.src) == 2:
        return v.build("cvt", made.type[:-2], (made.src[1],), made.mods)
    return None


def _hi(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    value, half = src[0], _HALF[type_]
    if isinstance(value, int):
        return value >> half & (1 << half) - 1
    made = v.defs.get(value)
    if made is None:
        return None
    if made.op == "pack":
        return made.src[1]
    if made.op == "cvt" and made.type in ("u64", "s64") and made.mods == ("u32",):
        return 0
    if made.op == "cvt" and made.type in ("u64", "s64") and made.mods == ("s32",):
        return v.build("shr", "s32", (made.src[0], 31))
    if (
        made.op == "shl"
        and type_ == "b64"
        and made.src[1] == 1
        and (inner := v.made_by(made.src[0], "cvt"))
        and inner.mods == ("s32",)
    ):
        return v.build("shr", "s32", (inner.src[0], 31))
    if not v.one_sided(value, "hi"):
        return None
    if made.op == "shl" and type_ == "b64" and isinstance(made.src[1], int) and 0 < made.src[1] < 32:
        inner = v.defs.get(made.src[0]) if isinstance(made.src[0], str) else None
        if inner and inner.op == "cvt" and inner.mods in (("u32",), ("s32",)):
            return v.build("shr", inner.mods[0], (inner.src[0], 32 - made.src[1]))
    if made.op == "mulwide" and WIDTH[made.type] == 32:
        return v.build("mulhi", made.type, made.src)
    return None


def _setp(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    if type_ in FLOATS:
        return None
    if type_ == "u32" and b == 1 and mods == ("ge",):
        return v.build("setp", "u32", (a, 0), ("ne",))
    if type_ == "u32" and b == 0 and mods in (("ge",), ("lt",)):
        return int(mods[0] == "ge")
    if isinstance(a, int) and isinstance(b, str):
        flipped = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}.get(mods[0], mods[0])
        return v.build("setp", type_, (b, a), (flipped,))
    if a == b:
        return int(mods[0] in ("eq", "le", "ge"))
    if b == 0 and mods[0] in ("eq", "ne") and (made := v.made_by(a, "select")) and made.src[:2] in ((1, 0), (MASK32, 0)):
        return made.src[2] if mods[0] == "ne" else v.build("not", "pred", (made.src[2],))
    return _careful(v, a, b, mods)


def _careful(v: Values, a: Operand, b: Operand, mods: tuple[str, ...]) -> Operand | None:
    """Settle the range check before a square root or a reciprocal that was recognised."""
    if mods not in (("gt",), ("le",)):
        return None
    if b == 0x727FFFFF and (made := v.made_by(a, "add")) and made.src[1] == 0xF3000000:
        return int(mods[0] == "le") if v.settled("rooted", (made.src[0],)) else None
    if b == 0x1FFFFFF and (made := v.made_by(a, "and", "b32")) and made.src[1] == 0x7F800000:
        shifted = v.made_by(made.src[0], "add")
        if shifted and shifted.src[1] == 0x1800000 and v.settled("divided", (0x3F800000, shifted.src[0])):
            return int(mods[0] == "gt")
    return None


def _field(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, position, length = src
    if position == 0 and isinstance(length, int) and length >= WIDTH[type_]:
        return a
    if isinstance(position, int) and isinstance(length, int) and isinstance(a, int) and type_[0] == "u":
        return a >> position & (1 << length) - 1 if position < WIDTH[type_] else 0
    return None


def _move(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    source = src[0]
    if isinstance(source, int):
        return source & (1 << WIDTH[type_]) - 1
    return source if v.graph.widths[source] == ("pred" if type_ == "pred" else f"b{max(16, WIDTH[type_])}") else None


RULES: Final[dict[str, Rule]] = {
    **{
        "add": _add,
        "sub": _sub,
        "mul": _mul,
        "mulwide": _mulwide,
        "shl": _shift,
        "shr": _shift,
        "and": _and,
        "or": _or,
        "xor": _xor,
    },
    **{
        "not": _not,
        "neg": _neg,
        "select": _select,
        "pack": _pack,
        "lo": _lo,
        "hi": _hi,
        "setp": _setp,
        "fma": multiply_add,
        "fchk": division_check,
    },
    **{"bfe": _field, "mov": _move},
}
"""Rules by operation."""
