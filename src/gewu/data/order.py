"""The order in which a training run sees samples: a pure function of (seed, epoch, position), whatever the world size.

    Order        a global shuffle of [0, n), n <= 2^62, in O(1) memory
    WindowOrder  shards shuffled, and samples shuffled within windows of a few open shards: disks are read almost in sequence
    Sequential   samples as they are stored
    Mixture      draws from several orders by weight, each reshuffled whenever it is exhausted

All have one face.  `order[i]` is the sample at position i (an integer or an array of them), `order.take(start, stop)` those of a
range, `order.inverse(sample)` the position of a sample; `order.rank_slice(position, batch, rank, world)` is a rank's part of the
batch at `position`, which counts samples over all ranks.  So the state of a run is (seed, epoch, position), in a small dict that
`order.state(position)` makes and `order.resume(state)` takes, on any number of ranks.

    >>> order = Order(10, seed=1)
    >>> sorted(order) == list(range(10)), order.inverse(order[3])
    (True, 3)
    >>> parts = [order.rank_slice(4, batch=4, rank=r, world=3) for r in range(3)]
    >>> bool((np.concatenate(parts) == order.take(4, 8)).all())
    True

Everything is made of integers, so every platform sees the same order.  `gewu.core.permutation` does the shuffling;
docs/data-order.md says how good it is and what windows cost in randomness.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from gewu.core import permutation
from gewu.core.errors import InputError
from gewu.core.permutation import Indices, Places
from gewu.core.random import philox4x32

MOST, SLOTS, _LOW = 2**62, 2**16, 2**32 - 1


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if not isinstance(value, int | np.integer) or not low <= value <= high:
        raise InputError("not a whole number in range", key=name, value=value, allowed=f"{low} ... {high}")
    return int(value)


def _checked(values: ArrayLike, n: int) -> Indices:
    """Return a flat copy of integers in [0, n)."""
    array = np.asarray(values).reshape(-1)
    if array.size and (array.dtype.kind not in "iu" or array.min() < 0 or int(array.max()) >= n):
        raise InputError("no such sample or position", value=values, allowed=f"whole numbers below {n}")
    return array.astype(np.uint64)


def cumulative(sizes: ArrayLike) -> Indices:
    """Return the index of the first sample of every shard and, at the end, the number of samples.

    Args:
        sizes: (shards,) samples per shard.
    Returns:
        (shards + 1,) uint64.
    Raises:
        InputError: a size is negative or no integer, or the sum exceeds 2^62.
    """
    array = np.asarray(sizes)
    if array.ndim != 1 or (array.size and (array.dtype.kind not in "iu" or array.min() < 0)) or array.sum(dtype=float) > MOST:
        raise InputError("not a number of samples for each shard", key="shard_sizes", value=sizes, allowed="0 ... 2^62 in all")
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(array, dtype=np.uint64)])


def lookup(cumulative: Indices, indices: ArrayLike) -> tuple[Places, Places]:
    """Find the shard of every sample and its row in the shard.

    Args:
        cumulative: (shards + 1,) uint64, as the function `cumulative` returns it.
        indices: (m,) integers in [0, cumulative[-1]).
    Returns:
        Two (m,) int64 arrays: shard, row.
    Raises:
        InputError: an index is out of range.
    """
    found: tuple[Places, Places] = permutation.find(cumulative, _checked(indices, int(cumulative[-1])))
    return found


class Order:
    """A global shuffle of [0, n) in O(1) memory.

    Args:
        n: number of samples, 0 <= n <= 2^62.
        seed: of the run, 0 <= seed < 2^64.
        epoch: how often the data were seen before, 0 <= epoch < 2^63; each epoch has an order of its own.
    Raises:
        InputError: an argument is out of range.
    """

    def __init__(self, n: int, seed: int, epoch: int = 0) -> None:
        self.n, self.name = _whole("n", n, 0, MOST), f"global-1 n={n}"
        self.seed, self.epoch = _whole("seed", seed, 0, 2**64 - 1), _whole("epoch", epoch, 0, 2**63 - 1)
        words = philox4x32([self.epoch & _LOW, self.epoch >> 32, 0, 0], [self.seed & _LOW, self.seed >> 32])
        self._bound, self._secret = cumulative([self.n]), np.uint64(int(words[0]) | int(words[1]) << 32)

    def again(self, seed: int, epoch: int) -> Self:
        """Return the same order under another seed and epoch."""
        return type(self)(self.n, seed, epoch)

    def _map(self, values: Indices, back: bool) -> Indices:
        """Turn positions into samples, or `back`; may overwrite them."""
        permutation.shuffle(values, self._bound, self._secret, back)
        return values

    def _each(self, values: Any, back: bool) -> Any:
        found = self._map(_checked(values, self.n), back).reshape(np.shape(values))
        return found if found.ndim else int(found)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, position: Any) -> Any:
        return self._each(position, back=False)

    def __iter__(self) -> Iterator[int]:
        return (sample for start in range(0, self.n, 4096) for sample in self.rank_slice(start, 4096).tolist())

    def inverse(self, sample: Any) -> Any:
        """Return the position of a sample, or of each of an array of samples: the i with `order[i] == sample`."""
        return self._each(sample, back=True)

    def take(self, start: int, stop: int) -> Indices:
        """Return the samples at positions start ... stop - 1.

        Args:
            start: 0 <= start <= stop.
            stop: at most `len(self)`.
        Returns:
            (stop - start,) uint64.
        Raises:
            InputError: the range is not within the order.
        """
        stop = _whole("stop", stop, 0, self.n)
        return self._map(np.arange(_whole("start", start, 0, stop), stop, dtype=np.uint64), back=False)

    def rank_slice(self, position: int, batch: int, rank: int = 0, world: int = 1, *, drop_last: bool = False) -> Indices:
        """Return one rank's part of the batch at `position`.

        The parts of ranks 0 ... world - 1, one after the other, are `take(position, position + batch)`; their lengths
        differ by at most one.

        Args:
            position: samples that all ranks together have seen, 0 <= position <= len(self).
            batch: samples that all ranks together take, >= 1.
            rank: 0 <= rank < world.
            world: number of ranks, >= 1.
            drop_last: return nothing, rather than a short part, where fewer than `batch` samples are left.
        Returns:
            (about batch / world,) uint64; empty at the end.
        Raises:
            InputError: an argument is out of range.
        """
        size = min(_whole("batch", batch, 1, MOST), self.n - _whole("position", position, 0, self.n))
        rank = _whole("rank", rank, 0, _whole("world", world, 1, MOST) - 1)
        size = 0 if drop_last and size < batch else size
        return self.take(position + size * rank // world, position + size * (rank + 1) // world)

    def state(self, position: int) -> dict[str, int | str]:
        """Return what a checkpoint must hold to go on from `position`: integers and a name, whatever the world size."""
        return {"order": self.name, "seed": self.seed, "epoch": self.epoch, "position": _whole("position", position, 0, self.n)}

    def resume(self, state: Mapping[str, Any]) -> tuple[Self, int]:
        """Return the order of a saved state and the position to go on from.

        Raises:
            InputError: the state is of another kind of order or of other data, or is damaged.
        """
        if state.get("order") != self.name:
            raise InputError("the state is of another order, or of other data", value=state.get("order"), allowed=self.name)
        return self.again(state.get("seed", -1), state.get("epoch", -1)), _whole("position", state.get("position"), 0, self.n)


class WindowOrder(Order):
    """Shards in shuffled order, cut into windows of consecutive ones; samples are shuffled within their window.

    A reader has the shards of one window open at a time and is done with them at its end.  All windows have the same number of
    shards, to one: as many as hold `window` samples on average, at most `shards`.  Memory: 32 bytes a shard.

    Args:
        shard_sizes: (shards,) samples per shard in the order of the store; 0 is allowed.
        seed: of the run, 0 <= seed < 2^64.
        epoch: how often the data were seen before, 0 <= epoch < 2^63.
        window: samples that a window should hold, >= 1.
        shards: largest number of open shards, >= 1.
    Raises:
        InputError: an argument is out of range.
    """

    def __init__(self, shard_sizes: ArrayLike, seed: int, epoch: int = 0, *, window: int = 2**20, shards: int = 64) -> None:
        self._first = cumulative(shard_sizes)
        super().__init__(int(self._first[-1]), seed, epoch)
        self.window, self.shards = _whole("window", window, 1, MOST), _whole("shards", shards, 1, MOST)
        mark = blake2b(self._first.astype("<u8").tobytes(), digest_size=8).hexdigest()
        self.name = f"window-1 window={window} shards={shards} sizes={mark}"
        sizes = np.diff(self._first)
        filled = np.flatnonzero(sizes)  # empty shards are never opened
        turn = np.arange(filled.size, dtype=np.uint64)
        permutation.shuffle(turn, cumulative([turn.size]), ~self._secret, False)
        reading = filled[turn.astype(np.int64)]
        self._start = cumulative(sizes[reading])
        self._shift = self._first[reading] - self._start[:-1]  # from reading order to the order of the store, modulo 2^64
        self._unshift = np.zeros(sizes.size, np.uint64)
        self._unshift[reading] = self._shift
        width = min(self.shards, -(-self.window * turn.size // max(self.n, 1)))
        windows = -(-turn.size // max(width, 1))
        self._bound = self._start[turn.size * np.arange(windows + 1) // max(windows, 1)]

    def again(self, seed: int, epoch: int) -> Self:
        """Return the same order under another seed and epoch."""
        return type(self)(np.diff(self._first), seed, epoch, window=self.window, shards=self.shards)

    def _map(self, values: Indices, back: bool) -> Indices:
        if back:
            return super()._map(values - self._unshift[lookup(self._first, values)[0]], back)
        reading = super()._map(values, back)
        return reading + self._shift[lookup(self._start, reading)[0]]


class Sequential(Order):
    """The samples as they are stored, in every epoch."""

    def __init__(self, n: int, seed: int = 0, epoch: int = 0) -> None:
        super().__init__(n, seed, epoch)
        self.name = f"sequential-1 n={n}"

    def _map(self, values: Indices, back: bool) -> Indices:
        return values


class Mixture(Order):
    """Draws from several orders by weight, each going on with its next epoch when it is exhausted.

    Among the first p draws a source has its share of p to less than one draw either way, for every p.  Shares are exact where
    the weights, read as decimal fractions, have a common denominator up to 65536 (0.7, 0.2, 0.1: 10), else rounded to 1/65536;
    `shares` holds them.  The sequence of sources repeats after 65536 draws or somewhat fewer; the samples do not.

    A sample is numbered as if the sources stood one after the other: `offsets[s]` + index in source s; `draws` gives both apart.
    There is no inverse, since samples come again.

    Args:
        orders: the sources, none empty, with their own seeds and epochs.
        weights: a positive number for each source; only ratios matter.
        seed: decides which source comes first where the shares leave it open.
        n: number of draws, 0 <= n <= 2^62.
    Raises:
        InputError: no sources, an empty one, or a weight that is not positive or below about 1/65536 of the sum.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float | Fraction], seed: int, n: int = MOST) -> None:
        super().__init__(n, seed)
        if not (0 < len(orders) == len(weights) and all(o.n for o in orders) and all(0 < w < math.inf for w in weights)):
            raise InputError("a mixture needs sources, none empty, and a positive weight for each", key="weights", value=weights)
        self.orders, self.weights, quota = tuple(orders), tuple(weights), _quotas(weights)
        mark = blake2b(repr([*((o.name, o.seed, o.epoch) for o in orders), quota.tolist()]).encode(), digest_size=8)
        self.name = f"mixture-1 {mark.hexdigest()}"
        self.offsets = cumulative([order.n for order in self.orders])
        self.shares = tuple(Fraction(int(q), int(quota.sum())) for q in quota)
        self._quota, (self._slot, self._turn) = quota, permutation.schedule(quota, self._secret)
        self._epochs: dict[tuple[int, int], Order] = {}

    def again(self, seed: int, epoch: int) -> Self:
        """Return the same mixture under another seed; it has no epochs of its own."""
        return type(self)(self.orders, self.weights, seed, self.n)

    def draws(self, positions: ArrayLike) -> tuple[Places, Indices]:
        """Return the source of every position, and the index of its sample in the source.

        Args:
            positions: (m,) integers in [0, n).
        Returns:
            (m,) int64 and (m,) uint64.
        Raises:
            InputError: a position is out of range.
        """
        block, slot = np.divmod(_checked(positions, self.n).astype(np.int64), self._slot.size)
        source, index = self._slot[slot], np.empty(slot.size, np.uint64)
        turn = block * self._quota[source] + self._turn[slot]
        epoch, place = np.divmod(turn, np.diff(self.offsets).astype(np.int64)[source])
        by = np.lexsort((epoch, source))
        for mine in np.split(by, np.flatnonzero(np.diff(source[by]) | np.diff(epoch[by])) + 1)[: slot.size]:
            order = self._epoch(int(source[mine[0]]), int(epoch[mine[0]]))
            index[mine] = order._map(place[mine].astype(np.uint64), back=False)
        return source, index

    def _map(self, values: Indices, back: bool) -> Indices:
        if back:
            raise InputError("a mixture has no inverse: its samples come again")
        source, index = self.draws(values)
        return self.offsets[source] + index

    def _epoch(self, s: int, e: int) -> Order:
        """Return the order of epoch e of source s; two a source are kept, since windows take time to lay out."""
        if (order := self._epochs.get((s, e))) is None:
            order = self.orders[s].again(self.orders[s].seed, self.orders[s].epoch + e)
            # a new dict, since other threads may be reading the old one
            self._epochs = {at: o for at, o in self._epochs.items() if at[0] != s or at[1] == e - 1} | {(s, e): order}
        return order


def _quotas(weights: Sequence[float | Fraction]) -> Places:
    """Return how many of at most 65536 slots each weight gets."""
    total = sum(Fraction(str(weight)) for weight in weights)
    shares = [Fraction(str(weight)) / total for weight in weights]
    slots = SLOTS // (common := math.lcm(*(share.denominator for share in shares))) * common or SLOTS
    quota = np.diff([round(edge * slots) for edge in np.cumsum([0, *shares])])
    if quota.min() == 0:
        raise InputError("a weight is too small beside the others", key="weights", value=weights, allowed=f"1/{SLOTS} of the sum")
    return quota
