"""What a job trains on: the samples that it names, and the model that fits them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.data import convert
from gewu.train import samples
from gewu.train.config import ModelConfig

MODEL_KEYS: Final = (
    "width", "layers", "heads", "kv_heads", "head_width", "hidden", "norm", "activation", "positions", "rope_theta", "window",
    "tied", "bias", "qkv_bias", "qk_norm", "experts", "top_k", "expert_hidden", "shared_hidden", "capacity", "balance", "router",
)  # fmt: skip


@dataclass
class Material:
    """What a job trains on: the samples, the model that fits them, and the batches.

    Attributes:
        model: ModelConfig. source: `samples.Texts` or `samples.Rows`.
        kind: "text", "classes" or "series".
        per_epoch: batches of an epoch.
    """

    model: Any
    source: Any
    kind: str
    per_epoch: float

    def stream(self, config: Any, state: Any = None) -> Any:
        """Return the batches, from a state on."""
        if self.kind == "text":
            return samples.TextStream(self.source, config.batch, config.length, config.seed, state)
        return samples.RowStream(self.source, config.batch, config.seed, state)


def tokenizer_of(name: str, texts: list[str]) -> Any:
    """Return what turns texts into tokens: bytes, a file, or one that is learned from the texts."""
    if name == "bytes":
        return samples.Bytes()
    from gewu.formats.tokenizer import Tokenizer

    if name.startswith("train:"):
        return Tokenizer.train(texts, int(name[6:]), special=("<|endoftext|>",))
    return Tokenizer.read(name)


def material(config: Any) -> Material:
    """Read the data of a job.

    Raises:
        InputError: what is there is no text, has no such columns, or leaves a part of the split empty.
    """
    model = partial(model_of, length=config.length, **{key: getattr(config, key) for key in MODEL_KEYS})
    first = config.data[0]
    is_store = convert.format_of(first) == "store" if os.path.exists(first) else False
    if first == "lorenz" or config.series:
        if first == "lorenz":
            series = samples.lorenz(20_000)[:, :1]
        else:
            columns = samples.read_table(first)
            series = np.stack([_column(columns, name, first, "series") for name in config.series], axis=1)
        rows = samples.windows(series, config.context, config.horizon, config.validation, config.patch)
        return _of_rows(model, rows, "series", config)
    if config.label and is_store:
        picture = config.picture or (32, 32)
        rows = samples.store_rows(first, picture, config.label, config.validation, config.seed, config.on_damage, config.patch)
        return _of_rows(model, rows, "classes", config)
    if config.label:
        columns = samples.read_table(first)
        pixels = None
        if config.picture_columns:
            found = [_column(columns, name, first, "picture_columns") for name in config.picture_columns]
            pixels = np.stack(found, axis=1).reshape(-1, *config.picture)
        taken = {config.label, *config.picture_columns}
        table = config.columns or tuple(name for name in columns if name not in taken)
        for name in (config.label, *table):
            _column(columns, name, first, "columns")
        rows = samples.labelled(columns, table, config.label, pixels, config.validation, config.seed, config.patch)
        return _of_rows(model, rows, "classes", config)
    make = partial(tokenizer_of, tokenizer_name(config))
    if is_store:
        source = samples.store_texts(first, config.text, make, config.validation, config.seed, config.on_damage)
    else:
        source = samples.texts(config.data, config.text, make, config.validation, config.seed)
    size = source.tokenizer.vocab_size
    if given := pretrained(config):
        found = given.config.with_(length=max(given.config.length, config.length))
        if size > found.vocab:
            raise InputError(
                "the tokenizer has more tokens than the model", key="tokenizer", value=size, allowed=f"{found.vocab}"
            )
    else:
        found = model(vocab=-(-size // 64) * 64)  # so that every layout divides it
    return Material(found, source, "text", source.tokens / (config.batch * (config.length + 1)))


def tokenizer_name(config: Any) -> str:
    """Return the tokenizer of a job: its own, or that of the model it begins from."""
    own = Path(config.init, "tokenizer.json") if config.init else Path()
    return str(own) if config.init and own.is_file() and config.tokenizer == "bytes" else config.tokenizer


def _column(columns: Any, name: str, path: str, key: str) -> Any:
    if name not in columns:
        raise InputError("there is no such column", file=path, key=key, value=name, allowed=", ".join(columns))
    return columns[name]


def model_of(**values: Any) -> ModelConfig:
    """Return the model of some sizes."""
    return ModelConfig(**values)


def _of_rows(model: Any, rows: Any, kind: str, config: Any) -> Material:
    width = {"classes": len(rows.classes)} if kind == "classes" else {"targets": rows.arrays["value"].shape[1]}
    tokens = sum(item.tokens for item in rows.inputs)
    sizes = model.keywords | {"positions": "none", "length": tokens}  # each token has a place of its own already
    return Material(model_of(**sizes, inputs=rows.inputs, causal=False, **width), rows, kind, len(rows) / config.batch)


def pretrained(config: Any) -> Any:
    """Return the model of the folder `init`, or None where none is named."""
    if not config.init:
        return None
    from gewu.train import hub

    return hub.read(config.init)
