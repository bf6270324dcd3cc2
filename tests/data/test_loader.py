"""The loader: the same batches whatever workers, ranks and kills; bounded; nothing left running; faults at their place."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core import checkpoint
from gewu.core.errors import GewuError, InputError, ResourceError, StoreError
from gewu.core.random import uniform
from gewu.data import Schema, Shard, Store, open_shards
from gewu.data.loader import Collate, Loader, pad
from gewu.data.order import Mixture, Order, WindowOrder
from gewu.data.shard import write_shards

SCHEMA = Schema.of({"id": "int64", "x": "float32[3]", "points": "float64[*,3]", "name": "text"})
N = 157


def sample(k: int) -> dict[str, Any]:
    points = np.arange(3 * (k % 5), dtype=np.float64).reshape(-1, 3) + k
    return {"id": k, "x": np.arange(3, dtype=np.float32) * k, "points": points, "name": f"sample {k}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    assert len(write_shards(folder, "s", map(sample, range(N)), SCHEMA, shard_bytes=2000)) > 5
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    return open_shards(folder)


def indices(loader: Loader, count: int | None = None) -> list[int]:
    """Return the samples of the next `count` batches, or of all."""
    found: list[int] = []
    while count is None or count > 0:
        batch = next(loader, None)
        if batch is None:
            break
        found += batch["_index"].tolist()
        count = count and count - 1
    return found


# --- order, ranks, resume -------------------------------------------------------------------------------------------------


def test_an_epoch_shows_every_sample_once_and_columns_belong_together(store: Store) -> None:
    with Loader(store, 10, drop_last=False) as loader:
        batches = list(loader)
    assert [len(batch["_index"]) for batch in batches] == [10] * 15 + [7]
    assert sorted(i for batch in batches for i in batch["_index"].tolist()) == list(range(N))
    for batch in batches:
        assert batch["id"].tolist() == batch["_index"].tolist()
        assert np.array_equal(batch["x"], np.arange(3, dtype=np.float32) * batch["_index"][:, None].astype(np.float32))
        assert batch["name"] == [f"sample {i}" for i in batch["_index"]]
        assert all(np.array_equal(p, sample(int(i))["points"]) for p, i in zip(batch["points"], batch["_index"], strict=True))
    assert [len(batch["_index"]) for batch in Loader(store, 10)] == [10] * 15


def test_the_order_is_the_one_asked_for_and_new_in_every_epoch(store: Store) -> None:
    expected = Order(N, 5).take(0, N).tolist() + Order(N, 5, 1).take(0, N).tolist()
    assert indices(Loader(store, 1, seed=5, epochs=2)) == expected
    assert indices(Loader(store, 1, order="sequential", epochs=2)) == list(range(N)) * 2
    assert indices(Loader(store, 1, order="window", seed=5)) == WindowOrder(store.shard_sizes, 5).take(0, N).tolist()
    window = WindowOrder(store.shard_sizes, 9, 4, window=20)
    assert indices(Loader(store, 1, order=window, seed=1)) == window.take(0, N).tolist()
    later = [*WindowOrder(store.shard_sizes, 9, 5, window=20)]
    assert indices(Loader(store, 1, order=window, epochs=2))[N:] == later


def worlds(batch: int) -> list[int]:
    return [world for world in (1, 2, 3, 4, 6, 8) if batch % world == 0]


def run_world(store: Any, world: int, batches: int | None, state: Any, **options: Any) -> tuple[list[int], Any]:
    """Run all ranks for some batches; return what the world saw, batch by batch, and the state, which all ranks share."""
    loaders = [Loader(store, rank=rank, world=world, state=state, **options) for rank in range(world)]
    seen: list[int] = []
    while batches is None or batches > 0:
        parts = [next(loader, None) for loader in loaders]
        if any(part is None for part in parts):
            assert all(part is None for part in parts)
            break
        seen += [i for part in parts for i in part["_index"].tolist()]  # type: ignore[index]
        batches = batches and batches - 1
    states = [json.loads(json.dumps(loader.state())) for loader in loaders]
    assert all(other == states[0] for other in states)
    for loader in loaders:
        loader.close()
    return seen, states[0]


@pytest.mark.parametrize("order", ["global", "window", "sequential", "mixture"])
def test_killed_anywhere_and_resumed_at_another_world_size_the_world_sees_the_same(store: Store, order: str) -> None:
    rng = np.random.default_rng(list(order.encode()))
    for _ in range(6 if order == "mixture" else 25):
        n, batch = int(rng.integers(1, N + 1)), int(rng.choice([1, 2, 4, 6, 12, 24]))
        part = store.subset(rng.permutation(N)[:n])
        drop_last = bool(rng.random() < 0.5) and n >= batch
        options: dict[str, Any] = {"seed": int(rng.integers(0, 2**63)), "epochs": 3, "drop_last": drop_last, "order": order}
        if order == "mixture":
            first = int(rng.integers(1, n)) if n > 1 else 1
            sources = [Order(size, 3, 0) for size in (first, n - first) if size]
            options |= {"order": Mixture(sources, [0.7, 0.3][: len(sources)], 1, n=3 * n), "epochs": 1}
        options |= {"workers": int(rng.integers(0, 3)), "prefetch": int(rng.integers(1, 6)), "fields": ["id"]}
        whole, _ = run_world(part, 1, None, None, batch=batch, **options)
        if order != "mixture":
            shown = n // batch * batch if drop_last else n
            assert [len(set(whole[e * shown : (e + 1) * shown])) for e in range(3)] == [shown] * 3  # none twice
            assert len(whole) == 3 * shown  # none skipped
        seen: list[int] = []
        state = None
        for _ in range(5):  # killed four times, then to the end
            steps = int(rng.integers(0, 1 + 3 * n // batch // 2))
            more, state = run_world(part, int(rng.choice(worlds(batch))), steps, state, batch=batch, **options)
            seen += more
        seen += run_world(part, int(rng.choice(worlds(batch))), None, state, batch=batch, **options)[0]
        assert seen == whole


def test_a_resume_may_change_the_batch(store: Store) -> None:
    rng = np.random.default_rng(2)
    whole = indices(Loader(store, 1, seed=3, epochs=2, order="window"))
    for _ in range(10):
        seen: list[int] = []
        state = None
        for _ in range(6):
            batch = int(rng.choice([1, 5, 8, 12]))
            options = {"seed": 3, "epochs": 2, "order": "window", "drop_last": False}
            more, state = run_world(store, int(rng.choice(worlds(batch))), int(rng.integers(0, 6)), state, batch=batch, **options)
            seen += more
        seen += run_world(store, 1, None, state, batch=7, **options)[0]
        assert seen == whole


def test_the_state_counts_what_was_handed_out_and_survives_a_checkpoint(store: Store) -> None:
    loader = Loader(store, 10, seed=2**63 + 1, prefetch=8, epochs=None)
    assert loader.state()["position"] == 0
    for k in range(1, 16):
        next(loader)
        assert (loader.state()["epoch"], loader.state()["position"]) == (0, 10 * k)
    next(loader)
    assert (loader.state()["epoch"], loader.state()["position"], loader.state()["seed"]) == (1, 10, 2**63 + 1)
    loader.close()
    state = checkpoint.load(checkpoint.dump({"loader": loader.state()}), source="test")["loader"]
    assert indices(Loader(store, 10, epochs=None, state=state), 3) == Order(N, 2**63 + 1, 1).take(10, 40).tolist()


def test_at_the_end_of_an_epoch_the_next_one_begins_and_at_the_very_end_nothing(store: Store) -> None:
    loader = Loader(store, N, epochs=2)
    first = indices(loader, 1)
    state = loader.state()
    assert (state["epoch"], state["position"]) == (0, N)
    second = indices(loader)
    assert sorted(first) == sorted(second) == list(range(N)) and first != second
    assert indices(Loader(store, 10, epochs=2, state=state)) == second[:150]
    assert indices(Loader(store, 1, epochs=2, state=loader.state())) == []
    assert indices(Loader(store, 1, epochs=3, state=loader.state())) == Order(N, 0, 2).take(0, N).tolist()


def test_a_loader_is_a_stream(store: Store) -> None:
    loader = Loader(store, 10)
    seen = []
    for batch in loader:
        seen += batch["_index"].tolist()
        break
    for batch in loader:  # goes on, also with what was read ahead
        seen += batch["_index"].tolist()
        if len(seen) == 50:
            loader.close()  # a pause
    assert seen == Order(N, 0).take(0, 150).tolist()
    assert list(loader) == []


class Counted(WindowOrder):
    """A window order that counts how often one is laid out."""

    made = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        Counted.made += 1
        super().__init__(*arguments, **options)


def test_an_order_is_laid_out_once_an_epoch(store: Store) -> None:
    Counted.made = 0
    loader = Loader(store, 10, order=Counted(store.shard_sizes, 1), epochs=3)
    for _ in loader:
        loader.state()  # also where the next epoch is read ahead already
    assert Counted.made == 3


def test_random_numbers_keyed_by_position_are_the_same_in_every_world(store: Store) -> None:
    def noisy(sample: dict[str, Any]) -> dict[str, Any]:
        return {"noise": float(uniform(7, 1, sample["_position"])), "id": sample["id"]}

    def noise(world: int) -> list[float]:
        loaders = [Loader(store, 12, rank=r, world=world, transform=noisy, epochs=2) for r in range(world)]
        return [value for parts in zip(*loaders, strict=True) for part in parts for value in part["noise"].tolist()]

    assert noise(1) == noise(4) and len(set(noise(1))) == 2 * 156  # another noise in the second epoch


def test_a_mixture_reads_several_sources_in_proportion(store: Store) -> None:
    mixture = Mixture([Order(57, 1), Order(100, 2)], [0.75, 0.25], 3)
    seen = np.array(indices(Loader(store, 8, order=mixture, epochs=1), 25))
    assert (seen < 57).sum() == 150
    assert seen.tolist() == mixture.take(0, 200).tolist()


# --- workers --------------------------------------------------------------------------------------------------------------


def doubled(sample: dict[str, Any]) -> dict[str, Any]:
    return {"id": sample["_index"], "twice": 2 * sample["id"], "points": sample["points"], "name": sample["name"]}


RAGGED = Collate(pad={"points": -1.0})


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return len(a) == len(b) and all(
        list(x) == list(y) and all(all(map(np.array_equal, x[name], y[name])) for name in x) for x, y in zip(a, b, strict=True)
    )


def test_batches_do_not_depend_on_workers_kind_or_prefetch(store: Store) -> None:
    options: dict[str, Any] = {"transform": doubled, "collate": RAGGED, "seed": 4, "epochs": 2}
    plain, given = list(Loader(store, 16, workers=0, seed=4, epochs=2)), list(Loader(store, 16, workers=0, **options))
    assert given[3]["twice"].tolist() == [2 * i for i in given[3]["_index"].tolist()]
    for workers, prefetch in ((1, 1), (2, 4), (3, 7)):
        assert same(list(Loader(store, 16, workers=workers, prefetch=prefetch, seed=4, epochs=2)), plain)
        assert same(list(Loader(store, 16, workers=workers, prefetch=prefetch, **options)), given)
    with Loader(store, 16, workers=2, kind="processes", **options) as loader:
        assert same(list(loader), given)
    assert not multiprocessing.active_children()


def test_a_slow_consumer_is_not_buried(store: Store) -> None:
    started, lock, ahead = [0], threading.Lock(), threading.Event()

    def counted(sample: dict[str, Any]) -> dict[str, Any]:
        with lock:
            started[0] += 1
            if started[0] >= 3 * 4:
                ahead.set()
        return sample

    with Loader(store, 4, transform=counted, fields=["id"], workers=3, prefetch=3) as loader:
        for taken in range(1, 20):
            next(loader)
            assert ahead.wait(60)  # it does read ahead
            assert started[0] <= 4 * (taken + 3)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("gewu-worker")]


def await_end(alive: Any) -> bool:
    """Wait for things to end by themselves; False when they do not."""
    deadline = time.monotonic() + 60
    while alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive()


@pytest.mark.parametrize("how", ["close", "with", "end", "exception", "dropped", "cycle"])
def test_no_thread_stays(store: Store, how: str) -> None:
    gc.collect()
    assert await_end(loader_threads)
    if how == "with":
        with Loader(store, 8) as loader:
            next(loader)
    elif how == "end":
        loader = Loader(store, 8)
        assert len(list(loader)) == 19
    elif how == "exception":
        loader = Loader(store, 8, transform=broken)
        with pytest.raises(KeyError):
            list(loader)
    else:
        loader = Loader(store, 8)
        next(loader)
        assert loader_threads()
        if how == "close":
            loader.close()
            loader.close()
        else:
            if how == "cycle":
                loader.itself = loader  # type: ignore[attr-defined]
            del loader
            gc.collect()
            assert await_end(loader_threads)
    assert not loader_threads()


def broken(sample: dict[str, Any]) -> dict[str, Any]:
    raise KeyError(sample["no such field"])


class Odd(Exception):
    """An exception that cannot be sent to another process."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"odd {a} {b}")


def picky(sample: dict[str, Any]) -> dict[str, Any]:
    if sample["id"] == 100:
        raise ValueError("does not like 100")
    if sample["id"] == 120:
        raise Odd(1, 2)
    if sample["id"] == 140:
        raise InputError("wrong", key="id", value=140)
    return sample


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_an_exception_comes_at_its_place_and_the_state_stays_before_it(store: Store, kind: str) -> None:
    options: dict[str, Any] = {"order": "sequential", "kind": kind, "fields": ["id"], "workers": 2 if kind == "threads" else 1}
    with Loader(store, 10, transform=picky, prefetch=8, **options) as loader:
        assert indices(loader, 10) == list(range(100))
        for _ in range(options["workers"]):  # asking again meets it again
            with pytest.raises(ValueError, match="does not like 100") as caught:
                next(loader)
            assert caught.value.__notes__ == ["in the transform of sample 100"]
            assert loader.state()["position"] == 100
    state = loader.state()
    assert indices(Loader(store, 10, state=state, order="sequential")) == list(range(100, 150))
    with (
        Loader(store, 10, transform=picky, state=state | {"position": 110}, **options) as loader,
        pytest.raises(Odd if kind == "threads" else GewuError, match="odd 1 2"),
    ):
        indices(loader)
    with Loader(store, 10, transform=picky, state=state | {"position": 130}, **options) as loader:
        assert indices(loader, 1) == list(range(130, 140))
        with pytest.raises(InputError, match=r"id: wrong \(got 140\)"):
            next(loader)


def test_an_exhausted_iterator_in_a_transform_does_not_end_the_loop_in_silence(store: Store) -> None:
    with (
        Loader(store, 10, transform=lambda sample: next(iter([]))) as loader,
        pytest.raises(RuntimeError, match="StopIteration in the transform of sample"),
    ):
        list(loader)


def suicide(sample: dict[str, Any]) -> dict[str, Any]:
    if sample["id"] == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return sample


def test_a_killed_worker_is_an_error_not_a_hang(store: Store) -> None:
    loader = Loader(store, 10, order="sequential", transform=suicide, fields=["id"], kind="processes", workers=1)
    with pytest.raises(ResourceError, match="a worker process died"):
        indices(loader)
    assert not multiprocessing.active_children()


def test_a_transform_that_cannot_travel_is_refused(store: Store) -> None:
    with (
        Loader(store, 10, transform=lambda sample: sample, kind="processes") as loader,
        pytest.raises(InputError, match="cannot be sent to another process"),
    ):
        next(loader)


PROGRAM = """
import multiprocessing, sys, time
from gewu.data import open_shards
from gewu.data.loader import Loader
if __name__ == "__main__":
    loader = Loader(open_shards(sys.argv[1]), 4, kind="processes", workers=2, epochs=None, fields=["id"])
    for _ in range(8):
        next(loader)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(3600 if sys.argv[2] == "killed" else 0)
"""


@pytest.mark.parametrize("how", ["killed", "left"])
def test_no_process_outlives_its_program(folder: Path, tmp_path: Path, how: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    program = subprocess.Popen([sys.executable, script, folder, how], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    workers = [int(pid) for pid in program.stdout.readline().split()]
    assert len(workers) == 2
    if how == "killed":
        program.kill()
    assert program.wait(60) == (-signal.SIGKILL if how == "killed" else 0)  # a loader that was not closed delays no exit
    program.stdout.close()
    assert await_end(lambda: any(running(pid) for pid in workers))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- damage ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hurt(tmp_path: Path) -> Path:
    """A folder of shards in which samples 13 and 14 are damaged."""
    infos = write_shards(tmp_path, "s", map(sample, range(60)), SCHEMA, shard_bytes=2000)
    path, first = tmp_path / infos[0].name, infos[0].samples
    assert first > 14
    data, shard = bytearray(path.read_bytes()), Shard(path)
    for number in (13, 14):
        data[int(shard.offsets[number]) + 20] ^= 1
    path.write_bytes(data)
    return tmp_path


TRANSFORMED = {"transform": doubled, "collate": RAGGED}


@pytest.mark.parametrize(
    "options", [{}, TRANSFORMED, TRANSFORMED | {"kind": "processes", "workers": 1}], ids=["", "transform", "process"]
)
def test_damaged_samples_are_left_out_counted_and_do_not_shift_the_rest(hurt: Path, options: dict[str, Any]) -> None:
    for policy in ("skip",) if "kind" in options else ("skip", "count"):
        store = open_shards(hurt, on_damage=policy)
        with Loader(store, 10, order="sequential", **options) as loader:
            assert indices(loader, 1) == list(range(10)) and loader.damage == set()
            batch = next(loader)
            assert batch["_index"].tolist() == [10, 11, 12, 15, 16, 17, 18, 19] == batch["id"].tolist()
            assert loader.damage == {13, 14} and loader.state()["position"] == 20
            assert indices(loader) == list(range(20, 60))
    with Loader(open_shards(hurt), 10, order="sequential", **options) as loader:
        assert indices(loader, 1) == list(range(10))
        with pytest.raises(StoreError, match="sample 13"):
            next(loader)
        assert loader.state()["position"] == 10


# --- putting together -----------------------------------------------------------------------------------------------------


def test_collate_stacks_pads_and_joins() -> None:
    samples = [
        {"a": k, "v": np.full(k, k), "p": np.full((k, 3), k, np.float32), "g": np.full((k, 2), k), "t": "x"} for k in (1, 3)
    ]
    batch = Collate(pad={"p": np.nan}, concatenate=["g"], multiple_of=4)(samples)
    assert batch["a"].tolist() == [1, 3] and batch["t"] == ["x", "x"] and [v.tolist() for v in batch["v"]] == [[1], [3, 3, 3]]
    assert batch["p"].shape == (2, 4, 3) and batch["p"].dtype == np.float32 and batch["p_length"].tolist() == [1, 3]
    assert np.isnan(batch["p"][0, 1:]).all() and (batch["p"][0, 0] == 1).all() and (batch["p"][1, :3] == 3).all()
    assert batch["g"].tolist() == [[1, 1], [3, 3], [3, 3], [3, 3]] and batch["g_segment"].tolist() == [0, 1, 1, 1]
    assert Collate()(samples[:1])["p"].shape == (1, 1, 3) and Collate()([]) == {}


def test_pad_fills_every_axis() -> None:
    found, lengths = pad([np.ones((1, 3)), np.ones((2, 1))], 7)
    assert found.tolist() == [[[1, 1, 1], [7, 7, 7]], [[1, 7, 7], [1, 7, 7]]] and lengths.tolist() == [1, 2]


def test_jax_arrays_come_out_and_nothing_is_cut_in_silence(store: Store) -> None:
    jax = pytest.importorskip("jax")
    batch = next(Loader(store, 8, device="jax", fields=["x", "id", "name"], workers=0))
    assert isinstance(batch["x"], jax.Array) and batch["x"].dtype == "float32" and isinstance(batch["name"], list)
    assert isinstance(batch["_index"], np.ndarray) and batch["_index"].dtype == np.int64
    assert batch["id"].dtype == "int32" and batch["id"].tolist() == batch["_index"].tolist()
    mesh = jax.make_mesh((1,), ("batch",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    batch = next(Loader(store, 8, device="jax", sharding=sharding, fields=["x"]))
    assert batch["x"].sharding == sharding

    def large(sample: dict[str, Any]) -> dict[str, Any]:
        return {"large": sample["id"] + 2**31}

    with Loader(store, 8, device="jax", transform=large) as loader, pytest.raises(InputError, match="large: is not possible"):
        next(loader)


JAX_PROGRAM = """
import sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{sys.argv[3]}", 2, int(sys.argv[2]))
from jax.experimental.multihost_utils import process_allgather
from gewu.data import open_shards
from gewu.data.loader import Loader
sharding = jax.sharding.NamedSharding(jax.make_mesh((2,), ("batch",)), jax.sharding.PartitionSpec("batch"))
options = {"rank": int(sys.argv[2]), "world": 2, "fields": ["id"], "seed": 6}
with Loader(open_shards(sys.argv[1]), 8, device="jax", sharding=sharding, **options) as loader:
    batch = next(loader)
assert batch["id"].shape == (8,) and len(batch["_index"]) == 4
print("batch", *process_allgather(batch["id"], tiled=True).tolist())
"""


@pytest.mark.slow  # two programs that start JAX
def test_two_programs_make_one_global_array(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(JAX_PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    commands = [[sys.executable, str(script), str(folder), str(rank), str(port)] for rank in range(2)]
    programs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    expected = "batch " + " ".join(map(str, Order(N, 6).take(0, 8).tolist()))
    assert [expected in program.communicate(timeout=120)[0] for program in programs] == [True, True]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"batch": 0}, "batch"),
        ({"batch": N + 1}, "batch"),
        ({"batch": 9, "world": 2}, "batch"),
        ({"batch": 8, "rank": 2, "world": 2}, "rank"),
        ({"batch": 8, "world": 0}, "rank"),
        ({"batch": 8, "order": "random"}, "order"),
        ({"batch": 8, "order": Order(N + 1, 0)}, "order"),
        ({"batch": 8, "order": Mixture([Order(N, 0)], [1], 0), "epochs": 2}, "epochs"),
        ({"batch": 8, "workers": -1}, "workers"),
        ({"batch": 8, "prefetch": 0}, "prefetch"),
        ({"batch": 8, "kind": "fibers"}, "kind"),
        ({"batch": 8, "device": "cuda"}, "device"),
        ({"batch": 8, "state": {"order": "global-1 n=3", "seed": 0, "epoch": 0, "position": 0}}, None),
        ({"batch": 8, "order": Order(N, 0, 2), "state": Order(N, 0, 1).state(3)}, "epoch"),
    ],
)
def test_what_cannot_be_is_refused(store: Store, options: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as caught:
        Loader(store, **options)
    assert caught.value.key == key


def test_unknown_fields_are_refused(store: Store) -> None:
    with Loader(store, 8, fields=["ids"]) as loader, pytest.raises(InputError, match="did you mean 'id'"):
        next(loader)
