"""What nests have in common with those who call them: choices of the tuner, runtime sizes, accesses, finished functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from gewu.ops.ir import WIDTH
from gewu.ops.lower import number
from gewu.ops.rewrite import Axes
from gewu.ops.sizes import Affine, Size
from gewu.ops.tensor import Reduce

STRIDED: Final = 8.0
"""What a step to another cache line costs, where one to the next element costs 1."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the tuner may change.

    Attributes:
        tile: elements in a tile of accumulators.
        unroll: reduction steps in one pass over a tile.
        interleave, width: vectors in flight and elements of a vector (0: LLVM's choice).
        threads: how many may work at a time (0: as the program was compiled for).
        blas: 0 to make matrix products by nests.
    """

    tile: int = 512
    unroll: int = 4
    interleave: int = 0
    width: int = 0
    threads: int = 0
    blas: int = 1


@dataclass(slots=True)
class Sizes:
    """The runtime sizes of a program in the order in which functions find them; a pair (argument, type) asks for its length."""

    entries: list[Size | tuple[int, str]] = field(default_factory=list)

    def place(self, entry: Size | tuple[int, str]) -> int:
        """Return the place of an entry, added when new."""
        if entry not in self.entries:
            self.entries.append(entry)
        return self.entries.index(entry)


@dataclass(frozen=True, slots=True)
class Access:
    """One access that the code makes: over all points of `axes` where all of `where` are >= 0."""

    slot: int
    type: str
    index: Affine
    axes: Axes
    where: tuple[Affine, ...]
    write: bool


@dataclass(frozen=True, slots=True)
class Function:
    """A finished nest: its text, its accesses, and what its outermost loop counts: `extent`, in units of `unit` elements."""

    name: str
    text: str
    accesses: tuple[Access, ...]
    extent: Size
    unit: int
    kind: str


@dataclass(slots=True)
class Bounds:
    """From where to where an innermost loop runs, and its number; the end may be changed while the code inside is made."""

    lo: str
    hi: str
    number: int


@dataclass(eq=False, slots=True)
class Level:
    """A loop (or a condition) that is open: its axes and the code inside it so far."""

    axes: dict[str, Size]
    lines: list[str]
    where: tuple[Affine, ...] = ()
    bounds: Bounds | None = None


def step_cost(index: Affine, axis: str) -> float:
    """Return what one step along an axis costs where memory is walked by an index map: a share of a cache line, at most all."""
    stride = index.stride(axis).constant
    return STRIDED if stride is None else min(abs(stride), STRIDED) if stride else 0.05


def accumulator(e: Reduce) -> tuple[str, str]:
    """Return the type in which a reduction accumulates (float32 for the half types) and its starting value as a literal."""
    kind = "f32" if e.type in ("f16", "bf16") else e.type
    if e.kind in ("add", "mul"):
        return kind, number(kind, 1 if e.kind == "mul" else 0)
    if kind in ("f32", "f64"):
        return kind, number(kind, float("-inf") if e.kind == "max" else float("inf"))
    width = WIDTH[kind]
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if kind[0] == "s" else (0, (1 << width) - 1)
    return kind, str(low if e.kind == "max" else high)


def hints(choice: Choice, names: Iterator[int], metadata: list[str]) -> str:
    """Return what the jump back of a loop tells the vectoriser; the nodes it refers to are added to `metadata`."""
    wanted = {"interleave.count": choice.interleave, "vectorize.width": choice.width}
    if not any(wanted.values()):
        return ""
    first = next(names)
    nodes = [f"!{first}"]
    for key, value in wanted.items():
        if value:
            node = next(names)
            nodes.append(f"!{node}")
            metadata.append(f'!{node} = !{{!"llvm.loop.{key}", i32 {value}}}')
    metadata.append(f"!{first} = distinct !{{{', '.join(nodes)}}}")
    return f", !llvm.loop !{first}"
