"""One description of the configuration: parsing, refusals, and everything that derives from it."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from typing import Any

import pytest

from gewu.core.errors import GewuError, InputError
from gewu.core.schema import REQUIRED, field, fields_of, json_schema, markdown_table, parse, to_toml


@dataclasses.dataclass(frozen=True)
class Config:
    structure: str = field(file=True, meaning="Crystal structure")
    functional: str = field("pbe", choices=("pbe", "lda", "pbesol"), meaning="Exchange and correlation")
    pseudo: str | dict[str, str] = field("gth", file=True, builtin_prefixes=("gth",), meaning="Pseudopotentials | by element")
    cutoff_ha: float = field(20.0, unit="Ha", exclusive_minimum=0.0, maximum=1e4, meaning="Plane-wave cutoff")
    kpoints: tuple[int, int, int] = field((4, 4, 4), minimum=1, meaning="Grid of k-points")
    path: tuple[str, ...] = field((), meaning="Corners of the path")
    origin: tuple[float, ...] = field((0.0, 0.5), length=2, unit="bohr", meaning="Origin")
    points: tuple[tuple[float, float], ...] = field((), minimum=0.0, meaning="Pairs")
    symmetry: bool = field(True, meaning="Use symmetry")
    seed: int = field(0, minimum=0, expert=True, meaning="Seed of the random start")

    def check(self) -> None:
        if self.functional == "lda" and self.seed == 13:
            raise InputError("is unlucky with lda", key="seed", value=self.seed)


def read(**table: Any) -> Config:
    return parse(Config, {"structure": "si.cif"} | table, section="dft", file="job.toml")


def test_defaults_are_filled_in_and_given_values_are_taken() -> None:
    config = read(cutoff_ha=30, kpoints=[1, 2, 3], pseudo={"Si": "Si.upf"}, points=[[0, 1], [2, 3.5]], path=["G", "X"])
    assert config == Config(
        structure="si.cif",
        cutoff_ha=30.0,
        kpoints=(1, 2, 3),
        pseudo={"Si": "Si.upf"},
        points=((0.0, 1.0), (2.0, 3.5)),
        path=("G", "X"),
    )
    assert type(config.cutoff_ha) is float
    assert type(config.points[0][0]) is float
    assert read() == Config(structure="si.cif")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"cutof_ha": 3.0}, r"job.toml: dft.cutof_ha: unknown key; allowed: structure, .*; did you mean 'cutoff_ha'\?"),
        ({"xyzzy": 1}, r"dft.xyzzy: unknown key; allowed: structure, functional"),
        ({"functional": "pbee"}, r'dft.functional: is not one of the choices \(got \'pbee\'\).*"pbe", "lda".*did you mean'),
        ({"functional": 3}, r"dft.functional: must be text, not an integer \(got 3\)"),
        ({"cutoff_ha": 0.0}, r"dft.cutoff_ha: is too small \(got 0.0\); allowed: number, > 0 and <= 10000 \(Ha\)"),
        ({"cutoff_ha": 2e4}, "dft.cutoff_ha: is too large"),
        ({"cutoff_ha": "20"}, "must be a number, not text"),
        ({"cutoff_ha": True}, "must be a number, not true or false"),
        ({"cutoff_ha": math.nan}, "must be a finite number"),
        ({"cutoff_ha": math.inf}, "must be a finite number"),
        ({"cutoff_ha": 10**400}, "does not fit in 64 bits"),
        ({"seed": 1.0}, "must be an integer, not a number"),
        ({"seed": True}, "must be an integer, not true or false"),
        ({"seed": -1}, "is too small"),
        ({"seed": 2**63}, "does not fit in 64 bits"),
        ({"symmetry": 1}, "must be true or false, not an integer"),
        ({"kpoints": [4, 4]}, r"must have 3 entries, not 2 .*allowed: list of 3 integers, >= 1"),
        ({"kpoints": [4, 4, 0]}, r"dft.kpoints: is too small \(got 0\)"),
        ({"kpoints": 4}, "must be a list"),
        ({"kpoints": "444"}, "must be a list"),
        ({"path": "GX"}, "must be a list"),
        ({"path": ["G", 1]}, "must be text, not an integer"),
        ({"origin": [1.0]}, "must have 2 entries, not 1"),
        ({"points": [[1.0, math.nan]]}, "must be a finite number"),
        ({"points": [[1.0, -1.0]]}, "is too small"),
        ({"pseudo": {"Si": 3}}, "dft.pseudo: must be text, not an integer"),
        ({"pseudo": 3}, "must be text, not an integer"),
        ({"structure": "a\0b"}, "control characters"),
        ({"pseudo": {"Si": "a\nb"}}, "control characters"),
        ({"path": ["\ud800"]}, "not Unicode text"),
        ({"functional": "lda", "seed": 13}, r"job.toml: dft.seed: is unlucky with lda \(got 13\)"),
        ({"seed": {"a": 1}}, "must be an integer, not a table"),
    ],
)
def test_bad_values_are_refused_with_place_value_and_what_is_allowed(table: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(**table)


def test_a_missing_required_key_is_refused() -> None:
    with pytest.raises(InputError, match=r"job.toml: dft.structure: is missing; allowed: text; Crystal structure"):
        parse(Config, {}, section="dft", file="job.toml")
    with pytest.raises(InputError, match="dft: must be a table"):
        parse(Config, 3, section="dft")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"structure": 'a "quoted" \\ name', "path": ["Γ", "tab\t", "\x7f\x01"], "pseudo": {"Si": "x", "odd key": 'y"'}},
        {"cutoff_ha": 1e-5, "points": [[1e16, 0.1], [5e-324, 1.7976931348623157e308]], "origin": [-0.0, 3], "symmetry": False},
    ],
)
def test_toml_gives_the_same_configuration_again(table: dict[str, Any]) -> None:
    config = read(**table)
    text = to_toml(config, "dft")
    again = parse(Config, tomllib.loads(text)["dft"], section="dft")
    assert again == config
    assert to_toml(again, "dft") == text
    assert [line.split(" = ")[0] for line in text.splitlines()[1:]] == [info.name for info in fields_of(Config)]


def test_fields_of_tells_what_is_known() -> None:
    infos = {info.name: info for info in fields_of(Config)}
    assert infos["structure"].required
    assert infos["structure"].default is REQUIRED
    assert infos["structure"].file
    assert infos["pseudo"].builtin_prefixes == ("gth",)
    assert infos["pseudo"].type_text == "text or table of texts"
    assert infos["origin"].type_text == "list of 2 numbers"
    assert infos["seed"].allowed == "integer, >= 0"


def test_a_default_table_is_not_shared_between_configurations() -> None:
    @dataclasses.dataclass(frozen=True)
    class WithTable:
        pseudo: str | dict[str, str] = field({"Si": "a"}, meaning="x")

    for first in (WithTable(), parse(WithTable, {}, section="s")):
        assert isinstance(first.pseudo, dict)
        first.pseudo["Si"] = "changed"
        assert WithTable().pseudo == parse(WithTable, {}, section="s").pseudo == {"Si": "a"}


def test_json_schema_describes_every_key() -> None:
    schema = json_schema(Config)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["structure"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["cutoff_ha"] == {
        "type": "number",
        "maximum": 1e4,
        "exclusiveMinimum": 0.0,
        "description": "Plane-wave cutoff",
        "default": 20.0,
        "x-unit": "Ha",
    }
    assert properties["functional"]["enum"] == ["pbe", "lda", "pbesol"]
    integer = {"type": "integer", "minimum": 1}
    assert properties["kpoints"]["prefixItems"] == [integer] * 3
    assert properties["kpoints"]["items"] is False
    assert properties["kpoints"]["default"] == [4, 4, 4]
    assert properties["origin"]["minItems"] == properties["origin"]["maxItems"] == 2
    assert properties["pseudo"]["anyOf"][1] == {"type": "object", "additionalProperties": {"type": "string"}}
    assert properties["seed"]["x-expert"] is True


def test_markdown_table_has_one_whole_row_per_key_and_expert_keys_last() -> None:
    rows = markdown_table(Config).splitlines()
    assert rows[0] == "| key | type | default | unit | allowed | meaning |"
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
    assert rows[2].startswith("| `structure` | text | required |")
    assert "| `cutoff_ha` | number | `20.0` | Ha | > 0 and <= 10000 | Plane-wave cutoff |" in rows
    assert rows[-1].startswith("| `seed` |")
    assert len(rows) == 2 + len(fields_of(Config))


def test_mistakes_of_an_engine_author_are_internal_errors() -> None:
    @dataclasses.dataclass(frozen=True)
    class Plain:
        x: int = 3

    @dataclasses.dataclass(frozen=True)
    class Odd:
        x: complex = field(1.0, meaning="not a type of TOML")

    @dataclasses.dataclass(frozen=True)
    class Optional:
        x: int | None = field(1, meaning="TOML has no null")

    for cls in (Plain, Odd, Optional):
        with pytest.raises(GewuError) as caught:
            parse(cls, {}, section="s")
        assert caught.value.exit_code == 5

    @dataclasses.dataclass(frozen=True)
    class BadDefault:
        x: int = field(-1, minimum=0, meaning="a default outside its own bounds could not be read back")

    with pytest.raises(InputError, match="too small"):
        parse(BadDefault, {}, section="s")
