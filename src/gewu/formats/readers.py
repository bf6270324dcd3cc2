"""Choose the reader of a file by its name, and by its content where the name does not tell."""

from __future__ import annotations

from pathlib import Path

from gewu.core.errors import InputError
from gewu.core.files import read_capped
from gewu.formats.gth import read_gth
from gewu.formats.pseudopotential import GthPseudo, RadialPseudo
from gewu.formats.psp8 import read_psp8
from gewu.formats.structure import Structure
from gewu.formats.upf import LIMIT_BYTES, read_upf


def read_structure(path: str | Path) -> Structure:
    """Read a crystal structure: CIF, POSCAR/CONTCAR or extended xyz (its last frame).

    Raises:
        InputError: when the name tells no format, or the file is not a usable structure.
    """
    name = Path(path).name.lower()
    suffix = Path(name).suffix
    if suffix == ".cif":
        from gewu.formats.cif import read_cif

        return read_cif(path)
    if suffix in (".vasp", ".poscar") or name.startswith(("poscar", "contcar")):
        from gewu.formats.poscar import read_poscar

        return read_poscar(path)
    if suffix in (".xyz", ".extxyz"):
        from gewu.formats.extxyz import read_extxyz

        return read_extxyz(path)[-1]
    allowed = ".cif, .vasp, .poscar, POSCAR, CONTCAR, .xyz, .extxyz"
    raise InputError("structure format not recognised by name", file=path, value=name, allowed=allowed)


def read_pseudo(path: str | Path, element: str | None = None) -> RadialPseudo | GthPseudo:
    """Read a pseudopotential: UPF, psp8, or an entry of a GTH text.

    Args:
        path: the file.
        element: the element it must be for; a GTH text must hold one entry for it.

    Raises:
        InputError: when it is none of these formats, damaged, or for another element.
    """
    suffix = Path(path).suffix.lower()
    pseudo: RadialPseudo | GthPseudo
    if suffix == ".upf":
        pseudo = read_upf(path)
    elif suffix == ".psp8":
        pseudo = read_psp8(path)
    else:
        head = read_capped(path, LIMIT_BYTES)[:100_000]
        if b"<UPF" in head or b"<PP_HEADER" in head:
            pseudo = read_upf(path)
        elif b"pspcod" in head:
            pseudo = read_psp8(path)
        else:
            entries = [entry for entry in read_gth(path) if element is None or entry.element == element]
            if len(entries) != 1:
                names = ", ".join(f"{entry.element} {entry.name}" for entry in entries[:8]) or "none"
                hint = f"the file must hold one entry for it; found {names}"
                raise InputError("no single GTH entry", file=path, key="element", value=element, hint=hint)
            pseudo = entries[0]
    if element is not None and pseudo.element != element:
        raise InputError(
            "pseudopotential is for another element", file=path, key="element", value=pseudo.element, allowed=element
        )
    return pseudo
