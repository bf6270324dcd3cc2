"""Documents packed into rows of fixed length, with masks that keep them apart.

A row holds pieces of documents one after the other: `tokens`, `segments` (which piece a token belongs to, 1, 2, ...; 0 is
padding) and `positions` (counted from 0 in each piece, so a document that goes on in the next row begins there at 0 again).
One rule makes every row, with a window of open documents:

1. the oldest open document comes first;
2. then, as long as there is room, the longest open document that still fits, of equal ones the oldest;
3. when none fits, the oldest is cut to fill the row if `split`, or if not even an empty row could hold it; else the rest is
   padding.

`greedy` is this with a window of one document, `best-fit` with `window` of them (after Ding et al., Fewer Truncations Improve
Language Modeling, arXiv:2404.10830, made online). With `split` no row but the last has padding. Without it, documents of
lengths that are log-normal (median 400, sigma 1) fill rows of 2048 to 80 % by `greedy` and to 99 % by `best-fit`.

Every token of every document stands in exactly one row, in its order. The state of a packing is the next document and (number,
offset) of the open ones, a few integers; who goes on from it reads those documents again and continues bit by bit.

Packing must not depend on the number of ranks: the order of samples is dealt to `slots`, sample g to slot g mod slots, and each
slot is packed for itself. A rank owns a contiguous range of slots. So the rows of the world are the same whatever its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.core.workers import Pool
from gewu.data.loader import Loader, Stream, on_device

Row = dict[str, NDArray[np.int32]]
Fetch = Callable[[int], Any]  # returns the tokens of document 0, 1, ...; None behind the last one


class Packing(NamedTuple):
    """Where a packing stands: the next document, and (number, offset, tokens that are left) of each open one."""

    next: int = 0
    open: tuple[tuple[int, int, NDArray[Any]], ...] = ()

    def state(self) -> list[Any]:
        """Return it without the tokens; JSON can hold it."""
        return [self.next, [[number, at] for number, at, _ in self.open]]


@dataclass(frozen=True)
class Packer:
    """How documents become rows.

    Args:
        length: tokens of a row.
        field: name of the field of a sample that holds its tokens, a one-dimensional array of integers.
        eos: token put behind every document; None for none.
        split: documents may be cut where a row ends; otherwise only those longer than a row are.
        strategy: "greedy" or "best-fit".
        window: open documents among which best-fit chooses.

    Raises:
        InputError: a value out of range.

    Example:
        >>> [row["segments"].tolist() for row in Packer(4).rows([[5, 6, 7], [8, 9]])]
        [[1, 1, 1, 2], [1, 0, 0, 0]]
    """

    length: int
    field: str = "tokens"
    eos: int | None = None
    split: bool = True
    strategy: str = "greedy"
    window: int = 64

    def __post_init__(self) -> None:
        good = self.length > 0 and self.window > 0 and self.strategy in ("greedy", "best-fit")
        if not good or (self.eos is not None and not 0 <= self.eos < 2**31):
            allowed = "length and window > 0, strategy greedy or best-fit, 0 <= eos < 2^31"
            raise InputError("not a way of packing", value=asdict(self), allowed=allowed)

    def rows(self, documents: Iterable[Any]) -> Iterator[Row]:
        """Yield the rows of some documents; the last one is padded."""
        source, packing = iter(documents), Packing()
        while (found := self.pieces(lambda number: next(source, None), packing))[0]:
            yield self.row(found[0])
            packing = found[1]

    def resume(self, fetch: Fetch, state: Sequence[Any]) -> Packing:
        """Return the packing of a saved state, its open documents read again."""
        return Packing(state[0], tuple((number, at, self._tokens(fetch(number))[at:]) for number, at in state[1]))

    def _tokens(self, found: Any) -> NDArray[Any]:
        tokens = np.asarray(found)
        integers = tokens.ndim == 1 and (tokens.dtype.kind in "iu" or not tokens.size)
        if not integers or (tokens.size and not (tokens.min() >= 0 and tokens.max() < 2**31)):
            raise InputError("does not hold tokens", key=self.field, value=found, allowed="one axis of integers, 0 to 2^31 - 1")
        return tokens if self.eos is None else np.append(tokens, self.eos)

    def pieces(self, fetch: Fetch, packing: Packing) -> tuple[list[NDArray[Any]], Packing]:
        """Return the pieces of the next row, none when no token is left, and where the packing stands then."""
        following, queue = packing.next, list(packing.open)
        pieces: list[NDArray[Any]] = []
        room = self.length
        while room:
            while len(queue) < (self.window if self.strategy == "best-fit" else 1):
                if (found := fetch(following)) is None:
                    break
                tokens = self._tokens(found)
                queue += [(following, 0, tokens)] if len(tokens) else []
                following += 1
            fitting = [len(tokens) if len(tokens) <= room else 0 for _, _, tokens in queue]
            best = fitting.index(max(fitting)) if pieces and queue else 0
            if not queue or (not fitting[best] and pieces and not self.split):
                break
            number, at, tokens = queue.pop(best)
            if len(tokens) > room:
                queue.insert(0, (number, at + room, tokens[room:]))
            pieces.append(tokens[:room])
            room -= len(pieces[-1])
        return pieces, Packing(following, tuple(queue))

    def row(self, pieces: Sequence[NDArray[Any]]) -> Row:
        """Lay pieces one behind the other: `tokens`, `segments`, `positions`, int32[length]."""
        row = {name: np.zeros(self.length, np.int32) for name in ("tokens", "segments", "positions")}
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        used = int(lengths.sum())
        if pieces:
            np.concatenate(pieces, out=row["tokens"][:used], casting="unsafe")
        row["segments"][:used] = np.repeat(np.arange(1, len(pieces) + 1), lengths)
        row["positions"][:used] = np.arange(used) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return row


def document_mask(segments: Any) -> Any:
    """Return which token may look at which: itself and those before it in its own document.

    Args:
        segments: integers [..., L] of NumPy or JAX, 0 where padded.

    Returns:
        bool [..., L, L], of the same library; rows and columns of padding are False.
    """
    xp = segments.__array_namespace__()
    place = xp.arange(segments.shape[-1])
    ours = segments[..., :, None]
    return (ours == segments[..., None, :]) & (ours > 0) & (place[:, None] >= place[None, :])


class PackedLoader(Stream):
    """Iterate over batches of packed rows, the same in the world whatever its size.

    Every rank yields its rows of each global batch as `tokens`, `segments`, `positions`, each int32[rows / world, length]; the
    rows of slot 0 come first. Without end (`epochs=None` of the loader) rows run over from one epoch into the next. With an
    end, slots whose documents are used up give rows of padding until the last slot of this rank is; ranks may then end at
    different batches, so train by steps.

    Args:
        loader: whose store, order, epochs, rank, workers, transform and device are used; it is not iterated, and its batch does
            not count.
        packer: the rule.
        rows: rows of the global batch, a multiple of `slots`.
        slots: independent packings; a multiple of the number of ranks that will ever be used. Default: `rows`.
        chunk: documents that a slot reads at once; it holds at most two chunks and the packer's window.
        state: of `state()`; when that was taken by several ranks, of `joined` states. Rows and ranks may be others.

    Raises:
        InputError: numbers that do not divide, or a state of another stream.
    """

    def __init__(
        self, loader: Loader, packer: Packer, rows: int, *, slots: int | None = None, chunk: int = 32, state: Any = None
    ) -> None:
        slots = slots or rows
        if min(rows, slots, chunk) < 1 or rows % slots or slots % loader.world:
            value = f"{rows} rows, {slots} slots, {loader.world} ranks, chunk {chunk}"
            raise InputError("cannot be shared evenly", value=value, allowed="rows a multiple of slots, slots one of ranks")
        self._loader, self._packer, self._each = loader, packer, rows // slots
        self._same = {"order": loader.state(), "slots": slots, "packer": asdict(packer)}
        own = [str(slot) for slot in range(loader.rank * slots // loader.world, (loader.rank + 1) * slots // loader.world)]
        state = state or {**self._same, "streams": dict.fromkeys(own, (0, ()))}
        for key, wanted in self._same.items():
            if state.get(key) != wanted:
                raise InputError("the state is of another stream of rows", key=key, value=state.get(key), allowed=repr(wanted))
        if missing := [slot for slot in own if slot not in state["streams"]]:
            raise InputError("the state lacks slots", value=missing, hint="join the states of all ranks: PackedLoader.joined")
        plain = loader.work.transform is None
        work = replace(loader.work, collate=None, fields=(packer.field,) if plain else loader.work.fields)
        self._pool = Pool(loader.kind, loader.workers, work)
        self._read = {slot: _documents(loader, self._pool, packer.field, int(slot), slots, chunk) for slot in own}
        self._packings = {slot: packer.resume(self._read[slot][0], state["streams"][slot]) for slot in own}

    def state(self) -> dict[str, Any]:
        """Return where this rank's slots stand, behind the last batch that was handed out; JSON can hold it."""
        return {**self._same, "streams": {slot: packing.state() for slot, packing in self._packings.items()}}

    @staticmethod
    def joined(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Put the states of all ranks (`ranks.allgather(loader.state())`) together into one, from which any rank can go on."""
        return {**states[0], "streams": {slot: at for state in states for slot, at in state["streams"].items()}}

    def __next__(self) -> dict[str, Any]:
        packings, rows = dict(self._packings), []
        for slot in packings:
            for _ in range(self._each):
                pieces, packings[slot] = self._packer.pieces(self._read[slot][0], packings[slot])
                rows.append(self._packer.row(pieces))
        if not any(row["segments"][0] for row in rows):
            self.close()
            raise StopIteration
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        batch = on_device(stacked, self._loader.device, self._loader.sharding)
        self._packings = packings  # not before: after an exception the state is that before this batch
        return batch

    def close(self) -> None:
        """Stop the workers; iterating again goes on behind the last batch."""
        for _, forget in self._read.values():
            forget()
        super().close()


def _documents(loader: Loader, pool: Pool, field: str, slot: int, slots: int, chunk: int) -> tuple[Fetch, Callable[[], None]]:
    """Return how to fetch the documents of a slot, read a chunk at a time and the next ahead, and how to forget what was read."""

    @lru_cache(maxsize=2)
    def begin(which: int) -> Callable[[], list[Any]]:
        start, stop = (slot + number * slots for number in (which * chunk, (which + 1) * chunk))
        places = np.arange(start, stop if loader.total is None else min(stop, loader.total), slots)
        numbers = loader.samples(places)
        task = pool.submit(numbers, places) if len(places) else None

        @cache
        def arrived() -> list[Any]:
            if task is None:
                return []
            batch = task()
            whole = np.isin(numbers, batch["_index"])
            loader.damage.update(numbers[~whole].tolist())
            documents = iter(batch[field])
            return [next(documents) if good else () for good in whole.tolist()]  # a damaged one is empty

        return arrived

    def fetch(number: int) -> Any:
        which, row = divmod(number, chunk)
        arrived, _ = begin(which), begin(which + 1)
        return arrived()[row] if row < len(arrived()) else None

    return fetch, begin.cache_clear
