"""SPMD code: memory, failures, costs, random kernels against the interpreter, and CUDA where nvcc is there."""

import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.ops import interp, ir
from gewu.ops.shape import Layout, analyse
from gewu.ops.spmd import compile_spmd
from gewu.ops.spmd_values import build_flow
from tests.ops.assembly import assemble
from tests.ops.randomkernels import random_kernel
from tests.ops.test_spmd import INDEX, same


def test_atomics_count_all_threads() -> None:
    text = (
        INDEX
        + """
  param.b64 dx = 0
  param.b64 dy = 8
  param.b64 df = 16
  mulwide.s32 do = ri 4
  add.s64 dx = dx do
  ld.b32 rv = dx 0 | global
  cvt.f32 rf = rv | s32 rn
  mulwide.s32 dp = rv 4
  add.s64 dp = dy dp
  atom.u32 dp 0 1 | global add
  atom.f32 df 0 rf | global add
  atom.s32 dy 400 rv | global max
  atom.b32 ro = dy 404 1 | global exch
  atom.u32 rq = dy 408 1 | global add
  atom.u32 dy 412 6 | global inc
  st.b32 dx 0 rq | global
  exit
"""
    )
    x = np.random.default_rng(0).integers(0, 100, 320).astype(np.int32)
    before, y, f = x.copy(), np.zeros(104, np.int32), np.zeros(1, np.float32)
    compile_spmd(assemble("atomics", [8, 8, 8], text), (64, 1, 1)).launch((5, 1, 1), [x, y, f])
    same(y[:100], np.bincount(before, minlength=100).astype(np.int32))
    assert f[0] == before.sum() and y[100] == before.max() and y[101] == 1 and y[102] == 320 and y[103] == 320 % 7
    same(np.sort(x), np.arange(320, dtype=np.int32))


LOCAL = (
    INDEX
    + """
  mov.b32 rj = 0
  -> fill
fill:
  mul.s32 rv = rj ri
  shl.b32 ra = rj 2
  st.b32 ra 0 rv | local
  add.s32 rj = rj 1
  setp.s32 p0 = rj 8 | lt
  @p0 bra
  -> fill read
read:
  param.b64 dx = 0
  param.b64 dy = 8
  mulwide.s32 do = ri 4
  add.s64 dx = dx do
  add.s64 dy = dy do
  ld.b32 rk = dx 0 | global
  shl.b32 rb = rk 2
  ld.b32 rw = rb 0 | local
  ld.u8 rc1 = rb 0 | local
  ld.b64 d1 = 8 0 | local
  cvt.u32 r1 = d1 | u64
  add.s32 rw = rw rc1
  add.s32 rw = rw r1
  st.b32 dy 0 rw | global
  exit
"""
)


def test_local_memory_is_each_threads_own() -> None:
    x = np.random.default_rng(0).integers(0, 8, 96).astype(np.int32)
    y = np.zeros(96, np.int32)
    compile_spmd(assemble("local", [8, 8], LOCAL, local=32), (48, 1, 1)).launch((2, 1, 1), [x, y])
    i = np.arange(96)
    same(y, x * i + (x * i & 255) + 2 * i)


def test_generic_addresses_find_their_window() -> None:
    text = (
        INDEX
        + f"""
  param.b64 dx = 0
  param.b64 dy = 8
  mulwide.s32 do = ri 4
  add.s64 dq = dx do
  ld.b32 rv = dq 0 | global
  shl.b32 rs = rt 2
  mul.s32 rw = rv 3
  st.b32 rs 0 rw | shared
  bar
  cvt.u64 ds = rs | u32
  add.s64 ds = ds {ir.SHARED_WINDOW}
  and.b32 rb = rv 3
  cvt.u64 dm = rb | u32
  shl.b64 dm = dm 2
  add.s64 dm = dm {ir.CONST_WINDOW}
  setp.s32 p0 = rb 1 | eq
  setp.s32 p1 = rb 2 | eq
  select.b64 dg = ds dq p0
  select.b64 dg = dm dg p1
  ld.b32 rr = dg 0 | generic
  add.s64 dy = dy do
  st.b32 dy 0 rr | generic
  exit
"""
    )
    data = np.array([11, 22, 33, 44], np.int32)
    x, y = np.random.default_rng(0).integers(0, 99, 64).astype(np.int32), np.zeros(64, np.int32)
    kernel = assemble("generic", [8, 8], text, shared=256, data=data.tobytes())
    compile_spmd(kernel, (64, 1, 1)).launch((1, 1, 1), [x, y])
    same(y, np.where(x % 4 == 1, x * 3, np.where(x % 4 == 2, data[x % 4], x)))


COPY = (
    INDEX
    + """
  param.b64 dx = 0
  param.b64 dy = 8
  mulwide.s32 do = ri 4
  add.s64 dx = dx do
  add.s64 dy = dy do
  ld.b32 rv = dx 0 | global
  st.b32 dy 0 rv | global
  exit
"""
)


def test_checked_code_names_the_thread_that_leaves_an_array() -> None:
    guard = np.full(300, 7, np.int32)
    x, y = np.arange(100, dtype=np.int32), guard[100:200]
    compiled = compile_spmd(assemble("copy", [8, 8], COPY), (32, 1, 1), checked=True)
    with pytest.raises(InputError, match=r"copy at 0:10.*block \(3, 0, 0\), thread \(4, 0, 0\)"):
        compiled.launch((4, 1, 1), [x, y])
    same(y, x)
    assert (guard[:100] == 7).all() and (guard[200:] == 7).all()
    compiled.launch((3, 1, 1), [x, y])


@pytest.mark.parametrize("access", ["ld.b32 rv = ro 0 | shared", "st.b32 ro 0 ri | shared"])
def test_checked_code_names_the_thread_that_leaves_shared_memory(access: str) -> None:
    text = INDEX + f"  shl.b32 ro = rt 2\n  {access}\n  exit\n"
    kernel = assemble("tile", [], text)
    kernel.shared = 4 * 40
    compile_spmd(kernel, (40, 1, 1), checked=True).launch((2, 1, 1), [])
    compile_spmd(kernel, (48, 1, 1), checked=True, shared=32).launch((2, 1, 1), [])
    with pytest.raises(InputError, match=r"block \(0, 0, 0\), thread \(40, 0, 0\).*byte 160 of the 160 of shared memory"):
        compile_spmd(kernel, (48, 1, 1), checked=True).launch((1, 1, 1), [])


def test_endless_loops_stop_and_traps_tell() -> None:
    endless = assemble("endless", [8], "a:\n  param.b64 dx = 0\n  -> b\nb:\n  ld.b32 rv = dx 0 | global\n  -> b\n")
    with pytest.raises(InputError, match="endless"):
        compile_spmd(endless, (32, 1, 1), checked=True).launch((1, 1, 1), [np.zeros(1, np.int32)], step_limit=1000)
    text = INDEX + "  setp.s32 p0 = ri 70 | eq\n  @p0 trap\n  -> b\nb:\n  exit\n"
    trap = compile_spmd(assemble("trap", [], text), (32, 1, 1))
    trap.launch((2, 1, 1), [])
    with pytest.raises(InputError, match=r"trapped in block \(2, 0, 0\)"):
        trap.launch((3, 1, 1), [])


def test_wrong_arguments_are_refused() -> None:
    compiled = compile_spmd(assemble("copy", [8, 8], COPY), (32, 1, 1))
    with pytest.raises(InputError, match="number of arguments"):
        compiled.launch((1, 1, 1), [np.zeros(4)])
    with pytest.raises(InputError, match="size of its parameter"):
        compiled.launch((1, 1, 1), [np.zeros(4), np.float32(1)])


def test_shapes_of_a_grid_stride_loop() -> None:
    text = (
        INDEX
        + """
  param.b64 dx = 0
  param.b32 rm = 8
  and.b32 rl = rt 31
  shr.u32 rw = rt 5
  -> loop
loop:
  mulwide.s32 do = ri 4
  add.s64 da = dx do
  ld.f32 rv = da 0 | global
  st.f32 da 0 rv | global
  add.s32 ri = ri 512
  setp.s32 p0 = ri rm | lt
  @p0 bra
  -> loop end
end:
  add.s32 rz = rl rw
  add.s32 rz = rz ri
  st.b32 dx 0 rz | global
  exit
"""
    )
    kernel = assemble("loop", [8, 4], text)
    flow = build_flow(kernel, {"ntid.x": 128})
    shapes = analyse(flow, Layout(32, (128, 1, 1)))
    by = {name.split(".")[0]: shape for name, shape in shapes.shape.items()}
    assert by["rl"].stride == 1 and by["rw"].stride == 0 and by["da"].stride == 4
    assert by["da"].origin is not None and by["da"].origin[1:] == ("s", 4)  # the index may wrap: it is compared at run time
    last = flow.nodes[-1].code[-2]
    assert last.op == "st" and shapes.shape[str(last.src[2])].stride is None  # threads leave at different times


def test_a_tiny_launch_costs_little() -> None:
    compiled = compile_spmd(assemble("copy", [8, 8], COPY), (32, 1, 1))
    x, y = np.arange(32, dtype=np.int32), np.zeros(32, np.int32)
    best = 1.0
    for _ in range(200):
        start = time.perf_counter()
        compiled.launch((1, 1, 1), [x, y])
        best = min(best, time.perf_counter() - start)
    assert best < 2e-3  # 10 µs here; wide enough for a busy machine


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    kernel, x = assemble("copy", [8, 8], COPY), np.arange(32, dtype=np.int32)
    first = compile_spmd(kernel, (32, 1, 1), cache=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    for damage in (b"", b"gewu-spmd 1\nnot what was written here, but long enough"):
        for path in files:
            path.write_bytes(damage)
        again, y = compile_spmd(kernel, (32, 1, 1), cache=tmp_path), np.zeros(32, np.int32)
        again.launch((1, 1, 1), [x, y])
        same(y, x)
        assert again.text == first.text
    other = compile_spmd(assemble("copy", [8, 8], COPY.replace("ri 4", "ri 8")), (32, 1, 1), cache=tmp_path)
    assert other.text != first.text


def _outcome(kernel: ir.Kernel, threads: int, seed: int, run) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 1 << 32, 256, dtype=np.uint32)
    x[::3] %= 10
    args = [x, *(np.zeros(n, np.uint32) for n in (32 * threads, 4, 1)), np.uint32(seed % 5)]
    run(kernel, threads, args)
    return args[:4]


def _vectors(kernel: ir.Kernel, threads: int, args: list) -> None:
    compile_spmd(kernel, (threads, 1, 1)).launch((2, 1, 1), args)


def _reference(kernel: ir.Kernel, threads: int, args: list) -> None:
    interp.run(kernel, (2, 1, 1), (threads, 1, 1), args, limit=200_000)


def _agree(seeds: range) -> None:
    for seed in seeds:
        threads = (64, 96, 40, 16)[seed // 2 % 4]
        kernel = random_kernel(seed, threads)
        got, want = (_outcome(kernel, threads, seed, run) for run in (_vectors, _reference))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"seed {seed}")


def test_random_kernels_run_as_in_the_interpreter() -> None:
    _agree(range(16))


@pytest.mark.slow
def test_many_random_kernels_run_as_in_the_interpreter() -> None:
    _agree(range(100, 400))


CUDA = r"""
extern "C" {
__global__ void softmax(const float* x, float* y, int c) {
  __shared__ float s[32]; int t = threadIdx.x; const float* r = x + (size_t)blockIdx.x * c; float* w = y + (size_t)blockIdx.x * c;
  float m = -INFINITY; for (int i = t; i < c; i += blockDim.x) m = fmaxf(m, r[i]);
  for (int o = 16; o; o >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
  if (t % 32 == 0) s[t / 32] = m;
  __syncthreads(); m = s[0]; for (int i = 1; i < blockDim.x / 32; i++) m = fmaxf(m, s[i]); __syncthreads();
  float a = 0; for (int i = t; i < c; i += blockDim.x) { float e = expf(r[i] - m); w[i] = e; a += e; }
  for (int o = 16; o; o >>= 1) a += __shfl_xor_sync(~0u, a, o);
  if (t % 32 == 0) s[t / 32] = a;
  __syncthreads(); a = 0; for (int i = 0; i < blockDim.x / 32; i++) a += s[i];
  for (int i = t; i < c; i += blockDim.x) w[i] /= a;
}
__global__ void matmul(const float* a, const float* b, float* c, int m, int n, int k) {
  __shared__ float as[16][16], bs[16][16];
  int ty = threadIdx.y, tx = threadIdx.x, r = blockIdx.y * 16 + ty, q = blockIdx.x * 16 + tx;
  float s = 0;
  for (int t = 0; t < (k + 15) / 16; t++) {
    int ka = t * 16 + tx, kb = t * 16 + ty;
    as[ty][tx] = (r < m && ka < k) ? a[r * k + ka] : 0.f; bs[ty][tx] = (kb < k && q < n) ? b[kb * n + q] : 0.f; __syncthreads();
    for (int i = 0; i < 16; i++) s += as[ty][i] * bs[i][tx]; __syncthreads();
  }
  if (r < m && q < n) c[r * n + q] = s;
}
__global__ void big(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = sinf(x[i]) + powf(fabsf(x[i]), .3f);
}
}
"""


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> ir.Listing:
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    from gewu.ops.ptx import read_ptx

    folder = tmp_path_factory.mktemp("cuda")
    (folder / "k.cu").write_text(CUDA)
    subprocess.run(
        ["nvcc", "-ptx", "-arch=sm_80", "-O3", "-o", folder / "k.ptx", folder / "k.cu"], check=True, capture_output=True
    )
    return read_ptx((folder / "k.ptx").read_text())


def test_compiled_cuda_gives_the_numbers_of_numpy(listing: ir.Listing) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((37, 290), dtype=np.float32)
    y = np.zeros_like(x)
    compile_spmd(listing.kernels["softmax"], (128, 1, 1)).launch((37, 1, 1), [x, y, np.int32(290)])
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=2e-6)  # expf is good to 2 ulp, the sum to some more
    a, b = rng.standard_normal((45, 70), dtype=np.float32), rng.standard_normal((70, 50), dtype=np.float32)
    c = np.zeros((45, 50), np.float32)
    sizes = [np.int32(v) for v in (45, 50, 70)]
    compile_spmd(listing.kernels["matmul"], (16, 16, 1)).launch((4, 3, 1), [a, b, c, *sizes])
    np.testing.assert_allclose(c, a.astype(np.float64) @ b, atol=1e-5)  # 70 terms of size 1 in single precision
    v = np.concatenate([rng.standard_normal(200) * 3, [1e5, 3e7, 1e20, 0]]).astype(np.float32)
    w = np.zeros_like(v)
    compile_spmd(listing.kernels["big"], (64, 1, 1)).launch((4, 1, 1), [v, w, np.int32(v.size)])
    np.testing.assert_allclose(
        w, np.sin(v.astype(np.float64)) + np.abs(v.astype(np.float64)) ** np.float32(0.3), rtol=3e-6, atol=1e-6
    )
