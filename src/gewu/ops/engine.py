"""The engine `ops`: from a file of kernels to a report on what they compute, how fast, and objects for other processors.

Kernels of CUDA source, PTX or machine code are launched as the job says, or as `guess` finds a way, and examined one after the
other (`survey`); lifted ones and those that run as they are written become objects for the targets (`aot`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from gewu.core import schema
from gewu.core.context import Context
from gewu.core.errors import GewuError, InputError
from gewu.core.figure import Figure
from gewu.core.files import read_capped

SUMMARY: Final = "Kernels of CUDA source, PTX or machine code: lifted, verified and compiled for other processors"
REFERENCES: Final = {
    "williams2009": """@article{williams2009,
  author = {Williams, Samuel and Waterman, Andrew and Patterson, David},
  title = {Roofline: An Insightful Visual Performance Model for Multicore Architectures},
  journal = {Commun. ACM}, volume = {52}, pages = {65}, year = {2009}, doi = {10.1145/1498765.1498785}
}"""
}
TARGETS: Final = (
    *("x86_64", "x86_64-v3", "x86_64-v4", "aarch64", "aarch64-sve", "riscv64", "riscv64-v", "loongarch64", "loongarch64-lasx"),
    *("gfx90a", "gfx942", "sm_80", "sm_90"),
)
STATUSES: Final = ("lifted", "spmd", "unlaunched", "refused")
_LIMIT: Final = 1 << 27


@dataclass(frozen=True)
class Config:
    """The `[ops]` table of a job."""

    source: str = schema.field(file=True, meaning="CUDA source (.cu), PTX (.ptx) or machine code (.cubin)")
    arch: str = schema.field("sm_90", choices=("sm_80", "sm_90"), meaning="processor for which CUDA source is compiled first")
    kernels: tuple[str, ...] = schema.field((), meaning="names of the kernels to examine; none given: all")
    launches: tuple[str, ...] = schema.field(
        (), meaning="how to launch, as name<<<grid, block>>>(f32[1000], i32[50] < 8, 2.0, 1000); kernels not named are guessed"
    )
    targets: tuple[str, ...] = schema.field(
        ("x86_64", "aarch64"), choices=TARGETS, meaning="processors to make objects for; none: make none"
    )
    size: int = schema.field(1 << 16, unit="1", minimum=64, maximum=1 << 20, meaning="elements of launches that are guessed")
    seed: int = schema.field(1, minimum=0, meaning="seed of the random numbers")

    def check(self) -> None:
        """Refuse launches that cannot be read."""
        from gewu.ops.survey import parse_launch

        for text in self.launches:
            parse_launch(text, self.seed)


def run(config: Config, ctx: Context) -> None:
    """Examine every kernel, make objects, and record what was found."""
    from gewu.ops.aot import ahead_of_time_bytes
    from gewu.ops.launch import load
    from gewu.ops.survey import Finding, Machine, examine, guessed_constants, parse_launch

    ctx.cite("williams2009")
    with ctx.phase("reading"):
        module = load(config.source, arch=config.arch)
        constants = guessed_constants(module, config.seed)
        if constants:
            ctx.warn(f"random numbers stand for variables that only the host sets: {', '.join(constants)}")
            module = load(config.source, arch=config.arch, constants=constants)
    for name, reason in module.refused.items():
        ctx.log(f"{name}: refused: {reason}")
    names = [module[name].name for name in config.kernels] or module.names
    given: dict[str, list[Any]] = {}
    for text in config.launches:
        name, launch = parse_launch(text, config.seed)
        given.setdefault(module[name].name, []).append(launch)
    state = ctx.restored or {"rows": [], "machine": []}
    rows, machine = list(state["rows"]), list(state["machine"])
    if not machine:
        with ctx.phase("roofline"):
            measured = Machine.measured()
        machine = [measured.bytes_s, measured.flops_s]
    objects: dict[str, int] = {}
    for name in names[len(rows) :]:
        with ctx.phase("kernels"):
            found = examine(module, name, given.get(name, ()), Machine(*machine), size=config.size, seed=config.seed)
        rows.append(asdict(found))
        ctx.log(f"{name}: {found.status}" + (f": {found.reason}" if found.reason else ""))
        with ctx.phase("objects"):
            _objects(config, ctx, module[name], found, objects, ahead_of_time_bytes)
        ctx.progress(len(rows), len(names), roofline=found.roofline)
        stop = ctx.stop_requested
        ctx.checkpoint({"rows": rows, "machine": machine})
        if stop:
            return
    findings = [Finding(**row) for row in rows] + [Finding(n, "refused", r) for n, r in module.refused.items()]
    _record(ctx, findings, machine)


def _objects(config: Config, ctx: Context, operator: Any, found: Any, objects: dict[str, int], make: Any) -> None:
    """Write the objects of one kernel, and its header; a target that cannot is a warning."""
    if found.status not in ("lifted", "spmd"):
        return
    for target in config.targets:
        try:
            files = make(operator, target)
        except GewuError as error:
            ctx.warn(f"{operator.name}: no object for {target}: {error}")
            continue
        for name, data in files.items():
            ctx.file(name, data)
        objects[target] = objects.get(target, 0) + 1


def _record(ctx: Context, findings: list[Any], machine: list[float]) -> None:
    counts = {status: sum(f.status == status for f in findings) for status in STATUSES}
    ctx.number("kernels", len(findings), "1")
    for status, count in counts.items():
        ctx.number(f"kernels_{status}", count, "1")
    errors = [f.error for f in findings if f.error >= 0]
    if errors:
        ctx.number("worst_error", max(errors), "1")
    timed = [f for f in findings if f.seconds > 0 and f.roofline > 0]
    if timed:
        ctx.number("roofline_mean", math.exp(sum(math.log(f.roofline) for f in timed) / len(timed)), "1")
        labels = " ".join(f.name for f in timed)
        ctx.save(
            "roofline", np.array([f.roofline for f in timed]), ("kernel",), "1",
            long_name="least time that the machine allows over the time of a launch", labels=labels,
            status=" ".join(f.status for f in timed),
        )  # fmt: skip
        ctx.save("time_s", np.array([f.seconds for f in timed]), ("kernel",), "s", long_name="time of a launch", labels=labels)
    ctx.number("bandwidth_gb_s", machine[0] * 1e-9, "GB/s")
    ctx.number("peak_gflop_s", machine[1] * 1e-9, "GFlop/s")
    ctx.file("formulas.txt", "\n".join(_paragraph(f) for f in findings).encode() or b"no kernel\n")


def _paragraph(found: Any) -> str:
    lines = [f"{found.name}: {found.status}" + (f" ({found.reason})" if found.reason else "")]
    if found.launch:
        lines.append(f"  launched as {found.launch}")
    if found.formula:
        lines += [f"  {line}" for line in found.formula.splitlines()]
    if found.error >= 0:
        lines.append(f"  error {found.error:.2g}, {found.seconds * 1e6:.1f} microseconds, {found.roofline:.3g} of the roofline")
    return "\n".join(lines) + "\n"


def recognise(path: Path) -> dict[str, Any] | None:
    """Return the `[ops]` table for a file of kernels, or None for other files."""
    suffix = path.suffix.lower()
    if suffix in (".cu", ".ptx", ".cubin"):
        return {"source": str(path)}
    if suffix in ("", ".bin", ".o"):
        head = _head(path)
        if head[:4] == b"\x7fELF" and head[18:20] == b"\xbe\x00":  # machine 190: CUDA
            return {"source": str(path)}
    return None


def _head(path: Path) -> bytes:
    try:
        return read_capped(path, _LIMIT)[:64]
    except InputError:
        return b""


def figures(result: Any) -> Iterator[Figure]:
    """Yield the figures of a report."""
    from gewu.ops import figures as pictures

    return pictures.figures(result)
