"""Where a result came from: versions, commit, machine, inputs; the part of manifest.json that is known when a run starts."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gewu import __version__
from gewu.core import machine
from gewu.core.ranks import Ranks
from gewu.jobs.job import Job

PACKAGES = ("numpy", "scipy", "numba", "jax", "h5py", "h5netcdf", "spglib", "seekpath", "matplotlib", "pyfftw", "cupy", "mpi4py")


def opening_manifest(job: Job, directory: Path, ranks: Ranks, threads: int) -> dict[str, Any]:
    """Return the manifest of a run that starts: state "running", no files yet."""
    root = os.path.realpath(directory)
    return {
        "format": 1,
        "state": "running",
        "exit_code": None,
        "reason": None,
        "name": job.name,
        "title": job.title,
        "engine": job.engine.name,
        "job_id": job.identity,
        "started": now(),
        "ended": None,
        "versions": versions(),
        "commit": commit(),
        "host": machine.describe(),
        "device": job.options.device,
        "ranks": ranks.size,
        "threads": threads,
        "seed": getattr(job.config, "seed", None),
        "inputs": {os.path.relpath(os.path.realpath(path), root): digest for path, digest in job.inputs.items()},
        "timings_s": {},
        "files": {},
    }


def now() -> str:
    """Return the time, UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of gewu, Python and the packages that compute, without importing them."""
    found = {"gewu": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(package: Path = Path(__file__).parents[1]) -> str | None:
    """Return the git commit of the source tree that holds `package`, or None when it is installed from a wheel."""
    git = package.parent.parent / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head if re.fullmatch(r"[0-9a-f]{40}", head) else None
        name = head.removeprefix("ref: ")
        if (git / name).is_file():
            return (git / name).read_text().strip()
        packed = re.search(rf"^([0-9a-f]{{40}}) {re.escape(name)}$", (git / "packed-refs").read_text(), re.MULTILINE)
        return packed[1] if packed else None
    except OSError:
        return None
