"""Control flow of a kernel as the interpreter wants it: a barrier ends a block; where the two ways of a branch meet again."""

from __future__ import annotations

from gewu.ops.ir import Instruction, Kernel


class Flow:
    """Blocks cut after barriers, and immediate post-dominators.

    Attributes:
        blocks: instructions and following blocks.
    """

    def __init__(self, kernel: Kernel) -> None:
        first: list[int] = []
        pieces: list[list[list[Instruction]]] = []
        count = 0
        for block in kernel.blocks:
            parts: list[list[Instruction]] = [[]]
            for instruction in block.code:
                parts[-1].append(instruction)
                if instruction.op == "bar":
                    parts.append([])
            first.append(count)
            pieces.append(parts)
            count += len(parts)
        self.blocks: list[tuple[list[Instruction], tuple[int, ...]]] = []
        for number, parts in enumerate(pieces):
            for place, part in enumerate(parts):
                inner = place < len(parts) - 1
                after = (first[number] + place + 1,) if inner else tuple(first[t] for t in kernel.blocks[number].next)
                self.blocks.append((part, after))
        self._joins: dict[int, int | None] | None = None

    def join(self, number: int) -> int | None:
        """Return the block at which all ways from a block meet first; None when that is the end."""
        if self._joins is None:
            self._joins = self._post_dominators()
        return self._joins[number]

    def _post_dominators(self) -> dict[int, int | None]:
        end = len(self.blocks)
        after = {n: self._after(n) for n in range(end)}
        full = frozenset(range(end + 1))
        sets: dict[int, frozenset[int]] = {n: full for n in range(end)}
        sets[end] = frozenset({end})
        changed = True
        while changed:
            changed = False
            for n in reversed(range(end)):
                new = frozenset.intersection(*(sets[t] for t in after[n])) | {n}
                if new != sets[n]:
                    sets[n], changed = new, True
        found: dict[int, int | None] = {}
        for n in range(end):
            rest = sets[n] - {n}
            nearest = max(rest, key=lambda t: len(sets[t]), default=end)
            found[n] = None if nearest == end else nearest
        return found

    def _after(self, number: int) -> tuple[int, ...]:
        code, following = self.blocks[number]
        end = len(self.blocks)
        last = code[-1] if code else None
        if last is not None and last.op == "exit" and last.guard is not None:
            return (*following, end)
        return following or (end,)
