"""What was found out about kernels, kept on disk: signatures of modules, verified programs, machine code.

    folder: $GEWU_CACHE, else $XDG_CACHE_HOME/gewu/ops, else ~/.cache/gewu/ops
    entry:  KEY.json = {"digest": SHA-256 of the body, "body": {...}};  KEY: SHA-256 of all that the entry depends on

A key holds the version of gewu and of its files, of LLVM and the processor, so an entry of another version is never found.  An
entry that is damaged, truncated or not of the form its reader expects is ignored and written anew.  Entries are believed once
their digest fits, and machine code among them is run: a folder that belongs to somebody else or that others may write is not
used at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from gewu import __version__
from gewu.core.errors import GewuError, InputError
from gewu.core.files import read_capped, write_atomic

_LIMIT: Final = 1 << 26
FORMAT: Final = 1


def cache_folder() -> Path:
    """Return the folder of the cache; it need not exist."""
    named = os.environ.get("GEWU_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gewu" / "ops"


class Cache:
    """Entries of a folder; with folder None it holds nothing and keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder if folder is not None and _own(folder) else None

    @property
    def objects(self) -> Path | None:
        """The folder for machine code, as `llvm.jit` takes it."""
        return None if self.folder is None else self.folder

    def read(self, key: str) -> Any:
        """Return the body of an entry, or None when there is none that can be believed."""
        if self.folder is None:
            return None
        try:
            entry = json.loads(read_capped(self.folder / f"{key}.json", _LIMIT))
        except (InputError, ValueError, RecursionError):
            return None
        if not isinstance(entry, dict) or set(entry) != {"digest", "body"}:
            return None
        return entry["body"] if entry["digest"] == _digest(entry["body"]) else None

    def write(self, key: str, body: Mapping[str, Any]) -> None:
        """Keep an entry; a cache that cannot be written costs time, not the answer."""
        if self.folder is None:
            return
        entry = {"digest": _digest(body), "body": body}
        try:
            write_atomic(self.folder / f"{key}.json", json.dumps(entry).encode())
        except GewuError:
            return


def key_of(*parts: Any) -> str:
    """Return the key of what depends on these parts, on the versions and on the processor."""
    state = hashlib.sha256(machine_key().encode())
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


@lru_cache(maxsize=1)
def machine_key() -> str:
    """Return what is common to all keys: versions of gewu, of this very code, of the entries' form and of LLVM; the processor."""
    import llvmlite
    import llvmlite.binding as binding

    from gewu.ops.llvm import host

    files = sorted(Path(__file__).parent.glob("*.py"))
    code = [(path.name, (status := path.stat()).st_size, status.st_mtime_ns) for path in files]
    return repr((__version__, code, FORMAT, llvmlite.__version__, binding.llvm_version_info, host()))


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _own(folder: Path) -> bool:
    """Make the folder, for this user alone, and tell whether it can be trusted."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
