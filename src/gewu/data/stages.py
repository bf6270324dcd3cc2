"""Stages that jobs need besides those for text: unpack, say where a sample is from and what it is for, count atoms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from gewu.data.fields import Schema
from gewu.data.piece import Piece, Reject
from gewu.data.sample import codec
from gewu.formats.packed import unpacked


@dataclass(frozen=True)
class Unpack:
    """Unpack bytes that gzip, xz, bzip2 or zstd packed; others pass."""

    field: str = "data"
    name: str = "unpack"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return the changed sample; `InputError` for what is damaged or a bomb."""
        return sample | {self.field: unpacked(sample[self.field])}


@dataclass(frozen=True)
class Label:
    """Add what a job knows of a sample: `source` (first folder of its path), `licence`, `split`, `token_count`, `atoms` ...

    Args:
        licences: pairs of source and licence, "" for all others.
        hashed, share, seed: what is marked as validation, by a hash of these fields: samples that are equal fall on one side.
        atoms: whether energies are divided by the number of atoms.
    """

    licences: tuple[tuple[str, str], ...] = ()
    hashed: Schema | None = None
    share: float = 0.0
    seed: int = 1
    atoms: bool = False
    name: str = "label"

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return the sample with its labels."""
        path, sep, _ = str(sample.get("path", "")).removeprefix("./").partition("/")
        more: dict[str, Any] = {"source": path * bool(sep)} if "path" in sample else {}
        if self.licences:
            known = dict(self.licences)
            more["licence"] = known.get(path, known.get("", "unknown"))
        if self.hashed:
            data = codec(self.hashed).encode({name: sample[name] for name in self.hashed.names})[4:]  # without the checksum
            mark = int.from_bytes(blake2b(data, digest_size=8, key=self.seed.to_bytes(8, "little")).digest(), "little")
            more["split"] = "validation" if mark < self.share * 2.0**64 else "train"
        more |= {"token_count": len(sample["tokens"])} if "tokens" in sample else {}
        if self.atoms:
            more |= {"atoms": len(sample["numbers"]), "energy_per_atom": sample["energy"] / len(sample["numbers"])}
        return sample | more

    def schema(self, schema: Schema) -> Schema:
        """Return the schema of what comes out."""
        kinds = {"source": "text"} if "path" in schema else {}
        kinds |= {"licence": "text"} if self.licences else {}
        kinds |= {"token_count": "int64"} if "tokens" in schema else {}
        kinds |= {"split": "text"} if self.hashed else {}
        kinds |= {"atoms": "int32", "energy_per_atom": "float64"} if self.atoms and schema["numbers"] else {}
        units = {"energy_per_atom": schema["energy"].unit} if self.atoms else {}
        return Schema((*schema.fields, *Schema.of(kinds, units).fields)) if kinds else schema


@dataclass(frozen=True)
class Stamped:
    """A piece with what its files were (sizes and times): a store does not go on with files that have changed."""

    piece: Piece
    prefix: str
    stamp: str

    @property
    def name(self) -> str:
        """The name of the piece, with that of its source when there are several."""
        return self.prefix + self.piece.name

    def samples(self) -> Iterator[dict[str, Any] | Reject]:
        """Yield the samples of the piece."""
        return self.piece.samples()
