"""Symmetry: the reduced mesh and the symmetrised density change cost, never results."""

from __future__ import annotations

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.physics.dft import Basis, Crystal, grid_shape, reduce_mesh, space_group
from gewu.physics.dft.symmetry import IDENTITY, SpaceGroup, Symmetriser, primitive
from tests.dfttools import BCC, FCC, aluminium, ground_state, hexagonal, low_symmetry, make_basis, silicon

HCP = hexagonal(("Ti", "Ti"), 5.5, 1.6)
CRYSTALS = {
    "fcc": aluminium(),
    "diamond": silicon(),
    "diamond, origin elsewhere": silicon(shift=(0.125, 0.125, 0.125)),
    "hcp": HCP,
}
ROUNDING = 1e-13  # of sums over at most 48 operations of numbers of order one


def random_density(basis: Basis, seed: int = 1) -> np.ndarray:
    """Return the half-sphere coefficients of a random real function."""
    rng = np.random.default_rng(seed)
    out: np.ndarray = basis.to_sphere(basis.to_grid(rng.normal(size=len(basis.g)) + 1j * rng.normal(size=len(basis.g))))
    return out


def brute_force(basis: Basis, group: SpaceGroup, f: np.ndarray) -> np.ndarray:
    """Average f(G) <- f(R^T G) exp(-2 pi i G.t) over the group with a dictionary of all coefficients."""
    known = {}
    for g, value in zip(basis.g, f, strict=True):
        known[tuple(g)] = value
        known.setdefault(tuple(-g), value.conjugate())
    total = np.zeros(len(f), complex)
    for rotation, translation in zip(group.rotations, group.translations, strict=True):
        for i, g in enumerate(basis.g):
            total[i] += known[tuple(g @ rotation)] * np.exp(-2j * np.pi * g @ translation)
    return total / len(group.rotations)


@pytest.fixture(params=CRYSTALS)
def setting(request: pytest.FixtureRequest) -> tuple[Basis, SpaceGroup]:
    """Return a basis on a grid that non-symmorphic translations do not fit, and the space group."""
    crystal = CRYSTALS[request.param]
    shape = tuple(n + 1 if n % 2 == 0 else n for n in grid_shape(crystal, 3.0))
    return make_basis(crystal, 3.0, grid=shape), space_group(crystal)


def test_orders_of_the_groups() -> None:
    assert {name: len(space_group(c).rotations) for name, c in CRYSTALS.items()} == {
        "fcc": 48,
        "diamond": 48,
        "diamond, origin elsewhere": 48,
        "hcp": 24,
    }
    assert len(space_group(low_symmetry()).rotations) == 1
    assert np.abs(space_group(silicon()).translations).max() > 0.1  # diamond and hcp are non-symmorphic
    assert np.abs(space_group(HCP).translations).max() > 0.1


def test_the_symmetrised_density_is_the_average_over_the_group(setting: tuple[Basis, SpaceGroup]) -> None:
    basis, group = setting
    f = random_density(basis)
    np.testing.assert_allclose(Symmetriser(basis, group)(f), brute_force(basis, group, f), atol=ROUNDING)


def test_symmetrising_is_a_projection_that_keeps_the_charge(setting: tuple[Basis, SpaceGroup]) -> None:
    basis, group = setting
    symmetrise = Symmetriser(basis, group)
    f = random_density(basis)
    once = symmetrise(f)
    assert np.abs(once - f).max() > 0.1
    np.testing.assert_allclose(symmetrise(once), once, atol=ROUNDING)
    assert once[0] == pytest.approx(f[0], abs=ROUNDING)
    # in real space it stays real: the coefficients survive a real transform
    np.testing.assert_allclose(basis.to_sphere(basis.to_grid(once)), once, atol=ROUNDING)


def test_the_superposition_of_atoms_is_symmetric_already(setting: tuple[Basis, SpaceGroup]) -> None:
    basis, group = setting
    crystal = basis.crystal
    atoms = np.exp(-2j * np.pi * basis.g @ crystal.frac.T).sum(1) * np.exp(-basis.g2 / 8)
    np.testing.assert_allclose(
        Symmetriser(basis, group)(atoms), atoms, atol=1e-9
    )  # positions are exact to 1e-10 bohr, spglib's too


def test_the_trivial_group_changes_nothing() -> None:
    basis = make_basis(low_symmetry(), 3.0)
    f = random_density(basis)
    assert Symmetriser(basis, IDENTITY)(f) is f


@pytest.mark.parametrize("noise", [0.0, 1e-9, 3e-7])
def test_a_lattice_symmetric_only_to_its_digits_is_symmetrised_at_a_shell_on_the_cutoff(noise: float) -> None:
    """A structure file has finitely many digits: of the G vectors of one star some are then inside the sphere and some
    outside."""
    a = 10.0
    lattice = a * np.eye(3) + noise * np.array([[1, 0, 0], [0, -1, 0], [0, 0, 0]])
    crystal = Crystal(lattice, ("Si",), np.zeros((1, 3)))
    group = space_group(crystal)
    assert len(group.rotations) == 48
    cutoff = (2 * np.pi / a * 6) ** 2 / 8  # |G|^2 = 8 E_cut for (6, 0, 0), (4, 4, 2) ...
    basis = make_basis(crystal, cutoff)
    atom = np.exp(-basis.g2 / 8) + 0j
    symmetrised = Symmetriser(basis, group)(atom)
    shell = np.abs(basis.g2 - 8 * cutoff) < 1e-3
    assert shell.sum() > 5
    np.testing.assert_allclose(symmetrised[~shell], atom[~shell], atol=1e-6)  # the noise itself
    if noise:  # stars that are not complete are left out
        np.testing.assert_array_equal(symmetrised[shell], 0.0)
    else:
        np.testing.assert_allclose(symmetrised[shell], atom[shell], atol=ROUNDING)


@pytest.mark.parametrize(
    ("crystal", "mesh", "shift", "count", "operations"),
    [
        (silicon(), (4, 4, 4), (0.0, 0.0, 0.0), 8, 48),  # Chadi and Cohen; pw.x prints 8
        (silicon(), (4, 4, 4), (0.5, 0.5, 0.5), 10, 12),  # Monkhorst and Pack's ten special points of the fcc zone
        (silicon(), (2, 2, 2), (0.5, 0.5, 0.5), 2, 12),  # Chadi and Cohen's two
        (silicon(), (1, 1, 1), (0.0, 0.0, 0.0), 1, 48),
        (aluminium(), (8, 8, 8), (0.0, 0.0, 0.0), 29, 48),  # pw.x prints 29
        (Crystal(10.26 * np.eye(3), ("Si",), np.zeros((1, 3))), (2, 2, 2), (0.0, 0.0, 0.0), 4, 48),
        (Crystal(10.26 * np.eye(3), ("Si",), np.zeros((1, 3))), (2, 2, 3), (0.0, 0.0, 0.0), 6, 16),  # tetragonal mesh
        (Crystal(10.26 * np.eye(3), ("Si",), np.zeros((1, 3))), (2, 3, 4), (0.0, 0.0, 0.0), 12, 8),  # orthorhombic mesh
        (Crystal(10.26 * np.eye(3), ("Si",), np.zeros((1, 3))), (2, 2, 2), (0.5, 0.0, 0.0), 3, 16),
        (low_symmetry(), (3, 3, 3), (0.0, 0.0, 0.0), 14, 1),  # time reversal alone
    ],
)
def test_known_numbers_of_irreducible_points(
    crystal: Crystal, mesh: tuple[int, int, int], shift: tuple[float, float, float], count: int, operations: int
) -> None:
    points, kept = reduce_mesh(mesh, shift, space_group(crystal))
    assert (len(points.k), len(kept.rotations)) == (count, operations)
    assert points.weight.sum() == pytest.approx(1.0, abs=1e-15)
    whole = points.weight * np.prod(mesh)
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-12)
    assert (points.k > -0.5).all() and (points.k <= 0.5).all()


@pytest.mark.parametrize("crystal", [silicon(), HCP, Crystal(5.4 * BCC, ("Fe",), np.zeros((1, 3)))])
def test_the_stars_of_the_irreducible_points_fill_the_mesh(crystal: Crystal) -> None:
    mesh = (4, 4, 4)
    points, kept = reduce_mesh(mesh, (0.0, 0.0, 0.0), space_group(crystal))
    seen: set[tuple[int, ...]] = set()
    for k, weight in zip(points.k, points.weight, strict=True):
        images = np.concatenate([s * (k @ np.linalg.inv(kept.rotations)) for s in (1, -1)])
        star = {tuple(np.round(4 * x).astype(int) % 4) for x in images}
        assert len(star) == round(weight * 64)
        assert not star & seen
        seen |= star
    assert len(seen) == 64


def test_only_half_steps_shift_a_mesh() -> None:
    with pytest.raises(InputError, match="half steps"):
        reduce_mesh((2, 2, 2), (0.25, 0.0, 0.0), space_group(silicon()))


@pytest.mark.parametrize(
    ("crystal", "options"),
    [
        (silicon(), {}),
        (silicon(shift=(0.03, 0.07, 0.11)), {"shift": (0.5, 0.5, 0.5)}),
        (aluminium(), {"smearing": "gaussian", "width_ha": 0.02}),
        (hexagonal(("C", "C"), 4.65, 1.3), {"smearing": "gaussian", "width_ha": 0.02, "mesh": (2, 2, 1)}),
    ],
)
def test_the_reduced_mesh_gives_the_energy_of_the_whole(crystal: Crystal, options: dict[str, object]) -> None:
    """On the grid that the group maps onto itself both are the same sum; cycles converge to 1e-10 Ha."""
    reduced, whole = (ground_state(crystal, 6.0, symmetry=s, **options) for s in (True, False))
    assert len(reduced.eps) < len(whole.eps)
    assert reduced.energy == pytest.approx(whole.energy, abs=1e-9)
    for name, value in reduced.energies.items():
        # single terms are first order in the density error: square root of 1e-10
        assert value == pytest.approx(whole.energies[name], abs=3e-5), name


def test_the_reduced_mesh_gives_the_density_of_the_whole() -> None:
    reduced, whole = (ground_state(silicon(), 6.0, symmetry=s, tolerance_ha=1e-13).rho_g for s in (True, False))
    np.testing.assert_allclose(reduced, whole, atol=1e-8)  # first order in the error, whose square is 1e-13


def test_primitive_cell_of_the_conventional_one() -> None:
    frac = np.concatenate([silicon().frac @ FCC + shift for shift in ([0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0])])
    conventional = Crystal(10.26 * np.eye(3), ("Si",) * 8, frac)
    cell = primitive(conventional)
    assert cell.symbols == ("Si", "Si")
    assert cell.volume == pytest.approx(conventional.volume / 4, rel=1e-10)
    assert np.linalg.det(cell.lattice) > 0
    assert primitive(silicon()).lattice is silicon().lattice or len(primitive(silicon())) == 2
    assert ground_state(cell, 6.0).energy == pytest.approx(
        ground_state(silicon(), 6.0).energy, abs=1e-8
    )  # another origin, PBE grid
