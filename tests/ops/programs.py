"""Right programs, written by hand, and wrong ones made from them: what `verify` must accept and what it must catch."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gewu.ops.lift import Lifted
from gewu.ops.reference import evaluate
from gewu.ops.sizes import Affine, Ceil, Size
from gewu.ops.tensor import Apply, Assign, Constant, Expression, Gather, Index, Load, Program, Reduce, Scalar

ONE = Size.of(1)


def p(number: int) -> Size:
    return Size.named(f"p{number}")


def index(offset: int | Size = 0, **strides: int | Size) -> Affine:
    def size(value: int | Size) -> Size:
        return value if isinstance(value, Size) else Size.of(value)

    return Affine(tuple((name, size(stride)) for name, stride in strides.items()), size(offset))


def number(value: float) -> Constant:
    return Constant("f32", struct.unpack("<I", struct.pack("<f", value))[0])


def f32(op: str, *args: Expression) -> Apply:
    return Apply(op, "f32", args)


def blocks(argument: int, threads: int) -> Size:
    return Size.named(Ceil(p(argument), Size.of(threads)))


def lifted(program: Program, arrays: int, rule: Sequence[Size], block: tuple[int, int, int], pinned: Mapping[int, int]) -> Lifted:
    x, y, z = (*rule, ONE, ONE)[:3]
    return Lifted(program, pinned, (x, y, z), block, dict.fromkeys(range(arrays), "float32"))


def saxpy() -> Lifted:
    """y[i] = a x[i] + y[i]; arguments x, y, a, n."""
    value = f32("fma", Scalar(2, "f32"), Load(0, "f32", index(i=1)), Load(1, "f32", index(i=1)))
    program = Program("saxpy", (Assign(1, "f32", (("i", p(3)),), index(i=1), value),))
    return lifted(program, 2, (blocks(3, 64),), (64, 1, 1), {})


def matmul() -> Lifted:
    """c = a b; arguments a, b, c, M, N, K."""
    product = f32("mul", Load(0, "f32", index(i=p(5), k=1)), Load(1, "f32", index(k=p(4), j=1)))
    value = Reduce("add", "f32", (("k", p(5)),), product)
    program = Program("matmul", (Assign(2, "f32", (("i", p(3)), ("j", p(4))), index(i=p(4), j=1), value),))
    return lifted(program, 3, (blocks(4, 8), blocks(3, 8)), (8, 8, 1), {})


def softmax() -> Lifted:
    """Rows of x; arguments x, y, rows, columns."""
    most = Reduce("max", "f32", (("k", p(3)),), Load(0, "f32", index(i=p(3), k=1)))
    total = Reduce("add", "f32", (("l", p(3)),), f32("exp", f32("sub", Load(0, "f32", index(i=p(3), l=1)), most)))
    value = f32("div", f32("exp", f32("sub", Load(0, "f32", index(i=p(3), j=1)), most)), total)
    program = Program("softmax", (Assign(1, "f32", (("i", p(2)), ("j", p(3))), index(i=p(3), j=1), value),))
    return lifted(program, 2, (p(2),), (32, 1, 1), {})


def stencil() -> Lifted:
    """y[i] = 0.25 x[i - 1] + 0.5 x[i] + 0.25 x[i + 1] with zero padding; arguments x, y, n."""
    left = Load(0, "f32", index(-1, i=1), (index(-1, i=1),))
    right = Load(0, "f32", index(1, i=1), (index(p(2) + Size.of(-2), i=-1),))
    middle = f32("mul", number(0.5), Load(0, "f32", index(i=1)))
    value = f32("add", middle, f32("mul", number(0.25), f32("add", left, right)))
    program = Program("stencil", (Assign(1, "f32", (("i", p(2)),), index(i=1), value),))
    return lifted(program, 2, (blocks(2, 32),), (32, 1, 1), {})


def take() -> Lifted:
    """y[i, j] = table[place[i], j]; arguments table, place, y, n, d."""
    place = Apply("add", "s64", (
        Apply("mul", "s64", (Apply("cvt", "s64", (Load(1, "s32", index(i=1)),), ("s32",)), Index("s64", index(p(4))))),
        Index("s64", index(j=1)),
    ))  # fmt: skip
    program = Program("take", (Assign(2, "f32", (("i", p(3)), ("j", p(4))), index(i=p(4), j=1), Gather(0, "f32", place)),))
    made = lifted(program, 3, (blocks(4, 32), p(3)), (32, 1, 1), {})
    return replace(made, types={0: "float32", 1: "int32", 2: "float32"})


def arguments(found: Lifted) -> list[Any]:
    """Return arguments of a real launch."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    n = np.int32
    made: dict[str, list[Any]] = {
        "saxpy": [array(1000), array(1000), np.float32(0.75), n(1000)],
        "matmul": [array(70, 50), array(50, 60), array(70, 60), n(70), n(60), n(50)],
        "softmax": [array(40, 100), array(40, 100), n(40), n(100)],
        "stencil": [array(500), array(500), n(500)],
        "take": [array(50, 100), rng.integers(0, 50, 40).astype(np.int32), array(40, 100), n(40), n(100)],
    }
    return made[found.program.name]


RIGHT = (saxpy, matmul, softmax, stencil, take)


def oracle(found: Lifted) -> Any:
    """Return what runs a right program in place of a kernel."""

    def run(grid: tuple[int, int, int], args: Sequence[Any]) -> None:
        after = evaluate(found.program, args, found.launch(grid, found.block, args))
        for target, value in zip(args, after, strict=True):
            if isinstance(target, np.ndarray):
                target[...] = value

    return run


def mutants(program: Program) -> Iterator[tuple[str, Program]]:
    """Yield wrong programs, each with one fault, and what the fault is. Every one differs at some size or number."""
    for place, assign in enumerate(program.assigns):

        def with_assign(changed: Assign, place: int = place) -> Program:
            return replace(program, assigns=(*program.assigns[:place], changed, *program.assigns[place + 1 :]))

        yield "output shifted", with_assign(replace(assign, index=_shifted(assign.index)))
        yield "last output missing", with_assign(replace(assign, where=(*assign.where, _all_but_last(assign.axes[-1]))))
        axes = ((assign.axes[0][0], assign.axes[0][1] + Size.of(1)), *assign.axes[1:])
        yield "one output too many", with_assign(replace(assign, axes=axes))
        if len(assign.index.terms) > 1:
            terms = ((assign.index.terms[0][0], assign.index.terms[0][1] + ONE), *assign.index.terms[1:])
            yield "output stride", with_assign(replace(assign, index=Affine(terms, assign.index.offset)))
        for what, value in _wrong(assign.value):
            yield what, with_assign(replace(assign, value=value))


def _wrong(node: Expression) -> Iterator[tuple[str, Expression]]:
    """Yield an expression with one fault somewhere."""
    match node:
        case Load():
            yield from _wrong_load(node)
        case Gather():
            yield "gather from the next place", replace(node, place=Apply("add", "s64", (node.place, Constant("s64", 1))))
            yield from ((w, replace(node, place=c)) for w, c in _wrong(node.place))
        case Constant():
            if node.type == "f32":
                yield "constant off by 1e-4", number(np.uint32(node.bits).view(np.float32) * 1.0001)
        case Scalar():
            yield "scalar taken as a constant", number(0.75)
        case Index():
            yield "index shifted", replace(node, value=_shifted(node.value))
        case Apply():
            yield from _wrong_apply(node)
        case Reduce():
            axis, size = node.axes[0]
            yield "last term missing", replace(node, axes=((axis, size + Size.of(-1)), *node.axes[1:]))
            yield "first term missing", replace(node, where=(*node.where, index(-1, **{axis: 1})))
            yield "sum for maximum", replace(node, kind="max" if node.kind == "add" else "add")
            yield from ((w, replace(node, body=b)) for w, b in _wrong(node.body))


def _wrong_load(node: Load) -> Iterator[tuple[str, Expression]]:
    yield "input shifted", replace(node, index=_shifted(node.index))
    for place, (name, stride) in enumerate(node.index.terms):
        wrong = (*node.index.terms[:place], (name, stride + ONE), *node.index.terms[place + 1 :])
        yield f"stride of {name}", replace(node, index=Affine(wrong, node.index.offset))
        pinned = (*node.index.terms[:place], (name, Size.of(16)), *node.index.terms[place + 1 :])
        if stride.constant is None:
            yield f"stride of {name} taken as a number", replace(node, index=Affine(pinned, node.index.offset))
    if node.where:
        yield "guard shifted", replace(node, where=(_shifted(node.where[0], -1), *node.where[1:]))


def _wrong_apply(node: Apply) -> Iterator[tuple[str, Expression]]:
    if node.op in ("sub", "div"):
        yield f"operands of {node.op} swapped", replace(node, args=(node.args[1], node.args[0]))
    if node.op in ("add", "mul", "sub", "div"):
        yield f"second operand of {node.op} missing", node.args[0]
    if node.op == "fma":
        yield "term of fma missing", replace(node, op="mul", args=node.args[:2])
    for wrong, right in (("sub", "add"), ("add", "sub"), ("add", "mul"), ("mul", "div"), ("expm1", "exp")):
        if node.op == right and not (right == "mul" and node.type != "f32"):
            yield f"{wrong} for {right}", replace(node, op=wrong)
    for place, child in enumerate(node.args):
        for what, changed in _wrong(child):
            yield what, replace(node, args=(*node.args[:place], changed, *node.args[place + 1 :]))


def _shifted(affine: Affine, by: int = 1) -> Affine:
    return Affine(affine.terms, affine.offset + Size.of(by))


def _all_but_last(axis: tuple[str, Size]) -> Affine:
    return Affine(((axis[0], Size.of(-1)),), axis[1] + Size.of(-2))
