"""A DFT run killed at random resumes to the same bits; threads and ranks do not change them either.

All children transform with SciPy (GEWU_FFT=scipy): FFTW chooses its algorithm by timing, so only a resumed run has the bits
of the run it
resumes, not of another one.
"""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gewu.jobs.result import Result
from tests.faults import faultlib
from tests.faults.faultlib import Killer

POSCAR = """silicon
1.0
0 2.715 2.715
2.715 0 2.715
2.715 2.715 0
Si
2
Direct
0 0 0
0.25 0.25 0.25
"""
TIMES = ("time_scf_s",)  # the only numbers that may differ


def write_job(folder: Path, *, threads: int = 1, **keys: Any) -> None:
    (folder / "si.vasp").write_text(POSCAR)
    table = {"structure": "si.vasp", "cutoff_ha": 6.0, "kpoints": [2, 2, 2], "path": "L G X", "path_points": 10, **keys}
    rows = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    (folder / "job.toml").write_text(
        f"[job]\nthreads = {threads}\ncheckpoint_interval_s = 0.0\n\n[dft]\n" + "\n".join(rows) + "\n"
    )


def gewu_run(folder: Path, out: str, *before: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return faultlib.gewu_run(folder, out, *before, GEWU_FFT="scipy", **environment)


def numbers(path: Path) -> dict[str, Any]:
    """Return all numbers of a result but the times."""
    found: dict[str, Any] = json.loads((path / "numbers.json").read_text())
    return {name: value for name, value in found.items() if name not in TIMES}


def assert_same(one: Path, other: Path) -> None:
    assert numbers(one) == numbers(other)
    left, right = Result.load(one).arrays, Result.load(other).arrays
    assert list(left) == list(right)
    for name in left:
        assert left[name].tobytes() == right[name].tobytes(), name


def test_killed_at_random_a_run_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEWU_FFT", "scipy")
    write_job(tmp_path, smearing="gaussian", smearing_width_ha=0.01, energy_tolerance_ha=1e-12)
    assert gewu_run(tmp_path, "whole").returncode == 0
    command = [sys.executable, "-m", "gewu", "run", "job.toml", "--out", "killed", "--json"]
    killer, killed, resumed = Killer(seed=20261123, longest_s=0.05), 0, 0
    lines = [
        '{"event": "checkpoint"',
        '{"event": "start"',
        '{"event": "checkpoint"',
        '{"event": "progress"',
        '{"event": "checkpoint"',
    ]
    for line in lines:
        blow = killer.strike(command, line, cwd=tmp_path)
        if blow.returncode != -9:  # it ended before the blow fell: start over, for the next ones
            assert blow.returncode == 0, blow.errors
            assert_same(tmp_path / "whole", tmp_path / "killed")
            shutil.rmtree(tmp_path / "killed")
            continue
        killed += 1
        resumed += any('"event": "resume"' in text for text in blow.lines)
    assert killed >= 1  # how many of the blows fall in time depends on the machine
    if (tmp_path / "killed").exists():
        state = json.loads((tmp_path / "killed" / "manifest.json").read_text())["state"]
        if state != "finished":
            done = gewu_run(tmp_path, "killed")
            assert done.returncode == 0, done.stderr
            resumed += '"event": "resume"' in done.stdout
        assert_same(tmp_path / "whole", tmp_path / "killed")
    assert resumed >= 1


@pytest.mark.parametrize("keys", [{}, {"smearing": "marzari-vanderbilt", "smearing_width_ha": 0.02}])
def test_the_number_of_threads_does_not_change_a_bit(tmp_path: Path, keys: dict[str, Any]) -> None:
    for threads in (1, 2):
        write_job(tmp_path, threads=threads, **keys)
        done = gewu_run(tmp_path, f"threads{threads}", OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads))
        assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "threads1", tmp_path / "threads2")


@pytest.mark.skipif(
    shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None, reason="needs mpirun and mpi4py"
)
@pytest.mark.parametrize("ranks", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_the_number_of_ranks_does_not_change_a_bit(tmp_path: Path, ranks: int) -> None:
    """Three k points: five ranks leave two without any."""
    write_job(tmp_path)
    assert gewu_run(tmp_path, "one").returncode == 0
    done = gewu_run(tmp_path, "many", "mpirun", "-n", str(ranks), **faultlib.MPI)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "many" / "manifest.json").read_text())["ranks"] == ranks
    assert_same(tmp_path / "one", tmp_path / "many")


def test_two_runs_of_one_job_give_the_same_bits(tmp_path: Path) -> None:
    write_job(tmp_path, seed=random.Random(3).randrange(1000))
    for out in ("first", "second"):
        assert gewu_run(tmp_path, out).returncode == 0
    assert_same(tmp_path / "first", tmp_path / "second")
