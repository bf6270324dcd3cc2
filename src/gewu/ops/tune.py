"""Search how a program is best compiled for this processor: tiles, unrolling, interleaving, vector width, threads, BLAS or
nests.

Candidates that a small model of registers and caches rules out are not tried; the others race on copies of the arrays, the
slower half leaving after each round with twice the runs. The winner is kept as JSON under the program's fingerprint, the size
class of the launch (powers of two) and the processor, where `emit` finds it."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from gewu.core.errors import GewuError, InputError
from gewu.core.files import read_capped, write_atomic
from gewu.ops import llvm
from gewu.ops.emit import Executable, compile_program
from gewu.ops.forms import Form, Step
from gewu.ops.nest_parts import Choice
from gewu.ops.pool import THREADS
from gewu.ops.rewrite import fingerprint
from gewu.ops.tensor import Program

_ALLOWED: Final = {
    "tile": (64, 128, 256, 512, 1024, 2048),
    "unroll": (1, 2, 4, 8),
    "interleave": (0, 1, 2, 4, 8),
    "width": (0, 4, 8, 16, 32),
    "threads": tuple(range(257)),
    "blas": (0, 1),
}
_L1: Final = 32 << 10
_ROUNDS: Final = 4


def tune(
    program: Program,
    args: Sequence[Any],
    launch: Mapping[str, int],
    budget_s: float = 5.0,
    *,
    threads: int | None = None,
    cache: Path | None = None,
) -> Choice:
    """Return the fastest choice found for a program at these sizes, and keep it in the folder.

    Args:
        program: what is computed.
        args: a call's arguments; outputs are written to copies.
        launch: the integers of the launch.
        budget_s: seconds after which no further candidate is started.
        threads: how many may work at a time (None: one for each processor).
        cache: folder that `compile_program` gets too.

    Raises:
        InputError: as a call of the program.
    """
    copies = [np.array(a, copy=True) if isinstance(a, np.ndarray) else a for a in args]
    end = time.perf_counter() + budget_s
    racing: list[tuple[float, Choice, Executable]] = []
    for choice in candidates(program, launch, threads or THREADS):
        if racing and time.perf_counter() > end:
            break
        executable = compile_program(program, threads=threads, choice=choice)
        executable(copies, launch)  # compiles the form for these sizes
        racing.append((_seconds(executable, copies, launch, 1), choice, executable))
    for round_ in range(_ROUNDS):
        racing.sort(key=lambda item: item[0])
        racing = racing[: max(1, (len(racing) + 1) // 2)]
        if len(racing) == 1 or time.perf_counter() > end:
            break
        racing = [(min(s, _seconds(e, copies, launch, 2 << round_)), c, e) for s, c, e in racing]
    best = racing[0][1]
    if cache is not None:
        store(cache, program, launch, best, racing[0][0])
    return best


def _seconds(executable: Executable, args: Sequence[Any], launch: Mapping[str, int], runs: int) -> float:
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        executable(args, launch)
        best = min(best, time.perf_counter() - start)
    return best


def candidates(program: Program, launch: Mapping[str, int], threads: int) -> list[Choice]:
    """Return the choices worth trying, the default first.

    Tiles matter to column reductions only, and must fit the first-level cache; interleaving to loops over elements; threads
    when there is work for more than one.
    """
    plain = compile_program(program, threads=threads)
    steps = plain.steps(Form())
    kinds = {step.function.kind for step in steps if isinstance(step, Step)}
    products = any(not isinstance(step, Step) for step in steps)
    tiles = [t for t in (128, 512, 2048) if t * 8 <= _L1] if "tiles" in kinds or products or "rows" in kinds else [512]
    unrolls = [2, 4, 8] if len(tiles) > 1 else [4]
    interleaves = [0, 2, 4, 8] if kinds & {"rows", "elements"} else [0]
    widths = [0, llvm.host_vector_bits() // 64] if kinds & {"rows", "elements"} else [0]
    workers = [0, 1] if threads > 1 else [0]
    blas = [1, 0] if products else [1]
    found = [Choice()]
    # one factor at a time around the default, then the pairs that interact
    for tile, unroll in itertools.product(tiles, unrolls):
        found.append(Choice(tile=tile, unroll=unroll))
    for interleave, width in itertools.product(interleaves, widths):
        found.append(Choice(interleave=interleave, width=width))
    found += [replace(c, threads=w, blas=b) for c in found[:1] for w in workers for b in blas]
    return list(dict.fromkeys(found))


def size_class(launch: Mapping[str, int]) -> str:
    """Return the launch with every integer as its power of two."""
    return " ".join(f"{name}:{abs(int(value)).bit_length()}" for name, value in sorted(launch.items()))


def _path(cache: Path, program: Program, launch: Mapping[str, int]) -> Path:
    cpu, features = llvm.host()
    text = "\0".join((fingerprint(program), size_class(launch), cpu, features))
    return cache / f"{hashlib.sha256(text.encode()).hexdigest()}.tuned.json"


def store(cache: Path, program: Program, launch: Mapping[str, int], choice: Choice, seconds: float) -> None:
    """Keep a choice; a folder that cannot be written is no error."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        data = {"choice": asdict(choice), "seconds": seconds, "sizes": size_class(launch), "program": program.name}
        write_atomic(_path(cache, program, launch), json.dumps(data).encode())
    except (OSError, GewuError):
        return


def stored(cache: Path, program: Program, launch: Mapping[str, int]) -> Choice | None:
    """Return the choice kept for a program at sizes of this class, or None; what is damaged counts as absent."""
    try:
        found = json.loads(read_capped(_path(cache, program, launch), 1 << 16))["choice"]
        choice = Choice(**{f.name: found[f.name] for f in fields(Choice)})
    except (InputError, ValueError, KeyError, TypeError):
        return None
    good = all(type(v) is int and v in _ALLOWED[name] for name, v in asdict(choice).items())
    return choice if good else None
