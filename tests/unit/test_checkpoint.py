"""States come back bit by bit; what cannot be kept is refused when it is given (damage: tests/faults/test_checkpoint.py)."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.checkpoint import CheckpointSet, dump, load
from gewu.core.errors import GewuError
from gewu.core.ranks import SERIAL


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def again(value: Any) -> Any:
    return load(dump({"x": value}), source="memory")["x"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        2**200,
        -(2**63),
        "",
        "Å \ud800 \0",
        b"",
        b"\0\xff",
        [],
        {},
        [1, [2.5, {"a": [None]}]],
        {"": {"i": "d"}},
    ],
)
def test_plain_values_come_back(value: Any) -> None:
    back = again(value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan])
def test_floats_come_back_by_their_bits(value: float) -> None:
    assert bits(again(value)) == bits(value)
    assert bits(again(np.float64(value))) == bits(value)


def test_numpy_scalars_become_python_numbers() -> None:
    for value, kind in [(np.int32(-5), int), (np.uint64(2**64 - 1), int), (np.bool_(True), bool), (np.float32(0.1), float)]:
        assert type(again(value)) is kind
        assert again(value) == value


@pytest.mark.parametrize(
    "dtype",
    ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8", "c8", "c16", ">f8", ">i4"],
    ids=lambda name: str(name),
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 4), (2, 3, 4)])
def test_arrays_come_back_with_type_shape_and_bits(dtype: str, shape: tuple[int, ...]) -> None:
    raw = np.random.default_rng(1).integers(0, 256, size=(*shape, np.dtype(dtype).itemsize), dtype=np.uint8)
    array = np.asarray(raw[..., 0] % 2 == 0) if dtype == "?" else raw.view(dtype)[..., 0]
    back = again(array)
    assert back.dtype == array.dtype.newbyteorder("=")
    assert back.shape == shape
    assert back.astype(array.dtype).tobytes() == np.ascontiguousarray(array).tobytes()
    assert back.flags.writeable
    assert back.flags.owndata


def test_the_order_of_an_array_is_kept_because_blas_may_round_differently_in_the_other() -> None:
    array = np.arange(12.0).reshape(3, 4)
    for given, fortran in [
        (array, False),
        (np.asfortranarray(array), True),
        (array.T, True),
        (array[:, ::2], False),
        (array[::-1], False),
    ]:
        back = again(given)
        assert np.array_equal(back, given)
        assert back.flags.f_contiguous == fortran
    assert not np.shares_memory(again(array), array)


def test_many_arrays_keep_their_places() -> None:
    state = {"a": [np.arange(n) for n in range(5)], "b": {"c": np.ones((2, 2)), "d": [np.zeros(1), {"e": np.array(3.0)}]}}
    back = load(dump(state), source="memory")
    assert [list(array) for array in back["a"]] == [list(range(n)) for n in range(5)]
    assert back["b"]["c"].sum() == 4.0
    assert back["b"]["d"][0][0] == 0.0
    assert back["b"]["d"][1]["e"] == 3.0
    assert dump(back) == dump(state)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ((1, 2), "state.x: "),
        ({"y": [0, {1}]}, r"state.x.y\[1\]: "),
        ({1: 2}, "state.x: "),
        (1j, "complex"),
        (np.array(["text"]), "array of <U4"),
        (np.array([None]), "array of object"),
        (np.array([1], dtype="m8[s]"), "array of timedelta64"),
        (np.longdouble(1), "longdouble"),
        (np.ma.masked_array([1.0]), "MaskedArray|array of float64"),
        (object(), "object"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_place(value: Any, place: str) -> None:
    with pytest.raises(GewuError, match=place) as caught:
        dump({"x": value})
    assert caught.value.exit_code == 5


def test_a_state_that_is_nested_too_deep_or_holds_itself_is_refused() -> None:
    state: dict[str, Any] = {}
    state["self"] = state
    with pytest.raises(GewuError, match="nested too deep"):
        dump(state)
    deep: Any = 1
    for _ in range(63):
        deep = [deep]
    assert again(deep) == deep


def test_a_set_replaces_the_older_one(tmp_path: Path) -> None:
    checkpoints = CheckpointSet(tmp_path, SERIAL)
    assert checkpoints.read() is None
    assert checkpoints.step is None
    (tmp_path / "notes.txt").write_text("not ours")
    for step in (0, 3, 100_000_000):
        checkpoints.write(step, {"step": step, "psi": np.full(4, step + 0.5)})
        resumed = CheckpointSet(tmp_path, SERIAL)
        state = resumed.read()
        assert state is not None
        assert state["step"] == resumed.step == checkpoints.step == step
        assert list(state["psi"]) == [step + 0.5] * 4
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"latest.json", "notes.txt", f"step-{step:08d}.rank-0000.ckpt"}
