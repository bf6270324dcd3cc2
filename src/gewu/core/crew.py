"""Apply one function to many tasks: in this process, on processes of this machine, or on Dask workers anywhere.

Answers come in the order in which the tasks end, so what is computed must not depend on it. A task is the unit of restart: after
`stop()`, Ctrl-C or an exception no more are handed out, and those under way end. A task whose worker was killed (out of memory,
for one) is tried once more.

The processes are fresh interpreters ("spawn"): a fork would copy the threads of Numba and BLAS in mid-air. So a program needs the
usual `if __name__ == "__main__":`. Each computes with one thread, and ends when its parent is gone. Dask workers elsewhere end
their task when the caller was killed: wait for them before the next run.

Dask on a Slurm centre, in a folder that all nodes see:

    sbatch --ntasks=1 --mem=4G --time=12:00:00 --wrap "dask scheduler --scheduler-file dask.json"
    sbatch --ntasks=64 --cpus-per-task=1 --mem-per-cpu=4G --time=12:00:00 --wrap \\
      "srun dask worker --scheduler-file dask.json --nthreads 1 --memory-limit 4GB --no-dashboard --death-timeout 600"

and in the program `pipeline.run(executor="dask", address="dask.json")`.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from functools import cached_property
from typing import Any, Final

from gewu.core.errors import InputError, ResourceError
from gewu.core.machine import extra, set_threads
from gewu.core.workers import follow_parent

EXECUTORS: Final = ("serial", "processes", "dask")
_LOST: Final = ("BrokenProcessPool", "KilledWorker")


class Crew:
    """Workers, started when they are first needed; `close` sends them home.

    Args:
        executor: "serial", "processes" or "dask".
        workers: number of processes; of the local cluster for Dask without an address.
        address: for Dask: a scheduler's address ("tcp://host:8786"), its scheduler file, or a `distributed.Client`.

    Raises:
        InputError: no such executor.
    """

    def __init__(self, executor: str = "serial", workers: int = 1, address: Any = "") -> None:
        if executor not in EXECUTORS or workers < 1:
            allowed = f"at least 1 worker on {', '.join(EXECUTORS)}"
            raise InputError("no such executor", key="executor", value=f"{workers} on {executor}", allowed=allowed)
        self.executor, self._workers, self._address = executor, workers, address
        self._stack, self._idle = contextlib.ExitStack(), list[Executor]()

    def spread(self, work: Callable[[Any], Any], tasks: Sequence[Any], stop: Callable[[], bool]) -> Iterator[Any]:
        """Yield `work(task)` for each task, in the order in which they end.

        Args:
            work: the function; for processes and Dask it and the tasks can be pickled.
            tasks: with a `name` each; handed out in this order: put the longest first.
            stop: asked before tasks are handed out; True means hand out no more.

        Raises:
            ResourceError: a worker was killed twice at the same task, which is named.
            KeyboardInterrupt: after Ctrl-C, when the tasks under way have ended.
        """
        if self.executor == "serial":
            yield from (work(task) for task in itertools.takewhile(lambda task: not stop(), tasks))
            return
        queue, again = deque(tasks), set[str]()
        failure: BaseException | None = None
        under_way: dict[Future[Any], tuple[Executor, Any]] = {}
        while queue or under_way:
            if failure or stop():
                queue.clear()
            while queue and len(under_way) < self._most:
                slot, task = self._idle.pop() if self._idle else self._hire(), queue.popleft()
                under_way[slot.submit(_one_thread, work, task)] = slot, task
            try:
                ended = wait(under_way, return_when=FIRST_COMPLETED).done
            except KeyboardInterrupt as interrupt:
                failure, ended = interrupt, set()
            for future in ended:
                slot, task = under_way.pop(future)
                error = future.exception()
                lost = type(error).__name__ in _LOST
                if not lost:
                    self._idle.append(slot)
                if error is None:
                    yield future.result()
                elif lost and task.name not in again:
                    again.add(task.name)
                    queue.appendleft(task)
                elif failure is None:
                    killed = ResourceError("the worker of this piece was killed twice", value=task.name, hint="out of memory?")
                    failure = killed if lost else error
        if failure:
            raise failure

    def _hire(self) -> Executor:
        """Return a pool of one process, so that it is known at which task it broke; or what hands a task to Dask."""
        if self.executor == "dask":
            executor: Executor = self._client.get_executor(pure=False)
            return executor
        context = multiprocessing.get_context("spawn")
        return self._stack.enter_context(ProcessPoolExecutor(1, mp_context=context, initializer=follow_parent))

    @cached_property
    def _most(self) -> int:
        """Tasks that may be under way: for Dask one in hand for each worker, so that none waits for the scheduler."""
        return self._workers if self.executor == "processes" else 2 * sum(self._client.ncores().values())

    @cached_property
    def _client(self) -> Any:
        distributed, address = extra("distributed"), self._address
        if not address:
            options = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
            address = self._stack.enter_context(distributed.LocalCluster(n_workers=self._workers, **options))
        if isinstance(address, distributed.Client):
            return address
        where = "scheduler_file" if str(address).endswith(".json") else "address"
        return self._stack.enter_context(distributed.Client(**{where: address}))

    def close(self) -> None:
        """End the workers, when their tasks have ended."""
        self._stack.close()


def _one_thread(work: Callable[[Any], Any], task: Any) -> Any:
    set_threads(1)  # there are as many workers as cores
    return work(task)
