"""Catalogues: parts, manifests, versions; what is refused; damage, kills, full disks and writers at the same time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from gewu.core.errors import GewuError, InputError, ResourceError, StoreError
from gewu.core.files import DirectoryLock
from gewu.data import Schema, Shard
from gewu.data.catalogue import Catalogue, PartInfo, part_path, write_part
from gewu.data.sample import codec
from gewu.data.shard import ShardInfo
from gewu.data.storewriter import StoreWriter
from tests.faults.faultlib import Killer, failing_os, run_python

REPOSITORY = str(Path(__file__).resolve().parents[2])
SCHEMA = Schema.of({"text": "text", "score": "float32", "label": "int16?"}, units={"score": "eV"}, meanings={"score": "How good"})
COLUMNS = ("source", "score", "label")


def sample(k: int) -> dict[str, Any]:
    return {"text": f"text {k}" * (k % 5), "score": k / 8, "label": None if k % 7 == 0 else k % 100}


def add(root: Path, first: int, count: int = 40, note: str = "", schema: Schema = SCHEMA) -> None:
    """Add samples first, first + 1, ... in some shards as a version."""
    with StoreWriter(root, schema, COLUMNS, note=note, shard_bytes=700) as writer:
        for k in range(first, first + count):
            writer.add(sample(k), source="abc"[k % 3])


def scores(catalogue: Catalogue, version: int | None = None) -> list[int]:
    """Return the numbers of the samples of a version in order."""
    return [int(s["score"] * 8) for s in catalogue.open(version)]


def files(root: Path) -> dict[str, str]:
    """Return all files of a store with their checksums."""
    paths = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three versions, 0 to 39, 0 to 79, 0 to 119; not to be changed."""
    root = tmp_path_factory.mktemp("made") / "a.store"
    for first in (0, 40, 80):
        add(root, first, note=f"from {first}")
    return root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Catalogue:
    """A copy of it."""
    shutil.copytree(made, tmp_path / "b.store")
    return Catalogue(tmp_path / "b.store")


def columns(n: int, **more: Any) -> dict[str, Any]:
    return {"length": np.arange(n) + 100, "hash": np.arange(n, dtype=np.uint64) * 2**54, **more}


# Parts


def test_a_part_holds_what_was_given(tmp_path: Path) -> None:
    given = {
        "text": ["b", None, "a", "ä€"],
        "flag": [True, None, False, True],
        "number": [3, -(2**62), None, 5],
        "x": np.array([0.5, np.nan, -2.0, 1e30]),
        "small": np.array([1, 200, 3, 4], np.uint8),
        "typed": [None, None, 1, 2],
        "nothing": [None] * 4,
        "half": np.array([1, 2, 3, 4], np.float16),
    }
    info = write_part(tmp_path / "s-0001.parquet", columns(4, **given), {"x": "How far"}, {"typed": "uint8?"})
    table = pq.read_table(tmp_path / "s-0001.parquet")
    types = ["uint32", "uint64", "string", "bool", "int64", "double", "uint8", "uint8", "string", "float"]
    assert dict(zip(table.column_names, map(str, table.schema.types), strict=True)) == dict(
        zip(["length", "hash", *given], types, strict=True)
    )
    assert table["length"].to_pylist() == [100, 101, 102, 103] and table["hash"].to_pylist() == [k * 2**54 for k in range(4)]
    for name in ("text", "flag", "number", "typed", "nothing"):
        assert table[name].to_pylist() == given[name]
    for name in ("x", "small", "half"):
        np.testing.assert_array_equal(table[name].to_numpy(), given[name])
    assert table.schema.field("x").metadata == {b"meaning": b"How far"}
    data = (tmp_path / "s-0001.parquet").read_bytes()
    assert info[:4] == ("s-0001.gws", 4, len(data), hashlib.sha256(data).hexdigest())
    assert info.stats["text"] == {"type": "string", "values": ["a", "b", "ä€"]}
    assert info.stats["flag"] == {"type": "bool", "min": False, "max": True}
    assert info.stats["number"] == {"type": "int64", "min": -(2**62), "max": 5}
    assert info.stats["x"]["min"] == -2 and np.isnan(info.stats["x"]["max"])  # NaN is the greatest of all
    assert info.stats["nothing"] == {"type": "string", "values": []} and info.stats["hash"] == {"type": "uint64"}
    assert PartInfo(**json.loads(json.dumps(info._asdict()))).stats["number"] == info.stats["number"]
    assert write_part(tmp_path / "s-0001.parquet", columns(4, **given), {"x": "How far"}, {"typed": "uint8?"})[:4] == info[:4]


def test_texts_of_many_or_long_values_keep_no_set(tmp_path: Path) -> None:
    many, long = [str(k) for k in range(17)], ["ä" * 33] + ["a"] * 16
    stats = write_part(tmp_path / "a.parquet", columns(17, many=many, long=long, few=["x", "y"] * 8 + [None])).stats
    assert [stats[name]["values"] for name in ("many", "long", "few")] == [None, None, ["x", "y"]]


def test_a_sample_takes_at_most_15_bytes(tmp_path: Path) -> None:
    rng, n = np.random.default_rng(0), 100_000
    given = {
        "length": np.clip(rng.lognormal(7.5, 0.6, n), 200, 65535).astype(np.uint32),
        "hash": rng.integers(0, 2**64, n, dtype=np.uint64),
        "source": np.array([f"web/{k:03}" for k in range(40)], object)[np.minimum(rng.geometric(0.1, n) - 1, 39)].tolist(),
        "licence": np.array(["CC-BY-4.0", "CC0-1.0", "MIT", "unknown"], object)[
            rng.choice(4, n, p=[0.5, 0.3, 0.1, 0.1])
        ].tolist(),
        "language": np.array(["en", "de", "fr", "zh", "ru"], object)[rng.choice(5, n, p=[0.6, 0.1, 0.1, 0.1, 0.1])].tolist(),
        "quality": rng.integers(0, 256, n).astype(np.uint8),
        "label": rng.integers(0, 1000, n).astype(np.uint16),
    }
    # entropy of these columns alone: 8 (hash) + 1.6 (length) + 1 (quality) + 1.25 (label) + 1.2 (texts) = 13.1
    assert 13.0 < write_part(tmp_path / "a.parquet", given).bytes / n < 15.0


def test_texts_that_are_all_different_are_small_too(tmp_path: Path) -> None:
    texts = [f"https://example.org/a/{k:06}" if k % 100 else None for k in range(20_000)]
    info = write_part(tmp_path / "a.parquet", columns(20_000, url=texts) | {"hash": np.arange(20_000, dtype=np.uint64)})
    assert info.bytes < 20_000 * (8 + 4) and info.stats["url"]["values"] is None  # a text alone has 28 bytes
    assert pq.read_table(tmp_path / "a.parquet")["url"].to_pylist() == texts
    found = duckdb.execute("SELECT url FROM read_parquet(?)", [str(tmp_path / "a.parquet")]).fetchall()
    assert [row[0] for row in found] == texts


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"length": None}, "hash: has another length"),
        ({"a": [1, 2]}, "a: has another length than the first column"),
        ({"Label": [1] * 3, "label": [1] * 3}, "differ in more than case"),
        ({"Hash": [1] * 3}, "differ in more than case"),
        ({"shard": ["a"] * 3}, "none of shard"),
        ({'a"b': [1] * 3}, "letters, digits"),
        ({"a": [1, "x", 2]}, "a: cannot be stored"),
        ({"a": [2**70] * 3}, "a: cannot be stored"),
        ({"a": [[1], [2], [3]]}, "a:.* is not a type that a column can have"),
        ({"a": np.ones((3, 2))}, "a: cannot be stored"),
        ({"a": np.ones(3, complex)}, "a: cannot be stored"),
        ({"length": [-1, 0, 1]}, "length: cannot be stored"),
        ({"typed": [300, 0, 1]}, "typed: cannot be stored"),
        ({"blob": [b"x"] * 3}, "blob:.* is not a type"),
    ],
)
def test_bad_columns_are_refused(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    given = {name: values for name, values in (columns(3) | bad).items() if values is not None}
    with pytest.raises(InputError, match=message):
        write_part(tmp_path / "a.parquet", given, types={"typed": "uint8"})
    assert list(tmp_path.iterdir()) == []


# Versions


def test_versions_name_what_was_there(made: Path) -> None:
    catalogue = Catalogue(made)
    first, second, third = catalogue.versions()
    assert [s.version for s in (first, second, third)] == [1, 2, 3] and [s.parent for s in (first, second, third)] == [None, 1, 2]
    assert [s.samples for s in (first, second, third)] == [40, 80, 120] and second.note == "from 40"
    assert third.manifests[:2] == second.manifests and second.manifests[:1] == first.manifests
    assert first.columns == {"length": "uint32", "hash": "uint64", "source": "string", "score": "float", "label": "int16"}
    assert catalogue.snapshot() == third and third.schema == SCHEMA and len({s.sha256 for s in catalogue.versions()}) == 3
    assert third.bytes == sum(path.stat().st_size for path in (made / "shards").iterdir())
    assert third.shards == len(catalogue.shards()) == len(list((made / "shards").iterdir())) > 6
    for version, count in ((1, 40), (2, 80), (3, 120), (None, 120)):
        assert scores(catalogue, version) == list(range(count))


def test_parts_describe_their_shards(made: Path) -> None:
    encode, number = codec(SCHEMA).encode, 0
    for info in Catalogue(made).shards():
        table, shard = pq.read_table(part_path(made, info.name)), Shard(made / "shards" / info.name)
        assert info.sha256 == hashlib.sha256((made / "shards" / info.name).read_bytes()).hexdigest()
        for j, row in enumerate(table.to_pylist()):
            data, s = bytes(encode(sample(number))), shard[j]
            digest = hashlib.blake2b(data[4:], digest_size=8).digest()
            assert row["length"] == len(data) and row["hash"] == int.from_bytes(digest, "little")
            assert (row["score"], row["label"], row["source"]) == (s["score"], s["label"], "abc"[number % 3])
            number += 1
    assert number == 120


def test_the_same_samples_give_the_same_files(made: Path, tmp_path: Path) -> None:
    for first in (0, 40, 80):
        add(tmp_path / "again.store", first, note=f"from {first}")
    assert files(tmp_path / "again.store") == files(made)


@pytest.mark.parametrize("version", [0, 4, -1])
def test_an_absent_version_is_named(made: Path, tmp_path: Path, version: int) -> None:
    with pytest.raises(InputError, match=rf"no such version \(got {version}\); allowed: 1, 2, 3"):
        Catalogue(made).open(version)
    with pytest.raises(InputError, match="holds no version of a store"):
        Catalogue(tmp_path / "none").snapshot()
    with pytest.raises(InputError, match="holds no version of a store"):
        Catalogue(tmp_path / "empty.store").collect()
    assert Catalogue(tmp_path / "none").versions() == [] and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("types", "key"),
    [
        ({"text": "text", "score": "float64", "label": "int16?"}, "score"),
        ({"text": "text", "score": "float32"}, "label"),
        ({"text": "text", "score": "float32", "label": "int16?", "more": "bool?"}, "more"),
        ({"score": "float32", "text": "text", "label": "int16?"}, "score"),
    ],
)
def test_another_schema_is_refused_and_its_field_named(store: Catalogue, types: dict[str, str], key: str) -> None:
    before = store.versions()
    other = Schema.of(types, units={"score": "eV"}, meanings={"score": "How good"})
    with pytest.raises(InputError, match="differs from the store's") as caught:
        store.commit([], [], other)
    assert caught.value.key == key and store.versions() == before


def test_other_columns_are_refused_and_named(store: Catalogue) -> None:
    writer = StoreWriter(store.root, SCHEMA, {"source": "text", "score": "float64", "label": "int16"})
    with pytest.raises(InputError, match="differs from the store's") as caught, writer:
        writer.add(sample(0), source="a")
    assert caught.value.key == "score" and (caught.value.value, caught.value.allowed) == ("double", "float")


def one_shard(catalogue: Catalogue) -> tuple[ShardInfo, PartInfo]:
    """Return what a commit of the first shard of version 1 was given."""
    info = catalogue.shards(1)[0]
    path = part_path(catalogue.root, info.name)
    table = pq.read_table(path)
    values = {name: table[name].to_pylist() for name in table.column_names}
    return info, write_part(path, values, {"score": "How good"}, catalogue.snapshot().columns)  # byte for byte what was there


def test_what_a_commit_names_must_be_there(store: Catalogue) -> None:
    info, part = one_shard(store)
    with pytest.raises(InputError, match="in the version already"):
        store.commit([info], [part], SCHEMA)
    with pytest.raises(InputError, match="named twice"):
        store.commit([info, info], [part, part], SCHEMA, base=None)
    with pytest.raises(InputError, match="not those of the shards"):
        store.commit([info], [], SCHEMA, base=None)
    with pytest.raises(InputError, match="have not one row a sample"):
        store.commit([info], [part._replace(rows=3)], SCHEMA, base=None)
    with pytest.raises(StoreError, match="bytes instead of 9"):
        store.commit([info], [part._replace(bytes=9)], SCHEMA, base=None)
    (store.root / "shards" / info.name).unlink()
    with pytest.raises(StoreError, match="No such file"):
        store.commit([info], [part], SCHEMA, base=None)
    assert len(store.versions()) == 3


def test_a_version_may_start_anew_or_from_an_older_one(store: Catalogue) -> None:
    info, part = one_shard(store)
    alone = store.commit([info], [part], SCHEMA, "alone", base=None)
    assert (alone.version, alone.parent, alone.samples, alone.note) == (4, None, info.samples, "alone")
    assert store.commit([], [], SCHEMA, base=1).samples == 40 and store.snapshot().parent == 1
    with pytest.raises(InputError, match="no such version"):
        store.commit([], [], SCHEMA, base=77)


def test_shards_are_removed_and_manifests_merged(store: Catalogue) -> None:
    names = [info.name for info in store.shards()]
    gone = [names[1], names[-1]]
    sizes = dict(zip(names, np.diff([0, *np.cumsum([info.samples for info in store.shards()])]), strict=True))
    everything = scores(store)
    start = {name: sum(sizes[n] for n in names[:k]) for k, name in enumerate(names)}
    left = [k for name in names if name not in gone for k in everything[start[name] : start[name] + sizes[name]]]
    snapshot = store.remove(gone, "two bad ones")
    assert [info.name for info in store.shards()] == [name for name in names if name not in gone]
    assert scores(store) == left and snapshot.samples == len(left) and snapshot.parent == 3
    assert scores(store, 3) == everything  # the version before is as it was
    merged = store.compact()
    assert len(merged.manifests) == 1 and merged.samples == snapshot.samples and scores(store) == left
    with pytest.raises(InputError, match=f"does not name this shard .*{gone[0]}"):
        store.remove([gone[0]])
    assert store.verify(deep=True) == []


def test_collect_deletes_what_no_kept_version_names(store: Catalogue) -> None:
    store.remove([info.name for info in store.shards(2)])  # version 4: only what version 3 added
    (store.root / "shards" / "data-000009-0000.gws").write_bytes(b"left by a killed writer")
    expected = {info.name for info in store.shards(4)} | {info.name for info in store.shards(1)}
    with pytest.raises(InputError, match="no such version"):
        store.collect([9])
    deleted = store.collect([1])
    assert {path.name for path in (store.root / "shards").iterdir()} == expected
    assert [s.version for s in store.versions()] == [1, 4] and store.verify(deep=True) == []
    assert "versions/00000002.json" in deleted and "shards/data-000009-0000.gws" in deleted
    assert scores(store, 1) == list(range(40)) and scores(store) == list(range(80, 120))
    assert store.collect([1]) == []
    assert store.compact().version == 5  # numbers are not given twice


def test_collect_leaves_a_store_alone_to_which_somebody_adds(store: Catalogue) -> None:
    before = files(store.root)
    with store.writing() as name:
        assert name == "data-000004"
        with pytest.raises(ResourceError, match="is in use by process"):
            store.collect()
    with DirectoryLock(store.root), pytest.raises(ResourceError, match="is in use by process"):  # a pipeline
        store.collect()
    assert files(store.root) == before
    (store.root / "writers" / "data-000007").mkdir()  # of a writer that was killed
    assert store.collect([1, 2]) == [] and list((store.root / "writers").iterdir()) == []


def test_writers_do_not_choose_one_name(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "a.store")
    with catalogue.writing() as a, catalogue.writing() as b, catalogue.writing("x") as c:
        assert (a, b, c) == ("data-000001", "data-000002", "x-000001")


def test_the_page_says_what_the_files_hold(made: Path, tmp_path: Path) -> None:
    """Read a store by docs/data-catalogue.md alone, and run its example."""
    number, page = 0, (Path(REPOSITORY) / "docs" / "data-catalogue.md").read_text()
    body = json.loads((made / "versions" / "00000003.json").read_text())
    seal = body.pop("sha256")
    assert hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=True).encode()).hexdigest() == seal
    for manifest in body["manifests"]:
        data = (made / "manifests" / manifest["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == manifest["sha256"]
        for row in pq.read_table(made / "manifests" / manifest["name"]).to_pylist():
            part = made / "catalogue" / row["name"].replace(".gws", ".parquet")
            assert (part.stat().st_size, hashlib.sha256(part.read_bytes()).digest()) == (row["part_bytes"], row["part_sha256"])
            found = pq.read_table(part).to_pydict()
            assert found["score"] == [k / 8 for k in range(number, number + row["samples"])]
            assert (row["min.score"], row["max.score"]) == (min(found["score"]), max(found["score"]))
            assert row["values.source"] == sorted(set(found["source"]))
            number += row["samples"]
    assert number == 120
    code = page.split("```python\n")[1].split("```")[0]
    done = run_python(f"import os; os.chdir({str(tmp_path)!r})\n" + code)
    assert done.stdout.splitlines()[0].startswith("1000 332 {'text': 'letter 502'"), done.stderr


# Damage


def damages(root: Path) -> Iterator[tuple[Path, bytes | None]]:
    """Yield every file of a store with what damage leaves of it: nothing, a part, or one other bit."""
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        data = path.read_bytes()
        yield path, None
        yield path, data[:-1]
        yield path, bytes([*data[: len(data) // 2], data[len(data) // 2] ^ 4, *data[len(data) // 2 + 1 :]])


def test_verify_names_every_damaged_file(tmp_path: Path) -> None:
    add(tmp_path / "a.store", 0, 12)
    catalogue = Catalogue(tmp_path / "a.store")
    assert catalogue.verify(deep=True) == [] == catalogue.verify()
    seen = set()
    for path, data in damages(catalogue.root):
        whole = path.read_bytes()
        path.unlink() if data is None else path.write_bytes(data)
        if data is None and path.parent.name == "versions":
            assert catalogue.versions() == []  # a version that is not there is none
        else:
            assert {str(problem.file) for problem in catalogue.verify(deep=True)} == {str(path)}
            same_size = data is not None and len(data) == len(whole) and path.parent.name in ("shards", "catalogue")
            assert {str(problem.file) for problem in catalogue.verify()} == (set() if same_size else {str(path)})
        path.write_bytes(whole)
        seen.add(path.parent.name)
    assert seen == {"shards", "catalogue", "manifests", "versions"} and catalogue.verify(deep=True) == []


def test_verify_names_the_damaged_samples(store: Catalogue) -> None:
    info = store.shards()[2]
    path = store.root / "shards" / info.name
    data = bytearray(path.read_bytes())
    for j in (1, 4):
        data[int(Shard(path).offsets[j]) + 9] ^= 1
    path.write_bytes(data)
    problems = [str(problem) for problem in store.verify(deep=True)]
    assert len(problems) == 2 and "checksum" in problems[0] and problems[1].endswith("2 samples are damaged (got [1, 4])")


def test_damaged_manifests_and_versions_are_refused_by_name(store: Catalogue) -> None:
    for folder, use in (("manifests", store.open), ("versions", store.snapshot)):
        for path in (store.root / folder).iterdir():
            data = path.read_bytes()
            for changed in (
                b"",
                data[: len(data) // 2],
                data.replace(b"a", b"b", 1),
                b"[1, 2]",
                b'{"sha256": 1}',
                b"[" * 100_000,
            ):
                path.write_bytes(changed)
                with pytest.raises(StoreError, match="is damaged") as caught:
                    [use(version) for version in (1, 2, 3)]
                assert caught.value.file == path
            path.write_bytes(data)
    assert store.verify() == []


# Faults


@pytest.mark.parametrize("call", ["commit", "compact"])
def test_a_disk_that_fails_leaves_the_version_before(made: Path, tmp_path: Path, call: str) -> None:
    n = 1
    while True:
        root = tmp_path / f"{n}.store"
        shutil.copytree(made, root)
        catalogue = Catalogue(root)
        info, part = one_shard(catalogue)
        before = files(root)
        with failing_os(n) as calls, contextlib.suppress(GewuError):
            catalogue.commit([info], [part], SCHEMA, base=None) if call == "commit" else catalogue.compact()
        if len(calls.names) < n:
            break
        after = files(root)
        assert before.items() <= after.items()
        assert (
            len(catalogue.versions()) in (3, 4) and catalogue.verify(deep=True) == [] and scores(catalogue, 3) == list(range(120))
        )
        assert not [name for name in after if name.endswith(".gewu-tmp")]
        shutil.rmtree(root)
        n += 1
    assert n > 10


def test_a_full_disk_while_samples_are_added(tmp_path: Path) -> None:
    add(tmp_path / "a.store", 0)
    catalogue = Catalogue(tmp_path / "a.store")
    for n in (9, 12, 20, 30):
        with pytest.raises(GewuError), failing_os(n):
            add(tmp_path / "a.store", 40)
        assert scores(catalogue) == list(range(40)) and catalogue.verify(deep=True) == []
    add(tmp_path / "a.store", 40)
    assert scores(catalogue) == list(range(80))
    catalogue.collect()
    assert {path.name for path in (catalogue.root / "shards").iterdir()} == {info.name for info in catalogue.shards()}


def test_an_exception_while_samples_are_added_adds_nothing(store: Catalogue) -> None:
    writer = StoreWriter(store.root, SCHEMA, COLUMNS, shard_bytes=700)

    def add_and_fail() -> None:
        with writer:
            for k in range(30):
                writer.add(sample(k), source="a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        add_and_fail()
    assert len(store.versions()) == 3 and writer.snapshot is None
    store.collect([1, 2])
    assert store.verify(deep=True) == [] and len(list((store.root / "shards").iterdir())) == store.snapshot().shards


def test_a_sample_that_is_refused_leaves_columns_in_step(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "a.store", SCHEMA, COLUMNS) as writer:
        for k in range(6):
            with pytest.raises(InputError, match="score"):
                writer.add(sample(k) | {"score": "high"}, source="bad")
            writer.add(sample(k), source=str(k))
        with pytest.raises(InputError, match="sauce: no such column; allowed: source, score, label"):
            writer.add(sample(1), sauce="x")
    rows = Catalogue(tmp_path / "a.store").sql("select source, score from samples")
    assert rows == [{"source": str(k), "score": k / 8} for k in range(6)]


def test_a_store_without_samples(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "a.store", SCHEMA, COLUMNS):
        pass
    catalogue = Catalogue(tmp_path / "a.store")
    assert catalogue.snapshot().samples == 0 and catalogue.verify(deep=True) == [] and len(catalogue.where(None)) == 0
    with pytest.raises(InputError, match="at least one shard"):
        catalogue.open()
    with pytest.raises(InputError, match="no such column"):
        catalogue.where("length > 3")
    add(tmp_path / "a.store", 0)
    assert scores(catalogue) == list(range(40))


COMMIT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.data import test_catalogue as t
root, first = Path(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
for k in range(first, first + 400, 10):
    t.add(root, k, 10)
    print("done", k, flush=True)
"""


def test_a_kill_at_any_instant_leaves_a_version(tmp_path: Path) -> None:
    root, killer = tmp_path / "a.store", Killer(3, 0.12)
    add(root, 0, 10)
    catalogue, expected = Catalogue(root), list(range(10))
    for turn in range(4):
        first = 1000 * (turn + 1)
        killed = killer.strike([sys.executable, "-c", COMMIT, REPOSITORY, str(root), str(first)], "ready")
        assert killed.returncode == -9, killed.errors
        told = [int(line.split()[1]) for line in killed.lines if line.startswith("done")]
        expected += [k + j for k in told for j in range(10)]
        found = scores(catalogue)
        assert found[: len(expected)] == expected  # what was acknowledged is there
        more = found[len(expected) :]
        assert more in ([], list(range(first + 10 * len(told), first + 10 * len(told) + 10)))  # and at most what came next
        assert catalogue.verify(deep=True) == []
        expected = found
    catalogue.collect()
    assert scores(catalogue) == expected and not list(root.rglob("*.gewu-tmp"))


def _add_many(root: Path, first: int) -> None:
    for k in range(first, first + 60, 10):
        add(root, k, 10)


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_many, args=(tmp_path / "a.store", first)) for first in (0, 1000)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    catalogue = Catalogue(tmp_path / "a.store")
    assert sorted(scores(catalogue)) == [*range(60), *range(1000, 1060)]
    versions = catalogue.versions()
    assert [s.parent for s in versions] == [None, *range(1, 12)] and [s.samples for s in versions] == list(range(10, 130, 10))
    assert catalogue.verify(deep=True) == []


def test_a_lock_that_is_never_free_is_reported(store: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gewu.data.catalogue._WAITS", 2)
    with store._locked(), pytest.raises(ResourceError, match="is in use by process"):
        store.compact()


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be made"):
        Catalogue(tmp_path / "a" / "b.store").compact()


def test_reading_needs_no_duckdb(made: Path) -> None:
    code = (
        "import sys; sys.modules['duckdb'] = None\n"
        "from gewu.data.catalogue import Catalogue\n"
        "print(len(Catalogue(sys.argv[1]).open()))\n"
        "try: Catalogue(sys.argv[1]).where('length > 1')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = run_python(code, str(made))
    assert done.stdout.splitlines() == ["120", "ResourceError needs the package duckdb; pip install 'gewu[data]'"], done.stderr
