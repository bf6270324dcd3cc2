"""What each layout sends stands in a table: a collective that is added, or sends more, fails here.

Counted by `walk` in the trace of a whole step (8 rows of 32 tokens, float32, AdamW), in bytes that a device sends and calls.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from gewu.train import walk
from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout
from gewu.train.optim import Optimiser
from gewu.train.precision import Precision
from gewu.train.spec import count, flat, specs
from gewu.train.step import Trainer

SMALL = {"vocab": 64, "width": 32, "layers": 4, "length": 32}
DENSE = ModelConfig(**SMALL, heads=8, kv_heads=4, hidden=64)
MODELS = {"dense": DENSE, "experts": ModelConfig(**SMALL, kv_heads=2, experts=4, expert_hidden=16, shared_hidden=16)}
ROWS, LENGTH = 8, 32
STREAM = ROWS * LENGTH * DENSE.width * 4
"""Bytes of the tokens between two layers, of all rows."""
FILE = Path(__file__).with_name("volume.json")
"""{"MODEL LAYOUT": {"KIND AXES": [bytes, calls]}}"""
TABLE = json.loads(FILE.read_text()) if FILE.exists() else {}
SCALARS = 64.0
"""Bytes of a metric or two, which may come and go."""


@cache
def sent(model: str, layout: str) -> dict[str, tuple[float, float]]:
    at = Layout.of(f"{layout} scan")
    trainer = Trainer(MODELS[model], at, Optimiser(), Precision(), at.abstract())
    program = trainer.program(("targets", "tokens")).trace(trainer.abstract(), trainer.abstract_batch(ROWS, LENGTH))
    found = walk.cost(program.jaxpr).collectives
    return {f"{kind} {'+'.join(axes)}": (traffic.bytes, traffic.calls) for (kind, axes, _), traffic in sorted(found.items())}


@pytest.mark.parametrize("key", TABLE)
def test_a_layout_sends_no_more_than_its_table_says(key: str) -> None:
    found, allowed = sent(*key.split(" ", 1)), TABLE[key]
    assert found.keys() == allowed.keys(), f"{key}: other collectives than in volume.json: {found}"
    for name, (size, calls) in found.items():
        most, often = allowed[name]
        assert size <= most + SCALARS, f"{key}, {name}: {size:.0f} bytes, {most:.0f} in volume.json"
        assert calls <= often, f"{key}, {name}: {calls:.0f} calls, {often:.0f} in volume.json"
        assert size >= 0.98 * most - SCALARS, (
            f"{key}, {name}: {size:.0f} bytes: less than {most:.0f}, write it down so that it stays"
        )


def ring(devices: int) -> float:
    """Return what a device sends of each byte that is gathered or reduced and scattered over a ring."""
    return (devices - 1) / devices


def test_one_device_sends_nothing() -> None:
    assert sent("dense", "") == {}


def test_replicas_sum_each_gradient_once() -> None:
    assert sent("dense", "dp=8")["all-reduce dp"][0] == pytest.approx(2 * ring(8) * 4 * count(specs(DENSE)), abs=SCALARS)


def test_pieces_are_gathered_twice_in_layers_and_once_outside() -> None:
    """Forward and backward; gradients are reduced and scattered once. What is not in pieces is summed."""
    pieces = {name: 4 * param.size for name, param in flat(specs(DENSE)).items() if param.fsdp >= 0}
    layers = sum(size for name, size in pieces.items() if name.startswith("layers/"))
    found = sent("dense", "fsdp=8")
    assert found["all-gather fsdp"][0] == ring(8) * (sum(pieces.values()) + layers)
    assert found["reduce-scatter fsdp"][0] == ring(8) * sum(pieces.values())
    small = 4 * count(specs(DENSE)) - sum(pieces.values())
    assert found["all-reduce fsdp"][0] == pytest.approx(2 * ring(8) * small, abs=SCALARS)


def test_tensor_parallel_layers_sum_the_stream_four_times() -> None:
    """Twice a layer forward and backward (arXiv:1909.08053), once for the embedding and once for the gradient of the head."""
    times = 4 * DENSE.layers + 2
    loss = 2 * ring(4) * 3 * 4 * ROWS * LENGTH  # maximum, sum and target of each token's logits
    assert sent("dense", "tp=4")["all-reduce tp"][0] == pytest.approx(times * 2 * ring(4) * STREAM + loss, abs=SCALARS)
    dealt = sent("dense", "tp=4 sp")  # a sum is a reduce-scatter and a gather: as much is sent (arXiv:2205.05198)
    assert dealt["all-gather tp"][0] == dealt["reduce-scatter tp"][0] == times * ring(4) * STREAM


def test_stages_send_each_micro_batch_on_once_and_back_once() -> None:
    at = Layout.of("pp=4 micro=4")
    found = sent("dense", str(at))["permute pp"]
    useful = 2 * at.micro * STREAM / at.micro
    assert useful <= found[0] <= 2 * (at.micro + at.pp) / at.micro * useful  # idle ticks send what nobody reads
