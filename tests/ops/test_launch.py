"""Launching from Python: arguments, names, which way is taken, what is kept, what a call costs."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.ops import load
from gewu.ops.arguments import block_of, grid_of, pack_one
from gewu.ops.cache import Cache
from gewu.ops.ir import Parameter, Unsupported
from gewu.ops.launch import kind_of, plain_name
from gewu.ops.route import _alike
from gewu.ops.serial import lifted_from_json, lifted_to_json, program_from_json, program_to_json
from tests.ops.programs import RIGHT
from tests.ops.ptxtext import BUMP, HALT, HISTOGRAM, SAXPY, TWICE, WEIGHTED, module

N = 1000


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("GEWU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def vectors(n: int = N) -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    return rng.standard_normal(n).astype(np.float32), rng.standard_normal(n).astype(np.float32)


@pytest.mark.parametrize("use", ["auto", "lifted", "spmd", "reference"])
def test_saxpy_by_every_way(use: str) -> None:
    x, y = vectors()
    wanted = np.float32(2.0) * x + y
    operator = load(SAXPY, use=use)["saxpy"]
    operator[4, 256](x, y, 2.0, N)
    np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=1e-6)
    assert operator.status == {"auto": "lifted"}.get(use, use)
    assert ("a1[" in operator.formula) == (operator.status == "lifted")
    assert operator.status in operator.explain()


def test_the_formula_of_saxpy_names_its_sizes() -> None:
    operator = load(SAXPY)["saxpy"]
    assert operator.prepare(4, 256, *vectors(), 2.0, N) == "lifted"
    assert "p3" in operator.formula and operator.reason == ""
    assert "<= p3 <=" in operator.explain()


def test_other_sizes_need_no_new_lift(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = load(SAXPY, cache=False)["saxpy"]
    x, y = vectors(5000)
    operator[20, 256](x, y, 0.5, 5000)
    monkeypatch.setattr("gewu.ops.route.readings", None)
    for n in (300, 4999):
        x, y = vectors(n)
        wanted = np.float32(0.5) * x + y
        operator[(n + 255) // 256, 256](x, y, 0.5, n)
        np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=1e-6)
        assert operator.status == "lifted"


def test_a_grid_that_does_not_follow_from_the_sizes_is_computed_as_the_kernel_does() -> None:
    operator = load(SAXPY)["saxpy"]
    x, y = vectors()
    wanted = y.copy()
    wanted[:512] += 2.0 * x[:512]
    operator[2, 256](x, y, 2.0, N)  # two blocks only: 512 of 1000 elements
    np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=1e-6)


def test_overlapping_arrays_are_computed_as_the_kernel_does() -> None:
    whole = np.arange(N + 1, dtype=np.float32)
    x, y = whole[:N], whole[1:]
    operator = load(TWICE)["twice"]
    fresh = np.zeros(N, np.float32)
    operator[1, 1](whole[:N].copy(), fresh, N)
    np.testing.assert_array_equal(fresh, 2.0 * np.arange(N))
    operator[1, 1](x, y, N)  # one thread, element after element: each is twice the one before
    assert whole[0] == 0.0 and whole[5] == 0.0
    whole[:] = 1.0
    operator[1, 1](x, y, 10)
    np.testing.assert_array_equal(whole[:11], 2.0 ** np.arange(11))


def test_in_place_is_allowed_element_by_element() -> None:
    x, _ = vectors()
    wanted = np.float32(3.0) * x + x
    load(SAXPY)["saxpy"][4, 256](x, x, 3.0, N)
    np.testing.assert_allclose(x, wanted, rtol=1e-6, atol=1e-6)


def test_data_dependent_writes_are_not_lifted() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 16, N).astype(np.int32)
    counts = np.zeros(16, np.int32)
    operator = load(HISTOGRAM)["histogram"]
    operator[4, 256](values, counts, N)
    np.testing.assert_array_equal(counts, np.bincount(values, minlength=16))
    assert operator.status == "spmd" and operator.reason
    with pytest.raises(InputError):
        load(HISTOGRAM, use="lifted")["histogram"][4, 256](values, counts, N)


def test_read_only_arrays_may_be_read_but_not_written() -> None:
    x, y = vectors()
    x.flags.writeable = False
    for use in ("auto", "spmd", "reference"):
        operator = load(SAXPY, use=use)["saxpy"]
        operator[4, 256](x, y, 2.0, N)
        y.flags.writeable = False
        before = y.copy()
        with pytest.raises(InputError, match="read-only"):
            operator[4, 256](x, y, 2.0, N)
        np.testing.assert_array_equal(y, before)
        y.flags.writeable = True


def test_arrays_that_are_too_small_are_refused_when_lifted() -> None:
    x, y = vectors()
    operator = load(SAXPY)["saxpy"]
    operator[4, 256](x, y, 2.0, N)
    with pytest.raises(InputError, match="too small"):
        operator[4, 256](x[:500].copy(), y, 2.0, N)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((1, 2), "wrong number of arguments"),
        ((np.zeros(4, np.float32), np.zeros(4, np.float32), "2", 4), "argument 2: is neither array nor number"),
        ((np.zeros(4, np.float32), np.zeros(4, np.float32), 2.0, 4.0), "argument 3: a float does not fit"),
        ((np.zeros(4, np.float32), np.zeros(4, np.float32), 2.0, 1 << 32), "argument 3: does not fit"),
        ((np.zeros(4, np.float32), np.zeros(4, np.float32), 2.0, np.int64(4)), "argument 3: has another size"),
        ((np.zeros(4, np.float32), np.zeros(4, np.float32), np.zeros(4), 4), "argument 2: an array stands for a pointer"),
        ((np.zeros((4, 4), np.float32).T, np.zeros(4, np.float32), 2.0, 4), "argument 0: arrays must be contiguous"),
        ((np.zeros(4, ">f4"), np.zeros(4, np.float32), 2.0, 4), "argument 0: arrays must hold plain numbers"),
        ((np.zeros(4, object), np.zeros(4, np.float32), 2.0, 4), "argument 0: arrays must hold plain numbers"),
        ((None, np.zeros(4, np.float32), 2.0, 4), "argument 0: is neither"),
        ((0.5, np.zeros(4, np.float32), 2.0, 4), "argument 0: a float does not fit"),
    ],
)
def test_wrong_arguments_are_refused(args: tuple[Any, ...], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load(SAXPY, use="spmd")["saxpy"][1, 32](*args)
    assert "saxpy" in str(caught.value) and "allowed" in str(caught.value)


@pytest.mark.parametrize(
    "place", [5, (1,), (1, 0), (0, 32), (1, 1025), (1, (32, 64)), (1, 32, -1), (1.5, 32), (1, (1, 1, 65)), ("1", 32)]
)
def test_wrong_grids_and_blocks_are_refused(place: Any) -> None:
    with pytest.raises(InputError):
        load(SAXPY)["saxpy"][place]


def test_limits_of_the_kernel_hold_for_the_block() -> None:
    assert block_of((8, 4), "k", 32) == (8, 4, 1)
    with pytest.raises(InputError, match="too many threads"):
        block_of(64, "k", 32)
    with pytest.raises(InputError, match="demands"):
        block_of(64, "k", 0, (128, 1, 1))
    assert grid_of([3, 2], "k") == (3, 2, 1)
    assert grid_of(np.array([3, 2, 1]), "k") == (3, 2, 1)


@pytest.mark.parametrize(
    ("value", "size", "kind", "wanted"),
    [
        (1.5, 4, "f32", np.float32(1.5)),
        (2, 4, "f32", np.float32(2)),
        (1.5, 8, "", np.float64(1.5)),
        (-1, 4, "u32", np.int32(-1)),
        (2**32 - 1, 4, "s32", np.uint32(2**32 - 1)),
        (7, 8, "u64", np.int64(7)),
        (True, 1, "u8", np.int8(1)),
        (np.float16(0.5), 2, "b16", np.float16(0.5)),
    ],
)
def test_numbers_become_what_the_parameter_holds(value: Any, size: int, kind: str, wanted: Any) -> None:
    made = pack_one("k", 0, Parameter(0, size, kind), value)
    assert made.dtype == wanted.dtype and made == wanted


def test_bytes_fill_a_structure() -> None:
    assert pack_one("k", 0, Parameter(0, 12, "b8"), bytes(range(12))).tobytes() == bytes(range(12))
    with pytest.raises(InputError):
        pack_one("k", 0, Parameter(0, 12, "b8"), bytes(11))


def test_names_may_be_given_plain() -> None:
    mangled = SAXPY.replace(b"saxpy", b"_Z5saxpyPKfPffi")
    found = load(mangled)
    assert found.names == ["_Z5saxpyPKfPffi"] and "saxpy" in found and len(found) == 1
    assert found["saxpy"] is found["_Z5saxpyPKfPffi"]
    with pytest.raises(InputError, match="no such kernel") as caught:
        found["saxpi"]
    assert "_Z5saxpyPKfPffi" in str(caught.value)
    both = module(SAXPY.replace(b"saxpy", b"_Z1aPKfPffi"), SAXPY.replace(b"saxpy", b"_Z1aIfEvv"))
    with pytest.raises(InputError, match="several"):
        load(both)["a"]


@pytest.mark.parametrize(
    ("name", "plain"),
    [("_Z4gemmIfEvPT_", "gemm"), ("_ZN3foo3barEPf", "bar"), ("plain", "plain"), ("_Z", "_Z"), ("_Z12ab", "ab"), ("_ZN1aE", "a")],
)
def test_plain_names(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_kinds_of_files() -> None:
    assert kind_of(SAXPY) == "ptx"
    assert kind_of(b"\x7fELF" + bytes(60)) == "cubin"
    assert kind_of(b"extern __global__ void f() {}") == "cu"
    with pytest.raises(InputError, match="fat binary"):
        kind_of(b"\x50\xed\x55\xba" + bytes(60))
    with pytest.raises(InputError, match="neither CUDA source"):
        kind_of(b"hello")


@pytest.mark.parametrize("options", [{"use": "fast"}, {"kind": "exe"}, {"checked": "yes"}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        load(SAXPY, **options)


@pytest.mark.parametrize("make", RIGHT, ids=lambda f: f.__name__)
def test_programs_survive_being_stored(make: Any) -> None:
    found = make()
    text = json.dumps(lifted_to_json(found))
    assert lifted_from_json(json.loads(text)) == found


def test_shared_parts_of_a_program_are_stored_once() -> None:
    from gewu.ops.sizes import Affine
    from gewu.ops.tensor import Apply, Assign, Load, Program

    value: Any = Load(0, "f32", Affine())
    for _ in range(200):  # a tree of 2^200 nodes
        value = Apply("add", "f32", (value, value))
    table = program_to_json(Program("deep", (Assign(1, "f32", (), Affine(), value),)))
    assert len(table["nodes"]) == 201
    again = program_from_json(table)
    assert len(program_to_json(again)["nodes"]) == 201


def test_a_warm_start_neither_lifts_nor_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = vectors()
    load(SAXPY)["saxpy"][4, 256](x, y, 2.0, N)
    for name in ("gewu.ops.route.readings", "gewu.ops.route.Verifier", "gewu.ops.launch._listing"):
        monkeypatch.setattr(name, None)
    x, y = vectors()
    wanted = np.float32(2.0) * x + y
    start = time.perf_counter()
    operator = load(SAXPY)["saxpy"]
    operator[4, 256](x, y, 2.0, N)
    seconds = time.perf_counter() - start
    np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=1e-6)
    assert operator.status == "lifted"
    assert seconds < 1.0  # 50 ms when the machine is quiet


def test_the_second_call_is_looked_up() -> None:
    x, y = vectors(8)
    launch = load(SAXPY)["saxpy"][1, 256]
    launch(x, y, 2.0, 8)
    bound = dict(launch._bound)
    y[:] = 0.0
    launch(x, y, 3.0, 8)
    assert launch._bound == bound
    np.testing.assert_allclose(y, np.float32(3.0) * x, rtol=1e-6, atol=1e-6)


def test_failures_to_lift_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    values, counts = np.zeros(N, np.int32), np.zeros(16, np.int32)
    load(HISTOGRAM)["histogram"][4, 256](values, counts, N)
    monkeypatch.setattr("gewu.ops.route.readings", None)
    again = load(HISTOGRAM)["histogram"]
    again[4, 256](values, counts, N)
    assert again.status == "spmd" and counts[0] == 2 * N


def test_the_kernel_as_it_is_written_is_compiled_once_beside_lifting(monkeypatch: pytest.MonkeyPatch) -> None:
    from gewu.ops import spmd

    threads, right = [], spmd.compile_spmd

    def counted(*args: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return right(*args, **options)

    monkeypatch.setattr(spmd, "compile_spmd", counted)
    values, counts = np.zeros(N, np.int32), np.zeros(16, np.int32)
    load(HISTOGRAM)["histogram"][4, 256](values, counts, N)
    assert counts[0] == N and len(threads) == 1 and threads[0] is not threading.main_thread()


def test_a_kernel_that_cannot_be_read_is_refused_and_the_others_go_on() -> None:
    found = load(module(SAXPY, HALT))
    assert found.names == ["saxpy"] and "halt" in found.refused
    with pytest.raises(Unsupported, match="refused"):
        found["halt"]
    x, y = vectors()
    found["saxpy"][4, 256](x, y, 2.0, N)


def test_variables_that_only_the_host_sets_are_given() -> None:
    x, y = vectors(256)
    assert "`constants`" in load(WEIGHTED).refused["weighted"] and load(WEIGHTED).listing.unset == {"weights": ("b8", 16)}
    for weight in (3.0, 5.0):
        weights = np.array([0, 0, weight, 0], np.float32)
        operator = load(WEIGHTED, constants={"weights": weights})["weighted"]
        operator[2, 128](x, y)
        np.testing.assert_array_equal(y, np.float32(weight) * x)
    with pytest.raises(InputError, match="another size"):
        load(WEIGHTED, constants={"weights": weights[:2]})
    with pytest.raises(InputError, match="allowed: weights"):
        load(WEIGHTED, constants={"wieghts": weights})


def test_checked_mode_and_options_do_not_lift() -> None:
    x, y = vectors()
    operator = load(SAXPY, checked=True)["saxpy"]
    operator[4, 256](x, y, 2.0, N)
    assert operator.status == "spmd" and "checked" in operator.reason


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "bool"])
def test_arrays_are_alike_up_to_rounding(dtype: str) -> None:
    a = (np.arange(600_001) % 100).astype(dtype)
    assert _alike(a, a.copy())
    for place in (0, 600_000):
        b = a.copy()
        b[place] = a[place] + (np.inf if dtype[0] == "f" else 0 if dtype == "bool" else 2)
        assert _alike(a, b) == (dtype == "bool")
    if dtype[0] == "f":
        near, far = a + np.float32(0.01 if dtype == "float32" else 0.1), a.copy()
        far[7] += np.float32(5)
        assert _alike(near.astype(dtype), a) and not _alike(far, a)


def test_integers_wrap() -> None:
    a = np.array([2**31 - 1, 5], np.int32)
    load(BUMP)["bump"][1, 2](a, 1)
    np.testing.assert_array_equal(a, [-(2**31), 6])


def test_without_cache_nothing_is_written(folder: Path) -> None:
    x, y = vectors()
    load(SAXPY, cache=False)["saxpy"][4, 256](x, y, 2.0, N)
    assert not folder.exists()
    assert Cache(None).read("0" * 64) is None
