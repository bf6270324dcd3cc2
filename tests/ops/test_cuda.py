"""CUDA through a compiler to numbers: features that nvcc's PTX uses, in three builds; the compilers themselves; Triton."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError, ResourceError
from gewu.ops import cuda
from gewu.ops.cuda import compile_cuda, find_nvcc, find_nvrtc
from gewu.ops.interp import run
from gewu.ops.ir import Listing
from gewu.ops.ptx import read_ptx
from gewu.ops.triton import build_triton

SOURCE = Path(__file__).with_name("ptx_kernels.cu")
BUILDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "sm_90": ("sm_90", ()),
    "sm_80": ("sm_80", ("-Xcicc", "-O1", "-lineinfo")),
    "debug": ("sm_80", ("-G",)),
}
TINY = 'extern "C" __global__ void f(float* x) { x[0] = 1.0f; }\n'
RECORD = np.dtype(
    {
        "names": ["a", "n", "d", "v", "s"],
        "formats": ["<f4", "<i4", "<f8", ("<f4", 4), ("<i2", 3)],
        "offsets": [0, 4, 8, 16, 32],
        "itemsize": 48,
    }
)
needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not installed")
builds = pytest.mark.parametrize("build", [pytest.param(b, marks=() if b == "sm_90" else pytest.mark.slow) for b in BUILDS])
Array = np.ndarray[Any, Any]


@cache
def built(name: str) -> Listing:
    arch, options = BUILDS[name]
    return read_ptx(compile_cuda(SOURCE, arch=arch, options=options).decode(), str(SOURCE))


def launch(build: str, kernel: str, *args: Any, grid: int = 1, block: int = 64, shared: int = 0) -> None:
    listing = built(build)
    assert kernel in listing.kernels, listing.refused.get(kernel)
    run(listing.kernels[kernel], (grid, 1, 1), (block, 1, 1), args, shared=shared)


def record() -> Any:
    found = np.zeros((), RECORD)
    found["a"], found["n"], found["d"], found["v"], found["s"] = 1.5, 60, 2.25, [1, 2, 3, 4], [5, -6, 7]
    return found[()]


def floats(n: int = 64, seed: int = 3) -> Array:
    return (100 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


@needs_nvcc
@builds
def test_calls_with_structures(build: str) -> None:
    x, y = floats(), np.zeros(64, np.float32)
    launch(build, "calls", record(), x, y, grid=2, block=32)
    i = np.arange(64)
    early = np.where(i > 10, x + 1, np.where(i > 5, 2 * x, x + 2 + np.where(i & 1, 2, 3)))
    early[:6] += 0 * early[:6] - np.where(i[:6] & 1, 2, 3)  # only the first component is used
    want = np.where(i < 60, x * 1.5 + 2 + np.where(i & 1, -6, 2.25) + early, 0)
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-4)


@needs_nvcc
@builds
def test_parameters_by_index(build: str) -> None:
    k, y = np.arange(64, dtype=np.int32) % 3, np.zeros(64, np.float32)
    launch(build, "parameter_by_index", record(), k, y)
    np.testing.assert_array_equal(y, np.array([5, -6, 7])[k] + np.array([1, 2, 3])[k])


@needs_nvcc
@builds
def test_tables(build: str) -> None:
    k, y = np.arange(64, dtype=np.int32) % 5, np.zeros(64, np.float32)
    launch(build, "tables", k, y)
    np.testing.assert_array_equal(y, np.array([1, -2, 3.5, 4, 5])[k] + np.array([7, -8, 9, 10])[k & 3])


@needs_nvcc
@builds
def test_what_is_refused(build: str) -> None:
    refused = built(build).refused
    assert sorted(refused) == ["host_table", "writes_global"]
    assert "host" in refused["host_table"] and "writes" in refused["writes_global"]


@needs_nvcc
@builds
def test_printing_is_skipped(build: str) -> None:
    x = np.array([3, 4], np.int32)
    launch(build, "prints", x)
    np.testing.assert_array_equal(x, [3, 4])


@needs_nvcc
@builds
def test_local_array(build: str) -> None:
    x, y = floats(80), np.zeros(64, np.float32)
    launch(build, "local_array", x, y, np.int32(9))
    want = np.zeros(64, np.float32)
    for i in range(9):
        k = next(j for j in range(16) if j * 7 & 15 == i * 5 & 15)
        want = want * np.float32(0.5) + x[k : k + 64]
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-4)


@needs_nvcc
@builds
def test_halves(build: str) -> None:
    rng = np.random.default_rng(1)
    h = rng.standard_normal(128).astype(np.float16)
    b = (rng.standard_normal(128).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    y, z, f = np.zeros(128, np.float16), np.zeros(128, np.uint16), np.zeros(64, np.float32)
    launch(build, "halves", h, b, y, z, f)
    wide = (b.astype(np.uint32) << 16).view(np.float32)
    product = (h.astype(float) ** 2 + (h * np.float16(0.5)).astype(float)).astype(np.float16)
    np.testing.assert_array_equal(y, product - h)
    np.testing.assert_array_equal(z, ((wide + wide).view(np.uint32) >> 16).astype(np.uint16))
    np.testing.assert_array_equal(f, h[::2].astype(np.float32) + wide[1::2])


@needs_nvcc
@builds
def test_conversions(build: str) -> None:
    rng = np.random.default_rng(2)
    x, d, s = np.clip(floats(), -127, 127), 1e4 * rng.standard_normal(64), rng.integers(-(1 << 31), 1 << 31, 64).astype(np.int32)
    x[:8] = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.25, -0.75]
    y, f, g = np.zeros((9, 64), np.int32), np.zeros((6, 64), np.float32), np.zeros((4, 64))
    launch(build, "conversions", x, d, s, y, f, g)
    near, zero = np.rint(x), np.trunc(x)
    whole = [near, zero, np.ceil(x), np.floor(x), np.maximum(near, 0), zero, s.astype(np.uint8), s.astype(np.int16), np.rint(d)]
    np.testing.assert_array_equal(y, np.array(whole).astype(np.int32))
    unsigned = s.view(np.uint32).astype(np.float32)
    singles = [np.floor(x), near, d.astype(np.float32), unsigned, np.clip(x, 0, 1), np.copysign(2, x)]
    np.testing.assert_array_equal(f, np.array(singles).astype(np.float32))
    np.testing.assert_array_equal(g, np.array([x, np.sqrt(np.abs(d)), d / 3, s]))


@needs_nvcc
@builds
def test_warps(build: str) -> None:
    v, y = np.random.default_rng(4).integers(0, 1000, 64).astype(np.int32), np.zeros((9, 2, 32), np.int32)
    launch(build, "warps", v, y)
    lane = np.arange(32)
    for warp, q in enumerate(v.reshape(2, 32).astype(np.int64)):
        want = [
            np.where(lane >= 3, q[np.maximum(lane - 3, 0)], q),
            np.where((lane & 15) + 5 < 16, q[np.minimum(lane + 5, 31)], q),
            q[q & 31],
            q[lane ^ 9],
            np.full(32, (q & 1) @ (1 << lane)),
            np.full(32, 2 * int((q > 900).any()) + 1),
            (q[:, None] & 3 == q & 3) @ (1 << lane),
            np.full(32, q.sum()),
            np.full(32, q.max()),
        ]
        np.testing.assert_array_equal(y[:, warp].view(np.uint32), np.array(want).astype(np.uint32))


@needs_nvcc
@builds
def test_atomics_and_reducing_barriers(build: str) -> None:
    v = np.random.default_rng(5).integers(0, 1000, 64).astype(np.int32)
    a, u, f, wide = np.zeros(144, np.int32), np.zeros(1, np.uint32), np.zeros(1, np.float32), np.zeros(1, np.uint64)
    a[3] = 0x7FF
    launch(build, "atomics", v, a, u, f, wide)
    bits = [np.bitwise_and.reduce(v) & 0x7FF, np.bitwise_or.reduce(v), np.bitwise_xor.reduce(v)]
    assert a[:9].tolist() == [v.sum(), 0, v.max(), *bits, 5, 3, v.sum()]
    assert (u[0], f[0], wide[0]) == (64 % 21, 32, int(v.sum()) << 20)
    assert set(a[16:80]) == {(v & 1).sum()} and set(a[80:]) == {1 + 0 + 4}


@needs_nvcc
@builds
def test_generic_addresses(build: str) -> None:
    x, y = floats(), np.zeros(64, np.float32)
    launch(build, "generic_addresses", x, y, shared=1024)
    np.testing.assert_array_equal(y, np.where(np.arange(64) & 1, x[::-1], 2 * x[::-1]) + np.float32(1000))


@needs_nvcc
@builds
def test_fragments_of_wmma(build: str) -> None:
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal((16, 16)).astype(np.float16), rng.standard_normal((16, 24)).astype(np.float16)
    c, d = rng.standard_normal((16, 16)).astype(np.float32), np.zeros((16, 16), np.float32)
    launch(build, "fragments", a, b, c, d, block=32)
    want = a.T.astype(float) @ b[:, :16].T.astype(float) + 2 * c
    np.testing.assert_allclose(d.T, want, atol=2e-5)  # sums of 17 terms of size 1 in single precision


@needs_nvcc
def test_the_compiler_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, header = tmp_path / "k.cu", tmp_path / "k.cuh"
    header.write_text("#define VALUE 1.0f\n")
    source.write_text('#include "k.cuh"\n' + TINY.replace("1.0f", "VALUE"))
    folder = tmp_path / "cache"
    first = compile_cuda(source, cache=folder)
    monkeypatch.setattr(cuda, "_with_nvcc", lambda *_: b"compiled anew")
    assert compile_cuda(source, cache=folder) == first
    (kept,) = folder.iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert compile_cuda(source, cache=folder) == b"compiled anew"
    header.write_text("#define VALUE 2.0f\n")
    monkeypatch.setattr(cuda, "_with_nvcc", lambda *_: b"another")
    assert compile_cuda(source, cache=folder) == b"another"
    header.unlink()
    monkeypatch.setattr(cuda, "_with_nvcc", lambda *_: b"not kept")
    assert compile_cuda(source, cache=folder) == b"not kept"
    assert len(list(folder.iterdir())) == 2


@needs_nvcc
def test_errors_of_the_source_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"kernel\.cu\(1\): error: identifier \"y\"") as caught:
        compile_cuda(TINY.replace("1.0f", "y"))
    assert "/" not in str(caught.value)
    source = tmp_path / "mine.cu"
    source.write_text("\n" + TINY.replace("1.0f", "y"))
    with pytest.raises(InputError, match="identifier") as caught:
        compile_cuda(source)
    assert (caught.value.file, caught.value.line) == (source, 2)
    (tmp_path / "h.cuh").write_text("\n\n\nint a = b;\n")
    source.write_text('#include "h.cuh"\n' + TINY)
    with pytest.raises(InputError, match=r"h\.cuh\(4\)") as caught:
        compile_cuda(source)
    assert (caught.value.file, caught.value.line) == (source, None)


@needs_nvcc
def test_a_cubin_is_an_elf_file() -> None:
    assert compile_cuda(TINY, arch="sm_80", to="cubin")[:4] == b"\x7fELF"


@pytest.mark.parametrize(("arch", "to"), [("sm_90; rm", "ptx"), ("gfx942", "ptx"), ("sm_90", "sass")])
def test_what_cannot_be_made(arch: str, to: str) -> None:
    with pytest.raises(InputError, match="unknown"):
        compile_cuda(TINY, arch=arch, to=to)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(ResourceError, match="pip install nvidia-cuda-nvrtc"):
        compile_cuda(TINY)
    with pytest.raises(ResourceError, match="pip install triton"):
        build_triton(None, {}, {})


def test_nvcc_of_cuda_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvcc"
    program.write_text("#!/bin/sh\necho 13.9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/nonexistent:/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    if find_nvcc() == program:  # unless one stands in /bin
        assert "13.9" in cuda.toolchain()


@pytest.mark.skipif(find_nvrtc() is None, reason="NVRTC is not installed")
def test_nvrtc_makes_the_same_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_nvcc", lambda: None)
    x = np.zeros(1, np.float32)
    run(read_ptx(compile_cuda(TINY).decode()).kernels["f"], (1, 1, 1), (1, 1, 1), [x])
    assert x[0] == 1
    with pytest.raises(InputError, match="identifier"):
        compile_cuda(TINY.replace("1.0f", "y"))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_triton(arch: str) -> None:
    triton = pytest.importorskip("triton")
    from tests.ops import triton_kernels

    made = build_triton(triton_kernels.matmul, dict.fromkeys("ABC", "*fp32") | dict.fromkeys("MNK", "i32"), {"T": 32}, arch)
    rng, none = np.random.default_rng(7), np.zeros(64, np.uint8)
    a, b, c = rng.standard_normal((50, 70), np.float32), rng.standard_normal((70, 40), np.float32), np.zeros((50, 40), np.float32)
    listing = read_ptx(made.code.decode())
    args = [a, b, c, np.int32(50), np.int32(40), np.int32(70), none, none]
    run(listing.kernels[made.name], (2, 2, 1), (made.threads, 1, 1), args, shared=made.shared)
    np.testing.assert_allclose(c, a.astype(float) @ b, atol=1e-4)
    assert triton.__version__
    with pytest.raises(InputError, match="without a type"):
        build_triton(triton_kernels.matmul, {}, {}, arch)
