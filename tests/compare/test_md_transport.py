"""SPC/E water at 298 K against the literature, through a job like `examples/water.toml`.

Mark & Nilsson, J. Phys. Chem. A 105, 9954 (2001): g_OO peaks at 0.275 nm with a height of 3.0 to 3.1; D = 2.4 to 2.7e-5 cm2/s at
298 K.  A periodic box of 512 molecules takes 2.837 kT/(6 pi eta L) = 0.35e-5 from D (Yeh and Hummer, eta = 0.73 mPa s), so that
2.2 to 2.8e-5 is what is expected here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gewu


@pytest.mark.slow
def test_structure_and_transport_of_water(tmp_path: Path) -> None:
    table = {
        "job": {"title": "SPC/E water", "threads": 1},
        "md": {
            "water": "spce",
            "molecules": 512,
            "cutoff_nm": 0.9,
            "minimise": 200,
            "ensemble": "nvt",
            "temperature_k": 298.15,
            "timestep_fs": 2.0,
            "equilibration_ps": 10.0,
            "time_ps": 40.0,
        },
    }
    result = gewu.run(table, out=tmp_path / "water.result", quiet=True)
    assert (
        abs(result["temperature_mean_k"] - 298.15) < 3.0
    )  # spread of one sample 298 sqrt(2/3069) = 7.6; 500 of them, correlated
    assert result["rdf_peak_o_o_nm"] == pytest.approx(0.275, abs=0.004)  # shells are 0.002 or 0.004 wide
    assert 2.9 < result["rdf_height_o_o"] < 3.2
    # statistical error of D in 40 ps: 0.15e-5 (its spread over seeds); two of them around the range that is expected
    assert 1.9e-5 < result["diffusion_o_cm2_s"] < 3.1e-5
    assert result["diffusion_h_cm2_s"] == pytest.approx(result["diffusion_o_cm2_s"], rel=0.2)  # rigid molecules move as a whole
    # energy of SPC/E with PME and the tail at this density: -46.6 to -46.8 kJ/mol a molecule
    assert result["potential_mean_kj_mol"] / 512 == pytest.approx(-46.7, abs=0.5)
    if "dielectric_constant" in result.numbers:  # left out while its error cannot be told; 71 after nanoseconds, here its size
        assert 10 < result["dielectric_constant"] < 300
    g = np.asarray(result["rdf"])[0]
    assert g[:5].max() == 0 and g[-20:].mean() == pytest.approx(1.0, abs=0.05)
