"""Several rows at a time (unroll and jam): sums along memory that share a factor become one loop, which loads the factor once.

    y[i] = sum over k of a[i, k] x[k]    becomes    y[4 i + u] = sum over k of a[4 i + u, k] x[k],  u = 0 ... 3

in one loop over k, and the same for the rows that are left.  More rows at a time also keep more lines of memory on their way."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Final

from gewu.ops.rewrite import MINUS, Graph, tidy, walk
from gewu.ops.sizes import Affine, Ceil, Size
from gewu.ops.tensor import Assign, Load, Reduce

TOGETHER: Final = 4
"""Rows, and columns, that one loop computes: with both, 16 sums and 8 factors fit the registers."""
LARGEST: Final = 32
"""Parts of an expression up to which it is written so often."""


def jammed(graph: Graph, assign: Assign) -> list[list[Assign]]:
    """Return an assignment as groups over equal axes; unchanged where its sums share nothing along memory."""
    axes = _shared(graph, assign)
    groups = [[assign]]
    for axis in axes:
        groups = [made for group in groups for made in _split(graph, group, axis)]
    return groups


def _shared(graph: Graph, assign: Assign) -> list[str]:
    """Return the axes along which a factor of the assignment's sum stays the same."""
    sums = graph.reductions([assign.value])
    if len(sums) != 1 or assign.where or sums[0].where or sum(1 for _ in walk([assign.value])) > LARGEST:
        return []
    (r,), free = sums, graph.free[id(sums[0])]
    along = r.axes[-1][0] if r.axes else ""
    loads = [e for e in walk([r.body]) if isinstance(e, Load)]
    straight = all(e.index.stride(along).constant == 1 and not e.where for e in loads)
    if not straight or len(loads) < 2 or _extent(r) is not None or not {axis for axis, _ in assign.axes} <= free:
        return []
    found = [axis for axis, size in assign.axes if size.constant is None or size.constant >= TOGETHER]
    return [axis for axis in found if any(axis not in graph.free[id(e)] for e in loads)][-2:]


def _extent(r: Reduce) -> int | None:
    """Return the extent of a sum's last axis where it is known."""
    return r.axes[-1][1].constant


def _split(graph: Graph, group: list[Assign], axis: str) -> list[list[Assign]]:
    """Return a group that computes TOGETHER places of an axis at a time, and one for the places that are left."""
    extent, length = dict(group[0].axes)[axis], Size.of(TOGETHER)
    whole = Size.named(Ceil(extent + Size.of(1 - TOGETHER), length))
    if extent.constant is not None:
        whole = Size.of(extent.constant // TOGETHER)
    rest = extent + whole * length * MINUS
    many = [_moved(graph, a, axis, whole, length, Size.of(u)) for a, u in product(group, range(TOGETHER))]
    return [many, [_moved(graph, a, axis, rest, Size.of(1), whole * length) for a in group]]


def _moved(graph: Graph, assign: Assign, axis: str, extent: Size, step: Size, first: Size) -> Assign:
    """Return an assignment at the places `step` times the axis, plus `first`."""

    def change(m: Affine) -> Affine:
        stride = m.stride(axis)
        terms = tuple((a, s * step if a == axis else s) for a, s in m.terms)
        return tidy(Affine(terms, m.offset + stride * first))

    axes = tuple((a, extent if a == axis else size) for a, size in assign.axes)
    return replace(assign, axes=axes, index=change(assign.index), value=graph.map_affines(assign.value, change))
