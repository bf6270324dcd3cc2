"""Block Davidson against dense diagonalisation: energies, honest residuals, bad starts, degenerate and many bands."""

from __future__ import annotations

import numpy as np
import pytest

from gewu.core.arrays import Arrays
from gewu.physics.dft.eigen import davidson, start_vectors
from gewu.physics.dft.hamiltonian import Hamiltonian
from tests.dfttools import DEVICES, low_symmetry, on_device, orthonormal, random_waves, silicon, with_potential

TOLERANCE = 1e-6  # of residuals, Ha: energies are then right to its square over the distance of levels, 1e-11


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """Return the namespace of each device at hand."""
    return on_device(request.param, monkeypatch)


def dense(h: Hamiltonian) -> np.ndarray:
    arrays = h.basis.arrays
    matrix = arrays.get(h.apply(arrays.put(np.eye(h.npw, dtype=complex))))
    energies: np.ndarray = np.linalg.eigvalsh(0.5 * (matrix.T + matrix.conj()))
    return energies


def check(h: Hamiltonian, pairs, bands: int, tolerance: float = TOLERANCE) -> None:  # type: ignore[no-untyped-def]
    """Compare with the dense solution, and the residuals told with those there are."""
    arrays = h.basis.arrays
    psi = arrays.get(pairs.psi)
    np.testing.assert_allclose(pairs.eps, dense(h)[:bands], atol=1e-9)
    np.testing.assert_allclose(psi.conj() @ psi.T, np.eye(bands), atol=1e-10)  # no basis is orthogonalised: kappa x rounding
    honest = np.linalg.norm(arrays.get(h.apply(pairs.psi)) - pairs.eps[:, None] * psi, axis=1)
    np.testing.assert_allclose(pairs.residual, honest, atol=1e-9)  # updates of H psi round
    assert (honest < tolerance + 1e-9).all()


@pytest.mark.parametrize("k", [(0.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.13, -0.27, 0.41)])
def test_davidson_equals_dense_diagonalisation(device: Arrays, k: tuple[float, ...]) -> None:
    h = with_potential(silicon(), 6.0, k, device=device)
    pairs = davidson(h, start_vectors(h, 8, 0, 0), np.full(8, TOLERANCE))
    check(h, pairs, 8)
    assert pairs.applied < 30 * 8


def test_from_random_waves(device: Arrays) -> None:
    h = with_potential(low_symmetry(), 6.0, (0.1, 0.2, 0.3), device=device)
    check(h, davidson(h, device.put(orthonormal(random_waves(h, 6, 3))), np.full(6, TOLERANCE)), 6)


@pytest.mark.parametrize("kind", ["twice the same", "nearly the same", "combinations"])
def test_linearly_dependent_start_vectors(kind: str) -> None:
    h = with_potential(silicon(), 6.0, (0.1, 0.2, 0.3))
    psi = orthonormal(random_waves(h, 6, 5))
    if kind == "twice the same":
        psi[4] = psi[1]
    elif kind == "nearly the same":
        psi[4] = psi[1] + 1e-9 * psi[2]
    else:
        psi[3:] = random_waves(h, 3, 6)[:, :3] @ psi[:3]
    check(h, davidson(h, psi, np.full(6, TOLERANCE)), 6)


def test_start_vectors_that_are_eigenvectors_already_cost_nothing_more() -> None:
    h = with_potential(silicon(), 6.0, (0.1, 0.2, 0.3))
    first = davidson(h, start_vectors(h, 6, 0, 0), np.full(6, 1e-8))
    again = davidson(h, first.psi, np.full(6, 1e-6))
    assert again.applied == 6
    np.testing.assert_allclose(again.eps, first.eps, atol=1e-13)


@pytest.mark.parametrize("missing", [0, 1, 5, 40])
def test_as_many_bands_as_plane_waves_or_nearly(device: Arrays, missing: int) -> None:
    h = with_potential(low_symmetry(), 3.0, (0.1, 0.2, 0.3), device=device)
    bands = h.npw - missing
    assert bands > 10
    pairs = davidson(h, start_vectors(h, bands, 0, 0), np.full(bands, TOLERANCE))
    check(h, pairs, bands)


@pytest.mark.parametrize("bands", [1, 2])
def test_few_bands(bands: int) -> None:
    h = with_potential(silicon(), 6.0, (0.1, 0.2, 0.3))
    check(h, davidson(h, start_vectors(h, bands, 0, 0), np.full(bands, TOLERANCE)), bands)


def test_a_block_that_ends_inside_a_degenerate_level() -> None:
    h = with_potential(silicon(), 6.0, (0.0, 0.0, 0.0))  # bands 2 to 4 and 5 to 7 at Gamma are threefold
    exact = dense(h)
    assert np.ptp(exact[1:4]) < 1e-10 < exact[4] - exact[3]
    for bands in (2, 3, 5, 6):
        pairs = davidson(h, start_vectors(h, bands, 1, 0), np.full(bands, TOLERANCE))
        np.testing.assert_allclose(pairs.eps, exact[:bands], atol=1e-9)


def test_free_electrons_are_solved_exactly() -> None:
    h = with_potential(silicon(), 8.0, (0.1, 0.2, 0.3))
    h.potential = np.zeros(h.basis.grid)
    h.d = h.d * 0
    h.nonlocal_diagonal = h.nonlocal_diagonal * 0
    pairs = davidson(h, start_vectors(h, 10, 0, 0), np.full(10, 1e-9))
    np.testing.assert_allclose(pairs.eps, np.sort(h.sphere.kinetic)[:10], atol=1e-13)


def test_loose_tolerances_leave_bands_alone_and_say_so() -> None:
    h = with_potential(silicon(), 8.0, (0.1, 0.2, 0.3))
    tolerance = np.where(np.arange(8) < 4, 1e-7, 1e-2)
    pairs = davidson(h, start_vectors(h, 8, 0, 0), tolerance)
    assert (pairs.residual <= tolerance).all()
    assert pairs.residual[4:].max() > 1e-7
    tight = davidson(h, start_vectors(h, 8, 0, 0), np.full(8, 1e-7))
    assert pairs.applied < tight.applied
    # the error of an energy is bounded by the square of its residual over the distance to other levels
    np.testing.assert_allclose(pairs.eps[:4], tight.eps[:4], atol=1e-12)


def test_out_of_steps_the_residuals_tell() -> None:
    h = with_potential(silicon(), 8.0, (0.1, 0.2, 0.3))
    pairs = davidson(h, start_vectors(h, 8, 0, 0), np.full(8, 1e-10), max_steps=1)
    honest = np.linalg.norm(h.apply(pairs.psi) - pairs.eps[:, None] * pairs.psi, axis=1)
    np.testing.assert_allclose(pairs.residual, honest, atol=1e-12)
    assert honest.max() > 1e-6
    assert (pairs.eps >= dense(h)[:8] - 1e-12).all()  # Ritz values are upper bounds


def test_an_unreachable_tolerance_ends_at_rounding() -> None:
    h = with_potential(silicon(), 6.0, (0.1, 0.2, 0.3))
    pairs = davidson(h, start_vectors(h, 6, 0, 0), np.zeros(6), max_steps=200)
    assert pairs.residual.max() < 1e-11
    np.testing.assert_allclose(pairs.eps, dense(h)[:6], atol=1e-12)


def test_start_vectors_belong_to_seed_and_stream() -> None:
    h = with_potential(silicon(), 6.0, (0.1, 0.2, 0.3))
    one = start_vectors(h, 6, 3, 5)
    np.testing.assert_array_equal(one, start_vectors(h, 6, 3, 5))
    assert np.abs(one - start_vectors(h, 6, 4, 5)).max() > 1e-3
    assert np.abs(one - start_vectors(h, 6, 3, 6)).max() > 1e-3
    # already close: the dense problem of the longest waves
    ritz = np.linalg.eigvalsh(orthonormal(one).conj() @ h.apply(orthonormal(one)).T)
    np.testing.assert_allclose(ritz, dense(h)[:6], atol=0.1)
