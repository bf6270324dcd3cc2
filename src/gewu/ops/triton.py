"""Compile functions of Triton to PTX or a cubin; Triton is optional, and no GPU is needed.

A kernel of Triton takes, behind its own arguments, two pointers to scratch memory (global and profiling) that it only uses when
its metadata say so; pass any array for them.  Its tiles may need dynamic shared memory: `TritonKernel.shared` bytes of it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gewu.core.errors import InputError, ResourceError

_FORMS = ("ptx", "cubin")


@dataclass(frozen=True, slots=True)
class TritonKernel:
    """A compiled kernel.

    Attributes:
        name: of its entry.
        code: the text of the PTX, or the cubin.
        threads: of a block, all along x.
        shared: bytes of dynamic shared memory.
    """

    name: str
    code: bytes
    threads: int
    shared: int


def compile_triton(
    function: Any, signature: Mapping[str, str], constants: Mapping[str, Any], arch: str = "sm_90", *, to: str = "ptx"
) -> bytes:
    """Compile a `@triton.jit` function and return its PTX or cubin; arguments and errors as for `build_triton`."""
    return build_triton(function, signature, constants, arch, to=to).code


def build_triton(
    function: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    arch: str = "sm_90",
    *,
    to: str = "ptx",
    warps: int = 4,
) -> TritonKernel:
    """Compile a `@triton.jit` function with what its launch has to know.

    Args:
        function: the decorated function.
        signature: type of each argument that is no constant, as Triton spells it: `{"x": "*fp32", "n": "i32"}`.
        constants: values of the `tl.constexpr` arguments.
        arch: `sm_80`, `sm_90` ...
        to: "ptx" or "cubin".
        warps: of a block.

    Raises:
        ResourceError: Triton is not installed.
        InputError: Triton refuses the function.
    """
    if importlib.util.find_spec("triton") is None:
        raise ResourceError("Triton is not installed", hint="install it: pip install triton")
    if to not in _FORMS:
        raise InputError("an unknown form of code", value=to, allowed=" or ".join(_FORMS))
    number = re.fullmatch(r"sm_(\d{2,3})[af]?", arch)
    if number is None:
        raise InputError("an unknown architecture", value=arch, allowed="sm_80, sm_90 ...")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = getattr(function, "arg_names", None)
    if names is None:
        raise InputError("not a function that @triton.jit made", value=type(function).__name__)
    missing = [name for name in names if name not in signature and name not in constants]
    if missing:
        raise InputError("an argument without a type or a value", value=", ".join(missing))
    types = {name: "constexpr" if name in constants else signature[name] for name in names}
    options = {"num_warps": warps, "enable_fp_fusion": True}
    try:
        made = triton.compile(
            ASTSource(function, types, constexprs=dict(constants)), target=GPUTarget("cuda", int(number[1]), 32), options=options
        )
    except Exception as error:  # Triton has no common class of errors
        raise InputError(f"Triton does not compile it: {str(error)[:400]}", value=names) from error
    code = made.asm[to]
    return TritonKernel(made.metadata.name, code.encode() if isinstance(code, str) else code, 32 * warps, made.metadata.shared)
