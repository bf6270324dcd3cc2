"""Exact and near duplicates: BLAKE2b, then MinHash with banded locality-sensitive hashing, then a check of every candidate.

    candidates  pairs of texts that agree in one band of their signatures, J the similarity of their shingles: `gewu.core.minhash`
    check       J of the shingles' smallest 1024 hashes (of all, so exactly, for texts that have no more), J ≥ threshold
    clusters    connected components of the pairs that pass; the first text, in order of pieces, is kept

A piece is sketched alone (`sketch`: any process, any order), all sketches are joined once (`join`). Joining sorts one band of all
texts at a time: about 40 bytes a text beside the sketches. Beyond memory the bands are independent external sorts of (key, text)
and the check reads the two sketches of a pair; docs/data-text.md counts it for 1e11 texts. Among texts with one key, each is
compared with the 16 before it and with the first, so that work stays linear in the texts whatever they are.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.core.minhash import Ints, distinct, neighbours, scramble, shingles, signatures, similar, unite
from gewu.data.text import text_of

_CHUNK: Final = 1 << 20
Sketch = dict[str, NDArray[Any]]


def _digest(text: str) -> bytes:
    """Return BLAKE2b-128 of a text in NFC, with every run of blanks and line ends as one blank."""
    same = unicodedata.normalize("NFC", " ".join(text.split()))
    return hashlib.blake2b(same.encode("utf-8", "replace"), digest_size=16).digest()


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
        owner = np.repeat(np.arange(len(texts), dtype=np.uint64), np.diff(starts))
        keys = distinct((owner << np.uint64(32)) | (values >> np.uint64(32)))
        begin = np.searchsorted(keys, np.arange(len(texts) + 1, dtype=np.uint64) << np.uint64(32))
        counts = np.diff(begin)
        kept = np.arange(len(keys)) - np.repeat(begin[:-1], counts) < self.most
        exact = np.frombuffer(b"".join(map(_digest, texts)), "<u8").reshape(-1, 2)
        found = {"exact": exact, "signature": signatures(values, starts, self.hashes, self.seed)}
        return found | {"shingles": keys[kept].astype(np.uint32), "counts": np.minimum(counts, self.most).astype(np.uint32)}

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
            unite(first, order[:-1][same], order[1:][same])
        sizes = np.concatenate([sketch["counts"] for sketch in sketches])
        members = np.flatnonzero((sizes > 0) & (first == np.arange(len(first))))
        starts = [np.concatenate([[0], np.cumsum(sketch["counts"], dtype=np.int64)]) for sketch in sketches]
        for band in range(self.bands if self.threshold <= 1 else 0):
            i, j = self._candidates(sketches, first, members, band)
            passed = self._check(sketches, starts, offsets, i, j)
            unite(first, i[passed], j[passed])
        return first

    def _candidates(self, sketches: Sequence[Sketch], first: Ints, members: Ints, band: int) -> tuple[Ints, Ints]:
        """Return the pairs that agree in one band and are not united yet."""
        rows = self.hashes // self.bands
        odd = scramble(band, rows) | np.uint64(1)
        keys = np.concatenate([(s["signature"][:, band * rows : (band + 1) * rows] * odd).sum(axis=1) for s in sketches])
        i, j = neighbours(keys[members], members)
        apart = first[i] != first[j]
        return np.divmod(distinct(i[apart] * len(first) + j[apart]), len(first))

    def _check(self, sketches: Sequence[Sketch], starts: Sequence[Ints], offsets: Ints, i: Ints, j: Ints) -> NDArray[np.bool_]:
        """Tell which pairs are similar enough, pieces by pieces, so that two sketches are needed at a time."""
        passed = np.zeros(len(i), np.bool_)
        p, q = np.searchsorted(offsets, i, "right") - 1, np.searchsorted(offsets, j, "right") - 1
        groups, where = np.unique(p * len(sketches) + q, return_inverse=True)
        for group, (a, b) in enumerate(zip(*np.divmod(groups, len(sketches)), strict=True)):
            at, sets = np.flatnonzero(where == group), (sketches[a]["shingles"], sketches[b]["shingles"])
            left, right = (sets[0], starts[a], i[at] - offsets[a]), (sets[1], starts[b], j[at] - offsets[b])
            passed[at] = similar(*left, *right, self.most, self.threshold)
        return passed
