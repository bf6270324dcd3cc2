"""One process of several that train together, as the supervisor of `elastic` starts them.

What an engine tells its context goes up as events: progress and talk at once, numbers, arrays and files at the end, so that the
result is written by the run that started the processes. Weights do not travel: process 0 writes them where they belong.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gewu.core.context import Context, QuietContext
from gewu.core.ranks import SerialRanks
from gewu.train.engine import Config, Place, train


class Processes(SerialRanks):
    """The processes of a JAX program, where all of them know the same: only who is the root differs."""

    def __init__(self) -> None:
        import jax

        self.rank, self.size, self.is_root = jax.process_index(), jax.process_count(), jax.process_index() == 0  # type: ignore[misc]

    def barrier(self) -> None:
        """Wait until every process is here."""
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices("gewu")


class Member(QuietContext):
    """The context of one process.

    Args:
        report: takes an event; returns whether the run is to stop.
    """

    def __init__(self, report: Callable[[dict[str, Any]], Any]) -> None:
        self._asked = False
        super().__init__(ranks=Processes())
        self._report, self._dims, self._streams, self._cited = report, dict[str, Any](), list[str](), list[str]()

    def _tell(self, call: str, *arguments: Any, **numbers: Any) -> None:
        self.stop_requested = (
            bool(self._report({"call": call, "arguments": arguments, "numbers": numbers})) or self.stop_requested
        )

    def log(self, text: str) -> None:
        """Send the text up."""
        self._tell("log", text)

    def warn(self, text: str) -> None:
        """Send the warning up."""
        self._tell("warn", text)

    def progress(self, done: float, total: float | None, **numbers: float) -> None:
        """Send progress up."""
        self._tell("progress", done, total, **numbers)

    def save(self, name: str, array: Any, dims: Any, units: str, **attributes: str) -> None:
        """Keep an array for the end."""
        self.arrays[name] = np.asarray(array)
        self._dims[name] = (list(dims), units, attributes)

    def stream(self, name: str) -> Path | None:
        """Keep the name of a file that was written into the result."""
        self._streams.append(name)
        return None

    def cite(self, *keys: str) -> None:
        """Keep the references for the end."""
        self._cited += keys

    def outcome(self) -> dict[str, Any]:
        """Return all that was recorded, as JSON can hold it."""
        arrays = {name: [x.tolist(), str(x.dtype), *self._dims[name]] for name, x in self.arrays.items()}
        files = {name: b64encode(data).decode() for name, data in self.files.items()}
        found = {"numbers": self.numbers, "arrays": arrays, "files": files, "streams": self._streams, "cited": self._cited}
        return found | {"timings": self.timings_s}


def member(arguments: dict[str, Any], report: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Train as one process of several; return what was recorded, and whether the run was stopped before its end."""
    config = Config(**{key: tuple(value) if isinstance(value, list) else value for key, value in arguments["config"].items()})
    place = Place(*(Path(path) if path else None for path in arguments["place"]), arguments["run"])
    ctx = Member(report)
    return {"stopped": train(config, ctx, place)} | ctx.outcome()


def replay(outcome: dict[str, Any], ctx: Context) -> None:
    """Record in the context of a run what its processes recorded."""
    for name, (value, unit, converged) in outcome["numbers"].items():
        ctx.number(name, value, unit, converged=converged)
    for name, (values, dtype, dims, units, attributes) in outcome["arrays"].items():
        ctx.save(name, np.array(values, dtype), dims, units, **attributes)
    for name, data in outcome["files"].items():
        ctx.file(name, b64decode(data))
    for name in outcome["streams"]:
        ctx.stream(name)
    ctx.cite(*outcome["cited"])
