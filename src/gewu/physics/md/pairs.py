r"""Lennard-Jones and Coulomb forces between all pairs within the cutoff, 4 x 8 pairs at a time.

    U = 4 eps [(sigma/r)^12 - (sigma/r)^6] + q_i q_j / (4 pi eps0) phi(r)

    lj        "cut"          as it stands for r < rc
              "shift"        U - U(rc): same forces
              "force-shift"  U - U(rc) - (r - rc) U'(rc)
    coulomb   "none", "cut"  nothing, 1/r
              "reaction-field"  1/r + k r^2 - c,  k = (e - 1) / ((2 e + 1) rc^3),  c = 1/rc + k rc^2, e = epsilon_rf (0: infinity)
              "ewald"        erfc(alpha r)/r, the rest is `pme`

Precision "mixed": coordinates relative to blocks, pair arithmetic and the sums over one row of the list in float32, everything summed
further in float64.  "double": all in float64.  The reference is `plain.brute_force`; `plain.PlainPairs` is the twin for GPUs.

erfc is not evaluated: 1/r^3 - alpha^3 G(alpha^2 r^2) is the force over r, with the smooth G as a polynomial (`erfc`).
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gewu.core.simd as simd
from gewu.core.device import load_numba
from gewu.core.errors import InputError
from gewu.physics.md.cells import ClusterList
from gewu.physics.md.erfc import ewald_polynomials
from gewu.physics.md.state import Array, Evaluation, State, Topology
from gewu.physics.md.units import COULOMB

numba = load_numba()
from gewu.core.simd import add_columns, bits, both, columns, fill, keep, less, root, rows, subtract_rows, take, total  # noqa: E402

LJ = ("cut", "shift", "force-shift")
COULOMB_KINDS = ("none", "cut", "reaction-field", "ewald")
_STAMP = hashlib.sha256(Path(simd.__file__).read_bytes()).hexdigest()  # Numba's cache sees this file only


@dataclass(frozen=True)
class NonBonded:
    """How pairs interact: cutoff in nm, treatment of Lennard-Jones and Coulomb at it (see the module), alpha in 1/nm."""

    cutoff: float
    lj: str = "cut"
    coulomb: str = "none"
    epsilon_rf: float = 0.0
    alpha: float = 0.0
    dispersion_correction: bool = False


class LennardJones:
    """How the Lennard-Jones parameters of a pair come from its particles: mixing rules that hold exactly save the lookup.

    `kind` is "none", "one" (one type), "lorentz-berthelot", "geometric" or "table"; `first_t`, `second_t` are the numbers per type.
    """

    def __init__(self, topology: Topology) -> None:
        sigma, epsilon = np.asarray(topology.sigma_tt), np.asarray(topology.epsilon_tt)
        self.c6_tt, self.c12_tt = 4 * epsilon * sigma**6, 4 * epsilon * sigma**12
        own_s, own_e = np.diag(sigma), np.sqrt(np.maximum(np.diag(epsilon), 0))
        mean, product = (own_s[:, None] + own_s) / 2, np.sqrt(own_s[:, None] * own_s)
        acts = epsilon != 0
        self.first_t, self.second_t = own_s / 2, 2 * own_e  # half sigma; 2 sqrt(epsilon)
        if not acts.any():
            self.kind = "none"
        elif len(sigma) == 1:
            self.kind = "one"
        elif not np.allclose(epsilon, own_e[:, None] * own_e, rtol=1e-9, atol=0):
            self.kind = "table"
        elif np.allclose(sigma[acts], mean[acts], rtol=1e-9, atol=0):
            self.kind = "lorentz-berthelot"
        elif np.allclose(sigma[acts], product[acts], rtol=1e-9, atol=0):
            self.kind = "geometric"
            self.first_t, self.second_t = np.sqrt(np.diag(self.c6_tt)), np.sqrt(np.diag(self.c12_tt))
        else:
            self.kind = "table"


@functools.cache
def _kernel(lj: str, modifier: str, coulomb: str, want: bool) -> Any:
    """Compile the loop over the list for one kind of interaction."""
    NONE, ONE, LB, GEOMETRIC = lj == "none", lj == "one", lj == "lorentz-berthelot", lj == "geometric"
    SHIFT, FORCE_SHIFT = modifier != "cut" and want, modifier == "force-shift"
    CHARGES, FIELD, EWALD = coulomb != "none", coulomb == "reaction-field", coulomb == "ewald"
    WANT, stamp = want, _STAMP

    @numba.njit(forceinline=True, error_model="numpy")  # type: ignore[misc]
    def parameters(i1, i2, c1, c2, j8, first_s, second_s, table6, table12, types, s):  # type: ignore[no-untyped-def]
        """4 eps sigma^6 and 4 eps sigma^12 of the tile."""
        if ONE:
            return c1, c2
        if LB:
            sigma = i1 + columns(first_s, j8)
            s2 = sigma * sigma
            c6 = i2 * columns(second_s, j8) * (s2 * s2 * s2)
            return c6, c6 * (s2 * s2 * s2)
        if GEOMETRIC:
            return i1 * columns(first_s, j8), i2 * columns(second_s, j8)
        index = rows(types, s) * fill(c_types(types, table6)) + columns(types, j8)
        return take(table6, index), take(table12, index)

    @numba.njit(forceinline=True, error_model="numpy")  # type: ignore[misc]
    def c_types(types, table6):  # type: ignore[no-untyped-def]
        return types.dtype.type(math.sqrt(table6.size) + 0.5)

    @numba.njit(forceinline=True, error_model="numpy")  # type: ignore[misc]
    def polynomial(t, coefficients, start, stop):  # type: ignore[no-untyped-def]
        value = fill(coefficients[stop - 1])
        for k in range(stop - 2, start - 1, -1):
            value = value * t + fill(coefficients[k])
        return value

    @numba.njit(cache=True, parallel=True, error_model="numpy", fastmath=True)  # type: ignore[misc]
    def loop(x, y, z, charge, first_s, second_s, types, own, table6, table12, number, poly, degree,
             parts, row_first, run_range, run_shift, j_list, j_mask, fx, fy, fz, sums):  # type: ignore[no-untyped-def]  # fmt: skip
        stamp  # noqa: B018  # part of the cache key
        chunks, i_clusters = run_range.shape[0], row_first.shape[0]
        for thread in numba.prange(parts.size - 1):
            gx, gy, gz = fx[thread], fy[thread], fz[thread]
            gx[:] = 0
            gy[:] = 0
            gz[:] = 0
            sums[thread, :] = 0
            cut2, one, zero = fill(number[0]), fill(number[1]), fill(number[2])
            one6, one12 = fill(number[3]), fill(number[4])
            six, twelve, half = fill(number[5]), fill(number[6]), fill(number[7])
            inverse_cut6, field, field2, constant = fill(number[8]), fill(number[9]), fill(number[10]), fill(number[11])
            scale, alpha3, alpha1, inverse_cut = fill(number[12]), fill(number[13]), fill(number[14]), fill(number[15])
            for chunk in range(parts[thread], parts[thread + 1]):
                for i in range(chunk * i_clusters // chunks, (chunk + 1) * i_clusters // chunks):
                    if row_first[i, 1] == row_first[i, 0]:
                        continue
                    s = 4 * i
                    qi = rows(charge, s) if CHARGES else one
                    i1 = rows(first_s, s) if (LB or GEOMETRIC) else one
                    i2 = rows(second_s, s) if (LB or GEOMETRIC) else one
                    ax, ay, az = zero, zero, zero
                    e1, e2 = zero, zero
                    wxx, wyy, wzz, wxy, wxz, wyz = zero, zero, zero, zero, zero, zero
                    for run in range(row_first[i, 0], row_first[i, 1]):
                        xi = rows(x, s) + fill(run_shift[chunk, run, 0])
                        yi = rows(y, s) + fill(run_shift[chunk, run, 1])
                        zi = rows(z, s) + fill(run_shift[chunk, run, 2])
                        for masked in range(2):
                            first, stop = run_range[chunk, run, 1 - masked], run_range[chunk, run, 2 - masked]
                            for k in range(first, stop):
                                q = numba.int64(j_list[chunk, numba.uint64(k)]) * 8
                                dx, dy, dz = columns(x, q) - xi, columns(y, q) - yi, columns(z, q) - zi
                                r2 = dx * dx + dy * dy + dz * dz
                                near = less(r2, cut2)
                                if masked:
                                    near = both(near, bits(j_mask[chunk, numba.uint64(k)]))
                                f, u, v = zero, zero, zero
                                if CHARGES or FORCE_SHIFT:
                                    ir = one / root(r2)
                                    ir2 = ir * ir
                                else:
                                    ir = one
                                    ir2 = one / r2
                                if not NONE:
                                    c6, c12 = parameters(i1, i2, one6, one12, q, first_s, second_s, table6, table12, types, s)
                                    ir6 = ir2 * ir2 * ir2
                                    f = (twelve * c12 * ir6 - six * c6) * ir6 * ir2
                                    if WANT:
                                        u = (c12 * ir6 - c6) * ir6
                                        if SHIFT:
                                            u = u - (c12 * inverse_cut6 - c6) * inverse_cut6
                                    if FORCE_SHIFT:
                                        edge = (twelve * c12 * inverse_cut6 - six * c6) * inverse_cut6 * inverse_cut
                                        f = f - edge * ir
                                        if WANT:
                                            u = u + edge * (r2 * ir - one / inverse_cut)
                                if CHARGES:
                                    qq = qi * columns(charge, q)
                                    if EWALD:
                                        t = r2 * scale - one
                                        f = f + qq * (ir * ir2 - alpha3 * polynomial(t, poly, 0, degree[0]))
                                        if WANT:
                                            v = qq * (ir - alpha1 * polynomial(t, poly, degree[0], degree[1]))
                                    elif FIELD:
                                        f = f + qq * (ir * ir2 - field2)
                                        if WANT:
                                            v = qq * (ir + field * r2 - constant)
                                    else:
                                        f = f + qq * ir * ir2
                                        if WANT:
                                            v = qq * ir
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
                                    wxx, wyy, wzz = wxx + px * dx, wyy + py * dy, wzz + pz * dz
                                    wxy, wxz, wyz = wxy + px * dy, wxz + px * dz, wyz + py * dz
                    subtract_rows(gx, s, ax)
                    subtract_rows(gy, s, ay)
                    subtract_rows(gz, s, az)
                    if WANT:
                        sums[thread, 0] += total(e1)
                        sums[thread, 1] += total(e2)
                        sums[thread, 2] += total(wxx)
                        sums[thread, 3] += total(wyy)
                        sums[thread, 4] += total(wzz)
                        sums[thread, 5] += total(wxy)
                        sums[thread, 6] += total(wxz)
                        sums[thread, 7] += total(wyz)

    return loop


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
    """

    def __init__(
        self,
        topology: Topology,
        settings: NonBonded,
        skin_nm: float,
        precision: str = "mixed",
        images: tuple[bool, bool, bool] | None = None,
    ) -> None:
        for key, value, allowed in (("lj", settings.lj, LJ), ("coulomb", settings.coulomb, COULOMB_KINDS)):
            if value not in allowed:
                raise InputError("unknown treatment of pairs", key=key, value=value, allowed=", ".join(allowed))
        self.settings, self.topology = settings, topology
        self.mixing = LennardJones(topology)
        charged = settings.coulomb != "none" and bool(np.any(topology.charge_n))
        kinds = (self.mixing.kind, settings.lj, settings.coulomb if charged else "none")
        self._quick, self._full = _kernel(*kinds, False), _kernel(*kinds, True)
        self.list = ClusterList(settings.cutoff + skin_nm, skin_nm, precision, topology.exclusions, images)
        self._numbers()

    def _numbers(self) -> None:
        dtype, set_, mixing = self.list.dtype, self.settings, self.mixing
        rc, alpha = set_.cutoff, set_.alpha
        field = 0.5 / rc**3 if set_.epsilon_rf == 0 else (set_.epsilon_rf - 1) / ((2 * set_.epsilon_rf + 1) * rc**3)
        edge = (alpha * rc) ** 2
        force, energy = np.zeros(1), np.zeros(1)
        if set_.coulomb == "ewald":
            force, energy = ewald_polynomials(edge * 1.001, 1e-7 if dtype is np.float32 else 1e-14)
        self._poly = np.concatenate([force, energy]).astype(dtype)
        self._degree = np.array([len(force), len(force) + len(energy)])
        scale = 2 * alpha**2 / (edge * 1.001) if edge else 0.0
        values = [
            rc**2,
            1,
            0,
            mixing.c6_tt.flat[0],
            mixing.c12_tt.flat[0],
            6,
            12,
            0.5,
            rc**-6,
            field,
            2 * field,
            1 / rc + field * rc**2,
        ]
        self._number = np.array([*values, scale, alpha**3, alpha, 1 / rc], dtype)
        self._table6, self._table12 = mixing.c6_tt.ravel().astype(dtype), mixing.c12_tt.ravel().astype(dtype)

    def rebuild(self, state: State) -> None:
        """Build the list anew, and bring charges and types into its order."""
        clusters = self.list
        clusters.build(state)
        atom, filled = clusters.atom_of_slot, clusters.atom_of_slot >= 0
        at = np.where(filled, atom, 0)

        def slots(per_atom: Any) -> Any:
            return np.where(filled, per_atom[at], 0).astype(clusters.dtype)

        types = state.type_n
        self._charge = slots(state.charge_n * math.sqrt(COULOMB))
        self._first, self._second = slots(self.mixing.first_t[types]), slots(self.mixing.second_t[types])
        self._types, self._own = slots(types), slots((np.arange(len(types)) < state.owned).astype(float))
        shape = (clusters.threads, clusters.slots)
        self._forces = tuple(np.empty(shape, clusters.dtype) for _ in range(3))
        self._sums = np.zeros((clusters.threads, 8))

    def compute(self, state: State, want: bool) -> Evaluation | None:
        """Add the pair forces; see `state.Term`."""
        clusters = self.list
        clusters.pack(state)
        loop = self._full if want else self._quick
        loop(
            clusters.x, clusters.y, clusters.z, self._charge, self._first, self._second, self._types, self._own,
            self._table6, self._table12, self._number, self._poly, self._degree, clusters.parts, clusters.row_first,
            clusters.run_range, clusters.run_shift, clusters.j_list, clusters.j_mask, *self._forces, self._sums,
        )  # fmt: skip
        _unpack(clusters.slot_of_atom, *self._forces, state.force_n3)
        if not want:
            return None
        sums = self._sums.sum(axis=0)
        names = {"lennard_jones": float(sums[0]), "coulomb": float(sums[1])}
        return Evaluation(names, virial(sums[2:]))


def virial(six: Array) -> Array:
    """Return the symmetric (3, 3) virial from xx, yy, zz, xy, xz, yz."""
    xx, yy, zz, xy, xz, yz = six
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
