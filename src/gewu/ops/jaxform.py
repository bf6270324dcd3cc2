"""Programs as functions of JAX: the same formula, with the derivatives that JAX takes of it.

    formula = to_jax(program)
    after = formula(args, launch)        # {number: array} of the arrays that the program writes, shaped like the arguments

Sizes and index maps are numbers by the time JAX traces, so a load is a reshaped slice where its strides nest, else a gather by
constant indices; a sum of products is an `einsum`; other reductions follow their body.  Values read from arrays may be traced,
launch integers may not.  Integer indices stay NumPy constants of 64 bits.

Limits: float64 and 64-bit integers from arrays need `jax_enable_x64`; packed halves, bit fields and warp-level leftovers are
refused; `ftz` and directed rounding are not reproduced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.core.machine import check_jax
from gewu.ops.ir import WIDTH, Unsupported
from gewu.ops.sizes import Affine
from gewu.ops.tensor import Apply, Assign, Constant, Expression, Gather, Index, Load, Program, Reduce, Scalar

Axes = tuple[tuple[str, int], ...]
_FLOATS: Final = ("f16", "bf16", "f32", "f64")
_ROUND: Final = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
_COMPARE: Final = {"eq": "equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"}
_PLAIN: Final = {
    **{"add": "add", "sub": "subtract", "mul": "multiply", "neg": "negative", "abs": "abs", "exp": "exp", "expm1": "expm1"},
    **{"log": "log", "log1p": "log1p", "tanh": "tanh", "sinh": "sinh", "cosh": "cosh", "pow": "power", "floor": "floor"},
    **{"ceil": "ceil", "trunc": "trunc", "ex2": "exp2", "lg2": "log2", "sin": "sin", "cos": "cos", "sqrt": "sqrt"},
    **{"div": "divide", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "not": "invert"},
}
_WHOLE: Final = frozenset({"add", "sub", "mul", "neg", "abs", "and", "or", "xor", "not"})


def to_jax(program: Program) -> Callable[[Sequence[Any], Mapping[str, int]], dict[int, Any]]:
    """Return a pure function `(args, launch) -> {number: array}` of the arrays that a program writes.

    Args:
        program: any program without packed halves.

    Returns:
        A function of the kernel's arguments (JAX or NumPy arrays, numbers) and the integers of the launch, which JAX may trace,
        compile and differentiate with respect to arrays and scalars; the integers are constants.

    Raises:
        ResourceError: the installed JAX computes wrong numbers.
    """
    check_jax()

    def formula(args: Sequence[Any], launch: Mapping[str, int]) -> dict[int, Any]:
        return _Formula(args, launch).run(program)

    return formula


@dataclass(frozen=True, eq=False, slots=True)
class _Tensor:
    """An array with one dimension for each of its axes."""

    array: Any
    axes: Axes


def _dtype(kind: str) -> np.dtype[Any]:
    if kind == "bf16":
        import jax.numpy as jnp

        return np.dtype(jnp.bfloat16)
    if kind == "pred":
        return np.dtype(bool)
    if kind in _FLOATS:
        return np.dtype(kind.replace("f", "float"))
    if kind not in WIDTH or kind in ("f16x2", "bf16x2", "tf32"):
        raise Unsupported("has no form in JAX", key="type", value=kind)
    return np.dtype(f"{'int' if kind[0] == 's' else 'uint'}{WIDTH[kind]}")


def _take(values: Any, kind: str) -> Any:
    """Return bits taken as another type: extended by their own signedness or cut."""
    import jax.numpy as jnp
    from jax import lax

    want, have = _dtype(kind), values.dtype
    if have == want or (have.kind in "iu" and isinstance(values, np.ndarray) and want.kind in "iu"):
        return values.astype(want)
    if want.kind == "b":
        return values != 0
    if have.kind == "b" or (have.kind in "iu" and want.kind in "iu"):
        return jnp.asarray(values).astype(_canonical(want))
    if have.itemsize != want.itemsize:
        raise Unsupported("bits of a float are taken as a type of another width", value=f"{have} as {kind}")
    return lax.bitcast_convert_type(jnp.asarray(values), want)


def _canonical(want: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type that JAX has for integers and floats of 64 bits: narrower ones, unless 64 bits are enabled."""
    import jax

    return np.dtype(jax.dtypes.canonicalize_dtype(want))


class _Formula:
    def __init__(self, args: Sequence[Any], launch: Mapping[str, int]) -> None:
        self.args, self.launch = args, launch
        self.memo: dict[object, _Tensor] = {}
        self.kept: list[Expression] = []

    def run(self, program: Program) -> dict[int, Any]:
        """Return the arrays written, as they are after the program."""
        import jax.numpy as jnp

        after: dict[int, Any] = {}
        for a in program.assigns:
            before = after[a.buffer] if a.buffer in after else self._memory(a.buffer, a.type)
            after[a.buffer] = self._written(before, a)
        result = {}
        for number, flat in after.items():
            like = self.args[number]
            result[number] = jnp.reshape(_recast(flat, np.dtype(like.dtype)), like.shape)
        return result

    def _written(self, flat: Any, a: Assign) -> Any:
        import jax.numpy as jnp

        axes = self._sizes(a.axes)
        value = self._aligned(self.value(a.value, dict(axes)), axes)
        value = jnp.broadcast_to(_take(value, a.type), [n for _, n in axes])
        flat = _recast(flat, value.dtype)
        places = np.broadcast_to(self._affine(a.index, axes), value.shape).ravel()
        if not a.where and places.size == flat.size and np.array_equal(places, np.arange(flat.size)):
            return value.ravel()
        chosen = np.flatnonzero(np.broadcast_to(self._holds(a.where, axes), value.shape))
        places = places[chosen]
        if places.size and not 0 <= places.min() <= places.max() < flat.size:
            raise InputError(f"argument {a.buffer} is too small", value=flat.size, allowed=f"at least {places.max() + 1}")
        return flat.at[places].set(value.ravel()[chosen])

    def _memory(self, buffer: int, kind: str) -> Any:
        import jax.numpy as jnp

        want = _dtype(kind)
        if want.itemsize == 8 and _canonical(want) != want:
            raise InputError("JAX computes in 32 bits", key=f"argument {buffer}", value=kind, hint="set jax_enable_x64")
        return _recast(jnp.ravel(jnp.asarray(self.args[buffer])), want)

    def _sizes(self, axes: Any) -> Axes:
        return tuple((axis, size.value(self.launch)) for axis, size in axes)

    def _affine(self, index: Affine, axes: Axes) -> Any:
        total = np.full((1,) * len(axes), index.offset.value(self.launch), np.int64)
        for axis, stride in index.terms:
            place = [name for name, _ in axes].index(axis)
            shape = tuple(-1 if d == place else 1 for d in range(len(axes)))
            total = total + np.arange(axes[place][1], dtype=np.int64).reshape(shape) * stride.value(self.launch)
        return total

    def _holds(self, where: Sequence[Affine], axes: Axes) -> Any:
        mask = np.ones((1,) * len(axes), bool)
        for condition in where:
            mask = mask & (self._affine(condition, axes) >= 0)
        return mask

    def _aligned(self, t: _Tensor, axes: Axes) -> Any:
        """Return an array with a dimension for each of `axes`, in their order."""
        import jax.numpy as jnp

        own = [name for name, _ in t.axes]
        order = [own.index(name) for name, _ in axes if name in own]
        shape = [n if name in own else 1 for name, n in axes]
        moved = t.array if order == sorted(order) else (np if isinstance(t.array, np.ndarray) else jnp).transpose(t.array, order)
        return moved.reshape(shape)

    def value(self, e: Expression, scope: Mapping[str, int]) -> _Tensor:
        """Return an expression over the axes that occur in it."""
        key = (id(e), tuple(sorted(scope.items())))
        if key not in self.memo:
            self.kept.append(e)
            self.memo[key] = self._make(e, scope)
        return self.memo[key]

    def _make(self, e: Expression, scope: Mapping[str, int]) -> _Tensor:
        match e:
            case Constant():
                raw = np.array(e.bits, np.uint64).astype(f"uint{max(WIDTH[e.type], 8)}")
                return _Tensor(raw != 0 if e.type == "pred" else raw.view(_dtype(e.type)), ())
            case Scalar():
                return _Tensor(self._scalar(e), ())
            case Index():
                axes = _axes([e.value], scope)
                return _Tensor(self._affine(e.value, axes).astype(_dtype(e.type)), axes)
            case Load():
                return self._load(e, scope)
            case Gather():
                place = self.value(e.place, scope)
                return _Tensor(self._memory(e.buffer, e.type)[place.array], place.axes)
            case Apply():
                parts = [self.value(a, scope) for a in e.args]
                axes = tuple((a, n) for a, n in scope.items() if any((a, n) in p.axes for p in parts))
                return _Tensor(apply(e.op, e.type, e.mods, [self._aligned(p, axes) for p in parts]), axes)
        return self._reduce(e, scope)

    def _scalar(self, e: Scalar) -> Any:
        import jax.numpy as jnp

        given = self.args[e.argument]
        if (
            isinstance(given, (np.generic, np.ndarray))
            and given.dtype != _dtype(e.type)
            and given.dtype.itemsize == WIDTH[e.type] // 8
        ):
            given = np.asarray(given).view(_dtype(e.type))
        return (
            np.asarray(given).astype(_dtype(e.type))
            if e.type[0] in "sub" and e.type != "bf16"
            else jnp.asarray(given, _dtype(e.type))
        )

    def _load(self, e: Load, scope: Mapping[str, int]) -> _Tensor:
        import jax.numpy as jnp

        axes = _axes([e.index, *e.where], scope)
        flat = self._memory(e.buffer, e.type)
        if any(n == 0 for _, n in axes):
            return _Tensor(jnp.zeros([n for _, n in axes], flat.dtype), axes)
        if not e.where and (dense := self._dense(flat, e.index, axes)) is not None:
            return _Tensor(dense, axes)
        places, mask = self._affine(e.index, axes), self._holds(e.where, axes)
        used = np.broadcast_to(places, np.broadcast(places, mask).shape)[np.broadcast_to(mask, np.broadcast(places, mask).shape)]
        if used.size and not 0 <= used.min() <= used.max() < flat.size:
            raise InputError(f"argument {e.buffer} is too small", value=int(flat.size), allowed=f"at least {used.max() + 1}")
        found = flat[np.where(mask, places, 0)] if flat.size else jnp.zeros(mask.shape, flat.dtype)
        return _Tensor(jnp.where(mask, found, jnp.zeros((), flat.dtype)) if e.where else found, axes)

    def _dense(self, flat: Any, index: Affine, axes: Axes) -> Any:
        """Return a load as reshaped slices, or None where strides do not nest."""
        import jax.numpy as jnp

        strides = {axis: 0 for axis, _ in axes}
        for axis, stride in index.terms:
            strides[axis] += stride.value(self.launch)
        order = sorted((a for a in axes if a[1] > 1), key=lambda a: -strides[a[0]])
        steps = [strides[a] for a, _ in order]
        nested = all(s >= t * n for s, t, (_, n) in zip(steps, steps[1:], order[1:], strict=False))
        start = index.offset.value(self.launch)
        if min([start, *(s - 1 for s in steps)]) < 0 or not nested:
            return None
        need = start + sum(s * (n - 1) for s, (_, n) in zip(steps, order, strict=True)) + 1
        if need > flat.size:
            raise InputError("an argument is too small", value=int(flat.size), allowed=f"at least {need}")
        if not order:
            return flat[start].reshape((1,) * len(axes))
        whole = start + steps[0] * order[0][1]
        part = jnp.pad(flat, (0, max(0, whole - flat.size)))[start:whole]
        for place, (step, (_, n)) in enumerate(zip(steps, order, strict=True)):
            part = part.reshape(*part.shape[:-1], n, step)
            inside = steps[place + 1] * order[place + 1][1] if place + 1 < len(order) else 1
            part = part[..., :inside]
        names = [a for a, _ in order]
        part = part.reshape([n for _, n in order])
        return jnp.transpose(part, [names.index(a) for a, n in axes if n > 1]).reshape([n for _, n in axes])

    def _reduce(self, e: Reduce, scope: Mapping[str, int]) -> _Tensor:
        import jax.numpy as jnp

        own = self._sizes(e.axes)
        inner = {**scope, **dict(own)}
        factors = _factors(e.body, e.type) if e.kind == "add" and e.type in ("f32", "f64") and not e.where else [e.body]
        if len(factors) > 1:
            return self._einsum([self.value(f, inner) for f in factors], e.type, own, scope)
        body = self.value(e.body, inner)
        named = {a for a, _ in body.axes}.union(*(w.axes for w in e.where), (a for a, _ in own))
        axes = tuple((a, n) for a, n in inner.items() if a in named)
        full = jnp.broadcast_to(_take(self._aligned(body, axes), e.type), [n for _, n in axes])
        start = _start(e.kind, full.dtype)
        if e.where:
            full = jnp.where(self._holds(e.where, axes), full, start)
        function = {"add": jnp.sum, "mul": jnp.prod, "max": jnp.max, "min": jnp.min}[e.kind]
        places = tuple(d for d, (a, _) in enumerate(axes) if a in dict(own))
        left = tuple((a, n) for a, n in axes if a not in dict(own))
        options = {"dtype": full.dtype} if e.kind in ("add", "mul") else {"initial": start}
        return _Tensor(function(full, axis=places, **options), left)

    def _einsum(self, parts: list[_Tensor], kind: str, own: Axes, scope: Mapping[str, int]) -> _Tensor:
        import jax.numpy as jnp

        numbers: dict[str, int] = {}
        operands: list[Any] = []
        for part in parts:
            operands += [jnp.asarray(_take(part.array, kind)), [numbers.setdefault(a, len(numbers)) for a, _ in part.axes]]
        left = tuple((a, n) for a, n in scope.items() if a in numbers)
        found = jnp.einsum(*operands, [numbers[a] for a, _ in left], precision="highest")
        for axis, n in own:
            found = found if axis in numbers else found * n
        return _Tensor(found, left)


def _axes(maps: Sequence[Affine], scope: Mapping[str, int]) -> Axes:
    named = frozenset().union(*(m.axes for m in maps))
    return tuple((a, n) for a, n in scope.items() if a in named)


def _factors(e: Expression, kind: str) -> list[Expression]:
    if isinstance(e, Apply) and e.op == "mul" and e.type == kind and not {"rz", "rm", "rp", "sat"} & set(e.mods):
        return [f for a in e.args for f in _factors(a, kind)]
    return [e]


def _start(kind: str, dtype: Any) -> Any:
    if kind in ("add", "mul"):
        return np.array(kind == "mul", dtype)
    if dtype.kind in "iu":
        return np.array(np.iinfo(dtype).min if kind == "max" else np.iinfo(dtype).max, dtype)
    return np.array(-np.inf if kind == "max" else np.inf, dtype)


def _recast(flat: Any, want: np.dtype[Any]) -> Any:
    """Return memory as elements of another type."""
    from jax import lax

    have = flat.dtype
    if have == want:
        return flat
    if have.kind == "b":
        flat, have = flat.astype(np.uint8), np.dtype(np.uint8)
    if have.itemsize < want.itemsize:
        flat = flat[: flat.size * have.itemsize // want.itemsize * want.itemsize // have.itemsize]
        flat = flat.reshape(-1, want.itemsize // have.itemsize)
    return lax.bitcast_convert_type(flat, want).ravel()


def apply(op: str, kind: str, mods: Sequence[str], args: Sequence[Any]) -> Any:
    """Return a pure operation of `ir` or a function of MATH on arrays; NumPy constants stay NumPy.

    Raises:
        Unsupported: an operation without a form in JAX.
    """
    import jax
    import jax.numpy as jnp

    xp = np if all(isinstance(a, np.ndarray) for a in args) else jnp
    if op == "select":
        a, b = args[:2] if args[0].dtype == args[1].dtype else (_take(v, kind) for v in args[:2])
        return xp.where(_take(args[2], "pred"), a, b)
    if op == "cvt":
        if len(args) != 1:
            raise Unsupported("has no form in JAX", value=f"cvt.{kind}")
        return _convert(xp, _take(args[0], mods[0]), kind, mods[1:])
    if op in ("shl", "shr"):
        return _shift(xp, op, _take(args[0], kind), _take(args[1], "b32"))
    if op == "mulwide":
        wide = f"{kind[0]}{2 * WIDTH[kind]}"
        first, second = (_convert(xp, _take(a, kind), wide, ()) for a in args)
        return first * second
    values = [_take(a, kind) for a in args]
    if xp is jnp:
        values = [jnp.asarray(v) for v in values]
    if op == "mov":
        return values[0]
    if op == "setp":
        return _compare(xp, mods[0], *values)
    if op in ("min", "max"):
        whole = kind not in _FLOATS or "nan" in mods
        return getattr(xp, f"{op}imum" if whole else f"f{op}")(*values)
    if kind not in _FLOATS:
        if op not in _WHOLE:
            raise Unsupported("has no form in JAX", value=f"{op}.{kind}")
        return getattr(xp, _PLAIN[op])(*values)
    return _float(jax, xp, op, values, mods).astype(_dtype(kind))


def _float(jax: Any, xp: Any, op: str, values: list[Any], mods: Sequence[str]) -> Any:
    if op in _PLAIN:
        found = getattr(xp, _PLAIN[op])(*values)
    elif op in ("erf", "erfc", "sigmoid"):
        found = {"erf": jax.scipy.special.erf, "erfc": jax.scipy.special.erfc, "sigmoid": jax.nn.sigmoid}[op](*values)
    elif op == "fma":
        found = values[0] * values[1] + values[2]
    elif op in ("rsqrt", "rcp"):
        found = 1 / (xp.sqrt(values[0]) if op == "rsqrt" else values[0])
    elif op == "round":
        found = xp.copysign(xp.floor(xp.abs(values[0]) + 0.5), values[0])
    elif op == "copysign":
        found = xp.copysign(values[1], values[0])
    else:
        raise Unsupported("has no form in JAX", value=op)
    if "relu" in mods or "sat" in mods:
        found = xp.clip(found, 0, 1 if "sat" in mods else None)
    return found


def _shift(xp: Any, op: str, a: Any, count: Any) -> Any:
    width = 8 * a.dtype.itemsize
    shift = xp.minimum(count, width - 1).astype(a.dtype)
    moved = xp.left_shift(a, shift) if op == "shl" else xp.right_shift(a, shift)
    return xp.where((count >= width) & (op == "shl" or a.dtype.kind == "u"), xp.zeros((), a.dtype), moved)


def _compare(xp: Any, how: str, a: Any, b: Any) -> Any:
    nan = xp.isnan(a) | xp.isnan(b) if a.dtype.kind not in "iub" else xp.zeros((), bool)
    if how in ("num", "nan", "ne", "neu"):
        return {"num": ~nan, "nan": nan, "ne": (a != b) & ~nan, "neu": a != b}[how]
    plain = getattr(xp, _COMPARE[how.removesuffix("u")])(a, b)
    return plain | nan if how.endswith("u") else plain


def _convert(xp: Any, values: Any, kind: str, mods: Sequence[str]) -> Any:
    for mod in mods:
        values = getattr(xp, _ROUND[mod])(values) if mod in _ROUND else values
    floating, want = values.dtype.kind not in "iub", _dtype(kind)
    want = want if xp is np else _canonical(want)
    if kind in _FLOATS:
        return (xp.clip(values, 0, 1) if floating and "sat" in mods else values).astype(want)
    if kind == "pred":
        return values != 0
    info = np.iinfo(want)
    if not floating:
        return (xp.clip(values, info.min, info.max) if "sat" in mods else values).astype(want)
    whole = xp.where(xp.isnan(values), 0, xp.trunc(values))
    top = whole >= float(info.max)
    low = xp.maximum(xp.where(top, 0, whole), float(info.min)).astype(want)
    return xp.where(top, np.array(info.max, want), low)
