"""Standing threads of machine code that take ranges of a compiled loop: no interpreter, no lock, no wake-up in a row of calls.

A caller posts a job and takes ranges from the front; the others take them from the back, so that in a row of calls over the same
arrays each processor finds in its cache what it had. Who comes too late finds nothing left and nobody waits for it, hence a
job is worth posting as soon as it takes longer than posting. After their last range threads look for the next job for SPIN
seconds, about as long as waking one takes (20 to 50 us), yielding to others meanwhile, and then sleep. One that finds itself on
the processor of its caller moves to another at once: the kernel balances only every few milliseconds.

One word holds what is left of a job: its number (16 bits), how many more threads may join (8), the first and the end of the
ranges left (20 each). A range is taken by exchanging the word; a job's other fields do not change before its last range is done.
One caller at a time: a second one, in another Python thread, is told to go another way.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import threading
import time
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from gewu.ops import llvm
from gewu.ops.cache import Cache, cache_folder
from gewu.ops.pool import THREADS

SPIN: Final = 6e-5
"""Seconds for which a thread without work looks for more before it sleeps."""
MOST: Final = (1 << 20) - 1
"""Ranges of a job."""
_SEATS: Final = 255
_BYTES: Final = 512  # of the shared words, each on a line of cache of its own
_lock = threading.Lock()
_group: list[_Group] = []


def address_of(function: Any) -> int:
    """Return the address of a function that ctypes calls."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class Parts:
    """A compiled loop and the ranges in which threads take it.

    Args:
        function: `void f(ptr args, ptr sizes, i64 lo, i64 hi)`, or with `grid` `void f(ptr args, i32 gx, i32 gy, i32 gz, i64 lo,
            i64 hi)`.
        ranges: pairs lo, hi; at most MOST.
        threads: how many may work at a time.
        grid: three numbers handed on, or None.
    """

    __slots__ = ("address", "job")

    def __init__(
        self, function: Any, ranges: Sequence[tuple[int, int]], threads: int, grid: tuple[int, int, int] | None = None
    ) -> None:
        head = (int(grid is not None), address_of(function), len(ranges), min(threads - 1, _SEATS), *(grid or (0, 0, 0)), 0)
        flat = [number for part in ranges for number in part]
        self.job = (ctypes.c_int64 * (len(head) + len(flat)))(*head, *flat)
        self.address = ctypes.addressof(self.job)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The ranges."""
        flat = self.job[8:]
        return list(zip(flat[::2], flat[1::2], strict=True))

    def run(self, args: int, sizes: int = 0) -> bool:
        """Do all ranges with the addresses of arguments and sizes.

        Returns:
            Whether it was done: not when another thread is running a job.
        """
        if not _lock.acquire(blocking=False):
            return False
        try:
            if not _group or _group[0].process != os.getpid():
                _group[:] = [_Group(THREADS - 1)]
            if sizes:
                self.job[4] = sizes
            return bool(_group[0].post(_group[0].state, self.address, args))
        finally:
            _lock.release()


def standing() -> tuple[int, int]:
    """Return the address of the threads' state and of `i32 post(ptr state, ptr job, ptr args)`, which gives 0 while others post.

    Both are good in this process and, with fewer threads, in those forked from it.
    """
    with _lock:
        if not _group or _group[0].process != os.getpid():
            _group[:] = [_Group(THREADS - 1)]
        if _group[0] not in _kept:
            _kept.append(_group[0])
        return _group[0].state, address_of(_group[0].post)


class _Group:
    """The threads of this process; they do not survive a fork."""

    def __init__(self, threads: int) -> None:
        code, self.process = _code(), os.getpid()
        held = (ctypes.c_char * (_BYTES + 64))()
        self.held, self.state = held, -(-ctypes.addressof(held) // 64) * 64
        self.post, self.serve, self.stop = code[1:]
        ctypes.CDLL(None).sem_init(ctypes.c_void_p(self.state + 192), 0, 0)
        start = time.perf_counter()
        code[0](10_000)
        spins = int(SPIN / max(time.perf_counter() - start, 1e-6) * 10_000)
        for number in range(threads):
            threading.Thread(target=self.serve, args=(self.state, spins), name=f"gewu-native-{number}", daemon=True).start()


@atexit.register
def _end() -> None:
    """Send the threads away before the code they run is freed."""
    with _lock:
        if _group and _group[0].process == os.getpid():
            _group[0].stop(_group[0].state, THREADS - 1)


@cache
def _code() -> tuple[Any, Any, Any, Any]:
    """Return the functions rest, post, serve and stop; the library is kept with them."""
    pause = {"x86_64": "call void @llvm.x86.sse2.pause()", "aarch64": "call void @llvm.aarch64.hint(i32 1)"}
    declared = {"x86_64": "declare void @llvm.x86.sse2.pause()", "aarch64": "declare void @llvm.aarch64.hint(i32)"}
    machine = platform.machine()
    text = _TEXT.replace("PAUSE", pause.get(machine, "")) + declared.get(machine, "")
    library = llvm.jit(llvm.words(text), vectorise=False, cache=Cache(cache_folder()).objects)
    kinds = {"rest": "l", "post": "ppp", "serve": "pl", "stop": "pl"}
    types = {"l": ctypes.c_int64, "p": ctypes.c_void_p}
    results = {"post": ctypes.c_int32}
    made = [ctypes.CFUNCTYPE(results.get(name), *(types[k] for k in kind))(library.address(name)) for name, kind in kinds.items()]
    _kept.append(library)
    return made[0], made[1], made[2], made[3]


_kept: list[Any] = []
_TEXT: Final = """
declare i32 @sem_post(ptr)
declare i32 @sem_wait(ptr)
declare i32 @sched_yield()
declare i32 @sched_getcpu()
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @sched_setaffinity(i32, i64, ptr)

define void @rest(i64 %times) {
entry:
  br label %again
again:
  %i = phi i64 [ 0, %entry ], [ %next, %again ]
  PAUSE
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %times
  br i1 %more, label %again, label %done
done:
  ret void
}

; run range k of the job that is posted, and count it
define internal void @one(ptr %state, i64 %k) {
  %jobat = getelementptr i8, ptr %state, i64 256
  %job = load ptr, ptr %jobat
  %argsat = getelementptr i8, ptr %state, i64 264
  %args = load ptr, ptr %argsat
  %kind = load i64, ptr %job
  %function = word ptr %job 1
  %xat = getelementptr i64, ptr %job, i64 4
  %place = mul i64 %k, 2
  %first = add i64 %place, 8
  %loat = getelementptr i64, ptr %job, i64 %first
  %lo = load i64, ptr %loat
  %hi = word i64 %loat 1
  %grid = icmp ne i64 %kind, 0
  br i1 %grid, label %blocks, label %nest
nest:
  %sizes = load ptr, ptr %xat
  call void %function(ptr %args, ptr %sizes, i64 %lo, i64 %hi)
  br label %done
blocks:
  %x = load i64, ptr %xat
  %y = word i64 %xat 1
  %z = word i64 %xat 2
  %gx = trunc i64 %x to i32
  %gy = trunc i64 %y to i32
  %gz = trunc i64 %z to i32
  call void %function(ptr %args, i32 %gx, i32 %gy, i32 %gz, i64 %lo, i64 %hi)
  br label %done
done:
  %doneat = getelementptr i8, ptr %state, i64 64
  %before = atomicrmw add ptr %doneat, i64 1 release
  ret void
}

; leave processor %cpu for another one that this thread may use
define internal void @move(i32 %cpu) {
  %all = alloca [128 x i8], align 8
  %others = alloca [128 x i8], align 8
  %read = call i32 @sched_getaffinity(i32 0, i64 128, ptr %all)
  %again = call i32 @sched_getaffinity(i32 0, i64 128, ptr %others)
  %byte = lshr i32 %cpu, 3
  %place = getelementptr i8, ptr %others, i32 %byte
  %bit = and i32 %cpu, 7
  %one = shl i32 1, %bit
  %narrow = trunc i32 %one to i8
  %rest = xor i8 %narrow, -1
  %some = load i8, ptr %place
  %less = and i8 %some, %rest
  store i8 %less, ptr %place
  %moved = call i32 @sched_setaffinity(i32 0, i64 128, ptr %others)
  %free = call i32 @sched_setaffinity(i32 0, i64 128, ptr %all)
  ret void
}

define i32 @post(ptr %state, ptr %job, ptr %args) {
entry:
  %lockat = getelementptr i8, ptr %state, i64 320
  %locking = cmpxchg ptr %lockat, i32 0, i32 1 acquire monotonic
  %locked = extractvalue { i32, i1 } %locking, 1
  br i1 %locked, label %begin, label %busy
busy:
  ret i32 0
begin:
  %jobat = getelementptr i8, ptr %state, i64 256
  store ptr %job, ptr %jobat
  %argsat = getelementptr i8, ptr %state, i64 264
  store ptr %args, ptr %argsat
  %cpu = call i32 @sched_getcpu()
  %cpuat = getelementptr i8, ptr %state, i64 272
  store atomic i32 %cpu, ptr %cpuat monotonic, align 8
  %doneat = getelementptr i8, ptr %state, i64 64
  store atomic i64 0, ptr %doneat monotonic, align 8
  %count = word i64 %job 2
  %seats = word i64 %job 3
  %last = load atomic i64, ptr %state monotonic, align 8
  %number = lshr i64 %last, 48
  %following = add i64 %number, 1
  %high = shl i64 %following, 48
  %middle = shl i64 %seats, 40
  %some = or i64 %high, %middle
  %word = or i64 %some, %count
  store atomic i64 %word, ptr %state seq_cst, align 8
  %sleepersat = getelementptr i8, ptr %state, i64 128
  %sleepers = load atomic i64, ptr %sleepersat seq_cst, align 8
  %fewer = icmp slt i64 %sleepers, %seats
  %wanted = select i1 %fewer, i64 %sleepers, i64 %seats
  %semaphore = getelementptr i8, ptr %state, i64 192
  br label %wake
wake:
  %woken = phi i64 [ 0, %begin ], [ %more, %waking ]
  %enough = icmp sge i64 %woken, %wanted
  br i1 %enough, label %look, label %waking
waking:
  %posted = call i32 @sem_post(ptr %semaphore)
  %more = add i64 %woken, 1
  br label %wake
look:
  %now = load atomic i64, ptr %state acquire, align 8
  %shifted = lshr i64 %now, 20
  %front = and i64 %shifted, 1048575
  %back = and i64 %now, 1048575
  %left = icmp ult i64 %front, %back
  br i1 %left, label %claim, label %wait
claim:
  %taken = add i64 %now, 1048576
  %exchange = cmpxchg ptr %state, i64 %now, i64 %taken acq_rel monotonic
  %mine = extractvalue { i64, i1 } %exchange, 1
  br i1 %mine, label %work, label %look
work:
  call void @one(ptr %state, i64 %front)
  br label %look
wait:
  %turns = phi i64 [ 0, %look ], [ %turn, %waiting ], [ %turn, %yield ]
  %done = load atomic i64, ptr %doneat acquire, align 8
  %all = icmp eq i64 %done, %count
  br i1 %all, label %end, label %waiting
waiting:
  PAUSE
  %turn = add i64 %turns, 1
  %few = and i64 %turn, 63
  %polite = icmp eq i64 %few, 0
  br i1 %polite, label %yield, label %wait
yield:
  %yielded = call i32 @sched_yield()
  br label %wait
end:
  store atomic i32 0, ptr %lockat release, align 8
  ret i32 1
}

define void @serve(ptr %state, i64 %spins) {
entry:
  %quitat = getelementptr i8, ptr %state, i64 384
  %sleepersat = getelementptr i8, ptr %state, i64 128
  %semaphore = getelementptr i8, ptr %state, i64 192
  %cpuat = getelementptr i8, ptr %state, i64 272
  br label %look
look:
  %seat = phi i64 [ -1, %entry ], [ %number, %work ], [ %seat, %claim ], [ %seat, %again ], [ %seat, %moving ]
  %move = phi i64 [ -1, %entry ], [ %move, %work ], [ %move, %claim ], [ %move, %again ], [ %number, %moving ]
  %turns = phi i64 [ 0, %entry ], [ 0, %work ], [ %turns, %claim ], [ %spent, %again ], [ 0, %moving ]
  %quit = load atomic i64, ptr %quitat acquire, align 8
  %over = icmp ne i64 %quit, 0
  br i1 %over, label %end, label %open
open:
  %now = load atomic i64, ptr %state acquire, align 8
  %number = lshr i64 %now, 48
  %seated = icmp eq i64 %number, %seat
  %shifted = lshr i64 %now, 40
  %seats = and i64 %shifted, 255
  %room = icmp ne i64 %seats, 0
  %may = or i1 %seated, %room
  %middle = lshr i64 %now, 20
  %front = and i64 %middle, 1048575
  %back = and i64 %now, 1048575
  %left = icmp ult i64 %front, %back
  %able = and i1 %may, %left
  br i1 %able, label %where, label %idle
where:
  %here = call i32 @sched_getcpu()
  %theirs = load atomic i32, ptr %cpuat monotonic, align 8
  %shared = icmp eq i32 %here, %theirs
  %tried = icmp eq i64 %move, %number
  %stay = xor i1 %tried, true
  %leave = and i1 %shared, %stay
  br i1 %leave, label %moving, label %claim
moving:
  call void @move(i32 %here)
  br label %look
claim:
  %step = select i1 %seated, i64 1, i64 1099511627777
  %taken = sub i64 %now, %step
  %exchange = cmpxchg ptr %state, i64 %now, i64 %taken acq_rel monotonic
  %mine = extractvalue { i64, i1 } %exchange, 1
  br i1 %mine, label %work, label %look
work:
  %k = sub i64 %back, 1
  call void @one(ptr %state, i64 %k)
  br label %look
idle:
  %turn = add i64 %turns, 1
  %long = icmp ugt i64 %turn, %spins
  br i1 %long, label %sleep, label %rest
rest:
  PAUSE
  %few = and i64 %turn, 63
  %polite = icmp eq i64 %few, 0
  br i1 %polite, label %yield, label %again
yield:
  %yielded = call i32 @sched_yield()
  br label %again
sleep:
  %sleeping = atomicrmw add ptr %sleepersat, i64 1 seq_cst
  %since = load atomic i64, ptr %state seq_cst, align 8
  %same = icmp eq i64 %since, %now
  %gone = load atomic i64, ptr %quitat seq_cst, align 8
  %stays = icmp eq i64 %gone, 0
  %quiet = and i1 %same, %stays
  br i1 %quiet, label %down, label %awake
down:
  %slept = call i32 @sem_wait(ptr %semaphore)
  br label %awake
awake:
  %rising = atomicrmw sub ptr %sleepersat, i64 1 seq_cst
  br label %again
again:
  %spent = phi i64 [ %turn, %rest ], [ %turn, %yield ], [ 0, %awake ]
  br label %look
end:
  ret void
}

define void @stop(ptr %state, i64 %threads) {
entry:
  %quitat = getelementptr i8, ptr %state, i64 384
  store atomic i64 1, ptr %quitat seq_cst, align 8
  %semaphore = getelementptr i8, ptr %state, i64 192
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %more, %next ]
  %posted = call i32 @sem_post(ptr %semaphore)
  %more = add i64 %i, 1
  %again = icmp slt i64 %more, %threads
  br i1 %again, label %next, label %end
end:
  ret void
}
"""
