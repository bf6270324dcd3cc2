"""From many outputs to one formula: anti-unification of a trace, all outputs at once.

`unify` takes a vector of nodes, one an output, and returns one `Term` that describes them all: the same operations, and where
they differ, leaves that hold a vector of offsets.  Sums, maxima and minima are flattened; terms of one shape become a `reduce`
over a new axis, so that leaves below it hold a matrix, and so on.  A lane that has fewer terms than others has absent ones; an
element that is zero in some lanes and an array element in others is a padded load.

Lanes: the leading axis is the output, the others are reduction axes, slow to fast.  Offsets: >= 0 a byte offset, ABSENT where
the lane has no such term, ZERO where it reads nothing and gets 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gewu.ops.algebra import FAR, Arena, Ids, NotLifted
from gewu.ops.digits import digits_of
from gewu.ops.ir import FLOATS, WIDTH
from gewu.ops.rescale import ONE, Rescaling

ABSENT: Final = -1
ZERO: Final = -2
MOST_ITEMS = 1_500_000
_NUMPY: Final = {"f32": np.float32, "f64": np.float64, "f16": np.float16}


@dataclass(eq=False, slots=True)
class Term:
    """One node of the common formula.

    `kind`: load, const, index, scalar, apply, gather, reduce.  `values`: offsets (load) or integers (index) over the lanes of its
    `context`, the reductions around that matter to it.  `present`: for a reduce, which lanes have which terms.
    """

    kind: str
    type: str
    op: str = ""
    mods: tuple[str, ...] = ()
    children: tuple[Term, ...] = ()
    number: int = 0
    values: NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.int64))
    present: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    axis: str = ""
    context: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lanes:
    """What a vector of nodes stands for: outputs, then the terms of the reductions around, by the names of these."""

    extents: tuple[int, ...]
    axes: tuple[str, ...] = ()


_COMMUTATIVE: Final = {"add": ("add", "sub", "neg"), "max": ("max",), "min": ("min",)}
_FAMILY: Final = {op: family for family, ops in _COMMUTATIVE.items() for op in ops}


def _hoisted(nodes: Ids, shape: Lanes) -> tuple[Ids, Lanes]:
    """Leave out the reductions around along which all nodes are the same: the mean of a row is not another one for each term."""
    matrix = nodes.reshape(shape.extents)
    axes = list(shape.axes)
    for place in reversed(range(len(axes))):
        most = matrix.max(axis=place + 1)
        if ((matrix == np.expand_dims(most, place + 1)) | (matrix < 0)).all():
            matrix = most
            del axes[place]
    return matrix.reshape(-1), Lanes(matrix.shape, tuple(axes))


class Unifier:
    """Unify outputs of one trace; axes get names that are unique in it."""

    def __init__(self, arena: Arena, rescaling: Rescaling, places: Ids | None = None) -> None:
        self.arena, self.rescaling, self.places = arena, rescaling, places
        self.axes = 0
        self._memo: dict[tuple[Any, ...], Term] = {}
        self._names: dict[tuple[str, bytes], str] = {}

    def unify(self, nodes: Ids, shape: Lanes, as_type: str) -> Term:
        """Return the common formula of a vector of nodes.

        Args:
            nodes: one node a lane, flattened over `shape`; ABSENT where there is none.
            shape: the lanes: outputs, then reduction axes.
            as_type: how constants are to be read.

        Raises:
            NotLifted: the lanes have no common formula, or one that cannot be told.
        """
        arena = self.arena
        nodes = np.where(nodes >= 0, arena.canonical[nodes], ABSENT)
        nodes, shape = _hoisted(nodes, shape)
        key = (shape, as_type, nodes.tobytes())
        if key not in self._memo:
            arena.check_time()
            self._memo[key] = self._once(nodes, shape, as_type) if shape.axes else self._unify(nodes, shape, as_type)
        return self._memo[key]

    def _once(self, nodes: Ids, shape: Lanes, as_type: str) -> Term:
        """Unify outputs below which a reduction is the same but once: all channels of a head share their scores."""
        rows = nodes.reshape(shape.extents[0], -1)
        weights = np.random.default_rng(7).integers(1, 1 << 62, rows.shape[1]) | 1
        _, first, lanes = np.unique(rows @ weights, return_index=True, return_inverse=True)
        lanes = np.reshape(lanes, -1)
        if 2 * len(first) > len(rows) or (rows[first][lanes] != rows).any():
            return self._unify(nodes, shape, as_type)
        few = Lanes((len(first), *shape.extents[1:]), shape.axes)
        return self._spread(self.unify(rows[first].reshape(-1), few, as_type), lanes, lanes.tobytes())

    def _spread(self, term: Term, lanes: Ids, key: bytes) -> Term:
        """Return a term over outputs that take it from `lanes`; its reductions get names of their own."""
        if (id(term), key) not in self._memo:
            if term.kind == "reduce":
                self.axes += 1
                self._names[term.axis, key] = f"k{self.axes}"
            children = tuple(self._spread(child, lanes, key) for child in term.children)
            values, present = (a[lanes] if a.size else a for a in (term.values, term.present))
            axis, *context = (self._names.get((name, key), name) for name in (term.axis, *term.context))
            made = replace(term, children=children, values=values, present=present, axis=axis, context=tuple(context))
            self._memo[id(term), key] = made
        return self._memo[id(term), key]

    def _unify(self, nodes: Ids, shape: Lanes, as_type: str) -> Term:
        arena = self.arena
        there = nodes[nodes >= 0]
        if not len(there):
            return Term("const", as_type, number=0)
        numbers = np.flatnonzero(np.bincount(arena.signature[there]))
        signatures = [arena.signatures[n] for n in numbers]
        sums = [s for s in signatures if _FAMILY.get(s[0]) and _action(s, _FAMILY[s[0]], s[1]) != _KEEP]
        families = {_FAMILY[s[0]] for s in sums}
        if len(families) == 1 and [s[0] for s in signatures] != ["neg"]:
            return self._flatten(families.pop(), nodes, shape, sums[0][1])
        if all(s[0] == "const" for s in signatures):
            return self._constants(nodes, shape, as_type)
        if len(signatures) > 1:
            return self._padded(nodes, shape, as_type, signatures)
        return self._same(nodes, shape, signatures[0])

    def _same(self, nodes: Ids, shape: Lanes, signature: tuple[str, str, tuple[str, ...]]) -> Term:
        op, type_, mods = signature
        arena = self.arena
        there = nodes >= 0
        if op == "load":
            offsets = np.where(there, arena.data[nodes], ABSENT)
            return Term("load", type_, number=int(mods[0]), values=offsets.reshape(shape.extents), context=shape.axes)
        if op == "scalar":
            numbers = np.unique(arena.data[nodes[there]])
            if len(numbers) > 1:
                raise NotLifted("outputs use different scalar arguments")
            return Term("scalar", type_, number=int(numbers[0]))
        args = self._aligned(arena.args[nodes], nodes) if op in ("mul", "mulwide") else arena.args[nodes]
        columns = [k for k in range(4) if args[np.argmax(there), k] >= 0]
        children = tuple(
            self.unify(np.where(there, args[:, k], ABSENT), shape, operand_type(op, type_, mods, k)) for k in columns
        )
        if op == "gather":
            return Term("gather", type_, number=int(mods[0]), children=children)
        return Term("apply", type_, op, mods, children)

    def _aligned(self, args: Ids, nodes: Ids) -> Ids:
        """Swap the factors of products where they stand the other way round than in the first lane: compilers choose freely."""
        shapes = self.arena.shape[args[:, :2]]
        a, b = shapes[np.argmax(nodes >= 0)]
        swapped = (nodes >= 0) & (a != b) & (shapes == [b, a]).all(axis=1)
        out = args.copy()
        out[swapped, :2] = args[swapped, 1::-1]
        return out

    def _padded(self, nodes: Ids, shape: Lanes, as_type: str, signatures: list[Any]) -> Term:
        """Describe lanes that are zero in some places and something else in others."""
        arena = self.arena
        zero = (nodes >= 0) & arena.zero[nodes]
        rest = np.where(zero, ABSENT, nodes)
        left = np.unique(arena.signature[rest[rest >= 0]])
        if not zero.any() or len(left) != 1:
            names = sorted({s[0] for s in signatures})
            raise NotLifted("outputs are of different formulas: " + ", ".join(names[:6]))
        term = self._unify(rest, shape, as_type)
        if term.kind != "load":
            raise NotLifted("outputs are zero in some places and a formula in others")
        values = np.where(zero.reshape(shape.extents), ZERO, term.values)
        return Term("load", term.type, number=term.number, values=values, context=shape.axes)

    def _constants(self, nodes: Ids, shape: Lanes, as_type: str) -> Term:
        arena, there = self.arena, nodes >= 0
        bits = arena.data[nodes[there]]
        if (bits == bits[0]).all():
            return Term("const", as_type, number=int(bits[0]) & (2 ** max(WIDTH[as_type], 8) - 1))
        return self._varying(np.where(there, self.numbers(nodes, as_type), 0), shape, as_type)

    def _varying(self, numbers: NDArray[Any], shape: Lanes, as_type: str) -> Term:
        """Return a term for numbers that differ from lane to lane: an index, or an index made a float."""
        whole = np.round(numbers).astype(np.int64)
        if (whole != numbers).any():
            raise NotLifted("outputs hold constants that follow no index")
        if as_type in FLOATS:
            return Term(
                "apply",
                as_type,
                "cvt",
                ("s64", "rn"),
                (Term("index", "s64", values=whole.reshape(shape.extents), context=shape.axes),),
            )
        return Term("index", as_type, values=whole.reshape(shape.extents), context=shape.axes)

    def numbers(self, nodes: Ids, type_: str) -> NDArray[Any]:
        """Return constant nodes as numbers of a type."""
        bits = self.arena.data[nodes]
        if type_ in _NUMPY:
            return bits.astype(np.uint64).astype(f"u{WIDTH[type_] // 8}").view(_NUMPY[type_]).astype(np.float64)
        width = WIDTH[type_]
        return bits if width == 64 else (bits + (1 << (width - 1))) % (1 << width) - (1 << (width - 1))

    def _flatten(self, family: str, nodes: Ids, shape: Lanes, type_: str) -> Term:
        lane, item, sign, constant = self._expand(family, nodes, type_)
        lead = self.arena.lead[item].T[::-1]
        sort = np.lexsort((*lead[np.ptp(lead, axis=1) > 0], lane)) if len(item) else item
        lane, item, sign = lane[sort], item[sort], sign[sort]
        group = self._groups(item, sign)
        if self.places is not None and family == "add" and not shape.axes:
            group = self._neighbours(lane, item, group)
        parts: list[tuple[int, Term]] = []
        for number in range(int(group.max()) + 1 if len(group) else 0):
            chosen = group == number
            parts.append((int(sign[chosen][0]), self._part(family, lane[chosen], item[chosen], shape, type_)))
        there = nodes >= 0
        self._add_constant(parts, family, constant, there, shape, type_)
        return self._combine(family, parts, type_)

    def _add_constant(self, parts: Any, family: str, constant: Any, there: Any, shape: Lanes, type_: str) -> None:
        neutral = 0.0 if family == "add" else -np.inf if family == "max" else np.inf
        found = constant[there]
        if (found == neutral).all() and parts:
            return
        if (found == found[0]).all():
            parts.append((1, Term("const", type_, number=bits_of(float(found[0]), type_))))
        else:
            parts.append((1, self._varying(np.where(there, constant, 0), shape, type_)))

    def _part(self, family: str, lane: Ids, item: Ids, shape: Lanes, type_: str) -> Term:
        lanes = int(np.prod(shape.extents))
        counts = np.bincount(lane, minlength=lanes)
        most = int(counts.max())
        column = np.arange(len(lane)) - np.repeat(np.cumsum(counts) - counts, counts)
        matrix = np.full((lanes, most), ABSENT)
        matrix[lane, column] = item
        if most == 1 and (counts.min() == 1 or (not shape.axes and self._is_load(item))):
            term = self.unify(matrix[:, 0], shape, type_)
            if counts.min() == 0 and term.kind == "load":
                term.values = np.where((matrix[:, 0] == ABSENT).reshape(term.values.shape), ZERO, term.values)
            return term
        if lanes * most > MOST_ITEMS:
            raise NotLifted("too many terms to look at")
        self.axes += 1
        axis = f"k{self.axes}"
        inner = Lanes((*shape.extents, most), (*shape.axes, axis))
        body = self.unify(matrix.reshape(-1), inner, type_)
        present = (matrix != ABSENT).reshape(inner.extents)
        return Term("reduce", type_, family, children=(body,), number=most, present=present, axis=axis, context=shape.axes)

    def _is_load(self, item: Ids) -> bool:
        return {self.arena.signatures[n][0] for n in np.flatnonzero(np.bincount(self.arena.signature[item]))} == {"load"}

    def _combine(self, family: str, parts: list[tuple[int, Term]], type_: str) -> Term:
        parts.sort(key=lambda part: (part[0] < 0, part[1].kind == "const"))
        sign, total = parts[0]
        if sign < 0:
            total = Term("apply", type_, "neg", children=(total,))
        for sign, term in parts[1:]:
            total = Term("apply", type_, family if sign > 0 else "sub", children=(total, term))
        return total

    def _groups(self, item: Ids, sign: Ids) -> NDArray[np.int64]:
        """Number the terms by shape: equal numbers, equal formulas."""
        _, group = np.unique(self.arena.shape[item] ^ sign.view(np.uint64), return_inverse=True)
        group = np.reshape(group, -1)
        if not len(group):
            return group
        first = np.full(int(group.max()) + 1, np.iinfo(np.int64).max)
        np.minimum.at(first, group, item)  # in the order in which the kernel made them: the same at all sizes
        rank = np.empty_like(first)
        rank[np.argsort(first, kind="stable")] = np.arange(len(first))
        return rank[group]

    def _neighbours(self, lane: Ids, item: Ids, group: Ids) -> Ids:
        """Split the terms of a stencil: few, at fixed distances from the output, but not evenly spaced."""
        assert self.places is not None
        out, fresh = group.copy(), int(group.max()) + 1 if len(group) else 0
        for number in range(fresh):
            chosen = np.flatnonzero(group == number)
            counts = np.bincount(lane[chosen])
            most = int(counts.max())
            if not 2 < most <= 64:
                continue
            full = chosen[lane[chosen] == int(counts.argmax())]
            lead = self.arena.lead[item]
            near = np.flatnonzero((lead[chosen] < FAR).all(axis=0))
            if not len(near) or digits_of(lead[full][:, near].astype(np.int64)) is not None:
                continue
            distance = lead[chosen, near[0]] - self.places[lane[chosen]]
            values, label = np.unique(distance, return_inverse=True)
            if len(values) == most:
                out[chosen] = fresh + np.reshape(label, -1)
                fresh += most
        _, dense = np.unique(out, return_inverse=True)
        return np.reshape(dense, -1)

    def _expand(self, family: str, nodes: Ids, type_: str) -> tuple[Ids, Ids, Ids, NDArray[Any]]:
        """Take sums (maxima, minima) apart, all lanes at once: lane, node, sign of every term, and the constant of a lane."""
        arena = self.arena
        lane = np.flatnonzero(nodes >= 0)
        item, sign = nodes[lane], np.ones(len(lane), np.int64)
        power = np.tile(self.rescaling.start(item), (2, 1)) if family == "add" else np.full((2, len(lane)), ABSENT)
        constant = np.full(len(nodes), 0.0 if family == "add" else -np.inf if family == "max" else np.inf)
        done: list[tuple[Ids, Ids, Ids, Ids]] = []
        while len(lane):
            arena.check_time()
            item = arena.canonical[item]
            codes = np.array([_action(s, family, type_) for s in arena.signatures], np.int64)[arena.signature[item]]
            if family == "add":
                codes[arena.zero[item]] = _DROP
            if (power >= 0).any():
                item, power = self._peel(codes, item, power)
            if (final := codes == _KEEP).any():
                done.append((lane[final], item[final], sign[final], power[:, final]))
            if (const := codes == _CONST).any():
                numbers = self.numbers(item[const], type_) * (sign[const] if family == "add" else 1)
                {"add": np.add, "max": np.maximum, "min": np.minimum}[family].at(constant, lane[const], numbers)
            again = codes == _AGAIN
            parts = [[(lane[again], item[again], sign[again], power[:, again])]]
            parts += [self._split(code, *(x[..., codes == code] for x in (lane, item, sign, power))) for code in _SPLITS]
            lane, item, sign, power = (np.concatenate([p[i] for part in parts for p in part], axis=-1) for i in range(4))
            if sum(len(d[0]) for d in done) + len(lane) > MOST_ITEMS:
                raise NotLifted("too many terms to look at")
        if not done:
            empty = np.zeros(0, np.int64)
            return empty, empty, empty, constant
        lane, item, sign, power = (np.concatenate([d[i] for d in done], axis=-1) for i in range(4))
        raised = power[0] != power[1]
        if raised.any():
            item[raised] = self.rescaling.build(item[raised], power[0, raised], power[1, raised], type_)
        return lane, item, sign, constant

    def _peel(self, codes: Ids, item: Ids, power: Ids) -> tuple[Ids, Ids]:
        """Take factors of terms that are rescaled into their exponents; what has more of them is looked at again."""
        peeled, rest, plus = self.rescaling.peel(item, np.where(codes == _KEEP, power[0], ABSENT))
        codes[peeled & (self.rescaling.scale[rest] == plus) & (rest != ONE)] = _AGAIN
        return np.where(peeled, rest, item), np.stack([np.where(peeled, plus, power[0]), power[1]])

    def _split(self, code: int, lane: Ids, item: Ids, sign: Ids, power: Ids) -> list[tuple[Ids, Ids, Ids, Ids]]:
        arena = self.arena
        if not len(lane):
            return [(lane, item, sign, power)]
        a, b = arena.args[item, 0], arena.args[item, 1]
        if code in (_BOTH, _EXTREME):
            return [(lane, a, sign, power), (lane, b, sign, power)]
        if code == _LESS:
            return [(lane, a, sign, power), (lane, b, -sign, power)]
        return [(lane, a, -sign, power)]


_KEEP, _CONST, _DROP, _BOTH, _LESS, _NEGATE, _EXTREME, _AGAIN = range(8)
_SPLITS = (_BOTH, _LESS, _NEGATE, _EXTREME)


def _action(signature: tuple[str, str, tuple[str, ...]], family: str, type_: str) -> int:
    """Tell what taking a sum (maximum, minimum) apart does with a node."""
    op, own, mods = signature
    if op == "const":
        return _CONST
    if (
        own == "pred"
        or WIDTH[own] != WIDTH[type_]
        or (own in FLOATS) != (type_ in FLOATS)
        or {"rm", "rp", "rz", "sat"} & set(mods)
    ):
        return _KEEP
    if family != "add":
        return _EXTREME if op == family and own == type_ else _KEEP
    return {"add": _BOTH, "sub": _LESS, "neg": _NEGATE}.get(op, _KEEP)


def operand_type(op: str, type_: str, mods: tuple[str, ...], place: int) -> str:
    """Return the type in which an operation takes its operand at `place`."""
    if op == "select":
        return "pred" if place == 2 else type_
    if op == "cvt":
        return mods[0]
    if op in ("shl", "shr", "bfe", "bfi") and place > (1 if op == "bfi" else 0):
        return "b32"
    if op == "pack":
        return {"b64": "b32", "b32": "b16"}[type_]
    if op == "gather":
        return "s64"
    return type_


def bits_of(value: float, type_: str) -> int:
    """Return a number as raw bits of a type."""
    if type_ in _NUMPY:
        return int(np.array(value, _NUMPY[type_]).view(f"u{WIDTH[type_] // 8}"))
    if type_ == "bf16":
        return int(np.array(value, np.float32).view(np.uint32)) >> 16
    return int(value) & (2 ** WIDTH[type_] - 1)
