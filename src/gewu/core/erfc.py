"""The smooth part of Ewald's real-space sum as polynomials in r^2.

With z = alpha r and x = z^2, a pair with charge product q (Coulomb's constant included) has, in the real-space sum,

    U = q [1/r - alpha E(x)],   F/r = q [1/r^3 - alpha^3 G(x)],
    E = erf(z)/z,   G = erf(z)/z^3 - 2/sqrt(pi) exp(-x)/x = -2 dE/dx,

and the correction of an excluded pair is the second half alone, with no pole at r = 0.  E(x) = 2/sqrt(pi) * integral over s in
(0, 1) of exp(-x s^2) is completely monotone, so its Taylor coefficients about any point alternate in sign and their moduli add up
to E(0) at the lower end of the interval: Horner's scheme in t = 2 x/x_max - 1 loses no digits, in float32 or in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy.special import erf

from gewu.core.errors import InputError

Array = NDArray[np.float64]
E0 = 2.0 / math.sqrt(math.pi)
"""E(0)."""
G0 = 4.0 / (3.0 * math.sqrt(math.pi))
"""G(0)."""
_MAX_DEGREE = 60


def smooth_energy(x: Array) -> Array:
    """Return E(x) = erf(z)/z, z = sqrt(x) >= 0, to rounding."""
    z = np.sqrt(np.maximum(x, 1e-30))
    return np.where(x > 1e-30, erf(z) / z, E0)


def smooth_force(x: Array) -> Array:
    """Return G(x) = erf(z)/z^3 - 2/sqrt(pi) exp(-x)/x, z = sqrt(x) >= 0, to rounding (by its series below 1)."""
    far = np.maximum(x, 1.0)
    direct = (erf(np.sqrt(far)) / np.sqrt(far) - E0 * np.exp(-far)) / far
    near, term = np.minimum(x, 1.0), np.ones_like(x, dtype=np.float64)
    series = term.copy()
    for n in range(1, 20):  # exp(-x) sum x^n / (5/2)_n: all terms positive, the 20th below 1e-17 for x <= 1
        term = term * near / (1.5 + n)
        series += term
    return np.where(x < 1.0, G0 * np.exp(-near) * series, direct)


def ewald_polynomials(x_max: float, tolerance: float) -> tuple[Array, Array]:
    """Return polynomials for the force G and the energy E on 0 <= x <= x_max.

    Args:
        x_max: largest (alpha r)^2, above 0 and at most 40.
        tolerance: largest error, as a fraction of G(0) and E(0); 1e-14 or more.
    Returns:
        Coefficients of G and of E, lowest first, in t = 2 x/x_max - 1 between -1 and 1, of the smallest degree that will do.
    Raises:
        InputError: the arguments are out of range.
    Examples:
        >>> force, energy = ewald_polynomials(9.8, 1e-7)
        >>> float(round(np.polynomial.polynomial.polyval(-1.0, energy), 6))
        1.128379
    """
    for key, value, low, high in (("x_max", x_max, 1e-6, 40.0), ("tolerance", tolerance, 1e-14, 1.0)):
        if not low <= value <= high:
            raise InputError("Ewald's polynomials are not made for this", key=key, value=value, allowed=f"{low} to {high}")
    return _fit(smooth_force, G0, x_max, tolerance), _fit(smooth_energy, E0, x_max, tolerance)


def _fit(function: Callable[[Array], Array], scale: float, x_max: float, tolerance: float) -> Array:
    """Truncate the Chebyshev series where its error on a dense grid meets the tolerance; return monomial coefficients."""
    nodes = chebyshev.chebpts1(_MAX_DEGREE + 1)
    series = chebyshev.chebfit(nodes, function(0.5 * x_max * (nodes + 1.0)), _MAX_DEGREE)
    t = np.cos(np.linspace(0.0, math.pi, 1501))
    exact = function(0.5 * x_max * (t + 1.0))
    degree = 1
    while degree < _MAX_DEGREE and np.abs(chebyshev.chebval(t, series[: degree + 1]) - exact).max() > tolerance * scale:
        degree += 1
    return np.asarray(chebyshev.cheb2poly(series[: degree + 1]), np.float64)
