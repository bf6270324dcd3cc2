"""Programs compiled for this processor against their evaluation with NumPy."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.ops import blocks, llvm
from gewu.ops.emit import Overlap, compile_program
from gewu.ops.ir import Unsupported
from gewu.ops.nest_parts import Choice
from gewu.ops.reference import evaluate
from gewu.ops.sizes import ONE, ZERO, Affine, Size
from gewu.ops.standalone import standalone
from gewu.ops.tensor import Apply, Assign, Constant, Expression, Gather, Index, Load, Program, Reduce, Scalar
from gewu.ops.tune import store, stored, tune

R, C, K, W3 = Size.named("p2"), Size.named("p3"), Size.named("p4"), Size.of(3)
MINUS = Size.of(-1)


def at(offset: Size = ZERO, **strides: Size | int) -> Affine:
    return Affine(tuple((axis, s if isinstance(s, Size) else Size.of(s)) for axis, s in strides.items()), offset)


def f32(value: float) -> Constant:
    return Constant("f32", int(np.float32(value).view(np.uint32)))


def do(op: str, *args: Expression, kind: str = "f32", mods: tuple[str, ...] = ()) -> Apply:
    return Apply(op, kind, args, mods)


def x(row: str, column: str) -> Load:
    return Load(0, "f32", at(**{row: C, column: 1}))


def total(axis: str, extent: Size, body: Expression, kind: str = "add") -> Reduce:
    return Reduce(kind, "f32", ((axis, extent),), body)


def matrix(value: Expression) -> Program:
    return Program("test", (Assign(1, "f32", (("i", R), ("j", C)), at(i=C, j=1), value),))


def largest(row: str, k: str = "k") -> Reduce:
    return total(k, C, x(row, k), "max")


def softmax() -> Program:
    under = total("l", C, do("exp", do("sub", x("i", "l"), largest("i"))))
    return matrix(do("div", do("exp", do("sub", x("i", "j"), largest("i"))), under))


def softmax_columns() -> Program:
    top = Reduce("max", "f32", (("k", R),), x("k", "j"))
    under = Reduce("add", "f32", (("l", R),), do("exp", do("sub", x("l", "j"), top)))
    return matrix(do("div", do("exp", do("sub", x("i", "j"), top)), under))


def layernorm() -> Program:
    part = do("rcp", do("cvt", Index("s32", Affine((), C)), mods=("s32", "rn")))
    mean = do("mul", total("k", C, x("i", "k")), part)
    square = do("mul", total("l", C, do("mul", x("i", "l"), x("i", "l"))), part)
    scale = do("rsqrt", do("add", do("sub", square, do("mul", mean, mean)), f32(0.1)))
    return matrix(do("mul", do("sub", x("i", "j"), mean), scale))


def full(kind: str) -> Program:
    return Program("full", (Assign(1, "f32", (), at(), Reduce(kind, "f32", (("q", R), ("k", C)), x("q", "k"))),))


def reach(a: str, b: str, extent: Size) -> tuple[Affine, Affine]:
    return Affine(((a, ONE), (b, ONE)), MINUS), Affine(((a, MINUS), (b, MINUS)), extent)


def smooth(kind: str) -> Program:
    """A 3 by 3 window with padding, its sum or largest element."""
    window = Load(
        0, "f32", Affine((("i", C), ("r", C), ("j", ONE), ("s", ONE)), MINUS * C + MINUS), reach("i", "r", R) + reach("j", "s", C)
    )
    return matrix(Reduce(kind, "f32", (("r", W3), ("s", W3)), window))


def triangle() -> Program:
    """Row sums of the lower triangle, by a condition on the reduction; and a condition on what is written."""
    below = Affine((("i", ONE), ("k", MINUS)))
    value = Reduce("add", "f32", (("k", C),), x("i", "k"), (below,))
    return Program(
        "t",
        (
            Assign(
                1, "f32", (("i", R), ("j", C)), at(i=C, j=1), do("mul", value, x("i", "j")), (Affine((("i", ONE), ("j", MINUS))),)
            ),
        ),
    )


PROGRAMS = {
    "softmax": softmax(),
    "softmax over columns": softmax_columns(),
    "layernorm": layernorm(),
    "sum": full("add"),
    "largest": full("max"),
    "smallest": full("min"),
    "row sums": Program("r", (Assign(1, "f32", (("i", R),), at(i=1), total("k", C, x("i", "k"))),)),
    "column sums": Program("c", (Assign(1, "f32", (("j", C),), at(j=1), Reduce("add", "f32", (("k", R),), x("k", "j"))),)),
    "transpose": Program("t", (Assign(1, "f32", (("j", C), ("i", R)), at(j=R, i=1), x("i", "j")),)),
    "by the sum": matrix(do("div", x("i", "j"), Reduce("add", "f32", (("q", R), ("k", C)), x("q", "k")))),
    "window sum": smooth("add"),
    "window largest": smooth("max"),
    "triangle": triangle(),
    "gelu": matrix(
        do("mul", do("mul", x("i", "j"), f32(0.5)), do("add", f32(1), do("erf", do("mul", x("i", "j"), f32(0.70710678)))))
    ),
}


def close(got: np.ndarray, want: np.ndarray, tolerance: float = 4e-6) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(float(np.max(np.abs(want), initial=0)), 1e-30))


def arguments(rows: int, columns: int) -> tuple[list[Any], dict[str, int]]:
    rng = np.random.default_rng(rows * 1000 + columns)
    data = rng.standard_normal((rows, columns)).astype(np.float32)
    return [data, np.zeros_like(data), np.int32(rows), np.int32(columns)], {"p2": rows, "p3": columns}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str) -> None:
    executable = compile_program(PROGRAMS[name], threads=2)
    for rows, columns in ((1, 1), (3, 5), (33, 70), (4, 40_000), (9000, 3)):
        if rows > 1000 and name == "triangle":
            continue
        args, launch = arguments(rows, columns)
        want = evaluate(PROGRAMS[name], args, launch)[1]
        executable(args, launch)
        close(args[1], want)


def test_result_does_not_depend_on_threads() -> None:
    args, launch = arguments(500, 700)
    results = []
    for threads in (1, 2, 3):
        compile_program(full("add"), threads=threads)(args, launch)
        results.append(float(args[1].flat[0]))
    assert len(set(results)) == 1


def product(epilogue: bool, transposed: bool) -> Program:
    left = Load(0, "f32", at(i=K, k=1))
    right = Load(1, "f32", at(j=K, k=1) if transposed else at(k=C, j=1))
    value: Expression = Reduce("add", "f32", (("k", K),), do("mul", left, right))
    old = Load(2, "f32", at(i=C, j=1))
    value = do("max", f32(0), do("fma", f32(0.5), value, old)) if epilogue else value
    return Program("product", (Assign(2, "f32", (("i", R), ("j", C)), at(i=C, j=1), value),))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("epilogue", [False, True])
def test_matrix_product(epilogue: bool, transposed: bool) -> None:
    program = product(epilogue, transposed)
    executable = compile_program(program, threads=2)
    assert any("matrix product" in line for line in executable.plan)
    rng = np.random.default_rng(0)
    for m, n, k in ((1, 1, 1), (3, 50, 7), (65, 33, 40), (300, 200, 150)):
        shapes = ((m, k), (n, k) if transposed else (k, n), (m, n))
        args = [rng.standard_normal(s).astype(np.float32) for s in shapes]
        launch = {"p2": m, "p3": n, "p4": k}
        want = evaluate(program, args, launch)[2]
        executable(args, launch)
        close(args[2], want)


@pytest.mark.parametrize("budget", [1 << 30, 8 << 10])
def test_convolution_becomes_tiles_and_attention_products(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BUDGET", budget)
    monkeypatch.setattr(blocks, "LEAST", budget)
    height, inner = Size.named("p5"), Size.named("p6")
    window = Load(
        0,
        "f32",
        Affine((("c", height * height), ("y", height), ("r", height), ("x", ONE), ("s", ONE)), MINUS * height + MINUS),
        reach("y", "r", height) + reach("x", "s", height),
    )
    weight = Load(1, "f32", at(o=inner * Size.of(9), c=9, r=3, s=1))
    value = Reduce("add", "f32", (("c", inner), ("r", W3), ("s", W3)), do("mul", window, weight))
    conv = Program(
        "conv", (Assign(2, "f32", (("o", R), ("y", height), ("x", height)), at(o=height * height, y=height, x=1), value),)
    )
    rng = np.random.default_rng(0)
    args: list[Any] = [rng.standard_normal(s).astype(np.float32) for s in ((6, 17, 17), (8, 6, 3, 3), (8, 17, 17))]
    launch = {"p2": 8, "p5": 17, "p6": 6}
    executable = compile_program(conv, threads=2)
    assert executable.plan[-1] == "buffer 2: tiles of registers"
    want = evaluate(conv, args, launch)[2]
    executable(args, launch)
    close(args[2], want)

    def score(k: str, d: str) -> Expression:
        return do(
            "mul",
            Reduce("add", "f32", ((d, K),), do("mul", Load(0, "f32", at(i=K, **{d: 1})), Load(1, "f32", at(**{k: K, d: 1})))),
            f32(0.3),
        )

    top = total("m", R, score("m", "d1"), "max")
    weighted = total("k", R, do("mul", do("exp", do("sub", score("k", "d2"), top)), Load(2, "f32", at(k=K, e=1))))
    under = total("n", R, do("exp", do("sub", score("n", "d3"), top)))
    attention = Program("attention", (Assign(3, "f32", (("i", R), ("e", K)), at(i=K, e=1), do("div", weighted, under)),))
    args = [rng.standard_normal((70, 24)).astype(np.float32) for _ in range(4)]
    launch = {"p2": 70, "p4": 24}
    executable = compile_program(attention, threads=2)
    assert sum("matrix product" in line for line in executable.plan) == 2
    want = evaluate(attention, args, launch)[3]
    executable(args, launch)
    close(args[3], want)
    assert any(form[2] for form in executable._variants) == (budget < 1 << 20)


BITS = {"u8": 8, "s8": 8, "u16": 16, "s16": 16, "u32": 32, "s32": 32, "b32": 32, "u64": 64, "s64": 64, "b64": 64}
INTEGER_OPS = ["add", "sub", "mul", "div", "rem", "min", "max", "and", "or", "xor"]


def elementwise(
    op: str, kind: str, count: int, mods: tuple[str, ...] = (), result: str = "", sources: tuple[str, ...] = ()
) -> Program:
    loads = tuple(Load(place, sources[place] if sources else kind, at(i=1)) for place in range(count))
    return Program(op, (Assign(3, result or kind, (("i", Size.named("n")),), at(i=1), Apply(op, kind, loads, mods)),))


def run_elementwise(program: Program, args: list[np.ndarray], out: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
    full_args: list[Any] = [*args, *[np.zeros(args[0].size, np.uint8)] * (3 - len(args)), np.zeros(args[0].size, out)]
    launch = {"n": args[0].size}
    want = evaluate(program, full_args, launch)[3]
    compile_program(program, threads=1)(full_args, launch)
    return full_args[3], want


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64", "s16", "u8"])
def test_integer_operations(kind: str) -> None:
    rng = np.random.default_rng(0)
    dtype = np.dtype(f"{'int' if kind[0] == 's' else 'uint'}{BITS[kind]}")
    edges = np.array([0, 1, 2, -1, -2, 1 << BITS[kind] - 1, (1 << BITS[kind] - 1) - 1], object)
    pairs = np.array([(a, b) for a in edges for b in edges], object) & ((1 << BITS[kind]) - 1)
    values = [
        np.concatenate([pairs[:, c].astype(np.uint64), rng.integers(0, 1 << 63, 50, np.uint64)]).astype(f"uint{BITS[kind]}")
        for c in (0, 1)
    ]
    args = [v.view(dtype) for v in values]
    for op in INTEGER_OPS:
        got, want = run_elementwise(elementwise(op, kind, 2), args, dtype)
        np.testing.assert_array_equal(got, want, err_msg=op)
    shift = (np.arange(args[0].size) % 70).astype(np.uint32)
    for op in ("shl", "shr"):
        got, want = run_elementwise(elementwise(op, kind, 2, sources=(kind, "b32")), [args[0], shift], dtype)
        np.testing.assert_array_equal(got, want, err_msg=op)


def python_integer_op(op: str, a: int, b: int, c: int) -> int:
    mask = 0xFFFFFFFF
    match op:
        case "bfe":
            position, length = b & 255, min(c & 255, 32)
            return (a >> position) & ((1 << length) - 1) if position < 32 else 0
        case "prmt":
            whole = a | b << 32
            picks = [(c >> 4 * k) & 15 for k in range(4)]
            found = [(whole >> 8 * (p & 7)) & 255 for p in picks]
            return sum((255 * (f >> 7) if p & 8 else f) << 8 * k for k, (p, f) in enumerate(zip(picks, found, strict=True)))
        case "popc":
            return a.bit_count()
        case "clz":
            return 32 - a.bit_length()
        case "flo":
            return a.bit_length() - 1 & mask
        case "brev":
            return int(f"{a:032b}"[::-1], 2)
        case "mulhi":
            return a * b >> 32
        case "sad":
            return c + abs(a - b) & mask
        case _:
            return c + sum((a >> s & 255) * (b >> s & 255) for s in (0, 8, 16, 24)) & mask


@pytest.mark.parametrize(
    ("op", "count"),
    [("bfe", 3), ("prmt", 3), ("popc", 1), ("clz", 1), ("flo", 1), ("brev", 1), ("mulhi", 2), ("sad", 3), ("dp4a", 3)],
)
def test_bit_operations(op: str, count: int) -> None:
    rng = np.random.default_rng(0)
    args = [rng.integers(0, 1 << 32, 200, np.uint64).astype(np.uint32) for _ in range(3)]
    args[0][:3] = (0, 1, 0xFFFFFFFF)
    if op == "bfe":
        args[1], args[2] = args[1] % 40, args[2] % 40
    out: list[Any] = [*args, np.zeros(200, np.uint32)]
    compile_program(elementwise(op, "u32", count), threads=1)(out, {"n": 200})
    want = [python_integer_op(op, int(a), int(b), int(c)) for a, b, c in zip(*args, strict=True)]
    np.testing.assert_array_equal(out[3], np.array(want, np.uint32))


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_float_operations(kind: str) -> None:
    rng = np.random.default_rng(0)
    dtype = np.dtype(np.uint16) if kind == "bf16" else np.dtype(kind.replace("f", "float"))
    numbers = [rng.standard_normal(300).astype(np.float32) * 3 for _ in range(3)]
    args = [(n.view(np.uint32) >> 16).astype(np.uint16) if kind == "bf16" else n.astype(dtype) for n in numbers]
    for op, count in (
        ("add", 2),
        ("sub", 2),
        ("mul", 2),
        ("div", 2),
        ("min", 2),
        ("max", 2),
        ("fma", 3),
        ("neg", 1),
        ("abs", 1),
        ("copysign", 2),
        ("exp", 1),
    ):
        got, want = run_elementwise(elementwise(op, kind, count), args[:count], dtype)
        if kind == "bf16":
            got, want = ((v.astype(np.uint32) << 16).view(np.float32) for v in (got, want))
        step = {"f16": 1e-3, "bf16": 8e-3, "f32": 3e-7, "f64": 6e-16}[kind]
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=step, atol=step * 1e-2, err_msg=op)


@pytest.mark.parametrize(
    ("source", "target", "mods"),
    [
        ("f32", "s32", ("rzi",)),
        ("f32", "u8", ("rni",)),
        ("f32", "s8", ("rmi",)),
        ("f64", "u64", ("rpi",)),
        ("s32", "f32", ("rn",)),
        ("u64", "f64", ("rn",)),
        ("f32", "f16", ("rn",)),
        ("f16", "f32", ()),
        ("f32", "bf16", ("rn",)),
        ("bf16", "f32", ()),
        ("f32", "f32", ("rni",)),
        ("f32", "f32", ("rn", "sat")),
        ("s32", "s8", ("sat",)),
        ("s32", "u8", ("sat",)),
        ("u32", "s64", ()),
        ("s16", "s64", ()),
        ("s32", "u16", ()),
    ],
)
def test_conversions(source: str, target: str, mods: tuple[str, ...]) -> None:
    from gewu.ops.reference import dtype_of

    rng = np.random.default_rng(0)
    if source in ("f32", "f64", "f16"):
        values = np.concatenate(
            [
                rng.standard_normal(100) * 100,
                [0.5, 1.5, -0.5, 2.5, np.nan, np.inf, -np.inf, 1e30 if source != "f16" else 6e4, -0.0],
            ]
        )
        data = values.astype(dtype_of(source))
    else:
        data = rng.integers(0, 1 << 63, 150, np.uint64).astype(f"uint{dtype_of(source).itemsize * 8}").view(dtype_of(source))
        data = data & np.uint16(0xBFFF) if source == "bf16" else data
    program = elementwise("cvt", target, 1, (source, *mods), sources=(source,))
    got, want = run_elementwise(program, [data], dtype_of(target))
    if target == "bf16":
        got, want = ((v.astype(np.uint32) << 16).view(np.float32) for v in (got, want))
    np.testing.assert_array_equal(got, want)


def test_directed_rounding() -> None:
    rng = np.random.default_rng(0)
    args = [rng.standard_normal(500).astype(np.float32) for _ in range(2)]
    exact = args[0].astype(np.float64) * args[1].astype(np.float64)
    for mode, below in (("rm", True), ("rp", False)):
        got, _ = run_elementwise(elementwise("mul", "f32", 2, (mode,)), args, np.dtype(np.float32))
        other = np.nextafter(got, np.float32(np.inf if below else -np.inf))
        assert np.all(got <= exact) if below else np.all(got >= exact)
        assert np.all(other > exact) if below else np.all(other < exact)
    with pytest.raises(Unsupported):
        compile_program(elementwise("mul", "f64", 2, ("rm",)))


def test_comparisons_and_select() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-3, 4, (2, 200)).astype(np.float32)
    a[::7] = np.nan
    for how in ("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"):
        test = Apply("setp", "f32", (Load(0, "f32", at(i=1)), Load(1, "f32", at(i=1))), (how,))
        value = Apply("select", "f32", (Load(0, "f32", at(i=1)), f32(9), test))
        program = Program("s", (Assign(3, "f32", (("i", Size.named("n")),), at(i=1), value),))
        got, want = run_elementwise(program, [a, b], np.dtype(np.float32))
        np.testing.assert_array_equal(got, want, err_msg=how)


def test_half_types_accumulate_in_float32() -> None:
    for kind, ones in (("f16", np.ones((1, 6000), np.float16)), ("bf16", np.full((1, 6000), 0x3F80, np.uint16))):
        program = Program(
            "s",
            (
                Assign(
                    1, "f32", (), at(), Apply("cvt", "f32", (Reduce("add", kind, (("k", C),), Load(0, kind, at(k=1))),), (kind,))
                ),
            ),
        )
        out = np.zeros(1, np.float32)
        compile_program(program, threads=1)([ones, out], {"p3": 6000})
        assert out[0] == pytest.approx(6000, rel=4e-3)


def gather() -> Program:
    place = Apply("cvt", "s64", (Load(1, "s32", at(i=1)),), ("s32",))
    return Program("g", (Assign(2, "f32", (("i", R),), at(i=1), Gather(0, "f32", place)),))


def test_gather_checks_its_indices() -> None:
    executable = compile_program(gather(), threads=1)
    table, places, out = np.arange(10, dtype=np.float32) * 2, np.array([3, 9, 0, 0], np.int32), np.zeros(4, np.float32)
    executable([table, places, out], {"p2": 4})
    np.testing.assert_array_equal(out, [6, 18, 0, 0])
    for bad in (10, -1):
        places[2] = bad
        with pytest.raises(InputError, match="points outside"):
            executable([table, places, out], {"p2": 4})
    with pytest.raises(InputError, match="empty"):
        executable([table[:0], places, out], {"p2": 4})


def test_scalars_and_indices() -> None:
    value = do("fma", Scalar(0, "f32"), do("cvt", Index("s32", at(i=2)), mods=("s32", "rn")), Load(1, "f32", at(i=1)))
    program = Program("s", (Assign(2, "f32", (("i", C),), at(i=1), value),))
    out = np.zeros(50, np.float32)
    for scalar in (np.float32(1.5), 1.5):
        compile_program(program)([scalar, np.ones(50, np.float32), out], {"p3": 50})
        np.testing.assert_array_equal(out, 3 * np.arange(50) + 1)


def test_several_outputs_share_a_nest_and_read_the_state_before() -> None:
    a, b = Load(0, "f32", at(i=1)), Load(1, "f32", at(i=1))
    axes = (("i", C),)
    program = Program("swap", (Assign(0, "f32", axes, at(i=1), do("add", b, f32(1))), Assign(1, "f32", axes, at(i=1), a)))
    executable = compile_program(program)
    assert len(executable.plan) == 1
    first, second = np.zeros(100, np.float32), np.full(100, 5, np.float32)
    executable([first, second], {"p3": 100})
    assert np.all(first == 6) and np.all(second == 0)


def test_a_buffer_read_elsewhere_than_written_is_copied() -> None:
    end = C + MINUS
    program = Program("reverse", (Assign(0, "f32", (("i", C),), at(i=1), Load(0, "f32", at(end, i=-1))),))
    data = np.arange(1000, dtype=np.float32)
    compile_program(program)([data], {"p3": 1000})
    np.testing.assert_array_equal(data, np.arange(1000)[::-1])


def test_overlapping_arrays() -> None:
    add = Program("add", (Assign(1, "f32", (("i", C),), at(i=1), do("add", Load(0, "f32", at(i=1)), f32(1))),))
    shift = Program("shift", (Assign(1, "f32", (("i", C),), at(i=1), Load(0, "f32", at(ONE, i=1))),))
    data = np.arange(100, dtype=np.float32)
    compile_program(add)([data, data], {"p3": 100})
    np.testing.assert_array_equal(data, np.arange(100) + 1)
    with pytest.raises(Overlap):
        compile_program(add)([data[:-1], data[1:]], {"p3": 99})
    with pytest.raises(Overlap):
        compile_program(shift)([data, data], {"p3": 99})
    compile_program(add)([data[:50], data[50:]], {"p3": 50})
    np.testing.assert_array_equal(data[50:], np.arange(50) + 2)


def test_arrays_that_do_not_fit_are_refused() -> None:
    executable = compile_program(PROGRAMS["softmax"])
    args, launch = arguments(4, 6)
    for bad, message in (
        ([args[0][:3], *args[1:]], "argument 0 is too small"),
        ([args[0], args[1][:3], *args[2:]], "argument 1 is too small"),
        ([np.asfortranarray(args[0]), *args[1:]], "argument 0 is not contiguous"),
        (args[:1], "too few arguments"),
    ):
        with pytest.raises(InputError, match=message):
            executable(bad, launch)
    with pytest.raises(InputError, match="lacks"):
        executable(args, {"p2": 4})
    args[1].flags.writeable = False
    with pytest.raises(InputError, match="argument 1 is read-only"):
        executable(args, launch)
    negative = Program("n", (Assign(1, "f32", (("i", C),), at(i=1), Load(0, "f32", at(MINUS, i=1))),))
    with pytest.raises(InputError, match="argument 0 is too small: bytes -4"):
        compile_program(negative)([np.zeros(9, np.float32), np.zeros(9, np.float32)], {"p3": 9})


def test_padding_may_lie_outside() -> None:
    """The box of all points of a padded window leaves the array; the points that are read do not."""
    args, launch = arguments(5, 4)
    compile_program(PROGRAMS["window sum"])(args, launch)
    with pytest.raises(InputError, match="too small"):
        compile_program(PROGRAMS["window sum"])([args[0].ravel()[:-1].copy(), *args[1:]], launch)


def test_empty_ranges_do_nothing() -> None:
    for program in (PROGRAMS["softmax"], PROGRAMS["transpose"], PROGRAMS["column sums"]):
        args = [np.zeros(0, np.float32), np.full(3, 7, np.float32)]
        compile_program(program)(args, {"p2": 3, "p3": 0})
        assert np.all(args[1] == 7)


def test_loops_hold_vector_instructions() -> None:
    for name in ("softmax", "layernorm", "row sums", "column sums", "sum", "largest", "gelu", "window sum"):
        library = llvm.jit(compile_program(PROGRAMS[name]).text)
        assert f"<{llvm.host_vector_bits() // 32} x float>" in library.optimised, name


@pytest.mark.parametrize("name", ["softmax over columns", "sum", "window largest", "triangle"])
def test_standalone_function(name: str) -> None:
    made = standalone(PROGRAMS[name], "kern")
    library = llvm.jit(made.text)
    args, launch = arguments(13, 37)
    want = evaluate(PROGRAMS[name], args, launch)[1]
    block = (ctypes.c_uint64 * 4)(args[0].ctypes.data, args[1].ctypes.data, 13, 37)
    values = (ctypes.c_int64 * len(made.names))(*(launch[n] for n in made.names))
    need = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(library.address("kern_work"))(ctypes.addressof(values))
    work = np.empty(need + 64, np.uint8)
    call = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3)(library.address("kern"))
    assert call(ctypes.addressof(block), ctypes.addressof(values), work.ctypes.data) == 0
    close(args[1], want)


def test_other_targets() -> None:
    made = standalone(PROGRAMS["softmax over columns"])
    for target in ("aarch64", "riscv64-v", "loongarch64"):
        assert llvm.emit_object(made.text, target)[:4] == b"\x7fELF"


def test_tuning_is_kept_and_damage_is_ignored(tmp_path: Any) -> None:
    program = PROGRAMS["column sums"]
    args, launch = arguments(200, 300)
    untouched = args[1].copy()
    choice = tune(program, args, launch, 0.2, threads=1, cache=tmp_path)
    np.testing.assert_array_equal(args[1], untouched)
    assert stored(tmp_path, program, launch) == choice
    assert stored(tmp_path, program, {"p2": 2000, "p3": 300}) is None
    assert stored(tmp_path, PROGRAMS["row sums"], launch) is None
    (path,) = tmp_path.glob("*.tuned.json")
    kept = Choice(tile=64, unroll=2, interleave=2)
    store(tmp_path, program, launch, kept, 1.0)
    executable = compile_program(program, threads=1, cache=tmp_path)
    executable(args, launch)
    close(args[1], evaluate(program, args, launch)[1])
    assert any(used[1] == kept for used in executable._variants)
    for bad in (b"", b"[]", b'{"choice": 3}', path.read_bytes().replace(b'"tile": 64', b'"tile": 65'), path.read_bytes()[:-9]):
        path.write_bytes(bad)
        assert stored(tmp_path, program, launch) is None


@pytest.mark.parametrize("shape", [(3, 5, 7), (9, 2, 70), (1, 4, 33)])
def test_a_reduction_over_fewer_axes_than_the_outputs_stays_in_their_nest(shape: tuple[int, int, int]) -> None:
    from gewu.ops.library.normalise import batchnorm_channels

    made = compile_program(batchnorm_channels(("f32",) * 4), threads=1)
    assert made.plan == ["buffer 3: row reduction"]
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape, dtype=np.float32) + 2
    gain, bias = (rng.standard_normal(shape[1], dtype=np.float32) for _ in range(2))
    y, wide = np.empty_like(x), x.astype(np.float64)
    made((x, gain, bias, y, np.float32(1e-5)), dict(zip("bcp", shape, strict=True)))
    mean, variance = wide.mean((0, 2), keepdims=True), wide.var((0, 2), keepdims=True)
    want = (wide - mean) / np.sqrt(variance + 1e-5) * gain[:, None] + bias[:, None]
    np.testing.assert_allclose(y, want, atol=2e-5)
