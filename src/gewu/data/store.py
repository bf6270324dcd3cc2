"""A store: samples of many shards under one numbering, read one by one, in batches, or in order.

Sample i lives in the shard s with first[s] <= i < first[s + 1].  Shards are opened when first needed and at most `open_shards`
at a time, so a store of a million shards costs 24 bytes a shard.  Finding a sample and checking its CRC-32C is one call of
compiled code; a batch is checked and gathered by compiled code that holds no lock of Python.

What happens to a damaged sample is the caller's choice: `on_damage` is "stop" (StoreError that names shard and sample), "skip"
(left out, named in `store.damage`) or "count" (left out, only counted there).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from gewu.core.crc32c import crc32c_at, load_8, load_32, load_64
from gewu.core.device import load_numba
from gewu.core.errors import InputError, StoreError
from gewu.data.fields import Schema
from gewu.data.sample import Codec, codec
from gewu.data.shard import SUFFIX, UNREADABLE, Shard, ShardInfo

numba = load_numba()

POLICIES: Final = ("stop", "skip", "count")
_SHARD_BITS: Final = 40  # bits of an offset in a shard; those above are the shard's number
_OFFSET: Final = (1 << _SHARD_BITS) - 1
_CLOSED, _DAMAGED = -1, -2
_BLOCK: Final = 512


@numba.njit(cache=True)
def _find(table: Any, number: Any) -> Any:
    """Return shard << 40 | offset of a sample whose checksum is right; -1: its shard is not open; -2: it is damaged.

    `table` is the address of four words: number of shards, addresses of first[], of maps[] and of offsets[].
    """
    low, high = np.int64(0), np.int64(load_64(table))
    first = np.int64(load_64(table + 8))
    while high - low > 1:
        middle = (low + high) >> 1
        if np.int64(load_64(first + 8 * middle)) <= number:
            low = middle
        else:
            high = middle
    base = np.int64(load_64(np.int64(load_64(table + 16)) + 8 * low))
    if base == 0:
        return np.int64(_CLOSED)
    index = np.int64(load_64(np.int64(load_64(table + 24)) + 8 * low)) + 8 * (number - np.int64(load_64(first + 8 * low)))
    start = np.int64(load_64(index))
    if crc32c_at(base + start + 4, np.int64(load_64(index + 8)) - start - 4) != load_32(base + start):
        return np.int64(_DAMAGED)
    return low << _SHARD_BITS | start


@numba.njit(cache=True, nogil=True)
def _check(bases: Any, offsets: Any, which: Any, rows: Any, starts: Any) -> Any:
    """Write where each sample starts in its shard, -1 for those in compressed shards, -2 for damaged ones; return the least."""
    least = np.int64(0)
    for k in range(len(rows)):
        base = bases[which[k]]
        starts[k] = _CLOSED
        if base != 0:
            index = offsets[which[k]] + 8 * rows[k]
            start = np.int64(load_64(index))
            good = crc32c_at(base + start + 4, np.int64(load_64(index + 8)) - start - 4) == load_32(base + start)
            starts[k] = start if good else _DAMAGED
        least = min(least, starts[k])
    return least


@numba.njit(cache=True, nogil=True)
def _gather(addresses: Any, place: Any, size: Any, out: Any) -> None:
    """Copy `size` bytes at `place` of each sample into the rows of `out`."""
    for k in range(len(addresses)):
        source = addresses[k] + place
        for j in range(size):
            out[k, j] = load_8(source + j)


class Store:
    """Samples of many shards.

    Args:
        shards: paths of shards, or what a manifest says of them (then nothing is opened yet).
        root: folder of the shards.
        schema: of all of them; read from the first shard when absent.
        on_damage: "stop", "skip" or "count".
        fields: read only these.
        open_shards: how many may be open at a time.

    Raises:
        InputError: no shard, an unknown field, or a shard of another schema (when it is opened; field and shard are named).
        StoreError: a shard is absent or damaged.

    Attributes:
        damage: numbers of damaged samples that were left out, by shard; with "count" their number under "count".
    """

    def __init__(
        self,
        shards: Sequence[str | Path | ShardInfo],
        *,
        root: str | Path = ".",
        schema: Schema | None = None,
        on_damage: str = "stop",
        fields: Sequence[str] | None = None,
        open_shards: int = 512,
    ) -> None:
        if not shards:
            raise InputError("a store needs at least one shard", file=root)
        if on_damage not in POLICIES:
            raise InputError("unknown policy", key="on_damage", value=on_damage, allowed=", ".join(POLICIES))
        self.root, self.on_damage = Path(root), on_damage
        self.fields = None if fields is None else tuple(fields)
        self._names = [shard.name if isinstance(shard, ShardInfo) else str(shard) for shard in shards]
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._most_open, self._lock = max(2, open_shards), threading.RLock()
        self._bases = np.zeros(len(shards), np.int64)
        self._offsets = np.zeros(len(shards), np.int64)
        self._schema = schema
        sizes = np.empty(len(shards), np.int64)
        for k, shard in enumerate(shards):
            sizes[k] = shard.samples if isinstance(shard, ShardInfo) else len(self._shard(k))
        self.shard_sizes: Any = sizes
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        addresses = [len(shards), *(part.ctypes.data for part in (self._first, self._bases, self._offsets))]
        self._table = np.array(addresses, np.int64)
        self._address = int(self._table.ctypes.data)
        self._length = int(self._first[-1])
        if self._schema is None:
            self._schema = self._shard(0).schema
        self.codec: Codec = codec(self._schema)
        self._decode = self.codec.decoder(fields)
        self._plans: dict[Any, Any] = {}
        self.damage: dict[str, Any] = {}

    def __reduce__(self) -> Any:
        """Go to another process: as names and sizes; shards are opened there when needed."""
        shards = [ShardInfo(n, size, 0, 0, "") for n, size in zip(self._names, self.shard_sizes.tolist(), strict=True)]
        return _reopened, (shards, self.root.absolute(), self.schema, self.on_damage, self.fields, self._most_open)

    @property
    def schema(self) -> Schema:
        """The schema of all shards."""
        assert self._schema is not None
        return self._schema

    def __len__(self) -> int:
        return self._length

    def _shard(self, k: int) -> Shard:
        """Return shard k, opened; the one opened longest ago is let go when there are too many."""
        shard = self._open.get(k)
        if shard is not None:
            return shard
        with self._lock:
            shard = Shard(self.root / self._names[k])
            if self._schema is None:
                self._schema = shard.schema
            elif shard.schema != self._schema:
                raise self._other_schema(shard)
            self._open[k] = shard
            if shard.compression == "none":
                self._offsets[k] = shard.offsets.ctypes.data
                self._bases[k] = shard.address
            while len(self._open) > self._most_open:
                old, _ = self._open.popitem(last=False)
                self._bases[old] = 0
        return shard

    def _other_schema(self, shard: Shard) -> InputError:
        ours = {field.name: str(field.type) for field in self.schema}
        theirs = {field.name: str(field.type) for field in shard.schema}
        name = next((n for n in (*ours, *theirs) if ours.get(n) != theirs.get(n)), self.schema.names[0])
        return InputError(
            "has another schema than the store",
            file=shard.path,
            key=name,
            value=theirs.get(name),
            allowed=ours.get(name, "no such field"),
        )

    def locate(self, number: int) -> tuple[int, int]:
        """Return (shard, number in the shard) of a sample."""
        k = int(np.searchsorted(self._first, number, "right")) - 1
        return k, number - int(self._first[k])

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Read one sample, whatever the policy.

        Raises:
            StoreError: it is damaged.
        """
        if not 0 <= number < self._length:
            raise InputError("no such sample", value=number, allowed=f"0 to {self._length - 1}")
        place = _find(self._address, number)
        if place >= 0:
            shard = self._open.get(place >> _SHARD_BITS)
            if shard is not None:
                try:
                    return self._decode(shard.buffer, place & _OFFSET)
                except UNREADABLE:
                    pass  # the slow way says what is wrong
        return self._slow(number)

    def _slow(self, number: int) -> dict[str, Any]:
        """Read a sample of a shard that is not open, compressed or damaged."""
        k, row = self.locate(number)
        shard = self._shard(k)
        buffer, start = shard.place(row)
        try:
            return self._decode(buffer, start)
        except UNREADABLE as error:
            raise StoreError(
                f"cannot be read though its checksum is right: {error}", file=shard.path, key=f"sample {row}"
            ) from None

    def _or_none(self, number: int) -> dict[str, Any] | None:
        try:
            return self[number]
        except StoreError:
            if self.on_damage == "stop":
                raise
            self._note(number)
            return None

    def _note(self, number: int) -> None:
        k, row = self.locate(number)
        with self._lock:
            if self.on_damage == "count":
                self.damage["count"] = self.damage.get("count", 0) + 1
            elif row not in self.damage.setdefault(self._names[k], []):
                self.damage[self._names[k]].append(row)

    def read(self, numbers: Sequence[int] | Any) -> list[dict[str, Any] | None]:
        """Read samples; None stands for a damaged one, unless the policy is to stop."""
        return [self._or_none(int(number)) for number in numbers]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iterate()

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield samples in order; damaged ones are left out, unless the policy is to stop."""
        stop = self._length if stop is None else min(stop, self._length)
        while start < stop:
            k, row = self.locate(start)
            shard, count = self._shard(k), min(_BLOCK, stop - start, int(self.shard_sizes[k]) - row)
            starts, least = self._starts([shard], np.zeros(count, np.int64), np.arange(row, row + count))
            decode, buffer = self._decode, shard.buffer
            if least < 0:
                samples = (self._or_none(number) for number in range(start, start + count))
                yield from (sample for sample in samples if sample is not None)
            else:
                for place in starts.tolist():
                    yield decode(buffer, place)
            start += count

    def _starts(self, shards: Sequence[Shard], which: Any, rows: Any) -> tuple[Any, int]:
        """Return as `_check`; the caller holds the shards, so that they stay mapped."""
        plain = [shard.compression == "none" for shard in shards]
        bases = np.array([shard.address if p else 0 for shard, p in zip(shards, plain, strict=True)], np.int64)
        offsets = np.array([shard.offsets.ctypes.data for shard in shards], np.int64)
        starts = np.empty(len(rows), np.int64)
        return starts, int(_check(bases, offsets, which, rows, starts))

    def batch(self, numbers: Sequence[int] | Any, fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Read samples by columns.

        Args:
            numbers: of samples, int64[B].
            fields: which; None for those of the store.

        Returns:
            For a field of fixed size an array of B rows, for others a list; "_index" holds the numbers, int64[B]. Damaged
            samples are left out, unless the policy is to stop.
        """
        numbers = np.ascontiguousarray(numbers, np.int64)
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < self._length):
            value = [int(numbers.min()), int(numbers.max())]
            raise InputError("no such sample", value=value, allowed=f"0 to {self._length - 1}")
        fixed, others, decode = self._columns(tuple(fields) if fields is not None else self.fields)
        which = np.searchsorted(self._first, numbers, "right") - 1
        found, which = np.unique(which, return_inverse=True)
        shards = [self._shard(k) for k in found.tolist()]
        starts, least = self._starts(shards, which, numbers - self._first[found][which])
        if least < 0:
            return self._slow_batch(numbers, (*fixed, *others))
        columns: dict[str, Any] = dict.fromkeys(name for name in self.schema.names if name in fixed or name in others)
        addresses = np.array([shard.address for shard in shards], np.int64)[which] + starts if shards else starts
        for name in fixed:
            kind = self.schema[name].type
            rows = np.empty((len(numbers), kind.bytes), np.uint8)
            _gather(addresses, self.codec.places[name], kind.bytes, rows)
            columns[name] = rows.reshape(-1).view(kind.numpy).reshape(len(numbers), *kind.shape)
        if others:
            buffers = [shard.buffer for shard in shards]
            samples = [decode(buffers[k], start) for k, start in zip(which.tolist(), starts.tolist(), strict=True)]
            for name in others:
                columns[name] = [sample[name] for sample in samples]
        return columns | {"_index": numbers}

    def _columns(self, fields: tuple[str, ...] | None) -> tuple[tuple[str, ...], tuple[str, ...], Any]:
        """Return the names of the fixed fields among those wanted, of the others, and how to read the others."""
        if fields not in self._plans:
            for name in fields or ():
                _ = self.schema[name]
            names = [name for name in self.schema.names if fields is None or name in fields]
            fixed = tuple(name for name in names if name in self.codec.places)
            others = tuple(name for name in names if name not in fixed)
            self._plans[fields] = fixed, others, self.codec.decoder(others)
        plan: tuple[tuple[str, ...], tuple[str, ...], Any] = self._plans[fields]
        return plan

    def _slow_batch(self, numbers: Any, names: Sequence[str]) -> dict[str, Any]:
        samples = self.read(numbers)
        good = [k for k, sample in enumerate(samples) if sample is not None]
        columns: dict[str, Any] = {}
        for name in (name for name in self.schema.names if name in names):
            values = [samples[k][name] for k in good]  # type: ignore[index]
            kind = self.schema[name].type
            columns[name] = np.array(values, kind.numpy).reshape(len(good), *kind.shape) if kind.fixed else values
        return columns | {"_index": numbers[good]}

    def subset(self, numbers: Any) -> Subset:
        """Return a store of some of the samples, in the order given, without copying data."""
        return Subset(self, numbers)

    def close(self) -> None:
        """Let go of all shards."""
        with self._lock:
            self._bases[:] = 0
            self._open.clear()


class Subset:
    """Some samples of a store in an order of their own; it reads as a store does, by its own numbers 0, 1, ...

    Attributes:
        numbers: of its samples in the store, int64[n].
        shard_sizes: [n]: it counts as one shard, for orders by windows.
    """

    def __init__(self, store: Store, numbers: Any) -> None:
        self.store, self.numbers = store, np.ascontiguousarray(numbers, np.int64)
        if len(self.numbers) and not (self.numbers.min() >= 0 and self.numbers.max() < len(store)):
            raise InputError("names samples that the store does not have", allowed=f"0 to {len(store) - 1}")
        self.shard_sizes = np.array([len(self.numbers)], np.int64)
        self.schema, self.damage, self.on_damage, self.fields = store.schema, store.damage, store.on_damage, store.fields

    def __reduce__(self) -> Any:
        return Subset, (self.store, self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> dict[str, Any]:
        if not 0 <= number < len(self.numbers):
            raise InputError("no such sample", value=number, allowed=f"0 to {len(self.numbers) - 1}")
        return self.store[int(self.numbers[number])]

    def read(self, numbers: Sequence[int] | Any) -> list[dict[str, Any] | None]:
        """Read samples, as `Store.read`."""
        return self.store.read(self.numbers[np.asarray(numbers, np.int64)])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iterate()

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield samples in the order of this subset."""
        for begin in range(start, len(self) if stop is None else min(stop, len(self)), _BLOCK):
            end = min(begin + _BLOCK, len(self) if stop is None else stop)
            yield from (sample for sample in self.store.read(self.numbers[begin:end]) if sample is not None)

    def batch(self, numbers: Sequence[int] | Any, fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Read samples by columns, as `Store.batch`; "_index" holds this subset's numbers."""
        numbers = np.ascontiguousarray(numbers, np.int64)
        columns = self.store.batch(self.numbers[numbers], fields)
        if len(columns["_index"]) == len(numbers):
            return columns | {"_index": numbers}
        kept: dict[int, list[int]] = {}
        for number in numbers.tolist():
            kept.setdefault(int(self.numbers[number]), []).append(number)
        return columns | {"_index": np.array([kept[number].pop(0) for number in columns["_index"].tolist()], np.int64)}

    def subset(self, numbers: Any) -> Subset:
        """Return some of these samples."""
        return Subset(self.store, self.numbers[np.asarray(numbers, np.int64)])

    def close(self) -> None:
        """Let go of the store's shards."""
        self.store.close()


def _reopened(shards: Any, root: Path, schema: Schema, on_damage: str, fields: Any, most_open: int) -> Store:
    return Store(shards, root=root, schema=schema, on_damage=on_damage, fields=fields, open_shards=most_open)


def open_shards(folder: str | Path, **options: Any) -> Store:
    """Open all shards of a folder, in the order of their names.

    Raises:
        InputError: there is none.
    """
    names = sorted(path.name for path in Path(folder).glob(f"*{SUFFIX}"))
    if not names:
        raise InputError("holds no shards", file=folder, allowed=f"files *{SUFFIX}")
    return Store(names, root=folder, **options)
