"""From a scientific file to a job: `gewu run silicon.cif` writes `silicon.toml`, which the user may then edit."""

from __future__ import annotations

import os
from pathlib import Path

from gewu.core import schema
from gewu.core.errors import InputError
from gewu.core.files import write_atomic
from gewu.jobs.engines import engine_names, load_engine
from gewu.jobs.job import Job, JobOptions


def job_from(path: Path) -> tuple[Job, str]:
    """Make a job from a file that an engine recognises, and write it as `<stem>.toml` into the working directory.

    A job file of that name that uses this very file is taken as it is; any other is left alone and refused.

    Returns:
        The job, and a line that says what was done.

    Raises:
        InputError: the file does not exist, no engine recognises it, or another job stands in the way.
    """
    if not path.is_file():
        raise InputError("there is no such file", file=path)
    target = Path(f"{path.stem}.toml")
    if target.exists():
        job = Job.load(target)
        if os.path.abspath(path) not in job.inputs:
            raise InputError(f"does not use {path}", file=target, hint=f"move it away, or run {target} itself")
        return job, f"{target} exists already and uses {path}: running it as it stands"
    for name in engine_names():
        engine = load_engine(name)
        table = engine.recognise(path) if engine.recognise else None
        if table is not None:
            Job.from_table({name: table}, base=Path.cwd(), name=path.stem, file=path)
            config = schema.parse(engine.config, table, section=name, file=path)
            text = schema.to_toml(JobOptions(title=path.stem), "job") + "\n" + schema.to_toml(config, name)
            write_atomic(target, text.encode())
            return Job.load(target), f"wrote the job {target} for {path}; edit it and run it again as you like"
    raise InputError("no engine recognises this file", file=path, hint="write a job file (TOML); `gewu list` names the engines")
