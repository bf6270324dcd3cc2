"""Sizes that are known at the call only: polynomials in the integers of a launch, and the index maps made of them.

A launch has integers by name: `p3` is the value of argument 3, `bx by bz` the block and `gx gy gz` the grid.  A `Size` is a
polynomial in them with integer coefficients, a quotient rounded up, or both; an `Affine` is what an index is: a sum of loop
variables times sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce


@dataclass(frozen=True, slots=True)
class Ceil:
    """A quotient rounded up, as the number of blocks is: ceil(numerator / denominator)."""

    numerator: Size
    denominator: Size

    def value(self, launch: Mapping[str, int]) -> int:
        """Return its value in a launch."""
        return -(-self.numerator.value(launch) // self.denominator.value(launch))

    def __str__(self) -> str:
        return f"ceil({self.numerator} / {self.denominator})"


@dataclass(frozen=True, slots=True)
class Size:
    """Sum of coefficient times factors: `((2, ("p0", "p1")), (-1, ()))` is 2 p0 p1 - 1. No terms: zero."""

    terms: tuple[tuple[int, tuple[str | Ceil, ...]], ...] = ()

    @staticmethod
    def of(number: int) -> Size:
        """Return a constant."""
        return Size(((number, ()),)) if number else Size()

    @staticmethod
    def named(name: str | Ceil) -> Size:
        """Return one launch integer or quotient."""
        return Size(((1, (name,)),))

    @property
    def constant(self) -> int | None:
        """Its value when no launch is needed, else None."""
        if not self.terms:
            return 0
        return self.terms[0][0] if len(self.terms) == 1 and not self.terms[0][1] else None

    def value(self, launch: Mapping[str, int]) -> int:
        """Return its value in a launch."""
        total = 0
        for coefficient, factors in self.terms:
            for factor in factors:
                coefficient *= launch[factor] if isinstance(factor, str) else factor.value(launch)
            total += coefficient
        return total

    def __add__(self, other: Size) -> Size:
        collected: dict[tuple[str | Ceil, ...], int] = {}
        for coefficient, factors in (*self.terms, *other.terms):
            collected[factors] = collected.get(factors, 0) + coefficient
        return Size(tuple((c, f) for f, c in collected.items() if c))

    def __mul__(self, other: Size) -> Size:
        products = [Size(((a * b, tuple(sorted((*f, *g), key=str))),)) for a, f in self.terms for b, g in other.terms]
        return reduce(Size.__add__, products, Size())

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        text = ""
        for coefficient, factors in self.terms:
            sign, size = ("-" if coefficient < 0 else "+" if text else ""), abs(coefficient)
            names = [str(f) for f in factors]
            text += sign + " ".join(names if size == 1 and names else [str(size), *names])
        return text


ZERO, ONE = Size(), Size.of(1)


@dataclass(frozen=True, slots=True)
class Affine:
    """An index: sum of loop variable times stride, plus an offset."""

    terms: tuple[tuple[str, Size], ...] = ()
    offset: Size = ZERO

    def stride(self, axis: str) -> Size:
        """Return the stride along a loop variable; zero where it does not occur."""
        return next((size for name, size in self.terms if name == axis), ZERO)

    @property
    def axes(self) -> frozenset[str]:
        """The loop variables that occur."""
        return frozenset(name for name, _ in self.terms)

    def __str__(self) -> str:
        parts = [name if str(size) == "1" else f"{_bracketed(size)} {name}" for name, size in self.terms]
        if self.offset.terms or not parts:
            parts.append(str(self.offset))
        return " + ".join(parts).replace("+ -", "- ")


def _bracketed(size: Size) -> str:
    return f"({size})" if len(size.terms) > 1 else str(size)
