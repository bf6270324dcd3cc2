"""Element by element: y = f(x). Arrays of any shape; `out` may be an input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import pi, sqrt
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.ops import python
from gewu.ops.library.call import Array, Builder, convert, fits, floats, launch, real, result, symbols
from gewu.ops.python import Value, assign, axes, both, erf, index, maximum, minimum, mulwide, program, scalar, sizes, where
from gewu.ops.sizes import Size
from gewu.ops.tensor import Program

Formula = Callable[[Value], Value]

ROUNDS: Final = 10


def normal_cdf(x: Value) -> Value:
    """Return the probability that a standard normal number is below x."""
    return 0.5 * (1 + erf(x * sqrt(0.5)))


def _gelu_slope(x: Value) -> Value:
    return normal_cdf(x) + x * python.exp(-0.5 * x * x) * (1 / sqrt(2 * pi))


def _silu_slope(x: Value) -> Value:
    s = python.sigmoid(x)
    return s * (1 + x * (1 - s))


def _tanh_slope(x: Value) -> Value:
    t = python.tanh(x)
    return 1 - t * t


def _sigmoid_slope(x: Value) -> Value:
    s = python.sigmoid(x)
    return s * (1 - s)


UNARY: Final[dict[str, tuple[Formula, Formula]]] = {
    "relu": (lambda x: maximum(x, 0), lambda x: where(x > 0, x * 0 + 1, 0.0)),
    "gelu": (lambda x: x * normal_cdf(x), _gelu_slope),
    "silu": (lambda x: x * python.sigmoid(x), _silu_slope),
    "tanh": (python.tanh, _tanh_slope),
    "sigmoid": (python.sigmoid, _sigmoid_slope),
    "exp": (python.exp, python.exp),
    "log": (python.log, lambda x: 1 / x),
}
"""f and its derivative."""


@cache
def mapping(name: str) -> Builder:
    """Return the builder of y = f(x)."""

    def build(kinds: Sequence[str]) -> Program:
        (n,) = sizes("n")
        (i,) = axes(i=n)
        x, y = symbols(kinds, (n,), (n,))
        return program(name, assign(y[i], UNARY[name][0](x[i])))

    return build


@cache
def slope(name: str) -> Builder:
    """Return the builder of dx = dy f'(x)."""

    def build(kinds: Sequence[str]) -> Program:
        (n,) = sizes("n")
        (i,) = axes(i=n)
        dy, x, dx = symbols(kinds, (n,), (n,), (n,))
        return program(f"{name}_gradient", assign(dx[i], dy[i] * UNARY[name][1](x[i])))

    return build


def _unary(name: str, formula: str) -> tuple[Callable[..., Array], Callable[..., tuple[Array]]]:
    build, build_slope = mapping(name), slope(name)

    def function(x: Any, out: Array | None = None) -> Array:
        x = floats(name, "x", x)
        out = result(name, out, x.shape, x.dtype)
        launch(build, (x, out), {"n": x.size})
        return out

    def derivative(dy: Any, x: Any) -> tuple[Array]:
        dy, x = floats(name, "dy", dy), floats(name, "x", x)
        fits(name, "dy and x alike", dy.shape == x.shape, dy, x)
        dx = np.empty_like(x)
        launch(build_slope, (dy, x, dx), {"n": x.size})
        return (dx,)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Return {formula} of every element."
    derivative.__doc__ = f"Return the cotangent of x of `{name}`."
    return function, derivative


relu, relu_gradient = _unary("relu", "max(x, 0)")
gelu, gelu_gradient = _unary("gelu", "x Φ(x)")
silu, silu_gradient = _unary("silu", "x / (1 + e^-x)")
tanh, tanh_gradient = _unary("tanh", "tanh x")
sigmoid, sigmoid_gradient = _unary("sigmoid", "1 / (1 + e^-x)")
exp, exp_gradient = _unary("exp", "e^x")
log, log_gradient = _unary("log", "ln x")


def axpy(kinds: Sequence[str]) -> Program:
    """Build c = alpha a + b."""
    (n,) = sizes("n")
    (i,) = axes(i=n)
    a, b, c = symbols(kinds, (n,), (n,), (n,))
    return program("elementwise", assign(c[i], scalar(3, real(*kinds)) * a[i] + b[i]))


def elementwise(a: Any, b: Any, alpha: float = 1.0, out: Array | None = None) -> Array:
    """Return alpha a + b."""
    a, b = floats("elementwise", "a", a), floats("elementwise", "b", b)
    fits("elementwise", "a and b alike", a.shape == b.shape, a, b)
    out = result("elementwise", out, a.shape, a.dtype)
    launch(axpy, (a, b, out), {"n": a.size}, (), (alpha,))
    return out


def elementwise_gradient(dy: Any, a: Any, b: Any, alpha: float = 1.0) -> tuple[Array, Array]:
    """Return the cotangents of a and b."""
    dy = floats("elementwise", "dy", dy)
    return elementwise(dy, np.zeros_like(dy), alpha), dy.copy()


def cast(x: Any, dtype: Any = np.float32, out: Array | None = None) -> Array:
    """Return x converted to another float type, rounded to nearest."""
    x = floats("cast", "x", x)
    kind = floats("cast", "dtype", np.empty(0, dtype if out is None else out.dtype)).dtype
    return convert(x, result("cast", out, x.shape, kind))


def cast_gradient(dy: Any, x: Any, dtype: Any = np.float32) -> tuple[Array]:
    """Return the cotangent of x: converted back."""
    return (cast(dy, np.asarray(x).dtype),)


def clamping(kinds: Sequence[str]) -> Program:
    """Build y = min(max(x, low), high)."""
    (n,) = sizes("n")
    (i,) = axes(i=n)
    x, y = symbols(kinds, (n,), (n,))
    low, high = scalar(2, real(*kinds)), scalar(3, real(*kinds))
    return program("clamp", assign(y[i], minimum(maximum(x[i], low), high)))


def _clamp_slope(kinds: Sequence[str]) -> Program:
    (n,) = sizes("n")
    (i,) = axes(i=n)
    dy, x, dx = symbols(kinds, (n,), (n,), (n,))
    low, high = scalar(3, real(*kinds)), scalar(4, real(*kinds))
    return program("clamp_gradient", assign(dx[i], where(both(x[i] >= low, x[i] <= high), dy[i], 0)))


def clamp(x: Any, low: float, high: float, out: Array | None = None) -> Array:
    """Return x kept between low and high."""
    x = floats("clamp", "x", x)
    out = result("clamp", out, x.shape, x.dtype)
    launch(clamping, (x, out), {"n": x.size}, (), (low, high))
    return out


def clamp_gradient(dy: Any, x: Any, low: float, high: float) -> tuple[Array]:
    """Return the cotangent of x."""
    dy, x = floats("clamp", "dy", dy), floats("clamp", "x", x)
    dx = np.empty_like(x)
    launch(_clamp_slope, (dy, x, dx), {"n": x.size}, (), (low, high))
    return (dx,)


def choosing(kinds: Sequence[str]) -> Program:
    """Build y = a where mask else b."""
    (n,) = sizes("n")
    (i,) = axes(i=n)
    mask, a, b, y = symbols(kinds, (n,), (n,), (n,), (n,))
    return program("select", assign(y[i], where(mask[i] > 0, a[i], b[i])))


def _mask(mask: Any) -> Array:
    found = np.ascontiguousarray(mask)
    if found.dtype not in (np.dtype(bool), np.dtype(np.uint8)):
        raise InputError("mask has an unsupported type", key="select", value=str(found.dtype), allowed="bool, uint8")
    return found.view(np.uint8)


def select(mask: Any, a: Any, b: Any, out: Array | None = None) -> Array:
    """Return a where the mask (bool or uint8) is not 0, else b."""
    mask, a, b = _mask(mask), floats("select", "a", a), floats("select", "b", b)
    fits("select", "mask, a and b alike", mask.shape == a.shape == b.shape, mask, a, b)
    out = result("select", out, a.shape, a.dtype)
    launch(choosing, (mask, a, b, out), {"n": a.size})
    return out


def select_gradient(dy: Any, mask: Any, a: Any, b: Any) -> tuple[Array, Array]:
    """Return the cotangents of a and b."""
    zero = np.zeros_like(dy)
    return select(mask, dy, zero), select(mask, zero, dy)


def _philox(counter: Value, key: tuple[Value, Value]) -> list[Value]:
    """Return the four words of Philox4x32-10 for the counter (counter, 0, 0, 0)."""
    zero = counter ^ counter
    c, (k0, k1) = [counter, zero, zero, zero], key
    for turn in range(ROUNDS):
        p, q = mulwide(c[0], 0xD2511F53), mulwide(c[2], 0xCD9E8D57)
        low, high = (lambda w: python.cast(w, "u32")), (lambda w: python.cast(w >> 32, "u32"))
        keys = (k0 + (turn * 0x9E3779B9 & 0xFFFFFFFF), k1 + (turn * 0xBB67AE85 & 0xFFFFFFFF))
        c = [high(q) ^ c[1] ^ keys[0], low(q), high(p) ^ c[3] ^ keys[1], low(p)]
    return c


def dropping(kinds: Sequence[str], tail: bool = False) -> Program:
    """Build y = x / (1 - rate) where random >= rate, else 0: four elements for each counter, or the `n` after 4 `first`."""
    n, first = sizes("n first")
    t = real(*kinds)
    rate, key = scalar(2, t), (scalar(3, "u32"), scalar(4, "u32"))
    (i,) = axes(i=n)
    whole = Size.of(4) * first + n if tail else Size.of(4) * n
    x, y = symbols(kinds, (whole,), (whole,))
    words = _philox(index(first if tail else i, "u32"), key)

    def kept(word: Value, element: Value) -> Value:
        chance = python.cast(python.cast(word >> 8, "s32"), t) * 2.0**-24
        return where(chance >= rate, element * (1 / (1 - rate)), 0)

    if not tail:
        return program("dropout", *(assign(y[4 * i + lane], kept(words[lane], x[4 * i + lane])) for lane in range(4)))
    lane, word = index(i, "s32"), words[3]
    for place in (2, 1, 0):
        word = where(lane <= place, words[place], word)
    return program("dropout", assign(y[i + Size.of(4) * first], kept(word, x[i + Size.of(4) * first])))


def dropout(x: Any, rate: float, seed: int, out: Array | None = None) -> Array:
    """Return x / (1 - rate) with a share `rate` of all elements set to 0.

    Element i is kept when word i % 4 of Philox4x32-10 at counter i // 4 under the key `seed` (64 bits), cut to 24 bits, is
    at least rate: the same elements for whatever type, processor and number of threads.
    """
    if not 0 <= rate < 1:
        raise InputError("rate is no share", key="dropout", value=rate, allowed="0 <= rate < 1")
    x = floats("dropout", "x", x)
    out = result("dropout", out, x.shape, x.dtype)
    scalars = (rate, seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    whole, rest = divmod(x.size, 4)
    if whole:
        launch(dropping, (x, out), {"n": whole}, (), scalars)
    if rest:
        launch(dropping, (x, out), {"n": rest, "first": whole}, (True,), scalars)
    return out


def dropout_gradient(dy: Any, x: Any, rate: float, seed: int) -> tuple[Array]:
    """Return the cotangent of x: the same elements dropped."""
    return (dropout(dy, rate, seed),)
