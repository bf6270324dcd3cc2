"""Integer, logic, predicate and move instructions of machine code, one small function for each opcode.

Carries are kept exact by computing in 64 bits; `clean` turns the pairs that make one 64-bit sum back into that sum.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from gewu.ops.ir import Operand, Unsupported
from gewu.ops.logic import lop3
from gewu.ops.sass_emit import PREDICATE, Emitter
from gewu.ops.sass_syntax import Line, integer, read_address

Handler = Callable[[Emitter, Line], None]


def _split(operands: tuple[str, ...]) -> tuple[str, list[str], list[str], list[str]]:
    """Split into destination, predicates written, sources, predicates read at the end."""
    rest = list(operands[1:])
    written = []
    while rest and PREDICATE.match(rest[0]):
        written.append(rest.pop(0))
    read: list[str] = []
    while rest and PREDICATE.match(rest[-1]):
        read.insert(0, rest.pop())
    return operands[0], written, rest, read


def _sum(e: Emitter, sources: list[str], extended: bool) -> Operand:
    total: Operand = 0
    for source in sources:
        if source.startswith("-") and not re.match(r"-(0x|\d)", source) and not extended:
            value = e.int32(source[1:])
            total = e.op("sub", "u32", total, value) if value != 0 else total
        else:
            value = e.int32(source)
            total = value if total == 0 else e.op("add", "u32", total, value) if value != 0 else total
    return total


def _wide_leaves(e: Emitter, sources: list[str]) -> tuple[list[Operand], int, list[bool]]:
    """Return the 32-bit summands, the ones to add for two's complements, and which summands were negated."""
    leaves, ones, negated = [], 0, []
    for source in sources:
        negative = source.startswith("-") and not re.match(r"-(0x|\d)", source)
        leaves.append(e.int32(source[1:] if negative else source))
        negated.append(negative)
        ones += negative
    return leaves, ones, negated


def _carries(e: Emitter, written: list[str], sources: list[str], carry: Operand) -> Operand:
    """Return the sum of 32-bit sources; write its carries."""
    leaves, ones, negated = _wide_leaves(e, sources)
    plain = [leaf for leaf, negative in zip(leaves, negated, strict=True) if not negative and leaf != 0]
    minus = [leaf for leaf, negative in zip(leaves, negated, strict=True) if negative]
    if len(minus) == 1 and len(plain) <= 1 and carry == 0:
        wide = e.op("sub", "u64", e.widen(plain[0] if plain else 0), e.widen(minus[0]))
        low, high = e.halves(wide)
        outs: list[Operand] = [e.op("setp", "u32", high, 0, mods=("eq",), bits=1), 0]
    else:
        summands = [*plain, *(e.op("not", "b32", leaf) for leaf in minus)]
        wide = e.widen(summands[0]) if summands else 0
        for summand in summands[1:]:
            wide = e.op("add", "u64", wide, e.widen(summand))
        if carry != 0:
            wide = e.op("add", "u64", wide, e.widen(carry))
        if ones:
            wide = e.op("add", "u64", wide, ones)
        low, high = e.halves(wide)
        outs = [e.op("setp", "u32", high, limit, mods=("ge",), bits=1) for limit in (1, 2)]
    for name, value in zip(written, outs, strict=False):
        e.write_predicate(name, value)
    return low


def _carry_in(e: Emitter, read: list[str]) -> Operand:
    bits = [e.op("select", "b32", 1, 0, p) if isinstance(p, str) else p for p in map(e.predicate, read)]
    bits = [bit for bit in bits if bit != 0]
    return 0 if not bits else bits[0] if len(bits) == 1 else e.op("add", "u32", bits[0], bits[1])


def _add(e: Emitter, line: Line) -> None:
    """IADD3, UIADD3, VIADD, IADD: with carries out and, for `.X`, in."""
    dst, written, sources, read = _split(line.operands)
    extended = "X" in line.mods
    carry = _carry_in(e, read) if extended else 0
    if [name for name in written if name not in ("PT", "UPT")]:
        value = _carries(e, written, sources, carry)
    else:
        value = _sum(e, sources, extended)
        value = value if carry == 0 else carry if value == 0 else e.op("add", "u32", value, carry)
    e.write(dst, value)


def _multiply_add(e: Emitter, line: Line) -> None:
    """IMAD in all its forms: low, `.HI`, `.WIDE`, `.X`, and the names of its special cases (MOV, SHL, IADD, U32)."""
    dst, written, sources, read = _split(line.operands)
    if "WIDE" in line.mods or "HI" in line.mods:
        return _multiply_wide(e, line)
    if [name for name in written if name not in ("PT", "UPT")]:
        raise Unsupported("carry of a 32-bit multiply-add", value=line.full)
    a, b = e.int32(sources[0]), e.int32(sources[1])
    c = e.int32(sources[2])
    carry = _carry_in(e, read) if "X" in line.mods else 0
    value: Operand
    if 0 in (a, b):
        value = 0
    elif 1 in (a, b):
        value = b if a == 1 else a
    elif isinstance(b, int) and b & (b - 1) == 0:
        value = e.op("shl", "b32", a, b.bit_length() - 1)
    else:
        value = e.op("mul", "u32", a, b)
    if 1 in (a, b) and sources[2].startswith("-") and isinstance(c, str):
        value = e.op("sub", "u32", value, e.int32(sources[2][1:]))
    else:
        value = c if value == 0 else value if c == 0 else e.op("add", "u32", value, c)
    e.write(dst, value if carry == 0 else carry if value == 0 else e.op("add", "u32", value, carry))


def _multiply_wide(e: Emitter, line: Line) -> None:
    dst, written, sources, read = _split(line.operands)
    signed = "U32" not in line.mods
    a, b, c = e.int32(sources[0]), e.int32(sources[1]), e.int64(sources[2])
    product = e.op("mulwide", "s32" if signed else "u32", a, b, bits=64)
    carry = e.widen(_carry_in(e, read)) if "X" in line.mods else 0
    total: Operand = product if c == 0 else e.op("add", "u64", product, c)
    outs = [name for name in written if name not in ("PT", "UPT")]
    over: Operand = e.op("setp", "u64", total, c, mods=("lt",), bits=1) if outs and c != 0 else 0
    if carry != 0:
        total = e.op("add", "u64", total, carry)
        if outs:
            over = e.op("or", "pred", over, e.op("setp", "u64", total, carry, mods=("lt",), bits=1))
    if "HI" in line.mods:
        e.write(dst, e.halves(total)[1])
    else:
        e.write64(dst, total)
    for name in outs[:1]:
        e.write_predicate(name, over)


def _lea(e: Emitter, line: Line) -> None:
    """LEA: shift and add; `.HI` adds the upper half of a shifted pair, `.X` the carry of the lower half, `.SX32` sign-extends."""
    dst, written, sources, read = _split(line.operands)
    outs = [name for name in written if name not in ("PT", "UPT")]
    count = integer(sources[-1]) & 31
    carry = _carry_in(e, read) if "X" in line.mods else 0
    a, b = e.int32(sources[0]), e.int32(sources[1])
    if "HI" in line.mods:
        if "SX32" in line.mods:
            pair = e.widen(a, signed=True)
        else:
            high = e.int32(sources[2])
            pair = e.widen(a) if high == 0 else e.pair(a, high)
        part: Operand = e.halves(e.op("shl", "b64", pair, count))[1]
    else:
        part = e.op("shl", "b32", a, count) if count else a
    if outs:
        wide = e.op("add", "u64", e.widen(part), e.widen(b))
        wide = wide if carry == 0 else e.op("add", "u64", wide, e.widen(carry))
        low, high_word = e.halves(wide)
        e.write_predicate(outs[0], e.op("setp", "u32", high_word, 1, mods=("ge",), bits=1))
        return e.write(dst, low)
    total = part if b == 0 else e.op("add", "u32", part, b)
    e.write(dst, total if carry == 0 else e.op("add", "u32", total, carry))


def _funnel(e: Emitter, line: Line) -> None:
    """SHF: shift a pair and keep one half; `.W` wraps the count, else it saturates."""
    dst, sources = line.operands[0], line.operands[1:]
    low, count, high = e.int32(sources[0]), e.int32(sources[1]), e.int32(sources[2])
    left, upper = "L" in line.mods, "HI" in line.mods
    kind = next((m for m in line.mods if m in ("U32", "S32", "U64", "S64")), "U32")
    width, sign = int(kind[1:]), kind[0].lower()
    if "W" in line.mods:
        count = count & (width - 1) if isinstance(count, int) else e.op("and", "b32", count, width - 1)
    if left and not upper:
        value: Operand = e.op("shl", "b32", low, count)
    elif not left and upper:
        value = e.op("shr", f"{sign}32", high, count)
    else:
        limit = count if (isinstance(count, int) and count <= width) or "W" in line.mods else e.op("min", "u32", count, width)
        pair = e.pair(low, high) if low != 0 or high != 0 else 0
        shifted = e.op("shl", "b64", pair, limit) if left else e.op("shr", f"{sign}64", pair, limit)
        value = e.halves(shifted)[1 if upper else 0]
    e.write(dst, value)


def _shift(e: Emitter, line: Line) -> None:
    """SHL, SHR of older code."""
    a, count = e.int32(line.operands[1]), e.int32(line.operands[2])
    if "W" in line.mods:
        count = count & 31 if isinstance(count, int) else e.op("and", "b32", count, 31)
    kind = "b32" if line.opcode.endswith("SHL") else "u32" if "U32" in line.mods else "s32"
    e.write(line.operands[0], e.op(line.opcode[-3:].lower(), kind, a, count))


def _lookup(e: Emitter, table: int, type_: str, ones: int, *sources: Operand) -> Operand:
    """Apply a table of three bits to words or predicates."""

    def emit(op: str, *args: Operand) -> Operand:
        if op == "not" and isinstance(args[0], int):
            return ones & ~args[0]
        return e.op(op, type_, *args)

    return lop3(table, *sources, emit, ones)


def _logic(e: Emitter, line: Line) -> None:
    """LOP3: any function of three words by its table; the predicate tells whether the result is not zero."""
    operands = list(line.operands)
    written = operands.pop(0) if PREDICATE.match(operands[0]) else "PT"
    dst, a, b, c, table, *extra = operands
    value = _lookup(e, integer(table) & 255, "b32", 0xFFFFFFFF, e.int32(a), e.int32(b), e.int32(c))
    if written not in ("PT", "UPT"):
        some: Operand = int(value != 0) if isinstance(value, int) else e.op("setp", "u32", value, 0, mods=("ne",), bits=1)
        if extra:
            some = e.combine("AND" if "PAND" in line.mods else "OR", some, e.predicate(extra[0]))
    e.write(dst, value)
    if written not in ("PT", "UPT"):
        e.write_predicate(written, some)


def _logic_predicates(e: Emitter, line: Line) -> None:
    """PLOP3: two functions of three predicates by their tables."""
    first, second, a, b, c, table, *other = line.operands
    sources = [e.predicate(name) for name in (a, b, c)]
    tables = (integer(table) & 255, integer(other[0]) & 255 if other else 0)
    values = [e.op("mov", "pred", _lookup(e, number, "pred", 1, *sources)) for number in tables]
    for name, value in zip((first, second), values, strict=True):
        e.write_predicate(name, value)


def _set_predicate(e: Emitter, line: Line) -> None:
    """ISETP: compare, join with a predicate; `.EX` compares the upper halves of pairs whose lower halves were compared before."""
    first, second, a, b, *read = line.operands
    compare, joined = line.mods[0].lower(), next((m for m in line.mods[1:] if m in ("AND", "OR", "XOR")), "AND")
    kind = "u32" if "U32" in line.mods else "s32"
    x, y, entry = e.int32(a), e.int32(b), e.predicate(read[0]) if read else 1
    if compare in ("t", "f"):
        result: Operand = int(compare == "t")
    elif "EX" in line.mods:
        below, equal = e.predicate(read[1]), e.op("setp", kind, x, y, mods=("eq",), bits=1)
        if compare == "ne":
            result = e.op("or", "pred", e.op("not", "pred", equal), below)
        elif compare == "eq":
            result = e.op("and", "pred", equal, below)
        else:
            strict = e.op("setp", kind, x, y, mods=("gt" if compare in ("gt", "ge") else "lt",), bits=1)
            result = e.op("or", "pred", strict, e.op("and", "pred", equal, below))
    else:
        result = e.op("setp", kind, x, y, mods=(compare,), bits=1)
    other = e.combine(joined, e.invert(result), entry) if second not in ("PT", "UPT") else 0
    e.write_predicate(first, e.combine(joined, result, entry))
    e.write_predicate(second, other)


def _select(e: Emitter, line: Line) -> None:
    dst, a, b, predicate = line.operands
    e.write(dst, choose(e, e.int32(a), e.int32(b), e.predicate(predicate)))


def choose(e: Emitter, a: Operand, b: Operand, predicate: Operand, kind: str = "b32") -> Operand:
    """Return a where the predicate holds, b elsewhere."""
    if isinstance(predicate, int):
        return a if predicate else b
    return e.op("select", kind, a, b, predicate)


def _minmax(e: Emitter, line: Line) -> None:
    """IMNMX, VIMNMX: smaller where the predicate holds, else larger."""
    dst, a, b, predicate = line.operands[0], *line.operands[-3:]
    kind = "u32" if "U32" in line.mods else "s32"
    value = _extreme(e, kind, e.int32(a), e.int32(b), e.predicate(predicate))
    e.write(dst, e.op("max", "s32", value, 0) if "RELU" in line.mods else value)


def _extreme(e: Emitter, kind: str, x: Operand, y: Operand, smaller: Operand) -> Operand:
    if isinstance(smaller, int):
        return e.op("min" if smaller else "max", kind, x, y)
    return e.op("select", "b32", e.op("min", kind, x, y), e.op("max", kind, x, y), smaller)


def _minmax_of_three(e: Emitter, line: Line) -> None:
    """VIMNMX3: smallest of three where the predicate holds, else largest."""
    dst, a, b, c, predicate = line.operands
    kind, smaller = "u32" if "U32" in line.mods else "s32", e.predicate(predicate)
    value = _extreme(e, kind, _extreme(e, kind, e.int32(a), e.int32(b), smaller), e.int32(c), smaller)
    e.write(dst, e.op("max", "s32", value, 0) if "RELU" in line.mods else value)


def _add_minmax(e: Emitter, line: Line) -> None:
    """VIADDMNMX: smaller or larger of a + b and c."""
    dst, a, b, c, predicate = line.operands[0], *line.operands[-4:]
    kind = "u32" if "U32" in line.mods else "s32"
    total, other = _sum(e, [a, b], False), e.int32(c)
    value = _extreme(e, kind, total, other, e.predicate(predicate))
    e.write(dst, e.op("max", "s32", value, 0) if "RELU" in line.mods else value)


def _unary(op: str, kind: str) -> Handler:
    def handle(e: Emitter, line: Line) -> None:
        mods = ("shiftamt",) if "SH" in line.mods else ()
        type_ = "u32" if kind == "s32" and "U32" in line.mods else kind
        e.write(line.operands[0], e.op(op, type_, e.int32(line.operands[-1]), mods=mods, bits=32))

    return handle


def _permute(e: Emitter, line: Line) -> None:
    dst, a, selector, b = line.operands
    if line.mods:
        raise Unsupported("mode of a byte permutation", value=line.full)
    e.write(dst, e.op("prmt", "b32", e.int32(a), e.int32(b), e.int32(selector)))


def _move(e: Emitter, line: Line) -> None:
    e.write(line.operands[0], e.int32(line.operands[1]))


def _load_constant(e: Emitter, line: Line) -> None:
    """LDC, ULDC: read a constant bank, also at an index."""
    dst, source = line.operands[0], line.operands[-1]
    kind = next((m for m in line.mods if m in ("U8", "S8", "U16", "S16", "64")), "32")
    address = read_address(source)
    if not address.registers and kind in ("32", "64"):
        values = [e.bank(address.bank, address.offset + 4 * k) for k in range(2 if kind == "64" else 1)]
    elif not address.registers and address.bank != 3:
        word, width = e.bank(address.bank, address.offset & ~3), int(kind[1:])
        values = [e.op("bfe", "u32" if kind[0] == "U" else "s32", word, 8 * (address.offset & 3), width)]
    else:
        place, shift = e.constant_place(address)
        type_ = {"32": "b32", "64": "b32"}.get(kind, kind.lower())
        values = [e.op("ld", type_, place, shift + 4 * k, mods=("const",), bits=32) for k in range(2 if kind == "64" else 1)]
    for index, value in enumerate(values):
        e.write(dst, value, index)


def _dot(e: Emitter, line: Line) -> None:
    """IDP.4A: c plus four products of bytes."""
    dst, a, b, c = line.operands
    signs = tuple(m.lower() for m in line.mods if m in ("S8", "U8"))
    if "4A" not in line.mods or len(signs) != 2:
        raise Unsupported("form of a dot product of bytes", value=line.full)
    e.write(dst, e.op("dp4a", "u32" if signs == ("u8", "u8") else "s32", e.int32(a), e.int32(b), e.int32(c), mods=signs))


def _difference(e: Emitter, line: Line) -> None:
    dst, a, b, c = line.operands
    e.write(dst, e.op("sad", "u32" if "U32" in line.mods else "s32", e.int32(a), e.int32(b), e.int32(c)))


def _mask(e: Emitter, line: Line) -> None:
    """BMSK: `length` ones from a position on."""
    dst, position, length = line.operands
    start, count = e.int32(position), e.int32(length)
    if "W" in line.mods:
        start, count = e.op("and", "b32", start, 31), e.op("and", "b32", count, 31)
    ones = e.op("sub", "u32", e.op("shl", "b32", 1, count), 1)
    e.write(dst, e.op("shl", "b32", ones, start))


def _sign_extend(e: Emitter, line: Line) -> None:
    """SGXT: keep the low bits, extended."""
    dst, a, length = line.operands
    count = e.int32(length)
    if "W" in line.mods:
        count = e.op("and", "b32", count, 31)
    e.write(dst, e.op("bfe", "u32" if "U32" in line.mods else "s32", e.int32(a), 0, count))


def _bits_to_predicates(e: Emitter, line: Line) -> None:
    """R2P: set the predicates that the mask names from bits of a register."""
    _, source, mask = line.operands
    base, _, suffix = source.partition(".")
    value = e.int32(base)
    shift = 8 * int(suffix[1]) if suffix.startswith("B") else 0
    bits = integer(mask) & 0x7F
    values = {
        n: e.op("setp", "u32", e.op("bfe", "u32", value, shift + n, 1), 0, mods=("ne",), bits=1)
        for n in range(7)
        if bits >> n & 1
    }
    for number, bit in values.items():
        e.write_predicate(f"P{number}", bit)


def _predicates_to_bits(e: Emitter, line: Line) -> None:
    """P2R: put the predicates that the mask names into the low bits of a register."""
    dst, _, other, mask = line.operands
    base, _, suffix = dst.partition(".")
    bits, shift = integer(mask) & 0x7F, 8 * int(suffix[1]) if suffix.startswith("B") else 0
    total: Operand = e.int32(other)
    keep = 0xFFFFFFFF & ~(bits << shift)
    total = total & keep if isinstance(total, int) else e.op("and", "b32", total, keep)
    for number in range(7):
        if bits >> number & 1:
            bit = choose(e, 1 << number + shift, 0, e.predicate(f"P{number}"))
            total = e.op("or", "b32", total, bit)
    e.write(base, total)


def _convert(e: Emitter, line: Line) -> None:
    """I2I: narrow with saturation."""
    dst, a = line.operands
    kinds = [m.lower() for m in line.mods if re.match(r"[US](8|16|32)$", m)]
    if len(kinds) != 2 or "SAT" not in line.mods:
        raise Unsupported("form of an integer conversion", value=line.full)
    to, source = kinds
    low, high = (0, (1 << int(to[1:])) - 1) if to[0] == "u" else (-(1 << int(to[1:]) - 1), (1 << int(to[1:]) - 1) - 1)
    value = e.op("min", source, e.int32(a), high)
    e.write(dst, e.op("max", source, value, low & 0xFFFFFFFF) if source[0] == "s" else value)


def _first(e: Emitter, line: Line) -> None:
    """R2UR, and moves that name a predicate first."""
    e.write(line.operands[0], e.int32(line.operands[-1]))


_BOTH: Final[dict[str, Handler]] = {
    **{"IADD3": _add, "IMAD": _multiply_add, "LEA": _lea, "SHF": _funnel, "LOP3": _logic, "PLOP3": _logic_predicates},
    **{"ISETP": _set_predicate, "SEL": _select, "MOV": _move, "PRMT": _permute, "BREV": _unary("brev", "b32")},
    **{
        "POPC": _unary("popc", "b32"),
        "FLO": _unary("flo", "s32"),
        "BMSK": _mask,
        "SGXT": _sign_extend,
        "SHL": _shift,
        "SHR": _shift,
    },
    **{"IMNMX": _minmax, "IABS": _unary("abs", "s32")},
}
INTEGER: Final[dict[str, Handler]] = {
    **_BOTH,
    **{"U" + name: handler for name, handler in _BOTH.items()},
    **{"VIADD": _add, "IADD": _add, "VIMNMX": _minmax, "VIADDMNMX": _add_minmax, "VIMNMX3": _minmax_of_three, "UVIMNMX": _minmax},
    **{"LDC": _load_constant, "ULDC": _load_constant, "R2UR": _first, "IDP": _dot, "VABSDIFF": _difference},
    **{"R2P": _bits_to_predicates, "P2R": _predicates_to_bits, "I2I": _convert},
}
"""Handlers by base opcode."""
