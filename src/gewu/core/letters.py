"""The letters of a text as numbers: folded to lower case, with the script that each belongs to, and n-grams of them in buckets.

One table holds for each character of Unicode's first plane its lower case + 65536 · script; what is no letter, mark or number is
0. Characters beyond it are no letters, but for the ideographs of planes 2 and 3, which callers tell by their range.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.device import load_numba

numba = load_numba()

BLANK, DIGIT, LATIN, CYRILLIC, GREEK, HANGUL, KANA, HAN, OTHER = range(9)
_RANGES: Final = (
    *((0x41, 0x250, LATIN), (0x1E00, 0x1F00, LATIN), (0x400, 0x530, CYRILLIC), (0x370, 0x400, GREEK), (0x1F00, 0x2000, GREEK)),
    *((0x1100, 0x1200, HANGUL), (0xAC00, 0xD7B0, HANGUL), (0x3041, 0x3100, KANA), (0x3400, 0xA000, HAN), (0xF900, 0xFB00, HAN)),
)


@cache
def fold() -> NDArray[np.uint32]:
    """Return for each character of Unicode's first plane its lower case + 65536 · its script; DIGIT is any number or mark."""
    table = np.zeros(65536, np.uint32)
    for code in range(65536):
        if (kind := unicodedata.category(chr(code))[0]) in "LNM":
            lower = chr(code).lower()
            table[code] = (ord(lower) if len(lower) == 1 else code) + 65536 * (OTHER if kind == "L" else DIGIT)
    for first, end, script in _RANGES:
        table[first:end] = np.where(
            table[first:end] >> 16 == OTHER, (table[first:end] & 65535) + 65536 * script, table[first:end]
        )
    return table


def codes(text: str) -> NDArray[np.uint32]:
    """Return the code points of a text (surrogates become "?")."""
    return np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def ngrams(text, fold, buckets, hits, scripts):  # type: ignore[no-untyped-def]
    """Write the bucket of every 1- to 4-gram of letters and blanks into `hits`, count letters by script; return how many."""
    c1 = c2 = c3 = np.uint64(32)
    n = 0
    for code in text:
        entry = fold[code] if code < np.uint32(65536) else np.uint32(0)
        script = entry >> np.uint32(16)
        c = np.uint64(entry & np.uint32(65535)) if script > DIGIT else np.uint64(32)
        if c == np.uint64(32) == c1:
            continue
        scripts[script] += 1
        key = np.uint64(0)
        for one in (c, c1, c2, c3):
            key = (key + one + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
            key ^= key >> np.uint64(29)
            hits[n] = key % np.uint64(buckets)
            n += 1
        c3, c2, c1 = c2, c1, c
    return n
