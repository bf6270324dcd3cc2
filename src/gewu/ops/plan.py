"""Which small launches to look at: sizes and grids that stand for the real launch.

A kernel is traced at sizes of a few dozen, three times with sizes that have nothing in common.  How the grid follows from the
sizes is not in the kernel but in the host code, which nobody has: it is inferred from the real launch, `(n + 255) / 256` blocks
for n = 100,000.  Where several rules fit, they are tried in order; where none does, the grid is a size of its own.

Integers up to SMALL are taken as what they are (a kernel width, a flag, a number of heads): the formula holds for these values
only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gewu.ops.sizes import Ceil, Size

SMALL: Final = 16
RUNS: Final = 3
AXES: Final = "xyz"
_FREE: Final = {"gx": (3, 5, 4), "gy": (2, 3, 5), "gz": (4, 2, 3)}
_GENERIC: Final = ((21, 26, 19, 33, 38, 29, 43, 47), (25, 18, 31, 22, 35, 41, 37, 28), (34, 23, 27, 39, 20, 30, 46, 45))
_FEW: Final = ((11, 14, 9, 17, 12, 15, 19, 13), (13, 9, 15, 11, 17, 14, 12, 18), (17, 12, 14, 13, 10, 11, 16, 9))
_UNITS: Final = ((5, 7, 9, 6, 11, 8, 13, 10), (6, 11, 5, 8, 7, 13, 9, 12), (9, 5, 8, 11, 6, 7, 10, 14))
_MOST_PLANS: Final = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to read a launch: which integers are fixed, how the grid follows, and the sizes of the runs."""

    pinned: Mapping[int, int]
    grid: tuple[Size, Size, Size]
    sizes: tuple[Mapping[str, int], ...]

    @property
    def names(self) -> list[str]:
        """The launch integers that vary from run to run."""
        vary = [name for name in self.sizes[0] if len({run[name] for run in self.sizes}) > 1]
        return sorted(vary, key=lambda name: (name[0] == "g", name))


def integers(args: Sequence[Any]) -> dict[int, int]:
    """Return the integer arguments by number."""
    return {i: int(a) for i, a in enumerate(args) if isinstance(a, np.integer)}


def plans(grid: tuple[int, int, int], block: tuple[int, int, int], args: Sequence[Any]) -> Iterator[Plan]:
    """Yield ways to read a launch, likeliest first."""
    values = integers(args)
    pinned = {i: v for i, v in values.items() if v <= SMALL}
    free = {f"p{i}": v for i, v in values.items() if v > SMALL}
    made = 0
    for style in ("generic", "unit4", "large", "unit16", "unit64", "unitblock"):
        for rules in _grids(grid, block, free):
            if style == "large" and not any(str(rule) in _FREE for rule in rules):
                continue
            yield Plan(pinned, rules, tuple(_run(style, number, list(free), rules, block, free) for number in range(RUNS)))
            made += 1
            if made >= _MOST_PLANS * 6:
                return


def _run(
    style: str, number: int, names: list[str], rules: tuple[Size, ...], block: tuple[int, ...], real: Mapping[str, int]
) -> dict[str, int]:
    """Return the launch integers of one run."""
    launch = {name: _FREE[name][number] for rule in rules for name in _FREE if str(rule) == name}
    few = len(names) + len(launch) > 2
    unit = {"generic": 0, "large": 0, "unit4": 4, "unit16": 16, "unit64": 64, "unitblock": block[0]}[style]
    for place, name in enumerate(names):
        table = _UNITS if unit else _FEW if few else _GENERIC
        launch[name] = table[number][place % len(table[number])] * max(unit, 1)
        if unit >= 64:
            launch[name] = unit * (1 + (place + number * (place + 1)) % 5)
    if style == "large" and names:
        longest = max(names, key=lambda name: real[name])
        launch[longest] = int(block[0] * launch.get("gx", 1) * 2) + _GENERIC[number][0]
    if style == "generic" and number == RUNS - 1:  # at least one run with several blocks: what they do to each other shows
        for name, tile in ((n, t) for rule in rules for n, t in _tiles(rule)):
            if name in launch and launch[name] <= tile:
                launch[name] += tile
    for axis, rule in zip(AXES, rules, strict=True):
        launch[f"g{axis}"] = rule.value(launch)
    return launch


def _tiles(rule: Size) -> Iterator[tuple[str, int]]:
    """Yield the sizes that a rule divides by a tile alone, and the tile."""
    for _, factors in rule.terms:
        for factor in factors:
            if isinstance(factor, Ceil) and len(factor.numerator.terms) == 1 and factor.denominator.constant:
                for name in factor.numerator.terms[0][1]:
                    if isinstance(name, str) and len(factor.numerator.terms[0][1]) == 1:
                        yield name, factor.denominator.constant


def _grids(grid: tuple[int, ...], block: tuple[int, ...], free: Mapping[str, int]) -> list[tuple[Size, Size, Size]]:
    """Return the rules that give this grid, likeliest first: each size used for one axis."""
    options = [_rules(f"g{axis}", g, b, free) for axis, g, b in zip(AXES, grid, block, strict=True)]
    combined = []
    for ranks in itertools.product(*(range(len(o)) for o in options)):
        rules = tuple(o[r] for o, r in zip(options, ranks, strict=True))
        used = [name for rule in rules for name in free if name in str(rule)]
        unknown = sum(str(rule) in _FREE for rule in rules)
        combined.append((len(used) - len(set(used)), sum(ranks) + 3 * unknown, ranks, rules))
    combined.sort(key=lambda c: c[:3])
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
