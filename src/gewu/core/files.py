"""Files that are absent or complete: the only door through which gewu writes, and the capped door through which it reads.

A file is written to a temporary name in its own directory, flushed to the disk, renamed over its final name, and the directory
is flushed too: after a kill or a power cut the old file, the new file or none is there, never a part of one. All writing goes
through os.open, os.write, os.fsync and os.replace, so a test that makes the n-th of these calls fail covers every file that
gewu writes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from gewu.core.errors import GewuError, InputError, ResourceError, StoreError

T = TypeVar("T")
TEMPORARY_SUFFIX: Final = ".gewu-tmp"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_DIRECTORY_SYNC: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)


def storage_error(error: OSError, path: str | Path, verb: str) -> GewuError:
    """Return the error to raise for what the system refused: `ResourceError` for a full disk, `StoreError` for all else."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return ResourceError(f"cannot be {verb}: {reason}", file=path, hint="free space on this disk or choose another directory")
    return StoreError(f"cannot be {verb}: {reason}", file=path)


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write every byte, in as many calls as the system asks for."""
    view = memoryview(data).cast("B")
    while view:
        written = os.write(descriptor, view)
        if written == 0:  # would loop for ever
            raise OSError(errno.EIO, "the system accepted no byte")
        view = view[written:]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:  # some network file systems cannot; they order renames themselves
            raise
    finally:
        os.close(descriptor)


def write_atomic(path: str | Path, data: bytes | bytearray | memoryview) -> str:
    """Write a file that is either absent (or as it was) or complete, whatever happens meanwhile.

    Args:
        path: final name; its directory must exist. An existing file is replaced.
        data: the whole content.

    Returns:
        The SHA-256 of `data` in hexadecimal.

    Raises:
        ResourceError: the disk or the quota is full.
        StoreError: any other refusal of the system (no such directory, no permission, input/output error).
    """
    with AtomicFile(path, replace=True) as file:
        file.write(data)
    return file.sha256


class AtomicFile:
    """A stream to a file that is absent until it is complete; for files too large for `write_atomic`.

    As a context manager it commits at the end, and leaves nothing behind after an exception.

    Args:
        path: final name; its directory must exist.
        replace: take the place of an existing file; otherwise the second of two writers is refused when it commits.
        buffer_bytes: how much is gathered before the system is called.

    Attributes:
        tell: bytes so far.
        sha256: of the whole, in hexadecimal, after the commit.

    Raises:
        ResourceError, StoreError: as `write_atomic`; StoreError also when the name is taken.
    """

    def __init__(self, path: str | Path, *, replace: bool = False, buffer_bytes: int = 1 << 20) -> None:
        self.path, self._replace, self._limit = Path(path), replace, buffer_bytes
        self._buffer = bytearray()
        self._hash = hashlib.sha256()
        self.tell, self.sha256 = 0, ""
        self._temporary = self.path.parent / f".{os.getpid()}-{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
        self._descriptor = -1
        with self._or_nothing():
            self._descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append; returns the number of bytes, as a stream does."""
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        if size < self._limit:
            self._buffer += data
        if size >= self._limit or len(self._buffer) >= self._limit:
            self._flush()
        if size >= self._limit:  # large ones are not copied
            self._put(data)
        self.tell += size
        return size

    def _flush(self) -> None:
        if self._buffer:
            self._put(self._buffer)
            self._buffer = bytearray()

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        with self._or_nothing():
            self._hash.update(data)
            write_all(self._descriptor, data)

    @contextmanager
    def _or_nothing(self) -> Iterator[None]:
        """Leave nothing behind when this fails, in whatever way."""
        try:
            yield
        except FileExistsError:
            self.abort()
            raise StoreError("exists already", file=self.path, hint="another writer was first; choose another name") from None
        except OSError as error:
            self.abort()
            raise storage_error(error, self.path, "written") from error
        except ValueError as error:  # a NUL or an unencodable character in the name
            self.abort()
            raise StoreError(f"is not a usable file name: {error}", value=str(self.path)) from error
        except BaseException:
            self.abort()
            raise

    def commit(self) -> str:
        """Put the file under its name, safe on the disk; return its SHA-256 in hexadecimal."""
        self._flush()
        with self._or_nothing():
            os.fsync(self._descriptor)
            # a link, unlike a rename, never takes the place of another file
            (os.replace if self._replace else os.link)(self._temporary, self.path)
            self.abort()
            _sync_directory(self.path.parent)
        self.sha256 = self._hash.hexdigest()
        return self.sha256

    def abort(self) -> None:
        """Drop what was written; nothing to do after `commit`."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._descriptor >= 0:
            self.commit()
        else:
            self.abort()


def sweep_temporaries(directory: str | Path) -> int:
    """Remove the temporaries that killed writers left in a directory; call it only while holding the directory's lock.

    Returns:
        How many were removed.
    """
    removed = 0
    for path in Path(directory).glob(f".*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)
        removed += 1
    return removed


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, reading it in pieces.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise storage_error(error, path, "read") from error


def listing_of(path: Path) -> str:
    """Return the SHA-256 of what a folder holds: relative path, size and time of change (ns) of every file, in sorted order.

    The bytes of the files are not read, so a million files take seconds; a file that was only touched, or a copy of the folder,
    counts as another. Links are never followed. A single file is listed likewise.

    Raises:
        InputError: a folder cannot be read.
    """
    digest = hashlib.sha256()

    def fail(error: OSError) -> None:
        raise InputError(f"cannot be read: {error.strerror}", file=error.filename or path) from error

    def add(name: str, place: str) -> None:
        status = os.lstat(place)
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))

    try:
        if path.is_file():
            add("", os.path.realpath(path))
            return digest.hexdigest()
        for folder, folders, files in os.walk(path, onerror=fail):
            folders.sort()
            inside = os.path.relpath(folder, path)
            for name in sorted(files):
                add(f"{inside}/{name}", f"{folder}/{name}")
    except OSError as error:
        fail(error)
    return digest.hexdigest()


def read_capped(path: str | Path, limit_bytes: int) -> bytes:
    """Read a regular file of bounded size.

    Args:
        path: file to read; a pipe or a device is refused and never waited for.
        limit_bytes: largest size accepted.

    Raises:
        InputError: there is no such file, it is a directory or a device, it may not be read, or it is too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InputError("there is no such file", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be opened: {error.strerror}", file=path) from error
    except ValueError as error:  # a NUL or an unencodable character in the name
        raise InputError(f"is not a usable file name: {error}", value=str(path)) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise InputError("is not a regular file", file=path)
    with os.fdopen(descriptor, "rb") as stream:
        try:
            data = stream.read(min(limit_bytes, status.st_size) + 1)  # not the limit: it would be allocated
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=path) from error
    if len(data) > limit_bytes:
        raise InputError("is too large", file=path, allowed=f"at most {limit_bytes} bytes")
    return data


def read_text_capped(path: str | Path, limit_bytes: int) -> str:
    """Read a UTF-8 text file of bounded size; line ends become "\\n" and a byte-order mark is dropped.

    Raises:
        InputError: as `read_capped`; also bytes that are not UTF-8, with their line.
    """
    data = read_capped(path, limit_bytes)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError("is not UTF-8 text", file=path, line=line, value=data[error.start : error.start + 1]) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def open_folder(path: str | Path) -> int:
    """Return the descriptor of a folder, for `read_at`; the caller closes it.

    Raises:
        StoreError: it is gone, not a folder, or may not be read.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise storage_error(error, path, "read") from error


def read_at(folder: int, name: str, limit_bytes: int) -> bytes:
    """Read a regular file of an open folder, following no link: the quick way to very many small files.

    Raises:
        InputError: "not-a-file", "too-large", "unreadable" or "changed" (while it was read), and no more, for there are many.
    """
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        raise InputError("unreadable") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit_bytes:
            raise InputError("too-large" if stat.S_ISREG(status.st_mode) else "not-a-file")
        data = os.read(descriptor, status.st_size + 1)
        while 0 < len(data) < status.st_size and (more := os.read(descriptor, status.st_size + 1 - len(data))):
            data += more
        if len(data) != status.st_size or os.fstat(descriptor).st_mtime_ns != status.st_mtime_ns:
            raise InputError("changed")
        return data
    except OSError:
        raise InputError("unreadable") from None
    finally:
        os.close(descriptor)


def rolled(parts: Iterable[T], limit: int, length: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield groups of parts of about `limit` bytes together, at least one part each: what files of bounded size shall hold."""
    group: list[T] = []
    size = 0
    for part in parts:
        size += length(part)
        if group and size > limit:
            yield group
            group, size = [], length(part)
        group.append(part)
    if group:
        yield group


class LineLog:
    """An append-only text file, one `os.write` per line; a line that a kill cut short is removed when it is opened again.

    Raises:
        ResourceError, StoreError: as `write_atomic`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            self._drop_partial_line()
        except OSError as error:
            raise storage_error(error, self.path, "opened") from error

    def _drop_partial_line(self) -> None:
        end = os.fstat(self._descriptor).st_size
        keep = end
        while keep > 0:
            start = max(0, keep - 65536)
            newline = os.pread(self._descriptor, keep - start, start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep != end:
            os.ftruncate(self._descriptor, keep)

    def write(self, line: str) -> None:
        """Append one line (given without its line end): all of it, or nothing when this raises."""
        if "\n" in line:
            raise GewuError("a log line must not contain a line end", file=self.path, value=line)
        data = line.encode("utf-8") + b"\n"
        try:
            if os.write(self._descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._drop_partial_line()
            raise storage_error(error, self.path, "written") from error

    def sync(self) -> None:
        """Flush what was written to the disk."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise storage_error(error, self.path, "written") from error

    def close(self) -> None:
        """Flush to the disk and close."""
        try:
            self.sync()
        finally:
            os.close(self._descriptor)


class DirectoryLock:
    """A context manager that keeps a second writer out of a directory; the system frees it when its holder dies.

    Raises:
        ResourceError: another process holds it (its process number and host are named), or the file system cannot lock.
        StoreError: the directory does not exist or cannot be written.
    """

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory) / ".lock"
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            while self._descriptor < 0:
                self._descriptor = self._try_once()
        except OSError as error:
            raise storage_error(error, self.path, "locked") from error
        return self

    def _try_once(self) -> int:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A holder removes the file when it leaves; what was just locked may be that removed file.
            if not self._is_current(descriptor):
                os.close(descriptor)
                return -1
            os.ftruncate(descriptor, 0)
            write_all(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace") or "another process"
            os.close(descriptor)
            hint = "wait for it, stop it, or choose another directory"
            raise ResourceError(f"is in use by {holder}", file=self.path.parent, hint=hint) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise ResourceError(
                    "this file system has no locks", file=self.path.parent, hint="choose another directory"
                ) from error
            raise
        return descriptor

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1
