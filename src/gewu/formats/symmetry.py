"""Space-group operations: written as 'x,-y,z+1/2', or found in spglib's database of the 530 settings of the 230 groups.

An operation is (R, t): x -> R x + t in fractions of the cell. A set is used only when it is a group modulo lattice translations
and each R leaves the metric tensor of the cell unchanged, so a damaged operation does not pass.
Reference: International Tables for Crystallography, volume A; Togo, Shinohara & Tanaka, Sci. Technol. Adv. Mater. Methods 4,
2384822 (2024) for spglib.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gewu.core.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rotations = NDArray[np.int64]
    Array = NDArray[np.float64]

MAX_OPERATIONS = 192
METRIC_TOLERANCE = 0.01
_TERM = re.compile(r"([+-]?)(?:(\d{1,3})/(\d{1,3})|(\d{0,3}\.\d{1,12}|\d{1,3})|([xyz]))", re.ASCII)


def _component(text: str) -> tuple[list[int], float] | None:
    """Return the row of R and the component of t that text such as "-y+1/2" spells, or None."""
    row, shift, at, first = [0, 0, 0], 0.0, 0, True
    while at < len(text):
        found = _TERM.match(text, at)
        if found is None or (not found.group(1) and not first):
            return None
        sign = -1 if found.group(1) == "-" else 1
        if found.group(5):
            row["xyz".index(found.group(5))] += sign
        elif found.group(2):
            if int(found.group(3)) == 0:
                return None
            shift += sign * int(found.group(2)) / int(found.group(3))
        else:
            shift += sign * float(found.group(4))
        at, first = found.end(), False
    snapped = round(24 * shift) / 24
    return (row, snapped if abs(snapped - shift) < 2e-3 else shift) if not first else None


def parse_operation(text: str, *, file: str | Path | None = None, line: int | None = None) -> tuple[list[list[int]], list[float]]:
    """Return rotation and translation of an operation written as 'x,-y,z+1/2'.

    Translations within 0.002 of a multiple of 1/24 are taken as that multiple (0.3333 means 1/3).

    Raises:
        InputError: when it is not three such components, or not invertible over the integers.
    """
    parts = "".join(text.lower().split()).split(",")
    found = [_component(part) for part in parts] if len(parts) == 3 and len(text) < 200 else []
    rows = [component for component in found if component is not None]
    if len(rows) != 3 or abs(round(float(np.linalg.det([row for row, _ in rows])))) != 1:
        raise InputError("not a symmetry operation", file=file, line=line, value=text, allowed="such as x,-y,z+1/2")
    return [row for row, _ in rows], [shift for _, shift in rows]


def check_group(rotations: Rotations, shifts: Array, cell: Array, file: str | Path) -> None:
    """Refuse operations that are no group, or no symmetry of the cell (rows are lattice vectors).

    Raises:
        InputError: naming the operation.
    """
    n = len(rotations)
    if not 1 <= n <= MAX_OPERATIONS:
        raise InputError("number of symmetry operations out of range", file=file, value=n, allowed=f"1 to {MAX_OPERATIONS}")
    metric = cell @ cell.T
    moved = np.einsum("nki,kl,nlj->nij", rotations, metric, rotations)
    wrong = np.abs(moved - metric).max((1, 2)) > METRIC_TOLERANCE * metric.max()
    if wrong.any():
        number = int(wrong.argmax()) + 1
        raise InputError(
            f"symmetry operation {number} does not fit the lengths and angles of the cell", file=file, key="symmetry"
        )

    def keys(r: Rotations, t: Array) -> NDArray[np.int64]:
        codes = (r.reshape(-1, 9) + 1) @ 3 ** np.arange(9)
        steps = np.round(t.reshape(-1, 3) * 120).astype(np.int64) % 120
        return np.asarray(codes * 120**3 + steps @ np.array([1, 120, 120**2]))

    known = keys(rotations, shifts)
    if len(np.unique(known)) != n:
        raise InputError("a symmetry operation stands twice", file=file, key="symmetry")
    for i in range(n):
        products = keys(rotations[i] @ rotations, shifts @ rotations[i].T + shifts[i])
        if not np.isin(products, known).all():
            raise InputError(
                f"symmetry operations are not a group: products with number {i + 1} are missing", file=file, key="symmetry"
            )


@contextmanager
def quiet_spglib() -> Iterator[None]:
    """Silence the announcement, on every call of spglib 2.7 and 2.8, of how errors will be reported in version 3."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Set OLD_ERROR_HANDLING", category=DeprecationWarning)
        yield


def _plain(text: str) -> str:
    """Return a symbol without blanks, underscores, brackets and case."""
    return re.sub(r"[\s_()]", "", text).lower()


@lru_cache(maxsize=1)
def _settings() -> list[tuple[int, int, str, frozenset[str], str]]:
    """Return (Hall number, group number, Hall symbol, Hermann-Mauguin spellings, choice) of the 530 settings."""
    import spglib

    table = []
    with quiet_spglib():
        kinds = [spglib.get_spacegroup_type(hall_number) for hall_number in range(1, 531)]
    for hall_number, kind in enumerate(kinds, start=1):
        spellings = {kind.international_short, kind.international_full, *kind.international.split("=")}
        words = kind.international_full.split()
        if words[1::2] == ["1", "1"]:  # "P 1 2_1/n 1" is mostly written P 21/n
            spellings.add(words[0] + words[2])
        names = frozenset(_plain(spelling) for spelling in spellings)
        table.append((hall_number, int(kind.number), _plain(kind.hall_symbol), names, str(kind.choice)))
    return table


def find_setting(hall: str | None, name: str | None, number: int | None, hexagonal: bool, file: str | Path) -> int:
    """Return spglib's Hall number of a setting stated by Hall symbol, Hermann-Mauguin name or group number, in this order.

    Args:
        hall: Hall symbol, or None.
        name: Hermann-Mauguin name, with ":1", ":2", ":H" or ":R" (also ICSD's trailing S, Z, H, R) for the choice.
        number: number of the group in International Tables.
        hexagonal: whether the cell is hexagonal, which tells the two settings of rhombohedral groups apart.
        file: named in errors.

    Raises:
        InputError: when nothing matches, or two origins are possible and the file does not say which.
    """
    settings = _settings()
    if hall and (found := [s for s in settings if s[2] == _plain(hall)]):
        return found[0][0]
    if hall and "(" in hall:
        raise InputError(
            "Hall symbol with a change of basis", file=file, key="space group", value=hall, hint="give the operations"
        )
    choice = ""
    found = [s for s in settings if number is None or s[1] == number]
    if name:
        base, _, choice = name.partition(":")
        matches = [s for s in found if _plain(base) in s[3]]
        tail = base.strip()[-1:]
        if not matches and tail in "SZHRszhr":
            matches = [s for s in found if _plain(base.strip()[:-1]) in s[3]]
            choice = choice or {"S": "1", "Z": "2"}.get(tail.upper(), tail)
        if not matches:
            raise InputError("space group not recognised", file=file, key="space group", value=name, hint="give its operations")
        found = matches
    elif number is None or not found:
        raise InputError(
            "no symmetry given", file=file, key="space group", value=number, hint="give operations, or group number 1"
        )
    if choice.strip():
        found = [s for s in found if s[4].upper() == choice.strip().upper()]
    elif {s[4] for s in found} == {"H", "R"}:
        found = [s for s in found if s[4] == ("H" if hexagonal else "R")]
    elif {s[4] for s in found} == {"1", "2"}:
        raise InputError(
            "two origins are possible",
            file=file,
            key="space group",
            value=name or number,
            hint="give the operations, or :1 or :2",
        )
    if not found:
        raise InputError("setting not recognised", file=file, key="space group", value=name or number, hint="give its operations")
    return found[0][0]


def operations_of_setting(hall_number: int) -> tuple[Rotations, Array]:
    """Return rotations (n, 3, 3) and translations (n, 3) of a setting, from spglib's database."""
    import spglib

    with quiet_spglib():
        found = spglib.get_symmetry_from_database(hall_number)
    if found is None:
        raise InputError("no such setting", key="Hall number", value=hall_number, allowed="1 to 530")
    return np.asarray(found["rotations"], dtype=np.int64), np.asarray(found["translations"], dtype=np.float64)
