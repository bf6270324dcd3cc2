"""Machines, as far as the time of a training step depends on them.

Figures are peaks of the makers; what a program reaches of them is in `project`. Bandwidth of a link is what one device can send
while all others of its unit do the same, so a node with one network card for each of 8 devices counts one card a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from gewu.core.errors import InputError


@dataclass(frozen=True)
class Link:
    """One level of the network.

    Args:
        span: devices that it joins, numbered one after the other; 0 for all there are.
        bandwidth: byte/s that a device sends.
        latency: s of one message.
    """

    span: int
    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Machine:
    """A machine.

    Args:
        name: what it is called.
        flops: peak flop/s of a device in products of 16-bit numbers.
        memory: bytes of a device.
        bandwidth: byte/s of a device's memory.
        links: innermost first; the last one joins all.
        cores: processor cores of a device, where people count these.
        source: of the figures.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    links: tuple[Link, ...]
    cores: int = 1
    source: str = ""

    @property
    def node(self) -> int:
        """Devices joined by the innermost link."""
        return self.links[0].span or 1


MACHINES: Final = {
    m.name: m
    for m in (
        Machine(
            "a100",
            312e12,
            80e9,
            2.0e12,
            (Link(8, 300e9, 4e-6), Link(0, 25e9, 10e-6)),
            source="NVIDIA A100 data sheet; DGX A100 with 8 HDR cards (arXiv:2104.04473, section 5)",
        ),
        Machine(
            "h100",
            989e12,
            80e9,
            3.35e12,
            (Link(8, 450e9, 4e-6), Link(0, 50e9, 10e-6)),
            source="NVIDIA H100 SXM data sheet; DGX H100 with 8 NDR cards",
        ),
        Machine(
            "h200",
            989e12,
            141e9,
            4.8e12,
            (Link(8, 450e9, 4e-6), Link(0, 50e9, 10e-6)),
            source="NVIDIA H200 data sheet; 8 NDR cards a node",
        ),
        Machine(
            "tpu-v4",
            275e12,
            32e9,
            1.2e12,
            (Link(3072, 150e9, 2e-6), Link(0, 1.6e9, 20e-6)),
            source="Jouppi et al., arXiv:2304.01433; between pods 2 x 25.6 Tbit/s of arXiv:2204.02311, section 4",
        ),
        Machine(
            "tpu-v5e",
            197e12,
            16e9,
            819e9,
            (Link(256, 200e9, 2e-6), Link(0, 3.1e9, 20e-6)),
            source="docs.cloud.google.com/tpu/docs/v5e: 400 GB/s both ways, 6.4 Tbit/s for the 256 of a pod",
        ),
        Machine(
            "tpu-v5p",
            459e12,
            95e9,
            2.765e12,
            (Link(8960, 300e9, 2e-6), Link(0, 6.2e9, 20e-6)),
            source="docs.cloud.google.com/tpu/docs/v5p (4800 Gbit/s a chip); 50 Gbit/s a chip between slices",
        ),
        Machine(
            "sunway",
            55.3e12,
            96e9,
            307e9,
            (Link(256, 25e9, 3e-6), Link(0, 7e9, 6e-6)),
            cores=390,
            source="SW26010-Pro, a node: doi 10.1145/3503221.3508417, 10.1145/3581784.3607030; network judged",
        ),
        Machine(
            "cpu",
            8e12,
            512e9,
            600e9,
            (Link(0, 25e9, 2e-6),),
            cores=128,
            source="a node with two 64-core processors with bfloat16 products and one 200 Gbit/s card, judged",
        ),
    )
}


def machine(name: str) -> Machine:
    """Return a machine by name.

    Raises:
        InputError: there is none.
    """
    if name not in MACHINES:
        raise InputError("is no machine that is known", key="machine", value=name, allowed=", ".join(MACHINES))
    return MACHINES[name]


@dataclass(frozen=True)
class Run:
    """A published training run.

    Args:
        series: rows with the same model and machine; the smallest comes first.
        machine: by name.
        model: sizes of a `ModelConfig`.
        layout: as `Layout.of` reads it.
        rows, length: of a step.
        mfu: flop/s that the model needs (nothing computed twice) / peak.
        slice: devices of one innermost unit, where it is cut smaller than the machine's; 0 else.
    """

    series: str
    machine: str
    model: dict[str, Any]
    layout: str
    rows: int
    length: int
    mfu: float
    slice: int = 0


def _megatron() -> list[Run]:
    """Narayanan et al., arXiv:2104.04473, table 1; its flop/s count recomputation, of 4 passes 3 are the model's."""
    table = (
        (24, 2304, 24, 1, 1, 32, 512, 137),
        (32, 3072, 30, 2, 1, 64, 512, 138),
        (32, 4096, 36, 4, 1, 128, 512, 142),
        (48, 6144, 40, 8, 1, 256, 1024, 135),
        (64, 8192, 48, 8, 2, 512, 1536, 138),
        (80, 10240, 60, 8, 4, 1024, 1792, 140),
        (96, 12288, 80, 8, 8, 1536, 2304, 148),
        (128, 16384, 96, 8, 16, 1920, 2160, 155),
        (128, 20480, 105, 8, 35, 2520, 2520, 163),
        (160, 25600, 128, 8, 64, 3072, 3072, 163),
    )
    runs = []
    for heads, width, layers, tp, pp, devices, rows, tera in table:
        model = _gpt(width, layers, heads, 51200, 2048)
        dp = devices // (tp * pp)
        micro = max(pp, rows // dp // (8 if tp * pp == 1 else 2 if pp == 1 else 1))  # size of a micro batch is not in the table
        layout = f"tp={tp} pp={pp} dp={dp} micro={micro}" + (" remat=layer" if pp == 1 else "")  # a pipeline does so anyway
        runs.append(Run("megatron-2021", "a100", model, layout, rows, 2048, tera * 1e12 * 0.75 / 312e12))
    return runs


def _gpt(width: int, layers: int, heads: int, vocab: int, length: int) -> dict[str, Any]:
    return {
        "vocab": vocab,
        "width": width,
        "layers": layers,
        "heads": heads,
        "length": length,
        "norm": "layer",
        "activation": "gelu",
        "positions": "learned",
    }


def _h100() -> list[Run]:
    """README of NVIDIA/Megatron-LM (v0.7): 177 B, strong scaling, MFU from 47 to 42 %; 43.8 % at 2304 read from its picture."""
    model = _gpt(12288, 96, 96, 131072, 4096)
    table = ((96, 0.47), (2304, 0.438), (4608, 0.42))
    layout = "tp=8 pp=6 dp={} micro={} interleave=16 sp"
    return [Run("megatron-h100", "h100", model, layout.format(n // 48, 1152 * 48 // n), 1152, 4096, mfu) for n, mfu in table]


def _maxtext(scale: int) -> dict[str, Any]:
    """MaxText's models of `global_parameter_scale`: base 2048 x 16 layers, 16 heads of 256, MLP 7168, doubled in turn."""
    third, rest = divmod(scale.bit_length() - 1, 3)
    more = 2 ** (third + (rest > 0))
    width = 2048 * 2 ** (third + (rest > 1))
    sizes = {"heads": 16 * more, "hidden": 7168 * more, "layers": 16 * 2**third}
    return {"vocab": 32768, "width": width, "head_width": 256, "length": 2048, "tied": False} | sizes


def _tpu() -> list[Run]:
    """MaxText/configs/v5e/README.md and v5p/README.md, layouts of the scripts beside them (AI-Hypercomputer/maxtext, 2024)."""
    v5e = {
        16: (6, "fsdp=256 remat=layer", (0.6110, 0.5937, 0.5914, 0.5827, 0.5656, 0.5465)),
        32: (4, "fsdp=256 remat=layer", (0.6686, 0.6481, 0.6410, 0.6367, 0.6226, 0.6040)),
        64: (2, "fsdp=256 remat=layer", (0.5990, 0.5666, 0.5585, 0.5496, 0.5329, 0.5018)),
        128: (1, "fsdp=16 tp=16", (0.5606, 0.5582, 0.5493, 0.5293, 0.5086, 0.4625)),
    }
    runs = []
    for scale, (each, layout, row) in v5e.items():
        for number, mfu in enumerate(row):
            text = f"dp={2**number} {layout}"
            runs.append(Run(f"maxtext-v5e-{scale}b", "tpu-v5e", _maxtext(scale), text, each * 256 * 2**number, 2048, mfu))
    v5p = ((32, 64, 4, 7, 0.7147, 0.6943), (128, 128, 8, 1, 0.6868, 0.6634), (256, 512, 8, 1, 0.6709, 0.6299))
    for scale, chips, tp, each, one, two in v5p:
        for slices, mfu in ((1, one), (2, two)):
            text = f"dp={slices} fsdp={chips // tp} tp={tp}"
            runs.append(Run(f"maxtext-v5p-{scale}b", "tpu-v5p", _maxtext(scale), text, each * chips * slices, 2048, mfu, chips))
    return runs


PUBLISHED: Final = (*_megatron(), *_h100(), *_tpu())
"""Runs whose sizes, layout and speed could be read. PaLM and BaGuaLu are not here: the pages at hand give a total, not a layout
that this program has (PaLM: 46.2 % of 6144 TPU v4; BaGuaLu: above 1 Eflop/s of 96,000 nodes)."""
