"""SQL from users over Parquet files, behind two locked doors; and conditions on files turned into conditions on their extremes.

The text is parsed first. A query must be one SELECT on the tables it is given; a condition must be one expression of the columns,
without subqueries, and with functions only of values, so that it gives the same answer every time. Besides, DuckDB is locked: it
may read files of some folders and no other, load nothing, and keep its settings. Needs DuckDB 2.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gewu.core.errors import InputError, ResourceError, did_you_mean

_LONGEST: Final = 10_000
_FRAME: Final = "SELECT 1 FROM samples WHERE (\n{}\n)"
_STEADY: Final = (
    "SELECT 1 FROM duckdb_functions() WHERE function_name = ? AND function_type = 'scalar' AND stability = 'CONSISTENT'"
)
_CLASSES: Final = {
    "BETWEEN",
    "CASE",
    "CAST",
    "COLLATE",
    "COLUMN_REF",
    "COMPARISON",
    "CONJUNCTION",
    "CONSTANT",
    "OPERATOR",
    "TYPE",
}
_TABLE_FUNCTIONS: Final = ("range", "generate_series", "unnest")
_SIGNS: Final = {"EQUAL": "=", "LESSTHAN": "<", "LESSTHANOREQUALTO": "<=", "GREATERTHAN": ">", "GREATERTHANOREQUALTO": ">="}


class LockedSql:
    """A DuckDB that can read the files of some folders and do nothing else.

    Attributes:
        execute: runs a statement of ours; what a user wrote goes through `query` or `condition` first.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        import duckdb

        self.execute = duckdb.connect(config={f"auto{do}_known_extensions": "false" for do in ("load", "install")}).execute
        allowed = ", ".join("'" + f"{folder.resolve()}/".replace("'", "''") + "'" for folder in folders)
        for setting in (f"allowed_directories = [{allowed}]", "temp_directory = ''", "python_enable_replacements = false"):
            self.execute(f"SET {setting}")
        self.execute("SET enable_external_access = false")
        self.execute("SET lock_configuration = true")

    @contextmanager
    def refusing(self, text: str, columns: Collection[str]) -> Iterator[None]:
        """Turn errors of DuckDB into ours, which blame the text: the files are known to be whole."""
        import duckdb

        try:
            yield
        except duckdb.OutOfMemoryException as error:
            raise ResourceError(str(error).splitlines()[0], value=text) from None
        except duckdb.Error as error:
            raise InputError(str(error).splitlines()[0], value=text, allowed="columns " + ", ".join(columns)) from None

    def _parse(self, text: str, frame: str = "{}") -> Any:
        if len(text) > _LONGEST:  # DuckDB takes minutes and all memory for some ten thousand terms
            raise InputError("is too long", value=text, allowed=f"{_LONGEST} characters")
        tree = json.loads(self.execute("SELECT json_serialize_sql(?)", [frame.format(text)]).fetchone()[0])
        if tree["error"] or len(tree["statements"]) != 1:
            raise InputError(f"is not one query: {tree.get('error_message', 'there are several')}", value=text)
        return tree["statements"][0]["node"]

    def query(self, text: str, tables: Sequence[str]) -> None:
        """Refuse what is not one SELECT on some tables.

        Raises:
            InputError: it is not.
        """
        nodes = list(_nodes(self._parse(text)))
        known = {*tables, *(entry["key"].lower() for node in nodes for entry in node.get("cte_map", {}).get("map", ()))}
        for node in nodes:
            function = node.get("type") == "TABLE_FUNCTION"
            name = node["function"]["function_name"] if function else node.get("table_name", "")
            if name and (name.lower() not in (_TABLE_FUNCTIONS if function else known) or node.get("schema_name")):
                raise InputError("no such table", value=name, allowed=", ".join((*tables, *_TABLE_FUNCTIONS)))

    def condition(self, text: str, columns: Mapping[str, str]) -> str:
        """Refuse what is not one condition on columns; return one on their extremes.

        Args:
            text: for example "language = 'de' and quality > 0.5"; columns may be written as those of `samples`.
            columns: Arrow types of the columns by name; "" for one whose extremes are not known.

        Returns:
            A condition on the columns `min.NAME` and `max.NAME`, and `values.NAME` (a list or NULL) of a text, which holds
            wherever `text` can hold for a row; "true" where nothing is known.

        Raises:
            InputError: it is not such a condition; a column that does not exist is named.
        """
        frame, found = self._parse("true", _FRAME), self._parse(text, _FRAME)
        if frame | {"where_clause": None} != found | {"where_clause": None}:
            raise InputError("is not one condition", value=text)
        lower = {name.lower(): kind for name, kind in columns.items()}
        for node in _nodes(found["where_clause"]):
            kind = node.get("class", "TYPE")
            if kind not in _CLASSES and not self.execute(_STEADY, [node.get("function_name")]).fetchone():
                hint = "only functions of values are: for one row in a hundred write hash % 100 = 7"
                raise InputError("cannot be part of a condition", value=node.get("function_name", kind.lower()), hint=hint)
            if kind == "COLUMN_REF" and (name := node["column_names"][-1]).lower() not in lower:
                allowed, near = ", ".join(columns), did_you_mean(name, columns)
                raise InputError("no such column", key=name, value=text, allowed=allowed, hint=near)
        return _bound(found["where_clause"], lower)


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping in a tree, parents first."""
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(child)


def _bound(node: Any, columns: Mapping[str, str]) -> str:
    kind = node["type"]
    if node["class"] == "CONJUNCTION":
        return "(" + f" {kind.removeprefix('CONJUNCTION_')} ".join(_bound(child, columns) for child in node["children"]) + ")"
    if node["class"] == "BETWEEN":
        pairs = (">=", node["lower"]), ("<=", node["upper"])
        return " AND ".join(_compared(node["input"], sign, constant, columns) for sign, constant in pairs)
    if kind == "COMPARE_IN":
        first, *others = node["children"]
        return "(" + " OR ".join(_compared(first, "=", constant, columns) for constant in others) + ")"
    if node["class"] == "COMPARISON" and (sign := _SIGNS.get(kind.removeprefix("COMPARE_"))):
        left, right, mirrored = node["left"], node["right"], sign.translate({60: 62, 62: 60})  # < and >
        return f"({_compared(left, sign, right, columns)} AND {_compared(right, mirrored, left, columns)})"
    return "true"


def _compared(column: Any, sign: str, constant: Any, columns: Mapping[str, str]) -> str:
    name, literal = column.get("column_names", [""])[-1].lower(), constant.get("literal", {"kind": "", "text": ""})
    stored, text = columns.get(name, ""), literal["text"].replace("'", "''")
    if stored == "string" and sign == "=" and literal["kind"] == "STRING":
        return f"""("values.{name}" IS NULL OR list_contains("values.{name}", '{text}'))"""
    if stored in ("", "string") or literal["kind"] not in ("INTEGER", "NUMERIC", "BOOLEAN"):
        return "true"
    if sign == "=":
        return f'("min.{name}" <= {text} AND "max.{name}" >= {text})'
    return f'"{"min" if sign[0] == "<" else "max"}.{name}" {sign} {text}'
