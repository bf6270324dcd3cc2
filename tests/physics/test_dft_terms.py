"""The Hamiltonian is the derivative of the energy, term by term, on every device at hand.

For a term E[psi] = sum_n f_n <psi_n|h|psi_n> the derivative along a random direction delta is 2 Re sum_n f_n <delta_n|h
psi_n>; for E[rho]
it is int v delta_rho dr. Quadratic terms have exact central differences, so their tolerance is rounding, 1e-16 |E| / step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.fft
from scipy.special import eval_legendre

from gewu.core.arrays import Arrays
from gewu.physics.dft import Basis, Ion
from gewu.physics.dft.hamiltonian import Hamiltonian, spherical_harmonics
from gewu.physics.dft.potential import LocalPotential
from gewu.physics.dft.xc import FUNCTIONALS
from tests.dfttools import DEVICES, low_symmetry, make_basis, make_ions, on_device, random_waves

CUTOFF = 6.0
K = np.array([0.13, -0.27, 0.41])
STEP = 1e-3
ROUNDING = 1e-11  # rounding of a difference quotient: 1e-16 x energies of some 10 Ha / STEP, with a margin of ten


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """Return the namespace of each device at hand."""
    return on_device(request.param, monkeypatch)


def setting(device: Arrays) -> tuple[Basis, dict[str, Ion], Hamiltonian]:
    crystal = low_symmetry()
    basis, ions = make_basis(crystal, CUTOFF, device), make_ions(crystal, CUTOFF)
    return basis, ions, Hamiltonian(basis, basis.sphere(K), ions)


def core(q: np.ndarray) -> np.ndarray:
    return 1.7 * np.exp(-(q**2))  # wide, as a core never is: no point comes near the floor of density, where E_xc has a kink


def local_potential(basis: Basis, ions: dict[str, Ion], functional: str, *, with_core: bool = False) -> LocalPotential:
    if with_core:
        ions = {s: Ion(i.symbol, i.valence, i.local, i.projectors, i.d_ij, i.density, core, i.source) for s, i in ions.items()}
    return LocalPotential(basis, ions, functional)


def random_density(basis: Basis, seed: int, size: float) -> np.ndarray:
    """Return half-sphere coefficients of a random smooth real function without charge, of amplitude about `size`."""
    rng = np.random.default_rng(seed)
    f = rng.normal(size=len(basis.g)) + 1j * rng.normal(size=len(basis.g))
    f *= np.exp(-basis.g2 / 3) * (basis.g2 > 0)
    n1, n2, n3 = basis.grid
    half = np.zeros(n1 * n2 * (n3 // 2 + 1), complex)
    half[basis.half] = f
    real = scipy.fft.irfftn(half.reshape(n1, n2, -1), basis.grid, norm="forward")
    result: np.ndarray = scipy.fft.rfftn(real * size / np.abs(real).max(), norm="forward").reshape(-1)[basis.half]
    return result


def smooth_density(potential: LocalPotential) -> np.ndarray:
    """Return the starting density spread out so far that it is above 0.005 everywhere, and E_xc smooth."""
    rho: np.ndarray = potential.rho_guess_g * np.exp(-potential.basis.g2)
    assert float(potential.basis.to_grid(potential.basis.arrays.put(rho)).min()) > 0.005
    return rho


def orbital_derivative(h: Hamiltonian, energy: Callable[[np.ndarray], float], term: Callable[[np.ndarray], np.ndarray]) -> None:
    psi, delta = random_waves(h, 3, 1), random_waves(h, 3, 2)
    f = np.array([2.0, 1.5, 0.3])
    numeric = (f @ (np.asarray(energy(psi + STEP * delta)) - np.asarray(energy(psi - STEP * delta)))) / (2 * STEP)
    analytic = 2 * (f[:, None] * delta.conj() * term(psi)).sum().real
    assert abs(analytic) > 1e-3  # a random direction is not orthogonal to the derivative
    assert numeric == pytest.approx(analytic, abs=ROUNDING * 10, rel=1e-10)


def test_kinetic(device: Arrays) -> None:
    _, _, h = setting(device)
    put, get = device.put, device.get
    orbital_derivative(h, lambda c: get(h.kinetic_energy(put(c))), lambda c: c * get(h.kinetic))
    np.testing.assert_allclose(
        get(h.kinetic), ((h.sphere.g + K) @ h.basis.crystal.reciprocal * 1.0) ** 2 @ np.ones(3) / 2, rtol=1e-14
    )


def test_nonlocal(device: Arrays) -> None:
    basis, _, h = setting(device)
    put, get = device.put, device.get
    h.potential = put(np.zeros(basis.grid))
    orbital_derivative(h, lambda c: get(h.nonlocal_energy(put(c))), lambda c: get(h.apply(put(c))) - c * get(h.kinetic))


def test_local_ion_potential_acts_on_orbitals_as_its_energy_on_their_density(device: Arrays) -> None:
    basis, ions, h = setting(device)
    put, get = device.put, device.get
    potential = local_potential(basis, ions, "lda")

    def energy(c: np.ndarray) -> np.ndarray:
        out = []
        for band in c:
            rho = device.xp.zeros(basis.grid)
            h.add_density(put(band[None]), put(np.ones(1)), rho)
            out.append(potential.ion(basis.to_sphere(rho)))
        return np.array(out)

    def term(c: np.ndarray) -> np.ndarray:
        h.potential = potential.v_ion
        with_ions = get(h.apply(put(c)))
        h.potential = put(np.zeros(basis.grid))
        return with_ions - get(h.apply(put(c)))

    orbital_derivative(h, energy, term)


@pytest.mark.parametrize("functional", FUNCTIONALS)
def test_the_whole_potential_is_that_of_the_density_energies(device: Arrays, functional: str) -> None:
    basis, ions, _ = setting(device)
    potential = local_potential(basis, ions, functional)
    rho, delta = smooth_density(potential), random_density(basis, 3, 1e-4)

    def energy(x: float) -> float:
        return sum(potential(device.put(rho + x * delta))[1])

    v = potential(device.put(rho))[0]
    analytic = float((v * basis.to_grid(device.put(delta))).sum()) * basis.dv
    numeric = (
        8 * (energy(1) - energy(-1)) - (energy(2) - energy(-2))
    ) / 12  # five points: the third derivative of E_xc drops out
    assert numeric == pytest.approx(analytic, abs=1e-12, rel=1e-8)


def test_hartree(device: Arrays) -> None:
    basis, ions, _ = setting(device)
    potential = local_potential(basis, ions, "lda")
    rho, delta = potential.rho_guess_g, random_density(basis, 4, 1.0)
    energies = [potential.hartree(device.put(rho + x * delta))[0] for x in (STEP, -STEP)]
    v = potential.hartree(device.put(rho))[1]
    analytic = float((v * basis.to_grid(device.put(delta))).sum()) * basis.dv
    assert abs(analytic) > 1e-3
    assert (energies[0] - energies[1]) / (2 * STEP) == pytest.approx(analytic, rel=1e-10)


def test_hartree_energy_of_a_plane_wave_of_charge(device: Arrays) -> None:
    basis, ions, _ = setting(device)
    at = int(np.flatnonzero((basis.g == (1, 0, 0)).all(1))[0])
    opposite = int(np.flatnonzero((basis.g == (-1, 0, 0)).all(1))[0])  # both stand in the half grid, on its plane g3 = 0
    rho = np.zeros(len(basis.g), complex)
    rho[at] = rho[opposite] = 0.5  # rho(r) = cos(G r), so E_H = Omega/2 * 4 pi/G^2 * 1/2
    energy, v = local_potential(basis, ions, "lda").hartree(device.put(rho))
    assert energy == pytest.approx(np.pi * basis.crystal.volume / basis.g2[at], rel=1e-13)
    assert device.get(v)[0, 0, 0] == pytest.approx(4 * np.pi / basis.g2[at], rel=1e-13)


@pytest.mark.parametrize("with_core", [False, True])
@pytest.mark.parametrize("functional", FUNCTIONALS)
def test_xc(device: Arrays, functional: str, with_core: bool) -> None:
    basis, ions, _ = setting(device)
    potential = local_potential(basis, ions, functional, with_core=with_core)
    rho, delta = smooth_density(potential), random_density(basis, 5, 1e-4)

    def energy(x: float) -> float:
        return potential.xc(device.put(rho + x * delta))[0]

    v = potential.xc(device.put(rho))[1]
    analytic = float((v * basis.to_grid(device.put(delta))).sum()) * basis.dv
    numeric = (8 * (energy(1) - energy(-1)) - (energy(2) - energy(-2))) / 12
    # rounding: 1e-16 x 5 Ha in each energy; the analytic value is some 1e-4
    assert numeric == pytest.approx(analytic, abs=1e-14, rel=1e-8)


def test_the_core_density_counts_in_exchange_and_correlation_only(device: Arrays) -> None:
    basis, ions, _ = setting(device)
    bare, cored = (local_potential(basis, ions, "pbe", with_core=c) for c in (False, True))
    rho = device.put(bare.rho_guess_g)
    one, other = bare(rho)[1], cored(rho)[1]
    assert (one.local, one.hartree) == (other.local, other.hartree)
    assert other.xc < one.xc - 0.1
    charge = float(cored.rho_core.sum()) * basis.dv
    assert charge == pytest.approx(2 * core(np.zeros(1))[0], rel=1e-12)  # the form factor at q = 0 is the number of electrons


def test_the_starting_density_holds_the_electrons(device: Arrays) -> None:
    basis, ions, _ = setting(device)
    rho = basis.to_grid(device.put(local_potential(basis, ions, "pbe").rho_guess_g))
    assert float(rho.sum()) * basis.dv == pytest.approx(8.0, rel=1e-13)


def test_the_hamiltonian_is_hermitian_and_equals_the_matrix_of_its_definition(device: Arrays) -> None:
    basis, ions, h = setting(device)
    put, get = device.put, device.get
    h.potential = local_potential(basis, ions, "pbe").v_ion
    matrix = get(h.apply(put(np.eye(h.npw, dtype=complex)))).T
    np.testing.assert_allclose(matrix, matrix.conj().T, atol=1e-12)
    v_g = np.fft.fftn(get(h.potential)) / basis.size
    difference = (h.sphere.g[:, None] - h.sphere.g[None]) % basis.grid
    expected = v_g[tuple(np.moveaxis(difference, -1, 0))] + np.diag(h.sphere.kinetic)
    for x, symbol in zip(basis.crystal.frac, basis.crystal.symbols, strict=True):
        expected += nonlocal_matrix(h, ions[symbol], x)
    np.testing.assert_allclose(matrix, expected, atol=1e-12)  # rounding of sums of some 100 terms of order one


def nonlocal_matrix(h: Hamiltonian, ion: Ion, x: np.ndarray) -> np.ndarray:
    """<k+G|V_nl|k+G'> by the addition theorem: sum_l (2l+1)/4pi P_l(cos) beta_li(q) D_ij beta_lj(q') phases / Omega."""
    q = np.linalg.norm(h.sphere.kpg, axis=1)
    cosine = np.clip(h.sphere.kpg @ h.sphere.kpg.T / np.outer(q, q), -1, 1)
    phase = np.exp(-2j * np.pi * ((h.sphere.g + h.sphere.k) @ x))
    total = np.zeros((h.npw, h.npw))
    for i, (l, beta_i) in enumerate(ion.projectors):
        for j, (m, beta_j) in enumerate(ion.projectors):
            if l == m:
                total += ion.d_ij[i, j] * np.outer(beta_i(q), beta_j(q)) * (2 * l + 1) / (4 * np.pi) * eval_legendre(l, cosine)
    result: np.ndarray = total * np.outer(phase, phase.conj()) / h.basis.crystal.volume
    return result


def test_spherical_harmonics_are_orthonormal() -> None:
    # Gauss-Legendre in cos(theta) times equal steps in phi integrate polynomials of degree 6 on the sphere exactly
    z, w = np.polynomial.legendre.leggauss(8)
    phi = 2 * np.pi * np.arange(16) / 16
    s = np.sqrt(1 - z**2)
    v = np.stack([np.outer(s, np.cos(phi)), np.outer(s, np.sin(phi)), np.outer(z, np.ones(16))], -1).reshape(-1, 3)
    weight = np.outer(w, np.full(16, 2 * np.pi / 16)).ravel()
    y = np.concatenate([spherical_harmonics(l, 2.7 * v) for l in range(4)])
    assert y.shape == (16, 128)
    np.testing.assert_allclose((y * weight) @ y.T, np.eye(16), atol=1e-14)


@pytest.mark.parametrize("l", [0, 1, 2, 3])
def test_spherical_harmonics_obey_the_addition_theorem(l: int) -> None:
    v = np.random.default_rng(1).normal(size=(40, 3))
    unit = v / np.linalg.norm(v, axis=1)[:, None]
    y = np.array(spherical_harmonics(l, v))
    np.testing.assert_allclose(y.T @ y, (2 * l + 1) / (4 * np.pi) * eval_legendre(l, unit @ unit.T), atol=1e-14)
    at_zero = np.array(spherical_harmonics(l, np.zeros((1, 3))))
    np.testing.assert_array_equal(at_zero, np.sqrt(1 / (4 * np.pi)) if l == 0 else 0.0)


def test_spherical_harmonics_end_at_f() -> None:
    with pytest.raises(ValueError, match="l <= 3"):
        spherical_harmonics(4, np.eye(3))


def test_without_projectors_there_is_no_nonlocal_energy() -> None:
    crystal = low_symmetry()
    basis, ions = make_basis(crystal, CUTOFF), make_ions(crystal, CUTOFF)
    bare = {s: Ion(s, i.valence, i.local, (), np.zeros((0, 0)), i.density, None, i.source) for s, i in ions.items()}
    h = Hamiltonian(basis, basis.sphere(K), bare)
    h.potential = np.zeros(basis.grid)
    psi = random_waves(h, 2, 7)
    np.testing.assert_allclose(h.apply(psi), psi * h.kinetic, atol=1e-14)
    np.testing.assert_array_equal(h.nonlocal_energy(psi), 0.0)
