"""Compilation of LLVM text: in the process, from the folder of objects, and for other processors."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from gewu.core.errors import InputError, ResourceError
from gewu.ops import llvm

AXPY = """
define void @axpy(i64 %n, float %a, ptr noalias %x, ptr noalias %y) #0 {
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %px = getelementptr float, ptr %x, i64 %i
  %py = getelementptr float, ptr %y, i64 %i
  %vx = load float, ptr %px
  %vy = load float, ptr %py
  %m = fmul float %a, %vx
  %s = fadd float %m, %vy
  store float %s, ptr %py
  %next = add nsw i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %end
end:
  ret void
}
"""
ELF_MACHINE = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "loongarch64": 258, "gfx90a": 224, "gfx942": 224}


def _run(library: llvm.Library) -> np.ndarray:
    x, y = np.arange(37, dtype=np.float32), np.ones(37, np.float32)
    call = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p, ctypes.c_void_p)(library.address("axpy"))
    call(37, 2.0, x.ctypes.data, y.ctypes.data)
    return y


def test_jit_computes_and_vectorises() -> None:
    library = llvm.jit(AXPY, fast=True)
    np.testing.assert_array_equal(_run(library), 2 * np.arange(37) + 1)
    assert f"<{llvm.host_vector_bits() // 32} x float>" in library.optimised
    assert "x float>" not in llvm.jit(AXPY, vectorise=False).optimised
    with pytest.raises(InputError):
        library.address("missing")


def test_cache_is_used_and_damage_is_ignored(tmp_path: Path) -> None:
    assert not llvm.jit(AXPY, cache=tmp_path / "c").cached
    (path,) = (tmp_path / "c").iterdir()
    again = llvm.jit(AXPY, cache=tmp_path / "c")
    assert again.cached
    np.testing.assert_array_equal(_run(again), 2 * np.arange(37) + 1)
    good = path.read_bytes()
    for bad in (good[:-1], good[:100] + b"\0\1" + good[102:], b"", good[:20]):
        path.write_bytes(bad)
        library = llvm.jit(AXPY, cache=tmp_path / "c")
        assert not library.cached
        np.testing.assert_array_equal(_run(library), 2 * np.arange(37) + 1)
        assert path.read_bytes() == good


@pytest.mark.parametrize("text", ["define nonsense", "define void @f() { ret i32 1 }", ""])
def test_bad_text_is_refused(text: str) -> None:
    if not text:
        with pytest.raises(InputError):
            llvm.jit(text).address("f")
        return
    with pytest.raises(InputError):
        llvm.jit(text)
    with pytest.raises(InputError):
        llvm.emit_object(text, "x86_64")


@pytest.mark.parametrize("target", ["x86_64-v4", "aarch64", pytest.param("riscv64-v", marks=pytest.mark.slow), "gfx942"])
def test_objects(target: str) -> None:
    code = llvm.emit_object(AXPY, target)
    assert code[:4] == b"\x7fELF"
    machines = {name: number for name, number in ELF_MACHINE.items() if target.startswith(name)}
    assert int.from_bytes(code[18:20], "little") in machines.values()


def test_ptx_is_assembly_only() -> None:
    assert ".visible .func axpy" in llvm.emit_assembly(AXPY, "sm_90")
    with pytest.raises(InputError):
        llvm.emit_object(AXPY, "sm_90")
    with pytest.raises(InputError):
        llvm.emit_object(AXPY, "z80")


def test_an_abort_of_llvm_does_not_end_this_process() -> None:
    bad = 'define void @f() { call void asm sideeffect "nonsense here", ""() ret void }'
    with pytest.raises(ResourceError):
        llvm.jit(bad)
    np.testing.assert_array_equal(_run(llvm.jit(AXPY)), 2 * np.arange(37) + 1)


def test_a_dying_back_end_is_an_error() -> None:
    with pytest.raises(ResourceError):
        llvm.emit_object('define void @f() { call void asm sideeffect "nonsense here", ""() ret void }', "aarch64")
