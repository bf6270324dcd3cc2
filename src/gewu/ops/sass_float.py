"""Floating-point instructions of machine code: single, double, half precision, conversions, MUFU."""

from __future__ import annotations

import re
from typing import Final

from gewu.ops.ir import Operand, Unsupported
from gewu.ops.sass_emit import Emitter, number
from gewu.ops.sass_integer import Handler, choose
from gewu.ops.sass_syntax import Line

_ROUNDING: Final = {"RZ": "rz", "RM": "rm", "RP": "rp"}
_TO_INTEGER: Final = {"TRUNC": "rzi", "FLOOR": "rmi", "CEIL": "rpi"}
_COMPARE: Final = frozenset({"LT", "EQ", "LE", "GT", "NE", "GE", "NUM", "NAN", "LTU", "EQU", "LEU", "GTU", "NEU", "GEU"})


def _mods(line: Line, op: str = "") -> tuple[str, ...]:
    """Return rounding and other modifiers; sums and products that round to nearest go without, as in PTX."""
    rounding = next((_ROUNDING[m] for m in line.mods if m in _ROUNDING), "" if op in ("add", "mul") else "rn")
    return (*((rounding,) if rounding else ()), *(m.lower() for m in line.mods if m in ("FTZ", "SAT")))


def _single(op: str) -> Handler:
    """FADD, FMUL, FFMA."""

    def handle(e: Emitter, line: Line) -> None:
        dst, *sources = line.operands
        e.write(dst, e.op(op, "f32", *map(e.float32, sources), mods=_mods(line, op)))

    return handle


def _double(op: str) -> Handler:
    """DADD, DMUL, DFMA."""

    def handle(e: Emitter, line: Line) -> None:
        dst, *sources = line.operands
        e.write64(dst, e.op(op, "f64", *map(e.float64, sources), mods=_mods(line, op)))

    return handle


def _minmax(e: Emitter, line: Line) -> None:
    """FMNMX, DMNMX: smaller where the predicate holds, else larger."""
    dst, a, b, predicate = line.operands
    wide = line.opcode == "DMNMX"
    kind, read = ("f64", e.float64) if wide else ("f32", e.float32)
    x, y, smaller = read(a), read(b), e.predicate(predicate)
    mods = tuple(m.lower() for m in line.mods)
    if isinstance(smaller, int):
        value = e.op("min" if smaller else "max", kind, x, y, mods=mods)
    else:
        value = e.op("select", f"b{kind[1:]}", e.op("min", kind, x, y, mods=mods), e.op("max", kind, x, y, mods=mods), smaller)
    (e.write64 if wide else e.write)(dst, value)


def _set_predicate(e: Emitter, line: Line) -> None:
    """FSETP, DSETP: compare and join with a predicate."""
    first, second, a, b, *read = line.operands
    kind, source = ("f64", e.float64) if line.opcode == "DSETP" else ("f32", e.float32)
    compare = line.mods[0]
    joined = next((m for m in line.mods[1:] if m in ("AND", "OR", "XOR")), "AND")
    entry = e.predicate(read[0]) if read else 1
    x, y = source(a), source(b)
    if compare in ("MIN", "MAX"):
        return _choice_of_double(e, line, x, y)
    result = _compared(e, kind, compare, x, y, "FTZ" in line.mods)
    other = e.combine(joined, e.invert(result), entry) if second not in ("PT", "UPT") else 0
    e.write_predicate(first, e.combine(joined, result, entry))
    e.write_predicate(second, other)


def _choice_of_double(e: Emitter, line: Line, x: Operand, y: Operand) -> None:
    """DSETP.MIN, DSETP.MAX: is the first one the result, and are both no numbers."""
    smaller = line.mods[0] == "MIN"
    first, second = (e.op("setp", "f64", v, v, mods=("nan",), bits=1) for v in (x, y))
    strict = e.op("setp", "f64", x, y, mods=("lt" if smaller else "gt",), bits=1)
    equal = e.op("setp", "f64", x, y, mods=("eq",), bits=1)
    negative = e.op("setp", "s32", e.halves(x)[1], 0, mods=("lt" if smaller else "ge",), bits=1)
    ahead = e.op("or", "pred", strict, e.op("and", "pred", equal, negative))
    alone = e.op("and", "pred", second, e.op("not", "pred", first))
    both = e.op("and", "pred", first, second)
    e.write_predicate(line.operands[0], e.op("or", "pred", ahead, alone))
    e.write_predicate(line.operands[1], both)


def _compared(e: Emitter, kind: str, compare: str, x: Operand, y: Operand, ftz: bool) -> Operand:
    if compare in ("T", "F"):
        return int(compare == "T")
    if compare not in _COMPARE:
        raise Unsupported("comparison", value=compare)
    return e.op("setp", kind, x, y, mods=(compare.lower(), *(("ftz",) if ftz else ())), bits=1)


def _set(e: Emitter, line: Line) -> None:
    """FSET: 1.0 (`.BF`) or all ones where the comparison holds."""
    dst, a, b, *read = line.operands
    compare = next((m for m in line.mods if m in _COMPARE), "")
    joined = next((m for m in line.mods if m in ("AND", "OR", "XOR")), "AND")
    result = _compared(e, "f32", compare, e.float32(a), e.float32(b), "FTZ" in line.mods)
    result = e.combine(joined, result, e.predicate(read[0]) if read else 1)
    e.write(dst, choose(e, 0x3F800000 if "BF" in line.mods else 0xFFFFFFFF, 0, result))


def _select(e: Emitter, line: Line) -> None:
    dst, a, b, predicate = line.operands
    e.write(dst, choose(e, e.float32(a), e.float32(b), e.predicate(predicate)))


_MUFU: Final = {
    "RCP": "rcp",
    "RSQ": "rsqrt",
    "SQRT": "sqrt",
    "EX2": "ex2",
    "LG2": "lg2",
    "SIN": "sin",
    "COS": "cos",
    "TANH": "tanh",
}


def _special(e: Emitter, line: Line) -> None:
    """MUFU: approximate functions; `64H` works on the upper word of a double."""
    dst, a = line.operands
    if line.mods[0] in ("RCP64H", "RSQ64H"):
        pair = e.pair(0, _word(e, a))
        value = e.op("rcp" if line.mods[0] == "RCP64H" else "rsqrt", "f64", pair, mods=("approx", "ftz"))
        return e.write(dst, e.halves(value)[1])
    if line.mods[0] not in _MUFU or len(line.mods) > 1:
        raise Unsupported("special function", value=line.full)
    source = e.float32(a)
    if line.mods[0] in ("SIN", "COS"):
        # The unit takes its angle in turns: RRO or a multiplication by 1 / (2 pi) stands before it.
        source = e.op("mul", "f32", source, 0x40C90FDB)
    e.write(dst, e.op(_MUFU[line.mods[0]], "f32", source, mods=("approx", "ftz")))


def _word(e: Emitter, operand: str) -> Operand:
    sign, bar, body, _ = e.parts(operand)
    value = e.raw(body)
    if bar:
        value = e.op("and", "b32", value, 0x7FFFFFFF)
    return e.op("xor", "b32", value, 0x80000000) if sign == "-" else value


def _check_division(e: Emitter, line: Line) -> None:
    """FCHK: does a / b need the careful path? `clean` settles or spells out the operation."""
    predicate, a, b = line.operands
    e.write_predicate(predicate, e.op("fchk", "f32", e.float32(a), e.float32(b), bits=1))


def _integer_kind(line: Line) -> str:
    return next((m.lower() for m in line.mods if re.match(r"[US](8|16|32|64)$", m)), "s32")


def _float_kind(line: Line) -> str:
    return next((m.lower() for m in line.mods if m in ("F16", "F32", "F64")), "f32")


def _from_integer(e: Emitter, line: Line) -> None:
    """I2F, I2FP."""
    dst, source = line.operands
    kind, to = _integer_kind(line), _float_kind(line)
    width = int(kind[1:])
    if width == 64:
        value: Operand = e.int64(source)
    elif width == 32:
        value = e.int32(source)
    else:
        base, _, suffix = source.partition(".")
        value = e.piece(e.int32(base), suffix or ("B0" if width == 8 else "H0"), kind[0] == "s")
        kind = kind[0] + "32"
    rounding = next((_ROUNDING[m] for m in line.mods if m in _ROUNDING), "rn")
    result = e.op("cvt", to, value, mods=(kind, rounding))
    (e.write64 if to == "f64" else e.write_half if to == "f16" else e.write)(dst, result)


def _to_integer(e: Emitter, line: Line) -> None:
    """F2I, F2IP: rounding to nearest unless told; narrow results are clamped and extended."""
    dst, source = line.operands
    kind, origin = _integer_kind(line), _float_kind(line)
    rounding = next((_TO_INTEGER[m] for m in line.mods if m in _TO_INTEGER), "rni")
    mods = (origin, rounding, *(("ftz",) if "FTZ" in line.mods else ()))
    value = e.float64(source) if origin == "f64" else e.half(source) if origin == "f16" else e.float32(source)
    if kind.endswith("64"):
        return e.write64(dst, e.op("cvt", kind, value, mods=mods))
    word = kind[0] + "32"
    result = e.op("cvt", word, value, mods=mods)
    width = int(kind[1:])
    if width < 32:
        low, high = (0, (1 << width) - 1) if kind[0] == "u" else (-(1 << width - 1) & 0xFFFFFFFF, (1 << width - 1) - 1)
        result = e.op("min", word, result, high)
        result = e.op("max", word, result, low) if low else result
    e.write(dst, result)


def _float_to_float(e: Emitter, line: Line) -> None:
    """F2F: first the type of the result, then of the source."""
    dst, source = line.operands
    kinds = [m.lower() for m in line.mods if m in ("F16", "F32", "F64", "BF16")]
    if len(kinds) != 2:
        raise Unsupported("form of a conversion", value=line.full)
    to, origin = kinds
    value = e.float64(source) if origin == "f64" else e.half(source) if origin == "f16" else e.float32(source)
    result = value if to == origin else e.op("cvt", to, value, mods=(origin, *_mods(line)))
    (e.write64 if to == "f64" else e.write_half if to in ("f16", "bf16") else e.write)(dst, result)


def _round(e: Emitter, line: Line) -> None:
    """FRND: round to an integer, kept as a float."""
    dst, source = line.operands
    rounding = next((_TO_INTEGER[m] for m in line.mods if m in _TO_INTEGER), "rni")
    if "F64" in line.mods:
        return e.write64(dst, e.op("cvt", "f64", e.float64(source), mods=("f64", rounding)))
    mods = ("f32", rounding, *(("ftz",) if "FTZ" in line.mods else ()))
    e.write(dst, e.op("cvt", "f32", e.float32(source), mods=mods))


def _pack_halves(e: Emitter, line: Line) -> None:
    """F2FP: two singles to a pair of halves, the first one above."""
    if "PACK_AB" not in line.mods:
        raise Unsupported("form of a packed conversion", value=line.full)
    dst, a, b = line.operands
    kind = "bf16x2" if "BF16" in line.mods else "f16x2"
    mods = ("f32", "rz" if "RZ" in line.mods else "rn", *(("relu",) if "RELU" in line.mods else ()))
    e.write(dst, e.op("cvt", kind, e.float32(a), e.float32(b), mods=mods))


def _half_sources(e: Emitter, operands: list[str], count: int) -> list[Operand]:
    """Read pairs of halves; two literals in a row are one pair, the first one above."""
    found: list[Operand] = []
    place = 0
    while place < len(operands):
        operand = operands[place]
        if re.match(r"[+-]?(?:\d|INF|QNAN)", operand) and "0x" not in operand:
            second = operands[place + 1] if place + 1 < len(operands) else "0"
            found.append(number(operand, 16) << 16 | number(second, 16))
            place += 1
        else:
            found.append(e.half_pair(operand))
        place += 1
    if len(found) != count:
        raise Unsupported("operands of a half-precision instruction", value=", ".join(operands))
    return found


def _half_kind(line: Line) -> str:
    return "bf16x2" if "BF16_V2" in line.mods else "f16x2"


def _half(op: str, count: int) -> Handler:
    """HADD2, HMUL2, HFMA2 on pairs; with `.F32` the lower halves are added in single precision."""

    def handle(e: Emitter, line: Line) -> None:
        dst, *rest = line.operands
        if "F32" in line.mods:
            if op != "add":
                raise Unsupported("form of a half-precision instruction", value=line.full)
            return e.write(dst, e.op("add", "f32", *(_lower_single(e, operand) for operand in rest[:2])))
        sources = _half_sources(e, rest, count)
        if op == "fma" and sources[0] == 0x80008000 and sources[1] == 0:
            # ptxas loads constants this way; -0 times 0 plus c is c.
            return e.write(dst, sources[2])
        kind = _half_kind(line)
        mods = (*(("rn",) if op == "fma" else ()), *(m.lower() for m in line.mods if m in ("RELU", "SAT", "FTZ")))
        e.write(dst, e.op(op, kind, *sources, mods=mods))

    return handle


def _lower_single(e: Emitter, operand: str) -> Operand:
    sign, bar, body, _ = e.parts(operand)
    if body in ("RZ", "URZ"):
        return 0x80000000 if sign == "-" else 0
    if re.match(r"[+-]?(?:\d|INF|QNAN)", body):
        return number(operand, 32)
    value: Operand = e.op("cvt", "f32", e.half(operand.lstrip("-").replace("|", "")), mods=("f16",))
    if bar:
        value = e.op("abs", "f32", value)
    return e.op("neg", "f32", value) if sign == "-" else value


def _half_minmax(e: Emitter, line: Line) -> None:
    """HMNMX2: smaller where the predicate holds, else larger, for each half."""
    dst, *rest, predicate = line.operands
    x, y = _half_sources(e, rest, 2)
    smaller, mods, kind = e.predicate(predicate), (("nan",) if "NAN" in line.mods else ()), _half_kind(line)
    if isinstance(smaller, int):
        return e.write(dst, e.op("min" if smaller else "max", kind, x, y, mods=mods))
    e.write(dst, e.op("select", "b32", e.op("min", kind, x, y, mods=mods), e.op("max", kind, x, y, mods=mods), smaller))


def _half_compare(e: Emitter, line: Line, operands: list[str]) -> list[Operand]:
    compare = next((m for m in line.mods if m in _COMPARE), "")
    x, y = _half_sources(e, operands, 2)
    kind = _half_kind(line)[:-2]
    halves = [e.split_halves(value) for value in (x, y)]
    return [_compared(e, kind, compare, halves[0][k], halves[1][k], False) for k in (0, 1)]


def _half_set_predicate(e: Emitter, line: Line) -> None:
    """HSETP2: the first predicate for the lower halves, the second for the upper ones."""
    first, second, *rest, entry_name = line.operands
    joined = next((m for m in line.mods if m in ("AND", "OR", "XOR")), "AND")
    entry = e.predicate(entry_name)
    results = _half_compare(e, line, rest)
    combined = [e.combine(joined, result, entry) for result in results]
    e.write_predicate(first, combined[0])
    e.write_predicate(second, combined[1])


def _half_set(e: Emitter, line: Line) -> None:
    """HSET2: 1.0 (`.BF`) or all ones for each half."""
    dst, *rest, entry_name = line.operands
    joined = next((m for m in line.mods if m in ("AND", "OR", "XOR")), "AND")
    entry = e.predicate(entry_name)
    one = 0xFFFF if "BF" not in line.mods else 0x3F80 if "BF16_V2" in line.mods else 0x3C00
    low, high = (choose(e, one << 16 * k, 0, e.combine(joined, r, entry)) for k, r in enumerate(_half_compare(e, line, rest)))
    e.write(dst, e.op("or", "b32", low, high))


FLOAT: Final[dict[str, Handler]] = {
    **{"FADD": _single("add"), "FMUL": _single("mul"), "FFMA": _single("fma"), "FMNMX": _minmax, "FSETP": _set_predicate},
    **{"FSET": _set, "FSEL": _select, "MUFU": _special, "FCHK": _check_division},
    **{"DADD": _double("add"), "DMUL": _double("mul"), "DFMA": _double("fma"), "DMNMX": _minmax, "DSETP": _set_predicate},
    **{
        "I2F": _from_integer,
        "I2FP": _from_integer,
        "F2I": _to_integer,
        "F2F": _float_to_float,
        "FRND": _round,
        "F2FP": _pack_halves,
    },
    **{"HADD2": _half("add", 2), "HMUL2": _half("mul", 2), "HFMA2": _half("fma", 3), "HMNMX2": _half_minmax},
    **{"HSETP2": _half_set_predicate, "HSET2": _half_set},
}
"""Handlers by base opcode."""
