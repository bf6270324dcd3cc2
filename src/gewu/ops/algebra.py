"""Algebra on a trace by numbers: which nodes are equal, which have the same shape, where a value comes from first.

A trace of a kernel holds hundreds of thousands of nodes.  Instead of rewriting them one by one, every node is evaluated, all
lanes of an instruction at once, at random points and in real arithmetic: exact reciprocals, exact roots.  Two nodes with equal
values at two independent points are the same number (Schwartz and Zippel); so the Newton steps of a division collapse to a
quotient, the butterfly of a warp to one sum, a product with zero padding to zero.  Operations that are no algebra (comparison,
selection, bits, rounding to fewer bits) become smooth pseudo-random functions of their arguments: equal arguments give equal
values, nothing else.

A hash in which all elements of one array look alike gives each node its shape: equal shapes are the same formula at other
indices, whatever the order of the terms of a sum and however many of one shape there are (an output at the rim has fewer).

Limits: points are drawn from a fixed seed, so a coincidence (1e-18 a pair) is not excluded but checked later: `verify` compares
every lifted program with the interpreter.  Equality is of real numbers: what rounding adds on purpose (compensated sums) is
lost, what rounding does on purpose (adding and subtracting 1.5 2^23) is kept.
"""

from __future__ import annotations

import time
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.ops.ir import FLOATS
from gewu.ops.trace import Trace

Reals = NDArray[np.float64]
Ids = NDArray[np.int64]

NOT_A_NODE = -1
MAGIC = 2.0**22  # adding a constant of this size rounds to an integer: not algebra in float32
_TOLERANCE = 1e-10
_INFINITY = 1.3247179572447460
_SLOPE = 1.7320508075688772  # of the smooth maximum: with 1, the sum of exp(x - maximum) would be 1
FAR = 1e18


@cache
def mix(*words: Any) -> float:
    """Return a reproducible number in (0.6, 1.4) for a few words."""
    state = np.uint64(1469598103934665603)
    with np.errstate(over="ignore"):
        for letter in repr(words).encode():
            state = (state ^ np.uint64(letter)) * np.uint64(1099511628211)
        state ^= state >> np.uint64(29)
        state *= np.uint64(0xBF58476D1CE4E5B9)
    return 0.6 + 0.8 * float(state >> np.uint64(11)) / 2.0**53


def _scatter(values: NDArray[Any], salt: int) -> Reals:
    """Return independent uniform numbers in (0.5, 1.5) for integers (splitmix64)."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt * 0x632BE59BD9B4E019 & (2**64 - 1))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return 0.5 + (z >> np.uint64(11)).astype(np.float64) / 2.0**53


def hashed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return words mixed (splitmix64)."""
    with np.errstate(over="ignore"):
        z = words + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _few(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return words with about eight bits set each, so that a union of some tells which."""
    return words & hashed(words) & hashed(words ^ np.uint64(0xABCDEF)) | np.uint64(1) << (words & np.uint64(63))


class NotLifted(InputError):
    """A kernel is not recognised as a formula over whole arrays; it runs as it is written instead."""


class Arena:
    """The nodes of a trace, growable, with their values.

    Attributes:
        signatures: (operation, type, modifiers) by number.
        signature, args, data: as in `Trace`.
        exact: (2, n) values at two random points.
        shape: a number that equal formulas share whose array elements differ.
        moved: where the nodes of the trace are now; those that nothing written depends on are gone.
        lead: (n, 2 buffers) what tells the terms of a sum apart: least and mean byte offset of each array below a node; a large
            number where there is none.
    """

    def __init__(self, trace: Trace, buffers: list[int]) -> None:
        self.signatures = list(trace.signatures)
        live = _live(trace)
        self.moved = np.where(live, np.cumsum(live) - 1, NOT_A_NODE)
        self.signature, self.data = trace.signature[live], trace.data[live]
        self.args = np.where(trace.args[live] >= 0, self.moved[trace.args[live]], NOT_A_NODE)
        self.deadline = np.inf
        self.buffers = {buffer: column for column, buffer in enumerate(buffers)}
        self._number = {signature: i for i, signature in enumerate(self.signatures)}

    def check_time(self) -> None:
        """Give up when the processor time of this thread passes the deadline."""
        if time.thread_time() > self.deadline:
            raise NotLifted("takes too long to recognise")

    def number(self, op: str, type_: str, mods: tuple[str, ...] = ()) -> int:
        """Return the number of a signature, new or known."""
        key = (op, type_, mods)
        if key not in self._number:
            self._number[key] = len(self.signatures)
            self.signatures.append(key)
        return self._number[key]

    def batches(self) -> list[tuple[int, int]]:
        """Return ranges of nodes, in order, none of which uses another of its range."""
        newest = self.args.max(axis=1)
        change = np.flatnonzero(np.diff(self.signature)) + 1
        edges = [0, *change.tolist(), len(self.signature)]
        found = []
        for start, stop in pairwise(edges):
            while start < stop:
                inside = newest[start:stop] >= start
                end = start + int(inside.argmax()) if inside.any() else stop
                found.append((start, end))
                start = end
        return found

    def spread(self) -> None:
        """Make sums of products of `fma` and `dp4a`: the product first, then the sum."""
        fused = np.array([_is_fused(*s) for s in self.signatures])[self.signature]
        if not fused.any():
            return
        place = np.zeros(len(fused), np.int64)
        zero, count = self.number("const", "b32"), 1
        for start, stop in self.batches():  # all products of a batch, then all its sums: batches stay long
            length = stop - start
            count += length if fused[start] else 0
            place[start:stop] = np.arange(count, count + length)
            count += length
        signature, args, data = np.full(count, zero), np.full((count, 4), NOT_A_NODE), np.zeros(count, np.int64)
        moved = np.where(self.args >= 0, place[self.args], NOT_A_NODE)
        signature[place], args[place], data[place] = self.signature, moved, self.data
        batch = np.concatenate([np.full(stop - start, stop - start) for start, stop in self.batches()])
        sums, products = place[fused], place[fused] - batch[fused]
        for number in np.unique(self.signature[fused]):
            op, type_, mods = self.signatures[number]
            mine = self.signature[fused] == number
            at, over = products[mine], sums[mine]
            signature[at] = self.number("mul" if op == "fma" else "dp4a", type_, () if op == "fma" else mods)
            args[at, :2] = moved[fused][mine, :2]
            if op == "dp4a":
                args[at, 2] = 0  # the constant zero that stands in front
            signature[over] = self.number("add", type_)
            args[over] = NOT_A_NODE
            args[over, 0], args[over, 1] = at, moved[fused][mine, 2]
        self.signature, self.args, self.data = signature, args, data
        self.moved = np.where(self.moved >= 0, place[self.moved], NOT_A_NODE)

    def evaluate(self) -> None:
        """Compute `exact`, then merge equal nodes into `canonical`, then compute `shape` and `lead` on what is left."""
        self.ranges = self.batches()
        self.exact = self._values()
        self._merge()
        self.args = np.where(self.args >= 0, self.canonical[self.args], self.args)
        self.shape = self._shapes()
        self.lead = self._leads()

    def _values(self) -> Reals:
        values = np.zeros((2, len(self.signature)))
        with np.errstate(all="ignore"):
            for start, stop in self.ranges:
                signature = self.signatures[self.signature[start]]
                for sample in (0, 1):
                    values[sample, start:stop] = self._batch(signature, start, stop, values[sample], sample)
        return np.nan_to_num(values, nan=_INFINITY, posinf=_INFINITY, neginf=-_INFINITY)

    def _batch(self, signature: Any, start: int, stop: int, values: Reals, sample: int) -> Any:
        op, type_, mods = signature
        args, data = self.args[start:stop], self.data[start:stop]
        if op == "load":
            return _scatter(data * 64 + int(mods[0]), 7 + sample)
        if op == "scalar":
            return _scatter(data, 100 + sample)
        if op == "const":
            number = self.constant(np.arange(start, stop))
            return np.where(np.isfinite(number), number, _INFINITY * np.sign(number))
        v = [values[args[:, k]] for k in range(4) if args[0, k] >= 0]
        if op == "sub" and type_ in FLOATS:
            return self._difference(args, v)
        if op == "mul" and type_ in FLOATS and (args[:, 0] == args[:, 1]).any():
            return self._square(args, v)
        big = type_ == "f32" and any(self._has_magic(args[:, k]) for k in range(len(v)))
        if not big and not {"rm", "rp", "rz", "sat"} & set(mods):
            known = _real(op, type_, mods, v)
            if known is not None:
                return known
        if op in ("max", "min") and type_ != "pred":
            slope = _SLOPE if op == "max" else -_SLOPE
            return np.logaddexp(slope * v[0], slope * v[1]) / slope
        phase = sum(mix(op, type_, mods, k, sample) * x for k, x in enumerate(v))
        return 1.0 + 0.4 * np.sin(3.0 * phase + mix(op, type_, mods, sample))

    def _difference(self, args: Ids, v: list[Reals]) -> Reals:
        """Subtract; an element minus itself is a term like the others, not nothing: it may be the i = j of a sum over pairs."""
        loads = np.array([s[0] == "load" for s in self.signatures])
        same = loads[self.signature[args[:, 0]]] & loads[self.signature[args[:, 1]]] & (v[0] == v[1])
        return np.where(same, _scatter(args[:, 0], 31), v[0] - v[1])

    def _square(self, args: Ids, v: list[Reals]) -> Reals:
        """Multiply; the square of a difference of elements is not that of the opposite one, or pairs would lose their order."""
        subtractions = np.array([s[0] == "sub" for s in self.signatures])
        loads = np.array([s[0] == "load" for s in self.signatures])
        odd = (args[:, 0] == args[:, 1]) & subtractions[self.signature[args[:, 0]]]
        odd &= (
            loads[self.signature[np.maximum(self.args[args[:, 0], 0], 0)]]
            & loads[self.signature[np.maximum(self.args[args[:, 0], 1], 0)]]
        )
        return v[0] * v[1] + np.where(odd, 0.1 * v[0] ** 3, 0.0)

    def _shapes(self) -> NDArray[np.uint64]:
        """Return the shape of every node: a set of terms for sums and maxima, hashed; anything else is a set of one."""
        self._terms = np.zeros(len(self.signature), np.uint64)  # the set, as a few bits for each member
        self._extreme = np.zeros_like(self._terms)
        for start, stop in self.ranges:
            self._shape(start, stop)
        return hashed(self._terms)

    def _shape(self, start: int, stop: int) -> None:
        terms, (op, type_, mods) = self._terms, self.signatures[self.signature[start]]
        args, word = self.args[start:stop], np.uint64(int(mix(op, type_, mods) * 2**52))
        columns = [args[:, k] for k in range(4) if args[0, k] >= 0]
        if op == "const":
            number = self.constant(np.arange(start, stop))
            whole = (number == np.round(number)) & (np.abs(number) < 2**23) & (self.data[start:stop] < 2**23)
            terms[start:stop] = np.where(
                whole & (number == 0), np.uint64(0), _few(hashed(self.data[start:stop].astype(np.uint64) ^ word))
            )
        elif op == "scalar":
            terms[start:stop] = _few(hashed(self.data[start:stop].astype(np.uint64) ^ word))
        elif op in ("add", "max", "min") and type_ != "pred":
            salt = np.uint64(0 if op == "add" else 0x9E3779B97F4A7C15)
            parts = [self._members(column, op, type_) for column in columns]
            own = parts[0] | parts[1]
            terms[start:stop] = own
            if op != "add":
                self._extreme[start:stop] = own
                terms[start:stop] = _few(hashed(own ^ salt))
        elif op in ("sub", "neg") and type_ in FLOATS:
            opposite = _few(hashed(terms[columns[-1]] ^ np.uint64(0x5851F42D4C957F2D)))
            terms[start:stop] = opposite | (terms[columns[0]] if op == "sub" else np.uint64(0))
        else:
            total = np.full(stop - start, word)
            for k, column in enumerate(columns):
                part = hashed(terms[column] + np.uint64(0 if op == "mul" else k + 1))
                total = total + part
            terms[start:stop] = _few(hashed(total))
        zero = self.zero[start:stop]
        terms[start:stop][zero] = 0

    def append(self, op: str, type_: str, columns: list[Ids]) -> Ids:
        """Add nodes to a graph that has been evaluated; they are equal to no others."""
        start, count = len(self.signature), len(columns[0])
        made = np.arange(start, start + count)
        args = np.full((count, 4), NOT_A_NODE)
        args[:, : len(columns)] = np.stack(columns, axis=1)
        self.signature = np.concatenate([self.signature, np.full(count, self.number(op, type_))])
        self.args, self.canonical = np.concatenate([self.args, args]), np.concatenate([self.canonical, made])
        nothing = np.zeros(count, np.uint64)
        self.data, self.zero = np.concatenate([self.data, nothing.view(np.int64)]), np.r_[self.zero, nothing != 0]
        self._terms, self._extreme = np.concatenate([self._terms, nothing]), np.concatenate([self._extreme, nothing])
        self._shape(start, start + count)
        self.shape = np.concatenate([self.shape, hashed(self._terms[start:])])
        self.lead = np.concatenate([self.lead, self._lead_of(self.lead, columns)])
        return made

    def _members(self, column: Ids, op: str, type_: str) -> NDArray[np.uint64]:
        """Return the terms that an operand brings into a sum, a maximum or a minimum."""
        if op == "add":
            integer = np.array([s[0] == "const" for s in self.signatures])[self.signature[column]] & (type_ not in FLOATS)
            return np.where(integer, np.uint64(0), self._terms[column])
        same = np.array([s[0] == op and s[1] == type_ for s in self.signatures])[self.signature[column]]
        return np.where(same, self._extreme[column], self._terms[column])

    def _has_magic(self, nodes: Ids) -> bool:
        if self.signatures[self.signature[nodes[0]]][0] != "const":
            return False
        return bool(np.abs(self.constant(nodes[:1])[0]) >= MAGIC)

    def constant(self, nodes: Ids) -> Reals:
        """Return constant nodes as numbers: float32 or float64 by width when that looks like one, else the integer.

        Integers below 2^23 are denormal numbers in float32: taken as integers.
        """
        bits = self.data[nodes].astype(np.uint64)
        wide = np.array([self.signatures[s][1] in ("b64", "f64") for s in self.signature[nodes]])
        single = bits.astype(np.uint32).view(np.float32).astype(np.float64)
        double = bits.view(np.float64)
        signed = np.where(wide, bits.view(np.int64), bits.astype(np.uint32).view(np.int32).astype(np.int64)).astype(np.float64)
        floating = np.where(wide, double, single)
        exponent = np.where(wide, (bits >> np.uint64(52)) & np.uint64(0x7FF), ((bits >> np.uint64(23)) & np.uint64(0xFF)))
        low, high = np.where(wide, 1023 - 200, 127 - 100), np.where(wide, 1023 + 200, 127 + 100)
        special = np.isinf(floating) | ((exponent > low) & (exponent < high))
        return np.where(special, floating, signed)

    def _merge(self) -> None:
        """Find the first node of each value; types and leaves keep apart what only looks equal."""
        count = len(self.signature)
        kind = np.array([_class_of(*signature) for signature in self.signatures], np.int64)[self.signature]
        zero = self._zeros()
        order = np.lexsort((self.exact[0], kind))
        v, k = self.exact[0][order], kind[order]
        fresh = np.r_[True, (np.diff(k) != 0) | (np.abs(np.diff(v)) > _TOLERANCE * (np.abs(v[1:]) + 1e-9))][:count]
        group = np.empty(count, np.int64)
        group[order] = np.cumsum(fresh)
        order = np.lexsort((self.exact[1], group))
        v, k = self.exact[1][order], group[order]
        fresh = np.r_[True, (np.diff(k) != 0) | (np.abs(np.diff(v)) > _TOLERANCE * (np.abs(v[1:]) + 1e-9))][:count]
        label = np.cumsum(fresh) - 1
        first = np.full(label[-1] + 1 if count else 0, count)
        np.minimum.at(first, label, order)
        self.canonical = np.empty(count, np.int64)
        self.canonical[order] = first[label]
        self.zero = zero
        self._keep_quotients()

    def _keep_quotients(self) -> None:
        """Keep a quotient that is an element a quotient: the first row of a triangular softmax is e v / e, of one term each."""
        quotients = np.array([s[0] in ("div", "mul") and s[1] in FLOATS for s in self.signatures])[self.signature]
        loads = np.array([s[0] == "load" for s in self.signatures])[self.signature]
        nodes = np.flatnonzero(quotients & loads[self.canonical] & ~self.zero)
        constant = np.array([s[0] == "const" for s in self.signatures])[self.signature]
        nodes = nodes[~constant[self.args[nodes, 0]] & ~constant[self.args[nodes, 1]]]
        product = np.array([s[0] == "mul" for s in self.signatures])[self.signature[nodes]]
        _, first, inverse = np.unique(2 * self.canonical[nodes] + product, return_index=True, return_inverse=True)
        self.canonical[nodes] = nodes[first][np.reshape(inverse, -1)]

    def _zeros(self) -> NDArray[np.bool_]:
        sums = np.array([s[0] in ("add", "sub", "fma", "mul") and s[1] in FLOATS for s in self.signatures], bool)[self.signature]
        chosen = np.flatnonzero(sums)
        size = np.abs(self.exact)
        largest = np.maximum.reduce([size[:, np.maximum(self.args[chosen, k], 0)] for k in range(3)])
        zero = np.zeros(len(sums), np.bool_)
        zero[chosen] = (size[:, chosen] <= 1e-13 * largest).all(axis=0)
        constant = np.array([s[0] == "const" for s in self.signatures], bool)[self.signature]
        bits = self.data.astype(np.uint64)
        return zero | (constant & ((bits == 0) | (bits == 0x80000000) | (bits == 1 << 63)))

    def _leads(self) -> Reals:
        lead = np.full((len(self.signature), 2 * max(1, len(self.buffers))), FAR)
        for start, stop in self.ranges:
            op, _, mods = self.signatures[self.signature[start]]
            if op == "load":
                lead[start:stop, self.buffers[int(mods[0])]] = self.data[start:stop]
                lead[start:stop, len(self.buffers) + self.buffers[int(mods[0])]] = self.data[start:stop]
            else:
                lead[start:stop] = self._lead_of(lead, [self.args[start:stop, k] for k in range(4) if self.args[start, k] >= 0])
        return lead

    def _lead_of(self, lead: Reals, columns: Any) -> Any:
        if not len(columns):
            return FAR
        half = lead.shape[1] // 2
        parts = np.stack([lead[column] for column in columns])
        there = parts[:, :, half:] < FAR
        mean = np.where(there, parts[:, :, half:], 0.0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
        return np.concatenate([parts[:, :, :half].min(axis=0), np.where(there.any(axis=0), mean.round(6), FAR)], axis=1)


def _live(trace: Trace) -> NDArray[np.bool_]:
    """Return which nodes something written depends on: idle threads compute as much as busy ones."""
    live = np.zeros(len(trace.signature), np.bool_)
    front = np.unique(np.concatenate([nodes for _, nodes, _ in trace.stores.values()] or [np.zeros(0, np.int64)]))
    while len(front):
        live[front] = True
        below = trace.args[front]
        below = below[below >= 0]
        front = np.unique(below[~live[below]])
    return live


def _is_fused(op: str, type_: str, mods: tuple[str, ...]) -> bool:
    if op == "dp4a":
        return True
    return op == "fma" and type_ in FLOATS and not {"rm", "rp", "rz", "sat", "relu"} & set(mods)


def _class_of(op: str, type_: str, mods: tuple[str, ...]) -> int:
    """Return a class such that only nodes of one class may be merged: results of one width and nature."""
    result = "pred" if op == "setp" else type_
    if op == "mulwide":
        result = {"s32": "s64", "u32": "u64"}.get(type_, "s32")
    if op in ("load", "gather", "scalar"):
        result = {"f32": "b32", "f64": "b64", "f16": "b16", "bf16": "b16"}.get(type_, type_)
    wide = {"pred": 0, "f16": 1, "bf16": 2, "f16x2": 3, "bf16x2": 4, "f64": 5, "s64": 5, "u64": 5, "b64": 5}
    return wide.get(result, 6 + ("16" in result) + 2 * ("8" in result))


def _real(op: str, type_: str, mods: tuple[str, ...], v: list[Reals]) -> Reals | None:
    """Return an operation in real arithmetic, or None where it is no algebra."""
    if op in ("add", "sub", "mul", "fma", "neg"):
        if op == "neg":
            return -v[0]
        if op == "fma":
            return v[0] * v[1] + v[2]
        return v[0] + v[1] if op == "add" else v[0] - v[1] if op == "sub" else v[0] * v[1]
    if op == "mulwide":
        return v[0] * v[1]
    if op == "cvt":
        source, wide = mods[0], {"f16": 1, "bf16": 1, "f32": 2, "f64": 3}
        rounding = {"rni", "rzi", "rmi", "rpi", "sat"} & set(mods)
        if source in wide and type_ in wide and wide[type_] >= wide[source] and source != type_ and not rounding:
            return 1.0 * v[0]
        return None
    if type_ not in ("f32", "f64"):
        return None
    if op == "exp_of_minus":
        return np.exp(np.clip(-v[0], -600, 600))
    if op in ("exp", "ex2"):
        return np.exp(np.clip(v[0] * (np.log(2.0) if op == "ex2" else 1.0), -600, 600))
    if op in ("div", "rcp"):
        return v[0] / v[1] if op == "div" else 1.0 / v[0]
    if op in ("sqrt", "rsqrt"):
        return np.sqrt(np.abs(v[0])) if op == "sqrt" else 1.0 / np.sqrt(np.abs(v[0]))
    return None
