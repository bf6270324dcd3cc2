"""Write the tables of docs/scaling.md from bench/train/plan.json: what is measured, what is compiled, what is projected.

Each table stands between `<!-- NAME begin -->` and `<!-- NAME end -->`; everything else on the page is left alone. `--check`
writes nothing and fails when a table is not what the record gives.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = "docs/scaling.md"


def _rows(head: str, rows: list[list[str]]) -> str:
    names = head.split("|")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _three(values: list[float], unit: float = 1.0, digits: str = ".3g") -> str:
    low, middle, high = (format(value * unit, digits) for value in values)
    return f"{middle} ({low} to {high})"


def compiled(record: dict[str, Any]) -> str:
    """Return the table of the plan: exact, traced, compiled."""
    plan = record["plan"]
    found = plan["compiled"]
    peak = (found["arguments"] + found["temporaries"]) / 1e9
    rows = [
        [
            "parameters",
            f"{plan['parameters'] / 1e12:.3f} · 10¹², of which {plan['active'] / 1e9:.1f} · 10⁹ work on a token",
            "exact",
        ],
        ["layout", f"`{plan['layout']}`, {plan['devices']} devices, {plan['rows']} rows of {plan['length']}", "the plan"],
        ["state of a device", f"{plan['state'] / 1e9:.2f} GB", "exact"],
        ["most that is alive on a device", f"{plan['alive'] / 1e9:.1f} GB", "estimated from the trace"],
        ["the same, by XLA for processors", f"{peak:.1f} GB", f"compiled for {found['devices']} virtual devices"],
        ["products of a device", f"{plan['traced']['flops'] / 1e15:.3f} Pflop", "traced at full size"],
        ["", f"{found['flops'] / 1e15:.3f} Pflop", "compiled"],
        ["needed, nothing twice", f"{plan['needed'] / 1e15:.3f} Pflop", "from the sizes"],
        ["time to trace and compile", f"{found['seconds']:.1f} s", "measured"],
        ["memory of the host", f"{found['rss'] / 1e9:.2f} GB", "measured"],
    ]
    for larger in record["larger"]:
        text = f"{larger['seconds']:.1f} s, {larger['rss'] / 1e9:.2f} GB"
        rows.append([f"compiled for {larger['devices']} (`{larger['layout']}`)", text, "measured"])
    return _rows("|value|how", rows) + f"\n\nMeasured on {record['machine']}, commit {record['commit']}."


def collectives(record: dict[str, Any]) -> str:
    """Return the table of what a device sends in a step."""
    plan = record["plan"]
    there = {(row[0], tuple(row[1])): row for row in plan["compiled"]["collectives"]}
    rows = []
    for kind, axes, group, calls, size in plan["traced"]["collectives"]:
        other = there.get((kind, tuple(axes)))
        if size > 1e6:
            text = f"{other[4] / 1e9:.1f}" if other else "0"
            rows.append([kind, " × ".join(axes), str(group), f"{calls:.0f}", f"{size / 1e9:.1f}", text])
    return _rows("kind|axes|devices|calls|GB sent, traced|GB sent, compiled", rows)


def projected(record: dict[str, Any]) -> str:
    """Return the tables of projections."""
    plan = record["plan"]
    head = "devices|cores|step / s|part of the peak / %|efficiency / %|constant predictor / %"
    trillion = {plan["machine"]: plan["projected"], **plan["cores"]}
    parts = [f"A trillion parameters on `{name}`, replicas added:\n\n{_band(head, rows)}" for name, rows in trillion.items()]
    for name, rows in record["sweep"].items():
        parts.append(f"175 · 10⁹ parameters on `{name}`, layout chosen at each size:\n\n{_band(head + '|layout', rows)}")
    return "\n\n".join(parts)


def _band(head: str, rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        cores = f"{row['cores']:,}" if row["cores"] > row["devices"] else ""
        bands = [_three(row["seconds"]), _three(row["mfu"], 100), _three(row["efficiency"], 100)]
        layout = [f"`{row['layout']}`"] if "layout" in row else []
        cells.append([f"{row['devices']:,}", cores, *bands, "100", *layout])
    return _rows(head, cells)


def trials(record: dict[str, Any]) -> str:
    """Return the tables of errors on published runs."""
    head = "{}|runs held out|mean error / %|worst / %|constant: mean / %|worst / %|better"
    tables = []
    for title, name in (("calibrated on Megatron 2021, tried on", "blind"), ("calibrated on the smallest run of", "scaling")):
        rows = []
        for key, trial in record["trials"][name].items():
            numbers = [trial[x] for x in ("mean", "worst", "constant_mean", "constant_worst")]
            better = "projector" if trial["mean"] < trial["constant_mean"] else "**constant**"
            rows.append([f"`{key}`", str(trial["runs"]), *(f"{100 * x:.1f}" for x in numbers), better])
        tables.append(_rows(head.format(title), rows))
    low, high = record["trials"]["gemm"]
    return (
        "\n\n".join(tables)
        + f"\n\nWith half of the overlap, published runs reach {low:.2f} to {high:.2f} of the peak in products."
    )


TABLES = {"compiled": compiled, "collectives": collectives, "projected": projected, "trials": trials}


def filled(page: str, record: dict[str, Any]) -> str:
    """Return the page with its tables made anew.

    Raises:
        ValueError: a pair of markers is not there, once.
    """
    for name, table in TABLES.items():
        text = f"<!-- {name} begin -->\n{table(record)}\n<!-- {name} end -->"
        page, count = re.subn(rf"<!-- {name} begin -->.*?<!-- {name} end -->", lambda _, text=text: text, page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the page needs one pair of markers {name}")
    return page


def main() -> int:
    """Rewrite the page, or compare it with what would be written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail when the page is stale")
    check = parser.parse_args().check
    path = ROOT / PAGE
    text = path.read_text()
    new = filled(text, json.loads((ROOT / "bench" / "train" / "plan.json").read_text()))
    if new != text and check:
        print(f"stale table in {PAGE}: run python tools/make_scaling.py")
    elif new != text:
        path.write_text(new)
    return int(check and new != text)


if __name__ == "__main__":
    raise SystemExit(main())
