"""One body, every device: the same tests over reference, cpu, the CUDA simulator and, where there is one, a GPU.

Numba chooses simulator or GPU when it is imported, so the simulator runs this file as a script in a process of its own.
"""

from __future__ import annotations

import itertools
import math
import os
import platform
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gewu.core import kernel as kernel_module
from gewu.core.errors import InputError, ResourceError
from gewu.core.kernel import BLOCK, atomic_add, device, kernel, nonneg, ordered_sum, reduction, share

ROOT = Path(__file__).resolve().parents[2]
WEIGHT = 0.25
ULP = 2.0**-52
Arrays = dict[str, NDArray[Any]]


@device
def smooth(left: float, middle: float, right: float) -> float:
    """Return a weighted mean: a device function, reached by kernels through their globals."""
    return WEIGHT * left + (1.0 - 2.0 * WEIGHT) * middle + WEIGHT * right


@kernel
def stencil(i: int, x: Any, y: Any) -> None:
    """Smooth x into y."""
    y[i] = smooth(x[nonneg(i - 1)], x[i], x[i + 1])


@kernel
def axpy(i: int, a: float, x: Any, y: Any) -> None:
    """Add a x to y."""
    y[i] = a * x[i] + y[i]


@kernel
def special(i: int, x: Any, y: Any) -> None:
    """Apply functions whose last bits belong to the device's library."""
    y[i] = math.exp(x[i]) * math.sin(3.0 * x[i]) / (1.0 + x[i])


@kernel
def errors(i: int, x: Any, y: Any, k: Any) -> None:
    """Divide by zero twice and wrap an integer."""
    y[i, 0], y[i, 1] = 1.0 / x[i], x[i] / x[i]
    k[i] = k[i] + np.int64(1)


@kernel
def tally(i: int, bins: int, count: Any) -> None:
    """Count items and their indices in a few bins that all items fight for."""
    atomic_add(count, i % bins, 1)
    atomic_add(count, bins, i)


@kernel
def overwrite(i: int, bins: int, count: Any) -> None:
    """Write where `tally` adds."""
    count[i % bins] = i


@reduction
def dot(i: int, x: Any, y: Any) -> Any:
    """Return one term of a scalar product."""
    return x[i] * y[i]


def wild(n: int) -> NDArray[np.float64]:
    """Return numbers of both signs over 12 decades, whose sum shows any change of order in its bits."""
    rng = np.random.default_rng(5)
    return np.asarray(rng.normal(size=n) * 10.0 ** rng.uniform(-6, 6, n))


def compute(where: str, n: int) -> Arrays:
    """Run every kernel once on device `where`."""
    x = np.random.default_rng(1).uniform(0.5, 1.5, n)
    out = {"stencil": np.zeros(n), "axpy": x[::-1].copy(), "special": np.zeros(n), "strided": np.zeros((n, 2))}
    out |= {"errors": np.zeros((1, 2)), "wrapped": np.array([2**63 - 1]), "tally": np.zeros(4, np.int64)}
    stencil.launch(where, (1, n - 1), x, out["stencil"])
    stencil.launch(where, (1, n - 1), x[::-1], out["strided"][:, 1])
    axpy.launch(where, n, 1.7, x, out["axpy"])
    special.launch(where, n, x, out["special"])
    errors.launch(where, 1, np.zeros(1), out["errors"], out["wrapped"])
    tally.launch(where, (5, n), 3, out["tally"])
    tally.launch(where, (n, n), 3, out["tally"])
    w, one = wild(n), np.ones(n)
    out["dot"] = np.array([dot.launch(where, n, w, one), dot.launch(where, (7, n - 3), w, one), dot.launch(where, 0, w, one)])
    out["square"] = dot.blocks(where, n, x, x)
    return out


def child(*args: str, **environment: str) -> str:
    """Run Python with the package importable and return what it prints."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")} | environment
    env |= {"PYTHONPATH": str(Path(kernel_module.__file__).resolve().parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-W", "error", *args], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


N = 2 * BLOCK + 37  # two full blocks and a ragged one
N_SIMULATED = 150


@pytest.fixture(scope="module", params=["reference", "cpu", "cuda-simulator", "cuda"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Arrays, Arrays]:
    """Return the backend, its results, and those of the reference."""
    where, n = str(request.param), N
    if where == "cuda-simulator":
        n, path = N_SIMULATED, tmp_path_factory.mktemp("simulator") / "results.npz"
        child(__file__, str(path), "cuda", str(n), NUMBA_ENABLE_CUDASIM="1")
        with np.load(path) as stored:
            return where, dict(stored), compute("reference", n)
    if where == "cuda":
        cuda = pytest.importorskip("numba.cuda")
        if not cuda.is_available():
            pytest.skip("no CUDA device")
    return where, compute(where, n), compute("reference", n)


def test_reference_is_the_formula() -> None:
    n, out = N_SIMULATED, compute("reference", N_SIMULATED)
    x = np.random.default_rng(1).uniform(0.5, 1.5, n)
    mean = 0.25 * x[:-2] + 0.5 * x[1:-1] + 0.25 * x[2:]
    assert np.array_equal(out["stencil"][1:-1], mean) and out["stencil"][0] == out["stencil"][-1] == 0.0
    assert np.array_equal(out["axpy"], 1.7 * x + x[::-1])
    assert out["tally"].tolist() == [*np.bincount(np.arange(5, n) % 3), sum(range(5, n))]
    # the sum of n terms by any order errs by less than n ulp of the sum of magnitudes
    assert abs(out["dot"][0] - math.fsum(wild(n))) < n * ULP * np.abs(wild(n)).sum()
    assert out["dot"][2] == 0.0


@pytest.mark.parametrize("name", ["stencil", "strided", "axpy", "square"])
def test_float_arithmetic_agrees(results: tuple[str, Arrays, Arrays], name: str) -> None:
    where, got, want = results
    if where == "cuda":  # a fused multiply-add saves one rounding per term: relative, as all terms are positive
        assert np.allclose(got[name], want[name], rtol=4 * ULP, atol=0.0)
    else:
        assert np.array_equal(got[name], want[name])


def test_tallies_sums_and_error_values_have_the_same_bits(results: tuple[str, Arrays, Arrays]) -> None:
    _, got, want = results
    assert np.array_equal(got["tally"], want["tally"])
    assert np.array_equal(got["dot"], want["dot"])  # factors of 1: exact with or without fusing
    assert got["errors"][0, 0] == np.inf and np.isnan(got["errors"][0, 1])
    assert got["wrapped"][0] == -(2**63)


def test_special_functions_agree_to_their_libraries_accuracy(results: tuple[str, Arrays, Arrays]) -> None:
    _, got, want = results
    # exp and sin to 2 units in the last place each on every device, three roundings, and 3x rounded alike: below 8
    assert np.allclose(got["special"], want["special"], rtol=8 * ULP, atol=0.0)


def test_bits_do_not_depend_on_threads(tmp_path: Path) -> None:
    stored = []
    for threads in ("1", "2"):
        child(__file__, str(tmp_path / threads), "cpu", str(50 * BLOCK + 3), threads, NUMBA_NUM_THREADS="2")
        with np.load(tmp_path / f"{threads}.npz") as arrays:
            stored.append(dict(arrays))
    assert int(stored[0].pop("threads")[0]) == 1 and int(stored[1].pop("threads")[0]) == 2
    for name, one in stored[0].items():
        assert one.tobytes() == stored[1][name].tobytes(), name


def test_bits_do_not_depend_on_where_the_extent_is_cut() -> None:
    x = np.random.default_rng(2).uniform(0.5, 1.5, 1001)
    whole, parts = np.zeros(1001), np.zeros(1001)
    special.cpu(1001, x, whole)
    for start, stop in ((0, 1), (1, 14), (14, 14), (14, 500), (500, 1001)):
        special.cpu((start, stop), x, parts)
    assert np.array_equal(whole, parts)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_sum_over_ranks_has_the_bits_of_one_rank(size: int) -> None:
    n = 3 * BLOCK + 100
    x, one = wild(n), np.ones(n)
    extents = [share(n, rank, size) for rank in range(size)]
    assert extents[0][0] == 0 and extents[-1][1] == n and all(a[1] == b[0] for a, b in itertools.pairwise(extents))
    total = ordered_sum(np.concatenate([dot.blocks("cpu", extent, x, one) for extent in extents]))
    assert total == dot.cpu(n, x, one) == dot.reference(n, x, one)
    assert total != float(np.add.accumulate(x)[-1])  # another order gives other bits: the test above can fail


def test_hot_loops_hold_vector_instructions() -> None:
    features = pytest.importorskip("llvmlite.binding").get_host_cpu_features()
    if not features.get("avx"):
        pytest.skip("no AVX: registers are named otherwise")
    x, y = np.zeros(8), np.zeros(8)
    packed = re.compile(r"\bv(?:add|mul|fm?add\w*)pd\b.*%[yz]mm")
    for text in (axpy.assembly(1.5, x, y), stencil.assembly(x, y), dot.assembly(x, y)):
        assert packed.search(text)
    assert not packed.search(tally.assembly(3, np.zeros(4, np.int64)))


def test_atomic_add_is_atomic_in_the_machine_code() -> None:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the lock prefix is x86's")
    locks = [len(re.findall(r"\block\b", k.assembly(3, np.zeros(4, np.int64)))) for k in (overwrite, tally)]
    assert locks[1] >= locks[0] + 2  # Numba's own reference counting locks too; `tally` adds two of its own


HELPER = "from gewu.core.kernel import device\n\nFACTOR = {}\n\n\n@device\ndef scaled(x):\n    return FACTOR * x\n"
BODY = """
import numpy as np
from gewu.core.kernel import kernel
from helper import scaled

@kernel
def double(i, x, y):
    y[i] = scaled(x[i])

y = np.zeros(3)
double.cpu(3, np.ones(3), y)
stats = double.loop("cpu").stats
print(y[2], sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


def test_disk_cache_is_hit_by_a_second_process_and_never_stale(tmp_path: Path) -> None:
    (tmp_path / "body.py").write_text(BODY)
    (tmp_path / "helper.py").write_text(HELPER.format("2.0"))
    assert child(str(tmp_path / "body.py")).split() == ["2.0", "0", "1"]
    assert child(str(tmp_path / "body.py")).split() == ["2.0", "1", "0"]
    (tmp_path / "helper.py").write_text(HELPER.format("3.0"))  # another file than the body's: Numba alone would not see it
    assert child(str(tmp_path / "body.py")).split() == ["3.0", "0", "1"]


def test_body_without_a_file_runs_uncached() -> None:
    scope: dict[str, Any] = {}
    exec("def body(i, y):\n    y[i] = 2 * i", scope)
    y = np.zeros(5)
    kernel(scope["body"]).cpu(5, y)
    assert y.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_closures_are_frozen_and_device_functions_in_them_found() -> None:
    def make(factor: float) -> Any:
        inner = device(lambda x: factor * x)

        def body(i: int, y: Any) -> None:
            y[i] = inner(1.0)

        return kernel(body)

    y = np.zeros(2)
    for factor in (2.0, 3.0):  # the same code, another closure
        make(factor).cpu(2, y)
        assert y.tolist() == [factor, factor]


@pytest.mark.parametrize("extent", [-1, (-1, 3), (4, 3)])
def test_impossible_extents_are_refused(extent: Any) -> None:
    with pytest.raises(InputError, match="extent"):
        axpy.cpu(extent, 1.0, np.zeros(3), np.zeros(3))


def test_misuse_is_refused() -> None:
    with pytest.raises(InputError, match="allowed: reference, cpu, cuda"):
        axpy.launch("gpu", 1, 1.0, np.zeros(1), np.zeros(1))
    with pytest.raises(InputError, match="allowed: reference, cpu, cuda"):
        dot.launch("gpu", 1, np.zeros(1), np.zeros(1))
    with pytest.raises(TypeError, match="takes 3 arguments after the extent, not 2"):
        axpy.cpu(1, np.zeros(1), np.zeros(1))
    with pytest.raises(TypeError, match="fixed number"):
        kernel(lambda i, *rest: None)
    for index in (3, -1):
        with pytest.raises(IndexError, match="atomic_add"):
            atomic_add(np.zeros(3, np.int64), index, 1)
    with pytest.raises(IndexError, match="nonneg"):
        nonneg(-1)


def test_float_tallies_are_refused() -> None:
    typing_error = pytest.importorskip("numba.core.errors").TypingError
    with pytest.raises(IndexError, match="int64"):
        tally.reference(1, 3, np.zeros(4))
    with pytest.raises(typing_error):
        tally.cpu(1, 3, np.zeros(4))


def test_absent_gpu_is_a_resource_error() -> None:
    if pytest.importorskip("numba.cuda").is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ResourceError, match="no CUDA device"):
        axpy.cuda(1, 1.0, np.zeros(1), np.zeros(1))


def test_the_example_of_the_docs_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    (tmp_path / "example.py").write_text(blocks[0])
    runpy.run_path(str(tmp_path / "example.py"))
    assert "mean squared displacement" in capsys.readouterr().out


if __name__ == "__main__":
    target, where, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
    extra: Arrays = {}
    if len(sys.argv) > 4:
        import numba

        numba.set_num_threads(int(sys.argv[4]))
        extra["threads"] = np.array([numba.get_num_threads()])
    np.savez(target, **compute(where, n), **extra)  # type: ignore[arg-type]
