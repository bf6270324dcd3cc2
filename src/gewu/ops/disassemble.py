"""Run NVIDIA's disassembler, which is a separate free download, on an object file that was checked before."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

from gewu.core.errors import InputError, ResourceError
from gewu.core.files import write_atomic

_WHEELS = ("nvidia-cuda-nvdisasm", "triton")
_MEMORY_LIMIT = 2 << 30


def find_nvdisasm() -> Path | None:
    """Return nvdisasm from $GEWU_NVDISASM, PATH, the scripts folder of this Python, or an installed wheel that holds it."""
    if named := os.environ.get("GEWU_NVDISASM"):
        return Path(named) if os.access(named, os.X_OK) else None
    if found := shutil.which("nvdisasm") or shutil.which("nvdisasm", path=sysconfig.get_path("scripts")):
        return Path(found)
    for wheel in _WHEELS:
        try:
            files = importlib.metadata.files(wheel) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            path = Path(str(file.locate()))
            if file.name in ("nvdisasm", "nvdisasm.exe") and os.access(path, os.X_OK):
                return path
    return None


def disassemble(data: bytes, file: str = "", timeout_s: float | None = None) -> str:
    """Return the text of the code in a cubin.

    Args:
        data: the object file.
        file: name for messages.
        timeout_s: seconds after which the disassembler is stopped: damaged files make it run for ever; None: 4, and one more
            for each 20000 bytes, many times what sound files take.

    Raises:
        ResourceError: no disassembler; the message says what to install.
        InputError: it refuses the file or takes too long.
    """
    timeout_s = 4 + len(data) / 20_000 if timeout_s is None else timeout_s
    program = find_nvdisasm()
    if program is None:
        raise ResourceError(
            "reading machine code needs nvdisasm", hint="pip install nvidia-cuda-nvdisasm, or set GEWU_NVDISASM to it"
        )
    with tempfile.TemporaryDirectory(prefix="gewu-") as folder:
        path = Path(folder) / "code.cubin"
        write_atomic(path, data)
        command = [str(program), "-c", str(path)]
        if limiter := shutil.which("prlimit"):
            command = [limiter, f"--as={_MEMORY_LIMIT}", *command]
        try:
            done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False, cwd=folder)
        except subprocess.TimeoutExpired:
            raise InputError("disassembler did not finish", file=file or None, value=f"{timeout_s:g} s") from None
        except OSError as error:
            raise ResourceError("disassembler cannot be started", file=str(program), value=error.strerror) from None
        if done.returncode:
            words = re.sub(re.escape(folder) + r"\S*", "", done.stderr.decode("utf-8", "replace")).strip().splitlines()
            raise InputError(
                "disassembler refuses the code", file=file or None, value=words[0] if words else f"exit code {done.returncode}"
            )
    return done.stdout.decode("utf-8", "replace")
