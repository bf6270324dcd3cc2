"""What a program becomes before it is called: steps (nests, copies, matrix products), their text, and their machine code."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gewu.core.errors import InputError
from gewu.ops import contract, llvm, transpose
from gewu.ops.lower import Module
from gewu.ops.nest import Nest
from gewu.ops.nest_parts import Access, Choice, Function, Sizes
from gewu.ops.rewrite import Axes, Graph, walk
from gewu.ops.sizes import Ceil, Size
from gewu.ops.stage import Staged, stage
from gewu.ops.tensor import MATH, Apply, Assign, Expression, Gather, Load, Program, Reduce, Scalar
from gewu.ops.tile import TileNest
from gewu.ops.window import Tiled

GRAIN: Final = 1 << 15
"""Points of work, weighed by what is computed in each, that a range for a thread has at least."""
ALONE: Final = 1 << 17
"""Points of work, weighed by what is computed in each, below which a second thread does not pay."""
DEEP: Final = 1 << 11
"""Points of a sum up to which the columns of a tile stay in the second-level cache."""
CACHED: Final = 1 << 22
"""Elements of the left side of a product that stay in the last-level cache."""
HEAVY: Final = frozenset(MATH) | {"ex2", "lg2", "sin", "cos", "tanh", "div", "sqrt", "rsqrt", "rcp"}
FORMS: Final = {
    "tiles": "column reduction",
    "single": "scalar",
    "transpose": "transpose",
    "registers": "tiles of registers",
}
"""What kinds of nests are called where they are described."""
_PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


@dataclass(frozen=True, slots=True)
class Step:
    """A loop nest to run: its function, the group it came from, and the points of work in it."""

    function: Function
    assigns: tuple[Assign, ...]
    work: tuple[tuple[Size, ...], ...]
    weight: int

    @property
    def accesses(self) -> tuple[Access, ...]:
        """What it reads and writes."""
        return self.function.accesses

    @property
    def axes(self) -> Axes:
        """The axes of its outputs."""
        return self.assigns[0].axes

    def describe(self) -> str:
        """Return one line saying what this became."""
        written = ", ".join(str(a.buffer) for a in self.assigns)
        reduced = any(isinstance(e, Reduce) for e in walk([a.value for a in self.assigns]))
        form = {"tiles": "column reduction", "single": "scalar", "transpose": "transpose", "registers": "tiles of registers"}.get(
            self.function.kind, "nest"
        )
        return f"buffer {written}: {'row reduction' if reduced and form == 'nest' else form}"


@dataclass(frozen=True, slots=True)
class ProductStep:
    """A matrix product to run."""

    product: contract.Product
    accesses: tuple[Access, ...]

    @property
    def axes(self) -> Axes:
        """The axes of its output."""
        return (*self.product.batch, *self.product.rows, *self.product.columns)

    def describe(self) -> str:
        """Return one line saying what this is."""
        return f"buffer {self.product.out.buffer}: matrix product"


def arguments_of(program: Program) -> tuple[int, dict[int, str], set[str]]:
    """Return the number of arguments that a program uses, its scalars' types, and the launch integers in its sizes."""
    roots: list[Expression] = [a.value for a in program.assigns]
    used, scalars, names = {a.buffer for a in program.assigns}, {}, set()
    sizes: list[Size] = [
        s for a in program.assigns for s in (*(n for _, n in a.axes), *_sizes(a.index), *(s for w in a.where for s in _sizes(w)))
    ]
    for e in walk(roots):
        match e:
            case Load():
                used.add(e.buffer)
                sizes += [*_sizes(e.index), *(s for w in e.where for s in _sizes(w))]
            case Gather():
                used.add(e.buffer)
            case Scalar():
                scalars[e.argument] = e.type
            case Reduce():
                sizes += [*(n for _, n in e.axes), *(s for w in e.where for s in _sizes(w))]
            case _ if hasattr(e, "value"):
                sizes += _sizes(e.value)
    for size in sizes:
        _names(size, names)
    return max([*used, *scalars], default=-1) + 1, scalars, names


def _sizes(index: Any) -> list[Size]:
    return [*(s for _, s in index.terms), index.offset]


def _names(size: Size, names: set[str]) -> None:
    for _, factors in size.terms:
        for factor in factors:
            if isinstance(factor, Ceil):
                _names(factor.numerator, names)
                _names(factor.denominator, names)
            else:
                names.add(factor)


@dataclass(frozen=True, slots=True)
class Form:
    """How a program is staged and generated: see `stage` and `Nest`."""

    split: bool = False
    hoist: bool = True
    blas: bool = True
    tiles: bool = False


@dataclass(frozen=True, slots=True)
class Built:
    """LLVM text of all nests of a program, the steps in order, the sizes that nests read, and the slots of an argument block."""

    text: str
    steps: list[Step | ProductStep]
    sizes: Sizes
    staged: Staged
    copies: dict[int, int]
    slots: int


def build(program: Program, form: Form, choice: Choice, count: int) -> Built:
    """Stage a program of `count` arguments and generate its nests."""
    graph, module, sizes = Graph(), Module(), Sizes()
    staged = stage(graph, program, count, split=form.split, blas=form.blas, tiles=form.tiles)
    first = count + len(staged.temporaries)
    copies = {buffer: first + place for place, buffer in enumerate(staged.copies)}
    flag = first + len(copies)
    steps: list[Step | ProductStep] = []
    texts = []
    for place, group in enumerate(staged.groups):
        if isinstance(group, contract.Product):
            steps.append(ProductStep(group, group.accesses(copies)))
            continue
        name, more = f"nest{place}", {"slots": copies, "flag": flag, "choice": choice, "hoist": form.hoist}
        if isinstance(group, Tiled):
            function, group = TileNest(group, graph, module, sizes, name, group.assigns, **more).build(), group.assigns
        elif len(group) == 1 and transpose.crossing(group[0]):
            function = transpose.build(module, sizes, name, group[0], copies)
        else:
            function = Nest(graph, module, sizes, name, group, **more).build()
        texts.append(function.text)
        heavy = sum(isinstance(e, Apply) and e.op in HEAVY for e in walk([a.value for a in group]))
        steps.append(Step(function, tuple(group), _work(graph, group), 1 + 4 * heavy))
    return Built("\n".join([module.text(), *texts]) if texts else "", steps, sizes, staged, copies, flag + 1)


def _work(graph: Graph, group: list[Assign]) -> tuple[tuple[Size, ...], ...]:
    """Return products whose sum estimates the points of a group: its outputs, and each reduction where it is computed."""
    outer = group[0].axes
    found: dict[tuple[Size, ...], None] = {tuple(size for _, size in outer): None}
    for e in walk([a.value for a in group]):
        if isinstance(e, Reduce):
            free = graph.free[id(e)]
            found[(*(size for axis, size in outer if axis in free), *(size for _, size in e.axes))] = None
    return tuple(found)


@dataclass(slots=True)
class Variant:
    """One compiled form of a program."""

    built: Built
    library: llvm.Library | None
    calls: list[Any]
    gathers: tuple[tuple[int, str], ...]


def compile_form(program: Program, form: Form, choice: Choice, cache: Path | None, count: int) -> Variant:
    """Stage, generate and compile a program of `count` arguments in one form.

    Raises:
        InputError: the expressions are nested too deeply.
    """
    try:
        built = build(program, form, choice, count)
    except RecursionError:
        raise InputError("this program is nested too deeply", key=program.name) from None
    library = llvm.jit(built.text, cache=cache) if built.text else None
    nests = [s.function.name if isinstance(s, Step) else "" for s in built.steps]
    calls = [_PROTOTYPE(library.address(name)) if name and library else None for name in nests]
    gathers = tuple(dict.fromkeys(entry for entry in built.sizes.entries if isinstance(entry, tuple)))
    return Variant(built, library, calls, gathers)


def starved(step: Step, launch: Mapping[str, int], threads: int) -> bool:
    """Tell whether a reduction has too few outputs to keep all threads busy."""
    units = -(-step.function.extent.value(launch) // step.function.unit)
    few = step.function.kind in ("rows", "tiles") and units < 2 * threads
    return few and len(step.work) > 1 and points(step, launch) > 2 * GRAIN


def hollow(step: Step, launch: Mapping[str, int]) -> bool:
    """Tell whether a sum that would be computed in tiles has no points, so that its arrays have no places either."""
    reductions = [e for e in walk([a.value for a in step.assigns]) if isinstance(e, Reduce)]
    return step.function.kind == "registers" and any(size.value(launch) <= 0 for e in reductions for _, size in e.axes)


def ranges(step: Step, launch: Mapping[str, int], threads: int) -> list[tuple[int, int]]:
    """Cut the outermost loop of a step into ranges for threads, each worth more than waking one."""
    function = step.function
    units = -(-function.extent.value(launch) // function.unit)
    work = points(step, launch) * step.weight
    pieces = min(8 * threads, work // GRAIN + 1, units) if threads > 1 and work > ALONE else 1
    if pieces <= 1:
        return [(0, units)]
    length = -(-units // pieces)
    if function.kind == "elements" and len(step.work) == 1:
        length = -(-length // 1024) * 1024
    return [(lo, min(lo + length, units)) for lo in range(0, units, length)]


def small(product: contract.Product, launch: Mapping[str, int]) -> bool:
    """Tell whether a call of BLAS would cost more than it saves."""
    counts = []
    for axes in (product.rows, product.columns, product.inner):
        count = 1
        for _, size in axes:
            count *= size.value(launch)
        counts.append(count)
    return min(counts[:2]) < 4 or counts[0] * counts[1] * counts[2] < 1 << 14


def middling(product: contract.Product, launch: Mapping[str, int]) -> bool:
    """Tell whether tiles read the sides of a product from the caches, so that `gemm`'s packing in blocks does not pay."""
    rows, inner = (math.prod(size.value(launch) for _, size in axes) for axes in (product.rows, product.inner))
    return inner <= DEEP and rows * inner <= CACHED


def points(step: Step, launch: Mapping[str, int]) -> int:
    """Return how many points of outputs and reductions a step works on."""
    total = 0
    for factors in step.work:
        product = 1
        for size in factors:
            product *= size.value(launch)
        total += product
    return total
