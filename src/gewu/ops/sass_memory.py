"""Loads, stores, atomics, shuffles, votes, barriers and special registers of machine code."""

from __future__ import annotations

from typing import Final

from gewu.ops.ir import LOCAL_WINDOW, SHARED_WINDOW, Operand, Unsupported
from gewu.ops.sass_emit import PREDICATE, Emitter
from gewu.ops.sass_integer import Handler
from gewu.ops.sass_syntax import Line, read_address

_SPACE: Final = {"G": "global", "S": "shared", "L": "local", "": "generic"}
_NARROW: Final = ("U8", "S8", "U16", "S16")
_SCALE: Final = {"X4": 2, "X8": 3, "X16": 4}
_MASK64: Final = (1 << 64) - 1


def place(e: Emitter, operand: str, space: str, wide: bool) -> tuple[Operand, int]:
    """Return base and constant offset of a memory operand; `wide`: a lone register means a pair."""
    address = read_address(operand)
    small = space in ("shared", "local")
    mask = 0xFFFFFFFF if small else _MASK64
    base: Operand = 0
    for register, kind in address.registers:
        if small:
            term = e.raw(register)
            term = e.op("shl", "b32", term, _SCALE[kind]) if kind in _SCALE else term
        elif kind in ("U32", "S32"):
            term = e.widen(e.raw(register), signed=kind == "S32")
        elif kind in _SCALE:
            raise Unsupported("scaled global address", value=operand)
        else:
            term = e.int64(register) if kind == "64" or wide or register.startswith("UR") else e.widen(e.raw(register))
        base = term if base == 0 else e.op("add", "u32" if small else "u64", base, term)
    if base == 0:
        return address.offset & mask, 0
    return base, address.offset & mask


def _shape(line: Line) -> tuple[str, int]:
    """Return the element type and how many 32-bit registers it takes."""
    narrow = next((m for m in line.mods if m in _NARROW), "")
    return (narrow.lower(), 1) if narrow else ("b32", 4 if "128" in line.mods else 2 if "64" in line.mods else 1)


def _space_of(line: Line) -> str:
    return _SPACE[line.opcode[2:]]


def _load(e: Emitter, line: Line) -> None:
    """LDG, LDS, LDL, LD."""
    if len(line.operands) != 2:
        raise Unsupported("form of a load", value=f"{line.full} {', '.join(line.operands)}")
    space, (type_, count) = _space_of(line), _shape(line)
    base, offset = place(e, line.operands[1], space, "E" in line.mods)
    values = tuple(e.temporary(32) for _ in range(count))
    e.add("ld", type_, values, (base, offset), (space,), guarded=True)
    for index, value in enumerate(values):
        e.write(line.operands[0], value, index)


def _store(e: Emitter, line: Line) -> None:
    """STG, STS, STL, ST."""
    if len(line.operands) != 2:
        raise Unsupported("form of a store", value=f"{line.full} {', '.join(line.operands)}")
    space, (type_, count) = _space_of(line), _shape(line)
    base, offset = place(e, line.operands[0], space, "E" in line.mods)
    values = [e.raw(line.operands[1], index) for index in range(count)]
    e.add("st", type_, (), (base, offset, *values), (space,), guarded=True)


def _copy(e: Emitter, line: Line) -> None:
    """LDGSTS: global to shared memory; the waiting instructions behind it have nothing left to do."""
    to, source, *extra = line.operands
    if extra not in ([], ["PT"]):
        raise Unsupported("copy with a predicate", value=line.full)
    type_, count = _shape(line)
    base, offset = place(e, source, "global", "E" in line.mods)
    values = tuple(e.temporary(32) for _ in range(count))
    e.add("ld", type_, values, (base, offset), ("global",), guarded=True)
    goal, shift = place(e, to, "shared", False)
    e.add("st", type_, (), (goal, shift, *values), ("shared",), guarded=True)


_ATOMICS: Final = ("ADD", "MIN", "MAX", "INC", "DEC", "AND", "OR", "XOR", "EXCH", "CAS")


def _atomic_type(line: Line, kind: str) -> str:
    for name in ("F64", "F32", "S64", "U64", "S32", "U32"):
        if name in line.mods:
            return name.lower()
    if "F16x2" in line.mods:
        return "f16x2"
    if "BF16_V2" in line.mods or "BF16x2" in line.mods:
        return "bf16x2"
    width = 64 if "64" in line.mods else 32
    return f"b{width}" if kind in ("AND", "OR", "XOR", "EXCH", "CAS") else f"u{width}"


def _atomic(e: Emitter, line: Line) -> None:
    """ATOMG, ATOMS, ATOM and, without a result, RED."""
    space = {"ATOMG": "global", "ATOMS": "shared", "ATOM": "generic", "RED": "global", "REDG": "global", "REDS": "shared"}[
        line.opcode
    ]
    operands = list(line.operands)
    if PREDICATE.match(operands[0]):
        operands.pop(0)
    dst = operands.pop(0) if line.opcode.startswith("ATOM") else "RZ"
    if "CAST" in line.mods:
        return _compare_and_swap(e, line, dst, operands)
    if "POPC" in line.mods:
        if dst != "RZ":
            raise Unsupported("counting atomic with a result", value=line.full)
        base, offset = place(e, operands[0], space, True)
        return e.add("atom", "u32", (), (base, offset, 1), (space, "add"), guarded=True)
    kind = next((m for m in line.mods if m in _ATOMICS), "")
    if not kind or any(m in line.mods for m in ("128", "2", "4", "8")):
        raise Unsupported("atomic operation", value=line.full)
    type_ = _atomic_type(line, kind)
    wide = type_.endswith("64")
    base, offset = place(e, operands[0], space, "E" in line.mods)
    values = [e.int64(value) if wide else e.int32(value) for value in operands[1 : 3 if kind == "CAS" else 2]]
    old = (e.temporary(64 if wide else 32),) if dst != "RZ" else ()
    e.add("atom", type_, old, (base, offset, *values), (space, kind.lower()), guarded=True)
    if old:
        (e.write64 if wide else e.write)(dst, old[0])


def _compare_and_swap(e: Emitter, line: Line, dst: str, operands: list[str]) -> None:
    """ATOMS.CAST.SPIN: the result tells whether the swap took place."""
    wide = "64" in line.mods
    base, offset = place(e, operands[0], "shared", False)
    expected, new = (e.int64(v) if wide else e.int32(v) for v in operands[1:3])
    old = e.temporary(64 if wide else 32)
    e.add("atom", "b64" if wide else "b32", (old,), (base, offset, expected, new), ("shared", "cas"), guarded=True)
    done = e.op("select", "b32", 1, 0, e.op("setp", "u64" if wide else "u32", old, expected, mods=("eq",), bits=1))
    e.write(dst, done)
    if wide:
        e.write(dst, 0, 1)


def _shuffle(e: Emitter, line: Line) -> None:
    """SHFL."""
    predicate, dst, a, lane, clamp = line.operands
    value, valid = e.temporary(32), e.temporary(1)
    sources = (e.int32(a), e.int32(lane), e.int32(clamp))
    e.add("shfl", "b32", (value, valid), sources, (line.mods[0].lower(),), guarded=True)
    e.write(dst, value)
    e.write_predicate(predicate, valid)


_VOTES: Final = {"ANY": "any", "ALL": "all", "EQ": "uni"}


def _vote(e: Emitter, line: Line) -> None:
    """VOTE, VOTEU: a mask of lanes, a predicate, or both."""
    operands = list(line.operands)
    dst = "RZ" if PREDICATE.match(operands[0]) else operands.pop(0)
    written, source = operands
    value = e.predicate(source)
    if dst not in ("RZ", "URZ"):
        mask = e.temporary(32)
        if value == 1:
            e.add("activemask", "b32", (mask,), (), guarded=True)
        else:
            e.add("vote", "pred", (mask,), (value,), ("ballot",), guarded=True)
    answer = e.temporary(1) if written not in ("PT", "UPT") else ""
    if answer:
        e.add("vote", "pred", (answer,), (value,), (_VOTES[line.mods[0]],), guarded=True)
        e.write_predicate(written, answer)
    if dst not in ("RZ", "URZ"):
        e.write(dst, mask)


def _match(e: Emitter, line: Line) -> None:
    """MATCH.ANY: the lanes with this value; MATCH.ALL: all lanes here and a predicate if they agree, else none."""
    wide, written = "U64" in line.mods, "PT"
    dst, source = line.operands[0], line.operands[-1]
    value, mask = (e.int64 if wide else e.int32)(source), e.temporary(32)
    if "ALL" in line.mods:
        written, dst, _ = line.operands
    e.add("match", "b64" if wide else "b32", (mask,), (value,), ("any",), guarded=True)
    if "ALL" in line.mods:
        here, agree = e.temporary(32), e.temporary(1)
        e.add("activemask", "b32", (here,), (), guarded=True)
        same = e.op("setp", "u32", mask, here, mods=("eq",), bits=1)
        e.add("vote", "pred", (agree,), (same,), ("all",), guarded=True)
        mask = e.op("select", "b32", here, 0, agree)
        e.write_predicate(written, agree)
    e.write(dst, mask)


def _reduce(e: Emitter, line: Line) -> None:
    """REDUX."""
    dst, source = line.operands
    # Without a name of the operation it is AND.
    name = next((m for m in line.mods if m in ("SUM", "MIN", "MAX", "OR", "XOR")), "AND")
    kind = "add" if name == "SUM" else name.lower()
    type_ = "b32" if kind in ("and", "or", "xor") else "s32" if "S32" in line.mods else "u32"
    value, result = e.int32(source), e.temporary(32)
    e.add("redux", type_, (result,), (value,), (kind,), guarded=True)
    e.write(dst, result)


def _barrier(e: Emitter, line: Line) -> None:
    """BAR.SYNC of all threads of the block."""
    if line.mods[0] != "SYNC" or len(line.operands) > 1 or line.operands[0].startswith("R") or e.guard:
        raise Unsupported("form of a barrier", value=f"{line.full} {', '.join(line.operands)}")
    e.add("bar", "b32", (), ())


_SPECIAL: Final = {
    **{f"SR_{name}.{axis.upper()}": f"{name.lower()}.{axis}" for name in ("TID", "CTAID") for axis in "xyz"},
    **{f"SR_{name}MASK": f"lanemask_{name.lower()}" for name in ("LT", "LE", "GT", "GE", "EQ")},
    **{"SR_LANEID": "laneid", "SR_CLOCKLO": "clock", "SR_WARPID": "warpid", "SR_VIRTUALSMID": "smid", "SR_SMID": "smid"},
    "SR_NWARPID": "nwarpid",
}
_FIXED: Final = {
    "SRZ": 0,
    "SR_CgaCtaId": 0,
    "SR_SWINHI": SHARED_WINDOW >> 32,
    "SR_LWINHI": LOCAL_WINDOW >> 32,
    "SR_SWINLO": 0,
    "SR_LWINLO": 0,
}


def _special_register(e: Emitter, line: Line) -> None:
    """S2R, S2UR, CS2R. The block is the only one of its cluster, so SR_CgaCtaId is 0."""
    dst, name = line.operands
    wide = line.opcode == "CS2R" and "32" not in line.mods
    if name in _FIXED:
        value: Operand = _FIXED[name]
    elif _SPECIAL.get(name):
        value = e.op("special", "b64" if wide else "b32", mods=(_SPECIAL[name],))
    else:
        raise Unsupported("special register", value=name)
    (e.write64 if wide else e.write)(dst, value)


def _query_space(e: Emitter, line: Line) -> None:
    """QSPC: is an address in the window of shared (S), local (L) or global (G) memory?"""
    predicate, dst, source = line.operands
    if dst != "RZ":
        raise Unsupported("form of an address query", value=line.full)
    base, offset = place(e, source, "generic", True)
    window = e.halves(e.op("shr", "u64", e.op("add", "u64", base, offset), 60))[0]
    number = {"S": SHARED_WINDOW >> 60, "L": LOCAL_WINDOW >> 60, "G": 0}.get(line.mods[-1])
    if number is None:
        raise Unsupported("form of an address query", value=line.full)
    e.write_predicate(predicate, e.op("setp", "u32", window, number, mods=("eq",), bits=1))


def _nothing(e: Emitter, line: Line) -> None:
    """Fences, hints and the bookkeeping of reconvergence."""


_NOTHING: Final = (
    *(
        "NOP",
        "BSSY",
        "BSYNC",
        "BREAK",
        "BMOV",
        "WARPSYNC",
        "YIELD",
        "DEPBAR",
        "MEMBAR",
        "ERRBAR",
        "CGAERRBAR",
        "CCTL",
        "CCTLL",
        "FENCE",
        "LDGDEPBAR",
    ),
    *("NANOSLEEP", "PREFETCH", "PMTRIG"),
)
MEMORY: Final[dict[str, Handler]] = {
    **dict.fromkeys(("LDG", "LDS", "LDL", "LD"), _load),
    **dict.fromkeys(("STG", "STS", "STL", "ST"), _store),
    **dict.fromkeys(("ATOMG", "ATOMS", "ATOM", "RED", "REDG", "REDS"), _atomic),
    **{"LDGSTS": _copy, "SHFL": _shuffle, "VOTE": _vote, "VOTEU": _vote, "MATCH": _match, "REDUX": _reduce, "BAR": _barrier},
    **dict.fromkeys(("S2R", "S2UR", "CS2R"), _special_register),
    **{"QSPC": _query_space},
    **dict.fromkeys(_NOTHING, _nothing),
}
"""Handlers by base opcode."""
