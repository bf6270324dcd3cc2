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
_NEW = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REGEX: Final = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    _NEW % "{1,3}": "llama3",
    _NEW % "": "qwen2",
}
_PLAIN: Final = [*range(33, 127), *range(161, 173), *range(174, 256)]
_ORDER: Final = [*_PLAIN, *(byte for byte in range(256) if byte not in _PLAIN)]
"""Bytes in the order of their letters: printable Latin-1 stands for itself, what is left for 256, 257, ..."""
_LETTERS: Final = dict(zip(_ORDER, map(chr, [*_PLAIN, *range(256, 324)]), strict=True))
_BYTES: Final = dict.fromkeys(range(324), "\U0010ffff") | {ord(letter): chr(byte) for byte, letter in _LETTERS.items()}
_FLAGS: Final = ("single_word", "lstrip", "rstrip")


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
        model, normalizer, decoder = document["model"], document.get("normalizer"), document.get("decoder")
        for key in ("truncation", "padding"):
            self._need(document.get(key) is None, key, document.get(key), "null: cut and fill batches instead")
        self._need(normalizer in (None, {"type": "NFC"}), "normalizer", normalizer, "null, NFC")
        self._need(_get(decoder, "type") == "ByteLevel", "decoder", decoder, "ByteLevel")
        self._need(model.get("type", "BPE") == "BPE", "model.type", model.get("type"), "BPE")
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
            self._need(not model.get(key), f"model.{key}", model.get(key), "null")
        self.pattern, self._prefix = self._cutting(document.get("pre_tokenizer"))
        self._nfc = normalizer is not None
        self._added(document.get("added_tokens") or [], model["vocab"])
        self._build(model["vocab"], model["merges"], bool(model.get("ignore_merges")))
        self.end = next((self.special[name] for name in ENDS if name in self.special), None)
        self.before, self.after = self._around(document.get("post_processor"))

    def _need(self, good: bool, key: str, value: Any, allowed: str, message: str = "is not supported") -> None:
        if not good:
            raise InputError(message, file=self._file, key=key, value=value, allowed=allowed)

    def _cutting(self, table: Any) -> tuple[str, bool]:
        """Return the pattern of words, and whether a blank is put in front of a text."""
        steps = table["pretokenizers"] if _get(table, "type") == "Sequence" else [table]
        kinds = [_get(step, "type") for step in steps]
        self._need(kinds in (["ByteLevel"], ["Split", "ByteLevel"]), "pre_tokenizer", table, "ByteLevel, or Split and ByteLevel")
        alone, prefix = len(steps) == 1, bool(steps[-1].get("add_prefix_space"))
        self._need(steps[-1].get("use_regex", True) is alone, "pre_tokenizer.use_regex", not alone, "true, or false behind Split")
        if alone:
            return "gpt2", prefix
        self._need(not prefix, "pre_tokenizer.add_prefix_space", prefix, "false behind Split")
        regex, way = _get(steps[0].get("pattern"), "Regex"), (steps[0].get("behavior"), steps[0].get("invert", False))
        self._need(str(regex) in _REGEX, "pre_tokenizer.pattern", steps[0].get("pattern"), "as GPT-2, Llama-3 or Qwen2 have it")
        self._need(way in (("Isolated", False), ("Removed", True)), "pre_tokenizer.behavior", way, "Isolated")
        return _REGEX[str(regex)], False

    def _added(self, rows: list[dict[str, Any]], vocab: dict[str, int]) -> None:
        """Note the added tokens: those of normalised text are looked for behind the normalizer, others before it."""
        self.special, self._names, behind = dict[str, int](), dict[str, int](), dict[str, int]()
        for row in rows:
            name, token = str(row["content"]), row["id"]
            flags = [key for key in _FLAGS if row.get(key)]
            self._need(not flags, f"added_tokens.{flags}", name, "false")
            self._need(name != "" and vocab.get(name, token) == token, "added_tokens", row, "as in vocab", "has two numbers")
            self._need(name not in self._names | behind, "added_tokens", row, "each name once", "is there twice")
            (behind if row.get("normalized") and self._nfc else self._names)[name] = token
            if row.get("special"):
                self.special[name] = token
        self._matchers = [(_alternatives(names), names) for names in (self._names, behind)]
        self._names |= behind

    def _build(self, vocab: dict[str, int], rows: list[Any], whole: bool) -> None:
        """Make the tables of the compiled loops."""
        pieces = dict[int, bytes]()
        for name, token in (vocab | self._names).items():
            letters = name.translate(_BYTES)
            own = name in self._names or max(letters, default="\uffff") > "\u00ff"
            self._need(type(token) is int and 0 <= token < MOST, name, token, f"whole numbers below {MOST}", "is no token")
            self._need(not own or name in self._names, "model.vocab", name, "letters of bytes, as GPT-2 has them", "is no bytes")
            self._need(token not in pieces, "model.vocab", {name: token}, "each number once", "is there twice")
            pieces[token] = name.encode("utf-8", "replace") if own else letters.encode("latin-1")
        missing = [byte for byte, letter in _LETTERS.items() if letter not in vocab]
        self._need(not missing, "model.vocab", missing, "all 256 bytes", "lacks bytes")
        self.vocab_size = max(pieces) + 1
        self._pieces = [pieces.get(token, b"") for token in range(self.vocab_size)]
        merges, inside = np.empty((len(rows), 3), np.uint32), set(vocab.values())
        for rank, row in enumerate(rows):
            left, right = row.split(" ") if isinstance(row, str) else row
            unknown = next((name for name in (left, right, left + right) if name not in vocab), None)
            self._need(unknown is None, f"model.merges[{rank}]", unknown, "tokens of vocab", "names a token that is not there")
            merges[rank] = vocab[left], vocab[right], vocab[left + right]
        bytes_ = np.array([vocab[_LETTERS[byte]] for byte in range(256)], np.uint32)
        words = [piece if token in inside else b"" for token, piece in enumerate(self._pieces)] if whole else []
        self._tables, twice = bpe.tables(bytes_, merges, words)
        self._need(twice < 0, f"model.merges[{twice}]", rows[twice] if rows else None, "each pair once", "is there twice")

    def _around(self, table: Any) -> tuple[list[int], list[int]]:
        """Return the tokens that are put before and after a text."""
        kind = _get(table, "type")
        if kind == "Sequence":
            found = [self._around(step) for step in table["processors"]]
            return [token for b, _ in reversed(found) for token in b], [token for _, a in found for token in a]
        if table is None or kind == "ByteLevel":
            return [], []
        self._need(kind == "TemplateProcessing", "post_processor", table, "TemplateProcessing, ByteLevel, null")
        names = [_get(step.get("SpecialToken"), "id") for step in table["single"]]
        self._need(names.count(None) == 1, "post_processor.single", table["single"], "one Sequence between special tokens")
        unknown = next((name for name in names if name is not None and name not in self._names), None)
        self._need(unknown is None, "post_processor", unknown, "added tokens", "names a token that is not there")
        text = names.index(None)
        return [self._names[name] for name in names[:text]], [self._names[name] for name in names[text + 1 :]]

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a tokenizer.json.

        Raises:
            InputError: no such file, no JSON, or what the class refuses.
        """
        data = read_capped(path, LIMIT_BYTES)
        text = data[:1] not in (b"\x80", b"\n")  # a pickle begins with the one, SentencePiece's protobuf with the other
        try:
            return cls(json.loads(data.decode("utf-8-sig") if text else "", object_pairs_hook=_once), path)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            reason = f"is no tokenizer: {type(error).__name__}: {error}" if text else "is a pickle or of SentencePiece"
            raise InputError(reason, file=path, allowed="a tokenizer.json of Hugging Face") from None

    @classmethod
    def train(cls, texts: Iterable[str], vocab: int, special: Sequence[str] = (), pattern: str = "gpt2", least: int = 2) -> Self:
        """Learn a vocabulary.

        Args:
            texts: read once.
            vocab: tokens, special ones and the 256 bytes included; fewer when no pair is left.
            special: names of special tokens, numbered from 0.
            pattern: how words are cut: "gpt2", "llama3", "qwen2".
            least: pairs that are rarer are not merged.

        Raises:
            InputError: an unknown pattern, or too small a vocabulary.
        """
        if pattern not in bpe.PATTERNS:
            raise InputError("unknown", key="pattern", value=pattern, allowed=", ".join(bpe.PATTERNS))
        names, room = [*special, *_LETTERS.values()], vocab - 256 - len(special)
        if not 0 <= room <= MOST - 512 or len(set(names)) < len(names):
            raise InputError("is not possible", key="vocab", value=vocab, allowed=f"{256 + len(special)} or more, names differ")
        merges, found = list[list[str]](), bpe.learn(*bpe.count(texts, pattern), np.argsort(_ORDER), room, least)
        for left, right, new in (found + len(special)).tolist():
            merges.append([names[left], names[right]])
            if new == len(names):
                names.append(names[left] + names[right])
        plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        regex = next(text for text, name in _REGEX.items() if name == pattern)
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        cutting = {"type": "Sequence", "pretokenizers": [split, plain | {"use_regex": False}]}
        flags = dict.fromkeys((*_FLAGS, "normalized"), False) | {"special": True}
        document = {
            "version": "1.0",
            "added_tokens": [{"id": number, "content": name} | flags for number, name in enumerate(special)],
            "pre_tokenizer": plain if pattern == "gpt2" else cutting,
            "decoder": plain,
            "model": {"type": "BPE", "vocab": {name: number for number, name in enumerate(names)}, "merges": merges},
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
        sides = [np.array(side if around else [], np.uint32) for side in (self.before, self.after)]
        return np.concatenate([sides[0], *self._parts(text, 0, special), sides[1]])

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
            raise InputError("is no token", key="tokens", value=numbers.tolist(), allowed=f"0 to {self.vocab_size - 1}")
        hidden = set() if special else set(self.special.values())
        return b"".join([self._pieces[n] for n in numbers.tolist() if n not in hidden]).decode("utf-8", "replace")


def _get(table: Any, key: str) -> Any:
    return table.get(key) if isinstance(table, dict) else None


def _alternatives(names: dict[str, int]) -> re.Pattern[str] | None:
    """Return what splits a text at names, the longest first."""
    longest = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest))})") if names else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError(f"a key is there twice among {[key for key, _ in pairs][:20]}")
    return table
