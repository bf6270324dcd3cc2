"""Ewald's sum: published Madelung constants, independence of the splitting and of the choice of cell."""

from __future__ import annotations

import numpy as np
import pytest

from gewu.physics.dft import Crystal
from gewu.physics.dft.ewald import ewald_energy
from tests.dfttools import FCC, low_symmetry, silicon

EXACT = 1e-12  # relative: both sums are cut at 1e-17, some hundred terms are added


@pytest.mark.parametrize(
    ("name", "madelung", "lattice", "other", "neighbour"),
    # Madelung constants referred to the distance of nearest neighbours: Crandall, Experimental Mathematics 8, 367 (1999);
    # Kittel, Introduction to Solid State Physics, chapter 3.
    [
        ("NaCl", 1.747564594633182, FCC, (0.5, 0.5, 0.5), 0.5),
        ("CsCl", 1.76267477307099, np.eye(3), (0.5, 0.5, 0.5), np.sqrt(0.75)),
        ("ZnS", 1.63805505338879, FCC, (0.25, 0.25, 0.25), np.sqrt(3) / 4),
    ],
)
def test_madelung_constants(name: str, madelung: float, lattice: np.ndarray, other: tuple[float, ...], neighbour: float) -> None:
    a = 7.3
    crystal = Crystal(a * lattice, ("Na", "Cl"), np.array([[0.0, 0.0, 0.0], other]))
    energy = ewald_energy(crystal, np.array([1.0, -1.0]))
    assert energy == pytest.approx(-madelung / (a * neighbour), rel=2e-13 if name == "NaCl" else 1e-11)  # printed digits


def test_ions_in_a_background() -> None:
    # Wigner crystal on an fcc lattice: E = -0.895873615 / r_s per electron (Fuchs 1935; digits of Coldwell-Horsfall,
    # Maradudin 1960)
    a = 5.0
    crystal = Crystal(a * FCC, ("H",), np.zeros((1, 3)))
    r_s = (3 * crystal.volume / (4 * np.pi)) ** (1 / 3)
    assert ewald_energy(crystal, np.ones(1)) * r_s == pytest.approx(-0.895873615, abs=1e-8)


@pytest.mark.parametrize("factor", [0.6, 0.8, 1.3, 1.8])
def test_the_splitting_does_not_matter(factor: float) -> None:
    crystal, charges = low_symmetry(), np.array([4.0, -2.5])
    balanced = np.sqrt(np.pi) * (len(crystal) / crystal.volume**2) ** (1 / 6)
    assert ewald_energy(crystal, charges, factor * balanced) == pytest.approx(ewald_energy(crystal, charges), rel=EXACT)


def test_translation_wrapping_and_exchange_of_atoms() -> None:
    crystal, charges = low_symmetry(), np.array([4.0, 3.0])
    energy = ewald_energy(crystal, charges)
    for shift in ((0.3, -0.2, 0.9), (1.0, -2.0, 3.0)):
        moved = Crystal(crystal.lattice, crystal.symbols, crystal.frac + shift)
        assert ewald_energy(moved, charges) == pytest.approx(energy, rel=EXACT)
    one_over = Crystal(crystal.lattice, crystal.symbols, crystal.frac + np.array([[0, 0, 0], [1, -1, 2]]))
    assert ewald_energy(one_over, charges) == pytest.approx(energy, rel=EXACT)
    exchanged = Crystal(crystal.lattice, crystal.symbols[::-1], crystal.frac[::-1])
    assert ewald_energy(exchanged, charges[::-1]) == pytest.approx(energy, rel=EXACT)


def test_supercell_and_skewed_cell() -> None:
    crystal = silicon()
    energy = ewald_energy(crystal, np.full(2, 4.0))
    double = Crystal(
        np.diag([3, 1, 1]) @ crystal.lattice,
        ("Si",) * 6,
        np.concatenate([(crystal.frac + np.eye(3)[0] * i) / [3, 1, 1] for i in range(3)]),
    )
    assert ewald_energy(double, np.full(6, 4.0)) == pytest.approx(3 * energy, rel=EXACT)
    change = np.array([[1, 0, 0], [4, 1, 0], [-3, 2, 1]])  # the same lattice, other vectors
    skewed = Crystal(change @ crystal.lattice, crystal.symbols, crystal.frac @ np.linalg.inv(change))
    assert ewald_energy(skewed, np.full(2, 4.0)) == pytest.approx(energy, rel=EXACT)


def test_energy_scales_as_charge_squared_over_length() -> None:
    crystal = low_symmetry()
    charges = np.array([1.0, 2.0])
    energy = ewald_energy(crystal, charges)
    grown = Crystal(1.7 * crystal.lattice, crystal.symbols, crystal.frac)
    assert ewald_energy(grown, 3 * charges) == pytest.approx(9 / 1.7 * energy, rel=EXACT)
