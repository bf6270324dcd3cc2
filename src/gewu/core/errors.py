"""The one error tree of gewu.

Every refusal says what is wrong, where (file, line, key), which value was found, what is allowed and what to do.
The class decides the exit code of the command line: 2 input, 3 not converged, 4 resources, 5 internal.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class GewuError(Exception):
    """Root of every error that gewu raises on purpose.

    Args:
        message: what is wrong, one sentence without a full stop.
        file: the file in which it is wrong.
        line: 1-based line in that file.
        key: the job key or header field that holds the value.
        value: the offending value (shown shortened).
        allowed: what would have been accepted.
        hint: what the user can do.
    """

    exit_code = 5

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        key: str | None = None,
        value: Any = None,
        allowed: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.message, self.file, self.line, self.key = message, file, line, key
        self.value, self.allowed, self.hint = value, allowed, hint
        super().__init__(message)

    def __str__(self) -> str:
        where = "" if self.file is None else str(self.file) + (f":{self.line}" if self.line is not None else "") + ": "
        text = where + (f"{self.key}: " if self.key else "") + self.message
        if self.value is not None:
            shown = repr(self.value)
            text += f" (got {shown if len(shown) <= 80 else shown[:77] + '...'})"
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        return text + (f"; {self.hint}" if self.hint else "")


class InputError(GewuError):
    """The user's input cannot be computed: refused before any work is done."""

    exit_code = 2


class ConvergenceError(GewuError):
    """An iteration did not reach its tolerance, or produced a number that is not finite."""

    exit_code = 3


class ResourceError(GewuError):
    """Memory, disk, a device or a lock that the work needs cannot be had."""

    exit_code = 4


class StoreError(GewuError):
    """A stored file is absent, incomplete or does not match its checksum."""

    exit_code = 4


class CentreError(GewuError):
    """A computing centre or its batch system refused or lost the work."""

    exit_code = 4


def did_you_mean(name: Any, names: Iterable[Any]) -> str | None:
    """Return the hint that offers the nearest of the names, or None when none is near."""
    near = difflib.get_close_matches(str(name), [str(known) for known in names], n=1)
    return f"did you mean {near[0]!r}?" if near else None
