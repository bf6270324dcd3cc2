"""The reference interpreter against models of its own: threads one by one, NumPy, and what its graphs of symbols evaluate to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.ops.interp import run, trace
from gewu.ops.ir import SHARED_WINDOW, Block, Instruction, Kernel, Operand, Parameter, Unsupported, check
from gewu.ops.trace import DataDependent, SymbolicBuffer, Trace, evaluate

KINDS = {"p": "pred", "h": "b16", "r": "b32", "d": "b64"}
ONE = 0x3F800000
Code = list[Instruction]


def op(name: str, type_: str, dst: str = "", *src: Operand, mods: str = "", when: tuple[str, bool] | None = None) -> Instruction:
    return Instruction(name, type_, tuple(dst.split()), src, tuple(mods.split()), when, "here")


EXIT = op("exit", "b32")


def kernel(sizes: Sequence[int], *blocks: tuple[Code, tuple[int, ...]], shared: int = 0, local: int = 0) -> Kernel:
    """Make a kernel; the first letter of a register tells its width."""
    names = {n for code, _ in blocks for i in code for n in (*i.dst, *i.src, *(i.guard or ())[:1]) if isinstance(n, str)}
    places = [sum(sizes[:k]) for k in range(len(sizes))]
    made = Kernel(
        "tested",
        tuple(Parameter(at, size) for at, size in zip(places, sizes, strict=True)),
        [Block(list(code), following) for code, following in blocks],
        {n: KINDS[n[0]] for n in names},
        shared,
        local,
        source="ptx",
    )
    check(made)
    return made


def element(register: str, argument: int, number: str = "r_i", size: int = 4) -> Code:
    """Set a register to the address of element `number` of an array argument."""
    return [
        op("param", "b64", "d_base", 8 * argument),
        op("mulwide", "u32", "d_at", number, size),
        op("add", "u64", register, "d_base", "d_at"),
    ]


def index() -> Code:
    """Set r_i to the number of the thread in the launch, r_t to that in its block."""
    return [
        op("special", "b32", "r_t", mods="tid.x"),
        op("special", "b32", "r_b", mods="ctaid.x"),
        op("special", "b32", "r_n", mods="ntid.x"),
        op("mul", "u32", "r_o", "r_b", "r_n"),
        op("add", "u32", "r_i", "r_o", "r_t"),
    ]


def mapped(code: Code, arrays: int = 2, **more: Any) -> Kernel:
    """Read element i of argument 0 to r_x, do `code`, write r_y to element i of argument 1."""
    start = [*index(), *element("d_x", 0), *element("d_y", 1), op("ld", "b32", "r_x", "d_x", 0, mods="global")]
    return kernel([8] * arrays, ([*start, *code, op("st", "b32", "", "d_y", 0, "r_y", mods="global"), EXIT], ()), **more)


def f32(*x: float) -> np.ndarray:
    return np.array(x, np.float32).view(np.uint32)


# kernels with numbers
def test_a_loop_with_a_different_length_in_each_thread() -> None:
    loop = [op("add", "u32", "r_s", "r_s", "r_k"), op("add", "u32", "r_k", "r_k", 1)]
    test = [op("setp", "u32", "p", "r_k", "r_x", mods="lt"), op("bra", "b32", when=("p", True))]
    start = [*index(), *element("d_x", 0), *element("d_y", 1), op("ld", "b32", "r_x", "d_x", 0, mods="global")]
    start += [op("mov", "b32", "r_s", 0), op("mov", "b32", "r_k", 0)]
    end = [op("st", "b32", "", "d_y", 0, "r_s", mods="global"), EXIT]
    k = kernel([8, 8], (start, (1,)), (test, (2, 3)), (loop, (1,)), (end, ()))
    x, y = np.arange(96, dtype=np.uint32) * 7 % 13, np.zeros(96, np.uint32)
    for lanes in (32, 65536):
        y[:] = 0
        counts = run(k, (3, 1, 1), (32, 1, 1), [x, y], lanes=lanes)
        assert y.tolist() == [n * (n - 1) // 2 for n in x.tolist()]
    bodies = len(start) + len(end) + 2
    assert counts.lane_instructions == int(96 * bodies + 4 * x.sum())


def test_threads_meet_again_after_a_loop() -> None:
    start = [*index(), *element("d_y", 0), op("mov", "b32", "r_k", 0)]
    loop = [
        op("add", "u32", "r_k", "r_k", 1),
        op("setp", "u32", "p", "r_k", "r_t", mods="lt"),
        op("bra", "b32", when=("p", True)),
    ]
    end = [op("activemask", "b32", "r_y"), op("st", "b32", "", "d_y", 0, "r_y", mods="global"), EXIT]
    y = np.zeros(32, np.uint32)
    run(kernel([8], (start, (1,)), (loop, (1, 2)), (end, ())), (1, 1, 1), (32, 1, 1), [y])
    assert (y == 2**32 - 1).all()


def test_machine_code_may_read_to_the_end_of_a_piece_of_shared_memory() -> None:
    k = kernel([], ([ZERO, op("ld", "b32", "r_1 r_2 r_3 r_4", "r_0", 0, mods="shared"), EXIT], ()), shared=8)
    with pytest.raises(InputError, match="byte 8 of shared memory"):
        run(k, (1, 1, 1), (1, 1, 1), [])
    k.source = "sass sm_90"
    run(k, (1, 1, 1), (1, 1, 1), [])


def reversal(size: int) -> Kernel:
    """Reverse the elements of each block through shared memory, by generic addresses."""
    code = [
        op("mulwide", "u32", "d_s", "r_t", 4),
        op("add", "u64", "d_s", "d_s", SHARED_WINDOW),
        op("st", "b32", "", "d_s", 0, "r_x", mods="generic"),
        op("bar", "b32"),
        op("sub", "u32", "r_m", size - 1, "r_t"),
        op("shl", "b32", "r_m", "r_m", 2),
        op("ld", "b32", "r_y", "r_m", 0, mods="shared"),
    ]
    return mapped(code, shared=4 * size)


def test_barriers_and_shared_memory() -> None:
    x, y = np.arange(200, dtype=np.uint32), np.zeros(200, np.uint32)
    run(reversal(50), (4, 1, 1), (50, 1, 1), [x, y])
    assert y.tolist() == x.reshape(4, 50)[:, ::-1].ravel().tolist()


def test_ended_threads_do_not_keep_a_barrier_waiting() -> None:
    start = [*index(), *element("d_y", 0), op("setp", "u32", "p", "r_t", 5, mods="ge"), op("exit", "b32", when=("p", True))]
    rest = [op("bar", "b32"), op("st", "b32", "", "d_y", 0, "r_t", mods="global"), EXIT]
    y = np.full(8, 99, np.uint32)
    run(kernel([8], (start, (1,)), (rest, ())), (1, 1, 1), (8, 1, 1), [y])
    assert y.tolist() == [0, 1, 2, 3, 4, 99, 99, 99]


def shuffled(mode: str, lane: int, step: int, c: int) -> tuple[int, bool]:
    """Follow the manual's pseudocode of `shfl`."""
    segment, clamp = c >> 8 & 31, c & 31
    most, least = (lane & segment) | (clamp & ~segment), lane & segment
    j = {"up": lane - step, "down": lane + step, "bfly": lane ^ step, "idx": least | (step & ~segment & 31)}[mode]
    good = j >= most if mode == "up" else j <= most
    return (j if good else lane), good


@pytest.mark.parametrize("c", [0x1F, 0x0, 0x1C1F, 0x1803])
@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(mode: str, c: int) -> None:
    code = [op("shfl", "b32", "r_y p", "r_x", "r_step", c, mods=mode), op("select", "b32", "r_z", 1, 0, "p")]
    code = [op("and", "b32", "r_step", "r_t", 3), *code, *element("d_z", 2), op("st", "b32", "", "d_z", 0, "r_z", mods="global")]
    x, y, z = np.arange(64, dtype=np.uint32) + 100, np.zeros(64, np.uint32), np.zeros(64, np.uint32)
    run(mapped(code, 3), (1, 1, 1), (64, 1, 1), [x, y, z])
    want = [shuffled(mode, t % 32, t & 3, c) for t in range(64)]
    assert y.tolist() == [100 + t // 32 * 32 + w for t, (w, _) in enumerate(want)]
    assert z.tolist() == [int(good) for _, good in want]


def test_votes_matches_and_warp_reductions() -> None:
    code = [
        op("setp", "u32", "p_small", "r_x", 3, mods="lt"),
        op("vote", "pred", "r_v", "p_small", mods="ballot"),
        op("match", "b32", "r_m", "r_x", mods="any"),
        op("redux", "s32", "r_s", "r_x", mods="min"),
        op("activemask", "b32", "r_a"),
        op("xor", "b32", "r_y", "r_v", "r_m"),
        op("xor", "b32", "r_y", "r_y", "r_a"),
        op("add", "u32", "r_y", "r_y", "r_s"),
    ]
    x = (np.arange(80, dtype=np.uint32) * 5 % 7) - 2
    y = np.zeros(80, np.uint32)
    run(mapped(code), (1, 1, 1), (80, 1, 1), [x, y])
    for t in range(80):
        warp = x[t // 32 * 32 : t // 32 * 32 + 32]
        ballot = sum(int(v < 3) << j for j, v in enumerate(warp.tolist()))
        match = sum(int(v == x[t]) << j for j, v in enumerate(warp.tolist()))
        want = (ballot ^ match ^ (2 ** len(warp) - 1)) + int(warp.view(np.int32).min())
        assert y[t] == want % 2**32


def test_atomics_return_what_was_there_in_the_order_of_threads() -> None:
    code = [op("param", "b64", "d_c", 16), op("atom", "u32", "r_y", "d_c", 4, "r_x", mods="global add")]
    code += [op("atom", "u32", "", "d_c", 0, "r_x", mods="global max")]
    x, y, c = np.arange(70, dtype=np.uint32) * 3 % 11, np.zeros(70, np.uint32), np.array([2, 7], np.uint32)
    run(mapped(code, 3), (2, 1, 1), (35, 1, 1), [x, y, c])
    assert y.tolist() == [7 + int(x[:k].sum()) for k in range(70)]
    assert c.tolist() == [int(x.max()), 7 + int(x.sum())]


@pytest.mark.parametrize(("what", "want"), [("inc", [0, 1, 2, 0, 1]), ("dec", [0, 2, 1, 0, 2]), ("exch", [0, 2, 2, 2, 2])])
def test_atomic_counters(what: str, want: list[int]) -> None:
    code = [op("param", "b64", "d_c", 16), op("atom", "u32", "r_y", "d_c", 0, 2, mods=f"global {what}")]
    x, y, c = np.zeros(5, np.uint32), np.zeros(5, np.uint32), np.zeros(1, np.uint32)
    run(mapped(code, 3), (1, 1, 1), (5, 1, 1), [x, y, c])
    assert y.tolist() == want


@pytest.mark.parametrize(("kind", "shape"), [("f16", "m16n8k16"), ("bf16", "m16n8k16"), ("f16", "m16n8k8"), ("tf32", "m16n8k8")])
def test_matrix_products_of_a_warp(kind: str, shape: str) -> None:
    depth, half = int(shape[6:]), kind != "tf32"
    size = 2 if half else 4
    rng = np.random.default_rng(3)
    a, b, c = (rng.integers(-4, 5, s).astype(np.float32) for s in ((16, depth), (depth, 8), (16, 8)))

    def stored(x: np.ndarray) -> np.ndarray:
        if kind == "bf16":
            return (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16)
        return np.ascontiguousarray(x).astype(np.float16 if half else np.float32)

    per = 2 if half else 1  # elements of a row of A, or a column of B, in one register
    code = [op("special", "b32", "r_i", mods="tid.x"), op("shr", "u32", "r_g", "r_i", 2), op("and", "b32", "r_m", "r_i", 3)]

    def place(register: str, argument: int, row: tuple[str, int], column: tuple[str, int, int], width: int, bytes_: int) -> Code:
        name, more = row
        other, times, plus = column
        return [
            op("add", "u32", "r_1", name, more),
            op("mul", "u32", "r_1", "r_1", width),
            op("mul", "u32", "r_2", other, times),
            op("add", "u32", "r_2", "r_2", plus),
            op("add", "u32", "r_1", "r_1", "r_2"),
            *element(register, argument, "r_1", bytes_),
        ]

    step = 4 * per
    a_regs = [f"r_a{k}" for k in range(2 * depth // step)]
    b_regs = [f"r_b{k}" for k in range(depth // step)]
    for k, name in enumerate(a_regs):
        code += place("d_p", 0, ("r_g", 8 * (k % 2)), ("r_m", per, step * (k // 2)), depth, size)
        code += [op("ld", "b32", name, "d_p", 0, mods="global")]
    for k, name in enumerate(b_regs):  # B lies column by column
        code += place("d_p", 1, ("r_g", 0), ("r_m", per, step * k), depth, size)
        code += [op("ld", "b32", name, "d_p", 0, mods="global")]
    tiles = [(f"r_c{k}", place("d_p", 2, ("r_g", 8 * (k // 2)), ("r_m", 2, k % 2), 8, 4)) for k in range(4)]
    for name, where in tiles:
        code += [*where, op("ld", "b32", name, "d_p", 0, mods="global")]
    registers = [n for n, _ in tiles]
    code += [op("mma", "f32", " ".join(registers), *a_regs, *b_regs, *registers, mods=f"{shape} {kind} {kind}")]
    for name, where in tiles:
        code += [*where, op("st", "b32", "", "d_p", 0, name, mods="global")]
    k = kernel([8, 8, 8], ([*code, EXIT], ()))
    got = c.copy()
    run(k, (1, 1, 1), (32, 1, 1), [stored(a), stored(b.T), got])
    np.testing.assert_array_equal(got, a @ b + c)  # small integers: exact in any order

    found = trace(k, (1, 1, 1), (32, 1, 1), [SymbolicBuffer(x) for x in (stored(a).dtype, stored(b).dtype, np.float32)])
    assert not found.hazards or all("argument 2" in h for h in found.hazards)
    offsets, nodes, _ = found.stores[2, 4]
    bits = evaluate(found, nodes, elements([stored(a), stored(b.T), c])).astype(np.uint32)
    np.testing.assert_array_equal(bits.view(np.float32)[np.argsort(offsets)], (a @ b + c).ravel())


def test_unread_matrix_products_are_refused() -> None:
    i = op("mma", "f16", "r_d0 r_d1", *[f"r_{k}" for k in range(8)], mods="m16n8k16 f16 f16")
    j = op("mma", "s32", "r_d0 r_d1 r_d2 r_d3", *[f"r_{k}" for k in range(10)], mods="m16n8k32 s8 s8")
    for bad in (i, j):
        with pytest.raises(Unsupported, match="matrix product"):
            run(kernel([], ([bad, EXIT], ())), (1, 1, 1), (32, 1, 1), [])


# checks
def test_an_access_outside_is_told_with_block_and_thread() -> None:
    k = mapped([op("mov", "b32", "r_y", "r_x")])
    x, y = np.zeros(100, np.uint32), np.zeros(70, np.uint32)
    with pytest.raises(
        InputError, match=r"tested at here: byte 280 of argument 1, which has 280 bytes .*block \(2, 0, 0\), thread \(6"
    ):
        run(k, (3, 1, 1), (32, 1, 1), [x, y])
    y = np.zeros(100, np.uint32)
    y.flags.writeable = False
    with pytest.raises(InputError, match="argument 1 may only be read"):
        run(k, (1, 1, 1), (32, 1, 1), [x, y])


def test_bad_addresses_are_told() -> None:
    x = np.zeros(4, np.uint32)
    start = [op("param", "b64", "d", 0)]
    for code, text in (
        ([op("ld", "b32", "r", "d", 2, mods="global")], "no multiple of 4"),
        ([op("ld", "b32", "r", "d", 2**64 - 4, mods="global")], "lies in no array"),
        ([op("mov", "b64", "d", 0), op("st", "b32", "", "d", 0, 1, mods="global")], "lies in no array"),
        ([op("mov", "b32", "r", 4), op("ld", "b32", "r", "r", 0, mods="shared")], "byte 4 of shared memory, which has 4"),
        ([op("mov", "b32", "r", 0), op("st", "b64", "", "r", 0, "d", mods="local")], "byte 0 of local memory, which has 4"),
        ([op("trap", "b32")], "trap"),
    ):
        tail = [] if code[-1].op == "trap" else [EXIT]
        with pytest.raises(InputError, match=text):
            run(kernel([8], ([*start, *code, *tail], ()), shared=4, local=4), (1, 1, 1), (1, 1, 1), [x])


def test_endless_loops_and_bad_launches_are_refused() -> None:
    with pytest.raises(InputError, match="did not finish"):
        run(kernel([], ([op("mov", "b32", "r", 1)], (0,))), (1, 1, 1), (32, 1, 1), [], limit=1000)
    k = kernel([4], ([EXIT], ()))
    for grid, block in (((0, 1, 1), (1, 1, 1)), ((1, 1, 1), (0, 1, 1)), ((1, 1, 1), (2048, 1, 1))):
        with pytest.raises(InputError, match="no launch"):
            run(k, grid, block, [np.int32(1)])
    with pytest.raises(InputError, match="wrong number of arguments"):
        run(k, (1, 1, 1), (1, 1, 1), [])
    with pytest.raises(InputError, match="wrong size"):
        run(k, (1, 1, 1), (1, 1, 1), [np.float64(1)])


# kernels with symbols
def elements(arrays: Sequence[np.ndarray]) -> Callable[[int, Any, int], Any]:
    raw = [np.concatenate([a.reshape(-1).view(np.uint8), np.zeros(8, np.uint8)]) for a in arrays]

    def loads(buffer: int, offsets: Any, size: int) -> Any:
        return raw[buffer][np.asarray(offsets)[:, None] + np.arange(size)].copy().view(f"u{size}").reshape(-1)

    return loads


def agrees(
    k: Kernel, block: int, arrays: Sequence[np.ndarray], other: Sequence[Sequence[np.ndarray]] = (), blocks: int = 1
) -> Trace:
    """Trace once; at several contents of the arrays, the graph must give what the interpreter computes."""
    found = trace(k, (blocks, 1, 1), (block, 1, 1), [SymbolicBuffer(a.dtype) for a in arrays])
    for content in (arrays, *other):
        loads, after = elements(content), [a.copy() for a in content]
        run(k, (blocks, 1, 1), (block, 1, 1), after)
        for (buffer, size), (offsets, nodes, _) in found.stores.items():
            want = elements(after)(buffer, offsets, size)
            np.testing.assert_array_equal(evaluate(found, nodes, loads).astype(want.dtype), want)
    return found


def contents(*arrays: np.ndarray) -> list[list[np.ndarray]]:
    """Return other contents of the same sizes, so that what the examples decided shows."""
    rng = np.random.default_rng(11)
    return [[np.ascontiguousarray(rng.permutation(a)) for a in arrays] for _ in range(3)]


def branchy() -> Kernel:
    start = [*index(), *element("d_x", 0), *element("d_y", 1), op("ld", "f32", "r_x", "d_x", 0, mods="global")]
    start += [op("setp", "f32", "p", "r_x", ONE, mods="gt"), op("bra", "b32", when=("p", True))]
    up = [op("mul", "f32", "r_y", "r_x", "r_x", mods="rn"), op("setp", "f32", "q", "r_y", 0x40000000, mods="gt")]
    up += [op("bra", "b32", when=("q", False))]
    higher = [op("add", "f32", "r_y", "r_y", ONE, mods="rn"), op("st", "b32", "", "d_y", 256, "r_x", mods="global")]
    down = [op("neg", "f32", "r_y", "r_x")]
    end = [op("st", "b32", "", "d_y", 0, "r_y", mods="global"), EXIT]
    KINDS["q"] = "pred"
    return kernel([8, 8], (start, (1, 3)), (up, (4, 2)), (higher, (4,)), (down, (4,)), (end, ()))


def test_branches_on_data_become_selections() -> None:
    x, y = np.linspace(0, 2, 32, dtype=np.float32), np.zeros(128, np.float32)
    found = agrees(branchy(), 32, [x, y], contents(x, y))
    assert not found.hazards
    assert any(s[0] == "select" for s in found.signatures)


def test_both_sides_of_a_branch_start_from_the_same_registers_and_may_write_the_same_element() -> None:
    start = [*index(), *element("d_x", 0), *element("d_y", 1), op("ld", "f32", "r_x", "d_x", 0, mods="global")]
    start += [op("mov", "b32", "r_y", "r_t"), op("setp", "f32", "p", "r_x", ONE, mods="gt"), op("bra", "b32", when=("p", True))]
    one = [op("add", "f32", "r_x", "r_x", ONE, mods="rn"), op("add", "u32", "r_y", "r_y", 7)]
    two = [op("mul", "f32", "r_x", "r_x", "r_x", mods="rn"), op("add", "u32", "r_y", "r_y", 9)]
    store = op("st", "b32", "", "d_y", 0, "r_x", mods="global")
    end = [op("st", "b32", "", "d_y", 256, "r_y", mods="global"), EXIT]
    k = kernel([8, 8], (start, (1, 2)), ([*one, store], (3,)), ([*two, store], (3,)), (end, ()))
    x, y = np.linspace(0, 2, 32, dtype=np.float32), np.zeros(128, np.float32)
    agrees(k, 32, [x, y], contents(x, y))


def test_guards_on_data_become_selections() -> None:
    code = [
        op("setp", "f32", "p", "r_x", ONE, mods="gt"),
        op("mov", "b32", "r_y", "r_t"),
        op("add", "f32", "r_y", "r_x", "r_x", mods="rn", when=("p", True)),
        op("ld", "b32", "r_y", "d_x", 4, mods="global", when=("p", False)),
        op("st", "b32", "", "d_y", 128, "r_x", mods="global", when=("p", False)),
    ]
    x, y = np.linspace(0, 2, 33, dtype=np.float32), np.ones(64, np.float32)
    agrees(mapped(code), 32, [x, y], contents(x, y))


def test_gathers_count_from_the_start_of_their_array() -> None:
    code = [*element("d_v", 2, "r_x"), op("ld", "b32", "r_y", "d_v", 12, mods="global")]
    code += [
        op("ld", "b32", "r_u r_w", "d_v", 8, mods="global"),
        op("add", "u32", "r_y", "r_y", "r_u"),
        op("sub", "u32", "r_y", "r_y", "r_w"),
    ]
    x, y, v = np.arange(40, dtype=np.int32) * 7 % 16, np.zeros(40, np.int32), np.arange(20, dtype=np.int32) * 100
    found = agrees(mapped(code, 3), 40, [x, y, v], contents(x, y, v))
    assert ("gather", "b32", ("2",)) in found.signatures


def test_shared_memory_shuffles_and_halves_keep_symbols() -> None:
    shuffle = [op("shfl", "b32", "r_y", "r_x", 1, 0x1F, mods="bfly"), op("redux", "s32", "r_z", "r_x", mods="add")]
    shuffle += [op("add", "u32", "r_y", "r_y", "r_z")]
    x, y = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    agrees(mapped(shuffle), 64, [x, y], contents(x, y))
    agrees(reversal(32), 32, [x, y], contents(x, y), blocks=2)
    halves = [
        op("unpack", "b32", "h_a h_b", "r_x"),
        op("shl", "b32", "r_s", "r_t", 2),
        op("st", "b16", "", "r_s", 0, "h_b", mods="shared"),
        op("st", "b16", "", "r_s", 2, "h_a", mods="shared"),
        op("ld", "b32", "r_u", "r_s", 0, mods="shared"),
        op("add", "f16x2", "r_y", "r_u", "r_x", mods="rn"),
    ]
    h = np.linspace(-2, 2, 64).astype(np.float16)
    agrees(mapped(halves, shared=128), 32, [h.view(np.uint32), y], contents(h.view(np.uint32), y))


def test_scalars_are_symbols_and_constants_are_not() -> None:
    code = [op("param", "b32", "r_a", 16), op("fma", "f32", "r_y", "r_x", "r_a", ONE, mods="rn")]
    k = mapped(code)
    k.parameters = (*k.parameters, Parameter(16, 4))
    args: list[Any] = [SymbolicBuffer(np.float32), SymbolicBuffer(np.float32), np.float32(3)]
    found = trace(k, (1, 1, 1), (8, 1, 1), args)
    x = np.arange(8, dtype=np.float32)
    bits = evaluate(found, found.stores[1, 4][1], elements([x, x]), {2: int(f32(-2)[0])}).astype(np.uint32)
    assert bits.view(np.float32).tolist() == [1 - 2 * v for v in range(8)]


@pytest.mark.parametrize("unread", ["", "r_unread"])
def test_sums_of_several_blocks_are_sums(unread: str) -> None:
    code = [
        op("param", "b64", "d_c", 16),
        op("atom", "f32", unread, "d_c", 0, "r_x", mods="global add"),
        op("mov", "b32", "r_y", 0),
    ]
    x, y, c = np.arange(12, dtype=np.float32), np.zeros(12, np.float32), np.array([5], np.float32)
    found = agrees(mapped(code, 3), 4, [x, y, c], contents(x, y, c), blocks=3)
    assert not found.hazards
    assert len(found.stores[2, 4][0]) == 1


def dependent(code: Code, arrays: int = 2, block: int = 4, blocks: int = 1, **more: Any) -> Trace:
    buffers = [SymbolicBuffer(np.int32)] * arrays
    return trace(mapped(code, arrays, **more), (blocks, 1, 1), (block, 1, 1), buffers)


TEST = op("setp", "f32", "p", "r_x", ONE, mods="gt")
MOVE = op("mov", "b32", "r_y", "r_x")
ZERO = op("mov", "b32", "r_0", 0)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            [TEST, MOVE, op("param", "b64", "d_c", 8), op("st", "b32", "", "d_c", 64, "r_x", mods="global", when=("p", True))],
            "which thread",
        ),
        ([TEST, MOVE, ZERO, op("st", "b32", "", "r_0", 0, "r_x", mods="shared", when=("p", True))], "which thread"),
        (
            [ZERO, op("st", "b32", "", "r_0", 0, "r_x", mods="shared"), op("ld", "u8", "r_y", "r_0", 1, mods="shared")],
            "as bytes and as words",
        ),
        (
            [op("st", "u8", "", "r_t", 0, "r_x", mods="shared"), ZERO, op("ld", "b32", "r_y", "r_0", 0, mods="shared")],
            "as bytes and as words",
        ),
        (
            [ZERO, op("st", "b32", "", "r_0", 0, "r_x", mods="shared"), op("st", "u8", "", "r_0", 0, 1, mods="shared"), MOVE],
            "as bytes and",
        ),
        ([MOVE, ZERO, op("atom", "b32", "r_y", "r_0", 0, 0, "r_x", mods="shared cas")], "atomic `cas`"),
        ([MOVE, op("shl", "b32", "r_s", "r_x", 2), op("ld", "b32", "r_y", "r_s", 0, mods="shared")], "shared address"),
        ([MOVE, *element("d_z", 1, "r_x"), op("st", "b32", "", "d_z", 0, "r_x", mods="global")], "place that depends on data"),
        ([op("shfl", "b32", "r_y", "r_t", "r_x", 31, mods="idx")], "shuffle whose lane"),
        ([TEST, op("vote", "pred", "r_y", "p", mods="ballot")], "vote on data"),
        ([TEST, MOVE, op("activemask", "b32", "r_y", when=("p", True))], "under a condition"),
    ],
)
def test_what_depends_on_data_is_refused(code: Code, text: str) -> None:
    with pytest.raises(DataDependent, match=text):
        dependent(code, shared=64)


@pytest.mark.parametrize(
    ("inner", "text"),
    [
        (op("activemask", "b32", "r_y"), "`activemask` in a branch"),
        (op("shfl", "b32", "r_y", "r_x", 1, 31, mods="down"), "`shfl` in a branch"),
        (op("bar", "b32"), "barrier in a branch"),
    ],
)
def test_what_threads_do_together_is_refused_in_a_branch_on_data(inner: Instruction, text: str) -> None:
    start = [*index(), *element("d_x", 0), *element("d_y", 1), op("ld", "f32", "r_x", "d_x", 0, mods="global"), MOVE]
    start += [TEST, op("bra", "b32", when=("p", True))]
    end = [op("st", "b32", "", "d_y", 0, "r_y", mods="global"), EXIT]
    k = kernel([8, 8], (start, (1, 2)), ([inner], (2,)), (end, ()))
    with pytest.raises(DataDependent, match=text):
        trace(k, (1, 1, 1), (32, 1, 1), [SymbolicBuffer(np.float32)] * 2)


def test_a_loop_that_data_ends_is_refused() -> None:
    loop = [op("mul", "f32", "r_x", "r_x", 0x3F000000, mods="rn"), op("setp", "f32", "p", "r_x", ONE, mods="gt")]
    start = [*index(), *element("d_x", 0), op("ld", "f32", "r_x", "d_x", 0, mods="global")]
    k = kernel([8], (start, (1,)), ([*loop, op("bra", "b32", when=("p", True))], (1, 2)), ([EXIT], ()))
    with pytest.raises(DataDependent, match="loop whose end"):
        trace(k, (1, 1, 1), (4, 1, 1), [SymbolicBuffer(np.float32)])


BASE = op("param", "b64", "d_c", 16)
ADD = op("atom", "f32", "", "d_c", 0, "r_x", mods="global add")
FIRST = op("setp", "u32", "p", "r_i", 0, mods="eq")
LAST = op("setp", "u32", "p", "r_i", 7, mods="eq")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ([*element("d_c", 1, "r_t"), op("st", "b32", "", "d_c", 256, "r_x", mods="global"), MOVE], "written by several blocks"),
        ([op("ld", "b32", "r_y", "d_y", 4, mods="global")], "read by one thread and overwritten by another"),
        ([BASE, op("atom", "f32", "r_y", "d_c", 0, "r_x", mods="global add")], "written by one block and read by another"),
        (
            [BASE, op("atom", "f32", "", "d_c", 0, "r_x", mods="global add"), op("ld", "b32", "r_y", "d_c", 0, mods="global")],
            "argument 2",
        ),
        (
            [BASE, op("ld", "b32", "r_y", "d_c", 0, mods="global"), op("atom", "f32", "", "d_c", 0, "r_x", mods="global add")],
            "argument 2",
        ),
        (
            [op("ld", "b32", "r_y", "d_y", 4, mods="global"), op("ld", "b32", "r_y", "d_y", 0, mods="global")],
            "overwritten by another",
        ),
        ([MOVE, BASE, ADD, LAST, op("ld", "b32", "r_y", "d_c", 0, mods="global", when=("p", True))], "argument 2"),
        ([MOVE, BASE, LAST, op("ld", "b32", "r_y", "d_c", 0, mods="global", when=("p", True)), ADD], "argument 2"),
        ([MOVE, BASE, LAST, op("st", "b32", "", "d_c", 0, 0, mods="global", when=("p", True)), ADD], "argument 2"),
        ([MOVE, BASE, FIRST, op("st", "b32", "", "d_c", 0, 0, mods="global", when=("p", True)), ADD], "argument 2"),
        (
            [*element("d_v", 1, "r_x"), op("ld", "b32", "r_y", "d_v", 0, mods="global")],
            "read at places that depend on data, and written",
        ),
    ],
)
def test_hazards_between_threads_are_found(code: Code, text: str) -> None:
    found = dependent(code, 3, blocks=2)
    assert any(text in hazard for hazard in found.hazards), found.hazards


def test_in_place_work_of_each_thread_is_no_hazard() -> None:
    code = [op("ld", "b32", "r_y", "d_y", 0, mods="global"), op("add", "f32", "r_y", "r_y", "r_x", mods="rn")]
    x, y = np.arange(8, dtype=np.float32), np.ones(8, np.float32)
    assert not agrees(mapped(code), 4, [x, y], contents(x, y), blocks=2).hazards


def test_elements_of_two_sizes_are_refused_once_written() -> None:
    code = [op("st", "b32", "", "d_y", 64, "r_x", mods="global"), op("ld", "b16", "h", "d_y", 64, mods="global"), MOVE]
    with pytest.raises(DataDependent, match="different sizes"):
        dependent(code)
