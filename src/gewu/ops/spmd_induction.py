"""Counters of loops that threads enter with different values, as what each thread brought plus one number for all.

    i = phi(start, i + step)   ->   n = phi(0, n + step),  i = start + n        where start varies and step does not

Threads of a warp go through a loop step by step together, so `n` is uniform.  What is left varying does not change in the loop:
whether the addresses that follow from it lie side by side is asked once, before the loop, instead of at every access.
"""

from __future__ import annotations

from gewu.ops import ir
from gewu.ops.shape import VARYING, Shapes
from gewu.ops.spmd_flow import Op

_WIDTHS = ("b32", "b64")


def split_counters(shapes: Shapes) -> bool:
    """Rewrite such counters in the flow of `shapes`, which no longer holds then; tell whether there were any."""
    flow, found = shapes.flow, False
    makers = {d: (number, op) for number, node in enumerate(flow.nodes) for op in node.code for d in op.dst}
    for head in flow.loops:
        node = flow.nodes[head]
        outer = [p for p in flow.preds[head] if p < head]
        inner = [p for p in flow.preds[head] if p >= head]
        if len(outer) != 1 or len(inner) != 1 or head in flow.irreducible:
            continue
        for name in [n for n in node.phis if flow.widths[n] in _WIDTHS]:
            start, last = node.phis[name][outer[0]], node.phis[name][inner[0]]
            place, add = makers.get(last, (0, None)) if isinstance(last, str) else (0, None)
            varies = (shapes.at(start, head) or VARYING).stride is None and (shapes.at(start, outer[0]) or VARYING).stride is None
            if add is None or not varies or not _steps(shapes, add, name, head):
                continue
            step = next(s for s in add.src if s != name)
            moved, after = (f"{name}.{kind}" for kind in ("moved", "after"))
            for new, home in ((moved, head), (after, place)):
                flow.widths[new], flow.home[new] = flow.widths[name], home
            del node.phis[name]
            node.phis[moved] = {outer[0]: 0, inner[0]: after}
            node.code.insert(0, Op("add", add.type, (name,), (start, moved), where=add.where))
            code = flow.nodes[place].code
            code.insert(code.index(add) + 1, Op("add", add.type, (after,), (moved, step), where=add.where))
            found = True
    return found


def _steps(shapes: Shapes, op: Op, name: str, head: int) -> bool:
    """Tell whether an operation adds to a counter what is the same for all threads and for the whole loop."""
    if op.op != "add" or op.guard or op.type in ir.FLOATS or ir.WIDTH[op.type] != ir.WIDTH[shapes.flow.widths[name]]:
        return False
    others = [s for s in op.src if s != name]
    if len(others) != 1:
        return False
    step = others[0]
    if isinstance(step, int):
        return True
    outside = head not in shapes.flow.inside[shapes.flow.home[step]]
    return outside and (shapes.at(step, head) or VARYING).stride == 0
