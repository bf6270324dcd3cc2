"""Fields, samples and shards: what goes in comes out, and no damage passes."""

from __future__ import annotations

import multiprocessing
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gewu.core.crc32c import crc32c
from gewu.core.errors import GewuError, InputError, ResourceError, StoreError
from gewu.data.fields import NUMBERS, Schema, Type, numpy_dtype
from gewu.data.sample import codec
from gewu.data.shard import Shard, ShardWriter, write_shards
from tests.faults.faultlib import failing_os

ATOMS = {
    "name": "text",
    "picture": "image",
    "forces": "float64[*,3]",
    "pbc": "bool[3]",
    "energy": "float32",
    "tags": "list[text]",
}


def plain_crc32c(data: bytes) -> int:
    """The definition, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 63, 767, 768, 769, 1600, 6143, 6144, 6913, 13007])
def test_crc32c_is_its_definition(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == plain_crc32c(data)


def test_crc32c_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_the_table_way_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from gewu.core import crc32c as module

    one = module._by_table.py_func
    crc = np.uint64(0x12345678)
    word = np.uint64(0x1122334455667788)
    data = struct.pack("<Q", int(word))
    expected = plain_crc32c(data) ^ 0xFFFFFFFF  # of a register that starts with ones
    assert int(one(np.uint64(0xFFFFFFFF), word)) == expected
    assert int(module._by_table(crc, word)) == int(one(crc, word))


@pytest.mark.parametrize(
    "text", ["bytes", "text", "float32", "bool[2,3]", "int64[*,3]", "list[list[text]]", "list[float32[2]]?", "complex128[*,*]"]
)
def test_types_are_read_and_written(text: str) -> None:
    assert str(Type.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "str", "float", "float32[", "float32[a]", "list[]", "text??", "list[" * 20 + "text" + "]" * 20]
)
def test_what_is_no_type_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"forces: .*type"):
        Schema.of({"forces": text})


def test_a_schema_survives_its_text() -> None:
    schema = Schema.of(ATOMS, units={"forces": "eV/Å"}, meanings={"energy": "total"})
    assert Schema.from_json(schema.to_json()) == schema
    for text in ("", "[]", '{"fields": 3}', '{"fields": [{"name": "a"}]}', '{"fields": [{"name": "a", "type": 1}]}'):
        with pytest.raises(StoreError, match="schema"):
            Schema.from_json(text)


def a_type(rng: np.random.Generator, depth: int = 0) -> str:
    kind = rng.integers(0, 6 if depth < 3 else 4)
    if kind == 0:
        return str(rng.choice(["bytes", "text", "image"]))
    if kind < 4:
        axes = [str(rng.choice(["*", "2", "3", "0"])) for _ in range(rng.integers(0, 3))]
        return str(rng.choice(NUMBERS)) + (f"[{','.join(axes)}]" if axes else "")
    return f"list[{a_type(rng, depth + 1)}]" if kind == 4 else a_type(rng, depth + 1).rstrip("?") + "?"


def a_value(rng: np.random.Generator, kind: Type) -> Any:
    if kind.kind == "text":
        return "".join(rng.choice(list("aé中🙂\n"), rng.integers(0, 9)))
    if kind.kind in ("bytes", "image"):
        return rng.bytes(int(rng.integers(0, 20)))
    if kind.kind == "array":
        shape = [int(rng.integers(0, 4)) if axis is None else axis for axis in kind.shape]
        values = rng.integers(0, 2 if kind.dtype == "bool" else 100, shape)
        array = values.astype(numpy_dtype(kind.dtype))
        return array if kind.shape else array.item()
    assert kind.item is not None
    if kind.kind == "optional":
        return None if rng.random() < 0.5 else a_value(rng, kind.item)
    return [a_value(rng, kind.item) for _ in range(rng.integers(0, 4))]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("compression", ["none", "sample", "block"])
def test_any_sample_comes_back(tmp_path: Path, compression: str) -> None:
    rng = np.random.default_rng(5)
    for trial in range(40):
        schema = Schema.of({f"f{k}": a_type(rng) for k in range(rng.integers(1, 6))})
        samples = [{f.name: a_value(rng, f.type) for f in schema} for _ in range(rng.integers(0, 12))]
        path = tmp_path / f"{trial}.gws"
        with ShardWriter(path, schema, compression=compression, block_bytes=200) as writer:
            sizes = [writer.add(sample) for sample in samples]
        shard = Shard(path)
        assert shard.schema == schema and len(shard) == len(samples) and shard.lengths().tolist() == sizes
        for k, sample in enumerate(samples):
            read = shard[k]
            assert list(read) == list(schema.names)
            assert all(same(sample[name], read[name]) for name in schema.names), (schema.to_json(), sample, read)
            assert len(shard.raw(k)) == sizes[k]
        assert shard.damaged() == []


def test_arrays_are_aligned_and_cannot_be_written(tmp_path: Path) -> None:
    schema = Schema.of({"a": "text", "x": "float64[*]", "y": "float64[3]", "z": "list[float64[2]]"})
    with ShardWriter(tmp_path / "a.gws", schema) as writer:
        for k in range(5):
            writer.add({"a": "x" * k, "x": np.arange(k), "y": np.arange(3.0), "z": [np.ones(2)] * k})
    shard = Shard(tmp_path / "a.gws")
    for k in range(5):
        sample = shard[k]
        for array in (sample["x"], sample["y"], *sample["z"]):
            assert array.flags.aligned and not array.flags.writeable


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": 3}, "name"),
        ({"name": "\ud800"}, "name"),
        ({"picture": "text"}, "picture"),
        ({"forces": np.zeros((4, 2))}, "forces"),
        ({"forces": np.zeros(3)}, "forces"),
        ({"forces": np.zeros((1, 3), complex)}, "forces"),
        ({"forces": "abc"}, "forces"),
        ({"forces": [[1.0], [2.0, 3.0]]}, "forces"),
        ({"pbc": [1, 0, 1]}, "pbc"),
        ({"energy": "1"}, "energy"),
        ({"energy": 1e300}, "energy"),
        ({"energy": True}, "energy"),
        ({"tags": "abc"}, "tags"),
        ({"tags": [1]}, "tags"),
        ({"force": np.zeros((1, 3))}, "force"),
    ],
)
def test_a_sample_of_another_schema_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    sample = {"name": "", "picture": b"", "forces": np.zeros((1, 3)), "pbc": np.zeros(3, bool), "energy": 0.0, "tags": []}
    schema = Schema.of(ATOMS)
    schema.check(sample)
    with pytest.raises(InputError) as caught:
        schema.check({**sample, **change})
    assert caught.value.key == field
    del sample[field if field in sample else "tags"]
    with pytest.raises(InputError, match="is missing"):
        schema.check(sample)


def test_numbers_change_their_type_only_without_harm() -> None:
    encode = codec(Schema.of({"i": "uint8[*]", "x": "float32[*]", "b": "bfloat16[1]"})).encode
    encode({"i": np.array([0, 255]), "x": np.array([1.1, 2]), "b": np.ones(1, ml_dtypes.bfloat16)})
    for bad in ([256], [-1]):
        with pytest.raises(InputError, match=r"i: .*fit"):
            encode({"i": np.array(bad), "x": np.zeros(0), "b": np.ones(1, np.float32)})
    with pytest.raises(InputError, match="i: "):
        encode({"i": np.array([1.0]), "x": np.zeros(0), "b": np.ones(1, np.float32)})


def small_shard(path: Path, compression: str = "none") -> list[dict[str, Any]]:
    samples = [{"text": "ab" * k, "x": np.arange(k, dtype=np.float32), "n": k} for k in range(6)]
    with ShardWriter(path, Schema.of({"text": "text", "x": "float32[*]", "n": "int32"}), compression=compression) as writer:
        for sample in samples:
            writer.add(sample)
    return samples


@pytest.mark.parametrize("compression", ["none", "sample", "block"])
def test_every_flipped_bit_is_found(tmp_path: Path, compression: str) -> None:
    good = tmp_path / "good.gws"
    samples = small_shard(good, compression)
    data = good.read_bytes()
    offsets = Shard(good).offsets.tolist()
    bad = tmp_path / "bad.gws"
    named: list[Any] = []
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        bad.write_bytes(flipped)
        try:
            shard = Shard(bad)
        except StoreError as error:
            named.append(error.file)
            continue
        found = shard.damaged()
        assert found, f"byte {position} of {len(data)}"
        with pytest.raises(StoreError, match=rf"bad\.gws: sample {found[0]}: .*(checksum|read)"):
            shard[found[0]]
        if compression == "none":
            assert [offsets[k] <= position < offsets[k + 1] for k in found] == [True]
        for k in set(range(6)) - set(found):
            assert same(list(samples[k].values()), list(shard[k].values()))
    assert set(named) == {bad} and len(named) < len(data)


@pytest.mark.parametrize("compression", ["none", "block"])
def test_every_cut_is_found(tmp_path: Path, compression: str) -> None:
    good, bad = tmp_path / "good.gws", tmp_path / "bad.gws"
    small_shard(good, compression)
    data = good.read_bytes()
    for size in range(len(data)):
        bad.write_bytes(data[:size])
        with pytest.raises(StoreError, match=r"bad\.gws"):
            Shard(bad)
    for extra in (b"\0", data):
        bad.write_bytes(data + extra)
        with pytest.raises(StoreError, match=r"bad\.gws"):
            Shard(bad)
    with pytest.raises(GewuError, match=r"absent\.gws"):
        Shard(tmp_path / "absent.gws")


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    path = tmp_path / "a.gws"
    schema = Schema.of({"n": "int64"})
    first, second = ShardWriter(path, schema), ShardWriter(path, schema)
    first.add({"n": 1})
    second.add({"n": 2})
    first.commit()
    with pytest.raises(StoreError, match=r"a\.gws: exists already"):
        second.commit()
    with pytest.raises(StoreError, match="exists already"):
        ShardWriter(path, schema)
    assert Shard(path)[0] == {"n": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["a.gws"]


def _write_number(path: str, number: int, barrier: Any) -> bool:
    barrier.wait()
    try:
        with ShardWriter(path, Schema.of({"n": "int64"})) as writer:
            writer.add({"n": number})
    except StoreError:
        return False
    return True


def test_of_two_processes_one_gets_the_name(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        barrier = manager.Barrier(2)
        won = pool.starmap(_write_number, [(str(tmp_path / "a.gws"), k, barrier) for k in range(2)])
        pool.close()
        pool.join()
    assert sorted(won) == [False, True]
    assert Shard(tmp_path / "a.gws")[0] == {"n": won.index(True)}


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    schema = Schema.of({"data": "bytes"})
    for calls in range(1, 100):
        refused = None
        try:
            with failing_os(calls), ShardWriter(tmp_path / "a.gws", schema) as writer:
                for _ in range(3):
                    writer.add({"data": bytes(1 << 20)})
        except (StoreError, ResourceError) as error:
            refused = str(error)
        if refused is None:
            break
        assert "a.gws" in refused
        for path in tmp_path.iterdir():  # at most the whole file, when only flushing the folder failed
            assert path.suffix == ".gws" and len(Shard(path)) == 3
            path.unlink()
    assert calls > 4 and len(Shard(tmp_path / "a.gws")) == 3


def test_an_exception_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with ShardWriter(tmp_path / "a.gws", Schema.of({"n": "int64"})) as writer:
            writer.add({"n": 1})
            writer.add({"n": "x"})

    with pytest.raises(InputError, match="n: "):
        write()
    assert list(tmp_path.iterdir()) == []


def test_shards_roll(tmp_path: Path) -> None:
    infos = write_shards(
        tmp_path, "a", ({"data": bytes(1000)} for _ in range(25)), Schema.of({"data": "bytes"}), shard_bytes=8000
    )
    assert [info.name for info in infos] == ["a-0000.gws", "a-0001.gws", "a-0002.gws", "a-0003.gws"]
    assert [info.samples for info in infos] == [8, 8, 8, 1]
    assert write_shards(tmp_path, "b", (), Schema.of({"data": "bytes"})) == []
