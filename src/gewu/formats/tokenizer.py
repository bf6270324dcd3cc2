"""Byte-level BPE tokenizers in the `tokenizer.json` of Hugging Face: read, trained, applied and written.

Read and written: model BPE over all 256 bytes (also `ignore_merges`); normalizer none or NFC; words cut as GPT-2, Llama-3 and
Qwen2 do (`gewu.core.bpe`); added tokens that stand for themselves anywhere in a text; a post-processor that puts special tokens
before and after. Everything else is refused by its name: other regular expressions, byte fallback, dropout, unigram and word
pieces, tokens that eat blanks around them, pickled and SentencePiece files. What is refused would give other tokens in silence.

Reference: https://huggingface.co/docs/tokenizers; the letters of bytes are those of GPT-2's `bytes_to_unicode`.
"""

from __future__ import annotations

import json
import re
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from gewu.core import bpe
from gewu.core.errors import InputError
from gewu.core.files import read_capped, write_atomic

LIMIT_BYTES: Final = 256 << 20
MOST: Final = 1 << 24  # tokens
ENDS: Final = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "<|eot_id|>")
"""Names under which models keep the token that ends a text, the first that is there counts."""
_MODERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_REGEX: Final = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    _MODERN % "{1,3}": "llama3",
    _MODERN % "": "qwen2",
}
_PLAIN: Final = [*range(33, 127), *range(161, 173), *range(174, 256)]
_LETTERS: Final = {byte: chr(byte) for byte in _PLAIN} | {
    byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in _PLAIN)
}
_BYTES: Final = {ord(letter): byte for byte, letter in _LETTERS.items()}
_OF_LETTERS: Final = {code: chr(byte) for code, byte in _BYTES.items()} | {
    code: "\U0010ffff" for code in range(324) if code not in _BYTES
}
_NAMED: Final = {"ByteLevel": {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}}


class Tokenizer:
    """A byte-level BPE.

    Args:
        document: what tokenizer.json holds.
        file: where it came from, for messages.

    Attributes:
        vocab_size: largest token + 1.
        special: token of each special name.
        end: the token that ends a text, None when no special token is known to.
        before, after: tokens that the post-processor puts around a text.

    Raises:
        InputError: it is no tokenizer of a kind that is known here, or its parts do not fit together.

    Example:
        >>> own = Tokenizer.train(["low lower lowest"] * 9, 260, special=["<|endoftext|>"])
        >>> own.decode(own.encode("lowest"))
        'lowest'
    """

    def __init__(self, document: dict[str, Any], file: str | Path | None = None) -> None:
        self.document, self._file, self._local = document, file, threading.local()
        self._need(isinstance(document, dict) and isinstance(document.get("model"), dict), "model", None, "a table")
        model = document["model"]
        for key in ("truncation", "padding"):
            self._need(document.get(key) is None, key, document.get(key), "null: cut and fill batches instead")
        self.pattern, self._prefix = self._cutting(document.get("pre_tokenizer"))
        normalizer = document.get("normalizer")
        self._need(normalizer in (None, {"type": "NFC"}), "normalizer", normalizer, "null, NFC")
        self._nfc = normalizer is not None
        self._need(_kind(document.get("decoder")) == "ByteLevel", "decoder", document.get("decoder"), "ByteLevel")
        self._check(model)
        self._added(document.get("added_tokens") or [], model["vocab"])
        self._build(model)
        self.end = next((self.special[name] for name in ENDS if name in self.special), None)
        self.before, self.after = self._around(document.get("post_processor"))

    def _need(self, good: bool, key: str, value: Any, allowed: str, message: str = "is not supported") -> None:
        if not good:
            raise InputError(message, file=self._file, key=key, value=value, allowed=allowed)

    def _cutting(self, table: Any) -> tuple[str, bool]:
        """Return the pattern of words, and whether a blank is put in front of a text."""
        steps = table.get("pretokenizers", []) if _kind(table) == "Sequence" else [table]
        last = steps[-1] if isinstance(steps, list) and steps else None
        kinds = [_kind(step) for step in steps]
        self._need(kinds in (["ByteLevel"], ["Split", "ByteLevel"]), "pre_tokenizer", table, "ByteLevel, or Split and ByteLevel")
        options = _NAMED["ByteLevel"] | last
        if kinds == ["ByteLevel"]:
            self._need(options["use_regex"] is True, "pre_tokenizer.use_regex", options["use_regex"], "true, without Split")
            return "gpt2", bool(options["add_prefix_space"])
        self._need(options["use_regex"] is False, "pre_tokenizer.use_regex", options["use_regex"], "false, behind Split")
        self._need(options["add_prefix_space"] is False, "pre_tokenizer.add_prefix_space", True, "false, behind Split")
        split = steps[0]
        pattern = split.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        self._need(
            isinstance(regex, str) and regex in _REGEX, "pre_tokenizer.pattern", pattern, "the words of GPT-2, Llama-3, Qwen2"
        )
        way = (split.get("behavior"), split.get("invert", False))
        self._need(way in (("Isolated", False), ("Removed", True)), "pre_tokenizer.behavior", way, "Isolated")
        return _REGEX[str(regex)], False

    def _check(self, model: dict[str, Any]) -> None:
        """Refuse a model that is no plain BPE, and a vocabulary that is none."""
        self._need(model.get("type", "BPE") == "BPE", "model.type", model.get("type"), "BPE")
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
            self._need(not model.get(key), f"model.{key}", model.get(key), "null")
        vocab, merges = model.get("vocab"), model.get("merges")
        self._need(
            isinstance(vocab, dict) and isinstance(merges, list), "model", None, "tables vocab and merges", "is incomplete"
        )

    def _token(self, value: Any, key: str, name: Any) -> int:
        good = type(value) is int and 0 <= value < MOST
        self._need(good, key, {name: value}, f"whole numbers below {MOST}", "is no token")
        return int(value)

    def _added(self, rows: Any, vocab: dict[str, Any]) -> None:
        self.special, self._names, plain = dict[str, int](), dict[str, int](), dict[str, int]()
        self._need(isinstance(rows, list), "added_tokens", rows, "a list")
        for row in rows:
            name = row.get("content") if isinstance(row, dict) else None
            self._need(isinstance(name, str) and name != "", "added_tokens", row, "tables with content", "names no token")
            for key in ("single_word", "lstrip", "rstrip"):
                self._need(not row.get(key), f"added_tokens.{key}", name, "false")
            token = self._token(row.get("id"), "added_tokens", name)
            self._need(vocab.get(name, token) == token, "added_tokens", {name: token}, "the number in vocab", "has two numbers")
            self._need(name not in self._names and name not in plain, "added_tokens", name, "each name once", "is there twice")
            # tokens of normalized text are looked for behind the normalizer, others before it
            (plain if row.get("normalized") and self._nfc else self._names)[str(name)] = token
            if row.get("special"):
                self.special[str(name)] = token
        self._matchers = [(_alternatives(names), names) for names in (self._names, plain)]
        self._names |= plain

    def _build(self, model: dict[str, Any]) -> None:
        """Make the tables of the compiled loops."""
        vocab, pieces = model["vocab"], dict[int, bytes]()
        for name, value in vocab.items():
            token = self._token(value, "model.vocab", name)
            letters = name.translate(_OF_LETTERS)
            good = letters.isascii() or max(letters) < "\u0100"
            self._need(
                good or name in self._names, "model.vocab", name, "letters of bytes, as GPT-2 has them", "is no token of bytes"
            )
            self._need(token not in pieces and name != "", "model.vocab", {name: token}, "each number once", "is there twice")
            pieces[token] = letters.encode("latin-1") if good else name.encode()
        for name, token in self._names.items():
            self._need(
                pieces.get(token) is None or name in vocab, "added_tokens", {name: token}, "each number once", "is there twice"
            )
            pieces[token] = name.encode("utf-8", "replace")
        missing = [byte for byte, letter in _LETTERS.items() if letter not in vocab]
        self._need(not missing, "model.vocab", missing, "all 256 bytes", "lacks bytes")
        self.vocab_size = max(pieces) + 1
        self._pieces = [pieces.get(token, b"") for token in range(self.vocab_size)]
        self._merges = self._ranks(model["merges"], vocab)
        bytes_ = np.array([vocab[_LETTERS[byte]] for byte in range(256)], np.uint32)
        words: Sequence[bytes] = ()
        if model.get("ignore_merges"):
            inside = set(vocab.values())
            words = [piece if token in inside else b"" for token, piece in enumerate(self._pieces)]
        found, twice = bpe.tables(bytes_, self._merges, words)
        if found is None:
            raise InputError("is there twice", file=self._file, key=f"model.merges[{twice}]", value=model["merges"][twice])
        self._tables = found

    def _ranks(self, rows: list[Any], vocab: dict[str, int]) -> NDArray[np.uint32]:
        merges = np.empty((len(rows), 3), np.uint32)
        for rank, row in enumerate(rows):
            pair = row.split(" ") if isinstance(row, str) else row
            key = f"model.merges[{rank}]"
            good = isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
            self._need(good, key, row, "two tokens", "is no merge")
            for column, name in enumerate((*pair, pair[0] + pair[1])):
                self._need(name in vocab, key, name, "tokens of vocab", "names a token that is not in the vocabulary")
                merges[rank, column] = vocab[name]
        return merges

    def _around(self, table: Any) -> tuple[list[int], list[int]]:
        """Return the tokens that are put before and after a text."""
        kind = _kind(table)
        if kind == "Sequence":
            found = [self._around(step) for step in table.get("processors", [])]
            return [token for b, _ in reversed(found) for token in b], [token for _, a in found for token in a]
        if table is None or kind == "ByteLevel":
            return [], []
        self._need(kind == "TemplateProcessing", "post_processor", table, "TemplateProcessing, ByteLevel, null")
        sides: tuple[list[int], list[int]] = ([], [])
        texts = 0
        for step in table.get("single") or []:
            name = step.get("SpecialToken", {}).get("id") if isinstance(step, dict) else None
            texts += isinstance(step, dict) and "Sequence" in step
            if name is not None:
                self._need(name in self._names, "post_processor", name, "added tokens", "names a token that is not there")
                sides[texts > 0].append(self._names[name])
        self._need(texts == 1, "post_processor.single", table.get("single"), "one Sequence between special tokens")
        return sides

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a tokenizer.json.

        Raises:
            InputError: no such file, no JSON, or what the class refuses.
        """
        data = read_capped(path, LIMIT_BYTES)
        other = (
            "a pickle" if data[:1] == b"\x80" else "a SentencePiece model" if data[:1] == b"\n" and b"\0" in data[:4096] else ""
        )
        if other:
            raise InputError(
                f"is {other}", file=path, allowed="a tokenizer.json", hint="save it as one with the program that made it"
            )
        try:
            document = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise InputError(f"is no tokenizer: {error}", file=path) from None
        return cls(document, path)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab: int,
        special: Sequence[str] = (),
        pattern: str = "gpt2",
        *,
        nfc: bool = False,
        least: int = 2,
    ) -> Self:
        """Learn a vocabulary.

        Args:
            texts: read once.
            vocab: tokens, special ones and the 256 bytes included; fewer when no pair is left.
            special: names of special tokens, numbered from 0.
            pattern: how words are cut: "gpt2", "llama3", "qwen2".
            nfc: texts are normalised first.
            least: pairs that are rarer are not merged.

        Raises:
            InputError: an unknown pattern, or too small a vocabulary.
        """
        if pattern not in bpe.PATTERNS:
            raise InputError("unknown", key="pattern", value=pattern, allowed=", ".join(bpe.PATTERNS))
        names, room = [*special, *_LETTERS.values()], vocab - 256 - len(special)
        if not 0 <= room <= MOST - 512 or len(set(names)) < len(names):
            raise InputError("is not possible", key="vocab", value=vocab, allowed=f"{256 + len(special)} or more, names differ")
        letter = np.empty(256, np.int32)
        letter[list(_LETTERS)] = np.arange(256)
        counted = bpe.count((unicodedata.normalize("NFC", text) for text in texts) if nfc else texts, pattern)
        shift, merges = len(special), list[list[str]]()
        for left, right, new in (bpe.learn(*counted, letter, room, least) + shift).tolist():
            merges.append([names[left], names[right]])
            if new == len(names):
                names.append(names[left] + names[right])
        plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        regex = next(text for text, name in _REGEX.items() if name == pattern)
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        cutting = {"type": "Sequence", "pretokenizers": [split, plain | {"use_regex": False}]}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        nothing = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
        model = {"type": "BPE", **dict.fromkeys(nothing), "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
        document = {
            **{"version": "1.0", "truncation": None, "padding": None},
            "added_tokens": [{"id": number, "content": name} | flags for number, name in enumerate(special)],
            "normalizer": {"type": "NFC"} if nfc else None,
            "pre_tokenizer": plain | {"use_regex": True} if pattern == "gpt2" else cutting,
            "post_processor": None,
            "decoder": plain | {"use_regex": True},
            "model": model | {"vocab": {name: number for number, name in enumerate(names)}, "merges": merges},
        }
        return cls(document)

    def write(self, path: str | Path) -> None:
        """Write a tokenizer.json."""
        write_atomic(path, json.dumps(self.document, ensure_ascii=False, indent=1).encode("utf-8", "replace"))

    def token(self, name: str) -> int | None:
        """Return the token of a name, None when there is none."""
        found = self._names.get(name, self.document["model"]["vocab"].get(name))
        return None if found is None else int(found)

    def encode(self, text: str, *, special: bool = True, around: bool = True) -> NDArray[np.uint32]:
        """Return the tokens of a text, uint32 (n); threads may call it.

        Args:
            text: surrogates become "?".
            special: names of added tokens in the text mean these; False for text that is not trusted.
            around: put the tokens of the post-processor before and after.
        """
        if not hasattr(self._local, "cache"):
            self._local.cache = bpe.new_cache()
        found = [np.array(self.before, np.uint32)] if around and self.before else []
        found += self._parts(text, 0, special)
        found += [np.array(self.after, np.uint32)] if around and self.after else []
        return found[0] if len(found) == 1 else np.concatenate([*found, np.zeros(0, np.uint32)])

    def _parts(self, text: str, level: int, special: bool) -> list[NDArray[np.uint32]]:
        """Return the tokens of a text in parts; level: added tokens looked for, before the normalizer, behind it, none."""
        if level == 1 and self._nfc:
            text = unicodedata.normalize("NFC", text)
        if not text:
            return []
        if level == 2:
            text = f" {text}" if self._prefix and text[0] != " " else text
            return [bpe.encode(text, self._tables, self.pattern, self._local.cache)]
        matcher, names = self._matchers[level]
        if matcher is None or not special:
            return self._parts(text, level + 1, special)
        found = list[NDArray[np.uint32]]()
        for number, part in enumerate(matcher.split(text)):
            found += [np.array([names[part]], np.uint32)] if number % 2 else self._parts(part, level + 1, special)
        return found

    def encode_many(self, texts: Sequence[str], threads: int = 2, **options: bool) -> list[NDArray[np.uint32]]:
        """Return the tokens of each text; see `encode`."""
        parts = [texts[n : n + 64] for n in range(0, len(texts), 64)]
        with ThreadPoolExecutor(threads) as pool:
            done = pool.map(lambda part: [self.encode(text, **options) for text in part], parts)
            return [tokens for part in done for tokens in part]

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """Return the text of tokens; special ones are shown on request, bytes that are not UTF-8 become U+FFFD.

        Raises:
            InputError: a number that is no token.
        """
        numbers = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
        if numbers.size and not (numbers.dtype.kind in "iu" and numbers.min() >= 0 and numbers.max() < self.vocab_size):
            raise InputError(
                "is no token", key="tokens", value=numbers.tolist(), allowed=f"whole numbers below {self.vocab_size}"
            )
        hidden = set() if special else set(self.special.values())
        return b"".join([self._pieces[n] for n in numbers.tolist() if n not in hidden]).decode("utf-8", "replace")


def _kind(table: Any) -> Any:
    return table.get("type") if isinstance(table, dict) else None


def _alternatives(names: dict[str, int]) -> re.Pattern[str] | None:
    """Return what splits a text at names, the longest first."""
    longest = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest))})") if names else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(key for n, (key, _) in enumerate(pairs) if key in {other for other, _ in pairs[:n]})
        raise ValueError(f"the key {twice!r} is there twice")
    return table
