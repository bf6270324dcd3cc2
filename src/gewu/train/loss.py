"""Cross-entropy of the next token, without ever holding the logits of all tokens.

Rows of hidden states are taken in blocks; of each block the logits are made, reduced to the loss and turned into gradients at
once, so that memory is one block of logits and logits are computed once (not twice, as by recomputation). This is possible
because the loss ends the chain: its cotangent is one number, which scales the finished gradients (after Hsu et al., Liger
Kernel, arXiv:2410.10989). The vocabulary may be cut over tp: the maximum, the sum of exponentials and the logit of the target
are joined over tp (arXiv:1909.08053).

    loss = sum_i -log softmax(h_i W^T)[y_i] / count over targets y_i >= 0
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from gewu.ops import product as products
from gewu.ops.product import added, matmul
from gewu.ops.rows import halved, judged
from gewu.train.mesh import Layout, index, largest, total

LOGITS: Final = 1 << 22
"""Numbers of a block of logits."""


def cross_entropy(h: Any, w: Any, y: Any, count: Any, at: Layout) -> Any:
    """Return this device's contribution to the mean cross-entropy, in nats.

    Args:
        h: (n, D) hidden states, equal on all devices of tp; their gradient is a part that `enter` sums.
        w: (V / tp, D) output embedding, multiplied in the type of h; its gradient is summed in float32.
        y: int32 (n,) targets; negative ones do not count.
        count: number of targets that count, over all devices.

    Returns:
        float32 (): the sum over this device's targets, over count.
    """
    return _cross_entropy(h, w, y, count, at)


def _rows(n: int, vocabulary: int) -> int:
    """Return the rows of a block: a divisor of n near LOGITS / vocabulary."""
    most = max(1, min(n, LOGITS // max(vocabulary, 1)))
    return next(rows for rows in range(most, 0, -1) if n % rows == 0)


def _block(h: Any, w: Any, y: Any, at: Layout) -> tuple[Any, Any, Any, Any]:
    """Return the loss of each row, and exp(logits - top), its sum and the local numbers of the targets."""
    logits = matmul(h, w, tb=True, out=jnp.float32)
    label = y - index(at, "tp") * w.shape[0]
    mine = (label >= 0) & (label < w.shape[0])
    top = largest(logits.max(-1), at, "tp")
    shifted = logits - top[:, None]
    e = jnp.exp(shifted)
    hit = jnp.take_along_axis(shifted, jnp.where(mine, label, 0)[:, None], 1)[:, 0]
    both = total(jnp.stack([e.sum(-1), jnp.where(mine, hit, 0.0)]), at, "tp")
    return jnp.log(both[0]) - both[1], e, both[0], jnp.where(mine, label, -1)


def _like(w: Any, h: Any) -> Any:
    """Return w in the type of h."""
    if w.dtype == jnp.float32 and h.dtype == jnp.bfloat16 and products.usable():
        return halved(w)
    return w.astype(h.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(h: Any, w: Any, y: Any, count: Any, at: Layout) -> Any:
    w = _like(w, h)

    def body(sum_: Any, part: Any) -> Any:
        rows, targets = part
        loss = _block(rows, w, targets, at)[0]
        return sum_ + jnp.where(targets >= 0, loss, 0.0).sum(), None

    return lax.scan(body, jnp.float32(0), _parts(h, y, w))[0] / count


def _parts(h: Any, y: Any, w: Any) -> tuple[Any, Any]:
    n, D = h.shape
    rows = _rows(n, w.shape[0])
    return h.reshape(n // rows, rows, D), y.reshape(n // rows, rows)


def _forward(h: Any, w: Any, y: Any, count: Any, at: Layout) -> Any:
    columns, kind = jnp.arange(w.shape[0], dtype=jnp.int32)[None], w.dtype
    w = _like(w, h)

    def body(carry: Any, part: Any) -> Any:
        sum_, dw = carry
        rows, targets = part
        weight = jnp.where(targets >= 0, 1.0 / count, 0.0)
        if at.tp == 1 and products.usable():
            loss, g = judged(matmul(rows, w, tb=True, out=jnp.float32), targets, weight, h.dtype)
            dw = added(dw, g, rows, ta=True)
            return (sum_ + jnp.where(targets >= 0, loss, 0.0).sum(), dw), matmul(g, w)
        loss, e, s, label = _block(rows, w, targets, at)
        weight = weight[:, None]
        g = (e * (weight / s[:, None]) - jnp.where(columns == label[:, None], weight, 0.0)).astype(h.dtype)
        dw = added(dw, g, rows, ta=True)
        return (sum_ + jnp.where(targets >= 0, loss, 0.0).sum(), dw), matmul(g, w)

    (sum_, dw), dh = lax.scan(body, (jnp.float32(0), jnp.zeros(w.shape, jnp.float32)), _parts(h, y, w))
    return sum_ / count, (dh.reshape(h.shape), dw.astype(kind))


def _backward(at: Layout, gradients: Any, g: Any) -> Any:
    dh, dw = gradients
    return dh * g.astype(dh.dtype), dw * g.astype(dw.dtype), None, None


_cross_entropy.defvjp(_forward, _backward)
