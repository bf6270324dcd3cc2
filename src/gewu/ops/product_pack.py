"""How the operands of `product_kernel` lie packed, and the loops that pack them.

A panel holds so many rows (of A, or columns of B) as a block of C has. Its words, 32 bits of each row at a time, are numbers
widened to float32, or pairs of bfloat16 (k, k + 1); for tiles they lie in squares of 16 rows by 16 words, for thirds part by
part.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from gewu.ops.gemm import Shape, Writer, turn_square
from gewu.ops.lower import Module

SQUARE: Final = 16
"""Rows of a tile, and words of each."""


def tiled(way: str) -> bool:
    """Return whether this way is one of AMX."""
    return way in ("tiles", "thirds")


def step(way: str) -> int:
    """Return how many numbers a packed word holds."""
    return 1 if way == "wide" else 2


def words(way: str, numbers: int) -> int:
    """Return how many packed words a row of so many numbers takes, with all its parts."""
    return -(-numbers // (step(way) * unit_of(way))) * unit_of(way) * parts_of(way)


def unit_of(way: str) -> int:
    """Return of how many words the packed rows are multiples."""
    return SQUARE if tiled(way) else 1


def parts_of(way: str) -> int:
    """Return in how many parts a number is multiplied."""
    return 3 if way == "thirds" else 1


def half_at(w: Writer, pointer: str, index: str) -> str:
    """Return the address of a number of bfloat16."""
    return w.emit(f"getelementptr i16, ptr {pointer}, i64 {index}")


def filled(w: Writer, numbers: str, way: str) -> str:
    """Return the name of `words` of a number of numbers, of one part."""
    unit = unit_of(way)
    return w.mul(w.emit(f"sdiv i64 {w.add(numbers, step(way) * unit - 1)}, {step(way) * unit}"), unit)


def number_at(w: Writer, pointer: str, index: str, way: str) -> str:
    """Return the address of a number of A or B."""
    return w.at(pointer, index) if way == "thirds" else half_at(w, pointer, index)


_PACKED: Final = "ptr noalias %from, ptr noalias %to, i64 %si, i64 %sk, i64 %n, i64 %inner"


def _part(w: Writer, value: str, part: int, count: int = 1) -> str:
    """Return a part of float32 numbers in bfloat16, as i16: what the parts before it leave, rounded."""
    floats, halves, integers = (f"<{count} x {t}>" if count > 1 else t for t in ("float", "bfloat", "i16"))
    for _ in range(part):
        done = w.emit(f"fpext {halves} {w.emit(f'fptrunc {floats} {value} to {halves}')} to {floats}")
        value = w.emit(f"fsub {floats} {value}, {done}")
    return w.emit(f"bitcast {halves} {w.emit(f'fptrunc {floats} {value} to {halves}')} to {integers}")


def _word(w: Writer, row: str, k: str, way: str, part: int = 0) -> str:
    """Return word k of a row, by number: zero where there is none."""

    def number(k: str) -> str:
        inside = w.emit(f"and i1 {w.emit(f'icmp slt i64 {row}, %n')}, {w.emit(f'icmp slt i64 {k}, %inner')}")
        place = w.emit(f"select i1 {inside}, i64 {w.add(w.mul(row, '%si'), w.mul(k, '%sk'))}, i64 0")
        value = w.emit(f"load {'float' if way == 'thirds' else 'i16'}, ptr {number_at(w, '%from', place, way)}")
        value = _part(w, value, part) if way == "thirds" else value
        return w.emit(f"zext i16 {w.emit(f'select i1 {inside}, i16 {value}, i16 0')} to i32")

    if way == "wide":
        return w.emit(f"shl i32 {number(k)}, 16")
    low, high = number(w.mul(k, 2)), number(w.add(w.mul(k, 2), 1))
    return w.emit(f"or i32 {low}, {w.emit(f'shl i32 {high}, 16')}")


def _side_by_side(w: Writer, k: str, first: int, width: int, way: str, part: int = 0) -> str:
    """Return words k of `width` rows from `first` on, <width x float>, where memory runs along the rows."""
    kind = "float" if way == "thirds" else "i16"

    def half(k: str) -> str:
        place = number_at(w, "%from", w.add(w.mul(k, "%sk"), first), way)
        return w.emit(f"load <{width} x {kind}>, ptr {place}, align {4 if kind == 'float' else 2}")

    low, high = half(w.mul(k, 2)), half(w.add(w.mul(k, 2), 1))
    if way == "thirds":
        low, high = (_part(w, half, part, width) for half in (low, high))
    picks = ", ".join(f"i32 {i}, i32 {width + i}" for i in range(width))
    mixed = w.emit(f"shufflevector <{width} x i16> {low}, <{width} x i16> {high}, <{2 * width} x i32> <{picks}>")
    return w.emit(f"bitcast <{2 * width} x i16> {mixed} to <{width} x float>")


def _in_line(w: Writer, row: str, square: str, way: str, part: int) -> str:
    """Return the words of a square in one row, <16 x float>, where memory runs along k."""
    place = number_at(w, "%from", w.add(w.mul(row, "%si"), w.mul(square, 2 * SQUARE)), way)
    if way != "thirds":
        return w.emit(f"load <{SQUARE} x float>, ptr {place}, align 2")
    wide = w.emit(f"load <{2 * SQUARE} x float>, ptr {place}, align 4")
    return w.emit(f"bitcast <{2 * SQUARE} x i16> {_part(w, wide, part, 2 * SQUARE)} to <{SQUARE} x float>")


def pack_squares(module: Module, block: Shape, side: str, way: str) -> str:
    """Copy a panel of 32 rows, else as `pack`: square by square of 16 words, in each part by part.

    In a part of a square rows are taken 16 by 16; of those, word 16 i + k of A, and word 16 k + i of B, holds numbers 2k and
    2k + 1 of row i.
    """
    w, parts = Writer(module, block), parts_of(way)
    whole = w.emit(f"icmp eq i64 %n, {block.rows}")
    along = w.emit(f"and i1 {whole}, {w.emit('icmp eq i64 %sk, 1')}")
    across = w.emit(f"and i1 {whole}, {w.emit('icmp eq i64 %si, 1')}")
    squares = w.emit(f"sdiv i64 {filled(w, '%inner', way)}, {SQUARE}")
    full = w.emit(f"sdiv i64 %inner, {2 * SQUARE}")

    def begin(square: str, part: int, half: int) -> str:
        return w.mul(w.add(w.mul(w.add(w.mul(square, parts), part), 2), half), SQUARE)

    def plain(lo: str) -> None:
        def one(square: str, i: str, half: int, k: str) -> None:
            for part in range(parts):
                word = _word(w, w.add(i, half * SQUARE), w.add(w.mul(square, SQUARE), k), way, part)
                line, column = (i, k) if side == "left" else (k, i)
                place = w.add(w.mul(w.add(begin(square, part, half), line), SQUARE), column)
                w.line(f"store i32 {word}, ptr {w.at('%to', place)}")

        def row(square: str, i: str) -> None:
            for half in (0, 1):
                w.loop("0", str(SQUARE), 1, partial(one, square, i, half))

        w.loop(lo, squares, 1, lambda square: w.loop("0", str(SQUARE), 1, lambda i: row(square, i)))

    def words(square: str, i: str, part: int, half: int, lengthwise: bool) -> str:
        if lengthwise:
            return _in_line(w, w.add(i, half * SQUARE), square, way, part)
        return _side_by_side(w, w.add(w.mul(square, SQUARE), i), half * SQUARE, SQUARE, way, part)

    pieces = [(half, part) for half in (0, 1) for part in range(parts)]

    def copied() -> None:  # memory runs the way the words do
        def row(square: str, i: str) -> None:
            for half, part in pieces:
                place = w.mul(w.add(begin(square, part, half), i), SQUARE)
                value = words(square, i, part, half, side == "left")
                w.line(f"store {block.vector} {value}, ptr {w.at('%to', place)}, align 4")

        w.loop("0", full, 1, lambda square: w.loop("0", str(SQUARE), 1, lambda i: row(square, i)))
        plain(full)

    def turned() -> None:
        def square(number: str) -> None:
            for half, part in pieces:

                def load(i: int, _: str, half: int = half, part: int = part) -> str:
                    return words(number, str(i), part, half, side == "right")

                turn_square(w, block, begin(number, part, half), 0, SQUARE, SQUARE, load)

        w.loop("0", full, 1, square)
        plain(full)

    by_line, by_column = (copied, turned) if side == "left" else (turned, copied)
    w.branch(along, by_line, lambda: w.branch(across, by_column, lambda: plain("0")))
    return w.function(f"define internal void @pack_{side}({_PACKED}) noinline")


def pack(module: Module, block: Shape, side: str, width: int, way: str) -> str:
    """Copy a panel of `width` rows: word k width + i holds numbers k (2k and 2k + 1 of pairs) of row i, zero where there is none.

    Rows are `si`, numbers of a row `sk` apart; `inner` numbers, n rows.
    """
    w, numbers = Writer(module, block), step(way)
    whole = w.emit(f"icmp eq i64 %n, {width}")
    along = w.emit(f"and i1 {whole}, {w.emit('icmp eq i64 %sk, 1')}")
    across = w.emit(f"and i1 {whole}, {w.emit('icmp eq i64 %si, 1')}")
    until = filled(w, "%inner", way)
    full = w.emit(f"sdiv i64 %inner, {numbers}")

    def one(k: str, row: str) -> None:
        w.line(f"store i32 {_word(w, row, k, way)}, ptr {w.at('%to', w.add(w.mul(k, width), row))}")

    def plain(lo: str) -> None:
        w.loop(lo, until, 1, lambda k: w.loop("0", str(width), 1, lambda i: one(k, i)))

    def straight() -> None:  # memory runs along the rows of the panel
        def row(k: str) -> None:
            target = w.at("%to", w.mul(k, width))
            if way == "wide":
                place = half_at(w, "%from", w.mul(k, "%sk"))
                value = w.emit(f"zext <{width} x i16> {w.emit(f'load <{width} x i16>, ptr {place}, align 2')} to <{width} x i32>")
                w.line(f"store <{width} x i32> {w.emit(f'shl <{width} x i32> {value}, splat (i32 16)')}, ptr {target}, align 4")
            else:
                w.line(f"store <{width} x float> {_side_by_side(w, k, 0, width, way)}, ptr {target}, align 4")

        w.loop("0", full, 1, row)
        plain(full)

    def turned() -> None:  # memory runs along k
        done = w.emit(f"and i64 {full}, {-block.lanes}")

        def load(row: int, k: str) -> str:
            place = half_at(w, "%from", w.add(w.mul("%si", row), w.mul(k, numbers)))
            if way != "wide":
                return w.emit(f"load {block.vector}, ptr {place}, align 2")
            half = w.emit(f"load <{block.lanes} x i16>, ptr {place}, align 2")
            wide = w.emit(f"zext <{block.lanes} x i16> {half} to <{block.lanes} x i32>")
            wide = w.emit(f"shl <{block.lanes} x i32> {wide}, splat (i32 16)")
            return w.emit(f"bitcast <{block.lanes} x i32> {wide} to {block.vector}")

        def square(k: str) -> None:
            for first in range(0, width, block.lanes):
                turn_square(w, block, k, first, min(block.lanes, width - first), width, load)

        w.loop("0", done, block.lanes, square)
        plain(done)

    w.branch(along, turned, lambda: w.branch(across, straight, lambda: plain("0")))
    return w.function(f"define internal void @pack_{side}({_PACKED}) noinline")
