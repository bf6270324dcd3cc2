"""Tar and zip archives: samples as WebDataset keeps them (see `gewu.formats.archive`)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import rolled, write_atomic
from gewu.data.convert.fit import RecordPiece, inferred, refused
from gewu.data.fields import Schema
from gewu.data.piece import Source
from gewu.formats import archive


def archive_source(paths: Sequence[str], schema: Schema | None = None) -> Source:
    """Return the samples in tar and zip archives, one piece an archive."""
    pieces = [RecordPiece(f"tar-{number:05d}", path, reader=archive.records) for number, path in enumerate(paths)]
    return inferred(pieces, "webdataset", schema)


def export_webdataset(samples: Iterable[dict[str, Any]], schema: Schema, folder: str, shard_bytes: int) -> int:
    """Write samples as tar files `000000.tar`, ... of about `shard_bytes`; return their number.

    The field `key`, if there is one, names the members of a sample; otherwise its number does.

    Raises:
        InputError: a field that tar files cannot hold, or a key that cannot name a file or stands twice in a row.
    """
    kinds = {f.name: f.type.item if f.type.kind == "optional" and f.type.item else f.type for f in schema}
    for name, kind in kinds.items():
        if kind.kind == "list" or kind.dtype == "bfloat16" or name != name.lower():
            raise refused("webdataset", name, kind, "every type but lists and bfloat16, names in lower case")

    def packed() -> Iterator[bytes]:
        last = None
        for number, sample in enumerate(samples):
            key = sample.get("key", f"{number:012d}")
            if key == last:
                raise InputError("names two samples in a row", key="key", value=key)
            last = key
            values = {name: value for name, value in sample.items() if name != "key" and value is not None}
            arrays = {name: np.asarray(v, kinds[name].numpy) for name, v in values.items() if kinds[name].kind == "array"}
            yield archive.sample_bytes(key, {name: (kinds[name].kind, value) for name, value in (values | arrays).items()})

    total = 0
    for shard, group in enumerate(rolled(packed(), shard_bytes, len)):
        write_atomic(os.path.join(folder, f"{shard:06d}.tar"), b"".join((*group, bytes(1024))))
        total += len(group)
    return total
