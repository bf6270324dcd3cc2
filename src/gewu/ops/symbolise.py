"""Sizes from numbers: the same formula found in several runs of different sizes becomes one formula in the sizes.

Every constant size in the programs of the runs stands at the same place of each; the numbers there, one a run, are looked up
among simple expressions of the launch's integers, simplest first.  Runs are chosen with sizes that have nothing in common, so
that an expression that fits all of them is hardly a coincidence; `verify` has the last word.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from gewu.ops import tensor
from gewu.ops.sizes import Affine, Ceil, Size
from gewu.ops.template import NotLifted

Values = tuple[int, ...]
_MULTIPLES = (2, 3, 4, 8, 9, 5, 6, 7, 16, 25, 27, 32, 49, 64, 10, 12, 36, 81, 128, 256, 512, 1024)  # taps of a window too
MOST_FACTORS = 300
MOST_NAMES = 6
_NEAR, _FAR = 8, 24
_DIVISORS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class _Form:
    """A size to be: its values in all runs, which are many to look through, and how it is made, which one of them needs."""

    __slots__ = ("make", "values")

    def __init__(self, values: Values, make: Callable[[], Size]) -> None:
        self.values, self.make = values, make

    def __add__(self, other: _Form) -> _Form:
        return _Form(tuple(map(operator.add, self.values, other.values)), lambda: self.make() + other.make())

    def __mul__(self, other: _Form) -> _Form:
        return _Form(tuple(map(operator.mul, self.values, other.values)), lambda: self.make() * other.make())

    def plus(self, number: int) -> _Form:
        """Return the sum with a number."""
        return _Form(tuple(v + number for v in self.values), lambda: self.make() + Size.of(number))

    def times(self, number: int) -> _Form:
        """Return a multiple."""
        return _Form(tuple(v * number for v in self.values), lambda: self.make() * Size.of(number))

    def ceil(self, number: int) -> _Form:
        """Return the quotient by a number, rounded up."""
        return _Form(tuple(-(-v // number) for v in self.values), lambda: Size.named(Ceil(self.make(), Size.of(number))))

    def over(self, other: _Form) -> _Form:
        """Return the quotient, rounded up."""
        values = tuple(-(-v // w) for v, w in zip(self.values, other.values, strict=True))
        return _Form(values, lambda: Size.named(Ceil(self.make(), other.make())))


class Sizes:
    """Expressions of launch integers by their values in all runs.

    Args:
        launches: the integers of the runs.
        names: which of them vary.
        passes: quotients that are as good as integers of the launch.
    """

    def __init__(self, launches: Sequence[Mapping[str, int]], names: Sequence[str], passes: Sequence[Size] = ()) -> None:
        self.known: dict[Values, _Form] = {}
        self._levels = [self._linear, self._products, self._sums]
        sizes = [*map(Size.named, names), *passes]
        self._plain = [_Form(tuple(size.value(launch) for launch in launches), lambda size=size: size) for size in sizes]
        self._factors: list[_Form] = []

    def find(self, values: Values) -> Size:
        """Return the simplest size with these values.

        Raises:
            NotLifted: there is none among those tried.
        """
        if len(set(values)) == 1:
            return Size.of(values[0])
        while True:
            if values in self.known:
                return self.known[values].make()
            negative = tuple(-v for v in values)
            if negative in self.known:
                return self.known[negative].make() * Size.of(-1)
            if not self._levels:
                return self._multiple(values)
            for form in self._levels.pop(0)():
                self.known.setdefault(form.values, form)

    def _multiple(self, values: Values) -> Size:
        """Return a long product, as strides are, or one of two sizes near launch integers plus a number: corners of a frame."""
        for form in self._plain:
            quotient = _over(values, form.values)
            if quotient and (len(set(quotient)) == 1 or quotient in self.known):
                return form.make() * self.find(quotient)
        steps = sorted(range(-_NEAR, _NEAR + 1), key=abs)
        near = {form.plus(c).values: form.plus(c) for c in reversed(steps) for form in self._plain}
        for c in steps:
            for form in near.values():
                other = near.get(_over(tuple(v - c for v in values), form.values) or ())
                if other:
                    return form.make() * other.make() + Size.of(c)
        raise NotLifted("a size follows from no size of the launch", value=values)

    def _linear(self) -> Iterator[_Form]:
        plain = self._plain
        yield from plain
        for c, v in itertools.product((-1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6, 6), plain):
            yield v.plus(c)
        for c, v in itertools.product(_MULTIPLES, plain):
            yield v.times(c)
        pairs = list(itertools.combinations(plain, 2))
        yield from (u * v for u, v in pairs)
        yield from (v * v for v in plain)
        yield from (v.ceil(d) for d in _DIVISORS for v in plain)
        yield from (v.plus(1 - d).ceil(d) for d in (2, 3, *_DIVISORS[1:]) for v in plain)
        differences = [u + v.times(-1) for u, v in itertools.permutations(plain, 2)]
        for c in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5):
            yield from (d.plus(c) for d in differences)
        yield from ((u + v).plus(c) for c in (0, 1, -1, -2) for u, v in pairs)
        yield from (u.over(v) for u, v in itertools.permutations(plain, 2))
        self._factors = [*plain, *(v.plus(c) for c in (-1, 1, -2, 2, -4, 4) for v in plain)]
        self._factors += [d.plus(c) for c in (1, 0) for d in differences]
        self._factors += [v.ceil(d) for d in _DIVISORS for v in plain]
        self._factors += [v.plus(1 - d).ceil(d) for d in (2, 4) for v in plain]
        yield from (v.plus(c).ceil(d) for d in (2, 3, 4) for c in range(-6, 7) for v in plain)

    def _products(self) -> Iterator[_Form]:
        yield from (v.times(a).plus(c) for a in (1, 2, 3, 4) for c in range(-_FAR, _FAR + 1) for v in self._plain)
        self._factors = [f for f in self._factors if len(set(f.values)) > 1][:MOST_FACTORS]  # a constant one would be by chance
        yield from (u * v for u, v in itertools.combinations_with_replacement(self._factors, 2))
        yield from (u * v * w for u, v, w in itertools.combinations_with_replacement(self._plain, 3))
        for c in _MULTIPLES[:16]:
            yield from ((u * v).times(c) for u, v in itertools.combinations_with_replacement(self._plain, 2))
        yield from ((u * v).ceil(d) for d in _DIVISORS for u, v in itertools.combinations(self._plain, 2))

    def _sums(self) -> Iterator[_Form]:
        if len(self._plain) > MOST_NAMES:
            return
        pairs = [u * v for u, v in itertools.combinations_with_replacement(self._plain, 2)]
        products = [*self._plain, *pairs]
        for a, b in itertools.product((1, -1, 2, -2), repeat=2):
            for u, v in itertools.combinations(products, 2):
                for c in (0, 1, -1):
                    yield (u.times(a) + v.times(b)).plus(c)
        for d, e in itertools.product((-4, -3, -2, 2, 3, 4), (-3, -2, -1, 0, 1, 2, 3)):
            yield from (u.times(d).plus(e) for u in pairs)
        yield from (u * p for u in self._factors for p in pairs)
        yield from (a * b * c * d for a, b, c, d in itertools.combinations_with_replacement(self._plain, 4))


def _over(values: Values, by: Values) -> Values | None:
    """Return the quotients, if all are whole."""
    pairs = list(zip(values, by, strict=True))
    return tuple(v // w for v, w in pairs) if all(w and v % w == 0 for v, w in pairs) else None


def merge(things: Sequence[Any], sizes: Sizes, memo: dict[tuple[int, ...], Any] | None = None) -> Any:
    """Return the one program that stands for those of all runs.

    Raises:
        NotLifted: they differ in more than sizes.
    """
    memo = {} if memo is None else memo
    first = things[0]
    if isinstance(first, Size):
        return sizes.find(tuple(thing.value({}) for thing in things))
    if isinstance(first, tuple):
        if len({len(thing) for thing in things}) > 1:
            raise NotLifted("runs of different sizes give different formulas")
        return tuple(merge(parts, sizes, memo) for parts in zip(*things, strict=True))
    if is_dataclass(first) and not isinstance(first, type):
        key = tuple(map(id, things))
        if key not in memo:
            if len({type(thing) for thing in things}) > 1:
                raise NotLifted("runs of different sizes give different formulas")
            if isinstance(first, tensor.Constant) and len({thing.bits for thing in things}) > 1:
                memo[key] = _constant(things, sizes)
            else:
                names = [f.name for f in fields(first)]
                made = {name: merge([getattr(thing, name) for thing in things], sizes, memo) for name in names}
                memo[key] = _tidy(replace(first, **made))
        return memo[key]
    if any(thing != first for thing in things):
        raise NotLifted("runs of different sizes give different formulas", value=tuple(map(str, things)))
    return first


def _tidy(made: Any) -> Any:
    """Drop loop variables that do not move an index."""
    if isinstance(made, Affine):
        return Affine(tuple((name, size) for name, size in made.terms if size.terms), made.offset)
    return made


def _constant(things: Sequence[tensor.Constant], sizes: Sizes) -> tensor.Expression:
    """Return a constant that is a size of the launch, or one over it, as a number."""
    import numpy as np

    first = things[0]
    if first.type in ("f32", "f64"):
        words = np.array([thing.bits for thing in things], np.uint64)
        numbers = words.astype(np.uint32).view(np.float32).astype(float) if first.type == "f32" else words.view(np.float64)
        as_float = lambda size: tensor.Apply("cvt", first.type, (tensor.Index("s64", Affine((), size)),), ("s64", "rn"))  # noqa: E731
        whole = np.round(numbers)
        if (whole == numbers).all() and (np.abs(numbers) < 2**24).all():
            return as_float(sizes.find(tuple(int(n) for n in whole)))
        inverse = np.round(1.0 / numbers)
        if (np.abs(inverse * numbers - 1.0) < 1e-6).all() and (np.abs(inverse) < 2**24).all():
            return tensor.Apply("rcp", first.type, (as_float(sizes.find(tuple(int(n) for n in inverse))),))
        raise NotLifted("a constant changes with the sizes", value=tuple(numbers))
    bits = 64 if first.type.endswith("64") else 32
    signed = [t.bits - (1 << bits) if t.bits >> (bits - 1) else t.bits for t in things]
    return tensor.Index(first.type, Affine((), sizes.find(tuple(signed))))
