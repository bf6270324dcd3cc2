"""Workers that do one kind of work for one consumer: threads, processes or nobody.

The consumer waits for the value of each task, in any order it likes. Nothing outlives it: tasks not begun are dropped when the
pool is closed or forgotten, worker processes leave when their program is gone, be it by `kill -9`, and one that dies is an
error, not a silence. Processes are spawned (a forked one inherits locks that other threads hold), so a program needs
`if __name__ == "__main__"`; the work is sent to each once, tasks and values go through pipes. For a value of 5 MB a pipe takes
10 ms and shared memory 6, for one of 50 kB 0.2 and 0.4 (two shared x86-64 cores): little beside what is worth a process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from gewu.core.errors import GewuError, InputError, ResourceError


class Pool:
    """Threads, processes or nobody, who do one kind of work; they start with the first task, again after `close`."""

    def __init__(self, kind: str, workers: int, work: Callable[..., Any]) -> None:
        self._kind, self._workers, self._work = kind, workers, work
        self._executor: Executor | None = None

    def submit(self, *task: Any) -> Callable[[], Any]:
        """Begin a task; call what is returned to wait for its value, or its exception."""
        if not self._workers:
            return partial(self._work, *task)
        if self._kind == "threads":
            self._executor = self._executor or ThreadPoolExecutor(self._workers, "gewu-worker")
            return self._executor.submit(self._work, *task).result
        context = multiprocessing.get_context("spawn")
        self._executor = self._executor or ProcessPoolExecutor(self._workers, context, _begin, (self._work,))
        try:
            return partial(_result, self._executor.submit(_proceed, *task))
        except BrokenProcessPool as error:
            raise _died() from error
        except (AttributeError, TypeError) as error:
            hint = "define functions at the top of a module, or use threads"
            raise InputError(f"cannot be sent to another process: {error}", hint=hint) from error

    def close(self, wait: bool = True) -> None:
        """Stop: tasks not begun are dropped, those under way are waited for."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait, cancel_futures=True)

    def __del__(self) -> None:
        self.close(wait=False)  # perhaps called by one of its own threads


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise _died() from error


def _died() -> ResourceError:
    hint = "it was killed (out of memory?), or the program lacks `if __name__ == '__main__'`"
    return ResourceError("a worker process died", hint=hint)


_works: list[Callable[..., Any]] = []  # in a worker process, what it does


def follow_parent() -> None:
    """In a new process, leave Ctrl-C to the parent, and leave when it is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()
    if parent is not None:  # None in the worker of somebody else's cluster
        threading.Thread(target=lambda: os._exit(parent.join() or 1), daemon=True).start()


def _begin(work: Callable[..., Any]) -> None:
    _works.append(work)
    follow_parent()


def _proceed(*task: Any) -> Any:
    try:
        return _works[0](*task)
    except Exception as error:
        if isinstance(error, GewuError) or type(error).__module__ == "builtins":
            raise
        raise GewuError(f"{type(error).__name__}: {error}") from error  # a class of the user's may not survive the journey
