"""Loop nests as LLVM text: assignments over equal axes become one function over a range of their outermost loop.

Every sub-expression is computed in the outermost loop on whose axes it depends, and once. The last axis is the innermost,
vectorised loop; the axes before it are one flat parallel loop. A reduction becomes a loop of its own at its place, and
reductions over equal ranges at one place share it. Where the last output axis walks memory better than the reduction does, a
tile of accumulators along that axis is kept and the reduction runs outside (column sums, products); short constant reductions
are written out.

A function `NAME(ptr args, ptr sizes, i64 lo, i64 hi)` takes 64-bit slots (pointers, or bits of scalars), the values of the
sizes in the order of `Sizes`, and the part of the outermost loop to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from gewu.ops.ir import Unsupported
from gewu.ops.lower import REDUCE_FLAGS, Lower, Module, Value, literal, llvm_type
from gewu.ops.nest_parts import Access, Bounds, Choice, Function, Level, Sizes, accumulator, hints, step_cost
from gewu.ops.places import gathered
from gewu.ops.rewrite import Axes, Graph, walk
from gewu.ops.sizes import ONE, Affine, Size
from gewu.ops.tensor import Apply, Assign, Constant, Expression, Gather, Index, Load, Reduce, Scalar

UNROLLED: Final = 64
"""Points of a constant reduction up to which it is written out."""


class Nest:
    """Generates one function; see the module.

    Args:
        graph: owner of the interned expressions.
        module: collects declarations.
        sizes: collects runtime sizes.
        assigns: over equal axes and with equal conditions; values interned in `graph`.
        slots: argument slot that reads of a buffer use, where it is not the buffer's number.
        flag: slot of the word that is set by a gather out of bounds.
    """

    def __init__(
        self,
        graph: Graph,
        module: Module,
        sizes: Sizes,
        name: str,
        assigns: Sequence[Assign],
        *,
        slots: dict[int, int],
        flag: int,
        choice: Choice,
        hoist: bool = True,
    ) -> None:
        self.graph, self.sizes, self.name, self.assigns = graph, sizes, name, assigns
        self.slots, self.flag, self.choice, self.hoist = slots, flag, choice, hoist
        self.names = module.names
        self.entry: list[str] = []
        self.stack = [Level({}, [])]
        self.lower = Lower(module, self.stack[0].lines)
        self.axis: dict[str, str] = {}
        self.memo: dict[object, tuple[Value, Level]] = {}
        self.pointers: dict[int, str] = {}
        self.accesses: list[Access] = []
        self.reductions = graph.reductions([a.value for a in assigns])
        self.tiled: dict[int, tuple[str, str]] = {}
        self.bad = ""
        self.metadata: list[str] = []

    # The function.

    def build(self) -> Function:
        """Generate the function."""
        axes = self.assigns[0].axes
        outer, inner = axes[:-1], axes[-1] if axes else None
        whole = [r for r in self.reductions if self.graph.free[id(r)] <= {axis for axis, _ in axes}]
        tiled = [r for r in whole if inner and inner[0] in self.graph.free[id(r)] and self._interchanged(r, inner[0])]
        extent, unit, kind = ONE, 1, "rows" if outer else "single"
        if outer:
            outer, middle = self._split(outer, [r for r in whole if not any(r is t for t in tiled)])
            for _, size in outer:
                extent = extent * size
            self._outer(outer, lambda: self._middle(middle, lambda: self._row(inner, "0", self._size(inner[1]), tiled)))
        elif inner and tiled:
            extent, unit, kind = inner[1], self.choice.tile, "tiles"
            first = self.lower.emit(f"mul nsw i64 %lo, {unit}")
            last = self.minimum(self.lower.emit(f"mul nsw i64 %hi, {unit}"), self._size(inner[1]))
            self._row(inner, first, last, tiled)
        elif inner:
            extent, kind = inner[1], "elements"
            self._row(inner, "%lo", "%hi", tiled)
        else:
            self.guard(self.assigns[0].where, lambda: self.loop({}, "%lo", "%hi", lambda _: self._stores()))
        return Function(self.name, self._text(), tuple(self.accesses), extent, unit, kind)

    def _outer(self, axes: Axes, body: Callable[[], None]) -> None:
        """Open the flat loop over leading axes; each axis counts by itself, so no division is done in the loop."""
        counters, rest = [], "%lo"
        sizes = [self._size(size) for _, size in axes]
        for (axis, _), size in zip(reversed(axes), reversed(sizes), strict=True):
            slot = self.alloca("i64")
            counters.append((axis, slot, size))
            if len(axes) > 1:
                positive = self.lower.call("i64", "llvm.smax.i64", ("i64", size), ("i64", "1"))
                here = self.lower.emit(f"urem i64 {rest}, {positive}")
                rest = self.lower.emit(f"udiv i64 {rest}, {positive}")
            else:
                here = rest
            self.lower.lines.append(f"  store i64 {here}, ptr {slot}")

        def inside(flat: str) -> None:
            for axis, slot, _ in counters:
                self.axis[axis] = flat if len(axes) == 1 else self.lower.emit(f"load i64, ptr {slot}")
            self.guard([w for w in self.assigns[0].where if w.axes <= set(dict(axes))], body)
            carry = "true"
            for axis, slot, size in counters if len(axes) > 1 else ():
                step = self.lower.emit(f"zext i1 {carry} to i64")
                following = self.lower.emit(f"add nsw i64 {self.axis[axis]}, {step}")
                carry = self.lower.emit(f"icmp sge i64 {following}, {size}")
                following = self.lower.emit(f"select i1 {carry}, i64 0, i64 {following}")
                self.lower.lines.append(f"  store i64 {following}, ptr {slot}")

        self.loop(dict(axes), "%lo", "%hi", inside)

    def _split(self, outer: Axes, reductions: list[Reduce]) -> tuple[Axes, Axes]:
        """Return the axes that threads share and those inside of them; reductions over fewer axes are computed in between."""
        names = {axis for axis, _ in outer}
        kept = [r for r in reductions if not self._written_out(r) and self.graph.reads[id(r)]]
        free = {axes for r in kept if (axes := self.graph.free[id(r)]) and axes <= names}
        first = next(iter(free)) if len(free) == 1 else names
        return tuple(item for item in outer if item[0] in first), tuple(item for item in outer if item[0] not in first)

    def _middle(self, axes: Axes, body: Callable[[], None]) -> None:
        """Open loops over the axes inside of those that threads share, each narrowed by the conditions that it completes."""
        inner, where = self.assigns[0].axes[-1][0], self.assigns[0].where
        self._loops(axes, tuple(w for w in where if w.axes & set(dict(axes)) and inner not in w.axes), body, innermost=False)

    def _row(self, inner: tuple[str, Size], lo: str, hi: str, tiled: list[Reduce]) -> None:
        """Emit the innermost output loop from lo to hi, in tiles when reductions run outside of it."""
        outside = [] if len(self.assigns[0].axes) > 1 else [w for w in self.assigns[0].where if inner[0] not in w.axes]
        conditions = [w for w in self.assigns[0].where if inner[0] in w.axes]
        if not tiled:
            self.guard(outside, lambda: self._vector(inner, lo, hi, conditions, lambda: self._stores()))
            return

        def one(first: str) -> None:
            last = self.minimum(self.lower.emit(f"add nsw i64 {first}, {self.choice.tile}"), hi)
            for height in sorted({self.graph.height[id(r)] for r in tiled}):
                pending = [r for r in tiled if self.graph.height[id(r)] == height]
                while pending:
                    group = [r for r in pending if (r.axes, r.where) == (pending[0].axes, pending[0].where)]
                    pending = [r for r in pending if r not in group]
                    self._tile(inner, first, last, group)
            self._vector(inner, first, last, conditions, lambda: self._stores())

        self.guard(outside, lambda: self.loop({}, lo, hi, one, step=self.choice.tile))

    def _vector(self, inner: tuple[str, Size], lo: str, hi: str, conditions: list[Affine], body: Callable[[], None]) -> None:
        lo, hi, left = self._clamp(inner[0], lo, hi, conditions)

        def inside(index: str) -> None:
            self.axis[inner[0]] = index
            self.guard(left, body)

        self.loop({inner[0]: inner[1]}, lo, hi, inside, where=tuple(conditions), innermost=True)

    def _stores(self) -> None:
        values = [self.value(a.value) for a in self.assigns]
        for assign, value in zip(self.assigns, values, strict=True):
            name = self.lower.take(value, assign.type)
            self._record(assign.buffer, assign.type, assign.index, (), write=True)
            place = self.address(self.pointer(assign.buffer), assign.type, self.affine(assign.index))
            self.lower.lines.append(f"  store {llvm_type(assign.type)} {name}, ptr {place}")

    def _text(self) -> str:
        root, parameters = self.stack[0].lines, ", ".join(f"ptr noalias %a{slot}" for slot in self.pointers)
        if self.bad:
            root += [
                f"  %bad = load i32, ptr {self.bad}",
                "  %any = icmp ne i32 %bad, 0",
                "  br i1 %any, label %report, label %done",
                "report:",
                f"  store i64 1, ptr {self.pointer(self.flag)}",
                "  br label %done",
                "done:",
            ]
            parameters = ", ".join(f"ptr noalias %a{slot}" for slot in self.pointers)
        comma = ", " if parameters else ""
        lines = [
            f"define internal void @{self.name}.body({parameters}{comma}"
            "ptr %args, ptr noalias %sizes, i64 %lo, i64 %hi) noinline #0 {",
            "entry:",
        ]
        lines += [*self.entry, "  br label %start", "start:", *root, "  ret void", "}"]
        lines += [f"define void @{self.name}(ptr %args, ptr %sizes, i64 %lo, i64 %hi) #0 {{"]
        for slot in self.pointers:
            lines += [f"  %q{slot} = getelementptr i64, ptr %args, i64 {slot}", f"  %a{slot} = load ptr, ptr %q{slot}"]
        passed = "".join(f"ptr %a{slot}, " for slot in self.pointers)
        lines += [f"  call void @{self.name}.body({passed}ptr %args, ptr %sizes, i64 %lo, i64 %hi)", "  ret void", "}"]
        return "\n".join([*lines, *self.metadata])

    # Loops, conditions and small code.

    def loop(
        self,
        axes: dict[str, Size],
        lo: str,
        hi: str,
        body: Callable[[str], None],
        *,
        step: int = 1,
        where: tuple[Affine, ...] = (),
        innermost: bool = False,
    ) -> None:
        """Emit a loop at the current place; `body` gets the name of its counter."""
        number, slot, outer = next(self.names), self.alloca("i64"), self.stack[-1]
        bounds = Bounds(lo, hi, number)
        self._open(Level(axes, [], where, bounds if innermost else None))
        body(f"%i{number}")
        inside = self._close()
        outer.lines += [
            f"  store i64 {lo}, ptr {slot}",
            f"  br label %head{number}",
            f"head{number}:",
            f"  %i{number} = load i64, ptr {slot}",
            f"  %more{number} = icmp slt i64 %i{number}, {bounds.hi}",
            f"  br i1 %more{number}, label %body{number}, label %exit{number}",
            f"body{number}:",
            *inside,
            f"  %next{number} = add nsw i64 %i{number}, {step}",
            f"  store i64 %next{number}, ptr {slot}",
            f"  br label %head{number}{hints(self.choice, self.names, self.metadata) if innermost else ''}",
            f"exit{number}:",
        ]

    def guard(self, conditions: Sequence[Affine], body: Callable[[], None]) -> None:
        """Emit code that runs where all conditions are >= 0."""
        if not conditions:
            body()
            return
        test, outer, number = self._test(conditions), self.stack[-1], next(self.names)
        self._open(Level({}, [], tuple(conditions)))
        body()
        inside = self._close()
        outer.lines += [f"  br i1 {test}, label %then{number}, label %after{number}", f"then{number}:", *inside]
        outer.lines += [f"  br label %after{number}", f"after{number}:"]

    def _open(self, level: Level) -> None:
        self.stack.append(level)
        self.lower.lines = level.lines

    def _close(self) -> list[str]:
        level = self.stack.pop()
        self.lower.lines = self.stack[-1].lines
        return level.lines

    def _test(self, conditions: Sequence[Affine]) -> str:
        test = ""
        for condition in conditions:
            one = self.lower.emit(f"icmp sge i64 {self.affine(condition)}, 0")
            test = self.lower.emit(f"and i1 {test}, {one}") if test else one
        return test

    def _clamp(self, axis: str, lo: str, hi: str, conditions: Sequence[Affine]) -> tuple[str, str, list[Affine]]:
        """Narrow the bounds of a loop by conditions; return also those that must be tested inside."""
        left = []
        for condition in conditions:
            stride = condition.stride(axis).constant
            rest = Affine(tuple(t for t in condition.terms if t[0] != axis), condition.offset)
            if stride is None:
                left.append(condition)
                continue
            value = self.affine(rest)
            if stride == 0:
                holds = self.lower.emit(f"icmp sge i64 {value}, 0")
                hi = self.lower.emit(f"select i1 {holds}, i64 {hi}, i64 {lo}")
                continue
            if abs(stride) > 1:  # floor(rest / |stride|)
                value = self._floor(value, abs(stride))
            if stride > 0:
                lo = self.lower.call("i64", "llvm.smax.i64", ("i64", lo), ("i64", self.lower.emit(f"sub nsw i64 0, {value}")))
            else:
                hi = self.minimum(hi, self.lower.emit(f"add nsw i64 {value}, 1"))
        return lo, hi, left

    def _floor(self, name: str, divisor: int) -> str:
        quotient = self.lower.emit(f"sdiv i64 {name}, {divisor}")
        remainder = self.lower.emit(f"srem i64 {name}, {divisor}")
        below = self.lower.emit(f"ashr i64 {remainder}, 63")
        return self.lower.emit(f"add nsw i64 {quotient}, {below}")

    def minimum(self, a: str, b: str) -> str:
        """Return the smaller of two i64."""
        return self.lower.call("i64", "llvm.smin.i64", ("i64", a), ("i64", b))

    def alloca(self, kind: str) -> str:
        """Return a new cell on the stack."""
        name = f"%m{next(self.names)}"
        self.entry.append(f"  {name} = alloca {kind}, align 64")
        return name

    def _size(self, size: Size) -> str:
        return str(size.constant) if size.constant is not None else self.runtime(size)

    def runtime(self, entry: Size | tuple[int, str]) -> str:
        """Return a size known at the call, or the length of an array, as i64."""
        place = self.sizes.place(entry)
        name = f"%size{place}"
        line = f"  {name} = load i64, ptr %sizeat{place}, !invariant.load !{{}}"
        if line not in self.entry:
            self.entry += [f"  %sizeat{place} = getelementptr i64, ptr %sizes, i64 {place}", line]
        return name

    def pointer(self, slot: int) -> str:
        """Return the name of a slot's pointer."""
        return self.pointers.setdefault(slot, f"%a{slot}")

    def address(self, pointer: str, kind: str, index: str) -> str:
        """Return the address of an element."""
        return self.lower.emit(f"getelementptr inbounds {llvm_type(kind)}, ptr {pointer}, i64 {index}")

    def _record(self, slot: int, kind: str, index: Affine, where: tuple[Affine, ...], write: bool = False) -> None:
        axes = tuple(item for level in self.stack for item in level.axes.items())
        holding = tuple(c for level in self.stack for c in level.where)
        access = Access(slot, kind, index, axes, (*holding, *where), write)
        if access not in self.accesses:
            self.accesses.append(access)

    # Values.

    def depth(self, axes: frozenset[str]) -> int:
        """Return the depth of the innermost loop over one of these axes."""
        return next((d for d in range(len(self.stack) - 1, 0, -1) if not axes.isdisjoint(self.stack[d].axes)), 0)

    def at(self, depth: int, make: Callable[[], Value], key: object) -> Value:
        """Make a value in the loop at this depth, or return it when it was made there and is still in scope."""
        found = self.memo.get(key)
        if found is not None and found[1] in self.stack:
            return found[0]
        below = self.stack[depth + 1 :]
        del self.stack[depth + 1 :]
        self.lower.lines = self.stack[-1].lines
        value = make()
        self.memo[key] = (value, self.stack[-1])
        self.stack += below
        self.lower.lines = self.stack[-1].lines
        return value

    def affine(self, index: Affine) -> str:
        """Return an index map's value as i64; each part is computed in the outermost loop that knows it."""
        terms = sorted(index.terms, key=lambda t: self.depth(frozenset((t[0],))))
        shift = sum(c for c, factors in index.offset.terms if not factors)
        offset = index.offset + Size.of(-shift)  # neighbours differ by a constant that LLVM sees
        done, total = (), self._size(offset)
        for axis, stride in terms:
            done = (*done, (axis, stride))

            def add(total: str = total, axis: str = axis, stride: Size = stride) -> Value:
                term = self.axis[axis]
                if stride.constant != 1:
                    term = self.lower.emit(f"mul nsw i64 {term}, {self._size(stride)}")
                return Value(term if total == "0" else self.lower.emit(f"add nsw i64 {total}, {term}"), "s64")

            total = self.at(self.depth(frozenset((axis,))), add, ("affine", done, offset)).name
        if shift and total == "0":
            return str(shift)
        return self.lower.emit(f"add nsw i64 {total}, {shift}") if shift else total

    def value(self, e: Expression) -> Value:
        """Return the value of an interned expression."""
        if isinstance(e, Constant):
            return Value(literal(e.type, e.bits), e.type)
        return self.at(self._place(e), lambda: self._make(e), id(e))

    def _place(self, e: Expression) -> int:
        """Return the depth of the loop in which an expression is computed."""
        depth = self.depth(self.graph.free[id(e)])
        if not self.hoist and self.graph.reads[id(e)]:
            depth = max([depth, *(d for d, level in enumerate(self.stack) if level.where)])
        return depth

    def _make(self, e: Expression) -> Value:
        match e:
            case Load():
                return self._load(e)
            case Gather():
                return gathered(self, e)
            case Scalar():
                place = self.lower.emit(f"getelementptr i64, ptr %args, i64 {e.argument}")
                return Value(self.lower.emit(f"load {llvm_type(e.type)}, ptr {place}"), e.type)
            case Index():
                return Value(self.lower.take(Value(self.affine(e.value), "s64"), e.type), e.type)
            case Apply():
                return self.lower.apply(e.op, e.type, e.mods, [self.value(a) for a in e.args])
            case Reduce() if id(e) in self.tiled:
                cell, first = self.tiled[id(e)]
                place = self.lower.emit(f"sub nsw i64 {self.axis[self.assigns[0].axes[-1][0]]}, {first}")
                kind = llvm_type(accumulator(e)[0])
                return self._result(e, self.lower.emit(f"getelementptr inbounds {kind}, ptr {cell}, i64 {place}"))
            case Reduce():
                return self._reduce(e)
        raise Unsupported("no code for this expression", value=type(e).__name__)

    def _load(self, e: Load) -> Value:
        slot = self.slots.get(e.buffer, e.buffer)
        self._record(slot, e.type, e.index, e.where)
        t, pointer = llvm_type(e.type), self.pointer(slot)
        if not e.where:
            return Value(self.lower.emit(f"load {t}, ptr {self.address(pointer, e.type, self.affine(e.index))}"), e.type)
        index, test, number = self.affine(e.index), self._test(e.where), next(self.names)
        cell = self.alloca(t)
        self.lower.lines += [
            f"  store {t} {literal(e.type, 0)}, ptr {cell}",
            f"  br i1 {test}, label %then{number}, label %after{number}",
            f"then{number}:",
        ]
        loaded = self.lower.emit(f"load {t}, ptr {self.address(pointer, e.type, index)}")
        self.lower.lines += [f"  store {t} {loaded}, ptr {cell}", f"  br label %after{number}", f"after{number}:"]
        return Value(self.lower.emit(f"load {t}, ptr {cell}"), e.type)

    def report(self, wrong: str) -> None:
        """Note that a place lies outside of its array where `wrong` holds."""
        if not self.bad:
            self.bad = self.alloca("i32")
            self.entry.append(f"  store i32 0, ptr {self.bad}")
            self.pointer(self.flag)
        before = self.lower.emit(f"load i32, ptr {self.bad}")
        now = self.lower.emit(f"or i32 {before}, {self.lower.emit(f'zext i1 {wrong} to i32')}")
        self.lower.lines.append(f"  store i32 {now}, ptr {self.bad}")

    # Reductions.

    def _combine(self, e: Reduce, total: str) -> str:
        """Return the total with the body at the current point."""
        kind, _ = accumulator(e)
        value = self.lower.take(self.value(e.body), e.type)
        value = self.lower.narrow(value, e.type, kind) if kind != e.type else value
        t = llvm_type(kind)
        if kind not in ("f32", "f64"):
            return self.lower.apply(e.kind, kind, (), [Value(total, kind), Value(value, kind)]).name
        if e.kind in ("add", "mul"):
            return self.lower.emit(f"f{e.kind} {REDUCE_FLAGS}{t} {total}, {value}")
        return self.lower.call(t, f"llvm.{e.kind}num.{kind}", (t, total), (t, value), flags="nsz ")

    def _result(self, e: Reduce, cell: str) -> Value:
        kind, _ = accumulator(e)
        name = self.lower.emit(f"load {llvm_type(kind)}, ptr {cell}")
        return Value(self.lower.narrow(name, kind, e.type) if kind != e.type else name, e.type)

    def _group(self, e: Reduce) -> list[Reduce]:
        """Return the reductions that can run in the loop of this one: equal range, equal place, equal height."""
        depth, height = len(self.stack) - 1, self.graph.height[id(e)]
        found, known_axes = [], {axis for level in self.stack for axis in level.axes}
        for r in self.reductions:
            if not self.graph.free[id(r)] <= known_axes:  # it stands inside of another reduction, which is not being made
                continue
            alike = id(r) not in self.tiled and r.axes == e.axes and r.where == e.where and self.graph.height[id(r)] == height
            known = self.memo.get(id(r))
            if alike and self._place(r) == depth and (r is e or not (known and known[1] in self.stack)):
                found.append(r)
        return found

    def _reduce(self, e: Reduce) -> Value:
        group = self._group(e)
        cells = []
        for r in group:
            kind, start = accumulator(r)
            cells.append(self.alloca(llvm_type(kind)))
            self.lower.lines.append(f"  store {llvm_type(kind)} {start}, ptr {cells[-1]}")

        def body() -> None:
            for r, cell in zip(group, cells, strict=True):
                t = llvm_type(accumulator(r)[0])
                total = self._combine(r, self.lower.emit(f"load {t}, ptr {cell}"))
                self.lower.lines.append(f"  store {t} {total}, ptr {cell}")

        if self._written_out(e):
            self._points(e, body)
        else:
            self._loops(self._ordered(e, group), e.where, body)
        for r, cell in zip(group, cells, strict=True):
            self.memo[id(r)] = (self._result(r, cell), self.stack[-1])
        return self.memo[id(e)][0]

    def _written_out(self, e: Reduce) -> bool:
        points = 1
        for _, size in e.axes:
            points *= UNROLLED + 1 if size.constant is None else max(size.constant, 0)
        return 0 < points <= UNROLLED

    def _points(self, e: Reduce, body: Callable[[], None]) -> None:
        """Write out a constant reduction point by point."""
        extents = [size.constant or 0 for _, size in e.axes]
        total = 1
        for extent in extents:
            total *= extent
        for flat in range(total):
            self._open(Level(dict(e.axes), self.lower.lines))
            for (axis, _), extent in zip(reversed(e.axes), reversed(extents), strict=True):
                flat, self.axis[axis] = flat // extent, str(flat % extent)
            self.guard(e.where, body)
            self._close()

    def _loops(self, axes: Axes, where: tuple[Affine, ...], body: Callable[[], None], innermost: bool = True) -> None:
        """Open reduction loops, slow to fast, each narrowed by the conditions that it completes."""
        if not axes:
            body()
            return
        (axis, size), later = axes[0], {a for a, _ in axes[1:]}
        ready = [w for w in where if w.axes.isdisjoint(later)]
        lo, hi, left = self._clamp(axis, "0", self._size(size), ready)

        def inside(index: str) -> None:
            self.axis[axis] = index
            self.guard(left, lambda: self._loops(axes[1:], tuple(w for w in where if w not in ready), body, innermost))

        self.loop({axis: size}, lo, hi, inside, where=tuple(ready), innermost=innermost and not later)

    def _cost(self, axis: str, roots: list[Expression]) -> float:
        """Return what walking memory along an axis costs, summed over the reads inside."""
        return sum(step_cost(e.index, axis) for e in walk(roots) if isinstance(e, Load))

    def _ordered(self, e: Reduce, group: list[Reduce]) -> Axes:
        """Return the axes of a reduction with the one that walks memory best last."""
        best = min(reversed(e.axes), key=lambda item: self._cost(item[0], [r.body for r in group]), default=None)
        return (*(item for item in e.axes if item is not best), best) if best else ()

    def _interchanged(self, e: Reduce, inner: str) -> bool:
        if self._written_out(e) or not e.axes:
            return False
        along = self._cost(inner, [e.body])
        return along < min(self._cost(axis, [e.body]) for axis, _ in e.axes)

    def _tile(self, inner: tuple[str, Size], first: str, last: str, group: list[Reduce]) -> None:
        """Compute reductions for a tile of the inner output axis: the reduction outside, the tile inside."""
        cells = [self.alloca(f"[{self.choice.tile} x {llvm_type(accumulator(r)[0])}]") for r in group]
        axis = inner[0]
        narrow = [w for w in group[0].where if axis in w.axes]

        def across(work: Callable[[Reduce, str, str], None], conditions: Sequence[Affine] = ()) -> None:
            lo, hi, left = self._clamp(axis, first, last, conditions)

            def inside(index: str) -> None:
                self.axis[axis] = index
                self.guard(left, lambda: each(index))

            def each(index: str) -> None:
                for r, cell in zip(group, cells, strict=True):
                    t = llvm_type(accumulator(r)[0])
                    place = self.lower.emit(f"sub nsw i64 {index}, {first}")
                    work(r, self.lower.emit(f"getelementptr inbounds {t}, ptr {cell}, i64 {place}"), t)

            self.loop({axis: inner[1]}, lo, hi, inside, where=tuple(conditions), innermost=True)

        across(lambda r, place, t: self.lower.lines.append(f"  store {t} {accumulator(r)[1]}, ptr {place}"))

        def add(steps: Sequence[str], fast: str) -> None:
            def work(r: Reduce, place: str, t: str) -> None:
                total = self.lower.emit(f"load {t}, ptr {place}")
                for step in steps:
                    shared = [(Level(level.axes, level.lines, level.where, level.bounds), level) for level in self.stack[-2:]]
                    self.stack[-2:] = [new for new, _ in shared]
                    self.axis[fast] = step
                    total = self._combine(r, total)
                    self.stack[-2:] = [old for _, old in shared]
                self.lower.lines.append(f"  store {t} {total}, ptr {place}")

            if narrow:  # the tile is narrowed for each term, so terms go one by one
                self.axis[fast] = steps[0]
            across(work, narrow)

        self._stepped(group[0], add, narrow)
        self.tiled |= {id(r): (cell, first) for r, cell in zip(group, cells, strict=True)}

    def _stepped(self, e: Reduce, add: Callable[[Sequence[str], str], None], narrow: Sequence[Affine]) -> None:
        """Run over a reduction with the fast axis in steps of `unroll` where no condition has to be tested inside."""
        (fast, size), slow = e.axes[-1], e.axes[:-1]
        early = [w for w in e.where if fast not in w.axes and w not in narrow]
        late = [w for w in e.where if fast in w.axes and w not in narrow]

        def innermost() -> None:
            lo, hi, left = self._clamp(fast, "0", self._size(size), late)
            unroll = 1 if left or narrow else self.choice.unroll
            where = tuple(late)
            if unroll > 1:
                whole = self.lower.emit(f"sub nsw i64 {hi}, {unroll - 1}")
                many = self.lower.call("i64", "llvm.smax.i64", ("i64", self.lower.emit(f"sub nsw i64 {hi}, {lo}")), ("i64", "0"))
                done = self.lower.emit(f"add nsw i64 {lo}, {self.lower.emit(f'and i64 {many}, {-unroll}')}")

                def several(index: str) -> None:
                    add([index, *(self.lower.emit(f"add nsw i64 {index}, {k}") for k in range(1, unroll))], fast)

                self.loop({fast: size}, lo, whole, several, step=unroll, where=where)
                lo = done
            self.loop({fast: size}, lo, hi, lambda index: self._single(index, fast, left, add), where=where)

        self._loops(slow, tuple(early), innermost, innermost=False)

    def _single(self, index: str, fast: str, left: list[Affine], add: Callable[[Sequence[str], str], None]) -> None:
        self.axis[fast] = index
        self.guard(left, lambda: add([index], fast))
