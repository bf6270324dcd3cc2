"""The pipeline: what goes in comes out once, in order, whatever the executor; refusals are counted; a second run does nothing."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest

from gewu.core.errors import GewuError, InputError, ResourceError, StoreError
from gewu.core.files import DirectoryLock
from gewu.data.catalogue import Catalogue
from gewu.data.executors import Crew
from gewu.data.fields import Schema
from gewu.data.piece import Reject, Source
from gewu.data.pipeline import DUPLICATE, EXAMPLES, Pipeline, StorePiece, source_from
from gewu.data.shard import ShardWriter
from gewu.data.store import Store
from tests.pipelinetools import SCHEMA, Killed, Multiples, Numbers, Raises, Residues, Words, files_of, numbers

STAGES = (Multiples(2), Words(7))


def samples_of(root: Path) -> list[dict[str, Any]]:
    return list(Catalogue(root).open())


def expected(source: Source, stages: tuple[Any, ...]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return what should come out and be refused, computed stage by stage over everything at once."""
    items = [item for piece in source.pieces for item in piece.samples()]
    refused: dict[str, int] = {}
    for stage in (lambda sample: sample, *stages):
        following: list[Any] = []
        for item in items:
            if isinstance(item, Reject):
                refused[item.reason] = refused.get(item.reason, 0) + 1
                continue
            out = stage(item)
            following += [out] if isinstance(out, dict | Reject) else out
        items = following
    for item in items:
        if isinstance(item, Reject):
            refused[item.reason] = refused.get(item.reason, 0) + 1
    return [item for item in items if not isinstance(item, Reject)], refused


def test_what_comes_out_is_what_the_stages_say(tmp_path: Path) -> None:
    source = numbers(bad=50)
    summary = Pipeline(source, STAGES, tmp_path / "a.store", columns=["k"], shard_bytes=3000).run()
    samples, refused = expected(source, STAGES)
    assert samples_of(tmp_path / "a.store") == samples
    assert summary.rejects == refused
    assert (summary.pieces, summary.done, summary.version) == (5, 5, 1)
    assert (summary.samples_in, summary.samples_out) == (sum(60 + 7 * k for k in range(5)), len(samples))
    assert all(len(where) == min(EXAMPLES, refused[reason]) for reason, where in summary.examples.items())
    assert summary.examples["unreadable"] == ["line 0", "line 50", "line 100"]
    assert summary.examples["not-of-2"][:2] == ["part-0#1", "part-0#3"]
    sizes = {row["name"]: row["bytes"] for row in summary.shards}
    assert len(sizes) > 5 and sizes == {p.name: p.stat().st_size for p in (tmp_path / "a.store/shards").iterdir()}
    assert Catalogue(tmp_path / "a.store").verify(deep=True) == []
    rows = Catalogue(tmp_path / "a.store").sql("SELECT number, k FROM samples WHERE k = 1 ORDER BY number")
    assert rows == [{"number": s["number"], "k": 1} for s in samples if s["k"] == 1]


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    for name, how in (("one", ()), ("two", (2, "processes"))):
        pipeline = Pipeline(numbers(bad=50), STAGES, tmp_path / name, columns=["k"], dedup=Residues(37), shard_bytes=3000)
        assert pipeline.run(*how).version == 1
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_dask_workers_write_the_same_bytes_and_one_may_die(tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    stages = (Killed(70, str(tmp_path / "marks")), *STAGES)
    summary = Pipeline(numbers(), stages, tmp_path / "dask", shard_bytes=3000).run(2, "dask")
    assert (summary.version, summary.done, len(os.listdir(tmp_path / "marks"))) == (1, 5, 1)
    Pipeline(numbers(), stages, tmp_path / "one", shard_bytes=3000).run()
    assert files_of(tmp_path / "one") == files_of(tmp_path / "dask")


def test_dask_takes_a_client_an_address_and_a_scheduler_file(tmp_path: Path) -> None:
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        (tmp_path / "dask.json").write_text(json.dumps({"address": cluster.scheduler_address}))
        for k, address in enumerate((client, str(tmp_path / "dask.json"))):
            assert Pipeline(numbers(2), (), tmp_path / str(k)).run(executor="dask", address=address).version == 1
    assert files_of(tmp_path / "0") == files_of(tmp_path / "1")


def test_a_second_run_finds_nothing_to_do_and_new_pieces_make_a_new_version(tmp_path: Path) -> None:
    pipeline = Pipeline(numbers(3), STAGES, tmp_path / "a", shard_bytes=3000)
    first, before = pipeline.run(), files_of(tmp_path / "a")
    assert pipeline.run() == first
    assert files_of(tmp_path / "a") == before
    longer = dataclasses.replace(pipeline, source=numbers(5))
    assert longer.run().version == 2
    after = files_of(tmp_path / "a")
    assert {name: after[name] for name in before} == before
    assert samples_of(tmp_path / "a") == expected(numbers(5), STAGES)[0]
    assert Catalogue(tmp_path / "a").snapshot().parent == 1
    assert Catalogue(tmp_path / "a").snapshot(1).samples == first.samples_out
    assert pipeline.run().version == 3  # without the new pieces again
    assert samples_of(tmp_path / "a") == expected(numbers(3), STAGES)[0]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"stages": (Multiples(3), Words(7))}, "stage 1"),
        ({"stages": (Multiples(2), Words(8))}, "stage 2"),
        ({"stages": (Multiples(2),)}, "stage 2"),
        ({"stages": (Multiples(2), Words(7), Multiples(5))}, "stage 3"),
        ({"source": numbers()._replace(kind="others")}, "source"),
        ({"columns": ["text"]}, "columns"),
        ({"compression": "block"}, "compression"),
        ({"shard_bytes": 4000}, "shard_bytes"),
        ({"dedup": Residues(5)}, "dedup"),
    ],
)
def test_another_pipeline_is_refused_until_restart(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    pipeline = Pipeline(numbers(2), STAGES, tmp_path / "a", shard_bytes=3000)
    pipeline.run()
    before = files_of(tmp_path / "a")
    other = dataclasses.replace(pipeline, **change)
    with pytest.raises(InputError, match="begun by another pipeline") as caught:
        other.run()
    assert caught.value.key == key and "restart=True" in str(caught.value)
    assert files_of(tmp_path / "a") == before
    dataclasses.replace(other, root=tmp_path / "b").run()
    assert other.run(restart=True).version == 1
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_piece_that_became_another_is_refused(tmp_path: Path) -> None:
    Pipeline(numbers(2), (), tmp_path / "a").run()
    other = Source(SCHEMA, [Numbers("part-0", 0, 61)], "numbers", ("number",))
    with pytest.raises(InputError, match=r"part-0\.json: a piece of this name was made from something else"):
        Pipeline(other, (), tmp_path / "a").run()


def test_a_store_that_no_pipeline_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "shards").mkdir(parents=True)
    for restart in (False, True):
        with pytest.raises(InputError, match="no pipeline made"):
            Pipeline(numbers(2), (), tmp_path / "a").run(restart=restart)


def test_duplicates_are_dropped_over_all_pieces(tmp_path: Path) -> None:
    source = numbers(4, bad=50)
    pipeline = Pipeline(source, STAGES, tmp_path / "a", columns=["k"], dedup=Residues(37), shard_bytes=3000)
    summary = pipeline.run()
    samples, refused = expected(source, STAGES)
    kept = [s for j, s in enumerate(samples) if s["number"] % 37 not in {t["number"] % 37 for t in samples[:j]}]
    assert samples_of(tmp_path / "a") == kept
    assert summary.rejects == refused | {DUPLICATE: len(samples) - len(kept)}
    assert (summary.samples_in, summary.samples_out) == (sum(len(list(p.samples())) for p in source.pieces), len(kept))
    assert not (tmp_path / "a/distinct/shards").exists() and not (tmp_path / "a/sketches").exists()
    before = files_of(tmp_path / "a")
    assert pipeline.run() == summary
    assert files_of(tmp_path / "a") == before
    with pytest.raises(InputError, match="begun by another pipeline") as caught:
        dataclasses.replace(pipeline, source=numbers(5, bad=50)).run()
    assert caught.value.key == "pieces"


def test_progress_counts_up_over_all_steps(tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []
    pipeline = Pipeline(numbers(4), STAGES, tmp_path / "a", dedup=Residues(37), shard_bytes=3000)
    pipeline.run(progress=lambda done, total, **numbers: seen.append((done, total)))
    assert seen == sorted(seen) and seen[3] == (4, 12) and seen[-1] == (12, 12)


def test_refusals_name_the_path_of_the_sample(tmp_path: Path) -> None:
    schema = Schema.of({"path": "text", "number": "int64"})
    with ShardWriter(tmp_path / "x.gws", schema) as writer:
        writer.add({"path": "a/b.txt", "number": 3})
        writer.add({"path": "", "number": 5})
    summary = Pipeline(source_from(Store([tmp_path / "x.gws"])), (Multiples(2), Raises(5)), tmp_path / "a").run()
    assert summary.examples == {"not-of-2": ["a/b.txt", "x#1"]}


def test_duplicates_of_nothing(tmp_path: Path) -> None:
    summary = Pipeline(numbers(2), (Multiples(1000), Multiples(7)), tmp_path / "a", dedup=Residues(3)).run()
    assert summary.samples_out == 1  # number 0
    nothing = Source(SCHEMA, [Numbers("none", 0, 0)], "numbers")
    assert Pipeline(nothing, (), tmp_path / "b", dedup=Residues(3)).run().version == 1
    assert Catalogue(tmp_path / "b").snapshot().samples == 0


def test_what_a_stage_refuses_by_raising_is_counted_with_its_message(tmp_path: Path) -> None:
    summary = Pipeline(numbers(2), (Raises(61), Multiples(1)), tmp_path / "a").run()
    assert summary.rejects == {"error:raises": 1}
    assert summary.examples == {"error:raises": ["part-1#1: is an odd one (got 61)"]}
    assert summary.samples_out == summary.samples_in - 1


@pytest.mark.parametrize(
    ("how", "kind", "error", "message"),
    [
        ((1, "serial"), "bug", GewuError, "stage raises failed on sample part-1#1: KeyError: 'a bug'"),
        ((2, "processes"), "bug", GewuError, "stage raises failed on sample part-1#1: KeyError: 'a bug'"),
        ((1, "serial"), "resource", ResourceError, "sample part-1#1: no more memory"),
    ],
)
def test_a_bug_stops_the_run_and_names_stage_and_sample(
    tmp_path: Path, how: tuple[int, str], kind: str, error: type[GewuError], message: str
) -> None:
    with pytest.raises(error, match=message):
        Pipeline(numbers(3), (Raises(61, kind),), tmp_path / "a").run(*how)
    left = {path.name for path in (tmp_path / "a/receipts").iterdir()}
    assert "part-1.json" not in left
    assert not any(path.name.startswith((".", "part-1")) for path in (tmp_path / "a/shards").iterdir())
    assert Catalogue(tmp_path / "a").versions() == []


@dataclasses.dataclass(frozen=True)
class Wrong:
    name: str = "wrong"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return sample | {"text": 3} if sample["number"] == 5 else sample


def test_a_sample_that_does_not_fit_names_field_and_sample(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"part-0#5: text: is not of the type of its field"):
        Pipeline(numbers(1), (Wrong(),), tmp_path / "a").run()


def test_too_many_refusals_make_no_version(tmp_path: Path) -> None:
    pipeline = Pipeline(numbers(2), (Multiples(2),), tmp_path / "a", most_rejects=0.4)
    with pytest.raises(InputError, match="too many samples were refused: 63 not-of-2"):
        pipeline.run()
    assert Catalogue(tmp_path / "a").versions() == []
    assert dataclasses.replace(pipeline, most_rejects=0.5).run().version == 1


@pytest.mark.parametrize("how", [(1, "serial"), (2, "processes")])
def test_stop_ends_between_pieces_and_the_next_run_goes_on(tmp_path: Path, how: tuple[int, str]) -> None:
    pipeline = Pipeline(numbers(6), STAGES, tmp_path / "a", shard_bytes=3000)
    seen: list[tuple[float, float]] = []
    summary = pipeline.run(*how, progress=lambda done, total, **rest: seen.append((done, total)), stop=lambda: bool(seen))
    assert seen[0] == (1, 6) and len(seen) == summary.done < 6 and summary.version == 0
    assert {path.stem for path in (tmp_path / "a/receipts").iterdir()} >= {"part-5"}  # the largest comes first
    assert pipeline.run().version == 1
    dataclasses.replace(pipeline, root=tmp_path / "b").run()
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_killed_worker_is_noticed_and_its_piece_done_again(tmp_path: Path) -> None:
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    summary = Pipeline(numbers(), (Killed(70, str(tmp_path / "once")),), tmp_path / "a").run(2, "processes")
    assert (summary.version, len(os.listdir(tmp_path / "once"))) == (1, 1)
    Pipeline(numbers(), (Killed(70, str(tmp_path / "once")),), tmp_path / "b").run()
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")

    pipeline = Pipeline(numbers(), (Killed(70, str(tmp_path / "twice"), times=2),), tmp_path / "c")
    with pytest.raises(ResourceError, match=r"killed twice.*part-1"):
        pipeline.run(2, "processes")
    assert pipeline.run().version == 1
    assert files_of(tmp_path / "c") == files_of(tmp_path / "b")


def test_two_pipelines_in_one_folder_are_one_too_many(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with DirectoryLock(tmp_path / "a"), pytest.raises(ResourceError, match="is in use by process"):
        Pipeline(numbers(), (), tmp_path / "a").run()


def test_a_store_is_the_source_of_the_next_pipeline(tmp_path: Path) -> None:
    Pipeline(numbers(), (), tmp_path / "a", shard_bytes=3000).run()
    store = Catalogue(tmp_path / "a").open()
    Pipeline(source_from(store), STAGES, tmp_path / "b").run()
    assert samples_of(tmp_path / "b") == expected(numbers(), STAGES)[0]
    picked = np.arange(1, len(store), 3)
    Pipeline(source_from(store.subset(picked)), (), tmp_path / "c").run()
    assert samples_of(tmp_path / "c") == [store[int(i)] for i in picked]


def test_a_damaged_sample_of_a_store_is_a_refusal(tmp_path: Path) -> None:
    Pipeline(numbers(1), (), tmp_path / "a").run()
    path = tmp_path / "a/shards/part-0-0000.gws"
    data = bytearray(path.read_bytes())
    data[70] ^= 1
    path.write_bytes(data)
    summary = Pipeline(source_from(Store([path])), (), tmp_path / "b").run()
    assert (summary.rejects, summary.samples_out) == ({"damaged": 1}, 59)
    assert "part-0-0000.gws: sample 0" in summary.examples["damaged"][0]


@dataclasses.dataclass(frozen=True)
class Unstable:
    value: Any
    name: str = "unstable"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return sample


@pytest.mark.parametrize("value", [object(), lambda: 0, frozenset({"a"})])
def test_a_stage_that_cannot_be_compared_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match="cannot be compared"):
        Pipeline(numbers(), (Unstable(value),), tmp_path / "a").run()


def test_arrays_of_a_stage_are_compared_in_full(tmp_path: Path) -> None:
    weights = np.arange(5000.0)
    Pipeline(numbers(1), (Unstable(weights),), tmp_path / "a").run()
    assert Pipeline(numbers(1), (Unstable(weights.copy()),), tmp_path / "a").run().version == 1
    weights[2500] += 1e-9
    with pytest.raises(InputError, match="begun by another"):
        Pipeline(numbers(1), (Unstable(weights),), tmp_path / "a").run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": Source(SCHEMA, [Numbers("a", 0, 1), Numbers("a", 1, 1)], "n")}, "not a name for a piece"),
        ({"source": Source(SCHEMA, [Numbers("../a", 0, 1)], "n")}, "not a name for a piece"),
        ({"source": Source(SCHEMA, [Numbers(".a", 0, 1)], "n")}, "not a name for a piece"),
        ({"columns": ["nunber"]}, "did you mean 'number'"),
        ({"source": Source(Schema.of({"length": "int64"}), (), "n", ("length",))}, "rename the field"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pipeline(**({"source": numbers(), "stages": (), "root": tmp_path / "a"} | change))
    assert not (tmp_path / "a").exists()


def test_a_column_that_no_catalogue_can_hold_is_refused(tmp_path: Path) -> None:
    schema, made = Schema.of({"x": "float64[3]"}), tmp_path / "x.gws"
    with ShardWriter(made, schema) as writer:
        writer.add({"x": np.zeros(3)})
    source = source_from(Store([made]))._replace(columns=("x",))
    with pytest.raises(InputError, match="x: cannot be stored"):
        Pipeline(source, (), tmp_path / "a").run()


@pytest.mark.parametrize(("executor", "workers"), [("threads", 1), ("serial", 0)])
def test_an_executor_that_does_not_exist(executor: str, workers: int) -> None:
    with pytest.raises(InputError, match="no such executor"):
        Crew(executor, workers)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Pipeline(numbers(), (), tmp_path / "file" / "a").run()


def test_a_receipt_holds_everything_but_time(tmp_path: Path) -> None:
    Pipeline(numbers(2, bad=50), STAGES, tmp_path / "a").run()
    receipt = json.loads((tmp_path / "a/receipts/part-1.json").read_text())
    assert receipt["piece"] == "part-1"
    assert receipt["samples_in"] == 67
    assert receipt["rejects"]["unreadable"] == 1 and receipt["examples"]["unreadable"] == ["line 100"]
    assert [row["name"] for row in receipt["shards"]] == ["part-1-0000.gws"]
    assert receipt["shards"][0]["samples"] == receipt["parts"][0]["rows"] == receipt["samples_out"]


def test_pieces_of_a_shard(tmp_path: Path) -> None:
    Pipeline(numbers(1), (), tmp_path / "a").run()
    folder, name = str(tmp_path / "a/shards"), "part-0-0000.gws"
    keep = np.arange(60) % 2 == 0
    piece = StorePiece(folder, name, np.packbits(keep).tobytes(), "odd")
    found = list(piece.samples())
    assert [isinstance(item, Reject) for item in found] == [not k for k in keep]
    assert found[1] == Reject("odd", "part-0-0000#1")
    assert repr(piece) == repr(dataclasses.replace(piece, folder="/elsewhere"))
