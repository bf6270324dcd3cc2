"""Read UPF version 2 (Unified Pseudopotential Format of Quantum ESPRESSO), norm-conserving, without spin-orbit.

Conventions of the file, and what is done with them: energies are in rydberg (PP_LOCAL and PP_DIJ are halved); PP_BETA is
r*beta(r); PP_RHOATOM is 4 pi r^2 rho; PP_NLCC is rho_core. Projectors are kept up to the largest cutoff_radius_index, as
Quantum ESPRESSO does. Text after </UPF> is ignored (ONCVPSP leaves some there); PP_INFO is for people and is not parsed.

Limit: UPF has no checksum. `gewu.formats.radial` finds what physics and smoothness can find: of 200 seeded one-byte changes in
tests/faults/test_formats_damage.py 172 are refused, 12 do nothing, 16 change a table by less than 5e-5 of its largest value. A
late digit of a table, any digit of a D_ij on the diagonal, and an element changed into another that can hold the valence
electrons cannot be found. Give `sha256` to have the file verified.
Reference: Quantum ESPRESSO, "Unified pseudopotential format", pseudopotentials section of its documentation.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING
from xml.parsers import expat

import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import read_capped
from gewu.formats.elements import ATOMIC_NUMBER
from gewu.formats.functionals import functional_of_name
from gewu.formats.numbers import integer, real, reals
from gewu.formats.pseudopotential import Projector, RadialPseudo
from gewu.formats.radial import MAX_POINTS, check_radial

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

LIMIT_BYTES = 100_000_000
_MAX_DEPTH = 16
_MAX_PROJECTORS = 64


class _Element:
    """One XML element: attributes, text, the line it starts at."""

    def __init__(self, tag: str, attributes: dict[str, str], line: int) -> None:
        self.tag, self.attributes, self.line = tag, attributes, line
        self.parts: list[str] = []


class _Upf:
    """The elements of a UPF file by path ("PP_MESH/PP_R")."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.elements: dict[str, _Element] = {}
        self._stack: list[_Element] = []
        self._parser = expat.ParserCreate(encoding="utf-8")
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.EntityDeclHandler = self._refuse
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        try:
            self._parser.Parse(text.encode("utf-8"), True)
        except expat.ExpatError as error:
            raise InputError(f"not well-formed: {expat.ErrorString(error.code)}", file=file, line=error.lineno) from error

    def _refuse(self, *_: object) -> None:
        raise InputError("document types and entities are refused", file=self.file, line=self._parser.CurrentLineNumber)

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        element = _Element(tag, attributes, self._parser.CurrentLineNumber)
        if len(self._stack) >= _MAX_DEPTH:
            raise InputError("elements nested too deep", file=self.file, line=element.line, key=tag)
        self._stack.append(element)
        path = "/".join(e.tag for e in self._stack[1:]) or tag
        if path in self.elements:
            raise InputError("element stands twice", file=self.file, line=element.line, key=path)
        self.elements[path] = element

    def _end(self, _: str) -> None:
        self._stack.pop()

    def _text(self, data: str) -> None:
        self._stack[-1].parts.append(data)

    def need(self, path: str) -> _Element:
        """Return the element at `path`, which must be there."""
        if path not in self.elements:
            raise InputError("element missing", file=self.file, key=path, hint="the file may be truncated or another format")
        return self.elements[path]

    def array(self, path: str, size: int) -> Array:
        """Return the `size` numbers of the element at `path`."""
        element = self.need(path)
        values = reals("".join(element.parts), file=self.file, line=element.line, key=path)
        stated = element.attributes.get("size", str(size)).strip()
        if len(values) != size or stated != str(size):
            raise InputError(
                "wrong number of values",
                file=self.file,
                line=element.line,
                key=path,
                value=(len(values), stated),
                allowed=str(size),
            )
        return values

    def integer(self, element: _Element, name: str, low: int, high: int) -> int:
        """Return the integer attribute `name`, which must lie between `low` and `high`."""
        value = integer(element.attributes.get(name, "").strip(), file=self.file, line=element.line, key=name)
        if not low <= value <= high:
            raise InputError("out of range", file=self.file, line=element.line, key=name, value=value, allowed=f"{low} to {high}")
        return value


def _flag(header: _Element, name: str, file: str) -> bool:
    """Return a logical attribute of the header; absent means false."""
    word = header.attributes.get(name, "F").strip().strip(".").lower()
    if word not in ("t", "true", "f", "false"):
        raise InputError("not a logical value", file=file, line=header.line, key=name, value=word, allowed="T or F")
    return word.startswith("t")


def _check_kind(upf: _Upf, header: _Element) -> None:
    """Refuse what is not a norm-conserving, scalar pseudopotential."""
    kind = header.attributes.get("pseudo_type", "").strip().upper()
    refused = ("is_ultrasoft", "is_paw", "is_coulomb", "has_so")
    for name in refused:
        if _flag(header, name, upf.file):
            raise InputError("only norm-conserving scalar pseudopotentials", file=upf.file, line=header.line, key=name, value="T")
    if kind not in ("NC", "SL"):
        raise InputError(
            "only norm-conserving files", file=upf.file, line=header.line, key="pseudo_type", value=kind, allowed="NC, SL"
        )
    for path in ("PP_SPIN_ORB", "PP_PAW", "PP_NONLOCAL/PP_AUGMENTATION"):
        if path in upf.elements:
            raise InputError(
                "spin-orbit, PAW and augmentation are refused", file=upf.file, line=upf.elements[path].line, key=path
            )


def _projectors(upf: _Upf, count: int, n: int) -> tuple[Projector, ...]:
    """Return the projectors, cut at the largest cutoff_radius_index, beyond which they must vanish."""
    found = [path for path in upf.elements if path.startswith("PP_NONLOCAL/PP_BETA.")]
    names = [f"PP_NONLOCAL/PP_BETA.{i}" for i in range(1, count + 1)]
    if sorted(found) != sorted(names):
        raise InputError(
            "number of projectors differs from the header", file=upf.file, key="PP_BETA", value=len(found), allowed=str(count)
        )
    tables, cuts = [upf.array(name, n) for name in names], []
    for name, table in zip(names, tables, strict=True):
        element = upf.elements[name]
        cut = upf.integer(element, "cutoff_radius_index", 0, n) if "cutoff_radius_index" in element.attributes else 0
        cuts.append(cut or n)
        if np.abs(table[cuts[-1] :]).max(initial=0.0) > 1e-3 * np.abs(table).max():
            raise InputError(
                "projector goes on beyond its cut-off", file=upf.file, line=element.line, key="cutoff_radius_index", value=cut
            )
    m = max(cuts, default=0)
    return tuple(
        Projector(upf.integer(upf.elements[name], "angular_momentum", 0, 4), table[:m])
        for name, table in zip(names, tables, strict=True)
    )


def _text_of(path: str | Path, sha256: str | None) -> tuple[str, str]:
    """Return the XML text between <UPF and </UPF> (line numbers kept, PP_INFO blanked) and the checksum of the file."""
    data = read_capped(path, LIMIT_BYTES)
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise InputError("checksum differs", file=path, key="sha256", value=found, allowed=sha256)
    text = data.decode("latin-1")
    if "<PP_HEADER>" in text and "<UPF" not in text:
        raise InputError("UPF version 1 is not supported", file=path, hint="convert it with upfconv.x of Quantum ESPRESSO")
    start, end = text.find("<UPF"), text.rfind("</UPF>")
    if start < 0 or end < start:
        raise InputError("not a complete UPF file: <UPF ...> ... </UPF> not found", file=path, hint="the file may be truncated")
    for word in ("<!DOCTYPE", "<!ENTITY"):
        if word in text:
            raise InputError("document types and entities are refused", file=path, line=text.count("\n", 0, text.find(word)) + 1)
    lead = "\n" * text.count("\n", 0, start)
    text = lead + text[start : end + len("</UPF>")]
    start, end = text.find("<PP_INFO"), text.find("</PP_INFO>")
    if 0 <= start < end:
        end += len("</PP_INFO>")
        text = text[:start] + "\n" * text.count("\n", start, end) + text[end:]
    return text, found


def read_upf(path: str | Path, sha256: str | None = None) -> RadialPseudo:
    """Read a norm-conserving UPF file of version 2.

    Args:
        path: the file, at most 100 MB.
        sha256: hex digest that the file must have; None does not verify.

    Returns:
        The pseudopotential in hartree and bohr.

    Raises:
        InputError: with file, element and line, when the file is damaged, of another kind, or contradicts itself.

    Example:
        >>> si = read_upf("Si.upf")  # doctest: +SKIP
        >>> si.z_valence, [p.l for p in si.projectors]  # doctest: +SKIP
        (4.0, [0, 0, 1, 1])
    """
    text, found = _text_of(path, sha256)
    upf = _Upf(text, str(path))
    root, header = upf.need("UPF"), upf.need("PP_HEADER")
    if not root.attributes.get("version", "").startswith("2."):
        raise InputError(
            "version not supported", file=path, line=root.line, key="version", value=root.attributes.get("version"), allowed="2.x"
        )
    _check_kind(upf, header)
    element = header.attributes.get("element", "").strip().capitalize()
    if element not in ATOMIC_NUMBER:
        raise InputError("unknown element", file=path, line=header.line, key="element", value=element)
    n = upf.integer(header, "mesh_size", 24, MAX_POINTS)
    count = upf.integer(header, "number_of_proj", 0, _MAX_PROJECTORS)
    projectors = _projectors(upf, count, n)
    d_ij = upf.array("PP_NONLOCAL/PP_DIJ", count * count).reshape(count, count) if count else np.zeros((0, 0))
    has_core = _flag(header, "core_correction", str(path))
    if has_core != ("PP_NLCC" in upf.elements):
        raise InputError(
            "core_correction and PP_NLCC disagree", file=path, line=header.line, key="core_correction", value=has_core
        )
    functional = functional_of_name(header.attributes.get("functional", ""))
    if not functional or not functional.isascii() or not functional.isprintable():
        raise InputError("functional not stated", file=path, line=header.line, key="functional", value=functional)
    rho = upf.array("PP_RHOATOM", n) if "PP_RHOATOM" in upf.elements else None
    pseudo = RadialPseudo(
        element=element,
        z_valence=real(header.attributes.get("z_valence", "").strip(), file=path, line=header.line, key="z_valence"),
        functional=functional,
        r=upf.array("PP_MESH/PP_R", n),
        rab=upf.array("PP_MESH/PP_RAB", n),
        vloc_ha=upf.array("PP_LOCAL", n) / 2.0,
        projectors=projectors,
        d_ij_ha=d_ij / 2.0,
        rho_atom=None if rho is None or not rho.any() else rho,
        core_density=upf.array("PP_NLCC", n) if has_core else None,
        source=str(path),
        sha256=found,
    )
    return check_radial(pseudo, str(path))
