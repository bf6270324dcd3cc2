"""Occupations: each smearing is a step f with the energy w that makes the free energy variational; electrons are conserved."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.physics.dft.occupation import METHODS, SMEARINGS, check_insulator, occupy

X = np.linspace(-6, 6, 241)
RNG = np.random.default_rng(4)
WEIGHT = np.array([0.5, 0.3, 0.2])
EPS = np.sort(RNG.normal(size=(3, 8)), axis=1) * 0.3


def derivative(f, x: np.ndarray, h: float = 1e-3) -> np.ndarray:  # type: ignore[no-untyped-def]
    return (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h)


@pytest.mark.parametrize("name", METHODS)
def test_the_smearing_energy_is_the_first_moment_of_the_broadened_delta(name: str) -> None:
    method = METHODS[name]
    delta = derivative(lambda x: method(x)[0], X)
    dw = derivative(lambda x: method(x)[1], X)
    np.testing.assert_allclose(dw, X * delta, atol=1e-10)  # five points, step 1e-3: 1e-12; rounding 1e-13
    assert np.abs(delta).max() > 0.1


@pytest.mark.parametrize("name", METHODS)
def test_a_step_runs_from_empty_to_full_without_energy_at_its_ends(name: str) -> None:
    f, w = METHODS[name](np.array([-60.0, 60.0]))
    np.testing.assert_allclose(f, [0.0, 1.0], atol=1e-15)
    np.testing.assert_allclose(w, 0.0, atol=1e-15)
    f, w = METHODS[name](np.array([-1e4, 1e4]))  # no overflow, which would be an error in tests
    np.testing.assert_array_equal(f, [0.0, 1.0])


def test_named_values() -> None:
    f, w = METHODS["fermi-dirac"](np.array([0.0, 1.0]))
    assert f[0] == 0.5 and f[1] == pytest.approx(1 / (1 + np.exp(-1)), rel=1e-15)
    assert w[0] == pytest.approx(-np.log(2), rel=1e-15)
    assert METHODS["gaussian"](np.zeros(1))[1][0] == pytest.approx(-0.5 / np.sqrt(np.pi), rel=1e-15)
    # cold smearing of Marzari and Vanderbilt: f = erf(y)/2 + exp(-y^2)/sqrt(2 pi) + 1/2 at y = x - 1/sqrt(2); 1 + a positive tail
    f = METHODS["marzari-vanderbilt"](np.array([1 / np.sqrt(2)]))[0]
    assert f[0] == pytest.approx(0.5 + 1 / np.sqrt(2 * np.pi), rel=1e-15)
    x = np.array([0.4])
    a1 = -1 / (4 * np.sqrt(np.pi))  # Methfessel and Paxton: S_1 = erfc(-x)/2 + A_1 H_1(-x) exp(-x^2)
    assert METHODS["methfessel-paxton"](x)[0][0] == pytest.approx(0.5 * (1 + math.erf(0.4)) + a1 * -2 * 0.4 * np.exp(-0.16))


@pytest.mark.parametrize("electrons", [1.0, 6.0, 7.3, 11.0])
@pytest.mark.parametrize("name", METHODS)
def test_electrons_are_conserved(name: str, electrons: float) -> None:
    for width in (1e-3, 0.01, 0.2):
        occupations = occupy(EPS, WEIGHT, electrons, name, width)
        # bisection ends at neighbouring floating-point numbers: N is off by their distance times the density of states
        assert float((WEIGHT @ occupations.f).sum()) == pytest.approx(electrons, abs=1e-12 / width)


@pytest.mark.parametrize("name", METHODS)
def test_free_energy_is_stationary_in_the_occupations(name: str) -> None:
    """d(sum f eps - TS)/d eps at fixed N is f: the theorem that makes forces and variational energies right."""
    delta = 1e-4 * RNG.normal(size=EPS.shape)

    def free(eps: np.ndarray) -> float:
        o = occupy(eps, WEIGHT, 7.0, name, 0.1)
        return float((WEIGHT @ (o.f * eps)).sum()) + o.minus_ts

    numeric = (8 * (free(EPS + delta) - free(EPS - delta)) - (free(EPS + 2 * delta) - free(EPS - 2 * delta))) / 12
    analytic = float((WEIGHT @ (occupy(EPS, WEIGHT, 7.0, name, 0.1).f * delta)).sum())
    assert numeric == pytest.approx(analytic, abs=1e-13)  # rounding of energies of order one
    assert abs(analytic) > 1e-6


@pytest.mark.parametrize("name", ["gaussian", "fermi-dirac"])
def test_entropy_of_positive_smearings_lowers_the_energy(name: str) -> None:
    values = [occupy(EPS, WEIGHT, 7.0, name, width).minus_ts for width in (0.02, 0.05, 0.1, 0.2)]
    assert all(v < 0 for v in values)
    assert values == sorted(values, reverse=True)


def test_cold_smearings_change_the_energy_less() -> None:
    plain = occupy(EPS, WEIGHT, 7.0, "gaussian", 0.1).minus_ts
    for name in ("marzari-vanderbilt", "methfessel-paxton"):
        assert abs(occupy(EPS, WEIGHT, 7.0, name, 0.1).minus_ts) < 0.5 * abs(plain)


def test_narrow_smearing_tends_to_filled_bands() -> None:
    eps = np.array([[-1.0, -0.9, 0.5], [-1.2, -0.7, 0.6]])
    fixed = occupy(eps, np.array([0.5, 0.5]), 4.0, "none", 0.0)
    np.testing.assert_array_equal(fixed.f, [[2, 2, 0], [2, 2, 0]])
    assert (fixed.mu, fixed.minus_ts) == (-0.7, 0.0)
    for name in METHODS:
        narrow = occupy(eps, np.array([0.5, 0.5]), 4.0, name, 1e-3)
        np.testing.assert_allclose(narrow.f, fixed.f, atol=1e-12)
        assert narrow.mu == pytest.approx(-0.1, abs=1e-3)  # in the middle of the gap, to a width
        assert narrow.minus_ts == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("electrons", [1.0, 7.0, 7.3])
def test_odd_electrons_cannot_fill_bands_in_pairs(electrons: float) -> None:
    with pytest.raises(InputError, match="odd number of electrons") as error:
        occupy(EPS, WEIGHT, electrons, "none", 0.0)
    assert all(name in str(error.value) for name in SMEARINGS[1:])
    with pytest.raises(InputError):
        check_insulator(electrons)
    assert check_insulator(8.0) == 4


@pytest.mark.parametrize("name", METHODS)
def test_too_few_bands_are_told(name: str) -> None:
    with pytest.raises(InputError, match="at least 9"):
        occupy(EPS, WEIGHT, 16.5, name, 0.01)
    assert occupy(EPS, WEIGHT, 16.0, name, 0.01).f.min() == pytest.approx(2.0, abs=1e-12)  # just enough


def test_cold_smearing_of_an_insulator_keeps_away_from_the_false_level_at_the_band_edge() -> None:
    # with one k point a step above 1 and one below 1 add up to full bands near the edge too; the smearing energy there is not 0
    eps = np.array([[-0.3, 0.0, 0.2, 0.9]])
    for name in METHODS:
        o = occupy(eps, np.ones(1), 4.0, name, 0.01)
        assert o.mu == pytest.approx(0.1, abs=0.01)
        assert abs(o.minus_ts) < 3e-5  # the tail of Fermi and Dirac, 4 x width x 11 exp(-10); 1e-3 at the false level


@pytest.mark.parametrize("name", METHODS)
def test_a_degenerate_level_is_filled_evenly(name: str) -> None:
    eps = np.array([[-1.0, 0.0, 0.0, 0.0, 2.0]])
    f = occupy(eps, np.ones(1), 4.0, name, 0.02).f[0]
    np.testing.assert_allclose(f[1:4], 2 / 3, atol=1e-9)
