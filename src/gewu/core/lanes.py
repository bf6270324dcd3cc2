"""One 512-bit register full of numbers for loops over neighbours whose data lie scattered: lanes inside `numba.njit`.

A processor's own gather instruction fetches one number per lane and costs as much as the scalar loads it replaces.  Here a lane
fetches a row of four numbers with one load, and a 4 x 4 transposition turns the rows into four vectors: x, y, z and one more
property of sixteen neighbours, or four coefficients of sixteen intervals of a table, at the price of one gather.

There are sixteen lanes of float32 or int32, eight of float64 or int64; n below is their number.

    neighbours(rows_n4, list, at)   four lanes: the columns of rows_n4[list[at : at + n]], whole numbers
    coefficients(table_k4, w)       four lanes: the columns of table_k4[w], reals
    pick(values, list, at)          values[list[at : at + n]], whole numbers
    consecutive(values, at)         values[at : at + n], int32
    spread(x)  whole(t)  real(w)    same number everywhere; truncation; conversion
    as_real(w)                      the bits of w read as reals
    + - * /  root(t)                per lane (whole numbers: + and -, which wrap)
    at_most(t, u)                   the smaller, lane by lane
    keep(t, low, high, u)           u where low < t < high, else 0
    total(t)                        sum over lanes
    below(t, x)                     int64 whose bit k says whether lane k of t is below that of x
    append(list, m, first, bits)    list[m], ... = first + k for every bit k set; the new m; may overwrite list[m : m + 16]

Indices are not checked.  Arithmetic carries LLVM's contract flag only: multiplications and additions fuse.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from gewu.core.device import load_numba

load_numba()

from llvmlite import ir  # noqa: E402
from numba import types  # noqa: E402
from numba.core import cgutils  # noqa: E402
from numba.extending import intrinsic, models, overload, register_model  # noqa: E402

from gewu.core.vector import FLOATS, INT32, INT64, data, join, lane, numbers, pointer, root_of, shuffle, splat  # noqa: E402

LANES = 16
_LLVM = FLOATS | {types.int32: INT32, types.int64: INT64}
_FUSE = ("contract",)


class LanesType(types.Type):  # type: ignore[misc]
    """Numba type of a register of numbers of one type."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.real = isinstance(dtype, types.Float)
        self.vector = ir.VectorType(_LLVM[dtype], 512 // dtype.bitwidth)
        super().__init__(name=f"Lanes({dtype})")


OF = {dtype: LanesType(dtype) for dtype in _LLVM}
_REAL_OF = {OF[types.int32]: OF[types.float32], OF[types.int64]: OF[types.float64]}
_WHOLE_OF = {real: whole for whole, real in _REAL_OF.items()}


@register_model(LanesType)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: LanesType) -> None:
        super().__init__(manager, kind, kind.vector)


def _is_lanes(*kinds: Any) -> bool:
    return all(isinstance(kind, LanesType) and kind is kinds[0] for kind in kinds)


def _arithmetic(real: str, whole: str | None) -> Callable[..., Any]:
    @intrinsic
    def operation(typing_context: Any, a: Any, b: Any) -> Any:
        if not _is_lanes(a, b) or not (a.real or whole):
            return None
        if a.real:
            return a(a, a), lambda context, builder, signature, values: getattr(builder, real)(*values, flags=_FUSE)
        return a(a, a), lambda context, builder, signature, values: getattr(builder, str(whole))(*values)

    return operation  # type: ignore[no-any-return]


def _as_operator(symbol: Any, operation: Any) -> None:
    def implement(a, b):  # type: ignore[no-untyped-def]  # Numba compares its signature with that of the lambda
        return (lambda a, b: operation(a, b)) if _is_lanes(a, b) else None

    overload(symbol)(implement)


_OPERATIONS = (
    (operator.add, "fadd", "add"),
    (operator.sub, "fsub", "sub"),
    (operator.mul, "fmul", None),
    (operator.truediv, "fdiv", None),
)
for _symbol, _real, _whole in _OPERATIONS:
    _as_operator(_symbol, _arithmetic(_real, _whole))


@intrinsic
def spread(typing_context: Any, x: Any) -> Any:
    """Return the lanes that all hold the number `x`."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return splat(builder, values[0], signature.return_type.vector.count)

    return (OF[x](x), generate) if x in OF else None


def _cast(verb: str, pairs: dict[Any, Any], doc: str) -> Any:
    def cast(typing_context: Any, v: Any) -> Any:
        if v not in pairs:
            return None
        target = pairs[v]
        return target(v), lambda context, builder, signature, values: getattr(builder, verb)(values[0], target.vector)

    cast.__doc__ = doc
    return intrinsic(cast)


whole = _cast("fptosi", _WHOLE_OF, "Return the lanes truncated to integers.")
real = _cast("sitofp", _REAL_OF, "Return the lanes as reals.")
as_real = _cast("bitcast", _REAL_OF, "Return the bits of the lanes read as reals.")


@intrinsic
def root(typing_context: Any, t: Any) -> Any:
    """Return the square roots."""
    if not _is_lanes(t) or not t.real:
        return None
    return t(t), lambda context, builder, signature, values: root_of(builder, values[0])


@intrinsic
def at_most(typing_context: Any, t: Any, u: Any) -> Any:
    """Return the smaller of two numbers, lane by lane."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        compare = builder.fcmp_ordered if t.real else builder.icmp_signed
        return builder.select(compare("<", *values), *values)

    return (t(t, t), generate) if _is_lanes(t, u) else None


@intrinsic
def keep(typing_context: Any, t: Any, low: Any, high: Any, u: Any) -> Any:
    """Return u where low < t < high, else 0 (also where u is inf or nan)."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        inside = builder.and_(builder.fcmp_ordered("<", values[1], values[0]), builder.fcmp_ordered("<", values[0], values[2]))
        return builder.select(inside, values[3], ir.Constant(u.vector, [0.0] * u.vector.count))

    return (u(u, u, u, u), generate) if _is_lanes(t, low, high, u) and u.real else None


@intrinsic
def total(typing_context: Any, t: Any) -> Any:
    """Return the sum of the lanes, pairwise."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        v, n = values[0], t.vector.count
        while n > 1:
            n //= 2
            v = builder.fadd(*(shuffle(builder, v, range(k, k + n)) for k in (0, n)))
        return lane(builder, v, 0)

    return (t.dtype(t), generate) if _is_lanes(t) and t.real else None


def _transposed(builder: Any, vector: Any, first: Any, rows: list[Any]) -> Any:
    """Load the rows of four behind `first` whose numbers are given, and return them as a tuple of four vectors."""
    four, blocks = ir.VectorType(vector.element, 4).as_pointer(), vector.count // 4
    wide = blocks == 2  # 64-bit elements: a row is two 128-bit halves, and shuffles within these halves are the cheap ones
    quads = []
    for number in rows:
        at = builder.shl(number if number.type == INT64 else builder.zext(number, INT64), ir.Constant(INT64, 2))
        quads.append(builder.load(builder.bitcast(builder.gep(first, [at]), four), align=8 if wide else 4))

    def joined(parts: list[Any]) -> Any:
        while len(parts) > 1:
            parts = [join(builder, a, b) for a, b in zip(*[iter(parts)] * 2, strict=True)]
        return parts[0]

    def mesh(a: Any, b: Any, order: tuple[int, ...]) -> Any:
        places = [k % 4 + 4 * n + 4 * blocks * (k // 4) for n in range(blocks) for k in order]
        return builder.shuffle_vector(a, b, numbers(places))

    a, b, c, d = (joined(quads[k::4]) for k in range(4))
    low, high = ((0, 4, 2, 6), (1, 5, 3, 7)) if wide else ((0, 4, 1, 5), (2, 6, 3, 7))
    pairs = [(mesh(a, b, low), mesh(c, d, low)), (mesh(a, b, high), mesh(c, d, high))]
    columns = [mesh(*pair, order) for pair in pairs for order in ((0, 1, 4, 5), (2, 3, 6, 7))]
    return cgutils.pack_array(builder, [columns[k] for k in ((0, 2, 1, 3) if wide else (0, 1, 2, 3))])


def _listed(context: Any, builder: Any, kind: Any, array: Any, at: Any, count: int) -> list[Any]:
    start = pointer(context, builder, kind, array, at)
    return [builder.load(builder.gep(start, [ir.Constant(INT32, k)])) for k in range(count)]


@intrinsic
def neighbours(typing_context: Any, rows_n4: Any, items: Any, at: Any) -> Any:
    """Return the columns of rows_n4[items[at], items[at + 1] ...], whole numbers."""
    lanes = OF[rows_n4.dtype]

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        rows = _listed(context, builder, signature.args[1], values[1], values[2], lanes.vector.count)
        return _transposed(builder, lanes.vector, data(context, builder, signature.args[0], values[0]), rows)

    return types.UniTuple(lanes, 4)(rows_n4, items, types.intp), generate


@intrinsic
def coefficients(typing_context: Any, table_k4: Any, w: Any) -> Any:
    """Return the columns of table_k4[w], reals."""
    lanes = OF[table_k4.dtype]

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        # through memory: taking sixteen integers out of a register costs more than storing it and loading them
        place = cgutils.alloca_once(builder, w.vector)
        builder.store(values[1], place).volatile = True
        start = builder.bitcast(place, w.vector.element.as_pointer())
        rows = [builder.load(builder.gep(start, [ir.Constant(INT32, k)])) for k in range(w.vector.count)]
        return _transposed(builder, lanes.vector, data(context, builder, signature.args[0], values[0]), rows)

    return (types.UniTuple(lanes, 4)(table_k4, w), generate) if _REAL_OF.get(w) is lanes else None


@intrinsic
def pick(typing_context: Any, values_n: Any, items: Any, at: Any) -> Any:
    """Return values_n[items[at], items[at + 1] ...], whole numbers."""
    lanes = OF[values_n.dtype]

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        first = data(context, builder, signature.args[0], values[0])
        result: Any = ir.Constant(lanes.vector, ir.Undefined)
        for k, number in enumerate(_listed(context, builder, signature.args[1], values[1], values[2], lanes.vector.count)):
            result = builder.insert_element(result, builder.load(builder.gep(first, [number])), ir.Constant(INT32, k))
        return result

    return lanes(values_n, items, types.intp), generate


@intrinsic
def consecutive(typing_context: Any, values_n: Any, at: Any) -> Any:
    """Return values_n[at : at + 16], int32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        start = pointer(context, builder, signature.args[0], values[0], values[1])
        return builder.load(builder.bitcast(start, ir.VectorType(INT32, LANES).as_pointer()), align=4)

    return OF[types.int32](values_n, types.intp), generate


@intrinsic
def below(typing_context: Any, t: Any, x: Any) -> Any:
    """Return an integer whose bit k says whether lane k of `t` is below lane k of `x`."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.zext(builder.bitcast(builder.fcmp_ordered("<", *values), ir.IntType(LANES)), ir.IntType(64))

    return (types.int64(t, t), generate) if _is_lanes(t, x) and t is OF[types.float32] else None


@intrinsic
def append(typing_context: Any, items: Any, n: Any, first: Any, bits: Any) -> Any:
    """Write first + k for every set bit k of `bits` to items[n], items[n + 1] ... and return the new n."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector, mask = ir.VectorType(INT32, LANES), ir.VectorType(ir.IntType(1), LANES)
        candidates = builder.add(splat(builder, builder.trunc(values[2], INT32), LANES), numbers(range(LANES)))
        short = builder.trunc(values[3], ir.IntType(LANES))
        kind = ir.FunctionType(vector, [vector, mask, vector])
        compress = cgutils.get_or_insert_function(builder.module, kind, f"llvm.experimental.vector.compress.v{LANES}i32")
        packed = builder.call(compress, [candidates, builder.bitcast(short, mask), ir.Constant(vector, ir.Undefined)])
        start = pointer(context, builder, signature.args[0], values[0], values[1])
        builder.store(packed, builder.bitcast(start, vector.as_pointer()), align=4)
        return builder.add(values[1], builder.zext(builder.ctpop(short), ir.IntType(64)))

    return types.int64(items, types.int64, types.int64, types.int64), generate
