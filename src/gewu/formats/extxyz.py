"""Read and write extended xyz: frames of atoms with the cell and named columns, positions in angstrom.

A frame is a line with the number of atoms, a comment line of key=value pairs (`Lattice` holds the nine numbers of the vectors,
`Properties` names the columns as name:type:width), and one line for each atom. Numbers are written so that they read back equal.
Reference: the extxyz specification (libAtoms), github.com/libAtoms/extxyz.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.formats.elements import ATOMIC_NUMBER
from gewu.formats.numbers import integer, read_whole_text, real, reals
from gewu.formats.packed import Record, opened
from gewu.formats.structure import MAX_ATOMS, Structure

LIMIT_BYTES = 500_000_000
SYMBOL: Final = {number: symbol for symbol, number in ATOMIC_NUMBER.items()}
_ROW_BYTES: Final = 1 << 20
_TRUTH: Final = {"T": True, "F": False, "True": True, "False": False, "TRUE": True, "FALSE": False}  # fmt: skip
_PAIR = re.compile(r"""\s*([A-Za-z_][\w.\-]*)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|\{([^}]*)\}|([^\s"'{}]+)))?(?=\s|$)""")
_PROPERTIES = re.compile(r"(\w+):([SRIL]):(\d{1,3})(?::|$)", re.ASCII)


def _pairs(row: str, file: str, line: int) -> dict[str, str]:
    """Return the key=value pairs of a comment line; a bare key means "T"."""
    pairs: dict[str, str] = {}
    at = 0
    row = row.rstrip()
    while at < len(row):
        found = _PAIR.match(row, at)
        if found is None:
            raise InputError("key=value pairs expected", file=file, line=line, value=row[at:])
        key, value = found.group(1), next((text for text in found.groups()[1:] if text is not None), "T")
        if key.lower() in map(str.lower, pairs):
            raise InputError("key stands twice", file=file, line=line, key=key)
        pairs[key], at = value, found.end()
    return pairs


def read_extxyz(path: str | Path) -> list[Structure]:
    """Read every frame of an extended xyz file.

    Args:
        path: the file, at most 500 MB.

    Returns:
        The frames in order, at least one.

    Raises:
        InputError: with file and line, for damaged files and structures that cannot be computed.
    """
    file, found = str(path), []
    for line, values in frames(read_whole_text(path, LIMIT_BYTES).splitlines(), file):
        if isinstance(values, InputError):
            raise values
        cell = values.get("cell", np.zeros((3, 3)))
        if abs(np.linalg.det(cell)) < 1e-12:
            hint = "nine numbers of Lattice are needed"
            raise InputError("cell has no volume", file=file, line=line + 1, key="Lattice", value=cell.tolist(), hint=hint)
        if not values["pbc"].all():
            raise InputError("structure is not periodic", file=file, line=line + 1, key="pbc", allowed="T T T")
        frac = np.asarray(np.linalg.solve(cell.T, values["positions"].T).T, dtype=np.float64)
        symbols = tuple(SYMBOL[number] for number in values["numbers"].tolist())
        found.append(Structure(cell, symbols, frac, str(values.get("title", "")), file))
    if not found:
        raise InputError("holds no frame", file=path)
    return found


def _value(text: str) -> Any:
    """Return what the text of a pair means: truth value, integer, real, array of reals or truth values, or the text itself."""
    words = text.replace("[", " ").replace("]", " ").replace(",", " ").split()
    if words and all(word in _TRUTH for word in words):
        return _TRUTH[words[0]] if len(words) == 1 else np.array([_TRUTH[word] for word in words])
    try:
        numbers = [real(word) for word in words]
    except InputError:
        return text
    if len(words) == 1 and words[0].lstrip("+-").isdigit() and len(words[0]) < 19:
        return int(words[0])
    return numbers[0] if len(numbers) == 1 else np.array(numbers) if numbers else text


def _truth(word: str, *, file: str, line: int, key: str) -> bool:
    if word not in _TRUTH:
        raise InputError("not a truth value", file=file, line=line, key=key, value=word, allowed="T or F")
    return _TRUTH[word]


def _table(rows: list[list[str]], properties: str, file: str, line: int) -> dict[str, Any]:
    """Return the columns of a frame by name: arrays of n numbers, or of n rows of them; texts as lists."""
    columns = [(name, kind, int(width)) for name, kind, width in _PROPERTIES.findall(properties)]
    total = sum(width for _, _, width in columns)
    if "".join(found.group(0) for found in _PROPERTIES.finditer(properties)) != properties or not all(w for _, _, w in columns):
        raise InputError("columns not understood", file=file, line=line, key="Properties", value=properties)
    for k, row in enumerate(rows, start=1):
        if len(row) != total:
            raise InputError("wrong number of columns", file=file, line=line + k, value=" ".join(row), allowed=str(total))
    table, at = {}, 0
    for name, kind, width in columns:
        values: Any = [row[at : at + width] for row in rows]
        if kind == "R":
            values = reals("\n".join(map(" ".join, values)), file=file, line=line + 1, key=name).reshape(len(rows), width)
        elif kind != "S":
            parse: Any = integer if kind == "I" else _truth
            numbered = enumerate(values, start=line + 1)
            values = np.array([[parse(word, file=file, line=k, key=name) for word in row] for k, row in numbered])
        table[name] = values if width > 1 else [row[0] for row in values] if kind == "S" else values[:, 0]
        at += width
    return table


def _values(lines: list[str], n: int, file: str, line: int) -> dict[str, Any]:
    """Return what the comment line and the rows of a frame say."""
    pairs = _pairs(lines[0], file, line)
    values = {key: _value(text) for key, text in pairs.items() if key.lower() not in ("properties", "lattice", "pbc")}
    values = {key: v.reshape(3, 3) if getattr(v, "shape", None) == (9,) else v for key, v in values.items()}
    low = {key.lower(): text for key, text in pairs.items()}
    columns = low.get("properties", "species:S:1:pos:R:3")
    if "species:S:1" not in columns or "pos:R:3" not in columns:
        raise InputError("species:S:1 and pos:R:3 are needed", file=file, line=line, key="Properties", value=columns)
    table = _table([row.split() for row in lines[1:]], columns, file, line)
    for k, symbol in enumerate(table["species"], start=1):
        if symbol not in ATOMIC_NUMBER:
            raise InputError("unknown element", file=file, line=line + k, value=symbol)
    cell = reals(low.get("lattice", ""), file=file, line=line, key="Lattice")
    pbc = [_TRUTH.get(word) for word in low.get("pbc", "T T T" if len(cell) else "F F F").split()]
    if len(cell) not in (0, 9) or len(pbc) != 3 or None in pbc:
        raise InputError("nine numbers of Lattice and three of pbc expected", file=file, line=line, value=lines[0])
    numbers = np.array([ATOMIC_NUMBER[symbol] for symbol in table.pop("species")], np.int32)
    known = {"numbers": numbers, "positions": table.pop("pos"), "pbc": np.array(pbc)}
    return known | ({"cell": cell.reshape(3, 3)} if len(cell) else {}) | table | values


def frames(rows: Iterable[str], file: str) -> Iterator[tuple[int, dict[str, Any] | InputError]]:
    """Yield every frame of a training set or trajectory as (line, values by name); molecules without a cell are allowed.

    Args:
        rows: the lines of the file, read one frame at a time.
        file: its name, for errors.

    Returns:
        `numbers` int32[n], `positions` float64[n,3] in angstrom, `pbc` bool[3], `cell` float64[3,3] when there is a `Lattice`,
        and every other column and pair under its own name; nine numbers become [3,3] (stress, virial). In place of a frame with
        something wrong in it comes the error.

    Raises:
        InputError: with file and line, where the next frame cannot be found.
    """
    numbered = enumerate(rows, start=1)
    for line, row in numbered:
        if not row.strip():
            continue
        n = integer(row.strip(), file=file, line=line, key="number of atoms")
        lines = [row for _, row in islice(numbered, n + 1)] if 1 <= n <= MAX_ATOMS else []
        if len(lines) < n + 1 or n < 1:
            hint = "the file may be truncated"
            raise InputError("frame has fewer lines than atoms", file=file, line=line, key="number of atoms", value=n, hint=hint)
        values: dict[str, Any] | InputError
        try:
            values = _values(lines, n, file, line + 1)
        except InputError as error:
            values = error
        yield line, values


def records(path: str) -> Iterator[Record]:
    """Yield every frame of a file, as `frames` does."""
    with opened(path) as stream:
        rows = (row.decode() for row in iter(lambda: stream.readline(_ROW_BYTES), b""))
        for line, values in frames(rows, path):
            yield (str(values), "damaged-frame") if isinstance(values, InputError) else (f"{path}:{line}", values)


def frame_bytes(values: Mapping[str, Any], columns: Collection[str]) -> bytes:
    """Return a frame as `frames` yields it; values named in `columns` stand in the rows of the atoms, the others above."""
    tables = {"species": [[SYMBOL[z]] for z in values["numbers"].tolist()], "pos": values["positions"].tolist()}
    properties = "species:S:1:pos:R:3"
    for name in columns:
        array = np.asarray(values[name])
        tables[name] = [[_word(x) for x in row] for row in array.reshape(len(array), -1).tolist()]
        properties += f":{name}:{ {'f': 'R', 'i': 'I', 'u': 'I', 'b': 'L'}.get(array.dtype.kind, 'S') }:{len(tables[name][0])}"
    pairs = {"Lattice": values["cell"]} if values.get("cell") is not None else {}
    pairs |= {"Properties": properties, "pbc": values["pbc"]}
    pairs |= {k: v for k, v in values.items() if k not in (*columns, "numbers", "positions", "cell", "pbc") and v is not None}
    words = {name: " ".join(map(_word, np.ravel(value).tolist())) for name, value in pairs.items()}
    head = " ".join(
        f"{name}={word}" if re.fullmatch(r"[^\s\"'{}]+", word) else f'{name}="{word}"' for name, word in words.items()
    )
    rows = [" ".join(_word(x) for part in row for x in part) for row in zip(*tables.values(), strict=True)]
    return "\n".join([str(len(rows)), head, *rows, ""]).encode()


def _word(value: Any) -> str:
    return "FT"[value] if isinstance(value, bool) else value if isinstance(value, str) else repr(value)


def extxyz_bytes(
    frames: Sequence[Structure],
    numbers: Sequence[Mapping[str, float]] = (),
    columns: Sequence[Mapping[str, np.ndarray]] = (),
) -> bytes:
    """Return frames as extended xyz.

    Args:
        frames: the structures.
        numbers: for each frame named numbers for its comment line (such as {"energy_ev": -1.0}), or nothing.
        columns: for each frame named columns (n,) or (n, k) of reals (such as {"forces": ...} in eV/angstrom), or nothing.

    Returns:
        UTF-8 text; positions and cell read back equal to the last digit of a double.
    """
    parts = []
    for index, frame in enumerate(frames):
        extra = {name: np.asarray(table, dtype=np.float64).reshape(len(frame.symbols), -1) for name, table in
                 (columns[index] if columns else {}).items()}  # fmt: skip
        kinds = "".join(f":{name}:R:{table.shape[1]}" for name, table in extra.items())
        lattice = " ".join(repr(float(x)) for x in frame.cell_angstrom.ravel())
        title = re.sub(r"[^ -~]|[\"\\]", " ", frame.title)
        comment = f'Lattice="{lattice}" Properties=species:S:1:pos:R:3{kinds} pbc="T T T"' + (
            f' title="{title}"' if title else ""
        )
        comment += "".join(f" {name}={float(value)!r}" for name, value in (numbers[index] if numbers else {}).items())
        parts += [str(len(frame.symbols)), comment]
        table = np.hstack([frame.positions_angstrom, *extra.values()])
        for symbol, row in zip(frame.symbols, table, strict=True):
            parts.append(" ".join([symbol, *(repr(float(x)) for x in row)]))
    return ("\n".join(parts) + "\n").encode()
