"""Exact and near duplicates: BLAKE2b, then MinHash with banded locality-sensitive hashing, then a check of every candidate.

Texts are folded (lower case; letters, marks and numbers; a Chinese or Japanese character is a word) and cut into shingles of n
words; a text of fewer words is one shingle. With A, B the sets of 64-bit shingle hashes x, and J = |A ∩ B| / |A ∪ B|:

    signature   s_k = min over x in A of (a_k x + b_k mod 2^64) >> 32, a_k odd      P(s_k equal) ≈ J
    candidates  pairs that agree in all r values of one of b bands                  P = 1 - (1 - J^r)^b
    check       J of the shingles' smallest 1024 hashes (of all, so exactly, for texts that have no more), J ≥ threshold
    clusters    connected components of the pairs that pass; the first text, in order of pieces, is kept

A piece is sketched alone (`sketch`: any process, any order), all sketches are joined once (`join`). Joining sorts one band of all
texts at a time: about 40 bytes a text beside the sketches. Beyond memory the bands are independent external sorts of (key, text)
and the check reads the two sketches of a pair; docs/data-text.md counts it for 1e11 texts. Among texts with one key, each is
compared with the `REACH` before it and with the first, so that work stays linear in the texts whatever they are.

References: A. Broder, "On the resemblance and containment of documents" (1997), sketches and shingles; J. Leskovec, A. Rajaraman,
J. Ullman, "Mining of massive datasets", chapter 3, bands; M. Dietzfelbinger et al., J. Algorithms 25 (1997) 19, multiply-shift.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.device import load_numba
from gewu.core.errors import InputError
from gewu.data.language import HAN, KANA, codes, fold
from gewu.data.text import text_of

numba = load_numba()

REACH: Final = 16
_CHUNK: Final = 1 << 20
_P, _Q = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
Sketch = dict[str, NDArray[Any]]
Ints = NDArray[np.int64]


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


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _similar(sets, starts, i, sets2, starts2, j, most, threshold):  # type: ignore[no-untyped-def]
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
def _unite(parent, i, j):  # type: ignore[no-untyped-def]
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


def _digest(text: str) -> bytes:
    """Return BLAKE2b-128 of a text in NFC, with every run of blanks and line ends as one blank."""
    same = unicodedata.normalize("NFC", " ".join(text.split()))
    return hashlib.blake2b(same.encode("utf-8", "replace"), digest_size=16).digest()


def _distinct(keys: NDArray[Any]) -> NDArray[Any]:
    keys = np.sort(keys)  # by vectors, many times as fast as np.unique
    return np.asarray(keys[np.diff(keys, prepend=~keys[:1]) != 0])


def _neighbours(keys: NDArray[np.uint64], members: Ints) -> tuple[Ints, Ints]:
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


@dataclass(frozen=True)
class Dedup:
    """Find texts that repeat an earlier one, exactly or nearly.

    Args:
        field: the text.
        threshold: Jaccard similarity of shingles from which texts are near duplicates; above 1 only exact ones are found.
        ngram: words in a shingle.
        hashes: values in a signature; `bands` must divide it.
        exact: find equal texts first (by 128-bit hash).
        most: hashes kept of a text for the check; texts with fewer shingles are checked exactly.

    Example:
        >>> dedup = Dedup(ngram=1)
        >>> pieces = [[{"text": "One two three"}, {"text": "four"}], [{"text": "three, two, one!"}]]
        >>> [keep.tolist() for keep in dedup.join([dedup.sketch(piece) for piece in pieces])]
        [[True, True], [False]]
    """

    field: str = "text"
    threshold: float = 0.8
    ngram: int = 5
    hashes: int = 120
    bands: int = 20
    exact: bool = True
    most: int = 1024
    seed: int = 1
    name: str = "dedup"

    def __post_init__(self) -> None:
        if min(self.ngram, self.hashes, self.bands, self.most) < 1 or self.hashes % self.bands or not self.threshold > 0:
            allowed = "positive numbers; bands divides hashes"
            raise InputError("no such deduplication", key=self.name, value=(self.hashes, self.bands), allowed=allowed)

    def sketch(self, samples: Sequence[dict[str, Any]]) -> Sketch:
        """Return what is to be known of the samples of one piece, or of a part of one: sketches of parts are concatenated.

        Returns:
            "exact" uint64 (n, 2), "signature" uint32 (n, hashes), "counts" uint32 (n), "shingles" uint32 (sum of counts).
        """
        texts = [text_of(sample, self.field, self.name) for sample in samples]
        cuts = np.cumsum([len(text) for text in texts]) // _CHUNK
        blocks = np.split(np.arange(len(texts)), 1 + np.flatnonzero(np.diff(cuts)))
        parts = [self._sketch([texts[i] for i in block]) for block in blocks]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _sketch(self, texts: Sequence[str]) -> Sketch:
        values, starts = shingles(texts, self.ngram)
        draw = np.random.Generator(np.random.Philox(self.seed)).integers(0, 2**64, (2, self.hashes), np.uint64)
        signature = np.empty((len(texts), self.hashes), np.uint32)
        _sign(values, starts, draw[0] | np.uint64(1), draw[1], signature)
        owner = np.repeat(np.arange(len(texts), dtype=np.uint64), np.diff(starts))
        keys = _distinct((owner << np.uint64(32)) | (values >> np.uint64(32)))
        begin = np.searchsorted(keys, np.arange(len(texts) + 1, dtype=np.uint64) << np.uint64(32))
        counts = np.diff(begin)
        kept = np.arange(len(keys)) - np.repeat(begin[:-1], counts) < self.most
        exact = np.frombuffer(b"".join(map(_digest, texts)), "<u8").reshape(-1, 2)
        found = {"exact": exact, "signature": signature, "shingles": keys[kept].astype(np.uint32)}
        return found | {"counts": np.minimum(counts, self.most).astype(np.uint32)}

    def join(self, sketches: Sequence[Sketch]) -> list[NDArray[np.bool_]]:
        """Return for each piece which of its samples to keep: the first of every cluster, in the order of the pieces."""
        if not sketches:
            return []
        first = self.clusters(sketches)
        return np.split(first == np.arange(len(first)), np.cumsum([len(sketch["exact"]) for sketch in sketches])[:-1])

    def clusters(self, sketches: Sequence[Sketch]) -> Ints:
        """Return for each sample of all pieces the number of the first sample of its cluster."""
        offsets = np.concatenate([[0], np.cumsum([len(sketch["exact"]) for sketch in sketches])]).astype(np.int64)
        first = np.arange(offsets[-1])
        if self.exact:
            keys = np.concatenate([sketch["exact"] for sketch in sketches])
            order = np.lexsort((keys[:, 1], keys[:, 0]))
            same = (keys[order][1:] == keys[order][:-1]).all(axis=1)
            _unite(first, order[:-1][same], order[1:][same])
        sizes = np.concatenate([sketch["counts"] for sketch in sketches])
        members = np.flatnonzero((sizes > 0) & (first == np.arange(len(first))))
        starts = [np.concatenate([[0], np.cumsum(sketch["counts"], dtype=np.int64)]) for sketch in sketches]
        for band in range(self.bands if self.threshold <= 1 else 0):
            i, j = self._candidates(sketches, first, members, band)
            passed = self._check(sketches, starts, offsets, i, j)
            _unite(first, i[passed], j[passed])
        return first

    def _candidates(self, sketches: Sequence[Sketch], first: Ints, members: Ints, band: int) -> tuple[Ints, Ints]:
        """Return the pairs that agree in one band and are not united yet."""
        rows = self.hashes // self.bands
        odd = np.random.Generator(np.random.Philox(band)).integers(0, 2**63, rows, np.uint64) * 2 + 1
        keys = np.concatenate([(s["signature"][:, band * rows : (band + 1) * rows] * odd).sum(axis=1) for s in sketches])
        i, j = _neighbours(keys[members], members)
        apart = first[i] != first[j]
        return np.divmod(_distinct(i[apart] * len(first) + j[apart]), len(first))

    def _check(self, sketches: Sequence[Sketch], starts: Sequence[Ints], offsets: Ints, i: Ints, j: Ints) -> NDArray[np.bool_]:
        """Tell which pairs are similar enough, pieces by pieces, so that two sketches are needed at a time."""
        passed = np.zeros(len(i), np.bool_)
        p, q = np.searchsorted(offsets, i, "right") - 1, np.searchsorted(offsets, j, "right") - 1
        groups, where = np.unique(p * len(sketches) + q, return_inverse=True)
        for group, (a, b) in enumerate(zip(*np.divmod(groups, len(sketches)), strict=True)):
            at, sets = np.flatnonzero(where == group), (sketches[a]["shingles"], sketches[b]["shingles"])
            left, right = (sets[0], starts[a], i[at] - offsets[a]), (sets[1], starts[b], j[at] - offsets[b])
            passed[at] = _similar(*left, *right, self.most, self.threshold)
        return passed
