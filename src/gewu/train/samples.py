"""From files and stores to the batches of a trainer: packed rows of text, or rows of pictures, series and tables.

    text      folders, JSON lines, Parquet, text files, stores  → tokens → `data.packing` → tokens, targets, segments, positions
    rows      CSV, NPZ, stores, a chaotic system integrated here → arrays, standardised by the training part, label or value

A target is the next token of the same document, -1 at its end and in padding. What is held out for validation follows from a
hash of the sample (texts, rows), from the split that a store's catalogue has, or lies behind all training windows (series). Both
kinds have one face: `next(samples)` is a whole batch, the same on every process and with any number of them; `state()` goes into
a checkpoint as JSON, and who begins from it continues with the next batch. Orders are those of `gewu.data.order`.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.core.files import read_text_capped
from gewu.core.random import uniform
from gewu.data import convert
from gewu.data.catalogue import Catalogue
from gewu.data.images import ToArray
from gewu.data.loader import Loader, Work
from gewu.data.packing import PackedLoader, Packer
from gewu.data.piece import Reject
from gewu.data.stages import Unpack
from gewu.data.text import Decode, Normalise, Plain
from gewu.data.tokens import END
from gewu.train.config import Input

MOST_BYTES: Final = 1 << 33
"""Text that is kept in memory as tokens; more comes from a store."""
BLOCK: Final = 1 << 14  # characters of a document that is cut out of one long text


class Bytes:
    """The tokenizer that needs none: token = byte of UTF-8, 257 ends a document."""

    vocab_size, end = 259, END

    def encode_many(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """Return the tokens of texts."""
        return [np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.uint32) for text in texts]

    def encode(self, text: str) -> NDArray[Any]:
        """Return the tokens of a text."""
        return self.encode_many([text])[0]

    def decode(self, tokens: Any) -> str:
        """Return the text of tokens."""
        return bytes(int(token) for token in tokens if token < 256).decode("utf-8", "replace")


def documents(path: str, name: str, refused: Counter[str]) -> Iterator[str]:
    """Yield the texts at a path; what is no text is counted by reason.

    Args:
        path: a folder, a file of samples, a store, or one text file, which is cut into documents at line ends.
        name: of the field that holds the text, where samples have fields.
        refused: counts by reason; damaged samples of a store among them.
    """
    kind = convert.format_of(path)
    if kind is None:
        lines, size = [], 0
        for line in read_text_capped(path, MOST_BYTES).splitlines(keepends=True):
            lines.append(line)
            if (size := size + len(line)) >= BLOCK:
                yield "".join(lines)
                lines, size = [], 0
        yield from ["".join(lines)] * bool(lines)
        return
    source = convert.source(path, kind, **({"content": "bytes"} if kind == "folder" else {}))
    stages: list[Callable[[dict[str, Any]], Any]] = []
    if kind == "folder":
        stages = [Unpack("data"), Decode("data", out=name), Plain(name), Normalise(name)]
    elif name not in source.schema.names:
        raise InputError("samples have no such field", file=path, key="text", value=name, allowed=", ".join(source.schema.names))
    for found in chain.from_iterable(piece.samples() for piece in source.pieces):
        for stage in stages:
            found = stage(found) if isinstance(found, dict) else found
        if isinstance(found, Reject):
            refused[found.reason] += 1
        else:
            yield found[name]


def held_out(text: bytes, share: float, seed: int) -> bool:
    """Return whether a sample is for validation: samples that are equal fall on one side."""
    digest = blake2b(text, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") < share * 2.0**64


class Corpus:
    """Documents as tokens in memory; `Loader` reads it as a store.

    Args:
        parts: tokens of each document.
    """

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self.tokens = np.concatenate(parts) if parts else np.zeros(0, np.uint32)
        self.offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
        self.shard_sizes = np.array([len(parts)], np.int64)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def batch(self, numbers: Any, fields: Any = None) -> dict[str, Any]:
        """Return the documents of these numbers."""
        return {"tokens": [self.tokens[self.offsets[k] : self.offsets[k + 1]] for k in numbers.tolist()], "_index": numbers}


@dataclass
class Texts:
    """What text there is: two parts, each with the face of a store, and what became of the rest.

    Attributes:
        train, held: documents for training and validation; samples have `tokens`.
        tokenizer: Bytes, or a tokenizer of `gewu.formats.tokenizer`.
        bytes_per_token: of the held-out part, to turn nats a token into bits a byte.
        tokens: of the training part, for a store about.
        refused: what was not taken, by reason.
        transform: of the loader, where tokens are made while training.
    """

    train: Any
    held: Any
    tokenizer: Any
    bytes_per_token: float
    tokens: float
    refused: Counter[str] = field(default_factory=Counter)
    transform: Any = None


def texts(paths: Sequence[str], name: str, tokenizer: Callable[[list[str]], Any], share: float, seed: int) -> Texts:
    """Return the texts at some paths, as tokens in memory.

    Args:
        paths, name: see `documents`.
        tokenizer: called with the texts for training, returns what encodes them.
        share: of the documents for validation.
        seed: of the split.

    Raises:
        InputError: no text, nothing held out although a share was wanted, or more than fits in memory.
    """
    refused: Counter[str] = Counter()
    sides: tuple[list[str], list[str]] = ([], [])
    size = 0
    for path in paths:
        for text in documents(path, name, refused):
            if text:
                sides[held_out(text.encode("utf-8", "replace"), share, seed)].append(text)
                if (size := size + len(text)) > MOST_BYTES:
                    hint = "make a store of it first, with an engine table [data] and its stage 'tokenise'"
                    raise InputError(
                        "is more text than is kept in memory", file=path, allowed=f"{MOST_BYTES} characters", hint=hint
                    )
    if not sides[0] or (share > 0 and not sides[1]):
        what = "nothing to train on" if not sides[0] else "nothing falls into the held-out part"
        raise InputError(what, file=paths[0], value=f"{len(sides[0])} and {len(sides[1])} documents, {refused.total()} refused")
    made = tokenizer(sides[0])
    parts = [Corpus(made.encode_many(side)) for side in sides]
    return Texts(*parts, made, _bytes(sides[1]) / max(1, len(parts[1].tokens)), len(parts[0].tokens) + len(parts[0]), refused)


def _bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode("utf-8", "replace")) for text in texts)


@dataclass(frozen=True)
class Encode:
    """A transform of `Loader` that adds the tokens of a text."""

    name: str
    tokenizer: Any

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return the tokens of a sample."""
        return {"tokens": self.tokenizer.encode(sample[self.name])}


def store_texts(
    path: str, name: str, tokenizer: Callable[[list[str]], Any], share: float, seed: int, policy: str = "stop"
) -> Texts:
    """Return the texts of a store, which stay there: tokens are read, or made from text while training.

    Args:
        path: folder of the store; its split counts where its catalogue has one.
        name: field of the text; a field `tokens` comes first, and must be of this tokenizer.
        tokenizer, share, seed: as of `texts`; it learns from the first 10,000 texts.
        policy: for damaged samples, of `gewu.data.Store`.
    """
    catalogue = Catalogue(path)
    store = catalogue.open(on_damage=policy)
    if "split" in catalogue.snapshot().columns:
        train, held = (catalogue.open(where=f"split = '{side}'", on_damage=policy) for side in ("train", "validation"))
    else:
        mark = uniform(seed, 0, np.arange(len(store))) < share
        train, held = (store.subset(np.flatnonzero(side)) for side in (~mark, mark))
    if not len(train) or (share > 0 and not len(held)):
        raise InputError("leaves a part of the split empty", file=path, value=f"{len(train)} and {len(held)} samples")
    if "tokens" not in store.schema.names and name not in store.schema.names:
        raise InputError("samples have no such field", file=path, key="text", value=name, allowed=", ".join(store.schema.names))
    some = lambda part, most: [each for each in part.read(np.arange(min(len(part), most))) if each is not None]  # noqa: E731
    if name in store.schema.names:
        made = tokenizer([each[name] for each in some(train, 10_000)])
        shown = [each[name] for each in some(held, 200)]
        ratio = _bytes(shown) / max(1, sum(map(len, made.encode_many(shown))))
    else:
        made = tokenizer([])
        shown = [each["tokens"] for each in some(held, 200)]
        ratio = _bytes([made.decode(tokens) for tokens in shown]) / max(1, sum(map(len, shown)))
    tokens = catalogue.snapshot().raw_bytes / ratio * len(train) / len(store)
    return Texts(train, held, made, ratio, tokens, transform=None if "tokens" in store.schema.names else Encode(name, made))


class TextStream:
    """Packed rows of text without end: `next()` returns tokens, targets, segments, positions, int32 (rows, length).

    Args:
        source: the texts.
        rows, length: of a batch.
        seed: of the order of the documents.
        state: of `state()`.

    Attributes:
        damage: numbers of the samples that were damaged and left out.
    """

    def __init__(self, source: Texts, rows: int, length: int, seed: int, state: Mapping[str, Any] | None = None) -> None:
        end = source.tokenizer.end
        loader = Loader(source.train, 1, seed=seed, epochs=None, workers=1, transform=source.transform)
        self._packer = Packer(length + 1, eos=end)  # the last token of a row is a target only
        self._rows, self.damage = PackedLoader(loader, self._packer, rows, state=state), loader.damage
        self._held, self._count, self._transform = source.held, rows, source.transform

    def __next__(self) -> dict[str, NDArray[np.int32]]:
        return with_targets(next(self._rows))

    def state(self) -> dict[str, Any]:
        """Return the place behind the last batch; JSON can hold it."""
        return self._rows.state()

    def held(self, most: int) -> Iterator[dict[str, NDArray[np.int32]]]:
        """Yield at most so many batches of the held-out part, each time the same; the last is filled up with padding."""
        work = Work(self._held, None if self._transform else ("tokens",), self._transform)
        parts = (
            work(numbers, numbers)["tokens"] for numbers in np.array_split(np.arange(len(self._held)), -(-len(self._held) // 16))
        )
        rows: list[Any] = []
        blank = self._packer.row([])
        for row in chain(self._packer.rows(chain.from_iterable(parts)), [None]):
            rows += [row] if row is not None else [blank] * (-len(rows) % self._count)
            if len(rows) == self._count:
                yield with_targets({name: np.stack([each[name] for each in rows]) for name in blank})
                rows, most = [], most - 1
                if not most:
                    return

    def close(self) -> None:
        """Stop reading."""
        self._rows.close()


def with_targets(rows: Mapping[str, NDArray[np.int32]]) -> dict[str, NDArray[np.int32]]:
    """Return packed rows one token shorter, with the next token of the same document as target, -1 where there is none."""
    segments = rows["segments"]
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    targets = np.where(same, rows["tokens"][:, 1:], -1).astype(np.int32)
    return {name: np.ascontiguousarray(rows[name][:, :-1]) for name in ("tokens", "segments", "positions")} | {"targets": targets}


@dataclass
class Rows:
    """Samples that are not text, whole in memory; it is read as a store by `Loader`.

    Attributes:
        arrays: float32 (n, ...) by name, with `label` int32 (n,) or `value` float32 (n, k).
        inputs: what of them the model sees.
        held: bool (n,): kept for validation.
        classes: names of the labels.
        scale: (mean, standard deviation) of the values, (k,), by which `value` was standardised.
        last: of a series, the last value of each window.
    """

    arrays: dict[str, NDArray[Any]]
    inputs: tuple[Input, ...]
    held: NDArray[np.bool_]
    classes: tuple[str, ...] = ()
    scale: tuple[NDArray[Any], NDArray[Any]] | None = None
    last: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        self._numbers = np.flatnonzero(~self.held)
        self.shard_sizes = np.array([len(self._numbers)], np.int64)
        for item in self.inputs:
            x = self.arrays[item.name]
            axes = (0,) if item.kind == "table" else tuple(range(x.ndim - 1))
            self.arrays[item.name] = ((x - (pair := _moments(x[self._numbers], axes))[0]) / pair[1]).astype(np.float32)
        if "value" in self.arrays:
            value = self.arrays["value"]
            self.scale = _moments(value[self._numbers], (0,))
            self.arrays["value"] = ((value - self.scale[0]) / self.scale[1]).astype(np.float32)

    def __len__(self) -> int:
        return len(self._numbers)

    def batch(self, numbers: Any, fields: Any = None) -> dict[str, Any]:
        """Return the training samples of these numbers."""
        return self.of(self._numbers[numbers]) | {"_index": numbers}

    def of(self, numbers: Any) -> dict[str, NDArray[Any]]:
        """Return samples of these numbers of all."""
        return {name: array[numbers] for name, array in self.arrays.items()}


def _moments(x: NDArray[Any], axes: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    deviation = np.nanstd(x, axes)
    return np.nanmean(x, axes), np.where(deviation > 0, deviation, 1.0)


class RowStream:
    """Batches of rows without end, shuffled anew in each epoch: the face of `TextStream`."""

    def __init__(self, source: Rows, rows: int, seed: int, state: Mapping[str, Any] | None = None) -> None:
        self._source, self._count, self.damage = source, rows, set[int]()
        self._loader = Loader(source, rows, seed=seed, epochs=None, workers=0, state=state)

    def __next__(self) -> dict[str, NDArray[Any]]:
        return {name: array for name, array in next(self._loader).items() if name != "_index"}

    def state(self) -> dict[str, Any]:
        """Return the place behind the last batch; JSON can hold it."""
        return self._loader.state()

    def held(self, most: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield at most so many batches of the held-out part; `_count` rows of each count, the rest fill up."""
        numbers = np.flatnonzero(self._source.held)
        for begin in range(0, min(len(numbers), most * self._count), self._count):
            part = numbers[begin : begin + self._count]
            yield self._source.of(np.resize(part, self._count)) | {"_count": np.array(len(part))}

    def close(self) -> None:
        """Do nothing: it holds nothing open."""


def read_table(path: str) -> dict[str, NDArray[Any]]:
    """Return the columns of a CSV file with a heading: float64, NaN where empty; texts where not all are numbers.

    Raises:
        InputError: rows of unequal length, no heading, or no row.
    """
    lines = list(csv.reader(io.StringIO(read_text_capped(path, MOST_BYTES))))
    lines = [line for line in lines if line and not line[0].startswith("#")]
    if len(lines) < 2:
        raise InputError("holds no rows below a heading", file=path)
    for number, line in enumerate(lines):
        if len(line) != len(lines[0]):
            raise InputError("rows are of unequal length", file=path, key=f"row {number}", value=len(line), allowed=len(lines[0]))
    columns = {}
    for name, *cells in zip(*lines, strict=True):
        try:
            columns[name] = np.array([float(cell) if cell.strip() else np.nan for cell in cells])
        except ValueError:
            columns[name] = np.array(cells)
    return columns


def lorenz(steps: int, dt: float = 0.02) -> NDArray[np.float64]:
    """Return x(t) of the system of Lorenz (J. Atmos. Sci. 20, 130, 1963), sigma 10, rho 28, beta 8/3, float64 (steps, 3).

    Runge-Kutta of fourth order, four steps in each `dt`; the first 2,000 are left out.
    """

    def slope(u: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y, z = u
        return np.array([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z])

    u, h, found = np.array([1.0, 1.0, 20.0]), dt / 4, np.empty((steps, 3))
    for number in range(-2000, steps):
        for _ in range(4):
            a = slope(u)
            b = slope(u + h / 2 * a)
            c = slope(u + h / 2 * b)
            u = u + h / 6 * (a + 2 * b + 2 * c + slope(u + h * c))
        if number >= 0:
            found[number] = u
    return found


def windows(series: NDArray[Any], context: int, horizon: int, share: float, patch: int) -> Rows:
    """Return windows of a series, and what comes behind each.

    Args:
        series: (time, channels); the first channel is forecast.
        context, horizon: time steps that are seen, and that are forecast.
        share: of the time, at its end, for validation; windows that reach over the cut are left out.
        patch: time steps of a token.

    Raises:
        InputError: it is too short.
    """
    cut, span = round(len(series) * (1 - share)), context + horizon
    if min(cut, len(series) - cut) < span or context % patch:
        allowed = f"context a multiple of patch = {patch}, and {span} steps on both sides of the held-out part"
        raise InputError("does not fit the series", key="context", value=f"{context} of {len(series)} steps", allowed=allowed)
    starts = np.concatenate([np.arange(cut - span + 1), np.arange(cut, len(series) - span + 1)])
    seen = series[starts[:, None] + np.arange(context)]
    value = series[starts[:, None] + context + np.arange(horizon), 0]
    inputs = (Input("series", "series", seen.shape[1:], patch),)
    return Rows({"series": seen, "value": value}, inputs, starts >= cut, last=seen[:, -1, 0])


def split_rows(arrays: dict[str, NDArray[Any]], inputs: Sequence[Input], share: float, seed: int, names: Any = ()) -> Rows:
    """Return rows, a share of them held out by a hash of what they hold."""
    n = len(next(iter(arrays.values())))
    held = np.array([held_out(b"".join(array[k].tobytes() for array in arrays.values()), share, seed) for k in range(n)])
    if held.all() or not held.any():
        raise InputError("all rows fall on one side of the split", key="validation", value=share, allowed=f"more than {n} rows")
    return Rows(arrays, tuple(inputs), held, tuple(names))


def store_rows(path: str, picture: Sequence[int], label: str, share: float, seed: int, policy: str, patch: int) -> Rows:
    """Return the pictures and numbers of a store: its field of images, and its scalar fields as a table.

    Args:
        path: folder of the store.
        picture: height and width that pictures are brought to.
        label: field of the classes.
        share, seed: of the split.
        policy: for damaged samples.
        patch: pixels along the edge of a token.
    """
    store = Catalogue(path).open(on_damage=policy)
    kinds = {item.name: item.type for item in store.schema}
    image = next((name for name, kind in kinds.items() if kind.kind == "image"), "")
    numbers = [name for name, kind in kinds.items() if kind.scalar and name != label]
    if label not in kinds or not (image or numbers):
        raise InputError("needs a label, and images or numbers", file=path, key="label", value=label, allowed=", ".join(kinds))
    to_array = ToArray(image, (picture[0], picture[1])) if image else dict
    found = [to_array(each) for each in store]
    columns = {name: np.array([each[name] for each in found]) for name in (*numbers, label)}
    pixels = np.stack([each[image] for each in found]) if image else None
    return labelled(columns, numbers, label, pixels, share, seed, patch)


def labelled(
    columns: Mapping[str, NDArray[Any]], table: Sequence[str], label: str, pixels: Any, share: float, seed: int, patch: int
) -> Rows:
    """Return rows of a table and pictures with the classes of a label.

    Args:
        columns: by name, (n,).
        table: the columns that the model sees as numbers.
        label: column of the classes, texts or numbers.
        pixels: (n, height, width, channels), or None.
        share, seed: of the split.
        patch: pixels along the edge of a token.
    """
    names, label_n = np.unique(columns[label], return_inverse=True)
    arrays: dict[str, NDArray[Any]] = {"label": label_n.astype(np.int32)}
    inputs = []
    if pixels is not None:
        arrays["picture"] = pixels
        inputs.append(Input("picture", "patches", pixels.shape[1:], patch))
    if table:
        for name in table:
            if columns[name].dtype.kind not in "fiub":
                raise InputError("is no column of numbers", key="columns", value=name, hint=f"such as {columns[name][0]!r}")
        arrays["table"] = np.stack([columns[name].astype(np.float64) for name in table], axis=1)
        inputs.append(Input("table", "table", (len(table),)))
    return split_rows(arrays, inputs, share, seed, [str(name) for name in names.tolist()])
