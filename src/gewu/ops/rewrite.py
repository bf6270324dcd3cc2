"""Expressions as shared graphs: one object for equal sub-expressions, their axes, and rewriting.

`Graph.intern` makes equal expressions one object (so `id` decides equality and shared parts are visited once) and renames the
axes of reductions by their height and extent, so that reductions over equal ranges meet in one loop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import reduce
from typing import Any

from gewu.ops.sizes import Affine, Ceil, Size
from gewu.ops.tensor import Apply, Assign, Constant, Expression, Gather, Index, Load, Program, Reduce, Scalar

MINUS: Size = Size.of(-1)
Axes = tuple[tuple[str, Size], ...]


def same(a: Size, b: Size) -> bool:
    """Tell whether two sizes are equal as polynomials."""
    return a == b or not (a + b * MINUS).terms


def tidy(affine: Affine, rename: dict[str, str] | None = None) -> Affine:
    """Return an index map with one term an axis, sorted by name, without zeros; axes renamed."""
    strides: dict[str, Size] = {}
    for axis, stride in affine.terms:
        name = rename.get(axis, axis) if rename else axis
        strides[name] = strides[name] + stride if name in strides else stride
    return Affine(tuple(sorted((a, s) for a, s in strides.items() if s.terms)), affine.offset)


def children(e: Expression) -> tuple[Expression, ...]:
    """Return the expressions directly inside."""
    match e:
        case Apply():
            return e.args
        case Reduce():
            return (e.body,)
        case Gather():
            return (e.place,)
    return ()


def walk(roots: list[Expression]) -> Iterator[Expression]:
    """Yield every expression once, parts before the whole."""
    seen: set[int] = set()
    stack = [(e, False) for e in reversed(roots)]
    while stack:
        e, ready = stack.pop()
        if ready:
            yield e
        elif id(e) not in seen:
            seen.add(id(e))
            stack.append((e, True))
            stack.extend((c, False) for c in reversed(children(e)) if id(c) not in seen)


def affines(e: Expression) -> tuple[Affine, ...]:
    """Return the index maps of this expression itself."""
    match e:
        case Load():
            return (e.index, *e.where)
        case Index():
            return (e.value,)
        case Reduce():
            return e.where
    return ()


class Graph:
    """Interned expressions with their axes and heights."""

    def __init__(self) -> None:
        self._nodes: dict[object, Expression] = {}
        self._keep: list[Expression] = []
        self.free: dict[int, frozenset[str]] = {}
        self.height: dict[int, int] = {}
        self.reads: dict[int, bool] = {}

    def intern(self, e: Expression) -> Expression:
        """Return the one object for an expression, its reduction axes renamed."""
        return self._rewrite(e, {}, {}, self._measure(e))

    def _measure(self, root: Expression) -> dict[int, int]:
        heights: dict[int, int] = {}
        for e in walk([root]):
            heights[id(e)] = max((heights[id(c)] for c in children(e)), default=0) + isinstance(e, Reduce)
        return heights

    def _rewrite(
        self, root: Expression, rename: dict[str, str], memo: dict[int, Expression], heights: dict[int, int]
    ) -> Expression:
        stack = [root]
        while stack:
            e = stack[-1]
            if id(e) in memo:
                stack.pop()
                continue
            if isinstance(e, Reduce):
                names = {axis: f"r{heights[id(e)]}.{place}.{size}" for place, (axis, size) in enumerate(e.axes)}
                inner = {**rename, **names}
                body = self._rewrite(e.body, inner, {}, heights)
                axes = tuple((names[axis], size) for axis, size in e.axes)
                memo[id(e)] = self.make(Reduce(e.kind, e.type, axes, body, tuple(tidy(w, inner) for w in e.where)))
                stack.pop()
                continue
            todo = [c for c in children(e) if id(c) not in memo]
            if todo:
                stack.extend(todo)
                continue
            match e:
                case Load():
                    done: Expression = Load(e.buffer, e.type, tidy(e.index, rename), tuple(tidy(w, rename) for w in e.where))
                case Index():
                    done = Index(e.type, tidy(e.value, rename))
                case Apply():
                    done = Apply(e.op, e.type, tuple(memo[id(a)] for a in e.args), e.mods)
                case Gather():
                    done = Gather(e.buffer, e.type, memo[id(e.place)])
                case _:
                    done = e
            memo[id(e)] = self.make(done)
            stack.pop()
        return memo[id(root)]

    def make(self, e: Expression) -> Expression:
        """Return the one object for a node whose parts are interned already."""
        match e:
            case Apply():
                key: object = ("apply", e.op, e.type, e.mods, tuple(map(id, e.args)))
            case Reduce():
                key = ("reduce", e.kind, e.type, e.axes, e.where, id(e.body))
            case Gather():
                key = ("gather", e.buffer, e.type, id(e.place))
            case _:
                key = (type(e).__name__, e)
        found = self._nodes.get(key)
        if found is not None:
            return found
        self._nodes[key] = e
        inside = frozenset().union(*(self.free[id(c)] for c in children(e)), *(a.axes for a in affines(e)))
        self.free[id(e)] = inside - {axis for axis, _ in e.axes} if isinstance(e, Reduce) else inside
        self.height[id(e)] = max((self.height[id(c)] for c in children(e)), default=0) + isinstance(e, Reduce)
        self.reads[id(e)] = isinstance(e, (Load, Gather)) or any(self.reads[id(c)] for c in children(e))
        return e

    def replace(self, root: Expression, change: Callable[[Expression], Expression | None]) -> Expression:
        """Rebuild an interned expression; `change` may answer a new (interned) node for any node, seen whole before its parts."""
        memo: dict[int, Expression] = {}
        stack = [root]
        while stack:
            e = stack[-1]
            if id(e) not in memo:
                new = change(e)
                if new is not None:
                    memo[id(e)] = new
            if id(e) in memo:
                stack.pop()
                continue
            todo = [c for c in children(e) if id(c) not in memo]
            if todo:
                stack.extend(todo)
                continue
            match e:
                case Apply():
                    memo[id(e)] = self.make(replace(e, args=tuple(memo[id(a)] for a in e.args)))
                case Reduce():
                    memo[id(e)] = self.make(replace(e, body=memo[id(e.body)]))
                case Gather():
                    memo[id(e)] = self.make(replace(e, place=memo[id(e.place)]))
                case _:
                    memo[id(e)] = e
            stack.pop()
        return memo[id(root)]

    def map_affines(self, root: Expression, change: Callable[[Affine], Affine]) -> Expression:
        """Rebuild an interned expression with every index map changed (extents of reductions stay)."""

        def leaf(e: Expression) -> Expression | None:
            match e:
                case Load():
                    return self.make(Load(e.buffer, e.type, change(e.index), tuple(map(change, e.where))))
                case Index():
                    return self.make(Index(e.type, change(e.value)))
                case Reduce():
                    body = self.map_affines(e.body, change)
                    return self.make(replace(e, body=body, where=tuple(map(change, e.where))))
            return None

        return self.replace(root, leaf)

    def reductions(self, roots: list[Expression]) -> list[Reduce]:
        """Return every reduction inside, lower ones first."""
        found = [e for e in walk(roots) if isinstance(e, Reduce)]
        return sorted(found, key=lambda e: self.height[id(e)])


def fingerprint(program: Program) -> str:
    """Return a digest that equal programs share, whatever objects they are made of."""
    graph, numbers, lines = Graph(), {}, [program.name]
    for assign in program.assigns:
        root = graph.intern(assign.value)
        for e in walk([root]):
            if id(e) in numbers:
                continue
            inside = [numbers[id(c)] for c in children(e)]
            own = replace(e, args=()) if isinstance(e, Apply) else e
            if isinstance(e, (Reduce, Gather)):
                own = (e.kind, e.type, e.axes, e.where) if isinstance(e, Reduce) else (e.buffer, e.type)
            numbers[id(e)] = len(numbers)
            lines.append(f"{own!r} {inside}")
        lines.append(f"{assign.buffer} {assign.type} {assign.axes!r} {assign.index!r} {assign.where!r} {numbers[id(root)]}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def fixed(thing: Any, values: Mapping[str, int], memo: dict[int, Any] | None = None) -> Any:
    """Return a program, or a part of one, in which some integers of the launch are numbers."""
    memo = {} if memo is None else memo
    if isinstance(thing, Size):
        return reduce(Size.__add__, (_fixed_product(c, factors, values) for c, factors in thing.terms), Size())
    if isinstance(thing, tuple):
        return tuple(fixed(part, values, memo) for part in thing)
    if not is_dataclass(thing) or isinstance(thing, type):
        return thing
    if id(thing) not in memo:
        memo[id(thing)] = replace(thing, **{f.name: fixed(getattr(thing, f.name), values, memo) for f in fields(thing)})
    return memo[id(thing)]


def _fixed_product(number: int, factors: tuple[str | Ceil, ...], values: Mapping[str, int]) -> Size:
    product = Size.of(number)
    for factor in factors:
        if isinstance(factor, str):
            product = product * (Size.of(values[factor]) if factor in values else Size.named(factor))
            continue
        over, under = fixed(factor.numerator, values), fixed(factor.denominator, values)
        known = over.constant is not None and under.constant is not None
        product = product * (Size.of(Ceil(over, under).value({})) if known else Size.named(Ceil(over, under)))
    return product


def joined(affine: Affine, slow: str, fast: str) -> Affine:
    """Return an index map over `fast` alone, which now runs over both axes."""
    return Affine(tuple((a, s) for a, s in affine.terms if a != slow), affine.offset)


def joinable(maps: list[Affine], slow: str, fast: tuple[str, Size]) -> bool:
    """Tell whether two neighbouring axes are one in all index maps: the slow stride is the fast one times its extent."""
    return all(same(m.stride(slow), m.stride(fast[0]) * fast[1]) for m in maps if m.stride(slow).terms or m.stride(fast[0]).terms)


def collapse(graph: Graph, assigns: list[Assign]) -> list[Assign]:
    """Join neighbouring axes that all index maps walk as one, in outputs and in reductions; all assigns have equal axes."""
    roots = [a.value for a in assigns]
    axes = list(assigns[0].axes)
    place = len(axes) - 2
    while place >= 0:
        (slow, long), fast = axes[place], axes[place + 1]
        maps = [m for e in walk(roots) for m in affines(e)] + [m for a in assigns for m in (a.index, *a.where)]
        if joinable(maps, slow, fast):
            axes[place : place + 2] = [(fast[0], long * fast[1])]
            joiner = _joiner(slow, fast[0])
            assigns = [
                replace(
                    a,
                    axes=tuple(axes),
                    index=joiner(a.index),
                    where=tuple(map(joiner, a.where)),
                    value=graph.map_affines(a.value, joiner),
                )
                for a in assigns
            ]
            roots = [a.value for a in assigns]
        place -= 1
    return [replace(a, value=_collapse_reductions(graph, a.value)) for a in assigns]


def _joiner(slow: str, fast: str) -> Callable[[Affine], Affine]:
    return lambda m: joined(m, slow, fast)


def _collapse_reductions(graph: Graph, root: Expression) -> Expression:
    def change(e: Expression) -> Expression | None:
        if not isinstance(e, Reduce):
            return None
        body, axes, where = graph.replace(e.body, change), list(e.axes), e.where
        for place in range(len(axes) - 2, -1, -1):
            (slow, long), fast = axes[place], axes[place + 1]
            if joinable([m for part in walk([body]) for m in affines(part)] + list(where), slow, fast):
                axes[place : place + 2] = [(fast[0], long * fast[1])]
                joiner = _joiner(slow, fast[0])
                body, where = graph.map_affines(body, joiner), tuple(map(joiner, where))
        return graph.make(Reduce(e.kind, e.type, tuple(axes), body, where))

    return graph.intern(graph.replace(root, change))


__all__ = ["Axes", "Constant", "Graph", "Scalar", "affines", "children", "collapse", "same", "tidy", "walk"]
