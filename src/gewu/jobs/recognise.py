"""From a file or folder to a job: `gewu run silicon.cif` writes `silicon.toml`, which the user may then edit."""

from __future__ import annotations

import os
from pathlib import Path

from gewu.core import schema
from gewu.core.errors import InputError
from gewu.core.files import write_atomic
from gewu.jobs.engines import engine_names, load_engine
from gewu.jobs.job import Job, JobOptions


def job_from(path: Path) -> tuple[Job, str]:
    """Make a job from a file or folder that an engine recognises, and write it as `<stem>.toml` into the working directory.

    A job file of that name that uses this very file is taken as it is; any other is left alone and refused. Folders are offered
    to the engines that have a key for a folder.

    Returns:
        The job, and a line that says what was done.

    Raises:
        InputError: the file does not exist, no engine recognises it, or another job stands in the way.
    """
    if not (path.is_file() or path.is_dir()):
        raise InputError("there is no such file or folder", file=path)
    name = path.stem if path.is_file() else Path(os.path.abspath(path)).name or "root"
    target = Path(f"{name}.toml")
    if target.exists():
        job = Job.load(target)
        if os.path.abspath(path) not in job.inputs:
            raise InputError(f"does not use {path}", file=target, hint=f"move it away, or run {target} itself")
        return job, f"{target} exists already and uses {path}: running it as it stands"
    for engine in map(load_engine, engine_names()):
        if engine.recognise is None or not (path.is_file() or any(info.folder for info in schema.fields_of(engine.config))):
            continue
        table = engine.recognise(path)
        if table is not None:
            Job.from_table({engine.name: table}, base=Path.cwd(), name=name, file=path)
            config = schema.parse(engine.config, table, section=engine.name, file=path)
            text = schema.to_toml(JobOptions(title=name), "job") + "\n" + schema.to_toml(config, engine.name)
            write_atomic(target, text.encode())
            kind = f" as [{engine.name}] format = {table['format']!r}" if "format" in table else ""
            return Job.load(target), f"wrote the job {target} for {path}{kind}; edit it and run it again as you like"
    what = "folder" if path.is_dir() else "file"
    raise InputError(
        f"no engine recognises this {what}", file=path, hint="write a job file (TOML); `gewu list` names the engines"
    )
