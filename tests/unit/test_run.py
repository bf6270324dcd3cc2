"""The life of a run, on the worked example of docs/add-an-engine.md and on engines that misbehave."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import ellipk

import gewu
from gewu.core.context import Context
from gewu.core.errors import ConvergenceError, InputError
from gewu.core.ranks import SERIAL
from gewu.jobs import provenance
from gewu.jobs import run as run_module
from gewu.jobs.door import RunContext
from gewu.jobs.job import Job
from gewu.jobs.result import Result
from gewu.jobs.run import run_job
from tests.faults.faultlib import child_environment
from tests.jobtools import CHILD, block, install, ising_job, run

Engine = Callable[[Any, Context], None]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return install(monkeypatch, tmp_path, ising_job(sweeps=4))


def replace_engine(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    import ising

    monkeypatch.setattr(ising, "run", engine)


def test_the_worked_example_is_short_and_agrees_with_onsager(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(block("python").splitlines()) < 100
    install(monkeypatch, tmp_path, block("toml"), figures=True)
    result = gewu.run("magnet.toml")
    two_k = 2 / 1.5
    magnetisation = (1 - math.sinh(two_k) ** -4) ** 0.125
    modulus = 2 * math.sinh(two_k) / math.cosh(two_k) ** 2
    energy = -(1 + 2 / math.pi * (2 * math.tanh(two_k) ** 2 - 1) * ellipk(modulus**2)) / math.tanh(two_k)
    # 900 sweeps that remember 1.5 sweeps and fluctuate by 0.0064 and 0.021: standard errors 2.6e-4 and 8.2e-4, times five
    assert abs(result["magnetisation"] - magnetisation) < 1.3e-3
    assert abs(result["energy_per_spin"] - energy) < 4.1e-3
    assert result.arrays["spin"].dtype == np.int8
    page = (result.path / "report.html").read_text()
    assert "could not be drawn" not in page
    assert page.count("<svg") == 1
    assert "Relaxation" in page
    assert "@article{metropolis1953" in page
    err = capsys.readouterr().err
    assert "1000/1000" in err
    assert "magnet.result/report.html" in err


def test_the_result_directory_holds_exactly_what_the_manifest_lists(job: Path) -> None:
    result = gewu.run(job, quiet=True)
    names = {path.name for path in result.path.iterdir()}
    assert names == {"job.toml", "manifest.json", "events.jsonl", "numbers.json", "arrays.nc", "report.html"}
    manifest = result.manifest
    assert set(manifest["files"]) == names - {"manifest.json"}
    assert (manifest["state"], manifest["exit_code"], manifest["ranks"], manifest["threads"]) == ("finished", 0, 1, 1)
    assert manifest["seed"] == 1
    assert set(manifest["timings_s"]) == {"sweeps", "measurement"}
    assert manifest["versions"]["gewu"] == gewu.__version__
    assert manifest["wall_s"] >= sum(manifest["timings_s"].values())
    assert manifest["cpu_s"] >= 0
    numbers = json.loads((result.path / "numbers.json").read_text())
    assert set(numbers["energy_per_spin_j"]) == {"value", "unit", "converged"}
    assert "discard = 0" in (result.path / "job.toml").read_text()


def test_a_job_given_as_a_dictionary_runs(job: Path) -> None:
    result = gewu.run({"ising": {"temperature": 2.0, "size": 4, "sweeps": 2, "discard": 1}}, quiet=True)
    assert result.path == Path("job.result")
    assert gewu.load("job.result")["spin"].shape == (4, 4)


def test_names_of_results(job: Path) -> None:
    assert run(job).path == Path("magnet.result")
    assert run(job).path == Path("magnet-2.result")
    with pytest.raises(InputError, match="holds another result; choose another --out, or --fresh"):
        gewu.run(job, out="magnet.result", quiet=True)
    (Path("magnet-2.result") / "mine.txt").write_text("kept")
    outcome = run(job, out="magnet-2.result", fresh=True)
    assert outcome.exit_code == 0
    assert (Path("magnet-2.result") / "mine.txt").read_text() == "kept"
    assert run(job, fresh=True).path == Path("magnet.result")
    Path("magnet-3.result").mkdir()
    (Path("magnet-3.result") / "thesis.tex").write_text("mine")
    assert run(job).path == Path("magnet-4.result")
    for fresh in (False, True):
        outcome = run(job, out="magnet-3.result", fresh=fresh)
        assert outcome.exit_code == 2
        assert "not a result" in str(outcome.error)


def test_the_time_limit_stops_after_each_step_until_the_work_is_done(job: Path) -> None:
    job.write_text(ising_job(sweeps=2, more="time_limit_s = 1e-9"))
    assert [run(job).exit_code for _ in range(3)] == [75, 75, 0]
    result = Result.load("magnet.result")
    assert result.manifest["sessions"] == 3
    assert [event["event"] for event in result.events()].count("resume") == 2
    job.write_text(ising_job(sweeps=2))
    assert run(job, out="whole").exit_code == 0
    assert Path("whole/numbers.json").read_bytes() == Path("magnet.result/numbers.json").read_bytes()


def test_an_unfinished_run_of_another_job_is_left_alone(job: Path) -> None:
    job.write_text(ising_job(sweeps=2, more="time_limit_s = 1e-9"))
    assert run(job).exit_code == 75
    job.write_text(ising_job(sweeps=3))
    assert run(job, out="magnet.result").exit_code == 2
    assert run(job).path == Path("magnet-2.result")
    job.write_text(ising_job(sweeps=2, title="another title"))
    assert run(job).path == Path("magnet.result")


def test_what_was_recorded_before_a_checkpoint_comes_back_with_it(monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    def engine(config: Any, ctx: Context) -> None:
        if ctx.restored is None:
            ctx.number("early_ev", 1.25, "eV")
            ctx.save("early", np.array([1 + 2j]), ("n",), "eV", long_name="early things")
            ctx.file("early.cube", b"cube")
            ctx.warn("a warning")
            ctx.cite("metropolis1953")
            ctx.checkpoint({"step": 1, "x": np.arange(2.0)})
            ctx.number("lost", 0.0, "")
            raise MemoryError
        assert ctx.restored["x"].tolist() == [0.0, 1.0]
        ctx.number("late", 2, "")

    replace_engine(monkeypatch, engine)
    first = run(job)
    assert first.exit_code == 4
    assert "not enough memory" in str(first.error)
    assert Result.load("magnet.result").state == "failed"
    assert run(job).exit_code == 0
    result = Result.load("magnet.result")
    assert {name: number.value for name, number in result.numbers.items()} == {"early_ev": 1.25, "late": 2}
    assert result.arrays["early"].tolist() == [1 + 2j]
    assert result.manifest["warnings"] == ["a warning"]
    assert "early.cube" in result.manifest["files"]
    assert "@article{metropolis1953" in (result.path / "report.html").read_text()


def test_a_fresh_start_removes_what_the_engine_wrote_before(monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    replace_engine(monkeypatch, lambda config, ctx: ctx.file("old.cube", b"old"))
    assert run(job).exit_code == 0
    replace_engine(monkeypatch, lambda config, ctx: ctx.file("new.cube", b"new"))
    assert run(job, fresh=True).exit_code == 0
    assert sorted(path.name for path in Path("magnet.result").glob("*.cube")) == ["new.cube"]


def test_a_flagged_number_makes_the_run_not_converged(monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    def engine(config: Any, ctx: Context) -> None:
        ctx.number("good", 1.0, "")
        ctx.number("energy_ha", -1.0, "Ha", converged=False)

    replace_engine(monkeypatch, engine)
    result = gewu.run(job, quiet=True)
    assert (result.state, result.manifest["exit_code"], result.converged) == ("not-converged", 3, False)
    assert "energy_ha" in result.manifest["reason"]
    assert not (result.path / "checkpoint").exists()


def test_a_convergence_error_keeps_what_was_recorded(monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    def engine(config: Any, ctx: Context) -> None:
        ctx.number("energy_ha", -1.0, "Ha", converged=False)
        raise ConvergenceError("the density did not settle in 2 iterations")

    replace_engine(monkeypatch, engine)
    with pytest.raises(ConvergenceError, match="did not settle"):
        gewu.run(job, quiet=True)
    result = Result.load("magnet.result")
    assert result.state == "not-converged"
    assert not result.numbers["energy_ha"].converged
    assert "did not settle" in (result.path / "report.html").read_text()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_never_a_result(monkeypatch: pytest.MonkeyPatch, job: Path, value: float) -> None:
    replace_engine(monkeypatch, lambda config, ctx: ctx.number("energy_ha", value, "Ha"))
    outcome = run(job)
    assert outcome.exit_code == 3
    assert "energy_ha is not a finite number" in str(outcome.error)
    assert Result.load("magnet.result").numbers == {}


def test_an_error_inside_gewu_is_exit_5_with_its_traceback(monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    replace_engine(monkeypatch, lambda config, ctx: ctx.number("x", 1 / 0, ""))
    outcome = run(job)
    assert outcome.exit_code == 5
    assert "ZeroDivisionError" in str(outcome.error)
    result = Result.load("magnet.result")
    assert result.state == "failed"
    (error,) = [event for event in result.events() if event["event"] == "error"]
    assert "1 / 0" in error["traceback"]


def test_an_input_error_of_the_engine_leaves_the_directory_free(monkeypatch: pytest.MonkeyPatch, job: Path) -> None:
    def engine(config: Any, ctx: Context) -> None:
        raise InputError("odd number of electrons", key="ising.size", hint="use smearing")

    with monkeypatch.context() as patched:
        replace_engine(patched, engine)
        assert run(job).exit_code == 2
    job.write_text(ising_job(sweeps=5))
    outcome = run(job)
    assert (outcome.exit_code, outcome.path) == (0, Path("magnet.result"))


def test_checkpoints_keep_their_distance_until_the_run_is_to_stop(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    now, events, signalled = 0.0, [], False
    ctx = RunContext(tmp_path, SERIAL, "cpu", events.append, interval_s=10.0, clock=lambda: now, signalled=lambda: signalled)
    for now in (1.0, 9.0, 10.0, 11.0, 19.0, 20.0):
        assert not ctx.stop_requested
        ctx.checkpoint({"now": now})
    assert [event["step"] for event in events] == [1, 2]
    signalled, now = True, 21.0
    assert ctx.stop_requested
    signalled = False
    assert ctx.stop_requested  # a run that was told to stop stays told
    ctx.checkpoint({"now": now})
    assert len(events) == 3
    again = RunContext(tmp_path, SERIAL, "cpu", events.append)
    assert again.restore()
    assert again.restored == {"now": 21.0}


def test_the_time_limit_leaves_room_for_one_more_step(tmp_path: Path) -> None:
    now = 0.0
    ctx = RunContext(tmp_path, SERIAL, "cpu", lambda event: None, time_limit_s=100.0, clock=lambda: now)
    for now in (10.0, 40.0, 69.0):  # steps of up to 30 s  # noqa: B007
        assert not ctx.stop_requested
    now = 70.0
    assert ctx.stop_requested


def test_all_ranks_stop_when_one_is_told_to(tmp_path: Path) -> None:
    class Two:
        rank, size, is_root = 0, 2, True

        def allreduce(self, value: int, op: str) -> int:
            assert op == "max"
            return max(value, 1)  # the other rank was signalled

    ctx = RunContext(tmp_path, Two(), "cpu", lambda event: None)  # type: ignore[arg-type]
    assert ctx.stop_requested


def test_signal_handlers_are_put_back(job: Path) -> None:
    import signal

    before = [signal.getsignal(number) for number in run_module.Signals.caught]
    assert run(job).exit_code == 0
    assert [signal.getsignal(number) for number in run_module.Signals.caught] == before


def test_the_commit_is_read_from_the_source_tree(tmp_path: Path) -> None:
    package = tmp_path / "src" / "gewu"
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    assert provenance.commit(package) is None
    sha = "0123456789abcdef0123456789abcdef01234567"
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "packed-refs").write_text(f"# pack-refs\n{sha[::-1]} refs/heads/other\n{sha} refs/heads/main\n")
    assert provenance.commit(package) == sha
    (git / "refs" / "heads" / "main").write_text(sha[::-1] + "\n")
    assert provenance.commit(package) == sha[::-1]
    (git / "HEAD").write_text(sha + "\n")
    assert provenance.commit(package) == sha


def mpirun(folder: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run `gewu` with the example engine on two ranks; `before` is Python code put before it."""
    import importlib.util

    if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpirun or mpi4py is absent")
    (folder / "ising.py").write_text(block("python"))
    (folder / "magnet.toml").write_text(ising_job(sweeps=4))
    code = CHILD.replace("from gewu.cli import main", before + "\nfrom gewu.cli import main")
    command = ["mpirun", "-n", "2", "--oversubscribe", sys.executable, "-c", code, str(folder), "none", "0", *arguments]
    environment = child_environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_two_ranks_make_one_result(job: Path) -> None:
    done = mpirun(job.parent, "run", "magnet.toml", "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()].count("done") == 1
    manifest = Result.load("magnet.result").manifest
    assert (manifest["ranks"], manifest["threads"]) == (2, 1)
    assert run(job, out="serial").exit_code == 0
    assert Path("serial/numbers.json").read_bytes() == Path("magnet.result/numbers.json").read_bytes()


FAILS = """
from gewu.core.errors import ConvergenceError
from gewu.jobs import run as run_module
run_module.GRACE_S = 0.5
def fail(config, ctx):
    if ctx.ranks.rank in RANKS:
        raise ConvergenceError("did not settle")
    ctx.ranks.barrier()
ising.run = fail
"""


def test_an_error_on_all_ranks_ends_quietly(job: Path) -> None:
    done = mpirun(job.parent, "run", "magnet.toml", before=FAILS.replace("RANKS", "(0, 1)"))
    assert done.returncode == 3
    assert done.stderr.count("did not settle") == 1
    assert "MPI_ABORT" not in done.stderr + done.stdout
    assert Result.load("magnet.result").state == "not-converged"


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_rank_ends_all(job: Path, rank: int) -> None:
    done = mpirun(job.parent, "run", "magnet.toml", before=FAILS.replace("RANKS", f"({rank},)"))
    assert done.returncode == 3
    assert f"rank {rank}: did not settle; the other ranks do not answer" in done.stderr


def test_ranks_on_the_same_cores_share_them() -> None:
    class Three:
        def allgather(self, mine: Any) -> list[Any]:
            return [mine, ("another host", mine[1]), mine]

    assert run_module.sharing(Three()) == 2  # type: ignore[arg-type]
    assert run_module.sharing(SERIAL) == 1


def test_a_wrong_job_is_refused_once_on_two_ranks(job: Path) -> None:
    done = mpirun(job.parent, "run", "absent.toml")
    assert done.returncode == 2
    assert done.stderr.count("there is no such file") == 1


def test_a_loaded_job_runs(job: Path) -> None:
    assert run_job(Job.load(job)).state == "finished"
