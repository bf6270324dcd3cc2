"""Nests that keep a tile of sums in registers: ROWS rows by VECTORS vectors of columns, for the sums that `window` prepares.

Each point of a sum is one load for each vector of columns, one element for each row, and ROWS times VECTORS fused multiply-adds.
A finished tile goes through a small array in the first-level cache, from which the rest of the expression is computed and stored
as by any nest; places between the rows of the padded array are passed over there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gewu.ops import llvm
from gewu.ops.ir import WIDTH
from gewu.ops.lower import llvm_type
from gewu.ops.nest import Nest
from gewu.ops.nest_parts import Choice, Function
from gewu.ops.rewrite import Axes
from gewu.ops.sizes import Affine, Ceil, Size
from gewu.ops.window import PANEL, ROWS, STRIP, VECTORS, Tile, Tiled, panels


def width(kind: str) -> int:
    """Return the columns of a tile on the processor at hand."""
    return VECTORS * llvm.host_vector_bits() // WIDTH[kind]


class TileNest(Nest):
    """Generates one function for a group of sums in tiles; arguments as `Nest`."""

    def __init__(self, tiled: Tiled, *args: Any, choice: Choice, **more: Any) -> None:
        super().__init__(*args, choice=choice, **more)
        self.group, self.kind = tiled, tiled.tiles[0].reduce.type
        self.width = width(self.kind)
        self.lanes = self.width // VECTORS
        self.vector = f"<{self.lanes} x {llvm_type(self.kind)}>"

    def build(self) -> Function:
        """Generate the function; its outermost loop counts tiles, those of one strip of columns one after the other."""
        inside = {self.group.rows[0], *(axis for axis, _ in self.group.chain)}
        outer = [item for item in self.assigns[0].axes if item[0] not in inside]
        axes: Axes = (
            *outer,
            (STRIP, Size.named(Ceil(self.group.strips(), Size.of(self.width)))),
            (PANEL, panels(self.group.rows[1])),
        )
        self._outer(axes, self._tile_of)
        extent = Size.of(1)
        for _, size in axes:
            extent = extent * size
        return Function(self.name, self._text(), tuple(self.accesses), extent, 1, "registers")

    def _tile_of(self) -> None:
        first = self.lower.emit(f"mul nsw i64 {self.axis[STRIP]}, {self.width}")
        cells = [self._summed(tile, first) for tile in self.group.tiles]
        self._finished(first, cells)

    def _summed(self, tile: Tile, first: str) -> str:
        """Compute a tile of a sum; return the array that then holds it."""
        places = [(i, j) for i in range(ROWS) for j in range(VECTORS)]
        sums = {place: self.alloca(self.vector) for place in places}
        for name in sums.values():
            self.lower.lines.append(f"  store {self.vector} zeroinitializer, ptr {name}")
        self._over(tile.reduce.axes, lambda: self._added(tile, first, sums))
        t, cell = llvm_type(self.kind), self.alloca(f"[{ROWS * self.width} x {llvm_type(self.kind)}]")
        for (i, j), name in sums.items():
            value = self.lower.emit(f"load {self.vector}, ptr {name}")
            place = self.lower.emit(f"getelementptr {t}, ptr {cell}, i64 {i * self.width + j * self.lanes}")
            self.lower.lines.append(f"  store {self.vector} {value}, ptr {place}, align {self.lanes * WIDTH[self.kind] // 8}")
        return cell

    def _over(self, axes: Axes, body: Callable[[], None]) -> None:
        if not axes:
            body()
            return
        (axis, size), rest = axes[0], axes[1:]

        def inside(index: str) -> None:
            self.axis[axis] = index
            self._over(rest, body)

        self.loop({axis: size}, "0", self._size(size), inside)

    def _added(self, tile: Tile, first: str, sums: dict[tuple[int, int], str]) -> None:
        """Add one point of the sum to all places of a tile."""
        t, align = llvm_type(self.kind), WIDTH[self.kind] // 8
        chain = {axis for axis, _ in self.group.chain}
        (left, rows), (right, columns) = tile.left, tile.right
        base = Affine(tuple(term for term in columns.terms if term[0] not in chain), columns.offset)
        source = self.address(self.pointer(left), self.kind, self.affine(rows))
        start = self.lower.emit(f"add nsw i64 {self.affine(base)}, {first}")
        start = self.address(self.pointer(right), self.kind, start)
        loaded = []
        for j in range(VECTORS):
            place = self.lower.emit(f"getelementptr inbounds {t}, ptr {start}, i64 {j * self.lanes}")
            loaded.append(self.lower.emit(f"load {self.vector}, ptr {place}, align {align}"))
        for i in range(ROWS):
            place = self.lower.emit(f"getelementptr inbounds {t}, ptr {source}, i64 {i}")
            one = self.lower.emit(f"load {t}, ptr {place}")
            one = self.lower.emit(f"insertelement {self.vector} poison, {t} {one}, i64 0")
            mask = f"<{self.lanes} x i32> zeroinitializer"
            spread = self.lower.emit(f"shufflevector {self.vector} {one}, {self.vector} poison, {mask}")
            for j in range(VECTORS):
                old = self.lower.emit(f"load {self.vector}, ptr {sums[i, j]}")
                terms = ((self.vector, v) for v in (spread, loaded[j], old))
                new = self.lower.call(self.vector, f"llvm.fma.v{self.lanes}{self.kind}", *terms)
                self.lower.lines.append(f"  store {self.vector} {new}, ptr {sums[i, j]}")

    def _finished(self, first: str, cells: list[str]) -> None:
        """Compute and store the assignments at the places of a tile that exist."""
        axis, extent = self.group.rows
        low = self.lower.emit(f"mul nsw i64 {self.axis[PANEL]}, {ROWS}")
        high = self.minimum(self.lower.emit(f"add nsw i64 {low}, {ROWS}"), self._size(extent))

        def row(index: str) -> None:
            self.axis[axis] = index
            place = self.lower.emit(f"mul nsw i64 {self.lower.emit(f'sub nsw i64 {index}, {low}')}, {self.width}")
            t = llvm_type(self.kind)
            held = [self.lower.emit(f"getelementptr inbounds {t}, ptr {cell}, i64 {place}") for cell in cells]
            self._along(self.group.chain, first, held)

        self.loop({axis: extent}, low, high, row)

    def _along(self, chain: Axes, first: str, cells: list[str]) -> None:
        """Open the loops over the chain, each from the first to the last place that is in the strip."""
        (axis, size), rest = chain[0], chain[1:]
        low = self.lower.call("i64", "llvm.smax.i64", ("i64", first), ("i64", "0"))
        high = self.lower.emit(f"add nsw i64 {first}, {self.width}")
        if not rest:
            for tile, cell in zip(self.group.tiles, cells, strict=True):
                self.tiled[id(tile.reduce)] = (cell, first)
            self._vector((axis, size), low, self.minimum(high, self._size(size)), [], self._stores)
            return
        stride = self._size(self.group.tiles[0].right[1].stride(axis))
        low = self.lower.emit(f"sdiv i64 {low}, {stride}")
        high = self.lower.emit(f"add nsw i64 {high}, {self.lower.emit(f'sub nsw i64 {stride}, 1')}")
        high = self.minimum(self.lower.emit(f"sdiv i64 {high}, {stride}"), self._size(size))

        def inside(index: str) -> None:
            self.axis[axis] = index
            used = self.lower.emit(f"mul nsw i64 {index}, {stride}")
            self._along(rest, self.lower.emit(f"sub nsw i64 {first}, {used}"), cells)

        self.loop({axis: size}, low, high, inside)
