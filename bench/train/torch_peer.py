"""The benchmark's model trained by torch: eager or compiled, with its fused attention, fused AdamW and autocast to bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bench.train import gpt


class Block(nn.Module):
    """A layer."""

    def __init__(self, size: gpt.Size) -> None:
        super().__init__()
        D = size.width
        self.heads = size.heads
        self.norm1, self.norm2 = nn.LayerNorm(D, eps=gpt.NORM_EPS), nn.LayerNorm(D, eps=gpt.NORM_EPS)
        self.qkv, self.out, self.up, self.down = nn.Linear(D, 3 * D), nn.Linear(D, D), nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, D = x.shape
        q, k, v = (
            part.view(b, t, self.heads, D // self.heads).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(D, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, D)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(nn.Module):
    """The model with its loss."""

    def __init__(self, size: gpt.Size) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(size.vocab, size.width), nn.Embedding(size.length, size.width)
        self.layers = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width, eps=gpt.NORM_EPS)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.norm(x), self.embed.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


class Engine:
    """The model, its optimiser, and how a step is run."""

    def __init__(self, size: gpt.Size, precision: str, engine: str) -> None:
        torch.set_num_threads(2)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = Gpt(size)
        self.model.load_state_dict(_state(size))
        self.model.to(self.device)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": gpt.DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=gpt.RATE, betas=(gpt.B1, gpt.B2), eps=gpt.EPS, fused=True)
        self.half = precision == "bf16"
        self.loss = torch.compile(self.model) if engine == "torch-compile" else self.model

    def step(self, tokens: Any) -> float:
        """Train one step on tokens (rows, length + 1) and return the loss before it."""
        text = torch.from_numpy(tokens.astype(np.int64)).to(self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            loss = self.loss(text[:, :-1], text[:, 1:])
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    def versions(self) -> dict[str, str]:
        """Return what computes."""
        return {"torch": torch.__version__}


def _state(size: gpt.Size) -> dict[str, torch.Tensor]:
    """Return the weights by torch's names; maps are the other way round there, and queries of all heads come first."""
    given, D = gpt.weights(size), size.width
    found = {f"{name}.weight": given[name] for name in ("embed", "positions", "norm")} | {"norm.bias": given["norm_bias"]}
    for layer in range(size.layers):
        for name in ("norm1", "norm2", "qkv", "out", "up", "down"):
            weight, bias = given[f"layers/{name}"][layer], given[f"layers/{name}_bias"][layer]
            if name == "qkv":
                weight, bias = np.moveaxis(weight, 2, 1), np.moveaxis(bias, 1, 0)
            if not name.startswith("norm"):
                weight = weight.reshape(4 * D if name == "down" else D, -1).T
            found[f"layers.{layer}.{name}.weight"], found[f"layers.{layer}.{name}.bias"] = weight, bias.reshape(-1)
    return {name: torch.from_numpy(np.array(array, np.float32)) for name, array in found.items()}
