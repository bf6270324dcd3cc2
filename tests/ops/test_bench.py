"""Records of bench/ops and the table that is made of them."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench.ops import bench
from bench.run import EXTRA, KEYS

ROOT = Path(__file__).resolve().parents[2]


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_operators", ROOT / "tools" / "make_operators.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(ours: float, error: float = 1e-7, right: bool = True, status: str = "lifted") -> dict[str, Any]:
    answer = {"error": error, "right": right, "cold": 0.5, "status": status}
    times = {"torch": [3.0, 2.0, 4.0], "hand": [5.0, 5.0, 5.0], **({"ptx": [ours] * 3} if right else {})}
    return {"found": {"ptx": answer}, "times": times}


def made(**sizes: dict[str, Any]) -> dict[str, Any]:
    checks = {
        "ptx": {"warp": {"error": 2e-7, "right": True, "status": "lifted"}, "naive": {"missing": "no", "status": "refused"}}
    }
    return bench._record("softmax", "migrate/source", sizes, checks, 3)


def test_record_quotes_the_worst_size_against_the_fastest_peer() -> None:
    found = made(small=measured(1.5), medium=measured(6.0), large=measured(3.0))
    assert (found["ratio"], found["best"], found["ours"], found["theirs"]) == (0.5, "torch", 6.0, 3.0)
    assert found["ratios"] == {"small": 2.0, "medium": 0.5, "large": 1.0}
    assert found["status"] == "lifted"
    assert found["accuracy"] == {"error": 2e-7}
    assert found["styles"]["ptx"]["naive"] == {"status": "refused", "reason": "no"}
    assert set(found) | {"machine", "commit"} == set(KEYS) | set(EXTRA)


def test_one_size_that_fell_back_decides_the_status() -> None:
    assert made(small=measured(1.0), medium=measured(1.0, status="spmd"), large=measured(1.0))["status"] == "spmd"


def test_a_wrong_result_has_no_speed() -> None:
    found = made(small=measured(1.0), medium=measured(1.0, error=0.1, right=False), large=measured(1.0))
    assert (found["status"], found["ratio"]) == ("wrong", 0.0)


def test_a_size_without_our_time_has_no_speed() -> None:
    failed = {"found": {"ptx": {"missing": "died"}}, "times": {"torch": [1.0] * 3}}
    found = made(small=measured(1.0), medium=failed, large=measured(1.0))
    assert (found["status"], found["ratio"], found["reason"]) == ("failed", 0.0, "died")


def test_unknown_cases_are_named() -> None:
    options = argparse.Namespace(case=["migrate/source/frobnicate"], repeats=1)
    with pytest.raises(ValueError, match="frobnicate"):
        bench.run(options)


def test_table_counts_and_averages() -> None:
    shared = {"machine": "m", "commit": "c"}
    slow = {**made(small=measured(6.0), medium=measured(6.0), large=measured(6.0)), **shared}
    fast = {**made(small=measured(1.5), medium=measured(1.5), large=measured(1.5)), **shared, "case": "migrate/source/sum"}
    text = tool().table([slow, fast])
    assert "| softmax | warp | lifted (refused) |  |  | 2.0e-07 | 0.50 |" in text
    assert "from source: 2 of 2 classes right (2 lifted); 1 at 0.8 or more; geometric mean 1.00." in text


def test_processors_have_a_column_each() -> None:
    outcomes = {"aarch64": {"status": "right", "error": 2e-7}, "gfx942": {"status": "made"}}
    found = {"class": "sum", "kernel": "sum_warp", "ways": {"tiny": "spmd", "small": "lifted"}, "targets": outcomes}
    text = tool().processors({"machine": "m", "versions": {"qemu": "7.2"}, "commit": "c", "classes": [found]})
    assert "| class | kernel | as | aarch64 | gfx942 |" in text
    assert "| sum | warp | spmd, lifted | right 2e-07 | made |" in text
    assert "- aarch64: 1 right.\n- gfx942: 1 made." in text


def test_page_needs_its_markers() -> None:
    with pytest.raises(ValueError, match="markers"):
        tool().filled("# Operators\n", "operators", "text")
    page = tool().filled(tool().EMPTY, "operators", tool().table([]))
    assert "No figures are recorded yet" in page
    assert tool().filled(page, "operators", tool().table([])) == page
    assert "No objects are recorded yet" in tool().filled(page, "processors", tool().processors({}))
