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
_ROW_BYTES: Final = 1 << 20
_TRUTH: Final = {"T": True, "F": False, "True": True, "False": False, "TRUE": True, "FALSE": False}
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


def _columns(text: str, file: str, line: int) -> tuple[int, int, int]:
    """Return the columns of species and of the first coordinate, and the number of columns."""
    at, total = 0, 0
    species = position = -1
    while at < len(text):
        found = _PROPERTIES.match(text, at)
        if found is None or int(found.group(3)) < 1:
            raise InputError(
                "columns not understood", file=file, line=line, key="Properties", value=text, allowed="name:type:width"
            )
        shape = (found.group(2), int(found.group(3)))
        if found.group(1) == "species" and shape == ("S", 1):
            species = total
        elif found.group(1) == "pos" and shape == ("R", 3):
            position = total
        total, at = total + int(found.group(3)), found.end()
    if species < 0 or position < 0:
        raise InputError("species:S:1 and pos:R:3 are needed", file=file, line=line, key="Properties", value=text)
    return species, position, total


def _frame(rows: list[str], at: int, file: str) -> tuple[Structure, int]:
    """Return the frame that starts at row `at` (0-based) and the row after it."""
    n = integer(rows[at].strip(), file=file, line=at + 1, key="number of atoms")
    if not 1 <= n <= MAX_ATOMS or at + 2 + n > len(rows):
        hint = "the file may be truncated"
        raise InputError("frame has fewer lines than atoms", file=file, line=at + 1, key="number of atoms", value=n, hint=hint)
    line = at + 2
    pairs = {key.lower(): value for key, value in _pairs(rows[at + 1], file, line).items()}
    lattice = reals(pairs.get("lattice", ""), file=file, line=line, key="Lattice")
    if len(lattice) != 9:
        raise InputError("nine numbers expected", file=file, line=line, key="Lattice", value=pairs.get("lattice", ""))
    if any(word.upper() not in ("T", "TRUE", "1") for word in pairs.get("pbc", "T T T").split()):
        raise InputError("structure is not periodic", file=file, line=line, key="pbc", value=pairs["pbc"], allowed="T T T")
    species, position, total = _columns(pairs.get("properties", "species:S:1:pos:R:3"), file, line)
    symbols, positions = [], np.zeros((n, 3))
    for atom in range(n):
        number = at + 2 + atom
        words = rows[number].split()
        if len(words) != total:
            raise InputError("wrong number of columns", file=file, line=number + 1, value=rows[number], allowed=str(total))
        if words[species] not in ATOMIC_NUMBER:
            raise InputError("unknown element", file=file, line=number + 1, value=words[species])
        symbols.append(words[species])
        positions[atom] = [real(word, file=file, line=number + 1, key="pos") for word in words[position : position + 3]]
    cell = lattice.reshape(3, 3)
    if abs(np.linalg.det(cell)) < 1e-12:
        raise InputError("cell has no volume", file=file, line=line, key="Lattice")
    frac = np.asarray(np.linalg.solve(cell.T, positions.T).T, dtype=np.float64)
    return Structure(cell, tuple(symbols), frac, pairs.get("title", ""), file), at + 2 + n


def read_extxyz(path: str | Path) -> list[Structure]:
    """Read every frame of an extended xyz file.

    Args:
        path: the file, at most 500 MB.

    Returns:
        The frames in order, at least one.

    Raises:
        InputError: with file and line, for damaged files and structures that cannot be computed.
    """
    rows = read_whole_text(path, LIMIT_BYTES).split("\n")
    while rows and not rows[-1].strip():
        rows.pop()
    frames, at = [], 0
    while at < len(rows):
        frame, at = _frame(rows, at, str(path))
        frames.append(frame)
    if not frames:
        raise InputError("holds no frame", file=path)
    return frames


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


def _table(rows: list[list[str]], properties: str, file: str, line: int) -> dict[str, Any]:
    """Return the columns of a frame by name: arrays of n numbers, or of n rows of them; texts as lists."""
    if "".join(match.group(0) for match in _PROPERTIES.finditer(properties)) != properties:
        raise InputError("columns not understood", file=file, line=line, key="Properties", value=properties)
    table, at = {}, 0
    for name, kind, text in _PROPERTIES.findall(properties):
        width = int(text)
        cells: Any = [row[at : at + width] for row in rows]
        if any(len(row) != width for row in cells) or not width:
            raise InputError("a row has too few columns", file=file, line=line, key="Properties", value=properties)
        try:
            if kind == "L":
                cells = [[_TRUTH[word] for word in row] for row in cells]
            values = np.array(cells, None if kind in "SL" else "U").astype({"R": float, "I": int}.get(kind, "O"))
            if kind == "R" and not np.isfinite(values).all():
                raise ValueError("not finite")
        except (KeyError, ValueError, OverflowError) as error:
            raise InputError(f"a number is wrong: {error}", file=file, line=line, key=name) from None
        values = values[:, 0] if width == 1 else values
        table[name] = values.tolist() if kind == "S" else values.astype(bool) if kind == "L" else values
        at += width
    return table


def _values(lines: list[str], n: int, file: str, line: int) -> dict[str, Any]:
    """Return what the comment line and the rows of a frame say."""
    pairs = _pairs(lines[0], file, line)
    values = {key: _value(text) for key, text in pairs.items() if key.lower() not in ("properties", "lattice", "pbc")}
    values = {key: v.reshape(3, 3) if getattr(v, "shape", None) == (9,) else v for key, v in values.items()}
    low = {key.lower(): text for key, text in pairs.items()}
    columns = low.get("properties", "species:S:1:pos:R:3")
    table = _table([row.split() for row in lines[1:]], columns, file, line)
    if getattr(table.get("pos"), "shape", None) != (n, 3) or not set(table.get("species", ".")) <= set(ATOMIC_NUMBER):
        raise InputError("pos:R:3 and species:S:1 of elements are needed", file=file, line=line, value=columns)
    cell = reals(low.get("lattice", ""), file=file, line=line, key="Lattice")
    pbc = _value(low.get("pbc", "T T T" if len(cell) else "F F F"))
    if len(cell) not in (0, 9) or getattr(pbc, "shape", None) != (3,) or pbc.dtype != bool:
        raise InputError("nine numbers of Lattice and three of pbc expected", file=file, line=line, value=lines[0])
    numbers = np.array([ATOMIC_NUMBER[symbol] for symbol in table.pop("species")], np.int32)
    known = {"numbers": numbers, "positions": table.pop("pos"), "pbc": pbc}
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
    symbols = {number: symbol for symbol, number in ATOMIC_NUMBER.items()}
    tables = {"species": [[symbols[z]] for z in values["numbers"].tolist()], "pos": values["positions"].tolist()}
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
