"""Sums over all pairs and over all reciprocal vectors, as the formulas say them: what every faster path is held against."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erfc

from gewu.formats.forcefield.graph import partners
from gewu.physics.md.box import heights
from gewu.physics.md.ewald import NAME, Exclusions, background_energy, self_energy
from gewu.physics.md.pairs import NonBonded
from gewu.physics.md.plain import Images, constants, images_box, named_energies
from gewu.physics.md.state import Array, Evaluation, Index, State, Topology
from gewu.physics.md.units import COULOMB


def brute_force(state: State, topology: Topology, settings: NonBonded, images: Images | None = None) -> tuple[Evaluation, Array]:
    """Sum over all pairs in float64 NumPy: the reference of every other path.

    Args:
        state: owned rows act as i, all rows as j.
        topology: parameters and exclusions, by rows of the state.
        settings: cutoff and variants.
        images: along which box vectors periodic images are taken; default: all when the state is periodic.
    Returns:
        Energies and virial (this rank's half of each pair), and (owned, 3) forces.
    """
    c, n, box = constants(settings), len(state.position_n3), images_box(state, images)[0]
    start, excluded = partners(topology.exclusions, len(topology))
    force, virial, energy = np.zeros((state.owned, 3)), np.zeros((3, 3)), np.zeros(2)
    chunk = max(1, 2**20 // n)
    for low in range(0, state.owned, chunk):
        i = np.arange(low, min(low + chunk, state.owned))
        d = state.position_n3[i, None] - state.position_n3[None]
        for axis in (2, 1, 0):
            d -= np.floor(d[..., axis, None] / box[axis, axis] + 0.5) * box[axis]
        r = np.sqrt((d**2).sum(-1))
        inside = r < c.cutoff
        inside[np.arange(len(i)), i] = False
        for k, atom in enumerate(i):
            inside[k, excluded[start[atom] : start[atom + 1]]] = False
        row, j = np.nonzero(inside)
        d, r, i = d[row, j], r[row, j], i[row]
        types, qq = (state.type_n[i], state.type_n[j]), COULOMB * state.charge_n[i] * state.charge_n[j]
        c6 = 4 * topology.epsilon_tt[types] * topology.sigma_tt[types] ** 6
        c12 = c6 * topology.sigma_tt[types] ** 6
        energy[0] += (c12 * (r**-12 - c.s12 + (r - c.edge) * c.d12) - c6 * (r**-6 - c.s6 + (r - c.edge) * c.d6)).sum()
        screen = c.screened * erfc(c.alpha * r) + c.bare
        energy[1] += (qq * (screen / r + c.k_rf * r**2 - c.c_rf)).sum()
        slope = c.screened * 2 * c.alpha / math.sqrt(math.pi) * np.exp(-((c.alpha * r) ** 2))
        strength = c12 * (12 * r**-13 - c.d12) - c6 * (6 * r**-7 - c.d6) + qq * (screen / r**2 + slope / r - 2 * c.k_rf * r)
        f = (strength / r)[:, None] * d
        np.add.at(force, i, f)
        virial += d.T @ f
    return Evaluation(named_energies(0.5 * energy, settings), 0.5 * virial), force


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
