"""Stages that jobs need besides those for text: unpack, say where a sample is from, mark some for validation, count atoms."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePosixPath
from typing import Any, Final

from gewu.data.fields import Schema
from gewu.data.piece import Piece, Reject
from gewu.data.sample import codec

UNPACKED: Final = 64 << 20


@dataclass(frozen=True)
class Unpack:
    """Unpack bytes that gzip packed; others pass. More than `limit` bytes are refused, before they are made."""

    field: str = "data"
    limit: int = UNPACKED
    name: str = "unpack"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any] | Reject:
        """Return the changed sample, or why it is refused."""
        data = sample[self.field]
        if data[:3] != b"\x1f\x8b\x08":
            return sample
        out, rest = b"", bytes(data)
        try:
            while rest[:2] == b"\x1f\x8b":
                gzip = zlib.decompressobj(31)
                out += gzip.decompress(rest, self.limit - len(out) + 1)
                if len(out) > self.limit:
                    return Reject("too-large-unpacked", str(sample.get("path", "")))
                if not gzip.eof:
                    raise zlib.error("ends early")
                rest = gzip.unused_data
        except zlib.error as error:
            return Reject("damaged-gzip", f"{sample.get('path', '')}: {error}")
        return {**sample, self.field: out}


@dataclass(frozen=True)
class Origin:
    """Say where a sample is from: `source`, the first folder of its path, and `licence`, one text or by that folder."""

    licences: tuple[tuple[str, str], ...]
    folders: bool
    name: str = "origin"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return the changed sample."""
        parts = PurePosixPath(sample["path"]).parts if self.folders else ()
        source = parts[0] if len(parts) > 1 else ""
        known = dict(self.licences)
        return sample | ({"source": source} if self.folders else {}) | {"licence": known.get(source, known.get("", "unknown"))}

    def schema(self, schema: Schema) -> Schema:
        """Return the schema of what comes out."""
        return schema.with_fields({**({"source": "text"} if self.folders else {}), "licence": "text"})


@dataclass(frozen=True)
class Split:
    """Mark a share of the samples as validation by a hash of what they hold: equal samples fall on one side, in any order."""

    share: float
    seed: int
    fields: Schema
    name: str = "split"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return the changed sample."""
        data = codec(self.fields).encode({name: sample[name] for name in self.fields.names})[4:]  # without the checksum
        digest = blake2b(data, digest_size=8, key=self.seed.to_bytes(8, "little")).digest()
        marked = int.from_bytes(digest, "little") < self.share * 2.0**64
        return sample | {"split": "validation" if marked else "train"}

    def schema(self, schema: Schema) -> Schema:
        """Return the schema of what comes out."""
        return schema.with_fields({"split": "text"})


@dataclass(frozen=True)
class PerAtom:
    """Add the number of atoms and the energy of each."""

    name: str = "per-atom"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return the changed sample."""
        atoms = len(sample["numbers"])
        return sample | {"atoms": atoms, "energy_per_atom": sample["energy"] / atoms}

    def schema(self, schema: Schema) -> Schema:
        """Return the schema of what comes out."""
        for name in ("numbers", "energy"):
            _ = schema[name]
        made = Schema.of({"atoms": "int32", "energy_per_atom": "float64"}, units={"energy_per_atom": schema["energy"].unit})
        return Schema((*schema.fields, *made.fields))


@dataclass(frozen=True)
class Numbered:
    """A piece of one of several sources: its name says which."""

    piece: Piece
    number: int

    @property
    def name(self) -> str:
        """The name, with the number of its source."""
        return f"{self.number:03d}-{self.piece.name}"

    def samples(self) -> Iterator[dict[str, Any] | Reject]:
        """Yield the samples of the piece."""
        return self.piece.samples()
