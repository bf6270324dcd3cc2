"""Vector loads and stores: consecutive places under a mask, gathers and scatters, and the cold functions for wrapped addresses.

Bytes and halves, which processors do not gather, are picked from gathered words; no access leaves the aligned word that it
touches.
"""

from __future__ import annotations

from collections.abc import Callable

from gewu.ops.shape import Shape
from gewu.ops.spmd_address import Access, lanes_of
from gewu.ops.spmd_emit import BITS, Builder, Val, integer

Pointers = Callable[[Val], Val]


def masked_load(b: Builder, kind: str, pointer: str, mask: str, align: int = 0) -> Val:
    """Load consecutive elements where a mask holds."""
    t, align = b.vector(kind), align or BITS[kind] // 8
    if mask.startswith("splat (i1 true"):
        return Val("v", b.load(t, pointer, align), kind)
    name = f"llvm.masked.load.{b.mangled(t)}.p0"
    b.declarations.add(f"declare {t} @{name}(ptr, i32, {b.vector('i1')}, {t})")
    return Val("v", b.emit(f"call {t} @{name}(ptr {pointer}, i32 {align}, {b.vector('i1')} {mask}, {t} zeroinitializer)"), kind)


def masked_store(b: Builder, value: Val, pointer: str, mask: str) -> None:
    """Store consecutive elements where a mask holds."""
    t, align = b.vector(value.type), BITS[value.type] // 8
    if mask.startswith("splat (i1 true"):
        b.store(t, b.vec(value), pointer, align)
        return
    call = f"llvm.masked.store.{b.mangled(t)}.p0"
    b.declarations.add(f"declare void @{call}({t}, ptr, i32, {b.vector('i1')})")
    b.put(f"call void @{call}({t} {b.vec(value)}, ptr {pointer}, i32 {align}, {b.vector('i1')} {mask})")


def gather(b: Builder, kind: str, address: Val, mask: str, pointers: Pointers) -> Val:
    """Load one element per lane from anywhere; `pointers` makes pointers of addresses."""
    bits = BITS[kind]
    address = Val("v", b.vec(address), "i64")
    if bits >= 32:
        return gather_from(b, kind, pointers(address), mask)
    found = gather_from(b, "i32", pointers(b.op("and", address, integer("i64", -4))), mask)
    shift = b.op("shl", b.convert("trunc", b.op("and", address, integer("i64", 3)), "i32"), integer("i32", 3))
    return b.cast(b.convert("trunc", b.op("lshr", found, shift), f"i{bits}"), kind)


def gather_from(b: Builder, kind: str, pointers: Val, mask: str) -> Val:
    """Load one element per lane through pointers."""
    t, p = b.vector(kind), b.vector("ptr")
    name = f"llvm.masked.gather.{b.mangled(t)}.v{b.lanes}p0"
    b.declarations.add(f"declare {t} @{name}({p}, i32, {b.vector('i1')}, {t})")
    rest = f"i32 {BITS[kind] // 8}, {b.vector('i1')} {mask}, {t} zeroinitializer"
    return Val("v", b.emit(f"call {t} @{name}({p} {pointers.name}, {rest})"), kind)


def scatter(b: Builder, value: Val, pointers: Val, mask: str) -> None:
    """Store one element per lane anywhere; of equal places the last lane wins."""
    kind = value.type
    if BITS[kind] < 32:
        wide = Val("v", b.vec(value), kind)
        b.each(mask, lambda lane: b.store(kind, b.lane_of(wide, lane), b.lane_of(pointers, lane), BITS[kind] // 8))
        return
    t, p = b.vector(kind), b.vector("ptr")
    name = f"llvm.masked.scatter.{b.mangled(t)}.v{b.lanes}p0"
    b.declarations.add(f"declare void @{name}({t}, {p}, i32, {b.vector('i1')})")
    arguments = f"{t} {b.vec(value)}, {p} {pointers.name}, i32 {BITS[kind] // 8}, {b.vector('i1')} {mask}"
    b.put(f"call void @{name}({arguments})")


def exact_load(access: Access, kind: str, step: int) -> Val:
    """Load with exact lanes, out of line where the address is strided: that is only called when 32-bit arithmetic wrapped."""
    b = access.b
    if access.narrow is None or not access.flat:
        return gather(b, kind, b.op("add", access.exact(), integer("i64", step)), access.mask, access.pointers)
    t, m = b.vector(kind), b.vector("i1")
    name = _cold_name(access, f"load.{kind}")

    def body(cold: Builder, address: Val) -> str:
        return f"ret {t} {gather(cold, kind, address, '%mask', access_plain(cold)).name}"

    _cold(access, name, t, f"i64 %base, i32 %narrow, {m} %mask", body)
    base = b.op("add", access.address._replace(kind="u", stride=0), integer("i64", step))
    return Val("v", b.emit(f"call {t} @{name}(i64 {base.name}, i32 {access.narrow.name}, {m} {access.mask})"), kind)


def exact_store(access: Access, value: Val, step: int) -> None:
    """Store with exact lanes, out of line as `exact_load`."""
    b, kind = access.b, value.type
    if access.narrow is None or not access.flat:
        address = b.op("add", access.exact(), integer("i64", step))
        scatter(b, value, access.pointers(Val("v", b.vec(address), "i64")), access.mask)
        return
    t, m = b.vector(kind), b.vector("i1")
    name = _cold_name(access, f"store.{kind}")

    def body(cold: Builder, address: Val) -> str:
        scatter(cold, Val("v", "%value", kind), access_plain(cold)(address), "%mask")
        return "ret void"

    _cold(access, name, "void", f"i64 %base, i32 %narrow, {m} %mask, {t} %value", body)
    base = b.op("add", access.address._replace(kind="u", stride=0), integer("i64", step))
    b.put(f"call void @{name}(i64 {base.name}, i32 {access.narrow.name}, {m} {access.mask}, {t} {b.vec(value)})")


def access_plain(b: Builder) -> Pointers:
    """Return the conversion of global addresses to pointers."""
    return lambda address: b.apply("ptr", lambda t, n: f"inttoptr {t} {n[0]} to {t.replace('i64', 'ptr')}", address)


def _cold_name(access: Access, what: str) -> str:
    assert access.narrow and access.shape.origin and access.shape.stride is not None
    _, sign, factor = access.shape.origin
    numbers = (factor, access.narrow.stride, access.shape.stride)
    return "gewu.cold." + ".".join([what, sign, *(str(n).replace("-", "m") for n in numbers)])


def _cold(access: Access, name: str, result: str, arguments: str, body: Callable[[Builder, Val], str]) -> None:
    helpers = access.region.program.helpers
    if name in helpers:
        return
    assert access.narrow
    cold = Builder(access.b.lanes, access.b.declarations)
    shape: Shape = access.shape
    narrow = Val("s", "%narrow", "i32", access.narrow.stride)
    address = Val("v", lanes_of(cold, Val("u", "%base", "i64"), narrow, shape), "i64")
    cold.put(body(cold, address))
    lines = [f"define internal {result} @{name}({arguments}) cold noinline #0 {{", *cold.head, *cold.lines, "}"]
    helpers[name] = "\n".join(lines)
