"""Equations of state against the all-electron average of the ACWF project (Bosoni et al., Nat. Rev. Phys. 6, 45, 2024).

Nothing of gewu but the physics enters here: a wrong sign or factor anywhere in the energy would move the lattice constant.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gewu.core.units import BOHR_ANGSTROM, HARTREE_EV
from gewu.formats import read_pseudo
from gewu.physics.dft import Crystal, make_ion
from tests.dfttools import FCC, ground_state

DATA = Path(__file__).parents[3] / "shared/data/dft"
STRAINS = np.linspace(0.94, 1.06, 7)  # volumes, as the project takes them
DIAMOND = np.array([[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]])

# element, structure of the project, file, cutoff (Ha), mesh. Seen: V0 and B0 off by +0.68 and -1.2 % (Si, SG15, which has no core
# correction; +0.61 % at 30 Ha), +0.02 and +0.1 % (Si, PseudoDojo), -0.34 and +1.7 % (Al), -0.33 and -0.3 % (C, SG15).
CASES = [
    ("Si", "Diamond", "sg15_pbe/Si.upf", 16.0, (6, 6, 6), DIAMOND, {}),
    ("Si", "Diamond", "dojo_psp8/Si_pbe.psp8", 20.0, (6, 6, 6), DIAMOND, {}),
    ("Al", "FCC", "dojo_psp8/Al_pbe.psp8", 18.0, (16, 16, 16), np.zeros((1, 3)), {"smearing": "gaussian", "width_ha": 0.005}),
    ("C", "Diamond", "sg15_pbe/C.upf", 40.0, (6, 6, 6), DIAMOND, {}),
]
VOLUME_SHARE, MODULUS_SHARE = 0.008, 0.03  # what frozen-core potentials are known to leave


def birch_murnaghan(volume: np.ndarray, energy: np.ndarray) -> tuple[float, float]:
    """Return V0 and B0 of the third-order equation of state, a cubic in V^(-2/3), by least squares."""
    cubic = np.polynomial.Polynomial.fit(volume ** (-2 / 3), energy, 3).convert()
    roots = cubic.deriv().roots()
    x = next(r.real for r in roots if abs(r.imag) < 1e-12 and cubic.deriv(2)(r.real) > 0)
    v0 = x**-1.5
    return float(v0), float(4 / 9 * cubic.deriv(2)(x) * v0 ** (-7 / 3))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[f"{c[0]}-{c[2].split('/')[0]}" for c in CASES])
def test_volume_and_bulk_modulus_are_the_all_electron_ones(case: tuple) -> None:  # type: ignore[type-arg]
    element, structure, file, cutoff_ha, mesh, frac, options = case
    if not (DATA / file).is_file():
        pytest.skip("the shared pseudopotentials are absent")
    entry = json.loads((DATA / "acwf_unaries_pbe_ae.json").read_text())["unaries"][f"{element}/{structure}"]
    ion = make_ion(read_pseudo(DATA / file, element), 2 * np.sqrt(2 * cutoff_ha) * 1.01)
    v0_bohr3 = entry["V0_A3_per_cell"] / BOHR_ANGSTROM**3
    volumes = STRAINS * v0_bohr3
    energies = []
    for volume in volumes:
        crystal = Crystal((4 * volume) ** (1 / 3) * FCC, (element,) * len(frac), frac)
        ground = ground_state(crystal, cutoff_ha, mesh, ions={element: ion}, tolerance_ha=1e-8, **options)
        energies.append(ground.energy)
    v0, b0 = birch_murnaghan(volumes, np.array(energies))
    assert v0 == pytest.approx(v0_bohr3, rel=VOLUME_SHARE)
    assert b0 * HARTREE_EV / BOHR_ANGSTROM**3 == pytest.approx(entry["B0_eV_A3"], rel=MODULUS_SHARE)
