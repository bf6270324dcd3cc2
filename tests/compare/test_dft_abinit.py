"""Silicon against ABINIT (the reference values that DFTK.jl keeps in its tests), with the same pseudopotential, cutoff, grid
and k points."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from gewu.formats import read_pseudo
from gewu.physics.dft import Crystal
from gewu.physics.dft.scf import GroundState
from tests.dfttools import make_ions, make_solver

REFERENCE = json.loads((Path(__file__).parent / "data" / "dft_abinit.json").read_text())
SHARED = Path(__file__).parents[3] / "shared" / "data" / "dft"


class Solution(NamedTuple):
    ground: GroundState
    eps: np.ndarray  # at the k points of the reference, (nk, bands)
    mean_potential: float


def solve(case: dict[str, Any], functional: str, **pseudos: Any) -> Solution:
    crystal = Crystal(np.array(case["lattice_bohr"]), tuple(case["symbols"]), np.array(case["frac"]))
    ions = make_ions(crystal, case["cutoff_ha"], functional.split("-")[0], **pseudos)
    options = {"functional": functional, "bands": len(case["eigenvalues_ha"][0]) + 2, "tolerance_ha": 1e-11}
    solver = make_solver(crystal, case["cutoff_ha"], tuple(case["kpoints"]), grid=case["fft_grid"], ions=ions, **options)
    ground = solver.run()
    assert ground is not None and ground.converged
    np.testing.assert_allclose(np.sort(solver.mesh.weight), np.sort(case["weights"]), atol=1e-12)
    lengths = [np.linalg.norm((k - np.round(k)) @ crystal.reciprocal) for k in solver.mesh.k]
    order = []
    for k in np.array(case["k"]):  # another member of the same star may represent it; weights and lengths tell the four apart
        weight = case["weights"][len(order)]
        order.append(
            next(
                i
                for i in np.argsort(np.abs(lengths - np.linalg.norm(k @ crystal.reciprocal)))
                if abs(solver.mesh.weight[i] - weight) < 1e-9
            )
        )
    assert sorted(order) == list(range(len(solver.mesh.k)))
    return Solution(ground, ground.eps[order], float(solver.potential.v_ion_g[0].real))


@pytest.fixture(scope="module")
def pbe() -> Solution:
    return solve(REFERENCE["cases"]["silicon_pbe"], "pbe-libxc")


def test_energy_of_silicon_with_the_constants_of_libxc(pbe: Solution) -> None:
    # measured: 2.1e-8 Ha; the reference is itself converged to about that
    assert pbe.ground.energy == pytest.approx(REFERENCE["cases"]["silicon_pbe"]["energy_ha"], abs=1e-7)


def test_energy_of_silicon_with_the_printed_constant() -> None:
    # the constant A of the correlation (see gewu.physics.dft.xc) is 0.83 microhartree of it
    difference = solve(REFERENCE["cases"]["silicon_pbe"], "pbe").ground.energy - REFERENCE["cases"]["silicon_pbe"]["energy_ha"]
    assert abs(difference) < 1e-6
    assert difference == pytest.approx(-0.83e-6, abs=1e-7)


def compare_bands(solution: Solution, case: dict[str, Any], atol: float) -> None:
    theirs = np.array(case["eigenvalues_ha"])
    difference = solution.eps[:, : theirs.shape[1]] - theirs
    shift = difference[:, :4].mean()  # the zero of energy in a crystal is a convention:
    assert shift == pytest.approx(solution.mean_potential, abs=1e-5)  # ABINIT leaves the mean of the ions' potential out
    np.testing.assert_allclose(difference[:, :-1], shift, atol=atol)  # the last band is not converged in the reference


def test_eigenvalues_of_silicon(pbe: Solution) -> None:
    compare_bands(pbe, REFERENCE["cases"]["silicon_pbe"], 1e-6)  # DFTK asks for 1e-5; measured 1e-7


def test_silicon_with_a_core_correction() -> None:
    """A psp8 file with a model core density, LDA."""
    path = SHARED / "dojo_psp8" / "Si_pw.psp8"
    if not path.exists():
        pytest.skip("needs ../shared/data/dft/dojo_psp8/Si_pw.psp8 (PseudoDojo)")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == REFERENCE["sha256"][path.name]
    pseudo = read_pseudo(path)
    assert pseudo.core_density is not None
    case = REFERENCE["cases"]["silicon_nlcc"]
    solution = solve(case, "lda", Si=pseudo)
    # Measured: 1.3e-9 Ha and 2e-7 Ha (DFTK's own test asks for 6e-5): the form factors are integrals of the same table.
    assert solution.ground.energy == pytest.approx(case["energy_ha"], abs=1e-7)
    compare_bands(solution, case, 1e-6)
