"""Other formats in and out: `source` turns what lies at a path into pieces, `export` writes a store for other programs.

    in: jsonl, parquet, arrow, webdataset (tar), zip, mds, folder (pictures, texts, any files), results, hdf5, extxyz, store
    out: jsonl, parquet, arrow, webdataset, mds, folder, hdf5, extxyz

Files, in the order to read them: `fit` (raw values to a schema and back), `folders`, `tables`, `archives`, `mds`, `results`.
Formats are recognised by what files hold, and by their names only where that says nothing. Nothing is ever extracted, unpickled or
executed; what cannot be taken is a `Reject` with a reason and a place. `docs/data-convert.md` has the table of types and limits.
"""

from __future__ import annotations

import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gewu.core.errors import InputError, StoreError
from gewu.data.convert.folders import folder_source
from gewu.data.fields import Schema
from gewu.data.piece import Reject, Source
from gewu.data.shard import SUFFIX, Shard

if TYPE_CHECKING:
    from gewu.data.store import Store, Subset

__all__ = ["FORMATS", "export", "folder_source", "format_of", "source"]

FORMATS: Final = ("jsonl", "parquet", "arrow", "webdataset", "mds", "folder", "hdf5", "extxyz")  # out
SHARD_BYTES: Final = 64 << 20
_SUFFIXES: Final = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".tar", ".tgz", ".zip"), "webdataset"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
    **dict.fromkeys((".h5", ".hdf5", ".nc"), "results"),
    **dict.fromkeys((".extxyz", ".xyz"), "extxyz"),
    SUFFIX: "store",
}
_PACKED: Final = (".gz", ".xz", ".bz2", ".zst")
_MAGIC: Final = {b"PAR1": "parquet", b"ARROW1": "arrow", b"PK\3\4": "webdataset", b"\x89HDF": "results"}


def format_of(path: str | Path) -> str | None:
    """Return the name of the format of a file or folder; None for one that is not known. Any folder is at least "folder"."""
    if os.path.isdir(path):
        return _folder(os.fspath(path))[0]
    name = os.path.basename(path).lower()
    for suffix in _PACKED:
        name = name.removesuffix(suffix)
    named = _SUFFIXES.get(os.path.splitext(name)[1])
    if not os.path.isfile(path):
        return None
    head = _head(os.fspath(path))
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if head[257:262] == b"ustar":
        found = "webdataset"
    return found or named or ("jsonl" if head.lstrip().startswith(b'{"') else None)


def _head(path: str) -> bytes:
    from gewu.data.convert.archives import opened

    try:
        with opened(path) as stream:
            return stream.read(1024)
    except (OSError, ValueError, EOFError, lzma.LZMAError, zlib.error):
        return b""


def _folder(path: str) -> tuple[str, list[str]]:
    """Return the format of a folder, and the files or folders in it that are read."""
    with os.scandir(path) as entries:
        names = sorted(
            e.name
            for e in islice(entries, 100_000)
            if e.name[0] not in "._" and not e.name.lower().startswith(("readme", "licen"))
        )
    inside = {name: os.path.join(path, name) for name in names}
    if "shards" in inside and os.path.isdir(inside["shards"]):
        return "store", [os.path.join(inside["shards"], n) for n in sorted(os.listdir(inside["shards"])) if n.endswith(SUFFIX)]
    if "index.json" in inside and (any(".mds" in name for name in names) or b'"shards"' in _head(inside["index.json"])):
        return "mds", [path]
    if "manifest.json" in inside and "numbers.json" in inside:
        return "results", [path]
    results = [place for place in inside.values() if os.path.isfile(os.path.join(place, "manifest.json"))]
    if results:
        return "results", results
    files = [name for name in names if not name.endswith(".schema.json")]
    kinds = {format_of(inside[name]) if os.path.isfile(inside[name]) else "folder" for name in files[:64]}
    kinds |= {_SUFFIXES.get(os.path.splitext(name)[1], "folder") for name in files[64:]}
    kind = kinds.pop() if len(kinds) == 1 else None
    return (kind, [inside[name] for name in files]) if kind not in (None, "folder") else ("folder", [path])


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
    known, paths = _folder(path) if os.path.isdir(path) else (format_of(path), [path])
    kind = format or known
    if kind == "folder":
        return folder_source(path, **options)
    from gewu.data.convert import archives, fit, mds, results, tables

    readers: dict[str, Callable[..., Source]] = {
        "jsonl": tables.jsonl_source,
        "parquet": lambda paths, schema: tables.table_source(paths, "parquet", schema),
        "arrow": lambda paths, schema: tables.table_source(paths, "arrow", schema),
        "webdataset": lambda paths, schema: fit.inferred(
            [archives.ArchivePiece(f"tar-{k:05d}", p) for k, p in enumerate(paths)], "webdataset", schema
        ),
        "mds": lambda paths, schema: mds.mds_source(paths[0], schema),
        "results": results.results_source,
        "extxyz": results.extxyz_source,
        "store": lambda paths, schema: shards_source(paths),
    }
    if kind not in readers:
        allowed = f"{', '.join(readers)}; or a folder of files"
        raise InputError("format is not known", file=path, value=format, allowed=allowed, hint="say it with `format`")
    return readers[kind](paths, schema, **options)


@dataclass(frozen=True)
class ShardPiece:
    """A shard of a store, read again."""

    name: str
    path: str

    def samples(self) -> Iterator[dict[str, Any] | Reject]:
        """Yield its samples; a damaged one is a `Reject`."""
        shard = Shard(self.path)
        for number in range(len(shard)):
            try:
                yield shard[number]
            except StoreError as error:
                yield Reject("damaged-sample", str(error))


def shards_source(paths: Sequence[str]) -> Source:
    """Return the shards of a store as a source."""
    if not paths:
        raise InputError("a store without shards holds no samples")
    schema = Shard(paths[0]).schema
    pieces = [ShardPiece(Path(path).stem, path) for path in paths]
    return Source(schema, pieces, "store", tuple(f.name for f in schema if (f.type.item or f.type).scalar))


def export(store: Store | Subset, path: str | Path, format: str, *, shard_bytes: int = SHARD_BYTES) -> int:
    """Write the samples of a store in another format.

    Args:
        store: what to write; damaged samples are left out or stop it, as its policy says.
        path: a file for jsonl, parquet, arrow and extxyz; a folder for the others. It must not exist, but an empty folder may.
        format: one of `FORMATS`.
        shard_bytes: about the size of each file of webdataset, mds and hdf5; as much is held in memory.

    Returns:
        The number of samples written.

    Raises:
        InputError: the format is not known, the path is taken, or a field cannot be held by the format (it is named).
    """
    from gewu.data.convert import archives, folders, mds, results, tables

    name, schema, samples = os.fspath(path), store.schema, iter(store)
    writers: dict[str, Callable[[], int]] = {
        "jsonl": lambda: tables.export_jsonl(samples, schema, name),
        "parquet": lambda: tables.export_table(samples, schema, name, "parquet"),
        "arrow": lambda: tables.export_table(samples, schema, name, "arrow"),
        "extxyz": lambda: results.export_extxyz(samples, schema, name),
        "webdataset": lambda: archives.export_webdataset(samples, schema, name, shard_bytes),
        "mds": lambda: mds.export_mds(samples, schema, name, shard_bytes),
        "hdf5": lambda: results.export_hdf5(samples, schema, name, shard_bytes),
        "folder": lambda: folders.export_folder(samples, schema, name),
    }
    if format not in writers:
        raise InputError("format is not known", key="format", value=format, allowed=", ".join(writers))
    if format in ("webdataset", "mds", "hdf5", "folder"):
        os.makedirs(name, exist_ok=True)
    if os.path.exists(name) and (not os.path.isdir(name) or os.listdir(name)):
        raise InputError("exists already", file=path, hint="choose another name")
    return writers[format]()
