"""Tensor formulas written in Python objects, as a front end that makes programs of `tensor`.

    m, n, p = sizes("m n p")
    i, j, k = axes(i=m, j=n, k=p)
    a, b, c = array(0, "f32", m, p), array(1, "f32", p, n), array(2, "f32", m, n)
    matmul = program("matmul", assign(c[i, j], total(a[i, k] * b[k, j], over=k)))

Nothing here is parsed or executed: every operator builds a node.  An index is a sum of axes times sizes, `x[2 * i + k - 1]`; one
that leaves the array is written `x.at(i - 1, outside=0)`; one read from an array is a value, `table[word[i], j]`.  An axis
that a factor lacks is broadcast by omission.  `einsum("ik,kj->ij", c, a, b)` is short for an assignment of a sum.

Types are those of `ir`.  Elements of f16 and bf16 are converted to f32 when they are read and back when they are assigned, so all
arithmetic is in f32 or f64; numbers of Python take the type of what they meet; f32 and f64 do not mix without `cast`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from gewu.core.errors import InputError
from gewu.ops.ir import WIDTH
from gewu.ops.sizes import ONE, ZERO, Affine, Size
from gewu.ops.tensor import Apply, Assign, Constant, Expression, Gather, Index, Load, Program, Reduce, Scalar

_MINUS: Final = Size.of(-1)
_HALVES: Final = ("f16", "bf16")
_FLOATS: Final = ("f32", "f64")

Whole = int | Size


def _size(value: Whole) -> Size:
    return value if isinstance(value, Size) else Size.of(int(value))


class Place:
    """An index: a sum of axes times sizes, plus a size. `i`, `i + j - 1`, `2 * i` are places."""

    def __init__(self, terms: tuple[tuple[Axis, Size], ...], offset: Size) -> None:
        self.terms, self.offset = terms, offset

    def __add__(self, other: Place | Whole) -> Place:
        return _sum(self, _place(other))

    __radd__ = __add__

    def __sub__(self, other: Place | Whole) -> Place:
        return _sum(self, _place(other) * -1)

    def __rsub__(self, other: Whole) -> Place:
        return _sum(_place(other), self * -1)

    def __mul__(self, factor: Whole) -> Place:
        size = _size(factor)
        return Place(tuple((a, s * size) for a, s in self.terms), self.offset * size)

    __rmul__ = __mul__

    @property
    def affine(self) -> Affine:
        """This index as the map of `sizes`."""
        return Affine(tuple((a.name, s) for a, s in self.terms), self.offset)


class Axis(Place):
    """A loop variable with its extent."""

    def __init__(self, name: str, size: Whole) -> None:
        super().__init__(((self, ONE),), ZERO)
        self.name, self.size = name, _size(size)


def _place(value: Place | Whole) -> Place:
    return value if isinstance(value, Place) else Place((), _size(value))


def _sum(a: Place, b: Place) -> Place:
    strides: dict[Axis, Size] = dict(a.terms)
    for axis, stride in b.terms:
        strides[axis] = strides.get(axis, ZERO) + stride
    return Place(tuple((x, s) for x, s in strides.items() if s.terms), a.offset + b.offset)


def sizes(names: str) -> tuple[Size, ...]:
    """Return integers of the launch by name: `m, n = sizes("m n")`."""
    return tuple(Size.named(name) for name in names.split())


def axes(**extents: Whole) -> tuple[Axis, ...]:
    """Return loop variables: `i, j = axes(i=m, j=3)`."""
    return tuple(Axis(name, size) for name, size in extents.items())


@dataclass(frozen=True, eq=False)
class Value:
    """An expression with the type that its bits have."""

    expression: Expression
    type: str

    def __add__(self, other: Value | float) -> Value:
        return _binary("add", self, other)

    def __radd__(self, other: float) -> Value:
        return _binary("add", other, self)

    def __sub__(self, other: Value | float) -> Value:
        return _binary("sub", self, other)

    def __rsub__(self, other: float) -> Value:
        return _binary("sub", other, self)

    def __mul__(self, other: Value | float) -> Value:
        return _binary("mul", self, other)

    def __rmul__(self, other: float) -> Value:
        return _binary("mul", other, self)

    def __truediv__(self, other: Value | float) -> Value:
        return _binary("div", self, other)

    def __rtruediv__(self, other: float) -> Value:
        return _binary("div", other, self)

    def __and__(self, other: Value | int) -> Value:
        return _binary("and", self, other)

    def __or__(self, other: Value | int) -> Value:
        return _binary("or", self, other)

    def __xor__(self, other: Value | int) -> Value:
        return _binary("xor", self, other)

    def __lshift__(self, count: int) -> Value:
        return Value(Apply("shl", self.type, (self.expression, Constant("b32", count))), self.type)

    def __rshift__(self, count: int) -> Value:
        return Value(Apply("shr", self.type, (self.expression, Constant("b32", count))), self.type)

    def __neg__(self) -> Value:
        return Value(Apply("neg", self.type, (self.expression,)), self.type)

    def __lt__(self, other: Value | float) -> Value:
        return _compare("lt", self, other)

    def __le__(self, other: Value | float) -> Value:
        return _compare("le", self, other)

    def __gt__(self, other: Value | float) -> Value:
        return _compare("gt", self, other)

    def __ge__(self, other: Value | float) -> Value:
        return _compare("ge", self, other)


@dataclass(frozen=True, eq=False)
class Element(Value):
    """An element of an array: a value, and what may stand on the left of `assign`."""

    array: Array
    places: tuple[Place, ...]


class Array:
    """An array argument: its number, element type and shape; row by row in memory.

    Args:
        number: place among the arguments of the launch.
        kind: a type of `ir`.
        shape: sizes or numbers, slowest axis first.
    """

    def __init__(self, number: int, kind: str, *shape: Whole) -> None:
        if kind not in WIDTH or kind == "pred":
            raise InputError("unknown type of elements", key=f"array {number}", value=kind, allowed=", ".join(WIDTH))
        self.number, self.type, self.shape = number, kind, tuple(_size(s) for s in shape)
        strides = [ONE]
        for extent in reversed(self.shape[1:]):
            strides.append(strides[-1] * extent)
        self.strides = tuple(reversed(strides))[: len(self.shape)]

    def __getitem__(self, index: Place | Value | Whole | tuple[Place | Value | Whole, ...]) -> Value:
        """Return an element; an integer value as an index makes it a gather."""
        found = index if isinstance(index, tuple) else (index,)
        if len(found) != len(self.shape):
            raise InputError(
                "wrong number of indices", key=f"array {self.number}", value=len(found), allowed=str(len(self.shape))
            )
        if any(isinstance(p, Value) for p in found):
            return _wide(Gather(self.number, self.type, self._gathered(found)), self.type)
        places = tuple(_place(p) for p in found)  # type: ignore[arg-type]
        value = _wide(Load(self.number, self.type, self._flat(places).affine), self.type)
        return Element(value.expression, value.type, self, places)

    def at(self, *index: Place | Whole, outside: Value | float = 0) -> Value:
        """Return an element, or `outside` where an index is out of range."""
        places = tuple(_place(p) for p in index)
        inside = tuple(c.affine for p, s in zip(places, self.shape, strict=True) for c in _conditions(p, s))
        value = _wide(Load(self.number, self.type, self._flat(places).affine, inside), self.type)
        if not inside or (not isinstance(outside, Value) and outside == 0 and math.copysign(1, outside) > 0):
            return value
        return where(
            both(*(_index(c) >= 0 for p, s in zip(places, self.shape, strict=True) for c in _conditions(p, s))), value, outside
        )

    def _flat(self, places: Iterable[Place]) -> Place:
        total = Place((), ZERO)
        for place, stride in zip(places, self.strides, strict=True):
            total = total + place * stride
        return total

    def _gathered(self, index: tuple[Place | Value | Whole, ...]) -> Expression:
        known = self._flat(Place((), ZERO) if isinstance(p, Value) else _place(p) for p in index)
        total = None if not known.terms and not known.offset.terms else _index(known)
        for part, stride in zip(index, self.strides, strict=True):
            if isinstance(part, Value):
                place = cast(part, "s64")
                place = place if stride == ONE else place * _index(Place((), stride))
                total = place if total is None else total + place
        assert total is not None
        return total.expression


def _conditions(place: Place, extent: Size) -> list[Place]:
    """Return what must not be negative for an index to be inside an extent, without what holds by itself."""
    if isinstance(place, Axis) and place.size == extent:
        return []
    parts = [*(s.constant for _, s in place.terms), place.offset.constant]
    low = [] if all(p is not None and p >= 0 for p in parts) else [place]
    return [*low, _place(extent) - 1 - place]


def array(number: int, kind: str, *shape: Whole) -> Array:
    """Return an array argument: `a = array(0, "f32", m, n)`."""
    return Array(number, kind, *shape)


def scalar(number: int, kind: str) -> Value:
    """Return a scalar argument of the launch."""
    return Value(Scalar(number, kind), kind)


def constant(number: float, kind: str) -> Value:
    """Return a number as a value of a type."""
    if kind in ("f32", "f64", "f16"):
        bits = int.from_bytes(struct.pack({"f32": "<f", "f64": "<d", "f16": "<e"}[kind], number), "little")
    elif number != int(number):
        raise InputError("is not a whole number", value=number, allowed=f"a number of type {kind}")
    else:
        bits = int(number) & (1 << WIDTH[kind]) - 1
    return Value(Constant(kind, bits), kind)


def _index(place: Place, kind: str = "s64") -> Value:
    return Value(Index(kind, place.affine), kind)


def index(place: Place | Whole, kind: str = "s32") -> Value:
    """Return an index or a size as a value, converted to a float type where one is asked for."""
    return cast(_index(_place(place)), kind) if kind in _FLOATS else _index(_place(place), kind)


def _wide(e: Expression, kind: str) -> Value:
    return Value(Apply("cvt", "f32", (e,), (kind,)), "f32") if kind in _HALVES else Value(e, kind)


def cast(value: Value, kind: str, *, rounding: str = "") -> Value:
    """Convert a value; floats become integers towards zero unless `rounding` is "rni", clamped to the range."""
    if value.type == kind:
        return value
    into_float, from_float = kind in (*_FLOATS, *_HALVES), value.type in (*_FLOATS, *_HALVES)
    mods = ("rn",) if into_float else (rounding or "rzi",) if from_float else ()
    return Value(Apply("cvt", kind, (value.expression,), (value.type, *mods)), kind)


def bits(value: Value, kind: str) -> Value:
    """Return the bits of a value taken as another type of the same width."""
    return Value(value.expression, kind)


def _same(a: Value | float, b: Value | float) -> tuple[Value, Value]:
    kinds = [v.type for v in (a, b) if isinstance(v, Value)]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        raise InputError("types do not agree", value=" and ".join(kinds), hint="convert one with `cast`")
    first, second = (v if isinstance(v, Value) else constant(v, kinds[0]) for v in (a, b))
    return first, second


def _binary(op: str, a: Value | float, b: Value | float) -> Value:
    first, second = _same(a, b)
    return Value(Apply(op, first.type, (first.expression, second.expression)), first.type)


def _compare(how: str, a: Value | float, b: Value | float) -> Value:
    first, second = _same(a, b)
    return Value(Apply("setp", first.type, (first.expression, second.expression), (how,)), "pred")


def equal(a: Value | float, b: Value | float) -> Value:
    """Return whether two values are equal."""
    return _compare("eq", a, b)


def is_nan(a: Value) -> Value:
    """Return whether a float is not a number."""
    return _compare("nan", a, a)


def both(*tests: Value) -> Value:
    """Return whether all tests hold."""
    found = tests[0]
    for test in tests[1:]:
        found = Value(Apply("and", "pred", (found.expression, test.expression)), "pred")
    return found


def where(test: Value, a: Value | float, b: Value | float) -> Value:
    """Return a where the test holds, else b."""
    first, second = _same(a, b)
    e = Apply("select", f"b{WIDTH[first.type]}", (first.expression, second.expression, test.expression))
    return Value(e, first.type)


def apply(op: str, *args: Value) -> Value:
    """Return an operation of `ir`, or a function of `tensor.MATH`, of values of one type."""
    return Value(Apply(op, args[0].type, tuple(a.expression for a in args)), args[0].type)


def mulwide(a: Value, b: Value | int) -> Value:
    """Return the full product of two integers, twice as wide."""
    first, second = _same(a, b)
    kind = f"{first.type[0]}{2 * WIDTH[first.type]}"
    return Value(Apply("mulwide", first.type, (first.expression, second.expression)), kind)


def exp(x: Value) -> Value:
    """Return e^x."""
    return apply("exp", x)


def log(x: Value) -> Value:
    """Return the natural logarithm."""
    return apply("log", x)


def tanh(x: Value) -> Value:
    """Return the hyperbolic tangent."""
    return apply("tanh", x)


def sigmoid(x: Value) -> Value:
    """Return 1 / (1 + e^-x)."""
    return apply("sigmoid", x)


def erf(x: Value) -> Value:
    """Return the error function."""
    return apply("erf", x)


def sqrt(x: Value) -> Value:
    """Return the square root."""
    return apply("sqrt", x)


def rsqrt(x: Value) -> Value:
    """Return one over the square root."""
    return apply("rsqrt", x)


def absolute(x: Value) -> Value:
    """Return the magnitude."""
    return apply("abs", x)


def minimum(a: Value | float, b: Value | float) -> Value:
    """Return the smaller one; the other one when one is NaN."""
    return _binary("min", a, b)


def maximum(a: Value | float, b: Value | float) -> Value:
    """Return the larger one; the other one when one is NaN."""
    return _binary("max", a, b)


def reduce(kind: str, body: Value, over: Axis | tuple[Axis, ...], inside: tuple[Place, ...] = ()) -> Value:
    """Combine `body` over all points of axes (where all of `inside` are >= 0) with add, mul, max or min."""
    along = over if isinstance(over, tuple) else (over,)
    e = Reduce(kind, body.type, tuple((a.name, a.size) for a in along), body.expression, tuple(p.affine for p in inside))
    return Value(e, body.type)


def total(body: Value, over: Axis | tuple[Axis, ...], inside: tuple[Place, ...] = ()) -> Value:
    """Return the sum over axes."""
    return reduce("add", body, over, inside)


def largest(body: Value, over: Axis | tuple[Axis, ...], inside: tuple[Place, ...] = ()) -> Value:
    """Return the maximum over axes."""
    return reduce("max", body, over, inside)


def smallest(body: Value, over: Axis | tuple[Axis, ...], inside: tuple[Place, ...] = ()) -> Value:
    """Return the minimum over axes."""
    return reduce("min", body, over, inside)


def mean(body: Value, over: Axis | tuple[Axis, ...]) -> Value:
    """Return the mean over axes."""
    count = ONE
    for axis in over if isinstance(over, tuple) else (over,):
        count = count * axis.size
    return total(body, over) / index(count, body.type)


def assign(target: Value, value: Value | float, inside: tuple[Place, ...] = ()) -> Assign:
    """Write a value to `target`, an element of an array, at every point of the axes that its index names.

    Raises:
        InputError: the target is not an element.
    """
    if not isinstance(target, Element):
        raise InputError("only an element of an array can be assigned to", value=type(target).__name__)
    kind = target.array.type
    made = cast(value, kind) if isinstance(value, Value) else constant(value, kind)
    order = dict.fromkeys(axis for place in target.places for axis, _ in place.terms)
    index_map = target.array._flat(target.places).affine
    along = tuple((axis.name, axis.size) for axis in order)
    return Assign(target.array.number, kind, along, index_map, made.expression, tuple(p.affine for p in inside))


def einsum(formula: str, out: Array, *factors: Array) -> Assign:
    """Return the assignment of a sum of products: `einsum("ik,kj->ij", c, a, b)`.

    Raises:
        InputError: letters and ranks do not fit, or one letter has two extents.
    """
    left, _, right = formula.replace(" ", "").partition("->")
    names = left.split(",")
    if len(names) != len(factors) or any(len(n) != len(a.shape) for n, a in zip((*names, right), (*factors, out), strict=False)):
        raise InputError("letters do not fit the arrays", key="einsum", value=formula)
    extents: dict[str, Size] = {}
    for letters, a in zip((*names, right), (*factors, out), strict=True):
        for letter, extent in zip(letters, a.shape, strict=True):
            if extents.setdefault(letter, extent) != extent:
                raise InputError(f"axis {letter} has two extents", key="einsum", value=formula)
    by_name = {letter: Axis(letter, extent) for letter, extent in extents.items()}
    product = None
    for letters, a in zip(names, factors, strict=True):
        element = a[tuple(by_name[letter] for letter in letters)]
        product = element if product is None else product * element
    assert product is not None
    summed = tuple(axis for letter, axis in by_name.items() if letter not in right)
    target = out[tuple(by_name[letter] for letter in right)]
    return assign(target, total(product, summed) if summed else product)


def program(name: str, *assigns: Assign) -> Program:
    """Return a program, its axes renamed so that no two have one name."""
    naming = _Naming()
    return Program(name, tuple(naming.assign(a) for a in assigns))


class _Naming:
    def __init__(self) -> None:
        self.used: dict[str, int] = {}
        self.memo: dict[object, Expression] = {}
        self.free: dict[int, frozenset[str]] = {}
        self.held: list[Expression] = []

    def assign(self, a: Assign) -> Assign:
        names = {axis: self.fresh(axis) for axis, _ in a.axes}
        along = tuple((names[axis], size) for axis, size in a.axes)
        value = self.expression(a.value, names)
        where_ = tuple(_renamed(w, names) for w in a.where)
        return replace(a, axes=along, index=_renamed(a.index, names), value=value, where=where_)

    def fresh(self, name: str) -> str:
        count = self.used[name] = self.used.get(name, 0) + 1
        return name if count == 1 else self.fresh(f"{name}{count}")

    def axes(self, e: Expression) -> frozenset[str]:
        if id(e) not in self.free:
            match e:
                case Load():
                    found = e.index.axes.union(*(w.axes for w in e.where))
                case Index():
                    found = e.value.axes
                case Gather():
                    found = self.axes(e.place)
                case Apply():
                    found = frozenset().union(*(self.axes(a) for a in e.args))
                case Reduce():
                    found = self.axes(e.body).union(*(w.axes for w in e.where)) - {a for a, _ in e.axes}
                case _:
                    found = frozenset()
            self.free[id(e)] = found
            self.held.append(e)
        return self.free[id(e)]

    def expression(self, e: Expression, names: dict[str, str]) -> Expression:
        free = self.axes(e)
        unknown = free - names.keys()
        if unknown:
            raise InputError("an axis is neither of the output nor reduced over", value=sorted(unknown)[0])
        key = (id(e), tuple(sorted((axis, names[axis]) for axis in free)))
        if key not in self.memo:
            self.memo[key] = self._make(e, names)
        return self.memo[key]

    def _make(self, e: Expression, names: dict[str, str]) -> Expression:
        match e:
            case Load():
                return replace(e, index=_renamed(e.index, names), where=tuple(_renamed(w, names) for w in e.where))
            case Index():
                return replace(e, value=_renamed(e.value, names))
            case Gather():
                return replace(e, place=self.expression(e.place, names))
            case Apply():
                return replace(e, args=tuple(self.expression(a, names) for a in e.args))
            case Reduce():
                own = {axis: self.fresh(axis) for axis, _ in e.axes}
                inner = {**names, **own}
                along = tuple((own[axis], size) for axis, size in e.axes)
                where_ = tuple(_renamed(w, inner) for w in e.where)
                return replace(e, axes=along, body=self.expression(e.body, inner), where=where_)
        return e


def _renamed(affine: Affine, names: dict[str, str]) -> Affine:
    return Affine(tuple((names[axis], stride) for axis, stride in affine.terms), affine.offset)
