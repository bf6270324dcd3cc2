"""Places that depend on data: taken apart into rows and index maps, checked by rows, right wherever the kernel is."""

from __future__ import annotations

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.ops import llvm
from gewu.ops.emit import compile_program
from gewu.ops.places import straight
from gewu.ops.reference import evaluate
from gewu.ops.rewrite import Graph
from gewu.ops.sizes import Affine, Ceil, Size
from gewu.ops.tensor import Apply, Assign, Constant, Expression, Gather, Index, Load, Program, Reduce

M, N, FOUR = Size.named("p3"), Size.named("p4"), Size.of(4)
QUARTER = Size.named(Ceil(N, FOUR))


def at(offset: int = 0, **strides: Size | int) -> Affine:
    return Affine(tuple((a, s if isinstance(s, Size) else Size.of(s)) for a, s in strides.items()), Size.of(offset))


def op(name: str, kind: str, *args: Expression) -> Apply:
    return Apply(name, kind, args)


def word(axis: str = "i") -> Load:
    return Load(1, "s32", at(**{axis: 1}))


def wide() -> Expression:
    """Rows of float4 as a compiler spells them: ((words[i] (n / 4) + q) 16 + 4 r) / 4."""
    row = op("mulwide", "s32", word(), Index("s32", Affine((), QUARTER)))
    count = op(
        "add", "s64", op("shl", "b64", op("add", "s64", row, Index("s64", at(q=1))), Constant("b32", 4)), Index("s64", at(r=4))
    )
    return op("div", "s64", count, Constant("s64", 4))


def narrow() -> Expression:
    """4 (words[i] n + j) / 4, the inner sum in 32 bits."""
    inside = op("add", "s32", op("mul", "s32", word(), Index("s32", Affine((), N))), Index("s32", at(j=1)))
    return op("div", "s64", op("mulwide", "s32", inside, Constant("s32", 4)), Constant("s64", 4))


def backward() -> Expression:
    """words[i] n - j + (n - 1), in 64 bits."""
    row = op("mul", "s64", Apply("cvt", "s64", (word(),), ("s32",)), Index("s64", Affine((), N)))
    return op("sub", "s64", op("add", "s64", Index("s64", Affine((), N + Size.of(-1))), row), Index("s64", at(j=1)))


def rows(place: Expression, *inner: tuple[str, Size], **strides: Size | int) -> Program:
    return Program("rows", (Assign(2, "f32", (("i", M), *inner), at(i=N, **strides), Gather(0, "f32", place)),))


def sums(place: Expression) -> Program:
    value = Reduce("add", "f32", (("j", N),), Gather(0, "f32", place))
    return Program("sums", (Assign(2, "f32", (("i", M),), at(i=1), value),))


PROGRAMS = {
    "wide": rows(wide(), ("q", QUARTER), ("r", FOUR), q=4, r=1),
    "narrow": rows(narrow(), ("j", N), j=1),
    "backward": rows(backward(), ("j", N), j=1),
    "sums": sums(narrow()),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_rows_are_found_and_checked(name: str) -> None:
    program, launch = PROGRAMS[name], {"p3": 9, "p4": 36}
    rng = np.random.default_rng(1)
    table, words = rng.standard_normal(11 * 36, np.float32), rng.integers(0, 11, 9, np.int32)
    words[:2] = 0, 10
    args = [table, words, np.zeros(9 * 36, np.float32)]
    want = evaluate(program, [a.copy() for a in args], launch)[2]
    executable = compile_program(program, threads=1)
    executable(args, launch)
    np.testing.assert_allclose(args[2], want, rtol=1e-5, atol=1e-5)
    assert "masked.gather" not in llvm.jit(executable.text).optimised
    for bad, place in ((11, 4), (-1, 0), (1 << 20, 8)):
        words[place], kept = bad, words[place]
        with pytest.raises(InputError, match="points outside"):
            executable(args, launch)
        words[place] = kept
    with pytest.raises(InputError, match="points outside"):  # the last element of the last row is missing
        executable([table[:-1].copy(), *args[1:]], launch)


def test_only_a_base_remains_outside_of_the_row() -> None:
    for place in (wide(), narrow(), backward()):
        graph = Graph()
        found = straight(graph, graph.intern(Gather(0, "f32", place)))
        assert isinstance(found, Gather) and isinstance(found.place, Apply) and found.place.op == "add"
        base, along = found.place.args
        assert graph.free[id(base)] == {"i"} and isinstance(along, Index) and "i" not in along.value.axes
        assert along.type == ("s32" if place == narrow() else "s64")


def test_a_place_that_does_not_divide_stays() -> None:
    graph = Graph()
    place = op(
        "div", "s64", op("add", "s64", Apply("cvt", "s64", (word(),), ("s32",)), Index("s64", at(j=4))), Constant("s64", 4)
    )
    e = graph.intern(Gather(0, "f32", place))
    assert straight(graph, e) is e


def test_empty_rows_are_not_checked() -> None:
    args = [np.zeros(4, np.float32), np.array([7], np.int32), np.zeros(4, np.float32)]
    compile_program(PROGRAMS["narrow"], threads=1)(args, {"p3": 1, "p4": 0})
