"""Reductions of nests: equal ones inside of others, and conditions of short ones."""

import numpy as np

from gewu.ops.emit import compile_program
from gewu.ops.sizes import Affine, Size
from gewu.ops.tensor import Apply, Assign, Load, Program, Reduce
from tests.ops.test_emit import R, at, close, do, f32


def haar() -> Program:
    """Sums of eight and differences of four neighbours: the same reduction stands inside of another one and by itself."""
    two = Size.of(2)

    def half(start: int, **outer: int) -> Reduce:
        pair = Reduce("add", "f32", (("k", two),), Load(0, "f32", at(Size.of(start), i=8, l=2, k=1, **outer)))
        return Reduce("add", "f32", (("l", two),), do("mul", pair, f32(0.5)))

    whole = Reduce("add", "f32", (("m", two),), do("mul", half(0, m=4), f32(0.5)))
    axes = (("i", R),)
    return Program("haar", (Assign(1, "f32", axes, at(i=1), do("sub", half(0), half(4))), Assign(2, "f32", axes, at(i=1), whole)))


def x_at() -> Load:
    return Load(0, "f32", at(Size.of(-1), i=1, k=1))


def test_equal_reductions_inside_of_different_ones_are_kept_apart() -> None:
    x = np.random.default_rng(2).standard_normal(80).astype(np.float32)
    difference, whole = np.zeros(10, np.float32), np.zeros(10, np.float32)
    compile_program(haar())([x, difference, whole], {"p2": 10})
    blocks = x.reshape(10, 8)
    close(difference, 0.5 * (blocks[:, :4].sum(1) - blocks[:, 4:].sum(1)))
    close(whole, 0.25 * blocks.sum(1))


def test_conditions_of_a_short_sum_go_to_what_is_multiplied() -> None:
    """What lies beyond the ends of an array counts nothing, with weights and without."""
    n = Size.named("p3")
    where = (at(Size.of(-1), i=1, k=1), Affine((("i", Size.of(-1)), ("k", Size.of(-1))), n))
    for body in (x_at(), do("mul", Load(1, "f32", at(k=1)), x_at())):
        value = Reduce("add", "f32", (("k", Size.of(3)),), body, where)
        executable = compile_program(Program("w", (Assign(2, "f32", (("i", n),), at(i=1), value),)), threads=1)
        x, w, y = np.arange(1.0, 51.0, dtype=np.float32), np.array([1, 10, 100], np.float32), np.zeros(50, np.float32)
        executable([x, w, y, np.int32(50)], {"p3": 50})
        padded = np.pad(x, 1)
        taps = w if isinstance(body, Apply) else np.ones(3, np.float32)
        np.testing.assert_array_equal(y, sum(t * padded[k : k + 50] for k, t in enumerate(taps)))
