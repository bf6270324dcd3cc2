"""The parallel drivers of `native`: Numba loops that call machine code by its address."""

from __future__ import annotations

from typing import Any

from gewu.core.device import load_numba

load_numba()

from llvmlite import ir  # noqa: E402
from numba import njit, prange, types  # noqa: E402
from numba.extending import intrinsic  # noqa: E402

_WORD, _INT, _BYTE = ir.IntType(64), ir.IntType(32), ir.IntType(8)


def _caller(kinds: list[Any]) -> Any:
    """Return an intrinsic that calls an address with arguments of these types; pointers come as integers."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        wanted = [_BYTE.as_pointer() if kind == "pointer" else kind for kind in kinds]
        function = builder.inttoptr(values[0], ir.FunctionType(ir.VoidType(), wanted).as_pointer())
        given = []
        for value, kind, want in zip(values[1:], kinds, wanted, strict=True):
            given.append(
                builder.inttoptr(value, want) if kind == "pointer" else builder.trunc(value, want) if want.width < 64 else value
            )
        builder.call(function, given)
        return context.get_dummy_value()

    return code


@intrinsic
def _call_nest(typing_context: Any, address: Any, args: Any, sizes: Any, lo: Any, hi: Any) -> Any:
    return types.void(*[types.int64] * 5), _caller(["pointer", "pointer", _WORD, _WORD])


@intrinsic
def _call_blocks(typing_context: Any, address: Any, args: Any, gx: Any, gy: Any, gz: Any, lo: Any, hi: Any) -> Any:
    return types.void(*[types.int64] * 7), _caller(["pointer", _INT, _INT, _INT, _WORD, _WORD])


@njit(parallel=True, cache=True)
def nest(address, args, sizes, parts):  # type: ignore[no-untyped-def]
    """Run a compiled loop over each range."""
    for k in prange(parts.shape[0]):
        _call_nest(address, args, sizes, parts[k, 0], parts[k, 1])


@njit(parallel=True, cache=True)
def blocks(address, args, gx, gy, gz, parts):  # type: ignore[no-untyped-def]
    """Run the blocks of a grid over each range."""
    for k in prange(parts.shape[0]):
        _call_blocks(address, args, gx, gy, gz, parts[k, 0], parts[k, 1])
