"""Arguments to try a kernel with: fresh sizes, arrays just large enough, numbers of several kinds.

    base array = | guard | elements that the program touches | guard |

Guards hold random bytes, as everything else does before the launch: what is read beyond the edge shows in the result, what is
written beyond it shows in the guard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gewu.ops.extent import accesses, extents, gathered, places, walk
from gewu.ops.ir import FLOATS, WIDTH
from gewu.ops.tensor import Apply, Expression, Gather, Load, Program, Reduce

KINDS: Final = ("normal", "positive", "ties", "rising", "falling", "large", "zeros")
"""Kinds of numbers: both signs; above zero; few values; extremes at the ends; large and small ones; half of them zero."""
_DTYPES: Final = {
    **{"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"},
    **{f"{prefix}int{bits}": f"{'u' if prefix else 's'}{bits}" for prefix in ("", "u") for bits in (8, 16, 32, 64)},
}
_GUARD: Final = 256
_RAMP: Final = 4096  # numbers that rise more slowly are nearly equal to their mean: a variance of them is all rounding
_STEEPEST_INDEX: Final = 7
_MOST_BYTES: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class Draw:
    """Arguments of one trial and the memory under them.

    Attributes:
        args: for a launch.
        bases: memory of the array arguments by number, guards included.
    """

    args: list[Any]
    bases: dict[int, NDArray[np.uint8]]

    def copy(self) -> Draw:
        """Return the same arguments in other memory."""
        bases = {i: base.copy() for i, base in self.bases.items()}
        args = [_view(bases[i], a.dtype) if i in bases else a for i, a in enumerate(self.args)]
        return Draw(args, bases)


class Roles:
    """What the arrays of a program are: types as they are used, whether their elements are places, how far they are read."""

    def __init__(self, program: Program, args: Sequence[Any]) -> None:
        self.program = program
        self.types: dict[int, str] = {}
        for number, arg in enumerate(args):
            if isinstance(arg, np.ndarray) and arg.dtype.name in _DTYPES:
                self.types[number] = _DTYPES[arg.dtype.name]
        for access in accesses(program):
            self._note(access.buffer, access.type)
        for assign in program.assigns:
            made = _made(assign.value)
            if WIDTH[made] <= WIDTH[assign.type]:
                self._note(assign.buffer, made)
            for node, _, _ in walk(assign):
                self._use(node)
        self.gathered, self.places = gathered(program), places(program)
        self.limits = {i: _range(args[i]) for i in self.places}
        self.sizes = {i: a.nbytes for i, a in enumerate(args) if isinstance(a, np.ndarray)}

    def _use(self, node: Expression) -> None:
        """Note as what the operands of a node are taken: bits by themselves do not tell."""
        if isinstance(node, Gather):
            self._note(node.buffer, node.type)
        operands = node.args if isinstance(node, Apply) else (node.body,) if isinstance(node, Reduce) else ()
        for operand in operands:
            taken = node.mods[0] if isinstance(node, Apply) and node.op == "cvt" and node.mods else node.type  # type: ignore[union-attr]
            if isinstance(operand, Load | Gather) and WIDTH[taken] == WIDTH[operand.type]:
                self._note(operand.buffer, taken)

    def _note(self, buffer: int, type_: str) -> None:
        known = self.types.get(buffer)
        if known is None or (known not in FLOATS and type_ in FLOATS) or (known[0] == "b" and type_[0] in "us"):
            self.types[buffer] = type_


def _made(value: Expression) -> str:
    """Return the type of a value; of one that is packed of two, that of the halves."""
    if isinstance(value, Apply) and value.op == "pack":
        return _made(value.args[0])
    return getattr(value, "type", "b8")


def draw(roles: Roles, args: Sequence[Any], launch: Mapping[str, int], kind: str, rng: np.random.Generator) -> Draw | None:
    """Return arguments with the integers of `launch`, or None when the arrays would be too large.

    Args:
        roles: of the program.
        args: of the real launch.
        launch: the integers by name.
        kind: one of KINDS.
        rng: random numbers.
    """
    needed = extents(roles.program, launch)
    if sum(size for _, size in needed.values()) > _MOST_BYTES or any(low < 0 for low, _ in needed.values()):
        return None
    made: list[Any] = []
    bases: dict[int, NDArray[np.uint8]] = {}
    for number, arg in enumerate(args):
        if isinstance(arg, np.ndarray):
            size = needed.get(number, (0, min(arg.nbytes, 4096)))[1]
            if number in roles.gathered:
                size = max(size, min(arg.nbytes, 1 << 22))
            step = max(arg.dtype.itemsize, 16)
            tail = -(-(size + _GUARD) // step) * step
            base = numbers(roles.types.get(number, "b8"), _GUARD + tail, kind, rng)
            if number in roles.places:
                _fill_places(base, arg.dtype, roles.limits[number], rng)
            bases[number] = base
            made.append(_view(base, arg.dtype))
        elif isinstance(arg, np.integer):
            made.append(arg.dtype.type(launch[f"p{number}"]))
        elif isinstance(arg, np.floating) and kind in ("ties", "large") and np.isfinite(arg):
            made.append(arg.dtype.type(float(arg) * 1.375))
        else:
            made.append(arg)
    return Draw(made, bases)


def numbers(type_: str, nbytes: int, kind: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return so many bytes that hold random numbers of a type of `ir`."""
    width = WIDTH[type_] // 8
    count = -(-nbytes // width)
    if type_ not in FLOATS:
        high = {8: 128, 16: 1000}.get(WIDTH[type_], 10_000)
        low = 0 if type_[:1] == "u" or kind == "positive" else -high
        spread = 4 if kind == "ties" else high
        whole = rng.integers(max(low, -spread), spread, size=max(count, 1), dtype=np.int64)
        return np.ascontiguousarray(whole.astype(f"i{width}")).view(np.uint8)[:nbytes].copy()
    if type_ in ("f16x2", "bf16x2"):
        return numbers(type_[:-2], nbytes, kind, rng)
    values = _floats(kind, count, rng)
    if type_ == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)[:nbytes].copy()
    return values.astype({"f16": np.float16, "f32": np.float32, "f64": np.float64}[type_]).view(np.uint8)[:nbytes].copy()


def _floats(kind: str, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    if kind == "positive":
        return rng.uniform(0.1, 2.0, count)
    if kind == "ties":
        return rng.integers(-2, 3, count).astype(np.float64)
    normal = rng.standard_normal(count)
    if kind in ("rising", "falling"):
        ramp = np.resize(np.linspace(-3.0, 3.0, min(count, _RAMP)), count)
        return ramp * (1 if kind == "rising" else -1) + 1e-6 * normal
    if kind == "large":
        return normal * rng.choice([1e-3, 1.0, 4.0], count)
    return np.where(rng.random(count) < 0.5, 0.0, normal) if kind == "zeros" else normal


def _range(array: NDArray[Any]) -> tuple[int, int]:
    """Return the smallest and largest place that the real array holds, not more than a few apart."""
    if not array.size or array.dtype.kind not in "iu":
        return 0, 0
    low, high = int(array.min()), int(array.max())
    return low, min(high, low + _STEEPEST_INDEX)


def _fill_places(base: NDArray[np.uint8], dtype: np.dtype[Any], limits: tuple[int, int], rng: np.random.Generator) -> None:
    view = _view(base, dtype)
    if dtype.kind in "iu":
        view[:] = rng.integers(limits[0], limits[1] + 1, size=view.size, dtype=np.int64).astype(dtype)
    else:
        base[:] = 0


def _view(base: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
    inside = base[_GUARD:]
    return inside[: inside.size // dtype.itemsize * dtype.itemsize].view(dtype)
