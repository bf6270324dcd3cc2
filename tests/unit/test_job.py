"""Job files: defaults, files, identity, and the job.toml that repeats a run."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from gewu.core import schema
from gewu.core.errors import InputError
from gewu.jobs import engines
from gewu.jobs import job as jobs_job
from gewu.jobs.job import Job
from tests.jobtools import block, install


@dataclass(frozen=True)
class Config:
    """A configuration with files."""

    structure: str = schema.field(file=True, meaning="a structure")
    pseudo: str | dict[str, str] = schema.field("gth", file=True, builtin_prefixes=("gth",), meaning="pseudopotentials")
    cutoff_ha: float = schema.field(20.0, unit="Ha", exclusive_minimum=0.0, meaning="cutoff")
    kpoints: tuple[int, int, int] = schema.field((2, 2, 2), minimum=1, meaning="grid")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    module = ModuleType("fake_engine")
    module.SUMMARY, module.Config, module.run = "fake", Config, lambda config, ctx: None  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "fake_engine", module)
    monkeypatch.setitem(engines.ENGINES, "fake", "fake_engine")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "si.cif").write_text("silicon")
    (tmp_path / "in" / "Si.upf").write_text("pseudo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_are_filled_in_and_files_resolved_beside_the_job(folder: Path) -> None:
    job = Job.load(write(folder / "in" / "si.toml", "[fake]\nstructure = 'si.cif'\ncutoff_ha = 30\n"))
    assert job.config == Config(structure=str(folder / "in" / "si.cif"), cutoff_ha=30.0)
    assert job.inputs == {str(folder / "in" / "si.cif"): hashlib.sha256(b"silicon").hexdigest()}
    assert (job.name, job.title, job.options.device, job.options.threads) == ("si", "si", "cpu", 0)


def test_the_written_job_gives_the_same_job_from_elsewhere(folder: Path) -> None:
    keys = "structure = 'si.cif'\npseudo = {Si = 'Si.upf', C = 'gth-q4'}\nkpoints = [1, 2, 3]\n"
    text = "[job]\ntitle = 'a \"b\" \\\\'\n[fake]\n" + keys
    job = Job.load(write(folder / "in" / "si.toml", text))
    (folder / "far" / "away").mkdir(parents=True)
    written = job.to_toml(folder / "far" / "away")
    assert str(folder) not in written
    again = Job.load(write(folder / "far" / "away" / "job.toml", written))
    assert again.config == job.config
    assert again.options == job.options
    assert again.inputs == job.inputs
    assert again.identity == job.identity
    assert job.config.pseudo == {"Si": str(folder / "in" / "Si.upf"), "C": "gth-q4"}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("", True),
        ("[job]\ntitle = 'other'\nthreads = 2\ntime_limit_s = 9\n", True),
        ("[job]\ndevice = 'cuda'\n", False),
        ("cutoff_ha = 20", True),
        ("cutoff_ha = 20.000001", False),
        ("kpoints = [2, 2, 3]", False),
    ],
)
def test_the_identity_is_what_decides_the_numbers(folder: Path, change: str, same: bool) -> None:
    base = "[fake]\nstructure = 'in/si.cif'\n"
    one = Job.load(write(folder / "a.toml", base))
    text = change + base if change.startswith("[job]") else base + change
    other = Job.load(write(folder / "b.toml", text))
    assert (one.identity == other.identity) is same


def test_the_identity_follows_the_bytes_of_the_files_not_their_place(folder: Path) -> None:
    one = Job.from_table({"fake": {"structure": "in/si.cif"}}).identity
    write(folder / "copy.cif", "silicon")
    assert Job.from_table({"fake": {"structure": "copy.cif"}}).identity == one
    write(folder / "copy.cif", "germanium")
    assert Job.from_table({"fake": {"structure": "copy.cif"}}).identity != one


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"structure": "no.cif"}, "fake.structure: no such file"),
        ({"structure": "in"}, "fake.structure: is a directory"),
        ({"structure": "in/si.cif", "pseudo": "sg15"}, "fake.pseudo: no such file"),
        ({"structure": "in/si.cif", "pseudo": {"Si": "in/Si.UPF"}}, "fake.pseudo.Si: no such file"),
        ({"structure": "in/si.cif\n"}, "control characters"),
    ],
)
def test_an_absent_file_is_refused_by_its_key(folder: Path, table: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Job.from_table({"fake": table})


def test_a_missing_builtin_says_what_would_be_taken(folder: Path) -> None:
    with pytest.raises(InputError, match="a name that begins with 'gth'"):
        Job.from_table({"fake": {"structure": "in/si.cif", "pseudo": "GTH"}})


def test_the_job_of_the_page_is_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = Job.load(install(monkeypatch, tmp_path, block("toml")))
    assert job.engine.name == "ising"
    assert job.title == "A cold magnet"


def test_engines_of_others_come_through_entry_points(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import fake_engine

    class Point:
        name = "outside"

        def load(self) -> ModuleType:
            return fake_engine

    def entry_points(*, group: str, name: str = "outside") -> list[Point]:
        return [Point()] if (group, name) == ("gewu.engines", "outside") else []

    monkeypatch.setattr(engines, "entry_points", entry_points)
    assert engines.engine_names()[-1] == "outside"
    assert Job.from_table({"outside": {"structure": "in/si.cif"}}).engine.summary == "fake"
    with pytest.raises(InputError, match="did you mean 'outside'"):
        Job.from_table({"outsid": {}})


@dataclass(frozen=True)
class Bulk:
    """A configuration that takes files and folders."""

    source: tuple[str, ...] = schema.field(file=True, folder=True, absent="fetch them first", meaning="files or folders")


@pytest.fixture
def bulk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module = ModuleType("bulk_engine")
    module.SUMMARY, module.Config, module.run = "bulk", Bulk, lambda config, ctx: None  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "bulk_engine", module)
    monkeypatch.setitem(engines.ENGINES, "bulk", "bulk_engine")
    return folder


def test_folders_are_inputs_where_a_key_takes_them(bulk: Path) -> None:
    (bulk / "in" / "deep").mkdir()
    job = Job.from_table({"bulk": {"source": ["in", "in/si.cif"]}})
    assert job.config.source == (str(bulk / "in"), str(bulk / "in" / "si.cif"))
    assert job.inputs[str(bulk / "in" / "si.cif")] == hashlib.sha256(b"silicon").hexdigest()
    assert len(job.inputs[str(bulk / "in")]) == 64
    (bulk / "far").mkdir()
    assert 'source = ["../in", "../in/si.cif"]' in job.to_toml(bulk / "far")
    with pytest.raises(InputError, match=r"bulk.source: no such file or folder .*nowhere.*; fetch them first"):
        Job.from_table({"bulk": {"source": ["nowhere"]}})


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("true", True),
        ("cat Si.upf", True),
        ("touch -d @1 Si.upf", False),
        ("mv Si.upf Si.UPF", False),
        ("mkdir x && mv Si.upf x", False),
        ("touch new", False),
        ("rm si.cif", False),
        ("ln -s . loop", True),
    ],
)
def test_a_folder_counts_by_the_list_of_its_files(bulk: Path, change: str, same: bool) -> None:
    before = Job.from_table({"bulk": {"source": ["in"]}}).identity
    subprocess.run(["sh", "-c", change], cwd=bulk / "in", check=True)
    assert (Job.from_table({"bulk": {"source": ["in"]}}).identity == before) is same


def test_a_large_file_of_a_bulk_source_counts_by_size_and_time(bulk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_job, "LISTED_BYTES", 3)
    before = Job.from_table({"bulk": {"source": ["in/si.cif"]}}).identity
    os.utime(bulk / "in" / "si.cif", ns=(1, 1))
    assert Job.from_table({"bulk": {"source": ["in/si.cif"]}}).identity != before
    one = Job.from_table({"fake": {"structure": "in/si.cif"}}).inputs
    assert one == {str(bulk / "in" / "si.cif"): hashlib.sha256(b"silicon").hexdigest()}


def test_a_folder_that_cannot_be_read_is_refused(bulk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        Job.from_table({"bulk": {"source": ["in"]}})
