"""MDS, the format of MosaicML's streaming library (see `gewu.formats.mds`)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from gewu.core.errors import InputError
from gewu.core.files import rolled, write_atomic
from gewu.data.convert.fit import RecordPiece, inferred, refused
from gewu.data.fields import Schema, Type
from gewu.data.piece import Source
from gewu.formats import mds


def mds_source(paths: Sequence[str], schema: Schema | None = None) -> Source:
    """Return the shards that `index.json` of a folder names, one piece a shard."""
    shards = mds.read_index(paths[0])
    pieces = [
        RecordPiece(f"mds-{k:05d}", path, (json.dumps(entry),), reader=mds.records) for k, (path, entry) in enumerate(shards)
    ]
    columns = {
        c: e.split(":") for _, entry in shards for c, e in zip(entry["column_names"], entry["column_encodings"], strict=True)
    }
    return inferred(pieces, "mds", schema, known={c: f"{e[1]}[{e[2]}]" for c, e in columns.items() if len(e) == 3})


def _encoding(name: str, kind: Type, value: Any) -> tuple[str, int | None]:
    """Return the encoding of a field, and its size in bytes or None where it varies."""
    if kind.kind in ("bytes", "text", "image"):
        return {"bytes": "bytes", "text": "str", "image": "png" if value[:4] == b"\x89PNG" else "jpeg"}[kind.kind], None
    if kind.kind != "array" or kind.dtype not in mds.NUMBERS.values() or 0 in kind.shape:
        raise refused("mds", name, kind, "bytes, text, image, integers, reals and arrays of them")
    shape = f":{','.join(map(str, kind.shape))}" if kind.fixed else ""
    return f"ndarray:{kind.dtype}{shape}" if kind.shape else kind.dtype, kind.bytes if kind.fixed else None


def export_mds(samples: Iterable[dict[str, Any]], schema: Schema, folder: str, shard_bytes: int) -> int:
    """Write samples as MDS, readable by streaming's `StreamingDataset`; return their number.

    Raises:
        InputError: a field or a value that MDS cannot hold.
    """
    rows, shards = iter(samples), []
    first = next(rows, None)
    common = mds.entry_of({f.name: _encoding(f.name, f.type, first[f.name] if first else b"") for f in schema}, shard_bytes)

    def packed(sample: dict[str, Any]) -> bytes:
        parts: dict[str, bytes] = {}
        for field in schema:
            try:
                parts[field.name] = mds.encoded(sample[field.name], field.type.dtype, field.type.fixed)
            except InputError as error:
                error.key = field.name
                raise
        return mds.sample_bytes(parts, common)

    for number, group in enumerate(rolled(map(packed, chain([first] if first else [], rows)), shard_bytes, len)):
        name, data = f"shard.{number:05d}.mds", mds.shard_bytes(group, common)
        raw = {"basename": name, "bytes": len(data), "hashes": {"sha256": write_atomic(os.path.join(folder, name), data)}}
        shards.append(common | {"samples": len(group), "raw_data": raw})
    write_atomic(os.path.join(folder, mds.INDEX), json.dumps({"version": 2, "shards": shards}, sort_keys=True).encode())
    return sum(shard["samples"] for shard in shards)
