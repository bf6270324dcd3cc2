"""Order a program for loop nests: which axis is innermost, which reductions become arrays of their own, which assignments
share a nest.

A reduction that does not depend on all axes outside of it would be computed again for each of their points; it becomes an
array that a nest before fills. One that depends on no axis is cut into blocks of BLOCK elements, summed by all threads and
then in order: the result does not depend on the number of threads, and long float32 sums keep their accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from gewu.ops.contract import FEW, Matrix, Product, Roles, count, least, lies, lies_as_matrix, roles, worthwhile
from gewu.ops.ir import FLOATS
from gewu.ops.jam import jammed
from gewu.ops.nest_parts import step_cost
from gewu.ops.places import straight
from gewu.ops.rewrite import MINUS, Axes, Graph, collapse, tidy, walk
from gewu.ops.sizes import ONE, ZERO, Affine, Ceil, Size
from gewu.ops.sums import merged, written_out
from gewu.ops.tensor import Apply, Assign, Expression, Gather, Load, Program, Reduce
from gewu.ops.transpose import crossing
from gewu.ops.window import WINDOWS, Side, Tile, Tiled, matrices, plan, row_major

BLOCK: Final = 8192
PARTS: Final = 64
SHORT: Final = 64
"""Terms up to which a sum is written out, so that a condition on each would be a branch."""
DEEP: Final = 16
"""Terms from which a small constant sum may be a matrix product."""
BEYOND: Final = Size.of(256)
"""Elements after an array that tiles may read, and drop."""
LEAST: Final = 3
"""Rows of a product, where they are known, from which tiles of registers pay."""


@dataclass(frozen=True, slots=True)
class Temporary:
    """An array between two nests: its number as a buffer, element type and number of elements."""

    buffer: int
    type: str
    length: Size


@dataclass(slots=True)
class Staged:
    """Groups of assignments over equal axes, to be run in this order, and the arrays between them.

    `copies`: buffers that are written while other elements of them are still to be read: reads go to a copy.
    """

    groups: list[list[Assign] | Product | Tiled] = field(default_factory=list)
    temporaries: list[Temporary] = field(default_factory=list)
    copies: tuple[int, ...] = ()


class _Stager:
    def __init__(self, graph: Graph, first: int, split: bool, blas: bool, tiles: bool) -> None:
        self.graph, self.next, self.split, self.blas, self.tiles = graph, first, split, blas, tiles
        self.staged = Staged()
        self.known: dict[object, Expression] = {}
        self.done: set[int] = set()

    def group(self, assigns: list[Assign]) -> None:
        """Add a group after the arrays that it needs."""
        assigns = collapse(self.graph, assigns)
        tiled = Tiled([], [], WINDOWS, ("", ONE), ())
        if self.blas:
            assigns = self._products(assigns, tiled)
            if not assigns:
                return
            assigns = assigns if tiled.tiles else collapse(self.graph, assigns)
        assigns = _reordered(assigns, tiled.chain) if tiled.tiles else written_out(self.graph, _ordered(assigns))
        axes = assigns[0].axes
        while True:
            found = self.graph.reductions([a.value for a in assigns])
            together = self._together(found, axes)
            r = next((r for r in found if id(r) not in self.done and self._apart(r, axes, together)), None)
            if r is None:
                break
            load = self._array(r, axes, assigns[0].where)

            def swap(e: Expression, r: Reduce = r, load: Expression = load) -> Expression | None:
                return load if e is r else None

            if load is not r:
                assigns = [replace(a, value=self.graph.replace(a.value, swap)) for a in assigns]
        if tiled.tiles:
            tiled.assigns = assigns
            self.staged.groups.append(tiled)
            return
        assigns = self._straightened([replace(a, value=self.graph.replace(a.value, self._padded)) for a in assigns])
        self.staged.groups += jammed(self.graph, assigns[0]) if len(assigns) == 1 else [assigns]

    def _padded(self, e: Expression) -> Expression | None:
        """Return a short sum of products with its conditions at a factor, 0 where they fail: no branch at each point."""
        if not isinstance(e, Reduce) or not e.where or e.kind != "add" or e.type not in FLOATS:
            return None
        points = math.prod(size.constant or SHORT + 1 for _, size in e.axes)
        factors = [e.body] if isinstance(e.body, Load) else list(e.body.args) if isinstance(e.body, Apply) else []
        if points > SHORT or not factors or (isinstance(e.body, Apply) and e.body.op != "mul"):
            return None
        known = {axis for w in e.where for axis in w.axes}
        place = next((i for i, f in enumerate(factors) if isinstance(f, Load) and known <= f.index.axes), None)
        if place is None:
            return None
        load = factors[place]
        assert isinstance(load, Load)
        factors[place] = self.graph.make(replace(load, where=tuple(dict.fromkeys((*load.where, *e.where)))))
        body = factors[0] if e.body is load else self.graph.make(Apply("mul", e.type, tuple(factors)))
        return self.graph.make(replace(e, body=body, where=()))

    def _straightened(self, assigns: list[Assign]) -> list[Assign]:
        """Copy what a nest would read across the grain of memory into arrays that lie like its output."""
        axes = assigns[0].axes
        if len(axes) < 2 or assigns[0].where or (len(assigns) == 1 and isinstance(assigns[0].value, Load)):
            return assigns
        names = {axis for axis, _ in axes}
        inside = {id(part) for r in self.graph.reductions([a.value for a in assigns]) for part in walk([r.body])}
        for e in list(walk([a.value for a in assigns])):
            if not isinstance(e, Load) or e.where or id(e) in inside or not self.graph.free[id(e)] <= names:
                continue
            used = tuple(item for item in axes if item[0] in self.graph.free[id(e)])
            if used and used[-1] == axes[-1] and crossing(Assign(-1, e.type, used, row_major(used)[0], e)):
                load = self._store(e, e.type, used)

                def swap(other: Expression, e: Expression = e, load: Expression = load) -> Expression | None:
                    return load if other is e else None

                assigns = [replace(a, value=self.graph.replace(a.value, swap)) for a in assigns]
        return assigns

    def _products(self, assigns: list[Assign], tiled: Tiled) -> list[Assign]:
        """Add the matrix products of a group, and to `tiled` its sums over windows; return what is left of the group."""
        while True:
            extents = dict(assigns[0].axes)
            found = self.graph.reductions([a.value for a in assigns])
            for r in found:
                extents.update(r.axes)
            chosen = None
            for r in found:
                sides = roles(self.graph, r, extents) if id(r) not in self.done else None
                if sides is None or self._tiled(r, sides, assigns, tiled):
                    continue
                if (_points(r) is None or _deep(r, sides)) and worthwhile(r, sides):
                    chosen = sides
                    break
            if chosen is None:
                return assigns
            only = assigns[0]
            whole = len(assigns) == 1 and only.value is r and only.type == r.type and not only.where
            if whole and (
                out := lies_as_matrix(
                    self.graph.make(Load(only.buffer, only.type, only.index)), r.type, chosen.rows, chosen.columns
                )
            ):
                self._product(chosen, r.type, out)
                return []
            load = self._shared_product(r, chosen)

            def swap(e: Expression, r: Reduce = r, load: Expression = load) -> Expression | None:
                return load if e is r else None

            assigns = [replace(a, value=self.graph.replace(a.value, swap)) for a in assigns]

    def _tiled(self, r: Reduce, chosen: Roles, assigns: list[Assign], tiled: Tiled) -> bool:
        """Add a sum to those that are computed in tiles of registers, if it can be; the arrays that it reads are added first."""
        axes = frozenset(axis for axis, _ in assigns[0].axes)
        if self.graph.free[id(r)] != axes or assigns[0].where or count(chosen.rows) < least(chosen.right, r.type, LEAST):
            return False
        if r.where or not lies(chosen.right, r.type, chosen.columns, chosen.inner):
            found = plan(self.graph, r, chosen)
        else:
            found = matrices(self.graph, r, chosen) if self.tiles else None
        if found is None:
            return False
        if tiled.tiles and (found.shape, found.rows, found.chain) != (tiled.shape, tiled.rows, tiled.chain):
            return False
        tiled.shape, tiled.rows, tiled.chain = found.shape, found.rows, found.chain
        left = (found.left.buffer, found.left.index) if isinstance(found.left, Load) else self._filled(found.left, r.type)
        tiled.tiles.append(Tile(r, left, self._filled(found.right, r.type)))
        self.done.add(id(r))
        return True

    def _filled(self, side: Side, kind: str) -> tuple[int, Affine]:
        """Return the array of a side, filled by a nest before, and the index map by which it is read."""
        key = ("side", side.axes, side.where, id(side.value))
        if key not in self.known:
            self.known[key] = self._store(side.value, kind, side.axes, side.where, BEYOND)
        load = self.known[key]
        assert isinstance(load, Load)
        return load.buffer, side.index

    def _shared_product(self, r: Reduce, chosen: Roles) -> Expression:
        """Return the load of a product's own array; equal products under other names of axes share it."""
        axes = (*chosen.batch, *chosen.rows, *chosen.columns)
        names = {axis: f"shared{place}" for place, (axis, _) in enumerate(axes)}
        key = ("product", id(self.graph.map_affines(r, lambda m: tidy(m, names))))
        if key not in self.known:
            index, length = row_major(axes)
            buffer, self.next = self.next, self.next + 1
            self.staged.temporaries.append(Temporary(buffer, r.type, length))
            self._product(chosen, r.type, Matrix(buffer, r.type, index))
            self.known[key] = self.graph.make(Load(buffer, r.type, tidy(index, names)))
        back = {shared: axis for axis, shared in names.items()}
        return self.graph.map_affines(self.known[key], lambda m: tidy(m, back))

    def _product(self, chosen: Roles, kind: str, out: Matrix) -> None:
        batch, inner = chosen.batch, chosen.inner
        left = self._side(chosen.left, kind, batch, chosen.rows, inner)
        right = self._side(chosen.right, kind, batch, chosen.columns, inner)
        self.staged.groups.append(Product(left, right, out, batch, chosen.rows, chosen.columns, inner))

    def _side(self, parts: tuple[Expression, ...], kind: str, batch: Axes, outer: Axes, inner: Axes) -> Matrix:
        """Return one side as a matrix, written to an array first when it does not lie as one."""
        total = parts[0]
        for part in parts[1:]:
            total = self.graph.make(Apply("mul", kind, (total, part)))
        found = lies_as_matrix(total, kind, outer, inner)
        if found is not None:
            return found
        used = tuple(item for item in batch if item[0] in self.graph.free[id(total)])
        along = _walk_cost([total], outer[-1][0]), _walk_cost([total], inner[-1][0])
        axes = (*used, *inner, *outer) if along[0] <= along[1] else (*used, *outer, *inner)
        index, length = row_major(axes)
        buffer, self.next = self.next, self.next + 1
        self.staged.temporaries.append(Temporary(buffer, kind, length))
        names = {axis: f"s{place}" for place, (axis, _) in enumerate(axes)}
        value = self.graph.map_affines(total, lambda m: tidy(m, names))
        self.group([Assign(buffer, kind, tuple((names[a], s) for a, s in axes), tidy(index, names), self.graph.intern(value))])
        return Matrix(buffer, kind, index)

    def _together(self, found: Sequence[Reduce], axes: Axes) -> frozenset[str]:
        """Return the axes on which a reduction must depend to stay in a nest: those of all but the last loop, or where all
        reductions depend on the same fewer ones, these: what is read twice is then still in a cache."""
        names = frozenset(axis for axis, _ in axes[:-1])
        free = {self.graph.free[id(r)] for r in found if self.graph.reads[id(r)] and _points(r) is None}
        free = {f for f in free if f and f <= names}
        return next(iter(free)) if len(free) == 1 else names

    def _apart(self, r: Reduce, axes: Axes, together: frozenset[str]) -> bool:
        names = [axis for axis, _ in axes]
        free = self.graph.free[id(r)]
        if not free <= set(names) or not self.graph.reads[id(r)] or _points(r) is not None:
            return False
        if free == set(names) and names:
            return self.split
        return free != together or not free or self.split

    def _array(self, r: Reduce, axes: Axes, where: tuple[Affine, ...]) -> Expression:
        """Return the load that stands for a reduction, after adding the group that computes it."""
        used = tuple(item for item in axes if item[0] in self.graph.free[id(r)])
        where = tuple(w for w in where if w.axes <= {axis for axis, _ in used})
        key = (id(r), tuple(axis for axis, _ in axes), where)
        if key not in self.known:
            value = self._blocks(r, used) if self.split or not used else r
            if not axes or (self.split and used == axes):
                self.known[key] = value
            else:
                self.known[key] = self._store(value, r.type, used, where)
        return self.known[key]

    def _store(self, value: Expression, kind: str, axes: Axes, where: tuple[Affine, ...] = (), beyond: Size = ZERO) -> Expression:
        index, length = row_major(axes)
        buffer, self.next = self.next, self.next + 1
        self.staged.temporaries.append(Temporary(buffer, kind, length + beyond))
        self.group([Assign(buffer, kind, axes, index, value, where)])
        return self.graph.make(Load(buffer, kind, index))

    def _blocks(self, r: Reduce, used: Axes) -> Expression:
        """Cut the slowest axis of a reduction into blocks: partial results in an array, then a reduction of these."""
        (axis, extent), rest = r.axes[0], r.axes[1:]
        if extent.constant is not None and extent.constant <= PARTS:
            self.done.add(id(r))
            return r
        block = Size.of(1) if rest and not used else Size.of(BLOCK) if not used else Size.named(Ceil(extent, Size.of(PARTS)))
        parts = Size.named(Ceil(extent, block)) if block.constant != 1 else extent
        outer = f"part{self.next}"

        def cut(m: Affine) -> Affine:
            stride = m.stride(axis)
            return tidy(Affine((*m.terms, (outer, stride * block)), m.offset)) if stride.terms else m

        inside = Affine(((axis, MINUS), (outer, MINUS * block)), extent + MINUS)
        body = self.graph.map_affines(r.body, cut)
        where = (*map(cut, r.where), tidy(inside))
        if block.constant == 1:
            body = self.graph.map_affines(body, lambda m: Affine(tuple(t for t in m.terms if t[0] != axis), m.offset))
            where = tuple(Affine(tuple(t for t in w.terms if t[0] != axis), w.offset) for w in map(cut, r.where))
            partial = self.graph.make(Reduce(r.kind, r.type, rest, body, where))
        else:
            partial = self.graph.make(Reduce(r.kind, r.type, ((axis, block), *rest), body, where))
        load = self._store_partial(self.graph.intern(partial), r.type, ((outer, parts), *used))
        total = self.graph.intern(Reduce(r.kind, r.type, ((outer, parts),), load))
        self.done.add(id(total))
        return total

    def _store_partial(self, value: Expression, kind: str, axes: Axes) -> Expression:
        before, self.split = self.split, False
        load = self._store(value, kind, axes)
        self.split = before
        return load


def stage(graph: Graph, program: Program, first: int, *, split: bool = False, blas: bool = True, tiles: bool = False) -> Staged:
    """Order a program for loop nests.

    Args:
        graph: owner of all expressions made.
        program: any program.
        first: number of the first temporary buffer (all arguments are below).
        blas: turn sums of products into matrix products.
        tiles: compute these, too, in tiles of registers, where matrices are not worth the packing of `gemm`.
        split: cut every reduction into parts over its slowest axis, for outputs too few to keep all threads busy.
    """
    groups: dict[tuple[Axes, tuple[Affine, ...]], list[Assign]] = {}
    written = frozenset(a.buffer for a in program.assigns)
    for assign in program.assigns:
        graph_value = merged(graph, straight(graph, graph.intern(assign.value)), written)
        names = {axis: f"o{place}" for place, (axis, _) in enumerate(assign.axes)}
        axes = tuple((names[axis], size) for axis, size in assign.axes)
        value = graph.map_affines(graph_value, lambda m, names=names: tidy(m, names))
        where = tuple(tidy(w, names) for w in assign.where)
        key = (axes, where)
        groups.setdefault(key, []).append(Assign(assign.buffer, assign.type, axes, tidy(assign.index, names), value, where))
    stager = _Stager(graph, first, split, blas, tiles)
    for assigns in groups.values():
        stager.group(assigns)
    stager.staged.copies = _conflicts(program, groups.values())
    return stager.staged


def _conflicts(program: Program, groups: Sequence[list[Assign]] | object) -> tuple[int, ...]:
    """Return the buffers that are written and also read elsewhere than at the place being written."""
    found: set[int] = set()
    written = {a.buffer for a in program.assigns}
    for group in groups:  # type: ignore[attr-defined]
        places = {(a.buffer, a.type, a.index) for a in group}
        for e in walk([a.value for a in group]):
            if isinstance(e, Gather) and e.buffer in written:
                found.add(e.buffer)
            if isinstance(e, Load) and e.buffer in written and (e.buffer, e.type, e.index) not in places:
                found.add(e.buffer)
        for e in walk([a.value for a in group]):
            if isinstance(e, Load) and e.buffer in written and sum(a.buffer == e.buffer for a in program.assigns) > 1:
                found.add(e.buffer)
    return tuple(sorted(found))


def _points(r: Reduce) -> int | None:
    """Return the number of points of a small constant reduction, else None."""
    total = 1
    for _, size in r.axes:
        if size.constant is None:
            return None
        total *= size.constant
    return total if total <= 64 else None


def _deep(r: Reduce, chosen: Roles) -> bool:
    """Tell whether a small constant reduction is a matrix product even so: one of many rows and columns that lie as they are."""
    sides = ((chosen.left, chosen.rows), (chosen.right, chosen.columns))
    return (_points(r) or 0) >= DEEP and all(count(axes) > FEW and lies(part, r.type, axes, r.axes) for part, axes in sides)


def _ordered(assigns: list[Assign]) -> list[Assign]:
    """Put the axis along which stores and loads walk memory best last; the others keep their order."""
    axes = assigns[0].axes

    def cost(axis: str) -> float:
        return _walk_cost([a.value for a in assigns], axis) + sum(2.0 * step_cost(a.index, axis) for a in assigns)

    best = min(reversed(axes), key=lambda item: cost(item[0]), default=None)
    if best is None or best is axes[-1]:
        return assigns
    return _reordered(assigns, (best,))


def _reordered(assigns: list[Assign], last: Axes) -> list[Assign]:
    """Put some axes last, in this order."""
    axes = (*(item for item in assigns[0].axes if item not in last), *last)
    return [replace(a, axes=axes) for a in assigns]


def _walk_cost(roots: list[Expression], axis: str) -> float:
    """Return what walking memory along an axis costs, summed over all loads."""
    return sum(step_cost(e.index, axis) for e in walk(roots) if isinstance(e, Load))
