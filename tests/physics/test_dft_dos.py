"""Linear tetrahedra against what is known exactly: counts, linear bands, a free electron, flat bands, electrons of a metal."""

from __future__ import annotations

import numpy as np
import pytest

from gewu.physics.dft.dos import density_of_states, states_below, tetrahedra
from gewu.physics.dft.symmetry import IDENTITY, KMesh, reduce_mesh
from tests.dfttools import BCC, aluminium, make_solver


def whole_mesh(shape: tuple[int, int, int]) -> KMesh:
    count = int(np.prod(shape))
    k = np.stack(np.meshgrid(*[np.arange(n) / n for n in shape], indexing="ij"), -1).reshape(-1, 3)
    return KMesh(k, np.full(count, 1 / count), shape, np.arange(count))


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1), (2, 1, 6)])
def test_the_tetrahedra_use_every_point_equally(shape: tuple[int, int, int]) -> None:
    corners = tetrahedra(shape, 2 * np.pi * np.linalg.inv(BCC).T)
    assert corners.shape == (6 * np.prod(shape), 4)
    assert (np.bincount(corners.ravel(), minlength=int(np.prod(shape))) == 24).all()


def test_the_share_filled_is_the_volume_below_a_plane() -> None:
    # with corner energies e the share below E is the probability that a random convex combination of them lies below E
    rng = np.random.default_rng(4)
    weights = rng.dirichlet(np.ones(4), 400_000)
    for _ in range(5):
        e = np.sort(rng.normal(size=4))
        energies = np.linspace(e[0] - 0.1, e[3] + 0.1, 9)
        found = states_below(e[None], energies)
        expected = (weights @ e < energies[:, None]).mean(1)
        np.testing.assert_allclose(found, expected, atol=0.004)  # five deviations of 400,000 samples


def test_equal_corners_fill_at_once() -> None:
    energies = np.array([-1.0, 0.0, 1e-9, 1.0])
    np.testing.assert_allclose(states_below(np.zeros((3, 4)), energies), [0.0, 0.0, 1.0, 1.0])
    two_levels = np.array([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.5], [0.0, 0.5, 0.5, 0.5]])
    shares = states_below(two_levels, np.array([0.25]))
    # by the formulas' limits: 1/2 for the even split, 1 - 1/8 and 1/8 for the others
    assert shares[0] == pytest.approx((0.5 + 0.875 + 0.125) / 3, rel=1e-12)


def test_a_free_electron_has_a_root_of_the_energy() -> None:
    lattice = 2 * np.pi * np.eye(3)  # k runs over [-1/2, 1/2)^3 with energies k^2/2 up to 1/8 inside the sphere
    mesh = whole_mesh((24, 24, 24))
    k = mesh.k - np.round(mesh.k)
    eps = 0.5 * (k**2).sum(1, keepdims=True)
    energies, dos, states = density_of_states(eps, mesh, 2 * np.pi * np.linalg.inv(lattice).T, 0.002, 0.11)
    inside = (energies > 0.03) & (energies < 0.1)
    exact_states = 2 * 4 / 3 * np.pi * (2 * energies[inside]) ** 1.5
    np.testing.assert_allclose(states[inside], exact_states, rtol=0.03)  # linear interpolation: (h/k)^2, h = 1/24
    np.testing.assert_allclose(dos[inside], 8 * np.pi * np.sqrt(2 * energies[inside]), rtol=0.03)


def test_a_single_point_gives_gaussians_that_hold_two_electrons_each() -> None:
    energies, dos, states = density_of_states(np.array([[0.1, 0.4]]), whole_mesh((1, 1, 1)), np.eye(3), 0.01, 0.6)
    step = energies[1] - energies[0]
    assert dos.sum() * step == pytest.approx(4.0, rel=1e-9)
    assert states[-1] == pytest.approx(4.0)
    peak = dos[np.argmin(abs(energies - 0.1))]
    assert peak == pytest.approx(
        2 / (0.01 * np.sqrt(2 * np.pi)), rel=0.03
    )  # five steps a width: the grid misses the top by a tenth


def test_reduced_and_whole_meshes_agree_and_hold_the_electrons() -> None:
    solver = make_solver(aluminium(), 6.0, (6, 6, 6), smearing="gaussian", width_ha=0.02)
    ground = solver.run()
    assert ground is not None
    reciprocal = aluminium().reciprocal
    _, dos, _ = density_of_states(ground.eps, solver.mesh, reciprocal, 0.01, 0.5)
    whole, _ = reduce_mesh((6, 6, 6), (0.0, 0.0, 0.0), IDENTITY)
    same_star = _star_representatives(whole.k, solver.mesh)
    unfolded = KMesh(whole.k, whole.weight, (6, 6, 6), np.arange(len(whole.k))[whole.full])
    _, again, _ = density_of_states(ground.eps[same_star], unfolded, reciprocal, 0.01, 0.5)
    np.testing.assert_allclose(again, dos, atol=1e-9 * dos.max())
    energies, _, states = density_of_states(ground.eps, solver.mesh, reciprocal, 0.01, 0.5)
    assert np.interp(ground.occupations.mu, energies, states) == pytest.approx(3.0, abs=0.1)  # two ways to integrate a 6x6x6 mesh


def _star_representatives(k: np.ndarray, mesh: KMesh) -> np.ndarray:
    """Return for each k of the time-reversed half mesh the irreducible point whose star holds it."""
    index = np.round(k * np.array(mesh.shape)).astype(int) % np.array(mesh.shape)
    return mesh.full[np.ravel_multi_index(tuple(index.T), mesh.shape)]
