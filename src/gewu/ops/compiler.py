"""A standing process that compiles LLVM text for the processor at hand, so that an abort of LLVM is an error and not our end.

A request is a line of JSON (bytes of text to come, whether to vectorise) and the text; the answer is a line of JSON (bytes of
object and of optimised text, or an error) and both. When the process dies, the text is tried again in a fresh one with a fixed
vector width, which spares LLVM's comparison of its cost models, then without loop vectorisation."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from typing import Any, Final

from gewu.core.errors import InputError, ResourceError

TIMEOUT: Final = 120.0
"""Seconds after which a compilation is given up."""
_lock = threading.Lock()
_running: dict[int, subprocess.Popen[bytes]] = {}


@atexit.register
def _close() -> None:
    if os.getpid() in _running:
        _stop(_running.pop(os.getpid()))


class _Died(Exception):
    """The process ended, or did not answer in time."""


def compile_text(text: str, vectorise: bool) -> tuple[bytes, str]:
    """Return object code and optimised text.

    Raises:
        InputError: the text is not LLVM.
        ResourceError: LLVM cannot compile it.
    """
    with _lock:
        try:
            return _ask(_standing(), text, vectorise)
        except _Died:
            _stop(_running.pop(os.getpid()))
        for width, vectorised in ((8, vectorise), (0, False)):
            process = _start(width)
            try:
                return _ask(process, text, vectorised)
            except _Died:
                continue
            finally:
                _stop(process)
    raise ResourceError("LLVM cannot compile this text", hint="it ended three times; please report the kernel")


def _standing() -> subprocess.Popen[bytes]:
    """Return this process's compiler; one that a parent process started is not ours."""
    found = _running.get(os.getpid())
    if found is None or found.poll() is not None:
        _running.clear()
        found = _running[os.getpid()] = _start(0)
    return found


def _start(width: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gewu.ops.compiler", str(width)]
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError as error:
        raise ResourceError(f"the compiler cannot be started: {error.strerror}") from error


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _ask(process: subprocess.Popen[bytes], text: str, vectorise: bool) -> tuple[bytes, str]:
    data = text.encode()
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps({"bytes": len(data), "vectorise": vectorise}).encode() + b"\n" + data)
        process.stdin.flush()
    except OSError as error:
        raise _Died from error
    if not select.select([process.stdout], [], [], TIMEOUT)[0]:
        raise _Died
    try:
        answer = json.loads(process.stdout.readline())
    except ValueError as error:
        raise _Died from error
    if "error" in answer:
        raise InputError(answer["error"])
    code, optimised = process.stdout.read(answer["object"]), process.stdout.read(answer["text"])
    if len(code) != answer["object"] or len(optimised) != answer["text"]:
        raise _Died
    return code, optimised.decode()


def main(width: int) -> None:
    """Answer requests on standard input until it ends; `width`: elements of a vector, 0 for LLVM's choice."""
    import llvmlite.binding as binding

    from gewu.ops.llvm import host

    if width:
        binding.set_option("gewu", f"--force-vector-width={width}")
    cpu, features = host()
    machine = binding.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=3, jit=True)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while line := source.readline():
        request = json.loads(line)
        target.write(b"".join(_answer(request, source.read(request["bytes"]).decode(), machine, binding)))
        target.flush()


def _answer(request: dict[str, Any], text: str, machine: Any, binding: Any) -> tuple[bytes, bytes, bytes]:
    from gewu.ops.llvm import optimise

    try:
        module = optimise(text, machine, binding.get_process_triple(), request["vectorise"])
    except InputError as error:
        return json.dumps({"error": error.message}).encode() + b"\n", b"", b""
    optimised, code = str(module).encode(), machine.emit_object(module)
    return json.dumps({"object": len(code), "text": len(optimised)}).encode() + b"\n", code, optimised


if __name__ == "__main__":
    main(int(sys.argv[1]))
