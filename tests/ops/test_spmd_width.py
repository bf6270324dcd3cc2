"""SPMD code: how many threads a vector holds, counters of loops, and branches that are not worth a jump."""

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.ops import interp
from gewu.ops.shape import Layout, analyse
from gewu.ops.spmd import compile_spmd
from gewu.ops.spmd_induction import split_counters
from gewu.ops.spmd_values import build_flow
from gewu.ops.spmd_width import analyse_widest
from tests.ops.assembly import assemble
from tests.ops.test_spmd import same

STREAM = """
a:
  special.b32 rt = | tid.x
  param.b64 dx = 0
  param.b64 dy = 8
  param.b32 rm = 16
  {start}
  -> head
head:
  setp.s32 p0 = ri rm | lt
  @p0 bra
  -> loop end
loop:
  mulwide.s32 do = ri 4
  add.s64 da = dx do
  ld.s32 rv = da 0 | global
  {work}
  add.s64 da = dy do
  st.s32 da 0 rv | global
  add.s32 ri = ri {step}
  -> head
end:
  exit
"""


def stream(start: str, work: str, step: int) -> str:
    """Return a loop in which each thread takes every `step`-th element."""
    return STREAM.format(start=start, work=work, step=step)


BLOCKWISE = stream("mov.b32 ri = rt", "add.s32 rv = rv rt", 128)
WARPWISE = stream(
    "shr.u32 rw = rt 5\n  mul.s32 rw = rw 1000\n  and.b32 rl = rt 31\n  add.s32 ri = rw rl", "add.s32 rv = rv rt", 32
)
SHUFFLES = stream("mov.b32 ri = rt", "shfl.b32 rv p1 = rv 1 31 | bfly", 128)
COUNTS = stream("mov.b32 ri = rt", "atom.u32 dy 16380 1 | global add", 128)
TICKETS = stream("mov.b32 ri = rt", "atom.u32 rv = dy 16380 1 | global add", 128)


@pytest.mark.parametrize(
    ("text", "block", "lanes"),
    [
        (BLOCKWISE, (128, 1, 1), 128),
        (BLOCKWISE, (192, 1, 1), 64),
        (BLOCKWISE, (96, 1, 1), 32),
        (BLOCKWISE, (32, 4, 1), 32),
        (WARPWISE, (128, 1, 1), 32),
        (SHUFFLES, (128, 1, 1), 32),
        (COUNTS, (128, 1, 1), 64),
        (TICKETS, (128, 1, 1), 32),
    ],
)
def test_vectors_are_as_wide_as_a_block_streams(text: str, block: tuple[int, int, int], lanes: int) -> None:
    kernel = assemble("stream", [8, 8, 4], text)
    flow = build_flow(kernel, {"tid.y": 0, "tid.z": 0})
    assert analyse_widest(kernel, flow, block, True).layout.lanes == lanes


@pytest.mark.parametrize("text", [BLOCKWISE, WARPWISE, SHUFFLES, COUNTS])
@pytest.mark.parametrize("count", [0, 1, 77, 640, 1000])
def test_wide_vectors_compute_what_the_interpreter_does(text: str, count: int) -> None:
    kernel = assemble("stream", [8, 8, 4], text)
    results = []
    for run in ("vectors", "interpreter"):
        x, y = np.arange(4096, dtype=np.int32), np.zeros(4096, np.int32)
        args = [x, y, np.int32(count)]
        if run == "vectors":
            compile_spmd(kernel, (128, 1, 1)).launch((1, 1, 1), args)
        else:
            interp.run(kernel, (1, 1, 1), (128, 1, 1), args)
        results.append(y)
    same(*results)


START = "mulwide.s32 do = rt 4\n  param.b64 ds = 24\n  add.s64 ds = ds do\n  ld.s32 ri = ds 0 | global"
OWN = stream(START, "add.s32 rv = rv rt", 40)
STARTS = {
    "side by side": np.arange(64) + 3,
    "not in all threads": np.where(np.arange(64) % 32 < 5, 9999, np.arange(64)),
    "backwards": np.arange(64)[::-1],
    "none": np.full(64, 9999),
    "two runs": np.arange(64) + np.arange(64) // 48 * 8,
}


@pytest.mark.parametrize("which", STARTS)
def test_threads_that_enter_a_loop_with_their_own_counters(which: str) -> None:
    kernel = assemble("own", [8, 8, 4, 8], OWN)
    results = []
    for run in ("vectors", "interpreter"):
        x, y = np.arange(1024, dtype=np.int32), np.zeros(1024, np.int32)
        args = [x, y, np.int32(500), STARTS[which].astype(np.int32)]
        if run == "vectors":
            compile_spmd(kernel, (64, 1, 1)).launch((1, 1, 1), args)
        else:
            interp.run(kernel, (1, 1, 1), (64, 1, 1), args)
        results.append(y)
    same(*results)


def test_a_counter_is_what_a_thread_brought_and_one_number_for_all() -> None:
    kernel = assemble("own", [8, 8, 4, 8], OWN)
    flow = build_flow(kernel, {"tid.y": 0, "tid.z": 0})
    layout = Layout(32, (64, 1, 1))
    assert split_counters(analyse(flow, layout))
    shapes = analyse(flow, layout)
    moved = {name: shape for name, shape in shapes.shape.items() if name.endswith(".moved")}
    assert moved and all(shape.stride == 0 for shape in moved.values())
    assert not split_counters(shapes)


CHOICE = """
a:
  special.b32 rt = | tid.x
  param.b64 dx = 0
  mulwide.s32 do = rt 4
  add.s64 dx = dx do
  ld.s32 rv = dx 0 | global
  mov.b32 rz = 1
  setp.s32 p0 = rv 10 | lt
  @p0 bra
  -> small next
next:
  {op} rw = rv 20
  setp.s32 p1 = rw 0 | eq
  @p1 bra
  -> small end
small:
  add.s32 rz = rv 7
  -> end
end:
  st.s32 dx 0 rz | global
  exit
"""


@pytest.mark.parametrize(("op", "jumps"), [("sub.s32", False), ("div.s32", True)])
@pytest.mark.parametrize("values", [np.arange(32), np.full(32, 5), np.full(32, 20), np.full(32, 50)])
def test_a_few_operations_run_without_a_jump(op: str, jumps: bool, values: np.ndarray) -> None:
    kernel = assemble("choice", [8], CHOICE.format(op=op))
    compiled = compile_spmd(kernel, (32, 1, 1))
    region = compiled.text.split("define internal i32 @region0")[1].split("\n}")[0]
    assert ("br i1" in region) == jumps
    x = values.astype(np.int32)
    want = np.where((x < 10) | ((x - 20 if op == "sub.s32" else x // 20) == 0), x + 7, 1).astype(np.int32)
    compiled.launch((1, 1, 1), [x])
    same(x, want)


PICK = """
a:
  special.b32 rt = | tid.x
  param.b64 dx = 0
  param.b64 dy = 8
  param.b64 ds = 16
  param.b64 dm = 24
  mulwide.s32 do = rt 4
  add.s64 da = ds do
  ld.{kind} ri = da 0 | global
  {address}
  add.s64 da = dx da
  ld.s32 rv = da {step} | global
  add.s64 da = dy do
  st.s32 da 0 rv | global
  exit
"""
ADDRESSES = {
    "product": "mulwide.{kind} da = ri 4",
    "shift": "cvt.s64 da = ri | {kind}\n  add.s64 da = da dm\n  shl.b64 da = da 2",
    "multiple": "mulwide.{kind} da = ri 8\n  add.s64 da = da dm",
}


@pytest.mark.parametrize("kind", ["s32", "u32"])
@pytest.mark.parametrize("which", ADDRESSES)
@pytest.mark.parametrize("order", ["rising", "falling", "wrapping"])
def test_places_are_a_common_one_and_narrow_distances(kind: str, which: str, order: str) -> None:
    address = ADDRESSES[which].format(kind=kind)
    kernel = assemble("pick", [8, 8, 8, 8], PICK.format(kind=kind, address=address, step=8))
    lane, low = np.arange(64), 0 if kind == "u32" else -20
    place = {"rising": lane + low, "falling": 63 - lane + low, "wrapping": np.roll(lane, 40) + low}[order]
    x, y = np.arange(1000, dtype=np.int32), np.zeros(64, np.int32)
    middle = np.int64(40)
    compile_spmd(kernel, (64, 1, 1)).launch((1, 1, 1), [x[100:], y, place.astype(np.int32), middle])
    want = {"product": place, "shift": place + 40, "multiple": 2 * place + 10}[which] + 102
    same(y, want.astype(np.int32))


def test_checked_code_of_wide_vectors_names_the_thread() -> None:
    kernel = assemble("stream", [8, 8, 4], BLOCKWISE)
    compiled = compile_spmd(kernel, (128, 1, 1), checked=True)
    x, y = np.arange(640, dtype=np.int32), np.zeros(640, np.int32)
    compiled.launch((1, 1, 1), [x, y, np.int32(640)])
    same(y, x + np.arange(640) % 128)
    with pytest.raises(InputError, match=r"thread \(100, 0, 0\)"):
        compiled.launch((1, 1, 1), [x[:100], y, np.int32(101)])
