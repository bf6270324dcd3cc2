"""How data comes in: a source is a list of pieces, each of which yields its samples again and again in the same order.

A piece is the unit of work: one process reads it, and what comes out is written to shards of its own, so that a run that was
killed goes on with the pieces that are not done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from gewu.data.fields import Schema


class Reject(NamedTuple):
    """What stands in place of a sample that was not taken: counted by reason, never lost in silence.

    Attributes:
        reason: short and the same for all of its kind, for example "invalid-utf8".
        where: file, line or member, for people.
    """

    reason: str
    where: str = ""


class Piece(Protocol):
    """A part of a source that one process reads; it must survive being sent to another process."""

    @property
    def name(self) -> str:
        """Its name, unique in its source and usable as a file name."""

    def samples(self) -> Iterator[dict[str, Any] | Reject]:
        """Yield its samples, in an order that never changes."""


class Source(NamedTuple):
    """Where samples come from.

    Attributes:
        schema: of all its samples.
        pieces: in the order in which the samples count.
        kind: the format, for people ("jsonl", "tar", ...).
        columns: fields that belong into the catalogue.
    """

    schema: Schema
    pieces: Sequence[Piece]
    kind: str
    columns: tuple[str, ...] = ()
