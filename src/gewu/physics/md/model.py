"""Forces on all atoms: which terms there are, when neighbour lists are stale, which rank sees what.

`Model.compute` is all that an integrator needs.  Before the terms are asked, virtual sites are placed and ghosts refreshed; or,
when the lists are stale, atoms migrate between ranks and every list is built anew.

A list made for `cutoff + skin` is good while no pair from outside can have come within the cutoff.  With the box deformed by D
since then and atoms moved by at most m beyond that, this is (cutoff + skin) s_min(D) - 2 m > cutoff, s_min the smallest singular
value of D.
It is measured at every step, on all ranks together (a term may name the atoms that matter: `Pairs.watched`); nothing is rebuilt
blindly, unless `rebuild_every` asks for it (to compare with codes that do).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gewu.core.device import load_numba
from gewu.core.errors import ConvergenceError
from gewu.core.ranks import SERIAL, Ranks
from gewu.physics.md.constraints import Constraints
from gewu.physics.md.domain import Domain
from gewu.physics.md.localise import groups
from gewu.physics.md.state import Array, Evaluation, State, Term, Topology
from gewu.physics.md.virtual import VirtualSites

numba = load_numba()

FARTHEST = 1e7  # nm: no atom diffuses so far; float64 still resolves 2e-9 nm there


class Local(NamedTuple):
    """What the terms of one rank are made of.

    `topology` has rows of `state`; `images` says along which box vectors the pair list must look for periodic images (None: as
    the state says); `forward` fills ghost rows of a per-atom array (None with one rank).
    """

    topology: Topology
    state: State
    images: tuple[bool, bool, bool] | None
    forward: Callable[[Array], None] | None


@numba.njit(cache=True, parallel=True)  # type: ignore[misc]
def _moved(position, reference, rows, deform, affine, parts):  # type: ignore[no-untyped-def]
    """Largest squared displacement, beyond the deformation of the box, in each part of the rows; infinite for no number."""
    n = rows.size
    for t in numba.prange(parts.size):
        largest = 0.0
        for k in range(t * n // parts.size, (t + 1) * n // parts.size):
            i = numba.uint64(rows[k])
            rx, ry, rz = reference[i, 0], reference[i, 1], reference[i, 2]
            if affine:
                rx, ry, rz = (
                    rx * deform[0, 0] + ry * deform[1, 0] + rz * deform[2, 0],
                    ry * deform[1, 1] + rz * deform[2, 1],
                    rz * deform[2, 2],
                )
            dx, dy, dz = position[i, 0] - rx, position[i, 1] - ry, position[i, 2] - rz
            d2 = dx * dx + dy * dy + dz * dz
            if not d2 <= largest:
                largest = d2 if d2 == d2 else math.inf
        parts[t] = largest


def _blown_up(state: State) -> ConvergenceError:
    message = f"positions are not finite, or beyond {FARTHEST:g} nm: first such step {state.step + 1}"
    return ConvergenceError(message, key="md.timestep_fs", hint="minimise first, or take a shorter time step")


class Model:
    """The forces of one system.

    Args:
        topology: all atoms.
        terms: makes the terms of this rank; called once, and with several ranks after each migration.
        cutoff_nm: the longest cutoff of a term that keeps a list.
        skin_nm: how much farther lists reach.
        ranks: who shares the work.
        rebuild_every: rebuild lists every so many steps, without looking; None: when it is needed.
        tolerance: relative accuracy of constraints.
        free_centre: the centre of mass moves freely and counts as three degrees of freedom (Langevin dynamics).
    """

    def __init__(
        self,
        topology: Topology,
        terms: Callable[[Local], Sequence[Term]],
        cutoff_nm: float,
        skin_nm: float,
        *,
        ranks: Ranks = SERIAL,
        rebuild_every: int | None = None,
        tolerance: float = 1e-10,
        free_centre: bool = False,
    ) -> None:
        self.topology, self.ranks = topology, ranks
        self.domain: Domain | None = None
        self.cutoff_nm, self.skin_nm, self.rebuild_every, self.tolerance = cutoff_nm, skin_nm, rebuild_every, tolerance
        self.rebuilds, self.terms = 0, ()  # type: tuple[int, Sequence[Term]]
        self.constraints: Constraints | None = None
        self._make, self._sites, self._age = terms, VirtualSites(topology), 0
        self._expired = True
        self._reference, self._box, self._watched = np.zeros((0, 3)), np.zeros((3, 3)), np.zeros(0, np.int32)
        self._parts = np.zeros(4 * numba.get_num_threads())
        rigid = len(topology.constraints.index) + 3 * len(topology.settles.index)
        moving = int(np.count_nonzero(np.asarray(topology.mass_n) > 0))
        self.degrees_of_freedom = 3 * moving - rigid - (0 if free_centre or moving == 1 else 3)

    def adopt(self, state: State, share: Any = None) -> State:
        """Return this rank's share of a state that holds all atoms (the state itself with one rank), with everything built.

        `share` is what `Domain.to_state` gave on this rank in an earlier run.
        """
        if self.ranks.size > 1:
            self._sites.place(state)
            tied = any(
                len(t) for t in (self.topology.constraints.index, self.topology.settles.index, self.topology.virtual_sites.index)
            )
            self.domain = Domain(self.ranks, state, groups(self.topology) if tied else None, self.cutoff_nm + self.skin_nm)
            state = self.domain.distribute(state) if share is None else self.domain.restore(state, share)
        self._reorganise(state, migrate=False)
        return state

    def compute(self, state: State, want: bool) -> Evaluation | None:
        """Fill `state.force_n3`; with `want`, return energies and virial of the whole system, the same on every rank.

        Raises:
            ConvergenceError: a position is not a finite number.
        """
        self._sites.place(state)
        if self._stale(state):
            self._reorganise(state, migrate=True)
        elif self.domain is not None:
            self.domain.exchange(state)
        state.force_n3[:] = 0.0
        parts = [term.compute(state, want) for term in self.terms]
        self._sites.spread(state)
        if not want:
            return None
        energies: dict[str, float] = {}
        virial = np.zeros((3, 3))
        for part in parts:
            assert part is not None
            virial += part.virial_33
            for name, value in part.energies.items():
                energies[name] = energies.get(name, 0.0) + value
        if self.ranks.size == 1:
            return Evaluation(energies, virial)
        total = self.ranks.allreduce(np.concatenate([np.array(list(energies.values())), virial.ravel()]))
        return Evaluation(dict(zip(energies, total[:-9].tolist(), strict=True)), total[-9:].reshape(3, 3))

    def refresh(self, state: State) -> None:
        """Build every list anew and compute the forces, as after a restart."""
        self._expired = True
        self.compute(state, False)

    def _stale(self, state: State) -> bool:
        self._age += 1
        if self._expired:
            return True
        if self.rebuild_every is not None:
            return self._age >= self.rebuild_every
        affine = state.periodic and not np.array_equal(state.box_33, self._box)
        deform = np.linalg.inv(self._box) @ state.box_33 if affine else np.eye(3)
        _moved(state.position_n3, self._reference, self._watched, deform, affine, self._parts)
        moved2 = float(self._parts.max())
        if self.ranks.size > 1:
            moved2 = self.ranks.allreduce(moved2, "max")
        if not math.isfinite(moved2):
            raise _blown_up(state)
        least = float(np.linalg.svd(deform, compute_uv=False)[-1]) if affine else 1.0
        return (self.cutoff_nm + self.skin_nm) * least - 2 * math.sqrt(moved2) <= self.cutoff_nm

    def _reorganise(self, state: State, migrate: bool) -> None:
        """Send atoms where they belong and build every list anew."""
        if not np.abs(state.position_n3[: state.owned]).max(initial=0.0) < FARTHEST and self.ranks.size == 1:
            raise _blown_up(state)
        if self.domain is not None:
            if migrate:
                self.domain.reorganise(state)
            local = self.domain.localise(self.topology, state)
            images = tuple(not cut for cut in self.domain.decomposed)
            self._sites = VirtualSites(local)
            self.terms = self._make(Local(local, state, images, self.domain.forward))
            self._constrain(local, state.owned)
        elif not len(self.terms):
            self.terms = self._make(Local(self.topology, state, None, None))
            self._constrain(self.topology, state.owned)
        for term in self.terms:
            rebuild: Any = getattr(term, "rebuild", None)
            if rebuild is not None:
                rebuild(state)
        everyone = np.ones(state.owned, bool)
        masks = [term.watched(state) if hasattr(term, "watched") else everyone for term in self.terms if hasattr(term, "rebuild")]
        self._watched = np.flatnonzero(np.logical_or.reduce(masks) if masks else everyone).astype(np.int32)
        self._reference, self._box, self._age = state.position_n3[: state.owned].copy(), state.box_33.copy(), 0
        self._expired, self.rebuilds = False, self.rebuilds + 1

    def _constrain(self, topology: Topology, owned: int) -> None:
        if len(self.topology.constraints.index) or len(self.topology.settles.index):
            self.constraints = Constraints(topology, owned, tolerance=self.tolerance)
