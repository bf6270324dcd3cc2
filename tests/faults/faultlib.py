"""Tools that break things on purpose: failing system calls, damaged bytes, killed processes. All random choices are seeded."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import gewu.core

WATCHED = ("open", "write", "fsync", "replace", "link")


@dataclass
class Calls:
    """The names of the watched calls made so far, in order."""

    names: list[str] = field(default_factory=list)


@contextmanager
def failing_os(n: int, code: int = errno.ENOSPC) -> Iterator[Calls]:
    """Make the n-th call (from 1) of those in WATCHED raise OSError(code); 0 only counts them."""
    calls = Calls()

    def watched(name: str) -> Any:
        real = getattr(os, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            calls.names.append(name)
            if len(calls.names) == n:
                raise OSError(code, os.strerror(code))
            return real(*arguments, **keywords)

        return call

    with mock.patch.multiple(os, **{name: watched(name) for name in WATCHED}):
        yield calls


def mutations(data: bytes, n: int, seed: int) -> Iterator[bytes]:
    """Yield n damaged copies of `data`: three of four have one to four bytes changed, every fourth is cut short."""
    generator = random.Random(seed)
    for index in range(n):
        if index % 4 == 3:
            yield data[: generator.randrange(len(data))]
            continue
        damaged = bytearray(data)
        for position in generator.sample(range(len(data)), generator.randint(1, min(4, len(data)))):
            damaged[position] ^= generator.randint(1, 255)
        yield bytes(damaged)


def child_environment(**extra: str) -> dict[str, str]:
    """Return the environment for a child process that imports this same gewu with one thread."""
    source = str(Path(gewu.core.__file__).parents[2])
    path = os.pathsep.join(entry for entry in (source, os.environ.get("PYTHONPATH", "")) if entry)
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | extra


def run_python(code: str, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a child process and return what it said."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=child_environment(**extra), capture_output=True, text=True, timeout=120, check=False)


MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
"""What Open MPI needs of the environment in containers and on few cores."""


def gewu_run(folder: Path, out: str, *before: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `job.toml` of a folder in a child, behind the command `before` (mpirun ...), with --json."""
    return subprocess.run(
        [*before, sys.executable, "-m", "gewu", "run", "job.toml", "--out", out, "--json"],
        cwd=folder,
        env=child_environment(**environment),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@dataclass(frozen=True)
class Killed:
    """What a killed process left: its exit status (-9 when the kill hit), its lines on stdout, its stderr."""

    returncode: int
    lines: list[str]
    errors: str


class Killer:
    """Start a process, wait for a line on its stdout, and kill it (SIGKILL) after a random delay of at most `longest_s`.

    What a test asserts must hold wherever the kill hits; the seed only spreads the hits.
    """

    def __init__(self, seed: int, longest_s: float = 0.1) -> None:
        self._generator = random.Random(seed)
        self._longest_s = longest_s

    def strike(self, command: Sequence[str], line: str, *, cwd: str | Path | None = None, limit_s: float = 120.0) -> Killed:
        """Kill `command` some time after a stdout line that begins with `line` (or let it end before)."""
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                list(command), env=child_environment(), cwd=cwd, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            watchdog = threading.Timer(limit_s, process.kill)  # a process that hangs fails the test instead of holding it
            watchdog.start()
            try:
                assert process.stdout is not None
                seen = []
                for text in process.stdout:
                    seen.append(text.rstrip("\n"))
                    if text.startswith(line):
                        break
                time.sleep(self._generator.uniform(0.0, self._longest_s))
                process.kill()
                rest, _ = process.communicate()
            finally:
                watchdog.cancel()
            errors.seek(0)
            return Killed(process.returncode, seen + rest.splitlines(), errors.read())
