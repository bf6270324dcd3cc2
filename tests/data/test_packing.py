"""Packing: every token once and in order, masks as by hand, the same rows in any world and after any kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.data import Schema, Shard, Store, open_shards
from gewu.data.loader import Loader
from gewu.data.order import Mixture, Order
from gewu.data.packing import PackedLoader, Packer, Packing, document_mask
from gewu.data.shard import write_shards

WAYS = [(strategy, split) for strategy in ("greedy", "best-fit") for split in (True, False)]


def documents(rng: np.random.Generator, count: int, longest: int) -> list[np.ndarray]:
    """Return documents, some empty; token 1000 d + j is token j of document d, so each is unique."""
    return [np.arange(length, dtype=np.int32) + 1000 * d for d, length in enumerate(rng.integers(0, longest, count))]


def pieces(row: dict[str, Any]) -> list[list[int]]:
    """Return the tokens of each segment of a row, which must be contiguous and counted from 1, padding behind."""
    segments = row["segments"].tolist()
    count = max(segments)
    assert segments == sorted(s for s in segments if s) + [0] * segments.count(0)
    found = [row["tokens"][row["segments"] == s].tolist() for s in range(1, count + 1)]
    assert all(found) and not row["tokens"][row["segments"] == 0].any()
    assert row["positions"].tolist() == [k for piece in found for k in range(len(piece))] + [0] * segments.count(0)
    return found


def by_hand(docs: Sequence[Sequence[int]], packer: Packer) -> list[list[list[int]]]:
    """Pack by the three rules, one after the other, on plain lists."""
    waiting = [list(doc) + ([] if packer.eos is None else [packer.eos]) for doc in docs]
    waiting = [doc for doc in waiting if doc]
    window = packer.window if packer.strategy == "best-fit" else 1
    rows = []
    while waiting:
        row: list[list[int]] = []
        while waiting and (room := packer.length - sum(map(len, row))):
            seen = waiting[:window]
            fit = [doc for doc in seen if len(doc) <= room]
            if not row and seen[0] in fit:
                take = seen[0]
            elif row and fit:
                take = max(fit, key=len)  # of equal ones the first
            elif packer.split or not row:
                row.append(waiting[0][:room])
                waiting[0] = waiting[0][room:]
                continue
            else:
                break
            row.append(take)
            waiting.pop(next(k for k, doc in enumerate(waiting) if doc is take))
        rows.append(row)
    return rows


@pytest.mark.parametrize(("strategy", "split"), WAYS)
def test_rows_follow_the_three_rules_and_hold_every_token_once_in_order(strategy: str, split: bool) -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        length, eos = int(rng.integers(1, 40)), [None, 999_999][rng.integers(2)]
        packer = Packer(length, eos=eos, split=split, strategy=strategy, window=int(rng.integers(1, 9)))
        docs = documents(rng, int(rng.integers(0, 30)), int(rng.integers(2, 90)))
        rows = list(packer.rows(docs))
        assert [pieces(row) for row in rows] == by_hand([doc.tolist() for doc in docs], packer)
        assert all(row[name].dtype == np.int32 and row[name].shape == (length,) for row in rows for name in row)
        found: dict[int, list[int]] = {}
        for row in rows:
            for piece in pieces(row):
                body = [token for token in piece if token != eos]
                assert body == list(range(body[0], body[0] + len(body))) if body else piece == [eos]
                if body:
                    found.setdefault(body[0] // 1000, []).extend(body)
        assert found == {d: doc.tolist() for d, doc in enumerate(docs) if len(doc)}
        ends = sum(piece.count(eos) for row in rows for piece in pieces(row))
        assert ends == (0 if eos is None else len(docs))
        if split:
            assert all((row["segments"] > 0).all() for row in rows[:-1])  # padding in the last row alone


def test_how_full_rows_are_without_cutting() -> None:
    rng = np.random.default_rng(0)
    lengths = np.exp(np.log(400) + rng.standard_normal(20_000)).astype(int) + 1
    docs = [np.ones(n, np.int32) for n in lengths]
    full = {}
    for strategy in ("greedy", "best-fit"):
        rows = list(Packer(2048, split=False, strategy=strategy).rows(docs))
        full[strategy] = int(lengths.sum()) / (2048 * len(rows))
    assert {name: round(100 * part) for name, part in full.items()} == {"greedy": 80, "best-fit": 99}  # as the module says


@pytest.mark.parametrize(("strategy", "split"), WAYS)
def test_a_packing_goes_on_from_behind_any_row(strategy: str, split: bool) -> None:
    rng = np.random.default_rng(3)
    docs = documents(rng, 25, 30)
    packer = Packer(11, eos=7, split=split, strategy=strategy, window=5)

    def fetch(number: int) -> Any:
        return docs[number] if number < len(docs) else None

    whole = [row["tokens"].tolist() for row in packer.rows(docs)]
    packing, rows = Packing(), []
    for count in range(len(whole) + 1):
        resumed = packer.resume(fetch, json.loads(json.dumps(packing.state())))
        rest = []
        while (found := packer.pieces(fetch, resumed))[0]:
            rest.append(packer.row(found[0])["tokens"].tolist())
            resumed = found[1]
        assert rows + rest == whole and len(rows) == count
        got, packing = packer.pieces(fetch, packing)
        rows.append(packer.row(got)["tokens"].tolist())


def test_the_mask_lets_a_token_see_its_own_document_up_to_itself() -> None:
    segments = np.stack([row["segments"] for row in Packer(9).rows(documents(np.random.default_rng(5), 12, 7))])
    mask = document_mask(segments)
    for b, i, j in np.ndindex(mask.shape):
        expected = j <= i and segments[b, i] == segments[b, j] and segments[b, i] != 0
        assert bool(mask[b, i, j]) == expected
    assert np.array_equal(document_mask(segments[0]), mask[0])
    jax = pytest.importorskip("jax")
    assert np.array_equal(jax.jit(document_mask)(jax.numpy.asarray(segments)), mask)


@pytest.mark.parametrize(
    "options",
    [{"length": 0}, {"length": 4, "window": 0}, {"length": 4, "strategy": "first-fit"}, {"length": 4, "eos": -1}],
)
def test_ways_of_packing_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="not a way of packing"):
        Packer(**options)


@pytest.mark.parametrize("tokens", [[1.5, 2.0], [[1, 2]], [-1, 2], [2**31], ["a"]])
def test_what_is_no_token_is_refused(tokens: Any) -> None:
    with pytest.raises(InputError, match="tokens: does not hold tokens"):
        list(Packer(4).rows([[1, 2], tokens]))


# --- over a store ---------------------------------------------------------------------------------------------------------

N = 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    docs = documents(np.random.default_rng(8), N, 60)
    samples = ({"tokens": doc.astype(np.uint32), "text": "x" * len(doc)} for doc in docs)
    write_shards(folder, "s", samples, Schema.of({"text": "text", "tokens": "uint32[*]"}), shard_bytes=4000)
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    return open_shards(folder)


def run_world(
    store: Any, world: int, batches: int | None, state: Any, rows: int = 8, packer: Packer | None = None, **options: Any
) -> tuple[list[dict[str, np.ndarray]], Any]:
    """Run all ranks for some batches; return the rows of the world, batch by batch, and the joined state."""
    packer = packer or Packer(24, eos=5, strategy="best-fit", split=False, window=4)
    slots = options.pop("slots", 8)
    loaders = [
        PackedLoader(Loader(store, 8, rank=r, world=world, **options), packer, rows, slots=slots, chunk=3, state=state)
        for r in range(world)
    ]
    seen = []
    while batches is None or batches > 0:
        parts = [next(loader, None) for loader in loaders]
        if all(part is None for part in parts):
            break
        blank = np.zeros((rows // world, packer.length), np.int32)  # of ranks that are through
        seen.append(
            {name: np.concatenate([p[name] if p else blank for p in parts]) for name in ("tokens", "segments", "positions")}
        )
        batches = batches and batches - 1
    for loader in loaders:
        loader.close()
    return seen, json.loads(json.dumps(PackedLoader.joined([loader.state() for loader in loaders])))


def equal(a: list[dict[str, np.ndarray]], b: list[dict[str, np.ndarray]]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x)


@pytest.mark.parametrize(("strategy", "split"), WAYS)
def test_an_epoch_packs_every_token_once_each_slot_by_itself(store: Store, strategy: str, split: bool) -> None:
    packer = Packer(24, eos=5, strategy=strategy, split=split, window=4)
    batches, _ = run_world(store, 1, None, None, packer=packer, seed=3)
    order = Order(N, 3).take(0, N)
    for slot in range(8):
        docs = [store[int(i)]["tokens"].tolist() for i in order[slot::8]]
        rows = [pieces({name: batch[name][slot] for name in batch}) for batch in batches if batch["segments"][slot].any()]
        assert rows == by_hand(docs, packer)


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_the_same_in_every_world(store: Store, workers: int) -> None:
    for options in ({"epochs": 2}, {"epochs": 1, "order": "window", "seed": 9}):
        whole, _ = run_world(store, 1, None, None, workers=0, **options)
        for world in (2, 4, 8):
            assert equal(run_world(store, world, None, None, workers=workers, **options)[0], whole)
    assert equal(run_world(store, 1, None, None, rows=16, workers=workers, epochs=2)[0][:3], joined_by_two(store))


def joined_by_two(store: Store) -> list[dict[str, np.ndarray]]:
    """Return three batches of two rows a slot, from six of one."""
    singles, _ = run_world(store, 1, 6, None, workers=0, epochs=2)
    return [
        {name: np.stack([singles[k][name], singles[k + 1][name]], axis=1).reshape(16, -1) for name in singles[k]}
        for k in (0, 2, 4)
    ]


def test_killed_behind_any_batch_and_resumed_in_another_world_the_rows_are_the_same(store: Store) -> None:
    whole, _ = run_world(store, 1, 30, None, epochs=None)
    for count in range(len(whole)):  # over the end of the first epoch, which comes at about batch 16
        world, then = [(1, 2), (2, 8), (8, 4), (4, 1)][count % 4]
        first, state = run_world(store, world, count, None, epochs=None, workers=count % 3)
        rest, _ = run_world(store, then, min(5, len(whole) - count), state, epochs=None, workers=count % 2)
        assert equal(first + rest, whole[: count + len(rest)])
    assert {i for i, _ in Packing(9, ((3, 1, np.ones(2)),)).state()[1]} == {3}


def test_a_state_must_be_whole_and_of_the_same_stream(store: Store) -> None:
    loader = Loader(store, 8, world=2, rank=1, epochs=None)
    packed = PackedLoader(loader, Packer(24), 8)
    next(packed)
    packed.close()
    with pytest.raises(InputError, match=r"the state lacks slots .*join the states of all ranks"):
        PackedLoader(Loader(store, 8), Packer(24), 8, state=packed.state())
    for other in (
        {"packer": Packer(25)},
        {"packer": Packer(24, strategy="best-fit")},
        {"rows": 4},
        {"loader": Loader(store, 8, seed=1, world=2, rank=1)},
        {"loader": Loader(store.subset(range(80)), 8, world=2, rank=1)},
    ):
        with pytest.raises(InputError, match="another stream"):
            PackedLoader(**{"loader": loader, "packer": Packer(24), "rows": 8, "state": packed.state()} | other)
    for rows, slots in ((8, 3), (9, 9), (0, None), (8, 1)):
        with pytest.raises(InputError, match="shared evenly"):
            PackedLoader(loader, Packer(24), rows, slots=slots)


def tokenised(sample: dict[str, Any]) -> dict[str, Any]:
    if len(sample["text"]) == 57:
        raise ValueError("does not like 57")
    return {"tokens": np.frombuffer(sample["text"].encode(), np.uint8)}


def test_a_transform_may_tokenise_and_its_exception_leaves_the_state_before_the_batch(store: Store) -> None:
    def run(limit: int) -> tuple[list[list[int]], Any]:
        loader = PackedLoader(Loader(store, 8, order="sequential", transform=tokenised, fields=["text"]), Packer(64), 2, chunk=2)
        seen = []
        for _ in range(limit):
            seen.append(next(loader)["tokens"].tolist())
        with loader:
            state = loader.state()
            for _ in range(2):
                with pytest.raises(ValueError, match="does not like 57"):
                    next(loader)
                assert loader.state() == state
        return seen, state

    lengths = [len(store[i]["text"]) for i in range(N)]
    slot, number = lengths.index(57) % 2, lengths.index(57) // 2
    before = sum(lengths[slot::2][: number // 2 * 2]) // 64  # rows that can be filled without the chunk of that sample
    assert before > 0
    run(before)


def test_a_mixture_is_packed_too(store: Store) -> None:
    mixture = Mixture([Order(30, 0), Order(60, 0)], [0.5, 0.5], 0)
    first, state = run_world(store, 1, 10, None, order=mixture, epochs=None)
    rest, _ = run_world(store, 4, 10, state, order=mixture, epochs=None)
    assert equal(first + rest, run_world(store, 2, 20, None, order=mixture, epochs=None)[0])


def test_damaged_documents_are_left_out_and_named(tmp_path: Path) -> None:
    docs = documents(np.random.default_rng(4), 30, 40)
    info = write_shards(tmp_path, "s", ({"tokens": doc} for doc in docs), Schema.of({"tokens": "int32[*]"}))[0]
    path, data = tmp_path / info.name, bytearray((tmp_path / info.name).read_bytes())
    data[int(Shard(path).offsets[17]) + 12] ^= 1
    path.write_bytes(data)
    loader = Loader(open_shards(tmp_path, on_damage="skip"), 1, order="sequential")
    found = np.concatenate([batch["tokens"][batch["segments"] > 0] for batch in PackedLoader(loader, Packer(16), 1)])
    assert found.tolist() == [t for d, doc in enumerate(docs) if d != 17 for t in doc.tolist()]
    assert loader.damage == {17}


def test_rows_come_out_as_jax_arrays(store: Store) -> None:
    jax = pytest.importorskip("jax")
    with PackedLoader(Loader(store, 8, device="jax"), Packer(32), 4) as loader:
        batch = next(loader)
    assert all(isinstance(batch[name], jax.Array) and batch[name].shape == (4, 32) for name in batch)
