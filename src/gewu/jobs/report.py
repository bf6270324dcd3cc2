"""The report of a result: one HTML page that needs nothing else, made to be sent to a colleague.

Warnings stand on top, then the numbers, the figures, the structure, and at the end what is needed to repeat the run. All text
is escaped; the content security policy lets the page load nothing and run no script but the structure viewer, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterable
from html import escape
from typing import Any

from gewu.core import schema
from gewu.core.errors import GewuError
from gewu.formats import read_structure
from gewu.jobs import figures, viewer
from gewu.jobs.job import Job
from gewu.jobs.record import Number
from gewu.jobs.result import Result, read_json
from gewu.jobs.talk import duration

STRUCTURE, SAMPLES = "structure.extxyz", "samples.json"
PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]*")
ENDINGS = {
    "finished": "finished",
    "not-converged": "not converged",
    "stopped": "stopped before its end",
    "failed": "failed",
    "running": "running",
}


def render(result: Result, job: Job) -> str:
    """Return the page of a result.

    Args:
        result: numbers, arrays and manifest, as far as they are known.
        job: the job that made it, for the meanings of its keys.
    """
    structure = _structure(result)
    script = viewer.script() if "<canvas" in structure else ""
    body = "\n".join(
        [
            _header(result, job),
            _notices(result),
            _numbers(result.numbers),
            _figures(result, job),
            f"<h2>Structure</h2>\n{structure}" if structure else "",
            _samples(result),
            _inputs(job),
            _timings(result.manifest),
            _arrays(result),
            _provenance(result),
            _citations(result.manifest, job),
            f"<footer>Made by gewu {_text(result.manifest['versions']['gewu'])}. Checksums of all files: manifest.json.</footer>",
        ]
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src " + (
        f"'sha256-{digest}'" if script else "'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(job.title)}</title>\n<style>\n{figures.stylesheet()}</style>\n</head>\n<body>\n{body}\n"
        + (f"<script>{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )


def _text(value: Any) -> str:
    """Return any value as HTML text: escaped, control characters made visible."""
    text = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return escape(text)


def _unit(unit: str) -> str:
    return "" if unit == "1" else _text(unit)


def _table(head: Iterable[str], rows: Iterable[str], kind: str = "") -> str:
    titles = "".join(f'<th class="value">{name[1:]}</th>' if name.startswith(">") else f"<th>{name}</th>" for name in head)
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{titles}</tr></thead><tbody>\n'
        + "\n".join(rows)
        + "</tbody></table></div>"
    )


def shown(value: float, unit: str = "") -> str:
    """Return a number as a table shows it: times short, the rest to ten significant digits.

    >>> shown(-7.854477356672, "Ha"), shown(1.23456, "s"), shown(12)
    ('-7.854477357', '1.23', '12')
    """
    if isinstance(value, int):
        return str(value)
    return f"{value:.3g}" if unit == "s" else f"{value:.10g}"


def _header(result: Result, job: Job) -> str:
    manifest = result.manifest
    loose = sum(not number.converged for number in result.numbers.values())
    how = "every number converged" if not loose else f"{loose} of {len(result.numbers)} numbers not converged"
    threads = manifest["ranks"] * manifest["threads"]
    where = f"{threads} thread{'s' * (threads > 1)}" + (" and a GPU" if manifest["device"] == "cuda" else "")
    told = f"; {how}" if result.numbers else ""
    date = _text(str(manifest["ended"])[:10])
    return (
        f'<header><div class="house"><span>gewu · {_text(job.engine.name)}</span><span>{date}</span></div>'
        f"<h1>{_text(job.title)}</h1>\n<p>{_text(job.engine.summary.rstrip('.'))}: "
        f'<span class="state {_text(result.state)}">{_text(ENDINGS[result.state])}</span> '
        f"after {duration(manifest['wall_s'])} on {where}{told}.</p></header>"
    )


def _notices(result: Result) -> str:
    manifest, parts = result.manifest, []
    if result.state in ("not-converged", "failed"):
        parts.append(
            f'<div class="notice bad" role="alert"><b>Do not rely on this result:</b> {_text(manifest["reason"])}.</div>'
        )
    elif result.state == "stopped":
        parts.append(f'<div class="notice"><b>This run has not ended:</b> {_text(manifest["reason"])}.</div>')
    if manifest["warnings"]:
        items = "".join(f"<li>{_text(text)}</li>" for text in manifest["warnings"])
        parts.append(f'<div class="notice"><b>Warnings</b><ul>{items}</ul></div>')
    return "\n".join(parts)


def _numbers(numbers: dict[str, Number]) -> str:
    if not numbers:
        return ""
    rows = []
    for name, number in numbers.items():
        flag = "<td></td>" if number.converged else '<td class="bad">not converged</td>'
        value = f'<td class="value{"" if number.converged else " bad"}">{shown(number.value, number.unit)}</td>'
        rows.append(f'<tr><td class="name">{_text(name)}</td>{value}<td>{_unit(number.unit)}</td>{flag}</tr>')
    return "<h2>Results</h2>\n" + _table(("quantity", ">value", "unit", ""), rows, "numbers")


def _figures(result: Result, job: Job) -> str:
    if job.engine.figures is None:
        return ""
    parts = []
    try:
        for number, figure in enumerate(job.engine.figures(result), 1):
            svg = figures.to_svg(figure, number)
            caption = f"<figcaption>Figure {number}. {_text(figure.caption)}</figcaption>"
            parts.append(f"<figure><h3>{_text(figure.title)}</h3>{svg}{caption}</figure>")
    except Exception as error:  # a run that stopped early lacks arrays; and no picture is worth losing a computed result
        parts.append(f'<p class="notice">A figure could not be drawn: {_text(type(error).__name__)}: {_text(error)}</p>')
    return "<h2>Figures</h2>\n" + "\n".join(parts) if parts else ""


def _structure(result: Result) -> str:
    if STRUCTURE not in result.manifest["files"]:
        return ""
    try:
        return viewer.render_structure(read_structure(result.path / STRUCTURE))
    except GewuError as error:
        return f'<p class="notice">The structure cannot be shown: {_text(error.message)}</p>'


def _samples(result: Result) -> str:
    """Show the rows of samples.json: texts, and small pictures given as data URLs."""
    if SAMPLES not in result.manifest["files"]:
        return ""
    tables = []
    for row in read_json(result.path / SAMPLES):
        cells = ((name, f'<img alt="" src="{text}">' if PICTURE.fullmatch(text) else _text(text)) for name, text in row.items())
        rows = [f'<tr><td class="name">{_text(name)}</td><td class="sample">{shown}</td></tr>' for name, shown in cells]
        tables.append(f"<table>{''.join(rows)}</table>")
    return "<h2>Samples</h2>\n" + "\n".join(tables) if tables else ""


def _inputs(job: Job) -> str:
    rows = []
    for info in schema.fields_of(type(job.config)):
        value = getattr(job.config, info.name)
        kind = "default" if value == info.default else "chosen"
        if info.file:
            value = _file_names(value)
        elif isinstance(value, dict):
            value = ", ".join(f"{key}: {text}".removeprefix(": ") for key, text in value.items())
        elif isinstance(value, tuple):
            value = ", ".join(map(str, value))
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        cells = f'<td class="name">{_text(info.name)}</td><td class="setting">{_text(value)}</td><td>{_text(info.unit)}</td>'
        rows.append(f'<tr class="{kind}">{cells}<td>{_text(info.meaning)}</td></tr>')
    note = "<p>Values that differ from their default are bold.</p>"
    return "<h2>Inputs</h2>\n" + note + _table(("key", "value", "unit", "meaning"), rows)


def _file_names(value: str | dict[str, str] | tuple[str, ...]) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {os.path.basename(item)}" for key, item in value.items())
    if isinstance(value, tuple):
        return ", ".join(map(os.path.basename, value))
    return os.path.basename(value)


def _timings(manifest: dict[str, Any]) -> str:
    timings, wall = manifest["timings_s"], max(manifest["wall_s"], 1e-9)
    if not timings:
        return ""
    rows = []
    for name, seconds in sorted(timings.items(), key=lambda item: -item[1]):
        share = min(100.0, 100.0 * seconds / wall)
        bar = f'<td class="track"><span class="bar" style="width:{share:.1f}%"></span></td>'
        cells = f'<td class="value">{duration(seconds)}</td><td class="value">{share:.0f} %</td>{bar}'
        rows.append(f'<tr><td class="name">{_text(name)}</td>{cells}</tr>')
    return "<h2>Where the time went</h2>\n" + _table(("phase", ">wall time", ">share", ""), rows)


def _arrays(result: Result) -> str:
    rows = []
    for name in result.arrays:
        variable = result.arrays.variable(name)
        shape = " × ".join(f"{dim} {length}" for dim, length in zip(variable.dims, variable.array.shape, strict=True))
        cells = f"<td>{_text(shape or 'one value')}</td><td>{_text(variable.array.dtype)}</td><td>{_unit(variable.units)}</td>"
        rows.append(f'<tr><td class="name">{_text(name)}</td>{cells}<td>{_text(variable.attributes["long_name"])}</td></tr>')
    return "<h2>Arrays in arrays.nc</h2>\n" + _table(("name", "axes", "type", "unit", "meaning"), rows) if rows else ""


def _provenance(result: Result) -> str:
    manifest = result.manifest
    host, versions = manifest["host"], dict(manifest["versions"])
    gewu = versions.pop("gewu") + (f", commit {manifest['commit'][:12]}" if manifest["commit"] else "")
    facts = {
        "gewu": gewu,
        "libraries": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "machine": f"{host['host']}: {host['cpu']}, {host['cores']} cores, {host['platform']}",
        "device": f"{manifest['device']}; {manifest['ranks']} rank(s) of {manifest['threads']} thread(s)",
        "started": manifest["started"],
        "ended": manifest["ended"],
        "wall and CPU time": f"{duration(manifest['wall_s'])}, {duration(manifest['cpu_s'])}; {manifest['sessions']} session(s)",
        "seed": manifest["seed"],
        **{f"SHA-256 of {os.path.basename(name)}": digest for name, digest in manifest["inputs"].items()},
    }
    rows = [f"<tr><td>{_text(key)}</td><td>{_text(value)}</td></tr>" for key, value in facts.items() if value is not None]
    repeat = "<p>To repeat this run: <code>gewu run job.toml</code> in the result directory.</p>"
    return "<h2>Where it came from</h2>\n" + repeat + _table(("", ""), rows)


def _citations(manifest: dict[str, Any], job: Job) -> str:
    cited = [job.engine.references.get(key, f"% {key}") for key in manifest["cited"]]
    if not cited:
        return ""
    entries = "\n\n".join(entry.strip() for entry in cited)
    return f"<h2>Please cite the methods used</h2>\n<pre>{_text(entries)}</pre>"
