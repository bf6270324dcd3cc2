"""The engine `data`: the same store whatever happens on the way, bad jobs refused, files and folders recognised, examples run."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.cli import main
from gewu.core.context import QuietContext
from gewu.core.errors import InputError
from gewu.data import figures
from gewu.data.catalogue import Catalogue
from gewu.data.engine import Config, recognise, run
from gewu.data.fields import Schema
from gewu.data.sample import codec
from gewu.data.stages import Label
from gewu.formats.packed import Limits, unpacked
from gewu.jobs.job import Job
from gewu.jobs.result import Result
from gewu.jobs.run import run_job
from tests.faults.faultlib import child_environment

pytest.importorskip("duckdb")
ROOT = Path(__file__).parents[2]
TEXT = "the quick brown fox jumps over a lazy dog and then it rests in the shade of an old oak tree while rain begins to fall"


def prose(seed: int, words: int = 80) -> str:
    return " ".join(np.random.default_rng(seed).choice(TEXT.split(), words)) + "."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Work in an empty folder; only tests that look at figures draw them, which takes most of the time."""
    if "figures" not in request.node.name:
        monkeypatch.setattr(figures, "figures", lambda result: iter(()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_lines(path: Path, rows: list[dict[str, Any]], bad: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows) + bad)
    return path


def table(**keys: Any) -> dict[str, Any]:
    return {"data": {"store": "out.store", "workers": 1, **keys}}


def digest(store: Path) -> dict[str, str]:
    files = (path for name in ("shards", "catalogue", "manifests", "versions") for path in (store / name).iterdir())
    return {str(path.relative_to(store)): sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}


def result_of(tables: dict[str, Any], name: str = "job") -> Result:
    outcome = run_job(Job.from_table(tables, name=name))
    assert outcome.exit_code == 0, outcome.reason
    assert outcome.path is not None
    return Result.load(outcome.path)


def test_lines_become_a_store_and_a_report_with_figures(folder: Path) -> None:
    rows = [{"text": prose(k), "n": k, "kind": "ab"[k % 2]} for k in range(30)]
    write_lines(folder / "in.jsonl", rows, b"[7]\nnot json\n")
    result = result_of(table(source=["in.jsonl"], licence="CC0-1.0", description="a <b> & c", sample_rows=2, columns=["kind"]))
    numbers = {name: number.value for name, number in result.numbers.items()}
    assert [numbers[name] for name in ("samples", "samples_read", "rejected", "duplicates", "version")] == [30, 32, 2, 0, 1]
    assert {"card.json", "samples.json", "rejects.txt", "report.html"} <= result.manifest["files"].keys()
    assert result.arrays.variable("rejects").attributes["labels"].split("\n") == ["not-an-object", "not-json"]
    assert result.arrays["histogram_n"].sum() == 30
    assert result.arrays.variable("by_kind").attributes["labels"] == "a\nb"
    report = (result.path / "report.html").read_text()
    assert "could not be drawn" not in report
    assert report.count("<svg") >= 4
    assert report.count('<td class="sample">') == 2 * 4
    card = json.loads((result.path / "card.json").read_text())
    catalogue = Catalogue("out.store")
    assert card["identifier"] == f"sha256:{catalogue.snapshot().sha256}"
    assert (card["license"], card["description"]) == ("CC0-1.0", "a <b> & c")
    assert catalogue.open()[7] == rows[7] | {"licence": "CC0-1.0"}
    assert "in.jsonl:31" in (result.path / "rejects.txt").read_text()


class Stopping(QuietContext):
    """A context that asks to stop after some looks."""

    def __init__(self, looks: int) -> None:
        self._looks = looks
        super().__init__()

    @property
    def stop_requested(self) -> bool:
        self._looks -= 1
        return self._looks < 0

    @stop_requested.setter
    def stop_requested(self, value: bool) -> None:
        pass


@pytest.mark.parametrize("stages", [(), ("normalise", "dedup")])
def test_a_run_that_is_stopped_again_and_again_leaves_the_same_store(folder: Path, stages: tuple[str, ...]) -> None:
    for k in range(5):
        write_lines(folder / "in" / f"{k}.jsonl", [{"text": prose(10 * k + j % 8)} for j in range(10)])
    config = Config(source=(str(folder / "in"),), store="whole.store", stages=stages, workers=1)
    run(config, QuietContext())
    parts, stops = Config(source=config.source, store="parts.store", stages=stages, workers=1), 0
    while True:
        ctx = Stopping(2)
        run(parts, ctx)
        if ctx.numbers:
            break
        assert ctx.state is not None
        stops += 1
    assert stops >= 2
    assert digest(folder / "parts.store") == digest(folder / "whole.store")
    assert ctx.numbers["samples"][0] == (40 if stages else 50)


def test_a_second_run_does_nothing_and_new_files_make_a_new_version(folder: Path) -> None:
    write_lines(folder / "in" / "a.jsonl", [{"n": k} for k in range(5)])
    result_of(table(source=["in"]))
    before = digest(folder / "out.store")
    assert result_of(table(source=["in"]))["version"] == 1
    assert digest(folder / "out.store") == before
    write_lines(folder / "in" / "b.jsonl", [{"n": k} for k in range(3)])
    second = result_of(table(source=["in"]))
    assert (second["version"], second["samples"]) == (2, 8)
    assert len(Catalogue("out.store").open(version=1)) == 5
    assert before.items() <= digest(folder / "out.store").items()


def test_a_file_that_changed_is_never_taken_for_what_it_was(folder: Path) -> None:
    write_lines(folder / "in" / "a.jsonl", [{"n": k} for k in range(5)])
    result_of(table(source=["in"]))
    before = digest(folder / "out.store")
    write_lines(folder / "in" / "a.jsonl", [{"n": k + 1} for k in range(5)])
    os.utime(folder / "in" / "a.jsonl", ns=(1, 1))
    outcome = run_job(Job.from_table(table(source=["in"]), name="again"))
    assert outcome.exit_code == 2
    assert "made from something else" in outcome.reason
    assert digest(folder / "out.store") == before
    assert result_of(table(source=["in"], restart=True))["version"] == 1
    assert [sample["n"] for sample in Catalogue("out.store").open()] == [1, 2, 3, 4, 5]


def test_a_store_is_looked_at_without_a_copy(folder: Path) -> None:
    write_lines(folder / "in.jsonl", [{"n": k} for k in range(5)])
    result_of(table(source=["in.jsonl"]))
    before = digest(folder / "out.store")
    assert main(["run", "out.store"]) == 0
    result = Result.load("out.store.result")
    assert (result["samples"], "rejected" in result.numbers) == (5, False)
    assert digest(folder / "out.store") == before
    assert not list(folder.glob("*.store/*.store"))


@pytest.mark.slow
def test_a_run_killed_in_its_pieces_goes_on(folder: Path) -> None:
    for k in range(6):
        write_lines(folder / "in" / f"{k}.jsonl", [{"text": prose(100 * k + j)} for j in range(200)])
    job = "[data]\nsource = ['in']\nstore = '{}.store'\nstages = ['normalise', 'language', 'quality', 'dedup']\nworkers = 2\n"
    (folder / "a.toml").write_text(job.format("a"))
    (folder / "b.toml").write_text(job.format("b"))
    command = [sys.executable, "-m", "gewu", "run"]
    done = subprocess.run([*command, "b.toml"], env=child_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for lines in (2, 4):
        with subprocess.Popen([*command, "a.toml"], env=child_environment(), stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            seen = 0
            for line in process.stderr:
                seen += "samples" in line
                if seen == lines:
                    process.kill()
    done = subprocess.run([*command, "a.toml"], env=child_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert digest(folder / "a.store") == digest(folder / "b.store")
    assert json.loads((folder / "a.result" / "manifest.json").read_text())["state"] == "finished"


def test_a_store_is_a_source_and_a_condition_chooses_from_it(folder: Path) -> None:
    write_lines(folder / "in.jsonl", [{"n": k, "kind": "ab"[k % 2]} for k in range(20)])
    result_of(table(source=["in.jsonl"], columns=["kind"]))
    result = result_of(
        {"data": {"source": ["out.store"], "store": "b.store", "where": "kind = 'b' and n > 9", "workers": 1}}, "b"
    )
    assert result["samples"] == 5
    assert [sample["n"] for sample in Catalogue("b.store").open()] == [11, 13, 15, 17, 19]


def test_results_of_one_engine_are_a_table_with_units(folder: Path) -> None:
    for name, count in (("a", 3), ("b", 5)):
        write_lines(folder / f"{name}.jsonl", [{"n": k} for k in range(count)])
        result_of(table(source=[f"{name}.jsonl"], store=f"{name}.store"), name)
    assert result_of(table(source=["a.result", "b.result"]))["samples"] == 2
    assert Catalogue("out.store").sql("select samples, version from samples") == [
        {"samples": 3.0, "version": 1.0},
        {"samples": 5.0, "version": 1.0},
    ]
    store = Catalogue("out.store").open()
    assert store.schema["size_mb"].unit == "MB"
    assert [sample["histogram_n"].sum() for sample in store] == [3, 5]


def test_several_sources_are_one_when_their_fields_agree(folder: Path) -> None:
    write_lines(folder / "a.jsonl", [{"n": 1}])
    write_lines(folder / "b.jsonl", [{"n": 2}, {"n": 3}])
    assert result_of(table(source=["b.jsonl", "a.jsonl"]))["samples"] == 3
    assert [sample["n"] for sample in Catalogue("out.store").open()] == [2, 3, 1]
    (folder / "in").mkdir()
    (folder / "in" / "c.txt").write_text("a text")
    with pytest.raises(InputError, match=r"in: holds other fields than the first source"):
        run(Config(source=("a.jsonl", "in"), store="c.store", workers=1), QuietContext())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"languages": ["de"]}, "data.languages: needs the stage 'language'"),
        ({"stages": ["normalize"]}, "did you mean 'normalise'"),
        ({"stages": ["plain", "plain"]}, "names a stage twice"),
        ({"store": ""}, "must name a folder"),
        ({"source": ["absent"]}, "no such file or folder .*make documents"),
        ({"validation": 0.95}, "too large"),
        ({"format": "csv"}, "not one of the choices"),
    ],
)
def test_a_bad_job_is_refused_before_anything_is_written(folder: Path, keys: dict[str, Any], said: str) -> None:
    write_lines(folder / "in.jsonl", [{"n": 1}])
    with pytest.raises(InputError, match=said):
        Job.from_table(table(**{"source": ["in.jsonl"], **keys}))
    assert sorted(os.listdir(folder)) == ["in.jsonl"]


def test_a_store_of_other_stages_is_not_touched(folder: Path) -> None:
    write_lines(folder / "in.jsonl", [{"text": prose(1)}])
    result_of(table(source=["in.jsonl"]))
    before = digest(folder / "out.store")
    outcome = run_job(Job.from_table(table(source=["in.jsonl"], stages=["normalise"]), name="other"))
    assert outcome.exit_code == 2
    assert "begun by another pipeline" in outcome.reason
    assert digest(folder / "out.store") == before


def test_a_stage_without_its_field_and_too_many_refusals_are_told(folder: Path) -> None:
    write_lines(folder / "in.jsonl", [{"n": k} for k in range(4)], b"bad\nbad\n")
    for keys, said in (({"stages": ["per-atom"]}, "no such field"), ({"most_rejects": 0.2}, "too many samples were refused")):
        outcome = run_job(Job.from_table(table(source=["in.jsonl"], **keys), name=said.split()[0]))
        assert (outcome.exit_code, said in outcome.reason) == (2, True), outcome.reason


def test_a_store_inside_its_source_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.txt").write_text("a text")
    assert main(["run", "."]) == 2
    assert "lies inside its source" in capsys.readouterr().err
    assert not list(folder.glob("*.store"))


def test_ranks_are_refused(folder: Path) -> None:
    class Two:
        size = 2

    write_lines(folder / "in.jsonl", [{"n": 1}])
    with pytest.raises(InputError, match="leave mpirun away"):
        run(Config(source=("in.jsonl",), store="a.store"), QuietContext(ranks=Two()))  # type: ignore[arg-type]


def test_packed_bytes_are_unpacked_within_limits() -> None:
    assert unpacked(b"plain") == b"plain"
    assert unpacked(gzip.compress(b"a" * 60) + gzip.compress(b"b" * 40)) == b"a" * 60 + b"b" * 40
    assert unpacked(lzma.compress(b"a" * 60)) == unpacked(bz2.compress(b"a" * 60)) == b"a" * 60
    small = Limits(member_bytes=100, free_bytes=1000)
    assert len(unpacked(gzip.compress(bytes(100)), small)) == 100
    for data, said in (
        (gzip.compress(bytes(101)), "too large when it is unpacked"),
        (gzip.compress(bytes(10**8)), "too large|expands too much"),
        (gzip.compress(b"a" * 60)[:-9], "cannot be unpacked"),
        (gzip.compress(b"a" * 60)[:20] + b"\xff" * 20, "cannot be unpacked"),
        (b"\x1f\x8b\x08", "cannot be unpacked"),
        (lzma.compress(b"a" * 60)[:-9], "cannot be unpacked"),
    ):
        with pytest.raises(InputError, match=said):
            unpacked(data, small)
    with pytest.raises(InputError, match="expands too much"):
        unpacked(gzip.compress(bytes(10**7)), Limits(free_bytes=1 << 20))


def test_the_share_for_validation_depends_on_the_sample_alone() -> None:
    schema = Schema.of({"text": "text"})
    label = Label((), schema, 0.2, 5)
    marks = [label({"text": f"sample {k}"})["split"] for k in range(2000)]
    assert abs(marks.count("validation") - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5  # four standard deviations
    assert marks[::-1] == [label({"text": f"sample {k}", "path": str(k)})["split"] for k in reversed(range(2000))]
    assert marks != [Label((), schema, 0.2, 6)({"text": f"sample {k}"})["split"] for k in range(2000)]
    for k in range(20):  # the mark computed anew from the stored bytes
        whole = bytes(codec(schema).encode({"text": f"sample {k}"})[4:])
        share = int.from_bytes(blake2b(whole, digest_size=8, key=(5).to_bytes(8, "little")).digest(), "little") / 2**64
        assert (marks[k] == "validation") is (share < 0.2)


def test_tokens_are_counted(folder: Path) -> None:
    texts = ["abc", "de fg", "äö"]
    write_lines(folder / "in.jsonl", [{"text": text} for text in texts])
    result = result_of(table(source=["in.jsonl"], stages=["tokenise"], keep_text=False))
    assert result["tokens"] == sum(len(text.encode()) for text in texts)
    store = Catalogue("out.store").open()
    assert [(sample["token_count"], bytes(sample["tokens"].tolist()).decode()) for sample in store] == [
        (3, "abc"),
        (5, "de fg"),
        (4, "äö"),
    ]
    assert "text" not in store.schema
    result = result_of(table(source=["in.jsonl"], store="b.store", stages=["tokenise", "dedup"], keep_text=False), "b")
    assert "text" in Catalogue("b.store").open().schema


def test_where_a_sample_is_from_and_what_an_atom_has() -> None:
    label = Label((("", "unsaid"), ("b", "MIT")))
    found = [label({"path": path}) for path in ("a/1.txt", "b/c/2.txt", "3.txt", "b")]
    told = [(sample["source"], sample["licence"]) for sample in found]
    assert told[:3] == [("a", "unsaid"), ("b", "MIT"), ("", "unsaid")]
    assert Label((("b", "MIT"),))({"n": 1}) == {"n": 1, "licence": "unknown"}
    assert Label()({"n": 1}) == {"n": 1}
    assert Label(atoms=True)({"numbers": np.zeros(4), "energy": -2.0})["energy_per_atom"] == -0.5
    schema = Label(atoms=True).schema(Schema.of({"numbers": "int32[*]", "energy": "float64"}, units={"energy": "eV"}))
    assert (schema["energy_per_atom"].unit, str(schema["atoms"].type)) == ("eV", "int32")
    for fields in ({"energy": "float64"}, {"numbers": "int32[*]"}):
        with pytest.raises(InputError, match="no such field"):
            Label(atoms=True).schema(Schema.of(fields))


def picture(folder: Path, name: str) -> None:
    image = pytest.importorskip("PIL.Image")
    folder.mkdir(parents=True, exist_ok=True)
    image.new("RGB", (20, 10), "red" if name[0] == "a" else "blue").save(folder / name)


def test_files_and_folders_of_samples_are_recognised(folder: Path) -> None:
    write_lines(folder / "a.b.jsonl", [{"n": 1}])
    assert recognise(folder / "a.b.jsonl") == {"source": [str(folder / "a.b.jsonl")], "store": "a.store", "format": "jsonl"}
    for name in ("a1.png", "b2.png"):
        picture(folder / "pictures" / "x", name)
    found = recognise(folder / "pictures")
    assert found is not None
    assert (found["format"], found["stages"], found["store"]) == ("folder", ["check-images"], "pictures.store")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text(prose(1))
    assert recognise(folder / "texts")["stages"][:2] == ["unpack", "decode"]  # type: ignore[index]
    with tarfile.open(folder / "t.tar", "w") as tar:
        info = tarfile.TarInfo("1.txt")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"ab"))
    assert recognise(folder / "t.tar")["format"] == "webdataset"  # type: ignore[index]
    (folder / "odd.xyzzy").write_bytes(os.urandom(100))
    assert recognise(folder / "odd.xyzzy") is None


def test_run_takes_a_file_of_lines_and_a_folder_of_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(folder / "in" / "some.jsonl", [{"n": k} for k in range(4)])
    assert main(["run", "in/some.jsonl"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^samples +4$", out, re.MULTILINE)
    assert "wrote the job some.toml for in/some.jsonl as [data] format = 'jsonl'" in err
    assert len(Catalogue("some.store").open()) == 4
    picture(folder / "pictures" / "red", "a.png")
    picture(folder / "pictures" / "blue", "b.png")
    (folder / "pictures" / "blue" / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    assert main(["run", "pictures"]) == 0
    store = Catalogue("pictures.store").open()
    assert sorted(sample["label"] for sample in store) == ["blue", "red"]
    assert Result.load("pictures.result")["rejected"] == 1
    assert Path("pictures.result/report.html").read_text().count('<img alt="" src="data:image/png;base64,') == 2


def test_a_folder_of_texts_is_cleaned(folder: Path) -> None:
    source = folder / ".cache" / "documents"
    for name in ("manpages-de", "python3.11-doc"):
        (source / name / "man1").mkdir(parents=True)
    page = ".TH LS 1\n.SH NAME\nls \\- list\n.SH DESCRIPTION\n.B ls\n" + prose(3, 90)
    (source / "manpages-de" / "man1" / "ls.1.gz").write_bytes(gzip.compress(page.encode()))
    (source / "python3.11-doc" / "a.html").write_text(f"<html><body><script>x</script><p>{prose(4, 90)}</p></body></html>")
    (source / "python3.11-doc" / "b.txt").write_text(prose(4, 90))
    (source / "python3.11-doc" / "c.png").write_bytes(b"\x89PNG" + bytes(range(256)) * 4)
    job = (ROOT / "examples" / "ingest-docs.toml").read_text()
    (folder / "examples").mkdir()
    (folder / "examples" / "ingest-docs.toml").write_text(job)
    result = result_of_file(folder / "examples" / "ingest-docs.toml")
    assert (result["samples"], result["duplicates"], result["samples_read"]) == (2, 1, 4)
    samples = {sample["source"]: sample for sample in Catalogue("ingest-docs.store").open()}
    assert samples["manpages-de"]["licence"] == "GPL-3.0-or-later"
    assert "\\-" not in samples["manpages-de"]["text"]
    assert ".SH" not in samples["manpages-de"]["text"]
    assert samples["python3.11-doc"]["text"].strip() == prose(4, 90)
    assert samples["python3.11-doc"]["language"] == "en"


def result_of_file(path: Path) -> Result:
    outcome = run_job(Job.load(path))
    assert outcome.exit_code == 0, outcome.reason
    assert outcome.path is not None
    return Result.load(outcome.path)


def test_the_example_of_forces_runs_from_its_file_with_figures(folder: Path) -> None:
    result = result_of_file(ROOT / "examples" / "dataset-forces.toml")
    assert (result["samples"], result["rejected"]) == (192, 0)
    assert {"structure.extxyz", "card.json"} <= result.manifest["files"].keys()
    assert result.arrays.variable("edges_energy_per_atom").units == "eV"
    assert result.arrays.variable("edges_forces").units == "eV/Å"
    atoms = sum(count * n for count, n in ((48, 13), (48, 19), (48, 43), (48, 55)))
    assert result.arrays["histogram_forces"].sum() == 3 * atoms
    store = Catalogue("dataset-forces.store").open()
    for sample in (store[0], store[191]):
        np.testing.assert_allclose(sample["forces"].sum(axis=0), 0.0, atol=5e-5 * len(sample["numbers"]))  # four decimals each
        assert sample["energy_per_atom"] == sample["energy"] / sample["atoms"]
    marked = Catalogue("dataset-forces.store").where("split = 'validation'")
    assert 0 < len(marked) < 60


def test_the_example_of_documents_says_where_they_come_from(folder: Path) -> None:
    shutil.copy(ROOT / "examples" / "ingest-docs.toml", folder)
    with pytest.raises(InputError, match="run `make documents` first"):
        Job.load(folder / "ingest-docs.toml")
