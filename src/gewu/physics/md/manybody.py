"""Three-body potentials, a sum of energies of centres i: Tersoff and Stillinger-Weber.

    Tersoff             E_i = 1/2 sum_j fC(r_ij) [A exp(-lambda1 r_ij) - b_ij B exp(-lambda2 r_ij)],
                        b_ij = (1 + (beta zeta_ij)^n)^(-1/2n),
                        zeta_ij = sum_k fC(r_ik) g(theta_ijk) exp[lambda3^m (r_ij - r_ik)^m],
                        g = gamma [1 + c^2/d^2 - c^2/(d^2 + (cos theta - cos theta0)^2)]
    Stillinger-Weber    E_i = 1/2 sum_j A eps [B (s/r)^p - (s/r)^q] exp[s/(r - a s)]
                        + sum_j<k lambda eps (cos theta - cos theta0)^2 exp[gamma s/(r_ij - a s)] exp[gamma s/(r_ik - a s)]

A first kernel takes each centre: its energy and the forces on its neighbours, kept beside the neighbour list.  A second takes
each atom and adds what its neighbours, as centres, wrote for it: no two items write one number.  All arithmetic is float64.
Ghosts are centres too, so they must reach twice as far as the forces of owned atoms: `reach_nm`.

References: Tersoff, Phys. Rev. B 37, 6991 (1988) and 39, 5566 (1989); Stillinger & Weber, Phys. Rev. B 31, 5262 (1985).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gewu.core.device import device
from gewu.core.errors import InputError
from gewu.core.kernel import Kernel, kernel
from gewu.formats.potentials import STILLINGER_WEBER, TERSOFF, Triplets
from gewu.physics.md.eam import apart
from gewu.physics.md.state import Array, Evaluation, State, symmetric
from gewu.physics.md.units import ANGSTROM, EV
from gewu.physics.md.verlet import Verlet

# exponents of angstrom and of eV in the columns of the tables
_TERSOFF_UNITS = {"lambda3": (-1, 0), "lambda2": (-1, 0), "B": (0, 1), "R": (1, 0), "D": (1, 0), "lambda1": (-1, 0), "A": (0, 1)}
_STILLINGER_UNITS = {"epsilon": (0, 1), "sigma": (1, 0)}


@device
def pull(force: Any, i: int, k: int, x: float, y: float, z: float) -> None:
    """Add (x, y, z) to the force on the k-th neighbour of centre i."""
    force[i, k, 0] += x
    force[i, k, 1] += y
    force[i, k, 2] += z


@device
def bend(
    c: float, du_dc: float, ux: float, uy: float, uz: float, vx: float, vy: float, vz: float, r: float
) -> tuple[float, float, float]:
    """Return the force on the end of a vector r u whose angle of cosine c with the unit vector v has the energy slope du_dc."""
    s = -du_dc / r
    return s * (vx - c * ux), s * (vy - c * uy), s * (vz - c * uz)


@device
def sw_tail(r: float, sigma: float, a: float, strength: float) -> tuple[float, float]:
    """Return exp(strength sigma / (r - a sigma)) and its derivative; r is below a sigma."""
    gap = r - a * sigma
    value = math.exp(strength * sigma / gap)
    return value, -value * strength * sigma / (gap * gap)


@kernel
def stillinger_weber_centre(
    i: int, x: Any, element: Any, count: Any, items: Any, scale: Any, table: Any, energy: Any, force: Any
) -> None:
    """Energy of centre i and forces on its neighbours."""
    e, total = element[i], 0.0
    for q in range(count[i]):
        force[i, q, 0], force[i, q, 1], force[i, q, 2] = 0.0, 0.0, 0.0
    for q in range(count[i]):
        j = items[i, q]
        t = element[j]
        eps, sigma, a = table[e, t, t, 0], table[e, t, t, 1], table[e, t, t, 2]
        dx, dy, dz = apart(x, i, j, scale)
        r = math.sqrt(dx * dx + dy * dy + dz * dz)
        if r < a * sigma:
            ux, uy, uz = dx / r, dy / r, dz / r
            tail, d_tail = sw_tail(r, sigma, a, 1.0)
            high, low = table[e, t, t, 7] * (sigma / r) ** table[e, t, t, 8], (sigma / r) ** table[e, t, t, 9]
            half = 0.5 * table[e, t, t, 6] * eps
            total += half * (high - low) * tail
            s = -half * ((high - low) * d_tail - (table[e, t, t, 8] * high - table[e, t, t, 9] * low) / r * tail)
            pull(force, i, q, s * ux, s * uy, s * uz)
            near, d_near = sw_tail(r, sigma, a, table[e, t, t, 4])
            for w in range(q + 1, count[i]):
                k = items[i, w]
                u = element[k]
                gx, gy, gz = apart(x, i, k, scale)
                h = math.sqrt(gx * gx + gy * gy + gz * gz)
                if h < table[e, u, u, 2] * table[e, u, u, 1]:
                    vx, vy, vz = gx / h, gy / h, gz / h
                    far, d_far = sw_tail(h, table[e, u, u, 1], table[e, u, u, 2], table[e, u, u, 4])
                    c = ux * vx + uy * vy + uz * vz
                    off, strength = c - table[e, t, u, 5], table[e, t, u, 3] * table[e, t, u, 0]
                    total += strength * off * off * near * far
                    slope, along, across = (
                        2.0 * strength * off * near * far,
                        strength * off * off * d_near * far,
                        strength * off * off * near * d_far,
                    )
                    bx, by, bz = bend(c, slope, ux, uy, uz, vx, vy, vz, r)
                    pull(force, i, q, bx - along * ux, by - along * uy, bz - along * uz)
                    bx, by, bz = bend(c, slope, vx, vy, vz, ux, uy, uz, h)
                    pull(force, i, w, bx - across * vx, by - across * vy, bz - across * vz)
    energy[i] = total


@device
def tersoff_cut(r: float, middle: float, half_width: float) -> tuple[float, float]:
    """Return the cutoff function and its derivative."""
    if r < middle - half_width:
        return 1.0, 0.0
    if r >= middle + half_width:
        return 0.0, 0.0
    angle = 0.5 * math.pi * (r - middle) / half_width
    return 0.5 - 0.5 * math.sin(angle), -0.25 * math.pi / half_width * math.cos(angle)


@device
def tersoff_term(r: float, h: float, c: float, e: int, t: int, u: int, table: Any) -> tuple[float, float, float, float]:
    """Return what the third atom adds to zeta and its derivatives by r_ij, r_ik and the cosine."""
    cut, d_cut = tersoff_cut(h, table[e, t, u, 10], table[e, t, u, 11])
    c2, d2, off = table[e, t, u, 3] ** 2, table[e, t, u, 4] ** 2, c - table[e, t, u, 5]
    g = table[e, t, u, 1] * (1.0 + c2 / d2 - c2 / (d2 + off * off))
    dg = table[e, t, u, 1] * 2.0 * c2 * off / ((d2 + off * off) * (d2 + off * off))
    m, slope = table[e, t, u, 0], table[e, t, u, 2]
    lag = slope * (r - h)
    stretch = math.exp(min(lag if m < 2.0 else lag * lag * lag, 69.0))
    d_stretch = stretch * (slope if m < 2.0 else 3.0 * slope * lag * lag)
    return cut * g * stretch, cut * g * d_stretch, d_cut * g * stretch - cut * g * d_stretch, cut * dg * stretch


@kernel
def tersoff_centre(i: int, x: Any, element: Any, count: Any, items: Any, scale: Any, table: Any, energy: Any, force: Any) -> None:
    """Energy of centre i and forces on its neighbours."""
    e, total = element[i], 0.0
    for q in range(count[i]):
        force[i, q, 0], force[i, q, 1], force[i, q, 2] = 0.0, 0.0, 0.0
    for q in range(count[i]):
        j = items[i, q]
        t = element[j]
        dx, dy, dz = apart(x, i, j, scale)
        r = math.sqrt(dx * dx + dy * dy + dz * dz)
        cut, d_cut = tersoff_cut(r, table[e, t, t, 10], table[e, t, t, 11])
        if cut > 0.0:
            ux, uy, uz = dx / r, dy / r, dz / r
            zeta = 0.0
            for w in range(count[i]):
                k = items[i, w]
                gx, gy, gz = apart(x, i, k, scale)
                h = math.sqrt(gx * gx + gy * gy + gz * gz)
                if w != q and h < table[e, t, element[k], 10] + table[e, t, element[k], 11]:
                    zeta += tersoff_term(r, h, (ux * gx + uy * gy + uz * gz) / h, e, t, element[k], table)[0]
            n = table[e, t, t, 6]
            power = (table[e, t, t, 7] * zeta) ** n
            order = (1.0 + power) ** (-0.5 / n)
            repulsive = table[e, t, t, 13] * math.exp(-table[e, t, t, 12] * r)
            attractive = -table[e, t, t, 9] * math.exp(-table[e, t, t, 8] * r)
            total += 0.5 * cut * (repulsive + order * attractive)
            s = 0.5 * cut * (table[e, t, t, 12] * repulsive + table[e, t, t, 8] * order * attractive)
            s -= 0.5 * d_cut * (repulsive + order * attractive)
            if zeta > 0.0:
                slope = -0.25 * cut * attractive * order / (1.0 + power) * power / zeta
                for w in range(count[i]):
                    k = items[i, w]
                    gx, gy, gz = apart(x, i, k, scale)
                    h = math.sqrt(gx * gx + gy * gy + gz * gz)
                    if w != q and h < table[e, t, element[k], 10] + table[e, t, element[k], 11]:
                        vx, vy, vz = gx / h, gy / h, gz / h
                        c = ux * vx + uy * vy + uz * vz
                        _, by_r, by_h, by_c = tersoff_term(r, h, c, e, t, element[k], table)
                        s -= slope * by_r
                        bx, by, bz = bend(c, slope * by_c, ux, uy, uz, vx, vy, vz, r)
                        pull(force, i, q, bx, by, bz)
                        bx, by, bz = bend(c, slope * by_c, vx, vy, vz, ux, uy, uz, h)
                        pull(force, i, w, bx - slope * by_h * vx, by - slope * by_h * vy, bz - slope * by_h * vz)
            pull(force, i, q, s * ux, s * uy, s * uz)
    energy[i] = total


@kernel
def find_reverse(i: int, count: Any, items: Any, reverse: Any) -> None:
    """Write at which place of each neighbour's row atom i stands, or -1."""
    for q in range(count[i]):
        j = items[i, q]
        reverse[i, q] = -1
        for w in range(count[j]):
            if items[j, w] == i:
                reverse[i, q] = w


@kernel
def gather_forces(
    i: int, x: Any, count: Any, items: Any, reverse: Any, scale: Any, order: Any, part: Any, force: Any, virial: Any
) -> None:
    """Add all forces on atom i to its row of the state, and write the virial of centre i: xx, xy, xz, yy, yz, zz."""
    fx, fy, fz, xx, yy, zz, yz, xz, xy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for q in range(count[i]):
        j = items[i, q]
        gx, gy, gz = part[i, q, 0], part[i, q, 1], part[i, q, 2]
        dx, dy, dz = apart(x, i, j, scale)
        xx, yy, zz = xx + dx * gx, yy + dy * gy, zz + dz * gz
        yz, xz, xy = yz + dy * gz, xz + dx * gz, xy + dx * gy
        fx, fy, fz = fx - gx, fy - gy, fz - gz
        w = reverse[i, q]
        if w >= 0:
            fx, fy, fz = fx + part[j, w, 0], fy + part[j, w, 1], fz + part[j, w, 2]
    row = order[i]
    force[row, 0] += fx
    force[row, 1] += fy
    force[row, 2] += fz
    virial[i, 0], virial[i, 1], virial[i, 2], virial[i, 3], virial[i, 4], virial[i, 5] = xx, xy, xz, yy, yz, zz


class ThreeBody:
    """A three-body term; made by `tersoff` and `stillinger_weber`.

    Args:
        name: name of its energy.
        centre: the kernel of a centre.
        table_eeep: parameters in room units.
        element_t: row of the table for each atom type.
        cutoff_nm: largest distance of a bond.
        skin_nm: how far the neighbour list reaches beyond; atoms may move by half of it between calls of `rebuild`.
        device: "cpu", "cuda" or "reference".
    """

    def __init__(
        self, name: str, centre: Kernel, table_eeep: Array, element_t: Any, cutoff_nm: float, skin_nm: float, device: str
    ) -> None:
        self.name, self.centre, self.table, self.device = name, centre, table_eeep, device
        self.element_t, self.cutoff_nm, self.reach_nm = element_t, cutoff_nm, 2.0 * cutoff_nm
        self.verlet = Verlet(cutoff_nm, skin_nm, ghosts=True)

    def rebuild(self, state: State) -> None:
        """Make the neighbour list anew.

        Raises:
            InputError: as `Verlet.rebuild`.
        """
        v = self.verlet
        v.rebuild(state)
        n, width = v.list_nw.shape
        self._x = np.zeros((n, 3), np.int64)
        self._element = self.element_t[state.type_n[v.order_n]]
        self._energy, self._force, self._virial = np.zeros(n), np.zeros((n, width, 3)), np.zeros((n, 6))
        self._reverse, self._owned = np.zeros((n, width), np.int32), v.order_n < state.owned
        find_reverse.launch(self.device, n, v.count_n, v.list_nw, self._reverse)

    def compute(self, state: State, want: bool) -> Evaluation | None:
        """Add the forces; with `want` return this rank's share of energy and virial."""
        v = self.verlet
        n, x = len(v.order_n), self._x
        v.fixed(state, x)
        scale = v.scale(64)
        arrays = (self._element, v.count_n, v.list_nw, scale, self.table, self._energy, self._force)
        self.centre.launch(self.device, n, x, *arrays)
        gather = (v.count_n, v.list_nw, self._reverse, scale, v.order_n, self._force, state.force_n3, self._virial)
        gather_forces.launch(self.device, n, x, *gather)
        if not want:
            return None
        virial = symmetric(self._virial[self._owned].sum(axis=0))
        return Evaluation({self.name: float(self._energy[self._owned].sum())}, virial)


def _table(
    triplets: Triplets, columns: tuple[str, ...], units: dict[str, tuple[int, int]], elements: Sequence[str]
) -> tuple[Array, Any]:
    """Return the parameters of the elements in use, in room units, and the row of each type."""
    if triplets.columns != columns:
        raise InputError("these are parameters of another potential", file=triplets.source or None, allowed=" ".join(columns))
    used = sorted(set(elements))
    table = triplets.table(used)
    for name, (lengths, energies) in units.items():
        table[..., columns.index(name)] *= ANGSTROM**lengths * EV**energies
    return table, np.array([used.index(name) for name in elements], np.int32)


def tersoff(triplets: Triplets, elements: Sequence[str], *, skin_nm: float = 0.1, device: str = "cpu") -> ThreeBody:
    """Return the Tersoff term.

    Args:
        triplets: parameters, from `read_tersoff`.
        elements: element of each atom type.
        skin_nm: how far the neighbour list reaches beyond the cutoff.
        device: "cpu", "cuda" or "reference".
    Raises:
        InputError: a triplet is missing, or the parameters are of another potential.
    """
    table, element_t = _table(triplets, TERSOFF, _TERSOFF_UNITS, elements)
    return ThreeBody("tersoff", tersoff_centre, table, element_t, float((table[..., 10] + table[..., 11]).max()), skin_nm, device)


def stillinger_weber(triplets: Triplets, elements: Sequence[str], *, skin_nm: float = 0.1, device: str = "cpu") -> ThreeBody:
    """Return the Stillinger-Weber term (arguments and refusals as for `tersoff`; parameters from `read_stillinger_weber`).

    Raises:
        InputError: also when a bond has other parameters seen from its other end, or an angle with its ends exchanged.
    """
    table, element_t = _table(triplets, STILLINGER_WEBER, _STILLINGER_UNITS, elements)
    bond = np.einsum("abbp->abp", table)[..., [0, 1, 2, 6, 7, 8, 9]]
    angle = np.stack((table[..., 0] * table[..., 3], table[..., 5]))
    if not np.array_equal(bond, bond.swapaxes(0, 1)):
        raise InputError(
            "entries a b b and b a a must give one bond: their two-body numbers differ", file=triplets.source or None
        )
    if not np.allclose(angle, angle.swapaxes(2, 3), rtol=1e-12, atol=0):
        message = "entries a b c and a c b must give one angle: exchanging the second and third atom changes it"
        raise InputError(message, file=triplets.source or None)
    cutoff = float((table[..., 1] * table[..., 2]).max())
    return ThreeBody("stillinger_weber", stillinger_weber_centre, table, element_t, cutoff, skin_nm, device)
