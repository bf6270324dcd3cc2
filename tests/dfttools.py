"""Crystals, ions and a solver for the tests of plane-wave DFT, each in a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gewu.core.arrays import Arrays, arrays
from gewu.core.context import QuietContext
from gewu.core.errors import ResourceError
from gewu.formats import GthPseudo, RadialPseudo, builtin_gth
from gewu.physics.dft import Basis, Crystal, Ion, ScfOptions, ScfSolver, grid_shape, make_ion, reduce_mesh, space_group
from gewu.physics.dft.hamiltonian import Hamiltonian
from gewu.physics.dft.potential import LocalPotential
from gewu.physics.dft.scf import GroundState
from gewu.physics.dft.symmetry import IDENTITY
from tests.strictdevice import strict_arrays

DEVICES = ("scipy", "fftw", "strict", "cuda")
FCC = np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
BCC = np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]])
HEX = np.array([[0.5, -np.sqrt(0.75), 0.0], [0.5, np.sqrt(0.75), 0.0], [0.0, 0.0, 1.0]])


def on_device(name: str, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """Return the arrays of one of `DEVICES`: NumPy with SciPy's or FFTW's transforms, the strict device, a GPU; skip what is
    absent."""
    if name == "strict":
        return strict_arrays()
    if name == "cuda":
        try:
            return arrays("cuda")
        except ResourceError as error:
            pytest.skip(str(error))
    if name == "fftw":
        pytest.importorskip("pyfftw")
    monkeypatch.setenv("GEWU_FFT", name)
    return arrays("cpu")


def silicon(a: float = 10.26, shift: Sequence[float] = (0.0, 0.0, 0.0)) -> Crystal:
    """Return the primitive cell of diamond-structure silicon, moved by `shift` (fractions)."""
    return Crystal(a * FCC, ("Si", "Si"), np.array([[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]]) + np.asarray(shift))


def aluminium(a: float = 7.65) -> Crystal:
    """Return the primitive cell of fcc aluminium."""
    return Crystal(a * FCC, ("Al",), np.zeros((1, 3)))


def hexagonal(symbols: tuple[str, str], a: float, c_over_a: float) -> Crystal:
    """Return the hexagonal close-packed cell (P6_3/mmc when the two symbols are equal)."""
    scale = np.diag([1.0, 1.0, c_over_a])
    return Crystal(a * HEX @ scale, symbols, np.array([[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]))


def low_symmetry() -> Crystal:
    """Return a triclinic cell with silicon and carbon at general positions: nothing cancels by symmetry."""
    lattice = np.array([[6.1, 0.3, -0.4], [0.7, 5.8, 0.5], [-0.2, 0.9, 6.4]])
    return Crystal(lattice, ("Si", "C"), np.array([[0.03, 0.11, 0.07], [0.46, 0.57, 0.38]]))


def make_ions(crystal: Crystal, cutoff_ha: float, family: str = "pbe", **pseudos: GthPseudo | RadialPseudo) -> dict[str, Ion]:
    """Return GTH ions of the shipped table for the elements of a crystal, unless `pseudos` names another."""
    q_max = 2 * np.sqrt(2 * cutoff_ha) * 1.01
    return {s: make_ion(pseudos.get(s) or builtin_gth(s, family), q_max) for s in crystal.species}


def make_basis(crystal: Crystal, cutoff_ha: float, device: Arrays | None = None, grid: Sequence[int] | None = None) -> Basis:
    """Return a basis on the smallest grid that the space group maps onto itself."""
    shape = tuple(grid) if grid else grid_shape(crystal, cutoff_ha, space_group(crystal).translations)
    return Basis(crystal, cutoff_ha, shape, device or arrays("cpu"))  # type: ignore[arg-type]


def make_solver(
    crystal: Crystal,
    cutoff_ha: float = 8.0,
    mesh: tuple[int, int, int] = (2, 2, 2),
    *,
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
    symmetry: bool = True,
    grid: Sequence[int] | None = None,
    device: Arrays | None = None,
    ions: dict[str, Ion] | None = None,
    ctx: Any = None,
    **options: Any,
) -> ScfSolver:
    """Return a solver for a crystal with GTH pseudopotentials; `options` are those of `ScfOptions`."""
    settings = ScfOptions(**{"tolerance_ha": 1e-10, **options})
    points, group = reduce_mesh(mesh, shift, space_group(crystal) if symmetry else IDENTITY)
    family = settings.functional.split("-")[0]
    ions = ions or make_ions(crystal, cutoff_ha, family)
    return ScfSolver(make_basis(crystal, cutoff_ha, device, grid), ions, points, group, settings, ctx)


def ground_state(crystal: Crystal, cutoff_ha: float = 8.0, mesh: tuple[int, int, int] = (2, 2, 2), **more: Any) -> GroundState:
    """Return the converged ground state (see `make_solver`)."""
    ground = make_solver(crystal, cutoff_ha, mesh, **more).run()
    assert ground is not None
    assert ground.converged
    return ground


def with_potential(
    crystal: Crystal, cutoff_ha: float, k: Sequence[float], functional: str = "pbe", device: Arrays | None = None
) -> Hamiltonian:
    """Return the Hamiltonian at k in the potential of the superposed atoms: a realistic one without a cycle."""
    basis, ions = make_basis(crystal, cutoff_ha, device), make_ions(crystal, cutoff_ha, functional.split("-")[0])
    potential = LocalPotential(basis, ions, functional)
    h = Hamiltonian(basis, basis.sphere(np.asarray(k, float)), ions)
    h.potential = potential(basis.arrays.put(potential.rho_guess_g))[0]
    return h


def random_waves(h: Hamiltonian, bands: int, seed: int) -> np.ndarray:
    """Return random vectors (bands, npw) with the decay of smooth functions."""
    rng = np.random.default_rng(seed)
    c = rng.normal(size=(bands, h.npw)) + 1j * rng.normal(size=(bands, h.npw))
    return c / (1 + h.sphere.kinetic)


def orthonormal(psi: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the rows."""
    return np.linalg.qr(psi.T)[0].T


class Stopping(QuietContext):
    """A context that asks the engine to stop after it was asked `after` times whether to."""

    def __init__(self, after: int) -> None:
        self.left = after
        super().__init__()

    @property  # type: ignore[override]
    def stop_requested(self) -> bool:
        """True from the (`after` + 1)-th time on."""
        self.left -= 1
        return self.left < 0

    @stop_requested.setter
    def stop_requested(self, value: bool) -> None:
        """Ignore the default that `QuietContext` sets."""
