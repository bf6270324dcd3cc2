"""Checkpoints: a nested state of numbers, texts and arrays as bytes, and sets of them that a kill cannot damage.

Layout of one checkpoint: 8 bytes magic, u32 version, u64 length of the header, the header (JSON: the nested structure and a
table of arrays), padding to 64 bytes, the arrays as raw little-endian bytes each at a multiple of 64, and BLAKE2b-256 of all
before it. Floats are kept by their bits. Nothing in a checkpoint is ever executed (no pickle), and every size is checked
against the length of the file before memory is taken.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import GewuError, InputError, StoreError
from gewu.core.files import read_capped, write_atomic
from gewu.core.ranks import Ranks

MAGIC: Final = b"GEWUCKPT"
VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sIQ")
_DIGEST_BYTES: Final = 32
_ALIGN: Final = 64
_MAX_DEPTH: Final = 64
_DTYPES: Final = frozenset(("|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f4", "<f8", "<c8", "<c16"))
_LATEST_LIMIT: Final = 64 * 2**20  # latest.json holds about 100 bytes per rank
_FRESH: Final = "start again with --fresh"


def dump(state: Mapping[str, Any]) -> bytes:
    """Turn a state into bytes from which `load` gives it back bit by bit.

    Args:
        state: None, bool, int, float, str, bytes, NumPy arrays (bool, integer, float, complex; C or Fortran order is kept),
            lists, and mappings with text keys, nested at most 64 deep. NumPy scalars come back as Python numbers.

    Raises:
        GewuError: a value of another type, named by its place in the state.
    """
    arrays: list[NDArray[Any]] = []
    tree = _encode(state, "state", arrays, 0)
    table, offset = [], 0
    for array in arrays:
        table.append({"dtype": _little(array.dtype).str, "shape": array.shape, "order": _order(array), "offset": offset})
        offset += -(-array.nbytes // _ALIGN) * _ALIGN
    header = json.dumps({"tree": tree, "arrays": table}, separators=(",", ":")).encode("ascii")
    parts = [_HEAD.pack(MAGIC, VERSION, len(header)), header, bytes(-(_HEAD.size + len(header)) % _ALIGN)]
    for array in arrays:
        parts += [array.astype(_little(array.dtype), copy=False).tobytes(order=_order(array)), bytes(-array.nbytes % _ALIGN)]
    body = b"".join(parts)
    return body + hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()


def _order(array: NDArray[Any]) -> Literal["C", "F"]:
    return "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<")


def _encode(value: Any, place: str, arrays: list[NDArray[Any]], depth: int) -> Any:
    """Turn a value into JSON in which every object has one key, the kind of what it holds."""
    if depth > _MAX_DEPTH:
        raise GewuError("a checkpoint state is nested too deep", key=place, allowed=f"at most {_MAX_DEPTH} levels")
    if isinstance(value, np.bool_ | np.integer | np.floating) and value.dtype.itemsize <= 8:
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return {"i": hex(value)}
    if isinstance(value, float):
        return {"f": struct.pack(">d", value).hex()}
    if isinstance(value, str):
        return {"s": value}
    if isinstance(value, bytes):
        return {"b": value.hex()}
    if type(value) is np.ndarray and _little(value.dtype).str in _DTYPES:
        arrays.append(value)
        return {"a": len(arrays) - 1}
    if isinstance(value, list):
        return [_encode(entry, f"{place}[{index}]", arrays, depth + 1) for index, entry in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"d": {key: _encode(entry, f"{place}.{key}", arrays, depth + 1) for key, entry in value.items()}}
    what = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    allowed = "None, bool, int, float, str, bytes, NumPy arrays of numbers, lists, mappings with text keys"
    raise GewuError(f"a checkpoint cannot hold this: {what}", key=place, allowed=allowed)


def load(data: bytes, *, source: str | Path) -> dict[str, Any]:
    """Give back the state that `dump` turned into bytes; arrays are fresh and writable.

    Args:
        data: the whole content of a checkpoint.
        source: where it was read, for messages.

    Raises:
        StoreError: it is cut short, changed, of another version, or not a checkpoint.
    """
    try:
        return _load(data)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, OverflowError, struct.error) as error:
        raise StoreError(f"is not an intact checkpoint: {error}", file=source, hint=_FRESH) from error


def _load(data: bytes) -> dict[str, Any]:
    end = len(data) - _DIGEST_BYTES
    if end < _HEAD.size:
        raise ValueError("cut short")
    magic, version, header_bytes = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise ValueError("does not begin like one")
    if version != VERSION:
        raise ValueError(f"version {version}, this gewu reads version {VERSION}")
    if hashlib.blake2b(memoryview(data)[:end], digest_size=_DIGEST_BYTES).digest() != data[end:]:
        raise ValueError("checksum does not match")
    start = _HEAD.size + header_bytes
    start += -start % _ALIGN
    if start > end:
        raise ValueError("header longer than the file")
    header = json.loads(data[_HEAD.size : _HEAD.size + header_bytes].decode("ascii"))
    arrays = [_array(memoryview(data)[start:end], entry) for entry in header["arrays"]]
    state = _decode(header["tree"], arrays, 0)
    if not isinstance(state, dict):
        raise TypeError("the state is not a table")
    return state


def _array(body: memoryview, entry: Any) -> NDArray[Any]:
    shape, offset, order = entry["shape"], entry["offset"], entry["order"]
    if entry["dtype"] not in _DTYPES or order not in ("C", "F"):
        raise ValueError("unknown kind of array")
    if not all(type(length) is int and length >= 0 for length in [*shape, offset]) or len(shape) > 32:
        raise ValueError("impossible shape of an array")
    dtype = np.dtype(entry["dtype"])
    count = math.prod(shape)
    if offset + count * dtype.itemsize > len(body):
        raise ValueError("an array reaches beyond the file")
    flat = np.frombuffer(body[offset : offset + count * dtype.itemsize], dtype)
    return flat.reshape(shape, order=order).astype(dtype.newbyteorder("="), order=order, copy=True)


def _decode(node: Any, arrays: list[NDArray[Any]], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deep")
    if node is None or isinstance(node, bool):
        return node
    if isinstance(node, list):
        return [_decode(entry, arrays, depth + 1) for entry in node]
    match node:
        case {"i": str(digits), **rest} if not rest:
            return int(digits, 16)
        case {"f": str(bits), **rest} if not rest:
            return float(struct.unpack(">d", bytes.fromhex(bits))[0])
        case {"s": str(text), **rest} if not rest:
            return text
        case {"b": str(digits), **rest} if not rest:
            return bytes.fromhex(digits)
        case {"a": int(index), **rest} if not rest and index >= 0:
            return arrays[index]
        case {"d": dict(table), **rest} if not rest:
            return {key: _decode(entry, arrays, depth + 1) for key, entry in table.items()}
    raise ValueError("unknown kind of value")


class CheckpointSet:
    """The checkpoints of one run in one directory: one file per rank and step, and `latest.json` that names the valid step.

    A set counts from the moment `latest.json` is replaced; before that moment the older set is still whole. All calls are
    collective, and an error on one rank is raised on all of them.

    Args:
        directory: an existing directory, held by this run alone (`files.DirectoryLock`), seen by all ranks.
        ranks: the ranks of the run.
    """

    def __init__(self, directory: str | Path, ranks: Ranks) -> None:
        self.directory = Path(directory)
        self.ranks = ranks
        self.step: int | None = None

    def write(self, step: int, state: Mapping[str, Any]) -> None:
        """Keep the state of every rank; when this returns, it is on the disk and older sets are gone.

        Args:
            step: any number from 0, above that of the set it replaces (`self.step` after `read` or `write`; call `read` first).
            state: what `dump` takes; it may differ between ranks.

        Raises:
            ResourceError: the disk is full; the older set is still valid.
            StoreError: the directory cannot be written; the older set is still valid.
            GewuError: the state holds what a checkpoint cannot, or the step does not grow.
        """
        record: dict[str, Any] = {}
        with _Together(self.ranks) as together:
            self._check_step(step)
            self.step = step  # used up, even if this fails half-way
            data = dump(state)
            record = {"bytes": len(data), "sha256": write_atomic(self._path(step, self.ranks.rank), data)}
        together.agree()
        files = self.ranks.gather(record)
        with _Together(self.ranks) as together:
            if self.ranks.is_root:
                latest = {"version": VERSION, "step": step, "ranks": self.ranks.size, "files": files}
                write_atomic(self.directory / "latest.json", json.dumps(latest).encode("ascii"))
        together.agree()
        if self.ranks.is_root:
            self._remove_others(step)

    def _check_step(self, step: int) -> None:
        """Refuse a step whose files might replace those of the set that is still valid."""
        if self.step is None and (self.directory / "latest.json").exists():
            raise GewuError(
                "an older set of checkpoints must be read, or removed, before a new one is written", file=self.directory
            )
        if step < 0 or (self.step is not None and step <= self.step):
            raise GewuError("the step of a checkpoint must grow", value=step, allowed=f"above {self.step}")

    def read(self) -> dict[str, Any] | None:
        """Return the state of this rank in the last acknowledged set, or None when there is no set.

        Raises:
            StoreError: the set is damaged or incomplete.
            InputError: it was written by another number of ranks.
        """
        latest: dict[str, Any] | None = None
        with _Together(self.ranks) as together:
            if self.ranks.is_root:
                latest = self._read_latest()
        together.agree()
        latest = self.ranks.bcast(latest)
        if latest is None:
            return None
        state: dict[str, Any] = {}
        with _Together(self.ranks) as together:
            state = self._read_mine(latest)
        together.agree()
        self.step = latest["step"]
        return state

    def _path(self, step: int, rank: int) -> Path:
        return self.directory / f"step-{step:08d}.rank-{rank:04d}.ckpt"

    def _read_latest(self) -> dict[str, Any] | None:
        path = self.directory / "latest.json"
        if not path.exists():
            return None
        try:
            latest = json.loads(_read_stored(path, _LATEST_LIMIT))
            step, ranks, files = latest["step"], latest["ranks"], latest["files"]
            if latest["version"] != VERSION or type(step) is not int or type(ranks) is not int or len(files) != ranks:
                raise ValueError("its entries do not fit together")
            entries = [{"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])} for entry in files]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise StoreError(f"is damaged: {error}", file=path, hint=_FRESH) from error
        if ranks != self.ranks.size:
            hint = f"run with {ranks} rank(s) (mpirun -n {ranks}), or {_FRESH}"
            raise InputError(f"this checkpoint belongs to {ranks} rank(s)", file=path, value=self.ranks.size, hint=hint)
        return {"step": step, "files": entries}

    def _read_mine(self, latest: Mapping[str, Any]) -> dict[str, Any]:
        path = self._path(latest["step"], self.ranks.rank)
        entry = latest["files"][self.ranks.rank]
        data = _read_stored(path, entry["bytes"])
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise StoreError("does not match its checksum", file=path, hint=_FRESH)
        return load(data, source=path)

    def _remove_others(self, step: int) -> None:
        kept = f"step-{step:08d}."
        for path in self.directory.iterdir():
            if re.fullmatch(r"step-\d{8,}\.rank-\d{4,}\.ckpt", path.name) and not path.name.startswith(kept):
                path.unlink(missing_ok=True)


def _read_stored(path: Path, limit_bytes: int) -> bytes:
    try:
        return read_capped(path, limit_bytes)
    except InputError as error:  # the same refusals, but of a file that gewu itself should have kept
        raise StoreError(error.message, file=path, hint=_FRESH) from error


class _Together:
    """Hold back an error of one rank until all ranks meet in `agree`, so that none waits for a rank that gave up."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._error: GewuError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self._error = error if isinstance(error, GewuError) else None
        return self._error is not None

    def agree(self) -> None:
        """Raise on every rank when one failed: its own error there, a message that names the rank elsewhere."""
        found = self._ranks.allgather(None if self._error is None else (type(self._error), str(self._error)))
        if self._error is not None:
            raise self._error
        for rank, entry in enumerate(found):
            if entry is not None:
                raise entry[0](f"rank {rank}: {entry[1]}")
