"""Machine code of NVIDIA processors (sm_75 to sm_90), as `nvdisasm` prints it, to kernels in `ir`.

Each instruction becomes a few typed operations on 32-bit registers; calls (the slow paths of division and square root,
functions that were not inlined) are inlined by copying the blocks of the callee once per call; jump tables become chains of
comparisons; then `clean` removes the noise.  An opcode that is not known refuses its kernel and names opcode and address; other
kernels go on.

Conventions: shared addresses are used as the code computes them, so the 1024 reserved bytes of sm_90 count as static shared
memory; the stack pointer starts at the top of local memory; uniform registers are kept in every thread.  Not read: matrix
instructions other than HMMA, texture, surface and tensor-memory instructions, calls through pointers, barriers of part of a
block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gewu.core.errors import InputError
from gewu.ops.clean import clean
from gewu.ops.ir import CONST_WINDOW, WIDTH, Block, Instruction, Kernel, Listing, Operand, Parameter, Unsupported, check
from gewu.ops.sass_emit import PARAMETER_BASE, Emitter
from gewu.ops.sass_float import FLOAT
from gewu.ops.sass_integer import INTEGER, Handler
from gewu.ops.sass_matrix import MATRIX
from gewu.ops.sass_memory import MEMORY
from gewu.ops.sass_modifiers import check_modifiers
from gewu.ops.sass_syntax import Disassembly, Facts, Line, read_text

HANDLERS: Final[dict[str, Handler]] = {**INTEGER, **FLOAT, **MEMORY, **MATRIX}
CONTROL: Final = frozenset({"BRA", "EXIT", "KILL", "CALL", "RET", "BRX", "BRXU", "JMP", "BPT"})
MAXIMUM_LINES: Final = 200_000
MAXIMUM_DEPTH: Final = 16


@dataclass(frozen=True)
class _Place:
    """A line of a section, reached through calls: `back` is where the innermost one returns to."""

    section: str
    index: int
    back: _Place | None = None
    depth: int = 0


def read_sass(text: str, facts: Mapping[str, Facts] | None = None, architecture: int = 0, file: str = "") -> Listing:
    """Read the kernels of a disassembly.

    Args:
        text: what `nvdisasm -c` prints.
        facts: what the object file tells of each kernel; without it, arguments are guessed from the reads.
        architecture: 80 for sm_80; 0: as the text says.
        file: name for messages.

    Returns:
        Kernels by name and the refused ones with their reason.

    Raises:
        InputError: no machine code, or of another architecture.
    """
    source = read_text(text, file)
    number = architecture or source.architecture
    if number not in PARAMETER_BASE:
        allowed = ", ".join(f"sm_{n}" for n in PARAMETER_BASE)
        raise InputError(
            "machine code of an architecture that gewu does not read", file=file or None, value=f"sm_{number}", allowed=allowed
        )
    names = list(facts) if facts is not None else source.entries or list(source.sections)
    listing = Listing()
    for name in names:
        try:
            listing.kernels[name] = _kernel(source, name, (facts or {}).get(name, Facts()), number)
        except Unsupported as error:
            listing.refused[name] = str(error)
        except RecursionError:
            listing.refused[name] = "nested too deep"
    return listing


def _kernel(source: Disassembly, name: str, facts: Facts, architecture: int) -> Kernel:
    if name not in source.sections:
        raise Unsupported("no code for this kernel", value=name)
    flow = _Flow(source, Emitter(facts, architecture))
    blocks = flow.blocks_from(name)
    raw = Kernel(name, facts.parameters or (), blocks, flow.emitter.widths, facts.shared, facts.local, facts.data)
    raw.source, raw.limit, raw.required = f"sass sm_{architecture}", facts.limit, facts.required
    kernel = clean(raw)
    if facts.parameters is None:
        kernel.parameters = _guessed(kernel.blocks)
    check(kernel)
    _check_writes(kernel)
    return kernel


def _check_writes(kernel: Kernel) -> None:
    """Refuse stores to variables of the module: what one launch leaves there the next one would have to find."""
    makers: dict[str, list[Instruction]] = {}
    for block in kernel.blocks:
        for i in block.code:
            for name in i.dst:
                makers.setdefault(name, []).append(i)
    for block in kernel.blocks:
        for i in block.code:
            if i.op not in ("st", "atom") or i.mods[0] not in ("global", "generic"):
                continue
            waiting, seen = list(i.src[:1]), set(i.src[:1])
            while waiting:
                operand = waiting.pop()
                if isinstance(operand, int):
                    if CONST_WINDOW <= operand <= CONST_WINDOW + len(kernel.data):
                        raise Unsupported(f"writes a module variable at {i.where}")
                    continue
                fresh = {
                    s for m in makers.get(operand, ()) if m.op in ("add", "sub", "mov", "select", "pack") for s in m.src
                } - seen
                seen |= fresh
                waiting += fresh


def _guessed(blocks: list[Block]) -> tuple[Parameter, ...]:
    """Return arguments that fit the reads: two reads that follow each other and are packed are one of eight bytes."""
    reads = sorted({(i.src[0], WIDTH[i.type] // 8) for block in blocks for i in block.code if i.op == "param"}, key=str)
    sizes: dict[int, int] = {}
    for offset, size in reads:
        if isinstance(offset, int):
            sizes[offset] = max(size, sizes.get(offset, 0))
    return tuple(Parameter(offset, sizes[offset]) for offset in sorted(sizes))


@dataclass
class _Flow:
    """Turn lines into blocks, following jumps and copying callees."""

    source: Disassembly
    emitter: Emitter
    numbers: dict[_Place, int] = field(default_factory=dict)
    waiting: list[_Place] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    lines: int = 0

    def blocks_from(self, name: str) -> list[Block]:
        """Return the blocks of a kernel; the first one is its entry."""
        self._leaders = {key: self._starts(key) for key in self.source.sections}
        self._number(_Place(name, 0))
        while self.waiting:
            place = self.waiting.pop()
            self._translate(place, self.blocks[self.numbers[place]])
        return self.blocks

    def _starts(self, section: str) -> set[int]:
        found = self.source.sections[section]
        return {0, *found.labels.values(), *(i + 1 for i, line in enumerate(found.lines) if line.opcode in CONTROL)}

    def _number(self, place: _Place) -> int:
        if place not in self.numbers:
            self.numbers[place] = len(self.blocks)
            self.blocks.append(Block([], ()))
            self.waiting.append(place)
        return self.numbers[place]

    def _translate(self, place: _Place, block: Block) -> None:
        lines = self.source.sections[place.section].lines
        e, index = self.emitter, place.index
        e.code = block.code
        while index < len(lines):
            line = lines[index]
            self.lines += 1
            if self.lines > MAXIMUM_LINES:
                raise Unsupported(
                    "code too long after its calls are inlined", value=self.lines, allowed=f"{MAXIMUM_LINES} instructions"
                )
            index += 1
            try:
                runs = e.begin(line)
                check_modifiers(line)
                if line.opcode in CONTROL:
                    if runs and self._control(block, line, _Place(place.section, index, place.back, place.depth)):
                        return
                elif line.opcode == "LEPC":
                    raise Unsupported("call through a pointer (printf, assert, malloc, function pointers)")
                elif line.opcode not in HANDLERS:
                    raise Unsupported(f"unknown opcode {line.full} at 0x{line.address:04x}")
                elif runs:
                    HANDLERS[line.opcode](e, line)
            except (ValueError, IndexError, KeyError, TypeError) as error:
                raise Unsupported(f"operands of {line.full} at 0x{line.address:04x}", value=", ".join(line.operands)) from error
            except Unsupported as error:
                if error.message.startswith("unknown opcode"):
                    raise
                raise Unsupported(f"{error.message} at 0x{line.address:04x}", value=error.value or line.full) from error
            if index in self._leaders[place.section]:
                block.next = (self._number(_Place(place.section, index, place.back, place.depth)),)
                return

    def _control(self, block: Block, line: Line, after: _Place) -> bool:
        """Close the block with a jump; False when the line does nothing."""
        e = self.emitter
        if line.opcode in ("EXIT", "KILL") or (line.opcode == "RET" and after.back is None):
            e.add("exit", "b32", (), (), guarded=True)
            block.next = (self._number(after),) if e.guard else ()
        elif line.opcode == "BPT":
            e.add("trap", "b32", (), (), guarded=True)
            block.next = (self._number(after),) if e.guard else ()
        elif line.opcode == "BRA" and "DIV" in line.mods:
            # Taken by warps that have diverged, to shuffle them in turns: here lanes meet anyway. CONV is its opposite.
            return False
        elif line.opcode in ("BRA", "JMP") or (line.opcode == "CALL" and line.target.startswith(".L_")):
            # A call of a label, not of a function, is a far jump: nothing returns from it.
            self._jump(block, self._label(line, after), after, self._condition(line))
        elif line.opcode == "CALL":
            if after.depth >= MAXIMUM_DEPTH:
                raise Unsupported("calls nested too deep or recursive", value=line.target)
            section, index = self._function(line, after)
            self._jump(block, _Place(section, index, self._return(line, after), after.depth + 1), after, self._condition(line))
        elif line.opcode == "RET" and after.back is not None:
            self._jump(block, after.back, after, self._condition(line))
        else:
            self._table(block, line, after)
        return True

    def _condition(self, line: Line) -> Operand:
        e = self.emitter
        condition: Operand = 1
        if e.guard:
            condition = e.guard[0] if e.guard[1] else e.invert(e.guard[0])
        if line.opcode == "BRA":
            for operand in line.operands:
                if re.match(r"!?U?P[T0-9]$", operand):
                    value = e.predicate(operand)
                    condition = e.combine("AND", value, condition) if condition != 1 else value
        return condition

    def _jump(self, block: Block, target: _Place, after: _Place, condition: Operand) -> None:
        if condition == 1:
            block.next = (self._number(target),)
        elif condition == 0:
            block.next = (self._number(after),)
        else:
            block.code.append(Instruction("bra", "pred", guard=(str(condition), True), where=self.emitter.where))
            block.next = (self._number(target), self._number(after))

    def _label(self, line: Line, after: _Place) -> _Place:
        labels = self.source.sections[after.section].labels
        if line.target not in labels:
            raise Unsupported("jump to an unknown label", value=line.target or ", ".join(line.operands))
        return _Place(after.section, labels[line.target], after.back, after.depth)

    def _function(self, line: Line, after: _Place) -> tuple[str, int]:
        for name in (after.section, *self.source.sections):
            labels = self.source.sections[name].labels
            if line.target and line.target in labels:
                return name, labels[line.target]
            if line.target and name == line.target:
                return name, 0
        raise Unsupported("call of an unknown function", value=line.target or ", ".join(line.operands))

    def _return(self, line: Line, after: _Place) -> _Place:
        """Return where a call comes back to: the code loads the address into a register beforehand."""
        lines = self.source.sections[after.section].lines
        number = after.index - 1
        following = line.address + 16
        addresses = {other.address: place for place, other in enumerate(lines)}
        last = None
        for other in reversed(lines[max(0, number - 64) : number]):
            if other.opcode in CONTROL:
                break
            if other.opcode in ("MOV", "IMAD", "UMOV") and re.match(r"0x[0-9a-f]+0$", other.operands[-1]):
                value = int(other.operands[-1], 16)
                if value == following:
                    last = None
                    break
                if value in addresses and last is None and _returns_here(lines, addresses[value]):
                    last = addresses[value]
        return _Place(after.section, after.index if last is None else last, after.back, after.depth)

    def _table(self, block: Block, line: Line, after: _Place) -> None:
        """BRX: compare the address with every target that the disassembler lists."""
        if not line.targets or self.emitter.guard:
            raise Unsupported("indirect jump", value=line.full)
        e = self.emitter
        register, *rest = line.operands[0].split()
        offset = sum(int(term, 16) for term in rest)
        value = e.op("add", "u32", e.raw(register), (line.address + 16 + offset) & 0xFFFFFFFF)
        section = self.source.sections[after.section]
        targets = [section.labels[name] for name in dict.fromkeys(line.targets)]
        current = block
        for index in targets[:-1]:
            e.code = current.code
            address = section.lines[index].address
            hit = e.op("setp", "u32", value, address, mods=("eq",), bits=1)
            e.code.append(Instruction("bra", "pred", guard=(hit, True), where=e.where))
            number = len(self.blocks)
            self.blocks.append(Block([], ()))
            current.next = (self._number(_Place(after.section, index, after.back, after.depth)), number)
            current = self.blocks[number]
        current.next = (self._number(_Place(after.section, targets[-1], after.back, after.depth)),)


def _returns_here(lines: list[Line], index: int) -> bool:
    """Tell whether a place can be one that a call returns to: the line before it leaves."""
    return index > 0 and lines[index - 1].opcode in CONTROL
