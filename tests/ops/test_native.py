"""Standing threads: every range of a job is run once, whoever runs it, in a row of jobs, after a sleep, and after a fork."""

from __future__ import annotations

import ctypes
import os
import threading
import time

import numpy as np
import pytest

from gewu.ops import native
from gewu.ops.pool import address

_NEST = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_BLOCKS = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int32] * 3, ctypes.c_int64, ctypes.c_int64)


def _ranges(count: int) -> list[tuple[int, int]]:
    return [(3 * k, 3 * k + 3) for k in range(count)]


@pytest.mark.parametrize("pause", [0.0, 3 * native.SPIN])
def test_every_range_runs_once_in_a_row_of_jobs(pause: float) -> None:
    counts = np.zeros(3 * 40, np.int64)

    def body(args: int, sizes: int, lo: int, hi: int) -> None:
        assert (args, sizes) == (7, 9)
        counts[lo:hi] += 1

    function = _NEST(body)
    for job in range(30):
        counts[:] = 0
        time.sleep(pause)
        assert native.Parts(function, _ranges(job % 40 + 1), 2).run(7, 9)
        assert (counts[: 3 * (job % 40 + 1)] == 1).all() and not counts[3 * (job % 40 + 1) :].any()


def test_a_grid_is_handed_on_and_ranges_are_shared() -> None:
    seen: dict[int, list[int]] = {}

    def body(args: int, x: int, y: int, z: int, lo: int, hi: int) -> None:
        assert (args, x, y, z) == (5, 2, 3, 4)
        seen.setdefault(threading.get_ident(), []).append(lo)
        time.sleep(2e-3)

    parts = native.Parts(_BLOCKS(body), _ranges(12), 2, (2, 3, 4))
    assert parts.run(5) and parts.ranges == _ranges(12)
    assert sorted(lo for side in seen.values() for lo in side) == [3 * k for k in range(12)]
    assert len(seen) <= 2


def test_one_thread_takes_all_in_order() -> None:
    seen: list[int] = []
    assert native.Parts(_NEST(lambda args, sizes, lo, hi: seen.append(lo)), _ranges(9), 1).run(0, 1)
    assert seen == [3 * k for k in range(9)]


def test_a_second_caller_is_told_to_go_another_way() -> None:
    answers: list[bool] = []

    def body(args: int, sizes: int, lo: int, hi: int) -> None:
        answers.append(native.Parts(_NEST(lambda *_: None), _ranges(2), 2).run(0, 1))

    assert native.Parts(_NEST(body), _ranges(4), 1).run(0, 1)
    assert answers == [False] * 4


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:.*fork.*:RuntimeWarning")
def test_a_fork_starts_threads_of_its_own() -> None:
    function = _NEST(lambda *_: None)
    assert native.Parts(function, _ranges(4), 2).run(0, 1)
    child = os.fork()
    if not child:
        os._exit(0 if native.Parts(function, _ranges(4), 2).run(0, 1) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_address_of_arrays_of_all_kinds() -> None:
    plain, empty, fixed = np.arange(4.0), np.empty(0), np.arange(3)
    fixed.flags.writeable = False
    for a in (plain, empty, fixed):
        assert address(a) == a.ctypes.data
