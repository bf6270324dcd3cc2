"""Real orbitals at Gamma give what complex ones give: the same operator, density and eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest

from gewu.core.arrays import Arrays
from gewu.physics.dft.eigen import davidson, start_vectors
from gewu.physics.dft.gamma import GammaHamiltonian, hamiltonian_at
from gewu.physics.dft.hamiltonian import Hamiltonian
from tests.dfttools import DEVICES, ground_state, low_symmetry, make_ions, make_solver, on_device, silicon, with_potential

CUTOFF_HA = 6.0
ROUNDING = 1e-12  # of sums over a thousand terms of order one


@pytest.fixture(params=DEVICES)
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[GammaHamiltonian, Hamiltonian]:
    """Return H at Gamma on real and on complex orbitals, for a crystal without symmetry."""
    device: Arrays = on_device(request.param, monkeypatch)
    crystal = low_symmetry()
    plain = with_potential(crystal, CUTOFF_HA, (0.0, 0.0, 0.0), device=device)
    real = hamiltonian_at(plain.basis, np.zeros(3), make_ions(crystal, CUTOFF_HA))
    assert isinstance(real, GammaHamiltonian)
    real.potential = plain.potential
    return real, plain


def real_orbitals(h: Hamiltonian, bands: int) -> np.ndarray:
    return np.random.default_rng(11).normal(size=(bands, h.npw)) / (1 + h.npw * np.arange(1, h.npw + 1) / h.npw)


def test_the_layout_keeps_functions_and_scalar_products(pair: tuple[GammaHamiltonian, Hamiltonian]) -> None:
    h, _ = pair
    get, put = h.basis.arrays.get, h.basis.arrays.put
    psi = real_orbitals(h, 3)
    c = get(h.unpack(put(psi)))
    np.testing.assert_allclose(get(h.pack(put(c))), psi, atol=1e-15)
    np.testing.assert_allclose(c[:, ::-1].conj(), c, atol=0)  # the sphere stands in mirror order: c(-G) = conj(c(G))
    np.testing.assert_allclose(c.conj() @ c.T, psi @ psi.T, atol=ROUNDING)
    np.testing.assert_allclose(get(h.pack(put(1j * c))), 0.0, atol=1e-15)  # an imaginary function has no real part


@pytest.mark.parametrize("bands", [1, 4, 7])
def test_h_is_the_complex_one(pair: tuple[GammaHamiltonian, Hamiltonian], bands: int) -> None:
    real, plain = pair
    get, put = real.basis.arrays.get, real.basis.arrays.put
    psi = put(real_orbitals(real, bands))
    expected = get(plain.apply(plain.basis.arrays.put(get(real.unpack(psi)))))
    np.testing.assert_allclose(get(real.unpack(real.apply(psi))), expected, atol=ROUNDING)
    complex_psi = real.unpack(psi)
    np.testing.assert_allclose(get(real.kinetic_energy(psi)), get(plain.kinetic_energy(complex_psi)), rtol=1e-12)
    np.testing.assert_allclose(get(real.nonlocal_energy(psi)), get(plain.nonlocal_energy(complex_psi)), atol=ROUNDING)
    np.testing.assert_allclose(get(real.nonlocal_diagonal).sum(), get(plain.nonlocal_diagonal).sum(), rtol=1e-12)  # the trace


def test_the_density_is_the_complex_one_for_occupations_of_any_sign(pair: tuple[GammaHamiltonian, Hamiltonian]) -> None:
    real, plain = pair
    arrays = real.basis.arrays
    psi = arrays.put(real_orbitals(real, 6))
    occupation = arrays.put(np.array([2.0, 2.0, 1.3, 0.0, -0.02, 0.7]))
    found, expected = (arrays.xp.zeros(real.basis.grid) for _ in range(2))
    real.add_density(psi, occupation, found)
    plain.add_density(real.unpack(psi), occupation, expected)
    np.testing.assert_allclose(arrays.get(found), arrays.get(expected), atol=1e-14)


def test_eigenvalues_are_the_complex_ones(pair: tuple[GammaHamiltonian, Hamiltonian]) -> None:
    tolerance = np.full(9, 1e-6)  # Ha; eigenvalues are right to its square over the distance of levels
    found, expected = (davidson(h, start_vectors(h, 9, 0, 0), tolerance) for h in pair)
    assert found.psi.dtype.kind == "f"
    np.testing.assert_allclose(found.eps, expected.eps, atol=1e-10)


def test_a_small_basis_is_diagonalised_whole(pair: tuple[GammaHamiltonian, Hamiltonian]) -> None:
    many = pair[0].npw // 2 + 1
    found, expected = (davidson(h, start_vectors(h, many, 0, 0), np.full(many, 1e-6)) for h in pair)
    np.testing.assert_allclose(found.eps, expected.eps, atol=1e-10)


def test_the_total_energy_does_not_tell_which_orbitals_were_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEWU_FFT", "scipy")
    real = ground_state(silicon(), CUTOFF_HA, (2, 2, 2))
    monkeypatch.setattr("gewu.physics.dft.scf.hamiltonian_at", lambda basis, k, ions: Hamiltonian(basis, basis.sphere(k), ions))
    solver = make_solver(silicon(), CUTOFF_HA, (2, 2, 2))
    assert not any(isinstance(h, GammaHamiltonian) for h in solver.hamiltonians)
    plain = solver.run()
    assert plain is not None
    assert real.energy == pytest.approx(plain.energy, abs=1e-10)  # the tolerance of the cycles


def test_only_gamma_itself_has_real_orbitals() -> None:
    basis = make_solver(silicon(), CUTOFF_HA).basis
    ions = make_ions(silicon(), CUTOFF_HA)
    assert isinstance(hamiltonian_at(basis, np.array([0.0, 0.0, 0.0]), ions), GammaHamiltonian)
    assert not isinstance(hamiltonian_at(basis, np.array([0.0, 1e-9, 0.0]), ions), GammaHamiltonian)
