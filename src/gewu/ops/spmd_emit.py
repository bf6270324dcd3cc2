"""LLVM text for values that are uniform, strided or varying over the lanes of a vector.

A `Val` is a scalar (kind "u"), a scalar base with a constant step (kind "s") or a vector (kind "v").  Each method of `Builder`
appends instructions and returns a value: scalar when all its operands are uniform, else a vector; so that the lowering of
operations is written once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

BITS: Final = {"i1": 1, "i8": 8, "i16": 16, "half": 16, "i32": 32, "float": 32, "i64": 64, "double": 64, "i128": 128}
"""Bits of each LLVM type in use."""
FLOAT_OF: Final = {"f16": "half", "f32": "float", "f64": "double"}


class Val(NamedTuple):
    """A value: kind "u", "s" or "v", its name or literal, LLVM element type, and the step of kind "s"."""

    kind: str
    name: str
    type: str
    stride: int = 0


def literal(kind: str, bits: int) -> str:
    """Return raw bits as a literal of an LLVM type."""
    bits &= (1 << BITS[kind]) - 1
    if kind == "i1":
        return "true" if bits else "false"
    if kind == "half":
        return f"0xH{bits:04X}"
    if kind == "double":
        return f"0x{bits:016X}"
    if kind == "float":
        if bits & 0x7F800000 == 0x7F800000 and bits & 0x7FFFFF:  # NaN: a conversion would lose its payload
            return f"0x{(bits >> 31 << 63) | 0x7FF << 52 | (bits & 0x7FFFFF) << 29:016X}"
        return f"0x{struct.unpack('<Q', struct.pack('<d', struct.unpack('<f', struct.pack('<I', bits))[0]))[0]:016X}"
    return str(bits)


def number(kind: str, value: float) -> Val:
    """Return a floating-point number as a uniform value."""
    code = {"half": "<e", "float": "<f", "double": "<d"}[kind]
    return Val("u", literal(kind, int.from_bytes(struct.pack(code, value), "little")), kind)


def integer(kind: str, value: int) -> Val:
    """Return an integer as a uniform value."""
    return Val("u", literal(kind, value), kind)


class Builder:
    """Append instructions to a function.

    Args:
        lanes: length of vectors.
        declarations: collects what must be declared.
        native: instructions of AVX-512 may be named.
    """

    def __init__(self, lanes: int, declarations: set[str], native: bool = False) -> None:
        self.lanes, self.declarations, self.native = lanes, declarations, native
        self.lines: list[str] = []
        self.head: list[str] = []
        self._count = 0

    def fresh(self, stem: str = "t") -> str:
        """Return an unused name without its sign."""
        self._count += 1
        return f"{stem}{self._count}"

    def emit(self, text: str) -> str:
        """Append `name = text` and return the name."""
        name = f"%{self.fresh()}"
        self.lines.append(f"  {name} = {text}")
        return name

    def put(self, text: str) -> None:
        """Append an instruction without a result."""
        self.lines.append(f"  {text}")

    def label(self, name: str) -> None:
        """Begin a basic block."""
        self.lines.append(f"{name}:")

    def scratch(self, kind: str, count: int = 1) -> str:
        """Reserve memory on the stack of the function and return its address."""
        name = f"%{self.fresh('m')}"
        self.head.append(f"  {name} = alloca {f'[{count} x {kind}]' if count > 1 else kind}, align 64")
        return name

    def vector(self, kind: str) -> str:
        """Return the vector type of an element type."""
        return f"<{self.lanes} x {kind}>"

    def typed(self, value: Val) -> str:
        """Return the LLVM type of what `value.name` stands for."""
        return self.vector(value.type) if value.kind == "v" else value.type

    def splat(self, kind: str, name: str) -> str:
        """Return a vector with the same number in all lanes."""
        if name[0] != "%":
            return f"splat ({kind} {name})"
        one = self.emit(f"insertelement {self.vector(kind)} poison, {kind} {name}, i64 0")
        return self.emit(
            f"shufflevector {self.vector(kind)} {one}, {self.vector(kind)} poison, <{self.lanes} x i32> zeroinitializer"
        )

    def constants(self, kind: str, numbers: list[int]) -> str:
        """Return a literal vector of integers."""
        return f"<{', '.join(f'{kind} {literal(kind, n)}' for n in numbers)}>"

    def steps(self, kind: str, stride: int = 1) -> str:
        """Return the vector 0, stride, 2 stride ..."""
        return self.constants(kind, [stride * lane for lane in range(self.lanes)])

    def vec(self, value: Val) -> str:
        """Return a value as a vector."""
        if value.kind == "v":
            return value.name
        wide = self.splat(value.type, value.name)
        if value.kind == "u" or not value.stride:
            return wide
        return self.emit(f"add {self.vector(value.type)} {wide}, {self.steps(value.type, value.stride)}")

    def apply(self, kind: str, form: Callable[[str, list[str]], str], *values: Val) -> Val:
        """Apply an instruction of equal operand types: `form(type, names)` is its text; `kind`: element type of the result."""
        if all(v.kind == "u" for v in values):
            return Val("u", self.emit(form(values[0].type, [v.name for v in values])), kind)
        return Val("v", self.emit(form(self.vector(values[0].type), [self.vec(v) for v in values])), kind)

    def op(self, verb: str, a: Val, b: Val) -> Val:
        """Apply a binary instruction; sums and differences of strided values stay strided."""
        if verb in ("add", "sub") and "v" not in (a.kind, b.kind):
            stride = a.stride + b.stride if verb == "add" else a.stride - b.stride
            name = self.emit(f"{verb} {a.type} {a.name}, {b.name}")
            return Val("s" if stride else "u", name, a.type, stride)
        return self.apply(a.type, lambda t, n: f"{verb} {t} {n[0]}, {n[1]}", a, b)

    def compare(self, verb: str, a: Val, b: Val) -> Val:
        """Apply `icmp ...` or `fcmp ...`."""
        return self.apply("i1", lambda t, n: f"{verb} {t} {n[0]}, {n[1]}", a, b)

    def convert(self, verb: str, a: Val, kind: str) -> Val:
        """Apply a conversion instruction."""
        if a.type == kind:
            return a
        if a.kind == "s" and verb == "trunc":
            return Val("s", self.emit(f"trunc {a.type} {a.name} to {kind}"), kind, a.stride)
        return self.apply(kind, lambda t, n: f"{verb} {t} {n[0]} to {t.replace(a.type, kind)}", a)

    def choose(self, condition: Val, a: Val, b: Val) -> Val:
        """Return a where the condition holds, else b."""
        if condition.kind == a.kind == b.kind == "u":
            return Val("u", self.emit(f"select i1 {condition.name}, {a.type} {a.name}, {a.type} {b.name}"), a.type)
        if condition.kind == "u" and a.kind != "v" and b.kind != "v" and a.stride == b.stride:
            return Val(a.kind, self.emit(f"select i1 {condition.name}, {a.type} {a.name}, {a.type} {b.name}"), a.type, a.stride)
        t = self.vector(a.type)
        test = f"i1 {condition.name}" if condition.kind == "u" else f"{self.vector('i1')} {condition.name}"
        return Val("v", self.emit(f"select {test}, {t} {self.vec(a)}, {t} {self.vec(b)}"), a.type)

    def intrinsic(self, name: str, *values: Val, result: str = "", extra: str = "") -> Val:
        """Call an intrinsic that is overloaded on the type of its first operand (and on its result, when given)."""
        kind = result or values[0].type
        uniform = all(v.kind == "u" for v in values)
        first, last = values[0].type, kind
        if not uniform:
            first, last = self.vector(first), self.vector(kind)
        suffix = (f".{self.mangled(last)}" if result else "") + f".{self.mangled(first)}"
        names = [v.name if uniform else self.vec(v) for v in values]
        arguments = ", ".join([f"{first} {n}" for n in names] + ([extra] if extra else []))
        kinds = ", ".join([first] * len(names) + ([extra.split()[0]] if extra else []))
        self.declarations.add(f"declare {last} @llvm.{name}{suffix}({kinds})")
        return Val("u" if uniform else "v", self.emit(f"call {last} @llvm.{name}{suffix}({arguments})"), kind)

    def mangled(self, kind: str) -> str:
        """Return a type as it stands in the names of intrinsics."""
        short = {"half": "f16", "float": "f32", "double": "f64", "ptr": "p0"}
        if kind[0] == "<":
            count, _, element = kind[1:-1].split(" ")
            return f"v{count}{short.get(element, element)}"
        return short.get(kind, kind)

    def cast(self, value: Val, kind: str) -> Val:
        """Take the bits of a value as another type; integers are cut or extended by zeros."""
        have, want = BITS[value.type], BITS[kind]
        if value.type == kind:
            return value
        if value.name[0] not in "%<" and value.kind == "u" and value.type[0] == "i":
            bits = {"true": 1, "false": 0}.get(value.name)
            number_ = int(value.name) if bits is None else bits
            return Val("u", literal(kind, number_ & ((1 << have) - 1)), kind)
        if have != want:
            value = self.cast(value, f"i{have}")
            value = self.convert("trunc" if want < have else "zext", value, f"i{want}")
        return value if value.type == kind else self.convert("bitcast", value, kind)

    def any(self, mask: str) -> str:
        """Return whether any lane of a mask is set."""
        return self.emit(f"icmp ne i{self.lanes} {self.bits(mask)}, 0")

    def bits(self, mask: str) -> str:
        """Return a mask as an integer, lane 0 lowest."""
        return self.emit(f"bitcast {self.vector('i1')} {mask} to i{self.lanes}")

    def mask_and(self, mask: str, value: Val, holds: bool) -> str:
        """Return the lanes of a mask where a predicate holds (or does not)."""
        t = self.vector("i1")
        test = self.vec(value)
        if not holds:
            test = self.emit(f"xor {t} {test}, {self.splat('i1', 'true')}")
        return self.emit(f"and {t} {mask}, {test}")

    def first(self, mask: str) -> str:
        """Return the number of the first lane of a mask that is not empty, as i64."""
        width = f"i{self.lanes}"
        self.declarations.add(f"declare {width} @llvm.cttz.{width}({width}, i1)")
        place = self.emit(f"call {width} @llvm.cttz.{width}({width} {self.bits(mask)}, i1 true)")
        return place if width == "i64" else self.emit(f"{'zext' if self.lanes < 64 else 'trunc'} {width} {place} to i64")

    def load(self, kind: str, pointer: str, align: int = 0) -> str:
        """Load from memory."""
        return self.emit(f"load {kind}, ptr {pointer}" + (f", align {align}" if align else ""))

    def store(self, kind: str, name: str, pointer: str, align: int = 0) -> None:
        """Store to memory."""
        self.put(f"store {kind} {name}, ptr {pointer}" + (f", align {align}" if align else ""))

    def offset(self, pointer: str, amount: str, kind: str = "i8") -> str:
        """Return pointer + amount, counted in elements of `kind`."""
        return self.emit(f"getelementptr {kind}, ptr {pointer}, i64 {amount}")

    def when(self, condition: str, body: Callable[[], Val | None], other: Val | None = None) -> Val | None:
        """Run `body` where a scalar condition holds; its value there, `other` elsewhere (of the same kind)."""
        inside, after, before = self.fresh("in"), self.fresh("after"), self.fresh("before")
        self.put(f"br label %{before}")
        self.label(before)
        self.put(f"br i1 {condition}, label %{inside}, label %{after}")
        self.label(inside)
        value = body()
        leave = self.fresh("leave")
        self.put(f"br label %{leave}")
        self.label(leave)
        self.put(f"br label %{after}")
        self.label(after)
        if value is None or other is None:
            return value
        t = self.typed(value)
        name = other.name if other.kind == value.kind else "poison"
        return Val(value.kind, self.emit(f"phi {t} [ {value.name}, %{leave} ], [ {name}, %{before} ]"), value.type)

    def either(self, condition: str, one: Callable[[], Val], two: Callable[[], Val]) -> Val:
        """Run one of two bodies that both give a vector."""
        names = [self.fresh("either") for _ in range(3)]
        self.put(f"br i1 {condition}, label %{names[0]}, label %{names[1]}")
        results = []
        for body, name in ((one, names[0]), (two, names[1])):
            self.label(name)
            value = body()
            vector = self.vec(value)
            leave = self.fresh("leave")
            self.put(f"br label %{leave}")
            self.label(leave)
            self.put(f"br label %{names[2]}")
            results.append((vector, leave, value.type))
        self.label(names[2])
        kind = results[0][2]
        text = ", ".join(f"[ {vector}, %{leave} ]" for vector, leave, _ in results)
        return Val("v", self.emit(f"phi {self.vector(kind)} {text}"), kind)

    def split(self, test: str, one: Callable[[], None], two: Callable[[], None]) -> None:
        """Run one of two bodies."""
        names = [self.fresh("split") for _ in range(3)]
        self.put(f"br i1 {test}, label %{names[0]}, label %{names[1]}")
        for name, body in ((names[0], one), (names[1], two)):
            self.label(name)
            body()
            self.put(f"br label %{names[2]}")
        self.label(names[2])

    def each(self, mask: str, body: Callable[[str], None]) -> None:
        """Run `body(lane)` for every lane (as i64) of a mask, in a loop."""
        width = f"i{self.lanes}"
        bits = self.bits(mask)
        before, loop, inside, leave, after = (self.fresh(s) for s in ("before", "each", "lane", "leave", "after"))
        rest, now = self.fresh("rest"), self.fresh("bits")
        self.put(f"br label %{before}")
        self.label(before)
        self.put(f"br label %{loop}")
        self.label(loop)
        self.put(f"%{now} = phi {width} [ {bits}, %{before} ], [ %{rest}, %{leave} ]")
        empty = self.emit(f"icmp eq {width} %{now}, 0")
        self.put(f"br i1 {empty}, label %{after}, label %{inside}")
        self.label(inside)
        self.declarations.add(f"declare {width} @llvm.cttz.{width}({width}, i1)")
        place = self.emit(f"call {width} @llvm.cttz.{width}({width} %{now}, i1 true)")
        if self.lanes != 64:
            place = self.emit(f"{'zext' if self.lanes < 64 else 'trunc'} {width} {place} to i64")
        body(place)
        self.put(f"br label %{leave}")
        self.label(leave)
        less = self.emit(f"sub {width} %{now}, 1")
        self.put(f"%{rest} = and {width} %{now}, {less}")
        self.put(f"br label %{loop}")
        self.label(after)

    def lane_of(self, value: Val, lane: str) -> str:
        """Return the element of a value in a lane that is known at run time only."""
        if value.kind == "u":
            return value.name
        if value.kind == "s":
            index = lane if value.type == "i64" else self.emit(f"trunc i64 {lane} to {value.type}")
            step = self.emit(f"mul {value.type} {index}, {literal(value.type, value.stride)}")
            return self.emit(f"add {value.type} {value.name}, {step}")
        return self.emit(f"extractelement {self.vector(value.type)} {value.name}, i64 {lane}")
