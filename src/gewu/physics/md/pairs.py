r"""Lennard-Jones and Coulomb forces between all pairs within the cutoff, 4 x 8 pairs at a time.

    U = 4 eps [(sigma/r)^12 - (sigma/r)^6] + q_i q_j / (4 pi eps0) phi(r)

    lj        "cut"          as it stands for r < rc
              "shift"        U - U(rc): same forces
              "force-shift"  U - U(rc) - (r - rc) U'(rc)
    coulomb   "none", "cut"  nothing, 1/r
              "reaction-field"  1/r + k r^2 - c,  k = (e - 1) / ((2 e + 1) rc^3),  c = 1/rc + k rc^2, e = epsilon_rf (0: infinity)
              "ewald"        erfc(alpha r)/r, the rest is `pme`

Precision "mixed": coordinates relative to blocks, pair arithmetic and the sums over one row of the list in float32, everything
summed further in float64; the list's box is rounded so that all shifts between blocks and images are exact.  "double": all in
float64.
`plain.PlainPairs` is the plain form and the twin for GPUs; the tests hold both against the sum over all pairs.

erfc is not evaluated: 1/r^3 - alpha^3 G(alpha^2 r^2) is the force over r, with the smooth G as a polynomial (`erfc`).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gewu.core.device import load_numba
from gewu.core.erfc import ewald_polynomials
from gewu.core.errors import InputError
from gewu.physics.md.cells import ClusterList
from gewu.physics.md.state import Evaluation, State, Topology, symmetric
from gewu.physics.md.units import COULOMB

numba = load_numba()
from gewu.core.simd import add_columns, bits, both, columns, fill, keep, less, root, rows, subtract_rows, take, total  # noqa: E402
from gewu.core.vector import STAMP  # noqa: E402  # Numba's cache sees this file only

LJ = ("cut", "shift", "force-shift")
COULOMB_KINDS = ("none", "cut", "reaction-field", "ewald")


@dataclass(frozen=True)
class NonBonded:
    """How pairs interact: cutoff in nm, treatment of Lennard-Jones and Coulomb at it (see the module), alpha in 1/nm."""

    cutoff: float
    lj: str = "cut"
    coulomb: str = "none"
    epsilon_rf: float = 0.0
    alpha: float = 0.0


class LennardJones:
    """How the Lennard-Jones parameters of a pair come from its particles: mixing rules that hold exactly save the lookup.

    `c6_tt`, `c12_tt` are 6 C6 and 12 C12, as the force wants them.  `kind` is "none", "one" (one type), "lorentz-berthelot",
    "geometric" or "table"; `first_t`, `second_t` are the numbers per type.  A rule holds if it is within `tolerance`: files of
    AMBER keep eight digits, which is enough for float32.
    """

    def __init__(self, topology: Topology, tolerance: float = 1e-9) -> None:
        sigma, epsilon = np.asarray(topology.sigma_tt), np.asarray(topology.epsilon_tt)
        self.c6_tt, self.c12_tt = 24 * epsilon * sigma**6, 48 * epsilon * sigma**12
        own_s, own_e = np.diag(sigma), np.sqrt(np.maximum(np.diag(epsilon), 0))
        mean, product = (own_s[:, None] + own_s) / 2, np.sqrt(own_s[:, None] * own_s)
        acts = epsilon != 0
        self.first_t, self.second_t = own_s / 2, math.sqrt(24) * own_e
        if not acts.any():
            self.kind = "none"
        elif len(sigma) == 1:
            self.kind = "one"
        elif not np.allclose(epsilon, own_e[:, None] * own_e, rtol=tolerance, atol=0):
            self.kind = "table"
        elif np.allclose(sigma[acts], product[acts], rtol=tolerance, atol=0):  # cheapest; holds for water, where one type acts
            self.kind = "geometric"
            self.first_t, self.second_t = np.sqrt(np.diag(self.c6_tt)), np.sqrt(np.diag(self.c12_tt))
        elif np.allclose(sigma[acts], mean[acts], rtol=tolerance, atol=0):
            self.kind = "lorentz-berthelot"
        else:
            self.kind = "table"


# What `_kernel` puts in place of these in the functions below, for one kind of interaction.
NONE = ONE = LORENTZ = GEOMETRIC = SHIFT = FORCE_SHIFT = CHARGES = FIELD = EWALD = WANT = False
FORCE_TERMS = ENERGY_TERMS = 1


def _parameters(i1, i2, c6, c12, s, q, slots):  # type: ignore[no-untyped-def]
    """6 C6 and 12 C12 of the tile, U = C12/r^12 - C6/r^6."""
    _, first, second, types, table6, table12 = slots
    if ONE:
        return c6, c12
    if LORENTZ:
        sigma = i1 + columns(first, q)
        s2 = sigma * sigma
        c6 = i2 * columns(second, q) * (s2 * s2 * s2)
        return c6, (c6 + c6) * (s2 * s2 * s2)
    if GEOMETRIC:
        return i1 * columns(first, q), i2 * columns(second, q)
    kinds = types.dtype.type(int(math.sqrt(table6.size) + 0.5))
    index = rows(types, s) * fill(kinds) + columns(types, q)
    return take(table6, index), take(table12, index)


def _polynomial(t, coefficients, start, count):  # type: ignore[no-untyped-def]
    """Even and odd powers apart: two short chains of dependent operations instead of a long one."""
    square = t * t
    even, odd = fill(coefficients[start + count - 1]), fill(coefficients[start + count - 2])
    for k in range(start + count - 3, start, -2):
        even, odd = even * square + fill(coefficients[k]), odd * square + fill(coefficients[k - 1])
    return (even * square + fill(coefficients[start])) + odd * t


def _pair(r2, i1, i2, qi, s, q, constants, poly, slots):  # type: ignore[no-untyped-def]
    zero, one, c6, c12, sixth, half, cut6, cut, field, field2, edge_field, scale = constants
    f, u, v = zero, zero, zero
    if CHARGES or FORCE_SHIFT:
        ir = one / root(r2)
        ir2 = ir * ir
    else:
        ir = one
        ir2 = one / r2
    if not NONE:
        c6, c12 = _parameters(i1, i2, c6, c12, s, q, slots)
        ir6 = ir2 * ir2 * ir2
        f = (c12 * ir6 - c6) * ir6 * ir2
        if WANT:
            u = sixth * (half * c12 * ir6 - c6) * ir6
            if SHIFT:
                u = u - sixth * (half * c12 * cut6 - c6) * cut6
        if FORCE_SHIFT:
            edge = (c12 * cut6 - c6) * cut6 / cut
            f = f - edge * ir
            if WANT:
                u = u + edge * (r2 * ir - cut)
    if CHARGES:
        qq = qi * columns(slots[0], q)
        if EWALD:
            t = r2 * scale - one
            f = f + qq * (ir * ir2 - _polynomial(t, poly, 0, FORCE_TERMS))
            if WANT:
                v = qq * (ir - _polynomial(t, poly, FORCE_TERMS, ENERGY_TERMS))
        elif FIELD:
            f = f + qq * (ir * ir2 - field2)
            if WANT:
                v = qq * (ir + field * r2 - edge_field)
        else:
            f = f + qq * ir * ir2
            if WANT:
                v = qq * ir
    return f, u, v


def _loop(x, y, z, slots, own, number, poly, parts, row_first, run_range, run_shift, j_list, j_mask,
         fx, fy, fz, sums):  # type: ignore[no-untyped-def]  # fmt: skip
    chunks, i_clusters = run_range.shape[0], row_first.shape[0]
    for thread in numba.prange(parts.size - 1):
        gx, gy, gz = fx[thread], fy[thread], fz[thread]
        gx[:], gy[:], gz[:], sums[thread, :] = 0, 0, 0, 0
        cut2, zero, one, half = fill(number[0]), fill(number[1]), fill(number[2]), fill(number[6])
        constants = (
            zero, one, fill(number[3]), fill(number[4]), fill(number[5]), half, fill(number[7]), fill(number[8]),
            fill(number[9]), fill(number[10]), fill(number[11]), fill(number[12]),
        )  # fmt: skip
        for chunk in range(parts[thread], parts[thread + 1]):
            for i in range(chunk * i_clusters // chunks, (chunk + 1) * i_clusters // chunks):
                if row_first[i, 1] == row_first[i, 0]:
                    continue
                s = 4 * i
                qi = rows(slots[0], s) if CHARGES else one
                i1, i2 = (rows(slots[1], s), rows(slots[2], s)) if LORENTZ or GEOMETRIC else (one, one)
                ax, ay, az, e1, e2 = zero, zero, zero, zero, zero
                wxx, wxy, wxz, wyy, wyz, wzz = zero, zero, zero, zero, zero, zero
                for run in range(row_first[i, 0], row_first[i, 1]):
                    xi = rows(x, s) + fill(run_shift[chunk, run, 0])
                    yi = rows(y, s) + fill(run_shift[chunk, run, 1])
                    zi = rows(z, s) + fill(run_shift[chunk, run, 2])
                    for masked in range(2):
                        for k in range(run_range[chunk, run, 1 - masked], run_range[chunk, run, 2 - masked]):
                            q = numba.int64(j_list[chunk, numba.uint64(k)]) * 8
                            dx, dy, dz = columns(x, q) - xi, columns(y, q) - yi, columns(z, q) - zi
                            r2 = dx * dx + dy * dy + dz * dz
                            near = less(r2, cut2)
                            if masked:
                                near = both(near, bits(j_mask[chunk, numba.uint64(k)]))
                            f, u, v = _pair(r2, i1, i2, qi, s, q, constants, poly, slots)
                            f = keep(near, f)
                            px, py, pz = f * dx, f * dy, f * dz
                            ax, ay, az = ax + px, ay + py, az + pz
                            add_columns(gx, q, px)
                            add_columns(gy, q, py)
                            add_columns(gz, q, pz)
                            if WANT:
                                weight = half * (rows(own, s) + columns(own, q))
                                e1, e2 = e1 + keep(near, u) * weight, e2 + keep(near, v) * weight
                                px, py, pz = px * weight, py * weight, pz * weight
                                wxx, wxy, wxz = wxx + px * dx, wxy + px * dy, wxz + px * dz
                                wyy, wyz, wzz = wyy + py * dy, wyz + py * dz, wzz + pz * dz
                subtract_rows(gx, s, ax)
                subtract_rows(gy, s, ay)
                subtract_rows(gz, s, az)
                if WANT:
                    for m, tile in enumerate((e1, e2, wxx, wxy, wxz, wyy, wyz, wzz)):
                        sums[thread, m] += total(tile)


@functools.cache
def _kernel(lj: str, modifier: str, coulomb: str, terms: tuple[int, int], want: bool) -> Any:
    """Compile the loop over the list for one kind of interaction.

    The kind comes in through the globals of copies of the functions and stands in the name of the loop: Numba finds a loop that
    it keeps on disk by name and file; with closures it would compile again in every process.
    """
    names: dict[str, Any] = {
        "NONE": lj == "none", "ONE": lj == "one", "LORENTZ": lj == "lorentz-berthelot", "GEOMETRIC": lj == "geometric",
        "SHIFT": modifier != "cut" and want, "FORCE_SHIFT": modifier == "force-shift", "CHARGES": coulomb != "none",
        "FIELD": coulomb == "reaction-field", "EWALD": coulomb == "ewald", "WANT": want,
        "FORCE_TERMS": terms[0], "ENERGY_TERMS": terms[1],
    }  # fmt: skip
    for part in (_parameters, _polynomial, _pair):
        copy = FunctionType(part.__code__, {**globals(), **names}, part.__name__)
        names[part.__name__] = numba.njit(forceinline=True, error_model="numpy")(copy)
    loop = FunctionType(_loop.__code__, {**globals(), **names}, "_loop")
    kind = (lj, modifier, coulomb, *map(str, terms), "want" if want else "quick", STAMP)
    loop.__qualname__ = "_loop_" + "_".join(kind).replace("-", "")
    return numba.njit(cache=True, parallel=True, error_model="numpy", fastmath=True)(loop)


@numba.njit(cache=True, parallel=True)  # type: ignore[misc]
def _unpack(slot_of_atom, fx, fy, fz, force):  # type: ignore[no-untyped-def]
    """Add the forces of all threads to the particles', in float64."""
    for i in numba.prange(slot_of_atom.size):
        s = slot_of_atom[i]
        gx, gy, gz = 0.0, 0.0, 0.0
        for t in range(fx.shape[0]):
            gx += fx[t, s]
            gy += fy[t, s]
            gz += fz[t, s]
        force[i, 0] += gx
        force[i, 1] += gy
        force[i, 2] += gz


class Pairs:
    """Pair interactions over a cluster list.

    Args:
        topology: charges, types and exclusions, by local rows.
        settings: cutoff and kinds of interaction.
        skin_nm: how far beyond the cutoff the list reaches.
        precision: "mixed" or "double".
        images: along which box vectors there are periodic images; default: all when the state is periodic.
        watch_all: see `watched`.
    """

    def __init__(
        self,
        topology: Topology,
        settings: NonBonded,
        skin_nm: float,
        precision: str = "mixed",
        images: tuple[bool, bool, bool] | None = None,
        watch_all: bool = False,
    ) -> None:
        for key, value, allowed in (("lj", settings.lj, LJ), ("coulomb", settings.coulomb, COULOMB_KINDS)):
            if value not in allowed:
                raise InputError("unknown treatment of pairs", key=key, value=value, allowed=", ".join(allowed))
        self.settings, self.topology, self.watch_all = settings, topology, watch_all
        self.mixing = LennardJones(topology, 5e-7 if precision == "mixed" else 1e-9)
        self.charged = settings.coulomb != "none" and bool(np.any(topology.charge_n))
        kinds = (self.mixing.kind, settings.lj, settings.coulomb if self.charged else "none")
        self.list = ClusterList(settings.cutoff + skin_nm, precision, topology.exclusions, images)
        terms = self._numbers()
        self._quick, self._full = _kernel(*kinds, terms, False), _kernel(*kinds, terms, True)

    def _numbers(self) -> tuple[int, int]:
        """Set the constants of the loop; return how many coefficients its polynomials have."""
        dtype, set_, mixing = self.list.dtype, self.settings, self.mixing
        rc, alpha = set_.cutoff, set_.alpha
        field = 0.5 / rc**3 if set_.epsilon_rf == 0 else (set_.epsilon_rf - 1) / ((2 * set_.epsilon_rf + 1) * rc**3)
        edge = (alpha * rc) ** 2
        force, energy = np.zeros(1), np.zeros(1)
        if set_.coulomb == "ewald":
            fitted = ewald_polynomials(edge * 1.001, 1e-7 if dtype is np.float32 else 1e-14)
            force, energy = (np.append(c, np.zeros(1 - len(c) % 2)) for c in fitted)  # an odd number each
        self._poly = np.concatenate([force * alpha**3, energy * alpha]).astype(dtype)
        scale = 2 * alpha**2 / (edge * 1.001) if edge else 0.0
        values = [rc**2, 0, 1, mixing.c6_tt.flat[0], mixing.c12_tt.flat[0], 1 / 6, 0.5, rc**-6, rc]
        self._number = np.array([*values, field, 2 * field, 1 / rc + field * rc**2, scale], dtype)
        self._table6, self._table12 = mixing.c6_tt.ravel().astype(dtype), mixing.c12_tt.ravel().astype(dtype)
        return len(force), len(energy)

    def watched(self, state: State) -> NDArray[np.bool_]:
        """Return which owned atoms must not leave the skin of the list.

        In double precision all, and with `watch_all`.  Otherwise, with Ewald's sum, those with a Lennard-Jones interaction: what
        charges alone do at the cutoff is screened to the tolerance of the sum, and fast hydrogens of water that slip through the
        skin change forces by no more than float32 rounding does (`tests/compare/test_md_precision.py`).  Over long times the
        energy drifts for it, which a thermostat does not notice; runs at constant energy watch all.
        """
        if self.watch_all or self.settings.coulomb != "ewald" or self.list.dtype is np.float64:
            return np.ones(state.owned, np.bool_)
        return np.asarray((self.topology.epsilon_tt != 0).any(axis=1)[state.type_n[: state.owned]])

    def rebuild(self, state: State) -> None:
        """Build the list anew, and bring charges and types into its order."""
        clusters = self.list
        clusters.build(state)
        atom, filled = clusters.atom_of_slot, clusters.atom_of_slot >= 0
        at = np.where(filled, atom, 0)

        def slots(per_atom: Any) -> Any:
            return np.where(filled, per_atom[at], 0).astype(clusters.dtype)

        types, none = state.type_n, np.zeros(clusters.slots, clusters.dtype)
        mixes, kind = self.mixing.kind in ("lorentz-berthelot", "geometric"), self.mixing.kind
        first = slots(self.mixing.first_t[types]) if mixes else none
        second = slots(self.mixing.second_t[types]) if mixes else none
        charge = slots(state.charge_n * math.sqrt(COULOMB)) if self.charged else none
        self._slots = (charge, first, second, slots(types) if kind == "table" else none, self._table6, self._table12)
        ghosts = state.owned < len(types)
        self._own = slots((np.arange(len(types)) < state.owned).astype(float)) if ghosts else none + 1
        shape = (clusters.threads, clusters.slots)
        self._forces = tuple(np.empty(shape, clusters.dtype) for _ in range(3))
        self._sums = np.zeros((clusters.threads, 8))

    def compute(self, state: State, want: bool) -> Evaluation | None:
        """Add the pair forces; see `state.Term`."""
        clusters = self.list
        clusters.pack(state)
        loop = self._full if want else self._quick
        lists = (clusters.parts, clusters.row_first, clusters.run_range, clusters.run_shift, clusters.j_list, clusters.j_mask)
        place = (clusters.x, clusters.y, clusters.z, self._slots, self._own, self._number, self._poly)
        loop(*place, *lists, *self._forces, self._sums)
        _unpack(clusters.slot_of_atom, *self._forces, state.force_n3)
        if not want:
            return None
        sums = self._sums.sum(axis=0)
        names = {"lennard_jones": float(sums[0]), "coulomb": float(sums[1])}
        return Evaluation(names, symmetric(sums[2:]))
