"""Operators that move: kernels written for one kind of processor, or only delivered as its machine code, run on any other.

What it solves: given CUDA source, PTX or a bare cubin, launch its kernels on NumPy arrays or inside JAX, and make objects for
other processors.  The way: every reader ends in one language for a single thread (`ir`).  A kernel is then *lifted*: traced
with symbols for floats at small sizes, tiles, shared memory and shuffles dissolve, and what is left is a formula over whole
arrays,

    c[N i + j] = sum over k < K: a[K i + k] b[N k + j],

from which new loops are made for the processor at hand.  Nobody believes a formula before it has been compared with the kernel
at fresh sizes (`verify`) and at those of the launch (`route`).  A kernel that has no formula runs as it is written, 32 threads
as vectors (SPMD); one that cannot is refused with the reason.

    >>> import numpy as np
    >>> module = gewu.ops.load("examples/operators.cu")  # doctest: +SKIP
    >>> module["saxpy"][4, 256](x, y, 2.0, 1000)  # doctest: +SKIP

Symbols: `p3` the value of argument 3, `bx by bz` the block, `gx gy gz` the grid; `a3` the array that is argument 3.

Order to read in:
    ir                        the common language of one thread;  sizes, tensor: that of whole arrays
    launch, arguments         a call from Python;  route: which way it takes;  cache, serial, kernelfile: what is kept
    ptx*, cubin, sass*, cuda  readers;  clean, ssa, simplify*: what has no effect goes;  interp, scalar, memory: what it all means
    plan, trace, recognise, algebra, rescale, template, digits, affine, symbolise, rename, lift   from traces to a formula
    extent, draws, verify     belief;  reference: a formula by dense NumPy;  formula: as text
    rewrite, stage, sums, contract, window, jam   which loops, in which order;  nest, places, tile, lower, vmath: their code
    forms, emit, llvm, compiler   machine code;  pool, native: the threads that run it;  direct: small calls;  tune: which tiles
    shape, spmd*              the kernel as it is written, in vectors
    standalone, aot           objects with a C header;  ffi, jaxform: JAX
    engine, survey, guess, figures   `gewu run kernel.cu`
    library                   operators of our own, by the same emitters

Limits: no texture, no cooperative launch over a whole grid, no dynamic parallelism, no calls through pointers; see
`docs/tutorials/migrate.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gewu.ops.launch import Module as Module
    from gewu.ops.launch import Operator as Operator
    from gewu.ops.launch import load as load

__all__ = ["Module", "Operator", "load"]


def __getattr__(name: str) -> Any:  # a reader or a cross compiler alone must not load all the rest
    if name in __all__:
        from gewu.ops import launch

        return getattr(launch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
