"""Checkpoints of a training state: every process writes its pieces while the training goes on, any layout reads them.

    step-00000042/process-0003.safetensors   the pieces that process 3 holds first (replica 0), as "NAME[start, ...]"
    step-00000042/index.json                 written last: shapes, pieces, checksums, what else belongs to the state

An array is known by the name that it has with all layers in one stack ("params/layers/qkv"); row 3 of it is layer 3, whether the
state holds a stack, a list of layers, or the stack of an interleaved pipeline in its own order. `save` copies the pieces to
memory that is kept for it (1 GB takes 0.06 s here) and returns; a thread of low priority writes them. Process 0 writes the index
when all pieces are there: a checkpoint without an index is none. With `peers` (see `gewu.train.keeper`) each process also leaves
its pieces in the memory of two keepers, so those that survive a machine go on without the disk.

`load` reads only the blocks (`BLOCK` bytes, each with a CRC-32C) that its process needs; where one is damaged on any process, all
take the checkpoint before. `save`, `wait` and `load` are collective; all processes see one folder.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import jax
import numpy as np
from jax.tree_util import tree_flatten_with_path

from gewu.core.crc32c import crc32c
from gewu.core.errors import GewuError, InputError, ResourceError, StoreError
from gewu.core.files import DirectoryLock, read_capped, storage_error, sweep_temporaries, write_atomic
from gewu.formats import safetensors
from gewu.train import keeper

BLOCK: Final = 1 << 22
FORMAT: Final = "gewu-checkpoint-1"
_INDEX_BYTES: Final = 1 << 30
_NICE: Final = 15
Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Start and shape of a part of an array."""


class Checkpoints:
    """The checkpoints of one run in one folder.

    Args:
        folder: made when needed; one run writes there.
        keep: how many stay on the disk.
        identity: text that says of what model; one of another text is refused.
        layers: layer of each row of the stacks in the state (`pipeline.order`); None where they are in order.
        peers: addresses of keepers, one for each machine; None for those that `gewu.train.elastic` started.

    Attributes:
        messages: what went wrong without ending the run: a full disk, a damaged file.
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int = 2,
        *,
        identity: str = "",
        layers: Sequence[int] | None = None,
        peers: Sequence[str] | None = None,
    ) -> None:
        self.folder, self.keep, self.identity, self.messages = Path(folder), keep, identity, list[str]()
        self._layers = None if layers is None else [int(layer) for layer in layers]
        self._peers = keeper.started if peers is None else list(peers)
        self._lock: DirectoryLock | None = None
        self._pool: dict[str, Any] = {}
        self._thread: threading.Thread | None = None
        self._written, self._abandoned = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._stands, self._known = True, False

    def save(self, state: Any, extra: dict[str, Any], step: int) -> None:
        """Begin to write a state; the next `save` or `wait` waits for the end.

        Args:
            state: tree of JAX arrays.
            extra: what JSON can hold, the same on every process: where the samples stand.
            step: its number.

        Raises:
            InputError: the folder holds checkpoints of another run.
            ResourceError: another run writes there.
        """
        self._settle()
        if not self._begin(step):
            return
        tensors, pieces, boxes = dict[str, Any](), dict[str, Any](), dict[str, tuple[str, Box]]()
        for name, rows, row, leaf in _leaves(state):
            tensors[name] = {"dtype": safetensors.NAMES[np.dtype(leaf.dtype)], "shape": [*rows, *leaf.shape]}
            for shard in leaf.addressable_shards if isinstance(leaf, jax.Array) else ():
                if shard.replica_id:
                    continue
                for start, shape, part in self._boxes(name, shard.index, leaf.shape, row):
                    key = f"{name}[{', '.join(map(str, start))}]"
                    boxes[key] = name, (start, shape)
                    pieces[key] = self._copied(key, np.asarray(shard.data)[part].reshape(shape))
        fields = {"format": FORMAT, "step": step, "processes": jax.process_count(), "identity": self.identity, "extra": extra}
        self._written.clear()
        self._abandoned.clear()
        self._stands = False
        self._thread = threading.Thread(target=self._write, args=(step, fields | {"tensors": tensors}, pieces, boxes))
        self._thread.start()

    def wait(self) -> bool:
        """Wait until what was saved last is on the disk; return whether it is. What went wrong stands in `messages`."""
        self._settle()
        return self._stands

    def latest(self) -> int | None:
        """Return the newest step that is complete, or None; its bytes are only looked at by `load`."""
        self._known = True
        steps = [source.step for source in self._sources()]
        return steps[0] if steps else None

    def load(self, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """Return the newest state that is whole, laid out as asked, and its `extra`.

        Args:
            abstract: tree of `jax.ShapeDtypeStruct` with shardings, as `Trainer.abstract`.

        Raises:
            StoreError: there is none.
            InputError: it is of another model.
        """
        self._settle()
        self._known = True
        for source in self._sources():
            try:
                self._refuse_other(source, abstract)
                state = self._filled(source, abstract)
                problem = ""
            except StoreError as error:
                problem = str(error)
            if not any(codes := _allgather(bool(problem))):
                return state, source.index["extra"]
            where = problem or f"process {codes.index(1)} could not read its pieces"
            self.messages.append(f"the checkpoint of step {source.step} is damaged, the one before it is used: {where}")
        raise StoreError("holds no checkpoint that is whole", file=self.folder, hint="; ".join(self.messages) or "start again")

    def close(self) -> None:
        """Wait for what is being written and let others use the folder."""
        if self._thread:
            self._thread.join()
        if self._lock is not None:
            lock, self._lock = self._lock, None
            lock.__exit__(None, None, None)

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    # ------------------------------------------------------------------ save

    def _copied(self, key: str, array: Any) -> Any:
        """Return a copy in memory that is used again and again: pages that are there already are filled at full speed."""
        if jax.default_backend() != "cpu":
            return array  # came over from the device just now
        kept = self._pool.get(key)
        if kept is None or kept.shape != array.shape or kept.dtype != array.dtype:
            kept = self._pool[key] = np.empty(array.shape, array.dtype)
        np.copyto(kept, array)
        return kept

    def _boxes(self, name: str, index: Any, shape: Any, row: int | None) -> Iterable[tuple[Any, Any, Any]]:
        """Yield where parts of a shard stand in the array of its name: start and shape there, part of the shard."""
        start = tuple(cut.start or 0 for cut in index)
        size = tuple((n if cut.stop is None else cut.stop) - a for cut, n, a in zip(index, shape, start, strict=True))
        if row is not None:
            yield (row, *start), (1, *size), ...
        elif self._layers is None or not _of_layers(name):
            yield start, size, ...
        else:  # runs of layers that follow one another
            layers, first = self._layers[start[0] : start[0] + size[0]], 0
            for k in range(1, len(layers) + 1):
                if k == len(layers) or layers[k] != layers[k - 1] + 1:
                    yield (layers[first], *start[1:]), (k - first, *size[1:]), slice(first, k)
                    first = k

    def _settle(self) -> None:
        """Wait for the last save and agree with all processes how it went."""
        if self._thread:
            self._written.wait()
        codes = _allgather(self._error is not None)
        if any(codes):
            self._abandoned.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None and not isinstance(error, GewuError):
            raise error
        if error is not None or any(codes):
            self._fail(error or f"process {codes.index(1)} failed")

    def _fail(self, why: object) -> None:
        self._stands = False
        self.messages.append(f"a checkpoint could not be written, training goes on: {why}")

    def _begin(self, step: int) -> bool:
        """Make the folder ready, or return False on every process: a full disk costs a checkpoint, another run is an error."""
        problem, code = None, 0
        if jax.process_index() == 0:
            try:
                self._claim(step)
            except GewuError as error:
                problem, code = error, 1 if isinstance(error.__cause__, OSError) else 2
        code = _allgather(code)[0]
        if code == 2:
            raise problem or ResourceError("process 0 cannot use the folder of the checkpoints", file=self.folder)
        if code:
            self._fail(problem or "process 0 failed")
        return not code

    def _claim(self, step: int) -> None:
        """Keep other runs out and remove what an interrupted one, or a future that was given up, has left."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.folder, "made") from error
        if self._lock is None:
            lock = DirectoryLock(self.folder)
            lock.__enter__()
            self._lock = lock
        folders = {number: path for path in self.folder.glob("step-*") if (number := _step_of(path)) is not None}
        if folders and not self._known:
            hint = "load from it, or choose another folder"
            raise InputError("holds the checkpoints of another run", file=self.folder, value=f"step {max(folders)}", hint=hint)
        self._known = True
        for number, path in folders.items():
            if number >= step or not (path / "index.json").exists():
                _remove(path)

    def _write(self, step: int, fields: dict[str, Any], pieces: dict[str, Any], boxes: dict[str, tuple[str, Box]]) -> None:
        """Write this process' pieces, and on process 0 the index when all are there; runs in a thread."""
        with suppress(OSError, AttributeError):  # only Linux knows the priority of a thread
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        number, count = jax.process_index(), fields["processes"]
        try:
            head, places = safetensors.arrange(pieces)
            file, listed = f"process-{number:04d}.safetensors", []
            for key, place in places.items():
                start, shape = boxes[key][1]
                entry = {"file": file, "name": boxes[key][0], "start": start, "shape": shape}
                listed.append(entry | {"offset": len(head) + place, "crc32c": _checksums(pieces[key])})
            size = len(head) + sum(piece.nbytes for piece in pieces.values())
            record = fields | {"files": {file: size}, "pieces": listed}
            self._leave_to_peers(number, step, record, [head, *(_bytes(pieces[key]) for key in places)])
            folder = self.folder / f"step-{step:08d}"
            folder.mkdir(exist_ok=True)
            safetensors.write(folder / file, pieces)
            write_atomic(folder / f"process-{number:04d}.json", _sealed(record))
            self._written.set()
            if number == 0:
                self._complete(folder, count)
            self._stands = True
        except OSError as error:
            self._error = storage_error(error, self.folder, "written")
        except Exception as error:
            self._error = error
        finally:
            self._written.set()

    def _leave_to_peers(self, number: int, step: int, record: dict[str, Any], parts: list[Any]) -> None:
        if self._peers:
            try:
                keeper.put(self._peers, number, step, record, parts)
            except GewuError as error:
                self.messages.append(f"the state of step {step} is only on the disk: {error}")

    def _complete(self, folder: Path, count: int) -> None:
        paths = [folder / f"process-{number:04d}.json" for number in range(count)]
        while not all(path.exists() for path in paths):
            if self._abandoned.is_set() or not threading.main_thread().is_alive():
                raise StoreError("some process has not written its pieces", file=folder)
            time.sleep(0.01)
        records = [_unsealed(path) for path in paths]
        write_atomic(folder / "index.json", _sealed(_merged(records)))
        for path in paths:
            path.unlink(missing_ok=True)
        oldest = _on_disk(self.folder)[: self.keep][-1].step
        for path in self.folder.glob("step-*"):
            if (number := _step_of(path)) is not None and number < oldest:
                _remove(path)
        sweep_temporaries(self.folder)

    # ------------------------------------------------------------------ load

    def _sources(self) -> list[Any]:
        """Return the checkpoints there are, newest first, what is in memory before what is on the disk."""
        found: list[Any] = [_Memory(step, _merged(records), where) for step, records, where in keeper.found(self._peers)]
        disk = _on_disk(self.folder)
        newest = max((source.step for source in (*found, *disk)), default=-1)
        for path in self.folder.glob("step-*"):
            number = _step_of(path)
            text = f"the checkpoint of step {number} is not complete, an older one is used: {path.name} has no whole index"
            if number is not None and number > newest and text not in self.messages:
                self.messages.append(text)
        return sorted([*found, *disk], key=lambda source: (-source.step, isinstance(source, _Disk)))

    def _refuse_other(self, source: Any, abstract: Any) -> None:
        index = source.index
        if self.identity and index["identity"] and self.identity != index["identity"]:
            raise InputError("is of another model", file=source.where, value=index["identity"], allowed=self.identity)
        wanted = {}
        for name, rows, _, leaf in _leaves(abstract):
            wanted[name] = {"dtype": safetensors.NAMES[np.dtype(leaf.dtype)], "shape": [*rows, *leaf.shape]}
        for name in sorted({*wanted, *index["tensors"]}):
            has, asks = index["tensors"].get(name), wanted.get(name)
            if has != asks:
                shown = [f"{entry['dtype']}{entry['shape']}" if entry else "none" for entry in (has, asks)]
                raise InputError("is of another model", file=source.where, key=name, value=shown[0], allowed=shown[1])

    def _filled(self, source: Any, abstract: Any) -> Any:
        """Return the tree with arrays in place of shapes; every device gets its part."""
        by_name: dict[str, list[Any]] = {}
        for piece in source.index["pieces"]:
            by_name.setdefault(piece["name"], []).append(piece)
        arrays = []
        for name, _, row, leaf in _leaves(abstract):
            read = partial(_region, source, by_name.get(name, []), np.dtype(leaf.dtype))
            parts, placed = dict[Any, Any](), []
            for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
                key = tuple((cut.start, cut.stop) for cut in index)
                if key not in parts:
                    blocks = [read(start, shape) for start, shape, _ in self._boxes(name, index, leaf.shape, row)]
                    block = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
                    parts[key] = block.reshape(leaf.sharding.shard_shape(leaf.shape))
                placed.append(jax.device_put(parts[key], device))
            arrays.append(jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, placed))
        return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


class _Disk:
    """A checkpoint on the disk."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.folder, self.step, self.index = folder, index["step"], index
        self.where, self._maps, self.good = str(folder), dict[str, Any](), set[tuple[str, int]]()

    def read(self, piece: dict[str, Any], size: int) -> Any:
        """Return `size` bytes of a piece."""
        name = piece["file"]
        if name not in self._maps:
            try:
                self._maps[name] = np.frombuffer(safetensors.mapped(self.folder / name), np.uint8)
            except InputError as error:
                raise StoreError(error.message, file=self.folder / name) from error
            if len(self._maps[name]) != self.index["files"][name]:
                size = len(self._maps[name])
                raise StoreError("is cut short", file=self.folder / name, value=size, allowed=str(self.index["files"][name]))
        return self._maps[name][piece["offset"] : piece["offset"] + size]


class _Memory:
    """A checkpoint in the memory of keepers."""

    def __init__(self, step: int, index: dict[str, Any], where: dict[str, Any]) -> None:
        self.step, self.index, self._where, self.where, self.good = step, index, where, "memory", set[tuple[str, int]]()

    def read(self, piece: dict[str, Any], size: int) -> Any:
        """Return `size` bytes of a piece."""
        address, owner = self._where[piece["file"]]
        return np.frombuffer(keeper.get(address, owner, self.step, piece["offset"], size), np.uint8)


def _region(source: Any, pieces: list[dict[str, Any]], dtype: Any, start: Any, shape: Any) -> Any:
    """Return a part of an array, put together from the pieces that overlap it."""
    out = np.empty(shape, dtype)
    left = out.size
    for piece in pieces:
        low = [max(a, b) for a, b in zip(start, piece["start"], strict=True)]
        ends = zip(start, shape, piece["start"], piece["shape"], strict=True)
        high = [min(a + n, b + m) for a, n, b, m in ends]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            continue
        size = math.prod(piece["shape"])
        data = source.read(piece, size * dtype.itemsize)
        whole = np.frombuffer(data, dtype, size).reshape(piece["shape"])
        inside = [slice(a - c, b - c) for a, b, c in zip(low, high, piece["start"], strict=True)]
        _check(source, piece, data, whole, inside)
        out[tuple(slice(a - c, b - c) for a, b, c in zip(low, high, start, strict=True))] = whole[tuple(inside)]
        left -= math.prod(b - a for a, b in zip(low, high, strict=True))
    if left:
        raise StoreError("a piece is missing", file=source.where, value=f"{start} {shape}")
    return out


def _check(source: Any, piece: dict[str, Any], data: Any, whole: Any, inside: list[slice]) -> None:
    """Compare the checksums of the blocks in which a part of a piece lies."""
    first = sum(cut.start * step for cut, step in zip(inside, whole.strides, strict=True))
    last = sum((cut.stop - 1) * step for cut, step in zip(inside, whole.strides, strict=True)) + whole.itemsize
    for block in range(first // BLOCK, -(-last // BLOCK)):
        if (key := (piece["file"], piece["offset"] + block * BLOCK)) not in source.good:
            if crc32c(data[block * BLOCK : (block + 1) * BLOCK]) != piece["crc32c"][block]:
                raise StoreError("does not match its checksum", file=f"{source.where}/{piece['file']}", key=piece["name"])
            source.good.add(key)


def _leaves(tree: Any) -> Iterable[tuple[str, list[int], int | None, Any]]:
    """Yield the arrays of a state: name in the stack, (number of layers) and row there when it is of one layer, array."""
    found = []
    for path, leaf in tree_flatten_with_path(tree)[0]:
        words = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
        row = None
        if "layers" in words[:-1] and words[words.index("layers") + 1].isdecimal():
            row = int(words.pop(words.index("layers") + 1))
        found.append(("/".join(words), row, leaf))
    layers = 1 + max((row for _, row, _ in found if row is not None), default=-1)
    for name, row, leaf in found:
        yield name, [] if row is None else [layers], row, leaf


def _of_layers(name: str) -> bool:
    return "layers" in name.split("/")[:-1] and "inputs" not in name.split("/")


def _bytes(array: Any) -> Any:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _checksums(array: Any) -> list[int]:
    data = _bytes(array)
    return [crc32c(data[place : place + BLOCK]) for place in range(0, len(data), BLOCK)]


def _sealed(table: dict[str, Any]) -> bytes:
    text = json.dumps(table, sort_keys=True)
    return json.dumps({"crc32c": crc32c(text.encode()), "content": text}).encode()


def _unsealed(path: Path) -> Any:
    try:
        found = json.loads(read_capped(path, _INDEX_BYTES))
        if crc32c(found["content"].encode()) != found["crc32c"]:
            raise ValueError("its checksum does not match")
        return json.loads(found["content"])
    except (GewuError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"is damaged: {error}", file=path) from error


def _merged(records: list[dict[str, Any]]) -> dict[str, Any]:
    files = {name: size for record in records for name, size in record["files"].items()}
    return records[0] | {"files": files, "pieces": [piece for record in records for piece in record["pieces"]]}


def _on_disk(folder: Path) -> list[_Disk]:
    """Return the complete checkpoints of a folder, newest first; those whose index is damaged count as incomplete."""
    found = []
    for path in folder.glob("step-*"):
        if _step_of(path) is not None and (path / "index.json").exists():
            with suppress(StoreError):
                found.append(_Disk(path, _unsealed(path / "index.json")))
    return sorted(found, key=lambda source: -source.step)


def _step_of(path: Path) -> int | None:
    return int(path.name[5:]) if re.fullmatch(r"step-\d{8,}", path.name) else None


def _remove(folder: Path) -> None:
    (folder / "index.json").unlink(missing_ok=True)  # first of all: what is left of it is no checkpoint
    shutil.rmtree(folder, ignore_errors=True)


def _allgather(code: int) -> list[int]:
    """Return the codes of all processes."""
    if jax.process_count() == 1:
        return [int(code)]
    from jax.experimental.multihost_utils import process_allgather

    return [int(each) for each in np.asarray(process_allgather(np.int32(code))).reshape(-1)]
