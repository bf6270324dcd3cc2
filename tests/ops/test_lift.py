"""Lifting from traces written by hand: index maps, padding, triangular sums, stencils, functions, and what must not be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gewu.ops.formula import formula
from gewu.ops.ir import Kernel
from gewu.ops.lift import NotLifted, concrete, lift
from gewu.ops.ptx import read_ptx
from gewu.ops.rename import renamed
from gewu.ops.symbolise import Sizes, merge
from gewu.ops.trace import Nodes, Trace

KERNEL = Kernel("k", (), [], {})


class Recorder:
    """Writes a trace as a kernel would: one call an instruction, all outputs at once."""

    def __init__(self) -> None:
        self.nodes = Nodes()

    def load(self, buffer: int, element: Any) -> Any:
        return self.nodes.load(buffer, 32, 4 * np.asarray(element))

    def number(self, value: float, count: int) -> Any:
        return self.nodes.constants(np.full(count, np.float32(value)).view(np.uint32), "b32")

    def op(self, name: str, *args: Any) -> Any:
        return self.nodes.add(name, "f32", (), args)

    def stored(self, buffer: int, values: Any) -> Trace:
        found = self.nodes.trace()
        place = np.arange(len(values))
        found.stores[buffer, 4] = (4 * place, values, place)
        return found


def product(m: int, n: int, k: int) -> Trace:
    r = Recorder()
    row, column = np.divmod(np.arange(m * n), n)
    total = r.number(0.0, m * n)
    for i in range(k):
        total = r.op("fma", r.load(0, row * k + i), r.load(1, i * n + column), total)
    return r.stored(2, total)


def softmax(rows: int, columns: int) -> Trace:
    r = Recorder()
    row, column = np.divmod(np.arange(rows * columns), columns)
    most, total = r.number(-np.inf, rows * columns), r.number(0.0, rows * columns)
    for i in range(columns):
        most = r.op("max", most, r.load(0, row * columns + i))
    for i in range(columns):
        total = r.op("add", total, r.op("exp", r.op("sub", r.load(0, row * columns + i), most)))
    own = r.op("exp", r.op("sub", r.load(0, row * columns + column), most))
    return r.stored(1, r.op("div", own, total))


def window(height: int, width: int) -> Trace:
    r = Recorder()
    y, x = np.divmod(np.arange(height * width), width)
    total = r.number(0.0, height * width)
    for i, j in np.ndindex(3, 3):
        u, v = y + i - 1, x + j - 1
        inside = (u >= 0) & (u < height) & (v >= 0) & (v < width)
        weight = np.full(int(inside.sum()), 3 * i + j)
        total = total.copy()
        total[inside] = r.op("fma", r.load(0, (u * width + v)[inside]), r.load(1, weight), total[inside])
    return r.stored(2, total)


def scan(n: int) -> Trace:
    r = Recorder()
    total, all_ = r.number(0.0, 1), []
    for i in range(n):
        total = r.op("add", total, r.load(0, [i]))
        all_.append(total)
    return r.stored(1, np.concatenate(all_))


def pairs(n: int) -> Trace:
    """Sum over j of (x_j - x_i)^2: i = j must not make a hole, nor may squares swap i and j."""
    r = Recorder()
    i = np.arange(n)
    total = r.number(0.0, n)
    for j in range(n):
        d = r.op("sub", r.load(0, np.full(n, j)), r.load(0, i))
        total = r.op("fma", r.op("mul", d, d), r.load(1, np.full(n, j)), total)
    return r.stored(2, total)


def newton(n: int) -> Trace:
    """a / b as machine code spells it: an estimate of 1 / b, refined."""
    r = Recorder()
    a, b = r.load(0, np.arange(n)), r.load(1, np.arange(n))
    guess = r.op("rcp", b)
    error = r.op("fma", r.op("neg", b), guess, r.number(1.0, n))
    better = r.op("fma", guess, error, guess)
    quotient = r.op("mul", a, better)
    return r.stored(2, r.op("fma", r.op("fma", r.op("neg", b), quotient, a), better, quotient))


def swapped(n: int) -> Trace:
    """Products whose factors stand in another order in every other lane."""
    r = Recorder()
    out = np.zeros(n, np.int64)
    for odd in (False, True):
        place = np.arange(int(odd), n, 2)
        factors = r.load(0, place), r.op("neg", r.load(1, place))
        out[place] = r.op("mul", *factors[:: -1 if odd else 1])
    return r.stored(2, out)


def sizes_of_sums(n: int) -> Trace:
    """|1 + sum |x|| with signs cut off by bits: longer than the search looks, and with idle additions in some lanes."""
    r = Recorder()
    mask = r.nodes.constants(np.full(n, 0x7FFFFFFF), "b32")
    total = r.number(0.0, n)
    for i in range(3):
        some = np.flatnonzero(np.arange(n) % 3 >= i)
        total = total.copy()
        total[some] = r.op("add", total[some], r.number(0.0, len(some)))
    for j in range(n):
        total = r.op("add", total, r.nodes.add("and", "b32", (), [r.load(0, np.arange(n) * n + j), mask]))
    return r.stored(1, r.nodes.add("and", "b32", (), [r.op("add", total, r.number(1.0, n)), mask]))


def told(make: Callable[..., Trace], runs: list[tuple[int, ...]], names: list[str], arrays: int) -> str:
    args = [np.zeros(1, np.float32)] * arrays
    programs = [concrete(KERNEL, make(*sizes), args) for sizes in runs]
    launches = [dict(zip(names, sizes, strict=True)) for sizes in runs]
    return formula(renamed(merge(programs, Sizes(launches, names))))


@pytest.mark.parametrize(
    ("make", "runs", "names", "arrays", "expected"),
    [
        (
            product,
            [(21, 26, 19), (25, 18, 31), (34, 23, 27)],
            ["M", "N", "K"],
            3,
            "a2[N i0 + i1] = sum(k0 < K: (a0[K i0 + k0] * a1[i1 + N k0]))   for i0 < M, i1 < N",
        ),
        (
            softmax,
            [(5, 21), (4, 18), (7, 34)],
            ["R", "C"],
            2,
            "a1[C i0 + i1] = (exp((a0[C i0 + i1] - max(k0 < C: a0[C i0 + k0]))) / "
            "sum(l1 < C: exp((a0[C i0 + l1] - max(k0 < C: a0[C i0 + k0])))))   for i0 < R, i1 < C",
        ),
        (
            window,
            [(21, 26), (25, 18), (34, 23)],
            ["H", "W"],
            3,
            "a2[W i0 + i1] = sum(k0_0 < 3, k0_1 < 3 where i0 + k0_0 - 1 ≥ 0 and -1 i0 - 1 k0_0 + H ≥ 0 and i1 + k0_1 - 1 ≥ 0 and "
            "-1 i1 - 1 k0_1 + W ≥ 0: (a0[W i0 + i1 + W k0_0 + k0_1 - W-1] * a1[3 k0_0 + k0_1]))   for i0 < H, i1 < W",
        ),
        (scan, [(21,), (18,), (34,)], ["n"], 2, "a1[i0] = sum(k0 < n where i0 - 1 k0 ≥ 0: a0[k0])   for i0 < n"),
        (
            pairs,
            [(21,), (18,), (34,)],
            ["n"],
            3,
            "a2[i0] = sum(k0 < n: (((a0[k0] - a0[i0]) * (a0[k0] - a0[i0])) * a1[k0]))   for i0 < n",
        ),
        (newton, [(21,), (18,), (34,)], ["n"], 3, "a2[i0] = (a0[i0] * 1 / (a1[i0]))   for i0 < n"),
        (swapped, [(21,), (18,), (34,)], ["n"], 3, "a2[i0] = (a0[i0] * -a1[i0])   for i0 < n"),
        (
            sizes_of_sums,
            [(211,), (223,), (240,)],
            ["n"],
            2,
            "a1[i0] = abs((sum(k0 < n: abs(a0[n i0 + k0])) + 1.0))   for i0 < n",
        ),
    ],
    ids=["product", "softmax", "window", "scan", "pairs", "newton", "swapped", "sizes of sums"],
)
def test_formulas(make: Any, runs: Any, names: list[str], arrays: int, expected: str) -> None:
    assert told(make, runs, names, arrays) == expected


WORDS = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry words(.param .u64 from, .param .u64 to, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .b32 %r<16>;
    .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [from];
    ld.param.u64 %rd2, [to];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    shr.u32 %r6, %r1, 2;
    setp.ge.s32 %p1, %r5, %r6;
    @%p1 bra DONE;
    mul.wide.s32 %rd3, %r5, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.u32 %r7, [%rd4];
    bfe.s32 %r8, %r7, 0, 8;
    bfe.s32 %r9, %r7, 8, 8;
    bfe.s32 %r10, %r7, 16, 8;
    shr.s32 %r11, %r7, 24;
    neg.s32 %r8, %r8;
    neg.s32 %r9, %r9;
    neg.s32 %r10, %r10;
    neg.s32 %r11, %r11;
    prmt.b32 %r12, %r8, %r9, 0x3340;
    prmt.b32 %r13, %r10, %r11, 0x3340;
    prmt.b32 %r14, %r12, %r13, 0x5410;
    st.global.u32 [%rd5], %r14;
DONE:
    ret;
}
"""


def test_words_of_bytes_are_bytes() -> None:
    """Four bytes read, taken apart, joined and written as one word are four elements; words of a word array stay words."""
    kernel = read_ptx(WORDS).kernels["words"]
    n = np.int32(400)
    found = lift(kernel, (2, 1, 1), (64, 1, 1), [np.zeros(n, np.int8), np.zeros(n, np.int8), n])
    assert found.formula.startswith("a1[i0] = -s32(a0[i0])   for i0 <")
    found = lift(kernel, (2, 1, 1), (64, 1, 1), [np.zeros(n, np.int32), np.zeros(n, np.int32), n])
    assert "prmt" in found.formula


def test_places_that_follow_no_index_are_not_told() -> None:
    r = Recorder()
    shuffled = np.random.default_rng(3).permutation(40)
    with pytest.raises(NotLifted, match="no index"):
        concrete(KERNEL, r.stored(1, r.load(0, shuffled)), [np.zeros(1, np.float32)] * 2)


def test_a_size_that_is_none_of_the_launch_is_not_told() -> None:
    with pytest.raises(NotLifted, match="size of the launch"):
        told(lambda n: scan({21: 13, 18: 29, 34: 22}[n]), [(21,), (18,), (34,)], ["n"], 2)
