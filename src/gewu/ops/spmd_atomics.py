"""Atomic operations of a vector of threads: thread by thread, or first combined when all threads meet at one address.

Shared memory belongs to one processor thread, so plain loads and stores serve there.  A kernel that adds to consecutive places of
global memory takes a lock for a whole vector instead of one atomic operation for each lane, and then for all its atomics.  Where
the old value is not asked for and the address is the same for all, the lanes are combined and memory is touched once;
floating-point sums then differ in order only, as on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gewu.ops import ir, spmd_ops
from gewu.ops.spmd_address import Access, element
from gewu.ops.spmd_emit import BITS, Builder, Val, integer, number
from gewu.ops.spmd_flow import Op
from gewu.ops.spmd_vector import masked_load, masked_store

if TYPE_CHECKING:
    from gewu.ops.spmd_region import Region

_INTEGER: Final = {"and": "and", "or": "or", "xor": "xor", "exch": "xchg", "inc": "uinc_wrap", "dec": "udec_wrap"}
_COMBINES: Final = frozenset({"add", "min", "max", "and", "or", "xor"})
_HALVES: Final = frozenset({"f16", "bf16", "f16x2", "bf16x2"})
_FEW: Final = 4
"""Atomic operations of a kernel up to which they are written out lane by lane for full vectors."""
_ORDER: Final = "monotonic"


def lower(region: Region, op: Op) -> None:
    """Append an atomic operation and define the old value when it is asked for."""
    kind = element(op.type)
    values = [region.flat(s, kind) for s in op.src[2:]]
    access = Access(region, op, op.mods[0], region.guarded(op))
    work = _Work(region, op, access, values, any(region.program.uses.get(d) for d in op.dst))
    if access.address.kind == "u" and not work.used and op.mods[0] in ("global", "shared") and combines(op):
        work.together()
        return
    old = region.b.scratch(kind, region.b.lanes) if work.used else ""
    if access.address.kind == "s" and access.address.stride == BITS[kind] // 8 and rows(op):
        fits = access.fits()
        if fits is None:
            work.row(old)
        else:
            region.b.split(fits, lambda: work.row(old), lambda: work.lanes(old))
    else:
        work.lanes(old)
    if work.used:
        region.define(op, [Val("v", region.b.load(region.b.vector(kind), old), kind)])


def combines(op: Op) -> bool:
    """Tell whether the lanes of an operation can be combined before memory is touched."""
    return op.mods[1] in _COMBINES and op.type not in _HALVES


def rows(op: Op) -> bool:
    """Tell whether an operation can act on consecutive places as on a vector."""
    return combines(op) and op.mods[0] in ("global", "shared")


@dataclass(slots=True)
class _Work:
    """One atomic operation to be written."""

    region: Region
    op: Op
    access: Access
    values: list[Val]
    used: bool

    @property
    def shared(self) -> bool:
        return self.op.mods[0] == "shared"

    @property
    def locked(self) -> bool:
        return self.region.program.locked and not self.shared

    def _lock(self, address: str, body: Callable[[], str]) -> str:
        """Run `body` alone among those who hold the lock of an address."""
        if not self.locked:
            return body()
        self.region.program.helpers["lock"] = LOCK
        b = self.region.b
        b.put(f"call void @gewu.lock(i64 {address})")
        result = body()
        b.put(f"call void @gewu.unlock(i64 {address})")
        return result

    def _update(self, pointer: str, values: list[str], address: str) -> str:
        b, op = self.region.b, self.op
        plain = self.shared or self.locked
        return self._lock(address, lambda: update(b, op.mods[1], op.type, pointer, values, plain))

    def together(self) -> None:
        """Combine all lanes and touch memory once."""
        b, access = self.region.b, self.access
        pointer = access.pointers(access.address).name
        total = combined(b, self.op.mods[1], self.op.type, self.values[0], access.mask)
        b.when(b.any(access.mask), lambda: _discard(self._update(pointer, [total], access.address.name)))

    def row(self, old: str) -> None:
        """Act on consecutive places at once, under the locks of the first and the last."""
        b, access, kind = self.region.b, self.access, self.values[0].type
        base = access.address._replace(kind="u", stride=0)
        pointer = access.pointers(base).name
        if self.locked:
            self.region.program.helpers["lock"] = LOCK
            last = b.emit(f"add i64 {base.name}, {b.lanes * BITS[kind] // 8 - 1}")
            b.put(f"call void @gewu.lock2(i64 {base.name}, i64 {last})")
        before = masked_load(b, kind, pointer, access.mask)
        after = changed(b, self.op.mods[1], self.op.type, before, Val("v", b.vec(self.values[0]), kind))
        masked_store(b, after, pointer, access.mask)
        if self.locked:
            b.put(f"call void @gewu.unlock2(i64 {base.name}, i64 {last})")
        if self.used:
            b.store(b.vector(kind), before.name, old)

    def lanes(self, old: str) -> None:
        """Act thread by thread."""
        b, access, kind = self.region.b, self.access, self.values[0].type
        address = access.exact() if access.address.kind != "u" else access.address
        spilled = [_spill(b, v) for v in (access.pointers(address), address, *self.values)]

        def body(lane: str) -> None:
            pointer, place, *names = [_element(b, s, lane) for s in spilled]
            before = self._update(pointer, names, place)
            if self.used:
                b.store(kind, before, b.offset(old, lane, kind))

        few = sum(o.op == "atom" for n in self.region.flow.nodes for o in n.code) <= _FEW
        if self.shared and few:
            full = b.emit(f"icmp eq i{b.lanes} {b.bits(access.mask)}, -1")
            b.split(full, lambda: [body(str(lane)) for lane in range(b.lanes)] and None, lambda: b.each(access.mask, body))
        else:
            b.each(access.mask, body)


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
        b.store(t, changed(b, what, kind, Val("u", old, t), Val("u", values[0], t)).name, pointer, BITS[t] // 8)
        return old
    if half:
        return _retried(b, what, kind, pointer, Val("u", values[0], t))
    real = t in ("float", "double")
    verb = _INTEGER.get(what) or (f"f{what}" if real else "add" if what == "add" else ("" if kind[0] == "s" else "u") + what)
    return b.emit(f"atomicrmw {verb} ptr {pointer}, {t} {values[0]} {_ORDER}")


def changed(b: Builder, what: str, kind: str, old: Val, new: Val) -> Val:
    """Return the number that an operation leaves in memory."""
    if what == "exch":
        return new
    if what in ("inc", "dec"):
        one = integer(old.type, 1)
        if what == "inc":
            return b.choose(b.compare("icmp uge", old, new), integer(old.type, 0), b.op("add", old, one))
        over = b.op("or", b.compare("icmp eq", old, integer(old.type, 0)), b.compare("icmp ugt", old, new))
        return b.choose(over, new, b.op("sub", old, one))
    typed = kind if kind in ir.FLOATS or what in ("add", "min", "max") else f"b{BITS[old.type]}"
    work = Op(what, typed, ("r",), ("a", "b"))
    return b.cast(spmd_ops.lower(b, work, lambda i, t: b.cast((old, new)[i], t))[0], old.type)


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
    new = changed(b, what, kind, Val("u", f"%{old}", t), value).name
    pair = b.emit(f"cmpxchg ptr {pointer}, {t} %{old}, {t} {new} seq_cst seq_cst")
    b.put(f"%{seen} = extractvalue {{ {t}, i1 }} {pair}, 0")
    good = b.emit(f"extractvalue {{ {t}, i1 }} {pair}, 1")
    b.put(f"br i1 {good}, label %{done}, label %{loop}")
    b.label(done)
    return f"%{old}"


LOCK: Final = """
@gewu.locks = internal global [1024 x i32] zeroinitializer, align 64
define internal ptr @gewu.place(i64 %address) alwaysinline {
  %page = lshr i64 %address, 12
  %index = and i64 %page, 1023
  %p = getelementptr i32, ptr @gewu.locks, i64 %index
  ret ptr %p
}
define internal void @gewu.take(ptr %p) noinline {
  br label %try
try:
  %old = atomicrmw xchg ptr %p, i32 1 acquire
  %free = icmp eq i32 %old, 0
  br i1 %free, label %done, label %wait
wait:
  %now = load atomic i32, ptr %p monotonic, align 4
  %open = icmp eq i32 %now, 0
  br i1 %open, label %try, label %wait
done:
  ret void
}
define internal void @gewu.lock(i64 %address) {
  %p = call ptr @gewu.place(i64 %address)
  call void @gewu.take(ptr %p)
  ret void
}
define internal void @gewu.unlock(i64 %address) {
  %p = call ptr @gewu.place(i64 %address)
  store atomic i32 0, ptr %p release, align 4
  ret void
}
define internal void @gewu.lock2(i64 %one, i64 %two) {
  %p = call ptr @gewu.place(i64 %one)
  %q = call ptr @gewu.place(i64 %two)
  %same = icmp eq ptr %p, %q
  %less = icmp ult ptr %p, %q
  %a = select i1 %less, ptr %p, ptr %q
  %b = select i1 %less, ptr %q, ptr %p
  call void @gewu.take(ptr %a)
  br i1 %same, label %done, label %more
more:
  call void @gewu.take(ptr %b)
  br label %done
done:
  ret void
}
define internal void @gewu.unlock2(i64 %one, i64 %two) {
  call void @gewu.unlock(i64 %two)
  call void @gewu.unlock(i64 %one)
  ret void
}"""
