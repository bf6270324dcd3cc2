"""Matrix products of a warp: fragments go through memory, the product is a loop of fused multiply-adds over rows.

Shapes mKnNkK with m = 16, n = 8: f16, bf16, tf32 with f32 (or f16) sums, s8 and u8 with s32 sums, in the register layout of the
PTX manual (row.col).  Sums run over k in order, in single precision, where the device keeps some more bits and another order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gewu.ops import ir, spmd_ops
from gewu.ops.spmd_emit import Val, integer
from gewu.ops.spmd_flow import Op

if TYPE_CHECKING:
    from gewu.ops.spmd_region import Region


def lower(region: Region, op: Op) -> list[Val]:
    """Append a matrix product; sources are the registers of A, B and C in this order.

    Raises:
        Unsupported: another shape or type.
    """
    shape, kind_a = op.mods[0], op.mods[1]
    kind_b = op.mods[2] if len(op.mods) > 2 else kind_a
    per = {"f16": 2, "bf16": 2, "tf32": 1, "f32": 1, "s8": 4, "u8": 4}.get(kind_a, 0)
    if shape[:6] != "m16n8k" or not per or kind_b not in ("f16", "bf16", "tf32", "f32", "s8", "u8") or region.b.lanes != 32:
        raise ir.Unsupported("no code for this matrix product", value=".".join((shape, *op.mods[1:])), key=op.where)
    depth = int(shape[6:])
    count_a, count_b = 16 * depth // 32 // per, 8 * depth // 32 // per
    whole = op.type == "s32"
    kind = "i32" if whole else "float"
    a = _fragment(region, [region.take(s, "i32") for s in op.src[:count_a]], kind_a, per)
    bb = _fragment(region, [region.take(s, "i32") for s in op.src[count_a : count_a + count_b]], kind_b, per)
    halves = op.type == "f16"
    sums = _sums(region, [region.take(s, "i32") for s in op.src[count_a + count_b :]], halves, kind)
    return _product(region, (a, bb, sums), (depth, per), kind, halves)


def _fragment(region: Region, words: list[Val], kind: str, per: int) -> list[Val]:
    """Return the elements of a fragment, `per` from each register, in the type of the sums."""
    b, parts = region.b, []
    for word in words:
        word = Val("v", b.vec(word), "i32")
        for place in range(per):
            if per == 4:
                moved = b.op("shl", word, integer("i32", 24 - 8 * place))
                parts.append(b.op("ashr" if kind[0] == "s" else "lshr", moved, integer("i32", 24)))
            elif per == 2:
                half = b.convert("trunc", b.op("lshr", word, integer("i32", 16 * place)), "i16")
                parts.append(spmd_ops.from_half(b, b.cast(half, "half" if kind == "f16" else "i16"), kind))
            else:
                parts.append(b.cast(b.op("and", word, integer("i32", 0xFFFFE000)), "float"))
    return parts


def _sums(region: Region, words: list[Val], halves: bool, kind: str) -> list[Val]:
    if halves:
        return _fragment(region, words, "f16", 2)
    return [region.b.cast(Val("v", region.b.vec(w), "i32"), kind) for w in words]


def _product(
    region: Region, parts: tuple[list[Val], list[Val], list[Val]], sizes: tuple[int, int], kind: str, halves: bool
) -> list[Val]:
    """Multiply: one vector of 32 sums for each of the four accumulators, k by k.

    Lane l of accumulator i stands for row l / 4 (+ 8 for i >= 2) and column 2 (l % 4) + i % 2.
    """
    b, (depth, per) = region.b, sizes
    a, bb, sums = parts
    t = b.vector(kind)
    result = list(sums)
    for k in range(depth):
        # Element k of a row lies in lane 4 row + (k / per) % 4; registers count rows of 8 first, then groups of 4 per elements.
        group, inner, quad = k // (4 * per), k % per, k // per % 4
        for half in range(2):
            source = a[(half + 2 * group) * per + inner]
            rows = ", ".join(f"i32 {lane // 4 * 4 + quad}" for lane in range(32))
            row = Val("v", b.emit(f"shufflevector {t} {source.name}, {t} poison, <32 x i32> <{rows}>"), kind)
            for column in range(2):
                other = bb[group * per + inner]
                lanes = ", ".join(f"i32 {(2 * (lane % 4) + column) * 4 + quad}" for lane in range(32))
                col = Val("v", b.emit(f"shufflevector {t} {other.name}, {t} poison, <32 x i32> <{lanes}>"), kind)
                place = 2 * half + column
                if kind == "float":
                    result[place] = b.intrinsic("fma", row, col, result[place])
                else:
                    result[place] = b.op("add", result[place], b.op("mul", row, col))
    if not halves:
        return [b.cast(r, "i32") for r in result]
    packed = []
    for low, high in ((0, 1), (2, 3)):
        words = [b.convert("zext", b.cast(spmd_ops.to_half(b, result[i], "f16"), "i16"), "i32") for i in (low, high)]
        packed.append(b.op("or", words[0], b.op("shl", words[1], integer("i32", 16))))
    return packed
