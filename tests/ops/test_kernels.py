"""Every benchmark kernel, read from PTX and from machine code, does what NumPy says: interpreted, and as vectors."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.ops.build import FILES, build, compiler
from bench.ops.case import KERNELS, Case, Launch, error
from bench.ops.cases import CASES, CLASSES, quoted
from gewu.ops.disassemble import find_nvdisasm

needs_nvcc = pytest.mark.skipif(compiler() is None, reason="nvcc is not installed")
# In the fast set: PTX of each class's optimised kernel, but for those that the interpreter runs for seconds.
LONG = {"nbody", "attention", "attention_causal", "attention_gqa", "gemm", "scan", "conv1d", "conv2d", "depthwise"}
needs_nvdisasm = pytest.mark.skipif(find_nvdisasm() is None, reason="nvdisasm is not installed")
FAST = {quoted(cls).kernel for cls in CLASSES if cls not in LONG}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@cache
def listing(folder: Path, source: str, kind: str) -> Any:
    """Compile one file for one reader, once, and read it."""
    made = build(folder, (kind,), (KERNELS / source,))[kind] / (Path(source).stem + FILES[kind][0])
    if kind == "ptx":
        from gewu.ops.ptx import read_ptx

        return read_ptx(made.read_text(), made)
    from gewu.ops.cubin import read_cubin

    return read_cubin(made.read_bytes(), made)


def launched(case: Case) -> tuple[Launch, tuple[np.ndarray, ...]]:
    launch = case.make("tiny", np.random.default_rng(zlib.crc32(case.kernel.encode())))
    return launch, case.reference([np.copy(a) for a in launch.args])


def interpret(kernel: Any, launch: Launch) -> None:
    from gewu.ops.interp import run

    run(kernel, launch.grid, launch.block, launch.args, shared=launch.shared)


def compare(case: Case, folder: Path, kind: str, run: Callable[[Any, Launch], None] = interpret) -> None:
    found = listing(folder, case.file.name, kind)
    assert case.kernel in found.kernels, found.refused.get(case.kernel, "not found")
    launch, want = launched(case)
    run(found.kernels[case.kernel], launch)
    for place, expected in zip(launch.outputs, want, strict=True):
        assert error(launch.args[place], expected) <= case.tolerance(launch)


@needs_nvcc
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.kernel, marks=() if c.kernel in FAST else pytest.mark.slow) for c in CASES]
)
def test_ptx(case: Case, folder: Path) -> None:
    compare(case, folder, "ptx")


@needs_nvcc
@needs_nvdisasm
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sm_80", "sm_90"])
@pytest.mark.parametrize("case", [pytest.param(c, id=c.kernel) for c in CASES])
def test_machine_code(case: Case, kind: str, folder: Path) -> None:
    compare(case, folder, kind)


@needs_nvcc
@needs_nvdisasm
@pytest.mark.slow
@pytest.mark.parametrize("kind", list(FILES))
@pytest.mark.parametrize("case", [pytest.param(c, id=c.kernel) for c in CASES])
def test_vectors(case: Case, kind: str, folder: Path) -> None:
    from gewu.ops.spmd import compile_spmd

    def run(kernel: Any, launch: Launch) -> None:
        compiled = compile_spmd(kernel, launch.block, shared=launch.shared, checked=False, cache=None)
        compiled.launch(launch.grid, launch.args, threads=2)

    compare(case, folder, kind, run)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.kernel) for c in CASES])
def test_reference_has_the_shape_of_the_outputs(case: Case) -> None:
    launch, want = launched(case)
    assert [w.shape for w in want] == [launch.args[place].shape for place in launch.outputs]
    flops, traffic = case.flops_bytes(launch)
    assert flops >= 0 and traffic > 0


def test_each_class_has_two_styles_that_its_file_holds() -> None:
    assert len(CLASSES) == 58
    for cls in CLASSES:
        mine = [case for case in CASES if case.cls == cls]
        assert len(mine) >= 2
        for case in mine:
            source = case.file.read_text()
            assert f"void {case.kernel}(" in source or f"ACTIVATION({cls}," in source


def test_error_notices_what_is_wrong() -> None:
    want = np.array([1.0, -2.0, 3.0])
    got = want.astype(np.float32)
    assert error(got, want) == 0
    assert error(got + np.float32(1e-2), want) > 1e-3
    assert error(np.array([1.0, np.nan, 3.0], np.float32), want) == np.inf
    assert error(np.array([1, 2], np.int32), np.array([1, 3], np.int32)) == 1
    eights = np.zeros(1000, np.int8)
    assert error(eights, eights) == 0
    assert error(np.concatenate((eights[:999], [1])).astype(np.int8), eights) == 1e-6
    assert error(np.concatenate((eights[:999], [2])).astype(np.int8), eights) == 1
    assert error(np.array([0x3F80, 0xC000, 0x4040], np.uint16), want) == 0
