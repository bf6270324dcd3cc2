"""LLVM text to machine code: compiled into this process, or to an object or assembly file for another processor.

`jit` compiles for the processor at hand (its name and features, -O3 with loop and SLP vectorisation) and may keep the object
in a folder. `emit_object` and `emit_assembly` compile for a target of TARGETS. All compilation is done in other processes,
because LLVM ends its process on what a back end cannot do and on contradictions in its own optimiser (`compiler`). NVPTX gives
assembly (PTX) only; AMDGPU objects are relocatable.

A text may name the attribute group `#0` without defining it: it becomes what suits the target (vector width).
Limits: cached objects are trusted as code once their digest fits, so the folder must belong to the user.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import llvmlite.binding as binding

from gewu.core.errors import GewuError, InputError, ResourceError
from gewu.core.files import read_capped, write_atomic
from gewu.ops import compiler

_LIMIT: Final = 1 << 28
_MAGIC: Final = b"gewu-object 1\n"
FAST: Final = "reassoc nsz arcp contract afn"
"""Freedom to reorder and contract; NaN and infinity keep their meaning."""


@dataclass(frozen=True, slots=True)
class Target:
    """A processor family: LLVM triple, processor, features; `kind` is "cpu", "amdgpu" or "nvptx"."""

    triple: str
    cpu: str
    features: str
    kind: str = "cpu"


TARGETS: Final = {
    "x86_64": Target("x86_64-unknown-linux-gnu", "x86-64", ""),
    "x86_64-v3": Target("x86_64-unknown-linux-gnu", "x86-64-v3", ""),
    "x86_64-v4": Target("x86_64-unknown-linux-gnu", "x86-64-v4", ""),
    "aarch64": Target("aarch64-unknown-linux-gnu", "generic", "+neon"),
    "aarch64-sve": Target("aarch64-unknown-linux-gnu", "generic", "+sve"),
    "riscv64": Target("riscv64-unknown-linux-gnu", "generic-rv64", "+m,+a,+f,+d,+c"),
    "riscv64-v": Target("riscv64-unknown-linux-gnu", "generic-rv64", "+m,+a,+f,+d,+c,+v"),
    "loongarch64": Target("loongarch64-unknown-linux-gnu", "generic-la64", "+f,+d,-lsx,-lasx"),
    "loongarch64-lasx": Target("loongarch64-unknown-linux-gnu", "la464", "+f,+d,+lsx,+lasx"),
    "gfx90a": Target("amdgcn-amd-amdhsa", "gfx90a", "", "amdgpu"),
    "gfx942": Target("amdgcn-amd-amdhsa", "gfx942", "", "amdgpu"),
    "sm_80": Target("nvptx64-nvidia-cuda", "sm_80", "+ptx80", "nvptx"),
    "sm_90": Target("nvptx64-nvidia-cuda", "sm_90", "+ptx80", "nvptx"),
}
"""Targets by the names that users give."""


@dataclass(slots=True)
class Library:
    """Compiled functions; they live as long as this object.

    Attributes:
        cached: whether the machine code came from the folder.
        optimised: LLVM text after optimisation ("" when cached).
    """

    cached: bool
    optimised: str
    _engine: Any = field(repr=False)

    def address(self, name: str) -> int:
        """Return the address of a function, for ctypes.

        Raises:
            InputError: there is no such function.
        """
        address = int(self._engine.get_function_address(name))
        if not address:
            raise InputError("no such function was compiled", value=name)
        return address


@lru_cache(maxsize=1)
def host() -> tuple[str, str]:
    """Return name and features of the processor at hand, as LLVM names them."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()


def host_vector_bits() -> int:
    """Return the width of the widest vector registers that the host's code should use (128, 256 or 512)."""
    features = set(host()[1].split(","))
    return 512 if "+avx512f" in features else 256 if features & {"+avx2", "+lasx"} else 128


def attributes(target: str | None = None) -> str:
    """Return the function attributes that suit a target (None: the host), for an attribute group or a definition."""
    wide = host_vector_bits() == 512 if target is None else target == "x86_64-v4"
    return "nounwind" + (' "prefer-vector-width"="512"' if wide else "")


def words(text: str) -> str:
    """Write out `%name = word TYPE %base INDEX` in LLVM text: the load of the 64-bit word of that number from an address on."""
    made = r"%\1.at = getelementptr i64, ptr %\3, i64 \4\n  %\1 = load \2, ptr %\1.at"
    return re.sub(r"%(\w+) = word (\w+) %(\w+) (%?\w+)", made, text)


def jit(text: str, *, fast: bool = False, vectorise: bool = True, cache: Path | None = None) -> Library:
    """Compile LLVM text for the processor at hand and load it.

    Args:
        text: an LLVM module.
        fast: give every floating operation of the text the flags of FAST.
        vectorise: run the loop and SLP vectorisers.
        cache: folder for the object, or None. A damaged file there is ignored and replaced.

    Raises:
        InputError: the text is not LLVM.
        ResourceError: LLVM cannot compile it.
    """
    cpu, features = host()
    text = _complete(text, None, fast)
    version = ".".join(map(str, binding.llvm_version_info))
    key = hashlib.sha256("\0".join((text, cpu, features, version, str(vectorise))).encode()).hexdigest()
    path = None if cache is None else cache / f"{key}.object"
    code, optimised = (_from_cache(path) if path else None), ""
    cached = code is not None
    if code is None:
        code, optimised = compiler.compile_text(text, vectorise)
        if path:
            _to_cache(path, code)
    machine = binding.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=3, jit=True)
    empty = binding.parse_assembly("")
    empty.triple = binding.get_process_triple()
    engine = binding.create_mcjit_compiler(empty, machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return Library(cached, optimised, engine)


def emit_object(text: str, target: str, *, fast: bool = False) -> bytes:
    """Compile LLVM text to an object file for a target of TARGETS, in a process of its own.

    Raises:
        InputError: unknown target, or the text is not LLVM.
        ResourceError: LLVM's back end for this target failed.
    """
    if TARGETS.get(target, TARGETS["x86_64"]).kind == "nvptx":
        raise InputError("this target gives assembly (PTX) only", key="target", value=target)
    return _emit(text, target, "object", fast)


def emit_assembly(text: str, target: str, *, fast: bool = False) -> str:
    """Compile LLVM text to assembly for a target of TARGETS, in a process of its own; PTX for NVPTX.

    Raises:
        InputError: unknown target, or the text is not LLVM.
        ResourceError: LLVM's back end for this target failed.
    """
    return _emit(text, target, "assembly", fast).decode()


def _emit(text: str, target: str, what: str, fast: bool) -> bytes:
    if target not in TARGETS:
        raise InputError("unknown target", key="target", value=target, allowed=", ".join(TARGETS))
    command = [sys.executable, "-m", "gewu.ops.llvm", target, what]
    given = _complete(text, target, fast).encode()
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=compiler.TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise ResourceError(f"LLVM takes more than {compiler.TIMEOUT:.0f} s", key=target) from None
    if done.returncode == InputError.exit_code:
        raise InputError(done.stderr.decode(errors="replace").strip(), key=target)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip()[-400:]
        raise ResourceError(f"LLVM cannot compile this for the target: {last or 'it ended'}", key=target)
    return done.stdout


def _complete(text: str, target: str | None, fast: bool) -> str:
    if fast:
        text = re.sub(r"= (fadd|fsub|fmul|fdiv|frem|fneg|fcmp)(?: (?:reassoc|nsz|arcp|contract|afn))* ", rf"= \1 {FAST} ", text)
    if "#0" in text and "attributes #0" not in text:
        text += f"\nattributes #0 = {{ {attributes(target)} }}\n"
    return text


def optimise(text: str, machine: Any, triple: str, vectorise: bool) -> Any:
    """Return a module at -O3.

    Raises:
        InputError: the text is not LLVM.
    """
    try:
        module = binding.parse_assembly(text)
        module.verify()
    except RuntimeError as error:
        raise InputError(f"is not LLVM text: {str(error).strip()}") from None
    module.triple, module.data_layout = triple, str(machine.target_data)
    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = vectorise
    options.loop_interleaving = options.loop_unrolling = True
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module


def _from_cache(path: Path) -> bytes | None:
    try:
        data = read_capped(path, _LIMIT)
    except InputError:
        return None
    head, digest, code = data[: len(_MAGIC)], data[len(_MAGIC) : len(_MAGIC) + 32], data[len(_MAGIC) + 32 :]
    return code if head == _MAGIC and digest == hashlib.sha256(code).digest() else None


def _to_cache(path: Path, code: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, _MAGIC + hashlib.sha256(code).digest() + code)
    except (OSError, GewuError):
        return  # a cache that cannot be written costs time, not the answer


def main(arguments: list[str]) -> int:
    """Compile standard input for a target to standard output: `TARGET object|assembly`; the child side of `emit_object`."""
    target, what = TARGETS[arguments[0]], arguments[1]
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc="pic"
    )
    try:
        module = optimise(sys.stdin.buffer.read().decode(), machine, target.triple, vectorise=target.kind == "cpu")
    except InputError as error:
        print(error.message, file=sys.stderr)
        return InputError.exit_code
    out = machine.emit_object(module) if what == "object" else machine.emit_assembly(module).encode()
    sys.stdout.buffer.write(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
