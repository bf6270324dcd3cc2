"""Find engines by name: a literal table for those of gewu, the entry-point group `gewu.engines` for everyone else's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gewu.core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from gewu.core.context import Context
    from gewu.core.figure import Figure
    from gewu.jobs.result import Result

ENGINES: dict[str, str] = {
    "md": "gewu.physics.md.engine",
    "dft": "gewu.physics.dft.engine",
    "ops": "gewu.ops.engine",
    "data": "gewu.data.engine",
    "train": "gewu.train.engine",
}
"""Engine name, which is also its table in the job file, → module; files are offered to them in this order."""


@dataclass(frozen=True)
class Engine:
    """What an engine module offers, by the names that `docs/add-an-engine.md` fixes."""

    name: str
    summary: str
    config: type[Any]
    run: Callable[[Any, Context], None]
    recognise: Callable[[Path], Mapping[str, Any] | None] | None = None
    figures: Callable[[Result], Iterable[Figure]] | None = None
    references: Mapping[str, str] = field(default_factory=dict)


def engine_names() -> list[str]:
    """Return the names of all engines that are installed, those of gewu first."""
    others = sorted(point.name for point in entry_points(group="gewu.engines"))
    return list(ENGINES) + [name for name in others if name not in ENGINES]


def load_engine(name: str, *, file: str | Path | None = None) -> Engine:
    """Import the engine `name`.

    Args:
        name: name of the engine and of its table in the job file.
        file: the job file that asks for it, named in the error.

    Raises:
        InputError: no such engine; the message offers the nearest name.
    """
    if name in ENGINES:
        module: Any = import_module(ENGINES[name])
    else:
        points = list(entry_points(group="gewu.engines", name=name))
        if not points:
            raise unknown_engine(name, file)
        module = points[0].load()
    return Engine(
        name=name,
        summary=module.SUMMARY,
        config=module.Config,
        run=module.run,
        recognise=getattr(module, "recognise", None),
        figures=getattr(module, "figures", None),
        references=getattr(module, "REFERENCES", {}),
    )


def unknown_engine(name: str, file: str | Path | None) -> InputError:
    """Return the error for an engine table or argument that names no engine."""
    names = engine_names()
    hint = did_you_mean(name, [*names, "job"])
    return InputError("no such engine", file=file, key=f"[{name}]", allowed=", ".join(names), hint=hint)
