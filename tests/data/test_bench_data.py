"""What the benchmark of the sample store rests on: samples that are the same everywhere, and records of the house's shape."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.data import bench
from bench.data.engines import ENGINES
from bench.data.samples import COUNTS, Samples, decode, digest, make_pictures
from bench.data.worker import Worker, evict, resident
from bench.run import EXTRA, KEYS

ROOT = Path(__file__).resolve().parents[2]


def test_samples_depend_on_their_number_only() -> None:
    few, many = Samples("small", 100), Samples("small", 200)
    assert [digest(few[i]) for i in range(100)] == [digest(many[i]) for i in range(100)]
    assert len({digest(sample) for sample in few}) == 100
    sizes = [len(sample["image"]) + len(sample["text"].encode()) + 72 for sample in Samples("small", 2000)]
    assert 1550 < np.mean(sizes) < 1700 and min(sizes) < 600 and max(sizes) > 5000


def test_the_same_bytes_in_another_process() -> None:
    code = "from bench.data.samples import *; print(digest(Samples('small', 9)[7]).hex())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(Samples("small", 9)[7]).hex()


def test_large_samples_are_pictures_and_differ(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    make_pictures(tmp_path)
    samples = Samples("large", 40, tmp_path)
    assert 80_000 < np.mean([len(sample["image"]) for sample in Samples("large", 1000, tmp_path)]) < 120_000
    assert len({hashlib.sha256(sample["image"]).digest() for sample in samples}) == 40
    assert decode(samples[3]["image"]) > 100_000


def test_a_digest_refuses_what_was_not_stored() -> None:
    sample = Samples("small", 1)[0]
    for name, value in (("image", "text"), ("features", [0.0] * 16), ("label", 1.5), ("text", b"bytes")):
        with pytest.raises(TypeError):
            digest({**sample, name: value})


def test_files_leave_the_page_cache(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1 << 20))
    assert resident(tmp_path / "a") == 256
    if evict(tmp_path) == 1:
        pytest.skip("this file system keeps its files in memory")
    assert evict(tmp_path) == 0


def test_our_own_worker_answers_every_question(tmp_path: Path) -> None:
    worker = Worker("gewu", "small", tmp_path, 3000)
    assert worker.answer({"do": "pack"})["bytes"] > 4_000_000
    assert worker.answer({"do": "open"})["seconds"] > 0
    indices = [0, 7, 2999, 512]
    answer = worker.answer({"do": "check", "indices": indices})
    assert answer["wrong"] == [] and answer["digest"] == b"".join(digest(Samples("small", 3000)[i]) for i in indices).hex()
    for request in ({"do": "random", "seconds": 0.01}, {"do": "batch", "seconds": 0.01}, {"do": "scan", "seconds": 0.05}):
        assert all(rate > 0 for rate in worker.answer(dict(request))["rates"].values())
    for way in ("one", "batch", "scan"):
        assert worker.answer({"do": "cold", "count": 300, "way": way})["rates"][way] > 0


def test_a_wrong_store_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker("gewu", "small", tmp_path, 300)
    worker.answer({"do": "pack"})
    worker.answer({"do": "open"})
    monkeypatch.setattr(worker.samples, "_bytes", bytes(1 << 23))
    assert worker.answer({"do": "check", "indices": [5]})["wrong"] == ["columns", "iterate", "one", "read"]


def rates(*values: float) -> list[float]:
    return list(values)


@pytest.mark.parametrize("peer", list(bench.PEERS))
@pytest.mark.parametrize("name", list(bench.CASES))
def test_records_have_the_keys_of_the_house(name: str, peer: str) -> None:
    found: Any = {
        "one": {"gewu": {"one": rates(5, 6, 7)}, "peer": {"one": rates(1, 2, 3)}},
        "batch": {"gewu": {"read": rates(9, 9, 9), "columns": rates(10, 11, 12)}, "peer": {"list": rates(4, 4, 4)}},
        "cold": {"gewu": {"one": rates(1, 1, 1)}, "peer": {"one": rates(2, 2, 2)}},
        "scan": {"gewu": {"iterate": rates(8, 8, 8)}, "peer": {"rows": rates(4, 4, 4), "columns": rates(2, 2, 2)}},
        "cold scan": {"gewu": {"scan": rates(1, 1, 1)}, "peer": {"scan": rates(1, 1, 1)}},
    }
    opened = {engine: {"start": 1.0, "seconds": 0.01, "rss_mb": 90.0} for engine in ("gewu", peer)}
    record = bench._record(name, peer, found, opened)
    expected = 2.0 if name.startswith("sequential") else 2.75 if peer == "arrayrecord" else 3.0
    assert record["ratio"] == expected and record["unit"] == "samples/s"
    assert {*record, "versions", "machine", "commit"} - {*EXTRA} == {*KEYS}
    json.dumps(record)


def test_cases_are_asked_for_by_the_begin_of_their_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        bench._asked("random-1k6", []) and bench._asked("random-1k6", ["random"]) and not bench._asked("order-1e11", ["random"])
    )
    options = argparse.Namespace(case=["random-1k6"], peers=tmp_path, repeats=1)
    if not any((bench.WORK / "peers" / name).exists() for name in bench.PEERS.values()):
        assert bench.run(options) == []
        assert "mds skipped" in capsys.readouterr().err
    assert set(ENGINES) == {"gewu", *bench.PEERS} and set(COUNTS) == {"small", "large"}


def test_other_cases_are_modules_with_a_run() -> None:
    for module in bench.OTHERS.values():
        if importlib.util.find_spec(f"bench.data.{module}"):
            assert callable(importlib.import_module(f"bench.data.{module}").run)
