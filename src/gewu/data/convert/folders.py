"""Folders of files, millions of them: pictures sorted into folders, texts, or anything.

One file is one sample: {"path": text, "data": bytes | text}, or {"path", "label", "image"} where `label` is the name of the folder
that holds the picture. What a folder holds is decided by its first 64 files, or said by `content`. Folders are walked in sorted
order; a piece is some 16,384 files of consecutive folders, and a folder of very many files is cut by ranges of names, so memory
holds the names of one piece only. A file is opened relative to its open folder and read in one call; links are never followed,
and pipes, devices, files that change meanwhile or are too large are each a `Reject`.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import PurePosixPath
from typing import Any, Final

from gewu.core.errors import InputError
from gewu.core.files import open_folder, read_at, write_atomic
from gewu.data.convert.fit import Raw, RawPiece, refused
from gewu.data.fields import Schema
from gewu.data.piece import Reject, Source

GROUP_FILES, RANGE_FILES = 16_384, 262_144
FILE_BYTES: Final = 256 << 20
LOOK_AT: Final = 64
_SIGNS: Final = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"P5", b"P6")
_FIELDS: Final = {
    "bytes": {"path": "text", "data": "bytes"},
    "text": {"path": "text", "data": "text"},
    "image": {"path": "text", "label": "text", "image": "image"},
}


@dataclass(frozen=True)
class FolderPiece(RawPiece):
    """The files of some folders, given relative to `path`, or those of one folder with low <= name < high."""

    folders: tuple[str, ...] = ()
    content: str = "bytes"
    low: str = ""
    high: str = ""
    file_bytes: int = FILE_BYTES

    def samples(self) -> Iterator[dict[str, Any] | Reject]:
        """Yield one sample for each file, in sorted order; they fit the schema by their making."""
        for found in self.read():
            yield found if isinstance(found, Reject) else found[1]

    def raw(self) -> Raw:
        """Yield (path, sample)."""
        text, image = self.content == "text", self.content == "image"
        for folder in self.folders:
            descriptor, prefix = open_folder(os.path.join(self.path, folder)), folder and folder + "/"
            label = os.path.basename(folder or os.path.abspath(self.path))
            try:
                for name, is_file in self._names(descriptor):
                    path = prefix + name
                    try:
                        if not is_file:
                            raise InputError("not-a-file")
                        path.encode()
                        data = read_at(descriptor, name, self.file_bytes)
                        if image and not data.startswith(_SIGNS):
                            raise InputError("not-an-image")
                        sample = {"path": path, "data": data.decode() if text else data}
                    except (InputError, UnicodeError) as error:
                        bad = isinstance(error, UnicodeError)
                        yield Reject("invalid-utf8" if bad else str(error), os.path.join(self.path, ascii(path)[1:-1]))
                        continue
                    yield path, {"path": path, "label": label, "image": data} if image else sample
            finally:
                os.close(descriptor)

    def _names(self, folder: int) -> list[tuple[str, bool]]:
        with os.scandir(folder) as entries:
            names = ((entry.name, entry.is_file(follow_symlinks=False)) for entry in entries if not _is_folder(entry))
            if self.high or self.low:
                names = (name for name in names if self.low <= name[0] and not (self.high and name[0] >= self.high))
            return sorted(names)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _folders(root: str, folder: str = "") -> Iterator[tuple[str, int]]:
    """Yield each folder and its number of files, in sorted order."""
    stack = [""]
    while stack:
        folder = stack.pop()
        inside, files = [], 0
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if _is_folder(entry):
                    inside.append(os.path.join(folder, entry.name))
                else:
                    files += 1
        yield folder, files
        stack += sorted(inside, reverse=True)


def _cuts(folder: str, parts: int, files: int) -> list[str]:
    """Return the names that cut a folder into parts of about the same number of files, from some 4096 of them."""
    step = max(1, files // 4096)
    with os.scandir(folder) as entries:
        some = sorted(e.name for e in entries if zlib.crc32(os.fsencode(e.name)) % step == 0)
    return ["", *(some[k * len(some) // parts] for k in range(1, parts)), ""]


def folder_source(path: str, content: str = "auto", group_files: int = GROUP_FILES) -> Source:
    """Return all files below a folder as a source.

    Args:
        path: the folder.
        content: "bytes", "text" (UTF-8), "image", or "auto": what the first 64 files are.
        group_files: files of a piece.

    Raises:
        InputError: there is no file, or an unknown content.
    """
    root = os.fspath(path)
    groups: list[tuple[tuple[str, ...], str, str]] = []
    group: list[str] = []
    count = 0
    for folder, files in _folders(root):
        if group and count + files > group_files:
            groups.append((tuple(group), "", ""))
            group, count = [], 0
        if files > RANGE_FILES:
            cuts = _cuts(os.path.join(root, folder), -(-files // RANGE_FILES), files)
            groups += [((folder,), low, high) for low, high in pairwise(cuts)]
        elif files:
            group.append(folder)
            count += files
    groups += [(tuple(group), "", "")] if group else []
    if not groups:
        raise InputError("holds no file", file=path)
    if content == "auto":
        content = _content(FolderPiece("look", root, groups[0][0]))
    if content not in _FIELDS:
        raise InputError("unknown content", key="content", value=content, allowed=f"auto, {', '.join(_FIELDS)}")
    schema = Schema.of(_FIELDS[content])
    pieces = [FolderPiece(f"files-{k:06d}", root, folders, content, low, high, schema=schema)
              for k, (folders, low, high) in enumerate(groups)]  # fmt: skip
    return Source(schema, pieces, "folder", ("label",) if content == "image" else ())


def _content(piece: FolderPiece) -> str:
    first = [found[1]["data"] for found in islice(piece.raw(), LOOK_AT) if not isinstance(found, Reject)]
    if first and sum(data.startswith(_SIGNS) for data in first) * 10 >= len(first) * 9:
        return "image"
    try:
        return "bytes" if any(b"\0" in data or data.decode() is None for data in first) else "text"
    except UnicodeDecodeError:
        return "bytes"


def export_folder(samples: Iterable[dict[str, Any]], schema: Schema, folder: str) -> int:
    """Write each sample as the file that its `path` names; return their number.

    Raises:
        InputError: fields other than those of a folder source, or a path that leads outside.
    """
    if {name: str(schema[name].type) for name in schema.names} not in _FIELDS.values():
        odd = next((n for n in schema.names if n not in ("path", "data", "label", "image")), schema.names[0])
        raise refused("folder", odd, schema[odd].type, "path and data, or path, label and image")
    total = 0
    for total, sample in enumerate(samples, start=1):
        path, data = PurePosixPath(sample["path"]), sample["image" if "image" in sample else "data"]
        if (
            path.is_absolute()
            or ".." in path.parts
            or not path.parts
            or sample.get("label", path.parent.name) != path.parent.name
        ):
            raise InputError("is no path inside a folder, or not in that of its label", key="path", value=sample["path"])
        target = os.path.join(folder, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        write_atomic(target, data.encode() if isinstance(data, str) else bytes(data))
    return total
