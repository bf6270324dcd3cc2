"""Form factors are the radial integrals of the functions they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import erf, gamma, spherical_jn

from gewu.formats import GthPseudo, builtin_gth
from gewu.formats.pseudopotential import Projector, RadialPseudo
from gewu.physics.dft.pseudo import Ion, gaussian_density, make_ion, simpson_weights

Q = np.array([0.0, 1e-6, 0.05, 0.3, 1.0, 2.7, 6.0, 11.0])
# Gauss-Legendre on (0, 12): the functions are Gaussians of ranges 0.2 to 1 bohr and oscillate with q <= 11
_X, _W = np.polynomial.legendre.leggauss(600)
R, DR = 6 * (_X + 1), 6 * _W
SPECIES = [("Si", "pbe"), ("O", "lda"), ("Fe", "pbe"), ("Ce", "lda"), ("H", "pbe"), ("Pb", "pbe")]


def sinc(q: np.ndarray) -> np.ndarray:
    return np.sinc(np.outer(q, R) / np.pi)


@pytest.mark.parametrize(("element", "family"), SPECIES)
def test_gth_local_form_factor(element: str, family: str) -> None:
    p = builtin_gth(element, family)
    x = R / p.r_loc
    short = np.exp(-(x**2) / 2) * sum(c * x ** (2 * i) for i, c in enumerate(p.c_loc))
    # the ion's Coulomb tail -Z erf(r/sqrt2 r_loc)/r has the analytic transform -4 pi Z exp(-q^2 r_loc^2/2)/q^2; the rest is
    # integrated
    coulomb = np.where(Q > 1e-9, -4 * np.pi * p.z_valence * np.exp(-((Q * p.r_loc) ** 2) / 2) / np.maximum(Q, 1e-9) ** 2, 0.0)
    coulomb[0] = 2 * np.pi * p.z_valence * p.r_loc**2
    expected = coulomb + 4 * np.pi * sinc(Q) @ (DR * R**2 * short)
    np.testing.assert_allclose(
        make_ion(p, 12.0).local(Q), expected, rtol=1e-12, atol=1e-11
    )  # 600-point quadrature, values of 1e1


def test_gth_divergence_is_left_out_at_q_zero_only() -> None:
    ion = make_ion(builtin_gth("Si", "pbe"), 12.0)
    q = np.array([1e-3])
    assert ion.local(q)[0] + 4 * np.pi * 4 / q[0] ** 2 == pytest.approx(
        ion.local(np.zeros(1))[0], abs=1e-5
    )  # O(q^2), and 1e-16 x 5e7


@pytest.mark.parametrize(("element", "family"), SPECIES)
def test_gth_projectors_are_normalised_and_transform(element: str, family: str) -> None:
    p = builtin_gth(element, family)
    ion = make_ion(p, 12.0)
    at = 0
    for channel in p.channels:
        for i in range(len(channel.h_ij)):
            l, beta = ion.projectors[at]
            m = l + 2 * i
            shape = (
                np.sqrt(2) * R**m * np.exp(-((R / channel.r_l) ** 2) / 2) / (channel.r_l ** (m + 1.5) * np.sqrt(gamma(m + 1.5)))
            )
            assert l == channel.l
            assert DR @ (R * shape) ** 2 == pytest.approx(1.0, rel=1e-12)
            expected = 4 * np.pi * spherical_jn(l, np.outer(Q, R)) @ (DR * R**2 * shape)
            np.testing.assert_allclose(beta(Q), expected, atol=1e-11)
            at += 1
    assert at == len(ion.projectors)
    assert sum(2 * l + 1 for l, _ in ion.projectors) == sum((2 * c.l + 1) * len(c.h_ij) for c in p.channels)
    np.testing.assert_array_equal(ion.d_ij, ion.d_ij.T)


def test_gth_strengths_stand_in_blocks() -> None:
    p = builtin_gth("Fe", "pbe")
    ion, at = make_ion(p, 12.0), 0
    left = ion.d_ij.copy()
    for channel in p.channels:
        n = len(channel.h_ij)
        np.testing.assert_array_equal(left[at : at + n, at : at + n], channel.h_ij)
        left[at : at + n, at : at + n] = 0.0
        at += n
    np.testing.assert_array_equal(left, 0.0)


def tabulated(p: GthPseudo) -> RadialPseudo:
    """Return a GTH pseudopotential as a table on a mesh, as a UPF file would have it."""
    r = np.arange(0, 1201) * 0.01
    x = r / p.r_loc
    tail = np.where(r > 0, -p.z_valence / np.maximum(r, 1e-9) * erf(x / np.sqrt(2)), -p.z_valence * np.sqrt(2 / np.pi) / p.r_loc)
    vloc = tail + np.exp(-(x**2) / 2) * sum(c * x ** (2 * i) for i, c in enumerate(p.c_loc))
    projectors = []
    for ch in p.channels:
        for i in range(len(ch.h_ij)):
            m = ch.l + 2 * i
            shape = np.sqrt(2) * r ** (m + 1) * np.exp(-((r / ch.r_l) ** 2) / 2) / (ch.r_l ** (m + 1.5) * np.sqrt(gamma(m + 1.5)))
            projectors.append(Projector(ch.l, shape[:801]))
    d = make_ion(p, 1.0).d_ij
    rho = 4 * np.pi * r**2 * 1.3 * np.exp(-(r**2) / 2)  # not normalised to the valence: files never are to the last digit
    core = 0.4 * np.exp(-2 * r**2)
    return RadialPseudo(
        p.element, p.z_valence, "pbe", r, np.full_like(r, 0.01), vloc, tuple(projectors), d, rho, core, "table", ""
    )


@pytest.fixture(scope="module")
def pair() -> tuple[Ion, Ion]:
    p = builtin_gth("Si", "pbe")
    return make_ion(p, 12.0), make_ion(tabulated(p), 12.0)


def test_a_tabulated_pseudopotential_gives_the_form_factors_of_its_functions(pair: tuple[Ion, Ion]) -> None:
    analytic, table = pair
    q = np.concatenate([[0.0, 1e-3, 0.004], np.linspace(0.02, 12.0, 97)])
    # Simpson's error at dr = 0.01: (q dr)^4/180 relative, 1e-6 at q = 12, where the functions are 1e-3 of their size
    np.testing.assert_allclose(table.local(q), analytic.local(q), rtol=1e-9, atol=2e-6)
    for (l, beta), (m, expected) in zip(table.projectors, analytic.projectors, strict=True):
        assert l == m
        np.testing.assert_allclose(beta(q), expected(q), atol=2e-6)
    np.testing.assert_array_equal(table.d_ij, analytic.d_ij)


def test_tabulated_densities(pair: tuple[Ion, Ion]) -> None:
    table = pair[1]
    q = np.linspace(0, 8, 41)
    np.testing.assert_allclose(table.density(q), 4.0 * np.exp(-(q**2) / 2), atol=1e-7)  # rescaled to the valence; Simpson
    assert table.density(np.zeros(1))[0] == 4.0
    assert table.core is not None and pair[0].core is None
    np.testing.assert_allclose(table.core(q), 0.4 * (np.pi / 2) ** 1.5 * np.exp(-(q**2) / 8), atol=1e-7)


def test_a_table_ends_at_ten_bohr_as_quantum_espresso_has_it() -> None:
    p = tabulated(builtin_gth("Si", "pbe"))
    noisy = p.vloc_ha + np.where(p.r > 10.02, 1e-3, 0.0)
    fields = {**vars(p), "vloc_ha": noisy}
    q = np.array([0.0, 0.5])
    np.testing.assert_array_equal(make_ion(RadialPseudo(**fields), 2.0).local(q), make_ion(p, 2.0).local(q))
    fields["vloc_ha"] = p.vloc_ha + np.where(p.r > 9.9, 1e-3, 0.0)
    assert abs(make_ion(RadialPseudo(**fields), 2.0).local(q)[0] - make_ion(p, 2.0).local(q)[0]) > 1e-2


@pytest.mark.parametrize("n", [3, 4, 21, 22])
def test_simpson_is_exact_for_cubics(n: int) -> None:
    x = np.linspace(0.0, 2.0, n)
    w = simpson_weights(np.full(n, x[1]))
    whole = n % 2 == 1
    assert w @ np.ones(n) == pytest.approx(2.0, rel=1e-14)
    assert w @ x == pytest.approx(2.0, rel=1e-14)
    if whole:
        assert w @ x**3 == pytest.approx(4.0, rel=1e-14)
    else:  # the last interval is trapezoidal: its error is h^3 f''/12
        assert w @ x**3 == pytest.approx(4.0 + x[1] ** 3 / 12 * 6 * (2.0 - x[1] / 2), rel=1e-12)


def test_the_guess_for_ions_without_a_density_holds_their_electrons() -> None:
    for symbol in ("H", "Si", "Og"):
        density = gaussian_density(symbol, 3.0)
        assert density(np.zeros(1))[0] == 3.0
        assert 0 < density(np.array([3.0]))[0] < 3.0
