"""A short notation for kernels in `ir`, for tests: `[@p] op.type destinations = sources | modifiers`, blocks by labels.

Registers are named by their first letter: p predicates, h 16 bits, r 32 bits, d 64 bits. `-> a b` closes a block.
"""

import struct

from gewu.ops import ir

WIDTHS = {"p": "pred", "h": "b16", "r": "b32", "d": "b64"}


def _operand(text: str) -> ir.Operand:
    if text.startswith("f:"):
        return struct.unpack("<I", struct.pack("<f", float(text[2:])))[0]
    return int(text, 0) if text[0].isdigit() else text


def assemble(name: str, sizes: list[int], text: str, **more: int | bytes) -> ir.Kernel:
    """Return a kernel whose parameters have the given sizes."""
    labels: dict[str, int] = {}
    blocks: list[list[ir.Instruction]] = []
    nexts: list[list[str]] = []
    for line in (raw.split("#")[0].strip() for raw in text.splitlines()):
        if not line:
            continue
        if line.endswith(":"):
            labels[line[:-1]] = len(blocks)
            blocks.append([])
            nexts.append([])
        elif line.startswith("->"):
            nexts[-1] = line[2:].split()
        else:
            blocks[-1].append(_instruction(line, f"{len(blocks) - 1}:{len(blocks[-1])}"))
    made = [ir.Block(code, tuple(labels[n] for n in n_)) for code, n_ in zip(blocks, nexts, strict=True)]
    names = {x for b in made for i in b.code for x in (*i.dst, *i.src, *((i.guard[0],) if i.guard else ()))}
    parameters, offset = [], 0
    for size in sizes:
        offset = -(-offset // size) * size
        parameters.append(ir.Parameter(offset, size))
        offset += size
    widths = {n: WIDTHS[n[0]] for n in names if isinstance(n, str)}
    kernel = ir.Kernel(name, tuple(parameters), made, widths, **more)  # type: ignore[arg-type]
    ir.check(kernel)
    return kernel


def _instruction(line: str, where: str) -> ir.Instruction:
    guard = None
    if line[0] == "@":
        mark, line = line.split(None, 1)
        guard = (mark.lstrip("@!"), "!" not in mark)
    body, _, mods = line.partition("|")
    left, equals, right = body.partition("=")
    head = left.split() if equals else body.split()
    op, _, kind = head[0].partition(".")
    sources = right.split() if equals else head[1:]
    dst = tuple(head[1:]) if equals else ()
    return ir.Instruction(op, kind, dst, tuple(map(_operand, sources)), tuple(mods.split()), guard, where)
