"""Loads and stores of a vector of threads.

Equal addresses are one scalar access, unit stride one vector access, a stride of a whole packet (2 or 4 elements per thread) a
wide access and a shuffle; everything else gathers or scatters, after one test whether the addresses happen to be contiguous.
Local memory is interleaved by words, so that equal offsets of neighbouring threads are neighbours.

A loop whose threads stride over an array touches 128 bytes of many pages; the vectors that run after it touch the rest.  Without
help each of them waits for memory anew (sums were 4 to 10 times slower for it), so each access in a loop fetches for the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gewu.ops import spmd_atomics, spmd_vector
from gewu.ops.spmd_address import Access, element
from gewu.ops.spmd_emit import BITS, Val, integer
from gewu.ops.spmd_flow import Op

if TYPE_CHECKING:
    from gewu.ops.spmd_region import Region


def lower(region: Region, op: Op) -> None:
    """Append a load, store or atomic operation and define what it gives."""
    if op.op == "atom":
        spmd_atomics.lower(region, op)
        return
    mask = region.guarded(op)
    kind = element(op.type)
    if op.op == "ld":
        region.define(op, load(Access(region, op, op.mods[0], mask), [kind] * len(op.dst)))
        return
    values = [region.flat(s, kind) for s in op.src[2:]]
    values = [v if v.kind != "s" else Val("v", region.b.vec(v), v.type) for v in values]
    store(Access(region, op, op.mods[0], mask), values)


def load(access: Access, kinds: list[str]) -> list[Val]:
    """Return consecutive elements of one type."""
    kind, size = kinds[0], BITS[kinds[0]] // 8
    if access.interleaves:
        return [_load_words(access, kind, place * size) for place in range(len(kinds))]
    if len(kinds) > 1 and access.packed(size * len(kinds)):
        return _load_packets(access, kinds)
    return [_load_one(access, kind, place * size) for place in range(len(kinds))]


def _load_one(access: Access, kind: str, step: int) -> Val:
    b, size = access.b, BITS[kind] // 8
    address = access.moved(step)
    if address.kind == "u":
        return _load_uniform(access, kind, address)
    if address.kind == "s" and address.stride == size:
        fits = access.fits()
        if fits is None:
            return _load_unit(access, kind, address)
        return b.either(fits, lambda: _load_unit(access, kind, address), lambda: spmd_vector.exact_load(access, kind, step))
    if address.kind == "s":
        address = b.op("add", access.exact(), integer("i64", step))
    if address.kind == "v" and access.hopeful():
        near, first = access.near(size)
        first = b.op("add", first, integer("i64", step)) if step else first
        return b.either(near, lambda: _load_unit(access, kind, first), lambda: _gather(access, kind, address, step))
    return _gather(access, kind, address, step)


def _gather(access: Access, kind: str, address: Val, step: int) -> Val:
    if access.address.kind == "v" and BITS[kind] >= 32:
        return spmd_vector.gather_from(access.b, kind, access.scattered(step), access.mask)
    return spmd_vector.gather(access.b, kind, address, access.mask, access.pointers)


def _load_uniform(access: Access, kind: str, address: Val) -> Val:
    b, size = access.b, BITS[kind] // 8
    pointer = access.pointers(address)
    if not access.restricted:
        return Val("u", b.load(kind, pointer.name, size), kind)
    zero = Val("u", "zeroinitializer", kind)
    value = b.when(b.any(access.mask), lambda: Val("u", b.load(kind, pointer.name, size), kind), zero)
    assert value
    return value


def _load_unit(access: Access, kind: str, address: Val) -> Val:
    pointer = access.pointers(address._replace(kind="u", stride=0)).name
    _fetch_next(access, pointer, access.b.lanes * BITS[kind] // 8)
    return spmd_vector.masked_load(access.b, kind, pointer, access.mask)


def _fetch_next(access: Access, pointer: str, size: int, write: int = 0) -> None:
    """Ask for what runs soon, in steps that no processor foresees.

    In a loop that is the part of the neighbouring vector, elsewhere that of the block after the next one, where rows are short.
    """
    region, b = access.region, access.b
    looped = bool(region.flow.inside[region.number])
    if access.space != "global" or not (looped or region.layout.block[0] <= region.layout.lanes):
        return
    b.declarations.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
    start = size if looped else 2 * size
    for line in range(start, start + size, 64):
        b.put(f"call void @llvm.prefetch.p0(ptr {b.offset(pointer, str(line))}, i32 {write}, i32 3, i32 1)")


def _load_packets(access: Access, kinds: list[str]) -> list[Val]:
    """Load 2 or 4 consecutive elements per lane in one piece when all lanes run."""
    b, kind, count, size = access.b, kinds[0], len(kinds), BITS[kinds[0]] // 8
    full, base = access.whole(size * count)
    pointer = access.pointers(base).name
    _fetch_next(access, pointer, b.lanes * size * count)
    names = [b.fresh(s) for s in ("wide", "apart", "done")]
    b.put(f"br i1 {full}, label %{names[0]}, label %{names[1]}")
    b.label(names[0])
    wide = f"<{b.lanes * count} x {kind}>"
    whole = b.load(wide, pointer, size)
    fast = []
    for place in range(count):
        picks = ", ".join(f"i32 {place + count * lane}" for lane in range(b.lanes))
        fast.append(b.emit(f"shufflevector {wide} {whole}, {wide} poison, <{b.lanes} x i32> <{picks}>"))
    b.put(f"br label %{names[2]}")
    b.label(names[1])
    if access.address.kind == "s":
        slow = [spmd_vector.exact_load(access, kind, place * size).name for place in range(count)]
    else:
        slow = [_gather(access, kind, access.moved(place * size), place * size).name for place in range(count)]
    leave = b.fresh("leave")
    b.put(f"br label %{leave}")
    b.label(leave)
    b.put(f"br label %{names[2]}")
    b.label(names[2])
    t = b.vector(kind)
    pairs = zip(fast, slow, strict=True)
    return [Val("v", b.emit(f"phi {t} [ {f}, %{names[0]} ], [ {s}, %{leave} ]"), kind) for f, s in pairs]


def _load_words(access: Access, kind: str, step: int) -> Val:
    """Load from interleaved local memory, wide elements word by word."""
    b, bits = access.b, BITS[kind]
    if bits == 64:
        low, high = (b.convert("zext", _load_words(access, "i32", step + part), "i64") for part in (0, 4))
        return b.cast(b.op("or", low, b.op("shl", high, integer("i64", 32))), kind)
    address = access.moved(step)
    if access.space == "local" and address.kind == "u" and bits == 32 and not access.region.program.checked:
        row = b.op("mul", address, integer("i64", b.lanes))
        return Val("v", b.load(b.vector(kind), b.offset("%local", row.name), 4), kind)
    return spmd_vector.gather(b, kind, address, access.mask, access.places)


def store(access: Access, values: list[Val]) -> None:
    """Store consecutive elements of one type."""
    size = BITS[values[0].type] // 8
    if access.interleaves:
        for place, value in enumerate(values):
            _store_words(access, value, place * size)
    elif len(values) > 1 and access.packed(size * len(values)):
        _store_packets(access, values)
    else:
        for place, value in enumerate(values):
            _store_one(access, value, place * size)


def _store_one(access: Access, value: Val, step: int) -> None:
    b, size = access.b, BITS[value.type] // 8
    address = access.moved(step)
    if address.kind == "u":
        _store_uniform(access, value, address)
        return
    value = Val("v", b.vec(value), value.type)
    if address.kind == "s" and address.stride == size:
        fits = access.fits()
        if fits is None:
            _store_unit(access, value, address)
        else:
            one: Callable[[], None] = lambda: _store_unit(access, value, address)  # noqa: E731
            b.split(fits, one, lambda: spmd_vector.exact_store(access, value, step))
        return
    if address.kind == "s":
        address = b.op("add", access.exact(), integer("i64", step))
    if address.kind == "v" and access.hopeful():
        near, first = access.near(size)
        first = b.op("add", first, integer("i64", step)) if step else first
        b.split(near, lambda: _store_unit(access, value, first), lambda: _scatter(access, value, address, step))
        return
    _scatter(access, value, address, step)


def _scatter(access: Access, value: Val, address: Val, step: int) -> None:
    b = access.b
    if access.address.kind == "v":
        spmd_vector.scatter(b, value, access.scattered(step), access.mask)
        return
    spmd_vector.scatter(b, value, access.pointers(Val("v", b.vec(address), "i64")), access.mask)


def _store_uniform(access: Access, value: Val, address: Val) -> None:
    b = access.b
    pointer = access.pointers(address)

    def write() -> None:
        name = value.name if value.kind == "u" else b.lane_of(value, b.first(access.mask))
        b.store(value.type, name, pointer.name, BITS[value.type] // 8)

    if access.restricted:
        b.when(b.any(access.mask), write)
    else:
        write()


def _store_unit(access: Access, value: Val, address: Val) -> None:
    pointer = access.pointers(address._replace(kind="u", stride=0)).name
    _fetch_next(access, pointer, access.b.lanes * BITS[value.type] // 8, write=1)
    spmd_vector.masked_store(access.b, value, pointer, access.mask)


def _store_packets(access: Access, values: list[Val]) -> None:
    """Store 2 or 4 consecutive elements per lane in one piece when all lanes run."""
    b, kind, count, size = access.b, values[0].type, len(values), BITS[values[0].type] // 8
    full, base = access.whole(size * count)
    parts = [b.vec(v) for v in values]
    pointer = access.pointers(base).name
    _fetch_next(access, pointer, b.lanes * size * count, write=1)

    def wide() -> None:
        row, length = parts, b.lanes
        while len(row) > 1:  # join neighbours, then pick in order
            half = f"<{length} x {kind}>"
            picks = ", ".join(f"i32 {i}" for i in range(2 * length))
            pairs = zip(row[::2], row[1::2], strict=True)
            row = [b.emit(f"shufflevector {half} {x}, {half} {y}, <{2 * length} x i32> <{picks}>") for x, y in pairs]
            length *= 2
        whole = f"<{length} x {kind}>"
        picks = ", ".join(f"i32 {place * b.lanes + lane}" for lane in range(b.lanes) for place in range(count))
        b.store(whole, b.emit(f"shufflevector {whole} {row[0]}, {whole} poison, <{length} x i32> <{picks}>"), pointer, size)

    def apart() -> None:
        for place, part in enumerate(parts):
            if access.address.kind == "s":
                spmd_vector.exact_store(access, Val("v", part, kind), place * size)
            else:
                _scatter(access, Val("v", part, kind), access.moved(place * size), place * size)

    b.split(full, wide, apart)


def _store_words(access: Access, value: Val, step: int) -> None:
    """Store to interleaved local memory, wide elements word by word."""
    b, bits = access.b, BITS[value.type]
    if bits == 64:
        word = b.cast(value, "i64")
        _store_words(access, b.convert("trunc", word, "i32"), step)
        _store_words(access, b.convert("trunc", b.op("lshr", word, integer("i64", 32)), "i32"), step + 4)
        return
    address = access.moved(step)
    if access.space == "local" and address.kind == "u" and bits == 32:
        row = b.op("mul", address, integer("i64", b.lanes))
        spmd_vector.masked_store(b, value, b.offset("%local", row.name), access.mask)
        return
    spmd_vector.scatter(b, value, access.places(Val("v", b.vec(address), "i64")), access.mask)
