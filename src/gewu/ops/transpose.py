"""Copies whose reads and writes walk memory along different axes, as blocks transposed in registers.

out[.., u, v] with unit stride along v is read from memory with unit stride along u. A square block of N by N elements is read
as N vectors along u, transposed by log2 N rounds of shuffles (Eklundh), and written as N vectors along v. What is left at the
edges is copied element by element."""

from __future__ import annotations

from typing import Final

from gewu.ops.ir import WIDTH
from gewu.ops.lower import Lower, Module
from gewu.ops.nest_parts import Access, Function, Sizes
from gewu.ops.rewrite import Axes
from gewu.ops.sizes import Ceil, Size
from gewu.ops.tensor import Assign, Load

LANES: Final = {8: 16, 16: 16, 32: 16, 64: 8}
STRIPE: Final = 64
"""Elements along u that one unit of the outermost loop copies."""


def crossing(assign: Assign) -> tuple[tuple[str, Size], tuple[str, Size]] | None:
    """Return the axes (u, v) of an assignment that is a transposing copy, else None."""
    load = assign.value
    if not isinstance(load, Load) or load.where or assign.where or load.type == "pred" or WIDTH[load.type] != WIDTH[assign.type]:
        return None
    if len(assign.axes) < 2 or load.buffer == assign.buffer:
        return None
    v = assign.axes[-1]
    if assign.index.stride(v[0]).constant != 1 or load.index.stride(v[0]).constant in (0, 1):
        return None
    for u in assign.axes[:-1]:
        if load.index.stride(u[0]).constant == 1:
            return u, v
    return None


def build(module: Module, sizes: Sizes, name: str, assign: Assign, slots: dict[int, int]) -> Function:
    """Generate the copy as a function like those of `nest`; its outermost loop counts stripes of u for all other axes."""
    return _Copy(module, sizes, name, assign, slots).function()


class _Copy:
    def __init__(self, module: Module, sizes: Sizes, name: str, assign: Assign, slots: dict[int, int]) -> None:
        found = crossing(assign)
        assert found is not None and isinstance(assign.value, Load)
        (self.u, self.rows), (self.v, self.columns) = found
        self.assign, self.load, self.name, self.sizes = assign, assign.value, name, sizes
        self.others: Axes = tuple(item for item in assign.axes if item[0] not in (self.u, self.v))
        self.slot = slots.get(self.load.buffer, self.load.buffer)
        self.width = WIDTH[assign.type]
        self.lanes, self.t = LANES[self.width], f"i{self.width}"
        self.lower = Lower(module, [])

    def function(self) -> Function:
        stripes = Size.named(Ceil(self.rows, Size.of(STRIPE)))
        extent = stripes
        for _, size in self.others:
            extent = extent * size
        text = self._text(stripes)
        accesses = (
            Access(self.slot, self.load.type, self.load.index, self.assign.axes, (), False),
            Access(self.assign.buffer, self.assign.type, self.assign.index, self.assign.axes, (), True),
        )
        return Function(self.name, text, accesses, extent, 1, "transpose")

    def _size(self, size: Size) -> str:
        if size.constant is not None:
            return str(size.constant)
        place = self.lower.emit(f"getelementptr i64, ptr %sizes, i64 {self.sizes.place(size)}")
        return self.lower.emit(f"load i64, ptr {place}")

    def _base(self, pointer: str, offset: Size, strides: list[tuple[str, Size]]) -> str:
        total = self._size(offset)
        for counter, stride in strides:
            total = self.lower.emit(f"add nsw i64 {total}, {self.lower.emit(f'mul nsw i64 {counter}, {self._size(stride)}')}")
        return self.lower.emit(f"getelementptr {self.t}, ptr {pointer}, i64 {total}")

    def _text(self, stripes: Size) -> str:
        emit, lower = self.lower.emit, self.lower
        rest, counters = "%unit", []
        for axis, size in reversed((*self.others, (self.u, stripes))):
            n = lower.call("i64", "llvm.smax.i64", ("i64", self._size(size)), ("i64", "1"))
            counters.append((axis, emit(f"urem i64 {rest}, {n}")))
            rest = emit(f"udiv i64 {rest}, {n}")
        stripe = next(c for a, c in counters if a == self.u)
        around = [(a, c) for a, c in counters if a != self.u]
        u0 = emit(f"mul nsw i64 {stripe}, {STRIPE}")
        u1 = lower.call("i64", "llvm.smin.i64", ("i64", emit(f"add nsw i64 {u0}, {STRIPE}")), ("i64", self._size(self.rows)))
        source = self._base("%in", self.load.index.offset, [(c, self.load.index.stride(a)) for a, c in around])
        target = self._base("%out", self.assign.index.offset, [(c, self.assign.index.stride(a)) for a, c in around])
        step_in, step_out = self._size(self.load.index.stride(self.v)), self._size(self.assign.index.stride(self.u))
        columns = self._size(self.columns)
        whole_v = emit(f"and i64 {columns}, {-self.lanes}")
        count_u = emit(f"and i64 {emit(f'sub nsw i64 {u1}, {u0}')}, {-self.lanes}")
        whole_u = emit(f"add nsw i64 {u0}, {count_u}")
        setup = "\n".join(lower.lines)
        lower.lines = []
        self._block(source, target, step_in, step_out)
        block = "\n".join(lower.lines)
        edges = self._edge("a", "0", whole_v, whole_u, u1, source, target, step_in, step_out)
        edges += self._edge("b", whole_v, columns, u0, u1, source, target, step_in, step_out)
        n = self.lanes
        return f"""define void @{self.name}(ptr %args, ptr %sizes, i64 %lo, i64 %hi) #0 {{
entry:
  %pin = getelementptr i64, ptr %args, i64 {self.slot}
  %in = load ptr, ptr %pin
  %pout = getelementptr i64, ptr %args, i64 {self.assign.buffer}
  %out = load ptr, ptr %pout
  br label %units
units:
  %unit = phi i64 [%lo, %entry], [%unit.next, %unit.end]
  %unit.more = icmp slt i64 %unit, %hi
  br i1 %unit.more, label %unit.body, label %done
unit.body:
{setup}
  br label %columns
columns:
  %v = phi i64 [0, %unit.body], [%v.next, %columns.end]
  %v.more = icmp slt i64 %v, {whole_v}
  br i1 %v.more, label %rows, label %a.start
rows:
  %u = phi i64 [{u0}, %columns], [%u.next, %rows.body]
  %u.more = icmp slt i64 %u, {whole_u}
  br i1 %u.more, label %rows.body, label %columns.end
rows.body:
{block}
  %u.next = add nsw i64 %u, {n}
  br label %rows
columns.end:
  %v.next = add nsw i64 %v, {n}
  br label %columns
{edges}unit.end:
  %unit.next = add nsw i64 %unit, 1
  br label %units
done:
  ret void
}}"""

    def _block(self, source: str, target: str, step_in: str, step_out: str) -> None:
        """Emit the transposition of one square block at (u, v)."""
        emit, n, vector = self.lower.emit, self.lanes, f"<{self.lanes} x {self.t}>"
        align = self.width // 8
        first = emit(f"add nsw i64 {emit(f'mul nsw i64 %v, {step_in}')}, %u")
        rows = []
        for k in range(n):
            place = emit(f"add nsw i64 {first}, {emit(f'mul nsw i64 {step_in}, {k}')}")
            rows.append(emit(f"load {vector}, ptr {emit(f'getelementptr {self.t}, ptr {source}, i64 {place}')}, align {align}"))
        distance = n // 2
        while distance:
            for k in range(n):
                if k & distance:
                    continue
                a, b = rows[k], rows[k + distance]
                low = [j if not j & distance else n + j - distance for j in range(n)]
                high = [j + distance if not j & distance else n + j for j in range(n)]
                rows[k], rows[k + distance] = (self._shuffle(vector, a, b, mask) for mask in (low, high))
            distance //= 2
        first = emit(f"add nsw i64 {emit(f'mul nsw i64 %u, {step_out}')}, %v")
        for k in range(n):
            place = emit(f"add nsw i64 {first}, {emit(f'mul nsw i64 {step_out}, {k}')}")
            pointer = emit(f"getelementptr {self.t}, ptr {target}, i64 {place}")
            self.lower.lines.append(f"  store {vector} {rows[k]}, ptr {pointer}, align {align}")

    def _shuffle(self, vector: str, a: str, b: str, mask: list[int]) -> str:
        picks = ", ".join(f"i32 {m}" for m in mask)
        return self.lower.emit(f"shufflevector {vector} {a}, {vector} {b}, <{len(mask)} x i32> <{picks}>")

    def _edge(self, tag: str, v0: str, v1: str, u0: str, u1: str, source: str, target: str, step_in: str, step_out: str) -> str:
        """Return loops that copy elements u0 <= u < u1, v0 <= v < v1 one by one."""
        after = "b.start" if tag == "a" else "unit.end"
        return f"""{tag}.start:
  br label %{tag}.u
{tag}.u:
  %{tag}.ui = phi i64 [{u0}, %{tag}.start], [%{tag}.un, %{tag}.uend]
  %{tag}.um = icmp slt i64 %{tag}.ui, {u1}
  br i1 %{tag}.um, label %{tag}.v, label %{after}
{tag}.v:
  %{tag}.vi = phi i64 [{v0}, %{tag}.u], [%{tag}.vn, %{tag}.vbody]
  %{tag}.vm = icmp slt i64 %{tag}.vi, {v1}
  br i1 %{tag}.vm, label %{tag}.vbody, label %{tag}.uend
{tag}.vbody:
  %{tag}.i1 = mul nsw i64 %{tag}.vi, {step_in}
  %{tag}.i2 = add nsw i64 %{tag}.i1, %{tag}.ui
  %{tag}.ip = getelementptr {self.t}, ptr {source}, i64 %{tag}.i2
  %{tag}.x = load {self.t}, ptr %{tag}.ip
  %{tag}.o1 = mul nsw i64 %{tag}.ui, {step_out}
  %{tag}.o2 = add nsw i64 %{tag}.o1, %{tag}.vi
  %{tag}.op = getelementptr {self.t}, ptr {target}, i64 %{tag}.o2
  store {self.t} %{tag}.x, ptr %{tag}.op
  %{tag}.vn = add nsw i64 %{tag}.vi, 1
  br label %{tag}.v
{tag}.uend:
  %{tag}.un = add nsw i64 %{tag}.ui, 1
  br label %{tag}.u
"""
