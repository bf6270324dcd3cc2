"""Calls that go from the interpreter straight to the loops: what they accept is computed right, all else takes the other way."""

from __future__ import annotations

import gc
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.ops import direct, load
from tests.ops.programs import index
from tests.ops.ptxtext import HISTOGRAM, SAXPY, TWICE

pytestmark = pytest.mark.skipif(not direct.supported(), reason="objects lie otherwise in memory")
N = 1000


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GEWU_CACHE", str(tmp_path / "cache"))


def vectors(n: int = N, seed: int = 5) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(n).astype(np.float32), rng.standard_normal(n).astype(np.float32)


def launch(*args: Any) -> Any:
    """Return a launch of saxpy that was called once with these arguments, and has a short way for the next time."""
    found = load(SAXPY)["saxpy"][4, 256]
    found(*args)
    assert type(found._call).__name__ == "builtin_function_or_method"
    return found


@pytest.mark.parametrize("real", [float, np.float32])
@pytest.mark.parametrize("whole", [int, np.int32, np.uint32])
def test_a_second_call_computes_with_its_own_arrays_and_floats(real: Any, whole: Any) -> None:
    call = launch(*vectors(), real(2), whole(N))
    for seed, a in ((6, 3.25), (7, -1e-3)):
        x, y = vectors(seed=seed)
        want = np.float32(a) * x + y
        call(x, y, real(a), whole(N))
        np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-6)


def test_other_sizes_types_and_flags_take_the_other_way() -> None:
    call = launch(*vectors(), 2.0, N)
    for n in (N - 1, 7, N):
        x, y = vectors(n)
        want = y + 2 * x
        call(x, y, 2.0, n)
        np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-6)
    x, y = vectors()
    with pytest.raises(InputError, match="contiguous"):
        call(np.repeat(x, 2)[::2], y, 2.0, N)
    with pytest.raises(InputError, match="too small"):
        call(x[: N // 2], y, 2.0, N)
    with pytest.raises(InputError, match="number of arguments"):
        call(x, y, 2.0)
    y.flags.writeable = False
    with pytest.raises(InputError, match="read-only"):
        call(x, y, 2.0, N)
    with pytest.raises(InputError, match="neither array nor number"):
        call(x, None, 2.0, N)
    with pytest.raises(InputError):
        call(x, x, 2.0, 1 << 80)


def test_arrays_that_share_memory_take_the_other_way() -> None:
    held = np.arange(N + 1, dtype=np.float32)
    call = launch(*vectors(), 2.0, N)
    x, y = held[:N], held[:N]
    want = 3 * x
    call(x, y, 2.0, N)
    np.testing.assert_array_equal(y, want)
    launch(*vectors(), 2.0, N)
    x, y = held[:N].copy(), vectors()[1]
    call(x, y, 2.0, N)
    assert type(call._call).__name__ == "builtin_function_or_method"


def test_no_object_is_kept_or_lost() -> None:
    x, y = vectors()
    call = launch(x, y, 2.0, N)
    counted = (x, y, None)
    before = [sys.getrefcount(o) for o in counted]
    for _ in range(1000):
        assert call(x, y, 2.0, N) is None
    after = [sys.getrefcount(o) for o in counted]
    assert after[:2] == before[:2] and abs(after[2] - before[2]) < 50
    gone = weakref.ref(call._call)
    del call
    gc.collect()
    assert gone() is None


def test_several_threads_call_one_launch() -> None:
    x, _ = vectors()
    call = launch(*vectors(), 1.0, N)
    results: list[Any] = []

    def work() -> None:
        y = np.zeros(N, np.float32)
        for _ in range(300):
            call(x, y, 1.0, N)
        results.append(y)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for y in results:
        np.testing.assert_allclose(y, 300 * x, rtol=1e-4)


def test_a_call_goes_on_in_several_threads() -> None:
    n = 300_000
    x, y = vectors(n)
    call = load(SAXPY)["saxpy"][-(-n // 256), 256]
    want = y + 10 * x
    for _ in range(10):
        call(x, y, 1.0, n)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


def test_indices_that_go_astray_are_told_each_time() -> None:
    from gewu.ops.emit import compile_program
    from gewu.ops.sizes import Size
    from gewu.ops.tensor import Apply, Assign, Gather, Load, Program

    place = Apply("cvt", "s64", (Load(1, "s32", index(i=1)),), ("s32",))
    program = Program("g", (Assign(2, "f32", (("i", Size.named("p3")),), index(i=1), Gather(0, "f32", place)),))
    executable = compile_program(program, threads=1)
    table, picks, out = np.arange(10, dtype=np.float32), np.array([1, 9, 3], np.int32), np.zeros(3, np.float32)
    args = [table, picks, out, np.int32(3)]
    executable(args, {"p3": 3})
    work = executable.direct(args, {"p3": 3})
    assert work is not None
    asked: list[Any] = []
    call, _held = direct.function(args, work, lambda *a: asked.append(a)) or (None, None)
    call(*args)
    assert out.tolist() == [1, 9, 3] and not asked
    picks[1] = 10
    call(*args)
    call(*args)
    assert len(asked) == 2
    picks[1] = 0
    call(*args)
    assert out.tolist() == [1, 0, 3] and len(asked) == 2


@pytest.mark.parametrize("count", [1000, 200_000])
def test_kernels_as_they_are_written_have_a_short_way(count: int) -> None:
    rng = np.random.default_rng(3)
    call = load(HISTOGRAM, use="spmd")["histogram"][-(-count // 256), 256]
    for round_ in range(4):
        values, counts = rng.integers(0, 16, count).astype(np.int32), np.full(16, round_, np.int32)
        want = np.bincount(values, minlength=16) + round_
        call(values, counts, count)
        np.testing.assert_array_equal(counts, want)
    assert type(call._call).__name__ == "builtin_function_or_method"
    values.flags.writeable = False
    call(values, counts, count)
    np.testing.assert_array_equal(counts, 2 * want - round_)


def test_a_loop_of_one_thread_has_a_short_way() -> None:
    x, y = vectors(64)
    call = load(TWICE)["twice"][1, 1]
    for _ in range(3):
        y[:] = 0
        call(x, y, 64)
        np.testing.assert_allclose(y, 2 * x, rtol=1e-6)


def test_a_call_on_tiny_arrays_costs_less_than_twenty_microseconds() -> None:
    x, y = vectors(8)
    call = launch(x, y, 2.0, 8)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            call(x, y, 2.0, 8)
        seconds.append((time.perf_counter() - start) / 100)
    assert min(seconds) < 2e-5  # 0.1 us when the machine is quiet
