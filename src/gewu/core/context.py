"""The door between an engine and the world.

An engine is `run(config, ctx)`. Everything it may ask of the outside goes through `ctx`, so live progress, resume after a
kill, cancelling, provenance and accounting are written once (in `gewu.jobs`) and no engine knows of them.
`QuietContext` is the default for library use: it computes alone, keeps what is saved in dictionaries and prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gewu.core.ranks import Ranks

State = Mapping[str, Any]


class Context(Protocol):
    """What an engine may ask of the world. All calls are collective: every rank makes them in the same order."""

    ranks: Ranks
    device: str

    @property
    def restored(self) -> State | None:
        """The state given to the last acknowledged `checkpoint` of an earlier, interrupted run, or None."""

    @property
    def stop_requested(self) -> bool:
        """True, on all ranks at once, after a signal or when the wall-time limit is near: save a checkpoint and return."""

    def log(self, text: str) -> None:
        """Say something a person may want to read later (kept in events.jsonl)."""

    def warn(self, text: str) -> None:
        """Say something a person must read: shown on the terminal and at the top of the report."""

    def progress(self, done: float, total: float | None, **numbers: float) -> None:
        """Report live progress: `done` of `total` (None when unknown) and a few named numbers."""

    def phase(self, name: str) -> Any:
        """Return a context manager that adds its wall time to `timings_s[name]` of the manifest."""

    def number(self, name: str, value: float, unit: str, *, converged: bool = True) -> None:
        """Record a headline number of the result."""

    def save(self, name: str, array: Any, dims: Sequence[str], units: str, **attributes: str) -> None:
        """Record an array of the result under `name`, with one name per axis and a unit."""

    def file(self, name: str, data: bytes) -> None:
        """Record a native file of the field (cube, extxyz ...) in the result directory."""

    def stream(self, name: str) -> Path | None:
        """Return where to write a native file that grows during the run (trajectories), or None where nothing is kept.

        Only the root has one. After a resume the file is there as it was left: cut it back to what the restored state knows.
        """

    def cite(self, *keys: str) -> None:
        """Name methods used, by the keys of the engine's `REFERENCES`; the report prints their BibTeX."""

    def checkpoint(self, state: State) -> None:
        """Acknowledge `state` (numbers, strings, arrays, nested mappings) as the point to resume from."""


class QuietContext:
    """A context for library use: serial, silent, results in `numbers`, `arrays`, `files`; `checkpoints` keeps the last state."""

    def __init__(self, *, ranks: Ranks | None = None, device: str = "cpu", restored: State | None = None) -> None:
        from gewu.core.ranks import SERIAL

        self.ranks = SERIAL if ranks is None else ranks
        self.device = device
        self.restored = restored
        self.stop_requested = False
        self.numbers: dict[str, tuple[float, str, bool]] = {}
        self.arrays: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.timings_s: dict[str, float] = {}
        self.warnings: list[str] = []
        self.state: State | None = None

    def log(self, text: str) -> None:
        """Drop the text."""

    def warn(self, text: str) -> None:
        """Keep the warning in `warnings`."""
        self.warnings.append(text)

    def progress(self, done: float, total: float | None, **numbers: float) -> None:
        """Drop the progress."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall time spent inside to `timings_s[name]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings_s[name] = self.timings_s.get(name, 0.0) + time.perf_counter() - start

    def number(self, name: str, value: float, unit: str, *, converged: bool = True) -> None:
        """Keep the number in `numbers`."""
        self.numbers[name] = (float(value), unit, converged)

    def save(self, name: str, array: Any, dims: Sequence[str], units: str, **attributes: str) -> None:
        """Keep the array in `arrays`."""
        self.arrays[name] = array

    def file(self, name: str, data: bytes) -> None:
        """Keep the bytes in `files`."""
        self.files[name] = data

    def stream(self, name: str) -> Path | None:
        """Keep nothing."""
        return None

    def cite(self, *keys: str) -> None:
        """Drop the references."""

    def checkpoint(self, state: State) -> None:
        """Keep the last state in `state`."""
        self.state = state
