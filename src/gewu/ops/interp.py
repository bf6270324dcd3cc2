"""The reference interpreter: all threads of many blocks at once, as NumPy vectors; with numbers, or with numbers and symbols.

A lane is a thread.  All lanes at the smallest waiting basic block go on together, so that they meet again after a branch or a
loop; at a barrier a lane waits until all living lanes of its block are there.  Each register is a vector of bits over the lanes.

`run` executes a kernel on arrays; every access is checked.  `trace` executes it on symbols: integers, addresses and control flow
are as they are in one launch, floats (and whatever else was loaded) are nodes of a graph, beside example values that only decide
where a symbol decides: a comparison of symbols gives a symbol, a branch on one is taken both ways and joined by selections.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.ops import scalar
from gewu.ops.access import Access
from gewu.ops.collective import Collective
from gewu.ops.flow import Flow
from gewu.ops.ir import PURE, WIDTH, Instruction, Kernel, Operand, Unsupported
from gewu.ops.memory import Arrays, Fault, Scratch, Symbols, address_of
from gewu.ops.scalar import UNSIGNED, cut
from gewu.ops.trace import NONE, DataDependent, Ids, Nodes, SymbolicBuffer, Trace

LIMIT: Final = 4_000_000
"""Basic blocks executed before a run is given up."""
Shape = tuple[int, int, int]
Lanes = NDArray[np.int64]


@dataclass(slots=True)
class Counts:
    """What a run did: basic blocks and instructions executed by all lanes together."""

    steps: int = 0
    instructions: int = 0
    lane_instructions: int = 0


def run(
    kernel: Kernel,
    grid: Shape,
    block: Shape,
    args: Sequence[Any],
    *,
    shared: int = 0,
    limit: int = LIMIT,
    lanes: int = 65536,
) -> Counts:
    """Execute a kernel on arrays, in place.

    Args:
        kernel: what each thread does.
        grid, block: x, y, z.
        args: C-contiguous arrays (a pointer to their first byte) and NumPy scalars, in the order of the parameters.
        shared: bytes of dynamic shared memory.
        limit: basic blocks to execute before giving up.
        lanes: threads to execute at once, about.

    Raises:
        InputError: an access outside an array (with block, thread and address), a trap, no end in sight.
    """
    threads = _threads(kernel, grid, block)
    together = max(1, lanes // threads)
    total, counts = grid[0] * grid[1] * grid[2], Counts()
    arrays = Arrays(args, kernel.data)
    for start in range(0, total, together):
        machine = Machine(kernel, grid, block, np.arange(start, min(total, start + together)), args, shared, limit, arrays)
        machine.execute()
        counts.steps += machine.counts.steps
        counts.instructions += machine.counts.instructions
        counts.lane_instructions += machine.counts.lane_instructions
    return counts


def trace(
    kernel: Kernel,
    grid: Shape,
    block: Shape,
    args: Sequence[Any],
    *,
    shared: int = 0,
    limit: int = LIMIT,
    deadline: float = math.inf,
) -> Trace:
    """Execute a kernel on symbols.

    Args:
        kernel, grid, block, shared, limit: as for `run`.
        args: `SymbolicBuffer` for each array; NumPy integers, which stay numbers; NumPy floats, which become symbols.
        deadline: processor time of this thread (`time.thread_time`) at which to give up.

    Raises:
        DataDependent: control, an address or the order of threads depends on data; or the deadline has passed.
        InputError: as for `run`.
    """
    _threads(kernel, grid, block)
    nodes = Nodes()
    blocks = np.arange(grid[0] * grid[1] * grid[2])
    machine = Machine(kernel, grid, block, blocks, args, shared, limit, None, nodes)
    machine.deadline = deadline
    machine.execute()
    assert machine.symbols is not None
    stores = machine.symbols.finish()
    found = nodes.trace()
    found.stores, found.hazards = stores, list(dict.fromkeys(machine.symbols.hazards))
    return found


def _threads(kernel: Kernel, grid: Shape, block: Shape) -> int:
    """Return the threads of a block; refuse a launch that is none."""
    threads = block[0] * block[1] * block[2]
    if min(*grid, *block) < 1 or threads > 1024:
        raise InputError("no launch", key=kernel.name, value=(grid, block), allowed="1 or more blocks of 1 to 1024 threads")
    return threads


class Machine(Access, Collective):
    """Some blocks of a launch in execution."""

    def __init__(
        self,
        kernel: Kernel,
        grid: Shape,
        block: Shape,
        blocks: Ids,
        args: Sequence[Any],
        shared: int,
        limit: int,
        arrays: Arrays | None,
        nodes: Nodes | None = None,
    ) -> None:
        self.kernel, self.grid, self.block, self.limit = kernel, grid, block, limit
        self.deadline = math.inf
        self.flow = Flow(kernel)
        self.used = {s for b in kernel.blocks for i in b.code for s in (*i.src, *(i.guard or ())[:1])}
        self.threads = block[0] * block[1] * block[2]
        self.count = len(blocks) * self.threads
        self.blocks = blocks
        self.thread = np.tile(np.arange(self.threads), len(blocks))
        self.row = np.repeat(np.arange(len(blocks)), self.threads)
        self.everyone = np.arange(self.count)
        self.registers: dict[str, NDArray[Any]] = {}
        self.marks: dict[str, Ids] = {}
        self.pc = np.zeros(self.count, np.int64)
        self.waiting = np.zeros(self.count, np.bool_)
        self.path: Ids | None = None
        self.nesting = 0
        self.counts = Counts()
        self.arrays, self.nodes = arrays, nodes
        self.symbols = None if nodes is None else Symbols(args, nodes, np.repeat(blocks, self.threads), kernel.data)
        self.shared_bytes = -(-kernel.shared // 16) * 16 + shared if shared else kernel.shared
        # Shared memory is given out in pieces of 128 bytes, and ptxas knows it: LDS.128 may read past the last element.
        unit = 1 if kernel.source.startswith("ptx") else 128
        self.shared = Scratch(len(blocks), -(-self.shared_bytes // unit) * unit, nodes)
        self.local: Scratch | None = None
        self._arguments(args)

    def _arguments(self, args: Sequence[Any]) -> None:
        """Lay the arguments out as bytes, and note which bytes are symbols."""
        parameters = self.kernel.parameters
        if len(args) != len(parameters):
            raise InputError("wrong number of arguments", key=self.kernel.name, value=len(args), allowed=str(len(parameters)))
        size = max((p.offset + p.size for p in parameters), default=0)
        self.block_of_arguments = np.zeros(size + 8, np.uint8)
        self.symbolic_arguments: dict[int, tuple[int, int]] = {}
        for number, (parameter, value) in enumerate(zip(parameters, args, strict=True)):
            if isinstance(value, np.ndarray | SymbolicBuffer):
                value = np.uint64(address_of(number))
            raw = np.asarray(value)
            if raw.nbytes != parameter.size:
                raise InputError(
                    "an argument of the wrong size", key=f"argument {number}", value=raw.nbytes, allowed=str(parameter.size)
                )
            self.block_of_arguments[parameter.offset : parameter.offset + raw.nbytes] = np.frombuffer(raw.tobytes(), np.uint8)
            if self.nodes is not None and raw.dtype.kind == "f":
                self.symbolic_arguments[parameter.offset] = (number, parameter.size)

    # control
    def execute(self) -> None:
        """Run all lanes to their end."""
        self._region(self.everyone, None)

    def _region(self, lanes: Lanes, stop: int | None) -> None:
        """Run some lanes until each stands at the block `stop`, or has ended."""
        end = len(self.flow.blocks)
        goal = end if stop is None else stop
        whole = len(lanes) == self.count
        while True:
            pc = self.pc if whole else self.pc[lanes]
            waiting = self.waiting if whole else self.waiting[lanes]
            ready = (pc != goal) & (pc < end) & ~waiting
            if not ready.any():
                if waiting.any():
                    self._release(lanes, stop)
                    continue
                return
            here = int(pc[ready].min())
            chosen = ready & (pc == here)
            active = self.everyone if whole and chosen.all() else lanes[chosen]
            self.counts.steps += 1
            if time.thread_time() > self.deadline:
                raise DataDependent("takes too long to follow with symbols", key=self.kernel.name)
            if self.counts.steps > self.limit:
                raise InputError(
                    "did not finish", key=self.kernel.name, value=f"{self.limit} basic blocks", hint="it may not end"
                )
            self._block(here, active)

    def _release(self, lanes: Lanes, stop: int | None) -> None:
        """Let the lanes go on whose block is complete at the barrier."""
        if stop is not None or self.path is not None:
            raise DataDependent("a barrier in a branch that depends on data", key=self.kernel.name)
        self.waiting[lanes] = False

    def _block(self, number: int, active: Lanes) -> None:
        code, following = self.flow.blocks[number]
        full = len(active) == self.count
        for instruction in code:
            self.counts.instructions += 1
            self.counts.lane_instructions += len(active)
            if instruction.op in ("bra", "exit", "bar", "trap", "nop"):
                break
            self._step(instruction, active, full)
        last = code[-1] if code else None
        end = len(self.flow.blocks)
        if last is None or last.op not in ("bra", "exit", "bar", "trap"):
            self.pc[active] = following[0] if following else end
        elif last.op == "bar":
            self.pc[active] = following[0] if following else end
            self.waiting[active] = True
        elif last.op == "trap":
            raise self._error(last, active, 0, "trap")
        else:
            self._jump(number, last, following, active)

    def _jump(self, number: int, last: Instruction, following: tuple[int, ...], active: Lanes) -> None:
        end = len(self.flow.blocks)
        taken = end if last.op == "exit" else following[0]
        if last.guard is None:
            self.pc[active] = taken
            return
        other = (following[0] if last.op == "exit" else following[1]) if len(following) > (last.op != "exit") else end
        holds, marks = self._guard(last.guard, active)
        if marks is not None and (marks != NONE).any():
            symbolic = marks != NONE
            self._both(number, active[symbolic], marks[symbolic], holds[symbolic], taken, other)
            active, holds = active[~symbolic], holds[~symbolic]
        self.pc[active] = np.where(holds, taken, other)

    def _both(self, number: int, lanes: Lanes, condition: Ids, holds: NDArray[np.bool_], taken: int, other: int) -> None:
        """Run both sides of a branch on symbols, and join what they did by selections."""
        assert self.nodes is not None
        if min(taken, other) <= number:
            raise DataDependent("a loop whose end depends on data", key=self.kernel.name)
        if self.nesting > 48:
            raise DataDependent("too many branches that depend on data", key=self.kernel.name)
        join = self.flow.join(number)
        outer = self.path
        self.nesting += 1
        before = {name: (bits[lanes], self._marks_of(name, lanes)) for name, bits in self.registers.items()}
        self._side(lanes, condition, taken, join, outer)
        first = {name: (bits[lanes], self._marks_of(name, lanes)) for name, bits in self.registers.items()}
        for name, (bits, marks) in before.items():
            self._put(name, lanes, bits, marks)
        self._side(lanes, self.nodes.add("not", "pred", (), [condition]), other, join, outer)
        self.path = outer
        self.nesting -= 1
        for name, (bits, marks) in first.items():
            self._merge(name, lanes, condition, holds, bits, marks)
        self.pc[lanes] = len(self.flow.blocks) if join is None else join

    def _side(self, lanes: Lanes, condition: Ids, start: int, join: int | None, outer: Ids | None) -> None:
        assert self.nodes is not None
        path = np.full(self.count, NONE) if outer is None else outer.copy()
        under = path[lanes] != NONE
        both = condition.copy()
        if under.any():
            both[under] = self.nodes.add("and", "pred", (), [path[lanes][under], condition[under]])
        path[lanes] = both
        self.path = path
        self.pc[lanes] = start
        self._region(lanes, join)

    def _merge(
        self, name: str, lanes: Lanes, condition: Ids, holds: NDArray[np.bool_], bits: NDArray[Any], marks: Ids | None
    ) -> None:
        """Set a register to what the first side left where the condition holds, else to what the second left."""
        assert self.nodes is not None
        now, mine = self.registers[name][lanes], self._marks_of(name, lanes)
        a = np.full(len(lanes), NONE) if marks is None else marks
        b = np.full(len(lanes), NONE) if mine is None else mine
        differ = (a != b) | ((a == NONE) & (bits != now))
        if not differ.any():
            return
        width = self.kernel.widths[name]
        one = self._as_nodes(a[differ], bits[differ], width)
        two = self._as_nodes(b[differ], now[differ], width)
        merged = b.copy()
        op = "select"
        merged[differ] = self.nodes.add(op, width, (), [one, two, condition[differ]])
        self._put(name, lanes, np.where(holds, bits, now), merged)

    # registers
    def _marks_of(self, name: str, lanes: Lanes) -> Ids | None:
        marks = self.marks.get(name)
        return None if marks is None else marks[lanes]

    def _put(self, name: str, lanes: Lanes, bits: NDArray[Any], marks: Ids | None) -> None:
        width = WIDTH[self.kernel.widths[name]]
        if len(lanes) == self.count:
            self.registers[name] = cut(np.asarray(bits), width)
            if marks is None:
                self.marks.pop(name, None)
            else:
                self.marks[name] = marks
            return
        if name not in self.registers:
            self.registers[name] = np.zeros(self.count, UNSIGNED[width])
        self.registers[name][lanes] = cut(np.asarray(bits), width)
        if marks is not None and name not in self.marks:
            self.marks[name] = np.full(self.count, NONE)
        if name in self.marks:
            if self.marks[name].base is not None or not self.marks[name].flags.writeable:
                self.marks[name] = self.marks[name].copy()
            self.marks[name][lanes] = NONE if marks is None else marks

    def read(self, source: Operand, lanes: Lanes, full: bool, width: int) -> tuple[NDArray[Any], Ids | None]:
        """Return bits and nodes of an operand."""
        if isinstance(source, int):
            return np.full(len(lanes), source, np.uint64).astype(UNSIGNED[width]), None
        bits = self.registers.get(source)
        if bits is None:
            return np.zeros(len(lanes), UNSIGNED[WIDTH[self.kernel.widths[source]]]), None
        marks = self.marks.get(source)
        if full:
            return bits, marks
        return bits[lanes], None if marks is None else marks[lanes]

    def write(self, name: str, lanes: Lanes, full: bool, bits: NDArray[Any], marks: Ids | None) -> None:
        """Write a register; arrays become the register's own."""
        if marks is not None and not (marks != NONE).any():
            marks = None
        if full:
            self.registers[name] = cut(np.array(bits), WIDTH[self.kernel.widths[name]])
            if marks is None:
                self.marks.pop(name, None)
            else:
                self.marks[name] = np.array(marks)
            return
        self._put(name, lanes, bits, marks)

    def _as_nodes(self, marks: Ids | None, bits: NDArray[Any], type_: str) -> Ids:
        """Return nodes for all lanes: constants where there are none."""
        assert self.nodes is not None
        nodes = np.full(len(bits), NONE) if marks is None else marks.copy()
        plain = nodes == NONE
        if plain.any():
            nodes[plain] = self.nodes.constants(bits[plain], type_)
        return nodes

    def _guard(self, guard: tuple[str, bool], lanes: Lanes) -> tuple[NDArray[np.bool_], Ids | None]:
        bits, marks = self.read(guard[0], lanes, False, 1)
        if marks is not None and not (marks != NONE).any():
            marks = None
        if not guard[1]:
            bits = ~bits
            if marks is not None:
                assert self.nodes is not None
                some = marks != NONE
                marks = marks.copy()
                marks[some] = self.nodes.add("not", "pred", (), [marks[some]])
        return bits, marks

    # instructions
    def _step(self, i: Instruction, lanes: Lanes, full: bool) -> None:
        if i.guard is not None:
            holds, marks = self._guard(i.guard, lanes)
            if marks is not None:
                self._uncertain(i, lanes, holds, marks)
                keep = holds & (marks == NONE)
            else:
                keep = holds
            if not keep.any():
                return
            if not keep.all():
                lanes, full = lanes[keep], False
        self._act(i, lanes, full)

    def _uncertain(self, i: Instruction, lanes: Lanes, holds: NDArray[np.bool_], marks: Ids) -> None:
        """Do an instruction whose guard is a symbol: the new value where it holds, else the old one."""
        assert self.nodes is not None
        some = marks != NONE
        lanes, holds, marks = lanes[some], holds[some], marks[some]
        if i.op == "st":
            self._act(i, lanes, False, marks)
            return
        if i.op not in PURE and i.op not in ("ld", "special", "param"):
            raise DataDependent(f"`{i.op}` under a condition that depends on data", key=f"{self.kernel.name} at {i.where}")
        before = {d: (self.read(d, lanes, False, 1)[0].copy(), self._marks_of(d, lanes)) for d in i.dst}
        self._act(i, lanes, False)
        for name, (bits, old) in before.items():
            now, new = self.registers[name][lanes], self._marks_of(name, lanes)
            width = self.kernel.widths[name]
            one, two = self._as_nodes(new, now, width), self._as_nodes(old, bits, width)
            self._put(name, lanes, np.where(holds, now, bits), self.nodes.add("select", width, (), [one, two, marks]))

    def _act(self, i: Instruction, lanes: Lanes, full: bool, condition: Ids | None = None) -> None:
        try:
            if i.op in PURE:
                self._pure(i, lanes, full)
            elif i.op == "ld":
                self._load(i, lanes, full)
            elif i.op == "st":
                self._store(i, lanes, full, condition)
            elif i.op == "param":
                self._parameter(i, lanes, full)
            elif i.op == "special":
                self.write(i.dst[0], lanes, full, self._special(i.mods[0], lanes), None)
            elif i.op == "atom":
                self._atomic(i, lanes, full)
            else:
                self.collective(i, lanes, full)
        except Fault as fault:
            raise self._error(i, lanes, fault.lane, fault.text) from fault

    def _error(self, i: Instruction, lanes: Lanes, place: int, text: str) -> InputError:
        lane = int(lanes[min(place, len(lanes) - 1)])
        block, thread = int(self.blocks[self.row[lane]]), int(self.thread[lane])
        x, y = self.block[0], self.block[1]
        where = f"{self.kernel.name} at {i.where}"
        at = (block % self.grid[0], block // self.grid[0] % self.grid[1], block // (self.grid[0] * self.grid[1]))
        return InputError(text, key=where, value=f"block {at}, thread {(thread % x, thread // x % y, thread // (x * y))}")

    def _pure(self, i: Instruction, lanes: Lanes, full: bool) -> None:
        operands = [self.read(s, lanes, full, _operand_width(i, k)) for k, s in enumerate(i.src)]
        bits = [b for b, _ in operands]
        if i.op == "unpack":
            for name, mods in zip(i.dst, ((), ("high",)), strict=True):
                value = scalar.apply("unpack", i.type, mods, bits)
                marks = operands[0][1]
                if marks is not None and (marks != NONE).any():
                    assert self.nodes is not None
                    some, out = marks != NONE, np.full(len(lanes), NONE)
                    out[some] = self.nodes.half(marks[some], bool(mods), f"b{WIDTH[i.type]}")
                    marks = out
                self.write(name, lanes, full, value, marks)
            return
        value = scalar.apply(i.op, i.type, i.mods, bits)
        marks = None
        if self.nodes is not None and any(m is not None for _, m in operands):
            marks = self._symbolic(i, operands, len(lanes))
        self.write(i.dst[0], lanes, full, value, marks)

    def _symbolic(self, i: Instruction, operands: Sequence[tuple[NDArray[Any], Ids | None]], count: int) -> Ids | None:
        assert self.nodes is not None
        if i.op == "select" and (operands[2][1] is None or (operands[2][1] == NONE).all()):  # decided: one of the two
            one, two = (np.full(count, NONE) if marks is None else marks for _, marks in operands[:2])
            chosen = np.where(operands[2][0].astype(np.bool_), one, two)
            return chosen if (chosen != NONE).any() else None
        some = np.zeros(count, np.bool_)
        for _, marks in operands:
            if marks is not None:
                some |= marks != NONE
        if not some.any():
            return None
        if i.op == "mov":
            return operands[0][1]
        args = []
        for k, (bits, marks) in enumerate(operands):
            width = _operand_width(i, k)
            kind = "pred" if width == 1 else f"b{width}"
            args.append(self._as_nodes(None if marks is None else marks[some], cut(bits, width)[some], kind))
        out = np.full(count, NONE)
        out[some] = self._node(i, args)
        return out

    def _node(self, i: Instruction, args: list[Ids]) -> Ids:
        assert self.nodes is not None
        if i.op == "pack":
            return self.nodes.join(args[0], args[1], f"b{WIDTH[i.type]}")
        if i.type in ("f16x2", "bf16x2") and i.op != "select":
            half = i.type.removesuffix("x2")
            if i.op == "cvt":
                high, low = (self.nodes.add("cvt", half, i.mods, [a]) for a in args)
            else:
                low, high = (
                    self.nodes.add(i.op, half, i.mods, [self.nodes.half(a, h, "b32") for a in args]) for h in (False, True)
                )
            return self.nodes.join(low, high, "b32")
        if (field := _field(i)) is not None:
            assert self.symbols is not None
            done, found = self.nodes.field(args[0], field, self.symbols.units)
            if not done.all():
                found[~done] = self.nodes.add(i.op, i.type, i.mods, [a[~done] for a in args])
            return found
        return self.nodes.add(i.op, i.type, i.mods, args)

    def _special(self, name: str, lanes: Lanes) -> NDArray[Any]:
        thread = self.thread[lanes]
        block = self.blocks[self.row[lanes]]
        head, _, axis = name.partition(".")
        if axis:
            k = "xyz".index(axis)
            if head in ("ntid", "nctaid"):
                return np.full(len(lanes), (self.block if head == "ntid" else self.grid)[k])
            extents, index = (self.block, thread) if head == "tid" else (self.grid, block)
            below = int(np.prod(extents[:k]))
            return index // below % extents[k]
        lane = thread % 32
        one = np.uint64(1)
        bit = one << lane.astype(np.uint64)
        values: dict[str, Any] = {
            "laneid": lane,
            "warpid": thread // 32,
            "nwarpid": np.full(len(lanes), -(-self.threads // 32)),
            "smid": np.zeros(len(lanes)),
            "clock": np.full(len(lanes), self.counts.instructions),
            "dynamic_smem_size": np.full(len(lanes), self.shared_bytes - self.kernel.shared),
            "lanemask_eq": bit,
            "lanemask_lt": bit - one,
            "lanemask_le": (bit << one) - one,
            "lanemask_gt": ~((bit << one) - one) & np.uint64(0xFFFFFFFF),
            "lanemask_ge": ~(bit - one) & np.uint64(0xFFFFFFFF),
        }
        if name not in values:
            raise Unsupported("a special register that is not known", key=self.kernel.name, value=name)
        return np.asarray(values[name])

    def _parameter(self, i: Instruction, lanes: Lanes, full: bool) -> None:
        offset, size = i.src[0], WIDTH[i.type] // 8
        assert isinstance(offset, int)
        raw = self.block_of_arguments[offset : offset + size]
        if len(raw) < size:
            raise InputError("reads past its arguments", key=f"{self.kernel.name} at {i.where}")
        bits = np.full(len(lanes), raw.view(UNSIGNED[8 * size])[0])
        marks = None
        for start, (number, whole) in self.symbolic_arguments.items():
            if start <= offset < start + whole:
                assert self.nodes is not None
                leaf = self.nodes.add("scalar", f"b{8 * whole}", (), [], number, 1)
                if size != whole:
                    leaf = self.nodes.half(leaf, offset > start, f"b{8 * whole}")
                marks = np.repeat(leaf, len(lanes))
        self.write(i.dst[0], lanes, full, bits, marks)


def _field(i: Instruction) -> tuple[int, int, bool] | None:
    """Return position, length and sign of the byte or half of a word that an operation takes out."""
    by, found = i.src[1] if len(i.src) > 1 else 0, None
    if i.op == "bfe" and isinstance(by, int) and isinstance(i.src[2], int):
        found = (by, i.src[2], i.type == "s32")
    elif i.op == "and" and by in (0xFF, 0xFFFF):
        found = (0, 8 if by == 0xFF else 16, False)
    elif i.op == "shr" and by in (16, 24) and i.type == "s32":
        found = (int(by), 32 - int(by), True)
    elif i.op == "cvt" and i.mods in (("u8",), ("s8",), ("u16",), ("s16",)) and i.type[1:] == "32":
        found = (0, WIDTH[i.mods[0]], i.mods[0][0] == "s")
    whole = found is not None and found[1] in (8, 16) and found[0] % found[1] == 0 and found[0] + found[1] <= 32
    return found if whole and (i.op == "cvt" or WIDTH[i.type] == 32) else None


def _operand_width(i: Instruction, place: int) -> int:
    """Return the bits of an operand of a pure operation."""
    op, type_ = i.op, i.type
    if op == "cvt":
        return max(16, WIDTH[i.mods[0]])
    if op == "select":
        return 1 if place == 2 else WIDTH[type_]
    if op == "pack":
        return WIDTH[type_] // 2
    if (op in ("shl", "shr") and place == 1) or (op == "bfe" and place > 0) or (op == "bfi" and place > 1):
        return 32
    return WIDTH[type_] if type_ == "pred" else max(16, WIDTH[type_])
