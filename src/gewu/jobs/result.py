"""Read a result directory back, verifying that it is what was written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError, StoreError
from gewu.core.files import read_capped, sha256_of
from gewu.jobs.netcdf import Arrays
from gewu.jobs.record import ARRAYS, EVENTS, MANIFEST, NUMBERS, Number

LIMIT_BYTES = 100_000_000
COMPLETE = ("finished", "not-converged")


def read_json(path: Path) -> Any:
    """Read a JSON file of a result.

    Raises:
        StoreError: it is absent, too large, or not JSON.
    """
    try:
        return json.loads(read_capped(path, LIMIT_BYTES))
    except InputError as error:
        raise StoreError(error.message, file=path) from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"is not JSON: {error}", file=path) from None


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read manifest.json of a result.

    Raises:
        StoreError: it is absent or damaged.
    """
    manifest = read_json(directory / MANIFEST)
    shape = {"state": str, "job_id": str, "files": dict, "timings_s": dict}
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(key), kind) for key, kind in shape.items()):
        raise StoreError("is not a manifest of gewu", file=directory / MANIFEST)
    return manifest


class Result:
    """A result directory: numbers, arrays, events and where they came from.

    Example:
        >>> result = gewu.load("silicon.result")        # doctest: +SKIP
        >>> result["energy"], result.arrays["bands_ev"].shape      # doctest: +SKIP
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Open a result directory and compare every file with its checksum.

        Raises:
            InputError: there is no result at `path`.
            StoreError: a file is absent or damaged.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise InputError("is not a result directory of gewu", file=path, hint="give the *.result directory that a run made")
        result = cls(path, read_manifest(path))
        result.verify()
        return result

    def verify(self) -> None:
        """Compare every file with the checksum in the manifest.

        Raises:
            StoreError: a file is absent or differs.
        """
        for name, expected in self.manifest["files"].items():
            if Path(name).name != name:
                raise StoreError("the manifest names a file outside its directory", file=self.path / MANIFEST, value=name)
            if sha256_of(self.path / name) != expected:
                raise StoreError("does not match its checksum in manifest.json", file=self.path / name)

    @property
    def state(self) -> str:
        """How the run stands: running, stopped, finished, not-converged or failed."""
        return str(self.manifest["state"])

    @property
    def converged(self) -> bool:
        """True when the run finished and no number is flagged as not converged."""
        return self.state == "finished" and all(number.converged for number in self.numbers.values())

    @cached_property
    def numbers(self) -> dict[str, Number]:
        """The headline numbers by name; empty while the run has not ended."""
        if NUMBERS not in self.manifest["files"]:
            return {}
        try:
            return {name: Number(**entry) for name, entry in read_json(self.path / NUMBERS).items()}
        except (AttributeError, TypeError) as error:
            raise StoreError(f"is not a table of numbers: {error}", file=self.path / NUMBERS) from None

    @cached_property
    def arrays(self) -> Arrays:
        """The arrays by name, each read when asked for."""
        return Arrays(self.path / ARRAYS)

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield what happened, in order; a last line that a kill cut short is left out."""
        with open(self.path / EVENTS, "rb") as stream:
            for line in stream:
                if line.endswith(b"\n"):
                    yield json.loads(line)

    def __getitem__(self, name: str) -> float | NDArray[np.generic]:
        """Return the number `name`, with or without its unit suffix, or else the array `name`."""
        if name in self.numbers:
            return self.numbers[name].value
        fitting = [
            full
            for full, number in self.numbers.items()
            if full.startswith(f"{name}_") and full[len(name) + 1 :].replace("_", "") == unit_suffix(number.unit)
        ]
        if len(fitting) == 1:
            return self.numbers[fitting[0]].value
        if name in self.arrays:
            return self.arrays[name]
        several = f"several numbers fit: {', '.join(fitting)}; " if fitting else ""
        raise KeyError(f"{name}: {several}this result has {', '.join([*self.numbers, *self.arrays]) or 'nothing yet'}")

    def __repr__(self) -> str:
        return f"Result({str(self.path)!r}, {self.state}, {len(self.numbers)} numbers, {len(self.arrays)} arrays)"


def unit_suffix(unit: str) -> str:
    """Return the suffix that names of quantities in this unit end in: "eV" → "ev".

    >>> unit_suffix("eV"), unit_suffix("1/bohr")
    ('ev', '1bohr')
    """
    return re.sub(r"[^a-z0-9]", "", unit.lower())
