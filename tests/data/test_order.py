"""Orders: bijective, the same everywhere, well shuffled, and whole after a kill and a resume on other ranks."""

from __future__ import annotations

import doctest
import json
import pickle
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from gewu.core import permutation
from gewu.core.errors import InputError
from gewu.core.random import philox4x32
from gewu.data import order
from gewu.data.order import Mixture, Order, Sequential, WindowOrder, cumulative, lookup

Array = NDArray[np.int64]
MASK = 2**64 - 1
G, C1, C2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(z: int) -> int:
    z = ((z ^ z >> 30) * C1) & MASK
    z = ((z ^ z >> 27) * C2) & MASK
    return z ^ z >> 31


def image(x: int, n: int, key: int, rounds: int = 10) -> int:
    """The definition, in Python's integers: a Feistel network on Z_a x Z_2^k with cycle walking."""
    k = next(k for k in range(3, 64) if (n - 1) >> 2 * k <= 1)
    a = max(8, -(-n // 2**k))
    while True:
        left, right = divmod(x, 2**k)
        for i in range(0, rounds, 2):
            right ^= mix((left + key + i * G) & MASK) >> (64 - k)
            left = (left + (mix((right + key + (i + 1) * G) & MASK) * a >> 64)) % a
        x = left * 2**k + right
        if x < n:
            return x


def secret(seed: int, epoch: int) -> int:
    words = philox4x32([epoch % 2**32, epoch >> 32, 0, 0], [seed % 2**32, seed >> 32])
    return int(words[0]) + 2**32 * int(words[1])


def windowed(sizes: list[int], **more: int) -> WindowOrder:
    return WindowOrder(sizes, **{"seed": 3, "window": 10**9, "shards": 4, **more})


# --- a permutation, exactly


SMALL = [*range(1, 2001), *(2**b + d for b in range(11, 17) for d in (-1, 0, 1)), 65521, 99991, 10**6 + 3]


def test_every_small_order_is_a_bijection_and_its_inverse_is_exact() -> None:
    for n in SMALL:
        shuffled = Order(n, seed=n).take(0, n)
        assert np.array_equal(np.sort(shuffled), np.arange(n, dtype=np.uint64)), n
        assert np.array_equal(Order(n, seed=n).inverse(shuffled), np.arange(n, dtype=np.uint64)), n


@pytest.mark.parametrize("n", [10**11, 2**61, 2**62, 2**62 - 57, 2**61 + 1])
def test_inverse_is_exact_where_the_order_is_too_long_to_list(n: int) -> None:
    long = Order(n, seed=5)
    positions = np.random.default_rng(0).integers(0, n, 20_000).astype(np.uint64)
    samples = long[positions]
    assert int(samples.max()) < n
    assert np.array_equal(long.inverse(samples), positions) and np.array_equal(long[long.inverse(positions)], positions)
    assert len(np.unique(long.take(n - 20_000, n))) == 20_000


@pytest.mark.parametrize("n", [1, 2, 7, 64, 65, 1000, 2**20 + 7, 10**11, 2**62])
def test_the_kernel_does_what_the_definition_says(n: int) -> None:
    for seed, epoch in ((0, 0), (2**64 - 1, 2**63 - 1), (17, 4)):
        positions = np.random.default_rng(seed % 97).integers(0, n, 50).astype(np.uint64)
        key = mix(secret(seed, epoch))  # of window 0
        assert Order(n, seed, epoch)[positions].tolist() == [image(int(x), n, key) for x in positions]


def test_orders_stay_what_they_were() -> None:
    """Values of the first version: a change would break the resumption of every run under way, so it needs a new name."""
    assert Order(10**11, seed=1).take(0, 3).tolist() == [5292851145, 86439748300, 2391027647]
    assert WindowOrder([5, 0, 7, 3], seed=1, window=6).take(0, 15).tolist() == [1, 3, 0, 2, 4, 7, 6, 12, 14, 9, 11, 10, 8, 13, 5]
    assert Mixture([Order(5, 1), Order(4, 2)], [0.75, 0.25], seed=1).take(0, 12).tolist() == [1, 3, 6, 0, 2, 4, 8, 0, 1, 4, 2, 7]
    assert Order(9, seed=1).state(4) == {"order": "global-1 n=9", "seed": 1, "epoch": 0, "position": 4}


SIZES = [[1], [5], [0, 1], [3, 0, 0, 4, 0], [1] * 50, [10**6 + 3], [7, 0, 1000, 3, 3, 0, 99, 2, 500, 1, 1, 64, 65]]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("shards", [1, 2, 4, 100])
@pytest.mark.parametrize("window", [1, 70, 10**9])
def test_a_window_order_is_a_bijection_that_opens_few_shards(sizes: list[int], shards: int, window: int) -> None:
    made = windowed(sizes, shards=shards, window=window)
    n, samples = sum(sizes), made.take(0, sum(sizes))
    assert np.array_equal(np.sort(samples), np.arange(n, dtype=np.uint64))
    assert np.array_equal(made.inverse(samples), np.arange(n, dtype=np.uint64))
    shard = np.repeat(np.arange(len(sizes)), sizes)[samples.astype(np.int64)]
    first, last = ([np.flatnonzero(shard == s)[end] for s in np.unique(shard)] for end in (0, -1))
    opened = [sum(a <= p <= b for a, b in zip(first, last, strict=True)) for p in first]
    assert max(opened) <= shards, "a shard outside the window is open"
    per_window = -(-window * len(opened) // n)
    assert max(opened) <= per_window, "windows hold more than `window` samples on average"


def test_windows_hold_all_of_their_shards_and_are_of_equal_length() -> None:
    sizes = np.random.default_rng(1).integers(1, 100, 1001)
    made = WindowOrder(sizes, seed=2, window=10**9, shards=10)
    shard = lookup(cumulative(sizes), made.take(0, len(made)))[0]
    position, found = 0, []
    while position < len(made):
        inside = {int(shard[position])}
        while (size := int(sizes[list(inside)].sum())) and set(shard[position : position + size].tolist()) - inside:
            inside |= set(shard[position : position + size].tolist())
        found.append(len(inside))
        position += size
    assert sum(found) == 1001 and set(found) <= {9, 10} and len(found) == 101


def test_orders_without_samples() -> None:
    for empty in (Order(0, 1), WindowOrder([], 1), WindowOrder([0, 0], 1)):
        assert list(empty) == [] and len(empty) == 0
        assert empty.take(0, 0).dtype == np.uint64 and empty.rank_slice(0, 4).size == 0 and empty.inverse([]).size == 0


# --- shard lookup


@pytest.mark.parametrize("kind", ["equal", "uniform", "heavy", "one", "empties", "huge"])
def test_lookup_finds_every_shard(kind: str) -> None:
    rng = np.random.default_rng(7)
    sizes = {
        "equal": np.full(1000, 17),
        "uniform": rng.integers(0, 1000, 3000),
        "heavy": (rng.pareto(0.5, 2000) * 10).astype(np.int64) % 10**9,
        "one": np.array([12345]),
        "empties": np.where(rng.random(5000) < 0.9, 0, rng.integers(1, 9, 5000)),
        "huge": np.array([2**61 - 1, 0, 1, 2**61]),
    }[kind]
    first = cumulative(sizes)
    edges = np.unique(np.concatenate([first[:-1], first[1:] - np.uint64(1)]).clip(0, first[-1] - np.uint64(1)))
    indices = np.concatenate([rng.integers(0, int(first[-1]), 20_000).astype(np.uint64), edges])
    for given in (np.sort(indices), np.sort(indices)[::-1], indices):  # near the one before, and far from it
        shard, row = lookup(first, given)
        assert np.array_equal(shard, np.searchsorted(first, given, "right") - 1)
    assert shard.dtype == row.dtype == np.int64 and np.array_equal(first[shard] + row.astype(np.uint64), indices)
    assert (row < np.asarray(sizes)[shard]).all()


# --- how well it is shuffled

N, BINS = 2**18, 32
ALPHA = 1e-4  # two-sided; the seeds are fixed, so what passes once passes always


def two_sided(p: float) -> float:
    return 2 * min(p, 1 - p)


def normal(z: float) -> float:
    return two_sided(float(stats.norm.cdf(z)))


def table(a: Array, b: Array, n: int) -> float:
    """Independence of two numberings of the same n things, by a BINS x BINS table with fixed margins."""
    seen = np.bincount(a * BINS // n * BINS + b * BINS // n, minlength=BINS**2).reshape(BINS, BINS)
    expected = np.outer(seen.sum(1), seen.sum(0)) / seen.sum()
    chi2 = float(((seen - expected) ** 2 / expected).sum()) * (1 - 1 / n)
    return two_sided(float(stats.chi2.cdf(chi2, (BINS - 1) ** 2)))


def histograms(v: Array) -> float:
    """Where samples of each part of the store stand: position against sample, chi2."""
    return table(np.arange(v.size), v, v.size)


def serial(v: Array) -> float:
    """Correlation of a sample with the one before, and with the seventh before: mean -1/n, variance 1/n."""
    x = (v - v.mean()) / v.std()
    return min(normal(float((x[lag:] * x[:-lag]).sum()) / np.sqrt(v.size)) for lag in (1, 7))


def runs(v: Array) -> float:
    """Runs up and down: (2 n - 1)/3 on average, variance (16 n - 29)/90 (Levene 1952)."""
    up = np.diff(v) > 0
    count = 1 + int((up[1:] != up[:-1]).sum())
    return normal((count - (2 * v.size - 1) / 3) / np.sqrt((16 * v.size - 29) / 90))


def distances(v: Array) -> float:
    """How far neighbours in the store stand apart, against (1 - u)^2, the probability of more than u n."""
    position = np.argsort(v)
    apart = np.abs(position[2::2] - position[1::2][: position[2::2].size])  # pairs that share no sample
    u = 1 - (1 - apart / v.size) ** 2
    seen = np.bincount((u * 64).astype(int), minlength=64)
    return two_sided(float(stats.chi2.cdf(((seen - u.size / 64) ** 2 / (u.size / 64)).sum(), 63)))


def fixed(pairs: list[tuple[Array, Array]]) -> float:
    """Places where two orders agree: one on average, so a sum over pairs is Poisson's."""
    count = sum(int((a == b).sum()) for a, b in pairs)
    return 2 * min(float(stats.poisson.cdf(count, len(pairs))), float(stats.poisson.sf(count - 1, len(pairs))))


def independence(a: Array, b: Array) -> float:
    """Correlation and table of two orders, position by position."""
    x, y = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    return min(normal(float((x * y).sum()) / np.sqrt(a.size)), table(a, b, a.size))


def whole(seed: int, epoch: int = 0) -> Array:
    return Order(N, seed, epoch).take(0, N).astype(np.int64)


def within(seed: int, epoch: int = 0) -> Array:
    """The second of three windows: ranks of its samples in the store, at every position in it."""
    made = WindowOrder([N // 64] * 192, seed, epoch, window=10**9, shards=64)
    return np.argsort(np.argsort(made.take(N, 2 * N)))


def shards(seed: int, epoch: int = 0) -> Array:
    """The order in which a window order of N shards reads them."""
    return WindowOrder(np.full(N, 64), seed, epoch, shards=1)[np.arange(0, 64 * N, 64)].astype(np.int64) // 64


def identity(seed: int, epoch: int = 0) -> Array:
    return np.arange(N)


def affine(seed: int, epoch: int = 0) -> Array:
    return (np.arange(N) * 161803 + 12345 * (seed % N) + 54321 * epoch) % N


def weak(rounds: int) -> Callable[..., Array]:
    def made(seed: int, epoch: int = 0) -> Array:
        left, right = (np.arange(N) // 512).astype(np.uint64), (np.arange(N) % 512).astype(np.uint64)
        key = np.uint64(mix(seed * G + epoch & MASK))
        with np.errstate(over="ignore"):
            for i in range(0, rounds, 2):
                right ^= vector_mix(left + key + np.uint64(i * G & MASK)) >> np.uint64(55)
                left = (left + (vector_mix(right + key + np.uint64((i + 1) * G & MASK)) >> np.uint64(55))) % np.uint64(512)
        return (left * np.uint64(512) + right).astype(np.int64)

    return made


def vector_mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ z >> np.uint64(30)) * np.uint64(C1)
    z = (z ^ z >> np.uint64(27)) * np.uint64(C2)
    return z ^ z >> np.uint64(31)


ONE = [histograms, serial, runs, distances]
GOOD = [whole, within, shards]
SEEDS = [0, 1, 2**63 + 1]


@pytest.mark.parametrize("good", GOOD)
@pytest.mark.parametrize("statistic", ONE)
def test_an_order_looks_random(statistic: Callable[[Array], float], good: Callable[..., Array]) -> None:
    assert min(statistic(good(seed)) for seed in SEEDS) > ALPHA / 10  # the least of three, over 12 cases


@pytest.mark.parametrize("bad", [identity, affine, weak(2)], ids=["identity", "affine", "two rounds"])
@pytest.mark.parametrize("statistic", ONE)
def test_each_statistic_refuses_a_bad_shuffle(statistic: Callable[[Array], float], bad: Callable[..., Array]) -> None:
    assert min(statistic(bad(seed)) for seed in SEEDS) < 1e-7


@pytest.mark.parametrize("good", GOOD)
def test_seeds_and_epochs_have_nothing_in_common(good: Callable[..., Array]) -> None:
    first = good(0)
    for other in (good(1), good(0, 1), good(2**32), good(0, 2**32), np.argsort(first)):
        assert independence(first, other) > ALPHA
    orders = [good(seed, epoch) for seed in range(4) for epoch in range(4)]
    assert fixed([(a, b) for k, a in enumerate(orders) for b in orders[:k]]) > ALPHA
    assert fixed([(a, np.arange(N)) for a in orders]) > ALPHA


def test_the_statistics_of_two_orders_refuse_what_belongs_together() -> None:
    assert fixed([(whole(1), whole(1))]) < 1e-7 and independence(whole(1), whole(1)) < 1e-7
    assert fixed([(identity(s), np.arange(N)) for s in range(4)]) < 1e-7
    assert fixed([(affine(s), affine(s + 1)) for s in range(20)]) < 1e-7  # they never meet
    assert independence(affine(1), affine(2)) < 1e-7 and independence(whole(1), N - 1 - whole(1)) < 1e-7


def test_windows_of_one_order_have_nothing_in_common() -> None:
    made = WindowOrder([N // 64] * 192, seed=5, window=10**9, shards=64)
    a, b, c = (np.argsort(np.argsort(made.take(start, start + N))) for start in (0, N, 2 * N))
    assert min(independence(a, b), independence(b, c), independence(a, c)) > ALPHA
    assert fixed([(a, b), (b, c), (a, c)]) > ALPHA


def test_windows_cost_randomness_over_the_whole_range_and_the_histograms_see_it() -> None:
    made = WindowOrder([N // 256] * 256, seed=5, window=10**9, shards=64)
    assert histograms(made.take(0, N).astype(np.int64)) < 1e-7


def pairs(images: NDArray[np.uint64], n: int) -> float:
    """Where the two positions of many short orders go, (m, 2): all n (n - 1) pairs alike."""
    seen = np.bincount((images[:, 0] * np.uint64(n) + images[:, 1]).astype(np.int64), minlength=n * n)
    cells, expected = n * (n - 1), images.shape[0] / (n * (n - 1))
    assert not seen[:: n + 1].any(), "two positions hold one sample"
    chi2 = float((seen.astype(float) ** 2).sum()) / expected - images.shape[0]
    return two_sided(float(stats.chi2.cdf(chi2, cells - 1)))


@pytest.mark.parametrize("n", [2, 5, 12, 64, 100])
def test_short_orders_under_many_keys_take_every_pair_of_images(n: int) -> None:
    start = np.arange(300_000, dtype=np.uint64) * np.uint64(n)
    for other in {1, n // 2, n - 1} - {0}:
        positions = np.stack([start, start + np.uint64(other)], axis=1)
        images = positions.reshape(-1).copy()
        permutation.shuffle(images, np.append(start, start[-1] + np.uint64(n)), np.uint64(9), False)
        assert pairs(images.reshape(-1, 2) - start[:, None], n) > ALPHA


@pytest.mark.parametrize("rounds", [2, 4, 6])
def test_pairs_of_images_refuse_too_few_rounds(rounds: int) -> None:
    key = np.stack([vector_mix(np.arange(2_000_000, dtype=np.uint64))] * 2, axis=1)
    left, right = np.zeros_like(key), np.broadcast_to(np.array([0, 1], np.uint64), key.shape).copy()
    for i in range(0, rounds, 2):
        right ^= vector_mix(left + key + np.uint64(i * G & MASK)) >> np.uint64(61)
        left = (left + (vector_mix(right + key + np.uint64((i + 1) * G & MASK)) >> np.uint64(61))) % np.uint64(8)
    assert pairs(left * np.uint64(8) + right, 64) < 1e-7


def test_short_orders_of_many_seeds_and_epochs_start_everywhere() -> None:
    for starts in ([Order(12, seed)[0] for seed in range(2400)], [Order(12, 1, epoch)[11] for epoch in range(2400)]):
        assert two_sided(float(stats.chisquare(np.bincount(starts, minlength=12)).pvalue)) > ALPHA


def test_a_hundred_billion_samples_look_random() -> None:
    long = Order(10**11, seed=3)
    for start in (0, 10**11 // 3, 10**11 - 10**6):
        v = long.take(start, start + 10**6).astype(np.int64)
        seen = np.bincount(v // 10**8, minlength=1000)
        assert two_sided(float(stats.chisquare(seen).pvalue)) > ALPHA
        assert serial(v) > ALPHA and runs(v) > ALPHA
        assert two_sided(float(stats.chisquare(np.bincount(v % 1024, minlength=1024)).pvalue)) > ALPHA


# --- kill and resume on other ranks


def some_order(rng: np.random.Generator) -> Order:
    seed, epoch = int(rng.integers(2**62)), int(rng.integers(5))
    kind, n = rng.integers(3), int(rng.integers(1, 1000))
    if kind == 0:
        return Order(n, seed, epoch)
    sizes = rng.integers(0, 60, int(rng.integers(1, 30))) + (rng.random() < 0.3)
    made = WindowOrder(sizes, seed, epoch, window=int(rng.integers(1, 2000)), shards=int(rng.integers(1, 20)))
    return made if kind == 1 or made.n == 0 else Mixture([Order(n, seed), made], [rng.random() + 0.1, 1], seed, n=2 * n)


def train(made: Order, rng: np.random.Generator, batch: int, drop_last: bool) -> list[int]:
    """Go through an order with kills at random moments, each resumed from the last checkpoint on another number of ranks."""
    seen: list[int] = []
    saved = json.dumps(made.state(0))
    running = True
    while running:
        again, position = made.resume(json.loads(saved))
        seen, world = seen[:position], int(rng.integers(1, 17))
        until_killed = int(rng.integers(1, 30))
        while until_killed:
            parts = [again.rank_slice(position, batch, rank, world, drop_last=drop_last) for rank in range(world)]
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            taken = np.concatenate(parts).tolist()
            if not taken:
                running = False
                break
            seen += taken
            position += len(taken)
            until_killed -= 1
            if rng.random() < 0.5:
                saved = json.dumps(again.state(position))
    return seen


@pytest.mark.parametrize("drop_last", [False, True])
def test_after_kills_and_resumes_on_other_ranks_no_sample_comes_twice_and_none_is_missing(drop_last: bool) -> None:
    rng = np.random.default_rng(2026 + drop_last)
    for _ in range(40):
        made, batch = some_order(rng), int(np.exp(rng.uniform(1, 6)))
        seen = train(made, rng, batch, drop_last)
        whole_batches = made.n // batch * batch if drop_last else made.n
        assert seen == made.take(0, whole_batches).tolist()
        assert isinstance(made, Mixture) or len(set(seen)) == whole_batches


def test_a_rank_slice_that_follows_the_world_would_be_caught() -> None:
    """The property above fails for ranks that stride through the order by themselves, the usual mistake."""

    class Strided(Order):
        def rank_slice(
            self, position: int, batch: int, rank: int = 0, world: int = 1, *, drop_last: bool = False
        ) -> permutation.Indices:
            return self[np.arange(position + rank, min(position + batch, self.n), world)]

    made = Strided(1000, seed=1)
    assert train(made, np.random.default_rng(1), 48, False) != made.take(0, 1000).tolist()


def test_a_run_goes_on_in_the_epoch_of_its_state() -> None:
    for made in (Order(50, 7, 3), windowed([10, 20, 20], seed=7, epoch=3)):
        again, position = made.again(7, 0).resume(made.state(20))
        assert position == 20 and again.epoch == 3 and np.array_equal(again.take(20, 50), made.take(20, 50))
        assert np.array_equal(pickle.loads(pickle.dumps(made)).take(0, 50), made.take(0, 50))


def test_a_sequential_order_has_the_same_face() -> None:
    made = Sequential(100)
    assert list(made) == list(range(100)) and made[7] == made.inverse(7) == 7
    assert train(made, np.random.default_rng(3), 7, False) == list(range(100))
    with pytest.raises(InputError, match="of other data"):
        made.resume(Order(100, 0).state(3))


# --- mixtures


WEIGHTS = [[1], [1, 1], [0.7, 0.2, 0.1], [1, 2, 3, 4, 90], [0.333, 0.333, 0.334], [np.pi, np.e, 1.0], [Fraction(1, 3)] * 3]
WEIGHTS += [np.random.default_rng(4).random(40).tolist(), [1 / 65536, 1 - 1 / 65536], [*[1] * 7, 0.5]]


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda w: f"{len(w)} from {float(w[0]):.3g}")
def test_every_prefix_of_a_mixture_holds_its_shares_to_less_than_one(weights: list[float]) -> None:
    made = Mixture([Order(10**6, seed) for seed in range(len(weights))], weights, seed=3)
    source, _ = made.draws(np.arange(150_000))
    p = np.arange(1, 150_001)
    assert sum(made.shares) == 1
    for s, (share, weight) in enumerate(zip(made.shares, weights, strict=True)):
        off = np.cumsum(source == s) * share.denominator - p * share.numerator
        assert np.abs(off).max() < share.denominator
        assert abs(float(share) - float(weight) / sum(map(float, weights))) < 2**-16
    sums_to = sum(Fraction(str(weight)) for weight in weights)
    if all((Fraction(str(weight)) / sums_to).denominator <= 1000 for weight in weights):
        assert [share * sums_to for share in made.shares] == [Fraction(str(weight)) for weight in weights]


def test_a_mixture_goes_through_each_source_epoch_after_epoch() -> None:
    sources = [Order(7, 1), windowed([5, 0, 9], seed=2, epoch=4), Order(1000, 3)]
    made = Mixture(sources, [2, 1, 1], seed=1)
    source, index = made.draws(np.arange(400))
    for s, single in enumerate(sources):
        drawn = index[source == s]
        epochs = [single.again(single.seed, single.epoch + e).take(0, single.n) for e in range(-(-drawn.size // single.n))]
        assert np.array_equal(drawn, np.concatenate(epochs)[: drawn.size])
    assert np.array_equal(made.take(0, 400), made.offsets[source] + index) and made.offsets.tolist() == [0, 7, 21, 1021]
    assert len({tuple(index[source == 0][e : e + 7].tolist()) for e in range(0, 196, 7)}) > 20  # each epoch reshuffled
    scattered = np.random.default_rng(0).permutation(400)
    assert np.array_equal(made[scattered], made.take(0, 400)[scattered]) and made[399] == int(made.take(399, 400)[0])


def test_a_mixture_reaches_far_positions_without_counting_to_them() -> None:
    made = Mixture([Order(10**11, 1), Order(10**9 + 7, 2)], [0.9, 0.1], seed=1)
    source, index = made.draws([10**12, 10**12 + 1, 10**12 + 9, 2**62 - 1])
    assert (index < np.array([10**11, 10**9 + 7])[source]).all()
    assert made.rank_slice(made.n - 3, 100).size == 3


def test_equal_shares_come_in_an_order_that_the_seed_decides() -> None:
    first, second = (Mixture([Order(9, 1), Order(9, 2)], [1, 1], seed).draws(np.arange(2000))[0] for seed in (1, 2))
    assert 400 < int((first[::2] == second[::2]).sum()) < 600 and 400 < int(first[::2].sum()) < 600


# --- refusals


def test_bad_arguments_are_refused_by_name() -> None:
    made = Order(10, 1)
    refused: list[tuple[str, Callable[[], object]]] = [
        ("n:", lambda: Order(-1, 0)),
        ("n:", lambda: Order(2**62 + 1, 0)),
        ("n:", lambda: Order(1.5, 0)),  # type: ignore[arg-type]
        ("seed:", lambda: Order(1, -1)),
        ("seed:", lambda: Order(1, 2**64)),
        ("epoch:", lambda: Order(1, 1, -1)),
        ("whole numbers below 10", lambda: made[10]),
        ("whole numbers below 10", lambda: made[-1]),
        ("whole numbers below 10", lambda: made[np.array([0.5])]),
        ("whole numbers below 10", lambda: made.inverse([3, 10])),
        ("stop:", lambda: made.take(0, 11)),
        ("start:", lambda: made.take(5, 4)),
        ("position:", lambda: made.rank_slice(11, 1)),
        ("batch:", lambda: made.rank_slice(0, 0)),
        ("rank:", lambda: made.rank_slice(0, 1, 2, 2)),
        ("world:", lambda: made.rank_slice(0, 1, 0, 0)),
        ("shard_sizes:", lambda: WindowOrder([3, -1], 0)),
        ("shard_sizes:", lambda: WindowOrder([0.5], 0)),
        ("shard_sizes:", lambda: WindowOrder([[3]], 0)),
        ("shard_sizes:", lambda: WindowOrder([2**62, 1000], 0)),
        ("window:", lambda: WindowOrder([3], 0, window=0)),
        ("shards:", lambda: WindowOrder([3], 0, shards=0)),
        ("whole numbers below 5", lambda: lookup(cumulative([2, 3]), [5])),
        ("weights:", lambda: Mixture([], [], 0)),
        ("weights:", lambda: Mixture([made], [1, 2], 0)),
        ("weights:", lambda: Mixture([made, Order(0, 0)], [1, 2], 0)),
        ("weights:", lambda: Mixture([made, made], [1, float("nan")], 0)),
        ("weights:", lambda: Mixture([made, made], [1, float("inf")], 0)),
        ("weights:", lambda: Mixture([made, made], [1, 0], 0)),
        ("too small", lambda: Mixture([made, made], [1, 1e-9], 0)),
        ("no inverse", lambda: Mixture([made], [1], 0).inverse(3)),
        ("of other data", lambda: made.resume({})),
        ("of other data", lambda: made.resume(Order(11, 1).state(3))),
        ("of other data", lambda: windowed([3, 4]).resume(windowed([4, 3]).state(3))),
        ("of other data", lambda: windowed([3, 4]).resume(windowed([3, 4], shards=1).state(3))),
        ("of other data", lambda: Mixture([made], [1], 0).resume(Mixture([Order(10, 2)], [1], 0).state(3))),
        ("seed:", lambda: made.resume({"order": made.name, "epoch": 0, "position": 0})),
        ("epoch:", lambda: made.resume({**made.state(3), "epoch": "0"})),
        ("position:", lambda: made.resume({**made.state(3), "position": 11})),
        ("position:", lambda: made.resume({"order": made.name, "epoch": 0, "seed": 0})),
    ]
    for expected, call in refused:
        with pytest.raises(InputError, match=re.escape(expected)):
            call()


def test_the_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(order).failed == 0
    page = (Path(__file__).parents[2] / "docs" / "data-order.md").read_text(encoding="utf-8")
    scope: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, scope)
    assert scope["saved"] == {"order": scope["near"].name, "seed": 1, "epoch": 2, "position": 5120}  # type: ignore[attr-defined]
    assert len(scope["batch"]) == 128  # type: ignore[arg-type]
