"""What follows from who is bonded to whom: molecules, exclusions, whole molecules, rigid water; and boxes.

The graph of an `n`-atom system is a table of edges (m, 2). All functions work on whole tables, none loops over atoms.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array, triu
from scipy.sparse.csgraph import breadth_first_order, connected_components

from gewu.core.errors import InputError
from gewu.formats.forcefield.topology import Array, Index, Terms, Topology


def _adjacency(edges: NDArray[Any], n: int) -> csr_array:
    ones = np.ones(len(edges), np.int32)
    matrix = coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(n, n)).tocsr()
    return (matrix + matrix.T).tocsr()


def edges_of(topology: Topology) -> NDArray[np.int64]:
    """Return the pairs that hold molecules together: bonds, constraints, rigid water, virtual sites."""
    rigid, sites = topology.settles.index, topology.virtual_sites.index
    tables = (topology.bonds.index, topology.constraints.index, rigid[:, :2], rigid[:, [0, 2]], sites[:, :2])
    return np.concatenate([table.astype(np.int64) for table in tables])


def molecules(edges: NDArray[Any], n: int) -> Index:
    """Return the molecule of each atom, numbered in the order of their first atoms."""
    _, label = connected_components(_adjacency(edges, n), directed=False)
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return np.asarray(rank[inverse], dtype=np.int32)


def within_bonds(edges: NDArray[Any], n: int, reach: int) -> Index:
    """Return the pairs i < j that at most `reach` bonds join, sorted."""
    if reach < 1 or not len(edges):
        return np.zeros((0, 2), np.int32)
    near = _adjacency(edges, n)
    near.data[:] = 1
    power = total = near
    for _ in range(reach - 1):
        power = (power @ near).tocsr()
        power.data[:] = 1
        total = (total + power).tocsr()
    found = triu(total, 1).tocoo()
    return unique_pairs(np.stack([found.row, found.col], axis=1))


def unique_pairs(pairs: NDArray[Any]) -> Index:
    """Return each pair once, i < j, sorted."""
    pairs = np.sort(np.asarray(pairs, dtype=np.int64).reshape(-1, 2), axis=1)
    return np.asarray(np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0), dtype=np.int32)


def partners(pairs: NDArray[Any], n: int) -> tuple[NDArray[np.int64], Index]:
    """Return for each atom those it is paired with, ascending: partner[start[i] : start[i + 1]]."""
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    both = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    return np.searchsorted(both[:, 0], np.arange(n + 1)), both[:, 1].astype(np.int32)


def whole(position_n3: Array, box_33: Array, edges: NDArray[Any]) -> Array:
    """Return the positions with each molecule in one piece: every bond is its nearest image; first atoms do not move.

    The images along the tree of bonds are added by pointer doubling: log2(longest chain) steps over all atoms.
    """
    n = len(position_n3)
    if not len(edges):
        return position_n3.copy()
    label = molecules(edges, n)
    _, heads = np.unique(label, return_index=True)
    rooted = np.concatenate([np.asarray(edges, np.int64), np.stack([np.full(len(heads), n), heads], axis=1)])
    _, parent = breadth_first_order(_adjacency(rooted, n + 1), n, directed=False)
    parent = np.where(parent[:n] == n, np.arange(n), parent[:n])
    step = position_n3 - position_n3[parent]
    shift = np.zeros((n, 3))
    for axis in (2, 1, 0):
        shift[:, axis] = -np.floor(step[:, axis] / box_33[axis, axis] + 0.5)
        step = step + shift[:, axis, None] * box_33[axis]
    while np.any(parent != parent[parent]):
        shift, parent = shift + shift[parent], parent[parent]
    return np.asarray(position_n3 + shift @ box_33)


def reduced_box(cell: Any) -> tuple[Array, Array]:
    """Return (rotation, box) of a right-handed cell: `positions @ rotation` go with the lower triangular, reduced box.

    Args:
        cell: (3, 3) vectors as rows, any length unit.

    Raises:
        InputError: a cell that is not finite, has no volume or is left-handed.
    """
    rows = np.array(cell, dtype=np.float64)
    volume = float(np.linalg.det(rows)) if rows.shape == (3, 3) and np.isfinite(rows).all() else 0.0
    if not volume > 1e-9 * float(np.prod(np.linalg.norm(np.atleast_2d(rows), axis=1))):  # NaN too
        raise InputError("cell has no volume or is left-handed", key="box", value=rows.tolist())
    rotation, box = np.eye(3), rows
    if np.any(np.triu(rows, 1)) or np.any(np.diag(rows) < 0):
        rotation, upper = np.linalg.qr(rows.T)
        signs = np.sign(np.diag(upper))
        rotation, box = rotation * signs, np.tril((upper * signs[:, None]).T)
    for row, column in ((1, 0), (2, 1), (2, 0)):
        box[row] -= np.round(box[row, column] / box[column, column]) * box[column]
    return rotation, box


def cell_of(lengths: Any, angles: Any) -> Array:
    """Return the lower triangular cell with these lengths (any unit) and angles alpha, beta, gamma (degrees).

    Raises:
        InputError: angles that no cell has.
    """
    a, b, c = (float(x) for x in lengths)
    alpha, beta, gamma = (0.0 if x == 90.0 else float(np.cos(np.radians(x))) for x in angles)
    y = (alpha - beta * gamma) / np.sqrt(1 - gamma**2)
    z2 = 1 - beta**2 - y**2
    if not z2 > 1e-8:
        raise InputError("angles of the box are impossible", key="box", value=[float(x) for x in angles])
    return np.array([[a, 0, 0], [b * gamma, b * np.sqrt(1 - gamma**2), 0], [c * beta, c * y, c * np.sqrt(z2)]])


def _waters(topology: Topology) -> tuple[Index, NDArray[np.bool_]]:
    """Return (w, 3) oxygen, hydrogen, hydrogen of each water (virtual sites aside), and whether an atom is in one."""
    n, molecule = len(topology), topology.molecule_n
    element = np.array(topology.element)
    count = int(molecule.max()) + 1 if len(molecule) else 0

    def number(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.asarray(np.bincount(molecule[mask], minlength=count))

    oxygen, hydrogen, massive = element == "O", element == "H", topology.mass_n > 0
    held = np.zeros(n, np.bool_)
    held[topology.settles.index.ravel()] = True
    water = (number(oxygen) == 1) & (number(hydrogen) == 2) & (number(massive) == 3) & (number(held) == 0)
    inside = water[molecule] & massive if count else np.zeros(n, np.bool_)
    rows = np.flatnonzero(inside)
    rows = rows[np.lexsort((rows, ~oxygen[rows], molecule[rows]))]
    return rows.reshape(-1, 3).astype(np.int32), inside


def _rigid_water(topology: Topology) -> Topology:
    """Turn bonds and angles of water into SETTLE groups; water without both lengths stays flexible."""
    rows, inside = _waters(topology)
    owner = np.full(len(topology), -1)
    owner[rows.ravel()] = np.repeat(np.arange(len(rows)), 3)
    element = np.array(topology.element)
    d_oh, d_hh = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    index, length = topology.bonds.index, topology.bonds.parameter[:, 1]
    both = inside[index].all(axis=1)
    polar = both & (element[index] == "O").any(axis=1)
    d_oh[owner[index[polar, 0]]] = length[polar]
    angles = topology.angles
    bent = inside[angles.index].all(axis=1) & (element[angles.index[:, 1]] == "O")
    at = owner[angles.index[bent, 0]]
    d_hh[at] = 2 * d_oh[at] * np.sin(angles.parameter[bent, 1] / 2)
    d_hh[owner[index[both & ~polar, 0]]] = length[both & ~polar]
    usable = np.isfinite(d_oh) & np.isfinite(d_hh)
    rigid = np.zeros(len(topology), np.bool_)
    rigid[rows[usable].ravel()] = True
    settles = Terms(
        np.concatenate([topology.settles.index, rows[usable]]),
        np.concatenate([topology.settles.parameter, np.stack([d_oh, d_hh], axis=1)[usable]]),
    )
    kept = {
        name: ~rigid[getattr(topology, name).index].all(axis=1) for name in ("bonds", "angles", "urey_bradley", "constraints")
    }
    tables: dict[str, Any] = {name: Terms(*(part[mask] for part in getattr(topology, name))) for name, mask in kept.items()}
    return replace(topology, settles=settles, **tables)


def rigid(topology: Topology, *, water: bool = True, bonds: Literal["none", "hydrogens", "all"] = "none") -> Topology:
    """Return the topology with harmonic bonds replaced by constraints.

    Args:
        topology: with `molecule_n` set.
        water: make three-site water rigid (SETTLE); its bonds and angles go.
        bonds: which other bonds become constraints at their equilibrium length.
    """
    if water:
        topology = _rigid_water(topology)
    if bonds == "none":
        return topology
    index, parameter = topology.bonds
    chosen = np.ones(len(index), np.bool_)
    if bonds == "hydrogens":
        chosen = (np.array(topology.element)[index] == "H").any(axis=1)
    constraints = Terms(
        np.concatenate([topology.constraints.index, index[chosen]]),
        np.concatenate([topology.constraints.parameter, parameter[chosen, 1:]]),
    )
    return replace(topology, bonds=Terms(index[~chosen], parameter[~chosen]), constraints=constraints)
