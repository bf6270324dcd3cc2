"""The tutorial on data sets: every command and every line of Python runs, and prints what the page says."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.faultlib import child_environment

for name in ("pyarrow", "duckdb", "PIL"):
    pytest.importorskip(name)
PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "data.md"
BLOCK = re.compile(r"^```(sh|python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
REAL = "## 5. Real text"  # its documents are fetched, its run takes half a minute


def blocks() -> list[tuple[str, str]]:
    before, _, after = PAGE.read_text(encoding="utf-8").partition(REAL)
    return BLOCK.findall(before + after.partition("\n## ")[2])


def test_the_page_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gewu").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gewu "$@"\n')
    (tmp_path / "bin" / "gewu").chmod(0o755)
    environment = child_environment() | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    known: dict[str, Any] = {}
    printed = ""
    for kind, text in blocks():
        if kind == "sh":
            subprocess.run(["sh", "-ec", text], env=environment, check=True, capture_output=True, timeout=120)
        elif kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, str(PAGE), "exec"), known)
            printed = out.getvalue()
        else:
            assert printed == text


def test_the_page_has_what_the_test_runs() -> None:
    kinds = [kind for kind, _ in blocks()]
    assert kinds.count("sh") == 3
    assert kinds.count("python") == kinds.count("text") >= 9
    for command in re.findall(r"examples/([\w-]+\.toml)", PAGE.read_text()):
        assert (PAGE.parents[2] / "examples" / command).is_file()
