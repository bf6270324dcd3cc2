"""Several processes of one machine that train together: started, watched, and started again when one is lost.

The supervisor starts `python -m gewu.train.elastic` N times with a task on standard input; each child joins `jax.distributed`
(Gloo on processors, NCCL on GPUs, one device a process) and calls the target. A child writes lines of JSON on its standard
output: events of the target, its result, and twice a second where its main thread stands. SIGTERM asks all of them to stop.

A process that ends without a result is lost. When nothing happens for `hang_timeout_s`, the one that hangs is told from those
that wait for it: it does not answer (stopped, its machine swaps), or its main thread is elsewhere than in JAX, or elsewhere than
most. The lost one is named, the others are ended (JAX cannot go on without one), and those that are left begin anew: the target
finds the last checkpoint by itself, in the folder or in the memory of the supervisor, which is a keeper (`gewu.train.keeper`).

Limits: one machine; processes of several machines are started by MPI or Slurm and end together.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import re
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

from gewu.core.errors import ConvergenceError, GewuError, InputError, ResourceError, StoreError
from gewu.core.files import write_all
from gewu.train import keeper
from gewu.train.mesh import AXES, ROWS, Layout

BEAT_S: Final = 0.5
_SETTLE_S: Final = 0.3  # between the first process that ended and those that ended because of it
_ERRORS: Final = {kind.__name__: kind for kind in (InputError, ConvergenceError, ResourceError, StoreError, GewuError)}
Event = Callable[[dict[str, Any]], None]


def run(
    target: str,
    arguments: dict[str, Any],
    processes: int,
    *,
    hang_timeout_s: float,
    event: Event,
    stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda text: None,
    usable: Callable[[int], int] = lambda left: left,
    replaced: int = 0,
    memory: bool = False,
) -> Any:
    """Call a function in several processes and return what that of process 0 returned.

    Args:
        target: "module:function", called with the arguments and a function that reports an event (a dict) and returns whether
            the process is to stop.
        arguments: JSON can hold them.
        processes: how many at first.
        hang_timeout_s: time without an event of any process after which one counts as hung; compiling takes part in it.
        event: takes what process 0 reports.
        stop: whether they are to stop.
        warn: takes a text about a process that was lost.
        usable: how many of those left can work together (see `fitting`).
        replaced: so many lost processes are replaced by new ones; later ones are done without.
        memory: keep the last states also in the memory of this process.

    Raises:
        ResourceError: the last process was lost, or all of them hang.
        GewuError: what a process raised.
    """
    token = secrets.token_hex(16)
    with keeper.Keeper(token=token) if memory else nullcontext() as kept:
        more = {"peers": [kept.address], "token": token} if kept else {"peers": [], "token": ""}
        while True:
            group = _Group({"target": target, "arguments": arguments, "processes": processes} | more, processes)
            try:
                lost = group.watch(hang_timeout_s, event, stop)
            finally:
                group.end()
            if lost is None:
                return group.result
            left = processes if replaced > 0 else usable(processes - 1) if processes > 1 else 0
            replaced -= 1
            if not left:
                raise ResourceError(lost, hint="run the same job again to go on from the last checkpoint")
            processes = left
            warn(f"{lost}; {left} process(es) go on from the last checkpoint")


def fitting(layout: Layout, devices: int, rows: int = 0) -> Layout:
    """Return the largest layout on at most so many devices whose axes divide those of a layout; data axes shrink first.

    Args:
        rows: of a batch; axes of rows divide them.
    """
    sizes = [[n for n in range(1, layout.size(axis) + 1) if layout.size(axis) % n == 0] for axis in AXES]
    best = Layout()
    for each in product(*sizes):
        found = layout.with_(**dict(zip(AXES, each, strict=True)))
        found = found if found.pp > 1 else found.with_(interleave=1)
        if found.devices > devices or (rows and rows % (found.size(*ROWS) * found.micro)):
            continue
        key = lambda at: (at.devices, at.pp, at.tp, at.cp, at.ep, at.fsdp)  # noqa: E731
        best = max(best, found, key=key)
    return best


@dataclass
class Beat:
    """What is known of a process: when it was heard last, where its main thread stands, whether it waits for others there."""

    heard: float
    place: str = "its start"
    waits: bool = False


def culprits(beats: Sequence[Beat], now: float, silent_s: float) -> tuple[list[int], str]:
    """Return which of processes that do not go on is to blame, all of them when nothing tells them apart, and why.

    Args:
        beats: one for each process.
        now: time.
        silent_s: a process that was not heard for longer does not run.
    """
    numbers = range(len(beats))
    if silent := [n for n in numbers if now - beats[n].heard > silent_s]:
        return silent, "it does not answer"
    if 0 < len(busy := [n for n in numbers if not beats[n].waits]) < len(beats):
        return busy, f"it stands at {beats[busy[0]].place}, the others wait"
    often, count = Counter(beat.place for beat in beats).most_common(1)[0]
    if len(beats) > count > len(beats) / 2:
        odd = [n for n in numbers if beats[n].place != often]
        return odd, f"it stands at {beats[odd[0]].place}, the others at {often}"
    return list(numbers), "; ".join(f"process {n} stands at {beats[n].place}" for n in numbers)


class _Group:
    """Processes that live and die together."""

    def __init__(self, task: dict[str, Any], processes: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            task = task | {"address": f"127.0.0.1:{free.getsockname()[1]}"}
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
        environment = os.environ | {"XLA_FLAGS": flags, keeper.TOKEN: task["token"]}
        self.result: Any = None
        self._lines: queue.Queue[tuple[int, bytes]] = queue.Queue()
        self._beats = [Beat(time.monotonic()) for _ in range(processes)]
        self._children = list[subprocess.Popen[bytes]]()
        for number in range(processes):
            command = [sys.executable, "-m", "gewu.train.elastic"]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            self._children.append(child)
            threading.Thread(target=self._listen, args=(number, child), daemon=True).start()
            assert child.stdin is not None
            child.stdin.write(json.dumps(task | {"number": number, "parent": os.getpid()}).encode())
            child.stdin.close()

    def _listen(self, number: int, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        with child.stdout:
            for line in child.stdout:
                self._lines.put((number, line))
        self._lines.put((number, b""))

    def watch(self, hang_timeout_s: float, event: Event, stop: Callable[[], bool]) -> str | None:
        """Take what the children report until all have ended; return who was lost and how, or None."""
        going, asked, last = len(self._children), False, time.monotonic()
        while going:
            try:
                number, line = self._lines.get(timeout=BEAT_S)
            except queue.Empty:
                number, line = -1, b"{}"
            if not line:
                going -= 1
                if self._children[number].wait():
                    return self._ended(number)
            elif number >= 0 and self._take(number, json.loads(line), event):
                last = time.monotonic()
            if not asked and (asked := stop()):
                for child in self._children:
                    child.send_signal(signal.SIGTERM)
            if going and time.monotonic() - last > hang_timeout_s:
                return self._hung(hang_timeout_s)
        return None

    def _take(self, number: int, found: dict[str, Any], event: Event) -> bool:
        """Take a line of a child; return whether it shows that work goes on."""
        beat = self._beats[number]
        beat.heard = time.monotonic()
        if "at" in found:
            beat.place, beat.waits = found["at"]
            return False
        if "error" in found:
            raise _ERRORS[found["error"]](found["text"])
        if number == 0 and "result" in found:
            self.result = found["result"]
        elif number == 0 and "event" in found:
            event(found["event"])
        return True

    def _ended(self, first: int) -> str:
        """Return who ended first: its end takes others along, who may be noticed before it."""
        time.sleep(_SETTLE_S)
        codes = {number: child.poll() for number, child in enumerate(self._children)}
        killed = [number for number, code in codes.items() if code is not None and code < 0 and code != -signal.SIGABRT]
        number = killed[0] if killed else first
        code = codes[number] or 0
        return f"process {number} was lost ({signal.Signals(-code).name if code < 0 else f'it ended with code {code}'})"

    def _hung(self, hang_timeout_s: float) -> str:
        numbers, why = culprits(self._beats, time.monotonic(), max(4 * BEAT_S, min(30.0, hang_timeout_s / 2)))
        named = "process " + " and ".join(map(str, numbers))
        text = f"{named} did not go on for {hang_timeout_s:g} s: {why}"
        if len(numbers) == len(self._beats) > 1:
            raise ResourceError(text, hint="all wait; a longer hang_timeout_s, where a step or compiling takes so long")
        return text

    def end(self) -> None:
        """End the children that are left."""
        for child in self._children:
            if child.poll() is None:
                child.kill()
        for child in self._children:
            child.wait()


def main() -> None:
    """Be one process."""
    task, asked, out, lock = json.load(sys.stdin), list[int](), os.dup(1), threading.Lock()
    os.dup2(2, 1)  # what libraries print is no report
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def say(found: dict[str, Any]) -> None:
        with lock:
            write_all(out, json.dumps(found).encode() + b"\n")

    def report(event: dict[str, Any]) -> bool:
        say({"event": event})
        return bool(asked)

    threading.Thread(target=_beat, args=(say, threading.main_thread().ident, task["parent"]), daemon=True).start()
    try:
        say({"result": _work(task, report)})
    except GewuError as error:
        say({"error": next(name for name, kind in _ERRORS.items() if isinstance(error, kind)), "text": str(error)})
    except Exception as error:
        traceback.print_exc()
        if type(error).__module__.partition(".")[0] in ("jax", "jaxlib"):  # most likely another process was lost
            os._exit(1)
        say({"error": "GewuError", "text": f"internal error: {type(error).__name__}: {error}"})
        os._exit(5)  # nobody answers the farewell of jax.distributed any more


def _work(task: dict[str, Any], report: Callable[[dict[str, Any]], bool]) -> Any:
    """Join the others and do the work."""
    import jax

    number, count = task["number"], task["processes"]
    if hasattr(os, "sched_getaffinity"):  # each on processors of its own, as far as there are
        cores = sorted(os.sched_getaffinity(0))
        share = cores[number * len(cores) // count : (number + 1) * len(cores) // count]
        os.sched_setaffinity(0, share or {cores[number % len(cores)]})
    keeper.started[:] = task["peers"]
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            task["address"], count, number, [number], initialization_timeout=120, cluster_detection_method="deactivate"
        )
    module, _, name = task["target"].partition(":")
    result = getattr(importlib.import_module(module), name)(task["arguments"], report)
    if count > 1:
        jax.distributed.shutdown()
    return result


def _beat(say: Callable[[dict[str, Any]], None], main: int, parent: int) -> None:
    while os.getppid() == parent:
        try:
            say({"at": _place(main)})
        except OSError:
            break
        time.sleep(BEAT_S)
    os._exit(1)  # who started this is gone


def _place(thread: int) -> tuple[str, bool]:
    """Return where a thread stands outside of libraries, and whether it is inside JAX there."""
    frame, waits = sys._current_frames().get(thread), False
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if "site-packages" not in file.parts and not file.is_relative_to(sysconfig.get_paths()["stdlib"]) and file.suffix:
            return f"{file.name}:{frame.f_lineno} ({frame.f_code.co_name})", waits
        waits = waits or not {"jax", "jaxlib"}.isdisjoint(file.parts)
        frame = frame.f_back
    return "its end", waits


if __name__ == "__main__":
    main()
