"""LLVM texts of kernels kept in a folder, so that a later process neither analyses nor writes them again.

A file holds a digest, then the places for messages and the text, compressed. Its name is the digest of the kernel, of how it is
compiled and of this package's own code; a file that is damaged or of another version is as good as absent.
"""

from __future__ import annotations

import hashlib
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Final

from gewu.core.errors import GewuError, InputError
from gewu.core.files import read_capped, write_atomic
from gewu.ops import ir

Written = tuple[str, tuple[str, ...]]
_LIMIT: Final = 1 << 26
_LARGEST: Final = 1 << 28
_MAGIC: Final = b"gewu-spmd 1\n"


@lru_cache(maxsize=1)
def _own_code() -> bytes:
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("spmd*.py"), folder / "shape.py", folder / "ir.py"]):
        digest.update(path.read_bytes())
    return digest.digest()


def key_of(kernel: ir.Kernel, options: tuple[object, ...]) -> str:
    """Return the name under which the text of a kernel is kept."""
    digest = hashlib.sha256(_own_code())
    head = (kernel.name, kernel.parameters, kernel.shared, kernel.local, options)
    digest.update(repr(head).encode())
    digest.update(kernel.data)
    digest.update(repr(sorted(kernel.widths.items())).encode())
    for block in kernel.blocks:
        lines = [f"{i.op} {i.type} {i.dst} {i.src} {i.mods} {i.guard} {i.where}" for i in block.code]
        digest.update(f"{block.next}\n{chr(10).join(lines)}\n".encode())
    return digest.hexdigest()


def kept(folder: Path, key: str) -> Written | None:
    """Return a kept text, or None."""
    try:
        data = read_capped(folder / f"{key}.spmd", _LIMIT)
    except InputError:
        return None
    size = len(_MAGIC)
    head, digest, body = data[:size], data[size : size + 32], data[size + 32 :]
    if head != _MAGIC or digest != hashlib.sha256(body).digest():
        return None
    try:
        places, _, text = zlib.decompressobj().decompress(body, _LARGEST).decode().partition("\0")
    except (zlib.error, UnicodeDecodeError):
        return None
    return text, tuple(places.split("\n"))


def keep(folder: Path, key: str, written: Written) -> None:
    """Keep a text; a folder that cannot be written costs time, not the answer."""
    text, places = written
    body = zlib.compress(("\n".join(places) + "\0" + text).encode(), 1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{key}.spmd", _MAGIC + hashlib.sha256(body).digest() + body)
    except (OSError, GewuError):
        return
