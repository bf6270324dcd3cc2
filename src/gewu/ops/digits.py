"""Rows of integers as numbers in a mixed radix: how loops are found in offsets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Longs = NDArray[np.int64]
Digits = list[tuple[int, Longs]]


def digits_of(rows: Longs) -> Digits | None:
    """Count rows in a mixed radix in which all columns are linear.

    Args:
        rows: (n, columns).

    Returns:
        (radix, strides of the columns), fast digit first, or None if there is none.
    """
    count = len(rows)
    delta = rows - rows[0]
    found: Digits = []
    step = 1
    while step < count:
        stride = delta[step]
        line = delta[::step]
        good = (line == np.arange(len(line))[:, None] * stride).all(axis=1)
        radix = int(good.argmin()) if not good.all() else len(line)
        if radix < 2 or count % (radix * step):
            radix = next((r for r in range(radix, 1, -1) if count % (r * step) == 0), 0)
            if not radix:
                return None
        found.append((radix, stride))
        step *= radix
    place, total = np.arange(count), np.zeros_like(delta)
    for radix, stride in found:
        total += (place % radix)[:, None] * stride
        place = place // radix
    return found if (total == delta).all() else None
