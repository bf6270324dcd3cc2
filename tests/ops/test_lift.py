"""Lifting from traces written by hand: index maps, padding, triangular sums, stencils, functions, and what must not be told."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gewu.ops import lift
from gewu.ops.algebra import Arena
from gewu.ops.digits import partial_digits_of
from gewu.ops.formula import formula
from gewu.ops.ir import Block, Instruction, Kernel
from gewu.ops.lift import NotLifted, concrete
from gewu.ops.plan import hints, plans, wrapped
from gewu.ops.ptx import read_ptx
from gewu.ops.recognise import _Search, recognise
from gewu.ops.rename import renamed
from gewu.ops.sizes import Affine
from gewu.ops.symbolise import Sizes, merge
from gewu.ops.tensor import Assign, Constant, Load, Program
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


def softmax_in_one_pass(rows: int, columns: int) -> Trace:
    """Weights of a row that sum to one times another array: maximum, sum and result are rescaled as they go."""
    r, row = Recorder(), np.arange(rows)
    most, total, result = (r.number(v, rows) for v in (-np.inf, 0.0, 0.0))
    for i in range(columns):
        score = r.op("mul", r.load(0, row * columns + i), r.nodes.add("scalar", "b32", (), [], 2, rows))
        larger = r.op("max", most, score)
        fade, weight = r.op("exp", r.op("sub", most, larger)), r.op("exp", r.op("sub", score, larger))
        total = r.op("fma", total, fade, weight)
        result = r.op("add", r.op("mul", result, fade), r.op("mul", weight, r.load(1, np.full(rows, i))))
        most = larger
    return r.stored(3, r.op("div", result, total))


def halves(rows: int, columns: int) -> Trace:
    """Two sums with their maxima, brought to one scale in the end."""
    r, row, parts = Recorder(), np.arange(rows), []
    for half in (0, 1):
        most, total = r.number(-np.inf, rows), r.number(0.0, rows)
        for i in range(half, columns, 2):
            x = r.load(0, row * columns + i)
            larger = r.op("max", most, x)
            total = r.op("mul", total, r.op("exp", r.op("sub", most, larger)))
            most, total = larger, r.op("add", total, r.op("exp", r.op("sub", x, larger)))
        parts.append((most, total))
    (a, s), (b, t) = parts
    most = r.op("max", a, b)
    s, t = (r.op("mul", v, r.op("exp", r.op("sub", m, most))) for m, v in ((a, s), (b, t)))
    return r.stored(1, r.op("add", most, r.op("log", r.op("add", s, t))))


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


def test_one_search_tells_a_function_of_maxima_taken_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lane of a butterfly has another tree of maxima; what is spelled out above is one class all the same."""
    r, lanes = Recorder(), np.arange(16)
    parts = [r.load(0, 16 * k + lanes) for k in range(8)]
    most = [r.load(1, lanes)]
    for k in range(8):  # half of the lanes: a chain, the others: with a pair far below
        pair = r.op("max", parts[k], parts[(k + 1) % 8])
        most.append(r.op("max", most[-1], np.where((lanes < 8) | (k > 2), parts[k], pair)))
    spelled = r.nodes.add("and", "b32", (), [most[-1], r.nodes.constants(np.full(16, 0x7FFFFFFF), "b32")])
    arena, asked = Arena(r.stored(2, r.op("add", spelled, r.load(1, lanes))), [0, 1, 2]), []
    search = _Search.function_at
    monkeypatch.setattr(_Search, "function_at", lambda self, top: asked.append(top) or search(self, top))
    recognise(arena)
    found = {arena.signatures[s][0] for s in arena.signature}
    assert len(asked) == 1 and "abs" in found and "and" not in found


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
            softmax_in_one_pass,
            [(5, 21), (4, 18), (7, 34)],
            ["R", "C"],
            4,
            "a3[i0] = (sum(l0 < C: (exp(((a0[C i0 + l0] * p2) - max(k1 < C: (a0[C i0 + k1] * p2)))) * a1[l0])) / "
            "sum(l0 < C: exp(((a0[C i0 + l0] * p2) - max(k1 < C: (a0[C i0 + k1] * p2))))))   for i0 < R",
        ),
        (
            halves,
            [(5, 21), (4, 18), (7, 34)],
            ["R", "C"],
            2,
            "a1[i0] = (max(k0 < C: a0[C i0 + k0]) + log(sum(l1 < C: exp((a0[C i0 + l1] - max(k0 < C: a0[C i0 + k0]))))))"
            "   for i0 < R",
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
    ids=["product", "softmax", "one pass", "halves", "window", "scan", "pairs", "newton", "swapped", "sizes of sums"],
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
    found = lift.lift(kernel, (2, 1, 1), (64, 1, 1), [np.zeros(n, np.int8), np.zeros(n, np.int8), n])
    assert found.formula.startswith("a1[i0] = -s32(a0[i0])   for i0 <")
    found = lift.lift(kernel, (2, 1, 1), (64, 1, 1), [np.zeros(n, np.int32), np.zeros(n, np.int32), n])
    assert "prmt" in found.formula


def test_places_that_follow_no_index_are_not_told() -> None:
    r = Recorder()
    shuffled = np.random.default_rng(3).permutation(40)
    with pytest.raises(NotLifted, match="no index"):
        concrete(KERNEL, r.stored(1, r.load(0, shuffled)), [np.zeros(1, np.float32)] * 2)


def test_a_size_that_is_none_of_the_launch_is_not_told() -> None:
    with pytest.raises(NotLifted, match="size of the launch"):
        told(lambda n: scan({21: 13, 18: 29, 34: 22}[n]), [(21,), (18,), (34,)], ["n"], 2)


def frame(height: int, width: int) -> Trace:
    """A picture with a rim of one element that is a number: five boxes."""
    r = Recorder()
    y, x = np.divmod(np.arange((height + 2) * (width + 2)), width + 2)
    inside = (y > 0) & (y <= height) & (x > 0) & (x <= width)
    out = np.zeros(len(y), np.int64)
    out[inside] = r.load(0, ((y - 1) * width + x - 1)[inside])
    out[~inside] = r.number(2.5, int((~inside).sum()))
    return r.stored(1, out)


def doubled(height: int, width: int) -> Trace:
    """A transposed convolution of stride 2: even and odd rows meet different taps, and those at the rim fewer."""
    r = Recorder()
    y, x = np.divmod(np.arange(4 * height * width), 2 * width)
    total = r.number(0.0, len(y))
    for i, j in np.ndindex(2, 2):
        u, v = (y + 1) // 2 - i, (x + 1) // 2 - j
        inside = (u >= 0) & (u < height) & (v >= 0) & (v < width)
        tap = (4 * ((y + 1) % 2 + 2 * i) + (x + 1) % 2 + 2 * j)[inside]
        total = total.copy()
        total[inside] = r.op("fma", r.load(0, (u * width + v)[inside]), r.load(1, tap), total[inside])
    return r.stored(2, total)


def test_a_frame_is_cut_into_boxes() -> None:
    text = told(frame, [(21, 26), (25, 18), (34, 23)], ["H", "W"], 2)
    lines = text.splitlines()
    assert len(lines) == 5 and sum("= 2.5" in line for line in lines) == 4
    assert "= a0[W " in lines[-1] and "< H" in lines[-1] and "< W" in lines[-1]


def test_phases_are_digits_and_conditions_bound_a_whole_coordinate() -> None:
    text = told(doubled, [(11, 14), (13, 9), (17, 12)], ["H", "W"], 3)
    assert "i0 < H, i1 < 2, i2 < W, i3 < 2" in text
    assert "i0 + i1 + k0_0 - 1 ≥ 0" in text and "-1 i2 - 1 i3 - 1 k0_1 + W ≥ 0" in text


def test_partial_digits_end_where_rows_do() -> None:
    known = np.zeros((6, 5), np.bool_)
    known[1:5, 1:4] = True
    rows = np.stack([np.arange(30), np.where(known, np.arange(30).reshape(6, 5) + 7, -1).reshape(-1)], axis=1)
    digits = partial_digits_of(rows, np.stack([np.ones(30, np.bool_), known.reshape(-1)], axis=1))
    assert digits is not None and [(radix, list(stride)) for radix, stride in digits] == [(5, [1, 1]), (6, [5, 5])]
    assert partial_digits_of(np.array([[0], [1], [3], [9]]), np.ones((4, 1), np.bool_)) is None


DIVIDES = """.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 a, .param .u32 channels, .param .u32 n) {
    .reg .pred %p<2>; .reg .b32 %r<9>; .reg .b64 %rd<9>;
    ld.param.u64 %rd1, [a]; ld.param.u32 %r1, [channels]; ld.param.u32 %r2, [n];
    mov.u32 %r3, %ctaid.z; mov.u32 %r4, %ctaid.x; mov.u32 %r5, %tid.x;
    mad.lo.s32 %r6, %r4, 32, %r5;
    setp.ge.s32 %p1, %r6, %r2; @%p1 bra END;
    rem.u32 %r7, %r3, %r1;
    mad.lo.s32 %r8, %r3, %r2, %r6;
    mul.wide.s32 %rd2, %r8, 4; add.s64 %rd3, %rd1, %rd2; st.global.u32 [%rd3], %r7;
END: ret;
}
"""


def test_plans_see_what_a_block_index_is_divided_by_and_compared_with() -> None:
    kernel = read_ptx(DIVIDES, "k").kernels["k"]
    seen = hints(kernel)
    assert ("gz", "p1") in seen.divided and not any(axis == "gx" for axis, _ in seen.divided)
    assert seen.compared == {("gx", "p2")}
    args = [np.zeros(1, np.int32), np.int32(16), np.int32(100)]
    plan = next(plans(kernel, (4, 1, 64), (32, 1, 1), args))
    assert str(plan.grid[0]) == "ceil(p2 / 32)" and wrapped(plan.grid[2], "gz") == "p1"
    assert all(run["gz"] > run["p1"] and run["gz"] % run["p1"] == 0 for run in plan.sizes)


@pytest.mark.parametrize("loads", [True, False])
def test_a_reading_in_which_no_loop_was_entered_is_passed_over(loads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    values = Constant("f32", 0), Load(0, "f32", Affine())
    made = [Program("k", (Assign(1, "f32", (), Affine(), value),)) for value in values]
    waiting = iter(made)
    plan = SimpleNamespace(pinned={}, grid=(1, 1, 1))
    monkeypatch.setattr(lift, "plans", lambda *args: [plan, plan])
    monkeypatch.setattr(lift, "_program", lambda *args: next(waiting))
    code = [Instruction("ld", "f32", ("f",), ("a", 0), ("global",))] if loads else []
    found = lift.readings(Kernel("k", (), [Block(code, ())], {}), (1, 1, 1), (1, 1, 1), [])
    assert next(found).program is made[loads]


def test_a_formula_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(NotLifted, match="too long"):
        concrete(KERNEL, scan(21), [np.zeros(1, np.float32)] * 2, deadline=0.0)
