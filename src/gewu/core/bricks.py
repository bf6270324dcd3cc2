"""A box cut into equal bricks, one for each rank: who owns which place, and who lives next door.

The box may be triclinic: places are fractions of its three edges, and a brick is a product of three intervals of fractions.
Ranks number the bricks with the last direction fastest.  The box is periodic, so every brick has a neighbour on either side; with
two bricks in a direction both neighbours are the same one, with one brick they are the brick itself and the direction is not
decomposed.

The cut is the one whose bricks with their halos have the least volume (Plimpton, J. Comput. Phys. 117, 1, 1995, spatial
decomposition): each rank stores and receives the halo, so this is the least work and the fewest bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Bricks:
    """A grid of `shape[0] * shape[1] * shape[2]` equal bricks.

    Args:
        shape: bricks in each direction.
    """

    shape: Triple

    @property
    def size(self) -> int:
        """How many bricks there are."""
        return math.prod(self.shape)

    @property
    def decomposed(self) -> tuple[bool, bool, bool]:
        """Directions with more than one brick."""
        x, y, z = self.shape
        return x > 1, y > 1, z > 1

    def coordinates(self, rank: int) -> Triple:
        """Return where the brick of a rank stands in the grid."""
        _, y, z = self.shape
        return rank // (y * z), rank // z % y, rank % z

    def rank_at(self, x: int, y: int, z: int) -> int:
        """Return the rank at a place of the grid, which repeats periodically."""
        nx, ny, nz = self.shape
        return (x % nx * ny + y % ny) * nz + z % nz

    def neighbour(self, rank: int, direction: int, step: int) -> int:
        """Return the rank `step` bricks up (or down, when negative) in a direction 0, 1 or 2."""
        place = list(self.coordinates(rank))
        place[direction] += step
        return self.rank_at(*place)

    def bounds(self, rank: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the lowest and the highest fractions (3,) of a brick."""
        place, shape = np.array(self.coordinates(rank)), np.array(self.shape)
        return place / shape, (place + 1) / shape

    def owners(self, fraction_n3: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the ranks (n,) whose bricks hold fractions in [0, 1]; 1 belongs to the last brick of its direction."""
        owner = np.zeros(len(fraction_n3), np.int64)
        for direction, n in enumerate(self.shape):
            if n > 1:
                owner *= n
                owner += np.minimum((fraction_n3[:, direction] * n).astype(np.int64), n - 1)
        return owner


def cut(size: int, height_3: Sequence[float], halo_3: Sequence[float], least_3: Sequence[float] | None = None) -> Bricks:
    """Choose the grid of bricks for a number of ranks.

    Args:
        size: number of ranks.
        height_3: distances between opposite faces of the box.
        halo_3: depth of the halo around a brick in each direction, same unit.
        least_3: smallest height of a brick in a direction that is cut; by default the halo.
    Returns:
        The admissible grid with the least volume of brick and halo; among equals the one that cuts the first directions.
    Raises:
        InputError: no grid has bricks that high; names the largest number of ranks that has one.

    Example:
        >>> cut(4, (10.0, 10.0, 30.0), (1.0, 1.0, 1.0)).shape
        (1, 1, 4)
    """
    least = halo_3 if least_3 is None else least_3
    found = _best(size, height_3, halo_3, least)
    if found is None:
        usable = next(n for n in range(size - 1, 0, -1) if _best(n, height_3, halo_3, least) is not None)
        box, brick = (" x ".join(f"{value:.4g}" for value in values) for values in (height_3, least))
        raise InputError(
            f"{size} ranks cannot share a box with heights {box}: bricks must be at least {brick} high",
            key="ranks",
            value=size,
            allowed=f"at most {usable}",
            hint=f"start {usable} rank{'s' if usable > 1 else ''} with more threads each, or take a larger box",
        )
    return Bricks(found)


def _best(size: int, height_3: Sequence[float], halo_3: Sequence[float], least_3: Sequence[float]) -> Triple | None:
    def cost(shape: Triple) -> float:
        parts = zip(shape, height_3, halo_3, strict=True)
        return math.prod(height / n + (2 * halo if n > 1 else 0.0) for n, height, halo in parts)

    def fits(shape: Triple) -> bool:
        return all(n == 1 or height / n >= least for n, height, least in zip(shape, height_3, least_3, strict=True))

    # rounded, so that equal costs stay equal and the choice does not hang on the last bit
    return min(filter(fits, _factors(size)), key=lambda s: (float(f"{cost(s):.9e}"), tuple(-n for n in s)), default=None)


def _factors(size: int) -> Iterator[Triple]:
    """Yield every (x, y, z) of positive integers whose product is `size`."""
    for x in range(1, size + 1):
        if size % x == 0:
            yield from ((x, y, size // x // y) for y in range(1, size // x + 1) if size // x % y == 0)
