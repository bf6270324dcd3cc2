"""From a store and an order to the batches of a trainer: in order, ahead of time, and exactly where they stopped.

The consumer drives everything: it keeps at most `prefetch` batches under way in a pool of workers and takes them in the order in
which it asked, so batches do not depend on workers or timing, memory is bounded, and no thread runs on its own. What the world
sees is the order, cut into global batches; a rank has a contiguous part of each. A loader is a stream, not a collection: a second
`for` goes on where the first stopped. `loader.state()` counts samples of the world that were handed out (never those read ahead),
so another run goes on from it with any number of ranks and any batch.

`threads` read without Python's lock (the store's compiled loops, Pillow's decoders) and hand a batch over for nothing; they are
the default. `processes` (spawned, so a program needs `if __name__ == "__main__"`) are for transforms in pure Python; batches come
back through a pipe. A worker that dies, or a program that is killed, leaves nothing waiting.

Damaged samples: the store's policy. "stop" raises at their batch; with "skip" and "count" the batch is smaller by them, their
numbers are in `loader.damage`, and positions go on as if they were there, so a resumed run meets the same batches. Where
every batch must have one shape, load `store.subset` without them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.core.machine import check_jax
from gewu.core.workers import Pool
from gewu.data.order import Mixture, Order, Sequential, WindowOrder

Batch = dict[str, Any]


class Stream:
    """Batches that are handed out once, by workers that are stopped by `close` or at the end of `with`."""

    _pool: Pool

    def __iter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers, once they are through with what they are at; iterating again goes on behind the last batch."""
        self._pool.close()


class Loader(Stream):
    """Iterate over the batches of one rank: dicts of the fields, and `_index`, the numbers of the samples, int64[B].

    Args:
        store: a `Store` or a part of one. For a mixture: one store of the shards of all, and a `Mixture` as order.
        batch: samples of the global batch, over all ranks.
        seed: of the order.
        order: "global" or "window" shuffling, "sequential", or an order of `gewu.data.order`.
        rank, world: which part of the batch is wanted.
        epochs: how often the order is run through, each time anew; None for ever.
        drop_last: leave out the last batch of an epoch when it would be smaller; otherwise ranks may get parts of unequal size.
        fields: read only these.
        transform: called with each sample, a dict that also has `_index` (number in the store) and `_position` (place in the
            stream, the same for every world: the key of random numbers of `gewu.core.random`); returns a dict.
        collate: called with the list of samples of a batch, returns a dict. Default: `Collate()` when there is a transform.
        workers: threads or processes; 0 reads in the caller.
        kind: "threads" or "processes".
        prefetch: batches that may be under way or wait.
        device: "jax" gives JAX arrays for all arrays except `_index`. Without 64-bit mode they become 32-bit.
        sharding: of JAX; over several processes a rank's part is its local part.
        state: of `state()`, to go on from; its seed and epoch count.

    Attributes:
        damage: numbers of the samples that were missing in batches handed out.

    Raises:
        InputError: an argument out of range, or a state of other data.

    Example:
        >>> loader = Loader(store, 256, seed=1, epochs=None)  # doctest: +SKIP
        >>> for batch in loader: train(batch); save(loader.state())  # doctest: +SKIP
    """

    def __init__(
        self,
        store: Any,
        batch: int,
        *,
        seed: int = 0,
        order: Any = "global",
        rank: int = 0,
        world: int = 1,
        epochs: int | None = 1,
        drop_last: bool = True,
        fields: Sequence[str] | None = None,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        collate: Callable[[list[dict[str, Any]]], Batch] | None = None,
        workers: int = 2,
        kind: str = "threads",
        prefetch: int = 4,
        device: str | None = None,
        sharding: Any = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        given = _order(order, store, seed)
        _check("rank", f"{rank} of {world}", 0 <= rank < world, "0 <= rank < world")
        _check("batch", batch, batch >= 1 and batch % world == 0, "a multiple of world")
        _check("batch", batch, given.n >= (batch if drop_last else 1), f"at most {given.n}, an epoch, unless drop_last=False")
        _check("workers", workers, workers >= 0, "0 or more")
        _check("prefetch", prefetch, prefetch >= 1, "1 or more")
        _check("kind", kind, kind in ("threads", "processes"), "threads, processes")
        _check("device", device, device in (None, "jax"), "None, jax")
        self.batch, self.rank, self.world, self.drop_last, self.prefetch = batch, rank, world, drop_last, prefetch
        self.work, self.kind, self.workers = Work(store, fields, transform, collate), kind, workers
        self.device, self.sharding = device, sharding
        _check("epochs", epochs, epochs in (None, 1) or not isinstance(given, Mixture), "1 or None, for a mixture")
        first, self.total = given.epoch, None if epochs is None else epochs * given.n
        order, position = given.resume(state) if state else (given, 0)
        _check("epoch", order.epoch, order.epoch >= first, f"{first}, the first, or more")
        self._order, self._first, self._place = order, first, (order.epoch - first) * order.n + position
        # of this epoch and the next: windows take time to lay out
        self._of_epoch = lru_cache(2)(lambda epoch: order if epoch == order.epoch else order.again(order.seed, epoch))
        self._pool = Pool(kind, workers, self.work)
        self._held: deque[tuple[int, NDArray[Any], Callable[[], Batch]]] = deque()
        self._tasks: Iterator[tuple[int, NDArray[Any], NDArray[Any]]] | None = None
        self.damage: set[int] = set()

    def state(self) -> dict[str, Any]:
        """Return the place behind the last batch that was handed out, the same on every rank; JSON can hold it."""
        # behind the last sample of an epoch, not before the first of the next: what comes then depends on the batch
        epoch = max(self._place - 1, 0) // self._order.n
        return {**self._order.state(self._place - epoch * self._order.n), "epoch": self._first + epoch}

    def samples(self, places: NDArray[Any]) -> NDArray[np.int64]:
        """Return the numbers of the samples at some places of the stream, which counts on from epoch to epoch."""
        epochs, positions = np.divmod(places, self._order.n)
        found = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs).tolist():
            found[epochs == epoch] = self._of_epoch(self._first + epoch)[positions[epochs == epoch]]
        return found

    def _plan(self) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        """Yield for each batch to come the place behind it, and this rank's samples and their places."""
        place, n = self._place, self._order.n
        while self.total is None or place < self.total:
            size = min(self.batch, n - place % n)
            if size == self.batch or not self.drop_last:
                part = np.arange(place + size * self.rank // self.world, place + size * (self.rank + 1) // self.world)
                yield place + size, self.samples(part), part
            place += size

    def _fill(self) -> None:
        self._tasks = self._tasks or self._plan()
        while len(self._held) < self.prefetch and (task := next(self._tasks, None)) is not None:
            self._held.append((*task[:2], self._pool.submit(*task[1:])))

    def __next__(self) -> Batch:
        try:
            self._fill()
            if not self._held:
                raise StopIteration
            place, numbers, result = self._held.popleft()
            batch = result()
            arrived = on_device(batch, self.device, self.sharding)
            self._fill()
        except BaseException:  # the place stays before this batch
            self.close()
            raise
        self._place = place
        if len(batch["_index"]) < len(numbers):
            self.damage.update(np.setdiff1d(numbers, batch["_index"]).tolist())
        return arrived

    def close(self) -> None:
        """Stop the workers, once they are through with what they are at; iterating again goes on behind the last batch."""
        self._tasks = None
        self._held.clear()
        super().close()


def _check(key: str, value: Any, good: bool, allowed: str) -> None:
    if not good:
        raise InputError("is not possible", key=key, value=value, allowed=allowed)


def _order(order: Any, store: Any, seed: int) -> Any:
    if order == "window":
        return WindowOrder(store.shard_sizes, seed)
    if isinstance(order, str):
        _check("order", order, order in ("global", "sequential"), "global, window, sequential, or an order")
        return (Order if order == "global" else Sequential)(len(store), seed)
    reach = int(order.offsets[-1]) if isinstance(order, Mixture) else order.n
    _check("order", f"{reach} samples", reach == len(store), f"{len(store)} samples, as the store")
    return order


@dataclass(frozen=True)
class Work:
    """What a worker does for a batch: called with numbers of samples and their places."""

    store: Any
    fields: Sequence[str] | None = None
    transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    collate: Callable[[list[dict[str, Any]]], Batch] | None = None

    def __call__(self, numbers: NDArray[Any], places: NDArray[Any]) -> Batch:
        """Read, transform and collate."""
        columns: Batch = self.store.batch(numbers, self.fields)
        if self.transform is None and self.collate is None:
            return columns
        index = columns["_index"]
        columns["_position"] = places if len(index) == len(numbers) else places[np.isin(numbers, index)]
        rows = zip(*(c.tolist() if getattr(c, "ndim", 2) == 1 else c for c in columns.values()), strict=True)
        samples = [dict(zip(columns, row, strict=True)) for row in rows]
        for k, sample in enumerate(samples if self.transform else ()):
            try:
                samples[k] = self.transform(sample)  # type: ignore[misc]
            except StopIteration as error:  # would end the consumer's loop in silence
                raise RuntimeError(f"StopIteration in the transform of sample {index[k]}") from error
            except Exception as error:
                error.add_note(f"in the transform of sample {index[k]}")
                raise
        return (self.collate or Collate())(samples) | {"_index": index}


@dataclass(frozen=True)
class Collate:
    """Put samples together: numbers, and arrays that happen to have one shape, are stacked; all else stays a list.

    Args:
        pad: fields whose arrays are filled up to one shape, with the value to fill in; adds FIELD_length, int64[B] (first axes).
        concatenate: fields whose arrays are joined along their first axis, as for graphs; adds FIELD_segment, int32[N], the
            sample of each row in the batch.
        multiple_of: padded first axes are a multiple of this, so that compiled programs meet few shapes.
    """

    pad: Mapping[str, Any] = field(default_factory=dict)
    concatenate: Sequence[str] = ()
    multiple_of: int = 1

    def __call__(self, samples: list[dict[str, Any]]) -> Batch:
        """Return the batch of some samples."""
        batch: Batch = {name: [sample[name] for sample in samples] for name in (samples[0] if samples else ())}
        for name, values in list(batch.items()):
            if name in self.pad:
                batch[name], batch[f"{name}_length"] = pad(values, self.pad[name], self.multiple_of)
            elif name in self.concatenate:
                batch[name] = np.concatenate(values)
                batch[f"{name}_segment"] = np.repeat(np.arange(len(values), dtype=np.int32), [len(v) for v in values])
            elif all(isinstance(v, np.ndarray | np.generic | int | float | complex) for v in values):
                batch[name] = np.stack(values) if len({np.shape(v) for v in values}) == 1 else values
        return batch


def pad(values: Sequence[NDArray[Any]], value: Any = 0, multiple_of: int = 1) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Fill arrays of one dtype and rank up to the longest along each axis.

    Args:
        values: the arrays.
        value: what to fill in.
        multiple_of: the first axis is rounded up to it.

    Returns:
        array [B, longest, ...], and the lengths of the first axes, int64[B].
    """
    shape = np.max([v.shape for v in values], axis=0)
    shape[0] = -(-shape[0] // multiple_of) * multiple_of
    found = np.full((len(values), *shape), value, values[0].dtype)
    for row, v in zip(found, values, strict=True):
        row[tuple(map(slice, v.shape))] = v
    return found, np.array([len(v) for v in values], np.int64)


def on_device(batch: Batch, device: str | None, sharding: Any = None) -> Batch:
    """Return a batch with its arrays on a device of JAX (see `Loader`), or as it is when `device` is None."""
    if device is None:
        return batch
    import jax

    check_jax()
    local = sharding is not None and jax.process_count() > 1
    put = partial(jax.make_array_from_process_local_data, sharding) if local else partial(jax.device_put, device=sharding)
    found = dict(batch)
    for name, value in batch.items():
        if isinstance(value, np.ndarray) and not name.startswith("_"):
            narrow = value.astype(jax.dtypes.canonicalize_dtype(value.dtype), copy=False)
            fits = value.dtype.kind not in "iu" or np.array_equal(narrow, value)
            _check(name, value.dtype.name, fits, "integers of 32 bits, unless jax_enable_x64 is set")
            found[name] = put(narrow)
    return found
