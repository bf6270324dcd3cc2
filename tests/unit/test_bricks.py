"""The grid of bricks: numbering, neighbours, ownership, and the choice of the cut."""

from __future__ import annotations

import numpy as np
import pytest

from gewu.core.bricks import Bricks, cut
from gewu.core.errors import InputError


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 1), (3, 4, 5)])
def test_ranks_and_places_are_one_to_one(shape: tuple[int, int, int]) -> None:
    bricks = Bricks(shape)
    places = [bricks.coordinates(rank) for rank in range(bricks.size)]
    assert places == list(np.ndindex(shape))
    assert [bricks.rank_at(*place) for place in places] == list(range(bricks.size))
    x, y, z = shape
    assert bricks.rank_at(-1, 2 * y, z + z - 1) == bricks.rank_at(x - 1, 0, z - 1)


def test_neighbours_are_mutual_and_close_a_ring() -> None:
    bricks = Bricks((3, 2, 1))
    for rank in range(6):
        for direction, n in enumerate(bricks.shape):
            above = bricks.neighbour(rank, direction, 1)
            assert bricks.neighbour(above, direction, -1) == rank
            assert bricks.neighbour(rank, direction, n) == rank
            moved = (np.array(bricks.coordinates(above)) - bricks.coordinates(rank))[direction] % n
            assert moved == 1 % n
    assert bricks.neighbour(0, 1, 1) == bricks.neighbour(0, 1, -1) == 1  # two in a direction: the same one on both sides
    assert bricks.decomposed == (True, True, False)


def test_every_place_has_one_owner_inside_its_bounds() -> None:
    bricks = Bricks((3, 2, 4))
    fraction = np.concatenate([np.random.default_rng(1).random((500, 3)), np.zeros((1, 3)), np.ones((1, 3))])
    owners = bricks.owners(fraction)
    counts = np.zeros(bricks.size, int)
    for row, rank in zip(fraction, owners, strict=True):
        lower, upper = bricks.bounds(rank)
        assert (lower <= row).all() and ((row < upper) | (upper == 1.0)).all()
        counts[rank] += 1
    assert counts.min() > 0 and counts.sum() == len(fraction)
    assert owners[-2] == 0 and owners[-1] == bricks.size - 1
    assert Bricks((1, 3, 1)).owners(np.array([[7.0, 0.5, -9.0]])) == [1]  # directions that are not cut do not matter
    assert bricks.bounds(0)[0].tolist() == [0, 0, 0] and bricks.bounds(bricks.size - 1)[1].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("size", "height", "halo", "shape"),
    [
        (1, (1, 1, 1), 5.0, (1, 1, 1)),  # one rank needs no halo: its box may be smaller
        (2, (8, 8, 8), 1.0, (2, 1, 1)),
        (2, (8, 9, 8), 1.0, (1, 2, 1)),
        (4, (8, 8, 8), 1.0, (4, 1, 1)),  # slabs: (2 + 2) 8 8 < (4 + 2)^2 8
        (4, (8, 8, 8), 2.5, (2, 2, 1)),  # slabs of 2 would be thinner than the halo
        (8, (8, 8, 8), 2.5, (2, 2, 2)),
        (64, (80, 80, 80), 1.0, (4, 4, 4)),
        (6, (10, 10, 60), 1.0, (1, 1, 6)),
    ],
)
def test_the_cut_has_least_volume_with_halo(size: int, height: tuple[float, ...], halo: float, shape: tuple[int, ...]) -> None:
    assert cut(size, height, [halo] * 3).shape == shape


def test_the_choice_does_not_hang_on_rounding() -> None:
    for wobble in np.random.default_rng(2).normal(scale=1e-13, size=(20, 3)):
        assert cut(6, 8.0 + wobble, [1.0] * 3).shape == cut(6, (8, 8, 8), [1.0] * 3).shape


def test_too_many_ranks_are_refused_with_the_largest_usable_number() -> None:
    with pytest.raises(InputError, match=r"7 ranks.*8 x 8 x 8.*at least 3 x 3 x 3.*at most 4; start 4 ranks"):
        cut(7, (8, 8, 8), [3.0] * 3)  # 5 and 7 are primes, 6 = 3 x 2 needs bricks of 8/3
    assert cut(8, (8, 8, 8), [3.0] * 3).shape == (2, 2, 2)
    with pytest.raises(InputError, match=r"at most 1; start 1 rank with"):
        cut(3, (4, 4, 4), [3.0] * 3)
    with pytest.raises(InputError, match="at least 5 x 5 x 5"):
        cut(2, (8, 8, 8), [1.0] * 3, [5.0] * 3)
