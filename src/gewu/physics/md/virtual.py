"""Virtual sites: points without mass at a fixed linear combination of three atoms (the M site of TIP4P).

    r = r_a + w_b (r_b - r_a) + w_c (r_c - r_a)

A force f on the site acts as (1 - w_b - w_c) f, w_b f, w_c f on a, b, c.  Because the combination is linear, the virial of the
site, r (x) f, is that of the spread forces: nothing is added to the virial.  Molecules must be whole (positions are continuous).
Sites that share a parent belong to one work item, so the sums have one order.

Reference: Horn et al., J. Chem. Phys. 120, 9665 (2004), for TIP4P-Ew; Berendsen, van Gunsteren, Lecture 1 of Molecular-Dynamics
Simulation of Statistical-Mechanical Systems (1986), for massless interaction sites.
"""

from __future__ import annotations

import numpy as np

from gewu.core.errors import InputError
from gewu.core.kernel import device, kernel
from gewu.physics.md.constraints import groups
from gewu.physics.md.state import Array, Index, State, Topology


@device
def _combine(array_n3: Array, s: int, a: int, b: int, c: int, w_b: float, w_c: float) -> None:
    for k in range(3):
        at = array_n3[a, k]
        array_n3[s, k] = at + w_b * (array_n3[b, k] - at) + w_c * (array_n3[c, k] - at)


@kernel
def _place(item: int, start: Index, index: Index, weight: Array, position_n3: Array, velocity_n3: Array) -> None:
    for k in range(start[item], start[item + 1]):
        s, a, b, c = index[k, 0], index[k, 1], index[k, 2], index[k, 3]
        _combine(position_n3, s, a, b, c, weight[k, 0], weight[k, 1])
        _combine(velocity_n3, s, a, b, c, weight[k, 0], weight[k, 1])


@kernel
def _spread(item: int, start: Index, index: Index, weight: Array, force_n3: Array) -> None:
    for k in range(start[item], start[item + 1]):
        s, a, b, c = index[k, 0], index[k, 1], index[k, 2], index[k, 3]
        for m in range(3):
            f = force_n3[s, m]
            force_n3[a, m] += (1.0 - weight[k, 0] - weight[k, 1]) * f
            force_n3[b, m] += weight[k, 0] * f
            force_n3[c, m] += weight[k, 1] * f
            force_n3[s, m] = 0.0


class VirtualSites:
    """All virtual sites among the rows of a state, ghosts included.

    Args:
        topology: `virtual_sites` with rows of the state.
        device: see `gewu.core.kernel`.
    Raises:
        InputError: a site that has mass, or is made of another site.
    """

    def __init__(self, topology: Topology, *, device: str = "cpu") -> None:
        index = topology.virtual_sites.index
        order, self._start = groups(index)
        self._index = np.ascontiguousarray(index[order], np.int32)
        self._weight = np.ascontiguousarray(topology.virtual_sites.parameter[order], np.float64)
        self.device = device
        sites = index[:, 0]
        heavy = sites[np.asarray(topology.mass_n)[sites] != 0] if len(sites) else sites
        if len(heavy):
            mass = float(topology.mass_n[heavy[0]])
            raise InputError("a virtual site has mass", key=f"atom {heavy[0] + 1}", value=mass, allowed="0")
        if np.isin(index[:, 1:], sites).any():
            raise InputError("a virtual site is made of another virtual site", key="virtual_sites", allowed="parents with mass")

    def __len__(self) -> int:
        return len(self._index)

    def place(self, state: State) -> None:
        """Set positions and velocities of the sites from their parents'."""
        where = (self._start, self._index, self._weight)
        _place.launch(self.device, len(self._start) - 1, *where, state.position_n3, state.velocity_n3)

    def spread(self, state: State) -> None:
        """Move the forces on the sites to their parents, and clear them."""
        _spread.launch(self.device, len(self._start) - 1, self._start, self._index, self._weight, state.force_n3)
