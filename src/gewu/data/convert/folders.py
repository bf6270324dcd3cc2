"""Folders of files, millions of them: pictures sorted into folders, texts, or anything (see `gewu.formats.folder`).

One file is one sample: {"path": text, "data": bytes | text}, or {"path", "label", "image"} where `label` is the name of the
folder that holds the picture. What a folder holds is decided by 64 files here and there, or said by `content`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Final

from gewu.core.errors import InputError
from gewu.core.files import write_atomic
from gewu.data.convert.fit import RecordPiece, refused
from gewu.data.fields import Schema
from gewu.data.piece import Source
from gewu.formats.folder import content_of, groups, records

GROUP_FILES: Final = 16_384
_FIELDS: Final = {
    "bytes": {"path": "text", "data": "bytes"},
    "text": {"path": "text", "data": "text"},
    "image": {"path": "text", "label": "text", "image": "image"},
}


def folder_source(path: str | Path, content: str = "auto", group_files: int = GROUP_FILES) -> Source:
    """Return all files below a folder as a source.

    Args:
        path: the folder.
        content: "bytes", "text" (UTF-8), "image", or "auto": what 64 files here and there are.
        group_files: files of a piece.

    Raises:
        InputError: there is no file, or an unknown content.
    """
    root = os.fspath(path)
    parts = list(groups(root, group_files))
    if not parts:
        raise InputError("holds no file", file=path)
    content = content_of(root, parts[0]) if content == "auto" else content
    if content not in _FIELDS:
        raise InputError("unknown content", key="content", value=content, allowed=f"auto, {', '.join(_FIELDS)}")
    schema = Schema.of(_FIELDS[content])
    pieces = [RecordPiece(f"files-{k:06d}", root, (group, content), reader=records, schema=schema, fits=True)
              for k, group in enumerate(parts)]  # fmt: skip
    return Source(schema, pieces, "folder", ("label",) if content == "image" else ())


def export_folder(samples: Iterable[dict[str, Any]], schema: Schema, folder: str) -> int:
    """Write each sample as the file that its `path` names; return their number.

    Raises:
        InputError: fields other than those of a folder source, or a path that leads outside.
    """
    if {field.name: str(field.type) for field in schema} not in _FIELDS.values():
        odd = next((field for field in schema if field.name not in ("path", "data", "label", "image")), schema.fields[0])
        raise refused("folder", odd.name, odd.type, "path and data, or path, label and image")
    count = 0
    for sample in samples:
        path, data = PurePosixPath(sample["path"]), sample["image" if "image" in sample else "data"]
        if path.is_absolute() or ".." in path.parts or not path.name or sample.get("label", path.parent.name) != path.parent.name:
            raise InputError("is no path inside a folder, or not in that of its label", key="path", value=sample["path"])
        target = os.path.join(folder, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        write_atomic(target, data.encode() if isinstance(data, str) else data)
        count += 1
    return count
