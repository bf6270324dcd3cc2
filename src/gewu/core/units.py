"""Physical constants and unit conversion at the boundaries of gewu.

Every constant is the CODATA 2018 recommended value (E. Tiesinga, P. J. Mohr, D. B. Newell, B. N. Taylor, Rev. Mod. Phys. 93,
025010 (2021)) or follows from one. Inside a room there is one set of units (`docs/units.md`); a quantity that crosses a boundary
carries its unit as the suffix of its name. Conversion is one multiplication, so its relative error is that of float64.
"""

from __future__ import annotations

from typing import Final

from gewu.core.errors import InputError, did_you_mean

# Exact since the SI of 2019.
PLANCK_J_S: Final = 6.62607015e-34
BOLTZMANN_J_PER_K: Final = 1.380649e-23
ELEMENTARY_CHARGE_C: Final = 1.602176634e-19
AVOGADRO_PER_MOL: Final = 6.02214076e23
LIGHT_SPEED_M_PER_S: Final = 299792458.0
CALORIE_J: Final = 4.184  # thermochemical calorie, by definition

# CODATA 2018.
HARTREE_EV: Final = 27.211386245988
HARTREE_J: Final = 4.3597447222071e-18
HARTREE_RY: Final = 2.0
HARTREE_PER_CM: Final = 219474.63136320
BOHR_ANGSTROM: Final = 0.529177210903
KELVIN_HARTREE: Final = 3.1668115634556e-6
ATOMIC_TIME_S: Final = 2.4188843265857e-17
ELECTRON_MASS_KG: Final = 9.1093837015e-31
DALTON_KG: Final = 1.66053906660e-27
VACUUM_PERMITTIVITY_F_PER_M: Final = 8.8541878128e-12

# Derived.
RYDBERG_EV: Final = HARTREE_EV / HARTREE_RY
BOHR_M: Final = BOHR_ANGSTROM * 1e-10
DALTON_ELECTRON_MASS: Final = DALTON_KG / ELECTRON_MASS_KG
ATOMIC_PRESSURE_PA: Final = HARTREE_J / BOHR_M**3

# Dimension -> unit -> how many of the dimension's first unit make one of it.
_TABLE: Final[dict[str, dict[str, float]]] = {
    "energy": {
        "Ha": 1.0,
        "Ry": 1.0 / HARTREE_RY,
        "eV": 1.0 / HARTREE_EV,
        "meV": 1e-3 / HARTREE_EV,
        "J": 1.0 / HARTREE_J,
        "kJ/mol": 1e3 / (AVOGADRO_PER_MOL * HARTREE_J),
        "kcal/mol": 1e3 * CALORIE_J / (AVOGADRO_PER_MOL * HARTREE_J),
        "cm^-1": 1.0 / HARTREE_PER_CM,
    },
    "length": {"bohr": 1.0, "angstrom": 1.0 / BOHR_ANGSTROM, "nm": 10.0 / BOHR_ANGSTROM, "m": 1.0 / BOHR_M},
    "time": {"s": 1.0, "ps": 1e-12, "fs": 1e-15, "au_time": ATOMIC_TIME_S},
    "mass": {"electron_mass": 1.0, "u": DALTON_ELECTRON_MASS, "kg": 1.0 / ELECTRON_MASS_KG},
    "force": {"Ha/bohr": 1.0, "eV/angstrom": BOHR_ANGSTROM / HARTREE_EV, "N": BOHR_M / HARTREE_J},
    "pressure": {
        "Ha/bohr^3": 1.0,
        "eV/angstrom^3": BOHR_ANGSTROM**3 / HARTREE_EV,
        "Pa": 1.0 / ATOMIC_PRESSURE_PA,
        "GPa": 1e9 / ATOMIC_PRESSURE_PA,
        "kbar": 1e8 / ATOMIC_PRESSURE_PA,
    },
}
_DIMENSION: Final[dict[str, str]] = {unit: dimension for dimension, units in _TABLE.items() for unit in units}


def convert(value: float, source: str, target: str) -> float:
    """Convert a value from one unit to another of the same dimension.

    Args:
        value: number in `source` units.
        source: unit of `value`, spelled as in `docs/units.md` (for example "eV", "angstrom", "fs").
        target: unit wanted, of the same dimension.

    Returns:
        The number in `target` units.

    Raises:
        InputError: a unit is unknown, or the two units measure different things.

    Example:
        >>> round(convert(1.0, "Ha", "eV"), 6)
        27.211386
    """
    for unit in (source, target):
        if unit not in _DIMENSION:
            allowed = ", ".join(_DIMENSION)
            raise InputError("unknown unit", value=unit, allowed=allowed, hint=did_you_mean(unit, _DIMENSION))
    dimension = _DIMENSION[source]
    if _DIMENSION[target] != dimension:
        raise InputError(
            f"a unit of {dimension} cannot be converted to a unit of {_DIMENSION[target]}",
            value=f"{source} -> {target}",
            allowed=", ".join(_TABLE[dimension]),
        )
    if source == target:
        return value
    return value * (_TABLE[dimension][source] / _TABLE[dimension][target])
