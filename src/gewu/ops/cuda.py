"""Compile CUDA C++ to PTX or a cubin: with nvcc, or with NVRTC from PyPI; neither needs a GPU.

nvcc is taken from PATH, CUDA_HOME or CUDA_PATH.  Without it, PTX comes from NVRTC (`pip install nvidia-cuda-nvrtc
nvidia-cuda-runtime`; the second brings `cuda_fp16.h` and the other headers), and cubins from that PTX through `ptxas`.  NVRTC
compiles device code only: a source that also holds host code needs nvcc.

With a cache folder the result is kept under a hash of the source, of the files that it includes by `#include "..."`, of the
options and of the compiler's version.  A source whose includes cannot all be found next to it is compiled anew every time.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from gewu.core.errors import GewuError, InputError, ResourceError
from gewu.core.files import read_capped, write_atomic

_HINT: Final = "install the CUDA toolkit so that nvcc is on PATH, or: pip install nvidia-cuda-nvrtc nvidia-cuda-runtime"
_MOST_SOURCE: Final = 16 << 20
_MOST_OUTPUT: Final = 1 << 28
_TIMEOUT_S: Final = 600
_INCLUDE: Final = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*(?:"([^"\n]+)"|<[^>\n]+>|(\S.*))', re.MULTILINE)
_FORMS: Final = ("ptx", "cubin")


def find_nvcc() -> Path | None:
    """Return the path of nvcc, or None."""
    return _tool("nvcc")


def find_nvrtc() -> Path | None:
    """Return the newest NVRTC library that a wheel of PyPI installed, or None."""
    found = [path for root in _wheels() for path in root.glob("*/lib/libnvrtc.so.*") if "builtins" not in path.name]
    return max(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)], default=None)


def toolchain() -> str:
    """Return the name and version of the compiler that `compile_cuda` uses, for keys of caches.

    Raises:
        ResourceError: there is none; says what to install.
    """
    nvcc = find_nvcc()
    if nvcc is not None:
        return _version(nvcc, nvcc.stat().st_mtime_ns)
    library = find_nvrtc()
    if library is None:
        raise ResourceError("no compiler for CUDA", hint=_HINT)
    major, minor = ctypes.c_int(), ctypes.c_int()
    _load(library).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"NVRTC {major.value}.{minor.value} {library}"


def compile_cuda(
    source: Path | str, *, arch: str = "sm_90", to: str = "ptx", options: Sequence[str] = (), cache: Path | None = None
) -> bytes:
    """Compile CUDA C++.

    Args:
        source: a file (Path) or the text itself (str).
        arch: `sm_80`, `sm_90` ...
        to: "ptx" or "cubin".
        options: further options of the compiler.
        cache: a folder for results, or None.

    Returns:
        The text of the PTX as bytes, or the cubin.

    Raises:
        InputError: the compiler refuses the source; tells its first errors.
        ResourceError: no compiler; says what to install.
    """
    if to not in _FORMS:
        raise InputError("an unknown form of code", value=to, allowed=" or ".join(_FORMS))
    if not re.fullmatch(r"sm_\d{2,3}[af]?", arch):
        raise InputError("an unknown architecture", value=arch, allowed="sm_80, sm_90 ...")
    version = toolchain()
    texts = _texts(source)
    kept = None
    if cache is not None and texts is not None:
        state = hashlib.sha256()
        for part in (version.encode(), arch.encode(), to.encode(), *(o.encode() for o in options), *texts):
            state.update(len(part).to_bytes(8, "little") + part)
        kept = cache / f"{state.hexdigest()}.{to}"
        made = _kept(kept)
        if made is not None:
            return made
    made = _with_nvcc(source, arch, to, options) if find_nvcc() else _with_nvrtc(source, arch, to, options)
    if kept is not None:
        _keep(kept, made)
    return made


def _tool(name: str) -> Path | None:
    found = shutil.which(name)
    if found:
        return Path(found)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        path = Path(os.environ.get(variable) or "/nonexistent") / "bin" / name
        if os.access(path, os.X_OK):
            return path
    return None


def _wheels() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    return [Path(place) for place in spec.submodule_search_locations or ()] if spec is not None else []


@lru_cache(maxsize=8)
def _version(program: Path, changed: int) -> str:
    """Return what a program says of itself; `changed`: its time of change, so that a new one is asked again."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except OSError as error:
        raise ResourceError(f"cannot be started: {error.strerror}", file=program, hint=_HINT) from error
    return f"{program} {changed} {done.stdout.strip()}"


def _texts(source: Path | str) -> list[bytes] | None:
    """Return the source and all files that it includes in quotes, or None when they cannot all be found."""
    if isinstance(source, str):
        return [source.encode()] if not any(m[1] or m[2] for m in _INCLUDE.finditer(source.encode())) else None
    texts, pending, seen = [], [source], set()
    while pending:
        path = pending.pop()
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        text = read_capped(path, _MOST_SOURCE)
        texts += [str(path.name).encode(), text]
        for match in _INCLUDE.finditer(text):
            name = os.fsdecode(match[1] or b"")
            if match[2] or (name and not (path.parent / name).is_file()):
                return None
            if name:
                pending.append(path.parent / name)
    return texts


def _kept(path: Path) -> bytes | None:
    """Return a result of before when its digest fits."""
    try:
        digest, _, made = read_capped(path, _MOST_OUTPUT).partition(b"\n")
    except GewuError:
        return None
    return made if hashlib.sha256(made).hexdigest().encode() == digest else None


def _keep(path: Path, made: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, hashlib.sha256(made).hexdigest().encode() + b"\n" + made)
    except (GewuError, OSError):
        return  # a cache that cannot be written costs time, not the answer


def _run(command: list[Any], file: Path | None, folder: Path | None = None) -> None:
    """Run a compiler, in a folder of temporaries where its messages shall not name that."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False, cwd=folder
        )
    except subprocess.TimeoutExpired as error:
        raise ResourceError(f"the compiler did not end in {_TIMEOUT_S} s", file=file) from error
    except OSError as error:
        raise ResourceError(f"cannot be started: {error.strerror}", file=command[0], hint=_HINT) from error
    if done.returncode:
        raise _refusal(done.stderr + done.stdout, file)


def _refusal(log: str, file: Path | None) -> InputError:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error\b(?! detected)|fatal", line)] or lines
    place = re.match(r"(.*?)\((\d+)\)", errors[0]) if errors else None
    own = place is not None and file is not None and Path(place[1]) == file  # else in a header
    line = int(place[2]) if own and place else None
    return InputError("CUDA does not compile: " + "; ".join(errors[:3])[:600], file=file, line=line)


def _with_nvcc(source: Path | str, arch: str, to: str, options: Sequence[str]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="gewu-") as folder:
        path = source if isinstance(source, Path) else Path(folder) / "kernel.cu"
        if isinstance(source, str):
            write_atomic(path, source.encode())
        made = Path(folder) / f"kernel.{to}"
        command = [find_nvcc(), f"-{to}", f"-arch={arch}", "-O3", *options, "-x", "cu", "-o", made]
        if isinstance(source, Path):
            _run([*command, path], path)
        else:
            _run([*command, path.name], None, Path(folder))
        return read_capped(made, _MOST_OUTPUT)


def _load(library: Path) -> Any:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise ResourceError("NVRTC cannot be loaded", file=library, hint=_HINT) from error


def _with_nvrtc(source: Path | str, arch: str, to: str, options: Sequence[str]) -> bytes:
    library = find_nvrtc()
    if library is None:
        raise ResourceError("no compiler for CUDA", hint=_HINT)
    nvrtc = _load(library)
    path = source if isinstance(source, Path) else None
    text = read_capped(path, _MOST_SOURCE) if path else str(source).encode()
    folders = [path.parent if path else None, *sorted(root for wheel in _wheels() for root in wheel.glob("*/include"))]
    flags = [f"--gpu-architecture=compute_{arch[3:]}", *(f"--include-path={f}" for f in folders if f is not None), *options]
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    name = os.fsencode(path or "kernel.cu")
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None):
        raise ResourceError("NVRTC cannot start", file=library)
    try:
        failed = nvrtc.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*(os.fsencode(f) for f in flags)))
        kind = "ProgramLog" if failed else "PTX"
        getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{kind}")(program, buffer)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise _refusal(buffer.value.decode(errors="replace"), path)
    return buffer.value if to == "ptx" else assemble(buffer.value, arch)


def assemble(ptx: bytes, arch: str) -> bytes:
    """Turn PTX into a cubin with ptxas.

    Raises:
        InputError: ptxas refuses it.
        ResourceError: no ptxas.
    """
    ptxas = _tool("ptxas")
    if ptxas is None:
        raise ResourceError("no ptxas for a cubin", hint="install the CUDA toolkit so that ptxas is on PATH")
    with tempfile.TemporaryDirectory(prefix="gewu-") as folder:
        path, made = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        write_atomic(path, ptx)
        _run([ptxas, f"-arch={arch}", "-O3", "-o", made, path.name], None, Path(folder))
        return read_capped(made, _MOST_OUTPUT)
