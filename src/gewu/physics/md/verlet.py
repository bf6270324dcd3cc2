"""Full neighbour lists for many-body potentials (Verlet 1967), from fixed-point coordinates.

Positions are kept as fractions of the box in integers whose range is the box: 32 bits resolve a 10 nm box to 2e-9 nm, 64 bits
to 5e-19 nm.  The difference of two such integers wraps around exactly as the nearest image does, in triclinic boxes too, so no
pair needs an image vector and float32 arithmetic loses nothing in large boxes.  In vacuum the "box" is a cuboid three times as
large as the system.

Atoms are sorted along cells a quarter to a half of the reach wide.  Every atom, ghosts included where asked, gets a row of the
list with all neighbours within cutoff + skin, padded with itself to a multiple of 16.  A row that runs over makes the list grow
and be built again: no pair is dropped.  The list holds as long as no atom has moved by more than skin / 2.

Of several images of one atom (ghosts) the list takes the first: the nearest image is found from any of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gewu.core.device import load_numba
from gewu.core.errors import ConvergenceError, InputError
from gewu.physics.md.box import check_reach, heights
from gewu.physics.md.state import Array, Index, State

load_numba()
from numba import njit, prange  # noqa: E402

from gewu.core.lanes import LANES, append, below, consecutive, real, spread  # noqa: E402
from gewu.core.vector import stamped  # noqa: E402

_CLOSEST_NM = 0.02
_TOUCHING = np.float32(_CLOSEST_NM**2)


def _refuse(state: State, message: str, key: str, value: Any) -> None:
    """Refuse positions: bad input before the first step, a run that has broken down after it."""
    if state.step == 0:
        raise InputError(message, key=key, value=value)
    hint = "the time step may be too large, or the start too hot or strained"
    raise ConvergenceError(f"{message}, at step {state.step}", key=key, value=value, hint=hint)


class Verlet:
    """A full neighbour list in sorted order.

    Args:
        cutoff_nm: largest distance at which atoms interact.
        skin_nm: how much further the list reaches.
        ghosts: make rows for ghost atoms too (those of potentials whose forces are sums over other atoms' terms).

    After `rebuild`, atom k of the list is row `order_n[k]` of the state; its neighbours are `list_nw[k, : count_n[k]]`, counted
    in sorted order.
    """

    def __init__(self, cutoff_nm: float, skin_nm: float, *, ghosts: bool = False) -> None:
        self.cutoff_nm, self.skin_nm, self.ghosts = cutoff_nm, skin_nm, ghosts
        self.order_n: Index = np.zeros(0, np.int32)
        self.count_n: Index = np.zeros(0, np.int32)
        self.list_nw: Index = np.zeros((0, LANES), np.int32)
        self._origin_3, self._span_33 = np.zeros(3), np.eye(3)

    def _frame(self, state: State) -> None:
        """Choose the origin and the vectors that the fractions refer to."""
        if state.periodic:
            self._origin_3, self._span_33 = np.zeros(3), state.box_33
            return
        low, high = state.position_n3.min(axis=0), state.position_n3.max(axis=0)
        side = 3.0 * (high - low) + 6.0 * (self.cutoff_nm + self.skin_nm)
        self._origin_3, self._span_33 = 0.5 * (low + high) - 0.5 * side, np.diag(side)

    def rebuild(self, state: State) -> None:
        """Sort the atoms and list their neighbours.

        Raises:
            InputError: a periodic box with a height below twice the reach; positions that are not finite; two atoms in one place.
            ConvergenceError: the last two after the first step.
        """
        reach = self.cutoff_nm + self.skin_nm
        if not np.isfinite(state.position_n3).all():
            row = int(np.flatnonzero(~np.isfinite(state.position_n3).all(axis=1))[0])
            _refuse(state, "a position is not finite", f"atom {int(state.tag_n[row]) + 1}", state.position_n3[row].tolist())
        if state.periodic:
            check_reach(state.box_33, reach, "the neighbour list (cutoff + skin)")
        self._frame(state)
        members = np.arange(len(state.position_n3), dtype=np.int32)
        if state.owned < len(members):
            members = np.sort(np.unique(state.tag_n, return_index=True)[1]).astype(np.int32)
        n = len(members)
        height_3 = heights(self._span_33)
        grid = np.clip((height_3 / reach * np.array([2.0, 2.0, 4.0])).astype(np.int64), 1, 512)
        while np.prod(grid) > max(64, 4 * n):  # sparse systems: no more cells than atoms can use
            grid = np.maximum(1, grid // 2)
        self.order_n, fixed = members, np.empty((n, 3), np.int64)
        self.fixed(state, fixed)
        cell = _cells(fixed, grid)
        sort = np.argsort(cell, kind="stable")
        self.order_n = members[sort]
        start = np.searchsorted(cell[sort], np.arange(np.prod(grid) + 1)).astype(np.int64)
        sorted_3n = np.zeros((3, n + LANES), np.int32)
        sorted_3n[:, :n] = (fixed[sort] >> 32).T
        steps = np.ceil(reach / height_3 * grid).astype(np.int64)
        steps = np.where(2 * steps + 1 > grid, -1, steps)  # -1: the stencil would meet itself; scan every cell once
        rows = len(state.position_n3) if self.ghosts else state.owned
        scale, limit = self.scale().astype(np.float32), np.float32(reach * reach * (1 + 1e-5))
        while True:
            if len(self.list_nw) != n:
                self.list_nw = np.empty((n, self.list_nw.shape[1]), np.int32)
            self.count_n = np.zeros(n, np.int32)
            touching = np.zeros(n, np.int32)
            _fill(sorted_3n, self.order_n, start, grid, steps, scale, limit, rows, self.list_nw, self.count_n, touching)
            need = int(self.count_n.max(initial=0)) + LANES
            if need < self.list_nw.shape[1]:  # `append` needs room; a count at this edge may have run over
                break
            self.list_nw = np.empty((n, LANES * (2 + need // LANES) if need > LANES else 2 * LANES), np.int32)
        if touching.any():
            self._refuse_overlap(state, int(np.argmax(touching)))

    def _refuse_overlap(self, state: State, k: int) -> None:
        fixed = np.empty((len(self.order_n), 3), np.int64)
        self.fixed(state, fixed)
        apart = np.linalg.norm((fixed - fixed[k]).astype(np.float64) @ self.scale(64), axis=1)
        apart[k] = np.inf
        other = int(np.argmin(apart))
        first, second = sorted(int(state.tag_n[self.order_n[q]]) + 1 for q in (k, other))
        message = f"atoms {first} and {second} lie on top of each other, closer than {_CLOSEST_NM} nm"
        _refuse(state, message, "distance in nm", round(float(apart[other]), 6))

    def fixed(self, state: State, out: Any) -> None:
        """Write the sorted positions as fractions into the first three columns of an int32 or int64 array, 2^bits to the box."""
        _fractions(state.position_n3, self.order_n, self._origin_3, np.linalg.inv(self.span(state)), out)

    def span(self, state: State) -> Array:
        """Return the vectors that the fractions refer to now: the box, which may have changed since `rebuild`."""
        self._span_33 = state.box_33 if state.periodic else self._span_33
        return self._span_33

    def scale(self, bits: int = 32) -> Array:
        """Return the matrix that turns differences of `bits`-bit fractions into nm (row vectors times matrix)."""
        return self._span_33 * 2.0**-bits


@njit(parallel=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _fractions(position_n3: Any, order_n: Any, origin_3: Any, inverse_33: Any, out: Any) -> None:
    shift = 64 - 8 * out.itemsize
    for k in prange(len(order_n)):
        row = order_n[k]
        dx, dy, dz = position_n3[row, 0] - origin_3[0], position_n3[row, 1] - origin_3[1], position_n3[row, 2] - origin_3[2]
        for a in range(3):
            s = dx * inverse_33[0, a] + dy * inverse_33[1, a] + dz * inverse_33[2, a]
            s -= math.floor(s)
            s = 0.0 if s >= 1.0 else s
            out[k, a] = np.int64((s - 0.5) * 18446744073709551616.0) >> shift


@njit(cache=True)  # type: ignore[untyped-decorator]
def _slab(x: Any, slabs: int) -> int:
    """Return which of the equal slabs of the box the 32-bit fraction `x` lies in."""
    return int(((np.int64(x) + 2147483648) * slabs) >> 32)


@njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def _cells(fixed_n3: Any, grid_3: Any) -> Any:
    cell = np.empty(len(fixed_n3), np.int64)
    for k in prange(len(cell)):
        cell[k] = 0
        for a in range(3):
            cell[k] = cell[k] * grid_3[a] + _slab(fixed_n3[k, a] >> 32, grid_3[a])
    return cell


@njit(cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
@stamped
def _scan(i: int, low: int, high: int, x: Any, y: Any, z: Any, scale: Any, limit: Any, row: Any, n: int, near: int) -> Any:
    """Append to `row` the atoms low..high-1 within reach of i, but for i, and note those that touch it; sixteen at a time."""
    xi, yi, zi, closest = spread(x[i]), spread(y[i]), spread(z[i]), spread(_TOUCHING)
    while low < high:
        a, b, c = real(consecutive(x, low) - xi), real(consecutive(y, low) - yi), real(consecutive(z, low) - zi)
        dx, dy, dz = a * scale[0] + b * scale[1] + c * scale[3], b * scale[2] + c * scale[4], c * scale[5]
        square = dx * dx + dy * dy + dz * dz
        valid = (1 << min(LANES, high - low)) - 1
        if low <= i < low + LANES:
            valid &= ~(1 << (i - low))
        near |= below(square, closest) & valid
        n = append(row, min(n, row.shape[0] - LANES), low, below(square, limit) & valid)
        low += LANES
    return n, near


@njit(parallel=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
@stamped
def _fill(x_3n, order_n, start, grid, steps, box, reach2, rows, out, count_n, touching_n):  # type: ignore[no-untyped-def]
    ga, gb, gc = grid[0], grid[1], grid[2]
    x, y, z = x_3n[0], x_3n[1], x_3n[2]
    for i in prange(len(order_n)):
        if order_n[i] >= rows:
            continue
        row, m, near, limit = out[i], 0, 0, spread(reach2)
        scale = (spread(box[0, 0]), spread(box[1, 0]), spread(box[1, 1]), spread(box[2, 0]), spread(box[2, 1]), spread(box[2, 2]))
        ca, cb, cc = _slab(x[i], ga), _slab(y[i], gb), _slab(z[i], gc)
        for da in range(-steps[0], steps[0] + 1) if steps[0] >= 0 else range(ga):
            for db in range(-steps[1], steps[1] + 1) if steps[1] >= 0 else range(gb):
                column = (((ca + da + ga) % ga) * gb + (cb + db + gb) % gb) * gc
                low, high = (cc - steps[2], cc + steps[2] + 1) if steps[2] >= 0 else (0, gc)
                first, end = start[column + max(low, 0)], start[column + min(high, gc)]
                m, near = _scan(i, first, end, x, y, z, scale, limit, row, m, near)
                if low < 0:
                    m, near = _scan(i, start[column + low + gc], start[column + gc], x, y, z, scale, limit, row, m, near)
                if high > gc:
                    m, near = _scan(i, start[column], start[column + high - gc], x, y, z, scale, limit, row, m, near)
        touching_n[i] = near != 0
        count_n[i] = m
        for q in range(m, row.shape[0]):
            row[q] = i
