"""Functions that kernel bodies may call on every device: `@device`, `atomic_add`, `nonneg`.

A body names a device function as a global.  Before a body is compiled, it is copied with these globals replaced by what the
target understands (`bind`), so neither Numba nor the plain Python loop needs to know of the other.  The rules for bodies stand in
`gewu.core.kernel`; they hold for device functions too.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import marshal
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np

from gewu.core.errors import ResourceError

P = ParamSpec("P")
R = TypeVar("R")

_COMPILER = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("device.py", "kernel.py"))


def load_numba() -> Any:
    """Import Numba when first needed, without SVML ("Determinism" in `gewu.core.kernel` says why)."""
    os.environ.setdefault("NUMBA_DISABLE_INTEL_SVML", "1")
    return importlib.import_module("numba")


def load_cuda() -> Any:
    """Return `numba.cuda` (built in, or the numba-cuda package where it is installed), or refuse."""
    numba = load_numba()
    cuda = importlib.import_module("numba.cuda")
    if not cuda.is_available():
        raise ResourceError("no CUDA device is usable here", hint="use the device cpu, or NUMBA_ENABLE_CUDASIM=1 for tiny tests")
    numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0
    return cuda


def jit(target: str, function: Callable[..., Any]) -> Any:
    """Compile a body or device function, to be inlined into its caller."""
    bound = bind(function, target)
    if target == "cuda":
        cuda, simulated = load_cuda(), load_numba().config.ENABLE_CUDASIM
        return cuda.jit(device=True)(np.errstate(all="ignore")(bound) if simulated else bound)
    # bodies never allocate: without the runtime for it, arrays are passed on without counting references
    return load_numba().njit(forceinline=True, error_model="numpy", _nrt=False)(bound)


class DeviceFunction(Generic[P, R]):
    """A function usable inside kernel bodies on every device, and from plain Python; made by `@device`."""

    def __init__(self, function: Callable[P, R], **special: Callable[[], Any]) -> None:
        self.function, self._special = function, special
        self._compiled: dict[str, Any] = {}
        self.__doc__, self.__name__ = function.__doc__, function.__name__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Evaluate in plain Python."""
        return self.function(*args, **kwargs)

    def compiled(self, target: str) -> Any:
        """Return what Numba calls in place of this function on target "cpu" or "cuda"."""
        if target not in self._compiled:
            special = self._special.get(target)
            self._compiled[target] = special() if special else jit(target, self.function)
        return self._compiled[target]


def device(function: Callable[P, R]) -> DeviceFunction[P, R]:
    """Mark a scalar function as callable from kernel bodies and from other device functions, by its bare name."""
    return DeviceFunction(function)


def _reached(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Return the globals and closure variables that the code of `function` names."""
    outside = inspect.getclosurevars(function)
    return sorted({**outside.globals, **outside.nonlocals}.items())


def bind(function: Callable[..., Any], target: str) -> types.FunctionType:
    """Copy `function` with every device function it names replaced by the one compiled for `target`.

    The copy poses as a function of this module with a name of its own: a cached loop imports the modules of its functions
    when it is loaded, which fails where a body's file runs under another module name (a script, a test).
    """
    assert isinstance(function, types.FunctionType)
    new = {name: value.compiled(target) for name, value in _reached(function) if isinstance(value, DeviceFunction)}
    names = function.__code__.co_freevars
    cells = tuple(types.CellType(new.get(n, c.cell_contents)) for n, c in zip(names, function.__closure__ or (), strict=True))
    scope = {**function.__globals__, **new, "__name__": __name__}
    bound = types.FunctionType(function.__code__, scope, function.__name__, None, cells)
    bound.__qualname__ = f"{function.__name__.strip('<>')}_{digest(function)}"
    return bound


def digest(function: Callable[..., Any]) -> str:
    """Return a short digest of the compiler's source, the code of `function` and, recursively, all that it reaches."""
    total = hashlib.sha256(_COMPILER + marshal.dumps(function.__code__, 2))
    for name, value in _reached(function):
        inner = getattr(value, "function", getattr(value, "py_func", None))
        if inner is not None:
            text = digest(inner)
        elif isinstance(value, np.ndarray):
            text = f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
        else:
            plain = isinstance(value, (int, float, complex, str, tuple, np.generic))
            text = repr(value) if plain else getattr(value, "__name__", type(value).__qualname__)
        total.update(f"{name}={text};".encode())
    return total.hexdigest()[:16]


def _atomic_add(array: Any, index: int, value: int) -> None:
    if array.dtype != np.int64 or array.ndim != 1 or not 0 <= index < array.shape[0]:
        raise IndexError(f"atomic_add: index {index} into {array.dtype}{array.shape}; allowed: int64, rank 1, index in range")
    array[index] += value


def _atomic_add_cpu() -> Any:
    nt, cgutils = load_numba().types, importlib.import_module("numba.core.cgutils")

    def atomic_add(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
        if not (isinstance(array, nt.Array) and array.dtype == nt.int64 and array.ndim == 1 and isinstance(value, nt.Integer)):
            return None

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            target = context.make_array(array)(context, builder, values[0])
            pointer = cgutils.get_item_pointer(context, builder, array, target, [values[1]], wraparound=False)
            builder.atomic_rmw("add", pointer, values[2], "monotonic")
            return context.get_dummy_value()

        return nt.void(array, nt.int64, nt.int64), generate

    return importlib.import_module("numba.extending").intrinsic(atomic_add)


def _atomic_add_cuda() -> Any:
    scope: dict[str, Any] = {"cuda": load_cuda()}
    exec("def atomic_add(array, index, value):\n    cuda.atomic.add(array, index, value)", scope)
    return load_cuda().jit(device=True)(scope["atomic_add"])


def _nonneg(k: int) -> int:
    if k < 0:
        raise IndexError(f"nonneg: a negative index {k} was promised not to occur")
    return k


def _nonneg_cpu() -> Any:
    llvm, int64 = importlib.import_module("llvmlite.ir"), load_numba().int64

    def nonneg(typing_context: Any, k: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            builder.assume(builder.icmp_signed(">=", values[0], llvm.Constant(values[0].type, 0)))
            return values[0]

        return int64(int64), generate

    return importlib.import_module("numba.extending").intrinsic(nonneg)


atomic_add = DeviceFunction(_atomic_add, cpu=_atomic_add_cpu, cuda=_atomic_add_cuda)
nonneg = DeviceFunction(_nonneg, cpu=_nonneg_cpu, cuda=lambda: load_cuda().jit(device=True)(lambda k: k))
