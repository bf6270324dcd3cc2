"""How long a step takes on a machine that is described, not there.

    t = (products / (peak · gemm) + exposed communication) · (1 + bubble) + update
    exposed = communication - overlap · min(communication, products)
    bubble = (pp - 1) / (micro · interleave)     (Narayanan et al., arXiv:2104.04473; stages in lockstep idle up to twice as long)
    update = 2 · bytes of the state / memory bandwidth

A collective goes through the levels of the network one after the other (rings inside rings): with m_i of its g devices inside a
unit of level i, a device sends size · (1/m_(i-1) - 1/m_i) there, in pairwise exchanges size · (m_i - m_(i-1)) / g; the slowest
level counts, each call waits log2 of the devices of every level. How axes lie on the machine follows from their order in the
mesh, innermost `tp`.

Two numbers are not known before a machine was measured: `gemm`, what a program reaches of the peak in products, and `overlap`,
which part of communication is hidden. So what is given is a band over both. `blind` calibrates gemm on one published table and
tries the rest; `scaling` calibrates on the smallest run of each series and predicts how efficiency falls with size. Both stand
beside the predictor that says "as fast as in the calibration".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gewu.train.machines import Link, Machine, Run
from gewu.train.mesh import AXES, Layout
from gewu.train.walk import Cost

GEMM: Final = (0.4, 0.9)
"""What programs reach of the peak in products: the lowest and highest that published runs show (bench/train/plan.json)."""
OVERLAP: Final = (0.0, 0.9)
"""Part of the communication that is hidden: nothing is known."""


@dataclass(frozen=True)
class Time:
    """Seconds of a step, in parts: products, communication that is not hidden, idle in the pipeline, update of the state."""

    products: float
    exposed: float
    bubble: float
    update: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.products + self.exposed + self.bubble + self.update


@dataclass(frozen=True)
class Band:
    """A projected figure: at worst, in the middle, at best of what is not known."""

    low: float
    middle: float
    high: float


def inside(axes: Sequence[str], at: Layout, span: int) -> int:
    """Return how many devices of a group over axes stand in one unit of `span` devices that follow each other."""
    count = 1
    for axis in axes:
        stride = at.size(*AXES[AXES.index(axis) + 1 :])
        count *= min(at.size(axis), max(1, span // stride)) if span else at.size(axis)
    return count


def _collective(kind: str, size: float, calls: float, members: Sequence[int], links: Sequence[Link]) -> float:
    group, before, slowest, wait = members[-1], 1, 0.0, 0.0
    for link, now in zip(links, members, strict=True):
        if now > before:
            if kind == "permute":
                slowest = max(slowest, size / link.bandwidth)
            else:
                whole = size * group / (group - 1)
                share = (now - before) / group if kind == "all-to-all" else 1 / before - 1 / now
                slowest = max(slowest, whole * share / link.bandwidth)
            wait += calls * link.latency * (1 if kind == "permute" else math.ceil(math.log2(now / before)))
        before = now
    return slowest + wait


def communication(cost: Cost, at: Layout, machine: Machine) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return seconds by kind and axes of the collectives."""
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    for (kind, axes, _), traffic in cost.collectives.items():
        members = [inside(axes, at, link.span) for link in machine.links]
        seconds = _collective(kind, traffic.bytes, traffic.calls, members, machine.links)
        found[kind, axes] = found.get((kind, axes), 0.0) + seconds
    return found


def time(cost: Cost, state: float, at: Layout, machine: Machine, gemm: float, overlap: float) -> Time:
    """Return the time of a step.

    Args:
        cost: of one device (`walk.cost`, `plan.estimate`).
        state: bytes of the training state of a device.
        at: the layout.
        machine: where.
        gemm: part of the peak that products reach.
        overlap: part of the communication that is hidden behind products, where there are enough of them.
    """
    return _time(cost, sum(communication(cost, at, machine).values()), state, at, machine, gemm, overlap)


def _time(cost: Cost, sent: float, state: float, at: Layout, machine: Machine, gemm: float, overlap: float) -> Time:
    products = cost.flops / (machine.flops * gemm)
    exposed = sent - overlap * min(sent, products)
    bubble = (products + exposed) * (at.pp - 1) / (at.micro * at.interleave)
    return Time(products, exposed, bubble, 2 * state / machine.bandwidth)


def band(cost: Cost, state: float, at: Layout, machine: Machine) -> Band:
    """Return the band of the time of a step, in s."""
    sent = sum(communication(cost, at, machine).values())
    middle = (sum(GEMM) / 2, sum(OVERLAP) / 2)
    best, between, worst = (
        _time(cost, sent, state, at, machine, *known).total for known in ((GEMM[1], OVERLAP[1]), middle, (GEMM[0], OVERLAP[0]))
    )
    return Band(best, between, worst)


@dataclass(frozen=True)
class Case:
    """A published run, and what a step of it costs a device.

    Attributes:
        run: as published.
        cost, state: of a device.
        needed: flops of the model for one device, nothing computed twice.
    """

    run: Run
    cost: Cost
    state: float
    needed: float
    at: Layout
    machine: Machine

    def mfu(self, gemm: float, overlap: float) -> float:
        """Return the projected part of the peak."""
        return self.needed / self.machine.flops / time(self.cost, self.state, self.at, self.machine, gemm, overlap).total

    def gemm(self, overlap: float) -> float:
        """Return the part of the peak with which the published speed comes out, at most 1."""
        low, high = 0.01, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self.mfu(middle, overlap) < self.run.mfu else (low, middle)
        return high


@dataclass(frozen=True)
class Trial:
    """How far projections were off, in parts of the published speed, and those of the constant predictor."""

    runs: int
    mean: float
    worst: float
    constant_mean: float
    constant_worst: float
    covered: float
    """part of the runs that lie in the band over overlap"""


def _trial(found: Sequence[tuple[float, float, float, float, float]]) -> Trial:
    ours = [abs(middle / truth - 1) for truth, _, middle, _, _ in found]
    theirs = [abs(constant / truth - 1) for truth, _, _, _, constant in found]
    covered = [low <= truth <= high for truth, low, _, high, _ in found]
    n = len(found)
    return Trial(n, sum(ours) / n, max(ours), sum(theirs) / n, max(theirs), sum(covered) / n)


def _three(case: Case, fitted: Sequence[Case]) -> tuple[float, float, float]:
    """Return the speed of a run at low, middle and high overlap, with the gemm that other runs show at each."""
    values = []
    for overlap in (OVERLAP[0], sum(OVERLAP) / 2, OVERLAP[1]):
        gemm = sum(other.gemm(overlap) for other in fitted) / len(fitted)
        values.append(case.mfu(gemm, overlap))
    return min(values), values[1], max(values)


def blind(cases: Sequence[Case], table: str) -> dict[str, Trial]:
    """Return by machine how well one gemm, the mean over one table of runs, gives the speed of all other runs."""
    fitted = [case for case in cases if case.run.series == table]
    constant = sum(case.run.mfu for case in fitted) / len(fitted)
    found: dict[str, list[tuple[float, float, float, float, float]]] = {}
    for case in cases:
        if case.run.series != table:
            found.setdefault(case.run.machine, []).append((case.run.mfu, *_three(case, fitted), constant))
    return {name: _trial(rows) for name, rows in found.items()}


def scaling(cases: Sequence[Case]) -> Mapping[str, Trial]:
    """Return by series how well the smallest run gives the speed of the larger ones."""
    series: dict[str, list[Case]] = {}
    for case in cases:
        series.setdefault(case.run.series, []).append(case)
    return {
        name: _trial([(case.run.mfu, *_three(case, runs[:1]), runs[0].run.mfu) for case in runs[1:]])
        for name, runs in series.items()
    }
