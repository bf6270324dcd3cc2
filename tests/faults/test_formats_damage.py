"""Damaged files: cut short or with one byte changed, every reader refuses or gives numbers that are nearly the true ones.

No format here has a checksum, so a flipped digit can give another valid number. Each outcome of a flip is sorted into
    refused    InputError that names the file
    identical  the same numbers (comments, blanks, trailing zeros ...)
    close      the largest table error is below `CLOSE` of the largest value of that table: what a late digit can do
    fewer      whole entries or frames at the end are gone, the others identical (only the formats that hold a plain sequence)
    altered    another valid content; the tests say for each format how many of the seeded flips may end so, and why
Anything else (another exception) fails the test.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.formats import GthPseudo, RadialPseudo, Structure, read_gth, read_psp8, read_upf
from gewu.formats.cif import read_cif
from gewu.formats.extxyz import extxyz_bytes, read_extxyz
from gewu.formats.poscar import read_poscar
from tests.data.formats_synthetic import psp8_text, upf_text
from tests.unit.test_formats_pseudo import GTH_TEXT
from tests.unit.test_formats_structure import POSCAR, RUTILE_CIF

CLOSE = 5e-5  # 1e-6 of the largest value (radial.SPIKE_FLOOR) goes unseen; weighed by r^2 that is up to 3e-5 of r^2 V's largest
CUTS = 50
FLIPS = 200
Fields = dict[str, object]


def radial_fields(pseudo: RadialPseudo) -> Fields:
    n = len(pseudo.r)
    fields: Fields = {"element": pseudo.element, "functional": pseudo.functional, "l": [p.l for p in pseudo.projectors]}
    fields |= {"z": np.array([pseudo.z_valence]), "r": pseudo.r, "rab": pseudo.rab, "d": pseudo.d_ij_ha}
    fields["r^2 vloc"] = pseudo.r**2 * pseudo.vloc_ha  # what integrals see: the first six points are only bounded (radial.py)
    fields |= {f"p{i}": np.pad(p.rbeta, (0, n - len(p.rbeta))) for i, p in enumerate(pseudo.projectors)}
    return fields | {"rho": pseudo.rho_atom, "core": pseudo.core_density}


def gth_fields(entries: list[GthPseudo]) -> Fields:
    fields: Fields = {}
    for i, gth in enumerate(entries):
        fields[f"{i} labels"] = (gth.element, gth.functional, gth.z_valence, [channel.l for channel in gth.channels])
        fields[f"{i} numbers"] = np.array([gth.r_loc, *gth.c_loc])
        for channel in gth.channels:
            fields[f"{i} {channel.l}"] = np.append(channel.h_ij, channel.r_l)
    return fields


def structure_fields(structure: Structure) -> Fields:
    return {"symbols": structure.symbols, "cell": structure.cell_angstrom, "frac": structure.frac_n3}


def frames_fields(frames: list[Structure]) -> Fields:
    return {f"{i} {name}": value for i, frame in enumerate(frames) for name, value in structure_fields(frame).items()}


def extxyz_text() -> str:
    structure = Structure(np.diag([4.0, 4.1, 4.2]), ("Na", "Cl"), [[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]], "salt")
    return extxyz_bytes([structure, structure]).decode()


FORMATS: dict[str, tuple[str, Callable[[Path], Fields]]] = {
    "upf": (upf_text(core=True), lambda path: radial_fields(read_upf(path))),
    "psp8": (psp8_text(3), lambda path: radial_fields(read_psp8(path))),
    "gth": (GTH_TEXT, lambda path: gth_fields(read_gth(path))),
    "cif": (RUTILE_CIF, lambda path: structure_fields(read_cif(path))),
    "poscar": (POSCAR, lambda path: structure_fields(read_poscar(path))),
    "extxyz": (extxyz_text(), lambda path: frames_fields(read_extxyz(path))),
}


def compare(found: Fields, true: Fields) -> str:
    """Return "identical", "close", "fewer" or "altered"."""
    worst = 0.0
    if not set(found) <= set(true):
        return "altered"
    for name, value in found.items():
        expected = true[name]
        if isinstance(expected, np.ndarray) and isinstance(value, np.ndarray):
            if value.shape != expected.shape:
                return "altered"
            if expected.size:
                worst = max(worst, float(np.abs(value - expected).max() / np.abs(expected).max()))
        elif value is not expected and value != expected:
            return "altered"
    if len(found) < len(true):
        return "fewer" if worst == 0.0 else "altered"
    return "identical" if worst == 0.0 else "close" if worst < CLOSE else "altered"


def outcome(path: Path, data: bytes, read: Callable[[Path], Fields], true: Fields) -> str:
    path.write_bytes(data)
    try:
        found = read(path)
    except InputError as error:
        return "refused" if str(path) in str(error) else f"refused without the name of the file: {error}"
    return compare(found, true)


def flipped(data: bytes, seed: int) -> bytes:
    """Change one byte: by one bit for even seeds (a digit often stays a digit), to any other byte for odd ones."""
    generator = random.Random(seed)
    at = generator.randrange(len(data))
    change = 1 << generator.randrange(8) if seed % 2 == 0 else generator.randrange(1, 256)
    return data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]


def prepared(tmp_path: Path, name: str) -> tuple[bytes, Path, Callable[[Path], Fields], Fields]:
    text, read = FORMATS[name]
    path = tmp_path / f"x.{name}"
    path.write_text(text)
    return text.encode(), path, read, read(path)


@pytest.mark.parametrize("name", FORMATS)
def test_cut_files_are_refused(tmp_path: Path, name: str) -> None:
    data, path, read, true = prepared(tmp_path, name)
    outcomes = Counter(outcome(path, data[: len(data) * i // CUTS], read, true) for i in range(CUTS))
    # A GTH text and an xyz trajectory are plain sequences: cut between entries they are whole.
    allowed = {"refused", "identical", "fewer"} if name in ("gth", "extxyz") else {"refused", "identical"}
    assert set(outcomes) <= allowed, outcomes
    assert outcomes["refused"] >= 0.9 * CUTS, outcomes


# Share of flips that must be refused, and number that may be altered. The tables of UPF and psp8 are smooth and bound to each
# other by physics: none of these flips gets through. A CIF is bound by its group, cell and formula, but the digits of a free
# coordinate are not. GTH coefficients, POSCAR and xyz coordinates are free numbers: a changed digit is another valid file.
BOUNDS = {"upf": (0.8, 0), "psp8": (0.8, 0), "gth": (0.7, 20), "cif": (0.6, 4), "poscar": (0.7, 20), "extxyz": (0.7, 20)}


@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bytes_are_refused_or_do_nearly_nothing(tmp_path: Path, name: str) -> None:
    data, path, read, true = prepared(tmp_path, name)
    outcomes = Counter(outcome(path, flipped(data, seed), read, true) for seed in range(FLIPS))
    share, altered = BOUNDS[name]
    assert set(outcomes) <= {"refused", "identical", "close", "altered"}, outcomes
    assert outcomes["refused"] >= share * FLIPS, outcomes
    assert outcomes["altered"] <= altered, outcomes


SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "dft"
REAL = {"upf": SHARED / "sg15_pbe" / "Si.upf", "psp8": SHARED / "dojo_psp8" / "Si_pbe.psp8"}


@pytest.mark.skipif(not all(path.exists() for path in REAL.values()), reason="shared pseudopotentials are not here")
@pytest.mark.parametrize("name", REAL)
def test_flipped_bytes_of_real_files_do_not_get_through(tmp_path: Path, name: str) -> None:
    data, read = REAL[name].read_bytes(), FORMATS[name][1]
    outcomes = Counter(outcome(tmp_path / "x", flipped(data, seed), read, read(REAL[name])) for seed in range(60))
    assert set(outcomes) <= {"refused", "identical", "close"}, outcomes


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str) -> None:
    read = FORMATS[name][1]
    for data in (b"", b"\0" * 100, bytes(range(256)) * 20, "\ufeff\u00e9\u2028\n".encode() * 50, b"\xff\xfe1\0", b"1\n" * 5000):
        assert outcome(tmp_path / "x", data, read, {}) == "refused"
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError):
            read(path)


@pytest.mark.parametrize("name", FORMATS)
def test_files_beyond_the_size_limit_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path, read, _ = prepared(tmp_path, name)
    module = {"upf": "upf", "psp8": "psp8", "gth": "gth", "cif": "cif", "poscar": "poscar", "extxyz": "extxyz"}[name]
    monkeypatch.setattr(f"gewu.formats.{module}.LIMIT_BYTES", len(data) - 1)
    with pytest.raises(InputError):
        read(path)


@pytest.mark.parametrize("bomb", ["1(" * 500_000, "'" + "a" * 1_000_000, "x+" * 500_000, "9" * 1_000_000, "_a" * 500_000])
def test_long_words_end_in_a_refusal(tmp_path: Path, bomb: str) -> None:
    """Words that would make a careless pattern or `int` run for hours, in every place where a CIF takes a value."""
    for old in ("4.5937(2)", "-x,-y,z", "0.3048(3)", "Ti4+", "'O2 Ti'"):
        path = tmp_path / "x.cif"
        path.write_text(RUTILE_CIF.replace(old, bomb, 1))
        with pytest.raises(InputError):
            read_cif(path)
