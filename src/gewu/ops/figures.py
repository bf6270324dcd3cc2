"""The figure of a report on kernels: how close each comes to the roofline."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from gewu.core.figure import Figure

_MOST = 40


def figures(result: Any) -> Iterator[Figure]:
    """Yield a bar for each kernel that was timed."""
    if "roofline" not in result.arrays:
        return
    caption = (
        "The least time that main memory and a matrix product of BLAS allow here, over the time that a launch takes. "
        "Launches whose arrays stay in a cache pass the line."
    )
    yield Figure("Speed against the roofline", caption, partial(_bars, result=result))


def _bars(axes: Any, result: Any) -> None:
    attributes = result.arrays.variable("roofline").attributes
    names, status = str(attributes["labels"]).split(" ")[:_MOST], str(attributes["status"]).split(" ")[:_MOST]
    values = result.arrays["roofline"][:_MOST]
    for kind, label, opacity in (("lifted", "lifted", 1.0), ("spmd", "as written", 0.45)):
        chosen = [k for k, s in enumerate(status) if s == kind]
        if chosen:
            axes.barh(chosen, [100.0 * values[k] for k in chosen], color="C0", alpha=opacity, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(100.0, color="0.6", linewidth=0.6)
    axes.set_xlabel("per cent of the roofline")
    axes.legend()
