"""Clean a kernel: what it computes stays, the noise of machine code goes.

The kernel goes into SSA form (`ssa`), every value is rebuilt with exact identities (`simplify`), loads and loop variables that
are halves of one 64-bit value become that value, selections that only matter under one guard lose their other arm, dead code
goes, and registers get one name for one meaning.  The result computes the same bits as before in every thread; a read of a
register that was never written gives 0, and the two paths of a spelled-out division or square root become the operation that
both compute.
"""

from __future__ import annotations

from typing import Final

from gewu.ops.ir import PURE, Instruction, Kernel, Operand
from gewu.ops.simplify import Values
from gewu.ops.simplify_rules import RULES
from gewu.ops.ssa import Graph, Phi, children, dominators, from_ssa, order, to_ssa

_HALVES: Final = frozenset({"lo", "hi"})
_VALUE: Final = PURE | _HALVES | {"fchk", "param"}
"""Operations that are built anew and shared: their result depends on sources, modifiers and type alone."""
_EFFECT: Final = frozenset({"st", "atom", "bar", "bra", "exit", "trap"})
_SPECIAL_ONCE: Final = frozenset({"tid", "ntid", "ctaid", "nctaid", "laneid"})
MAXIMUM_ROUNDS: Final = 8
Demand = frozenset[tuple[str, bool]] | None
"""Predicates that all have their outcome wherever a value matters; None: it never does."""
ALWAYS: Final[frozenset[tuple[str, bool]]] = frozenset()


def clean(kernel: Kernel) -> Kernel:
    """Return an equal kernel with clean addresses, no dead code and one meaning for each register.

    Example:
        >>> from gewu.ops.ir import Block, Kernel
        >>> clean(Kernel("nothing", (), [Block([], ())], {})).blocks
        [Block(code=[], next=())]
    """
    graph = to_ssa(kernel)
    work = _Cleaner(graph)
    work.rounds(MAXIMUM_ROUNDS)
    work.drop_guarded_arms()
    work.rounds(2)
    work.narrow = True
    work.rounds(3)
    work.finish()
    return from_ssa(graph, kernel)


def natural_width(op: str, type_: str) -> str:
    """Return the width of the result of an operation."""
    if op in ("setp", "fchk") or type_ == "pred":
        return "pred"
    if op in ("popc", "clz", "flo"):
        return "b32"
    bits = int("".join(c for c in type_.replace("x2", "") if c.isdigit())) * (2 if type_.endswith("x2") else 1)
    bits = 2 * bits if op == "mulwide" else bits // 2 if op in _HALVES else bits
    return f"b{max(16, bits)}"


class _Cleaner:
    """The passes over one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.narrow = graph, False
        self.replaced: dict[str, Operand] = {}
        self.recognised: dict[str, set[tuple[Operand, ...]]] = {"divided": set(), "rooted": set()}
        self.uses: dict[str, set[str]] = {}
        self.values = Values(graph, RULES)

    def rounds(self, count: int) -> None:
        """Rebuild until nothing changes, at most `count` times."""
        before: object = None
        for _ in range(count):
            self._rebuild()
            self._prune()
            self._sweep()
            changed = self._join_phis() | self._join_loads()
            now = [[(i.op, i.type, i.mods) for i in code] for code in self.graph.code], [len(p) for p in self.graph.phis]
            if now == before and not changed:
                break
            before = now

    def find(self, operand: Operand) -> Operand:
        """Follow replacements."""
        while isinstance(operand, str) and operand in self.replaced:
            operand = self.replaced[operand]
        return operand

    def _rebuild(self) -> None:
        graph = self.graph
        self.recognised["divided"] |= self.values.divided
        self.recognised["rooted"] |= self.values.rooted
        values = self.values = Values(graph, RULES)
        values.settled = self._settled
        self.uses = self._kinds_of_use() if self.narrow else {}
        sequence = order(graph.next)
        tree = children(dominators(graph.next, sequence), sequence)
        stack = [(0, False)]
        marks: dict[int, int] = {}
        while stack:
            block, leaving = stack.pop()
            if leaving:
                while len(values.scope) > marks[block]:
                    del values.known[values.scope.pop()]
                continue
            marks[block] = len(values.scope)
            values.code = []
            for instruction in graph.code[block]:
                self._rebuilt(instruction)
            graph.code[block] = values.code
            stack.append((block, True))
            stack += [(child, False) for child in reversed(tree[block])]
        self._simplify_phis()

    def _settled(self, kind: str, src: tuple[Operand, ...]) -> bool:
        """Tell whether a careful path for these operands was recognised, so that its check does not matter."""
        return any(tuple(map(self.find, found)) == src for found in self.recognised[kind])

    def _rebuilt(self, old: Instruction) -> None:
        values = self.values
        values.where = old.where
        src = tuple(map(self.find, old.src))
        guard = old.guard
        if guard:
            value = self.find(guard[0])
            guard = (value, guard[1]) if isinstance(value, str) else None
            if old.op == "bra" and guard is None:
                src = (int(bool(value) == old.guard[1]),)  # type: ignore[index]
            elif guard is None and bool(value) != old.guard[1]:  # type: ignore[index]
                self.replaced.update(dict.fromkeys(old.dst, 0))
                return
        if old.op == "unpack":
            for op, name in zip(("lo", "hi"), old.dst, strict=True):
                self.replaced[name] = values.build(op, old.type, src, (), self.graph.widths[name])
            return
        shared = old.op in _VALUE or (old.op == "special" and old.mods[0].split(".")[0] in _SPECIAL_ONCE)
        if shared and guard is None and len(old.dst) == 1:
            value = self.replaced[old.dst[0]] = self._value(old, src)
            if isinstance(value, str) and old.dst[0] in self.uses:
                values.uses.setdefault(value, set()).update(self.uses[old.dst[0]])
            return
        if old.op == "st" and old.type in ("u16", "s16", "b16") and len(src) == 3:
            value = src[2]
            if isinstance(value, str) and self.graph.widths[value] == "b32":
                src = (*src[:2], values.build("lo", "b32", (value,), (), "b16"))
                return values.keep(Instruction("st", "b16", (), src, old.mods, guard, old.where))
        if old.op == "st" and old.type == "b32" and len(src) in (4, 6) and (joined := self._joined(src[2:])):
            return values.keep(Instruction("st", "b64", (), (*src[:2], *joined), old.mods, guard, old.where))
        values.keep(Instruction(old.op, old.type, old.dst, src, old.mods, guard, old.where))

    def _value(self, old: Instruction, src: tuple[Operand, ...]) -> Operand:
        width = self.graph.widths[old.dst[0]]
        if width != natural_width(old.op, old.type):
            return self.values.make(old.op, old.type, src, old.mods, width)
        return self.values.build(old.op, old.type, src, old.mods, width)

    def _joined(self, words: tuple[Operand, ...]) -> tuple[Operand, ...]:
        """Return the 64-bit values whose halves are stored in order, or () when they are not halves."""
        found = []
        for low, high in zip(words[::2], words[1::2], strict=True):
            a, b = self.values.made_by(low, "lo", "b64"), self.values.made_by(high, "hi", "b64")
            if not a or not b or a.src[0] != b.src[0]:
                return ()
            found.append(a.src[0])
        return tuple(found)

    def _simplify_phis(self) -> None:
        before = self.graph.predecessors()
        for block, phis in enumerate(self.graph.phis):
            kept: dict[tuple[tuple[int, Operand], ...], Phi] = {}
            for phi in phis:
                phi.args = {edge: self.find(value) for edge, value in phi.args.items()}
                choices = {value for value in phi.args.values() if value != phi.name}
                complete = all(edge in phi.args for edge in before[block])
                if len(choices) == 1 and (complete or isinstance(next(iter(choices)), int)):
                    self.replaced[phi.name] = next(iter(choices))
                    continue
                if not choices:
                    self.replaced[phi.name] = 0
                    continue
                key = tuple(sorted(phi.args.items(), key=lambda item: item[0]))
                if key in kept:
                    self.replaced[phi.name] = kept[key].name
                else:
                    kept[key] = phi
            self.graph.phis[block] = list(kept.values())

    def _prune(self) -> None:
        """Settle jumps whose outcome is known and forget blocks that are not reached."""
        graph = self.graph
        for block, code in enumerate(graph.code):
            last = code[-1] if code else None
            if last and last.op == "bra" and last.src:
                code.pop()
                graph.next[block] = (graph.next[block][0 if last.src[0] else 1],)
            elif last and last.op in ("exit", "trap") and last.guard is None:
                graph.next[block] = ()
        reached = set(order(graph.next))
        for block in range(len(graph.code)):
            if block not in reached:
                graph.code[block], graph.next[block], graph.phis[block] = [], (), []
        before = graph.predecessors()
        for block in reached:
            for phi in graph.phis[block]:
                phi.args = {edge: value for edge, value in phi.args.items() if edge in before[block]}

    def _sweep(self) -> None:
        """Drop values that nothing needs."""
        graph = self.graph
        makers: dict[str, Instruction | Phi] = {d: i for code in graph.code for i in code for d in i.dst}
        makers.update({phi.name: phi for phis in graph.phis for phi in phis})
        needed: set[str] = set()
        waiting: list[str] = []

        def need(operands: tuple[Operand, ...], guard: tuple[str, bool] | None) -> None:
            waiting.extend(s for s in operands if isinstance(s, str))
            if guard:
                waiting.append(guard[0])

        for code in graph.code:
            for i in code:
                if i.op in _EFFECT:
                    need(i.src, i.guard)
        while waiting:
            name = self.find(waiting.pop())
            if isinstance(name, int) or name in needed:
                continue
            needed.add(name)
            maker = makers.get(name)
            if isinstance(maker, Phi):
                need(tuple(maker.args.values()), None)
            elif maker is not None:
                need(maker.src, maker.guard)
        for block, code in enumerate(graph.code):
            graph.code[block] = [i for i in code if i.op in _EFFECT or any(d in needed for d in i.dst)]
            graph.phis[block] = [phi for phi in graph.phis[block] if phi.name in needed]

    def _join_phis(self) -> bool:
        """Make one 64-bit phi of two that hold its halves."""
        graph = self.graph
        owner = {phi.name: (block, phi) for block, phis in enumerate(graph.phis) for phi in phis}
        pairs = dict.fromkeys(i.src for code in graph.code for i in code if i.op == "pack" and i.type == "b64")
        done: set[Operand] = set()
        for low, high in pairs:
            if low not in owner or high not in owner or low == high or {low, high} & done or owner[low][0] != owner[high][0]:
                continue
            block, first = owner[low]
            second = owner[high][1]
            if first.args.keys() != second.args.keys():
                continue
            done |= {low, high}
            whole = Phi(graph.fresh("b64"))
            for edge in first.args:
                whole.args[edge] = graph.fresh("b64")
                place = len(graph.code[edge]) - (bool(graph.code[edge]) and graph.code[edge][-1].op in ("bra", "exit", "trap"))
                pack = Instruction("pack", "b64", (whole.args[edge],), (first.args[edge], second.args[edge]))  # type: ignore[arg-type]
                graph.code[edge].insert(place, pack)
            graph.phis[block] = [p for p in graph.phis[block] if p is not first and p is not second] + [whole]
            graph.code[block].insert(0, Instruction("unpack", "b64", (first.name, second.name), (whole.name,)))
        return bool(done)

    def _join_loads(self) -> bool:
        """Make one load of 64 bits of two words that are packed."""
        graph = self.graph
        packed = {i.src for code in graph.code for i in code if i.op == "pack" and i.type == "b64"}
        changed = False
        for block, code in enumerate(graph.code):
            new: list[Instruction] = []
            for i in code:
                pairs = list(zip(i.dst[::2], i.dst[1::2], strict=False)) if i.op == "ld" and i.type == "b32" else []
                if not pairs or len(i.dst) % 2 or not all(pair in packed for pair in pairs):
                    new.append(i)
                    continue
                names = tuple(graph.fresh("b64") for _ in pairs)
                new.append(Instruction("ld", "b64", names, i.src, i.mods, i.guard, i.where))
                new += [
                    Instruction("unpack", "b64", pair, (name,), where=i.where) for name, pair in zip(names, pairs, strict=True)
                ]
                changed = True
            graph.code[block] = new
        return changed

    def _kinds_of_use(self) -> dict[str, set[str]]:
        """Return the operations that use each value."""
        kinds: dict[str, set[str]] = {}
        for code in self.graph.code:
            for i in code:
                for s in (*i.src, *((i.guard[0],) if i.guard else ())):
                    s = self.find(s)
                    if isinstance(s, str):
                        kinds.setdefault(s, set()).add(i.op)
        for phis in self.graph.phis:
            for phi in phis:
                for s in map(self.find, phi.args.values()):
                    if isinstance(s, str):
                        kinds.setdefault(s, set()).add("phi")
        return kinds

    def drop_guarded_arms(self) -> None:
        """Replace a selection by one arm where only one outcome of its predicate lets the result be used."""
        makers = {d: i for code in self.graph.code for i in code for d in i.dst}
        demands = self._demands()
        for code in self.graph.code:
            for place, i in enumerate(code):
                if i.op != "select" or isinstance(i.src[2], int):
                    continue
                for guard, sense in sorted(demands.get(i.dst[0]) or ()):
                    outcome = _implied(guard, sense, i.src[2], makers, 4)
                    if outcome is not None:
                        arm = i.src[0] if outcome else i.src[1]
                        code[place] = Instruction("select", i.type, i.dst, (arm, arm, i.src[2]), where=i.where)
                        break

    def _demands(self) -> dict[str, Demand]:
        """Return for each value the outcomes under which alone it matters."""
        demands: dict[str, Demand] = {}
        backwards = order(self.graph.next)[::-1]
        self._changed = True
        while self._changed:
            self._changed = False
            for block in backwards:
                for i in reversed(self.graph.code[block]):
                    self._demand_sources(i, demands)
                for phi in self.graph.phis[block]:
                    if demands.get(phi.name) is not None:
                        self._demand(demands, tuple(phi.args.values()), ALWAYS)
        return demands

    def _demand_sources(self, i: Instruction, demands: dict[str, Demand]) -> None:
        if i.guard:
            self._demand(demands, (i.guard[0],), ALWAYS)
        if i.op in _EFFECT or not i.dst or i.op not in PURE | _HALVES | {"fchk"}:
            return self._demand(demands, i.src, frozenset({i.guard}) if i.guard else ALWAYS)
        wanted: Demand = None
        for name in i.dst:
            wanted = _meet(wanted, demands.get(name))
        if wanted is None:
            return
        if i.op == "select" and isinstance(i.src[2], str):
            p = i.src[2]
            self._demand(demands, (p,), wanted)
            for arm, outcome in ((i.src[0], True), (i.src[1], False)):
                if (p, not outcome) not in wanted:
                    self._demand(demands, (arm,), wanted | {(p, outcome)})
            return
        self._demand(demands, i.src, wanted)

    def _demand(self, demands: dict[str, Demand], operands: tuple[Operand, ...], wanted: Demand) -> None:
        for name in operands:
            if isinstance(name, str):
                new = _meet(demands.get(name), wanted)
                if new != demands.get(name):
                    demands[name], self._changed = new, True

    def finish(self) -> None:
        """Spell out what only exists here: halves become `unpack`, a division check becomes comparisons."""
        graph = self.graph
        for block, code in enumerate(graph.code):
            new: list[Instruction] = []
            pairs: dict[Operand, dict[str, str]] = {}
            for i in code:
                if i.op in _HALVES:
                    pairs.setdefault(i.src[0], {})[i.op] = i.dst[0]
            for i in code:
                if i.op == "fchk":
                    new += _spelled_check(graph, i)
                elif i.op not in _HALVES:
                    new.append(i)
                elif i.src[0] in pairs:
                    halves, width = pairs.pop(i.src[0]), graph.widths[i.dst[0]]
                    names = tuple(halves.get(op) or graph.fresh(width) for op in ("lo", "hi"))
                    new.append(Instruction("unpack", i.type, names, i.src, where=i.where))
            graph.code[block] = new
        for block, code in enumerate(graph.code):
            for place, i in enumerate(code):
                guard = (str(self.find(i.guard[0])), i.guard[1]) if i.guard else None
                code[place] = Instruction(i.op, i.type, i.dst, tuple(map(self.find, i.src)), i.mods, guard, i.where)
            for phi in graph.phis[block]:
                phi.args = {edge: self.find(value) for edge, value in phi.args.items()}


def _meet(a: Demand, b: Demand) -> Demand:
    return b if a is None else a if b is None else a & b


def _implied(guard: str, sense: bool, predicate: Operand, makers: dict[str, Instruction], depth: int) -> bool | None:
    """Return what a predicate is where `guard` is `sense`, if that settles it."""
    if guard == predicate:
        return sense
    made = makers.get(guard)
    if made is None or not depth or made.type != "pred":
        return None
    if made.op == "not" and isinstance(made.src[0], str):
        return _implied(made.src[0], not sense, predicate, makers, depth - 1)
    if (made.op, sense) in (("and", True), ("or", False)):
        for source in made.src:
            if isinstance(source, str) and (found := _implied(source, sense, predicate, makers, depth - 1)) is not None:
                return found
    return None


def _spelled_check(graph: Graph, check: Instruction) -> list[Instruction]:
    """Return comparisons that hold where the short way to a / b could lose bits: exponents near the ends of their range."""
    code: list[Instruction] = []

    def made(op: str, type_: str, *src: Operand, mods: tuple[str, ...] = (), width: str = "pred") -> str:
        name = graph.fresh(width)
        code.append(Instruction(op, type_, (name,), src, mods, where=check.where))
        return name

    a, b = check.src
    first = made("bfe", "u32", a, 23, 8, width="b32")
    second = made("bfe", "u32", b, 23, 8, width="b32")
    difference = made("sub", "s32", first, second, width="b32")
    small = made(
        "or", "pred", made("setp", "s32", first, 30, mods=("le",)), made("setp", "s32", difference, 0xFFFFFFA6, mods=("le",))
    )
    small = made("and", "pred", small, made("setp", "u32", a, 0, mods=("ne",)))
    edge = made("setp", "u32", made("sub", "u32", second, 1, width="b32"), 250, mods=("gt",))
    large = made("or", "pred", made("setp", "s32", difference, 120, mods=("ge",)), made("setp", "u32", first, 255, mods=("eq",)))
    code.append(Instruction("or", "pred", check.dst, (made("or", "pred", small, edge), large), where=check.where))
    return code
