"""Sums of products as matrix products: recognised in expressions, prepared as strided matrices, run by BLAS.

A reduction sum_K a(B, M, K) b(B, K, N) over axes of four roles (batch, rows, columns, inner) is a matrix product. A side that
is one load whose rows and inner axes each walk memory with a single stride is taken where it lies; any other side (the windows
of a convolution, padded or converted or computed elements) is first written to an array by a nest."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from gewu.ops import gemm
from gewu.ops.ir import WIDTH
from gewu.ops.nest_parts import Access
from gewu.ops.pool import Memory, memory, run_ranges
from gewu.ops.rewrite import Axes, Graph, same, walk
from gewu.ops.sizes import Affine, Size
from gewu.ops.tensor import Apply, Expression, Load, Reduce

_DIRECTED: Final = frozenset({"rz", "rm", "rp", "sat"})


FEW = 8
"""Rows (or columns) up to which a product whose other side does not lie as a matrix is a loop nest."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The axes of a product by role, and the factors of each side."""

    batch: Axes
    rows: Axes
    columns: Axes
    inner: Axes
    left: tuple[Expression, ...]
    right: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A side of a product where it lies: buffer, element type and index map."""

    buffer: int
    type: str
    index: Affine


@dataclass(frozen=True, slots=True)
class Product:
    """out[batch, rows, columns] = sum over inner of left[batch, rows, inner] right[batch, inner, columns]."""

    left: Matrix
    right: Matrix
    out: Matrix
    batch: Axes
    rows: Axes
    columns: Axes
    inner: Axes

    def accesses(self, slots: Mapping[int, int]) -> tuple[Access, ...]:
        """Return what is read and written, for the checks of a call."""
        kinds = ((self.left, (*self.batch, *self.rows, *self.inner)), (self.right, (*self.batch, *self.inner, *self.columns)))
        reads = [Access(slots.get(m.buffer, m.buffer), m.type, m.index, axes, (), False) for m, axes in kinds]
        axes = (*self.batch, *self.rows, *self.columns)
        return (*reads, Access(self.out.buffer, self.out.type, self.out.index, axes, (), True))


def factors(graph: Graph, e: Expression, kind: str) -> list[Expression]:
    """Return the factors of a product of floats of a type."""
    found, todo = [], [e]
    while todo:
        part = todo.pop()
        plain = isinstance(part, Apply) and part.type == kind and not _DIRECTED & set(part.mods)
        if plain and part.op == "mul":
            todo += reversed(part.args)
        elif plain and part.op == "div":
            todo += [graph.make(Apply("rcp", kind, (part.args[1],))), part.args[0]]
        else:
            found.append(part)
    return found


def roles(graph: Graph, r: Reduce, extents: Mapping[str, Size]) -> Roles | None:
    """Return the roles of axes when a reduction is a matrix product with rows and columns, else None."""
    if r.kind != "add" or r.type not in ("f32", "f64"):
        return None
    free, inner = graph.free[id(r)], {axis for axis, _ in r.axes}
    parts = factors(graph, r.body, r.type)
    varying = [p for p in parts if graph.free[id(p)] & free]
    if len(varying) < 2:
        return None
    batch = free.intersection(*(graph.free[id(p)] for p in varying))
    sides: list[tuple[set[str], list[Expression]]] = []
    for part in varying:
        own = set(graph.free[id(part)] & free - batch)
        touching = [s for s in sides if s[0] & own]
        merged = (own.union(*(s[0] for s in touching)), [p for s in touching for p in s[1]] + [part])
        sides = [s for s in sides if s not in touching] + [merged]
    whole = [s for s in sides if s[0]]
    if len(whole) != 2:
        return None
    left, right = whole
    rest = [p for p in parts if not any(p is q for s in whole for q in s[1])]
    right = (right[0], right[1] + rest)
    reach = [frozenset().union(*(graph.free[id(p)] for p in s[1])) for s in (left, right)]
    if not all(inner <= names for names in reach):
        return None
    order = list(extents)
    rows, columns = (sorted(s[0], key=order.index) for s in (left, right))
    if order.index(rows[-1]) > order.index(columns[-1]):
        left, right, rows, columns = right, left, columns, rows
    named = [tuple((a, extents[a]) for a in names) for names in (sorted(batch, key=order.index), rows, columns)]
    return Roles(named[0], named[1], named[2], r.axes, tuple(left[1]), tuple(right[1]))


def worthwhile(r: Reduce, chosen: Roles) -> bool:
    """Tell whether a side that does not lie as a matrix is used often enough to be written to an array as one."""
    if r.where:
        return False
    sides = ((chosen.rows, chosen.right, chosen.columns), (chosen.columns, chosen.left, chosen.rows))
    return all(count(few) >= least(other, r.type, FEW + 1) or lies(other, r.type, across, r.axes) for few, other, across in sides)


def least(parts: tuple[Expression, ...], kind: str, plain: int) -> int:
    """Return how often a side must be used to be written to an array: more often where it is read in fewer bytes than written."""
    packed = sum(WIDTH[e.type] for e in walk(list(parts)) if isinstance(e, Load)) < WIDTH[kind]
    return max(plain, 2 * FEW + 1) if packed else plain


def lies(parts: tuple[Expression, ...], kind: str, outer: Axes, inner: Axes) -> bool:
    """Tell whether the product of some factors lies in memory as a matrix."""
    return len(parts) == 1 and lies_as_matrix(parts[0], kind, outer, inner) is not None


def count(axes: Axes) -> float:
    """Return the points of axes whose sizes are known; infinity where one is not."""
    total = 1.0
    for _, size in axes:
        total *= np.inf if size.constant is None else size.constant
    return total


def lies_as_matrix(e: Expression, kind: str, outer: Axes, inner: Axes) -> Matrix | None:
    """Return a side as a matrix when it is one load with a single stride along the outer and the inner axes, one of them 1."""
    if not isinstance(e, Load) or e.where or e.type != kind:
        return None
    strides = [_single(e.index, axes) for axes in (outer, inner)]
    if None in strides or not any(s is not None and s.constant == 1 for s in strides):
        return None
    return Matrix(e.buffer, e.type, e.index)


def _single(index: Affine, axes: Axes) -> Size | None:
    """Return the stride of the last axis when the others continue it, else None."""
    for (slow, _), (fast, extent) in pairwise(axes):
        if not same(index.stride(slow), index.stride(fast) * extent):
            return None
    return index.stride(axes[-1][0])


@dataclass(slots=True)
class Prepared:
    """A product at known sizes: shapes and byte strides of its three arrays."""

    product: Product
    shapes: list[tuple[int, ...]]
    strides: list[tuple[int, ...]]
    offsets: list[tuple[int, int]]
    lengths: list[int]
    dtype: Any

    def run(self, pointers: Any, slots: Mapping[int, int], threads: int, cache: Path | None = None, packed: int = 0) -> None:
        """Compute it; `pointers[slot]` are addresses, `packed` is where `pack` put the left side, or 0."""
        p = self.product
        addresses = []
        for place, matrix in enumerate((p.left, p.right, p.out)):
            slot = matrix.buffer if place == 2 else slots.get(matrix.buffer, matrix.buffer)
            addresses.append(pointers[slot] + sum(self.offsets[place]))
        if self._large():
            self._own(addresses, threads, cache, packed)
        else:
            self._blas(addresses)

    def _large(self) -> bool:
        """Tell whether our own kernel is faster than a call of BLAS: enough work in each product, and no thin side.

        A stack of small products is ours too: a BLAS with threads of its own wakes them for each of them.
        """
        rows, columns = self.shapes[2][-2:]
        each = rows * columns * self.shapes[0][-1]
        stack = int(np.prod(self.shapes[2][:-2]))
        enough = each >= 1 << 20 and min(rows, columns) >= 24
        return (enough or (stack > 1 and each >= 1 << 12)) and self.dtype.itemsize in self.strides[2][-2:]

    def shared(self, count: int) -> bool:
        """Tell whether the left side is an argument and the same one in every block of the program."""
        left = self.product.left
        sizes = (left.index.offset, *(size for _, size in left.index.terms))
        return left.buffer < count and not any("@" in str(size) for size in sizes)

    def pack(self, pointers: Any, threads: int, cache: Path | None) -> Memory | None:
        """Pack the left side for all runs that share it; None when `run` would not use it."""
        if not self._large() or len(self.shapes[0]) > 2 or self.strides[2][1] != self.dtype.itemsize:
            return None
        a = pointers[self.product.left.buffer] + sum(self.offsets[0])
        operands, kind = self._operands(a, 0, 0), self.product.out.type
        held = memory(gemm.packed_bytes(kind, operands))
        gemm.pack(kind, operands, held.address, threads, cache)
        return held

    def _operands(self, a: int, b: int, c: int) -> gemm.Operands:
        """Return what the kernel needs; a C stored by columns is computed as its transpose, B' A'."""
        (si, sk), (bk, bj), (ci, cj) = ([v // self.dtype.itemsize for v in s[-2:]] for s in self.strides)
        rows, columns, inner = *self.shapes[2][-2:], self.shapes[0][-1]
        if cj == 1:
            return gemm.Operands(a, b, c, si, sk, bk, bj, ci, rows, columns, inner)
        return gemm.Operands(b, a, c, bj, bk, sk, si, cj, columns, rows, inner)

    def _own(self, addresses: list[int], threads: int, cache: Path | None, packed: int) -> None:
        batches, kind = list(np.ndindex(*self.shapes[0][:-2])), self.product.out.type

        def one(place: int, workers: int) -> None:
            a, b, c = (
                start + sum(i * s for i, s in zip(batches[place], strides, strict=False))
                for start, strides in zip(addresses, self.strides, strict=True)
            )
            gemm.multiply(kind, self._operands(a, b, c), workers, cache, packed)

        if len(batches) >= threads > 1:
            run_ranges(lambda lo, hi: one(lo, 1), [(k, k + 1) for k in range(len(batches))], threads)
            return
        work = self.shapes[2][-1] * self.shapes[2][-2] * self.shapes[0][-1]
        for place in range(len(batches)):
            one(place, threads if work >= 1 << 22 else 1)

    def _blas(self, addresses: list[int]) -> None:
        arrays = []
        for place in range(3):
            start = addresses[place] - self.offsets[place][1]
            memory = (ctypes.c_char * self.lengths[place]).from_address(start)
            arrays.append(np.ndarray(self.shapes[place], self.dtype, memory, self.offsets[place][1], self.strides[place]))
        np.matmul(arrays[0], arrays[1], out=arrays[2])


def prepare(product: Product, launch: Mapping[str, int]) -> Prepared:
    """Evaluate sizes and strides of a product for a launch."""
    kind = np.dtype(product.out.type.replace("f", "float"))
    groups = (
        (product.left, product.rows, product.inner),
        (product.right, product.inner, product.columns),
        (product.out, product.rows, product.columns),
    )
    shapes, strides, offsets, lengths = [], [], [], []
    for matrix, first, second in groups:
        shape = [size.value(launch) for _, size in product.batch]
        step = [matrix.index.stride(axis).value(launch) for axis, _ in product.batch]
        for axes in (first, second):
            extent = 1
            for _, size in axes:
                extent *= size.value(launch)
            shape.append(extent)
            step.append(matrix.index.stride(axes[-1][0]).value(launch))
        start = matrix.index.offset.value(launch)
        low = start + sum(min(0, s * (n - 1)) for s, n in zip(step, shape, strict=True))
        high = start + sum(max(0, s * (n - 1)) for s, n in zip(step, shape, strict=True))
        shapes.append(tuple(shape))
        strides.append(tuple(s * kind.itemsize for s in step))
        offsets.append((low * kind.itemsize, (start - low) * kind.itemsize))
        lengths.append((high - low + 1) * kind.itemsize)
    return Prepared(product, shapes, strides, offsets, lengths, kind)
