"""The compact force field of a job file: Lennard-Jones parameters by element, and charges.

Without parameters it describes atoms that only many-body potentials act on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gewu.core.errors import InputError
from gewu.formats.elements import MASS_U
from gewu.formats.forcefield.system import Mixing, mix
from gewu.formats.forcefield.topology import Topology


def lennard_jones(
    symbols: Sequence[str],
    parameters: Mapping[str, tuple[float, float]],
    *,
    mixing: Mixing = "lorentz-berthelot",
    charges: Mapping[str, float] | None = None,
) -> Topology:
    """Return the topology of atoms or ions without bonds.

    Args:
        symbols: n elements.
        parameters: (epsilon in kJ/mol, sigma in nm) of each element.
        mixing: rule for unlike pairs: "lorentz-berthelot" or "geometric".
        charges: charge of each element in e; 0 where none is given.

    Raises:
        InputError: an element without parameters, or a parameter that is not usable.

    Example:
        >>> argon = lennard_jones(["Ar"] * 108, {"Ar": (0.996, 0.3405)})
        >>> len(argon), argon.type_names
        (108, ('Ar',))
    """
    names = tuple(dict.fromkeys(symbols))
    charges = charges or {}
    for name in names:
        if name not in MASS_U:
            raise InputError("unknown element", key="force_field", value=name)
        if name not in parameters:
            given = ", ".join(parameters) or "none"
            raise InputError(f"no Lennard-Jones parameters for {name}", key="force_field", hint=f"given are those of {given}")
        epsilon, sigma = parameters[name]
        if not (0 <= epsilon < 1e4 and 0 <= sigma < 10 and np.isfinite(charges.get(name, 0.0))):
            allowed = "epsilon 0 to 1e4 kJ/mol, sigma 0 to 10 nm"
            raise InputError("parameters out of range", key=f"force_field {name}", value=(epsilon, sigma), allowed=allowed)
    if unknown := sorted(set(charges) - set(names)):
        raise InputError("charge of an element that is not there", key="charges", value=unknown[0], allowed=", ".join(names))
    kind = np.array([names.index(symbol) for symbol in symbols], np.int32)
    values = np.array([parameters[name] for name in names], np.float64).reshape(-1, 2)
    sigma_tt, epsilon_tt = mix(values[:, 1], values[:, 0], mixing)
    return Topology(
        mass_n=np.array([MASS_U[name] for name in names])[kind],
        charge_n=np.array([float(charges.get(name, 0.0)) for name in names])[kind],
        type_n=kind,
        type_names=names,
        element=tuple(symbols),
        sigma_tt=sigma_tt,
        epsilon_tt=epsilon_tt,
        atom_name=tuple(symbols),
    )
