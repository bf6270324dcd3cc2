"""The command line: verbs, streams, exit codes, and what a person sees while a run goes on."""

from __future__ import annotations

import io
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gewu
from gewu import cli
from gewu.cli import main
from gewu.core import schema
from gewu.jobs import engines
from gewu.jobs.talk import Talker, duration, printable, progress_line, to_json
from tests.faults.faultlib import run_python
from tests.jobtools import install, ising_job

Captured = pytest.CaptureFixture[str]
HEAVY = ("numpy", "scipy", "numba", "jax", "h5py", "h5netcdf", "matplotlib", "spglib", "seekpath", "mpi4py")


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return install(monkeypatch, tmp_path, ising_job(sweeps=3))


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from gewu.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    assert end.code == 0
print("loaded:", sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_python_dash_m_is_the_command() -> None:
    done = run_python("import runpy, sys; sys.argv = ['gewu', '--version']; runpy.run_module('gewu', run_name='__main__')")
    assert (done.returncode, done.stdout) == (0, f"gewu {gewu.__version__}\n")


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == gewu.__version__


def test_the_help_of_run_documents_the_exit_codes(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    out = capsys.readouterr().out
    for code in ("0 ", "2 ", "3 ", "4 ", "5 ", "75 "):
        assert f"\n  {code}" in out


def test_run_puts_data_on_stdout_and_talk_on_stderr(job: Path, capsys: Captured) -> None:
    assert main(["run", "magnet.toml"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["energy_per_spin_j", "magnetisation"]
    assert "3/3" in err
    assert "report: magnet.result/report.html" in err
    assert "\x1b" not in out + err


def test_run_as_json_is_one_object_a_line_and_silent_besides(job: Path, capsys: Captured) -> None:
    assert main(["run", "magnet.toml", "--json", "--out", "there"]) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert err == ""
    assert events[-1]["event"] == "done"
    assert (events[-1]["result"], events[-1]["exit"]) == ("there", 0)
    (progress,) = [event for event in events if event["event"] == "progress" and event["done"] == 3]
    assert progress["total"] == 3
    assert set(progress["numbers"]) == {"energy", "magnetisation"}


def test_show(job: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["run", "magnet.toml"]) == 0
    capsys.readouterr()
    assert main(["show", "magnet.result"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("energy_per_spin_j  ")
    assert out.splitlines()[0].endswith("  J")
    assert "ising, finished" in err
    assert main(["show", "magnet.result", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["numbers"]["magnetisation"]["converged"] is True
    assert (told["state"], told["arrays"]) == ("finished", ["energy", "magnetisation_trace", "spin"])
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert main(["show", "magnet.result", "--open"]) == 0
    assert opened == [(Path.cwd() / "magnet.result" / "report.html").as_uri()]
    Path("magnet.result/numbers.json").write_text("{}")
    assert main(["show", "magnet.result"]) == 4
    assert "checksum" in capsys.readouterr().err
    assert main(["show", "nowhere"]) == 2


def test_numbers_are_aligned_at_the_decimal_point(job: Path, capsys: Captured) -> None:
    from gewu.jobs.record import Number
    from gewu.jobs.result import Result

    result = Result(job.parent, {"state": "finished", "files": {}})
    result.__dict__["numbers"] = {
        "energy_ha": Number(-7.854477356672, "Ha"),
        "gap_ev": Number(112.5, "eV", converged=False),
        "iterations": Number(9, "1"),
    }
    cli._print_numbers(result)
    assert capsys.readouterr().out == (
        "energy_ha    -7.854477357  Ha\ngap_ev      112.5          eV  not converged\niterations    9\n"
    )


def test_list_and_schema(job: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(engines.ENGINES, "dft")
    assert main(["list", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"engine": "ising", "summary": "Ising magnet on a square lattice, by Metropolis sweeps"} in rows
    assert main(["list"]) == 0
    assert "engine   ising            Ising magnet" in capsys.readouterr().out
    assert main(["schema", "ising"]) == 0
    assert "| `temperature` | number | required |" in capsys.readouterr().out
    assert main(["schema", "ising", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["required"] == ["temperature"]
    assert main(["schema"]) == 0
    assert "`time_limit_s`" in capsys.readouterr().out
    assert main(["schema", "isin"]) == 2
    assert "did you mean 'ising'?" in capsys.readouterr().err


def test_try_lists_and_runs_examples(job: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_examples", lambda: {"magnet": job})
    assert main(["try"]) == 0
    assert capsys.readouterr().out == "example  magnet           a magnet\n"
    assert main(["try", "magnt"]) == 2
    assert "allowed: magnet" in capsys.readouterr().err
    assert main(["try", "magnet", "--out", "tried"]) == 0
    assert Path("tried/report.html").is_file()


def test_the_examples_of_the_source_tree_are_found() -> None:
    folder = Path(__file__).parents[2] / "examples"
    assert {path.name for path in cli._examples().values()} == {path.name for path in folder.glob("*.toml")}


@pytest.fixture
def recognising(job: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an engine known that recognises *.spins."""
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Config:
        spins: str = schema.field(file=True, meaning="a file of spins")
        size: int = schema.field(8, minimum=1, meaning="spins along an edge")

    def run(config: Any, ctx: Any) -> None:
        ctx.number("bytes", Path(config.spins).stat().st_size, "")

    module: Any = ModuleType("spins_engine")
    module.SUMMARY, module.Config, module.run = "spins", Config, run
    module.recognise = lambda path: {"spins": str(path), "size": 4} if path.suffix == ".spins" else None
    monkeypatch.setitem(sys.modules, "spins_engine", module)
    monkeypatch.setattr(engines, "ENGINES", {"spins": "spins_engine"})
    Path("data").mkdir()
    Path("data/a.spins").write_text("++--")
    return Path("data/a.spins")


def test_a_scientific_file_becomes_a_job(recognising: Path, capsys: Captured) -> None:
    assert main(["run", "data/a.spins"]) == 0
    out, err = capsys.readouterr()
    assert out == "bytes  4\n"
    assert "wrote the job a.toml" in err
    assert "size = 4" in Path("a.toml").read_text()
    Path("a.toml").write_text(Path("a.toml").read_text().replace("size = 4", "size = 6"))
    assert main(["run", "data/a.spins"]) == 0
    assert "running it as it stands" in capsys.readouterr().err
    assert "size = 6" in Path("a-2.result/job.toml").read_text()


def test_a_job_of_another_file_is_not_overwritten(recognising: Path, capsys: Captured) -> None:
    Path("b.spins").write_text("+")
    Path("a.toml").write_text("[spins]\nspins = 'b.spins'\n")
    assert main(["run", "data/a.spins"]) == 2
    assert "does not use data/a.spins" in capsys.readouterr().err
    assert Path("a.toml").read_text() == "[spins]\nspins = 'b.spins'\n"


def test_a_folder_is_offered_to_engines_that_take_folders(recognising: Path, capsys: Captured) -> None:
    from dataclasses import dataclass

    assert main(["run", "data"]) == 2
    assert "data: no engine recognises this folder" in capsys.readouterr().err

    @dataclass(frozen=True)
    class Config:
        source: str = schema.field(file=True, folder=True, meaning="files")
        format: str = schema.field(meaning="what they are")

    module: Any = ModuleType("bulk_engine")
    module.SUMMARY, module.Config = "bulk", Config
    module.run = lambda config, ctx: ctx.number("files", len(list(Path(config.source).iterdir())), "")
    module.recognise = lambda path: {"source": str(path), "format": "spins"} if path.is_dir() else None
    sys.modules["bulk_engine"] = module
    engines.ENGINES["bulk"] = "bulk_engine"
    try:
        assert main(["run", "data/."]) == 0
    finally:
        del sys.modules["bulk_engine"]
    out, err = capsys.readouterr()
    assert out == "files  1\n"
    assert "wrote the job data.toml for data as [bulk] format = 'spins'" in err
    assert Path("data.result/report.html").is_file()


@pytest.mark.parametrize(("name", "said"), [("absent.spins", "no such file or folder"), ("unknown.xyz", "no engine recognises")])
def test_a_file_that_no_engine_knows_is_refused(recognising: Path, capsys: Captured, name: str, said: str) -> None:
    Path("unknown.xyz").write_text("x")
    assert main(["run", name]) == 2
    assert said in capsys.readouterr().err


def test_an_engine_that_cannot_be_imported_is_an_internal_error(
    job: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("broken.py").write_text("1 / 0")
    monkeypatch.setitem(engines.ENGINES, "broken", "broken")
    Path("b.toml").write_text("[broken]\n")
    assert main(["run", "b.toml", "--json"]) == 5
    out, err = capsys.readouterr()
    assert json.loads(out)["exit"] == 5
    assert "ZeroDivisionError" in err
    assert main(["schema", "broken"]) == 5
    assert "ZeroDivisionError" in capsys.readouterr().err


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def progress(done: float, **numbers: float) -> dict[str, Any]:
    return {"event": "progress", "done": done, "total": 10.0, "numbers": numbers}


def test_a_terminal_gets_one_living_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    now, screen = 0.0, Terminal()
    talker = Talker(err=screen, clock=lambda: now)
    for step in range(5):
        now = 0.05 * step
        talker(progress(step, energy=-1.5))
    assert screen.getvalue().count("energy") == 3  # at 0, 0.1 and 0.2 s
    assert "\n" not in screen.getvalue()
    talker({"event": "warning", "text": "careful\x1b[2J"})
    last = screen.getvalue().split("\r")[-1]
    assert last == "\x1b[33mwarning: \x1b[0mcareful\N{REPLACEMENT CHARACTER}[2J\n"


def test_no_color_and_dumb_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Terminal()
    Talker(err=screen)({"event": "warning", "text": "careful"})
    assert screen.getvalue() == "warning: careful\n"
    monkeypatch.setenv("TERM", "dumb")
    assert not Talker(err=screen).tty


def test_elsewhere_there_is_a_line_a_second_and_the_last() -> None:
    now, screen = 0.0, io.StringIO()
    talker = Talker(err=screen, clock=lambda: now)
    for step in range(11):
        now = 0.4 * step
        talker(progress(step))
    assert [line.split()[0] for line in screen.getvalue().splitlines()] == ["0/10", "3/10", "6/10", "9/10", "10/10"]


def test_the_last_line_of_a_loop_is_never_lost_and_each_loop_has_its_own_clock() -> None:
    now, screen = 0.0, io.StringIO()
    talker = Talker(err=screen, clock=lambda: now)
    for step in range(1, 6):
        now += 0.125
        talker(progress(step))
    talker({"event": "progress", "done": 1.0, "total": 2.0, "numbers": {}})
    now = 10.0
    for step in (1, 2):
        talker(progress(step))
    talker({"event": "log", "text": "a word"})
    lines = ["1/10  0 s", "5/10  0.5 s  ETA 0.625 s", "1/2  0 s", "1/10  0 s", "2/10  0 s  ETA 0 s", "a word"]
    assert screen.getvalue().splitlines() == lines


@pytest.mark.parametrize("as_json", [True, False])
def test_a_run_does_not_die_of_a_reader_that_goes_away(tmp_path: Path, as_json: bool) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    talker = Talker(as_json=as_json, out=Gone(), err=Gone())
    for step in range(3):
        talker(progress(step))
    talker({"event": "done", "exit": 0, "state": "finished", "text": "", "report": None})
    assert (talker.out if as_json else talker.err).gone


def test_of_an_iteration_without_known_end_the_first_hundred_steps_are_shown() -> None:
    now, screen = 0.0, io.StringIO()
    talker = Talker(err=screen, clock=lambda: now)
    for step in range(1, 151):
        now = step / 128
        talker({"event": "progress", "done": float(step), "total": None, "numbers": {}})
    # after 100 steps a line a second follows the last one shown, which here no later step is old enough for
    assert [line.split()[0] for line in screen.getvalue().splitlines()] == [str(step) for step in range(1, 101)]


def test_the_line_tells_elapsed_and_remaining_time() -> None:
    assert progress_line(6, 10, {"residual": 1e-3}, 8.0, 2) == "6/10  residual 0.001  8 s  ETA 8 s"
    assert progress_line(6, None, {}, 8.0, 2) == "6  8 s"
    assert progress_line(2, 10, {}, 0.0, 2) == "2/10  0 s"
    assert progress_line(10, 10, {}, 90.0, 2) == "10/10  1 min 30 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0421, "0.0421 s"),
        (9.5, "9.5 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (75, "1 min 15 s"),
        (7300, "2 h 01 min"),
    ],
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_events_are_json_even_when_numbers_are_not_finite() -> None:
    line = to_json({"event": "progress", "numbers": {"x": float("nan")}, "list": [float("inf"), "\n"]})
    assert json.loads(line) == {"event": "progress", "numbers": {"x": None}, "list": [None, "\n"]}
    assert "\n" not in line


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\nb\x1b]0;t\x07\x9b\u202e") == "a\nb" + "\N{REPLACEMENT CHARACTER}]0;t" + "\N{REPLACEMENT CHARACTER}" * 3
