"""A full disk at any write of a run: exit code 4, nothing half-written, and the run can be resumed when there is room again."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from unittest import mock

import pytest

from gewu.core.files import TEMPORARY_SUFFIX
from gewu.jobs.job import Job
from gewu.jobs.record import STANDARD_FILES
from gewu.jobs.result import Result
from gewu.jobs.run import run_job
from tests.faults.faultlib import failing_os
from tests.jobtools import install, ising_job, run


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = install(monkeypatch, tmp_path, ising_job(sweeps=3))
    assert run(path, out="warm-up").exit_code == 0  # imports done and caches filled: from now on the calls are always the same
    return path


def assert_nothing_half_written(result: Path) -> None:
    if not result.exists():
        return
    names = {path.name for path in result.iterdir()}
    assert names <= {*STANDARD_FILES, "checkpoint", ".lock"}
    assert not any(name.endswith(TEMPORARY_SUFFIX) for name in names)
    for name in names & {"manifest.json", "numbers.json"}:
        json.loads((result / name).read_text())
    if "events.jsonl" in names:
        assert all(json.loads(line) for line in (result / "events.jsonl").read_text().splitlines())
    if "manifest.json" in names:
        assert json.loads((result / "manifest.json").read_text())["state"] in ("running", "failed")
        Result.load(result)  # what the manifest lists is whole


def test_every_call_that_finds_the_disk_full(job: Path) -> None:
    loaded = Job.load(job)
    with failing_os(0) as calls:
        assert run_job(loaded, out="whole").exit_code == 0
    numbers = Path("whole/numbers.json").read_bytes()
    assert len(calls.names) > 60
    for n in range(1, len(calls.names) + 1):
        out = Path(f"full{n}")
        with failing_os(n, errno.ENOSPC):
            outcome = run_job(loaded, out=out)
        assert outcome.exit_code == 4, (n, calls.names[n - 1], outcome)
        assert "No space left" in str(outcome.error)
        assert_nothing_half_written(out)
        assert run(job, out=out).exit_code == 0, n
        assert (out / "numbers.json").read_bytes() == numbers
        assert Result.load(out).state == "finished"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_stays_full(job: Path, code: int) -> None:
    with failing_os(0) as calls:
        assert run(job, out="whole").exit_code == 0
    real, room = os.write, calls.names.count("write") * 2 // 3

    def write(descriptor: int, data: bytes) -> int:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(code, os.strerror(code))
        return real(descriptor, data)

    with mock.patch.object(os, "write", write):
        outcome = run(job, out="full")
    assert outcome.exit_code == 4
    assert room < 0
    assert_nothing_half_written(Path("full"))
    assert run(job, out="full").exit_code == 0
    assert any(event["event"] == "resume" for event in Result.load("full").events())


def test_a_directory_that_cannot_be_made(job: Path) -> None:
    Path("occupied").write_text("a file")
    for out, code in (("occupied/below", 2), ("occupied", 2), ("/proc/nowhere", 4)):
        outcome = run(job, out=out)
        assert outcome.exit_code == code
        assert outcome.path is None
        assert out in str(outcome.error)
