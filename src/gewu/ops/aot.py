"""Ahead of time: an operator as an object file for another processor, with a C header that is the same for all of them.

    ahead_of_time(module["saxpy"], ["aarch64", "riscv64"], "out")  ->  out/saxpy.h, out/saxpy.aarch64.o, out/saxpy.riscv64.o

Launch (or `prepare`) the operator once before: what is compiled is the way in which this launch was found to be computed.

A lifted operator becomes `int saxpy(void *a0, void *a1, float a2, uint32_t a3)`: the arguments of the kernel in its order (after
the grid, where sizes depend on it, and followed by the lengths in bytes of arrays that are indexed by data).  It returns 0; 1
when an index that was read from an array points outside of the array it indexes; 2 when memory is short.  Underneath lies
`int32_t gewu_saxpy(void **args, const int64_t *launch, void *work)` of `standalone`.

An operator that runs as it is written becomes `int saxpy(int32_t gx, int32_t gy, int32_t gz, arguments)` for the block that it
was prepared with.  It returns 0, or another number when the kernel trapped.  Underneath lies, for blocks lo <= i < hi,
`void gewu_saxpy(void *block, int32_t gx, int32_t gy, int32_t gz, int64_t lo, int64_t hi)`, which threads may share out.

For GPUs, lifted operators only: `saxpy.gfx942.o` (`ld.lld -shared` makes it a code object) or `saxpy.sm_90.ptx` holds the kernels
`gewu_saxpy_0`, ... of `gpu`.  Their header `saxpy.gfx942.h` has no function that computes, but `saxpy_gfx942_plan`, which tells
the host what to start them with.

Limits: one thread; a program holds for the sizes that the header names; objects need a C library with <math.h> (-lm).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from gewu.core.errors import InputError
from gewu.core.files import write_atomic
from gewu.ops import gpu, llvm
from gewu.ops.forms import arguments_of
from gewu.ops.guess import floats, pointers
from gewu.ops.ir import WIDTH, Parameter
from gewu.ops.launch import Module, Operator, plain_name
from gewu.ops.sizes import Ceil, Size
from gewu.ops.spmd import CONTEXT_BYTES
from gewu.ops.standalone import standalone

_C_TYPES: Final = {
    **{"f32": "float", "f64": "double", "s8": "int8_t", "u8": "uint8_t", "s16": "int16_t", "u16": "uint16_t"},
    **{"s32": "int32_t", "u32": "uint32_t", "s64": "int64_t", "u64": "uint64_t"},
}
_BY_SIZE: Final = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}
_HEADER: Final = """#ifndef GEWU_{upper}_H
#define GEWU_{upper}_H
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* {about} */

#ifdef __cplusplus
extern "C" {{
#endif
{prototypes}
#ifdef __cplusplus
}}
#endif

static inline int {name}({given})
{{
{body}
}}

#endif
"""


def ahead_of_time(what: Module | Operator, targets: Iterable[str], folder: str | Path) -> list[Path]:
    """Write objects and a header of an operator, or of every prepared operator of a module.

    Args:
        what: prepared before, by `prepare` or a launch.
        targets: names of `llvm.TARGETS`.
        folder: made when it does not exist.

    Returns:
        The files written.

    Raises:
        InputError: unknown target, or nothing is prepared.
        ResourceError: the target's compiler cannot.
    """
    operators = [what] if isinstance(what, Operator) else [what[name] for name in what.names]
    operators = [operator for operator in operators if operator.status in ("lifted", "spmd")]
    if not operators:
        raise InputError("no operator is prepared", hint="launch it once, or call prepare(grid, block, *arguments)")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[Path, bytes] = {}
    for operator in operators:
        for target in targets:
            made |= {folder / name: data for name, data in ahead_of_time_bytes(operator, target).items()}
    for path, data in made.items():
        write_atomic(path, data)
    return list(made)


def ahead_of_time_bytes(operator: Operator, target: str) -> dict[str, bytes]:
    """Return the object and the header of a prepared operator, by file name."""
    if target not in llvm.TARGETS:
        raise InputError("unknown target", key="target", value=target, allowed=", ".join(llvm.TARGETS))
    name = c_name(operator.name)
    proof = operator.router.proof
    if llvm.TARGETS[target].kind != "cpu":
        if proof is None:
            raise InputError("only lifted operators go to GPUs", key=operator.name, value=target)
        return _for_gpu(operator, name, target)
    text, header = _lifted(operator, name) if proof is not None else _as_written(operator, name)
    return {f"{name}.h": header.encode(), f"{name}.{target}.o": llvm.emit_object(text, target)}


def c_name(name: str) -> str:
    """Return the name of an operator in C and of its files: plain, but where that is no name or too long."""
    made = re.sub(r"\W", "_", plain_name(name)).lstrip("_") or "operator"
    made = f"k{made}" if made[0].isdigit() else made
    return made if len(made) <= 60 else f"{made[:50]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _lifted(operator: Operator, name: str) -> tuple[str, str]:
    proof = operator.router.proof
    assert proof is not None
    made = standalone(proof.lifted.program, f"gewu_{name}")
    block = dict(zip(("bx", "by", "bz"), proof.lifted.block, strict=True))
    given = [f"int64_t {n}" for n in made.names if n in ("gx", "gy", "gz")]
    given += _declared(operator) + [f"int64_t {n}" for n in made.names if n.startswith("bytes")]
    launch = []
    for entry in made.names:
        if entry[0] == "p":
            cast = "(int64_t)(int32_t)" if operator.parameters[int(entry[1:])].size == 4 else "(int64_t)"
            launch.append(f"{cast}a{entry[1:]}")
        else:
            launch.append(str(block.get(entry, entry)))
    count = len(operator.parameters)
    body = [
        f"int64_t launch[] = {{{', '.join(launch) or '0'}}};",
        f"void *args[{max(count, 1)}];",
        "memset(args, 0, sizeof args);",
    ]
    body += [f"memcpy(&args[{k}], &a{k}, sizeof a{k});" for k, p in enumerate(operator.parameters) if not _is_struct(p)]
    body += [
        f"size_t bytes = ((size_t)gewu_{name}_work(launch) + 127) / 64 * 64;",
        "void *memory = aligned_alloc(64, bytes);",
        "if (!memory) return 2;",
        f"int status = gewu_{name}(args, launch, memory);",
        "free(memory);",
        "return status;",
    ]
    prototypes = (
        f"int64_t gewu_{name}_work(const int64_t *launch);\nint32_t gewu_{name}(void **args, const int64_t *launch, void *work);"
    )
    return made.text, _header(name, _about(operator), prototypes, given, body)


def _for_gpu(operator: Operator, name: str, target: str) -> dict[str, bytes]:
    proof = operator.router.proof
    assert proof is not None
    device = gpu.build(proof.lifted.program, target, f"gewu_{name}")
    block = dict(zip(("bx", "by", "bz"), map(str, proof.lifted.block), strict=True))

    def length(entry: Size | tuple[int, str]) -> str:
        return _size(entry, block) if isinstance(entry, Size) else f"bytes{entry[0]} * 8 / {WIDTH[entry[1]]}"

    filled = {
        "blocks": [f"({' * '.join([str(s.lanes), *(_size(n, block) for _, n in s.axes)])} + 255) / 256" for s in device.steps],
        "bytes": [f"{_size(size, block)} * {WIDTH[kind]} / 8" for kind, size in device.between],
        "integers": [length(entry) for entry in device.integers],
    }
    names = sorted(arguments_of(proof.lifted.program)[2] - block.keys())
    names += [f"bytes{entry[0]}" for entry in device.integers if isinstance(entry, tuple)]
    given = [f"int64_t {n}" for n in dict.fromkeys(names)] + [f"int64_t *{what}" for what in filled]
    body = [f"{what}[{k}] = {text};" for what, texts in filled.items() for k, text in enumerate(texts)]
    arguments = [d if i in device.scalars else f"void *a{i}" for i, d in enumerate(_declared(operator)[: device.arguments])]
    arguments += [f"void *t{k}" for k in range(len(device.between))] + [f"int64_t s{k}" for k in range(len(device.integers))]
    about = f"""{_about(operator)}

   Kernels in the order to start them, in blocks of {gpu.BLOCK} threads: {", ".join(step.name for step in device.steps)}.
   Parameters of each: {", ".join(arguments)}.
   aN: argument N (pointers to memory of the device; 8 bytes of anything where it is but a size). tN: pointer to bytes[N] bytes
   of the device's memory. sN: integers[N]. Blocks to start kernel N with: blocks[N]. The plan below fills blocks, bytes and
   integers from values pN of arguments N, the grid gx ..., and lengths of arrays; it returns the number of kernels."""
    body.append(f"return {len(device.steps)};")
    header = _header(re.sub(r"\W", "_", f"{name}_{target}_plan"), about, "", given, body)
    nvidia = llvm.TARGETS[target].kind == "nvptx"
    code = device.assembly().encode() if nvidia else llvm.emit_object(device.text, target)
    return {f"{name}.{target}.h": header.encode(), f"{name}.{target}.{'ptx' if nvidia else 'o'}": code}


def _size(size: Size, known: Mapping[str, str]) -> str:
    """Return a size as an expression of C."""

    def factor(f: str | Ceil) -> str:
        if isinstance(f, str):
            return known.get(f, f)
        top, under = _size(f.numerator, known), _size(f.denominator, known)
        return f"({top} / {under} + ({top} % {under} > 0))"

    terms = [" * ".join([f"INT64_C({c})" if c != 1 or not f else "", *map(factor, f)]).removeprefix(" * ") for c, f in size.terms]
    return f"({' + '.join(terms) or '0'})"


def _about(operator: Operator) -> str:
    proof = operator.router.proof
    assert proof is not None
    conditions = [f"a{i} = {v}" for i, v in proof.lifted.pinned.items()]
    conditions += [f"a{i} a multiple of {u}" for i, u in proof.units.items() if u > 1]
    conditions += [f"{proof.smallest[i]} <= a{i} <= {proof.largest[i]}" for i in proof.units]
    return f"{operator.name}, lifted, for {'; '.join(conditions) or 'all sizes'}:\n   {_comment(operator.formula)}"


def _as_written(operator: Operator, name: str) -> tuple[str, str]:
    if operator.router.last is None or operator.status != "spmd":
        raise InputError("is not prepared", key=operator.name, hint="call prepare(grid, block, *arguments) first")
    block, shared = operator.router.last
    compiled = operator.router.compiled(block, shared, checked=False)
    text = re.sub(rf"@{re.escape(compiled.name)}\b", f"@gewu_{name}", compiled.text)
    body = [f"int64_t block[{(compiled.context + CONTEXT_BYTES) // 8}];", "memset(block, 0, sizeof block);"]
    for k, p in enumerate(operator.parameters):
        body.append(f"memcpy((char *)block + {p.offset}, {'' if _is_struct(p) else '&'}a{k}, {p.size});")
    body += [f"gewu_{name}(block, gx, gy, gz, 0, (int64_t)gx * gy * gz);", f"return (int)block[{compiled.context // 8}];"]
    prototype = f"void gewu_{name}(void *block, int32_t gx, int32_t gy, int32_t gz, int64_t lo, int64_t hi);"
    about = f"{operator.name}, as it is written, for blocks of {' x '.join(map(str, block))} threads"
    given = ["int32_t gx", "int32_t gy", "int32_t gz", *_declared(operator)]
    return text, _header(name, about, prototype, given, body)


def _header(name: str, about: str, prototypes: str, given: Sequence[str], body: Sequence[str]) -> str:
    lines = "\n".join(f"    {line}" for line in body)
    arguments = ", ".join(given) or "void"
    return _HEADER.format(upper=name.upper(), name=name, about=about, prototypes=prototypes, given=arguments, body=lines)


def _declared(operator: Operator) -> list[str]:
    """Return the arguments of the kernel as C declarations `a0`, `a1` ..."""
    targets, real = pointers(operator.router.kernel), floats(operator.router.kernel)
    made = []
    for k, p in enumerate(operator.parameters):
        if k in targets:
            made.append(f"void *a{k}")
        elif k in real and p.size in (4, 8):
            made.append(f"{'float' if p.size == 4 else 'double'} a{k}")
        elif _is_struct(p):
            made.append(f"const void *a{k}")
        else:
            made.append(f"{_C_TYPES.get(p.kind, _BY_SIZE[p.size])} a{k}")
    return made


def _is_struct(parameter: Parameter) -> bool:
    return parameter.size not in _BY_SIZE


def _comment(text: str) -> str:
    return text.replace("*/", "* /").replace("\n", "\n   ")
