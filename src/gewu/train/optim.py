"""Optimisers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gewu.train.mesh import Layout, total
from gewu.train.spec import flat, tree_map


def global_norm(grads: Any, specs: Any, at: Layout) -> Any:
    """Return the norm over all gradients of all devices."""
    square = jnp.float32(0)
    leaves = flat(grads)
    for name, param in flat(specs).items():
        cuts = [axis for cut in param.partition(at) for axis in ((cut,) if isinstance(cut, str) else cut or ())]
        square = square + total((leaves[name].astype(jnp.float32) ** 2).sum(), at, *cuts)
    return jnp.sqrt(square)


@dataclass(frozen=True)
class Optimiser:
    """AdamW."""

    learning_rate: float = 3e-4
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1

    def state(self, specs: Any) -> Any:
        """Return the Params of the moments."""
        return {"m": specs, "v": specs}

    def update(self, grads: Any, opt: Any, params: Any, step: Any, specs: Any, at: Layout, norm: Any = None) -> Any:
        """Return new parameters, moments and {"lr"}."""
        t, lr = step + 1, jnp.float32(self.learning_rate)
        m = jax.tree.map(lambda m, g: self.b1 * m + (1 - self.b1) * g, opt["m"], grads)
        v = jax.tree.map(lambda v, g: self.b2 * v + (1 - self.b2) * g * g, opt["v"], grads)

        def new(param: Any, p: Any, m: Any, v: Any) -> Any:
            decay = lr * self.weight_decay if param.decay else 0.0
            return p * (1 - decay) - lr * (m / (1 - self.b1**t)) / (jnp.sqrt(v / (1 - self.b2**t)) + self.eps)

        return tree_map(new, specs, params, m, v), {"m": m, "v": v}, {"lr": lr}
