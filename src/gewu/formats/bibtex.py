"""Read the BibTeX file that a room ships: `references.bib` beside its modules."""

from __future__ import annotations

import re
from importlib.resources import files


def entries(package: str) -> dict[str, str]:
    """Return the entries of the package's `references.bib` by key."""
    text = (files(package) / "references.bib").read_text(encoding="utf-8")
    found = [entry.strip() for entry in re.split(r"(?m)^(?=@)", text) if entry.strip()]
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in found}
