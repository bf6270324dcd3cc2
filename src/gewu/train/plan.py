"""Where a model fits: cost and memory of a layout in closed form, the choice among layouts, and the study of a plan.

    estimate(config, layout, rows, length, ...)    cost of a step for one device, without tracing: as `walk.cost` counts the step
    choose(config, devices, machine, ...)          layouts that fit, fastest first, or the bytes that miss
    study(config, layout, ...)                     the real step: traced at full size, compiled for virtual devices by a child
                                                   process, projected onto machines of 10^2 to 10^5 devices

The step holds every axis by name, so what a device does is known at any size from its trace on an abstract mesh. Compiling needs
devices: XLA's processor client numbers 2048 of a process and takes what is beyond for another process's, which it refuses; with
a store of processes and gloo (a single process is enough) it compiles for more. `study` cuts dp until `compile_devices` suffice;
dp enters only sizes of groups, so shapes on a device are those of the whole.

Memory: state (float32 parameters, the optimiser's arrays; exact), gradients, what is kept for the backward pass, and the work of
one layer and one block of logits: estimates, within a factor of 2 of those of the trace (3 with cp).
"""

from __future__ import annotations

import json
import math
import os
import resource
import socket
import subprocess
import sys
import time as clock
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Final, NamedTuple

from gewu.core.errors import InputError, ResourceError
from gewu.ops.product import plain
from gewu.train import project
from gewu.train.attention import BLOCK, KEEP
from gewu.train.attention import flops as attention_flops
from gewu.train.config import ModelConfig
from gewu.train.loss import LOGITS
from gewu.train.machines import PUBLISHED, Machine
from gewu.train.machines import machine as machine_of
from gewu.train.mesh import AXES, Layout
from gewu.train.optim import Optimiser
from gewu.train.precision import Precision
from gewu.train.spec import Param, active, count, flat, specs
from gewu.train.walk import Cost, product, sent

PROCESS: Final = 2048
"""Devices that XLA's processor client numbers in one process."""


class Memory(NamedTuple):
    """Bytes of a device: the training state, gradients, activations kept, and the work of one layer or block of logits."""

    state: float
    gradients: float
    kept: float
    work: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self)


class Estimate(NamedTuple):
    """A step of a layout, for one device."""

    cost: Cost
    memory: Memory
    needed: float


@dataclass(frozen=True)
class Choice:
    """A layout and what it comes to: band of seconds, bytes of a device, part of the peak in the middle of the band."""

    layout: Layout
    time: project.Band
    memory: Memory
    mfu: float


def local_bytes(tree: Any, at: Layout) -> float:
    """Return the bytes of a device's pieces of a tree of Params."""
    size = {"float32": 4, "bfloat16": 2, "float8_e4m3fn": 1, "int8": 1, "uint8": 1}
    return float(sum(math.prod(p.local(at)) * size.get(p.dtype, 4) for p in flat(tree).values()))


@cache
def _tree(c: ModelConfig) -> dict[str, Param]:
    return flat(specs(c))


@cache
def model_flops(c: ModelConfig, rows: int, length: int) -> float:
    """Return the flops that a step needs, nothing computed twice: 6 for each weight and token, and attention."""
    weights = active(c) - sum(p.size for name, p in _tree(c).items() if name == "positions" or (name == "embed" and not c.tied))
    return 6.0 * weights * rows * length + 3.0 * c.layers * rows * attention_flops(length, c)


class _Step:
    """Sizes of a step on one device, from which all else follows."""

    def __init__(self, c: ModelConfig, at: Layout, rows: int, length: int, itemsize: int) -> None:
        self.c, self.at, self.s = c, at, itemsize
        self.tree = _tree(c)
        self.b = rows / at.size("dp", "fsdp", "ep") / at.micro
        self.t = length / at.cp
        self.n = self.b * self.t  # tokens of a micro batch; with sp a device of tp holds 1 / tp of them between the parts
        self.mine = self.n / at.tp if at.sp else self.n
        self.layers = c.layers / at.pp
        self.pieces = at.fsdp * at.ep > 1
        self.again = int(at.remat == "layer") + int(at.pp > 1)
        """times that a layer is done again in the backward pass"""
        self.redo = self.again + int(self.pieces and at.remat != "layer")
        """times that attention, experts and gathers are done again: products with weights are kept where weights are gathered"""
        m = self.mine if c.experts else 0
        places = min(m, math.ceil(m * c.top_k / c.experts * c.capacity)) if c.experts and c.capacity else m
        self.ragged = bool(c.experts) and c.capacity == 0 and at.ep == 1 and not (at.sp and at.tp > 1)
        self.slots = m * c.top_k if self.ragged else c.experts * places

    def matrices(self, expert: bool) -> float:
        """Numbers of the weights of one layer on this device: of an expert layer's E / ep experts, or of the rest."""
        found = [p for p in self.tree.values() if p.layered and p.matrix and ("experts" in p.axes) == expert]
        return sum(p.size for p in found) / self.c.layers / self.at.tp / (self.at.ep if expert else 1)

    def products(self) -> Cost:
        """Return the products of a micro batch."""
        c, at = self.c, self.at
        last = "shared_down" if c.shared_hidden else "down"  # its result is not needed again
        spared = self.tree[f"layers/{last}"].size / c.layers / at.tp if f"layers/{last}" in self.tree else 0.0
        dense = 2 * self.n * self.layers * ((3 + self.again) * self.matrices(False) - self.again * spared)
        router = 2 * self.mine * c.width * c.experts * self.layers * (3 + self.redo)
        rows = self.slots * (at.tp if at.sp else 1) / (1 if self.ragged else c.experts or 1)
        experts = 2 * rows * self.layers * self.matrices(True) * (at.ep if not self.ragged else 1 / c.experts) * (3 + self.redo)
        inner = 0.5 if at.cp > 1 or self.t > KEEP else 0  # scores are made again, what they gather is not
        attention = self.scores() * self.layers * self.b * (3 + self.redo + inner)
        head = 6 * self.n * c.width * c.vocab / at.tp
        total = dense + router + experts + attention + head
        weights = self.layers * (self.matrices(False) + self.matrices(True)) * 3 * self.s
        return product(total, weights + total / 512 * self.s, "estimate")

    def scores(self) -> float:
        """Return flops of attention of one row and layer, forward."""
        c, at, t = self.c, self.at, self.t
        if at.cp > 1:
            seen = (t / 2) ** 2 * (3 + 2 * (at.cp - 1)) if c.causal else t * t * at.cp
        else:
            starts = range(0, int(t), BLOCK)
            seen = sum((min(lo + BLOCK, t) - lo) * self.keys(lo) for lo in starts)
        return 4.0 * c.heads * c.C / at.tp * seen

    def keys(self, lo: int) -> float:
        """Return how many keys the block of queries from `lo` meets."""
        c, t = self.c, self.t
        first = max(0, lo - c.window + 1) if c.window else 0
        high = min(lo + BLOCK, t)
        return (high if c.causal else min(t, high + c.window - 1) if c.window else t) - first

    def collectives(self) -> Cost:
        """Return the collectives of a micro batch."""
        c, at, s, L = self.c, self.at, self.s, self.layers
        total = Cost()
        for p in self.tree.values():
            if (axes := p.pieces(at)) and not (p.exact and not p.layered):
                group, piece = at.size(*axes), math.prod(p.local(at)) * (4 if p.exact else s) / (L if p.layered else 1)
                times = 1 + self.redo if p.layered else 1
                calls = L if p.layered else 1
                total += sent("all-gather", axes, group, piece, times * calls)
                total += sent("reduce-scatter", axes, group, piece * group, calls)
        if at.tp > 1:
            stream, moe = self.n * c.width * s, bool(c.experts)
            parts = 2 if not moe or c.shared_hidden else 1
            again = self.redo * (parts - 1 if moe or parts > 1 else 1)
            if at.sp:
                up = L * (2 * parts + parts * self.redo) + 2
                total += sent("all-gather", ("tp",), at.tp, stream / at.tp, up)
                down = L * (2 * parts + again) + 2
                total += sent("reduce-scatter", ("tp",), at.tp, stream, down)
            else:
                calls = L * (2 * parts + again) + 2
                total += sent("all-reduce", ("tp",), at.tp, stream, calls)
            if moe:
                buffer, times = self.slots * c.width * s, L * (2 + self.redo)
                if at.sp:
                    total += sent("all-gather", ("tp",), at.tp, buffer, times)
                    total += sent("reduce-scatter", ("tp",), at.tp, buffer * at.tp, times)
                else:
                    total += sent("all-reduce", ("tp",), at.tp, buffer, times)
        if at.ep > 1:
            calls = 2 * L * (2 + self.redo)
            total += sent("all-to-all", ("ep",), at.ep, self.slots * c.width * s, calls)
        if at.cp > 1:
            calls = 2 * L * (2 + self.redo) * (at.cp - 1)
            total += sent("permute", ("cp",), at.cp, self.n * c.K / at.tp * c.C * s, calls)
        if at.pp > 1:
            ticks = at.interleave * at.micro + 2 * (at.pp - 1) + (at.interleave - 1) * at.pp  # idle ones send too
            calls = 2 * ticks / at.micro
            total += sent("permute", ("pp",), at.pp, self.mine * c.width * s, calls)
        return total

    def sums(self) -> Cost:
        """Return the sums of gradients, once a step."""
        total = Cost()
        for p in self.tree.values():
            if axes := p.summed(self.at):
                total += sent("all-reduce", axes, self.at.size(*axes), math.prod(p.local(self.at)) * 4)
        return total

    def cost(self) -> Cost:
        """Return the cost of a step."""
        return (self.products() + self.collectives()).times(self.at.micro) + self.sums()

    def memory(self, optimiser: Any) -> Memory:
        """Return the bytes of a device."""
        c, at, s = self.c, self.at, self.s
        tree = specs(c)
        params = local_bytes(tree, at)
        stream = self.mine * c.width * s
        inner = self.n * (c.heads * 2 + c.K * 2) * c.C / at.tp * s + 6 * stream  # q, k, v, gathered; norms and the stream
        ffn = 0 if c.experts else c.F
        inner += self.n * ((ffn or c.shared_hidden) * (c.gates + 1)) / at.tp * s
        experts = (
            self.slots * (at.tp if at.sp else 1) * ((c.gates + 1) * c.expert_F / at.tp + 3 * c.width) * s if c.experts else 0
        )
        scores = self.b * self.scores() / c.C / 4 * (4 + s) if at.cp == 1 and self.t <= KEEP else 0
        block = self.b * c.heads / at.tp * (BLOCK if at.cp == 1 else self.t / 2) * self.t * 12
        weights = (self.matrices(False) + self.matrices(True)) * s if self.pieces else 0
        whole = inner + experts + scores
        products = inner - 4 * stream - self.n * c.heads * c.C / at.tp * s  # what is kept where weights are gathered
        each = stream if at.remat == "layer" else products if self.pieces else whole
        waiting = (2 * at.pp - 1) * at.interleave * stream if at.pp > 1 else 0  # inputs of a stage whose backward pass is to come
        kept = self.layers / at.interleave * each + waiting
        head = c.vocab * c.width / at.tp * (4 + s) + 3 * 4 * min(LOGITS, self.n * c.vocab / at.tp) if c.vocab else 0
        work = max(2 * weights + 2 * whole + block, head)
        return Memory(params + local_bytes(optimiser.state(tree), at), params * (2 if at.micro > 1 else 1), kept, work)


def estimate(
    c: ModelConfig, at: Layout, rows: int, length: int, precision: Precision | None = None, optimiser: Any = None
) -> Estimate:
    """Return what a step costs a device, in closed form.

    Args:
        c, at: model and layout.
        rows, length: of the global batch.
        precision, optimiser: bf16 and AdamW by default.

    Raises:
        InputError: the layout does not cut the model.
    """
    step = _Step(c, at, rows, length, _itemsize(precision))
    return Estimate(step.cost(), step.memory(optimiser or Optimiser()), model_flops(c, rows, length) / at.devices)


def _itemsize(precision: Precision | None) -> int:
    return 4 if precision is not None and precision.name == "fp32" else 2


def published() -> list[project.Case]:
    """Return the published runs, each with what a step of this program costs in that layout."""
    cases = []
    for run in PUBLISHED:
        c, at, where = ModelConfig(**run.model), Layout.of(run.layout), machine_of(run.machine)
        if run.slice:
            where = replace(where, links=(replace(where.links[0], span=run.slice), *where.links[1:]))
        cost, memory, needed = estimate(c, at, run.rows, run.length)
        cases.append(project.Case(run, cost, memory.state, needed, at, where))
    return cases


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def layouts(c: ModelConfig, devices: int, rows: int, length: int, node: int) -> Iterator[Layout]:
    """Yield the layouts that cut a model and a batch, tp within a node."""
    sizes = _divisors(devices)
    for tp in (
        d for d in sizes if d <= max(node, 1) and c.K % d == 0 and not (c.experts and c.expert_F % d) and c.vocab % d == 0
    ):
        for pp in (d for d in sizes if c.layers % d == 0 and devices % (tp * d) == 0 and (d == 1 or d <= 64)):
            for ep in _divisors(math.gcd(devices // tp // pp, c.experts)) if c.experts else [1]:
                for cp in (d for d in (1, 2, 4, 8, 16) if devices % (tp * pp * ep * d) == 0 and length % (2 * d) == 0):
                    if cp > 1 and length // cp < 1024:
                        continue
                    rest = devices // (tp * pp * ep * cp)
                    for fsdp in _divisors(rest):
                        each = rows / (rest * ep)
                        if each >= 1 and each == int(each):
                            yield from _variants(int(each), Layout(pp, rest // fsdp, fsdp, ep, cp, tp, sp=tp > 1))


def _variants(each: int, at: Layout) -> Iterator[Layout]:
    if at.pp > 1:
        if each >= at.pp:
            yield replace(at, micro=each, scan=True)
        return
    for micro in sorted({1, max(d for d in _divisors(each) if d * d <= each), each}):
        for remat in ("none", "layer"):
            yield replace(at, micro=micro, remat=remat)


def choose(
    config: ModelConfig,
    devices: int,
    machine: Machine,
    batch: int,
    length: int,
    precision: Precision | None = None,
    optimiser: Any = None,
    most: int = 5,
) -> list[Choice]:
    """Return the layouts of a model on devices that fit their memory, fastest first.

    Args:
        config: the model.
        devices: how many.
        machine: what they are.
        batch: rows of a step over all devices.
        length: tokens of a row.
        precision, optimiser: bf16 and AdamW by default.
        most: how many to return.

    Raises:
        InputError: no layout deals this batch and model to so many devices.
        ResourceError: none fits; says how many bytes miss for the smallest.
    """
    found: list[Choice] = []
    optimiser, needed = optimiser or Optimiser(), model_flops(config, batch, length)
    smallest: tuple[float, Layout, Memory] | None = None
    for at in layouts(config, devices, batch, length, machine.node):
        step = _Step(config, at, batch, length, _itemsize(precision))
        try:
            memory = step.memory(optimiser)
        except InputError:
            continue
        if memory.total <= machine.memory:
            seconds = project.band(step.cost(), memory.state, at, machine)
            found.append(Choice(at, seconds, memory, needed / devices / machine.flops / seconds.middle))
        elif smallest is None or memory.total < smallest[0]:
            smallest = (memory.total, at, memory)
    if found:
        return sorted(found, key=lambda choice: choice.time.middle)[:most]
    if smallest is None:
        message = "no layout deals this batch and model to the devices: rows, layers, heads and widths must divide"
        raise InputError(message, key="devices", value=devices, allowed=f"divisors that go with batch = {batch} rows")
    total, at, memory = smallest
    parts = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in memory._asdict().items())
    raise ResourceError(
        f"the model does not fit: {int(total - machine.memory)} bytes miss on each device",
        key="layout",
        value=str(at),
        allowed=f"{machine.memory / 1e9:.1f} GB of {machine.name}; the smallest layout takes {total / 1e9:.2f} GB ({parts})",
        hint="take more devices, a smaller batch or a smaller model",
    )


@dataclass(frozen=True)
class Study:
    """A plan: what was traced at full size, what was compiled, what is projected.

    Attributes:
        parameters, active: numbers of the model, and those that work on a token.
        layout, devices, rows, length: the plan.
        state: bytes of the training state of a device, exact.
        alive: bytes alive at most on a device, estimated from the trace.
        traced: cost for a device, from the trace at full size.
        needed: flops of a device if nothing were computed twice.
        compiled: what the child found: devices, layout, seconds, rss (bytes of the host), arguments, temporaries (bytes of a
            device, by XLA), flops, collectives [kind, axes, devices, calls, bytes].
        projected: rows {"devices", "cores", "seconds", "mfu", "efficiency"} with [low, middle, high] each.
        constant: what the constant predictor says of efficiency: 1.
    """

    parameters: int
    active: int
    layout: str
    devices: int
    rows: int
    length: int
    state: float
    alive: float
    traced: Cost
    needed: float
    compiled: dict[str, Any]
    projected: list[dict[str, Any]]
    constant: float = 1.0


def listed(cost: Cost) -> list[list[Any]]:
    """Return the collectives of a cost as rows [kind, axes, devices, calls, bytes], most bytes first."""
    rows = [[kind, list(axes), group, *traffic] for (kind, axes, group), traffic in cost.collectives.items()]
    return sorted(rows, key=lambda row: -row[4])


def _traced(c: ModelConfig, at: Layout, rows: int, length: int, p: Precision, optimiser: Any, mesh: Any) -> tuple[Any, Any]:
    from gewu.train.step import Trainer

    trainer = Trainer(c, at, optimiser, p, mesh)
    program = trainer.program(("targets", "tokens"))
    with plain():  # what runs elsewhere does not call the kernels of this processor
        return trainer, program.trace(trainer.abstract(), trainer.abstract_batch(rows, length))


def study(
    config: ModelConfig,
    layout: Layout,
    batch: int,
    length: int,
    precision: Precision,
    optimiser: Any,
    machine: Machine,
    *,
    compile_devices: int = PROCESS,
) -> Study:
    """Return the study of a plan.

    Args:
        config, layout, precision, optimiser: of the step.
        batch, length: rows and tokens of a row of a step.
        machine: onto which it is projected.
        compile_devices: virtual devices for which it is compiled at most; 0 compiles nothing.

    Raises:
        InputError: the layout does not fit the model or cannot be cut to `compile_devices`.
        ResourceError: the child process failed.
    """
    from gewu.train import walk

    layout = replace(layout, scan=True)
    trainer, step = _traced(config, layout, batch, length, precision, optimiser, layout.abstract())
    state = local_bytes(trainer.specs, layout) + local_bytes(optimiser.state(trainer.specs), layout)
    compiled = compile_apart(config, layout, batch, length, precision, optimiser, compile_devices) if compile_devices else {}
    rows = projection(config, layout, batch, length, precision, optimiser, machine)
    needed = model_flops(config, batch, length) / layout.devices
    traced = walk.cost(step.jaxpr)
    alive = walk.memory(step.jaxpr)
    return Study(
        count(specs(config)),
        active(config),
        str(layout),
        layout.devices,
        batch,
        length,
        state,
        alive,
        traced,
        needed,
        compiled,
        rows,
    )


def projection(
    c: ModelConfig, at: Layout, rows: int, length: int, p: Precision, optimiser: Any, machine: Machine
) -> list[dict[str, Any]]:
    """Return time, part of the peak and parallel efficiency from the smallest dp on, as the number of replicas grows.

    The rows of a device stay what they are (weak scaling). Efficiency is against the first row.
    """
    found, unit, each = [], at.devices // at.dp, rows / at.dp
    top = max(1e5, 1e7 / machine.cores) if machine.cores > 1 else 1e5
    first: project.Band | None = None
    dp = 1
    while unit * dp <= top * 1.5:
        here = replace(at, dp=dp)
        cost, memory, needed = estimate(c, here, int(each * dp), length, p, optimiser)
        seconds = project.band(cost, memory.state, here, machine)
        first = first or seconds
        bands = [(seconds.low, first.low), (seconds.middle, first.middle), (seconds.high, first.high)]
        found.append(
            {
                "devices": here.devices,
                "cores": here.devices * machine.cores,
                "seconds": [s for s, _ in bands],
                "mfu": [needed / machine.flops / s for s, _ in reversed(bands)],
                "efficiency": sorted(f / s for s, f in bands),
            }
        )
        dp *= 2 if dp < 8 or unit * dp * 4 > top else 4
    return found


def fitting(at: Layout, rows: int, devices: int) -> tuple[Layout, int]:
    """Return the layout with a smaller dp, and its rows, so that devices suffice; shapes on a device are the same.

    Raises:
        InputError: the other axes take more devices.
    """
    unit = at.devices // at.dp
    if unit > devices:
        raise InputError("cannot be compiled on so few devices", key="compile_devices", value=devices, allowed=f"{unit} or more")
    dp = max(d for d in _divisors(at.dp) if d * unit <= devices)
    return replace(at, dp=dp), rows * dp // at.dp


def compile_apart(
    c: ModelConfig, at: Layout, rows: int, length: int, p: Precision, optimiser: Any, devices: int
) -> dict[str, Any]:
    """Return what a child process finds when it compiles the step for virtual devices: see `Study.compiled`."""
    at, rows = fitting(at, rows, devices)
    model = asdict(c) | {"inputs": []}
    task = {
        "model": model,
        "layout": asdict(at),
        "rows": rows,
        "length": length,
        "precision": p.name,
        "optimiser": asdict(optimiser),
    }
    flags = f"--xla_force_host_platform_device_count={at.devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    child = subprocess.run(
        [sys.executable, "-m", "gewu.train.plan"],
        input=json.dumps(task),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = child.stdout.strip().splitlines()
    if child.returncode or not lines:
        reason = (child.stderr.strip().splitlines() or ["no output"])[-1]
        raise ResourceError("the step could not be compiled", key="compile_devices", value=at.devices, hint=reason[:300])
    return dict(json.loads(lines[-1]))


def _child(task: dict[str, Any]) -> dict[str, Any]:
    import jax

    from gewu.train import hlo

    at = Layout(**task["layout"])
    if at.devices > PROCESS:  # a store of processes, of which there is one: device numbers may then be any
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, 1, 0)
    begin = clock.perf_counter()
    optimiser = Optimiser(**{key: tuple(v) if isinstance(v, list) else v for key, v in task["optimiser"].items()})
    config = ModelConfig(**(task["model"] | {"inputs": ()}))
    _, step = _traced(config, at, task["rows"], task["length"], Precision.of(task["precision"]), optimiser, None)
    program = step.lower().compile()
    seconds = clock.perf_counter() - begin
    memory = program.memory_analysis()
    cost = hlo.cost(program.as_text(), {axis: at.size(axis) for axis in AXES})
    return {
        "devices": at.devices,
        "layout": str(at),
        "seconds": seconds,
        "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "flops": cost.flops,
        "collectives": listed(cost),
    }


if __name__ == "__main__":
    print(json.dumps(_child(json.load(sys.stdin))))
    sys.stdout.flush()
    os._exit(0)  # thousands of threads of virtual devices take longer to join than the work took
