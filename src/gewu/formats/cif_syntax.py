"""The syntax of CIF 1.1: data blocks, items, loops, quoted strings, text fields, comments.

Names are compared in lower case; in those of the structure dots become underscores, so `_atom_site.fract_x` of newer
dictionaries is `_atom_site_fract_x`.
Reference: International Tables for Crystallography, volume G, chapter 2.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gewu.core.errors import InputError

_WORD = re.compile(r"\S+")
MAX_VALUES = 5_000_000
_STRUCTURE = ("_atom_site.", "_cell.", "_space_group", "_symmetry", "_chemical_formula.", "_chemical_name.", "_chemical.")


@dataclass(frozen=True, slots=True)
class Value:
    """One value: its text, the 1-based line it starts at, and whether it was quoted."""

    text: str
    line: int
    quoted: bool = False

    @property
    def unknown(self) -> bool:
        """Whether the value is `?` (unknown) or `.` (not applicable)."""
        return not self.quoted and self.text in ("?", ".")


Block = dict[str, list[Value]]


def _quoted(row: str, at: int) -> tuple[str, int]:
    """Return the string quoted at column `at` and the column after it.

    It ends at its quote before a blank or the end of the line; without one it is the rest of the line, which is what the authors
    of many published files meant. Strings never go on in the next line.
    """
    end = at + 1
    while (end := row.find(row[at], end)) >= 0:
        if end + 1 == len(row) or row[end + 1].isspace():
            return row[at + 1 : end], end + 1
        end += 1
    return row[at + 1 :].rstrip(), len(row)


def _tokens(text: str, file: str) -> Iterator[Value]:
    """Yield the words, quoted strings and text fields of the file."""
    rows = text.split("\n")
    number = 0
    while number < len(rows):
        row, number = rows[number], number + 1
        if row.startswith(";"):
            first, parts = number, [row[1:]]
            while number < len(rows) and not rows[number].startswith(";"):
                parts.append(rows[number])
                number += 1
            if number == len(rows):
                raise InputError("text field does not end", file=file, line=first, hint="the file may be truncated")
            yield Value("\n".join(parts), first, quoted=True)
            row, number = " " + rows[number][1:], number + 1
        at = 0
        while found := _WORD.search(row, at):
            at = found.start()
            if row[at] == "#":
                break
            if row[at] in "'\"":
                word, at = _quoted(row, at)
                yield Value(word, number, quoted=True)
            else:
                at = found.end()
                yield Value(found.group(), number)


def _store(block: Block, tag: Value, values: list[Value], file: str) -> None:
    """Put the values of an item into the block; an item may stand once."""
    name = tag.text.lower()
    name = name.replace(".", "_") if name.startswith(_STRUCTURE) else name
    if name in block:
        raise InputError("item stands twice in a data block", file=file, line=tag.line, key=tag.text)
    block[name] = values


def _close_loop(block: Block, tags: list[Value], values: list[Value], file: str) -> None:
    """Deal the values of a finished loop out to its columns."""
    if not tags or not values or len(values) % len(tags):
        line = values[-1].line if values else (tags[-1].line if tags else None)
        names = ", ".join(tag.text for tag in tags[:3])
        raise InputError("loop is not complete", file=file, line=line, key=names or "loop_", value=f"{len(values)} values")
    for column, tag in enumerate(tags):
        _store(block, tag, values[column :: len(tags)], file)


def parse_cif(text: str, file: str) -> list[tuple[str, Block]]:
    """Return the data blocks of a CIF text in order, as (name, {item: values}).

    Raises:
        InputError: with the line, where the syntax is broken.
    """
    blocks: list[tuple[str, Block]] = []
    tags: list[Value] | None = None
    values: list[Value] = []
    item: Value | None = None

    def close(line: int) -> None:
        nonlocal tags, values
        if item is not None:
            raise InputError("item has no value", file=file, line=line, key=item.text)
        if tags is not None:
            _close_loop(blocks[-1][1], tags, values, file)
        tags, values = None, []

    for count, token in enumerate(_tokens(text, file)):
        if count > MAX_VALUES:
            raise InputError("too many values", file=file, line=token.line)
        word = "" if token.quoted else token.text.lower()
        if word.startswith("data_"):
            close(token.line)
            blocks.append((token.text[5:], {}))
        elif word.startswith("save_") or word in ("stop_", "global_"):
            raise InputError("dictionary syntax is not supported", file=file, line=token.line, value=token.text)
        elif not blocks:
            raise InputError(
                "text before the first data block", file=file, line=token.line, value=token.text, allowed="data_NAME"
            )
        elif word == "loop_":
            close(token.line)
            tags = []
        elif word.startswith("_"):
            if tags is not None and not values:
                tags.append(token)
            else:
                close(token.line)
                item = token
        elif item is not None:
            _store(blocks[-1][1], item, [token], file)
            item = None
        elif tags:
            values.append(token)
        else:
            raise InputError("value without an item", file=file, line=token.line, value=token.text)
    if blocks:
        close(text.count("\n") + 1)
    return blocks
