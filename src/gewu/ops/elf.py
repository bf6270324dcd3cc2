"""Sections, symbols and relocations of 64-bit little-endian ELF files, every offset checked before it is used."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from gewu.core.errors import InputError

NO_BITS = 8
MAXIMUM_SECTIONS = 16_384


@dataclass(frozen=True, slots=True)
class Section:
    """One section; `data` is empty for those that only reserve memory."""

    name: str
    kind: int
    size: int
    link: int
    info: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Symbol:
    """One symbol: value, size, number of its section, kind (2 is a function), `other` as the file has it."""

    name: str
    value: int
    size: int
    section: int
    kind: int
    other: int


@dataclass(frozen=True, slots=True)
class Elf:
    """A file: machine number, flags, version of the binary interface, sections in order, symbols of the first table."""

    machine: int
    flags: int
    version: int
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]

    def named(self, name: str) -> Section | None:
        """Return the first section of a name."""
        return next((section for section in self.sections if section.name == name), None)


def _slice(data: memoryview, offset: int, size: int, what: str, file: str) -> memoryview:
    if offset < 0 or size < 0 or offset + size > len(data):
        raise InputError(
            f"{what} lies outside the file", file=file or None, value=f"{offset:#x} + {size:#x}", allowed=f"below {len(data):#x}"
        )
    return data[offset : offset + size]


def _text(table: memoryview, offset: int, file: str) -> str:
    if offset >= len(table):
        raise InputError("name lies outside its table", file=file or None, value=offset, allowed=f"below {len(table)}")
    chunk = bytes(table[offset : offset + 4096])
    end = chunk.find(0)
    return chunk[: end if end >= 0 else len(chunk)].decode("utf-8", "replace")


def read_elf(data: bytes | memoryview, file: str = "") -> Elf:
    """Read an ELF file.

    Raises:
        InputError: not such a file, or a table that points outside it.
    """
    view = memoryview(data)
    if bytes(view[:4]) != b"\x7fELF" or len(view) < 64:
        raise InputError("not an ELF file", file=file or None)
    if view[4] != 2 or view[5] != 1:
        raise InputError("ELF file is not 64-bit little-endian", file=file or None)
    machine = struct.unpack_from("<H", view, 18)[0]
    table, flags = struct.unpack_from("<Q", view, 40)[0], struct.unpack_from("<I", view, 48)[0]
    size, count, names = struct.unpack_from("<HHH", view, 58)
    if size != 64 or not 0 < count <= MAXIMUM_SECTIONS or names >= count:
        raise InputError("ELF file without a usable table of sections", file=file or None, value=(size, count, names))
    raw = _slice(view, table, size * count, "table of sections", file)
    heads = [struct.unpack_from("<IIQQQQIIQQ", raw, 64 * number) for number in range(count)]
    strings = _slice(view, heads[names][4], heads[names][5], "table of names", file)
    empty = memoryview(b"")
    sections = []
    for name, kind, _, _, offset, length, link, info, _, _ in heads:
        content = empty if kind in (0, NO_BITS) else _slice(view, offset, length, "section", file)
        sections.append(Section(_text(strings, name, file) if name or kind else "", kind, length, link, info, content))
    return Elf(machine, flags, view[8], tuple(sections), _symbols(sections, file))


def _symbols(sections: list[Section], file: str) -> tuple[Symbol, ...]:
    table = next((s for s in sections if s.kind == 2), None)
    if table is None:
        return ()
    if table.link >= len(sections):
        raise InputError("table of symbols without names", file=file or None, value=table.link)
    names = sections[table.link].data
    found = []
    for offset in range(0, len(table.data) - 23, 24):
        name, info, other, section, value, size = struct.unpack_from("<IBBHQQ", table.data, offset)
        found.append(Symbol(_text(names, name, file) if name else "", value, size, section, info & 15, other))
    return tuple(found)


def relocations(section: Section) -> list[tuple[int, int, int, int | None]]:
    """Return offset, symbol number, type and addend (None: kept in the place itself) of a REL or RELA section."""
    step = 24 if section.kind == 4 else 16
    found = []
    for place in range(0, len(section.data) - step + 1, step):
        offset, info = struct.unpack_from("<QQ", section.data, place)
        addend = struct.unpack_from("<q", section.data, place + 16)[0] if step == 24 else None
        found.append((offset, info >> 32, info & 0xFFFFFFFF, addend))
    return found
