"""Other formats: what the peers' programs wrote is read, what goes out comes in again unchanged, types are inferred as said."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.data.convert import WRITERS, export, folder_source, format_of, source
from gewu.data.convert.fit import field_name, merged, type_of
from gewu.data.fields import Schema
from gewu.data.piece import Reject
from gewu.data.storewriter import StoreWriter
from gewu.formats import folder as folder_files
from gewu.formats import jsonl
from tests.data.converttools import JPEG, PNG, random_samples, read, same, stored

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("form", ["jsonl", "parquet", "arrow", "webdataset", "mds", "hdf5"])
def test_what_goes_out_comes_in_again(form: str, tmp_path: Path) -> None:
    types, samples = random_samples()
    store = stored(tmp_path / "store", samples, types, units={"rows": "eV/Å"})
    out = tmp_path / f"out.{form}"
    assert export(store, out, form, shard_bytes=20_000) == len(samples)
    found, again = read(out)
    assert format_of(out) in (form, "results")
    free = {"vec": "float64[*]"} if form == "webdataset" else {}  # a .npy does not say that all have this shape
    assert {name: found[name] for name in types} == types | free
    assert len(again) == len(samples)
    for old, new in zip(samples, again, strict=True):
        assert all(same(old[name], new[name]) for name in types)
    assert set(found) - set(types) == ({"key"} if form == "webdataset" else set())
    if form in ("jsonl", "parquet", "arrow", "hdf5"):
        assert source(out).schema == store.schema  # units travel too
    with pytest.raises(InputError, match="exists already"):
        export(store, out, form)


@pytest.mark.parametrize("form", ["jsonl", "parquet", "arrow", "webdataset", "mds", "hdf5"])
def test_export_is_the_same_bytes_every_time(form: str, tmp_path: Path) -> None:
    types, samples = random_samples(5)
    store = stored(tmp_path / "store", samples, types)
    made = []
    for name in ("a", "b"):
        export(store, tmp_path / f"{name}.{form}", form)
        made.append([p.read_bytes() for p in sorted((tmp_path / f"{name}.{form}").rglob("*")) or [tmp_path / f"{name}.{form}"]])
    assert made[0] == made[1] and all(made[0])


def test_lists_and_absent_values_in_the_formats_that_hold_them(tmp_path: Path) -> None:
    types = {
        "a": "int64?",
        "b": "text?",
        "c": "list[text]",
        "d": "list[list[int64]]",
        "e": "float64[*]?",
        "f": "bool",
        "g": "list[bytes]",
    }
    samples = [
        {"a": 1, "b": None, "c": ["x", ""], "d": [[1], []], "e": np.array([1.0, np.nan]), "f": True, "g": [b"\0", b""]},
        {"a": None, "b": "y", "c": [], "d": [], "e": None, "f": False, "g": []},
        {"a": -3, "b": "", "c": ["z"], "d": [[], [2, 3]], "e": np.array([]), "f": True, "g": [b"q"]},
    ]
    store = stored(tmp_path / "store", samples, types)
    for form in ("jsonl", "parquet", "arrow"):
        export(store, tmp_path / f"o.{form}", form)
        found, again = read(tmp_path / f"o.{form}")
        assert found == types
        assert all(same(old[name], new[name]) for old, new in zip(samples, again, strict=True) for name in types)


@pytest.mark.parametrize(
    ("form", "type_"),
    [("mds", "bool"), ("mds", "list[text]"), ("mds", "text?"), ("mds", "complex64[2]"), ("webdataset", "list[text]"),
     ("webdataset", "bfloat16"), ("parquet", "complex64"), ("parquet", "float64[*,*]"), ("jsonl", "complex128"),
     ("hdf5", "text?"),
     ("hdf5", "list[int64]"), ("hdf5", "float16"), ("folder", "int64"), ("extxyz", "bytes"), ("jsonl", "list[complex64]")],
)  # fmt: skip
def test_what_a_format_cannot_hold_is_refused_by_name(form: str, type_: str, tmp_path: Path) -> None:
    value: Any = {"bool": True, "text?": "a", "bytes": b"", "int64": 1, "bfloat16": 1.0, "float16": 1.0}.get(type_)
    value = [] if type_.startswith("list") else np.zeros((2, 2)[: type_.count(",") + 1]) if "[" in type_ else value
    sample = {"odd": 0j if type_ in ("complex64", "complex128") else value}
    types = {"odd": type_}
    if form == "extxyz":
        sample |= {"numbers": np.array([1], np.int32), "positions": np.zeros((1, 3))}
        types |= {"numbers": "int32[*]", "positions": "float64[*,3]"}
    store = stored(tmp_path / "store", [sample], types)
    with pytest.raises(InputError, match=r"odd: .*cannot hold this field"):
        export(store, tmp_path / "out", form)
    assert not (tmp_path / "out").is_file() and (not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir()))


def test_an_empty_array_is_none_of_mds(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", [{"a": np.zeros(0)}], {"a": "float64[*]"})
    with pytest.raises(InputError, match="a: MDS holds no empty array"):
        export(store, tmp_path / "out", "mds")


def test_an_unknown_format_lists_those_that_are_known(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", [{"a": 1}], {"a": "int64"})
    with pytest.raises(InputError, match=r"'csv'.*allowed: ") as error:
        export(store, tmp_path / "out", "csv")
    assert all(name in str(error.value) for name in WRITERS)
    (tmp_path / "x.dat").write_bytes(b"\1\2\3")
    with pytest.raises(InputError, match=r"x\.dat: format is not known.*jsonl, .*parquet"):
        source(tmp_path / "x.dat")
    with pytest.raises(InputError, match="no such file"):
        source(tmp_path / "absent")


# What the peers' own programs wrote -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mds", "mds-zstd"])
def test_shards_of_mosaicml_streaming(name: str) -> None:
    types, samples = read(GOLDEN / name)
    assert types == {
        "dec": "text", "f2": "float16", "f4": "float32", "fixed": "float64[2,3]", "free": "uint32[*,*,3]", "js": "text",
        "n": "int64",
        "photo": "image", "pic": "image", "pics": "list[image]", "raw": "bytes", "si": "text", "text": "text",
        "typed": "int16[*]",
        "u8": "uint8",
    }  # fmt: skip
    assert len(samples) == 3
    for i, sample in enumerate(samples):
        assert (sample["text"], sample["raw"], sample["n"], sample["u8"]) == (f"grüß {i}", bytes(range(i)), -i, 250 + i)
        assert (sample["f4"], sample["f2"]) == (float(np.float32(i / 3)), i / 4)
        assert same(sample["free"], np.arange(6 * (i + 1), dtype=np.uint32).reshape(2, -1, 3))
        assert same(sample["typed"], np.arange(i + 1, dtype=np.int16))
        assert same(sample["fixed"], np.arange(6.0).reshape(2, 3) + i)
        assert (json.loads(sample["js"]), sample["si"], sample["dec"]) == ({"a": [i, None]}, str(10**30 + i), "1.10")
        assert (
            sample["pic"].startswith(b"\x89PNG")
            and sample["photo"].startswith(b"\xff\xd8")
            and sample["pics"] == [sample["pic"]] * i
        )


def test_shards_of_webdataset() -> None:
    types, samples = read(GOLDEN / "webdataset.tar.gz")
    assert types == {
        "key": "text",
        "bin": "bytes",
        "cls": "int64",
        "json": "text",
        "npy": "float32[*,3]",
        "seg": "image",
        "txt": "text",
    }
    for i, sample in enumerate(samples):
        assert (sample["key"], sample["txt"], sample["cls"], json.loads(sample["json"])) == (
            f"train/{i:04d}",
            f"grüß {i}",
            i,
            {"a": [i]},
        )
        assert same(sample["npy"], np.arange(3 * i, dtype=np.float32).reshape(i, 3)) and sample["bin"] == bytes(range(i))
        assert sample["seg"] == b"\x89PNG\r\n\x1a\n" + bytes([i])


# Inference --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([1, 2], "int64"), ([1, 2.5], "float64"), ([True, False], "bool"), ([True, 1], "text"), (["a", 1], "text"),
        (["a", "b"], "text"),
        ([2**70, 1], "text"), ([{"a": 1}, {"b": [2]}], "text"), ([[1, 2], [3]], "int64[*]"), ([[1, 2], [3.5]], "float64[*]"),
        ([[[1, 2, 3]], [[4, 5, 6], [7, 8, 9]]], "int64[*,3]"), ([[[1, 2]], [[1, 2], [3]]], "list[int64[*]]"),
        ([["a"], ["b", "c"]], "list[text]"), ([[], ["b"]], "list[text]"), ([[], [1]], "int64[*]"), ([[], []], "text"),
        ([[1], ["a"]], "text"), ([[{"a": 1}]], "text"), ([1, None], "int64?"), ([None, None], "text?"), ([[1, None]], "text"),
        ([1.0, float("nan")], "float64"),
    ],
)  # fmt: skip
def test_types_are_inferred_from_json(values: list[Any], type_: str, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps({"v": value}) + "\n" for value in values))
    types, samples = read(file)
    assert types == {"v": type_}
    for value, sample in zip(values, samples, strict=True):
        if type_ == "text":
            assert sample["v"] == (value if isinstance(value, str) else json.dumps(value, separators=(",", ":")))
        elif value is not None and not (isinstance(value, float) and value != value):
            found = sample["v"]
            found = [list(part) for part in found] if type_ == "list[int64[*]]" else np.asarray(found).tolist()
            assert found == value


def test_merging_types_does_not_depend_on_the_order() -> None:
    values = [
        None,
        True,
        3,
        2.5,
        "a",
        b"b",
        [],
        [1],
        [1.5],
        [[1, 2]],
        [[1], [2, 3]],
        ["x"],
        [["x"]],
        {"a": 1},
        np.zeros(3),
        np.float32(1),
    ]
    kinds = [type_of(value) for value in values]
    for a in kinds:
        assert merged(a, a) == a
        for b in kinds:
            assert merged(a, b) == merged(b, a)
            for c in kinds:
                assert merged(merged(a, b), c) == merged(a, merged(b, c)), (a, b, c)


def test_a_later_sample_that_does_not_fit_is_refused_with_line_and_field(tmp_path: Path) -> None:
    lines = [{"a": 1, "b": "x"}] * 1000 + [
        {"a": "one", "b": "x"},
        {"a": 1},
        {"a": 1, "b": "x", "c": 2},
        {"a": 1.5, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, samples = read(file)
    rejects = [sample for sample in samples if isinstance(sample, Reject)]
    assert [r.reason for r in rejects] == ["schema-mismatch"] * 4
    for reject, line, field in zip(rejects, (1001, 1002, 1003, 1004), ("a", "b", "c", "a"), strict=True):
        assert reject.where.startswith(f"{file}:{line}: {field}: ")
    assert samples[-1] == {"a": 2, "b": "y"} and len(samples) == 1005


def test_a_schema_that_is_given_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"v": [1, 2, 3]}\n{"v": [1, 2]}\n')
    types, samples = read(tmp_path / "x.jsonl", schema=Schema.of({"v": "float32[3]"}))
    assert types == {"v": "float32[3]"} and same(samples[0]["v"], np.array([1, 2, 3], np.float32))
    assert samples[1].reason == "schema-mismatch" and "x.jsonl:2: v: " in samples[1].where


def test_names_become_names_of_fields() -> None:
    assert [field_name(name) for name in ("ok", "first name", "2nd", "größe", "a.b-c")] == [
        "ok",
        "first_name",
        "_2nd",
        "gr__e",
        "a.b-c",
    ]


# JSON lines -------------------------------------------------------------------------------------------------------------------


def test_pieces_of_a_file_cover_every_line_once(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    lines = [json.dumps({"n": n, "t": "ü" * int(random.integers(0, 40))}, ensure_ascii=bool(n % 2)) for n in range(300)]
    file = tmp_path / "x.jsonl"
    for end in ("\n", "\r\n", "\n\n"):
        file.write_bytes((b"\xef\xbb\xbf" + end.join(lines).encode()) + (b"" if end == "\n" else end.encode()))
        for step in (1, 7, 50, 1000, 10**6):
            size = file.stat().st_size
            starts = range(0, size, step) if step > 1 or end == "\n" else ()
            found = [sample["n"] for start in starts for _, sample in jsonl.records(str(file), start, start + step)]
            assert found == list(range(300)) or not starts


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst", ".bz2"])
def test_compressed_lines(suffix: str, tmp_path: Path) -> None:
    data = b"".join(b'{"n": %d}\n' % n for n in range(60_000))
    file = tmp_path / f"x.jsonl{suffix}"
    if suffix == ".zst":
        with pa.CompressedOutputStream(str(file), "zstd") as stream:
            stream.write(data)
    else:
        pack = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[suffix]
        file.write_bytes(pack(data[:20_000]) + pack(data[20_000:]))  # members one after the other, as `cat` makes
    assert [sample["n"] for sample in read(file)[1]] == list(range(60_000))
    file.write_bytes(file.read_bytes()[: -len(file.read_bytes()) // 3])
    found = read(file)[1]
    assert len(found) > 1000 and found[-1].reason == "damaged" and str(file) in found[-1].where
    assert [sample["n"] for sample in found[:-1]] == list(range(len(found) - 1))


# Tables -----------------------------------------------------------------------------------------------------------------------


def test_parquet_of_others(tmp_path: Path) -> None:
    import datetime
    import decimal

    columns = {
        "text": ["a", None, "c"], "n": [1, 2, 3], "half": pa.array(np.arange(3, dtype=np.float16)),
        "flags": [[True], [], [False, True]],
        "tokens": pa.array([[1, 2], [], [3]], pa.list_(pa.int32())), "pos": pa.array([[[1.0, 2.0]], [], [[3.0, 4.0], [5.0, 6.0]]],
        pa.list_(pa.list_(pa.float64(), 2))), "vec": pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32(), 2)),
        "words": [["x"], [], ["y", "z"]],
        "image": [{"bytes": PNG, "path": "a.png"}] * 3, "meta": [{"k": 1}, {"k": 2}, {"k": None}],
        "day": [datetime.date(2026, 1, n) for n in (1, 2, 3)], "money": [decimal.Decimal("1.10")] * 3,
        "label": pa.array(["u", "v", "u"]).dictionary_encode(), "ragged list": [[[1], [2, 3]], [], [[]]],
    }  # fmt: skip
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    for name in ("x.parquet", "x.arrow"):
        types, samples = read(tmp_path / name)
        assert types == {
            "text": "text?", "n": "int64", "half": "float16", "flags": "bool[*]", "tokens": "int32[*]", "pos": "float64[*,2]",
            "vec": "float32[2]", "words": "list[text]", "image": "image", "meta": "text", "day": "text", "money": "text",
            "label": "text",
            "ragged_list": "list[int64[*]]",
        }  # fmt: skip
        assert len(source(tmp_path / name).pieces) == 2
        assert [s["text"] for s in samples] == ["a", None, "c"] and [s["label"] for s in samples] == ["u", "v", "u"]
        assert same(samples[2]["pos"], np.array([[3.0, 4.0], [5.0, 6.0]])) and samples[1]["pos"].shape == (0, 2)
        assert same(samples[2]["tokens"], np.array([3], np.int32)) and same(samples[1]["half"], 1.0)
        assert samples[0]["image"] == PNG and samples[0]["meta"] == '{"k":1}' and samples[1]["day"] == "2026-01-02"
        assert samples[0]["money"] == "1.10" and samples[2]["words"] == ["y", "z"] and samples[0]["flags"].dtype == bool
        assert [part.tolist() for part in samples[0]["ragged_list"]] == [[1], [2, 3]]


def test_a_null_among_numbers_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"v": [[1.0, 2.0], [1.0, None], [3.0]]}), tmp_path / "x.parquet")
    _, samples = read(tmp_path / "x.parquet")
    assert [isinstance(sample, Reject) for sample in samples] == [False, True, False]
    assert samples[1].reason == "schema-mismatch" and "group 0, row 1: v: " in samples[1].where


def test_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "2.parquet")
    with pytest.raises(InputError, match=r"2\.parquet: has other columns"):
        source(tmp_path)


# Archives ---------------------------------------------------------------------------------------------------------------------


def test_zip_and_names_of_members(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(3):
            archive.writestr(f"d/{k}.JPG", JPEG)
            archive.writestr(f"d/{k}.meta.json", '{"a": 1}')
            archive.writestr(f"d/{k}.mask.png", PNG)
            archive.writestr(f"d/{k}.mask.json", "{}")
            archive.writestr(f"d/{k}.README", b"raw")
    types, samples = read(tmp_path / "x.zip")
    assert types == {"key": "text", "jpg": "image", "meta": "text", "mask": "image", "mask.json": "text", "readme": "bytes"}
    assert [sample["key"] for sample in samples] == ["d/0", "d/1", "d/2"]


def test_long_names_sizes_and_two_archives_in_one_file(tmp_path: Path) -> None:
    long = "d/" * 60 + "x" * 90
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        name = long if form != tarfile.USTAR_FORMAT else "d/" * 40 + "x" * 90
        data = b""
        for key in (name, "second"):
            with tarfile.open(tmp_path / "a.tar", "w", format=form) as archive:
                info = tarfile.TarInfo(key + ".txt")
                info.size = 5
                archive.addfile(info, io.BytesIO("hälo".encode()))
            data += (tmp_path / "a.tar").read_bytes()
        (tmp_path / "b.tar").write_bytes(data)
        _, samples = read(tmp_path / "b.tar")
        assert [(s["key"], s["txt"]) for s in samples] == [(name, "hälo"), ("second", "hälo")]


def test_a_key_that_cannot_name_files_is_refused(tmp_path: Path) -> None:
    for number, key in enumerate(("a.b", "/abs", "../up", "", ".hidden", "a\\b", "a\0b")):
        store = stored(tmp_path / f"s{number}", [{"key": key, "txt": "x"}], {"key": "text", "txt": "text"})
        with pytest.raises(InputError, match="key: cannot name"):
            export(store, tmp_path / f"o{number}", "webdataset")
    store = stored(tmp_path / "twice", [{"key": "a", "txt": "x"}] * 2, {"key": "text", "txt": "text"})
    with pytest.raises(InputError, match="key: names two samples in a row"):
        export(store, tmp_path / "out", "webdataset")


# Folders ----------------------------------------------------------------------------------------------------------------------


def test_folders_of_texts_pictures_and_anything(tmp_path: Path) -> None:
    texts, pictures, mixed = (tmp_path / name for name in ("texts", "pictures", "mixed"))
    for k in range(30):
        for folder, data in ((texts, f"Text {k} ü\n".encode()), (pictures, PNG + bytes([k])), (mixed, bytes([0, k]))):
            place = folder / f"c{k % 3}" / f"{k:02d}.{'png' if folder == pictures else 'x'}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
    assert [format_of(folder) for folder in (texts, pictures, mixed)] == ["folder"] * 3
    types, samples = read(texts, group_files=7)
    assert types == {"path": "text", "data": "text"} and samples[1] == {"path": "c0/03.x", "data": "Text 3 ü\n"}
    assert [s["path"] for s in samples] == sorted(str(p.relative_to(texts)) for p in texts.rglob("*.x"))
    assert len(source(texts, group_files=20).pieces) == 2
    types, samples = read(pictures)
    assert types == {"path": "text", "label": "text", "image": "image"} and samples[-1]["label"] == "c2"
    assert source(pictures).columns == ("label",)
    types, samples = read(mixed)
    assert types == {"path": "text", "data": "bytes"} and len(samples) == 30
    (texts / "z").mkdir()
    (texts / "z" / "1.gz").write_bytes(b"\x1f\x8b\xff")  # one that is no text, far behind
    assert read(texts)[0] == {"path": "text", "data": "bytes"}
    types, _ = read(texts, content="bytes")
    assert types == {"path": "text", "data": "bytes"}


def test_folders_come_back(tmp_path: Path) -> None:
    for name, sample in (("a", {"path": "x/1.png", "label": "x", "image": PNG}), ("b", {"path": "x/y/1.txt", "data": "ü"})):
        types = {"path": "text", "label": "text", "image": "image"} if name == "a" else {"path": "text", "data": "text"}
        store = stored(tmp_path / f"s{name}", [sample], types)
        export(store, tmp_path / name, "folder")
        assert read(tmp_path / name) == (types, [sample])


def test_a_flat_folder_of_many_files_is_cut_by_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_files, "RANGE_FILES", 100)
    names = [f"{k * 7919 % 1000:03d}.txt" for k in range(1000)]
    for name in names:
        (tmp_path / name).write_text(name)
    found = folder_source(tmp_path)
    assert len(found.pieces) == 10
    parts = [[sample["path"] for sample in piece.samples()] for piece in found.pieces]
    assert [name for part in parts for name in part] == sorted(names)
    assert max(map(len, parts)) < 150


def test_a_store_is_a_source_too(tmp_path: Path) -> None:
    types, samples = random_samples(10)
    with StoreWriter(tmp_path / "x.store", Schema.of(types)) as writer:
        for sample in samples:
            writer.add(sample)
    assert format_of(tmp_path / "x.store") == "store"
    found, again = read(tmp_path / "x.store")
    assert found == types and all(same(a[name], b[name]) for a, b in zip(samples, again, strict=True) for name in types)


def test_formats_are_recognised_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_text('{"a": 1}\n')
    (tmp_path / "b.dat").write_bytes(gzip.compress(b'{"a": 1}\n'))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "c.dat")
    with tarfile.open(tmp_path / "d.dat", "w") as archive:
        info = tarfile.TarInfo("x.txt")
        archive.addfile(info)
    with h5py.File(tmp_path / "e.dat", "w") as file:
        file["x"] = np.arange(3)
    (tmp_path / "f.dat").write_bytes(b"?")
    assert [format_of(tmp_path / f"{c}.dat") for c in "abcdef"] == ["jsonl", "jsonl", "parquet", "webdataset", "results", None]
    assert format_of(tmp_path) == "folder"  # of several formats: files as they are
    assert read(tmp_path / "e.dat")[1][0]["x"].tolist() == [0, 1, 2]
    many = tmp_path / "many"
    many.mkdir()
    for k in range(3):
        (many / f"{k}.jsonl").write_text(f'{{"a": {k}}}\n')
    (many / "README.md").write_text("about")
    assert format_of(many) == "jsonl" and [sample["a"] for sample in read(many)[1]] == [0, 1, 2]
    (many / "notes.txt").write_text("about")
    assert format_of(many) == "folder" and [sample["a"] for sample in read(many, "jsonl")[1]] == [0, 1, 2]
    with pytest.raises(InputError, match="format is not known"):
        read(many, "parquet")


def test_the_limit_of_lines(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": "' + "x" * 100 + '"}\n{"a": 2}\n')
    _, found = read(tmp_path / "x.jsonl", line_bytes=50)
    assert found[0] == {"a": 1} and found[2] == {"a": 2} and found[1].reason == "line-too-long"
    assert os.path.basename(found[1].where).startswith("x.jsonl:2")
