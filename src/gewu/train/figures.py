"""The figures of a report on training: how the loss fell, how fast it went, and what the model says to samples it never saw."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from gewu.core.figure import Figure


def figures(result: Any) -> Iterator[Figure]:
    """Yield the figures that the arrays of a result allow."""
    arrays = set(result.arrays)
    if "loss" in arrays:
        held = " and of the samples held out" if "validation_loss" in arrays else ""
        yield Figure("Loss", f"Of the training batches{held}, by step.", partial(_loss, result=result))
        yield Figure(
            "Learning rate and gradients",
            "Learning rate, and norm of all gradients before clipping.",
            partial(_rates, result=result),
        )
    if "tokens_per_s" in arrays:
        what = "Tokens" if "bytes_per_token" in result.numbers else "Samples"
        caption = f"{what} of each second, the step that compiled left out; dips are other work of the machine."
        yield Figure("Speed", caption, partial(_speed, result=result, what=what.lower()))
    if {"score", "truth"} <= arrays:
        yield Figure("Receiver operating characteristic", _auc_caption(result), partial(_roc, result=result))
    if "confusion" in arrays:
        caption = "Held-out samples by their class (rows) and what the model says (columns)."
        yield Figure("Confusion", caption, partial(_confusion, result=result))
    if "example_truth" in arrays:
        caption = "What came, what the model forecast, and what a linear law forecast, for four windows that were held out."
        yield Figure("Forecasts", caption, partial(_forecasts, result=result))
        caption = (
            "Root mean square error by how far ahead, over the standard deviation of the series; 1 is no better than the mean."
        )
        yield Figure("Error of the forecast", caption, partial(_errors, result=result))
    if "projected_mfu" in arrays:
        yield Figure(
            "Traffic",
            "What a device sends in a step, by collective and axes of the mesh (traced).",
            partial(_traffic, result=result),
        )
        by = (
            "cores"
            if np.any(np.asarray(result.arrays["projected_cores"]) != np.asarray(result.arrays["projected_devices"]))
            else "devices"
        )
        caption = (
            "Projected, not measured: share of the peak that the model's arithmetic uses. The band is what overlap and speed of"
        )
        yield Figure("Projected MFU", f"{caption} products leave open.", partial(_band, result=result, name="mfu", by=by))
        caption = "Projected time of the smallest size over that of each, rows of a device fixed; the constant predictor says 1."
        yield Figure("Projected efficiency", caption, partial(_band, result=result, name="efficiency", by=by))


def _loss(axes: Any, result: Any) -> None:
    step, loss = np.asarray(result.arrays["step"]), np.asarray(result.arrays["loss"])
    axes.plot(step, loss, color="C0", alpha=0.35 if len(loss) > 50 else 1.0, linewidth=1, label="training")
    if len(loss) > 50:
        width = max(5, len(loss) // 40)
        axes.plot(step[width - 1 :], np.convolve(loss, np.full(width, 1 / width), "valid"), color="C0", label=f"mean of {width}")
    if "validation_loss" in result.arrays:
        place, held = result.arrays["validation_step"], result.arrays["validation_loss"]
        axes.plot(place, held, "o-", color="C1", markersize=3, label="held out")
    if loss.min() > 0 and loss.max() > 20 * loss.min():
        axes.set_yscale("log")
    unit = result.arrays.variable("loss").units
    axes.set(xlabel="step", ylabel="loss" + f" ({unit})" * (unit not in ("", "1")))
    axes.legend()


def _rates(axes: Any, result: Any) -> None:
    step = result.arrays["step"]
    axes.plot(step, result.arrays["grad_norm"], color="C1", linewidth=1, label="norm of gradients")
    axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="norm of gradients")
    other = axes.twinx()
    other.plot(step, result.arrays["learning_rate"], color="C0", label="learning rate")
    other.set_ylabel("learning rate")
    other.set_ylim(0, 1.3 * float(np.max(result.arrays["learning_rate"])))
    other.grid(visible=False)
    axes.legend([*axes.lines, *other.lines], ["norm of gradients", "learning rate"], loc="upper right")


def _speed(axes: Any, result: Any, what: str) -> None:
    speed = np.asarray(result.arrays["tokens_per_s"])
    known = speed > 0
    axes.plot(np.asarray(result.arrays["step"])[known], speed[known], color="C0", linewidth=1)
    axes.axhline(np.median(speed[known]) if known.any() else 0.0, color="C1", label=f"median {np.median(speed[known]):,.0f}")
    axes.set(xlabel="step", ylabel=f"{what} a second", ylim=(0, None))
    axes.legend()


def _auc_caption(result: Any) -> str:
    name = _labels(result, "truth")[1]
    text = f"Share of {name} that is found, by the share of others that is taken for {name}"
    if "auc" in result.numbers:
        ours, theirs = result.numbers["auc"].value, result.numbers["baseline_auc"].value
        text += f". Area below: the model {ours:.3f}, logistic regression {theirs:.3f}"
    return text + "."


def _labels(result: Any, name: str) -> list[str]:
    return str(result.arrays.variable(name).attributes["labels"]).split("\n")


def _roc(axes: Any, result: Any) -> None:
    positive = np.asarray(result.arrays["truth"]) == 1
    for name, label, style in (("score", "model", "-"), ("baseline_score", "logistic regression", "--")):
        order = np.argsort(-np.asarray(result.arrays[name]), kind="stable")
        hits = np.concatenate([[0], np.cumsum(positive[order]) / max(1, positive.sum())])
        alarms = np.concatenate([[0], np.cumsum(~positive[order]) / max(1, (~positive).sum())])
        axes.step(alarms, hits, style, where="post", label=label)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    axes.set(xlabel="false alarms", ylabel="found", xlim=(-0.01, 1), ylim=(0, 1.01))
    axes.legend(loc="lower right")


def _confusion(axes: Any, result: Any) -> None:
    table, names = np.asarray(result.arrays["confusion"]), _labels(result, "confusion")
    share = table / np.maximum(1, table.sum(1, keepdims=True))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 16:
        for row in range(len(names)):
            for column in range(len(names)):
                dark = share[row, column] > 0.5
                axes.text(column, row, str(table[row, column]), ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(names)), names, rotation=45 if len(names) > 4 else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="the model says", ylabel="it is")
    axes.grid(visible=False)


def _forecasts(axes: Any, result: Any) -> None:
    truth = np.asarray(result.arrays["example_truth"])
    n, horizon = truth.shape
    for number in range(n):
        at = np.arange(horizon) + number * (horizon + horizon // 4)
        axes.plot(at, truth[number], color="0.2", linewidth=2.5, alpha=0.5, label="truth" if number == 0 else None)
        for name, label, style in (("forecast", "model", "C0-"), ("linear", "linear", "C1--")):
            axes.plot(at, np.asarray(result.arrays[f"example_{name}"])[number], style, label=label if number == 0 else None)
    axes.set(xlabel="steps ahead, four windows", ylabel="value")
    axes.set_xticks([])
    axes.legend()


def _errors(axes: Any, result: Any) -> None:
    for name, label, style in (("forecast", "model", "o-"), ("linear", "linear", "s--"), ("persistence", "last value", ":")):
        error = np.asarray(result.arrays[f"error_{name}"])
        axes.plot(np.arange(1, len(error) + 1), error, style, markersize=3, label=label)
    axes.set_yscale("log")
    axes.set(xlabel="steps ahead", ylabel="error / spread")
    axes.legend()


def _traffic(axes: Any, result: Any) -> None:
    values, labels = np.asarray(result.arrays["traffic"]), _labels(result, "traffic")
    axes.barh(range(len(values)), values, color="C0", height=0.7)
    axes.set_yticks(range(len(values)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    if values.min() > 0 and values.max() > 100 * values.min():
        axes.set_xscale("log")
    axes.set_xlabel("GB a step")


def _band(axes: Any, result: Any, name: str, by: str) -> None:
    size, band = np.asarray(result.arrays[f"projected_{by}"]), np.asarray(result.arrays[f"projected_{name}"])
    axes.fill_between(size, band[:, 0], band[:, 2], color="C0", alpha=0.25, label="band")
    axes.plot(size, band[:, 1], "o-", color="C0", markersize=3, label="middle")
    if name == "efficiency":
        axes.axhline(1.0, color="C1", linestyle="--", label="constant predictor")
    else:
        axes.axhline(band[0, 1], color="C1", linestyle="--", label="constant predictor")
    axes.set_xscale("log")
    axes.set(xlabel=by, ylabel={"mfu": "MFU"}.get(name, name), ylim=(0, None))
    axes.legend()
