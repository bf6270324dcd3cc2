"""The kernel being written while PTX is read: names and scopes, operands, addresses, instructions in the order of the text.

Registers get a width when they are first used.  A name that is declared twice, in nested scopes or by a function that is inlined
twice, stands for different registers.  Temporaries (their names begin with a dot) are written whatever the guard.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gewu.ops import ir
from gewu.ops.ir import CONST_WINDOW, WIDTH, Instruction, Operand, Unsupported
from gewu.ops.logic import lop3
from gewu.ops.ptx_syntax import Address, Item, Negated, Number, Pair, bits_of

MOST_REGISTERS: Final = 100_000
MOST_INSTRUCTIONS: Final = 200_000
_SPECIAL: Final = re.compile(
    r"%(?:n?tid|n?ctaid)\.[xyz]|%lanemask_(?:lt|le|gt|ge|eq)|%(?:laneid|warpid|nwarpid|smid|clock|clock64|dynamic_smem_size)"
)
_NUMBERED: Final = re.compile(r"(.*?)(0|[1-9][0-9]{0,7})", re.DOTALL)
_NAME: Final = re.compile(r"[%$\w]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Variable:
    """A place in memory: `place` within its space (module data: from CONST_WINDOW); `why`: the reason not to read it, or ""."""

    space: str
    place: int
    why: str = ""


@dataclass(slots=True)
class Slot:
    """A variable of the parameter space of a call: a register for each piece (offset, bytes) that is written."""

    pieces: dict[tuple[int, int], str] = field(default_factory=dict)


Entry = str | Variable | Slot | ir.Parameter


@dataclass(slots=True)
class Scope:
    """What is declared between two braces."""

    names: dict[str, Entry] = field(default_factory=dict)
    ranges: dict[str, tuple[int, str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Line:
    """One instruction as written: name, types among its modifiers, the other modifiers, operands."""

    word: str
    op: str
    types: tuple[str, ...]
    mods: tuple[str, ...]
    items: tuple[Item, ...]

    @property
    def type(self) -> str:
        """The last type: that of the sources."""
        return self.types[-1]

    def one_of(self, *names: str) -> str:
        """Return the first modifier that is among these, or ""."""
        return next((m for m in self.mods if m in names), "")


def width_of(type_: str) -> str:
    """Return the width of the register that holds a type."""
    return "pred" if type_ == "pred" else f"b{max(16, WIDTH[type_])}"


class Writer:
    """Collect the instructions of one kernel.

    Args:
        name: the kernel, for messages.
        names: module variables and parameters.
    """

    def __init__(self, name: str, names: dict[str, Entry]) -> None:
        self.name, self.line = name, 0
        self.widths: dict[str, str] = {}
        self.code: list[Instruction | str] = []
        self.guard: tuple[str, bool] | None = None
        self.module = Scope(names)
        self.scopes: list[Scope] = [self.module]
        self.parameter_copy: Callable[[], int] = lambda: 0
        self.carry = ""
        self.block = self.counter = 0
        self._fresh = self._labels = 0

    def refuse(self, what: str, value: Any = None) -> Unsupported:
        """Return the refusal of the current instruction."""
        return Unsupported(f"{what} at line {self.line}", key=self.name, value=value)

    # names

    def declare(self, name: str, width: str, count: int | None = None) -> None:
        """Declare a register, or `count` registers with numbers behind the name."""
        if not _NAME.fullmatch(name):
            raise self.refuse("no name of a register", name)
        if count is not None:
            self.scopes[-1].ranges[name] = count, width
        else:
            self.scopes[-1].names[name] = self._register(name, width)

    def find(self, name: str) -> Entry | None:
        """Return what a name stands for: a register, a variable, a slot, a parameter, or None."""
        for scope in reversed(self.scopes):
            found = scope.names.get(name)
            if found is not None:
                return found
            parts = _NUMBERED.fullmatch(name) if scope.ranges else None
            for end in range(len(name) - 1, len(parts[1]) - 1, -1) if parts else ():
                count, width = scope.ranges.get(name[:end], (0, ""))
                digits = name[end:]
                if count > int(digits) and str(int(digits)) == digits:
                    scope.names[name] = self._register(name, width)
                    return scope.names[name]
        return None

    def _register(self, name: str, width: str) -> str:
        unique = name if name not in self.widths else f"{name}.{len(self.widths)}"
        if len(self.widths) >= MOST_REGISTERS:
            raise self.refuse("more registers than gewu holds")
        self.widths[unique] = width
        return unique

    def register(self, name: str) -> str:
        """Return the unique name of a register."""
        found = self.find(name)
        if not isinstance(found, str):
            raise self.refuse("a register that is not declared", name)
        return found

    def temporary(self, width: str) -> str:
        """Return a new register."""
        self._fresh += 1
        name = f".{self._fresh}"
        self.widths[name] = width
        return name

    def label(self) -> str:
        """Return a new label, to be put into `code`."""
        self._labels += 1
        return f"label {self._labels}"

    # instructions

    def emit(self, op: str, type_: str, dst: Sequence[str] = (), src: Sequence[Operand] = (), mods: Sequence[str] = ()) -> None:
        """Append an instruction under the current guard."""
        pure = op in ir.PURE or op in ("special", "param")
        guard = None if pure and dst and all(d[0] == "." for d in dst) else self.guard
        self.code.append(Instruction(op, type_, tuple(dst), tuple(src), tuple(mods), guard, f"line {self.line}"))
        if len(self.code) > MOST_INSTRUCTIONS:
            raise self.refuse("more instructions than gewu reads")

    def make(self, op: str, type_: str, *src: Operand, mods: Sequence[str] = (), width: str = "") -> str:
        """Compute into a new register and return it."""
        made = self.temporary(width or ("pred" if op == "setp" else width_of(type_)))
        self.emit(op, type_, [made], src, mods)
        return made

    def trap_where(self, test: str) -> None:
        """Abort the kernel in threads where a predicate (and the current guard) holds."""
        outer, skip = self.guard, self.label()
        if outer is not None:
            own = outer[0] if outer[1] else self.make("not", "pred", outer[0])
            test = self.make("and", "pred", test, own)
        self.guard = (test, False)
        self.emit("bra", "pred", mods=(skip,))
        self.guard = None
        self.emit("trap", "pred")
        self.code.append(skip)
        self.guard = outer

    def lop3(self, lut: int, sources: Sequence[Operand], type_: str = "b32") -> Operand:
        """Apply a table of three bits."""
        a, b, c = sources
        return lop3(lut, a, b, c, lambda op, *src: self.make(op, type_, *src), (1 << WIDTH[type_]) - 1)

    def halves(self, value: Operand, type_: str) -> tuple[str, str]:
        """Return the low and the high half of a value of type b32 or b64."""
        low, high = (self.temporary(f"b{WIDTH[type_] // 2}") for _ in range(2))
        self.emit("unpack", type_, [low, high], [value])
        return low, high

    def fit(self, value: Operand, width: str) -> Operand:
        """Return a value cut or extended by zeros to the width of a register."""
        if isinstance(value, int):
            return value & ((1 << WIDTH[width]) - 1)
        have = self.widths[value]
        if have == width:
            return value
        if "pred" in (have, width):
            raise self.refuse("a predicate in the place of a number, or the other way round")
        return self.make("cvt", f"u{width[1:]}", value, mods=(f"u{have[1:]}",))

    # operands

    def source(self, item: Item, type_: str, loose: bool = False) -> Operand:
        """Return an operand as a register or raw bits; `loose`: the register may have another width than the type."""
        if isinstance(item, Number):
            return self._immediate(item, type_)
        if isinstance(item, Negated) and type_ == "pred":
            return self.make("not", "pred", self._wide(self.register(item.name), "pred"))
        if isinstance(item, Address) and isinstance(item.base, str):
            place = self._place(item.base)
            return (place + item.offset) & ((1 << WIDTH[type_]) - 1)
        if not isinstance(item, str):
            raise self.refuse("an operand that is not read")
        if item == "WARP_SZ":
            return 32
        if _SPECIAL.fullmatch(item):
            width = "b64" if item == "%clock64" else "b32"
            return self.fit(self.make("special", width, mods=(item[1:].removesuffix("64"),)), width_of(type_))
        found = self.find(item)
        if isinstance(found, str):
            return found if loose else self._wide(found, width_of(type_))
        if found is None and item[0] == "%":
            raise self.refuse("a register that is not declared", item)
        return self._place(item) & ((1 << WIDTH[type_]) - 1)

    def _immediate(self, number: Number, type_: str) -> int:
        if type_ == "pred":
            return int(number.value != 0)
        if (number.width and type_ not in ir.FLOATS and number.width != WIDTH[type_]) or (
            not number.width and number.value and type_ in ("f32", "f64")
        ):
            raise self.refuse("an immediate of another type", number.value)
        return bits_of(number, type_) & ((1 << WIDTH[type_]) - 1)

    def _wide(self, register: str, width: str) -> str:
        if self.widths[register] != width:
            raise self.refuse(f"a register of {self.widths[register]} where {width} belongs", register)
        return register

    def _place(self, name: str) -> int:
        """Return the address of a variable."""
        found = self.find(name)
        if isinstance(found, ir.Parameter):
            return self.parameter_copy() + found.offset
        if not isinstance(found, Variable):
            raise self.refuse("a name that is not declared", name)
        if found.why:
            raise self.refuse(found.why, name)
        return found.place

    def target(self, item: Item, type_: str, loose: bool = False) -> str:
        """Return a destination register; a new one for `_`."""
        if item == "_":
            return self.temporary(width_of(type_))
        if not isinstance(item, str):
            raise self.refuse("a destination that is not read")
        found = self.register(item)
        return found if loose else self._wide(found, width_of(type_))

    def pair(self, item: Item) -> tuple[str, str]:
        """Return the names of `d|p`; "_" for what is not there."""
        if isinstance(item, Pair):
            return item.first, item.second
        if not isinstance(item, str):
            raise self.refuse("a destination that is not read")
        return item, "_"

    def vector(self, item: Item) -> tuple[Item, ...]:
        """Return the parts of a vector operand."""
        return item if isinstance(item, tuple) else (item,)

    def address(self, item: Item, space: str) -> tuple[Operand, int]:
        """Return base and offset of `[base + offset]` in a space; offsets below zero go into the base."""
        if not isinstance(item, Address):
            raise self.refuse("an address that is not read")
        narrow = space in ("shared", "local")
        if isinstance(item.base, Number):
            return (item.base.value + item.offset) & ((1 << (32 if narrow else 64)) - 1), 0
        found = self.find(item.base)
        if not isinstance(found, str):
            place = self._place(item.base) + item.offset
            owner = "local" if isinstance(found, ir.Parameter) else found.space if isinstance(found, Variable) else ""
            if owner != space and not (place >= CONST_WINDOW and space in ("global", "const", "generic")):
                raise self.refuse("a variable of another space", item.base)
            return place & ((1 << 64) - 1), 0
        base = self.fit(found, "b32") if narrow else self._wide(found, "b64")
        if item.offset >= 0:
            return base, item.offset
        bits = 32 if narrow else 64
        return self.make("add", f"u{bits}", base, item.offset & ((1 << bits) - 1)), 0
