"""What a store holds, for a report and for programs: facts, and metadata in the Croissant format.

Columns of the catalogue are counted in full by SQL, in memory that does not grow with the samples; fields that are arrays of real
numbers are judged by a thousand samples spread evenly.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from gewu.data.catalogue import Catalogue, Snapshot
from gewu.data.fields import Field, Type
from gewu.formats.croissant import Described, croissant

BINS, SPREAD, MOST_VALUES, MOST_FILES = 40, 1000, 1000, 1000
_TYPES: Final = {
    "string": "text",
    "float": "float32",
    "double": "float64",
}  # of columns, where their names differ from those of fields


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
        catalogue, snapshot: the store and the version.
        labels: of each column of text with few values the (value, samples), the most frequent first.
        histograms: of `length` (logarithmic), columns of numbers, and fields that are arrays of real numbers.
        samples: some of them, spread evenly.
    """

    catalogue: Catalogue
    snapshot: Snapshot
    labels: dict[str, list[tuple[str, int]]]
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
    facts = Facts(catalogue, snapshot, {}, {}, [])
    if not snapshot.samples:
        return facts

    def ask(query: str) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in catalogue.sql(query, snapshot.version)]

    for name, kind in snapshot.columns.items():
        if kind in ("string", "text", "bool"):
            if ask(f'SELECT approx_count_distinct("{name}") AS n FROM samples')[0][0] <= MOST_VALUES:
                value = f"coalesce(CAST(\"{name}\" AS VARCHAR), '')"
                facts.labels[name] = ask(f"SELECT {value} AS v, count(*) AS n FROM samples GROUP BY 1 ORDER BY n DESC, v")
        elif name != "hash":
            field = snapshot.schema[name] if name in snapshot.schema else Field(name, Type("array", kind))
            if (found := _column(ask, name, field)) is not None:
                facts.histograms[name] = found
    with closing(catalogue.open(version=snapshot.version, on_damage="skip")) as store:
        facts.histograms.update(_arrays(store))
        facts.samples.extend(sample for sample in store.read(_spread(store, rows)) if sample is not None)
    return facts


def _spread(store: Any, count: int) -> Any:
    return np.unique(np.linspace(0, len(store) - 1, count).astype(np.int64))


def _column(ask: Any, name: str, field: Field) -> Histogram | None:
    """Count the values of a column between even edges, those of `length` between powers of two."""
    x = f'CAST("{name}" AS DOUBLE)'
    x = f"log2(greatest({x}, 1))" if name == "length" else x
    ((low, high),) = ask(f"SELECT min({x}) AS low, max({x}) AS high FROM samples WHERE isfinite({x})")
    if low is None:
        return None
    width, counts = (high - low) / BINS or 1.0, np.zeros(BINS, np.int64)
    number = f"least({BINS - 1}, CAST(floor(({x} - {low!r}) / {width!r}) AS INTEGER))"
    for k, count in ask(f"SELECT {number} AS k, count(*) AS n FROM samples WHERE isfinite({x}) GROUP BY 1"):
        counts[k] = count
    edges = low + width * np.arange(BINS + 1)
    return Histogram(np.exp2(edges), counts, "B", "") if name == "length" else Histogram(edges, counts, field.unit, field.meaning)


def _arrays(store: Any) -> dict[str, Histogram]:
    """Count the entries of fields that are arrays of real numbers, in samples spread evenly; where atoms are says nothing."""
    numbers, found = _spread(store, SPREAD), {}
    for field in (store.schema[name] for name in store.schema.names if name not in ("positions", "cell")):
        if field.type.kind == "array" and field.type.shape and "float" in field.type.dtype:
            parts = [np.asarray(part, np.float64).ravel() for part in store.batch(numbers, [field.name])[field.name]]
            values = np.concatenate([part[np.isfinite(part)] for part in parts] or [np.zeros(0)])
            if len(values):
                counts, edges = np.histogram(values, BINS)
                found[field.name] = Histogram(edges, counts, field.unit, field.meaning)
    return found


def _described(field: Field) -> Described:
    kind = field.type
    while kind.item is not None:
        kind = kind.item
    number = "sc:Boolean" if kind.dtype == "bool" else "sc:Integer" if "int" in kind.dtype else "sc:Float"
    name = {"text": "sc:Text", "image": "sc:ImageObject", "bytes": "sc:MediaObject"}.get(kind.kind, number)
    text = "; ".join(filter(None, (field.meaning, f"type {field.type}", field.unit and f"unit {field.unit}")))
    return Described(field.name, text, name, bool(kind.shape) or "list" in str(field.type))


def metadata(facts: Facts, name: str, description: str, **about: Any) -> dict[str, Any]:
    """Return the description of a store in the Croissant format, places relative to the store's folder.

    Args:
        facts: of `describe`.
        name, description, about: as of `formats.croissant`.
    """
    snapshot, root = facts.snapshot, facts.catalogue.root
    files = [(f"manifests/{m.name}", (root / "manifests" / m.name).stat().st_size, m.sha256) for m in snapshot.manifests]
    files += [(f"shards/{s.name}", s.bytes, s.sha256) for s in facts.catalogue.shards(snapshot.version)[:MOST_FILES]]
    columns = [Field(column, Type.parse(_TYPES.get(kind, kind))) for column, kind in snapshot.columns.items()]
    records = {"shards": [*map(_described, snapshot.schema)], "catalogue": [*map(_described, columns)]}
    kinds = dict.fromkeys(("manifests", "catalogue"), "application/x-parquet") | {"shards": "application/x-gewu-shard"}
    identity = (f"{snapshot.version}.0.0", f"sha256:{snapshot.sha256}")
    return croissant(name, description, *identity, files, records, kinds, **about)
