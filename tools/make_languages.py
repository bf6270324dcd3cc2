"""Count the n-gram table of `gewu.data.language`: `python tools/make_languages.py FOLDER [C4.jsonl.xz]`.

FOLDER holds the unpacked Debian packages named in SOURCES (`apt-get download PACKAGE; dpkg -x FILE FOLDER`). Counted are relative
frequencies of letter n-grams; no text is kept. Pages left in English are left out and every tenth document is held out; the
documents of debian-reference and installation-guide are never counted: both are for measuring accuracy, which is printed.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import lzma
import re
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gewu.core import letters
from gewu.core.files import write_atomic
from gewu.data import language
from gewu.formats.markup import strip_html, strip_troff

LANGUAGES = ["en", "de", "fr", "es", "it", "pt", "nl", "pl", "cs", "sv", "da", "fi", "tr", "hu", "ru", "uk"]
SOURCES = "manpages manpages-dev manpages-XX libreoffice-help-XX gnome-user-docs fortunes-XX (C4 for en)"
FOLDERS = {"pt": ("pt", "pt_BR"), "en": ("C", "en-US", "en-us"), "zh": ("zh_CN", "zh-CN", "zh-cn"), "uk": ("uk",)}
FORTUNES = {"de": "de", "es": "es", "it": "it", "pl": "pl", "ru": "ru", "cs": "cs", "pt": "brasil", "zh": "chinese"}
STOP = {
    "en": "the be to of and that have with",  # those of Gopher; the other languages have their likes
    "de": "der die das und in zu den nicht von mit ist",
    "fr": "le la les de des et en un une que est pour",
    "es": "el la los de y en que un una es para con",
    "it": "il la di e che in un una per è con non",
    "pt": "o a os de e que em um uma para é com não",
    "nl": "de het een en van in is dat op te met voor",
    "pl": "i w na z do się nie to że jest o jak",
    "cs": "a v na se je to že s z do o pro",
    "sv": "och i att det som en på är av för med",
    "da": "og i at det som en på er af for med",
    "fi": "ja on ei se että oli hän tai kun myös",
    "tr": "ve bir bu da de için ile olarak olan",
    "hu": "a az és egy hogy nem is meg van",
    "ru": "и в на не с что по как это для из",
    "uk": "і в на не з що до як це для та",
    "zh": "的 是 在 不 了 和 有 这 为 一",
    "ja": "の に は を が と で た し る",
    "el": "και το να η ο τα της του για με",
}
BUCKETS, STEP = 8192, 4
ENGLISH = re.compile(r"(?:the|of|and|to|for|this|that|with|you|are|be|or|by|which|can|if)")
UNSEEN = {"debian-reference", "installation-guide"}


def _read(path: Path) -> str:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode("utf-8", "replace")


def documents(root: Path, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield (source, identity, text) of every document of one language."""
    share, folders = root / "usr/share", FOLDERS.get(name, (name,))
    for folder in folders:
        pages = share / "man" if folder == "C" else share / "man" / folder
        for path in sorted(pages.glob("man[1-8]/*.gz")):
            yield "man", path.name + folder, strip_troff(_read(path))
        for path in sorted((share / "help" / folder).rglob("*.page")):
            yield "gnome", path.name + folder, strip_html(re.sub(r"(?s)<info>.*?</info>", "", _read(path)))
        for path in sorted((share / "libreoffice/help" / folder / "text").rglob("*.html")):
            yield "libreoffice", path.name + folder, strip_html(_read(path))
        guide = share / "doc/installation-guide-amd64" / ("en" if folder == "C" else folder)
        for path in sorted(guide.rglob("*.html")):
            yield "installation-guide", path.name + folder, strip_html(_read(path))
        tag = {"C": "en", "pt_BR": "pt-br", "zh_CN": "zh-cn"}.get(folder, folder)
        for path in sorted((share / "debian-reference").glob(f"ch*.{tag}.html")):
            yield "debian-reference", path.name + folder, strip_html(_read(path))
    games = share / "games/fortunes"
    for path in sorted((games / FORTUNES[name]).glob("*")) if name in FORTUNES else []:
        if path.is_file() and path.suffix not in {".dat", ".u8"}:
            for i, text in enumerate(_read(path).split("\n%\n")):
                yield "fortunes", f"{path.name}{i}", text


def counted(text: str) -> np.ndarray:
    points = letters.codes(text)
    hits = np.empty(4 * len(points), np.int64)
    n = letters.ngrams(points, letters.fold(), BUCKETS, hits, np.zeros(letters.OTHER + 1, np.int64))
    return np.bincount(hits[:n], minlength=BUCKETS)


def held_out(identity: str) -> bool:
    return hashlib.blake2b(identity.encode()).digest()[0] % 10 == 0


def translated(name: str, text: str) -> bool:
    """Tell whether a document is in its language at all: translations of documentation are full of pages left in English."""
    words = re.findall(r"[a-z]+", text.lower())
    english = sum(ENGLISH.fullmatch(word) is not None for word in words) / max(len(words), 1)
    scripts = np.zeros(letters.OTHER + 1, np.int64)
    points = letters.codes(text)
    letters.ngrams(points, letters.fold(), BUCKETS, np.empty(4 * len(points), np.int64), scripts)
    latin = scripts[letters.LATIN] / max(scripts[letters.LATIN :].sum(), 1)
    return name == "en" or bool(latin < 0.6 if name in {"ru", "uk", "ja", "zh"} else english < 0.06)


def gather(root: Path, c4: Path | None) -> tuple[dict[str, dict[str, np.ndarray]], list[tuple[str, str, str]]]:
    sums: dict[str, dict[str, np.ndarray]] = {name: defaultdict(lambda: np.zeros(BUCKETS, np.int64)) for name in LANGUAGES}
    tests: list[tuple[str, str, str]] = []
    for name in [*LANGUAGES, "zh", "ja"]:
        texts = list(documents(root, name))
        if name == "en" and c4:
            texts += [("c4", line, json.loads(line)["text"]) for line in lzma.decompress(c4.read_bytes()).decode().splitlines()]
        for source, identity, text in texts:
            if len(text) < 60 or not translated(name, text):
                continue
            if source in UNSEEN or held_out(identity):
                tests.append((name, source, text))
            elif name in sums:
                sums[name][source] += counted(text)
    return sums, tests


def write_table(sums: dict[str, dict[str, np.ndarray]]) -> None:
    """Average the sources' frequencies with equal weights, smooth, take -log2 and write it in steps of 1/STEP."""
    columns = []
    for name in LANGUAGES:
        mean = np.mean([count / count.sum() for count in sums[name].values()], axis=0)
        columns.append(-np.log2(mean * 0.99 + 0.01 / BUCKETS))
    table = np.clip(np.round(STEP * np.stack(columns, axis=1)), 0, 255).astype(np.uint8)
    packed = base64.b85encode(zlib.compress(table.tobytes(), 9)).decode()
    stored = {"languages": LANGUAGES, "sources": SOURCES, "stop": STOP, "table": packed}
    write_atomic(Path(language.__file__).with_name("languages.json"), json.dumps(stored, indent=0, ensure_ascii=False).encode())


def report(tests: list[tuple[str, str, str]]) -> None:
    """Print the share of right answers: whole documents, and their first 200 and 50 letters from the middle."""
    right: dict[tuple[str, str], list[list[bool]]] = defaultdict(list)
    confused: dict[tuple[str, str], int] = defaultdict(int)
    for name, source, text in tests:
        middle = text[len(text) // 2 :]
        guesses = [language.identify(part)[0] for part in (text, middle[:200], middle[:50])]
        confused[name, guesses[0]] += 1
        for key in ((name, source), (name, "all"), ("all", "unseen" if source in UNSEEN else "held out")):
            right[key].append([guess == name for guess in guesses])
    for (name, source), rows in right.items():
        if source == "all" or name == "all" or source in UNSEEN:
            print(f"{name:4} {source:20} {len(rows):6}  " + "  ".join(f"{100 * x:5.1f}" for x in np.mean(rows, axis=0)))
    print({pair: n for pair, n in confused.items() if pair[0] != pair[1] and n > 2})


if __name__ == "__main__":
    found, kept = gather(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
    print({name: {source: int(count.sum()) for source, count in counts.items()} for name, counts in found.items()})
    write_table(found)
    report(kept)
