"""Sums of products as matrix products: recognised in expressions, prepared as strided matrices, run by BLAS.

A reduction sum_K a(B, M, K) b(B, K, N) over axes of four roles (batch, rows, columns, inner) is a matrix product. A side that
is one load whose rows and inner axes each walk memory with a single stride is taken where it lies; any other side (the windows
of a convolution, padded or converted or computed elements) is first written to an array by a nest."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from gewu.ops.nest import Access
from gewu.ops.pool import run_ranges
from gewu.ops.rewrite import Axes, Graph, same
from gewu.ops.sizes import Affine, Size
from gewu.ops.tensor import Apply, Expression, Load, Reduce

_DIRECTED: Final = frozenset({"rz", "rm", "rp", "sat"})


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
    if r.kind != "add" or r.type not in ("f32", "f64") or r.where:
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
    work: int

    def run(self, pointers: Mapping[int, int] | Any, slots: Mapping[int, int], threads: int) -> None:
        """Compute it; `pointers[slot]` are addresses."""
        p = self.product
        arrays = []
        for place, matrix in enumerate((p.left, p.right, p.out)):
            slot = matrix.buffer if place == 2 else slots.get(matrix.buffer, matrix.buffer)
            memory = (ctypes.c_char * self.lengths[place]).from_address(pointers[slot] + self.offsets[place][0])
            arrays.append(np.ndarray(self.shapes[place], self.dtype, memory, self.offsets[place][1], self.strides[place]))
        left, right, out = arrays
        if self.work < 1 << 18 or threads == 1 or blas_threads() >= threads:
            np.matmul(left, right, out=out)
            return
        by_rows = out.shape[-2] >= out.shape[-1]
        length = out.shape[-2] if by_rows else out.shape[-1]
        step = -(-length // (threads * (2 if length >= 512 * threads else 1)))
        step = -(-step // 16) * 16

        def part(lo: int, hi: int) -> None:
            if by_rows:
                np.matmul(left[..., lo:hi, :], right, out=out[..., lo:hi, :])
            else:
                np.matmul(left, right[..., lo:hi], out=out[..., lo:hi])

        run_ranges(part, [(lo, min(lo + step, length)) for lo in range(0, length, step)], threads)


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
    work = int(np.prod(shapes[0], dtype=object)) * shapes[1][-1]
    return Prepared(product, shapes, strides, offsets, lengths, kind, work)


@lru_cache(maxsize=1)
def _openblas() -> Any:
    """Return NumPy's own OpenBLAS as (get, set) functions of its number of threads, or None."""
    folder = Path(np.__file__).parent.parent / "numpy.libs"
    for path in sorted(folder.glob("*openblas*")):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for suffix in ("64_", ""):
            for prefix in ("scipy_", ""):
                get = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
                change = getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None)
                if get and change:
                    return get, change
    return None


def blas_threads() -> int:
    """Return how many threads BLAS uses (1 when unknown)."""
    found = _openblas()
    return int(found[0]()) if found else 1


class single_threaded_blas:
    """A context in which BLAS uses one thread, because the threads here are ours."""

    def __enter__(self) -> None:
        self._before = blas_threads()
        if self._before > 1:
            _openblas()[1](1)

    def __exit__(self, *_: object) -> None:
        if self._before > 1:
            _openblas()[1](self._before)
