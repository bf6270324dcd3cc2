"""`verify` believes right programs and catches every planted fault; what it believes holds only for what it tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.ops.draws import KINDS, numbers
from gewu.ops.emit import compile_program
from gewu.ops.extent import extents, longest_sum, work
from gewu.ops.lift import Lifted
from gewu.ops.reference import evaluate
from gewu.ops.sizes import Size
from gewu.ops.verify import Verdict, Verifier, as_floats, verify
from tests.ops.programs import RIGHT, arguments, matmul, mutants, oracle, p, saxpy, softmax, stencil


def interpreted(found: Lifted) -> Any:
    """Return what runs a program without compiling it."""

    def execute(args: Sequence[Any], launch: Any) -> None:
        for target, value in zip(args, evaluate(found.program, args, launch), strict=True):
            if isinstance(target, np.ndarray):
                target[...] = value

    return execute


def judge(found: Lifted, kernel: Lifted, execute: Any = None) -> Verdict:
    args = arguments(kernel)
    grid = kernel.grid(args, (1, 1, 1))
    return verify(found, execute or interpreted(found), oracle(kernel), grid, kernel.block, args)


@pytest.mark.parametrize("make", RIGHT, ids=lambda f: f.__name__)
def test_right_programs_are_believed_as_compiled(make: Any) -> None:
    right = make()
    verdict = judge(right, right, compile_program(right.program, threads=1))
    assert verdict.ok, verdict.where
    assert verdict.proof is not None and set(verdict.proof.units.values()) == {1}
    args = arguments(right)
    assert verdict.proof.covers(right.grid(args, (1, 1, 1)), right.block, args)


@pytest.mark.parametrize("make", RIGHT, ids=lambda f: f.__name__)
def test_every_planted_fault_is_caught(make: Any) -> None:
    right = make()
    missed = [what for what, wrong in mutants(right.program) if judge(replace(right, program=wrong), right).ok]
    assert missed == []


def test_there_are_many_faults_of_many_kinds() -> None:
    found = [what for make in RIGHT for what, _ in mutants(make().program)]
    assert len(found) >= 90 and len(set(found)) >= 25


def test_an_equivalent_program_with_another_order_is_believed() -> None:
    right = matmul()
    (assign,) = right.program.assigns
    turned = replace(assign, value=replace(assign.value, body=replace(assign.value.body, args=assign.value.body.args[::-1])))  # type: ignore[union-attr,type-var,call-arg]
    assert judge(replace(right, program=replace(right.program, assigns=(turned,))), right).ok


def test_a_kernel_that_needs_multiples_of_four_gets_a_unit() -> None:
    right = saxpy()

    def kernel(grid: tuple[int, int, int], args: Sequence[Any]) -> None:  # leaves the last n % 4 elements, as float4 loops do
        count = int(args[3]) // 4 * 4
        args[1][:count] = args[2] * args[0][:count] + args[1][:count]

    args = arguments(right)
    verdict = verify(right, interpreted(right), kernel, (16, 1, 1), right.block, args)
    assert verdict.proof is not None and verdict.proof.units == {3: 4}
    assert not verdict.proof.covers((16, 1, 1), right.block, [*args[:3], np.int32(998)])
    assert verdict.proof.covers((16, 1, 1), right.block, [*args[:3], np.int32(996)])


def test_a_proof_does_not_reach_beyond_the_sizes_tried() -> None:
    right = softmax()

    def kernel(grid: tuple[int, int, int], args: Sequence[Any]) -> None:  # right for rows up to 128 only
        if int(args[3]) <= 128:
            oracle(right)(grid, args)

    args = arguments(right)
    verdict = verify(right, interpreted(right), kernel, (40, 1, 1), right.block, args)
    assert verdict.proof is not None
    assert not verdict.proof.covers((40, 1, 1), right.block, [*args[:2], np.int32(40), np.int32(200)])
    wide = [np.zeros((40, 200), np.float32)] * 2
    checker = Verifier(right, interpreted(right), kernel, (40, 1, 1), right.block, [*wide, np.int32(40), np.int32(200)])
    assert not checker.extend(verdict.proof, (40, 1, 1), [*wide, np.int32(40), np.int32(200)]).ok


def test_writing_beyond_an_array_is_caught_by_the_guard() -> None:
    right = saxpy()

    def stray(args: Sequence[Any], launch: Any) -> None:
        interpreted(right)(args, launch)
        args[1].reshape(-1)[int(launch["p3"]) + 3] = 0.0

    verdict = judge(right, right, stray)
    assert not verdict.ok and "argument 1" in verdict.where


def test_changing_an_input_is_caught() -> None:
    right = stencil()

    def meddling(args: Sequence[Any], launch: Any) -> None:
        interpreted(right)(args, launch)
        args[0][0] += 1

    assert not judge(right, right, meddling).ok


def test_a_kernel_that_fails_refutes_the_program() -> None:
    right = saxpy()

    def failing(grid: tuple[int, int, int], args: Sequence[Any]) -> None:
        raise InputError("access outside of the arrays")

    verdict = verify(right, interpreted(right), failing, (16, 1, 1), right.block, arguments(right))
    assert not verdict.ok and "access outside" in verdict.where


def test_rounding_in_another_order_is_tolerated_but_a_wrong_digit_is_not() -> None:
    right = matmul()

    def backwards(args: Sequence[Any], launch: Any) -> None:
        m, n, k = (launch[f"p{i}"] for i in (3, 4, 5))
        a, b = args[0][: m * k].reshape(m, k)[:, ::-1], args[1][: k * n].reshape(k, n)[::-1]
        args[2][: m * n] = np.cumsum((a[:, :, None] * b[None]).astype(np.float32), axis=1, dtype=np.float32)[:, -1].reshape(-1)

    assert judge(right, right, backwards).ok

    def sloppy(args: Sequence[Any], launch: Any) -> None:
        interpreted(right)(args, launch)
        count = launch["p3"] * launch["p4"]
        args[2][:count] *= np.float32(1.0003)

    assert not judge(right, right, sloppy).ok


def test_extents_and_work() -> None:
    program, launch = matmul().program, {"p3": 7, "p4": 5, "p5": 3, "bx": 8, "by": 8, "bz": 1, "gx": 1, "gy": 1, "gz": 1}
    assert extents(program, launch) == {0: (0, 84), 1: (0, 60), 2: (0, 140)}
    assert work(program, launch) == 7 * 5 + 7 * 5 * 3
    assert longest_sum(program, launch) == 3
    padded = extents(stencil().program, {"p2": 9})
    assert padded[0][0] == 0 and padded[0][1] >= 36


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("type_", ["f32", "f64", "f16", "bf16", "s32", "u8"])
def test_random_numbers_fill_the_bytes_asked_for(kind: str, type_: str) -> None:
    rng = np.random.default_rng(3)
    made = numbers(type_, 4096, kind, rng)
    assert made.nbytes == 4096 and len(np.unique(made)) > 1
    if type_ in ("f32", "bf16") and kind == "positive":
        assert (as_floats(made, type_) > 0).all()
    if kind == "zeros" and type_ == "f32":
        assert 0.3 < (as_floats(made, type_) == 0).mean() < 0.7


def test_sizes_of_the_grid_rule_are_used() -> None:
    right = replace(saxpy(), rule=(p(3), Size.of(1), Size.of(1)))
    assert right.grid([None, None, None, np.int32(5)], (1, 1, 1)) == (5, 1, 1)


def test_more_blocks_of_a_free_grid_are_tried_before_they_are_believed() -> None:
    right = replace(softmax(), rule=(Size.named("gx"), Size.of(1), Size.of(1)))
    (assign,) = right.program.assigns
    by_block = replace(assign, axes=(("i", Size.named("gx")), assign.axes[1]))
    right = replace(right, program=replace(right.program, assigns=(by_block,)))

    def kernel(grid: tuple[int, int, int], args: Sequence[Any]) -> None:  # rows beyond 64 are forgotten
        oracle(right)((min(grid[0], 64), 1, 1), args)

    args = arguments(softmax())
    verdict = verify(right, interpreted(right), kernel, (40, 1, 1), right.block, args)
    assert verdict.proof is not None and verdict.proof.grid[0] == 40
    assert verdict.proof.covers((40, 1, 1), right.block, args)
    assert verdict.proof.admits((70, 1, 1), right.block, args)
    assert not verdict.proof.covers((70, 1, 1), right.block, args)
    checker = Verifier(right, interpreted(right), kernel, (70, 1, 1), right.block, args)
    assert not checker.extend(verdict.proof, (70, 1, 1), args).ok


def test_huge_sizes_are_believed_after_large_ones() -> None:
    right = saxpy()
    seen: list[int] = []

    def execute(args: Sequence[Any], launch: Any) -> None:
        seen.append(launch["p3"])
        interpreted(right)(args, launch)

    huge = [*arguments(right)[:3], np.int32(2_000_000_000)]
    grid = right.grid(huge, (1, 1, 1))
    verdict = verify(right, execute, oracle(right), grid, right.block, huge)
    assert verdict.proof is not None and verdict.proof.covers(grid, right.block, huge)
    assert 30_000 <= max(seen) <= 10_000_000
