"""Stores: one numbering over many shards, columns, damage, schemas that differ, threads."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError, StoreError
from gewu.data import Schema, Shard, Store, open_shards
from gewu.data.shard import ShardInfo, write_shards
from gewu.data.store import Subset

SCHEMA = Schema.of({"n": "int64", "text": "text", "x": "float32[3]", "b": "bool", "list": "list[int32]", "p": "bfloat16"})


def sample(k: int) -> dict[str, Any]:
    return {
        "n": k,
        "text": f"text {k}" * (k % 4),
        "x": np.arange(3, dtype=np.float32) + k,
        "b": k % 2 == 0,
        "list": [k] * (k % 3),
        "p": k % 7,
    }


def make(folder: Path, count: int = 50, **options: Any) -> list[ShardInfo]:
    return write_shards(folder, "s", map(sample, range(count)), SCHEMA, **{"shard_bytes": 700, **options})


def flip(path: Path, number: int) -> None:
    data = bytearray(path.read_bytes())
    data[int(Shard(path).offsets[number]) + 30] ^= 4
    path.write_bytes(data)


def equal(a: Any, b: Any) -> bool:
    return list(a) == list(b) and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("compression", ["none", "block", "sample"])
@pytest.mark.parametrize("open_shards", [2, 512])
def test_reads_at_random_in_order_and_by_columns(tmp_path: Path, compression: str, open_shards: int) -> None:
    infos = make(tmp_path, compression=compression)
    assert len(infos) > 4
    for shards in (infos, [info.name for info in infos]):
        store = Store(shards, root=tmp_path, open_shards=open_shards)
        assert len(store) == 50 and store.shard_sizes.tolist() == [info.samples for info in infos]
        numbers = np.random.default_rng(0).permutation(50)
        for k in numbers.tolist():
            assert equal(store[k], sample(k))
        assert [s["n"] for s in store] == list(range(50))
        assert [s["n"] for s in store.iterate(13, 31)] == list(range(13, 31))
        assert [s["n"] for s in store.read(numbers)] == numbers.tolist()
        batch = store.batch(numbers)
        assert list(batch) == [*SCHEMA.names, "_index"] and batch["_index"].tolist() == numbers.tolist()
        assert batch["x"].shape == (50, 3) and batch["x"].dtype == np.float32 and batch["b"].dtype == bool
        for row, k in enumerate(numbers.tolist()):
            assert equal({name: batch[name][row] for name in SCHEMA.names}, sample(k))
        assert list(store.batch([3, 3], ["text", "n"])) == ["n", "text", "_index"]


def test_only_some_fields(tmp_path: Path) -> None:
    make(tmp_path)
    store = open_shards(tmp_path, fields=("text", "n"))
    assert store[7] == {"n": 7, "text": sample(7)["text"]}
    assert list(store.batch([1])) == ["n", "text", "_index"]
    with pytest.raises(InputError, match="did you mean 'text'"):
        open_shards(tmp_path, fields=("txt",))
    with pytest.raises(InputError, match="txt"):
        store.batch([1], ["txt"])


def test_an_empty_batch_has_its_columns(tmp_path: Path) -> None:
    make(tmp_path)
    batch = open_shards(tmp_path).batch([])
    assert batch["x"].shape == (0, 3) and batch["text"] == [] and len(batch["_index"]) == 0


@pytest.mark.parametrize("number", [-1, 50])
def test_a_number_outside_is_refused(tmp_path: Path, number: int) -> None:
    make(tmp_path)
    store = open_shards(tmp_path)
    for call in (store.__getitem__, lambda k: store.batch([0, k])):
        with pytest.raises(InputError, match="no such sample"):
            call(number)
    with pytest.raises(InputError, match="samples that the store does not have"):
        store.subset([0, number])


def test_damage_stops_by_default(tmp_path: Path) -> None:
    infos = make(tmp_path)
    flip(tmp_path / infos[1].name, 2)
    store, bad = Store(infos, root=tmp_path), infos[0].samples + 2
    for call in (lambda: store[bad], lambda: list(store), lambda: store.batch([0, bad]), lambda: store.read([bad])):
        with pytest.raises(StoreError, match=rf"{infos[1].name}: sample 2: .*checksum"):
            call()
    assert store.damage == {} and store[bad + 1]["n"] == bad + 1


@pytest.mark.parametrize("policy", ["skip", "count"])
def test_damage_may_be_left_out(tmp_path: Path, policy: str) -> None:
    infos = make(tmp_path)
    flip(tmp_path / infos[1].name, 2)
    flip(tmp_path / infos[3].name, 0)
    bad = [infos[0].samples + 2, sum(info.samples for info in infos[:3])]
    store = Store(infos, root=tmp_path, on_damage=policy)
    good = [k for k in range(50) if k not in bad]
    assert [s["n"] for s in store] == good
    expected = {infos[1].name: [2], infos[3].name: [0]} if policy == "skip" else {"count": 2}
    assert store.damage == expected
    batch = store.batch(range(50))
    assert batch["n"].tolist() == good and batch["_index"].tolist() == good and batch["x"].shape == (48, 3)
    assert [None if s is None else s["n"] for s in store.read(range(50))] == [k if k in good else None for k in range(50)]
    view = store.subset(range(49, -1, -1))
    rows = view.batch(range(50))
    assert rows["n"].tolist() == good[::-1] and [49 - k for k in rows["_index"].tolist()] == good[::-1]


def test_a_shard_of_another_schema_is_named_with_its_field(tmp_path: Path) -> None:
    write_shards(tmp_path, "a", [{"n": 1, "x": 1.0}], Schema.of({"n": "int64", "x": "float64"}))
    write_shards(tmp_path, "b", [{"n": 1, "x": 1.0}], Schema.of({"n": "int64", "x": "float32"}))
    with pytest.raises(InputError, match=r"b-0000\.gws: x: has another schema .*float32.*allowed: float64"):
        open_shards(tmp_path)


def test_a_subset_reads_as_a_store(tmp_path: Path) -> None:
    make(tmp_path)
    store = open_shards(tmp_path)
    view = store.subset([40, 3, 3, 17])
    assert len(view) == 4 and view[0]["n"] == 40 and [s["n"] for s in view] == [40, 3, 3, 17]
    assert view.batch([3, 0])["n"].tolist() == [17, 40] and view.batch([3, 0])["_index"].tolist() == [3, 0]
    assert [s["n"] for s in view.subset([2, 0]).read([1, 0])] == [40, 3]
    with pytest.raises(InputError, match="no such sample"):
        view[4]


def test_threads_share_a_store_that_keeps_closing_shards(tmp_path: Path) -> None:
    make(tmp_path, 200)
    store = open_shards(tmp_path, open_shards=2)

    def work(seed: int) -> bool:
        numbers = np.random.default_rng(seed).integers(0, 200, 300)
        single = all(equal(store[k], sample(k)) for k in numbers[:150].tolist())
        return single and all(store.batch(part)["n"].tolist() == part.tolist() for part in np.split(numbers, 10))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def test_what_was_read_outlives_its_store(tmp_path: Path) -> None:
    make(tmp_path)
    store = open_shards(tmp_path)
    x, text = store[5]["x"], store[7]["text"]
    store.close()
    del store
    assert x.tolist() == [5.0, 6.0, 7.0] and text == sample(7)["text"]


def test_a_store_and_its_subset_go_to_another_process(tmp_path: Path) -> None:
    make(tmp_path)
    store = open_shards(tmp_path, fields=("n",), on_damage="skip")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(Store.__getitem__, store, 7).result() == {"n": 7}
        assert pool.submit(Subset.read, store.subset([40, 3]), [0, 1]).result() == [{"n": 40}, {"n": 3}]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no shards"):
        open_shards(tmp_path)
    with pytest.raises(InputError, match="policy"):
        Store(["a"], on_damage="ignore")
