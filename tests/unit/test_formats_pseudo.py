"""Pseudopotential readers: numbers and units, refusals, and real files when the shared data is there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.formats import GthPseudo, RadialPseudo, builtin_gth, read_gth, read_pseudo, read_psp8, read_upf
from gewu.formats.elements import SYMBOLS
from gewu.formats.radial import find_spike
from tests.data.formats_synthetic import CORE_HEIGHT, analytic, linear_mesh, log_mesh, psp8_text, upf_text

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "dft"
PRINTED = 1e-10  # the files carry eleven significant digits


def write(tmp_path: Path, text: str, name: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="latin-1")
    return path


@pytest.mark.parametrize("mesh", [linear_mesh(), log_mesh()], ids=["linear", "logarithmic"])
@pytest.mark.parametrize("core", [False, True])
def test_upf_numbers_are_those_of_the_closed_forms(tmp_path: Path, mesh: tuple[np.ndarray, np.ndarray], core: bool) -> None:
    pseudo = read_upf(write(tmp_path, upf_text(mesh, core), "si.upf"))
    r, rab = mesh
    true = analytic(r)
    assert (pseudo.element, pseudo.z_valence, pseudo.functional) == ("Si", 4.0, "pbe")
    assert [p.l for p in pseudo.projectors] == [0, 0, 1]
    np.testing.assert_allclose(pseudo.r, r, rtol=PRINTED)
    np.testing.assert_allclose(pseudo.rab, rab, rtol=PRINTED)
    np.testing.assert_allclose(pseudo.vloc_ha, true["vloc"], rtol=PRINTED)
    np.testing.assert_allclose(pseudo.d_ij_ha, true["d"], rtol=PRINTED)
    np.testing.assert_allclose(pseudo.rho_atom, true["rho"], rtol=PRINTED)
    for i, p in enumerate(pseudo.projectors):
        assert len(p.rbeta) == int(np.searchsorted(r, 4.5))
        np.testing.assert_allclose(p.rbeta, true["rbeta"][i][: len(p.rbeta)], rtol=PRINTED)
    if core:
        np.testing.assert_allclose(pseudo.core_density, true["core"], rtol=PRINTED)
    else:
        assert pseudo.core_density is None


def test_upf_text_after_the_end_is_ignored(tmp_path: Path) -> None:
    assert read_upf(write(tmp_path, upf_text() + "\n1 2 3 <\n END_PSP\n", "si.upf")).element == "Si"


def test_upf_checksum_is_verified_when_given(tmp_path: Path) -> None:
    path = write(tmp_path, upf_text(), "si.upf")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_upf(path, sha256=digest).sha256 == digest
    path.write_text(upf_text().replace("GTH", "HGH"))
    with pytest.raises(InputError, match="checksum differs"):
        read_upf(path, sha256=digest)


def test_upf_strengths_are_only_safe_with_a_checksum(tmp_path: Path) -> None:
    """The stated limit: no redundancy in the file tells that a D_ij on the diagonal changed; the checksum does."""
    text = upf_text()
    digest = hashlib.sha256(text.encode()).hexdigest()
    strength = f"{2 * analytic(np.ones(1))['d'][2, 2]:.10E}"
    path = write(tmp_path, text.replace(strength, "9" + strength[1:]), "si.upf")
    assert read_upf(path).d_ij_ha[2, 2] > 4.5
    with pytest.raises(InputError, match="checksum differs"):
        read_upf(path, sha256=digest)


UPF_REFUSALS = [
    ('version="2.0.1"', 'version="3.0.0"', "version"),
    ('is_ultrasoft="F"', 'is_ultrasoft="T"', "norm-conserving"),
    ('is_paw="F"', 'is_paw=".TRUE."', "norm-conserving"),
    ('is_coulomb="F"', 'is_coulomb="T"', "norm-conserving"),
    ('has_so="F"', 'has_so="T"', "scalar"),
    ('has_so="F"', 'has_so="X"', "logical"),
    ('pseudo_type="NC"', 'pseudo_type="US"', "pseudo_type"),
    ('element="Si"', 'element="Xx"', "unknown element"),
    ('element="Si"', 'element="He"', "valence charge"),
    ('functional="PBE"', 'functional=" "', "functional not stated"),
    ('functional="PBE"', 'functional="PB\xc9"', "functional not stated"),
    ("    4.00", "    3.00", "does not end as"),
    ("    4.00", "    nan", "finite number"),
    ('core_correction="F"', 'core_correction="T"', "disagree"),
    ('number_of_proj="3"', 'number_of_proj="2"', "number of projectors"),
    ('mesh_size="400"', 'mesh_size="401"', "wrong number of values"),
    ('mesh_size="400"', 'mesh_size="999999999"', "out of range"),
    ('angular_momentum="1"', 'angular_momentum="7"', "out of range"),
    ("<PP_NONLOCAL>", "<PP_NONLOCAL><PP_AUGMENTATION/>", "augmentation"),
    ('<UPF version="2.0.1">', '<UPF version="2.0.1"><PP_SPIN_ORB/>', "spin-orbit"),
    ("</PP_MESH>", "</PP_MESH><PP_MESH></PP_MESH>", "stands twice"),
    ("</PP_LOCAL>", "</PP_LOCAX>", "not well-formed"),
    ("<PP_NONLOCAL>", "<a>" * 40, "nested too deep"),
]


@pytest.mark.parametrize(("old", "new", "message"), UPF_REFUSALS)
def test_upf_refuses(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in upf_text()
    path = write(tmp_path, upf_text().replace(old, new, 1), "si.upf")
    with pytest.raises(InputError, match=message) as caught:
        read_upf(path)
    assert str(path) in str(caught.value)


def test_upf_names_the_line_of_a_bad_number(tmp_path: Path) -> None:
    lines = upf_text().split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith("<PP_LOCAL")) + 5
    lines[at] = lines[at][:-4] + "oops"
    with pytest.raises(InputError, match="not a finite number") as caught:
        read_upf(write(tmp_path, "\n".join(lines), "si.upf"))
    assert caught.value.line == at + 1


@pytest.mark.parametrize("start", ["", '<?xml version="1.0"?>\n'])
@pytest.mark.parametrize(
    "declaration",
    ['<!DOCTYPE UPF [<!ENTITY a "b">]>', '<!doctype x SYSTEM "file:///etc/passwd">', '<!DOCTYPE UPF SYSTEM "other.dtd">'],
)
def test_upf_document_types_are_never_used(tmp_path: Path, start: str, declaration: str) -> None:
    """A declaration before <UPF is cut off with whatever stands there; one inside, or a use of its entity, is refused."""
    inside = upf_text().replace("<PP_MESH>", declaration + "<PP_MESH>")
    with pytest.raises(InputError):
        read_upf(write(tmp_path, start + inside, "a.upf"))
    with pytest.raises(InputError):
        read_upf(write(tmp_path, start + declaration + upf_text().replace('"GTH"', '"&a;"'), "b.upf"))


def test_upf_version_1_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="version 1"):
        read_upf(write(tmp_path, "<PP_HEADER>\n 0 Version\n</PP_HEADER>\n", "old.upf"))


def psp8_of(tmp_path: Path, switch: int, core: bool) -> RadialPseudo:
    return read_psp8(write(tmp_path, psp8_text(switch, core), "si.psp8"))


@pytest.mark.parametrize("switch", [0, 1, 2, 3])
@pytest.mark.parametrize("core", [False, True])
def test_psp8_numbers_are_those_of_the_closed_forms(tmp_path: Path, switch: int, core: bool) -> None:
    pseudo = psp8_of(tmp_path, switch, core)
    true = analytic(pseudo.r)
    assert (pseudo.element, pseudo.z_valence, pseudo.functional) == ("Si", 4.0, "pbe")
    np.testing.assert_allclose(pseudo.r, 0.01 * np.arange(600), rtol=1e-13)
    np.testing.assert_allclose(pseudo.rab, 0.01, rtol=1e-12)
    np.testing.assert_allclose(pseudo.vloc_ha, true["vloc"], rtol=1e-12)  # printed with fourteen digits
    assert [p.l for p in pseudo.projectors] == [0, 0, 1]
    b, d = np.array([p.rbeta for p in pseudo.projectors]), pseudo.d_ij_ha
    same = np.einsum("ir,ij,js->rs", b[:, ::9], d, b[:, ::9])
    expected = np.einsum("ir,ij,js->rs", true["rbeta"][:, ::9], true["d"], true["rbeta"][:, ::9])
    np.testing.assert_allclose(
        same, expected, atol=1e-11 * np.abs(expected).max()
    )  # the operator, whatever its eigenvectors' signs
    assert (pseudo.rho_atom is not None) == (switch in (1, 3))
    if pseudo.rho_atom is not None:
        np.testing.assert_allclose(pseudo.rho_atom, true["rho"], rtol=1e-12)
    if core:
        assert pseudo.core_density is not None
        assert pseudo.core_density[0] == pytest.approx(CORE_HEIGHT, rel=1e-12)  # the factor 4 pi of the file is taken out
    else:
        assert pseudo.core_density is None


PSP8_REFUSALS = [
    (" 8 11 1", " 7 11 1", "psp8 header"),
    (" 14.0 4.0", " 14.0 5.0", "electrons|does not end"),
    (" 14.0 4.0", " 15.0 4.0", "different elements"),
    (" 14.0 4.0", " 14.5 4.0", "no such element"),
    (" 14.0 4.0", " inf 4.0", "finite number"),
    (" 600 0 ", " 601 0 ", "columns|ends too early|header"),
    (" 2 1 0 0 0 nproj", " 1 1 0 0 0 nproj", "block header"),
    (" 1 1 extension", " 9 1 extension", "out of range"),
    ("\n4\n", "\n3\n", "block header"),
    ("   300 ", "   301 ", "numbered in order"),
]


@pytest.mark.parametrize(("old", "new", "message"), PSP8_REFUSALS)
def test_psp8_refuses(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in psp8_text()
    with pytest.raises(InputError, match=message):
        read_psp8(write(tmp_path, psp8_text().replace(old, new, 1), "si.psp8"))


def test_builtin_gth_silicon_is_the_published_one() -> None:
    si = builtin_gth("Si", "pbe")
    assert (si.name, si.z_valence, si.r_loc, si.c_loc) == ("GTH-PBE-q4", 4, 0.44, (-6.26928833,))
    assert [(channel.l, channel.r_l) for channel in si.channels] == [(0, 0.43563383), (1, 0.49794218)]
    np.testing.assert_array_equal(si.channels[0].h_ij, [[8.95174150, -2.70627082], [-2.70627082, 3.49378060]])
    assert builtin_gth("Si", "lda").c_loc == (-7.33610297,)  # table I of Hartwigsen, Goedecker & Hutter 1998
    assert builtin_gth("Si", "pbesol") == si
    assert builtin_gth("Si", "LDA").functional == "lda"


@pytest.mark.parametrize("functional", ["pbe", "lda"])
def test_builtin_gth_has_every_element_to_radon(functional: str) -> None:
    for symbol in SYMBOLS[:86]:
        pseudo = builtin_gth(symbol, functional)
        assert pseudo.element == symbol
        assert pseudo.name.startswith({"pbe": "GTH-PBE-q", "lda": "GTH-PADE-q"}[functional])
        assert all(np.array_equal(channel.h_ij, channel.h_ij.T) for channel in pseudo.channels)


def test_builtin_gth_valence_variants_and_refusals() -> None:
    assert builtin_gth("Mg", "lda").z_valence == 10
    assert builtin_gth("Mg", "lda", valence=2).z_valence == 2
    with pytest.raises(InputError, match="10, 2"):
        builtin_gth("Mg", "lda", valence=3)
    with pytest.raises(InputError, match="H to Rn"):
        builtin_gth("Og", "pbe")
    with pytest.raises(InputError, match="functional"):
        builtin_gth("Si", "b3lyp")


GTH_TEXT = """# a comment
Si GTH-PBE-q4 GTH-PBE
    2    2
     0.44000000    1    -6.26928833
    2
     0.43563383    2     8.95174150    -2.70627082
                                        3.49378060
     0.49794218    1     2.43127673
#
H GTH-PBE-q1
    1
     0.20000000    2    -4.17890044     0.72446331
    0
"""


def test_read_gth_and_choice_by_element(tmp_path: Path) -> None:
    path = write(tmp_path, GTH_TEXT, "POTENTIALS")
    si, hydrogen = read_gth(path)
    assert si.channels[0].h_ij.tolist() == builtin_gth("Si", "pbe").channels[0].h_ij.tolist()
    assert (hydrogen.z_valence, hydrogen.channels) == (1, ())
    chosen = read_pseudo(path, "H")
    assert isinstance(chosen, GthPseudo)
    assert chosen.name == "GTH-PBE-q1"
    with pytest.raises(InputError, match="single GTH entry"):
        read_pseudo(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    2    2\n", "    2    3\n", "disagree"),
        ("    2    2\n", "    2    -2\n", "negative"),
        ("0.44000000    1", "0.44000000    5", "out of range"),
        ("0.44000000    1", "44.0000000    1", "out of range"),
        ("2.43127673", "2.4312767e9", "out of range"),
        ("2.43127673", "2.43127673 1.0", "more numbers"),
        ("     0.49794218    1     2.43127673\n", "", "too early"),
        ("     0.44000000    1", "NLCC 1\n     0.44000000    1", "NLCC"),
        ("Si GTH", "Xx GTH", "expected an element"),
        ("# a comment", "1.0", "before the first entry"),
    ],
)
def test_gth_refuses(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GTH_TEXT
    with pytest.raises(InputError, match=message) as caught:
        read_gth(write(tmp_path, GTH_TEXT.replace(old, new, 1), "p"))
    assert caught.value.line is not None


def test_read_pseudo_goes_by_content_when_the_name_does_not_tell(tmp_path: Path) -> None:
    for name, text in (("a.upf", upf_text()), ("b.pot", upf_text()), ("c.psp8", psp8_text()), ("d", psp8_text())):
        assert isinstance(read_pseudo(write(tmp_path, text, name), "Si"), RadialPseudo)
    with pytest.raises(InputError, match="another element"):
        read_pseudo(tmp_path / "a.upf", "Ge")
    with pytest.raises(InputError):
        read_pseudo(write(tmp_path, "nothing of the kind", "e.txt"), "Si")
    with pytest.raises(InputError, match="no such file"):
        read_pseudo(tmp_path / "absent.upf")


def test_spike_detector_finds_one_wrong_point_and_passes_kinks_and_steps() -> None:
    x = np.linspace(0.0, 6.0, 300)
    smooth = np.exp(-x) * np.cos(x)
    assert find_spike(smooth) is None
    assert find_spike(np.where(x < 3.0, smooth, 0.0)) is None
    assert find_spike(np.abs(smooth)) is None
    for at in (0, 1, 7, 150, 298, 299):
        wrong = smooth.copy()
        wrong[at] += 1e-4
        assert find_spike(wrong) == at


REAL_UPF = sorted((SHARED / "sg15_pbe").glob("*.upf"))
REAL_PSP8 = sorted((SHARED / "dojo_psp8").glob("*.psp8"))
VALENCE = {"Al": 11, "As": 5, "C": 4, "Cl": 7, "Cu": 19, "F": 7, "Fe": 16, "Ga": 13, "Ge": 14, "H": 1, "Li": 3, "Mg": 10, "N": 5}
VALENCE |= {"Na": 9, "Ni": 18, "O": 6, "P": 5, "S": 6, "Si": 4, "Ti": 12}


@pytest.mark.skipif(not REAL_UPF, reason="shared SG15 files are not here")
def test_real_upf_files_agree_with_physics() -> None:
    for path in REAL_UPF:
        pseudo = read_upf(path)
        assert pseudo.rho_atom is not None
        assert pseudo.z_valence == VALENCE[pseudo.element]
        assert pseudo.functional == "pbe"
        assert pseudo.rho_atom @ pseudo.rab == pytest.approx(pseudo.z_valence, abs=1e-4)  # the sum rule of the generator
        assert pseudo.r[-1] * pseudo.vloc_ha[-1] == pytest.approx(-pseudo.z_valence, abs=3e-5)  # pure Coulomb tail
        per_l = [sum(p.l == l for p in pseudo.projectors) for l in range(4)]
        assert set(per_l) <= {0, 2}  # ONCV: two projectors for each l
    si = read_upf(SHARED / "sg15_pbe" / "Si.upf")
    np.testing.assert_allclose(np.diag(si.d_ij_ha) * 2, [13.175470760, 0.89942935078, 6.2578063808, 0.33766547228], rtol=1e-12)


@pytest.mark.skipif(not REAL_PSP8, reason="shared PseudoDojo files are not here")
def test_real_psp8_files_agree_with_physics() -> None:
    for path in REAL_PSP8:
        pseudo = read_psp8(path)
        assert pseudo.r[-1] * pseudo.vloc_ha[-1] == pytest.approx(-pseudo.z_valence, rel=1e-5)
        assert pseudo.rho_atom is not None
        # the mesh ends at 3 (H) or 6 bohr: the density beyond is lost
        assert pseudo.rho_atom @ pseudo.rab == pytest.approx(pseudo.z_valence, rel=0.1 if pseudo.element == "H" else 0.03)
        assert pseudo.functional == ("lda" if path.stem.endswith("_pw") else "pbe")
    si = read_psp8(SHARED / "dojo_psp8" / "Si_pbe.psp8")
    assert si.core_density is not None
    np.testing.assert_allclose(np.diag(si.d_ij_ha)[:4], [5.1689652486091, 0.82988268711509, 2.5712822871254, 0.57830698791901])
    # The model core replaces the true core inside 1.6 bohr only, so with 4 pi taken out it holds less than the ten core
    # electrons, and at 1.6 bohr it is of the size of the true one, 0.0534 / 4 pi (last column of the file, whose sum is 10.000).
    assert 0.1 < (4 * np.pi * si.r**2 * si.core_density) @ si.rab < 10.0
    assert si.core_density[160] == pytest.approx(0.05335832 / (4 * np.pi), rel=0.2)


@pytest.mark.skipif(not (SHARED / "gth" / "GTH_POTENTIALS").exists(), reason="shared GTH table is not here")
def test_shipped_gth_table_equals_the_one_of_cp2k() -> None:
    for entry in read_gth(SHARED / "gth" / "GTH_POTENTIALS"):
        if entry.functional in ("pbe", "lda") and entry.element in SYMBOLS[:86]:
            ours = builtin_gth(entry.element, entry.functional, entry.z_valence)
            assert (ours.name, ours.r_loc, ours.c_loc) == (entry.name, entry.r_loc, entry.c_loc)
            for a, b in zip(ours.channels, entry.channels, strict=True):
                assert (a.l, a.r_l) == (b.l, b.r_l)
                np.testing.assert_array_equal(a.h_ij, b.h_ij)
