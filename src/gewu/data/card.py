"""What a store holds, for people and programs: facts, metadata in the Croissant format, and a page that needs nothing else.

Columns of the catalogue are counted in full by SQL, in memory that does not grow with the samples; fields that are arrays of real
numbers are judged by a thousand samples spread evenly. Text of samples is escaped; pictures are drawn anew, small, so that the
page never holds a file of the data. Reference: Croissant format 1.0, docs.mlcommons.org/croissant/docs/croissant-spec.html.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Final, NamedTuple

import numpy as np

from gewu.data.catalogue import Catalogue, Snapshot
from gewu.data.fields import Field, Type
from gewu.data.shard import SUFFIX, ShardInfo

BINS, SPREAD, MOST_VALUES, MOST_FILES = 40, 1000, 1000, 1000
EXCERPT, THUMBNAIL, MOST_PIXELS = 600, 128, 1 << 26
_HERE: Final = Path(__file__).parent
_TYPES: Final = {"string": "text", "float": "float32", "double": "float64"}
"""Types of columns whose names differ from those of fields."""


class Histogram(NamedTuple):
    """How often values fall between edges: edges float64[n + 1], counts int64[n]; the unit and meaning of the values."""

    edges: Any
    counts: Any
    unit: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class Facts:
    """What a version of a store holds.

    Attributes:
        root: folder of the store.
        snapshot, shards: the version and its shards.
        labels: of each text column with few values the (value, samples, bytes), the most frequent first.
        histograms: of `length` (logarithmic), columns of numbers, and fields that are arrays of real numbers.
        samples: some of them, spread evenly.
    """

    root: Path
    snapshot: Snapshot
    shards: list[ShardInfo]
    labels: dict[str, list[tuple[str, int, int]]]
    histograms: dict[str, Histogram]
    samples: list[dict[str, Any]]


def describe(root: str | Path, version: int | None = None, rows: int = 6) -> Facts:
    """Look at a store.

    Args:
        root: the folder, NAME.store.
        version: None for the newest.
        rows: how many samples to show.

    Raises:
        InputError: there is no such store or version.
        StoreError: it is damaged.
    """
    catalogue = Catalogue(root)
    snapshot = catalogue.snapshot(version)
    labels: dict[str, list[tuple[str, int, int]]] = {}
    histograms: dict[str, Histogram] = {}
    if not snapshot.samples:
        return Facts(catalogue.root, snapshot, [], labels, histograms, [])

    def ask(query: str) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in catalogue.sql(query, snapshot.version)]

    for name, kind in snapshot.columns.items():
        if kind in ("string", "text", "bool"):
            ((several,),) = ask(f'SELECT approx_count_distinct("{name}") AS n FROM samples')
            if several <= MOST_VALUES:
                value = f"coalesce(CAST(\"{name}\" AS VARCHAR), '')"
                query = f"SELECT {value} AS v, count(*) AS n, sum(length) AS b FROM samples GROUP BY 1 ORDER BY n DESC, v"
                labels[name] = [(str(value), int(count), int(size)) for value, count, size in ask(query)]
        elif name != "hash":
            field = snapshot.schema[name] if name in snapshot.schema else Field(name, Type.parse(_TYPES.get(kind, kind)))
            if (found := _column(ask, name, field)) is not None:
                histograms[name] = found
    with closing(catalogue.open(snapshot.version, on_damage="skip")) as store:
        histograms |= _arrays(store)
        shown = store.read(np.unique(np.linspace(0, len(store) - 1, rows).astype(np.int64)))
    whole = [sample for sample in shown if sample is not None]
    return Facts(catalogue.root, snapshot, catalogue.shards(snapshot.version), labels, histograms, whole)


def _arrays(store: Any) -> dict[str, Histogram]:
    """Count the entries of fields that are arrays of real numbers, in samples spread evenly; where atoms are says nothing."""
    spread, found = np.unique(np.linspace(0, len(store) - 1, SPREAD).astype(np.int64)), {}
    for field in (store.schema[name] for name in store.schema.names if name not in ("positions", "cell")):
        if field.type.kind == "array" and field.type.shape and "float" in field.type.dtype:
            parts = store.batch(spread, [field.name])[field.name]
            values = np.concatenate([np.asarray(part, np.float64).ravel() for part in parts] or [np.zeros(0)])
            values = values[np.isfinite(values)]
            if len(values):
                counts, edges = np.histogram(values, BINS)
                found[field.name] = Histogram(edges, counts, field.unit, field.meaning)
    return found


def _column(ask: Any, name: str, field: Field) -> Histogram | None:
    """Count the values of a column between even edges, those of `length` between powers of two."""
    x = f'CAST("{name}" AS DOUBLE)'
    x = f"log2(greatest({x}, 1))" if name == "length" else x
    ((low, high),) = ask(f"SELECT min({x}) AS low, max({x}) AS high FROM samples WHERE isfinite({x})")
    if low is None:
        return None
    width = (high - low) / BINS or 1.0
    bins = f"least({BINS - 1}, CAST(floor(({x} - {low!r}) / {width!r}) AS INTEGER))"
    counts = np.zeros(BINS, np.int64)
    for k, count in ask(f"SELECT {bins} AS k, count(*) AS n FROM samples WHERE isfinite({x}) GROUP BY 1"):
        counts[k] = count
    edges = low + width * np.arange(BINS + 1)
    meaning = field.meaning or ("bytes of the stored sample" if name == "length" else "")
    return Histogram(np.exp2(edges) if name == "length" else edges, counts, "B" if name == "length" else field.unit, meaning)


def _data_type(kind: Type) -> str:
    if kind.item is not None:
        return _data_type(kind.item)
    if kind.kind != "array":
        return {"text": "sc:Text", "image": "sc:ImageObject"}.get(kind.kind, "sc:MediaObject")
    return "sc:Boolean" if kind.dtype == "bool" else "sc:Integer" if "int" in kind.dtype else "sc:Float"


def croissant(facts: Facts, name: str, description: str, **about: Any) -> dict[str, Any]:
    """Return the metadata of a store as a JSON-LD object of the Croissant format 1.0, places relative to the store's folder.

    Args:
        facts: of `describe`.
        name, description: of the data set.
        about: further properties of schema.org: `license`, `creator`, `datePublished`, `url`, `citeAs`, `keywords` ...
    """
    snapshot = facts.snapshot
    files = [(f"manifests/{m.name}", (facts.root / "manifests" / m.name).stat().st_size, m.sha256) for m in snapshot.manifests]
    files += [(f"shards/{s.name}", s.bytes, s.sha256) for s in facts.shards[:MOST_FILES]]
    distribution = [_file(*file) for file in files]
    distribution += [_files("shards", "shards/*.gws", "application/x-gewu-shard")]
    distribution += [_files("parts", "catalogue/*.parquet", "application/x-parquet")]
    fields = [_field("samples", "shards", field) for field in snapshot.schema]
    columns = [
        _field("catalogue", "parts", Field(name, Type.parse(_TYPES.get(kind, kind)))) for name, kind in snapshot.columns.items()
    ]
    sets = {"samples": ("the samples, one record each", fields), "catalogue": ("facts on the samples, in their order", columns)}
    return {
        "@context": json.loads(_HERE.joinpath("croissant.json").read_text(encoding="utf-8")),
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": description,
        "version": f"{snapshot.version}.0.0",
        "identifier": f"sha256:{snapshot.sha256}",
        **{key: value for key, value in about.items() if value},
        "distribution": distribution,
        "recordSet": [{"@type": "cr:RecordSet", "@id": key, "name": key, "description": text, "field": rows}
                      for key, (text, rows) in sets.items()],
    }  # fmt: skip


def _file(place: str, size: int, sha256: str) -> dict[str, Any]:
    kind = "application/x-gewu-shard" if place.endswith(SUFFIX) else "application/x-parquet"
    about = {"@type": "cr:FileObject", "@id": place, "name": place, "contentUrl": place, "contentSize": f"{size} B"}
    return about | {"encodingFormat": kind, "sha256": sha256}


def _files(name: str, pattern: str, kind: str) -> dict[str, Any]:
    return {"@type": "cr:FileSet", "@id": name, "name": name, "includes": pattern, "encodingFormat": kind}


def _field(record: str, files: str, field: Field) -> dict[str, Any]:
    text = "; ".join(part for part in (field.meaning, f"type {field.type}", field.unit and f"unit {field.unit}") if part)
    source = {"fileSet": {"@id": files}, "extract": {"column": field.name}}
    about = {"@type": "cr:Field", "@id": f"{record}/{field.name}", "name": field.name, "description": text}
    repeated = {"repeated": True} if field.type.kind == "list" or field.type.shape else {}
    return about | {"dataType": _data_type(field.type), "source": source} | repeated


def page(facts: Facts, name: str, description: str = "", rejects: Mapping[str, int] | None = None) -> str:
    """Return a page on a store: counts, sizes, fields with units, histograms, refusals by reason, samples.

    Args:
        facts: of `describe`.
        name, description: of the data set.
        rejects: how many samples were refused, by reason.
    """
    snapshot = facts.snapshot
    sizes = f"{snapshot.samples:,} samples in {snapshot.shards:,} shards, {snapshot.bytes / 1e6:,.1f} MB"
    parts = [f"<header><h1>{_text(name)}</h1><p>{sizes}; version {snapshot.version}.</p><p>{_text(description)}</p></header>"]
    rows = [(field.name, field.type, field.unit, field.meaning) for field in snapshot.schema]
    parts.append(_table("Fields", ("name", "type", "unit", "meaning"), rows))
    parts += [_table(f"By {column}", (column, "samples", "bytes"), found[:BINS]) for column, found in facts.labels.items()]
    parts += [_figure(column, histogram) for column, histogram in facts.histograms.items()]
    if rejects:
        parts.append(_table("Refused", ("reason", "samples"), sorted(rejects.items(), key=lambda row: -row[1])))
    for number, sample in enumerate(facts.samples):
        cells = "".join(f'<tr><td class="name">{_text(key)}</td><td>{shown(value)}</td></tr>' for key, value in sample.items())
        parts.append(("<h2>Samples</h2>" if number == 0 else "") + f"<table>{cells}</table>")
    parts.append(f"<footer>SHA-256 of this version: {snapshot.sha256}</footer>")
    template = Template(_HERE.joinpath("card.html").read_text(encoding="utf-8"))
    return template.substitute(title=_text(name), body="\n".join(parts))


def _text(value: Any) -> str:
    return escape("".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(value)))


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cell(tag: str, value: Any, number: bool) -> str:
        return f"<{tag}{' class=value' * number}>{_text(f'{value:,}' if isinstance(value, int) else value)}</{tag}>"

    top = "".join(cell("th", name, isinstance(value, int)) for name, value in zip(head, rows[0], strict=True))
    body = ("".join(cell("td", value, isinstance(value, int)) for value in row) for row in rows)
    return f"<h2>{_text(title)}</h2><table><tr>{top}</tr>" + "".join(f"<tr>{row}</tr>" for row in body) + "</table>"


def _figure(name: str, histogram: Histogram) -> str:
    """Draw a histogram as SVG; bars of counts, the first and last edge below."""
    most, width = max(1, int(histogram.counts.max())), 600 / len(histogram.counts)
    heights = [120 * count / most for count in histogram.counts.tolist()]
    bars = "".join(
        f'<rect x="{k * width:.1f}" y="{120 - tall:.1f}" width="{width - 1:.1f}" height="{tall:.1f}"/>'
        for k, tall in enumerate(heights)
    )
    low, high = (f"{edge:.4g}" for edge in (histogram.edges[0], histogram.edges[-1]))
    ends = f'<text y="136">{low}</text><text x="600" y="136" text-anchor="end">{high}</text>'
    unit, caption = f" ({_text(histogram.unit)})" * bool(histogram.unit), f"<figcaption>{_text(histogram.meaning)}</figcaption>"
    return f'<figure><h2>{_text(name)}{unit}</h2><svg viewBox="0 0 600 140">{bars}{ends}</svg>{caption}</figure>'


def shown(value: Any) -> str:
    """Return a value of a sample as HTML: an excerpt of text, a small picture, the first numbers of an array."""
    if isinstance(value, bytes | memoryview):
        drawn = thumbnail(bytes(value))
        what = f"{len(value):,} bytes"
        return f'<img alt="{what}" src="data:image/png;base64,{base64.b64encode(drawn).decode()}">' if drawn else what
    if isinstance(value, np.ndarray):
        first = ", ".join(f"{number:.6g}" for number in value.ravel()[:12].tolist())
        return f"{value.dtype}{list(value.shape)}: {first}{' …' if value.size > 12 else ''}"
    text = str(value)
    return f"<pre>{_text(text[:EXCERPT])}{' …' if len(text) > EXCERPT else ''}</pre>"


def thumbnail(data: bytes) -> bytes | None:
    """Return a small PNG of an encoded picture; None for what is no picture, is too large, or without Pillow."""
    try:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                return None
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            sink = io.BytesIO()
            picture.convert("RGB").save(sink, "PNG")
            return sink.getvalue()
    except Exception:  # whatever a damaged picture makes a decoder raise
        return None
