"""Figures of a report as SVG text: matplotlib draws, the page's own ink colours lines and letters in light and in dark.

Matplotlib is imported here only, when a report is made.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from gewu.core.figure import Figure

INK = "#0b0b0c"  # stands for "the colour of the text" until the SVG becomes part of the page
WIDTH_IN, HEIGHT_IN = 6.6, 3.9
COLOURS = (
    "#1f77c9",
    "#d9662b",
    "#2a9d6f",
    "#c2437e",
    "#8a6fd1",
    "#b8860b",
    "#4aa3a2",
    "#7f7f7f",
)  # readable on white and on black


def style() -> dict[str, Any]:
    """Return matplotlib's settings for all figures."""
    from cycler import cycler

    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "patch.edgecolor")
    return {
        **dict.fromkeys(inked, INK),
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": INK,
        "grid.alpha": 0.12,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "figure.constrained_layout.use": True,
        "svg.fonttype": "path",
        "svg.hashsalt": "gewu",
    }


def to_svg(figure: Figure, number: int) -> str:
    """Draw a figure and return it as an `<svg>` element to stand inside a page.

    Args:
        figure: what to draw.
        number: which figure of the page it is; keeps the names inside different figures apart.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    buffer = io.StringIO()
    with matplotlib.rc_context(style()):
        canvas = Canvas(figsize=(WIDTH_IN, HEIGHT_IN))
        FigureCanvasSVG(canvas)
        figure.draw(canvas.add_subplot())
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>f{number}-", text)
    text = text.replace(INK, "currentColor").replace("#000000", "currentColor")
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)


def stylesheet() -> str:
    """Return the style sheet of the page."""
    return Path(__file__).with_name("report.css").read_text(encoding="utf-8")
