"""Products of bfloat16 matrices for JAX on CPUs, whose own are slower than those of float32; with AMX, of float32 ones too.

    product(a, b)                      a b, summed in float32, as bfloat16
    product(a, b, ta=True)             a^T b: nothing is transposed in memory, packing walks either way
    product(a, b, out=jnp.float32)     not rounded
    added(c, a, b)                     c + a b in float32, written over c

The derivative of `product` is products again. Works under `jit`, `grad`, `scan` and `shard_map`; `vmap` goes one by one. The
result does not depend on the number of threads. `takes()` says of a type whether its products are done here: float32 where AMX
is, which sums products of its bfloat16 parts with the error of float32 (`product_kernel`); `plain()` switches to XLA's own
products for a while (for programs that are made here and run elsewhere).
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

from gewu.ops import llvm, product_kernel, product_pack
from gewu.ops.cache import Cache, cache_folder
from gewu.ops.ffi import raw_target
from gewu.ops.native import Parts
from gewu.ops.pool import THREADS, scratch

_SMALL: Final = 1 << 22
"""Multiplications below which one thread does it, and XLA those of float32."""
LONG: Final = 32
"""Panels that are worth a piece of their own."""
_PART: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
_making = threading.Lock()
_off: list[bool] = []


def usable() -> bool:
    """Return whether products go through here: on CPUs, and not within `plain()`."""
    return not _off and jax.default_backend() == "cpu"


def takes(kind: Any, multiplications: int) -> bool:
    """Return whether products of numbers of this type, and of that many multiplications, are done here, faster than by XLA."""
    if kind == jnp.float32:
        return usable() and multiplications >= _SMALL and "tiles" in product_kernel.ways()
    return usable() and bool(kind == jnp.bfloat16)


def _way(kind: Any) -> str:
    return "thirds" if kind == jnp.float32 else product_kernel.ways()[0]


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
        a: (m, k), or (k, m) with `ta`; of a type that is taken.
        b: (k, n), or (n, k) with `tb`; of that type.
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
    way = _way(a.dtype)
    rounded = out == "bfloat16" and way != "thirds" and k <= longest()
    like = jax.ShapeDtypeStruct((m, n), jnp.bfloat16 if rounded else jnp.float32)
    target = _target(ta, tb, "bfloat16" if rounded else "float32", way)
    return jax.ffi.ffi_call(target, like, vmap_method="sequential")(a, b).astype(out)


def _forward(a: Any, b: Any, ta: bool, tb: bool, out: str) -> Any:
    return _product(a, b, ta, tb, out), (a, b)


def _backward(ta: bool, tb: bool, out: str, operands: Any, g: Any) -> Any:
    a, b = operands
    g, kind = g.astype(a.dtype), a.dtype.name
    da = _product(b, g, tb, True, kind) if ta else _product(g, b, False, not tb, kind)
    db = _product(g, a, True, ta, kind) if tb else _product(a, g, not ta, False, kind)
    return da, db


_product.defvjp(_forward, _backward)


def matmul(a: Any, b: Any, *, ta: bool = False, tb: bool = False, out: Any = None) -> Any:
    """Return `product` of two matrices of any type, by XLA where it is not taken; `out` is the type of a unless told."""
    out = a.dtype if out is None else out
    if takes(a.dtype, a.size * (b.shape[0] if tb else b.shape[1])):
        return product(a, b, ta=ta, tb=tb, out=out)
    dims = (((0 if ta else 1,), (1 if tb else 0,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32).astype(out)


def added(c: Any, a: Any, b: Any, *, ta: bool = False, tb: bool = False) -> Any:
    """Return c + a b, in the memory of c where nothing else needs that; by XLA where `matmul` is; no derivative.

    Args:
        c: float32 (m, n).
        a, b: as in `product`, of any type.
    """
    if 0 in (*c.shape, *a.shape):
        return c
    if not takes(a.dtype, c.size * (a.size // c.shape[0])):
        return c + matmul(a, b, ta=ta, tb=tb, out=jnp.float32)
    like = jax.ShapeDtypeStruct(c.shape, jnp.float32)
    target = _target(ta, tb, "added", _way(a.dtype))
    return jax.ffi.ffi_call(target, like, vmap_method="sequential", input_output_aliases={2: 0})(a, b, c)


def longest() -> int:
    """Return the longest sum of bfloat16 products that leaves the registers rounded."""
    way = product_kernel.ways()[0]
    return product_kernel.depth(way) * product_pack.step(way)


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
        a, b, c: addresses of A (m, k) and B (k, n), float32 for thirds, else bfloat16, and of C (m, n), float32, or bfloat16
            with the form of that name (k at most `depth` words).
        sa, sb: strides along the two axes, in numbers; C is contiguous.
        sizes: m, n, k.
        form: one of `product_kernel.FORMS`.
        way: one of `product_kernel.ways()`, or thirds.
        threads: at most so many.
    """
    m, n, k = sizes
    _, _, pack, run, _ = _functions(way)
    block = product_kernel.block(way)
    panels, strips = -(-m // block.rows), -(-n // block.columns)
    threads = 1 if m * n * k < _SMALL else threads
    held = scratch("product", panels * block.rows * product_pack.words(way, k) * 4)
    by_rows, count, pieces = _shared(way, panels, strips, threads)
    together(pack, (a, held.address, *sa, m, k), panels, threads, threads)
    together(
        run, (held.address, b, c, *sb, n, m, n, k, product_kernel.FORMS[form], by_rows, panels, strips), count, pieces, threads
    )


def _shared(way: str, panels: int, strips: int, threads: int) -> tuple[int, int, int]:
    """Return whether threads share the rows of C or its columns, how many of them there are and in how many pieces.

    Each thread packs its columns of B, and all of B when rows are shared; tiles are so fast that pieces must be long.
    """
    if product_pack.tiled(way):
        by_rows = panels > 2 * strips
        count = panels if by_rows else strips
        return int(by_rows), count, threads * max(1, min(4, count // (LONG * threads)))
    by_rows = strips < min(panels, 4 * threads)
    return int(by_rows), panels if by_rows else strips, (2 if by_rows else 4) * threads


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
