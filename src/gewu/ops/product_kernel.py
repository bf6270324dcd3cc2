"""Matrix products of bfloat16 numbers, summed in float32, in LLVM text.

C[i, j] = sum_k A[i, k] B[k, j] for any strides of A and B, in the scheme of `gemm`: panels of A and of B, a block of C in
registers. Two ways, chosen by the processor:

    pairs   AVX-512 BF16: a panel holds pairs (k, k + 1) side by side; one instruction multiplies 16 pairs and adds both products
    wide    elsewhere: numbers are widened to float32 while they are packed, then multiplied like float32

A sum of at most DEPTH pairs (or numbers) stays in registers and may leave them rounded to bfloat16; longer ones are kept in
float32.
"""

from __future__ import annotations

from typing import Final

from gewu.ops import llvm
from gewu.ops.gemm import Shape, Writer, shape, turn_square
from gewu.ops.lower import Module

DEPTH: Final = 768
"""Pairs, or widened numbers, of one sum in registers."""
COLUMN_BLOCK: Final = 8
"""Panels of B that a thread packs at a time."""
ROW_BLOCK: Final = 8
"""Panels of A between which a panel of B is used again from the first-level cache."""
_PAIR: Final = "llvm.x86.avx512bf16.dpbf16ps.512"


def has_pairs() -> bool:
    """Return whether the processor multiplies pairs of bfloat16."""
    features = set(llvm.host()[1].split(","))
    return {"+avx512bf16", "+avx512bw", "+avx512f"} <= features


def text(pairs: bool) -> str:
    """Return an LLVM module with `pack_rows` and `multiply`, and `pack_part` and `part`: the same for `native.Parts`."""
    module, block = Module(), shape("f32")
    functions = [_pack(module, block, width, pairs) for width in (block.rows, block.columns)]
    functions += [_kernel(module, block, pairs), _pack_rows(module, block, pairs), _multiply(module, block, pairs)]
    declared = f"declare <16 x float> @{_PAIR}(<16 x float>, <32 x bfloat>, <32 x bfloat>)" if pairs else ""
    return llvm.words("\n".join([module.text(), declared, *functions, _PARTS.replace("WORK", str(work_bytes()))]))


def work_bytes() -> int:
    """Return the bytes that `multiply` packs B in."""
    return COLUMN_BLOCK * shape("f32").columns * DEPTH * 4


def _half(w: Writer, pointer: str, index: str) -> str:
    return w.emit(f"getelementptr i16, ptr {pointer}, i64 {index}")


def _pack(module: Module, block: Shape, width: int, pairs: bool) -> str:
    """Copy a panel of `width` rows: word k width + i holds numbers k (2k and 2k + 1 of pairs) of row i, zero where there is none.

    Rows are `si`, numbers of a row `sk` apart; `inner` numbers, n rows.
    """
    w, step = Writer(module, block), 2 if pairs else 1
    whole = w.emit(f"icmp eq i64 %n, {width}")
    along = w.emit(f"and i1 {whole}, {w.emit('icmp eq i64 %sk, 1')}")
    across = w.emit(f"and i1 {whole}, {w.emit('icmp eq i64 %si, 1')}")
    words = w.emit(f"sdiv i64 {w.add('%inner', step - 1)}, {step}")
    full = w.emit(f"sdiv i64 %inner, {step}")

    def number(row: str, k: str) -> str:
        inside = w.emit(f"and i1 {w.emit(f'icmp slt i64 {row}, %n')}, {w.emit(f'icmp slt i64 {k}, %inner')}")
        place = w.emit(f"select i1 {inside}, i64 {w.add(w.mul(row, '%si'), w.mul(k, '%sk'))}, i64 0")
        value = w.emit(f"load i16, ptr {_half(w, '%from', place)}")
        return w.emit(f"zext i16 {w.emit(f'select i1 {inside}, i16 {value}, i16 0')} to i32")

    def one(k: str, row: str) -> None:
        if pairs:
            low, high = number(row, w.mul(k, 2)), number(row, w.add(w.mul(k, 2), 1))
            word = w.emit(f"or i32 {low}, {w.emit(f'shl i32 {high}, 16')}")
        else:
            word = w.emit(f"shl i32 {number(row, k)}, 16")
        w.line(f"store i32 {word}, ptr {w.at('%to', w.add(w.mul(k, width), row))}")

    def plain(lo: str) -> None:
        w.loop(lo, words, 1, lambda k: w.loop("0", str(width), 1, lambda i: one(k, i)))

    def straight() -> None:  # memory runs along the rows of the panel
        def row(k: str) -> None:
            target = w.at("%to", w.mul(k, width))
            first = w.emit(f"load <{width} x i16>, ptr {_half(w, '%from', w.mul(w.mul(k, step), '%sk'))}, align 2")
            if pairs:
                next_ = w.mul(w.add(w.mul(k, 2), 1), "%sk")
                second = w.emit(f"load <{width} x i16>, ptr {_half(w, '%from', next_)}, align 2")
                picks = ", ".join(f"i32 {i}, i32 {width + i}" for i in range(width))
                kind = f"<{width} x i16>"
                value = w.emit(f"shufflevector {kind} {first}, {kind} {second}, <{2 * width} x i32> <{picks}>")
                w.line(f"store <{2 * width} x i16> {value}, ptr {target}, align 4")
            else:
                value = w.emit(f"zext <{width} x i16> {first} to <{width} x i32>")
                w.line(f"store <{width} x i32> {w.emit(f'shl <{width} x i32> {value}, splat (i32 16)')}, ptr {target}, align 4")

        w.loop("0", full, 1, row)
        plain(full)

    def turned() -> None:  # memory runs along k
        done = w.emit(f"and i64 {full}, {-block.lanes}")

        def load(row: int, k: str) -> str:
            place = _half(w, "%from", w.add(w.mul("%si", row), w.mul(k, step)))
            if pairs:
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
    head = "ptr noalias %from, ptr noalias %to, i64 %si, i64 %sk, i64 %n, i64 %inner"
    return w.function(f"define internal void @pack{width}({head}) noinline")


def _kernel(module: Module, block: Shape, pairs: bool) -> str:
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
                w.line(f"store {block.vector} {_fused(w, block, pairs, spread, columns[j], old)}, ptr %s{i}.{j}")

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
        place = _half(w, "%c", w.add(w.mul("%ldc", i), j * n))
        value = w.emit(f"fptrunc {block.vector} {w.emit(f'load {block.vector}, ptr %s{i}.{j}')} to <{n} x bfloat>")
        w.line(f"store <{n} x bfloat> {value}, ptr {place}, align 2")

    def every(write: object) -> None:
        for i, j in cells:
            write(i, j)  # type: ignore[operator]

    def edge() -> None:
        w.entry.append(f"  %tile = alloca [{block.rows * block.columns} x float], align 64")
        for i, j in cells:
            place = w.at("%tile", str(i * block.columns + j * n))
            w.line(f"store {block.vector} {w.emit(f'load {block.vector}, ptr %s{i}.{j}')}, ptr {place}, align 4")

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

    def inner() -> None:
        w.branch("%round", lambda: every(narrow), lambda: w.branch("%more", lambda: every(wide), lambda: every(fresh)))

    w.branch(whole, inner, edge)
    head = "ptr noalias %a, ptr noalias %b, ptr noalias %c, i64 %ldc, i64 %depth, i1 %more, i1 %round, i64 %n, i64 %m"
    return w.function(f"define internal void @kernel({head}) noinline")


def _fused(w: Writer, block: Shape, pairs: bool, a: str, b: str, sum_: str) -> str:
    if not pairs:
        name = f"llvm.fma.v{block.lanes}f32"
        return w.lower.call(block.vector, name, *((block.vector, v) for v in (a, b, sum_)))
    left, right = (w.emit(f"bitcast {block.vector} {v} to <32 x bfloat>") for v in (a, b))
    return w.emit(f"call <16 x float> @{_PAIR}(<16 x float> {sum_}, <32 x bfloat> {left}, <32 x bfloat> {right})")


def _pack_rows(module: Module, block: Shape, pairs: bool) -> str:
    """Pack panels lo <= p < hi of A: by blocks of DEPTH words along k, then by panel."""
    w, r, step = Writer(module, block), block.rows, 2 if pairs else 1
    panels = w.emit(f"sdiv i64 {w.add('%rows', r - 1)}, {r}")

    def panel(p: str) -> None:
        first = w.mul(p, r)
        count = w.least(w.sub("%rows", first), r)

        def part(k: str) -> None:
            inner = w.least(w.sub("%inner", k), DEPTH * step)
            depth = w.emit(f"sdiv i64 {w.add(inner, step - 1)}, {step}")
            source = _half(w, "%a", w.add(w.mul(first, "%si"), w.mul(k, "%sk")))
            before = w.emit(f"sdiv i64 {k}, {step}")
            place = w.add(w.mul(w.mul(panels, r), before), w.mul(w.mul(p, r), depth))
            w.line(f"call void @pack{r}(ptr {source}, ptr {w.at('%to', place)}, i64 %si, i64 %sk, i64 {count}, i64 {inner})")

        w.loop("0", "%inner", DEPTH * step, part)

    w.loop("%lo", "%hi", 1, panel)
    return w.function("define void @pack_rows(ptr %a, ptr %to, i64 %si, i64 %sk, i64 %rows, i64 %inner, i64 %lo, i64 %hi)")


def _multiply(module: Module, block: Shape, pairs: bool) -> str:
    """Multiply panels ilo <= i < ihi of packed A with panels jlo <= j < jhi of B."""
    w, r, c, step = Writer(module, block), block.rows, block.columns, 2 if pairs else 1
    panels = w.emit(f"sdiv i64 {w.add('%rows', r - 1)}, {r}")
    round_ = w.emit("icmp ne i64 %rounded, 0")

    def columns(j0: str) -> None:
        j1 = w.least(w.add(j0, COLUMN_BLOCK), "%jhi")
        w.loop("0", "%inner", DEPTH * step, lambda k: depth(j0, j1, k))

    def depth(j0: str, j1: str, k: str) -> None:
        inner, more = w.least(w.sub("%inner", k), DEPTH * step), w.emit(f"icmp sgt i64 {k}, 0")
        deep = w.emit(f"sdiv i64 {w.add(inner, step - 1)}, {step}")

        def pack(j: str) -> None:
            first = w.mul(j, c)
            source = _half(w, "%b", w.add(w.mul(k, "%sk"), w.mul(first, "%sj")))
            target = w.at("%work", w.mul(w.sub(j, j0), c * DEPTH))
            count = w.least(w.sub("%columns", first), c)
            w.line(f"call void @pack{c}(ptr {source}, ptr {target}, i64 %sj, i64 %sk, i64 {count}, i64 {inner})")

        w.loop(j0, j1, 1, pack)
        before = w.emit(f"sdiv i64 {k}, {step}")
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

    w.loop("%jlo", "%jhi", COLUMN_BLOCK, columns)
    head = "ptr %packed, ptr %b, ptr %c, ptr %work, i64 %sk, i64 %sj, i64 %ldc, i64 %rows, i64 %columns, i64 %inner"
    return w.function(f"define void @multiply({head}, i64 %rounded, i64 %ilo, i64 %ihi, i64 %jlo, i64 %jhi)")


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
; args: packed, b, c, sk, sj, ldc, rows, columns, inner, rounded, whether ranges are rows, panels, strips
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
  %rounded = word i64 %args 9
  %which = word i64 %args 10
  %panels = word i64 %args 11
  %strips = word i64 %args 12
  %by = icmp ne i64 %which, 0
  %i0 = select i1 %by, i64 %lo, i64 0
  %i1 = select i1 %by, i64 %hi, i64 %panels
  %j0 = select i1 %by, i64 0, i64 %lo
  %j1 = select i1 %by, i64 %strips, i64 %hi
  call void @multiply(ptr %packed, ptr %b, ptr %c, ptr %work, i64 %sk, i64 %sj, i64 %ldc, i64 %rows, i64 %columns, i64 %inner,
    i64 %rounded, i64 %i0, i64 %i1, i64 %j0, i64 %j1)
  ret void
}
"""
