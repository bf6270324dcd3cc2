"""A store: samples of many shards under one numbering, read one by one, in batches, or in order.

Sample i lives in the shard s with first[s] <= i < first[s + 1].  Shards are opened when first needed and at most `open_shards`
at a time, so a store of a million shards costs 24 bytes a shard.  Finding a sample and checking its CRC-32C is one call of
compiled code; a batch is checked and gathered by compiled code that holds no lock of Python.

What happens to a damaged sample is the caller's choice: `on_damage` is "stop" (StoreError that names shard and sample), "skip"
(left out, named in `store.damage`) or "count" (left out, only counted there).
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from gewu.core import objects, records
from gewu.core.errors import InputError, StoreError
from gewu.data.fields import BLOBS, Schema, Type
from gewu.data.sample import Codec, codec
from gewu.data.shard import SUFFIX, UNREADABLE, Shard, ShardInfo

POLICIES: Final = ("stop", "skip", "count")
_BLOCK: Final = 256


class Plan:
    """How to read some of the fields of a sample.

    Attributes:
        blank: a dict of them, without values.
        steps: for compiled code.
        rest: reads what is left (lists, optional values, rare numbers), or None: nothing is.
        decode: reads all in plain Python.
    """

    def __init__(self, layout: Codec, wanted: Sequence[str]) -> None:
        names, rest = [sys.intern(name) for name in wanted], []
        self.blank: dict[str, Any] = dict.fromkeys(names)
        self.steps, self.decode = objects.Steps(layout.head, len(names)), layout.decoder(names)
        ends = {field.name: 4 + 4 * k for k, field in enumerate(layout.variable)}
        for name in names:
            kind, end = layout.schema[name].type, ends.get(name, 0)
            before, place = end - 4 if end > 4 else 0, layout.places.get(name, end)
            if objects.AVAILABLE and kind.kind in BLOBS:
                self.steps.blob(name, kind.kind == "text", end, before)
            elif objects.AVAILABLE and kind.kind == "array" and kind.shape:
                self.steps.array(name, kind.numpy, kind.shape, place, before)
            elif not (objects.AVAILABLE and kind.scalar and self.steps.number(name, kind.dtype, place)):
                rest.append(name)
        self.rest = layout.decoder(rest) if rest else None

    def add_rest(self, buffer: Any, start: int, sample: dict[str, Any]) -> bool:
        """Add what compiled code does not read; False: it cannot be read."""
        try:
            sample.update(self.rest(buffer, start) if self.rest else {})
        except UNREADABLE:
            return False
        return True


class _Found(NamedTuple):
    """Samples that were looked up: the shards they are in, held so that these stay mapped, and their table."""

    shards: list[Shard]
    bases: Any
    table: Any
    large: bool
    keep: Any


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
        self._owners = np.zeros(len(shards), np.int64)
        self._schema = schema
        sizes = np.empty(len(shards), np.int64)
        for k, shard in enumerate(shards):
            sizes[k] = shard.samples if isinstance(shard, ShardInfo) else len(self._shard(k))
        self.shard_sizes: Any = sizes
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        addresses = [len(shards), *(part.ctypes.data for part in (self._first, self._bases, self._offsets, self._owners))]
        self._table = np.array(addresses, np.int64)
        self._address = int(self._table.ctypes.data)
        self._length = int(self._first[-1])
        if self._schema is None:
            self._schema = self._shard(0).schema
        self.codec: Codec = codec(self._schema)
        self._plans: dict[tuple[str, ...], Plan] = {}
        self._plan = self._plan_of(self._wanted(self.fields))
        self.damage: dict[str, Any] = {}

    def __reduce__(self) -> Any:
        """Go to another process: as names and sizes; shards are opened there when needed."""
        shards = [ShardInfo(n, size, 0, 0, "") for n, size in zip(self._names, self.shard_sizes.tolist(), strict=True)]
        options: dict[str, Any] = {
            "root": self.root.absolute(),
            "schema": self.schema,
            "on_damage": self.on_damage,
            "fields": self.fields,
        }
        return partial(Store, **options, open_shards=self._most_open), (shards,)

    @property
    def schema(self) -> Schema:
        """The schema of all shards."""
        assert self._schema is not None
        return self._schema

    @property
    def paths(self) -> list[Path]:
        """The files of the shards, in order."""
        return [self.root / name for name in self._names]

    def __len__(self) -> int:
        return self._length

    def _shard(self, k: int) -> Shard:
        """Return shard k, opened; the one opened longest ago is let go when there are too many."""
        shard = self._open.get(k)
        if shard is not None:
            return shard
        with self._lock:
            if k in self._open:  # another thread was faster; its map must not be replaced
                return self._open[k]
            shard = Shard(self.root / self._names[k])
            if self._schema is None:
                self._schema = shard.schema
            elif shard.schema != self._schema:
                raise self._other_schema(shard)
            self._open[k] = shard
            if shard.compression == "none":
                self._offsets[k], self._owners[k] = shard.offsets.ctypes.data, id(shard.buffer)
                self._bases[k] = shard.address
            while len(self._open) > self._most_open:
                old, _ = self._open.popitem(last=False)
                self._bases[old] = 0
        return shard

    def _other_schema(self, shard: Shard) -> InputError:
        ours = {field.name: str(field.type) for field in self.schema}
        theirs = {field.name: str(field.type) for field in shard.schema}
        name = next((n for n in (*ours, *theirs) if ours.get(n) != theirs.get(n)), self.schema.names[0])
        found, allowed = theirs.get(name), ours.get(name, "no such field")
        return InputError("has another schema than the store", file=shard.path, key=name, value=found, allowed=allowed)

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
        plan = self._plan
        sample = plan.blank.copy()
        place = records.read(self._address, plan.steps.address, number, id(sample))
        if place >= 0:
            if plan.rest is None:
                return sample
            shard = self._open.get(place >> records.FILE_BITS)
            if shard is not None and plan.add_rest(shard.buffer, place & records.OFFSET, sample):
                return sample
        return self._slow(number, plan)

    def _slow(self, number: int, plan: Plan) -> dict[str, Any]:
        """Read a sample of a shard that is not open, compressed or damaged."""
        k, row = self.locate(number)
        shard = self._shard(k)
        buffer, start = shard.place(row)
        try:
            return plan.decode(buffer, start)
        except UNREADABLE as error:
            what = f"cannot be read though its checksum is right: {error}"
            raise StoreError(what, file=shard.path, key=f"sample {row}") from None

    def _or_none(self, number: int, plan: Plan) -> dict[str, Any] | None:
        try:
            return self._slow(number, plan)
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

    def _numbers(self, numbers: Any) -> Any:
        numbers = np.ascontiguousarray(numbers, np.int64)
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < self._length):
            value = [int(numbers.min()), int(numbers.max())]
            raise InputError("no such sample", value=value, allowed=f"0 to {self._length - 1}")
        return numbers

    def _find(self, numbers: Any) -> _Found:
        """Return the shards of some samples, opened, in a table that no other thread changes."""
        which = sorted(set((np.searchsorted(self._first, numbers, "right") - 1).tolist()))
        shards = [self._shard(k) for k in which]
        bases = np.array([shard.address if shard.compression == "none" else 0 for shard in shards], np.int64)
        offsets = np.array([shard.offsets.ctypes.data for shard in shards], np.int64)
        parts = self._first[which], bases, offsets, np.array([id(shard.buffer) for shard in shards], np.int64)
        table = np.array([len(which), *(part.ctypes.data for part in parts)], np.int64)
        large = bool(shards) and int(shards[0].offsets[-1]) >= records.LARGE * len(shards[0])  # as far as the first one tells
        return _Found(shards, bases, table.ctypes.data, large, (table, parts))

    def _samples(self, plan: Plan, numbers: Any, found: _Found) -> tuple[list[Any], Any, int]:
        """Return a dict for each sample, the places as `_read` returns them, and how many of these are below 0: not read."""
        (places, sizes), begin, asked, missing = np.empty((2, len(numbers)), np.int64), 0, 0, 0
        samples: list[Any] = [None] * len(numbers)
        while begin < len(numbers):
            asked = records.ask(found.table, numbers, begin, asked) if found.large else 0
            end = records.check(found.table, numbers, places, sizes, begin)
            steps, blank = plan.steps.address, id(plan.blank)
            missing += records.fill_all(found.table, steps, places, sizes, begin, end, blank, id(samples))
            begin = end
        if plan.rest is not None:
            for k, place in enumerate(places.tolist()):
                shard = found.shards[place >> records.FILE_BITS]
                if place >= 0 and not plan.add_rest(shard.buffer, place & records.OFFSET, samples[k]):
                    places[k], missing = records.DAMAGED, missing + 1
        return samples, places, missing

    @staticmethod
    def _column(at: int, kind: Type, places: Any, found: _Found) -> Any:
        """Return one field of fixed size of many samples, one row each."""
        shape: Any = (len(places), *kind.shape)
        rows = np.empty(shape, kind.numpy)
        records.gather(found.bases, places, at, kind.bytes, rows.ctypes.data)
        return rows

    def read(self, numbers: Sequence[int] | Any) -> list[dict[str, Any] | None]:
        """Read samples; None stands for a damaged one, unless the policy is to stop."""
        numbers = self._numbers(numbers)
        return self._read(numbers, self._find(numbers))[0]

    def _read(self, numbers: Any, found: _Found) -> tuple[list[dict[str, Any] | None], int]:
        samples, places, missing = self._samples(self._plan, numbers, found)
        for k in np.flatnonzero(places < 0).tolist() if missing else ():
            samples[k] = self._or_none(int(numbers[k]), self._plan)
        return samples, missing

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.iterate()

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield samples in order; damaged ones are left out, unless the policy is to stop."""
        return chain.from_iterable(self._blocks(start, stop))

    def _blocks(self, start: int, stop: int | None) -> Iterator[Iterable[Any]]:
        stop, limit = self._length if stop is None else min(stop, self._length), start
        while start < stop:
            if start >= limit:
                found, limit = self._find([start]), int(self._first[self.locate(start)[0] + 1])
            numbers = np.arange(start, min(start + _BLOCK, stop, limit))
            samples, missing = self._read(numbers, found)
            yield filter(None, samples) if missing else samples
            start += len(numbers)

    def batch(self, numbers: Sequence[int] | Any, fields: Sequence[str] | None = None, index: Any = None) -> dict[str, Any]:
        """Read samples by columns.

        Args:
            numbers: of samples, int64[B].
            fields: which; None for those of the store.
            index: other numbers to return for the samples.

        Returns:
            For a field of fixed size an array of B rows, for others a list; "_index" holds the numbers, int64[B]. Damaged
            samples are left out, unless the policy is to stop.
        """
        numbers = self._numbers(numbers)
        found, names = self._find(numbers), self._wanted(self.fields if fields is None else fields)
        others = [name for name in names if name not in self.codec.places]
        samples, places, missing = self._samples(self._plan_of(others), numbers, found)
        if missing:
            return self._slow_batch(numbers, names, numbers if index is None else index)
        columns: dict[str, Any] = {}
        for name in names:
            if name in self.codec.places:
                columns[name] = self._column(self.codec.places[name], self.schema[name].type, places, found)
            else:
                columns[name] = [sample[name] for sample in samples]
        return columns | {"_index": numbers if index is None else index}

    def _wanted(self, fields: Sequence[str] | None) -> list[str]:
        for name in fields or ():
            _ = self.schema[name]
        return [name for name in self.schema.names if fields is None or name in fields]

    def _plan_of(self, names: Sequence[str]) -> Plan:
        plan = self._plans.get(tuple(names))
        if plan is None:
            plan = self._plans[tuple(names)] = Plan(self.codec, names)
        return plan

    def _slow_batch(self, numbers: Any, names: Sequence[str], index: Any) -> dict[str, Any]:
        samples = [self._or_none(number, self._plan_of(names)) for number in numbers.tolist()]
        good = [k for k, sample in enumerate(samples) if sample is not None]
        columns: dict[str, Any] = {}
        for name in names:
            values = [samples[k][name] for k in good]  # type: ignore[index]
            kind = self.schema[name].type
            columns[name] = np.array(values, kind.numpy).reshape(len(good), *kind.shape) if kind.fixed else values
        return columns | {"_index": index[good]}

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
        numbers = self.numbers[start:stop]
        for begin in range(0, len(numbers), _BLOCK):
            yield from filter(None, self.store.read(numbers[begin : begin + _BLOCK]))

    def batch(self, numbers: Sequence[int] | Any, fields: Sequence[str] | None = None) -> dict[str, Any]:
        """Read samples by columns, as `Store.batch`; "_index" holds this subset's numbers."""
        numbers = np.ascontiguousarray(numbers, np.int64)
        return self.store.batch(self.numbers[numbers], fields, numbers)

    def subset(self, numbers: Any) -> Subset:
        """Return some of these samples."""
        return Subset(self.store, self.numbers[np.asarray(numbers, np.int64)])

    def close(self) -> None:
        """Let go of the store's shards."""
        self.store.close()


def open_shards(folder: str | Path, **options: Any) -> Store:
    """Open all shards of a folder, in the order of their names.

    Raises:
        InputError: there is none.
    """
    names = sorted(path.name for path in Path(folder).glob(f"*{SUFFIX}"))
    if not names:
        raise InputError("holds no shards", file=folder, allowed=f"files *{SUFFIX}")
    return Store(names, root=folder, **options)
