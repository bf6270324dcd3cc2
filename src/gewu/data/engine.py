"""The engine `data`: from files, folders, archives or results to a store, and a report on what it holds.

The chain is `convert.source` → stages, in the order of the job → near-duplicates → `Pipeline` (processes, receipts) → a version
of the store → its card. The store lies where the job says and outlives the result: a run that was killed goes on with the pieces
that have no receipt, and a later run of the same job does only what is new.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from gewu.core import schema
from gewu.core.context import Context
from gewu.core.errors import InputError
from gewu.core.figure import Figure
from gewu.core.machine import cores
from gewu.data import figures as pictures
from gewu.data.executors import EXECUTORS
from gewu.data.fields import Schema
from gewu.data.piece import Source
from gewu.data.stages import Numbered, Origin, Split
from gewu.formats.elements import ATOMIC_NUMBER
from gewu.formats.extxyz import extxyz_bytes
from gewu.formats.structure import Structure

SUMMARY: Final = "Data sets: files, folders, archives and results, cleaned and packed into a store"
REFERENCES: Final = {
    "croissant2024": """@inproceedings{croissant2024,
  author = {Akhtar, Mubashara and Benjelloun, Omar and Conforti, Costanza and others},
  title = {Croissant: A Metadata Format for {ML}-Ready Datasets},
  booktitle = {Workshop on Data Management for End-to-End Machine Learning}, year = {2024}, doi = {10.1145/3650203.3663326}
}""",
    "minhash1997": """@inproceedings{minhash1997,
  author = {Broder, Andrei Z.}, title = {On the Resemblance and Containment of Documents},
  booktitle = {Compression and Complexity of Sequences}, pages = {21}, year = {1997}, doi = {10.1109/SEQUEN.1997.666900}
}""",
    "gopher2021": """@article{gopher2021,
  author = {Rae, Jack W. and others}, title = {Scaling Language Models: Methods, Analysis \\& Insights from Training Gopher},
  journal = {arXiv:2112.11446}, year = {2021}
}""",
}
FORMATS: Final = ("auto", "jsonl", "parquet", "arrow", "webdataset", "mds", "folder", "results", "extxyz", "store")
STAGES: Final = (
    "unpack",
    "decode",
    "plain",
    "normalise",
    "language",
    "quality",
    "pii",
    "dedup",
    "tokenise",
    "check-images",
    "per-atom",
)
TEXT_STAGES: Final = ("unpack", "decode", "plain", "normalise", "language", "quality", "pii", "dedup")
ADDED: Final = ("source", "licence", "label", "language", "quality", "masked", "split", "atoms", "energy_per_atom")
"""Fields of stages that belong into the catalogue."""


@dataclass(frozen=True)
class Config:
    """The `[data]` table of a job."""

    source: tuple[str, ...] = schema.field(
        file=True, folder=True, meaning="files, folders, archives, results or stores of one kind",
        absent="for the documents of examples/ingest-docs.toml run `make documents` first",
    )  # fmt: skip
    store: str = schema.field(meaning="folder to put the samples in, NAME.store, from where gewu runs; what it has is kept")
    format: str = schema.field("auto", choices=FORMATS, meaning="what the source is; auto looks at its first files")
    stages: tuple[str, ...] = schema.field((), choices=STAGES, meaning="what is done with each sample, in this order")
    text: str = schema.field("text", meaning="field that the stages for text work on")
    languages: tuple[str, ...] = schema.field((), meaning="languages to keep (ISO 639-1); none given: all")
    least_words: int = schema.field(50, minimum=0, meaning="quality: a text of fewer words is refused")
    similarity: float = schema.field(0.8, minimum=0.1, maximum=1.0, meaning="dedup: Jaccard similarity of near-duplicates")
    tokenizer: str = schema.field("", file=True, meaning="tokenise: a tokenizer.json; none given: bytes")
    where: str = schema.field("", meaning="of a store: SQL condition on its columns, such as language = 'de'")
    columns: tuple[str, ...] = schema.field((), meaning="further fields that belong into the catalogue")
    validation: float = schema.field(
        0.0, minimum=0.0, maximum=0.9, meaning="share of samples marked as validation, by their hash"
    )
    licence: str | dict[str, str] = schema.field(
        "", meaning="licence of the samples, or a table of licences by folder of the source"
    )
    description: str = schema.field("", meaning="a sentence on the data set, for its card")
    creator: str = schema.field("", meaning="who made the data set, for its card")
    url: str = schema.field("", meaning="where the data set is found, for its card")
    most_rejects: float = schema.field(1.0, minimum=0.0, maximum=1.0, meaning="largest share of samples that may be refused")
    piece_files: int = schema.field(1000, minimum=1, meaning="of a folder: files that one process takes at a time", expert=True)
    shard_mb: int = schema.field(256, unit="MB", minimum=1, maximum=4096, meaning="size at which a shard is full", expert=True)
    compression: str = schema.field("none", choices=("none", "sample", "block"), meaning="of shards, by zstd", expert=True)
    workers: int = schema.field(0, minimum=0, meaning="processes; 0 takes all usable cores", expert=True)
    executor: str = schema.field("processes", choices=EXECUTORS, meaning="where the work is done", expert=True)
    scheduler: str = schema.field("", meaning="dask: address or file of its scheduler; none given: one here", expert=True)
    seed: int = schema.field(1, minimum=0, meaning="chooses the samples of the validation share", expert=True)
    sample_rows: int = schema.field(6, minimum=0, maximum=100, meaning="samples that the card shows", expert=True)

    def check(self) -> None:
        """Refuse keys that ask for a stage which is not there."""
        for key, stage in (("languages", "language"), ("tokenizer", "tokenise")):
            if getattr(self, key) and stage not in self.stages:
                raise InputError(f"needs the stage {stage!r}", key=key, value=getattr(self, key), hint=f"add {stage!r} to stages")
        if len(set(self.stages)) < len(self.stages):
            raise InputError("names a stage twice", key="stages", value=self.stages)
        if not self.store:
            raise InputError("must name a folder", key="store", value=self.store)


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
        kind = convert.format_of(path) if config.format == "auto" else config.format
        known = sources[0].schema if sources and kind not in ("folder", "store") else None
        if kind == "store" and (Path(path) / "versions").is_dir():
            with closing(Catalogue(path).open(where=config.where or None, on_damage="skip")) as store:
                sources.append(source_from(store))
        else:
            options: dict[str, Any] = {}
            if kind == "folder":
                options = {"group_files": config.piece_files, "content": "bytes" if "decode" in config.stages else "auto"}
            sources.append(convert.source(path, kind, schema=known, **options))
        if sources[-1].schema != sources[0].schema:
            allowed = ", ".join(f"{field.name}: {field.type}" for field in sources[0].schema)
            raise InputError(
                "holds other fields than the first source", file=path, value=sources[-1].schema.names, allowed=allowed
            )
    first = sources[0]
    if len(sources) == 1:
        return first
    pieces = [Numbered(piece, number) for number, each in enumerate(sources) for piece in each.pieces]
    return Source(first.schema, pieces, first.kind, first.columns)


def stages_of(config: Config, schema: Schema) -> tuple[list[Any], Any]:
    """Return the stages of the job for samples of a schema, and what finds near-duplicates (None when nothing shall).

    Raises:
        InputError: a stage needs a field that is not there.
    """
    field = config.text
    blob = next((f.name for f in schema if f.type.kind == "bytes"), "data")
    picture = next((f.name for f in schema if f.type.kind == "image"), "image")
    made: dict[str, tuple[str, str, tuple[Any, ...], dict[str, Any]]] = {
        "unpack": ("stages", "Unpack", (blob,), {}),
        "decode": ("text", "Decode", (blob, field), {"fallback": "cp1252"}),
        "plain": ("text", "Plain", (field,), {}),
        "normalise": ("text", "Normalise", (field,), {}),
        "language": ("text", "Language", (config.languages, field), {}),
        "quality": ("text", "Quality", (field,), {"words": (config.least_words, 1_000_000)}),
        "pii": ("pii", "MaskPII", (field,), {"column": "masked"}),
        "dedup": ("minhash", "Dedup", (field, config.similarity), {}),
        "tokenise": ("tokens", "Tokenise", (config.tokenizer, field), {}),
        "check-images": ("images", "CheckImage", (picture,), {}),
        "per-atom": ("stages", "PerAtom", (), {}),
    }

    def make(name: str) -> Any:
        module, kind, arguments, options = made[name]
        return getattr(import_module(f"gewu.data.{module}"), kind)(*arguments, **options)

    stages = [make(name) for name in config.stages if name != "dedup"]
    licences = config.licence if isinstance(config.licence, dict) else {"": config.licence} if config.licence else {}
    if licences:
        stages.append(Origin(tuple(licences.items()), "path" in schema))
    if config.validation:
        stages.append(Split(config.validation, config.seed, _through(stages, schema).with_fields({}, without=("path",))))
    return stages, make("dedup") if "dedup" in config.stages else None


def _through(stages: list[Any], schema: Schema) -> Schema:
    for stage in stages:
        schema = stage.schema(schema) if hasattr(stage, "schema") else schema
    return schema


def run(config: Config, ctx: Context) -> None:
    """Bring the store up to date, and record what it holds."""
    from gewu.data import card
    from gewu.data.pipeline import DUPLICATE, Pipeline

    if ctx.ranks.size > 1:
        raise InputError("runs in one process, which starts its own", key="data.workers", hint="leave mpirun away, or use dask")
    ctx.cite(
        "croissant2024", *(key for stage, key in (("dedup", "minhash1997"), ("quality", "gopher2021")) if stage in config.stages)
    )
    with ctx.phase("looking at the source"):
        source = source_of(config)
        stages, dedup = stages_of(config, source.schema)
        final = _through(stages, source.schema)
        extra = [name for name in ADDED if name in final and name not in source.columns]
        pipeline = Pipeline(
            source, stages, Path(config.store), columns=[*extra, *config.columns], dedup=dedup, shard_bytes=config.shard_mb << 20,
            compression=config.compression, most_rejects=config.most_rejects, note=config.description,
        )  # fmt: skip
    workers = config.workers or cores()
    executor = "serial" if config.executor == "processes" and min(workers, len(source.pieces)) == 1 else config.executor
    ctx.log(f"{source.kind}: {len(source.pieces)} pieces, {workers} workers ({executor}), into {config.store}")
    begin, fresh = time.perf_counter(), not Path(config.store, "receipts").exists()
    with ctx.phase("pieces"):
        summary = pipeline.run(workers, executor, ctx.progress, lambda: ctx.stop_requested, config.scheduler)
    if summary.version == 0 or ctx.stop_requested:
        ctx.checkpoint({"pieces": summary.done})
        return
    seconds = time.perf_counter() - begin
    with ctx.phase("looking at the store"):
        facts = card.describe(config.store, summary.version, config.sample_rows)
    _numbers(ctx, summary, facts, summary.rejects.get(DUPLICATE, 0), seconds if fresh else 0.0)
    with ctx.phase("card"):
        pictures.record(ctx, facts, summary.rejects)
        _files(config, ctx, facts, summary)


def _numbers(ctx: Context, summary: Any, facts: Any, duplicates: int, seconds: float) -> None:
    ctx.number("samples", summary.samples_out, "1")
    ctx.number("samples_read", summary.samples_in, "1")
    ctx.number("rejected", sum(summary.rejects.values()) - duplicates, "1")
    ctx.number("duplicates", duplicates, "1")
    ctx.number("size_mb", facts.snapshot.bytes / 1e6, "MB")
    ctx.number("mean_length_b", facts.snapshot.raw_bytes / max(1, facts.snapshot.samples), "B")
    ctx.number("shards", facts.snapshot.shards, "1")
    ctx.number("version", facts.snapshot.version, "1")
    if seconds:
        ctx.number("performance_samples_s", summary.samples_in / seconds, "1/s")
    ctx.log(f"version {facts.snapshot.version} of the store has SHA-256 {facts.snapshot.sha256}")


def _files(config: Config, ctx: Context, facts: Any, summary: Any) -> None:
    """Write the card, as Croissant and as a page, the first examples of refusals, and a structure if samples have one."""
    from gewu.data import card

    name = Path(config.store).stem
    licences = config.licence if isinstance(config.licence, str) else sorted({*config.licence.values()})
    creator = {"@type": "sc:Organization", "name": config.creator} if config.creator else None
    about = {"license": licences, "creator": creator, "url": config.url, "datePublished": datetime.now(UTC).date().isoformat()}
    described = card.croissant(facts, name, config.description or f"{name}, made by gewu", **about)
    ctx.file("card.json", json.dumps(described, indent=1, ensure_ascii=False).encode())
    ctx.file("dataset.html", card.page(facts, name, config.description, summary.rejects).encode())
    lines = [
        f"{count} {reason}" + "".join(f"\n    {where}" for where in summary.examples[reason])
        for reason, count in sorted(summary.rejects.items())
    ]
    ctx.file("rejects.txt", ("\n".join(lines) or "no sample was refused").encode("utf-8", "backslashreplace") + b"\n")
    fields = {"numbers", "positions", "cell"}
    shapes = [sample for sample in facts.samples if fields <= sample.keys() and sample["cell"] is not None]
    if shapes:
        largest = max(shapes, key=lambda sample: len(sample["numbers"]))
        symbols = {number: symbol for symbol, number in ATOMIC_NUMBER.items()}
        kinds = tuple(symbols[int(number)] for number in largest["numbers"])
        structure = Structure(largest["cell"], kinds, largest["positions"] @ np.linalg.inv(largest["cell"]))
        ctx.file("structure.extxyz", extxyz_bytes([structure]))


def recognise(path: Path) -> dict[str, Any] | None:
    """Return the `[data]` table for files and folders of samples, or None for other files."""
    from gewu.data import convert

    kind = convert.format_of(path)
    if kind is None:
        return None
    table: dict[str, Any] = {
        "source": [str(path)],
        "store": f"{path.resolve().name.split('.')[0] or 'samples'}.store",
        "format": kind,
    }
    if kind == "folder":
        inside = {field.name for field in convert.source(path, kind, group_files=100).schema}
        table["stages"] = ["check-images"] if "image" in inside else list(TEXT_STAGES)
    return table


def figures(result: Any) -> Iterator[Figure]:
    """Yield the figures of a report."""
    return pictures.figures(result)
