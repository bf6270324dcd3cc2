"""Which format a file or folder is in: by first bytes, and by names only where they say nothing."""

from __future__ import annotations

import os
from itertools import islice
from typing import Final

from gewu.formats.packed import DAMAGE, opened

PICTURES: Final = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")
SUFFIXES: Final = {suffix: kind for kind, text in {
    "jsonl": ".jsonl .ndjson .json", "parquet": ".parquet .pq", "arrow": ".arrow .feather", "webdataset": ".tar .tgz .zip",
    "results": ".h5 .hdf5 .nc", "extxyz": ".extxyz .xyz"}.items() for suffix in text.split()}  # fmt: skip
SCHEMA_SUFFIX: Final = ".schema.json"
MOST_FILES: Final = 100_000
_BESIDE: Final = (".", "readme", "licen")
_MAGIC: Final = {b"PAR1": "parquet", b"ARROW1": "arrow", b"PK\3\4": "webdataset", b"\x89HDF": "results"}


def head_of(path: str) -> bytes:
    """Return the first kilobyte of a file, decompressed; nothing when it cannot be read."""
    try:
        with opened(path) as stream:
            return stream.read(1024)
    except (*DAMAGE, OSError):
        return b""


def format_of(path: str) -> str | None:
    """Return jsonl, parquet, arrow, webdataset (any tar or zip), results (HDF5, NetCDF) or extxyz; None for all else."""
    if not os.path.isfile(path):
        return None
    head, name = head_of(path), os.path.basename(path).lower()
    for suffix in (".gz", ".xz", ".bz2", ".zst"):
        name = name.removesuffix(suffix)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), SUFFIXES.get(os.path.splitext(name)[1]))
    return "webdataset" if head[257:262] == b"ustar" else kind or ("jsonl" if head.startswith(b'{"') else None)


def found(path: str) -> tuple[str | None, list[str]]:
    """Return the format of what lies at a path, and the files or folders that are to be read.

    Folders are also mds, results (directories of gewu), store (of `gewu.data`), all files of one format, or else "folder".
    """
    if not os.path.isdir(path):
        return format_of(path), [path]
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in islice(entries, MOST_FILES + 1))
    if len(names) > MOST_FILES:
        return "folder", [path]
    if "shards" in names and ("versions" in names or "catalogue" in names):
        return "store", [path]
    index = os.path.join(path, "index.json")
    if "index.json" in names and (any(".mds" in name for name in names) or b'"shards"' in head_of(index)):
        return "mds", [path]
    if {"manifest.json", "numbers.json"} <= set(names):
        return "results", [path]
    files = [
        os.path.join(path, name) for name in names if not name.lower().startswith(_BESIDE) and not name.endswith(SCHEMA_SUFFIX)
    ]
    if results := [place for place in files if os.path.isfile(os.path.join(place, "manifest.json"))]:
        return "results", results
    kinds = {format_of(place) if k < 64 else SUFFIXES.get(os.path.splitext(place)[1]) for k, place in enumerate(files)}
    kind = kinds.pop() if len(kinds) == 1 and os.path.isfile(files[0]) else None
    return (kind, files) if kind else ("folder", [path])
