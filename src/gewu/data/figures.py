"""The figures of a report on a data set: how long samples are, what they are, why some were refused, how numbers spread."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from gewu.core.context import Context
from gewu.core.errors import InputError
from gewu.core.figure import Figure
from gewu.formats.pictures import thumbnail

EXCERPT, THUMBNAIL, MOST_BARS = 400, 128, 24


def record(ctx: Context, facts: Any, rejects: dict[str, int]) -> None:
    """Record counts: of refusals, of labels, and histograms; figures are drawn from them."""
    tables = {f"by_{name}": rows for name, rows in facts.labels.items() if len(rows) > 1}
    if rejects:
        tables["rejects"] = sorted(rejects.items(), key=lambda row: (-row[1], row[0]))
    for name, rows in tables.items():
        key, counts = re.sub(r"[^A-Za-z0-9_]", "_", name), np.array([count for _, count in rows], np.int64)
        about = {"labels": "\n".join(value.replace("\n", " ") for value, _ in rows), "column": name.removeprefix("by_")}
        ctx.save(key, counts, (f"{key}_value",), "1", long_name=f"samples by {about['column']}", **about)
    for name, found in facts.histograms.items():
        key, low, high = re.sub(r"[^A-Za-z0-9_]", "_", name), found.edges[0], found.edges[-1]
        counted = "samples" if name in facts.snapshot.columns else "entries of samples spread evenly"
        text = f"{found.counts.sum():,} {counted}, {low:.4g} to {high:.4g} {found.unit}".rstrip() + f"; {found.meaning}" * bool(
            found.meaning
        )
        ctx.save(f"histogram_{key}", found.counts, (f"bin_{key}",), "1", long_name=text, column=name)
        ctx.save(f"edges_{key}", found.edges, (f"edge_{key}",), found.unit or "1", long_name=f"edges of histogram_{key}")


def shown(value: Any) -> str:
    """Return a value of a sample as a report shows it: an excerpt of text, first numbers, or a small picture as a data URL."""
    if isinstance(value, bytes | memoryview):
        try:
            return f"data:image/png;base64,{base64.b64encode(thumbnail(bytes(value), THUMBNAIL)).decode()}"
        except InputError:
            return f"{len(value):,} bytes"
    if isinstance(value, np.ndarray):
        first = ", ".join(f"{number:.6g}" for number in value.ravel()[:12].tolist())
        return f"{value.dtype}{list(value.shape)}: {first}{' …' if value.size > 12 else ''}"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]} …"


def figures(result: Any) -> Iterator[Figure]:
    """Yield a figure for each array that counts: bars for labels, steps for numbers."""
    for name in result.arrays:
        about = result.arrays.variable(name).attributes
        kind, what = name.partition("_")[0], str(about.get("column", "")).replace("_", " ")
        if kind == "rejects":
            caption = "Samples that were not taken, by reason; rejects.txt names the first of each."
            yield Figure("Refused", caption, partial(_bars, result=result, name=name))
        elif kind == "by":
            most = ", the most frequent" if len(result.arrays[name]) > MOST_BARS else ""
            caption = f"Samples by the catalogue's column {what}{most}."
            yield Figure(what[:1].upper() + what[1:], caption, partial(_bars, result=result, name=name))
        elif kind == "histogram":
            yield Figure(what[:1].upper() + what[1:], f"{about['long_name']}.", partial(_steps, result=result, name=name))


def _bars(axes: Any, result: Any, name: str) -> None:
    labels = str(result.arrays.variable(name).attributes["labels"]).split("\n")[:MOST_BARS]
    values = np.asarray(result.arrays[name][:MOST_BARS])
    axes.barh(range(len(values)), values, color="C0", height=0.7)
    axes.set_yticks(range(len(values)), [label[:32] or "(none)" for label in labels], fontsize=8 if len(values) > 12 else None)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    if values.max() > 100 * values.min() > 0:
        axes.set_xscale("log")
    axes.set_xlabel("samples")


def _steps(axes: Any, result: Any, name: str) -> None:
    found, column = (
        result.arrays.variable(name.replace("histogram", "edges", 1)),
        str(result.arrays.variable(name).attributes["column"]),
    )
    axes.stairs(np.asarray(result.arrays[name]), np.asarray(found.array), fill=True, color="C0", alpha=0.85)
    axes.set_xlabel(column.replace("_", " ") + f" ({found.units})" * (found.units not in ("", "1")))
    axes.set_ylabel("count")
    if column == "length" and found.array[0] > 0:
        axes.set_xscale("log")
