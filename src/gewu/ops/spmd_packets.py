"""Neighbouring loads or stores of each thread as one: threads that are 2 or 4 elements apart then move whole packets."""

from __future__ import annotations

from gewu.ops import ir
from gewu.ops.shape import Shapes
from gewu.ops.spmd_flow import Flow, Op

_ORDERED = frozenset({"ld", "st", "atom", "shfl", "vote", "match", "redux", "activemask", "mma", "bar", "trap"})


def join_packets(flow: Flow, shapes: Shapes) -> None:
    """Join accesses of one address register at consecutive offsets whose lanes lie just as far apart."""
    for number, node in enumerate(flow.nodes):
        for what in ("ld", "st"):
            node.code = _joined(node.code, shapes, number, what)


def _joined(code: list[Op], shapes: Shapes, number: int, what: str) -> list[Op]:
    """Join loads at the place of the first, stores at the place of the last; nothing that touches memory lies in between."""
    result: list[Op] = []
    group: list[Op] = []

    def close() -> None:
        nonlocal result
        for count in (4, 2):
            for chosen in _runs(group, shapes, number, count):
                whole = _whole(chosen, what)
                anchor = min(result.index(op) for op in chosen) if what == "ld" else max(result.index(op) for op in chosen)
                result[anchor] = whole
                gone = {id(op) for op in chosen}
                result = [op for op in result if id(op) not in gone]
                group[:] = [op for op in group if id(op) not in gone]
        group.clear()

    for op in code:
        if what == "st" and op.op == what and group and (op.src[0], op.type) != (group[-1].src[0], group[-1].type):
            close()
        if op.op == what and not op.guard and op.mods[0] in ("global", "shared") and ir.WIDTH[op.type] >= 32:
            group.append(op)
        elif op.op in _ORDERED:
            close()
        result.append(op)
    close()
    return result


def _runs(group: list[Op], shapes: Shapes, number: int, count: int) -> list[list[Op]]:
    """Return sets of `count` single accesses, in order of offset, that make packets."""
    found = []
    by: dict[tuple[ir.Operand, str, tuple[str, ...]], dict[int, Op]] = {}
    for op in group:
        single = len(op.dst) == 1 if op.op == "ld" else len(op.src) == 3
        shape = shapes.at(op.src[0], number)
        size = ir.WIDTH[op.type] // 8
        if single and shape is not None and shape.stride == size * count and isinstance(op.src[1], int):
            by.setdefault((op.src[0], op.type, op.mods), {})[op.src[1]] = op
    for (_, kind, _), places in by.items():
        size = ir.WIDTH[kind] // 8
        for start in sorted(places):
            run = [places.get(start + i * size) for i in range(count)]
            if all(op is not None for op in run):
                found.append([op for op in run if op is not None])
                for i in range(count):
                    del places[start + i * size]
                break
    return found


def _whole(chosen: list[Op], what: str) -> Op:
    first = chosen[0]
    if what == "ld":
        dst = tuple(d for op in chosen for d in op.dst)
        return Op("ld", first.type, dst, first.src, first.mods, where=first.where)
    values = tuple(op.src[2] for op in chosen)
    return Op("st", first.type, (), (*first.src[:2], *values), first.mods, where=first.where)
