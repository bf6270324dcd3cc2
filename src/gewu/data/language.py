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
import zlib
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.letters import CYRILLIC, GREEK, HAN, HANGUL, KANA, LATIN, OTHER, codes, fold, ngrams

CHARACTERS: Final = 8192
_BY_SCRIPT: Final = {GREEK: "el", HANGUL: "ko", KANA: "ja", HAN: "zh"}
_WEIGHTS: Final = np.array([0, 0, 1, 1, 1, 2, 1.5, 3, 1])  # a Han character says as much as three letters


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
    n = ngrams(points, fold(), len(table), hits, scripts)
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
