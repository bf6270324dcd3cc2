"""One source, several devices: a whole calculation on each gives NumPy's numbers, and never mixes host and device arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gewu.core.arrays import Arrays
from gewu.core.context import QuietContext
from gewu.physics.dft import Crystal
from gewu.physics.dft import prepare as preparation
from gewu.physics.dft.bands import band_energies
from gewu.physics.dft.engine import Config, run
from gewu.physics.dft.scf import GroundState
from tests.dfttools import DEVICES, aluminium, low_symmetry, make_solver, on_device, silicon
from tests.strictdevice import DeviceArray

METAL = {"smearing": "marzari-vanderbilt", "width_ha": 0.02}
CASES: dict[str, tuple[Crystal, dict[str, Any]]] = {
    "silicon": (silicon(), {"functional": "pbe"}),
    "aluminium": (aluminium(), {"functional": "pbesol", **METAL}),
    "triclinic": (low_symmetry(), {"functional": "lda"}),
    "tiny": (silicon(), {"functional": "pbe", "bands": 14, "cutoff_ha": 1.0}),  # dense diagonalisation
}
K = np.array([[0.0, 0.0, 0.0], [0.1, 0.2, 0.3]])


def calculate(name: str, device: Arrays) -> tuple[GroundState, np.ndarray]:
    crystal, options = CASES[name]
    solver = make_solver(crystal, **{"cutoff_ha": 5.0, "device": device, **options})
    ground = solver.run()
    assert ground is not None and ground.converged
    return ground, band_energies(solver.basis, solver.ions, solver.local_potential(ground.rho_in)[0], K, 6, QuietContext())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", [d for d in DEVICES if d != "scipy"])
def test_every_device_gives_the_numbers_of_numpy(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ground, bands = calculate(name, on_device(kind, monkeypatch))
    reference, reference_bands = calculate(name, on_device("scipy", monkeypatch))
    # The strict device computes by NumPy: the same operations, the same bits but for batch sizes. Other libraries round
    # differently, which
    # may change the number of steps of a band: energies then agree as two converged runs do, to the tolerance of the cycle
    # (1e-10).
    tolerance = 1e-12 if kind == "strict" else 1e-9
    assert ground.energy == pytest.approx(reference.energy, abs=tolerance)
    np.testing.assert_allclose(bands, reference_bands, atol=1e-10 if kind == "strict" else 1e-6)
    for field in (ground.eps, ground.rho_g, ground.rho_in, ground.residual, ground.history, ground.occupations.f):
        assert type(field) is np.ndarray  # results are in host memory


@pytest.mark.parametrize("kind", [d for d in DEVICES if d != "scipy"])
def test_the_whole_engine_on_a_device(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "si.vasp").write_text(
        "Si\n1.0\n0 2.715 2.715\n2.715 0 2.715\n2.715 2.715 0\nSi\n2\nDirect\n0 0 0\n0.25 0.25 0.25\n"
    )
    config = Config(structure=str(tmp_path / "si.vasp"), cutoff_ha=5.0, kpoints=(2, 2, 2), path="L G X", path_points=6)
    contexts = {}
    for name in (kind, "scipy"):
        device = on_device(name, monkeypatch)
        monkeypatch.setattr(preparation, "arrays", lambda *_, chosen=device: chosen)
        contexts[name] = QuietContext()
        run(config, contexts[name])
    tolerance = 1e-12 if kind == "strict" else 1e-8
    assert contexts[kind].numbers["energy_ha"][0] == pytest.approx(contexts["scipy"].numbers["energy_ha"][0], abs=tolerance)
    assert set(contexts[kind].arrays) == set(contexts["scipy"].arrays)
    for name, array in contexts[kind].arrays.items():
        assert not isinstance(array, DeviceArray), name
        assert np.shape(array) == np.shape(contexts["scipy"].arrays[name])


@pytest.mark.parametrize("kind", [d for d in DEVICES if d != "scipy"])
def test_a_checkpoint_of_a_device_is_in_host_memory_and_resumes_there(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = on_device(kind, monkeypatch)
    ctx = QuietContext()
    whole = make_solver(silicon(), 5.0, device=device, ctx=ctx).run()
    assert whole is not None and ctx.state is not None
    assert all(type(psi) is np.ndarray for psi in ctx.state["psi"])
    resumed = make_solver(silicon(), 5.0, device=device, ctx=QuietContext(restored=ctx.state)).run()
    assert resumed is not None
    assert resumed.energy == whole.energy
