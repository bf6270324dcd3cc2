"""Evaluate a program with dense NumPy arrays: axes become dimensions, so memory grows with their product. For tests and small
checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from gewu.core.errors import InputError
from gewu.ops.ir import WIDTH
from gewu.ops.rewrite import affines, children
from gewu.ops.sizes import Affine
from gewu.ops.tensor import MATH, Apply, Assign, Constant, Expression, Gather, Index, Load, Program, Reduce, Scalar

Array = np.ndarray[Any, Any]


def dtype_of(kind: str) -> np.dtype[Any]:
    """Return the NumPy type in which values of a type of `ir` are computed; bf16 travels as its bits."""
    if kind == "pred":
        return np.dtype(bool)
    if kind in ("f16", "f32", "f64"):
        return np.dtype(kind.replace("f", "float"))
    return np.dtype(f"{'int' if kind[0] == 's' else 'uint'}{WIDTH[kind]}")


def take(values: Array, kind: str) -> Array:
    """Return bits taken as another type: extended by their own signedness or cut."""
    want = dtype_of(kind)
    if values.dtype == want:
        return values
    if values.dtype.kind == "f":
        values = values.view(np.dtype(f"uint{8 * values.itemsize}"))
    if want.kind == "b":
        return values.astype(np.uint64) & np.uint64(1) != 0
    bits = values.astype(np.dtype(f"{'int' if values.dtype.kind == 'i' else 'uint'}{8 * want.itemsize}"))
    return bits.view(want)


def from_bf16(bits: Array) -> Array:
    """Return bf16 bits as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(values: Array) -> Array:
    """Return float32 numbers as bf16 bits, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).reshape(np.shape(values))
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def _divide(a: Array, b: Array, remainder: bool) -> Array:
    wide = a.astype(object), np.where(b == 0, 1, b).astype(object)
    quotient = np.vectorize(lambda x, y: abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1), otypes=[object])(*wide)
    result = wide[0] - quotient * wide[1] if remainder else quotient
    mask = (1 << 8 * a.itemsize) - 1
    bits = np.vectorize(lambda x: x & mask, otypes=[np.uint64])(result).astype(f"uint{8 * a.itemsize}").view(a.dtype)
    return np.where(b == 0, a if remainder else np.array(-1).astype(a.dtype), bits)


_MATH = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "erf": special.erf,
    "erfc": special.erfc,
    "tanh": np.tanh,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "sigmoid": special.expit,
    "pow": np.power,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": lambda a: np.copysign(np.floor(np.abs(a) + 0.5), a),
    "trunc": np.trunc,
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "rcp": lambda a: 1 / a,
    "fma": lambda a, b, c: a * b + c,
    "div": np.divide,
    "min": np.fmin,
    "max": np.fmax,
    "copysign": lambda a, b: np.copysign(b, a),
}
_BOTH = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "abs": np.abs}
_INTEGER = {
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "div": lambda a, b: _divide(a, b, False),
    "rem": lambda a, b: _divide(a, b, True),
}
_COMPARE = {"eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
_ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def apply(op: str, kind: str, mods: Sequence[str], args: Sequence[Array]) -> Array:
    """Return a pure operation of values; float functions are computed in float64 and rounded once.

    Raises:
        InputError: an operation that this small reference does not have.
    """
    if op == "cvt":
        return _convert(take(args[0], mods[0]), mods[0], kind, mods[1:])
    if op == "select":
        return np.where(take(args[2], "pred"), take(args[0], kind), take(args[1], kind))
    if op in ("shl", "shr"):
        a, n = take(args[0], kind), take(args[1], "b32").astype(np.int64)
        shift = np.minimum(n, 8 * a.itemsize - 1).astype(a.dtype)
        over = (n >= 8 * a.itemsize) & (op == "shl" or a.dtype.kind == "u")
        return np.where(over, a.dtype.type(0), np.left_shift(a, shift) if op == "shl" else np.right_shift(a, shift))
    values = [take(a, kind) for a in args]
    if op == "mov":
        return values[0]
    if kind in ("f16", "bf16", "f32", "f64"):
        wide = [(from_bf16(v) if kind == "bf16" else v).astype(np.float64) for v in values]
        if op == "setp":
            return _compare(mods[0], wide[0], wide[1])
        result = (_BOTH.get(op) or _MATH[op])(*wide)
        result = np.clip(np.nan_to_num(result, nan=0.0), 0, 1) if "sat" in mods else result
        return to_bf16(result.astype(np.float32)) if kind == "bf16" else result.astype(dtype_of(kind))
    if op == "setp":
        return _compare(mods[0], values[0], values[1])
    if op == "mulwide":
        wider = np.dtype(f"{'int' if kind[0] == 's' else 'uint'}{2 * WIDTH[kind]}")
        return values[0].astype(wider) * values[1].astype(wider)
    if op not in _BOTH and op not in _INTEGER:
        raise InputError("the reference has no such operation", value=f"{op}.{kind}")
    return (_BOTH.get(op) or _INTEGER[op])(*values)


def _compare(how: str, a: Array, b: Array) -> Array:
    nan = np.isnan(a) | np.isnan(b) if a.dtype.kind == "f" else np.zeros(np.broadcast(a, b).shape, bool)
    if how in ("num", "nan", "ne", "neu"):
        return {"num": ~nan, "nan": nan, "ne": (a != b) & ~nan, "neu": a != b}[how]
    plain = _COMPARE[how.removesuffix("u")](a, b)
    return plain | nan if how.endswith("u") else plain


def _convert(values: Array, source: str, kind: str, mods: Sequence[str]) -> Array:
    if source == "bf16":
        values, source = from_bf16(values), "f32"
    for mod in mods:
        values = _ROUND[mod](values) if mod in _ROUND else values
    floating = values.dtype.kind == "f"
    if kind in ("bf16", "f16", "f32", "f64"):
        values = np.clip(np.nan_to_num(values, nan=0.0), 0, 1) if floating and "sat" in mods else values
        return to_bf16(values.astype(np.float32)) if kind == "bf16" else values.astype(dtype_of(kind))
    target = dtype_of(kind)
    if not floating and "sat" not in mods:
        return take(values, kind)
    info = np.iinfo(target)
    whole = np.nan_to_num(np.trunc(values.astype(np.float64)), nan=0.0) if floating else values
    inside = np.clip(whole, float(info.min), float(info.max)) if floating else np.clip(whole.astype(object), info.min, info.max)
    top = np.asarray(whole >= float(info.max))
    return np.where(top, info.max, np.where(top, 0, inside).astype(target)).astype(target)


class _Evaluation:
    """Values over a list of axes in scope; the dimension of an axis is its place in the list."""

    def __init__(self, args: Sequence[Array], launch: Mapping[str, int]) -> None:
        self.args, self.launch = [np.array(a, copy=True) for a in args], launch
        self.memo: dict[object, Array] = {}
        self.free: dict[int, frozenset[str]] = {}

    def memory(self, buffer: int, kind: str) -> Array:
        return self.args[buffer].reshape(-1).view(np.uint8).view(dtype_of(kind))

    def affine(self, index: Affine, scope: tuple[tuple[str, int], ...]) -> Array:
        total = np.full((1,) * len(scope), index.offset.value(self.launch), np.int64)
        for axis, stride in index.terms:
            place = [name for name, _ in scope].index(axis)
            shape = tuple(-1 if d == place else 1 for d in range(len(scope)))
            total = total + np.arange(scope[place][1]).reshape(shape) * stride.value(self.launch)
        return total

    def holds(self, where: Sequence[Affine], scope: tuple[tuple[str, int], ...]) -> Array:
        mask = np.ones((1,) * len(scope), bool)
        for condition in where:
            mask = mask & (self.affine(condition, scope) >= 0)
        return mask

    def value(self, e: Expression, scope: tuple[tuple[str, int], ...]) -> Array:
        """Compute over the axes that occur in the expression, then give it a dimension for each axis in scope."""
        free = self.axes(e)
        own = tuple(item for item in scope if item[0] in free)
        key = (id(e), own)
        if key not in self.memo:
            self.memo[key] = self._make(e, own)
        found = self.memo[key]
        shape, lengths = [], iter(found.shape)
        for axis, _ in scope:
            shape.append(next(lengths) if axis in free else 1)
        return found.reshape(shape)

    def axes(self, e: Expression) -> frozenset[str]:
        if id(e) not in self.free:
            inside = frozenset().union(*(self.axes(c) for c in children(e)), *(m.axes for m in affines(e)))
            self.free[id(e)] = inside - {axis for axis, _ in e.axes} if isinstance(e, Reduce) else inside
        return self.free[id(e)]

    def _make(self, e: Expression, scope: tuple[tuple[str, int], ...]) -> Array:
        ones = (1,) * len(scope)
        match e:
            case Constant():
                raw = np.array(e.bits, dtype=np.uint64).astype(f"uint{max(WIDTH[e.type], 8)}")
                return (raw.astype(bool) if e.type == "pred" else raw.view(dtype_of(e.type))).reshape(ones)
            case Scalar():
                raw = np.frombuffer(np.asarray(self.args[e.argument]).tobytes().ljust(8, b"\0"), np.uint8)
                return raw[: dtype_of(e.type).itemsize].view(dtype_of(e.type)).reshape(ones)
            case Index():
                return take(self.affine(e.value, scope), e.type)
            case Load():
                memory = self.memory(e.buffer, e.type)
                found = memory[np.clip(self.affine(e.index, scope), 0, max(memory.size - 1, 0))]
                return np.where(self.holds(e.where, scope), found, memory.dtype.type(0)) if e.where else found
            case Gather():
                return self.memory(e.buffer, e.type)[take(self.value(e.place, scope), "s64")]
            case Apply():
                return apply(e.op, e.type, e.mods, [self.value(a, scope) for a in e.args])
        inner = (*scope, *((axis, size.value(self.launch)) for axis, size in e.axes))
        body, mask = take(self.value(e.body, inner), e.type), self.holds(e.where, inner)
        body = from_bf16(body) if e.type == "bf16" else body
        start = _start(e, body.dtype)
        full = np.where(np.broadcast_to(mask, [n for _, n in inner]), np.broadcast_to(body, [n for _, n in inner]), start)
        function = {"add": np.add, "mul": np.multiply, "max": np.fmax, "min": np.fmin}[e.kind]
        wide = np.float64 if body.dtype.kind == "f" else body.dtype
        result = function.reduce(full, axis=tuple(range(len(scope), len(inner))), initial=start, dtype=wide)
        return to_bf16(result.astype(np.float32)) if e.type == "bf16" else result.astype(body.dtype)


def _start(e: Reduce, dtype: np.dtype[Any]) -> Any:
    if e.kind in ("add", "mul"):
        return dtype.type(e.kind == "mul")
    if dtype.kind == "f":
        return dtype.type(-np.inf if e.kind == "max" else np.inf)
    return dtype.type(np.iinfo(dtype).min if e.kind == "max" else np.iinfo(dtype).max)


def evaluate(program: Program, args: Sequence[Any], launch: Mapping[str, int]) -> list[Array]:
    """Return all arguments as they are after a program; `args` themselves are not changed.

    Args:
        program: any program whose operations `apply` has.
        args: C-contiguous arrays (bf16 as uint16 bits) and NumPy scalars, in the order of the kernel's arguments.
        launch: the integers that sizes are made of.
    """
    before = _Evaluation(args, launch)
    after = [np.array(a, copy=True) for a in args]
    with np.errstate(all="ignore"):
        for assign in program.assigns:
            scope = tuple((axis, size.value(launch)) for axis, size in assign.axes)
            shape = [n for _, n in scope]
            value = np.broadcast_to(take(before.value(assign.value, scope), assign.type), shape)
            mask = np.broadcast_to(before.holds(assign.where, scope), shape)
            index = np.broadcast_to(before.affine(assign.index, scope), shape)
            _store(after[assign.buffer], assign, index[mask], value[mask])
    return after


def _store(target: Array, assign: Assign, index: Array, value: Array) -> None:
    target.reshape(-1).view(np.uint8).view(dtype_of(assign.type))[index] = value


assert set(MATH) <= set(_MATH)
