"""Steps of training a small GPT on this machine's processors: gewu against torch, the faster of eager and compiled.

Every engine has a process of its own with two threads, the same weights, text, AdamW (torch's fused one) and attention (torch's
fused one). Engines take turns: a few steps each, after the steps that compile. `accuracy` has the largest difference of the first
losses, the peak memory of each process in MB, and tokens per second. In float32 the losses must agree to 1e-4.

gpt-h200 runs where there is an NVIDIA GPU, with a JAX for it here and a torch for it in the peer's environment: bfloat16 against
torch.compile, and `mfu`, the share of the 989 Tflop/s of an H200; `peak_mb` is then memory of the host.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.run import compare, versions
from bench.train import gpt, peers, plan

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(__file__).resolve().parent / "work"
CASES = {"gpt-fp32": ("17m", "fp32"), "gpt-bf16": ("17m", "bf16"), "gpt34-fp32": ("34m", "fp32"), "gpt34-bf16": ("34m", "bf16")}
GPU, GPU_PEAK = {"gpt-h200": ("124m", "bf16")}, 989e12
ENGINES = ("gewu", "torch-eager", "torch-compile")
CHECKED, TURN = 20, 2
ALLOWED = {"fp32": 1e-4, "bf16": 0.05}


class Process:
    """A worker; it is asked and answers in turn."""

    def __init__(self, engine: str, python: Path, size: str, precision: str, on_gpu: bool) -> None:
        command = [str(python), "-W", "ignore", "-m", "bench.train.worker", engine, size, precision]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        env = {**os.environ, "OMP_NUM_THREADS": "2"} | ({} if on_gpu else {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""})
        self.engine = engine
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, text=True, start_new_session=True, **pipes)

    def train(self, steps: int) -> dict[str, Any]:
        """Return losses and times of the next steps.

        Raises:
            RuntimeError: the worker died.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"steps": steps}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.engine} ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End the worker and whatever it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all cases (or those whose name begins with one asked for); steps are skipped without the peer's environment."""
    wanted = [
        name for name in (*CASES, *GPU, "plan-1t") if not options.case or any(name.startswith(case) for case in options.case)
    ]
    made = [plan.entry(plan.study())] if "plan-1t" in wanted else []
    folder = next((f for f in (Path(options.peers), WORK / "peers") if peers.find(f.resolve(), "torch")), WORK / "peers")
    python = peers.find(folder.resolve(), "torch")
    if python is None:
        print(f"train: torch skipped, not in {folder} (python -m bench.train.peers FOLDER)", file=sys.stderr)
        return made
    cases = dict(CASES)
    if shutil.which("nvidia-smi"):
        cases |= GPU
    elif "gpt-h200" in wanted:
        print("train: gpt-h200 skipped, no NVIDIA GPU here", file=sys.stderr)
    return [_measure(name, *cases[name], python, max(options.repeats, 5)) for name in wanted if name in cases] + made


def _measure(name: str, size: str, precision: str, python: Path, repeats: int) -> dict[str, Any]:
    """Train with every engine in turn and return the record of gewu against torch's faster way."""
    engines = ("gewu", "torch-compile") if name in GPU else ENGINES
    own = Path(sys.executable)
    workers = {engine: Process(engine, own if engine == "gewu" else python, size, precision, name in GPU) for engine in engines}
    try:
        first = {engine: worker.train(CHECKED) for engine, worker in workers.items()}
        times: dict[str, list[float]] = {engine: [] for engine in engines}
        for _ in range(repeats):
            for engine, worker in workers.items():
                last = worker.train(TURN)
                times[engine].append(statistics.mean(last["times"]))
                first[engine]["peak_mb"] = last["peak_mb"]
    finally:
        for worker in workers.values():
            worker.stop()
    away = {
        engine: max(abs(a - b) for a, b in zip(first["gewu"]["losses"], first[engine]["losses"], strict=True))
        for engine in engines[1:]
    }
    if max(away.values()) > ALLOWED[precision]:
        raise RuntimeError(f"{name}: the losses of the first {CHECKED} steps differ by {away}")
    best = min(engines[1:], key=lambda engine: statistics.median(times[engine]))
    tokens = gpt.SIZES[size].rows * gpt.SIZES[size].length
    medians = {engine: round(statistics.median(values), 4) for engine, values in times.items()}
    accuracy = {
        "loss_away": {engine: float(f"{value:.2g}") for engine, value in away.items()},
        "loss": [round(first["gewu"]["losses"][at], 4) for at in (0, -1)],
        "step_s": medians,
        "tokens_per_s": {engine: round(tokens / value) for engine, value in medians.items()},
        "peak_mb": {engine: round(first[engine]["peak_mb"]) for engine in engines},
    }
    if name in GPU:
        accuracy["mfu"] = {engine: round(gpt.flops(gpt.SIZES[size]) / value / GPU_PEAK, 3) for engine, value in medians.items()}
    made = compare(times["gewu"], times[best])
    print(f"{name}: {made['ratio']} over {best} {json.dumps(accuracy)}", file=sys.stderr, flush=True)
    found = {**versions("gewu"), **first["gewu"]["versions"], **first[best]["versions"]}
    peer = "torch-compile" if name in GPU else "torch-best"
    return {"case": name, "peer": peer, **made, "best": best, "accuracy": accuracy, "versions": found}
