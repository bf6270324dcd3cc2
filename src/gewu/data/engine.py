"""The engine `data`: from files, folders, archives or results to a store, and a report on what it holds.

The chain is `convert.source` → stages, in the order of the job → near-duplicates → `Pipeline` (processes, receipts) → a version
of the store → its facts. The store lies where the job says and outlives the result: a run that was killed goes on with the pieces
that have no receipt, and a later run of the same job does only what is new. Without a `store` one that exists is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from gewu.core import schema
from gewu.core.context import Context
from gewu.core.errors import InputError
from gewu.core.figure import Figure
from gewu.core.files import listing_of
from gewu.core.machine import cores
from gewu.data import figures as pictures
from gewu.data.executors import EXECUTORS
from gewu.data.fields import Schema
from gewu.data.piece import Source
from gewu.data.stages import Label, Stamped
from gewu.formats.extxyz import frame_bytes

SUMMARY: Final = "Data sets: files, folders, archives and results, cleaned and packed into a store"
REFERENCES: Final = {
    "gopher2021": "@article{gopher2021, author = {Rae, Jack W. and others}, title = {Scaling Language Models: Methods, "
    "Analysis and Insights from Training Gopher}, journal = {arXiv:2112.11446}, year = {2021}}",
    "minhash1997": "@inproceedings{minhash1997, author = {Broder, Andrei Z.}, title = {On the Resemblance and Containment of "
    "Documents}, booktitle = {Compression and Complexity of Sequences}, year = {1997}, doi = {10.1109/SEQUEN.1997.666900}}",
}
CITED: Final = {"quality": "gopher2021", "dedup": "minhash1997"}
FORMATS: Final = ("auto", "jsonl", "parquet", "arrow", "webdataset", "mds", "folder", "results", "extxyz", "store")
CLEANING: Final = ("unpack", "decode", "plain", "normalise", "language")
STAGES: Final = (*CLEANING, "quality", "pii", "dedup", "tokenise", "check-images", "per-atom")


@dataclass(frozen=True)
class Config:
    """The `[data]` table of a job."""

    source: tuple[str, ...] = schema.field(
        file=True, folder=True, meaning="files, folders, archives, results or stores of one kind",
        absent="for the documents of examples/ingest-docs.toml run `make documents` first",
    )  # fmt: skip
    store: str = schema.field("", meaning="folder for the samples, NAME.store, from where gewu runs; none: look at a store")
    format: str = schema.field("auto", choices=FORMATS, meaning="what the source is; auto looks at its first files")
    stages: tuple[str, ...] = schema.field((), choices=STAGES, meaning="what is done with each sample, in this order")
    where: str = schema.field("", meaning="of a store: SQL condition on its columns, such as language = 'de'")
    text: str = schema.field("text", meaning="field that the stages for text work on")
    languages: tuple[str, ...] = schema.field((), meaning="language: those to keep (ISO 639-1); none given: all")
    least_words: int = schema.field(50, minimum=0, meaning="quality: a text of fewer words is refused")
    similarity: float = schema.field(0.8, minimum=0.1, maximum=1.0, meaning="dedup: Jaccard similarity of near-duplicates")
    tokenizer: str = schema.field("", file=True, meaning="tokenise: a tokenizer.json; none given: bytes")
    keep_text: bool = schema.field(True, meaning="tokenise: the text stays beside its tokens; with dedup always")
    columns: tuple[str, ...] = schema.field((), meaning="further fields that belong into the catalogue")
    validation: float = schema.field(0.0, minimum=0.0, maximum=0.9, meaning="share of samples marked as validation, by hash")
    licence: str | dict[str, str] = schema.field("", meaning="licence of the samples, or a table of licences by folder")
    description: str = schema.field("", meaning="a sentence on the data set, for its card")
    creator: str = schema.field("", meaning="who made the data set, for its card")
    most_rejects: float = schema.field(1.0, minimum=0.0, maximum=1.0, meaning="largest share of samples that may be refused")
    restart: bool = schema.field(False, meaning="begin the store anew; what it holds is lost")
    piece_files: int = schema.field(1000, minimum=1, meaning="folder: files that one process takes at a time", expert=True)
    shard_mb: int = schema.field(256, unit="MB", minimum=1, maximum=4096, meaning="size at which a shard is full", expert=True)
    compression: str = schema.field("none", choices=("none", "sample", "block"), meaning="of shards, by zstd", expert=True)
    workers: int = schema.field(0, minimum=0, meaning="processes; 0 takes all usable cores", expert=True)
    executor: str = schema.field("processes", choices=EXECUTORS, meaning="where the work is done", expert=True)
    scheduler: str = schema.field("", meaning="dask: address or file of its scheduler; none given: one here", expert=True)
    seed: int = schema.field(1, minimum=0, meaning="chooses the samples for validation", expert=True)
    sample_rows: int = schema.field(6, minimum=0, maximum=100, meaning="samples that the report shows", expert=True)

    def check(self) -> None:
        """Refuse keys that ask for a stage which is not there, and stages that do not go together."""
        for key, stage in (("languages", "language"), ("tokenizer", "tokenise")):
            if getattr(self, key) and stage not in self.stages:
                raise InputError(f"needs the stage {stage!r}", key=key, value=getattr(self, key), hint=f"add {stage!r} to stages")
        if len(set(self.stages)) < len(self.stages):
            raise InputError("names a stage twice", key="stages", value=self.stages)
        if not self.store and (self.format != "store" or self.stages or self.where or len(self.source) > 1):
            raise InputError("must name a folder", key="store", hint="only format = 'store' without stages does without")


def source_of(config: Config) -> Source:
    """Return what the job names as one source.

    Raises:
        InputError: a source cannot be read, or holds other fields than the first.
    """
    from gewu.data import convert
    from gewu.data.catalogue import Catalogue
    from gewu.data.pipeline import source_from

    sources: list[Source] = []
    for path in config.source:
        if Path(config.store).resolve().is_relative_to(Path(path).resolve()):
            raise InputError("lies inside its source", key="data.store", value=config.store, hint="run gewu in another folder")
        kind = convert.format_of(path) if config.format == "auto" else config.format
        if kind == "store" and (Path(path) / "versions").is_dir():
            with closing(Catalogue(path).open(where=config.where or None, on_damage="skip")) as store:
                sources.append(source_from(store))
        elif kind == "folder":
            content = "bytes" if "decode" in config.stages else "auto"
            sources.append(convert.source(path, kind, group_files=config.piece_files, content=content))
        else:
            sources.append(convert.source(path, kind, schema=sources[0].schema if sources else None))
        if sources[-1].schema != sources[0].schema:
            value, allowed = ", ".join(sources[-1].schema.names), ", ".join(sources[0].schema.names)
            raise InputError("holds other fields than the first source", file=path, value=value, allowed=allowed)
    pieces, stamp = [], cache(lambda path: listing_of(Path(path)) if path else "")
    for number, source in enumerate(sources):
        prefix = f"{number:03d}-" * (len(sources) > 1)
        pieces += [Stamped(piece, prefix, stamp(getattr(piece, "path", ""))) for piece in source.pieces]
    return sources[0]._replace(pieces=pieces)


def stages_of(config: Config, fields: Schema) -> tuple[list[Any], Any]:
    """Return the stages of the job for samples with these fields, and what finds near-duplicates (None when nothing shall).

    Raises:
        InputError: a stage needs a field that is not there.
    """
    keep = config.keep_text or "dedup" in config.stages  # duplicates are looked for in what the stages leave
    text, kinds = config.text, {field.type.kind: field.name for field in reversed(fields.fields)}
    made: dict[str, tuple[str, str, dict[str, Any]]] = {
        "unpack": ("stages", "Unpack", {"field": kinds.get("bytes", "data")}),
        "decode": ("text", "Decode", {"field": kinds.get("bytes", "data"), "out": text}),
        "plain": ("text", "Plain", {"field": text}),
        "normalise": ("text", "Normalise", {"field": text}),
        "language": ("text", "Language", {"field": text, "keep": config.languages}),
        "quality": ("text", "Quality", {"field": text, "words": (config.least_words, 1_000_000)}),
        "pii": ("pii", "MaskPII", {"field": text, "column": "masked"}),
        "dedup": ("minhash", "Dedup", {"field": text, "threshold": config.similarity}),
        "tokenise": ("tokens", "Tokenise", {"field": text, "tokenizer": config.tokenizer or "bytes", "keep": keep}),
        "check-images": ("images", "CheckImage", {"field": kinds.get("image", "image")}),
    }

    def make(name: str) -> Any:
        module, kind, options = made[name]
        return getattr(import_module(f"gewu.data.{module}"), kind)(**options)

    stages = [make(name) for name in config.stages if name in made and name != "dedup"]
    licences = config.licence if isinstance(config.licence, dict) else {"": config.licence} if config.licence else {}
    hashed = _through(stages, fields).with_fields({}, without=("path",)) if config.validation else None
    stages.append(Label(tuple(licences.items()), hashed, config.validation, config.seed, "per-atom" in config.stages))
    return stages, make("dedup") if "dedup" in config.stages else None


def _through(stages: list[Any], fields: Schema) -> Schema:
    for stage in stages:
        fields = stage.schema(fields) if hasattr(stage, "schema") else fields
    return fields


def run(config: Config, ctx: Context) -> None:
    """Bring the store up to date, and record what it holds."""
    from gewu.data import card
    from gewu.data.pipeline import DUPLICATE

    if ctx.ranks.size > 1:
        raise InputError("runs in one process, which starts its own", key="data.workers", hint="leave mpirun away, or use dask")
    ctx.cite(*(CITED[stage] for stage in config.stages if stage in CITED))
    summary = _ingest(config, ctx) if config.store else None
    if config.store and summary is None:
        return
    with ctx.phase("looking at the store"):
        facts = card.describe(config.store or config.source[0], summary.version if summary else None, config.sample_rows)
    snapshot = facts.snapshot
    numbers: dict[str, tuple[float, str]] = {"samples": (snapshot.samples, "1")}
    if summary:
        duplicates = summary.rejects.get(DUPLICATE, 0)
        numbers |= {"samples_read": (summary.samples_in, "1"), "rejected": (sum(summary.rejects.values()) - duplicates, "1")}
        numbers |= {"duplicates": (duplicates, "1")}
    numbers |= {"size_mb": (snapshot.bytes / 1e6, "MB"), "mean_length_b": (snapshot.raw_bytes / max(1, snapshot.samples), "B")}
    numbers |= {"shards": (snapshot.shards, "1"), "version": (snapshot.version, "1")}
    if "token_count" in snapshot.columns:
        numbers["tokens"] = (facts.catalogue.sql("SELECT sum(token_count) AS n FROM samples", snapshot.version)[0]["n"], "1")
    for name, (value, unit) in numbers.items():
        ctx.number(name, value, unit)
    ctx.log(f"version {snapshot.version} of the store has SHA-256 {snapshot.sha256}")
    with ctx.phase("card"):
        pictures.record(ctx, facts, summary.rejects if summary else {})
        _files(config, ctx, facts, summary)


def _ingest(config: Config, ctx: Context) -> Any:
    """Run the pipeline; return its summary, or None when it was stopped and a checkpoint was made."""
    from gewu.data.pipeline import Pipeline

    with ctx.phase("looking at the source"):
        source = source_of(config)
        stages, dedup = stages_of(config, source.schema)
        old = (*source.schema.names, config.text)
        new = [field for field in _through(stages, source.schema) if field.name not in old]
        added = [field.name for field in new if field.type.scalar or field.type.kind == "text"]
        pipeline = Pipeline(
            source, stages, Path(config.store), columns=[*added, *config.columns], dedup=dedup, shard_bytes=config.shard_mb << 20,
            compression=config.compression, most_rejects=config.most_rejects, note=config.description,
        )  # fmt: skip
    workers = config.workers or cores()
    executor = "serial" if config.executor == "processes" and min(workers, len(source.pieces)) == 1 else config.executor
    ctx.log(f"{source.kind}: {len(source.pieces)} pieces, {workers} workers ({executor}), into {config.store}")
    with ctx.phase("pieces"):
        summary = pipeline.run(workers, executor, ctx.progress, lambda: ctx.stop_requested, config.scheduler, config.restart)
    if summary.version == 0 or ctx.stop_requested:
        ctx.checkpoint({"pieces": summary.done})
        return None
    return summary


def _files(config: Config, ctx: Context, facts: Any, summary: Any) -> None:
    """Write the card, samples for the report, the first examples of refusals, and a structure if samples have one."""
    from gewu.data.card import metadata

    name = Path(config.store or config.source[0]).stem
    about: dict[str, Any] = {"datePublished": datetime.now(UTC).date().isoformat()}
    about["license"] = config.licence if isinstance(config.licence, str) else sorted({*config.licence.values()})
    about["creator"] = {"@type": "sc:Organization", "name": config.creator} if config.creator else None
    card = metadata(facts, name, config.description or name, **about)
    ctx.file("card.json", json.dumps(card, indent=1, ensure_ascii=False).encode())
    rows = [{key: pictures.shown(value) for key, value in sample.items()} for sample in facts.samples]
    ctx.file("samples.json", json.dumps(rows, ensure_ascii=False).encode("utf-8", "backslashreplace"))
    if summary and summary.rejects:
        lines = (
            "\n    ".join([f"{n} {reason}", *summary.examples[reason]]) + "\n" for reason, n in sorted(summary.rejects.items())
        )
        ctx.file("rejects.txt", "".join(lines).encode("utf-8", "backslashreplace"))
    shapes = [sample for sample in facts.samples if sample.get("cell") is not None and {"numbers", "positions"} <= sample.keys()]
    if shapes:
        largest = max(shapes, key=lambda sample: len(sample["numbers"]))
        frame = {key: largest[key] for key in ("numbers", "positions", "cell")} | {"pbc": np.ones(3, bool)}
        ctx.file("structure.extxyz", frame_bytes(frame, ()))


def recognise(path: Path) -> dict[str, Any] | None:
    """Return the `[data]` table for files and folders of samples, or None for other files."""
    from gewu.data import convert

    kind = convert.format_of(path)
    if kind is None:
        return None
    table: dict[str, Any] = {"source": [str(path)], "format": kind}
    if kind != "store" or path.is_file():
        table["store"] = f"{path.resolve().name.split('.')[0] or 'samples'}.store"
    if kind == "folder":
        pictured = "image" in convert.source(path, kind, group_files=100).schema
        table["stages"] = ["check-images"] if pictured else list(CLEANING)
    return table


def figures(result: Any) -> Iterator[Figure]:
    """Yield the figures of a report."""
    return pictures.figures(result)
