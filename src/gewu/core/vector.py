"""What `simd`, `lanes` and `mesh` share: LLVM vectors in the making; and a stamp for caches, also of `crc32c` and `records`.

Numba keeps compiled code until the file of the function changes; it does not see that these modules have.  A cached function that
uses them is marked `@stamped`, below `njit`: its name in the cache then holds `STAMP`, the digest of their sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from gewu.core.device import load_numba

load_numba()

from llvmlite import ir  # noqa: E402
from numba import types  # noqa: E402
from numba.core import cgutils  # noqa: E402

F = TypeVar("F", bound=Callable[..., Any])

INT32, INT64 = ir.IntType(32), ir.IntType(64)
FLOATS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_SOURCES = ("vector.py", "simd.py", "lanes.py", "mesh.py", "crc32c.py", "objects.py", "records.py")
STAMP: Final = hashlib.sha256(b"".join(Path(__file__).with_name(name).read_bytes() for name in _SOURCES)).hexdigest()[:16]


def stamped(function: F) -> F:
    """Give a function, before it is compiled, a name of its own in Numba's cache for this very source of the vectors."""
    function.__qualname__ = f"{function.__qualname__}_{STAMP}"
    return function


def numbers(values: Sequence[int]) -> Any:
    """Return a constant vector of 32-bit integers."""
    return ir.Constant(ir.VectorType(INT32, len(values)), list(values))


def shuffle(builder: Any, a: Any, order: Sequence[int]) -> Any:
    """Return the elements of `a` in this order."""
    return builder.shuffle_vector(a, ir.Constant(a.type, ir.Undefined), numbers(order))


def splat(builder: Any, x: Any, lanes: int) -> Any:
    """Return the vector that holds `x` everywhere."""
    kind = ir.VectorType(x.type, lanes)
    return shuffle(builder, builder.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(INT32, 0)), [0] * lanes)


def join(builder: Any, a: Any, b: Any) -> Any:
    """Return two vectors of one type behind each other."""
    return builder.shuffle_vector(a, b, numbers(range(2 * a.type.count)))


def lane(builder: Any, v: Any, k: int) -> Any:
    """Return element k."""
    return builder.extract_element(v, ir.Constant(INT32, k))


def data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Return the pointer to the first element of an array."""
    return context.make_array(kind)(context, builder, array).data


def pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Return the pointer to element `index` of an array."""
    return builder.gep(data(context, builder, kind, array), [index])


def root_of(builder: Any, vector: Any, flags: Sequence[str] = ()) -> Any:
    """Return the square roots of a vector of floats."""
    bits = 32 if vector.type.element == FLOATS[types.float32] else 64
    kind = ir.FunctionType(vector.type, [vector.type])
    sqrt = cgutils.get_or_insert_function(builder.module, kind, f"llvm.sqrt.v{vector.type.count}f{bits}")
    return builder.call(sqrt, [vector], fastmath=flags)
