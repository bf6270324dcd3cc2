"""Duplicates: shingles and similarity against plain Python, clusters against brute force, independence of how pieces are cut."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from bench.data.dedup import true_pairs
from gewu.core.errors import InputError
from gewu.core.minhash import shingles, similar
from gewu.data.minhash import Dedup

Random = np.random.Generator


def jaccard(a: str, b: str, n: int) -> float:
    """Return the similarity by the definition, for texts of plain words."""
    sets = [{tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))} for words in (a.split(), b.split())]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def changed(text: str, share: float, random: Random) -> str:
    words = text.split()
    for at in random.choice(len(words), int(share * len(words)), replace=False):
        words[at] = f"new{random.integers(10**6)}"
    return " ".join(words)


def corpus(n: int, seed: int, size: int = 80) -> list[str]:
    """Return texts of which a half are changed copies of others, by up to four hundredths of their words."""
    random = np.random.default_rng(seed)
    texts = [" ".join(f"w{k}" for k in random.zipf(1.3, size) % 5000) for _ in range(n // 2)]
    texts += [changed(texts[random.integers(len(texts))], random.uniform(0, 0.04), random) for _ in range(n - len(texts))]
    return [texts[i] for i in random.permutation(n)]


def samples(texts: list[str]) -> list[dict[str, Any]]:
    return [{"text": text} for text in texts]


def numbers(text: str, n: int = 2) -> list[int]:
    return shingles([text], n)[0].tolist()


def test_shingles_are_of_words_whatever_their_dress() -> None:
    plain = numbers("the quick brown fox")
    assert len(plain) == len(set(plain)) == 3
    assert numbers("  The QUICK,\n brown--fox!\t") == plain
    assert numbers("the quick brown foxes")[:2] == plain[:2]
    assert numbers("quick the brown fox") != plain
    assert numbers("one") == numbers("ONE.") != [] and numbers("one", 5) == numbers("one", 2)  # fewer words than n: one shingle
    assert numbers("") == numbers(" .,; \U0001f642") == []
    assert len(numbers("漢字かな")) == 3 and numbers("漢字、かな") == numbers("漢字かな")  # characters are words
    assert len(numbers("x漢 y")) == 2
    assert len(numbers("日本 2024年 café naïve 한국어 문장", 1)) == 8
    assert numbers("Ünïcode ÉTÉ") == numbers("ünïcode été")


def test_shingles_of_many_texts_are_those_of_each() -> None:
    texts = ["a b c d", "", "e", "漢字 a b", "a b c"]
    values, starts = shingles(texts, 3)
    for i, text in enumerate(texts):
        assert values[starts[i] : starts[i + 1]].tolist() == numbers(text, 3)
    assert shingles([], 3)[1].tolist() == [0]


def test_signatures_estimate_the_similarity() -> None:
    random = np.random.default_rng(7)
    dedup = Dedup(ngram=3, hashes=2000, bands=20)
    for share in (0.0, 0.02, 0.05, 0.1, 0.3):
        a = " ".join(f"w{k}" for k in random.integers(0, 10**6, 400))
        b = changed(a, share, random)
        one, two = dedup.sketch(samples([a, b]))["signature"]
        true = jaccard(a, b, 3)
        assert abs((one == two).mean() - true) <= 4 * np.sqrt(true * (1 - true) / 2000) + 1e-9  # 4 standard deviations


def test_the_check_is_exact_for_small_sets_and_a_sample_of_large_ones() -> None:
    random = np.random.default_rng(8)

    def alike(a: np.ndarray, b: np.ndarray, threshold: float, most: int) -> bool:
        one, two = a[:most], b[:most]
        none = np.zeros(1, np.int64)
        return bool(similar(one, np.array([0, len(one)]), none, two, np.array([0, len(two)]), none, most, threshold)[0])

    for _ in range(200):
        a, b = (np.unique(random.integers(0, 60, random.integers(1, 50)).astype(np.uint32)) for _ in range(2))
        true = len(np.intersect1d(a, b)) / len(np.union1d(a, b))
        assert alike(a, b, true, 1000) and not alike(a, b, true + 1e-6, 1000)
    edge = np.array([0, 2**32 - 1], np.uint32)
    assert alike(edge, edge, 1.0, 2) and alike(edge, edge[1:], 0.5, 9) and not alike(edge, edge[:1], 0.51, 9)
    pool = np.unique(random.integers(0, 2**32, 60_000, np.uint32))
    a, b = np.sort(random.permutation(pool)[:50_000]), np.sort(random.permutation(pool)[:50_000])
    true = len(np.intersect1d(a, b)) / len(np.union1d(a, b))
    sigma = np.sqrt(true * (1 - true) / 1024)
    assert alike(a, b, true - 4 * sigma, 1024) and not alike(a, b, true + 4 * sigma, 1024)


def test_true_pairs_of_the_benchmark_against_the_definition() -> None:
    texts = [*corpus(60, 1), "too short", "too short"]
    want = {(i, j) for i, j in combinations(range(len(texts)), 2) if jaccard(texts[i], texts[j], 5) >= 0.8 - 1e-12}
    assert len(want) > 5
    assert set(zip(*map(np.ndarray.tolist, true_pairs(texts)), strict=True)) == want


def components(n: int, pairs: list[tuple[int, int]]) -> list[int]:
    first = list(range(n))
    for i, j in sorted(pairs):
        a, b = first[i], first[j]
        first = [min(a, b) if f in (a, b) else f for f in first]
    return first


def test_clusters_are_those_of_brute_force() -> None:
    """2,000 texts: nearly every true pair is found (P at J = 0.8 is 0.998), and what is united is similar, exactly."""
    texts = corpus(2000, 2)
    left, right = (side.tolist() for side in true_pairs(texts))
    dedup = Dedup()
    first = dedup.clusters([dedup.sketch(samples(texts))])
    found = [first[i] == first[j] for i, j in zip(left, right, strict=True)]
    assert len(found) > 500 and np.mean(found) >= 0.99
    true = np.array(components(len(texts), list(zip(left, right, strict=True))))
    assert (true <= first).all()  # no text is united with one that is not similar to a member
    assert ((first == np.arange(len(texts))) != (true == np.arange(len(texts)))).mean() < 0.005


@pytest.mark.slow
def test_recall_and_precision_on_20000_real_texts() -> None:
    from bench.data import dedup as bench

    texts = bench.corpus(20_000)
    pairs, dedup = bench.true_pairs(texts), Dedup()
    first = dedup.clusters([dedup.sketch(samples(texts))])
    kept = np.flatnonzero(first == np.arange(len(texts))).tolist()
    got = bench.accuracy({"clusters": dict(enumerate(first.tolist())), "kept": kept}, *pairs)
    assert got["recall"] >= 0.95 and got["precision"] >= 0.9 and got["pairs"] > 1000, got


def test_what_is_kept_does_not_depend_on_the_cut() -> None:
    texts, dedup = corpus(300, 3), Dedup(hashes=60, bands=10)
    whole = dedup.join([dedup.sketch(samples(texts))])[0]
    assert 0 < whole.sum() < 300
    random = np.random.default_rng(4)
    for _ in range(5):
        cuts = np.sort(random.integers(0, 301, random.integers(1, 9)))
        pieces = [texts[a:b] for a, b in zip([0, *cuts], [*cuts, 300], strict=True)]
        keep = dedup.join([dedup.sketch(samples(piece)) for piece in pieces])
        assert [len(k) for k in keep] == [len(piece) for piece in pieces]
        assert np.concatenate(keep).tolist() == whole.tolist()
    parts = [dedup.sketch(samples(part)) for part in (texts[:7], texts[7:])]  # a piece sketched in parts
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    assert all((joined[key] == value).all() for key, value in dedup.sketch(samples(texts)).items())


def test_exact_duplicates() -> None:
    texts = ["A b.\n\n c", "a b. c", "A b. c ", "caf\u00e9", "cafe\u0301", "", "!!!", "???", "", "漢字", "漢字"]
    only = Dedup(threshold=2.0)
    assert only.clusters([only.sketch(samples(texts))]).tolist() == [0, 1, 0, 3, 3, 5, 6, 7, 5, 9, 9]
    both = Dedup()
    assert both.clusters([both.sketch(samples(texts))]).tolist() == [0, 0, 0, 3, 3, 5, 6, 7, 5, 9, 9]  # no words: not alike
    near = Dedup(exact=False)
    assert near.clusters([near.sketch(samples(texts))]).tolist() == [0, 0, 0, 3, 4, 5, 6, 7, 8, 9, 9]


def test_nothing_and_pieces_of_nothing() -> None:
    dedup = Dedup()
    assert dedup.join([]) == []
    keep = dedup.join([dedup.sketch([]), dedup.sketch(samples(["a"])), dedup.sketch([]), dedup.sketch(samples(["a"]))])
    assert [k.tolist() for k in keep] == [[], [True], [], [False]]
    assert all(k.dtype == bool for k in keep)


def test_many_texts_with_one_beginning_stay_linear() -> None:
    """3,000 texts in one band bucket: each is compared with a bounded number of others, and all that are alike meet."""
    random = np.random.default_rng(9)
    head = " ".join(f"licence{k}" for k in range(200))
    texts = [f"{head} {random.integers(10**9)}" for _ in range(3000)]
    dedup = Dedup()
    first = dedup.clusters([dedup.sketch(samples(texts))])
    assert (first == 0).all()


def test_bad_numbers_and_bad_samples_are_refused() -> None:
    for wrong in ({"hashes": 100, "bands": 30}, {"ngram": 0}, {"threshold": 0.0}, {"bands": 0}):
        with pytest.raises(InputError, match="no such deduplication"):
            Dedup(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="dedup: text"):
        Dedup().sketch([{"body": "x"}])
