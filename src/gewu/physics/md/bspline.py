"""Charges onto a mesh and forces back from it, by cardinal B-splines of order 4 to 6 (smooth particle mesh Ewald).

An atom at the scaled fractional coordinate s = n f of an axis with n points, b = floor(s), u = s - b - 1/2, gives to point b + k,
k = 0 .. p-1, the weight M_p(s - b + p - 1 - k): for each k a polynomial of degree p-1 in u.  The mesh is thus moved by p-1 points
against the paper's, which the modulus of the structure factor does not see.  All weights of one axis fill one vector (4 lanes
for p = 4, 8 for 5 and 6; unused lanes have coefficients 0): Horner's scheme gives them together, and a row of the mesh along z
is updated by one multiply-add.

The mesh is padded by p-1 planes along x and y and a register along z, so that no index wraps; `spread` folds the padding
back and `gather` fills it.  Every thread has a mesh of its own; they are added in the order of the threads.  The kernels
`spread_fixed` and `gather_plain` are the plain twins for any device, with the mesh in fixed point.

Reference: Essmann et al., J. Chem. Phys. 103, 8577 (1995), equations 3.5 and 4.1 to 4.7.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gewu.core.device import atomic_add, device, load_numba
from gewu.core.kernel import kernel

load_numba()

from numba import njit, prange  # noqa: E402

from gewu.core.mesh import add_patch, patch_gradient  # noqa: E402
from gewu.core.vector import stamped  # noqa: E402

Array = NDArray[np.float64]
FIXED_POINT = 2.0**40
"""Units of one charge in the mesh of `spread_fixed`: 1e-12 e steps, sums up to 8 million e."""


def _locate(f: float, n: int) -> tuple[int, float]:
    """Return the mesh point below the fractional coordinate f, and the distance from the middle of the interval.

    A coordinate that is not finite or beyond 2^63 gives point 0 and an absurd distance: the forces show it, memory is safe.
    """
    s = (f - math.floor(f)) * n
    if 0.0 <= s < n:
        b = int(s)
        return b, s - b - 0.5
    return 0, s - n - 0.5


_scaled = njit(inline="always")(_locate)
_axis = device(_locate)


@njit(parallel=True, cache=True, error_model="numpy")
@stamped
def spread(
    position: Any, charge: Any, inverse: Any, out: Any, meshes: Any, place: Any, offset: Any, table: Any, width: Any
) -> None:
    """Spread charges onto the mesh `out` (n1, n2, n3).

    Args:
        position, charge: (n, 3) nm and (n,) e.
        inverse: (3, 3) inverse of the box.
        out: mesh, overwritten.
        meshes: (threads, n1 + p - 1, n2 + p - 1, n3 + lanes) work space of out's type.
        place, offset: (n,) int64 and (n, 3) of out's type: flat index and u of each atom, kept for `gather`.
        table: `b_spline_table` in out's type, flat.
        width: tuple of p numbers; its length tells the order to the compiler.
    """
    threads, m1, m2, m3 = meshes.shape
    n1, n2, n3 = out.shape
    n, pad, size, flat = len(charge), len(width) - 1, m1 * m2 * m3, meshes.reshape(-1)
    real = out.dtype.type
    for index in prange(threads):
        t = np.int64(index)  # the index of prange is unsigned, and unsigned - signed would be a float
        for k in range(t * size, (t + 1) * size):
            flat[k] = 0.0
        for i in range(n * t // threads, n * (t + 1) // threads):
            if charge[i] == 0.0:
                continue
            x, y, z = position[i, 0], position[i, 1], position[i, 2]
            b1, u1 = _scaled(x * inverse[0, 0] + y * inverse[1, 0] + z * inverse[2, 0], n1)
            b2, u2 = _scaled(y * inverse[1, 1] + z * inverse[2, 1], n2)
            b3, u3 = _scaled(z * inverse[2, 2], n3)
            place[i] = (b1 * m2 + b2) * m3 + b3
            offset[i, 0], offset[i, 1], offset[i, 2] = u1, u2, u3
            q, u, v, w = real(charge[i]), real(u1), real(u2), real(u3)
            add_patch(flat, t * size + place[i], m2 * m3, m3, q, u, v, w, table, width)
    for plane in prange(n1):
        i1 = np.int64(plane)
        for y in range(n2):
            for z in range(n3):
                out[i1, y, z] = 0.0
        for part in range(threads):
            for source in range(i1, m1, n1):
                for y in range(m2):
                    row, target = ((part * m1 + source) * m2 + y) * m3, y if y < n2 else y - n2
                    for z in range(n3):
                        out[i1, target, z] += flat[row + z]
                    for z in range(pad):
                        out[i1, target, z] += flat[row + n3 + z]


@njit(parallel=True, cache=True, error_model="numpy")
@stamped
def gather(
    charge: Any, inverse: Any, mesh: Any, padded: Any, place: Any, offset: Any, table: Any, width: Any, force: Any
) -> None:
    """Add to `force` minus the gradient of charge times the potential on `mesh` (arguments as for `spread`)."""
    _, m1, m2, m3 = padded.shape
    n1, n2, n3 = mesh.shape
    pad, flat = len(width) - 1, padded.reshape(-1)
    for index in prange(m1):
        x = np.int64(index)
        source = x if x < n1 else x - n1
        for y in range(m2):
            row, line = (x * m2 + y) * m3, y if y < n2 else y - n2
            for z in range(n3):
                flat[row + z] = mesh[source, line, z]
            for z in range(pad):
                flat[row + n3 + z] = mesh[source, line, z]
            for z in range(n3 + pad, m3):
                flat[row + z] = 0.0
    for i in prange(len(charge)):
        if charge[i] != 0.0:
            g1, g2, g3 = patch_gradient(flat, place[i], m2 * m3, m3, offset[i, 0], offset[i, 1], offset[i, 2], table, width)
            f1, f2, f3 = -charge[i] * n1 * g1, -charge[i] * n2 * g2, -charge[i] * n3 * g3
            force[i, 0] += f1 * inverse[0, 0]
            force[i, 1] += f1 * inverse[1, 0] + f2 * inverse[1, 1]
            force[i, 2] += f1 * inverse[2, 0] + f2 * inverse[2, 1] + f3 * inverse[2, 2]


@device
def _weight(u: float, k: int, first: int, terms: int, table: Any) -> float:
    total = table[first + terms - 1, k]
    for m in range(1, terms):
        total = total * u + table[first + terms - 1 - m, k]
    return total  # type: ignore[no-any-return]


@kernel
def spread_fixed(i: int, position: Any, charge: Any, inverse: Any, table: Any, shape: Any, mesh: Any) -> None:
    """Add charge i to the flat int64 mesh, in units of 1/FIXED_POINT e: the same sum in any order (`table` is float64, 2-D)."""
    x, y, z = position[i, 0], position[i, 1], position[i, 2]
    order = (table.shape[0] + 1) // 2
    b1, u1 = _axis(x * inverse[0, 0] + y * inverse[1, 0] + z * inverse[2, 0], shape[0])
    b2, u2 = _axis(y * inverse[1, 1] + z * inverse[2, 1], shape[1])
    b3, u3 = _axis(z * inverse[2, 2], shape[2])
    for a in range(order):
        for b in range(order):
            row = ((b1 + a) % shape[0] * shape[1] + (b2 + b) % shape[1]) * shape[2]
            q = charge[i] * _weight(u1, a, 0, order, table) * _weight(u2, b, 0, order, table) * FIXED_POINT
            for c in range(order):
                atomic_add(mesh, row + (b3 + c) % shape[2], math.floor(q * _weight(u3, c, 0, order, table) + 0.5))


@kernel
def gather_plain(i: int, position: Any, charge: Any, inverse: Any, table: Any, shape: Any, mesh: Any, force: Any) -> None:
    """Add to force i minus the gradient of charge times the potential on the flat float64 mesh."""
    x, y, z = position[i, 0], position[i, 1], position[i, 2]
    order = (table.shape[0] + 1) // 2
    b1, u1 = _axis(x * inverse[0, 0] + y * inverse[1, 0] + z * inverse[2, 0], shape[0])
    b2, u2 = _axis(y * inverse[1, 1] + z * inverse[2, 1], shape[1])
    b3, u3 = _axis(z * inverse[2, 2], shape[2])
    f1, f2, f3 = 0.0, 0.0, 0.0
    for a in range(order):
        wx, sx = _weight(u1, a, 0, order, table), _weight(u1, a, order, order - 1, table)
        for b in range(order):
            wy, sy = _weight(u2, b, 0, order, table), _weight(u2, b, order, order - 1, table)
            row = ((b1 + a) % shape[0] * shape[1] + (b2 + b) % shape[1]) * shape[2]
            value, tilt = 0.0, 0.0
            for c in range(order):
                phi = mesh[row + (b3 + c) % shape[2]]
                value += phi * _weight(u3, c, 0, order, table)
                tilt += phi * _weight(u3, c, order, order - 1, table)
            f1, f2, f3 = f1 - sx * wy * value, f2 - wx * sy * value, f3 - wx * wy * tilt
    f1, f2, f3 = charge[i] * shape[0] * f1, charge[i] * shape[1] * f2, charge[i] * shape[2] * f3
    force[i, 0] += f1 * inverse[0, 0]
    force[i, 1] += f1 * inverse[1, 0] + f2 * inverse[1, 1]
    force[i, 2] += f1 * inverse[2, 0] + f2 * inverse[2, 1] + f3 * inverse[2, 2]
