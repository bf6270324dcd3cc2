"""Matrix products in LLVM text: packed panels and a kernel that keeps a block of the result in registers.

C[i, j] = sum_k A[i, k] B[k, j] for any strides of A and B and unit column stride of C. A is packed once into panels of ROWS
rows, each thread packs the part of B that it multiplies into panels of two vectors of columns; both with zeros at ragged
edges. Panels are transposed in registers where memory runs along k. DEPTH is chosen so that a panel of B stays in the
first-level cache (Goto and van de Geijn, ACM Trans. Math. Softw. 34, 12, 2008)."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from gewu.ops import llvm
from gewu.ops.lower import Lower, Module
from gewu.ops.pool import run_ranges, scratch

DEPTH: Final = 256
ROW_BLOCK: Final = 12
"""Panels of A that stay in the second-level cache together."""
COLUMN_BLOCK: Final = 16
"""Panels of B that one thread packs at a time."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Element type and register block: rows, columns and elements of a vector."""

    kind: str
    rows: int
    columns: int
    lanes: int

    @property
    def t(self) -> str:
        """The LLVM type of an element."""
        return "float" if self.kind == "f32" else "double"

    @property
    def vector(self) -> str:
        """The LLVM type of a vector."""
        return f"<{self.lanes} x {self.t}>"


@lru_cache(maxsize=4)
def shape(kind: str) -> Shape:
    """Return the register block for the processor at hand: 32 vector registers hold 14 by 2 vectors, 16 hold 6 by 2."""
    bits = llvm.host_vector_bits()
    lanes = bits // (32 if kind == "f32" else 64)
    return Shape(kind, 6 if bits == 256 else 14, 2 * lanes, lanes)


class Writer:
    """Loops and arithmetic of one function."""

    def __init__(self, module: Module, block: Shape) -> None:
        self.block, self.lower = block, Lower(module, [])
        self.entry: list[str] = []
        self.names = module.names
        self.emit = self.lower.emit

    def line(self, text: str) -> None:
        """Append an instruction without a result."""
        self.lower.lines.append(f"  {text}")

    def mul(self, a: str, b: object) -> str:
        """Return the name of a product of integers."""
        return self.emit(f"mul nsw i64 {a}, {b}")

    def add(self, a: str, b: object) -> str:
        """Return the name of a sum of integers."""
        return self.emit(f"add nsw i64 {a}, {b}")

    def sub(self, a: str, b: object) -> str:
        """Return the name of a difference of integers."""
        return self.emit(f"sub nsw i64 {a}, {b}")

    def least(self, a: str, b: object) -> str:
        """Return the name of the smaller of two integers."""
        return self.lower.call("i64", "llvm.smin.i64", ("i64", a), ("i64", str(b)))

    def at(self, pointer: str, index: str) -> str:
        """Return the address of an element."""
        return self.emit(f"getelementptr {self.block.t}, ptr {pointer}, i64 {index}")

    def loop(self, lo: str, hi: str, step: int, body: Callable[[str], None]) -> None:
        """Write a counting loop around what `body` writes for its counter."""
        n = next(self.names)
        self.entry.append(f"  %c{n} = alloca i64")
        self.lower.lines += [f"  store i64 {lo}, ptr %c{n}", f"  br label %h{n}", f"h{n}:", f"  %i{n} = load i64, ptr %c{n}"]
        self.lower.lines += [f"  %m{n} = icmp slt i64 %i{n}, {hi}", f"  br i1 %m{n}, label %b{n}, label %e{n}", f"b{n}:"]
        body(f"%i{n}")
        self.lower.lines += [f"  %n{n} = add nsw i64 %i{n}, {step}", f"  store i64 %n{n}, ptr %c{n}"]
        self.lower.lines += [f"  br label %h{n}", f"e{n}:"]

    def branch(self, test: str, yes: Callable[[], None], no: Callable[[], None]) -> None:
        """Write both sides of a test."""
        n = next(self.names)
        self.line(f"br i1 {test}, label %y{n}, label %n{n}")
        self.lower.lines.append(f"y{n}:")
        yes()
        self.line(f"br label %z{n}")
        self.lower.lines.append(f"n{n}:")
        no()
        self.line(f"br label %z{n}")
        self.lower.lines.append(f"z{n}:")

    def function(self, head: str) -> str:
        """Return the text of the function with what was written."""
        begin = [f"{head} #0 {{", "entry:", *self.entry, "  br label %start", "start:"]
        return "\n".join([*begin, *self.lower.lines, "  ret void", "}"])


def text(kind: str) -> str:
    """Return an LLVM module with `pack_rows` and `multiply` for an element type."""
    module, block = Module(), shape(kind)
    functions = [_pack(module, block, block.rows), _pack(module, block, block.columns), _kernel(module, block)]
    functions += [_edge(module, block), _pack_rows(module, block), _multiply(module, block)]
    return "\n".join([module.text(), *functions])


def _pack(module: Module, block: Shape, width: int) -> str:
    """Copy a panel: to[k width + i] = from[i si + k sk] for i < n, else 0."""
    w = Writer(module, block)
    whole = w.emit(f"icmp eq i64 %n, {width}")
    along = w.emit(f"and i1 {whole}, {w.emit('icmp eq i64 %sk, 1')}")
    across = w.emit(f"and i1 {whole}, {w.emit('icmp eq i64 %si, 1')}")

    def one(k: str, i: str) -> None:
        inside = w.emit(f"icmp slt i64 {i}, %n")
        place = w.add(w.mul(i, "%si"), w.mul(k, "%sk"))
        safe = w.emit(f"select i1 {inside}, i64 {place}, i64 0")
        value = w.emit(f"load {block.t}, ptr {w.at('%from', safe)}")
        value = w.emit(f"select i1 {inside}, {block.t} {value}, {block.t} 0.0")
        w.line(f"store {block.t} {value}, ptr {w.at('%to', w.add(w.mul(k, width), i))}")

    def plain(lo: str) -> None:
        w.loop(lo, "%depth", 1, lambda k: w.loop("0", str(width), 1, lambda i: one(k, i)))

    def straight() -> None:
        def row(k: str) -> None:
            source, target = w.at("%from", w.mul(k, "%sk")), w.at("%to", w.mul(k, width))
            value = w.emit(f"load <{width} x {block.t}>, ptr {source}, align {4 if block.t == 'float' else 8}")
            w.line(f"store <{width} x {block.t}> {value}, ptr {target}, align {4 if block.t == 'float' else 8}")

        w.loop("0", "%depth", 1, row)

    def turned() -> None:
        done = w.emit(f"and i64 %depth, {-block.lanes}")

        def square(k: str) -> None:
            for first in range(0, width, block.lanes):
                turn_square(w, block, k, first, min(block.lanes, width - first), width)

        w.loop("0", done, block.lanes, square)
        plain(done)

    w.branch(along, turned, lambda: w.branch(across, straight, lambda: plain("0")))
    head = "ptr noalias %from, ptr noalias %to, i64 %si, i64 %sk, i64 %n, i64 %depth"
    return w.function(f"define internal void @pack{width}({head}) noinline")


def turn_square(
    w: Writer, block: Shape, k: str, first: int, count: int, width: int, load: Callable[[int, str], str] | None = None
) -> None:
    """Transpose `count` rows of one vector each in registers and store them as columns; `load` gives the vector of a row at k."""
    n, vector, align = block.lanes, block.vector, 4 if block.t == "float" else 8

    def plain(row: int, k: str) -> str:
        return w.emit(f"load {vector}, ptr {w.at('%from', w.add(w.mul('%si', row), k))}, align {align}")

    rows = [(load or plain)(first + i, k) if i < count else "zeroinitializer" for i in range(n)]
    distance = n // 2
    while distance:
        for i in range(n):
            if i & distance:
                continue
            a, b = rows[i], rows[i + distance]
            low = [j if not j & distance else n + j - distance for j in range(n)]
            high = [j + distance if not j & distance else n + j for j in range(n)]
            rows[i], rows[i + distance] = (_shuffle(w, vector, a, b, mask) for mask in (low, high))
        distance //= 2
    for i in range(n):
        target = w.at("%to", w.add(w.mul(w.add(k, i), width), first))
        part, value = f"<{count} x {block.t}>", rows[i]
        if count < n:
            value = _shuffle(w, vector, rows[i], rows[i], list(range(count)))
        w.line(f"store {part} {value}, ptr {target}, align {align}")


def _shuffle(w: Writer, vector: str, a: str, b: str, mask: list[int]) -> str:
    picks = ", ".join(f"i32 {m}" for m in mask)
    return w.emit(f"shufflevector {vector} {a}, {vector} {b}, <{len(mask)} x i32> <{picks}>")


def _kernel(module: Module, block: Shape) -> str:
    """One block of C in registers: overwritten, or added to when `more` is set."""
    w, n, align = Writer(module, block), block.lanes, 4 if block.t == "float" else 8
    vectors = block.columns // n
    fma = f"llvm.fma.v{n}{block.kind}"
    cells = [(i, j) for i in range(block.rows) for j in range(vectors)]
    for i, j in cells:
        w.entry.append(f"  %s{i}.{j} = alloca {block.vector}")
        w.line(f"store {block.vector} zeroinitializer, ptr %s{i}.{j}")

    def step(k: str) -> None:
        source, right = w.at("%a", w.mul(k, block.rows)), w.at("%b", w.mul(k, block.columns))
        columns = [w.emit(f"load {block.vector}, ptr {w.at(right, str(j * n))}, align {align}") for j in range(vectors)]
        for i in range(block.rows):
            value = w.emit(f"load {block.t}, ptr {w.at(source, str(i))}")
            single = w.emit(f"insertelement {block.vector} poison, {block.t} {value}, i64 0")
            spread = w.emit(f"shufflevector {block.vector} {single}, {block.vector} poison, <{n} x i32> zeroinitializer")
            for j in range(vectors):
                old = w.emit(f"load {block.vector}, ptr %s{i}.{j}")
                new = w.lower.call(block.vector, fma, *((block.vector, v) for v in (spread, columns[j], old)))
                w.line(f"store {block.vector} {new}, ptr %s{i}.{j}")

    w.loop("0", "%depth", 1, step)

    def finish(more: bool) -> None:
        for i, j in cells:
            place = w.at("%c", w.add(w.mul("%ldc", i), j * n))
            value = w.emit(f"load {block.vector}, ptr %s{i}.{j}")
            if more:
                value = w.emit(f"fadd {block.vector} {value}, {w.emit(f'load {block.vector}, ptr {place}, align {align}')}")
            w.line(f"store {block.vector} {value}, ptr {place}, align {align}")

    w.branch("%more", lambda: finish(True), lambda: finish(False))
    head = "ptr noalias %a, ptr noalias %b, ptr noalias %c, i64 %ldc, i64 %depth, i1 %more"
    return w.function(f"define internal void @kernel({head}) noinline")


def _edge(module: Module, block: Shape) -> str:
    """A ragged block of C: computed whole beside it, then its n by m elements are copied."""
    w = Writer(module, block)
    w.entry.append(f"  %tile = alloca [{block.rows * block.columns} x {block.t}], align 64")
    w.line(f"call void @kernel(ptr %a, ptr %b, ptr %tile, i64 {block.columns}, i64 %depth, i1 false)")

    def one(i: str, j: str) -> None:
        value = w.emit(f"load {block.t}, ptr {w.at('%tile', w.add(w.mul(i, block.columns), j))}")
        place = w.at("%c", w.add(w.mul(i, "%ldc"), j))
        old = w.emit(f"load {block.t}, ptr {place}")
        total = w.emit(f"fadd {block.t} {value}, {old}")
        w.line(f"store {block.t} {w.emit(f'select i1 %more, {block.t} {total}, {block.t} {value}')}, ptr {place}")

    w.loop("0", "%n", 1, lambda i: w.loop("0", "%m", 1, lambda j: one(i, j)))
    head = "ptr noalias %a, ptr noalias %b, ptr noalias %c, i64 %ldc, i64 %depth, i1 %more, i64 %n, i64 %m"
    return w.function(f"define internal void @edge({head}) noinline")


def _pack_rows(module: Module, block: Shape) -> str:
    """Pack panels lo <= p < hi of A: by blocks of DEPTH along k, then by panel."""
    w, r = Writer(module, block), block.rows
    panels = w.emit(f"sdiv i64 {w.add('%rows', r - 1)}, {r}")

    def panel(p: str) -> None:
        first = w.mul(p, r)
        count = w.least(w.sub("%rows", first), r)

        def part(k: str) -> None:
            depth = w.least(w.sub("%inner", k), DEPTH)
            source = w.at("%a", w.add(w.mul(first, "%si"), w.mul(k, "%sk")))
            place = w.add(w.mul(w.mul(panels, r), k), w.mul(w.mul(p, r), depth))
            w.line(f"call void @pack{r}(ptr {source}, ptr {w.at('%to', place)}, i64 %si, i64 %sk, i64 {count}, i64 {depth})")

        w.loop("0", "%inner", DEPTH, part)

    w.loop("%lo", "%hi", 1, panel)
    return w.function("define void @pack_rows(ptr %a, ptr %to, i64 %si, i64 %sk, i64 %rows, i64 %inner, i64 %lo, i64 %hi)")


def _multiply(module: Module, block: Shape) -> str:
    """Multiply panels ilo <= i < ihi of packed A with panels jlo <= j < jhi of B."""
    w, r, c = Writer(module, block), block.rows, block.columns
    panels = w.emit(f"sdiv i64 {w.add('%rows', r - 1)}, {r}")

    def columns(j0: str) -> None:
        j1 = w.least(w.add(j0, COLUMN_BLOCK), "%jhi")
        w.loop("0", "%inner", DEPTH, lambda k: depth(j0, j1, k))

    def depth(j0: str, j1: str, k: str) -> None:
        deep, more = w.least(w.sub("%inner", k), DEPTH), w.emit(f"icmp sgt i64 {k}, 0")

        def pack(j: str) -> None:
            first = w.mul(j, c)
            source = w.at("%b", w.add(w.mul(k, "%sk"), w.mul(first, "%sj")))
            target = w.at("%work", w.mul(w.sub(j, j0), c * DEPTH))
            count = w.least(w.sub("%columns", first), c)
            w.line(f"call void @pack{c}(ptr {source}, ptr {target}, i64 %sj, i64 %sk, i64 {count}, i64 {deep})")

        w.loop(j0, j1, 1, pack)
        w.loop("%ilo", "%ihi", ROW_BLOCK, lambda i0: rows(i0, j0, j1, k, deep, more))

    def rows(i0: str, j0: str, j1: str, k: str, deep: str, more: str) -> None:
        i1 = w.least(w.add(i0, ROW_BLOCK), "%ihi")
        base = w.mul(w.mul(panels, r), k)
        w.loop(j0, j1, 1, lambda j: w.loop(i0, i1, 1, lambda i: tile(i, j, j0, base, deep, more)))

    def tile(i: str, j: str, j0: str, base: str, deep: str, more: str) -> None:
        left = w.at("%packed", w.add(base, w.mul(w.mul(i, r), deep)))
        right = w.at("%work", w.mul(w.sub(j, j0), c * DEPTH))
        top, side = w.mul(i, r), w.mul(j, c)
        out = w.at("%c", w.add(w.mul(top, "%ldc"), side))
        n, m = w.least(w.sub("%rows", top), r), w.least(w.sub("%columns", side), c)
        whole = w.emit(f"and i1 {w.emit(f'icmp eq i64 {n}, {r}')}, {w.emit(f'icmp eq i64 {m}, {c}')}")
        same = f"ptr {left}, ptr {right}, ptr {out}, i64 %ldc, i64 {deep}, i1 {more}"
        ragged = f"call void @edge({same}, i64 {n}, i64 {m})"
        w.branch(whole, lambda: w.line(f"call void @kernel({same})"), lambda: w.line(ragged))

    w.loop("%jlo", "%jhi", COLUMN_BLOCK, columns)
    head = "ptr %packed, ptr %b, ptr %c, ptr %work, i64 %sk, i64 %sj, i64 %ldc, i64 %rows, i64 %columns, i64 %inner"
    return w.function(f"define void @multiply({head}, i64 %ilo, i64 %ihi, i64 %jlo, i64 %jhi)")


_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64


_making = threading.Lock()


def functions(kind: str, cache: Path | None) -> tuple[Any, Any, llvm.Library]:
    """Return pack, multiply and what keeps them alive: made once, by the thread that comes first."""
    with _making:
        return _made(kind, cache)


@lru_cache(maxsize=4)
def _made(kind: str, cache: Path | None) -> tuple[Any, Any, llvm.Library]:
    library = llvm.jit(text(kind), cache=cache)
    pack = ctypes.CFUNCTYPE(None, *[_POINTER] * 2, *[_INTEGER] * 6)(library.address("pack_rows"))
    multiply = ctypes.CFUNCTYPE(None, *[_POINTER] * 4, *[_INTEGER] * 10)(library.address("multiply"))
    return pack, multiply, library


@dataclass(frozen=True, slots=True)
class Operands:
    """Addresses, strides in elements (A along rows and inner, B along inner and columns, C along rows) and sizes."""

    a: int
    b: int
    c: int
    si: int
    sk: int
    bk: int
    bj: int
    ldc: int
    rows: int
    columns: int
    inner: int


def pack(kind: str, o: Operands, target: int, threads: int, cache: Path | None = None) -> None:
    """Pack A to an address with `packed_bytes` bytes."""
    call, _, _library = functions(kind, cache)
    panels = -(-o.rows // shape(kind).rows)
    run_ranges(lambda lo, hi: call(o.a, target, o.si, o.sk, o.rows, o.inner, lo, hi), _cut(panels, threads), threads)


def packed_bytes(kind: str, o: Operands) -> int:
    """Return the bytes that a packed A takes."""
    rows = shape(kind).rows
    return -(-o.rows // rows) * rows * o.inner * (4 if kind == "f32" else 8)


def multiply(kind: str, o: Operands, threads: int, cache: Path | None = None, packed: int = 0) -> None:
    """Compute C = A B with up to `threads` threads; `packed`: where A lies packed already."""
    (_, run, _library), block = functions(kind, cache), shape(kind)
    panels, strips = -(-o.rows // block.rows), -(-o.columns // block.columns)
    if not packed:
        held = scratch("packed", packed_bytes(kind, o))
        packed = held.address
        pack(kind, o, packed, threads, cache)
    bytes_ = COLUMN_BLOCK * block.columns * DEPTH * (4 if kind == "f32" else 8)

    def part(i0: int, i1: int, j0: int, j1: int) -> None:
        work = scratch("work", bytes_)
        run(packed, o.b, o.c, work.address, o.bk, o.bj, o.ldc, o.rows, o.columns, o.inner, i0, i1, j0, j1)

    if threads == 1:
        part(0, panels, 0, strips)
    elif strips >= panels or strips >= 4 * threads:
        run_ranges(lambda lo, hi: part(0, panels, lo, hi), _cut(strips, 4 * threads), threads)
    else:
        run_ranges(lambda lo, hi: part(lo, hi, 0, strips), _cut(panels, 2 * threads), threads)


def _cut(count: int, pieces: int) -> list[tuple[int, int]]:
    length = -(-count // pieces)
    return [(lo, min(lo + length, count)) for lo in range(0, count, length)]
