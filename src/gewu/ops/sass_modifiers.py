"""Modifiers that each opcode of machine code is read with. Another one refuses the kernel: it could change the meaning."""

from __future__ import annotations

from typing import Final

from gewu.ops.ir import Unsupported
from gewu.ops.sass_syntax import Line

_JOIN = frozenset({"AND", "OR", "XOR"})
_INTEGER_TESTS = frozenset({"LT", "EQ", "LE", "GT", "NE", "GE", "T", "F"})
_FLOAT_TESTS = frozenset({"LT", "EQ", "LE", "GT", "NE", "GE", "NUM", "NAN", "LTU", "EQU", "LEU", "GTU", "NEU", "GEU", "T", "F"})
_ROUNDING = frozenset({"RN", "RZ", "RM", "RP"})
_WIDTHS = frozenset({"U8", "S8", "U16", "S16", "32", "64", "128"})
_SCOPE = frozenset({"E", "STRONG", "WEAK", "CTA", "SM", "GPU", "SYS"})
_HINTS = frozenset({"CONSTANT", "EF", "EL", "EU", "LU", "NA", "LTC64B", "LTC128B", "LTC256B", "PRIVATE"})
_INTEGERS = frozenset({"U8", "S8", "U16", "S16", "U32", "S32", "U64", "S64"})
_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
_ATOMIC = _SCOPE | frozenset(
    {
        *("ADD", "MIN", "MAX", "INC", "DEC", "AND", "OR", "XOR", "EXCH", "CAS", "CAST", "SPIN", "POPC"),
        *("32", "64", "U32", "S32", "U64", "S64", "F32", "F64", "F16x2", "BF16_V2", "BF16x2", "FTZ", "RN"),
    }
)
_NONE: Final[frozenset[str]] = frozenset()

_BOTH: Final[dict[str, frozenset[str]]] = {
    "IADD3": frozenset({"X"}),
    "IMAD": frozenset({"MOV", "U32", "S32", "SHL", "IADD", "WIDE", "HI", "X"}),
    "LEA": frozenset({"HI", "X", "SX32"}),
    "SHF": frozenset({"L", "R", "W", "HI", "U32", "S32", "U64", "S64"}),
    "LOP3": frozenset({"LUT", "PAND"}),
    "PLOP3": frozenset({"LUT"}),
    "ISETP": _INTEGER_TESTS | _JOIN | {"U32", "EX"},
    **dict.fromkeys(("SEL", "MOV", "PRMT", "BREV", "POPC", "IABS"), _NONE),
    "FLO": frozenset({"U32", "SH"}),
    "BMSK": frozenset({"W"}),
    "SGXT": frozenset({"W", "U32"}),
    "SHL": frozenset({"W", "U32"}),
    "SHR": frozenset({"W", "U32", "S32"}),
    "IMNMX": frozenset({"U32"}),
}
MODIFIERS: Final[dict[str, frozenset[str]]] = {
    **_BOTH,
    **{"U" + name: allowed for name, allowed in _BOTH.items()},
    **dict.fromkeys(("VIADD", "IADD"), frozenset({"X"})),
    **dict.fromkeys(("VIMNMX", "UVIMNMX", "VIADDMNMX", "VIMNMX3"), frozenset({"U32", "RELU"})),
    **dict.fromkeys(("LDC", "ULDC"), _WIDTHS - {"128"}),
    **dict.fromkeys(("R2UR", "R2P", "P2R"), _NONE),
    "IDP": frozenset({"4A", "S8", "U8"}),
    "VABSDIFF": frozenset({"U32"}),
    "I2I": _INTEGERS | {"SAT"},
    **dict.fromkeys(("FADD", "FMUL", "FFMA"), _ROUNDING | {"FTZ", "SAT"}),
    **dict.fromkeys(("DADD", "DMUL", "DFMA"), _ROUNDING),
    "FMNMX": frozenset({"FTZ", "NAN"}),
    "DMNMX": _NONE,
    "FSETP": _FLOAT_TESTS | _JOIN | {"FTZ"},
    "DSETP": _FLOAT_TESTS | _JOIN | {"MIN", "MAX"},
    "FSET": _FLOAT_TESTS | _JOIN | {"FTZ", "BF"},
    **dict.fromkeys(("FSEL", "FCHK"), _NONE),
    "MUFU": frozenset({"RCP", "RSQ", "SQRT", "EX2", "LG2", "SIN", "COS", "TANH", "RCP64H", "RSQ64H"}),
    **dict.fromkeys(("I2F", "I2FP"), _INTEGERS | _ROUNDING | _FLOATS),
    "F2I": _INTEGERS | _FLOATS | {"TRUNC", "FLOOR", "CEIL", "FTZ", "NTZ"},
    "F2F": _FLOATS | _ROUNDING | {"FTZ"},
    "FRND": frozenset({"TRUNC", "FLOOR", "CEIL", "FTZ", "F64", "F32"}),
    "F2FP": frozenset({"PACK_AB", "F16", "BF16", "F32", "RZ", "RELU"}),
    **dict.fromkeys(("HADD2", "HMUL2", "HFMA2"), frozenset({"MMA", "BF16_V2", "F32", "RELU", "SAT", "FTZ"})),
    "HMNMX2": frozenset({"NAN", "BF16_V2"}),
    "HSETP2": _FLOAT_TESTS | _JOIN | {"BF16_V2"},
    "HSET2": _FLOAT_TESTS | _JOIN | {"BF", "BF16_V2"},
    **dict.fromkeys(("LDG", "LD", "LDS", "LDL"), _WIDTHS | _SCOPE | _HINTS | {"U"}),
    **dict.fromkeys(("STG", "ST", "STS", "STL"), _WIDTHS | _SCOPE | _HINTS),
    "LDGSTS": _WIDTHS | _SCOPE | _HINTS | {"BYPASS"},
    **dict.fromkeys(("ATOMG", "ATOMS", "ATOM", "RED", "REDG", "REDS"), _ATOMIC),
    "SHFL": frozenset({"UP", "DOWN", "BFLY", "IDX"}),
    **dict.fromkeys(("VOTE", "VOTEU"), frozenset({"ANY", "ALL", "EQ"})),
    "MATCH": frozenset({"ANY", "ALL", "U64", "U32"}),
    "REDUX": frozenset({"SUM", "MIN", "MAX", "AND", "OR", "XOR", "S32", "U32"}),
    "BAR": frozenset({"SYNC", "DEFER_BLOCKING"}),
    **dict.fromkeys(("S2R", "S2UR"), _NONE),
    "CS2R": frozenset({"32"}),
    "QSPC": frozenset({"E", "S", "L", "G"}),
    "HMMA": frozenset({"16816", "1688", "1684", "F32", "F16", "BF16", "TF32"}),
    "IMMA": frozenset({"16816", "16832", "S8", "U8"}),
    "LDSM": frozenset({"16", "M88", "MT88", "2", "4"}),
    "MOVM": frozenset({"16", "MT88"}),
    "BRA": frozenset({"U", "DIV", "CONV"}),
    **dict.fromkeys(("EXIT", "KILL", "JMP", "BRX", "BRXU"), _NONE),
    "CALL": frozenset({"REL", "ABS", "NOINC"}),
    "RET": frozenset({"REL", "ABS", "NODEC"}),
    "BPT": frozenset({"TRAP"}),
}


def check_modifiers(line: Line) -> None:
    """Refuse an instruction with a modifier that is not read.

    Raises:
        Unsupported: there is one.
    """
    allowed = MODIFIERS.get(line.opcode)
    if allowed is not None and not allowed.issuperset(line.mods):
        raise Unsupported(
            "modifier that is not read", value=f"{line.full} ({', '.join(m for m in line.mods if m not in allowed)})"
        )
