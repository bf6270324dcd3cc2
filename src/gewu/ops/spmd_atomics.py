"""Atomic operations of a vector of threads: thread by thread, or first combined when all threads meet at one address.

Shared memory belongs to one processor thread, so plain loads and stores serve there.  Where the old value is not asked for and
the address is the same for all, the lanes are combined and memory is touched once; floating-point sums then differ in order only,
as on the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gewu.ops import ir, spmd_ops
from gewu.ops.spmd_address import Access, element
from gewu.ops.spmd_emit import BITS, Builder, Val, integer, number
from gewu.ops.spmd_flow import Op

if TYPE_CHECKING:
    from gewu.ops.spmd_region import Region

_INTEGER: Final = {"and": "and", "or": "or", "xor": "xor", "exch": "xchg", "inc": "uinc_wrap", "dec": "udec_wrap"}
_ORDER: Final = "monotonic"


def lower(region: Region, op: Op) -> None:
    """Append an atomic operation and define the old value when it is asked for."""
    b = region.b
    space, what = op.mods[0], op.mods[1]
    used = any(region.program.uses.get(d) for d in op.dst)
    kind = element(op.type)
    values = [region.take(s, kind) for s in op.src[2:]]
    mask = region.guarded(op)
    access = Access(region, op, space, mask)
    one = access.address.kind == "u" and space not in ("generic", "local")
    if (
        one
        and not used
        and what in ("add", "min", "max", "and", "or", "xor")
        and op.type not in ("f16x2", "bf16x2", "f16", "bf16")
    ):
        pointer = access.pointers(access.address).name
        total = combined(b, what, op.type, values[0], access.mask)
        b.when(b.any(access.mask), lambda: _discard(update(b, what, op.type, pointer, [total], space == "shared")))
        return
    pointers = access.pointers(access.exact() if access.address.kind != "u" else access.address)
    spilled = [_spill(b, v) for v in (pointers, *values)]
    old = b.scratch(kind, b.lanes) if used else ""

    def body(lane: str) -> None:
        names = [_element(b, s, lane) for s in spilled]
        before = update(b, what, op.type, names[0], names[1:], space == "shared")
        if used:
            b.store(kind, before, b.offset(old, lane, kind))

    b.each(access.mask, body)
    if used:
        region.define(op, [Val("v", b.load(b.vector(kind), old), kind)])


def _discard(_: str) -> None:
    return None


def _spill(b: Builder, value: Val) -> tuple[str, str, bool]:
    """Return (name or address, type, whether it lies in memory) of what each lane is to read."""
    if value.kind == "u":
        return value.name, value.type, False
    place = b.scratch(value.type, b.lanes)
    b.store(b.vector(value.type), b.vec(value), place)
    return place, value.type, True


def _element(b: Builder, spilled: tuple[str, str, bool], lane: str) -> str:
    name, kind, stored = spilled
    return b.load(kind, b.offset(name, lane, kind)) if stored else name


def combined(b: Builder, what: str, kind: str, value: Val, mask: str) -> str:
    """Return the running lanes of a value combined by an operation."""
    real = value.type in ("float", "double")
    if real:
        start = {"add": 0.0, "min": float("inf"), "max": float("-inf")}[what]
        neutral = number(value.type, start)
    else:
        bits = BITS[value.type]
        top = (1 << bits - 1) - 1 if kind[0] == "s" else (1 << bits) - 1
        low = 1 << bits - 1 if kind[0] == "s" else 0
        neutral = integer(value.type, {"add": 0, "or": 0, "xor": 0, "and": -1, "min": top, "max": low}[what])
    t = b.vector(value.type)
    wide = b.choose(Val("v", mask, "i1"), value, neutral)
    if real and what == "add":
        name = f"llvm.vector.reduce.fadd.{b.mangled(t)}"
        b.declarations.add(f"declare {value.type} @{name}({value.type}, {t})")
        zero = number(value.type, -0.0).name
        return b.emit(f"call reassoc {value.type} @{name}({value.type} {zero}, {t} {b.vec(wide)})")
    verb = what if what in ("add", "and", "or", "xor") else ("f" if real else "s" if kind[0] == "s" else "u") + what
    name = f"llvm.vector.reduce.{verb}.{b.mangled(t)}"
    b.declarations.add(f"declare {value.type} @{name}({t})")
    return b.emit(f"call {value.type} @{name}({t} {b.vec(wide)})")


def update(b: Builder, what: str, kind: str, pointer: str, values: list[str], plain: bool) -> str:
    """Apply an operation to one place in memory and return what was there."""
    t = "i16" if kind in ("f16", "bf16") else spmd_ops.llvm_type(kind)
    half = kind in ("f16x2", "bf16x2", "f16", "bf16")
    if what == "cas":
        if plain:
            old = b.load(t, pointer, BITS[t] // 8)
            same = b.emit(f"icmp eq {t} {old}, {values[0]}")
            b.store(t, b.emit(f"select i1 {same}, {t} {values[1]}, {t} {old}"), pointer, BITS[t] // 8)
            return old
        pair = b.emit(f"cmpxchg ptr {pointer}, {t} {values[0]}, {t} {values[1]} seq_cst seq_cst")
        return b.emit(f"extractvalue {{ {t}, i1 }} {pair}, 0")
    if plain:
        old = b.load(t, pointer, BITS[t] // 8)
        b.store(t, changed(b, what, kind, Val("u", old, t), Val("u", values[0], t)), pointer, BITS[t] // 8)
        return old
    if half:
        return _retried(b, what, kind, pointer, Val("u", values[0], t))
    real = t in ("float", "double")
    verb = _INTEGER.get(what) or (f"f{what}" if real else "add" if what == "add" else ("" if kind[0] == "s" else "u") + what)
    return b.emit(f"atomicrmw {verb} ptr {pointer}, {t} {values[0]} {_ORDER}")


def changed(b: Builder, what: str, kind: str, old: Val, new: Val) -> str:
    """Return the number that an operation leaves in memory."""
    if what == "exch":
        return new.name
    if what in ("inc", "dec"):
        one = integer(old.type, 1)
        if what == "inc":
            return b.choose(b.compare("icmp uge", old, new), integer(old.type, 0), b.op("add", old, one)).name
        over = b.op("or", b.compare("icmp eq", old, integer(old.type, 0)), b.compare("icmp ugt", old, new))
        return b.choose(over, new, b.op("sub", old, one)).name
    typed = kind if kind in ir.FLOATS or what in ("add", "min", "max") else f"b{BITS[old.type]}"
    work = Op(what, typed, ("r",), ("a", "b"))
    return b.cast(spmd_ops.lower(b, work, lambda i, t: b.cast((old, new)[i], t))[0], old.type).name


def _retried(b: Builder, what: str, kind: str, pointer: str, value: Val) -> str:
    """Compare and exchange until no other thread came between."""
    t = value.type
    before, loop, done = b.fresh("before"), b.fresh("again"), b.fresh("done")
    first = b.load(t, pointer, BITS[t] // 8)
    b.put(f"br label %{before}")
    b.label(before)
    b.put(f"br label %{loop}")
    b.label(loop)
    seen = b.fresh("seen")
    old = b.fresh("old")
    b.put(f"%{old} = phi {t} [ {first}, %{before} ], [ %{seen}, %{loop} ]")
    new = changed(b, what, kind, Val("u", f"%{old}", t), value)
    pair = b.emit(f"cmpxchg ptr {pointer}, {t} %{old}, {t} {new} seq_cst seq_cst")
    b.put(f"%{seen} = extractvalue {{ {t}, i1 }} {pair}, 0")
    good = b.emit(f"extractvalue {{ {t}, i1 }} {pair}, 1")
    b.put(f"br i1 {good}, label %{done}, label %{loop}")
    b.label(done)
    return f"%{old}"
