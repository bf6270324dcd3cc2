"""A program as one LLVM text that stands alone: a C function for any CPU target.

The C function is `int32_t NAME(void **args, const int64_t *launch, void *work)`. `args` are 64-bit slots: pointers to arrays,
bits of scalars. `launch` holds the integers named in `names`: those of the launch, then `bytesN`, the length of array N in
bytes, where one is needed. `work` points to `int64_t NAME_work(const int64_t *launch)` bytes, aligned to 64. It returns 1 when
an index that was read from an array points outside, else 0. Nothing else is called but the C mathematics library on targets
without fused multiply-add."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gewu.core.errors import InputError
from gewu.ops.forms import Built, Form, Step, arguments_of, build
from gewu.ops.ir import WIDTH
from gewu.ops.lower import Lower, Module
from gewu.ops.nest_parts import Choice
from gewu.ops.sizes import Ceil, Size
from gewu.ops.tensor import Program


@dataclass(frozen=True, slots=True)
class Standalone:
    """A text and what its caller must know: the function's name, and the entries of `launch`."""

    name: str
    text: str
    names: tuple[str, ...]


def standalone(program: Program, name: str = "kernel", choice: Choice | None = None) -> Standalone:
    """Return a program as a C function in LLVM text.

    Raises:
        Unsupported: an operation that has no code.
        InputError: the name is not an identifier of C.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise InputError("is not an identifier of C", key="name", value=name)
    count, _, used = arguments_of(program)
    built = build(program, Form(blas=False), choice or Choice(), count)
    needed = {entry[0] for entry in built.sizes.entries if isinstance(entry, tuple)} | set(built.copies)
    names = (*sorted(used), *(f"bytes{b}" for b in sorted(needed) if b < count))
    driver = _Driver(built, count, names)
    text = "\n".join(
        [built.text, driver.work(name), driver.run(name), *sorted(driver.module.declarations - _declared(built.text))]
    )
    for step in built.steps:
        if isinstance(step, Step):
            text = text.replace(f"@{step.function.name}(", f"@{name}.{step.function.name}(")
            text = text.replace(f"@{step.function.name}.body(", f"@{name}.{step.function.name}.body(")
    text = text.replace("define void @", "define internal void @")
    return Standalone(name, text, names)


def _declared(text: str) -> set[str]:
    return {line for line in text.splitlines() if line.startswith("declare ")}


class _Driver:
    """Writes the functions around the nests: sizes from the launch, temporary arrays, one call a step."""

    def __init__(self, built: Built, count: int, names: tuple[str, ...]) -> None:
        self.built, self.count, self.names, self.module = built, count, names, Module()
        self.lower = Lower(self.module, [])
        self.known: dict[str, str] = {}

    def _launch(self, name: str) -> str:
        if name not in self.known:
            place = self.lower.emit(f"getelementptr i64, ptr %launch, i64 {self.names.index(name)}")
            self.known[name] = self.lower.emit(f"load i64, ptr {place}")
        return self.known[name]

    def _size(self, size: Size) -> str:
        total = ""
        for coefficient, factors in size.terms:
            product = str(coefficient)
            for factor in factors:
                value = self._ceil(factor) if isinstance(factor, Ceil) else self._launch(factor)
                product = value if product == "1" else self.lower.emit(f"mul nsw i64 {product}, {value}")
            total = self.lower.emit(f"add nsw i64 {total}, {product}") if total else product
        return total or "0"

    def _ceil(self, quotient: Ceil) -> str:
        top, under = self._size(quotient.numerator), self._size(quotient.denominator)
        whole = self.lower.emit(f"sdiv i64 {top}, {under}")
        more = self.lower.emit(f"icmp sgt i64 {self.lower.emit(f'srem i64 {top}, {under}')}, 0")
        return self.lower.emit(f"add nsw i64 {whole}, {self.lower.emit(f'zext i1 {more} to i64')}")

    def _offsets(self) -> tuple[dict[int, str], str]:
        """Return the place of each temporary array and copy in the work memory, and the bytes of all."""
        lengths = [(t.buffer, self._size(t.length), WIDTH[t.type] // 8) for t in self.built.staged.temporaries]
        lengths += [(slot, self._launch(f"bytes{buffer}"), 1) for buffer, slot in self.built.copies.items()]
        places, total = {}, "0"
        for slot, length, width in lengths:
            places[slot] = total
            some = self.lower.call("i64", "llvm.smax.i64", ("i64", length), ("i64", "1"))
            end = self.lower.emit(f"add nsw i64 {total}, {self.lower.emit(f'mul nsw i64 {some}, {width}')}")
            total = self.lower.emit(f"and i64 {self.lower.emit(f'add nsw i64 {end}, 63')}, -64")
        return places, total

    def work(self, name: str) -> str:
        """Return the function that tells the bytes of work memory."""
        _, total = self._offsets()
        lines, self.lower.lines, self.known = self.lower.lines, [], {}
        return "\n".join([f"define i64 @{name}_work(ptr %launch) #0 {{", *lines, f"  ret i64 {total}", "}"])

    def run(self, name: str) -> str:
        """Return the C function."""
        built, lower = self.built, self.lower
        lower.lines = [
            f"  %block = alloca [{built.slots} x i64], align 64",
            f"  %sizes = alloca [{max(len(built.sizes.entries), 1)} x i64], align 64",
            "  %flag = alloca i64, align 8",
            "  store i64 0, ptr %flag",
        ]
        for slot in range(self.count):
            self._store("%block", slot, self._slot("i64", "%args", slot))
        places, _ = self._offsets()
        for slot, place in places.items():
            pointer = lower.emit(f"getelementptr i8, ptr %work, i64 {place}")
            self._store("%block", slot, lower.emit(f"ptrtoint ptr {pointer} to i64"))
        self._store("%block", built.slots - 1, lower.emit("ptrtoint ptr %flag to i64"))
        for buffer, slot in built.copies.items():
            source, target = self._slot("ptr", "%args", buffer), self._slot("ptr", "%block", slot)
            self.module.declarations.add("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
            bytes_ = self._launch(f"bytes{buffer}")
            lower.lines.append(f"  call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 {bytes_}, i1 false)")
        for place, entry in enumerate(built.sizes.entries):
            if isinstance(entry, Size):
                value = self._size(entry)
            else:
                value = lower.emit(f"udiv i64 {self._launch(f'bytes{entry[0]}')}, {WIDTH[entry[1]] // 8}")
            self._store("%sizes", place, value)
        for step in (s for s in built.steps if isinstance(s, Step)):
            units = self._units(step)
            lower.lines.append(f"  call void @{step.function.name}(ptr %block, ptr %sizes, i64 0, i64 {units})")
        result = lower.emit(f"trunc i64 {lower.emit('load i64, ptr %flag')} to i32")
        head = f"define i32 @{name}(ptr %args, ptr %launch, ptr %work) #0 {{"
        return "\n".join([head, *lower.lines, f"  ret i32 {result}", "}"])

    def _slot(self, kind: str, block: str, place: int) -> str:
        return self.lower.emit(f"load {kind}, ptr {self.lower.emit(f'getelementptr i64, ptr {block}, i64 {place}')}")

    def _store(self, block: str, place: int, value: str) -> None:
        pointer = self.lower.emit(f"getelementptr i64, ptr {block}, i64 {place}")
        self.lower.lines.append(f"  store i64 {value}, ptr {pointer}")

    def _units(self, step: Step) -> str:
        """Return how many units a step has: none when any axis is empty."""
        extent, unit = self._size(step.function.extent), step.function.unit
        units = self.lower.emit(f"sdiv i64 {self.lower.emit(f'add nsw i64 {extent}, {unit - 1}')}, {unit}")
        for _, size in step.axes:
            some = self.lower.emit(f"icmp sgt i64 {self._size(size)}, 0")
            units = self.lower.emit(f"select i1 {some}, i64 {units}, i64 0")
        return units
