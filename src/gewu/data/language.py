"""Which language a text is in: scripts first, then naive Bayes over hashed 1- to 4-grams of letters.

Letters are folded to lower case, everything else is one blank. Japanese (kana), Chinese (Han without kana), Korean and Greek are
told by their script alone. Latin and Cyrillic text gets the language with the largest mean of log p(n-gram | language) over all
n-grams of 1 to 4 characters, blanks included; n-grams share a table of buckets by their hash. Of a long text the first 8192
characters are read.

    confidence = share of the letters in that script · softmax over its languages of (mean log p · min(n-grams, 200))

so it does not grow with the length of a text. The table (tools/make_languages.py) was counted in free documentation and fortunes
of Debian; accuracy in docs/data-text.md. Other languages in these scripts are taken for the nearest one, with a lower confidence.
Reference: W. B. Cavnar, J. M. Trenkle, "N-gram-based text categorization", SDAIR-94; hashing as in fastText (Joulin et al. 2017).
"""

from __future__ import annotations

import base64
import json
import unicodedata
import zlib
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.device import load_numba

numba = load_numba()

CHARACTERS: Final = 8192
BLANK, DIGIT, LATIN, CYRILLIC, GREEK, HANGUL, KANA, HAN, OTHER = range(9)
_RANGES: Final = (
    *((0x41, 0x250, LATIN), (0x1E00, 0x1F00, LATIN), (0x400, 0x530, CYRILLIC), (0x370, 0x400, GREEK), (0x1F00, 0x2000, GREEK)),
    *((0x1100, 0x1200, HANGUL), (0xAC00, 0xD7B0, HANGUL), (0x3041, 0x3100, KANA), (0x3400, 0xA000, HAN), (0xF900, 0xFB00, HAN)),
)
_BY_SCRIPT: Final = {GREEK: "el", HANGUL: "ko", KANA: "ja", HAN: "zh"}
_WEIGHTS: Final = np.array([0, 0, 1, 1, 1, 2, 1.5, 3, 1])  # a Han character says as much as three letters


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
def count(text, fold, buckets, hits, scripts):  # type: ignore[no-untyped-def]
    """Write the bucket of every n-gram into `hits`, count letters by script; return the number of n-grams."""
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


@cache
def _stored() -> tuple[list[str], NDArray[np.float32], dict[str, frozenset[str]]]:
    """Return the languages, -log2 p by bucket and language (stored in steps of 1/4), and stop words."""
    stored = json.loads(Path(__file__).with_name("languages.json").read_bytes())
    table = np.frombuffer(zlib.decompress(base64.b85decode(stored["table"])), np.uint8)
    stop = {name: frozenset(words.split()) for name, words in stored["stop"].items()}
    return stored["languages"], table.reshape(-1, len(stored["languages"])) * np.float32(0.25), stop


def stop_words(language: str) -> frozenset[str]:
    """Return some of the most frequent small words of a language; none for one that has no list."""
    return _stored()[2].get(language, frozenset())


def identify(text: str) -> tuple[str, float]:
    """Tell the language of a text.

    Returns:
        Its two-letter ISO 639-1 code ("und" where the script is another or there is no letter), and the confidence in [0, 1].
    """
    languages, table, _ = _stored()
    points, scripts = codes(text[:CHARACTERS]), np.zeros(OTHER + 1, np.int64)
    hits = np.empty(4 * len(points), np.int64)
    n = count(points, fold(), len(table), hits, scripts)
    letters = scripts * _WEIGHTS
    if scripts[KANA] * 10 > scripts[HAN]:  # Japanese text mixes them
        letters[KANA], letters[HAN] = letters[KANA] + letters[HAN], 0
    script = int(np.argmax(letters))
    share = float(letters[script] / max(letters.sum(), 1.0))
    if script not in {LATIN, CYRILLIC} or share == 0:
        return _BY_SCRIPT.get(script, "und"), share
    sums = np.bincount(hits[:n], minlength=len(table)).astype(np.float32) @ table  # exact: quarters, below 2^24 of them
    of_script = np.array([(name in {"ru", "uk"}) == (script == CYRILLIC) for name in languages])
    mean = np.where(of_script, sums / n, np.inf)
    weight = np.exp2(-(mean - mean.min()) * min(n, 200))
    best = int(np.argmin(mean))
    return languages[best], share * float(weight[best] / weight.sum())
