"""DFT jobs that cannot be computed are refused before anything large exists, with key or file, the value and what is allowed."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import gewu
from gewu.core.context import QuietContext
from gewu.core.errors import ConvergenceError, GewuError, InputError, ResourceError
from gewu.core.schema import parse
from gewu.physics.dft.engine import Config, run
from gewu.physics.dft.prepare import prepare
from tests.dfttools import Stopping
from tests.faults.faultlib import child_environment

SILICON = ((0.0, 0.0, 0.0), (0.25, 0.25, 0.25))
CELL = ((0.0, 2.715, 2.715), (2.715, 0.0, 2.715), (2.715, 2.715, 0.0))
QUICK = {"cutoff_ha": 4.0, "kpoints": [1, 1, 1], "path": "none"}


def poscar(
    folder: Path, cell: Any = CELL, symbols: tuple[str, ...] = ("Si", "Si"), frac: Any = SILICON, name: str = "si.vasp"
) -> Path:
    """Write a POSCAR with one species line entry per atom."""
    rows = [*(" ".join(map(str, v)) for v in cell), " ".join(symbols), " ".join("1" for _ in symbols), "Direct"]
    rows += [" ".join(map(str, x)) for x in frac]
    path = folder / name
    path.write_text("\n".join(["a crystal", "1.0", *rows]) + "\n")
    return path


def compute(structure: Path, **keys: Any) -> QuietContext:
    """Run the engine on a table, as a job would."""
    ctx = QuietContext()
    run(parse(Config, {"structure": str(structure), **QUICK, **keys}, section="dft"), ctx)
    return ctx


def refused(structure: Path, kind: type[GewuError], *said: str, **keys: Any) -> GewuError:
    with pytest.raises(kind) as caught:
        compute(structure, **keys)
    for part in said:
        assert part in str(caught.value), str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frac": ((0, 0, 0), ("nan", 0.25, 0.25))}, ["si.vasp"]),
        ({"frac": ((0, 0, 0), ("inf", 0.25, 0.25))}, ["si.vasp"]),
        ({"frac": ((0, 0, 0), (0.01, 0.0, 0.0))}, ["overlap", "1 (Si) and 2 (Si)"]),
        ({"frac": ((0, 0, 0), (1.0, -1.0, 2.0))}, ["overlap"]),
        ({"cell": ((1, 0, 0), (0, 1, 0), (1, 1, 0))}, ["volume"]),
        ({"cell": ((2.715, 0.0, 2.715), (0.0, 2.715, 2.715), (2.715, 2.715, 0.0))}, ["left-handed"]),
        ({"cell": (("nan", 0, 0), (0, 5, 0), (0, 0, 5))}, ["si.vasp"]),
        ({"symbols": ("Si", "Sj")}, ["Sj"]),
        ({"symbols": ("Si", "Og")}, ["Og", "H to Rn"]),  # an element, but in no table of pseudopotentials
    ],
)
def test_a_structure_that_cannot_be(tmp_path: Path, change: dict[str, Any], said: list[str]) -> None:
    refused(poscar(tmp_path, **change), InputError, *said)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"cutoff_ha": -1.0}, ["dft.cutoff_ha", "-1.0"]),
        ({"cutoff_ha": float("nan")}, ["dft.cutoff_ha", "finite"]),
        ({"cutoff_ha": float("inf")}, ["dft.cutoff_ha", "finite"]),
        ({"cutoff_ha": "high"}, ["dft.cutoff_ha", "high"]),
        ({"cutoff_ha": 0.001}, ["dft."]),
        ({"kpoints": [2, 2, 0]}, ["kpoints", "0 0 0"]),
        ({"kpoints": [2, -2, 2]}, ["dft.kpoints"]),
        ({"kpoints": [2, 2]}, ["dft.kpoints"]),
        ({"kshift": [0.25, 0.0, 0.0]}, ["dft.kshift", "0.5"]),
        ({"dos_kpoints": [0, 4, 4]}, ["dos_kpoints"]),
        ({"fft_grid": [6, 6, 6]}, ["dft.fft_grid", "too coarse", "at least"]),
        ({"fft_grid": [0, 20, 20]}, ["fft_grid"]),
        ({"bands": 3}, ["dft.bands", "too few", "at least"]),
        ({"bands": 500}, ["dft.bands", "more bands than plane waves", "at most"]),
        ({"functional": "pbee"}, ["dft.functional", "pbe"]),
        ({"functional": "b3lyp"}, ["dft.functional", "lda", "pbe", "pbesol"]),
        ({"smearing": "gausian"}, ["dft.smearing", "gaussian"]),
        ({"smearing": "gaussian", "smearing_width_ha": 0.0}, ["dft.smearing_width_ha"]),
        ({"path": "L G Q"}, ["dft.path", "'Q'", "allowed", "X"]),
        ({"path": "G"}, ["dft.path"]),
        ({"pseudo": {"Ge": "gth"}}, ["no pseudopotential for Si", "dft.pseudo", "add Si"]),
        ({"pseudo": "gth-q9"}, ["Si", "9", "4"]),
        ({"pseudo": {"Si": "gth-4"}}, ["dft.pseudo", "gth-4", "gth-qN"]),
        ({"pseudo": "absent.upf"}, ["absent.upf"]),
        ({"cutof_ha": 5.0}, ["dft.cutof_ha", "did you mean 'cutoff_ha'"]),
        ({"energy_tolerance_ha": 0.0}, ["dft.energy_tolerance_ha"]),
        ({"max_iterations": 0}, ["dft.max_iterations"]),
        ({"seed": -1}, ["dft.seed"]),
        ({"cell": "conventional"}, ["dft.cell", "primitive"]),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, keys: dict[str, Any], said: list[str]) -> None:
    refused(poscar(tmp_path), InputError, *said, **keys)


def test_an_odd_number_of_electrons_needs_a_smearing(tmp_path: Path) -> None:
    aluminium = poscar(tmp_path, cell=((0, 2.02, 2.02), (2.02, 0, 2.02), (2.02, 2.02, 0)), symbols=("Al",), frac=((0, 0, 0),))
    refused(aluminium, InputError, "odd number of electrons", "dft.smearing", "marzari-vanderbilt", "3 electrons")
    compute(aluminium, smearing="gaussian", kpoints=[2, 2, 2])


@pytest.mark.parametrize("cutoff", [1e5, 1e6, 1e9, 1e30, 1e300])
def test_a_cutoff_beyond_memory_is_refused_before_anything_is_allocated(tmp_path: Path, cutoff: float) -> None:
    structure = poscar(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises((ResourceError, InputError)) as caught:
            compute(structure, cutoff_ha=cutoff)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 300e6  # the wavefunctions alone would be terabytes; a reader may reserve its cap of 200 MB for a file
    if cutoff <= 1e6:
        assert caught.value.exit_code == 4
        assert "GiB" in str(caught.value) and "cutoff_ha" in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"fft_grid": [20000, 20000, 20000]},
        {"kpoints": [100000, 100000, 100000]},
        {"kpoints": [600, 600, 600]},
        {"dos_kpoints": [100000, 100000, 100000]},
        {"bands": 10**12},
        {"kpoints": [10**15, 1, 1]},
    ],
)
def test_other_settings_beyond_memory(tmp_path: Path, keys: dict[str, Any]) -> None:
    structure = poscar(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises((ResourceError, InputError)):
            compute(structure, **keys)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 300e6


def test_a_pseudopotential_file_needs_a_cutoff(tmp_path: Path) -> None:
    upf = tmp_path / "Si.psp8"
    upf.write_text(synthetic_psp8())
    refused(poscar(tmp_path), InputError, "cutoff_ha", "names no cutoff", pseudo={"Si": str(upf)}, cutoff_ha=0.0)
    assert compute(poscar(tmp_path), pseudo={"Si": str(upf)}).numbers["energy_ha"][2]


def synthetic_psp8() -> str:
    """Return a local pseudopotential -4 erf(r)/r of silicon in the psp8 format."""
    from math import erf, sqrt

    n = 601
    lines = ["Si    made up", "14.0 4.0 261122 zatom zion pspd", f"8 11 0 4 {n} 0 pspcod,pspxc,lmax,lloc,mmax,r2well"]
    lines += ["6.0 0.0 0.0 rchrg fchrg qchrg", "0 0 0 0 0 nproj", "0 extension_switch", " 4"]
    for i in range(n):
        r = 0.01 * i
        v = -4 * erf(r) / r if r else -8 / sqrt(3.141592653589793)
        lines.append(f"{i + 1} {r:.10e} {v:.13e}")
    return "\n".join(lines) + "\n"


def test_a_pseudopotential_of_another_functional_is_told(tmp_path: Path) -> None:
    upf = tmp_path / "Si.psp8"
    upf.write_text(synthetic_psp8())
    ctx = QuietContext()
    table = {"structure": str(poscar(tmp_path)), "pseudo": {"Si": str(upf)}, "functional": "lda", **QUICK}
    prepare(parse(Config, table, section="dft"), ctx)
    assert any("made for pbe" in w and "lda" in w for w in ctx.warnings)


def test_a_metal_with_fixed_occupations_is_told(tmp_path: Path) -> None:
    magnesium = poscar(tmp_path, cell=((0, 2.25, 2.25), (2.25, 0, 2.25), (2.25, 2.25, 0)), symbols=("Mg",), frac=((0, 0, 0),))
    ctx = compute(magnesium, pseudo="gth-q2", kpoints=[2, 2, 2], path="L G X W", path_points=12, energy_tolerance_ha=1e-5)
    assert any("this is a metal, computed with fixed occupations" in w and "smearing" in w for w in ctx.warnings)
    assert ctx.numbers["gap_ev"][0] == 0.0


def test_a_mesh_less_symmetric_than_the_crystal_is_told(tmp_path: Path) -> None:
    assert any("k mesh is less symmetric" in w for w in compute(poscar(tmp_path), kpoints=[1, 1, 2]).warnings)
    assert not compute(poscar(tmp_path), kpoints=[2, 2, 2]).warnings


def test_a_cycle_that_does_not_converge_is_flagged(tmp_path: Path) -> None:
    ctx = QuietContext()
    config = parse(Config, {"structure": str(poscar(tmp_path)), **QUICK, "max_iterations": 2}, section="dft")
    with pytest.raises(ConvergenceError, match="not reached in 2 iterations") as caught:
        run(config, ctx)
    assert caught.value.exit_code == 3 and caught.value.key == "dft.max_iterations"
    flags = {name: converged for name, (_, _, converged) in ctx.numbers.items()}
    assert flags["energy_ha"] is False and flags["fermi_ev"] is False and flags["energy_per_atom_ha"] is False
    assert all(flag is (name == "energy_ewald_ha") for name, flag in flags.items() if name.startswith("energy"))
    assert "gap_ev" not in flags  # nothing is built on a potential that is not the answer
    assert len(ctx.arrays["scf_history"]) == 2


def test_without_a_gpu_cuda_is_refused(tmp_path: Path) -> None:
    try:
        import cupy  # noqa: F401
    except ImportError:
        config = parse(Config, {"structure": str(poscar(tmp_path)), **QUICK}, section="dft")
        with pytest.raises(ResourceError, match="no usable GPU"):
            run(config, QuietContext(device="cuda"))
    else:
        pytest.skip("CuPy is installed")


@pytest.mark.parametrize("after", [0, 3, 6, 12])
def test_stopped_anywhere_it_resumes_with_the_same_numbers(tmp_path: Path, after: int) -> None:
    """In the cycle, between bands: `after` counts the times the engine asked whether to stop."""
    config = parse(Config, {"structure": str(poscar(tmp_path)), **QUICK, "path": "L G X", "path_points": 12}, section="dft")
    whole, first = QuietContext(), Stopping(after)
    run(config, whole)
    run(config, first)
    assert first.state is not None and "gap_ev" not in first.numbers
    again = QuietContext(restored=first.state)
    run(config, again)
    del whole.numbers["time_scf_s"], again.numbers["time_scf_s"]
    assert again.numbers == whole.numbers
    assert {k: v.tobytes() for k, v in again.arrays.items()} == {k: v.tobytes() for k, v in whole.arrays.items()}


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gewu", "run", *arguments],
        cwd=folder,
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def job(folder: Path, **keys: Any) -> Path:
    poscar(folder)
    table = {"structure": "si.vasp", **QUICK, **keys}
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    path = folder / "job.toml"
    path.write_text("[job]\nthreads = 1\n\n[dft]\n" + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        ({"functional": "pbee"}, 2, "dft.functional"),
        ({"structure": "absent.vasp"}, 2, "absent.vasp"),
        ({"cutoff_ha": 1e6}, 4, "GiB"),
    ],
)
def test_exit_codes_of_the_command(tmp_path: Path, keys: dict[str, Any], code: int, said: str) -> None:
    job(tmp_path, **keys)
    done = command(tmp_path, "job.toml", "--json")
    assert done.returncode == code, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["event"], last["exit"]) == ("done", code)
    assert said in last["error"]
    assert "Traceback" not in done.stderr


def test_a_run_that_does_not_converge_ends_with_exit_three_and_a_flagged_result(tmp_path: Path) -> None:
    job(tmp_path, max_iterations=2)
    done = command(tmp_path, "job.toml", "--out", "flagged", "--json")
    assert done.returncode == 3
    numbers = json.loads((tmp_path / "flagged" / "numbers.json").read_text())
    assert numbers["energy_ha"]["converged"] is False
    manifest = json.loads((tmp_path / "flagged" / "manifest.json").read_text())
    assert manifest["state"] == "not-converged"
    result = gewu.load(tmp_path / "flagged")
    assert not result.converged
    assert "not reached in 2 iterations" in (tmp_path / "flagged" / "report.html").read_text()


def test_the_python_call_raises_what_the_command_tells(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few bands"):
        gewu.run(job(tmp_path, bands=2), out=tmp_path / "refused", quiet=True)
    with pytest.raises(ConvergenceError):
        gewu.run(job(tmp_path, max_iterations=2), out=tmp_path / "flagged", quiet=True)
    assert gewu.load(tmp_path / "flagged").state == "not-converged"
