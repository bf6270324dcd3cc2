"""Byte-level byte-pair encoding: text cut into words, merges learned from counted words and applied by rank, as compiled loops.

Words are cut from UTF-8 by a scanner written by hand that gives what these expressions give, alternatives tried in order:

    GPT-2    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+
    Llama-3  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}
             | ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+
    Qwen2    the same with \\p{N}

Letters and numbers are those of Python's `unicodedata`; a program with newer tables of Unicode may cut new letters otherwise.

Learning counts pairs of neighbours in the distinct words, merges the most frequent (of equals the pair of smaller numbers), and
corrects only the counts beside what was merged; each pair keeps a list of words, and a heap of counts is corrected when its top
proves stale. Memory: about 100 bytes for each letter of the distinct words. Encoding merges the pair of lowest rank, leftmost
first, by a heap over a linked list, O(n log n) in a word; short words come from a direct-mapped cache.

References: P. Gage, "A new algorithm for data compression" (1994); R. Sennrich et al., ACL 2016, arXiv:1508.07909; A. Radford et
al., "Language models are unsupervised multitask learners" (2019), bytes as alphabet.
"""

from __future__ import annotations

import heapq
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gewu.core.device import load_numba
from gewu.core.files import rolled

numba = load_numba()

PATTERNS: Final = {"gpt2": (False, 0), "llama3": (True, 3), "qwen2": (True, 1)}
"""For each pattern: whether it is of the modern kind, and how many digits make a word there."""
_LETTER, _NUMBER, _SPACE, _LINE = 1, 2, 4, 12
_P, _Q = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_EMPTY, _RANK = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0xFFFFFFFF00000000)
_CACHED, _IDS, _SLOTS = 15, 7, 1 << 16  # bytes and tokens of a word that is kept, and places for them
_CHUNK: Final = 1 << 20


Array = NDArray[Any]


class Tables(NamedTuple):
    """What encoding needs of a vocabulary.

    Args:
        classes: of each code point, uint8.
        bytes_: token of each byte, uint32 (256).
        pairs: open table: pair of tokens, rank << 32 | token of the merged, uint64 (slots, 2).
        slots, text, begin, end: open table of whole words, int32 (one place when words are never taken whole), their bytes
            and where each lies in these.
    """

    classes: NDArray[np.uint8]
    bytes_: NDArray[np.uint32]
    pairs: NDArray[np.uint64]
    slots: NDArray[np.int32]
    text: NDArray[np.uint8]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]


@cache
def classes() -> NDArray[np.uint8]:
    """Return for each code point whether it is a letter, a number, white space or a line end."""
    table = np.zeros(0x110000, np.uint8)
    for code in range(0x110000):
        table[code] = {"L": _LETTER, "N": _NUMBER}.get(unicodedata.category(chr(code))[0], 0)
    spaces = [*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]
    table[spaces], table[[10, 13]] = _SPACE, _LINE
    return table


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _char(data, i, classes):  # type: ignore[no-untyped-def]
    """Return the class of the character at i, and its bytes."""
    a = np.int64(data[i])
    if a < 0x80:
        return classes[a], 1
    if a < 0xE0:
        return classes[(a & 31) << 6 | data[i + 1] & 63], 2
    if a < 0xF0:
        return classes[(a & 15) << 12 | np.int64(data[i + 1] & 63) << 6 | data[i + 2] & 63], 3
    return classes[(a & 7) << 18 | np.int64(data[i + 1] & 63) << 12 | np.int64(data[i + 2] & 63) << 6 | data[i + 3] & 63], 4


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _run(data, i, n, most, kind, classes):  # type: ignore[no-untyped-def]
    """Return where at most so many characters of one class end that begin at i."""
    while i < n and most > 0:
        found, width = _char(data, i, classes)
        if found != kind:
            break
        i, most = i + width, most - 1
    return i


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _contraction(data, i, n, modern):  # type: ignore[no-untyped-def]
    """Return the bytes of s, t, m, d, re, ve or ll behind an apostrophe, 0 for others."""
    a = data[i] | 32 if modern else data[i]
    b = np.uint8(0) if i + 1 == n else data[i + 1] | 32 if modern else data[i + 1]
    if a == 115 or a == 116 or a == 109 or a == 100:
        return 1
    if ((a == 114 or a == 118) and b == 101) or (a == 108 and b == 108):
        return 2
    return 2 if modern and data[i] == 0xC5 and b == 0xBF else 0  # the long s is an s where case does not count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def cut(data, i, n, modern, digits, classes):  # type: ignore[no-untyped-def]
    """Return where the word ends that begins at byte i of n bytes of UTF-8."""
    kind, width = _char(data, i, classes)
    j = i + width
    if data[i] == 39 and j < n:
        size = _contraction(data, j, n, modern)
        if size:
            return j + size
    following, blank = (_char(data, j, classes)[0] if j < n else np.uint8(_SPACE)), data[i] == 32
    lead = kind == 0 or kind == _SPACE if modern else blank
    if kind == _LETTER or (lead and following == _LETTER):
        return _run(data, j, n, n, _LETTER, classes)
    if kind == _NUMBER or (blank and not modern and following == _NUMBER):
        return _run(data, j, n, digits - 1 if modern else n, _NUMBER, classes)
    if kind == 0 or (blank and following == 0):
        j = _run(data, j, n, n, 0, classes)
        return _run(data, j, n, n, _LINE, classes) if modern else j
    last, line, k = i, 0, i
    while k < n:
        kind, width = _char(data, k, classes)
        if not kind & _SPACE:
            break
        last, k = k, k + width
        line = k if kind == _LINE else line
    if modern and line:
        return line
    return k if k == n or last == i else last  # the last blank stays with the word behind


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _find(slots, text, begin, end, data, i, j):  # type: ignore[no-untyped-def]
    """Return the place in an open table where a word stands or would stand."""
    h = np.uint64(j - i) * _Q
    for k in range(i, j):
        h = (h ^ np.uint64(data[k])) * _P
        h ^= h >> np.uint64(29)
    mask = np.int64(len(slots) - 1)
    place = np.int64(h & np.uint64(mask))
    while slots[place] >= 0:
        w = slots[place]
        if end[w] - begin[w] == j - i:
            k = 0
            while k < j - i and text[begin[w] + k] == data[i + k]:
                k += 1
            if k == j - i:
                break
        place = (place + 1) & mask
    return place


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _enter(slots, text, begin, end, n):  # type: ignore[no-untyped-def]
    for w in range(n):
        slots[_find(slots, text, begin, end, text, begin[w], end[w])] = w


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _pair(pairs, left, right):  # type: ignore[no-untyped-def]
    """Return a pair as one number, and the place in an open table where it stands or would stand."""
    key = np.uint64(left) << np.uint64(32) | np.uint64(right)
    h, mask = key * _P, np.uint64(len(pairs) - 1)
    place = (h ^ (h >> np.uint64(32))) & mask
    while pairs[place, 0] != key and pairs[place, 0] != _EMPTY:
        place = (place + np.uint64(1)) & mask
    return key, place


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _look(pairs, left, right):  # type: ignore[no-untyped-def]
    """Return rank << 32 | merged of a pair, or all ones."""
    return pairs[_pair(pairs, left, right)[1], 1]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _enter_pairs(pairs, merges):  # type: ignore[no-untyped-def]
    """Fill the table of pairs; return the first rank whose pair was there before, or -1."""
    for rank in range(len(merges)):
        key, place = _pair(pairs, merges[rank, 0], merges[rank, 1])
        if pairs[place, 0] == key:
            return rank
        pairs[place, 0], pairs[place, 1] = key, np.uint64(rank) << np.uint64(32) | np.uint64(merges[rank, 2])
    return -1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _merge(out, m, n, pairs, after, before, best):  # type: ignore[no-untyped-def]
    """Merge n tokens from out[m] on in place; return how many are left. The other arrays have room for n."""
    heap = [_EMPTY]
    for k in range(n):
        after[k], before[k] = k + 1, k - 1
        best[k] = _look(pairs, out[m + k], out[m + k + 1]) if k + 1 < n else _EMPTY
        if best[k] != _EMPTY:
            heapq.heappush(heap, best[k] & _RANK | np.uint64(k))
    while heap[0] != _EMPTY:
        top = heapq.heappop(heap)
        i = np.int64(top & ~_RANK)
        if best[i] == _EMPTY or (best[i] ^ top) & _RANK:
            continue  # something was merged here since
        out[m + i] = np.uint32(best[i] & ~_RANK)
        gone = after[i]
        best[gone] = best[i] = _EMPTY
        after[i] = after[gone]
        if after[i] < n:
            before[after[i]] = i
        for p in (np.int64(before[i]), i):
            if p >= 0 and after[p] < n:
                best[p] = _look(pairs, out[m + p], out[m + after[p]])
                if best[p] != _EMPTY:
                    heapq.heappush(heap, best[p] & _RANK | np.uint64(p))
    i, left = np.int64(0), 0
    while i < n:
        out[m + left] = out[m + i]
        i, left = np.int64(after[i]), left + 1
    return left


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _encode(data, out, tables, modern, digits, keys, kept):  # type: ignore[no-untyped-def]
    """Write the tokens of UTF-8 text; return how many. keys, kept: the cache, words of up to 15 bytes as two numbers."""
    n, i, m = len(data), np.int64(0), np.int64(0)
    after, before, best = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.uint64)
    while i < n:
        j = cut(data, i, n, modern, digits, tables.classes)
        size = j - i
        place, low, high = np.uint64(0), np.uint64(0), np.uint64(size) << np.uint64(56)
        if size <= _CACHED:
            for k in range(min(size, 8)):
                low |= np.uint64(data[i + k]) << np.uint64(8 * k)
            for k in range(8, size):
                high |= np.uint64(data[i + k]) << np.uint64(8 * k - 64)
            h = (low ^ (high * _Q)) * _P
            place = (h ^ (h >> np.uint64(32))) & np.uint64(_SLOTS - 1)
            if keys[place, 0] == low and keys[place, 1] == high:
                count = np.int64(kept[place, 0])
                for k in range(count):
                    out[m + k] = kept[place, k + 1]
                i, m = j, m + count
                continue
        whole = np.int64(tables.slots[_find(tables.slots, tables.text, tables.begin, tables.end, data, i, j)])
        if whole >= 0:
            out[m], count = whole, np.int64(1)
        else:
            for k in range(size):
                out[m + k] = tables.bytes_[data[i + k]]
            count = _merge(out, m, size, tables.pairs, after, before, best)
        if size <= _CACHED and count <= _IDS:
            keys[place, 0], keys[place, 1], kept[place, 0] = low, high, count
            for k in range(count):
                kept[place, k + 1] = out[m + k]
        i, m = j, m + count
    return m


def tables(bytes_: NDArray[np.uint32], merges: NDArray[np.uint32], words: Sequence[bytes] = ()) -> tuple[Tables, int]:
    """Prepare a vocabulary for encoding.

    Args:
        bytes_: token of each byte, (256).
        merges: left, right and merged token by rank, (n, 3).
        words: bytes of token 0, 1, ...; a word that is one of these becomes it without merging; b"" for none.

    Returns:
        The tables and -1; or the first rank whose pair has a lower rank too, and the tables are of no use.
    """
    pairs = np.full((1 << max(4, (4 * len(merges)).bit_length()), 2), _EMPTY, np.uint64)
    twice = int(_enter_pairs(pairs, merges))
    end = np.cumsum([len(word) for word in words], dtype=np.int64)
    begin = end - np.array([len(word) for word in words], np.int64)
    slots = np.full(1 << (4 * len(words)).bit_length() if words else 1, -1, np.int32)
    text = np.frombuffer(b"".join(words), np.uint8)
    _enter(slots, text, begin, end, len(words))
    return Tables(classes(), bytes_, pairs, slots, text, begin, end), twice


Cache = tuple[NDArray[np.uint64], NDArray[np.uint32]]


def new_cache() -> Cache:
    """Return an empty cache for `encode`, of one thread and one vocabulary."""
    return np.zeros((_SLOTS, 2), np.uint64), np.zeros((_SLOTS, _IDS + 1), np.uint32)


def encode(text: str, tables: Tables, pattern: str, cache: Cache) -> NDArray[np.uint32]:
    """Return the tokens of a text, uint32 (n); surrogates become "?"."""
    data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    out = np.empty(len(data), np.uint32)
    return out[: _encode(data, out, tables, *PATTERNS[pattern], *cache)].copy()


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _count(data, stops, modern, digits, classes, slots, text, begin, end, counts, n):  # type: ignore[no-untyped-def]
    """Count the words of texts that lie one after the other and end at `stops`; return how many are known then."""
    i, used = 0, end[n - 1] if n else 0
    for stop in stops:
        while i < stop:
            j = cut(data, i, stop, modern, digits, classes)
            place = _find(slots, text, begin, end, data, i, j)
            if slots[place] < 0:
                begin[n], counts[n] = used, 0
                text[used : used + j - i] = data[i:j]
                used += j - i
                end[n], slots[place] = used, n
                n += 1
            counts[slots[place]] += 1
            i = j
    return n


def count(texts: Iterable[str], pattern: str) -> tuple[Array, Array, Array, Array]:
    """Count the words of texts.

    Returns:
        The bytes of the distinct words, uint8, where each begins and ends, int64 (n), and how often it was there, int64 (n).
    """
    text, begin, end, counts = np.empty(0, np.uint8), *(np.empty(0, np.int64) for _ in range(3))
    slots, n = np.full(1, -1, np.int32), 0
    for group in rolled((text.encode("utf-8", "replace") for text in texts), _CHUNK, len):
        data, used = np.frombuffer(b"".join(group), np.uint8), int(end[n - 1]) if n else 0
        most = n + len(data)  # a word has a byte at least
        if most > len(begin):
            begin, end, counts = (np.concatenate([a[:n], np.empty(2 * most - n, np.int64)]) for a in (begin, end, counts))
            slots = np.full(1 << (4 * most).bit_length(), -1, np.int32)
            _enter(slots, text, begin, end, n)
        if used + len(data) > len(text):
            text = np.concatenate([text[:used], np.empty(used + 2 * len(data), np.uint8)])
        stops = np.cumsum([len(part) for part in group], dtype=np.int64)
        n = int(_count(data, stops, *PATTERNS[pattern], classes(), slots, text, begin, end, counts, n))
    return text[: end[n - 1] if n else 0], begin[:n], end[:n], counts[:n]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _change(left, right, by, word, used, pairs, number, head, node, fresh, mark):  # type: ignore[no-untyped-def]
    """Count a pair up or down; `used`: pairs, nodes, fresh pairs, stamp. What grows is listed for the heap, with its word."""
    key, place = _pair(pairs, left, right)
    if pairs[place, 0] != key:
        p = used[0]
        used[0] += 1
        pairs[place, 0], pairs[place, 1], number[p], head[p], mark[p] = key, p, 0, -1, 0
    p = np.int64(pairs[place, 1])
    number[p] += by
    if by > 0:
        node[used[1], 0], node[used[1], 1], head[p] = word, head[p], used[1]
        used[1] += 1
        if mark[p] != used[3]:
            mark[p], fresh[used[2], 0], fresh[used[2], 1] = used[3], key, p
            used[2] += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _replace(w, begin, end, length, c, symbols, at, left, right, new, lists):  # type: ignore[no-untyped-def]
    """Merge a pair in word w, and count the pairs beside."""
    s, n, i, m = begin[w], length[w], 0, 0
    while i < n:
        symbols[s + m], at[s + m] = symbols[s + i], at[s + i]
        if i + 1 < n and symbols[s + i] == left and symbols[s + i + 1] == right:
            if m > 0:
                _change(symbols[s + m - 1], left, -c, w, *lists)
                _change(symbols[s + m - 1], new, c, w, *lists)
            if i + 2 < n:
                _change(right, symbols[s + i + 2], -c, w, *lists)
                _change(new, symbols[s + i + 2], c, w, *lists)
            symbols[s + m] = new
            i += 1
        i, m = i + 1, m + 1
    length[w] = m


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _name(w, begin, end, length, symbols, at, left, right):  # type: ignore[no-untyped-def]
    """Return where the bytes of a pair lie in word w, -1 when it is not there (any more)."""
    s, n = begin[w], length[w]
    for i in range(s, s + n - 1):
        if symbols[i] == left and symbols[i + 1] == right:
            return at[i], at[i + 2] if i + 2 < s + n else end[w]
    return np.int64(-1), np.int64(-1)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _learn(text, begin, end, counts, symbols, least, pairs, known, merges):  # type: ignore[no-untyped-def]
    """Write left, right and merged token of each merge; return how many. pairs, known: empty tables of pairs and of tokens."""
    at, length, room = np.arange(len(text)), end - begin, len(merges) // 2
    # every merged place makes two pairs at most and takes one letter away: 3 · letters bound all lists
    bound, used = 3 * len(text) + 1, np.array([0, 0, 0, 1])
    number, head, node = np.empty(bound, np.int64), np.empty(bound, np.int64), np.empty((bound, 2), np.int64)
    fresh, mark = np.empty((bound, 2), np.uint64), np.empty(bound, np.int64)
    lists = (used, pairs, number, head, node, fresh, mark)
    for w in range(len(begin)):
        for k in range(begin[w], end[w] - 1):
            _change(symbols[k], symbols[k + 1], counts[w], w, *lists)
    first, last, tokens, done = np.empty(room, np.int64), np.empty(room, np.int64), 0, 0
    heap = [(np.int64(0), _EMPTY, np.int64(0))]
    while tokens < room and done < len(merges):
        for f in range(used[2]):
            p = np.int64(fresh[f, 1])
            if number[p] >= least:
                heapq.heappush(heap, (-number[p], fresh[f, 0], p))
        used[2] = 0
        c, key, p = heapq.heappop(heap)
        if key == _EMPTY:
            break
        if -c != number[p]:  # stale: counts fall without the heap
            if number[p] >= least:
                heapq.heappush(heap, (-number[p], key, p))
            continue
        left, right, step = np.int32(key >> np.uint64(32)), np.int32(key & ~_RANK), head[p]
        used[3] += 1
        new = np.int32(-1)
        while step >= 0:
            w, step = node[step, 0], node[step, 1]
            if new < 0:  # another pair may have made the same bytes before
                i, j = _name(w, begin, end, length, symbols, at, left, right)
                if i < 0:
                    continue
                place = _find(known, text, first, last, text, i, j)
                if known[place] < 0:
                    known[place], first[tokens], last[tokens] = tokens, i, j
                    tokens += 1
                new = np.int32(256 + known[place])
            _replace(w, begin, end, length, counts[w], symbols, at, left, right, new, lists)
        number[p], head[p] = 0, -1
        merges[done, 0], merges[done, 1], merges[done, 2] = left, right, new
        done += 1
    return done


def learn(text: Array, begin: Array, end: Array, counts: Array, letter: Array, room: int, least: int = 2) -> Array:
    """Learn merges from counted words.

    Args:
        text, begin, end, counts: of `count`.
        letter: number of each byte, a permutation of 0 ... 255; tokens that are made count on from 256.
        room: how many tokens to make.
        least: pairs that are rarer are not merged.

    Returns:
        left, right and merged token by rank, int32 (n, 3).
    """
    pairs = np.full((1 << (4 * len(text) + 8).bit_length(), 2), _EMPTY, np.uint64)
    known, merges = np.full(1 << (4 * room + 8).bit_length(), -1, np.int32), np.empty((2 * room, 3), np.int32)
    symbols = np.asarray(letter, np.int32)[text]
    return merges[: _learn(text, begin, end, counts, symbols, max(least, 1), pairs, known, merges)]
