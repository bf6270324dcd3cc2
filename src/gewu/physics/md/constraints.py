"""Rigid bonds and rigid water: SETTLE, SHAKE and RATTLE.

`positions` moves atoms along the constraint gradients at `before`, r_i <- r_i + g (r_i - r_j)_before / m_i, until
|r_i - r_j| = d, and adds displacement / dt to the velocities.  `velocities` removes from v what changes a distance:
(r_i - r_j).(v_i - v_j) = 0.
Rigid three-site water is solved in closed form (positions: SETTLE; velocities: a linear system of three equations).  Other
constraints fall into connected clusters (XH, XH2, XH3, or a whole chain when all bonds are rigid); each is one work item and is
iterated, one constraint after the other, until every distance is right to `tolerance` (relative) and every relative rate of a
distance is below `tolerance` per ps.

Virial.  In velocity Verlet the constraint force G(t) kicks the velocities through dt/2 before the drift, so it displaces an atom
by dr = G dt^2/2m: the virial of the step is the sum of r_before (x) 2 m dr/dt^2.  It takes G from the chord of the arc from t to
t + dt, so a single value is wrong by O(dt); the error is odd in the velocities: it cancels in averages over time, and in the
mean of the values for v and -v.

Molecules must be whole: positions are continuous, so no images are taken; a group that is torn is refused.

References: Ryckaert, Ciccotti, Berendsen, J. Comput. Phys. 23, 327 (1977); Andersen, J. Comput. Phys. 52, 24 (1983); Miyamoto,
Kollman, J. Comput. Chem. 13, 952 (1992).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from gewu.core.errors import ConvergenceError, InputError
from gewu.core.kernel import device, kernel
from gewu.formats.forcefield.graph import molecules
from gewu.physics.md.state import Array, Index, State, Topology, symmetric

ITERATIONS: Final = 2000
TORN: Final = 4.0
"""Square of how many times its length a constraint may be long before the step."""
FAR: Final = 0.25 / TORN
"""Square of half a bond, how far a hydrogen of a rigid water may be from its place, over the square of two bonds."""


@device
def _between(array_n3: Array, i: int, j: int) -> tuple[float, float, float]:
    """Return x_i - x_j."""
    return array_n3[i, 0] - array_n3[j, 0], array_n3[i, 1] - array_n3[j, 1], array_n3[i, 2] - array_n3[j, 2]


@device
def _push(array_n3: Array, i: int, scale: float, x: float, y: float, z: float) -> None:
    array_n3[i, 0] += scale * x
    array_n3[i, 1] += scale * y
    array_n3[i, 2] += scale * z


@device
def _dyad(virial: Array, item: int, scale: float, bx: float, by: float, bz: float, x: float, y: float, z: float) -> None:
    """Add the symmetric part of scale b (x) r: xx, xy, xz, yy, yz, zz (central forces: a group's sum is symmetric)."""
    virial[item, 0] += scale * bx * x
    virial[item, 1] += 0.5 * scale * (bx * y + by * x)
    virial[item, 2] += 0.5 * scale * (bx * z + bz * x)
    virial[item, 3] += scale * by * y
    virial[item, 4] += 0.5 * scale * (by * z + bz * y)
    virial[item, 5] += scale * bz * z


@device
def _settle(ox: float, oy: float, oz: float, px: float, py: float, pz: float, qx: float, qy: float, qz: float, bx: float,
            by: float, bz: float, cx: float, cy: float, cz: float, height: float, rc: float, heavy: float,
            ) -> tuple[float, ...]:  # fmt: skip
    """Return the nine coordinates, from the centre of mass, of the rigid water nearest in SETTLE's sense.

    o, p, q: unconstrained O, H, H from their centre of mass; b, c: H and H from O before the step; height of O above the line of
    the hydrogens, half of their distance, and m_O/M.  The names of the angles and of alpha, beta, gamma are the paper's.
    """
    zx, zy, zz = by * cz - bz * cy, bz * cx - bx * cz, bx * cy - by * cx
    xx, xy, xz = oy * zz - oz * zy, oz * zx - ox * zz, ox * zy - oy * zx
    yx, yy, yz = zy * xz - zz * xy, zz * xx - zx * xz, zx * xy - zy * xx
    s = 1.0 / math.sqrt(xx * xx + xy * xy + xz * xz)
    xx, xy, xz = xx * s, xy * s, xz * s
    s = 1.0 / math.sqrt(yx * yx + yy * yy + yz * yz)
    yx, yy, yz = yx * s, yy * s, yz * s
    s = 1.0 / math.sqrt(zx * zx + zy * zy + zz * zz)
    zx, zy, zz = zx * s, zy * s, zz * s
    xb0, yb0 = xx * bx + xy * by + xz * bz, yx * bx + yy * by + yz * bz
    xc0, yc0 = xx * cx + xy * cy + xz * cz, yx * cx + yy * cy + yz * cz
    xb1, yb1, zb1 = xx * px + xy * py + xz * pz, yx * px + yy * py + yz * pz, zx * px + zy * py + zz * pz
    xc1, yc1, zc1 = xx * qx + xy * qy + xz * qz, yx * qx + yy * qy + yz * qz, zx * qx + zy * qy + zz * qz
    za1 = zx * ox + zy * oy + zz * oz
    ra, rb = height * (1.0 - heavy), height * heavy
    sin_phi = za1 / ra
    cos2_phi = 1.0 - sin_phi * sin_phi
    cos_phi = math.sqrt(max(cos2_phi, 0.0))
    sin_psi = (zb1 - zc1) / (2.0 * rc * cos_phi)
    cos2_psi = 1.0 - sin_psi * sin_psi
    ya2, xb2 = ra * cos_phi, -rc * math.sqrt(max(cos2_psi, 0.0))
    yb2, yc2 = -rb * cos_phi - rc * sin_psi * sin_phi, -rb * cos_phi + rc * sin_psi * sin_phi
    alpha = xb2 * (xb0 - xc0) + yb0 * yb2 + yc0 * yc2
    beta = xb2 * (yc0 - yb0) + xb0 * yb2 + xc0 * yc2
    gamma = xb0 * yb1 - xb1 * yb0 + xc0 * yc1 - xc1 * yc0
    norm2 = alpha * alpha + beta * beta
    rest = norm2 - gamma * gamma
    ok = cos2_phi > 0.0 and cos2_psi > 0.0 and rest >= 0.0  # False for NaN too
    sin_t = (alpha * gamma - beta * math.sqrt(max(rest, 0.0))) / norm2
    cos_t = math.sqrt(max(1.0 - sin_t * sin_t, 0.0))
    xa, ya = -ya2 * sin_t, ya2 * cos_t
    xb, yb = xb2 * cos_t - yb2 * sin_t, xb2 * sin_t + yb2 * cos_t
    xc, yc = -xb2 * cos_t - yc2 * sin_t, -xb2 * sin_t + yc2 * cos_t
    return (
        xx * xa + yx * ya + zx * za1, xy * xa + yy * ya + zy * za1, xz * xa + yz * ya + zz * za1,
        xx * xb + yx * yb + zx * zb1, xy * xb + yy * yb + zy * zb1, xz * xb + yz * yb + zz * zb1,
        xx * xc + yx * yc + zx * zc1, xy * xc + yy * yc + zy * zc1, xz * xc + yz * yc + zz * zc1,
        0.0 if ok else 1.0,
    )  # fmt: skip


@kernel
def _move(item: int, waters: int, settles: Index, shape: Array, start: Index, pair: Index, length2: Array, tolerance: float,
          per_dt: float, before_n3: Array, mass_n: Array, position_n3: Array, velocity_n3: Array, virial: Array,
          flag: Index) -> None:  # fmt: skip
    """Solve group `item` for positions; virial: r_before (x) m dr/dt; flag: 0 solved, 1 not solved, 2 torn before the step."""
    bad = 0
    for c in range(6):
        virial[item, c] = 0.0
    if item < waters:
        a, b, c = settles[item, 0], settles[item, 1], settles[item, 2]
        bx, by, bz = _between(before_n3, b, a)
        cx, cy, cz = _between(before_n3, c, a)
        px, py, pz = _between(position_n3, b, a)
        qx, qy, qz = _between(position_n3, c, a)
        height, rc, oxygen, hydrogen = shape[item, 0], shape[item, 1], mass_n[a], mass_n[b]
        limit = TORN * (height * height + rc * rc)
        if not (bx * bx + by * by + bz * bz < limit and cx * cx + cy * cy + cz * cz < limit):
            bad = 2
        heavy = oxygen / (oxygen + 2.0 * hydrogen)
        light = 0.5 * (1.0 - heavy)
        mx, my, mz = light * (px + qx), light * (py + qy), light * (pz + qz)
        px, py, pz, qx, qy, qz = px - mx, py - my, pz - mz, qx - mx, qy - my, qz - mz
        new = _settle(-mx, -my, -mz, px, py, pz, qx, qy, qz, bx, by, bz, cx, cy, cz, height, rc, heavy)
        ax, ay, az = new[0] + mx, new[1] + my, new[2] + mz
        px, py, pz, qx, qy, qz = new[3] - px, new[4] - py, new[5] - pz, new[6] - qx, new[7] - qy, new[8] - qz
        far = max(px * px + py * py + pz * pz, qx * qx + qy * qy + qz * qz)
        if not (new[9] == 0.0 and far < FAR * limit):  # beyond that the solution is another one, far from the atoms
            bad = max(bad, 1)
        _push(position_n3, a, 1.0, ax, ay, az)
        _push(position_n3, b, 1.0, px, py, pz)
        _push(position_n3, c, 1.0, qx, qy, qz)
        if per_dt != 0.0:
            _push(velocity_n3, a, per_dt, ax, ay, az)
            _push(velocity_n3, b, per_dt, px, py, pz)
            _push(velocity_n3, c, per_dt, qx, qy, qz)
            _dyad(virial, item, hydrogen * per_dt, bx, by, bz, px, py, pz)
            _dyad(virial, item, hydrogen * per_dt, cx, cy, cz, qx, qy, qz)
    else:
        first, last = start[item - waters], start[item - waters + 1]
        rounds, moved = 0, 1
        while moved != 0 and rounds < ITERATIONS and bad == 0:
            moved, rounds = 0, rounds + 1
            for k in range(first, last):
                i, j = pair[k, 0], pair[k, 1]
                bx, by, bz = _between(before_n3, i, j)
                x, y, z = _between(position_n3, i, j)
                if not bx * bx + by * by + bz * bz < TORN * length2[k]:
                    bad = 2
                off = length2[k] - (x * x + y * y + z * z)
                if not abs(off) <= 2.0 * tolerance * length2[k]:
                    moved = 1
                    along = bx * x + by * y + bz * z
                    if not along > 1e-3 * length2[k]:  # turned by nearly a right angle: no solution along `before`
                        bad = max(bad, 1)
                    else:
                        w_i, w_j = 1.0 / mass_n[i], 1.0 / mass_n[j]
                        g = 0.5 * off / ((w_i + w_j) * along)
                        _push(position_n3, i, g * w_i, bx, by, bz)
                        _push(position_n3, j, -g * w_j, bx, by, bz)
                        if per_dt != 0.0:
                            g *= per_dt
                            _push(velocity_n3, i, g * w_i, bx, by, bz)
                            _push(velocity_n3, j, -g * w_j, bx, by, bz)
                            _dyad(virial, item, g, bx, by, bz, bx, by, bz)
        bad = max(bad, moved)
    flag[item] = bad


@device
def _settle_velocities(a: int, b: int, c: int, position_n3: Array, mass_n: Array, velocity_n3: Array) -> float:
    """Remove relative velocities along the sides of a triangle: solve for three impulses along them; return
    their sum, which is not finite when there is no solution."""
    px, py, pz = _between(position_n3, b, a)
    qx, qy, qz = _between(position_n3, c, a)
    rx, ry, rz = qx - px, qy - py, qz - pz
    ux, uy, uz = _between(velocity_n3, b, a)
    vx, vy, vz = _between(velocity_n3, c, a)
    e1, e2 = px * ux + py * uy + pz * uz, qx * vx + qy * vy + qz * vz
    e3 = rx * (vx - ux) + ry * (vy - uy) + rz * (vz - uz)
    w_a, w_b, w_c = 1.0 / mass_n[a], 1.0 / mass_n[b], 1.0 / mass_n[c]
    m11, m22 = (px * px + py * py + pz * pz) * (w_a + w_b), (qx * qx + qy * qy + qz * qz) * (w_a + w_c)
    m33, m12 = (rx * rx + ry * ry + rz * rz) * (w_b + w_c), (px * qx + py * qy + pz * qz) * w_a
    m13, m23 = -(px * rx + py * ry + pz * rz) * w_b, (qx * rx + qy * ry + qz * rz) * w_c
    c11, c12, c13 = m22 * m33 - m23 * m23, m13 * m23 - m12 * m33, m12 * m23 - m13 * m22
    c22, c23, c33 = m11 * m33 - m13 * m13, m12 * m13 - m11 * m23, m11 * m22 - m12 * m12
    inverse = 1.0 / (m11 * c11 + m12 * c12 + m13 * c13)
    t1 = (c11 * e1 + c12 * e2 + c13 * e3) * inverse
    t2 = (c12 * e1 + c22 * e2 + c23 * e3) * inverse
    t3 = (c13 * e1 + c23 * e2 + c33 * e3) * inverse
    _push(velocity_n3, a, w_a, t1 * px + t2 * qx, t1 * py + t2 * qy, t1 * pz + t2 * qz)
    _push(velocity_n3, b, w_b, t3 * rx - t1 * px, t3 * ry - t1 * py, t3 * rz - t1 * pz)
    _push(velocity_n3, c, -w_c, t2 * qx + t3 * rx, t2 * qy + t3 * ry, t2 * qz + t3 * rz)
    total: float = t1 + t2 + t3
    return total


@kernel
def _still(item: int, waters: int, settles: Index, start: Index, pair: Index, tolerance: float, position_n3: Array, mass_n: Array,
           velocity_n3: Array, flag: Index) -> None:  # fmt: skip
    """Solve group `item` for velocities."""
    rounds, moved = 0, 1
    if item < waters:
        total = _settle_velocities(settles[item, 0], settles[item, 1], settles[item, 2], position_n3, mass_n, velocity_n3)
        moved = 0 if abs(total) < math.inf else 1
    else:
        first, last = start[item - waters], start[item - waters + 1]
        while moved != 0 and rounds < ITERATIONS:
            moved, rounds = 0, rounds + 1
            for k in range(first, last):
                i, j = pair[k, 0], pair[k, 1]
                x, y, z = _between(position_n3, i, j)
                vx, vy, vz = _between(velocity_n3, i, j)
                r2, along = x * x + y * y + z * z, x * vx + y * vy + z * vz
                if not abs(along) <= tolerance * r2:
                    moved = 1
                    w_i, w_j = 1.0 / mass_n[i], 1.0 / mass_n[j]
                    g = -along / ((w_i + w_j) * r2)
                    _push(velocity_n3, i, g * w_i, x, y, z)
                    _push(velocity_n3, j, -g * w_j, x, y, z)
    flag[item] = moved


class Constraints:
    """The rigid bonds and rigid waters that one rank owns.

    Args:
        topology: `constraints` and `settles` with rows of the state; a group never is on two ranks.
        owned: groups of rows from here on (ghosts) are another rank's; all rows by default.
        tolerance: relative error of a distance; settles are exact.
        device: see `gewu.core.kernel`.
    Attributes:
        count: degrees of freedom that this rank's groups remove: 3 for a water, 1 for any other constraint.
        virial_33: kJ/mol, of the last `positions` call with a dt; this rank's share.
    Raises:
        InputError: massless atoms, unequal hydrogens of a water, lengths that make no triangle.
    """

    def __init__(self, topology: Topology, owned: int | None = None, *, tolerance: float = 1e-10, device: str = "cpu") -> None:
        owned = len(topology) if owned is None else owned
        self.device, self.tolerance = device, tolerance
        mine = topology.settles.index[:, 0] < owned
        self._settles = np.ascontiguousarray(topology.settles.index[mine], np.int32)
        bond, half = topology.settles.parameter[mine, 0], topology.settles.parameter[mine, 1] / 2
        if not (bond > half).all() or not (half > 0).all():
            raise InputError("the sides of a rigid water make no triangle", key="settles", allowed="0 < d_HH < 2 d_OH")
        self._shape = np.stack([np.sqrt(bond**2 - half**2), half], axis=1)
        mine = topology.constraints.index[:, 0] < owned if len(topology.constraints.index) else np.zeros(0, bool)
        index = topology.constraints.index[mine]
        order, self._start = groups(index)
        self._pair = np.ascontiguousarray(index[order], np.int32)
        self._length2 = topology.constraints.parameter[mine, 0][order] ** 2
        mass, (o, h, g) = np.asarray(topology.mass_n), self._settles.T
        if len(mass) and (np.any(mass[self._settles] <= 0) or np.any(mass[self._pair] <= 0)):
            raise InputError("a constraint on an atom without mass", key="constraints")
        if len(o) and np.any(mass[h] != mass[g]):
            raise InputError("a rigid water with two different hydrogens", key="settles", hint="write it as three constraints")
        if not (self._length2 > 0).all():
            raise InputError("a constraint without length", key="constraints", allowed="length > 0")
        self._items = len(self._settles) + len(self._start) - 1
        self.count = 3 * len(self._settles) + len(self._pair)
        self._virial, self._flag = np.zeros((self._items, 6)), np.zeros(self._items, np.int32)
        self.virial_33 = np.zeros((3, 3))

    def positions(self, state: State, before_n3: Array, dt: float | None) -> None:
        """Move `state.position_n3` onto the constraints, and the velocities with it.

        Args:
            state: positions after an unconstrained move.
            before_n3: (n, 3) nm, positions before the move, which obey the constraints; another array than the state's.
            dt: ps, the length of the move; None leaves velocities and virial as they are.
        Raises:
            ConvergenceError: a group could not be solved: the step is too long.
            InputError: a group is torn: its atoms are on different sides of the box.
        """
        if np.may_share_memory(before_n3, state.position_n3):
            before_n3 = before_n3.copy()
        per_dt = 0.0 if dt is None else 1.0 / dt
        _move.launch(
            self.device, self._items, len(self._settles), self._settles, self._shape, self._start, self._pair, self._length2,
            self.tolerance, per_dt, before_n3, state.mass_n, state.position_n3, state.velocity_n3, self._virial, self._flag,
        )  # fmt: skip
        self._check(state)
        if dt is not None:
            self.virial_33 = (2.0 / dt) * symmetric(self._virial.sum(axis=0))

    def velocities(self, state: State) -> None:
        """Remove from `state.velocity_n3` what would change a constrained distance.

        Raises:
            ConvergenceError: a group could not be solved.
        """
        _still.launch(
            self.device, self._items, len(self._settles), self._settles, self._start, self._pair, self.tolerance,
            state.position_n3, state.mass_n, state.velocity_n3, self._flag,
        )  # fmt: skip
        self._check(state)

    def _check(self, state: State) -> None:
        """Raise for the first group that is flagged, naming its atoms."""
        if not self._flag.any():
            return
        item = int(np.flatnonzero(self._flag)[0])
        cluster = item - len(self._settles)
        rows = self._settles[item] if cluster < 0 else np.unique(self._pair[self._start[cluster] : self._start[cluster + 1]])
        atoms = ", ".join(str(tag + 1) for tag in state.tag_n[rows][:8]) + (", ..." if len(rows) > 8 else "")
        if self._flag[item] == 2:
            raise InputError(
                f"a rigid group is torn, atoms {atoms}: distances above twice their constraint before the step",
                key="constraints",
                hint="make molecules whole (no jumps across the box) and check the structure",
            )
        raise ConvergenceError(
            f"constraints could not be satisfied in step {state.step}, atoms {atoms}",
            key="constraints",
            hint="shorten the timestep, or minimise the structure first",
        )


def groups(index: Index) -> tuple[Index, Index]:
    """Sort rows that share atoms, directly or through others, into groups.

    Args:
        index: (m, k) atoms of each row.
    Returns:
        (m,) order of the rows, group by group, and (groups + 1,) where each group begins.
    """
    if not len(index):
        return np.zeros(0, np.int32), np.zeros(1, np.int32)
    hub, other = np.repeat(index[:, 0], index.shape[1] - 1), index[:, 1:].ravel()
    size = int(index.max()) + 1
    group = molecules(np.stack([hub, other], axis=1), size)[index[:, 0]]
    order = np.argsort(group, kind="stable")
    start = np.flatnonzero(np.append(True, np.diff(group[order]) != 0))
    return order.astype(np.int32), np.append(start, len(index)).astype(np.int32)
