"""Convolutions in tiles of registers against their evaluation with NumPy: sizes that leave ragged tiles, steps, zeros around."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.ops import blocks
from gewu.ops.emit import Executable, compile_program
from gewu.ops.library.call import symbols
from gewu.ops.library.convolve import conv1d_program, conv2d_program, spread_program, weights_program
from gewu.ops.library.linear import contraction, int8_product
from gewu.ops.python import assign, axes, cast, maximum, program, sizes, total
from gewu.ops.reference import evaluate
from gewu.ops.rewrite import Graph
from gewu.ops.tensor import Apply, Expression, Load, Program, Reduce

TILES = "tiles of registers"


def filled(kinds: str, shapes: list[tuple[int, ...]], seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(kinds) for s in shapes]


def agrees(p: Program, args: list[Any], launch: Mapping[str, int], tiles: int = 1, threads: int = 2) -> Executable:
    executable = compile_program(p, threads=threads)
    assert sum(TILES in line for line in executable.plan) == tiles, executable.plan
    want = evaluate(p, args, launch)[len(args) - 1]
    executable(args, launch)
    # sums of up to 1,000 terms in another order
    np.testing.assert_allclose(args[-1], want, rtol=0, atol=(1e-4 if args[0].dtype.itemsize < 8 else 1e-12))
    return executable


def unguarded(p: Program) -> Program:
    """Return a convolution as lifting finds it: the sum has the conditions, not the load."""
    graph = Graph()

    def change(e: Expression) -> Expression | None:
        if not isinstance(e, Reduce):
            return None
        loads = [part for part in e.body.args if isinstance(part, Load)] if isinstance(e.body, Apply) else []
        bare = tuple(graph.make(replace(load, where=())) for load in loads)
        body = graph.make(replace(e.body, args=bare))  # type: ignore[arg-type]
        return graph.make(replace(e, body=body, where=tuple(w for load in loads for w in load.where)))

    assigns = [replace(a, value=graph.intern(graph.replace(graph.intern(a.value), change))) for a in p.assigns]
    return replace(p, assigns=tuple(assigns))


@pytest.mark.parametrize("lifted", [False, True])
@pytest.mark.parametrize(
    ("b", "c", "o", "n", "taps", "padding"),
    [(1, 1, 1, 1, 1, 0), (2, 3, 5, 47, 5, 2), (3, 2, 8, 48, 3, 1), (1, 4, 17, 500, 7, 0), (2, 5, 9, 3, 5, 4)],
)
def test_rows(b: int, c: int, o: int, n: int, taps: int, padding: int, lifted: bool) -> None:
    p, v = conv1d_program(["f32"] * 4, taps, 1, padding), n + 2 * padding - taps + 1
    args = filled("f4", [(b, c, n), (o, c, taps), (o,), (b, o, v)])
    agrees(unguarded(p) if lifted else p, args, {"b": b, "c": c, "o": o, "w": n, "v": v})


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("lifted", [False, True])
@pytest.mark.parametrize(
    ("b", "c", "o", "h", "w", "taps", "stride", "padding"),
    [
        (2, 3, 5, 7, 19, (3, 3), (1, 1), (1, 1)),
        (1, 2, 16, 30, 61, (5, 3), (1, 1), (0, 1)),
        (2, 1, 7, 13, 9, (3, 2), (2, 1), (1, 0)),
        (3, 2, 8, 4, 4, (3, 3), (3, 1), (2, 2)),
        (1, 4, 9, 1, 5, (1, 1), (1, 1), (0, 0)),
    ],
)
def test_images(b: int, c: int, o: int, h: int, w: int, taps: Any, stride: Any, padding: Any, lifted: bool, kind: str) -> None:
    u, v = ((n + 2 * q - t) // s + 1 for n, q, t, s in zip((h, w), padding, taps, stride, strict=True))
    p = conv2d_program(["f64" if kind == "f8" else "f32"] * 4, taps, stride, padding)
    args = filled(kind, [(b, c, h, w), (o, c, *taps), (o,), (b, o, u, v)])
    launch = {"b": b, "c": c, "o": o, "h": h, "w": w, "u": u, "v": v}
    agrees(unguarded(p) if lifted else p, args, launch)


def test_steps_along_the_row_and_gradients_are_right_another_way() -> None:
    args = filled("f4", [(2, 3, 9, 41), (5, 3, 3, 3), (5,), (2, 5, 9, 20)])
    launch = {"b": 2, "c": 3, "o": 5, "h": 9, "w": 41, "u": 9, "v": 20}
    agrees(conv2d_program(["f32"] * 4, (3, 3), (1, 2), (1, 0)), args, launch, tiles=0)
    args = filled("f4", [(2, 5, 9, 41), (2, 3, 9, 41), (5, 3, 3, 3)])
    agrees(weights_program(["f32"] * 3, (3, 3), (1, 1), (1, 1)), args, {**launch, "v": 41}, tiles=0)


@pytest.mark.parametrize(
    ("stride", "padding", "taps"), [((2, 2), (1, 1), (4, 4)), ((1, 1), (0, 2), (3, 5)), ((3, 2), (1, 0), (4, 3))]
)
def test_transposed(stride: Any, padding: Any, taps: Any) -> None:
    b, c, o, h, w = 2, 3, 5, 6, 21
    u, v = ((n - 1) * s + t - 2 * q for n, q, t, s in zip((h, w), padding, taps, stride, strict=True))
    args = filled("f4", [(b, c, h, w), (c, o, *taps), (b, o, u, v)])
    launch = {"b": b, "c": c, "o": o, "h": h, "w": w, "u": u, "v": v}
    agrees(spread_program(["f32"] * 3, taps, stride, padding), args, launch, tiles=stride[0] * stride[1])


def test_volumes_halves_and_what_follows_the_sum() -> None:
    c, o, d, h, w, p, q, r = sizes("c o d h w p q r")
    f, i, j, k, e, s, t, u = axes(f=o, i=p, j=q, k=r, e=c, s=2, t=3, u=3)
    x, weight, y = symbols(["f16", "f32", "f32"], (c, d, h, w), (o, c, 2, 3, 3), (o, p, q, r))
    found = total(weight[f, e, s, t, u] * cast(x[e, i + s, j + t, k + u], "f32"), over=(e, s, t, u))
    volume = program("volume", assign(y[f, i, j, k], maximum(found, 0) * 2 + found))
    args = [*filled("f2", [(3, 5, 6, 30)]), *filled("f4", [(7, 3, 2, 3, 3), (7, 4, 4, 28)])]
    agrees(volume, args, {"c": 3, "o": 7, "d": 5, "h": 6, "w": 30, "p": 4, "q": 4, "r": 28})


def test_blocks_of_outputs_and_sums_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BUDGET", 8 << 10)
    monkeypatch.setattr(blocks, "LEAST", 8 << 10)
    p = conv2d_program(["f32"] * 4, (3, 3), (1, 1), (1, 1))
    args = filled("f4", [(4, 6, 17, 17), (8, 6, 3, 3), (8,), (4, 8, 17, 17)])
    executable = agrees(p, args, {"b": 4, "c": 6, "o": 8, "h": 17, "w": 17, "u": 17, "v": 17})
    assert any(cut for _, _, cut in executable._variants)
    args = filled("f4", [(1, 0, 17, 17), (8, 0, 3, 3), (8,), (1, 8, 17, 17)])
    compile_program(p, threads=2)(args, {"b": 1, "c": 0, "o": 8, "h": 17, "w": 17, "u": 17, "v": 17})
    np.testing.assert_array_equal(args[-1], np.broadcast_to(args[2][:, None, None], args[-1].shape))


@pytest.mark.parametrize("left", ["zik", "zki"])
@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize(("z", "m", "n", "k"), [(3, 17, 33, 31), (1, 64, 64, 64), (2, 5, 200, 40), (5, 130, 7, 20)])
def test_products_of_middling_sizes(z: int, m: int, n: int, k: int, kind: str, left: str) -> None:
    shape = (z, m, k) if left == "zik" else (z, k, m)
    p, args = contraction(["f32" if kind == "f4" else "f64"] * 3, f"{left},zkj->zij"), filled(kind, [shape, (z, k, n), (z, m, n)])
    executable = compile_program(p, threads=2)
    executable(args, {"z": z, "i": m, "j": n, "k": k})
    (used,) = (v.variant for v in executable._prepared.values())
    assert any(TILES in step.describe() for step in used.built.steps)
    np.testing.assert_allclose(args[2], np.einsum(f"{left},zkj->zij", *args[:2]), rtol=0, atol=1e-4 if kind == "f4" else 1e-12)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 70), (4, 8, 64), (7, 9, 100), (3, 2, 0)])
def test_rows_that_share_a_factor_are_computed_together(m: int, n: int, k: int) -> None:
    vector = compile_program(contraction(["f32"] * 3, "ik,k->i"), threads=2)
    assert len(vector.plan) == 2  # four rows at a time, and what is left
    args = filled("f4", [(m, k), (k,), (m,)])
    vector(args, {"i": m, "k": k})
    np.testing.assert_allclose(args[2], args[0] @ args[1], rtol=0, atol=1e-4)
    weights = np.random.default_rng(1).integers(-127, 128, (n, k), np.int8)
    args = [*filled("f4", [(m, k)]), weights, *filled("f4", [(n,), (m, n)])]
    narrow = compile_program(int8_product(["f32", "s8", "f32", "f32"]), threads=2)
    assert len(narrow.plan) == 4
    narrow(args, {"m": m, "n": n, "p": k})
    # products of weights up to 127
    np.testing.assert_allclose(args[3], args[0] @ weights.T.astype("f4") * args[2], rtol=0, atol=1e-2)


def test_what_is_too_short_for_a_product_is_refused() -> None:
    executable = compile_program(contraction(["f32"] * 3, "ik,kj->ij"), threads=2)
    for short in range(3):
        args = filled("f4", [(50, 40), (40, 60), (50, 60)])
        args[short] = args[short].ravel()[:-1].copy()
        with pytest.raises(InputError, match=f"argument {short} is too small"):
            executable(args, {"i": 50, "j": 60, "k": 40})
