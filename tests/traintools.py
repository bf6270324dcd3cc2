"""A small training run in several processes, which tests and benchmarks kill: `python -m tests.traintools ARGUMENTS` (JSON)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROWS, LENGTH, VOCAB = 8, 16, 61


def work(arguments: dict[str, Any], report: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Train; keys: folder, layout, steps, every (steps between checkpoints), hang ([process, step, how])."""
    import jax

    from gewu.core.files import LineLog
    from gewu.data.order import Order
    from gewu.train.checkpoint import Checkpoints
    from gewu.train.config import ModelConfig
    from gewu.train.elastic import fitting
    from gewu.train.mesh import Layout
    from gewu.train.optim import Optimiser
    from gewu.train.precision import Precision
    from gewu.train.record import whole
    from gewu.train.step import Trainer

    folder, number = Path(arguments["folder"]), jax.process_index()
    layout = fitting(Layout.of(arguments["layout"]), jax.device_count(), ROWS)
    config = ModelConfig(vocab=VOCAB, width=16, layers=2, heads=2, length=LENGTH)
    trainer = Trainer(config, layout, Optimiser(learning_rate=1e-2), Precision.of("fp32"))
    store = Checkpoints(folder / "kept")
    begun = store.latest() is not None
    state, extra = store.load(trainer.abstract()) if begun or store._sources() else (trainer.init(1), {"position": 0})
    position, order, losses = extra["position"], Order(arguments["steps"] * ROWS, 7), {}
    log = LineLog(folder / "samples.log") if number == 0 else None
    for step in range(int(state.step), arguments["steps"]):
        rows = [order[position + row] for row in range(ROWS)]
        tokens = np.stack([np.random.default_rng([3, int(row)]).integers(0, VOCAB, LENGTH + 1) for row in rows])
        if arguments.get("hang", [-1])[0] == number and arguments["hang"][1] == step and not (folder / "hung").exists():
            (folder / "hung").touch()
            os.kill(os.getpid(), signal.SIGSTOP) if arguments["hang"][2] == "stopped" else time.sleep(1e6)
        batch = trainer.prepare({"tokens": tokens[:, :-1], "targets": tokens[:, 1:]})
        state, metrics = trainer.step(state, batch)
        losses[step] = float(metrics["loss"])
        position += ROWS
        if log:
            log.write(json.dumps([step, [int(row) for row in rows], losses[step]]))
        report({"step": step})
        if (step + 1) % arguments["every"] == 0:
            store.save(state, {"position": position}, step + 1)
    store.wait()
    store.close()
    flat = [whole(leaf) for leaf in jax.tree.leaves(state)]
    return {"digest": hashlib.sha256(b"".join(leaf.tobytes() for leaf in flat)).hexdigest(), "messages": store.messages}


def history(folder: Path) -> tuple[dict[int, list[int]], dict[int, float]]:
    """Return the samples and the loss of each step; a step that was done again must have seen the same samples."""
    samples: dict[int, list[int]] = {}
    losses: dict[int, float] = {}
    for line in (folder / "samples.log").read_text().splitlines():
        step, rows, loss = json.loads(line)
        assert samples.setdefault(step, rows) == rows, step
        losses[step] = loss
    return samples, losses


def children(parent: int) -> list[int]:
    """Return the processes that train for a supervisor."""
    try:
        found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return [int(pid) for pid in found if b"gewu.train.elastic" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    except OSError:
        return []


class Kills:
    """Kill a process of a supervisor, at random, some time after each new start; `event` is for `elastic.run`."""

    def __init__(self, times: int, seed: int, longest_s: float, whom: Callable[[], list[int]]) -> None:
        self.left, self.whom, self._longest_s, self._random = times, whom, longest_s, random.Random(seed)
        self._armed = False

    def event(self, _: dict[str, Any]) -> None:
        """Arm once for each start."""
        if self.left > 0 and not self._armed:
            self._armed = True
            threading.Timer(self._random.uniform(0, self._longest_s), self._strike).start()

    def _strike(self) -> None:
        pids = self.whom()
        if pids:
            os.kill(self._random.choice(pids), signal.SIGKILL)
            self.left -= 1

    def lost(self, text: str) -> None:
        """Take the warning about a lost process."""
        self._armed = False


def main() -> None:
    """Supervise in this process; a line for each event."""
    from gewu.train import elastic

    arguments = json.loads(sys.argv[1])
    say = lambda table: print(json.dumps(table), flush=True)  # noqa: E731
    found = elastic.run(
        "tests.traintools:work", arguments, arguments["processes"], hang_timeout_s=120.0, event=say,
        warn=lambda text: say({"lost": text}), replaced=1000,
    )  # fmt: skip
    say({"result": found})


if __name__ == "__main__":
    main()
