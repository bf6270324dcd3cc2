"""Goedecker-Teter-Hutter pseudopotentials: the CP2K text format, and the table that comes with gewu.

One entry of the text reads

    Si GTH-PBE-q4 GTH-PBE          element, name, aliases
        2    2                     valence electrons of s, p, d, f
         0.44   1   -6.27          r_loc, number of c, c_1 ...
        2                          number of angular momenta with projectors
         0.44   2    8.95  -2.71   r_l, number p of projectors, upper triangle of h_ij row by row
                             3.49
         0.50   1    2.43

References: Goedecker, Teter & Hutter, Phys. Rev. B 54, 1703 (1996); Hartwigsen, Goedecker & Hutter, Phys. Rev. B 58, 3641
(1998); Krack, Theor. Chem. Acc. 114, 145 (2005).
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from gewu.core.errors import InputError
from gewu.formats.elements import ATOMIC_NUMBER
from gewu.formats.numbers import integer, read_whole_text, real
from gewu.formats.pseudopotential import Channel, GthPseudo

LIMIT_BYTES = 10_000_000
_SOURCE = "Goedecker-Teter-Hutter 1996, Hartwigsen-Goedecker-Hutter 1998, Krack 2005"
_FAMILY = {"pbe": "pbe", "pbesol": "pbe", "lda": "lda", "pade": "lda"}
_SPELLED = {"PBE": "pbe", "PADE": "lda", "LDA": "lda", "PBESOL": "pbesol"}


class _Tokens:
    """The words of one entry with their lines, taken one after the other."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.words: list[tuple[str, int]] = []
        self.at = 0

    def _next(self, what: str) -> tuple[str, int]:
        if self.at >= len(self.words):
            line = self.words[-1][1] if self.words else None
            raise InputError("entry ends too early", file=self.file, line=line, key=what, hint="the file may be truncated")
        self.at += 1
        return self.words[self.at - 1]

    def integer(self, what: str, low: int, high: int) -> int:
        """Take an integer between `low` and `high`."""
        word, line = self._next(what)
        value = integer(word, file=self.file, line=line, key=what)
        if not low <= value <= high:
            raise InputError("out of range", file=self.file, line=line, key=what, value=value, allowed=f"{low} to {high}")
        return value

    def real(self, what: str, limit: float = 1e5) -> float:
        """Take a number of magnitude at most `limit`."""
        word, line = self._next(what)
        value = real(word, file=self.file, line=line, key=what)
        if abs(value) > limit:
            raise InputError("out of range", file=self.file, line=line, key=what, value=value, allowed=f"magnitude to {limit:g}")
        return value

    def radius(self, what: str) -> float:
        """Take a length in bohr."""
        value = self.real(what)
        if not 0.01 <= value <= 10.0:
            line = self.words[self.at - 1][1]
            raise InputError("out of range", file=self.file, line=line, key=what, value=value, allowed="0.01 to 10 bohr")
        return value


def _entry(header: list[str], electrons: list[int], tokens: _Tokens, line: int, source: str) -> GthPseudo:
    """Build one entry from its header words, its electron counts and the words after them."""
    element, name = header[0], header[1]
    z_valence = sum(electrons)
    if not 1 <= z_valence <= ATOMIC_NUMBER[element]:
        raise InputError("valence electrons do not fit the element", file=tokens.file, line=line, key=element, value=z_valence)
    r_loc = tokens.radius("r_loc")
    c_loc = tuple(tokens.real("c_loc") for _ in range(tokens.integer("number of c_loc", 0, 4)))
    channels = []
    for angular in range(tokens.integer("number of angular momenta", 0, 5)):
        r_l, p = tokens.radius("r_l"), tokens.integer("number of projectors", 0, 4)
        h_ij = np.zeros((p, p))
        for i in range(p):
            for j in range(i, p):
                h_ij[i, j] = h_ij[j, i] = tokens.real("h_ij")
        if p:
            channels.append(Channel(angular, r_l, h_ij))
    if tokens.at != len(tokens.words):
        word, at = tokens.words[tokens.at]
        raise InputError("more numbers than the entry announces", file=tokens.file, line=at, key=name, value=word)
    return GthPseudo(element, z_valence, _functional(name), name, r_loc, c_loc, tuple(channels), source)


def _functional(name: str) -> str:
    """Return the functional that a name such as "GTH-PADE-q4" states."""
    parts = name.split("-")
    word = parts[1] if len(parts) > 1 else name
    return _SPELLED.get(word.upper(), word.lower())


def _check_valence(pseudo: GthPseudo, file: str, line: int) -> None:
    """Refuse an entry whose name states another valence ("-q4") than its electron counts add up to."""
    tail = pseudo.name.rpartition("-q")[2]
    if tail != pseudo.name and tail.isdecimal() and int(tail) != pseudo.z_valence:
        raise InputError(
            "name and electron counts disagree", file=file, line=line, key=pseudo.name, value=pseudo.z_valence, allowed=tail
        )


def parse_gth(text: str, *, source: str) -> list[tuple[GthPseudo, tuple[str, ...]]]:
    """Return every entry of a CP2K potential text with its names (the first is the entry's own).

    Raises:
        InputError: with the line, for anything the format does not allow; for NLCC entries, which gewu does not compute with.
    """
    blocks: list[tuple[int, list[str], list[int], _Tokens]] = []
    for number, row in enumerate(text.splitlines(), start=1):
        words = row.partition("#")[0].split()
        if not words:
            continue
        if words[0][0].isalpha():
            if words[0].upper() == "NLCC":
                raise InputError("core-corrected (NLCC) GTH entries are not supported", file=source, line=number)
            if words[0] not in ATOMIC_NUMBER or len(words) < 2:
                raise InputError("expected an element and the name of an entry", file=source, line=number, value=row.strip())
            blocks.append((number, words, [], _Tokens(source)))
        elif not blocks:
            raise InputError("numbers before the first entry", file=source, line=number, value=row.strip())
        elif not blocks[-1][2]:
            if len(words) > 4:
                raise InputError("more than s, p, d and f electrons", file=source, line=number, value=row.strip())
            blocks[-1][2].extend(integer(word, file=source, line=number, key="electrons") for word in words)
            if min(blocks[-1][2]) < 0:
                raise InputError("negative number of electrons", file=source, line=number, value=row.strip())
        else:
            blocks[-1][3].words.extend((word, number) for word in words)
    if not blocks:
        raise InputError("holds no GTH entry", file=source)
    entries = []
    for line, header, electrons, tokens in blocks:
        pseudo = _entry(header, electrons, tokens, line, source)
        _check_valence(pseudo, source, line)
        entries.append((pseudo, tuple(header[1:])))
    return entries


def read_gth(path: str | Path) -> list[GthPseudo]:
    """Read every entry of a CP2K potential file.

    Args:
        path: text file, at most 10 MB.

    Returns:
        The entries in the order of the file.

    Raises:
        InputError: with file and line, when the file is not such a text.
    """
    return [pseudo for pseudo, _ in parse_gth(read_whole_text(path, LIMIT_BYTES), source=str(path))]


@lru_cache(maxsize=1)
def _table() -> dict[tuple[str, str], list[GthPseudo]]:
    """Return the shipped entries by (functional, element), the default of the element first."""
    text = (files("gewu.formats") / "data" / "gth.txt").read_text(encoding="ascii")
    table: dict[tuple[str, str], list[GthPseudo]] = {}
    for pseudo, names in parse_gth(text, source=_SOURCE):
        entries = table.setdefault((pseudo.functional, pseudo.element), [])
        entries.insert(0 if len(names) > 1 else len(entries), pseudo)
    return table


def gth_variants(element: str, functional: str) -> list[GthPseudo]:
    """Return all GTH pseudopotentials of an element in the table that comes with gewu, the recommended one first.

    Raises:
        InputError: no table for the functional, or none of its entries is for the element.
    """
    family = _FAMILY.get(functional.lower())
    if family is None:
        raise InputError("no GTH table for this functional", key="functional", value=functional, allowed=", ".join(_FAMILY))
    entries = _table().get((family, element))
    if not entries:
        raise InputError("no GTH pseudopotential for this element", key="element", value=element, allowed="H to Rn")
    return list(entries)


def builtin_gth(element: str, functional: str, valence: int | None = None) -> GthPseudo:
    """Return a GTH pseudopotential of the table that comes with gewu (H to Rn, PBE and LDA).

    Args:
        element: chemical symbol.
        functional: "pbe", "lda", or "pbesol" (served by the PBE table: none of its own was published for most elements).
        valence: number of valence electrons; None takes the recommended one.

    Returns:
        The entry; its `functional` is that of the table it stands in.

    Raises:
        InputError: when the table has no such entry; it says which valences there are.

    Example:
        >>> builtin_gth("Si", "pbe").name
        'GTH-PBE-q4'
    """
    entries = gth_variants(element, functional)
    for entry in entries:
        if valence is None or entry.z_valence == valence:
            return entry
    known = ", ".join(str(entry.z_valence) for entry in entries)
    raise InputError(f"no GTH pseudopotential of {element} with this valence", key="valence", value=valence, allowed=known)
