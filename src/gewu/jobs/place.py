"""Choose, lock and clear the directory of a result.

| the directory holds            | default name          | `--out DIR`   | with `--fresh`     |
|--------------------------------|-----------------------|---------------|--------------------|
| nothing                        | used                  | used          | used               |
| an unfinished run of this job  | resumed               | resumed       | cleared, restarted |
| a failed run, no checkpoint    | cleared, restarted    | the same      | the same           |
| an unfinished run of another   | next: `<stem>-2`      | refused       | cleared, restarted |
| a finished run                 | next: `<stem>-2`      | refused       | cleared, restarted |
| other files                    | next: `<stem>-2`      | refused       | refused            |
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from gewu.core.errors import InputError, ResourceError, StoreError
from gewu.core.files import TEMPORARY_SUFFIX, DirectoryLock, sweep_temporaries
from gewu.jobs.record import ARRAYS, CHECKPOINTS, EVENTS, JOB, MANIFEST, NUMBERS, REPORT
from gewu.jobs.result import COMPLETE, read_manifest


@dataclass(frozen=True)
class Place:
    """A result directory and what to do there: "use" it as it is, "resume", or "restart" after clearing it."""

    path: Path
    action: str


def claim(name: str, job_id: str, *, out: str | Path | None, fresh: bool) -> tuple[Place, DirectoryLock]:
    """Choose the directory for a run, make it, lock it and clear what an earlier run must not leave behind.

    Args:
        name: stem of the job.
        job_id: identity of the job: only the same job resumes a run.
        out: the directory to use; None for `<name>.result` or the next free `<name>-2.result`.
        fresh: start over instead of resuming.

    Returns:
        The place, and its lock, entered.

    Raises:
        InputError: the directory given must not be used.
        ResourceError: another run holds it, or it cannot be made.
    """
    while True:
        place = choose(name, job_id, out=out, fresh=fresh)
        try:
            (place.path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"the directory cannot be made: {error.strerror}", file=place.path) from error
        lock = DirectoryLock(place.path)
        lock.__enter__()
        if place == choose(name, job_id, out=out, fresh=fresh):
            break
        lock.__exit__(None, None, None)  # another run was here between the look and the lock: look again
    if place.action != "use":
        _clear(place.path, everything=place.action == "restart")
    for directory in (place.path, place.path / CHECKPOINTS):
        sweep_temporaries(directory)
    return place, lock


def choose(name: str, job_id: str, *, out: str | Path | None, fresh: bool) -> Place:
    """Decide by the table above, touching nothing."""
    if out is not None:
        path = Path(out)
        action = _action(path, job_id, fresh)
        if action is None:
            state, _ = _state(path)
            what = {"foreign": "holds files that are not a result", "unreadable": "cannot be read as a directory"}
            hint = "choose another --out" + ("" if state in what else ", or --fresh to replace it")
            raise InputError(what.get(state, "holds another result"), file=path, hint=hint)
        return Place(path, action)
    for number in count(1):
        path = Path(f"{name}.result" if number == 1 else f"{name}-{number}.result")
        action = _action(path, job_id, fresh)
        if action is not None:
            return Place(path, action)
    raise AssertionError("unreachable")


def _action(path: Path, job_id: str, fresh: bool) -> str | None:
    state, owner = _state(path)
    if state == "empty":
        return "use"
    if state in ("foreign", "unreadable"):
        return None
    if fresh:
        return "restart"
    if state in COMPLETE:
        return None
    if owner == job_id:
        return "resume"
    return "restart" if state == "failed" and not (path / CHECKPOINTS / "latest.json").exists() else None


def _state(path: Path) -> tuple[str, str]:
    """Return ("empty", "foreign" or the state of the run in `path`, and the identity of its job)."""
    try:
        names = {item.name for item in path.iterdir() if not item.name.endswith(TEMPORARY_SUFFIX)}
    except FileNotFoundError:
        return "empty", ""
    except OSError:
        return "unreadable", ""
    if MANIFEST not in names:
        unused = names <= {".lock", CHECKPOINTS} and not any((path / CHECKPOINTS).glob("*.ckpt"))
        return ("empty" if unused else "foreign"), ""
    try:
        manifest = read_manifest(path)
    except StoreError:
        return "foreign", ""
    return str(manifest["state"]), str(manifest["job_id"])


def _clear(path: Path, *, everything: bool) -> None:
    """Remove what the end of a run writes; with `everything` also native files, events, checkpoints, and last the manifest."""
    names = [REPORT, ARRAYS, NUMBERS]
    if everything:
        for item in (path / CHECKPOINTS).iterdir():
            item.unlink(missing_ok=True)
        names = [*sorted(_native_files(path)), *names, JOB, EVENTS, MANIFEST]
    for name in names:
        (path / name).unlink(missing_ok=True)


def _native_files(path: Path) -> set[str]:
    """Return the names of the files that the events say an engine wrote: whatever else lies there is the user's."""
    names = set()
    if (path / EVENTS).is_file():
        for line in (path / EVENTS).read_bytes().splitlines():
            try:
                event = json.loads(line)
                name = event["name"] if event["event"] == "file" else ""
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(name, str) and name and Path(name).name == name and not name.startswith("."):
                names.add(name)
    return names


def discard_checkpoints(path: Path) -> None:
    """Remove the checkpoints of a run that ended: its result holds all that they held."""
    directory = path / CHECKPOINTS
    for item in directory.iterdir():
        item.unlink(missing_ok=True)
    directory.rmdir()
