"""Matrix instructions of a warp: HMMA and IMMA products, and the moves of 8 x 8 tiles that feed them.

A tile holds 16-bit elements, two in a register: lane t has columns 2 (t mod 4) and the next one of row t / 4.  LDSM takes the
address of row r of tile m from lane 8 m + r; MOVM transposes a tile.  Both become shuffles and ordinary loads.
"""

from __future__ import annotations

from typing import Final

from gewu.ops.ir import Operand, Unsupported
from gewu.ops.sass_emit import Emitter
from gewu.ops.sass_integer import Handler
from gewu.ops.sass_memory import place
from gewu.ops.sass_syntax import Line

_SHAPES: Final = {
    ("1688", "f16"): ("m16n8k8", 2, 1),
    ("16816", "f16"): ("m16n8k16", 4, 2),
    ("1688", "bf16"): ("m16n8k8", 2, 1),
    ("16816", "bf16"): ("m16n8k16", 4, 2),
    ("1684", "tf32"): ("m16n8k4", 2, 1),
    ("1688", "tf32"): ("m16n8k8", 4, 2),
    ("16816", "s8"): ("m16n8k16", 2, 1),
    ("16832", "s8"): ("m16n8k32", 4, 2),
    ("16816", "u8"): ("m16n8k16", 2, 1),
    ("16832", "u8"): ("m16n8k32", 4, 2),
}


def _product(e: Emitter, line: Line) -> None:
    """HMMA, IMMA: D = A B + C on tiles spread over the warp."""
    if e.guard:
        raise Unsupported("matrix product under a guard", value=line.full)
    kinds = [m.lower() for m in line.mods if m in ("BF16", "TF32", "S8", "U8")] or ["f16"]
    shape, rows, columns = _SHAPES[line.mods[0], kinds[0]]
    if line.opcode == "IMMA":
        type_, count, inputs = "s32", 4, tuple(kinds)
        if len(kinds) != 2:
            raise Unsupported("form of a matrix product", value=line.full)
    else:
        single = "F32" in line.mods
        type_, count, inputs = ("f32", 4, (kinds[0],) * 2) if single else ("f16", 2, ("f16", "f16"))
    dst, a, b, c = line.operands
    a, b = a.removesuffix(".ROW"), b.removesuffix(".COL")
    sources = [e.raw(a, k) for k in range(rows)] + [e.raw(b, k) for k in range(columns)] + [e.raw(c, k) for k in range(count)]
    results = tuple(e.temporary(32) for _ in range(count))
    e.add("mma", type_, results, tuple(sources), (shape, *inputs))
    for index, result in enumerate(results):
        e.write(dst, result, index)


def _lane_of(e: Emitter, value: Operand, lane: Operand) -> Operand:
    """Return the value that another lane holds."""
    found, valid = e.temporary(32), e.temporary(1)
    e.add("shfl", "b32", (found, valid), (value, lane, 31), ("idx",), guarded=True)
    return found


def _transpose(e: Emitter, line: Line) -> None:
    """MOVM.16.MT88: exchange rows and columns of a tile."""
    dst, source = line.operands
    value, lane = e.raw(source), e.op("special", "b32", mods=("laneid",))
    first = e.op("or", "b32", e.op("shl", "b32", e.op("and", "b32", lane, 3), 3), e.op("shr", "u32", lane, 3))
    low, high = _lane_of(e, value, first), _lane_of(e, value, e.op("or", "b32", first, 4))
    odd = e.op("setp", "u32", e.op("and", "b32", lane, 4), 0, mods=("ne",), bits=1)
    e.write(dst, e.op("select", "b32", e.op("prmt", "b32", low, high, 0x7632), e.op("prmt", "b32", low, high, 0x5410), odd))


def _load_tiles(e: Emitter, line: Line) -> None:
    """LDSM: load one, two or four tiles from rows in shared memory, transposed for `MT88`."""
    count = 4 if "4" in line.mods else 2 if "2" in line.mods else 1
    base, offset = place(e, line.operands[1], "shared", False)
    lane = e.op("special", "b32", mods=("laneid",))
    column, row = e.op("and", "b32", lane, 3), e.op("shr", "u32", lane, 2)
    values = []
    for number in range(count):
        if "MT88" in line.mods:
            first = e.op("add", "u32", e.op("shl", "b32", column, 1), 8 * number)
            halves = []
            for step in (0, 1):
                address = e.op("add", "u32", _lane_of(e, base, e.op("add", "u32", first, step)), e.op("shl", "b32", row, 1))
                half = e.temporary(16)
                e.add("ld", "b16", (half,), (address, offset), ("shared",), guarded=True)
                halves.append(half)
            values.append(e.op("pack", "b32", *halves))
        else:
            address = e.op("add", "u32", _lane_of(e, base, e.op("add", "u32", row, 8 * number)), e.op("shl", "b32", column, 2))
            word = e.temporary(32)
            e.add("ld", "b32", (word,), (address, offset), ("shared",), guarded=True)
            values.append(word)
    for index, value in enumerate(values):
        e.write(line.operands[0], value, index)


MATRIX: Final[dict[str, Handler]] = {"HMMA": _product, "IMMA": _product, "MOVM": _transpose, "LDSM": _load_tiles}
"""Handlers by base opcode."""
