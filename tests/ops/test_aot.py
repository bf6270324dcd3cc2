"""Objects ahead of time: compiled with their header by a C compiler, linked and run, here and under emulation."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.ops import Operator, load
from gewu.ops.aot import ahead_of_time, c_name
from tests.ops.ptxtext import HISTOGRAM, SAXPY, TWICE, module

CROSS = {
    "aarch64": ("aarch64-linux-gnu-gcc", ["qemu-aarch64"]),
    "riscv64": ("riscv64-linux-gnu-gcc", ["qemu-riscv64"]),
    "riscv64-v": ("riscv64-linux-gnu-gcc", ["qemu-riscv64", "-cpu", "rv64,v=true,vext_spec=v1.0"]),
    "loongarch64": ("loongarch64-linux-gnu-gcc", ["qemu-loongarch64"]),
}
N = 1000
MAIN = """
#include <stdio.h>
#include "saxpy.h"
#include "histogram.h"
int main(void)
{
    static float x[1000], y[1000];
    static int32_t values[1000], counts[8];
    for (int i = 0; i < 1000; ++i) { x[i] = i; y[i] = 0.5f * i; values[i] = i % 8; }
    int status = saxpy(x, y, 2.0f, 1000) | histogram(4, 1, 1, values, counts, 1000);
    for (int i = 0; i < 1000; ++i) if (y[i] != 2.5f * i) status = 99;
    for (int i = 0; i < 8; ++i) if (counts[i] != 125) status = 98;
    printf("status %d\\n", status);
    return status;
}
"""


@pytest.fixture(autouse=True)
def _folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GEWU_CACHE", str(tmp_path / "cache"))


def prepared() -> Any:
    found = load(module(SAXPY, HISTOGRAM, TWICE))
    rng = np.random.default_rng(2)
    floats = [rng.standard_normal(N).astype(np.float32) for _ in range(2)]
    assert found["saxpy"].prepare(4, 256, *floats, 2.0, N) == "lifted"
    assert found["histogram"].prepare(4, 256, np.zeros(N, np.int32), np.zeros(16, np.int32), N) == "spmd"
    return found


def build_and_run(folder: Path, target: str, compiler: str, runner: list[str], options: list[str]) -> None:
    (folder / "main.c").write_text(MAIN)
    objects = [str(folder / f"{name}.{target}.o") for name in ("saxpy", "histogram")]
    command = [
        compiler,
        "-std=gnu11",
        "-Wall",
        "-Werror",
        *options,
        str(folder / "main.c"),
        *objects,
        "-lm",
        "-o",
        str(folder / "main"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ran = subprocess.run([*runner, str(folder / "main")], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "status 0\n"), ran.stderr


@pytest.mark.skipif(shutil.which("gcc") is None or sys.platform != "linux", reason="needs gcc")
def test_objects_link_and_compute(tmp_path: Path) -> None:
    files = ahead_of_time(prepared(), ["x86_64"], tmp_path / "out")
    assert sorted(path.name for path in files) == ["histogram.h", "histogram.x86_64.o", "saxpy.h", "saxpy.x86_64.o"]
    build_and_run(tmp_path / "out", "x86_64", "gcc", [], [])


def test_the_header_is_the_same_for_every_target(tmp_path: Path) -> None:
    found = prepared()
    ahead_of_time(found["saxpy"], ["x86_64"], tmp_path / "a")
    files = ahead_of_time(found["saxpy"], ["x86_64-v3", "aarch64", "riscv64"], tmp_path / "b")
    assert len(files) == 4
    header = (tmp_path / "a" / "saxpy.h").read_text()
    assert header == (tmp_path / "b" / "saxpy.h").read_text()
    assert "int saxpy(void *a0, void *a1, float a2, uint32_t a3)" in header and "a1[i0] =" in header


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    fresh = load(SAXPY)
    with pytest.raises(InputError, match="prepared"):
        ahead_of_time(fresh, ["x86_64"], tmp_path)
    found = prepared()
    with pytest.raises(InputError, match="unknown target"):
        ahead_of_time(found["saxpy"], ["vax"], tmp_path)
    with pytest.raises(InputError, match="only lifted"):
        ahead_of_time(found["histogram"], ["gfx942"], tmp_path)


def test_an_object_for_amd_gpus_is_made(tmp_path: Path) -> None:
    operator: Operator = prepared()["saxpy"]
    header, code = ahead_of_time(operator, ["gfx942"], tmp_path)
    assert (header.name, code.name) == ("saxpy.gfx942.h", "saxpy.gfx942.o")
    head = code.read_bytes()[:20]
    assert head[:4] == b"\x7fELF" and head[18:20] == b"\xe0\x00"  # machine 224: AMDGPU


@pytest.mark.slow
@pytest.mark.parametrize("target", CROSS)
def test_objects_compute_under_emulation(target: str, tmp_path: Path) -> None:
    compiler, runner = CROSS[target]
    if shutil.which(compiler) is None or shutil.which(runner[0]) is None:
        pytest.skip(f"needs {compiler} and {runner[0]}")
    ahead_of_time(prepared(), [target], tmp_path)
    build_and_run(tmp_path, target, compiler, runner, ["-static"])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("saxpy", "saxpy"), ("_Z4gemmIfEvPT_", "gemm"), ("a.b$c", "a_b_c"), ("__k", "k"), ("$", "operator"), ("3d", "k3d")],
)
def test_names_in_c(name: str, wanted: str) -> None:
    assert c_name(name) == wanted
    assert len(c_name("x" * 300)) <= 60 and c_name("x" * 300) != c_name("x" * 301)
