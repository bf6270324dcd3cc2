"""The easiest way to a store: add samples one by one; at the end they are a version.

Memory holds the columns of one shard, whatever the number of samples. One process; `pipeline` uses many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gewu.core.errors import InputError
from gewu.data.catalogue import Catalogue, PartInfo, Snapshot, part_path, write_part
from gewu.data.fields import Schema
from gewu.data.shard import RollingWriter, ShardWriter


class StoreWriter:
    """Adds samples to a store folder and commits them as one version at the end; after an exception there is none.

    Args:
        root: the folder, NAME.store; made when absent.
        schema: of the samples.
        columns: what the catalogue shall say of each sample besides length and hash: names of fields, whose values are copied, or
            other names, whose values `add` is given; these are text, unless `columns` maps names to types.
        note: kept in the version.
        options: of `RollingWriter`: shard_bytes, compression, level.

    Attributes:
        snapshot: after the end, the new version.

    Example:
        >>> with StoreWriter("letters.store", Schema.of({"text": "text"}), columns=("source",)) as writer:  # doctest: +SKIP
        ...     writer.add({"text": "Guten Tag"}, source="archive")
    """

    def __init__(
        self, root: str | Path, schema: Schema, columns: Sequence[str] | Mapping[str, str] = (), *, note: str = "", **options: Any
    ) -> None:
        fields = {field.name: str(field.type) for field in schema}
        self.types = dict(columns) if isinstance(columns, Mapping) else {name: fields.get(name, "text") for name in columns}
        self.catalogue, self.schema, self._note, self._options = Catalogue(root), schema, note, options
        self._rows: list[list[Any]] = []
        self._parts: list[PartInfo] = []
        self.snapshot: Snapshot | None = None

    def __enter__(self) -> Self:
        self._announced = ExitStack()
        name, folder = self._announced.enter_context(self.catalogue.writing()), self.catalogue.root / "shards"
        self._writer = RollingWriter(folder, name, self.schema, on_shard=self._add_part, **self._options)
        return self

    def add(self, sample: Mapping[str, Any], **columns: Any) -> int:
        """Append a sample, with the values of the columns that are no fields of it; return its bytes.

        Raises:
            InputError: the sample does not fit the schema, or a value is given for no column.
        """
        for name in columns.keys() - self.types.keys():
            raise InputError("no such column", key=name, allowed=", ".join(self.types))
        self._rows.append([columns.get(name, sample.get(name)) for name in self.types])
        try:
            return self._writer.add(sample)
        except InputError:
            self._rows.pop()
            raise

    def _add_part(self, writer: ShardWriter) -> None:
        assert writer.info is not None
        values = dict(zip(self.types, map(list, zip(*self._rows, strict=True)), strict=True))
        columns = {"length": writer.lengths, "hash": writer.hashes, **values}
        meanings = {field.name: field.meaning for field in self.schema if field.meaning}
        self._parts.append(write_part(part_path(self.catalogue.root, writer.info.name), columns, meanings, self.types))
        self._rows.clear()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._announced:
            self._writer.__exit__(kind, error, trace)
            if kind is None:
                self.snapshot = self.catalogue.commit(self._writer.infos, self._parts, self.schema, self._note)
