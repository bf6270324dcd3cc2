"""What a training run records: numbers, curves, what the model says to held-out samples and what a simple baseline says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gewu.core.context import Context
from gewu.train import baseline
from gewu.train.fit import COLUMNS
from gewu.train.spec import count


def held_loss(trainer: Any, stream: Any, params: Any, most: int) -> float:
    """Return the mean loss of the held-out part, for text a token, else a row."""
    if not trainer.config.vocab:
        found, truth = predictions(trainer, stream, params, most)
        if trainer.config.classes:
            return float(-np.log(baseline.softmax(found)[np.arange(len(truth)), truth]).mean())
        return float(((found - truth) ** 2).mean())
    total = weight = 0.0
    for batch in stream.held(most):
        _, metrics = trainer.loss(params, trainer.prepare(batch))
        count = float(metrics["tokens"])
        total, weight = total + count * float(metrics["loss"]), weight + count
    return total / weight


def predictions(trainer: Any, stream: Any, params: Any, most: int) -> tuple[Any, Any]:
    """Return what the model says to held-out rows, logits (n, classes) or values (n, k), and the truth."""
    name = "label" if trainer.config.classes else "value"
    found, truth = [], []
    for batch in stream.held(most):
        count = int(batch.pop("_count"))
        truth.append(batch[name][:count])
        found.append(whole(trainer.outputs(params, trainer.prepare(batch))[name])[:count])
    return np.concatenate(found), np.concatenate(truth)


def whole(array: Any) -> Any:
    """Return a global array as a whole on this host; every process calls it."""
    import jax

    if jax.process_count() == 1:
        return np.asarray(array)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(array, tiled=True))


def report(config: Any, ctx: Context, found: Any, fit: Any, state: Any) -> None:
    """Record numbers, curves, what the model says to held-out samples and what a simple baseline says."""
    p, trainer, stream = fit.progress, fit.trainer, fit.stream
    rows = np.array([*p.curve.rows, *p.curve.open]).reshape(-1, len(COLUMNS))
    units = {"loss": "nat" if found.kind != "series" else "1", "learning_rate": "1", "tokens_per_s": "1/s"}
    for name, column in zip(COLUMNS, rows.T, strict=True):
        if name == "step" or np.any(column):
            ctx.save(name, column, ("point",), units.get(name, "1"), long_name=f"{name.replace('_', ' ')} of training")
    with ctx.phase("validation"):
        if config.validation:
            p.validation.append([fit.steps, held_loss(trainer, stream, state.params, 8 * config.evaluate_batches)])
            at = np.array(p.validation)
            ctx.save("validation_step", at[:, 0], ("validation",), "1", long_name="steps of the validations")
            ctx.save("validation_loss", at[:, 1], ("validation",), units["loss"], long_name="loss of the held-out part")
    ctx.number("parameters", count(trainer.specs), "1")
    ctx.number("steps", fit.steps, "1")
    ctx.number("training_loss", float(rows[-max(1, len(rows) // 20) :, 1].mean()), units["loss"])
    if p.validation:
        ctx.number("validation_loss", p.validation[-1][1], units["loss"])
    if p.seconds:
        speed = p.counted / p.seconds
        ctx.number("tokens_per_s" if found.kind == "text" else "samples_per_s", speed, "1/s")
        ctx.number("mfu", speed * fit.flops / fit.peak_flops, "1")
    if p.skipped:
        ctx.number("skipped_steps", p.skipped, "1")
    lost = len(stream.damage)
    if lost:
        ctx.warn(f"{lost} damaged samples of the store were left out")
    ctx.number("damaged_samples", lost, "1")
    with ctx.phase("baseline and samples"):
        {"text": _text, "classes": _classes, "series": _series}[found.kind](config, ctx, found, fit, state)


def _text(config: Any, ctx: Context, found: Any, fit: Any, state: Any) -> None:
    source, refused = found.source, found.source.refused
    ctx.number("bytes_per_token", source.bytes_per_token, "B")
    if refused:
        ctx.log("not taken: " + ", ".join(f"{count} {reason}" for reason, count in refused.most_common()))
        ctx.number("refused_documents", refused.total(), "1")
    if fit.progress.validation:
        bits = 1 / math.log(2) / source.bytes_per_token
        ctx.number("bits_per_byte", fit.progress.validation[-1][1] * bits, "bit")
        counted = found.stream(config)
        seen = (next(counted) for _ in range(min(fit.steps, math.ceil(found.per_epoch))))
        simple = baseline.bigrams(seen, fit.stream.held(8 * config.evaluate_batches), found.model.vocab)
        counted.close()
        ctx.number("baseline_bits_per_byte", simple * bits, "bit")


def _classes(config: Any, ctx: Context, found: Any, fit: Any, state: Any) -> None:
    rows = found.source
    logits, truth = predictions(fit.trainer, fit.stream, state.params, 10**9)
    x = np.concatenate([rows.arrays[item.name].reshape(len(rows.held), -1) for item in rows.inputs], axis=1)
    weights = baseline.logistic(x[~rows.held], rows.arrays["label"][~rows.held], len(rows.classes))
    simple = baseline.predict(x[rows.held], weights)
    for name, said in (("", logits), ("baseline_", simple)):
        ctx.number(f"{name}accuracy", float((said.argmax(1) == truth).mean()), "1")
        if len(rows.classes) == 2:
            ctx.number(f"{name}auc", baseline.auc(said[:, 1] - said[:, 0], truth == 1), "1")
            ctx.save(f"{name}score", baseline.softmax(said)[:, 1], ("held",), "1", long_name=f"probability of {rows.classes[1]}")
    table = np.zeros((len(rows.classes),) * 2, np.int64)
    np.add.at(table, (truth, logits.argmax(1)), 1)
    names = "\n".join(rows.classes)
    ctx.save("confusion", table, ("truth", "said"), "1", long_name="held-out samples by class and answer", labels=names)
    ctx.save("truth", truth, ("held",), "1", long_name="class of the held-out samples", labels=names)
    ctx.number("held_out_samples", len(truth), "1")


def _series(config: Any, ctx: Context, found: Any, fit: Any, state: Any) -> None:
    rows = found.source
    said, truth = predictions(fit.trainer, fit.stream, state.params, 10**9)
    x, y = rows.arrays["series"], rows.arrays["value"]
    line = baseline.predict(x[rows.held], baseline.ridge(x[~rows.held], y[~rows.held]))
    shift, scale = rows.scale
    last = rows.last[rows.held][:, None]
    made = {"forecast": said * scale + shift, "linear": line * scale + shift, "persistence": np.broadcast_to(last, said.shape)}
    truth = truth * scale + shift
    spread = truth.std()
    for name, value in made.items():
        error = np.sqrt(((value - truth) ** 2).mean(0)) / spread
        ctx.save(f"error_{name}", error, ("horizon",), "1", long_name=f"root mean square error of the {name} over the spread")
        key = "relative_error" if name == "forecast" else f"baseline_{name}_relative_error"
        ctx.number(key, float(np.sqrt(((value - truth) ** 2).mean()) / spread), "1")
        ctx.save(
            f"example_{name}",
            value[:: max(1, len(value) // 4)][:4],
            ("example", "horizon"),
            "1",
            long_name=f"{name} of some windows",
        )
    ctx.save("example_truth", truth[:: max(1, len(truth) // 4)][:4], ("example", "horizon"), "1", long_name="what came")
    ctx.number("held_out_windows", len(truth), "1")


def record_plan(ctx: Context, study: Any, choices: Any, machine: Any) -> None:
    """Record what a plan found: sizes, traffic by kind and axes, and the projected bands."""
    compiled, traced = study.compiled, study.traced
    numbers = {
        "parameters": (study.parameters, "1"),
        "active_parameters": (study.active, "1"),
        "devices": (study.devices, "1"),
        "state_gb": (study.state / 1e9, "GB"),
        "alive_gb": (study.alive / 1e9, "GB"),
        "traced_tflop": (traced.flops / 1e12, "Tflop"),
        "needed_tflop": (study.needed / 1e12, "Tflop"),
    }
    if compiled:
        numbers |= {
            "compiled_devices": (compiled["devices"], "1"),
            "compile_s": (compiled["seconds"], "s"),
            "host_memory_gb": (compiled["rss"] / 1e9, "GB"),
            "compiled_arguments_gb": (compiled["arguments"] / 1e9, "GB"),
            "compiled_temporaries_gb": (compiled["temporaries"] / 1e9, "GB"),
            "compiled_tflop": (compiled["flops"] / 1e12, "Tflop"),
        }
    for name, (value, unit) in numbers.items():
        ctx.number(name, value, unit)
    for number, choice in enumerate(choices, 1):
        ctx.log(f"{number}. {choice.layout}: {choice.time.middle:.3g} s, {choice.memory.total / 1e9:.1f} GB a device")
    if compiled and compiled["devices"] < study.devices:
        ctx.warn(
            f"compiled for {compiled['devices']} of {study.devices} devices, by a smaller dp; all shapes on a device are the same"
        )
    sent = sorted(traced.collectives.items(), key=lambda item: -item[1][1])
    labels = "\n".join(f"{kind} over {' '.join(axes)} ({group})" for (kind, axes, group), _ in sent)
    about = {"labels": labels, "long_name": "bytes that a device sends in a step, by collective and axes"}
    ctx.save("traffic", np.array([traffic[1] for _, traffic in sent]) / 1e9, ("collective",), "GB", **about)
    what = {"devices": "1", "cores": "1", "seconds": "s", "mfu": "1", "efficiency": "1"}
    for name, unit in what.items():
        array = np.array([row[name] for row in study.projected], float)
        dims = ("size", "band")[: array.ndim]
        text = f"projected {name} on {machine.name}" + ", lowest, middle and highest" * (array.ndim == 2)
        ctx.save(f"projected_{name}", array, dims, unit, long_name=text)
