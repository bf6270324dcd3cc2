"""Sums that belong together, brought together before loops are made.

    sum(k: a[8 k] (w[k] & 15)) + sum(k: a[8 k + 2] (w[k] >> 8 & 15)) + ...   ->   sum(k: a[2 k] (bytes of w)[k] & 15)

Parts of words become loads of bytes, and sums that differ by a constant step of every index become one longer sum.  A short
axis of the outputs along which a long sum reads something again is written out: one loop reads it once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from gewu.ops.ir import WIDTH
from gewu.ops.rewrite import Graph, affines, same, tidy, walk
from gewu.ops.sizes import Affine, Size
from gewu.ops.tensor import Apply, Assign, Constant, Expression, Gather, Load, Reduce

TOTALS: Final = 16
"""Sums in one loop: as many vectors as hold their parts in registers, with room for the terms."""
_LOGICAL: Final = frozenset({"u32", "b32", "u64", "b64"})


def merged(graph: Graph, root: Expression, written: frozenset[int]) -> Expression:
    """Return an interned expression with sums of neighbouring places made one; `written`: arrays to be read as they are."""

    def change(e: Expression) -> Expression | None:
        terms = _terms(e)
        sums = [t for t in terms if isinstance(t, Reduce) and t.kind == "add" and len(t.axes) == 1 and not t.where]
        if len(sums) < 2:
            return None
        rest = [graph.replace(t, change) for t in terms if not any(t is s for s in sums)]
        joined = _joined(graph, sums, written)
        if len(joined) == len(sums):
            return None
        total = joined[0]
        for term in (*joined[1:], *rest):
            total = graph.make(Apply("add", e.type, (total, term)))
        return total

    return graph.replace(root, change)


def _terms(e: Expression) -> list[Expression]:
    """Return the terms of a float sum from left to right; the expression alone when it is none."""
    found, todo = [], [e]
    while todo:
        part = todo.pop()
        if isinstance(part, Apply) and (part.op, part.type) == ("add", e.type) and part.type in ("f32", "f64") and _nearest(part):
            todo += reversed(part.args)
        else:
            found.append(part)
    return found


def _nearest(e: Apply) -> bool:
    return not {"rz", "rm", "rp", "sat"} & set(e.mods)


def _joined(graph: Graph, sums: list[Reduce], written: frozenset[int]) -> list[Expression]:
    """Return the sums, those that are steps of one longer sum as one."""
    families: dict[object, list[tuple[Reduce, Reduce]]] = {}
    for e in sums:
        body = _narrowed(graph, e.body, written)
        bare = graph.map_affines(body, lambda m: Affine(m.terms))
        families.setdefault((e.axes, e.type, id(bare)), []).append((e, replace(e, body=body)))
    found: list[Expression] = []
    for members in families.values():
        longer = _longer(graph, [narrow for _, narrow in members]) if len(members) > 1 else None
        found += [longer] if longer else [e for e, _ in members]
    return found


def _longer(graph: Graph, members: list[Reduce]) -> Expression | None:
    """Return one sum for sums whose index maps are a constant step apart, as many as make a step of the loop."""
    count, ((axis, extent),) = len(members), members[0].axes
    members = sorted(members, key=lambda r: [_number(m.offset) for m in _maps(r)])
    first, second = (_maps(r) for r in members[:2])
    steps = {m: n.offset + m.offset * Size.of(-1) for m, n in zip(first, second, strict=False)}
    if not all(same(m.stride(axis), step * Size.of(count)) for m, step in steps.items()):
        return None
    for number, r in enumerate(members):
        if graph.map_affines(members[0].body, lambda m: Affine(m.terms, m.offset + steps[m] * Size.of(number))) is not r.body:  # noqa: B023
            return None

    def change(m: Affine) -> Affine:
        return tidy(Affine((*(t for t in m.terms if t[0] != axis), (axis, steps[m])), m.offset))

    body = graph.map_affines(members[0].body, change)
    return graph.intern(Reduce("add", members[0].type, ((axis, extent * Size.of(count)),), body))


def _maps(r: Reduce) -> list[Affine]:
    return [m for part in walk([r.body]) for m in affines(part)]


def _number(size: Size) -> int:
    """Return the part of a size that needs no launch."""
    return sum(c for c, factors in size.terms if not factors)


def _narrowed(graph: Graph, root: Expression, written: frozenset[int]) -> Expression:
    """Return an expression with parts of words read as the bytes (or halves) that they are; memory is little-endian."""

    def change(e: Expression) -> Expression | None:
        field = _field(e)
        if field is None or field[0].buffer in written or field[0].where:
            return None
        load, start, length = field
        word = WIDTH[load.type]
        unit = next((u for u in (8, 16, 32) if start // u == (start + length - 1) // u), word)
        if unit >= word:
            return None
        scale = Size.of(word // unit)
        index = Affine(tuple((a, s * scale) for a, s in load.index.terms), load.index.offset * scale + Size.of(start // unit))
        kind = f"u{word}"
        found = graph.make(Apply("cvt", kind, (graph.make(Load(load.buffer, f"u{unit}", tidy(index))),), (f"u{unit}",)))
        start %= unit
        if start:
            found = graph.make(Apply("shr", kind, (found, graph.make(Constant("b32", start)))))
        if start + length < unit:
            found = graph.make(Apply("and", f"b{word}", (found, graph.make(Constant(f"b{word}", (1 << length) - 1)))))
        return found

    return graph.replace(root, change)


def _field(e: Expression) -> tuple[Load, int, int] | None:
    """Return the word, first bit and length when an unsigned number is some bits of a word in memory."""
    if isinstance(e, Load):
        return (e, 0, WIDTH[e.type]) if WIDTH[e.type] in (32, 64) and e.type not in ("f32", "f64") else None
    if not isinstance(e, Apply) or e.type not in _LOGICAL or not e.args or any(not isinstance(a, Constant) for a in e.args[1:]):
        return None
    inside = _field(e.args[0])
    if inside is None or WIDTH[inside[0].type] != WIDTH[e.type]:
        return None
    load, start, length = inside
    by = [a.bits for a in e.args[1:] if isinstance(a, Constant)]
    if e.op == "shr" and 0 <= by[0] < length:
        return load, start + by[0], length - by[0]
    if e.op == "and" and by[0] and by[0] & (by[0] + 1) == 0:
        return load, start, min(length, by[0].bit_length())
    if e.op == "bfe" and by[0] < length and by[1] > 0:
        return load, start + by[0], min(length - by[0], by[1])
    return None


def written_out(graph: Graph, assigns: list[Assign]) -> list[Assign]:
    """Write out a short axis of outputs along which long sums read the same elements again, whole or in equal pieces."""
    axes = assigns[0].axes
    long = [r for r in graph.reductions([a.value for a in assigns]) if not all(n.constant for _, n in r.axes)]
    for axis, size in axes:
        again = sum(_reads_again(graph, r, axis) for r in long)
        width = _width(size.constant or 0, TOTALS // again) if again else 1
        others = [item for item in axes if item[0] != axis]
        if width < 2 or all(n.constant for _, n in others) or any(axis in w.axes for w in assigns[0].where):
            continue
        left = (size.constant or 0) // width
        named = (*others, (axis, Size.of(left))) if left > 1 else tuple(others)
        return [
            replace(a, axes=named, index=step(a.index), value=graph.map_affines(a.value, step))
            for a in assigns
            for step in (_step(axis, place, width, left) for place in range(width))
        ]
    return assigns


def _step(axis: str, place: int, width: int, left: int) -> Callable[[Affine], Affine]:
    def change(m: Affine) -> Affine:
        stride = m.stride(axis)
        rest = tuple(t for t in m.terms if t[0] != axis)
        walked = ((axis, stride * Size.of(width)),) if left > 1 and stride.terms else ()
        return tidy(Affine((*rest, *walked), m.offset + stride * Size.of(place)))

    return change


def _reads_again(graph: Graph, r: Reduce, axis: str) -> bool:
    """Tell whether a sum depends on an axis, but some of what it reads along its own axes does not."""
    own = {name for name, _ in r.axes}
    reads = [graph.free[id(e)] for e in walk([r.body]) if isinstance(e, (Load, Gather))]
    return axis in graph.free[id(r)] and any(own & free and axis not in free for free in reads)


def _width(extent: int, most: int) -> int:
    """Return the largest divisor of an extent that is not above `most`."""
    return next((w for w in range(min(extent, most), 1, -1) if extent % w == 0), 1)
