"""`gewu run --json | head -1`: the reader goes away, the run goes on to its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gewu.jobs.result import Result

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_run_ends_when_nobody_reads(tmp_path: Path) -> None:
    table = {"structure": str(EXAMPLES / "aluminium.poscar"), "cutoff_ha": 6.0, "kpoints": [2, 2, 2], "path": "none"}
    keys = "".join(f"{key} = {value!r}\n" for key, value in table.items())
    (tmp_path / "job.toml").write_text(f"[dft]\n{keys}smearing = 'gaussian'\n")
    command = [sys.executable, "-m", "gewu", "run", "job.toml", "--json", "--out", "out"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None and run.stderr is not None
        assert '"event": "start"' in run.stdout.readline()
        run.stdout.close()
        errors = run.stderr.read()
        assert run.wait(timeout=120) == 0, errors
    assert errors == ""
    assert Result.load(tmp_path / "out").state == "finished"
