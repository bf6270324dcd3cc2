"""Other formats: extended xyz with forces, results of gewu, HDF5 and NetCDF."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from gewu.data.convert import export, format_of, source
from tests.data.converttools import random_samples, read, same, stored


def test_frames_with_forces(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    frames = []
    for n in (2, 3, 2):
        frames.append({"numbers": random.integers(1, 118, n).astype(np.int32), "positions": random.normal(size=(n, 3)),
                       "pbc": np.array([True, True, False]), "cell": np.diag(random.uniform(3, 5, 3)) if n == 2 else None,
                       "energy": float(random.normal()), "forces": random.normal(size=(n, 3)),
                       "stress": random.normal(size=(3, 3)),
                       "charges": random.normal(size=n), "config": f"bulk {n}", "step": n, "ok": n == 2})  # fmt: skip
    types = {"numbers": "int32[*]", "positions": "float64[*,3]", "pbc": "bool[3]", "cell": "float64[3,3]?", "energy": "float64"}
    types |= {
        "forces": "float64[*,3]",
        "stress": "float64[3,3]",
        "charges": "float64[*]",
        "config": "text",
        "step": "int64",
        "ok": "bool",
    }
    export(stored(tmp_path / "store", frames, types), tmp_path / "x.extxyz", "extxyz")
    found, again = read(tmp_path / "x.extxyz")
    assert found == types
    assert all(same(old[name], new[name]) for old, new in zip(frames, again, strict=True) for name in types)
    schema = source(tmp_path / "x.extxyz").schema
    assert (schema["forces"].unit, schema["energy"].unit, schema["cell"].unit) == ("eV/Å", "eV", "Å")


def test_frames_that_ase_reads_and_writes(tmp_path: Path) -> None:
    ase_io, build = pytest.importorskip("ase.io"), pytest.importorskip("ase.build")
    single = pytest.importorskip("ase.calculators.singlepoint")
    silicon = build.bulk("Si") * (2, 1, 1)
    forces, stress = np.arange(12.0).reshape(4, 3) / 7, np.arange(6.0)
    silicon.calc = single.SinglePointCalculator(silicon, energy=-1.5, forces=forces, stress=stress)
    ase_io.write(tmp_path / "a.xyz", [silicon, build.molecule("H2O")], format="extxyz")
    types, samples = read(tmp_path / "a.xyz")
    assert types["forces"] == "float64[*,3]?" and types["cell"] == "float64[3,3]?" and types["energy"] == "float64?"
    assert samples[0]["energy"] == -1.5 and abs(samples[0]["forces"] - forces).max() < 1e-8  # ase writes eight decimals
    assert samples[0]["stress"][0].tolist() == [0.0, 5.0, 4.0] and samples[1]["cell"] is None
    export(stored(tmp_path / "s", samples, types), tmp_path / "b.extxyz", "extxyz")
    again = ase_io.read(tmp_path / "b.extxyz", ":", format="extxyz")
    assert (again[0].get_forces() == samples[0]["forces"]).all() and again[0].get_stress().tolist() == stress.tolist()
    assert str(again[1].symbols) == "OH2" and not again[1].pbc.any()


def result(folder: Path, steps: int, seed: int) -> Path:
    """Write a result directory as a run of gewu does."""
    from gewu.jobs.netcdf import Variable
    from gewu.jobs.record import Number, Record, write_data, write_json

    random = np.random.default_rng(seed)
    record = Record()
    record.numbers = {"energy_ev": Number(float(seed), "eV"), "pressure_gpa": Number(0.5, "GPa")}
    record.variables = {
        "position": Variable(random.normal(size=(steps, 4, 3)), ("time", "atom", "xyz"), "Å"),
        "temperature": Variable(random.normal(size=steps).astype(np.float32), ("time",), "K"),
        "kind": Variable(np.arange(4, dtype=np.int32), ("atom",), ""),
        "wave": Variable(random.normal(size=(2, 3)) + 1j, ("band", "g"), ""),
        "open": Variable(np.array([True, False]), ("band",), ""),
    }
    folder.mkdir()
    files = write_data(folder, record, title="t", source="s")
    write_json(folder / "manifest.json", {"state": "finished", "job_id": "x", "files": files, "timings_s": {}})
    return folder


def test_results_of_gewu(tmp_path: Path) -> None:
    from gewu.jobs.netcdf import Arrays

    for name, steps, seed in (("a", 5, 1), ("b", 7, 2)):
        result(tmp_path / f"{name}.result", steps, seed)
    assert format_of(tmp_path) == format_of(tmp_path / "a.result") == "results"
    types, samples = read(tmp_path)
    assert types == {"result": "text", "energy_ev": "float64", "pressure_gpa": "float64", "position": "float64[*,4,3]",
                     "temperature": "float32[*]", "kind": "int32[*]", "wave": "complex128[*,3]", "open": "bool[*]"}  # fmt: skip
    assert [sample["result"] for sample in samples] == ["a.result", "b.result"] and samples[1]["energy_ev"] == 2.0
    arrays = Arrays(tmp_path / "b.result" / "arrays.nc")
    assert all(same(samples[1][name], arrays[name]) for name in arrays)
    schema = source(tmp_path).schema
    assert (schema["position"].unit, schema["energy_ev"].unit, schema["kind"].unit) == ("Å", "eV", "")
    types, samples = read(tmp_path, along="time")
    assert types["position"] == "float64[*,3]" and types["temperature"] == "float32" and len(samples) == 12
    assert same(samples[6]["position"], arrays["position"][1]) and same(samples[6]["kind"], arrays["kind"])
    assert samples[6]["temperature"] == float(arrays["temperature"][1]) and same(samples[6]["wave"], arrays["wave"])
    pieces = [dataclasses.replace(piece, args=("space",)) for piece in source(tmp_path).pieces]
    rejects = [sample for piece in pieces for sample in piece.samples()]
    assert [r.reason for r in rejects] == ["damaged"] * 2 and "along: has no such dimension" in rejects[0].where
    (tmp_path / "b.result" / "arrays.nc").write_bytes(b"no")
    _, samples = read(tmp_path)
    assert samples[1].reason == "damaged" and "does not match its checksum" in samples[1].where


def test_our_hdf5_opens_elsewhere(tmp_path: Path) -> None:
    import h5netcdf

    types, samples = random_samples(6)
    export(stored(tmp_path / "store", samples, types, units={"vec": "Å"}), tmp_path / "o", "hdf5")
    (file,) = (tmp_path / "o").iterdir()
    with h5netcdf.File(file) as root:
        assert root.dimensions["sample"].size == 6 and root.variables["vec"].attrs["units"] == "Å"
        sizes = root.variables["rows_size"][...]
        assert same(root.variables["rows"][int(sizes[0]) : int(sizes[:2].sum())], samples[1]["rows"])
    with h5py.File(file) as root:
        assert (root["i"][...] == [sample["i"] for sample in samples]).all()
