"""Loads, stores and atomic operations of the interpreter: addresses, spaces, and the symbols that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gewu.ops import scalar
from gewu.ops.ir import CONST_WINDOW, FLOATS, LOCAL_WINDOW, SHARED_WINDOW, WIDTH, Instruction, Operand
from gewu.ops.memory import Arrays, Scratch, Symbols, address_of
from gewu.ops.scalar import UNSIGNED, cut
from gewu.ops.trace import NONE, DataDependent, Ids, Nodes

Lanes = NDArray[np.int64]
_ORDERLESS: Final = frozenset({"add", "min", "max", "and", "or", "xor"})
"""Atomic operations whose result is the same in any order of threads, but for rounding."""
_AT_ONCE: Final[dict[str, np.ufunc]] = {
    **{"add": np.add, "min": np.minimum, "max": np.maximum},
    **{"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor},
}


class Access:
    """What `interp.Machine` does with memory."""

    if TYPE_CHECKING:
        kernel: Any
        used: set[Any]
        count: int
        row: Ids
        path: Ids | None
        arrays: Arrays | None
        symbols: Symbols | None
        shared: Scratch
        local: Scratch | None
        nodes: Nodes | None

        def read(  # noqa: D102
            self, source: Operand, lanes: Lanes, full: bool, width: int
        ) -> tuple[NDArray[Any], Ids | None]: ...
        def write(  # noqa: D102
            self, name: str, lanes: Lanes, full: bool, bits: NDArray[Any], marks: Ids | None
        ) -> None: ...
        def _as_nodes(self, marks: Ids | None, bits: NDArray[Any], type_: str) -> Ids: ...

    def _address(self, i: Instruction, lanes: Lanes, full: bool) -> tuple[NDArray[np.uint64], Ids | None]:
        space = i.mods[0]
        bits, marks = self.read(i.src[0], lanes, full, 64)
        offset = i.src[1]
        assert isinstance(offset, int)
        if marks is not None and not (marks != NONE).any():
            marks = None
        address = cut(bits, 64) + np.uint64(offset)
        if space in ("shared", "local"):
            address = (cut(bits, 64) + np.uint64(offset)) & np.uint64(
                0xFFFFFFFF if bits.dtype.itemsize == 4 else SHARED_WINDOW - 1
            )
        return address, marks

    def _places(self, i: Instruction, address: NDArray[np.uint64]) -> list[tuple[str, NDArray[Any]]]:
        """Return the memory spaces touched, and which lanes touch them."""
        space = i.mods[0]
        if space != "generic":
            return [(space, np.arange(len(address)))]
        kinds = np.where(
            address >= np.uint64(CONST_WINDOW),
            3,
            np.where(address >= np.uint64(LOCAL_WINDOW), 2, address >= np.uint64(SHARED_WINDOW)),
        )
        return [(("global", "shared", "local", "global")[k], np.flatnonzero(kinds == k)) for k in np.unique(kinds)]

    def _scratch(self, space: str, address: NDArray[np.uint64], lanes: Lanes, size: int) -> tuple[Scratch, Lanes, Ids]:
        offset = (address & np.uint64(SHARED_WINDOW - 1)).astype(np.int64)
        if space == "local":
            if self.local is None:
                self.local = Scratch(self.count, self.kernel.local, self.nodes)
            self.local.check(offset, size, space)
            return self.local, lanes, offset
        self.shared.check(offset, size, space)
        return self.shared, self.row[lanes], offset

    def _load(self, i: Instruction, lanes: Lanes, full: bool) -> None:
        size = WIDTH[i.type] // 8
        address, symbolic = self._address(i, lanes, full)
        assert isinstance(i.src[1], int)
        for k, name in enumerate(i.dst):
            at = address + np.uint64(k * size)
            bits, marks = self._fetch(i, at, symbolic, lanes, size, i.src[1] + k * size)
            width = WIDTH[self.kernel.widths[name]]
            if width > 8 * size:
                sign = i.type[0] == "s"
                bits = (
                    scalar.signed(bits, 8 * size).astype(f"i{width // 8}").view(UNSIGNED[width])
                    if sign
                    else bits.astype(UNSIGNED[width])
                )
                if marks is not None and (marks != NONE).any():
                    assert self.nodes is not None
                    some = marks != NONE
                    kind = i.type if i.type[0] in "us" else f"u{8 * size}"
                    marks[some] = self.nodes.add("cvt", f"{kind[0]}{width}", (kind,), [marks[some]])
            self.write(name, lanes, full, bits, marks)

    def _fetch(
        self, i: Instruction, address: NDArray[np.uint64], symbolic: Ids | None, lanes: Lanes, size: int, beyond: int
    ) -> tuple[NDArray[Any], Ids | None]:
        bits = np.zeros(len(lanes), UNSIGNED[8 * size])
        marks = None if self.nodes is None else np.full(len(lanes), NONE)
        for space, chosen in self._places(i, address):
            mine = lanes[chosen]
            if space in ("shared", "local"):
                if symbolic is not None:
                    raise DataDependent("a shared address that depends on data", key=f"{self.kernel.name} at {i.where}")
                scratch, row, offset = self._scratch(space, address[chosen], mine, size)
                bits[chosen], found = scratch.load(row, offset, size)
                if found is not None and marks is not None:
                    marks[chosen] = found
            elif self.symbols is None:
                assert self.arrays is not None
                bits[chosen] = self.arrays.load(
                    address[chosen] + np.uint64(CONST_WINDOW if space == "const" and address[chosen][0] < CONST_WINDOW else 0),
                    size,
                )
            else:
                assert marks is not None
                bits[chosen], marks[chosen] = self._symbolic_load(
                    address[chosen], None if symbolic is None else symbolic[chosen], mine, size, beyond
                )
        return bits, marks

    def _symbolic_load(
        self, address: NDArray[np.uint64], symbolic: Ids | None, lanes: Lanes, size: int, beyond: int
    ) -> tuple[NDArray[Any], Ids]:
        assert self.symbols is not None and self.nodes is not None
        bits, nodes = (
            self.symbols.load(address, size, lanes)
            if symbolic is None
            else (np.zeros(len(lanes), UNSIGNED[8 * size]), np.full(len(lanes), NONE))
        )
        if symbolic is None:
            return bits, nodes
        plain = symbolic == NONE
        if plain.any():
            bits[plain], nodes[plain] = self.symbols.load(address[plain], size, lanes[plain])
        some = ~plain
        for buffer, chosen, _offset in self.symbols.locate(address[some]):
            place = np.flatnonzero(some)[chosen]
            example_bits, _ = self.symbols.load(address[place] // np.uint64(size) * np.uint64(size), size, lanes[place])
            self.symbols.gathered.add(buffer)
            at = self.nodes.displaced(symbolic[place], (beyond - address_of(buffer) + 2**63) % 2**64 - 2**63)
            bits[place] = example_bits
            nodes[place] = self.nodes.add("gather", f"b{8 * size}", (str(buffer),), [at])
            if any(b == buffer for b, _ in self.symbols.stored):
                raise DataDependent("an array is written and read at places that depend on data", key=f"argument {buffer}")
        return bits, nodes

    def _store(self, i: Instruction, lanes: Lanes, full: bool, condition: Ids | None) -> None:
        size = WIDTH[i.type] // 8
        address, symbolic = self._address(i, lanes, full)
        if symbolic is not None:
            raise DataDependent("writes to a place that depends on data", key=f"{self.kernel.name} at {i.where}")
        condition = self._under(lanes, condition)
        for k, source in enumerate(i.src[2:]):
            bits, marks = self.read(source, lanes, full, 8 * size)
            if marks is not None and bits.dtype.itemsize > size:
                marks = self._narrowed(marks, bits.dtype.itemsize, size)
            bits = cut(bits, 8 * size)
            at = address + np.uint64(k * size)
            for space, chosen in self._places(i, at):
                part = None if marks is None else marks[chosen]
                under = None if condition is None else condition[chosen]
                self._deposit(i, space, at[chosen], size, bits[chosen], part, lanes[chosen], under)

    def _narrowed(self, marks: Ids, have: int, want: int) -> Ids:
        assert self.nodes is not None
        out, some = marks.copy(), marks != NONE
        if some.any():
            out[some] = (
                self.nodes.add("cvt", f"u{8 * want}", (f"u{8 * have}",), [marks[some]])
                if want < 2 or have != 2 * want
                else self.nodes.half(marks[some], False, f"b{8 * have}")
            )
        return out

    def _under(self, lanes: Lanes, condition: Ids | None) -> Ids | None:
        """Return the condition of the path and that of the instruction together."""
        if self.path is None or self.nodes is None:
            return condition
        path = self.path[lanes]
        if condition is None:
            return path if (path != NONE).any() else None
        both = condition.copy()
        some = (path != NONE) & (condition != NONE)
        both[some] = self.nodes.add("and", "pred", (), [path[some], condition[some]])
        return np.where(condition == NONE, path, both)

    def _deposit(
        self,
        i: Instruction,
        space: str,
        address: NDArray[np.uint64],
        size: int,
        bits: NDArray[Any],
        marks: Ids | None,
        lanes: Lanes,
        condition: Ids | None,
    ) -> None:
        if space in ("shared", "local"):
            scratch, row, offset = self._scratch(space, address, lanes, size)
            if condition is not None:
                self._no_contest(i, condition, row * scratch.size + offset)
                before, old = scratch.load(row, offset, size)
                marks = self._selected(condition, marks, bits, old, before, size)
            scratch.store(row, offset, size, bits, marks)
        elif self.symbols is None:
            assert self.arrays is not None
            self.arrays.store(address, size, bits)
        else:
            if condition is not None:
                self._no_contest(i, condition, address)
                before, old = self.symbols.load(address, size, lanes)
                marks = self._selected(condition, marks, bits, old, before, size)
            self.symbols.store(address, size, bits, np.full(len(lanes), NONE) if marks is None else marks, lanes)

    def _no_contest(self, i: Instruction, condition: Ids, place: NDArray[Any]) -> None:
        """Refuse stores of several lanes to one place when it depends on data which of them stores."""
        contested = np.isin(place, place[condition != NONE])
        if len(np.unique(place[contested])) < contested.sum():
            raise DataDependent("it depends on data which thread writes", key=f"{self.kernel.name} at {i.where}")

    def _selected(
        self, condition: Ids, marks: Ids | None, bits: NDArray[Any], old: Ids | None, before: NDArray[Any], size: int
    ) -> Ids:
        assert self.nodes is not None
        kind = f"b{8 * size}"
        new = np.full(len(bits), NONE) if marks is None else marks
        some = condition != NONE
        out = new.copy()
        if some.any():
            one = self._as_nodes(new[some], bits[some], kind)
            two = self._as_nodes(None if old is None else old[some], before[some], kind)
            two = self.nodes.otherwise(two, condition[some])
            out[some] = self.nodes.add("select", kind, (), [one, two, condition[some]])
        return out

    def _atomic(self, i: Instruction, lanes: Lanes, full: bool) -> None:
        size, kind = WIDTH[i.type] // 8, UNSIGNED[WIDTH[i.type]]
        address, symbolic = self._address(i, lanes, full)
        if symbolic is not None or self._under(lanes, None) is not None:
            raise DataDependent("an atomic operation at a place that depends on data", key=f"{self.kernel.name} at {i.where}")
        values = [self.read(s, lanes, full, 8 * size) for s in i.src[2:]]
        if (
            self.nodes is None
            and not self._returns(i)
            and ((i.type[0] in "usb" and i.type not in FLOATS) or (i.type in ("f32", "f64") and i.mods[1] == "add"))
        ):
            operation = _AT_ONCE.get(i.mods[1])
            if operation is not None:
                self._combine_at_once(i, operation, address, cut(values[0][0], 8 * size), lanes)
                return
        old, marks = np.zeros(len(lanes), kind), np.full(len(lanes), NONE)
        key = address * np.uint64(4096) + (self.row[lanes].astype(np.uint64) if i.mods[0] == "shared" else np.uint64(0))
        order = np.argsort(key, kind="stable")
        rank = np.arange(len(lanes)) - np.searchsorted(key[order], key[order])
        by_rank = order[np.argsort(rank, kind="stable")]
        ends = np.cumsum(np.bincount(rank))
        for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):  # one lane of each place at a time
            turn = np.sort(by_rank[start:end])
            self._exchange(i, address[turn], turn, lanes[turn], values, old, marks, size)
        if i.dst:
            self.write(i.dst[0], lanes, full, old, marks if self.nodes is not None else None)

    def _returns(self, i: Instruction) -> bool:
        """Tell whether what an atomic operation found is read by anyone."""
        return any(name in self.used for name in i.dst)

    def _combine_at_once(
        self, i: Instruction, operation: np.ufunc, address: NDArray[np.uint64], bits: NDArray[Any], lanes: Lanes
    ) -> None:
        """Do an atomic operation that returns nothing, in the order of lanes."""
        size = WIDTH[i.type] // 8
        kind = np.dtype(f"{i.type[0] if i.type[0] in 'f' else 'i' if i.type[0] == 's' else 'u'}{size}")
        for space, chosen in self._places(i, address):
            value = np.ascontiguousarray(bits[chosen]).view(kind)
            if space in ("shared", "local"):
                scratch, row, offset = self._scratch(space, address[chosen], lanes[chosen], size)
                operation.at(scratch.bytes.view(kind), (row, offset // size), value)
                continue
            assert self.arrays is not None
            for buffer, mine, offset in self.arrays.locate(address[chosen], size, True):
                operation.at(self.arrays.elements(buffer, size).view(kind), offset // size, value[mine])

    def _exchange(
        self,
        i: Instruction,
        address: NDArray[np.uint64],
        turn: Lanes,
        lanes: Lanes,
        values: Any,
        old: NDArray[Any],
        marks: Ids,
        size: int,
    ) -> None:
        what = i.mods[1]
        for space, chosen in self._places(i, address):
            mine, at = turn[chosen], address[chosen]
            operands = [cut(bits, 8 * size)[mine] for bits, _ in values]
            nodes = [None if m is None else m[mine] for _, m in values]
            if space in ("shared", "local"):
                scratch, row, offset = self._scratch(space, at, lanes[chosen], size)
                before, node = scratch.load(row, offset, size)
            elif self.symbols is not None:
                before, node = self.symbols.load(at, size, lanes[chosen], atomic=what in _ORDERLESS and not self._returns(i))
            else:
                assert self.arrays is not None
                before, node = self.arrays.load(at, size), None
            old[mine] = before
            after = _combine(what, i.type, before, operands)
            result: Ids | None = None
            if self.nodes is not None:
                node = np.full(len(mine), NONE) if node is None else node
                marks[mine] = node
                result = self._combined(i, what, before, node, operands, nodes)
            if space in ("shared", "local"):
                scratch.store(row, offset, size, after, result)
            elif self.symbols is not None:
                assert result is not None
                self.symbols.store(at, size, after, result, lanes[chosen], atomic=what in _ORDERLESS and not self._returns(i))
            else:
                assert self.arrays is not None
                self.arrays.store(at, size, after)

    def _combined(self, i: Instruction, what: str, before: NDArray[Any], node: Ids, operands: Any, nodes: Any) -> Ids:
        assert self.nodes is not None
        mine = np.full(len(before), NONE) if nodes[0] is None else nodes[0]
        some = (node != NONE) | (mine != NONE)
        for more in nodes[1:]:
            some = some if more is None else some | (more != NONE)
        if what == "exch":
            if i.mods[0] not in ("shared", "local") and some.any():
                raise DataDependent("the order of exchanges depends on data", key=f"{self.kernel.name} at {i.where}")
            return mine
        if not some.any():
            return np.full(len(before), NONE)
        if what not in ("add", "min", "max", "and", "or", "xor"):
            raise DataDependent(f"an atomic `{what}` of data", key=f"{self.kernel.name} at {i.where}")
        kind = f"b{WIDTH[i.type]}"
        out = np.full(len(before), NONE)
        args = [self._as_nodes(node[some], before[some], kind), self._as_nodes(mine[some], operands[0][some], kind)]
        out[some] = self.nodes.add(what, i.type, (), args)
        return out


def _combine(what: str, type_: str, before: NDArray[Any], operands: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return what an atomic operation leaves behind."""
    value = operands[0]
    if what == "exch":
        return value
    if what == "cas":
        return np.where(before == value, operands[1], before)
    if what == "inc":
        return np.where(before >= value, before.dtype.type(0), before + before.dtype.type(1))
    if what == "dec":
        return np.where((before == 0) | (before > value), value, before - before.dtype.type(1))
    return scalar.apply(what, type_, (), [before, value])
