"""Write the class table of docs/operators.md from `bench/ops/latest.json`.

The table stands between `<!-- operators begin -->` and `<!-- operators end -->`; everything else in the page is left alone.
`--check` writes nothing and fails when the table is not what the recorded figures give.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "operators.md"
RECORDS = ROOT / "bench" / "ops" / "latest.json"
READERS = {"ptx": "PTX", "sm_80": "cubin sm_80", "sm_90": "cubin sm_90"}
KINDS = {"migrate/source": "from source", "migrate/binary": "from binary", "library": "library"}
EMPTY = "# Operator classes\n\n<!-- operators begin -->\n<!-- operators end -->\n"


def table(records: list[dict[str, Any]]) -> str:
    """Return the Markdown table, its totals, and the machine that the figures belong to."""
    if not records:
        return "No figures are recorded yet: `make bench TOPIC=ops` writes them."
    classes: dict[str, dict[str, dict[str, Any]]] = {}
    for record in records:
        kind, _, cls = record["case"].rpartition("/")
        classes.setdefault(cls, {})[kind] = record
    titles = ["class", "kernel", *READERS.values(), "error", *(f"{name}: peer / gewu" for name in KINDS.values()), "best peer"]
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    lines += ["| " + " | ".join(_row(cls, found)) + " |" for cls, found in classes.items()]
    lines += ["", *(_total(kind, name, records) for kind, name in KINDS.items())]
    first = records[0]
    named = ", ".join(f"{name} {value}" for name, value in first["versions"].items())
    lines += ["", f"Measured on {first['machine']}; {named}; commit {first['commit']}; median of {first['repeats']}."]
    return "\n".join(lines)


def _row(cls: str, found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    migrated = found.get("migrate/source") or found.get("migrate/binary") or {}
    styles = migrated.get("styles", {})
    statuses = [_statuses(styles.get(reader, {}), migrated.get("style", "")) for reader in READERS]
    errors = [record["accuracy"]["error"] for record in found.values() if "error" in record["accuracy"]]
    ratios = [f"{found[kind]['ratio']:.2f}" if found.get(kind, {}).get("ratio") else "" for kind in KINDS]
    best = ", ".join(dict.fromkeys(record["best"] for record in found.values() if record["best"]))
    return [cls, migrated.get("style", ""), *statuses, f"{max(errors):.1e}" if errors else "", *ratios, best]


def _statuses(styles: Mapping[str, Mapping[str, Any]], quoted: str) -> str:
    """Return the quoted style's status, and in brackets those of the other styles."""
    if not styles:
        return ""
    others = [found["status"] for style, found in styles.items() if style != quoted]
    return styles.get(quoted, {}).get("status", "") + (f" ({', '.join(others)})" if others else "")


def _total(kind: str, name: str, records: Iterable[Mapping[str, Any]]) -> str:
    found = [record for record in records if record["case"].startswith(f"{kind}/")]
    ratios = [record["ratio"] for record in found if record["ratio"] > 0]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 0.0
    counts = {
        status: sum(record["status"] == status for record in found)
        for status in ("lifted", "spmd", "reference", "refused", "failed", "wrong")
    }
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    fast = sum(ratio >= 0.8 for ratio in ratios)
    right = f"{len(ratios)} of {len(found)} classes right{f' ({told})' if told else ''}"
    return f"- {name}: {right}; {fast} at 0.8 or more; geometric mean {mean:.2f}."


def filled(page: str, records: list[dict[str, Any]]) -> str:
    """Return the page with the table made anew.

    Raises:
        ValueError: the markers are missing.
    """
    block = f"<!-- operators begin -->\n{table(records)}\n<!-- operators end -->"
    new, count = re.subn(r"<!-- operators begin -->.*?<!-- operators end -->", lambda _: block, page, flags=re.DOTALL)
    if count != 1:
        raise ValueError("docs/operators.md needs one pair of operators markers")
    return new


def main() -> int:
    """Rewrite the page, or compare it with what would be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail when the page is stale")
    check = parser.parse_args().check
    text = PAGE.read_text() if PAGE.exists() else EMPTY
    new = filled(text, json.loads(RECORDS.read_text()) if RECORDS.exists() else [])
    stale = not PAGE.exists() or new != text
    if stale and not check:
        PAGE.write_text(new)
    if check and stale:
        print("docs/operators.md is stale: run python tools/make_operators.py")
    return int(check and stale)


if __name__ == "__main__":
    raise SystemExit(main())
