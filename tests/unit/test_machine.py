"""What the machine tells, with made-up /proc and /sys trees; threads and the JAX self-check in child processes."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core import machine
from gewu.core.errors import InputError, ResourceError
from tests.faults.faultlib import run_python


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_describe_says_what_the_manifest_needs() -> None:
    found = machine.describe()
    assert set(found) == {"host", "platform", "cpu", "cores", "memory_bytes", "gpus"}
    assert found["cpu"]
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["gpus"] == []
    loaded = run_python("import sys; from gewu.core import machine; machine.describe(); print(*sys.modules)").stdout.split()
    assert "gewu.core.machine" in loaded
    assert not {"numba", "jax", "numpy"} & set(loaded)


def test_memory_is_the_least_of_the_machine_and_every_control_group(tmp_path: Path) -> None:
    assert machine.available_memory(tmp_path) is None
    tree(tmp_path, proc__meminfo="MemTotal: 900 kB\nMemAvailable:     800 kB\n")
    assert machine.available_memory(tmp_path) == 800 * 1024
    tree(tmp_path, proc__self__cgroup="0::/job/step\n")
    tree(tmp_path / "sys/fs/cgroup/job", memory_dot_max="500000\n", memory_dot_current="300000\n")
    tree(tmp_path / "sys/fs/cgroup/job/step", memory_dot_max="max\n", memory_dot_current="1\n")
    assert machine.available_memory(tmp_path) == 200_000
    tree(tmp_path / "sys/fs/cgroup/job", memory_dot_stat="anon 5\ninactive_file 50000\n")
    assert machine.available_memory(tmp_path) == 250_000  # cached file pages are given back when needed
    tree(tmp_path / "sys/fs/cgroup/job", memory_dot_max="100\n", memory_dot_stat="")
    assert machine.available_memory(tmp_path) == 0


def test_memory_follows_the_older_control_groups(tmp_path: Path) -> None:
    tree(tmp_path, proc__meminfo="MemAvailable: 800 kB\n", proc__self__cgroup="4:memory:/slurm/job_1\n0::/\n")
    group = tmp_path / "sys/fs/cgroup/memory/slurm/job_1"
    (group).mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("1000\n")
    (group / "memory.usage_in_bytes").write_text("400\n")
    assert machine.available_memory(tmp_path) == 600


def test_cores_follow_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    assert machine.cores(tmp_path) == 6
    tree(tmp_path, proc__self__cgroup="0::/job\n")
    for quota, expected in [("max 100000", 6), ("250000 100000", 3), ("1000 100000", 1), ("900000 100000", 6), ("damaged", 6)]:
        tree(tmp_path / "sys/fs/cgroup/job", cpu_dot_max=quota + "\n")
        assert machine.cores(tmp_path) == expected


def test_work_that_does_not_fit_is_refused_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 3 * 2**30)
    machine.require_memory(3 * 2**30, "the density", "")
    with pytest.raises(ResourceError, match=r"the density would need 6 GiB of memory, 3 GiB are available; lower cutoff_ha"):
        machine.require_memory(6 * 2**30, "the density", "lower cutoff_ha")
    monkeypatch.setattr(machine, "available_memory", lambda: None)
    machine.require_memory(2**60, "the density", "")  # an unknown figure refuses nothing


def test_set_threads_reaches_loaded_and_unloaded_libraries() -> None:
    code = """if True:
        import ctypes, os
        import numpy, scipy.linalg
        from gewu.core import machine
        getters = ("scipy_openblas_get_num_threads64_", "scipy_openblas_get_num_threads", "openblas_get_num_threads")
        def counts():
            return {getattr(lib, g)() for lib in machine._loaded_openblas() for g in getters if hasattr(lib, g)}
        assert machine.set_threads(2) == 2
        print(sorted(counts()), os.environ["OMP_NUM_THREADS"])
        import numba
        print(numba.get_num_threads())
        assert machine.set_threads(1) == 1
        print(sorted(counts()), os.environ["OMP_NUM_THREADS"], numba.get_num_threads())
        machine.set_threads(5)
        print(numba.get_num_threads())
        assert machine.set_threads(0) == machine.cores()
        """
    done = run_python(code)
    blas, loaded = ("[2]", "[1]") if "openblas" in str(np.show_config("dicts")) else ("[]", "[]")
    assert done.stdout.splitlines() == [f"{blas} 2", "2", f"{loaded} 1 1", "2"], done.stderr
    with pytest.raises(InputError, match="must not be negative"):
        machine.set_threads(-1)


def test_gpus_are_named_or_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = types.ModuleType("numba")
    monkeypatch.setitem(sys.modules, "numba", numba)
    assert machine.gpus() == ()  # no CUDA in this Numba
    device: Any = types.SimpleNamespace(name=b"Some GPU")
    numba.cuda = types.SimpleNamespace(is_available=lambda: True, gpus=[device])  # type: ignore[attr-defined]
    assert machine.gpus() == ("Some GPU",)
    numba.cuda.is_available = lambda: False
    assert machine.gpus() == ()


def test_the_installed_jax_is_trusted_and_a_wrong_one_is_not() -> None:
    code = """if True:
        from gewu.core.errors import GewuError
        from gewu.core.machine import check_jax
        check_jax()
        check_jax.cache_clear()
        import jax
        real = jax.jit
        def wrong(function):  # what JAX 0.10.2 does: the last row is 0.8 % off
            def call(*arguments):
                rows = real(function)(*arguments)
                return rows.at[-1].multiply(1 - 0.0078)
            return call
        jax.jit = wrong
        try:
            check_jax()
        except GewuError as error:
            print(error)
        """
    done = run_python(code, JAX_PLATFORMS="cpu")
    assert "computes wrong numbers" in done.stdout, done.stderr
    assert "0.10.2" in done.stdout


def test_one_blas_thread_can_be_nested_and_gives_back_what_it_found() -> None:
    getters = [getter for _, getter in machine._openblas_calls()]
    assert getters, "NumPy's wheel brings OpenBLAS"
    before = [getter() for getter in getters]
    with machine.one_blas_thread():
        with machine.one_blas_thread():
            assert {getter() for getter in getters} == {1}
        assert {getter() for getter in getters} == {1}
    assert [getter() for getter in getters] == before
