"""Map, filter and flat-map stages over the pieces of a source, written to a store: restartable, idempotent, counted.

A stage is a frozen dataclass at the top of a module, with a `name`, called with a sample. It returns the sample changed, a
`Reject`, or any number of either. It may have a method `schema(schema)`, what comes out for what goes in. A sample for which it
raises InputError or StoreError is refused as "error:NAME"; anything else that it raises is a bug and stops the run.

One piece becomes its own shards `<piece>-0000.gws`, ... with their catalogue parts, and last of all a receipt
`receipts/<piece>.json`: what went in and came out, what was refused and why, the checksums of the shards. A piece is done if and
only if its receipt is there. All files are written atomically and hold no time, host or path of the store, so a run killed at any
instant and started again leaves the bytes of an undisturbed run, with any executor and any number of workers. When all pieces are
done the store gets a version that names their shards; one more run finds nothing to do, and new pieces make a new version.

`pipeline.json` holds what the pipeline is: stages and pieces as their repr shows them (a field with repr=False may change),
schemas, the version of gewu. A store begun by another one is refused. Code is not compared: give a stage whose code changes
another number `version`.

Duplicates can be dropped only when all samples were seen. A pipeline with `dedup` is three: the stages fill a store in the folder
`distinct`, its shards are sketched, and when the sketches are joined, what is to keep is copied. (To run the stages once more
would save the disk for one copy until the end; on manual pages they took 17 times as long as the copy.) A worker holds one shard
to sketch it, the join maps the sketches of all; all else streams sample by sample.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from gewu import __version__
from gewu.core.crew import Crew
from gewu.core.errors import GewuError, InputError, StoreError
from gewu.core.files import DirectoryLock, read_capped, storage_error, sweep_temporaries, write_atomic
from gewu.data.catalogue import BUILT_IN, Catalogue, PartInfo, part_path, write_part
from gewu.data.fields import Schema
from gewu.data.piece import Piece, Reject, Source
from gewu.data.shard import SUFFIX, RollingWriter, Shard, ShardInfo, ShardWriter
from gewu.data.store import Store, Subset

Sample = dict[str, Any]
Progress = Callable[..., None]

DUPLICATE: Final = "duplicate"
EXAMPLES: Final = 3
"""Refusals of each reason that a receipt shows."""
_ANEW: Final = "choose another folder, or restart=True to make the store anew"
_MADE: Final = ("versions", "receipts", "manifests", "catalogue", "shards", "distinct", "sketches")  # none names one before it
_LARGEST: Final = 1 << 28  # bytes of a receipt or of pipeline.json


@dataclasses.dataclass
class Summary:
    """What a piece came to, as its receipt holds it; or all pieces that are done.

    Attributes:
        samples_in, samples_out: how many went in and came out.
        rejects, examples: of each reason the number of refusals, and where the first ones were.
        shards, parts: what manifests say of the shards and their parts of the catalogue.
        pieces, done: number of pieces; 1 in a receipt.
        version: of the store; 0 until all pieces are done.
    """

    samples_in: int = 0
    samples_out: int = 0
    rejects: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    shards: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    parts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    done: int = 0
    pieces: int = 0
    version: int = 0

    def reject(self, reason: str, *where: str, count: int = 1) -> None:
        """Count refusals."""
        self.rejects[reason] = self.rejects.get(reason, 0) + count
        self.examples[reason] = [*self.examples.get(reason, ()), *where][:EXAMPLES]

    def add(self, receipt: dict[str, Any]) -> None:
        """Add what a piece came to."""
        for name in ("samples_in", "samples_out", "shards", "parts", "done"):
            setattr(self, name, getattr(self, name) + receipt[name])
        for reason, count in receipt["rejects"].items():
            self.reject(reason, *receipt["examples"][reason], count=count)


def _sum(receipts: Mapping[str, Any]) -> Summary:
    total = Summary(pieces=len(receipts))
    for receipt in filter(None, receipts.values()):
        total.add(receipt)
    return total


def _fact(value: Any) -> str:
    """Return what `value` is, in words that are the same in every process."""
    with np.printoptions(threshold=1 << 62, floatmode="unique"):
        text = f"{type(value).__module__}.{value!r}" + (f" {value.version}" if hasattr(value, "version") else "")
    if " at 0x" in text or "set({" in text:
        hint = "use dataclasses of numbers, text, tuples; repr=False for what does not matter"
        raise InputError("cannot be compared with that of a later run", value=value, hint=hint)
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")


def _read_json(path: Path) -> Any:
    return json.loads(read_capped(path, _LARGEST)) if path.exists() else None


@dataclasses.dataclass(frozen=True)
class StorePiece:
    """A shard as a piece, so that a pipeline can start from a store.

    Args:
        folder: where the shard is.
        shard: its file name.
        keep: which of its samples, as the bits of `np.packbits`; None for all.
        reason: why the others are refused; without one they are passed over.
    """

    folder: str = dataclasses.field(repr=False)
    shard: str
    keep: bytes | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """The shard's name without its ending."""
        return self.shard.removesuffix(SUFFIX)

    def samples(self) -> Iterator[Sample | Reject]:
        """Yield the samples in order; a damaged one as a refusal."""
        shard = Shard(Path(self.folder) / self.shard)
        keep = None if self.keep is None else np.unpackbits(np.frombuffer(self.keep, np.uint8))
        for j in range(len(shard)):
            if keep is None or keep[j]:
                try:
                    yield shard[j]
                except StoreError as error:
                    yield Reject("damaged", str(error))
            elif self.reason:
                yield Reject(self.reason, f"{self.name}#{j}")


@dataclasses.dataclass(frozen=True)
class _Sketches(StorePiece):
    """A shard, whose one sample is the sketch of all its samples."""

    dedup: Any = None

    def samples(self) -> Iterator[Any]:
        shard = Shard(Path(self.folder) / self.shard)
        yield self.dedup.sketch([shard[j] for j in range(len(shard))])


def source_from(store: Store | Subset) -> Source:
    """Return a store, or a subset of one, as the source of another pipeline: each shard is a piece."""
    whole = store.store if isinstance(store, Subset) else store
    keep = np.full(len(whole), whole is store)
    keep[store.numbers if isinstance(store, Subset) else ()] = True
    masks = np.split(keep, np.cumsum(whole.shard_sizes)[:-1])
    kept = [(path, mask) for path, mask in zip(whole.paths, masks, strict=True) if mask.any()]
    pieces = [StorePiece(str(path.parent), path.name, np.packbits(mask).tobytes()) for path, mask in kept]
    return Source(store.schema, pieces, "store")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A source, what is done with its samples, and the store that they go to.

    Args:
        source: where samples come from.
        stages: what is done with each, one after the other.
        root: folder of the store, NAME.store; made when there is none.
        columns: fields that belong into the catalogue, after those that the source names.
        dedup: what finds duplicates, a frozen dataclass: `sketch(samples)` returns some arrays for the samples of a shard,
            `join(sketches)` for each sketch an array of bool, which samples to keep.
        shard_bytes: size at which a shard is full, before compression.
        compression: of `ShardWriter`.
        most_rejects: share of refusals (duplicates do not count) above which no version is made.
        note: kept in the version.

    Raises:
        InputError: two pieces have one name, one is no file name, or a column is no field or not of the catalogue's types.

    Example:
        >>> Pipeline(source, [Language()], Path("german.store"), columns=["language"]).run(2, "processes")  # doctest: +SKIP
    """

    source: Source
    stages: Sequence[Callable[[Sample], Any]]
    root: Path
    _: dataclasses.KW_ONLY
    columns: Sequence[str] = ()
    dedup: Any = None
    shard_bytes: int = 256 << 20
    compression: str = "none"
    most_rejects: float = 1.0
    note: str = ""

    def __post_init__(self) -> None:
        for name, count in Counter(piece.name for piece in self.source.pieces).items():
            if count > 1 or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}", name):
                raise InputError("not a name for a piece", value=name, allowed="letters, digits and . _ -, each name once")
        for name in BUILT_IN.keys() & self.types:
            raise InputError("each catalogue has this column: rename the field", key=name)

    @cached_property
    def schema(self) -> Schema:
        """The schema of what comes out."""
        schema = self.source.schema
        for stage in self.stages:
            schema = stage.schema(schema) if hasattr(stage, "schema") else schema
        return schema

    @cached_property
    def types(self) -> dict[str, str]:
        """The catalogue's columns."""
        names = [*(name for name in self.source.columns if name in self.schema), *self.columns]
        return {name: str(self.schema[name].type) for name in names}

    @property
    def _facts(self) -> dict[str, str]:
        """What must be the same for a store to go on; with `dedup` all pieces: on each may depend what is a duplicate."""
        pieces = [piece.name for piece in self.source.pieces] if self.dedup else None
        facts = {"gewu": __version__, "source": self.source.kind, "source schema": self.source.schema.to_json()}
        facts |= {f"stage {k + 1}": _fact(stage) for k, stage in enumerate(self.stages)}
        facts |= {"schema": self.schema.to_json(), "columns": repr(list(self.types)), "dedup": _fact(self.dedup)}
        return facts | {"shard_bytes": str(self.shard_bytes), "compression": self.compression, "pieces": _digest(repr(pieces))}

    def __call__(self, piece: Piece) -> dict[str, Any]:
        """Do one piece: what it left when it was killed is removed first, its receipt is written last and returned."""
        tally, at = Summary(done=1, pieces=1), ["reading", ""]
        shards = (self.root / "shards" / f"{piece.name}-{k:04d}{SUFFIX}" for k in itertools.count())
        for shard in reversed(list(itertools.takewhile(Path.exists, shards))):  # the last first: those left stay in a row
            shard.unlink()
        try:
            self._write(piece.name, self._through(piece, tally, at), tally)
        except GewuError as error:
            error.file = error.file or f"sample {at[1]}"
            raise
        except Exception as error:
            raise GewuError(f"{at[0]} failed on sample {at[1]}: {type(error).__name__}: {error}") from error
        receipt = {"piece": piece.name, "made_from": _digest(_fact(piece)), **dataclasses.asdict(tally)}
        _write_json(self.root / "receipts" / f"{piece.name}.json", receipt)
        return receipt

    def _through(self, piece: Piece, tally: Summary, at: list[str]) -> Iterator[Sample]:
        """Yield what the stages make of the samples of a piece; `at` is what is done, and with which sample."""
        for number, first in enumerate(piece.samples()):
            tally.samples_in += 1
            at[1] = f"{piece.name}#{number}"
            pending: list[tuple[int, Any]] = [(0, first)]
            while pending:
                k, item = pending.pop()
                if isinstance(item, Reject):
                    named = first.get("path") or first.get("key") if isinstance(first, dict) else ""
                    tally.reject(item.reason, ": ".join(filter(None, (named, item.where)))[:300] or at[1])
                elif k == len(self.stages):
                    at[0] = "writing"
                    yield item
                else:
                    stage: Any = self.stages[k]
                    at[0] = f"stage {stage.name}"
                    try:
                        out = stage(item)
                        items = [out] if isinstance(out, dict | Reject) else list(out)
                    except (InputError, StoreError) as error:
                        items = [Reject(f"error:{stage.name}", f"{at[1]}: {error}")]
                    pending += [(k + 1, each) for each in reversed(items)]
            at[0] = "reading"

    def _write(self, name: str, samples: Iterator[Sample], tally: Summary) -> None:
        """Write samples to shards, and beside each its part of the catalogue."""
        rows: dict[str, list[Any]] = {column: [] for column in self.types}

        def close(writer: ShardWriter) -> None:
            assert writer.info is not None
            columns = {"length": writer.lengths, "hash": writer.hashes, **rows}
            tally.parts.append(write_part(part_path(self.root, writer.info.name), columns, types=self.types)._asdict())
            tally.shards.append(dataclasses.asdict(writer.info))
            tally.samples_out += writer.info.samples
            rows.update({column: [] for column in rows})

        options: Any = {"shard_bytes": self.shard_bytes, "compression": self.compression, "on_shard": close}
        with RollingWriter(self.root / "shards", name, self.schema, **options) as out:
            for sample in samples:
                for column in rows:
                    rows[column].append(sample.get(column))
                out.add(sample)

    def _receipt(self, piece: Piece) -> Any:
        """Return the receipt of a piece, None when it is not done; refuse that of another piece of this name."""
        found = _read_json(path := self.root / "receipts" / f"{piece.name}.json")
        if found and found["made_from"] != _digest(_fact(piece)):
            raise InputError("a piece of this name was made from something else", file=path, value=piece.name, hint=_ANEW)
        return found

    def run(
        self, workers: int = 1, executor: str = "serial", progress: Any = None, stop: Any = None, address: Any = "",
        restart: bool = False,
    ) -> Summary:  # fmt: skip
        """Do all pieces that are not done yet, then make a version of the store.

        Args:
            workers, executor, address: as of `Crew`.
            stop: asked before a piece is begun; True ends the run when the pieces under way have ended.
            progress: called as `progress(done, total, samples=..., rejects=...)` when a piece is done.
            restart: remove first what an earlier pipeline made in this folder.

        Raises:
            InputError: the store was begun by another pipeline, a sample does not fit the schema, or too many were refused.
            ResourceError: another run holds the folder, the disk is full, or a worker was killed twice (the piece is named).
            GewuError: a stage failed (stage and sample are named).
        """
        with contextlib.closing(Crew(executor, workers, address)) as crew:
            return self._run(partial(crew.spread, stop=stop or bool), progress or (lambda *counts, **numbers: None), restart)

    def _run(self, spread: Any, progress: Progress, restart: bool = False) -> Summary:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with DirectoryLock(self.root):
                self._begin(restart)
                return self._each(spread, progress) if self.dedup is None else self._distinct(spread, progress)
        except OSError as error:
            raise storage_error(error, self.root, "written") from error

    def _begin(self, restart: bool) -> None:
        """Make folders and `pipeline.json`; refuse what another pipeline began, sweep what killed writers left."""
        facts, old = self._facts, _read_json(path := self.root / "pipeline.json")
        if old is None and any((self.root / name).exists() for name in ("shards", "versions")):
            raise InputError("holds a store that no pipeline made", file=self.root, hint="choose another folder")
        if restart:
            for name in _MADE:
                shutil.rmtree(self.root / name, ignore_errors=True)
        elif old and (other := [key for key in old | facts if facts.get(key) != old.get(key)]):
            key = min(other, key=lambda key: not key.startswith("stage"))  # which may be why the schema differs
            shown: Any = {"key": key, "value": facts.get(key), "allowed": f"{old.get(key)}"[:200], "hint": _ANEW}
            raise InputError("the store was begun by another pipeline", file=path, **shown)
        _write_json(path, facts)  # first: what else is here was made by it
        self._sweep()

    def _sweep(self) -> None:
        for name in ("", "shards", "catalogue", "receipts"):
            (self.root / name).mkdir(exist_ok=True)
            sweep_temporaries(self.root / name)

    def _each(self, spread: Any, progress: Progress) -> Summary:
        """Do the pieces that are not done, the largest first; when all are, make a version unless the newest names the same."""
        receipts = {piece.name: self._receipt(piece) for piece in self.source.pieces}
        todo = [piece for piece in self.source.pieces if not receipts[piece.name]]
        total = _sum(receipts)
        worker = dataclasses.replace(self, source=self.source._replace(pieces=()))
        for receipt in spread(worker, sorted(todo, key=lambda piece: -getattr(piece, "size_bytes", 0))):
            receipts[receipt["piece"]] = receipt
            total.add(receipt)
            progress(total.done, total.pieces, samples=total.samples_out, rejects=sum(total.rejects.values()))
        self._sweep()  # what workers left that were killed
        total = _sum(receipts)  # in the order of the pieces, whatever the order in which they ended
        refused = sum(total.rejects.values()) - total.rejects.get(DUPLICATE, 0)
        if total.done < total.pieces:
            return total
        if refused > self.most_rejects * (refused + total.samples_out):
            why = ", ".join(f"{count} {reason}" for reason, count in total.rejects.items())
            allowed = f"{self.most_rejects:.3%}"
            raise InputError(f"too many samples were refused: {why}", file=self.root, key="most_rejects", allowed=allowed)
        shards, parts = [ShardInfo(**row) for row in total.shards], [PartInfo(**row) for row in total.parts]
        catalogue = Catalogue(self.root)
        old = catalogue.shards() if catalogue.versions() else None
        if old != shards:
            new = len(old) if old and old == shards[: len(old)] else 0
            catalogue.commit(shards[new:], parts[new:], self.schema, self.note, base="latest" if new else None)
        total.version = catalogue.snapshot().version
        return total

    def _distinct(self, spread: Any, progress: Progress) -> Summary:
        """Do the stages, the sketches and the copy without duplicates."""
        folder, kept, pieces = self.root / "distinct", self.root / "distinct" / "kept.json", len(self.source.pieces)

        def step(k: int) -> Progress:
            return lambda done, total, **numbers: progress(round((k + done / total) * pieces), 3 * pieces, **numbers)

        first = dataclasses.replace(self, root=folder, columns=(), dedup=None)._run(spread, step(0))
        if not first.version:
            return first
        names = [row["name"] for row in first.shards]
        if not kept.exists():
            sketches = [_Sketches(str(folder / "shards"), name, dedup=self.dedup) for name in names]
            schema = Schema.infer(next(sketches[0].samples())) if sketches else self.schema
            second = Pipeline(Source(schema, sketches, "sketches"), (), self.root / "sketches", shard_bytes=1 << 40)
            found = second._run(spread, step(1))
            if not found.version:
                return found
            joined = self.dedup.join([Shard(second.root / "shards" / row["name"])[0] for row in found.shards])
            _write_json(kept, [np.packbits(mask).tobytes().hex() for mask in joined])
        shutil.rmtree(self.root / "sketches", ignore_errors=True)
        masks = [bytes.fromhex(text) for text in _read_json(kept)]
        copies = [StorePiece(str(folder / "shards"), name, mask, DUPLICATE) for name, mask in zip(names, masks, strict=True)]
        source = Source(self.schema, copies, self.source.kind, tuple(self.types))
        total = dataclasses.replace(self, source=source, stages=(), dedup=None)._each(spread, step(2))
        if total.version:
            shutil.rmtree(folder / "shards", ignore_errors=True)
        total.samples_in = first.samples_in
        for reason, count in first.rejects.items():
            total.reject(reason, *first.examples[reason], count=count)
        return total
