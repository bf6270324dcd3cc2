"""All benchmarked kernels: `CASES`, each one kernel of one of the `CLASSES`."""

from __future__ import annotations

from typing import Final

from bench.ops import contractions, places, streams
from bench.ops.case import Case

CASES: Final = tuple(
    Case(operator, style)
    for operator in streams.OPERATORS + contractions.OPERATORS + places.OPERATORS
    for style in operator.styles
)
CLASSES: Final = tuple(dict.fromkeys(case.cls for case in CASES))


def quoted(cls: str) -> Case:
    """Return the case whose speed is quoted for a class: its optimised style, which is the last one.

    Raises:
        KeyError: no such class.
    """
    found = [case for case in CASES if case.cls == cls]
    if not found:
        raise KeyError(cls)
    return found[-1]
