"""What is seen while a run goes on: one living line on a terminal, a plain line now and then elsewhere, or JSON.

Talk goes to stderr; with `as_json` every event is one object a line on stdout. Control characters in text that came from a
user never reach the terminal.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

Event = Mapping[str, Any]
TTY_INTERVAL_S = 0.1
PLAIN_INTERVAL_S = 1.0
SHOWN_STEPS = 100  # an iteration to convergence is worth a line a step; this many at most


def to_json(event: Event) -> str:
    """Return the event as one line of JSON; numbers that are not finite become null."""
    return json.dumps({key: _plain(value) for key, value in event.items()}, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def printable(text: str) -> str:
    """Return the text with every control character, newline apart, replaced: no escape sequence reaches a terminal."""
    return "".join(c if c == "\n" or (c.isprintable() and c != "\x7f") else "\N{REPLACEMENT CHARACTER}" for c in text)


def duration(seconds: float) -> str:
    """Return a time span as a person would say it.

    >>> duration(0.0421), duration(75), duration(7300)
    ('0.0421 s', '1 min 15 s', '2 h 01 min')
    """
    if seconds < 59.5:
        return f"{seconds:.3g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass(frozen=True)
class Paced:
    """An event that is to be passed on; of progress, also the time since its loop began and how much was done then."""

    event: Event
    elapsed_s: float = 0.0
    first_done: float = 0.0


class Pace:
    """Let progress pass once an interval, but of every loop of an engine the first and the last always, and of an iteration
    whose end is not known (`total` None) the first hundred steps.

    A loop begins when `total` changes or `done` falls back. What came too soon is held, and passed before the next other event.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s, self._clock = interval_s, clock
        self._held: Paced | None = None
        self._total: float | None = None
        self._first_done, self._start, self._last = math.inf, 0.0, -math.inf

    def __call__(self, event: Event) -> list[Paced]:
        """Take an event and return what passes now."""
        if event["event"] == "checkpoint":  # one a step: they do not end a loop
            return [Paced(event)]
        held = [] if self._held is None else [self._held]
        if event["event"] != "progress":
            self._held = None
            return [*held, Paced(event)]
        now, done, total = self._clock(), event["done"], event["total"]
        begins = total != self._total or done < self._first_done
        if begins:
            self._total, self._first_done, self._start = total, done, now
        paced = Paced(event, now - self._start, self._first_done)
        always = done <= SHOWN_STEPS if total is None else done >= total
        if begins or always or now - self._last >= self._interval_s:
            self._last, self._held = now, None
            return [*(held if begins else []), paced]
        self._held = paced
        return []


class Listener:
    """A stream whose reader may go away: what is written then is dropped, for no run should die of a closed terminal or pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.gone = stream, False

    def write(self, text: str) -> int:
        """Write as far as somebody listens."""
        if not self.gone:
            try:
                self._stream.write(text)
            except OSError:
                self.gone = True
        return len(text)

    def flush(self) -> None:
        """Flush as far as somebody listens."""
        if not self.gone:
            try:
                self._stream.flush()
            except OSError:
                self.gone = True

    def isatty(self) -> bool:
        """Tell whether a person listens."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._stream.fileno()


class Talker:
    """Show events to whoever watches.

    Args:
        as_json: one JSON object a line on `out`, nothing else.
        quiet: nothing at all, but JSON if asked for.
        out: stream of the data; stdout when None.
        err: stream of the talk; stderr when None.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        quiet: bool = False,
        out: TextIO | None = None,
        err: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.out, self.err = Listener(out or sys.stdout), Listener(err or sys.stderr)
        self.as_json, self.quiet = as_json, quiet
        self.tty = not as_json and self.err.isatty() and os.environ.get("TERM") != "dumb"
        self.colour = self.tty and not os.environ.get("NO_COLOR")
        self._pace = Pace(TTY_INTERVAL_S if self.tty or as_json else PLAIN_INTERVAL_S, clock)
        self._line = ""

    def __call__(self, event: Event) -> None:
        """Show one event; `event["event"]` says what kind it is."""
        if self.quiet and not self.as_json:
            return
        for paced in self._pace(event):
            if self.as_json:
                print(to_json(paced.event), file=self.out, flush=True)
            else:
                self._show(paced)

    def _show(self, paced: Paced) -> None:
        event = paced.event
        match event["event"]:
            case "progress":
                self._progress(progress_line(event["done"], event["total"], event["numbers"], paced.elapsed_s, paced.first_done))
            case "log" | "start" | "resume":
                self.say(event["text"])
            case "warning":
                self.say(self._paint("33", "warning: ") + printable(event["text"]), raw=True)
            case "done":
                self.say(self._closing(event), raw=True)

    def say(self, text: str, *, raw: bool = False) -> None:
        """Print a line of talk above the living progress line."""
        if self.as_json or self.quiet:
            return
        self._wipe()
        print(text if raw else printable(text), file=self.err, flush=True)

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def _wipe(self) -> None:
        if self._line:
            self.err.write("\r" + " " * len(self._line) + "\r")
            self._line = ""

    def _progress(self, line: str) -> None:
        if not self.tty:
            print(line, file=self.err, flush=True)
            return
        try:
            width = os.get_terminal_size(self.err.fileno()).columns
        except (OSError, ValueError):
            width = 80
        self._wipe()
        self._line = line[: width - 1]
        self.err.write(self._line)
        self.err.flush()

    def _closing(self, event: Event) -> str:
        colour = {0: "32", 75: "33"}.get(event["exit"], "31")
        text = self._paint(colour, str(event["state"]))
        if event["text"]:
            text += ": " + printable(event["text"])
        return text + (f"\nreport: {printable(event['report'])}" if event["report"] else "")


def progress_line(done: float, total: float | None, numbers: Mapping[str, float], elapsed_s: float, first_done: float) -> str:
    """Return `done/total  name value ...  elapsed  ETA` on one line; the rate counts from `first_done`."""
    parts = [f"{done:g}" if total is None else f"{done:g}/{total:g}"]
    parts += [f"{printable(name)} {value:.{3 if abs(value) < 0.1 else 10}g}" for name, value in numbers.items()]
    parts.append(duration(elapsed_s))
    if total is not None and done > first_done and total > done:
        parts.append("ETA " + duration(elapsed_s * (total - done) / (done - first_done)))
    return "  ".join(parts)
