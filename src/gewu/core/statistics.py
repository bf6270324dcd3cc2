"""Means of correlated series and their errors, from samples that come one after the other.

Reference: Flyvbjerg and Petersen, J. Chem. Phys. 91, 461 (1989); Jonsson, Phys. Rev. E 98, 043304 (2018).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class BlockAverages:
    """Means of correlated series and their standard errors by repeated pairing of neighbours, in a fixed amount of memory.

    Level k holds means of 2^k successive samples.  Its blocks count as independent when the lag-one autocorrelations rho of it
    and all higher levels are compatible with zero: sum_k n_k rho_k^2 below the 99 % point of chi^2 (Jonsson 2018).

    Args:
        names: one per column of the samples.

    >>> series = BlockAverages(["pressure"])
    >>> for value in (1.0, 2.0, 3.0):
    ...     series.add([value])
    >>> float(series.mean()[0])
    2.0
    """

    _LEVELS = 48  # 2^48 samples
    _ENOUGH = 16  # blocks on the highest level in use

    def __init__(self, names: Sequence[str]) -> None:
        m = len(names)
        self.names, self._count = tuple(names), np.zeros(self._LEVELS, np.int64)
        # per level and column: first, last, half-made block above, and sums of x, x^2 and x_i x_{i+1}; all relative to the first
        self._sums, self._origin = np.zeros((self._LEVELS, 6, m)), np.zeros(m)

    def add(self, values: ArrayLike) -> None:
        """Take one sample of every column."""
        x = np.asarray(values, float)
        if self._count[0] == 0:
            self._origin = x.copy()
        x = x - self._origin
        for level in range(self._LEVELS):
            first, last, waiting, total, square, product = self._sums[level]
            product += last * x if self._count[level] else 0.0
            if self._count[level] == 0:
                first[:] = x
            last[:], total[:], square[:] = x, total + x, square + x * x
            self._count[level] += 1
            if self._count[level] % 2:
                waiting[:] = x
                return
            x = (waiting + x) / 2

    def mean(self) -> Array:
        """Return the means; nan before the first sample."""
        n = int(self._count[0])
        return np.asarray(self._origin + self._sums[0, 3] / n if n else np.full(len(self.names), np.nan))

    def error(self) -> Array:
        """Return the standard errors of the means; nan where the series is too short to tell."""
        from scipy.stats import chi2

        levels = int((self._count >= self._ENOUGH).sum())
        if levels == 0:
            return np.full(len(self.names), np.nan)
        n = self._count[:levels, None].astype(float)
        first, last, _, total, square, product = self._sums[:levels].transpose(1, 0, 2)
        mu = total / np.maximum(n, 1)
        variance = np.maximum(square / n - mu**2, 0.0)
        covariance = (product - mu * (2 * total - first - last)) / n + (n - 1) / n * mu**2
        rho2 = np.divide(covariance**2, variance**2, out=np.zeros_like(variance), where=variance > 0)
        remaining = np.cumsum((n * rho2)[::-1], axis=0)[::-1]
        independent = remaining < chi2.ppf(0.99, np.arange(levels, 0, -1))[:, None]
        squared = (variance + 2 * np.maximum(covariance, 0.0)) / (n - 1)  # with what correlation the test was too weak to see
        lowest = np.argmax(independent, axis=0)
        return np.array([math.sqrt(squared[k, m]) if independent[:, m].any() else math.nan for m, k in enumerate(lowest)])

    def to_state(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"count": self._count.copy(), "sums": self._sums.copy(), "origin": self._origin.copy()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from `to_state`."""
        self._count, self._sums, self._origin = (np.array(saved[k]) for k in ("count", "sums", "origin"))
