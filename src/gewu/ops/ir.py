"""What one thread of a kernel does: typed instructions in basic blocks, the one language that every reader ends in.

A register is a name and a bag of bits; each instruction says how it takes them, so machine code, which has no types, and PTX meet
here.  Widths: `pred` 1 bit, `b16`, `b32`, `b64`.  Types: `pred`, `u8 s8 b8`, `u16 s16 b16 f16 bf16`, `u32 s32 b32 f32 f16x2
bf16x2`, `u64 s64 b64 f64`.  `b` means bits.  Calls are inlined by the readers; a kernel holds jumps and exits only.

An operand is a register (`str`) or an immediate (`int`: the raw bits, non-negative).  A guard `(p, True)` lets the instruction
act in those threads where p holds, `(p, False)` where it does not; registers elsewhere keep their value.

| op | type | sources → destinations; modifiers |
|---|---|---|
| mov | bN, pred | a → d |
| select | bN, pred | a, b, p → d = a where p else b |
| pack | b32, b64 | low, high (halves of the type) → d |
| unpack | b32, b64 (of the source) | a → low, high halves |
| add sub mul | integer (wraps), float | a, b → d; float: rounding `rn rz rm rp`, `ftz`, `sat` (to [0, 1]); mul on integers keeps the low half |
| mulhi | u32 s32 u64 s64 | a, b → high half |
| mulwide | u16 s16 u32 s32 | a, b → the full product, twice as wide |
| fma | float, f16x2 ... | a, b, c → a b + c, rounded once; `rn rz rm rp ftz sat relu` |
| div | integer (towards zero), float | a, b → d; `approx` or rounding |
| rem | integer | a, b → sign of a |
| min max | any but pred | a, b → d; float: the other one when one is NaN, or NaN with `nan` |
| neg abs | signed, float | a → d (float: bit operations) |
| sqrt rsqrt rcp ex2 lg2 sin cos tanh | float | a → d; `approx`, `ftz` |
| copysign | float | a, b → sign of a, size of b (the order of PTX) |
| and or xor | bN, pred | a, b → d |
| not | bN, pred | a → d |
| shl shr | bN / uN sN | a, n (b32) → d; n ≥ width gives 0 (shl, u) or the sign (s) |
| bfe | u32 s32 u64 s64 | a, position, length → field, sign-extended for s |
| bfi | b32 b64 | field, base, position, length → d |
| brev popc clz | b32 b64 | a → d (popc, clz: b32) |
| flo | u32 s32 u64 s64 | a → position of the highest bit that differs from the sign, 0xffffffff if none; `shiftamt`: 31 (63) minus that |
| prmt | b32 | a, b, selector → bytes picked, sign replicated when bit 3 of a nibble is set |
| dp4a | s32 u32 | a, b, c → c + sum of four byte products; modifiers: signs of a and b, e.g. ("s8", "u8") |
| sad | s32 u32 | a, b, c → c + abs(a - b) |
| cvt | destination type | a → d; modifiers[0]: source type; then rounding (`rn rz rm rp` for floats, `rni rzi rmi rpi` to integer values), `sat`, `ftz`. To an integer: clamped, NaN gives 0. f16x2 from f32: two sources, first is the high half |
| setp | source type | a, b → p; modifiers[0]: `eq ne lt le gt ge` (false on NaN, but `ne`), `equ neu ltu leu gtu geu` (true on NaN), `num`, `nan`. `ne` of floats is false on NaN in PTX's sense: only `neu` is true |
| special | b32, b64 | → d; modifiers[0]: `tid.x` … `ntid.z ctaid.x` … `nctaid.z laneid warpid smid clock nwarpid lanemask_lt lanemask_le lanemask_gt lanemask_ge lanemask_eq dynamic_smem_size` |
| param | bN | offset (immediate), → d: bytes of the argument block at this offset |
| ld | element type | address (b64; b32 in shared and local), offset → d, or 2 or 4 consecutive; modifiers[0]: `global shared local const generic`. Elements narrower than the register are extended by their type |
| st | element type | address, offset, value, ... ; modifiers[0] as for ld |
| atom | element type | address, offset, value[, value2] → old (or no destination); modifiers: space, then `add min max and or xor exch cas inc dec` (cas: compare, new) |
| shfl | b32 | a, lane operand, clamp-and-mask → d, p (or d alone); modifiers[0]: `up down bfly idx` |
| vote | pred | p → d; modifiers[0]: `all any uni` (predicate), `ballot` (b32) |
| match | b32 b64 | a → mask of the lanes of the warp with the same value; modifiers[0]: `any` |
| redux | u32 s32 b32 | a → d over the active lanes; modifiers[0]: `add min max and or xor` |
| activemask | b32 | → d |
| mma | f32 f16 s32 | registers of A, B, C → D; modifiers: shape `m16n8k16` ..., type of A, type of B; layouts row.col |
| bar | | all threads of the block wait; `bar` with sources is refused by the readers |
| nop | | fences, hints, prefetches |
| bra | | guard decides; the block's `next` says where |
| exit | | the thread ends |
| trap | | the thread aborts the kernel |

Space `generic` takes addresses as `cvta` makes them: shared memory lies at SHARED_WINDOW, local at LOCAL_WINDOW, the rest is global.
Module-level data (`.const`, `.global` arrays) lies at CONST_WINDOW + offset into `Kernel.data`, constant banks of a cubin too.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gewu.core.errors import InputError

SHARED_WINDOW: Final = 1 << 60
LOCAL_WINDOW: Final = 1 << 61
CONST_WINDOW: Final = 1 << 62

WIDTH: Final = {
    **{"pred": 1, "u8": 8, "s8": 8, "b8": 8},
    **dict.fromkeys(("u16", "s16", "b16", "f16", "bf16"), 16),
    **dict.fromkeys(("u32", "s32", "b32", "f32", "f16x2", "bf16x2", "tf32"), 32),
    **dict.fromkeys(("u64", "s64", "b64", "f64"), 64),
}
"""Bits of each type."""
FLOATS: Final = frozenset({"f16", "bf16", "f32", "f64", "f16x2", "bf16x2"})
UNARY: Final = frozenset(
    {"neg", "abs", "sqrt", "rsqrt", "rcp", "ex2", "lg2", "sin", "cos", "tanh", "not", "brev", "popc", "clz", "flo"}
)
BINARY: Final = frozenset({"add", "sub", "mul", "mulhi", "mulwide", "div", "rem", "min", "max", "copysign", "and", "or", "xor"})
OPS: Final = (
    UNARY
    | BINARY
    | {
        *("mov", "select", "pack", "unpack", "fma", "shl", "shr", "bfe", "bfi", "prmt", "dp4a", "sad", "cvt", "setp"),
        *("special", "param", "ld", "st", "atom", "shfl", "vote", "match", "redux", "activemask", "mma"),
        *("bar", "nop", "bra", "exit", "trap"),
    }
)
"""Every operation of the table above."""
PURE: Final = OPS - {
    "special",
    "param",
    "ld",
    "st",
    "atom",
    "shfl",
    "vote",
    "match",
    "redux",
    "activemask",
    "mma",
    "bar",
    "nop",
    "bra",
    "exit",
    "trap",
}
"""Operations whose result depends on their sources alone."""

Operand = str | int


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of the table above; `where` is its line (PTX) or address (machine code), for messages."""

    op: str
    type: str
    dst: tuple[str, ...] = ()
    src: tuple[Operand, ...] = ()
    mods: tuple[str, ...] = ()
    guard: tuple[str, bool] | None = None
    where: str = ""


@dataclass(slots=True)
class Block:
    """Instructions without a jump in between; only the last one may be `bra`, `exit` or `trap`.

    `next`: indices of blocks. Empty: all threads end here. One: all go there. Two: where the guard of the closing `bra` holds the
    first, elsewhere the second. A guarded `exit` ends the block too; threads that stay go to the only entry.
    """

    code: list[Instruction]
    next: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument in the argument block: byte offset and size; `kind`: a type of PTX, or "" when the source does not tell."""

    offset: int
    size: int
    kind: str = ""
    name: str = ""


@dataclass(slots=True)
class Kernel:
    """One entry point.

    Attributes:
        name: as in the source (mangled for C++).
        parameters: in order of the call.
        blocks: block 0 is the entry.
        widths: type (`pred`, `b16`, `b32`, `b64`) of every register.
        shared: bytes of static shared memory; dynamic shared memory starts there.
        local: bytes of local memory of each thread.
        data: module-level data, addressed from CONST_WINDOW.
        source: "ptx", "sass" ... and the architecture, as "sass sm_90".
        limit: threads per block that the kernel allows (0: unknown).
        required: block shape that it demands (`.reqntid`), or ().
    """

    name: str
    parameters: tuple[Parameter, ...]
    blocks: list[Block]
    widths: dict[str, str]
    shared: int = 0
    local: int = 0
    data: bytes = b""
    source: str = ""
    limit: int = 0
    required: tuple[int, ...] = ()


class Unsupported(InputError):
    """A kernel holds something that gewu does not read: that kernel is refused, the others go on."""


@dataclass(slots=True)
class Listing:
    """What a reader found: kernels by name, for each one it refuses the reason, and module variables that only the host sets.

    `unset`: type and bytes by name of those whose values were not given.
    """

    kernels: dict[str, Kernel] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unset: dict[str, tuple[str, int]] = field(default_factory=dict)


def check_names(given: Mapping[str, bytes], unset: Mapping[str, object], file: str) -> None:
    """Refuse values for variables that only the host sets when there are none of these names.

    Raises:
        InputError: names one.
    """
    for name in given:
        if name not in unset:
            allowed = ", ".join(unset) or "none: every variable has an initial value"
            raise InputError("no variable that the host sets", file=file or None, key="constants", value=name, allowed=allowed)


def check(kernel: Kernel) -> None:
    """Refuse a kernel that is not well formed.

    Raises:
        Unsupported: an unknown operation, an unknown register, a jump out of the kernel or from inside a block.
    """
    for number, block in enumerate(kernel.blocks):
        if any(not 0 <= target < len(kernel.blocks) for target in block.next):
            raise Unsupported(f"block {number} jumps out of the kernel", key=kernel.name)
        for place, instruction in enumerate(block.code):
            _check(kernel, instruction, last=place == len(block.code) - 1)


def _check(kernel: Kernel, instruction: Instruction, last: bool) -> None:
    where = f"{kernel.name} at {instruction.where}"
    if instruction.op not in OPS:
        raise Unsupported("unknown operation", key=where, value=instruction.op)
    if instruction.op in ("bra", "exit", "trap") and not last:
        raise Unsupported("jump inside a block", key=where)
    names = [*instruction.dst, *(s for s in instruction.src if isinstance(s, str))]
    names += [instruction.guard[0]] if instruction.guard else []
    for name in names:
        if name not in kernel.widths:
            raise Unsupported("register without a width", key=where, value=name)
    if any(isinstance(s, int) and s < 0 for s in instruction.src):
        raise Unsupported("negative immediate", key=where, value=instruction.src)
