"""Products of bfloat16 matrices for JAX on CPUs, whose own are slower than those of float32.

    product(a, b)                      a b, summed in float32, as bfloat16
    product(a, b, ta=True)             a^T b: nothing is transposed in memory, packing walks either way
    product(a, b, out=jnp.float32)     not rounded
    added(c, a, b)                     c + a b in float32, written over c

The derivative of `product` is products again. Works under `jit`, `grad`, `scan` and `shard_map`; `vmap` goes one by one. The
result does not depend on the number of threads. `usable()` says whether this process computes on CPUs; `plain()` switches to
XLA's own products for a while (for programs that are made here and run elsewhere).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from typing import Any, Final

import jax
import jax.numpy as jnp

from gewu.ops import llvm, product_kernel
from gewu.ops.cache import Cache, cache_folder
from gewu.ops.ffi import raw_target
from gewu.ops.native import Parts
from gewu.ops.pool import THREADS, scratch

_SMALL: Final = 1 << 22
"""Multiplications below which one thread does it."""
_PART: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_making = threading.Lock()
_off: list[bool] = []


def usable() -> bool:
    """Return whether products go through here: on CPUs, and not within `plain()`."""
    return not _off and jax.default_backend() == "cpu"


@contextmanager
def plain() -> Iterator[None]:
    """Let XLA do the products of what is traced inside."""
    _off.append(True)
    try:
        yield
    finally:
        _off.pop()


def product(a: Any, b: Any, *, ta: bool = False, tb: bool = False, out: Any = jnp.bfloat16) -> Any:
    """Return the product of two matrices.

    Args:
        a: bfloat16 (m, k), or (k, m) with `ta`.
        b: bfloat16 (k, n), or (n, k) with `tb`.
        out: bfloat16 or float32.

    Returns:
        (m, n); sums are float32.
    """
    return _product(a, b, ta, tb, jnp.dtype(out).name)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _product(a: Any, b: Any, ta: bool, tb: bool, out: str) -> Any:
    m, k = a.shape[::-1] if ta else a.shape
    n = b.shape[0] if tb else b.shape[1]
    if m * n * k == 0:
        return jnp.zeros((m, n), out)
    rounded = out == "bfloat16" and k <= longest()
    like = jax.ShapeDtypeStruct((m, n), jnp.bfloat16 if rounded else jnp.float32)
    target = _target(ta, tb, "bfloat16" if rounded else "float32", product_kernel.ways()[0])
    return jax.ffi.ffi_call(target, like, vmap_method="sequential")(a, b).astype(out)


def _forward(a: Any, b: Any, ta: bool, tb: bool, out: str) -> Any:
    return _product(a, b, ta, tb, out), (a, b)


def _backward(ta: bool, tb: bool, out: str, operands: Any, g: Any) -> Any:
    a, b = operands
    g = g.astype(jnp.bfloat16)
    da = _product(b, g, tb, True, "bfloat16") if ta else _product(g, b, False, not tb, "bfloat16")
    db = _product(g, a, True, ta, "bfloat16") if tb else _product(a, g, not ta, False, "bfloat16")
    return da, db


_product.defvjp(_forward, _backward)


def added(c: Any, a: Any, b: Any, *, ta: bool = False, tb: bool = False) -> Any:
    """Return c + a b, in the memory of c where nothing else needs that; no derivative.

    Args:
        c: float32 (m, n).
        a, b: bfloat16, as in `product`.
    """
    if 0 in (*c.shape, *a.shape):
        return c
    like = jax.ShapeDtypeStruct(c.shape, jnp.float32)
    target = _target(ta, tb, "added", product_kernel.ways()[0])
    return jax.ffi.ffi_call(target, like, vmap_method="sequential", input_output_aliases={2: 0})(a, b, c)


def longest() -> int:
    """Return the longest sum that leaves the registers rounded."""
    return product_kernel.DEPTH * product_kernel.step(product_kernel.ways()[0])


@cache
def _target(ta: bool, tb: bool, form: str, way: str) -> str:
    """Return XLA's name of a product of this form."""

    def work(arguments: list[Any], results: list[Any]) -> None:
        (a, da), (b, db), (c, (m, n)) = *arguments[:2], *results
        k = da[0] if ta else da[1]
        sa = (1, da[1]) if ta else (da[1], 1)
        sb = (1, db[1]) if tb else (db[1], 1)
        multiply(a, sa, b, sb, c, (m, n, k), form=form, way=way)

    return raw_target("product", work)


def multiply(
    a: int,
    sa: tuple[int, int],
    b: int,
    sb: tuple[int, int],
    c: int,
    sizes: tuple[int, int, int],
    *,
    form: str,
    way: str,
    threads: int = THREADS,
) -> None:
    """Compute C = A B, or C + A B, on memory.

    Args:
        a, b, c: addresses of bfloat16 A (m, k), B (k, n), and of C (m, n), float32, or bfloat16 with the form of
            that name (k at most DEPTH words).
        sa, sb: strides along the two axes, in numbers; C is contiguous.
        sizes: m, n, k.
        form: one of `product_kernel.FORMS`.
        way: one of `product_kernel.ways()`.
        threads: at most so many.
    """
    m, n, k = sizes
    _, _, pack, run, _ = _functions(way)
    block = product_kernel.block(way)
    panels, strips = -(-m // block.rows), -(-n // block.columns)
    threads = 1 if m * n * k < _SMALL else threads
    held = scratch("product", panels * block.rows * product_kernel.words(way, k) * 4)
    by_rows = int(strips < min(panels, 4 * threads))
    count, pieces = (panels, 2 * threads) if by_rows else (strips, 4 * threads)
    together(pack, (a, held.address, *sa, m, k), panels, threads, threads)
    together(
        run, (held.address, b, c, *sb, n, m, n, k, product_kernel.FORMS[form], by_rows, panels, strips), count, pieces, threads
    )


def together(function: int, arguments: Sequence[int], count: int, pieces: int, threads: int) -> None:
    """Call `void f(ptr args, ptr sizes, i64 lo, i64 hi)` at an address for 0 .. count in pieces, on standing threads unless these
    are taken.
    """
    args = (ctypes.c_int64 * len(arguments))(*arguments)
    parts, alone = _parts(function, count, pieces, threads)
    if threads > 1 and parts.run(ctypes.addressof(args)):
        return
    for lo, hi in _cut(count, pieces):
        alone(ctypes.addressof(args), None, lo, hi)


@lru_cache(maxsize=1024)
def _parts(function: int, count: int, pieces: int, threads: int) -> tuple[Parts, Any]:
    return Parts(function, _cut(count, pieces), threads), _PART(function)


def _cut(count: int, pieces: int) -> list[tuple[int, int]]:
    length = -(-count // pieces)
    return [(lo, min(lo + length, count)) for lo in range(0, count, length)]


def functions(way: str) -> tuple[Any, Any]:
    """Return pack and multiply as functions."""
    return _functions(way)[:2]


def _functions(way: str) -> tuple[Any, Any, int, int, Any]:
    with _making:
        return _made(way)


@cache
def _made(way: str) -> tuple[Any, Any, int, int, Any]:
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library = llvm.jit(product_kernel.text(way), cache=Cache(cache_folder()).objects)
    pack = ctypes.CFUNCTYPE(None, *[pointer] * 2, *[integer] * 6)(library.address("pack_rows"))
    run = ctypes.CFUNCTYPE(None, *[pointer] * 4, *[integer] * 11)(library.address("multiply"))
    return pack, run, library.address("pack_part"), library.address("part"), library
