"""Objects for other processors, linked and run under emulation: `python -m bench.ops.targets` writes `bench/ops/targets.json`.

Each class's optimised kernel is prepared from PTX, on the processor at hand, at the tiny and at the small size.  Then, for every
CPU target, `gewu.ops.aot` makes its object and header; a C driver of a few lines, which includes the header and reads the
arguments, is linked with it (zig cc and musl, from `bench.ops.peers --cross`) and run under qemu-user; the outputs are compared
with NumPy in float64 to the tolerance of the case.  PTX for NVIDIA GPUs is assembled by ptxas, and run without a GPU by gewu's
own reader.

    right    linked, run, and within the tolerance; `error` is the largest error
    made     the object holds the kernels and was linked to a code object; nothing here runs it (AMD GPUs)
    wrong    run, and beyond the tolerance
    failed   not made, not linked, or ended badly; `reason` tells
    library  on GPUs, where the kernel is lifted at neither size: our own operator of the class is made and linked instead
    none     nor is our own operator one formula
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.ops.build import build, compiler
from bench.ops.case import Case, Launch
from bench.ops.cases import CLASSES, quoted
from bench.ops.peers import cross_compiler
from bench.ops.worker import deviation, judged, made
from bench.run import commit, machine, versions
from gewu.core.errors import GewuError
from gewu.ops import gpu, library, llvm
from gewu.ops.aot import ahead_of_time_bytes, c_name
from gewu.ops.elf import read_elf
from gewu.ops.launch import Operator, load

WORK: Final = Path(__file__).resolve().parent / "work"
RECORD: Final = Path(__file__).resolve().parent / "targets.json"
PATIENCE_S: Final = 120
_AMD_GPU: Final = 224  # the machine, and below the kind of a symbol, as ELF numbers them
_FUNCTION: Final = 2
# malloc of zig's C library asks for memory at addresses that qemu 7.2 does not always give, so the program has its own
_DRIVER: Final = """#include <stdlib.h>
#include <unistd.h>

static char memory[1 << 26] __attribute__((aligned(64)));
static size_t used;

static void *take(size_t alignment, size_t bytes)
{{
    size_t start = used;
    used += (bytes + alignment - 1) / alignment * alignment;
    return used > sizeof memory ? NULL : memory + start;
}}
#define aligned_alloc take
#define free(pointer)
#include "{name}.h"

static void pass(int file, void *at, size_t bytes)
{{
    while (bytes) {{
        ssize_t some = file ? write(file, at, bytes) : read(file, at, bytes);
        if (some <= 0) _exit(200);
        at = (char *)at + some;
        bytes -= some;
    }}
}}

int main(void)
{{
{body}
    return 0;
}}
"""


@dataclass(frozen=True)
class Processor:
    """How programs for a target of `llvm.TARGETS` are linked and run."""

    options: tuple[str, ...]
    emulator: tuple[str, ...] = ()


PROCESSORS: Final = {
    "x86_64": Processor(("-target", "x86_64-linux-musl")),
    "aarch64": Processor(("-target", "aarch64-linux-musl"), ("qemu-aarch64",)),
    "aarch64-sve": Processor(("-target", "aarch64-linux-musl"), ("qemu-aarch64", "-cpu", "max")),
    "riscv64": Processor(("-target", "riscv64-linux-musl"), ("qemu-riscv64",)),
    "riscv64-v": Processor(("-target", "riscv64-linux-musl"), ("qemu-riscv64", "-cpu", "rv64,v=true,vext_spec=v1.0")),
    # the C library without vectors, too: qemu 7.2 has none
    "loongarch64": Processor(("-target", "loongarch64-linux-musl", "-mcpu=generic_la64+d"), ("qemu-loongarch64",)),
}
AMD: Final = ("gfx90a", "gfx942")
NVIDIA: Final = ("sm_90",)
TARGETS: Final = (*PROCESSORS, *AMD, *NVIDIA)
SIZES: Final = ("tiny", "small")
ORDER: Final = ("failed", "wrong", "right", "made", "library", "none")


def prepared(case: Case, size: str, folder: Path) -> tuple[Operator, Launch, tuple[np.ndarray, ...]]:
    """Return a kernel prepared for a launch at one of SIZES, the launch, and what it should give."""
    operator = load(folder / f"{case.file.stem}.ptx", threads=2)[case.kernel]
    launch, want = made(case, size)
    operator.prepare(launch.grid, launch.block, *launch.args, shared=launch.shared)
    assert want is not None
    return operator, launch, want


def driver(name: str, header: str, launch: Launch) -> str:
    """Return a C program that reads the arguments of a launch from standard input and writes the arrays among them."""
    found = re.search(rf"static inline int {name}\((.*)\)", header)
    assert found is not None
    lines, named = [], dict(zip(("gx", "gy", "gz"), map(str, launch.grid), strict=True))
    named |= {f"bytes{i}": str(a.nbytes) for i, a in enumerate(launch.args) if isinstance(a, np.ndarray)}
    types = {a.rpartition(" ")[2].lstrip("*"): a for a in found[1].split(", ")}
    for i, a in enumerate(launch.args):
        if isinstance(a, np.ndarray):
            lines += [f"void *a{i} = take(64, {a.nbytes});", f"pass(0, a{i}, {a.nbytes});"]
        else:
            lines += [f"{types[f'a{i}']};", f"pass(0, &a{i}, sizeof a{i});"]
    lines += [f"int status = {name}({', '.join(named.get(n, n) for n in types)});", "if (status) return status;"]
    lines += [f"pass(1, a{i}, {a.nbytes});" for i, a in enumerate(launch.args) if isinstance(a, np.ndarray)]
    return _DRIVER.format(name=name, body="\n".join(f"    {line}" for line in lines))


def on_processor(
    target: str, compiling: Sequence[str], name: str, files: Mapping[str, bytes], launch: Launch, folder: Path
) -> None:
    """Link an object with its driver by a C compiler, run it, and leave its results in the arrays of the launch.

    Raises:
        RuntimeError: it does not link, or ends badly.
    """
    for file, data in files.items():
        (folder / file).write_bytes(data)
    (folder / "main.c").write_text(driver(name, files[f"{name}.h"].decode(), launch))
    given = b"".join(np.asarray(a).tobytes() for a in launch.args)
    options = ["-std=gnu11", "-O1", "-w", "-static", "main.c", f"{name}.{target}.o", "-lm", "-o", "main"]
    _run([*compiling, *options], folder)
    data, place = _run([*PROCESSORS[target].emulator, str(folder / "main")], folder, given), 0
    for a in launch.args:
        if isinstance(a, np.ndarray):
            a[...] = np.frombuffer(data, a.dtype, a.size, place).reshape(a.shape)
            place += a.nbytes


def _run(command: list[str], folder: Path, given: bytes = b"") -> bytes:
    try:
        done = subprocess.run(command, cwd=folder, input=given, capture_output=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{Path(command[0]).name} took more than {PATIENCE_S} s") from None
    if done.returncode:
        told = [line for line in done.stderr.decode(errors="replace").splitlines() if "error" in line or "signal" in line]
        raise RuntimeError(f"{Path(command[0]).name} returned {done.returncode}: {' '.join(told)[-300:]}")
    return done.stdout


def check_code_object(data: bytes, zig: Path) -> None:
    """Link an object for an AMD GPU into what a driver loads, and look for kernels there.

    Raises:
        RuntimeError: it does not link, or holds none.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in.o").write_bytes(data)
        _run([str(zig), "ld.lld", "-shared", "-o", "out", "in.o"], Path(folder))
        elf = read_elf((Path(folder) / "out").read_bytes())
    names = {s.name for s in elf.symbols}
    if elf.machine != _AMD_GPU or not any(s.kind == _FUNCTION and f"{s.name}.kd" in names for s in elf.symbols):
        raise RuntimeError("no kernel in the object")


def check_ptx(data: bytes, target: str, kernels: Iterable[str]) -> None:
    """Assemble PTX where ptxas is there, and look for kernels in the machine code.

    Raises:
        RuntimeError: it cannot be assembled, or one is missing.
    """
    if not shutil.which("ptxas"):
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "in.ptx").write_bytes(data)
        _run(["ptxas", f"-arch={target}", "-o", "out", "in.ptx"], Path(folder))
        names = {s.name for s in read_elf((Path(folder) / "out").read_bytes()).symbols}
    if not names >= set(kernels):
        raise RuntimeError("kernels are missing in the machine code")


def on_reader(operator: Operator, target: str, launch: Launch) -> None:
    """Make the PTX of a lifted operator, check it, and run it as what the reader of PTX finds in it, without a GPU."""
    proof, args = operator.router.proof, launch.args
    assert proof is not None
    text = ahead_of_time_bytes(operator, target)[f"{c_name(operator.name)}.{target}.ptx"]
    device = gpu.build(proof.lifted.program, target, f"gewu_{c_name(operator.name)}")
    check_ptx(text, target, (step.name for step in device.steps))
    integers = dict(zip(("bx", "by", "bz", "gx", "gy", "gz"), (*launch.block, *launch.grid), strict=True))
    integers |= {f"p{i}": int(a) for i, a in enumerate(args) if isinstance(a, np.integer)}
    given = device.complete(args, integers)
    for i in range(device.arguments):
        if i not in device.scalars and not isinstance(given[i], np.ndarray):
            given[i] = np.uint64(0)
    module = load(text, kind="ptx", use="spmd", cache=False)
    for step in device.steps:
        module[step.name][step.blocks(integers), gpu.BLOCK](*given)


def of_library(cls: str, target: str, zig: Path) -> dict[str, Any]:
    """Make the object of our own operator of a class for a GPU, where it is a formula."""
    build_program = library.OPERATORS[cls].program if cls in library.OPERATORS else None
    if build_program is None:
        return {"status": "none"}
    device = gpu.build(build_program("f32"), target, cls)
    if target in AMD:
        check_code_object(llvm.emit_object(device.text, target), zig)
    else:
        check_ptx(device.assembly().encode(), target, (step.name for step in device.steps))
    return {"status": "library"}


def on(target: str, zig: Path, case: Case, operator: Operator, launch: Launch, want: tuple[np.ndarray, ...]) -> dict[str, Any]:
    """Return what becomes of a prepared operator on one target."""
    try:
        if target not in PROCESSORS and operator.router.proof is None:
            return of_library(case.cls, target, zig)
        if target in AMD:
            check_code_object(ahead_of_time_bytes(operator, target)[f"{c_name(operator.name)}.{target}.o"], zig)
            return {"status": "made"}
        copy = replace(launch, args=[a.copy() for a in launch.args])
        if target in NVIDIA:
            on_reader(operator, target, copy)
        else:
            files = ahead_of_time_bytes(operator, target)
            compiling = (str(zig), "cc", *PROCESSORS[target].options)
            with tempfile.TemporaryDirectory() as folder:
                on_processor(target, compiling, c_name(operator.name), files, copy, Path(folder))
    except (GewuError, RuntimeError) as error:
        return {"status": "failed", "reason": str(error)[:300]}
    found = judged(case, copy, deviation(copy, want))
    return {"status": "right" if found["right"] else "wrong", "error": float(f"{found['error']:.3g}")}


def examine(cls: str, targets: Iterable[str], zig: Path, folder: Path) -> dict[str, Any]:
    """Return the record of one class: on each target the worst of both sizes, on GPUs of those at which it is lifted."""
    case = quoted(cls)
    launches = [prepared(case, size, folder) for size in SIZES]
    ways = ["lifted" if operator.router.proof is not None else "spmd" for operator, _, _ in launches]
    found = {target: worst(on(target, zig, case, *launch) for launch in launches) for target in targets}
    told = " ".join(f"{t}:{f['status']}{' ' + f['reason'] if 'reason' in f else ''}" for t, f in found.items())
    print(f"{cls}: {', '.join(ways)}; {told}", file=sys.stderr, flush=True)
    return {"class": cls, "kernel": case.kernel, "ways": dict(zip(SIZES, ways, strict=True)), "targets": found}


def worst(outcomes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return one outcome for several sizes: a failure before a success, a success before what was not tried, the larger error."""
    every = list(outcomes)
    chosen = min(every, key=lambda found: (ORDER.index(found["status"]), -found.get("error", 0.0)))
    return dict(chosen)


@functools.cache
def _version(program: str, *options: str) -> str:
    done = subprocess.run([program, *options], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+[.\d]*", done.stdout)
    return found[0] if found else ""


def main() -> int:
    """Examine all classes, or those asked for; only a whole run makes the record, which names one commit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("classes", nargs="*", metavar="CLASS", help="of the benchmark; default: all")
    parser.add_argument("--target", action="append", choices=TARGETS, help="default: all")
    parser.add_argument("--cross", type=Path, default=WORK / "cross", help="folder of bench.ops.peers --cross")
    parser.add_argument("--record", type=Path, help="default: targets.json for all classes and targets, else nothing is kept")
    given = parser.parse_args()
    zig, targets = cross_compiler(given.cross.resolve()), given.target or TARGETS
    missing = sorted(
        {p.emulator[0] for t, p in PROCESSORS.items() if t in targets and p.emulator and not shutil.which(p.emulator[0])}
    )
    if not compiler() or zig is None or missing:
        wanted = ["nvcc"] * (not compiler()) + ["zig (python -m bench.ops.peers --cross FOLDER)"] * (zig is None) + missing
        print(f"targets: skipped, missing: {', '.join(wanted)}", file=sys.stderr)
        return 0
    warnings.simplefilter("ignore")
    folder = build(WORK / "built", ("ptx",))["ptx"]
    classes = []
    for cls in given.classes or CLASSES:
        classes.append(examine(cls, targets, zig, folder))
    record = given.record or (None if given.classes or given.target else RECORD)
    if record:
        tools = {"zig": _version(str(zig), "version"), "qemu": _version("qemu-aarch64", "--version")}
        about = {"machine": machine(), "versions": versions("gewu", "numpy", "llvmlite") | tools, "commit": commit()}
        record.write_text(json.dumps({**about, "classes": classes}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
