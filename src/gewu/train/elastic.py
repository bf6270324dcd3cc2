"""Several processes of one machine that train together: started, watched, and started again with those left when one is lost.

The supervisor starts `python -m gewu.train.elastic` N times with a task on standard input; each child joins `jax.distributed` and
calls the target. What a child reports is a line of JSON on its standard output, and a sign that it lives; the supervisor answers
nothing, but SIGTERM asks all of them to stop. When one ends without a result or is silent for too long, it is named, the others
are ended, and N - 1 begin anew: the target finds the last checkpoint by itself.
"""

from __future__ import annotations

import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from gewu.core.errors import ConvergenceError, GewuError, InputError, ResourceError, StoreError
from gewu.core.files import write_all

ERRORS = {kind.__name__: kind for kind in (InputError, ConvergenceError, ResourceError, StoreError, GewuError)}


def run(
    target: str, arguments: dict[str, Any], processes: int, *, hang_timeout_s: float, event: Callable[[dict[str, Any]], None],
    stop: Callable[[], bool], warn: Callable[[str], None],
) -> Any:  # fmt: skip
    """Call a function in several processes and return what that of process 0 returned.

    Args:
        target: "module:function", called with the arguments and a function that reports events.
        arguments: JSON can hold them.
        processes: how many at first.
        hang_timeout_s: silence of all processes after which the one that was silent longest counts as hung.
        event: takes what process 0 reports.
        stop: whether they are to stop.
        warn: takes a text about a process that was lost.

    Raises:
        ResourceError: the last process was lost.
        GewuError: what a process raised.
    """
    while True:
        group = _Group(target, arguments, processes)
        try:
            lost = group.watch(hang_timeout_s, event, stop)
        finally:
            group.end()
        if lost is None:
            return group.result
        processes -= 1
        if not processes:
            raise ResourceError(lost, hint="run the same job again to go on from the last checkpoint")
        warn(f"{lost}; {processes} go on from the last checkpoint")


class _Group:
    def __init__(self, target: str, arguments: dict[str, Any], processes: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.result: Any = None
        self.children, self.heard = [], [time.monotonic()] * processes
        for number in range(processes):
            task = {"target": target, "arguments": arguments, "address": address, "processes": processes, "number": number}
            command = [sys.executable, "-m", "gewu.train.elastic"]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert child.stdin is not None
            child.stdin.write(json.dumps(task).encode())
            child.stdin.close()
            self.children.append(child)

    def watch(self, silence_s: float, event: Callable[[dict[str, Any]], None], stop: Callable[[], bool]) -> str | None:
        """Read what the children report until all have ended; return who was lost, or None."""
        waiting, asked = selectors.DefaultSelector(), False
        for number, child in enumerate(self.children):
            waiting.register(child.stdout, selectors.EVENT_READ, number)  # type: ignore[arg-type]
        while waiting.get_map():
            for key, _ in waiting.select(0.2):
                line = key.fileobj.readline()  # type: ignore[union-attr]
                self.heard[key.data] = time.monotonic()
                if line:
                    self._take(key.data, line, event)
                    continue
                waiting.unregister(key.fileobj)
                code = self.children[key.data].wait()
                if code:
                    return f"process {key.data} ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}"
            if not asked and stop():
                asked = True
                for child in self.children:
                    child.send_signal(signal.SIGTERM)
            if time.monotonic() - max(self.heard) > silence_s:
                return f"process {self.heard.index(min(self.heard))} hangs: nothing was heard for {silence_s:g} s"
        return None

    def _take(self, number: int, line: bytes, event: Callable[[dict[str, Any]], None]) -> None:
        found = json.loads(line)
        if "error" in found:
            raise ERRORS[found["error"]](found["text"])
        if number == 0 and "result" in found:
            self.result = found["result"]
        elif number == 0:
            event(found["event"])

    def end(self) -> None:
        """End the children that are left."""
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()
            if child.stdout:
                child.stdout.close()


def main() -> None:
    """Be one process."""
    import jax

    task, asked, out = json.load(sys.stdin), list[int](), os.dup(1)
    os.dup2(2, 1)  # what libraries print is no report
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def say(found: dict[str, Any]) -> None:
        write_all(out, json.dumps(found).encode() + b"\n")

    def report(event: dict[str, Any]) -> bool:
        say({"event": event})
        return bool(asked)

    if task["processes"] > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(task["address"], task["processes"], task["number"], initialization_timeout=120)
    module, _, name = task["target"].partition(":")
    try:
        say({"result": getattr(importlib.import_module(module), name)(task["arguments"], report)})
    except GewuError as error:
        say({"error": next(n for n, kind in ERRORS.items() if isinstance(error, kind)), "text": str(error)})
    if task["processes"] > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main()
