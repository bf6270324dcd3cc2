"""The catalogue of a store: what its samples and shards are, in columns, and which of them a version names.

    shards/NAME.gws           samples
    catalogue/NAME.parquet    a part: one row a sample of that shard, in order
    manifests/SHA.parquet     one row a shard: counts, checksums, and what is least and greatest in each column
    versions/00000001.json    a snapshot: names manifests with their checksums, the schema, the version it came from
    writers/NAME/.lock        held while somebody adds shards

A file that no version names does not exist for those who read. A commit writes a manifest, then a version, each atomically and
both under one lock: killed at any instant it leaves the version before. A version costs one small manifest, however large the
store is, and names everything by checksum, so a run that names a version names exactly what it saw.

Limits: names of columns must differ in more than case; a text column keeps its set of values in the manifest up to 16 values of
64 bytes; locks must work (they do on local disks and NFS 4). Conditions and SQL are in `view`. Source: Apache Parquet format 2.6.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gewu.core.crc32c import crc32c
from gewu.core.errors import InputError, ResourceError, StoreError
from gewu.core.files import AtomicFile, DirectoryLock, sha256_of, storage_error, sweep_temporaries, write_atomic
from gewu.core.machine import extra
from gewu.data.fields import Schema
from gewu.data.shard import SUFFIX, Shard, ShardInfo
from gewu.data.store import Store
from gewu.formats.parquet import column, extremes, packed

if TYPE_CHECKING:
    from gewu.data.view import View

BUILT_IN: Final = {"length": "uint32", "hash": "uint64"}
RESERVED: Final = ("shard", "filename", "file_index", "file_row_number")
FORMAT: Final = "gewu store version 1"
_FOLDERS: Final = ("shards", "catalogue", "manifests", "versions", "writers")
_WAITS, _WAIT_S = 3000, 0.02


class PartInfo(NamedTuple):
    """What a manifest says of a part: its shard, rows, bytes, checksums, and of each column type and extremes; fit for JSON."""

    name: str
    rows: int
    bytes: int
    sha256: str
    crc32c: int
    stats: dict[str, dict[str, Any]]


class ManifestInfo(NamedTuple):
    """What a version says of a manifest: its file name, how much its shards hold, its SHA-256."""

    name: str
    shards: int
    samples: int
    bytes: int
    raw_bytes: int
    sha256: str


@dataclass(frozen=True)
class Snapshot:
    """One version of a store.

    Attributes:
        version, parent: its number and that of the version it came from (None for a first one).
        note: free text of the committer.
        schema: of all samples.
        columns: Arrow types of the catalogue's columns by name; none in a version without shards.
        manifests: in the order in which their shards count.
        sha256: of this description, and so, through the checksums in it, of every sample.
        shards, samples, bytes, raw_bytes: how much it holds; bytes of the shards' files and uncompressed.
    """

    version: int
    parent: int | None
    note: str
    schema: Schema
    columns: dict[str, str]
    manifests: tuple[ManifestInfo, ...]
    sha256: str
    shards: int
    samples: int
    bytes: int
    raw_bytes: int


def part_path(root: Path, shard: str) -> Path:
    """Return where the part of a shard lies."""
    return root / "catalogue" / (shard.removesuffix(SUFFIX) + ".parquet")


def write_part(path: str | Path, columns: Mapping[str, Any], meanings: Any = None, types: Any = None) -> PartInfo:
    """Write the catalogue of one shard, one row a sample.

    Args:
        path: `catalogue/NAME.parquet` for the shard `NAME.gws`; an existing file is replaced.
        columns: arrays or lists of one length: `length` (bytes of the stored sample), `hash` (64 bits) and any others: text,
            integers, floats, bool; None stands for an absent value.
        meanings: a sentence on a column, kept in the file.
        types: of columns, as in a schema; without one, a list becomes text, bool, int64 or float64 as its values ask.

    Raises:
        InputError: the name, length or values of a column cannot be stored.
        ResourceError, StoreError: as `write_atomic`.
    """
    extra("pyarrow")
    names = [*BUILT_IN, *(name for name in columns if name not in BUILT_IN)]
    good = all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name) for name in names)
    if not good or len({name.lower() for name in (*names, *RESERVED)}) < len(names) + len(RESERVED):
        hint = f"names of letters, digits and _ . - that differ in more than case, and none of {', '.join(RESERVED)}"
        raise InputError("cannot be the columns", file=path, value=names, hint=hint)
    arrays = {name: column(name, columns.get(name, []), {**(types or {}), **BUILT_IN}.get(name, "")) for name in names}
    for name, array in arrays.items():
        if len(array) != len(arrays["length"]):
            raise InputError("has another length than the first column", file=path, key=name, value=len(array))
    data = packed(arrays, ("hash",), meanings).getbuffer()
    stats = {name: {"type": "uint64"} if name == "hash" else extremes(array) for name, array in arrays.items()}
    return PartInfo(Path(path).stem + SUFFIX, len(arrays["length"]), len(data), write_atomic(path, data), crc32c(data), stats)


class Catalogue:
    """The versions of a store folder.

    Args:
        root: the folder, NAME.store; made by the first commit.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def _numbers(self) -> list[int]:
        return sorted(int(p.stem) for p in (self.root / "versions").glob("*.json") if re.fullmatch(r"\d{8}", p.stem))

    def versions(self) -> list[Snapshot]:
        """Return all snapshots, oldest first.

        Raises:
            StoreError: one is damaged.
        """
        return [self._load(number) for number in self._numbers()]

    def snapshot(self, version: int | None = None) -> Snapshot:
        """Return a version, the newest by default.

        Raises:
            InputError: there is none of this number.
            StoreError: it is damaged.
        """
        numbers = self._numbers()
        if not numbers:
            raise InputError("holds no version of a store", file=self.root, hint="give the folder NAME.store")
        if version is not None and version not in numbers:
            raise InputError("no such version", file=self.root, value=version, allowed=", ".join(map(str, numbers[-20:])))
        return self._load(numbers[-1] if version is None else version)

    def _load(self, number: int) -> Snapshot:
        path = self.root / "versions" / f"{number:08d}.json"
        try:
            body = json.loads(data := bytes_of(path))
            seal = body.pop("sha256")
            if _sealed(body) != data or body.pop("format") != FORMAT or body["version"] != number:
                raise ValueError("it does not match its checksum, number or format")
            infos = body["manifests"] = tuple(ManifestInfo(**row) for row in body["manifests"])
            body["schema"] = Schema.from_json(json.dumps(body["schema"]))
            totals = {key: sum(getattr(info, key) for info in infos) for key in ("shards", "samples", "bytes", "raw_bytes")}
            return Snapshot(**body, **totals, sha256=seal)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(f"is damaged: {error}", file=path) from None

    def table(self, manifests: Sequence[ManifestInfo], columns: Sequence[str] | None = None) -> Any:
        """Return the rows of manifests as an Arrow table, their checksums verified.

        Raises:
            StoreError: one is absent or damaged.
        """
        pa, tables = extra("pyarrow"), []
        for manifest in manifests:
            path = self.root / "manifests" / manifest.name
            data = bytes_of(path)
            if hashlib.sha256(data).hexdigest() != manifest.sha256:
                raise StoreError("is damaged: it does not match its checksum", file=path)
            tables.append(extra("pyarrow.parquet").read_table(pa.BufferReader(data), columns=columns))
        return pa.concat_tables(tables) if tables else _manifest([], [], {}).select(columns or ["name"])

    def shards(self, version: int | None = None) -> list[ShardInfo]:
        """Return the shards of a version, in the order in which their samples count."""
        columns = self.table(self.snapshot(version).manifests, ["name", "samples", "bytes", "raw_bytes", "sha256"]).to_pydict()
        rows = zip(*columns.values(), strict=True)
        return [ShardInfo(name, samples, size, raw, sha256.hex()) for name, samples, size, raw, sha256 in rows]

    def open(self, version: int | None = None, where: str | None = None, on_damage: str = "stop", **options: Any) -> Any:
        """Open a version (None for the newest), or its samples for which a condition holds, as a `Store`; options are its."""
        if where is not None:
            return self.where(where, version).store(on_damage=on_damage, **options)
        snapshot, folder = self.snapshot(version), self.root / "shards"
        columns = self.table(snapshot.manifests, ["name", "samples"]).to_pydict()
        shards = [ShardInfo(name, count, 0, 0, "") for name, count in zip(*columns.values(), strict=True)]  # it needs no more
        return Store(shards, root=folder, schema=snapshot.schema, on_damage=on_damage, **options)

    def where(self, condition: str | None, version: int | None = None, limit: int | None = None) -> View:
        """Return the samples for which an SQL condition on the columns holds, in order: see `view.select`."""
        from gewu.data.view import select

        return select(self, condition, version, limit)

    def sql(self, query: str, version: int | None = None) -> list[dict[str, Any]]:
        """Answer one SELECT on the tables `samples` and `shards`: see `view.ask`."""
        from gewu.data.view import ask

        return ask(self, query, version)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the versions; wait up to a minute while another holds it."""
        try:
            for name in _FOLDERS:
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.root, "made") from error
        with ExitStack() as stack:
            for left in reversed(range(_WAITS)):
                try:
                    stack.enter_context(DirectoryLock(self.root / "versions"))
                    break
                except ResourceError:
                    if not left:
                        raise
                    time.sleep(_WAIT_S)
            yield

    def commit(
        self, shards: Sequence[ShardInfo], parts: Sequence[PartInfo], schema: Schema, note: str = "", base: Any = "latest"
    ) -> Snapshot:
        """Add shards to the store as a new version.

        Args:
            shards, parts: what was written to `shards/` and `catalogue/`, in the order in which the samples shall count.
            schema: of the samples.
            note: free text, kept in the version.
            base: the version to add to: a number, "latest", or None for a version of these shards alone.

        Raises:
            InputError: schema or columns differ from those of `base` (the field is named), a shard is named twice, or the parts
                are not those of the shards.
            StoreError: a file is absent or of another size.
            ResourceError: others held the lock for a minute, or the disk is full.
        """
        with self._locked():
            parent = self.snapshot(None if base == "latest" else int(base)) if base is not None and self._numbers() else None
            old = parent.manifests if parent else ()
            columns = dict(parent.columns) if parent else {}
            names = [shard.name for shard in shards]
            if [(part.name, part.rows) for part in parts] != [(shard.name, shard.samples) for shard in shards]:
                raise InputError("the parts are not those of the shards, or have not one row a sample", file=self.root)
            if len(set(names)) < len(names) or not set(names).isdisjoint(self.table(old, ["name"])["name"].to_pylist()):
                raise InputError("a shard is in the version already, or named twice", file=self.root, value=names)
            fields = [
                {f.name: f"{f.type} {f.unit} {f.meaning}".rstrip() for f in s}
                for s in (parent.schema if parent else schema, schema)
            ]
            _compare(*fields)
            for shard, part in zip(shards, parts, strict=True):
                kinds = {name: stats["type"] for name, stats in part.stats.items()}
                columns = columns or kinds
                _compare(columns, kinds, file=shard.name)
                check_file(self.root / "shards" / shard.name, shard.bytes)
                check_file(part_path(self.root, part.name), part.bytes)
            return self._publish(parent, note, schema, columns, [*old, _manifest(shards, parts, columns)])

    def remove(self, shards: Iterable[str], note: str = "") -> Snapshot:
        """Make a version with one manifest that no longer names some shards; their files stay.

        Raises:
            InputError: the newest version does not name such a shard.
        """
        gone = set(shards)
        with self._locked():
            parent = self.snapshot()
            table = self.table(parent.manifests)
            names = table["name"].to_pylist()
            if unknown := gone.difference(names):
                raise InputError("the newest version does not name this shard", file=self.root, value=min(unknown))
            left = table.filter(extra("pyarrow").array([name not in gone for name in names], "bool"))
            return self._publish(parent, note, parent.schema, parent.columns, [left])

    def compact(self, note: str = "") -> Snapshot:
        """Make a version of the same samples with one manifest, so that it opens faster."""
        return self.remove((), note)

    def _publish(self, parent: Snapshot | None, note: str, schema: Schema, columns: Any, manifests: Sequence[Any]) -> Snapshot:
        """Write the manifests that are new (tables), then the version that names all of them."""
        infos = [m if isinstance(m, ManifestInfo) else self._write_manifest(m) for m in manifests if len(m)]
        number = max(self._numbers(), default=0) + 1
        body = {"format": FORMAT, "version": number, "parent": parent.version if parent else None, "note": note}
        body |= {"schema": json.loads(schema.to_json()), "columns": columns, "manifests": [info._asdict() for info in infos]}
        with AtomicFile(self.root / "versions" / f"{number:08d}.json") as stream:  # which refuses an existing one
            stream.write(_sealed(body))
        return self._load(number)

    def _write_manifest(self, table: Any) -> ManifestInfo:
        """Write a manifest under a name that its content decides."""
        data = packed(dict(zip(table.column_names, table.columns, strict=True)), ("sha256", "part_sha256")).getbuffer()
        sha256 = hashlib.sha256(data).hexdigest()
        write_atomic(self.root / "manifests" / f"{sha256[:24]}.parquet", data)
        sums = [int(table[key].to_numpy().sum()) for key in ("samples", "bytes", "raw_bytes")]
        return ManifestInfo(f"{sha256[:24]}.parquet", len(table), sums[0], sums[1], sums[2], sha256)

    def verify(self, version: int | None = None, deep: bool = False) -> list[StoreError]:
        """Return an error for every file that a version names and that is absent or damaged; none says that nothing is lost.

        Args:
            version: only this one; None for all.
            deep: read everything: checksums of all files and samples. Otherwise sizes, and checksums of versions and manifests.
        """
        problems: list[StoreError] = []

        def attempt(call: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return call(*arguments)
            except StoreError as error:
                problems.append(error)

        snapshots = [attempt(self._load, number) for number in (self._numbers() if version is None else [version])]
        rows: dict[str, dict[str, Any]] = {}
        for manifest in dict.fromkeys(manifest for snapshot in snapshots if snapshot for manifest in snapshot.manifests):
            table = attempt(self.table, [manifest])
            rows |= {row["name"]: row for row in table.to_pylist()} if table else {}
        for name, row in rows.items():
            attempt(check_file, shard := self.root / "shards" / name, row["bytes"], row["sha256"] if deep else None)
            attempt(check_file, part_path(self.root, name), row["part_bytes"], row["part_sha256"] if deep else None)
            if deep and shard.exists():
                attempt(_check_samples, shard)
        return problems

    def collect(self, keep: Iterable[int] = ()) -> list[str]:
        """Delete the versions that are not kept and every file that no kept version names; return the names of the deleted.

        The newest version is always kept. Who has a deleted file open can go on reading it.

        Raises:
            InputError: there is no such version.
            ResourceError: somebody is adding shards, which no version names yet. (Finish a pipeline that was killed first.)
            StoreError: a version or manifest that is kept is damaged; nothing is deleted then.
        """
        with self._locked(), DirectoryLock(self.root):  # which a pipeline holds
            for folder in sorted((self.root / "writers").iterdir()):
                with DirectoryLock(folder):
                    pass
                folder.rmdir()
            kept = [self.snapshot(version) for version in {*keep, self.snapshot().version}]
            manifests = list(dict.fromkeys(manifest for snapshot in kept for manifest in snapshot.manifests))
            shards = self.table(manifests, ["name"])["name"].to_pylist()
            named = {self.root / "versions" / f"{snapshot.version:08d}.json" for snapshot in kept}
            named |= {self.root / "manifests" / manifest.name for manifest in manifests}
            named |= {self.root / "shards" / name for name in shards} | {part_path(self.root, name) for name in shards}
            deleted = []
            for name in ("versions", "manifests", "catalogue", "shards"):  # no version may name a file that is gone
                sweep_temporaries(self.root / name)
                for path in sorted(set((self.root / name).glob("[!.]*")) - named):
                    path.unlink()
                    deleted.append(f"{name}/{path.name}")
            return deleted

    @contextmanager
    def writing(self, prefix: str = "data") -> Iterator[str]:
        """Announce that shards will be added, so that `collect` waits; gives a name that no other shard's begins with."""
        with self._locked(), ExitStack() as stack:
            names = [path.name for folder in ("shards", "writers") for path in (self.root / folder).glob(f"{prefix}-*")]
            serials = [int(m[1]) for name in names if (m := re.match(re.escape(prefix) + r"-(\d{6})(?!\d)", name))]
            folder = self.root / "writers" / f"{prefix}-{max(serials, default=0) + 1:06d}"
            folder.mkdir()
            stack.enter_context(DirectoryLock(folder))
            held = stack.pop_all()
        with held:
            yield folder.name
        folder.rmdir()


def check_file(path: Path, size: int, sha256: bytes | None = None) -> None:
    """Refuse a file of another size or, when given, another SHA-256.

    Raises:
        StoreError: it is absent or damaged.
    """
    try:
        found = path.stat().st_size
    except OSError as error:
        raise storage_error(error, path, "read") from error
    if found != size:
        raise StoreError(f"is damaged: it has {found} bytes instead of {size}", file=path)
    if sha256 is not None and sha256_of(path) != sha256.hex():
        raise StoreError("is damaged: it does not match its checksum", file=path)


def _check_samples(shard: Path) -> None:
    if damaged := Shard(shard).damaged():
        raise StoreError(f"{len(damaged)} samples are damaged", file=shard, value=damaged[:20])


def bytes_of(path: Path) -> bytes:
    """Return what a stored file holds.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise storage_error(error, path, "read") from error


def _sealed(body: Mapping[str, Any]) -> bytes:
    """Return a version as text that holds the checksum of the rest."""
    sha256 = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": sha256}, indent=1).encode() + b"\n"


def _compare(ours: Mapping[str, Any], theirs: Mapping[str, Any], **where: Any) -> None:
    """Refuse fields or columns that differ from the store's; name the first."""
    if list(ours.items()) != list(theirs.items()):
        name = next((n for n in (*ours, *theirs) if ours.get(n) != theirs.get(n)), next(iter(theirs)))
        raise InputError("differs from the store's", key=name, value=theirs.get(name), allowed=str(ours.get(name)), **where)


def _manifest(shards: Sequence[ShardInfo], parts: Sequence[PartInfo], columns: Mapping[str, str]) -> Any:
    """Return the rows of new shards as an Arrow table."""
    pa = extra("pyarrow")
    data = {"name": pa.array([shard.name for shard in shards], pa.string())}
    data |= {key: pa.array([getattr(shard, key) for shard in shards], pa.int64()) for key in ("samples", "bytes", "raw_bytes")}
    data |= {f"part_{key}": pa.array([getattr(part, key) for part in parts], pa.int64()) for key in ("bytes", "crc32c")}
    for key, infos in (("sha256", shards), ("part_sha256", parts)):
        data[key] = pa.array([bytes.fromhex(info.sha256) for info in infos], pa.binary(32))
    for name, kind in columns.items():
        keys = () if name == "hash" else ("values",) if kind == "string" else ("min", "max")
        arrow = pa.list_(pa.string()) if kind == "string" else pa.type_for_alias(kind)
        data |= {f"{key}.{name}": pa.array([part.stats[name][key] for part in parts], arrow) for key in keys}
    return pa.table(data)
