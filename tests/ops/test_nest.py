"""Random programs (nested reductions, conditions, shared parts, strides of every sign) in every form of compilation."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gewu.ops import emit
from gewu.ops.emit import Executable, compile_program
from gewu.ops.reference import evaluate
from gewu.ops.sizes import Affine, Size
from gewu.ops.tensor import Apply, Assign, Constant, Expression, Index, Load, Program, Reduce, Scalar

LENGTH = 250_000
Axis = tuple[str, Size]


class Maker:
    """Builds one program for a launch; indices stay inside arrays of LENGTH elements and never go below zero."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.launch = {name: self.random.choice([1, 2, 3, 5, 8, 17, 35]) for name in ("p2", "p3", "p4")} | {"p5": 2}
        self.shared: list[tuple[Expression, set[Axis]]] = []
        self.count = 0

    def size(self) -> Size:
        return self.random.choice([*map(Size.named, ("p2", "p3", "p4")), Size.of(self.random.choice([1, 2, 3, 4]))])

    def stride(self) -> Size:
        constants = [Size.of(n) for n in (0, 1, 1, 1, 2, -1)]
        return self.random.choice([*constants, *map(Size.named, ("p3", "p4", "p5")), Size.named("p2") * Size.named("p3")])

    def index(self, scope: list[Axis]) -> Affine:
        terms = [(axis, self.stride(), size) for axis, size in scope if self.random.random() < 0.75]
        low = sum(min(0, stride.value(self.launch) * (size.value(self.launch) - 1)) for _, stride, size in terms)
        offset = Size.of(self.random.choice([0, 0, 3]) - low)
        return Affine(tuple((axis, stride) for axis, stride, _ in terms if stride.terms), offset)

    def condition(self, scope: list[Axis]) -> Affine:
        first, second = self.random.choice(scope), self.random.choice(scope)
        terms = [(first[0], Size.of(self.random.choice([1, -1, 1, -1, 2, -3])))]
        if second != first:
            terms.append((second[0], Size.of(self.random.choice([1, -1]))))
        return Affine(tuple(terms), Size.of(self.random.choice([0, 1, 3, 6])))

    def some(self, scope: list[Axis], chance: float) -> tuple[Affine, ...]:
        return (self.condition(scope),) if scope and self.random.random() < chance else ()

    def expression(self, scope: list[Axis], depth: int, reductions: int) -> Expression:
        kind = self.random.random()
        if self.shared and kind < 0.15:
            found, needs = self.random.choice(self.shared)
            if needs <= set(scope):
                return found
        if depth == 0 or kind < 0.3:
            return Load(self.random.randrange(2), "f32", self.index(scope), self.some(scope, 0.2))
        if kind < 0.36:
            return Constant("f32", int(np.float32(self.random.choice([0.5, -1.25, 2])).view(np.uint32)))
        if kind < 0.42:
            return Apply("cvt", "f32", (Index("s32", self.index(scope)),), ("s32", "rn"))
        if kind < 0.47:
            return Scalar(4, "f32")
        made = (
            self.reduction(scope, depth, reductions) if kind < 0.75 and reductions else self.operation(scope, depth, reductions)
        )
        self.shared.append((made, set(scope)))
        return made

    def reduction(self, scope: list[Axis], depth: int, reductions: int) -> Reduce:
        self.count += 2
        axes = tuple((f"k{self.count + n}", self.size()) for n in range(self.random.choice([1, 1, 2])))
        body = self.expression([*scope, *axes], depth - 1, reductions - 1)
        return Reduce(self.random.choice(["add", "add", "max", "min"]), "f32", axes, body, self.some([*scope, *axes], 0.2))

    def operation(self, scope: list[Axis], depth: int, reductions: int) -> Apply:
        op = self.random.choice(["add", "sub", "mul", "mul", "add", "max", "min", "tanh"])
        return Apply(op, "f32", tuple(self.expression(scope, depth - 1, reductions) for _ in range(1 if op == "tanh" else 2)))

    def program(self) -> Program:
        axes = [(f"a{n}", self.size()) for n in range(self.random.choice([0, 1, 2, 2, 3, 3]))]
        assigns = []
        for output in range(self.random.choice([1, 1, 2])):
            order = list(axes)
            if self.random.random() < 0.3:
                self.random.shuffle(order)
            terms, length = [], Size.of(1)
            for axis, size in reversed(order):
                terms.append((axis, length))
                length = length * size
            value = self.expression(axes, self.random.choice([1, 2, 3]), 2)
            assigns.append(Assign(2 + output, "f32", tuple(axes), Affine(tuple(terms)), value, self.some(axes, 0.15)))
        return Program("random", tuple(assigns))


FORMS = ("as chosen", "in parts", "products", "nothing hoisted")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seeds", [range(10), pytest.param(range(10, 100), marks=pytest.mark.slow)])
def test_random_programs(form: str, seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Executable._form
    if form == "in parts":
        monkeypatch.setattr(emit, "starved", lambda *_: True)
    elif form == "products":
        monkeypatch.setattr(emit, "small", lambda *_: False)
    elif form == "nothing hoisted":
        monkeypatch.setattr(Executable, "_form", lambda self, *a: replace(chosen(self, *a), hoist=False))
    for seed in seeds:
        maker = Maker(seed)
        program = maker.program()
        rng = np.random.default_rng(seed)
        data = [(rng.standard_normal(LENGTH) / 2).astype(np.float32) for _ in range(2)]
        args: list[Any] = [*data, *(np.full(45_000, 7, np.float32) for _ in range(2)), np.float32(0.75)]
        want = evaluate(program, args, maker.launch)
        compile_program(program, threads=2)(args, maker.launch)
        for output in (2, 3):
            with np.errstate(all="ignore"):
                error = np.abs(args[output] - want[output]) / np.maximum(np.abs(want[output]), 1)
            # sums of up to 5,000 terms of size 1 that may cancel, in another order
            assert np.nanmax(error) < 2e-4, (seed, output)
            np.testing.assert_array_equal(np.isnan(args[output]), np.isnan(want[output]))
