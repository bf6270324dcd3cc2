"""A kernel as it is written, on vectors of threads: the way that every readable kernel can take.

    ir.Kernel, block -> flow (order, single assignment) -> shapes -> regions between barriers -> LLVM -> blocks on threads

A vector holds 32 threads, fewer where rows of the block are short, more where a small kernel streams (`spmd_width`). The function

    void NAME(ptr args, i32 gx, i32 gy, i32 gz, i64 lo, i64 hi)

runs blocks lo <= i < hi, x fastest.  `args` points to the argument block of the kernel, followed (at `Compiled.context`) by 72
bytes that must be zero before and tell about a trap after.  Threads of a block run one vector after the other up to each barrier,
blocks in any order and at the same time; a kernel in which threads wait for others in any other way does not end.
"""

from __future__ import annotations

import ctypes
import math
import re
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.ops import ir, llvm, spmd_cache
from gewu.ops.direct import MOST_BYTES, Work
from gewu.ops.native import Parts
from gewu.ops.pool import THREADS, run_ranges
from gewu.ops.shape import analyse
from gewu.ops.spmd_induction import split_counters
from gewu.ops.spmd_packets import join_packets
from gewu.ops.spmd_program import Program, prepare
from gewu.ops.spmd_region import Region
from gewu.ops.spmd_values import build_flow
from gewu.ops.spmd_width import analyse_widest

Grid = tuple[int, int, int]
STEP_LIMIT: Final = 1 << 26
"""Loop steps that all vectors of a checked launch may take together."""
CONTEXT_BYTES: Final = 72
_STACK: Final = 1 << 18
_WORTH_SECONDS: Final = 1e-5
_WORTH_THREADS: Final = 1 << 15
_BAD: Final = {1: "the kernel trapped", 2: "access outside of the arrays", 3: "threads of a warp wait at different barriers"}
_BAD_LOOP: Final = 4


@dataclass(slots=True)
class _Code:
    """One compiled variant."""

    text: str
    places: tuple[str, ...]
    library: llvm.Library
    run: Any


@dataclass(slots=True)
class Compiled:
    """A kernel compiled for one block shape.

    Attributes:
        kernel: what it was made from.
        block: threads of a block.
        shared: bytes of dynamic shared memory.
        context: bytes of the argument block; the context follows.
        name: of the function in the text.
    """

    kernel: ir.Kernel
    block: Grid
    shared: int
    checked: bool
    cache: Path | None
    context: int
    name: str
    _codes: dict[bool, _Code] = field(default_factory=dict)
    _pace: float = 0.0
    _parts: tuple[Any, Parts] | None = None

    @property
    def text(self) -> str:
        """The LLVM text, for any processor."""
        return self._write(True, False)[0]

    def _write(self, bounded: bool, native: bool) -> tuple[str, tuple[str, ...]]:
        if self.cache is None:
            return write(self, bounded, native)
        options = (self.block, self.shared, self.checked, bounded, native)
        key = spmd_cache.key_of(self.kernel, options)
        written = spmd_cache.kept(self.cache, key)
        if written is None:
            written = write(self, bounded, native)
            spmd_cache.keep(self.cache, key, written)
        return written

    def launch(
        self, grid: Sequence[int], args: Sequence[Any], *, threads: int | None = None, step_limit: int = STEP_LIMIT
    ) -> None:
        """Run a grid of blocks.

        Args:
            grid: blocks in x, y, z.
            args: arrays (their first byte is pointed to) and NumPy scalars, in the order of the parameters.
            threads: processor threads; None or 0: all.
            step_limit: loop steps that a checked launch may take.

        Raises:
            InputError: wrong number or size of arguments; the kernel trapped; in checked mode: an access outside of the arrays,
                too many steps.
        """
        sizes = (*map(int, grid), 1, 1)[:3]
        code = self._code(sizes[0] * self.block[0] < 1 << 31 and max(sizes[1:]) < 1 << 16)
        buffer = self._packed(args, step_limit)
        address = ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
        run, blocks = code.run, sizes[0] * sizes[1] * sizes[2]
        count = threads or THREADS
        work = self._pace * blocks if self._pace else blocks * self.block[0] * self.block[1] * self.block[2] / _WORTH_THREADS
        start = time.perf_counter()
        if count > 1 and blocks > 1 and work > (_WORTH_SECONDS if self._pace else 1):
            parts = self._shared(code, sizes, count)
            if not parts.run(address):
                run_ranges(partial(run, address, *sizes), parts.ranges, count)
            self._pace = (time.perf_counter() - start) / blocks * min(count, blocks)
        else:
            run(address, *sizes, 0, blocks)
            self._pace = (time.perf_counter() - start) / blocks
        if buffer[self.context]:
            self._raise(code, buffer)

    def direct(self, grid: Sequence[int], args: Sequence[Any], threads: int | None) -> Work | None:
        """Return what a launch that was done runs, for `direct`; None where it is too large for that."""
        if self.checked or sum(a.nbytes for a in args if isinstance(a, np.ndarray)) > MOST_BYTES:
            return None
        sizes = (*map(int, grid), 1, 1)[:3]
        code, blocks = self._code(sizes[0] * self.block[0] < 1 << 31 and max(sizes[1:]) < 1 << 16), math.prod(sizes)
        buffer = self._packed(args, STEP_LIMIT)
        block = (ctypes.c_uint64 * (-(-len(buffer) // 8) + 1)).from_buffer_copy(bytes(buffer) + bytes(16))
        count = threads or THREADS
        together = count > 1 and blocks > 1 and self._pace * blocks > _WORTH_SECONDS
        parts = self._shared(code, sizes, count) if together else Parts(code.run, [(0, blocks)], 1, sizes)
        slots = [
            (parameter.offset, type(a) if isinstance(a, np.floating) else None)
            for parameter, a in zip(self.kernel.parameters, args, strict=True)
        ]
        return Work(block, slots, [parts.address], [], ctypes.addressof(block) + self.context, (parts, code))

    def _shared(self, code: _Code, sizes: Grid, count: int) -> Parts:
        """Return the blocks of a grid cut into ranges for threads; of the last grid they are kept."""
        key = id(code), sizes, count
        if self._parts is None or self._parts[0] != key:
            blocks = sizes[0] * sizes[1] * sizes[2]
            chunk = max(1, blocks // (16 * count))
            ranges = [(lo, min(blocks, lo + chunk)) for lo in range(0, blocks, chunk)]
            self._parts = key, Parts(code.run, ranges, count, sizes)
        return self._parts[1]

    def _packed(self, args: Sequence[Any], step_limit: int) -> bytearray:
        kernel = self.kernel
        if len(args) != len(kernel.parameters):
            raise InputError("wrong number of arguments", key=kernel.name, value=len(args), allowed=str(len(kernel.parameters)))
        tail = self._table(args, step_limit) if self.checked else b""
        buffer = bytearray(self.context + CONTEXT_BYTES + len(tail))
        for parameter, value in zip(kernel.parameters, args, strict=True):
            if isinstance(value, np.ndarray):
                data = struct.pack("<Q", value.__array_interface__["data"][0])
            else:
                data = value.tobytes()
            if len(data) != parameter.size:
                raise InputError(
                    "an argument does not have the size of its parameter",
                    key=f"{kernel.name} {parameter.name}".strip(),
                    value=len(data),
                    allowed=f"{parameter.size} bytes",
                )
            buffer[parameter.offset : parameter.offset + parameter.size] = data
        if self.checked:
            struct.pack_into("<q", buffer, self.context + 48, step_limit)
            struct.pack_into("<Q", buffer, self.context + 64, len(tail) // 16)
            buffer[self.context + CONTEXT_BYTES :] = tail
        return buffer

    def _table(self, args: Sequence[Any], step_limit: int) -> bytes:
        """Return where accesses may go: first and last byte + 1 of each array and window."""
        spans = [np.lib.array_utils.byte_bounds(a) for a in args if isinstance(a, np.ndarray) and a.size]
        spans += [(low, low + size) for low, _, size in self._windows() if size]
        return b"".join(struct.pack("<QQ", *span) for span in spans)

    def _windows(self) -> tuple[tuple[int, str, int], ...]:
        """Return where windows of addresses begin, of which memory, how many bytes."""
        kernel = self.kernel
        return (
            (ir.SHARED_WINDOW, "shared", kernel.shared + self.shared),
            (ir.LOCAL_WINDOW, "local", kernel.local),
            (ir.CONST_WINDOW, "constant", len(kernel.data)),
        )

    def _raise(self, code: _Code, buffer: bytearray) -> None:
        what, thread, address, place, x, y, z = struct.unpack_from("<4q3i", buffer, self.context)
        bx, by, _ = self.block
        where = f"block ({x}, {y}, {z})"
        if what in (1, 3):
            raise InputError(f"{_BAD[what]} in {where}", key=self.kernel.name)
        if what == _BAD_LOOP:
            raise InputError(f"too many loop steps in {where}: an endless loop?", key=self.kernel.name)
        text = code.places[place] if place < len(code.places) else ""
        raise InputError(
            f"{_BAD[2]} in {where}, thread ({thread % bx}, {thread // bx % by}, {thread // (bx * by)})",
            key=f"{self.kernel.name} at {text}",
            value=self._place_text(address & (1 << 64) - 1),
        )

    def _place_text(self, address: int) -> str:
        """Return an address in words; beside a window it is an offset."""
        for window, what, size in self._windows():
            if abs(address - window) < 1 << 33:
                return f"byte {address - window} of the {size} of {what} memory"
        return f"address {address:#x}"

    def _code(self, bounded: bool) -> _Code:
        if bounded not in self._codes:
            text, places = self._write(bounded, llvm.host_vector_bits() == 512)
            library = llvm.jit(text, vectorise=False, cache=self.cache)
            kinds = [ctypes.c_void_p, *[ctypes.c_int32] * 3, *[ctypes.c_int64] * 2]
            run = ctypes.CFUNCTYPE(None, *kinds)(library.address(self.name))
            self._codes[bounded] = _Code(text, places, library, run)
        return self._codes[bounded]


def compile_spmd(
    kernel: ir.Kernel, block: Grid, *, shared: int = 0, checked: bool = False, cache: Path | None = None
) -> Compiled:
    """Compile a kernel for blocks of one shape.

    Args:
        kernel: from a reader.
        block: threads in x, y, z.
        shared: bytes of dynamic shared memory.
        checked: compare every access with the arrays of the launch and the memory of a block, and count loop steps.
        cache: folder for machine code.

    Raises:
        Unsupported: the kernel holds an operation without code.
    """
    ir.check(kernel)
    name = "gewu_" + re.sub(r"\W", "_", kernel.name)
    size = max((p.offset + p.size for p in kernel.parameters), default=0)
    compiled = Compiled(kernel, block, shared, checked, cache, -(-size // 8) * 8, name)
    compiled._code(True)
    return compiled


def write(compiled: Compiled, bounded: bool, native: bool) -> tuple[str, tuple[str, ...]]:
    """Return the LLVM text of a kernel, and the places in it that reports name by number.

    Args:
        compiled: the kernel and how it is to be compiled.
        bounded: threads along x count below 2^31, blocks along y and z below 2^16.
        native: instructions of AVX-512 may be named.
    """
    kernel, block = compiled.kernel, compiled.block
    constants = {f"ntid.{axis}": size for axis, size in zip("xyz", block, strict=True)}
    constants |= {f"tid.{axis}": 0 for axis, size in zip("xyz", block, strict=True) if size == 1}
    flow = build_flow(kernel, constants)
    shapes = analyse_widest(kernel, flow, block, bounded)
    if split_counters(shapes):
        shapes = analyse(flow, shapes.layout)
    join_packets(flow, shapes)
    program = prepare(kernel, flow, shapes, compiled.checked, compiled.shared, native)
    entries = [0, *sorted({node.next[0] for node in flow.nodes if node.stop})]
    resumes = {entry: number for number, entry in enumerate(entries) if number}
    functions = [Region(program, entry, f"region{n}", resumes).text() for n, entry in enumerate(entries)]
    driver = _driver(program, len(entries), compiled.name, compiled.context, compiled.shared)
    places = tuple(program.helpers.pop("places", "").split("\n"))
    parts = [*sorted(program.declarations), *program.helpers.values(), *functions, driver, "!0 = !{}"]
    return "\n".join(parts) + "\n", places


def _driver(program: Program, regions: int, name: str, context: int, shared: int) -> str:
    """Return the function that runs blocks: every vector up to its next barrier, again until none is left."""
    layout, kernel = program.shapes.layout, program.kernel
    local = -(-kernel.local // 4) * 4 * layout.lanes
    sizes = (kernel.shared + shared, program.state * layout.warps, local * layout.warps, 4 * layout.warps)
    offsets, total = [], 0
    for size in sizes:
        offsets.append(total)
        total += -(-max(size, 1) // 128) * 128
    stack = total <= _STACK
    arguments = (
        "ptr %args, ptr %ctx, ptr %state, ptr %shm, ptr %local, i32 %v, i32 %cx, i32 %cy, i32 %cz, i32 %gx, i32 %gy, i32 %gz"
    )
    cases = "\n".join(f"resume{n}:\n  %r{n} = call i32 @region{n}({arguments})\n  br label %back" for n in range(regions))
    targets = " ".join(f"i32 {n}, label %resume{n}" for n in range(1, regions))
    back = ", ".join(f"[ %r{n}, %resume{n} ]" for n in range(regions))
    memory = f"alloca [{total} x i8], align 128" if stack else f"call ptr @aligned_alloc(i64 128, i64 {total})"
    # what is read before it is written shows as a difference from the interpreter, where memory of a block begins as zeros
    fill = f"call void @llvm.memset.p0.i64(ptr %scratch, i8 63, i64 {total}, i1 false)" if program.checked else ""
    stop = (
        "  %bad = load i64, ptr %ctx\n  %fine = icmp eq i64 %bad, 0\n  %more1 = and i1 %more0, %fine"
        if program.checked
        else "  %more1 = and i1 %more0, true"
    )
    return f"""{"" if stack else "declare ptr @aligned_alloc(i64, i64)" + chr(10) + "declare void @free(ptr)"}
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
define void @{name}(ptr noalias %args, i32 %gx, i32 %gy, i32 %gz, i64 %lo, i64 %hi) #0 {{
entry:
  %scratch = {memory}
  %shm = getelementptr i8, ptr %scratch, i64 {offsets[0]}
  %states = getelementptr i8, ptr %scratch, i64 {offsets[1]}
  %locals = getelementptr i8, ptr %scratch, i64 {offsets[2]}
  %places = getelementptr i8, ptr %scratch, i64 {offsets[3]}
  %ctx = getelementptr i8, ptr %args, i64 {context}
  %gx64 = zext i32 %gx to i64
  %gy64 = zext i32 %gy to i64
  br label %blocks
blocks:
  %i = phi i64 [ %lo, %entry ], [ %i1, %next ]
  %c = icmp slt i64 %i, %hi
  br i1 %c, label %block, label %leave
block:
  %x64 = urem i64 %i, %gx64
  %yz = udiv i64 %i, %gx64
  %y64 = urem i64 %yz, %gy64
  %z64 = udiv i64 %yz, %gy64
  %cx = trunc i64 %x64 to i32
  %cy = trunc i64 %y64 to i32
  %cz = trunc i64 %z64 to i32
  {fill}
  br label %pass
pass:
  %first = phi i1 [ true, %block ], [ false, %done ]
  br label %vectors
vectors:
  %v = phi i32 [ 0, %pass ], [ %v1, %back ]
  %any = phi i32 [ 0, %pass ], [ %any1, %back ]
  %v64 = zext i32 %v to i64
  %so = mul i64 %v64, {program.state}
  %state = getelementptr i8, ptr %states, i64 %so
  %mo = mul i64 %v64, {local}
  %local = getelementptr i8, ptr %locals, i64 %mo
  %place = getelementptr i32, ptr %places, i64 %v64
  br i1 %first, label %resume0, label %again
again:
  %pc = load i32, ptr %place
  switch i32 %pc, label %ended [ {targets} ]
ended:
  br label %back
{cases}
back:
  %r = phi i32 {back}, [ 0, %ended ]
  store i32 %r, ptr %place
  %any1 = or i32 %any, %r
  %v1 = add i32 %v, 1
  %rest = icmp ult i32 %v1, {layout.warps}
  br i1 %rest, label %vectors, label %done
done:
  %more0 = icmp ne i32 %any1, 0
{stop}
  br i1 %more1, label %pass, label %next
next:
  %i1 = add i64 %i, 1
  br label %blocks
leave:
{"" if stack else "  call void @free(ptr %scratch)"}
  ret void
}}"""
