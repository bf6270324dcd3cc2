"""Rows of integers as numbers in a mixed radix: how loops are found in offsets."""

from __future__ import annotations

from collections.abc import Iterator

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


def partial_digits_of(rows: Longs, known: NDArray[np.bool_]) -> Digits | None:
    """Count rows in a mixed radix as `digits_of` does, where some entries are not known.

    Of each column, what is known in one pass of a digit must be one stretch: a picture without its rim, row by row.  So a digit
    ends where a row does, although the rim leaves open whether the next row goes on in the same line.

    Args:
        rows: (n, columns).
        known: which entries count; the first column tells the rows apart and is known everywhere.

    Returns:
        (radix, strides of the columns), fast digit first, or None if there is none.
    """
    found: Digits = []
    while (count := len(rows)) > 1:
        for radix in sorted((r for r in range(2, count + 1) if count % r == 0), reverse=True):
            level = _level(rows.reshape(-1, radix, rows.shape[1]), known.reshape(-1, radix, rows.shape[1]))
            if level is not None:
                stride, rows, known = level
                found.append((radix, stride))
                break
        else:
            return None
    return found


def _level(rows: Longs, known: NDArray[np.bool_]) -> tuple[Longs, Longs, NDArray[np.bool_]] | None:
    """Return the strides of a digit (the middle axis) and the rows with it taken off, or None if there is no such digit."""
    starts = known[:, 0].astype(np.int64) + (known[:, 1:] & ~known[:, :-1]).sum(axis=1)
    pairs = known[:, 1:] & known[:, :-1]
    if (starts > 1).any() or not (pairs.any(axis=(0, 1)) | ~known.any(axis=(0, 1))).all():
        return None
    steps = np.diff(rows, axis=1)
    at = pairs.reshape(-1, pairs.shape[2]).argmax(axis=0)
    stride = np.take_along_axis(steps.reshape(-1, pairs.shape[2]), at[None], axis=0)[0] * pairs.any(axis=(0, 1))
    if (pairs & (steps != stride)).any():
        return None
    base = rows - np.arange(rows.shape[1])[:, None] * stride
    first = known.argmax(axis=1)
    return stride, np.take_along_axis(base, first[:, None], axis=1)[:, 0], known.any(axis=1)


def coordinates(digits: Digits, count: int) -> tuple[list[int], Longs]:
    """Return the radices, slow digit first, and the digits of the numbers below `count`: one row each."""
    number, columns = np.arange(count), []
    for radix, _ in digits:
        columns.append(number % radix)
        number = number // radix
    return [radix for radix, _ in reversed(digits)], np.stack(columns[::-1], axis=1) if columns else np.zeros(
        (count, 0), np.int64
    )


def boxes(inside: NDArray[np.bool_]) -> Iterator[tuple[slice, ...]]:
    """Cut a set of points of a grid into boxes, each as long as can be along the fast axes first: a frame into four bars."""
    left = inside.copy()
    while left.any():
        start = np.unravel_index(int(left.argmax()), left.shape)
        box = [slice(int(at), int(at) + 1) for at in start]
        for axis in reversed(range(left.ndim)):
            stop = box[axis].stop
            while stop < left.shape[axis] and left[(*box[:axis], slice(stop, stop + 1), *box[axis + 1 :])].all():
                stop += 1
            box[axis] = slice(box[axis].start, stop)
        left[tuple(box)] = False
        yield tuple(box)
