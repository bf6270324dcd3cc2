"""What moves: `State`, arrays that change; what it is made of does not: `Topology`, from `gewu.formats.forcefield`.

A rank integrates the first `owned` rows of every array of its `State`; the rows behind them are ghosts, copies of atoms of other
ranks, refreshed before each force evaluation.  With one rank there are no ghosts.  `tag_n` is the atom's number in the input.

Positions are continuous (never wrapped), so displacements can be read off; whoever needs an image wraps for itself.  Box vectors
are rows, lower triangular: a = (ax, 0, 0), b = (bx, by, 0), c = (cx, cy, cz), with |bx| <= ax/2, |cx| <= ax/2, |cy| <= by/2.
`periodic` False means vacuum: the box is ignored.

Virial: W_ab = sum over pairs of r_a f_b with r = r_i - r_j and f the force on i, in general -dU/d(strain)_ab; the pressure
tensor is (sum m v v + W) / V.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.formats.forcefield.topology import Array as Array
from gewu.formats.forcefield.topology import Index as Index
from gewu.formats.forcefield.topology import Terms as Terms
from gewu.formats.forcefield.topology import Topology as Topology


@dataclass(eq=False)
class State:
    """Positions, velocities, forces and box, with what travels with an atom from rank to rank.

    Args:
        position_n3, velocity_n3, force_n3: (n, 3) float64 in nm, nm/ps, kJ/mol/nm; owned rows first, then ghosts.
        mass_n, charge_n, type_n, tag_n: (n,) mass in u, charge in e, row of the Lennard-Jones tables, number in the input.
        box_33: (3, 3) lower triangular, rows a, b, c.
        periodic: False in vacuum.
        owned: rows that this rank integrates.
        step: steps done since the beginning of the run.
        time_ps: time since then.
    """

    position_n3: Array
    velocity_n3: Array
    force_n3: Array
    mass_n: Array
    charge_n: Array
    type_n: Index
    tag_n: NDArray[np.int64]
    box_33: Array
    periodic: bool
    owned: int
    step: int = 0
    time_ps: float = 0.0

    @property
    def volume(self) -> float:
        """Volume in nm^3."""
        return float(self.box_33[0, 0] * self.box_33[1, 1] * self.box_33[2, 2])


class Evaluation(NamedTuple):
    """Potential energies by name in kJ/mol, and the virial (3, 3) in kJ/mol (see the module's text for its sign)."""

    energies: dict[str, float]
    virial_33: Array

    @property
    def potential(self) -> float:
        """Sum of all energies."""
        return float(sum(self.energies.values()))


def symmetric(six: Array) -> Array:
    """Return the symmetric (3, 3) of xx, xy, xz, yy, yz, zz."""
    return six[[[0, 1, 2], [1, 3, 4], [2, 4, 5]]]


class Term(Protocol):
    """One contribution to the forces."""

    def compute(self, state: State, want: bool) -> Evaluation | None:
        """Add forces to `state.force_n3` (ghost rows may be written, they are ignored).

        With `want`, return energies and virial: this rank's share, so that the sum over ranks is the whole.
        """


def new_state(topology: Topology, position_n3: Any, box_33: Any, *, periodic: bool = True, velocity_n3: Any = None) -> State:
    """Make the state of all atoms of `topology`, checked.

    Args:
        topology: n atoms.
        position_n3: (n, 3) nm.
        box_33: (3, 3) nm, lower triangular.
        periodic: False in vacuum.
        velocity_n3: (n, 3) nm/ps; zero by default.
    Raises:
        InputError: shapes that differ, numbers that are not finite, a box that is not lower triangular or has no volume.
    """
    n = len(topology)
    position, box = np.array(position_n3, np.float64, order="C"), np.array(box_33, np.float64, order="C")
    velocity = np.zeros((n, 3)) if velocity_n3 is None else np.array(velocity_n3, np.float64, order="C")
    for name, array, shape in (("positions", position, (n, 3)), ("velocities", velocity, (n, 3)), ("box", box, (3, 3))):
        if array.shape != shape:
            raise InputError(f"{name} have another shape than the topology asks for", value=array.shape, allowed=str(shape))
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        if bad.size:
            raise InputError(f"{name} are not finite", key=f"row {bad[0] + 1}", value=array[bad[0]].tolist())
    if periodic and (np.any(np.triu(box, 1) != 0) or np.any(np.diag(box) <= 0)):
        raise InputError("the box must be lower triangular with a positive diagonal", key="box", value=box.tolist())
    return State(
        position_n3=position,
        velocity_n3=velocity,
        force_n3=np.zeros((n, 3)),
        mass_n=np.array(topology.mass_n, np.float64),
        charge_n=np.array(topology.charge_n, np.float64),
        type_n=np.array(topology.type_n, np.int32),
        tag_n=np.arange(n, dtype=np.int64),
        box_33=box,
        periodic=periodic,
        owned=n,
    )
