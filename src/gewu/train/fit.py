"""The loop around the step: batches in, metrics out, checkpoints, validation, and what happens when a loss is not a number.

While a step computes, the next batch is made. The place in the data, the curves and the counts go into each checkpoint beside the
weights, so that a run that was killed goes on as if it had not been: same batches, same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from gewu.core.context import Context
from gewu.core.errors import ConvergenceError
from gewu.ops.product import matmul
from gewu.train.step import State, Trainer

COLUMNS: Final = ("step", "loss", "grad_norm", "learning_rate", "tokens_per_s", "dropped")
MOST_POINTS: Final = 4096
MOST_REWINDS: Final = 3
PATIENCE: Final = 20
"""Steps in a row that a loss scale may skip."""


@dataclass
class Curve:
    """What was seen at each step, at most `MOST_POINTS` points: when they are too many, each two become their mean.

    Attributes:
        rows: values of `COLUMNS`.
        stride: steps of a point.
        open: the point that is being made, sums and how many.
    """

    rows: list[list[float]] = field(default_factory=list)
    stride: int = 1
    open: list[list[float]] = field(default_factory=list)

    def add(self, row: list[float]) -> None:
        """Take the values of one step."""
        self.open.append(row)
        if len(self.open) == self.stride:
            self.rows.append(np.mean(self.open, 0).tolist())
            self.open = []
        if len(self.rows) == MOST_POINTS:
            self.rows = np.array(self.rows).reshape(-1, 2, len(COLUMNS)).mean(1).tolist()
            self.stride *= 2

    def state(self) -> dict[str, Any]:
        """Return it as JSON can hold it; later steps do not change that."""
        return {"rows": list(self.rows), "stride": self.stride, "open": list(self.open)}


@dataclass
class Progress:
    """Where a training run stands, beside its weights.

    Attributes:
        curve: of the steps.
        validation: [step, loss] of each validation.
        tokens: that counted so far.
        skipped: steps without effect: not finite.
        rewinds: how often the run went back to a checkpoint.
        seconds, counted: time of the steps whose time is known (not those that compiled), and their tokens.
        stalled: time for which checkpoints kept the next step waiting.
    """

    curve: Curve = field(default_factory=Curve)
    validation: list[list[float]] = field(default_factory=list)
    tokens: float = 0.0
    skipped: int = 0
    rewinds: int = 0
    seconds: float = 0.0
    counted: float = 0.0
    stalled: float = 0.0

    def state(self) -> dict[str, Any]:
        """Return it as JSON can hold it; later steps do not change that."""
        return vars(self) | {"curve": self.curve.state(), "validation": list(self.validation)}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Progress:
        """Return what `state` made."""
        return cls(**(state | {"curve": Curve(**state["curve"])}))


@dataclass
class Fit:
    """One training run.

    Args:
        trainer: the model on its devices.
        stream: of `samples`; its `state()` is the place in the data.
        steps: to train in all.
        ctx: the door to the world.
        flops: that the model needs for a token of text, or else a sample; peak_flops: a second, of all devices.
        validate: called with parameters, returns the held-out loss; None for never. `every`: so many steps.
        checkpoints: of `checkpoint`, or None. `save_every`: so many steps; 0 only when the run is to stop.
        on_nan: "stop" or "rewind".
        begin: step of the state that `go` gets. rows: samples of a batch without text.
        progress: of the run so far.
    """

    trainer: Trainer
    stream: Any
    steps: int
    ctx: Context
    flops: float = 0.0
    peak_flops: float = 0.0
    validate: Callable[[Any], float] | None = None
    every: int = 0
    checkpoints: Any = None
    save_every: int = 0
    on_nan: str = "stop"
    begin: int = 0
    rows: int = 0
    progress: Progress = field(default_factory=Progress)

    def go(self, state: State) -> tuple[State, bool]:
        """Train from a state to the last step; return the state, and whether the run was stopped before."""
        step, clock, bad = self.begin, time.perf_counter(), 0
        batch = self._next() if step < self.steps else None
        while step < self.steps:
            new, metrics = self.trainer.step(state, batch)
            step, cursor = step + 1, self.stream.state()
            following = self._next() if step < self.steps else None
            seen = {name: float(value) for name, value in metrics.items()}  # waits for the step
            state, now = new, time.perf_counter()
            if not seen["finite"]:
                bad += 1
                self.progress.skipped += 1
                if not self._tolerated(bad):
                    state, step = self._stop_or_rewind(state, batch, step)
                    bad = 0
            else:
                bad = 0
                self._note(step, seen, now - clock if step > self.begin + 1 else 0.0)
            batch, clock = following if step < self.steps and following is not None else batch, time.perf_counter()
            if self.validate and step < self.steps and self.every and step % self.every == 0:
                self.progress.validation.append([step, self.validate(state.params)])
                clock = time.perf_counter()
            stop = self.ctx.stop_requested and step < self.steps
            if self.checkpoints and (stop or (self.save_every and (step % self.save_every == 0 or step == self.steps))):
                extra = {"data": cursor, "progress": self.progress.state()}
                begin = time.perf_counter()
                self.checkpoints.save(state, extra, step)
                self.progress.stalled += time.perf_counter() - begin
                self._tell()
                clock = time.perf_counter()
            if stop:
                self.ctx.checkpoint({"step": step})
                self._finish()
                return state, True
        self._finish()
        return state, False

    def _next(self) -> dict[str, Any]:
        with self.ctx.phase("data"):
            return self.trainer.prepare(next(self.stream))

    def _note(self, step: int, seen: dict[str, float], seconds: float) -> None:
        p = self.progress
        loss = seen.get("loss", seen["total"])
        count = seen["tokens"] or self.rows
        p.tokens += count
        p.counted += count if seconds else 0.0
        p.seconds += seconds
        speed = count / seconds if seconds else 0.0
        p.curve.add([step, loss, seen["grad_norm"], seen["lr"], speed, seen.get("dropped", 0.0)])
        shown = {"loss": loss, "lr": seen["lr"]}
        if speed:
            shown["tokens_per_s" if seen["tokens"] else "samples_per_s"] = speed
            if self.peak_flops:
                shown["mfu"] = speed * self.flops / self.peak_flops
        if p.validation:
            shown["validation"] = p.validation[-1][1]
        self.ctx.progress(step, self.steps, **shown)

    def _tolerated(self, bad: int) -> bool:
        return getattr(self.trainer.precision, "scaling", "none") == "dynamic" and bad <= PATIENCE

    def _stop_or_rewind(self, state: State, batch: Any, step: int) -> tuple[State, int]:
        """Say where the numbers first went wrong; or go back to the last checkpoint, with the data that come next."""
        found = self.trainer.diagnose(state.params, batch)
        layer, name = found["layer"], f" ({found['name']})" if found["name"] else ""
        where = f"layer {layer}{name}" if layer >= 0 else f"{found['where']}{name}"
        if self.on_nan == "rewind" and self.checkpoints and self.progress.rewinds < MOST_REWINDS:
            self._finish()
            if self.checkpoints.latest() is not None:
                rewinds, skipped = self.progress.rewinds + 1, self.progress.skipped
                restored, extra = self.checkpoints.load(self.trainer.abstract())
                self.progress = Progress.of(extra["progress"])
                self.progress.rewinds, self.progress.skipped = rewinds, skipped
                back = int(restored.step)
                text = (
                    f"the loss of step {step} is not finite, first in {where}: back to step {back}, samples between are left out"
                )
                self.ctx.warn(text)
                return restored, back
        hint = 'lower learning_rate, or clip; on_nan = "rewind" goes back to the last checkpoint and past these samples'
        raise ConvergenceError(f"the loss of step {step} is not finite, first in {where}", key="train", value=step, hint=hint)

    def _tell(self) -> None:
        """Pass on what went wrong with checkpoints without ending the run."""
        while self.checkpoints.messages:
            self.ctx.warn(self.checkpoints.messages.pop(0))

    def _finish(self) -> None:
        if self.checkpoints:
            self.checkpoints.wait()
            self._tell()


def measure_peak(dtype: Any, devices: int, seconds: float = 0.3) -> float:
    """Return the flop/s of a product of two large matrices here, the best of those done in some time, times devices.

    Virtual devices of one process share its processor: there a process counts once.
    """
    import jax
    import jax.numpy as jnp

    n = 1024 if jax.default_backend() == "cpu" else 8192
    product = jax.jit(partial(matmul, out=jnp.float32))
    a = jnp.ones((n, n), dtype)
    product(a, a).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2.0 * n**3 / best * (jax.process_count() if jax.default_backend() == "cpu" else devices)
