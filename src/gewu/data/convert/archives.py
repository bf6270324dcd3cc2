"""Samples in tar and zip archives: members of one basename are one sample, their extensions its fields (WebDataset).

`a/0001.jpg` and `a/0001.cls` make {"key": "a/0001", "jpg": ..., "cls": ...}; of `0001.caption.txt` the field is `caption`. By the
last part of the extension: pictures are `image`, txt and json `text`, cls int64, npy an array (never unpickled), all else `bytes`.
Members of one sample stand together, as every writer of WebDataset has them. Hostile archives: see `gewu.formats.archive`; whatever
is refused there is a `Reject` that names archive and member. Reference: the naming convention of webdataset 0.2 and later.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast

import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import write_atomic
from gewu.data.convert.fit import Image, Raw, RawPiece, field_name, refused, rolled
from gewu.data.fields import Schema, Type, extra
from gewu.data.piece import Reject
from gewu.formats.archive import Limits, Member, tar_members, zip_members

DEFAULT: Final = Limits()
IMAGES: Final = frozenset(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"))
SUFFIXES: Final = IMAGES | {"txt", "text", "json", "cls", "npy", "bin"}
PACKED: Final = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\0": lzma.open, b"BZh": bz2.open, b"\x28\xb5\x2f\xfd": None}


class Unpacked(io.RawIOBase):
    """A compressed file as a stream that refuses to grow beyond the limits."""

    def __init__(self, file: BinaryIO, stream: Any, limits: Limits) -> None:
        self._file, self._stream, self._limits, self._count = file, stream, limits, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, as far as one read goes, so that what precedes damage is not lost."""
        data = self._stream.read1(len(buffer))
        buffer[: len(data)] = data
        self._count += len(data)
        self._limits.check(self._count, self._file.tell())
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def opened(path: str, limits: Limits = DEFAULT) -> BinaryIO:
    """Open a file for reading forward, decompressed when it begins like gzip, xz, bzip2 or zstd."""
    file: Any = open(path, "rb", 1 << 18)  # noqa: SIM115
    for magic, unpack in PACKED.items():
        if file.peek(6).startswith(magic):
            stream = unpack(file) if unpack else extra("pyarrow").CompressedInputStream(file, "zstd")
            return cast(BinaryIO, io.BufferedReader(Unpacked(file, stream, limits), 1 << 16))
    return cast(BinaryIO, file)


def npy_array(data: bytes) -> Any:
    """Return the array of a .npy file whose header tells the truth; objects are refused, nothing is unpickled.

    Raises:
        ValueError: the header does not fit the bytes that follow it.
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    count, left = 1, len(data) - stream.tell()
    for n in shape:
        count *= n
    if dtype.kind not in "biufc" or min(shape, default=0) < 0 or count * dtype.itemsize != left:
        raise ValueError(f"its header says {dtype} of shape {shape}, which {left} bytes are not")
    array = np.frombuffer(data, dtype, count, stream.tell()).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)[()]


def _decoded(suffix: str, data: bytes) -> Any:
    if suffix in IMAGES:
        return Image(data)
    if suffix in ("txt", "text", "json"):
        return data.decode()
    return int(data) if suffix == "cls" else npy_array(data) if suffix == "npy" else data


@dataclass(frozen=True)
class ArchivePiece(RawPiece):
    """One archive."""

    limits: Limits = DEFAULT

    def _members(self) -> Iterator[Member]:
        if zipfile.is_zipfile(self.path):
            yield from zip_members(self.path, self.limits)
        else:
            with opened(self.path, self.limits) as stream:
                yield from tar_members(stream, self.limits)

    def raw(self) -> Raw:
        """Yield its samples in the order of the archive; a `Reject` for each member that is refused."""
        sample: dict[str, Any] = {}
        try:
            for name, data, reason in self._members():
                folder, slash, base = name.removeprefix("./").rpartition("/")
                stem, _, extension = base.partition(".")
                head, _, suffix = extension.lower().rpartition(".")
                try:
                    if reason or not stem:
                        raise InputError(reason or "hidden-file")
                    value = _decoded(suffix, data)
                except (InputError, ValueError, EOFError, SyntaxError) as error:
                    known, _, said = (reason or (f"damaged-member: {error}" if stem else "hidden-file")).partition(":")
                    yield Reject(known, f"{self.path}: {name!r}{said and ':'}{said}")
                    continue
                if sample and folder + slash + stem != sample["key"]:
                    yield f"{self.path}: {sample['key']!r}", sample
                    sample = {}
                sample.setdefault("key", folder + slash + stem)
                field = field_name(head if head and suffix in SUFFIXES else extension.lower() or "data")
                field = field_name(extension.lower()) if field in sample else field
                if field in sample:
                    yield Reject("duplicate-name", f"{self.path}: {name!r}")
                sample.setdefault(field, value)
        except Exception:  # the last sample may be whole, and what is missing in it is seen later
            if sample:
                yield f"{self.path}: {sample['key']!r}", sample
            raise
        if sample:
            yield f"{self.path}: {sample['key']!r}", sample


def _named(name: str, kind: Type, value: Any) -> tuple[str, bytes]:
    """Return the extension and the bytes of a member, such that reading gives the field back."""
    last = name.rpartition(".")[2].lower()
    if kind.kind == "array":
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asarray(value, kind.numpy), allow_pickle=False)
        return (name, b"%d" % value) if (name, kind.dtype) == ("cls", "int64") else (f"{name}.npy", buffer.getvalue())
    if kind.kind == "text":
        return name if name in ("txt", "json") else f"{name}.txt", value.encode()
    if kind.kind == "image":
        return name if name in IMAGES else name + (".png" if value[:4] == b"\x89PNG" else ".jpg"), bytes(value)
    return f"{name}.bin" if last in SUFFIXES or "." in name else name, bytes(value)


def export_webdataset(samples: Iterable[dict[str, Any]], schema: Schema, folder: str, shard_bytes: int) -> int:
    """Write samples as tar files `000000.tar`, ... of about `shard_bytes`; return their number.

    The field `key`, if there is one, names the members of a sample; otherwise its number does.

    Raises:
        InputError: a field that tar files cannot hold, or a key that cannot name a file or stands twice in a row.
    """
    for field in schema:
        kind = field.type.item if field.type.kind == "optional" and field.type.item else field.type
        if kind.kind == "list" or kind.dtype == "bfloat16" or field.name != field.name.lower():
            raise refused("webdataset", field.name, field.type, "every type but lists and bfloat16, names in lower case")

    def packed() -> Iterator[bytes]:
        last = ""
        for number, sample in enumerate(samples):
            key, parts = sample.get("key", f"{number:012d}"), []
            if not re.fullmatch(r"([^/.\0\\][^/\0\\]*/)*[^/.\0\\]+", key) or key == last:
                raise InputError("cannot name the files of a sample", key="key", value=key, hint="leave `key` out, or change it")
            for name in (name for name in schema.names if name != "key" and sample[name] is not None):
                extension, data = _named(name, schema[name].type.item or schema[name].type, sample[name])
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                parts += [info.tobuf(tarfile.PAX_FORMAT), data, bytes(-len(data) % 512)]
            if not parts:
                raise InputError("a sample without any value has no file", key="key", value=key)
            last = key
            yield b"".join(parts)

    total = 0
    for shard, group in enumerate(rolled(packed(), shard_bytes)):
        write_atomic(os.path.join(folder, f"{shard:06d}.tar"), b"".join((*group, bytes(1024))))
        total += len(group)
    return total
