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
from gewu.ops import blocks, contract
from gewu.ops.bounds import span
from gewu.ops.direct import MOST_BYTES, Work
from gewu.ops.forms import (
    Form,
    ProductStep,
    Step,
    Variant,
    arguments_of,
    compile_form,
    few,
    hollow,
    middling,
    narrowed,
    points,
    ranges,
    small,
    starved,
)
from gewu.ops.ir import WIDTH
from gewu.ops.native import Parts, address_of
from gewu.ops.nest_parts import Access, Choice
from gewu.ops.pool import THREADS, address, memory, run_ranges, scratch
from gewu.ops.rewrite import Graph
from gewu.ops.sizes import Size
from gewu.ops.tensor import Expression, Gather, Load, Program

FIXED: Final = 1 << 20
"""Points of work from which it pays to compile a program again for small integers of a launch."""


class Overlap(InputError):
    """An output shares memory with an input that is read elsewhere: this form of the program cannot be used for the call."""


@dataclass(slots=True)
class _Runs:
    """The steps at known sizes: the sizes that nests read, calls with their ranges, and where arrays between steps lie."""

    sizes: Any
    runs: list[tuple[Any, list[tuple[int, int]] | None]]
    places: list[tuple[int, int]]
    bytes: int


@dataclass(slots=True)
class _Prepared:
    """What depends on launch and array lengths only: one run of the whole program, or one for each block."""

    variant: Variant
    runs: list[_Runs]
    spans: dict[tuple[int, bool], tuple[int, int]]
    threads: int
    block: Any = None

    def __post_init__(self) -> None:
        self.block = ctypes.c_uint64 * self.variant.built.slots  # looking the type up takes as long as filling one


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
        self._variants: dict[object, Variant] = {}
        self._prepared: dict[object, _Prepared] = {}
        self._aliased: dict[tuple[tuple[int, int], ...], Executable | None] = {}
        first = self._variant(Form(), choice or Choice())
        self.text, self.plan = first.built.text, [step.describe() for step in first.built.steps]

    def steps(self, form: Form) -> list[Step | ProductStep]:
        """Return the steps of a form with the default choice."""
        return self._variant(form, self.choice or Choice()).built.steps

    def _variant(self, form: Form, choice: Choice, cut: blocks.Cut | None = None) -> Variant:
        key = form, replace(choice, threads=0, blas=1), cut
        if key not in self._variants:
            program = blocks.blocked(self.program, cut) if cut else self.program
            self._variants[key] = compile_form(program, form, choice, self.cache, self._count)
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

    def direct(self, args: Sequence[Any], launch: Mapping[str, int]) -> Work | None:
        """Return what a launch that was done runs, for `direct`; None where that is more than loops over the arguments."""
        pointers, lengths = self._pack(args)
        prepared = self._prepared.get((tuple([launch[n] for n in self._names]), tuple(lengths)))
        if prepared is None or len(prepared.runs) != 1 or prepared.variant.built.copies or sum(lengths) > MOST_BYTES:
            return None
        one, built, spans = prepared.runs[0], prepared.variant.built, prepared.spans
        if one.bytes > MOST_BYTES or any(parts is None for _, parts in one.runs):
            return None
        block = (ctypes.c_uint64 * (built.slots + 1))(*pointers)
        held = memory(one.bytes) if one.places else None
        for buffer, place in one.places if held else ():
            block[buffer] = held.address + place
        flag = ctypes.c_int64(0) if prepared.variant.gathers else None
        if flag is not None:
            block[built.slots - 1] = ctypes.addressof(flag)
        jobs: list[tuple[int, int, int, int] | int] = []
        sizes = ctypes.addressof(one.sizes)
        for call, parts in one.runs:
            if isinstance(parts, Parts):
                parts.job[4] = sizes
                jobs.append(parts.address)
            else:
                jobs.append((address_of(call), sizes, *parts[0]))
        apart = [
            (out, *spans[out, True], other, start, end)
            for out in self._outputs
            if (out, True) in spans
            for (other, _), (start, end) in spans.items()
            if other != out
        ]
        plain = {"f32": np.float32, "f64": np.float64}
        slots = [
            (
                8 * place if place < self._count else -1,
                type(a) if isinstance(a, np.floating) else plain.get(self._scalars.get(place, "")),
            )
            for place, a in enumerate(args)
        ]
        return Work(block, slots, jobs, apart, 0 if flag is None else ctypes.addressof(flag), (prepared, held, flag))

    def _pack(self, args: Sequence[Any]) -> tuple[list[int], list[int]]:
        """Return addresses (or the bits of scalars) and lengths in bytes."""
        if len(args) < self._count:
            raise InputError("too few arguments", key=self.program.name, value=len(args), allowed=f"at least {self._count}")
        pointers, lengths = [], []
        scalars, outputs = self._scalars, self._outputs
        for place in range(self._count):
            a = args[place]
            if place in scalars:
                pointers.append(_bits(a, scalars[place]))
                lengths.append(-1)
            elif isinstance(a, np.ndarray):
                flags = a.flags
                if not flags.c_contiguous or (place in outputs and not flags.writeable):
                    what = "is read-only" if flags.c_contiguous else "is not contiguous"
                    raise InputError(f"argument {place} {what}", key=self.program.name)
                pointers.append(address(a))
                lengths.append(a.nbytes)
            else:
                pointers.append(0)
                lengths.append(0)
        return pointers, lengths

    def _prepare(self, launch: Mapping[str, int], lengths: list[int]) -> _Prepared:
        choice = self._chosen(launch)
        threads = choice.threads or self.threads
        if threads > 1:
            steps = self._variant(Form(blas=bool(choice.blas)), choice).built.steps
            choice = replace(choice, tile=narrowed(steps, launch, threads, choice.tile))
        form = self._form(launch, choice, threads)
        try:
            variant = self._variant(form, choice)
            spans = self._spans(variant, launch, lengths)
        except InputError:
            form = replace(form, hoist=False)
            variant = self._variant(form, choice)
            spans = self._spans(variant, launch, lengths)
        for buffer, kind in variant.gathers:
            if buffer < self._count and lengths[buffer] * 8 < WIDTH[kind]:
                raise InputError(f"argument {buffer} is empty", key=self.program.name)
        cut = None
        if form.blas and not variant.gathers and not variant.built.copies and _cuttable(variant):
            cut = blocks.choose(self.program, launch, self._count)
        if cut is None:
            return _Prepared(variant, [self._runs(variant, launch, lengths, threads)], spans, threads)
        variant = self._variant(form, choice, cut[0])
        each = blocks.launches(self.program, launch, *cut)
        return _Prepared(variant, [self._runs(variant, one, lengths, 1) for one in each], spans, threads)

    def _runs(self, variant: Variant, launch: Mapping[str, int], lengths: list[int], threads: int) -> _Runs:
        values = [self._value(entry, launch, lengths) for entry in variant.built.sizes.entries]
        runs: list[tuple[Any, list[tuple[int, int]] | Parts | None]] = []
        for call, step in zip(variant.calls, variant.built.steps, strict=True):
            if any(size.value(launch) <= 0 for _, size in step.axes):
                continue
            if isinstance(step, ProductStep):
                runs.append((contract.prepare(step.product, launch), None))
            else:
                parts = ranges(step, launch, threads)
                runs.append((call, parts if len(parts) == 1 else Parts(call, parts, threads)))
        places, total = [], 0
        for temporary in variant.built.staged.temporaries:
            places.append((temporary.buffer, total))
            total += -(-max(temporary.length.value(launch), 1) * WIDTH[temporary.type] // 512) * 64
        return _Runs((ctypes.c_int64 * max(len(values), 1))(*values), runs, places, total)

    def _value(self, entry: Size | tuple[int, str], launch: Mapping[str, int], lengths: list[int]) -> int:
        if isinstance(entry, Size):
            return entry.value(launch)
        return lengths[entry[0]] * 8 // WIDTH[entry[1]] if entry[0] < self._count else 0

    def _form(self, launch: Mapping[str, int], choice: Choice, threads: int) -> Form:
        """Choose the form for these sizes: small products as nests, reductions in parts where outputs are few."""
        form = Form(blas=bool(choice.blas))
        steps = self._variant(form, choice).built.steps
        if sum(points(s, launch) for s in steps if isinstance(s, Step)) > FIXED and (known := few(self.program, launch)):
            form = replace(form, fixed=known)
            steps = self._variant(form, choice).built.steps
        if any(small(s.product, launch) if isinstance(s, ProductStep) else hollow(s, launch) for s in steps):
            form = replace(form, blas=False)
            steps = self._variant(form, choice).built.steps
        elif any(isinstance(s, ProductStep) and middling(s.product, launch) for s in steps):
            form = replace(form, tiles=True)
            steps = self._variant(form, choice).built.steps
        if threads > 1 and any(isinstance(s, Step) and starved(s, launch, threads) for s in steps):
            form = replace(form, split=True)
        return form

    def _spans(self, variant: Variant, launch: Mapping[str, int], lengths: list[int]) -> dict[tuple[int, bool], tuple[int, int]]:
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
        block = prepared.block(*pointers)
        keep = []
        for buffer, slot in built.copies.items():
            copy = np.frombuffer(ctypes.string_at(pointers[buffer], lengths[buffer]), np.uint8)
            keep.append(copy)
            block[slot] = copy.ctypes.data
        flag = None
        if prepared.variant.gathers:
            flag = ctypes.c_int64(0)
            block[built.slots - 1] = ctypes.addressof(flag)
        if len(prepared.runs) == 1:
            self._execute(prepared.runs[0], block, built.copies, prepared.threads, {})
        else:
            self._blocks(prepared, block)
        if flag is not None and flag.value:
            raise InputError("an index read from an array points outside of the array it indexes", key=self.program.name)

    def _execute(self, one: _Runs, block: Any, copies: dict[int, int], threads: int, packed: dict[int, int]) -> None:
        if one.places:
            memory = scratch("arrays", one.bytes)
            for buffer, place in one.places:
                block[buffer] = memory.address + place
        arguments, sizes = ctypes.addressof(block), ctypes.addressof(one.sizes)
        for place, (call, parts) in enumerate(one.runs):
            if parts is None:
                call.run(block, copies, threads, self.cache, packed.get(place, 0))
            elif isinstance(parts, list):
                call(arguments, sizes, *parts[0])
            elif not parts.run(arguments, sizes):
                run_ranges(lambda lo, hi, call=call: call(arguments, sizes, lo, hi), parts.ranges, threads)

    def _blocks(self, prepared: _Prepared, block: Any) -> None:
        """Run all blocks, each on one thread; sides of products that are arguments are packed once for all."""
        built = prepared.variant.built
        packed, keep = {}, []
        for place, (call, parts) in enumerate(prepared.runs[0].runs):
            if parts is None and call.shared(self._count):
                memory = call.pack(block, prepared.threads, self.cache)
                if memory is not None:
                    keep.append(memory)
                    packed[place] = memory.address

        def several(lo: int, hi: int) -> None:
            own = type(block).from_buffer_copy(block)
            for number in range(lo, hi):
                self._execute(prepared.runs[number], own, built.copies, 1, packed)

        count = len(prepared.runs)
        step = max(1, count // (8 * prepared.threads))
        run_ranges(several, [(lo, min(lo + step, count)) for lo in range(0, count, step)], prepared.threads)


def _cuttable(variant: Variant) -> bool:
    """Tell whether a product makes or takes an array between steps."""
    between = {t.buffer for t in variant.built.staged.temporaries}
    products = [s.product for s in variant.built.steps if isinstance(s, ProductStep)]
    tiles = any(isinstance(s, Step) and s.function.kind == "registers" for s in variant.built.steps)
    return tiles or any(m.buffer in between for p in products for m in (p.left, p.right, p.out))


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
