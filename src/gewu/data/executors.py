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
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from typing import Any, Final

from gewu.core.errors import InputError, ResourceError
from gewu.core.machine import set_threads
from gewu.data.fields import extra

EXECUTORS: Final = ("serial", "processes", "dask")
_LOST: Final = ("BrokenProcessPool", "KilledWorker")


def spread(
    work: Callable[[Any], Any],
    tasks: Sequence[Any],
    executor: str = "serial",
    workers: int = 1,
    stop: Callable[[], bool] = bool,
    address: Any = "",
) -> Iterator[Any]:
    """Yield `work(task)` for each task, in the order in which they end.

    Args:
        work: the function; for processes and Dask it and the tasks can be pickled.
        tasks: with a `name` each; handed out in this order: put the longest first.
        executor: "serial", "processes" or "dask".
        workers: number of processes; of the local cluster for Dask without an address.
        stop: asked before tasks are handed out; True means hand out no more.
        address: for Dask: a scheduler's address ("tcp://host:8786"), its scheduler file, or a `distributed.Client`.

    Raises:
        InputError: no such executor.
        ResourceError: a worker was killed twice at the same task, which is named.
        KeyboardInterrupt: after Ctrl-C, when the tasks under way have ended.
    """
    if executor not in EXECUTORS or workers < 1:
        allowed = f"at least 1 worker on {', '.join(EXECUTORS)}"
        raise InputError("no such executor", key="executor", value=f"{workers} on {executor}", allowed=allowed)
    if executor == "serial":
        for task in tasks:
            if stop():
                return
            yield work(task)
        return
    queue, again = deque(tasks), set[str]()
    failure: BaseException | None = None
    under_way: dict[Future[Any], tuple[Executor, Any]] = {}
    with contextlib.ExitStack() as stack:
        hire, most = _dask(stack, workers, address) if executor == "dask" else (lambda: _process(stack), workers)
        idle = [hire() for _ in range(min(most, len(tasks)))]
        while queue or under_way:
            if failure or stop():
                queue.clear()
            while queue and idle:
                slot, task = idle.pop(), queue.popleft()
                under_way[slot.submit(_one_thread, work, task)] = slot, task
            try:
                ended = wait(under_way, return_when=FIRST_COMPLETED).done
            except KeyboardInterrupt as interrupt:
                failure, ended = interrupt, set()
            for future in ended:
                slot, task = under_way.pop(future)
                error = future.exception()
                lost = type(error).__name__ in _LOST
                idle.append(hire() if lost else slot)
                if error is None:
                    yield future.result()
                elif lost and task.name not in again:
                    again.add(task.name)
                    queue.appendleft(task)
                elif lost:
                    what = "the worker of this piece was killed twice"
                    failure = failure or ResourceError(
                        what, value=task.name, hint="out of memory? All others can go on in one more run"
                    )
                else:
                    failure = failure or error
    if failure:
        raise failure


def _one_thread(work: Callable[[Any], Any], task: Any) -> Any:
    set_threads(1)  # there are as many workers as cores
    return work(task)


def _process(stack: contextlib.ExitStack) -> Executor:
    """Return a pool of one process: when it breaks, it is known at which task."""
    context = multiprocessing.get_context("spawn")
    return stack.enter_context(ProcessPoolExecutor(1, mp_context=context, initializer=_begin))


def _begin() -> None:
    """Leave Ctrl-C, which reaches all processes, to the parent, and end with it: nobody else would know what this one wrote."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _dask(stack: contextlib.ExitStack, workers: int, address: Any) -> tuple[Callable[[], Executor], int]:
    """Return what hands a task to a Dask cluster, a local one when there is no address, and how many tasks it may hold."""
    distributed = extra("distributed")
    if not address:
        options = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
        address = stack.enter_context(distributed.LocalCluster(n_workers=workers, **options))
    if not isinstance(address, distributed.Client):
        where = "scheduler_file" if str(address).endswith(".json") else "address"
        address = stack.enter_context(distributed.Client(**{where: address}))
    executor = address.get_executor(pure=False)
    return lambda: executor, 2 * sum(address.ncores().values())  # one in hand for each: none waits for the scheduler
