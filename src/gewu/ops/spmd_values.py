"""The registers of a kernel in single-assignment form: values with one definition and merges where ways join.

Merges stand at dominance frontiers, pruned by liveness.  Copies, re-packed halves and values that are never used go away.
"""

from __future__ import annotations

from gewu.ops import ir
from gewu.ops.spmd_flow import NO_OLD, Flow, Node, Op, arrange


def build_flow(kernel: ir.Kernel, constants: dict[str, int]) -> Flow:
    """Order the blocks of a kernel and give its registers one definition each.

    Args:
        kernel: a well-formed kernel.
        constants: specials that are known (`ntid.x` ...).

    Raises:
        Unsupported: a barrier with a guard.
    """
    flow = arrange(kernel)
    _rename(flow, kernel.widths)
    _simplify(flow, constants)
    return flow


def _rename(flow: Flow, widths: dict[str, str]) -> None:
    nodes, count = flow.nodes, len(flow.nodes)
    names = {name: i for i, name in enumerate(widths)}
    gen, kill = [0] * count, [0] * count
    defined: dict[str, set[int]] = {}
    for number, node in enumerate(nodes):
        for op in node.code:
            reads = [
                s for s in (*op.src, *([op.guard[0]] if op.guard else []), *(op.dst if op.guard else ())) if isinstance(s, str)
            ]
            for name in reads:
                if not kill[number] >> names[name] & 1:
                    gen[number] |= 1 << names[name]
            for name in op.dst:
                kill[number] |= 1 << names[name]
                defined.setdefault(name, set()).add(number)
    live = _live(nodes, gen, kill)
    frontier: list[set[int]] = [set() for _ in nodes]
    for number in range(count):
        if len(flow.preds[number]) > 1:
            for pred in flow.preds[number]:
                runner = pred
                while runner != flow.idom[number]:
                    frontier[runner].add(number)
                    runner = flow.idom[runner]
    wanted: list[list[str]] = [[] for _ in nodes]
    for name, places in defined.items():
        work, placed = list(places), set[int]()
        while work:
            for target in frontier[work.pop()]:
                if target not in placed and live[target] >> names[name] & 1:
                    placed.add(target)
                    wanted[target].append(name)
                    work.append(target)
    _renumber(flow, widths, wanted)


def _live(nodes: list[Node], gen: list[int], kill: list[int]) -> list[int]:
    live = list(gen)
    changed = True
    while changed:
        changed = False
        for number in reversed(range(len(nodes))):
            out = 0
            for target in nodes[number].next:
                out |= live[target]
            new = gen[number] | (out & ~kill[number])
            if new != live[number]:
                live[number] = new
                changed = True
    return live


def _renumber(flow: Flow, widths: dict[str, str], wanted: list[list[str]]) -> None:
    nodes = flow.nodes
    children: list[list[int]] = [[] for _ in nodes]
    for number in range(1, len(nodes)):
        children[flow.idom[number]].append(number)
    current: dict[str, list[str]] = {}

    def fresh(name: str, number: int) -> str:
        new = f"{''.join(c if c.isalnum() else '_' for c in name)}.{len(flow.widths)}"
        flow.widths[new], flow.home[new] = widths[name], number
        return new

    made = [{name: fresh(name, number) for name in wanted[number]} for number in range(len(nodes))]
    for node, mine in zip(nodes, made, strict=True):
        node.phis = {new: {} for new in mine.values()}

    def now(name: ir.Operand) -> ir.Operand:
        if isinstance(name, int):
            return name
        return current[name][-1] if current.get(name) else 0

    work: list[tuple[int, list[str] | None]] = [(0, None)]
    while work:
        number, leave = work.pop()
        if leave is not None:
            for name in leave:
                current[name].pop()
            continue
        pushed = list(made[number])
        for name, new in made[number].items():
            current.setdefault(name, []).append(new)
        node = nodes[number]
        for op in node.code:
            op.src = tuple(map(now, op.src))
            if op.guard:
                op.guard = (now(op.guard[0]), op.guard[1])
                op.old = tuple(current[d][-1] if current.get(d) else NO_OLD for d in op.dst)
            pushed += op.dst
            news = tuple(fresh(d, number) for d in op.dst)
            for name, new in zip(op.dst, news, strict=True):
                current.setdefault(name, []).append(new)
            op.dst = news
        for target in node.next:
            for name, new in made[target].items():
                nodes[target].phis[new][number] = now(name)
        work.append((number, pushed))
        work += [(child, None) for child in children[number]]


def _simplify(flow: Flow, constants: dict[str, int]) -> None:
    for _ in range(6):
        makers = {d: op for node in flow.nodes for op in node.code for d in op.dst}
        table: dict[str, ir.Operand] = {}

        def final(operand: ir.Operand, table: dict[str, ir.Operand] = table) -> ir.Operand:
            seen = 0
            while isinstance(operand, str) and operand in table and seen < 1000:
                operand = table[operand]
                seen += 1
            return operand

        for node in flow.nodes:
            for name, sources in node.phis.items():
                values = {final(v) for v in sources.values()} - {name}
                if len(values) == 1:
                    table[name] = values.pop()
            code: list[Op] = []
            for op in node.code:
                if not op.guard and op.dst:
                    code += _fold(flow, op, makers, constants, table)
                code.append(op)
            node.code = code
        if not table and not _drop_unused(flow):
            return
        for node in flow.nodes:
            node.phis = {n: {p: final(v) for p, v in s.items()} for n, s in node.phis.items() if n not in table}
            for op in node.code:
                op.src = tuple(map(final, op.src))
                op.old = tuple(o if o == NO_OLD else final(o) for o in op.old)
                if op.guard:
                    op.guard = (final(op.guard[0]), op.guard[1])
            node.code = [op for op in node.code if not op.dst or not all(d in table for d in op.dst)]
        _drop_unused(flow)


def _fold(flow: Flow, op: Op, makers: dict[str, Op], constants: dict[str, int], table: dict[str, ir.Operand]) -> list[Op]:
    """Note what the destinations of an operation are equal to, or write it in a plainer form, with what goes before it."""
    made = [makers.get(s) if isinstance(s, str) else None for s in op.src]
    if op.op == "mov":
        bits = ir.WIDTH[op.type]
        table[op.dst[0]] = op.src[0] & ((1 << bits) - 1) if isinstance(op.src[0], int) else op.src[0]
    elif op.op == "special" and op.mods[0] in constants:
        table[op.dst[0]] = constants[op.mods[0]]
    elif op.op == "unpack":
        half = ir.WIDTH[op.type] // 2
        if isinstance(op.src[0], int):
            table[op.dst[0]], table[op.dst[1]] = op.src[0] & ((1 << half) - 1), op.src[0] >> half
        elif made[0] and made[0].op == "pack" and made[0].type == op.type and not made[0].guard:
            table[op.dst[0]], table[op.dst[1]] = made[0].src
    elif op.op == "pack":
        return _fold_pack(flow, op, made, makers, table)
    return []


def _fold_pack(flow: Flow, op: Op, made: list[Op | None], makers: dict[str, Op], table: dict[str, ir.Operand]) -> list[Op]:
    low, high = op.src
    half = ir.WIDTH[op.type] // 2
    if isinstance(low, int) and isinstance(high, int):
        table[op.dst[0]] = low | high << half
        return []
    one, two = made
    if one and one is two and one.op == "unpack" and one.dst == op.src and not one.guard:
        table[op.dst[0]] = one.src[0]
    elif op.type != "b64":
        return []
    elif high == 0:
        op.op, op.type, op.mods, op.src = "cvt", "u64", ("u32",), (low,)
    elif two and two.op == "shr" and two.type == "s32" and two.src == (low, 31) and not two.guard:
        op.op, op.type, op.mods, op.src = "cvt", "s64", ("s32",), (low,)
    elif one and two and one.op == "unpack" and two.op == "add" and not one.guard and not two.guard and one.dst[1] in two.src:
        # The high word plus x: the whole plus x * 2^32.
        rest = two.src[0] if two.src[1] == one.dst[1] else two.src[1]
        name = f"{op.dst[0]}.{len(flow.widths)}"
        flow.widths[name], flow.home[name] = "b64", flow.home[op.dst[0]]
        shifted = Op("pack", "b64", (name,), (0, rest), where=op.where)
        op.op, op.type, op.src = "add", "u64", (one.src[0], name)
        return [shifted]
    return []


def _drop_unused(flow: Flow) -> bool:
    """Remove pure operations and merges that nothing reads; tell whether there were any."""
    makers: dict[str, list[ir.Operand]] = {}
    work: list[ir.Operand] = []
    free = ir.PURE | {"special", "param"}
    for node in flow.nodes:
        for name, sources in node.phis.items():
            makers[name] = list(sources.values())
        for op in node.code:
            if op.op in free:
                makers.update(dict.fromkeys(op.dst, op.operands()))
            else:
                work += op.operands()
    used: set[str] = set()
    while work:
        name = work.pop()
        if isinstance(name, str) and name not in used:
            used.add(name)
            work += makers.get(name, [])
    dropped = False
    for node in flow.nodes:
        before = len(node.phis) + len(node.code)
        node.phis = {n: s for n, s in node.phis.items() if n in used}
        node.code = [op for op in node.code if op.op not in free or any(d in used for d in op.dst)]
        dropped |= before != len(node.phis) + len(node.code)
    return dropped
