"""The worked example of docs/add-an-engine.md as an installed engine, in this process and in children that die on command."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gewu.jobs import engines
from gewu.jobs.job import Job
from gewu.jobs.run import Outcome, run_job
from tests.faults.faultlib import child_environment

PAGE = Path(__file__).parents[1] / "docs" / "add-an-engine.md"

# In the child the figures are left out: matplotlib would take most of the time, and draws before anything is written.
CHILD = """
import os, signal, sys
folder, strike, number = sys.argv[1:4]
del sys.argv[1:4]
sys.path.insert(0, folder)
import ising
del ising.figures
from gewu.jobs import engines
engines.ENGINES["ising"] = "ising"

calls = 0

def watched(name):
    real = getattr(os, name)
    def call(*arguments, **keywords):
        global calls
        calls += 1
        hit = calls == int(number)
        if hit and strike == "half" and name == "write":
            real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
        if hit and strike in ("before", "half"):
            os.kill(os.getpid(), signal.SIGKILL)
        done = real(*arguments, **keywords)
        if hit:
            os.kill(os.getpid(), getattr(signal, strike, signal.SIGKILL))
        return done
    return call

for name in ("open", "write", "fsync", "replace"):
    setattr(os, name, watched(name))
from gewu.cli import main
code = main()
print(calls, file=sys.stderr)
sys.exit(code)
"""


def block(language: str) -> str:
    """Return the first code block of that language in docs/add-an-engine.md."""
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def ising_job(*, sweeps: int = 20, interval_s: float = 0.0, more: str = "", title: str = "a magnet") -> str:
    """Return a small job of the example engine that writes a checkpoint after every sweep."""
    head = f"[job]\ntitle = {title!r}\ncheckpoint_interval_s = {interval_s}\nthreads = 1\n{more}\n"
    return head + f"[ising]\ntemperature = 1.5\nsize = 8\nsweeps = {sweeps}\ndiscard = 0\n"


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, job: str, *, figures: bool = False) -> Path:
    """Make the example engine known, change into `folder`, write the job there, and return the path of the job."""
    (folder / "ising.py").write_text(block("python"))
    (folder / "magnet.toml").write_text(job)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(engines.ENGINES, "ising", "ising")
    sys.modules.pop("ising", None)
    monkeypatch.chdir(folder)
    if not figures:
        import ising

        monkeypatch.delattr(ising, "figures")
    return folder / "magnet.toml"


def run(job: Path, **options: object) -> Outcome:
    """Run a job file in this process."""
    return run_job(Job.load(job), **options)  # type: ignore[arg-type]


def start(folder: Path, *arguments: str, strike: str = "none", number: int = 0) -> subprocess.Popen[str]:
    """Start `gewu` in a child: at its `number`-th system call on a file it kills or signals itself, as `strike` says.

    `strike` is "before" or "half" (of a write) or "after" for SIGKILL, or the name of another signal.
    """
    command = [sys.executable, "-c", CHILD, str(folder), strike, str(number), *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(folder: Path, *arguments: str, strike: str = "none", number: int = 0) -> tuple[int, str, str]:
    """Run `start` to its end; return exit code, stdout and stderr."""
    process = start(folder, *arguments, strike=strike, number=number)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def blows(seed: int, count: int, lowest: int, highest: int) -> list[tuple[str, int]]:
    """Return `count` random (strike, number) pairs."""
    generator = random.Random(seed)
    return [(generator.choice(("before", "half", "after")), generator.randint(lowest, highest)) for _ in range(count)]
