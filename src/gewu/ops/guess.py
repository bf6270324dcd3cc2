"""How an unknown kernel may be launched: which parameters are pointers and to what, and grids to try.

A binary tells sizes of parameters, not what they are for.  A pointer is what reaches an address by moves and additions alone;
what is loaded from it, or stored, and how that is used, tells the type of its elements; an integer that is no pointer nor used
as a float is a size.  Sizes are then chosen so that arrays of a few hundred thousand elements hold whatever product of them.

Limits: guesses, for analysis only; a launch is used when no access leaves the arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gewu.ops.arguments import Shape
from gewu.ops.ir import FLOATS, SHARED_WINDOW, WIDTH, Instruction, Kernel

_CARRY: Final = frozenset({"mov", "pack", "unpack", "add", "sub", "select"})
_MOST_ELEMENTS: Final = 1 << 22
_SHARED: Final = 49152
_DTYPES: Final = {
    **{"f32": "float32", "f64": "float64", "f16": "float16", "f16x2": "float16", "bf16": "uint16", "bf16x2": "uint16"},
    **{"u8": "uint8", "s8": "int8", "b8": "uint8", "u16": "uint16", "s16": "int16", "b16": "float16"},
    **{"u32": "uint32", "s32": "int32", "b32": "float32", "u64": "uint64", "s64": "int64", "b64": "float64"},
}


@dataclass(frozen=True, slots=True)
class Launchable:
    """One way to launch a kernel: grid, block, bytes of shared memory and arguments."""

    grid: Shape
    block: Shape
    shared: int
    args: list[Any]

    def __str__(self) -> str:
        words = [f"{a.dtype.name}[{a.size}]" if isinstance(a, np.ndarray) else str(a) for a in self.args]
        shared = f", {self.shared}" if self.shared else ""
        return f"[{_times(self.grid)}, {_times(self.block)}{shared}]({', '.join(words)})"


def _times(shape: Shape) -> str:
    kept = shape[: 3 if shape[2] > 1 else 2 if shape[1] > 1 else 1]
    return "x".join(map(str, kept))


def pointers(kernel: Kernel) -> dict[int, str]:
    """Return the parameters that are pointers, with the NumPy type of what they point to."""
    reach = _reach(kernel)
    found: dict[int, set[str]] = {}
    for block in kernel.blocks:
        for instruction in block.code:
            if instruction.op in ("ld", "st", "atom") and instruction.src and isinstance(instruction.src[0], str):
                for number in reach.get(instruction.src[0], ()):
                    found.setdefault(number, set()).add(_used_as(kernel, instruction))
    return {number: _DTYPES[_likeliest(types)] for number, types in found.items() if kernel.parameters[number].size == 8}


def floats(kernel: Kernel) -> set[int]:
    """Return the parameters that are floats: by their kind, else by the instructions that take them."""
    found = {i for i, p in enumerate(kernel.parameters) if p.kind[:1] == "f"}
    names = _loaded(kernel)
    for block in kernel.blocks:
        for instruction in block.code:
            if instruction.type in FLOATS and instruction.op not in ("mov", "ld", "cvt"):
                for source in instruction.src:
                    for number in names.get(source, ()) if isinstance(source, str) else ():
                        if not kernel.parameters[number].kind:
                            found.add(number)
    return found


def launches(kernel: Kernel, size: int, rng: np.random.Generator) -> Iterator[Launchable]:
    """Yield ways to launch a kernel, likeliest first.

    Args:
        kernel: with its parameters.
        size: elements of a one-dimensional problem.
        rng: random numbers for the arrays.
    """
    targets, real = pointers(kernel), floats(kernel)
    whole = [i for i, p in enumerate(kernel.parameters) if i not in targets and i not in real and p.size in (4, 8)]
    flat = not _special(kernel) & {"tid.y", "ctaid.y"}
    sizes = _sizes(len(whole), size if flat or len(whole) != 1 else math.isqrt(size))
    total = min(max(math.prod(sizes), size if flat else 2 * max(sizes, default=0) ** 2) + 4096, _MOST_ELEMENTS)
    args: list[Any] = []
    for number, parameter in enumerate(kernel.parameters):
        if number in targets:
            args.append(_array(targets[number], total, rng))
        elif number in real:
            args.append({4: np.float32, 8: np.float64}.get(parameter.size, np.float16)(0.5))
        elif number in whole:
            args.append(np.dtype(f"i{parameter.size}").type(sizes[whole.index(number)]))
        else:
            args.append(np.void(bytes(parameter.size)))
    shared = _SHARED if _wants_more(kernel) else 0
    used, tried = _special(kernel), set()
    for grid, block in _shapes(kernel, sizes, size):
        # blocks that cannot tell themselves apart would do the same work again
        grid = tuple(count if f"ctaid.{axis}" in used else 1 for axis, count in zip("xyz", grid, strict=True))
        if (grid, block) not in tried:
            tried.add((grid, block))
            yield Launchable(grid, block, shared, args)


def _wants_more(kernel: Kernel) -> bool:
    """Tell whether a kernel may use dynamic shared memory: it has no other, or makes the address where that begins.

    More than it wants would hide that a block is too large for its arrays.
    """
    if kernel.shared:
        code = (i for block in kernel.blocks for i in block.code)
        return any(s in (kernel.shared, SHARED_WINDOW + kernel.shared) for i in code for s in i.src)
    return any(i.op in ("ld", "st", "atom") and i.mods[0] in ("shared", "generic") for b in kernel.blocks for i in b.code)


def _shapes(kernel: Kernel, sizes: list[int], size: int) -> Iterator[tuple[Shape, Shape]]:
    used = _special(kernel)
    most = kernel.limit or 1024
    wide = max(sizes, default=size)
    down = sizes[0] if len(sizes) > 1 else 1
    if kernel.required:
        x, y, z = (*kernel.required, 1, 1)[:3]
        yield (-(-wide // x), -(-wide // y) if y > 1 else 1, 1), (x, y, z)
    if "tid.y" in used:
        across, down = (sizes[1], down) if len(sizes) > 1 else (wide, wide)
        for x, y in ((16, 16), (32, 8), (32, 32), (8, 8)):
            if x * y <= most:
                yield (-(-across // x), -(-down // y), 1), (x, y, 1)
        return
    threads = min(256, most)
    layers = down if "ctaid.y" in used else 1
    if len(sizes) > 1:
        for row in (32, min(128, most)):  # what is written for one warp is right with 32 only
            yield (sizes[0], layers, 1), (row, 1, 1)
        yield (-(-math.prod(sizes) // threads), layers, 1), (threads, 1, 1)
    yield (-(-wide // threads), layers, 1), (threads, 1, 1)
    yield (-(-wide // (4 * threads)), layers, 1), (threads, 1, 1)
    yield (1, 1, 1), (threads, 1, 1)
    yield (1, 1, 1), (32, 1, 1)
    if kernel.shared:  # made for one size of blocks
        for row in (512, 128, 64, 1024):
            if row <= most:
                yield (-(-wide // row), layers, 1), (row, 1, 1)


def _special(kernel: Kernel) -> set[str]:
    return {i.mods[0] for block in kernel.blocks for i in block.code if i.op == "special" and i.mods}


def _sizes(count: int, size: int) -> list[int]:
    if count <= 1:
        return [size] * count
    edge = {2: math.isqrt(size), 3: max(32, round(size ** (1 / 3)))}.get(count, 20)
    edge = max(edge // 32 * 32, 32) if count <= 3 else edge
    return [edge, edge + 32, edge + 64][:count] if count <= 3 else [edge, edge + 4, edge + 2, *[3] * (count - 3)]


def _array(dtype: str, count: int, rng: np.random.Generator) -> Any:
    if dtype.startswith("float"):
        return rng.standard_normal(count).astype(dtype)
    return rng.integers(0, 8, count).astype(dtype)


def _loaded(kernel: Kernel) -> dict[str, set[int]]:
    """Return the registers that hold a parameter as it is."""
    offsets = {p.offset: i for i, p in enumerate(kernel.parameters)}
    found: dict[str, set[int]] = {}
    for block in kernel.blocks:
        for instruction in block.code:
            if instruction.op == "param" and isinstance(instruction.src[0], int):
                start = instruction.src[0]
                owner = next((i for o, i in offsets.items() if o <= start < o + kernel.parameters[i].size), None)
                if owner is not None:
                    for name in instruction.dst:
                        found.setdefault(name, set()).add(owner)
    return found


def _reach(kernel: Kernel) -> dict[str, set[int]]:
    """Return which parameters each register comes from by moves and additions."""
    found = _loaded(kernel)
    changed = True
    while changed:
        changed = False
        for block in kernel.blocks:
            for instruction in block.code:
                if instruction.op not in _CARRY:
                    continue
                owners = set().union(*(found.get(s, set()) for s in instruction.src if isinstance(s, str)))
                for name in instruction.dst:
                    if not owners <= found.get(name, set()):
                        found.setdefault(name, set()).update(owners)
                        changed = True
    return found


def _used_as(kernel: Kernel, access: Instruction) -> str:
    """Return the type of what is accessed: that of the access, or for bare bits that of the instructions around it."""
    if access.type[:1] != "b":
        return access.type
    names = set(access.dst) or {s for s in access.src[2:] if isinstance(s, str)}
    for block in kernel.blocks:
        for instruction in block.code:
            used = names & {*(s for s in instruction.src if isinstance(s, str)), *instruction.dst}
            if used and instruction.op not in ("ld", "st", "mov", "pack", "unpack", "select", "param"):
                kind = instruction.mods[0] if instruction.op == "cvt" and names & set(instruction.src) else instruction.type
                if kind in _DTYPES and WIDTH[kind] == WIDTH[access.type]:
                    return kind
    return access.type


def _likeliest(types: set[str]) -> str:
    order = ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")
    return next((t for t in order if t in types), min(types))
