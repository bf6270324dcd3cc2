"""Sums brought together: parts of words as bytes, steps of one longer sum, short axes of outputs written out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from gewu.ops.emit import compile_program
from gewu.ops.forms import Form, few, narrowed
from gewu.ops.reference import evaluate
from gewu.ops.rewrite import Graph, fixed, walk
from gewu.ops.sizes import Affine, Ceil, Size
from gewu.ops.stage import stage
from gewu.ops.sums import merged
from gewu.ops.tensor import Apply, Assign, Constant, Expression, Load, Program, Reduce

N, WORDS = Size.named("p3"), Size.named("p4")


def at(offset: int = 0, **strides: Size | int) -> Affine:
    return Affine(tuple((a, s if isinstance(s, Size) else Size.of(s)) for a, s in strides.items()), Size.of(offset))


def nibble(place: int, shift: str = "u32") -> Expression:
    word: Expression = Load(1, "b32", at(j=WORDS, k=1))
    if place:
        word = Apply("shr", shift, (word, Constant("b32", 4 * place)))
    if place < 7 or shift[0] == "s":
        word = Apply("and", "b32", (word, Constant("b32", 15)))
    return Apply("cvt", "f32", (word,), ("u32", "rn"))


def part(place: int, at_x: int, shift: str = "u32") -> Reduce:
    factors = (Load(0, "f32", at(at_x, i=Size.of(8) * WORDS, k=8)), nibble(place, shift))
    return Reduce("add", "f32", (("k", WORDS),), Apply("mul", "f32", factors))


def total(parts: Sequence[Expression]) -> Expression:
    found = parts[0]
    for term in parts[1:]:
        found = Apply("add", "f32", (found, term))
    return found


def program(rows: int, value: Expression) -> Program:
    return Program("rows", (Assign(2, "f32", (("i", Size.of(rows)), ("j", N)), at(i=N, j=1), value),))


def sums(value: Expression) -> list[Reduce]:
    graph = Graph()
    return [e for e in walk([merged(graph, graph.intern(value), frozenset())]) if isinstance(e, Reduce)]


def test_nibbles_of_words_become_two_sums_over_bytes() -> None:
    order = [1, 0, 2, 4, 3, 5, 6, 7]
    found = sums(total([part(n, n) for n in order]))
    assert len(found) == 2
    for r in found:
        assert r.axes[0][1] == WORDS * Size.of(4)
        loads = {e.type: e.index.stride(r.axes[0][0]).constant for e in walk([r.body]) if isinstance(e, Load)}
        assert loads == {"f32": 2, "u8": 1}


@pytest.mark.parametrize(
    ("parts", "left"),
    [
        ([part(n, n) for n in range(6)], 6),  # one step is missing
        ([part(n, n if n != 4 else 9) for n in range(8)], 5),  # one of the even ones is out of step
        ([part(n, n, "s32") for n in range(8)], 8),  # an arithmetic shift is no part of a word
    ],
)
def test_other_sums_stay(parts: list[Reduce], left: int) -> None:
    assert len(sums(total(parts))) == left


def test_words_that_are_written_stay_words() -> None:
    graph = Graph()
    value = graph.intern(total([part(n, n) for n in range(8)]))
    assert merged(graph, value, frozenset({1})) is value


@pytest.mark.parametrize(("rows", "outputs"), [(4, 4), (16, 8), (13, 1)])
def test_short_axes_are_written_out(rows: int, outputs: int) -> None:
    made, launch = program(rows, total([part(n, n) for n in range(8)])), {"p3": 19, "p4": 37}
    group = stage(Graph(), made, 3).groups[-1]
    assert isinstance(group, list) and len(group) == outputs
    rng = np.random.default_rng(1)
    args = [
        rng.standard_normal(rows * 8 * 37, np.float32),
        rng.integers(0, 1 << 32, 19 * 37, np.uint32),
        np.zeros(rows * 19, np.float32),
    ]
    want = evaluate(made, [a.copy() for a in args], launch)[2]
    compile_program(made)(args, launch)
    np.testing.assert_allclose(args[2], want, rtol=2e-5, atol=2e-3)


def test_small_integers_of_a_launch_are_compiled_in_where_it_pays() -> None:
    rows = Size.named("p5")
    value = Reduce("add", "f32", (("k", WORDS),), Apply("mul", "f32", (Load(0, "f32", at(i=WORDS, k=1)), byte())))
    made = Program("rows", (Assign(2, "f32", (("i", rows), ("j", N)), at(i=N, j=1), value),))
    executable, rng = compile_program(made, threads=1), np.random.default_rng(2)
    for launch, outputs in (({"p3": 33, "p4": 50, "p5": 5}, 1), ({"p3": 600, "p4": 700, "p5": 5}, 5)):
        n, k, m = launch["p3"], launch["p4"], launch["p5"]
        args = [rng.standard_normal(m * k, np.float32), rng.integers(0, 256, n * k, np.uint8), np.zeros(m * n, np.float32)]
        executable(args, launch)
        want = args[0].reshape(m, k).astype(np.float64) @ args[1].reshape(n, k).T
        np.testing.assert_allclose(args[2].reshape(m, n), want, rtol=1e-4, atol=1e-1)
        assert len(executable.steps(Form(fixed=few(made, launch) if outputs > 1 else ()))[-1].axes) == (1 if outputs > 1 else 2)
    assert any(form.fixed == (("p5", 5),) for form, *_ in executable._variants)


def byte() -> Expression:
    return Apply("cvt", "f32", (Load(1, "u8", at(j=WORDS, k=1)),), ("u8", "rn"))


def test_sizes_with_numbers_put_in() -> None:
    size = Size.named(Ceil(N * Size.of(3), Size.named("p9"))) + N * WORDS
    assert fixed(size, {"p3": 5, "p9": 4}) == Size.of(4) + WORDS * Size.of(5)
    assert fixed(size, {"p3": 5}).value({"p4": 2, "p9": 4}) == 14


def test_tiles_are_narrowed_until_all_threads_have_some() -> None:
    apart = Apply("sub", "f32", (Load(0, "f32", at(j=1)), Load(0, "f32", at(i=1))))
    body = Apply("rsqrt", "f32", (Apply("fma", "f32", (apart, apart, Constant("f32", 0x3F800000))),))
    body = Apply("mul", "f32", (body, Load(2, "f32", at(j=1))))
    made = Program("near", (Assign(1, "f32", (("i", N),), at(i=1), Reduce("add", "f32", (("j", N),), body)),))
    x, out = np.linspace(0, 1, 512, dtype=np.float32), np.zeros(512, np.float32)
    executable = compile_program(made, threads=2)
    executable([x, out, x], {"p3": 512})
    np.testing.assert_allclose(out, (x / np.sqrt((x[:, None] - x) ** 2 + 1)).sum(1), rtol=1e-5)
    steps = executable.steps(Form())
    assert narrowed(steps, {"p3": 512}, 2, 512) == 128
    assert narrowed(steps, {"p3": 1 << 16}, 2, 512) == narrowed(steps, {"p3": 100}, 2, 512) == 512
