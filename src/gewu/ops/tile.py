"""Nests that keep a tile of sums in registers: some rows by some vectors of columns, for the sums that `window` prepares.

Each point of a sum is a load for each vector of columns, an element for each row, and a fused multiply-add for each pair.  A
finished tile goes through a small array in the first-level cache, from which the rest of the expression is computed and stored as
by any nest; places between the rows of the padded array are passed over there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gewu.ops.ir import WIDTH
from gewu.ops.lower import llvm_type
from gewu.ops.nest import Nest
from gewu.ops.nest_parts import Access, Choice, Function
from gewu.ops.rewrite import Axes
from gewu.ops.sizes import Affine, Ceil, Size
from gewu.ops.window import PANEL, STRIP, Tile, Tiled


class TileNest(Nest):
    """Generates one function for a group of sums in tiles; arguments as `Nest`."""

    def __init__(self, tiled: Tiled, *args: Any, choice: Choice, **more: Any) -> None:
        super().__init__(*args, choice=choice, **more)
        self.group, self.kind = tiled, tiled.tiles[0].reduce.type
        self.rows, self.vectors = tiled.shape.rows, tiled.shape.vectors
        self.width = tiled.shape.width(self.kind)
        self.lanes = self.width // self.vectors
        self.vector = f"<{self.lanes} x {llvm_type(self.kind)}>"

    def build(self) -> Function:
        """Generate the function; its outermost loop counts tiles, those of one strip of columns one after the other."""
        inside = {self.group.rows[0], *(axis for axis, _ in self.group.chain)}
        outer = [item for item in self.assigns[0].axes if item[0] not in inside]
        axes: Axes = (
            *outer,
            (STRIP, Size.named(Ceil(self.group.strips(), Size.of(self.width)))),
            (PANEL, self.group.shape.panels(self.group.rows[1])),
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
        places = [(i, j) for i in range(self.rows) for j in range(self.vectors)]
        sums = {place: self.alloca(self.vector) for place in places}
        for name in sums.values():
            self.lower.lines.append(f"  store {self.vector} zeroinitializer, ptr {name}")
        rows = self._rows(tile)
        self._over(tile.reduce.axes, lambda: self._added(tile, first, rows, sums))
        t, cell = llvm_type(self.kind), self.alloca(f"[{self.rows * self.width} x {llvm_type(self.kind)}]")
        for (i, j), name in sums.items():
            value = self.lower.emit(f"load {self.vector}, ptr {name}")
            place = self.lower.emit(f"getelementptr {t}, ptr {cell}, i64 {i * self.width + j * self.lanes}")
            self.lower.lines.append(f"  store {self.vector} {value}, ptr {place}, align {self.lanes * WIDTH[self.kind] // 8}")
        return cell

    def _rows(self, tile: Tile) -> list[str]:
        """Return where in the left side each row of the tile starts; rows that do not exist are the last one that does."""
        (axis, extent), (buffer, index) = self.group.rows, tile.left
        inner = {name for name, _ in tile.reduce.axes}
        base = Affine(tuple(t for t in index.terms if t[0] != axis and t[0] not in inner), index.offset)
        if PANEL in index.axes:
            start = self.affine(base)
            return [self.lower.emit(f"add nsw i64 {start}, {i}") for i in range(self.rows)]
        self.accesses.append(Access(self._slot(buffer), self.kind, index, (*self.assigns[0].axes, *tile.reduce.axes), (), False))
        first, last = self.lower.emit(f"mul nsw i64 {self.axis[PANEL]}, {self.rows}"), self._size(extent + Size.of(-1))
        places = [self.minimum(self.lower.emit(f"add nsw i64 {first}, {i}"), last) for i in range(self.rows)]
        steps = [self.lower.emit(f"mul nsw i64 {place}, {self._size(index.stride(axis))}") for place in places]
        return [self.lower.emit(f"add nsw i64 {self.affine(base)}, {step}") for step in steps]

    def _slot(self, buffer: int) -> int:
        return self.slots.get(buffer, buffer)

    def _over(self, axes: Axes, body: Callable[[], None]) -> None:
        if not axes:
            body()
            return
        (axis, size), rest = axes[0], axes[1:]

        def inside(index: str) -> None:
            self.axis[axis] = index
            self._over(rest, body)

        self.loop({axis: size}, "0", self._size(size), inside)

    def _added(self, tile: Tile, first: str, starts: list[str], sums: dict[tuple[int, int], str]) -> None:
        """Add one point of the sum to all places of a tile."""
        t, align = llvm_type(self.kind), WIDTH[self.kind] // 8
        chain, inner = {axis for axis, _ in self.group.chain}, {axis for axis, _ in tile.reduce.axes}
        (left, rows), (right, columns) = tile.left, tile.right
        along = self.affine(Affine(tuple(term for term in rows.terms if term[0] in inner)))
        start = self.affine(Affine(tuple(term for term in columns.terms if term[0] not in chain), columns.offset))
        if STRIP not in columns.axes:
            start = self.lower.emit(f"add nsw i64 {start}, {first}")
        start = self.address(self.pointer(right), self.kind, start)
        loaded = []
        for j in range(self.vectors):
            place = self.lower.emit(f"getelementptr inbounds {t}, ptr {start}, i64 {j * self.lanes}")
            loaded.append(self.lower.emit(f"load {self.vector}, ptr {place}, align {align}"))
        for i in range(self.rows):
            place = self.lower.emit(f"add nsw i64 {starts[i]}, {along}")
            one = self.lower.emit(f"load {t}, ptr {self.address(self.pointer(self._slot(left)), self.kind, place)}")
            one = self.lower.emit(f"insertelement {self.vector} poison, {t} {one}, i64 0")
            mask = f"<{self.lanes} x i32> zeroinitializer"
            spread = self.lower.emit(f"shufflevector {self.vector} {one}, {self.vector} poison, {mask}")
            for j in range(self.vectors):
                old = self.lower.emit(f"load {self.vector}, ptr {sums[i, j]}")
                terms = ((self.vector, v) for v in (spread, loaded[j], old))
                new = self.lower.call(self.vector, f"llvm.fma.v{self.lanes}{self.kind}", *terms)
                self.lower.lines.append(f"  store {self.vector} {new}, ptr {sums[i, j]}")

    def _finished(self, first: str, cells: list[str]) -> None:
        """Compute and store the assignments at the places of a tile that exist."""
        axis, extent = self.group.rows
        low = self.lower.emit(f"mul nsw i64 {self.axis[PANEL]}, {self.rows}")
        high = self.minimum(self.lower.emit(f"add nsw i64 {low}, {self.rows}"), self._size(extent))

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
