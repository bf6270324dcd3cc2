"""Matrix products of bfloat16 numbers, and of float32 ones by parts, summed in float32, in LLVM text.

C[i, j] = sum_k A[i, k] B[k, j] for any strides of A and B, in the scheme of `gemm`: panels of A and of B, a block of C in
registers. Four ways, chosen by the processor:

    tiles   AMX: panels of A and B hold squares of 16 rows, or columns, by 16 pairs (k, k + 1); one instruction multiplies 16 by
            16 rows and columns over 16 pairs. Linux gives the registers to processes that ask for them
    pairs   AVX-512 BF16: both panels hold pairs side by side; one instruction multiplies 16 pairs and adds both products
    wide    elsewhere: numbers are widened to float32 while they are packed, then multiplied like float32
    thirds  AMX, float32 numbers: each is the sum of three of bfloat16, x = x1 + x2 + x3 without error, and of the nine products
            the six that count in float32 are summed, a1 b1 + a1 b2 + a2 b1 + a1 b3 + a2 b2 + a3 b1 (Henry, Tang and Heinecke,
            arXiv:1904.06376). What is left out is less than 2^-25 of |a| |b|, half of what float32 rounds away

A sum of at most `depth` words stays in registers and may leave them rounded to bfloat16; longer ones are kept in float32.
Tiles and pairs take numbers below 2^-126 for zero, thirds lose parts below it; infinite numbers become NaN by thirds, and so
do those above 3.39e38.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Final

from gewu.ops import llvm
from gewu.ops.gemm import Shape, Writer, shape
from gewu.ops.lower import Module
from gewu.ops.product_pack import SQUARE, filled, half_at, number_at, pack, pack_squares, parts_of, step, tiled

FORMS: Final = {"float32": 0, "bfloat16": 1, "added": 2}
"""What becomes of C: written in float32, written in bfloat16, added to in float32."""
DEPTH: Final = 768
"""Pairs, or widened numbers, of one sum in registers; a third of it by thirds."""
THIRDS: Final = ((0, 2), (0, 1), (1, 1), (1, 0), (0, 0), (2, 0))
"""Which parts are multiplied, in an order in which one of them often stays."""
COLUMN_BLOCK: Final = {"tiles": 64, "thirds": 64, "pairs": 8, "wide": 8}
"""Panels of B that a thread packs at a time, if WORK words hold them."""
WORK: Final = {"tiles": 6 << 16, "thirds": 4 << 16, "pairs": 8 * 32 * DEPTH, "wide": 8 * 32 * DEPTH}
"""Words of packed B that stay in the second-level cache beside a panel of A."""
ROW_BLOCK: Final = {"tiles": 1, "thirds": 1, "pairs": 8, "wide": 8}
"""Panels of A for which a panel of B is used again from the first-level cache; with 1, that cache keeps A."""
AHEAD: Final = 4
"""Lines of the next panel of A that tiles ask for in a step of this one."""
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
    return Shape("f32", 2 * SQUARE, 2 * SQUARE, SQUARE) if tiled(way) else shape("f32")


def depth(way: str) -> int:
    """Return how many words of a row are summed in registers."""
    return DEPTH // parts_of(way)


def text(way: str) -> str:
    """Return an LLVM module with `pack_rows` and `multiply`, and `pack_part` and `part`: the same for `native.Parts`."""
    module, registers = Module(), block(way)
    if tiled(way):
        functions = [pack_squares(module, registers, side, way) for side in ("left", "right")] + [_tiles(module, registers, way)]
    else:
        sides = {"left": registers.rows, "right": registers.columns}
        functions = [pack(module, registers, side, width, way) for side, width in sides.items()]
        functions.append(_kernel(module, registers, way))
    functions += [_pack_rows(module, registers, way), _multiply(module, registers, way)]
    shapes = "".join(f"\\{byte:02x}" for byte in _SHAPES)
    told = f'@shapes = internal constant [64 x i8] c"{shapes}", align 64' if tiled(way) else ""
    declared = _DECLARED["tiles" if tiled(way) else way]
    return llvm.words("\n".join([module.text(), told, declared, *functions, _PARTS.replace("WORK", str(work_bytes(way)))]))


def work_bytes(way: str) -> int:
    """Return the bytes that `multiply` packs B in."""
    return WORK[way] * 4


_HELD: Final = "ptr noalias %a, ptr noalias %b, ptr noalias %c, i64 %ldc, i64 %depth, i1 %more, i1 %round, i64 %n, i64 %m"


def _left_over(w: Writer, block: Shape) -> None:
    """Write n by m numbers of the block that lies in %tile, one by one."""

    def one(i: str, j: str) -> None:
        value = w.emit(f"load float, ptr {w.at('%tile', w.add(w.mul(i, block.columns), j))}")
        place = w.add(w.mul(i, "%ldc"), j)

        def rounded() -> None:
            w.line(f"store bfloat {w.emit(f'fptrunc float {value} to bfloat')}, ptr {half_at(w, '%c', place)}")

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


def _tiles(module: Module, block: Shape, way: str) -> str:
    """Two by two tiles of C; as `_kernel`. Memory at %next is asked for on the way."""
    w, parts, corners = Writer(module, block), parts_of(way), [(i, j) for i in (0, 1) for j in (0, 1)]
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
        square, size = w.emit(f"sdiv i64 {k}, {SQUARE}"), block.rows * SQUARE
        for line in range(AHEAD * parts):
            place = w.emit(f"getelementptr i8, ptr %next, i64 {w.add(w.mul(square, 64 * AHEAD * parts), 64 * line)}")
            w.line(f"call void @llvm.prefetch(ptr {place}, i32 0, i32 2, i32 1)")
        left, right = w.at("%a", w.mul(square, size * parts)), w.at("%b", w.mul(square, size * parts))
        held = [-1, -1]
        for pa, pb in THIRDS if parts == 3 else [(0, 0)]:
            if held[1] != pb:
                for j in (0, 1):
                    move(f"loadd64(i8 {6 + j}", w.at(right, str(pb * size + j * SQUARE * SQUARE)), 4 * SQUARE)
            for i in (0, 1):
                if held[0] != pa:
                    move(f"loadd64(i8 {4 + i}", w.at(left, str(pa * size + i * SQUARE * SQUARE)), 4 * SQUARE)
                for j in (0, 1):
                    w.line(f"call void @llvm.x86.tdpbf16ps(i8 {2 * i + j}, i8 {4 + i}, i8 {6 + j})")
            held = [pa, pb]

    def away() -> None:
        for i, j in corners:
            move(f"stored64(i8 {2 * i + j}", w.at("%tile", str((i * block.columns + j) * SQUARE)), 4 * block.columns)
        w.branch(whole, rounded, lambda: _left_over(w, block))

    def rounded() -> None:
        def row(i: str) -> None:
            for j in range(0, block.columns, block.lanes):
                place = w.at("%tile", w.add(w.mul(i, block.columns), j))
                vector = w.emit(f"load {block.vector}, ptr {place}, align 4")
                _narrowed(w, block, vector, half_at(w, "%c", w.add(w.mul("%ldc", i), j)))

        w.loop("0", str(block.rows), 1, row)

    def straight() -> None:
        for i, j in corners:
            move(f"stored64(i8 {2 * i + j}", corner(i, j), wide)

    w.branch(continued, go_on, begin)
    w.loop("0", "%depth", SQUARE, step)
    w.branch(inside, straight, away)
    return w.function(f"define internal void @kernel({_HELD}, ptr %next) noinline")


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
        _narrowed(w, block, vector, half_at(w, "%c", w.add(w.mul("%ldc", i), j * n)))

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
            inner = w.least(w.sub("%inner", k), depth(way) * numbers)
            source = number_at(w, "%a", w.add(w.mul(first, "%si"), w.mul(k, "%sk")), way)
            before = w.emit(f"sdiv i64 {k}, {numbers}")
            place = w.add(w.mul(w.mul(panels, r), before), w.mul(w.mul(p, r), filled(w, inner, way)))
            place = w.mul(place, parts_of(way))
            w.line(f"call void @pack_left(ptr {source}, ptr {w.at('%to', place)}, i64 %si, i64 %sk, i64 {count}, i64 {inner})")

        w.loop("0", "%inner", depth(way) * numbers, part)

    w.loop("%lo", "%hi", 1, panel)
    return w.function("define void @pack_rows(ptr %a, ptr %to, i64 %si, i64 %sk, i64 %rows, i64 %inner, i64 %lo, i64 %hi)")


def _multiply(module: Module, block: Shape, way: str) -> str:
    """Multiply panels ilo <= i < ihi of packed A with panels jlo <= j < jhi of B."""
    w, r, c, numbers = Writer(module, block), block.rows, block.columns, step(way)
    panels = w.emit(f"sdiv i64 {w.add('%rows', r - 1)}, {r}")
    parts = parts_of(way)
    deepest = w.mul(filled(w, w.least("%inner", depth(way) * numbers), way), c * parts)
    most = w.least(w.emit(f"sdiv i64 {WORK[way]}, {deepest}"), COLUMN_BLOCK[way])
    round_, added = (w.emit(f"icmp eq i64 %form, {FORMS[name]}") for name in ("bfloat16", "added"))

    def columns(j0: str) -> None:
        j1 = w.least(w.add(j0, most), "%jhi")
        w.loop("0", "%inner", depth(way) * numbers, lambda k: deeper(j0, j1, k))

    def deeper(j0: str, j1: str, k: str) -> None:
        inner = w.least(w.sub("%inner", k), depth(way) * numbers)
        more = w.emit(f"or i1 {added}, {w.emit(f'icmp sgt i64 {k}, 0')}")
        deep = w.mul(filled(w, inner, way), parts)

        def pack(j: str) -> None:
            first = w.mul(j, c)
            source = number_at(w, "%b", w.add(w.mul(k, "%sk"), w.mul(first, "%sj")), way)
            target = w.at("%work", w.mul(w.mul(w.sub(j, j0), c), deep))
            count = w.least(w.sub("%columns", first), c)
            w.line(f"call void @pack_right(ptr {source}, ptr {target}, i64 %sj, i64 %sk, i64 {count}, i64 {inner})")

        w.loop(j0, j1, 1, pack)
        before = w.emit(f"sdiv i64 {k}, {numbers}")
        base = w.mul(w.mul(panels, r * parts), before)
        w.loop("%ilo", "%ihi", ROW_BLOCK[way], lambda i0: rows(i0, j0, j1, base, deep, more))

    def rows(i0: str, j0: str, j1: str, base: str, deep: str, more: str) -> None:
        i1 = w.least(w.add(i0, ROW_BLOCK[way]), "%ihi")
        w.loop(j0, j1, 1, lambda j: w.loop(i0, i1, 1, lambda i: tile(i, j, j0, base, deep, more)))

    def tile(i: str, j: str, j0: str, base: str, deep: str, more: str) -> None:
        left = w.at("%packed", w.add(base, w.mul(w.mul(i, r), deep)))
        right = w.at("%work", w.mul(w.mul(w.sub(j, j0), c), deep))
        top, side = w.mul(i, r), w.mul(j, c)
        place = w.add(w.mul(top, "%ldc"), side)
        out = w.emit(f"select i1 {round_}, ptr {half_at(w, '%c', place)}, ptr {w.at('%c', place)}")
        n, m = w.least(w.sub("%rows", top), r), w.least(w.sub("%columns", side), c)
        one = w.emit(f"sdiv i64 {deep}, {parts}")
        same = f"ptr {left}, ptr {right}, ptr {out}, i64 %ldc, i64 {one}, i1 {more}, i1 {round_}, i64 {n}, i64 {m}"
        if tiled(way):  # with every block of this panel of A a share of the next one is asked for
            share = w.least(w.sub(j, j0), r // AHEAD - 1)
            ahead = w.add(w.mul(deep, r), w.mul(w.mul(share, AHEAD), deep))
            same = f"{same}, ptr {w.at(left, ahead)}"
        w.line(f"call void @kernel({same})")

    if tiled(way):
        w.line("call void @llvm.x86.ldtilecfg(ptr @shapes)")
    w.loop("%jlo", "%jhi", most, columns)
    if tiled(way):
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
