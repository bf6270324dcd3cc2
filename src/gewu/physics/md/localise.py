"""The part of a force field that one rank of many computes: terms with at least one owned atom, their atoms named by rows.

An atom can stand on a rank several times, owned or as ghosts at different images. In directions that are cut into bricks no image
is taken when forces are computed, so a term must name the copies that are neighbours: the owned row where there is one, else the
ghost nearest to an owned atom of the term.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import ConvergenceError, InputError
from gewu.core.ranks import Ranks
from gewu.formats.forcefield.graph import molecules
from gewu.physics.md.state import Array, Index, State, Terms, Topology

_RIGID = ("constraints", "settles", "virtual_sites")


def groups(topology: Topology) -> NDArray[np.int64]:
    """Return (n,) the group of each atom: atoms tied by constraints, rigid water and virtual sites share one."""
    ties = [index[:, [0, k]] for name in _RIGID for index in [topology.tables()[name].index] for k in range(1, index.shape[1])]
    return molecules(np.concatenate(ties), len(topology)).astype(np.int64)


def fractions(position_n3: Array, box_33: Array) -> Array:
    """Return positions as fractions of the box vectors; each row to the same bits whatever the number of rows."""
    z = position_n3[:, 2] / box_33[2, 2]
    y = (position_n3[:, 1] - z * box_33[2, 1]) / box_33[1, 1]
    x = (position_n3[:, 0] - y * box_33[1, 0] - z * box_33[2, 0]) / box_33[0, 0]
    return np.stack([x, y, z], axis=1)


def localise(topology: Topology, state: State, decomposed: tuple[bool, bool, bool], ranks: Ranks, halo_nm: float) -> Topology:
    """Return what this rank computes of a force field; every rank calls this.

    Terms keep their order. Constraints, rigid water and virtual sites are kept where they are owned, all others where at least
    one atom is owned. Names of elements, atoms and residues are left out.

    Args:
        topology: the force field of all atoms, numbered by tag.
        state: this rank's atoms, ghosts in place.
        decomposed: directions that are cut, in which no image is taken.
        ranks: who shares the system.
        halo_nm: depth of the halo, for the message.
    Raises:
        InputError: an atom of a term is not in the halo, or a constraint ties two groups (before the first step).
        ConvergenceError: the same later.
    """
    here = _Here(topology, state, decomposed)
    tables: dict[str, Any] = {}
    for name, (index, parameter) in topology.tables().items():
        kept, rows = here.rows(name, index)
        tables[name] = Terms(rows, parameter[kept])
    _, pairs = here.rows("exclusions", topology.exclusions)
    if found := [fault for fault in ranks.allgather(here.fault) if fault]:
        kind = InputError if state.step == 0 else ConvergenceError
        hint = f"the halo is {halo_nm:.4g} nm; are bonds broken? else use fewer ranks or a longer cutoff"
        raise kind(f"step {state.step}: {found[0]}", hint=hint)
    numbers: dict[str, Any] = {
        name: part[state.tag_n] for name in ("residue_n", "molecule_n") if len(part := getattr(topology, name))
    }
    return replace(
        topology,
        mass_n=state.mass_n,
        charge_n=state.charge_n,
        type_n=state.type_n,
        element=(),
        atom_name=(),
        residue_name=(),
        exclusions=np.sort(pairs, axis=1),
        **numbers,
        **tables,
    )


class _Here:
    """Where each atom is on this rank.

    `code` by tag is an owned row, -1 (absent), or -2 - k for an atom whose ghosts are `row[start[k] : start[k] + number[k]]`.
    """

    def __init__(self, topology: Topology, state: State, decomposed: tuple[bool, bool, bool]) -> None:
        ghosts = state.tag_n[state.owned :]
        order = np.argsort(ghosts, kind="stable")
        tags, self.start, self.number = np.unique(ghosts[order], return_index=True, return_counts=True)
        self.code = np.full(len(topology), -1, np.int32)
        self.code[tags] = -2 - np.arange(len(tags))
        self.code[state.tag_n[: state.owned]] = np.arange(state.owned)
        self.row: NDArray[np.intp] = order + state.owned
        self.box, self.whole = state.box_33, ~np.array(decomposed)
        self.fraction = fractions(state.position_n3, state.box_33)
        self.fault = ""

    def rows(self, name: str, index: Index) -> tuple[NDArray[np.bool_], Index]:
        """Return which terms are kept and the rows of their atoms; remember the first that cannot be computed."""
        rows = self.code[index]
        kept: NDArray[np.bool_] = np.asarray((rows >= 0).any(axis=1))
        rows = rows[kept]
        own = rows >= 0
        term, place = np.nonzero(~own)
        if name in _RIGID:
            if term.size:
                self._refuse(name, index[kept][term[0]], "belong to different groups")
            return kept, rows
        code = rows[term, place]
        if (code == -1).any():
            self._refuse(name, index[kept][term[np.argmax(code == -1)]], "are farther apart than the halo")
        else:
            anchor = rows[term, np.argmax(own, axis=1)[term]]
            rows[term, place] = self._nearest(-2 - code, anchor)
        return kept, rows

    def _refuse(self, name: str, atoms: Index, what: str) -> None:
        self.fault = self.fault or f"atoms {(atoms + 1).tolist()} of `{name}` {what}"

    def _nearest(self, ghost: NDArray[Any], anchor: NDArray[Any]) -> NDArray[np.intp]:
        """Return the row of the copy of each ghost that is nearest to the atom in row `anchor`."""
        start, number = self.start[ghost], self.number[ghost]
        row: NDArray[np.intp] = self.row[start]
        best = np.full(len(row), np.inf)
        several = np.flatnonzero(number > 1)
        for copy in range(number.max(initial=0) if several.size else 0):
            several = several[number[several] > copy]
            candidate = self.row[start[several] + copy]
            apart = self.fraction[candidate] - self.fraction[anchor[several]]
            apart -= np.rint(apart) * self.whole
            distance = ((apart @ self.box) ** 2).sum(axis=1)
            nearer = distance < best[several]
            row[several[nearer]], best[several[nearer]] = candidate[nearer], distance[nearer]
        return row
