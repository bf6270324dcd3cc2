"""Other formats from hands that mean no good: nothing is extracted or executed, memory is bounded, each refusal is named."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import os
import pickle
import resource
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import textwrap
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gewu.core.errors import InputError, StoreError
from gewu.data.convert import source
from gewu.data.convert.fit import RecordPiece
from gewu.data.fields import Schema
from gewu.data.piece import Reject
from gewu.formats import archive, folder
from gewu.formats.archive import npy_array
from gewu.formats.packed import LIMITS, Limits

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
TEXT = Schema.of({"key": "text", "txt": "text"})


def drain(path: Path, schema: Schema | None = TEXT, **options: Any) -> tuple[list[dict[str, Any]], list[Reject]]:
    """Return samples and refusals; every refusal names the file."""
    found = [sample for piece in source(path, schema=schema, **options).pieces for sample in piece.samples()]
    rejects = [sample for sample in found if isinstance(sample, Reject)]
    assert all(path.name in reject.where for reject in rejects), rejects
    assert all(reject.reason.replace("-", "").isalnum() and len(reject.reason) < 30 for reject in rejects)
    return [sample for sample in found if not isinstance(sample, Reject)], rejects


def archived(path: str, limits: Limits = LIMITS) -> list[Any]:
    return list(RecordPiece("p", path, (limits,), reader=archive.records, schema=TEXT).samples())


def tar_of(path: Path, *members: tuple[str, bytes | tarfile.TarInfo], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                archive.addfile(info)
    return path


def special(kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def good(number: int) -> tuple[str, bytes]:
    return f"good{number}.txt", b"ok"


def limited(code: str, megabytes: int = 400) -> subprocess.CompletedProcess[str]:
    """Run code in a process that may take only so much memory beyond what it has after its imports."""
    head = f"""
        import resource, sys
        from pathlib import Path
        from gewu.data.convert import source
        from gewu.data.fields import Schema
        from gewu.data.piece import Reject
        import pyarrow
        def kb(): return int(next(r for r in open("/proc/self/status") if r.startswith("VmHWM")).split()[1])
        before = kb()
        def check(): assert kb() - before < {megabytes} * 1024, kb() - before
    """
    program = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)


# Archives ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/etc/passwd.txt", "../up.txt", "a/../../up.txt", "a/..", "..", "c:\\x.txt", "a\\..\\b.txt"])
def test_names_that_lead_outside(name: str, tmp_path: Path) -> None:
    file = tar_of(tmp_path / "x.tar", good(1), (name, b"evil"), good(2))
    samples, rejects = drain(file)
    assert [sample["key"] for sample in samples] == ["good1", "good2"]
    assert [reject.reason for reject in rejects] == ["unsafe-name"] and name.replace("\\", "\\\\")[:8] in rejects[0].where
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for member in (good(1), (name, b"evil"), good(2)):
            archive.writestr(zipfile.ZipInfo(member[0]), member[1])
    samples, rejects = drain(tmp_path / "x.zip")
    assert [sample["key"] for sample in samples] == ["good1", "good2"] and [reject.reason for reject in rejects] == [
        "unsafe-name"
    ]
    assert sorted(os.listdir(tmp_path)) == ["x.tar", "x.zip"]  # nothing was written anywhere near


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
                                  tarfile.GNUTYPE_SPARSE, b"Z"])  # fmt: skip
def test_members_that_are_no_files(kind: bytes, tmp_path: Path) -> None:
    file = tar_of(tmp_path / "x.tar", good(1), ("link.txt", special(kind)), good(2))
    samples, rejects = drain(file)
    assert [sample["key"] for sample in samples] == ["good1", "good2"]
    assert [reject.reason for reject in rejects] == ["not-a-file"] and "link.txt" in rejects[0].where


def test_links_and_encrypted_members_of_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("locked.txt", "secret")
        archive.writestr("good.txt", "ok")
    data = bytearray((tmp_path / "x.zip").read_bytes())
    at = data.rindex(b"PK\1\2", 0, data.rindex(b"locked.txt"))
    data[at + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    samples, rejects = drain(tmp_path / "x.zip")
    assert [sample["key"] for sample in samples] == ["good"] and [reject.reason for reject in rejects] == ["not-a-file"] * 2


def test_names_that_are_not_utf8_or_hold_nul(tmp_path: Path) -> None:
    file = tar_of(tmp_path / "x.tar", good(1))
    with tarfile.open(tmp_path / "y.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("x.txt")
        info.pax_headers = {"path": "a\0b.txt"}
        archive.addfile(info)
    raw = bytearray(tarfile.TarInfo("bad.txt").tobuf())
    raw[0:3] = b"\xff\xfe\xfd"
    raw[148:156] = b"%06o\0 " % (sum(raw) - sum(raw[148:156]) + 256)
    file.write_bytes(bytes(raw) + (tmp_path / "y.tar").read_bytes() + file.read_bytes())
    samples, rejects = drain(file)
    assert [sample["key"] for sample in samples] == ["good1"]
    assert [reject.reason for reject in rejects] == ["unsafe-name"] * 2 and "xff" in rejects[0].where


def test_the_same_name_twice(tmp_path: Path) -> None:
    file = tar_of(tmp_path / "x.tar", ("a.txt", b"first"), ("a.txt", b"second"), good(1))
    samples, rejects = drain(file)
    assert samples[0] == {"key": "a", "txt": "first"} and [reject.reason for reject in rejects] == ["duplicate-name"]


def test_sizes_that_are_not_true(tmp_path: Path) -> None:
    huge = tarfile.TarInfo("huge.txt")
    huge.size = 10**12
    for name, form in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        file = tmp_path / f"{name}.tar"
        file.write_bytes(tar_of(tmp_path / "g.tar", good(1)).read_bytes() + huge.tobuf(form) + b"x" * 1000)
        samples, rejects = drain(file)
        assert [s["key"] for s in samples] == ["good1"]
        assert [r.reason for r in rejects] == ["member-too-large", "damaged"] and "truncated" in rejects[1].where
    sparse = tarfile.TarInfo("sparse.txt")
    sparse.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.realsize": "1000000000000",
        "GNU.sparse.name": "s",
    }
    file.write_bytes(sparse.tobuf(tarfile.PAX_FORMAT) + (tmp_path / "g.tar").read_bytes())
    samples, rejects = drain(file)
    assert [s["key"] for s in samples] == ["good1"] and [r.reason for r in rejects] == ["not-a-file"]
    negative = bytearray(tarfile.TarInfo("n.txt").tobuf())
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b"%06o\0 " % (sum(negative) - sum(negative[148:156]) + 256)
    file.write_bytes((tmp_path / "g.tar").read_bytes() + negative)
    samples, rejects = drain(file)
    assert len(samples) == 1 and [r.reason for r in rejects] == ["damaged"]


def test_a_tar_cut_anywhere_says_so(tmp_path: Path) -> None:
    whole = tar_of(
        tmp_path / "x.tar", *(good(n) for n in range(3)), ("long/" * 30 + "a.txt", b"z" * 700), form=tarfile.PAX_FORMAT
    ).read_bytes()
    end = whole.rstrip(b"\0").__len__()
    for cut in (*range(100, end, 97), end):
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        samples, rejects = drain(tmp_path / "x.tar")
        assert [reject.reason for reject in rejects] == ["damaged"], cut
        assert all(sample["txt"] in ("ok", "z" * 700) for sample in samples)
    (tmp_path / "x.tar").write_bytes(whole)
    assert len(drain(tmp_path / "x.tar")[0]) == 4


def test_a_tar_mutated_anywhere_never_crashes(tmp_path: Path) -> None:
    random = np.random.default_rng(11)
    whole = tar_of(
        tmp_path / "x.tar", *(good(n) for n in range(3)), ("long/" * 30 + "a.txt", b"z" * 700), form=tarfile.PAX_FORMAT
    ).read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        for at in random.integers(0, len(whole), int(random.integers(1, 6))):
            data[at] = random.integers(256)
        (tmp_path / "x.tar").write_bytes(data)
        drain(tmp_path / "x.tar")


def test_an_extended_header_of_a_gigabyte(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    good_tar = tar_of(tmp_path / "g.tar", good(1), good(2)).read_bytes()
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(header.tobuf())
        file.seek(1 << 30, 1)
        file.write(good_tar)
    code = f"""
        schema = Schema.of({{"key": "text", "txt": "text"}})
        found = list(source({str(tmp_path / "x.tar")!r}, "webdataset", schema=schema).pieces[0].samples())
        print([f.reason if isinstance(f, Reject) else f["key"] for f in found])
        check()
    """
    done = limited(code, 60)
    assert done.stdout.strip() == "['member-too-large', 'not-a-file', 'good2']", done.stderr


def test_bombs(tmp_path: Path) -> None:
    limits = Limits(free_bytes=1 << 20)
    bomb = b"\0" * (20 << 20)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.txt", "ok")
        archive.writestr("bomb.txt", bomb)
    tar_of(tmp_path / "x.tar", good(1), ("bomb.txt", bomb), good(2))
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    for name in ("x.zip", "x.tar.gz"):
        found = archived(str(tmp_path / name), limits)
        assert found[0]["txt"] == "ok" and found[1].reason == "damaged" and "a bomb" in found[1].where and len(found) == 2
    assert len(archived(str(tmp_path / "x.tar"), limits)) == 3  # as large as it says
    small = Limits(member_bytes=1000)
    found = archived(str(tmp_path / "x.zip"), small)
    assert [f.reason for f in found if isinstance(f, Reject)] == ["member-too-large"]


def test_members_of_zip_that_lie_or_overlap(tmp_path: Path) -> None:
    body = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = body.compress(b"\0" * (4 << 20)) + body.flush()
    crc = zlib.crc32(b"\0" * (4 << 20))
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 8, 0, 33, crc, len(packed), 4 << 20, 5, 0) + b"a.txt" + packed
    entry = (
        struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 8, 0, 33, crc, len(packed), 4 << 20, 5, 0, 0, 0, 0, 0, 0)
        + b"a.txt"
    )
    many = entry * 300  # three hundred times the same bytes
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 300, 300, len(many), len(local), 0)
    (tmp_path / "x.zip").write_bytes(local + many + end)
    found = archived(str(tmp_path / "x.zip"))
    assert found[-1].reason == "damaged" and "a bomb" in found[-1].where and len(found) < 30
    lying = entry.replace(struct.pack("<I", 4 << 20), struct.pack("<I", 100))
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(lying), len(local), 0)
    (tmp_path / "x.zip").write_bytes(local + lying + end)
    found = archived(str(tmp_path / "x.zip"))
    assert [f.reason for f in found] == ["damaged-member"] and "x.zip: 'a.txt'" in found[0].where
    (tmp_path / "x.zip").write_bytes((local + many + end)[:-30])
    assert [f.reason for f in archived(str(tmp_path / "x.zip"))] == ["damaged"]


# Arrays -----------------------------------------------------------------------------------------------------------------------


def npy(header: dict[str, Any], data: bytes) -> bytes:
    text = repr(header).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "data",
    [
        npy({"descr": "<f8", "fortran_order": False, "shape": (10**12,)}, b"\0" * 80),
        npy({"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**40)}, b"\0" * 8),
        npy({"descr": "<f8", "fortran_order": False, "shape": (-1, -8)}, b"\0" * 64),
        npy({"descr": "|O", "fortran_order": False, "shape": (1,)}, pickle.dumps([print])),
        npy({"descr": [("a", "<f8")], "fortran_order": False, "shape": (1,)}, b"\0" * 8),
        npy({"descr": "<f8", "fortran_order": False, "shape": "x"}, b""),
        b"\x93NUMPY\1\0\xff\xff{", b"\x93NUMPY\x09\0", b"", b"\x93NUMPY\1\0\5\0(1,) ",
    ],
)  # fmt: skip
def test_arrays_that_lie(data: bytes, tmp_path: Path) -> None:
    with pytest.raises((ValueError, EOFError, SyntaxError)):
        npy_array(data)
    file = tar_of(tmp_path / "x.tar", ("bad.npy", data), good(1))
    samples, rejects = drain(file)
    assert samples == [{"key": "good1", "txt": "ok"}] and rejects[0].reason == "damaged-member" and "bad.npy" in rejects[0].where


def test_true_arrays_are_read() -> None:
    for array in (
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
        np.array(3 + 1j),
        np.zeros((0, 3)),
    ):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array)
        found = np.asarray(npy_array(buffer.getvalue()))
        assert (found == array).all() and found.shape == array.shape and found.dtype.isnative


# JSON lines -------------------------------------------------------------------------------------------------------------------


def test_lines_that_are_wrong(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    rows = [b'{"a": 1}', b"\xff\xfe", b'{"a": ', b"[1]", b"3", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"a": 1e999}',
            b'{"a": ' + b"9" * 5000 + b"}", b'{"a": NaN}', b'{"a": "x"}', b'{"a": 2}', b'{"a": true}',
            b'{"a": 99999999999999999999}',
            b'{"a": {"b": 1}}', b'{"a": null}', b"{}"]  # fmt: skip
    file.write_bytes(b"\n".join(rows))
    samples, rejects = drain(file, Schema.of({"a": "int64"}))
    assert samples == [{"a": 1}, {"a": 2}]
    reasons = ["invalid-utf8", "not-json", "not-an-object", "not-an-object", "too-deep", "schema-mismatch", "not-json"]
    assert [reject.reason for reject in rejects] == reasons + ["schema-mismatch"] * 7
    assert [int(reject.where[len(str(file)) + 1 :].split(":")[0]) for reject in rejects] == [
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        10,
        12,
        13,
        14,
        15,
        16,
    ]
    floats, rejects = drain(file, Schema.of({"a": "float64"}))
    assert str([sample["a"] for sample in floats]) == "[1.0, inf, nan, 2.0, 1e+20]"


def test_half_of_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": "\\ud800"}\n{"a": "\\ud83d\\ude00"}\n')
    samples, rejects = drain(tmp_path / "x.jsonl", Schema.of({"a": "text"}))
    assert samples == [{"a": "😀"}] and rejects[0].where.startswith(f"{tmp_path}/x.jsonl:1: a: ")


def test_a_line_of_a_gigabyte_takes_no_gigabyte(tmp_path: Path) -> None:
    with open(tmp_path / "x.jsonl", "wb") as file:
        file.write(b'{"a": 1}\n{"a": "')
        file.seek(1 << 30, 1)  # a hole: zeros without a line end
        file.write(b'"}\n{"a": 2}\n')
    code = f"""
        schema = Schema.of({{"a": "int64"}})
        pieces = source({str(tmp_path / "x.jsonl")!r}, schema=schema, line_bytes=1 << 20).pieces
        found = [sample for piece in pieces for sample in piece.samples()]
        print([f.reason if isinstance(f, Reject) else f["a"] for f in found])
        check()
    """
    done = limited(code, 60)
    assert done.stdout.strip() == "[1, 'line-too-long', 2]", done.stderr


def test_a_bomb_of_lines(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' + b" " * (100 << 20)))
    samples, rejects = drain(tmp_path / "x.jsonl.gz", Schema.of({"a": "int64"}))
    assert samples == [{"a": 1}] and rejects[0].reason == "damaged" and "a bomb" in rejects[0].where


# MDS --------------------------------------------------------------------------------------------------------------------------


def changed(tmp_path: Path, **entry: Any) -> Path:
    shutil.copytree(GOLDEN / "mds", tmp_path / "mds", dirs_exist_ok=True)
    index = json.loads((GOLDEN / "mds" / "index.json").read_text())
    for key, value in entry.items():
        if value is None:
            del index["shards"][0][key]
        else:
            index["shards"][0][key] = value
    (tmp_path / "mds" / "index.json").write_text(json.dumps(index))
    return tmp_path / "mds"


def test_an_index_of_mds_that_means_no_good(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 100)
    for name in ("../secret", str(secret), "a/../../secret"):
        with pytest.raises(InputError, match=r"index\.json: shard 0: names no shard of this folder"):
            source(changed(tmp_path, raw_data={"basename": name, "bytes": 100, "hashes": {}}))
    encodings = json.loads((GOLDEN / "mds" / "index.json").read_text())["shards"][0]["column_encodings"]
    with pytest.raises(InputError, match=r"index\.json: dec: encoding cannot be read \(got 'pkl'\).*never unpickled"):
        source(changed(tmp_path, column_encodings=["pkl", *encodings[1:]]))
    for broken in ({"samples": None}, {"column_names": 3}, {"raw_data": None}, {"format": "json"}, {"column_sizes": ["x"] * 15}):
        with pytest.raises(InputError, match=r"mds/"):
            source(changed(tmp_path, **broken))
    for text in ("", "[]", "{}", '{"version": 1}', '{"version": 2, "shards": 3}', "[" * 100_000, "\xff"):
        (tmp_path / "mds" / "index.json").write_text(text, encoding="latin-1")
        with pytest.raises(InputError, match=r"index\.json"):
            source(tmp_path / "mds")


def test_damaged_shards_of_mds(tmp_path: Path) -> None:
    schema = source(GOLDEN / "mds").schema
    whole = (GOLDEN / "mds" / "shard.00000.mds").read_bytes()
    info = {"basename": "shard.00000.mds", "bytes": len(whole), "hashes": {}}
    folder = changed(tmp_path)
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    (folder / "shard.00000.mds").write_bytes(flipped)
    samples, rejects = drain(folder / "", schema)
    assert not samples and "does not match its sha1" in rejects[0].where
    folder = changed(tmp_path, raw_data=info)
    random = np.random.default_rng(5)
    for cut in range(0, len(whole), 111):
        (folder / "shard.00000.mds").write_bytes(whole[:cut])
        samples, rejects = drain(folder, schema)
        assert rejects and len(samples) + len(rejects) in (1, 3)
    for _ in range(200):
        data = bytearray(whole)
        for at in random.integers(0, len(whole) if random.integers(2) else 800, 3):
            data[at] = random.integers(256)
        (folder / "shard.00000.mds").write_bytes(data)
        drain(folder, schema)
    folder = changed(tmp_path, raw_data=info, samples=10**9)
    (folder / "shard.00000.mds").write_bytes(whole)
    assert [r.reason for r in drain(folder, schema)[1]] == ["damaged"]
    os.remove(folder / "shard.00000.mds")
    with pytest.raises(StoreError, match="cannot be read: No such file"):  # that is no fault of the data
        drain(folder, schema)


# Tables and simulations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "h5", "extxyz"])
def test_damaged_binary_files(suffix: str, tmp_path: Path) -> None:
    table = pa.table({"a": np.arange(1000), "t": [f"text {k}" for k in range(1000)], "v": [[1.0, 2.0]] * 1000})
    file = tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, file, row_group_size=200)
    elif suffix == "arrow":
        with pa.OSFile(str(file), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=200)
    elif suffix == "h5":
        with h5py.File(file, "w") as root:
            root["a"], root["v"] = np.arange(1000), np.zeros((1000, 2))
    else:
        file.write_bytes(b'1\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-1.5 pbc="F F F"\nSi 0 0 0 1 2 3\n' * 100)
    whole, kind = file.read_bytes(), {"h5": "results"}.get(suffix, suffix)
    random = np.random.default_rng(2)
    for round_ in range(60):
        data = bytearray(whole[: int(random.integers(1, len(whole)))] if round_ % 3 == 0 else whole)
        for at in random.integers(0, len(data), 3):
            data[at] = random.integers(256)
        file.write_bytes(data)
        with contextlib.suppress(InputError):  # not one sample can be read: refused, whatever the damage
            drain(file, None, format=kind)


def test_hdf5_that_points_at_other_files(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.arange(3.0)
    (tmp_path / "secret").write_bytes(b"secret00")
    with h5py.File(tmp_path / "x.h5", "w") as root:
        root["mine"] = np.arange(3.0)
        root["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
        root["soft"] = h5py.SoftLink("/mine")
        root.create_dataset("raw", (1,), "f8", external=[(str(tmp_path / "secret"), 0, 8)])
        layout = h5py.VirtualLayout((3,), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (3,))
        root.create_virtual_dataset("virtual", layout)
        root.create_dataset("huge", (10**12,), "f8", chunks=(1000,))
    with pytest.raises(InputError, match="huge: array is too large"):
        drain(tmp_path / "x.h5", None)
    with h5py.File(tmp_path / "x.h5", "a") as root:
        del root["huge"]
    samples, _ = drain(tmp_path / "x.h5", None)
    assert [list(sample) for sample in samples] == [["mine"]]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("2\nLattice=\"1 0 0 0 1 0 0 0 1\"\nSi 0 0 0\n", "fewer lines than atoms"), ("-1\n\n", "number of atoms"),
        ("x\n", "not an integer"),
        ("1\n\nSi 0 0 nan\n", "pos: not a finite number"), ("1\n\nQq 0 0 0\n", "unknown element"),
        ("1\n\nSi 0 0\n", "wrong number of columns"),
        ("1\nProperties=species:S:1:pos:R:2\nSi 0 0\n", "are needed"),
        ("1\nProperties=species:S:1:pos:R:3:f:R:999\nSi 0 0 0\n", "wrong number"),
        ("1\nProperties=species:S:1:pos:R:3:f:Q:1\nSi 0 0 0 1\n", "not understood"),
        ('1\nLattice="1 0 0"\nSi 0 0 0\n', "nine numbers"),
        ("1\npbc=maybe\nSi 0 0 0\n", "three of pbc"), ("99999999\n\n", "fewer lines"),
        ("1\nenergy=1 energy=2\nSi 0 0 0\n", "stands twice"),
    ],
)  # fmt: skip
def test_frames_that_are_wrong(text: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "x.extxyz"
    file.write_text("1\n\nSi 0 0 0\n" + text + "1\n\nC 0 0 0\n" * ("fewer" not in what))
    samples, rejects = drain(file, None)
    ends = any(word in what for word in ("fewer lines", "number of atoms", "integer"))  # where is the next frame?
    assert len(samples) == 2 - ends and [reject.reason for reject in rejects] == ["damaged" if ends else "damaged-frame"]
    assert what in rejects[0].where and f"{file}:" in rejects[0].where


# Folders ----------------------------------------------------------------------------------------------------------------------


def test_what_is_no_file_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    (root / "a.txt").write_text("good")
    (root / "sub" / "b.txt").write_bytes(b"bad \xff")
    (root / "c.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (root / "d").symlink_to(tmp_path / "outside")
    (root / "e").symlink_to(root)  # a loop
    os.mkfifo(root / "f.txt")
    (root / "g.txt").write_text("x" * 200)
    with open(os.path.join(os.fsencode(root), b"h\xff.txt"), "wb") as file:
        file.write(b"x")
    piece = source(root, content="text").pieces[0]
    found = list(dataclasses.replace(piece, args=(*piece.args, 100)).samples())
    assert [f["path"] for f in found if not isinstance(f, Reject)] == ["a.txt"]
    reasons = {Path(f.where).name: f.reason for f in found if isinstance(f, Reject)}
    assert reasons == {"b.txt": "invalid-utf8", "c.txt": "not-a-file", "d": "not-a-file", "e": "not-a-file",
                       "f.txt": "not-a-file",
                       "g.txt": "too-large", "h\\udcff.txt": "invalid-utf8"}  # fmt: skip
    real = folder.read_at

    def growing(where: int, name: str, limit: int) -> bytes:
        return real(where, name, limit) if name != "a.txt" else _change(root / name, lambda: real(where, name, limit))

    def _change(path: Path, then: Any) -> bytes:
        read, calls = os.read, []

        def slow(descriptor: int, count: int) -> bytes:
            data = read(descriptor, count)
            if not calls:
                calls.append(1)
                path.write_text("other content")
            return data

        with monkeypatch.context() as patch:
            patch.setattr(os, "read", slow)
            return bytes(then())

    monkeypatch.setattr(folder, "read_at", growing)
    changed = next(iter(dataclasses.replace(piece, args=(folder.Group(("",)), "text")).samples()))
    assert isinstance(changed, Reject) and changed.reason == "changed"


def test_pictures_that_are_none(tmp_path: Path) -> None:
    for k in range(30):
        (tmp_path / f"{k:02d}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "05.png").write_bytes(b"<html>")
    samples, rejects = drain(tmp_path, None)
    assert len(samples) == 29 and rejects == [Reject("not-an-image", str(tmp_path / "05.png"))]


def test_export_does_not_leave_its_folder(tmp_path: Path) -> None:
    from gewu.data.convert import export
    from gewu.data.shard import write_shards
    from gewu.data.store import open_shards

    for number, path in enumerate(("/etc/x", "../x", "a/../../x", "", ".")):
        folder = tmp_path / f"s{number}"
        folder.mkdir()
        write_shards(folder, "s", [{"path": path, "data": b"x"}], Schema.of({"path": "text", "data": "bytes"}))
        with pytest.raises(InputError, match="path: is no path inside"):
            export(open_shards(folder), tmp_path / f"o{number}", "folder")
        assert not list((tmp_path / f"o{number}").iterdir())


def test_a_pipe_is_no_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(InputError, match="format is not known"):
        source(tmp_path / "x.jsonl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20  # kB
