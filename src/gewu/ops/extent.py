"""How far a program reaches into its arrays, and how much it has to do, at the sizes of one launch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gewu.ops.ir import WIDTH
from gewu.ops.sizes import Affine, Size
from gewu.ops.tensor import Apply, Assign, Expression, Gather, Index, Load, Program, Reduce

Axes = tuple[tuple[str, Size], ...]


@dataclass(frozen=True, slots=True)
class Access:
    """One place where a program reads or writes: an index map, the loops around it, and the conditions it is under."""

    buffer: int
    type: str
    index: Affine
    axes: Axes
    where: tuple[Affine, ...]
    written: bool = False


def accesses(program: Program) -> list[Access]:
    """Return every read and write of a program, but for gathers."""
    found = []
    for assign in program.assigns:
        found.append(Access(assign.buffer, assign.type, assign.index, assign.axes, assign.where, written=True))
        found += list(_reads(assign))
    return list(dict.fromkeys(found))


def walk(assign: Assign) -> Iterator[tuple[Expression, Axes, tuple[Affine, ...]]]:
    """Yield every node of an assignment, once for each set of loops, with the loops and conditions around it."""
    stack: list[tuple[Expression, Axes, tuple[Affine, ...]]] = [(assign.value, assign.axes, assign.where)]
    seen: set[tuple[int, Axes]] = set()
    while stack:
        node, axes, where = stack.pop()
        if (id(node), axes) in seen:
            continue
        seen.add((id(node), axes))
        yield node, axes, where
        if isinstance(node, Apply):
            stack.extend((child, axes, where) for child in node.args)
        elif isinstance(node, Gather):
            stack.append((node.place, axes, where))
        elif isinstance(node, Reduce):
            stack.append((node.body, (*axes, *node.axes), (*where, *node.where)))


def _reads(assign: Assign) -> Iterator[Access]:
    for node, axes, where in walk(assign):
        if isinstance(node, Load):
            yield Access(node.buffer, node.type, node.index, axes, (*where, *node.where))


def gathered(program: Program) -> set[int]:
    """Return the arrays that are read at places that depend on data."""
    return {node.buffer for a in program.assigns for node, _, _ in walk(a) if isinstance(node, Gather)}


def places(program: Program) -> set[int]:
    """Return the arrays whose elements decide where others are read."""
    found: set[int] = set()
    for assign in program.assigns:
        for node, _, _ in walk(assign):
            if isinstance(node, Gather):
                inner = Assign(node.buffer, node.type, (), Affine(), node.place)
                found |= {n.buffer for n, _, _ in walk(inner) if isinstance(n, Load | Gather)}
    return found


def written(program: Program) -> set[int]:
    """Return the arrays that a program writes."""
    return {assign.buffer for assign in program.assigns}


def bounds(access: Access, launch: Mapping[str, int]) -> tuple[int, int] | None:
    """Return the first and last byte that an access may touch, or None when it touches none; conditions narrow only the start."""
    sizes = {name: size.value(launch) for name, size in access.axes}
    if any(size <= 0 for size in sizes.values()):
        return None
    width = WIDTH[access.type] // 8
    ends = [(sizes[name] - 1) * stride.value(launch) for name, stride in access.index.terms]
    start = access.index.offset.value(launch)
    low, high = start + sum(min(e, 0) for e in ends), start + sum(max(e, 0) for e in ends)
    return (max(low, 0) if access.where else low) * width, (high + 1) * width - 1


def extents(program: Program, launch: Mapping[str, int]) -> dict[int, tuple[int, int]]:
    """Return, for each array, the first byte touched and the number of bytes from its start that are needed."""
    found: dict[int, tuple[int, int]] = {}
    for access in accesses(program):
        touched = bounds(access, launch)
        if touched is not None:
            low, high = found.get(access.buffer, (touched[0], 0))
            found[access.buffer] = min(low, touched[0]), max(high, touched[1] + 1)
    return found


def work(program: Program, launch: Mapping[str, int]) -> int:
    """Return how many times the innermost expressions are evaluated, when nothing is computed twice."""
    return sum(sum(_points(assign, launch)) for assign in program.assigns)


def longest_sum(program: Program, launch: Mapping[str, int]) -> int:
    """Return the largest number of terms that end in one output."""
    longest = 1
    for assign in program.assigns:
        sums: dict[int, int] = {}
        for node, _, _ in walk(assign):
            if isinstance(node, Reduce):
                sums[id(node)] = math.prod(max(size.value(launch), 1) for _, size in node.axes)
        longest = max(longest, sum(sums.values()))
    return longest


def _points(assign: Assign, launch: Mapping[str, int]) -> Iterator[int]:
    """Yield the points of an assignment and of each reduction in it, over those loops around it that it depends on."""
    yield math.prod(max(size.value(launch), 0) for _, size in assign.axes)
    memo: dict[int, frozenset[str]] = {}
    seen: set[int] = set()
    for node, axes, _ in walk(assign):
        if isinstance(node, Reduce) and id(node) not in seen:
            seen.add(id(node))
            free = _free(node, memo)
            around = math.prod(max(size.value(launch), 0) for name, size in axes if name in free)
            yield around * math.prod(max(size.value(launch), 0) for _, size in node.axes)


def _free(node: Expression, memo: dict[int, frozenset[str]]) -> frozenset[str]:
    """Return the loop variables that the value of a node depends on."""
    if id(node) in memo:
        return memo[id(node)]
    found: frozenset[str] = frozenset()
    match node:
        case Load():
            found = node.index.axes.union(*(w.axes for w in node.where))
        case Gather():
            found = _free(node.place, memo)
        case Index():
            found = node.value.axes
        case Apply():
            found = frozenset().union(*(_free(child, memo) for child in node.args))
        case Reduce():
            inner = _free(node.body, memo).union(*(w.axes for w in node.where))
            found = inner - {name for name, _ in node.axes}
    memo[id(node)] = found
    return found
