"""The line budget of `budget.toml`: rooms by code lines, files and functions by raw lines."""

from __future__ import annotations

import ast
import io
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUDGET = tomllib.loads((ROOT / "budget.toml").read_text())
LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def code_lines(source: str) -> int:
    """Return the number of lines that hold code: no blank lines, comments or docstrings."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False):
            docstrings.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def long_functions(source: str, limit: int) -> list[str]:
    """Return the functions of `source` that are longer than `limit` raw lines."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    sizes = ((node.name, node.lineno, (node.end_lineno or 0) - node.lineno + 1) for node in functions)
    return [f"{name} (line {line}): {size} lines" for name, line, size in sizes if size > limit]


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "src" / "gewu").parts[:-1]
    return "/".join(parts[:2] if parts[:1] == ("physics",) else parts[:1]) or "roof"


def sources() -> list[Path]:
    found = (path for folder in ("src", "tests", "bench", "tools") for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in found if "work" not in path.relative_to(ROOT).parts)  # peers that a benchmark installed


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= BUDGET["limits"]["file_lines"]
    assert long_functions(source, BUDGET["limits"]["function_lines"]) == []


def test_rooms_stay_within_their_budget() -> None:
    used: dict[str, int] = {}
    for path in sorted((ROOT / "src" / "gewu").rglob("*.py")):
        used[room(path)] = used.get(room(path), 0) + code_lines(path.read_text())
    over = {name: (lines, BUDGET["rooms"].get(name, 0)) for name, lines in used.items() if lines > BUDGET["rooms"].get(name, 0)}
    assert over == {}, f"(code lines, budget) of rooms over budget; all rooms: {used}"


def test_the_counters_count() -> None:
    source = '"""Doc\nstring."""\n\nx = 1  # why\n# comment\n\n\ndef f():\n    """Doc."""\n    return """a\nb"""\n'
    assert code_lines(source) == 4  # x = 1, def f, and two lines of the returned string
    assert long_functions(source, 3) == ["f (line 8): 4 lines"]
    assert long_functions(source, 4) == []
