"""Millions of files in folders as records {"path", "data"}, in sorted order and without holding all names.

Folders are walked once to count their files; consecutive ones are grouped, and a folder of very many files is cut by ranges of
names, so that memory holds the names of one group. A file is opened relative to its open folder and read in one call. Links are
never followed; links, pipes, devices, files that change meanwhile or are too large are refused.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from itertools import chain, islice, pairwise
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


def records(root: str, group: Group, content: str = "bytes", file_bytes: int = FILE_BYTES) -> Iterator[Record]:
    """Yield the files of a group, {"path", "data"}, or for pictures {"path", "label", "image"} with the name of their folder.

    Args:
        root: the folder.
        group: of its folders.
        content: "bytes", "text" (UTF-8) or "image".
        file_bytes: a larger file is refused.

    Returns:
        (path below the root, record), or (path, reason): not-a-file, too-large, changed, unreadable, not-an-image, or
        invalid-utf8 (name or text).
    """
    for folder in group.folders:
        descriptor, prefix = open_folder(os.path.join(root, folder)), folder and folder + "/"
        label = os.path.basename(folder or os.path.abspath(root))
        try:
            for name, is_file in _names(descriptor, group):
                path = prefix + name
                try:
                    if not is_file:
                        raise InputError("not-a-file")
                    path.encode()
                    data = read_at(descriptor, name, file_bytes)
                    if content == "image":
                        if not data.startswith(PICTURES):
                            raise InputError("not-an-image")
                        yield path, {"path": path, "label": label, "image": data}
                    else:
                        yield path, {"path": path, "data": data.decode() if content == "text" else data}
                except (UnicodeError, InputError) as error:
                    reason = error.message if isinstance(error, InputError) else "invalid-utf8"
                    yield os.path.join(root, path).encode("utf-8", "backslashreplace").decode(), reason
        finally:
            os.close(descriptor)


def _names(folder: int, group: Group) -> list[tuple[str, bool]]:
    """Return the names in an open folder that belong to the group, each with whether it is a regular file."""
    with os.scandir(folder) as entries:
        names = ((e.name, e.is_file(follow_symlinks=False)) for e in entries if not e.is_dir(follow_symlinks=False))
        return sorted(each for each in names if group.low <= each[0] and not (group.high and each[0] >= group.high))


def content_of(root: str, group: Group) -> str:
    """Return what some 64 files of up to 64 folders are: "image" (nine of ten), "text" (UTF-8 without NUL) or "bytes"."""
    folders = group.folders[:: -(-len(group.folders) // 64)]
    looked = (islice(records(root, group._replace(folders=(folder,))), -(-64 // len(folders))) for folder in folders)
    first = [record["data"] for _, record in chain.from_iterable(looked) if not isinstance(record, str)]
    if first and sum(data.startswith(PICTURES) for data in first) * 10 >= len(first) * 9:
        return "image"
    try:
        return "bytes" if any("\0" in data.decode() for data in first) else "text"
    except UnicodeDecodeError:
        return "bytes"
