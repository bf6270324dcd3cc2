"""Algebra on values in SSA form: each operation is built once, simplified by exact identities of integers and bits.

`Values.build` is the only way to make a value.  Pairs of 32-bit halves are taken apart by the operations `lo` and `hi`
(`unpack` with one result) and joined by `pack`; the rules find the 64-bit sum behind a carry chain, the shifted address behind
LEA pairs and the quotient behind the spelled-out division.  Floating-point identities are used only where they hold for every
input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import permutations

from gewu.ops.ir import FLOATS, WIDTH, Instruction, Operand
from gewu.ops.ssa import Graph

MASK32 = 0xFFFFFFFF
COMMUTE = frozenset({"add", "mul", "and", "or", "xor", "mulhi", "mulwide", "min", "max"})
MINUS_ZERO = {"f32": 1 << 31, "f64": 1 << 63}
_FOLDED = frozenset(
    {"add", "sub", "mul", "mulwide", "setp", "cvt", "shl", "shr", "and", "or", "xor", "not", "neg", "abs", "min", "max", "mulhi"}
)
Rule = Callable[["Values", str, tuple[Operand, ...], tuple[str, ...]], Operand | None]
Linear = tuple[int, frozenset[tuple[object, int]]]


def signed(value: int, bits: int) -> int:
    """Return the signed number that `bits` bits spell."""
    return value - (1 << bits) if value >> bits - 1 & 1 else value


def fold(op: str, type_: str, src: tuple[int, ...], mods: tuple[str, ...]) -> int | None:
    """Return the result of an integer operation on constants; None when it is not one of those folded."""
    bits = WIDTH[type_]
    mask = (1 << bits) - 1
    values = [signed(s & mask, bits) if type_[0] == "s" else s & mask for s in src]
    a, b = values[0], values[1] if len(values) > 1 else 0
    if type_ in FLOATS:
        if op in ("neg", "abs") and type_ in MINUS_ZERO:
            top = MINUS_ZERO[type_]
            return a ^ top if op == "neg" else a & ~top
        return None
    if op == "mulwide":
        return a * b & (1 << 2 * bits) - 1
    if op == "setp":
        tests = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
        return int(tests[mods[0]]) if mods[0] in tests else None
    if op == "cvt" and len(mods) == 1 and mods[0] in WIDTH and mods[0] not in FLOATS:
        return (
            signed(src[0] & (1 << WIDTH[mods[0]]) - 1, WIDTH[mods[0]])
            if mods[0][0] == "s"
            else src[0] & (1 << WIDTH[mods[0]]) - 1
        ) & mask
    if op in ("shl", "shr"):
        count = min(src[1] & MASK32, bits)
        return (a << count if op == "shl" else a >> count) & mask
    simple = {"add": a + b, "sub": a - b, "mul": a * b, "and": a & b, "or": a | b, "xor": a ^ b, "not": ~a, "neg": -a}
    simple |= {"min": min(a, b), "max": max(a, b), "abs": abs(a), "mulhi": a * b >> bits}
    return simple[op] & mask if op in simple else None


class Values:
    """Build values of a graph, each once in a scope, simplified.

    Args:
        graph: owner of the names.
        rules: by operation, what gives a simpler value or None.
    """

    def __init__(self, graph: Graph, rules: Mapping[str, Rule]) -> None:
        self.graph, self.rules = graph, rules
        self.defs: dict[str, Instruction] = {}
        self.code: list[Instruction] = []
        self.known: dict[tuple[object, ...], str] = {}
        self.scope: list[tuple[object, ...]] = []
        self.uses: dict[str, set[str]] = {}
        self.divided: set[tuple[Operand, ...]] = set()
        self.rooted: set[tuple[Operand, ...]] = set()
        self.settled: Callable[[str, tuple[Operand, ...]], bool] = lambda kind, src: False
        self.where = ""

    def build(self, op: str, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...] = (), width: str = "") -> Operand:
        """Return the value of a pure operation, an existing one where there is one."""
        width = width or ("pred" if op == "setp" or type_ == "pred" else f"b{max(16, WIDTH[type_])}")
        if all(isinstance(s, int) for s in src) and src and op in _FOLDED:
            folded = fold(op, type_, src, mods)  # type: ignore[arg-type]
            if folded is not None:
                return folded
        if op in COMMUTE and type_ not in FLOATS and isinstance(src[0], int):
            src = (src[1], src[0])
        rule = self.rules.get(op)
        if rule is not None and (found := rule(self, type_, src, mods)) is not None:
            return found
        return self.make(op, type_, src, mods, width)

    def make(self, op: str, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...], width: str) -> str:
        """Return the value as it is, an existing one where there is one."""
        key = (op, type_, src, mods, width)
        if key in self.known:
            return self.known[key]
        name = self.graph.fresh(width)
        self.keep(Instruction(op, type_, (name,), src, mods, where=self.where))
        self.known[key] = name
        self.scope.append(key)
        return name

    def keep(self, instruction: Instruction) -> None:
        """Append an instruction as it is."""
        self.code.append(instruction)
        for name in instruction.dst:
            self.defs[name] = instruction

    def made_by(self, value: Operand, op: str, type_: str = "") -> Instruction | None:
        """Return the instruction that makes a value when it is of this kind."""
        found = self.defs.get(value) if isinstance(value, str) else None
        return found if found is not None and found.op == op and (not type_ or found.type == type_) else None

    def one_sided(self, value: str, half: str) -> bool:
        """Tell whether only this half of a value is used; `uses` is filled when that is known."""
        return self.uses.get(value) == {half}

    def low(self, value: Operand) -> Operand:
        """Return the lower half of 64 bits."""
        return self.build("lo", "b64", (value,), (), "b32")

    def high(self, value: Operand) -> Operand:
        """Return the upper half of 64 bits."""
        return self.build("hi", "b64", (value,), (), "b32")

    def extended(self, value: Operand) -> Operand | None:
        """Return the 32-bit value that a 64-bit one extends by zeros."""
        if isinstance(value, int):
            return value if value <= MASK32 else None
        made = self.made_by(value, "cvt", "u64")
        return made.src[0] if made and made.mods == ("u32",) else None

    def linear(self, value: Operand, depth: int = 8) -> Linear:
        """Return a 32-bit value as a constant and terms times constants, modulo 2^32."""
        if isinstance(value, int):
            return value & MASK32, frozenset()
        made = self.defs.get(value)
        if made is not None and depth:
            if made.op == "lo" and made.type == "b64":
                return self.linear_low(made.src[0], depth - 1)
            if made.op == "add" and WIDTH[made.type] == 32 and made.type not in FLOATS:
                return _plus(self.linear(made.src[0], depth - 1), self.linear(made.src[1], depth - 1), 1)
            if made.op == "sub" and WIDTH[made.type] == 32 and made.type not in FLOATS:
                return _plus(self.linear(made.src[0], depth - 1), self.linear(made.src[1], depth - 1), MASK32)
            if made.op == "shl" and made.type == "b32" and isinstance(made.src[1], int):
                return _plus((0, frozenset()), self.linear(made.src[0], depth - 1), 1 << made.src[1] & MASK32)
            if made.op == "mul" and WIDTH[made.type] == 32 and made.type not in FLOATS:
                return self._product(made.src, self.linear, depth)
        return 0, frozenset({(_atom(made, value), 1)})

    def linear_low(self, value: Operand, depth: int = 8) -> Linear:
        """Return the lower half of a 64-bit value in the same form."""
        if isinstance(value, int):
            return value & MASK32, frozenset()
        made = self.defs.get(value)
        if made is not None and depth:
            if made.op == "pack" or (made.op == "cvt" and made.type in ("u64", "s64") and made.mods in (("u32",), ("s32",))):
                return self.linear(made.src[0], depth - 1)
            if made.op in ("add", "sub") and made.type in ("u64", "s64"):
                factor = 1 if made.op == "add" else MASK32
                return _plus(self.linear_low(made.src[0], depth - 1), self.linear_low(made.src[1], depth - 1), factor)
            if made.op == "shl" and made.type == "b64" and isinstance(made.src[1], int):
                return _plus((0, frozenset()), self.linear_low(made.src[0], depth - 1), 1 << made.src[1] & MASK32)
            if made.op == "mul" and made.type in ("u64", "s64"):
                return self._product(made.src, self.linear_low, depth)
            if made.op == "mulwide" and made.type in ("u32", "s32"):
                return self._product(made.src, self.linear, depth)
        return 0, frozenset({(_atom(made, ("lo", value)), 1)})

    def _product(self, src: tuple[Operand, ...], form, depth: int) -> Linear:  # type: ignore[no-untyped-def]
        a, b = form(src[0], depth - 1), form(src[1], depth - 1)
        if not a[1]:
            a, b = b, a
        if not b[1]:
            return _plus((0, frozenset()), a, b[0])
        return 0, frozenset({(("mul", frozenset({a, b})), 1)})

    def paired(self, low: Operand, high: Operand) -> Operand | None:
        """Return the 64-bit value with these halves when it exists or costs nothing."""
        if isinstance(low, int) and isinstance(high, int):
            return low & MASK32 | (high & MASK32) << 32
        if made := self.made_by(high, "hi", "b64"):
            whole = made.src[0]
            if ((half := self.made_by(low, "lo", "b64")) and half.src[0] == whole) or self.linear(low) == self.linear_low(whole):
                return whole
        if (made := self.made_by(high, "shr", "s32")) and made.src[1] == 31 and self._same(made.src[0], low):
            return self.build("cvt", "s64", (low,), ("s32",))
        first, second = self.made_by(low, "param", "b32"), self.made_by(high, "param", "b32")
        if first and second and _follow(first.src[0], second.src[0]):
            return self.build("param", "b64", first.src)
        if ("pack", "b64", (low, high), (), "b64") in self.known:
            return self.known["pack", "b64", (low, high), (), "b64"]
        if high == 0:
            return self.build("cvt", "u64", (low,), ("u32",))
        first, second = self.made_by(low, "select", "b32"), self.made_by(high, "select", "b32")
        if first and second and first.src[2] == second.src[2]:
            arms = [self.paired(first.src[k], second.src[k]) for k in (0, 1)]
            if arms[0] is not None and arms[1] is not None:
                return self.build("select", "b64", (arms[0], arms[1], first.src[2]))
        return None

    def _same(self, a: Operand, b: Operand) -> bool:
        return a == b or self.linear(a) == self.linear(b)

    def summands(self, value: Operand, count: int) -> list[Operand]:
        """Return at most `count` summands of a 32-bit sum."""
        if count > 1 and (made := self.made_by(value, "add", "u32")):
            return [*self.summands(made.src[0], count - 1), made.src[1]]
        return [value]

    def joined_sum(self, leaves: list[Operand], upper: Operand) -> Operand:
        """Return the 64-bit sum of 32-bit leaves, with `upper` added to its upper half, pairing halves that belong together."""
        best: tuple[int, list[tuple[Operand, Operand]]] | None = None
        for count in range(len(leaves), 0, -1):
            flat = self.summands(upper, count)
            if len(flat) != count and count > 1:
                continue
            flat = flat + [0] * (len(leaves) - len(flat))
            for order in permutations(flat):
                pairs = list(zip(leaves, order, strict=True))
                score = sum(2 * (h != 0) + 1 if self._fits(low, h) else 0 for low, h in pairs)
                if best is None or score > best[0]:
                    best = (score, pairs)
        assert best is not None
        total: Operand = 0
        for low, high in best[1]:
            part = self.build("pack", "b64", (low, high))
            total = part if total == 0 else self.build("add", "u64", (total, part))
        return total

    def _fits(self, low: Operand, high: Operand) -> bool:
        mark = len(self.code)
        found = self.paired(low, high) is not None
        return found or len(self.code) != mark


def _follow(low: Operand, high: Operand) -> bool:
    return isinstance(low, int) and isinstance(high, int) and high == low + 4 and low % 8 == 0


def _atom(made: Instruction | None, otherwise: object) -> object:
    """Return what names a word in a linear form: arguments by their place, so that halves of one of eight bytes meet."""
    return ("param", made.src[0]) if made is not None and made.op == "param" else otherwise


def _plus(a: Linear, b: Linear, factor: int) -> Linear:
    terms = dict(a[1])
    for name, coefficient in b[1]:
        terms[name] = (terms.get(name, 0) + coefficient * factor) & MASK32
    return (a[0] + b[0] * factor) & MASK32, frozenset((n, c) for n, c in terms.items() if c)
