"""Plane waves and grids: what is in a sphere, which grids hold it, and that transforms are inverse to each other."""

from __future__ import annotations

import numpy as np
import pytest

from gewu.core.arrays import Arrays
from gewu.core.errors import InputError
from gewu.physics.dft import Basis, Crystal, grid_shape, space_group
from tests.dfttools import DEVICES, HEX, hexagonal, low_symmetry, make_basis, on_device, silicon

ROUNDING = 1e-13


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """Return the namespace of each device at hand."""
    return on_device(request.param, monkeypatch)


@pytest.mark.parametrize("k", [(0.0, 0.0, 0.0), (0.5, -0.5, 0.25), (3.1, -2.2, 0.7)])
def test_the_sphere_holds_all_waves_below_the_cutoff_and_no_other(k: tuple[float, ...]) -> None:
    crystal = low_symmetry()
    sphere = make_basis(crystal, 5.0).sphere(np.array(k))
    g = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3, indexing="ij"), -1).reshape(-1, 3)
    kinetic = (((g + k) @ crystal.reciprocal) ** 2).sum(1) / 2
    assert {tuple(x) for x in sphere.g} == {tuple(x) for x in g[kinetic <= 5.0]}
    np.testing.assert_allclose(sphere.kinetic, (sphere.kpg**2).sum(1) / 2, rtol=1e-13)
    assert len(np.unique(sphere.index)) == len(sphere.g) and sphere.index.max() < np.prod(sphere.box)


def test_waves_and_grid_are_inverse(device: Arrays) -> None:
    basis = make_basis(low_symmetry(), 5.0, device)
    sphere = basis.sphere(np.array([0.1, 0.2, 0.3]))
    rng = np.random.default_rng(0)
    c = rng.normal(size=(1, len(sphere.g))) + 1j * rng.normal(size=(1, len(sphere.g)))
    index = device.put(sphere.index)
    f = basis.wave_to_grid(sphere, index, device.put(c))
    host = device.get(f).copy()
    np.testing.assert_allclose(device.get(basis.wave_to_sphere(sphere, index, f)), c, atol=ROUNDING)
    # point by point, up to the phase of the sphere's shift, which |psi|^2 does not have
    points = np.array([[0, 0, 0], [1, 2, 3], [7, 0, 5]])
    expected = [abs((c[0] * np.exp(2j * np.pi * sphere.g @ (p / basis.grid))).sum()) for p in points]
    np.testing.assert_allclose(np.abs(host[0][tuple(points.T)]), expected, atol=1e-12)


def test_density_sphere_and_grid_are_inverse_and_obey_parseval(device: Arrays) -> None:
    basis = make_basis(low_symmetry(), 3.0, device)
    rng = np.random.default_rng(1)
    f = basis.to_grid(device.put(rng.normal(size=len(basis.g)) + 1j * rng.normal(size=len(basis.g))))
    f_g = basis.to_sphere(f)
    np.testing.assert_allclose(device.get(basis.to_grid(f_g)), device.get(f), atol=1e-12)
    square = float((device.put(basis.weight) * (f_g.conj() * f_g).real).sum())
    assert square == pytest.approx(float((f * f).mean()), rel=1e-12)
    assert basis.g2.max() <= 8 * 3.0 * (1 + 1e-12)
    assert tuple(basis.g[0]) == (0, 0, 0)  # others rely on it


@pytest.mark.parametrize("cutoff", [3.0, 5.0, 8.0, 15.0, 25.0])
@pytest.mark.parametrize("crystal", [silicon(), low_symmetry(), hexagonal(("Ti", "Ti"), 5.5, 1.6)])
def test_the_automatic_grid_holds_the_density_sphere_and_fits_the_translations(crystal: Crystal, cutoff: float) -> None:
    translations = space_group(crystal).translations
    shape = grid_shape(crystal, cutoff, translations)
    steps = translations * shape
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)  # translations are known to 1e-5 bohr
    Basis(crystal, cutoff, shape, make_basis(crystal, cutoff).arrays)
    g = make_basis(crystal, cutoff, grid=shape).g
    assert (2 * np.abs(g).max(0) < shape).all()


@pytest.mark.parametrize("cutoff", [4.0, 6.0, 7.3, 9.0])
def test_a_grid_on_which_two_waves_of_the_density_meet_is_refused(cutoff: float) -> None:
    crystal = Crystal(7.0 * HEX, ("C",), np.zeros((1, 3)))
    needed = tuple(2 * np.abs(make_basis(crystal, cutoff, grid=(64, 64, 64)).g).max(0) + 1)
    make_basis(crystal, cutoff, grid=[n + 1 for n in needed])
    for axis in range(3):
        small = [n + 1 for n in needed]
        small[axis] = needed[axis] - 1
        with pytest.raises(InputError, match="too coarse") as error:
            make_basis(crystal, cutoff, grid=small)
        assert error.value.key == "dft.fft_grid" and "at least" in str(error.value)


def test_no_wave_below_the_cutoff() -> None:
    with pytest.raises(InputError, match="no plane wave"):
        make_basis(silicon(), 0.01).sphere(np.array([0.5, 0.5, 0.5]))
