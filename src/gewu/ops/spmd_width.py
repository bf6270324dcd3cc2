"""How many threads a vector holds.

32, a warp, where rows of the block are that long; 16 or 8 where they are shorter.  Where a block strides over an array, narrow
vectors leave the memory in an order that no processor foresees (each vector takes its part of every stride before the next one
begins), so a small kernel takes the 64 or 128 threads that lie beside each other at once.
"""

from __future__ import annotations

from typing import Final

from gewu.ops import ir, spmd_warp
from gewu.ops.shape import VARYING, Layout, Shapes, analyse
from gewu.ops.spmd_flow import Flow

_LARGE: Final = 1500
_SMALL: Final = 200
"""Instructions up to which a kernel's values are few enough for vectors of several warps."""
_GLOBAL: Final = ("global", "generic")


def base_lanes(kernel: ir.Kernel, block: tuple[int, int, int]) -> int:
    """Return how many threads a vector of this kernel holds, a warp at most."""
    ops = {i.op for b in kernel.blocks for i in b.code}
    if ops & spmd_warp.OPS:
        return 32
    x, length = block[0], sum(len(b.code) for b in kernel.blocks)
    if block[1] * block[2] == 1 or x % 32 == 0:
        return 16 if length > _LARGE or x <= 16 else 32
    if x % 16 == 0 or x < 8 or x % 8:
        return 16
    return 8


def analyse_widest(kernel: ir.Kernel, flow: Flow, block: tuple[int, int, int], bounded: bool) -> Shapes:
    """Return the shapes of a flow for the widest vectors that suit it.

    Several warps are one vector where that neither scatters an access to global memory nor parts threads that keep together in
    a warp.
    """
    lanes = base_lanes(kernel, block)
    shapes = analyse(flow, Layout(lanes, block, bounded))
    if lanes != 32 or kernel.local or not _streams(flow):
        return shapes
    atomic = any(op.op == "atom" for node in flow.nodes for op in node.code)
    for wider in (64,) if atomic else (128, 64):
        layout = Layout(wider, block, bounded)
        if layout.threads % wider == 0 and layout.rows:
            wide = analyse(flow, layout)
            if len(wide.divergent) <= len(shapes.divergent) and _scattered(wide) <= _scattered(shapes):
                return wide
    return shapes


def _streams(flow: Flow) -> bool:
    """Tell whether a kernel is small, has single accesses to global memory in a loop, and nothing that asks for narrow vectors.

    Atomic operations whose old value is used may be locks, for which threads of other warps must be able to run meanwhile.
    Shuffles and barriers in a loop mean that it works on what lies in registers and shared memory more than it streams.
    """
    used = {o for node in flow.nodes for op in node.code for o in op.operands()}
    used |= {o for node in flow.nodes for sources in node.phis.values() for o in sources.values()}
    found = False
    for number, node in enumerate(flow.nodes):
        looped = bool(flow.inside[number])
        if node.stop and looped:
            return False
        for op in node.code:
            if op.op in spmd_warp.OPS and (looped or op.op != "shfl"):
                return False
            if op.op == "atom" and any(d in used for d in op.dst):
                return False
            if op.op in ("ld", "st") and op.mods[0] in _GLOBAL:
                if max(len(op.dst), len(op.src) - 2) > 1:
                    return False
                found |= looped
    return found and sum(len(node.code) for node in flow.nodes) <= _SMALL


def _scattered(shapes: Shapes) -> int:
    """Return how many accesses to global memory are neither uniform nor strided."""
    return sum(
        (shapes.at(op.src[0], number) or VARYING).stride is None
        for number, node in enumerate(shapes.flow.nodes)
        for op in node.code
        if op.op in ("ld", "st", "atom") and op.mods[0] in _GLOBAL
    )
