"""Run a program in blocks of its outputs, so that the arrays between its steps stay in the cache.

A block fixes some leading axes at one index each and takes a range of one more axis; it is a program of the same form, whose
sizes also hold `@0 @1 ...` (the fixed indices), `@first` and `@count` (the range)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from gewu.core.errors import InputError
from gewu.ops.ir import WIDTH
from gewu.ops.rewrite import Graph, tidy
from gewu.ops.sizes import Affine, Size
from gewu.ops.stage import stage
from gewu.ops.tensor import Assign, Program

BUDGET = 2 << 20
"""Bytes of arrays between steps that one thread should hold."""
LEAST = 8 << 20
"""Bytes of arrays between steps from which a program is cut."""
MOST = 4096
"""Blocks beyond which blocking is not tried."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Places of the axes that are fixed, and of the one that is cut."""

    fixed: tuple[int, ...]
    cut: int


def blocked(program: Program, cut: Cut) -> Program:
    """Return the program of one block."""
    return replace(program, assigns=tuple(_block(a, cut) for a in program.assigns))


def _block(assign: Assign, cut: Cut) -> Assign:
    names = [axis for axis, _ in assign.axes]
    fixed = {names[place]: Size.named(f"@{number}") for number, place in enumerate(cut.fixed)}
    along = names[cut.cut]

    def change(m: Affine) -> Affine:
        offset = m.offset
        for axis, stride in m.terms:
            if axis in fixed:
                offset = offset + stride * fixed[axis]
            elif axis == along:
                offset = offset + stride * Size.named("@first")
        return tidy(Affine(tuple(t for t in m.terms if t[0] not in fixed), offset))

    graph = Graph()
    value = graph.map_affines(graph.intern(assign.value), change)
    axes = tuple((axis, Size.named("@count") if axis == along else size) for axis, size in assign.axes if axis not in fixed)
    return replace(assign, axes=axes, index=change(assign.index), value=value, where=tuple(map(change, assign.where)))


def choose(program: Program, launch: Mapping[str, int], count: int) -> tuple[Cut, int] | None:
    """Return how to cut a program and how long the pieces are, or None when its arrays are small or do not shrink.

    Args:
        program: assignments over equal axes.
        launch: the integers of the launch.
        count: number of arguments.
    """
    extents = [tuple(size.value(launch) for _, size in a.axes) for a in program.assigns]
    if len(set(extents)) != 1 or not extents[0] or min(extents[0]) <= 0:
        return None
    whole = _bytes(program, launch, count)
    if whole <= LEAST:
        return None
    fixed: tuple[int, ...] = ()
    before, found = whole, None
    for place, extent in enumerate(extents[0]):
        if extent == 1:
            continue
        cut = Cut(fixed, place)
        one = _bytes(blocked(program, cut), _at(launch, fixed, 1), count)
        if one * extent > 2 * before or (found and one >= before):
            continue
        found = cut, max(1, min(extent, BUDGET // max(one, 1)))
        if one <= BUDGET:
            break
        fixed, before = (*fixed, place), one
    if found is None:
        return None
    blocks = -(-extents[0][found[0].cut] // found[1])
    for place in found[0].fixed:
        blocks *= extents[0][place]
    return found if 1 < blocks <= MOST else None


def _at(launch: Mapping[str, int], fixed: tuple[int, ...], count: int) -> dict[str, int]:
    return {**launch, **{f"@{number}": 0 for number in range(len(fixed))}, "@first": 0, "@count": count}


def _bytes(program: Program, launch: Mapping[str, int], count: int) -> int:
    staged = stage(Graph(), program, count)
    if staged.copies:
        raise InputError("a program that copies what it reads is not cut into blocks", key=program.name)
    return sum(max(t.length.value(launch), 0) * WIDTH[t.type] // 8 for t in staged.temporaries)


def launches(program: Program, launch: Mapping[str, int], cut: Cut, length: int) -> Iterator[dict[str, int]]:
    """Yield the launch of each block."""
    extents = [size.value(launch) for _, size in program.assigns[0].axes]
    for fixed in product(*(range(extents[place]) for place in cut.fixed)):
        for first in range(0, extents[cut.cut], length):
            own = {f"@{number}": index for number, index in enumerate(fixed)}
            yield {**launch, **own, "@first": first, "@count": min(length, extents[cut.cut] - first)}
