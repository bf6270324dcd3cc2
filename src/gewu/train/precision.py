"""In which types a model computes and is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp


@dataclass(frozen=True)
class Precision:
    """The types of products and moments."""

    name: str = "fp32"

    @classmethod
    def of(cls, name: str) -> Precision:
        """Return the precision of a name."""
        return cls(name)

    @property
    def compute(self) -> Any:
        """The type of the operands of products."""
        return jnp.float32 if self.name == "fp32" else jnp.bfloat16

    def scale(self) -> dict[str, Any]:
        """Return the initial state of the loss scale."""
        return {}

    def factor(self, scale: dict[str, Any]) -> Any:
        """Return by what the loss is multiplied."""
        return 1.0

    def next_scale(self, scale: dict[str, Any], finite: Any) -> dict[str, Any]:
        """Return the loss scale of the next step."""
        return scale
