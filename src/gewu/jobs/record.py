"""What a run has recorded so far, and how it becomes files.

The record travels inside every checkpoint, so a run that resumes ends with the numbers, arrays and warnings of one that was never
interrupted. At the end it is written file by file, each atomically; `manifest.json`, with the checksums of all others,
comes last: a result whose manifest says "finished" is complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gewu.core.files import write_atomic
from gewu.jobs import netcdf
from gewu.jobs.netcdf import Variable

MANIFEST, NUMBERS, ARRAYS, REPORT, EVENTS, JOB = (
    "manifest.json",
    "numbers.json",
    "arrays.nc",
    "report.html",
    "events.jsonl",
    "job.toml",
)
CHECKPOINTS = "checkpoint"
STANDARD_FILES = (MANIFEST, NUMBERS, ARRAYS, REPORT, EVENTS, JOB)


@dataclass(frozen=True)
class Number:
    """A headline number of a result."""

    value: float
    unit: str
    converged: bool = True


@dataclass
class Record:
    """Everything an engine has said about its result, on the root rank."""

    numbers: dict[str, Number] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    cited: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    timings_s: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    sessions: int = 1
    checkpoints: int = 0

    def to_state(self) -> dict[str, Any]:
        """Return the record in the types that a checkpoint can hold."""
        state = {name: value for name, value in vars(self).items() if name not in ("numbers", "variables")}
        state["numbers"] = {name: asdict(number) for name, number in self.numbers.items()}
        state["variables"] = {
            name: {"array": v.array, "dims": list(v.dims), "units": v.units, "attributes": dict(v.attributes)}
            for name, v in self.variables.items()
        }
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Record:
        """Return the record that `to_state` described."""
        record = cls(**{name: value for name, value in state.items() if name not in ("numbers", "variables")})
        record.numbers = {name: Number(**number) for name, number in state["numbers"].items()}
        record.variables = {
            name: Variable(v["array"], tuple(v["dims"]), v["units"], v["attributes"]) for name, v in state["variables"].items()
        }
        return record


def write_json(path: Path, value: Any) -> str:
    """Write a JSON file for people and programs; return its SHA-256."""
    return write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_data(directory: Path, record: Record, *, title: str, source: str) -> dict[str, str]:
    """Write numbers.json and, when there are arrays, arrays.nc; return `{file name: sha256}`."""
    numbers = {name: asdict(number) for name, number in record.numbers.items()}
    hashes = {NUMBERS: write_json(directory / NUMBERS, numbers)}
    if record.variables:
        hashes[ARRAYS] = write_atomic(directory / ARRAYS, netcdf.encode(record.variables, title=title, source=source))
    return hashes
