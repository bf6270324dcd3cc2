"""Control flow of a kernel in the order in which a warp walks it.

Blocks are put in a weak topological order (Bourdoncle 1993): every loop is contiguous, starts with its head and is left or
repeated at its end; a block comes after all blocks that lead to it.  A warp that always runs the first block in this order that
has threads waiting lets threads meet again where their paths join.  Loops with several back edges get one common latch, so that
the threads of a warp go through each loop step by step together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gewu.ops import ir

NO_OLD = ""
"""Stands for a previous value that does not exist."""


@dataclass(slots=True)
class Op:
    """An instruction on values; `old` holds what each destination keeps where the guard does not hold (NO_OLD: nothing)."""

    op: str
    type: str
    dst: tuple[str, ...] = ()
    src: tuple[ir.Operand, ...] = ()
    mods: tuple[str, ...] = ()
    guard: tuple[ir.Operand, bool] | None = None
    where: str = ""
    old: tuple[ir.Operand, ...] = ()

    def operands(self) -> list[ir.Operand]:
        """Return everything that it reads."""
        return [*self.src, *(o for o in self.old if o != NO_OLD), *([self.guard[0]] if self.guard else [])]


@dataclass(slots=True)
class Node:
    """A block in the walk: `phis` maps a value to what it takes from each predecessor; `stop`: ends with a barrier."""

    code: list[Op]
    next: tuple[int, ...]
    stop: bool = False
    phis: dict[str, dict[int, ir.Operand]] = field(default_factory=dict)

    @property
    def last(self) -> Op | None:
        """The closing jump, exit, trap or barrier."""
        return self.code[-1] if self.code and self.code[-1].op in ("bra", "exit", "trap", "bar") else None


@dataclass(slots=True)
class Flow:
    """The walk of one kernel.

    Attributes:
        nodes: blocks in walking order; 0 is the entry.
        preds: predecessors.
        idom: immediate dominator (entry: itself).
        ipdom: immediate post-dominator, -1 where there is none.
        loops: members of each loop by its head.
        inside: heads of the loops around each node.
        irreducible: nodes in loops that can be entered beside the head.
        widths: type of each value.
        home: node that defines each value.
    """

    nodes: list[Node]
    preds: list[list[int]]
    idom: list[int]
    ipdom: list[int]
    loops: dict[int, frozenset[int]]
    inside: list[frozenset[int]]
    irreducible: frozenset[int]
    widths: dict[str, str]
    home: dict[str, int]

    def postdominates(self, later: int, earlier: int) -> bool:
        """Tell whether every way from `earlier` to the end passes `later`."""
        while earlier != -1 and earlier != later:
            earlier = self.ipdom[earlier]
        return earlier == later


def arrange(kernel: ir.Kernel) -> Flow:
    """Order the blocks of a kernel; its registers keep their names.

    Args:
        kernel: a well-formed kernel.

    Raises:
        Unsupported: a barrier with a guard.
    """
    nodes = _split(kernel)
    order, loops, irreducible = _arrange(nodes)
    place = {node: number for number, node in enumerate(order)}
    ordered = [nodes[n] for n in order]
    for node in ordered:
        node.next = tuple(place[n] for n in node.next)
    preds: list[list[int]] = [[] for _ in ordered]
    for number, node in enumerate(ordered):
        for target in node.next:
            preds[target].append(number)
    named = {place[h]: frozenset(place[n] for n in body) for h, body in loops.items()}
    inside = [frozenset(h for h, body in named.items() if n in body) for n in range(len(ordered))]
    idom = _dominators(len(ordered), preds, list(range(len(ordered))))
    ipdom = _postdominators(ordered, preds)
    flow = Flow(ordered, preds, idom, ipdom, named, inside, frozenset(place[n] for n in irreducible), {}, {})
    return flow


def _split(kernel: ir.Kernel) -> list[Node]:
    nodes: list[Node] = [Node([], ()) for _ in kernel.blocks]
    for number, block in enumerate(kernel.blocks):
        node = nodes[number]
        for instruction in block.code:
            if instruction.op == "nop":
                continue
            op = Op(
                instruction.op,
                instruction.type,
                instruction.dst,
                instruction.src,
                instruction.mods,
                instruction.guard,
                instruction.where,
            )
            if op.op == "bra" and len(set(block.next)) < 2:
                continue
            node.code.append(op)
            if op.op == "bar":
                if op.guard:
                    raise ir.Unsupported("barrier with a guard", key=f"{kernel.name} at {op.where}")
                nodes.append(Node([], ()))
                node.next, node.stop = (len(nodes) - 1,), True
                node = nodes[-1]
        node.next = block.next if len(set(block.next)) == len(block.next) else block.next[:1]
        if node.code and node.code[-1].op in ("exit", "trap") and node.code[-1].guard is None:
            node.next = ()
    return nodes


def _arrange(nodes: list[Node]) -> tuple[list[int], dict[int, set[int]], set[int]]:
    """Return the order, the loops by head and the nodes of irreducible loops; adds latches to `nodes`."""
    loops: dict[int, set[int]] = {}
    irreducible: set[int] = set()
    order: list[int] = []
    # Work items: a node to emit, or (members, nodes whose incoming edges count as cut, entry nodes).
    work: list[int | tuple[set[int], int, int]] = [(_reachable(nodes), -1, 0)]
    while work:
        item = work.pop()
        if isinstance(item, int):
            order.append(item)
            continue
        members, cut, start = item
        parts = _components(nodes, members, cut, start)
        pending: list[int | tuple[set[int], int, int]] = []
        for part in parts:
            first = next(iter(part))
            if len(part) == 1 and first not in nodes[first].next:
                pending.append(first)
                continue
            outside = _reachable(nodes) - part
            entries = {t for n in outside for t in nodes[n].next if t in part} | ({0} & part)
            head = min(entries) if start not in part else start
            if len(entries) > 1:
                irreducible |= part
            part = _latch(nodes, part, head, loops, irreducible)
            loops[head] = part
            pending += [head]
            if part - {head}:
                pending.append((part - {head}, head, head))
        work += reversed(pending)
    return order, loops, irreducible


def _latch(nodes: list[Node], part: set[int], head: int, loops: dict[int, set[int]], irreducible: set[int]) -> set[int]:
    """Give a loop with several back edges one node that they all go through."""
    back = [n for n in part if head in nodes[n].next]
    if len(back) < 2:
        return part
    new = len(nodes)
    nodes.append(Node([], (head,)))
    for number in back:
        nodes[number].next = tuple(new if t == head else t for t in nodes[number].next)
    for body in loops.values():
        if head in body:
            body.add(new)
    if head in irreducible:
        irreducible.add(new)
    return part | {new}


def _reachable(nodes: list[Node]) -> set[int]:
    seen, work = {0}, [0]
    while work:
        for target in nodes[work.pop()].next:
            if target not in seen:
                seen.add(target)
                work.append(target)
    return seen


def _components(nodes: list[Node], members: set[int], cut: int, start: int) -> list[set[int]]:
    """Return strongly connected components in topological order (Tarjan, without recursion)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on: set[int] = set()
    found: list[set[int]] = []
    roots = [n for n in nodes[start].next if n in members and n != cut] if start not in members else [start]
    for root in [*reversed(roots), *sorted(members)]:
        if root in index:
            continue
        frames = [(root, iter(nodes[root].next))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on.add(root)
        while frames:
            node, targets = frames[-1]
            for target in targets:
                if target not in members or target == cut:
                    continue
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    on.add(target)
                    frames.append((target, iter(reversed(nodes[target].next))))
                    break
                if target in on:
                    low[node] = min(low[node], index[target])
            else:
                frames.pop()
                if frames:
                    low[frames[-1][0]] = min(low[frames[-1][0]], low[node])
                if low[node] == index[node]:
                    part = set()
                    while not part or node not in part:
                        part.add(stack.pop())
                    on -= part
                    found.append(part)
    return found[::-1]


def _dominators(count: int, preds: list[list[int]], order: list[int]) -> list[int]:
    place = {n: i for i, n in enumerate(order)}
    idom = [-1] * count
    idom[order[0]] = order[0]
    changed = True
    while changed:
        changed = False
        for node in order[1:]:
            new = -1
            for pred in preds[node]:
                if idom[pred] == -1:
                    continue
                if new == -1:
                    new = pred
                    continue
                a, b = new, pred
                while a != b:
                    while place[a] > place[b]:
                        a = idom[a]
                    while place[b] > place[a]:
                        b = idom[b]
                new = a
            if new != idom[node]:
                idom[node] = new
                changed = True
    return idom


def _postdominators(nodes: list[Node], preds: list[list[int]]) -> list[int]:
    """Return immediate post-dominators; -1 for the end itself and for nodes that never reach it."""
    count = len(nodes)
    ends = [n for n in range(count) if not nodes[n].next or (nodes[n].last is not None and nodes[n].last.op in ("exit", "trap"))]
    successors = [(*nodes[n].next, count) if n in set(ends) else nodes[n].next for n in range(count)]
    order, seen, work = [], {count}, [(count, iter(ends))]
    while work:
        node, targets = work[-1]
        for target in targets:
            if target not in seen:
                seen.add(target)
                work.append((target, iter(preds[target])))
                break
        else:
            order.append(node)
            work.pop()
    result = _dominators(count + 1, [*map(list, successors), []], order[::-1])
    return [-1 if r in (count, -1) else r for r in result[:count]]
