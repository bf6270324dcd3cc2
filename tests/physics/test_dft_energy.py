"""The total energy: variational, and invariant under everything that leaves the crystal what it is.

The exchange-correlation energy is a sum over grid points of a function that is not band-limited ("egg-box" error), so it
depends on how atoms
and grid lie to each other: 5e-7 Ha on the smallest grid here. Tests of invariance that move atoms against the grid use
the LDA and a
grid dense enough that this error is below the 1e-8 Ha asked for; those that keep atoms and grid together need neither.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.linalg import eigh_tridiagonal
from scipy.special import erf

from gewu.core.context import QuietContext
from gewu.core.errors import InputError
from gewu.formats import GthPseudo, builtin_gth
from gewu.physics.dft import Crystal, ScfOptions, ScfSolver, grid_shape, make_ion, reduce_mesh, space_group
from gewu.physics.dft.eigen import davidson, start_vectors
from gewu.physics.dft.hamiltonian import Hamiltonian
from gewu.physics.dft.potential import LocalPotential
from gewu.physics.dft.scf import GroundState, default_bands
from tests.dfttools import BCC, Stopping, aluminium, ground_state, low_symmetry, make_basis, make_ions, make_solver, silicon

ENERGY = 1e-8  # Ha, asked for by the issue; cycles converge to 1e-10


def turned(crystal: Crystal, seed: int = 3) -> Crystal:
    """Return the crystal turned in space by a random proper rotation."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return Crystal(crystal.lattice @ (q * np.sign(np.linalg.det(q))), crystal.symbols, crystal.frac)


def test_variational_in_the_cutoff() -> None:
    grid = grid_shape(silicon(), 20.0)  # one grid for all, so that only the basis grows
    energies = [
        ground_state(silicon(), cutoff, grid=grid, functional="lda").energy for cutoff in (4.0, 6.0, 8.0, 11.0, 15.0, 20.0)
    ]
    steps = np.diff(energies)
    assert (steps < 0).all()
    assert (np.diff(np.abs(steps)) < 0).all()  # and it converges
    assert abs(steps[-1]) < 2e-3


@pytest.mark.parametrize("shift", [(0.31, 0.07, 0.19), (0.0123, 0.0, 0.0)])
def test_translation(shift: tuple[float, float, float]) -> None:
    grid = (48, 48, 48)  # the egg-box error of the LDA: 5e-7 Ha on 20 points, the smallest grid, 6e-9 on 36, 3e-10 on 48
    here, there = (ground_state(silicon(shift=s), 8.0, functional="lda", grid=grid).energy for s in ((0.0, 0.0, 0.0), shift))
    assert there == pytest.approx(here, abs=ENERGY)


def test_translation_by_grid_steps_moves_atoms_with_the_grid() -> None:
    here = ground_state(silicon(), 8.0, grid=(20, 20, 20)).energy
    there = ground_state(silicon(shift=(0.15, 0.05, -0.4)), 8.0, grid=(20, 20, 20)).energy
    assert there == pytest.approx(here, abs=1e-9)


@pytest.mark.parametrize("functional", ["lda", "pbe"])
def test_rotation_of_the_crystal_in_space(functional: str) -> None:
    for crystal in (silicon(), low_symmetry()):
        here, there = (ground_state(c, 6.0, functional=functional).energy for c in (crystal, turned(crystal)))
        assert there == pytest.approx(here, abs=ENERGY)


def test_rotation_of_a_metal() -> None:
    smearing = {"smearing": "marzari-vanderbilt", "width_ha": 0.02}
    here, there = (ground_state(c, 8.0, (3, 3, 3), **smearing).energy for c in (aluminium(), turned(aluminium())))
    assert there == pytest.approx(here, abs=ENERGY)


def test_order_and_images_of_atoms() -> None:
    crystal = low_symmetry()
    here = ground_state(crystal, 6.0).energy
    swapped = Crystal(crystal.lattice, crystal.symbols[::-1], crystal.frac[::-1])
    assert ground_state(swapped, 6.0).energy == pytest.approx(here, abs=1e-9)
    image = Crystal(crystal.lattice, crystal.symbols, crystal.frac + np.array([[1, 0, -1], [0, 2, 0]]))
    assert ground_state(image, 6.0).energy == pytest.approx(here, abs=1e-9)


@pytest.mark.parametrize("functional", ["lda", "pbe"])
def test_supercell_at_folded_k_points(functional: str) -> None:
    """Two cells with one k point along the doubled axis are one cell with two: same waves, same grid points, same energy per
    cell."""
    cell = silicon()
    double = Crystal(
        np.diag([2, 1, 1]) @ cell.lattice,
        ("Si",) * 4,
        np.concatenate([(cell.frac + np.eye(3)[0] * i) / [2, 1, 1] for i in (0, 1)]),
    )
    more: dict[str, Any] = {"functional": functional, "symmetry": False, "tolerance_ha": 1e-12}  # bands are good to its root
    small = make_solver(cell, 6.0, (2, 2, 2), grid=(18, 18, 18), **more)
    large = make_solver(double, 6.0, (1, 2, 2), grid=(36, 18, 18), **more)
    one, two = small.run(), large.run()
    assert one is not None and two is not None
    assert two.energy / 2 == pytest.approx(one.energy, abs=ENERGY)
    for k, eps in zip(large.mesh.k, two.eps, strict=True):
        folded = [e for q, e in zip(small.mesh.k, one.eps, strict=True) if np.allclose(q[1:], k[1:])]
        assert len(folded) == 2  # 0 and 1/2 along the doubled axis
        np.testing.assert_allclose(
            eps[:8], np.sort(np.concatenate([e[:4] for e in folded])), atol=1e-6
        )  # first order in the density


def test_supercell_of_a_metal() -> None:
    cell, smearing = aluminium(), {"smearing": "gaussian", "width_ha": 0.02, "symmetry": False}
    double = Crystal(np.diag([1, 2, 1]) @ cell.lattice, ("Al",) * 2, np.array([[0, 0, 0], [0, 0.5, 0]]))
    one = ground_state(cell, 6.0, (2, 2, 2), grid=(15, 15, 15), bands=8, **smearing)
    two = ground_state(double, 6.0, (2, 1, 2), grid=(15, 30, 15), bands=16, **smearing)
    # both cut off the tail of the smearing at their last band, where it is below 1e-9 electrons
    assert two.energy / 2 == pytest.approx(one.energy, abs=ENERGY)
    assert two.occupations.mu == pytest.approx(one.occupations.mu, abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"smearing": "methfessel-paxton", "width_ha": 0.01}])
def test_the_seed_does_not_matter(options: dict[str, object]) -> None:
    energies = [ground_state(silicon(), 6.0, seed=seed, **options).energy for seed in (0, 1, 2**40)]
    assert np.ptp(energies) < 2e-10  # twice the tolerance of the cycle
    assert ground_state(silicon(), 6.0, seed=7, **options).energy == ground_state(silicon(), 6.0, seed=7, **options).energy


def test_the_two_energies_bracket_the_answer() -> None:
    """Kohn and Sham's energy lies above the answer, Harris and Foulkes' (usually) below; both errors are of second order."""
    exact = ground_state(silicon(), 6.0, tolerance_ha=1e-12).energy
    for iterations in (1, 2, 3, 4):
        stopped = make_solver(silicon(), 6.0, max_iterations=iterations).run()
        assert stopped is not None and not stopped.converged
        harris, error, _ = stopped.history[-1]
        assert stopped.energy > exact - 1e-11
        assert abs(stopped.energy - exact) < 20 * error + 1e-11
        assert abs(harris - exact) < 20 * error + 1e-5 * (iterations == 1)


def test_converged_says_what_it_means() -> None:
    solver = make_solver(silicon(), 6.0, tolerance_ha=1e-9)
    ground = solver.run()
    assert ground is not None and ground.converged
    exact = ground_state(silicon(), 6.0, tolerance_ha=1e-12)
    assert ground.energy == pytest.approx(exact.energy, abs=1e-9)
    harris, error, worst = ground.history[-1]
    assert max(error, worst**2, abs(harris - ground.energy)) < 1e-9
    assert ground.residual[:, :4].max() == worst
    assert ground.energy == pytest.approx(sum(ground.energies.values()), abs=1e-14)
    assert set(ground.energies) == {"kinetic", "nonlocal", "local", "hartree", "xc", "ewald", "minus_ts"}
    rho = solver.basis.to_grid(ground.rho_g)
    assert float(rho.sum()) * solver.basis.dv == pytest.approx(8.0, abs=1e-11)  # electrons; fixed-point sums of 2^-52
    assert rho.min() > 0


def test_the_level_of_one_electron_at_a_soft_proton_is_that_of_the_radial_equation() -> None:
    """-erf(r/sqrt2 s)/r in a large box against u'' on a radial mesh: kinetic energy, local potential and their units at once."""
    s, box = 0.8, 20.0
    r = np.arange(1, 2001) * 0.01
    level, u = eigh_tridiagonal(1e4 - erf(r / (np.sqrt(2) * s)) / r, np.full(1999, -0.5e4), select="i", select_range=(0, 0))
    crystal = Crystal(box * np.eye(3), ("H",), np.full((1, 3), 0.5))
    ion = make_ion(GthPseudo("H", 1, "lda", "soft", s, (0.0,), (), "here"), 10.0)
    basis = make_basis(crystal, 4.0)
    h = Hamiltonian(basis, basis.sphere(np.zeros(3)), {"H": ion})
    h.potential = LocalPotential(basis, {"H": ion}, "lda").v_ion
    eps = davidson(h, start_vectors(h, 2, 0, 0), np.array([1e-6, 1e-2])).eps[0]
    # -1/r of one cell and the background become -1/r + 2.837297/L - 2 pi r^2/(3 L^3) near the proton (Makov and Payne, PRB
    # 51, 4014, 1995);
    # what is left, overlap with the images above all, is 1e-3 at L = 14
    # and 2e-5 at L = 20, the radial mesh's error.
    square = float(u[:, 0] ** 2 @ r**2)
    assert eps == pytest.approx(level[0] + 2.837297 / box - 2 * np.pi * square / (3 * box**3), abs=1e-4)


@pytest.mark.parametrize("functional", ["lda", "pbe", "pbesol", "pbe-libxc"])
def test_all_functionals_converge(functional: str) -> None:
    energy = ground_state(silicon(), 6.0, functional=functional).energy
    assert -8.0 < energy < -7.5


def test_functionals_differ_as_their_constants_do() -> None:
    pbe, exact = (ground_state(silicon(), 8.0, functional=f).energy for f in ("pbe", "pbe-libxc"))
    # A = 0.031091 instead of 0.0310906909 in the correlation: 0.83 microrydberg an atom: so many microhartree for two
    assert (exact - pbe) * 1e6 == pytest.approx(0.83, abs=0.03)


@pytest.mark.parametrize("smearing", ["gaussian", "fermi-dirac", "marzari-vanderbilt", "methfessel-paxton"])
def test_metals_converge_and_smearings_agree_for_small_widths(smearing: str) -> None:
    ground = ground_state(aluminium(), 6.0, (4, 4, 4), smearing=smearing, width_ha=0.01)
    assert len(ground.history) < 20
    electrons = float(
        (make_solver(aluminium(), 6.0, (4, 4, 4), smearing=smearing, width_ha=0.01).mesh.weight @ ground.occupations.f).sum()
    )
    assert electrons == pytest.approx(3.0, abs=1e-9)
    reference = ground_state(aluminium(), 6.0, (4, 4, 4), smearing="marzari-vanderbilt", width_ha=0.01)
    # E - TS/2 estimates the energy at zero width for the positive smearings (Gaussian exactly to second order); the coarse
    # mesh leaves 1 mHa
    middle = ground.energy - (0.5 * ground.energies["minus_ts"] if smearing in ("gaussian", "fermi-dirac") else 0.0)
    assert middle == pytest.approx(reference.energy, abs=4e-3)


def test_the_free_energy_derives_from_the_width_by_the_entropy() -> None:
    """F is variational, so dF/d(width) = -TS/width for one-parameter smearings: a test of the whole metallic cycle."""
    step, width = 2e-4, 0.02
    options = {"smearing": "fermi-dirac", "bands": 10, "tolerance_ha": 1e-12}
    plus, here, minus = (
        ground_state(aluminium(), 6.0, (3, 3, 3), width_ha=w, **options) for w in (width + step, width, width - step)
    )
    numeric = (plus.energy - minus.energy) / (2 * step)
    assert numeric == pytest.approx(here.energies["minus_ts"] / width, rel=1e-4)  # third derivative x step^2: 1e-4 of it


def test_default_bands() -> None:
    assert default_bands(8.0, "none") == 8
    assert default_bands(11.0, "gaussian") == 10
    assert default_bands(80.0, "gaussian") == 48


def test_too_few_bands_are_refused() -> None:
    with pytest.raises(InputError, match="too few bands") as error:
        make_solver(silicon(), 6.0, bands=3)
    assert error.value.key == "dft.bands"


def test_more_bands_than_plane_waves_are_refused() -> None:
    with pytest.raises(InputError, match="more bands than plane waves"):
        make_solver(silicon(), 1.0, bands=60)


def test_every_band_of_the_basis_can_be_asked_for() -> None:
    solver = make_solver(silicon(), 1.5, (1, 1, 1))
    npw = solver.hamiltonians[0].npw
    ground = make_solver(silicon(), 1.5, (1, 1, 1), bands=npw).run()
    assert ground is not None and ground.converged and ground.eps.shape == (1, npw)


def test_a_cycle_resumes_from_its_checkpoint_with_the_same_bits() -> None:
    whole = make_solver(silicon(), 6.0, smearing="gaussian", width_ha=0.01).run()
    assert whole is not None
    for after in (0, 1, 4):
        ctx = Stopping(after)
        assert make_solver(silicon(), 6.0, smearing="gaussian", width_ha=0.01, ctx=ctx).run() is None
        resumed = make_solver(silicon(), 6.0, smearing="gaussian", width_ha=0.01, ctx=QuietContext(restored=ctx.state)).run()
        assert resumed is not None
        assert resumed.energy == whole.energy
        np.testing.assert_array_equal(resumed.eps, whole.eps)
        np.testing.assert_array_equal(resumed.rho_g, whole.rho_g)
        np.testing.assert_array_equal(resumed.history, whole.history)


def test_a_finished_cycle_is_not_repeated() -> None:
    ground = ground_state(silicon(), 6.0)
    again = make_solver(silicon(), 6.0, ctx=QuietContext(restored={"ground": ground.to_state()})).run()
    assert again is not None and again.energy == ground.energy and again.occupations.mu == ground.occupations.mu
    np.testing.assert_array_equal(again.eps, ground.eps)
    assert isinstance(again, GroundState)


def test_a_resumed_cycle_goes_on_counting_its_time() -> None:
    ctx = Stopping(2)
    assert make_solver(silicon(), 6.0, ctx=ctx).run() is None
    assert ctx.state is not None
    earlier = {**ctx.state, "seconds": 1000.0}  # as if the first session had taken so long
    ground = make_solver(silicon(), 6.0, ctx=QuietContext(restored=earlier)).run()
    assert ground is not None
    assert ground.seconds > 1000.0
    again = make_solver(silicon(), 6.0, ctx=QuietContext(restored={"ground": ground.to_state()})).run()
    assert again is not None
    assert again.seconds == ground.seconds  # a finished cycle takes no more


def test_solver_defaults_are_those_of_the_options() -> None:
    crystal = silicon()
    solver = ScfSolver(
        make_basis(crystal, 6.0), make_ions(crystal, 6.0), reduce_mesh((1, 1, 1), (0.0, 0.0, 0.0), space_group(crystal))[0]
    )
    assert solver.options == ScfOptions()
    assert solver.bands == 8


def test_k_points_outside_the_fermi_surface_hold_nothing() -> None:
    # one electron in the bcc cell of sodium: with a narrow width the zone boundary is empty to the last digit
    sodium = Crystal(8.1 * BCC, ("Na",), np.zeros((1, 3)))
    ions = {"Na": make_ion(builtin_gth("Na", "lda", 1), q_max=8.0)}
    solver = make_solver(
        sodium, 6.0, (4, 4, 4), ions=ions, functional="lda", smearing="gaussian", width_ha=0.001, tolerance_ha=1e-8
    )
    ground = solver.run()
    assert ground is not None
    assert ground.converged
    held = ground.occupations.f.sum(1)
    assert (held == 0.0).any() and (held > 1.9).any()
    assert solver.mesh.weight @ held == pytest.approx(1.0, abs=1e-12)


def test_first_bands_that_are_worse_than_the_density_are_solved_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gewu.physics.dft.scf.FIRST_TOLERANCE", 1.0)  # Ha^2: any start vector will do
    asked: list[float] = []
    monkeypatch.setattr(
        "gewu.physics.dft.scf.davidson", lambda h, psi, tolerance: asked.append(tolerance[0]) or davidson(h, psi, tolerance)
    )
    solver = make_solver(silicon(), 6.0, (1, 1, 1), tolerance_ha=1.0)  # looser than the density's error: no wait for it either
    ground = solver.run()
    assert ground is not None
    assert ground.converged
    assert len(ground.history) == 1
    assert asked == [1.0, np.sqrt(0.1)]
