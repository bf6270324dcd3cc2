"""Operations in which the threads of a warp take part together: shuffles, votes, matches, reductions, matrix products.

A vector holds one warp of 32 threads, several whole warps (shuffles only), or half of one (then none of these occur).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gewu.ops import ir, spmd_atomics, spmd_mma
from gewu.ops.spmd_emit import BITS, Val, integer
from gewu.ops.spmd_flow import Op

if TYPE_CHECKING:
    from gewu.ops.spmd_region import Region

OPS = frozenset({"shfl", "vote", "match", "redux", "activemask", "mma"})


def lower(region: Region, op: Op) -> None:
    """Append an operation of a warp and define its results."""
    rule = _RULES.get(op.op)
    if rule is None:
        raise ir.Unsupported("no code for this operation", value=op.op, key=op.where)
    region.define(op, rule(region, op))


def _shfl(region: Region, op: Op) -> list[Val]:
    b, mode = region.b, op.mods[0]
    value = region.take(op.src[0], "i32")
    value = Val("v", b.vec(value), "i32")
    if isinstance(op.src[1], int) and isinstance(op.src[2], int):
        picks, good = _sources(mode, op.src[1], op.src[2], b.lanes)
        t = b.vector("i32")
        numbers = ", ".join(f"i32 {p}" for p in picks)
        name = b.emit(f"shufflevector {t} {value.name}, {t} poison, <{b.lanes} x i32> <{numbers}>")
        return [Val("v", name, "i32"), Val("v", b.constants("i1", good), "i1")][: len(op.dst)]
    return _shfl_any(region, op, value)[: len(op.dst)]


def _sources(mode: str, amount: int, control: int, lanes: int) -> tuple[list[int], list[int]]:
    """Return for each lane the lane that it reads and whether that is in range."""
    amount, segment, clamp = amount & 31, control >> 8 & 31, control & 31
    picks, good = [], []
    for lane in range(lanes):
        own = lane & 31
        low, high = own & segment, (own & segment) | (clamp & ~segment)
        source = {"up": own - amount, "down": own + amount, "bfly": own ^ amount, "idx": low | (amount & ~segment & 31)}[mode]
        inside = source >= high if mode == "up" else source <= high
        picks.append(lane - own + (source if inside else own))
        good.append(int(inside))
    return picks, good


def _shfl_any(region: Region, op: Op, value: Val) -> list[Val]:
    b, mode = region.b, op.mods[0]

    def full(name: str) -> Val:
        return Val("v", name, "i32")

    own = full(b.constants("i32", [lane & 31 for lane in range(b.lanes)]))
    base = full(b.constants("i32", [lane & ~31 for lane in range(b.lanes)]))
    low5 = integer("i32", 31)
    amount = b.op("and", region.take(op.src[1], "i32"), low5)
    control = region.take(op.src[2], "i32")
    segment = b.op("and", b.op("lshr", control, integer("i32", 8)), low5)
    outside = b.op("xor", segment, low5)
    low = b.op("and", own, segment)
    high = b.op("or", low, b.op("and", b.op("and", control, low5), outside))
    if mode == "up":
        source = b.op("sub", own, amount)
    elif mode == "down":
        source = b.op("add", own, amount)
    elif mode == "bfly":
        source = b.op("xor", own, amount)
    else:
        source = b.op("or", low, b.op("and", amount, outside))
    inside = b.compare("icmp sge" if mode == "up" else "icmp sle", source, high)
    lane = b.op("add", base, b.op("and", b.choose(inside, source, own), low5))
    place = b.scratch("i32", b.lanes)
    b.store(b.vector("i32"), value.name, place)
    t, p = b.vector("i32"), b.vector("ptr")
    pointers = b.emit(f"getelementptr i32, ptr {place}, {t} {b.vec(lane)}")
    name = f"llvm.masked.gather.{b.mangled(t)}.v{b.lanes}p0"
    b.declarations.add(f"declare {t} @{name}({p}, i32, {b.vector('i1')}, {t})")
    ones = b.splat("i1", "true")
    found = b.emit(f"call {t} @{name}({p} {pointers}, i32 4, {b.vector('i1')} {ones}, {t} zeroinitializer)")
    return [full(found), Val("v", b.vec(inside), "i1")]


def _running(region: Region, op: Op) -> str:
    return region.guarded(op)


def _vote(region: Region, op: Op) -> list[Val]:
    b, mode = region.b, op.mods[0]
    mask = _running(region, op)
    bits = b.bits(mask)
    held = b.bits(b.mask_and(mask, region.take(op.src[0], "i1"), True))
    if mode == "ballot":
        return [Val("u", held, "i32")]
    everyone = b.emit(f"icmp eq i{b.lanes} {held}, {bits}")
    some = b.emit(f"icmp ne i{b.lanes} {held}, 0")
    if mode == "any":
        return [Val("u", some, "i1")]
    if mode == "all":
        return [Val("u", everyone, "i1")]
    return [Val("u", b.emit(f"or i1 {everyone}, {b.emit(f'xor i1 {some}, true')}"), "i1")]


def _activemask(region: Region, op: Op) -> list[Val]:
    return [Val("u", region.b.bits(_running(region, op)), "i32")]


def _match(region: Region, op: Op) -> list[Val]:
    b, kind = region.b, f"i{ir.WIDTH[op.type]}"
    mask = _running(region, op)
    value = Val("v", b.vec(region.flat(op.src[0], kind)), kind)
    source, result = b.scratch(kind, b.lanes), b.scratch("i32", b.lanes)
    b.store(b.vector(kind), value.name, source)

    def body(lane: str) -> None:
        mine = b.splat(kind, b.load(kind, b.offset(source, lane, kind)))
        same = b.emit(f"icmp eq {b.vector(kind)} {value.name}, {mine}")
        both = b.bits(b.emit(f"and {b.vector('i1')} {same}, {mask}"))
        b.store("i32", both, b.offset(result, lane, "i32"))

    b.each(mask, body)
    return [Val("v", b.load(b.vector("i32"), result), "i32")]


def _redux(region: Region, op: Op) -> list[Val]:
    value = region.take(op.src[0], "i32")
    name = spmd_atomics.combined(region.b, op.mods[0], op.type, value, _running(region, op))
    assert BITS[value.type] == 32
    return [Val("u", name, "i32")]


_RULES = {
    **{"shfl": _shfl, "vote": _vote, "match": _match, "redux": _redux, "activemask": _activemask, "mma": spmd_mma.lower},
}
