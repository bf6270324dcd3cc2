"""What the arithmetic of PTX means in `ir`: integers, floats, logic, comparisons, conversions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from gewu.ops import ir
from gewu.ops.ir import WIDTH, Operand
from gewu.ops.ptx_syntax import Item, Number
from gewu.ops.ptx_write import Line, Writer, width_of

_ROUND: Final = ("rn", "rz", "rm", "rp")
_KEPT: Final = frozenset({*_ROUND, "rni", "rzi", "rmi", "rpi", "sat", "ftz", "approx", "relu", "nan", "shiftamt"})
_INTEGERS: Final = ("u16", "s16", "u32", "s32", "u64", "s64")
_FLOATS: Final = ("f16", "bf16", "f32", "f64", "f16x2", "bf16x2")
_SINGLE: Final = ("f16", "bf16", "f32", "f64")
_BITS: Final = ("b16", "b32", "b64")
_RELATIONS: Final = ("eq", "ne", "lt", "le", "gt", "ge")
_UNORDERED: Final = ("equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")
_UNSIGNED: Final = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


@dataclass(frozen=True, slots=True)
class Rule:
    """How an instruction is read: its handler, the types and modifiers that it may have, how many types and operands."""

    handler: Callable[[Writer, Line], None]
    types: Sequence[str] = ()
    mods: Sequence[str] = ()
    items: tuple[int, int] = (0, 0)
    count: tuple[int, int] = (1, 1)


def _kept(x: Line) -> list[str]:
    """Return the modifiers that `ir` knows by the same name."""
    mods = ["nan" if m == "NaN" else "approx" if m == "full" else m for m in x.mods]
    return [m for m in mods if m in _KEPT]


def _plain(op: str) -> Callable[[Writer, Line], None]:
    """Return the handler of an instruction that is one operation of `ir` whose operands all have its type."""

    def handler(w: Writer, x: Line) -> None:
        sources = [w.source(item, x.type) for item in x.items[1:]]
        w.emit(op, x.type, [w.target(x.items[0], x.type)], sources, _kept(x))

    return handler


def _extreme(w: Writer, x: Line) -> None:
    sources = [w.source(item, x.type) for item in x.items[1:]]
    if len(sources) == 3:
        sources = [w.make(x.op, x.type, *sources[:2], mods=_kept(x)), sources[2]]
    w.emit(x.op, x.type, [w.target(x.items[0], x.type)], sources, _kept(x))


def _sum(w: Writer, x: Line) -> None:
    type_, target = x.type, w.target(x.items[0], x.type)
    a, b = (w.source(i, type_) for i in x.items[1:3])
    if "cc" in x.mods or x.op[3:] == "c":
        if type_ not in ("u32", "s32", "u64", "s64"):
            raise w.refuse("a carry of this type", type_)
        _carry(w, target, (x.op[:3], f"u{type_[1:]}"), (a, b), x.op[3:] == "c", "cc" in x.mods)
    elif "sat" in x.mods and type_ not in ir.FLOATS:
        if type_ != "s32":
            raise w.refuse("saturation of this type", type_)
        wide = w.make(x.op, "s64", *(_extended(w, v, "s32", "s64") for v in (a, b)))
        low = w.make("max", "s64", wide, (1 << 64) - (1 << 31))
        w.emit("cvt", "s32", [target], [w.make("min", "s64", low, (1 << 31) - 1)], ["s64"])
    else:
        w.emit(x.op, type_, [target], [a, b], _kept(x))


def _extended(w: Writer, value: Operand, type_: str, wide: str) -> Operand:
    if isinstance(value, int):
        negative = type_[0] == "s" and value >> (WIDTH[type_] - 1) & 1
        return value | ((1 << WIDTH[wide]) - (1 << WIDTH[type_]) if negative else 0)
    return w.make("cvt", wide, value, mods=(type_,))


def _carry(w: Writer, target: str, what: tuple[str, str], sources: tuple[Operand, Operand], used: bool, kept: bool) -> None:
    """Add or subtract with the carry (the borrow) that goes in and comes out."""
    op, type_ = what
    if not w.carry:
        w.carry = "carry"
        w.widths["carry"] = "pred"
        if used:
            raise w.refuse("a carry that is not set")
    total = w.make(op, type_, *sources)
    out = w.make("setp", type_, *((total, sources[0]) if op == "add" else sources), mods=("lt",))
    if used:
        bit = w.make("select", f"b{type_[1:]}", 1, 0, w.carry)
        second = w.make(op, type_, total, bit)
        over = w.make("setp", type_, *((second, total) if op == "add" else (total, bit)), mods=("lt",))
        out, total = w.make("or", "pred", out, over), second
    w.emit("mov", f"b{type_[1:]}", [target], [total])
    if kept:
        w.emit("mov", "pred", ["carry"], [out])


def _product(w: Writer, x: Line) -> tuple[Operand, str]:
    """Return the product of the first two sources and its type."""
    type_ = x.type
    a, b = (w.source(i, type_) for i in x.items[1:3])
    how = x.one_of("lo", "hi", "wide")
    if x.op[3:] == "24":
        return _product24(w, (a, b), type_, how)
    double = f"{type_[0]}{2 * WIDTH[type_]}"
    if how == "wide":
        if WIDTH[type_] == 64:
            raise w.refuse("a product of 128 bits")
        return w.make("mulwide", type_, a, b, width=f"b{2 * WIDTH[type_]}"), double
    if how == "hi" and WIDTH[type_] == 16:
        return w.halves(w.make("mulwide", type_, a, b, width="b32"), "b32")[1], type_
    if not how:
        raise w.refuse("a product of integers without lo, hi or wide")
    return w.make("mulhi" if how == "hi" else "mul", type_, a, b), type_


def _product24(w: Writer, sources: Sequence[Operand], type_: str, how: str) -> tuple[Operand, str]:
    if type_ not in ("u32", "s32") or how == "wide":
        raise w.refuse("a product of 24 bits of this type", type_)
    a, b = (w.make("bfe", type_, v, 0, 24) for v in sources)
    if how == "lo":
        return w.make("mul", type_, a, b), type_
    wide = w.make("mulwide", type_, a, b, width="b64")
    return w.halves(w.make("shr", f"{type_[0]}64", wide, 16), "b64")[0], type_


def _multiply(w: Writer, x: Line) -> None:
    if x.type in ir.FLOATS:
        return _plain("mul")(w, x)
    if "ftz" in x.mods or "sat" in x.mods or x.one_of(*_ROUND):
        raise w.refuse("a modifier of floats on integers")
    how = x.one_of("lo", "hi", "wide")
    op = {"lo": "mul", "hi": "mulhi", "wide": "mulwide"}.get(how, "")
    if op and x.op == "mul" and not (how == "hi" and WIDTH[x.type] == 16) and not (how == "wide" and WIDTH[x.type] == 64):
        out = f"{x.type[0]}{2 * WIDTH[x.type]}" if how == "wide" else x.type
        return w.emit(op, x.type, [w.target(x.items[0], out)], [w.source(i, x.type) for i in x.items[1:3]])
    value, type_ = _product(w, x)
    w.emit("mov", width_of(type_), [w.target(x.items[0], type_)], [value])


def _multiply_add(w: Writer, x: Line) -> None:
    if x.type in ir.FLOATS:
        return _plain("fma")(w, x)
    if "ftz" in x.mods or "sat" in x.mods or x.one_of(*_ROUND):
        raise w.refuse("a modifier that is not read")
    value, type_ = _product(w, x)
    term, target, unsigned = w.source(x.items[3], type_), w.target(x.items[0], type_), f"u{WIDTH[type_]}"
    if x.op == "madc" or "cc" in x.mods:
        _carry(w, target, ("add", unsigned), (value, term), x.op == "madc", "cc" in x.mods)
    else:
        w.emit("add", type_, [target], [value, term])


def _logic(w: Writer, x: Line) -> None:
    w.emit(x.op, x.type, [w.target(x.items[0], x.type)], [w.source(i, x.type) for i in x.items[1:]])


def _lop3(w: Writer, x: Line) -> None:
    table = x.items[4]
    if not isinstance(table, Number) or not 0 <= table.value < 256 or table.width:
        raise w.refuse("a table that is no number below 256")
    value = w.lop3(table.value, [w.source(i, "b32") for i in x.items[1:4]])
    w.emit("mov", "b32", [w.target(x.items[0], "b32")], [value])


def _shift(w: Writer, x: Line) -> None:
    type_ = x.type if x.op == "shl" else x.type.replace("b", "u")
    w.emit(x.op, type_, [w.target(x.items[0], type_)], [w.source(x.items[1], type_), w.source(x.items[2], "u32")])


def _mask(w: Writer, x: Line) -> None:
    """As many ones as told, from the bit told on."""
    place, count = (w.source(i, "u32") for i in x.items[1:3])
    if x.one_of("wrap", "clamp") == "wrap":
        place, count = (w.make("and", "b32", i, 31) for i in (place, count))
    ones = w.make("sub", "u32", w.make("shl", "b32", 1, count), 1)
    w.emit("shl", "b32", [w.target(x.items[0], "b32")], [ones, place])


def _funnel(w: Writer, x: Line) -> None:
    left, mode = "l" in x.mods, x.one_of("wrap", "clamp")
    if not mode or left == ("r" in x.mods):
        raise w.refuse("a funnel shift without its direction or mode")
    a, b, n = (w.source(i, "u32") for i in x.items[1:4])
    if isinstance(n, int):
        n = n & 31 if mode == "wrap" else min(n, 32)
    else:
        n = w.make("and", "b32", n, 31) if mode == "wrap" else w.make("min", "u32", n, 32)
    shifted = w.make("shl" if left else "shr", "b64" if left else "u64", w.make("pack", "b64", a, b), n)
    w.emit("mov", "b32", [w.target(x.items[0], "b32")], [w.halves(shifted, "b64")[left]])


def _field(w: Writer, x: Line) -> None:
    values = 1 if x.op == "bfe" else 2
    sources = [w.source(item, x.type if k < values else "u32") for k, item in enumerate(x.items[1:])]
    w.emit(x.op, x.type, [w.target(x.items[0], x.type)], sources)


def _count(op: str) -> Callable[[Writer, Line], None]:
    def handler(w: Writer, x: Line) -> None:
        w.emit(op, x.type, [w.target(x.items[0], "b32")], [w.source(x.items[1], x.type)], _kept(x))

    return handler


def _dot(w: Writer, x: Line) -> None:
    signs = [t[0] + "8" for t in x.types]
    out = "s32" if "s8" in signs else "u32"
    w.emit("dp4a", out, [w.target(x.items[0], out)], [w.source(i, "b32") for i in x.items[1:4]], signs)


def _select(w: Writer, x: Line) -> None:
    a, b = (w.source(i, x.type) for i in x.items[1:3])
    w.emit("select", f"b{WIDTH[x.type]}", [w.target(x.items[0], x.type)], [a, b, w.source(x.items[3], "pred")])


def _select_by_sign(w: Writer, x: Line) -> None:
    kind, type_ = x.types[1], x.types[0]
    if kind not in ("s32", "f32"):
        raise w.refuse("slct by this type", kind)
    test = w.make("setp", kind, w.source(x.items[3], kind), 0, mods=("ge", *_kept(x)))
    a, b = (w.source(i, type_) for i in x.items[1:3])
    w.emit("select", f"b{WIDTH[type_]}", [w.target(x.items[0], type_)], [a, b, test])


def _comparison(w: Writer, x: Line) -> str:
    type_, how = x.type, x.one_of(*_RELATIONS, *_UNORDERED, *_UNSIGNED)
    allowed = (*_RELATIONS, *_UNORDERED) if type_ in _SINGLE else ("eq", "ne") if type_[0] == "b" else (*_RELATIONS, *_UNSIGNED)
    if how not in allowed:
        raise w.refuse("a comparison that is not read", ".".join((*x.mods, type_)))
    sources = [w.source(i, type_) for i in x.items[1:3]]
    if type_[0] == "b" and type_ not in _SINGLE:
        type_ = f"u{type_[1:]}"
    return w.make("setp", type_, *sources, mods=(_UNSIGNED.get(how, how), *(m for m in x.mods if m == "ftz")))


def _joined(w: Writer, x: Line, values: list[str]) -> list[str]:
    """Return predicates combined with the last operand."""
    join = x.one_of("and", "or", "xor")
    if bool(join) != (len(x.items) == 4):
        raise w.refuse("a predicate to combine with, without its operation, or the other way round")
    if not join:
        return values
    other = w.source(x.items[3], "pred")
    return [w.make(join, "pred", value, other) for value in values]


def _set_predicate(w: Writer, x: Line) -> None:
    names = w.pair(x.items[0])
    test = _comparison(w, x)
    values = _joined(w, x, [test] if names[1] == "_" else [test, w.make("not", "pred", test)])
    for name, value in zip(names, values, strict=False):
        if name != "_":
            w.emit("mov", "pred", [w.target(name, "pred")], [value])


def _set(w: Writer, x: Line) -> None:
    out = x.types[0]
    if out not in ("u32", "s32", "f32"):
        raise w.refuse("set with a result of this type", out)
    test = _joined(w, x, [_comparison(w, x)])[0]
    w.emit("select", "b32", [w.target(x.items[0], out)], [0x3F800000 if out == "f32" else 0xFFFFFFFF, 0, test])


def _test(w: Writer, x: Line) -> None:
    kind, type_ = x.mods[0], x.type
    size = w.make("abs", type_, w.source(x.items[1], type_))
    infinity, least = (0x7F800000, 0x00800000) if type_ == "f32" else (0x7FF << 52, 1 << 52)
    simple = {"finite": "lt", "infinite": "eq", "number": "le", "notanumber": "nan"}
    if kind in simple:
        test = w.make("setp", type_, size, infinity, mods=(simple[kind],))
    else:
        normal = w.make("setp", type_, size, least, mods=("ge" if kind == "normal" else "lt",))
        test = w.make("and", "pred", normal, w.make("setp", type_, size, infinity, mods=("lt",)))
    w.emit("mov", "pred", [w.target(x.items[0], "pred")], [test])


def _move(w: Writer, x: Line) -> None:
    target, source, width = x.items[0], x.items[1], WIDTH[x.type]
    if isinstance(target, tuple):
        _spread(w, target, w.source(source, x.type), width)
    elif isinstance(source, tuple):
        w.emit("mov", f"b{width}", [w.target(target, x.type)], [_gathered(w, source, width)])
    else:
        value = w.source(source, x.type)
        w.emit("mov", width_of(x.type), [w.target(target, x.type)], [value])


def _spread(w: Writer, targets: tuple[Item, ...], value: Operand, width: int) -> None:
    if len(targets) not in (2, 4) or width // len(targets) < 16:
        raise w.refuse("a vector of this size")
    if len(targets) == 4:
        for part, half in zip((targets[:2], targets[2:]), w.halves(value, f"b{width}"), strict=True):
            _spread(w, part, half, width // 2)
    else:
        w.emit("unpack", f"b{width}", [w.target(t, f"b{width // 2}") for t in targets], [value])


def _gathered(w: Writer, parts: tuple[Item, ...], width: int) -> Operand:
    if len(parts) not in (2, 4) or width // len(parts) < 16:
        raise w.refuse("a vector of this size")
    if len(parts) == 4:
        return w.make("pack", f"b{width}", *(_gathered(w, p, width // 2) for p in (parts[:2], parts[2:])))
    return w.make("pack", f"b{width}", *(w.source(p, f"b{width // 2}") for p in parts))


def _convert(w: Writer, x: Line) -> None:
    out, type_ = x.types
    keep = _kept(x)
    if out in ("f16x2", "bf16x2"):
        if type_ != "f32" or len(x.items) != 3:
            raise w.refuse("a conversion that is not read", x.word)
        sources = [w.source(i, type_) for i in x.items[1:3]]
        return w.emit("cvt", out, [w.target(x.items[0], out)], sources, [type_, *keep])
    whole = type_ in ir.FLOATS and out not in ir.FLOATS and out != "tf32" and not x.one_of("rni", "rzi", "rmi", "rpi")
    if len(x.items) != 2 or "x2" in type_ or type_ == "tf32" or whole or ("satfinite" in x.mods and out != "tf32"):
        raise w.refuse("a conversion that is not read", x.word)
    value = w.source(x.items[1], type_, loose=True)
    if "rna" in x.mods or out == "tf32":
        return _to_tf32(w, x, value)
    value = w.fit(value, width_of(type_))
    if WIDTH[type_] == 8:
        value, type_ = _byte(w, value, type_), type_[0] + "32"
    target = w.target(x.items[0], out, loose=True)
    if WIDTH[out] == 8:
        value = _to_byte(w, value, out, type_, keep)
        out = type_ = out[0] + "32"
        keep = []
    have = w.widths[target]
    if have == "pred":
        raise w.refuse("a predicate as the result of a conversion")
    changes = out != type_ or bool(keep)
    if have == width_of(out):
        w.emit("cvt" if changes else "mov", out if changes else have, [target], [value], [type_, *keep] if changes else [])
        return
    value = w.make("cvt", out, value, mods=(type_, *keep)) if changes else value
    sign = out[0] if out[0] in "us" else "u"
    w.emit("cvt", f"{sign}{have[1:]}", [target], [value], [f"{sign}{width_of(out)[1:]}"])


def _byte(w: Writer, value: Operand, type_: str) -> Operand:
    """Return the lowest byte of a register of 16 bits, extended to 32."""
    if isinstance(value, int):
        return (value & 255) | (0xFFFFFF00 if type_[0] == "s" and value & 128 else 0)
    return w.make("bfe", f"{type_[0]}32", w.fit(value, "b32"), 0, 8)


def _to_byte(w: Writer, value: Operand, out: str, type_: str, keep: Sequence[str]) -> Operand:
    """Return a value as a byte, extended to 32 bits as its type says."""
    if type_ in ir.FLOATS:
        value = _clamped(w, w.make("cvt", "s32", value, mods=(type_, *(k for k in keep if k != "sat"))), "s32", out)
    elif "sat" in keep:
        value = w.make("min", type_, value, 255) if type_ == "u64" else value
        value = _clamped(w, value if type_[1:] == "64" else _extended(w, value, type_, "s64"), "s64", out)
    value = w.fit(value, "b32")
    return _byte(w, value, out) if isinstance(value, int) else w.make("bfe", f"{out[0]}32", value, 0, 8)


def _clamped(w: Writer, value: Operand, type_: str, out: str) -> Operand:
    low, high = (-128, 127) if out == "s8" else (0, 255)
    return w.make("max", type_, w.make("min", type_, value, high), low & ((1 << WIDTH[type_]) - 1))


def _to_tf32(w: Writer, x: Line, value: Operand) -> None:
    """Round to 10 bits behind the point, halves away from zero; what is not finite stays."""
    if x.types != ("tf32", "f32") or "rna" not in x.mods or "satfinite" in x.mods:
        raise w.refuse("a conversion that is not read", x.word)
    rounded = w.make("and", "b32", w.make("add", "u32", value, 0x1000), 0xFFFFE000)
    finite = w.make("setp", "f32", w.make("abs", "f32", value), 0x7F800000, mods=("lt",))
    w.emit("select", "b32", [w.target(x.items[0], "b32")], [rounded, value, finite])


_ARITHMETIC: Final = (*_ROUND, "ftz", "sat", "cc")
_HALF_MATH: Final = ("f16", "bf16", "f32", "f16x2", "bf16x2")
_COMPARE: Final = (*_RELATIONS, *_UNORDERED, *_UNSIGNED, "and", "or", "xor", "ftz")
_CONVERSION: Final = (*_ROUND, "rni", "rzi", "rmi", "rpi", "sat", "ftz", "relu", "rna", "satfinite")
_TESTS: Final = ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
_ALL: Final = (*_INTEGERS, *_SINGLE, *_BITS)

RULES: Final[dict[str, Rule]] = {
    **{op: Rule(_sum, (*_INTEGERS, *_FLOATS), _ARITHMETIC, (3, 3)) for op in ("add", "sub", "addc", "subc")},
    "mul": Rule(_multiply, (*_INTEGERS, *_FLOATS), (*_ARITHMETIC[:-1], "lo", "hi", "wide"), (3, 3)),
    "mul24": Rule(_multiply, ("u32", "s32"), ("lo", "hi"), (3, 3)),
    "mad": Rule(_multiply_add, (*_INTEGERS, "f32", "f64"), (*_ARITHMETIC, "lo", "hi", "wide"), (4, 4)),
    "madc": Rule(_multiply_add, ("u32", "s32", "u64", "s64"), ("lo", "hi", "cc"), (4, 4)),
    "mad24": Rule(_multiply_add, ("u32", "s32"), ("lo", "hi"), (4, 4)),
    "fma": Rule(_plain("fma"), _FLOATS, (*_ROUND, "ftz", "sat", "relu"), (4, 4)),
    "div": Rule(_plain("div"), (*_INTEGERS, "f32", "f64"), (*_ROUND, "ftz", "approx", "full"), (3, 3)),
    "rem": Rule(_plain("rem"), _INTEGERS, (), (3, 3)),
    **{op: Rule(_extreme, (*_INTEGERS, *_FLOATS), ("ftz", "NaN"), (3, 4)) for op in ("min", "max")},
    **{op: Rule(_plain(op), ("s16", "s32", "s64", *_FLOATS), ("ftz",), (2, 2)) for op in ("neg", "abs")},
    **{op: Rule(_plain(op), ("f32", "f64"), (*_ROUND, "ftz", "approx"), (2, 2)) for op in ("sqrt", "rsqrt", "rcp")},
    **{op: Rule(_plain(op), _HALF_MATH, ("ftz", "approx"), (2, 2)) for op in ("ex2", "lg2", "sin", "cos", "tanh")},
    "copysign": Rule(_plain("copysign"), ("f32", "f64"), (), (3, 3)),
    **{op: Rule(_logic, ("pred", *_BITS), (), (3, 3)) for op in ("and", "or", "xor")},
    "not": Rule(_logic, ("pred", *_BITS), (), (2, 2)),
    "lop3": Rule(_lop3, ("b32",), (), (5, 5)),
    "shl": Rule(_shift, _BITS, (), (3, 3)),
    "shr": Rule(_shift, (*_BITS, *_INTEGERS), (), (3, 3)),
    "shf": Rule(_funnel, ("b32",), ("l", "r", "wrap", "clamp"), (4, 4)),
    "bmsk": Rule(_mask, ("b32",), ("wrap", "clamp"), (3, 3)),
    "bfe": Rule(_field, ("u32", "s32", "u64", "s64"), (), (4, 4)),
    "bfi": Rule(_field, ("b32", "b64"), (), (5, 5)),
    "brev": Rule(_plain("brev"), ("b32", "b64"), (), (2, 2)),
    "popc": Rule(_count("popc"), ("b32", "b64"), (), (2, 2)),
    "clz": Rule(_count("clz"), ("b32", "b64"), (), (2, 2)),
    "bfind": Rule(_count("flo"), ("u32", "s32", "u64", "s64"), ("shiftamt",), (2, 2)),
    "prmt": Rule(_plain("prmt"), ("b32",), (), (4, 4)),
    "dp4a": Rule(_dot, ("u32", "s32"), (), (4, 4), (2, 2)),
    "sad": Rule(_plain("sad"), ("u32", "s32"), (), (4, 4)),
    "selp": Rule(_select, _ALL, (), (4, 4)),
    "slct": Rule(_select_by_sign, _ALL, ("ftz",), (4, 4), (2, 2)),
    "setp": Rule(_set_predicate, _ALL, _COMPARE, (3, 4)),
    "set": Rule(_set, _ALL, _COMPARE, (3, 4), (2, 2)),
    "testp": Rule(_test, ("f32", "f64"), _TESTS, (2, 2)),
    "mov": Rule(_move, ("pred", *_ALL), (), (2, 2)),
    "cvt": Rule(_convert, (*_INTEGERS, *_FLOATS, "u8", "s8", "tf32"), _CONVERSION, (2, 3), (2, 2)),
}
