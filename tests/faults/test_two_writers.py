"""Two runs in one directory: the second is refused with exit code 4 and told who holds it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from gewu.jobs.result import Result
from tests.jobtools import install, ising_job, run, start


def test_the_second_run_is_refused_and_the_first_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = install(monkeypatch, tmp_path, ising_job(sweeps=20))
    first = start(tmp_path, "run", "magnet.toml", strike="SIGSTOP", number=100)  # it halts in the middle, holding the directory
    try:
        _, status = os.waitpid(first.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        for options in ({}, {"out": "magnet.result"}, {"fresh": True}):
            outcome = run(job, **options)
            assert outcome.exit_code == 4
            assert f"process {first.pid} on " in str(outcome.error)
        other = tmp_path / "other.toml"
        other.write_text(ising_job(sweeps=3))
        assert run(other, out="elsewhere").exit_code == 0
    finally:
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=60)
    assert first.returncode == 0
    assert Result.load("magnet.result").state == "finished"


def test_the_lock_of_a_killed_run_does_not_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = install(monkeypatch, tmp_path, ising_job(sweeps=20))
    first = start(tmp_path, "run", "magnet.toml", strike="after", number=100)
    first.communicate(timeout=60)
    assert first.returncode == -9
    assert (tmp_path / "magnet.result" / ".lock").exists()
    assert run(job).exit_code == 0


def test_four_runs_started_together_never_share_a_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, ising_job(sweeps=5))
    runs = [start(tmp_path, "run", "magnet.toml", "--json") for _ in range(4)]
    ends = [(json.loads(process.communicate(timeout=60)[0].splitlines()[-1]), process.returncode) for process in runs]
    assert {code for _, code in ends} <= {0, 4}
    done = [event["result"] for event, code in ends if code == 0]
    assert len(done) == len(set(done)) >= 1
    for name in done:
        assert Result.load(name).state == "finished"
        assert sum(event["event"] == "start" for event in Result.load(name).events()) == 1
