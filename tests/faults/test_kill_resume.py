"""A run killed at any instant resumes from its last acknowledged checkpoint and ends with the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gewu.core.files import TEMPORARY_SUFFIX
from gewu.jobs.result import Result
from tests.jobtools import block, blows, finish, ising_job

SWEEPS = 40
CALLS_OF_A_SWEEP = 12  # of os.open, write, fsync, replace: two atomic files and an event or two


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ising.py").write_text(block("python"))
    (tmp_path / "magnet.toml").write_text(ising_job(sweeps=SWEEPS))
    return tmp_path


def assert_same(one: Path, other: Path) -> None:
    assert (one / "numbers.json").read_bytes() == (other / "numbers.json").read_bytes()
    left, right = Result.load(one).arrays, Result.load(other).arrays
    assert list(left) == list(right) == ["energy", "magnetisation_trace", "spin"]
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert left[name].tobytes() == right[name].tobytes()


def assert_tidy(result: Path) -> None:
    names = {path.name for path in result.iterdir()}
    assert names == {"job.toml", "manifest.json", "events.jsonl", "numbers.json", "arrays.nc", "report.html"}
    assert not any(name.endswith(TEMPORARY_SUFFIX) for name in names)
    assert set(Result.load(result).manifest["files"]) == names - {"manifest.json"}


def test_killed_at_twelve_random_calls_the_run_ends_with_the_same_bits(folder: Path) -> None:
    assert finish(folder, "run", "magnet.toml", "--out", "whole")[0] == 0
    resumed = 0
    for strike, number in blows(seed=20261122, count=12, lowest=1, highest=8 * CALLS_OF_A_SWEEP):
        code, out, _ = finish(folder, "run", "magnet.toml", "--out", "killed", "--json", strike=strike, number=number)
        assert code == -9, (strike, number)
        resumed += '"resume"' in out
    assert resumed >= 3  # else the kills came too early to test anything
    assert finish(folder, "run", "magnet.toml", "--out", "killed")[0] == 0
    assert_same(folder / "whole", folder / "killed")
    assert_tidy(folder / "killed")
    assert Result.load(folder / "killed").manifest["sessions"] >= 3


def test_killed_while_the_result_is_written_it_is_absent_or_complete(folder: Path) -> None:
    (folder / "magnet.toml").write_text(ising_job(sweeps=1))
    code, _, err = finish(folder, "run", "magnet.toml", "--out", "whole")
    assert code == 0
    calls = int(err.split()[-1])
    for back in range(0, 24, 4):
        strike = ("before", "half", "after")[back // 4 % 3]
        code, _, _ = finish(folder, "run", "magnet.toml", "--out", f"killed{back}", strike=strike, number=calls - back)
        assert code == -9
        left = folder / f"killed{back}"
        if json.loads((left / "manifest.json").read_text())["state"] != "finished":
            assert finish(folder, "run", "magnet.toml", "--out", left.name)[0] == 0
            assert_tidy(left)
        assert_same(folder / "whole", left)


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_stops_the_run_with_a_checkpoint(folder: Path, signal: str) -> None:
    code, out, _ = finish(folder, "run", "magnet.toml", "--json", strike=signal, number=6 * CALLS_OF_A_SWEEP)
    assert code == 75
    last = json.loads(out.splitlines()[-1])
    assert (last["event"], last["exit"], last["state"], last["result"]) == ("done", 75, "stopped", "magnet.result")
    assert signal in last["text"]
    stopped = Result.load(folder / "magnet.result")
    assert stopped.state == "stopped"
    assert not stopped.converged
    assert stopped.numbers == {}
    assert "has not ended" in (folder / "magnet.result" / "report.html").read_text()

    code, out, _ = finish(folder, "run", "magnet.toml", "--json")
    assert code == 0
    assert '"resume"' in out
    assert finish(folder, "run", "magnet.toml", "--out", "whole")[0] == 0
    assert_same(folder / "whole", folder / "magnet.result")
    assert_tidy(folder / "magnet.result")


def test_a_damaged_checkpoint_is_refused_until_fresh(folder: Path) -> None:
    assert finish(folder, "run", "magnet.toml", strike="after", number=8 * CALLS_OF_A_SWEEP)[0] == -9
    for checkpoint in (folder / "magnet.result" / "checkpoint").glob("*.ckpt"):
        data = bytearray(checkpoint.read_bytes())
        data[len(data) // 2] ^= 1
        checkpoint.write_bytes(data)
    code, _, err = finish(folder, "run", "magnet.toml")
    assert code == 4
    assert "--fresh" in err
    assert finish(folder, "run", "magnet.toml", "--fresh")[0] == 0
    assert np.isfinite(Result.load(folder / "magnet.result").numbers["magnetisation"].value)
