r"""What is measured during a run: accumulators that take one state after the other.

    g_ab(r)   pairs found at r / pairs of an ideal gas at that density                             `Rdf`
    MSD(t)    <|r(t0 + t) - r(t0)|^2> -> 6 D t                                                     `TimeCorrelation("msd")`
    C(t)      <v(t0) . v(t0 + t)>,  D = 1/3 int_0^inf C dt                                         `TimeCorrelation("vacf")`
    epsilon   1 + 4 pi f (<M^2> - <M>^2) / (3 V k T), conducting surroundings                      `Dielectric`
    errors    of means over correlated series, by blocking                          `gewu.core.statistics.BlockAverages`

Every accumulator has `update(state)`, results as methods, and `to_state` / `restore`: restored, it goes on bit for bit.  Arrays
are put into the order of the input by their tags, so the order of rows does not matter; all rows must be there (with several
ranks: the gathered state on the root).  Memory: `TimeCorrelation` keeps K samples of all atoms, however long the run; the rest
keeps none.

Reference: Allen and Tildesley, Computer Simulation of Liquids, 2nd edition (2017), chapters 2 and 8; Neumann, Mol. Phys. 50, 841
(1983); Yeh and Hummer, J. Phys. Chem. B 108, 15873 (2004).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gewu.core.errors import InputError
from gewu.core.kernel import atomic_add, kernel
from gewu.core.statistics import BlockAverages
from gewu.physics.md.box import check_reach, minimum_image
from gewu.physics.md.plain import bin_cells, cell_beside
from gewu.physics.md.state import Array, State
from gewu.physics.md.units import BOLTZMANN, COULOMB

YEH_HUMMER = 2.837297
"""The lattice constant of a cubic array of point forces in a viscous fluid."""
_DALTON_KG = 1.66053906660e-27
_VISCOSITY = _DALTON_KG / (1e-9 * 1e-12)  # one u/(nm ps) in Pa s


def by_tag(state: State, array: NDArray[Any]) -> NDArray[Any]:
    """Return the rows of an array of the state in the order of the input."""
    ordered = np.empty_like(array)
    ordered[state.tag_n] = array
    return ordered


@kernel
def _histogram(i, position, box, reach, shape, cell, start, order, kind, row_of, bins, counts):  # type: ignore[no-untyped-def]
    """Count atom i's neighbours of each kind by distance."""
    wanted = False
    for k in range(row_of.shape[0]):
        if row_of[kind[i], k] >= 0:
            wanted = True
    if wanted:
        for part in range(27):
            here = cell_beside(cell[i, 0], cell[i, 1], cell[i, 2], part, shape, (1, 1, 1))
            for k in range(start[here], start[here + 1] if here >= 0 else start[here]):
                j = order[k]
                row = row_of[kind[i], kind[j]]
                if row >= 0 and j != i:
                    dx, dy = position[i, 0] - position[j, 0], position[i, 1] - position[j, 1]
                    dx, dy, dz = minimum_image(dx, dy, position[i, 2] - position[j, 2], box)
                    r2 = dx * dx + dy * dy + dz * dz
                    if r2 < reach * reach:
                        atomic_add(counts, row * bins + min(int(math.sqrt(r2) / reach * bins), bins - 1), 1)


class Rdf:
    """Radial distribution functions.

    Args:
        kind_n: (n,) the kind of each atom in the order of the input, 0 <= kind.
        pairs: pairs of kinds (a, b).
        r_max: nm, at most half the smallest height of the box.
        bins: number of shells.
        device: "reference", "cpu" or "cuda".
    """

    def __init__(
        self, kind_n: ArrayLike, pairs: Sequence[tuple[int, int]], r_max: float, bins: int = 200, device: str = "cpu"
    ) -> None:
        self.kind_n, self.pairs, self.r_max, self.bins, self.device = np.asarray(kind_n, np.int32), pairs, r_max, bins, device
        kinds = int(self.kind_n.max()) + 1
        number = np.bincount(self.kind_n, minlength=kinds)
        self._row_of = np.full((kinds, kinds), -1, np.int32)
        for row, (a, b) in enumerate(pairs):
            self._row_of[a, b] = row
        self._ordered_pairs = np.array([number[a] * (number[b] - (a == b)) for a, b in pairs], float)
        self._counts = np.zeros(len(pairs) * bins, np.int64)
        self._density = 0.0

    def update(self, state: State) -> None:
        """Count the pairs of one configuration.

        Raises:
            InputError: in vacuum, or a box smaller than twice `r_max`.
        """
        if not state.periodic:
            raise InputError("a radial distribution function needs a periodic box", key="r_max", value=self.r_max)
        check_reach(state.box_33, self.r_max, "a radial distribution function")
        cells, volume = bin_cells(state, self.r_max)
        where = state.position_n3, state.box_33, self.r_max, *cells
        _histogram.launch(self.device, state.owned, *where, self.kind_n[state.tag_n], self._row_of, self.bins, self._counts)
        self._density += 1.0 / volume

    @property
    def r(self) -> Array:
        """Middles of the shells, nm."""
        return (np.arange(self.bins) + 0.5) * self.r_max / self.bins

    def _ideal(self) -> Array:
        """Numbers expected in an ideal gas, (pairs, bins)."""
        edges = np.linspace(0.0, self.r_max, self.bins + 1)
        shells: Array = 4 * math.pi / 3 * np.diff(edges**3)
        return self._ordered_pairs[:, None] * self._density * shells

    def g(self) -> Array:
        """Return g_ab at `r`, (pairs, bins)."""
        return np.asarray(self._counts.reshape(len(self.pairs), self.bins) / np.maximum(self._ideal(), 1e-300))

    def to_state(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"counts": self._counts.copy(), "density": self._density}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from `to_state`."""
        self._counts, self._density = np.array(saved["counts"]), float(saved["density"])


class TimeCorrelation:
    """Mean square displacements or velocity autocorrelations per kind of atom, over many time origins.

    Every ceil(lags / origins)-th sample becomes an origin and serves for `lags` samples, so at most `origins` samples are kept.

    Args:
        quantity: "msd" (positions, nm^2) or "vacf" (velocities, nm^2/ps^2).
        kind_n: (n,) the kind of each atom in the order of the input; -1 leaves it out.
        sample_ps: time between two calls of `update`.
        lags: number of time differences, 0 included.
        origins: samples kept.
    """

    def __init__(
        self, quantity: Literal["msd", "vacf"], kind_n: ArrayLike, sample_ps: float, lags: int = 500, origins: int = 20
    ) -> None:
        self.quantity, self.sample_ps, self.lags = quantity, sample_ps, lags
        self._slot_n = np.asarray(kind_n, np.int64) + 1
        self.kinds = int(self._slot_n.max())
        self._number = np.maximum(np.bincount(self._slot_n, minlength=self.kinds + 1)[1:], 1)
        self.spacing = -(-lags // origins)
        self._ring = np.zeros((-(-lags // self.spacing), len(self._slot_n), 3))
        self._sum, self._count, self._samples = np.zeros((self.kinds, lags)), np.zeros(lags, np.int64), 0

    def update(self, state: State) -> None:
        """Take one more sample."""
        now, rows, msd = self._samples, len(self._ring), self.quantity == "msd"
        x_n3 = by_tag(state, state.position_n3 if msd else state.velocity_n3)
        if now % self.spacing == 0:
            self._ring[now // self.spacing % rows] = x_n3
        newest = now // self.spacing
        for origin in range(max(0, newest - rows + 1), newest + 1):
            lag = now - origin * self.spacing
            if lag < self.lags:
                x0_n3 = self._ring[origin % rows]
                product = np.square(x_n3 - x0_n3).sum(axis=1) if msd else np.einsum("na,na->n", x_n3, x0_n3)
                self._sum[:, lag] += np.bincount(self._slot_n, product, self.kinds + 1)[1:] / self._number
                self._count[lag] += 1
        self._samples += 1

    @property
    def t(self) -> Array:
        """The time differences that were met, ps."""
        return np.arange(int((self._count > 0).sum()), dtype=float) * self.sample_ps

    def values(self) -> Array:
        """Return the function per kind at `t`, (kinds, times): met time differences are a range that begins at 0."""
        met = self._count > 0
        return np.asarray(self._sum[:, met] / self._count[met])

    def diffusion(self, begin_ps: float = 0.0, end_ps: float = math.inf) -> list[tuple[float, float]]:
        """Return the diffusion coefficient of each kind and its uncertainty, nm^2/ps.

        From an MSD: a sixth of the slope of a straight line fitted between `begin_ps` and `end_ps`, and the difference between
        the halves of that window.  From a VACF: a third of the integral from 0 to `end_ps` (trapezoids), and half of its range
        between `begin_ps` and `end_ps`.

        Raises:
            InputError: fewer than four time differences in the window.
        """
        t, values = self.t, self.values()
        window = (t >= begin_ps) & (t <= end_ps)
        if window.sum() < 4:
            raise InputError(
                "too few samples for a diffusion coefficient", value=int(window.sum()), allowed="at least 4 time lags"
            )
        if self.quantity == "vacf":
            pieces = np.diff(t) * (values[:, 1:] + values[:, :-1]) / 6
            running = np.cumsum(np.insert(pieces, 0, 0.0, axis=1), axis=1)[:, window]
            return [(float(d[-1]), float(np.ptp(d) / 2)) for d in running]
        t, values, half = t[window], values[:, window], int(window.sum()) // 2

        def slope(part: slice, y: Array) -> float:
            return float(np.polynomial.Polynomial.fit(t[part], y[part], 1).convert().coef[-1]) / 6

        return [(slope(slice(None), y), abs(slope(slice(half), y) - slope(slice(half, None), y))) for y in values]

    def to_state(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"ring": self._ring.copy(), "sum": self._sum.copy(), "count": self._count.copy(), "samples": self._samples}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from `to_state`."""
        self._ring, self._sum, self._count = (np.array(saved[k]) for k in ("ring", "sum", "count"))
        self._samples = int(saved["samples"])


def finite_size_diffusion(temperature_k: float, viscosity_pa_s: float, length_nm: float) -> float:
    """Return what a periodic cube takes from a diffusion coefficient, xi k T / (6 pi eta L) in nm^2/ps; add it to the result."""
    return YEH_HUMMER * BOLTZMANN * temperature_k / (6 * math.pi * (viscosity_pa_s / _VISCOSITY) * length_nm)


class Dielectric:
    """Static dielectric constant from the fluctuation of the total dipole moment: neutral molecules, whole at the start.

    Args:
        temperature_k: of the ensemble.
    """

    def __init__(self, temperature_k: float) -> None:
        self.temperature_k = temperature_k
        self._moments = BlockAverages(["Mx", "My", "Mz", "M2", "volume"])

    def update(self, state: State) -> None:
        """Take the dipole moment of one configuration (continuous positions keep molecules whole)."""
        m = by_tag(state, state.charge_n) @ by_tag(state, state.position_n3)
        self._moments.add([*m, float(m @ m), state.volume])

    def epsilon(self) -> tuple[float, float]:
        """Return the dielectric constant and its standard error (from that of <M^2>; nan while it cannot be told)."""
        mean, error = self._moments.mean(), self._moments.error()
        factor = 4 * math.pi * COULOMB / (3 * mean[4] * BOLTZMANN * self.temperature_k)
        return 1.0 + factor * float(mean[3] - mean[:3] @ mean[:3]), factor * float(error[3])

    def to_state(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return self._moments.to_state()

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from `to_state`."""
        self._moments.restore(saved)
