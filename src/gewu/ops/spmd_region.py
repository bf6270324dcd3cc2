"""One stretch of a kernel, from its start or from a barrier to the next barriers, as an LLVM function for one vector of threads.

Blocks come in the order of the walk.  A block runs with the mask of its class; where threads part, each side is entered if it
has threads at all; uniform jumps stay jumps.  What may wait and what does wait for its turn is known from a data-flow analysis,
so most blocks are entered without a test.  Values that cross blocks live in stack variables (LLVM makes registers of them),
those that cross a barrier in the state of the vector.
"""

from __future__ import annotations

from gewu.ops import ir, spmd_address, spmd_memory, spmd_ops, spmd_report, spmd_warp
from gewu.ops.shape import VARYING
from gewu.ops.spmd_emit import BITS, Builder, Val, integer, literal
from gewu.ops.spmd_flow import NO_OLD, Op
from gewu.ops.spmd_program import Program

ARGUMENTS = (
    "ptr noalias %args, ptr noalias %ctx, ptr noalias %state, ptr noalias %shm, ptr noalias %local, i32 %vector, "
    "i32 %cx, i32 %cy, i32 %cz, i32 %gx, i32 %gy, i32 %gz"
)
_REGISTERS = {"ctaid.x": "%cx", "ctaid.y": "%cy", "ctaid.z": "%cz", "nctaid.x": "%gx", "nctaid.y": "%gy", "nctaid.z": "%gz"}


class Region:
    """Write the function of one stretch.

    Args:
        program: the kernel.
        entry: node at which it starts.
        name: of the function.
        resumes: number (from 1) of the region that starts at each node behind a barrier.
    """

    def __init__(self, program: Program, entry: int, name: str, resumes: dict[int, int]) -> None:
        self.program, self.flow, self.shapes = program, program.flow, program.shapes
        self.entry, self.name, self.resumes = entry, name, resumes
        self.layout = self.shapes.layout
        self.b = Builder(self.layout.lanes, program.declarations, program.native)
        self.prologue: list[str] = []
        self.members = self._reach()
        self.bodies: dict[int, tuple[int, int]] = {}
        self.tests: dict[int, tuple[int, int]] = {}
        self.slots: dict[str, str] = {}
        self.free: dict[str, Val] = {}
        self.local: dict[str, Val] = {}
        self.number = entry
        self.mask = ""
        self._masks: dict[str, str] = {}
        self.near: dict[tuple[ir.Operand, str, int], tuple[str, Val]] = {}

    def _reach(self) -> set[int]:
        seen, work = {self.entry}, [self.entry]
        while work:
            node = self.flow.nodes[work.pop()]
            for target in () if node.stop else node.next:
                if target not in seen:
                    seen.add(target)
                    work.append(target)
        return seen

    # What may wait and what does wait, as bit sets of nodes.

    def _schedule(self) -> None:
        work: list[tuple[bool, int]] = []

        def enter(table: dict[int, tuple[int, int]], test: bool, number: int, may: int, must: int) -> None:
            old = table.get(number)
            new = (may, must) if old is None else (old[0] | may, old[1] & must)
            if new != old:
                table[number] = new
                work.append((test, number))

        def go(may: int, must: int) -> None:
            target = self._next(may, must)
            if target is None:
                return
            test, number = target
            if test:
                enter(self.tests, True, number, may, must)
            else:
                enter(self.bodies, False, number, may & ~(1 << number), must & ~(1 << number))

        enter(self.bodies, False, self.entry, 0, 0)
        while work:
            test, number = work.pop()
            bit = 1 << number
            if test:
                may, must = self.tests[number]
                enter(self.bodies, False, number, may & ~bit, must & ~bit)
                go(may & ~bit, must & ~bit)
            else:
                may, must = self.bodies[number]
                for more, sure in self._moves(number):
                    go(may | more, must | sure)

    def _moves(self, number: int) -> list[tuple[int, int]]:
        node = self.flow.nodes[number]
        last = node.last
        if node.stop or not node.next:
            return [(0, 0)]
        bits = [1 << t for t in node.next]
        if last is not None and last.op in ("exit", "trap"):
            return [(bits[0], bits[0]), (0, 0)]
        if len(bits) == 1:
            return [(bits[0], bits[0])]
        if number in self.shapes.divergent:
            first, second = sorted(bits)
            straight = sum(1 << t for t in node.next if t in self.program.straight)
            if first & straight:
                return [(first | second, straight)]
            return [(first | second, first), (second, second)]
        return [(bit, bit) for bit in bits]

    @staticmethod
    def _next(may: int, must: int) -> tuple[bool, int] | None:
        if not may:
            return None
        lowest = may & -may
        return not must & lowest, lowest.bit_length() - 1

    def _jump(self, may: int, must: int) -> None:
        target = self._next(may, must)
        label = "end" if target is None else f"{'test' if target[0] else 'body'}{target[1]}"
        if self.program.checked and target is not None and target[1] <= self.number:
            self._step()
        self.b.put(f"br label %{label}")

    def _step(self) -> None:
        """Count a step of a loop; leave the region when there were too many."""
        b = self.b
        place = b.offset("%ctx", "48")
        left = b.emit(f"sub i64 {b.load('i64', place)}, 1")
        b.store("i64", left, place)
        over, on = b.fresh("over"), b.fresh("on")
        b.put(f"br i1 {b.emit(f'icmp slt i64 {left}, 0')}, label %{over}, label %{on}")
        b.label(over)
        spmd_report.report(self, "4", "0", "0")
        b.put("br label %end")
        b.label(on)

    # Values.

    def slot(self, variable: str) -> str:
        """Return the address of a variable of this function."""
        if variable not in self.slots:
            kind = f"<{self.layout.lanes} x i1>" if variable.startswith("wait:") else "i1"
            if not variable.startswith(("wait:", "go:")):
                kind = self.program.storage(variable)[0]
            self.slots[variable] = self.b.scratch(kind)
            start = None
            if variable.startswith(("wait:", "go:")):
                start = "zeroinitializer" if kind[0] == "<" else "false"
            elif self.entry and variable in self.program.live[self.entry]:
                start = self._restored(variable, kind)
            if start:
                self.prologue.append(f"  store {kind} {start}, ptr {self.slots[variable]}")
        return self.slots[variable]

    def _restored(self, variable: str, kind: str) -> str:
        with_prologue, self.b.lines = self.b.lines, self.prologue
        pointer = self.b.offset("%state", str(self.program.slots[variable]))
        if kind.endswith("x i1>"):
            bits = self.b.load(f"i{self.layout.lanes}", pointer)
            name = self.b.emit(f"bitcast i{self.layout.lanes} {bits} to {kind}")
        else:
            name = self.b.load(kind, pointer)
        self.b.lines = with_prologue
        return name

    def value(self, operand: ir.Operand, kind: str = "i64") -> Val:
        """Return an operand in the type it lives in (literals: as `kind`)."""
        if isinstance(operand, int):
            return Val("u", literal(kind, operand), kind)
        if self.program.free(operand):
            return self._free(operand)
        if operand in self.local:
            return self.local[operand]
        kept = self.shapes.kept(operand, self.number)
        variable = f"kept:{operand}" if kept else operand
        lives = self.program.storage(variable)[0]
        name = self.b.load(lives, self.slot(variable))
        stride = None if kept else self.shapes.shape[operand].stride
        form = "v" if stride is None else "s" if stride else "u"
        result = Val(form, name, self.program.types[operand], stride or 0)
        if not kept:
            self.local[operand] = result
        return result

    def take(self, operand: ir.Operand, kind: str) -> Val:
        """Return an operand as an LLVM type: its bits, cut or extended by zeros."""
        return self.b.cast(self.value(operand, kind), kind)

    def _free(self, name: str) -> Val:
        if name not in self.free:
            op = next(o for o in self.flow.nodes[self.flow.home[name]].code if name in o.dst)
            for source in op.src:
                if isinstance(source, str):
                    self._free(source)
            lines, self.b.lines = self.b.lines, self.prologue
            results = self._special(op) if op.op in ("special", "param") else self._scalar(op)
            for dst, result in zip(op.dst, results, strict=True):
                stride = self.shapes.shape[dst].stride or 0
                fitted = self._fitted(op, dst, result)
                self.free[dst] = Val("s" if stride else "u", fitted.name, fitted.type, stride)
            self.b.lines = lines
        return self.free[name]

    def _scalar(self, op: Op) -> list[Val]:
        """Compute an operation on the numbers of lane 0: the base of a strided result, or the uniform result."""

        def base(i: int, kind: str) -> Val:
            value = self.value(op.src[i], kind)
            if value.kind == "v":  # equal in the bits that count
                value = value._replace(name=self.b.lane_of(value, "0"))
            return self.b.cast(value._replace(kind="u", stride=0), kind)

        return spmd_ops.lower(self.b, op, base)

    def _special(self, op: Op) -> list[Val]:
        b, layout, name = self.b, self.layout, op.mods[0] if op.mods else ""
        kind = f"i{ir.WIDTH[op.type]}"
        if op.op == "param":
            pointer = b.offset("%args", str(op.src[0]))
            return [Val("u", b.emit(f"load {kind}, ptr {pointer}, align 1, !invariant.load !0"), kind)]
        if name in _REGISTERS:
            value = Val("u", _REGISTERS[name], "i32")
        elif name.startswith("tid."):
            value = self._thread("xyz".index(name[-1]))
        elif name == "warpid" and layout.lanes <= 32:
            value = Val("u", b.emit(f"udiv i32 {b.emit(f'mul i32 %vector, {layout.lanes}')}, 32"), "i32")
        elif name == "laneid" and layout.lanes <= 32:
            value = Val("s", b.emit(f"and i32 {b.emit(f'mul i32 %vector, {layout.lanes}')}, 31"), "i32", 1)
        elif name == "laneid":
            value = Val("v", b.constants("i32", [lane % 32 for lane in range(layout.lanes)]), "i32")
        elif name.startswith("lanemask_"):
            value = self._lanemask(name[9:])
        elif name == "dynamic_smem_size":
            value = integer("i32", self.program.dynamic)
        elif name == "nwarpid":
            value = integer("i32", -(-layout.threads // 32))
        elif name == "clock":
            b.declarations.add("declare i64 @llvm.readcyclecounter()")
            value = Val("u", b.emit("call i64 @llvm.readcyclecounter()"), "i64")
        elif name == "smid":
            value = integer("i32", 0)
        else:
            raise ir.Unsupported("unknown special register", key=op.where, value=name)
        return [b.cast(value, kind)]

    def _lanemask(self, which: str) -> Val:
        b = self.b
        lane = Val("v", b.constants("i32", [lane % 32 for lane in range(self.layout.lanes)]), "i32")
        if self.layout.lanes < 32:
            lane = b.op("add", self._special(Op("special", "b32", mods=("laneid",)))[0], integer("i32", 0))
        bit = b.op("shl", integer("i32", 1), lane)
        below = b.op("sub", bit, integer("i32", 1))
        ones = integer("i32", 0xFFFFFFFF)
        upto = b.op("or", below, bit)
        return {"eq": lambda: bit, "lt": lambda: below, "le": lambda: upto}.get(
            which, lambda: b.op("xor", upto if which == "gt" else below, ones)
        )()

    def _thread(self, axis: int) -> Val:
        b, layout = self.b, self.layout
        first = b.emit(f"mul i32 %vector, {layout.lanes}")
        x, y, _ = layout.block
        if layout.rows:
            if axis == 0:
                name = first if layout.block[1] * layout.block[2] == 1 else b.emit(f"urem i32 {first}, {x}")
                return Val("s", name, "i32", 1)
            row = b.emit(f"udiv i32 {first}, {x}")
            return Val("u", b.emit(f"urem i32 {row}, {y}" if axis == 1 else f"udiv i32 {row}, {y}"), "i32")
        if axis == 0 and layout.lanes % x == 0:
            return Val("v", b.constants("i32", [lane % x for lane in range(layout.lanes)]), "i32")
        place = Val("v", b.vec(Val("s", first, "i32", 1)), "i32")
        if axis == 0:
            return b.op("urem", place, integer("i32", x))
        row_ = b.op("udiv", place, integer("i32", x))
        return b.op("urem" if axis == 1 else "udiv", row_, integer("i32", y))

    def _fitted(self, op: Op, dst: str, value: Val) -> Val:
        """Return a result in the type that its destination lives in."""
        kind = self.program.types[dst]
        if BITS[value.type] < BITS[kind] and value.type != "i1":
            value = self.b.cast(value, f"i{BITS[value.type]}")
            value = self.b.convert("sext" if op.type[0] == "s" else "zext", value, f"i{BITS[kind]}")
        return self.b.cast(value, kind)

    def define(self, op: Op, results: list[Val]) -> None:
        """Give the destinations of an operation their values, blended with the old ones under a guard."""
        b = self.b
        for place, (dst, result) in enumerate(zip(op.dst, results, strict=False)):
            value = self._fitted(op, dst, result)
            shape = self.shapes.shape[dst]
            if op.guard and op.old[place] != NO_OLD:
                value = b.choose(self._guard(op), value, self.flat(op.old[place], value.type))
            if shape.stride is None:
                value = Val("v", b.vec(value), value.type)
            elif value.kind == "v":  # equal in all lanes, as the analysis says: take a running one
                value = Val("u", b.lane_of(value, b.first(self.mask)), value.type)
            else:
                value = value._replace(kind="s" if shape.stride else "u", stride=shape.stride)
            self._set(dst, value)

    def _set(self, name: str, value: Val) -> None:
        self.local[name] = value
        home = self.flow.home[name]
        if self.program.uses.get(name, set()) - {home} or name in self.program.slots:
            self.b.store(self.b.typed(value), value.name, self.slot(name))
        self._keep(name, value)

    def _keep(self, name: str, value: Val) -> None:
        if name in self.program.kept:
            b, slot = self.b, self.slot(f"kept:{name}")
            t = b.vector(value.type)
            now = b.vec(self.flat(name, value.type))
            chosen = b.emit(f"select {b.vector('i1')} {self.mask}, {t} {now}, {t} {b.load(t, slot)}")
            b.store(t, chosen, slot)

    def _guard(self, op: Op) -> Val:
        assert op.guard
        value = self.take(op.guard[0], "i1")
        return value if op.guard[1] else self.b.op("xor", value, integer("i1", 1))

    # Blocks.

    def text(self) -> str:
        """Return the function."""
        self._schedule()
        b = self.b
        for number in sorted(self.members & set(self.bodies)):
            if number in self.tests:
                self._test(number)
            self._body(number)
        b.label("end")
        b.put(f"ret i32 {b.load('i32', '%pc')}")
        start = [*b.head, "  %pc = alloca i32", "  store i32 0, ptr %pc", *self.prologue, f"  br label %body{self.entry}"]
        inline = "alwaysinline" if not self.resumes else "noinline"
        head = f"define internal i32 @{self.name}({ARGUMENTS}) {inline} #0 {{"
        return "\n".join([head, "start:", *start, *b.lines, "}"])

    def _test(self, number: int) -> None:
        b = self.b
        b.label(f"test{number}")
        if self.shapes.leader[number] == number:
            waits = b.any(b.load(b.vector("i1"), self.slot(f"wait:{number}")))
        else:
            waits = b.load("i1", self.slot(f"go:{number}"))
        b.put(f"br i1 {waits}, label %body{number}, label %skip{number}")
        b.label(f"skip{number}")
        may, must = self.tests[number]
        self._jump(may & ~(1 << number), must & ~(1 << number))

    def _start_mask(self) -> str:
        if "start" not in self._masks:
            b, layout = self.b, self.layout
            mask = b.splat("i1", "true")
            if layout.threads % layout.lanes:
                lines, b.lines = b.lines, self.prologue
                first = b.emit(f"mul i32 %vector, {layout.lanes}")
                place = b.vec(Val("s", first, "i32", 1))
                mask = b.emit(f"icmp ult {b.vector('i32')} {place}, {b.splat('i32', str(layout.threads))}")
                b.lines = lines
            self._masks["start"] = mask
        return self._masks["start"]

    def _body(self, number: int) -> None:
        b, t = self.b, self.b.vector("i1")
        b.label(f"body{number}")
        self.number, self.local, self.near = number, {}, {}
        self._entered: dict[int, str] = {}
        leader = self.shapes.leader[number]
        if leader == 0:
            self.mask = self._start_mask()
        elif leader == number and number != self.entry:
            self.mask = b.load(t, self.slot(f"wait:{number}"))
            b.store(t, "zeroinitializer", self.slot(f"wait:{number}"))
            b.store(t, self.mask, self.slot(f"mask:{number}"))
        else:
            self.mask = b.load(t, self.slot(f"mask:{leader}"))
        if leader != number and number in self.tests:
            b.store("i1", "false", self.slot(f"go:{number}"))
        for name in self.flow.nodes[number].phis:
            if name in self.program.kept:
                self._keep(name, self.value(name))
        node = self.flow.nodes[number]
        for op in node.code:
            if op is not node.last:
                self._operation(op)
        self._close(number)

    def mask_before(self, operand: ir.Operand) -> str:
        """Return the mask of those who entered the outermost loop around this block that does not change a value, "" if none."""
        flow = self.flow
        home = flow.inside[flow.home[operand]] if isinstance(operand, str) else frozenset()
        for head in sorted(flow.inside[self.number] - home):
            before = [p for p in flow.preds[head] if p < head]
            bars = any(flow.nodes[n].stop for n in (*before, *flow.loops[head]))
            if len(before) == 1 and before[0] in self.members and not bars and head not in flow.irreducible:
                leader = self.shapes.leader[before[0]]
                if leader not in self._entered:
                    mask = self.b.load(self.b.vector("i1"), self.slot(f"mask:{leader}")) if leader else self._start_mask()
                    self._entered[leader] = mask
                return self._entered[leader]
        return ""

    def _operation(self, op: Op) -> None:
        if op.op in ("special", "param") or op.op in ir.PURE:
            if op.dst and all(self.program.free(d) for d in op.dst):
                return
            if op.op in ("special", "param"):
                results = self._special(op)
            elif not op.guard and all(self.shapes.shape[d].stride is not None for d in op.dst):
                results = self._scalar(op)
            else:
                results = spmd_ops.lower(self.b, op, lambda i, kind: self.flat(op.src[i], kind))
            self.define(op, results)
            return
        if op.op in ("ld", "st", "atom"):
            spmd_memory.lower(self, op)
        elif op.op == "nop":
            return
        else:
            spmd_warp.lower(self, op)

    def flat(self, operand: ir.Operand, kind: str) -> Val:
        """Return an operand whose exact lanes do not depend on an assumption about wrapping."""
        shape = self.shapes.at(operand, self.number) or VARYING
        if shape.origin and isinstance(operand, str):
            return self.b.cast(spmd_address.exact(self, operand, shape), kind)
        return self.take(operand, kind)

    def guarded(self, op: Op) -> str:
        """Return the mask with which a memory or vector operation acts."""
        if not op.guard:
            return self.mask
        return self.b.mask_and(self.mask, self.take(op.guard[0], "i1"), op.guard[1])

    def _arrive(self, target: int, mask: str) -> None:
        b = self.b
        if self.shapes.leader[target] == target:
            slot, t = self.slot(f"wait:{target}"), b.vector("i1")
            b.store(t, b.emit(f"or {t} {b.load(t, slot)}, {mask}"), slot)
        elif target in self.tests:
            b.store("i1", "true", self.slot(f"go:{target}"))

    def _merge(self, target: int, mask: str) -> None:
        """Store what the merges of a target take from this block."""
        b = self.b
        phis = self.flow.nodes[target].phis
        values = []
        for name, sources in phis.items():
            kind = self.program.types[name]
            source = sources[self.number]
            stride = self.shapes.shape[name].stride
            value = self.take(source, kind)
            if stride is None:
                shape = self.shapes.at(source, self.number) or VARYING
                if shape.origin and isinstance(source, str):
                    value = b.cast(spmd_address.exact(self, source, shape), kind)
                value = Val("v", b.vec(value), kind)
            values.append((name, value))
        for name, value in values:
            slot, t = self.slot(name), b.typed(value)
            text = value.name
            if value.kind == "v" and not self.shapes.exclusive[target]:
                text = b.emit(f"select {b.vector('i1')} {mask}, {t} {text}, {t} {b.load(t, slot)}")
            b.store(t, text, slot)

    def _close(self, number: int) -> None:
        node = self.flow.nodes[number]
        may, must = self.bodies[number]
        last = node.last
        if node.stop:
            self._suspend(node.next[0])
            self._jump(may, must)
        elif last is not None and last.guard is not None and number in self.shapes.divergent:
            self._part(number, last, may, must)
        elif last is not None and last.guard is not None:
            self._choose(number, last, may, must)
        else:
            if last is not None and last.op == "trap":
                self._trap(last)
            for target in node.next:
                self._merge(target, self.mask)
                self._arrive(target, self.mask)
            more, sure = self._moves(number)[0]
            self._jump(may | more, must | sure)

    def _choose(self, number: int, last: Op, may: int, must: int) -> None:
        """Close a block with a jump, exit or trap that all its threads take together or not at all."""
        b, node = self.b, self.flow.nodes[number]
        test = self._guard(last).name
        b.put(f"br i1 {test}, label %yes{number}, label %no{number}")
        saved = dict(self.local)
        for side, target in zip(("yes", "no"), node.next if last.op == "bra" else (None, *node.next), strict=False):
            b.label(f"{side}{number}")
            self.local = dict(saved)
            bit = 0
            if target is None:
                if last.op == "trap":
                    self._trap(last)
            else:
                self._merge(target, self.mask)
                self._arrive(target, self.mask)
                bit = 1 << target
            self._jump(may | bit, must | bit)

    def _part(self, number: int, last: Op, may: int, must: int) -> None:
        """Close a block after which its threads part."""
        b, t, node = self.b, self.b.vector("i1"), self.flow.nodes[number]
        taken = self.guarded(last)
        other = b.emit(f"xor {t} {taken}, {self.mask}")
        sides = [(node.next[0], taken), (node.next[1], other)] if last.op == "bra" else [(node.next[0], other)]
        if last.op == "trap":
            b.when(b.any(taken), lambda: self._trap(last))
        sides.sort()
        for target, mask in sides:
            self._merge(target, mask)
            if self.shapes.leader[target] == target:
                self._arrive(target, mask)
        first, mask = sides[0]
        if first in self.program.straight:
            more, sure = self._moves(number)[0]
            self._jump(may | more, must | sure)
            return
        b.put(f"br i1 {b.any(mask)}, label %yes{number}, label %no{number}")
        b.label(f"yes{number}")
        self._flag(first, "true")
        if len(sides) == 2:
            second, rest = sides[1]
            if self.shapes.leader[second] != second and second in self.tests:
                slot = self.slot(f"go:{second}")
                b.store("i1", b.emit(f"or i1 {b.load('i1', slot)}, {b.any(rest)}"), slot)
            self._jump(may | 1 << first | 1 << second, must | 1 << first)
            b.label(f"no{number}")
            self._flag(second, "true")
            self._jump(may | 1 << second, must | 1 << second)
        else:
            self._jump(may | 1 << first, must | 1 << first)
            b.label(f"no{number}")
            self._jump(may, must)

    def _flag(self, target: int, value: str) -> None:
        if self.shapes.leader[target] != target and target in self.tests:
            self.b.store("i1", value, self.slot(f"go:{target}"))

    def _suspend(self, target: int) -> None:
        """Put what the code behind a barrier needs into the state."""
        b, program = self.b, self.program
        self._merge(target, self.mask)
        for variable in sorted(program.live[target], key=program.slots.__getitem__):
            kind = program.storage(variable)[0]
            if variable == f"mask:{target}" and self.shapes.leader[target] == target:
                name = self.mask
            elif variable in self.local and variable not in self.flow.nodes[target].phis:
                name = self.local[variable].name
            else:
                name = b.load(kind, self.slot(variable))
            pointer = b.offset("%state", str(program.slots[variable]))
            if kind.endswith("x i1>"):
                b.store(f"i{self.layout.lanes}", b.bits(name), pointer)
            else:
                b.store(kind, name, pointer)
        number = self.resumes[target]
        before = b.load("i32", "%pc")
        b.put(f"store i32 {number}, ptr %pc")
        clash = b.emit(f"icmp ne i32 {before}, 0")
        b.when(clash, lambda: spmd_report.report(self, "3", "0", "0"))

    def _trap(self, op: Op) -> None:
        spmd_report.report(self, "1", "0", "0")
