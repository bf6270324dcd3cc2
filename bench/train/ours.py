"""The benchmark's model trained by gewu."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.train import gpt
from gewu.train import memory
from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout
from gewu.train.optim import Optimiser
from gewu.train.precision import Precision
from gewu.train.spec import flat, unflat
from gewu.train.step import Trainer


class Engine:
    """A trainer with the benchmark's weights."""

    def __init__(self, size: gpt.Size, precision: str, engine: str) -> None:
        memory.keep()
        config = ModelConfig(
            **{"vocab": size.vocab, "width": size.width, "layers": size.layers, "heads": size.heads, "length": size.length},
            **{"norm": "layer", "activation": "gelu", "positions": "learned", "bias": True, "eps": gpt.NORM_EPS},
        )
        optimiser = Optimiser(learning_rate=gpt.RATE, b1=gpt.B1, b2=gpt.B2, eps=gpt.EPS, weight_decay=gpt.DECAY, clip=0)
        self.trainer = Trainer(config, Layout(), optimiser, Precision.of(precision))
        state, given = self.trainer.init(0), gpt.weights(size)
        leaves = {}
        for name in flat(self.trainer.specs):
            _, *rest = name.split("/")
            found = given[f"layers/{rest[1]}"][int(rest[0])] if len(rest) == 2 else given[name]
            leaves[name] = jnp.asarray(found)
        self.state = state._replace(params=unflat(leaves))

    def step(self, tokens: Any) -> float:
        """Train one step on tokens (rows, length + 1) and return the loss before it."""
        batch = self.trainer.prepare({"tokens": tokens[:, :-1], "targets": tokens[:, 1:]})
        self.state, metrics = self.trainer.step(self.state, batch)
        jax.block_until_ready(self.state)
        return float(metrics["loss"])

    def versions(self) -> dict[str, str]:
        """Return what computes."""
        return {"jax": jax.__version__, "numpy": np.__version__}
