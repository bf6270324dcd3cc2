"""A figure that an engine offers to the report, without knowing who draws it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Figure(NamedTuple):
    """One picture of a report: `draw(axes)` draws on the matplotlib axes handed in; the caption stands below."""

    title: str
    caption: str
    draw: Callable[[Any], None]
