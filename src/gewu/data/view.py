"""Views: the samples of a version for which an SQL condition holds, found by DuckDB in the columns, without copying data.

A condition is first turned into one on the least and greatest values of each shard, or on its set of values, which the manifests
hold: `quality > 0.5` becomes `max.quality > 0.5`. Shards where it does not hold are never opened. AND, OR, BETWEEN, IN and
comparisons of a column with a constant are understood; all else may hold anywhere. The parts of the other shards are checked and
scanned in order, some million rows at a time. A view holds 16 bytes a shard of the version and 4 bytes a selected sample, none
for those of a shard that is selected as a whole. What the text of a user may say, and how DuckDB is locked: `gewu.formats.sql`.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from gewu.core.crc32c import crc32c
from gewu.core.errors import InputError, StoreError
from gewu.core.files import write_atomic
from gewu.core.machine import extra
from gewu.data.catalogue import Catalogue, Snapshot, bytes_of, part_path
from gewu.data.shard import SUFFIX
from gewu.formats.sql import LockedSql

_BATCH_ROWS: Final = 4_000_000
_MOST_ROWS: Final = 1_000_000
_ABOUT: Final = b"gewu view"
_ROWS: Final = "SELECT file_index, file_row_number"


@dataclass(frozen=True, eq=False)
class View:
    """Samples of a version, in order.

    Attributes:
        catalogue, snapshot: where they are.
        condition: what selected them; None for all.
        sizes, counts: of each shard of the version its samples and how many of them are selected, int64.
        rows: numbers in their shards of the selected samples, uint32; none for a shard that is selected as a whole.
    """

    catalogue: Catalogue
    snapshot: Snapshot
    condition: str | None
    sizes: Any
    counts: Any
    rows: Any

    def __len__(self) -> int:
        return int(self.counts.sum())

    def indices(self) -> Any:
        """Return the numbers of the samples in the version, uint64[len(self)]."""
        before = np.cumsum(self.counts) - self.counts
        rows = np.arange(len(self)) - np.repeat(before, self.counts)
        rows[np.repeat(self.counts < self.sizes, self.counts)] = self.rows
        return (rows + np.repeat(np.cumsum(self.sizes) - self.sizes, self.counts)).astype(np.uint64)

    def store(self, **options: Any) -> Any:
        """Open the samples as a `Store`, or as a subset of one; options as of `Catalogue.open`."""
        store = self.catalogue.open(version=self.snapshot.version, **options)
        return store if len(self) == self.snapshot.samples else store.subset(self.indices())

    def save(self, path: str | Path) -> None:
        """Write the view as Parquet: which version, which condition, which samples; an existing file is replaced."""
        pa, sink = extra("pyarrow"), io.BytesIO()
        about = json.dumps({"version": self.snapshot.version, "sha256": self.snapshot.sha256, "condition": self.condition})
        ends = np.cumsum(np.where(self.counts < self.sizes, self.counts, 0))
        rows = pa.LargeListArray.from_arrays(np.concatenate([[0], ends]), self.rows)
        table = pa.table({"samples": self.sizes, "count": self.counts, "rows": rows}).replace_schema_metadata({_ABOUT: about})
        packed = {"column_encoding": {"rows.list.element": "DELTA_BINARY_PACKED"}, "use_dictionary": False, "compression": "zstd"}
        extra("pyarrow.parquet").write_table(table, sink, write_page_checksum=True, **packed)
        write_atomic(path, sink.getbuffer())

    @classmethod
    def load(cls, path: str | Path, catalogue: Catalogue) -> Self:
        """Read what `save` wrote.

        Raises:
            StoreError: the file is damaged, or the version of this number is not the one that was viewed.
            InputError: the store has no such version.
        """
        try:
            table = extra("pyarrow.parquet").read_table(path, page_checksum_verification=True)
            about = json.loads(table.schema.metadata[_ABOUT])
            sizes, counts = table["samples"].to_numpy(), table["count"].to_numpy()
            rows = table["rows"].combine_chunks().flatten().to_numpy()
        except (extra("pyarrow").ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"is no view, or damaged: {str(error).splitlines()[0]}", file=path) from None
        snapshot = catalogue.snapshot(about["version"])
        if snapshot.sha256 != about["sha256"]:
            raise StoreError("is a view of another version", file=path, value=about["sha256"], allowed=snapshot.sha256)
        return cls(catalogue, snapshot, about["condition"], sizes, counts, rows)


def select(catalogue: Catalogue, condition: str | None, version: int | None = None, limit: int | None = None) -> View:
    """Find the samples for which an SQL condition on the columns holds, in order.

    Args:
        catalogue: of the store.
        condition: for example "language = 'de' and quality > 0.5"; nothing that gives another answer the next time (for one
            sample in a hundred: "hash % 100 = 7"). None selects all.
        version: None for the newest.
        limit: stop after so many samples.

    Raises:
        InputError: it is not a condition, names no column (those there are are listed), or compares what cannot be compared.
        StoreError: a part that is read is absent or damaged.
        ResourceError: duckdb is missing, or out of memory.
    """
    snapshot = catalogue.snapshot(version)
    shards = catalogue.table(snapshot.manifests, ["name", "samples", "part_bytes", "part_crc32c"])
    sizes, counts, hits = shards["samples"].to_numpy(), np.zeros(len(shards), np.int64), [np.empty(0, np.uint32)]
    if condition is None and limit is None:
        return View(catalogue, snapshot, None, sizes, sizes, hits[0])
    text, left = "true" if condition is None else condition, snapshot.samples if limit is None else limit
    session, manifests = _session(catalogue, snapshot)
    bound = session.condition(text, snapshot.columns | {"hash": ""} if snapshot.columns else {})
    chosen = np.arange(len(sizes))
    if bound != "true" and manifests:
        found = session.execute(f"{_ROWS} FROM read_parquet(?) WHERE {bound}", [manifests]).fetchnumpy()
        starts = np.cumsum([0, *(manifest.shards for manifest in snapshot.manifests)])
        chosen = np.sort(starts[found["file_index"].astype(np.int64)] + found["file_row_number"])
    ends = np.cumsum(sizes[chosen]) // _BATCH_ROWS
    for batch in np.split(chosen, np.flatnonzero(np.diff(ends)) + 1):
        if left > 0 and len(batch):
            parts = _checked(catalogue, shards.take(batch))
            with session.refusing(text, snapshot.columns):
                query = f"{_ROWS} FROM read_parquet(?) AS samples WHERE (\n{text}\n) LIMIT ?"
                found = session.execute(query, [parts, left]).fetchnumpy()
            counts[batch] = np.bincount(found["file_index"].astype(np.int64), minlength=len(batch))
            left -= len(found["file_index"])
            hits.append(found["file_row_number"].astype(np.uint32)[np.repeat(counts[batch] < sizes[batch], counts[batch])])
    return View(catalogue, snapshot, condition, sizes, counts, np.concatenate(hits))


def ask(catalogue: Catalogue, query: str, version: int | None = None) -> list[dict[str, Any]]:
    """Answer one SELECT on the tables `samples` (the columns, and `shard`) and `shards` (the columns of the manifests).

    Raises:
        InputError: it is not one SELECT on these tables, or its answer has more than a million rows.
        StoreError, ResourceError: as `select`.
    """
    snapshot = catalogue.snapshot(version)
    session, manifests = _session(catalogue, snapshot)
    session.query(query, ("samples", "shards"))
    files, columns = (
        {"shards": manifests},
        {"shards": "*", "samples": f"*, parse_filename(filename, true) || '{SUFFIX}' AS shard"},
    )
    if "samples" in query.lower():
        files["samples"] = _checked(catalogue, catalogue.table(snapshot.manifests, ["name", "part_bytes", "part_crc32c"]))
    with session.refusing(query, snapshot.columns):
        for name in files if manifests else ():
            session.execute(f"SET VARIABLE {name} = ?", [files[name]])
            session.execute(f"CREATE TEMP VIEW {name} AS SELECT {columns[name]} FROM read_parquet(getvariable('{name}'))")
        answer = session.execute(query)
        names, found = [column[0] for column in answer.description], answer.fetchmany(_MOST_ROWS + 1)
    if len(found) > _MOST_ROWS:
        raise InputError("the answer has too many rows", value=query, allowed=str(_MOST_ROWS), hint="group, or add a LIMIT")
    return [dict(zip(names, row, strict=True)) for row in found]


def _session(catalogue: Catalogue, snapshot: Snapshot) -> tuple[LockedSql, list[str]]:
    """Return a DuckDB that may read the columns of a store, and the files of the manifests."""
    extra("duckdb")
    folders = [catalogue.root / name for name in ("catalogue", "manifests")]
    return LockedSql(folders), [str(folders[1].resolve() / manifest.name) for manifest in snapshot.manifests]


def _checked(catalogue: Catalogue, shards: Any) -> list[str]:
    """Return the files of parts that are whole."""
    paths = []
    for row in shards.to_pylist():
        paths.append(part_path(catalogue.root.resolve(), row["name"]))
        data = bytes_of(paths[-1])
        if (len(data), crc32c(data)) != (row["part_bytes"], row["part_crc32c"]):
            raise StoreError("is damaged: it does not match its checksum", file=paths[-1])
    return [str(path) for path in paths]
