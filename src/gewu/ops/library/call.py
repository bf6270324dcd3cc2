"""How an operator is called: its arrays are checked, its program is compiled once for each set of types, threads share loops.

A builder is a function `build(kinds, *static) -> Program`: the types of the array arguments in the notation of `ir`, and the
numbers that are compiled in.  `launch` keeps what it made of it.  What is no tensor expression is a `Loop`: a Python function of
a range, compiled by Numba without threads of its own, so that all operators share the standing threads of `pool`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import ml_dtypes
import numpy as np

from gewu.core.device import load_numba
from gewu.core.errors import InputError
from gewu.ops import direct
from gewu.ops.cache import Cache, cache_folder
from gewu.ops.emit import Executable, compile_program
from gewu.ops.pool import THREADS, run_ranges
from gewu.ops.python import Array as Symbol
from gewu.ops.python import array as symbol
from gewu.ops.python import assign, axes, program, sizes
from gewu.ops.sizes import Size
from gewu.ops.tensor import Program

Array = np.ndarray[Any, Any]
Builder = Callable[..., Program]

BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)
KINDS: Final = {
    **{np.dtype(np.float32): "f32", np.dtype(np.float64): "f64", np.dtype(np.float16): "f16", BFLOAT16: "bf16"},
    **{np.dtype(np.int8): "s8", np.dtype(np.uint8): "u8", np.dtype(np.int32): "s32", np.dtype(np.int64): "s64"},
}
"""NumPy's types and those of `ir`."""
FLOATS: Final = ("float32", "float64", "bfloat16", "float16")
INTEGERS: Final = ("int32", "int64")
GRAIN: Final = 400_000
"""Elements moved, about a tenth of a nanosecond each, below which a second thread does not pay."""

_float_types = frozenset(np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name in FLOATS)
_integer_types = frozenset(np.dtype(name) for name in INTEGERS)
_compiled: dict[object, Executable] = {}
_last: dict[Executable, Mapping[str, int]] = {}
_short: dict[Executable, tuple[Any, Mapping[str, int], Any]] = {}


def floats(operator: str, name: str, value: Any, rank: int | None = None) -> Array:
    """Return an argument as a C-contiguous array of a float type.

    Raises:
        InputError: another type or rank.
    """
    return _checked(operator, name, value, rank, _float_types, ", ".join(FLOATS))


def integers(operator: str, name: str, value: Any, rank: int | None = None) -> Array:
    """Return an argument as a C-contiguous array of int32 or int64.

    Raises:
        InputError: another type or rank.
    """
    return _checked(operator, name, value, rank, _integer_types, ", ".join(INTEGERS))


def _checked(operator: str, name: str, value: Any, rank: int | None, types: frozenset[Any], allowed: str) -> Array:
    a = value if type(value) is np.ndarray else np.asarray(value)
    if a.dtype not in types:
        raise InputError(f"{name} has an unsupported type", key=operator, value=str(a.dtype), allowed=allowed)
    if rank is not None and a.ndim != rank:
        raise InputError(f"{name} needs {rank} dimensions", key=operator, value=a.shape)
    return a if a.flags.c_contiguous else np.ascontiguousarray(a)


def fits(operator: str, shapes: str, holds: bool, *arrays: Array) -> None:
    """Refuse arrays whose shapes do not fit together.

    Raises:
        InputError: `holds` is false; the message names the shapes.
    """
    if not holds:
        found = ", ".join(str(a.shape) for a in arrays)
        raise InputError("shapes do not fit", key=operator, value=found, allowed=shapes)


def result(operator: str, out: Array | None, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return `out` after a check, or a new array.

    Raises:
        InputError: `out` has another shape or type, is not contiguous or read-only.
    """
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype:
        found = f"{out.shape} {out.dtype}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError("out does not fit", key=operator, value=found, allowed=f"{shape} {np.dtype(dtype)}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise InputError("out must be C-contiguous and writeable", key=operator)
    return out


def symbols(kinds: Sequence[str], *shapes: tuple[int | Size, ...]) -> list[Symbol]:
    """Return the array arguments of a program, numbered in order."""
    return [symbol(number, kind, *shape) for number, (kind, shape) in enumerate(zip(kinds, shapes, strict=True))]


def real(*kinds: str) -> str:
    """Return the type in which numbers of these types are computed: f64 when one is, else f32."""
    return "f64" if "f64" in kinds else "f32"


def executable(build: Builder, types: tuple[Any, ...], static: tuple[Any, ...] = (), threads: int | None = None) -> Executable:
    """Return the compiled program of a builder for NumPy types of its arguments; the same one each time."""
    key = (build, types, static, threads)
    found = _compiled.get(key)
    if found is None:
        program = build(tuple(KINDS[t] for t in types), *static)
        found = _compiled[key] = compile_program(program, threads=threads, cache=Cache(cache_folder()).objects)
    return found


def launch(
    build: Builder, arrays: Sequence[Array], sizes: Mapping[str, int], static: tuple[Any, ...] = (), scalars: Sequence[Any] = ()
) -> None:
    """Run a builder's program on arrays, then scalars, in the order of its arguments."""
    found = executable(build, tuple([a.dtype for a in arrays]), static)
    args, short = (*arrays, *scalars), _short.get(found)
    if short is not None and short[1] == sizes:
        short[0](*args)
        return
    found(args, sizes)
    plain = lambda *others: found(others, sizes)  # noqa: E731
    if _last.get(found) == sizes and isinstance(found, Executable):  # sizes that change are not worth it
        work = found.direct(args, sizes)
        made = direct.function(args, work, plain) if work else None
        _short[found] = (made[0], sizes, made[1]) if made else (plain, sizes, None)
    _last[found] = sizes


class Loop:
    """A function `f(low, high, ...)` of a range of items, compiled when first called; items must not depend on each other."""

    def __init__(self, body: Callable[..., Any], *, exact: bool) -> None:
        self.body, self.exact, self.__doc__, self.__name__ = body, exact, body.__doc__, body.__name__
        self._compiled: Any = None

    def compiled(self) -> Any:
        """Return the compiled function of one range."""
        if self._compiled is None:
            flags = False if self.exact else {"contract", "reassoc", "nsz", "arcp", "afn"}
            made = load_numba().njit(nogil=True, error_model="numpy", fastmath=flags)(self.body)
            with contextlib.suppress(RuntimeError):  # no writable place beside the file: compiled in each process
                made.enable_caching()
            self._compiled = made
        return self._compiled

    def __call__(self, count: int, work: int, *args: Any, pieces: int | None = None) -> None:
        """Run all items; `work` is about how many elements could be moved meanwhile, `pieces` how many ranges to make of them."""
        function = self.compiled()
        ranges = min(count, 4 * THREADS if work > GRAIN else 1) if pieces is None else min(count, pieces)
        if ranges <= 1 or THREADS == 1:
            function(0, count, *args)
            return
        step = -(-count // ranges)
        run_ranges(lambda lo, hi: function(lo, hi, *args), [(lo, min(lo + step, count)) for lo in range(0, count, step)], THREADS)


def loop(body: Callable[..., Any]) -> Loop:
    """Make a loop whose sums may be reordered."""
    return Loop(body, exact=False)


def exact_loop(body: Callable[..., Any]) -> Loop:
    """Make a loop that computes as it is written."""
    return Loop(body, exact=True)


def widened(a: Array) -> Array:
    """Return float16 and bfloat16 as float32, which Numba knows; others as they are."""
    return a if a.dtype.itemsize > 2 else convert(a, np.empty(a.shape, np.float32))


def narrowed(a: Array, out: Array) -> Array:
    """Store results in `out`, converted where its type is narrower."""
    return out if a is out else convert(a, out)


def working(out: Array) -> Array:
    """Return where a loop may write what ends in `out`: `out` itself, or float32 for narrow types."""
    return out if out.dtype.itemsize > 2 or out.dtype.kind in "iu" else np.empty(out.shape, np.float32)


def convert(a: Array, out: Array) -> Array:
    """Convert an array element by element."""
    launch(conversion, (a, out), {"n": a.size})
    return out


def conversion(kinds: Sequence[str]) -> Program:
    """Build y = x in another type."""
    (n,) = sizes("n")
    (i,) = axes(i=n)
    x, y = symbols(kinds, (n,), (n,))
    return program("cast", assign(y[i], x[i]))
