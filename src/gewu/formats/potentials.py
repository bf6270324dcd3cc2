"""Parameter files of three-body potentials, Tersoff and Stillinger-Weber, as LAMMPS reads them (metal units: eV and angstrom).

An entry is three element names and a fixed number of numbers, over as many lines as it likes; # begins a comment.  The first
element is the centre, the second the bond's other end, the third the atom that disturbs the bond.

    Tersoff           m gamma lambda3 c d cos_theta0 n beta lambda2 B R D lambda1 A
    Stillinger-Weber  epsilon sigma a lambda gamma cos_theta0 A B p q tol
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.formats.elements import ATOMIC_NUMBER
from gewu.formats.numbers import read_whole_text, real

LIMIT_BYTES = 10_000_000
TERSOFF = ("m", "gamma", "lambda3", "c", "d", "cos_theta0", "n", "beta", "lambda2", "B", "R", "D", "lambda1", "A")
STILLINGER_WEBER = ("epsilon", "sigma", "a", "lambda", "gamma", "cos_theta0", "A", "B", "p", "q", "tol")
_POSITIVE = ("d", "n", "beta", "R", "D", "sigma", "a")


@dataclass(frozen=True, eq=False)
class Triplets:
    """Parameters of a three-body potential: names of the columns, and for each (centre, bonded, third) element the numbers.

    Args:
        columns: `TERSOFF` or `STILLINGER_WEBER`.
        entries: numbers in eV and angstrom.
        source: where they come from.
    """

    columns: tuple[str, ...]
    entries: dict[tuple[str, str, str], tuple[float, ...]]
    source: str = ""

    def table(self, elements: Sequence[str]) -> NDArray[np.float64]:
        """Return the numbers of every triplet of `elements` as (e, e, e, columns).

        Raises:
            InputError: a triplet is missing.
        """
        e = len(elements)
        out = np.zeros((e, e, e, len(self.columns)))
        for at in np.ndindex(e, e, e):
            key = (elements[at[0]], elements[at[1]], elements[at[2]])
            if key not in self.entries:
                known = ", ".join(sorted({name for entry in self.entries for name in entry}))
                message = "no parameters for these three elements"
                raise InputError(message, file=self.source or None, value=" ".join(key), allowed=f"triplets of {known}")
            out[at] = self.entries[key]
        return out


def _read(path: str | Path, columns: tuple[str, ...]) -> Triplets:
    words = [
        (word, number)
        for number, row in enumerate(read_whole_text(path, LIMIT_BYTES).splitlines(), start=1)
        for word in row.partition("#")[0].split()
    ]
    size = 3 + len(columns)
    entries: dict[tuple[str, str, str], tuple[float, ...]] = {}
    for first in range(0, len(words), size):
        entry = words[first : first + size]
        line = entry[0][1]
        for name, at in entry[:3]:
            if name not in ATOMIC_NUMBER:
                raise InputError(
                    "expected a chemical symbol", file=path, line=at, value=name, hint="entries have 3 symbols first"
                )
        if len(entry) < size:
            message = f"the entry holds {max(len(entry) - 3, 0)} numbers"
            raise InputError(message, file=path, line=line, key=" ".join(w for w, _ in entry[:3]), allowed=str(len(columns)))
        key = (entry[0][0], entry[1][0], entry[2][0])
        if key in entries:
            raise InputError("these three elements have an entry already", file=path, line=line, key=" ".join(key))
        numbers = [real(word, file=path, line=at, key=name) for (word, at), name in zip(entry[3:], columns, strict=True)]
        for name, value, (_, at) in zip(columns, numbers, entry[3:], strict=True):
            if (name in _POSITIVE and value <= 0) or abs(value) > 1e12 or (name == "m" and value not in (1.0, 3.0)):
                allowed = "1 or 3" if name == "m" else "above 0" if name in _POSITIVE else "magnitude to 1e12"
                raise InputError("out of range", file=path, line=at, key=name, value=value, allowed=allowed)
        entries[key] = tuple(numbers)
    if not entries:
        raise InputError("holds no entry", file=path, allowed=" ".join(("element element element", *columns)))
    return Triplets(columns, entries, str(path))


def read_tersoff(path: str | Path) -> Triplets:
    """Read a Tersoff file.

    Raises:
        InputError: with file and line, for anything the format does not allow.
    """
    return _read(path, TERSOFF)


def read_stillinger_weber(path: str | Path) -> Triplets:
    """Read a Stillinger-Weber file.

    Raises:
        InputError: with file and line, for anything the format does not allow.
    """
    return _read(path, STILLINGER_WEBER)
