"""Arguments of a launch: checked against the parameters of a kernel, and made into arrays and scalars of the right size.

An array stands for a pointer.  A Python number becomes what the parameter holds: its kind where the source tells it (PTX), else,
for machine code, by its own type and the parameter's size: a float for 4 bytes is a float32, an int an int32.  A NumPy scalar is
taken as it is and must have the size of the parameter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.ops.ir import Kernel, Parameter

Shape = tuple[int, int, int]
_FLOATS: Final = {2: np.float16, 4: np.float32, 8: np.float64}
_GRID_LIMIT: Final = (2**31 - 1, 65535, 65535)
_BLOCK_LIMIT: Final = (1024, 1024, 64)
THREADS: Final = 1024


def shape_of(value: Any, what: str, limits: Shape, kernel: str) -> Shape:
    """Return a grid or block as three numbers.

    Raises:
        InputError: not one to three whole numbers within the limits.
    """
    parts = tuple(value) if isinstance(value, Sequence | np.ndarray) else (value,)
    allowed = f"1 to 3 whole numbers, up to {' x '.join(map(str, limits))}"
    if not 1 <= len(parts) <= 3 or any(isinstance(p, bool) or not isinstance(p, int | np.integer) for p in parts):
        raise InputError(f"{what} is not a number of threads or blocks", key=kernel, value=value, allowed=allowed)
    full = (*(int(p) for p in parts), 1, 1)[:3]
    if any(not 1 <= p <= limit for p, limit in zip(full, limits, strict=True)):
        raise InputError(f"{what} is out of bounds", key=kernel, value=value, allowed=allowed)
    return full[0], full[1], full[2]


def grid_of(value: Any, kernel: str) -> Shape:
    """Return a grid as three numbers of blocks."""
    return shape_of(value, "the grid", _GRID_LIMIT, kernel)


def block_of(value: Any, kernel: str, limit: int = 0, required: Sequence[int] = ()) -> Shape:
    """Return a block as three numbers of threads.

    Args:
        value: one to three numbers.
        kernel: its name, for messages.
        limit: threads per block that the kernel allows (0: unknown).
        required: the block shape that it demands, or ().

    Raises:
        InputError: too many threads, or not the shape that the kernel demands.
    """
    block = shape_of(value, "the block", _BLOCK_LIMIT, kernel)
    most = min(THREADS, limit or THREADS)
    if math.prod(block) > most:
        raise InputError("too many threads in a block", key=kernel, value=value, allowed=f"at most {most}")
    if required and block != (*required, 1, 1)[:3]:
        raise InputError("this kernel demands another block", key=kernel, value=value, allowed=str(tuple(required)))
    return block


def pack(kernel: Kernel | Any, args: Sequence[Any]) -> list[Any]:
    """Return the arguments as arrays and NumPy scalars of the sizes of the parameters.

    Args:
        kernel: has `name` and `parameters`.
        args: of the call.

    Raises:
        InputError: wrong number of arguments, or one that does not fit its parameter.
    """
    if len(args) != len(kernel.parameters):
        wanted = ", ".join(_wanted(p) for p in kernel.parameters) or "none"
        raise InputError(
            "wrong number of arguments", key=kernel.name, value=len(args), allowed=f"{len(kernel.parameters)}: {wanted}"
        )
    return [pack_one(kernel.name, i, p, a) for i, (p, a) in enumerate(zip(kernel.parameters, args, strict=True))]


def pack_one(name: str, number: int, parameter: Parameter, value: Any) -> Any:
    """Return one argument as an array or a NumPy scalar of the size of its parameter."""

    def refuse(message: str, shown: Any = value) -> InputError:
        return InputError(message, key=f"{name}, argument {number}", value=shown, allowed=_wanted(parameter))

    if isinstance(value, np.ndarray):
        return _array(value, parameter, refuse)
    if isinstance(value, np.generic):
        if value.dtype.hasobject or value.nbytes != parameter.size:
            raise refuse("has another size than the parameter", f"{value.dtype} {value!r}")
        return value
    if isinstance(value, bytes) and len(value) == parameter.size:
        return np.void(value)
    if isinstance(value, bool | int):
        return _integer(int(value), parameter, refuse)
    if isinstance(value, float):
        if parameter.size not in _FLOATS or parameter.kind[:1] in ("u", "s"):
            raise refuse("a float does not fit this parameter")
        return _float(value, parameter)
    raise refuse("is neither array nor number", type(value).__name__)


def _array(value: NDArray[Any], parameter: Parameter, refuse: Any) -> NDArray[Any]:
    if parameter.size != 8 or parameter.kind[:1] == "f":
        raise refuse("an array stands for a pointer, which this parameter is not", f"array of {value.dtype}")
    if value.dtype.hasobject or not value.dtype.isnative:
        raise refuse("arrays must hold plain numbers in the byte order of the machine", str(value.dtype))
    if not value.flags.c_contiguous:
        raise refuse("arrays must be contiguous in C order: pass numpy.ascontiguousarray(...)", f"strides {value.strides}")
    return value


def _integer(value: int, parameter: Parameter, refuse: Any) -> Any:
    if parameter.kind[:1] == "f":
        return _float(float(value), parameter)
    if parameter.size not in (1, 2, 4, 8):
        raise refuse("a number does not fit this parameter")
    bits = 8 * parameter.size
    if not -(1 << (bits - 1)) <= value < 1 << bits:
        raise refuse("does not fit this parameter")
    signed = value < 1 << (bits - 1)
    return np.dtype(f"{'i' if signed else 'u'}{parameter.size}").type(value)


def _float(value: float, parameter: Parameter) -> Any:
    with np.errstate(over="ignore"):
        return _FLOATS[parameter.size](value)


def _wanted(parameter: Parameter) -> str:
    name = f" {parameter.name}" if parameter.name else ""
    if parameter.kind[:1] in ("u", "s", "f"):
        words = {"u": "integer", "s": "integer", "f": "float"}[parameter.kind[0]]
        what = f"{words} of {parameter.size} bytes"
        return f"array or {what}{name}" if parameter.size == 8 and parameter.kind[0] != "f" else what + name
    if parameter.size in (1, 2, 4):
        return f"number of {parameter.size} bytes{name}"
    return f"array or number of 8 bytes{name}" if parameter.size == 8 else f"{parameter.size} bytes{name}"
