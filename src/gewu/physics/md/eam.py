"""Embedded-atom potentials: E = sum_i F_a(rho_i) + 1/2 sum_ij phi_ab(r_ij), rho_i = sum_j f_ba(r_ij).

Two launches over the full neighbour list (densities, forces) and one over atoms (F and F') make a step; every atom writes only
its own elements, so nothing depends on threads.  Tables are interpolated by local cubics whose slopes at the grid points are
five-point differences, as in DYNAMO.  Below 0 and above the end of its table F goes on as a straight line: densities there are
outside the fit, and `Eam.beyond` keeps the largest number of atoms that were there at once.

The kernels here are the plain form, for the devices "reference" and "cuda"; on "cpu" those of `eamlanes` take their place, which
see for mixed precision.

References: Daw & Baskes, Phys. Rev. B 29, 6443 (1984); Foiles, Baskes & Daw, Phys. Rev. B 33, 7983 (1986); Finnis & Sinclair,
Philos. Mag. A 50, 45 (1984).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gewu.core.device import device
from gewu.core.errors import InputError
from gewu.core.kernel import kernel
from gewu.core.splines import cubic, local_cubic
from gewu.formats.eam import EamTables
from gewu.physics.md.eamlanes import INTERVALS, density_double, density_mixed, float_tables, force_double, force_mixed
from gewu.physics.md.state import Array, Evaluation, State, symmetric
from gewu.physics.md.units import ANGSTROM, EV
from gewu.physics.md.verlet import Verlet


@device
def apart(x_n3: Any, i: int, j: int, scale: Array) -> tuple[float, float, float]:
    """Return the vector from atom i to the nearest image of j, nm, from 64-bit fractions."""
    a, b, c = float(x_n3[j, 0] - x_n3[i, 0]), float(x_n3[j, 1] - x_n3[i, 1]), float(x_n3[j, 2] - x_n3[i, 2])
    return a * scale[0, 0] + b * scale[1, 0] + c * scale[2, 0], b * scale[1, 1] + c * scale[2, 1], c * scale[2, 2]


@kernel
def eam_density(i, x, element, count, items, scale, cutoff, d_r, density, r_phi, rho, pair):  # type: ignore[no-untyped-def]
    """Sum the densities at atom i and half of its pair energies."""
    e, sum_rho, sum_phi = element[i], 0.0, 0.0
    for k in range(count[i]):
        j = items[i, k]
        dx, dy, dz = apart(x, i, j, scale)
        square = dx * dx + dy * dy + dz * dz
        if square < cutoff * cutoff:
            r = math.sqrt(square)
            sum_rho += cubic(density, element[j], e, r / d_r)[0]
            sum_phi += cubic(r_phi, e, element[j], r / d_r)[0] / r
    rho[i] = sum_rho
    pair[i] = 0.5 * sum_phi


@kernel
def eam_embedding(i: int, element: Any, rho: Any, d_rho: float, embedding: Any, slope: Any, energy: Any, beyond: Any) -> None:
    """Evaluate F and F' of atom i."""
    end = (embedding.shape[2] - 1) * d_rho
    value, change = cubic(embedding, 0, element[i], max(rho[i], 0.0) / d_rho)
    slope[i] = change / d_rho
    energy[i] = value + (max(rho[i] - end, 0.0) + min(rho[i], 0.0)) * slope[i]
    beyond[i] = rho[i] > end or rho[i] < 0.0


@kernel
def eam_force(  # type: ignore[no-untyped-def]
    i, x, element, count, items, scale, cutoff, d_r, density, r_phi, slope, order, force, virial
):
    """Add the force on atom i to its row of the state, and write its half of the virial: xx, xy, xz, yy, yz, zz."""
    e, fx, fy, fz, xx, yy, zz, yz, xz, xy = element[i], 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(count[i]):
        j = items[i, k]
        dx, dy, dz = apart(x, i, j, scale)
        square = dx * dx + dy * dy + dz * dz
        if square < cutoff * cutoff:
            r = math.sqrt(square)
            z, dz_dp = cubic(r_phi, e, element[j], r / d_r)
            here = cubic(density, element[j], e, r / d_r)[1]
            there = cubic(density, e, element[j], r / d_r)[1] if e != element[j] else here
            s = ((dz_dp + slope[i] * here * r + slope[j] * there * r) / d_r - z / r) / square
            fx, fy, fz = fx + s * dx, fy + s * dy, fz + s * dz
            xx, yy, zz = xx - s * dx * dx, yy - s * dy * dy, zz - s * dz * dz
            yz, xz, xy = yz - s * dy * dz, xz - s * dx * dz, xy - s * dx * dy
    row = order[i]
    force[row, 0] += fx
    force[row, 1] += fy
    force[row, 2] += fz
    virial[i, 0], virial[i, 1], virial[i, 2] = 0.5 * xx, 0.5 * xy, 0.5 * xz
    virial[i, 3], virial[i, 4], virial[i, 5] = 0.5 * yy, 0.5 * yz, 0.5 * zz


class Eam:
    """The embedded-atom term.

    Args:
        tables: the potential.
        elements: element of each atom type, in the order of `Topology.type_names`.
        skin_nm: how far the neighbour list reaches beyond the cutoff; atoms may move by half of it between calls of `rebuild`.
        precision: "mixed" or "double" (see the module's text).
        device: "cpu", "cuda" or "reference"; the last two ask for "double".
        forward: fills the ghost rows of an (n,) array from the rows of their owners; None where there are no ghosts.

    `cutoff_nm` is how far ghosts must reach, skin apart.  Energies: "eam_pair", "eam_embedding".

    Raises:
        InputError: an element that the tables lack, an unknown precision.
    """

    def __init__(
        self,
        tables: EamTables,
        elements: Sequence[str],
        *,
        skin_nm: float = 0.1,
        precision: str = "mixed",
        device: str = "cpu",
        forward: Callable[[Array], None] | None = None,
    ) -> None:
        for name in elements:
            if name not in tables.elements:
                allowed = ", ".join(tables.elements)
                raise InputError("the EAM tables have no such element", file=tables.source or None, value=name, allowed=allowed)
        if precision not in (("mixed", "double") if device == "cpu" else ("double",)):
            allowed = "mixed, double" if device == "cpu" else f"double on the device {device}"
            raise InputError("unknown precision", key="precision", value=precision, allowed=allowed)
        self.element_t = np.array([tables.elements.index(name) for name in elements], np.int32)
        self.precision, self.device, self.forward = precision, device, forward
        self.cutoff_nm, self.d_r, self.d_rho = tables.cutoff * ANGSTROM, tables.d_r * ANGSTROM, tables.d_rho
        self.density = local_cubic(tables.density_eex)
        self.r_phi = local_cubic(tables.r_phi_eex * (EV * ANGSTROM))
        self.embedding = local_cubic(tables.embedding_ex * EV)[None]
        # the tables of the vector loops hold the elements in use only, so that one element needs no look-up of its place
        used = np.unique(self.element_t)
        self.place_t, self._used = np.searchsorted(used, self.element_t), len(used)
        density, r_phi = self.density[np.ix_(used, used)], self.r_phi[np.ix_(used, used)]
        self._lane_tables: tuple[Any, Any]
        if precision == "mixed":
            self._lane_tables = float_tables(density, r_phi, self.d_r, self.cutoff_nm)
        else:
            self._lane_tables = density.swapaxes(0, 1).reshape(-1, 4).copy(), r_phi.reshape(-1, 4).copy()
        self.verlet = Verlet(self.cutoff_nm, skin_nm)
        self.beyond = 0

    def rebuild(self, state: State) -> None:
        """Make the neighbour list anew.

        Raises:
            InputError: as `Verlet.rebuild`.
        """
        self.verlet.rebuild(state)
        order = self.verlet.order_n
        n, types = len(order), state.type_n[order]
        self._element = self.element_t[types]
        self._rho, self._pair, self._slope, self._embedded = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
        self._beyond, self._virial = np.zeros(n, np.int64), np.zeros((n, 6))
        self._owned = order < state.owned
        kind = np.int32 if self.precision == "mixed" else np.int64
        rows = INTERVALS + 1 if self.precision == "mixed" else self.density.shape[2]
        self._offset = (self.place_t[types] * rows).astype(kind)
        self._own = (self.place_t[types] * (rows * self._used)).astype(kind)
        self._x = np.zeros((n, 4), kind)

    def compute(self, state: State, want: bool) -> Evaluation | None:
        """Add the forces on owned atoms; with `want` return this rank's share of energies and virial.

        The state must hold the atoms of the last `rebuild`, none moved by more than half a skin.
        """
        if self.device != "cpu":
            self._plain(state)
        else:
            (self._mixed if self.precision == "mixed" else self._double)(state, want)
        self.beyond = max(self.beyond, int(self._beyond[self._owned].sum()))
        if not want:
            return None
        energies = {"eam_pair": float(self._pair[self._owned].sum()), "eam_embedding": float(self._embedded[self._owned].sum())}
        return Evaluation(energies, symmetric(self._virial.sum(axis=0)))

    def _embed(self, state: State) -> None:
        """Compute F and F', those of ghosts by asking their owners."""
        arrays = (self._element, self._rho, self.d_rho, self.embedding, self._slope, self._embedded, self._beyond)
        eam_embedding.launch(self.device, len(self._rho), *arrays)
        if self.forward is not None:
            by_row = np.zeros(len(state.position_n3))
            by_row[self.verlet.order_n] = self._slope
            self.forward(by_row)
            self._slope[:] = by_row[self.verlet.order_n]

    def _plain(self, state: State) -> None:
        v = self.verlet
        v.fixed(state, self._x)
        common = (self._x, self._element, v.count_n, v.list_nw, v.scale(64), self.cutoff_nm, self.d_r, self.density, self.r_phi)
        eam_density.launch(self.device, len(self._x), *common, self._rho, self._pair)
        self._embed(state)
        eam_force.launch(self.device, len(self._x), *common, self._slope, v.order_n, state.force_n3, self._virial)

    def _double(self, state: State, want: bool) -> None:
        v = self.verlet
        v.fixed(state, self._x)
        self._x[:, 3] = self._offset
        table = (self.cutoff_nm, self.d_r, self.density.shape[2])
        common = (v.count_n, v.list_nw, v.scale(64), *table)
        density_double(self._x, self._own, *common, want, *self._lane_tables, self._rho, self._pair)
        self._embed(state)
        self._x.view(np.float64)[:, 3] = self._slope
        arrays = (self._x, self._slope, self._offset, self._own, *common, self._used > 1, want, *self._lane_tables)
        force_double(*arrays, v.order_n, state.force_n3, self._virial)

    def _mixed(self, state: State, want: bool) -> None:
        v, unit = self.verlet, self.cutoff_nm / math.sqrt(INTERVALS)
        v.fixed(state, self._x)
        self._x[:, 3] = self._offset
        box = (v.scale() / unit).astype(np.float32)  # lengths in units that make r^2 the number of the interval
        common, several = (v.count_n, v.list_nw, box), self._used > 1
        density_mixed(self._x, self._own, *common, several, self._lane_tables[0], self._rho, self._pair)
        self._embed(state)
        self._x.view(np.float32)[:, 3] = self._slope
        arrays = (self._x, self._slope, self._offset, self._own, *common, unit, several, want, self._lane_tables[1])
        force_mixed(*arrays, v.order_n, state.force_n3, self._virial)
