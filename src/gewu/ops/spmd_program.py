"""What the regions of one kernel share: types of values, where they are read, and what must outlive a barrier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from gewu.ops import ir
from gewu.ops.shape import VARYING, Shapes
from gewu.ops.spmd_address import is_linear, linear
from gewu.ops.spmd_emit import BITS
from gewu.ops.spmd_flow import Flow, Op

_FEW: Final = 10
"""Operations that take less time than a branch that was not foreseen."""
_DEAR: Final = frozenset({"div", "rem", "ex2", "lg2", "sin", "cos", "tanh", "sqrt", "rsqrt", "rcp", "prmt", "bfi", "mulhi"})


@dataclass(slots=True)
class Program:
    """What all regions of one kernel share.

    Attributes:
        types: LLVM type in which each value lives.
        uses: nodes that read each value (the predecessor, for merges).
        kept: values that some node reads as they were when each thread left a loop.
        slots: byte offset in the state, by variable.
        live: variables that a node needs from before.
        checked: bounds of global accesses are compared with the array table.
        dynamic: bytes of dynamic shared memory.
        native: the text is for a processor with AVX-512.
        fresh: values that every region computes anew.
        locked: atomic operations on global memory take a lock.
        literals: the numbers that stand in the code.
        linear: the operations that make addresses of sums and multiples.
        straight: nodes that run even where no thread needs them, for want of an effect.
    """

    kernel: ir.Kernel
    flow: Flow
    shapes: Shapes
    types: dict[str, str] = field(default_factory=dict)
    uses: dict[str, set[int]] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    slots: dict[str, int] = field(default_factory=dict)
    live: list[set[str]] = field(default_factory=list)
    state: int = 0
    checked: bool = False
    dynamic: int = 0
    fresh: set[str] = field(default_factory=set)
    native: bool = False
    locked: bool = False
    literals: frozenset[int] = frozenset()
    linear: dict[str, Op] = field(default_factory=dict)
    straight: set[int] = field(default_factory=set)
    declarations: set[str] = field(default_factory=set)
    helpers: dict[str, str] = field(default_factory=dict)

    def free(self, name: str) -> bool:
        """Tell whether a value is computed anew in every region instead of stored."""
        return name in self.fresh

    def storage(self, variable: str) -> tuple[str, int]:
        """Return LLVM type and bytes of a variable in the state."""
        lanes = self.shapes.layout.lanes
        if variable.startswith("mask:"):
            return f"<{lanes} x i1>", max(lanes // 8, 1)
        name = variable.removeprefix("kept:")
        kind = self.types[name]
        if variable == name and self.shapes.shape[name].stride is not None:
            return kind, max(BITS[kind] // 8, 1)
        return f"<{lanes} x {kind}>", max(lanes * BITS[kind] // 8, 1)


def prepare(kernel: ir.Kernel, flow: Flow, shapes: Shapes, checked: bool, dynamic: int, native: bool = False) -> Program:
    """Find types, uses and what must be kept across barriers."""
    program = Program(kernel, flow, shapes, checked=checked, dynamic=dynamic, native=native)
    operands = [o for node in flow.nodes for op in node.code for o in op.operands()]
    operands += [o for node in flow.nodes for sources in node.phis.values() for o in sources.values()]
    program.literals = frozenset(o for o in operands if isinstance(o, int))
    program.locked = any(
        op.op == "atom"
        and op.mods[0] == "global"
        and op.mods[1] in ("add", "min", "max", "and", "or", "xor")
        and (shapes.at(op.src[0], number) or VARYING).stride == ir.WIDTH[op.type] // 8
        for number, node in enumerate(flow.nodes)
        for op in node.code
    )
    for node in flow.nodes:
        for op in node.code:
            plain = all(d in shapes.invariant and shapes.shape[d].stride is not None for d in op.dst)
            if plain and all(isinstance(s, int) or s in program.fresh for s in op.src):
                program.fresh.update(op.dst)
    program.linear = {op.dst[0]: op for node in flow.nodes for op in node.code if is_linear(op)}
    for number in shapes.divergent:
        program.straight |= _straight(flow, shapes, number)
    _find_types(program)
    for number, node in enumerate(flow.nodes):
        for op in node.code:
            for name in _read(shapes, _operands(program, op, number)):
                _note_use(program, name, number)
        for sources in node.phis.values():
            for pred, value in sources.items():
                for name in _read(shapes, [value]):
                    _note_use(program, name, pred)
    _find_live(program)
    offset = 0
    wanted = {v for n, node in enumerate(flow.nodes) if node.stop for v in program.live[node.next[0]]}
    for variable in sorted(wanted, key=lambda v: (-program.storage(v)[1], v)):
        program.slots[variable] = offset
        size = program.storage(variable)[1]
        offset += size if size < 64 else -(-size // 64) * 64
    program.state = -(-offset // 64) * 64
    return program


def _straight(flow: Flow, shapes: Shapes, number: int) -> set[int]:
    """Return the blocks between a parting and where its threads meet again, when to run them all costs less than to ask who must.

    They hold a few plain operations and no way out: without threads they change nothing.
    """
    meet, last = flow.ipdom[number], flow.nodes[number].last
    if last is None or last.op != "bra" or meet <= number or flow.inside[meet] != flow.inside[number]:
        return set()
    between: set[int] = set()
    work, size = [t for t in flow.nodes[number].next if t != meet], 0
    while work:
        inner = work.pop()
        if inner in between:
            continue
        node = flow.nodes[inner]
        code = [op for op in node.code if op is not node.last]
        size += len(code)
        plain = all(op.op in ir.PURE and op.op not in _DEAR and op.type not in ("f64", "f16x2", "bf16x2") for op in code)
        unsure = node.last is not None and (node.last.op != "bra" or (node.last.guard and inner not in shapes.divergent))
        inside = number < inner < meet and flow.inside[inner] == flow.inside[number] and flow.idom[inner] in {number, *between}
        if node.stop or unsure or not plain or not inside or size > _FEW or inner in flow.irreducible:
            return set()
        between.add(inner)
        work += [t for t in node.next if t != meet]
    return between


def _operands(program: Program, op: Op, number: int) -> list[ir.Operand]:
    """Return what an operation reads, the parts of an address that varies included."""
    if op.op not in ("ld", "st"):
        return op.operands()
    whole = linear(program, op.src[0], number)
    return [*op.operands(), whole.root, *(o for o, _ in whole.rest)]


def _read(shapes: Shapes, operands: list[ir.Operand]) -> list[str]:
    """Return the values that are read, the narrow origins of wide ones included."""
    names = [o for o in operands if isinstance(o, str)]
    origins = [shape.origin[0] for n in names if (shape := shapes.shape[n]).origin]
    return names + origins


def _note_use(program: Program, name: str, number: int) -> None:
    program.uses.setdefault(name, set()).add(number)
    if program.shapes.kept(name, number):
        program.kept.add(name)


def _find_types(program: Program) -> None:
    types, flow = program.types, program.flow
    for node in flow.nodes:
        for op in node.code:
            for name in op.dst:
                width = flow.widths[name]
                kind = f"i{ir.WIDTH[width]}"
                real = op.type in ("f32", "f64") and ir.WIDTH[op.type] == ir.WIDTH[width]
                if real and op.op not in ("setp", "mov", "shfl", "param", "special"):
                    kind = "float" if op.type == "f32" else "double"
                types[name] = kind
    merges = [(name, s) for node in flow.nodes for name, s in node.phis.items()]
    for name, _ in merges:
        types[name] = f"i{ir.WIDTH[flow.widths[name]]}"
    for _ in range(3):
        for name, sources in merges:
            real = {types[v] for v in sources.values() if isinstance(v, str)} & {"float", "double"}
            if real and BITS[kind := real.pop()] == BITS[types[name]]:
                types[name] = kind


def _find_live(program: Program) -> None:
    flow, shapes = program.flow, program.shapes
    resumed = {node.next[0] for node in flow.nodes if node.stop}
    gen: list[set[str]] = []
    kill: list[set[str]] = []
    for number, node in enumerate(flow.nodes):
        reads: set[str] = set()
        made: set[str] = set()

        def read(operands: list[ir.Operand], reads: set[str] = reads, made: set[str] = made, number: int = number) -> None:
            for name in _read(shapes, operands):
                variable = f"kept:{name}" if shapes.kept(name, number) else name
                if not program.free(name) and variable not in made:
                    reads.add(variable)

        reads.update(name for name in node.phis)
        if shapes.leader[number] not in (0, number) or (number in resumed and shapes.leader[number]):
            reads.add(f"mask:{shapes.leader[number]}")
        made.add(f"mask:{number}")
        for name in node.phis:
            if name in program.kept:
                reads.add(f"kept:{name}")
        for op in node.code:
            read(_operands(program, op, number))
            made.update(op.dst)
            reads.update(f"kept:{d}" for d in op.dst if d in program.kept)
        for target in node.next:
            for sources in flow.nodes[target].phis.values():
                read([sources[number]])
        gen.append(reads)
        kill.append(made)
    program.live = [set(g) for g in gen]
    changed = True
    while changed:
        changed = False
        for number in reversed(range(len(flow.nodes))):
            out = set().union(*(program.live[t] - set(flow.nodes[t].phis) for t in flow.nodes[number].next))
            new = gen[number] | (out - kill[number])
            if new != program.live[number]:
                program.live[number] = new
                changed = True
