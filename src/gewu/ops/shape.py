"""How the values of a kernel vary over the threads of a vector, and which blocks run with the same threads.

A value is *uniform* (one number for all threads), *strided* (base + stride * lane) or *varying*.  Strided 32-bit values are meant
modulo 2^32; when one is widened to 64 bits the sum may wrap in between, so the wide value remembers its narrow origin unless the
range of the numbers proves that it cannot; code that uses it as an address compares once and falls back to exact lanes.

Control: a *class* of blocks shares one set of running threads, the mask that its leader block had when it last ran.  A value of
a loop that threads leave at different times is varying outside it (temporal divergence), inside it keeps its shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gewu.ops import ir
from gewu.ops.spmd_flow import NO_OLD, Flow, Op

LARGEST_SPAN: Final = 1 << 20
"""Bytes that the lanes of a strided value may cover."""


class Shape(NamedTuple):
    """How a value varies.

    stride: step from lane to lane, 0 for uniform, None for varying; origin: (narrow value, "s" or "u" extension, factor) of a
    widened value that may wrap; align: number of low bits of the base that are zero; top: largest unsigned value, if known;
    spread: low bits in which lanes of a varying value may differ.
    """

    stride: int | None
    origin: tuple[str, str, int] | None = None
    align: int = 0
    top: int | None = None
    spread: int = 64


VARYING: Final = Shape(None)
UNIFORM: Final = Shape(0)


@dataclass(frozen=True, slots=True)
class Layout:
    """How threads are put into vectors: lanes, block shape, whether all dimensions and blocks count below 2^31."""

    lanes: int
    block: tuple[int, int, int]
    bounded: bool = True

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def warps(self) -> int:
        """Vectors of a block."""
        return -(-self.threads // self.lanes)

    @property
    def rows(self) -> bool:
        """Whether the threads of a vector have the same y and z."""
        return self.block[1] * self.block[2] == 1 or self.block[0] % self.lanes == 0

    def special(self, name: str) -> Shape:
        """Return the shape of a special register."""
        x = self.block[0]
        if name == "tid.x" and self.rows:
            return Shape(1, None, _zeros(self.lanes) if x > self.lanes else 64, x - 1)
        if name in ("tid.x", "tid.y", "tid.z"):
            axis = "xyz".index(name[-1])
            stride = 0 if self.rows else None
            return Shape(stride, None, 0, self.block[axis] - 1)
        if name == "laneid" and self.lanes <= 32:
            return Shape(1, None, _zeros(self.lanes) if self.lanes < 32 else 64, 31)
        if name.startswith(("ctaid", "nctaid")):
            top = ((1 << 31) // x if name.endswith("x") else 65536) if self.bounded else None
            return Shape(0, None, 0, None if top is None else top - (name[0] == "c"))
        if name == "laneid" or name.startswith("lanemask") or (name == "warpid" and self.lanes > 32):
            return VARYING
        return UNIFORM


@dataclass(slots=True)
class Shapes:
    """Result of the analysis of one flow.

    Attributes:
        shape: of each value, where it is defined.
        leader: for each node the node whose mask it runs with (itself: its own).
        divergent: nodes after whose closing jump threads may part.
        exclusive: whether the threads that enter a node come over one edge at a time, all together.
        ragged: heads of loops that threads leave at different times.
        invariant: values that depend on the thread and the arguments alone, whenever they are computed.
    """

    flow: Flow
    layout: Layout
    shape: dict[str, Shape] = field(default_factory=dict)
    leader: list[int] = field(default_factory=list)
    divergent: set[int] = field(default_factory=set)
    exclusive: list[bool] = field(default_factory=list)
    ragged: set[int] = field(default_factory=set)
    invariant: set[str] = field(default_factory=set)

    def of(self, operand: ir.Operand) -> Shape | None:
        """Return the shape of an operand where it is defined; None when not known yet."""
        if isinstance(operand, int):
            return Shape(0, None, _zeros(operand), operand)
        return self.shape.get(operand)

    def kept(self, operand: ir.Operand, node: int) -> bool:
        """Tell whether a node must read a value from the lanes as they were when each thread left a loop."""
        if isinstance(operand, int) or operand in self.invariant:
            return False
        left = self.flow.inside[self.flow.home[operand]] - self.flow.inside[node]
        return any(head in self.ragged for head in left)

    def at(self, operand: ir.Operand, node: int) -> Shape | None:
        """Return the shape of an operand as a node sees it."""
        shape = self.of(operand)
        return VARYING if shape is not None and self.kept(operand, node) else shape

    def edge(self, pred: int, node: int) -> int:
        """Return the leader of the threads on an edge, -1 when it is only part of them."""
        return -1 if pred in self.divergent else self.leader[pred]


def analyse(flow: Flow, layout: Layout) -> Shapes:
    """Find shapes, classes and divergence of a flow by iteration to the first fixed point from below."""
    shapes = Shapes(flow, layout, invariant=_invariant(flow))
    while True:
        shapes.leader = _classes(flow, shapes.divergent)
        shapes.ragged = {head for head, body in flow.loops.items() if _is_ragged(shapes, head, body)}
        shapes.exclusive = [_is_exclusive(shapes, n) for n in range(len(flow.nodes))]
        shapes.shape = {}
        _solve(shapes)
        parted = {
            number
            for number, node in enumerate(flow.nodes)
            if node.last and node.last.guard and (shapes.at(node.last.guard[0], number) or VARYING).stride != 0
        }
        if parted <= shapes.divergent:
            return shapes
        shapes.divergent |= parted


def _invariant(flow: Flow) -> set[str]:
    found: set[str] = set()
    for node in flow.nodes:  # definitions come before uses in this order, but for values that loops carry
        for op in node.code:
            fixed = op.op == "param" or (op.op == "special" and op.mods[0] != "clock") or op.op in ir.PURE
            if fixed and not op.guard and all(isinstance(s, int) or s in found for s in op.src):
                found.update(op.dst)
    return found


def _classes(flow: Flow, divergent: set[int]) -> list[int]:
    count = len(flow.nodes)
    leader = [-2] * count  # not known
    leader[0] = 0
    for _ in range(count + 2):
        changed = False
        for number in range(1, count):
            new = _class_of(flow, divergent, leader, number)
            if new != leader[number]:
                leader[number] = new
                changed = True
        if not changed:
            return leader
    return list(range(count))


def _class_of(flow: Flow, divergent: set[int], leader: list[int], number: int) -> int:
    if number in flow.irreducible:
        return number
    above = number
    while above:
        above = flow.idom[above]
        if leader[above] >= 0 and flow.inside[above] == flow.inside[number] and flow.postdominates(number, above):
            return leader[above]
    edges = {-1 if p in divergent else leader[p] for p in flow.preds[number]} - {-2}
    if len(edges) == 1:
        only = edges.pop()
        if only >= 0 and flow.inside[only] <= flow.inside[number]:
            return only
    return number


def _is_ragged(shapes: Shapes, head: int, body: frozenset[int]) -> bool:
    if body & shapes.flow.irreducible:
        return True
    whole = shapes.leader[head]
    for number in body:
        for target in shapes.flow.nodes[number].next:
            if (target == head or target not in body) and shapes.edge(number, target) != whole:
                return True
    return False


def _is_exclusive(shapes: Shapes, number: int) -> bool:
    flow = shapes.flow
    if number in flow.irreducible:
        return False
    forward = [p for p in flow.preds[number] if p < number]
    if any(head in shapes.ragged for p in forward for head in flow.inside[p] - flow.inside[number]):
        return False
    return len(forward) < 2 or (
        len({shapes.edge(p, number) for p in forward} | {-1}) == 2 and all(shapes.edge(p, number) >= 0 for p in forward)
    )


def _solve(shapes: Shapes) -> None:
    """Find the shapes for given classes: first ranges and alignments alone, then origins, which depend on them."""
    _iterate(shapes, None)
    ranges = shapes.shape
    shapes.shape = {}
    _iterate(shapes, ranges)
    for name in shapes.flow.home:
        shapes.shape.setdefault(name, VARYING)


def _iterate(shapes: Shapes, ranges: dict[str, Shape] | None) -> None:
    flow = shapes.flow
    for _ in range(60):
        changed = False
        for number, node in enumerate(flow.nodes):
            for name, sources in node.phis.items():
                changed |= _join(shapes, name, _merge(shapes, number, sources), ranges)
            for op in node.code:
                for name, shape in zip(op.dst, _results(shapes, op, number), strict=True) if op.dst else ():
                    changed |= _join(shapes, name, shape, ranges)
        if not changed:
            return
    shapes.shape = {name: VARYING for name in flow.home}


def _join(shapes: Shapes, name: str, new: Shape | None, ranges: dict[str, Shape] | None) -> bool:
    """Move a value down the lattice; tell whether it moved."""
    old = shapes.shape.get(name)
    if new is not None and ranges is not None:
        known = ranges.get(name, VARYING)
        new = new._replace(align=known.align, top=known.top)
    if new is None or old == new:
        return False
    if old is not None:
        stride = old.stride if (old.stride, old.origin) == (new.stride, new.origin) else None
        if ranges is None and old.stride == new.stride:
            stride = new.stride
        origin = new.origin if stride else None
        new = Shape(stride, origin, min(old.align, new.align), old.top if old.top == new.top else None)
        if new == old:
            return False
    shapes.shape[name] = new
    return True


def _merge(shapes: Shapes, number: int, sources: dict[int, ir.Operand]) -> Shape | None:
    known = [s for s in (shapes.at(v, p) for p, v in sources.items()) if s is not None]
    if not known:
        return None
    kinds = {(s.stride, s.origin) for s in known}
    if not shapes.exclusive[number] or len(kinds) > 1 or known[0].stride is None:
        return VARYING
    tops = {s.top for s in known}
    return Shape(known[0].stride, known[0].origin, min(s.align for s in known), tops.pop() if len(tops) == 1 else None)


def _results(shapes: Shapes, op: Op, number: int) -> list[Shape | None]:
    sources = [shapes.at(s, number) for s in op.src]
    if any(s is None for s in sources):
        return [None] * len(op.dst)
    guard = shapes.at(op.guard[0], number) if op.guard else UNIFORM
    olds = [shapes.at(o, number) for o in op.old if o != NO_OLD]
    if guard is None or any(o is None for o in olds):
        return [None] * len(op.dst)
    made = _transfer(shapes.layout, op, [s for s in sources if s is not None])
    made += [made[-1]] * (len(op.dst) - len(made))
    if not op.guard:
        return list(made)
    result: list[Shape | None] = []
    for shape, old in zip(made, op.old, strict=True):
        before = UNIFORM if old == NO_OLD else shapes.at(old, number)
        plain = guard.stride == 0 and before is not None and before.stride == 0 and shape.stride == 0
        result.append(UNIFORM if plain else VARYING)
    return result


def _transfer(layout: Layout, op: Op, src: list[Shape]) -> list[Shape]:
    """Return the shapes of what an operation gives, the last one for all that follow."""
    name, kind = op.op, op.type
    if name == "special":
        return [layout.special(op.mods[0])]
    if name == "param":
        return [UNIFORM]
    if name == "ld":
        same = src[0].stride == 0 and op.mods[0] not in ("local", "generic") and src[1].stride == 0
        return [Shape(0 if same else None, None, 0, (1 << ir.WIDTH[kind]) - 1 if kind in ("u8", "u16") else None)]
    if name in ("vote", "redux", "activemask"):
        return [UNIFORM if layout.lanes <= 32 else VARYING]
    if name == "shfl" and op.mods[0] == "idx" and layout.lanes <= 32 and src[1].stride == 0 and op.src[2] == 31:
        return [UNIFORM]
    if name not in ir.PURE:
        return [VARYING]
    if kind in ir.FLOATS and name not in ("mov", "select"):
        return [UNIFORM if all(s.stride == 0 for s in src) else VARYING]
    rule = _RULES.get(name)
    shape = rule(layout, op, src) if rule else Shape(0 if all(s.stride == 0 for s in src) else None)
    return [_limited(layout, op, shape)]


def _limited(layout: Layout, op: Op, shape: Shape) -> Shape:
    if shape.stride is None:
        return Shape(None, None, 0, shape.top, shape.spread)
    if abs(shape.stride) * layout.lanes > LARGEST_SPAN:
        return VARYING
    bits = ir.WIDTH[op.type] * (2 if op.op == "mulwide" else 1)
    top = shape.top if shape.top is not None and shape.top < 1 << bits else None
    return shape._replace(top=top, origin=shape.origin if shape.stride else None)


def _linear(op: str, a: Shape, b: Shape) -> Shape:
    if a.stride is None or b.stride is None:
        return VARYING
    sign = -1 if op == "sub" else 1
    origin = a.origin
    if b.origin:
        if a.origin and a.origin[:2] != b.origin[:2]:
            return VARYING
        origin = (*b.origin[:2], (a.origin[2] if a.origin else 0) + sign * b.origin[2])
    return Shape(a.stride + sign * b.stride, origin, min(a.align, b.align))


def _add(layout: Layout, op: Op, src: list[Shape]) -> Shape:
    top = src[0].top + src[1].top if op.op == "add" and src[0].top is not None and src[1].top is not None else None
    return _linear(op.op, *src)._replace(top=top)


def _scaled(shape: Shape, factor: int, bits: int) -> Shape:
    if shape.stride is None:
        return VARYING
    signed = factor - (1 << bits) if factor >> bits - 1 else factor
    origin = (*shape.origin[:2], shape.origin[2] * signed) if shape.origin else None
    top = shape.top * factor if shape.top is not None else None
    return Shape(shape.stride * signed, origin, min(64, shape.align + _zeros(factor)), top)


def _mul(layout: Layout, op: Op, src: list[Shape]) -> Shape:
    bits = ir.WIDTH[op.type]
    for one, other in ((0, 1), (1, 0)):
        factor = op.src[other]
        if isinstance(factor, int):
            wide = src[one] if op.op == "mul" else _widened(op, op.src[one], src[one], op.type[0])
            return _scaled(wide, factor, bits if op.op == "mul" or op.type[0] == "s" else 2 * bits)
    if src[0].stride == 0 and src[1].stride == 0:
        top = src[0].top * src[1].top if src[0].top is not None and src[1].top is not None else None
        return Shape(0, None, min(64, src[0].align + src[1].align), top)
    return VARYING


def _widened(op: Op, operand: ir.Operand, shape: Shape, sign: str) -> Shape:
    """Return the shape of a narrow value after extension."""
    if not shape.stride:
        return shape if sign == "u" or (shape.top is not None and shape.top < 1 << 31) else shape._replace(top=None)
    if (shape.top is not None and shape.top < 1 << 31) or isinstance(operand, int):
        return shape
    if not isinstance(operand, str) or (op.op == "cvt" and op.mods[0] not in ("u32", "s32")) or op.type in ("u16", "s16"):
        return VARYING
    return Shape(shape.stride, (operand, sign, 1), shape.align)


def _cvt(layout: Layout, op: Op, src: list[Shape]) -> Shape:
    source, target = op.mods[0], op.type
    if source in ir.FLOATS or target in ir.FLOATS or "sat" in op.mods:
        return Shape(0 if all(s.stride == 0 for s in src) else None)
    if ir.WIDTH[target] > ir.WIDTH[source]:
        return _widened(op, op.src[0], src[0], "s" if source[0] == "s" else "u")
    shape = src[0]._replace(origin=None)
    if ir.WIDTH[target] < 32 and shape.stride:  # narrow values live extended in wider registers
        return VARYING
    return shape


def _shl(layout: Layout, op: Op, src: list[Shape]) -> Shape:
    if isinstance(op.src[1], int) and op.src[1] < ir.WIDTH[op.type]:
        shape = _scaled(src[0], 1 << op.src[1], 2 * ir.WIDTH[op.type])
        return shape
    return Shape(0 if src[0].stride == 0 and src[1].stride == 0 else None)


def _shr(layout: Layout, op: Op, src: list[Shape]) -> Shape:
    shape, amount = src[0], op.src[1]
    if src[0].stride == 0 and src[1].stride == 0:
        top = shape.top >> amount if isinstance(amount, int) and shape.top is not None and shape.top < 1 << 31 else None
        return Shape(0, None, 0, top)
    if shape.stride is None or shape.stride < 0 or not isinstance(amount, int) or shape.origin:
        return VARYING
    span = shape.stride * (layout.lanes - 1)
    if span >= 1 << shape.align:
        return VARYING
    top = shape.top >> amount if shape.top is not None else None
    if span < 1 << amount and shape.align >= amount:
        return Shape(0, None, max(0, shape.align - amount), top)
    if shape.stride % (1 << amount) == 0 and shape.align >= amount:
        return Shape(shape.stride >> amount, None, shape.align - amount, top)
    return Shape(None, None, 0, top, max(0, min(64, shape.align) - amount))


def _and(layout: Layout, op: Op, src: list[Shape]) -> Shape:
    tops = [s.top for s in src if s.top is not None]
    top = min(tops, default=None)
    if src[0].stride == 0 and src[1].stride == 0:
        return Shape(0, None, max(s.align for s in src), top)
    for one, other in ((0, 1), (1, 0)):
        mask, shape = op.src[other], src[one]
        if isinstance(mask, int) and shape.stride is not None and shape.stride >= 0 and not shape.origin:
            span = shape.stride * (layout.lanes - 1)
            low = span.bit_length()
            if low <= shape.align and mask & ((1 << low) - 1) == (1 << low) - 1:
                return Shape(shape.stride, None, _zeros(mask >> low << low) if shape.align < 64 else 64, top)
            if low <= shape.align and mask & ((1 << low) - 1) == 0:
                return Shape(0, None, max(_zeros(mask), 0), top)
        if isinstance(mask, int) and shape.stride is None and _zeros(mask) >= shape.spread:
            return Shape(0, None, _zeros(mask), top)
    return Shape(None, None, 0, top)


def _or(layout: Layout, op: Op, src: list[Shape]) -> Shape:
    top = None if None in (src[0].top, src[1].top) else (1 << max(int(s.top or 0).bit_length() for s in src)) - 1
    if src[0].stride == 0 and src[1].stride == 0:
        return Shape(0, None, min(s.align for s in src), top)
    for a, b in ((0, 1), (1, 0)):
        low, high = src[a], src[b]
        fits = low.top is not None and low.top < 1 << min(high.align, _zeros(high.stride or 0), 62)
        if op.op == "or" and fits and low.stride is not None and high.stride is not None:
            return _linear("add", low, high)._replace(top=top)
    return Shape(None, None, 0, top)


def _plain(layout: Layout, op: Op, src: list[Shape]) -> Shape:
    values = src[:2] if op.op == "select" else src[:1]
    if op.op == "select" and (src[2].stride != 0 or len({(s.stride, s.origin) for s in values}) > 1):
        return VARYING
    tops = [s.top for s in values]
    return values[0]._replace(align=min(s.align for s in values), top=None if None in tops else max(t or 0 for t in tops))


def _smaller(layout: Layout, op: Op, src: list[Shape]) -> Shape:
    stride = 0 if all(s.stride == 0 for s in src) else None
    tops = [s.top for s in src if s.top is not None and s.top < 1 << 31]
    if op.op == "rem" and isinstance(op.src[1], int) and op.type[0] == "u" and op.src[1]:
        return Shape(stride, None, 0, op.src[1] - 1)
    if op.op == "min" and tops and (op.type[0] == "u" or len(tops) == 2):
        return Shape(stride, None, 0, min(tops))
    if op.op in ("div", "rem") and len(tops) == 2:
        return Shape(stride, None, 0, tops[0])
    if op.op == "bfe" and op.type[0] == "u" and isinstance(op.src[2], int) and op.src[2] < 32:
        return Shape(stride, None, 0, (1 << op.src[2]) - 1)
    return Shape(stride)


def _unpack(layout: Layout, op: Op, src: list[Shape]) -> Shape:
    return Shape(0 if src[0].stride == 0 else None)


_RULES: Final = {
    **dict.fromkeys(("add", "sub"), _add),
    **dict.fromkeys(("mul", "mulwide"), _mul),
    **dict.fromkeys(("or", "xor"), _or),
    **dict.fromkeys(("mov", "select"), _plain),
    **dict.fromkeys(("min", "div", "rem", "bfe"), _smaller),
    **{"cvt": _cvt, "shl": _shl, "shr": _shr, "and": _and, "unpack": _unpack},
}


def _zeros(number: int) -> int:
    """Return the number of low zero bits; 64 for zero."""
    return 64 if number == 0 else (number & -number).bit_length() - 1
