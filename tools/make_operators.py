"""Write the tables of docs/operators.md: of classes, of processors and of profiles, from `latest`, `targets` and `profile.json`.

A table stands between `<!-- operators begin -->` and `<!-- operators end -->`, the others likewise between those of
`processors` and `profiles`; everything else in the page is left alone. `--check` writes nothing and fails when a table is not
what the recorded figures give.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "operators.md"
RECORDS = ROOT / "bench" / "ops" / "latest.json"
MADE = ROOT / "bench" / "ops" / "targets.json"
PROFILES = ROOT / "bench" / "ops" / "profile.json"
READERS = {"ptx": "PTX", "sm_80": "cubin sm_80", "sm_90": "cubin sm_90"}
KINDS = {"migrate/source": "from source", "migrate/binary": "from binary", "library": "library"}
EMPTY = (
    "# Operator classes\n\n<!-- operators begin -->\n<!-- operators end -->\n\n"
    "<!-- processors begin -->\n<!-- processors end -->\n\n<!-- profiles begin -->\n<!-- profiles end -->\n"
)


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


def processors(made: Mapping[str, Any]) -> str:
    """Return the Markdown table of objects for other processors, a column each, and what it was made with."""
    if not made:
        return "No objects are recorded yet: `make targets` makes and runs them."
    classes = made["classes"]
    targets = list(dict.fromkeys(target for found in classes for target in found["targets"]))
    titles = ["class", "kernel", "as", *targets]
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for found in classes:
        cells = [_outcome(found["targets"].get(target, {})) for target in targets]
        style = found["kernel"].removeprefix(f"{found['class']}_")
        lines.append("| " + " | ".join([found["class"], style, ", ".join(dict.fromkeys(found["ways"].values())), *cells]) + " |")
    lines.append("")
    for target in targets:
        counts = Counter(found["targets"].get(target, {}).get("status", "none") for found in classes)
        told = ", ".join(
            f"{counts[status]} {status}" for status in ("right", "made", "library", "none", "wrong", "failed") if counts[status]
        )
        lines.append(f"- {target}: {told}.")
    named = ", ".join(f"{name} {value}" for name, value in made["versions"].items())
    return "\n".join([*lines, "", f"Made on {made['machine']}; {named}; commit {made['commit']}."])


def _outcome(found: Mapping[str, Any]) -> str:
    error = f" {found['error']:.0e}" if found.get("error") else ""
    return found.get("status", "") + error


def profiles(found: Iterable[Mapping[str, Any]]) -> str:
    """Return the Markdown table of where the time of cases below the bar goes."""
    titles = [
        "case",
        "size",
        "as",
        "peer / gewu",
        "best peer",
        "GB/s",
        "cores",
        "samples",
        "hot loop",
        "its samples, by instruction",
    ]
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for one in found:
        loop = one["loop"]
        length = f"{loop['instructions']} instructions, {loop['width']} bits, {loop['share']:.0%}" if loop else ""
        kinds = (
            ", ".join(f"{kind} {share:.0%}" for kind, (_, share) in list(loop["kinds"].items())[:4] if share >= 0.03)
            if loop
            else ""
        )
        shares = ", ".join(f"{name} {share:.0%}" for name, share in one["shares"].items() if share >= 0.03)
        rate = f"{one['bytes'] / one['seconds'] * 1e-9:.3g}"
        cells = [one["case"], one["size"], one["status"], f"{one['ratio']:.2f}", one["best"], rate, f"{one['busy']:.1f}"]
        lines.append("| " + " | ".join([*cells, shares, length, kinds]) + " |")
    return "\n".join(lines) if len(lines) > 2 else "No profiles are recorded yet: `python -m bench.ops.profile` makes them."


def filled(page: str, name: str, text: str) -> str:
    """Return the page with what stands between the markers of a name replaced by a text.

    Raises:
        ValueError: the markers are missing.
    """
    begin, end = f"<!-- {name} begin -->", f"<!-- {name} end -->"
    new, count = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", page, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"docs/operators.md needs one pair of {name} markers")
    return new


def main() -> int:
    """Rewrite the page, or compare it with what would be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail when the page is stale")
    check = parser.parse_args().check
    text = PAGE.read_text() if PAGE.exists() else EMPTY
    new = filled(text, "operators", table(json.loads(RECORDS.read_text()) if RECORDS.exists() else []))
    new = filled(new, "processors", processors(json.loads(MADE.read_text()) if MADE.exists() else {}))
    new = filled(new, "profiles", profiles(json.loads(PROFILES.read_text()) if PROFILES.exists() else []))
    stale = not PAGE.exists() or new != text
    if stale and not check:
        PAGE.write_text(new)
    if check and stale:
        print("docs/operators.md is stale: run python tools/make_operators.py")
    return int(check and stale)


if __name__ == "__main__":
    raise SystemExit(main())
