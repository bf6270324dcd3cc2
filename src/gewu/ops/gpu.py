"""Programs as kernels for GPUs: LLVM text for NVPTX and AMDGPU in which threads, or warps, compute points of the output.

A reduction that does not depend on all axes around it is computed once, into an array between two kernels.  What is left is one
kernel for each assignment.  Where the innermost axis of the reductions walks memory with stride 1 and the output's does not, 32
lanes share a point and add up by shuffles (NVIDIA); elsewhere each thread computes one point, neighbours along the last axis.

All kernels of a program have the same parameters: its arguments (pointers, and scalars by value), the arrays between kernels, and
64-bit integers, which `Device.integers` computes from a launch.  `Device.steps` tells the order and the number of threads.

Limits: no tiles in shared memory, so products of matrices run at the speed of caches; an index that is read from an array and
points outside reads the first element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.ops import llvm
from gewu.ops.emit import arguments_of
from gewu.ops.ir import WIDTH
from gewu.ops.lower import REDUCE_FLAGS, Lower, Module, Value, literal, llvm_type, number
from gewu.ops.reference import dtype_of
from gewu.ops.rewrite import Axes, Graph, children, tidy, walk
from gewu.ops.sizes import ONE, Affine, Size
from gewu.ops.tensor import Apply, Assign, Constant, Expression, Gather, Index, Load, Program, Reduce, Scalar

BLOCK: Final = 256
"""Threads in a block."""
WARP: Final = 32
_SMALL: Final = 64
_SPECIAL: Final = {
    "nvptx": ("@llvm.nvvm.read.ptx.sreg.tid.x", "@llvm.nvvm.read.ptx.sreg.ctaid.x", "ptx_kernel"),
    "amdgpu": ("@llvm.amdgcn.workitem.id.x", "@llvm.amdgcn.workgroup.id.x", "amdgpu_kernel"),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel: its name, the axes of its points, and how many threads share a point."""

    name: str
    axes: Axes
    lanes: int

    def blocks(self, launch: Mapping[str, int]) -> int:
        """Return how many blocks of BLOCK threads to start; none when there is nothing to do."""
        return -(-math.prod(size.value(launch) for _, size in self.axes) * self.lanes // BLOCK)


@dataclass(frozen=True, slots=True)
class Device:
    """A program for a GPU.

    Attributes:
        target: of `llvm.TARGETS`.
        text: LLVM text of all kernels.
        steps: kernels in order.
        arguments: how many arguments of the program come first.
        scalars: types of those that are no arrays.
        between: element type and length of the arrays that come next; the caller allocates them.
        integers: what comes last: sizes, or (argument, type) for the length of an array in elements.
    """

    target: str
    text: str
    steps: tuple[Step, ...]
    arguments: int
    scalars: Mapping[int, str]
    between: tuple[tuple[str, Size], ...]
    integers: tuple[Size | tuple[int, str], ...]

    def assembly(self) -> str:
        """Return PTX (NVIDIA) or assembly (AMD)."""
        return llvm.emit_assembly(self.text, self.target)

    def complete(self, args: Sequence[Any], launch: Mapping[str, int]) -> list[Any]:
        """Return what all kernels are started with: arrays as given, scalars in their types, new arrays between, integers."""
        given = [_scalar(a, self.scalars[i]) if i in self.scalars else a for i, a in enumerate(args[: self.arguments])]
        given += [np.zeros(length.value(launch), dtype_of(kind)) for kind, length in self.between]
        for entry in self.integers:
            size = entry.value(launch) if isinstance(entry, Size) else args[entry[0]].nbytes * 8 // WIDTH[entry[1]]
            given.append(np.int64(size))
        return given


def _scalar(value: Any, kind: str) -> Any:
    """Return a number in a type; one of NumPy's own passes its bits where the type says no more (b32)."""
    dtype = dtype_of(kind)
    return value.view(dtype) if kind[0] == "b" and kind != "bf16" and isinstance(value, np.generic) else dtype.type(value)


@dataclass(slots=True)
class _Plan:
    """Assignments in order, the arrays between them, and the sizes that kernels read."""

    assigns: list[Assign] = field(default_factory=list)
    between: list[tuple[str, Size]] = field(default_factory=list)
    integers: list[Size | tuple[int, str]] = field(default_factory=list)

    def place(self, entry: Size | tuple[int, str]) -> str:
        """Return the name of a parameter, added when new."""
        if entry not in self.integers:
            self.integers.append(entry)
        return f"%s{self.integers.index(entry)}"


def build(program: Program, target: str, name: str = "kernel") -> Device:
    """Return a program as kernels `NAME_0`, `NAME_1` ... for a GPU.

    Raises:
        InputError: the target is not a GPU.
        Unsupported: an operation that has no code.
    """
    kind = llvm.TARGETS[target].kind if target in llvm.TARGETS else ""
    if kind not in _SPECIAL:
        known = ", ".join(n for n, t in llvm.TARGETS.items() if t.kind in _SPECIAL)
        raise InputError("is not a GPU target", key="target", value=target, allowed=known)
    graph, plan, module = Graph(), _Plan(), Module()
    count, scalars, _ = arguments_of(program)
    _stage(graph, program, count, plan)
    bodies, steps = [], []
    for place, assign in enumerate(plan.assigns):
        lanes = WARP if kind == "nvptx" and _shared(graph, assign) else 1
        kernel = _Kernel(graph, module, plan, kind, lanes)
        bodies.append((f"{name}_{place}", kernel.body(assign)))
        steps.append(Step(f"{name}_{place}", assign.axes, lanes))
    parameters = [f"{llvm_type(scalars[i])} %a{i}" if i in scalars else f"ptr addrspace(1) %a{i}" for i in range(count)]
    parameters += [f"ptr addrspace(1) %a{count + i}" for i in range(len(plan.between))]
    parameters += [f"i64 %s{i}" for i in range(len(plan.integers))]
    convention, listed = _SPECIAL[kind][2], ", ".join(parameters)
    kernels = [f"define {convention} void @{n}({listed}) {{\nentry:\n{body}\n}}" for n, body in bodies]
    text = "\n".join([module.text(), *kernels])
    return Device(target, text, tuple(steps), count, scalars, tuple(plan.between), tuple(plan.integers))


def _stage(graph: Graph, program: Program, count: int, plan: _Plan) -> None:
    """Take out reductions that would be computed again for every point of an axis that they do not depend on."""
    known: dict[int, Load] = {}
    for number_, assign in enumerate(program.assigns):
        names = {axis: f"o{place}" for place, (axis, _) in enumerate(assign.axes)}
        axes = tuple((names[axis], size) for axis, size in assign.axes)
        value = graph.map_affines(graph.intern(assign.value), lambda m, names=names: tidy(m, names))
        where = tuple(tidy(w, names) for w in assign.where)
        final = Assign(assign.buffer, assign.type, axes, tidy(assign.index, names), value, where)
        value = _apart(graph, final, count, plan, known if not number_ else {})
        plan.assigns.append(replace(final, value=value))


def _apart(graph: Graph, assign: Assign, count: int, plan: _Plan, known: dict[int, Load]) -> Expression:
    value = assign.value
    while True:
        extents = dict(assign.axes)
        for r in graph.reductions([value]):
            extents.update(r.axes)
        chosen = next((r for r in graph.reductions([value]) if _again(graph, r, value, dict(assign.axes))), None)
        if chosen is None:
            return value
        load = known.get(id(chosen))
        if load is None:
            axes = tuple((axis, extents[axis]) for axis in extents if axis in graph.free[id(chosen)])
            terms, length = [], ONE
            for axis, size in reversed(axes):
                terms.append((axis, length))
                length = length * size
            load = Load(count + len(plan.between), chosen.type, tidy(Affine(tuple(terms))))
            plan.between.append((chosen.type, length))
            plan.assigns.append(Assign(load.buffer, chosen.type, axes, load.index, chosen))
        made = graph.make(load)

        def swap(e: Expression, chosen: Reduce = chosen, made: Expression = made) -> Expression | None:
            return made if e is chosen else None

        value = graph.replace(value, swap)


def _again(graph: Graph, r: Reduce, root: Expression, outer: Mapping[str, Size]) -> bool:
    """Tell whether a reduction of some length lies where more axes vary than it depends on."""
    extents = [size.constant for _, size in r.axes]
    if not graph.reads[id(r)] or (None not in extents and math.prod(e or 0 for e in extents) <= _SMALL):
        return False
    around = _around(root, r, frozenset(outer))
    return around is not None and bool(around - graph.free[id(r)])


def _around(e: Expression, r: Reduce, axes: frozenset[str]) -> frozenset[str] | None:
    """Return the axes that vary where a reduction is used first, or None where it is not used."""
    if e is r:
        return axes
    inside = axes | {axis for axis, _ in e.axes} if isinstance(e, Reduce) else axes
    found = [a for a in (_around(c, r, inside) for c in children(e)) if a is not None]
    return max(found, key=len, default=None)


def _shared(graph: Graph, assign: Assign) -> bool:
    """Tell whether a warp should compute a point: reductions walk memory one by one, and points do not."""
    last, points = (assign.axes[-1][0] if assign.axes else ""), {axis for axis, _ in assign.axes}
    together = False
    for r in _outermost(assign.value):
        inner = r.axes[-1][0]
        loads = [e.index for e in walk([r.body]) if isinstance(e, Load) and e.index.stride(inner).terms]
        if graph.free[id(r)] <= points and any(index.stride(inner).constant == 1 for index in loads):
            together = True
        if any(index.stride(last).constant == 1 for index in loads):
            return False
    return together


def _outermost(e: Expression) -> list[Reduce]:
    return [e] if isinstance(e, Reduce) else [r for c in children(e) for r in _outermost(c)]


class _Kernel:
    """Writes one kernel: a point of the output for each thread or warp."""

    def __init__(self, graph: Graph, module: Module, plan: _Plan, kind: str, lanes: int) -> None:
        self.graph, self.module, self.plan, self.kind, self.lanes = graph, module, plan, kind, lanes
        self.lower = Lower(module, [])
        self.axis: dict[str, str] = {}
        self.memo: dict[int, Value] = {}
        self.label, self.lane, self.deep = "entry", "0", False

    def body(self, assign: Assign) -> str:
        """Return the instructions."""
        emit, (thread, block, _) = self.lower.emit, _SPECIAL[self.kind]
        self.module.declarations |= {f"declare i32 {thread}()", f"declare i32 {block}()"}
        first = emit(f"mul i32 {emit(f'call i32 {block}()')}, {BLOCK}")
        flat = emit(f"zext i32 {emit(f'add i32 {first}, ' + emit(f'call i32 {thread}()'))} to i64")
        if self.lanes > 1:
            self.lane = emit(f"and i64 {flat}, {self.lanes - 1}")
            flat = emit(f"lshr i64 {flat}, 5")
        points = ONE
        for _, size in assign.axes:
            points = points * size
        self._if(emit(f"icmp slt i64 {flat}, {self._size(points)}"), lambda: self._point(assign, flat))
        return "\n".join([*self.lower.lines, "  ret void"])

    def _point(self, assign: Assign, flat: str) -> None:
        rest = flat
        for axis, size in reversed(assign.axes[1:]):
            extent = self._size(size)
            self.axis[axis] = self.lower.emit(f"urem i64 {rest}, {extent}")
            rest = self.lower.emit(f"udiv i64 {rest}, {extent}")
        if assign.axes:
            self.axis[assign.axes[0][0]] = rest

        def store() -> None:
            value = self.lower.take(self.value(assign.value), assign.type)
            place = self._address(assign.buffer, assign.type, self._affine(assign.index))
            line = f"  store {llvm_type(assign.type)} {value}, ptr addrspace(1) {place}"
            if self.lanes == 1:
                self.lower.lines.append(line)
            else:
                self._if(self.lower.emit(f"icmp eq i64 {self.lane}, 0"), lambda: self.lower.lines.append(line))

        if assign.where:
            self._if(self._holds(assign.where), store)
        else:
            store()

    def _if(self, test: str, body: Callable[[], None]) -> None:
        number_ = next(self.module.names)
        self.lower.lines += [f"  br i1 {test}, label %then{number_}, label %after{number_}", f"then{number_}:"]
        self.label = f"then{number_}"
        body()
        self.lower.lines += [f"  br label %after{number_}", f"after{number_}:"]
        self.label = f"after{number_}"

    def value(self, e: Expression) -> Value:
        """Return an expression's value, computed once in each loop."""
        if id(e) not in self.memo:
            self.memo[id(e)] = self._make(e)
        return self.memo[id(e)]

    def _make(self, e: Expression) -> Value:
        match e:
            case Constant():
                return Value(literal(e.type, e.bits), e.type)
            case Scalar():
                return Value(f"%a{e.argument}", e.type)
            case Index():
                return self.lower.apply("cvt", e.type, ("s64",), [Value(self._affine(e.value), "s64")])
            case Load():
                return self._load(e)
            case Gather():
                place = self.lower.take(self.value(e.place), "s64")
                inside = self.lower.emit(f"icmp ult i64 {place}, {self.plan.place((e.buffer, e.type))}")
                return self._read(e.buffer, e.type, self.lower.emit(f"select i1 {inside}, i64 {place}, i64 0"))
            case Apply():
                return self.lower.apply(e.op, e.type, e.mods, [self.value(a) for a in e.args])
        return self._reduce(e)

    def _load(self, e: Load) -> Value:
        place = self._affine(e.index)
        if not e.where:
            return self._read(e.buffer, e.type, place)
        inside = self._holds(e.where)
        found = self._read(e.buffer, e.type, self.lower.emit(f"select i1 {inside}, i64 {place}, i64 0"))
        zero = literal(e.type, 0)
        return Value(self.lower.emit(f"select i1 {inside}, {llvm_type(e.type)} {found.name}, {llvm_type(e.type)} {zero}"), e.type)

    def _read(self, buffer: int, kind: str, place: str) -> Value:
        return Value(self.lower.emit(f"load {llvm_type(kind)}, ptr addrspace(1) {self._address(buffer, kind, place)}"), kind)

    def _address(self, buffer: int, kind: str, place: str) -> str:
        return self.lower.emit(f"getelementptr {llvm_type(kind)}, ptr addrspace(1) %a{buffer}, i64 {place}")

    def _size(self, size: Size) -> str:
        return str(size.constant) if size.constant is not None else self.plan.place(size)

    def _affine(self, index: Affine) -> str:
        total = ""
        for axis, stride in (*index.terms, ("", index.offset)):
            if not stride.terms:
                continue
            part = self._size(stride)
            if axis:
                part = self.axis[axis] if part == "1" else self.lower.emit(f"mul nsw i64 {self.axis[axis]}, {part}")
            total = self.lower.emit(f"add nsw i64 {total}, {part}") if total else part
        return total or "0"

    def _holds(self, where: Sequence[Affine]) -> str:
        tests = [self.lower.emit(f"icmp sge i64 {self._affine(w)}, 0") for w in where]
        found = tests[0]
        for test in tests[1:]:
            found = self.lower.emit(f"and i1 {found}, {test}")
        return found

    def _reduce(self, e: Reduce) -> Value:
        """Write loops over the axes; lanes of a warp take every 32nd point of the last one, then add up."""
        own = {axis for axis, _ in e.axes}
        for r in self.graph.reductions([e.body]):
            if not self.graph.free[id(r)] & own and self.graph.free[id(r)] <= self.axis.keys():
                self.value(r)
        shared, self.deep = self.lanes > 1 and not self.deep, True
        found = self._loops(list(e.axes), e, _identity(e), shared)
        if shared:
            self.deep = False
            for step in (16, 8, 4, 2, 1):
                found = self._combine(e, found, self._shuffled(found, e.type, step))
        return Value(found, e.type)

    def _loops(self, axes: list[tuple[str, Size]], e: Reduce, start: str, shared: bool) -> str:
        if not axes:
            return self._term(e, start)
        (axis, size), number_, before = axes[0], next(self.module.names), self.label
        first, step = (self.lane, self.lanes) if shared and len(axes) == 1 else ("0", 1)
        extent, outer, kept = self._size(size), self.lower.lines, dict(self.memo)
        self.lower.lines, self.label, self.axis[axis] = [], f"body{number_}", f"%i{number_}"
        total = self._loops(axes[1:], e, f"%t{number_}", shared)
        inside, last = self.lower.lines, self.label
        self.lower.lines, self.label, self.memo = outer, f"exit{number_}", kept
        del self.axis[axis]
        outer += [
            f"  br label %head{number_}",
            f"head{number_}:",
            f"  %i{number_} = phi i64 [ {first}, %{before} ], [ %n{number_}, %{last} ]",
            f"  %t{number_} = phi {llvm_type(e.type)} [ {start}, %{before} ], [ {total}, %{last} ]",
            f"  %m{number_} = icmp slt i64 %i{number_}, {extent}",
            f"  br i1 %m{number_}, label %body{number_}, label %exit{number_}",
            f"body{number_}:",
            *inside,
            f"  %n{number_} = add nsw i64 %i{number_}, {step}",
            f"  br label %head{number_}",
            f"exit{number_}:",
        ]
        return f"%t{number_}"

    def _term(self, e: Reduce, start: str) -> str:
        if not e.where:
            return self._combine(e, start, self.lower.take(self.value(e.body), e.type))
        before, found = self.label, []

        def body() -> None:
            found.append(self._combine(e, start, self.lower.take(self.value(e.body), e.type)))
            found.append(self.label)

        self._if(self._holds(e.where), body)
        return self.lower.emit(f"phi {llvm_type(e.type)} [ {start}, %{before} ], [ {found[0]}, %{found[1]} ]")

    def _combine(self, e: Reduce, a: str, b: str) -> str:
        if e.kind in ("add", "mul") and e.type in ("f32", "f64"):
            return self.lower.emit(f"f{e.kind} {REDUCE_FLAGS}{llvm_type(e.type)} {a}, {b}")
        return self.lower.apply(e.kind, e.type, (), [Value(a, e.type), Value(b, e.type)]).name

    def _shuffled(self, name: str, kind: str, step: int) -> str:
        """Return the value that the lane with `step` flipped in its number has."""
        width, words = max(WIDTH[kind], 32), []
        whole = self.lower.take(Value(name, kind), f"b{width}")
        for word in range(width // 32):
            part = self.lower.emit(f"lshr i{width} {whole}, {32 * word}") if word else whole
            part = self.lower.emit(f"trunc i{width} {part} to i32") if width > 32 else part
            arguments = (("i32", "-1"), ("i32", part), ("i32", str(step)), ("i32", "31"))
            words.append(self.lower.call("i32", "llvm.nvvm.shfl.sync.bfly.i32", *arguments))
        if width == 32:
            return self.lower.take(Value(words[0], "b32"), kind)
        low, high = (self.lower.emit(f"zext i32 {word} to i64") for word in words)
        joined = self.lower.emit(f"or i64 {low}, {self.lower.emit(f'shl i64 {high}, 32')}")
        return self.lower.take(Value(joined, "b64"), kind)


def _identity(e: Reduce) -> str:
    if e.type in ("f16", "f32", "f64"):
        return number(e.type, {"add": 0.0, "mul": 1.0, "max": -math.inf, "min": math.inf}[e.kind])
    if e.type == "bf16":
        return str({"add": 0, "mul": 0x3F80, "max": 0xFF80, "min": 0x7F80}[e.kind])
    width, signed = WIDTH[e.type], e.type[0] == "s"
    top = (1 << width - 1) - 1 if signed else (1 << width) - 1
    return str({"add": 0, "mul": 1, "max": -top - 1 if signed else 0, "min": top}[e.kind])
