"""Samples made by compiled code: the same as plain Python makes, whatever the file says, and nothing is lost or kept."""

from __future__ import annotations

import gc
import math
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.crc32c import crc32c
from gewu.core.errors import StoreError
from gewu.data import Schema, Shard, Store
from gewu.data.shard import write_shards
from tests.data.test_shard import a_type, a_value, same


def store_of(folder: Path, schema: Schema, samples: list[dict[str, Any]], **options: Any) -> Store:
    infos = write_shards(folder, "s", samples, schema, **options)
    return Store(infos, root=folder)


@pytest.mark.parametrize("seed", range(40))
def test_all_types_are_read_as_plain_python_reads_them(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    schema = Schema.of({f"f{k}": a_type(rng) for k in range(rng.integers(1, 7))})
    samples = [{field.name: a_value(rng, field.type) for field in schema} for _ in range(20)]
    store = store_of(tmp_path, schema, samples, shard_bytes=int(rng.integers(100, 3000)))
    plain = [
        sample for path in sorted(tmp_path.glob("*.gws")) for sample in map(Shard(path).__getitem__, range(len(Shard(path))))
    ]
    numbers = rng.permutation(20)
    for k, one in zip(numbers.tolist(), store.read(numbers), strict=True):
        for found in (store[k], one):
            assert found is not None and list(found) == list(schema.names)
            assert all(same(found[name], plain[k][name]) for name in schema.names)
    assert all(same(found[name], p[name]) for found, p in zip(store, plain, strict=True) for name in schema.names)


def test_without_compiled_objects_the_interpreter_reads_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gewu.core.objects.AVAILABLE", False)
    test_all_types_are_read_as_plain_python_reads_them(tmp_path, 7)


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_numbers_keep_their_ends_and_signs(tmp_path: Path, bits: int) -> None:
    ends = {"i": [-(2 ** (bits - 1)), -1, 0, 2 ** (bits - 1) - 1], "u": [0, 1, 2 ** (bits - 1), 2**bits - 1]}
    schema = Schema.of({"a": "int8", "i": f"int{bits}", "u": f"uint{bits}", "z": "bool"})
    samples = [{"a": -5, "i": i, "u": u, "z": i < 0} for i, u in zip(ends["i"], ends["u"], strict=True)]
    assert store_of(tmp_path, schema, samples).read(range(4)) == samples


def test_floats_keep_infinities_nans_and_rounding(tmp_path: Path) -> None:
    values = [math.inf, -0.0, math.nan, 0.1, 5e-324, -1.5]
    store = store_of(tmp_path, Schema.of({"x": "float32", "y": "float64"}), [{"x": v, "y": v} for v in values])
    for value, found in zip(values, store, strict=True):
        assert struct.pack("<d", found["y"]) == struct.pack("<d", value)
        assert struct.pack("<d", found["x"]) == struct.pack("<d", float(np.float32(value)))


def test_arrays_are_read_only_views_that_outlive_the_store(tmp_path: Path) -> None:
    schema = Schema.of({"n": "int64", "fixed": "float64[2,3]", "free": "complex128[*,2]", "none": "int16[*,0,*]"})
    rng = np.random.default_rng(1)
    samples = [
        {"n": k, "fixed": rng.random((2, 3)), "free": rng.random((k, 2)) * 1j, "none": np.zeros((k, 0, 2), "i2")}
        for k in range(9)
    ]
    store = store_of(tmp_path, schema, samples)
    found = [*(store[k] for k in range(9)), *store.read(range(9)), *store]
    store.close()
    del store
    gc.collect()
    for k, sample in enumerate(found):
        for name in ("fixed", "free", "none"):
            array, wanted = sample[name], samples[k % 9][name]
            assert same(array, wanted)
            assert array.flags.c_contiguous and not array.flags.writeable and not array.flags.owndata
            assert array.base is not None or array.size == 0


def test_no_reference_is_lost_or_kept(tmp_path: Path) -> None:
    schema = Schema.of(
        {"n": "int64", "t": "text", "b": "bytes", "x": "float32[3]", "y": "float32[*]", "p": "float64", "z": "bool"}
    )
    sample = {"n": 10**6, "t": "ä" * 9, "b": b"c" * 9, "x": np.ones(3, "f4"), "y": np.ones(5, "f4"), "p": 0.5, "z": True}
    store = store_of(tmp_path, schema, [sample] * 64)
    held: list[Any] = [np.ndarray, schema["x"].type.numpy, schema["y"].type.numpy, store._shard(0).buffer, True, None]
    held += store._plan.blank

    def read() -> None:
        for k in range(64):
            _ = store[k]
        _ = store.read(range(64)), list(store), store.batch(range(64))

    read()
    before = [sys.getrefcount(thing) for thing in held]
    for _ in range(5):
        read()
    after = [sys.getrefcount(thing) for thing in held]
    assert max(abs(a - b) for a, b in zip(after, before, strict=True)) < 64, (before, after)


def forge(path: Path, number: int, at: int, data: bytes) -> None:
    """Write `data` into a sample and make its checksum right again, as a damaged writer would."""
    offsets, content = Shard(path).offsets, bytearray(path.read_bytes())
    start, end = int(offsets[number]), int(offsets[number + 1])
    content[start + at : start + at + len(data)] = data
    struct.pack_into("<I", content, start, crc32c(bytes(content[start + 4 : end])))
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (4, b"\xff\xff\xff\xff"),  # the text ends outside of the sample
        (8, b"\x00\x00\x00\x00"),  # the array ends before it begins
        (8, b"\xf0\xff\xff\x7f"),  # ... or far outside
        (24, b"\xff\xfe"),  # not UTF-8
        (32, b"\xff\xff\xff\xff"),  # more rows than there is room for
    ],
)
def test_a_sample_that_lies_with_a_right_checksum_is_refused_and_named(tmp_path: Path, at: int, data: bytes) -> None:
    schema = Schema.of({"n": "int64", "t": "text", "x": "float32[*,3]"})
    samples = [{"n": k, "t": "text", "x": np.ones((2, 3), "f4")} for k in range(5)]
    store_of(tmp_path, schema, samples).close()
    forge(tmp_path / "s-0000.gws", 2, at, data)
    store = Store([tmp_path / "s-0000.gws"], on_damage="skip")
    with pytest.raises(StoreError, match=r"s-0000\.gws: sample 2: "):
        _ = store[2]
    assert [sample["n"] for sample in store] == [0, 1, 3, 4]
    assert [None if s is None else s["n"] for s in store.read(range(5))] == [0, 1, None, 3, 4]
    assert store.batch(range(5))["n"].tolist() == [0, 1, 3, 4]
    assert list(store.damage.values()) == [[2]]
