"""The examples of molecular dynamics can start, what the tutorial says can be typed, and its Python runs."""

from __future__ import annotations

import argparse
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gewu
from gewu import cli
from gewu.core import schema
from gewu.core.figure import Figure
from gewu.jobs.job import Job
from gewu.jobs.record import Number
from gewu.physics.md import figures
from gewu.physics.md.config import Config
from gewu.physics.md.prepare import prepare

ROOT = Path(__file__).parents[2]
EXAMPLES = {  # atoms, degrees of freedom, density in g/cm3
    "argon": (864, 3 * 864 - 3, 1.362),
    "copper": (1372, 3 * 1372 - 3, 8.935),
    "water": (1536, 6 * 512 - 3, 0.997),
    "peptide": (2269, 6 * 749 + 3 * 22 - 12 - 3, 0.977),
}
PAGE = (ROOT / "docs/tutorials/md.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) if kind == language]


def job(name: str) -> Job:
    return Job.load(ROOT / "examples" / f"{name}.toml")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_makes_its_system(name: str) -> None:
    config = job(name).config
    assert isinstance(config, Config)
    setup = prepare(config)
    atoms, freedom, density = EXAMPLES[name]
    mass = float(setup.topology.mass_n.sum())
    assert len(setup.topology) == atoms
    assert setup.model.degrees_of_freedom == freedom
    assert mass / setup.state.volume * 1.66053906660e-3 == pytest.approx(density, abs=6e-4)  # the table has three digits
    assert setup.topology.charge_n.sum() == pytest.approx(0.0, abs=1e-6)  # charges of files have six digits


def test_the_commands_of_the_tutorial_exist() -> None:
    parser = cli.parser()
    lines = [line for block in blocks("") for line in block.splitlines()]
    commands = [line.partition("#")[0].split() for line in lines]
    commands = [words[words.index("gewu") + 1 :] for words in commands if "gewu" in words]
    assert len(commands) >= 7
    for words in commands:
        options = parser.parse_args(words)  # ends the test when it does not parse
        assert isinstance(options, argparse.Namespace)
        if words[1].startswith("examples/"):
            assert (ROOT / words[1]).is_file()
    for verb, name in re.findall(r"`gewu (schema|try) (\w+)`", PAGE + (ROOT / "README.md").read_text(encoding="utf-8")):
        assert verb == "schema" or (ROOT / "examples" / f"{name}.toml").is_file()


def test_the_keys_of_the_tutorial_exist() -> None:
    names = {info.name for info in schema.fields_of(Config)}
    shown: dict[str, Any] = {}
    for block in blocks("toml"):
        table = tomllib.loads(block)
        shown |= table.get("md", table)
    used = set(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE.partition("## 3.")[2].partition("## 4.")[0], re.MULTILINE))
    assert len(used) >= 6
    assert set(shown) | {key for row in used for key in re.findall(r"\w+", row)} <= names


def test_the_python_of_the_tutorial(capsys: pytest.CaptureFixture[str]) -> None:
    whole, morse, ase = blocks("python")
    compile(whole, "md.md", "exec")  # runs for seconds: `test_examples_give_the_numbers_of_the_tutorial`
    exec(compile(morse, "md.md", "exec"), {})
    # E = 446 kJ/mol, a = 18.7 / nm, mass 0.980 u: omega = a sqrt(2 E / mass) = 2995 cm-1, times sqrt(1 - U/E) = 0.9915 of a Morse
    # oscillator at U = E (1 - exp(-a 0.0075))^2 = 7.6 kJ/mol; 20,000 steps tell the period to 1e-3
    assert float(capsys.readouterr().out.split()[0]) == pytest.approx(2970.0, rel=3e-3)
    pytest.importorskip("ase")
    exec(compile(ase, "md.md", "exec"), {})
    time, potential, kinetic, conserved = map(float, capsys.readouterr().out.strip(" []\n").split())
    assert time == pytest.approx(0.4)
    assert potential > 0 and kinetic > 0 and math.isfinite(conserved)


def test_figures_of_a_short_run(tmp_path: Path) -> None:
    """A ramp with equilibration: every figure there is, drawn."""
    from gewu.jobs.figures import to_svg

    table = {"structure": str(ROOT / "examples/argon.xyz"), "repeat": [4, 4, 4], "lennard_jones": {"Ar": "0.99774 0.34"}}
    times = {"timestep_fs": 5.0, "equilibration_ps": 0.5, "time_ps": 1.0, "sample_ps": 0.01, "cutoff_nm": 0.8}
    ramp = {"temperature_k": 90.0, "temperature_end_k": 120.0, "ensemble": "npt"}
    result = gewu.run({"job": {"threads": 1}, "md": {**table, **times, **ramp}}, out=tmp_path / "a", quiet=True)
    drawn: list[Figure] = list(figures.figures(result))
    assert [figure.title for figure in drawn] == [
        "Temperature", "Pressure", "Density", "Potential energy", "Heating curve", "Conserved quantity", "Radial distribution",
    ]  # fmt: skip
    for number, figure in enumerate(drawn):
        assert "<svg" in to_svg(figure, number)
    fixed = {**table, **times, "ensemble": "nvt", "temperature_k": 90.0, "skin_nm": 0.1}
    drawn = list(figures.figures(gewu.run({"job": {"threads": 1}, "md": fixed}, out=tmp_path / "b", quiet=True)))
    assert [figure.title for figure in drawn if figure.title in ("Density", "Heating curve", "Mean square displacement")] == [
        "Mean square displacement"
    ]


def test_a_mean_is_told_to_the_digits_of_its_error() -> None:
    numbers = {"density_mean_g_cm3": Number(0.98123, "g/cm3"), "density_error_g_cm3": Number(0.00352, "g/cm3")}
    assert figures._mean(numbers, "density_g_cm3") == "Mean 0.9812 ± 0.0035 g/cm³ (standard error)."
    assert figures._mean({"pressure_mean_bar": Number(-70.31, "bar")}, "pressure_bar") == "Mean -70.31 bar."
    assert figures._mean({}, "pressure_bar") == "Over the run."


def shortened(name: str, **keys: Any) -> dict[str, Any]:
    table = tomllib.loads((ROOT / "examples" / f"{name}.toml").read_text(encoding="utf-8"))
    for key in ("structure", "topology"):
        if key in table["md"]:
            table["md"][key] = str(ROOT / "examples" / table["md"][key])
    return {"job": {"threads": 1}, "md": table["md"] | {"trajectory": "none"} | keys}


@pytest.mark.slow
def test_examples_give_the_numbers_of_the_tutorial(tmp_path: Path) -> None:
    argon = gewu.run(shortened("argon", equilibration_ps=10.0, time_ps=20.0), out=tmp_path / "argon", quiet=True)
    assert argon["temperature_mean"] == pytest.approx(94.4, abs=2.0)  # what melting takes differs from start to start by a kelvin
    assert argon["rdf_peak_ar_ar"] == pytest.approx(0.37, abs=0.008)  # a shell is 0.0075 nm wide
    assert argon["rdf_height_ar_ar"] == pytest.approx(2.8, abs=0.1)
    assert argon["diffusion_ar_cm2_s"] == pytest.approx(2.45e-5, rel=0.15)  # 5 % from 100 ps, by the root of the time
    assert abs(argon["conserved_drift_kj_mol_ns"]) < 0.01  # 1e-2 kT a nanosecond

    water = gewu.run(shortened("water", equilibration_ps=4.0, time_ps=8.0), out=tmp_path / "water", quiet=True)
    assert water["temperature_mean"] == pytest.approx(298.15, abs=6.0)  # the bath needs 0.5 ps, hydrogen bonds some more
    assert water["rdf_peak_o_o"] == pytest.approx(0.275, abs=0.005)  # a shell is 0.0045 nm wide
    assert water["rdf_height_o_o"] == pytest.approx(3.05, abs=0.15)
    assert water["diffusion_o_cm2_s"] == pytest.approx(2.5e-5, rel=0.3)  # 8 ps

    peptide = gewu.run(shortened("peptide", equilibration_ps=3.0, time_ps=5.0), out=tmp_path / "peptide", quiet=True)
    assert peptide["density_mean_g_cm3"] == pytest.approx(0.98, abs=0.035)  # fluctuates by 0.01, and slowly

    copper = gewu.run(
        shortened("copper", temperature_k=1000.0, equilibration_ps=25.0, time_ps=5.0), out=tmp_path / "copper", quiet=True
    )
    energy, kelvin = copper.arrays["thermo_potential_kj_mol"] / 1372, copper.arrays["thermo_temperature_k"]
    solid, liquid = kelvin < 1300, kelvin > 2100
    through = [np.polynomial.Polynomial.fit(kelvin[part], energy[part], 1)(1700.0) for part in (solid, liquid)]
    assert 5.0 < through[1] - through[0] < 15.0  # heat of melting, 13 kJ/mol in experiment
