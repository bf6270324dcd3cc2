"""The figures of a report on a data set: how long samples are, what they are, why some were refused, how numbers spread."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import numpy as np

from gewu.core.context import Context
from gewu.core.figure import Figure

_MOST_BARS: Final = 24


def record(ctx: Context, facts: Any, rejects: dict[str, int]) -> None:
    """Record counts: of refusals, of labels, and histograms; figures are drawn from them."""
    tables = {
        f"by_{name}": (name, [(value, count) for value, count, _ in rows]) for name, rows in facts.labels.items() if len(rows) > 1
    }
    if rejects:
        tables["rejects"] = ("reason", sorted(rejects.items(), key=lambda row: (-row[1], row[0])))
    for key, (column, rows) in tables.items():
        key, counts = re.sub(r"[^A-Za-z0-9_]", "_", key), np.array([count for _, count in rows], np.int64)
        labels = "\n".join(value.replace("\n", " ") for value, _ in rows)
        ctx.save(key, counts, (f"{key}_value",), "1", long_name=f"samples by {column}", labels=labels, column=column)
    for name, found in facts.histograms.items():
        key = re.sub(r"[^A-Za-z0-9_]", "_", name)
        counted = "samples" if name in facts.snapshot.columns else "entries"
        about = f"{found.counts.sum():,} {counted} between {found.edges[0]:.4g} and {found.edges[-1]:.4g} {found.unit}".rstrip()
        about += "" if counted == "samples" else " of samples spread evenly"
        about += f": {found.meaning}" * bool(found.meaning)
        ctx.save(f"histogram_{key}", found.counts, (f"bin_{key}",), "1", long_name=about, column=name, counted=counted)
        ctx.save(f"edges_{key}", found.edges, (f"edge_{key}",), found.unit or "1", long_name=f"edges of histogram_{key}")


def figures(result: Any) -> Iterator[Figure]:
    """Yield a figure for each array that counts: bars for labels, steps for numbers."""
    for name in result.arrays:
        about = result.arrays.variable(name).attributes
        kind, what = name.partition("_")[0], str(about.get("column", "")).replace("_", " ")
        if kind == "rejects":
            caption = "Samples that were not taken, by reason; rejects.txt names the first of each."
            yield Figure("Refused", caption, partial(_bars, result=result, name=name))
        elif kind == "by":
            caption = f"Samples by the catalogue's column {what}" + (", the most frequent." if _many(result, name) else ".")
            yield Figure(what[:1].upper() + what[1:], caption, partial(_bars, result=result, name=name))
        elif kind == "histogram":
            yield Figure(what[:1].upper() + what[1:], f"{about['long_name']}.", partial(_steps, result=result, name=name))


def _many(result: Any, name: str) -> bool:
    return len(result.arrays[name]) > _MOST_BARS


def _bars(axes: Any, result: Any, name: str) -> None:
    labels = str(result.arrays.variable(name).attributes["labels"]).split("\n")[:_MOST_BARS]
    values = np.asarray(result.arrays[name][:_MOST_BARS])
    axes.barh(range(len(values)), values, color="C0", height=0.7)
    axes.set_yticks(range(len(values)), [label[:32] or "(none)" for label in labels], fontsize=8 if len(values) > 12 else None)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    if values.max() > 100 * values.min() > 0:
        axes.set_xscale("log")
    axes.set_xlabel("samples")


def _steps(axes: Any, result: Any, name: str) -> None:
    variable = result.arrays.variable(name)
    edges = np.asarray(result.arrays[name.replace("histogram", "edges", 1)])
    axes.stairs(np.asarray(variable.array), edges, fill=True, color="C0", alpha=0.85)
    unit = str(result.arrays.variable(name.replace("histogram", "edges", 1)).units)
    column = str(variable.attributes["column"])
    axes.set_xlabel(column.replace("_", " ") + (f" ({unit})" if unit not in ("", "1") else ""))
    axes.set_ylabel(str(variable.attributes["counted"]))
    if column == "length" and edges[0] > 0:
        axes.set_xscale("log")
