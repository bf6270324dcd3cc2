"""Coulomb energy of periodic charges by Ewald's sum: what smooth PME needs beside its mesh.

    U = K sum_pairs,images q_i q_j erfc(a r)/r                                   real space (pair list), without excluded pairs
      + K/(2 pi V) sum_m exp(-pi^2 m^2/a^2)/m^2 |S(m)|^2,  S = sum_i q_i e^(2 pi i m.r_i)                           reciprocal
      - K a/sqrt(pi) sum_i q_i^2                                                                                          self
      - K pi Q^2/(2 V a^2)                                                        uniform background against a net charge Q
      - K sum_excluded q_i q_j erf(a r)/r                                                        correction of excluded pairs

with K = 1/(4 pi eps0), m = n . (rows of the inverse box), and conducting (tin-foil) surroundings.  Virial of a reciprocal term:
E_m [1 - 2 (1/m^2 + pi^2/a^2) m m]; of the background: its energy times 1.

References: Ewald, Ann. Phys. 369, 253 (1921); Essmann et al., J. Chem. Phys. 103, 8577 (1995), equations 2.2 to 2.7.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import erfcinv

from gewu.core.device import device, nonneg
from gewu.core.erfc import ewald_polynomials
from gewu.core.errors import InputError
from gewu.core.kernel import kernel
from gewu.core.ranks import SERIAL, Ranks
from gewu.formats.forcefield.graph import partners
from gewu.physics.md.box import heights, minimum_image
from gewu.physics.md.state import Array, State, Topology, symmetric
from gewu.physics.md.units import COULOMB

NAME = "coulomb_reciprocal"
_TERMS = 12  # of the polynomials for close pairs; those further apart take math.erf


def choose_alpha(cutoff_nm: float, tolerance: float = 1e-5) -> float:
    """Return Ewald's parameter in 1/nm for which erfc(alpha cutoff), the relative size of what the cutoff drops, is `tolerance`.

    Examples:
        >>> round(choose_alpha(0.9, 1e-5), 3)
        3.47
    """
    if not (cutoff_nm > 0.0 and 1e-15 <= tolerance < 1.0):
        raise InputError(
            "no Ewald parameter for this cutoff and tolerance",
            key="ewald_tolerance",
            value=tolerance,
            allowed="a positive cutoff, 1e-15 <= tolerance < 1",
        )
    return float(erfcinv(tolerance)) / cutoff_nm


@device
def _polynomial(c: Any, t: float) -> float:
    """Evaluate 12 coefficients, even and odd powers apart: two short chains of dependent operations instead of a long one."""
    s = t * t
    even = ((((c[10] * s + c[8]) * s + c[6]) * s + c[4]) * s + c[2]) * s + c[0]
    odd = ((((c[11] * s + c[9]) * s + c[7]) * s + c[5]) * s + c[3]) * s + c[1]
    return even + t * odd  # type: ignore[no-any-return]


@kernel
def correct_excluded(  # type: ignore[no-untyped-def]
    i, want, alpha, near, x_max, position, charge, start, partner, box, force_terms, energy_terms, force, share
):
    """Take the smooth interaction of atom i with its excluded partners off its force; half of energy and virial into `share`."""
    fx, fy, fz, energy = 0.0, 0.0, 0.0, 0.0
    xx, xy, xz, yy, yz, zz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    strength = -COULOMB * alpha * charge[i]
    for k in range(start[i], start[i + 1]):
        j = nonneg(partner[k])
        dx, dy, dz = position[i, 0] - position[j, 0], position[i, 1] - position[j, 1], position[i, 2] - position[j, 2]
        x = alpha * alpha * (dx * dx + dy * dy + dz * dz)
        if x > near:
            dx, dy, dz = minimum_image(dx, dy, dz, box)
            x = alpha * alpha * (dx * dx + dy * dy + dz * dz)
        smooth = 0.0
        if x <= x_max:
            t = 2.0 * x / x_max - 1.0
            slope = _polynomial(force_terms, t)
            if want:
                smooth = _polynomial(energy_terms, t)
        else:
            smooth = math.erf(math.sqrt(x)) / math.sqrt(x)
            slope = (smooth - 2.0 / math.sqrt(math.pi) * math.exp(-x)) / x
        pull = strength * charge[j] * alpha * alpha * slope
        fx, fy, fz = fx + pull * dx, fy + pull * dy, fz + pull * dz
        if want:
            energy += 0.5 * strength * charge[j] * smooth
            xx, xy, xz = xx + 0.5 * pull * dx * dx, xy + 0.5 * pull * dx * dy, xz + 0.5 * pull * dx * dz
            yy, yz, zz = yy + 0.5 * pull * dy * dy, yz + 0.5 * pull * dy * dz, zz + 0.5 * pull * dz * dz
    force[i, 0] += fx
    force[i, 1] += fy
    force[i, 2] += fz
    if want:
        share[0, i], share[1, i], share[2, i], share[3, i] = energy, xx, xy, xz
        share[4, i], share[5, i], share[6, i] = yy, yz, zz


class Exclusions:
    """The correction of excluded pairs: their reciprocal interaction is taken off.

    Args:
        topology: its `exclusions` are used.
        alpha: Ewald's parameter, 1/nm.
        tolerance: relative error of the smooth functions.
        where: device of the kernel.
    """

    def __init__(self, topology: Topology, alpha: float, tolerance: float = 1e-14, where: str = "cpu") -> None:
        self._tag_start, self._tag_partner = partners(topology.exclusions, len(topology))
        self.alpha, self._where, self._x_max = alpha, where, 4.0
        terms = ewald_polynomials(self._x_max, tolerance)
        while max(len(c) for c in terms) > _TERMS:
            self._x_max *= 0.9
            terms = ewald_polynomials(self._x_max, tolerance)
        self._terms = tuple(np.append(c, np.zeros(_TERMS - len(c))) for c in terms)
        self._tags = np.zeros(0, np.int64)
        self._start, self._partner, self._share = np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros((7, 0))

    def _locate(self, state: State) -> None:
        """Find the rows of the partners of every owned atom; a partner that is both owned and a ghost is taken as owned."""
        if np.array_equal(state.tag_n, self._tags) and self._share.shape[1] == state.owned:
            return
        tags = state.tag_n.copy()
        row = np.full(len(self._tag_start) - 1, -1, np.int64)
        row[tags[state.owned :]] = np.arange(state.owned, len(tags))
        row[tags[: state.owned]] = np.arange(state.owned)
        mine = tags[: state.owned]
        counts = self._tag_start[mine + 1] - self._tag_start[mine]
        self._start = np.concatenate([[0], np.cumsum(counts)])
        entries = np.arange(self._start[-1]) + np.repeat(self._tag_start[mine] - self._start[:-1], counts)
        self._partner = row[self._tag_partner[entries]]
        absent = np.flatnonzero(self._partner < 0)
        if absent.size:
            here, there = np.repeat(mine, counts)[absent[0]] + 1, self._tag_partner[entries[absent[0]]] + 1
            message = f"atom {there}, excluded from atom {here}, is not within reach of this rank"
            raise InputError(message, hint="use fewer ranks, or look for a bond across the box in the input")
        self._tags, self._share = tags, np.zeros((7, state.owned))

    def add(self, state: State, want: bool) -> tuple[float, Array]:
        """Add forces on owned atoms; return this rank's energy and virial (zeros unless `want`)."""
        self._locate(state)
        if not self._partner.size:
            return 0.0, np.zeros((3, 3))
        near = min(self._x_max, (0.5 * self.alpha * float(heights(state.box_33).min())) ** 2)  # closer is the nearest image
        arguments = (int(want), self.alpha, near, self._x_max, state.position_n3, state.charge_n, self._start, self._partner)
        correct_excluded.launch(self._where, state.owned, *arguments, state.box_33, *self._terms, state.force_n3, self._share)
        total = self._share.sum(axis=1) if want else np.zeros(7)
        return float(total[0]), symmetric(total[1:])


def self_energy(state: State, alpha: float) -> float:
    """Return the self energy of the owned charges, kJ/mol."""
    return -COULOMB * alpha / math.sqrt(math.pi) * float(np.dot(state.charge_n[: state.owned], state.charge_n[: state.owned]))


def background_energy(state: State, alpha: float, ranks: Ranks = SERIAL) -> float:
    """Return the energy of the charges in the uniform background that neutralises them, kJ/mol (of all ranks together)."""
    net = ranks.allreduce(float(state.charge_n[: state.owned].sum()))
    return -COULOMB * math.pi * net * net / (2.0 * state.volume * alpha * alpha)
