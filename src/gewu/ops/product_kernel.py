"""Matrix products of bfloat16 numbers, summed in float32, in LLVM text.

C[i, j] = sum_k A[i, k] B[k, j] for any strides of A and B, in the scheme of `gemm`: panels of A and of B, a block of C in
registers. Three ways, chosen by the processor:

    tiles   AMX: a panel of B holds pairs (k, k + 1) side by side, one of A squares of 16 rows by 16 pairs; one instruction
            multiplies 16 by 16 rows and columns over 16 pairs. Linux gives the registers to processes that ask for them
    pairs   AVX-512 BF16: both panels hold pairs side by side; one instruction multiplies 16 pairs and adds both products
    wide    elsewhere: numbers are widened to float32 while they are packed, then multiplied like float32

A sum of at most DEPTH pairs (or numbers) stays in registers and may leave them rounded to bfloat16; longer ones are kept in
float32. Tiles and pairs take numbers below 2^-126 for zero.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Final

from gewu.ops import llvm
from gewu.ops.gemm import Shape, Writer, shape, turn_square
from gewu.ops.lower import Module

FORMS: Final = {"float32": 0, "bfloat16": 1, "added": 2}
"""What becomes of C: written in float32, written in bfloat16, added to in float32."""
DEPTH: Final = 768
"""Pairs, or widened numbers, of one sum in registers."""
COLUMN_BLOCK: Final = 8
"""Panels of B that a thread packs at a time."""
ROW_BLOCK: Final = 8
"""Panels of A between which a panel of B is used again from the first-level cache."""
SQUARE: Final = 16
"""Rows of a tile, and words of each."""
AHEAD: Final = 2048
"""Bytes of a panel of A by which tiles ask for it before they need it."""
_NEEDS: Final = {
    "tiles": {"+amx-bf16", "+amx-tile", "+avx512bf16", "+avx512bw", "+avx512f"},
    "pairs": {"+avx512bf16", "+avx512bw", "+avx512f"},
    "wide": set[str](),
}
_DECLARED: Final = {
    "tiles": """
declare void @llvm.prefetch(ptr, i32, i32, i32)
declare void @llvm.x86.ldtilecfg(ptr)
declare void @llvm.x86.tilerelease()
declare void @llvm.x86.tilezero(i8)
declare void @llvm.x86.tileloadd64(i8, ptr, i64)
declare void @llvm.x86.tilestored64(i8, ptr, i64)
declare void @llvm.x86.tdpbf16ps(i8, i8, i8)
""",
    "pairs": "declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)",
    "wide": "",
}
_SHAPES: Final = bytes([1, *[0] * 15, *[4 * SQUARE, 0] * 8, *[0] * 16, *[SQUARE] * 8, *[0] * 8])
"""What the processor is told of its tiles: the palette, bytes of a row and rows of each."""
_PERMIT: Final = (158, 0x1023, 18)
"""arch_prctl, its request for a part of the registers' state, and the number of that of the tiles (Linux, asm/prctl.h)."""


@cache
def ways() -> tuple[str, ...]:
    """Return the ways that the processor has, the fastest first."""
    features = set(llvm.host()[1].split(","))
    return tuple(way for way, needs in _NEEDS.items() if needs <= features and (way != "tiles" or _permitted()))


def _permitted() -> bool:
    """Ask the system for the registers of tiles, for all threads of this process; return whether it gives them."""
    try:
        return int(ctypes.CDLL(None).syscall(*_PERMIT)) == 0
    except (AttributeError, OSError):
        return False


def block(way: str) -> Shape:
    """Return rows and columns of the block of C that registers hold."""
    return Shape("f32", 2 * SQUARE, 2 * SQUARE, SQUARE) if way == "tiles" else shape("f32")


def step(way: str) -> int:
    """Return how many numbers a packed word holds."""
    return 1 if way == "wide" else 2


def words(way: str, numbers: int) -> int:
    """Return how many packed words a row of so many numbers takes."""
    return -(-numbers // (step(way) * _unit(way))) * _unit(way)


def _unit(way: str) -> int:
    return SQUARE if way == "tiles" else 1


def text(way: str) -> str:
    """Return an LLVM module with `pack_rows` and `multiply`, and `pack_part` and `part`: the same for `native.Parts`."""
    module, registers = Module(), block(way)
    left = _pack_squares(module, registers) if way == "tiles" else _pack(module, registers, "left", registers.rows, way)
    kernel = _tiles(module, registers) if way == "tiles" else _kernel(module, registers, way)
    functions = [left, _pack(module, registers, "right", registers.columns, way), kernel]
    functions += [_pack_rows(module, registers, way), _multiply(module, registers, way)]
    shapes = "".join(f"\\{byte:02x}" for byte in _SHAPES)
    told = f'@shapes = internal constant [64 x i8] c"{shapes}", align 64' if way == "tiles" else ""
    return llvm.words("\n".join([module.text(), told, _DECLARED[way], *functions, _PARTS.replace("WORK", str(work_bytes(way)))]))


def work_bytes(way: str) -> int:
    """Return the bytes that `multiply` packs B in."""
    return COLUMN_BLOCK * block(way).columns * DEPTH * 4


def _half(w: Writer, pointer: str, index: str) -> str:
    return w.emit(f"getelementptr i16, ptr {pointer}, i64 {index}")


def _filled(w: Writer, numbers: str, way: str) -> str:
    """Return the name of `words` of a number of numbers."""
    unit = _unit(way)
    return w.mul(w.emit(f"sdiv i64 {w.add(numbers, step(way) * unit - 1)}, {step(way) * unit}"), unit)


_PACKED: Final = "ptr noalias %from, ptr noalias %to, i64 %si, i64 %sk, i64 %n, i64 %inner"


def _word(w: Writer, row: str, k: str, way: str) -> str:
    """Return word k of a row, by number: zero where there is none."""

    def number(k: str) -> str:
        inside = w.emit(f"and i1 {w.emit(f'icmp slt i64 {row}, %n')}, {w.emit(f'icmp slt i64 {k}, %inner')}")
        place = w.emit(f"select i1 {inside}, i64 {w.add(w.mul(row, '%si'), w.mul(k, '%sk'))}, i64 0")
        value = w.emit(f"load i16, ptr {_half(w, '%from', place)}")
        return w.emit(f"zext i16 {w.emit(f'select i1 {inside}, i16 {value}, i16 0')} to i32")

    if way == "wide":
        return w.emit(f"shl i32 {number(k)}, 16")
    low, high = number(w.mul(k, 2)), number(w.add(w.mul(k, 2), 1))
    return w.emit(f"or i32 {low}, {w.emit(f'shl i32 {high}, 16')}")


def _side_by_side(w: Writer, k: str, first: int, width: int) -> str:
    """Return words k of `width` rows from `first` on, <2 width x i16>, where memory runs along the rows."""

    def half(k: str) -> str:
        return w.emit(f"load <{width} x i16>, ptr {_half(w, '%from', w.add(w.mul(k, '%sk'), first))}, align 2")

    picks = ", ".join(f"i32 {i}, i32 {width + i}" for i in range(width))
    kind, low = f"<{width} x i16>", half(w.mul(k, 2))
    return w.emit(f"shufflevector {kind} {low}, {kind} {half(w.add(w.mul(k, 2), 1))}, <{2 * width} x i32> <{picks}>")


def _pack_squares(module: Module, block: Shape) -> str:
    """Copy a panel of 32 rows: word 16 (32 (k / 16) + i) + k % 16 holds numbers 2k and 2k + 1 of row i; else as `_pack`."""
    w = Writer(module, block)
    whole = w.emit(f"icmp eq i64 %n, {block.rows}")
    along = w.emit(f"and i1 {whole}, {w.emit('icmp eq i64 %sk, 1')}")
    across = w.emit(f"and i1 {whole}, {w.emit('icmp eq i64 %si, 1')}")
    squares = w.emit(f"sdiv i64 {_filled(w, '%inner', 'tiles')}, {SQUARE}")
    full = w.emit(f"sdiv i64 %inner, {2 * SQUARE}")

    def target(square: str, i: str) -> str:
        return w.mul(w.add(w.mul(square, block.rows), i), SQUARE)

    def plain(lo: str) -> None:
        def row(square: str, i: str) -> None:
            def one(k: str) -> None:
                word = _word(w, i, w.add(w.mul(square, SQUARE), k), "tiles")
                w.line(f"store i32 {word}, ptr {w.at('%to', w.add(target(square, i), k))}")

            w.loop("0", str(SQUARE), 1, one)

        w.loop(lo, squares, 1, lambda square: w.loop("0", str(block.rows), 1, lambda i: row(square, i)))

    def copied() -> None:
        def row(square: str, i: str) -> None:
            place = _half(w, "%from", w.add(w.mul(i, "%si"), w.mul(square, 2 * SQUARE)))
            value = w.emit(f"load {block.vector}, ptr {place}, align 2")
            w.line(f"store {block.vector} {value}, ptr {w.at('%to', target(square, i))}, align 4")

        w.loop("0", full, 1, lambda square: w.loop("0", str(block.rows), 1, lambda i: row(square, i)))
        plain(full)

    def turned() -> None:
        def square(number: str) -> None:
            for first in range(0, block.rows, SQUARE):

                def load(k: int, _: str, first: int = first) -> str:
                    halves = _side_by_side(w, w.add(w.mul(number, SQUARE), k), first, SQUARE)
                    return w.emit(f"bitcast <{2 * SQUARE} x i16> {halves} to {block.vector}")

                turn_square(w, block, w.add(w.mul(number, block.rows), first), 0, SQUARE, SQUARE, load)

        w.loop("0", full, 1, square)
        plain(full)

    w.branch(along, copied, lambda: w.branch(across, turned, lambda: plain("0")))
    return w.function(f"define internal void @pack_left({_PACKED}) noinline")


def _pack(module: Module, block: Shape, side: str, width: int, way: str) -> str:
    """Copy a panel of `width` rows: word k width + i holds numbers k (2k and 2k + 1 of pairs) of row i, zero where there is none.

    Rows are `si`, numbers of a row `sk` apart; `inner` numbers, n rows.
    """
    w, numbers = Writer(module, block), step(way)
    whole = w.emit(f"icmp eq i64 %n, {width}")
    along = w.emit(f"and i1 {whole}, {w.emit('icmp eq i64 %sk, 1')}")
    across = w.emit(f"and i1 {whole}, {w.emit('icmp eq i64 %si, 1')}")
    until = _filled(w, "%inner", way)
    full = w.emit(f"sdiv i64 %inner, {numbers}")

    def one(k: str, row: str) -> None:
        w.line(f"store i32 {_word(w, row, k, way)}, ptr {w.at('%to', w.add(w.mul(k, width), row))}")

    def plain(lo: str) -> None:
        w.loop(lo, until, 1, lambda k: w.loop("0", str(width), 1, lambda i: one(k, i)))

    def straight() -> None:  # memory runs along the rows of the panel
        def row(k: str) -> None:
            target = w.at("%to", w.mul(k, width))
            if way == "wide":
                place = _half(w, "%from", w.mul(k, "%sk"))
                value = w.emit(f"zext <{width} x i16> {w.emit(f'load <{width} x i16>, ptr {place}, align 2')} to <{width} x i32>")
                w.line(f"store <{width} x i32> {w.emit(f'shl <{width} x i32> {value}, splat (i32 16)')}, ptr {target}, align 4")
            else:
                w.line(f"store <{2 * width} x i16> {_side_by_side(w, k, 0, width)}, ptr {target}, align 4")

        w.loop("0", full, 1, row)
        plain(full)

    def turned() -> None:  # memory runs along k
        done = w.emit(f"and i64 {full}, {-block.lanes}")

        def load(row: int, k: str) -> str:
            place = _half(w, "%from", w.add(w.mul("%si", row), w.mul(k, numbers)))
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


_HELD: Final = "ptr noalias %a, ptr noalias %b, ptr noalias %c, i64 %ldc, i64 %depth, i1 %more, i1 %round, i64 %n, i64 %m"


def _left_over(w: Writer, block: Shape) -> None:
    """Write n by m numbers of the block that lies in %tile, one by one."""

    def one(i: str, j: str) -> None:
        value = w.emit(f"load float, ptr {w.at('%tile', w.add(w.mul(i, block.columns), j))}")
        place = w.add(w.mul(i, "%ldc"), j)

        def rounded() -> None:
            w.line(f"store bfloat {w.emit(f'fptrunc float {value} to bfloat')}, ptr {_half(w, '%c', place)}")

        def kept() -> None:
            old = w.emit(f"load float, ptr {w.at('%c', place)}")
            total = w.emit(f"fadd float {value}, {old}")
            w.line(f"store float {w.emit(f'select i1 %more, float {total}, float {value}')}, ptr {w.at('%c', place)}")

        w.branch("%round", rounded, kept)

    w.loop("0", "%n", 1, lambda i: w.loop("0", "%m", 1, lambda j: one(i, j)))


def _narrowed(w: Writer, block: Shape, vector: str, place: str) -> None:
    """Write a vector in bfloat16."""
    value = w.emit(f"fptrunc {block.vector} {vector} to <{block.lanes} x bfloat>")
    w.line(f"store <{block.lanes} x bfloat> {value}, ptr {place}, align 2")


def _tiles(module: Module, block: Shape) -> str:
    """Two by two tiles of C; as `_kernel`."""
    w, corners = Writer(module, block), [(i, j) for i in (0, 1) for j in (0, 1)]
    w.entry.append(f"  %tile = alloca [{block.rows * block.columns} x float], align 64")
    whole = w.emit(f"and i1 {w.emit(f'icmp eq i64 %n, {block.rows}')}, {w.emit(f'icmp eq i64 %m, {block.columns}')}")
    inside = w.emit(f"and i1 {whole}, {w.emit('xor i1 %round, true')}")
    continued = w.emit(f"and i1 {inside}, %more")
    wide = w.mul("%ldc", 4)

    def move(what: str, place: str, stride: str | int) -> None:
        w.line(f"call void @llvm.x86.tile{what}, ptr {place}, i64 {stride})")

    def corner(i: int, j: int) -> str:
        return w.at("%c", w.add(w.mul("%ldc", i * SQUARE), j * SQUARE))

    def go_on() -> None:
        for i, j in corners:
            move(f"loadd64(i8 {2 * i + j}", corner(i, j), wide)

    def begin() -> None:
        for number in range(4):
            w.line(f"call void @llvm.x86.tilezero(i8 {number})")

    def step(k: str) -> None:
        left, right = w.at("%a", w.mul(k, block.rows)), w.at("%b", w.mul(k, block.columns))
        for line in range(0, block.rows * SQUARE * 4, 64):  # the squares of A come from the second-level cache
            place = w.emit(f"getelementptr i8, ptr {left}, i64 {AHEAD + line}")
            w.line(f"call void @llvm.prefetch(ptr {place}, i32 0, i32 3, i32 1)")
        for j in (0, 1):
            move(f"loadd64(i8 {6 + j}", w.at(right, str(j * SQUARE)), 4 * block.columns)
        for i in (0, 1):
            move(f"loadd64(i8 {4 + i}", w.at(left, str(i * SQUARE * SQUARE)), 4 * SQUARE)
            for j in (0, 1):
                w.line(f"call void @llvm.x86.tdpbf16ps(i8 {2 * i + j}, i8 {4 + i}, i8 {6 + j})")

    def away() -> None:
        for i, j in corners:
            move(f"stored64(i8 {2 * i + j}", w.at("%tile", str((i * block.columns + j) * SQUARE)), 4 * block.columns)
        w.branch(whole, rounded, lambda: _left_over(w, block))

    def rounded() -> None:
        def row(i: str) -> None:
            for j in range(0, block.columns, block.lanes):
                place = w.at("%tile", w.add(w.mul(i, block.columns), j))
                vector = w.emit(f"load {block.vector}, ptr {place}, align 4")
                _narrowed(w, block, vector, _half(w, "%c", w.add(w.mul("%ldc", i), j)))

        w.loop("0", str(block.rows), 1, row)

    def straight() -> None:
        for i, j in corners:
            move(f"stored64(i8 {2 * i + j}", corner(i, j), wide)

    w.branch(continued, go_on, begin)
    w.loop("0", "%depth", SQUARE, step)
    w.branch(inside, straight, away)
    return w.function(f"define internal void @kernel({_HELD}) noinline")


def _kernel(module: Module, block: Shape, way: str) -> str:
    """One block of C in registers; n by m numbers are written in float32, added to what is there if `more`, or in bfloat16."""
    w, n = Writer(module, block), block.lanes
    vectors = block.columns // n
    cells = [(i, j) for i in range(block.rows) for j in range(vectors)]
    for i, j in cells:
        w.entry.append(f"  %s{i}.{j} = alloca {block.vector}")
        w.line(f"store {block.vector} zeroinitializer, ptr %s{i}.{j}")

    def step(k: str) -> None:
        source, right = w.at("%a", w.mul(k, block.rows)), w.at("%b", w.mul(k, block.columns))
        columns = [w.emit(f"load {block.vector}, ptr {w.at(right, str(j * n))}, align 4") for j in range(vectors)]
        for i in range(block.rows):
            value = w.emit(f"load {block.t}, ptr {w.at(source, str(i))}")
            single = w.emit(f"insertelement {block.vector} poison, {block.t} {value}, i64 0")
            spread = w.emit(f"shufflevector {block.vector} {single}, {block.vector} poison, <{n} x i32> zeroinitializer")
            for j in range(vectors):
                old = w.emit(f"load {block.vector}, ptr %s{i}.{j}")
                w.line(f"store {block.vector} {_fused(w, block, way, spread, columns[j], old)}, ptr %s{i}.{j}")

    w.loop("0", "%depth", 1, step)
    whole = w.emit(f"and i1 {w.emit(f'icmp eq i64 %n, {block.rows}')}, {w.emit(f'icmp eq i64 %m, {block.columns}')}")

    def wide(i: int, j: int) -> None:
        place = w.at("%c", w.add(w.mul("%ldc", i), j * n))
        old = w.emit(f"load {block.vector}, ptr {place}, align 4")
        total = w.emit(f"fadd {block.vector} {w.emit(f'load {block.vector}, ptr %s{i}.{j}')}, {old}")
        w.line(f"store {block.vector} {total}, ptr {place}, align 4")

    def fresh(i: int, j: int) -> None:
        place = w.at("%c", w.add(w.mul("%ldc", i), j * n))
        w.line(f"store {block.vector} {w.emit(f'load {block.vector}, ptr %s{i}.{j}')}, ptr {place}, align 4")

    def narrow(i: int, j: int) -> None:
        vector = w.emit(f"load {block.vector}, ptr %s{i}.{j}")
        _narrowed(w, block, vector, _half(w, "%c", w.add(w.mul("%ldc", i), j * n)))

    def every(write: object) -> None:
        for i, j in cells:
            write(i, j)  # type: ignore[operator]

    def edge() -> None:
        w.entry.append(f"  %tile = alloca [{block.rows * block.columns} x float], align 64")
        for i, j in cells:
            place = w.at("%tile", str(i * block.columns + j * n))
            w.line(f"store {block.vector} {w.emit(f'load {block.vector}, ptr %s{i}.{j}')}, ptr {place}, align 4")
        _left_over(w, block)

    def inner() -> None:
        w.branch("%round", lambda: every(narrow), lambda: w.branch("%more", lambda: every(wide), lambda: every(fresh)))

    w.branch(whole, inner, edge)
    return w.function(f"define internal void @kernel({_HELD}) noinline")


def _fused(w: Writer, block: Shape, way: str, a: str, b: str, sum_: str) -> str:
    if way == "wide":
        name = f"llvm.fma.v{block.lanes}f32"
        return w.lower.call(block.vector, name, *((block.vector, v) for v in (a, b, sum_)))
    left, right = (w.emit(f"bitcast {block.vector} {v} to <32 x bfloat>") for v in (a, b))
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    return w.emit(f"call <16 x float> @{name}(<16 x float> {sum_}, <32 x bfloat> {left}, <32 x bfloat> {right})")


def _pack_rows(module: Module, block: Shape, way: str) -> str:
    """Pack panels lo <= p < hi of A: by blocks of DEPTH words along k, then by panel."""
    w, r, numbers = Writer(module, block), block.rows, step(way)
    panels = w.emit(f"sdiv i64 {w.add('%rows', r - 1)}, {r}")

    def panel(p: str) -> None:
        first = w.mul(p, r)
        count = w.least(w.sub("%rows", first), r)

        def part(k: str) -> None:
            inner = w.least(w.sub("%inner", k), DEPTH * numbers)
            depth = _filled(w, inner, way)
            source = _half(w, "%a", w.add(w.mul(first, "%si"), w.mul(k, "%sk")))
            before = w.emit(f"sdiv i64 {k}, {numbers}")
            place = w.add(w.mul(w.mul(panels, r), before), w.mul(w.mul(p, r), depth))
            w.line(f"call void @pack_left(ptr {source}, ptr {w.at('%to', place)}, i64 %si, i64 %sk, i64 {count}, i64 {inner})")

        w.loop("0", "%inner", DEPTH * numbers, part)

    w.loop("%lo", "%hi", 1, panel)
    return w.function("define void @pack_rows(ptr %a, ptr %to, i64 %si, i64 %sk, i64 %rows, i64 %inner, i64 %lo, i64 %hi)")


def _multiply(module: Module, block: Shape, way: str) -> str:
    """Multiply panels ilo <= i < ihi of packed A with panels jlo <= j < jhi of B."""
    w, r, c, numbers = Writer(module, block), block.rows, block.columns, step(way)
    panels = w.emit(f"sdiv i64 {w.add('%rows', r - 1)}, {r}")
    round_, added = (w.emit(f"icmp eq i64 %form, {FORMS[name]}") for name in ("bfloat16", "added"))

    def columns(j0: str) -> None:
        j1 = w.least(w.add(j0, COLUMN_BLOCK), "%jhi")
        w.loop("0", "%inner", DEPTH * numbers, lambda k: depth(j0, j1, k))

    def depth(j0: str, j1: str, k: str) -> None:
        inner = w.least(w.sub("%inner", k), DEPTH * numbers)
        more = w.emit(f"or i1 {added}, {w.emit(f'icmp sgt i64 {k}, 0')}")
        deep = _filled(w, inner, way)

        def pack(j: str) -> None:
            first = w.mul(j, c)
            source = _half(w, "%b", w.add(w.mul(k, "%sk"), w.mul(first, "%sj")))
            target = w.at("%work", w.mul(w.sub(j, j0), c * DEPTH))
            count = w.least(w.sub("%columns", first), c)
            w.line(f"call void @pack_right(ptr {source}, ptr {target}, i64 %sj, i64 %sk, i64 {count}, i64 {inner})")

        w.loop(j0, j1, 1, pack)
        before = w.emit(f"sdiv i64 {k}, {numbers}")
        base = w.mul(w.mul(panels, r), before)
        w.loop("%ilo", "%ihi", ROW_BLOCK, lambda i0: rows(i0, j0, j1, base, deep, more))

    def rows(i0: str, j0: str, j1: str, base: str, deep: str, more: str) -> None:
        i1 = w.least(w.add(i0, ROW_BLOCK), "%ihi")
        w.loop(j0, j1, 1, lambda j: w.loop(i0, i1, 1, lambda i: tile(i, j, j0, base, deep, more)))

    def tile(i: str, j: str, j0: str, base: str, deep: str, more: str) -> None:
        left = w.at("%packed", w.add(base, w.mul(w.mul(i, r), deep)))
        right = w.at("%work", w.mul(w.sub(j, j0), c * DEPTH))
        top, side = w.mul(i, r), w.mul(j, c)
        place = w.add(w.mul(top, "%ldc"), side)
        out = w.emit(f"select i1 {round_}, ptr {_half(w, '%c', place)}, ptr {w.at('%c', place)}")
        n, m = w.least(w.sub("%rows", top), r), w.least(w.sub("%columns", side), c)
        same = f"ptr {left}, ptr {right}, ptr {out}, i64 %ldc, i64 {deep}, i1 {more}, i1 {round_}"
        w.line(f"call void @kernel({same}, i64 {n}, i64 {m})")

    if way == "tiles":
        w.line("call void @llvm.x86.ldtilecfg(ptr @shapes)")
    w.loop("%jlo", "%jhi", COLUMN_BLOCK, columns)
    if way == "tiles":
        w.line("call void @llvm.x86.tilerelease()")
    head = "ptr %packed, ptr %b, ptr %c, ptr %work, i64 %sk, i64 %sj, i64 %ldc, i64 %rows, i64 %columns, i64 %inner"
    return w.function(f"define void @multiply({head}, i64 %form, i64 %ilo, i64 %ihi, i64 %jlo, i64 %jhi)")


_PARTS: Final = """
; args: a, to, si, sk, rows, inner
define void @pack_part(ptr %args, ptr %sizes, i64 %lo, i64 %hi) #0 {
  %a = load ptr, ptr %args
  %to = word ptr %args 1
  %si = word i64 %args 2
  %sk = word i64 %args 3
  %rows = word i64 %args 4
  %inner = word i64 %args 5
  call void @pack_rows(ptr %a, ptr %to, i64 %si, i64 %sk, i64 %rows, i64 %inner, i64 %lo, i64 %hi)
  ret void
}
; args: packed, b, c, sk, sj, ldc, rows, columns, inner, form, whether ranges are rows, panels, strips
define void @part(ptr %args, ptr %sizes, i64 %lo, i64 %hi) #0 {
  %work = alloca [WORK x i8], align 64
  %packed = load ptr, ptr %args
  %b = word ptr %args 1
  %c = word ptr %args 2
  %sk = word i64 %args 3
  %sj = word i64 %args 4
  %ldc = word i64 %args 5
  %rows = word i64 %args 6
  %columns = word i64 %args 7
  %inner = word i64 %args 8
  %form = word i64 %args 9
  %which = word i64 %args 10
  %panels = word i64 %args 11
  %strips = word i64 %args 12
  %by = icmp ne i64 %which, 0
  %i0 = select i1 %by, i64 %lo, i64 0
  %i1 = select i1 %by, i64 %hi, i64 %panels
  %j0 = select i1 %by, i64 0, i64 %lo
  %j1 = select i1 %by, i64 %strips, i64 %hi
  call void @multiply(ptr %packed, ptr %b, ptr %c, ptr %work, i64 %sk, i64 %sj, i64 %ldc, i64 %rows, i64 %columns, i64 %inner,
    i64 %form, i64 %i0, i64 %i1, i64 %j0, i64 %j1)
  ret void
}
"""
