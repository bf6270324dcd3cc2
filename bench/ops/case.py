"""What a benchmarked kernel is: its class, its launch at four sizes, what it should compute, and how much that is.

An `Operator` describes a class once: shapes, arguments, reference. A `Style` is one way in which our CUDA writes it. A `Case` is
both together. References are NumPy in float64 and are as long as the formula is; nothing here knows of gewu.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

KERNELS: Final = Path(__file__).resolve().parent / "kernels"
SIZES: Final = ("tiny", "small", "medium", "large")
"""`tiny` is ragged and quick in an interpreter, `small` stays in a cache, `large` comes from memory."""

Shape = tuple[int, ...]
Arguments = list[Any]
Geometry = tuple[tuple[int, int, int], tuple[int, int, int], int]


@dataclass(frozen=True)
class Launch:
    """One call: grid, block, bytes of dynamic shared memory, arguments (arrays and NumPy scalars), the written ones' places."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    args: Arguments
    outputs: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True)
class Style:
    """One kernel of a class: name, launch geometry from the shape; what differs from the class where something does."""

    name: str
    geometry: Callable[[Shape], Geometry]
    tiny: Shape | None = None
    inputs: Callable[[np.random.Generator, Shape], Arguments] | None = None
    outputs: tuple[int, ...] | None = None
    reference: Callable[..., tuple[np.ndarray, ...]] | None = None
    precision: float = 6e-8


@dataclass(frozen=True)
class Operator:
    """One class.

    Attributes:
        name: the class.
        file: the CUDA file under `kernels/`.
        sizes: shape for each of SIZES; what its numbers mean, `inputs` says.
        inputs: arguments of the kernel for a shape.
        outputs: which arguments it writes.
        reference: expected contents of the outputs, from the arguments before the call.
        styles: its kernels; the last one is the optimised one that records quote.
        flops: floating-point operations of a call.
        length: terms of the longest sum.
    """

    name: str
    file: str
    sizes: tuple[Shape, Shape, Shape, Shape]
    inputs: Callable[[np.random.Generator, Shape], Arguments]
    outputs: tuple[int, ...]
    reference: Callable[..., tuple[np.ndarray, ...]]
    styles: tuple[Style, ...]
    flops: Callable[[Shape], float]
    length: Callable[[Shape], int] = lambda shape: 1


@dataclass(frozen=True)
class Case:
    """One kernel of one class."""

    operator: Operator
    detail: Style

    @property
    def cls(self) -> str:
        """The class."""
        return self.operator.name

    @property
    def style(self) -> str:
        """The style."""
        return self.detail.name

    @property
    def file(self) -> Path:
        """The CUDA source."""
        return KERNELS / self.operator.file

    @property
    def kernel(self) -> str:
        """The name of the entry point."""
        return f"{self.cls}_{self.style}"

    def make(self, size: str, rng: np.random.Generator) -> Launch:
        """Return a launch at one of SIZES with random data."""
        shape = self.operator.sizes[SIZES.index(size)]
        if size == "tiny" and self.detail.tiny is not None:
            shape = self.detail.tiny
        args = (self.detail.inputs or self.operator.inputs)(rng, shape)
        outputs = self.operator.outputs if self.detail.outputs is None else self.detail.outputs
        grid, block, shared = self.detail.geometry(shape)
        return Launch(grid, block, shared, args, outputs, shape)

    def reference(self, args: Arguments) -> tuple[np.ndarray, ...]:
        """Return what the outputs should hold after a call with `args`."""
        return (self.detail.reference or self.operator.reference)(*args)

    def tolerance(self, launch: Launch) -> float:
        """Return the error that rounding may leave: some units of the last place, growing as the square root of a sum's length.

        The factor 8 covers functions of a few units in the last place, and sums of numbers of one sign.
        """
        return self.detail.precision * 8 * (4 + self.operator.length(launch.shape) ** 0.5)

    def flops_bytes(self, launch: Launch) -> tuple[float, int]:
        """Return floating-point operations and the least traffic: each array once, arrays that are read and written twice."""
        arrays = [(i, a) for i, a in enumerate(launch.args) if isinstance(a, np.ndarray)]
        return self.operator.flops(launch.shape), sum(a.nbytes for _, a in arrays)


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Return the largest difference, relative to the element plus the root mean square; infinite where one has a NaN alone.

    Integers count as wrong (1) or right (0), but 8-bit ones may be off by one where a number lies on the edge between two: a
    thousandth of their share counts. bfloat16 comes as uint16 and is compared as what it means when `want` is a float.
    """
    if want.dtype == np.int8 and got.shape == want.shape:
        apart = np.abs(got.astype(np.int16) - want)
        return 1.0 if apart.max() > 1 else float(np.mean(apart)) / 1000
    if not np.issubdtype(want.dtype, np.floating):
        return float(not np.array_equal(got, want))
    values = (got.astype(np.uint32) << 16).view(np.float32) if got.dtype == np.uint16 else got
    if got.shape != want.shape or not np.array_equal(np.isnan(values), np.isnan(want)):
        return float("inf")
    if want.size == 0:
        return 0.0
    scale = np.abs(want) + np.sqrt(np.mean(np.square(want), dtype=np.float64)) + np.finfo(np.float32).tiny
    return float(np.nanmax(np.abs(values.astype(np.float64) - want) / scale))


def line(count: int, threads: int = 256) -> Geometry:
    """Return a one-dimensional launch of at least `count` threads."""
    return (-(-count // threads), 1, 1), (threads, 1, 1), 0


def blocks(count: int, threads: int = 128, shared: int = 0) -> Geometry:
    """Return a launch of `count` blocks."""
    return (count, 1, 1), (threads, 1, 1), shared


def plane(columns: int, rows: int, depth: int = 1, block: tuple[int, int] = (16, 16)) -> Geometry:
    """Return a launch that covers columns × rows × depth points."""
    return (-(-columns // block[0]), -(-rows // block[1]), depth), (*block, 1), 0


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return normally distributed numbers in float32."""
    return rng.standard_normal(shape, dtype=np.float32)


def empty(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Return an output array, filled so that what was not written shows."""
    return np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else 99, dtype)


def ints(*values: int) -> list[np.int32]:
    """Return sizes as a kernel takes them."""
    return [np.int32(v) for v in values]
