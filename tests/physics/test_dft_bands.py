"""Bands along a path, density of states, gaps."""

from __future__ import annotations

import numpy as np
import pytest

from gewu.core.context import QuietContext
from gewu.core.errors import InputError
from gewu.physics.dft import Crystal
from gewu.physics.dft.bands import band_energies, gap, standard_path
from tests.dfttools import BCC, aluminium, hexagonal, low_symmetry, make_solver, silicon


@pytest.mark.parametrize(
    ("crystal", "labels"),
    # Hinuma et al., Comput. Mater. Sci. 128, 140 (2017), tables of suggested paths: cF2, cI1, hP2, cP2
    [
        (aluminium(), "G X U|K G L W X"),
        (silicon(), "G X U|K G L W X"),
        (Crystal(5.4 * BCC, ("Fe",), np.zeros((1, 3))), "G H N G P H|P N"),
        (hexagonal(("Ti", "Ti"), 5.5, 1.6), "G M K G A L H A|L M|H K"),
        (Crystal(6.0 * np.eye(3), ("Po",), np.zeros((1, 3))), "G X M G R X|R M"),
    ],
)
def test_standard_paths(crystal: Crystal, labels: str) -> None:
    path = standard_path(crystal)
    assert " ".join(path.labels) == labels
    assert len(path.ticks) == len(path.labels)
    assert (path.ticks[0], path.ticks[-1]) == (0.0, path.distance[-1])
    assert (np.diff(path.distance) >= 0).all()
    assert 90 <= len(path.k) <= 115


def test_points_of_the_fcc_zone_and_steps_of_equal_length() -> None:
    path = standard_path(silicon(), "L G X, K G", 60)
    assert path.labels == ("L", "G", "X|K", "G")
    at = {
        label: path.k[np.flatnonzero(np.isclose(path.distance, tick))]
        for label, tick in zip(path.labels, path.ticks, strict=True)
    }
    np.testing.assert_allclose(at["L"][0], [0.5, 0.5, 0.5], atol=1e-12)
    np.testing.assert_allclose(
        at["X|K"], [[0.5, 0.0, 0.5], [3 / 8, 3 / 8, 3 / 4]], atol=1e-12
    )  # a jump has both points at one place
    cartesian = path.k @ silicon().reciprocal
    steps, along = np.linalg.norm(np.diff(cartesian, axis=0), axis=1), np.diff(path.distance)
    jump = along == 0
    assert jump.sum() == 1
    np.testing.assert_allclose(steps[~jump], along[~jump], atol=1e-12)
    assert along[~jump].max() < 1.5 * along[~jump].min()  # whole numbers of steps per segment


def test_unknown_points_are_refused_with_those_there_are() -> None:
    with pytest.raises(InputError) as error:
        standard_path(silicon(), "L G Q")
    assert (error.value.key, error.value.value) == ("dft.path", "Q")
    assert {"G", "X", "L", "W", "K", "U"} <= set(str(error.value.allowed).replace(",", "").split())
    for useless in ("", " , ", "G"):
        with pytest.raises(InputError, match=r"dft\.path"):
            standard_path(silicon(), useless)


def test_bands_at_the_k_points_of_the_cycle_are_its_eigenvalues() -> None:
    solver = make_solver(silicon(), 8.0, tolerance_ha=1e-12)
    ground = solver.run()
    assert ground is not None
    v = solver.local_potential(ground.rho_in)[0]
    again = band_energies(solver.basis, solver.ions, v, solver.mesh.k, 8, QuietContext())
    np.testing.assert_allclose(again[:, :4], ground.eps[:, :4], atol=1e-7)  # residuals of 1e-4 Ha, squared, over level distances
    np.testing.assert_allclose(again, ground.eps, atol=1e-6)
    # symmetry-equivalent points and k + G have the same bands
    k = np.array([[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3], [1.1, 0.2, -0.7]])
    eps = band_energies(solver.basis, solver.ions, v, k, 8, QuietContext())
    np.testing.assert_allclose(eps[1:], eps[:1].repeat(2, 0), atol=2e-7)


def test_band_structure_of_silicon() -> None:
    """Silicon in the LDA or PBE: valence top at Gamma, conduction bottom at 85 % of Gamma-X, indirect gap near 0.5 to 0.7 eV."""
    solver = make_solver(silicon(), 10.0, (4, 4, 4), tolerance_ha=1e-9)
    ground = solver.run()
    assert ground is not None
    path = standard_path(silicon(), "L G X", 40)
    eps = band_energies(solver.basis, solver.ions, solver.local_potential(ground.rho_in)[0], path.k, 6, QuietContext())
    found = gap(eps, path.k, 8.0)
    assert found is not None
    assert 0.4 < found.fundamental * 27.2114 < 0.8
    assert 2.3 < found.direct * 27.2114 < 2.8
    np.testing.assert_allclose(found.k_valence, 0.0, atol=1e-12)
    assert 0.75 < found.k_conduction.max() / 0.5 < 0.95
    at_gamma = eps[np.flatnonzero((path.k == 0).all(1))[0]]
    assert np.ptp(at_gamma[1:4]) < 1e-6  # threefold by symmetry, which the converged density has


def test_gap_of_known_bands() -> None:
    k = np.array([[0.0, 0, 0], [0.25, 0, 0], [0.5, 0, 0]])
    eps = np.array([[-1.0, 0.10, 0.60], [-0.9, 0.05, 0.35], [-0.8, 0.0, 0.40]])
    found = gap(eps, k, 4.0)
    assert found is not None
    assert found.fundamental == pytest.approx(0.25) and found.direct == pytest.approx(0.30)
    np.testing.assert_array_equal([found.k_valence, found.k_conduction], k[:2])
    assert gap(eps, k, 6.0) is None  # no empty band is known
    overlapping = np.array([[-1.0, 0.4, 0.6], [-0.9, 0.0, 0.35], [-0.8, 0.0, 0.4]])
    metal = gap(overlapping, k, 4.0)
    assert metal is not None and metal.fundamental == 0.0 and metal.direct == pytest.approx(0.2)
    odd = gap(eps, k, 3.0)
    assert odd is not None and (odd.fundamental, odd.direct) == (0.0, 0.0)


def test_a_path_can_be_had_without_symmetry() -> None:
    path = standard_path(low_symmetry(), "auto", 20)
    assert path.labels[0] == "G" or "G" in " ".join(path.labels)
    assert np.isfinite(path.k).all()
