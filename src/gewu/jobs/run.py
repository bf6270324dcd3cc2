"""The life of a run: claim a directory, resume or start, let the engine compute, write the result, say how it went.

Exit codes: 0 finished; 2 the input is wrong; 3 not converged; 4 a resource is missing or a stored file is damaged; 5 an error
inside gewu; 75 stopped by a signal or the time limit with a checkpoint, run again to go on.

A run killed at any instant goes on from its last acknowledged checkpoint when the same job is run again. SIGTERM, SIGUSR1 and
SIGINT ask the engine to stop at its next step; a second SIGINT ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from gewu.core import machine
from gewu.core.errors import ConvergenceError, GewuError, ResourceError
from gewu.core.files import LineLog, sha256_of, write_atomic
from gewu.core.ranks import Ranks, world
from gewu.jobs import place, provenance
from gewu.jobs.door import RunContext
from gewu.jobs.job import Job
from gewu.jobs.record import EVENTS, JOB, MANIFEST, REPORT, write_data, write_json
from gewu.jobs.report import render
from gewu.jobs.result import Result
from gewu.jobs.talk import PLAIN_INTERVAL_S, Pace, Talker, to_json

STOPPED_EXIT = 75
STATES = {0: "finished", 3: "not-converged", STOPPED_EXIT: "stopped"}
GRACE_S = 30.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    exit_code: int
    path: Path | None = None
    error: Exception | None = None
    reason: str = ""

    @property
    def state(self) -> str:
        """The state that the manifest tells."""
        return STATES.get(self.exit_code, "failed")

    def event(self) -> dict[str, Any]:
        """Return the last event of a run."""
        report = None if self.path is None or self.state == "failed" else str(self.path / REPORT)
        event = {"event": "done", "result": None if self.path is None else str(self.path), "exit": self.exit_code}
        event |= {"state": self.state, "text": self.reason, "report": report}
        return event if self.error is None else event | {"error": str(self.error)}


def failed(error: BaseException, path: Path | None = None) -> Outcome:
    """Return the outcome of a run that ended in an error."""
    if isinstance(error, MemoryError):
        error = ResourceError("not enough memory", hint="use fewer atoms, points or threads, or a larger machine")
    if isinstance(error, GewuError):
        return Outcome(error.exit_code, path, error, str(error))
    internal = GewuError(f"internal error: {type(error).__name__}: {error}", hint="please report it, with events.jsonl")
    internal.__cause__ = error
    return Outcome(internal.exit_code, path, internal, str(internal))


class Signals:
    """A context manager that turns SIGTERM, SIGUSR1 and the first SIGINT into `received`."""

    caught = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._note) for number in self.caught}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name


class Log:
    """Write events with their time to events.jsonl, and hand them to the talker."""

    def __init__(self, path: Path, talker: Talker) -> None:
        self._lines, self._talker = LineLog(path), talker
        self._pace = Pace(PLAIN_INTERVAL_S)

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event; of progress, one line a second is kept, and the first and last of each loop."""
        for paced in self._pace(event):
            self._lines.write(to_json({"t": round(time.time(), 3), **paced.event}))
        if event["event"] != "done":
            self._talker(event)

    def close(self) -> None:
        """Flush the file to the disk and close it."""
        self._lines.close()


def run_job(
    job: Job, *, out: str | Path | None = None, fresh: bool = False, talker: Talker | None = None, ranks: Ranks | None = None
) -> Outcome:
    """Run a job to its end, whatever that is; every rank of the run calls this.

    Args:
        job: the checked job.
        out: result directory; None for `<job name>.result`, or the next free name.
        fresh: start over instead of resuming.
        talker: who shows events.
        ranks: the processes of the run; those of MPI, or one, when None.

    Returns:
        The outcome; errors are in it, not raised (but a KeyboardInterrupt is).
    """
    talker = Talker(quiet=True) if talker is None else talker
    try:
        ranks = world() if ranks is None else ranks
    except GewuError as error:
        return failed(error)
    control = ranks.split(0)  # a channel of its own, on which ranks that failed can meet while others are still computing
    with contextlib.ExitStack() as held:
        chosen: place.Place | GewuError | None = None
        if ranks.is_root:
            try:
                chosen, lock = place.claim(job.name, job.identity, out=out, fresh=fresh)
                held.push(lock)
            except GewuError as error:
                chosen = error
        chosen = ranks.bcast(chosen)
        assert chosen is not None
        return failed(chosen) if isinstance(chosen, GewuError) else _Run(job, chosen, ranks, control, talker).live()


def sharing(ranks: Ranks) -> int:
    """Return how many ranks, this one included, may run on the cores of this one: they share out the threads."""
    mine = (socket.gethostname(), sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None)
    return ranks.allgather(mine).count(mine)


class _Run:
    """One run in a directory that it holds."""

    def __init__(self, job: Job, chosen: place.Place, ranks: Ranks, control: Ranks, talker: Talker) -> None:
        self.job, self.place, self.ranks, self.control, self.talker = job, chosen, ranks, control, talker
        self.path = chosen.path
        self.manifest: dict[str, Any] = {}
        self.hashes: dict[str, str] = {}
        self.log: Log | None = None
        self.context: RunContext | None = None
        self.start_s, self.cpu_start_s = time.monotonic(), time.process_time()
        self.cpu_s = 0.0

    def live(self) -> Outcome:
        """Open, compute, close; return the outcome that all ranks agree on."""
        try:
            with Signals() as signals:
                self._open()
                self._compute(signals)
                self.cpu_s = self.ranks.allreduce(time.process_time() - self.cpu_start_s)
        except ConvergenceError as error:
            return self._meet(self._close(failed(error, self.path)))
        except Exception as error:
            return self._meet(self._fail(error))
        return self.ranks.bcast(self._close(self._how_it_ended(signals)))

    def _open(self) -> None:
        threads = machine.set_threads(self.job.options.threads or machine.cores() // sharing(self.ranks) or 1)
        if self.ranks.is_root:
            self.manifest = provenance.opening_manifest(self.job, self.path, self.ranks, threads)
            write_json(self.path / MANIFEST, self.manifest)
            self.hashes[JOB] = write_atomic(self.path / JOB, self.job.to_toml(self.path).encode())
            self.log = Log(self.path / EVENTS, self.talker)

    def _compute(self, signals: Signals) -> None:
        options = self.job.options
        context = self.context = RunContext(
            self.path,
            self.ranks,
            options.device,
            self.log or (lambda event: None),
            signalled=lambda: bool(signals.received),
            interval_s=options.checkpoint_interval_s,
            time_limit_s=options.time_limit_s,
        )
        resumed = context.restore()
        verb = "goes on from its last checkpoint" if resumed else "starts"
        text = f"{self.job.engine.name}: {self.job.title} {verb} in {self.path}"
        context.emit("resume" if resumed else "start", text=text, result=str(self.path), engine=self.job.engine.name)
        self.job.engine.run(self.job.config, context)

    def _how_it_ended(self, signals: Signals) -> Outcome:
        assert self.context is not None
        if self.context.stopped:
            why = f"stopped by {signals.received}" if signals.received else "stopped near its time limit"
            return Outcome(STOPPED_EXIT, self.path, None, f"{why}; run the same job again to go on from here")
        loose = [name for name, number in self.context.record.numbers.items() if not number.converged]
        if loose:
            return Outcome(3, self.path, None, f"not converged: {', '.join(loose)}")
        return Outcome(0, self.path, None, "")

    def _close(self, outcome: Outcome) -> Outcome:
        """Write the result (on the root); when that fails, the outcome is that failure and the run can be resumed."""
        if self.context is None or not self.ranks.is_root:
            return outcome
        try:
            self._complete_manifest(outcome)
            record, job = self.context.record, self.job
            source = f"gewu {self.manifest['versions']['gewu']}"
            self.hashes |= write_data(self.path, record, title=job.title, source=source)
            self.hashes |= {name: sha256_of(self.path / name) for name in record.files}
            draft = Result(self.path, self.manifest | {"files": dict(self.hashes)})
            self.hashes[REPORT] = write_atomic(self.path / REPORT, render(draft, job).encode())
            self._seal(outcome)
        except Exception as error:
            return self._fail(error)
        if outcome.state != "stopped":
            place.discard_checkpoints(self.path)
        return outcome

    def _complete_manifest(self, outcome: Outcome) -> None:
        record = self.context.record if self.context is not None else None
        self.manifest |= {"state": outcome.state, "exit_code": outcome.exit_code, "reason": outcome.reason or "finished"}
        self.manifest["ended"] = provenance.now()
        if record is not None:
            wall_s = record.wall_s + time.monotonic() - self.start_s
            cpu_s = record.cpu_s + (self.cpu_s or time.process_time() - self.cpu_start_s)
            self.manifest |= {"wall_s": wall_s, "cpu_s": cpu_s, "sessions": record.sessions}
            self.manifest |= {"timings_s": record.timings_s, "warnings": record.warnings, "cited": record.cited}

    def _seal(self, outcome: Outcome) -> None:
        """End events.jsonl and write the manifest, last of all: from then on the result counts."""
        log, self.log = self.log, None  # whatever happens now, it is closed once
        if log is not None:
            try:
                log(outcome.event())
            finally:
                log.close()
            self.hashes[EVENTS] = sha256_of(self.path / EVENTS)
        self.manifest["files"] = dict(sorted(self.hashes.items()))
        write_json(self.path / MANIFEST, self.manifest)

    def _fail(self, error: Exception) -> Outcome:
        """Say in the manifest that the run failed, as far as the disk still takes it."""
        outcome = failed(error, self.path)
        if not self.ranks.is_root:
            return outcome
        try:
            if not isinstance(error, GewuError) and self.log is not None:
                self.log({"event": "error", "traceback": "".join(traceback.format_exception(error))})
            if self.manifest:
                self._complete_manifest(outcome)
                self._seal(outcome)
        except GewuError:
            pass  # the first error is the one to tell; the manifest still says "running", so the run can be resumed
        return outcome

    def _end_all(self, outcome: Outcome) -> None:
        text = f"gewu: rank {self.ranks.rank}: {outcome.reason}; the other ranks do not answer, all are ended"
        print(text, file=sys.stderr, flush=True)
        self.control.abort(outcome.exit_code)

    def _meet(self, outcome: Outcome) -> Outcome:
        """Wait for the other ranks to fail as well; when one does not, because it never will, end them all."""
        if self.ranks.size > 1:
            watch = threading.Timer(GRACE_S, self._end_all, [outcome])
            watch.daemon = True
            watch.start()
            self.control.barrier()
            watch.cancel()
        return outcome
