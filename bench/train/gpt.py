"""The model, weights and text that every engine trains: a GPT-2 of two sizes, the same numbers for all.

Text is a walk through the vocabulary that a model can learn something about: the next token depends on this one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATE, B1, B2, EPS, DECAY, NORM_EPS = 3e-4, 0.9, 0.95, 1e-8, 0.1, 1e-5


@dataclass(frozen=True)
class Size:
    """A model and a batch: text of `rows` rows of `length` tokens."""

    width: int
    layers: int
    heads: int
    vocab: int = 16384
    length: int = 256
    rows: int = 8


SIZES = {"17m": Size(384, 6, 6), "34m": Size(512, 8, 8), "124m": Size(768, 12, 12, 50304, 1024, 16)}


def flops(size: Size) -> float:
    """Return what a step needs: 6 operations for each weight of a product and token, and those of causal attention."""
    weights = 12 * size.layers * size.width**2 + size.vocab * size.width
    return 6.0 * size.rows * size.length * (weights + size.layers * size.width * size.length)


def weights(size: Size) -> dict[str, NDArray[np.float32]]:
    """Return float32 weights by gewu's names: maps from the left side of a product to the right, a stack over layers."""
    random = np.random.default_rng(7)
    L, D, H = size.layers, size.width, size.heads
    shapes = {
        "embed": (size.vocab, D),
        "positions": (size.length, D),
        "layers/qkv": (L, D, H, 3, D // H),
        "layers/out": (L, H, D // H, D),
        "layers/up": (L, D, 1, 4 * D),
        "layers/down": (L, 4 * D, D),
    }
    made = {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, shape in {"layers/norm1": (L, D), "layers/norm2": (L, D), "norm": (D,)}.items():
        made[name], made[f"{name}_bias"] = np.ones(shape, np.float32), np.zeros(shape, np.float32)
    for name, inner in {"qkv": (H, 3, D // H), "out": (D,), "up": (1, 4 * D), "down": (D,)}.items():
        made[f"layers/{name}_bias"] = np.zeros((L, *inner), np.float32)
    return made


def batch(size: Size, number: int) -> NDArray[np.int32]:
    """Return tokens (rows, length + 1) of one step."""
    random = np.random.default_rng([11, number])
    steps = random.choice([1, 7, 31], (size.rows, size.length + 1), p=[0.8, 0.15, 0.05])
    start = random.integers(0, size.vocab, (size.rows, 1))
    return ((start + np.cumsum(steps, 1)) % size.vocab).astype(np.int32)
