"""Space-group symmetry: fewer k points, and a density that has the symmetry of the crystal.

An operation {R|t} maps fractional positions x to R x + t. The density obeys rho(R x + t) = rho(x), so its coefficients obey
rho(G) = rho(R^T G) exp(-2 pi i G.t) in fractional units; a k point maps to (R^T)^-1 k with equal eigenvalues, and by time
reversal to -k. Only operations that map the k mesh onto itself are used, so a mesh of low symmetry costs k points, never
accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import spglib

from gewu.core.errors import InputError
from gewu.formats.elements import ATOMIC_NUMBER
from gewu.formats.symmetry import quiet_spglib
from gewu.physics.dft.basis import Basis
from gewu.physics.dft.crystal import Crystal

TOLERANCE_BOHR = 1e-5


@dataclass(frozen=True, eq=False)
class KMesh:
    """k points of a sampled Brillouin zone.

    Args:
        k: (nk, 3) fractional coordinates.
        weight: (nk,) adding to 1.
        shape: points along each reciprocal vector before reduction.
        full: (n1 n2 n3,) for each point of the whole mesh the irreducible point with the same energies.
    """

    k: np.ndarray
    weight: np.ndarray
    shape: tuple[int, int, int]
    full: np.ndarray


@dataclass(frozen=True, eq=False)
class SpaceGroup:
    """Symmetry operations: `rotations` (n, 3, 3) integers and `translations` (n, 3), in fractional coordinates."""

    rotations: np.ndarray
    translations: np.ndarray
    symbol: str

    def subset(self, keep: np.ndarray) -> SpaceGroup:
        """Return the operations where `keep` (n,) is true."""
        return SpaceGroup(self.rotations[keep], self.translations[keep], self.symbol)


IDENTITY = SpaceGroup(np.eye(3, dtype=np.int64)[None], np.zeros((1, 3)), "P1")


def space_group(crystal: Crystal) -> SpaceGroup:
    """Return the operations that leave the crystal unchanged within 1e-5 bohr."""
    numbers = [ATOMIC_NUMBER[s] for s in crystal.symbols]
    with quiet_spglib():
        data = spglib.get_symmetry_dataset((crystal.lattice, crystal.frac, numbers), symprec=TOLERANCE_BOHR)
    if data is None:
        return IDENTITY
    return SpaceGroup(np.asarray(data.rotations, np.int64), np.asarray(data.translations, float), str(data.international))


def reduce_mesh(mesh: tuple[int, int, int], shift: tuple[float, ...], group: SpaceGroup) -> tuple[KMesh, SpaceGroup]:
    """Return the irreducible points of a mesh and the operations that keep the mesh.

    Args:
        mesh: points along each reciprocal vector.
        shift: of the mesh in units of its step; 0 (through Gamma) or 0.5.
        group: symmetry of the crystal.

    Returns:
        k points with weights, and the subgroup that maps the mesh onto itself.

    Reference: Monkhorst and Pack, PRB 13, 5188 (1976).
    """
    if any(s not in (0.0, 0.5) for s in shift):
        raise InputError(
            "a shifted mesh keeps its symmetry only for half steps", key="dft.kshift", value=shift, allowed="0 or 0.5"
        )
    n, s2 = np.array(mesh), np.array([int(2 * s) for s in shift])
    # k = (2 i + s2) / (2 n): integers j = 2 i + s2 on the doubled mesh
    j = 2 * np.stack(np.meshgrid(*[np.arange(m) for m in mesh], indexing="ij"), -1).reshape(-1, 3) + s2
    k = j / (2 * n)
    lowest, kept = np.arange(len(k)), np.zeros(len(group.rotations), bool)
    for op, rotation in enumerate(group.rotations):
        image = (k @ np.linalg.inv(rotation)) * 2 * n  # row form of R^-T k
        rounded = np.round(image).astype(np.int64)
        if np.abs(image - rounded).max() > 1e-6 or ((rounded - s2) % 2).any():
            continue
        kept[op] = True
        for sign in (1, -1):
            i = ((sign * rounded - s2) // 2) % n if not ((sign * rounded - s2) % 2).any() else None
            if i is not None:
                np.minimum(lowest, np.ravel_multi_index(tuple(i.T), mesh), out=lowest)
    # the kept operations form a group, so the lowest image labels the orbit
    unique, full, count = np.unique(lowest, return_inverse=True, return_counts=True)
    points = k[unique]
    points = points - np.round(points - 1e-9)  # into (-1/2, 1/2]
    return KMesh(points, count / count.sum(), mesh, full), group.subset(kept)


class Symmetriser:
    """Average a density over the space group, star by star.

    Each star of G vectors is averaged at one representative and expanded to its members, so the cost per call is the size of
    the sphere, not that times the number of operations.
    """

    def __init__(self, basis: Basis, group: SpaceGroup) -> None:
        n = np.array(basis.grid)
        g = basis.g
        self.trivial = len(group.rotations) == 1
        if self.trivial:
            return
        position = np.full(int(n.prod()), -1, np.int64)  # full-grid index -> half-sphere index, with conjugation flag
        conjugate = np.zeros(int(n.prod()), bool)
        minus = np.ravel_multi_index(tuple((-g % n).T), basis.grid)
        plus = np.ravel_multi_index(tuple((g % n).T), basis.grid)
        position[minus], conjugate[minus] = np.arange(len(g)), True
        position[plus], conjugate[plus] = np.arange(len(g)), False
        best = np.full(len(g), np.iinfo(np.int64).max)
        phase = np.zeros(len(g), complex)
        flip = np.zeros(len(g), bool)
        for rotation, translation in zip(group.rotations, group.translations, strict=True):
            flat = np.ravel_multi_index(tuple((g @ rotation % n).T), basis.grid)
            target, flipped = position[flat], conjugate[flat]
            better = target < best
            best[better], flip[better] = target[better], flipped[better]
            phase[better] = np.exp(-2j * np.pi * (g[better] @ translation))
        lost = best < 0  # on the cutoff, the last digits of a lattice can leave part of a star outside: such a star is left out
        best[lost], phase[lost] = 0, 0.0
        representatives, self.member = np.unique(best, return_inverse=True)
        self.member_phase, self.member_flip = phase, flip
        gr = g[representatives]
        rows, conj, phases = [], [], []
        for rotation, translation in zip(group.rotations, group.translations, strict=True):
            flat = np.ravel_multi_index(tuple((gr @ rotation % n).T), basis.grid)
            rows.append(position[flat])
            conj.append(conjugate[flat])
            phases.append(np.exp(-2j * np.pi * (gr @ translation)) / len(group.rotations))
        self.rows, self.conj, self.phases = np.array(rows), np.array(conj), np.array(phases)

    def __call__(self, rho_g: np.ndarray) -> np.ndarray:
        """Return the symmetrised half-sphere coefficients (ng,) of a real density."""
        if self.trivial:
            return rho_g
        gathered = rho_g[self.rows]
        mean = (np.where(self.conj, gathered.conj(), gathered) * self.phases).sum(0)[self.member]
        return np.where(self.member_flip, mean.conj(), mean) * self.member_phase


def primitive(crystal: Crystal) -> Crystal:
    """Return the primitive cell of the crystal (unchanged when it is primitive already)."""
    numbers = [ATOMIC_NUMBER[s] for s in crystal.symbols]
    with quiet_spglib():
        found = spglib.find_primitive((crystal.lattice, crystal.frac, numbers), symprec=TOLERANCE_BOHR)
    if found is None or len(found[2]) == len(crystal):
        return crystal
    symbol = {number: name for name, number in zip(crystal.symbols, numbers, strict=True)}
    return Crystal(np.asarray(found[0]), tuple(symbol[n] for n in found[2]), np.asarray(found[1]))
