"""In which number formats a step computes and what is kept.

    name   products        kept      sums, norms, softmax, loss
    fp32   float32         float32   float32
    bf16   bfloat16        float32   float32
    fp8    e4m3 and e5m2   float32   float32; experts, scores and the output embedding multiply in bfloat16

With `master="bfloat16"` parameters are kept in bfloat16 only: half the memory, and updates are rounded stochastically, without
which steps smaller than half a unit of the last place would all be lost; gradients are bfloat16 then too.

fp8 (Micikevicius et al., arXiv:2209.05433): activations and weights are e4m3 (3 bits of mantissa, up to 448), gradients e5m2 (2
bits, up to 57344). Every tensor is scaled to that range by a power of two found from its largest number now (current scaling:
no history to keep or to restore, one more pass of reading). On NVIDIA GPUs from Hopper on, XLA gives such products to the fp8
units; elsewhere the operands are rounded alike and multiplied in float32, which is right and not fast. A device scales its own
piece of a tensor, so layouts agree to the rounding of fp8, not to that of float32.

Dynamic loss scaling (arXiv:1710.03740) doubles the scale after `growth` good steps and halves it at a step that overflows, which
is skipped. bfloat16 has the range of float32 and fp8 scales each tensor, so that none of the three needs it; it is there for
machines that flush small numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from gewu.core.errors import InputError, did_you_mean
from gewu.train.spec import Specs, tree_map

NAMES: Final = ("fp32", "bf16", "fp8")
MASTERS: Final = ("float32", "bfloat16")
E4M3, E5M2 = jnp.float8_e4m3fn, jnp.float8_e5m2
LARGEST_SCALE: Final = 2.0**24


@dataclass(frozen=True)
class Precision:
    """Number formats of a step.

    Args:
        name: of the products, see `NAMES`.
        master: in what parameters are kept, see `MASTERS`.
        scaling: "none" or "dynamic" scaling of the loss.
        first: the scale at step 0.
        growth: good steps after which the scale doubles.

    Raises:
        InputError: a value that is not known.
    """

    name: str = "fp32"
    master: str = "float32"
    scaling: str = "none"
    first: float = 2.0**15
    growth: int = 2000

    def __post_init__(self) -> None:
        for key, allowed in (("name", NAMES), ("master", MASTERS), ("scaling", ("none", "dynamic"))):
            value = getattr(self, key)
            if value not in allowed:
                key = "precision" if key == "name" else key
                hint = did_you_mean(value, allowed)
                raise InputError("unknown", key=key, value=value, allowed=", ".join(allowed), hint=hint)

    @classmethod
    def of(cls, name: str) -> Precision:
        """Return the precision of a name: "fp32", "bf16" or "fp8".

        Raises:
            InputError: there is none.
        """
        return cls(name)

    @property
    def compute(self) -> Any:
        """The type of activations and of the operands of products (before fp8 rounds those of layers)."""
        return jnp.float32 if self.name == "fp32" else jnp.bfloat16

    def kept(self, tree: Specs) -> Specs:
        """Return the parameters as they are kept: those that are not `exact` in the type of `master`."""
        return dict(tree_map(lambda param: param if param.exact else replace(param, dtype=self.master), tree))

    def scale(self) -> dict[str, Any]:
        """Return the state of the loss scale at step 0; empty without scaling."""
        return {} if self.scaling == "none" else {"scale": jnp.float32(self.first), "good": jnp.int32(0)}

    def factor(self, state: dict[str, Any]) -> Any:
        """Return what the loss is multiplied by: the constant 1.0 without scaling, else float32 ()."""
        return state["scale"] if state else 1.0

    def next_scale(self, state: dict[str, Any], finite: Any) -> dict[str, Any]:
        """Return the state of the loss scale behind a step whose gradients were finite or not."""
        if not state:
            return {}
        grow = state["good"] + 1 >= self.growth
        larger = jnp.where(grow, jnp.minimum(2 * state["scale"], LARGEST_SCALE), state["scale"])
        scale = jnp.where(finite, larger, jnp.maximum(state["scale"] / 2, 1.0))
        return {"scale": scale, "good": jnp.where(finite & ~grow, state["good"] + 1, 0)}


def finite(tree: Any) -> Any:
    """Return whether all numbers of a tree are finite, bool ()."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all() if leaves else jnp.bool_(True)


def bits(shape: tuple[int, ...], key: Any, strides: tuple[int, ...] | None = None, offset: Any = 0) -> Any:
    """Return random bits, uint32 of the shape, of a counter: each depends on the key and on its number in the whole array.

    Args:
        shape: of this device's piece.
        key: uint32 (); another key gives other bits.
        strides: by how much the number grows along each axis in the whole array; None where the piece is all of it.
        offset: number of the piece's first element.

    Reference:
        the hash is lowbias32 (Wellons, "Prospecting for hash functions", 2018): three multiplications and shifts, which fuse
        with the update that uses them, where threefry takes longer than the update itself.
    """
    strides = strides or tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    number = jnp.full(shape, offset, jnp.uint32)
    for axis, stride in enumerate(strides):
        number = number + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
    return _hash(number ^ _hash(jnp.asarray(key, jnp.uint32)))


def _hash(x: Any) -> Any:
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0xD35A2D97)
    return x ^ (x >> 15)


def stochastic(x: Any, random: Any) -> Any:
    """Return float32 numbers rounded to bfloat16, up or down with odds such that the mean is x.

    Args:
        x: float32; NaN stays NaN and infinity infinity.
        random: uint32 of its shape, of `bits`.
    """
    pattern = lax.bitcast_convert_type(x, jnp.uint32)
    moved = (pattern + (random >> 16)) & jnp.uint32(0xFFFF0000)
    return jnp.where(jnp.isfinite(x), lax.bitcast_convert_type(moved, jnp.float32), x).astype(jnp.bfloat16)


def quantised(x: Any, kind: Any) -> tuple[Any, Any]:
    """Return a tensor in an 8-bit format and its scale, float32 (), a power of two: x is about their product.

    What is not finite makes the result NaN, so that the step is seen to be bad.
    """
    largest = jnp.abs(x).max().astype(jnp.float32)
    _, exponent = jnp.frexp(largest / float(jnp.finfo(kind).max))
    scale = jnp.where(largest > 0, jnp.ldexp(jnp.float32(1), jnp.maximum(exponent, -120)), 1.0)
    scale = jnp.where(jnp.isfinite(largest), scale, jnp.nan)
    return (x.astype(jnp.float32) / scale).astype(kind), scale


def _dot8(a: tuple[Any, Any], b: tuple[Any, Any], axis_a: int, axis_b: int, dtype: Any) -> Any:
    """Return the product of two scaled tensors, contracted over one axis of each, in a wider type."""
    dims = (((axis_a,), (axis_b,)), ((), ()))
    return (lax.dot_general(a[0], b[0], dims, preferred_element_type=jnp.float32) * (a[1] * b[1])).astype(dtype)


@jax.custom_vjp
def product8(x: Any, w: Any) -> Any:
    """Return x · w with operands rounded to 8 bits: e4m3 forward, e5m2 for the gradient that comes back.

    Args:
        x: (n, i).
        w: (i, o).

    Returns:
        (n, o) in the type of x, summed in float32; what the backward pass keeps are the 8-bit operands.
    """
    return _forward8(x, w)[0]


def _forward8(x: Any, w: Any) -> tuple[Any, Any]:
    x8, w8 = quantised(x, E4M3), quantised(w, E4M3)
    return _dot8(x8, w8, 1, 0, x.dtype), (x8, w8, jnp.zeros((), w.dtype))


def _backward8(kept: Any, g: Any) -> tuple[Any, Any]:
    x8, w8, like_w = kept
    g8 = quantised(g, E5M2)
    return _dot8(g8, w8, 1, 1, g.dtype), _dot8(x8, g8, 0, 0, like_w.dtype)


product8.defvjp(_forward8, _backward8)
