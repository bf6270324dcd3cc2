"""Lifted programs as JSON and back, strictly: what is read is checked piece by piece and can only become a program.

Expressions share parts, so a program is a table of nodes in which each names earlier ones by number.  Anything that is not
exactly of this form is refused; nothing in the text is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gewu.core.errors import InputError
from gewu.ops.ir import PURE, WIDTH
from gewu.ops.lift import Lifted
from gewu.ops.sizes import Affine, Ceil, Size
from gewu.ops.tensor import MATH, REDUCTIONS, Apply, Assign, Constant, Expression, Gather, Index, Load, Program, Reduce, Scalar

DEEPEST: Final = 16
_OPS: Final = PURE | set(MATH)


def lifted_to_json(lifted: Lifted) -> dict[str, Any]:
    """Return a lifted kernel as what `json` can write."""
    return {
        "program": program_to_json(lifted.program),
        "pinned": sorted(lifted.pinned.items()),
        "rule": [_size(rule) for rule in lifted.rule],
        "block": list(lifted.block),
        "types": sorted(lifted.types.items()),
    }


def lifted_from_json(table: Any) -> Lifted:
    """Return the lifted kernel that `lifted_to_json` wrote.

    Raises:
        InputError: it is not of this form.
    """
    table = _table(table, {"program", "pinned", "rule", "block", "types"})
    pinned = {_natural(i): _integer(v) for i, v in (_list(pair, 2) for pair in _list(table["pinned"]))}
    types = {_natural(i): _text(v) for i, v in (_list(pair, 2) for pair in _list(table["types"]))}
    x, y, z = (_to_size(rule) for rule in _list(table["rule"], 3))
    bx, by, bz = (_natural(b) for b in _list(table["block"], 3))
    return Lifted(program_from_json(table["program"]), pinned, (x, y, z), (bx, by, bz), types)


def program_to_json(program: Program) -> dict[str, Any]:
    """Return a program as what `json` can write."""
    nodes: list[list[Any]] = []
    numbers: dict[int, int] = {}
    assigns = [
        [a.buffer, a.type, _axes(a.axes), _affine(a.index), _number(a.value, nodes, numbers), [_affine(w) for w in a.where]]
        for a in program.assigns
    ]
    return {"name": program.name, "nodes": nodes, "assigns": assigns}


def program_from_json(table: Any) -> Program:
    """Return the program that `program_to_json` wrote.

    Raises:
        InputError: it is not of this form.
    """
    table = _table(table, {"name", "nodes", "assigns"})
    nodes: list[Expression] = []
    for row in _list(table["nodes"]):
        nodes.append(_node(_list(row), nodes))
    assigns = []
    for row in _list(table["assigns"]):
        buffer, kind, axes, index, value, where = _list(row, 6)
        conditions = tuple(_to_affine(w) for w in _list(where))
        assigns.append(
            Assign(_natural(buffer), _kind(kind), _to_axes(axes), _to_affine(index), _earlier(value, nodes), conditions)
        )
    return Program(_text(table["name"]), tuple(assigns))


def _number(root: Expression, nodes: list[list[Any]], numbers: dict[int, int]) -> int:
    """Append a node after all that it holds, and return its number; without recursion, since formulas may be deep."""
    stack = [root]
    while stack:
        node = stack[-1]
        if id(node) in numbers:
            stack.pop()
            continue
        missing = [child for child in _children(node) if id(child) not in numbers]
        if missing:
            stack.extend(missing)
            continue
        numbers[id(node)] = len(nodes)
        nodes.append(_row(node, [numbers[id(child)] for child in _children(node)]))
        stack.pop()
    return numbers[id(root)]


def _children(node: Expression) -> tuple[Expression, ...]:
    if isinstance(node, Apply):
        return node.args
    if isinstance(node, Reduce):
        return (node.body,)
    return (node.place,) if isinstance(node, Gather) else ()


def _row(node: Expression, children: list[int]) -> list[Any]:
    head: list[Any] = [type(node).__name__]
    match node:
        case Load():
            return [*head, node.buffer, node.type, _affine(node.index), [_affine(w) for w in node.where]]
        case Gather():
            return [*head, node.buffer, node.type, children[0]]
        case Constant():
            return [*head, node.type, node.bits]
        case Scalar():
            return [*head, node.argument, node.type]
        case Index():
            return [*head, node.type, _affine(node.value)]
        case Apply():
            return [*head, node.op, node.type, children, list(node.mods)]
        case Reduce():
            return [*head, node.kind, node.type, _axes(node.axes), children[0], [_affine(w) for w in node.where]]


def _node(row: list[Any], nodes: list[Expression]) -> Expression:
    match row:
        case ["Load", buffer, kind, index, where]:
            return Load(_natural(buffer), _kind(kind), _to_affine(index), tuple(_to_affine(w) for w in _list(where)))
        case ["Gather", buffer, kind, place]:
            return Gather(_natural(buffer), _kind(kind), _earlier(place, nodes))
        case ["Constant", kind, bits]:
            if _natural(bits) >> WIDTH[_kind(kind)]:
                raise _wrong(row)
            return Constant(kind, bits)
        case ["Scalar", argument, kind]:
            return Scalar(_natural(argument), _kind(kind))
        case ["Index", kind, value]:
            return Index(_kind(kind), _to_affine(value))
        case ["Apply", op, kind, args, mods] if op in _OPS:
            children = tuple(_earlier(a, nodes) for a in _list(args))
            return Apply(op, _kind(kind), children, tuple(_text(m) for m in _list(mods)))
        case ["Reduce", reduction, kind, axes, body, where] if reduction in REDUCTIONS:
            conditions = tuple(_to_affine(w) for w in _list(where))
            return Reduce(reduction, _kind(kind), _to_axes(axes), _earlier(body, nodes), conditions)
    raise _wrong(row)


def _size(size: Size) -> list[Any]:
    return [
        [c, [f if isinstance(f, str) else [_size(f.numerator), _size(f.denominator)] for f in factors]]
        for c, factors in size.terms
    ]


def _to_size(value: Any, depth: int = 0) -> Size:
    if depth > DEEPEST:
        raise _wrong(value)
    terms = []
    for term in _list(value):
        coefficient, factors = _list(term, 2)
        made: list[str | Ceil] = []
        for factor in _list(factors):
            if isinstance(factor, str):
                made.append(_integer_name(factor))
            else:
                numerator, denominator = _list(factor, 2)
                made.append(Ceil(_to_size(numerator, depth + 1), _to_size(denominator, depth + 1)))
        terms.append((_integer(coefficient), tuple(made)))
    return Size(tuple(terms))


def _affine(affine: Affine) -> list[Any]:
    return [[[name, _size(size)] for name, size in affine.terms], _size(affine.offset)]


def _to_affine(value: Any) -> Affine:
    terms, offset = _list(value, 2)
    pairs = (_list(term, 2) for term in _list(terms))
    return Affine(tuple((_text(name), _to_size(size)) for name, size in pairs), _to_size(offset))


def _axes(axes: tuple[tuple[str, Size], ...]) -> list[Any]:
    return [[name, _size(size)] for name, size in axes]


def _to_axes(value: Any) -> tuple[tuple[str, Size], ...]:
    return tuple((_text(name), _to_size(size)) for name, size in (_list(pair, 2) for pair in _list(value)))


def _integer_name(name: str) -> str:
    known = name in ("bx", "by", "bz", "gx", "gy", "gz") or (name[:1] == "p" and name[1:].isdecimal() and name.isascii())
    if not known:
        raise _wrong(name)
    return name


def _earlier(number: Any, nodes: list[Expression]) -> Expression:
    if _natural(number) >= len(nodes):
        raise _wrong(number)
    return nodes[number]


def _table(value: Any, keys: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict) or set(value) != keys:
        raise _wrong(value)
    return value


def _list(value: Any, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise _wrong(value)
    return value


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise _wrong(value)
    return value


def _natural(value: Any) -> int:
    if _integer(value) < 0:
        raise _wrong(value)
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(value)
    return value


def _kind(value: Any) -> str:
    if not isinstance(value, str) or value not in WIDTH:
        raise _wrong(value)
    return value


def _wrong(value: Any) -> InputError:
    return InputError("is not a stored program", value=value)
