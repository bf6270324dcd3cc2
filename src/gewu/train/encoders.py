"""From pictures, series and tables to tokens: one stream of width D that stands before the text.

    patches   cut into squares of patch × patch pixels, each flattened (row, column, channel) and mapped linearly (ViT,
              arXiv:2010.11929):   token = x W + b + position
    series    the same with `patch` time steps of all channels (PatchTST, arXiv:2211.14730)
    table     each column is a token: its value times a direction of its own (FT-Transformer, arXiv:2106.11959):
              token = x w_c + b + position_c

NaN stands for a missing value. In a table its token is position_c alone: b, which all columns share, says that a value is there.
In pictures and series it counts as 0, the mean after standardisation. Encoders are a thousandth of a step's work, so every device
of a row computes all of its tokens; what holds the stream takes the part that it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from gewu.core.errors import InputError
from gewu.train.config import Input, ModelConfig

if TYPE_CHECKING:
    from gewu.train.precision import Precision


def patches(x: Any, item: Input) -> Any:
    """Cut pictures or series into patches.

    Args:
        x: (b, height, width, channels) or (b, time, channels).
        item: what it is; `patch` divides height and width, or time.

    Returns:
        (b, tokens, numbers of a patch), left to right, then top to bottom.

    Raises:
        InputError: a shape other than that of the model, or one that patches do not fill.
    """
    axes = 2 if item.kind == "patches" else 1
    sides = item.shape[:axes]
    if x.shape[1:] != item.shape or any(side % item.patch for side in sides):
        allowed = f"{item.shape}, and sides that are multiples of patch = {item.patch}"
        raise InputError("does not fit the model", key=item.name, value=x.shape[1:], allowed=allowed)
    split: list[int] = []
    for side in sides:
        split += [side // item.patch, item.patch]
    x = x.reshape(x.shape[0], *split, item.shape[-1])
    x = x.transpose(0, 1, 3, 2, 4, 5) if axes == 2 else x
    return x.reshape(x.shape[0], item.tokens, -1)


def encode(weights: dict[str, Any], batch: dict[str, Any], config: ModelConfig, precision: Precision) -> Any:
    """Return the tokens of all inputs of a batch, one input behind the other.

    Args:
        weights: for each input `weight`, `bias` and `position` (see `spec`), whole.
        batch: each input under its name, float32, NaN where missing.
        config: the model.
        precision: type of operands and of the result.

    Returns:
        (b, config.prefix, D).

    Raises:
        InputError: an input is absent or has another shape.
    """
    tokens = []
    for item in config.inputs:
        if item.name not in batch:
            raise InputError("the batch lacks an input of the model", key=item.name, allowed=", ".join(sorted(batch)))
        x, w = jnp.asarray(batch[item.name], jnp.float32), weights[item.name]
        missing = jnp.isnan(x)
        x = jnp.where(missing, 0.0, x)
        if item.kind == "table":
            if x.shape[1:] != item.shape:
                raise InputError("does not fit the model", key=item.name, value=x.shape[1:], allowed=str(item.shape))
            found = x[..., None] * w["weight"] + jnp.where(missing[..., None], 0.0, w["bias"])
        else:
            operands = patches(x, item).astype(precision.compute), w["weight"].astype(precision.compute)
            found = jnp.matmul(*operands, preferred_element_type=jnp.float32) + w["bias"]
        tokens.append((found + w["position"]).astype(precision.compute))
    return jnp.concatenate(tokens, axis=1)
