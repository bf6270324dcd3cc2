"""Index maps from numbers: the offsets in a common formula become sums of strides times digits.

Outputs in the order of their places, and terms of a reduction in the order of what they read, are counted in a mixed radix
whose digits are found greedily: as long as every column of offsets goes on linearly, the digit goes on.  Each digit is a loop.
Terms that some outputs lack (padding, triangular sums, ragged ends) become conditions: inequalities in one or two digits, or a
bound on an index.

What is found holds for the sizes of this run and is numbers only; `symbolise` makes sizes of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gewu.ops import tensor
from gewu.ops.digits import Digits, coordinates, digits_of, partial_digits_of
from gewu.ops.ir import WIDTH
from gewu.ops.sizes import Affine, Size
from gewu.ops.template import ABSENT, NotLifted, Term
from gewu.ops.tensor import Assign, Expression

Longs = NDArray[np.int64]
_SLOPES = (1, 2, 3, 4, -1, -2, -3, -4)


class Leaf:
    """A load or an index of the formula, with the reductions around it."""

    def __init__(self, term: Term, axes: tuple[Term, ...]) -> None:
        self.term, self.axes = term, axes
        self.valid = term.values >= 0 if term.kind == "load" else _mask(term.values.shape, axes)


def _mask(shape: tuple[int, ...], axes: tuple[Term, ...]) -> NDArray[np.bool_]:
    """Return which entries of a leaf stand for terms that are there."""
    mask = np.ones(shape, np.bool_)
    names = [axis.axis for axis in axes]
    for reduce in axes:
        own = (*reduce.context, reduce.axis)
        if set(own) <= set(names):
            dims = [0, *(names.index(name) + 1 for name in own)]
            wide = [shape[d] if d in dims else 1 for d in range(len(shape))]
            mask &= reduce.present.reshape(wide)
    return mask


def leaves_of(root: Term) -> list[Leaf]:
    """Return all loads and indices with the reductions around them."""
    found: list[Leaf] = []
    seen: set[tuple[int, tuple[int, ...]]] = set()

    def walk(term: Term, axes: tuple[Term, ...]) -> None:
        key = (id(term), tuple(map(id, axes)))
        if key in seen:
            return
        seen.add(key)
        if term.kind in ("load", "index"):
            found.append(Leaf(term, tuple(axis for axis in axes if axis.axis in term.context)))
        inner = (*axes, term) if term.kind == "reduce" else axes
        for child in term.children:
            walk(child, inner)

    walk(root, ())
    return found


class Fit:
    """The assignment that a group of outputs makes.

    Args:
        number: of the assignment.
        buffer, type_: what it writes.
        places: byte offsets of the outputs, in order.
        root: their formula.
        elements: types of the arrays.
        box: extents of the outputs, if they are known to be a box; else digits are looked for.
    """

    def __init__(
        self,
        number: int,
        buffer: int,
        type_: str,
        places: Longs,
        root: Term,
        elements: Mapping[int, str],
        box: Sequence[int] = (),
    ) -> None:
        self.number, self.buffer, self.type, self.root, self.elements = number, buffer, type_, root, elements
        self.places = places // (WIDTH[type_] // 8)
        self.leaves = leaves_of(root)
        self.inner = self._inner_digits()
        self.first = [leaf.term.values.reshape(len(places), -1)[:, 0] for leaf in self.leaves]
        self._box_digits(box) if box else self._outer_digits()

    def _box_digits(self, box: Sequence[int]) -> None:
        """Take the digits that are given."""
        rows = np.stack([self.places, *self.first], axis=1)
        self.extents = list(box)
        self.coordinate = np.stack(np.unravel_index(np.arange(len(rows)), self.extents), axis=1)
        after = [math.prod(self.extents[d + 1 :]) for d in range(len(box))]
        self.strides = np.stack([(rows[s] if e > 1 else rows[0]) - rows[0] for s, e in zip(after, box, strict=True)])
        self.base = rows[0]
        if not all(leaf.valid.all() for leaf in self.leaves) or (rows != self.base + self.coordinate @ self.strides).any():
            raise NotLifted("the places read and written follow no index that gewu recognises")

    def _candidates(self) -> Iterator[NDArray[np.bool_]]:
        """Yield sets of outputs whose first terms may be alike: those that have a first term, then those that lack none."""
        count = len(self.places)
        has = [leaf.valid.reshape(count, -1) for leaf in self.leaves]
        whole = np.logical_and.reduce([h.all(axis=1) for h in has]) if has else np.ones(count, np.bool_)
        some = np.logical_and.reduce([h[:, 0] for h in has]) if has else whole
        yield some
        if not (whole == some).all():
            yield whole

    def _outer_digits(self) -> None:
        for chosen in self._candidates():
            if chosen.any() and self._try_outer(chosen):
                return
        if not self._try_partial():
            raise NotLifted("the places read and written follow no index that gewu recognises")

    def _try_partial(self) -> bool:
        """Find digits of all outputs at once, from the first terms of those that lack none: they need not be a box."""
        count = len(self.places)
        known = [leaf.valid.reshape(count, -1) for leaf in self.leaves]
        whole = np.stack([np.ones(count, np.bool_), *(k.all(axis=1) for k in known)], axis=1)
        rows = np.stack([self.places, *self.first], axis=1)
        digits = partial_digits_of(rows, whole)
        if digits is None or not whole.any(axis=0).all():
            return False
        self.extents, self.coordinate = coordinates(digits, count)
        self.strides = np.array([stride for _, stride in reversed(digits)], np.int64).reshape(len(digits), rows.shape[1])
        relative = rows - self.coordinate @ self.strides
        self.base = np.take_along_axis(relative, whole.argmax(axis=0)[None], axis=0)[0]
        return bool(((relative == self.base) | ~whole).all())

    def _try_outer(self, chosen: NDArray[np.bool_]) -> bool:
        rows = np.stack([self.places, *self.first], axis=1)
        some = rows[chosen]
        digits = digits_of(some)
        if digits is None or any(stride[0] <= 0 for _, stride in digits):
            return False
        digits.sort(key=lambda d: -int(d[1][0]))
        extents, coordinate = self._decode(digits, bool(chosen.all()))
        if int(np.prod(extents)) != len(self.places):
            return False
        origin = coordinate[chosen][0]
        self.extents, self.coordinate = extents, coordinate
        self.strides = np.array([stride for _, stride in digits], np.int64).reshape(len(digits), rows.shape[1])
        self.base = some[0] - origin @ self.strides
        predicted = self.base + coordinate @ self.strides
        return bool((predicted[chosen] == some).all() and (predicted[:, 0] == self.places).all())

    def _decode(self, digits: Digits, complete: bool) -> tuple[list[int], Longs]:
        relative = self.places - self.places.min()
        columns, extents = [], []
        for place, (radix, stride) in enumerate(digits):
            step = int(stride[0])
            column = relative // step
            if place:
                column = column % max(1, int(digits[place - 1][1][0]) // step)
            columns.append(column)
            extents.append(radix if complete else int(column.max()) + 1)
        return extents, np.stack(columns, axis=1) if columns else np.zeros((len(relative), 0), np.int64)

    def _inner_digits(self) -> dict[str, tuple[list[int], list[Longs], list[int]]]:
        """Return for each reduction its radices (slow first), the strides of each leaf below it, and which leaves these are."""
        found: dict[str, tuple[list[int], list[Longs], list[int]]] = {}
        for reduce in {id(axis): axis for leaf in self.leaves for axis in leaf.axes}.values():
            below = [i for i, leaf in enumerate(self.leaves) if reduce in leaf.axes]
            rows = self._along(reduce, below)
            digits = digits_of(rows)
            if digits is None:
                raise NotLifted("the terms of a sum follow no index that gewu recognises")
            digits.reverse()
            found[reduce.axis] = ([r for r, _ in digits], [s for _, s in digits], below)
        return found

    def _along(self, reduce: Term, below: list[int]) -> Longs:
        """Return the offsets of the leaves along a reduction, in a lane that lacks no term of it."""
        columns = []
        lanes: NDArray[np.bool_] | None = None
        for i in below:
            leaf = self.leaves[i]
            depth = leaf.axes.index(reduce) + 1
            values = np.moveaxis(leaf.term.values, depth, -1)
            valid = np.moveaxis(leaf.valid, depth, -1)
            pick = (slice(None),) + (0,) * (values.ndim - 2)
            columns.append(values[pick])
            lanes = valid[pick].all(axis=1) if lanes is None else lanes & valid[pick].all(axis=1)
        assert lanes is not None
        if not lanes.any():
            raise NotLifted("no output has all terms of its sum")
        return np.stack([c[int(lanes.argmax())] for c in columns], axis=1)

    def assign(self) -> Assign:
        """Return the assignment, with constant sizes."""
        self.names = [f"i{self.number}_{d}" for d in range(len(self.extents))]
        self._built: dict[int, Expression] = {}
        value = self._build(self.root, ())
        unit = self.strides[:, 0] if len(self.names) else np.zeros(0, np.int64)
        index = _affine(self.names, unit, int(self.base[0]))
        axes = tuple((n, Size.of(e)) for n, e in zip(self.names, self.extents, strict=True))
        return Assign(self.buffer, self.type, axes, index, value)

    def _build(self, term: Term, axes: tuple[Term, ...]) -> Expression:
        if id(term) not in self._built:
            self._built[id(term)] = self._make(term, axes)
        return self._built[id(term)]

    def _make(self, term: Term, axes: tuple[Term, ...]) -> Expression:
        if term.kind == "const":
            return tensor.Constant(term.type, term.number)
        if term.kind == "scalar":
            return tensor.Scalar(term.number, term.type)
        if term.kind == "load":
            place = next(i for i, leaf in enumerate(self.leaves) if leaf.term is term)
            index = self._index(place, WIDTH[term.type] // 8)
            own = self.elements.get(term.number, term.type)
            type_ = own if WIDTH[own] == WIDTH[term.type] and term.type[0] == "b" else term.type
            return tensor.Load(term.number, type_, index, self._padding(place))
        if term.kind == "index":
            place = next(i for i, leaf in enumerate(self.leaves) if leaf.term is term)
            return tensor.Index(term.type, self._index(place, 1))
        if term.kind == "gather":
            size = WIDTH[term.type] // 8
            place = self._build(term.children[0], axes)
            if size > 1:
                place = tensor.Apply("div", "s64", (place, tensor.Constant("s64", size)))
            return tensor.Gather(term.number, term.type, place)
        inner = (*axes, term) if term.kind == "reduce" else axes
        children = tuple(self._build(child, inner) for child in term.children)
        if term.kind == "reduce":
            if term.axis not in self.inner:
                raise NotLifted("a sum of equal terms")
            radices, _, below = self.inner[term.axis]
            names = self._axis_names(term)
            where = self._ragged(term, below) if not term.present.all() else ()
            sized = tuple((n, Size.of(r)) for n, r in zip(names, radices, strict=True))
            return _reduced(term, sized, children[0], where)
        if term.op.endswith("_of_minus"):
            children = (tensor.Apply("neg", term.type, children),)
        return tensor.Apply(term.op.removesuffix("_of_minus"), term.type, children, term.mods)

    def _axis_names(self, reduce: Term) -> list[str]:
        return [f"{reduce.axis}_{self.number}_{d}" for d in range(len(self.inner[reduce.axis][0]))]

    def _index(self, place: int, unit: int) -> Affine:
        leaf = self.leaves[place]
        names, strides = list(self.names), list(self.strides[:, place + 1]) if self.names else []
        for reduce in leaf.axes:
            _, steps, below = self.inner[reduce.axis]
            names += self._axis_names(reduce)
            strides += [step[below.index(place)] for step in steps]
        numbers = np.array([*strides, self.base[place + 1]], np.int64)
        if (numbers % unit).any():
            raise NotLifted("an array is read at a place that is no whole element")
        return _affine(names, numbers[:-1] // unit, int(numbers[-1]) // unit)

    def _predicted(self, place: int, axes: Sequence[Term]) -> Longs:
        """Return the offsets of a leaf that its index gives, over (outputs, radices of `axes` ...), flattened to (n, k, ...)."""
        total = self.base[place + 1] + self.coordinate @ self.strides[:, place + 1]
        for reduce in axes:
            radices, steps, below = self.inner[reduce.axis]
            grid = np.zeros(1, np.int64)
            for radix, step in zip(radices, steps, strict=True):
                stride = int(step[below.index(place)]) if place in below else 0
                grid = (grid[:, None] + np.arange(radix) * stride).reshape(-1)
            total = total[..., None] + grid
        return total

    def _ragged(self, reduce: Term, below: list[int]) -> tuple[Affine, ...]:
        """Return the conditions under which an output has a term: found by looking which predicted terms are there."""
        present = reduce.present
        if present.ndim > 2:  # where an outer term lacks, so do its inner ones: that is no condition of theirs
            some = present.any(axis=-1, keepdims=True)
            first = present[(slice(None),) + (0,) * (present.ndim - 2)]
            if not (present == (some & first.reshape(len(first), *(1,) * (present.ndim - 2), -1))).all():
                raise NotLifted("an inner sum whose terms depend on the outer one")
            if first.all():
                return ()
            present = first
        predicted = np.zeros(present.shape, np.int64)
        actual = np.zeros(present.shape, np.int64)
        for salt, place in enumerate(below):
            leaf = self.leaves[place]
            at = leaf.axes.index(reduce) + 1
            values = np.moveaxis(leaf.term.values, at, -1)[(slice(None),) + (0,) * (leaf.term.values.ndim - 2)]
            weight = 1_000_003 ** (salt + 1)
            actual += values * weight
            predicted += self._predicted(place, [reduce]) * weight
        lane = np.arange(len(present))[:, None] * (1 << 50)
        there = np.isin(predicted + lane, (actual + lane)[present])
        if not (there.sum(axis=1) == present.sum(axis=1)).all():
            raise NotLifted("the terms that an output lacks follow no index")
        radices = self.inner[reduce.axis][0]
        bounds = [(self._index(i, 1), self._predicted(i, [reduce]).reshape(-1)) for i in below if len(self.leaves[i].axes) == 1]
        return self._conditions(there, self.names + self._axis_names(reduce), self.extents + radices, bounds)

    def _padding(self, place: int) -> tuple[Affine, ...]:
        leaf = self.leaves[place]
        zero = leaf.term.values < ABSENT
        if not zero.any():
            return ()
        names, extents = list(self.names), list(self.extents)
        for reduce in leaf.axes:
            names += self._axis_names(reduce)
            extents += self.inner[reduce.axis][0]
        predicted = self._predicted(place, leaf.axes)
        if not (predicted.reshape(zero.shape)[leaf.valid] == leaf.term.values[leaf.valid]).all():
            raise NotLifted("padding that follows no index")
        return self._conditions(~zero, names, extents, [(self._index(place, 1), predicted.reshape(-1))])

    def _conditions(self, there: NDArray[np.bool_], names: list[str], extents: list[int], bounds: Any) -> tuple[Affine, ...]:
        """Return inequalities that hold exactly where `there` does; lanes come in the order of places, so digits are decoded."""
        count = len(self.extents)
        tensor_ = np.zeros(extents, np.bool_)
        rest = int(np.prod(extents[count:]))
        flat = np.ravel_multi_index(tuple(self.coordinate.T), tuple(self.extents)) if count else np.zeros(1, np.int64)
        tensor_.reshape(-1, rest)[flat] = there.reshape(len(flat), rest)
        found: list[tuple[Affine, NDArray[np.bool_]]] = []
        left = np.ones_like(tensor_)
        grids = np.indices(extents, sparse=True)
        forms = [form for index, _ in bounds for form in _forms(index, names)]
        limits = (limit for index, values in bounds for limit in self._limits(index, values, tensor_, flat))
        for constraint in itertools.chain(_searches(tensor_, names, grids, forms), limits):
            if (left & ~constraint[1]).any():
                found.append(constraint)
                left = left & constraint[1]
            if (left == tensor_).all():
                return _needed(found, tensor_)
        raise NotLifted("terms are left out by a rule that gewu does not recognise")

    def _limits(
        self, index: Affine, predicted: Longs, there: NDArray[np.bool_], flat: Longs
    ) -> Iterator[tuple[Affine, NDArray[np.bool_]]]:
        """Yield a bound from above and one from below on a whole index."""
        values = np.zeros_like(there, np.int64)
        rest = there.size // math.prod(self.extents)
        values.reshape(-1, rest)[flat] = predicted.reshape(len(flat), rest)
        low, high = int(values[there].min()), int(values[there].max())
        axes, strides, offset = [n for n, _ in index.terms], [_number(s) for _, s in index.terms], _number(index.offset)
        yield _affine(axes, [-s for s in strides], high - offset), values <= high
        yield _affine(axes, strides, offset - low), values >= low


def _reduced(term: Term, axes: Any, body: Expression, where: tuple[Affine, ...]) -> Expression:
    """Return a reduction; scalar arguments that multiply all terms of a sum multiply the sum instead."""
    scales: list[Expression] = []
    if term.op == "add" and term.type in ("f32", "f64"):
        body, scales = _unscaled(body, term.type)
    total: Expression = tensor.Reduce(term.op, term.type, axes, body, where)
    for scale in scales:
        total = tensor.Apply("mul", term.type, (total, scale))
    return total


def _unscaled(e: Expression, type_: str) -> tuple[Expression, list[Expression]]:
    """Return a product without its scalar arguments, and these; one that is nothing else stays."""
    if not (isinstance(e, tensor.Apply) and e.op == "mul" and e.type == type_ and not set(e.mods) & {"rm", "rp", "rz", "sat"}):
        return e, []
    (a, first), (b, second) = (_unscaled(arg, type_) for arg in e.args)
    if isinstance(b, tensor.Scalar):
        return a, [*first, *second, b]
    if isinstance(a, tensor.Scalar):
        return b, [*first, *second, a]
    return tensor.Apply("mul", type_, (a, b), e.mods), [*first, *second]


def _number(size: Size) -> int:
    value = size.constant
    assert value is not None
    return value


def _affine(names: Sequence[str], strides: Sequence[Any], offset: int) -> Affine:
    return Affine(tuple((n, Size.of(int(s))) for n, s in zip(names, strides, strict=True)), Size.of(offset))


def _needed(found: list[tuple[Affine, NDArray[np.bool_]]], there: NDArray[np.bool_]) -> tuple[Affine, ...]:
    """Return conditions without those that follow from the others: what is tight at the sizes of a run need not be a rule."""
    for constraint in list(found):
        others = [other for other in found if other is not constraint]
        if others and (np.logical_and.reduce([holds for _, holds in others]) == there).all():
            found = others
    return tuple(affine for affine, _ in found)


def _forms(index: Affine, names: list[str]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the coordinates in an index: digits, and factors, whose strides are small multiples of one of the strides."""
    strides = [_number(index.stride(name)) for name in names]
    for unit in sorted({abs(s) for s in strides if s}):
        chosen = [d for d, s in enumerate(strides) if s and s % unit == 0 and abs(s) <= _SLOPES[3] * unit]
        if len(chosen) > 2:
            yield chosen, [strides[d] // unit for d in chosen]


def _searches(
    there: NDArray[np.bool_], names: list[str], grids: Any, forms: list[tuple[list[int], list[int]]]
) -> Iterator[tuple[Affine, NDArray[np.bool_]]]:
    """Yield inequalities in one digit, in two, then in those of a form, that hold where `there` does, as tight as can be."""
    dims = range(there.ndim)
    for d in dims:
        line = there.any(axis=tuple(k for k in dims if k != d))
        if line.any() and not line.all():
            yield from _pair(there, [names[d]], [grids[d]], [1])
    for a, b in itertools.combinations(dims, 2):
        plane = there.any(axis=tuple(k for k in dims if k not in (a, b)))
        if plane.all() or not plane.any():
            continue
        x, y = np.indices(plane.shape)
        for p, q in itertools.product(_SLOPES[:4], _SLOPES):
            if np.gcd(p, q) != 1:
                continue
            line = p * x + q * y
            low, high = line[plane].min(), line[plane].max()
            if (plane == ((line >= low) & (line <= high))).all():
                yield from _pair(there, [names[a], names[b]], [grids[a], grids[b]], [p, q])
                break
    for chosen, slopes in forms:
        yield from _pair(there, [names[d] for d in chosen], [grids[d] for d in chosen], slopes)


def _pair(
    there: NDArray[np.bool_], names: list[str], grids: Any, slopes: list[int]
) -> Iterator[tuple[Affine, NDArray[np.bool_]]]:
    line = sum(s * g for s, g in zip(slopes, grids, strict=True))
    whole = np.broadcast_to(line, there.shape)
    low, high = int(whole[there].min()), int(whole[there].max())
    yield _affine(names, slopes, -low), whole >= low
    yield _affine(names, [-s for s in slopes], high), whole <= high
