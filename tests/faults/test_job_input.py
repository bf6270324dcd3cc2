"""Job files that cannot be computed are refused before any work, with file, key or line, value and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gewu.cli import main
from gewu.core.errors import InputError
from gewu.jobs.job import Job
from tests.jobtools import install, ising_job, run

HEAD = "[ising]\ntemperature = 1.0\n"


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return install(monkeypatch, tmp_path, ising_job(sweeps=2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "sweps = 3\n", ["ising.sweps", "unknown key", "did you mean 'sweeps'?"]),
        ("[job]\ntitel = 'x'\n" + HEAD, ["job.titel", "did you mean 'title'?"]),
        ("[isnig]\ntemperature = 1.0\n", ["[isnig]", "no such engine", "did you mean 'ising'?"]),
        ("[jobs]\n" + HEAD, ["jobs", "unknown table", "[job] and [ising]"]),
        ("temperature = 1\n", ["temperature", "a table is expected", "[job] or an engine's table"]),
        ("title = 1\n" + HEAD, ["title", "a table is expected"]),
        ("ising = 3\n", ["ising", "a table is expected"]),
        ("job = 3\n" + HEAD, ["job", "a table is expected"]),
        (HEAD + "[dft]\nstructure = 'si.cif'\n", ["exactly one engine table", "ising", "dft"]),
        ("", ["names no engine", "[dft]"]),
        ("[job]\ntitle = 'x'\n", ["names no engine"]),
        ("[ising]\n", ["ising.temperature", "is missing", "temperature of the bath"]),
        (HEAD + "temperature = 2.0\n", ["magnet.toml:3", "not valid TOML"]),
        (HEAD + HEAD, ["magnet.toml:3", "not valid TOML"]),
        (HEAD + "size = \n", ["magnet.toml:3", "not valid TOML"]),
        (HEAD + "size = 32.5\n", ["ising.size", "got 32.5", "integer"]),
        (HEAD + "size = true\n", ["ising.size", "got True"]),
        (HEAD + "size = 5000\n", ["ising.size", "too large", "<= 4096"]),
        (HEAD + "size = 31\n", ["ising.size", "must be even", "31"]),
        (HEAD + "seed = 123456789012345678901234567890\n", ["ising.seed", "64 bits"]),
        ("[ising]\ntemperature = nan\n", ["ising.temperature", "finite"]),
        ("[ising]\ntemperature = -1\n", ["ising.temperature", "> 0"]),
        ("[job]\ndevice = 'cdua'\n" + HEAD, ["job.device", "did you mean 'cuda'?"]),
        (HEAD + "\0", ["not valid TOML"]),
        (HEAD + "[[ising.x]]\n", ["ising.x", "unknown key"]),
    ],
)
def test_a_wrong_job_is_refused_with_place_and_reason(job: Path, text: str, said: list[str]) -> None:
    job.write_text(text)
    with pytest.raises(InputError) as caught:
        Job.load(job)
    for part in ["magnet.toml", *said]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "size = " + "[" * 100_000 + "]" * 100_000,
        HEAD + "size = " + "{a = " * 100_000 + "1" + "}" * 100_000,
        HEAD + ".".join(["a"] * 100_000) + " = 1",
        HEAD + " . ".join(['"a"'] * 100_000) + " = 1",
        "[" + ".".join(["ising"] * 100_000) + "]",
        HEAD + ".".join(["a"] * 60) + " = 1",
        HEAD + "size = " + "[" * 60 + "]" * 60,
        "\n".join("[" + ".".join(["ising"] + ["a"] * n) + "]" for n in range(1, 63)),
    ],
    ids=["arrays", "inline-tables", "dotted-key", "quoted-dotted-key", "header", "sixty-dots", "sixty-brackets", "stairs"],
)
def test_deep_nesting_is_refused(job: Path, text: str) -> None:
    job.write_text(text)
    with pytest.raises(InputError, match=r"nested too deeply|more than 64 parts"):
        Job.load(job)


def test_a_huge_job_is_refused_without_reading_it(job: Path) -> None:
    with open(job, "wb") as stream:
        stream.truncate(100_000_000)
    with pytest.raises(InputError, match="too large"):
        Job.load(job)


def test_bytes_that_are_not_text_are_refused_with_their_line(job: Path) -> None:
    job.write_bytes(HEAD.encode() + b"size = \xff\n")
    with pytest.raises(InputError, match=r"magnet\.toml:3.*UTF-8"):
        Job.load(job)


@pytest.mark.parametrize("name", ["absent.toml", ".", "/dev/zero"])
def test_what_is_no_file_is_refused(job: Path, name: str) -> None:
    with pytest.raises(InputError):
        Job.load(name)


def test_refusals_end_with_exit_code_2_and_a_done_event(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job.write_text(HEAD + "sweps = 3\n")
    assert main(["run", "magnet.toml", "--json"]) == 2
    out, _ = capsys.readouterr()
    (line,) = out.splitlines()
    event = json.loads(line)
    assert (event["event"], event["exit"], event["result"]) == ("done", 2, None)
    assert "did you mean 'sweeps'?" in event["error"]
    assert main(["run", "magnet.toml"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "magnet.toml: ising.sweps: unknown key" in err
    assert not Path("magnet.result").exists()


def test_a_hostile_title_is_text_everywhere(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    title = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m&amp;"
    job.write_text(ising_job(sweeps=2, title="T").replace("'T'", json.dumps(title)))
    assert main(["run", "magnet.toml"]) == 0
    assert "\x1b[31m" not in capsys.readouterr().err
    page = Path("magnet.result/report.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&amp;amp;" in page
    assert "\x1b" not in page
    assert Job.load("magnet.result/job.toml").title == title


def test_a_job_cannot_write_outside_its_result(job: Path) -> None:
    import ising

    def run_outside(config: object, ctx: object) -> None:
        ctx.file("../outside.txt", b"")  # type: ignore[attr-defined]

    ising.run = run_outside
    outcome = run(job)
    assert outcome.exit_code == 5
    assert not Path("outside.txt").exists()
    events = Path("magnet.result/events.jsonl").read_text()
    assert "not a name for a file of a result" in events
