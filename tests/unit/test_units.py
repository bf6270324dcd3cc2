"""Constants against the exact SI constants and SciPy's table; conversions against each other."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from scipy import constants

from gewu.core import units
from gewu.core.errors import InputError


@pytest.mark.parametrize(
    ("ours", "name"),
    [
        (units.HARTREE_EV, "Hartree energy in eV"),
        (units.HARTREE_J, "Hartree energy"),
        (units.HARTREE_PER_CM * 100.0, "hartree-inverse meter relationship"),
        (units.BOHR_M, "Bohr radius"),
        (units.KELVIN_HARTREE, "kelvin-hartree relationship"),
        (units.ATOMIC_TIME_S, "atomic unit of time"),
        (units.ELECTRON_MASS_KG, "electron mass"),
        (units.DALTON_KG, "atomic mass constant"),
        (units.RYDBERG_EV, "Rydberg constant times hc in eV"),
        (units.PLANCK_J_S, "Planck constant"),
        (units.BOLTZMANN_J_PER_K, "Boltzmann constant"),
        (units.ELEMENTARY_CHARGE_C, "elementary charge"),
        (units.AVOGADRO_PER_MOL, "Avogadro constant"),
        (units.LIGHT_SPEED_M_PER_S, "speed of light in vacuum"),
    ],
)
def test_constants_agree_with_scipy(ours: float, name: str) -> None:
    # SciPy may carry another CODATA year: between 2018 and 2022 the masses moved by 1.4e-9 relative, all else by less.
    assert math.isclose(ours, constants.physical_constants[name][0], rel_tol=2e-9)


def test_constants_agree_with_each_other() -> None:
    # CODATA prints 11 to 14 digits: products of rounded figures agree to the shortest, 1e-11.
    assert math.isclose(units.HARTREE_EV * units.ELEMENTARY_CHARGE_C, units.HARTREE_J, rel_tol=1e-11)
    assert math.isclose(units.BOLTZMANN_J_PER_K / units.HARTREE_J, units.KELVIN_HARTREE, rel_tol=1e-11)
    hbar = units.PLANCK_J_S / (2.0 * math.pi)
    assert math.isclose(hbar / units.HARTREE_J, units.ATOMIC_TIME_S, rel_tol=1e-11)
    # The masses carry 1.5e-10 of experimental rounding.
    assert math.isclose(hbar**2 / (units.ELECTRON_MASS_KG * units.BOHR_M**2), units.HARTREE_J, rel_tol=2e-9)
    assert math.isclose(units.DALTON_ELECTRON_MASS, 1822.888486209, rel_tol=2e-9)


@pytest.mark.parametrize(
    ("value", "source", "target", "expected"),
    [
        (1.0, "Ha", "Ry", 2.0),
        (1.0, "eV", "kJ/mol", 96.48533212331),  # Faraday constant / 1000, exact in the SI
        (1.0, "kcal/mol", "kJ/mol", 4.184),
        (1.0, "Ha/bohr^3", "GPa", 29421.015697),
        (1.0, "eV/angstrom^3", "GPa", 160.21766340),  # e * 1e30 / 1e9, exact in the SI
        (1.0, "eV/angstrom", "N", 1.602176634e-9),
        (10.0, "kbar", "GPa", 1.0),
        (1.0, "nm", "angstrom", 10.0),
        (1.0, "ps", "fs", 1000.0),
        (1.0, "u", "kg", 1.66053906660e-27),
        (-3.5, "meV", "eV", -0.0035),
    ],
)
def test_convert_known_values(value: float, source: str, target: str, expected: float) -> None:
    # The expected values carry 11 digits or more; the atomic pressure 2e-10 from the Bohr radius.
    assert math.isclose(units.convert(value, source, target), expected, rel_tol=5e-10)


def test_convert_back_and_forth() -> None:
    for table in units._TABLE.values():
        for source in table:
            assert units.convert(0.1, source, source) == 0.1
            for target in table:
                back = units.convert(units.convert(0.1, source, target), target, source)
                assert math.isclose(back, 0.1, rel_tol=1e-15)  # four roundings of 1.1e-16 each


def test_unknown_and_mismatched_units_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'angstrom'"):
        units.convert(1.0, "angstroms", "bohr")
    with pytest.raises(InputError, match="unit of energy cannot be converted to a unit of length"):
        units.convert(1.0, "eV", "bohr")
    with pytest.raises(InputError, match="unknown unit"):
        units.convert(1.0, "eV", "")


def test_the_documentation_names_every_unit_and_constant() -> None:
    page = (Path(__file__).parents[2] / "docs" / "units.md").read_text(encoding="utf-8")
    missing = [unit for unit in units._DIMENSION if f"`{unit}`" not in page]
    named = dict(re.findall(r"^\| `([A-Z_]+)` \| (\S+) \|", page, re.MULTILINE))
    assert missing == []
    assert named == {name: repr(value) for name, value in vars(units).items() if name.isupper() and not name.startswith("_")}
