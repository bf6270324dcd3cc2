"""Any callable `energy, forces = potential(state)` as an interaction: learned potentials and other programs come in this way.

The callable sees positions in nm and returns kJ/mol and kJ/mol/nm; as a third value it may return the virial, -dU/d(strain).
Without one, the virial of an isolated system is sum_i r_i f_i; that of a periodic one is unknown, so the pressure is nan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gewu.core.errors import ConvergenceError, InputError
from gewu.physics.md.state import Evaluation, State


class CallableTerm:
    """A term whose forces come from a callable.

    Args:
        potential: takes a `State`, returns (energy, forces) or (energy, forces, virial): a number, arrays (n, 3) and (3, 3).
            With several ranks it sees owned rows and ghosts, and returns this rank's share of energy and virial and the forces on
            its owned rows.
        name: under which the energy appears.

    >>> from gewu.physics.md.state import Topology, new_state
    >>> atom = Topology(np.ones(1), np.zeros(1), np.zeros(1, np.int32), ("A",), ("Ar",), np.ones((1, 1)), np.zeros((1, 1)))
    >>> state = new_state(atom, [[0.5, 0.0, 0.0]], np.eye(3), periodic=False)
    >>> CallableTerm(lambda s: (float((s.position_n3**2).sum()), -2 * s.position_n3)).compute(state, True).energies
    {'potential': 0.25}
    """

    def __init__(self, potential: Callable[[State], tuple[Any, ...]], name: str = "potential") -> None:
        self.potential, self.name = potential, name

    def compute(self, state: State, want: bool) -> Evaluation | None:
        """Add the forces; with `want` return energy and virial.

        Raises:
            InputError: the callable returned something of another shape.
            ConvergenceError: a force or the energy is not finite.
        """
        answer = self.potential(state)
        if not isinstance(answer, tuple) or len(answer) not in (2, 3):
            raise InputError(
                "a potential returns (energy, forces) or (energy, forces, virial)", key=self.name, value=type(answer)
            )
        energy, force = float(answer[0]), np.asarray(answer[1], np.float64)
        if force.shape not in ((state.owned, 3), state.position_n3.shape):
            raise InputError(
                "forces of a potential have another shape", key=self.name, value=force.shape, allowed=f"{state.owned}, 3"
            )
        owned = force[: state.owned]
        bad = np.flatnonzero(~np.isfinite(owned).all(axis=1))
        if bad.size or not np.isfinite(energy):
            where = f"atom {state.tag_n[bad[0]] + 1}" if bad.size else "the energy"
            raise ConvergenceError(f"the potential is not finite at step {state.step}: {where}", key=self.name, value=energy)
        state.force_n3[: state.owned] += owned
        if not want:
            return None
        if len(answer) == 3:
            virial = np.asarray(answer[2], np.float64)
        elif state.periodic:
            virial = np.full((3, 3), np.nan)
        else:
            virial = state.position_n3[: state.owned].T @ owned
        if virial.shape != (3, 3):
            raise InputError("the virial of a potential has another shape", key=self.name, value=virial.shape, allowed="3, 3")
        return Evaluation({self.name: energy}, virial)
