"""The aluminium of examples/aluminium.toml against ABINIT 9.6.2, through `gewu.run`.

ABINIT ran with the same GTH-PBE-q3 numbers (pspcod 10), 15 Ha, 8 x 8 x 8 mesh through Gamma, 10 bands, grid 20^3 and, as it
lacks the smearing of the example, Gaussian smearing of 0.01 Ha (occopt 7); PBE of libxc (ixc -101130); toldfe 1e-12 Ha.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import gewu

EXAMPLES = Path(__file__).parents[2] / "examples"
ENERGY_HA, ENTROPY_TERM_HA = -2.0738741099324, -5.17645691983545e-4


def test_aluminium_agrees_with_abinit(tmp_path: Path) -> None:
    text = (EXAMPLES / "aluminium.toml").read_text()
    for key, value in (
        ("smearing", '"gaussian"'),
        ("functional", '"pbe-libxc"'),
        ("path", '"none"'),
        ("dos_kpoints", "[0, 0, 0]"),
    ):
        line = next(line for line in text.splitlines() if line.startswith(f"{key} ="))
        text = text.replace(line, f"{key} = {value}")
    (tmp_path / "aluminium.toml").write_text(text)
    (tmp_path / "aluminium.poscar").write_bytes((EXAMPLES / "aluminium.poscar").read_bytes())
    result = gewu.run(tmp_path / "aluminium.toml", out=tmp_path / "out")
    assert result.converged
    assert result["energy"] == pytest.approx(ENERGY_HA, abs=1e-7)  # measured: 1e-8
    assert result["energy_minus_ts_ha"] == pytest.approx(ENTROPY_TERM_HA, abs=1e-7)
