"""Checkpoints: bit by bit, from any layout to any layout, past damage, a full disk and another run."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gewu.core.errors import InputError, ResourceError, StoreError
from gewu.formats import safetensors
from gewu.train import checkpoint
from gewu.train.checkpoint import Checkpoints
from gewu.train.config import ModelConfig
from gewu.train.keeper import Keeper
from gewu.train.mesh import Layout
from gewu.train.optim import Optimiser
from gewu.train.precision import Precision
from gewu.train.spec import flat, specs, tree_map, unstacked
from gewu.train.step import Trainer
from tests.faults.faultlib import failing_os

CONFIG = ModelConfig(vocab=64, width=32, layers=4, heads=4, kv_heads=2, length=32)
EXTRA = {"position": 17, "order": "global-1", "share": 0.1}


class State(NamedTuple):
    params: Any
    opt: Any
    step: Any


def state(layout: Layout, devices: Any, listed: bool = False, abstract: bool = False) -> Any:
    """Return a state of different numbers whose stack holds layer 3 in row 3, or only its shapes."""
    mesh = layout.mesh(devices)
    tree = unstacked(specs(CONFIG)) if listed else specs(CONFIG)
    place = lambda param: NamedSharding(mesh, param.partition(layout))  # noqa: E731

    def make(kind: int) -> Any:
        whole = {
            name: np.random.default_rng([kind, number]).normal(size=param.shape).astype("f4")
            for number, (name, param) in enumerate(flat(specs(CONFIG)).items())
        }

        def leaf(name: str, param: Any) -> Any:
            if abstract:
                return jax.ShapeDtypeStruct(param.shape, jnp.float32, sharding=place(param))
            words = name.split("/")
            row = next((int(word) for word in words if word.isdecimal()), None)
            array = whole["/".join(word for word in words if not word.isdecimal())]
            return jax.device_put(array if row is None else array[row], place(param))

        names = iter(flat(tree))
        order = {id(param): name for name, param in zip(names, flat(tree).values(), strict=True)}
        return tree_map(lambda param: leaf(order[id(param)], param), tree)

    none = NamedSharding(mesh, PartitionSpec())
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=none) if abstract else jax.device_put(jnp.int32(5), none)
    return State(make(0), {"m": make(1), "v": make(2)}, step)


def same(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(np.array_equal(x, y) for x, y in pairs)


def saved(folder: Path, tree: Any, step: int = 5, **options: Any) -> Checkpoints:
    store = Checkpoints(folder, **options)
    store.latest()
    store.save(tree, EXTRA, step)
    assert store.wait(), store.messages
    return store


LAYOUTS = ["", "fsdp=8", "fsdp=2 tp=2 pp=2", "tp=2 dp=4", "pp=4 fsdp=2"]


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_reads_any_layout(tmp_path: Path, eight: Any, layout: str, listed: bool) -> None:
    at = Layout.of(layout)
    saved(tmp_path, state(at, eight, listed and at.pp == 1)).close()
    for other in LAYOUTS:
        for list_ in (False, True):
            to = Layout.of(other)
            list_ = list_ and to.pp == 1
            found, extra = Checkpoints(tmp_path).load(state(to, eight, list_, abstract=True))
            assert extra == EXTRA
            assert same(found, state(to, eight, list_))
            assert all(
                a.sharding == b.sharding
                for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state(to, eight, list_)), strict=True)
            )


def test_rows_of_an_interleaved_pipeline_are_known_by_their_layer(tmp_path: Path, eight: Any) -> None:
    order = np.array([0, 2, 1, 3])
    at, plain = Layout.of("pp=2"), state(Layout(), eight)
    mixed = jax.tree.map(lambda x: x, state(at, eight))

    def moved(tree: Any) -> Any:
        rows = {name: jax.device_put(np.asarray(leaf)[order], leaf.sharding) for name, leaf in tree["layers"].items()}
        return tree | {"layers": rows}

    mixed = State(moved(mixed.params), {name: moved(tree) for name, tree in mixed.opt.items()}, mixed.step)
    saved(tmp_path, mixed, layers=order).close()
    found, _ = Checkpoints(tmp_path).load(state(Layout(), eight, abstract=True))
    assert same(found, plain)
    again, _ = Checkpoints(tmp_path, layers=order).load(state(at, eight, abstract=True))
    assert same(again, mixed)


def test_the_state_may_change_while_it_is_written(tmp_path: Path) -> None:
    trainer = Trainer(CONFIG.with_(layers=1), Layout(), Optimiser(), Precision.of("fp32"))
    batch = trainer.prepare({"tokens": np.arange(64).reshape(2, 32) % 64, "targets": np.arange(1, 65).reshape(2, 32) % 64})
    now = trainer.init(3)
    now, _ = trainer.step(now, batch)
    expected = jax.tree.map(np.array, now)
    store = Checkpoints(tmp_path)
    store.save(now, EXTRA, 1)
    now, _ = trainer.step(now, batch)  # donates what is being written
    assert store.wait()
    found, _ = store.load(trainer.abstract())
    assert same(jax.tree.map(np.asarray, found), expected)
    after, _ = trainer.step(found, batch)
    assert same(jax.tree.map(np.asarray, after), jax.tree.map(np.asarray, now))


def test_files_are_plain_safetensors_and_some_are_kept(tmp_path: Path, eight: Any) -> None:
    tree = state(Layout.of("fsdp=2"), eight)
    store = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        store.save(tree, EXTRA, step)
    assert store.wait() and store.latest() == 3
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000003"]
    assert sorted(path.name for path in (tmp_path / "step-00000003").iterdir()) == ["index.json", "process-0000.safetensors"]
    arrays = safetensors.read(tmp_path / "step-00000003" / "process-0000.safetensors")
    qkv = np.asarray(tree.params["layers"]["qkv"])
    assert np.array_equal(arrays["params/layers/qkv[0, 16, 0, 0, 0]"], qkv[:, 16:])
    assert sum(array.size for name, array in arrays.items() if name.startswith("params/layers/qkv")) == qkv.size


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "index", "no index"])
def test_damage_makes_the_one_before_count_and_is_told(tmp_path: Path, damage: str) -> None:
    older, newer = state(Layout(), None), state(Layout(), None)._replace(step=jnp.int32(9))
    store = Checkpoints(tmp_path)
    store.save(older, EXTRA, 5)
    store.save(newer, EXTRA, 9)
    assert store.wait()
    store.close()
    data, index = tmp_path / "step-00000009" / "process-0000.safetensors", tmp_path / "step-00000009" / "index.json"
    if damage == "gone":
        data.unlink()
    elif damage == "no index":
        index.unlink()
    else:
        path = index if damage == "index" else data
        content = bytearray(path.read_bytes())
        content[-40] ^= 4
        path.write_bytes(content[:-40] if damage == "cut" else content)
    again = Checkpoints(tmp_path)
    found, extra = again.load(state(Layout(), None, abstract=True))
    assert same(found, older) and extra == EXTRA
    assert len(again.messages) == 1 and "step 9" in again.messages[0]
    again.save(older, EXTRA, 7)  # a future that was given up is no longer there
    assert again.wait() and again.latest() == 7


def test_every_bit_of_a_small_checkpoint_counts(tmp_path: Path) -> None:
    tree = {"params": {"a": jnp.arange(4.0)}}
    saved(tmp_path, tree).close()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    for path in (tmp_path / "step-00000005").iterdir():
        good = path.read_bytes()
        head = 8 + int.from_bytes(good[:8], "little") if path.suffix == ".safetensors" else 0
        for place in range(head, len(good)):  # the header of the arrays is for other readers
            path.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
            try:
                found, extra = Checkpoints(tmp_path).load(abstract)
            except StoreError:
                continue
            assert same(found, tree) and extra == EXTRA  # a space of the JSON, a sign of a number without one
        path.write_bytes(good)


def test_only_the_needed_blocks_are_read(tmp_path: Path, eight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "BLOCK", 256)
    at = Layout.of("fsdp=8")
    place = NamedSharding(at.mesh(eight), PartitionSpec("fsdp"))
    whole = {"a": jax.device_put(np.arange(8 * 64, dtype="f4").reshape(8, 64), eight[0])}
    saved(tmp_path, whole).close()
    sums = list[int]()
    monkeypatch.setattr(checkpoint, "crc32c", lambda data, real=checkpoint.crc32c: sums.append(len(data)) or real(data))
    mine = {d: i for d, i in place.devices_indices_map((8, 64)).items() if d.id >= 6}
    part = SimpleNamespace(  # what another process of two asks for: rows 6 and 7
        shape=(8, 64), dtype=np.dtype("f4"), sharding=SimpleNamespace(
            addressable_devices_indices_map=lambda shape: mine,
            shard_shape=lambda shape: (1, 64),
        ),
    )  # fmt: skip
    monkeypatch.setattr(jax, "make_array_from_single_device_arrays", lambda shape, sharding, parts: parts)
    store = Checkpoints(tmp_path)
    source = store._sources()[0]
    sums.clear()
    found = store._filled(source, {"a": part})
    assert [float(x[0, 0]) for x in found["a"]] == [384.0, 448.0]
    assert sums == [256, 256]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 8])
def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path: Path, n: int) -> None:
    tree = state(Layout(), None)
    store = saved(tmp_path, tree, 5)
    with failing_os(n, errno.ENOSPC) as calls:
        store.save(tree, EXTRA, 6)
        stands = store.wait()
    assert len(calls.names) >= n and not stands
    assert len(store.messages) == 1 and "training goes on" in store.messages[0] and "No space" in store.messages[0]
    assert store.latest() == 5
    store.save(tree, EXTRA, 7)
    assert store.wait() and store.latest() == 7
    assert not list(tmp_path.rglob(".*tmp"))


def test_a_full_disk_at_the_first_checkpoint(tmp_path: Path) -> None:
    store, tree = Checkpoints(tmp_path / "new"), {"a": jnp.ones(3)}
    with failing_os(1, errno.ENOSPC):
        store.save(tree, EXTRA, 1)
        assert not store.wait()
    store.save(tree, EXTRA, 2)
    assert store.wait() and store.latest() == 2


def test_two_runs_on_one_folder(tmp_path: Path) -> None:
    tree = {"a": jnp.ones(3)}
    first = saved(tmp_path, tree)
    second = Checkpoints(tmp_path)
    assert second.latest() == 5
    with pytest.raises(ResourceError, match="in use by process"):
        second.save(tree, EXTRA, 6)
    first.close()
    with pytest.raises(InputError, match="another run"):
        Checkpoints(tmp_path).save(tree, EXTRA, 9)  # has not looked at what is there


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    place = jax.devices()[0]
    saved(tmp_path, {"params": {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}}, identity="x").close()
    shape = lambda *size: jax.ShapeDtypeStruct(size, jnp.float32, sharding=jax.sharding.SingleDeviceSharding(place))  # noqa: E731
    for tree, key in (({"a": shape(3, 2)}, "params/b"), ({"a": shape(2, 3), "b": shape(2)}, "params/a")):
        with pytest.raises(InputError, match=key):
            Checkpoints(tmp_path).load({"params": tree})
    with pytest.raises(InputError, match="another model"):
        Checkpoints(tmp_path, identity="y").load({"params": {"a": shape(3, 2), "b": shape(2)}})
    with pytest.raises(StoreError, match="no checkpoint"):
        Checkpoints(tmp_path / "none").load({})


def test_an_error_that_is_no_storage_error_comes_up(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    store.save({"a": jnp.ones(3)}, {"x": object()}, 1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.wait()


def test_a_state_comes_back_from_the_memory_of_keepers(tmp_path: Path, eight: Any) -> None:
    at = Layout.of("fsdp=4")
    with Keeper() as first, Keeper() as second:
        peers = [first.address, second.address]
        store = Checkpoints(tmp_path, peers=peers)
        store.save(state(at, eight), EXTRA, 5)
        assert store.wait() and not store.messages
        shutil.rmtree(tmp_path / "step-00000005")
        for alive in (peers, peers[:1], peers[1:]):  # one process: both hold all of it
            found, extra = Checkpoints(tmp_path, peers=alive).load(state(Layout.of("tp=2"), eight, abstract=True))
            assert same(found, state(Layout.of("tp=2"), eight)) and extra == EXTRA
    with pytest.raises(StoreError, match="no checkpoint"):
        Checkpoints(tmp_path, peers=peers).load(state(at, eight, abstract=True))


def test_the_index_says_what_lies_where(tmp_path: Path, eight: Any) -> None:
    saved(tmp_path, state(Layout.of("tp=2"), eight)).close()
    index = json.loads(json.loads((tmp_path / "step-00000005" / "index.json").read_text())["content"])
    assert index["extra"] == EXTRA and index["step"] == 5 and index["processes"] == 1
    assert index["tensors"]["params/layers/qkv"] == {"dtype": "F32", "shape": [4, 32, 2, 4, 8]}
    starts = [piece["start"] for piece in index["pieces"] if piece["name"] == "params/layers/qkv"]
    assert sorted(starts) == [[0, 0, 0, 0, 0], [0, 0, 1, 0, 0]]
