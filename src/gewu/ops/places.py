"""Elements whose place depends on data: rows found in an array and walked as arrays are, each place checked.

    table[words[i] n + j]   ->   base = words[i] n, once a row, checked for the first and the last j;  table[base + j]

A place is a sum in wrapping integers, so it can be taken apart and put together again; only a quotient and 32-bit sums do not
wrap alike.  Both are exact while the place itself lies in the array, and that is checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gewu.ops.ir import WIDTH
from gewu.ops.lower import Value, llvm_type
from gewu.ops.rewrite import Graph, tidy
from gewu.ops.sizes import Affine, Size
from gewu.ops.tensor import Apply, Constant, Expression, Gather, Index

if TYPE_CHECKING:
    from gewu.ops.nest import Nest

_WIDE: Final = frozenset({"s64", "u64", "b64"})
NARROW: Final = 1 << 31
"""Places from here on are refused where a 32-bit sum was taken apart."""

Terms = list[tuple[int, Expression]]


def straight(graph: Graph, root: Expression) -> Expression:
    """Write the place of every gather as `base + index map`, where it is one; indices of 32 bits keep their type."""

    def change(e: Expression) -> Expression | None:
        if not isinstance(e, Gather):
            return None
        return graph.make(Gather(e.buffer, e.type, _straight_place(graph, graph.replace(e.place, change))))

    return graph.replace(root, change)


def _straight_place(graph: Graph, place: Expression) -> Expression:
    divisor, inside = _quotient(place)
    terms, index, narrow = _wide_sum(graph, inside)
    factors = [*(c for c, _ in terms), *(c for size in (index.offset, *(s for _, s in index.terms)) for c, _ in size.terms)]
    if any(c % divisor for c in factors) or (narrow and divisor > 1 and not terms):
        return place
    base = None
    for c, part in terms:
        if c != divisor:
            part = graph.make(Apply("mul", "b64", (part, graph.make(Constant("b64", c // divisor)))))
        base = graph.make(Apply("add", "b64", (base, part))) if base else part
    if base is None:
        return place
    index = tidy(Affine(tuple((a, _divided(s, divisor)) for a, s in index.terms), _divided(index.offset, divisor)))
    if not index.terms and not index.offset.terms and not narrow:
        return base
    return graph.make(Apply("add", "b64", (base, graph.make(Index("s32" if narrow else "s64", index)))))


def _quotient(e: Expression) -> tuple[int, Expression]:
    """Return the divisor and the dividend of a place that counts bytes, one and the place itself else."""
    if isinstance(e, Apply) and e.type in _WIDE and len(e.args) == 2 and isinstance(e.args[1], Constant):
        by = e.args[1].bits
        if e.op == "div" and 0 < by < 1 << 32:
            return by, e.args[0]
        if e.op == "shr" and by < 32:
            return 1 << by, e.args[0]
    return 1, e


def _divided(size: Size, divisor: int) -> Size:
    return Size(tuple((c // divisor, factors) for c, factors in size.terms))


def _signed(e: Expression, bits: int) -> int | None:
    """Return the value of a constant of so many bits."""
    return (e.bits & (1 << bits) - 1) - (e.bits >> bits - 1 & 1) * (1 << bits) if isinstance(e, Constant) else None


def _scaled(sum_: tuple[Terms, Affine], factor: int) -> tuple[Terms, Affine]:
    size = Size.of(factor)
    terms, index = sum_
    scaled = Affine(tuple((a, s * size) for a, s in index.terms), index.offset * size)
    return [(c * factor, a) for c, a in terms], scaled


def _joined(a: tuple[Terms, Affine], b: tuple[Terms, Affine]) -> tuple[Terms, Affine]:
    return a[0] + b[0], tidy(Affine((*a[1].terms, *b[1].terms), a[1].offset + b[1].offset))


def _wide_sum(graph: Graph, e: Expression) -> tuple[Terms, Affine, bool]:
    """Return a 64-bit integer as a sum, and whether it is all one 32-bit sum that was taken apart."""
    factor, inside = 1, e
    if isinstance(e, Apply) and e.op == "mulwide" and e.type == "s32" and (by := _signed(e.args[1], 32)) and by > 0:
        factor, inside = by, e.args[0]
    elif isinstance(e, Apply) and e.op == "cvt" and e.type in _WIDE and e.mods == ("s32",):
        inside = e.args[0]
    if inside is e:
        return *_sum(graph, e, 64), False
    terms, index = _scaled(_sum(graph, inside, 32), factor)
    return terms, index, bool(index.terms or index.offset.terms or len(terms) > 1)


def _sum(graph: Graph, e: Expression, bits: int) -> tuple[Terms, Affine]:
    """Return an integer as a sum of constants times 64-bit values, and an index map."""
    number = _signed(e, bits)
    if number is not None:
        return [], Affine((), Size.of(number))
    if isinstance(e, Index) and WIDTH[e.type] == bits and (bits == 64 or e.type[0] != "u"):
        return [], e.value
    if isinstance(e, Apply) and WIDTH[e.type] == bits and not (bits == 32 and e.type[0] == "u"):
        if e.op in ("add", "sub") and len(e.args) == 2:
            left, right = (_sum(graph, a, bits) for a in e.args)
            return _joined(left, _scaled(right, -1 if e.op == "sub" else 1))
        if e.op == "mul" and (by := _signed(e.args[1], bits)) is not None:
            return _scaled(_sum(graph, e.args[0], bits), by)
        if e.op == "shl" and isinstance(e.args[1], Constant) and e.args[1].bits < bits - 1:
            return _scaled(_sum(graph, e.args[0], bits), 1 << e.args[1].bits)
    if bits == 64 and isinstance(e, Apply) and e.op == "mulwide" and e.type == "s32" and (by := _signed(e.args[1], 32)):
        return [(by, _extended(graph, e.args[0]))], Affine()
    return [(1, e if bits == 64 else _extended(graph, e))], Affine()


def _extended(graph: Graph, e: Expression) -> Expression:
    return graph.make(Apply("cvt", "s64", (e,), ("s32",)))


def gathered(nest: Nest, e: Gather) -> Value:
    """Emit a read whose place depends on data; places outside of the array are reported and not read."""
    slot, place = nest.slots.get(e.buffer, e.buffer), e.place
    along = place.args[1] if isinstance(place, Apply) and place.op == "add" and len(place.args) == 2 else None
    narrow = isinstance(along, Index) and along.type == "s32"
    length = nest.runtime((slot, e.type))
    if narrow:
        least = Value(length, "b64")
        length = nest.at(0, lambda: Value(nest.minimum(least.name, str(NARROW)), "b64"), ("limit", slot, e.type)).name
    if isinstance(place, Apply) and isinstance(along, Index) and _in_row(nest, place.args[0]):
        base = _row(nest, e, place.args[0], along.value, length)
        index = nest.lower.emit(f"add i64 {base}, {nest.affine(along.value)}")
    else:
        found = nest.lower.take(nest.value(place), "b64")
        outside = nest.lower.emit(f"icmp uge i64 {found}, {length}")
        nest.report(outside)
        index = nest.lower.emit(f"select i1 {outside}, i64 0, i64 {found}")
    pointer = nest.address(nest.pointer(slot), e.type, index)
    return Value(nest.lower.emit(f"load {llvm_type(e.type)}, ptr {pointer}"), e.type)


def _in_row(nest: Nest, base: Expression) -> bool:
    """Tell whether the code at hand lies directly in an innermost loop that a base does not depend on."""
    return nest.stack[-1].bounds is not None and nest.depth(nest.graph.free[id(base)]) < len(nest.stack) - 1


def _row(nest: Nest, e: Gather, base: Expression, along: Affine, length: str) -> str:
    """Return the base of a row; its first and last place are checked before the loop, which is left out where one is wrong."""
    bounds = nest.stack[-1].bounds
    assert bounds is not None
    (axis,) = nest.stack[-1].axes

    def make() -> Value:
        emit, name = nest.lower.emit, nest.lower.take(nest.value(base), "b64")
        stride = nest.affine(Affine((), along.stride(axis)))
        rest = emit(f"add i64 {name}, {nest.affine(Affine(tuple(t for t in along.terms if t[0] != axis), along.offset))}")
        wrong = ""
        for place in (bounds.lo, emit(f"sub i64 {bounds.hi}, 1")):
            end = emit(f"add i64 {rest}, {emit(f'mul i64 {place}, {stride}')}")
            outside = emit(f"icmp uge i64 {end}, {length}")
            wrong = emit(f"or i1 {wrong}, {outside}") if wrong else outside
        wrong = emit(f"and i1 {wrong}, {emit(f'icmp slt i64 {bounds.lo}, {bounds.hi}')}")
        nest.report(wrong)
        bounds.hi = emit(f"select i1 {wrong}, i64 {bounds.lo}, i64 {bounds.hi}")
        return Value(name, "b64")

    return nest.at(len(nest.stack) - 2, make, ("row", id(e), bounds.number)).name
