"""Names of loop variables by what they count, so that equal expressions are equal objects.

A reduction is called by its extents and by how many reductions are nested in it: the maximum of a row has the same loop
variable at the top and inside a sum, so two equal reductions become one object, and no loop variable hides another.  Emitters
rely on that to compute a row's maximum once, and to put sums over one range into one loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gewu.ops.sizes import Affine, Size
from gewu.ops.tensor import Apply, Assign, Expression, Gather, Index, Load, Program, Reduce


def renamed(program: Program) -> Program:
    """Return the program with canonical names; equal sub-expressions are one object."""
    namer = _Namer()
    return Program(program.name, tuple(namer.assign(assign) for assign in program.assigns))


class _Namer:
    def __init__(self) -> None:
        self.ranges: dict[tuple[int, tuple[Size, ...]], str] = {}
        self.outputs: dict[tuple[Size, ...], int] = {}
        self.memo: dict[Any, Expression] = {}
        self.known: dict[Any, Expression] = {}
        self.heights: dict[int, int] = {}

    def assign(self, assign: Assign) -> Assign:
        """Rename one assignment: the same extents, the same loop variables."""
        sizes = tuple(size for _, size in assign.axes)
        number = self.outputs.setdefault(sizes, len(self.outputs))
        names = {old: f"i{number or ''}_{d}" if number else f"i{d}" for d, (old, _) in enumerate(assign.axes)}
        axes = tuple((names[old], size) for old, size in assign.axes)
        where = tuple(_affine(w, names) for w in assign.where)
        self.memo = {}
        return Assign(assign.buffer, assign.type, axes, _affine(assign.index, names), self.expression(assign.value, names), where)

    def expression(self, node: Expression, names: Mapping[str, str]) -> Expression:
        """Return an expression under a renaming of the loop variables around it."""
        key = (id(node), tuple(sorted(names.items())))
        if key not in self.memo:
            made = self._made(node, names)
            self.memo[key] = self.known.setdefault(_identity(made), made)
        return self.memo[key]

    def _height(self, node: Expression) -> int:
        """Return how many reductions are nested in an expression."""
        if id(node) not in self.heights:
            parts = [getattr(node, "place", None), getattr(node, "body", None), *getattr(node, "args", ())]
            below = max((self._height(part) for part in parts if part is not None), default=0)
            self.heights[id(node)] = below + isinstance(node, Reduce)
        return self.heights[id(node)]

    def _made(self, node: Expression, names: Mapping[str, str]) -> Expression:
        if isinstance(node, Load):
            return Load(node.buffer, node.type, _affine(node.index, names), tuple(_affine(w, names) for w in node.where))
        if isinstance(node, Index):
            return Index(node.type, _affine(node.value, names))
        if isinstance(node, Gather):
            return Gather(node.buffer, node.type, self.expression(node.place, names))
        if isinstance(node, Apply):
            return Apply(node.op, node.type, tuple(self.expression(a, names) for a in node.args), node.mods)
        if isinstance(node, Reduce):
            sizes = tuple(size for _, size in node.axes)
            height = self._height(node.body)
            stem = self.ranges.setdefault((height, sizes), f"{'klmnopqr'[min(height, 7)]}{len(self.ranges)}")
            own = {old: f"{stem}_{d}" if len(sizes) > 1 else stem for d, (old, _) in enumerate(node.axes)}
            inner = {**names, **own}
            axes = tuple((own[old], size) for old, size in node.axes)
            where = tuple(_affine(w, inner) for w in node.where)
            return Reduce(node.kind, node.type, axes, self.expression(node.body, inner), where)
        return node


def _identity(node: Expression) -> Any:
    """Return what makes a node equal to another, its parts by identity: they are unique already."""
    if isinstance(node, Apply):
        return (node.op, node.type, node.mods, tuple(map(id, node.args)))
    if isinstance(node, Gather):
        return (Gather, node.buffer, node.type, id(node.place))
    if isinstance(node, Reduce):
        return (Reduce, node.kind, node.type, node.axes, node.where, id(node.body))
    return node


def _affine(affine: Affine, names: Mapping[str, str]) -> Affine:
    return Affine(tuple((names.get(name, name), size) for name, size in affine.terms), affine.offset)
