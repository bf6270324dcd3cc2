"""One system on many ranks: each integrates the atoms in its brick of the box and keeps copies, ghosts, of those around it.

The box (triclinic) is cut into bricks of fractional coordinates.  An atom belongs to the rank in whose brick the first atom of
its group lies; a group (atoms tied by constraints, rigid water, virtual sites) is never divided.  Ghosts are the atoms within the
halo around the brick, `halo_nm` plus the extent of the groups, measured along the heights of the box.  They come in six messages
at most: down and up along the first direction, then along the second with what the first brought, then the third; so edges and
corners come without messages of their own (Plimpton, J. Comput. Phys. 117, 1, 1995).

In directions that are cut, owned atoms are kept inside the brick and ghosts stand beside it, at the image that the brick sees: no
periodic image is needed there, and with two bricks an atom may be a ghost twice.  Directions that are not cut stay as they
are: positions continuous, images taken by whoever needs them.  `image_n3` counts the boxes an owned atom was moved by, so
`continuous` and `gather` give positions without jumps.

Every refusal here is agreed between the ranks first: all of them raise the same error, and none waits for another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gewu.core.bricks import cut
from gewu.core.errors import ConvergenceError, GewuError, InputError
from gewu.core.ranks import Ranks
from gewu.physics.md.box import heights
from gewu.physics.md.localise import fractions, localise
from gewu.physics.md.state import Array, Index, State, Topology

_FARTHEST = 2.0**30  # boxes; beyond, an image count is no int32


@dataclass(frozen=True, eq=False)
class _Transfer:
    """One message of the halo: `rows` go to `to`, moved by `shift` boxes; rows `start` to `stop` come from `source`."""

    rows: NDArray[np.intp]
    to: int
    source: int
    start: int
    stop: int
    direction: int
    shift: int


class Domain:
    """The share of one rank, and what it tells its neighbours.

    Args:
        ranks: who shares the system.
        state: all atoms, the same on every rank, tags 0 to n - 1 in order.
        groups_n: (n,) group of each atom, see `localise.groups`; None: every atom by itself.
        halo_nm: farthest distance at which an owned atom needs another one: list cutoff (with its skin), or longest bonded term.
    Raises:
        InputError: vacuum on several ranks; bricks thinner than the halo and twice the extent of the groups.
    """

    def __init__(self, ranks: Ranks, state: State, groups_n: NDArray[Any] | None, halo_nm: float) -> None:
        self.ranks, self.halo_nm, self.total = ranks, halo_nm, len(state.tag_n)
        self._mass, self._charge, self._type = state.mass_n.copy(), state.charge_n.copy(), state.type_n.copy()
        self._leader: NDArray[np.int64] | None = None
        if groups_n is not None:
            _, first, number = np.unique(groups_n, return_index=True, return_inverse=True)
            self._leader = first.astype(np.int64)[number]
        if not state.periodic and ranks.size > 1:
            message = "a system in vacuum has no box to share between ranks"
            raise InputError(message, key="ranks", value=ranks.size, allowed="1", hint="use more threads instead")
        height = heights(state.box_33)
        fraction = fractions(state.position_n3, state.box_33)
        extent = height * self._offsets(fraction, self._leader, np.ones(3, bool))[1]
        self.bricks = cut(ranks.size, height.tolist(), (halo_nm + extent).tolist(), (halo_nm + 2 * extent).tolist())
        self.decomposed = self.bricks.decomposed
        self.image_n3: Index = np.zeros((0, 3), np.int32)
        self._cut = np.array(self.decomposed)
        self._here = np.array(self.bricks.coordinates(ranks.rank))
        self._length = 0
        self._transfers: list[_Transfer] = []
        self._buffers: dict[Any, list[NDArray[Any]]] = {}
        self._tags = np.arange(self.total, dtype=np.int64)

    def distribute(self, state: State) -> State:
        """Return this rank's share of the full state, its ghosts in place."""
        fraction = fractions(state.position_n3, state.box_33)
        offset, _ = self._offsets(fraction, self._leader, self._cut)
        mine = np.flatnonzero(self._owners(fraction - offset, self._leader) == self.ranks.rank)
        image = np.zeros((len(mine), 3), np.int32)
        part = {"position": state.position_n3[mine], "velocity": state.velocity_n3[mine], "tag": state.tag_n[mine]}
        return self.restore(state, part | {"image": image})

    def to_state(self, state: State) -> dict[str, NDArray[Any]]:
        """Return what `restore` needs to go on with the same bits."""
        own = slice(state.owned)
        share = {"position": state.position_n3[own], "velocity": state.velocity_n3[own], "tag": state.tag_n[own]}
        return share | {"image": self.image_n3}

    def restore(self, state: State, saved: Mapping[str, NDArray[Any]]) -> State:
        """Return the state of `state`'s box and time with the owned atoms of `saved`, reorganised."""
        local = replace(state, owned=len(saved["tag"]), box_33=state.box_33.copy())
        local.position_n3, local.velocity_n3 = saved["position"].copy(), saved["velocity"].copy()
        local.tag_n, self.image_n3 = saved["tag"].copy(), saved["image"].copy()
        self.reorganise(local)
        return local

    def reorganise(self, state: State) -> None:
        """Send atoms that left the brick to their owners and build the ghosts anew.

        All arrays of the state are replaced: owned rows in the order of their tags, then ghosts. Forces become zero.

        Raises:
            ConvergenceError: a position is not finite.
            InputError: the box has shrunk below what this number of ranks can share.
            GewuError: an atom was lost or duplicated.
        """
        rows, owner, hops, extent = self._assign(state)
        stay = owner == self.ranks.rank
        came = self._migrate(np.column_stack([rows[~stay], owner[~stay]]), hops)
        rows = np.concatenate([rows[stay], came[:, :10]])
        rows = rows[np.argsort(rows[:, 9], kind="stable")]
        tag = rows[:, 9].astype(np.int64)
        self._count(state, tag)
        self.image_n3 = rows[:, 6:9].astype(np.int32)
        state.position_n3, state.tag_n = self._surround(rows[:, :3], tag, state, extent)
        state.owned, self._length = len(rows), len(state.tag_n)
        state.velocity_n3, state.force_n3 = np.zeros((self._length, 3)), np.zeros((self._length, 3))
        state.velocity_n3[: state.owned] = rows[:, 3:6]
        state.mass_n, state.charge_n = self._mass[state.tag_n], self._charge[state.tag_n]
        state.type_n = self._type[state.tag_n]

    def exchange(self, state: State) -> None:
        """Refresh the positions of the ghosts, at the images of the box as it is now."""
        self._fill(state.position_n3, state.box_33)

    def forward(self, array: NDArray[Any]) -> None:
        """Fill the ghost rows of a per-atom array (n,) or (n, k) from their owners, as they are (no shift)."""
        self._fill(array, None)

    @property
    def bytes_per_exchange(self) -> int:
        """Bytes that this rank sends in one `exchange`."""
        return sum(24 * len(transfer.rows) for transfer in self._transfers)

    def continuous(self, state: State) -> Array:
        """Return the positions (owned, 3) of the owned atoms without the jumps from brick to brick."""
        return np.asarray(state.position_n3[: state.owned] + self.image_n3 @ state.box_33)

    def gather(self, state: State) -> tuple[Array, Array]:
        """Return continuous positions and velocities (n, 3) of all atoms in the order of their tags, on every rank."""
        own = slice(state.owned)
        parts = self.ranks.allgather((state.tag_n[own], self.continuous(state), state.velocity_n3[own]))
        tags, positions, velocities = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(tags, kind="stable")
        if not np.array_equal(tags[order], self._tags):
            self._refuse_census(state, state.tag_n[own])
        return positions[order], velocities[order]

    def localise(self, topology: Topology, state: State) -> Topology:
        """Return the part of a force field that this rank computes, as rows of the state: see `localise.localise`."""
        return localise(topology, state, self.decomposed, self.ranks, self.halo_nm)

    def _assign(self, state: State) -> tuple[Array, NDArray[np.int64], NDArray[np.int64], Array]:
        """Bring owned atoms into the box and find their owners.

        Returns:
            Rows of position, velocity, image, tag (n, 10); the owners (n,); over all ranks the most bricks an atom has to go and
            the extents of the groups in boxes, both (3,).
        """
        tag, position = state.tag_n[: state.owned], state.position_n3[: state.owned].copy()
        with np.errstate(all="ignore"):
            fraction = fractions(position, state.box_33)
            healthy = np.abs(fraction).max(initial=0.0) < _FARTHEST  # False with NaN too
        bad = np.zeros(0, np.int64) if healthy else np.flatnonzero(~(np.abs(fraction) < _FARTHEST).all(axis=1))
        fraction[bad] = 0.0
        leader, whole = self._leader_rows(tag)
        offset, extent = self._offsets(fraction, leader, self._cut)
        owner = self._owners(fraction - offset, leader)
        hops = np.abs(self._hops(owner[owner != self.ranks.rank])).max(axis=0, initial=0)
        worst = self.ranks.allreduce(np.concatenate([hops, extent, [not healthy, not whole]]), "max")
        if worst[6]:
            self._refuse_positions(state, tag[bad])
        if worst[7]:
            self._refuse_census(state, tag)
        moved = np.flatnonzero((offset[:, 0] != 0) | (offset[:, 1] != 0) | (offset[:, 2] != 0))
        position[moved] -= offset[moved] @ state.box_33
        rows = np.column_stack([position, state.velocity_n3[: state.owned], self.image_n3 + offset, tag])
        return rows, owner, worst[:3].astype(np.int64), worst[3:6]

    def _leader_rows(self, tag: NDArray[np.int64]) -> tuple[NDArray[np.int64] | None, bool]:
        """Return the row of each owned atom's first of the group, and whether all of them are here."""
        if self._leader is None or not len(tag):
            return None, True
        leader = self._leader[tag]
        row = np.minimum(np.searchsorted(tag, leader), len(tag) - 1)
        return row, bool((tag[row] == leader).all())

    def _offsets(self, fraction: Array, leader: NDArray[np.int64] | None, along: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Return the whole boxes that bring each group into the box and together, and the groups' extents (3,) in boxes."""
        if leader is None:
            return np.floor(fraction) * along, np.zeros(3)
        apart = fraction - fraction[leader]
        images = np.rint(apart) * along
        extent = np.abs(apart - images).max(axis=0, initial=0.0) * along
        return np.floor(fraction[leader]) * along + images, extent

    def _owners(self, fraction: Array, leader: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Return the ranks that own the atoms: those of the first atoms of their groups."""
        owner = self.bricks.owners(fraction)
        return owner if leader is None else owner[leader]

    def _hops(self, owner: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many bricks up or down (n, 3) to the owners, the shorter way round."""
        shape = np.array(self.bricks.shape)
        away = np.stack(np.unravel_index(owner, self.bricks.shape), axis=1) - self._here
        hops: NDArray[np.int64] = (away + shape // 2) % shape - shape // 2
        return hops

    def _migrate(self, travellers: Array, hops: NDArray[np.int64]) -> Array:
        """Pass rows on from neighbour to neighbour until they are with their owners."""
        for direction in range(3):
            steps = (-1,) if self.bricks.shape[direction] == 2 else (-1, 1)
            for _ in range(hops[direction]):
                way = np.sign(self._hops(travellers[:, 10].astype(np.int64))[:, direction])
                parts = [travellers[way == 0]]
                for step in steps:
                    to, source = (self.bricks.neighbour(self.ranks.rank, direction, s) for s in (step, -step))
                    parts.append(self.ranks.exchange(travellers[way == step], to, source))
                travellers = np.concatenate(parts)
        return travellers

    def _surround(self, position: Array, tag: NDArray[np.int64], state: State, extent: Array) -> tuple[Array, NDArray[np.int64]]:
        """Plan the messages of the halo, send them once, and return positions and tags with the ghosts behind."""
        height, shape = heights(state.box_33), np.array(self.bricks.shape)
        extent = extent * height  # nm
        if np.any(self._cut & (height / shape < self.halo_nm + 2 * extent)):
            message = f"step {state.step}: {self.ranks.size} ranks cut the box into bricks thinner than the halo"
            need = " x ".join(f"{value:.4g}" for value in self.halo_nm + 2 * extent)
            value = (height / shape).round(4).tolist()
            raise InputError(message, key="ranks", value=value, allowed=f"at least {need} nm", hint="use fewer ranks")
        reach = (self.halo_nm + extent) / height
        lower, upper = self.bricks.bounds(self.ranks.rank)
        self._transfers, self._buffers = [], {}
        for d in [d for d in range(3) if self.decomposed[d]]:
            fraction = fractions(position, state.box_33)[:, d]
            came, end = [], len(tag)
            for step in (-1, 1):
                rows = np.flatnonzero(fraction < lower[d] + reach[d] if step < 0 else fraction >= upper[d] - reach[d])
                to, source = (self.bricks.neighbour(self.ranks.rank, d, s) for s in (step, -step))
                shift = 0 if 0 <= self._here[d] + step < shape[d] else -step
                moved = position[rows] + shift * state.box_33[d]
                came.append(self.ranks.exchange(np.column_stack([moved, tag[rows]]), to, source))
                start, end = end, end + len(came[-1])
                self._transfers.append(_Transfer(rows, to, source, start, end, d, shift))
            position = np.concatenate([position, *(part[:, :3] for part in came)])
            tag = np.concatenate([tag, *(part[:, 3].astype(np.int64) for part in came)])
        return position, tag

    def _fill(self, array: NDArray[Any], box_33: Array | None) -> None:
        if len(array) != self._length:
            raise GewuError("an array has not as many rows as the state", value=len(array), allowed=str(self._length))
        key = (array.shape[1:], array.dtype)
        if key not in self._buffers:
            self._buffers[key] = [np.empty((len(t.rows), *array.shape[1:]), array.dtype) for t in self._transfers]
        for transfer, buffer in zip(self._transfers, self._buffers[key], strict=True):
            np.take(array, transfer.rows, axis=0, out=buffer, mode="clip")  # "raise" would go through a copy
            if box_33 is not None and transfer.shift:
                buffer += transfer.shift * box_33[transfer.direction]
            self.ranks.exchange(buffer, transfer.to, transfer.source, array[transfer.start : transfer.stop])

    def _count(self, state: State, tag: NDArray[np.int64]) -> None:
        """Refuse to go on unless the ranks together own each atom once: number, sum and sum of squares of the tags agree."""
        have = self.ranks.allreduce(np.array([len(tag), tag.sum(), (tag * tag).sum()]))  # squares may wrap, alike on both sides
        if not np.array_equal(have, [self.total, self._tags.sum(), (self._tags * self._tags).sum()]):
            self._refuse_census(state, tag)

    def _refuse_census(self, state: State, tag: NDArray[np.int64]) -> None:
        tags = np.concatenate(self.ranks.allgather(tag))
        count = np.bincount(tags, minlength=self.total)
        lost, twice = np.flatnonzero(count == 0), np.flatnonzero(count > 1)
        if not lost.size and not twice.size:
            raise GewuError(f"step {state.step}: a group of atoms is divided between ranks")
        message = f"step {state.step}: {lost.size} of {self.total} atoms lost, {twice.size} duplicated between ranks"
        raise GewuError(message, key="atom", value=(np.concatenate([lost, twice]) + 1).tolist())

    def _refuse_positions(self, state: State, tag: NDArray[np.int64]) -> None:
        tags = np.sort(np.concatenate(self.ranks.allgather(tag)))
        message = f"step {state.step}: the positions of {len(tags)} atoms are not finite or beyond all measure"
        raise ConvergenceError(message, key="atom", value=(tags + 1).tolist(), hint="is the time step too large?")
