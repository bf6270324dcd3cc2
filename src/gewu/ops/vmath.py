"""Branch-free LLVM code of the usual functions in float32 and float64, which loop vectorisers take whole.

Arguments are reduced by multiples of ln 2 or pi/2 (Cody and Waite, with fused multiply-add), then a polynomial of
`vmath_table` is evaluated, then special values are put in by `select`. ULP holds the largest error, in units in the last place
of a normal result, that the tests allow on a dense sample. sin and cos: up to RANGE in magnitude, NaN beyond. Results that are
not normal numbers may be rounded twice."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from gewu.ops.vmath_table import PARTS, TABLE

ULP: Final = {
    **{"exp": (1.1, 1.1), "exp2": (1.1, 1.1), "expm1": (2.0, 2.0), "log": (1.0, 1.0), "log2": (1.0, 1.0), "log1p": (1.0, 1.0)},
    **{"sin": (1.5, 1.5), "cos": (1.5, 1.5), "tanh": (2.5, 2.5), "sinh": (2.5, 2.5), "cosh": (1.5, 1.5), "sigmoid": (2.5, 2.5)},
    **{"erf": (1.5, 1.5), "erfc": (5.0, 4.0), "pow": (1.0, 1.5)},
}
"""Largest error in float32 and float64."""
RANGE: Final = (1e15, 1e9)
"""Largest argument of sin and cos in float32 and float64."""


@lru_cache(maxsize=1)
def _tables() -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    found: list[dict[str, list[float]]] = []
    for text in (TABLE, PARTS):
        table: dict[str, list[float]] = {}
        numbers: list[float] = []
        for word in text.split():
            if word.lstrip("-").startswith("0x"):
                numbers.append(float.fromhex(word))
            else:
                numbers = table[word] = []
        found.append(table)
    return found[0], found[1]


def symbol(name: str, kind: str) -> str:
    """Return the name of a function in LLVM text."""
    return f"gewu.{name}.{kind}"


def definitions(wanted: set[tuple[str, str]]) -> tuple[str, set[str]]:
    """Return definitions of functions (name, "f32" or "f64") with all that they call, and the declarations they need."""
    texts, declarations, todo = {}, set(), sorted(wanted)
    while todo:
        name, kind = todo.pop()
        if (name, kind) not in texts:
            code = Code(kind)
            result = getattr(code, name)(*(["%x", "%y"] if name == "pow" else ["%x"]))
            parameters = f"{code.t} %x" + (f", {code.t} %y" if name == "pow" else "")
            head = f"define internal {code.t} @{symbol(name, kind)}({parameters}) alwaysinline nounwind memory(none) {{"
            texts[name, kind] = "\n".join([head, *code.lines, f"  ret {code.t} {result}", "}"])
            declarations |= code.declarations
            todo += sorted(code.calls)
    return "\n".join(texts.values()), declarations


class Code:
    """Instructions of one function; its methods are the functions and the small steps they are made of."""

    def __init__(self, kind: str) -> None:
        self.kind, self.double = kind, kind == "f64"
        self.t, self.i = ("double", "i64") if self.double else ("float", "i32")
        self.mantissa, self.bias, self.width = (52, 1023, 64) if self.double else (23, 127, 32)
        self.lines: list[str] = []
        self.declarations: set[str] = set()
        self.calls: set[tuple[str, str]] = set()

    # Steps.

    def emit(self, text: str) -> str:
        """Append an instruction and return its name."""
        name = f"%t{len(self.lines)}"
        self.lines.append(f"  {name} = {text}")
        return name

    def c(self, value: float) -> str:
        """Return a float literal, rounded to the function's type."""
        rounded = value if self.double else float(np.float32(value))
        return f"0x{np.float64(rounded).view(np.uint64):016X}"

    def intrinsic(self, name: str, *args: str) -> str:
        """Call an LLVM intrinsic on floats."""
        self.declarations.add(f"declare {self.t} @llvm.{name}.{self.kind}({', '.join([self.t] * len(args))})")
        return self.emit(f"call {self.t} @llvm.{name}.{self.kind}({', '.join(f'{self.t} {a}' for a in args)})")

    def fma(self, a: str, b: str, c: str) -> str:
        """Return a b + c, rounded once."""
        return self.intrinsic("fma", a, b, c)

    def op(self, verb: str, a: str, b: str) -> str:
        """Return fadd, fsub, fmul or fdiv of two floats."""
        return self.emit(f"{verb} {self.t} {a}, {b}")

    def add(self, a: str, b: str) -> str:
        """Return a + b."""
        return self.op("fadd", a, b)

    def sub(self, a: str, b: str) -> str:
        """Return a - b."""
        return self.op("fsub", a, b)

    def mul(self, a: str, b: str) -> str:
        """Return a b."""
        return self.op("fmul", a, b)

    def div(self, a: str, b: str) -> str:
        """Return a / b."""
        return self.op("fdiv", a, b)

    def test(self, how: str, a: str, b: str) -> str:
        """Compare floats."""
        return self.emit(f"fcmp {how} {self.t} {a}, {b}")

    def pick(self, test: str, a: str, b: str) -> str:
        """Return a where the test holds, else b."""
        return self.emit(f"select i1 {test}, {self.t} {a}, {self.t} {b}")

    def bits(self, a: str) -> str:
        """Return a float's bits."""
        return self.emit(f"bitcast {self.t} {a} to {self.i}")

    def real(self, a: str) -> str:
        """Return bits as a float."""
        return self.emit(f"bitcast {self.i} {a} to {self.t}")

    def integer(self, verb: str, a: str, b: object) -> str:
        """Return an integer operation."""
        return self.emit(f"{verb} {self.i} {a}, {b}")

    def poly(self, name: str, x: str) -> str:
        """Evaluate a polynomial of the table; in float64 even and odd powers side by side, so that chains are shorter."""
        found = _tables()[0][f"{name}.{self.kind}"]
        if not self.double:
            total = self.c(found[-1])
            for coefficient in reversed(found[:-1]):
                total = self.fma(total, x, self.c(coefficient))
            return total
        square = self.mul(x, x)
        sides = []
        for start in (0, 1):
            side = [self.c(v) for v in found[start::2]]
            total = side[-1]
            for coefficient in reversed(side[:-1]):
                total = self.fma(total, square, coefficient)
            sides.append(total)
        return self.fma(sides[1], x, sides[0])

    def clamp(self, x: str, low: float, high: float) -> str:
        """Return x between two bounds; NaN stays."""
        x = self.pick(self.test("ogt", x, self.c(high)), self.c(high), x)
        return self.pick(self.test("olt", x, self.c(low)), self.c(low), x)

    def nearest(self, x: str) -> tuple[str, str]:
        """Return x rounded to an integer, as a float and an integer (small x only): 1.5 times 2^mantissa is added, then taken."""
        magic = 1.5 * 2.0**self.mantissa
        shifted = self.add(x, self.c(magic))
        base = int(np.float64(magic).view(np.int64)) if self.double else int(np.float32(magic).view(np.int32))
        return self.sub(shifted, self.c(magic)), self.integer("sub", self.bits(shifted), base)

    def powers(self, x: str, factor: float | None = None, offset: int = 0) -> tuple[str, str]:
        """Return n = x (times factor) rounded to an integer, as a float, and the bits of 2^(n + offset).

        The bias of the exponent is part of the number that is added, so a shift puts n where an exponent stands. Beyond the
        normal numbers the bits are none, but sums and differences of them are right.
        """
        magic = 1.5 * 2.0**self.mantissa + self.bias + offset
        shifted = self.add(x, self.c(magic)) if factor is None else self.fma(x, self.c(factor), self.c(magic))
        return self.sub(shifted, self.c(magic)), self.integer("shl", self.bits(shifted), self.mantissa)

    def scaled(self, x: str, whole: str, power: str) -> str:
        """Return x 2^n in two steps, so that it may overflow or lose digits below the normal range.

        `power`: the bits of 2^(n + bias), from which those of a power are taken.
        """
        far = 2.0 ** (512 if self.double else 64)
        step = self.pick(self.test("olt", whole, self.c(0)), self.c(1 / far), self.c(far))
        return self.mul(self.mul(x, self.real(self.integer("sub", power, self.bits(step)))), step)

    def constants(self, name: str) -> list[str]:
        """Return a constant as literals whose sum it is."""
        parts = _tables()[1][name]
        if self.double:
            return [self.c(p) for p in parts]
        high = float(np.float32(parts[0]))
        return [self.c(high), self.c(parts[0] - high + parts[1]), self.c(0)]

    def fabs(self, x: str) -> str:
        """Return the magnitude."""
        return self.intrinsic("fabs", x)

    def sign(self, size: str, x: str) -> str:
        """Return `size` with the sign of x."""
        return self.intrinsic("copysign", size, x)

    def call(self, name: str, x: str) -> str:
        """Call another function of this module."""
        self.calls.add((name, self.kind))
        return self.emit(f"call {self.t} @{symbol(name, self.kind)}({self.t} {x})")

    # Exponentials.

    def _reduced(self, x: str, offset: int = 0) -> tuple[str, str, str]:
        """Return n, the bits of 2^(n + offset), and r with x = n ln 2 + r."""
        whole, power = self.powers(x, 1 / np.log(2.0), offset)
        high, low, _ = self.constants("ln2")
        minus = self.emit(f"fneg {self.t} {whole}")
        return whole, power, self.fma(minus, low, self.fma(minus, high, x))

    def _exp_tail(self, r: str) -> str:
        """Return e^r - 1 for a reduced argument."""
        return self.fma(self.mul(r, r), self.poly("exp", r), r)

    def exp(self, x: str) -> str:
        """Return e^x."""
        whole, power, r = self._reduced(
            self.clamp(x, -746.0 if self.double else -104.0, 710.0 if self.double else 89.0), self.bias
        )
        return self.scaled(self.add(self._exp_tail(r), self.c(1)), whole, power)

    def exp2(self, x: str) -> str:
        """Return 2^x."""
        x = self.clamp(x, -1080.0 if self.double else -151.0, 1025.0 if self.double else 129.0)
        whole, power = self.powers(x, offset=self.bias)
        r = self.sub(x, whole)
        return self.scaled(self.fma(self.poly("exp2", r), r, self.c(1)), whole, power)

    def _half_expm1(self, x: str) -> str:
        """Return (e^x - 1)/2 where neither overflows."""
        _, power, r = self._reduced(x, -1)
        half = self.real(power)
        return self.fma(half, self._exp_tail(r), self.sub(half, self.c(0.5)))

    def expm1(self, x: str) -> str:
        """Return e^x - 1, accurate near zero."""
        result = self._half_expm1(self.clamp(x, -40.0 if self.double else -20.0, 710.0 if self.double else 89.0))
        return self.pick(self.test("oeq", x, self.c(0)), x, self.add(result, result))

    def sigmoid(self, x: str) -> str:
        """Return 1/(1 + e^-x) = (1/2)/(1/2 + e^-x/2); where e^-x/2 would need the exponent of infinity it is that, and this 0."""
        top = 710.6 if self.double else 89.7
        _, power, r = self._reduced(self.clamp(self.emit(f"fneg {self.t} {x}"), -40.0, top), -1)
        half = self.mul(self.real(power), self.add(self._exp_tail(r), self.c(1)))
        return self.div(self.c(0.5), self.add(half, self.c(0.5)))

    def tanh(self, x: str) -> str:
        """Return tanh x = t/(t + 1), t = (e^2x - 1)/2."""
        size = self.fabs(x)
        size = self.pick(self.test("ogt", size, self.c(22)), self.c(22), size)
        t = self._half_expm1(self.add(size, size))
        return self.sign(self.div(t, self.add(t, self.c(1))), x)

    def sinh(self, x: str) -> str:
        """Return sinh x = (t + t/(t + 1))/2, t = e^|x| - 1; from halves where that overflows."""
        size = self.fabs(x)
        t = self.call("expm1", size)
        near = self.mul(self.add(t, self.div(t, self.add(t, self.c(1)))), self.c(0.5))
        return self.sign(self.pick(self.test("ogt", size, self.c(20)), self._half_exp(size), near), x)

    def cosh(self, x: str) -> str:
        """Return cosh x = (e + 1/e)/2, e = e^|x|; from halves where that overflows."""
        size = self.fabs(x)
        e = self.call("exp", size)
        near = self.mul(self.add(e, self.div(self.c(1), e)), self.c(0.5))
        return self.pick(self.test("ogt", size, self.c(20)), self._half_exp(size), near)

    def _half_exp(self, size: str) -> str:
        """Return e^x/2 by scaling once less."""
        whole, power, r = self._reduced(self.clamp(size, 0.0, 712.0 if self.double else 90.0), self.bias - 1)
        return self.scaled(self.add(self._exp_tail(r), self.c(1)), whole, power)

    # Logarithms.

    def _split(self, x: str) -> tuple[str, str]:
        """Return k (a float) and m in [sqrt(1/2), sqrt 2) with x = 2^k m, for positive finite x."""
        small = self.test("olt", x, self.c(2.0 ** (1 - self.bias)))
        lifted = self.mul(x, self.c(2.0 ** (self.mantissa + 1)))
        bits = self.bits(self.pick(small, lifted, x))
        root = int(np.sqrt(0.5).view(np.int64)) if self.double else int(np.float32(np.sqrt(0.5)).view(np.int32))
        exponent = self.integer("ashr", self.integer("sub", bits, root), self.mantissa)
        m = self.real(self.integer("sub", bits, self.integer("shl", exponent, self.mantissa)))
        shift = self.emit(f"select i1 {small}, {self.i} {self.mantissa + 1}, {self.i} 0")
        return self.emit(f"sitofp {self.i} {self.integer('sub', exponent, shift)} to {self.t}"), m

    def _log_of(self, f: str) -> tuple[str, str]:
        """Return log(1 + f) as a large part f and the rest."""
        square = self.mul(self.mul(f, f), self.c(0.5))
        if not self.double:
            cube = self.mul(self.mul(f, f), f)
            return f, self.sub(self.mul(cube, self.poly("log", f)), square)
        s = self.div(f, self.add(f, self.c(2)))
        z = self.mul(s, s)
        two = self.mul(self.add(z, z), self.poly("atanh", z))
        return f, self.emit(f"fneg {self.t} {self.sub(square, self.mul(s, self.add(square, two)))}")

    def _special_log(self, x: str, result: str) -> str:
        infinity, nan = self.c(float("inf")), self.c(float("nan"))
        result = self.pick(self.test("oeq", x, infinity), infinity, result)
        result = self.pick(self.test("ult", x, self.c(0)), nan, result)
        return self.pick(self.test("oeq", x, self.c(0)), self.c(float("-inf")), result)

    def log(self, x: str) -> str:
        """Return log x."""
        k, m = self._split(x)
        large, rest = self._log_of(self.sub(m, self.c(1)))
        high, low, _ = self.constants("ln2")
        result = self.fma(k, high, self.add(large, self.fma(k, low, rest)))
        return self._special_log(x, result)

    def log2(self, x: str) -> str:
        """Return log x / log 2."""
        k, m = self._split(x)
        large, rest = self._log_of(self.sub(m, self.c(1)))
        high, low, _ = self.constants("log2e")
        total = self.add(large, rest)
        error = self.add(self.sub(large, total), rest)
        tail = self.fma(total, low, self.mul(error, high))
        return self._special_log(x, self.add(k, self.fma(total, high, tail)))

    def log1p(self, x: str) -> str:
        """Return log(1 + x), accurate near zero: what 1 + x loses is put back."""
        one = self.c(1)
        u = self.add(x, one)
        back = self.sub(u, one)
        lost = self.add(self.sub(one, self.sub(u, back)), self.sub(x, back))
        k, m = self._split(u)
        large, rest = self._log_of(self.sub(m, one))
        high, low, _ = self.constants("ln2")
        rest = self.add(rest, self.div(lost, u))
        result = self.fma(k, high, self.add(large, self.fma(k, low, rest)))
        result = self._special_log(u, result)
        return self.pick(self.test("oeq", x, self.c(0)), x, result)

    # Circular functions.

    def sin(self, x: str) -> str:
        """Return sin x."""
        return self._circular(x, 0)

    def cos(self, x: str) -> str:
        """Return cos x = sin(x + pi/2)."""
        return self._circular(x, 1)

    def _circular(self, x: str, quarter: int) -> str:
        n, r = self._quadrant(x)
        if quarter:
            n = self.integer("add", n, 1)
        z = self.mul(r, r)
        sine = self.fma(self.mul(r, z), self.poly("sin", z), r)
        tail = self.fma(self.mul(z, z), self.poly("cos", z), self.mul(z, self.c(-0.5)))
        odd = self.emit(f"icmp ne {self.i} {self.integer('and', n, 1)}, 0")
        result = self.bits(self.pick(odd, self.add(self.c(1), tail), sine))
        flip = self.integer("shl", self.integer("and", n, 2), self.width - 2)
        result = self.real(self.integer("xor", result, flip))
        if not quarter:
            result = self.pick(self.test("oeq", x, self.c(0)), x, result)
        inside = self.test("ole", self.fabs(x), self.c(RANGE[self.double]))
        return self.pick(inside, result, self.c(float("nan")))

    def _quadrant(self, x: str) -> tuple[str, str]:
        """Return n and r with x = n pi/2 + r; float32 is reduced in float64."""
        wide = Code("f64")
        wide.lines, wide.declarations = self.lines, self.declarations
        y = x if self.double else self.emit(f"fpext float {x} to double")
        whole, n = wide.nearest(wide.mul(y, wide.c(2 / np.pi)))
        minus = self.emit(f"fneg double {whole}")
        parts = wide.constants("half_pi")
        for part in parts if self.double else parts[:2]:
            y = wide.fma(minus, part, y)
        if self.double:
            return n, y
        return self.emit(f"trunc i64 {n} to i32"), self.emit(f"fptrunc double {y} to float")

    # Error functions.

    def _erfc_positive(self, a: str) -> str:
        """Return erfc a for a >= 0: exp(-a^2) times a polynomial in (a - 4)/(a + 4), over 1 + 2 a."""
        far = self.c(27.5 if self.double else 10.5)
        a = self.pick(self.test("ogt", a, far), far, a)
        t = self.div(self.sub(a, self.c(4)), self.add(a, self.c(4)))
        square = self.mul(a, a)
        minus = self.emit(f"fneg {self.t} {square}")
        lost = self.fma(a, a, minus)
        e = self.call("exp", minus)
        scale = self.fma(self.emit(f"fneg {self.t} {e}"), lost, e)
        return self.mul(self.div(self.poly("erfc", t), self.fma(a, self.c(2), self.c(1))), scale)

    def erfc(self, x: str) -> str:
        """Return 1 - erf x."""
        size = self.fabs(x)
        value = self._erfc_positive(size)
        value = self.pick(self.test("olt", x, self.c(0)), self.sub(self.c(2), value), value)
        near = self.sub(self.c(1), self._erf_near(x))
        return self.pick(self.test("olt", size, self.c(0.5)), near, value)

    def _erf_near(self, x: str) -> str:
        """Return erf x for magnitudes up to 1."""
        return self.fma(x, self.poly("erf", self.mul(x, x)), x)

    def erf(self, x: str) -> str:
        """Return erf x: a polynomial up to 1, beyond it one minus erfc; in float32 erfc is 2^(a polynomial)."""
        size = self.fabs(x)
        near = self._erf_near(size)
        if self.double:
            far = self._erfc_positive(size)
        else:
            a = self.pick(self.test("ogt", size, self.c(4)), self.c(4), size)
            slope = self.poly("erfc2", a)
            shifted = self.fma(a, slope, self.c(1.5 * 2.0**23 + 127))
            whole = self.sub(shifted, self.c(1.5 * 2.0**23 + 127))
            r = self.fma(a, slope, self.emit(f"fneg float {whole}"))
            power = self.integer("shl", self.bits(shifted), 23)
            far = self.mul(self.real(power), self.fma(self.poly("exp2", r), r, self.c(1)))
        far = self.sub(self.c(1), far)
        return self.sign(self.pick(self.test("olt", size, self.c(1)), near, far), x)

    # Powers.

    def pow(self, x: str, y: str) -> str:
        """Return x^y = 2^(y log2 |x|) with the sign and the special values of C's pow; float32 computes in float64."""
        if not self.double:
            wide = Code("f64")
            wide.lines, wide.declarations = self.lines, self.declarations
            p, q = (self.emit(f"fpext float {v} to double") for v in (x, y))
            return self.emit(f"fptrunc double {wide.pow(p, q)} to float")
        size, one, zero, infinity = self.fabs(x), self.c(1), self.c(0), self.c(float("inf"))
        high, low = self._log_pair(size)
        product = self.mul(y, high)
        rest = self.fma(y, low, self.fma(y, high, self.emit(f"fneg double {product}")))
        rest = self.pick(self.test("olt", self.fabs(product), self.c(2000)), rest, zero)
        result = self._exp_pair(product, rest)
        edge = self.emit(f"or i1 {self.test('oeq', size, zero)}, {self.test('oeq', size, infinity)}")
        grows = self.emit(f"xor i1 {self.test('ogt', y, zero)}, {self.test('olt', size, one)}")
        result = self.pick(edge, self.pick(grows, infinity, zero), result)
        whole = self.intrinsic("trunc", y)
        is_whole = self.test("oeq", whole, y)
        half = self.mul(y, self.c(0.5))
        odd = self.emit(f"and i1 {is_whole}, {self.test('one', self.intrinsic('trunc', half), half)}")
        below = self.emit(f"icmp slt i64 {self.bits(x)}, 0")
        bad = self.emit(f"and i1 {self.emit(f'xor i1 {is_whole}, true')}, {self.test('olt', x, zero)}")
        bad = self.emit(f"and i1 {bad}, {self.emit(f'xor i1 {edge}, true')}")
        result = self.pick(bad, self.c(float("nan")), result)
        result = self.pick(self.emit(f"and i1 {odd}, {below}"), self.emit(f"fneg double {result}"), result)
        result = self.pick(self.test("uno", x, y), self.c(float("nan")), result)
        both = self.emit(f"and i1 {self.test('oeq', size, one)}, {self.test('oeq', self.fabs(y), infinity)}")
        unit = self.emit(f"or i1 {self.test('oeq', x, one)}, {self.test('oeq', y, zero)}")
        return self.pick(self.emit(f"or i1 {unit}, {both}"), one, result)

    def _log_pair(self, x: str) -> tuple[str, str]:
        """Return log x (natural) of a positive finite number as an unrounded sum of two; relative error about 2^-68."""
        k, m = self._split(x)
        f = self.sub(m, self.c(1))
        under = self.add(f, self.c(2))
        s = self.div(f, under)
        under_low = self.sub(f, self.sub(under, self.c(2)))
        minus = self.emit(f"fneg double {s}")
        s_low = self.div(self.fma(minus, under_low, self.fma(minus, under, f)), under)
        z = self.mul(s, s)
        z_low = self.fma(s, self.add(s_low, s_low), self.fma(s, s, self.emit(f"fneg double {z}")))
        # 2 s (1 + z/3 + z^2 rest): z/3 as a sum of two, the rest plainly
        third, third_low = self.c(1 / 3), self.c(float.fromhex("0x1.5555555555555p-56"))
        q = self.mul(z, third)
        q_low = self.fma(z, third, self.emit(f"fneg double {q}"))
        q_low = self.add(q_low, self.fma(z, third_low, self.mul(z_low, third)))
        q_low = self.fma(self.mul(z, z), self.poly("atanh5", z), q_low)
        ratio, ratio_low = self._two_sum(q, q_low)
        p = self.mul(s, ratio)
        p_low = self.fma(s, ratio, self.emit(f"fneg double {p}"))
        p_low = self.fma(s, ratio_low, self.fma(s_low, ratio, p_low))
        total, error = self._two_sum(s, p)
        low = self.add(error, self.add(p_low, s_low))
        high2, low2, _ = self.constants("ln2")
        kh = self.mul(k, high2)
        kl = self.fma(k, low2, self.fma(k, high2, self.emit(f"fneg double {kh}")))
        top, error = self._two_sum(kh, self.add(total, total))
        return self._two_sum(top, self.add(error, self.add(kl, self.add(low, low))))

    def _two_sum(self, a: str, b: str) -> tuple[str, str]:
        total = self.add(a, b)
        back = self.sub(total, a)
        return total, self.add(self.sub(a, self.sub(total, back)), self.sub(b, back))

    def _exp_pair(self, high: str, low: str) -> str:
        """Return e^(high + low)."""
        whole, power, r = self._reduced(self.clamp(high, -746.0, 710.0), self.bias)
        return self.scaled(self.add(self._exp_tail(self.add(r, low)), self.c(1)), whole, power)
