"""Operations of the interpreter that threads do together: shuffles, votes, reductions of a warp, matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gewu.ops import scalar
from gewu.ops.ir import WIDTH, Instruction, Operand, Unsupported
from gewu.ops.scalar import UNSIGNED, cut
from gewu.ops.trace import NONE, DataDependent, Ids, Nodes

Lanes = NDArray[np.int64]
WARP = 32


class Collective:
    """What `interp.Machine` does with several lanes at once."""

    if TYPE_CHECKING:
        kernel: Any
        threads: int
        count: int
        thread: Ids
        row: Ids
        nodes: Nodes | None
        path: Ids | None
        registers: dict[str, NDArray[Any]]
        marks: dict[str, Ids]

        def read(  # noqa: D102
            self, source: Operand, lanes: Lanes, full: bool, width: int
        ) -> tuple[NDArray[Any], Ids | None]: ...
        def write(  # noqa: D102
            self, name: str, lanes: Lanes, full: bool, bits: NDArray[Any], marks: Ids | None
        ) -> None: ...
        def _as_nodes(self, marks: Ids | None, bits: NDArray[Any], type_: str) -> Ids: ...

    def collective(self, i: Instruction, lanes: Lanes, full: bool) -> None:
        """Do a shuffle, vote, match, warp reduction, active mask or matrix product."""
        action = getattr(self, f"_do_{i.op}", None)
        if action is None:
            raise Unsupported("not interpreted", key=f"{self.kernel.name} at {i.where}", value=i.op)
        if self.path is not None and (self.path[lanes] != NONE).any():
            raise DataDependent(f"`{i.op}` in a branch that depends on data", key=f"{self.kernel.name} at {i.where}")
        action(i, lanes, full)

    def _warp(self, lanes: Lanes) -> Ids:
        """Return a number for the warp of each lane."""
        return self.row[lanes] * (-(-self.threads // WARP)) + self.thread[lanes] // WARP

    def _do_shfl(self, i: Instruction, lanes: Lanes, full: bool) -> None:
        own = self.thread[lanes] % WARP
        operands = [self.read(s, lanes, full, 32) for s in i.src[1:3]]
        if any(m is not None and (m != NONE).any() for _, m in operands):
            raise DataDependent("a shuffle whose lane depends on data", key=f"{self.kernel.name} at {i.where}")
        b, c = (cut(bits, 32).astype(np.int64) for bits, _ in operands)
        step, clamp, mask = b & 31, c & 31, (c >> 8) & 31
        most = (own & mask) | (clamp & ~mask & 31)
        mode = i.mods[0]
        if mode == "up":
            source = own - step
            good = source >= most
        else:
            source = {"down": own + step, "bfly": own ^ step, "idx": (own & mask) | (step & ~mask & 31)}[mode]
            good = source <= most
        source = np.where(good, source, own)
        inside = self.thread[lanes] - own + source < self.threads
        target = np.where(inside, lanes - own + source, lanes)
        width = 32
        if isinstance(i.src[0], int):
            bits, marks = self.read(i.src[0], lanes, full, width)
        else:
            whole = self.registers.get(i.src[0], np.zeros(self.count, np.uint32))
            bits = whole[target]
            every = self.marks.get(i.src[0])
            marks = None if every is None else every[target]
        self.write(i.dst[0], lanes, full, np.array(bits), marks)
        if len(i.dst) > 1:
            self.write(i.dst[1], lanes, full, good, None)

    def _do_vote(self, i: Instruction, lanes: Lanes, full: bool) -> None:
        bits, marks = self.read(i.src[0], lanes, full, 1)
        if marks is not None and (marks != NONE).any():
            raise DataDependent("a vote on data", key=f"{self.kernel.name} at {i.where}")
        warp = self._warp(lanes)
        lane = (self.thread[lanes] % WARP).astype(np.uint64)
        count = int(warp.max()) + 1
        ballot, there = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
        np.bitwise_or.at(there, warp, np.uint64(1) << lane)
        np.bitwise_or.at(ballot, warp[bits], np.uint64(1) << lane[bits])
        mode = i.mods[0]
        value: Any
        if mode == "ballot":
            value = ballot[warp]
        elif mode == "any":
            value = ballot[warp] != 0
        elif mode == "all":
            value = ballot[warp] == there[warp]
        else:
            value = (ballot[warp] == there[warp]) | (ballot[warp] == 0)
        self.write(i.dst[0], lanes, full, value, None)

    def _do_activemask(self, i: Instruction, lanes: Lanes, full: bool) -> None:
        warp = self._warp(lanes)
        there = np.zeros(int(warp.max()) + 1, np.uint64)
        np.bitwise_or.at(there, warp, np.uint64(1) << (self.thread[lanes] % WARP).astype(np.uint64))
        self.write(i.dst[0], lanes, full, there[warp], None)

    def _do_match(self, i: Instruction, lanes: Lanes, full: bool) -> None:
        bits, marks = self.read(i.src[0], lanes, full, WIDTH[i.type])
        if marks is not None and (marks != NONE).any():
            raise DataDependent("a match of data", key=f"{self.kernel.name} at {i.where}")
        warp = self._warp(lanes)
        _, group = np.unique(np.stack([warp.astype(np.uint64), bits.astype(np.uint64)]), axis=1, return_inverse=True)
        group = group.reshape(-1)
        mask = np.zeros(int(group.max()) + 1, np.uint64)
        np.bitwise_or.at(mask, group, np.uint64(1) << (self.thread[lanes] % WARP).astype(np.uint64))
        self.write(i.dst[0], lanes, full, mask[group], None)

    def _do_redux(self, i: Instruction, lanes: Lanes, full: bool) -> None:
        bits, marks = self.read(i.src[0], lanes, full, 32)
        bits = cut(bits, 32)
        warp = self._warp(lanes)
        order = np.argsort(warp, kind="stable")
        place = np.arange(len(lanes)) - np.searchsorted(warp[order], warp[order])
        numbers, first = np.unique(warp[order], return_index=True)
        total = bits[order][first].copy()
        nodes = None
        if marks is not None and (marks != NONE).any():
            assert self.nodes is not None
            nodes = self._as_nodes(marks[order][first], total, "b32")
        for step in range(1, int(place.max()) + 1):
            mine = order[place == step]
            at = np.searchsorted(numbers, warp[mine])
            if nodes is not None:
                assert self.nodes is not None and marks is not None
                nodes[at] = self.nodes.add(i.mods[0], i.type, (), [nodes[at], self._as_nodes(marks[mine], bits[mine], "b32")])
            total[at] = scalar.apply(i.mods[0], i.type, (), [total[at], bits[mine]])
        back = np.searchsorted(numbers, warp)
        self.write(i.dst[0], lanes, full, total[back], None if nodes is None else nodes[back])

    # matrix products: D = A B + C over a warp, fragments as in the PTX manual
    def _do_mma(self, i: Instruction, lanes: Lanes, full: bool) -> None:
        depth, kind = {"m16n8k16": 16, "m16n8k8": 8}.get(i.mods[0], 0), i.mods[1]
        if len(lanes) % WARP or (self._warp(lanes).reshape(-1, WARP) != self._warp(lanes)[::WARP, None]).any():
            raise DataDependent("a matrix product by part of a warp", key=f"{self.kernel.name} at {i.where}")
        half = kind in ("f16", "bf16")
        a_regs, b_regs = (4, 2) if depth == (16 if half else 8) else (2, 1)
        known = (half and depth) or (kind == "tf32" and depth == 8)
        if not known or i.type != "f32" or len(i.dst) != 4 or len(i.src) != a_regs + b_regs + 4:
            raise Unsupported("a matrix product of this type", key=f"{self.kernel.name} at {i.where}", value=(i.type, *i.mods))
        count = len(lanes) // WARP
        a, b, c = i.src[:a_regs], i.src[a_regs : a_regs + b_regs], i.src[a_regs + b_regs :]
        group, member = np.arange(WARP) // 4, np.arange(WARP) % 4
        pieces = [self._fragment(s, lanes, full, half) for s in (*a, *b)]
        left, right = _Matrix(count, 16, depth), _Matrix(count, depth, 8)
        for r in range(a_regs):
            rows = group + 8 * (r % 2)
            for h in range(2 if half else 1):
                columns = member * 2 + h + 8 * (r // 2) if half else member + 4 * (r // 2)
                left.put(rows, columns, pieces[r][h])
        for r in range(b_regs):
            for h in range(2 if half else 1):
                rows = member * 2 + h + 8 * r if half else member + 4 * r
                right.put(rows, group, pieces[a_regs + r][h])
        self._products(i, lanes, full, c, left, right, depth, kind, group, member)

    def _products(
        self,
        i: Instruction,
        lanes: Lanes,
        full: bool,
        c: Sequence[Operand],
        left: _Matrix,
        right: _Matrix,
        depth: int,
        kind: str,
        group: Any,
        member: Any,
    ) -> None:
        results = []
        for r, source in enumerate(c):
            rows, columns = group + 8 * (r // 2), member * 2 + r % 2
            bits, marks = self.read(source, lanes, full, 32)
            total = cut(bits, 32).view(np.float32).astype(np.float64)
            for k in range(depth):
                x, y = left.at(rows, k), right.at(np.full(WARP, k), columns)
                total = total + scalar.to_float(x[0], kind if kind != "tf32" else "f32").astype(np.float64) * scalar.to_float(
                    y[0], kind if kind != "tf32" else "f32"
                )
                if self.nodes is not None:
                    marks = self._fused(marks, bits, x, y, kind)
            results.append((total.astype(np.float32).view(np.uint32), marks))
        for name, (value, marks) in zip(i.dst, results, strict=True):
            self.write(name, lanes, full, value, marks)

    def _fused(self, marks: Ids | None, bits: NDArray[Any], x: Any, y: Any, kind: str) -> Ids:
        assert self.nodes is not None
        width = "b16" if kind in ("f16", "bf16") else "b32"
        factors = [self._as_nodes(m, b, width) for b, m in (x, y)]
        if width == "b16":
            factors = [self.nodes.add("cvt", "f32", (kind,), [f]) for f in factors]
        return self.nodes.add("fma", "f32", ("rn",), [*factors, self._as_nodes(marks, bits, "b32")])

    def _fragment(self, source: Operand, lanes: Lanes, full: bool, half: bool) -> list[tuple[NDArray[Any], Ids]]:
        """Return the elements that a register of a fragment holds: bits and nodes, by warp and lane."""
        bits, marks = self.read(source, lanes, full, 32)
        bits = cut(bits, 32)
        marks = np.full(len(lanes), NONE) if marks is None else marks
        if not half:
            return [(bits.reshape(-1, WARP), marks.reshape(-1, WARP))]
        found = []
        for high in (False, True):
            part = cut(bits >> np.uint32(16) if high else bits & np.uint32(0xFFFF), 16)
            nodes = marks.copy()
            some = marks != NONE
            if some.any():
                assert self.nodes is not None
                nodes[some] = self.nodes.half(marks[some], high, "b32")
            found.append((part.reshape(-1, WARP), nodes.reshape(-1, WARP)))
        return found


class _Matrix:
    """One matrix a warp: bits and nodes."""

    def __init__(self, count: int, rows: int, columns: int) -> None:
        self.bits = np.zeros((count, rows, columns), UNSIGNED[32])
        self.nodes = np.full((count, rows, columns), NONE)

    def put(self, rows: Any, columns: Any, piece: tuple[NDArray[Any], Ids]) -> None:
        """Set the elements that the 32 lanes hold."""
        self.bits[:, rows, columns], self.nodes[:, rows, columns] = piece

    def at(self, rows: Any, columns: Any) -> tuple[NDArray[Any], Ids]:
        """Return elements for the 32 lanes of all warps, flat."""
        return self.bits[:, rows, columns].reshape(-1), self.nodes[:, rows, columns].reshape(-1)
