"""Sums of products whose one side slides over an array (convolutions), prepared for tiles of registers.

    y[o, j] = sum over k of w[o, k] x[f(j, k)],    f affine, with zeros where its conditions fail

is no matrix product in memory: written out as one, x is as many times larger as the window has taps.  Instead x is copied once
to an array with its zeros around, in which f is affine without conditions and walks along the last output axis by single steps,
and w to panels of ROWS outputs, one element of each side by side.  Axes of the output that follow each other in the padded array
as they do in the output are walked as one, over the gaps between its rows too: `tile` drops what it computes there.

Small matrix products go the same way: the right side is copied to strips as wide as a tile, the left one is read as it lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from gewu.ops import llvm
from gewu.ops.contract import Roles, lies_as_matrix
from gewu.ops.ir import WIDTH
from gewu.ops.rewrite import MINUS, Axes, Graph, same, tidy, walk
from gewu.ops.sizes import ONE, ZERO, Affine, Ceil, Size
from gewu.ops.tensor import Apply, Assign, Constant, Expression, Load, Reduce, Scalar


@dataclass(frozen=True, slots=True)
class Shape:
    """Rows of a tile, and vectors in each: 24 accumulators, which hide the latency of 2 additions a cycle."""

    rows: int
    vectors: int

    def width(self, kind: str) -> int:
        """Return the columns of a tile on the processor at hand."""
        return self.vectors * llvm.host_vector_bits() // WIDTH[kind]

    def panels(self, extent: Size) -> Size:
        """Return how many panels hold this many rows."""
        if extent.constant is not None:
            return Size.of(-(-extent.constant // self.rows))
        return Size.named(Ceil(extent, Size.of(self.rows)))


WINDOWS: Final = Shape(8, 3)
"""For convolutions: the rows divide most numbers of channels, and the rows of images are joined to one long one."""
MATRICES: Final = Shape(6, 4)
"""For products: the columns divide most extents."""
NARROW: Final = 8
"""Extent of the last output axis, where it is known, below which tiles would mostly compute what is dropped."""
STEPS: Final = 4
"""Steps of a window that may share an axis of the padded array with its taps."""
PANEL, STRIP, LANE = "tile.panel", "tile.strip", "tile.lane"


@dataclass(frozen=True, slots=True)
class Side:
    """An array to be filled before: its axes, value, and the index map by which the sum reads it."""

    axes: Axes
    value: Expression
    where: tuple[Affine, ...]
    index: Affine


@dataclass(frozen=True, slots=True)
class Plan:
    """How a sum is computed in tiles: `rows` is their axis of rows, `chain` the output axes that are walked as one.

    `left` is a load where the left side is read as it lies.
    """

    left: Side | Load
    right: Side
    shape: Shape
    rows: tuple[str, Size]
    chain: Axes


@dataclass(frozen=True, slots=True)
class Tile:
    """A sum with the buffers and index maps of its sides.

    The left map counts `PANEL`, a tile's rows being elements side by side, or the axis of rows where the side is read as it lies;
    the right one counts the columns, and `STRIP` where strips lie apart.
    """

    reduce: Reduce
    left: tuple[int, Affine]
    right: tuple[int, Affine]


@dataclass(slots=True)
class Tiled:
    """Assignments over equal axes, the last of `chain` last, with the sums inside that are computed in tiles."""

    assigns: list[Assign]
    tiles: list[Tile]
    shape: Shape
    rows: tuple[str, Size]
    chain: Axes

    def strips(self) -> Size:
        """Return the extent that the chain has as one axis."""
        index, total = self.tiles[0].right[1], ONE
        for axis, size in self.chain:
            total = total + index.stride(axis) * (size + MINUS)
        return total


def plan(graph: Graph, r: Reduce, chosen: Roles) -> Plan | None:
    """Return how a sum of products is computed in tiles, or None where its columns do not slide over an array.

    Args:
        graph: owner of the expressions.
        r: the sum.
        chosen: the roles of its axes.
    """
    last = chosen.columns[-1]
    if last[1].constant is not None and last[1].constant < NARROW:
        return None
    side = _product(graph, chosen.right, r.type)
    moved = _guarded(graph, side, r.where)
    if moved is None:
        return None
    right = _padded(graph, moved, chosen)
    if right is None or right[0].index.stride(last[0]) != ONE:
        return None
    return Plan(_panels(graph, r.type, chosen), right[0], WINDOWS, chosen.rows[-1], right[1])


def matrices(graph: Graph, r: Reduce, chosen: Roles) -> Plan | None:
    """Return how a product of two matrices in memory is computed in tiles, or None where a side is none or lies by columns."""
    sides = [_product(graph, parts, r.type) for parts in (chosen.left, chosen.right)]
    known = [lies_as_matrix(e, r.type, a, chosen.inner) for e, a in zip(sides, (chosen.rows, chosen.columns), strict=True)]
    (left, right), last = sides, chosen.columns[-1]
    if r.where or None in known or not isinstance(left, Load) or right.index.stride(last[0]) != ONE:  # type: ignore[union-attr]
        return None
    width = Size.of(MATRICES.width(r.type))
    cut, inside = _cut(last, STRIP, width)
    outer = tuple(item for item in (*chosen.batch, *chosen.columns[:-1]) if item[0] in graph.free[id(right)])
    axes = (*outer, (STRIP, Size.named(Ceil(last[1], width))), *chosen.inner, (LANE, width))
    index = row_major(axes)[0]
    index = tidy(Affine((*(t for t in index.terms if t[0] != LANE), (last[0], ONE))))
    return Plan(left, Side(axes, graph.map_affines(right, cut), inside, index), MATRICES, chosen.rows[-1], (last,))


def _cut(item: tuple[str, Size], outer: str, length: Size) -> tuple[Callable[[Affine], Affine], tuple[Affine, ...]]:
    """Return the change of index maps that counts an axis by pieces and `LANE`, and the condition that it still exists."""
    axis, extent = item

    def cut(m: Affine) -> Affine:
        stride = m.stride(axis)
        return tidy(Affine((*(t for t in m.terms if t[0] != axis), (outer, stride * length), (LANE, stride)), m.offset))

    return cut, (Affine(((outer, MINUS * length), (LANE, MINUS)), extent + MINUS),)


def _product(graph: Graph, parts: tuple[Expression, ...], kind: str) -> Expression:
    total = parts[0]
    for part in parts[1:]:
        total = graph.make(Apply("mul", kind, (total, part)))
    return total


def _guarded(graph: Graph, side: Expression, where: tuple[Affine, ...]) -> Expression | None:
    """Return a side that is zero where the conditions of the sum fail."""
    if not where:
        return side
    return graph.make(replace(side, where=tuple(dict.fromkeys((*side.where, *where))))) if isinstance(side, Load) else None


def _panels(graph: Graph, kind: str, chosen: Roles) -> Side:
    """Return the rows' side, those of a tile next to each other; rows of the last panel that do not exist stay unwritten."""
    side, rows = _product(graph, chosen.left, kind), Size.of(WINDOWS.rows)
    cut, inside = _cut(chosen.rows[-1], PANEL, rows)
    outer = tuple(item for item in (*chosen.batch, *chosen.rows[:-1]) if item[0] in graph.free[id(side)])
    axes = (*outer, (PANEL, WINDOWS.panels(chosen.rows[-1][1])), *chosen.inner, (LANE, rows))
    index = Affine(tuple(t for t in row_major(axes)[0].terms if t[0] != LANE))
    return Side(axes, graph.map_affines(side, cut), inside, index)


def row_major(axes: Axes) -> tuple[Affine, Size]:
    """Return the index map of an array with these axes, and its length."""
    terms, length = [], ONE
    for axis, size in reversed(axes):
        terms.append((axis, length))
        length = length * size
    return tidy(Affine(tuple(terms))), length


@dataclass(slots=True)
class _Dimension:
    """An axis of the padded array: a sum of axes times numbers, from `low` on."""

    weights: dict[str, int]
    low: Size = ZERO
    extent: Size = ONE


def _padded(graph: Graph, side: Expression, chosen: Roles) -> tuple[Side, Axes] | None:
    """Return the padded array of a side and the output axes that are one in it."""
    loads = [e for e in walk([side]) if not isinstance(e, (Apply, Constant, Scalar))]
    if not loads or not all(isinstance(e, Load) for e in loads):
        return None
    axes = tuple(a for a in (*chosen.batch, *chosen.columns, *chosen.inner) if a[0] in graph.free[id(side)])
    dimensions = _dimensions([e for e in loads if isinstance(e, Load)], axes, chosen)
    if dimensions is None:
        return None
    extents = dict(axes)
    for d in dimensions:
        for axis, weight in d.weights.items():
            reach = (extents[axis] + MINUS) * Size.of(weight)
            d.extent = d.extent + reach * Size.of(1 if weight > 0 else -1)
            d.low = d.low + (reach if weight < 0 else ZERO)
    named = {f"z{place}": d for place, d in enumerate(dimensions)}
    changed: dict[int, Expression] = {}
    for e in loads:
        assert isinstance(e, Load)
        maps = [_rebased(m, named) for m in (e.index, *e.where)]
        if None in maps:
            return None
        changed[id(e)] = graph.make(Load(e.buffer, e.type, *_split([m for m in maps if m is not None])))
    value = graph.replace(side, lambda e: changed.get(id(e)))
    whole = tuple((name, d.extent) for name, d in named.items())
    pitches, terms, offset = dict(row_major(whole)[0].terms), [], ZERO
    for name, d in named.items():
        terms += [(axis, pitches[name] * Size.of(weight)) for axis, weight in d.weights.items()]
        offset = offset + pitches[name] * d.low * MINUS
    return Side(whole, value, (), tidy(Affine(tuple(terms), offset))), _chain(dimensions, chosen.columns)


def _split(maps: list[Affine]) -> tuple[Affine, tuple[Affine, ...]]:
    return maps[0], tuple(maps[1:])


def _dimensions(loads: list[Load], axes: Axes, chosen: Roles) -> list[_Dimension] | None:
    """Return the axes of the padded array, slow to fast: single ones, then the windows, with conditions or without."""
    found: list[_Dimension] = []
    taken: dict[str, _Dimension] = {}
    for where in (w for e in loads for w in e.where):
        weights = _weights(where, [axis for axis, _ in axes])
        if weights is None:
            return None
        known = taken.get(next(iter(weights)))
        if known is not None and known.weights == weights:
            continue
        if taken.keys() & weights.keys():
            return None
        found.append(_Dimension(weights))
        taken |= dict.fromkeys(weights, found[-1])
    for column, _ in reversed(chosen.columns):
        taps = [axis for axis, _ in chosen.inner if axis not in taken]
        steps = {t: s for t in taps if (s := _steps(loads, column, t)) is not None}
        if column not in taken and steps:
            tap = min(steps, key=lambda t: steps[t])
            found.append(_Dimension({column: steps[tap], tap: 1}))
            taken |= dict.fromkeys(found[-1].weights, found[-1])
    found += [_Dimension({axis: 1}) for axis, _ in axes if axis not in taken]
    order = [axis for axis, _ in axes]
    columns = [axis for axis, _ in chosen.columns]
    slides = [d for d in found if len(d.weights) > 1 or columns[-1] in d.weights]
    plain = sorted((d for d in found if not any(d is s for s in slides)), key=lambda d: order.index(next(iter(d.weights))))
    last = [max((columns.index(a) for a in d.weights if a in columns), default=-1) for d in slides]
    return [*plain, *(d for _, d in sorted(zip(last, slides, strict=True), key=lambda item: item[0]))]


def _weights(condition: Affine, order: list[str]) -> dict[str, int] | None:
    """Return the numbers by which a condition counts its axes, the first one positive; None where they are no numbers."""
    numbers = {axis: size.constant for axis, size in condition.terms}
    if not numbers or None in numbers.values():
        return None
    known = {axis: n for axis in order if (n := numbers.get(axis)) is not None}
    sign = -1 if known and next(iter(known.values())) < 0 else 1
    return {axis: sign * n for axis, n in known.items()} if len(known) == len(numbers) else None


def _steps(loads: list[Load], column: str, tap: str) -> int | None:
    """Return how many steps of a tap one of a column is, in all loads."""
    for steps in range(1, STEPS + 1):
        pairs = [(e.index.stride(column), e.index.stride(tap) * Size.of(steps)) for e in loads]
        if all(b.terms and same(a, b) for a, b in pairs):
            return steps
    return None


def _rebased(m: Affine, named: Mapping[str, _Dimension]) -> Affine | None:
    """Return an index map over the axes of the padded array, or None where it is no function of them."""
    terms, offset = [], m.offset
    for name, d in named.items():
        unit = next(((axis, w) for axis, w in d.weights.items() if abs(w) == 1), None)
        if unit is None:
            return None
        pitch = m.stride(unit[0]) * Size.of(unit[1])
        if not all(same(m.stride(axis), pitch * Size.of(w)) for axis, w in d.weights.items()):
            return None
        terms.append((name, pitch))
        offset = offset + pitch * d.low
    return tidy(Affine(tuple(terms), offset))


def _chain(dimensions: list[_Dimension], columns: Axes) -> Axes:
    """Return the last column axes that lie one above the other in the padded array."""
    chain: Axes = ()
    for d, column in zip(reversed(dimensions), reversed(columns), strict=False):
        if d.weights.get(column[0]) != 1:
            break
        chain = (column, *chain)
    return chain
