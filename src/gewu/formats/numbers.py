"""Strict reading of text files that hold numbers, and of the numbers.

Python's `float` takes "nan", "1_0", "inf" and "1e999"; a data file may not. Fortran's exponent letter D is understood, and so is
the letter that Fortran leaves out before an exponent of three digits (1.0-101).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import read_text_capped

if TYPE_CHECKING:
    from numpy.typing import NDArray

_REAL = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:(?:[eEdD]([+-]?\d{1,4}))|([+-]\d{3}))?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,15}", re.ASCII)
_REALS_ONLY = re.compile(r"[0-9eEdD+\-.\s]*", re.ASCII)
_FORTRAN = str.maketrans("dD", "ee")


def read_whole_text(path: str | Path, limit_bytes: int) -> str:
    """Read a text file whose last line is complete: without its line end the last number may have lost digits.

    Raises:
        InputError: as `read_text_capped`; also when the last line does not end.
    """
    text = read_text_capped(path, limit_bytes)
    if text and not text.endswith("\n"):
        hint = "the file may be truncated; if it is not, end it with a newline"
        raise InputError(
            "last line does not end", file=path, line=text.count("\n") + 1, value=text[-40:].rpartition("\n")[2], hint=hint
        )
    return text


def real(token: str, *, file: str | Path | None = None, line: int | None = None, key: str | None = None) -> float:
    """Return the finite number that `token` spells.

    Raises:
        InputError: when it spells none.
    """
    if len(token) <= 64 and (found := _REAL.fullmatch(token)):
        value = float(f"{found.group(1)}e{found.group(2) or found.group(3) or 0}")
        if math.isfinite(value):
            return value
    raise InputError("not a finite number", file=file, line=line, key=key, value=token)


def integer(token: str, *, file: str | Path | None = None, line: int | None = None, key: str | None = None) -> int:
    """Return the integer that `token` spells.

    Raises:
        InputError: when it spells none.
    """
    if _INTEGER.fullmatch(token):
        return int(token)
    raise InputError("not an integer", file=file, line=line, key=key, value=token)


def reals(text: str, *, file: str | Path | None = None, line: int | None = None, key: str | None = None) -> NDArray[np.float64]:
    """Return all numbers of a block of text that starts at `line`.

    Raises:
        InputError: naming the line of the first word that is not a finite number.
    """
    if _REALS_ONLY.fullmatch(text):
        try:
            values = np.array(text.translate(_FORTRAN).split(), dtype=np.float64)
            if np.isfinite(values).all():
                return values
        except ValueError:
            pass
    rows = enumerate(text.splitlines())
    numbered = [(None if line is None else line + offset, token) for offset, row in rows for token in row.split()]
    return np.array([real(token, file=file, line=at, key=key) for at, token in numbered])
