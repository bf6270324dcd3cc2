"""Which elements an access can touch in a launch: bounds over a box of axes, narrowed by conditions where that is needed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gewu.ops.nest_parts import Access
from gewu.ops.sizes import Affine


def span(access: Access, launch: Mapping[str, int], limit: int) -> tuple[int, int] | None:
    """Return the lowest and the highest element that an access touches, or None when it touches none.

    Args:
        access: an access of a nest.
        launch: the integers of the launch.
        limit: number of elements present; while the box of all axes stays inside, conditions are not looked at.
    """
    extents = {axis: size.value(launch) for axis, size in access.axes}
    if any(n <= 0 for n in extents.values()):
        return None
    strides, offset = _numbers(access.index, launch)
    low = offset + sum(min(0, s * (extents[a] - 1)) for a, s in strides.items())
    high = offset + sum(max(0, s * (extents[a] - 1)) for a, s in strides.items())
    if not access.where or (low >= 0 and high < limit):
        return low, high
    return _narrowed(access, launch, extents)


def _numbers(index: Affine, launch: Mapping[str, int]) -> tuple[dict[str, int], int]:
    strides: dict[str, int] = {}
    for axis, size in index.terms:
        strides[axis] = strides.get(axis, 0) + size.value(launch)
    return strides, index.offset.value(launch)


def _narrowed(access: Access, launch: Mapping[str, int], extents: dict[str, int]) -> tuple[int, int] | None:
    """Solve the linear programme of the access; its bounds hold for the integers inside."""
    from scipy.optimize import linprog

    names = sorted(extents)
    strides, offset = _numbers(access.index, launch)
    rows, right = [], []
    for condition in access.where:
        slopes, start = _numbers(condition, launch)
        rows.append([-float(slopes.get(n, 0)) for n in names])
        right.append(float(start))
    if not names:
        return None if any(start < 0 for start in right) else (offset, offset)
    goal = np.array([float(strides.get(n, 0)) for n in names])
    box = [(0, extents[n] - 1) for n in names]
    found = [linprog(sign * goal, A_ub=rows, b_ub=right, bounds=box, method="highs") for sign in (1, -1)]
    if any(f.status == 2 for f in found):
        return None
    low, high = found[0].fun, -found[1].fun
    return offset + int(np.ceil(low - 1e-6)), offset + int(np.floor(high + 1e-6))
