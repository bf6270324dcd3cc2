"""Explicit vectors for CPU inner loops: `Tile`, 4 x 8 numbers that LLVM spreads over whatever registers there are.

A loop over pairs of clusters of particles, 4 rows (particles i) against 8 columns (particles j), does all 32 pairs at once.  A
tile is the LLVM vector <32 x float> or <32 x double>, rows one after the other; LLVM splits it into two or four 512-bit
registers, or into 256- or 128-bit ones on other machines, so one source serves float32 and float64 and every processor.

Inside `numba.njit` functions:

    rows(a, s)  columns(a, q)     tile with a[s + row], a[q + column]          fill(x)  the same number everywhere
    + - * /  root(t)              per element; `/` and `root` of float32 may be an estimate refined by one Newton step (~1e-7)
    less(t, u)  both(m, n)  bits(k)   masks; `bits` takes a uint32, bit 8 row + column
    keep(m, t)                    t where m, else 0 (also where t is inf or nan)
    some(m)                       is any element set
    take(table, t)                table[t], t a tile of whole numbers as floats
    add_columns(a, q, t)          a[q + column] += sum over rows
    subtract_rows(a, s, t)        a[s + row] -= sum over columns
    total(t)                      sum of all, in float64

Arrays must be C-contiguous; indices are not checked.  Float32 sums of 8 or 4 numbers go pairwise and are added to an
array of either width.  Arithmetic carries LLVM's fast flags: operations may be fused and reassociated, so bits depend on the
processor, not on threads.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from gewu.core.device import load_numba

load_numba()

from llvmlite import ir  # noqa: E402
from numba import types  # noqa: E402
from numba.extending import intrinsic, models, overload, register_model  # noqa: E402

from gewu.core.vector import FLOATS, INT32, join, lane, pointer, root_of, shuffle, splat  # noqa: E402

ROWS, COLUMNS = 4, 8
LANES = ROWS * COLUMNS
_FAST = ("fast",)


class TileType(types.Type):  # type: ignore[misc]
    """Numba type of 4 x 8 numbers of one float type."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Tile({dtype})")


class MaskType(types.Type):  # type: ignore[misc]
    """Numba type of 4 x 8 truth values."""

    def __init__(self) -> None:
        super().__init__(name="TileMask")


MASK = MaskType()
TILES = {dtype: TileType(dtype) for dtype in FLOATS}


@register_model(TileType)
class _TileModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: TileType) -> None:
        super().__init__(manager, kind, ir.VectorType(FLOATS[kind.dtype], LANES))


@register_model(MaskType)
class _MaskModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: MaskType) -> None:
        super().__init__(manager, kind, ir.VectorType(ir.IntType(1), LANES))


def _is_tile(*kinds: Any) -> bool:
    return all(isinstance(kind, TileType) for kind in kinds) and len(set(kinds)) == 1


def _is_floats(kind: Any) -> bool:
    return isinstance(kind, types.Array) and kind.dtype in FLOATS and kind.ndim == 1


def _arithmetic(name: str) -> Callable[..., Any]:
    @intrinsic
    def operation(typing_context: Any, a: Any, b: Any) -> Any:
        if not _is_tile(a, b):
            return None
        return a(a, b), lambda context, builder, signature, values: getattr(builder, name)(*values, flags=_FAST)

    return operation  # type: ignore[no-any-return]


def _as_operator(symbol: Any, operation: Any) -> None:
    def implement(a, b):  # type: ignore[no-untyped-def]  # Numba compares its signature with that of the lambda
        return (lambda a, b: operation(a, b)) if _is_tile(a, b) else None

    overload(symbol)(implement)


for _symbol, _name in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv")):
    _as_operator(_symbol, _arithmetic(_name))


@intrinsic
def root(typing_context: Any, t: Any) -> Any:
    """Return the square roots."""
    if not _is_tile(t):
        return None
    return t(t), lambda context, builder, signature, values: root_of(builder, values[0], _FAST)


@intrinsic
def fill(typing_context: Any, x: Any) -> Any:
    """Return the tile that holds `x` everywhere."""
    return (TILES[x](x), lambda context, builder, signature, values: splat(builder, values[0], LANES)) if x in TILES else None


@intrinsic
def rows(typing_context: Any, a: Any, s: Any) -> Any:
    """Return the tile whose row k holds a[s + k]."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        start = pointer(context, builder, signature.args[0], values[0], values[1])
        parts = [splat(builder, builder.load(builder.gep(start, [ir.Constant(INT32, k)])), COLUMNS) for k in range(ROWS)]
        return join(builder, join(builder, parts[0], parts[1]), join(builder, parts[2], parts[3]))

    return (TILES[a.dtype](a, types.intp), generate) if _is_floats(a) else None


def _vector_at(context: Any, builder: Any, kind: Any, array: Any, index: Any, lanes: int) -> tuple[Any, int]:
    start = pointer(context, builder, kind, array, index)
    return builder.bitcast(start, ir.VectorType(FLOATS[kind.dtype], lanes).as_pointer()), 4 if kind.dtype == types.float32 else 8


@intrinsic
def columns(typing_context: Any, a: Any, q: Any) -> Any:
    """Return the tile whose column k holds a[q + k]."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place, align = _vector_at(context, builder, signature.args[0], values[0], values[1], COLUMNS)
        return shuffle(builder, builder.load(place, align=align), list(range(COLUMNS)) * ROWS)

    return (TILES[a.dtype](a, types.intp), generate) if _is_floats(a) else None


@intrinsic
def less(typing_context: Any, t: Any, u: Any) -> Any:
    """Return where t < u."""
    if not _is_tile(t, u):
        return None
    return MASK(t, u), lambda context, builder, signature, values: builder.fcmp_ordered("<", *values, flags=_FAST)


@intrinsic
def both(typing_context: Any, m: Any, n: Any) -> Any:
    """Return where both masks are set."""
    return MASK(MASK, MASK), lambda context, builder, signature, values: builder.and_(*values)


@intrinsic
def bits(typing_context: Any, word: Any) -> Any:
    """Return the mask in the 32 bits of a uint32."""
    vector = ir.VectorType(ir.IntType(1), LANES)
    return MASK(types.uint32), lambda context, builder, signature, values: builder.bitcast(values[0], vector)


@intrinsic
def keep(typing_context: Any, m: Any, t: Any) -> Any:
    """Return t where m is set, 0 elsewhere."""
    if not _is_tile(t):
        return None
    return t(MASK, t), lambda context, builder, signature, values: builder.select(
        *values, ir.Constant(values[1].type, [0.0] * LANES)
    )


@intrinsic
def some(typing_context: Any, m: Any) -> Any:
    """Return whether any element of the mask is set."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.icmp_unsigned("!=", builder.bitcast(values[0], INT32), ir.Constant(INT32, 0))

    return types.boolean(MASK), generate


@intrinsic
def take(typing_context: Any, table: Any, t: Any) -> Any:
    """Return table[t] for a tile of whole numbers kept as floats."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = signature.args[0]
        data = context.make_array(kind)(context, builder, values[0]).data
        index = builder.fptosi(values[1], ir.VectorType(INT32, LANES))
        vector = ir.VectorType(FLOATS[kind.dtype], LANES)
        result: Any = ir.Constant(vector, ir.Undefined)
        for k in range(LANES):
            at = lane(builder, index, k)
            result = builder.insert_element(result, builder.load(builder.gep(data, [at])), ir.Constant(INT32, k))
        return result

    return (TILES[table.dtype](table, t), generate) if _is_floats(table) and _is_tile(t) and t.dtype == table.dtype else None


def _halve(builder: Any, v: Any) -> Any:
    half = v.type.count // 2
    return builder.fadd(shuffle(builder, v, list(range(half))), shuffle(builder, v, list(range(half, 2 * half))), flags=_FAST)


def _sum(builder: Any, v: Any) -> Any:
    while v.type.count > 1:
        v = _halve(builder, v)
    return lane(builder, v, 0)


def _widen(builder: Any, x: Any, target: Any) -> Any:
    return x if x.type == target else builder.fpext(x, target)


@intrinsic
def subtract_rows(typing_context: Any, a: Any, s: Any, t: Any) -> Any:
    """Subtract the sum over columns from a[s], ..., a[s + 3]."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        start = pointer(context, builder, signature.args[0], values[0], values[1])
        for k in range(ROWS):
            at = builder.gep(start, [ir.Constant(INT32, k)])
            row = _sum(builder, shuffle(builder, values[2], list(range(k * COLUMNS, (k + 1) * COLUMNS))))
            builder.store(builder.fsub(builder.load(at), _widen(builder, row, FLOATS[signature.args[0].dtype])), at)
        return context.get_dummy_value()

    return (types.void(a, types.intp, t), generate) if _is_floats(a) and _is_tile(t) else None


@intrinsic
def add_columns(typing_context: Any, a: Any, q: Any, t: Any) -> Any:
    """Add the sum over rows to a[q], ..., a[q + 7]."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place, align = _vector_at(context, builder, signature.args[0], values[0], values[1], COLUMNS)
        folded = _halve(builder, _halve(builder, values[2]))
        folded = _widen(builder, folded, ir.VectorType(FLOATS[signature.args[0].dtype], COLUMNS))
        builder.store(builder.fadd(builder.load(place, align=align), folded, flags=_FAST), place, align=align)
        return context.get_dummy_value()

    return (types.void(a, types.intp, t), generate) if _is_floats(a) and _is_tile(t) else None


@intrinsic
def total(typing_context: Any, t: Any) -> Any:
    """Return the sum of all elements in float64."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _widen(builder, _sum(builder, values[0]), ir.DoubleType())

    return (types.float64(t), generate) if _is_tile(t) else None
