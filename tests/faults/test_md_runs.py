"""Runs of molecular dynamics: killed and resumed, on several ranks, with starts and steps that cannot work."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.jobs.result import Result
from tests.faults.faultlib import MPI, Killer, gewu_run

ARGON = """4
Lattice="5.4 0 0 0 5.4 0 0 0 5.4" Properties=species:S:1:pos:R:3 pbc="T T T"
Ar 0 0 0
Ar 0 2.7 2.7
Ar 2.7 0 2.7
Ar 2.7 2.7 0
"""
TIMES = ("performance_ns_day", "performance_steps_s", "rebuilds")  # the only numbers that may differ
NEEDS_MPI = pytest.mark.skipif(
    shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None, reason="needs mpirun and mpi4py"
)
LIQUID = {
    "structure": "argon.xyz",
    "repeat": [5, 5, 5],
    "lennard_jones": {"Ar": "0.996 0.34"},
    "cutoff_nm": 0.85,
    "temperature_k": 120.0,
}
WATER = {"water": "spce", "molecules": 512, "cutoff_nm": 0.7, "skin_nm": 0.05, "minimise": 20, "timestep_fs": 1.0}
METAL = {"structure": "copper.xyz", "repeat": [7, 7, 7], "eam": "zhou", "temperature_k": 900.0, "skin_nm": 0.05}


def write_job(folder: Path, **keys: Any) -> None:
    (folder / "argon.xyz").write_text(ARGON)
    (folder / "copper.xyz").write_text(ARGON.replace("5.4", "3.615").replace("2.7", "1.8075").replace("Ar", "Cu"))

    def toml(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + "}"
        return json.dumps(value)

    rows = [f"{key} = {toml(value)}" for key, value in keys.items()]
    text = "[job]\nthreads = 1\ncheckpoint_interval_s = 0.0\n\n[md]\n" + "\n".join(rows) + "\n"
    (folder / "job.toml").write_text(text)


def assert_same(one: Path, other: Path) -> None:
    left, right = (json.loads((path / "numbers.json").read_text()) for path in (one, other))
    assert {k: v for k, v in left.items() if k not in TIMES} == {k: v for k, v in right.items() if k not in TIMES}
    mine, theirs = Result.load(one).arrays, Result.load(other).arrays
    assert list(mine) == list(theirs)
    for name in mine:
        assert mine[name].tobytes() == theirs[name].tobytes(), name
    for name in ("trajectory.dcd", "structure.extxyz"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_killed_at_random_a_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    write_job(
        tmp_path, **LIQUID, ensemble="npt", thermostat="langevin", timestep_fs=2.0, time_ps=8.0, trajectory="dcd", frame_ps=0.2
    )
    assert gewu_run(tmp_path, "whole").returncode == 0
    command = [sys.executable, "-m", "gewu", "run", "job.toml", "--out", "killed", "--json"]
    killer, killed, resumed = Killer(seed=20261124, longest_s=0.3), 0, 0
    for line in ('{"event": "checkpoint"', '{"event": "start"', '{"event": "checkpoint"', '{"event": "progress"'):
        blow = killer.strike(command, line, cwd=tmp_path)
        if blow.returncode != -9:  # it ended before the blow fell: start over, for the next ones
            assert blow.returncode == 0, blow.errors
            assert_same(tmp_path / "whole", tmp_path / "killed")
            shutil.rmtree(tmp_path / "killed")
            continue
        killed += 1
        resumed += any('"event": "resume"' in text for text in blow.lines)
    assert killed >= 1  # how many of the blows fall in time depends on the machine
    done = gewu_run(tmp_path, "killed")
    assert done.returncode == 0, done.stderr
    resumed += '"event": "resume"' in done.stdout
    assert_same(tmp_path / "whole", tmp_path / "killed")
    assert resumed >= 1


@NEEDS_MPI
@pytest.mark.parametrize(
    ("keys", "ranks"),
    [(LIQUID, 2), (LIQUID, 4), (WATER, 2), (METAL, 2)],
    ids=["liquid-2", "liquid-4", "water-2", "metal-2"],
)
def test_ranks_follow_the_trajectory_of_one(tmp_path: Path, keys: dict[str, Any], ranks: int) -> None:
    """100 steps in double precision; sums in another order differ by rounding, which chaos has had no time to enlarge."""
    step = {"timestep_fs": 1.0} | keys
    write_job(tmp_path, **(step | {"ensemble": "nve", "precision": "double", "time_ps": 0.1 * step["timestep_fs"]}))
    assert gewu_run(tmp_path, "one").returncode == 0
    done = gewu_run(tmp_path, "many", "mpirun", "-n", str(ranks), **MPI)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "many" / "manifest.json").read_text())["ranks"] == ranks
    one, many = Result.load(tmp_path / "one").arrays, Result.load(tmp_path / "many").arrays
    assert np.abs(one["position_nm"] - many["position_nm"]).max() < 1e-10
    assert np.abs(one["velocity_nm_ps"] - many["velocity_nm_ps"]).max() < 1e-9  # velocities are 1 nm/ps and change in 10 fs
    energy = one["thermo_conserved_kj_mol"]
    assert np.abs(energy - many["thermo_conserved_kj_mol"]).max() < 1e-9 * np.abs(energy).max()


@NEEDS_MPI
def test_a_killed_run_on_two_ranks_resumes_to_the_same_bits(tmp_path: Path) -> None:
    write_job(tmp_path, **LIQUID, ensemble="nvt", timestep_fs=2.0, time_ps=6.0, trajectory="dcd")
    assert gewu_run(tmp_path, "whole", "mpirun", "-n", "2", **MPI).returncode == 0
    (tmp_path / "job.toml").write_text((tmp_path / "job.toml").read_text().replace("[job]", "[job]\ntime_limit_s = 0.001"))
    stopped = gewu_run(tmp_path, "parts", "mpirun", "-n", "2", **MPI)
    assert stopped.returncode == 75, stopped.stderr
    (tmp_path / "job.toml").write_text((tmp_path / "job.toml").read_text().replace("time_limit_s = 0.001", ""))
    done = gewu_run(tmp_path, "parts", "mpirun", "-n", "2", **MPI)
    assert done.returncode == 0 and '"event": "resume"' in done.stdout, done.stderr
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        (LIQUID | {"timestep_fs": 500.0, "time_ps": 50.0, "ensemble": "nve"}, 3, "first"),
        (LIQUID | {"cutoff_nm": 1.4}, 2, "too small"),
        (LIQUID | {"lennard_jones": {"Kr": "1 0.36"}}, 2, "Ar"),
        (LIQUID | {"structure": "two.xyz", "repeat": [1, 1, 1]}, 2, "overlap"),
        (LIQUID | {"eam": "zhou"}, 2, "one force field"),
        ({"structure": "argon.xyz", "eam": "zhou"}, 2, "Ar"),
        (LIQUID | {"cutof_nm": 1.0}, 2, "cutoff_nm"),
    ],
    ids=["timestep", "box", "parameter", "overlap", "two-force-fields", "no-eam", "typing"],
)
def test_what_cannot_work_is_refused(tmp_path: Path, keys: dict[str, Any], code: int, message: str) -> None:
    write_job(tmp_path, **keys)
    pair = '2\nLattice="30 0 0 0 30 0 0 0 30" Properties=species:S:1:pos:R:3 pbc="T T T"\nAr 1 1 1\nAr 1 1 1.0000001\n'
    (tmp_path / "two.xyz").write_text(pair)
    done = gewu_run(tmp_path, "out")
    assert done.returncode == code, done.stdout + done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert message in json.dumps(last), last
