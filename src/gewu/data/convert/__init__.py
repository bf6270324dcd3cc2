"""Other formats in and out: `source` turns what lies at a path into pieces, `export` writes a store for other programs.

    in: jsonl, parquet, arrow, webdataset (tar, zip), mds, folder (pictures, texts, any files), results, extxyz, store
    out: jsonl, parquet, arrow, webdataset, mds, folder, hdf5, extxyz

Files, in the order to read them: `fit` (from records to samples), `folders`, `tables`, `archives`, `mds`, `results`; the syntax
of each format is read and written in `gewu.formats`. Formats are recognised by what files hold, and by their names only where
that says nothing. Nothing is ever extracted, unpickled or executed; what cannot be taken is a `Reject` with a reason and a
place. `docs/data-convert.md` has the table of types and limits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gewu.core.errors import InputError
from gewu.data.convert import archives, mds, results, tables
from gewu.data.convert.folders import export_folder, folder_source
from gewu.data.fields import Schema
from gewu.data.piece import Source
from gewu.formats import recognise

if TYPE_CHECKING:
    from gewu.data.store import Store, Subset

__all__ = ["READERS", "WRITERS", "export", "folder_source", "format_of", "source"]

READERS: Final[dict[str, Callable[..., Source]]] = {
    "jsonl": tables.jsonl_source,
    "parquet": tables.table_source,
    "arrow": tables.table_source,
    "webdataset": archives.archive_source,
    "mds": mds.mds_source,
    "results": results.results_source,
    "extxyz": results.extxyz_source,
    "store": lambda paths, schema: _store(paths[0]),
    "folder": lambda paths, schema, **options: folder_source(paths[0], **options),
}
WRITERS: Final[dict[str, Callable[..., int]]] = {
    "jsonl": tables.export_jsonl,
    "parquet": lambda samples, schema, path: tables.export_table(samples, schema, path, "parquet"),
    "arrow": lambda samples, schema, path: tables.export_table(samples, schema, path, "arrow"),
    "extxyz": results.export_extxyz,
    "folder": export_folder,
    "webdataset": archives.export_webdataset,
    "mds": mds.export_mds,
    "hdf5": results.export_hdf5,
}
SHARD_BYTES: Final = 64 << 20
_ROLLED, _FOLDERS = ("webdataset", "mds", "hdf5"), ("webdataset", "mds", "hdf5", "folder")


def format_of(path: str | Path) -> str | None:
    """Return the name of the format of a file or folder; None for one that is not known. Any folder is at least "folder"."""
    return recognise.found(os.fspath(path))[0]


def source(path: str | Path, format: str | None = None, *, schema: Schema | None = None, **options: Any) -> Source:
    """Return what lies at a path as a source of samples.

    Args:
        path: a file, or a folder of files of one format.
        format: its name, when it cannot be recognised.
        schema: the types of the fields, instead of those that the format says or that are inferred.
        options: of the format: `content`, `group_files` (folder), `line_bytes` (jsonl), `along` (results).

    Raises:
        InputError: there is nothing, the format is not known, or not one sample can be read.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise InputError("there is no such file or folder", file=path)
    found, paths = recognise.found(path)
    kind = format or found
    if kind in set(recognise.SUFFIXES.values()) - {found} and os.path.isdir(path):
        paths = [place for place in sorted(map(str, Path(path).iterdir())) if recognise.format_of(place) == kind]
    if kind not in READERS or not paths:
        allowed = f"{', '.join(READERS)}; or a folder of files"
        raise InputError("format is not known", file=path, value=format, allowed=allowed, hint="say it with `format`")
    return READERS[kind](paths if kind != "folder" else [path], schema, **options)


def _store(path: str) -> Source:
    from gewu.data.catalogue import Catalogue
    from gewu.data.pipeline import source_from

    return source_from(Catalogue(path).open(on_damage="skip"))


def export(store: Store | Subset, path: str | Path, format: str, *, shard_bytes: int = SHARD_BYTES) -> int:
    """Write the samples of a store in another format.

    Args:
        store: what to write; damaged samples are left out or stop it, as its policy says.
        path: a file for jsonl, parquet, arrow and extxyz; a folder for the others. It must not exist, but an empty folder may.
        format: one of `WRITERS`.
        shard_bytes: about the size of each file of webdataset, mds and hdf5; as much is held in memory.

    Returns:
        The number of samples written.

    Raises:
        InputError: the format is not known, the path is taken, or a field cannot be held by the format (it is named).
    """
    name = os.fspath(path)
    if format not in WRITERS:
        raise InputError("format is not known", key="format", value=format, allowed=", ".join(WRITERS))
    if format in _FOLDERS:
        os.makedirs(name, exist_ok=True)
    if os.path.exists(name) and (not os.path.isdir(name) or os.listdir(name)):
        raise InputError("exists already", file=path, hint="choose another name")
    return WRITERS[format](iter(store), store.schema, name, *([shard_bytes] if format in _ROLLED else []))
