"""Stages that make clean text: decode, take markup off, normalise, tell the language, refuse what is no good prose.

A stage is a frozen dataclass that is called with a sample and returns the changed sample or a `Reject` with a reason; thresholds
are its fields. Docs: docs/data-text.md has every formula, default and source. The heuristics of `Quality` are those of

    Gopher  Rae et al., "Scaling language models", arXiv:2112.11446 (2021), appendix A1.1: all but `banned` and `unpunctuated`
    C4      Raffel et al., "Exploring the limits of transfer learning", JMLR 21 (2020), section 2.2: those two

each measured so that 0 is best. Chinese and Japanese are counted by characters; the rule on word lengths is not for them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.data.fields import Schema
from gewu.data.language import identify, stop_words
from gewu.data.piece import Reject
from gewu.formats.markup import strip_html, strip_troff

Sample = dict[str, Any]


def text_of(sample: Sample, field: str, stage: str) -> str:
    """Return a text field of a sample.

    Raises:
        InputError: it is absent or no text.
    """
    value = sample.get(field)
    if not isinstance(value, str):
        raise InputError("is no text", key=f"{stage}: {field}", value=value, hint=f"fields here: {', '.join(sample)}")
    return value


@dataclass(frozen=True)
class Decode:
    """Turn bytes into text: a byte-order mark decides, else strict UTF-8, else `fallback` (an encoding), else `errors`.

    Args:
        field: holds the bytes; removed when `out` is another name.
        out: receives the text.
        fallback: encoding for what is not UTF-8, for example "cp1252"; empty for none.
        errors: "strict" rejects as invalid-utf8, "replace" puts U+FFFD for every bad sequence.
    """

    field: str = "content"
    out: str = "text"
    fallback: str = ""
    errors: str = "strict"
    name: str = "decode"

    def __call__(self, sample: Sample) -> Sample | Reject:
        """Return the changed sample, or why it is refused."""
        data, rest = sample.get(self.field), {key: value for key, value in sample.items() if key != self.field}
        if not isinstance(data, bytes):
            raise InputError("is no bytes", key=f"{self.name}: {self.field}", value=data, hint=f"fields: {', '.join(sample)}")
        utf16 = data[:2] in {b"\xff\xfe", b"\xfe\xff"}
        try:
            return {**rest, self.out: data.decode("utf-16" if utf16 else "utf-8-sig")}
        except UnicodeDecodeError as error:
            if not self.fallback and self.errors == "strict":
                return Reject("invalid-utf8", f"byte {error.start}")
        return {**rest, self.out: data.decode(self.fallback or "utf-8", "replace")}

    def schema(self, schema: Schema) -> Schema:
        """Return the schema of what comes out."""
        return schema.with_fields({self.out: "text"}, without=(self.field,))


@dataclass(frozen=True)
class Plain:
    """Take the markup off a text.

    Args:
        kind: "html", "troff", or "auto": by how the text begins, unchanged when it looks like neither.
    """

    field: str = "text"
    kind: str = "auto"
    name: str = "plain"

    def __call__(self, sample: Sample) -> Sample:
        """Return the changed sample."""
        text = text_of(sample, self.field, self.name)
        head, kind = text[:4096], self.kind
        if kind == "auto":
            troff = re.search(r"""^(?:[.']\\"|[.'](?:TH|Dd|SH|Sh|so|de)\b)""", head, re.M)
            kind = (
                "troff" if troff else "html" if re.match(r"\s*<(?:!doctype|html|head|body|\?xml|!--|p|div)\b", head, re.I) else ""
            )
        return {**sample, self.field: {"html": strip_html, "troff": strip_troff}.get(kind, str)(text)}


_ENDS: Final = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_DROPPED: Final = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffd\ud800-\udfff]")


@dataclass(frozen=True)
class Normalise:
    """Bring a text into one form: NFC, "\\n" line ends, no control characters, U+FFFD or byte-order marks, no long gaps.

    Args:
        blanks: longest run of blanks within a line that is kept; longer ones are cut to it.
        newlines: likewise for line ends.
    """

    field: str = "text"
    blanks: int = 8
    newlines: int = 2
    name: str = "normalise"

    def __call__(self, sample: Sample) -> Sample | Reject:
        """Return the changed sample, or why it is refused."""
        text = _DROPPED.sub("", _ENDS.sub("\n", text_of(sample, self.field, self.name)))
        text = "\n".join(line.rstrip() for line in unicodedata.normalize("NFC", text).split("\n"))
        text = re.sub(rf"[^\S\n]{{{self.blanks + 1},}}", lambda run: run[0][: self.blanks], text)
        text = re.sub(rf"\n{{{self.newlines + 1},}}", "\n" * self.newlines, text).strip("\n")
        return {**sample, self.field: text} if text.strip() else Reject("empty")


@dataclass(frozen=True)
class Language:
    """Tell the language of a text and keep only some.

    Args:
        keep: ISO 639-1 codes that pass; empty for all. Others are rejected as language:CODE.
        column: receives the code, "und" where it is not sure.
        minimum: least confidence to be sure.
    """

    keep: tuple[str, ...] = ()
    field: str = "text"
    column: str = "language"
    minimum: float = 0.5
    name: str = "language"

    def __call__(self, sample: Sample) -> Sample | Reject:
        """Return the changed sample, or why it is refused."""
        code, confidence = identify(text_of(sample, self.field, self.name))
        code = code if confidence >= self.minimum else "und"
        return {**sample, self.column: code} if not self.keep or code in self.keep else Reject(f"language:{code}")

    def schema(self, schema: Schema) -> Schema:
        """Return the schema of what comes out."""
        return schema.with_fields({self.column: "text"})


_LETTER: Final = re.compile(r"[^\W\d_]")


def _again(parts: Sequence[str]) -> tuple[float, float]:
    """Return the share of parts, and of their characters, that repeat an earlier part."""
    once, total = set(parts), sum(map(len, parts))
    return 1 - len(once) / max(len(parts), 1), 1 - sum(map(len, once)) / max(total, 1)


def _ngrams(words: Sequence[str]) -> dict[int, float]:
    """Return by n the share of characters in the most frequent n-gram (n < 5), in repetitions of earlier n-grams (n >= 5)."""
    keys = np.fromiter(map(hash, words), np.int64, len(words)).astype(np.uint64)
    sizes = np.fromiter(map(len, words), np.int64, len(words))
    ends, rolling, found = np.concatenate([[0], np.cumsum(sizes)]), keys, dict.fromkeys(range(2, 11), 0.0)
    for n in range(2, min(len(words), 10) + 1):
        rolling = (rolling[:-1] ^ (rolling[:-1] >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) + keys[n - 1 :]
        order = np.argsort(rolling, kind="stable")
        same = np.diff(rolling[order]) == 0
        if not same.any():  # nor do longer ones repeat
            break
        if n < 5:
            first = np.concatenate([[0], 1 + np.flatnonzero(~same)])
            counts, at = np.diff(first, append=len(order)), order[first]
            found[n] = float(counts.max() * (ends[at + n] - ends[at])[counts == counts.max()].max() / ends[-1])
        else:
            again, cover = order[1:][same], np.zeros(len(words) + 1, np.int64)
            cover[again] += 1
            cover[again + n] -= 1
            found[n] = float(sizes[np.cumsum(cover[:-1]) > 0].sum() / ends[-1])
    return found


@dataclass(frozen=True)
class Quality:
    """Refuse texts that are no prose by the rules of Gopher and C4, each as quality:RULE, and give the others a score.

    Every rule but `words`, `word_length`, `stop_words` and `banned` is a share of the text in [0, 1] and the largest that passes.
    The score is 1 - mean over these rules of (value / largest), in [0, 1]; a rule whose limit is 1 is off.

    Args:
        language: field with the language, if there is one: its stop words are looked for (else those of English).
        column: receives the score.
        words, word_length: least and most number of words, least and most mean of their lengths.
        symbols: "#" and ellipses per word.  bullets, ellipses: lines that begin or end so.  wordless: words without a letter.
        stop_words: least number of different stop words; no rule for languages without a list.
        lines, line_characters, paragraphs, paragraph_characters: repetitions of earlier ones.
        ngrams: repeated n-grams of words for n = 2 ... 10.
        unpunctuated: lines that do not end like a sentence.  banned: texts that must not occur, in lower case.
    """

    field: str = "text"
    language: str = "language"
    column: str = "quality"
    words: tuple[int, int] = (50, 100_000)
    word_length: tuple[float, float] = (3, 10)
    symbols: float = 0.1
    bullets: float = 0.9
    ellipses: float = 0.3
    wordless: float = 0.2
    stop_words: int = 2
    lines: float = 0.3
    line_characters: float = 0.2
    paragraphs: float = 0.3
    paragraph_characters: float = 0.2
    ngrams: tuple[float, ...] = (0.20, 0.18, 0.16, 0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    unpunctuated: float = 1.0
    banned: tuple[str, ...] = ("lorem ipsum",)
    name: str = "quality"

    def __call__(self, sample: Sample) -> Sample | Reject:
        """Return the changed sample, or why it is refused."""
        text, language = text_of(sample, self.field, self.name), sample.get(self.language, "en")
        words = (re.sub(r"([\u3041-\u30ff\u3400-\u9fff])", r" \1 ", text) if language in {"zh", "ja"} else text).split()
        mean = sum(map(len, words)) / max(len(words), 1)
        if not self.words[0] <= len(words) <= self.words[1]:
            return Reject("quality:words", str(len(words)))
        if language not in {"zh", "ja"} and not self.word_length[0] <= mean <= self.word_length[1]:
            return Reject("quality:word_length", f"{mean:.2f}")
        if (stop := stop_words(language)) and len(stop.intersection(map(str.lower, words))) < self.stop_words:
            return Reject("quality:stop_words", language)
        if any(banned in text.lower() for banned in self.banned):
            return Reject("quality:banned")
        shares = self.measure(text, words)
        for rule, (value, largest) in shares.items():
            if value > largest:
                return Reject(f"quality:{rule}", f"{value:.3f}")
        close = [value / largest for value, largest in shares.values() if 0 < largest < 1]
        return {**sample, self.column: 1 - sum(close) / max(len(close), 1)}

    def measure(self, text: str, words: Sequence[str]) -> dict[str, tuple[float, float]]:
        """Return by rule the share of the text that breaks it, and the largest share that passes."""
        lines = [line for part in text.split("\n") if (line := part.strip())]
        n, m = max(len(words), 1), max(len(lines), 1)
        found = {
            "symbols": (text.count("#") + text.count("...") + text.count("…")) / n,
            "bullets": sum(line[0] in "-*•‣▪●" for line in lines) / m,
            "ellipses": sum(line.endswith(("...", "…")) for line in lines) / m,
            "wordless": sum(not _LETTER.search(word) for word in words if not word.isalpha()) / n,
            "unpunctuated": sum(line.rstrip("\"'”’»)")[-1:] not in set(".!?:;。！？：；…") for line in lines) / m,
        }
        found["lines"], found["line_characters"] = _again(lines)
        found["paragraphs"], found["paragraph_characters"] = _again([p for part in text.split("\n\n") if (p := part.strip())])
        limits = {rule: (value, float(getattr(self, rule))) for rule, value in found.items()}
        repeated = _ngrams(words).items() if min(self.ngrams, default=1.0) < 1 else ()
        return limits | {f"ngrams{k}": (value, limit) for (k, value), limit in zip(repeated, self.ngrams, strict=False)}

    def schema(self, schema: Schema) -> Schema:
        """Return the schema of what comes out."""
        return schema.with_fields({self.column: "float64"})
