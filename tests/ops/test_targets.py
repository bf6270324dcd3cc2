"""Objects of bench/ops/targets.py: linked with a driver that is written for them, run here or under emulation, compared."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.ops import targets
from bench.ops.case import Case, Launch, Operator, Style
from bench.ops.peers import cross_compiler
from gewu.core.errors import ResourceError
from gewu.ops import gpu, llvm, load
from gewu.ops.aot import ahead_of_time_bytes
from gewu.ops.elf import read_elf
from tests.ops.ptxtext import HISTOGRAM, SAXPY

N = 1000
ZIG = cross_compiler(targets.WORK / "cross")


@pytest.fixture(autouse=True)
def _folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GEWU_CACHE", str(tmp_path / "cache"))


def saxpy(source: bytes = SAXPY) -> tuple[Any, Launch, tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(3)
    x, y = (rng.standard_normal(N).astype(np.float32) for _ in range(2))
    launch = Launch((4, 1, 1), (256, 1, 1), 0, [x, y, np.float32(2), np.int32(N)], (1,), (N,))
    found = load(source)["saxpy"]
    assert found.prepare(launch.grid, launch.block, *launch.args) == "lifted"
    return found, launch, ((2 * x.astype(np.float64) + y),)


def histogram() -> tuple[Any, Launch, tuple[np.ndarray, ...]]:
    values = np.random.default_rng(3).integers(0, 16, N).astype(np.int32)
    launch = Launch((4, 1, 1), (256, 1, 1), 0, [values, np.zeros(16, np.int32), np.int32(N)], (1,), (N,))
    found = load(HISTOGRAM)["histogram"]
    assert found.prepare(launch.grid, launch.block, *launch.args) == "spmd"
    return found, launch, (np.bincount(values, minlength=16).astype(np.int32),)


def case(launch: Launch) -> Case:
    """The class of a launch, as far as a tolerance needs it."""
    style = Style("plain", lambda shape: (launch.grid, launch.block, 0))
    shape = launch.shape
    return Case(
        Operator("any", "any.cu", (shape,) * 4, lambda rng, s: launch.args, (1,), lambda *a: (), (style,), lambda s: 1.0), style
    )


@pytest.mark.skipif(shutil.which("gcc") is None or sys.platform != "linux", reason="needs gcc")
@pytest.mark.parametrize("made", [saxpy, histogram])
def test_a_driver_passes_every_argument(made: Any, tmp_path: Path) -> None:
    operator, launch, want = made()
    files = ahead_of_time_bytes(operator, "x86_64")
    targets.on_processor("x86_64", ["gcc"], operator.name, files, launch, tmp_path)
    np.testing.assert_allclose(launch.args[1], want[0], rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(shutil.which("gcc") is None or sys.platform != "linux", reason="needs gcc")
def test_an_object_that_does_not_link_or_ends_badly_is_told(tmp_path: Path) -> None:
    operator, launch, _ = saxpy()
    files = ahead_of_time_bytes(operator, "x86_64")
    with pytest.raises(RuntimeError, match="gcc returned 1"):
        targets.on_processor("x86_64", ["gcc"], "saxpy", files | {"saxpy.x86_64.o": b"no object"}, launch, tmp_path)
    leaves = files["saxpy.h"].replace(b"return status;", b"return 7;")
    with pytest.raises(RuntimeError, match="main returned 7"):
        targets.on_processor("x86_64", ["gcc"], "saxpy", files | {"saxpy.h": leaves}, launch, tmp_path)


def test_ptx_is_read_back_and_compared() -> None:
    operator, launch, want = saxpy()
    found = targets.on("sm_90", Path("none"), case(launch), operator, launch, want)
    assert found["status"] == "right", found
    assert targets.on("sm_90", Path("none"), case(launch), operator, launch, (want[0] + 1e-3,))["status"] == "wrong"
    spmd, launch, want = histogram()
    assert targets.on("sm_90", Path("none"), case(launch), spmd, launch, want) == {"status": "none"}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_the_plan_in_c_is_the_one_in_python(tmp_path: Path) -> None:
    operator, launch, _ = saxpy()
    files = ahead_of_time_bytes(operator, "sm_90")
    assert sorted(files) == ["saxpy.sm_90.h", "saxpy.sm_90.ptx"] and b".entry gewu_saxpy_0" in files["saxpy.sm_90.ptx"]
    header = files["saxpy.sm_90.h"].decode()
    device = gpu.build(operator.router.proof.lifted.program, "sm_90")
    names = re.findall(r"int64_t (\w+)", re.search(r"saxpy_sm_90_plan\((.*)\)", header)[1])  # type: ignore[index]
    known = {"gx": 4, "gy": 1, "gz": 1, "p3": N}
    (tmp_path / "plan.h").write_text(header)
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "plan.h"\nint main(void) { int64_t blocks[9], bytes[9], integers[9];\n'
        f"int count = saxpy_sm_90_plan({', '.join(str(known[n]) for n in names)}, blocks, bytes, integers);\n"
        'printf("%d %d %d", count, (int)blocks[0], (int)integers[0]); return 0; }\n'
    )
    subprocess.run(["gcc", "-Wall", "-Werror", "main.c", "-o", "main"], cwd=tmp_path, check=True)
    told = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout.split()
    whole = device.complete(launch.args, known)
    assert [int(t) for t in told] == [1, device.steps[0].blocks(known), int(whole[device.arguments])]


def test_several_sizes_are_as_good_as_the_worst() -> None:
    right, wrong = {"status": "right", "error": 1e-7}, {"status": "wrong", "error": 1.0}
    assert targets.worst([right, wrong]) == targets.worst([wrong, right]) == wrong
    assert targets.worst([right, {"status": "right", "error": 3e-7}]) == {"status": "right", "error": 3e-7}
    assert targets.worst([{"status": "library"}, {"status": "made"}]) == {"status": "made"}


@pytest.mark.slow
@pytest.mark.parametrize("made", [saxpy, histogram])
@pytest.mark.parametrize("target", targets.TARGETS)
def test_objects_compute_on_every_processor(target: str, made: Any) -> None:
    emulator = targets.PROCESSORS[target].emulator[:1] if target in targets.PROCESSORS else ()
    if ZIG is None or not all(map(shutil.which, emulator)):
        pytest.skip("needs zig (python -m bench.ops.peers --cross bench/ops/work/cross) and qemu-user")
    operator, launch, want = made()
    found = targets.on(target, ZIG, case(launch), operator, launch, want)
    wanted = "right" if target in targets.PROCESSORS else "none" if made is histogram else "made"
    assert found["status"] == ("right" if wanted == "made" and target in targets.NVIDIA else wanted), found


@pytest.mark.slow
@pytest.mark.skipif(ZIG is None, reason="needs zig")
def test_what_is_no_formula_on_a_gpu_is_our_own_operator() -> None:
    assert ZIG is not None
    assert targets.of_library("attention", "gfx942", ZIG) == {"status": "library"}
    assert targets.of_library("histogram", "gfx942", ZIG) == {"status": "none"}
    with pytest.raises(RuntimeError, match="zig returned"):
        targets.check_code_object(b"no object", ZIG)


def test_rounding_calls_nothing_that_a_c_library_may_lack() -> None:
    """Baseline x86-64 has no instruction for it; C libraries have rint since C99, roundeven hardly any."""
    rounded = SAXPY.replace(b"st.global.f32 [%rd7], %f4;", b"cvt.rni.f32.f32 %f5, %f4;\n  st.global.f32 [%rd7], %f5;")
    operator, launch, _ = saxpy(rounded)
    code = ahead_of_time_bytes(operator, "x86_64")["saxpy.x86_64.o"]
    called = {s.name for s in read_elf(code).symbols if s.section == 0} - {"", "_GLOBAL_OFFSET_TABLE_"}
    assert called == {"rintf"}
    targets.on_reader(operator, "sm_90", launch)
    np.testing.assert_array_equal(launch.args[1], np.rint(launch.args[1]))


def test_a_compilation_that_takes_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llvm.compiler, "TIMEOUT", 1e-3)
    with pytest.raises(ResourceError, match="takes more than"):
        llvm.emit_object("define void @f() { ret void }", "aarch64")
