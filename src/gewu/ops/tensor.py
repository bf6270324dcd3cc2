"""What a kernel computes, as loops over whole arrays: the form that lifting arrives at and that emitters start from.

    program    = assign ...
    assign     : for every point of `axes` (where `where` >= 0): buffer[index] = value
    expression = Load | Gather | Constant | Scalar | Index | Apply | Reduce

Nothing is said about threads, blocks, tiles or shared memory: those were the way, this is the result.  Every read is of the state
before the program; `lift` makes sure that this is the same thing.  Values are bits with types as in `ir`; an `Apply` converts
nothing by itself (bits are taken as its type says).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gewu.ops.sizes import Affine, Size

MATH: Final = (
    "exp",
    "expm1",
    "log",
    "log1p",
    "erf",
    "erfc",
    "tanh",
    "sinh",
    "cosh",
    "sigmoid",
    "pow",
    "floor",
    "ceil",
    "round",
    "trunc",
)
"""Functions that an `Apply` may name besides the pure operations of `ir`: what compilers spell out, recognised and put back."""
REDUCTIONS: Final = ("add", "mul", "max", "min")


@dataclass(frozen=True, slots=True)
class Load:
    """An element of an array argument: `buffer` is the number of the argument, `index` counts elements of `type`.

    `where`: reads 0 unless all of these are >= 0 (padding).
    """

    buffer: int
    type: str
    index: Affine
    where: tuple[Affine, ...] = ()


@dataclass(frozen=True, slots=True)
class Gather:
    """An element whose place depends on data: `place` is an integer expression (b64), counted in elements of `type`."""

    buffer: int
    type: str
    place: Expression


@dataclass(frozen=True, slots=True)
class Constant:
    """A number: its type and raw bits."""

    type: str
    bits: int


@dataclass(frozen=True, slots=True)
class Scalar:
    """A scalar argument of the launch, by number; `type` f32, f64, s32 ... as it is used."""

    argument: int
    type: str


@dataclass(frozen=True, slots=True)
class Index:
    """The value of an index as an integer of `type`."""

    type: str
    value: Affine


@dataclass(frozen=True, slots=True)
class Apply:
    """A pure operation of `ir` (same order of sources and meaning of modifiers) or one of MATH."""

    op: str
    type: str
    args: tuple[Expression, ...]
    mods: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reduce:
    """Combine `body` over all points of `axes` (where `where` >= 0) with `kind`, one of REDUCTIONS, in `type`."""

    kind: str
    type: str
    axes: tuple[tuple[str, Size], ...]
    body: Expression
    where: tuple[Affine, ...] = ()


Expression = Load | Gather | Constant | Scalar | Index | Apply | Reduce


@dataclass(frozen=True, slots=True)
class Assign:
    """Write `value` (of `type`) to buffer[index] at every point of `axes`; axes are ordered slow to fast in the output."""

    buffer: int
    type: str
    axes: tuple[tuple[str, Size], ...]
    index: Affine
    value: Expression
    where: tuple[Affine, ...] = ()


@dataclass(frozen=True, slots=True)
class Program:
    """Assignments that may run in any order; `name` of the kernel. All axes in a program have different names."""

    name: str
    assigns: tuple[Assign, ...]
