"""Numbers of float32 and bfloat16 in compiled loops over arrays: bfloat16 lies in NumPy arrays as uint16.

`wide` reads either as float32, `narrow` rounds to the type of another number (to nearest, ties to even), `exp` is the exponential
to 2 units in the last place that loops take 16 at a time, and `call` calls machine code at an address.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from gewu.core.device import load_numba
from gewu.ops import llvm
from gewu.ops.cache import Cache, cache_folder

numba = load_numba()

from llvmlite import ir  # noqa: E402
from numba import types  # noqa: E402
from numba.extending import intrinsic  # noqa: E402

FAST: Final = {"contract", "reassoc", "nsz", "arcp"}
"""Freedoms that loops may take; numbers that are not finite stay so."""
COUNT: Final = 24
"""Arguments of an entry, at most."""
SINGLE, HALF, INTEGER = np.float32(0), np.uint16(0), np.int32(0)
_STAMP: Final = format(zlib.crc32(Path(__file__).read_bytes()), "08x")
_F, _I, _J = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_EXP: Final = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)


def compiled(function: Any) -> Any:
    """Return a loop compiled; Numba's cache knows it by the source of this module too.

    What it calls is written into it: else the loader takes the code of a function from where it finds it first, which is
    another place after a compilation than after a start from the cache, and sums may differ in the last bit.
    """
    function.__qualname__ = f"{function.__qualname__}_{_STAMP}"
    return numba.njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy", forceinline=True)(function)


@dataclass(frozen=True, slots=True)
class Entry:
    """A compiled loop for `native.Parts`.

    Attributes:
        address: of `void f(ptr args, ptr sizes, i64 lo, i64 hi)`; args are int64, `code` and then the loop's own.
        code: address of the loop as Numba calls it.
        kept: what holds the code.
    """

    address: int
    code: int
    kept: Any


def entry(function: Any, like: Any) -> Entry:
    """Return a compiled `function(like, args, lo, hi)`; `args` is an int64 array, `like` says a type.

    It is the code of the cache: a C function of Numba's would be compiled in every process.
    """
    signature = (numba.typeof(like), types.Array(types.int64, 1, "C"), types.int64, types.int64)
    function.compile(signature)
    made = function.overloads[signature]
    library = _enter("float 0.0" if isinstance(like, np.float32) else "i16 0")
    code = made.library.get_pointer_to_function(made.fndesc.llvm_func_name)
    return Entry(library.address("enter"), code, (library, made))


@cache
def _enter(like: str) -> llvm.Library:
    return llvm.jit(_ENTER.replace("LIKE", like), cache=Cache(cache_folder()).objects)


_ENTER: Final = f"""
; the loop takes places for its result and its error, then `like`, then an array: who holds it, its object, count, bytes of a
; number, address, shape, stride
define void @enter(ptr %args, ptr %sizes, i64 %lo, i64 %hi) #0 {{
  %result = alloca ptr
  %error = alloca ptr
  %function = load ptr, ptr %args
  %own = getelementptr i64, ptr %args, i64 1
  %done = call i32 %function(ptr %result, ptr %error, LIKE, ptr null, ptr null, i64 {COUNT}, i64 8, ptr %own, i64 {COUNT},
    i64 8, i64 %lo, i64 %hi)
  ret void
}}
"""


@intrinsic  # type: ignore[untyped-decorator]
def pointer(context: Any, address: Any, like: Any) -> Any:
    """Return an address as a pointer to numbers of the type of `like`."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.CPointer(like)))

    return types.CPointer(like)(types.int64, like), code


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def at(address: int, shape: Any, like: Any) -> Any:
    """Return the array at an address."""
    return numba.carray(pointer(address, like), shape)


@intrinsic  # type: ignore[untyped-decorator]
def wide(context: Any, x: Any) -> Any:
    """Return a number as float32."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if x == types.float32:
            return args[0]
        return builder.bitcast(builder.shl(builder.zext(args[0], _I), ir.Constant(_I, 16)), _F)

    return types.float32(x), code


@intrinsic  # type: ignore[untyped-decorator]
def narrow(context: Any, x: Any, like: Any) -> Any:
    """Return float32 x in the type of `like`."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if like == types.float32:
            return args[0]
        bits = builder.bitcast(args[0], _I)
        odd = builder.and_(builder.lshr(bits, ir.Constant(_I, 16)), ir.Constant(_I, 1))
        up = builder.add(builder.add(bits, ir.Constant(_I, 0x7FFF)), odd)
        return builder.trunc(builder.lshr(up, ir.Constant(_I, 16)), ir.IntType(16))

    return like(types.float32, like), code


@intrinsic  # type: ignore[untyped-decorator]
def larger(context: Any, a: Any, b: Any) -> Any:
    """Return the larger of two float32; with NaN, either: so loops are taken many at a time."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = builder.module.declare_intrinsic("llvm.maxnum", [_F], ir.FunctionType(_F, [_F, _F]))
        return builder.call(function, args, fastmath=("nnan", "nsz"))

    return types.float32(types.float32, types.float32), code


@intrinsic  # type: ignore[untyped-decorator]
def exp(context: Any, x: Any) -> Any:
    """Return exp(x) of float32 x, which is taken between -87 and 88; NaN stays NaN."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = lambda value: ir.Constant(_F, float(np.float32(value)))  # noqa: E731
        rint, fma = (
            builder.module.declare_intrinsic(name, [_F], ir.FunctionType(_F, [_F] * count))
            for name, count in (("llvm.rint", 1), ("llvm.fma", 3))
        )
        value = args[0]
        for test, limit in (("<", -87.0), (">", 88.0)):
            value = builder.select(builder.fcmp_ordered(test, value, number(limit)), number(limit), value)
        whole = builder.call(rint, [builder.fmul(value, number(1.4426950408889634))])
        rest = builder.call(fma, [whole, number(-0.693145751953125), value])
        rest = builder.call(fma, [whole, number(-1.42860682030941723e-6), rest])
        result = number(_EXP[0])
        for factor in _EXP[1:]:
            result = builder.call(fma, [result, rest, number(factor)])
        power = builder.shl(builder.add(builder.fptosi(whole, _I), ir.Constant(_I, 127)), ir.Constant(_I, 23))
        return builder.fmul(result, builder.bitcast(power, _F))

    return types.float32(types.float32), code


@intrinsic  # type: ignore[untyped-decorator]
def call(context: Any, function: Any, arguments: Any) -> Any:
    """Call the code at an address with integers and addresses, a tuple of int64."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count = len(arguments)
        kind = ir.FunctionType(ir.VoidType(), [_J] * count).as_pointer()
        values = [builder.extract_value(args[1], i) for i in range(count)]
        builder.call(builder.inttoptr(args[0], kind), values)
        return context.get_dummy_value()

    return types.void(types.int64, types.UniTuple(types.int64, len(arguments))), code
