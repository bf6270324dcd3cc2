"""Views: conditions against a plain reference, shards that are never opened, and texts that must not reach other files."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from gewu.core.errors import InputError, StoreError
from gewu.data import Schema
from gewu.data import view as module
from gewu.data.catalogue import Catalogue, part_path
from gewu.data.storewriter import StoreWriter
from gewu.data.view import View
from gewu.formats.sql import LockedSql

SCHEMA = Schema.of({"n": "int32"})
COLUMNS = {"language": "text", "quality": "float64", "label": "int16", "good": "bool", "url": "text"}
NAN = math.nan


def row(k: int) -> dict[str, Any]:
    """Return the columns of sample k: one language and some labels to a shard, all qualities, now and then None."""
    generator, group = random.Random(k), k // 50
    quality = generator.choice([round(generator.random() + group, 2), NAN if generator.random() < 0.2 else 1.0, None])
    return {
        "language": None if generator.random() < 0.1 else generator.choice(["de", "en", "fr", "it's"][group % 4 : group % 4 + 2]),
        "quality": quality,
        "label": None if k % 9 == 0 else 10 * group + generator.randrange(10),
        "good": group % 3 == 0 or generator.random() < 0.5,
        "url": f"http://a/{k}",
    }


ROWS = [row(k) for k in range(600)]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """A store of 600 samples in shards of 50, in three versions; its name has characters that mean something to SQL and globs."""
    root = tmp_path_factory.mktemp("views") / "it's [a] *.store"
    for first in (0, 200, 400):
        with StoreWriter(root, SCHEMA, COLUMNS, shard_bytes=464) as writer:
            for k in range(first, first + 200):
                writer.add({"n": k}, **ROWS[k])
    return Catalogue(root)


Condition = tuple[str, Callable[[dict[str, Any]], bool | None]]
SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<>": lambda a, b: a != b,
}


def ordered(value: Any) -> Any:
    """Return something that compares as DuckDB does: NaN is equal to itself and greater than all numbers."""
    return (value != value, 0.0 if value != value else value) if isinstance(value, float | int) else value


def compared(column: str, sign: str, constant: Any, mirrored: bool = False) -> Condition:
    text = repr(constant) if not isinstance(constant, str) else "'" + constant.replace("'", "''") + "'"
    flip = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
    shown = f"{text} {flip.get(sign, sign)} {column}" if mirrored else f"{column} {sign} {text}"
    return shown, lambda r: None if r[column] is None else SIGNS[sign](ordered(r[column]), ordered(constant))


def leaf(generator: random.Random) -> Condition:
    constants: dict[str, Callable[[], Any]] = {
        "language": lambda: generator.choice(["de", "en", "it's", "xx"]),
        "quality": lambda: round(generator.uniform(-1, 13), 1),
        "label": lambda: generator.randrange(-5, 130),
        "good": lambda: generator.choice([True, False]),
    }
    column = generator.choice(list(constants))
    a, b = constants[column](), constants[column]()
    name = generator.choice([column, column.upper(), f"samples.{column}", f'"{column}"'])
    kind = generator.randrange(6)
    if kind == 0 and column in ("quality", "label"):
        return (
            f"{name} BETWEEN {a} AND {b}",
            lambda r: None if r[column] is None else ordered(a) <= ordered(r[column]) <= ordered(b),
        )
    if kind == 1 and column != "good":
        (t, f), (u, g) = compared(column, "=", a), compared(column, "=", b)
        return f"{name} IN ({t.split('= ', 1)[1]}, {u.split('= ', 1)[1]})", lambda r: either(f(r), g(r))
    if kind == 2:
        return f"{name} IS NULL", lambda r: r[column] is None
    sign = generator.choice(["=", "<>"] if column in ("good", "language") else list(SIGNS))
    text, test = compared(column, sign, a, generator.random() < 0.3)
    return text.replace(column, name), test


def either(a: bool | None, b: bool | None) -> bool | None:
    return True if a or b else None if a is None or b is None else False


def tree(generator: random.Random, depth: int) -> Condition:
    if depth == 0 or generator.random() < 0.2:
        return leaf(generator)
    kind = generator.choice(["AND", "AND", "OR", "NOT"])
    t, f = tree(generator, depth - 1)
    if kind == "NOT":
        return f"NOT ({t})", lambda r: None if f(r) is None else not f(r)
    u, g = tree(generator, depth - 1)
    if kind == "OR":
        return f"({t} OR {u})", lambda r: either(f(r), g(r))
    return f"({t} AND {u})", lambda r: None if (x := either(neg(f(r)), neg(g(r)))) is None else not x


def neg(a: bool | None) -> bool | None:
    return None if a is None else not a


@pytest.mark.parametrize("seed", range(5))
def test_views_hold_what_a_plain_loop_finds(catalogue: Catalogue, seed: int) -> None:
    generator, pruned = random.Random(seed), 0
    for _ in range(12):
        text, test = tree(generator, 3)
        expected = [k for k, r in enumerate(ROWS) if test(r)]
        view = catalogue.where(text)
        assert view.indices().tolist() == expected, text
        bound = LockedSql([]).condition(text, catalogue.snapshot().columns | {"hash": ""})
        kept = {row["name"] for row in catalogue.sql(f"SELECT name FROM shards WHERE {bound}")}
        assert {catalogue.shards()[k].name for k in np.flatnonzero(view.counts)} <= kept
        pruned += len(view.sizes) - len(kept)
    assert pruned > 5  # the bounds are of use


@pytest.mark.parametrize("batch", [1, 120, 10**6])
def test_views_do_not_depend_on_batches(catalogue: Catalogue, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH_ROWS", batch)
    expected = [k for k, r in enumerate(ROWS) if r["good"]]
    view = catalogue.where("good")
    assert view.indices().tolist() == expected and len(view) == len(expected)
    for limit in (0, 1, 77, 10**6):
        assert catalogue.where("good", limit=limit).indices().tolist() == expected[:limit]
    assert catalogue.where(None, limit=130).indices().tolist() == list(range(130))


def test_a_view_is_of_its_version_and_reads_its_samples(catalogue: Catalogue) -> None:
    for version, count in ((1, 200), (2, 400), (None, 600)):
        expected = [k for k in range(count) if ROWS[k]["language"] == "de"]
        assert [s["n"] for s in catalogue.open(version, where="language = 'de'")] == expected
        assert [s["n"] for s in catalogue.where(None, version).store()] == list(range(count))


def test_whole_shards_cost_nothing(catalogue: Catalogue) -> None:
    view = catalogue.where("label >= 40 OR label IS NULL")  # all of most shards, the multiples of 9 of the others
    assert view.indices().tolist() == [k for k in range(600) if k >= 200 or k % 9 == 0]
    assert len(view.rows) == len([k for k in range(0, 200, 9)]) and view.rows.dtype == np.uint32
    assert len(catalogue.where(None).rows) == 0 and catalogue.where(None).indices().dtype == np.uint64


def test_shards_where_nothing_can_hold_are_never_opened(catalogue: Catalogue, tmp_path: Path) -> None:
    import shutil

    copy = Catalogue(shutil.copytree(catalogue.root, tmp_path / "a.store"))
    for info in copy.shards()[:7]:
        part_path(copy.root, info.name).unlink()
    for text in ("label >= 70", "label > 75 AND length > 0", "label IN (70, 111)", "label BETWEEN 80 AND 90", "75 < label"):
        assert len(copy.where(text)) == len(catalogue.where(text)) > 0
    with pytest.raises(StoreError, match="cannot be read: No such file") as caught:
        copy.where("label >= 60")
    assert caught.value.file == part_path(copy.root.resolve(), copy.shards()[6].name)


def test_a_view_survives_a_file(catalogue: Catalogue, tmp_path: Path) -> None:
    for text in ("language = 'it''s' OR label > 100", "label > 1000", None):
        view = catalogue.where(text, 3)
        view.save(tmp_path / "v.parquet")
        again = View.load(tmp_path / "v.parquet", catalogue)
        assert (again.condition, again.snapshot) == (text, view.snapshot) and again.rows.dtype == np.uint32
        np.testing.assert_array_equal(again.indices(), view.indices())
        first = (tmp_path / "v.parquet").read_bytes()
        again.save(tmp_path / "v.parquet")
        assert (tmp_path / "v.parquet").read_bytes() == first
        about = json.loads(pq.read_schema(tmp_path / "v.parquet").metadata[b"gewu view"])
        assert about == {"version": 3, "sha256": view.snapshot.sha256, "condition": text}


def test_a_view_of_another_store_or_damaged_is_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    catalogue.where("good").save(path)
    data = path.read_bytes()
    with StoreWriter(tmp_path / "b.store", SCHEMA) as writer:
        writer.add({"n": 1})
    with pytest.raises(InputError, match="no such version"):
        View.load(path, Catalogue(tmp_path / "b.store"))
    catalogue.where("good", 1).save(path)
    with pytest.raises(StoreError, match="is a view of another version"):
        View.load(path, Catalogue(tmp_path / "b.store"))
    for changed in (b"", data[:-9], data[:100] + bytes([data[100] ^ 1]) + data[101:], b"PAR1" * 9):
        path.write_bytes(changed)
        with pytest.raises(StoreError, match="is no view, or damaged"):
            View.load(path, catalogue)
    with pytest.raises(StoreError, match="is no view"):
        View.load(tmp_path / "absent", catalogue)
    with pytest.raises(StoreError, match="is no view"):
        View.load(part_path(catalogue.root, catalogue.shards()[0].name), catalogue)


def test_damaged_parts_are_named(catalogue: Catalogue, tmp_path: Path) -> None:
    import shutil

    copy = Catalogue(shutil.copytree(catalogue.root, tmp_path / "a.store"))
    path = part_path(copy.root.resolve(), copy.shards()[3].name)
    data = path.read_bytes()
    flipped = [data[:k] + bytes([data[k] ^ 1]) + data[k + 1 :] for k in range(0, len(data), 97)]
    for changed in (b"", data[:-1], data[: len(data) // 2], *flipped, None):
        path.write_bytes(changed) if changed is not None else path.unlink()
        for use in (lambda: copy.where("url <> 'x'"), lambda: copy.sql("select url from samples")):
            with pytest.raises(StoreError, match=r"is damaged: it does not match its checksum|cannot be read") as caught:
                use()
            assert caught.value.file == path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("langage = 'de'", "langage: no such column .*; allowed: length, hash, language, .*; did you mean 'language'?"),
        ("n > 3", "n: no such column"),
        ("quality >", "is not one query: syntax error"),
        ("", "Unimplemented type for cast"),
        ("language > 5", "Cannot compare"),
        ("quality > 'high'", "Could not convert"),
        ("good; SELECT 1", "is not one query"),
        ("good); DROP TABLE samples; SELECT (1", "is not one query"),
        ("good) UNION SELECT 2 FROM samples WHERE (good", "is not one condition"),
        ("good) GROUP BY (1", "is not one condition"),
        ("good) ORDER BY (1", "is not one condition"),
        ("good) LIMIT (1", "is not one condition"),
        ("good) AND EXISTS (SELECT 1 FROM read_text('/etc/passwd')", "'subquery'"),
        ("label IN (SELECT 1)", "'subquery'"),
        ("label = (SELECT count(*) FROM read_csv('/etc/passwd'))", "'subquery'"),
        ("label > $1", "'parameter'"),
        ("label > ?", "'parameter'"),
        ("random() < 0.5", "'random'.*hash % 100 = 7"),
        ("now() IS NULL", "'now'"),
        ("nextval('x') > 1", "'nextval'"),
        ("write_log('x') IS NULL", "'write_log'"),
        ("read_text('/etc/passwd') IS NULL", "'read_text'"),
        ("getenv('HOME') = ''", "'getenv'"),
        ("count(*) > 1", "count"),
        ("row_number() OVER () < 3", "'row_number'"),
        ("COLUMNS(*) > 3", "star"),
        ("list_filter([1], x -> x > 0) IS NULL", "'lambda|no such column"),
        ("true /*", "is not one query"),
        ("true -- )", None),
        ("length > " + "(" * 3000 + "1" + ")" * 3000, "is not one query"),
        (" AND ".join(["good"] * 30_000), "is too long"),
    ],
)
def test_only_conditions_are_accepted(catalogue: Catalogue, text: str, message: str | None) -> None:
    if message is None:
        assert len(catalogue.where(text)) in (600, sum(r["good"] for r in ROWS))
    else:
        with pytest.raises(InputError, match=message):
            catalogue.where(text)


@pytest.mark.parametrize(
    ("text", "test"),
    [
        ("language LIKE 'f%'", lambda r: r["language"] == "fr"),
        ("lower(language) || 'x' = 'dex'", lambda r: r["language"] == "de"),
        (
            "label % 7 = 3 AND CAST(label AS DOUBLE) > 5.5",
            lambda r: r["label"] is not None and r["label"] % 7 == 3 and r["label"] > 5,
        ),
        ("CASE WHEN good THEN label ELSE 0 END > 50", lambda r: r["good"] and r["label"] is not None and r["label"] > 50),
        ("quality = 'nan'::DOUBLE", lambda r: r["quality"] is not None and math.isnan(r["quality"])),
        ("regexp_matches(url, '7$')", lambda r: r["url"].endswith("7")),
        ("coalesce(label, -1) = -1", lambda r: r["label"] is None),
    ],
)
def test_functions_of_values_are_accepted(catalogue: Catalogue, text: str, test: Callable[[Any], bool]) -> None:
    assert catalogue.where(text).indices().tolist() == [k for k, r in enumerate(ROWS) if test(r)]


def test_sql_answers(catalogue: Catalogue) -> None:
    rows = catalogue.sql("SELECT language, count(*) AS n FROM samples GROUP BY language ORDER BY language NULLS FIRST")
    found = [r["language"] for r in ROWS]
    assert rows == [{"language": x, "n": found.count(x)} for x in sorted(set(found), key=lambda x: x or "")]
    counts = catalogue.sql(
        "SELECT name, samples, n FROM shards JOIN (SELECT shard, count(*) AS n FROM samples GROUP BY 1) ON shard = name"
    )
    assert len(counts) == 12 and all(r["samples"] == r["n"] == 50 for r in counts)
    assert catalogue.sql("WITH a AS (SELECT max(label) AS m FROM samples) SELECT m FROM a", 1) == [
        {"m": max(r["label"] or 0 for r in ROWS[:200])}
    ]
    assert catalogue.sql("SELECT x FROM range(3) t(x), (SELECT 1)") == [{"x": 0}, {"x": 1}, {"x": 2}]
    with pytest.raises(InputError, match="too many rows"):
        catalogue.sql("SELECT 1 FROM range(1000001)")


FORBIDDEN = [
    "COPY samples TO '{0}/evil.csv'",
    "COPY (SELECT 1) TO '{1}/catalogue/evil.csv'",
    "EXPORT DATABASE '{1}/catalogue/evil'",
    "ATTACH '{0}/evil.db'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "PRAGMA version",
    "SET enable_external_access = true",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '{0}/evil.csv'",
    "CREATE TABLE t AS SELECT 1",
    "CALL pragma_version()",
    "EXPLAIN ANALYZE SELECT 1",
    "SELECT * FROM read_csv('{0}/secret.csv')",
    "SELECT * FROM read_text('{0}/secret.csv')",
    "SELECT * FROM read_blob('{1}/versions/00000001.json')",
    "SELECT * FROM read_parquet('{1}/catalogue/*.parquet')",
    "SELECT * FROM '{0}/secret.csv'",
    'SELECT * FROM "{0}/secret.csv"',
    "SELECT * FROM samples, '{0}/secret.csv'",
    'SELECT * FROM (WITH "{0}/secret.csv" AS (SELECT 1) SELECT 1), "{0}/secret.csv"',
    "WITH samples AS (FROM read_csv('{0}/secret.csv')) SELECT * FROM samples",
    "SELECT (SELECT count(*) FROM read_csv('{0}/secret.csv'))",
    "SELECT * FROM samples WHERE length IN (FROM read_csv('{0}/secret.csv'))",
    "SELECT * FROM glob('{0}/*')",
    "SELECT * FROM sniff_csv('{0}/secret.csv')",
    "SELECT * FROM query('FROM read_csv(''{0}/secret.csv'')')",
    "SELECT * FROM query_table('{0}/secret.csv')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT * FROM enable_logging(storage := 'file', storage_path := '{0}/evil')",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM ROWS",
    "DESCRIBE '{0}/secret.csv'",
    "SUMMARIZE '{0}/secret.csv'",
    "PIVOT '{0}/secret.csv' ON a",
    "VALUES ((SELECT a FROM '{0}/secret.csv'))",
    "SELECT nope FROM samples",
    "SELECT",
    "",
]


@pytest.mark.parametrize("query", FORBIDDEN)
def test_sql_reaches_no_other_file_and_writes_none(catalogue: Catalogue, tmp_path: Path, query: str) -> None:
    (tmp_path / "secret.csv").write_text("a,b\nsecret,2\n")
    before = {str(path) for folder in (tmp_path, catalogue.root) for path in folder.rglob("*")}
    text = query.replace("{0}", str(tmp_path)).replace("{1}", str(catalogue.root).replace("'", "''"))
    with pytest.raises(InputError) as caught:
        catalogue.sql(text)
    assert "secret,2" not in str(caught.value)
    assert {str(path) for folder in (tmp_path, catalogue.root) for path in folder.rglob("*")} == before


@pytest.mark.parametrize("query", [q for q in FORBIDDEN if "secret" in q or "evil" in q.replace("{1}/catalogue/evil", "")])
def test_duckdb_itself_is_locked(catalogue: Catalogue, tmp_path: Path, query: str) -> None:
    """What passes no parser of ours would not pass DuckDB's own doors either."""
    (tmp_path / "secret.csv").write_text("a,b\nsecret,2\n")
    session = LockedSql([catalogue.root / "catalogue"])
    with pytest.raises(duckdb.Error):
        session.execute(query.replace("{0}", str(tmp_path))).fetchall()
    with pytest.raises(duckdb.Error, match="locked"):
        session.execute("SET enable_external_access = true")
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]
