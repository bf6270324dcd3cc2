"""Algebra on values in SSA form: each operation is built once, simplified by exact identities of integers and bits.

`Values.build` is the only way to make a value.  Pairs of 32-bit halves are taken apart by the operations `lo` and `hi` (`unpack`
with one result) and joined by `pack`; the rules find the 64-bit sum behind a carry chain, the shifted address behind LEA pairs and
the quotient behind the spelled-out division.  Floating-point identities are used only where they hold for every input.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

from gewu.ops.ir import FLOATS, WIDTH, Instruction, Operand
from gewu.ops.ssa import Graph

MASK32, MASK64 = 0xFFFFFFFF, (1 << 64) - 1
_INVERSE = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}
_FLOAT_INVERSE = {"eq": "neu", "neu": "eq", "lt": "geu", "geu": "lt", "gt": "leu", "leu": "gt", "le": "gtu", "gtu": "le"}
_FLOAT_INVERSE |= {"ge": "ltu", "ltu": "ge", "equ": "ne", "ne": "equ", "num": "nan", "nan": "num"}
_COMMUTE = frozenset({"add", "mul", "and", "or", "xor", "mulhi", "mulwide", "min", "max"})
_HALF = {"b64": 32, "b32": 16}
_ZERO_MINUS = {"f32": 1 << 31, "f64": 1 << 63}
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
        if op in ("neg", "abs") and type_ in _ZERO_MINUS:
            top = _ZERO_MINUS[type_]
            return a ^ top if op == "neg" else a & ~top
        return None
    if op == "mulwide":
        return a * b & (1 << 2 * bits) - 1
    if op == "setp":
        tests = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
        return int(tests[mods[0]]) if mods[0] in tests else None
    if op == "cvt" and len(mods) == 1 and mods[0] in WIDTH and mods[0] not in FLOATS:
        return (signed(src[0] & (1 << WIDTH[mods[0]]) - 1, WIDTH[mods[0]]) if mods[0][0] == "s" else src[0] & (1 << WIDTH[mods[0]]) - 1) & mask
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
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
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
        if op in _COMMUTE and type_ not in FLOATS and isinstance(src[0], int):
            src = (src[1], src[0])
        rule = _RULES.get(op)
        if rule is not None and (found := rule(self, type_, src, mods)) is not None:
            return found
        return self._made(op, type_, src, mods, width)

    def _made(self, op: str, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...], width: str) -> str:
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

    def _flat(self, value: Operand, count: int) -> list[Operand]:
        if count > 1 and (made := self.made_by(value, "add", "u32")):
            return [*self._flat(made.src[0], count - 1), made.src[1]]
        return [value]

    def joined_sum(self, leaves: list[Operand], upper: Operand) -> Operand:
        """Return the 64-bit sum of 32-bit leaves, with `upper` added to its upper half, pairing halves that belong together."""
        best: tuple[int, list[tuple[Operand, Operand]]] | None = None
        for count in range(len(leaves), 0, -1):
            flat = self._flat(upper, count)
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


def _add(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    if type_ in FLOATS:
        return _add_float(v, type_, a, b, mods)
    if b == 0:
        return a
    if type_ == "u32":
        if (both := _two_carries(v, a, b)) is not None:
            return both
        for x, y in ((a, b), (b, a)):
            if (found := _carried(v, x, y)) is not None:
                return found
    for x, y in ((a, b), (b, a)):
        if made := v.made_by(y, "neg"):
            return v.build("sub", type_, (x, made.src[0]))
    if isinstance(b, int) and (made := v.made_by(a, "add", type_)) and isinstance(made.src[1], int):
        return v.build("add", type_, (made.src[0], made.src[1] + b & (1 << WIDTH[type_]) - 1))
    return None


def _add_float(v: Values, type_: str, a: Operand, b: Operand, mods: tuple[str, ...]) -> Operand | None:
    plain = mods in ((), ("rn",))
    for x, y in ((a, b), (b, a)):
        if plain and type_ in _ZERO_MINUS and y == _ZERO_MINUS[type_]:
            return x
    for x, y in ((a, b), (b, a)):
        if (made := v.made_by(y, "neg", type_)) and not (v.made_by(x, "neg", type_) and x == a):
            return v.build("sub", type_, (x, made.src[0]), mods)
    return None


def _two_carries(v: Values, a: Operand, b: Operand) -> Operand | None:
    """Find (hi(w) >= 1) + (hi(w) >= 2): the carry of three words."""
    halves = []
    for operand, test in ((a, (("ne",), 0)), (b, (("ge",), 2))):
        chosen = v.made_by(operand, "select", "b32")
        made = v.made_by(chosen.src[2], "setp", "u32") if chosen and chosen.src[:2] == (1, 0) else None
        if not made or (made.mods, made.src[1]) != test:
            return None
        halves.append(made.src[0])
    half = v.made_by(halves[0], "hi", "b64")
    return halves[0] if half and halves[0] == halves[1] and _leaves(v, half.src[0]) else None


def _carried(v: Values, upper: Operand, carry: Operand) -> Operand | None:
    """Find `upper + hi(w)` where w is a sum or difference of words extended by zeros: the upper half of the 64-bit one."""
    one = 0
    if made := v.made_by(carry, "add", "u32"):
        if made.src[1] != 1 or not v.made_by(made.src[0], "hi"):
            return None
        carry, one = made.src[0], 1
    half = v.made_by(carry, "hi", "b64")
    if not half:
        return None
    if one:
        wide = v.made_by(half.src[0], "sub", "u64")
        return _borrowed(v, upper, wide, carry) if wide else None
    if wide := v.made_by(half.src[0], "sub", "u64"):
        a, b = (v.extended(s) for s in wide.src)
        if a is None or b is None or upper == 0:
            return None
        c, d = upper, 0
        if made := v.made_by(upper, "sub", "u32"):
            c, d = made.src  # type: ignore[assignment]
        return v.high(v.build("sub", "u64", (v.build("pack", "b64", (a, c)), v.build("pack", "b64", (b, d)))))
    if leaves := _leaves(v, half.src[0]):
        return v.high(v.joined_sum(leaves, upper))
    return _multiplied(v, upper, half.src[0])


def _multiplied(v: Values, upper: Operand, product: Operand) -> Operand | None:
    """Find hi(x y) + x h: the upper half of x times the pair (y, h)."""
    made = v.made_by(product, "mulwide", "u32") or v.made_by(product, "mul", "u64")
    if not made:
        return None
    terms = v._flat(upper, 3)
    for place, term in enumerate(terms):
        cross = v.made_by(term, "mul")
        if not cross or cross.type not in ("u32", "s32"):
            continue
        for a, b in ((made.src[0], made.src[1]), (made.src[1], made.src[0])):
            word = b if made.op == "mulwide" else v.extended(b)
            if word is None:
                continue
            for x, h in (cross.src, cross.src[::-1]):
                if v.linear(x) == (v.linear(a) if made.op == "mulwide" else v.linear_low(a)):
                    whole = v.build("cvt", "u64", (a,), ("u32",)) if made.op == "mulwide" else a
                    found = v.high(v.build("mul", "u64", (whole, v.build("pack", "b64", (word, h)))))
                    for rest in (*terms[:place], *terms[place + 1 :]):
                        found = v.build("add", "u32", (rest, found))
                    return found
    return None


def _borrowed(v: Values, upper: Operand, wide: Instruction, carry: Operand) -> Operand | None:
    """Turn c + not d + (1 - borrow) into c - d - borrow."""
    if any(v.extended(s) is None for s in wide.src):
        return None
    if made := v.made_by(upper, "not", "b32"):
        rest = v.build("sub", "u32", (0, made.src[0]))
    elif (made := v.made_by(upper, "add", "u32")) and (inner := v.made_by(made.src[1], "not", "b32")):
        rest = v.build("sub", "u32", (made.src[0], inner.src[0]))
    elif made and (inner := v.made_by(made.src[0], "not", "b32")):
        rest = v.build("sub", "u32", (made.src[1], inner.src[0]))
    else:
        rest = v.build("add", "u32", (upper, 1))
    return v.build("add", "u32", (rest, carry))


def _leaves(v: Values, wide: Operand) -> list[Operand]:
    """Return the words whose zero-extended sum a 64-bit value is: two or three, else none."""
    made = v.made_by(wide, "add", "u64")
    if not made:
        return []
    found: list[Operand] = []
    for source in made.src:
        word = v.extended(source)
        if word is not None:
            found.append(word)
        elif inner := _leaves(v, source):
            found += inner
        else:
            return []
    return found if len(found) <= 3 else []


def _sub(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    if type_ in FLOATS:
        made = v.made_by(b, "neg", type_)
        return v.build("add", type_, (a, made.src[0]), mods) if made else None
    if a == b:
        return 0
    if isinstance(b, int):
        return v.build("add", type_, (a, -b & (1 << WIDTH[type_]) - 1))
    return None


def _mul(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    if type_ in FLOATS:
        return None
    return 0 if b == 0 else a if b == 1 else None


def _mulwide(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    if b == 0:
        return 0
    if b == 1:
        return v.build("cvt", f"{type_[0]}{2 * WIDTH[type_]}", (a,), (type_,))
    return None


def _shift(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, n = src
    return a if n == 0 or a == 0 else None


def _and(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    ones = (1 << WIDTH[type_]) - 1
    if b == 0 or a == b or b == ones:
        return 0 if b == 0 else a
    if isinstance(b, int) and (made := v.made_by(a, "and", type_)) and isinstance(made.src[1], int):
        return v.build("and", type_, (made.src[0], made.src[1] & b))
    return None


def _or(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    ones = (1 << WIDTH[type_]) - 1
    if b == 0 or a == b:
        return a
    if b == ones:
        return ones
    return _wide_comparison(v, a, b) if type_ == "pred" else None


def _wide_comparison(v: Values, a: Operand, b: Operand) -> Operand | None:
    """Find hi(x) < hi(y) or (hi(x) = hi(y) and lo(x) < lo(y)): a comparison of 64-bit numbers."""
    strict, both = v.made_by(a, "setp"), v.made_by(b, "and", "pred")
    if not strict or not both or strict.type not in ("u32", "s32") or strict.mods not in (("lt",), ("gt",)):
        return None
    for first, second in (both.src, both.src[::-1]):
        equal, below = v.made_by(first, "setp"), v.made_by(second, "setp", "u32")
        if not equal or not below or equal.mods != ("eq",) or not _same_pair(equal.src, strict.src):
            continue
        if below.mods[0][0] != strict.mods[0][0]:
            continue
        pairs = [v.build("pack", "b64", (low, high)) for low, high in zip(below.src, strict.src, strict=True)]
        return v.build("setp", strict.type[0] + "64", (pairs[0], pairs[1]), below.mods)
    return None


def _same_pair(a: tuple[Operand, ...], b: tuple[Operand, ...]) -> bool:
    return a in (b, b[::-1])


def _xor(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    if b == 0:
        return a
    if a == b:
        return 0
    return v.build("not", type_, (a,)) if b == (1 << WIDTH[type_]) - 1 else None


def _not(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    if made := v.made_by(src[0], "not", type_):
        return made.src[0]
    if type_ == "pred" and (made := v.made_by(src[0], "setp")):
        table = _FLOAT_INVERSE if made.type in FLOATS else _INVERSE
        if made.mods[0] in table:
            return v.build("setp", made.type, made.src, (table[made.mods[0]], *made.mods[1:]))
    return None


def _neg(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    made = v.made_by(src[0], "neg", type_)
    return made.src[0] if made else None


def _select(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b, p = src
    if isinstance(p, int):
        return a if p else b
    if a == b:
        return a
    if made := v.made_by(p, "not", "pred"):
        return v.build("select", type_, (b, a, made.src[0]))
    if type_ == "pred" and isinstance(a, int) and isinstance(b, int):
        return p if a else v.build("not", "pred", (p,))
    if (made := v.made_by(a, "select", type_)) and made.src[2] == p:
        return v.build("select", type_, (made.src[0], b, p))
    if (made := v.made_by(b, "select", type_)) and made.src[2] == p:
        return v.build("select", type_, (a, made.src[1], p))
    if (a, b) == (1, 0) and type_ == "b32" and (made := v.made_by(p, "setp", "u32")) and (half := v.made_by(made.src[0], "hi", "b64")):
        if made.mods == ("ne",) and made.src[1] == 0 and len(_leaves(v, half.src[0])) == 2:
            return made.src[0]
        wide = v.made_by(half.src[0], "sub", "u64")
        if made.mods == ("eq",) and made.src[1] == 0 and wide and all(v.extended(s) is not None for s in wide.src):
            return v.build("add", "u32", (made.src[0], 1))
    return None


def _pack(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    low, high = src
    half = _HALF[type_]
    if isinstance(low, int) and isinstance(high, int):
        return low & (1 << half) - 1 | (high & (1 << half) - 1) << half
    if (a := v.made_by(low, "lo", type_)) and (b := v.made_by(high, "hi", type_)) and a.src[0] == b.src[0]:
        return a.src[0]
    return v.paired(low, high) if type_ == "b64" else None


def _lo(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    value, half = src[0], _HALF[type_]
    if isinstance(value, int):
        return value & (1 << half) - 1
    made = v.defs.get(value)
    if made is None:
        return None
    if made.op == "pack":
        return made.src[0]
    if made.op == "cvt" and made.type in ("u64", "s64") and made.mods in (("u32",), ("s32",)):
        return made.src[0]
    if not v.one_sided(value, "lo"):
        return None
    if type_ == "b32":
        return _narrow_half(v, made)
    if made.op in ("add", "sub", "mul") and made.type in ("u64", "s64"):
        return v.build(made.op, "u32", (v.low(made.src[0]), v.low(made.src[1])))
    if made.op == "shl" and isinstance(made.src[1], int) and made.src[1] < 32:
        return v.build("shl", "b32", (v.low(made.src[0]), made.src[1]))
    if made.op == "mulwide" and WIDTH[made.type] == 32:
        return v.build("mul", "u32", made.src)
    return None


def _narrow_half(v: Values, made: Instruction) -> Operand | None:
    if made.type in ("f16x2", "bf16x2") and made.op in ("add", "sub", "mul", "fma", "min", "max"):
        lows = tuple(v.build("lo", "b32", (s,), (), "b16") for s in made.src)
        return v.build(made.op, made.type[:-2], lows, made.mods)
    if made.type in ("f16x2", "bf16x2") and made.op == "cvt" and len(made.src) == 2:
        return v.build("cvt", made.type[:-2], (made.src[1],), made.mods)
    return None


def _hi(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    value, half = src[0], _HALF[type_]
    if isinstance(value, int):
        return value >> half & (1 << half) - 1
    made = v.defs.get(value)
    if made is None:
        return None
    if made.op == "pack":
        return made.src[1]
    if made.op == "cvt" and made.type in ("u64", "s64") and made.mods == ("u32",):
        return 0
    if made.op == "cvt" and made.type in ("u64", "s64") and made.mods == ("s32",):
        return v.build("shr", "s32", (made.src[0], 31))
    if made.op == "shl" and type_ == "b64" and made.src[1] == 1 and (inner := v.made_by(made.src[0], "cvt")) and inner.mods == ("s32",):
        return v.build("shr", "s32", (inner.src[0], 31))
    if not v.one_sided(value, "hi"):
        return None
    if made.op == "shl" and type_ == "b64" and isinstance(made.src[1], int) and 0 < made.src[1] < 32:
        inner = v.defs.get(made.src[0]) if isinstance(made.src[0], str) else None
        if inner and inner.op == "cvt" and inner.mods in (("u32",), ("s32",)):
            return v.build("shr", inner.mods[0], (inner.src[0], 32 - made.src[1]))
    if made.op == "mulwide" and WIDTH[made.type] == 32:
        return v.build("mulhi", made.type, made.src)
    return None


def _setp(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, b = src
    if type_ in FLOATS:
        return None
    if type_ == "u32" and b == 1 and mods == ("ge",):
        return v.build("setp", "u32", (a, 0), ("ne",))
    if type_ == "u32" and b == 0 and mods in (("ge",), ("lt",)):
        return int(mods[0] == "ge")
    if isinstance(a, int) and isinstance(b, str):
        flipped = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}.get(mods[0], mods[0])
        return v.build("setp", type_, (b, a), (flipped,))
    if a == b:
        return int(mods[0] in ("eq", "le", "ge"))
    if b == 0 and mods[0] in ("eq", "ne") and (made := v.made_by(a, "select")) and made.src[:2] in ((1, 0), (MASK32, 0)):
        return made.src[2] if mods[0] == "ne" else v.build("not", "pred", (made.src[2],))
    if b == 0x727FFFFF and mods == ("gt",) and (made := v.made_by(a, "add")) and made.src[1] == 0xF3000000:
        return 0 if v.settled("rooted", (made.src[0],)) else None
    return None


def _fma(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    if type_ != "f32":
        return None
    if mods == ("rn",) and (quotient := _divided(v, *src)) is not None:
        v.divided.add(quotient)
        return v.build("div", "f32", quotient, ("rn",))
    if mods == ("rn",) and (root := _rooted(v, *src)) is not None:
        v.rooted.add((root,))
        return v.build("sqrt", "f32", (root,), ("rn",))
    return None


def _fma_parts(v: Values, value: Operand) -> tuple[Operand, ...]:
    made = v.made_by(value, "fma", "f32")
    return made.src if made and made.mods == ("rn",) else ()


def _negated(v: Values, value: Operand) -> Operand | None:
    made = v.made_by(value, "neg", "f32")
    return made.src[0] if made else value ^ 1 << 31 if isinstance(value, int) else None


def _divided(v: Values, r: Operand, rest: Operand, q: Operand) -> tuple[Operand, Operand] | None:
    """Recognise the last step of a / b: r about 1 / b, q about a / b, rest = a - b q."""
    for x, y in ((r, rest), (rest, r)):
        remainder, quotient = _fma_parts(v, y), _fma_parts(v, q)
        if not remainder or not quotient:
            continue
        found = _residual(v, remainder, q)
        if not found:
            continue
        if quotient[2] == 0 and set(quotient[:2]) == {found[0], x} and _reciprocal(v, x, found[1]):
            return found
        first = quotient[2]
        if not _fma_parts(v, first):
            continue
        a, b = found
        start = _fma_parts(v, first)
        inner = next((_fma_parts(v, s) for s in quotient[:2] if s != x and _fma_parts(v, s)), ())
        fits = start[2] == 0 and set(start[:2]) == {a, x} and x in quotient[:2] and inner and _residual(v, inner, first) == (a, b)
        if fits and _reciprocal(v, x, b):
            return a, b
    return None


def _residual(v: Values, parts: tuple[Operand, ...], q: Operand) -> tuple[Operand, Operand] | None:
    """Return a and b of a - b q."""
    for x, y in (parts[:2], parts[1::-1]):
        if y == q and (b := _negated(v, x)) is not None:
            return parts[2], b
        if x == q and (b := _negated(v, y)) is not None:
            return parts[2], b
    return None


def _reciprocal(v: Values, r: Operand, b: Operand) -> bool:
    """Tell whether r = r0 + r0 (1 - b r0) with r0 the unit's 1 / b."""
    parts = _fma_parts(v, r)
    if not parts:
        return False
    start = v.made_by(parts[2], "rcp", "f32")
    if not start or start.src[0] != b or parts[2] not in parts[:2]:
        return False
    error = _fma_parts(v, parts[0] if parts[1] == parts[2] else parts[1])
    return bool(error) and error[2] == 0x3F800000 and _residual(v, error, parts[2]) == (0x3F800000, b)


def _rooted(v: Values, e: Operand, h: Operand, s: Operand) -> Operand | None:
    """Recognise the last step of a square root: s = x r, h = r / 2, e = x - s s with r about 1 / sqrt(x)."""
    for x, y in ((e, h), (h, e)):
        error, root, half = _fma_parts(v, x), v.made_by(s, "mul", "f32"), v.made_by(y, "mul", "f32")
        if not error or not root or not half or 0x3F000000 not in half.src:
            continue
        r = next((t for t in half.src if t != 0x3F000000), None)
        start = v.made_by(r, "rsqrt", "f32") if r is not None else None
        if start and r in root.src and start.src[0] in root.src and _residual(v, error, s) == (start.src[0], s):
            return start.src[0]
    return None


def _check(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    """FCHK of a division that was recognised: the quotient is right on either path."""
    return 0 if v.settled("divided", src) else None


def _field(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    a, position, length = src
    if position == 0 and isinstance(length, int) and length >= WIDTH[type_]:
        return a
    if isinstance(position, int) and isinstance(length, int) and isinstance(a, int) and type_[0] == "u":
        return a >> position & (1 << length) - 1 if position < WIDTH[type_] else 0
    return None


def _move(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    source = src[0]
    if isinstance(source, int):
        return source & (1 << WIDTH[type_]) - 1
    return source if v.graph.widths[source] == ("pred" if type_ == "pred" else f"b{max(16, WIDTH[type_])}") else None


_RULES = {
    **{"add": _add, "sub": _sub, "mul": _mul, "mulwide": _mulwide, "shl": _shift, "shr": _shift, "and": _and, "or": _or, "xor": _xor},
    **{"not": _not, "neg": _neg, "select": _select, "pack": _pack, "lo": _lo, "hi": _hi, "setp": _setp, "fma": _fma, "fchk": _check},
    **{"bfe": _field, "mov": _move},
}
_FOLDED = frozenset({"add", "sub", "mul", "mulwide", "setp", "cvt", "shl", "shr", "and", "or", "xor", "not", "neg", "abs", "min", "max", "mulhi"})
