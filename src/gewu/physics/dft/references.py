"""BibTeX of the methods of this room, by key; the report prints those that a run used."""

from __future__ import annotations

import re
from importlib.resources import files


def _read() -> dict[str, str]:
    text = (files("gewu.physics.dft") / "references.bib").read_text(encoding="utf-8")
    entries = [entry.strip() for entry in re.split(r"(?m)^(?=@)", text) if entry.strip()]
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in entries}


REFERENCES = _read()
