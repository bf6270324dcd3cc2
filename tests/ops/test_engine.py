"""The engine: from a file of kernels to a result, through the same door as every other engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gewu
from gewu.core.context import QuietContext
from gewu.core.errors import InputError
from gewu.ops import engine, load
from gewu.ops.engine import Config, recognise
from gewu.ops.guess import floats, launches, pointers
from gewu.ops.survey import Machine, examine, guessed_constants, parse_launch
from tests.ops.ptxtext import BUMP, HALT, HISTOGRAM, LOOP, SAXPY, TWICE, WEIGHTED, module

EXAMPLE = Path(__file__).parents[2] / "examples" / "operators.toml"
MACHINE = Machine(1e10, 1e11)


@pytest.fixture(autouse=True)
def _folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GEWU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("gewu.ops.spmd.STEP_LIMIT", 1 << 20)
    monkeypatch.setattr(Machine, "measured", staticmethod(lambda: MACHINE))


def test_every_kernel_is_reported_with_its_status(tmp_path: Path) -> None:
    path = tmp_path / "kernels.ptx"
    path.write_bytes(module(SAXPY, HISTOGRAM, HALT))
    ctx = QuietContext()
    engine.run(Config(source=str(path), size=1024, targets=("x86_64",)), ctx)
    assert ctx.numbers["kernels"][0] == 3
    assert ctx.numbers["kernels_lifted"][0] == 1
    assert ctx.numbers["kernels_spmd"][0] == 1
    assert ctx.numbers["kernels_refused"][0] == 1
    assert ctx.numbers["worst_error"][0] < 1e-6
    text = ctx.files["formulas.txt"].decode()
    assert "saxpy: lifted" in text and "a1[i0] =" in text and "histogram: spmd" in text and "frobnicate" in text
    assert {"saxpy.h", "saxpy.x86_64.o", "histogram.h", "histogram.x86_64.o"} <= set(ctx.files)
    assert len(ctx.arrays["roofline"]) == 2 and (ctx.arrays["roofline"] > 0).all()


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "kernels.ptx"
    path.write_bytes(module(SAXPY, BUMP))
    config = Config(source=str(path), size=1024, targets=())
    stopped = QuietContext()
    stopped.stop_requested = True
    engine.run(config, stopped)
    assert stopped.state is not None and [row["name"] for row in stopped.state["rows"]] == ["saxpy"]
    assert "kernels" not in stopped.numbers
    resumed = QuietContext(restored=stopped.state)
    engine.run(config, resumed)
    assert resumed.numbers["kernels"][0] == 2


def test_a_kernel_that_never_ends_is_not_launched_and_the_rest_goes_on(tmp_path: Path) -> None:
    found = load(module(LOOP, SAXPY))
    assert examine(found, "forever", (), MACHINE, size=1024, seed=1).status == "unlaunched"
    assert examine(found, "saxpy", (), MACHINE, size=1024, seed=1).status == "lifted"


def test_variables_that_only_the_host_sets_are_guessed() -> None:
    constants = guessed_constants(load(WEIGHTED), 1)
    assert constants["weights"].nbytes == 16 and np.isfinite(constants["weights"]).all()
    assert examine(load(WEIGHTED, constants=constants), "weighted", (), MACHINE, size=1024, seed=1).status == "lifted"
    assert guessed_constants(load(SAXPY), 1) == {}


def test_launches_are_taken_from_the_job(tmp_path: Path) -> None:
    found = load(SAXPY)
    name, launch = parse_launch("saxpy<<<8, 128>>>(f32[1000], f32[1000], 2.5, 1000)", 3)
    finding = examine(found, name, [launch], MACHINE, size=64, seed=1)
    assert finding.status == "lifted" and finding.launch == "[8, 128](float32[1000], float32[1000], 2.5, 1000)"
    assert 0 <= finding.error < 1e-6 and finding.seconds > 0


def test_a_launch_that_leaves_its_arrays_is_refused() -> None:
    _, launch = parse_launch("saxpy<<<8, 128>>>(f32[900], f32[1000], 2.5, 1000)", 3)
    finding = examine(load(SAXPY), "saxpy", [launch], MACHINE, size=64, seed=1)
    assert finding.status == "refused" and "access outside" in finding.reason


@pytest.mark.parametrize(
    "text",
    [
        "saxpy",
        "saxpy<<<1>>>()",
        "saxpy<<<1, 2, 3, 4>>>()",
        "saxpy<<<a, 2>>>()",
        "saxpy<<<1x2x3x4, 2>>>()",
        "saxpy<<<1, 2>>>(x)",
        "saxpy<<<1, 2>>>(f33[4])",
        "saxpy<<<1, 2>>>(f8[4])",
        "saxpy<<<1, 2>>>(f32[99999999999])",
        "saxpy<<<1, 2>>>(i8[4] < 999)",
        "saxpy<<<1, 2>>>(f32[4],)",
        "__import__('os')<<<1, 2>>>()",
    ],
)
def test_wrong_launches_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_launch(text, 1)
    with pytest.raises(InputError):
        Config(source="x.ptx", launches=(text,)).check()


def test_launches_are_read() -> None:
    name, launch = parse_launch(" a.b$c <<< 4x2, 16x16 , 128 >>> (f64[10], u8[20] < 3, -5, 1e-3)", 1)
    assert (name, launch.grid, launch.block, launch.shared) == ("a.b$c", (4, 2, 1), (16, 16, 1), 128)
    assert launch.args[0].dtype == np.float64 and launch.args[1].max() < 3 and launch.args[2:] == [-5, 0.001]
    again = parse_launch(" a.b$c <<< 4x2, 16x16 , 128 >>> (f64[10], u8[20] < 3, -5, 1e-3)", 1)[1]
    np.testing.assert_array_equal(launch.args[0], again.args[0])


def test_pointers_and_floats_are_told_from_integers() -> None:
    kernel = load(SAXPY)["saxpy"].router.kernel
    assert pointers(kernel) == {0: "float32", 1: "float32"} and floats(kernel) == {2}
    assert pointers(load(HISTOGRAM)["histogram"].router.kernel) == {0: "uint32", 1: "uint32"}
    assert pointers(load(TWICE)["twice"].router.kernel) == {0: "float32", 1: "float32"}
    first = next(launches(kernel, 1000, np.random.default_rng(1)))
    assert first.grid[0] * first.block[0] >= 1000 and first.args[3] == 1000


def test_files_of_kernels_are_recognised(tmp_path: Path) -> None:
    for name in ("a.cu", "a.PTX", "a.cubin"):
        assert recognise(tmp_path / name) == {"source": str(tmp_path / name)}
    for name in ("a.cif", "a.gro", "POSCAR"):
        (tmp_path / name).write_text("hello")
        assert recognise(tmp_path / name) is None
    binary = tmp_path / "kernel"
    binary.write_bytes(b"\x7fELF" + bytes(14) + b"\xbe\x00" + bytes(44))
    assert recognise(binary) is not None
    binary.write_bytes(b"\x7fELF" + bytes(14) + b"\x3e\x00" + bytes(44))
    assert recognise(binary) is None


def test_a_file_of_kernels_runs_as_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "k.ptx").write_bytes(SAXPY)
    result = gewu.run({"ops": {"source": "k.ptx", "size": 1024, "targets": []}}, quiet=True)
    assert result["kernels_lifted"] == 1 and (result.path / "formulas.txt").is_file()
    assert "roofline" in (result.path / "report.html").read_text()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_the_example_is_lifted_whole() -> None:
    import tomllib

    table: dict[str, Any] = tomllib.loads(EXAMPLE.read_text())["ops"]
    ctx = QuietContext()
    shrunk = [
        "saxpy<<<40, 256>>>(f32[10000], f32[10000], 2.0, 10000)",
        "gelu<<<8, 256>>>(f32[10000], f32[10000], 10000)",
        "softmax<<<30, 32>>>(f32[3000], f32[3000], 30, 100)",
        "matmul<<<4x4, 16x16>>>(f32[4096], f32[4096], f32[4096], 64, 64, 64)",
    ]
    assert [text.split("<")[0] for text in table["launches"]] == [text.split("<")[0] for text in shrunk]
    engine.run(Config(source=str(EXAMPLE.parent / table["source"]), launches=tuple(shrunk), targets=()), ctx)
    assert ctx.numbers["kernels_lifted"][0] == 4
    assert ctx.numbers["worst_error"][0] < 1e-5
    assert "tanh(" in ctx.files["formulas.txt"].decode()  # the compiler's polynomial and exponential are put back
