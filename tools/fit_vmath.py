"""Fit the polynomials of gewu.ops.vmath: `python tools/fit_vmath.py > src/gewu/ops/vmath_table.py`.

Each function is interpolated at Chebyshev nodes in 60 (erfc: 420) decimal digits, which is within a small factor of the best fit,
and rounded to hexadecimal float64; float32 code rounds the same numbers again.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal as D
from decimal import getcontext

import numpy as np


def arctan_series(x: D) -> D:
    """Return atan(x) for small x."""
    total, term, n = D(0), x, 1
    while abs(term) > D(10) ** -getcontext().prec:
        total += term / n
        term, n = -term * x * x, n + 2
    return total


def pi() -> D:
    """Return pi by Machin's formula."""
    return 4 * (4 * arctan_series(D(1) / 5) - arctan_series(D(1) / 239))


def power_series(first: D, ratio: Callable[[int], D]) -> D:
    """Sum a series from its first term and the ratio of term n + 1 to term n."""
    total, term, n = D(0), first, 0
    while abs(term) > D(10) ** -getcontext().prec and n < 100000:
        total += term
        term, n = term * ratio(n), n + 1
    return total


def erfc_scaled(x: D) -> D:
    """Return (1 + 2 x) exp(x^2) erfc(x)."""
    series = power_series(x, lambda n: 2 * x * x / (2 * n + 3))
    erf = 2 / pi().sqrt() * (-x * x).exp() * series
    return (1 + 2 * x) * (x * x).exp() * (1 - erf)


def erfc_log2(x: D) -> D:
    """Return log2(erfc(x))/x."""
    return (erfc_scaled(x) / (1 + 2 * x) * (-x * x).exp()).ln() / D(2).ln() / x


def erf_rest(z: D) -> D:
    """Return erf(x)/x - 1 with x^2 = z."""
    return 2 / pi().sqrt() * power_series(D(1), lambda n: -z * (2 * n + 1) / ((n + 1) * (2 * n + 3))) - 1


def polynomial(function: Callable[[D], D], low: D, high: D, degree: int) -> list[D]:
    """Return coefficients, lowest first, of the interpolation at Chebyshev nodes (Newton's form, then expanded)."""
    nodes = [(low + high) / 2 + (high - low) / 2 * D(float(np.cos(np.pi * (k + 0.5) / (degree + 1)))) for k in range(degree + 1)]
    table = [function(x) for x in nodes]
    for step in range(1, degree + 1):
        for k in range(degree, step - 1, -1):
            table[k] = (table[k] - table[k - 1]) / (nodes[k] - nodes[k - step])
    result = [table[degree]]
    for k in range(degree - 1, -1, -1):
        shifted = [D(0), *result]
        for place, coefficient in enumerate(result):
            shifted[place] -= nodes[k] * coefficient
        shifted[0] += table[k]
        result = shifted
    return result


def tiny(x: D) -> D:
    """Move a node off zero, where the quotients below are 0/0."""
    return x if abs(x) > D("1e-12") else D("1e-12")


def atanh_rest(z: D) -> D:
    """Return (log((1 + s)/(1 - s)) - 2 s)/(2 s^3) with s^2 = z."""
    return power_series(D(1) / 3, lambda n: z * (2 * n + 3) / (2 * n + 5))


def main() -> None:
    """Print the table."""
    getcontext().prec = 60
    half_ln2, eighth, root = D(2).ln() / 2, pi() / 4, D(2).sqrt()
    s_max = (root - 1) / (root + 1)
    fits: dict[str, tuple[Callable[[D], D], D, D, int, int]] = {  # function, ends, degree for float32 and for float64
        "exp": (lambda r: power_series(D(1) / 2, lambda n: r / (n + 3)), -half_ln2, half_ln2, 4, 10),
        "exp2": (lambda r: power_series(D(2).ln(), lambda n: r * D(2).ln() / (n + 2)), D("-0.5"), D("0.5"), 5, 11),
        "log": (lambda f: ((1 + tiny(f)).ln() - tiny(f) + tiny(f) ** 2 / 2) / tiny(f) ** 3, 1 / root - 1, root - 1, 8, 8),
        "atanh": (atanh_rest, D(0), s_max**2, 3, 7),
        "atanh5": (lambda z: power_series(D(1) / 5, lambda n: z * (2 * n + 5) / (2 * n + 7)), D(0), s_max**2, 3, 7),
        "sin": (lambda z: power_series(D(-1) / 6, lambda n: -z / ((2 * n + 4) * (2 * n + 5))), D(0), eighth**2, 3, 6),
        "cos": (lambda z: power_series(D(1) / 24, lambda n: -z / ((2 * n + 5) * (2 * n + 6))), D(0), eighth**2, 3, 6),
        "erf": (erf_rest, D(0), D(1), 6, 13),
    }
    print('"""Coefficients of gewu.ops.vmath, lowest power first, fitted by tools/fit_vmath.py; do not edit."""\n')
    print("from typing import Final\n")
    print('TABLE: Final = """')
    for name, (function, low, high, single, double) in fits.items():
        for kind, degree in (("f32", single), ("f64", double)):
            show(name, kind, polynomial(function, low, high, degree))
    getcontext().prec = 420
    for kind, degree, far in (("f32", 10, D("10.5")), ("f64", 22, D("27.5"))):
        show("erfc", kind, polynomial(lambda t: erfc_scaled(4 * (1 + t) / (1 - t)), D(-1), (far - 4) / (far + 4), degree))
    show("erfc2", "f32", polynomial(erfc_log2, D(1), D(4), 6))
    print('"""')
    print('"""Entries: function and type, then one number a word."""')
    getcontext().prec = 60
    print('PARTS: Final = """')
    for name, value in (("ln2", D(2).ln()), ("half_pi", pi() / 2), ("log2e", 1 / D(2).ln())):
        parts = []
        for _ in range(3):
            parts.append(float(value))
            value -= D(parts[-1])
        print(name, *(p.hex() for p in parts), sep="\n")
    print('"""')
    print('"""Constants as a sum of three float64."""')


def show(name: str, kind: str, coefficients: list[D]) -> None:
    """Print one entry."""
    print(f"{name}.{kind}", *(float(c).hex() for c in coefficients), sep="\n")


if __name__ == "__main__":
    main()
