"""Readers of potential files: what is written is read back, what is damaged is refused with file and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.formats.eam import EamTables, read_eam, read_finnis_sinclair, read_funcfl, read_setfl, write_setfl
from gewu.formats.potentials import STILLINGER_WEBER, TERSOFF, Triplets, read_stillinger_weber, read_tersoff


def tables(elements: tuple[str, ...] = ("Cu", "Ni"), *, alike: bool = True, points: int = 12) -> EamTables:
    generator, e = np.random.default_rng(3), len(elements)
    density = generator.normal(size=(e, e, points))
    density = np.repeat(density[:, :1], e, axis=1) if alike else density
    r_phi = generator.normal(size=(e, e, points))
    mass, embedding = np.array([63.546, 58.6934][:e]), generator.normal(size=(e, points + 1))
    return EamTables(elements, mass, 0.1, 0.45, 5.0, embedding, density, r_phi + r_phi.swapaxes(0, 1))


FUNCFL = """Cu functions, made up
   29     63.550         3.6150    FCC
  5  0.1  6  1.0D+00  4.5
  0. -1. -2. -3. -4.
  5. 4. 3.
  2. 1. 0.
  0.5 0.4 0.3 0.2 0.1 0.0
"""
TERSOFF_TEXT = """# comment
C C C 3 1.0 0.0 38049.0 4.3484 -.57058 .72751 1.5724e-7   # the rest follows
      2.2119 346.74 1.95 0.15 3.4879 1393.6
"""
SW_TEXT = "Si Si Si 2.1683 2.0951 1.80 21.0 1.20 -0.333333333333\n         7.049556277 0.6022245584 4.0 0.0 0.0\n"


@pytest.mark.parametrize("alike", [True, False])
def test_what_is_written_is_read_back(tmp_path: Path, alike: bool) -> None:
    path = tmp_path / ("a.eam.alloy" if alike else "a.eam.fs")
    given = tables(alike=alike)
    write_setfl(path, given, "made up")
    read = read_eam(path)
    assert (read.elements, read.d_rho, read.d_r, read.cutoff) == (given.elements, given.d_rho, given.d_r, given.cutoff)
    for name in ("mass_e", "embedding_ex", "density_eex", "r_phi_eex"):
        np.testing.assert_array_equal(getattr(read, name), getattr(given, name))  # 17 digits carry every bit


def test_funcfl(tmp_path: Path) -> None:
    path = tmp_path / "Cu.eam"
    path.write_text(FUNCFL)
    read = read_eam(path)
    assert read.elements == ("Cu",) and read.mass_e[0] == 63.55 and (read.d_rho, read.d_r, read.cutoff) == (0.1, 1.0, 4.5)
    np.testing.assert_allclose(read.embedding_ex[0], [0, -1, -2, -3], atol=1e-14)  # DYNAMO leaves the last point out
    np.testing.assert_allclose(read.r_phi_eex[0, 0], 27.2 * 0.529 * np.array([25, 16, 9, 4, 1]), rtol=1e-14)
    np.testing.assert_allclose(read.density_eex[0, 0], [0.5, 0.4, 0.3, 0.2, 0.1], rtol=1e-14)


def test_two_funcfl_files_come_to_one_grid(tmp_path: Path) -> None:
    first, second = tmp_path / "Cu.eam", tmp_path / "Ni.eam"
    first.write_text(FUNCFL)
    finer = FUNCFL.replace("   29     63.550", "   28     58.69 ").replace("5  0.1  6  1.0D+00  4.5", "5  0.1  6  0.8  4.0")
    second.write_text(finer)
    both = read_funcfl(first, second)
    assert both.elements == ("Cu", "Ni") and both.d_r == 1.0 and both.cutoff == 4.5
    # straight lines stay straight under cubic interpolation: Z = 5 - r and 5 - r / 0.8 up to the shorter table's end
    np.testing.assert_allclose(both.r_phi_eex[0, 1, :4], 27.2 * 0.529 * (5 - np.arange(4)) * (5 - np.arange(4) / 0.8), rtol=1e-13)
    with pytest.raises(InputError, match="another element"):
        read_funcfl(first, first)
    with pytest.raises(InputError, match="no file given"):
        read_funcfl()


def edited(tmp_path: Path, line: int, change: Callable[[str], str | None]) -> Path:
    """Write a good file with one line (counted from 1) changed, or the file cut there."""
    path = tmp_path / "a.eam.alloy"
    write_setfl(path, tables())
    rows = path.read_text().splitlines()
    new = change(rows[line - 1])
    rows = [*rows[: line - 1], new, *rows[line:]] if new is not None else rows[: line - 1]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (2, lambda row: None, ":1: elements|:1: comment: file ends"),
        (4, lambda row: "two Cu Ni", ":4: number of elements: not an integer"),
        (4, lambda row: "2 Cu", ":4: elements"),
        (4, lambda row: "2 Cu Cu", ":4: elements"),
        (4, lambda row: "2 Cu Xx", ":4: elements"),
        (4, lambda row: "99 Cu Ni", ":4: number of elements: out of range"),
        (5, lambda row: "13 0.1 12 0.45", ":5: grid: expected at least 5"),
        (5, lambda row: "13 -0.1 12 0.45 5.0", ":5: d_rho: out of range"),
        (5, lambda row: "13 0.1 12 nan 5.0", ":5: d_r: not a finite"),
        (5, lambda row: "13 0.1 12 0.45 9.0", ":5: cutoff: the tables end"),
        (5, lambda row: "13 0.1 99999999999 0.45 9.0", ":5: n_r: out of range"),
        (5, lambda row: "14 0.1 12 0.45 5.0", ":10: F of Cu: the table does not end with a line"),
        (6, lambda row: "29 0.0 0.0 none", ":6: mass: out of range"),
        (8, lambda row: "1 2 3 x 5", ":8: F of Cu: not a finite number"),
        (8, lambda row: "1 2 3 1e999 5", ":8: F of Cu: not a finite number"),
        (8, lambda row: None, ":7: F of Cu: file ends after 5 of 13"),
        (28, lambda row: None, ":27: r phi of Ni Ni: file ends after 10 of 12"),
        (28, lambda row: row + "\n7.0", ":29: end: more text"),
    ],
)
def test_damaged_setfl(tmp_path: Path, line: int, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_setfl(edited(tmp_path, line, change))


def test_every_truncation_and_flip_is_refused_or_read(tmp_path: Path) -> None:
    path, generator = tmp_path / "a.eam.fs", np.random.default_rng(0)
    write_setfl(path, tables(alike=False))
    whole = path.read_bytes()
    errors = []
    for k in range(300):
        data = bytearray(whole)
        if k % 2:
            del data[generator.integers(len(data)) :]
        else:
            data[generator.integers(len(data))] = generator.integers(256)
        path.write_bytes(bytes(data))
        try:
            read_finnis_sinclair(path)
        except InputError as error:  # never another exception
            errors.append(error)
    assert len(errors) > 200 and all(error.file for error in errors)


def test_names_that_tell_no_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not recognised by name"):
        read_eam(tmp_path / "copper.txt")
    with pytest.raises(InputError):
        read_eam(tmp_path / "absent.eam.alloy")


def test_triplets(tmp_path: Path) -> None:
    path = tmp_path / "C.tersoff"
    path.write_text(TERSOFF_TEXT)
    read = read_tersoff(path)
    assert read.columns == TERSOFF and list(read.entries) == [("C", "C", "C")]
    assert read.table(("C",))[0, 0, 0].tolist() == [
        *(3.0, 1.0, 0.0, 38049.0, 4.3484, -0.57058, 0.72751, 1.5724e-7, 2.2119, 346.74, 1.95, 0.15, 3.4879, 1393.6)
    ]
    path.write_text(SW_TEXT)
    assert read_stillinger_weber(path).table(("Si",)).shape == (1, 1, 1, len(STILLINGER_WEBER))
    with pytest.raises(InputError, match="no parameters for these three elements"):
        Triplets(STILLINGER_WEBER, {}).table(("Si",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no entry"),
        ("# only a comment\n", "holds no entry"),
        (TERSOFF_TEXT.replace("1393.6", ""), ":2: C C C: the entry holds 13 numbers"),
        (TERSOFF_TEXT + "5.0\n", ":4: expected a chemical symbol"),
        (TERSOFF_TEXT + TERSOFF_TEXT, ":5: C C C: these three elements have an entry already"),
        (TERSOFF_TEXT.replace("C C C 3", "C C C 2"), ":2: m: out of range"),
        (TERSOFF_TEXT.replace("4.3484", "0.0"), ":2: d: out of range"),
        (TERSOFF_TEXT.replace("346.74", "inf"), ":3: B: not a finite number"),
        (TERSOFF_TEXT.rstrip("\n"), "last line does not end"),
        ("C C\n", ":1: C C: the entry holds 0 numbers"),
    ],
)
def test_damaged_triplets(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "C.tersoff"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_tersoff(path)
