"""Text of machine code as `nvdisasm -c` prints it, and the functions in it: lines, labels, calls; no meaning yet.

One instruction is one line, `/*0080*/ @!P0 IMAD.WIDE R2, R3, 0x4, R6 ;`.  A section `.text.NAME` is a kernel (or a device
function); further functions inside it begin at a label `$NAME$FUNCTION:`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from gewu.core.errors import InputError
from gewu.ops.ir import Parameter, Unsupported

_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,8})\*/\s+(?:@(!?)(U?P[T0-9])\s+)?([A-Z][A-Za-z0-9_.]*)([^;]*);")
_LABEL = re.compile(r"([.$A-Za-z_][\w.$@]*):\s*$")
_SECTION = re.compile(r"\s*\.section\s+(\S+?),")
_ENTRY = re.compile(r"\s*\.other\s+(\S+?),\s*@\"STO_CUDA_ENTRY")
_TARGET = re.compile(r"\s*\.target\s+sm_(\d+)", re.MULTILINE)
_TARGET_LABEL = re.compile(r"`\(([^)]*)\)")
_BRANCH_TARGETS = re.compile(r"BRANCH_TARGETS ([^\"]*)\"")
MAXIMUM_TEXT = 256 << 20


@dataclass(frozen=True, slots=True)
class Line:
    """One instruction: address, guard, base opcode, modifiers after the dots, operands as text, label it jumps to."""

    address: int
    guard: tuple[str, bool] | None
    opcode: str
    mods: tuple[str, ...]
    operands: tuple[str, ...]
    target: str = ""
    targets: tuple[str, ...] = ()

    @property
    def full(self) -> str:
        """The opcode with its modifiers."""
        return ".".join((self.opcode, *self.mods))


@dataclass(slots=True)
class Section:
    """Code of one section: lines in order and the index of the line that each label precedes."""

    lines: list[Line] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Disassembly:
    """Everything read from a text: sections by the name after `.text.`, names of the kernels, number of the architecture."""

    sections: dict[str, Section]
    entries: list[str]
    architecture: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What the object file tells of a kernel besides its code.

    Attributes:
        parameters: with offsets from the start of the argument block.
        base: where the argument block starts in constant bank 0.
        shared: bytes of static shared memory, the 1024 reserved ones of sm_90 included: code computes addresses behind them.
        local: bytes of local memory of each thread.
        limit: threads per block that it allows, or 0.
        required: block shape that it demands, or ().
        data: constant banks and global variables.
        banks: offset into `data` and size of each constant bank.
        unset: for each bank the places (first, last + 1, name) of variables without an initial value: only the host sets them.
    """

    parameters: tuple[Parameter, ...] | None = None
    base: int = 0
    shared: int = 0
    local: int = 0
    limit: int = 0
    required: tuple[int, ...] = ()
    data: bytes = b""
    banks: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    unset: Mapping[int, tuple[tuple[int, int, str], ...]] = field(default_factory=dict)


def read_text(text: str, file: str = "") -> Disassembly:
    """Split disassembled text into sections, labels and lines.

    Raises:
        InputError: no code in it, or more than 256 MiB.
    """
    if len(text) > MAXIMUM_TEXT:
        raise InputError(
            "disassembly is too long", file=file or None, value=len(text), allowed=f"at most {MAXIMUM_TEXT} characters"
        )
    target = _TARGET.search(text)
    found = Disassembly({}, [], int(target[1]) if target else 0)
    section: Section | None = None
    for row in text.splitlines():
        if (match := _INSTRUCTION.match(row)) and section is not None:
            section.lines.append(_line(match))
        elif match := _LABEL.match(row):
            if match[1].startswith(".text."):
                section = found.sections.setdefault(match[1][6:], Section())
            if section is not None:
                section.labels[match[1]] = len(section.lines)
        elif _SECTION.match(row):
            section = None
        elif match := _ENTRY.match(row):
            found.entries.append(match[1])
    if not found.sections:
        raise InputError("no machine code in this text", file=file or None, hint="give what nvdisasm -c prints")
    return found


def _line(match: re.Match[str]) -> Line:
    address, inverted, predicate, opcode, rest = match.groups()
    guard = (predicate, not inverted) if predicate else None
    target, targets = "", ()
    if found := _TARGET_LABEL.search(rest):
        target, rest = found[1], rest[: found.start()]
    elif found := _BRANCH_TARGETS.search(rest):
        targets, rest = tuple(name.strip() for name in found[1].split(",")), rest[: rest.index("(*")]
    base, *mods = opcode.split(".")
    return Line(int(address, 16), guard, base, tuple(mods), tuple(_operands(rest)), target, targets)


def _operands(text: str) -> list[str]:
    found, depth, current = [], 0, ""
    for character in text:
        if character == "," and depth == 0:
            found.append(current.strip())
            current = ""
            continue
        depth += (character in "[({") - (character in "])}")
        current += character
    found.append(current.strip())
    return [operand.replace(".reuse", "") for operand in found if operand]


_MEMORY = re.compile(r"(?:desc\[(?P<descriptor>UR\w+)\])?\[(?P<inside>[^\]]*)\]$")
_CONSTANT = re.compile(r"c\[(?P<bank>0x[0-9a-f]+)\]\s*\[(?P<inside>[^\]]*)\]$")
_TERM = re.compile(r"(?P<register>U?R(?:\d+|Z))(?:\.(?P<kind>64|U32|S32|X4|X8|X16))?$")


@dataclass(frozen=True, slots=True)
class Address:
    """An address operand: registers with `64`, `U32`, `X4` ... behind them, and a constant; `bank` for `c[0x3][R4+0x10]`."""

    registers: tuple[tuple[str, str], ...]
    offset: int
    bank: int = -1


def read_address(operand: str) -> Address:
    """Read `[R2.64+UR4+0x10]`, `desc[UR4][R2.64+-0x8]` or `c[0x0][0x160]`.

    Raises:
        Unsupported: another form.
    """
    match = _CONSTANT.match(operand) or _MEMORY.match(operand)
    if not match:
        raise Unsupported("address of an unknown form", value=operand)
    registers: list[tuple[str, str]] = []
    offset = 0
    for term in match["inside"].split("+"):
        term = term.strip()
        if found := _TERM.match(term):
            if found["register"] not in ("RZ", "URZ"):
                registers.append((found["register"], found["kind"] or ""))
        else:
            offset += integer(term)
    bank = int(match["bank"], 16) if "bank" in match.groupdict() else -1
    return Address(tuple(registers), offset, bank)


def is_constant(operand: str) -> bool:
    """Tell whether an operand without its signs reads a constant bank."""
    return operand.startswith("c[")


def integer(text: str) -> int:
    """Read `0x10` or `-0x10`.

    Raises:
        Unsupported: not an integer.
    """
    try:
        return int(text, 16) if "x" in text else int(text)
    except ValueError:
        raise Unsupported("not an integer", value=text) from None
