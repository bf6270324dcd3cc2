"""Configuration: a frozen dataclass whose fields carry unit, bounds, choices and meaning.

One description per engine; validation, the filled-in job file, the JSON Schema, the documentation table and the portal's form
all derive from it. Types understood: `str`, `int`, `float` (accepts an integer), `bool`, `tuple[T, ...]` and `tuple[T, T, T]`
of these, `str | dict[str, str]`. NaN and infinity are refused, a bool is not an integer, integers fit in 64 bits as TOML says.

Example:
    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     cutoff_ha: float = field(20.0, unit="Ha", exclusive_minimum=0.0, meaning="Largest kinetic energy of a plane wave")
    >>> parse(Config, {"cutoff_ha": 30}, section="dft").cutoff_ha
    30.0
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from gewu.core.errors import GewuError, InputError, did_you_mean

T = TypeVar("T")


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = _Required()
_KEY: Final = "gewu"
_INT64: Final = range(-(2**63), 2**63)
_NAMES: Final = {str: "text", int: "integer", float: "number", bool: "true or false", dict: "table of texts"}
_JSON_TYPES: Final = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}
_TOML_TYPES: Final = {str: "text", int: "an integer", float: "a number", bool: "true or false", list: "a list", dict: "a table"}


@dataclasses.dataclass(frozen=True)
class FieldInfo:
    """What is known of one key: its type, default, unit, bounds, choices, length, meaning, and whether it names a file."""

    name: str
    type: Any
    default: Any
    unit: str
    minimum: float | None
    maximum: float | None
    exclusive_minimum: float | None
    choices: tuple[Any, ...] | None
    length: int | None
    meaning: str
    file: bool
    folder: bool
    builtin_prefixes: tuple[str, ...]
    absent: str
    expert: bool

    @property
    def required(self) -> bool:
        """True when the key has no default."""
        return self.default is REQUIRED

    @property
    def type_text(self) -> str:
        """The type in words, for example "list of 3 integers"."""
        return _type_text(self.type, self.length)

    @property
    def allowed(self) -> str:
        """What is accepted, in words: type, then choices or bounds, then unit."""
        limits = self.limits
        return self.type_text + (f", {limits}" if limits else "") + (f" ({self.unit})" if self.unit else "")

    @property
    def limits(self) -> str:
        """The choices or bounds in words; empty when there are none."""
        if self.choices is not None:
            return "one of " + ", ".join(_toml(choice) for choice in self.choices)
        bounds = ((">", self.exclusive_minimum), (">=", self.minimum), ("<=", self.maximum))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)


def field(
    default: Any = REQUIRED,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive_minimum: float | None = None,
    choices: tuple[Any, ...] | None = None,
    length: int | None = None,
    meaning: str,
    file: bool = False,
    folder: bool = False,
    builtin_prefixes: tuple[str, ...] = (),
    absent: str = "",
    expert: bool = False,
) -> Any:
    """Describe one key of a configuration; use it as the value of a dataclass field (given by keyword when constructed).

    Args:
        default: value when the key is absent; without one the key is required. It must itself satisfy the bounds.
        unit: unit of the number, spelled as in `docs/units.md`.
        minimum, maximum, exclusive_minimum: bounds of the number, or of each number of a list.
        choices: the values allowed (of each entry, for a list).
        length: how many entries a `tuple[T, ...]` must have.
        meaning: one sentence for people.
        file: the text (or each value of the table or list) is the path of an input file.
        folder: the path may be that of a folder instead.
        builtin_prefixes: texts starting with one of these name something that ships with gewu instead of a file.
        absent: what to do when there is no such file.
        expert: most users never change it; listings show it last.
    """
    names = (
        "unit",
        "minimum",
        "maximum",
        "exclusive_minimum",
        "choices",
        "length",
        "meaning",
        "file",
        "folder",
        "builtin_prefixes",
        "absent",
        "expert",
    )
    values = (unit, minimum, maximum, exclusive_minimum, choices, length, meaning, file, folder, builtin_prefixes, absent, expert)
    metadata = {_KEY: dict(zip(names, values, strict=True))}
    if default is REQUIRED:
        return dataclasses.field(kw_only=True, metadata=metadata)
    if isinstance(default, dict):
        return dataclasses.field(kw_only=True, metadata=metadata, default_factory=lambda: dict(default))
    return dataclasses.field(kw_only=True, metadata=metadata, default=default)


def fields_of(cls: type[Any]) -> list[FieldInfo]:
    """Return what is known of every key of a configuration class, in order of definition."""
    hints = typing.get_type_hints(cls)
    found = []
    for item in dataclasses.fields(cls):
        if _KEY not in item.metadata:
            raise GewuError("a configuration field must be made by schema.field", key=f"{cls.__name__}.{item.name}")
        default = item.default if item.default is not dataclasses.MISSING else REQUIRED
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        found.append(FieldInfo(name=item.name, type=hints[item.name], default=default, **item.metadata[_KEY]))
    return found


def parse(cls: type[T], table: Mapping[str, Any], *, section: str, file: str | Path | None = None) -> T:
    """Turn a table of a job file into a checked configuration.

    Args:
        cls: the configuration class (a frozen dataclass of `schema.field`).
        table: keys and values as `tomllib` gives them.
        section: name of the table, for messages.
        file: the job file, for messages.

    Returns:
        The configuration, every default filled in. Its method `check()`, if it has one, has been called for rules across keys.

    Raises:
        InputError: an unknown or missing key, a wrong type, a value outside its bounds or choices, or `check()` refused.
    """
    infos = {info.name: info for info in fields_of(cls)}
    if not isinstance(table, Mapping):
        raise InputError("must be a table", file=file, key=section, value=table)
    for key in table:
        if key not in infos:
            where, allowed = _dotted(section, str(key)), ", ".join(infos)
            raise InputError("unknown key", file=file, key=where, allowed=allowed, hint=did_you_mean(key, infos))
    values: dict[str, Any] = {}
    for name, info in infos.items():
        if name not in table and info.required:
            raise InputError("is missing", file=file, key=_dotted(section, name), allowed=info.allowed, hint=info.meaning)
        problem = _Problem(info, _dotted(section, name), file)
        values[name] = _value(table.get(name, info.default), info.type, problem)
    config = cls(**values)
    check = getattr(config, "check", None)
    if check is not None:
        try:
            check()
        except InputError as error:  # the class knows its keys, not where they were read
            error.file = file if error.file is None else error.file
            error.key = _dotted(section, error.key) if error.key in infos else error.key
            raise
    return config


def _dotted(section: str, key: str | None) -> str:
    return f"{section}.{key}" if section else str(key)


@dataclasses.dataclass(frozen=True)
class _Problem:
    info: FieldInfo
    key: str
    file: str | Path | None

    def error(self, message: str, value: Any, hint: str | None = None) -> InputError:
        return InputError(message, file=self.file, key=self.key, value=value, allowed=self.info.allowed, hint=hint)


def _value(value: Any, kind: Any, problem: _Problem) -> Any:
    """Check one value against one type; lists recurse into their entries."""
    if typing.get_origin(kind) is tuple:
        return _entries(value, typing.get_args(kind), problem)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if set(typing.get_args(kind)) != {str, dict[str, str]}:
            raise GewuError("a configuration field has a type that schema does not understand", key=problem.key, value=kind)
        return _texts(value, problem) if isinstance(value, Mapping) else _scalar(value, str, problem)
    if kind not in (str, int, float, bool):
        raise GewuError("a configuration field has a type that schema does not understand", key=problem.key, value=kind)
    return _scalar(value, kind, problem)


def _entries(value: Any, kinds: tuple[Any, ...], problem: _Problem) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise problem.error("must be a list", value)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        wanted = len(value) if problem.info.length is None else problem.info.length
        kinds = (kinds[0],) * wanted
    if len(value) != len(kinds):
        raise problem.error(f"must have {len(kinds)} entries, not {len(value)}", value)
    return tuple(_value(entry, kind, problem) for entry, kind in zip(value, kinds, strict=True))


def _texts(value: Mapping[Any, Any], problem: _Problem) -> dict[str, str]:
    return {_scalar(key, str, problem): _scalar(entry, str, problem) for key, entry in value.items()}


def _scalar(value: Any, kind: type, problem: _Problem) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        if value not in _INT64:
            raise problem.error("does not fit in 64 bits", value)
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        found = next((name for known, name in _TOML_TYPES.items() if type(value) is known), type(value).__name__)
        raise problem.error(f"must be {_TOML_TYPES[kind]}, not {found}", value)
    if isinstance(value, str):
        _check_text(value, problem)
    elif isinstance(value, float) and not math.isfinite(value):
        raise problem.error("must be a finite number", value)
    elif isinstance(value, int) and value not in _INT64:
        raise problem.error("does not fit in 64 bits", value)
    _check_bounds(value, problem)
    return value


def _check_text(value: str, problem: _Problem) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise problem.error("holds a character that is not Unicode text", value) from None
    if problem.info.file and any(ord(letter) < 32 for letter in value):
        raise problem.error("a file name must not hold control characters", value)


def _check_bounds(value: Any, problem: _Problem) -> None:
    info = problem.info
    if info.choices is not None and value not in info.choices:
        raise problem.error("is not one of the choices", value, did_you_mean(value, info.choices))
    if isinstance(value, str | bool):
        return
    below = info.minimum is not None and value < info.minimum
    if below or (info.exclusive_minimum is not None and value <= info.exclusive_minimum):
        raise problem.error("is too small", value)
    if info.maximum is not None and value > info.maximum:
        raise problem.error("is too large", value)


def _toml(value: Any) -> str:
    """Write one value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\u{ord(match.group()):04x}", escaped) + '"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    return repr(value)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def to_toml(config: Any, section: str) -> str:
    """Write a configuration as a TOML table with every default filled in and the meaning of each key beside it.

    The text gives the same configuration again through `tomllib` and `parse`.
    """
    lines = [f"[{section}]"]
    for info in fields_of(type(config)):
        note = " ".join((info.meaning + (f" ({info.unit})" if info.unit else "")).split())
        lines.append(f"{info.name} = {_toml(getattr(config, info.name))}  # {note}")
    return "\n".join(lines) + "\n"


def _type_text(kind: Any, length: int | None = None) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        count = length if inner[-1] is Ellipsis else len(inner)
        what = _type_text(inner[0])
        plural = {"integer": "integers", "number": "numbers", "text": "texts", "true or false": "flags"}.get(what, what)
        return f"list of {plural}" if count is None else f"list of {count} {plural}"
    if origin is dict:
        return _NAMES[dict]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_text(part) for part in inner)
    return _NAMES[kind]


def _json_type(kind: Any, info: FieldInfo) -> dict[str, Any]:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        count = info.length if inner[-1] is Ellipsis else len(inner)
        shape: dict[str, Any] = {"type": "array", "items": _json_type(inner[0], info)}
        if inner[-1] is not Ellipsis:
            shape |= {"prefixItems": [_json_type(part, info) for part in inner], "items": False}
        return shape if count is None else shape | {"minItems": count, "maxItems": count}
    if origin is dict:
        return {"type": "object", "additionalProperties": {"type": "string"}}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_json_type(part, info) for part in inner]}
    bounds = {"minimum": info.minimum, "maximum": info.maximum, "exclusiveMinimum": info.exclusive_minimum}
    limits = {name: bound for name, bound in bounds.items() if bound is not None and kind in (int, float)}
    return {"type": _JSON_TYPES[kind]} | limits | ({} if info.choices is None else {"enum": list(info.choices)})


def json_schema(cls: type[Any]) -> dict[str, Any]:
    """Describe a configuration class as JSON Schema (draft 2020-12); units stand under `x-unit`, files under `x-file`."""
    properties, required = {}, []
    for info in fields_of(cls):
        entry = _json_type(info.type, info) | {"description": info.meaning}
        if info.required:
            required.append(info.name)
        else:
            entry["default"] = list(info.default) if isinstance(info.default, tuple) else info.default
        extras = {"x-unit": info.unit, "x-file": info.file, "x-folder": info.folder, "x-expert": info.expert}
        properties[info.name] = entry | {name: value for name, value in extras.items() if value}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": cls.__name__,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def markdown_table(cls: type[Any]) -> str:
    """Describe a configuration class as a Markdown table: key, type, default, unit, allowed, meaning; expert keys last."""
    rows = ["| key | type | default | unit | allowed | meaning |", "|---|---|---|---|---|---|"]
    for info in sorted(fields_of(cls), key=lambda info: info.expert):
        default = "required" if info.required else f"`{_toml(info.default)}`"
        cells = (f"`{info.name}`", info.type_text, default, info.unit, info.limits, info.meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"
