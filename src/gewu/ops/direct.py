"""Launches without the interpreter: a builtin function of machine code looks at its arguments and runs the compiled loops.

A small launch takes a few microseconds, and so do checks in Python.  Here a table describes one launch that was done before:
types, shapes and flags of its arrays, the values of its integers, where addresses and floats go, which spans must not overlap,
and the loops to run.  A call whose arguments are like these costs a tenth of a microsecond; all others, and those whose gathers
go astray, take the way in Python, which also says what is wrong.

The function is a `PyCFunction` (METH_FASTCALL), made once for the process; the table's address comes with it as a `bytes` object.
It keeps the interpreter's lock, hence only launches on few bytes are worth it.  It reads fields of `PyArrayObject` and of scalars
where the stable layouts of CPython and NumPy have them (data 16, nd 24, dimensions 32, descr 56, flags 64; values 16); on other
interpreters nothing is made.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np

from gewu.ops import llvm, native
from gewu.ops.cache import Cache, cache_folder

MOST_BYTES: Final = 4 << 20
"""Bytes of all arrays up to which a call may keep the interpreter's lock."""
_ENTRY: Final = 16  # words of the description of an argument
_DIMENSIONS: Final = 8
_FLAGS: Final = 0x1 | 0x100 | 0x400  # C-contiguous, aligned, writeable
_ARRAY, _FLOAT, _VALUE, _NUMBER, _SINGLE = range(5)


@dataclass(slots=True)
class Work:
    """What one launch runs.

    Attributes:
        block: words that the loops read: addresses and scalars; filled with those of the launch.
        slots: for each argument of the call its byte in the block, or -1, and the NumPy type of a float.
        jobs: (function, address of sizes, first, end) of a loop, or the address of a job as of `native.Parts`.
        apart: pairs that must not overlap: word, first and end byte of one span, then of the other.
        flag: the address of a word that is not 0 after something went wrong, or 0.
        kept: what all this needs.
    """

    block: Any
    slots: list[tuple[int, Any]]
    jobs: list[tuple[int, int, int, int] | int]
    apart: list[tuple[int, int, int, int, int, int]]
    flag: int
    kept: Any


def supported() -> bool:
    """Tell whether objects lie in memory as this module reads them."""
    return sys.implementation.name == "cpython" and sys.maxsize > 1 << 32 and not hasattr(sys, "getobjects") and _as_expected()


@cache
def _as_expected() -> bool:
    a = np.zeros((3, 5), np.float32)
    words = (ctypes.c_int64 * 9).from_address(id(a))
    flags = ctypes.c_int32.from_address(id(a) + 64).value
    shape = (ctypes.c_int64 * 2).from_address(words[4])
    number, real = np.int32(-7), np.float32(1.5)
    return (
        words[1] == id(np.ndarray)
        and words[2] == a.ctypes.data
        and ctypes.c_int32.from_address(id(a) + 24).value == 2
        and (shape[0], shape[1]) == (3, 5)
        and words[7] == id(a.dtype)
        and flags == a.flags.num
        and ctypes.c_int32.from_address(id(number) + 16).value == -7
        and ctypes.c_float.from_address(id(real) + 16).value == 1.5
        and ctypes.c_double.from_address(id(0.25 * len(shape)) + 16).value == 0.5
    )


def function(args: Sequence[Any], work: Work, otherwise: Callable[..., Any]) -> tuple[Any, Any] | None:
    """Return a builtin function for calls with arguments like these, which hands all others on, and what must live with it.

    Args:
        args: of a call that was done.
        work: what it ran.
        otherwise: takes the same arguments.

    Returns:
        None where it cannot be made.
    """
    if not supported():
        return None
    spare = 8 * (len(work.block) - 1)  # the last word takes what nothing reads
    entries: list[int] = []
    for arg, (slot, real) in zip(args, work.slots, strict=True):
        entry = _entry(arg, slot if slot >= 0 else spare, real)
        if entry is None:
            return None
        entries += entry
    jobs = [word for job in work.jobs for word in ((1, job, 0, 0, 0) if isinstance(job, int) else (0, *job))]
    return _made(entries, jobs, [word for pair in work.apart for word in pair], len(args), work, otherwise)


def _entry(arg: Any, slot: int, real: Any) -> list[int] | None:
    kind = type(arg)
    if kind is np.ndarray:
        if arg.ndim > _DIMENSIONS:
            return None
        words = [_ARRAY, id(kind), id(arg.dtype), slot, arg.ndim, arg.flags.num & _FLAGS, *arg.shape]
    elif kind is float and real in (np.float32, np.float64):
        words = [_FLOAT if real is np.float64 else _SINGLE, id(kind), (1 << 64) - 1, slot]
    elif kind in (np.float32, np.float64) and kind is real:
        words = [_FLOAT, id(kind), (1 << 8 * arg.itemsize) - 1, slot]
    elif kind in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64):
        mask = (1 << 8 * arg.itemsize) - 1
        words = [_VALUE, id(kind), mask, int(arg) & mask]
    elif kind is int and -1 << 62 < arg < 1 << 62 and arg != -1:  # -1 also tells of an overflow
        words = [_NUMBER, id(kind), arg, 0]
    else:
        return None
    return [w if w < 1 << 63 else w - (1 << 64) for w in words] + [0] * (_ENTRY - len(words))


def _made(
    entries: list[int], jobs: list[int], apart: list[int], count: int, work: Work, otherwise: Callable[..., Any]
) -> tuple[Any, Any]:
    lists = [(ctypes.c_int64 * max(len(part), 1))(*part) for part in (entries, jobs, apart)]
    api = ctypes.pythonapi
    state, post = native.standing()
    table = (ctypes.c_int64 * 16)(
        *(count, id(otherwise), ctypes.addressof(work.block), len(jobs) // 5, work.flag, len(apart) // 6, state),
        *(ctypes.addressof(part) for part in lists),
        *(native.address_of(f) for f in (api.PyLong_AsLongLong, api.PyObject_Vectorcall, api.Py_IncRef, api.PyErr_Clear)),
        *(id(None), post),
    )
    bound = struct.pack("<q", ctypes.addressof(table))
    definition, _ = _method()
    return _new(ctypes.byref(definition), bound, None), (table, lists, work, otherwise)


class _Definition(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("text", ctypes.c_char_p))


_FASTCALL: Final = 0x80
_new: Final = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(
    ("PyCFunction_NewEx", ctypes.pythonapi)
)


@cache
def _method() -> tuple[_Definition, llvm.Library]:
    library = llvm.jit(llvm.words(_TEXT), vectorise=False, cache=Cache(cache_folder()).objects)
    return _Definition(b"launch", library.address("launch"), _FASTCALL, None), library


_TEXT: Final = """
; a bytes object that holds the address of the table; the arguments of the call and how many they are
define ptr @launch(ptr %self, ptr %args, i64 %given) {
entry:
  %at = getelementptr i8, ptr %self, i64 32
  %table = load ptr, ptr %at
  %count = load i64, ptr %table
  %block = word ptr %table 2
  %entries = word ptr %table 7
  %fits = icmp eq i64 %count, %given
  br i1 %fits, label %argument, label %slow
argument:
  %i = phi i64 [ 0, %entry ], [ %following, %next ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %look, label %spans
look:
  %argat = getelementptr ptr, ptr %args, i64 %i
  %arg = load ptr, ptr %argat
  %first = mul i64 %i, 16
  %e = getelementptr i64, ptr %entries, i64 %first
  %kind = load i64, ptr %e
  %type = word i64 %e 1
  %second = word i64 %e 2
  %third = word i64 %e 3
  %owntypeat = getelementptr i8, ptr %arg, i64 8
  %owntype = load i64, ptr %owntypeat
  %typed = icmp eq i64 %owntype, %type
  br i1 %typed, label %choose, label %slow
choose:
  %valueat = getelementptr i8, ptr %arg, i64 16
  switch i64 %kind, label %slow [
    i64 0, label %array i64 1, label %float i64 2, label %value i64 3, label %number i64 4, label %single
  ]
array:
  %descrat = getelementptr i8, ptr %arg, i64 56
  %descr = load i64, ptr %descrat
  %same = icmp eq i64 %descr, %second
  %ndat = getelementptr i8, ptr %arg, i64 24
  %nd32 = load i32, ptr %ndat
  %nd = zext i32 %nd32 to i64
  %rank = word i64 %e 4
  %ranked = icmp eq i64 %nd, %rank
  %flagsat = getelementptr i8, ptr %arg, i64 64
  %flags32 = load i32, ptr %flagsat
  %flags = zext i32 %flags32 to i64
  %needed = word i64 %e 5
  %kept = and i64 %flags, 1281
  %flagged = icmp eq i64 %kept, %needed
  %a1 = and i1 %same, %ranked
  %a2 = and i1 %a1, %flagged
  br i1 %a2, label %shape, label %slow
shape:
  %dimsat = getelementptr i8, ptr %arg, i64 32
  %dims = load ptr, ptr %dimsat
  br label %dimension
dimension:
  %d = phi i64 [ 0, %shape ], [ %d1, %extent ]
  %left = icmp slt i64 %d, %rank
  br i1 %left, label %extent, label %address
extent:
  %dim = word i64 %dims %d
  %place = add i64 %d, 6
  %want = word i64 %e %place
  %d1 = add i64 %d, 1
  %equal = icmp eq i64 %dim, %want
  br i1 %equal, label %dimension, label %slow
address:
  %data = load i64, ptr %valueat
  %slot = getelementptr i8, ptr %block, i64 %third
  store i64 %data, ptr %slot
  br label %next
float:
  %bits = load i64, ptr %valueat
  %fslot = getelementptr i8, ptr %block, i64 %third
  %long = icmp eq i64 %second, -1
  br i1 %long, label %eight, label %four
eight:
  store i64 %bits, ptr %fslot
  br label %next
four:
  %low = trunc i64 %bits to i32
  store i32 %low, ptr %fslot
  br label %next
single:
  %double = load double, ptr %valueat
  %narrow = fptrunc double %double to float
  %sslot = getelementptr i8, ptr %block, i64 %third
  store float %narrow, ptr %sslot
  br label %next
value:
  %raw = load i64, ptr %valueat
  %masked = and i64 %raw, %second
  %known = icmp eq i64 %masked, %third
  br i1 %known, label %next, label %slow
number:
  %convert = word ptr %table 10
  %whole = call i64 %convert(ptr %arg)
  %right = icmp eq i64 %whole, %second
  br i1 %right, label %next, label %clear
clear:
  %clearing = word ptr %table 13
  call void %clearing()
  br label %slow
next:
  %following = add i64 %i, 1
  br label %argument

spans:
  %pairs = word ptr %table 9
  %howmany = word i64 %table 5
  br label %span
span:
  %s = phi i64 [ 0, %spans ], [ %s1, %compare ]
  %another = icmp slt i64 %s, %howmany
  br i1 %another, label %compare, label %jobs
compare:
  %six = mul i64 %s, 6
  %pair = getelementptr i64, ptr %pairs, i64 %six
  %w = load i64, ptr %pair
  %wlo = word i64 %pair 1
  %whi = word i64 %pair 2
  %r = word i64 %pair 3
  %rlo = word i64 %pair 4
  %rhi = word i64 %pair 5
  %wbase = word i64 %block %w
  %rbase = word i64 %block %r
  %wlow = add i64 %wbase, %wlo
  %whigh = add i64 %wbase, %whi
  %rlow = add i64 %rbase, %rlo
  %rhigh = add i64 %rbase, %rhi
  %before = icmp ule i64 %rhigh, %wlow
  %after = icmp ule i64 %whigh, %rlow
  %clean = or i1 %before, %after
  %s1 = add i64 %s, 1
  br i1 %clean, label %span, label %slow

jobs:
  %all = word ptr %table 8
  %jobcount = word i64 %table 3
  %state = word ptr %table 6
  %post = word ptr %table 15
  br label %job
job:
  %k = phi i64 [ 0, %jobs ], [ %k1, %done ]
  %todo = icmp slt i64 %k, %jobcount
  br i1 %todo, label %start, label %check
start:
  %five = mul i64 %k, 5
  %j = getelementptr i64, ptr %all, i64 %five
  %how = load i64, ptr %j
  %what = word ptr %j 1
  %k1 = add i64 %k, 1
  %shared = icmp eq i64 %how, 1
  br i1 %shared, label %together, label %alone
alone:
  %sizes = word ptr %j 2
  %lo = word i64 %j 3
  %hi = word i64 %j 4
  call void %what(ptr %block, ptr %sizes, i64 %lo, i64 %hi)
  br label %done
together:
  %taken = call i32 %post(ptr %state, ptr %what, ptr %block)
  %was = icmp ne i32 %taken, 0
  br i1 %was, label %done, label %busy
busy:  ; another thread's job: nothing was done yet, or what was begun is ended
  %untouched = icmp eq i64 %k, 0
  br i1 %untouched, label %slow, label %together
done:
  br label %job

check:
  %flag = word ptr %table 4
  %watched = icmp ne ptr %flag, null
  br i1 %watched, label %astray, label %end
astray:
  %seen = load i64, ptr %flag
  %wrong = icmp ne i64 %seen, 0
  br i1 %wrong, label %again, label %end
again:
  store i64 0, ptr %flag
  br label %slow
end:
  %none = word ptr %table 14
  %incref = word ptr %table 12
  call void %incref(ptr %none)
  ret ptr %none
slow:
  %other = word ptr %table 1
  %vector = word ptr %table 11
  %result = call ptr %vector(ptr %other, ptr %args, i64 %given, ptr null)
  ret ptr %result
}
"""
