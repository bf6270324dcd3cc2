"""Pure operations of `ir` as LLVM instructions, for one value at a time.

`Lower` appends instructions to a list of lines and returns values: an SSA name (or literal) with the `ir` type its bits have.
bf16 lives in i16 and is converted by shifts, rounding to nearest even; f16 is `half`.  `ftz` is not reproduced: results that are
not normal numbers may differ.  Division of integers by zero gives all ones, as the machines do, and never a trap.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gewu.ops import vmath
from gewu.ops.ir import WIDTH, Unsupported
from gewu.ops.tensor import MATH

FLAGS: Final = "contract arcp afn "
REDUCE_FLAGS: Final = "reassoc nsz contract arcp afn "
_COMPARE: Final = {
    **{"eq": "oeq", "ne": "one", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "num": "ord", "nan": "uno"},
    **{"equ": "ueq", "neu": "une", "ltu": "ult", "leu": "ule", "gtu": "ugt", "geu": "uge"},
}
_ROUND: Final = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
_DIRECT: Final = {"ex2": "exp2", "lg2": "log2", "sin": "sin", "cos": "cos", "tanh": "tanh"}
_PLAIN: Final = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "round"}
_SCALAR: Final = frozenset({"f16", "bf16", "f32", "f64"})


@dataclass(frozen=True, slots=True)
class Value:
    """An LLVM value: its name or literal, and the type of `ir` that its bits have."""

    name: str
    type: str


def llvm_type(kind: str) -> str:
    """Return the LLVM type in which values of a type of `ir` live."""
    if kind in ("f32", "f64", "f16"):
        return {"f32": "float", "f64": "double", "f16": "half"}[kind]
    return f"i{WIDTH[kind]}"


def literal(kind: str, bits: int) -> str:
    """Return raw bits as a literal of `llvm_type(kind)`."""
    bits &= (1 << WIDTH[kind]) - 1
    if kind == "f16":
        return f"0xH{bits:04X}"
    if kind == "f64":
        return f"0x{bits:016X}"
    if kind == "f32":
        if bits & 0x7F800000 == 0x7F800000 and bits & 0x7FFFFF:  # a double NaN keeps sign and payload in its high bits
            return f"0x{(bits >> 31 << 63) | 0x7FF << 52 | (bits & 0x7FFFFF) << 29:016X}"
        return f"0x{struct.unpack('<Q', struct.pack('<d', struct.unpack('<f', struct.pack('<I', bits))[0]))[0]:016X}"
    if kind == "pred":
        return "true" if bits else "false"
    return str(bits)


def number(kind: str, value: float) -> str:
    """Return a number as a literal of a float type or an integer type."""
    if kind in ("f32", "f64"):
        rounded = value if kind == "f64" else struct.unpack("<f", struct.pack("<f", value))[0]
        return f"0x{struct.unpack('<Q', struct.pack('<d', rounded))[0]:016X}"
    if kind == "f16":
        return f"0xH{struct.unpack('<H', struct.pack('<e', value))[0]:04X}"
    return str(int(value) & ((1 << WIDTH[kind]) - 1))


@dataclass(slots=True)
class Module:
    """What all functions of one LLVM text share: names, declarations and the vector functions that are used."""

    declarations: set[str] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)
    names: itertools.count[int] = field(default_factory=itertools.count)

    def text(self) -> str:
        """Return declarations and definitions to go with the functions."""
        definitions, more = vmath.definitions(self.functions)
        return "\n".join([*sorted(self.declarations | more), definitions])


class Lower:
    """Append instructions for pure operations to `lines`.

    Args:
        module: collects declarations and vector functions.
        lines: the instructions; may be exchanged at any time.
    """

    def __init__(self, module: Module, lines: list[str]) -> None:
        self.module, self.lines = module, lines

    def emit(self, text: str) -> str:
        """Append `name = text` and return the name."""
        name = f"%v{next(self.module.names)}"
        self.lines.append(f"  {name} = {text}")
        return name

    def call(self, result: str, function: str, *arguments: tuple[str, str], flags: str = "") -> str:
        """Call a function of LLVM; arguments are (LLVM type, name)."""
        types = ", ".join(t for t, _ in arguments)
        self.module.declarations.add(f"declare {result} @{function}({types})")
        return self.emit(f"call {flags}{result} @{function}({', '.join(f'{t} {n}' for t, n in arguments)})")

    def take(self, value: Value, kind: str) -> str:
        """Return the bits of a value taken as another type: extended by its own signedness or cut."""
        source, target = llvm_type(value.type), llvm_type(kind)
        if source == target:
            return value.name
        have, want, name = WIDTH[value.type], WIDTH[kind], value.name
        if source[0] != "i":
            name = self.emit(f"bitcast {source} {name} to i{have}")
        if have != want:
            verb = "trunc" if want < have else "sext" if value.type[0] == "s" else "zext"
            name = self.emit(f"{verb} i{have} {name} to i{want}")
        return name if target[0] == "i" else self.emit(f"bitcast i{want} {name} to {target}")

    def widen(self, name: str, kind: str) -> tuple[str, str]:
        """Return a float as one of the types that arithmetic is done in (f32 for the half types)."""
        if kind == "f16":
            return self.emit(f"fpext half {name} to float"), "f32"
        if kind == "bf16":
            wide = self.emit(f"zext i16 {name} to i32")
            return self.emit(f"bitcast i32 {self.emit(f'shl i32 {wide}, 16')} to float"), "f32"
        return name, kind

    def narrow(self, name: str, kind: str, target: str) -> str:
        """Return a float of type `kind` rounded to nearest in another float type."""
        if kind == target:
            return name
        if target == "bf16":
            return self._to_bf16(self.narrow(name, kind, "f32"))
        if kind == "bf16":
            return self.narrow(*self.widen(name, kind), target)
        verb = "fptrunc" if WIDTH[target] < WIDTH[kind] else "fpext"
        return self.emit(f"{verb} {llvm_type(kind)} {name} to {llvm_type(target)}")

    def _to_bf16(self, name: str) -> str:
        bits = self.emit(f"bitcast float {name} to i32")
        odd = self.emit(f"and i32 {self.emit(f'lshr i32 {bits}, 16')}, 1")
        rounded = self.emit(f"add i32 {self.emit(f'add i32 {bits}, 32767')}, {odd}")
        nan = self.emit(f"fcmp uno float {name}, 0.0")
        chosen = self.emit(f"select i1 {nan}, i32 2147418112, i32 {rounded}")
        return self.emit(f"trunc i32 {self.emit(f'lshr i32 {chosen}, 16')} to i16")

    def apply(self, op: str, kind: str, mods: Sequence[str], args: Sequence[Value]) -> Value:
        """Apply one operation of `ir.PURE` or of MATH.

        Raises:
            Unsupported: an operation or a modifier that has no lowering.
        """
        if kind in ("f16x2", "bf16x2") and op not in ("mov", "select", "cvt"):
            return self._halves(op, kind, mods, args)
        if op in MATH or op in _DIRECT:
            return Value(self._math(op, kind, [self.take(a, kind) for a in args]), kind)
        special = getattr(self, f"_{op}", None)
        if special is not None:
            return special(kind, tuple(mods), args)
        names = [self.take(a, kind) for a in args]
        if kind in _SCALAR:
            return Value(self._float(op, kind, tuple(mods), names), kind)
        return Value(self._integer(op, kind, names), kind)

    def _halves(self, op: str, kind: str, mods: Sequence[str], args: Sequence[Value]) -> Value:
        single = kind[:-2]
        low = [Value(self.emit(f"trunc i32 {self.take(a, 'b32')} to i16"), "b16") for a in args]
        shifted = [self.emit(f"lshr i32 {self.take(a, 'b32')}, 16") for a in args]
        high = [Value(self.emit(f"trunc i32 {s} to i16"), "b16") for s in shifted]
        parts = [self.apply(op, single, mods, side) for side in (low, high)]
        if any(WIDTH[p.type] != 16 for p in parts):
            raise Unsupported("no code for this operation on packed halves", value=op)
        return self._pack("b32", (), parts)

    def _math(self, op: str, kind: str, names: list[str]) -> str:
        wide = [self.widen(n, kind)[0] for n in names]
        calc = "f64" if kind == "f64" else "f32"
        kind_name = llvm_type(calc)
        if op in _PLAIN:
            result = self.call(kind_name, f"llvm.{_PLAIN[op]}.{calc}", (kind_name, wide[0]))
        else:
            name = _DIRECT.get(op, op)
            self.module.functions.add((name, calc))
            operands = ", ".join(f"{kind_name} {n}" for n in wide)
            result = self.emit(f"call {kind_name} @{vmath.symbol(name, calc)}({operands})")
        return self.narrow(result, calc, kind)

    def _float(self, op: str, kind: str, mods: tuple[str, ...], names: list[str]) -> str:
        direction = next((m for m in mods if m in ("rz", "rm", "rp")), None)
        if kind in ("f16", "bf16") or (direction and op in ("add", "sub", "mul", "fma", "div", "sqrt", "rcp")):
            return self._through(op, kind, mods, names, direction)
        t = llvm_type(kind)
        if op in ("add", "sub", "mul", "div"):
            result = self.emit(f"f{op} {FLAGS}{t} {names[0]}, {names[1]}")
        elif op == "fma":
            result = self.call(t, f"llvm.fma.{kind}", *((t, n) for n in names))
        elif op in ("min", "max"):
            function = f"{op}imum" if "nan" in mods else f"{op}num"
            result = self.call(t, f"llvm.{function}.{kind}", *((t, n) for n in names))
        elif op == "neg":
            result = self.emit(f"fneg {t} {names[0]}")
        elif op in ("abs", "sqrt"):
            result = self.call(t, f"llvm.{'fabs' if op == 'abs' else 'sqrt'}.{kind}", (t, names[0]))
        elif op in ("rcp", "rsqrt"):
            root = self.call(t, f"llvm.sqrt.{kind}", (t, names[0])) if op == "rsqrt" else names[0]
            result = self.emit(f"fdiv contract arcp {t} {number(kind, 1.0)}, {root}")
        elif op == "copysign":
            result = self.call(t, f"llvm.copysign.{kind}", (t, names[1]), (t, names[0]))
        else:
            raise Unsupported("no code for this operation on this type", value=f"{op}.{kind}")
        return self._clamped(result, kind, mods)

    def _clamped(self, name: str, kind: str, mods: tuple[str, ...]) -> str:
        t = llvm_type(kind)
        if "sat" in mods or "relu" in mods:
            name = self.call(t, f"llvm.maxnum.{kind}", (t, name), (t, number(kind, 0.0)))
        if "sat" in mods:
            name = self.call(t, f"llvm.minnum.{kind}", (t, name), (t, number(kind, 1.0)))
        return name

    def _through(self, op: str, kind: str, mods: tuple[str, ...], names: list[str], direction: str | None) -> str:
        """Compute in a wider type, then round: bf16 through f32; a directed rounding of f32 or f16 through f64."""
        if kind == "f64":
            raise Unsupported("no code for directed rounding in f64", value=f"{op}.{direction}")
        wide = "f64" if direction else "f32"
        rest = tuple(m for m in mods if m != direction)
        result = self._float(op, wide, rest, [self.narrow(n, kind, wide) for n in names])
        return self._directed(result, wide, kind, direction) if direction else self.narrow(result, wide, kind)

    def _directed(self, name: str, wide: str, kind: str, direction: str) -> str:
        t, w, i = llvm_type(wide), llvm_type(kind), f"i{WIDTH[kind]}"
        near = self.narrow(name, wide, kind)
        back = self.narrow(near, kind, wide)
        bits = near if w == i else self.emit(f"bitcast {w} {near} to {i}")
        negative = self.emit(f"icmp slt {i} {bits}, 0")
        if direction == "rz":
            a, b = (self.call(t, f"llvm.fabs.{wide}", (t, x)) for x in (back, name))
            wrong, step = self.emit(f"fcmp ogt {t} {a}, {b}"), "-1"
        else:
            down = direction == "rm"
            wrong = self.emit(f"fcmp {'ogt' if down else 'olt'} {t} {back}, {name}")
            step = self.emit(f"select i1 {negative}, {i} {1 if down else -1}, {i} {-1 if down else 1}")
        moved = self.emit(f"add {i} {bits}, {step}")
        if direction != "rz":  # from zero the next number is the smallest of the other sign
            zero = self.emit(f"icmp eq {i} {self.emit(f'shl {i} {bits}, 1')}, 0")
            first = (1 << WIDTH[kind] - 1) + 1 if direction == "rm" else 1
            moved = self.emit(f"select i1 {zero}, {i} {first}, {i} {moved}")
        chosen = self.emit(f"select i1 {wrong}, {i} {moved}, {i} {bits}")
        return chosen if w == i else self.emit(f"bitcast {i} {chosen} to {w}")

    def _integer(self, op: str, kind: str, names: list[str]) -> str:
        width, t = WIDTH[kind], llvm_type(kind)
        signed = kind[0] == "s"
        if op in ("add", "sub", "mul", "and", "or", "xor"):
            return self.emit(f"{op} {t} {names[0]}, {names[1]}")
        if op == "not":
            return self.emit(f"xor {t} {names[0]}, -1")
        if op == "neg":
            return self.emit(f"sub {t} 0, {names[0]}")
        if op in ("min", "max"):
            return self.call(t, f"llvm.{'s' if signed else 'u'}{op}.{t}", *((t, n) for n in names))
        if op == "abs":
            return self.call(t, f"llvm.abs.{t}", (t, names[0]), ("i1", "false"))
        if op == "brev":
            return self.call(t, f"llvm.bitreverse.{t}", (t, names[0]))
        if op == "mulhi":
            ext, double = "sext" if signed else "zext", f"i{2 * width}"
            a, b = (self.emit(f"{ext} {t} {n} to {double}") for n in names)
            high = self.emit(f"lshr {double} {self.emit(f'mul {double} {a}, {b}')}, {width}")
            return self.emit(f"trunc {double} {high} to {t}")
        if op in ("div", "rem"):
            return self._divide(op, t, signed, names)
        raise Unsupported("no code for this operation on this type", value=f"{op}.{kind}")

    def _divide(self, op: str, t: str, signed: bool, names: list[str]) -> str:
        a, b = names
        zero = self.emit(f"icmp eq {t} {b}, 0")
        safe = self.emit(f"select i1 {zero}, {t} 1, {t} {b}")
        if signed:  # the quotient of the smallest number by -1 does not fit
            minus = self.emit(f"icmp eq {t} {b}, -1")
            safe = self.emit(f"select i1 {minus}, {t} 1, {t} {safe}")
        result = self.emit(f"{'s' if signed else 'u'}{op} {t} {a}, {safe}")
        if signed:
            other = self.emit(f"sub {t} 0, {a}") if op == "div" else "0"
            result = self.emit(f"select i1 {minus}, {t} {other}, {t} {result}")
        return self.emit(f"select i1 {zero}, {t} {'-1' if op == 'div' else a}, {t} {result}")

    def _mov(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        return Value(self.take(args[0], kind), kind)

    def _select(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        t, (a, b) = llvm_type(kind), (self.take(v, kind) for v in args[:2])
        return Value(self.emit(f"select i1 {self.take(args[2], 'pred')}, {t} {a}, {t} {b}"), kind)

    def _pack(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        half, t = f"b{WIDTH[kind] // 2}", llvm_type(kind)
        low, high = (self.emit(f"zext {llvm_type(half)} {self.take(v, half)} to {t}") for v in args)
        return Value(self.emit(f"or {t} {self.emit(f'shl {t} {high}, {WIDTH[half]}')}, {low}"), kind)

    def _unpack(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        name, t, half = self.take(args[0], kind), llvm_type(kind), WIDTH[kind] // 2
        if "high" in mods:
            name = self.emit(f"lshr {t} {name}, {half}")
        return Value(self.emit(f"trunc {t} {name} to i{half}"), f"b{half}")

    def _mulwide(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        double, ext = f"{kind[0]}{2 * WIDTH[kind]}", "sext" if kind[0] == "s" else "zext"
        a, b = (self.emit(f"{ext} {llvm_type(kind)} {self.take(v, kind)} to {llvm_type(double)}") for v in args)
        return Value(self.emit(f"mul {llvm_type(double)} {a}, {b}"), double)

    def _shl(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        return self._shift("shl", kind, args)

    def _shr(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        return self._shift("ashr" if kind[0] == "s" else "lshr", kind, args)

    def _shift(self, verb: str, kind: str, args: Sequence[Value]) -> Value:
        width, t, a, n = WIDTH[kind], llvm_type(kind), self.take(args[0], kind), self.take(args[1], "b32")
        over = self.emit(f"icmp ugt i32 {n}, {width - 1}")
        masked = self._resize(self.emit(f"select i1 {over}, i32 {width - 1}, i32 {n}"), 32, width)
        result = self.emit(f"{verb} {t} {a}, {masked}")
        return Value(result if verb == "ashr" else self.emit(f"select i1 {over}, {t} 0, {t} {result}"), kind)

    def _resize(self, name: str, have: int, want: int) -> str:
        if have == want:
            return name
        return self.emit(f"{'trunc' if want < have else 'zext'} i{have} {name} to i{want}")

    def _field(self, kind: str, position: Value, length: Value) -> tuple[str, str, str]:
        """Return the double-width type, position and length (each in it, at most the width)."""
        width = WIDTH[kind]
        wide, names = f"i{2 * width}", []
        for value in (position, length):
            low = self.emit(f"and i32 {self.take(value, 'b32')}, 255")
            low = self.call("i32", "llvm.umin.i32", ("i32", low), ("i32", str(width)))
            names.append(self._resize(low, 32, 2 * width))
        return wide, names[0], names[1]

    def _bfe(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        t, signed, double = llvm_type(kind), kind[0] == "s", 2 * WIDTH[kind]
        wide, position, length = self._field(kind, args[1], args[2])
        value = self.emit(f"{'sext' if signed else 'zext'} {t} {self.take(args[0], kind)} to {wide}")
        value = self.emit(f"{'ashr' if signed else 'lshr'} {wide} {value}, {position}")
        empty = self.emit(f"icmp eq {wide} {length}, 0")
        room = self.emit(f"sub {wide} {double}, {length}")
        room = self.emit(f"select i1 {empty}, {wide} 1, {wide} {room}")
        value = self.emit(f"{'ashr' if signed else 'lshr'} {wide} {self.emit(f'shl {wide} {value}, {room}')}, {room}")
        value = self.emit(f"select i1 {empty}, {wide} 0, {wide} {value}")
        return Value(self.emit(f"trunc {wide} {value} to {t}"), kind)

    def _bfi(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        t = llvm_type(kind)
        wide, position, length = self._field(kind, args[2], args[3])
        piece, base = (self.emit(f"zext {t} {self.take(v, kind)} to {wide}") for v in args[:2])
        ones = self.emit(f"sub {wide} {self.emit(f'shl {wide} 1, {length}')}, 1")
        mask = self.emit(f"shl {wide} {ones}, {position}")
        inside = self.emit(f"and {wide} {self.emit(f'shl {wide} {piece}, {position}')}, {mask}")
        outside = self.emit(f"and {wide} {base}, {self.emit(f'xor {wide} {mask}, -1')}")
        return Value(self.emit(f"trunc {wide} {self.emit(f'or {wide} {inside}, {outside}')} to {t}"), kind)

    def _popc(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        t = llvm_type(kind)
        count = self.call(t, f"llvm.ctpop.{t}", (t, self.take(args[0], kind)))
        return Value(self._resize(count, WIDTH[kind], 32), "b32")

    def _clz(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        t = llvm_type(kind)
        count = self.call(t, f"llvm.ctlz.{t}", (t, self.take(args[0], kind)), ("i1", "false"))
        return Value(self._resize(count, WIDTH[kind], 32), "b32")

    def _flo(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        t, width, value = llvm_type(kind), WIDTH[kind], self.take(args[0], kind)
        if kind[0] == "s":
            value = self.emit(f"xor {t} {value}, {self.emit(f'ashr {t} {value}, {width - 1}')}")
        zeros = self._clz(f"b{width}", (), [Value(value, f"b{width}")]).name
        found = zeros if "shiftamt" in mods else self.emit(f"sub i32 {width - 1}, {zeros}")
        none = self.emit(f"icmp eq {t} {value}, 0")
        return Value(self.emit(f"select i1 {none}, i32 -1, i32 {found}"), "b32")

    def _prmt(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        both, selector = self._pack("b64", (), args[:2]).name, self.take(args[2], "b32")
        result = "0"
        for place in range(4):
            nibble = self.emit(f"and i32 {self.emit(f'lshr i32 {selector}, {4 * place}')}, 15")
            shift = self.emit(f"shl i32 {self.emit(f'and i32 {nibble}, 7')}, 3")
            moved = self.emit(f"lshr i64 {both}, {self._resize(shift, 32, 64)}")
            byte = self.emit(f"trunc i64 {moved} to i8")
            replicate = self.emit(f"icmp ugt i32 {nibble}, 7")
            byte = self.emit(f"select i1 {replicate}, i8 {self.emit(f'ashr i8 {byte}, 7')}, i8 {byte}")
            part = self.emit(f"shl i32 {self._resize(byte, 8, 32)}, {8 * place}")
            result = self.emit(f"or i32 {result}, {part}")
        return Value(result, "b32")

    def _dp4a(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        signs = mods[:2] if len(mods) >= 2 else (kind[0] + "8",) * 2
        a, b, total = (self.take(v, "b32") for v in args)
        for place in range(4):
            parts = []
            for name, sign in ((a, signs[0]), (b, signs[1])):
                shifted = self.emit(f"lshr i32 {name}, {8 * place}")
                byte = self.emit(f"trunc i32 {shifted} to i8")
                parts.append(self.emit(f"{'sext' if sign[0] == 's' else 'zext'} i8 {byte} to i32"))
            total = self.emit(f"add i32 {total}, {self.emit(f'mul i32 {parts[0]}, {parts[1]}')}")
        return Value(total, kind)

    def _sad(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        a, b, c = (self.take(v, kind) for v in args)
        low, high = self._integer("min", kind, [a, b]), self._integer("max", kind, [a, b])
        return Value(self.emit(f"add i32 {c}, {self.emit(f'sub i32 {high}, {low}')}"), kind)

    def _setp(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        a, b = (self.take(v, kind) for v in args)
        if kind in _SCALAR:
            if mods[0] not in _COMPARE:
                raise Unsupported("unknown comparison", value=mods[0])
            (a, calc), (b, _) = self.widen(a, kind), self.widen(b, kind)
            return Value(self.emit(f"fcmp {_COMPARE[mods[0]]} {llvm_type(calc)} {a}, {b}"), "pred")
        prefix = "" if mods[0] in ("eq", "ne") else "s" if kind[0] == "s" else "u"
        if mods[0] not in ("eq", "ne", "lt", "le", "gt", "ge"):
            raise Unsupported("unknown comparison", value=f"{mods[0]}.{kind}")
        return Value(self.emit(f"icmp {prefix}{mods[0]} {llvm_type(kind)} {a}, {b}"), "pred")

    def _cvt(self, kind: str, mods: tuple[str, ...], args: Sequence[Value]) -> Value:
        if len(args) == 2 or kind in ("f16x2", "bf16x2"):
            halves = [self._cvt(kind[:-2], mods, [a]) for a in reversed(args)]
            return self._pack("b32", (), halves)
        source, rest = mods[0], mods[1:]
        name = self.take(args[0], source)
        if source in _SCALAR:
            return Value(self._from_float(name, source, kind, rest), kind)
        signed = source[0] == "s"
        if kind in _SCALAR:
            wide = kind if kind in ("f32", "f64") else "f32"
            made = self.emit(f"{'s' if signed else 'u'}itofp {llvm_type(source)} {name} to {llvm_type(wide)}")
            return Value(self.narrow(self._clamped(made, wide, rest), wide, kind), kind)
        if "sat" in rest:
            name = self._saturate(name, source, kind)
        return Value(self.take(Value(name, source), kind), kind)

    def _saturate(self, name: str, source: str, kind: str) -> str:
        t, have, want = llvm_type(source), WIDTH[source], WIDTH[kind]
        low = -(1 << want - 1) if kind[0] == "s" else 0
        high = (1 << want - 1) - 1 if kind[0] == "s" else (1 << want) - 1
        prefix = "s" if source[0] == "s" else "u"
        floor, top = (-(1 << have - 1), (1 << have - 1) - 1) if prefix == "s" else (0, (1 << have) - 1)
        if low > floor:
            name = self.call(t, f"llvm.{prefix}max.{t}", (t, name), (t, str(low)))
        if high < top:
            name = self.call(t, f"llvm.{prefix}min.{t}", (t, name), (t, str(high)))
        return name

    def _from_float(self, name: str, source: str, kind: str, mods: tuple[str, ...]) -> str:
        whole = next((_ROUND[m] for m in mods if m in _ROUND), None)
        name, calc = self.widen(name, source)
        t = llvm_type(calc)
        if whole:
            name = self.call(t, f"llvm.{whole}.{calc}", (t, name))
        if kind in _SCALAR:
            name = self._clamped(name, calc, mods)
            direction = next((m for m in mods if m in ("rz", "rm", "rp")), None)
            if direction and WIDTH[kind] < WIDTH[calc]:
                return self._directed(name, calc, kind, direction)
            return self.narrow(name, calc, kind)
        if not whole:
            name = self.call(t, f"llvm.trunc.{calc}", (t, name))
        sign, width = ("s" if kind[0] == "s" else "u"), llvm_type(kind)
        return self.call(width, f"llvm.fpto{sign}i.sat.{width}.{calc}", (t, name))
