"""The report page: complete, self-contained, safe, and alive in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.figure import Figure
from gewu.formats import Structure
from gewu.formats.elements import SYMBOLS
from gewu.formats.extxyz import extxyz_bytes
from gewu.jobs import figures, viewer
from gewu.jobs.job import Job
from gewu.jobs.netcdf import Variable, encode
from gewu.jobs.record import Number
from gewu.jobs.report import render, shown
from gewu.jobs.result import Result
from tests.jobtools import install, ising_job

SALT = Structure(
    4.212 * np.eye(3),
    ("Mg", "Mg", "Mg", "Mg", "O", "O", "O", "O"),
    np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [0.5, 0.5, 0.5]]),
)
Page = Callable[..., str]


class Tags(HTMLParser):
    """Collects tags with their attributes, and refuses a page whose tags do not match."""

    VOID = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text, self._open = "", [""]
        self.feed(page)
        assert self._open == [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1] not in ("script", "style"):
            self.text += data


def draw(axes: Any) -> None:
    axes.plot([0, 1, 2], [3, 1, 2], label="a <b> & -- c")
    axes.plot([0, 1, 2], [1, 2, 3], color="black")
    axes.legend()


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Page:
    """Return a function that renders a page, with anything in its manifest or job changed."""
    job = Job.load(install(monkeypatch, tmp_path, ising_job()))
    (tmp_path / "structure.extxyz").write_bytes(extxyz_bytes([SALT]))
    arrays = {"bands_ev": Variable(np.zeros((2, 3)), ("band", "kpoint"), "eV", {"long_name": "band energies"})}
    (tmp_path / "arrays.nc").write_bytes(encode(arrays, title="", source=""))

    def make(*, engine: dict[str, Any] | None = None, numbers: dict[str, Number] | None = None, **manifest: Any) -> str:
        versions, host = {"gewu": "9.9", "numpy": "2"}, {"host": "node7", "cpu": "CPU", "cores": 4, "platform": "Linux"}
        told = {
            "state": "finished",
            "reason": "finished",
            "ended": "2026-01-02T03:04:05+00:00",
            "started": "2026-01-02T03:04:00+00:00",
        }
        told |= {"versions": versions, "commit": "c" * 40, "host": host, "device": "cpu", "ranks": 1, "threads": 2, "seed": 1}
        told |= {"inputs": {"in/si.cif": "d" * 64}, "wall_s": 4.0, "cpu_s": 7.0, "sessions": 1, "warnings": [], "cited": []}
        told |= {"timings_s": {"scf": 3.0, "bands": 0.5}, "files": {"structure.extxyz": "", "arrays.nc": ""}}
        result = Result(tmp_path, told | manifest)
        result.__dict__["numbers"] = {"energy_ha": Number(-7.854477356672, "Ha")} if numbers is None else numbers
        return render(result, replace(job, engine=replace(job.engine, **(engine or {}))))

    return make


def test_the_page_says_everything(page: Page) -> None:
    tags = Tags(page(engine={"figures": lambda result: [Figure("Bands", "A caption.", draw)]}, cited=["metropolis1953"]))
    for said in [
        *("a magnet", "Ising magnet on a square lattice", "finished", "after 4 s on 2 threads", "every number converged"),
        *("energy_ha", "-7.854477357", "Ha", "Bands", "Figure 1. A caption.", "Mg4O4", "volume 74.725"),
        *("temperature", "1.5", "seed", "seed of the random numbers"),
        *("scf", "75 %", "bands_ev", "band 2 × kpoint 3", "band energies", "9.9, commit cccccccccccc", "node7"),
        *("SHA-256 of si.cif", "d" * 64, "@article{metropolis1953", "gewu run job.toml"),
    ]:
        assert said in tags.text, said
    assert "Warnings" not in tags.text
    assert "not converged" not in tags.text


def test_the_page_asks_for_nothing_and_runs_only_its_own_script(page: Page) -> None:
    text = page(engine={"figures": lambda result: [Figure("Bands", "", draw)]})
    tags = Tags(text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (policy,) = [attributes["content"] for tag, attributes in tags.tags if tag == "meta" and "http-equiv" in attributes]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    for tag, attributes in tags.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action"):
                assert value.startswith("#")
    assert not re.search(r"@import|url\((?!#)", text)


def test_warnings_and_what_did_not_converge_stand_on_top(page: Page) -> None:
    numbers = {"energy_ha": Number(-1.0, "Ha", converged=False), "gap_ev": Number(0.5, "eV")}
    text = page(state="not-converged", reason="not converged: energy_ha", warnings=["weak <mixing>"], numbers=numbers)
    said = Tags(text).text
    assert said.index("Do not rely on this result") < said.index("weak <mixing>") < said.index("Results")
    assert said.index("Results") < said.rindex("energy_ha") < said.index("Structure")
    assert "1 of 2 numbers not converged" in said
    assert text.count('<td class="bad">not converged</td>') == 1
    assert "has not ended" in Tags(page(state="stopped", reason="stopped by SIGTERM")).text


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style><b>", "\x00\x1b[2J<i>"]
)
def test_hostile_text_is_shown_as_text_wherever_it_comes_from(page: Page, hostile: str) -> None:
    engine = {"summary": hostile, "references": {"k": hostile}, "figures": lambda result: [Figure(hostile, hostile, draw)]}
    facts = {
        "host": {"host": hostile, "cpu": hostile, "cores": 1, "platform": hostile},
        "versions": {"gewu": hostile, "x": hostile},
    }
    inputs, timings = {hostile.replace("/", ""): hostile}, {hostile: 1.0}
    made = page(
        engine=engine, inputs=inputs, timings_s=timings, cited=["k", hostile], warnings=[hostile], reason=hostile, state="failed",
        started=hostile, ended=hostile, commit=hostile, numbers={hostile: Number(1.0, hostile)}, seed=hostile, **facts,
    )  # fmt: skip
    harmless, told = Tags(page(engine={"figures": lambda result: [Figure("", "", draw)]}, cited=["k"])), Tags(made)
    assert {tag for tag, _ in told.tags} <= {tag for tag, _ in harmless.tags} | {"div", "ul", "li", "b"}
    assert not any(name.startswith("on") for _, attributes in told.tags for name in attributes)
    assert made.count("<script") == 1
    assert "\x1b" not in made
    assert "\x00" not in made


def test_a_figure_that_cannot_be_drawn_costs_only_itself(page: Page) -> None:
    def broken(axes: Any) -> None:
        raise KeyError("bands_ev")

    tags = Tags(page(engine={"figures": lambda result: [Figure("Good", "", draw), Figure("Bad", "", broken)]}))
    assert "A figure could not be drawn: KeyError: 'bands_ev'" in tags.text
    assert [tag for tag, _ in tags.tags].count("svg") == 1


def test_a_structure_that_cannot_be_read_costs_only_itself(page: Page, tmp_path: Path) -> None:
    (tmp_path / "structure.extxyz").write_text("garbage")
    text = page()
    assert "The structure cannot be shown" in text
    assert "script-src 'none'" in text


def test_figures_take_the_colour_of_the_page_and_do_not_change() -> None:
    one, other = (figures.to_svg(Figure("t", "c", draw), number) for number in (1, 2))
    assert one == figures.to_svg(Figure("t", "c", draw), 1)
    assert one.count("currentColor") > 5
    assert figures.INK not in one
    assert "#000000" not in one
    names = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, other)]
    assert names[0].isdisjoint(names[1])
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', one)) <= names[0]


def test_a_picture_inside_a_figure_is_kept() -> None:
    svg = figures.to_svg(Figure("t", "c", lambda axes: axes.imshow(np.eye(3))), 1)
    assert 'xlink:href="data:image/png;base64,' in svg


def test_the_scene_shows_whole_cells_and_real_bonds() -> None:
    scene = viewer.scene(SALT)
    assert [kind[0] for kind in scene["kinds"]] == ["O", "Mg"]
    assert [kind[3] for kind in scene["kinds"]] == [4, 4]
    assert len(scene["xyz"]) == 27  # 14 + 13 sites of a rock-salt cell with the images on its faces
    pairs = {frozenset((scene["kind"][i], scene["kind"][j])) for i, j in scene["bonds"]}
    assert pairs == {frozenset((0, 1))}
    assert len(scene["bonds"]) == 54  # a 2x2x2 grid of cubes has 3 * 2 * 9 edges
    metal = viewer.scene(Structure(2.87 * np.eye(3), ("Fe", "Fe"), np.array([[0, 0, 0], [0.5, 0.5, 0.5]])))
    assert len(metal["bonds"]) > 0


def test_every_element_has_a_colour() -> None:
    assert all(re.fullmatch(r"#[0-9a-f]{6}", viewer.colour(symbol)) for symbol in SYMBOLS)
    assert (viewer.colour("H"), viewer.colour("O"), viewer.colour("Rn"), viewer.colour("Og")) == (
        "#ffffff",
        "#ff0d0d",
        "#428296",
        "#428296",
    )


def test_a_large_structure_stays_a_small_page() -> None:
    n = 20
    grid = np.stack(np.meshgrid(*[np.arange(n) / n] * 3), -1).reshape(-1, 3)
    scene = viewer.scene(Structure(60.0 * np.eye(3), ("Ar",) * n**3, grid))
    assert len(scene["xyz"]) == viewer.MAX_ATOMS
    assert scene["bonds"] == []
    assert scene["kinds"][0][3] == n**3


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(3, "", "3"), (-7.854477356672, "Ha", "-7.854477357"), (12.3456, "s", "12.3"), (1e-12, "", "1e-12"), (100.0, "K", "100")],
)
def test_numbers_as_shown(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is absent")
def test_the_structure_is_drawn_in_a_real_browser(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page(warnings=["<script>document.title = 'owned'</script>"]))
    quiet = (
        "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    )
    command = ["chromium", "--headless", "--no-sandbox", *quiet.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "<title>a magnet</title>" in done.stdout
    (canvas,) = [attributes for tag, attributes in Tags(done.stdout).tags if tag == "canvas"]
    assert int(canvas["width"]) > 300  # set by the viewer: the policy let it run, and it came to the drawing


def test_samples_are_shown_as_text_and_small_pictures_only(page: Page, tmp_path: Path) -> None:
    picture = "data:image/png;base64,iVBORw0KGgo="
    odd = [
        "data:text/html;base64,AAAA",
        picture + '"><script>',
        "javascript:alert(1)",
        "</td><script>alert(1)</script>",
        "a\x00\u202e",
    ]
    rows = [{"label <b>": "de", "picture": picture}, {f"odd{k}": text for k, text in enumerate(odd)}]
    (tmp_path / "samples.json").write_text(json.dumps(rows))
    tags = Tags(page(files={"samples.json": "", "arrays.nc": ""}))
    assert [about["src"] for tag, about in tags.tags if tag == "img"] == [picture]
    assert not any(tag in ("script", "b") or name.startswith("on") for tag, about in tags.tags for name in about)
    assert "label <b>" in tags.text
    for text in odd[:4]:
        assert text in tags.text
    assert "\x00" not in tags.text
    assert "Samples" not in Tags(page()).text
