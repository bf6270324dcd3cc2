"""The code of docs/tutorials/dft.md runs, and says what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/tutorials/dft.md"


def test_the_parts_work_without_a_job_file(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    exec(compile(code, str(PAGE), "exec"), {})
    energy = float(capsys.readouterr().out.split()[0])
    # an energy at 12 Ha and 3x3x3 lies above the converged -7.87 Ha of this pseudopotential, by less than 30 mHa
    assert -7.87 < energy < -7.84
