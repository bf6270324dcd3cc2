"""One Python body, three machines: `@kernel` and `@reduction`.

`@kernel` turns `f(i, *arrays_and_scalars)`, which computes work item i, into a plain Python loop (`.reference`), a threaded
Numba loop (`.cpu`) and a CUDA kernel (`.cuda`; with NUMBA_ENABLE_CUDASIM=1 Numba's simulator runs it without a GPU).
`@reduction` does the same for a body that returns one float per item, and sums them.  An extent is `n` or `(start, stop)`.

What a body may use: arithmetic, `if`, `for ... in range`, `while`, array elements by integer index, array shapes, functions of
`math` (not `np.sqrt` and the like: the GPU compiler lacks most), np scalar types, tuples, module constants (frozen at the first
launch), and functions marked `@device`, called by their bare name.  No allocation, exceptions, strings, containers, slices,
recursion.  Arguments are positional: numbers, and NumPy arrays of rank >= 1 (for `.cuda` also CUDA arrays, which stay where they
are).
A Python literal is float64 in compiled code but weak in NumPy: in float32 bodies write `np.float32(0.5)`.

Index type: `i` is a signed 64-bit integer >= 0.  Numba tests every other index for wrap-around (a[-1]), which keeps loops scalar;
`nonneg(i - 1)` promises that the test is not needed.  Indices out of range are not caught, except by `.reference`.
No alias: an array that a body writes must not overlap any other argument; the compiler relies on it.  An array that
is only read may be given twice.  Two items must not write one element, except through `atomic_add`.
Error model: NumPy's.  x/0 is inf or nan, integers wrap, nothing raises; only `.reference` refuses `math.sqrt(-1.0)` and the like.

Determinism.  On one device the same bits come out whatever the number of threads and wherever an extent is cut:
no fastmath (reassociation and contraction would make an element depend on whether it falls into a vector body or its scalar
tail, so on the cut); no SVML, for the same reason; `atomic_add` takes int64 only, whose sum has no order (keep tallies in fixed
point); `@reduction` adds in an order fixed by the index alone: lane i % 32 of block i // 4096, lanes and blocks by a binary tree.
(The sum over a cut extent has other bits, unless it is put together from `blocks`.)  Between devices integers and + - * / sqrt
of float64 agree bit for bit, unless the GPU compiler fuses a*b + c; exp, log, sin ... come from different libraries and may
differ in the last bits.

Cache: compiled CPU code is kept beside the file of the body.  Numba sees only changes of that file; here the name of the
generated loop holds a digest of everything the body reaches (device functions in other files, constants), so none goes stale.
"""

from __future__ import annotations

import contextlib
import inspect
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from gewu.core.device import atomic_add, device, digest, jit, load_cuda, load_numba, nonneg
from gewu.core.errors import InputError

__all__ = ["Kernel", "Reduction", "atomic_add", "device", "kernel", "nonneg", "ordered_sum", "reduction", "share"]

R = TypeVar("R")
Extent = int | tuple[int, int]

BLOCK = 4096
LANES = 32
CUDA_THREADS = 128

_KERNEL_CPU = """
def {name}(start, stop, {args}):
    for i in prange(start, stop):
        body(nonneg(i), {args})
"""
_KERNEL_CUDA = """
def {name}(start, stop, {args}):
    i = start + cuda.grid(1)
    if i < stop:
        body(i, {args})
"""
_REDUCTION_CPU = """
def {name}(start, stop, lanes, {args}):
    for block in prange(lanes.shape[0]):
        edge = (start // BLOCK + block) * BLOCK
        low, high = max(start, edge), min(stop, edge + BLOCK)
        if high - low == BLOCK:
            for row in range(low, high, LANES):
                for lane in range(LANES):
                    lanes[block, lane] += body(nonneg(row + lane), {args})
        else:
            for i in range(low, high):
                lanes[block, nonneg(i % LANES)] += body(nonneg(i), {args})
"""
_REDUCTION_CUDA = """
def {name}(start, stop, lanes, {args}):
    block, lane = cuda.grid(1) // LANES, cuda.grid(1) % LANES
    if block < lanes.shape[0]:
        edge = (start // BLOCK + block) * BLOCK
        low, high = max(start, edge), min(stop, edge + BLOCK)
        total = 0.0
        for i in range(low + (lane - low) % LANES, high, LANES):
            total += body(i, {args})
        lanes[block, lane] = total
"""


class _Launcher(ABC, Generic[R]):
    """A body and its compiled loops; what a launch returns is R."""

    templates: ClassVar[dict[str, str]]

    def __init__(self, body: Callable[..., Any]) -> None:
        kinds = {p.kind for p in inspect.signature(body).parameters.values()}
        if kinds != {inspect.Parameter.POSITIONAL_OR_KEYWORD}:
            raise TypeError(f"{body.__name__}: a body takes i and a fixed number of positional arguments")
        self.body, self.arity = body, len(inspect.signature(body).parameters) - 1
        self._loops: dict[str, Any] = {}
        self.__doc__, self.__name__, self.__module__ = body.__doc__, body.__name__, body.__module__

    def _wrapper(self, target: str, **scope: Any) -> Any:
        """Generate the loop around the body; it poses as code of the body's file so that Numba's cache accepts it."""
        name = f"{type(self).__name__.lower()}_{self.__name__.strip('<>')}_{digest(self.body)}"
        source = self.templates[target].format(name=name, args=", ".join(f"a{k}" for k in range(self.arity)))
        code = self.body.__code__
        padded = "\n" * max(0, code.co_firstlineno - 2) + source
        scope |= {"body": jit(target, self.body), "BLOCK": BLOCK, "LANES": LANES, "__name__": __name__}
        exec(compile(padded, code.co_filename, "exec"), scope)
        return scope[name]

    def _build_cuda(self) -> Any:
        cuda = load_cuda()
        return cuda.jit(self._wrapper("cuda", cuda=cuda))

    def _build_cpu(self, *, cache: bool) -> Any:
        numba = load_numba()
        wrapper = self._wrapper("cpu", prange=numba.prange, nonneg=nonneg.compiled("cpu"))
        loop = numba.njit(parallel=True, error_model="numpy")(wrapper)
        if cache:
            with contextlib.suppress(RuntimeError):  # no file behind the body, or no writable place: compile each time
                loop.enable_caching()
        return loop

    def assembly(self, *args: Any) -> str:
        """Compile the CPU loop afresh for arguments like `args` and return its assembly, to assert that it is vectorised."""
        numba, loop = load_numba(), self._build_cpu(cache=False)
        loop.compile((numba.int64, numba.int64, *(numba.typeof(a) for a in args)))
        return "\n".join(loop.inspect_asm().values())

    def loop(self, target: str) -> Any:
        """Return the Numba dispatcher of the loop `(start, stop, ...)` for target "cpu" or "cuda"."""
        if target not in self._loops:
            self._loops[target] = self._build_cpu(cache=True) if target == "cpu" else self._build_cuda()
        return self._loops[target]

    def _run_cuda(self, start: int, stop: int, threads: int, args: tuple[Any, ...]) -> None:
        """Launch on the GPU; host arrays are copied there and, where writable, back."""
        cuda = load_cuda()
        moved = [cuda.to_device(np.ascontiguousarray(a)) if isinstance(a, np.ndarray) else a for a in args]
        self.loop("cuda")[-(-threads // CUDA_THREADS), CUDA_THREADS](start, stop, *moved)
        for host, remote in zip(args, moved, strict=True):
            if isinstance(host, np.ndarray) and host.flags.writeable:
                host[...] = remote.copy_to_host()

    def _checked(self, device: str, extent: Extent, args: tuple[Any, ...]) -> tuple[int, int]:
        start, stop = (0, extent) if isinstance(extent, (int, np.integer)) else extent
        if device not in ("reference", "cpu", "cuda"):
            raise InputError("unknown device", key="device", value=device, allowed="reference, cpu, cuda")
        if not 0 <= start <= stop:
            raise InputError(f"impossible extent of {self.__name__}", value=extent, allowed="n >= 0 or 0 <= start <= stop")
        if len(args) != self.arity:
            raise TypeError(f"{self.__name__} takes {self.arity} arguments after the extent, not {len(args)}")
        return int(start), int(stop)

    def _items(self, start: int, stop: int, args: tuple[Any, ...]) -> Iterator[tuple[int, Any]]:
        """Evaluate the body item after item in plain Python, under NumPy's error model."""
        plain = tuple(np.float64(a) if isinstance(a, float) else a for a in args)
        with np.errstate(all="ignore"):
            for i in range(start, stop):
                yield i, self.body(i, *plain)

    @abstractmethod
    def launch(self, device: str, extent: Extent, *args: Any) -> R:
        """Run the body for every i of `extent` on `device`.

        Args:
            device: "reference", "cpu" or "cuda".
            extent: number of items, or (start, stop).
            args: the arguments of the body after i.
        Raises:
            InputError: unknown device or impossible extent.
            ResourceError: no CUDA device.
        """

    def reference(self, extent: Extent, *args: Any) -> R:
        """Run in a plain Python loop, item after item."""
        return self.launch("reference", extent, *args)

    def cpu(self, extent: Extent, *args: Any) -> R:
        """Run on all Numba threads."""
        return self.launch("cpu", extent, *args)

    def cuda(self, extent: Extent, *args: Any) -> R:
        """Run on the GPU; a kernel without host arrays returns before it is done."""
        return self.launch("cuda", extent, *args)


class Kernel(_Launcher[None]):
    """A body `f(i, ...) -> None` that can be launched on any device; made by `@kernel`."""

    templates: ClassVar[dict[str, str]] = {"cpu": _KERNEL_CPU, "cuda": _KERNEL_CUDA}

    def launch(self, device: str, extent: Extent, *args: Any) -> None:
        """Run the body for every i of `extent` on `device` (see the base class for arguments and refusals)."""
        start, stop = self._checked(device, extent, args)
        if start == stop:
            return
        if device == "cpu":
            self.loop("cpu")(start, stop, *args)
        elif device == "cuda":
            self._run_cuda(start, stop, stop - start, args)
        else:
            deque(self._items(start, stop, args), maxlen=0)


class Reduction(_Launcher[float]):
    """A body `f(i, ...) -> float` whose values are summed in float64, in an order fixed by the indices; made by `@reduction`."""

    templates: ClassVar[dict[str, str]] = {"cpu": _REDUCTION_CPU, "cuda": _REDUCTION_CUDA}

    def launch(self, device: str, extent: Extent, *args: Any) -> float:
        """Return the sum of the body over `extent` on `device`; 0 when it is empty."""
        return ordered_sum(self.blocks(device, extent, *args))

    def blocks(self, device: str, extent: Extent, *args: Any) -> NDArray[np.float64]:
        """Return the sums over the aligned blocks of 4096 indices that `extent` touches (arguments as for `launch`).

        Ranks that each take `share(n, rank, size)` may concatenate their blocks in rank order and call `ordered_sum`:
        the bits are those of one rank.
        """
        start, stop = self._checked(device, extent, args)
        if start == stop:
            return np.zeros(0)
        lanes = np.zeros((-(-stop // BLOCK) - start // BLOCK, LANES))
        if device == "cpu":
            self.loop("cpu")(start, stop, lanes, *args)
        elif device == "cuda":
            self._run_cuda(start, stop, lanes.size, (lanes, *args))
        else:
            for i, value in self._items(start, stop, args):
                lanes[i // BLOCK - start // BLOCK, i % LANES] += value
        while lanes.shape[1] > 1:
            lanes = lanes[:, 0::2] + lanes[:, 1::2]
        return lanes[:, 0]

    def assembly(self, *args: Any) -> str:
        """Compile the CPU loop afresh for arguments like `args` and return its assembly."""
        return super().assembly(np.zeros((1, LANES)), *args)


def kernel(body: Callable[..., None]) -> Kernel:
    """Make a body `f(i, ...)` launchable on every device (see the module's text for what it may use)."""
    return Kernel(body)


def reduction(body: Callable[..., Any]) -> Reduction:
    """Make a body `f(i, ...) -> float` summable on every device."""
    return Reduction(body)


def ordered_sum(block_sums: NDArray[np.float64]) -> float:
    """Add numbers by a binary tree over their positions; 0 for none."""
    values = np.asarray(block_sums, np.float64)
    while values.size > 1:
        values = np.append(values, 0.0) if values.size % 2 else values
        values = values[0::2] + values[1::2]
    return float(values[0]) if values.size else 0.0


def share(n: int, rank: int, size: int) -> tuple[int, int]:
    """Return the (start, stop) of `rank` among `size` ranks over n items, cut at block edges; it may be empty."""
    blocks = -(-n // BLOCK)
    return min(n, blocks * rank // size * BLOCK), min(n, blocks * (rank + 1) // size * BLOCK)
