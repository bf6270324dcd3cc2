"""The self-consistent cycle: density -> potential -> orbitals -> density.

Each iteration diagonalises H[rho_in] at every k point to a tolerance that follows the error of the density, fills the bands,
builds and symmetrises rho_out, and mixes. Two energies bracket the answer: Harris and Foulkes' from rho_in (no extra work,
correct to second order, usually from below) and Kohn and Sham's from the orbitals and rho_out (from above). The cycle has
converged when

    the Coulomb energy of rho_out - rho_in,  |E_KS - E_HF|,  and  residual^2 of every occupied band

are all below the tolerance: a density can look converged while slow states, invisible in it, are not.

k points are shared out over ranks. Each rank adds its densities as 64-bit integers in units of 2^-52 electrons/bohr^3, so the
sum, and with it every number of the run, is the same to the last bit on any number of ranks.

References: Kohn and Sham, Phys. Rev. 140, A1133 (1965); Harris, PRB 31, 1770 (1985); Foulkes and Haydock, PRB 39, 12520 (1989).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np

from gewu.core.arrays import Array
from gewu.core.context import Context, QuietContext, State
from gewu.core.errors import ConvergenceError, InputError
from gewu.physics.dft.basis import Basis
from gewu.physics.dft.eigen import davidson, start_vectors
from gewu.physics.dft.gamma import hamiltonian_at
from gewu.physics.dft.kparallel import blas_threads, in_order, mine, on_threads
from gewu.physics.dft.mixing import AndersonMixer
from gewu.physics.dft.occupation import Occupations, check_insulator, occupy
from gewu.physics.dft.potential import DensityEnergies, LocalPotential
from gewu.physics.dft.pseudo import Ion
from gewu.physics.dft.symmetry import IDENTITY, KMesh, SpaceGroup, Symmetriser

DENSITY_UNIT = 2.0**-52
FIRST_TOLERANCE = 1e-3  # band residual, Ha^2, of the first iteration
NOTHING = 1e-16  # electrons below which a state adds no density
OCCUPIED = 1e-4  # electrons from which a band's residual counts
EMPTY = 10.0  # factor by which residuals of other bands may be larger
NOISE = 1.0  # first bands whose error may exceed the density's by this factor are solved again before mixing
SHARE = 0.02  # bands are converged to this share of the density error per electron


@dataclass(frozen=True)
class ScfOptions:
    """Settings of the cycle.

    Args:
        functional: exchange-correlation functional.
        smearing: see `occupation.SMEARINGS`.
        width_ha: smearing width.
        bands: number of bands, 0 for automatic.
        tolerance_ha: accuracy of the total energy.
        max_iterations: give up after so many.
        seed: of the noise in the start vectors.
    """

    functional: str = "pbe"
    smearing: str = "none"
    width_ha: float = 0.0
    bands: int = 0
    tolerance_ha: float = 1e-9
    max_iterations: int = 60
    seed: int = 0


@dataclass(frozen=True, eq=False)
class GroundState:
    """What a finished cycle knows.

    Attributes:
        energies: terms in Ha: kinetic, nonlocal, local, hartree, xc, ewald, minus_ts; their sum is the total (free) energy.
        eps: (nk, bands) Ha.
        occupations: filling and Fermi level.
        rho_g: (ng,) valence density.
        rho_in: (ng,) the density whose potential the orbitals are eigenstates of.
        residual: (nk, bands) |H psi - eps psi|, Ha.
        history: (iterations, 3) energy, density error, largest band residual, Ha.
        converged: whether all criteria hold.
        applied: number of bands to which H was applied.
        seconds: wall time of the cycle, over all sessions of a run that was resumed.
    """

    energies: dict[str, float]
    eps: np.ndarray
    occupations: Occupations
    rho_g: np.ndarray
    rho_in: np.ndarray
    residual: np.ndarray
    history: np.ndarray
    converged: bool
    applied: int
    seconds: float

    @property
    def energy(self) -> float:
        """Total (free) energy of the cell, Ha."""
        return sum(self.energies.values())

    def to_state(self) -> dict[str, Any]:
        """Return this as a checkpoint state."""
        return {**vars(self), "occupations": self.occupations._asdict()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> GroundState:
        """Return the ground state of a checkpoint."""
        return cls(**{**state, "occupations": Occupations(**state["occupations"])})


@dataclass
class _Cycle:
    """The state that a checkpoint must keep."""

    rho_in: np.ndarray
    psi: list[Array]
    tolerance: float
    filled: np.ndarray  # (nk, bands) states that held electrons in the last iteration
    applied: int = 0
    seconds: float = 0.0
    history: list[tuple[float, float, float]] = field(default_factory=list)


class ScfSolver:
    """Self-consistent cycle on a basis and a set of k points.

    Args:
        basis: plane waves.
        ions: form factors by element.
        mesh: irreducible k points.
        group: operations under which the density is symmetrised.
        options: settings.
        ctx: the engine's context (ranks, progress, checkpoints).
    """

    def __init__(
        self,
        basis: Basis,
        ions: Mapping[str, Ion],
        mesh: KMesh,
        group: SpaceGroup = IDENTITY,
        options: ScfOptions = ScfOptions(),
        ctx: Context | None = None,
    ) -> None:
        self.basis, self.ions, self.mesh, self.options = basis, ions, mesh, options
        self.ctx: Context = ctx or QuietContext()
        with blas_threads(len(mesh.k)):
            self.potential = LocalPotential(basis, ions, options.functional)
            self.symmetrise = Symmetriser(basis, group)
        self.electrons = float(self.potential.charges.sum())
        self.bands = options.bands or default_bands(self.electrons, options.smearing)
        if options.smearing == "none":
            check_insulator(self.electrons)
        if 2 * self.bands < self.electrons:
            raise InputError(
                "too few bands for the electrons",
                key="dft.bands",
                value=self.bands,
                allowed=f"at least {default_bands(self.electrons, 'none')}",
            )
        self.mixer = AndersonMixer(basis, metal=options.smearing != "none")
        self.mine = mine(len(mesh.k), self.ctx.ranks)
        with blas_threads(len(mesh.k)):
            self.hamiltonians = on_threads(lambda i: hamiltonian_at(basis, mesh.k[i], ions), self.mine, basis.workers)
        self._prepare_transforms()
        short = [h.npw for h in self.hamiltonians if h.npw < self.bands]
        if short:
            raise InputError(
                "more bands than plane waves",
                key="dft.bands",
                value=self.bands,
                allowed=f"at most {min(short)}",
                hint="raise cutoff_ha",
            )

    def _prepare_transforms(self) -> None:
        """Plan the transforms on the root and let the other ranks choose the same algorithms."""
        arrays, ranks, box = self.basis.arrays, self.ctx.ranks, self.basis.sphere(self.mesh.k[0]).box
        if ranks.is_root:
            arrays.prepare(self.basis.grid, box)
        arrays.use_plans(ranks.bcast(arrays.plans()))
        arrays.prepare(self.basis.grid, box)

    def run(self) -> GroundState | None:
        """Iterate to self-consistency, or to the last iteration allowed (see `GroundState.converged`); None when told to stop."""
        kept = self.ctx.restored
        if kept is not None and "ground" in kept:
            return GroundState.from_state(kept["ground"])
        with blas_threads(len(self.mesh.k)):
            return self._iterate(self._begin(kept))

    def _iterate(self, cycle: _Cycle) -> GroundState | None:
        start = time.perf_counter() - cycle.seconds
        while True:
            v, by_density = self.local_potential(cycle.rho_in)
            self._require_finite(float(v.sum()), len(cycle.history) + 1)
            eps, residual = self._diagonalise(cycle, v)
            occupations = occupy(eps, self.mesh.weight, self.electrons, self.options.smearing, self.options.width_ha)
            cycle.filled = np.abs(occupations.f) > OCCUPIED
            rho_out = self._density(cycle.psi, occupations.f)
            harris = self._harris(eps, occupations, cycle.rho_in, v, by_density)
            self._require_finite(harris, len(cycle.history) + 1)
            error = self.mixer.norm(rho_out - cycle.rho_in)
            if cycle.tolerance == FIRST_TOLERANCE and FIRST_TOLERANCE * self.electrons > NOISE * error:
                cycle.tolerance = 0.1 * FIRST_TOLERANCE  # this error is mostly that of the bands: mix nothing from it
                continue
            worst = float(residual[cycle.filled].max())
            cycle.history.append((harris, error, worst))
            self.ctx.progress(len(cycle.history), None, energy_ha=harris, density_error_ha=error, band_residual_ha=worst)
            cycle.seconds = time.perf_counter() - start
            settled = max(error, worst**2) < self.options.tolerance_ha
            last = len(cycle.history) >= self.options.max_iterations
            if settled or last:
                energies = self._kohn_sham(cycle.psi, occupations, rho_out)
                settled = settled and abs(sum(energies.values()) - harris) < self.options.tolerance_ha
                if settled or last:
                    cycle.seconds = time.perf_counter() - start
                    return GroundState(
                        energies,
                        eps,
                        occupations,
                        rho_out,
                        cycle.rho_in,
                        residual,
                        np.array(cycle.history),
                        settled,
                        cycle.applied,
                        cycle.seconds,
                    )
            cycle.rho_in = self.mixer(cycle.rho_in, rho_out - cycle.rho_in)
            floor = 0.1 * SHARE * self.options.tolerance_ha / self.electrons
            cycle.tolerance = max(min(cycle.tolerance, SHARE * error / self.electrons), floor)
            stop = self.ctx.stop_requested
            self.ctx.checkpoint(self._state(cycle))
            if stop:
                return None

    def _begin(self, kept: State | None) -> _Cycle:
        if kept is None:
            expected = self.bands if self.options.smearing != "none" else self.electrons / 2
            filled = np.broadcast_to(np.arange(self.bands) < expected, (len(self.mesh.k), self.bands))
            return _Cycle(self.potential.rho_guess_g, [], FIRST_TOLERANCE, filled)
        self.basis.arrays.use_plans(kept["plans"])
        self.mixer.restore(kept["mixer"])
        psi = [self.basis.arrays.put(p) for p in kept["psi"]]
        history = [tuple(row) for row in kept["history"]]
        return _Cycle(kept["rho_in"], psi, kept["tolerance"], kept["filled"], kept["applied"], kept["seconds"], history)

    def _state(self, cycle: _Cycle) -> dict[str, Any]:
        get = self.basis.arrays.get
        return {
            "rho_in": cycle.rho_in,
            "psi": [get(p) for p in cycle.psi],
            "tolerance": cycle.tolerance,
            "filled": cycle.filled,
            "applied": cycle.applied,
            "seconds": cycle.seconds,
            "history": [list(row) for row in cycle.history],
            "mixer": self.mixer.state(),
            "plans": self.basis.arrays.plans(),
        }

    def local_potential(self, rho: np.ndarray) -> tuple[Array, DensityEnergies]:
        """Return the local potential and the energies of a density (ng,).

        The potential is symmetrised: on a grid that the group does not map onto itself, v_xc alone would break the symmetry.
        """
        arrays, basis = self.basis.arrays, self.basis
        v, energies = self.potential(arrays.put(rho))
        if not self.symmetrise.trivial:
            v = basis.to_grid(arrays.put(self.symmetrise(arrays.get(basis.to_sphere(v)))))
        return v, energies

    def _diagonalise(self, cycle: _Cycle, v: Array) -> tuple[np.ndarray, np.ndarray]:
        """Solve every k point of this rank in place; return energies and residuals (nk, bands) of all."""
        start = not cycle.psi
        if start:
            cycle.psi = [None] * len(self.mine)

        def solve(at: int) -> tuple[np.ndarray, np.ndarray, int]:
            h = self.hamiltonians[at]
            h.potential = v
            psi = start_vectors(h, self.bands, self.options.seed, self.mine[at]) if start else cycle.psi[at]
            tolerance = np.sqrt(cycle.tolerance) * np.where(cycle.filled[self.mine[at]], 1.0, EMPTY)
            pairs = davidson(h, psi, tolerance)
            cycle.psi[at] = pairs.psi
            return pairs.eps, pairs.residual, pairs.applied

        gathered = in_order(self.ctx.ranks.allgather(on_threads(solve, list(range(len(self.mine))), self.basis.workers)))
        cycle.applied += sum(applied for _, _, applied in gathered)
        return np.array([e for e, _, _ in gathered]), np.array([r for _, r, _ in gathered])

    def _density(self, psi: list[Array], f: np.ndarray) -> np.ndarray:
        """Return the symmetrised density (ng,) of orbitals filled with f (nk, bands)."""
        arrays, xp = self.basis.arrays, self.basis.arrays.xp
        total = xp.zeros(self.basis.grid, dtype=xp.int64)
        lock = Lock()

        def add(at: int) -> None:
            weight = self.mesh.weight[self.mine[at]] * f[self.mine[at]]
            occupied = np.flatnonzero(np.abs(weight) > NOTHING)
            filled = int(occupied[-1]) + 1 if len(occupied) else 0  # a k point outside the Fermi surface may hold nothing
            one = xp.zeros(self.basis.grid)
            self.hamiltonians[at].add_density(psi[at][:filled], arrays.put(weight[:filled]), one)
            whole = xp.rint(one / DENSITY_UNIT).astype(xp.int64)
            with lock:
                xp.add(total, whole, out=total)

        on_threads(add, list(range(len(self.mine))), self.basis.workers)
        summed = self.ctx.ranks.allreduce(arrays.get(total)) * DENSITY_UNIT
        return self.symmetrise(arrays.get(self.basis.to_sphere(arrays.put(summed))))

    def _harris(
        self, eps: np.ndarray, occupations: Occupations, rho_in: np.ndarray, v: Array, by_density: DensityEnergies
    ) -> float:
        band = float((self.mesh.weight[:, None] * occupations.f * eps).sum())
        v_rho = float((v * self.basis.to_grid(self.basis.arrays.put(rho_in))).sum()) * self.basis.dv
        return band - v_rho + sum(by_density) + self.potential.ewald + occupations.minus_ts

    def _kohn_sham(self, psi: list[Array], occupations: Occupations, rho_out: np.ndarray) -> dict[str, float]:
        """Return the terms of the Kohn-Sham energy of the orbitals and their own density."""
        arrays = self.basis.arrays
        rows = []
        for at, (index, h) in enumerate(zip(self.mine, self.hamiltonians, strict=True)):
            weight = self.mesh.weight[index] * occupations.f[index]
            terms = (h.kinetic_energy(psi[at]), h.nonlocal_energy(psi[at]))
            rows.append(tuple(float(weight @ arrays.get(t)) for t in terms))
        gathered = in_order(self.ctx.ranks.allgather(rows))
        local, hartree, xc = self.potential(arrays.put(rho_out))[1]
        return {
            "kinetic": sum(t for t, _ in gathered),
            "nonlocal": sum(n for _, n in gathered),
            "local": local,
            "hartree": hartree,
            "xc": xc,
            "ewald": self.potential.ewald,
            "minus_ts": occupations.minus_ts,
        }

    def _require_finite(self, value: float, iteration: int) -> None:
        if not np.isfinite(value):
            raise ConvergenceError(
                f"the energy is not finite in SCF iteration {iteration}", hint="check structure and pseudopotentials"
            )


def default_bands(electrons: float, smearing: str) -> int:
    """Return the number of bands of an automatic choice: the filled ones and some more, 20 % (at least 4) for smeared metals."""
    filled = int(np.ceil(electrons / 2))
    return filled + max(4, -(-filled // 5))
