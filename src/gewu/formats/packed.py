"""Open files that may be compressed, from hands that mean no good: an expansion beyond `Limits` ends the reading."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast

from gewu.core.errors import InputError, ResourceError

Record = tuple[str, dict[str, Any] | str]
"""What readers of many records yield: where it stands, and its values by name or, as a text, the reason why it is refused."""


@dataclass(frozen=True)
class Limits:
    """What a file may ask for.

    Attributes:
        member_bytes: of one member of an archive.
        header_bytes: of one extended header of tar.
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


LIMITS: Final = Limits()
DAMAGE: Final = (InputError, ValueError, TypeError, LookupError, EOFError, MemoryError, RuntimeError, SystemError, zlib.error,
                 lzma.LZMAError, struct.error)  # fmt: skip
"""What reading damaged content raises here and in the libraries below; an OSError with a number is the system's refusal."""


def pyarrow(module: str = "pyarrow") -> Any:
    """Return pyarrow, or one of its modules.

    Raises:
        ResourceError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ResourceError("needs the package pyarrow", hint="pip install 'gewu[data]'") from error


_UNPACK: Final[dict[bytes, Callable[[Any], Any]]] = {
    b"\x1f\x8b": gzip.open, b"\xfd7zXZ\0": lzma.open, b"BZh": bz2.open, b"\x28\xb5\x2f\xfd": lambda file: pyarrow().CompressedInputStream(file, "zstd")
}  # fmt: skip


class _Unpacked(io.RawIOBase):
    def __init__(self, file: BinaryIO, stream: Any, limits: Limits) -> None:
        self._file, self._stream, self._limits, self._count = file, stream, limits, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read1(len(buffer))  # as far as one step goes, so that what precedes damage is not lost
        buffer[: len(data)] = data
        self._count += len(data)
        self._limits.check(self._count, self._file.tell())
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def opened(path: str, limits: Limits = LIMITS) -> BinaryIO:
    """Open a file for reading; one that begins like gzip, xz, bzip2 or zstd is decompressed, and can only be read forward."""
    file: Any = open(path, "rb", 1 << 18)  # noqa: SIM115
    for magic, unpack in _UNPACK.items():
        if file.peek(6).startswith(magic):
            return cast(BinaryIO, io.BufferedReader(_Unpacked(file, unpack(file), limits), 1 << 16))
    return cast(BinaryIO, file)


def unpacked(data: bytes, limits: Limits = LIMITS) -> bytes:
    """Return bytes decompressed if they begin like gzip, xz, bzip2 or zstd, else as they are.

    Raises:
        InputError: they are damaged, or expand beyond `limits`.
    """
    for magic, unpack in _UNPACK.items():
        if data.startswith(magic):
            try:
                file = io.BytesIO(data)
                with io.BufferedReader(_Unpacked(file, unpack(file), limits), 1 << 16) as stream:
                    data = stream.read(limits.member_bytes + 1)
            except (OSError, *DAMAGE) as error:
                raise InputError(f"cannot be unpacked: {error}") from error
            if len(data) > limits.member_bytes:
                raise InputError("is too large when it is unpacked", allowed=f"{limits.member_bytes} bytes")
            break
    return data
