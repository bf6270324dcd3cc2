"""Static single assignment: every value has one definition, blocks choose between values by phis. Into the form and out of it.

Guarded instructions become unguarded ones and a `select` with the value that the register had before; loads, atomics and others
that act keep their guard and write a value of their own.  A read of a register that was never written gives 0.  The way out
merges values that belong to one phi where they are never alive together and copies where they are.

References: Cytron et al., TOPLAS 13 (1991) 451; Cooper, Harvey and Kennedy, "A simple, fast dominance algorithm" (2001).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gewu.ops.ir import PURE, Block, Instruction, Kernel, Operand

SPECULATED = PURE - {"div", "rem"}
"""Operations that may run in threads whose guard is off: they neither trap nor touch memory."""
_PREFIX = {"pred": "p", "b16": "h", "b32": "r", "b64": "d"}
_TEMPORARY = re.compile(r"t\d+$")


@dataclass(slots=True)
class Phi:
    """A value chosen by the block that control comes from; an edge without an entry brings nothing defined."""

    name: str
    args: dict[int, Operand] = field(default_factory=dict)


@dataclass(slots=True)
class Graph:
    """A kernel in SSA form; block 0 is the entry and has no predecessors.

    `code` holds instructions, `next` successors, `phis` the phis of each block; `widths` of every value.
    """

    code: list[list[Instruction]]
    next: list[tuple[int, ...]]
    phis: list[list[Phi]]
    widths: dict[str, str]
    count: int = 0

    def fresh(self, width: str) -> str:
        """Return a new value of a width."""
        self.count += 1
        name = f"{_PREFIX[width]}{self.count}"
        self.widths[name] = width
        return name

    def predecessors(self) -> list[list[int]]:
        """Return the blocks that lead to each block."""
        found: list[list[int]] = [[] for _ in self.code]
        for number, targets in enumerate(self.next):
            for target in targets:
                found[target].append(number)
        return found


def order(successors: list[tuple[int, ...]]) -> list[int]:
    """Return the blocks that are reached, each before its successors but for loops."""
    seen, found, stack = {0}, [], [(0, 0)]
    while stack:
        block, place = stack.pop()
        if place < len(successors[block]):
            stack.append((block, place + 1))
            target = successors[block][place]
            if target not in seen:
                seen.add(target)
                stack.append((target, 0))
        else:
            found.append(block)
    return found[::-1]


def dominators(successors: list[tuple[int, ...]], sequence: list[int]) -> dict[int, int]:
    """Return the immediate dominator of every block that is reached (the entry's is itself)."""
    rank = {block: place for place, block in enumerate(sequence)}
    before: dict[int, list[int]] = {block: [] for block in sequence}
    for block in sequence:
        for target in successors[block]:
            before[target].append(block)
    found = {sequence[0]: sequence[0]}
    changed = True
    while changed:
        changed = False
        for block in sequence[1:]:
            known = [p for p in before[block] if p in found]
            new = known[0]
            for other in known[1:]:
                a, b = new, other
                while a != b:
                    while rank[a] > rank[b]:
                        a = found[a]
                    while rank[b] > rank[a]:
                        b = found[b]
                new = a
            if found.get(block) != new:
                found[block], changed = new, True
    return found


def children(parents: dict[int, int], sequence: list[int]) -> dict[int, list[int]]:
    """Return the blocks that each block dominates immediately."""
    found: dict[int, list[int]] = {block: [] for block in sequence}
    for block in sequence[1:]:
        found[parents[block]].append(block)
    return found


def compact(kernel: Kernel) -> tuple[list[list[Instruction]], list[tuple[int, ...]]]:
    """Return code and successors of the blocks that are reached, straight runs merged, an entry without predecessors."""
    code = [[i for i in block.code if i.op != "nop"] for block in kernel.blocks]
    successors = [tuple(dict.fromkeys(block.next)) for block in kernel.blocks]
    for number, targets in enumerate(successors):
        if len(targets) == 1 and code[number] and code[number][-1].op == "bra":
            code[number].pop()
    return merged([[], *code], [(1,), *(tuple(t + 1 for t in targets) for targets in successors)])


def merged(
    code: list[list[Instruction]], successors: list[tuple[int, ...]]
) -> tuple[list[list[Instruction]], list[tuple[int, ...]]]:
    """Join blocks to their only successor when they are its only predecessor, and number what is reached anew."""
    counts = [0] * len(code)
    reached = order(successors)
    for block in reached:
        for target in successors[block]:
            counts[target] += 1
    gone: set[int] = set()
    for block in reached:
        if block in gone:
            continue
        while len(successors[block]) == 1 and not (code[block] and code[block][-1].op in ("exit", "bra", "trap")):
            target = successors[block][0]
            if counts[target] != 1 or target == block or target == 0:
                break
            code[block] = code[block] + code[target]
            successors[block], successors[target] = successors[target], ()
            gone.add(target)
    reached = [block for block in order(successors) if block not in gone]
    number = {block: place for place, block in enumerate(reached)}
    return [code[b] for b in reached], [tuple(number[t] for t in successors[b]) for b in reached]


def to_ssa(kernel: Kernel) -> Graph:
    """Return a kernel in SSA form."""
    code, successors = compact(kernel)
    if any(0 in targets for targets in successors):
        code, successors = [[], *code], [(1,), *(tuple(t + 1 for t in targets) for targets in successors)]
    graph = Graph(code, successors, [[] for _ in code], {})
    _Builder(graph, kernel).run()
    return graph


class _Builder:
    """Place phis where several definitions meet and rename."""

    def __init__(self, graph: Graph, kernel: Kernel) -> None:
        self.graph, self.widths = graph, kernel.widths
        self.loose = _TEMPORARY.match if kernel.source.startswith("sass") else (lambda name: None)
        self.sequence = order(graph.next)
        self.parents = dominators(graph.next, self.sequence)

    def run(self) -> None:
        graph = self.graph
        owner: dict[str, str] = {}
        live = _live_in(graph.code, graph.next, self._touches)
        for block, names in self._phi_places(live).items():
            for name in sorted(names):
                phi = Phi(graph.fresh(self.widths[name]))
                owner[phi.name] = name
                graph.phis[block].append(phi)
        self.owner = owner
        self._rename()

    def _touches(self, instruction: Instruction) -> tuple[list[str], list[str]]:
        """Return the names that an instruction reads and those it writes."""
        reads = [s for s in instruction.src if isinstance(s, str)]
        if instruction.guard:
            reads.append(instruction.guard[0])
            reads += [d for d in instruction.dst if not self.loose(d)]
        return reads, list(instruction.dst)

    def _phi_places(self, live: list[set[str]]) -> dict[int, set[str]]:
        frontier = _frontiers(self.graph.next, self.sequence, self.parents)
        defined: dict[str, set[int]] = {}
        for block in self.sequence:
            for instruction in self.graph.code[block]:
                for name in instruction.dst:
                    defined.setdefault(name, set()).add(block)
        places: dict[int, set[str]] = {}
        for name, blocks in defined.items():
            waiting = list(blocks)
            seen: set[int] = set()
            while waiting:
                for target in frontier[waiting.pop()]:
                    if target not in seen and name in live[target]:
                        seen.add(target)
                        places.setdefault(target, set()).add(name)
                        waiting.append(target)
        return places

    def _rename(self) -> None:
        tree = children(self.parents, self.sequence)
        stack: list[tuple[int, dict[str, Operand]]] = [(0, {})]
        while stack:
            block, inherited = stack.pop()
            current = dict(inherited)
            for phi in self.graph.phis[block]:
                current[self.owner[phi.name]] = phi.name
            self.graph.code[block] = [new for old in self.graph.code[block] for new in self._renamed(old, current)]
            for target in self.graph.next[block]:
                for phi in self.graph.phis[target]:
                    if (value := current.get(self.owner[phi.name])) is not None:
                        phi.args[block] = value
            stack += [(child, current) for child in tree[block]]

    def _renamed(self, old: Instruction, current: dict[str, Operand]) -> list[Instruction]:
        src = tuple(current.get(s, 0) if isinstance(s, str) else s for s in old.src)
        guard = None
        if old.guard:
            value = current.get(old.guard[0], 0)
            if isinstance(value, str):
                guard = (value, old.guard[1])
            elif old.op == "bra":
                return [Instruction("bra", old.type, src=(int(bool(value) == old.guard[1]),), where=old.where)]
            elif bool(value) != old.guard[1]:
                return []
        if not old.dst:
            return [Instruction(old.op, old.type, (), src, old.mods, guard, old.where)]
        if guard is None and old.op == "mov" and self._copies(old):
            current[old.dst[0]] = src[0]
            return []
        names = tuple(self.graph.fresh(self.widths[d]) for d in old.dst)
        speculated = guard is not None and old.op in SPECULATED
        code = [Instruction(old.op, old.type, names, src, old.mods, None if speculated else guard, old.where)]
        if speculated and old.op == "mov" and self._copies(old):
            code = []
        for name, destination in zip(names, old.dst, strict=True):
            value: Operand = src[0] if not code else name
            before = current.get(destination)
            if guard is not None and before is not None:
                chosen = self.graph.fresh(self.widths[destination])
                arms = (value, before) if guard[1] else (before, value)
                code.append(Instruction("select", self.widths[destination], (chosen,), (*arms, guard[0]), where=old.where))
                value = chosen
            current[destination] = value
        return code

    def _copies(self, move: Instruction) -> bool:
        source, width = move.src[0], self.widths[move.dst[0]]
        return width == ("pred" if move.type == "pred" else f"b{move.type[1:]}") and (
            isinstance(source, int) or self.widths[source] == width
        )


def _frontiers(successors: list[tuple[int, ...]], sequence: list[int], parents: dict[int, int]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {block: set() for block in sequence}
    before: dict[int, list[int]] = {block: [] for block in sequence}
    for block in sequence:
        for target in successors[block]:
            before[target].append(block)
    for block in sequence:
        if len(before[block]) > 1:
            for runner in before[block]:
                while runner != parents[block]:
                    found[runner].add(block)
                    runner = parents[runner]
    return found


def _live_in(code: list[list[Instruction]], successors: list[tuple[int, ...]], touches) -> list[set[str]]:  # type: ignore[no-untyped-def]
    """Return the names alive at the start of each block."""
    uses: list[set[str]] = []
    kills: list[set[str]] = []
    for block in code:
        used: set[str] = set()
        killed: set[str] = set()
        for instruction in block:
            reads, writes = touches(instruction)
            used.update(name for name in reads if name not in killed)
            killed.update(writes)
        uses.append(used)
        kills.append(killed)
    live = [set(used) for used in uses]
    changed = True
    backwards = order(successors)[::-1]
    while changed:
        changed = False
        for block in backwards:
            out: set[str] = set()
            for target in successors[block]:
                out |= live[target]
            new = uses[block] | (out - kills[block])
            if len(new) != len(live[block]):
                live[block], changed = new, True
    return live


def from_ssa(graph: Graph, kernel: Kernel) -> Kernel:
    """Return a kernel out of SSA form, with one name for all values of a phi where they allow it."""
    _split_edges(graph)
    classes = _Classes(graph)
    classes.join()
    for block, targets in enumerate(graph.next):
        copies = [(phi.name, phi.args[block]) for target in targets for phi in graph.phis[target] if block in phi.args]
        moves = _parallel([(classes.root(d), classes.of(s)) for d, s in copies], graph)
        code = graph.code[block]
        last = [code.pop()] if code and code[-1].op in ("bra", "exit", "trap") else []
        code[:] = [classes.renamed(i) for i in code] + moves + [classes.renamed(i) for i in last]
    code, successors = merged(graph.code, _threaded(graph.code, graph.next))
    blocks = [Block(c, s) for c, s in zip(code, successors, strict=True)]
    names = {
        n for b in blocks for i in b.code for n in (*i.dst, *i.src, *((i.guard[0],) if i.guard else ())) if isinstance(n, str)
    }
    result = Kernel(
        kernel.name, kernel.parameters, blocks, {n: graph.widths[n] for n in sorted(names)}, kernel.shared, kernel.local
    )
    result.data, result.source, result.limit, result.required = kernel.data, kernel.source, kernel.limit, kernel.required
    return result


def _threaded(code: list[list[Instruction]], successors: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return successors that skip empty blocks; a jump whose two ways meet goes."""

    def end(block: int) -> int:
        seen: set[int] = set()
        while not code[block] and len(successors[block]) == 1 and block not in seen:
            seen.add(block)
            block = successors[block][0]
        return block

    found = []
    for block, targets in enumerate(successors):
        ends = tuple(dict.fromkeys(map(end, targets)))
        if len(ends) == 1 and code[block] and code[block][-1].op == "bra":
            code[block].pop()
        found.append(ends)
    return found


def _split_edges(graph: Graph) -> None:
    """Put an empty block on edges from a guarded jump or exit to a block with phis."""
    for block in range(len(graph.next)):
        if not (graph.code[block] and graph.code[block][-1].op in ("bra", "exit")):
            continue
        for place, target in enumerate(graph.next[block]):
            if graph.phis[target]:
                number = len(graph.code)
                graph.code.append([])
                graph.phis.append([])
                graph.next.append((target,))
                graph.next[block] = (*graph.next[block][:place], number, *graph.next[block][place + 1 :])
                for phi in graph.phis[target]:
                    if block in phi.args:
                        phi.args[number] = phi.args.pop(block)


class _Classes:
    """Values that share a name: those tied by phis and never alive together."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.parent: dict[str, str] = {}
        tied = {
            n for phis in graph.phis for phi in phis for n in (phi.name, *(a for a in phi.args.values() if isinstance(a, str)))
        }
        self.members = {name: {name} for name in tied}
        self.clashes: dict[str, set[str]] = {name: set() for name in tied}

    def root(self, name: str) -> str:
        while name in self.parent:
            name = self.parent[name]
        return name

    def of(self, operand: Operand) -> Operand:
        return self.root(operand) if isinstance(operand, str) else operand

    def renamed(self, old: Instruction) -> Instruction:
        guard = (self.root(old.guard[0]), old.guard[1]) if old.guard else None
        return Instruction(
            old.op, old.type, tuple(map(self.root, old.dst)), tuple(map(self.of, old.src)), old.mods, guard, old.where
        )

    def join(self) -> None:
        self._find_clashes()
        for phis in self.graph.phis:
            for phi in phis:
                for value in phi.args.values():
                    if isinstance(value, str):
                        self._try(phi.name, value)

    def _try(self, a: str, b: str) -> None:
        a, b = self.root(a), self.root(b)
        if a == b or self.clashes[a] & self.members[b] or self.graph.widths[a] != self.graph.widths[b]:
            return
        self.parent[b] = a
        self.members[a] |= self.members.pop(b)
        self.clashes[a] |= self.clashes.pop(b)

    def _find_clashes(self) -> None:
        """Two values clash when one is alive where the other is defined."""
        graph, tied = self.graph, self.members
        live_in, live_out = self._liveness()
        for block, code in enumerate(graph.code):
            alive = {name for name in live_out[block] if name in tied}
            for instruction in reversed(code):
                self._defined([d for d in instruction.dst if d in tied], alive)
                reads = [s for s in instruction.src if isinstance(s, str)] + ([instruction.guard[0]] if instruction.guard else [])
                alive.update(name for name in reads if name in tied)
            names = [phi.name for phi in graph.phis[block]]
            self._defined(names, alive | (live_in[block] & tied.keys()))

    def _defined(self, names: list[str], alive: set[str]) -> None:
        for name in names:
            others = (alive | set(names)) - {name}
            self.clashes[name] |= others
            for other in others:
                self.clashes[other].add(name)
        alive.difference_update(names)

    def _liveness(self) -> tuple[list[set[str]], list[set[str]]]:
        """Return what is alive behind the phis at the start, and at the end with what feeds phis, of each block."""
        graph = self.graph
        uses, kills = [], []
        for block, code in enumerate(graph.code):
            used: set[str] = set()
            killed = {phi.name for phi in graph.phis[block]}
            for i in code:
                used.update(s for s in i.src if isinstance(s, str) and s not in killed)
                if i.guard and i.guard[0] not in killed:
                    used.add(i.guard[0])
                killed.update(i.dst)
            uses.append(used)
            kills.append(killed)
        feeds: list[set[str]] = [set() for _ in graph.code]
        for block, targets in enumerate(graph.next):
            for target in targets:
                feeds[block].update(a for phi in graph.phis[target] if isinstance(a := phi.args.get(block), str))
        live_in = [set(u) for u in uses]
        live_out = [set(f) for f in feeds]
        backwards, changed = order(graph.next)[::-1], True
        while changed:
            changed = False
            for block in backwards:
                out = set(feeds[block])
                for target in graph.next[block]:
                    out |= live_in[target]
                new = uses[block] | (out - kills[block])
                if len(out) != len(live_out[block]) or len(new) != len(live_in[block]):
                    live_in[block], live_out[block], changed = new, out, True
        return live_in, live_out


def _parallel(copies: list[tuple[str, Operand]], graph: Graph) -> list[Instruction]:
    """Return moves in an order that gives the effect of all copies at once."""
    waiting = {d: s for d, s in copies if d != s}
    done: list[Instruction] = []
    while waiting:
        free = [d for d in waiting if d not in waiting.values()]
        if free:
            for destination in free:
                done.append(_move(destination, waiting.pop(destination), graph))
            continue
        destination = next(iter(waiting))
        spare = graph.fresh(graph.widths[destination])
        done.append(_move(spare, destination, graph))
        waiting = {d: spare if s == destination else s for d, s in waiting.items()}
    return done


def _move(destination: str, source: Operand, graph: Graph) -> Instruction:
    return Instruction("mov", graph.widths[destination], (destination,), (source,))
