"""Job file (TOML) → checked, typed configuration of exactly one engine.

A job holds an optional `[job]` table, the same for all engines, and one table named after its engine:

    [job]
    title = "Silicon"

    [dft]
    structure = "silicon.cif"

Values of file fields are paths relative to the job file; each file must exist, and its SHA-256 belongs to the job's identity.
Where a field also takes folders, a folder counts by the list of its files (`listing_of`), not by their bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gewu.core import schema
from gewu.core.errors import InputError
from gewu.core.files import listing_of, read_text_capped, sha256_of
from gewu.jobs.engines import Engine, engine_names, load_engine

LIMIT_BYTES = 10_000_000
LISTED_BYTES = 1 << 30  # a larger file of a bulk source counts by size and time: reading it would take longer than its first use
LIMIT_DEPTH = 8
_LONG_DOTTED_KEY = re.compile(r"(?:[\w\"'-]+[ \t]*\.[ \t]*){64}")


@dataclass(frozen=True)
class JobOptions:
    """The `[job]` table: what every engine understands and no physics depends on."""

    title: str = schema.field("", meaning="title of the report")
    threads: int = schema.field(0, minimum=0, meaning="threads of each rank; 0 takes all usable cores")
    device: str = schema.field("cpu", choices=("cpu", "cuda"), meaning="processor that computes")
    time_limit_s: float = schema.field(
        0.0, unit="s", minimum=0.0, meaning="stop with a checkpoint before this much wall time has passed; 0 is no limit"
    )
    checkpoint_interval_s: float = schema.field(30.0, unit="s", minimum=0.0, meaning="least time between two checkpoints")


@dataclass(frozen=True)
class Job:
    """A checked job, ready to run. File fields of `config` hold absolute paths."""

    engine: Engine
    options: JobOptions
    config: Any
    inputs: Mapping[str, str] = field(default_factory=dict)
    name: str = "job"

    @classmethod
    def load(cls, path: str | Path) -> Job:
        """Read and check a job file.

        Raises:
            InputError: the file, its TOML, a key, a value or a file that it names is wrong.
        """
        path = Path(path)
        table = parse_toml(read_text_capped(path, LIMIT_BYTES), path)
        return cls.from_table(table, base=path.absolute().parent, name=path.stem, file=path)

    @classmethod
    def from_table(
        cls, table: Mapping[str, Any], *, base: str | Path = ".", name: str = "job", file: str | Path | None = None
    ) -> Job:
        """Check a job given as nested mappings, as `tomllib` would return them.

        Args:
            table: `{"job": {...}, "<engine>": {...}}`.
            base: folder from which relative paths of file fields count.
            name: stem of the result directory's name.
            file: the job file, named in errors.
        """
        for key, value in table.items():
            if not isinstance(value, Mapping):
                hint = "keys belong into [job] or an engine's table"
                raise InputError("a table is expected here", file=file, key=key, value=value, hint=hint)
        engine_name = _engine_table(table, file)
        engine = load_engine(engine_name, file=file)
        options = schema.parse(JobOptions, table.get("job", {}), section="job", file=file)
        config = schema.parse(engine.config, table[engine_name], section=engine_name, file=file)
        config, inputs = _resolve_files(config, Path(base).absolute(), engine_name, file)
        return cls(engine, options, config, inputs, name)

    def to_toml(self, directory: str | Path) -> str:
        """Return the job with every default filled in; paths are written relative to `directory`."""
        directory = os.path.realpath(directory)

        def relative(value: str) -> str:
            return os.path.relpath(os.path.realpath(value), directory) if value in self.inputs else value

        config = _map_files(self.config, lambda _, value: relative(value))
        return schema.to_toml(self.options, "job") + "\n" + schema.to_toml(config, self.engine.name)

    @property
    def identity(self) -> str:
        """Hash of all that decides the numbers: engine, its configuration, the bytes of the input files, the device."""
        config = _map_files(self.config, lambda _, value: self.inputs.get(value, value))
        text = schema.to_toml(config, self.engine.name) + self.options.device
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def title(self) -> str:
        """The title the user gave, else the job's name."""
        return self.options.title or self.name


def parse_toml(text: str, file: str | Path | None) -> dict[str, Any]:
    """Parse TOML; whatever is wrong with it ends in an InputError that names the line where there is one."""
    if _LONG_DOTTED_KEY.search(text):
        raise InputError("a dotted key has more than 64 parts", file=file)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column \d+\)", str(error))
        message = str(error).split(" (at ")[0]
        raise InputError(f"not valid TOML: {message}", file=file, line=int(place[1]) if place else None) from None
    except RecursionError:
        raise InputError("nested too deeply", file=file, allowed=f"{LIMIT_DEPTH} levels") from None
    level: list[Any] = [table]
    for _ in range(LIMIT_DEPTH):
        level = [item for value in level for item in (value.values() if isinstance(value, dict) else value)]
        level = [item for item in level if isinstance(item, (dict, list))]
    if level:
        raise InputError("nested too deeply", file=file, allowed=f"{LIMIT_DEPTH} levels")
    return table


def _engine_table(table: Mapping[str, Any], file: str | Path | None) -> str:
    names = [key for key in table if key != "job"]
    if not names:
        raise InputError("the job names no engine", file=file, allowed=", ".join(f"[{name}]" for name in engine_names()))
    if len(names) > 1:
        known = [name for name in names if name in engine_names()]
        wrong = [name for name in names if name not in known]
        if len(known) == 1:
            raise InputError("unknown table", file=file, key=wrong[0], allowed=f"[job] and [{known[0]}]")
        raise InputError("a job has exactly one engine table", file=file, value=names, hint="write one job file for each engine")
    return names[0]


def _map_files(config: Any, change: Any) -> Any:
    """Return `config` with `change(key, value)` applied to each path in its file fields."""
    changed: dict[str, Any] = {}
    for info in schema.fields_of(type(config)):
        value = getattr(config, info.name)
        if not info.file:
            continue
        if isinstance(value, Mapping):
            changed[info.name] = {key: change(f"{info.name}.{key}", item) for key, item in value.items()}
        elif isinstance(value, tuple):
            changed[info.name] = tuple(change(info.name, item) for item in value)
        elif value:
            changed[info.name] = change(info.name, value)
    return replace(config, **changed) if changed else config


def _resolve_files(config: Any, base: Path, section: str, file: str | Path | None) -> tuple[Any, dict[str, str]]:
    """Make the paths in file fields absolute; return the config and `{absolute path: sha256}`."""
    inputs: dict[str, str] = {}
    infos = {info.name: info for info in schema.fields_of(type(config)) if info.file}

    def resolve(key: str, value: str) -> str:
        path, info = base / value, infos[key.split(".")[0]]
        if value == "" and info.default == "":
            return value
        if not (path.is_file() or (info.folder and path.is_dir())):
            if value.startswith(info.builtin_prefixes):
                return value
            allowed = "".join(f", or a name that begins with {prefix!r}" for prefix in info.builtin_prefixes)
            raise InputError(
                "is a directory" if path.is_dir() else "no such file" + " or folder" * info.folder,
                file=file,
                key=f"{section}.{key}",
                value=value,
                allowed=f"a file{' or folder' * info.folder}, relative to {base}{allowed}",
                hint=info.absent or None,
            )
        absolute = os.path.abspath(path)
        if absolute not in inputs:
            listed = info.folder and (path.is_dir() or path.stat().st_size > LISTED_BYTES)
            inputs[absolute] = listing_of(Path(absolute)) if listed else sha256_of(Path(absolute))
        return absolute

    return _map_files(config, resolve), inputs
