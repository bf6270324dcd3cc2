"""Processes of a training run killed at random, again and again: `python -m bench.train.kills --times 50` writes kills.json.

The run trains on tokens of a text through `gewu run` with checkpoints every few steps. Each round waits for a new checkpoint, a
random moment more, and sends SIGKILL to one process of the run: the supervisor, or one that trains. A supervisor that is gone is
started again, one that is there starts its processes by itself. In the end weights, losses of all steps and the place in the
data must have the bits of a run that nobody disturbed: so no sample was seen twice or left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from gewu.core.files import write_atomic
from gewu.jobs.result import Result

JOB = """[job]
checkpoint_interval_s = 0.0

[train]
data = ["text.jsonl"]
tokenizer = "bytes"
width = 32
layers = 2
heads = 2
length = 64
batch = 8
steps = {steps}
learning_rate = 1e-3
layout = "fsdp={processes}"
processes = {processes}
restarts = {restarts}
peak_tflops = 1.0
evaluate_every = 1000
checkpoint_every = 5
"""


def text(documents: int, words: int) -> bytes:
    """Return JSON lines of so many documents of so many words, the same every time."""
    draw, known = random.Random(7), ["order", "shard", "stage", "seed", "loss", "state", "token", "layer", "of", "the"]
    return "\n".join(json.dumps({"text": " ".join(draw.choices(known, k=words))}) for _ in range(documents)).encode()


class Harness:
    """One job, run undisturbed and disturbed.

    Args:
        folder: to work in.
        processes: of the job.
        seed: of the moments and the victims.
        restarts: of the job.
        steps: to train.
    """

    def __init__(self, folder: Path, processes: int, seed: int, restarts: int = 1000, steps: int = 150) -> None:
        self.folder, self.random = folder, random.Random(seed)
        write_atomic(folder / "text.jsonl", text(300, 40))
        write_atomic(folder / "job.toml", JOB.format(steps=steps, processes=processes, restarts=restarts).encode())

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "gewu", "run", "job.toml", "--out", f"{name}.result", "--json"]
        environment = os.environ | {"XLA_FLAGS": ""}
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _found(self, name: str) -> dict[str, Any]:
        result = Result.load(self.folder / f"{name}.result")
        weights = hashlib.sha256((self.folder / f"{name}.result" / "model.safetensors").read_bytes()).hexdigest()
        curve = hashlib.sha256(np.array(result.arrays["loss"]).tobytes()).hexdigest()
        return {"weights": weights, "curve": curve, "steps": len(result.arrays["step"]), "loss": float(result.arrays["loss"][-1])}

    def undisturbed(self) -> dict[str, Any]:
        """Return hashes of what a run ends with."""
        if self._start("whole").wait(600):
            raise SystemExit("the undisturbed run failed")
        return self._found("whole")

    def disturbed(self, kills: int, children: bool = False) -> dict[str, Any]:
        """Return hashes of what a run ends with after this many kills, or as many as came before its end: see `made`."""
        self.made, store, run = 0, self.folder / "killed.checkpoints", self._start("killed")
        while run.poll() is None or self.made < kills:
            if run.poll() is not None:
                if run.returncode >= 0:  # it came to its end
                    break
                run = self._start("killed")
            if self.made < kills and self._moved(store, run):
                time.sleep(self.random.uniform(0, 0.3))
                if run.poll() is None:
                    os.kill(self._victim(run, children), signal.SIGKILL)
                    self.made += 1
                    run.poll() if children else None
            time.sleep(0.02)
            if run.poll() is not None and run.returncode < 0:
                run = self._start("killed")
        if run.wait(600):
            raise SystemExit("the disturbed run failed")
        return self._found("killed")

    def _moved(self, store: Path, run: subprocess.Popen[bytes]) -> bool:
        """Wait for the next checkpoint; return whether one came while the run was there."""
        before = {path.name for path in store.glob("step-*")}
        for _ in range(6000):
            if run.poll() is not None:
                return False
            if {path.name for path in store.glob("step-*")} - before:
                return True
            time.sleep(0.01)
        return False

    def _victim(self, run: subprocess.Popen[bytes], children: bool) -> int:
        below = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        processes = [int(number) for number in below]
        return self.random.choice(processes if children else [run.pid, *processes])


def main() -> None:
    """Kill, compare and write down."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    made = same = rounds = 0
    while made < options.times:
        with tempfile.TemporaryDirectory() as folder:
            harness = Harness(Path(folder), options.processes, seed=rounds)
            whole = harness.undisturbed()
            same += harness.disturbed(min(10, options.times - made)) == whole
            made, rounds = made + harness.made, rounds + 1
            print(f"{made} kills, {same} of {rounds} runs with the bits of an undisturbed one", flush=True)
    found = {"kills": made, "runs": rounds, "same": same, "processes": options.processes}
    write_atomic(Path(__file__).with_name("kills.json"), json.dumps(found, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
