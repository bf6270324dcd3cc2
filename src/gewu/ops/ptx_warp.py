"""What threads do together in PTX: shuffles, votes, barriers, and matrix products.

`ldmatrix` becomes shuffles of addresses and loads.  The fragments of `wmma` have no layout that PTX tells; here they have that of
`mma.m16n8k16`, which its loads, products and stores agree on: A in four registers (the other four repeat them), B and the sums as
two tiles of eight columns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from gewu.ops.ir import Operand
from gewu.ops.ptx_arith import Rule
from gewu.ops.ptx_syntax import Item, Number
from gewu.ops.ptx_write import Line, Writer

_MODES: Final = ("up", "down", "bfly", "idx")
_VOTES: Final = ("all", "any", "uni", "ballot")
_REDUCTIONS: Final = ("add", "min", "max", "and", "or", "xor")
_SHAPES: Final = {
    **dict.fromkeys((("m16n8k16", "f16"), ("m16n8k16", "bf16"), ("m16n8k8", "tf32")), (4, 2)),
    **dict.fromkeys((("m16n8k8", "f16"), ("m16n8k8", "bf16"), ("m16n8k4", "tf32")), (2, 1)),
}


def _shuffle(w: Writer, x: Line) -> None:
    mode, sync = x.one_of(*_MODES), "sync" in x.mods
    if not mode or len(x.items) != 4 + sync:
        raise w.refuse("a shuffle that is not read", x.word)
    value, predicate = w.pair(x.items[0])
    dst = [w.target(value, "b32")] + ([w.target(predicate, "pred")] if predicate != "_" else [])
    w.emit("shfl", "b32", dst, [w.source(i, "b32") for i in x.items[1:4]], [mode])


def _vote(w: Writer, x: Line) -> None:
    mode = x.one_of(*_VOTES)
    if not mode or len(x.items) != 2 + ("sync" in x.mods) or (x.type == "b32") != (mode == "ballot"):
        raise w.refuse("a vote that is not read", x.word)
    w.emit("vote", "pred", [w.target(x.items[0], x.type)], [w.source(x.items[1], "pred")], [mode])


def _match(w: Writer, x: Line) -> None:
    if "any" not in x.mods:
        raise w.refuse(f"unknown instruction `{x.word}`")
    w.emit("match", x.type, [w.target(x.items[0], "b32")], [w.source(x.items[1], x.type)], ["any"])


def _redux(w: Writer, x: Line) -> None:
    what = x.one_of(*_REDUCTIONS)
    if (x.type == "b32") != (what in ("and", "or", "xor")):
        raise w.refuse("a reduction that is not read", x.word)
    w.emit("redux", x.type, [w.target(x.items[0], x.type)], [w.source(x.items[1], x.type)], [what])


def _active(w: Writer, x: Line) -> None:
    w.emit("activemask", "b32", [w.target(x.items[0], "b32")])


def _barrier(w: Writer, x: Line) -> None:
    """Wait for all threads; a number of threads is right only when it is that of the block."""
    if "warp" in x.mods:
        return
    reduces = "red" in x.mods
    numbers = x.items[1:-1] if reduces else x.items
    known = all(isinstance(i, Number) and i.value >= 0 for i in numbers) and 1 <= len(numbers) <= 2
    count = numbers[1].value if known and len(numbers) == 2 else 0  # type: ignore[union-attr]
    if ("sync" in x.mods) == reduces or not known or (count and count != w.block) or bool(x.types) != reduces:
        raise w.refuse("a barrier for some of the threads", x.word)
    if reduces:
        _reduce_block(w, x)
    else:
        w.emit("bar", "pred")


def _reduce_block(w: Writer, x: Line) -> None:
    """Count in a word of shared memory the threads where a predicate holds (for `and`: where it does not)."""
    what, space = x.one_of("popc", "and", "or"), ["shared"]
    if w.guard is not None or (x.type == "u32") != (what == "popc"):
        raise w.refuse(f"unknown instruction `{x.word}`")
    test = w.source(x.items[-1], "pred")
    w.emit("bar", "pred")
    w.emit("st", "b32", (), [w.counter, 0, 0], space)
    w.emit("bar", "pred")
    one, zero = (0, 1) if what == "and" else (1, 0)
    w.emit("atom", "u32", (), [w.counter, 0, w.make("select", "b32", one, zero, test)], [*space, "add"])
    w.emit("bar", "pred")
    total = w.temporary("b32")
    w.emit("ld", "b32", [total], [w.counter, 0], space)
    if what == "popc":
        w.emit("mov", "b32", [w.target(x.items[0], "u32")], [total])
    else:
        relation = "eq" if what == "and" else "ne"
        w.emit("setp", "u32", [w.target(x.items[0], "pred")], [total, 0], [relation])


def _product(w: Writer, x: Line) -> None:
    shape = next((m for m in x.mods if re.fullmatch(r"m\d+n\d+k\d+", m)), "")
    out, a, b, c = x.types
    counts = _SHAPES.get((shape, a))
    layout = [m for m in x.mods if m in ("row", "col")]
    if counts is None or a != b or (out, c) != ("f32", "f32") or layout != ["row", "col"]:
        raise w.refuse("a matrix product that is not read", x.word)
    parts = [w.vector(i) for i in x.items]
    if [len(p) for p in parts] != [4, *counts, 4]:
        raise w.refuse("a matrix product that is not read", x.word)
    sources = [w.source(p, "b32") for part in parts[1:] for p in part]
    w.emit("mma", "f32", [w.target(t, "f32") for t in parts[0]], sources, [shape, a, b])


def _load_matrix(w: Writer, x: Line) -> None:
    count = int((x.one_of("x1", "x2", "x4") or "x0")[1:])
    names = w.vector(x.items[0])
    if not count or len(names) != count or "m8n8" not in x.mods or not x.one_of("shared", "shared::cta"):
        raise w.refuse(f"unknown instruction `{x.word}`")
    base, offset = w.address(x.items[1], "shared")
    lane = w.make("special", "b32", mods=("laneid",))
    row, column = w.make("shr", "u32", lane, 2), w.make("and", "b32", lane, 3)
    values = []
    for k in range(count):
        if "trans" not in x.mods:
            place = _shared_row(w, base, w.make("add", "u32", row, 8 * k), w.make("shl", "b32", column, 2))
            values.append(_load(w, "b32", place, offset, "shared"))
            continue
        pair = []
        for half in range(2):
            from_ = w.make("add", "u32", w.make("shl", "b32", column, 1), 8 * k + half)
            place = _shared_row(w, base, from_, w.make("shl", "b32", row, 1))
            pair.append(_load(w, "b16", place, offset, "shared"))
        values.append(w.make("pack", "b32", *pair))
    for name, value in zip(names, values, strict=True):
        w.emit("mov", "b32", [w.target(name, "b32")], [value])


def _shared_row(w: Writer, base: Operand, lane: str, offset: str) -> str:
    """Return the address that another lane holds, plus an offset."""
    start = w.temporary("b32")
    w.emit("shfl", "b32", [start], [base, lane, 31], ["idx"])
    return w.make("add", "u32", start, offset)


def _load(w: Writer, type_: str, base: Operand, offset: int, space: str) -> str:
    made = w.temporary(type_)
    w.emit("ld", type_, [made], [base, offset], [space])
    return made


class _Tiles:
    """Addresses of elements (row, column) of a matrix of 16 × 16 in memory, for the lane that runs."""

    def __init__(self, w: Writer, x: Line, address: Item, stride: Item | None, size: int) -> None:
        self.w, self.size, self.column_major = w, size, "col" in x.mods
        self.space = "global" if "global" in x.mods else "shared" if x.one_of("shared", "shared::cta") else "generic"
        self.base, self.offset = w.address(address, self.space)
        self.wide = "u32" if self.space == "shared" else "u64"
        self.stride = w.fit(w.source(stride, "u32") if stride is not None else 16, f"b{self.wide[1:]}")
        lane = w.make("special", "b32", mods=("laneid",))
        self.row, self.column = w.make("shr", "u32", lane, 2), w.make("shl", "b32", w.make("and", "b32", lane, 3), 1)

    def address(self, row: Operand, row_offset: int, column: Operand, column_offset: int) -> Operand:
        """Return the address of the element (row + offset, column + offset)."""
        w = self.w
        parts = [w.make("add", "u32", row, row_offset), w.make("add", "u32", column, column_offset)]
        slow, fast = (parts[1], parts[0]) if self.column_major else (parts[0], parts[1])
        width = f"b{self.wide[1:]}"
        place = w.make("add", self.wide, w.make("mul", self.wide, w.fit(slow, width), self.stride), w.fit(fast, width))
        return w.make("add", self.wide, self.base, w.make("mul", self.wide, place, self.size))


def _wmma(w: Writer, x: Line) -> None:
    shapes = [m for m in x.mods if m[0] == "m" and m != "mma"]
    if shapes != ["m16n16k16"]:
        raise w.refuse(f"unknown instruction `{x.word}`")
    if "load" in x.mods:
        _wmma_load(w, x)
    elif "store" in x.mods:
        _wmma_store(w, x)
    else:
        _wmma_product(w, x)


def _wmma_load(w: Writer, x: Line) -> None:
    which, names = x.one_of("a", "b", "c"), w.vector(x.items[0])
    wanted = ("f16", "bf16") if which in ("a", "b") else ("f32",)
    sizes = (8, 4) if x.type == "bf16" else (8,)
    if x.type not in wanted or len(names) not in sizes or len(x.items) not in (2, 3) or not x.one_of("row", "col"):
        raise w.refuse(f"unknown instruction `{x.word}`")
    tiles = _Tiles(w, x, x.items[1], x.items[2] if len(x.items) == 3 else None, 4 if which == "c" else 2)
    values: list[Operand] = []
    if which == "c":
        for n, i, j in ((n, i, j) for n in (0, 8) for i in (0, 8) for j in (0, 1)):
            values.append(_load(w, "b32", tiles.address(tiles.row, i, tiles.column, n + j), tiles.offset, tiles.space))
    else:
        spots = [(i, k) for k in (0, 8) for i in (0, 8)] if which == "a" else [(n, k) for n in (0, 8) for k in (0, 8)]
        for i, k in spots:
            pair = []
            for j in (0, 1):
                place = (tiles.row, i, tiles.column, k + j) if which == "a" else (tiles.column, k + j, tiles.row, i)
                pair.append(_load(w, "b16", tiles.address(*place), tiles.offset, tiles.space))
            values.append(w.make("pack", "b32", *pair))
        values = (values * 2)[: len(names)]
    for name, value in zip(names, values, strict=True):
        w.emit("mov", "b32", [w.target(name, "b32")], [value])


def _wmma_store(w: Writer, x: Line) -> None:
    values = [w.source(i, "f32") for i in w.vector(x.items[1])]
    if x.type != "f32" or len(values) != 8 or len(x.items) not in (2, 3) or "d" not in x.mods or not x.one_of("row", "col"):
        raise w.refuse(f"unknown instruction `{x.word}`")
    tiles = _Tiles(w, x, x.items[0], x.items[2] if len(x.items) == 3 else None, 4)
    spots = [(n, i, j) for n in (0, 8) for i in (0, 8) for j in (0, 1)]
    for (n, i, j), value in zip(spots, values, strict=True):
        place = tiles.address(tiles.row, i, tiles.column, n + j)
        w.emit("st", "b32", (), [place, tiles.offset, value], [tiles.space])


def _wmma_product(w: Writer, x: Line) -> None:
    parts = [w.vector(i) for i in x.items]
    kind = "bf16" if "bf16" in x.types else "f16"
    lengths = ([8, 4, 4, 8] if kind == "bf16" else [8, 8, 8, 8]) if len(parts) == 4 else []
    types = ("f32", "bf16", "bf16", "f32") if kind == "bf16" else ("f32", "f32")
    if [len(p) for p in parts] != lengths or x.types != types or "mma" not in x.mods or "satfinite" in x.mods:
        raise w.refuse(f"unknown instruction `{x.word}`")
    a, b, c = ([w.source(i, "b32") for i in part] for part in parts[1:])
    made: list[str] = []
    for half in (0, 1):
        dst = [w.temporary("b32") for _ in range(4)]
        sources: Sequence[Operand] = [*a[:4], *b[2 * half : 2 * half + 2], *c[4 * half : 4 * half + 4]]
        w.emit("mma", "f32", dst, sources, ["m16n8k16", kind, kind])
        made += dst
    for name, value in zip(parts[0], made, strict=True):
        w.emit("mov", "b32", [w.target(name, "f32")], [value])


_WMMA: Final = (
    *("load", "store", "mma", "a", "b", "c", "d", "sync", "aligned", "row", "col", "m16n16k16"),
    *("global", "shared", "shared::cta"),
)
_BARRIER: Final = ("sync", "warp", "cta", "aligned", "red", "popc", "and", "or")
_MMA: Final = ("sync", "aligned", "row", "col", "m16n8k16", "m16n8k8", "m16n8k4")
_LDMATRIX: Final = ("sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta")

RULES: Final[dict[str, Rule]] = {
    "shfl": Rule(_shuffle, ("b32",), ("sync", *_MODES), (4, 5)),
    "vote": Rule(_vote, ("pred", "b32"), ("sync", *_VOTES), (2, 3)),
    "match": Rule(_match, ("b32", "b64"), ("any", "all", "sync"), (3, 3)),
    "redux": Rule(_redux, ("u32", "s32", "b32"), ("sync", *_REDUCTIONS), (3, 3)),
    "activemask": Rule(_active, ("b32",), (), (1, 1)),
    **{op: Rule(_barrier, ("u32", "pred"), _BARRIER, (1, 4), (0, 1)) for op in ("bar", "barrier")},
    "mma": Rule(_product, ("f32", "f16", "bf16", "tf32"), _MMA, (4, 4), (4, 4)),
    "ldmatrix": Rule(_load_matrix, ("b16",), _LDMATRIX, (2, 2)),
    "wmma": Rule(_wmma, ("f32", "f16", "bf16"), _WMMA, (2, 4), (1, 4)),
}
