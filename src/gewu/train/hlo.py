"""What a compiled program costs each device: counted in XLA's optimised text.

The same `Cost` as `walk.cost`, of what the compiler left: work that was done twice is gone, a collective may go in a wider type
(XLA on CPU sends bfloat16 as float32) or be joined with others. Loops count by `known_trip_count`. Groups of devices are
written in one of three ways,

    {{0,4},{1,5}}      [2,4]<=[4,2]T(1,0)      mesh['fsdp'=2,'tp'=4] {'tp'}

and are given back as axes of the mesh where they are those of some axes, as ("?",) else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import InputError
from gewu.train.walk import Cost, called, product, sent

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}
_OP = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")


class _Line(NamedTuple):
    name: str
    type: str
    op: str
    rest: str


def cost(text: str, mesh: Mapping[str, int]) -> Cost:
    """Return what a program costs each device.

    Args:
        text: of `compiled.as_text()`.
        mesh: size of each axis, slowest first.

    Raises:
        InputError: there is no program in the text, or a loop with products or collectives has no known length.
    """
    parts, entry = _parsed(text)
    if not entry:
        raise InputError("holds no compiled program", key="text", value=text[:40], allowed="the text of compiled.as_text()")
    return _Walk(parts, {axis: size for axis, size in mesh.items() if size > 1}).cost(entry)


def _parsed(text: str) -> tuple[dict[str, list[_Line]], str]:
    parts: dict[str, list[_Line]] = {}
    entry, lines = "", list[_Line]()
    for line in text.splitlines():
        if line[:1] in ("%", "E") and (head := _HEAD.match(line)):
            lines = parts[head[2]] = []
            entry = head[2] if head[1] else entry
        elif (found := _OP.match(line)) is not None:
            lines.append(_Line(*found.groups()))
    return parts, entry


def _shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (kind, tuple(int(x) for x in dims.split(",") if x))
        for kind, dims in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", re.sub(r"/\*.*?\*/", "", text))
    ]


def _size(text: str) -> float:
    digits = {kind: int(re.sub(r"\D.*", "", kind.lstrip("suf")) or 8) / 8 for kind, _ in _shapes(text) if kind not in _BYTES}
    return float(sum(math.prod(shape) * (_BYTES.get(kind) or digits[kind]) for kind, shape in _shapes(text)))


def groups(text: str) -> NDArray[Any] | tuple[str, ...] | None:
    """Return the groups of devices of a collective, one a row, or the names of axes where it names them, None for all."""
    if found := re.search(r"replica_groups=mesh\[(.*?)\]\s*\{(.*?)\}", text):
        return tuple(re.findall(r"'?\"?(\w+)", found[2]))
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}\s]*\})\}", text):
        return np.array([[int(x) for x in row.split(",")] for row in re.findall(r"\{([\d,\s]+)\}", found[1])])
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, source = ([int(x) for x in found[i].split(",")] for i in (1, 2))
        order = [int(x) for x in found[3].split(",")] if found[3] else range(len(source))
        return np.arange(math.prod(source)).reshape(source).transpose(order).reshape(shape)
    return None


def axes_of(found: NDArray[Any] | tuple[str, ...] | None, mesh: Mapping[str, int], permute: bool = False) -> tuple[str, ...]:
    """Return the axes of the mesh over which groups of devices go, ("?",) if there are none such."""
    if found is None:
        return tuple(mesh)
    if isinstance(found, tuple):
        return tuple(axis for axis in mesh if axis in found)
    places = np.array(np.unravel_index(found, tuple(mesh.values()) or (1,)))  # axis, group, member
    moved = tuple(axis for axis, place in zip(mesh, places, strict=True) if (place != place[:, :1]).any())
    whole = permute or math.prod(mesh[axis] for axis in moved) == found.shape[1]
    return moved if whole else ("?",)


class _Walk:
    """The parts of a program, each counted once."""

    def __init__(self, parts: dict[str, list[_Line]], mesh: dict[str, int]) -> None:
        self.parts, self.mesh, self.known = parts, mesh, dict[str, Cost]()

    def cost(self, name: str) -> Cost:
        if name not in self.known:
            types = {line.name: line.type for line in self.parts[name]}
            self.known[name] = sum((self.line(line, types) for line in self.parts[name]), Cost())
        return self.known[name]

    def line(self, line: _Line, types: dict[str, str]) -> Cost:
        op, rest = line.op.removesuffix("-start"), line.rest
        names = re.findall(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)", rest)
        if branches := re.search(r"branch_computations=\{(.*?)\}", rest):
            names = re.findall(r"[\w.\-]+", branches[1])
        if op == "while":
            body, trips = self.cost(names[0]), re.search(r"known_trip_count\D*(\d+)", rest)
            if trips is None and (body.flops or body.collectives):
                raise InputError("a loop with products or collectives has no known length", key="while", value=line.name)
            return body.times(int(trips[1])) if trips else Cost()
        if op == "conditional":
            return max((self.cost(part) for part in names), key=lambda c: (c.flops, c.sent))
        if op in _KINDS:
            return self.collective(op, line, [types.get(x, "") for x in self.operands(rest)])
        if op in ("dot", "convolution") or 'custom_call_target="gewu_product' in rest:
            return self.product(op, line, [types.get(x, "") for x in self.operands(rest)])
        if op in ("fusion", "call", "custom-call", "async"):
            return sum((self.cost(part) for part in names if part in self.parts), Cost())
        return Cost()

    @staticmethod
    def operands(rest: str) -> list[str]:
        return re.findall(r"%([\w.\-]+)", rest.split("), ")[0])

    def collective(self, op: str, line: _Line, operands: list[str]) -> Cost:
        found, permute = groups(line.rest), op == "collective-permute"
        axes = axes_of(found, self.mesh, permute)
        group = found.shape[1] if isinstance(found, np.ndarray) and not permute else math.prod(self.mesh.get(x, 1) for x in axes)
        kind = {"collective-permute": "permute", "ragged-all-to-all": "all-to-all"}.get(op, op)
        return sent(kind, axes, group, sum(map(_size, operands[: 1 if op.startswith("ragged") else None])))

    def product(self, op: str, line: _Line, operands: list[str]) -> Cost:
        out, a, b = (_shapes(x)[0][1] for x in (line.type, operands[0], operands[1]))
        moved = _size(line.type) + sum(map(_size, operands))
        if op == "dot":
            contracting = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.rest)
            terms = math.prod(a[int(axis)] for axis in contracting[1].split(",") if axis) if contracting else 1
            return product(2.0 * math.prod(out) * terms, moved, "dot")
        if op == "custom-call":
            return product(called("product", a, b, out), moved, op)
        labels = re.search(r"dim_labels=\w+_(\w+)->", line.rest)
        outputs = b[labels[1].index("o")] if labels else 1
        return product(2.0 * math.prod(out) * math.prod(b) / outputs, moved, "convolution")


def by_axes(cost: Cost) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return the bytes sent by kind and axes."""
    keys = sorted({(kind, axes) for kind, axes, _ in cost.collectives})
    return {
        key: sum(traffic.bytes for (kind, axes, _), traffic in cost.collectives.items() if (kind, axes) == key) for key in keys
    }
