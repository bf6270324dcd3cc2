"""What follows from a converged potential: bands along a path or on a mesh, gaps.

The potential is kept fixed and H is diagonalised at new k points. The path is SeeK-path's for the cell as given (Hinuma et al.,
Comput. Mater. Sci. 128, 140, 2017).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gewu.core.arrays import Array
from gewu.core.context import Context
from gewu.core.errors import InputError
from gewu.formats.elements import ATOMIC_NUMBER
from gewu.physics.dft.basis import Basis
from gewu.physics.dft.crystal import Crystal
from gewu.physics.dft.eigen import davidson, start_vectors
from gewu.physics.dft.gamma import hamiltonian_at
from gewu.physics.dft.kparallel import blas_threads, for_each_k
from gewu.physics.dft.pseudo import Ion

BAND_TOLERANCE = 1e-4  # residual, Ha: the energy error is its square, some 1e-8 Ha
UPPER_BANDS = 2  # extra bands solved for and dropped, so that the last one kept converges as fast as the others


class Stopped(Exception):
    """The context asked to stop between two k points."""


class KPath(NamedTuple):
    """A path through the Brillouin zone.

    Attributes:
        k: (n, 3) fractional coordinates.
        distance: (n,) length along the path, 1/bohr; jumps between segments have no length.
        ticks: positions of the labelled points along `distance`.
        labels: their names; "X|K" where the path jumps.
    """

    k: np.ndarray
    distance: np.ndarray
    ticks: tuple[float, ...]
    labels: tuple[str, ...]


def standard_path(crystal: Crystal, path: str = "auto", points: int = 100) -> KPath:
    """Return a path of high-symmetry points.

    Args:
        crystal: the cell whose reciprocal lattice the path lives in.
        path: "auto" for the standard path of the lattice, or labels such as "L G X, K G" (a comma is a jump).
        points: about how many k points to spread over the path.

    Raises:
        InputError: a label that this lattice does not have.
    """
    import seekpath

    numbers = [ATOMIC_NUMBER[s] for s in crystal.symbols]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of seekpath's own use of spglib, and of cells that are not standard primitive
        found = seekpath.get_path_orig_cell((crystal.lattice, crystal.frac, numbers))
    coordinates = {_short(name): np.array(x) for name, x in found["point_coords"].items()}
    if path == "auto":
        segments = [(_short(a), _short(b)) for a, b in found["path"]]
    else:
        segments = [pair for part in path.split(",") for pair in zip(part.split(), part.split()[1:], strict=False)]
    unknown = [label for pair in segments for label in pair if label not in coordinates]
    if unknown or not segments:
        value = unknown[0] if unknown else path
        raise InputError(
            "no such point of this lattice", key="dft.path", value=value, allowed="auto, none, or " + " ".join(coordinates)
        )
    return _sample(segments, coordinates, crystal.reciprocal, points)


def _short(label: str) -> str:
    return "G" if label in ("GAMMA", "Γ") else label.replace("_", "")


def _sample(segments: Sequence[tuple[str, str]], at: Mapping[str, np.ndarray], reciprocal: np.ndarray, points: int) -> KPath:
    lengths = [float(np.linalg.norm((at[b] - at[a]) @ reciprocal)) for a, b in segments]
    k: list[np.ndarray] = []
    distance: list[float] = []
    ticks: list[float] = []
    labels: list[str] = []
    here = 0.0
    for number, ((a, b), length) in enumerate(zip(segments, lengths, strict=True)):
        joined = number > 0 and segments[number - 1][1] == a
        if not joined and labels:
            labels[-1] += "|" + a
        elif not joined:
            ticks.append(here)
            labels.append(a)
        steps = max(2, round(points * length / sum(lengths)))
        for i in range(int(joined), steps + 1):
            k.append(at[a] + (at[b] - at[a]) * i / steps)
            distance.append(here + length * i / steps)
        here += length
        ticks.append(here)
        labels.append(b)
    return KPath(np.array(k), np.array(distance), tuple(ticks), tuple(labels))


def band_energies(
    basis: Basis, ions: Mapping[str, Ion], v: Array, k: np.ndarray, bands: int, ctx: Context, seed: int = 0
) -> np.ndarray:
    """Return the lowest energies (nk, bands) in Ha at fractional k points (nk, 3) in a fixed local potential."""
    done = 0

    def solve(index: int) -> np.ndarray:
        h = hamiltonian_at(basis, k[index], ions)
        h.potential = v
        count = min(bands + UPPER_BANDS, h.npw)
        tolerance = np.where(np.arange(count) < bands, BAND_TOLERANCE, np.inf)
        return davidson(h, start_vectors(h, count, seed, index), tolerance).eps[:bands]

    def report() -> None:
        nonlocal done
        done += 1
        ctx.progress(min(done * ctx.ranks.size, len(k)), len(k))
        if ctx.stop_requested:
            raise Stopped

    with blas_threads(len(k)):
        return np.array(for_each_k(solve, len(k), ctx.ranks, basis.workers, report))


class Gap(NamedTuple):
    """Gaps over the k points looked at, Ha: fundamental and direct (both 0 for a metal), and the k points of the band edges."""

    fundamental: float
    direct: float
    k_valence: np.ndarray
    k_conduction: np.ndarray


def gap(eps: np.ndarray, k: np.ndarray, electrons: float) -> Gap | None:
    """Return the gap of bands eps (nk, bands) filled with an even number of electrons; None when no empty band is known.

    The number refers to the k points given: band edges between them are not seen.
    """
    filled = round(electrons / 2)
    if abs(electrons / 2 - filled) > 1e-9:
        return Gap(0.0, 0.0, k[0], k[0])
    if filled >= eps.shape[1]:
        return None
    top, bottom = eps[:, filled - 1], eps[:, filled]
    v, c = int(top.argmax()), int(bottom.argmin())
    return Gap(max(0.0, float(bottom[c] - top[v])), max(0.0, float((bottom - top).min())), k[v], k[c])
