"""Division and square root as machine code spells them: an approximation, two corrections, and a check for the careful path.

The last correction of the short way becomes `div` or `sqrt` with rounding to nearest, which is what both ways compute; the
check of operands for which that was recognised is then settled.
"""

from __future__ import annotations

import struct

from gewu.ops.ir import Operand
from gewu.ops.simplify import Values


def multiply_add(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    """Find the quotient or the root whose last correction a multiply-add is."""
    if type_ != "f32":
        return None
    if mods == ("rn",) and (quotient := _divided(v, *src)) is not None:
        v.divided.add(quotient)
        return v.build("div", "f32", quotient, ("rn",))
    if mods == ("rn",) and (inverted := _inverted(v, *src)) is not None:
        v.divided.add((0x3F800000, inverted))
        return v.build("div", "f32", (0x3F800000, inverted), ("rn",))
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
    """Tell whether r = r0 + r0 (1 - b r0) with r0 the unit's 1 / b, or what the compiler put there when it knows b."""
    parts = _fma_parts(v, r)
    if not parts or parts[2] not in parts[:2]:
        return False
    start = v.made_by(parts[2], "rcp", "f32")
    if not (start and start.src[0] == b) and not _inverse(parts[2], b):
        return False
    error = _fma_parts(v, parts[0] if parts[1] == parts[2] else parts[1])
    return bool(error) and error[2] == 0x3F800000 and _residual(v, error, parts[2]) == (0x3F800000, b)


def _inverse(r: Operand, b: Operand) -> bool:
    """Tell whether two constants are one divided by the other, to the last bit but one."""
    if not isinstance(r, int) or not isinstance(b, int):
        return False
    x, y = struct.unpack("<2f", struct.pack("<2I", r, b))
    return abs(x * y - 1.0) < 2.0**-22


def _inverted(v: Values, a: Operand, b: Operand, r: Operand) -> Operand | None:
    """Recognise the last step of 1 / x: r + r e with e = 1 - x r, r the unit's 1 / x."""
    start, opposite = v.made_by(r, "rcp", "f32"), v.made_by(b if a == r else a, "sub", "f32")
    if not start or r not in (a, b) or not opposite or opposite.src[0] != 1 << 31:
        return None
    error = _fma_parts(v, opposite.src[1])
    return start.src[0] if error and error[2] == 0xBF800000 and set(error[:2]) == {r, start.src[0]} else None


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


def division_check(v: Values, type_: str, src: tuple[Operand, ...], mods: tuple[str, ...]) -> Operand | None:
    """FCHK of a division that was recognised: the quotient is right on either path."""
    return 0 if v.settled("divided", src) else None
