"""Read tar and zip archives member by member, from hands that mean no good.

Nothing is extracted: a member is a name and its bytes. What is no regular file (links, devices, sparse or encrypted members), is
larger than `Limits` say, or has a name that leads outside comes as a refusal in its place; a damaged or truncated archive raises.
Memory holds one member and at most one extended header, whatever sizes are declared.
References: POSIX.1-2017 (pax, ustar); GNU tar's long names and base-256 numbers; PKWARE APPNOTE 6.3.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from gewu.core.errors import InputError

_BLOCK: Final = 512


class Member(NamedTuple):
    """One file of an archive, or why it was refused ("not-a-file", "member-too-large", "unsafe-name", "damaged-member")."""

    name: str
    data: bytes = b""
    refused: str = ""


@dataclass(frozen=True)
class Limits:
    """What an archive may ask for.

    Attributes:
        member_bytes: of one member.
        header_bytes: of one extended header of tar, and for each byte of 64 of the directory of a zip archive.
        ratio: of expanded to packed bytes, once `free_bytes` are expanded.
    """

    member_bytes: int = 256 << 20
    header_bytes: int = 1 << 20
    ratio: int = 200
    free_bytes: int = 64 << 20

    def check(self, expanded: int, packed: int) -> None:
        """Refuse an expansion that no honest data has."""
        if expanded > self.free_bytes and expanded > self.ratio * packed:
            raise InputError(
                "expands too much, as a bomb does", value=f"{packed} to {expanded} bytes", allowed=f"{self.ratio} times"
            )


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
