"""Pure operations of `ir` as LLVM instructions on values that are uniform, strided or varying.

Floating point is exact to the rounding that the operation names: nearest is the machine's own; the directed roundings of add,
mul and fma come from the nearest result and the sign of its error (two-sum, fma).  Half types compute in single precision and
are rounded once more; for fma that can differ from one rounding in the last bit.  Division of integers by zero gives all ones
and never a trap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gewu.ops import ir, spmd_math
from gewu.ops.spmd_emit import BITS, FLOAT_OF, Builder, Val, integer, number
from gewu.ops.spmd_flow import Op

Take = Callable[[int, str], Val]
_COMPARE: Final = {
    **{"eq": "oeq", "ne": "one", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "num": "ord", "nan": "uno"},
    **{"equ": "ueq", "neu": "une", "ltu": "ult", "leu": "ule", "gtu": "ugt", "geu": "uge"},
}
_WHOLE: Final = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
_DIRECTED: Final = ("rz", "rm", "rp")


def llvm_type(kind: str) -> str:
    """Return the LLVM type in which values of a type of `ir` live (bf16 in i16, packed halves in i32)."""
    return FLOAT_OF.get(kind) or f"i{ir.WIDTH[kind]}"


def lower(b: Builder, op: Op, take: Take) -> list[Val]:
    """Append the instructions of a pure operation.

    Args:
        take: gives source number n as an LLVM type.

    Raises:
        Unsupported: an operation or type without lowering.
    """
    if op.type in ("f16x2", "bf16x2") and op.op not in ("mov", "select", "cvt"):
        return [_halves(b, op, take)]
    special = _SPECIAL.get(op.op)
    if special:
        return special(b, op, take)
    count = len(op.src)
    if op.type in ("f16", "bf16", "f32", "f64"):
        wide = "f32" if op.type in ("f16", "bf16") else op.type
        values = [from_half(b, take(i, llvm_type(op.type)), op.type) for i in range(count)]
        return [to_half(b, _float(b, op, values, FLOAT_OF[wide]), op.type)]
    values = [take(i, llvm_type(op.type)) for i in range(count)]
    return [_integer(b, op, values)]


def from_half(b: Builder, value: Val, kind: str) -> Val:
    """Return a value of a half type in single precision; others as they are."""
    if kind == "f16":
        return b.convert("fpext", value, "float")
    if kind == "bf16":
        return b.cast(b.op("shl", b.convert("zext", value, "i32"), integer("i32", 16)), "float")
    return value


def to_half(b: Builder, value: Val, kind: str) -> Val:
    """Return a single-precision value rounded to nearest in a half type; other types as they are."""
    if kind == "f16":
        return b.convert("fptrunc", value, "half")
    if kind == "bf16":
        bits = b.cast(value, "i32")
        odd = b.op("and", b.op("lshr", bits, integer("i32", 16)), integer("i32", 1))
        rounded = b.op("add", b.op("add", bits, integer("i32", 32767)), odd)
        nan = b.compare("fcmp uno", value, value)
        chosen = b.choose(nan, integer("i32", 0x7FFF0000), rounded)
        return b.convert("trunc", b.op("lshr", chosen, integer("i32", 16)), "i16")
    return value


def _halves(b: Builder, op: Op, take: Take) -> Val:
    single = op.type[:-2]
    kind = llvm_type(single)
    parts = []
    for shift in (0, 16):
        half = Op(op.op, single, op.dst, op.src, op.mods)

        def side(i: int, want: str, shift: int = shift) -> Val:
            word = take(i, "i32")
            return b.cast(b.convert("trunc", b.op("lshr", word, integer("i32", shift)), "i16"), want)

        parts.append(b.convert("zext", b.cast(b.cast(lower(b, half, side)[0], kind), "i16"), "i32"))
    return b.op("or", parts[0], b.op("shl", parts[1], integer("i32", 16)))


def flushed(b: Builder, value: Val) -> Val:
    """Return a float with subnormal numbers replaced by zero of their sign."""
    smallest = number("float", 2.0**-126)
    tiny = b.compare("fcmp olt", b.intrinsic("fabs", value), smallest)
    return b.choose(tiny, b.intrinsic("copysign", number("float", 0.0), value), value)


def _float(b: Builder, op: Op, v: list[Val], kind: str) -> Val:
    flush = "ftz" in op.mods and kind == "float" and op.op != "ex2"
    if flush and op.op not in ("neg", "abs", "copysign"):
        v = [flushed(b, value) for value in v]
    result = _float_value(b, op, v, kind)
    if "sat" in op.mods:
        result = _clamp(b, result, 1.0)
    elif "relu" in op.mods:
        result = _clamp(b, result, None)
    return flushed(b, result) if flush and op.op not in ("neg", "abs", "copysign") else result


def _clamp(b: Builder, value: Val, top: float | None) -> Val:
    """Return max(value, 0), and min with `top`; NaN gives 0."""
    positive = b.compare("fcmp ogt", value, number(value.type, 0.0))
    value = b.choose(positive, value, number(value.type, 0.0))
    if top is None:
        return value
    return b.choose(b.compare("fcmp olt", value, number(value.type, top)), value, number(value.type, top))


def _float_value(b: Builder, op: Op, v: list[Val], kind: str) -> Val:
    direction = next((m for m in op.mods if m in _DIRECTED), None)
    name = op.op
    if direction and name in ("add", "sub", "mul", "fma"):
        return _directed(b, name, v, direction)
    if name in ("add", "sub", "mul", "div"):
        return b.op(f"f{name}", v[0], v[1])
    if name == "fma":
        return b.intrinsic("fma", *v)
    if name in ("min", "max"):
        return b.intrinsic(f"{name}imum" if "nan" in op.mods else f"{name}num", *v)
    if name == "neg":
        return b.apply(kind, lambda t, n: f"fneg {t} {n[0]}", v[0])
    if name == "abs":
        return b.intrinsic("fabs", v[0])
    if name in ("sqrt", "rsqrt"):
        root = b.intrinsic("sqrt", v[0])
        return root if name == "sqrt" else b.op("fdiv", number(kind, 1.0), root)
    if name == "rcp":
        return b.op("fdiv", number(kind, 1.0), v[0])
    if name == "copysign":
        return b.intrinsic("copysign", v[1], v[0])
    if name == "ex2":
        return spmd_math.exp2(b, v[0], "ftz" in op.mods)
    if name == "lg2":
        return spmd_math.log2(b, v[0])
    if name in ("sin", "cos"):
        return spmd_math.sine(b, v[0], name == "cos")
    if name == "tanh":
        return spmd_math.tanh(b, v[0])
    raise ir.Unsupported("no code for this operation on this type", value=f"{name}.{op.type}", key=op.where)


def _two_sum(b: Builder, x: Val, y: Val) -> tuple[Val, Val]:
    """Return the rounded sum and its exact error."""
    total = b.op("fadd", x, y)
    part = b.op("fsub", total, x)
    error = b.op("fadd", b.op("fsub", x, b.op("fsub", total, part)), b.op("fsub", y, part))
    return total, error


def _directed(b: Builder, name: str, v: list[Val], direction: str) -> Val:
    """Round the exact result down, up or to zero: nearest, then one step back when it lies beyond."""
    if name == "sub":
        v = [v[0], b.apply(v[1].type, lambda t, n: f"fneg {t} {n[0]}", v[1])]
        name = "add"
    lanes = 512 // BITS[v[0].type]
    if b.native and b.lanes % lanes == 0 and any(x.kind == "v" for x in v):
        return _native(b, name, v, direction, lanes)
    if name == "add":
        near, error = _two_sum(b, v[0], v[1])
    elif name == "mul":
        near = b.op("fmul", v[0], v[1])
        error = b.intrinsic("fma", v[0], v[1], b.apply(near.type, lambda t, n: f"fneg {t} {n[0]}", near))
    else:
        near = b.intrinsic("fma", *v)
        product = b.op("fmul", v[0], v[1])
        low = b.intrinsic("fma", v[0], v[1], b.apply(near.type, lambda t, n: f"fneg {t} {n[0]}", product))
        total, error = _two_sum(b, product, v[2])
        error = b.op("fadd", b.op("fsub", total, near), b.op("fadd", error, low))
    return _step(b, near, error, direction)


def _native(b: Builder, name: str, v: list[Val], direction: str, lanes: int) -> Val:
    """Use the rounding that AVX-512 instructions carry, 512 bits at a time."""
    kind, whole = v[0].type, b.vector(v[0].type)
    part, short = f"<{lanes} x {kind}>", "ps" if kind == "float" else "pd"
    function = f"llvm.x86.avx512.{'vfmadd' if name == 'fma' else name}.{short}.512"
    code = {"rm": 9, "rp": 10, "rz": 11}[direction]
    b.declarations.add(f"declare {part} @{function}({', '.join([part] * len(v))}, i32)")
    names = [b.vec(x) for x in v]
    row = []
    for first in range(0, b.lanes, lanes):
        picks = ", ".join(f"i32 {first + i}" for i in range(lanes))
        pieces = [b.emit(f"shufflevector {whole} {n}, {whole} poison, <{lanes} x i32> <{picks}>") for n in names]
        row.append(b.emit(f"call {part} @{function}({', '.join(f'{part} {p}' for p in pieces)}, i32 {code})"))
    length = lanes
    while len(row) > 1:
        half, picks = f"<{length} x {kind}>", ", ".join(f"i32 {i}" for i in range(2 * length))
        pairs = zip(row[::2], row[1::2], strict=True)
        row = [b.emit(f"shufflevector {half} {x}, {half} {y}, <{2 * length} x i32> <{picks}>") for x, y in pairs]
        length *= 2
    return Val("v", row[0], kind)


def _step(b: Builder, near: Val, error: Val, direction: str) -> Val:
    """Return `near` moved one number towards the exact value near + error where `direction` asks for it."""
    zero = number(near.type, 0.0)
    bits = "i32" if near.type == "float" else "i64"
    raw = b.cast(near, bits)
    negative = b.compare("icmp slt", raw, integer(bits, 0))
    above, below = b.compare("fcmp olt", error, zero), b.compare("fcmp ogt", error, zero)
    up, down = integer(bits, 1), integer(bits, (1 << BITS[bits]) - 1)
    if direction == "rz":
        wrong, step = b.choose(negative, below, above), down
    elif direction == "rm":
        wrong, step = above, b.choose(negative, up, down)
    else:
        wrong, step = below, b.choose(negative, down, up)
    moved = b.op("add", raw, step)
    if direction != "rz":  # from zero the next number is the smallest of the other sign
        least = integer(bits, (1 << BITS[bits] - 1) + 1 if direction == "rm" else 1)
        moved = b.choose(b.compare("fcmp oeq", near, zero), least, moved)
    finite = b.compare("fcmp ord", error, error)
    wrong = b.op("and", wrong, finite)
    return b.cast(b.choose(wrong, moved, raw), near.type)


def _integer(b: Builder, op: Op, v: list[Val]) -> Val:
    kind, signed = v[0].type, op.type[0] == "s"
    name = op.op
    if name in ("add", "sub", "and", "or", "xor"):
        return b.op(name, v[0], v[1])
    if name == "mul":
        return multiply(b, v[0], v[1])
    if name == "not":
        return b.op("xor", v[0], integer(kind, (1 << BITS[kind]) - 1))
    if name == "neg":
        return b.op("sub", integer(kind, 0), v[0])
    if name in ("min", "max"):
        return b.intrinsic(f"{'s' if signed else 'u'}{name}", v[0], v[1])
    if name == "abs":
        return b.intrinsic("abs", v[0], extra="i1 false")
    if name == "brev":
        return b.intrinsic("bitreverse", v[0])
    if name == "mulhi":
        extend, double = ("sext" if signed else "zext"), f"i{2 * BITS[kind]}"
        product = b.op("mul", *(b.convert(extend, x, double) for x in v))
        return b.convert("trunc", b.op("lshr", product, integer(double, BITS[kind])), kind)
    if name in ("div", "rem"):
        return _divide(b, name, v, signed)
    raise ir.Unsupported("no code for this operation on this type", value=f"{name}.{op.type}", key=op.where)


def multiply(b: Builder, x: Val, y: Val) -> Val:
    """Return a product; a strided value times a literal stays strided."""
    for one, other in ((x, y), (y, x)):
        if one.kind == "s" and other.kind == "u" and other.name[0] != "%":
            factor, width = int(other.name), BITS[one.type]
            signed = factor - (1 << width) if factor >> width - 1 else factor
            name = b.emit(f"mul {one.type} {one.name}, {factor}")
            return Val("s", name, one.type, one.stride * signed)
    return b.op("mul", x, y)


def _divide(b: Builder, name: str, v: list[Val], signed: bool) -> Val:
    kind = v[0].type
    zero = b.compare("icmp eq", v[1], integer(kind, 0))
    safe = b.choose(zero, integer(kind, 1), v[1])
    if kind in ("i16", "i32"):  # in double precision: the quotient of two 32-bit integers, cut, is exact
        to = "sitofp" if signed else "uitofp"
        real = b.op("fdiv", b.convert(to, v[0], "double"), b.convert(to, safe, "double"))
        wide = b.convert("fptosi", real, "i64")
        quotient = b.convert("trunc", wide, kind)
        result = quotient if name == "div" else b.op("sub", v[0], b.op("mul", quotient, safe))
    else:
        if signed:  # the quotient of the smallest number by -1 does not fit
            minus = b.compare("icmp eq", v[1], integer(kind, (1 << BITS[kind]) - 1))
            safe = b.choose(minus, integer(kind, 1), safe)
        result = b.op(f"{'s' if signed else 'u'}{name}", v[0], safe)
        if signed:
            other = b.op("sub", integer(kind, 0), v[0]) if name == "div" else integer(kind, 0)
            result = b.choose(minus, other, result)
    return b.choose(zero, integer(kind, (1 << BITS[kind]) - 1) if name == "div" else v[0], result)


def _mov(b: Builder, op: Op, take: Take) -> list[Val]:
    return [take(0, llvm_type(op.type))]


def _select(b: Builder, op: Op, take: Take) -> list[Val]:
    kind = llvm_type(op.type)
    return [b.choose(take(2, "i1"), take(0, kind), take(1, kind))]


def _pack(b: Builder, op: Op, take: Take) -> list[Val]:
    bits = ir.WIDTH[op.type]
    low, high = (b.convert("zext", take(i, f"i{bits // 2}"), f"i{bits}") for i in (0, 1))
    return [b.op("or", low, b.op("shl", high, integer(f"i{bits}", bits // 2)))]


def _unpack(b: Builder, op: Op, take: Take) -> list[Val]:
    bits = ir.WIDTH[op.type]
    word = take(0, f"i{bits}")
    high = b.op("lshr", word, integer(f"i{bits}", bits // 2))
    return [b.convert("trunc", word, f"i{bits // 2}"), b.convert("trunc", high, f"i{bits // 2}")]


def _mulwide(b: Builder, op: Op, take: Take) -> list[Val]:
    bits = ir.WIDTH[op.type]
    extend, double = ("sext" if op.type[0] == "s" else "zext"), f"i{2 * bits}"
    return [b.op("mul", *(b.convert(extend, take(i, f"i{bits}"), double) for i in (0, 1)))]


def _shift(b: Builder, op: Op, take: Take) -> list[Val]:
    kind = llvm_type(op.type)
    width = BITS[kind]
    value, amount = take(0, kind), op.src[1]
    verb = "shl" if op.op == "shl" else "ashr" if op.type[0] == "s" else "lshr"
    if isinstance(amount, int):
        amount = amount & 0xFFFFFFFF
        if amount >= width and verb != "ashr":
            return [integer(kind, 0)]
        if verb == "shl" and value.kind == "s":
            return [multiply(b, value, integer(kind, 1 << amount))]
        return [b.op(verb, value, integer(kind, min(amount, width - 1)))]
    count = take(1, "i32")
    over = b.compare("icmp ugt", count, integer("i32", width - 1))
    count = b.cast(b.choose(over, integer("i32", width - 1), count), kind)
    result = b.op(verb, value, count)
    return [result if verb == "ashr" else b.choose(over, integer(kind, 0), result)]


def _bfe(b: Builder, op: Op, take: Take) -> list[Val]:
    kind, width = llvm_type(op.type), ir.WIDTH[op.type]
    signed = op.type[0] == "s"
    start, count = op.src[1:]
    if isinstance(start, int) and isinstance(count, int) and count & 255 > 0 and (start & 255) + (count & 255) <= width:
        left, right = width - (start & 255) - (count & 255), width - (count & 255)
        value = b.op("shl", take(0, kind), integer(kind, left)) if left else take(0, kind)
        return [b.op("ashr" if signed else "lshr", value, integer(kind, right))]
    position, length = (_small(b, take(i, "i32")) for i in (1, 2))
    shift = "ashr" if signed else "lshr"
    top = integer("i32", width - 1)
    # Bits above the word repeat its sign (s) or are zero (u); a field of no bits is zero.
    reach = b.intrinsic("umin", position, top)
    value = b.op(shift, take(0, kind), b.cast(reach, kind))
    if not signed:
        value = b.choose(b.compare("icmp ugt", position, top), integer(kind, 0), value)
    room = b.op("sub", integer("i32", width), b.intrinsic("umin", length, integer("i32", width)))
    room = b.cast(b.intrinsic("umin", room, top), kind)
    value = b.op(shift, b.op("shl", value, room), room)
    return [b.choose(b.compare("icmp eq", length, integer("i32", 0)), integer(kind, 0), value)]


def _small(b: Builder, value: Val) -> Val:
    return b.op("and", value, integer("i32", 255))


def _bfi(b: Builder, op: Op, take: Take) -> list[Val]:
    kind, width = llvm_type(op.type), ir.WIDTH[op.type]
    position, length = (_small(b, take(i, "i32")) for i in (2, 3))
    top = integer("i32", width - 1)
    ones = integer(kind, (1 << width) - 1)
    count = b.cast(b.intrinsic("umin", length, top), kind)
    field = b.op("xor", b.op("shl", ones, count), ones)
    field = b.choose(b.compare("icmp ugt", length, top), ones, field)
    shift = b.cast(b.intrinsic("umin", position, top), kind)
    outside = b.compare("icmp ugt", position, top)
    mask = b.choose(outside, integer(kind, 0), b.op("shl", field, shift))
    moved = b.op("and", b.op("shl", take(0, kind), shift), mask)
    return [b.op("or", moved, b.op("and", take(1, kind), b.op("xor", mask, ones)))]


def _count(b: Builder, op: Op, take: Take) -> list[Val]:
    kind = llvm_type(op.type)
    value = take(0, kind)
    if op.op == "popc":
        return [b.cast(b.intrinsic("ctpop", value), "i32")]
    return [b.cast(b.intrinsic("ctlz", value, extra="i1 false"), "i32")]


def _flo(b: Builder, op: Op, take: Take) -> list[Val]:
    kind, width = llvm_type(op.type), ir.WIDTH[op.type]
    value = take(0, kind)
    if op.type[0] == "s":
        value = b.op("xor", value, b.op("ashr", value, integer(kind, width - 1)))
    zeros = b.cast(b.intrinsic("ctlz", value, extra="i1 false"), "i32")
    found = zeros if "shiftamt" in op.mods else b.op("sub", integer("i32", width - 1), zeros)
    return [b.choose(b.compare("icmp eq", value, integer(kind, 0)), integer("i32", 0xFFFFFFFF), found)]


def _prmt(b: Builder, op: Op, take: Take) -> list[Val]:
    both = b.op(
        "or", b.convert("zext", take(0, "i32"), "i64"), b.op("shl", b.convert("zext", take(1, "i32"), "i64"), integer("i64", 32))
    )
    selector = op.src[2]
    result: Val | None = None
    for place in range(4):
        if isinstance(selector, int):
            nibble = selector >> 4 * place & 15
            byte = b.op("lshr", both, integer("i64", 8 * (nibble & 7)))
            part = b.op("and", b.convert("trunc", byte, "i32"), integer("i32", 255))
            if nibble & 8:
                part = b.op("and", b.op("sub", integer("i32", 0), b.op("lshr", part, integer("i32", 7))), integer("i32", 255))
        else:
            nibble_ = b.op("and", b.op("lshr", take(2, "i32"), integer("i32", 4 * place)), integer("i32", 15))
            shift = b.convert("zext", b.op("shl", b.op("and", nibble_, integer("i32", 7)), integer("i32", 3)), "i64")
            part = b.op("and", b.convert("trunc", b.op("lshr", both, shift), "i32"), integer("i32", 255))
            spread = b.op("and", b.op("sub", integer("i32", 0), b.op("lshr", part, integer("i32", 7))), integer("i32", 255))
            part = b.choose(b.compare("icmp ugt", nibble_, integer("i32", 7)), spread, part)
        part = b.op("shl", part, integer("i32", 8 * place))
        result = part if result is None else b.op("or", result, part)
    assert result is not None
    return [result]


def _dp4a(b: Builder, op: Op, take: Take) -> list[Val]:
    signs = op.mods[:2] if len(op.mods) >= 2 else (op.type[0] + "8",) * 2
    total = take(2, "i32")
    for place in range(4):
        parts = []
        for i, sign in enumerate(signs):
            moved = b.op("shl", take(i, "i32"), integer("i32", 24 - 8 * place))
            parts.append(b.op("ashr" if sign[0] == "s" else "lshr", moved, integer("i32", 24)))
        total = b.op("add", total, b.op("mul", *parts))
    return [total]


def _sad(b: Builder, op: Op, take: Take) -> list[Val]:
    one, two = take(0, "i32"), take(1, "i32")
    sign = "s" if op.type[0] == "s" else "u"
    high, low = b.intrinsic(f"{sign}max", one, two), b.intrinsic(f"{sign}min", one, two)
    return [b.op("add", take(2, "i32"), b.op("sub", high, low))]


def _setp(b: Builder, op: Op, take: Take) -> list[Val]:
    kind, test = op.type, op.mods[0]
    one, two = take(0, llvm_type(kind)), take(1, llvm_type(kind))
    if kind in ir.FLOATS and kind[-2:] != "x2":
        one, two = from_half(b, one, kind), from_half(b, two, kind)
        if "ftz" in op.mods and kind == "f32":
            one, two = flushed(b, one), flushed(b, two)
        return [b.compare(f"fcmp {_COMPARE[test]}", one, two)]
    prefix = "" if test in ("eq", "ne") else "s" if kind[0] == "s" else "u"
    if test not in ("eq", "ne", "lt", "le", "gt", "ge"):
        raise ir.Unsupported("unknown comparison", value=f"{test}.{kind}", key=op.where)
    return [b.compare(f"icmp {prefix}{test}", one, two)]


def _cvt(b: Builder, op: Op, take: Take) -> list[Val]:
    kind, source, mods = op.type, op.mods[0], op.mods[1:]
    if kind in ("f16x2", "bf16x2"):
        single = kind[:-2]
        order = (1, 0) if len(op.src) == 2 else (0,)
        parts = [_cvt_one(b, take(i, llvm_type(source)), source, single, mods) for i in order]
        words = [b.convert("zext", b.cast(p, "i16"), "i32") for p in parts]
        return [b.op("or", words[0], b.op("shl", words[-1], integer("i32", 16)))]
    value = take(0, llvm_type(source))
    if source in ir.FLOATS or kind in ir.FLOATS:
        return [_cvt_one(b, value, source, kind, mods)]
    if "sat" in mods:
        value = _saturate(b, value, source, kind)
    target = llvm_type(kind)
    wider = BITS[target] > BITS[value.type]
    return [b.convert(("sext" if source[0] == "s" else "zext") if wider else "trunc", value, target)]


def _saturate(b: Builder, value: Val, source: str, kind: str) -> Val:
    have, want, signed = ir.WIDTH[source], ir.WIDTH[kind], source[0] == "s"
    low = -(1 << want - 1) if kind[0] == "s" else 0
    high = (1 << want - 1) - 1 if kind[0] == "s" else (1 << want) - 1
    floor, top = (-(1 << have - 1), (1 << have - 1) - 1) if signed else (0, (1 << have) - 1)
    prefix = "s" if signed else "u"
    if low > floor:
        value = b.intrinsic(f"{prefix}max", value, integer(value.type, low))
    return b.intrinsic(f"{prefix}min", value, integer(value.type, high)) if high < top else value


def _cvt_one(b: Builder, value: Val, source: str, kind: str, mods: tuple[str, ...]) -> Val:
    direction = next((m for m in mods if m in _DIRECTED), None)
    if source not in ir.FLOATS:
        return _from_integer(b, value, source, kind, direction)
    whole = next((_WHOLE[m] for m in mods if m in _WHOLE), None)
    value = from_half(b, value, source)
    if "ftz" in mods and value.type == "float":
        value = flushed(b, value)
    if whole:
        value = b.intrinsic(whole, value)
    if kind not in ir.FLOATS:
        sign = "s" if kind[0] == "s" else "u"
        return b.intrinsic(f"fpto{sign}i.sat", value, result=llvm_type(kind))
    if "sat" in mods:
        value = _clamp(b, value, 1.0)
    if "relu" in mods:
        value = _clamp(b, value, None)
    return _narrow(b, value, kind, direction)


def _narrow(b: Builder, value: Val, kind: str, direction: str | None) -> Val:
    target = "float" if kind == "bf16" else FLOAT_OF[kind]
    if BITS[target] > BITS[value.type]:
        return b.convert("fpext", value, target)
    if kind == "bf16" and direction == "rz":
        bits = b.op("lshr", b.cast(_narrow(b, value, "f32", "rz"), "i32"), integer("i32", 16))
        return b.convert("trunc", bits, "i16")
    if kind == "bf16":
        return to_half(b, _narrow(b, value, "f32", None), kind)
    if target == value.type:
        return value
    near = b.convert("fptrunc", value, target)
    if direction is None:
        return near
    error = b.op("fsub", value, b.convert("fpext", near, value.type))
    if target == "half":
        sign = b.convert("fptrunc", b.intrinsic("copysign", number(value.type, 1.0), error), "half")
        zero = b.compare("fcmp oeq", error, number(value.type, 0.0))
        return _step_half(b, near, b.choose(zero, number("half", 0.0), sign), direction)
    return _step(b, near, b.convert("fptrunc", b.op("fmul", error, number("double", 2.0**40)), "float"), direction)


def _step_half(b: Builder, near: Val, error: Val, direction: str) -> Val:
    raw = b.cast(near, "i16")
    negative = b.compare("icmp slt", raw, integer("i16", 0))
    zero = number("half", 0.0)
    above, below = b.compare("fcmp olt", error, zero), b.compare("fcmp ogt", error, zero)
    if direction == "rz":
        wrong, step = b.choose(negative, below, above), integer("i16", 0xFFFF)
    else:
        wrong = above if direction == "rm" else below
        grow = negative if direction == "rm" else b.op("xor", negative, integer("i1", 1))
        step = b.choose(grow, integer("i16", 1), integer("i16", 0xFFFF))
    return b.cast(b.choose(wrong, b.op("add", raw, step), raw), "half")


def _from_integer(b: Builder, value: Val, source: str, kind: str, direction: str | None) -> Val:
    verb = "sitofp" if source[0] == "s" else "uitofp"
    target = FLOAT_OF.get(kind, "float") if kind in ("f32", "f64") else "float"
    if direction and target == "float" and BITS[value.type] == 32:
        return _narrow(b, b.convert(verb, value, "double"), kind, direction)
    if direction and BITS[value.type] == 64:
        near = _directed_integer(b, value, verb, target if kind == "f64" else "float", direction)
        return _narrow(b, near, kind, direction)
    return _narrow(b, b.convert(verb, value, target), kind, None)


def _directed_integer(b: Builder, value: Val, verb: str, target: str, direction: str) -> Val:
    """Return a 64-bit integer rounded in a direction, found by converting the nearest number back."""
    near = b.convert(verb, value, target)
    signed = verb[0] == "s"
    back = b.intrinsic("fptosi.sat" if signed else "fptoui.sat", near, result="i64")
    sign = "s" if signed else "u"
    beyond = b.compare("fcmp oge", near, number(target, 2.0 ** (63 if signed else 64)))
    above = b.op("or", b.compare(f"icmp {sign}gt", back, value), beyond)
    below = b.compare(f"icmp {sign}lt", back, value)
    error = b.choose(below, number(target, 1.0), number(target, 0.0))
    return _step(b, near, b.choose(above, number(target, -1.0), error), direction)


_SPECIAL: Final = {
    **dict.fromkeys(("shl", "shr"), _shift),
    **dict.fromkeys(("popc", "clz"), _count),
    **{"mov": _mov, "select": _select, "pack": _pack, "unpack": _unpack, "mulwide": _mulwide, "bfe": _bfe, "bfi": _bfi},
    **{"flo": _flo, "prmt": _prmt, "dp4a": _dp4a, "sad": _sad, "setp": _setp, "cvt": _cvt},
}
