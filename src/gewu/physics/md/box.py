"""Periodic boxes: nearest images, heights, wrapping.

Rows of the box are a = (ax, 0, 0), b = (bx, by, 0), c = (cx, cy, cz).  The nearest image of a vector is found by taking off whole
c, then b, then a: exact for vectors shorter than half the smallest height of a reduced box, which is what a cutoff asks for.
"""

from __future__ import annotations

import math

import numpy as np

from gewu.core.device import device
from gewu.core.errors import InputError
from gewu.physics.md.state import Array, State

_NO_BOX = np.diag([1e30, 1e30, 1e30])


@device
def minimum_image(dx: float, dy: float, dz: float, box: Array) -> tuple[float, float, float]:
    """Return the nearest periodic image of a vector; `box` is (3, 3), lower triangular."""
    k = math.floor(dz / box[2, 2] + 0.5)
    dx, dy, dz = dx - k * box[2, 0], dy - k * box[2, 1], dz - k * box[2, 2]
    k = math.floor(dy / box[1, 1] + 0.5)
    dx, dy = dx - k * box[1, 0], dy - k * box[1, 1]
    k = math.floor(dx / box[0, 0] + 0.5)
    return dx - k * box[0, 0], dy, dz


def box_of(state: State) -> Array:
    """Return the box for `minimum_image`: the state's, or one without images in vacuum."""
    return state.box_33 if state.periodic else _NO_BOX


def heights(box_33: Array) -> Array:
    """Return the three distances between opposite faces of the box, nm."""
    return 1.0 / np.linalg.norm(np.linalg.inv(box_33), axis=0)


def check_reach(box_33: Array, reach_nm: float, what: str) -> None:
    """Refuse a periodic box in which a sphere of radius `reach_nm` meets itself.

    Raises:
        InputError: a height of the box is below twice the reach.
    """
    smallest = float(heights(box_33).min())
    if smallest < 2.0 * reach_nm:
        raise InputError(
            f"the box is too small: its smallest height is {smallest:.4g} nm, {what} needs twice {reach_nm:.4g} nm",
            key="box",
            value=round(smallest, 6),
            allowed=f"at least {2 * reach_nm:.6g} nm",
            hint="use a larger cell (repeat it) or a shorter cutoff",
        )
