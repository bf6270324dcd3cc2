"""gewu: simulate, and learn from what was simulated.

>>> import gewu
>>> result = gewu.run("silicon.toml")     # doctest: +SKIP
>>> result["energy"]                      # doctest: +SKIP
-7.92

Everything heavy is imported when it is first used, so that `gewu --help` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from gewu.jobs.job import Job as Job
    from gewu.jobs.result import Result as Result

__version__ = "0.1.0"
__all__ = ["Job", "Result", "__version__", "load", "run"]


def run(
    job: str | Path | dict[str, Any] | Job, *, out: str | Path | None = None, fresh: bool = False, quiet: bool = False
) -> Result:
    """Run a job and return its result.

    Args:
        job: path of a job file, the same as nested dictionaries, or a checked `Job`.
        out: result directory; by default `<job name>.result` here, or the next free name.
        fresh: start over instead of resuming an unfinished run.
        quiet: do not show progress on stderr.

    Returns:
        The result; `result.converged` and `result.state` tell how it ended.

    Raises:
        GewuError: the input is wrong (InputError), an iteration did not converge (ConvergenceError), or a resource is missing.
            What was computed before stands in the result directory.

    Example:
        >>> gewu.run({"dft": {"structure": "si.cif"}})["gap"]      # doctest: +SKIP
    """
    from gewu.jobs.job import Job
    from gewu.jobs.run import run_job
    from gewu.jobs.talk import Talker

    if isinstance(job, dict):
        job = Job.from_table(job)
    elif not isinstance(job, Job):
        job = Job.load(job)
    talker = Talker(quiet=quiet)
    outcome = run_job(job, out=out, fresh=fresh, talker=talker)
    talker(outcome.event())
    if outcome.error is not None:
        raise outcome.error
    assert outcome.path is not None
    return load(outcome.path)


def load(path: str | Path) -> Result:
    """Open a result directory, verifying its checksums.

    Raises:
        InputError: there is no result at `path`.
        StoreError: a file is absent or damaged.
    """
    from gewu.jobs.result import Result

    return Result.load(path)


def __getattr__(name: str) -> Any:
    if name == "Job":
        from gewu.jobs.job import Job

        return Job
    if name == "Result":
        from gewu.jobs.result import Result

        return Result
    raise AttributeError(f"module 'gewu' has no attribute {name!r}")
