"""Belief in a lifted program: it is compared with the kernel itself before anybody computes with it.

A trial draws fresh sizes and random numbers, lets the emitted program and the kernel (interpreter, or SPMD code where that would
take too long) compute the same thing, and compares every byte of every array and of the guards around them.

  * Sizes: ragged ones first, around and below the tiles of the kernel.  A kernel may rely on multiples of 4 or 32: where ragged
    sizes fail, each integer gets the smallest unit with which all trials agree: whole tiles first, then all that divides the real
    size.
  * Range: a proof holds between the smallest and the largest value of each integer that was tried, since kernels may stop being
    right beyond some size (a row longer than a block); likewise for blocks of a free grid.  `Verifier.extend` tries more when a
    launch asks for more.
  * Numbers: both signs, above zero, ties, extremes at the first or last element, large and small, zeros.

Tolerance: |a - b| <= (2 u + e (64 + 8 sqrt(n))) (|b| + rms of b), u the spacing of the type that is stored, e that of the
narrowest type that is computed in, n the longest sum that ends in one output: rounding errors of a sum in another order grow
like sqrt(n).  Where this fails by little, the kernel is run again with inputs changed in the last bit, and what that changes,
times 16, is tolerated too: exp(1000 + x) magnifies what is legal.  Integers must agree exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import GewuError
from gewu.ops.draws import KINDS, Draw, Roles, draw
from gewu.ops.extent import longest_sum, walk, work, written
from gewu.ops.ir import FLOATS, WIDTH
from gewu.ops.lift import Lifted
from gewu.ops.plan import AXES, wrapped
from gewu.ops.sizes import Ceil, Size
from gewu.ops.tensor import Apply, Reduce

Shape = tuple[int, int, int]
Execute = Callable[[Sequence[Any], Mapping[str, int]], None]
Oracle = Callable[[Shape, Sequence[Any]], None]
_EPS: Final = {"bf16": 2.0**-8, "f16": 2.0**-11, "f32": 2.0**-24, "f64": 2.0**-53, "bf16x2": 2.0**-8, "f16x2": 2.0**-11}
_UNITS: Final = (256, 64, 32, 16, 8, 4, 2)
_RAGGED: Final = (37, 29, 43, 31, 47, 41, 53, 23)
_LITTLE: Final = (5, 9, 7, 13, 11, 6, 10, 8)
_CHEAP_WORK: Final = 300_000
_CHEAP_THREADS: Final = 8192
_DEAR_WORK: Final = 6_000_000
_DEAR_THREADS: Final = 1_500_000
_NEAR: Final = 0.02
_EXACT: Final = frozenset({"cvt", "mov", "select", "pack", "unpack", "setp", "neg", "abs", "max", "min"})


@dataclass(frozen=True, slots=True)
class Proof:
    """A lifted program with the launches for which it has been compared with its kernel.

    Attributes:
        lifted: the program.
        units: each free integer must be a multiple of its unit.
        smallest, largest: and lie in this range.
        grid: most blocks along the axes of the grid that follow from no size.
    """

    lifted: Lifted
    units: Mapping[int, int]
    smallest: Mapping[int, int]
    largest: Mapping[int, int]
    grid: Shape = (1, 1, 1)

    def admits(self, grid: Shape, block: Shape, args: Sequence[Any]) -> bool:
        """Tell whether a launch may be computed by the program, but for its range."""
        return self.lifted.covers(grid, block, args) and all(int(args[i]) % unit == 0 for i, unit in self.units.items())

    def covers(self, grid: Shape, block: Shape, args: Sequence[Any]) -> bool:
        """Tell whether a launch may be computed by the program."""
        inside = all(self.smallest[i] <= int(args[i]) <= self.largest[i] for i in self.units)
        return inside and self.covers_grid(grid) and self.admits(grid, block, args)

    def covers_grid(self, grid: Shape) -> bool:
        """Tell whether the free axes of a grid lie in the range tried."""
        return all(grid[k] <= self.grid[k] for k in free_axes(self.lifted))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of trials: `worst` is the largest error relative to what is tolerated; `where` says where, or why not."""

    ok: bool
    worst: float = 0.0
    where: str = ""
    proof: Proof | None = None


def verify(
    lifted: Lifted,
    execute: Execute,
    reference: Oracle,
    grid: Shape,
    block: Shape,
    args: Sequence[Any],
    *,
    fast: Callable[[], Oracle | None] | None = None,
    seed: int = 1,
) -> Verdict:
    """Compare a lifted program with its kernel at fresh sizes and at the sizes of a launch.

    Args:
        lifted: the program and the launches it should stand for.
        execute: runs the emitted program, `execute(args, launch integers)`.
        reference: runs the kernel, `reference(grid, args)`; slow and careful.
        grid, block, args: of the real launch; its arrays give types and ranges, and are not touched.
        fast: returns what runs the kernel fast, for large sizes, or None; called when first needed.
        seed: of the random numbers.

    Returns:
        The verdict; with a proof when it is ok.
    """
    return Verifier(lifted, execute, reference, grid, block, args, fast=fast, seed=seed).verify()


class Verifier:
    """Trials of one lifted program; the arguments are those of `verify`."""

    def __init__(
        self,
        lifted: Lifted,
        execute: Execute,
        reference: Oracle,
        grid: Shape,
        block: Shape,
        args: Sequence[Any],
        *,
        fast: Callable[[], Oracle | None] | None = None,
        seed: int = 1,
    ) -> None:
        self.lifted, self.execute, self.reference, self._fast = lifted, execute, reference, fast
        self.grid, self.block, self.args = grid, block, args
        self.roles = Roles(lifted.program, args)
        self.rng = np.random.default_rng(seed)
        integers = {i: int(a) for i, a in enumerate(args) if isinstance(a, np.integer)}
        self.real = {i: v for i, v in integers.items() if i not in lifted.pinned}
        self.tiles = {i: self._tile(i) for i in self.real}
        self.worst = 0.0

    @cached_property
    def fast(self) -> Oracle | None:
        """What runs the kernel fast, made when first needed."""
        return self._fast() if self._fast else None

    def verify(self) -> Verdict:
        """Find units and range with which all trials agree."""
        units = dict.fromkeys(self.real, 1)
        first = self._wide(units)
        whole = {i: tile if self.real[i] % tile == 0 else 1 for i, tile in self.tiles.items()}
        steep = {i: next((u for u in _UNITS if v % u == 0), 1) for i, v in self.real.items()}
        for coarse in (whole, steep):
            if not first.ok and max(coarse.values(), default=1) > 1:
                first = self._wide(coarse)
                units = self._relax(coarse) if first.ok else units
        if not first.ok:
            return first
        ranged = self._range(Proof(self.lifted, units, {}, {}))
        return self.extend(ranged.proof, self.grid, self.args) if ranged.proof else ranged

    def extend(self, proof: Proof, grid: Shape, args: Sequence[Any]) -> Verdict:
        """Try the sizes of a launch, all at once where that is affordable, else one at a time with the others small.

        A size that is too large even so is tried as large as is affordable, and then believed: what is right from a few up to
        millions goes on being right.
        """
        wanted = {i: int(args[i]) for i in self.real}
        if self._affordable(wanted, grid):
            tries = [(wanted, grid)]
        else:
            tries = self._one_at_a_time(proof, wanted, grid)
        for number, (sizes, like) in enumerate(tries):
            verdict = self.trial(sizes, like, "normal" if number % 2 == 0 else "positive")
            if not verdict.ok:
                return verdict
        return Verdict(True, self.worst, "", _wider(proof, wanted, grid))

    def _one_at_a_time(self, proof: Proof, wanted: Mapping[int, int], grid: Shape) -> list[tuple[dict[int, int], Shape]]:
        base = {i: min(proof.largest[i], wanted[i]) // proof.units[i] * proof.units[i] for i in self.real}
        low = _like(grid, 0)
        tries = []
        for i in self.real:
            if not proof.smallest[i] <= wanted[i] <= proof.largest[i]:
                steps = wanted[i] // proof.units[i]
                while steps > 1 and not self._affordable(base | {i: steps * proof.units[i]}, low):
                    steps //= 2
                tries.append((base | {i: steps * proof.units[i]}, low))
        for k in free_axes(self.lifted):
            if grid[k] > proof.grid[k]:
                blocks = grid[k]
                while blocks > 1 and not self._affordable(base, _replaced(low, k, blocks)):
                    blocks //= 2
                tries.append((base, _replaced(low, k, blocks)))
        return tries

    def trial(self, sizes: Mapping[int, int], like: Shape, kind: str) -> Verdict:
        """Compare once, with these values of the free integers and numbers of this kind."""
        args = [a.dtype.type(sizes[i]) if i in sizes else a for i, a in enumerate(self.args)]
        grid = self.lifted.grid(args, self._passes(like, args))
        launch = self.lifted.launch(grid, self.block, args)
        what = ", ".join(f"p{i} = {v}" for i, v in sizes.items()) or "the given sizes"
        if any(g < 1 for g in grid):
            return Verdict(False, math.inf, f"no blocks at {what}")
        ours = draw(self.roles, args, launch, kind, self.rng)
        if ours is None:
            return Verdict(False, math.inf, f"indices leave the arrays at {what}")
        theirs, before = ours.copy(), ours.copy()
        oracle = self._oracle(launch, grid)
        try:
            oracle(grid, theirs.args)
            self.execute(ours.args, launch)
        except GewuError as error:
            return Verdict(False, math.inf, f"{error} at {what}")
        verdict = self._compare(ours, theirs, before, launch, lambda other: oracle(grid, other))
        self.worst = max(self.worst, verdict.worst)
        return verdict if verdict.ok else replace(verdict, where=f"{verdict.where} at {what}, {kind} numbers")

    def _passes(self, like: Shape, args: Sequence[Any]) -> Shape:
        """Return a grid in which an axis that counts two things goes through the faster one at least twice, if it really does."""
        for k, rule in enumerate(self.lifted.rule):
            by = wrapped(rule, f"g{AXES[k]}")
            if by:
                most = -(-self.grid[k] // int(self.args[int(by[1:])]))
                like = _replaced(like, k, max(like[k], min(most, 2 + like[k] % 2) * int(args[int(by[1:])])))
        return like

    def _wide(self, units: Mapping[int, int]) -> Verdict:
        """Try sizes beyond one tile, not beyond the real ones."""
        verdict = Verdict(True)
        for number, kind in enumerate(KINDS[:5]):
            verdict = self.trial(self._sizes(units, number % 3), _like(self.grid, number), kind)
            if not verdict.ok:
                return verdict
        return verdict

    def _relax(self, units: dict[int, int]) -> dict[int, int]:
        """Return the smallest units, one integer after the other, that still agree."""
        for i in units:
            for unit in (1, 2, 4, 8, 16, 32, 64):
                if unit < units[i] and units[i] % unit == 0 and self._wide(units | {i: unit}).ok:
                    units = units | {i: unit}
                    break
        return units

    def _range(self, proof: Proof) -> Verdict:
        """Return the proof with the range of the sizes tried, small ones too where they agree, unless some numbers refute it."""
        for number in range(3):
            proof = _wider(proof, self._sizes(proof.units, number), _like(self.grid, number))
        for number, kind in enumerate(("large", "zeros")):
            small = {i: self._scaled(i, _LITTLE[(k + 3 * number) % len(_LITTLE)], proof.units) for k, i in enumerate(self.real)}
            like = _like(self.grid, number + 1)
            verdict = self.trial(small, like, kind)
            if verdict.ok:
                proof = _wider(proof, small, like)
            elif not self.real or any(self.trial(small, like, other).ok for other in KINDS[:3]):
                return verdict  # right or wrong with the numbers, not with the sizes
        return Verdict(True, self.worst, "", proof)

    def _sizes(self, units: Mapping[int, int], number: int) -> dict[int, int]:
        """Return ragged sizes in units, beyond one tile if the real ones are, in the order of the real ones."""
        made = {}
        for k, i in enumerate(self.real):
            ragged = _RAGGED[(k + 3 * number) % len(_RAGGED)]
            steps = self.tiles[i] * (1 + number % 2) + ragged if self.tiles[i] > 1 else ragged
            made[i] = self._scaled(i, steps if units[i] == 1 else -(-steps // units[i]) + number, units)
        return made

    def _scaled(self, i: int, steps: int, units: Mapping[int, int]) -> int:
        unit = units[i]
        most = max(self.real[i] // unit, 1)
        return unit * (steps if steps <= most else 1 + (steps - 1) % most)

    def _tile(self, i: int) -> int:
        """Return what an integer is divided by where the grid follows from it, or 1."""
        for rule in self.lifted.rule:
            for _, factors in rule.terms:
                for factor in factors:
                    if isinstance(factor, Ceil) and f"p{i}" in _names(factor.numerator):
                        return factor.denominator.constant or math.prod(self.block)
        return 1

    def _affordable(self, sizes: Mapping[int, int], grid: Shape) -> bool:
        args = [a.dtype.type(sizes[i]) if i in sizes else a for i, a in enumerate(self.args)]
        grid = self.lifted.grid(args, grid)
        launch = self.lifted.launch(grid, self.block, args)
        threads = math.prod(grid) * math.prod(self.block)
        most_work, most_threads = (_DEAR_WORK, _DEAR_THREADS) if self.fast else (10 * _CHEAP_WORK, 10 * _CHEAP_THREADS)
        return work(self.lifted.program, launch) <= most_work and threads <= most_threads

    def _oracle(self, launch: Mapping[str, int], grid: Shape) -> Oracle:
        threads = math.prod(grid) * math.prod(self.block)
        cheap = work(self.lifted.program, launch) <= _CHEAP_WORK and threads <= _CHEAP_THREADS
        return self.reference if cheap or self.fast is None else self.fast

    def _compare(
        self, ours: Draw, theirs: Draw, before: Draw, launch: Mapping[str, int], again: Callable[[Sequence[Any]], None]
    ) -> Verdict:
        worst, place = 0.0, ""
        out = written(self.lifted.program)
        sensitivity: Draw | None = None
        for number, base in theirs.bases.items():
            mine = ours.bases[number]
            if np.array_equal(mine, base):
                continue
            type_ = self.roles.types.get(number, "b8")
            if number not in out or type_ not in FLOATS:
                first = int(np.flatnonzero(mine != base)[0])
                return Verdict(False, math.inf, f"argument {number} differs at byte {first - 256}")
            error, scale = _errors(mine, base, type_, before.bases[number])
            ratio = error / (self._tolerance(type_, launch) * scale)
            if ratio.max(initial=0.0) > 1.0 and (error / scale).max() < _NEAR:
                sensitivity = sensitivity or _shaken(before, self.roles, again)
                change, _ = _errors(sensitivity.bases[number], base, type_, before.bases[number])
                slack = 16.0 * (change + np.sqrt(np.mean(change**2)))
                ratio = error / (self._tolerance(type_, launch) * scale + slack)
            k = int(np.argmax(ratio))
            if ratio[k] > worst:
                worst, place = float(ratio[k]), f"argument {number} differs at element {k - 256 * 8 // WIDTH[type_]}"
        return Verdict(worst <= 1.0, worst, "" if worst <= 1.0 else place)

    def _tolerance(self, type_: str, launch: Mapping[str, int]) -> float:
        computed = 0.0
        for assign in self.lifted.program.assigns:
            for node, _, _ in walk(assign):
                if isinstance(node, Reduce) or (isinstance(node, Apply) and node.op not in _EXACT):
                    computed = max(computed, _EPS.get(node.type, 0.0))
        return 4.0 * _EPS[type_] + computed * (64.0 + 8.0 * math.sqrt(longest_sum(self.lifted.program, launch)))


def _like(grid: Shape, number: int) -> Shape:
    """Return a grid for the axes that follow from no size: small, and another each time."""
    x, y, z = (min(g, (3, 5, 4)[(number + k) % 3]) for k, g in enumerate(grid))
    return x, y, z


def _names(size: Size) -> set[str]:
    found: set[str] = set()
    for _, factors in size.terms:
        for factor in factors:
            found |= {factor} if isinstance(factor, str) else _names(factor.numerator) | _names(factor.denominator)
    return found


def free_axes(lifted: Lifted) -> list[int]:
    """Return the axes of the grid that follow from no size."""
    return [k for k, rule in enumerate(lifted.rule) if f"g{AXES[k]}" in _names(rule)]


def _replaced(grid: Shape, axis: int, blocks: int) -> Shape:
    x, y, z = (blocks if k == axis else g for k, g in enumerate(grid))
    return x, y, z


def _wider(proof: Proof, sizes: Mapping[int, int], grid: Shape) -> Proof:
    smallest = {i: min(v, proof.smallest.get(i, v)) for i, v in sizes.items()}
    largest = {i: max(v, proof.largest.get(i, v)) for i, v in sizes.items()}
    x, y, z = (max(a, b) for a, b in zip(proof.grid, grid, strict=True))
    return replace(proof, smallest=smallest, largest=largest, grid=(x, y, z))


def as_floats(base: NDArray[np.uint8], type_: str) -> NDArray[np.float64]:
    """Return raw bytes as numbers of a float type of `ir`."""
    width = 2 if type_ in ("f16x2", "bf16x2") else WIDTH[type_] // 8
    whole = base[: base.size // width * width]
    if type_.startswith("bf16"):
        return (whole.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return whole.view({2: np.float16, 4: np.float32, 8: np.float64}[width]).astype(np.float64)


def _errors(
    mine: NDArray[np.uint8], base: NDArray[np.uint8], type_: str, before: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return |a - b| (infinite where only one is finite) and |b| + rms of what was written of b."""
    a, b = as_floats(mine, type_), as_floats(base, type_)
    new = b != as_floats(before, type_)
    finite = np.isfinite(a) & np.isfinite(b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where(same, 0.0, np.where(finite, np.abs(a - b), math.inf))
        usual = float(np.sqrt(np.mean(b[finite & new] ** 2))) if (finite & new).any() else 0.0
    tiny = 2.0**-126 if type_ != "f64" else 2.0**-1022
    return error, np.where(finite, np.abs(b), 0.0) + usual + tiny


def _shaken(before: Draw, roles: Roles, again: Callable[[Sequence[Any]], None]) -> Draw:
    """Return what the kernel makes of inputs that differ in their last bit."""
    shaken = before.copy()
    for number, base in shaken.bases.items():
        type_ = roles.types.get(number, "b8")
        if type_ in FLOATS and number not in roles.places:
            width = 2 if type_ in ("f16x2", "bf16x2") else WIDTH[type_] // 8
            bits = base[: base.size // width * width].view(f"u{width}")
            bits[:] = np.where(np.arange(bits.size) % 2 == 0, bits ^ bits.dtype.type(1), bits)
    again(shaken.args)
    return shaken
