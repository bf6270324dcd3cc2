"""Which format a file is in: by its first bytes, and by its name only where they say nothing."""

from __future__ import annotations

import os
from typing import Final

from gewu.formats.packed import DAMAGE, opened

PICTURES: Final = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")
SUFFIXES: Final = {suffix: kind for kind, text in {
    "jsonl": ".jsonl .ndjson .json", "parquet": ".parquet .pq", "arrow": ".arrow .feather", "webdataset": ".tar .tgz .zip",
    "results": ".h5 .hdf5 .nc", "extxyz": ".extxyz .xyz"}.items() for suffix in text.split()}  # fmt: skip
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
