"""Occupations of insulators and metals.

With width s and x = (mu - eps)/s, a smearing method is a smoothed step f(x) and its energy w(x) = int_-inf^x y f'(y) dy, so that
sum_k w_k 2 f = N fixes mu and -T S = 2 s sum_k w_k w(x). The free energy E - T S is what the self-consistent cycle minimises.

References: Methfessel and Paxton, PRB 40, 3616 (1989); Marzari, Vanderbilt, De Vita, Payne, PRL 82, 3296 (1999).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import erf, expit, xlogy

from gewu.core.errors import ConvergenceError, InputError

SMEARINGS = ("none", "gaussian", "fermi-dirac", "marzari-vanderbilt", "methfessel-paxton")
ROOT_PI = np.sqrt(np.pi)
REACH = 50  # widths beyond the bands at which every step is 0 or 1 to the last digit
FLAT = 1e-11  # electrons by which N(mu) may differ in a gap


class Occupations(NamedTuple):
    """Filling of the bands.

    Attributes:
        f: (nk, bands) electrons in each state, 0 to 2.
        mu: Fermi level, Ha (top of the valence bands without smearing).
        minus_ts: -T S, Ha (0 without smearing).
    """

    f: np.ndarray
    mu: float
    minus_ts: float


def _gaussian(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return 0.5 * (1 + erf(x)), -0.5 * np.exp(-(x**2)) / ROOT_PI


def _fermi_dirac(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    f = expit(x)
    return f, xlogy(f, f) + xlogy(1 - f, 1 - f)


def _marzari_vanderbilt(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y = x - 1 / np.sqrt(2)
    gauss = np.exp(-(y**2)) / np.sqrt(2 * np.pi)
    return 0.5 * (1 + erf(y)) + gauss, y * gauss


def _methfessel_paxton(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gauss = np.exp(-(x**2)) / ROOT_PI
    return 0.5 * (1 + erf(x)) + 0.5 * x * gauss, (2 * x * x - 1) / 4 * gauss


METHODS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "gaussian": _gaussian,
    "fermi-dirac": _fermi_dirac,
    "marzari-vanderbilt": _marzari_vanderbilt,
    "methfessel-paxton": _methfessel_paxton,
}


def occupy(eps: np.ndarray, weight: np.ndarray, electrons: float, smearing: str = "none", width_ha: float = 0.0) -> Occupations:
    """Fill bands with electrons.

    Args:
        eps: (nk, bands) band energies, Ha.
        weight: (nk,) k-point weights adding to 1.
        electrons: number per cell.
        smearing: one of `SMEARINGS`.
        width_ha: smearing width, Ha.

    Raises:
        InputError: too few bands, or an odd number of electrons without smearing.
    """
    if electrons > 2 * eps.shape[1]:
        raise InputError(
            "too few bands for the electrons",
            key="dft.bands",
            value=eps.shape[1],
            allowed=f"at least {int(np.ceil(electrons / 2))}",
        )
    if smearing == "none":
        filled = check_insulator(electrons)
        f = np.zeros_like(eps)
        f[:, :filled] = 2.0
        return Occupations(f, float(eps[:, :filled].max()), 0.0)
    method = METHODS[smearing]
    mu = _fermi_level(eps, weight, electrons, method, width_ha)
    f, w = method((mu - eps) / width_ha)
    return Occupations(2 * f, mu, 2 * width_ha * float((weight @ w).sum()))


def check_insulator(electrons: float) -> int:
    """Return the number of doubly filled bands; refuse a number of electrons that cannot fill bands in pairs."""
    if abs(electrons / 2 - round(electrons / 2)) > 1e-9:
        raise InputError(
            "an odd number of electrons cannot fill bands in pairs",
            key="dft.smearing",
            value="none",
            allowed=", ".join(SMEARINGS[1:]),
            hint=f"the cell has {electrons:g} electrons: choose a smearing, or double the cell",
        )
    return round(electrons / 2)


def _fermi_level(
    eps: np.ndarray, weight: np.ndarray, electrons: float, method: Callable[..., tuple[np.ndarray, np.ndarray]], width: float
) -> float:
    """Solve N(mu) = electrons. In a gap the middle is taken; steps that are not monotone have more than one solution, near the
    band edges too, so theirs is sought near the Gaussian level, as all codes do."""

    def excess(mu: float, step: Callable[..., tuple[np.ndarray, np.ndarray]]) -> float:
        return 2 * float((weight @ step((mu - eps) / width)[0]).sum()) - electrons

    low, high = float(eps.min()) - REACH * width, float(eps.max()) + REACH * width
    monotone = method in (_gaussian, _fermi_dirac)
    step = method if monotone else _gaussian
    left = _bisect(lambda mu: excess(mu, step) + FLAT, low, high)
    right = high if excess(high, step) <= FLAT else _bisect(lambda mu: excess(mu, step) - FLAT, low, high)
    start = 0.5 * (left + right)
    if monotone or abs(excess(start, method)) <= FLAT:
        return start
    for reach in (2 * width, 5 * width, 10 * width):
        if excess(start - reach, method) <= 0 <= excess(start + reach, method):
            low, high = start - reach, start + reach
            break
    return _bisect(lambda mu: excess(mu, method), low, high)


def _bisect(f: Callable[[float], float], low: float, high: float) -> float:
    if not f(low) <= 0 <= f(high) + 1e-12:
        raise ConvergenceError("the Fermi level is not bracketed: the band energies do not hold the electrons", hint="add bands")
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if f(middle) < 0:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
