"""Millions of files in folders as records {"path", "data"}, in sorted order and without holding all names.

Folders are walked once to count their files; consecutive ones are grouped, and a folder of very many files is cut by ranges of
names, so that memory holds the names of one group. A file is opened relative to its open folder and read in one call. Links are
never followed; links, pipes, devices, files that change meanwhile or are too large are refused.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Final, NamedTuple

from gewu.core.errors import InputError
from gewu.core.files import open_folder, read_at
from gewu.formats.packed import Record
from gewu.formats.recognise import PICTURES

RANGE_FILES: Final = 262_144
FILE_BYTES: Final = 256 << 20


class Group(NamedTuple):
    """Some folders, relative to the root, or those files of one of which low <= name < high ("" is no bound)."""

    folders: tuple[str, ...]
    low: str = ""
    high: str = ""


def _counted(root: str) -> Iterator[tuple[str, int]]:
    """Yield each folder and its number of files, in sorted order."""
    stack = [""]
    while stack:
        folder = stack.pop()
        inside, files = [], 0
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    inside.append(os.path.join(folder, entry.name))
                else:
                    files += 1
        yield folder, files
        stack += sorted(inside, reverse=True)


def groups(root: str, most: int) -> Iterator[Group]:
    """Yield groups of about `most` files that together are all files below a folder."""
    group: list[str] = []
    count = 0
    for folder, files in _counted(root):
        if group and count + files > most:
            yield Group(tuple(group))
            group, count = [], 0
        if files > RANGE_FILES:
            parts, step = -(-files // RANGE_FILES), max(1, files // 4096)
            with os.scandir(os.path.join(root, folder)) as entries:  # cut at quantiles of some 4096 names
                some = sorted(e.name for e in entries if zlib.crc32(os.fsencode(e.name)) % step == 0)
            yield from (
                Group((folder,), *cut) for cut in pairwise(["", *(some[k * len(some) // parts] for k in range(1, parts)), ""])
            )
        elif files:
            group.append(folder)
            count += files
    if group:
        yield Group(tuple(group))


def records(root: str, group: Group, file_bytes: int = FILE_BYTES) -> Iterator[Record]:
    """Yield the files of a group as (path below the root, {"path", "data"}), or a reason.

    Returns:
        Reasons: not-a-file, too-large, changed, unreadable, invalid-utf8 (its name).
    """
    for folder in group.folders:
        descriptor, prefix = open_folder(os.path.join(root, folder)), folder and folder + "/"
        try:
            with os.scandir(descriptor) as entries:
                names = ((e.name, e.is_file(follow_symlinks=False)) for e in entries if not e.is_dir(follow_symlinks=False))
                if group.low or group.high:
                    names = (each for each in names if group.low <= each[0] and not (group.high and each[0] >= group.high))
                ordered = sorted(names)
            for name, is_file in ordered:
                path = prefix + name
                try:
                    path.encode()
                    yield path, {"path": path, "data": read_at(descriptor, name, file_bytes)} if is_file else "not-a-file"
                except UnicodeError:
                    yield ascii(path)[1:-1], "invalid-utf8"
                except InputError as error:
                    yield path, error.message
        finally:
            os.close(descriptor)


def content_of(root: str, group: Group) -> str:
    """Return what the first 64 files are: "image" (nine of ten), "text" (UTF-8 without NUL) or "bytes"."""
    first = [record["data"] for _, record in islice(records(root, group), 64) if not isinstance(record, str)]
    if first and sum(data.startswith(PICTURES) for data in first) * 10 >= len(first) * 9:
        return "image"
    try:
        return "bytes" if any("\0" in data.decode() for data in first) else "text"
    except UnicodeDecodeError:
        return "bytes"
