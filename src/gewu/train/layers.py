"""The parts of a block that act on each token alone: products, norms, rotary angles, the MLP.

Weights are kept in float32 and cast where they are used (`gathered`), norms and sums are taken in float32. What is written here
is a device's share: heads and inner width may be pieces of tp, and `enter` and `leave` stand around what is cut so.

    rms     x / sqrt(mean(x²) + eps) · g                            (Zhang and Sennrich, arXiv:1910.07467)
    layer   (x - mean(x)) / sqrt(var(x) + eps) · g + b              (Ba et al., arXiv:1607.06450)
    swiglu  down(silu(gate(x)) · up(x))                             (Shazeer, arXiv:2002.05202)
    gelu    down(gelu(up(x))), with tanh                            (Hendrycks and Gimpel, arXiv:1606.08415)
    rope    pairs (x_i, x_{i + C/2}) turned by position · theta^(-2i/C)   (Su et al., arXiv:2104.09864)
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from gewu.ops import product as products
from gewu.ops import rows as fused
from gewu.ops.product import matmul
from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout, copy_to, gather, reduce_from, scatter
from gewu.train.precision import product8
from gewu.train.spec import tree_map

Weights = dict[str, Any]


def gathered(tree: Weights, params: Any, at: Layout, p: Any) -> Weights:
    """Return weights ready for use: gathered over their pieces, in the precision of products or in which they are applied."""

    def ready(param: Any, leaf: Any) -> Any:
        pieces = param.pieces(at)
        late = _applies(leaf, p) and not pieces and "experts" not in param.axes
        leaf = leaf if param.exact or late else leaf.astype(p.compute)
        return checkpoint_name(gather(leaf, at, pieces, param.fsdp), "gathered") if pieces else leaf

    return tree_map(ready, params, tree)


def _applies(leaf: Any, p: Any) -> bool:
    """Return whether products take this weight in float32 and round it themselves."""
    return bool(p.name == "bf16" and leaf.dtype == jnp.float32 and products.usable())


def dense(x: Any, w: Any, p: Any, dims: int = 1) -> Any:
    """Return x · w.

    Args:
        x: (..., I...), cast to the precision of products.
        w: (I..., O...), cast alike.
        p: precision.
        dims: how many axes I... are.

    Returns:
        (..., O...), summed in float32, in the precision of products.
    """
    inside, outside = w.shape[:dims], w.shape[dims:]
    rows = x.shape[: x.ndim - dims]
    flat = x.reshape(math.prod(rows), math.prod(inside)).astype(p.compute)
    w = w.reshape(math.prod(inside), math.prod(outside))
    if _applies(w, p):
        y = fused.applied(flat, w)
    else:
        y = (product8 if p.name == "fp8" else matmul)(flat, w.astype(p.compute))
    return checkpoint_name(y, "product").reshape(*rows, *outside)


def norm(x: Any, w: Weights, name: str, c: ModelConfig) -> Any:
    """Return x normed over its last axis with the weights `name` (and `name`_bias), in the type of x."""
    if products.usable():
        flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        bias = w[f"{name}_bias"] if c.norm == "layer" else w[name]
        return fused.normed(flat, w[name], bias, c.eps, c.norm == "layer").reshape(x.shape)
    x32 = x.astype(jnp.float32)
    if c.norm == "layer":
        x32 = x32 - x32.mean(-1, keepdims=True)
    scale = lax.rsqrt((x32 * x32).mean(-1, keepdims=True) + c.eps)
    y = x32 * scale * w[name]
    return (y + w[f"{name}_bias"] if c.norm == "layer" else y).astype(x.dtype)


def biased(x: Any, bias: Any) -> Any:
    """Return x plus a bias over its last axes, in the type of x."""
    if not products.usable():
        return x + bias.astype(x.dtype)
    return fused.biased(x.reshape(-1, bias.size), bias.reshape(-1)).reshape(x.shape)


def angles(positions: Any, c: ModelConfig) -> tuple[Any, Any]:
    """Return cosine and sine of the rotary angles, float32 (..., C / 2), at positions int32 (...)."""
    frequencies = c.rope_theta ** (-jnp.arange(0, c.C, 2, dtype=jnp.float32) / c.C)
    angle = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angle), jnp.sin(angle)


def turn(x: Any, cos: Any, sin: Any) -> Any:
    """Return x (b, t, heads..., C) turned by the angles (b or 1, t, C / 2)."""
    wide = (*cos.shape[:2], *(1,) * (x.ndim - 3), cos.shape[-1])
    cos, sin = cos.reshape(wide), sin.reshape(wide)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


def enter(x: Any, at: Layout) -> Any:
    """Return the tokens (b, t, D) as every device of tp needs them before a part that is cut over tp."""
    return gather(x, at, "tp", 1) if at.sp else copy_to(x, at, "tp")


def leave(x: Any, at: Layout) -> Any:
    """Return the sum over tp behind a part that is cut over tp: all tokens, or with sp this device's."""
    return scatter(x, at, "tp", 1) if at.sp else reduce_from(x, at, "tp")


def mlp(x: Any, w: Weights, c: ModelConfig, at: Layout, p: Any, name: str = "") -> Any:
    """Return the MLP of tokens (b, t, D) that `enter` gave, to be summed over tp; name is "" or "shared_"."""
    h = dense(x, w[f"{name}up"], p)
    if products.usable() and p.name != "fp8":
        bias, down = w[f"{name}up_bias"] if c.bias else jnp.zeros(h.shape[-2:], jnp.float32), w[f"{name}down"]
        y = fused.activated(h.reshape(-1, bias.size), bias, down if _applies(down, p) else down.astype(p.compute))
        return checkpoint_name(y, "product").reshape(*h.shape[:-2], -1)
    if c.bias:
        h = h + w[f"{name}up_bias"].astype(h.dtype)
    if c.activation == "swiglu":
        h = jax.nn.silu(h[..., 0, :]) * h[..., 1, :]
    else:
        h = jax.nn.gelu(h[..., 0, :], approximate=True)
    return dense(h, w[f"{name}down"], p)
