"""BibTeX of the methods of this room, by key; the report prints those that a run used."""

from __future__ import annotations

from gewu.formats.bibtex import entries

REFERENCES = entries("gewu.physics.md")
