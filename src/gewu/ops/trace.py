"""What a kernel did with symbols: a graph of nodes, and which node ended up in which element of which array."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.ops.ir import WIDTH
from gewu.ops.scalar import UNSIGNED, apply

Ids = NDArray[np.int64]
NONE: Final = -1
_MOST_NODES: Final = 2_500_000


class DataDependent(InputError):
    """What happens depends on data in a way that no formula over whole arrays tells: a loop, an address, a race."""


@dataclass(frozen=True)
class SymbolicBuffer:
    """An array argument whose elements are symbols; unbounded above.

    `sample`: bits of the example values by byte offset and size, default: by dtype, floats in (0.5, 1.5), integers 0 to 7.
    """

    dtype: Any
    sample: Callable[[NDArray[Any], int], NDArray[Any]] | None = None


def example(buffer: SymbolicBuffer, number: int, offsets: NDArray[np.int64], size: int) -> NDArray[Any]:
    """Return the example values of elements as bits."""
    if buffer.sample is not None:
        return buffer.sample(offsets, size)
    with np.errstate(over="ignore"):
        z = (offsets.astype(np.uint64) + np.uint64(number << 32)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(31)
    dtype = np.dtype(buffer.dtype)
    kind = UNSIGNED[8 * size]
    if dtype.kind == "f" and dtype.itemsize == size:
        return (0.5 + (z >> np.uint64(40)).astype(np.float64) / 2.0**24).astype(dtype).view(kind)
    if dtype.name == "bfloat16" and size == 2:
        return (
            (0.5 + (z >> np.uint64(40)).astype(np.float32) / 2.0**24)
            .astype(np.float32)
            .view(np.uint32)
            .__rshift__(16)
            .astype(kind)
        )
    if dtype.kind == "f" and size == 2 * dtype.itemsize and size <= 4:
        half = (
            (0.5 + (z >> np.uint64(48)).astype(np.float64) / 2.0**16)
            .astype(dtype)
            .view(UNSIGNED[8 * dtype.itemsize])
            .astype(kind)
        )
        return half | (half << kind.type(8 * dtype.itemsize))
    return (z % np.uint64(8)).astype(kind)


@dataclass(slots=True)
class Trace:
    """Nodes in an order in which arguments come first.

    Attributes:
        signatures: (operation, type, modifiers) by number; leaves are `load` (modifier: argument number), `const`, `scalar`.
        signature: of each node.
        args: (n, 4) argument nodes, NONE where there are fewer.
        data: byte offset of a load, bits of a constant, argument number of a scalar.
        stores: by argument and element size: byte offsets in order, nodes, lanes that wrote last.
        hazards: why the order of threads or blocks could matter.
    """

    signatures: list[tuple[str, str, tuple[str, ...]]]
    signature: Ids
    args: Ids
    data: Ids
    stores: dict[tuple[int, int], tuple[Ids, Ids, Ids]] = field(default_factory=dict)
    hazards: list[str] = field(default_factory=list)


class Nodes:
    """The graph while it grows."""

    def __init__(self) -> None:
        self.signatures: list[tuple[str, str, tuple[str, ...]]] = []
        self.count = 0
        self._numbers: dict[tuple[str, str, tuple[str, ...]], int] = {}
        self._constants: dict[tuple[int, int], int] = {}
        size = 1 << 14
        self.signature, self.args, self.data = np.zeros(size, np.int64), np.full((size, 4), NONE), np.zeros(size, np.int64)

    def number(self, op: str, type_: str, mods: Sequence[str] = ()) -> int:
        """Return the number of a signature."""
        key = (op, type_, tuple(mods))
        if key not in self._numbers:
            self._numbers[key] = len(self.signatures)
            self.signatures.append(key)
        return self._numbers[key]

    def add(self, op: str, type_: str, mods: Sequence[str], args: Sequence[Ids], data: Any = 0, count: int | None = None) -> Ids:
        """Append nodes of one operation, a vector of arguments at a time."""
        length = len(args[0]) if args else int(count or 0)
        start, stop = self.count, self.count + length
        if stop > _MOST_NODES:
            raise InputError("too much to follow with symbols")  # at these sizes
        while stop > len(self.signature):
            self.signature = np.concatenate([self.signature, np.zeros_like(self.signature)])
            self.args = np.concatenate([self.args, np.full_like(self.args, NONE)])
            self.data = np.concatenate([self.data, np.zeros_like(self.data)])
        self.signature[start:stop] = self.number(op, type_, mods)
        for k, column in enumerate(args):
            self.args[start:stop, k] = column
        self.data[start:stop] = data
        self.count = stop
        return np.arange(start, stop)

    def constants(self, bits: NDArray[Any], type_: str) -> Ids:
        """Return constant nodes for bits, made once each."""
        number = self.number("const", type_)
        values, inverse = np.unique(bits, return_inverse=True)
        found = np.empty(len(values), np.int64)
        for place, value in enumerate(values.astype(np.uint64).view(np.int64).tolist()):
            key = (number, value)
            if key not in self._constants:
                self._constants[key] = int(self.add("const", type_, (), [], value, 1)[0])
            found[place] = self._constants[key]
        return found[inverse.reshape(-1)]

    def is_op(self, nodes: Ids, op: str) -> NDArray[np.bool_]:
        """Tell which nodes apply an operation."""
        flags = np.array([s[0] == op for s in self.signatures])
        return flags[self.signature[nodes]]

    def displaced(self, nodes: Ids, by: int) -> Ids:
        """Return 64-bit sums plus a number; a constant among the terms takes it up, so that addresses become byte offsets."""
        out, left = nodes.copy(), np.ones(len(nodes), np.bool_)
        sums = np.array([s[0] == "add" and s[1] in ("u64", "s64") for s in self.signatures])[self.signature[nodes]]
        for k in (0, 1):
            term, rest = self.args[nodes, k], self.args[nodes, 1 - k]
            chosen = left & sums & (term != NONE)
            chosen[chosen] &= self.is_op(term[chosen], "const")
            if not chosen.any():
                continue
            number = self.data[term[chosen]] + by
            zero = number == 0
            moved = rest[chosen]
            if (~zero).any():
                moved[~zero] = self.add("add", "s64", (), [moved[~zero], self.constants(number[~zero].view(np.uint64), "b64")])
            out[chosen] = moved
            left &= ~chosen
        deeper = left & sums
        for k in (0, 1):  # a sum of sums: the pointer is one level down
            chosen = deeper & np.isin(np.arange(len(nodes)), np.flatnonzero(deeper))
            if not chosen.any():
                continue
            inner = self.args[nodes[chosen], k]
            found = self._pointer(inner)
            place = np.flatnonzero(chosen)[found]
            if len(place):
                one = self.displaced(self.args[nodes[place], k], by)
                out[place] = self.add("add", "s64", (), [one, self.args[nodes[place], 1 - k]])
                left[place] = deeper[place] = False
        if left.any():
            base = self.constants(np.full(int(left.sum()), by, np.int64).view(np.uint64), "b64")
            out[left] = self.add("add", "s64", (), [nodes[left], base])
        return out

    def _pointer(self, nodes: Ids) -> NDArray[np.bool_]:
        """Tell which sums have a constant as large as an address among their terms, down to a few levels."""
        found = np.zeros(len(nodes), np.bool_)
        stack = [nodes]
        for _ in range(4):
            if not stack:
                break
            now = stack.pop()
            sums = np.array([s[0] == "add" and s[1] in ("u64", "s64") for s in self.signatures])[self.signature[now]]
            for k in (0, 1):
                term = np.where(sums, self.args[now, k], now)
                found |= self.is_op(term, "const") & (np.abs(self.data[term]) >= 1 << 39)
                stack.append(term)
        return found

    def otherwise(self, nodes: Ids, condition: Ids) -> Ids:
        """Return what nodes are where a condition does not hold: selections on its opposite are decided."""
        out = nodes.copy()
        chosen = self.is_op(nodes, "select")
        if chosen.any():
            mine, other = condition[chosen], self.args[nodes[chosen], 2]
            opposite = self.is_op(mine, "not") & (self.args[mine, 0] == other)
            opposite |= self.is_op(other, "not") & (self.args[other, 0] == mine)
            place = np.flatnonzero(chosen)[opposite]
            out[place] = self.args[nodes[place], 0]
        return out

    def half(self, nodes: Ids, high: bool, whole: str) -> Ids:
        """Return halves of nodes: of loads and packs without a new operation."""
        width = int(whole[1:])
        out = np.empty(len(nodes), np.int64)
        left = np.ones(len(nodes), np.bool_)
        packs = self.is_op(nodes, "pack")
        if packs.any():
            out[packs] = self.args[nodes[packs], int(high)]
            left &= ~packs
        for number in np.unique(self.signature[nodes[left]]) if left.any() else []:
            op, type_, mods = self.signatures[number]
            chosen = left & (self.signature[nodes] == number)
            if op == "load" and type_ == whole:
                offset = self.data[nodes[chosen]] + (width // 16 if high else 0)
                out[chosen] = self.load(int(mods[0]), width // 2, offset)
            elif op == "const":
                bits = self.data[nodes[chosen]].view(np.uint64)
                bits = bits >> np.uint64(width // 2) if high else bits & np.uint64((1 << (width // 2)) - 1)
                out[chosen] = self.constants(bits, f"b{width // 2}")
            else:
                out[chosen] = self.add("unpack", whole, ("high" if high else "low",), [nodes[chosen]])
        return out

    def join(self, low: Ids, high: Ids, whole: str) -> Ids:
        """Return nodes of two halves: neighbours in memory are one load, halves of one node are that node."""
        out = np.empty(len(low), np.int64)
        both = self.is_op(low, "unpack") & self.is_op(high, "unpack")
        same = both & (self.args[low, 0] == self.args[high, 0])
        out[same] = self.args[low[same], 0]
        half = int(whole[1:]) // 16
        loads = self.is_op(low, "load") & self.is_op(high, "load") & (self.signature[low] == self.signature[high])
        near = ~same & loads & (self.data[high] == self.data[low] + half) & (self.data[low] % (2 * half) == 0)
        for number in np.unique(self.signature[low[near]]) if near.any() and half == 4 else []:
            chosen = near & (self.signature[low] == number)
            out[chosen] = self.load(int(self.signatures[number][2][0]), 8 * 2 * half, self.data[low[chosen]])
            same |= chosen
        rest = ~same
        if rest.any():
            out[rest] = self.add("pack", whole, (), [low[rest], high[rest]])
        return out

    def field(self, nodes: Ids, field: tuple[int, int, bool], units: Mapping[int, int]) -> tuple[NDArray[np.bool_], Ids]:
        """Return which nodes are words of arrays of smaller elements, and for these one such element: a load of its own.

        Args:
            nodes: of which a byte or a half is taken out.
            field: its position and length in bits, and whether it is extended by its sign.
            units: bytes of an element by array.
        """
        position, length, signed = field
        kind, some, found = "s" if signed else "u", np.zeros(len(nodes), np.bool_), nodes.copy()
        for number in np.unique(self.signature[nodes]):
            op, type_, mods = self.signatures[number]
            if (op, type_) == ("load", "b32") and 8 * units[int(mods[0])] <= length:
                chosen = self.signature[nodes] == number
                part = self.load(int(mods[0]), length, self.data[nodes[chosen]] + position // 8)
                found[chosen], some = self.add("cvt", f"{kind}32", (f"{kind}{length}",), [part]), some | chosen
        return some, found

    def pieces(self, nodes: Ids, size: int, unit: int) -> list[Ids]:
        """Return the parts, first to last, of nodes that join smaller elements, down to `unit` bytes."""
        if size > unit and self.is_op(nodes, "pack").all():
            return [piece for k in (0, 1) for piece in self.pieces(self.args[nodes, k], size // 2, unit)]
        if (size, unit) == (4, 1) and self.is_op(nodes, "prmt").all():
            return [self._byte(nodes, k) for k in range(4)]
        return [nodes]

    def _byte(self, nodes: Ids, place: int) -> Ids:
        """Return nodes whose lowest byte is one byte of others: through the permutations that put it there."""
        while self.is_op(nodes, "prmt").all() and self.is_op(self.args[nodes, 2], "const").all():
            selectors = self.data[self.args[nodes, 2]]
            picked = int(selectors[0]) >> 4 * place & 15
            if picked & 8 or (selectors != selectors[0]).any():
                break
            nodes, place = self.args[nodes, picked >> 2], picked & 3
        if place == 0:
            return nodes
        count = self.constants(np.full(len(nodes), 8 * place), "b32")
        return self.add("shr", "u32", (), [nodes, count])

    def load(self, buffer: int, width: int, offsets: Ids) -> Ids:
        """Return load nodes, new ones: equal ones are merged by whoever reads the trace."""
        return self.add("load", f"b{width}", (str(buffer),), [], offsets, len(offsets))

    def trace(self) -> Trace:
        """Return what was recorded."""
        n = self.count
        return Trace(self.signatures, self.signature[:n], self.args[:n], self.data[:n])


Loads = Callable[[int, NDArray[np.int64], int], NDArray[Any]]


def evaluate(trace: Trace, nodes: Ids, loads: Loads, scalars: Mapping[int, int] | None = None) -> NDArray[np.uint64]:
    """Return the bits of nodes.

    Args:
        trace: the graph; its nodes up to the last one wanted are computed, many of one operation at a time.
        nodes: which ones to return.
        loads: bits of array elements, from the number of the argument, byte offsets and the size of an element in bytes.
        scalars: bits of the float arguments by number.
    """
    end = int(nodes.max()) + 1 if len(nodes) else 0
    values, last = np.zeros(end, np.uint64), trace.args[:end].max(axis=1, initial=NONE)
    edges = [*(np.flatnonzero(np.diff(trace.signature[:end])) + 1).tolist(), end]
    start = 0
    for edge in edges:
        while start < edge:
            late = np.flatnonzero(last[start:edge] >= start)  # these need values of the same stretch
            stop = start + int(late[0]) if len(late) else edge
            op, type_, mods = trace.signatures[trace.signature[start]]
            args, data = trace.args[start:stop], trace.data[start:stop]
            found: NDArray[Any]
            if op == "const":
                found = data.view(np.uint64)
            elif op == "scalar":
                found = np.array([(scalars or {})[number] for number in data.tolist()], np.uint64)
            elif op in ("load", "gather"):
                offsets = data if op == "load" else values[args[:, 0]].view(np.int64)
                found = loads(int(mods[0]), offsets, WIDTH[type_] // 8)
            else:
                found = apply(op, type_, mods, [values[args[:, k]] for k in range(4) if args[0, k] != NONE])
            values[start:stop] = found
            start = stop
    return values[nodes]
