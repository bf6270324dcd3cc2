"""Kernels in the common language as JSON and back, strictly: what is read is checked as if a reader had made it."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from gewu.core.errors import InputError
from gewu.ops.ir import WIDTH, Block, Instruction, Kernel, Parameter, check


def kernel_to_json(kernel: Kernel) -> dict[str, Any]:
    """Return a kernel as what `json` can write."""
    return {
        "name": kernel.name,
        "parameters": [[p.offset, p.size, p.kind, p.name] for p in kernel.parameters],
        "blocks": [[[_row(i) for i in block.code], list(block.next)] for block in kernel.blocks],
        "widths": kernel.widths,
        "data": base64.b64encode(kernel.data).decode(),
        "source": kernel.source,
        "numbers": [kernel.shared, kernel.local, kernel.limit, *kernel.required],
    }


def kernel_from_json(table: Any) -> Kernel:
    """Return the kernel that `kernel_to_json` wrote.

    Raises:
        InputError: it is not of this form, or not a kernel.
    """
    try:
        shared, local, limit, *required = (_number(n) for n in table["numbers"])
        kernel = Kernel(
            name=_text(table["name"]),
            parameters=tuple(Parameter(_number(o), _number(s), _text(k), _text(n)) for o, s, k, n in table["parameters"]),
            blocks=[Block([_instruction(row) for row in code], tuple(map(_number, after))) for code, after in table["blocks"]],
            widths={_text(name): _kind(width) for name, width in table["widths"].items()},
            shared=shared,
            local=local,
            data=base64.b64decode(table["data"], validate=True),
            source=_text(table["source"]),
            limit=limit,
            required=tuple(required),
        )
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise InputError("is not a stored kernel") from error
    if not kernel.blocks:
        raise InputError("is not a stored kernel")
    check(kernel)
    return kernel


def _row(i: Instruction) -> list[Any]:
    return [i.op, i.type, list(i.dst), list(i.src), list(i.mods), None if i.guard is None else list(i.guard), i.where]


def _instruction(row: list[Any]) -> Instruction:
    op, kind, dst, src, mods, guard, where = row
    sources = tuple(s if isinstance(s, str) else _number(s) for s in src)
    condition = None if guard is None else (_text(guard[0]), bool(guard[1]))
    return Instruction(
        op, _kind(kind) if kind else "", tuple(map(_text, dst)), sources, tuple(map(_text, mods)), condition, _text(where)
    )


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _kind(value: Any) -> str:
    if value not in WIDTH:
        raise ValueError(value)
    return str(value)
