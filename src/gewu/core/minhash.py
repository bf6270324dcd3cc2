"""MinHash: sets of word shingles, their signatures, and the joining of signatures that agree in a band.

Texts are folded (lower case; letters, marks and numbers; a Chinese or Japanese character is a word) and cut into shingles of n
words; a text of fewer words is one shingle. With A, B the sets of 64-bit shingle hashes x, and J = |A ∩ B| / |A ∪ B|:

    signature   s_k = min over x in A of (a_k x + b_k mod 2^64) >> 32, a_k odd      P(s_k equal) ≈ J
    band        r values of a signature                                             P(one of b bands equal) = 1 - (1 - J^r)^b
    check       J of the smallest m hashes of each set, exact for sets of fewer; else a mean over about m samples

References: A. Broder, "On the resemblance and containment of documents" (1997), sketches and shingles; J. Leskovec, A. Rajaraman,
J. Ullman, "Mining of massive datasets", chapter 3, bands; M. Dietzfelbinger et al., J. Algorithms 25 (1997) 19, multiply-shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.device import load_numba
from gewu.core.letters import HAN, KANA, codes, fold

numba = load_numba()

REACH: Final = 16
Ints = NDArray[np.int64]
_P, _Q = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _shingle(text, ends, fold, n, out, counts):  # type: ignore[no-untyped-def]
    """Write the shingle hashes of texts that lie one after the other, and how many each has."""
    recent, m, at = np.zeros(n, np.uint64), 0, 0
    for d in range(len(ends)):
        begin, words, word = m, 0, np.uint64(0)
        while at <= ends[d]:
            c = text[at] if at < ends[d] else np.uint32(0)
            entry = fold[c] if c < 65536 else np.uint32(0)
            script = entry >> np.uint32(16)
            alone = script in (HAN, KANA) or (c >= 0x20000 and c < 0x40000)
            if word and (alone or script == 0):
                recent[words % n] = (word ^ (word >> np.uint64(32))) * _Q
                words, word = words + 1, np.uint64(0)
                if words >= n:
                    out[m] = _mixed(recent, words, n)
                    m += 1
            if alone:
                recent[words % n] = (np.uint64(c) + _Q) * _P
                words += 1
                if words >= n:
                    out[m] = _mixed(recent, words, n)
                    m += 1
            elif script:
                word = (word ^ np.uint64(entry & np.uint32(65535))) * _P + np.uint64(1)
                word ^= word >> np.uint64(29)
            at += 1
        at = ends[d]
        if 0 < words < n:
            out[m] = _mixed(recent, words, words)
            m += 1
        counts[d] = m - begin


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _mixed(recent, words, n):  # type: ignore[no-untyped-def]
    x = np.uint64(n)
    for j in range(words - n, words):
        x = (x ^ recent[j % len(recent)]) * _P
        x ^= x >> np.uint64(32)
    x *= _Q
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _sign(shingles, starts, a, b, out):  # type: ignore[no-untyped-def]
    least = np.empty(len(a), np.uint64)
    for d in range(len(starts) - 1):
        least[:] = np.uint64(0xFFFFFFFFFFFFFFFF)
        for j in range(starts[d], starts[d + 1]):
            x = shingles[j]
            for k in range(len(a)):
                least[k] = min(least[k], a[k] * x + b[k])
        for k in range(len(a)):
            out[d, k] = least[k] >> np.uint64(32)


def scramble(start: int, n: int) -> NDArray[np.uint64]:
    """Return n pseudo-random numbers of 64 bits (SplitMix64 from `start` on): constants for hashing, the same everywhere."""
    x = (np.arange(1, n + 1, dtype=np.uint64) + np.uint64(start << 32)) * _P
    x = (x ^ (x >> np.uint64(30))) * _Q
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def signatures(values: NDArray[np.uint64], starts: Ints, hashes: int, seed: int = 1) -> NDArray[np.uint32]:
    """Return the signatures, uint32 (n, hashes), of sets as `shingles` gives them; that of an empty set is all ones."""
    out = np.empty((len(starts) - 1, hashes), np.uint32)
    numbers = scramble(seed, 2 * hashes)
    _sign(values, starts, numbers[:hashes] | np.uint64(1), numbers[hashes:], out)
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def similar(sets, starts, i, sets2, starts2, j, most, threshold):  # type: ignore[no-untyped-def]
    """Tell for each pair whether its Jaccard similarity, of the hashes up to the last that both sets know, is large enough."""
    out = np.empty(len(i), np.bool_)
    for pair in range(len(i)):
        p, p_end, q, q_end = starts[i[pair]], starts[i[pair] + 1], starts2[j[pair]], starts2[j[pair] + 1]
        last = sets[p_end - 1] if p_end - p == most else np.uint32(0xFFFFFFFF)
        last = min(last, sets2[q_end - 1]) if q_end - q == most else last
        both = union = 0
        while True:
            one, two = p < p_end and sets[p] <= last, q < q_end and sets2[q] <= last
            if not (one or two):
                break
            left, right = one and (not two or sets[p] <= sets2[q]), two and (not one or sets2[q] <= sets[p])
            p, q, both, union = p + left, q + right, both + (left and right), union + 1
        out[pair] = both >= threshold * union - 1e-9
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def unite(parent, i, j):  # type: ignore[no-untyped-def]
    """Unite the sets of each pair under its smallest member, then point every text at its root."""
    for pair in range(len(i)):
        x, y = i[pair], j[pair]
        while parent[x] != x:
            parent[x] = x = parent[parent[x]]
        while parent[y] != y:
            parent[y] = y = parent[parent[y]]
        parent[max(x, y)] = min(x, y)
    for x in range(len(parent)):  # roots are smaller, so already done
        parent[x] = parent[parent[x]]


def shingles(texts: Sequence[str], ngram: int = 5) -> tuple[NDArray[np.uint64], Ints]:
    """Return the shingle hashes of texts, in order and with repetitions, and where those of each text start (and all end)."""
    points = [codes(text) for text in texts]
    ends = np.cumsum([len(p) for p in points], dtype=np.int64)
    counts = np.zeros(len(texts), np.int64)
    out = np.empty(int(ends[-1]) if texts else 0, np.uint64)
    _shingle(np.concatenate([*points, np.zeros(0, np.uint32)]), ends, fold(), ngram, out, counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    return out[: starts[-1]], starts


def distinct(keys: NDArray[Any]) -> NDArray[Any]:
    """Return the different numbers of an array, sorted."""
    keys = np.sort(keys)  # by vectors, many times as fast as np.unique
    return np.asarray(keys[np.diff(keys, prepend=~keys[:1]) != 0])


def neighbours(keys: NDArray[np.uint64], members: Ints) -> tuple[Ints, Ints]:
    """Return pairs of members with equal keys: each with the `REACH` before it and the first."""
    order = np.argsort(keys, kind="stable")
    keys, members = keys[order], members[order]
    begin = np.maximum.accumulate(np.where(np.diff(keys, prepend=~keys[:1]) != 0, np.arange(len(keys)), 0))
    position, left, right = np.arange(len(keys)), [], []
    for distance in range(1, REACH + 2):
        at = np.flatnonzero(position - begin >= distance)
        if not len(at):
            break
        left.append(members[begin[at] if distance > REACH else at - distance])
        right.append(members[at])
    empty = [np.zeros(0, np.int64)]
    return np.concatenate(left or empty), np.concatenate(right or empty)
