"""The page on 10¹¹ samples: measured figures, and what they are multiplied to."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("make_data_scale", ROOT / "tools" / "make_data_scale.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_are_multiplied_and_absent_ones_said(tool: Any) -> None:
    record = {"case": "catalogue", "ours": 13.0, "accuracy": {"half_rows_per_s": 1e8}, "machine": "2 × X", "commit": "abc"}
    cold = {"case": "random-100k", "ours": 5e4, "accuracy": {"cold": {"gewu": 1000}}, "machine": "2 × X", "commit": "abc"}
    page = tool.filled("before\n<!-- scale begin -->\nold\n<!-- scale end -->\nafter", [record, cold])
    assert page.startswith("before\n<!-- scale begin -->\n| | case") and page.endswith("<!-- scale end -->\nafter")
    assert "| catalogue parts, plausible columns | `catalogue` | 13 B/sample | 10¹¹ samples | 1.3 TB |" in page
    assert "| … that selects half | `catalogue` | 1e+08 rows/s | 10¹¹ rows | 16.7 minutes |" in page  # 1000 s
    assert "| random reads of 100 kB, warm | `random-100k` | 5e+04 samples/s | 10¹¹ samples | 23.1 core-days |" in page
    assert "| … cold, this machine's disk | `random-100k` | 1e+03 samples/s | 10¹¹ samples | 1.16e+03 core-days |" in page
    assert "| manifest | `catalogue` | not recorded yet | 10⁶ shards |  |" in page and page.count("Measured on 2 × X") == 1
    assert tool.filled(page, [record, cold]) == page
    with pytest.raises(ValueError, match="markers"):
        tool.filled("no markers", [])


def test_the_page_has_its_table(tool: Any) -> None:
    page = (ROOT / tool.PAGE).read_text()
    assert tool.filled(page, []).count("not recorded yet") == len(tool.ROWS)
