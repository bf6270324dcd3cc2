"""A shard: samples packed in one file, read in place, every sample with a checksum.

    header   64 bytes: magic, version
    samples  one after the other (`sample`), or blocks of them compressed by zstd
    footer   u64 offsets of all samples, table of blocks, schema as JSON
    trailer  64 bytes: where the footer is, how many samples, checksums, magic

A file appears under its name when it is complete, and never changes.  Reading maps it into memory: a sample is found by two
offsets, its CRC-32C is checked each time, and what is returned are slices of the map.  With compression the offsets count in
the uncompressed bytes, and a table tells which block holds which of them: a block is one sample, or at least `block_bytes` of
samples.
`docs/data-format.md` describes every byte.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from gewu.core.crc32c import crc32c, crc32c_at
from gewu.core.errors import InputError, StoreError
from gewu.core.files import AtomicFile, storage_error
from gewu.core.machine import extra
from gewu.data.fields import Schema
from gewu.data.sample import Codec, codec

MAGIC: Final = b"\x89GWS\r\n\x1a\n"
VERSION: Final = 1
SUFFIX: Final = ".gws"
COMPRESSIONS: Final = ("none", "sample", "block")
_HEADER: Final = struct.Struct("<8sII44xI")
_TRAILER: Final = struct.Struct("<QQQQIII8xI8s")
_CACHED_BLOCKS: Final = 8
UNREADABLE: Final = (struct.error, ValueError, TypeError, OverflowError, MemoryError)
"""What reading a sample raises that was not written by this format."""


@dataclass(frozen=True)
class ShardInfo:
    """What a manifest says of a shard: its file name, samples, bytes of the file and uncompressed, SHA-256 of the file."""

    name: str
    samples: int
    bytes: int
    raw_bytes: int
    sha256: str


class ShardWriter:
    """Writes one shard; as a context manager it commits at the end and leaves nothing behind after an exception.

    Args:
        path: name of the new file; an existing one is refused.
        schema: of all samples.
        compression: "none", "sample" (zstd, each for itself) or "block" (zstd, many together: smaller, slower at random).
        level: of zstd.
        block_bytes: uncompressed bytes after which a block ends.

    Attributes:
        lengths, hashes: of each sample its bytes and the first 8 bytes of its BLAKE2b (digest of 8 bytes, without the checksum).
        info: after the commit.

    Raises:
        InputError: a sample does not fit the schema.
        StoreError: the name is taken.
        ResourceError: the disk is full, or pyarrow, which has zstd, is missing.
    """

    def __init__(
        self, path: str | Path, schema: Schema, *, compression: str = "none", level: int = 3, block_bytes: int = 1 << 20
    ) -> None:
        if compression not in COMPRESSIONS:
            raise InputError("unknown compression", key="compression", value=compression, allowed=", ".join(COMPRESSIONS))
        self.path, self.schema = Path(path), schema
        self._encode = codec(schema).encode
        self._zip = None if compression == "none" else extra("pyarrow").Codec("zstd", compression_level=level)
        self._block_bytes = 1 if compression == "sample" else block_bytes
        self._block = bytearray()
        self._blocks: list[tuple[int, int, int]] = []  # file offset, raw offset, checksum
        if self.path.exists():
            raise StoreError("exists already", file=self.path, hint="a shard never changes; choose another name")
        self._file = AtomicFile(self.path)
        self._file.write(_sealed(_HEADER, MAGIC, VERSION, COMPRESSIONS.index(compression)))
        self._raw = self._file.tell
        self.offsets, self.lengths, self.hashes = array("Q"), array("I"), array("Q")
        self.info: ShardInfo | None = None

    @property
    def raw_bytes(self) -> int:
        """Uncompressed bytes so far."""
        return self._raw

    def add(self, sample: Mapping[str, Any]) -> int:
        """Append a sample and return its bytes."""
        data = self._encode(sample)
        self.offsets.append(self._raw)
        self.lengths.append(len(data))
        self.hashes.append(int.from_bytes(blake2b(memoryview(data)[4:], digest_size=8).digest(), "little"))
        self._raw += len(data)
        if self._zip is None:
            self._file.write(data)
        else:
            self._block += data
            if len(self._block) >= self._block_bytes:
                self._end_block()
        return len(data)

    def _end_block(self) -> None:
        if self._block and self._zip is not None:
            data = self._zip.compress(bytes(self._block), asbytes=True)
            self._blocks.append((self._file.tell, self._raw - len(self._block), crc32c(data)))
            self._file.write(data)
            self._block = bytearray()

    def commit(self) -> ShardInfo:
        """Write the footer and give the file its name."""
        self._end_block()
        end = self._file.tell
        self._file.write(bytes(-end % 8))
        begin, schema = self._file.tell, self.schema.to_json().encode()
        parts = [np.array([*self.offsets, self._raw], "<u8").tobytes()]
        if self._zip is not None:
            places, raws, sums = zip(*self._blocks, strict=True) if self._blocks else ((), (), ())
            parts += [np.array([*places, end], "<u8").tobytes(), np.array([*raws, self._raw], "<u8").tobytes()]
            parts += [np.array(sums, "<u4").tobytes()]
        parts += [schema]
        footer = b"".join(parts)
        footer += bytes(-len(footer) % 8)
        self._file.write(footer)
        kind = 0 if self._zip is None else 1 if self._block_bytes == 1 else 2
        counts = (len(self.offsets), len(self._blocks), len(schema))
        self._file.write(_sealed(_TRAILER, begin, *counts, crc32c(footer), VERSION, kind, MAGIC))
        size = self._file.tell
        self.info = ShardInfo(self.path.name, len(self.offsets), size, self._raw, self._file.commit())
        return self.info

    def abort(self) -> None:
        """Drop what was written."""
        self._file.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self.info is None:
            self.commit()
        else:
            self.abort()


def _sealed(form: struct.Struct, *values: Any) -> bytes:
    """Pack a header or trailer whose checksum covers all bytes before it."""
    tail = (MAGIC,) if form is _TRAILER else ()
    values = values[: len(values) - len(tail)]
    data = form.pack(*values, 0, *tail)
    return form.pack(*values, crc32c(data[: form.size - 4 - 8 * len(tail)]), *tail)


class Shard:
    """A shard opened for reading; safe to share between threads.

    Args:
        path: the file.

    Raises:
        StoreError: absent, cut short, damaged in header, footer or trailer, or of a newer version.

    Attributes:
        offsets: u64[n + 1], in uncompressed bytes.
        buffer, address: the map of the file and where it lies in memory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb", buffering=0) as stream:
                size = os.fstat(stream.fileno()).st_size
                if size < _HEADER.size + _TRAILER.size:
                    raise self._error("is cut short, or not a shard")
                self.buffer: Any = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise storage_error(error, self.path, "opened") from error
        self._view = np.frombuffer(self.buffer, np.uint8)
        self.address: int = self._view.ctypes.data
        self._open_footer(size)
        self.codec: Codec = codec(self.schema)
        self._cache: OrderedDict[int, tuple[bytes, int]] = OrderedDict()

    def _error(self, message: str, sample: int | None = None) -> StoreError:
        return StoreError(message, file=self.path, key=None if sample is None else f"sample {sample}")

    def _open_footer(self, size: int) -> None:
        magic, version, kind, seal = _HEADER.unpack_from(self.buffer, 0)
        if magic != MAGIC:
            raise self._error("is not a shard, or its first bytes are damaged")
        trailer = self.buffer[size - _TRAILER.size :]
        begin, samples, blocks, length, footer_sum, version_too, kind_too, trailer_seal, magic = _TRAILER.unpack(trailer)
        if magic != MAGIC:
            raise self._error("is cut short: its last bytes are not those of a shard")
        if crc32c(trailer[:52]) != trailer_seal or crc32c(self.buffer[:60]) != seal:
            raise self._error("is damaged in its header or trailer")
        if version != VERSION or version_too != VERSION or kind != kind_too or kind >= len(COMPRESSIONS):
            raise self._error(f"is of version {version}; this program reads version {VERSION}")
        tables = 8 * (samples + 1) + (20 * blocks + 16 if kind else 0)
        if begin % 8 or begin < 64 or begin + tables + length + -(tables + length) % 8 + _TRAILER.size != size:
            raise self._error("is damaged: its footer does not fit into it")
        if crc32c_at(self.address + begin, size - _TRAILER.size - begin) != footer_sum:
            raise self._error("is damaged in its footer")
        self.compression = COMPRESSIONS[kind]
        self.offsets = np.frombuffer(self.buffer, "<u8", samples + 1, begin)
        at = begin + self.offsets.nbytes
        end = int(self.offsets[-1])
        if kind:
            self._places = np.frombuffer(self.buffer, "<u8", blocks + 1, at)
            self._raws = np.frombuffer(self.buffer, "<u8", blocks + 1, at + 8 * (blocks + 1))
            self._sums = np.frombuffer(self.buffer, "<u4", blocks, at + 16 * (blocks + 1))
            at += 20 * blocks + 16
            end = int(self._places[-1])
        if self.offsets[0] != 64 or (np.diff(self.offsets.view(np.int64)) < 4).any():
            raise self._error("is damaged: its offsets do not rise")
        if not end <= begin < end + 8 or any(self.buffer[end:begin]):
            raise self._error("is damaged between samples and footer")
        self.schema = Schema.from_json(self.buffer[at : at + length])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def close(self) -> None:
        """Let go of the file; arrays that were read keep their bytes."""
        self._cache.clear()
        self.buffer = self._view = None  # type: ignore[assignment]

    def place(self, number: int) -> tuple[Any, int]:
        """Return (buffer, start) of a sample after its checksum was found right.

        Raises:
            StoreError: it is damaged; shard and sample are named.
        """
        if not 0 <= number < len(self):
            raise InputError("no such sample", file=self.path, value=number, allowed=f"0 to {len(self) - 1}")
        start, end = int(self.offsets[number]), int(self.offsets[number + 1])
        if self.compression == "none":
            buffer, address = self.buffer, self.address
        else:
            k = int(np.searchsorted(self._raws, start, "right")) - 1
            buffer, address = self._unpacked(k, number)
            start, end = start - int(self._raws[k]), end - int(self._raws[k])
        if crc32c_at(address + start + 4, end - start - 4) != int.from_bytes(buffer[start : start + 4], "little"):
            raise self._error("is damaged: its checksum is wrong", number)
        if not self.codec.fits(buffer, start, end - start):
            raise self._error("cannot be read though its checksum is right: a field lies outside of the sample", number)
        return buffer, start

    def _unpacked(self, block: int, number: int) -> tuple[bytes, int]:
        """Return the bytes of a block and their address."""
        found = self._cache.get(block)
        if found is None:
            begin, end = int(self._places[block]), int(self._places[block + 1])
            if crc32c_at(self.address + begin, end - begin) != int(self._sums[block]):
                raise self._error(f"is damaged: the checksum of block {block} is wrong", number)
            raw = int(self._raws[block + 1]) - int(self._raws[block])
            data = extra("pyarrow").Codec("zstd").decompress(self.buffer[begin:end], raw, asbytes=True)
            found = data, int(np.frombuffer(data, np.uint8).ctypes.data)
            self._cache[block] = found
            while len(self._cache) > _CACHED_BLOCKS:
                self._cache.popitem(last=False)
        return found

    def __getitem__(self, number: int) -> dict[str, Any]:
        buffer, start = self.place(number)
        try:
            return self.codec.decode(buffer, start)
        except UNREADABLE as error:
            raise self._error(f"cannot be read though its checksum is right: {error}", number) from None

    def raw(self, number: int) -> memoryview:
        """Return the stored bytes of a sample, checksum first."""
        buffer, start = self.place(number)
        return memoryview(buffer)[start : start + int(self.offsets[number + 1] - self.offsets[number])]

    def lengths(self) -> Any:
        """Return the bytes of each sample, uint32[n]."""
        return np.diff(self.offsets).astype(np.uint32)

    def damaged(self) -> list[int]:
        """Return the numbers of all samples whose checksum is wrong."""
        found = []
        for number in range(len(self)):
            try:
                self.place(number)
            except StoreError:
                found.append(number)
        return found


class RollingWriter:
    """Writes shards `prefix-0000.gws`, `prefix-0001.gws`, ... one after the other, each of about `shard_bytes`.

    Args:
        folder: where they go; must exist.
        prefix: begin of their names.
        on_shard: called with each writer after its commit: `writer.info`, `writer.lengths`, `writer.hashes`.
        options: of `ShardWriter`.
    """

    def __init__(
        self,
        folder: str | Path,
        prefix: str,
        schema: Schema,
        *,
        shard_bytes: int = 256 << 20,
        on_shard: Callable[[ShardWriter], None] = lambda writer: None,
        **options: Any,
    ) -> None:
        self._folder, self._prefix, self._schema = Path(folder), prefix, schema
        self._limit, self._on_shard, self._options = shard_bytes, on_shard, options
        self._writer: ShardWriter | None = None
        self.infos: list[ShardInfo] = []

    def add(self, sample: Mapping[str, Any]) -> int:
        """Append a sample, in a new shard when the last one is full."""
        if self._writer is None:
            path = self._folder / f"{self._prefix}-{len(self.infos):04d}{SUFFIX}"
            self._writer = ShardWriter(path, self._schema, **self._options)
        size = self._writer.add(sample)
        if self._writer.raw_bytes >= self._limit:
            self._end()
        return size

    def _end(self) -> None:
        if self._writer is not None:
            self.infos.append(self._writer.commit())
            self._on_shard(self._writer)
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._end()
        elif self._writer is not None:
            self._writer.abort()


def write_shards(
    folder: str | Path, prefix: str, samples: Iterable[Mapping[str, Any]], schema: Schema, **options: Any
) -> list[ShardInfo]:
    """Write all samples to as many shards as they need; options as of `RollingWriter`."""
    with RollingWriter(folder, prefix, schema, **options) as writer:
        for sample in samples:
            writer.add(sample)
    return writer.infos
