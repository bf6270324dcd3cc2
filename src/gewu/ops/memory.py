"""Memory of the interpreter: arrays of a launch, as bytes or as symbols, and what a block or a thread has of its own.

Array argument i lies at address (i + 1) << 40, so every address tells its array; all accesses are checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.ops.ir import CONST_WINDOW
from gewu.ops.scalar import UNSIGNED
from gewu.ops.trace import NONE, DataDependent, Ids, Nodes, SymbolicBuffer, example

SHIFT: Final = 40
_MOST_CELLS: Final = 1 << 22
_MOST_SCRATCH: Final = 1 << 29
ONE, MANY = -3, -2


def address_of(number: int) -> int:
    """Return the address of the first byte of an array argument."""
    return (number + 1) << SHIFT


class Fault(Exception):
    """An access outside of an array: which lanes of the access, what is wrong."""

    def __init__(self, lane: int, text: str) -> None:
        super().__init__(text)
        self.lane, self.text = lane, text


class Arrays:
    """Array arguments of a concrete run: reads and writes go to the caller's memory."""

    def __init__(self, args: Sequence[Any], data: bytes) -> None:
        self.bytes: dict[int, NDArray[np.uint8]] = {}
        self.writable: dict[int, bool] = {}
        self.data = np.frombuffer(data, np.uint8).copy()
        for number, array in enumerate(args):
            if isinstance(array, np.ndarray):
                if not array.flags.c_contiguous:
                    raise InputError("an array argument must be C-contiguous", key=f"argument {number}")
                self.bytes[number] = array.reshape(-1).view(np.uint8)
                self.writable[number] = bool(array.flags.writeable)

    def locate(self, address: NDArray[np.uint64], size: int, write: bool) -> list[tuple[int, NDArray[Any], NDArray[np.int64]]]:
        """Return for each array touched: its number, which lanes, and their byte offsets; all checked."""
        number = (address >> np.uint64(SHIFT)).astype(np.int64) - 1
        found = []
        first = number[0] if len(number) else 0
        for buffer in [first] if (number == first).all() else np.unique(number):
            lanes = np.flatnonzero(number == buffer)
            space, base = (self.data, CONST_WINDOW) if buffer == (CONST_WINDOW >> SHIFT) - 1 else (self.bytes.get(int(buffer)), 0)
            if space is None:
                raise Fault(int(lanes[0]), f"address {int(address[lanes[0]]):#x} lies in no array")
            offset = (address[lanes] - np.uint64(base or address_of(int(buffer)))).astype(np.int64)
            wrong = (offset < 0) | (offset + size > len(space))
            if wrong.any():
                place = int(wrong.argmax())
                raise Fault(
                    int(lanes[place]), f"byte {int(offset[place])} of argument {int(buffer)}, which has {len(space)} bytes"
                )
            if (offset % size).any():
                place = int((offset % size != 0).argmax())
                raise Fault(int(lanes[place]), f"byte {int(offset[place])} of argument {int(buffer)} is no multiple of {size}")
            if write and not base and not self.writable[int(buffer)]:
                raise Fault(int(lanes[0]), f"argument {int(buffer)} may only be read")
            found.append((int(buffer), lanes, offset))
        return found

    def elements(self, buffer: int, size: int) -> NDArray[Any]:
        """Return an array as elements of so many bytes."""
        space = self.bytes.get(buffer, self.data)
        return space[: len(space) // size * size].view(UNSIGNED[8 * size])

    def load(self, address: NDArray[np.uint64], size: int) -> NDArray[Any]:
        """Return the bits at addresses."""
        out = np.zeros(len(address), UNSIGNED[8 * size])
        for buffer, lanes, offset in self.locate(address, size, False):
            out[lanes] = self.elements(buffer, size)[offset // size]
        return out

    def store(self, address: NDArray[np.uint64], size: int, value: NDArray[Any]) -> None:
        """Write bits to addresses, in the order of lanes."""
        for buffer, lanes, offset in self.locate(address, size, True):
            self.elements(buffer, size)[offset // size] = value[lanes]


class Cells:
    """The elements of one array at one size, in a symbolic run: their nodes, and who touched them.

    `writer`: the lane that wrote last; `reader`: the lane that read the first content, MANY for several; `atomic`: who added to
    it last, ONE or MANY blocks, NONE where the last write was a plain one; `plain`: the lane of the last plain write.
    """

    def __init__(self) -> None:
        self.length = 0
        self.node = self.leaf = self.writer = self.reader = self.atomic = self.plain = np.zeros(0, np.int64)
        self.bits: NDArray[Any] = np.zeros(0, np.uint64)

    def reach(self, length: int) -> None:
        """Make room for so many elements."""
        if length > _MOST_CELLS:
            raise DataDependent("an array is reached into too far to follow with symbols")
        if length > self.length:
            extra = max(length, 2 * self.length) - self.length
            for name in ("node", "leaf", "writer", "reader", "atomic", "plain"):
                setattr(self, name, np.concatenate([getattr(self, name), np.full(extra, NONE)]))
            self.bits = np.concatenate([self.bits, np.zeros(extra, np.uint64)])
            self.length += extra


class Symbols:
    """Array arguments of a symbolic run."""

    def __init__(self, args: Sequence[Any], nodes: Nodes, block_of: NDArray[np.int64], data: bytes) -> None:
        self.buffers = {i: a for i, a in enumerate(args) if isinstance(a, SymbolicBuffer)}
        self.units = {i: np.dtype(a.dtype).itemsize for i, a in self.buffers.items()}
        self.nodes, self.block_of = nodes, block_of
        self.data = np.frombuffer(data, np.uint8)
        self.cells: dict[tuple[int, int], Cells] = {}
        self.hazards: list[str] = []
        self.stored: set[tuple[int, int]] = set()
        self.gathered: set[int] = set()

    def locate(self, address: NDArray[np.uint64]) -> list[tuple[int, NDArray[Any], NDArray[np.int64]]]:
        """Return for each array touched: its number, which lanes, and their byte offsets."""
        number = (address >> np.uint64(SHIFT)).astype(np.int64) - 1
        found = []
        for buffer in np.unique(number):
            lanes = np.flatnonzero(number == buffer)
            if int(buffer) not in self.buffers:
                raise Fault(int(lanes[0]), f"address {int(address[lanes[0]]):#x} lies in no array")
            found.append((int(buffer), lanes, (address[lanes] - np.uint64(address_of(int(buffer)))).astype(np.int64)))
        return found

    def _cells(self, buffer: int, size: int, offset: Ids, write: bool) -> tuple[Cells, Ids]:
        if (offset % size).any():
            raise Fault(int((offset % size != 0).argmax()), f"argument {buffer} is accessed at no multiple of {size}")
        others = {s for b, s in self.cells if b == buffer and s != size}
        if others and (write or any((buffer, s) in self.stored for s in others)):
            raise DataDependent("an array is accessed in elements of different sizes", key=f"argument {buffer}")
        if write:
            self.stored.add((buffer, size))
        cells = self.cells.setdefault((buffer, size), Cells())
        index = offset // size
        cells.reach(int(index.max()) + 1)
        return cells, index

    def load(self, address: NDArray[np.uint64], size: int, lanes: Ids, atomic: bool = False) -> tuple[NDArray[Any], Ids]:
        """Return example bits and nodes at addresses; `atomic`: as a part of an addition, whose order does not matter."""
        bits, nodes = np.zeros(len(address), UNSIGNED[8 * size]), np.full(len(address), NONE)
        if len(self.data) and (address >= np.uint64(CONST_WINDOW)).all():
            offset = (address - np.uint64(CONST_WINDOW)).astype(np.int64)
            if (offset + size > len(self.data)).any():
                raise Fault(int((offset + size > len(self.data)).argmax()), "past the data of the module")
            return self.data[: len(self.data) // size * size].view(UNSIGNED[8 * size])[offset // size], nodes
        for buffer, chosen, offset in self.locate(address):
            cells, index = self._cells(buffer, size, offset, False)
            self._leaves(buffer, size, cells, index)
            written = cells.node[index] != NONE
            foreign = written & (self.block_of[np.maximum(cells.writer[index], 0)] != self.block_of[lanes[chosen]])
            if atomic:
                plain = cells.plain[index]
                foreign = (plain != NONE) & (self.block_of[np.maximum(plain, 0)] != self.block_of[lanes[chosen]])
            else:
                foreign |= cells.atomic[index] == MANY
            if foreign.any():
                self.hazards.append(f"argument {buffer} is written by one block and read by another")
            if not atomic:
                self._note_readers(cells, index[~written], lanes[chosen][~written])
            nodes[chosen] = np.where(written, cells.node[index], cells.leaf[index])
            bits[chosen] = cells.bits[index].astype(bits.dtype)
        return bits, nodes

    def _note_readers(self, cells: Cells, index: Ids, lanes: Ids) -> None:
        before = cells.reader[index]
        cells.reader[index] = np.where((before == NONE) | (before == lanes), lanes, MANY)
        cells.reader[index[cells.reader[index] != lanes]] = MANY  # several lanes of this very access

    def _leaves(self, buffer: int, size: int, cells: Cells, index: Ids) -> None:
        missing = np.unique(index[(cells.node[index] == NONE) & (cells.leaf[index] == NONE)])
        if len(missing):
            cells.leaf[missing] = self.nodes.load(buffer, 8 * size, missing * size)
            cells.bits[missing] = example(self.buffers[buffer], buffer, missing * size, size)

    def store(
        self, address: NDArray[np.uint64], size: int, bits: NDArray[Any], nodes: Ids, lanes: Ids, atomic: bool = False
    ) -> None:
        """Write nodes (made constants where there are none) to addresses."""
        nodes = nodes.copy()
        plain = nodes == NONE
        if plain.any():
            nodes[plain] = self.nodes.constants(bits[plain], f"b{8 * size}")
        for buffer, chosen, offset in self.locate(address):
            cells, index = self._cells(buffer, size, offset, True)
            before = cells.writer[index]
            foreign = (before >= 0) & (self.block_of[np.maximum(before, 0)] != self.block_of[lanes[chosen]])
            if foreign.any() and not atomic:
                self.hazards.append(f"argument {buffer} is written by several blocks")
            many = foreign | (cells.atomic[index] == MANY)
            cells.atomic[index] = np.where(many, MANY, ONE) if atomic else NONE
            if not atomic:
                cells.plain[index] = lanes[chosen]
            cells.node[index], cells.bits[index], cells.writer[index] = nodes[chosen], bits[chosen], lanes[chosen]
            if (self.block_of[cells.writer[index]] != self.block_of[lanes[chosen]]).any():  # in this very access
                self.hazards.append(f"argument {buffer} is written by several blocks")

    def finish(self) -> dict[tuple[int, int], tuple[Ids, Ids, Ids]]:
        """Return the final contents of what was written, and note races between first reads and writes."""
        stores = {}
        for (buffer, size), cells in self.cells.items():
            index = np.flatnonzero(cells.node != NONE)
            if not len(index):
                continue
            reader, writer = cells.reader[index], cells.writer[index]
            if ((reader != NONE) & ((reader != writer) | (cells.atomic[index] == MANY))).any():
                self.hazards.append(f"argument {buffer} is read by one thread and overwritten by another")
            if buffer in self.gathered:
                self.hazards.append(f"argument {buffer} is read at places that depend on data, and written")
            pieces = self.nodes.pieces(cells.node[index], size, self.units[buffer])
            small = size // len(pieces)
            places = index[:, None] * size + small * np.arange(len(pieces))
            stores[buffer, small] = (places.reshape(-1), np.stack(pieces, axis=1).reshape(-1), np.repeat(writer, len(pieces)))
        return stores


class Scratch:
    """Shared memory of each block, or local memory of each thread: bytes, and nodes beside them."""

    def __init__(self, rows: int, size: int, nodes: Nodes | None) -> None:
        self.limit, self.size = size, -(-max(size, 8) // 8) * 8
        if rows * self.size > _MOST_SCRATCH:
            raise InputError("too much shared or local memory at once", value=rows * self.size, allowed=f"{_MOST_SCRATCH} bytes")
        self.bytes = np.zeros((rows, self.size), np.uint8)
        self.nodes = nodes
        self.symbols: dict[int, NDArray[np.int64]] = {}
        self.rows = rows

    def check(self, offset: Ids, size: int, what: str) -> None:
        """Refuse an access outside, or not aligned."""
        wrong = (offset < 0) | (offset + size > self.limit) | (offset % size != 0)
        if wrong.any():
            place = int(wrong.argmax())
            raise Fault(place, f"byte {int(offset[place])} of {what} memory, which has {self.limit}, in pieces of {size}")

    def load(self, row: Ids, offset: Ids, size: int) -> tuple[NDArray[Any], Ids | None]:
        """Return bits and nodes."""
        bits = self.bytes.view(UNSIGNED[8 * size])[row, offset // size]
        if self.nodes is None or not self.symbols:
            return bits, None
        self._no_mixed_bytes(row, offset, size)
        if size == 8:
            low, high = (self._word(row, offset + k, 4) for k in (0, 4))
            return bits, self._joined(low, high, bits, 4)
        return bits, self._word(row, offset, size)

    def _no_mixed_bytes(self, row: Ids, offset: Ids, size: int) -> None:
        """Refuse what no node stands for: a byte of a symbolic word, a word of symbolic bytes."""
        for width, table in self.symbols.items():
            if size == 1 < width:
                mixed = bool((table[row, offset // width] != NONE).any())
            else:
                mixed = width == 1 < size and any((table[row, offset + k] != NONE).any() for k in range(size))
            if mixed:
                raise DataDependent("data in shared or local memory is accessed both as bytes and as words")

    def _word(self, row: Ids, offset: Ids, size: int) -> Ids:
        table = self.symbols.get(size)
        found = np.full(len(row), NONE) if table is None else table[row, offset // size]
        other = self.symbols.get(4 if size == 2 else 2)
        if other is None or size not in (2, 4):
            return found
        if size == 4:
            low, high = other[row, offset // 2], other[row, offset // 2 + 1]
            bits = self.bytes.view(np.uint32)[row, offset // 4]
            return np.where(found == NONE, self._joined(low, high, bits, 2), found)
        whole = other[row, offset // 4]
        for high_part in (False, True):
            chosen = (found == NONE) & (whole != NONE) & ((offset % 4 == 2) == high_part)
            if chosen.any():
                assert self.nodes is not None
                found[chosen] = self.nodes.half(whole[chosen], high_part, "b32")
        return found

    def _joined(self, low: Ids, high: Ids, bits: NDArray[Any], half: int) -> Ids:
        assert self.nodes is not None
        out = np.full(len(low), NONE)
        some = (low != NONE) | (high != NONE)
        if some.any():
            kind = f"b{8 * half}"
            words = bits.astype(np.uint64)
            parts = []
            for part, shift in ((low, 0), (high, 8 * half)):
                piece = part[some].copy()
                plain = piece == NONE
                piece[plain] = self.nodes.constants(
                    ((words[some] >> np.uint64(shift)) & np.uint64((1 << (8 * half)) - 1))[plain], kind
                )
                parts.append(piece)
            out[some] = self.nodes.join(parts[0], parts[1], f"b{16 * half}")
        return out

    def store(self, row: Ids, offset: Ids, size: int, bits: NDArray[Any], nodes: Ids | None) -> None:
        """Write bits and nodes."""
        if size == 1 and self.symbols:
            self._no_mixed_bytes(row, offset, 1)
        self.bytes.view(UNSIGNED[8 * size])[row, offset // size] = bits
        if self.nodes is None or (nodes is None and not self.symbols):
            return
        if size == 8:
            halves: list[Ids | None] = [None, None]
            if nodes is not None:
                halves = [np.full(len(nodes), NONE), np.full(len(nodes), NONE)]
                some = nodes != NONE
                for k, part in enumerate(halves):
                    part[some] = self.nodes.half(nodes[some], bool(k), "b64")  # type: ignore[index]
            self._put(row, offset, 4, halves[0])
            self._put(row, offset + 4, 4, halves[1])
            return
        self._put(row, offset, size, nodes)

    def _put(self, row: Ids, offset: Ids, size: int, nodes: Ids | None) -> None:
        if nodes is not None and size not in self.symbols:
            self.symbols[size] = np.full((self.rows, self.size // size), NONE)
        for width, table in self.symbols.items():
            if width == size:
                table[row, offset // size] = NONE if nodes is None else nodes
            elif width > size:
                if {width, size} == {4, 2} and (table[row, offset // width] != NONE).any():
                    self._split(table, row, offset)
                table[row, offset // width] = NONE
            else:
                for k in range(0, size, width):
                    table[row, (offset + k) // width] = NONE

    def _split(self, table: NDArray[np.int64], row: Ids, offset: Ids) -> None:
        """Keep the half of a word that a narrow store leaves alone."""
        assert self.nodes is not None
        halves = self.symbols.setdefault(2, np.full((self.rows, self.size // 2), NONE))
        whole = table[row, offset // 4]
        for high in (False, True):
            chosen = (whole != NONE) & ((offset % 4 == 2) != high)
            if chosen.any():
                halves[row[chosen], offset[chosen] // 4 * 2 + int(high)] = self.nodes.half(whole[chosen], high, "b32")
