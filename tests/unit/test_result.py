"""Results: what is read back is what was saved, and damage is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from gewu.core.errors import InputError, StoreError
from gewu.jobs.netcdf import DTYPES, Arrays, Variable, encode
from gewu.jobs.record import Number, Record
from gewu.jobs.result import Result
from tests.jobtools import install, ising_job, run


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Result:
    assert run(install(monkeypatch, tmp_path, ising_job(sweeps=3))).exit_code == 0
    return Result.load("magnet.result")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_arrays_come_back_bit_for_bit(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(5)
    raw = generator.integers(0, 2, (*shape, np.dtype(dtype).itemsize)).astype(np.uint8) * 37
    array = np.ascontiguousarray(raw).view(dtype)[..., 0] if dtype != "b1" else raw[..., 0].astype(bool)
    dims = ("row", "column")[: len(shape)]
    path = tmp_path / "arrays.nc"
    path.write_bytes(encode({"x": Variable(array, dims, "eV", {"long_name": "some energies"})}, title="t", source="s"))
    back = Arrays(path).variable("x")
    assert back.array.dtype == array.dtype
    assert back.array.shape == array.shape
    assert back.array.tobytes() == array.tobytes()
    assert (back.dims, back.units, back.attributes["long_name"]) == (dims, "eV", "some energies")


def test_the_file_is_netcdf4_with_cf_attributes(tmp_path: Path) -> None:
    path = tmp_path / "arrays.nc"
    z = Variable(np.array([1 + 2j, 3 - 4j]), ("kpoint",), "", {"standard_name": "wave"})
    k = Variable(np.array([0.0, 1.0]), ("kpoint",), "1/bohr")
    path.write_bytes(encode({"z": z, "kpoint": k}, title="Title", source="gewu"))
    with h5py.File(path) as raw:
        assert raw.attrs["Conventions"] == "CF-1.11"
        assert raw.attrs["title"] == "Title"
        assert raw["z"].shape == (2, 2)
        assert raw["z"][1].tolist() == [3.0, -4.0]
        assert raw["z"].attrs["units"] == "1"
        assert raw["z"].attrs["standard_name"] == "wave"
        assert raw["kpoint"].attrs["units"] == "1/bohr"
        assert raw["kpoint"].is_scale  # a dimension with a variable of its name is a coordinate
        assert [raw[raw["z"].dims[axis][0].name].size for axis in (0, 1)] == [2, 2]
        assert raw["z"].dims[1][0].name == "/complex"


def test_the_same_arrays_give_the_same_bytes() -> None:
    one, other = (encode({"x": Variable(np.arange(5.0), ("n",), "s")}, title="t", source="s") for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("array", "dims", "error"),
    [
        (np.zeros(3), ("a", "b"), ValueError),
        (np.zeros((3, 3)), ("a", "a"), ValueError),
        (np.array(["text"]), ("a",), TypeError),
        (np.array([object()]), ("a",), TypeError),
        (np.zeros(3, np.float16), ("a",), TypeError),
    ],
)
def test_what_netcdf_cannot_hold_is_refused_when_it_is_saved(
    array: np.ndarray, dims: tuple[str, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Variable(array, dims, "")


def test_one_dimension_has_one_length() -> None:
    variables = {"x": Variable(np.zeros(3), ("n",), ""), "y": Variable(np.zeros(4), ("n",), "")}
    with pytest.raises(ValueError, match="array y: dimension n has length 4 here and 3 elsewhere"):
        encode(variables, title="", source="")


def test_names_are_found_with_and_without_their_unit(tmp_path: Path) -> None:
    numbers = {
        "energy_ha": Number(-1.5, "Ha"),
        "energy_per_atom_ha": Number(-0.75, "Ha"),
        "gap_ev": Number(1.1, "eV"),
        "gap_ha": Number(0.04, "Ha"),
        "density": Number(2.0, ""),
    }
    result = Result(tmp_path, {"state": "finished", "files": {}})
    result.__dict__["numbers"] = numbers
    assert result["energy_ha"] == result["energy"] == -1.5
    assert result["energy_per_atom"] == -0.75
    assert result["density"] == 2.0
    with pytest.raises(KeyError, match="several numbers fit: gap_ev, gap_ha"):
        result["gap"]
    with pytest.raises(KeyError, match="this result has energy_ha"):
        result["pressure"]
    assert result.converged
    numbers["density"] = Number(2.0, "", converged=False)
    assert not result.converged


def test_a_result_is_read_back(result: Result) -> None:
    assert result.state == "finished"
    assert result.converged
    assert result["energy_per_spin"] == result.numbers["energy_per_spin_j"].value
    assert result["spin"].shape == (8, 8)  # type: ignore[union-attr]
    assert result.arrays.variable("energy").dims == ("sweep",)
    assert result.arrays.variable("energy").units == "J"
    kinds = [event["event"] for event in result.events()]
    assert kinds[0] == "start"
    assert kinds[-1] == "done"
    assert {"progress", "checkpoint", "number", "array"} <= set(kinds)
    assert "finished, 2 numbers, 3 arrays" in repr(result)


@pytest.mark.parametrize("name", ["job.toml", "events.jsonl", "numbers.json", "arrays.nc", "report.html"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_to_any_file_is_noticed(result: Result, name: str, damage: str) -> None:
    path = result.path / name
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data[:9] + bytes([data[9] ^ 1]) + data[10:])
    with pytest.raises(StoreError, match=name):
        Result.load(result.path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"state": 1}', "[" * 100_000, '{"state": "finished", "files": {}}'])
def test_a_damaged_manifest_is_a_store_error(result: Result, text: str) -> None:
    (result.path / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"manifest\.json"):
        Result.load(result.path)


def test_a_manifest_cannot_point_outside(result: Result) -> None:
    manifest = json.loads((result.path / "manifest.json").read_text())
    manifest["files"]["../magnet.toml"] = "0" * 64
    (result.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="outside its directory"):
        Result.load(result.path)


def test_what_is_no_result_is_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="is not a result directory"):
            Result.load(path)


def test_a_record_survives_a_checkpoint() -> None:
    record = Record(
        numbers={"e_ev": Number(1.5, "eV", converged=False), "n": Number(3, "")},
        variables={"x": Variable(np.arange(3.0), ("n",), "m", {"long_name": "length"})},
        files={"a.cube": "00"},
        cited=["one"],
        warnings=["two"],
        timings_s={"scf": 0.5},
        wall_s=1.0,
        sessions=2,
        checkpoints=7,
    )
    from gewu.core.checkpoint import dump, load

    again = Record.from_state(load(dump(record.to_state()), source="test"))
    assert again.numbers == record.numbers
    assert again.variables["x"].array.tolist() == [0.0, 1.0, 2.0]
    assert again.variables["x"].attributes == {"long_name": "length"}
    assert vars(again) | {"variables": 0} == vars(record) | {"variables": 0}
