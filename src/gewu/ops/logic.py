"""Functions of three bits by their table of eight entries, spelled with few `and`, `or`, `xor`, `not`: LOP3 and PLOP3.

Entry 4 a + 2 b + c of the table is the result for the bits a, b, c, so a itself is 0xF0, b 0xCC and c 0xAA.  The shortest
spelling of each of the 256 functions is found once by building them up from the three inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

from gewu.ops.ir import Operand

_INPUTS: Final = (0xF0, 0xCC, 0xAA)
Spelling = tuple[str, int, int]


@cache
def spellings() -> dict[int, Spelling | int]:
    """Return how to make each table but 0 and 255: the number of an input, or an operation and the tables that it joins."""
    found: dict[int, Spelling | int] = {table: number for number, table in enumerate(_INPUTS)}
    cost = dict.fromkeys((*_INPUTS, 0, 255), 0)
    level = 0
    while len(cost) < 256:
        level += 1
        fresh: dict[int, Spelling] = {}
        known = list(cost)
        for a in known:
            if cost[a] == level - 1 and ~a & 255 not in cost:
                fresh.setdefault(~a & 255, ("not", a, a))
        for a in known:
            for b in known:
                if a < b and cost[a] + cost[b] == level - 1:
                    for op, table in (("and", a & b), ("or", a | b), ("xor", a ^ b)):
                        if table not in cost:
                            fresh.setdefault(table, (op, a, b))
        found.update(fresh)
        cost.update(dict.fromkeys(fresh, level))
    return found


def lop3(lut: int, a: Operand, b: Operand, c: Operand, emit: Callable[..., Operand], ones: int = 0xFFFFFFFF) -> Operand:
    """Apply a table to three words (or predicates, with `ones` 1) and return the result.

    Args:
        lut: the table, 0 to 255.
        a, b, c: registers or immediates.
        emit: `emit(op, x)` and `emit(op, x, y)` write one operation and return the register that holds its result.
        ones: the word of all ones.
    """
    sources = (a, b, c)
    for number, source in enumerate(sources):
        if isinstance(source, int) and source in (0, ones):
            weight = 4 >> number
            lut = sum((lut >> (entry & ~weight | (weight if source else 0)) & 1) << entry for entry in range(8))
    made: dict[int, Operand] = {0: 0, 255: ones}

    def write(table: int) -> Operand:
        if table not in made:
            spelling = spellings()[table]
            if isinstance(spelling, int):
                made[table] = sources[spelling]
            else:
                op, x, y = spelling
                made[table] = emit(op, write(x)) if op == "not" else emit(op, write(x), write(y))
        return made[table]

    return write(lut)
