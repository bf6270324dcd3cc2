"""Coulomb energy of periodic charges by Ewald's sum: the plain reference, and the pieces that smooth PME shares with it.

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
from scipy.special import erfc, erfcinv

from gewu.core.device import device, nonneg
from gewu.core.errors import InputError
from gewu.core.kernel import kernel
from gewu.core.ranks import SERIAL, Ranks
from gewu.physics.md.box import heights, minimum_image
from gewu.physics.md.erfc import ewald_polynomials
from gewu.physics.md.state import Array, Evaluation, Index, State, Topology
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
def correct_excluded(
    i: int,
    want: int,
    alpha: float,
    near: float,
    x_max: float,
    position: Any,
    charge: Any,
    start: Any,
    partner: Any,
    box: Any,
    force_terms: Any,
    energy_terms: Any,
    force: Any,
    share: Any,
) -> None:
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


def symmetric(six: Array) -> Array:
    """Return the symmetric (3, 3) of xx, xy, xz, yy, yz, zz."""
    return six[[[0, 1, 2], [1, 3, 4], [2, 4, 5]]]


class Exclusions:
    """The correction of excluded pairs: their reciprocal interaction is taken off.

    Args:
        topology: its `exclusions` are used.
        alpha: Ewald's parameter, 1/nm.
        tolerance: relative error of the smooth functions.
        where: device of the kernel.
    """

    def __init__(self, topology: Topology, alpha: float, tolerance: float = 1e-14, where: str = "cpu") -> None:
        pairs = np.asarray(topology.exclusions, np.int64).reshape(-1, 2)
        both = np.concatenate([pairs, pairs[:, ::-1]])
        both = both[np.lexsort((both[:, 1], both[:, 0]))]
        self._tag_start, self._tag_partner = np.searchsorted(both[:, 0], np.arange(len(topology) + 1)), both[:, 1].copy()
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


class Ewald:
    """The reciprocal sum, term by term: a reference for PME, of cost (atoms) x (vectors).  One rank.

    Args:
        topology: exclusions.
        alpha: Ewald's parameter, 1/nm.
        kmax: largest index of the reciprocal vectors along each axis.
        k_cutoff: leave out vectors with 2 pi |m| above this, 1/nm.
    """

    def __init__(self, topology: Topology, alpha: float, kmax: tuple[int, int, int], k_cutoff: float = math.inf) -> None:
        self.alpha, self.k_cutoff = alpha, k_cutoff
        axes = np.meshgrid(*(np.arange(-k, k + 1) for k in kmax), indexing="ij")
        vectors = np.stack(axes, -1).reshape(-1, 3)
        self._half = vectors[len(vectors) // 2 + 1 :]  # the other half are their opposites, the middle one is 0
        self._exclusions = Exclusions(topology, alpha)

    def reciprocal(self, state: State) -> tuple[float, Array, Array]:
        """Return energy, forces and virial of the sum over reciprocal vectors."""
        m = self._half @ np.linalg.inv(state.box_33).T
        m = m[2.0 * math.pi * np.linalg.norm(m, axis=1) <= self.k_cutoff]
        m2, charge = (m * m).sum(axis=1), state.charge_n
        factor = 2.0 * COULOMB / (2.0 * math.pi * state.volume) * np.exp(-((math.pi / self.alpha) ** 2) * m2) / m2
        energy, virial, force = 0.0, np.zeros((3, 3)), np.zeros_like(state.position_n3)
        chunk = max(1, 4_000_000 // max(1, len(charge)))
        for low in range(0, len(m), chunk):
            part, c = m[low : low + chunk], factor[low : low + chunk]
            phase = np.exp(2j * math.pi * (part @ state.position_n3.T))
            s = phase @ charge
            each = c * np.abs(s) ** 2
            energy += float(each.sum())
            spring = 2.0 * each * (1.0 / m2[low : low + chunk] + (math.pi / self.alpha) ** 2)
            virial += each.sum() * np.eye(3) - np.einsum("m,ma,mb->ab", spring, part, part)
            force += 4.0 * math.pi * charge[:, None] * ((np.conj(s) * c)[:, None] * phase).imag.T @ part
        return energy, force, virial

    def parts(self, state: State) -> dict[str, float]:
        """Return the energies reciprocal, self, background and excluded, kJ/mol; adds forces as `compute` does."""
        energy, force, self.virial_33 = self.reciprocal(state)
        state.force_n3 += force
        excluded, virial = self._exclusions.add(state, True)
        background = background_energy(state, self.alpha)
        self.virial_33 += virial + background * np.eye(3)
        return {"reciprocal": energy, "self": self_energy(state, self.alpha), "background": background, "excluded": excluded}

    def compute(self, state: State, want: bool) -> Evaluation | None:
        """Add forces; return the energy under its name, and the virial."""
        energy = sum(self.parts(state).values())
        return Evaluation({NAME: energy}, self.virial_33) if want else None


def real_space(state: State, alpha: float, cutoff_nm: float, exclusions: Index) -> tuple[float, Array, Array]:
    """Return energy, forces and virial of the real-space sum over all images within the cutoff, pair by pair (a reference).

    An excluded pair is left out at its nearest image only.
    """
    n, box, inverse = len(state.position_n3), state.box_33, np.linalg.inv(state.box_33)
    reach = np.floor(cutoff_nm / heights(box) + 0.5).astype(int)
    cells = np.stack(np.meshgrid(*(np.arange(-k, k + 1) for k in reach), indexing="ij"), -1).reshape(-1, 3) @ box
    both = np.concatenate([exclusions, exclusions[:, ::-1]]).astype(np.int64)
    energy, force, virial = 0.0, np.zeros((n, 3)), np.zeros((3, 3))
    for i in range(n):
        nearest = state.position_n3[i] - state.position_n3
        d = nearest - np.rint(nearest @ inverse) @ box + cells[:, None]
        r2 = (d * d).sum(axis=-1)
        r2[r2[:, i] < 1e-20, i] = math.inf
        skipped = both[both[:, 0] == i, 1]
        r2[r2[:, skipped].argmin(axis=0), skipped] = math.inf
        image, j = np.nonzero(r2 < cutoff_nm**2)
        d, r2 = d[image, j], r2[image, j]
        r, q = np.sqrt(r2), COULOMB * state.charge_n[i] * state.charge_n[j]
        u = q * erfc(alpha * r) / r
        f = d * ((u + q * 2.0 * alpha / math.sqrt(math.pi) * np.exp(-alpha * alpha * r2)) / r2)[:, None]
        energy, virial = energy + 0.5 * float(u.sum()), virial + 0.5 * d.T @ f
        force[i] = f.sum(axis=0)
    return energy, force, virial
