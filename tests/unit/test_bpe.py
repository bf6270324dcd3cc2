"""Byte-pair encoding: words, merges and their learning, against references written here in plain Python."""

from __future__ import annotations

import unicodedata
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from gewu.core import bpe

POOL = [
    *(
        "'s",
        "'S",
        "'re",
        "'LL",
        "'ſ",
        "'",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u3000",
        "\u2028",
        "\x1c",
        "a",
        "word",
        "é",
        "e\u0301",
    ),
    *("漢字", "🙂", "1", "1234567", "½", "٣", "...", "!!", "_", "\x00", "\U0010ffff"),
]


def kind(c: str) -> str:
    spaces = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
    return "S" if c in spaces else c if (c := unicodedata.category(c)[0]) in "LN" else "O"


def words(text: str, pattern: str) -> list[str]:
    """Cut by the alternatives of the regular expressions, one after the other, as a backtracking matcher does."""
    modern, digits = bpe.PATTERNS[pattern]
    kinds, found, i = [kind(c) for c in text], [], 0

    def run(j: int, wanted: str, most: int = 1 << 30) -> int:
        k = j
        while k < len(text) and kinds[k] in wanted and k - j < most:
            k += 1
        return k

    def match(i: int) -> int:
        for tail in ("s", "t", "re", "ve", "m", "ll", "d"):
            said = text[i + 1 : i + 1 + len(tail)]
            if text[i] == "'" and (said == tail or (modern and said.lower().replace("ſ", "s") == tail)):
                return i + 1 + len(tail)
        blank, lead = text[i] == " ", (kinds[i] in "OS" and text[i] not in "\r\n" if modern else text[i] == " ")
        for j in ([i + 1] if lead else []) + [i]:
            if run(j, "L") > j:
                return run(j, "L")
        for j in ([i + 1] if blank and not modern else []) + [i]:
            if run(j, "N") > j:
                return run(j, "N", digits or 1 << 30)
        for j in ([i + 1] if blank else []) + [i]:
            if (k := run(j, "O")) > j:
                while modern and k < len(text) and text[k] in "\r\n":
                    k += 1
                return k
        end = run(i, "S")
        lines = [k + 1 for k in range(i, end) if text[k] in "\r\n"]
        if modern and lines:
            return lines[-1]
        return end if end == len(text) or end == i + 1 else end - 1

    while i < len(text):
        found.append(text[i : match(i)])
        i += len(found[-1])
    return found


def cut(text: str, pattern: str) -> list[str]:
    data, i, found = np.frombuffer(text.encode(), np.uint8), 0, []
    while i < len(data):
        j = bpe.cut(data, i, len(data), *bpe.PATTERNS[pattern], bpe.classes())
        found.append(bytes(data[i:j]).decode())
        i = j
    return found


def texts(number: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return ["".join(random.choice(POOL, random.integers(0, 20))) for _ in range(number)]


@pytest.mark.parametrize("pattern", bpe.PATTERNS)
def test_words_are_those_of_the_expressions(pattern: str) -> None:
    for text in texts(2000, 1):
        assert cut(text, pattern) == words(text, pattern), ascii(text)


def test_words_written_by_hand() -> None:
    text = "It's  IT'S 12345\n\n x"
    assert cut(text, "gpt2") == ["It", "'s", " ", " IT", "'", "S", " 12345", "\n\n", " x"]
    assert cut(text, "llama3") == ["It", "'s", " ", " IT", "'S", " ", "123", "45", "\n\n", " x"]
    assert cut(text, "qwen2") == ["It", "'s", " ", " IT", "'S", " ", "1", "2", "3", "4", "5", "\n\n", " x"]


def test_words_are_counted() -> None:
    many = texts(3000, 2)
    text, begin, end, counts = bpe.count(iter(many), "llama3")
    found = {bytes(text[i:j]).decode(): int(c) for i, j, c in zip(begin, end, counts, strict=True)}
    assert found == Counter(word for one in many for word in words(one, "llama3"))
    assert [len(part) for part in bpe.count([], "gpt2")] == [0, 0, 0, 0]


def learned(counted: dict[bytes, int], room: int, least: int) -> list[tuple[int, int, int]]:
    """Learn merges by counting all pairs anew each time."""
    names, merges = {bytes([b]): b for b in range(256)}, []
    split = {word: [bytes([b]) for b in word] for word in counted}
    while len(names) < 256 + room and len(merges) < 2 * room:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += counted[word]
        good = [(-n, names[p[0]], names[p[1]], p) for p, n in pairs.items() if n >= least]
        if not good:
            break
        left, right = min(good)[3]
        new = names.setdefault(left + right, len(names))
        merges.append((names[left], names[right], new))
        for parts in split.values():
            i = 0
            while i + 1 < len(parts):
                if (parts[i], parts[i + 1]) == (left, right):
                    parts[i : i + 2] = [left + right]
                i += 1
    return merges


@pytest.mark.parametrize("seed", range(12))
def test_merges_are_those_of_counting_anew(seed: int) -> None:
    random = np.random.default_rng(seed)
    letters = np.frombuffer(b"abcd"[: 2 + seed % 3], np.uint8)
    counted = {bytes(random.choice(letters, random.integers(1, 12))): int(random.integers(1, 9)) for _ in range(60)}
    text = np.frombuffer(b"".join(counted), np.uint8)
    end = np.cumsum([len(word) for word in counted])
    begin = end - [len(word) for word in counted]
    got = bpe.learn(text, begin, end, np.array(list(counted.values())), np.arange(256), 60, 1 + seed % 3)
    assert [tuple(row) for row in got.tolist()] == learned(counted, 60, 1 + seed % 3)


def merged(word: bytes, ranks: dict[tuple[int, int], tuple[int, int]]) -> list[int]:
    parts = list(word)
    while True:
        good = [(ranks[pair][0], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not good:
            return parts
        i = min(good)[1]
        parts[i : i + 2] = [ranks[parts[i], parts[i + 1]][1]]


def test_encoding_merges_by_rank_leftmost_first() -> None:
    random = np.random.default_rng(3)
    merges, tokens = dict[tuple[int, int], int](), [97, 98, 99]
    for _ in range(200):  # arbitrary ranks, not those of learning: order and ties show
        pair = tuple(int(t) for t in random.choice(tokens, 2))
        if pair not in merges:
            merges[pair] = 256 + len(merges)
            tokens.append(merges[pair])
    rows = np.array([(*pair, new) for pair, new in merges.items()], np.uint32)[random.permutation(len(merges))]
    ranks = {(int(a), int(b)): (rank, int(c)) for rank, (a, b, c) in enumerate(rows)}
    tables, twice = bpe.tables(np.arange(256, dtype=np.uint32), rows)
    cache = bpe.new_cache()
    assert twice == -1
    for size in [1, 2, 3, 5, 9, 15, 16, 17, 40, 300] * 30:
        word = bytes(random.choice([97, 98, 99], size).astype(np.uint8))
        for _ in range(2):  # the second time from the cache
            assert bpe.encode(word.decode(), tables, "gpt2", cache).tolist() == merged(word, ranks)


def test_long_words_take_no_longer_a_letter() -> None:
    tables, _ = bpe.tables(np.arange(256, dtype=np.uint32), np.array([(97, 97, 256), (256, 256, 257)], np.uint32))
    assert bpe.encode("a" * 1_000_002, tables, "gpt2", bpe.new_cache()).tolist() == [257] * 250_000 + [256]


def test_a_pair_of_two_ranks_is_told() -> None:
    assert bpe.tables(np.arange(256, dtype=np.uint32), np.array([(1, 2, 256), (3, 4, 257), (1, 2, 258)], np.uint32))[1] == 2
