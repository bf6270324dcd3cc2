"""Exchange-correlation functionals point by point: derivatives, exact conditions, published values."""

from __future__ import annotations

import numpy as np
import pytest

from gewu.physics.dft.xc import FUNCTIONALS, GAMMA, gga, lda, xc_energy_potential
from tests.dfttools import low_symmetry, make_basis

DENSITIES = np.array([1e-4, 1e-3, 1e-2, 0.05, 0.2, 1.0, 7.0])
GRADIENTS = ("pbe", "pbesol", "pbe-libxc")


def points() -> tuple[np.ndarray, np.ndarray]:
    """Return densities and squared gradients with reduced gradients s from 0.05 to 4."""
    n, s = (x.ravel() for x in np.meshgrid(DENSITIES, [0.05, 0.3, 1.0, 2.0, 4.0]))
    return n, (2 * (3 * np.pi**2) ** (1 / 3) * n ** (4 / 3) * s) ** 2


def derivative(f, x: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Return f'(x) from five points: error of order (1e-3)^4."""
    h = 1e-3 * x
    return (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h)


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_lda_potential_is_the_derivative(name: str) -> None:
    n = np.geomspace(1e-8, 50, 60)
    v = lda(np, n, FUNCTIONALS[name])[1]
    np.testing.assert_allclose(derivative(lambda x: lda(np, x, FUNCTIONALS[name])[0], n), v, rtol=1e-10)  # five-point error


@pytest.mark.parametrize("name", GRADIENTS)
def test_gga_derivatives(name: str) -> None:
    n, sigma = points()
    e, v, v_sigma = gga(np, n, sigma, FUNCTIONALS[name])
    np.testing.assert_allclose(derivative(lambda x: gga(np, x, sigma, FUNCTIONALS[name])[0], n), v, rtol=1e-8)
    numeric = derivative(lambda x: gga(np, n, x, FUNCTIONALS[name])[0], sigma)
    rounding = 1e-15 * np.abs(e) / (1e-3 * sigma)  # large where the density and its gradient are small
    assert (np.abs(numeric - v_sigma) < 1e-8 * np.abs(v_sigma) + rounding).all()
    wrong = np.abs(numeric - 1.01 * v_sigma) > 1e-8 * np.abs(v_sigma) + rounding
    assert wrong.mean() > 0.9  # the comparison tells


@pytest.mark.parametrize("name", GRADIENTS)
def test_without_gradient_a_gga_is_the_lda_with_the_same_constant(name: str) -> None:
    e, v, _ = gga(np, DENSITIES, np.zeros_like(DENSITIES), FUNCTIONALS[name])
    e_lda, v_lda = lda(np, DENSITIES, FUNCTIONALS[name]._replace(mu=0.0, beta=0.0))
    np.testing.assert_allclose(e, e_lda, rtol=1e-14)
    np.testing.assert_allclose(v, v_lda, rtol=1e-14)


def correlation(rs: float) -> float:
    n = 3 / (4 * np.pi * rs**3)
    return float(lda(np, np.array([n]), FUNCTIONALS["lda"])[0][0] / n) + 0.75 / np.pi * (3 * np.pi**2 * n) ** (1 / 3)


@pytest.mark.parametrize(
    ("rs", "ec"),
    # Ceperley and Alder's quantum Monte Carlo, as Perdew and Zunger (PRB 23, 5048, 1981) parametrise it and Perdew and Wang
    # fit it.
    [(1.0, -0.0598), (2.0, -0.0448), (5.0, -0.0282), (10.0, -0.0186), (20.0, -0.0115), (50.0, -0.0057), (100.0, -0.0032)],
)
def test_correlation_of_the_uniform_gas(rs: float, ec: float) -> None:
    assert correlation(rs) == pytest.approx(ec, abs=1e-4)  # digits of the table, and of the fit


def test_correlation_at_high_density_is_that_of_the_random_phase_approximation() -> None:
    # Gell-Mann and Brueckner: ec -> A' ln rs - 0.0467 + ..., A' = (1 - ln 2)/pi^2 (Hartree)
    slope = (correlation(1e-6) - correlation(1e-7)) / np.log(10)
    assert slope == pytest.approx(GAMMA, rel=2e-3)  # the next term, rs ln rs and sqrt(rs) of the fit, is of order 1e-3 here
    assert correlation(1e-6) == pytest.approx(GAMMA * np.log(1e-6) - 0.0467, abs=5e-4)


def test_exchange_enhancement_stays_below_the_lieb_oxford_bound_and_starts_with_mu() -> None:
    for name in GRADIENTS:
        constants = FUNCTIONALS[name]
        n, s = np.full(2, 0.3), np.array([1e-3, 1e4])
        sigma = (2 * (3 * np.pi**2) ** (1 / 3) * n ** (4 / 3) * s) ** 2
        total = gga(np, n, sigma, constants)[0]
        e_x = -0.75 / np.pi * (3 * np.pi**2) ** (1 / 3) * n ** (4 / 3)
        # at s = 1e4 the gradient has switched correlation off: what is left is exchange, enhanced by 1 + kappa
        assert total[1] / e_x[1] == pytest.approx(1.804, abs=1e-4)
        # at small s exchange grows by mu s^2 and correlation by beta t^2 phi^3: for PBE the two cancel
        growth = (total[0] - gga(np, n, 0 * sigma, constants)[0][0]) / n[0]
        t2 = sigma[0] * np.pi / (16 * (3 * np.pi**2 * n[0]) ** (1 / 3) * n[0] ** 2)
        assert growth == pytest.approx(constants.mu * 1e-6 * e_x[0] / n[0] + constants.beta * t2, abs=1e-11)
        if name.startswith("pbe") and name != "pbesol":
            assert abs(growth) < 1e-3 * constants.beta * t2


def test_published_constants() -> None:
    pbe, sol = FUNCTIONALS["pbe"], FUNCTIONALS["pbesol"]
    assert pbe.mu == pytest.approx(0.2195149727645171, rel=1e-12)
    assert (sol.mu, sol.beta) == (10 / 81, 0.046)
    assert pytest.approx(0.0310906908696549, rel=1e-12) == GAMMA
    assert FUNCTIONALS["pbe-libxc"].a == GAMMA and pbe.a == FUNCTIONALS["lda"].a == 0.031091


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_empty_and_negative_density_gives_nothing_and_no_warning(name: str) -> None:
    basis = make_basis(low_symmetry(), 4.0)
    for rho in (np.zeros(basis.grid), np.full(basis.grid, -1e-3)):
        e, v = xc_energy_potential(basis, rho, name)
        assert e == 0.0
        np.testing.assert_array_equal(v, 0.0)
    wave = 1e-3 * np.cos(2 * np.pi * np.arange(basis.grid[0]) / basis.grid[0])[:, None, None] * np.ones(basis.grid)
    e, v = xc_energy_potential(basis, wave, name)  # crosses zero
    assert np.isfinite(e) and np.isfinite(v).all()


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_uniform_density_on_the_grid(name: str) -> None:
    basis = make_basis(low_symmetry(), 4.0)
    e, v = xc_energy_potential(basis, np.full(basis.grid, 0.04), name)
    expected, potential = lda(np, np.array([0.04]), FUNCTIONALS[name])
    assert e == pytest.approx(expected[0] * basis.crystal.volume, rel=1e-12)
    np.testing.assert_allclose(v, potential[0], rtol=1e-12)
