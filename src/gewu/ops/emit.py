"""Compile a program for this processor and run it on arrays.

A program is staged into groups, each group becomes a call of BLAS (`contract`) or a loop nest (`nest`), all nests of a program
are one LLVM module. A call checks once per launch and set of array lengths that every access is inside its array, and at each
call that no output overlaps what is read elsewhere. Work above a threshold is cut into ranges that a standing set of threads
takes one by one.

Arrays are raw memory: an index counts elements of the access's own type from the first byte.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.ops import contract, llvm, transpose
from gewu.ops.bounds import span
from gewu.ops.ir import WIDTH
from gewu.ops.lower import Module
from gewu.ops.nest import Access, Choice, Function, Nest, Sizes
from gewu.ops.pool import THREADS, run_ranges
from gewu.ops.rewrite import Axes, Graph, walk
from gewu.ops.sizes import Ceil, Size
from gewu.ops.stage import Staged, Temporary, stage
from gewu.ops.tensor import MATH, Apply, Assign, Expression, Gather, Load, Program, Reduce, Scalar

GRAIN: Final = 1 << 17
"""Points of work, weighed by what is computed in each, below which a second thread does not pay."""
HEAVY: Final = frozenset(MATH) | {"ex2", "lg2", "sin", "cos", "tanh", "div", "sqrt", "rsqrt", "rcp"}
_PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


class Overlap(InputError):
    """An output shares memory with an input that is read elsewhere: this form of the program cannot be used for the call."""


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
        form = {"tiles": "column reduction", "single": "scalar", "transpose": "transpose"}.get(self.function.kind, "nest")
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


@dataclass(slots=True)
class _Variant:
    """One compiled form of a program."""

    built: Built
    library: llvm.Library | None
    calls: list[Any]
    gathers: tuple[tuple[int, str], ...]


@dataclass(slots=True)
class _Prepared:
    """What depends on launch and array lengths only."""

    variant: _Variant
    sizes: Any
    runs: list[tuple[Any, list[tuple[int, int]] | None]]
    temporaries: list[tuple[int, Any]]
    spans: dict[tuple[int, bool], tuple[int, int]]
    threads: int


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


@dataclass(frozen=True, slots=True)
class Built:
    """LLVM text of all nests of a program, the steps in order, the sizes that nests read, and the slots of an argument block."""

    text: str
    steps: list[Step | ProductStep]
    sizes: Sizes
    staged: Staged
    copies: dict[int, int]
    slots: int


def build(program: Program, form: Form, choice: Choice) -> Built:
    """Stage a program and generate its nests."""
    graph, module, sizes = Graph(), Module(), Sizes()
    count, _, _ = arguments_of(program)
    staged = stage(graph, program, count, split=form.split, blas=form.blas)
    first = count + len(staged.temporaries)
    copies = {buffer: first + place for place, buffer in enumerate(staged.copies)}
    flag = first + len(copies)
    steps: list[Step | ProductStep] = []
    texts = []
    for place, group in enumerate(staged.groups):
        if isinstance(group, contract.Product):
            steps.append(ProductStep(group, group.accesses(copies)))
            continue
        function = _function(graph, module, sizes, f"nest{place}", group, copies, flag, form, choice)
        texts.append(function.text)
        heavy = sum(isinstance(e, Apply) and e.op in HEAVY for e in walk([a.value for a in group]))
        steps.append(Step(function, tuple(group), _work(graph, group), 1 + 4 * heavy))
    return Built("\n".join([module.text(), *texts]) if texts else "", steps, sizes, staged, copies, flag + 1)


def _function(
    graph: Graph,
    module: Module,
    sizes: Sizes,
    name: str,
    group: list[Assign],
    copies: dict[int, int],
    flag: int,
    form: Form,
    choice: Choice,
) -> Function:
    if len(group) == 1 and transpose.crossing(group[0]):
        return transpose.build(module, sizes, name, group[0], copies)
    return Nest(graph, module, sizes, name, group, slots=copies, flag=flag, choice=choice, hoist=form.hoist).build()


def _work(graph: Graph, group: list[Assign]) -> tuple[tuple[Size, ...], ...]:
    """Return products whose sum estimates the points of a group: its outputs, and each reduction where it is computed."""
    outer = group[0].axes
    found: dict[tuple[Size, ...], None] = {tuple(size for _, size in outer): None}
    for e in walk([a.value for a in group]):
        if isinstance(e, Reduce):
            free = graph.free[id(e)]
            found[(*(size for axis, size in outer if axis in free), *(size for _, size in e.axes))] = None
    return tuple(found)


class Executable:
    """A compiled program; call it with the kernel's arguments and the integers of the launch.

    Attributes:
        text: the LLVM text of its nests.
        plan: one line for each step.
    """

    def __init__(self, program: Program, threads: int | None, cache: Path | None, choice: Choice | None) -> None:
        self.program, self.threads, self.cache, self.choice = program, threads or THREADS, cache, choice
        self._count, self._scalars, names = arguments_of(program)
        self._names = tuple(sorted(names))
        self._outputs = tuple(sorted({a.buffer for a in program.assigns}))
        self._variants: dict[tuple[Form, Choice], _Variant] = {}
        self._prepared: dict[object, _Prepared] = {}
        self._aliased: dict[tuple[tuple[int, int], ...], Executable | None] = {}
        first = self._variant(Form(), choice or Choice())
        self.text, self.plan = first.built.text, [step.describe() for step in first.built.steps]

    def steps(self, form: Form) -> list[Step | ProductStep]:
        """Return the steps of a form with the default choice."""
        return self._variant(form, self.choice or Choice()).built.steps

    def _variant(self, form: Form, choice: Choice) -> _Variant:
        key = form, replace(choice, threads=0, blas=1)
        if key not in self._variants:
            try:
                built = build(self.program, form, choice)
            except RecursionError:
                raise InputError("this program is nested too deeply", key=self.program.name) from None
            library = llvm.jit(built.text, cache=self.cache) if built.text else None
            nests = [s.function.name if isinstance(s, Step) else "" for s in built.steps]
            calls = [_PROTOTYPE(library.address(name)) if name and library else None for name in nests]
            gathers = tuple(dict.fromkeys(entry for entry in built.sizes.entries if isinstance(entry, tuple)))
            self._variants[key] = _Variant(built, library, calls, gathers)
        return self._variants[key]

    def _chosen(self, launch: Mapping[str, int]) -> Choice:
        """Return the choice given, else the one that was tuned for sizes like these, else the default."""
        if self.choice is None and self.cache is not None:
            from gewu.ops.tune import stored  # it compiles programs itself

            return stored(self.cache, self.program, launch) or Choice()
        return self.choice or Choice()

    def __call__(self, args: Sequence[Any], launch: Mapping[str, int]) -> None:
        """Run on arrays and NumPy scalars, in the order of the kernel's arguments.

        Raises:
            InputError: an argument that is too short, read-only or of the wrong kind; a gather out of bounds.
            Overlap: an output overlaps an input that is read elsewhere.
        """
        pointers, lengths = self._pack(args)
        try:
            key = (tuple([launch[n] for n in self._names]), tuple(lengths))
        except KeyError as error:
            raise InputError("the launch lacks a value that sizes need", key=self.program.name, value=error.args[0]) from None
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._prepare(launch, lengths)
            if len(self._prepared) > 256:
                self._prepared.clear()
            self._prepared[key] = prepared
        aliases = self._overlaps(pointers, prepared)
        if aliases:
            self._in_place(aliases)(args, launch)
            return
        self._run(pointers, lengths, prepared)

    def _pack(self, args: Sequence[Any]) -> tuple[list[int], list[int]]:
        if len(args) < self._count:
            raise InputError("too few arguments", key=self.program.name, value=len(args), allowed=f"at least {self._count}")
        pointers, lengths = [], []
        for place in range(self._count):
            a = args[place]
            if isinstance(a, np.ndarray) and place not in self._scalars:
                if not a.flags.c_contiguous or (place in self._outputs and not a.flags.writeable):
                    what = "is read-only" if a.flags.c_contiguous else "is not contiguous"
                    raise InputError(f"argument {place} {what}", key=self.program.name)
                pointers.append(a.ctypes.data)
                lengths.append(a.nbytes)
            elif place in self._scalars:
                pointers.append(_bits(a, self._scalars[place]))
                lengths.append(-1)
            else:
                pointers.append(0)
                lengths.append(0)
        return pointers, lengths

    def _prepare(self, launch: Mapping[str, int], lengths: list[int]) -> _Prepared:
        choice = self._chosen(launch)
        threads = choice.threads or self.threads
        form = self._form(launch, choice, threads)
        try:
            variant = self._variant(form, choice)
            spans = self._spans(variant, launch, lengths)
        except InputError:
            variant = self._variant(replace(form, hoist=False), choice)
            spans = self._spans(variant, launch, lengths)
        values = [self._value(entry, launch, lengths) for entry in variant.built.sizes.entries]
        for buffer, kind in variant.gathers:
            if buffer < self._count and lengths[buffer] * 8 < WIDTH[kind]:
                raise InputError(f"argument {buffer} is empty", key=self.program.name)
        sizes = (ctypes.c_int64 * max(len(values), 1))(*values)
        runs: list[tuple[Any, list[tuple[int, int]] | None]] = []
        for call, step in zip(variant.calls, variant.built.steps, strict=True):
            if any(size.value(launch) <= 0 for _, size in step.axes):
                continue
            if isinstance(step, ProductStep):
                runs.append((contract.prepare(step.product, launch), None))
            else:
                runs.append((call, _ranges(step, launch, threads)))
        temporaries: list[tuple[int, Any]] = [(t.buffer, _scratch(t, launch)) for t in variant.built.staged.temporaries]
        return _Prepared(variant, sizes, runs, temporaries, spans, threads)

    def _value(self, entry: Size | tuple[int, str], launch: Mapping[str, int], lengths: list[int]) -> int:
        if isinstance(entry, Size):
            return entry.value(launch)
        return lengths[entry[0]] * 8 // WIDTH[entry[1]] if entry[0] < self._count else 0

    def _form(self, launch: Mapping[str, int], choice: Choice, threads: int) -> Form:
        """Choose the form for these sizes: small products as nests, reductions in parts where outputs are few."""
        form = Form(blas=bool(choice.blas))
        steps = self._variant(form, choice).built.steps
        if any(isinstance(s, ProductStep) and _small(s.product, launch) for s in steps):
            form = replace(form, blas=False)
            steps = self._variant(form, choice).built.steps
        if threads > 1 and any(isinstance(s, Step) and _starved(s, launch, threads) for s in steps):
            form = replace(form, split=True)
        return form

    def _spans(self, variant: _Variant, launch: Mapping[str, int], lengths: list[int]) -> dict[tuple[int, bool], tuple[int, int]]:
        """Check every access; return for each argument the bytes read and written."""
        spans: dict[tuple[int, bool], tuple[int, int]] = {}
        back = {slot: buffer for buffer, slot in variant.built.copies.items()}
        for step in variant.built.steps:
            if any(size.value(launch) <= 0 for _, size in step.axes):
                continue
            for access in step.accesses:
                buffer = back.get(access.slot, access.slot)
                if buffer >= self._count:
                    continue
                self._check(access, buffer, launch, lengths, spans)
        return spans

    def _check(
        self,
        access: Access,
        buffer: int,
        launch: Mapping[str, int],
        lengths: list[int],
        spans: dict[tuple[int, bool], tuple[int, int]],
    ) -> None:
        size = WIDTH[access.type] // 8
        touched = span(access, launch, lengths[buffer] // size)
        if touched is None:
            return
        low, high = touched[0] * size, touched[1] * size + size
        if low < 0 or high > lengths[buffer]:
            need = f"bytes {low} to {high}" if low < 0 else f"{high} bytes"
            raise InputError(f"argument {buffer} is too small: {need} are needed", key=self.program.name, value=lengths[buffer])
        before = spans.get((buffer, access.write), (low, high))
        spans[buffer, access.write] = (min(before[0], low), max(before[1], high))

    def _overlaps(self, pointers: list[int], prepared: _Prepared) -> tuple[tuple[int, int], ...]:
        """Return pairs (input, output) that are one array, after refusing any other overlap."""
        spans, pairs = prepared.spans, []
        for out in self._outputs:
            written = spans.get((out, True))
            if written is None:
                continue
            low, high = pointers[out] + written[0], pointers[out] + written[1]
            for (other, _), (start, end) in spans.items():
                if other == out or pointers[other] + end <= low or high <= pointers[other] + start:
                    continue
                if pointers[other] != pointers[out] or other in self._outputs:
                    raise Overlap(f"arguments {other} and {out} overlap", key=self.program.name)
                pairs.append((other, out))
        return tuple(dict.fromkeys(pairs))

    def _in_place(self, aliases: tuple[tuple[int, int], ...]) -> Executable:
        """Return the form of the program for inputs that are also outputs; only element by element is that allowed."""
        if aliases not in self._aliased:
            program = _merged(self.program, dict(aliases))
            compiled = Executable(program, self.threads, self.cache, self.choice)
            copies = compiled._variant(Form(), Choice()).built.copies
            self._aliased[aliases] = None if copies else compiled
        found = self._aliased[aliases]
        if found is None:
            names = ", ".join(f"{i} and {o}" for i, o in aliases)
            raise Overlap(
                f"arguments {names} are one array, but elements are read after others are written", key=self.program.name
            )
        return found

    def _run(self, pointers: list[int], lengths: list[int], prepared: _Prepared) -> None:
        built = prepared.variant.built
        block = (ctypes.c_uint64 * built.slots)(*pointers)
        for buffer, scratch in prepared.temporaries:
            block[buffer] = scratch.ctypes.data
        keep = []
        for buffer, slot in built.copies.items():
            copy = np.frombuffer(ctypes.string_at(pointers[buffer], lengths[buffer]), np.uint8)
            keep.append(copy)
            block[slot] = copy.ctypes.data
        flag = ctypes.c_int64(0)
        if prepared.variant.gathers:
            block[built.slots - 1] = ctypes.addressof(flag)
        arguments, sizes = ctypes.addressof(block), ctypes.addressof(prepared.sizes)
        for call, ranges in prepared.runs:
            if ranges is None:
                call.run(block, built.copies, prepared.threads)
            elif len(ranges) == 1:
                call(arguments, sizes, *ranges[0])
            elif ranges:
                run_ranges(lambda lo, hi, call=call: call(arguments, sizes, lo, hi), ranges, prepared.threads)
        if flag.value:
            raise InputError("an index read from an array points outside of the array it indexes", key=self.program.name)


def _starved(step: Step, launch: Mapping[str, int], threads: int) -> bool:
    """Tell whether a reduction has too few outputs to keep all threads busy."""
    units = -(-step.function.extent.value(launch) // step.function.unit)
    few = step.function.kind in ("rows", "tiles") and units < 2 * threads
    return few and len(step.work) > 1 and _points(step, launch) > 2 * GRAIN


def _ranges(step: Step, launch: Mapping[str, int], threads: int) -> list[tuple[int, int]]:
    """Cut the outermost loop of a step into ranges for threads, each worth more than waking one."""
    function = step.function
    units = -(-function.extent.value(launch) // function.unit)
    pieces = min(4 * threads, _points(step, launch) * step.weight // GRAIN + 1, units) if threads > 1 else 1
    if pieces <= 1:
        return [(0, units)]
    length = -(-units // pieces)
    if function.kind == "elements":
        length = -(-length // 1024) * 1024
    return [(lo, min(lo + length, units)) for lo in range(0, units, length)]


def _merged(program: Program, aliases: dict[int, int]) -> Program:
    graph = Graph()

    def change(e: Expression) -> Expression | None:
        if isinstance(e, Load) and e.buffer in aliases:
            return graph.make(replace(e, buffer=aliases[e.buffer]))
        if isinstance(e, Gather) and e.buffer in aliases:
            return graph.make(Gather(aliases[e.buffer], e.type, graph.replace(e.place, change)))
        return None

    return replace(
        program, assigns=tuple(replace(a, value=graph.replace(graph.intern(a.value), change)) for a in program.assigns)
    )


def _small(product: contract.Product, launch: Mapping[str, int]) -> bool:
    """Tell whether a call of BLAS would cost more than it saves."""
    counts = []
    for axes in (product.rows, product.columns, product.inner):
        count = 1
        for _, size in axes:
            count *= size.value(launch)
        counts.append(count)
    return min(counts[:2]) < 4 or counts[0] * counts[1] * counts[2] < 1 << 14


def _points(step: Step, launch: Mapping[str, int]) -> int:
    total = 0
    for factors in step.work:
        product = 1
        for size in factors:
            product *= size.value(launch)
        total += product
    return total


def _scratch(temporary: Temporary, launch: Mapping[str, int]) -> Any:
    return np.empty(max(temporary.length.value(launch), 1) * WIDTH[temporary.type] // 8, np.uint8)


def _bits(value: Any, kind: str) -> int:
    """Return a scalar argument as the bits of a 64-bit slot; Python numbers take the type that the program uses."""
    if isinstance(value, (np.generic, np.ndarray)):
        return int.from_bytes(value.tobytes()[:8], "little")
    if kind in ("f32", "f64", "f16"):
        return int.from_bytes(np.dtype(kind.replace("f", "float")).type(value).tobytes(), "little")
    return int(value) & 0xFFFFFFFFFFFFFFFF


def compile_program(
    program: Program, *, threads: int | None = None, cache: Path | None = None, choice: Choice | None = None
) -> Executable:
    """Compile a program for this processor.

    Args:
        program: what to compute.
        threads: how many may work at a time (None: one for each processor this process may use).
        cache: folder for compiled objects, or None.
        choice: tile sizes and hints (None: what `tune` has kept in the folder for such sizes, else the default).

    Raises:
        Unsupported: an operation that has no code.
    """
    return Executable(program, threads, cache, choice)


def program_text(program: Program) -> str:
    """Return a program as a C function in LLVM text that needs neither Python nor BLAS: see `standalone`."""
    from gewu.ops.standalone import standalone

    return standalone(program).text
