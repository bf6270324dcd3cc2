"""What the readers of force fields share: `System`, the result; combination rules; elements from masses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.formats.elements import MASS_U, SYMBOLS
from gewu.formats.forcefield.graph import edges_of, reduced_box, whole
from gewu.formats.forcefield.topology import Array, Terms, Topology

Mixing = Literal["lorentz-berthelot", "geometric"]
_MASSES = np.array([MASS_U[symbol] for symbol in SYMBOLS[:103]])


@dataclass(frozen=True, eq=False)
class System:
    """A force field with the coordinates that came with it, in this folder's units.

    Args:
        topology: n atoms.
        position_n3: (n, 3) nm, molecules whole; None when no coordinates were given.
        velocity_n3: (n, 3) nm/ps or None.
        box_33: lower triangular and reduced, or None in vacuum.
    """

    topology: Topology
    position_n3: Array | None = None
    velocity_n3: Array | None = None
    box_33: Array | None = None


def new_system(topology: Topology, position_n3: Any, velocity_n3: Any, cell: Any, file: str) -> System:
    """Return a system whose box has the form of this folder, atoms rotated along with it, molecules whole.

    Args:
        topology: n atoms.
        position_n3: nm, in the frame of `cell`.
        velocity_n3: nm/ps or None.
        cell: (3, 3) vectors as rows, nm, any right-handed cell; or None.
        file: named in errors.
    """
    if len(position_n3) != len(topology):
        raise InputError(
            "coordinates are for another number of atoms", file=file, value=len(position_n3), allowed=f"{len(topology)}"
        )
    for name, array in (("coordinates", position_n3), ("velocities", velocity_n3)):
        if array is not None and not np.isfinite(array).all():
            raise InputError(f"{name} are not finite", file=file)
    if cell is None:
        return System(topology, np.array(position_n3), None if velocity_n3 is None else np.array(velocity_n3), None)
    rotation, box = reduced_box(cell)
    position = whole(np.asarray(position_n3) @ rotation, box, edges_of(topology))
    return System(topology, position, None if velocity_n3 is None else np.asarray(velocity_n3) @ rotation, box)


def mix(sigma_t: Any, epsilon_t: Any, rule: Mixing) -> tuple[Array, Array]:
    """Return (sigma_tt, epsilon_tt) of all pairs from those of the types.

    Raises:
        InputError: an unknown rule.
    """
    sigma, epsilon = np.asarray(sigma_t, np.float64), np.asarray(epsilon_t, np.float64)
    if rule not in ("lorentz-berthelot", "geometric"):
        raise InputError("unknown rule", key="mixing", value=rule, allowed="lorentz-berthelot, geometric")
    arithmetic = rule == "lorentz-berthelot"
    sigma_tt = (sigma[:, None] + sigma) / 2 if arithmetic else np.sqrt(sigma[:, None] * sigma)
    return sigma_tt, np.sqrt(epsilon[:, None] * epsilon)


def elements_of(mass_n: Array, names: Sequence[str], bonds: NDArray[Any]) -> tuple[str, ...]:
    """Return the element of each atom: the one whose mass is within 0.3 u, or "".

    Hydrogens (by name) heavier than 1.1 u took their mass from the atoms they are bonded to; it is given back first.
    """
    mass = np.array(mass_n, np.float64)
    hydrogen = np.array([name.lstrip("0123456789")[:1] in ("H", "h") for name in names], np.bool_) & (mass > 1.1) & (mass < 4.2)
    for i, j in ((0, 1), (1, 0)):
        taken = bonds[hydrogen[bonds[:, i]] & ~hydrogen[bonds[:, j]]]
        np.add.at(mass, taken[:, j], mass_n[taken[:, i]] - MASS_U["H"])
    mass[hydrogen] = MASS_U["H"]
    values, inverse = np.unique(mass, return_inverse=True)
    near = np.abs(values[:, None] - _MASSES).argmin(axis=1)
    symbols = np.where(np.abs(_MASSES[near] - values) < 0.3, np.array(SYMBOLS[: len(_MASSES)])[near], "")
    return tuple(symbols[inverse].tolist())


def terms(index: Any, parameter: Any, atoms: int, parameters: int) -> Terms:
    """Return a table of interactions from rows of atoms and of parameters, which may be empty."""
    return Terms(np.array(index, np.int32).reshape(-1, atoms), np.array(parameter, np.float64).reshape(-1, parameters))
