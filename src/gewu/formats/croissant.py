"""Write Croissant 1.0, JSON-LD that describes a data set: its files with checksums, and the fields of its records.

Reference: docs.mlcommons.org/croissant/docs/croissant-spec.html.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Described(NamedTuple):
    """A field of records: its name, what it means, a data type such as "sc:Float", and whether it is a list or array of these."""

    name: str
    text: str
    kind: str
    repeated: bool


def croissant(
    name: str,
    description: str,
    version: str,
    identifier: str,
    files: Sequence[tuple[str, int, str]],
    records: Mapping[str, Sequence[Described]],
    kinds: Mapping[str, str],
    **about: Any,
) -> dict[str, Any]:
    """Return the description of a data set.

    Args:
        name, description, version, identifier: of the data set; the version as "1.0.0".
        files: place, relative to the description, bytes and SHA-256 of each file that is named one by one.
        records: fields of the records that stand in all files of a folder, by the folder.
        kinds: media type of the files by their folder.
        about: further properties of schema.org, such as `license`, `creator`, `datePublished`, `url`; empty ones are left out.
    """

    def node(kind: str, key: str, **more: Any) -> dict[str, Any]:
        return {"@type": f"cr:{kind}", "@id": key, "name": key, **more}

    distribution = [
        node(
            "FileObject",
            place,
            contentUrl=place,
            contentSize=f"{size} B",
            sha256=sha256,
            encodingFormat=kinds[place.split("/")[0]],
        )
        for place, size, sha256 in files
    ]
    sets = []
    for folder, fields in records.items():
        distribution.append(node("FileSet", f"all-{folder}", includes=f"{folder}/*", encodingFormat=kinds[folder]))
        rows = [
            node("Field", f"{folder}/{field.name}", description=field.text, dataType=field.kind)
            | {"name": field.name, "source": {"fileSet": {"@id": f"all-{folder}"}, "extract": {"column": field.name}}}
            | ({"repeated": True} if field.repeated else {})
            for field in fields
        ]
        sets.append(node("RecordSet", folder, field=rows))
    return {
        "@context": json.loads((Path(__file__).parent / "data" / "croissant.json").read_text(encoding="utf-8")),
        **{"@type": "sc:Dataset", "conformsTo": "http://mlcommons.org/croissant/1.0", "name": name, "description": description},
        **{"version": version, "identifier": identifier, **{key: value for key, value in about.items() if value}},
        **{"distribution": distribution, "recordSet": sets},
    }
