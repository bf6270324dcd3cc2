"""Views: the samples of a version for which an SQL condition holds, found by DuckDB in the columns, without copying data.

A condition is first turned into one on the least and greatest values of each shard (or on its set of values) that holds wherever
the condition can: `quality > 0.5` becomes `max.quality > 0.5`, and `language = 'de'` that 'de' is among the values. Shards where
it does not hold are never opened. AND, OR, BETWEEN, IN and comparisons of a column with a constant are understood; all else
may hold anywhere. The parts of the other shards are scanned in order, some million rows at a time. A view holds 16 bytes a shard
of the version and 4 bytes a selected sample, none for those of a shard that is selected as a whole.

The text of a condition is a user's. It is parsed first and must be one SELECT on the tables given here; in a condition there are
no subqueries, and functions only of values. Besides, DuckDB is locked: it may read the store's columns and no other file, load
nothing and keep its settings. Needs DuckDB 2.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from gewu.core.errors import InputError, ResourceError, StoreError
from gewu.core.files import write_atomic
from gewu.data.catalogue import Catalogue, Snapshot, check_file, part_path, unknown_column
from gewu.data.fields import extra
from gewu.data.shard import SUFFIX

_BATCH_ROWS: Final = 4_000_000
_MOST_ROWS: Final = 1_000_000
_ABOUT: Final = b"gewu view"
_WHERE: Final = "SELECT 1 FROM samples WHERE (\n{}\n)"
_STEADY: Final = (
    "SELECT 1 FROM duckdb_functions() WHERE function_name = ? AND function_type = 'scalar' AND stability = 'CONSISTENT'"
)
_CLASSES: Final = ("BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "OPERATOR", "TYPE")
_TABLES, _TABLE_FUNCTIONS = ("samples", "shards"), ("range", "generate_series", "unnest")
_SIGNS: Final = {"EQUAL": "=", "LESSTHAN": "<", "LESSTHANOREQUALTO": "<=", "GREATERTHAN": ">", "GREATERTHANOREQUALTO": ">="}


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
        store = self.catalogue.open(self.snapshot.version, **options)
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
        StoreError: a part is absent or damaged. Damage that leaves a part readable is found by `Catalogue.verify(deep=True)`.
        ResourceError: duckdb is missing, or out of memory.
    """
    session = Session(catalogue, version)
    sizes, counts, hits = session.sizes, np.zeros(len(session.sizes), np.int64), [np.empty(0, np.uint32)]
    if condition is None and limit is None:
        return View(catalogue, session.snapshot, None, sizes, sizes, hits[0])
    text, left = condition or "true", session.snapshot.samples if limit is None else limit
    query = f"SELECT file_index, file_row_number FROM read_parquet(?) AS samples WHERE (\n{text}\n) LIMIT ?"
    candidates = session.candidates(session.condition(text))
    ends = np.cumsum(sizes[candidates]) // _BATCH_ROWS
    for batch in np.split(candidates, np.flatnonzero(np.diff(ends)) + 1):
        if left > 0 and len(batch):
            with session.refusing(text, batch):
                found = session.execute(query, [session.paths(batch), left]).fetchnumpy()
            counts[batch] = np.bincount(found["file_index"].astype(np.int64), minlength=len(batch))
            left -= len(found["file_index"])
            hits.append(found["file_row_number"].astype(np.uint32)[np.repeat(counts[batch] < sizes[batch], counts[batch])])
    return View(catalogue, session.snapshot, condition, sizes, counts, np.concatenate(hits))


def ask(catalogue: Catalogue, query: str, version: int | None = None) -> list[dict[str, Any]]:
    """Answer one SELECT on the tables `samples` (the columns, and `shard`) and `shards` (the columns of the manifests).

    Raises:
        InputError: it is not one SELECT on these tables, or its answer has more than a million rows.
        StoreError, ResourceError: as `select`.
    """
    session = Session(catalogue, version)
    session.query(query)
    every = np.arange(len(session.sizes))
    if len(every):
        session.execute("SET VARIABLE parts = ?", [session.paths(every)])
        session.execute("SET VARIABLE manifests = ?", [session.manifests])
        columns = f"*, parse_filename(filename, true) || '{SUFFIX}' AS shard"
        session.execute(f"CREATE TEMP VIEW samples AS SELECT {columns} FROM read_parquet(getvariable('parts'))")
        session.execute("CREATE TEMP VIEW shards AS SELECT * FROM read_parquet(getvariable('manifests'))")
    with session.refusing(query, every):
        answer = session.execute(query)
        names, rows = [column[0] for column in answer.description], answer.fetchmany(_MOST_ROWS + 1)
    if len(rows) > _MOST_ROWS:
        raise InputError("the answer has too many rows", value=query, allowed=str(_MOST_ROWS), hint="group, or add a LIMIT")
    return [dict(zip(names, row, strict=True)) for row in rows]


class Session:
    """A DuckDB that can read the columns of one version and do nothing else."""

    def __init__(self, catalogue: Catalogue, version: int | None) -> None:
        self._duckdb, self._root = extra("duckdb"), catalogue.root.resolve()
        self.snapshot = catalogue.snapshot(version)
        self._columns = {name.lower(): kind for name, kind in self.snapshot.columns.items()}
        self._shards = catalogue.table(self.snapshot.manifests, ["name", "samples", "part_bytes", "part_sha256"])
        self.sizes = self._shards["samples"].to_numpy()
        self.manifests = [str(self._root / "manifests" / manifest.name) for manifest in self.snapshot.manifests]
        self.execute = self._duckdb.connect(config={f"auto{do}_known_extensions": "false" for do in ("load", "install")}).execute
        folders = [f"{self._root / name}/".replace("'", "''") for name in ("catalogue", "manifests")]
        self.execute(f"SET allowed_directories = ['{folders[0]}', '{folders[1]}']")
        for setting in ("temp_directory = ''", "python_enable_replacements = false", "enable_external_access = false"):
            self.execute(f"SET {setting}")
        self.execute("SET lock_configuration = true")

    def paths(self, shards: Any) -> list[str]:
        """Return the files of the parts of some shards."""
        return [str(part_path(self._root, name)) for name in self._shards["name"].take(shards).to_pylist()]

    @contextmanager
    def refusing(self, text: str, shards: Any) -> Iterator[None]:
        """Turn errors of DuckDB into ours; a damaged part is looked for before the text is blamed."""
        duckdb = self._duckdb
        try:
            yield
        except duckdb.OutOfMemoryException as error:
            raise ResourceError(str(error).splitlines()[0], value=text) from None
        except duckdb.Error as error:
            if not isinstance(error, (duckdb.BinderException, duckdb.CatalogException, duckdb.ConversionException)):
                rows = self._shards.take(shards).to_pylist()
                for row, path in zip(rows, self.paths(shards), strict=True):
                    check_file(Path(path), row["part_bytes"], row["part_sha256"])
            allowed = "columns " + ", ".join(self.snapshot.columns)
            raise InputError(str(error).splitlines()[0], value=text, allowed=allowed) from None

    def _parse(self, text: str, frame: str = "{}") -> Any:
        tree = json.loads(self.execute("SELECT json_serialize_sql(?)", [frame.format(text)]).fetchone()[0])
        if tree["error"] or len(tree["statements"]) != 1:
            raise InputError(f"is not one query: {tree.get('error_message', 'there are several')}", value=text)
        return tree["statements"][0]["node"]

    def condition(self, text: str) -> Any:
        """Return the syntax tree of a condition on the columns; refuse anything else."""
        frame, found = self._parse("true", _WHERE), self._parse(text, _WHERE)
        if frame | {"where_clause": None} != found | {"where_clause": None}:
            raise InputError("is not one condition", value=text)
        for node in _nodes(found["where_clause"]):
            kind = node.get("class", "TYPE")
            if kind not in _CLASSES or (kind == "FUNCTION" and not self.execute(_STEADY, [node["function_name"]]).fetchone()):
                hint = "only functions of values are: for one sample in a hundred write hash % 100 = 7"
                raise InputError("cannot be part of a condition", value=node.get("function_name", kind.lower()), hint=hint)
            if kind == "COLUMN_REF" and node["column_names"][-1].lower() not in self._columns:
                raise unknown_column(node["column_names"][-1], self.snapshot.columns, value=text)
        return found["where_clause"]

    def query(self, text: str) -> None:
        """Refuse what is not one SELECT on the tables of the store."""
        nodes = list(_nodes(self._parse(text)))
        known = {*_TABLES, *(entry["key"].lower() for node in nodes for entry in node.get("cte_map", {}).get("map", ()))}
        for node in nodes:
            function = node.get("type") == "TABLE_FUNCTION"
            name = node["function"]["function_name"] if function else node.get("table_name", "")
            if name and (name.lower() not in (_TABLE_FUNCTIONS if function else known) or node.get("schema_name")):
                raise InputError("no such table", value=name, allowed=", ".join((*_TABLES, *_TABLE_FUNCTIONS)))

    def candidates(self, where: Any) -> Any:
        """Return the numbers of the shards in which a condition may hold for some sample, rising."""
        bound = self._bound(where)
        if bound == "true" or not self.manifests:
            return np.arange(len(self.sizes))
        query = f"SELECT file_index, file_row_number FROM read_parquet(?) WHERE {bound}"
        with self.refusing(bound, []):
            found = self.execute(query, [self.manifests]).fetchnumpy()
        starts = np.cumsum([0, *(manifest.shards for manifest in self.snapshot.manifests)])
        return np.sort(starts[found["file_index"].astype(np.int64)] + found["file_row_number"])

    def _bound(self, node: Any) -> str:
        """Return a condition on the extremes of a shard that holds wherever `node` can hold for a sample."""
        kind = node["type"]
        if node["class"] == "CONJUNCTION":
            return "(" + f" {kind.removeprefix('CONJUNCTION_')} ".join(map(self._bound, node["children"])) + ")"
        if node["class"] == "BETWEEN":
            pairs = (">=", node["lower"]), ("<=", node["upper"])
            return " AND ".join(self._compared(node["input"], sign, constant) for sign, constant in pairs)
        if kind == "COMPARE_IN":
            first, *others = node["children"]
            return "(" + " OR ".join(self._compared(first, "=", constant) for constant in others) + ")"
        if node["class"] == "COMPARISON" and (sign := _SIGNS.get(kind.removeprefix("COMPARE_"))):
            mirrored = sign.translate({60: 62, 62: 60})  # < and >
            left, right = node["left"], node["right"]
            return f"({self._compared(left, sign, right)} AND {self._compared(right, mirrored, left)})"
        return "true"

    def _compared(self, column: Any, sign: str, constant: Any) -> str:
        name = column.get("column_names", [""])[-1].lower()
        literal = constant.get("literal", {"kind": "", "text": ""})
        text, kind = literal["text"].replace("'", "''"), literal["kind"]
        if sign == "=" and kind == "STRING" and self._columns.get(name) == "string":
            return f"""("values.{name}" IS NULL OR list_contains("values.{name}", '{text}'))"""
        if kind not in ("INTEGER", "NUMERIC", "BOOLEAN") or self._columns.get(name, "string") == "string" or name == "hash":
            return "true"
        bounds = [f'"min.{name}" {sign[:1].replace("=", "<=") + sign[1:]} {text}'] if sign[0] in "<=" else []
        bounds += [f'"max.{name}" {sign[:1].replace("=", ">=") + sign[1:]} {text}'] if sign[0] in ">=" else []
        return "(" + " AND ".join(bounds) + ")"


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping in a tree, parents first."""
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(child)
