"""The pen that translates machine code: reads operands of one line into values, writes registers and predicates under its
guard.

Registers of the machine become 32-bit registers of `ir` by the same name (`R0`, `UR4`), predicates `P0`, `UP1`; a pair is
packed when read as 64 bits and unpacked when written.  Temporaries are `t1`, `t2` ...; only writes to registers carry the
guard, so every line must read all its sources before it writes.  The names and copies go away in `clean`.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from gewu.ops.ir import BINARY, CONST_WINDOW, LOCAL_WINDOW, SHARED_WINDOW, UNARY, WIDTH, Instruction, Operand, Unsupported
from gewu.ops.sass_syntax import Address, Facts, Line, integer, is_constant, read_address

PREDICATE: Final = re.compile(r"!?U?P[T0-9]$")
_REGISTER: Final = re.compile(r"(U?R)(\d+|Z)(?:\.64)?$")
_PARTS: Final = re.compile(r"(?P<sign>[-~!]?)(?P<bar>\|?)(?P<body>[^|]*?)\|?(?P<suffix>\.(?:H[01]_H[01]|B[0-3]|H[01]))?$")
_ZEROS: Final = frozenset({"RZ", "URZ", "SRZ"})
PARAMETER_BASE: Final = {**dict.fromkeys((75, 80, 86, 87, 89), 0x160), 90: 0x210}
"""Where arguments start in constant bank 0, by architecture."""
_COUNTS: Final = {
    **dict.fromkeys(UNARY, (1,)),
    **dict.fromkeys(BINARY, (2,)),
    **dict.fromkeys(("fma", "select", "prmt", "dp4a"), (3,)),
    **{"setp": (2,), "cvt": (1, 2), "mov": (1,), "shl": (2,), "shr": (2,)},
}
_LAUNCH: Final = {0x0: "ntid.x", 0x4: "ntid.y", 0x8: "ntid.z", 0xC: "nctaid.x", 0x10: "nctaid.y", 0x14: "nctaid.z"}


class Emitter:
    """Translate line by line into `code`; `widths` gathers the registers.

    Args:
        facts: what is known of the kernel.
        architecture: 80 for sm_80.
    """

    def __init__(self, facts: Facts, architecture: int) -> None:
        self.facts, self.architecture = facts, architecture
        self.base = facts.base or PARAMETER_BASE[architecture]
        self.code: list[Instruction] = []
        self.widths: dict[str, str] = {}
        self.guard: tuple[str, bool] | None = None
        self.where = ""
        self._count = 0

    def temporary(self, bits: int) -> str:
        """Return a new register of 1, 16, 32 or 64 bits."""
        self._count += 1
        name = f"t{self._count}"
        self.widths[name] = "pred" if bits == 1 else f"b{bits}"
        return name

    def op(self, op: str, type_: str, *src: Operand, mods: tuple[str, ...] = (), bits: int = 0) -> str:
        """Append an instruction with one new destination of `bits` (as wide as the type when 0) and return it."""
        dst = self.temporary(bits or max(WIDTH[type_], 16 if WIDTH[type_] > 1 else 1))
        self.add(op, type_, (dst,), src, mods)
        return dst

    def add(
        self,
        op: str,
        type_: str,
        dst: tuple[str, ...],
        src: tuple[Operand, ...],
        mods: tuple[str, ...] = (),
        guarded: bool = False,
    ) -> None:
        """Append an instruction; `guarded` ones act under the guard of the line."""
        if len(src) not in _COUNTS.get(op, (len(src),)):
            raise Unsupported("wrong number of operands", value=len(src))
        self.code.append(Instruction(op, type_, dst, src, mods, self.guard if guarded else None, self.where))

    def begin(self, line: Line) -> bool:
        """Take the guard of a line; False when it never runs."""
        self.where, self.guard = f"0x{line.address:04x}", line.guard
        if line.guard and line.guard[0] in ("PT", "UPT"):
            self.guard = None
            return line.guard[1]
        if line.guard:
            name, sense = line.guard
            self.widths.setdefault(name, "pred")
            if line.opcode == "R2P" or any(operand.lstrip("!") == name for operand in line.operands):
                # The line may overwrite its own guard before its last write.
                self.guard = (self.op("mov", "pred", name), sense)
        return True

    def register(self, name: str, index: int = 0) -> str:
        """Return the name of the register `index` places after this one; "" for the zero register.

        Raises:
            Unsupported: not a register.
        """
        match = _REGISTER.match(name)
        if not match:
            raise Unsupported("not a register", value=name)
        if match[2] == "Z":
            return ""
        found = f"{match[1]}{int(match[2]) + index}"
        self.widths.setdefault(found, "b32")
        return found

    def raw(self, body: str, index: int = 0) -> Operand:
        """Read 32 bits of a register, a constant or an integer without signs; `index` 1 is the upper half of 64."""
        if body in _ZEROS:
            return 0
        if is_constant(body):
            return self.constant(body, index)
        if _REGISTER.match(body):
            return self.register(body, index) or 0
        return (integer(body) >> (32 * index)) & 0xFFFFFFFF

    def constant(self, body: str, index: int = 0) -> Operand:
        """Read 32 bits of a constant bank at a fixed place."""
        address = read_address(body)
        if address.registers:
            raise Unsupported("constant bank indexed inside an operand", value=body)
        return self.bank(address.bank, address.offset + 4 * index)

    def bank(self, bank: int, offset: int) -> Operand:
        """Read 32 bits of bank `bank`: launch, arguments, or data of the module."""
        if bank == 0:
            return self._driver(offset) if offset < self.base else self.op("param", "b32", offset - self.base)
        start, size = self.facts.banks.get(bank, (0, 0))
        if offset < 0 or offset + 4 > size:
            raise Unsupported("constant bank that the file does not hold", value=f"c[{bank:#x}][{offset:#x}]")
        self._check_set(bank, offset)
        if bank == 3:
            return self.op("ld", "b32", CONST_WINDOW + start + offset, 0, mods=("const",))
        return int(struct.unpack_from("<I", self.facts.data, start + offset)[0])

    def _check_set(self, bank: int, offset: int) -> None:
        for start, end, name in self.facts.unset.get(bank, ()):
            if start <= offset < end:
                reason = "variable without an initial value, which only the host sets: give it as `constants` to `load`"
                raise Unsupported(reason, value=name)

    def constant_place(self, address: Address) -> tuple[Operand, int]:
        """Return the 64-bit address and the constant offset of an indexed place in a bank of the file."""
        start, size = self.facts.banks.get(address.bank, (0, 0))
        if not size:
            raise Unsupported("indexed constant bank", value=f"c[{address.bank:#x}]")
        self._check_set(address.bank, address.offset)
        place: Operand = CONST_WINDOW + start
        for register, _ in address.registers:
            place = self.op("add", "u64", self.widen(self.raw(register), signed=True), place)
        return place, address.offset & 0xFFFFFFFFFFFFFFFF

    def _driver(self, offset: int) -> Operand:
        if offset in _LAUNCH:
            return self.op("special", "b32", mods=(_LAUNCH[offset],))
        windows = {0x18: SHARED_WINDOW, 0x1C: SHARED_WINDOW >> 32, 0x20: LOCAL_WINDOW, 0x24: LOCAL_WINDOW >> 32}
        if offset in windows:
            return windows[offset] & 0xFFFFFFFF
        if offset == 0x28:
            return self.facts.local
        if offset & ~4 == (0x208 if self.architecture >= 90 else 0x118):
            return 0
        raise Unsupported("constant of the driver", value=f"c[0x0][{offset:#x}]")

    def parts(self, operand: str) -> tuple[str, bool, str, str]:
        """Split an operand into sign, absolute value, body and swizzle."""
        match = _PARTS.match(operand)
        if not match:
            raise Unsupported("operand of an unknown form", value=operand)
        return match["sign"], bool(match["bar"]), match["body"], match["suffix"] or ""

    def int32(self, operand: str) -> Operand:
        """Read 32 bits as an integer; minus, tilde and bars apply to integers."""
        if re.match(r"-?(0x|\d)", operand):
            return integer(operand) & 0xFFFFFFFF
        sign, bar, body, suffix = self.parts(operand)
        value = self.raw(body)
        if suffix:
            value = self.piece(value, suffix[1:], signed=False)
        if bar:
            value = self.op("abs", "s32", value)
        return self.op("neg", "s32", value) if sign == "-" else self.op("not", "b32", value) if sign == "~" else value

    def piece(self, value: Operand, suffix: str, signed: bool) -> Operand:
        """Return byte `B0` .. `B3` or half `H0`, `H1` of 32 bits, extended."""
        width = 8 if suffix[0] == "B" else 16
        return self.op("bfe", "s32" if signed else "u32", value, width * int(suffix[1]), width)

    def int64(self, operand: str) -> Operand:
        """Read a pair as a 64-bit integer."""
        if re.match(r"-?(0x|\d)", operand):
            return integer(operand) & (1 << 64) - 1
        sign, _, body, _ = self.parts(operand)
        if body in _ZEROS:
            return 0
        value = self.pair(self.raw(body), self.raw(body, 1))
        return self.op("neg", "s64", value) if sign == "-" else self.op("not", "b64", value) if sign == "~" else value

    def pair(self, low: Operand, high: Operand) -> Operand:
        """Pack two 32-bit values."""
        if isinstance(low, int) and isinstance(high, int):
            return low | high << 32
        return self.op("pack", "b64", low, high)

    def halves(self, value: Operand) -> tuple[Operand, Operand]:
        """Unpack 64 bits."""
        if isinstance(value, int):
            return value & 0xFFFFFFFF, value >> 32
        low, high = self.temporary(32), self.temporary(32)
        self.add("unpack", "b64", (low, high), (value,))
        return low, high

    def widen(self, value: Operand, signed: bool = False) -> Operand:
        """Extend 32 bits to 64."""
        if isinstance(value, int):
            return (value - (1 << 32) if signed and value >> 31 else value) & (1 << 64) - 1
        return self.op("cvt", "s64" if signed else "u64", value, mods=("s32" if signed else "u32",))

    def float32(self, operand: str) -> Operand:
        """Read 32 bits as a float with its signs."""
        sign, bar, body, suffix = self.parts(operand)
        if _is_number(body) and "0x" not in body:
            return number(operand, 32)
        value = self.raw(body)
        if suffix:
            half = self.temporary(16), self.temporary(16)
            self.add("unpack", "b32", half, (value,))
            value = self.op("cvt", "f32", half[int(suffix[2])], mods=("f16",))
        return self._signed("f32", value, sign, bar)

    def float64(self, operand: str) -> Operand:
        """Read a pair as a float with its signs."""
        sign, bar, body, _ = self.parts(operand)
        if _is_number(body):
            return number(operand, 64)
        return self._signed("f64", 0 if body in _ZEROS else self.pair(self.raw(body), self.raw(body, 1)), sign, bar)

    def split_halves(self, value: Operand) -> tuple[Operand, Operand]:
        """Unpack 32 bits into lower and upper half."""
        if isinstance(value, int):
            return value & 0xFFFF, value >> 16
        low, high = self.temporary(16), self.temporary(16)
        self.add("unpack", "b32", (low, high), (value,))
        return low, high

    def half(self, operand: str) -> Operand:
        """Read one half, the lower one unless `.H1_H1` stands behind it."""
        _, _, body, suffix = self.parts(operand)
        return self.split_halves(self.raw(body))[suffix.startswith(".H1")]

    def half_pair(self, operand: str) -> Operand:
        """Read a pair of halves with its swizzle and signs."""
        sign, bar, body, suffix = self.parts(operand)
        value = self.raw(body)
        if suffix in (".H0_H0", ".H1_H1"):
            half = self.split_halves(value)[int(suffix[2])]
            value = half * 0x10001 if isinstance(half, int) else self.op("pack", "b32", half, half)
        elif suffix:
            raise Unsupported("swizzle of halves", value=operand)
        if bar:
            value = value & 0x7FFF7FFF if isinstance(value, int) else self.op("and", "b32", value, 0x7FFF7FFF)
        if sign == "-":
            value = value ^ 0x80008000 if isinstance(value, int) else self.op("xor", "b32", value, 0x80008000)
        return value

    def _signed(self, type_: str, value: Operand, sign: str, bar: bool) -> Operand:
        if isinstance(value, int):
            top = 1 << WIDTH[type_] - 1
            return (value & ~top if bar else value) ^ (top if sign == "-" else 0)
        if bar:
            value = self.op("abs", type_, value)
        return self.op("neg", type_, value) if sign == "-" else value

    def predicate(self, operand: str) -> Operand:
        """Read `P0`, `!UP1`, `PT`: a register, or 0 or 1."""
        inverted, name = operand[0] == "!", operand.lstrip("!")
        if not PREDICATE.match(operand):
            raise Unsupported("not a predicate", value=operand)
        if name in ("PT", "UPT"):
            return 0 if inverted else 1
        self.widths.setdefault(name, "pred")
        return self.op("not", "pred", name) if inverted else name

    def write(self, register: str, value: Operand, index: int = 0) -> None:
        """Write 32 bits to a register."""
        if name := self.register(register, index):
            self.add("mov", "b32", (name,), (value,), guarded=True)

    def write_half(self, register: str, value: Operand) -> None:
        """Write 16 bits, zeros above."""
        self.write(register, value if isinstance(value, int) else self.op("pack", "b32", value, 0))

    def write64(self, register: str, value: Operand) -> None:
        """Write 64 bits to a pair."""
        if self.register(register):
            low, high = self.halves(value)
            self.write(register, low)
            self.write(register, high, 1)

    def write_predicate(self, name: str, value: Operand) -> None:
        """Write a predicate."""
        if name not in ("PT", "UPT"):
            self.widths.setdefault(name, "pred")
            self.add("mov", "pred", (name,), (value,), guarded=True)

    def combine(self, kind: str, a: Operand, b: Operand) -> Operand:
        """Join two predicates by `AND`, `OR` or `XOR`."""
        if isinstance(b, int) and (kind, b) in (("AND", 1), ("OR", 0), ("XOR", 0)):
            return a
        return self.op(kind.lower(), "pred", a, b)

    def invert(self, value: Operand) -> Operand:
        """Return the opposite of a predicate."""
        return 1 - value if isinstance(value, int) else self.op("not", "pred", value)


_NUMBER: Final = re.compile(r"[+-]?(?:\d|INF|QNAN|SNAN)")


def _is_number(body: str) -> bool:
    return bool(_NUMBER.match(body))


def number(text: str, bits: int) -> int:
    """Return the bits of a floating-point literal such as `-1.5`, `+INF` or `-QNAN`.

    Raises:
        Unsupported: not a number.
    """
    sign = text.startswith("-")
    body = text.strip("+-").strip()
    if body in ("QNAN", "SNAN"):
        return (int(sign) << bits - 1) | {16: 0x7FFF, 32: 0x7FFFFFFF, 64: 0x7FFFFFFF00000000}[bits]
    try:
        value = float("inf") if body == "INF" else float(body)
        packed = struct.pack({16: "<e", 32: "<f", 64: "<d"}[bits], -value if sign else value)
    except (ValueError, OverflowError):
        raise Unsupported("not a number", value=text) from None
    return int.from_bytes(packed, "little")
