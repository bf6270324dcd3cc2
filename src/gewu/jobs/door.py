"""The context that an engine sees during a run: `gewu.core.context.Context`, connected to a result directory.

Only the root rank records, writes and speaks. `checkpoint` and `stop_requested` are collective: the ranks agree on what to do, so
that all of them write, or stop, at the same step.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gewu.core.checkpoint import CheckpointSet
from gewu.core.context import State
from gewu.core.errors import ConvergenceError
from gewu.core.files import write_atomic
from gewu.core.ranks import Ranks
from gewu.jobs.netcdf import Variable
from gewu.jobs.record import CHECKPOINTS, STANDARD_FILES, Number, Record

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")

Emit = Callable[[Mapping[str, Any]], None]


class RunContext:
    """The door between one run of an engine and its result directory.

    Args:
        directory: the result directory, locked by this run.
        ranks: the processes of the run.
        device: "cpu" or "cuda".
        emit: takes each event (a mapping with the key "event"); called on the root only.
        signalled: tells whether a signal asked this process to stop.
        interval_s: least wall time between two checkpoints.
        time_limit_s: wall time of this process after which to stop; 0 for none.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        directory: Path,
        ranks: Ranks,
        device: str,
        emit: Emit,
        *,
        signalled: Callable[[], bool] = lambda: False,
        interval_s: float = 0.0,
        time_limit_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ranks, self.device = ranks, device
        self.record = Record()
        self.stopped = False
        self._directory, self._emit_on_root = directory, emit
        self._signalled, self._interval_s, self._time_limit_s, self._clock = signalled, interval_s, time_limit_s, clock
        self._start = self._last_checkpoint = clock()
        self._cpu_start = time.process_time()
        self._last_poll: float | None = None
        self._slowest_gap_s = self._slowest_checkpoint_s = 0.0
        self._engine_state: State | None = None
        self._checkpoints = CheckpointSet(directory / CHECKPOINTS, ranks)

    def restore(self) -> bool:
        """Read the last acknowledged checkpoint, if there is one, and tell whether there was (collective)."""
        state = self._checkpoints.read()
        if state is None:
            return False
        self._engine_state = state["engine"]
        self.record = Record.from_state(state["record"])
        self.record.sessions += 1
        return True

    def emit(self, kind: str, **fields: Any) -> None:
        """Hand an event to whoever watches and to events.jsonl."""
        if self.ranks.is_root:
            self._emit_on_root({"event": kind, **fields})

    @property
    def restored(self) -> State | None:
        """The state to resume from, or None."""
        return self._engine_state

    @property
    def stop_requested(self) -> bool:
        """True, on all ranks at once, after a signal or when one more step could pass the time limit."""
        now = self._clock()
        if self._last_poll is not None:
            self._slowest_gap_s = max(self._slowest_gap_s, now - self._last_poll)
        self._last_poll = now
        needed = now - self._start + self._slowest_gap_s + self._slowest_checkpoint_s
        late = 0 < self._time_limit_s <= needed
        if not self.stopped:
            self.stopped = bool(self.ranks.allreduce(int(late or self._signalled()), "max"))
        return self.stopped

    def checkpoint(self, state: State) -> None:
        """Acknowledge `state`, unless the last acknowledged one is younger than the interval and the run goes on."""
        begin = self._clock()
        due = self.stopped or begin - self._last_checkpoint >= self._interval_s
        if not self.ranks.allreduce(int(due), "max"):
            return
        self.record.checkpoints += 1
        record = self.record.to_state()
        record["wall_s"] += begin - self._start
        record["cpu_s"] += time.process_time() - self._cpu_start
        self._checkpoints.write(self.record.checkpoints, {"engine": dict(state), "record": record})
        self._last_checkpoint = self._clock()
        self._slowest_checkpoint_s = max(self._slowest_checkpoint_s, self._last_checkpoint - begin)
        self.emit("checkpoint", step=self.record.checkpoints)

    def log(self, text: str) -> None:
        """Keep the text in events.jsonl and show it."""
        self.emit("log", text=text)

    def warn(self, text: str) -> None:
        """Keep the warning for the top of the report and show it, once."""
        if text not in self.record.warnings:
            self.record.warnings.append(text)
            self.emit("warning", text=text)

    def progress(self, done: float, total: float | None, **numbers: float) -> None:
        """Hand on progress; who shows or keeps it limits how often."""
        shown = {name: float(value) for name, value in numbers.items()}
        self.emit("progress", done=float(done), total=None if total is None else float(total), numbers=shown)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall time spent inside to `timings_s[name]`."""
        start = self._clock()
        try:
            yield
        finally:
            timings = self.record.timings_s
            timings[name] = timings.get(name, 0.0) + self._clock() - start

    def number(self, name: str, value: float, unit: str, *, converged: bool = True) -> None:
        """Record a headline number.

        Raises:
            ConvergenceError: the value is not finite.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"not a name for a number: {name!r}")
        value = int(value) if isinstance(value, (int, np.integer)) else float(value)
        if not math.isfinite(value):
            raise ConvergenceError(f"the result {name} is not a finite number", value=value)
        self.record.numbers[name] = Number(value, unit, bool(converged))
        self.emit("number", name=name, value=value, unit=unit, converged=bool(converged))

    def save(self, name: str, array: Any, dims: Sequence[str], units: str, **attributes: str) -> None:
        """Record a copy of an array, with one name per axis and a unit."""
        if not NAME.fullmatch(name) or not all(NAME.fullmatch(dim) for dim in dims):
            raise ValueError(f"not a name for an array and its dims: {name!r} {dims!r}")
        if self.ranks.is_root:
            self.record.variables[name] = Variable(np.array(array, order="C"), tuple(dims), units, attributes)
            self.emit("array", name=name, dims=list(dims), shape=list(np.shape(array)), units=units)

    def file(self, name: str, data: bytes) -> None:
        """Write a native file of the field into the result directory."""
        if not FILE_NAME.fullmatch(name) or name in STANDARD_FILES:
            raise ValueError(f"not a name for a file of a result: {name!r}")
        if self.ranks.is_root:
            self.emit("file", name=name, bytes=len(data))
            self.record.files[name] = write_atomic(self._directory / name, data)

    def stream(self, name: str) -> Path | None:
        """Return the path of a native file that grows; its checksum is taken when the run ends."""
        if not FILE_NAME.fullmatch(name) or name in STANDARD_FILES:
            raise ValueError(f"not a name for a file of a result: {name!r}")
        if not self.ranks.is_root:
            return None
        self.record.files[name] = ""
        return self._directory / name

    def cite(self, *keys: str) -> None:
        """Name methods used, by the keys of the engine's `REFERENCES`."""
        self.record.cited += [key for key in keys if key not in self.record.cited]
