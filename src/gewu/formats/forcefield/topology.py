"""What a system is made of: `Topology`, a force field applied to atoms, and `Terms`, one table of its interactions.

Units of this folder: nm, ps, u, kJ/mol, e, radians; files in others are converted when they become a `Topology`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import partial
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gewu.core.units import AVOGADRO_PER_MOL, CALORIE_J, ELEMENTARY_CHARGE_C

Array = NDArray[np.float64]
Index = NDArray[np.int32]

ANGSTROM: Final = 0.1
"""One angstrom in nm."""
EV: Final = ELEMENTARY_CHARGE_C * AVOGADRO_PER_MOL * 1e-3
"""One eV in kJ/mol."""
KCAL: Final = CALORIE_J
"""One kcal/mol in kJ/mol."""


class Terms(NamedTuple):
    """Interactions of one kind: which atoms, (m, k) int32, and with which parameters, (m, p) float64."""

    index: Index  # type: ignore[assignment]  # hides tuple.index, which is not missed
    parameter: Array


def no_terms(atoms: int, parameters: int) -> Terms:
    """Return an empty table of interactions between `atoms` atoms with `parameters` numbers each."""
    return Terms(np.zeros((0, atoms), np.int32), np.zeros((0, parameters)))


@dataclass(frozen=True, eq=False)
class Topology:
    """A force field applied to n atoms, in nm, u, kJ/mol, e and rad.

    Args:
        mass_n: (n,) masses; 0 for virtual sites.
        charge_n: (n,) charges.
        type_n: (n,) int32 rows of the Lennard-Jones tables.
        type_names: T names of the types.
        element: n element symbols ("" for virtual sites).
        sigma_tt, epsilon_tt: (T, T) Lennard-Jones parameters, U = 4 eps [(sigma/r)^12 - (sigma/r)^6].
        atom_name, residue_name, residue_n: names for writers and messages; may be empty.
        molecule_n: (n,) int32 molecule of each atom; empty: every atom by itself.
        bonds: (k, r0), U = k/2 (r - r0)^2.
        angles: (k, theta0), U = k/2 (theta - theta0)^2.
        urey_bradley: outer pair of an angle, (k, r0), as bonds.
        dihedrals: (k, phase, n), U = k [1 + cos(n phi - phase)]; AMBER's and CHARMM's impropers too.
        ryckaert: (c0..c5), U = sum c_m cos^m(phi - pi).
        impropers: (k, xi0), U = k/2 (xi - xi0)^2, xi the dihedral angle, difference taken modulo 2 pi.
        cmap: five atoms, (number of the grid); phi from the first four, psi from the last four.
        cmap_grids: (g, K, K) energies on phi, psi = -pi + 2 pi i/K.
        pairs14: (q_i q_j scaled, sigma, epsilon scaled); they are excluded from the pair list.
        exclusions: (m, 2) int32 pairs i < j without a pair interaction, those of `pairs14` included.
        constraints: (length,).
        settles: rigid three-site water: oxygen, hydrogen, hydrogen; (d_OH, d_HH).
        virtual_sites: site, a, b, c and (w_b, w_c): r = r_a + w_b (r_b - r_a) + w_c (r_c - r_a).
    """

    mass_n: Array
    charge_n: Array
    type_n: Index
    type_names: tuple[str, ...]
    element: tuple[str, ...]
    sigma_tt: Array
    epsilon_tt: Array
    atom_name: tuple[str, ...] = ()
    residue_name: tuple[str, ...] = ()
    residue_n: Index = field(default_factory=lambda: np.zeros(0, np.int32))
    molecule_n: Index = field(default_factory=lambda: np.zeros(0, np.int32))
    bonds: Terms = field(default_factory=partial(no_terms, 2, 2))
    angles: Terms = field(default_factory=partial(no_terms, 3, 2))
    urey_bradley: Terms = field(default_factory=partial(no_terms, 2, 2))
    dihedrals: Terms = field(default_factory=partial(no_terms, 4, 3))
    ryckaert: Terms = field(default_factory=partial(no_terms, 4, 6))
    impropers: Terms = field(default_factory=partial(no_terms, 4, 2))
    cmap: Terms = field(default_factory=partial(no_terms, 5, 1))
    cmap_grids: Array = field(default_factory=lambda: np.zeros((0, 24, 24)))
    pairs14: Terms = field(default_factory=partial(no_terms, 2, 3))
    exclusions: Index = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    constraints: Terms = field(default_factory=partial(no_terms, 2, 1))
    settles: Terms = field(default_factory=partial(no_terms, 3, 2))
    virtual_sites: Terms = field(default_factory=partial(no_terms, 4, 2))

    def __len__(self) -> int:
        """Return the number of atoms."""
        return len(self.mass_n)

    def tables(self) -> dict[str, Terms]:
        """Return every table of interactions by its name."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Terms)}
