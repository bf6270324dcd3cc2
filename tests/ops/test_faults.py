"""Bad input and faults: what cannot be computed is refused with a place and a reason, and nothing damaged is believed."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import GewuError, InputError, ResourceError
from gewu.ops import load
from gewu.ops.cache import Cache, cache_folder, key_of
from gewu.ops.ir import Unsupported
from gewu.ops.kernelfile import kernel_from_json, kernel_to_json
from gewu.ops.serial import lifted_from_json, lifted_to_json, program_from_json, program_to_json
from tests.ops.programs import RIGHT, matmul, mutants, saxpy
from tests.ops.ptxtext import HALT, LOOP, SAXPY, module

N = 1000


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("GEWU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def vectors() -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    return rng.standard_normal(N).astype(np.float32), rng.standard_normal(N).astype(np.float32)


def compute() -> Any:
    x, y = vectors()
    operator = load(SAXPY)["saxpy"]
    operator[4, 256](x, y, 2.0, N)
    start = vectors()
    np.testing.assert_allclose(y, np.float32(2.0) * start[0] + start[1], rtol=1e-6, atol=1e-6)
    return operator


def test_an_unknown_opcode_refuses_its_kernel_only_and_is_named() -> None:
    found = load(module(SAXPY, HALT))
    assert found.names == ["saxpy"]
    assert "frobnicate" in found.refused["halt"]
    with pytest.raises(Unsupported, match="frobnicate"):
        found["halt"]


def test_out_of_bounds_is_told_with_thread_and_address() -> None:
    x, y = vectors()
    short = x[:900].copy()
    with pytest.raises(InputError) as caught:
        load(SAXPY, checked=True)["saxpy"][4, 256](short, y, 2.0, N)
    text = str(caught.value)
    assert "access outside" in text and "block (3, 0, 0)" in text and "address 0x" in text
    thread = 900 - 3 * 256
    assert f"thread ({thread // 32 * 32 + thread % 32}, 0, 0)" in text


def test_out_of_bounds_is_told_by_the_interpreter_too() -> None:
    x, y = vectors()
    with pytest.raises(InputError, match=r"(?i)thread") as caught:
        load(SAXPY, use="reference", checked=True)["saxpy"][4, 256](x[:900].copy(), y, 2.0, N)
    assert "byte 3600 of argument 0" in str(caught.value) and "thread (132, 0, 0)" in str(caught.value)


@pytest.mark.parametrize("use", ["spmd", "reference"])
def test_an_endless_loop_ends_at_the_step_limit(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gewu.ops.spmd.STEP_LIMIT", 1 << 16)
    monkeypatch.setattr("gewu.ops.route.STEP_LIMIT", 1 << 16)
    operator = load(LOOP, use=use, checked=True)["forever"]
    with pytest.raises(InputError, match=r"endless|may not end"):
        operator[1, 32](np.ones(1, np.int32))


def test_a_missing_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "k.cu"
    source.write_text('extern "C" __global__ void f(float* x) { x[0] = 1.0f; }\n')
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    from gewu.ops import cuda

    for name in ("toolchain", "find_nvcc", "find_nvrtc"):
        cached = getattr(cuda, name, None)
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()
    try:
        with pytest.raises((ResourceError, InputError), match=r"(?i)install"):
            load(source)
    finally:
        for name in ("toolchain", "find_nvcc", "find_nvrtc"):
            cached = getattr(cuda, name, None)
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF" + bytes(100), b".version 8.0\n", b"\xff" * 64, SAXPY[:-80]])
def test_truncated_files_are_refused(data: bytes) -> None:
    with pytest.raises(GewuError):
        load(data)["saxpy"]


def test_damaged_entries_of_the_cache_are_ignored_and_written_anew(folder: Path) -> None:
    compute()
    entries = sorted(folder.glob("*.json"))
    assert len(entries) >= 2
    rng = np.random.default_rng(9)
    for path in entries:
        good = path.read_bytes()
        damaged = bytearray(good)
        damaged[int(rng.integers(len(good)))] ^= 0x15
        for bad in (
            b"",
            good[: len(good) // 2],
            bytes(damaged),
            b"[" * 100_000,
            b"\xff\x00",
            b"{}",
            b'{"digest": 1, "body": null}',
        ):
            path.write_bytes(bad)
            assert compute().status == "lifted"
            load(SAXPY, use="spmd")["saxpy"].prepare(4, 256, *vectors(), 2.0, N)  # reads the kernel, which a lifted one need not
            assert json.loads(path.read_bytes()) == json.loads(good)


def test_damaged_machine_code_is_compiled_anew(folder: Path) -> None:
    compute()
    objects = sorted(folder.glob("*.object"))
    assert objects
    for path in objects:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    assert compute().status == "lifted"


def test_entries_with_a_good_digest_but_another_form_are_ignored(folder: Path) -> None:
    compute()
    cache = Cache(folder)
    for path in sorted(folder.glob("*.json")):
        for body in (
            {},
            {"proofs": [{}], "failures": {}},
            {"proofs": 3, "failures": []},
            {"signatures": [1], "refused": []},
            [1],
            None,
        ):
            cache.write(path.stem, body)  # type: ignore[arg-type]
            assert compute().status == "lifted"


def test_entries_of_another_version_are_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from gewu.ops import cache

    before = key_of("a", 1)
    assert key_of("a", 1) == before != key_of("a", 2)
    cache.machine_key.cache_clear()
    monkeypatch.setattr(cache, "__version__", "0.0.0")
    try:
        assert key_of("a", 1) != before
    finally:
        cache.machine_key.cache_clear()


def test_a_folder_that_others_may_write_is_not_used(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    assert Cache(folder).folder is None
    compute()
    assert list(folder.iterdir()) == []
    folder.chmod(0o700)
    assert Cache(folder).folder == cache_folder()


def test_a_cache_that_cannot_be_written_costs_only_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> str:
        raise ResourceError("the disk is full")

    monkeypatch.setattr("gewu.ops.cache.write_atomic", full)
    assert compute().status == "lifted"


def test_a_wrong_lift_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from gewu.ops import route

    right = load(SAXPY, cache=False)["saxpy"]
    right.prepare(4, 256, *vectors(), 2.0, N)
    good = right.router.proof.lifted  # type: ignore[union-attr]
    wrong = [program for _, program in mutants(good.program)]
    assert len(wrong) >= 6
    for program in wrong:
        monkeypatch.setattr(route, "readings", lambda *_, program=program, **__: repeat(replace(good, program=program)))
        x, y = vectors()
        operator = load(SAXPY, cache=False)["saxpy"]
        operator[4, 256](x, y, 2.0, N)
        assert operator.status == "spmd" and "refuted" in operator.reason
        np.testing.assert_allclose(y, np.float32(2.0) * x + vectors()[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", RIGHT, ids=lambda f: f.__name__)
def test_mutated_programs_are_read_as_programs_or_refused(make: Any) -> None:
    text = json.dumps(lifted_to_json(make()))
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(300):
        place = int(rng.integers(len(text)))
        changed = text[:place] + chr(int(rng.integers(32, 127))) + text[place + int(rng.integers(3)) :]
        try:
            lifted_from_json(json.loads(changed))
        except (InputError, ValueError):
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["nodes"].append(["Eval", "f32", 0]),
        lambda t: t["nodes"].insert(0, ["Apply", "add", "f32", [0, 1], []]),
        lambda t: t["nodes"].append(["Apply", "system", "f32", [0], []]),
        lambda t: t["nodes"].append(["Constant", "f32", 1 << 40]),
        lambda t: t["nodes"].append(["Load", -1, "f32", [[], []], []]),
        lambda t: t["nodes"].append(["Load", 0, "f31", [[], []], []]),
        lambda t: t["nodes"].append(["Load", 0, ["f32"], [[], []], []]),
        lambda t: t["nodes"].append(["Load", 0, "f32", [[["i", [[1, ["os"]]]]], []], []]),
        lambda t: t["nodes"].append(["Load", 0.0, "f32", [[], []], []]),
        lambda t: t["nodes"].append(["Load", True, "f32", [[], []], []]),
        lambda t: t["assigns"].append([0, "f32", [], [[], []], 999, []]),
        lambda t: t.update(more=1),
    ],
)
def test_hostile_programs_are_refused(change: Any) -> None:
    table = json.loads(json.dumps(program_to_json(matmul().program)))
    change(table)
    with pytest.raises(InputError, match="not a stored program"):
        program_from_json(table)


def test_sizes_nested_too_deeply_are_refused() -> None:
    size: Any = [[1, []]]
    for _ in range(100):
        size = [[1, [[size, [[2, []]]]]]]
    table = lifted_to_json(saxpy()) | {"rule": [size, size, size]}
    with pytest.raises(InputError):
        lifted_from_json(json.loads(json.dumps({**table, "pinned": [], "types": []})))


def test_kernels_survive_being_stored_and_mutated_ones_are_refused_or_kernels() -> None:
    kernel = load(SAXPY)["saxpy"].router.kernel
    text = json.dumps(kernel_to_json(kernel))
    assert kernel_from_json(json.loads(text)) == kernel
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(300):
        place = int(rng.integers(len(text)))
        changed = text[:place] + chr(int(rng.integers(32, 127))) + text[place + int(rng.integers(3)) :]
        try:
            kernel_from_json(json.loads(changed))
        except (InputError, ValueError):
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("key", ["blocks", "widths", "numbers", "parameters", "data"])
@pytest.mark.parametrize(
    "value", [None, [], 3, "x", [[1]], {"a": "b"}, [-1, 0, 0], [[[["eval", "f32", [], [], [], None, ""]], []]]]
)
def test_hostile_kernels_are_refused(key: str, value: Any) -> None:
    table = kernel_to_json(load(SAXPY)["saxpy"].router.kernel)
    if key == "parameters" and value == []:
        pytest.skip("a kernel may have no parameters")
    with pytest.raises(InputError):
        kernel_from_json({**table, key: value})


@pytest.mark.parametrize("where", ["gewu.ops.route.readings", "gewu.ops.emit.compile_program"])
def test_a_fault_of_the_analysis_leaves_the_other_way(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(where, broken)
    x, y = vectors()
    operator = load(SAXPY, cache=False)["saxpy"]
    operator[4, 256](x, y, 2.0, N)
    assert operator.status == "spmd" and "IndexError" in operator.reason
    np.testing.assert_allclose(y, np.float32(2.0) * x + vectors()[1], rtol=1e-6, atol=1e-6)
