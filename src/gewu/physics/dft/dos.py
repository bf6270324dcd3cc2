"""Density of states by the linear tetrahedron method.

Each cell of the k mesh is cut into six tetrahedra around its shortest diagonal; inside each, a band is interpolated linearly,
which makes the number of states below an energy a piecewise cubic. It is defined for corners of any values, flat bands and
single k points included; the density of states is its derivative, smoothed by a narrow Gaussian.

Limits: where bands cross inside a tetrahedron the interpolation follows the order of the energies, not the bands.
Reference: Bloechl, Jepsen, Andersen, PRB 49, 16223 (1994), appendix A.
"""

from __future__ import annotations

from itertools import permutations, product

import numpy as np

from gewu.physics.dft.symmetry import KMesh

STEPS_PER_WIDTH = 5


def density_of_states(
    eps: np.ndarray, mesh: KMesh, reciprocal: np.ndarray, width_ha: float, top_ha: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return energies, density of states and number of states of bands on a mesh.

    Args:
        eps: (nk, bands) energies at the irreducible points of the mesh, Ha.
        mesh: the mesh.
        reciprocal: (3, 3) reciprocal vectors as rows.
        width_ha: standard deviation of the Gaussian, Ha.
        top_ha: highest energy wanted.

    Returns:
        energies (n,) in Ha; electrons per Ha and cell (n,); electrons per cell below each energy (n,).
    """
    corners = np.sort(eps[mesh.full[tetrahedra(mesh.shape, reciprocal)]], axis=1)  # (tetrahedra, 4, bands)
    corners = corners.transpose(0, 2, 1).reshape(-1, 4)
    step = width_ha / STEPS_PER_WIDTH
    edges = np.arange(eps.min() - 6 * width_ha, top_ha + 6 * width_ha, step)
    number = 2 * eps.shape[1] * states_below(corners, edges)
    reach = np.arange(-6 * STEPS_PER_WIDTH, 6 * STEPS_PER_WIDTH + 1)
    gaussian = np.exp(-0.5 * (reach / STEPS_PER_WIDTH) ** 2)
    gaussian /= gaussian.sum()
    dos = np.convolve(np.diff(number), gaussian, "same") / step
    middle = 0.5 * (edges[1:] + edges[:-1])
    wanted = middle <= top_ha
    return middle[wanted], dos[wanted], 0.5 * (number[1:] + number[:-1])[wanted]


def tetrahedra(shape: tuple[int, int, int], reciprocal: np.ndarray) -> np.ndarray:
    """Return the corners (6 n1 n2 n3, 4) of all tetrahedra as flat indices into a periodic mesh."""
    n = np.array(shape)
    starts = [np.array(s) for s in product((0, 1), repeat=3) if s[0] == 0]
    flip = min(starts, key=lambda s: float(np.linalg.norm(((1 - 2 * s) / n) @ reciprocal)))  # the shortest of four diagonals
    cells = np.stack(np.meshgrid(*[np.arange(m) for m in shape], indexing="ij"), -1).reshape(-1, 1, 3)
    out = []
    for axes in permutations(range(3)):  # from one end of the diagonal to the other along the edges, in every order
        path = np.zeros((4, 3), int)
        for at, axis in enumerate(axes):
            path[at + 1 :, axis] = 1
        corner = (cells + (path ^ flip)) % n
        out.append(np.ravel_multi_index(tuple(np.moveaxis(corner, -1, 0)), shape))
    return np.concatenate(out)


def states_below(corners: np.ndarray, energies: np.ndarray) -> np.ndarray:
    """Return the filled share of all tetrahedra, with ascending corner energies (m, 4), at each of ascending `energies` (n,)."""
    corners = corners[np.argsort(corners[:, 0], kind="stable")]
    share = np.zeros(len(energies))
    begun, full = 0, 0
    active = np.zeros((0, 4))
    for at, energy in enumerate(energies):
        reached = int(np.searchsorted(corners[:, 0], energy))
        active = np.concatenate([active, corners[begun:reached]])
        begun = reached
        partial = active[:, 3] > energy
        full += int((~partial).sum())
        active = active[partial]
        share[at] = full + float(_filled(active, energy).sum())
    return share / len(corners)


def _filled(corners: np.ndarray, energy: float) -> np.ndarray:
    """Filled share of tetrahedra whose lowest corner is below and whose highest is above the energy."""
    e1, e2, e3, e4 = corners.T
    out = np.empty(len(corners))
    low, high = energy < e2, energy >= e3
    a = low
    out[a] = (energy - e1[a]) ** 3 / ((e2 - e1) * (e3 - e1) * (e4 - e1))[a]
    b = high & ~low
    out[b] = 1 - (e4[b] - energy) ** 3 / ((e4 - e1) * (e4 - e2) * (e4 - e3))[b]
    c = ~low & ~high
    x, e21, e31, e41, e32, e42 = (v[c] for v in (energy - e2, e2 - e1, e3 - e1, e4 - e1, e3 - e2, e4 - e2))
    out[c] = (e21**2 + 3 * e21 * x + 3 * x**2 - (e31 + e42) / (e32 * e42) * x**3) / (e31 * e41)
    return out
