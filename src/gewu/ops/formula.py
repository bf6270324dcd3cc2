"""A program in readable notation: `c[i, j] = sum over k: a[...] b[...]`, as reports and `explain` print it."""

from __future__ import annotations

import numpy as np

from gewu.ops import tensor
from gewu.ops.sizes import Affine

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "rem": "%", "and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>"}
_COMPARE = {"eq": "=", "ne": "≠", "lt": "<", "le": "≤", "gt": ">", "ge": "≥"}
_REDUCE = {"add": "sum", "mul": "product", "max": "max", "min": "min"}
LONGEST = 4000


def formula(program: tensor.Program) -> str:
    """Return the program as text, one assignment a line; arrays are called `a0`, `a1` ... by argument number."""
    return "\n".join(_assign(assign) for assign in program.assigns)


def _assign(assign: tensor.Assign) -> str:
    loops = ", ".join(f"{name} < {size}" for name, size in assign.axes)
    text = f"a{assign.buffer}[{assign.index}] = {_text(assign.value)}"
    text = text if len(text) <= LONGEST else text[:LONGEST] + " ..."
    return text + (f"   for {loops}" if loops else "") + _where(assign.where)


def _where(conditions: tuple[Affine, ...]) -> str:
    return " where " + " and ".join(f"{c} ≥ 0" for c in conditions) if conditions else ""


def _text(node: tensor.Expression) -> str:
    if isinstance(node, tensor.Load):
        inside = f"{node.index}" + (" else 0" if node.where else "")
        return f"a{node.buffer}[{inside}]"
    if isinstance(node, tensor.Gather):
        return f"a{node.buffer}[{_text(node.place)}]"
    if isinstance(node, tensor.Constant):
        return _number(node)
    if isinstance(node, tensor.Scalar):
        return f"p{node.argument}"
    if isinstance(node, tensor.Index):
        return f"({node.value})" if len(node.value.terms) > 1 else str(node.value)
    if isinstance(node, tensor.Reduce):
        axes = ", ".join(f"{name} < {size}" for name, size in node.axes)
        return f"{_REDUCE[node.kind]}({axes}{_where(node.where)}: {_text(node.body)})"
    return _apply(node)


def _apply(node: tensor.Apply) -> str:
    args = [_text(arg) for arg in node.args]
    if node.op in _INFIX and len(args) == 2:
        return f"({args[0]} {_INFIX[node.op]} {args[1]})"
    if node.op == "neg":
        return f"-{args[0]}"
    if node.op == "fma":
        return f"({args[0]} * {args[1]} + {args[2]})"
    if node.op == "select":
        return f"({args[0]} if {args[2]} else {args[1]})"
    if node.op == "setp":
        return f"{args[0]} {_COMPARE.get(node.mods[0].removesuffix('u'), node.mods[0])} {args[1]}"
    if node.op == "cvt":
        return f"{node.type}({', '.join(args)})"
    names = {"ex2": "exp2", "lg2": "log2", "rcp": "1 / "}
    return f"{names.get(node.op, node.op)}({', '.join(args)})"


def _number(node: tensor.Constant) -> str:
    kinds = {"f32": np.float32, "f64": np.float64, "f16": np.float16}
    if node.type in kinds:
        kind = np.dtype(kinds[node.type])
        return repr(float(np.array(node.bits, f"u{kind.itemsize}").view(kind)))
    return str(node.bits)
