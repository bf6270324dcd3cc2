"""Forces in float64 by the shortest road: cell lists without skin, and an Ewald sum over every wave vector that matters.

Nothing of gewu is used. Ewald's splitting is alpha r_c = 5, wave vectors end where exp(-k^2 / 4 alpha^2) falls below 1e-12.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

COULOMB = 138.935458  # kJ/mol nm / e^2


@njit(cache=True)
def cells(x, box, rc):
    """Return the cells along an edge, the cell of each atom, and the atoms sorted by cell with the start of each."""
    m = int(box / rc) if box >= 3 * rc else 1
    cell = np.empty(len(x), np.int64)
    start = np.zeros(m**3 + 1, np.int64)
    for i in range(len(x)):
        c = 0
        for d in range(3):
            s = x[i, d] / box
            c = c * m + min(int((s - math.floor(s)) * m), m - 1)
        cell[i] = c
        start[c + 1] += 1
    start = np.cumsum(start)
    return m, cell, np.argsort(cell, kind="mergesort"), start


@njit(cache=True, parallel=True)
def pairs(x, box, rc, sigma, epsilon, q, alpha, group, every):
    """Return pair forces: Lennard-Jones between atoms `every` apart in number, erfc Coulomb between groups of `group` atoms."""
    m, cell, order, start = cells(x, box, rc)
    f = np.zeros_like(x)
    for i in prange(len(x)):
        fx = fy = fz = 0.0
        a, b, c = cell[i] // (m * m), cell[i] // m % m, cell[i] % m
        for k in range(27 if m > 1 else 1):
            other = ((a + k // 9 - 1) % m * m + (b + k // 3 % 3 - 1) % m) * m + (c + k % 3 - 1) % m
            for s in range(start[other], start[other + 1]):
                j = order[s]
                dx, dy, dz = x[i, 0] - x[j, 0], x[i, 1] - x[j, 1], x[i, 2] - x[j, 2]
                dx -= box * round(dx / box)
                dy -= box * round(dy / box)
                dz -= box * round(dz / box)
                r2 = dx * dx + dy * dy + dz * dz
                if r2 >= rc * rc or i == j:
                    continue
                r, g = math.sqrt(r2), 0.0
                if i % every == 0 and j % every == 0:
                    s6 = (sigma * sigma / r2) ** 3
                    g = 24 * epsilon * (2 * s6 - 1) * s6 / r2
                if alpha > 0:
                    gauss = 2 * alpha / math.sqrt(math.pi) * math.exp(-alpha * alpha * r2)
                    part = math.erfc(alpha * r) / r + gauss
                    if i // group == j // group:
                        part -= 1 / r
                    g += COULOMB * q[i] * q[j] * part / r2
                fx += g * dx
                fy += g * dy
                fz += g * dz
        f[i, 0], f[i, 1], f[i, 2] = fx, fy, fz
    return f


def lennard_jones(x: np.ndarray, box: float, rc: float, sigma: float, epsilon: float) -> np.ndarray:
    """Return the forces of atoms of one kind with a plain cutoff."""
    return pairs(x, box, rc, sigma, epsilon, np.zeros(len(x)), 0.0, 1, 1)


def water(x: np.ndarray, box: float, q: np.ndarray, rc: float, sigma: float, epsilon: float) -> np.ndarray:
    """Return the forces of three-site water (oxygen first), Lennard-Jones cut at `rc`, without the constraints' own."""
    alpha = 5.0 / rc
    return pairs(x, box, rc, sigma, epsilon, q, alpha, 3, 3) + reciprocal(x, box, q, alpha)


def reciprocal(x: np.ndarray, box: float, q: np.ndarray, alpha: float, block: int = 500) -> np.ndarray:
    """Return the wave-vector part of the Ewald forces: two passes over blocks of atoms, each a matrix product."""
    top = int(np.ceil(2 * alpha * math.sqrt(math.log(1e12)) * box / (2 * math.pi)))
    n = np.arange(-top, top + 1)
    k = 2 * math.pi / box * n
    kx, ky = (a.ravel() for a in np.meshgrid(k, k, indexing="ij"))
    k2 = (kx**2 + ky**2)[:, None] + k**2
    k2[k2 == 0] = np.inf
    weight = 4 * math.pi / box**3 * COULOMB * np.exp(-k2 / (4 * alpha**2)) / k2

    def phases(part: slice) -> tuple[np.ndarray, np.ndarray]:
        ex, ey, ez = (np.exp(1j * np.outer(k, x[part, d])) for d in range(3))
        return (ex[:, None] * ey).reshape(len(kx), -1), ez

    blocks = [slice(s, s + block) for s in range(0, len(x), block)]
    density = np.zeros(k2.shape, complex)
    for part in blocks:
        plane, ez = phases(part)
        density += (plane * q[part]) @ ez.T
    field = weight * density.conj()
    f = np.empty_like(x)
    for part in blocks:
        plane, ez = phases(part)
        along = plane * (field @ ez)
        f[part, 0], f[part, 1] = kx @ along.imag, ky @ along.imag
        f[part, 2] = (plane * (field @ (k[:, None] * ez))).imag.sum(axis=0)
        f[part] *= q[part, None]
    return f


def rms_relative(f: np.ndarray, reference: np.ndarray) -> float:
    """Return the root mean square of f - reference over that of the reference."""
    return float(np.sqrt(((f - reference) ** 2).sum() / (reference**2).sum()))
