"""A binary file that grows by appending and can be cut back: trajectories too large for memory, written while a run goes on.

A run that is killed leaves such a file with whatever arrived; when it resumes, the file is cut back to the length that its last
acknowledged checkpoint knew, so bytes behind that are never believed. `sync` before a checkpoint, `write_atomic` for all else.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from gewu.core.errors import StoreError
from gewu.core.files import storage_error, write_all


class GrowingFile:
    """A file opened for appending.

    Args:
        path: its name; made when absent.
        keep: how many of its first bytes are kept, the rest is cut off.

    Raises:
        StoreError: it holds fewer bytes than `keep`, or the system refuses.
        ResourceError: the disk is full.
    """

    def __init__(self, path: str | Path, keep: int = 0) -> None:
        self.path = Path(path)
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            size = os.fstat(self._descriptor).st_size
            if size >= keep:
                os.ftruncate(self._descriptor, keep)
                os.lseek(self._descriptor, keep, os.SEEK_SET)
        except OSError as error:
            raise storage_error(error, self.path, "opened") from error
        if size < keep:
            os.close(self._descriptor)
            raise StoreError("is shorter than the checkpoint says", file=path, value=size, allowed=f"{keep} bytes or more")

    def append(self, data: bytes) -> None:
        """Write `data` at the end."""
        try:
            write_all(self._descriptor, data)
        except OSError as error:
            raise storage_error(error, self.path, "written") from error

    def patch(self, offset: int, data: bytes) -> None:
        """Replace bytes that are already written."""
        try:
            os.pwrite(self._descriptor, data, offset)
        except OSError as error:
            raise storage_error(error, self.path, "written") from error

    def head(self, length: int) -> bytes:
        """Return the first bytes."""
        return os.pread(self._descriptor, length, 0)

    def sync(self) -> None:
        """Flush what was written to the disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise storage_error(error, self.path, "written") from error

    def close(self) -> None:
        """Flush and close; closing twice is allowed."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise storage_error(error, self.path, "written") from error
            finally:
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
