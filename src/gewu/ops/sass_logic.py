"""Functions of three bits by their table of eight entries, spelled with few `and`, `or`, `xor`, `not`: LOP3 and PLOP3.

Entry 4 a + 2 b + c of the table is the result for the bits a, b, c.  The shortest spelling of each of the 256 functions is found
once by building them up from the three inputs.
"""

from __future__ import annotations

from functools import cache

from gewu.ops.ir import Operand
from gewu.ops.sass_emit import Emitter

_INPUTS = (0xF0, 0xCC, 0xAA)
_Spelling = tuple[str, int, int]


@cache
def spellings() -> dict[int, _Spelling | int]:
    """Return for each table how to make it: the number of an input, or an operation and the tables that it joins."""
    found: dict[int, _Spelling | int] = {table: number for number, table in enumerate(_INPUTS)}
    cost = dict.fromkeys(_INPUTS, 0)
    cost.update({0: 0, 255: 0})
    level = 0
    while len(cost) < 256:
        level += 1
        fresh: dict[int, _Spelling] = {}
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


def _reduced(table: int, sources: tuple[Operand, ...], ones: int) -> int:
    """Return the table with constant inputs (all zeros, all ones) put in."""
    for number, source in enumerate(sources):
        weight = 4 >> number
        if source in (0, ones) and isinstance(source, int):
            bit = weight if source else 0
            table = sum((table >> (entry & ~weight | bit) & 1) << entry for entry in range(8))
    return table


def _write(e: Emitter, table: int, sources: tuple[Operand, ...], type_: str, ones: int) -> Operand:
    if table in (0, 255):
        return ones if table else 0
    spelling = spellings()[table]
    if isinstance(spelling, int):
        return sources[spelling]
    op, a, b = spelling
    left = _write(e, a, sources, type_, ones)
    if op == "not":
        return ones & ~left if isinstance(left, int) else e.op("not", type_, left)
    return e.op(op, type_, left, _write(e, b, sources, type_, ones))


def lookup(e: Emitter, table: int, sources: tuple[Operand, ...]) -> Operand:
    """Apply a table to three words."""
    ones = 0xFFFFFFFF
    return _write(e, _reduced(table, sources, ones), sources, "b32", ones)


def lookup_predicates(e: Emitter, table: int, sources: tuple[Operand, ...]) -> Operand:
    """Apply a table to three predicates."""
    return _write(e, _reduced(table, sources, 1), sources, "pred", 1)
