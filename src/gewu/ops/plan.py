"""Which small launches to look at: sizes and grids that stand for the real launch.

A kernel is traced at sizes of a few dozen, three times with sizes that have nothing in common.  How the grid follows from the
sizes is not in the kernel but in the host code, which nobody has: it is inferred from the real launch, `(n + 255) / 256` blocks
for n = 100,000.  Where several rules fit, they are tried in order; where none does, the grid is a size of its own.

Integers up to TINY are taken as what they are (a kernel width, a flag): the formula holds for these values only.  Those up to
SMALL (a number of channels, or of heads) are first looked at as sizes like all others, then taken as what they are.

An axis of the grid that the kernel divides by an argument counts two things, `z = batch * channels + channel`: its rule is
channels ceil(gz / channels), and a trial has more than one pass of it, or nobody would see where it begins anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gewu.ops.ir import FLOATS, Kernel
from gewu.ops.sizes import Ceil, Size

TINY: Final = 7
SMALL: Final = 16
RUNS: Final = 3
AXES: Final = "xyz"
_FREE: Final = {"gx": (5, 4, 3), "gy": (3, 5, 2), "gz": (4, 3, 2)}  # fewest in the last run, the one with the largest sizes
_PASSES: Final = (2, 3, 2)
_GENERIC: Final = ((21, 26, 19, 33, 38, 29, 43, 47), (25, 18, 31, 22, 35, 41, 37, 28), (34, 23, 27, 39, 20, 30, 46, 45))
_FEW: Final = ((11, 14, 9, 17, 12, 15, 19, 13), (13, 9, 15, 11, 17, 14, 12, 18), (17, 12, 14, 13, 10, 11, 16, 9))
_DIVISOR: Final = (3, 4, 2)
_LENGTH: Final = (5, 3, 6)  # then of the first loop that no axis of the grid follows from; short ones elsewhere are ambiguous
_UNITS: Final = ((5, 7, 9, 6, 11, 8, 13, 10), (6, 11, 5, 8, 7, 13, 9, 12), (9, 5, 8, 11, 6, 7, 10, 14))
_EXACT: Final = ((2, 3, 4), (3, 4, 2), (4, 2, 3))
_STYLES: Final = ("generic", "unit4", "exact", "large", "unit16", "unit64", "unitblock")
_MOST_PLANS: Final = 10
_WIDE: Final = 64  # tiles beyond which several whole ones are too much to follow
_NARROW: Final = 8  # tiles of which all sizes tried make as many blocks
_FOLLOWED: Final = frozenset(
    {
        *("special", "param", "mov", "cvt", "add", "sub", "mul", "mulwide", "fma", "shl", "shr", "div", "rem"),
        *("and", "or", "bfe", "setp"),
    }
)


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to read a launch: which integers are fixed, how the grid follows, and the sizes of the runs."""

    pinned: Mapping[int, int]
    grid: tuple[Size, Size, Size]
    sizes: tuple[Mapping[str, int], ...]

    @property
    def passes(self) -> list[Size]:
        """How often each divided axis of the grid goes through its argument."""
        found = [(f"g{axis}", wrapped(rule, f"g{axis}")) for axis, rule in zip(AXES, self.grid, strict=True)]
        return [Size.named(Ceil(Size.named(axis), Size.named(by))) for axis, by in found if by]

    @property
    def names(self) -> list[str]:
        """The launch integers that vary from run to run, but for an axis of the grid that is a size by another name."""
        plain = {f"g{axis}" for axis, rule in zip(AXES, self.grid, strict=True) if "ceil" not in str(rule)} - {
            *map(str, self.grid)
        }
        vary = [name for name in self.sizes[0] if name not in plain and len({run[name] for run in self.sizes}) > 1]
        return sorted(vary, key=lambda name: (name[0] == "g", name))


def integers(args: Sequence[Any]) -> dict[int, int]:
    """Return the integer arguments by number."""
    return {i: int(a) for i, a in enumerate(args) if isinstance(a, np.integer)}


def wrapped(rule: Size, axis: str) -> str | None:
    """Return the argument that a rule of the form argument times ceil(axis / argument) is about, or None."""
    factors = rule.terms[0][1] if len(rule.terms) == 1 else ()
    whole = [f.denominator for f in factors if isinstance(f, Ceil) and f.numerator == Size.named(axis)]
    return str(whole[0]) if whole else None


@dataclass(frozen=True, slots=True)
class Hints:
    """What a kernel does with its block index: pairs of an axis of the grid and an argument, `("gz", "p3")`.

    `divided`: it divides the one by the other.  `compared`: it compares what follows from the one with what follows from the
    other.
    """

    divided: frozenset[tuple[str, str]]
    compared: frozenset[tuple[str, str]]


def hints(kernel: Kernel) -> Hints:
    """Return what can be seen without running a kernel; registers are taken for all they may hold."""
    place = {p.offset: f"p{number}" for number, p in enumerate(kernel.parameters)}
    follows: dict[str, set[str]] = {}
    moved: set[str] = set()  # what holds a block index or an argument itself
    divided, compared = set(), set()
    size = -1
    while size != (size := sum(map(len, follows.values()))):
        for instruction in (i for block in kernel.blocks for i in block.code if i.op in _FOLLOWED):
            sources = [follows.get(s, set()) if isinstance(s, str) else set() for s in instruction.src]
            if instruction.op == "special" and instruction.mods[0].startswith("ctaid."):
                sources = [{f"g{instruction.mods[0][-1]}"}]
            elif instruction.op == "param" and instruction.src[0] in place:
                sources = [{place[int(instruction.src[0])]}]
            if instruction.op in ("special", "param") or (instruction.op in ("mov", "cvt") and instruction.src[0] in moved):
                moved |= set(instruction.dst)
            for register in instruction.dst:
                follows.setdefault(register, set()).update(*sources)
            if instruction.op in ("div", "rem") and moved.issuperset(instruction.src):
                divided |= {(a, b) for a in sources[0] for b in sources[1]}
            elif instruction.op == "setp" and instruction.type not in FLOATS:
                compared |= {pair for a, b in (sources, sources[::-1]) for pair in _compared(a, b)}
    axes = {f"g{axis}" for axis in AXES}
    return Hints(*(frozenset((a, b) for a, b in pairs if a in axes and b not in axes) for pairs in (divided, compared)))


def _compared(index: set[str], bound: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the pairs of a comparison of what depends on one axis with what depends on none."""
    axes = [name for name in index if name[0] == "g"]
    if len(axes) == 1 and not any(name[0] == "g" for name in bound):
        yield from ((axes[0], name) for name in bound)


def plans(kernel: Kernel, grid: tuple[int, int, int], block: tuple[int, int, int], args: Sequence[Any]) -> Iterator[Plan]:
    """Yield ways to read a launch, likeliest first."""
    values = integers(args)
    seen = hints(kernel)
    limits = [TINY, SMALL] if any(TINY < v <= SMALL for v in values.values()) else [SMALL]
    tries, checked = [], {axis for axis, _ in seen.compared}
    for place, limit in enumerate(limits):
        pinned = {i: v for i, v in values.items() if v <= limit and not any(f"p{i}" == q for _, q in seen.divided)}
        free = {f"p{i}": v for i, v in values.items() if i not in pinned}
        for rank, rules in enumerate(_grids(grid, block, free, seen)):
            bare = any(
                any(t <= _WIDE for _, t in _tiles(rule)) and f"g{axis}" not in checked
                for axis, rule in zip(AXES, rules, strict=True)
            )
            for number, style in enumerate(sorted(_STYLES, key=lambda style: style != "exact") if bare else _STYLES):
                if style != "large" or any(str(rule) in _FREE for rule in rules):
                    tries.append((place + rank + 2 * number, style, pinned, free, rules))
    made: set[Any] = set()
    for _, style, pinned, free, rules in sorted(tries, key=lambda one: one[0]):  # likely rules with odd sizes, then the others
        plan = Plan(pinned, rules, tuple(_run(style, number, free, rules, block) for number in range(RUNS)))
        key = (rules, str(plan.sizes))
        if key not in made:
            made.add(key)
            yield plan
        if len(made) >= _MOST_PLANS * 6:
            return


def _run(style: str, number: int, free: Mapping[str, int], rules: tuple[Size, ...], block: tuple[int, ...]) -> dict[str, int]:
    """Return the launch integers of one run."""
    launch = {name: _FREE[name][number] for rule in rules for name in _FREE if str(rule) == name}
    few = len(free) + len(launch) > 2
    unit = {"unit4": 4, "unit16": 16, "unit64": 64, "unitblock": block[0]}.get(style, 0)
    exact = {n: t for rule in rules for n, t in _tiles(rule) if free[n] % t == 0 and t <= _WIDE} if style == "exact" else {}
    wraps = {axis: wrapped(rule, f"g{axis}") for axis, rule in zip(AXES, rules, strict=True)}
    apart = [n for n in free if few and not unit and not any(n in str(rule) for rule in rules)]
    for place, name in enumerate(free):
        table = _UNITS if unit else _FEW if few else _GENERIC
        launch[name] = table[number][place % len(table[number])] * max(unit, 1)
        if unit >= 64:
            launch[name] = unit * (1 + (place + number * (place + 1)) % 5)
        if name in exact:
            launch[name] = exact[name] * _EXACT[number][place % 3]
    if any(wraps.values()):
        launch |= {n: _LENGTH[number] for n in apart[:1]} | {n: _DIVISOR[number] for n in wraps.values() if n and not unit}
    if style == "large" and free:
        longest = max(free, key=lambda name: free[name])
        launch[longest] = int(block[0] * launch.get("gx", 1) * 2) + _GENERIC[number][0]
    if style == "generic" and number == RUNS - 1:  # at least one run with several blocks: what they do to each other shows
        for name, tile in ((n, t) for rule in rules for n, t in _tiles(rule)):
            if name in launch and launch[name] <= tile:
                launch[name] = tile + (5 + 2 * list(free).index(name) if few else launch[name])
            elif name in launch and tile <= _NARROW:
                launch[name] += tile
    for axis, rule in zip(AXES, rules, strict=True):
        by = wraps[axis]
        launch[f"g{axis}"] = launch[by] * _PASSES[number] if by else rule.value(launch)
    return launch


def _tiles(rule: Size) -> Iterator[tuple[str, int]]:
    """Yield the sizes that a rule divides by a tile alone, and the tile."""
    for _, factors in rule.terms:
        for factor in factors:
            if isinstance(factor, Ceil) and len(factor.numerator.terms) == 1 and factor.denominator.constant:
                for name in factor.numerator.terms[0][1]:
                    if isinstance(name, str) and len(factor.numerator.terms[0][1]) == 1:
                        yield name, factor.denominator.constant


def _grids(grid: tuple[int, ...], block: tuple[int, ...], free: Mapping[str, int], seen: Hints) -> list[tuple[Size, Size, Size]]:
    """Return the rules that give this grid, likeliest first: each size used for one axis, one that the kernel compares with it.

    Where it compares an axis with nothing, the last block is no larger than it should be: hardly a quotient rounded up.
    """
    options = []
    for axis, blocks, threads in zip(AXES, grid, block, strict=True):
        by = [Size.named(p) for p in free if (f"g{axis}", p) in seen.divided and blocks % free[p] == 0]
        own = [q * Size.named(Ceil(Size.named(f"g{axis}"), q)) for q in by]
        near = {p for other, p in seen.compared if other == f"g{axis}"}
        options.append(own or _rules(f"g{axis}", blocks, threads, dict(sorted(free.items(), key=lambda p: p[0] not in near))))
    combined, checked = [], {axis for axis, _ in seen.compared}
    for ranks in itertools.product(*(range(len(o)) for o in options)):
        rules = tuple(o[r] for o, r in zip(options, ranks, strict=True))
        used = [(f"g{axis}", name) for axis, rule in zip(AXES, rules, strict=True) for name in free if name in str(rule)]
        odd = sum(pair not in seen.compared and pair[0] in checked for pair in used)
        odd += sum(f"g{axis}" not in checked and any(_tiles(rule)) for axis, rule in zip(AXES, rules, strict=True) if checked)
        unknown = sum(str(rule) in _FREE for rule in rules)
        combined.append((odd, len(used) - len({name for _, name in used}), sum(ranks) + 3 * unknown, ranks, rules))
    combined.sort(key=lambda c: c[:4])
    return [rules for *_, rules in combined[:_MOST_PLANS]]  # type: ignore[misc]


def _rules(name: str, blocks: int, threads: int, free: Mapping[str, int]) -> list[Size]:
    named = {p: Size.named(p) for p in free}
    found: list[Size] = []

    def offer(rule: Size, value: int) -> None:
        if value == blocks and rule not in found:
            found.append(rule)

    if blocks == 1:
        found.append(Size.of(1))
    for p, v in free.items():
        offer(Size.named(Ceil(named[p], Size.of(threads))) if threads > 1 else named[p], -(-v // threads))
    start = 1 if blocks == 1 else 0
    if name == "gx" and threads > 1:  # rows come before columns in an argument list, and tiles along x are columns
        found[start : start + 2] = found[start : start + 2][::-1]
    for p, v in free.items():
        offer(named[p], v)
    if threads > 32:  # a warp for each
        for p, v in free.items():
            offer(Size.named(Ceil(named[p], Size.of(threads // 32))), -(-v // (threads // 32)))
    for (p, v), (q, w) in itertools.combinations_with_replacement(free.items(), 2):
        offer(named[p] * named[q], v * w)
        if threads > 1:
            offer(Size.named(Ceil(named[p] * named[q], Size.of(threads))), -(-v * w // threads))
    for p, v in free.items() if threads == 1 else ():
        if 0 < blocks - v <= SMALL:  # a rim around
            offer(named[p] + Size.of(blocks - v), blocks)
    for tile in (threads * 2, threads * 4, threads * 8) if threads > 1 else ():
        for p, v in free.items():
            offer(Size.named(Ceil(named[p], Size.of(tile))), -(-v // tile))
    for (p, v), (q, w), (r, u) in itertools.permutations(free.items(), 3):
        offer(Size.named(Ceil(named[p] * (named[q] + named[r]), Size.of(threads))), -(-v * (w + u) // threads))
        offer(Size.named(Ceil(named[p] * named[q] * named[r], Size.of(threads))), -(-v * w * u // threads))
    likely = found[:4]
    for tile in (8, 16, 32, 64, 128, 256):
        for p, v in free.items():
            offer(Size.named(Ceil(named[p], Size.of(tile))), -(-v // tile))
    if blocks == 1:
        tight = [rule for rule in found[1:] if any(v > threads // 2 and v <= threads for v in free.values())]
        return tight[:2] + found[:1] if threads > 1 else found[:1] + tight[:1]
    return [*likely, Size.named(name), *[rule for rule in found if rule not in likely][:2]]
