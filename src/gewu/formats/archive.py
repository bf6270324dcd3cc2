"""Read tar and zip archives member by member, from hands that mean no good, and samples as WebDataset keeps them in them.

Nothing is extracted: a member is a name and its bytes. What is no regular file (links, devices, sparse or encrypted members), is
larger than `Limits` say, or has a name that leads outside comes as a refusal in its place; a damaged or truncated archive raises.
Memory holds one sample and at most one extended header, whatever sizes are declared.

Members of one basename are one sample, their extensions its fields: `a/1.jpg` and `a/1.cls` make {"key": "a/1", "jpg": ...,
"cls": ...}; of `1.caption.txt` the field is `caption`. By the last part of the extension, txt and json are text, cls is an
integer, npy is an array (never unpickled), all else bytes. Members of one sample stand together, as every writer of WebDataset
has them.
References: POSIX.1-2017 (pax, ustar); GNU tar's long names and base-256 numbers; PKWARE APPNOTE 6.3.
"""

from __future__ import annotations

import io
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np

from gewu.core.errors import InputError
from gewu.formats.packed import LIMITS, Limits, Record, opened

_BLOCK: Final = 512
_KEY: Final = re.compile(r"([^/.\0\\][^/\0\\]*/)*[^/.\0\\]+")
IMAGES: Final = frozenset(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"))
SUFFIXES: Final = IMAGES | {"txt", "text", "json", "cls", "npy", "bin"}


class Member(NamedTuple):
    """One file of an archive, or why it was refused ("not-a-file", "member-too-large", "unsafe-name", "damaged-member")."""

    name: str
    data: bytes = b""
    refused: str = ""


def member(name: bytes, data: bytes, refused: str = "") -> Member:
    """Return a member, refused when its name is not a relative path of UTF-8 that stays inside."""
    text = name.decode("utf-8", "backslashreplace")
    unsafe = text.startswith("/") or ".." in text.split("/") or any(c in text for c in "\0\\") or not text.strip("./")
    return Member(text[:500], b"", refused or "unsafe-name") if refused or unsafe else Member(text, data)


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256
        return int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1)) if field[0] == 0x80 else -1
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _header(block: bytes) -> tuple[bytes, int, bytes]:
    """Return name, size and type of what follows."""
    if len(block) < _BLOCK:
        raise ValueError("ends inside a header (truncated)")
    size = _number(block[124:136])
    if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32 or size < 0:
        raise ValueError("a header does not match its checksum")
    name = block[:100].split(b"\0")[0]
    return (
        block[345:500].split(b"\0")[0] + b"/" + name if block[257:263] == b"ustar\0" and block[345] else name,
        size,
        block[156:157],
    )


def _pax(body: bytes) -> dict[bytes, bytes]:
    records, at = {}, 0
    while at < len(body):
        length = int(body[at : body.index(b" ", at)])
        if length < 5:
            raise ValueError("an extended header has a wrong length")
        key, _, value = body[at : at + length - 1].partition(b" ")[2].partition(b"=")
        records[key], at = value, at + length
    return records


def tar_members(stream: BinaryIO, limits: Limits) -> Iterator[Member]:
    """Yield the files of a tar stream.

    Args:
        stream: read forward only; after an end mark another archive may follow.
        limits: what is too large.

    Raises:
        ValueError: a header is damaged, or the stream ends early.
    """
    pax: dict[bytes, bytes] = {}
    ended = True
    while block := stream.read(_BLOCK):
        if ended := block.count(0) == len(block) == _BLOCK:
            continue
        name, size, kind = _header(block)
        meta = kind in b"xgLK"
        if not meta:
            name, size = pax.get(b"path", name), int(pax.get(b"size", size))
        spoiled = b"spoiled" in pax or any(key.startswith(b"GNU.sparse") for key in pax)
        padded = -(-size // _BLOCK) * _BLOCK
        if size > (limits.header_bytes if meta else limits.member_bytes) or kind not in b"0\x007xgLK":
            if stream.seekable():
                stream.seek(padded, 1)
            while not stream.seekable() and padded > 0 and (part := stream.read(min(padded, 1 << 20))):
                padded -= len(part)
            if kind != b"5":
                yield member(name, b"", "not-a-file" if kind not in b"0\x007xgLK" else "member-too-large")
            pax = {b"spoiled": b""} if meta else {}
            continue
        data = stream.read(padded)[:size]
        if len(data) < size:
            raise ValueError(f"ends inside {name[:200]!r} (truncated)")
        if meta:
            pax |= _pax(data) if kind == b"x" else {b"path": data.rstrip(b"\0")} if kind == b"L" else {}
            continue
        yield member(name, data, "not-a-file" if spoiled else "")
        pax = {}
    if not ended:
        raise ValueError("has no end mark, so members may be missing (truncated)")


def zip_members(path: str | Path, limits: Limits) -> Iterator[Member]:
    """Yield the files of a zip archive.

    Raises:
        ValueError, zipfile.BadZipFile: its directory is damaged or too large.
        InputError: it expands too much.
    """
    packed, expanded = Path(path).stat().st_size, 0
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name, kind = info.orig_filename.encode("utf-8", "surrogateescape"), stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & 1:
                yield member(name, b"", "not-a-file")
            elif info.file_size > limits.member_bytes:
                yield member(name, b"", "member-too-large")
            elif not info.is_dir():
                expanded += info.file_size
                limits.check(info.file_size, info.compress_size)
                limits.check(expanded, packed)  # members may overlap
                try:
                    yield member(name, archive.read(info))
                except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
                    yield member(name, b"", f"damaged-member: {error}")


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


def npy_bytes(array: Any) -> bytes:
    """Return an array as a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def _members(path: str, limits: Limits) -> Iterator[Member]:
    if zipfile.is_zipfile(path):
        yield from zip_members(path, limits)
    else:
        with opened(path, limits) as stream:
            yield from tar_members(stream, limits)


def _decoded(suffix: str, data: bytes) -> Any:
    if suffix in ("txt", "text", "json"):
        return data.decode()
    return int(data) if suffix == "cls" else npy_array(data) if suffix == "npy" else data


def records(path: str, limits: Limits = LIMITS) -> Iterator[Record]:
    """Yield the samples of a tar or zip archive in its order, with the reason of each member that is refused.

    Raises:
        ValueError, InputError, ...: it is damaged, or expands too much; the samples before have come.
    """
    sample: dict[str, Any] = {}
    try:
        for name, data, refused in _members(path, limits):
            folder, slash, base = name.removeprefix("./").rpartition("/")
            stem, _, extension = base.partition(".")
            head, _, suffix = extension.lower().rpartition(".")
            try:
                if refused or not stem:
                    raise ValueError
                value = _decoded(suffix, data)
            except (ValueError, EOFError, SyntaxError) as error:
                reason, colon, said = (refused or (f"damaged-member: {error}" if stem else "hidden-file")).partition(":")
                yield f"{path}: {name!r}{colon}{said}", reason
                continue
            if sample and folder + slash + stem != sample["key"]:
                yield f"{path}: {sample['key']!r}", sample
                sample = {}
            sample.setdefault("key", folder + slash + stem)
            field = head if head and suffix in SUFFIXES else extension.lower() or "data"
            field = extension.lower() if field in sample else field
            if field in sample:
                yield f"{path}: {name!r}", "duplicate-name"
            sample.setdefault(field, value)
    except Exception:  # the last sample may be whole; what it lacks is seen later
        if sample:
            yield f"{path}: {sample['key']!r}", sample
        raise
    if sample:
        yield f"{path}: {sample['key']!r}", sample


def sample_bytes(key: str, values: dict[str, tuple[str, Any]]) -> bytes:
    """Return a sample as members of a tar archive that `records` reads back; at the end of an archive stand 1024 zeros.

    Args:
        key: their name without extension.
        values: by field the kind of a value ("array", "text", "image" or "bytes") and the value.

    Raises:
        InputError: the key cannot name files, or there is no value.
    """
    if not _KEY.fullmatch(key) or not values:
        raise InputError("cannot name the files of a sample", key="key", value=key, hint="leave `key` out, or change it")
    parts = []
    for field, (kind, value) in values.items():
        data = npy_bytes(value) if kind == "array" else value.encode() if kind == "text" else bytes(value)
        info = tarfile.TarInfo(f"{key}.{_extension(field, data, kind)}")
        info.size = len(data)
        parts += [info.tobuf(tarfile.PAX_FORMAT), data, bytes(-len(data) % _BLOCK)]
    return b"".join(parts)


def _extension(field: str, data: bytes, kind: str) -> str:
    """Return the extension under which `records` gives a field back: of kind "array", "text", "image" or "bytes"."""
    last = field.rpartition(".")[2].lower()
    if kind == "image":
        return field if field in IMAGES else field + (".png" if data[:4] == b"\x89PNG" else ".jpg")
    if kind == "text":
        return field if field in ("txt", "json") else f"{field}.txt"
    return f"{field}.npy" if kind == "array" else f"{field}.bin" if last in SUFFIXES or "." in field else field
