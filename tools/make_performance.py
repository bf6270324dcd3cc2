"""Write the measured tables of docs/performance.md and README.md from `bench/*/latest.json`.

A table stands between `<!-- bench:TOPIC begin -->` and `<!-- bench:TOPIC end -->`; everything else in the page is left alone.
`TOPIC/NAME` stands for `bench/TOPIC/NAME.json`.
`--check` writes nothing and fails when a table is not what the recorded figures give.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MOST_COLUMNS = 12
PAGES = ("docs/performance.md", "README.md")


def table(topic: str, records: list[dict[str, Any]]) -> str:
    """Return the Markdown table of one topic, with the machine and versions that the figures belong to."""
    if not records:
        command = {"md/drift": "make drift", "md/scaling": "make scaling"}.get(topic, f"make bench TOPIC={topic}")
        return f"No figures are recorded yet: `{command}` writes them."
    names = [name for r in records for name, value in r["accuracy"].items() if _number(value)]
    accuracy = list(dict.fromkeys(names))
    if len(accuracy) > MOST_COLUMNS:  # cases of many kinds: what only one or two have stands in the last column
        accuracy = [name for name in accuracy if names.count(name) > 2]
    others = [{name: value for name, value in r["accuracy"].items() if name not in accuracy and _number(value)} for r in records]
    ratio = "time peer / gewu" if all(record["unit"] == "s" for record in records) else "gewu against peer"
    titles = ["case", "peer", ratio, "gewu", "peer", "spread", *(name.replace("_", " ") for name in accuracy)]
    titles += ["also"] if any(others) else []
    rows = [titles, ["---"] * len(titles)]
    for r, other in zip(records, others, strict=True):
        times = [
            f"{r['ratio']:.2f}",
            f"{_number(r['ours'])} {r['unit']}",
            f"{_number(r['theirs'])} {r['unit']}",
            f"{100 * r['spread']:.0f} %",
        ]
        rows.append([r["case"], r["peer"], *times, *(_number(r["accuracy"].get(name)) for name in accuracy)])
        if any(others):
            rows[-1].append(", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in other.items()))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    measured: dict[tuple[Any, ...], dict[str, str]] = {}
    for r in records:
        versions = measured.setdefault((r["machine"], r["commit"], r["repeats"]), {})
        for name, value in r["versions"].items():
            if value not in versions.setdefault(name, value).split(" and "):
                versions[name] += f" and {value}"
    for (machine, commit, repeats), versions in measured.items():
        named = ", ".join(f"{name} {value}" for name, value in versions.items())
        lines += ["", f"Measured on {machine}; {named}; commit {commit}; median of {repeats}."]
    return "\n".join(lines)


def _number(value: Any) -> str:
    """Return three digits; of two sides their ratio, or both where there is none; nothing of other groups of figures."""
    if isinstance(value, dict):
        sides = [_number(value[side]) for side in ("gewu", "peer") if side in value and not isinstance(value[side], dict)]
        return _number(value.get("ratio")) or (" / ".join(sides) if len(sides) == len(value) else "")
    if not isinstance(value, (int, float)):
        return ""
    return f"{float(f'{value:.3g}'):,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def filled(page: str, root: Path = ROOT) -> str:
    """Return the text of `page` with every table between markers made anew.

    Raises:
        ValueError: a begin marker has no end marker.
    """

    def replace(match: re.Match[str]) -> str:
        topic = match.group(1)
        folder, _, name = topic.partition("/")
        path = root / "bench" / folder / f"{name or 'latest'}.json"
        records = json.loads(path.read_text()) if path.exists() else []
        return f"<!-- bench:{topic} begin -->\n{table(topic, records)}\n<!-- bench:{topic} end -->"

    begins = page.count("<!-- bench:") // 2
    new, count = re.subn(r"<!-- bench:(\w+(?:/\w+)?) begin -->.*?<!-- bench:\1 end -->", replace, page, flags=re.DOTALL)
    if count != begins or page.count("<!-- bench:") % 2:
        raise ValueError("a bench marker is not closed")
    return new


def main() -> int:
    """Rewrite the pages, or compare them with what would be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail when a page is stale")
    check, stale = parser.parse_args().check, []
    for name in PAGES:
        path = ROOT / name
        text = path.read_text()
        new = filled(text)
        if new != text:
            stale.append(name)
            if not check:
                path.write_text(new)
    if check and stale:
        print(f"stale tables in {', '.join(stale)}: run python tools/make_performance.py")
    return int(check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
