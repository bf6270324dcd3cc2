"""Object files of NVIDIA's compilers: cubin, fatbin, and host objects and programs that carry a fatbin.

The container is read here: kernels, their arguments (`.nv.info`), constant banks, global variables, shared and local memory.  The
code itself is disassembled by `nvdisasm` and translated by `sass`.

Constant banks and global variables are laid out one behind the other in `Kernel.data`: bank 3 (`__constant__` variables), bank 4
(addresses of variables, relocated here), bank 2 (constants of one kernel), initialised and other global variables.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gewu.core.errors import InputError
from gewu.ops.disassemble import disassemble
from gewu.ops.elf import Elf, Section, Symbol, read_elf, relocations
from gewu.ops.ir import CONST_WINDOW, Listing, Parameter, check_names
from gewu.ops.sass import read_sass
from gewu.ops.sass_emit import PARAMETER_BASE
from gewu.ops.sass_syntax import Facts

CUDA_MACHINE: Final = 190
FATBIN_MAGIC: Final = 0xBA55ED50
MAXIMUM_DATA: Final = 64 << 20
_ENTRY: Final = 0x10
_OBJECT: Final = 1
_ABSOLUTE_64: Final = 2
_PARAMETER, _BANK, _THREADS, _SHAPE, _FRAME, _STACK = 0x17, 0x0A, 0x05, 0x10, 0x11, 0x12
_COMPRESSED: Final = 0x2000 | 0x8000
Disassembler = Callable[[bytes, str], str]


@dataclass(frozen=True)
class Cubin:
    """What the container tells: number of the architecture, facts of each kernel, variables that only the host sets."""

    architecture: int
    facts: dict[str, Facts]
    unset: dict[str, tuple[str, int]] = field(default_factory=dict)


def read_cubin(
    data: bytes, file: str = "", disassembler: Disassembler = disassemble, constants: Mapping[str, bytes] | None = None
) -> Listing:
    """Read every kernel of a cubin, a fatbin or a host object that carries one.

    Args:
        data: the file.
        file: name for messages.
        disassembler: turns a cubin into text.
        constants: the bytes of variables that are left for the host to fill.

    Returns:
        Kernels and refused ones; of several architectures the newest that gewu reads.

    Raises:
        InputError: damaged or foreign file, or an architecture that is not read.
        ResourceError: no disassembler on this machine.

    Example:
        `read_cubin(Path("kernel.cubin").read_bytes()).kernels["vadd"]`
    """
    listing = Listing()
    for cubin in _chosen(data, file):
        container = read_container(cubin, file, constants)
        listing.unset.update(container.unset)
        if not container.facts:
            continue
        found = read_sass(disassembler(cubin, file), container.facts, container.architecture, file)
        listing.kernels.update(found.kernels)
        listing.refused.update(found.refused)
    return listing


def load_cubin(path: str | Path) -> Listing:
    """Read the kernels of a file; see `read_cubin`."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError("cannot be read", file=path, value=error.strerror) from None
    return read_cubin(data, str(path))


def _chosen(data: bytes, file: str) -> list[bytes]:
    """Return the cubins to read: the file itself, or those of the newest architecture inside a fatbin."""
    if data[:4] == b"\x7fELF":
        elf = read_elf(data, file)
        if elf.machine == CUDA_MACHINE:
            return [data]
        carried = [bytes(section.data) for section in elf.sections if section.name in (".nv_fatbin", ".fatbin", "__nv_relfatbin")]
        if not carried:
            raise InputError("object file without code for NVIDIA processors", file=file or None)
        return _newest(b"".join(carried), file)
    return _newest(data, file)


def _newest(data: bytes, file: str) -> list[bytes]:
    found: dict[int, list[bytes]] = {}
    compressed = False
    for payload, architecture, packed in _fatbin_entries(data, file):
        if architecture in PARAMETER_BASE and not packed:
            found.setdefault(architecture, []).append(payload)
        compressed |= packed
    if found:
        return found[max(found)]
    hint = "cuobjdump -xelf all FILE extracts the cubins" if compressed else None
    allowed = "uncompressed machine code of " + ", ".join(f"sm_{n}" for n in PARAMETER_BASE)
    raise InputError("fatbin holds no code that gewu reads", file=file or None, allowed=allowed, hint=hint)


def _fatbin_entries(data: bytes, file: str) -> list[tuple[bytes, int, bool]]:
    """Return payload, architecture and whether it is compressed of every machine-code entry."""
    place, found = 0, []
    while place + 16 <= len(data):
        magic, _, head, size = struct.unpack_from("<IHHQ", data, place)
        if magic != FATBIN_MAGIC:
            if not found and place == 0:
                raise InputError("neither a cubin nor a fatbin", file=file or None)
            place += 8
            continue
        end = place + head + size
        if head < 16 or end > len(data):
            raise InputError("fatbin is cut short", file=file or None, value=f"{end:#x}", allowed=f"at most {len(data):#x} bytes")
        at = place + head
        while at + 64 <= end:
            kind, _, entry, length = struct.unpack_from("<HHIQ", data, at)
            (architecture,) = struct.unpack_from("<I", data, at + 28)
            (flags,) = struct.unpack_from("<Q", data, at + 40)
            if entry < 64 or at + entry + length > end:
                raise InputError("entry of a fatbin lies outside it", file=file or None, value=f"{at:#x}")
            if kind == 2:
                found.append((bytes(data[at + entry : at + entry + length]), architecture, bool(flags & _COMPRESSED)))
            at += entry + length
        place = end
    return found


def read_container(data: bytes, file: str = "", constants: Mapping[str, bytes] | None = None) -> Cubin:
    """Read everything but the code of a cubin.

    Raises:
        InputError: damaged file or an architecture that is not read.
    """
    elf = read_elf(data, file)
    if elf.machine != CUDA_MACHINE:
        raise InputError("object file of another processor", file=file or None, value=elf.machine)
    architecture = elf.flags >> 8 & 0xFF if elf.version >= 8 else elf.flags & 0xFF
    if architecture not in PARAMETER_BASE:
        allowed = ", ".join(f"sm_{n}" for n in PARAMETER_BASE)
        raise InputError(
            "machine code of an architecture that gewu does not read",
            file=file or None,
            value=f"sm_{architecture}",
            allowed=allowed,
        )
    layout = _Layout(elf, file, constants or {})
    stacks = _stacks(elf)
    facts = {}
    for number, symbol in enumerate(elf.symbols):
        if symbol.kind == 2 and symbol.other & _ENTRY and elf.named(f".text.{symbol.name}"):
            facts[symbol.name] = _facts(elf, symbol, architecture, layout, stacks.get(number, 0), file)
    return Cubin(architecture, facts, {name: ("b8", size) for name, size in layout.open.items()})


def _facts(elf: Elf, symbol: Symbol, architecture: int, layout: _Layout, stack: int, file: str) -> Facts:
    name = symbol.name
    parameters, base, limit, required = _arguments(elf.named(f".nv.info.{name}"), file)
    shared = elf.named(f".nv.shared.{name}")
    size = max(shared.size if shared else 0, 1024 if architecture >= 90 else 0)
    if size > 1 << 20 or stack > 1 << 24:
        raise InputError(
            "kernel asks for more memory than any processor has", file=file or None, key=name, value=max(size, stack)
        )
    data, banks = layout.of(elf.named(f".nv.constant2.{name}"))
    return Facts(
        parameters, base or PARAMETER_BASE[architecture], size, stack + 15 & ~15, limit, required, data, banks, layout.unset
    )


def _entries(section: Section | None) -> list[tuple[int, bytes]]:
    """Return attribute and value of every entry of an info section."""
    found: list[tuple[int, bytes]] = []
    data = section.data if section else memoryview(b"")
    place = 0
    while place + 4 <= len(data):
        form, attribute, size = struct.unpack_from("<BBH", data, place)
        place += 4
        if form == 4:
            if place + size > len(data):
                break
            found.append((attribute, bytes(data[place : place + size])))
            place += size
    return found


def _arguments(section: Section | None, file: str) -> tuple[tuple[Parameter, ...], int, int, tuple[int, ...]]:
    """Return arguments, their place in constant bank 0, thread limit and demanded block shape."""
    parameters: dict[int, Parameter] = {}
    base, limit = 0, 0
    required: tuple[int, ...] = ()
    for attribute, value in _entries(section):
        if attribute == _PARAMETER and len(value) >= 12:
            _, ordinal, offset, packed = struct.unpack_from("<IHHI", value)
            parameters[ordinal] = Parameter(offset, packed >> 18)
        elif attribute == _BANK and len(value) >= 8:
            base = struct.unpack_from("<IH", value)[1]
        elif attribute in (_THREADS, _SHAPE) and len(value) >= 12:
            shape = struct.unpack_from("<III", value)
            if attribute == _SHAPE:
                required = shape
            limit = shape[0] * shape[1] * shape[2]
    if any(parameter.offset + parameter.size > 1 << 16 for parameter in parameters.values()):
        raise InputError("argument lies outside the argument block", file=file or None, key=section.name if section else None)
    return tuple(parameters[number] for number in sorted(parameters)), base, limit, required


def _stacks(elf: Elf) -> dict[int, int]:
    """Return bytes of stack by number of the symbol."""
    found: dict[int, int] = {}
    for attribute, value in _entries(elf.named(".nv.info")):
        if attribute in (_FRAME, _STACK) and len(value) >= 8:
            number, size = struct.unpack_from("<II", value)
            found[number] = max(size, found.get(number, 0))
    return found


class _Layout:
    """Where banks and variables lie in `Kernel.data`."""

    def __init__(self, elf: Elf, file: str, constants: Mapping[str, bytes]) -> None:
        self.elf, self.file = elf, file
        self.open: dict[str, int] = {}
        self.data = bytearray()
        self.banks: dict[int, tuple[int, int]] = {}
        self.places: dict[int, int] = {}
        for number, section in enumerate(elf.sections):
            if section.name in (".nv.constant3", ".nv.constant4", ".nv.global", ".nv.global.init"):
                self.places[number] = self._append(section)
                if section.name.startswith(".nv.constant"):
                    self.banks[int(section.name[-1])] = (self.places[number], section.size)
        self._fill(constants)
        self.unset: dict[int, tuple[tuple[int, int, str], ...]] = {3: tuple(self._empty_constants())}
        self._names = set(self.open)
        addresses: list[tuple[int, int, str]] = []
        for section in elf.sections:
            if section.kind in (4, 9) and section.info < len(elf.sections) and section.info in self.places:
                addresses += self._relocate(section)
        self.unset[4] = tuple(addresses)
        self.shared = bytes(self.data)

    def _append(self, section: Section) -> int:
        start = len(self.data) + 15 & ~15
        if start + section.size > MAXIMUM_DATA:
            allowed = f"at most {MAXIMUM_DATA} bytes"
            raise InputError(
                "too much module data", file=self.file or None, key=section.name, value=section.size, allowed=allowed
            )
        self.data.extend(bytes(start - len(self.data)))
        self.data.extend(section.data if section.data else bytes(section.size))
        return start

    def _empty_constants(self) -> Iterator[tuple[int, int, str]]:
        """Give constant variables that are left for the host to fill."""
        for symbol in self.elf.symbols:
            section = self.elf.sections[symbol.section] if symbol.section < len(self.elf.sections) else None
            if symbol.kind != _OBJECT or section is None or section.name != ".nv.constant3":
                continue
            if symbol.name in self.open:
                yield symbol.value, symbol.value + symbol.size, symbol.name

    def _fill(self, constants: Mapping[str, bytes]) -> None:
        """Put given values into variables of zeros only, which are left for the host to fill; note the others."""
        for symbol in self.elf.symbols:
            section = self.elf.sections[symbol.section] if symbol.section in self.places else None
            if symbol.kind != _OBJECT or section is None or symbol.value + symbol.size > section.size:
                continue
            start = self.places[symbol.section] + symbol.value
            if section.name in (".nv.constant3", ".nv.global") and not any(self.data[start : start + symbol.size]):
                self.open[symbol.name] = symbol.size
                given = constants.get(symbol.name, b"")
                if given and len(given) != symbol.size:
                    allowed = f"{symbol.size} bytes"
                    raise InputError("a module variable of another size", key=symbol.name, value=len(given), allowed=allowed)
                self.data[start : start + len(given)] = given
        check_names(constants, self.open, self.file)
        self.open = {name: size for name, size in self.open.items() if name not in constants}

    def _is_unset(self, symbol: Symbol) -> bool:
        return symbol.name in self._names

    def _relocate(self, section: Section) -> list[tuple[int, int, str]]:
        """Put addresses in their places; return those of variables that only the host sets."""
        unset = []
        start, size = self.places[section.info], self.elf.sections[section.info].size
        for offset, number, kind, addend in relocations(section):
            if kind != _ABSOLUTE_64 or offset + 8 > size or number >= len(self.elf.symbols):
                raise InputError(
                    "relocation of an unknown form", file=self.file or None, key=section.name, value=(offset, number, kind)
                )
            symbol = self.elf.symbols[number]
            if symbol.section not in self.places:
                continue
            if self._is_unset(symbol):
                unset.append((offset, offset + 8, symbol.name))
            kept = struct.unpack_from("<Q", self.data, start + offset)[0] if addend is None else addend
            address = CONST_WINDOW + self.places[symbol.section] + symbol.value + kept
            struct.pack_into("<Q", self.data, start + offset, address & (1 << 64) - 1)
        return unset

    def of(self, constants: Section | None) -> tuple[bytes, dict[int, tuple[int, int]]]:
        """Return data and banks of a kernel with constants of its own."""
        if constants is None or not constants.data:
            return self.shared, self.banks
        start = len(self.shared) + 15 & ~15
        data = self.shared + bytes(start - len(self.shared)) + bytes(constants.data)
        if len(data) > MAXIMUM_DATA:
            raise InputError("too much module data", file=self.file or None, key=constants.name, value=len(data))
        return data, {**self.banks, 2: (start, len(constants.data))}
