"""Write the table of docs/data-scale.md: what `bench/data/latest.json` measured, and what that comes to for 10^11 samples.

The table stands between `<!-- scale begin -->` and `<!-- scale end -->`; everything else on the page is left alone.
`--check` writes nothing and fails when the table is not what the recorded figures give.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = "docs/data-scale.md"
SAMPLES, SHARDS, BYTES = 1e11, 1e6, 1e16
MISSING = "not recorded yet"


class Row(NamedTuple):
    """What is asked, the case and figure that answer it, its unit, by what it is multiplied (in words), and the result."""

    what: str
    case: str
    figure: str
    unit: str
    times: str
    result: Callable[[float], str]


def size(count: float) -> str:
    """Return bytes in the largest unit that leaves at least one."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if count < 1000 else f"{count / 1000:.3g} PB"


def duration(seconds: float, who: str = "") -> str:
    """Return a time in the unit in which it is spoken of."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= 1.5 * length or unit == "ms":
            return f"{seconds / length:.3g} {who}{unit}"
    raise AssertionError


def core(seconds: float) -> str:
    """Return a time of one core."""
    return duration(seconds, "core-")


ROWS = (
    Row("catalogue parts, plausible columns", "catalogue", "ours", "B/sample", "10¹¹ samples", lambda x: size(x * SAMPLES)),
    Row(
        "… columns of real documentation files",
        "catalogue",
        "real_bytes",
        "B/sample",
        "10¹¹ samples",
        lambda x: size(x * SAMPLES),
    ),
    Row("manifest", "catalogue", "manifest_bytes_per_shard", "B/shard", "10⁶ shards", lambda x: size(x * SHARDS)),
    Row("open a version of 10⁶ shards", "catalogue", "open_1e6_s", "s", "nothing", duration),
    Row("… memory it takes at most", "catalogue", "open_1e6_peak_mb", "MB", "nothing", lambda x: size(x * 1e6)),
    Row("list of versions", "catalogue", "versions_ms", "ms", "nothing", lambda x: duration(x / 1e3)),
    Row("condition that no shard of 10⁶ meets", "catalogue", "none_of_1e6_s", "s", "nothing", duration),
    Row(
        "scan with a selective condition",
        "catalogue",
        "filter_rows_per_s",
        "rows/s",
        "10¹¹ rows",
        lambda x: duration(SAMPLES / x),
    ),
    Row("… that selects half", "catalogue", "half_rows_per_s", "rows/s", "10¹¹ rows", lambda x: duration(SAMPLES / x)),
    Row(
        "… on 100 such machines, by shard",
        "catalogue",
        "half_rows_per_s",
        "rows/s",
        "10¹¹ / 100",
        lambda x: duration(SAMPLES / x / 100),
    ),
    Row("order, one index after the other", "order-1e11", "ours", "ns/index", "10¹¹ indices", lambda x: core(x * 1e-9 * SAMPLES)),
    Row("shard of a sample", "order-1e11", "ns_per_shard_lookup", "ns", "10¹¹ samples", lambda x: core(x * 1e-9 * SAMPLES)),
    Row("random reads of 100 kB, warm", "random-100k", "ours", "samples/s", "10¹¹ samples", lambda x: core(SAMPLES / x)),
    Row("… cold, this machine's disk", "random-100k", "cold.gewu", "samples/s", "10¹¹ samples", lambda x: core(SAMPLES / x)),
    Row("ingest of small files", "ingest-5m", "ours", "files/s", "10¹¹ files", lambda x: duration(SAMPLES / x, "process-")),
    Row("index in the shards, small files", "ingest-5m", "index_bytes", "B/sample", "10¹¹ samples", lambda x: size(x * SAMPLES)),
)


def found(records: list[dict[str, Any]], case: str, figure: str) -> float | None:
    """Return a figure of the first record of a case: one of its own keys, or one of `accuracy`, dots between levels."""
    for record in (record for record in records if record["case"] == case):
        value: Any = record if figure in record else record["accuracy"]
        for key in figure.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return None if value is None else float(value)
    return None


def table(records: list[dict[str, Any]]) -> str:
    """Return the table in Markdown, with the machines that the figures belong to."""
    lines = ["| | case | measured | multiplied by | 10 PB, 10¹¹ samples |", "|---|---|---|---|---|"]
    for row in ROWS:
        value = found(records, row.case, row.figure)
        shown = (MISSING, "") if value is None else (f"{value:.3g} {row.unit}", row.result(value))
        lines.append(f"| {row.what} | `{row.case}` | {shown[0]} | {row.times} | {shown[1]} |")
    cases = {row.case for row in ROWS}
    machines = {f"{r['machine']}, commit {r['commit']}" for r in records if r["case"] in cases}
    return "\n".join([*lines, *(f"\nMeasured on {machine}." for machine in sorted(machines))])


def filled(page: str, records: list[dict[str, Any]]) -> str:
    """Return the page with its table made anew.

    Raises:
        ValueError: the markers are not there, once each.
    """
    text = f"<!-- scale begin -->\n{table(records)}\n<!-- scale end -->"
    new, count = re.subn(r"<!-- scale begin -->.*?<!-- scale end -->", lambda match: text, page, flags=re.DOTALL)
    if count != 1 or page.count("<!-- scale") != 2:
        raise ValueError("the page needs one pair of scale markers")
    return new


def main() -> int:
    """Rewrite the page, or compare it with what would be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail when the page is stale")
    check = parser.parse_args().check
    path, source = ROOT / PAGE, ROOT / "bench" / "data" / "latest.json"
    text = path.read_text()
    new = filled(text, json.loads(source.read_text()) if source.exists() else [])
    if new != text and check:
        print(f"stale table in {PAGE}: run python tools/make_data_scale.py")
    elif new != text:
        path.write_text(new)
    return int(check and new != text)


if __name__ == "__main__":
    raise SystemExit(main())
