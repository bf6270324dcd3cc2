"""Plan a trillion parameters and try the projector on published runs: `python -m bench.train.plan` writes bench/train/plan.json.

The step is the one that trains, traced at full size and compiled for 2048 virtual devices in a process of its own; time and
memory of the host are those of that process. It is compiled once more for 4096 and 8192, more than XLA numbers in a process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from bench.run import ROOT, commit, machine, versions
from gewu.train import machines, plan, project
from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout
from gewu.train.optim import Optimiser
from gewu.train.precision import Precision

MODEL = ModelConfig(
    vocab=163840,
    width=7168,
    layers=60,
    heads=56,
    length=4096,
    experts=384,
    top_k=8,
    expert_hidden=2048,
    shared_hidden=2048,
    router="sigmoid",
    tied=False,
)
DENSE = ModelConfig(
    vocab=51200, width=12288, layers=96, heads=96, length=2048, norm="layer", activation="gelu", positions="learned"
)
SIZES = {"h200": (128, 512, 2048, 8192, 32768, 131072), "cpu": (8, 32, 128, 512, 2048, 8192, 32768, 131072)}
LAYOUT, ROWS, LENGTH = "dp=4 fsdp=16 ep=32 remat=layer", 4096, 4096
BARS = {"seconds": 60.0, "rss": 2e9}


def study() -> dict[str, Any]:
    """Return the study of the plan; projected for processors too."""
    at, precision, optimiser = Layout.of(LAYOUT), Precision.of("bf16"), Optimiser()
    at, rows = Layout.of(LAYOUT), ROWS
    begin = time.perf_counter()
    found = plan.study(MODEL, at, rows, LENGTH, precision, optimiser, machines.machine("h200"), compile_devices=plan.PROCESS)
    seconds = time.perf_counter() - begin
    values = asdict(found) | {"traced": {"flops": found.traced.flops, "collectives": plan.listed(found.traced)}}
    cores = {"sunway": plan.projection(MODEL, at, rows, LENGTH, precision, optimiser, machines.machine("sunway"))}
    return values | {"seconds": seconds, "machine": "h200", "cores": cores}


def sweep(name: str, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return projections of a dense model whose layout is chosen anew at each size, one row of a batch for each device."""
    here, found = machines.machine(name), []
    for devices in sizes:
        best = plan.choose(DENSE, devices, here, devices, DENSE.length)[0]
        seconds = [best.time.low, best.time.middle, best.time.high]
        first = found[0]["seconds"] if found else seconds
        efficiency = sorted(f / s for f, s in zip(first, seconds, strict=True))
        mfu = [best.mfu * best.time.middle / s for s in reversed(seconds)]
        row = {"devices": devices, "cores": devices * here.cores, "layout": str(best.layout), "seconds": seconds}
        found.append(row | {"mfu": mfu, "efficiency": efficiency})
    return found


def larger(devices: int) -> dict[str, Any]:
    """Return what compiling for more replicas takes."""
    at = Layout.of(LAYOUT)
    wide = replace(at, dp=at.dp * devices // at.devices)
    found = plan.compile_apart(MODEL, wide, ROWS * wide.dp // at.dp, LENGTH, Precision.of("bf16"), Optimiser(), devices)
    return {key: found[key] for key in ("devices", "layout", "seconds", "rss", "flops")}


def trials() -> dict[str, Any]:
    """Return how far the projector is from published runs, and the range of what products reach."""
    cases = plan.published()
    blind, scaling = project.blind(cases, "megatron-2021"), project.scaling(cases)
    gemm = sorted(case.gemm(sum(project.OVERLAP) / 2) for case in cases)
    return {
        "blind": {name: asdict(trial) for name, trial in blind.items()},
        "scaling": {name: asdict(trial) for name, trial in scaling.items()},
        "gemm": [gemm[0], gemm[-1]],
        "runs": [[c.run.series, c.run.layout, c.run.mfu, c.mfu(sum(project.GEMM) / 2, sum(project.OVERLAP) / 2)] for c in cases],
    }


def entry(found: dict[str, Any]) -> dict[str, Any]:
    """Return the entry `plan-1t` of bench/train/latest.json; the ratio is against the bar of 60 s."""
    compiled = found["compiled"]
    accuracy = {
        "parameters": found["parameters"],
        "devices": compiled["devices"],
        "rss": compiled["rss"],
        "state": found["state"],
        "flops_of_trace": found["traced"]["flops"],
        "flops_compiled": compiled["flops"],
    }
    return {
        "case": "plan-1t",
        "peer": f"bar of {BARS['seconds']:.0f} s",
        "ratio": round(BARS["seconds"] / compiled["seconds"], 3),
        "ours": round(compiled["seconds"], 1),
        "theirs": BARS["seconds"],
        "unit": "s",
        "accuracy": accuracy,
        "repeats": 1,
        "spread": 0.0,
        "versions": versions("jax", "jaxlib", "numpy"),
    }


def main() -> int:
    """Write the record."""
    found = study()
    record = {"machine": machine(), "commit": commit(), "plan": found, "trials": trials(), "entry": entry(found)}
    record["sweep"] = {name: sweep(name, sizes) for name, sizes in SIZES.items()}
    record["larger"] = [larger(devices) for devices in (4096, 8192)]
    print(json.dumps({key: record[key] for key in ("entry", "larger")}, indent=1))
    (ROOT / "bench" / "train" / "plan.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
