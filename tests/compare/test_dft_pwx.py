"""Five crystals against pw.x of Quantum ESPRESSO 6.7 with the same SG15 files, cutoff, k points and FFT grid.

The pseudopotential files are not part of gewu: without ../shared/data/dft/sg15_pbe these tests are skipped
(`test_dft_abinit` needs none).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.units import HARTREE_EV
from gewu.formats import read_pseudo
from gewu.physics.dft import Crystal, ScfSolver
from gewu.physics.dft.scf import GroundState
from tests.dfttools import make_ions, make_solver

REFERENCE = json.loads((Path(__file__).parent / "data" / "dft_pwx.json").read_text())
SHARED = Path(__file__).parents[3] / "shared" / "data" / "dft" / "sg15_pbe"
QUICK = ("si2-444", "al-smearing")
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in REFERENCE["cases"]]
_solved: dict[str, tuple[ScfSolver, GroundState]] = {}


def solved(name: str) -> tuple[dict[str, Any], ScfSolver, GroundState]:
    """Return the case, and gewu's solution of it (computed once)."""
    case = REFERENCE["cases"][name]
    if name not in _solved:
        crystal = Crystal(np.array(case["cell_bohr"]), tuple(case["symbols"]), np.array(case["frac"]))
        pseudos = {}
        for symbol in crystal.species:
            path = SHARED / f"{symbol}.upf"
            if not path.exists():
                pytest.skip(f"needs ../shared/data/dft/sg15_pbe/{path.name}")
            assert hashlib.sha256(path.read_bytes()).hexdigest() == REFERENCE["sha256"][path.name]
            pseudos[symbol] = read_pseudo(path)
        width = case["marzari_vanderbilt_width_ha"]
        options: dict[str, Any] = {"smearing": "marzari-vanderbilt", "width_ha": width} if width else {}
        ions = make_ions(crystal, case["cutoff_ha"], **pseudos)
        options |= {"bands": case["bands"] + 2, "grid": case["fft_grid"], "ions": ions, "tolerance_ha": 1e-10}
        solver = make_solver(crystal, case["cutoff_ha"], tuple(case["kpoints"]), **options)
        ground = solver.run()
        assert ground is not None and ground.converged
        _solved[name] = solver, ground
    return case, *_solved[name]


@pytest.mark.parametrize("name", CASES)
def test_total_energy(name: str) -> None:
    case, _, ground = solved(name)
    per_atom_microrydberg = (ground.energy - case["energy_ha"]) * 2e6 / len(case["symbols"])
    # asked for: 2; expected below 0.4 from pw.x's Ewald sum (0.06), its table of projectors and its convergence (1e-10 Ry)
    assert abs(per_atom_microrydberg) < 0.4


@pytest.mark.parametrize("name", CASES)
def test_terms_of_the_energy(name: str) -> None:
    case, _, ground = solved(name)
    # Hartree and xc are of first order in what is left of the density error: the square root of 1e-10 Ry and some; Ewald is
    # exact here
    assert ground.energies["ewald"] == pytest.approx(case["ewald_ha"], abs=1e-7 * len(case["symbols"]))
    assert ground.energies["hartree"] == pytest.approx(case["hartree_ha"], abs=2e-4)
    assert ground.energies["xc"] == pytest.approx(case["xc_ha"], abs=2e-4)
    assert ground.energies["minus_ts"] == pytest.approx(case["minus_ts_ha"], abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_eigenvalues_at_points_of_high_symmetry(name: str) -> None:
    case, solver, ground = solved(name)
    assert len(solver.mesh.k) == case["irreducible_kpoints"]
    cartesian = np.linalg.norm(solver.mesh.k @ solver.basis.crystal.reciprocal, axis=1)
    ours, theirs = [], []
    for point in case["points"].values():
        length = np.linalg.norm(np.array(point["k"]) @ solver.basis.crystal.reciprocal)
        same = [i for i in np.flatnonzero(np.abs(cartesian - length) < 1e-6) if is_half(solver.mesh.k[i])]
        assert len(same) == 1
        ours.append(ground.eps[same[0]][: case["bands"]] * HARTREE_EV)
        theirs.append(point["eigenvalues_ev"])
    difference = np.array(ours) - np.array(theirs)
    occupied = slice(0, 3)  # aligned at the lowest bands, which are filled in all five
    difference -= difference[:, occupied].mean()
    # 1 meV is asked for. pw.x's empty bands are converged to 0.14 meV, and of the last ones it misses some: in aluminium the
    # third of a
    # threefold level at Gamma (23.636 eV, band 8 of 10), which dense diagonalisation confirms.
    assert np.abs(difference[:, :-3]).max() < 1e-3


def is_half(k: np.ndarray) -> bool:
    return bool(np.allclose(2 * k, np.round(2 * k), atol=1e-9))


def test_fermi_energy_of_aluminium() -> None:
    case, _, ground = solved("al-smearing")
    assert ground.occupations.mu * HARTREE_EV == pytest.approx(case["fermi_ev"], abs=1e-3)  # 1 meV is asked for
