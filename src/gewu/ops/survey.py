"""What becomes of each kernel of a file: how it can be launched, how it is computed, how exactly, how fast.

`examine` launches a kernel as told, or as `guess` finds a way in which no access leaves the arrays, lets the router decide,
compares the result with the interpreter (or with checked SPMD code where that would take too long) and measures the time.

Roofline: a launch cannot be faster than its bytes over the bandwidth of memory, nor than its operations over those of a matrix
product; both are measured here (`Machine`).  Bytes count every array once, as far as it is touched.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gewu.core.errors import GewuError, InputError
from gewu.ops.arguments import pack
from gewu.ops.extent import extents, work
from gewu.ops.guess import Launchable, launches
from gewu.ops.ir import WIDTH
from gewu.ops.launch import Module, Operator

_LAUNCH: Final = re.compile(r"\s*([\w.$]+)\s*<<<(.+)>>>\s*\((.*)\)\s*", re.DOTALL)
_ARRAY: Final = re.compile(r"([fiu]\d+)\[(\d+)\](?:\s*<\s*(\d+))?")
_MOST: Final = 1 << 28
_EASY: Final = 16384
_ROUNDS: Final = 5
_MOST_WAYS: Final = 3
_RACE: Final = 1e-3
_BUDGET_S: Final = 6.0


@dataclass(frozen=True, slots=True)
class Machine:
    """What the processor can do: bytes and floating-point operations a second."""

    bytes_s: float
    flops_s: float

    @staticmethod
    def measured() -> Machine:
        """Measure a copy of arrays beyond the caches, and a matrix product."""
        source, target = np.ones(1 << 23, np.float32), np.empty(1 << 23, np.float32)
        a = np.ones((768, 768), np.float32)
        copy = best(lambda: np.copyto(target, source), 4)
        product = best(lambda: a @ a, 4)
        return Machine(2 * source.nbytes / copy, 2 * 768.0**3 / product)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about one kernel.

    Attributes:
        name, status, reason, formula: as of `Operator`; status "unlaunched": there is code, but no launch could be guessed.
        launch: how it was launched, as text; "" when no way was found.
        error: largest difference from the reference, relative to the size of the result; -1 when not compared.
        seconds: of a launch; 0 when not measured.
        roofline: the least time that the machine allows, over the time taken.
    """

    name: str
    status: str
    reason: str = ""
    formula: str = ""
    launch: str = ""
    error: float = -1.0
    seconds: float = 0.0
    roofline: float = 0.0


def best(call: Callable[[], Any], rounds: int) -> float:
    """Return the shortest time of a few calls, in seconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def parse_launch(text: str, seed: int) -> tuple[str, Launchable]:
    """Read a launch: `name<<<grid, block[, bytes]>>>(f32[1000], i32[50] < 8, 2.0, 1000)`.

    A grid or block is `4`, `16x16` or `4x4x4`; an array is its type and length: random numbers (integers below the bound).

    Raises:
        InputError: it is not of this form.
    """
    allowed = "name<<<grid, block>>>(f32[1000], i32[50] < 8, 2.0, 1000)"
    found = _LAUNCH.fullmatch(text)
    shapes = [part.strip() for part in found[2].split(",")] if found else []
    if not found or len(shapes) not in (2, 3) or any(not re.fullmatch(r"\d+(x\d+){0,2}", s) for s in shapes):
        raise InputError("is not a launch", key="launches", value=text, allowed=allowed)
    rng = np.random.default_rng(seed)
    args = [_argument(part.strip(), text, rng) for part in found[3].split(",")] if found[3].strip() else []
    grid, block = (tuple((*map(int, s.split("x")), 1, 1)[:3]) for s in shapes[:2])
    return found[1], Launchable(grid, block, int(shapes[2]) if len(shapes) == 3 else 0, args)  # type: ignore[arg-type]


def _argument(text: str, whole: str, rng: np.random.Generator) -> Any:
    if array := _ARRAY.fullmatch(text):
        kind, count, below = array[1], int(array[2]), int(array[3] or 8)
        names = {"f": (16, 32, 64), "i": (8, 16, 32, 64), "u": (8, 16, 32, 64)}
        bits = int(kind[1:])
        if bits in names[kind[0]] and count * bits // 8 <= _MOST and 0 < below <= 1 << min(bits - 1, 31):
            if kind[0] == "f":
                return rng.standard_normal(count).astype(f"f{bits // 8}")
            return rng.integers(0, below, count).astype(f"{kind[0]}{bits // 8}")
    elif re.fullmatch(r"[-+]?\d{1,18}", text):
        return int(text)
    elif re.fullmatch(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?", text):
        return float(text)
    raise InputError("is not an argument", key="launches", value=text, allowed="f32[1000], i32[50] < 8, 2.0, 1000", hint=whole)


def guessed_constants(module: Module, seed: int) -> dict[str, Any]:
    """Return random numbers for the variables that only the host sets and kernels of this module are refused for."""
    rng = np.random.default_rng(seed)
    if not module.refused:
        return {}
    made = {}
    for name, (kind, size) in module.listing.unset.items():
        real = kind in ("f32", "f64") or (kind[0] == "b" and size % 4 == 0)
        dtype = np.dtype(f"f{8 if kind == 'f64' else 4}" if real else f"i{WIDTH[kind] // 8}")
        count = size // dtype.itemsize
        made[name] = (rng.standard_normal(count) if real else rng.integers(0, 8, count)).astype(dtype)
    return made


def examine(module: Module, name: str, given: Sequence[Launchable], machine: Machine, *, size: int, seed: int) -> Finding:
    """Find out about one kernel; nothing that it does or is ends in an error here."""
    operator = module[name]
    chosen, error, reason = _way(operator, list(given), size, seed)
    if chosen is None:
        return Finding(name, "refused" if given or not _has_code(operator) else "unlaunched", reason)
    status = operator.prepare(chosen.grid, chosen.block, *chosen.args, shared=chosen.shared)
    launch = operator[chosen.grid, chosen.block, chosen.shared]
    times = []
    for _ in range(_ROUNDS):
        args = _copies(chosen.args)  # a second launch on what the first left might go astray: think of a counter
        start = time.perf_counter()
        launch(*args)
        times.append(time.perf_counter() - start)
    seconds = min(times)
    least = _least_time(operator, chosen, machine)
    return Finding(name, status, operator.reason, operator.formula, str(chosen), error, seconds, least / seconds)


def _way(operator: Operator, given: list[Launchable], size: int, seed: int) -> tuple[Launchable | None, float, str]:
    """Return a launch that works, how far it is from the reference, and why there is none."""
    chosen: Launchable | None = None
    worst, begin, tried = -1.0, time.perf_counter(), 0
    reason = "no launch was found in which every access stays inside of the arrays"
    for way in given or launches(operator.kernel, size, np.random.default_rng(seed)):
        if not given and time.perf_counter() - begin > 2 * _BUDGET_S:
            break
        try:
            expected, steady = _expected(operator, way)
            if not given and not steady:
                reason = "only launches were found whose results depend on the order of the threads"
                continue
            tried += 1
            status = operator.prepare(way.grid, way.block, *way.args, shared=way.shared)
            ours = _copies(way.args)
            operator[way.grid, way.block, way.shared](*ours)
        except GewuError as problem:
            reason = str(problem)
            continue
        if chosen is None or status == "lifted":
            chosen, worst = way, _difference(pack(operator.signature, ours), expected)
        if status == "lifted" or given or tried >= _MOST_WAYS or time.perf_counter() - begin > _BUDGET_S:
            break
    return chosen, worst, reason


def _has_code(operator: Operator) -> bool:
    try:
        operator.router.compiled(
            operator.signature.required or (min(operator.signature.limit or 256, 256), 1, 1), 0, checked=False
        )
    except GewuError:
        return False
    return True


def _expected(operator: Operator, way: Launchable) -> tuple[list[Any], bool]:
    """Return the arguments after a run with every access checked, and whether another order of the threads gives the same.

    The other order is the interpreter's, for launches that are easy enough for it.  What differs is not run without checks.
    """
    checked = pack(operator.signature, _copies(way.args))
    operator.router.compiled(way.block, way.shared, checked=True).launch(way.grid, checked)
    if int(np.prod(way.grid)) * int(np.prod(way.block)) > _EASY:
        return checked, True
    plain = pack(operator.signature, _copies(way.args))
    operator.router.reference(way.block, way.shared)(way.grid, plain)
    return plain, _difference(checked, plain) <= _RACE


def _copies(args: Sequence[Any]) -> list[Any]:
    return [a.copy() if isinstance(a, np.ndarray) else a for a in args]


def _difference(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """Return the largest difference between the arrays of two launches, relative to the size of the result."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(a, np.ndarray) and a.tobytes() != b.tobytes():
            x, y = a.astype(np.float64), b.astype(np.float64)
            both = np.isfinite(x) & np.isfinite(y)
            if (both != (np.isfinite(x) | np.isfinite(y))).any():
                return 1.0
            usual = float(np.sqrt(np.mean(y[both] ** 2))) if both.any() else 0.0
            with np.errstate(invalid="ignore"):
                error = np.where(both, np.abs(x - y), 0.0) / (np.where(both, np.abs(y), 0.0) + usual + 1e-300)
            worst = max(worst, float(error.max()))
    return worst


def _least_time(operator: Operator, way: Launchable, machine: Machine) -> float:
    proof = operator.router.proof
    if proof is None:
        return float(sum(a.nbytes for a in way.args if isinstance(a, np.ndarray))) / machine.bytes_s
    integers = proof.lifted.launch(way.grid, way.block, pack(operator.signature, way.args))
    nbytes = sum(high - low for low, high in extents(proof.lifted.program, integers).values())
    return max(nbytes / machine.bytes_s, 2.0 * work(proof.lifted.program, integers) / machine.flops_s)
